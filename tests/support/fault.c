#include "support/fault.h"

#include "core/alloc.h"
#include "core/os.h"
#include "gpu/device.h"

static const struct {
    const char *name;
    enum vkmoe_status st;
} faults[] = {{"allocation", VKMOE_ERR_MEMORY},
              {"file read", VKMOE_ERR_IO},
              {"Vulkan call, out of memory", VKMOE_ERR_MEMORY},
              {"Vulkan call, device lost", VKMOE_ERR_DEVICE_LOST},
              {"Vulkan call, timed out", VKMOE_ERR_TIMEOUT}};

void fault_arm(enum fault f, long n)
{
    if (f == FAULT_ALLOC)
        cor_alloc_fail_from(n);
    else if (f == FAULT_FILE)
        cor_os_fail_from(n);
    else
        gpu_fail_from(n, f == FAULT_MEMORY ? GPU_FAULT_OUT_OF_MEMORY
                         : f == FAULT_LOST ? GPU_FAULT_DEVICE_LOST
                                           : GPU_FAULT_TIMEOUT);
}

long fault_requests(enum fault f)
{
    return f == FAULT_ALLOC ? cor_alloc_requests() : f == FAULT_FILE ? cor_os_requests() : gpu_requests();
}

const char *fault_name(enum fault f)
{
    return faults[f].name;
}

enum vkmoe_status fault_status(enum fault f)
{
    return faults[f].st;
}
