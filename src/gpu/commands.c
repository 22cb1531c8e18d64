/* Command buffers and their descriptor sets, submits and waits. Knows nothing of what the dispatches compute.
 */
#include "gpu/commands.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "gpu/internal.h"

#define POOL_SETS 64

struct set_pool {
    VkDescriptorPool vk;
    uint32_t max_descs;
    uint32_t sets, descs; /* free ones */
};

struct gpu_cmds {
    struct gpu_device *dev;
    VkCommandPool pool;
    VkCommandBuffer cmd;
    struct set_pool *pools;
    uint32_t n_pools;
    VkDescriptorBufferInfo *infos; /* scratch, n_infos */
    uint32_t n_infos;
    struct gpu_queries *queries; /* NULL: not timed */
    struct gpu_cost cost;        /* of the next dispatch */
    const struct gpu_pipeline *bound;
    bool recording, ready;
    enum vkmoe_status st; /* of the recording */
    struct vkmoe_err err;
    char name[64];
};

/* ---- objects
 * ------------------------------------------------------------------------------------------------ */

enum vkmoe_status gpu_cmds_create(struct gpu_cmds **out, struct gpu_device *dev, const char *name,
                                  struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_cmds *c = NULL;
    VkCommandPoolCreateInfo pi = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO};
    VkCommandBufferAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO};
    VkResult r;

    *out = NULL;
    TRY(gpu_alive(dev, err));
    c = cor_zalloc(sizeof(*c));
    if (!c)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for commands %s", dev->info.name, name);
    c->dev = dev;
    snprintf(c->name, sizeof(c->name), "%s", name);
    pi.queueFamilyIndex = dev->phys->queue_family;
    if ((r = VK_CALL(dev->fn.vkCreateCommandPool(dev->vk, &pi, NULL, &c->pool))) != VK_SUCCESS) {
        c->pool = VK_NULL_HANDLE;
        TRY(gpu_fail(dev, r, "creating commands", name, err));
    }
    ai.commandPool = c->pool;
    ai.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
    ai.commandBufferCount = 1;
    if ((r = VK_CALL(dev->fn.vkAllocateCommandBuffers(dev->vk, &ai, &c->cmd))) != VK_SUCCESS) {
        c->cmd = VK_NULL_HANDLE;
        TRY(gpu_fail(dev, r, "creating commands", name, err));
    }
    TRY(gpu_queries_create(&c->queries, dev, err));
    gpu_name(dev, VK_OBJECT_TYPE_COMMAND_BUFFER, (uint64_t)(uintptr_t)c->cmd, name);
    *out = c;
    c = NULL;
done:
    gpu_cmds_destroy(c);
    return st;
}

void gpu_cmds_destroy(struct gpu_cmds *c)
{
    if (!c)
        return;
    if (gpu_settle(c->dev)) {
        for (uint32_t i = 0; i < c->n_pools; i++)
            c->dev->fn.vkDestroyDescriptorPool(c->dev->vk, c->pools[i].vk, NULL);
        c->dev->fn.vkDestroyCommandPool(c->dev->vk, c->pool, NULL);
    }
    gpu_queries_destroy(c->queries, c->dev);
    cor_free(c->pools);
    cor_free(c->infos);
    cor_free(c);
}

/* The first failure of a recording is kept for gpu_cmds_end. */
static void keep(struct gpu_cmds *c, enum vkmoe_status st)
{
    if (c->st == VKMOE_OK)
        c->st = st;
}

static enum vkmoe_status begin(struct gpu_cmds *c, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_device *dev = c->dev;
    /* The part of a layer runs its resident experts and is submitted again before that has ended. */
    VkCommandBufferBeginInfo bi = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                   .flags = VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT};
    VkResult r;

    TRY(gpu_alive(dev, err));
    if ((r = VK_CALL(dev->fn.vkResetCommandPool(dev->vk, c->pool, 0))) != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "recording", c->name, err));
    for (uint32_t i = 0; i < c->n_pools; i++) {
        if ((r = VK_CALL(dev->fn.vkResetDescriptorPool(dev->vk, c->pools[i].vk, 0))) != VK_SUCCESS)
            TRY(gpu_fail(dev, r, "recording", c->name, err));
        c->pools[i].sets = POOL_SETS;
        c->pools[i].descs = c->pools[i].max_descs;
    }
    if ((r = VK_CALL(dev->fn.vkBeginCommandBuffer(c->cmd, &bi))) != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "recording", c->name, err));
    gpu_queries_begin(c->queries, dev, c->cmd);
