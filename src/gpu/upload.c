/* Bulk transfers between host and device: straight into mapped memory, else through two staging buffers that
 * take turns; rings of staging entries whose copies nobody waits for. Owns the staging buffers, their command
 * buffers and fences, and how copies on a queue of their own are told to the compute queue. */
#include <assert.h>
#include <string.h>

#include "gpu/internal.h"

#define TRANSFER_WAIT_NS 30000000000u /* for one copy of at most GPU_UPLOAD_MAX bytes */

static uint64_t min64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ---- one-off command buffers
 * ---------------------------------------------------------------------------------- */

static enum vkmoe_status create_pool(struct gpu_device *dev, bool apart, struct vkmoe_err *err)
{
    VkCommandPoolCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO};
    VkCommandPool *pool = apart ? &dev->up.copy_pool : &dev->up.pool;
    VkResult r;

    if (*pool)
        return VKMOE_OK;
    ci.flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT | VK_COMMAND_POOL_CREATE_TRANSIENT_BIT;
    ci.queueFamilyIndex = apart ? dev->copy_family : dev->phys->queue_family;
    if ((r = VK_CALL(dev->fn.vkCreateCommandPool(dev->vk, &ci, NULL, pool))) == VK_SUCCESS)
        return VKMOE_OK;
    *pool = VK_NULL_HANDLE;
    return gpu_fail(dev, r, "creating the transfer command pool", NULL, err);
}

static enum vkmoe_status create_stage(struct gpu_device *dev, struct gpu_staging *s, struct vkmoe_err *err)
{
    VkCommandBufferAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO};
    VkFenceCreateInfo fi = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    const enum vkmoe_status st = create_pool(dev, s->apart, err);
    VkResult r;

    if (st != VKMOE_OK)
        return st;
    ai.commandPool = s->apart ? dev->up.copy_pool : dev->up.pool;
    ai.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
    ai.commandBufferCount = 1;
    if (!s->cmd && (r = VK_CALL(dev->fn.vkAllocateCommandBuffers(dev->vk, &ai, &s->cmd))) != VK_SUCCESS) {
        s->cmd = VK_NULL_HANDLE;
        return gpu_fail(dev, r, "creating a transfer command buffer", NULL, err);
    }
    if (!s->fence && (r = VK_CALL(dev->fn.vkCreateFence(dev->vk, &fi, NULL, &s->fence))) != VK_SUCCESS) {
        s->fence = VK_NULL_HANDLE;
        return gpu_fail(dev, r, "creating a transfer fence", NULL, err);
    }
    return VKMOE_OK;
}

static enum vkmoe_status stage_wait(struct gpu_device *dev, struct gpu_staging *s, struct vkmoe_err *err)
{
    VkResult r;

    if (!s->pending)
        return VKMOE_OK;
    r = VK_CALL(dev->fn.vkWaitForFences(dev->vk, 1, &s->fence, VK_TRUE, TRANSFER_WAIT_NS));
    if (r != VK_SUCCESS)
        return gpu_fail(dev, r, "waiting for a transfer", NULL, err);
    r = VK_CALL(dev->fn.vkResetFences(dev->vk, 1, &s->fence));
    if (r != VK_SUCCESS)
        return gpu_fail(dev, r, "resetting a transfer fence", NULL, err);
    s->pending = false;
    return VKMOE_OK;
}

static void barrier(struct gpu_device *dev, VkCommandBuffer cmd, bool apart, bool before)
{
    const VkPipelineStageFlags other = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT |
                                       VK_PIPELINE_STAGE_DRAW_INDIRECT_BIT;
    VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER};

    if (apart) { /* among copies only: a semaphore stands between them and compute work */
        b.srcAccessMask = b.dstAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT;
        if (before)
            dev->fn.vkCmdPipelineBarrier(cmd, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT,
                                         0, 1, &b, 0, NULL, 0, NULL);
        return;
    }
    if (before) {
        b.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
        b.dstAccessMask = VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
        dev->fn.vkCmdPipelineBarrier(cmd, other, VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 1, &b, 0, NULL, 0, NULL);
        return;
    }
    b.srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT;
    b.dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
                      VK_ACCESS_TRANSFER_WRITE_BIT | VK_ACCESS_INDIRECT_COMMAND_READ_BIT |
                      VK_ACCESS_HOST_READ_BIT;
    dev->fn.vkCmdPipelineBarrier(cmd, VK_PIPELINE_STAGE_TRANSFER_BIT, other | VK_PIPELINE_STAGE_HOST_BIT, 0,
                                 1, &b, 0, NULL, 0, NULL);
}

