/* Device memory: choice of memory type, buffers, mapping, accounting. Bulk transfers are in upload.c. */
#include "gpu/memory.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "gpu/internal.h"

#define DEVICE_LOCAL VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
#define HOST_VISIBLE VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT
#define COHERENT     VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
#define CACHED       VK_MEMORY_PROPERTY_HOST_CACHED_BIT

static uint64_t round_up(uint64_t v, uint64_t unit)
{
    return (v + unit - 1) / unit * unit;
}

/* -coherent on a device that is: non-coherent memory is preferred, and flushes are made even where there is
 * none. */
static bool clamp_coherent(const struct gpu_device *dev)
{
    return dev->phys->caps.coherent && !dev->caps.coherent;
}

/* How well a memory type fits; -1: not at all. */
static int type_score(const struct gpu_device *dev, uint32_t type, enum gpu_mem mem)
{
    const VkMemoryPropertyFlags f = dev->memory.memoryTypes[type].propertyFlags;
    const bool big = dev->memory.memoryTypes[type].heapIndex == dev->phys->heap;
    const int as_wanted = ((f & COHERENT) != 0) != clamp_coherent(dev);

    if (f & ~(VkMemoryPropertyFlags)(DEVICE_LOCAL | HOST_VISIBLE | COHERENT | CACHED))
        return -1; /* protected, lazily allocated and the like need features of their own */
    switch (mem) {
    case GPU_MEM_DEVICE:
        if (!(f & DEVICE_LOCAL) || !big)
            return -1;
        if (dev->caps.uma)
            return f & HOST_VISIBLE ? 2 * as_wanted + !(f & CACHED) : -1;
        return !(f & HOST_VISIBLE);
    case GPU_MEM_STEP:
        return f & HOST_VISIBLE ? 4 * as_wanted + 2 * ((f & DEVICE_LOCAL) != 0) + !(f & CACHED) : -1;
    case GPU_MEM_READ:
        return f & HOST_VISIBLE ? 4 * ((f & CACHED) != 0) + 2 * as_wanted + !(f & DEVICE_LOCAL) : -1;
    }
    return -1;
}

static uint32_t pick_type(const struct gpu_device *dev, uint32_t bits, enum gpu_mem mem)
{
    int best = -1;
    uint32_t type = UINT32_MAX;

    for (uint32_t i = 0; i < dev->memory.memoryTypeCount; i++) {
        int score = bits >> i & 1 ? type_score(dev, i, mem) : -1;

        if (score > best) {
            best = score;
            type = i;
        }
    }
    return type;
}

struct gpu_view {
    struct gpu_view *next;
    VkBufferView vk;
    uint64_t off, bytes;
};

/* ---- buffers
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status check_budget(const struct gpu_device *dev, uint64_t bytes, const char *name,
                                      struct vkmoe_err *err)
{
    if (bytes > dev->caps.max_alloc)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%s: buffer %s: %" PRIu64 " bytes, one allocation may have %" PRIu64, dev->info.name,
                        name, bytes, dev->caps.max_alloc);
    if (bytes > dev->caps.heap_bytes || dev->bytes > dev->caps.heap_bytes - bytes)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%s: buffer %s: %" PRIu64 " bytes asked for, %" PRIu64
                        " in use, the heap has %" PRIu64,
                        dev->info.name, name, bytes, dev->bytes, dev->caps.heap_bytes);
    return VKMOE_OK;
}

static enum vkmoe_status create_handle(struct gpu_buffer *b, struct vkmoe_err *err)
{
    struct gpu_device *dev = b->dev;
    const uint32_t families[2] = {dev->phys->queue_family, dev->copy_family};
    VkBufferCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO};
    VkResult r;

    ci.size = b->bytes;
    ci.usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT |
               VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT;
    if (b->mem == GPU_MEM_DEVICE)
        ci.usage |= VK_BUFFER_USAGE_UNIFORM_TEXEL_BUFFER_BIT;
    if (b->mem == GPU_MEM_DEVICE && dev->copy_family != dev->phys->queue_family) {
        ci.sharingMode = VK_SHARING_MODE_CONCURRENT; /* costs buffers nothing, and saves handing over */
        ci.queueFamilyIndexCount = 2;
        ci.pQueueFamilyIndices = families;
    } else {
        ci.sharingMode = VK_SHARING_MODE_EXCLUSIVE;
    }
    r = VK_CALL(dev->fn.vkCreateBuffer(dev->vk, &ci, NULL, &b->vk));
    if (r == VK_SUCCESS)
        return VKMOE_OK;
    b->vk = VK_NULL_HANDLE;
    return gpu_fail(dev, r, "creating buffer", b->name, err);
}