done:
    return st;
}

void gpu_cmds_begin(struct gpu_cmds *c)
{
    c->recording = true;
    c->ready = false;
    c->bound = NULL;
    c->st = VKMOE_OK;
    if (c->dev->n_in_flight && !gpu_settle(c->dev)) /* an earlier wait failed, its user gave up */
        keep(c, cor_fail(&c->err, VKMOE_ERR_TIMEOUT, "%s: recording %s: earlier work never ended",
                         c->dev->info.name, c->name));
    keep(c, begin(c, &c->err));
}

enum vkmoe_status gpu_cmds_end(struct gpu_cmds *c, struct vkmoe_err *err)
{
    VkResult r;

    assert(c->recording);
    c->recording = false;
    if (c->st == VKMOE_OK && (r = VK_CALL(c->dev->fn.vkEndCommandBuffer(c->cmd))) != VK_SUCCESS)
        keep(c, gpu_fail(c->dev, r, "recording", c->name, &c->err));
    if (c->st != VKMOE_OK && err)
        *err = c->err;
    c->ready = c->st == VKMOE_OK;
    return c->st;
}

/* ---- descriptor sets
 * ------------------------------------------------------------------------------------------ */

static enum vkmoe_status add_pool(struct gpu_cmds *c, uint32_t n_descs, struct vkmoe_err *err)
{
    struct gpu_device *dev = c->dev;
    struct set_pool *pools = cor_resize(c->pools, c->n_pools + 1, sizeof(*pools));
    VkDescriptorPoolSize sizes[] = {
        {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, POOL_SETS * (n_descs > 8 ? n_descs : 8)},
        {VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER, POOL_SETS}}; /* one in a set, at most */
    VkDescriptorPoolCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO};
    struct set_pool *p;
    VkResult r;

    if (!pools)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for descriptor sets of %s", dev->info.name,
                        c->name);
    c->pools = pools;
    p = &pools[c->n_pools];
    ci.maxSets = POOL_SETS;
    ci.poolSizeCount = COR_COUNT(sizes);
    ci.pPoolSizes = sizes;
    if ((r = VK_CALL(dev->fn.vkCreateDescriptorPool(dev->vk, &ci, NULL, &p->vk))) != VK_SUCCESS)
        return gpu_fail(dev, r, "creating descriptor sets of", c->name, err);
    p->max_descs = p->descs = sizes[0].descriptorCount;
    p->sets = POOL_SETS;
    c->n_pools++;
    return VKMOE_OK;
}

static enum vkmoe_status alloc_set(struct gpu_cmds *c, const struct gpu_pipeline *p, uint32_t n_descs,
                                   VkDescriptorSet *set, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    VkDescriptorSetAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO};
    uint32_t i = 0;
    VkResult r;

    while (i < c->n_pools && (!c->pools[i].sets || c->pools[i].descs < n_descs))
        i++;
    if (i == c->n_pools)
        TRY(add_pool(c, n_descs, err));
    ai.descriptorPool = c->pools[i].vk;
    ai.descriptorSetCount = 1;
    ai.pSetLayouts = &p->set_layout;
    if ((r = VK_CALL(c->dev->fn.vkAllocateDescriptorSets(c->dev->vk, &ai, set))) != VK_SUCCESS)
        TRY(gpu_fail(c->dev, r, "allocating a descriptor set of", c->name, err));
    c->pools[i].sets--;
    c->pools[i].descs -= n_descs;
done:
    return st;
}

