/* Opening a logical device: base features plus the optional ones in use. Owns the queue and the order of
 * closing. Vendor names belong here and nowhere else in gpu/. */
#include "gpu/internal.h"

#include <assert.h>
#include <string.h>

#define CLOSE_WAIT_NS 10000000000u /* for work still in flight at closing */

void gpu_name(struct gpu_device *dev, VkObjectType type, uint64_t handle, const char *name)
{
    VkDebugUtilsObjectNameInfoEXT ni = {.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_OBJECT_NAME_INFO_EXT};

    if (!dev->inst->set_name || !name || dev->compile_only)
        return;
    ni.objectType = type;
    ni.objectHandle = handle;
    ni.pObjectName = name;
    (void)dev->inst->set_name(dev->vk, &ni); /* a missing name is no failure */
}

/* features: a structure that begins as VkBaseOutStructure does. has_ext: the device lists the extension that
 * it came from, else it is core there. */
static void enable(VkDeviceCreateInfo *ci, const char **exts, bool has_ext, const char *ext, void *features)
{
    if (has_ext)
        exts[ci->enabledExtensionCount++] = ext;
    ((VkBaseOutStructure *)features)->pNext = (void *)(uintptr_t)ci->pNext;
    ci->pNext = features;
}

static enum vkmoe_status create_device(struct gpu_device *dev, const struct gpu_device_params *p,
                                       struct vkmoe_err *err)
{
    const struct gpu_phys *phys = dev->phys;
    const float priority = 1.0f;
    const char *exts[8];
    VkDeviceQueueCreateInfo qi[2] = {{.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO}};
    VkPhysicalDeviceFeatures features = {0};
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR exec = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR,
        .pipelineExecutableInfo = VK_TRUE};
    VkPhysicalDeviceShaderFloat16Int8FeaturesKHR half = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES_KHR,
        .shaderFloat16 = VK_TRUE};
    VkPhysicalDeviceShaderIntegerDotProductFeatures dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES,
        .shaderIntegerDotProduct = VK_TRUE};
    VkPhysicalDeviceScalarBlockLayoutFeatures scalar = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SCALAR_BLOCK_LAYOUT_FEATURES,
        .scalarBlockLayout = VK_TRUE};
    VkDeviceCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO};
    VkResult r;

    qi[0].queueFamilyIndex = phys->queue_family;
    qi[0].queueCount = 1;
    qi[0].pQueuePriorities = &priority;
    qi[1] = qi[0];
    qi[1].queueFamilyIndex = dev->copy_family;
    features.shaderStorageBufferArrayDynamicIndexing = dev->caps.array;
    features.robustBufferAccess = p && p->robust;
    ci.queueCreateInfoCount = dev->copy_family == phys->queue_family ? 1 : 2;
    ci.pQueueCreateInfos = qi;
    ci.pEnabledFeatures = &features;
    ci.ppEnabledExtensionNames = exts;
    if (phys->exts.portability) /* a driver that has it wants it enabled */
        exts[ci.enabledExtensionCount++] = "VK_KHR_portability_subset";
    if (dev->caps.budget)
        exts[ci.enabledExtensionCount++] = VK_EXT_MEMORY_BUDGET_EXTENSION_NAME;
    if (phys->exts.feedback) {
        exts[ci.enabledExtensionCount++] = VK_EXT_PIPELINE_CREATION_FEEDBACK_EXTENSION_NAME;
        dev->feedback = true;
    }
    if (dev->caps.exec_props)
        enable(&ci, exts, true, VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME, &exec);
    if (dev->caps.f16)
        enable(&ci, exts, phys->exts.float16_int8, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME, &half);
    if (dev->caps.dot8)
        enable(&ci, exts, phys->exts.int_dot, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME, &dot);
    if (dev->caps.rows_on_lanes)
        enable(&ci, exts, phys->exts.scalar_layout, VK_EXT_SCALAR_BLOCK_LAYOUT_EXTENSION_NAME, &scalar);
    if ((r = VK_CALL(vkCreateDevice(phys->vk, &ci, NULL, &dev->vk))) != VK_SUCCESS) {
        dev->vk = VK_NULL_HANDLE;
        return gpu_fail(dev, r, "opening the device", NULL, err);
    }
    volkLoadDeviceTable(&dev->fn, dev->vk);
    dev->fn.vkGetDeviceQueue(dev->vk, phys->queue_family, 0, &dev->queue);
    dev->fn.vkGetDeviceQueue(dev->vk, dev->copy_family, 0, &dev->copy_queue);
    return VKMOE_OK;
}

static enum vkmoe_status create_sync(struct gpu_device *dev, struct vkmoe_err *err)
{
    VkFenceCreateInfo fi = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkSemaphoreCreateInfo si = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO};
    VkResult r;

    for (uint32_t i = 0; i < GPU_IN_FLIGHT; i++)
        if ((r = VK_CALL(dev->fn.vkCreateFence(dev->vk, &fi, NULL, &dev->fences[i]))) != VK_SUCCESS) {
            dev->fences[i] = VK_NULL_HANDLE;
            return gpu_fail(dev, r, "creating a fence", NULL, err);
        }
    if (!dev->copies_apart)
        return VKMOE_OK;
    if ((r = VK_CALL(dev->fn.vkCreateSemaphore(dev->vk, &si, NULL, &dev->copied))) != VK_SUCCESS) {
        dev->copied = VK_NULL_HANDLE;
        return gpu_fail(dev, r, "creating the semaphore of copies", NULL, err);
    }
    return VKMOE_OK;
}

