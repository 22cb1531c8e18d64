/* Bulk transfers between host and device: straight into mapped memory, else through two staging buffers that
 * take turns. Owns the staging buffers, their command buffers and fences. */
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

static enum vkmoe_status create_pool(struct gpu_device *dev, struct vkmoe_err *err)
{
    VkCommandPoolCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO};
    VkResult r;

    if (dev->up.pool)
        return VKMOE_OK;
    ci.flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT | VK_COMMAND_POOL_CREATE_TRANSIENT_BIT;
    ci.queueFamilyIndex = dev->phys->queue_family;
    if ((r = VK_CALL(dev->fn.vkCreateCommandPool(dev->vk, &ci, NULL, &dev->up.pool))) == VK_SUCCESS)
        return VKMOE_OK;
    dev->up.pool = VK_NULL_HANDLE;
    return gpu_fail(dev, r, "creating the transfer command pool", NULL, err);
}

static enum vkmoe_status create_stage(struct gpu_device *dev, struct gpu_staging *s, struct vkmoe_err *err)
{
    VkCommandBufferAllocateInfo ai = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO};
    VkFenceCreateInfo fi = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkResult r;

    ai.commandPool = dev->up.pool;
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

static void barrier(struct gpu_device *dev, VkCommandBuffer cmd, bool before)
{
    const VkPipelineStageFlags other = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT |
                                       VK_PIPELINE_STAGE_DRAW_INDIRECT_BIT;
    VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER};

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

    TRY(create_pool(dev, err));
    TRY(create_stage(dev, s, err));
    TRY(stage_wait(dev, s, err));
    bi.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
    if ((r = VK_CALL(dev->fn.vkBeginCommandBuffer(s->cmd, &bi))) != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "recording a transfer", NULL, err));
    barrier(dev, s->cmd, true);
done:
    return st;
}

static enum vkmoe_status stage_submit(struct gpu_device *dev, struct gpu_staging *s, struct vkmoe_err *err)
{
    VkSubmitInfo si = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO};
    VkResult r;

    barrier(dev, s->cmd, false);
    if ((r = VK_CALL(dev->fn.vkEndCommandBuffer(s->cmd))) != VK_SUCCESS)
        return gpu_fail(dev, r, "recording a transfer", NULL, err);
    si.commandBufferCount = 1;
    si.pCommandBuffers = &s->cmd;
    if ((r = VK_CALL(dev->fn.vkQueueSubmit(dev->queue, 1, &si, s->fence))) != VK_SUCCESS)
        return gpu_fail(dev, r, "submitting a transfer", NULL, err);
    s->pending = true;
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

void gpu_upload_close(struct gpu_device *dev)
{
    struct gpu_upload *u = &dev->up;

    for (size_t i = 0; i < COR_COUNT(u->stage); i++) {
        gpu_buffer_destroy(u->stage[i].buf);
        if (!dev->hung && u->stage[i].fence)
            dev->fn.vkDestroyFence(dev->vk, u->stage[i].fence, NULL);
    }
    if (!dev->hung && u->pool)
        dev->fn.vkDestroyCommandPool(dev->vk, u->pool, NULL);
}