static enum vkmoe_status check_bind(const struct gpu_cmds *c, const char *kernel, uint32_t i, bool texels,
                                    const struct gpu_bind *b, uint64_t bytes, struct vkmoe_err *err)
{
    const struct gpu_caps *caps = &c->dev->caps;

    if (b->off % caps->offset_align)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%s: %s, binding %u (%s): offset %" PRIu64 " is no multiple of %u", c->dev->info.name,
                        kernel, i, b->buf->name, b->off, caps->offset_align);
    if (b->off >= b->buf->bytes || bytes > b->buf->bytes - b->off)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%s: %s, binding %u (%s): %" PRIu64 " bytes at %" PRIu64 " of %" PRIu64,
                        c->dev->info.name, kernel, i, b->buf->name, bytes, b->off, b->buf->bytes);
    if (texels &&
        (b->off % caps->texel_align || bytes % GPU_TEXEL_BYTES || bytes / GPU_TEXEL_BYTES > caps->max_texels))
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%s: %s, binding %u (%s): %" PRIu64 " bytes at %" PRIu64
                        " are no texels: at multiples of %u, at most %u of %u bytes",
                        c->dev->info.name, kernel, i, b->buf->name, bytes, b->off, caps->texel_align,
                        caps->max_texels, GPU_TEXEL_BYTES);
    if (!texels && bytes > caps->max_range)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%s: %s, binding %u (%s): %" PRIu64 " bytes, a binding may have %" PRIu64,
                        c->dev->info.name, kernel, i, b->buf->name, bytes, caps->max_range);
    return VKMOE_OK;
}

static enum vkmoe_status write_set(struct gpu_cmds *c, const struct gpu_pipeline *p,
                                   const struct gpu_bind *binds, uint32_t n, VkDescriptorSet *set,
                                   struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct gpu_kernel_info *ki = gpu_kernel_info(p->kernel);
    VkWriteDescriptorSet w[4]; /* single buffers roll over to consecutive bindings of their kind */
    VkBufferView view = VK_NULL_HANDLE;
    uint32_t n_writes = 0;

    if (n > c->n_infos) {
        VkDescriptorBufferInfo *infos = cor_resize(c->infos, n, sizeof(*infos));

        if (!infos)
            FAIL(VKMOE_ERR_MEMORY, "%s: no memory for descriptor sets of %s", c->dev->info.name, c->name);
        c->infos = infos;
        c->n_infos = n;
    }
    for (uint32_t i = 0; i < n; i++) {
        const bool texels = gpu_descriptor_type(p->kernel, i) != VK_DESCRIPTOR_TYPE_STORAGE_BUFFER;
        const uint64_t end = binds[i].buf->bytes;
        const uint64_t bytes = binds[i].bytes || binds[i].off >= end ? binds[i].bytes : end - binds[i].off;

        TRY(check_bind(c, ki->name, i, texels, &binds[i], bytes, err));
        if (texels)
            TRY(gpu_buffer_view(&view, binds[i].buf, binds[i].off, bytes, err));
        c->infos[i].buffer = binds[i].buf->vk;
        c->infos[i].offset = binds[i].off;
        c->infos[i].range = bytes;
    }
    TRY(alloc_set(c, p, n, set, err));
    for (uint32_t i = 0, next; i < n; i = next) {
        const VkDescriptorType type = gpu_descriptor_type(p->kernel, i);
        const uint32_t end = i < ki->n_buffers ? ki->n_buffers : n; /* then the array */

        for (next = i + 1; next < end && gpu_descriptor_type(p->kernel, next) == type;)
            next++;
        assert(n_writes < COR_COUNT(w));
        w[n_writes++] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                               .dstSet = *set,
                                               .dstBinding = i,
                                               .descriptorCount = next - i,
                                               .descriptorType = type,
                                               .pBufferInfo = c->infos + i,
                                               .pTexelBufferView = &view};
    }
    c->dev->fn.vkUpdateDescriptorSets(c->dev->vk, n_writes, w, 0, NULL);