static enum vkmoe_status allocate(struct gpu_buffer *b, struct vkmoe_err *err)
{
    struct gpu_device *dev = b->dev;
    VkMemoryRequirements req;
    VkMemoryAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO};
    VkMemoryPropertyFlags flags;
    VkResult r;

    dev->fn.vkGetBufferMemoryRequirements(dev->vk, b->vk, &req);
    ai.memoryTypeIndex = pick_type(dev, req.memoryTypeBits, b->mem);
    if (ai.memoryTypeIndex == UINT32_MAX)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: buffer %s: no memory type fits", dev->info.name,
                        b->name);
    ai.allocationSize = b->allocated = round_up(req.size, dev->atom);
    flags = dev->memory.memoryTypes[ai.memoryTypeIndex].propertyFlags;
    b->coherent = (flags & COHERENT) && !clamp_coherent(dev);
    if ((r = VK_CALL(dev->fn.vkAllocateMemory(dev->vk, &ai, NULL, &b->memory))) != VK_SUCCESS) {
        b->memory = VK_NULL_HANDLE;
        return cor_fail(err, gpu_fail(dev, r, "allocating", b->name, err),
                        "%s: buffer %s: %" PRIu64 " bytes: %s (%" PRIu64 " in use)", dev->info.name, b->name,
                        b->bytes, gpu_result_text(r), dev->bytes);
    }
    if ((r = VK_CALL(dev->fn.vkBindBufferMemory(dev->vk, b->vk, b->memory, 0))) != VK_SUCCESS)
        return gpu_fail(dev, r, "binding memory of buffer", b->name, err);
    if (b->mem == GPU_MEM_DEVICE && !dev->caps.uma)
        return VKMOE_OK;
    if ((r = VK_CALL(dev->fn.vkMapMemory(dev->vk, b->memory, 0, VK_WHOLE_SIZE, 0, &b->map))) != VK_SUCCESS) {
        b->map = NULL;
        return gpu_fail(dev, r, "mapping buffer", b->name, err);
    }
    return VKMOE_OK;
}

static enum vkmoe_status clear(struct gpu_buffer *b, struct vkmoe_err *err)
{
    if (!b->map)
        return gpu_fill_zero(b, err);
    memset(b->map, 0, (size_t)b->bytes);
    return gpu_buffer_flush(b, 0, b->bytes, err);
}

enum vkmoe_status gpu_buffer_create(struct gpu_buffer **out, struct gpu_device *dev, uint64_t bytes,
                                    enum gpu_mem mem, const char *name, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_buffer *b = NULL;

    *out = NULL;
    assert(bytes > 0 && !dev->compile_only);
    TRY(gpu_alive(dev, err));
    if (bytes > UINT64_MAX / 2)
        FAIL(VKMOE_ERR_LIMIT, "%s: buffer %s: %" PRIu64 " bytes are too many", dev->info.name, name, bytes);
    bytes = round_up(bytes, 16);
    if (mem == GPU_MEM_DEVICE)
        TRY(check_budget(dev, bytes, name, err));
    b = cor_zalloc(sizeof(*b));
    if (!b)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for buffer %s", dev->info.name, name);
    b->dev = dev;
    b->bytes = bytes;
    b->mem = mem;
    snprintf(b->name, sizeof(b->name), "%s", name);
    if (mem == GPU_MEM_DEVICE)
        dev->bytes += bytes;
    TRY(create_handle(b, err));
    TRY(allocate(b, err));
    gpu_name(dev, VK_OBJECT_TYPE_BUFFER, (uint64_t)b->vk, b->name);
    gpu_name(dev, VK_OBJECT_TYPE_DEVICE_MEMORY, (uint64_t)b->memory, b->name);
    TRY(clear(b, err));
    if (dev->bytes > dev->peak_bytes)
        dev->peak_bytes = dev->bytes;
    *out = b;
    b = NULL;
done:
    gpu_buffer_destroy(b);
    return st;
}

void gpu_buffer_destroy(struct gpu_buffer *b)
{
    if (!b)
        return;
    const bool idle = gpu_settle(b->dev);

    while (b->views) {
        struct gpu_view *next = b->views->next;

        if (idle)
            b->dev->fn.vkDestroyBufferView(b->dev->vk, b->views->vk, NULL);
        cor_free(b->views);
        b->views = next;
    }
    if (idle) {
        b->dev->fn.vkDestroyBuffer(b->dev->vk, b->vk, NULL);
        b->dev->fn.vkFreeMemory(b->dev->vk, b->memory, NULL); /* unmaps */
    }
    if (b->mem == GPU_MEM_DEVICE)
        b->dev->bytes -= b->bytes;
    cor_free(b);
}