enum vkmoe_status gpu_device_open(struct gpu_device **out, struct gpu_instance *inst, uint32_t index,
                                  const struct gpu_device_params *p, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct gpu_phys *phys = index < inst->n_devices ? &inst->devices[index] : NULL;
    const bool compile_only = p && p->compile_only;
    struct gpu_device *dev = NULL;

    *out = NULL;
    if (!phys)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "device %u: there are only %u devices", index,
                        inst->n_devices);
    if (!phys->info.usable && !(compile_only && phys->queue_family != UINT32_MAX && phys->base[0].ok))
        return cor_fail(err, VKMOE_ERR_NO_DEVICE, "%s: refused: %s", phys->info.name, phys->info.refused);
    dev = cor_zalloc(sizeof(*dev));
    if (!dev)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the device", phys->info.name);
    dev->inst = inst;
    dev->phys = phys;
    dev->info = phys->info;
    dev->caps = phys->caps;
    dev->caps.exec_props = phys->caps.exec_props && p && p->exec_props;
    dev->memory = phys->memory;
    dev->atom = phys->props.limits.nonCoherentAtomSize ? phys->props.limits.nonCoherentAtomSize : 1;
    dev->compile_only = compile_only;
    dev->skip_barrier = p ? p->skip_barrier : -1;
    if (p && p->shader_dir && !(dev->shader_dir = cor_strdup(p->shader_dir)))
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the name of the shader folder", phys->info.name);
    TRY(gpu_caps_clamp(&dev->caps, p ? p->caps : NULL, err));
    dev->copy_family = dev->caps.transfer_queue && !compile_only ? phys->copy_family : phys->queue_family;
    dev->copies_apart = dev->copy_family != phys->queue_family || (p && p->fake_transfer);
    TRY(create_device(dev, p, err));
    if (!compile_only)
        TRY(create_sync(dev, err));
    if (p && p->profile && !compile_only)
        TRY(gpu_profile_open(dev, err));
    TRY(gpu_cache_open(dev, err));
    *out = dev;
    dev = NULL;
done:
    gpu_device_close(dev);
    return st;
}

/* False: still not signalled. A lost device counts as signalled: it runs nothing. */
static bool settle_fence(struct gpu_device *dev, VkFence fence, bool *pending)
{
    if (!*pending)
        return true;
    if (dev->fn.vkWaitForFences(dev->vk, 1, &fence, VK_TRUE, CLOSE_WAIT_NS) == VK_TIMEOUT)
        return false;
    (void)dev->fn.vkResetFences(dev->vk, 1, &fence);
    *pending = false; /* the fence may be destroyed before the next call */
    return true;
}

bool gpu_settle(struct gpu_device *dev)
{
    bool good = true;

    if (dev->hung)
        return false;
    while (good && dev->n_in_flight) {
        bool pending = true;

        good = settle_fence(dev, dev->fences[dev->n_in_flight - 1], &pending);
        dev->n_in_flight -= good;
    }
    for (uint32_t i = 0; good && i < COR_COUNT(dev->up.stage); i++)
        good = settle_fence(dev, dev->up.stage[i].fence, &dev->up.stage[i].pending);
    for (struct gpu_ring *r = dev->rings; r; r = r->next)
        for (uint32_t i = 0; good && i < r->n; i++)
            good = settle_fence(dev, r->stage[i].fence, &r->stage[i].pending);
    if (!good) {
        /* Destroying what a hung device still uses is undefined; the process is about to report the failure.
         */
        cor_log(VKMOE_LOG_ERROR, "%s: work never ended; its objects are left to the driver", dev->info.name);
        dev->hung = true;
    }
    return good;
}

void gpu_device_close(struct gpu_device *dev)
{
    if (!dev)
        return;
    if (dev->vk) {
        assert(!dev->bytes); /* buffers are closed before their device */
        gpu_settle(dev);
        gpu_upload_close(dev);
        gpu_pipelines_close(dev);
        gpu_cache_close(dev);
        if (!dev->hung) {
            for (uint32_t i = 0; i < GPU_IN_FLIGHT; i++)
                dev->fn.vkDestroyFence(dev->vk, dev->fences[i], NULL);
            if (dev->copied_signaled) /* a submit that was refused left it; the copies before it have settled
                                       */
                (void)dev->fn.vkQueueWaitIdle(dev->copy_queue);
            dev->fn.vkDestroySemaphore(dev->vk, dev->copied, NULL);
            dev->fn.vkDestroyDevice(dev->vk, NULL);
        }
    }
    gpu_profile_close(dev);
    cor_free(dev->batch);
    cor_free(dev->shader_dir);
    cor_free(dev);
}

const struct gpu_caps *gpu_device_caps(const struct gpu_device *dev)
{
    return &dev->caps;
}

const struct vkmoe_device_info *gpu_device_info(const struct gpu_device *dev)
{
    return &dev->info;
}

void gpu_device_set_skip_barrier(struct gpu_device *dev, int32_t nth)
{
    dev->skip_barrier = nth;
    dev->n_barriers = 0;
}

uint32_t gpu_device_barriers_recorded(const struct gpu_device *dev)
{
    return dev->n_barriers;
}