done:
    return st;
}

/* ---- commands
 * ----------------------------------------------------------------------------------------------- */

/* Pipeline, set and push constants of the next dispatch; false when the recording has failed. */
static bool bind(struct gpu_cmds *c, const struct gpu_pipeline *p, const struct gpu_bind *binds, uint32_t n,
                 const void *push)
{
    const struct gpu_kernel_info *ki = gpu_kernel_info(p->kernel);
    const struct VolkDeviceTable *fn = &c->dev->fn;
    static const uint32_t nothing[32];
    VkDescriptorSet set;

    assert(c->recording && n == ki->n_buffers + (ki->segs ? p->n_segs : 0));
    if (c->st == VKMOE_OK)
        keep(c, write_set(c, p, binds, n, &set, &c->err));
    if (c->st != VKMOE_OK)
        return false;
    if (c->bound != p)
        fn->vkCmdBindPipeline(c->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, p->vk);
    c->bound = p;
    fn->vkCmdBindDescriptorSets(c->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, p->layout, 0, 1, &set, 0, NULL);
    fn->vkCmdPushConstants(c->cmd, p->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, ki->push_bytes,
                           push ? push : nothing);
    return true;
}

void gpu_cmds_cost(struct gpu_cmds *c, const struct gpu_cost *cost)
{
    c->cost = *cost;
}

static void stamp(struct gpu_cmds *c, const struct gpu_pipeline *p, bool after)
{
    gpu_queries_stamp(c->queries, c->dev, c->cmd, p->kernel, &c->cost, after);
    if (after)
        memset(&c->cost, 0, sizeof(c->cost));
}

void gpu_cmds_dispatch(struct gpu_cmds *c, struct gpu_pipeline *p, const struct gpu_bind *binds,
                       uint32_t n_binds, const void *push, uint32_t x, uint32_t y, uint32_t z)
{
    const uint32_t max = c->dev->caps.max_groups;

    if (x > max || y > max || z > c->dev->phys->props.limits.maxComputeWorkGroupCount[2])
        keep(c,
             cor_fail(&c->err, VKMOE_ERR_LIMIT, "%s: %s: a grid of %u x %u x %u workgroups, %u are allowed",
                      c->dev->info.name, gpu_kernel_info(p->kernel)->name, x, y, z, max));
    if (!bind(c, p, binds, n_binds, push))
        return;
    stamp(c, p, false);
    c->dev->fn.vkCmdDispatch(c->cmd, x, y, z);
    stamp(c, p, true);
}

void gpu_cmds_dispatch_indirect(struct gpu_cmds *c, struct gpu_pipeline *p, const struct gpu_bind *binds,
                                uint32_t n_binds, const void *push, struct gpu_buffer *args,
                                uint64_t args_off)
{
    assert(args_off % 4 == 0 && args_off + 12 <= args->bytes);
    if (!bind(c, p, binds, n_binds, push))
        return;
    stamp(c, p, false);
    c->dev->fn.vkCmdDispatchIndirect(c->cmd, args->vk, args_off);
    stamp(c, p, true);
}

void gpu_cmds_barrier(struct gpu_cmds *c, enum gpu_barrier kind)
{
    const VkPipelineStageFlags compute = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
    const VkPipelineStageFlags copy = VK_PIPELINE_STAGE_TRANSFER_BIT;
    const VkPipelineStageFlags args = VK_PIPELINE_STAGE_DRAW_INDIRECT_BIT;
    const VkAccessFlags shader = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT;
    const VkAccessFlags transfer = VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER};
    VkPipelineStageFlags dst = compute;

    assert(c->recording);
    if (kind != GPU_BARRIER_HOST && (int32_t)c->dev->n_barriers++ == c->dev->skip_barrier)
        return;
    if (c->st != VKMOE_OK)
        return;
    b.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    b.dstAccessMask = shader;
    if (kind == GPU_BARRIER_ARGS) {
        dst |= args;
        b.dstAccessMask |= VK_ACCESS_INDIRECT_COMMAND_READ_BIT;
    } else if (kind == GPU_BARRIER_COPY) {
        dst = copy;
        b.dstAccessMask = transfer;
    } else if (kind ==
               GPU_BARRIER_HOST) { /* and everything the next submit may do: a fence makes nothing visible */
        dst |= args | copy | VK_PIPELINE_STAGE_HOST_BIT;
        b.dstAccessMask |= transfer | VK_ACCESS_INDIRECT_COMMAND_READ_BIT | VK_ACCESS_HOST_READ_BIT;
    }
    /* Earlier reads of arguments are in the first scope: router_one and group write arguments that dispatches
     * before them, in this submit or an earlier one, have read. */
    c->dev->fn.vkCmdPipelineBarrier(c->cmd, compute | copy | args, dst, 0, 1, &b, 0, NULL, 0, NULL);
}