/* A free stage, recording, with everything earlier on the queue made visible to transfers. */
static enum vkmoe_status stage_begin(struct gpu_device *dev, struct gpu_staging *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    VkCommandBufferBeginInfo bi = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    VkResult r;

    TRY(create_stage(dev, s, err));
    TRY(stage_wait(dev, s, err));
    bi.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
    if ((r = VK_CALL(dev->fn.vkBeginCommandBuffer(s->cmd, &bi))) != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "recording a transfer", NULL, err));
    barrier(dev, s->cmd, s->apart, true);
done:
    return st;
}

static enum vkmoe_status stage_submit(struct gpu_device *dev, struct gpu_staging *s, struct vkmoe_err *err)
{
    VkSubmitInfo si = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO};
    VkResult r;

    barrier(dev, s->cmd, s->apart, false);
    if ((r = VK_CALL(dev->fn.vkEndCommandBuffer(s->cmd))) != VK_SUCCESS)
        return gpu_fail(dev, r, "recording a transfer", NULL, err);
    si.commandBufferCount = 1;
    si.pCommandBuffers = &s->cmd;
    if ((r = VK_CALL(dev->fn.vkQueueSubmit(s->apart ? dev->copy_queue : dev->queue, 1, &si, s->fence))) !=
        VK_SUCCESS)
        return gpu_fail(dev, r, "submitting a transfer", NULL, err);
    s->pending = true;
    dev->copies_due = dev->copies_due || s->apart;
    return VKMOE_OK;
}

enum vkmoe_status gpu_fill_zero(struct gpu_buffer *b, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_device *dev = b->dev;
    struct gpu_staging *s = &dev->up.stage[dev->up.next];

    TRY(stage_begin(dev, s, err));
    dev->fn.vkCmdFillBuffer(s->cmd, b->vk, 0, VK_WHOLE_SIZE, 0);
    TRY(stage_submit(dev, s, err));
    TRY(stage_wait(dev, s, err));
done:
    return st;
}

/* ---- uploads
 * ------------------------------------------------------------------------------------------------ */

enum vkmoe_status gpu_upload_begin(struct gpu_device *dev, struct gpu_buffer *b, uint64_t off, size_t n,
                                   void **dst, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_staging *s = &dev->up.stage[dev->up.next];

    assert(n && n <= GPU_UPLOAD_MAX && off % 4 == 0 && n % 4 == 0);
    assert(off <= b->bytes && n <= b->bytes - off);
    *dst = NULL;
    TRY(gpu_alive(dev, err));
    if (!b->map) {
        TRY(stage_wait(dev, s, err));
        if (!s->buf)
            TRY(gpu_buffer_create(&s->buf, dev, GPU_UPLOAD_MAX, GPU_MEM_STEP, "staging", err));
    }
    dev->up.dst = b;
    dev->up.off = off;
    dev->up.bytes = n;
    *dst = b->map ? (char *)b->map + off : (char *)s->buf->map;
done:
    return st;
}

enum vkmoe_status gpu_upload_end(struct gpu_device *dev, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_upload *u = &dev->up;
    struct gpu_staging *s = &u->stage[u->next];
    struct gpu_buffer *b = u->dst;
    VkBufferCopy copy;

    assert(b);
    u->dst = NULL;
    if (b->map)
        return gpu_buffer_flush(b, u->off, u->bytes, err);
    TRY(gpu_buffer_flush(s->buf, 0, u->bytes, err));
    TRY(stage_begin(dev, s, err));
    copy.srcOffset = 0;
    copy.dstOffset = u->off;
    copy.size = u->bytes;
    dev->fn.vkCmdCopyBuffer(s->cmd, s->buf->vk, b->vk, 1, &copy);
    TRY(stage_submit(dev, s, err));
    u->next = (u->next + 1) % COR_COUNT(u->stage);
done:
    return st;
}

enum vkmoe_status gpu_upload_wait(struct gpu_device *dev, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(gpu_alive(dev, err));
    for (size_t i = 0; i < COR_COUNT(dev->up.stage); i++)
        TRY(stage_wait(dev, &dev->up.stage[i], err));
    for (struct gpu_ring *r = dev->rings; r; r = r->next)
        for (uint32_t i = 0; i < r->n; i++)
            TRY(stage_wait(dev, &r->stage[i], err));
done:
    return st;
}

enum vkmoe_status gpu_upload(struct gpu_device *dev, struct gpu_buffer *b, uint64_t off, const void *src,
                             uint64_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint64_t done = 0; done < n;) {
        const size_t part = (size_t)min64(n - done, GPU_UPLOAD_MAX);
        void *dst;

        TRY(gpu_upload_begin(dev, b, off + done, part, &dst, err));
        memcpy(dst, (const char *)src + done, part);
        TRY(gpu_upload_end(dev, err));
        done += part;
    }
    TRY(gpu_upload_wait(dev, err));
