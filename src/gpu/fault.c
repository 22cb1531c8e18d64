/* Vulkan results: texts, mapping to statuses, the latch of a dead device, and faults that tests inject. */
#include "gpu/internal.h"

static atomic_long fail_from, requests;
static atomic_int fail_kind;

void gpu_fail_from(long nth, enum gpu_fault kind)
{
    atomic_store(&requests, 0);
    atomic_store(&fail_kind, (int)kind);
    atomic_store(&fail_from, nth);
}

long gpu_requests(void)
{
    return atomic_load(&requests);
}

bool gpu_fault_due(void)
{
    long n = atomic_fetch_add(&requests, 1) + 1;
    long f = atomic_load(&fail_from);

    return f && n >= f;
}

VkResult gpu_fault_result(void)
{
    switch ((enum gpu_fault)atomic_load(&fail_kind)) {
    case GPU_FAULT_OUT_OF_MEMORY:
        return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    case GPU_FAULT_DEVICE_LOST:
        return VK_ERROR_DEVICE_LOST;
    case GPU_FAULT_TIMEOUT:
        break;
    }
    return VK_TIMEOUT;
}

const char *gpu_result_text(VkResult r)
{
    switch (r) {
    case VK_SUCCESS:
        return "success";
    case VK_NOT_READY:
        return "not ready";
    case VK_TIMEOUT:
        return "timed out";
    case VK_INCOMPLETE:
        return "incomplete list";
    case VK_ERROR_OUT_OF_HOST_MEMORY:
        return "out of host memory";
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return "out of device memory";
    case VK_ERROR_INITIALIZATION_FAILED:
        return "initialisation failed";
    case VK_ERROR_DEVICE_LOST:
        return "device lost";
    case VK_ERROR_MEMORY_MAP_FAILED:
        return "memory map failed";
    case VK_ERROR_LAYER_NOT_PRESENT:
        return "layer not present";
    case VK_ERROR_EXTENSION_NOT_PRESENT:
        return "extension not present";
    case VK_ERROR_FEATURE_NOT_PRESENT:
        return "feature not present";
    case VK_ERROR_INCOMPATIBLE_DRIVER:
        return "incompatible driver";
    case VK_ERROR_TOO_MANY_OBJECTS:
        return "too many objects";
    case VK_ERROR_FRAGMENTED_POOL:
        return "fragmented pool";
    case VK_ERROR_OUT_OF_POOL_MEMORY:
        return "out of pool memory";
    default:
        return "unknown Vulkan error";
    }
}

static enum vkmoe_status result_status(VkResult r)
{
    switch (r) {
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return VKMOE_ERR_MEMORY;
    case VK_ERROR_DEVICE_LOST:
        return VKMOE_ERR_DEVICE_LOST;
    case VK_TIMEOUT:
        return VKMOE_ERR_TIMEOUT;
    case VK_ERROR_INCOMPATIBLE_DRIVER:
        return VKMOE_ERR_NO_DEVICE;
    default:
        return VKMOE_ERR_DEVICE;
    }
}

enum vkmoe_status gpu_fail(struct gpu_device *dev, VkResult r, const char *what, const char *name,
                           struct vkmoe_err *err)
{
    enum vkmoe_status st = result_status(r);
    struct vkmoe_err line;

    cor_fail(&line, st, "%s: %s%s%s: %s (VkResult %d)", dev ? dev->info.name : "Vulkan", what,
             name ? " " : "", name ? name : "", gpu_result_text(r), (int)r);
    if (dev && (st == VKMOE_ERR_DEVICE_LOST || st == VKMOE_ERR_TIMEOUT) && dev->dead.status == VKMOE_OK)
        dev->dead = line;
    if (err)
        *err = line;
    return st;
}

enum vkmoe_status gpu_alive(const struct gpu_device *dev, struct vkmoe_err *err)
{
    if (dev->dead.status != VKMOE_OK && err)
        *err = dev->dead;
    return dev->dead.status;
}