void gpu_cmds_copy(struct gpu_cmds *c, struct gpu_buffer *src, uint64_t src_off, struct gpu_buffer *dst,
                   uint64_t dst_off, uint64_t bytes)
{
    VkBufferCopy copy = {src_off, dst_off, bytes};

    assert(c->recording && bytes && src_off <= src->bytes && bytes <= src->bytes - src_off);
    assert(dst_off <= dst->bytes && bytes <= dst->bytes - dst_off);
    if (c->st == VKMOE_OK)
        c->dev->fn.vkCmdCopyBuffer(c->cmd, src->vk, dst->vk, 1, &copy);
}

/* ---- submits
 * ------------------------------------------------------------------------------------------------ */

enum vkmoe_status gpu_submit(struct gpu_device *dev, struct gpu_cmds *const *cmds, uint32_t n,
                             struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    VkSubmitInfo si = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO};
    VkResult r;

    TRY(gpu_alive(dev, err));
    assert(n);
    if (dev->n_in_flight == GPU_IN_FLIGHT && !gpu_settle(dev)) /* an earlier wait failed, its user gave up */
        FAIL(VKMOE_ERR_TIMEOUT, "%s: submitting %s: earlier work never ended", dev->info.name, cmds[0]->name);
    if (n > dev->batch_size) {
        VkCommandBuffer *batch = cor_resize(dev->batch, n, sizeof(VkCommandBuffer));

        if (!batch)
            FAIL(VKMOE_ERR_MEMORY, "%s: no memory for a submit of %u", dev->info.name, n);
        dev->batch = batch;
        dev->batch_size = n;
    }
    for (uint32_t i = 0; i < n; i++) {
        assert(cmds[i]->ready);
        dev->batch[i] = cmds[i]->cmd;
    }
    si.commandBufferCount = n;
    si.pCommandBuffers = dev->batch;
    TRY(gpu_join_copies(dev, &si, err));
    if (!dev->n_in_flight)
        gpu_profile_submitting(dev);
    r = VK_CALL(dev->fn.vkQueueSubmit(dev->queue, 1, &si, dev->fences[dev->n_in_flight]));
    if (r != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "submitting", cmds[0]->name, err));
    dev->copied_signaled = false;
    dev->n_in_flight++;
    for (uint32_t i = 0; i < n; i++)
        gpu_profile_submitted(dev, cmds[i]->queries);
done:
    return st;
}

enum vkmoe_status gpu_wait(struct gpu_device *dev, uint64_t timeout_ns, const char *what,
                           struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    VkResult r;

    TRY(gpu_alive(dev, err));
    if (!dev->n_in_flight)
        return VKMOE_OK;
    r = VK_CALL(dev->fn.vkWaitForFences(dev->vk, dev->n_in_flight, dev->fences, VK_TRUE, timeout_ns));
    if (r != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "waiting for", what, err));
    if ((r = VK_CALL(dev->fn.vkResetFences(dev->vk, dev->n_in_flight, dev->fences))) != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "resetting the fence after", what, err));
    gpu_profile_collect(dev);
    dev->n_in_flight = 0; /* until the fences are usable again the next submit settles first */
done:
    return st;
}
