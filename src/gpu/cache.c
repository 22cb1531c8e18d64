/* Pipeline cache on disk. */
#include "gpu/internal.h"
enum vkmoe_status gpu_cache_open(struct gpu_device *dev, struct vkmoe_err *err)
{
    VkPipelineCacheCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    VkResult r = VK_CALL(dev->fn.vkCreatePipelineCache(dev->vk, &ci, NULL, &dev->cache));

    if (r == VK_SUCCESS)
        return VKMOE_OK;
    dev->cache = VK_NULL_HANDLE;
    return gpu_fail(dev, r, "creating the pipeline cache", NULL, err);
}
void gpu_cache_close(struct gpu_device *dev)
{
    if (!dev->hung)
        dev->fn.vkDestroyPipelineCache(dev->vk, dev->cache, NULL);
}