done:
    return st;
}

/* ---- downloads
 * ---------------------------------------------------------------------------------------------- */

static enum vkmoe_status download_part(struct gpu_buffer *b, uint64_t off, struct gpu_buffer *stage,
                                       uint64_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_device *dev = b->dev;
    struct gpu_staging *s = &dev->up.stage[dev->up.next];
    VkBufferCopy copy;

    TRY(stage_begin(dev, s, err));
    copy.srcOffset = off;
    copy.dstOffset = 0;
    copy.size = n;
    dev->fn.vkCmdCopyBuffer(s->cmd, b->vk, stage->vk, 1, &copy);
    TRY(stage_submit(dev, s, err));
    TRY(stage_wait(dev, s, err));
    TRY(gpu_buffer_invalidate(stage, 0, n, err));
done:
    return st;
}

enum vkmoe_status gpu_download(struct gpu_device *dev, struct gpu_buffer *b, uint64_t off, void *dst,
                               uint64_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_buffer *stage = NULL;

    assert(off <= b->bytes && n <= b->bytes - off);
    TRY(gpu_upload_wait(dev, err));
    if (b->map) {
        TRY(gpu_buffer_invalidate(b, off, n, err));
        memcpy(dst, (const char *)b->map + off, (size_t)n);
        return VKMOE_OK;
    }
    if (n)
        TRY(gpu_buffer_create(&stage, dev, min64(n, GPU_UPLOAD_MAX), GPU_MEM_READ, "download", err));
    for (uint64_t done = 0; done < n;) {
        const uint64_t part = min64(n - done, GPU_UPLOAD_MAX);

        TRY(download_part(b, off + done, stage, part, err));
        memcpy((char *)dst + done, stage->map, (size_t)part);
        done += part;
    }
done:
    gpu_buffer_destroy(stage);
    return st;
}

/* ---- rings
 * -------------------------------------------------------------------------------------------------- */

/* Entries are flushed one by one while others are being written, so none shares an atom with its neighbour.
 */
static uint64_t ring_stride(const struct gpu_device *dev, uint32_t entry_bytes)
{
    uint64_t unit = dev->atom > dev->caps.copy_align ? dev->atom : dev->caps.copy_align; /* powers of two */

    unit = unit > 64 ? unit : 64;
    return (entry_bytes + unit - 1) / unit * unit;
}

uint64_t gpu_ring_plan_bytes(const struct gpu_device *dev, uint32_t n_entries, uint32_t entry_bytes)
{
    return n_entries * ring_stride(dev, entry_bytes);
}

enum vkmoe_status gpu_ring_create(struct gpu_ring **out, struct gpu_device *dev, uint32_t n_entries,
                                  uint32_t entry_bytes, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_ring *r = cor_zalloc(sizeof(*r));

    *out = NULL;
    assert(n_entries && entry_bytes);
    if (!r)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a staging ring", dev->info.name);
    r->dev = dev;
    r->stride = ring_stride(dev, entry_bytes);
    r->stage = cor_array(n_entries, sizeof(*r->stage));
    r->stage_of = cor_array(n_entries, sizeof(*r->stage_of));
    if (!r->stage || !r->stage_of)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for a staging ring of %u", dev->info.name, n_entries);
    r->n = n_entries;
    memset(r->stage_of, 0xff, n_entries * sizeof(*r->stage_of));
    TRY(gpu_buffer_create(&r->buf, dev, n_entries * r->stride, GPU_MEM_STEP, "staging ring", err));
    for (uint32_t i = 0; i < n_entries; i++) {
        r->stage[i].apart = dev->copies_apart;
        TRY(create_stage(dev, &r->stage[i], err));
    }
    r->next = dev->rings;
    dev->rings = r;
    *out = r;
    r = NULL;
done:
    gpu_ring_destroy(r);
    return st;
}

void gpu_ring_destroy(struct gpu_ring *r)
{
    struct gpu_ring **at;

    if (!r)
        return;
    if (gpu_settle(r->dev))
        for (uint32_t i = 0; i < r->n; i++) {
            VkCommandPool pool = r->stage[i].apart ? r->dev->up.copy_pool : r->dev->up.pool;

            if (r->stage[i].cmd)
                r->dev->fn.vkFreeCommandBuffers(r->dev->vk, pool, 1, &r->stage[i].cmd);
            r->dev->fn.vkDestroyFence(r->dev->vk, r->stage[i].fence, NULL);
        }
    for (at = &r->dev->rings; *at; at = &(*at)->next)
        if (*at == r) {
            *at = r->next;
            break;
        }
    gpu_buffer_destroy(r->buf);
    cor_free(r->stage);
    cor_free(r->stage_of);
    cor_free(r);
}