enum vkmoe_status gpu_buffer_view(VkBufferView *out, struct gpu_buffer *b, uint64_t off, uint64_t bytes,
                                  struct vkmoe_err *err)
{
    VkBufferViewCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_BUFFER_VIEW_CREATE_INFO};
    struct gpu_view *v = b->views;
    VkResult r;

    while (v && (v->off != off || v->bytes != bytes))
        v = v->next;
    if (v) {
        *out = v->vk;
        return VKMOE_OK;
    }
    v = cor_zalloc(sizeof(*v));
    if (!v)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a view of %s", b->dev->info.name, b->name);
    ci.buffer = b->vk;
    ci.format = VK_FORMAT_R32G32B32A32_UINT; /* every device reads texels of it */
    ci.offset = off;
    ci.range = bytes;
    r = VK_CALL(b->dev->fn.vkCreateBufferView(b->dev->vk, &ci, NULL, &v->vk));
    if (r != VK_SUCCESS) {
        cor_free(v);
        return gpu_fail(b->dev, r, "making texels of", b->name, err);
    }
    v->off = off;
    v->bytes = bytes;
    v->next = b->views;
    b->views = v;
    *out = v->vk;
    return VKMOE_OK;
}

uint64_t gpu_buffer_bytes(const struct gpu_buffer *b)
{
    return b->bytes;
}

void *gpu_buffer_map(const struct gpu_buffer *b)
{
    return b->map;
}

/* ---- coherence
 * ---------------------------------------------------------------------------------------------- */

/* The range widened to whole atoms; the allocation is a multiple of the atom, so this never passes its end.
 */
static VkMappedMemoryRange atoms(const struct gpu_buffer *b, uint64_t off, uint64_t bytes)
{
    const uint64_t atom = b->dev->atom;
    VkMappedMemoryRange range = {.sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE};

    assert(b->map && off <= b->bytes && bytes <= b->bytes - off);
    range.memory = b->memory;
    range.offset = off / atom * atom;
    range.size = round_up(off + bytes, atom) - range.offset;
    return range;
}

enum vkmoe_status gpu_buffer_flush(struct gpu_buffer *b, uint64_t off, uint64_t bytes, struct vkmoe_err *err)
{
    VkMappedMemoryRange range = atoms(b, off, bytes);
    VkResult r;

    if (b->coherent || !bytes)
        return VKMOE_OK;
    r = VK_CALL(b->dev->fn.vkFlushMappedMemoryRanges(b->dev->vk, 1, &range));
    return r == VK_SUCCESS ? VKMOE_OK : gpu_fail(b->dev, r, "flushing buffer", b->name, err);
}

enum vkmoe_status gpu_buffer_invalidate(struct gpu_buffer *b, uint64_t off, uint64_t bytes,
                                        struct vkmoe_err *err)
{
    VkMappedMemoryRange range = atoms(b, off, bytes);
    VkResult r;

    if (b->coherent || !bytes)
        return VKMOE_OK;
    r = VK_CALL(b->dev->fn.vkInvalidateMappedMemoryRanges(b->dev->vk, 1, &range));
    return r == VK_SUCCESS ? VKMOE_OK : gpu_fail(b->dev, r, "invalidating buffer", b->name, err);
}

/* ---- accounting
 * --------------------------------------------------------------------------------------------- */

uint64_t gpu_device_bytes(const struct gpu_device *dev)
{
    return dev->bytes;
}

uint64_t gpu_device_peak_bytes(const struct gpu_device *dev)
{
    return dev->peak_bytes;
}

uint64_t gpu_device_free_bytes(const struct gpu_device *dev)
{
    const uint64_t heap = dev->caps.heap_bytes;
    uint64_t budget = 0, usage = 0; /* unknown: the heap, and what we use of it */

    if (dev->budget)
        dev->budget(dev->budget_user, &budget, &usage);
    else if (!dev->caps.budget || !gpu_phys_budget(dev->phys, &budget, &usage))
        budget = usage = 0;
    return gpu_budget_free(heap, budget, usage, dev->bytes);
}

void gpu_device_set_budget(struct gpu_device *dev, void (*fn)(void *user, uint64_t *budget, uint64_t *usage),
                           void *user)
{
    dev->budget = fn;
    dev->budget_user = user;
}