void *gpu_ring_map(const struct gpu_ring *r, uint32_t entry)
{
    assert(entry < r->n);
    return (char *)r->buf->map + entry * r->stride;
}

enum vkmoe_status gpu_ring_submit(struct gpu_ring *r, const struct gpu_ring_copy *copies, uint32_t n,
                                  struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_staging *s = &r->stage[copies[0].entry];

    assert(n);
    TRY(gpu_alive(r->dev, err));
    for (uint32_t i = 0; i < n; i++) {
        const struct gpu_ring_copy *c = &copies[i];

        assert(c->entry < r->n && c->bytes && c->at + c->bytes <= r->stride);
        assert(c->off <= c->dst->bytes && c->bytes <= c->dst->bytes - c->off);
        TRY(gpu_buffer_flush(r->buf, c->entry * r->stride + c->at, c->bytes, err));
    }
    TRY(stage_begin(r->dev, s, err));
    for (uint32_t i = 0; i < n; i++) {
        const struct gpu_ring_copy *c = &copies[i];
        VkBufferCopy copy = {c->entry * r->stride + c->at, c->off, c->bytes};

        r->dev->fn.vkCmdCopyBuffer(s->cmd, r->buf->vk, c->dst->vk, 1, &copy);
    }
    TRY(stage_submit(r->dev, s, err));
    for (uint32_t i = 0; i < n; i++)
        r->stage_of[copies[i].entry] = copies[0].entry;
done:
    return st;
}

enum vkmoe_status gpu_ring_busy(struct gpu_ring *r, uint32_t entry, bool wait, bool *busy,
                                struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_staging *s;
    VkResult res;

    assert(entry < r->n);
    *busy = false;
    TRY(gpu_alive(r->dev, err));
    if (r->stage_of[entry] == UINT32_MAX)
        return VKMOE_OK;
    s = &r->stage[r->stage_of[entry]];
    if (s->pending && !wait) {
        res = VK_CALL(r->dev->fn.vkGetFenceStatus(r->dev->vk, s->fence));
        if (res != VK_SUCCESS && res != VK_NOT_READY)
            TRY(gpu_fail(r->dev, res, "asking for a transfer", NULL, err));
        *busy = res == VK_NOT_READY;
    }
    if (!*busy) {
        TRY(stage_wait(r->dev, s, err));
        r->stage_of[entry] = UINT32_MAX;
    }
done:
    return st;
}

enum vkmoe_status gpu_join_copies(struct gpu_device *dev, VkSubmitInfo *si, struct vkmoe_err *err)
{
    static const VkPipelineStageFlags stages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT |
                                               VK_PIPELINE_STAGE_TRANSFER_BIT |
                                               VK_PIPELINE_STAGE_DRAW_INDIRECT_BIT;
    enum vkmoe_status st = VKMOE_OK;
    VkSubmitInfo signal = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO};
    VkResult r;

    if (dev->copies_due &&
        dev->copied_signaled) { /* its submit was refused: the signal is older than these */
        TRY(gpu_upload_wait(dev, err));
        dev->copies_due = false;
    }
    if (dev->copies_due) { /* one signal covers everything submitted before it on its queue */
        signal.signalSemaphoreCount = 1;
        signal.pSignalSemaphores = &dev->copied;
        r = VK_CALL(dev->fn.vkQueueSubmit(dev->copy_queue, 1, &signal, VK_NULL_HANDLE));
        if (r != VK_SUCCESS)
            TRY(gpu_fail(dev, r, "submitting the signal of copies", NULL, err));
        dev->copies_due = false;
        dev->copied_signaled = true;
    }
    if (dev->copied_signaled) {
        si->waitSemaphoreCount = 1;
        si->pWaitSemaphores = &dev->copied;
        si->pWaitDstStageMask = &stages;
    }
done:
    return st;
}

void gpu_upload_close(struct gpu_device *dev)
{
    struct gpu_upload *u = &dev->up;

    for (size_t i = 0; i < COR_COUNT(u->stage); i++) {
        gpu_buffer_destroy(u->stage[i].buf);
        if (!dev->hung && u->stage[i].fence)
            dev->fn.vkDestroyFence(dev->vk, u->stage[i].fence, NULL);
    }
    if (!dev->hung) {
        dev->fn.vkDestroyCommandPool(dev->vk, u->pool, NULL);
        dev->fn.vkDestroyCommandPool(dev->vk, u->copy_pool, NULL);
    }
}
