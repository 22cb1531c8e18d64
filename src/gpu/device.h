/* Vulkan instance, device choice, limits and features. Vendor names appear in device.c only. */
#ifndef GPU_DEVICE_H
#define GPU_DEVICE_H

#include "core/status.h"

struct gpu_instance;
struct gpu_device;

struct gpu_instance_params {
    /* core + synchronisation + queue-submit validation; messages go to the log as errors */
    bool validation;
    const char *cache_dir; /* pipeline caches (mode 0700, checksummed, driver UUID checked); NULL: none */
};

/* What the engine may believe of a device: the real thing, clamped by --caps. */
struct gpu_caps {
    uint64_t max_range;        /* maxStorageBufferRange, bytes */
    uint64_t max_alloc;        /* maxMemoryAllocationSize, bytes */
    uint64_t heap_bytes;       /* largest device-local heap */
    uint32_t max_buffers;      /* storage buffers per stage */
    uint32_t max_shared;       /* bytes */
    uint32_t max_wg;           /* invocations per workgroup */
    uint32_t max_groups;       /* per grid dimension, at least 65535 */
    uint32_t offset_align;     /* minStorageBufferOffsetAlignment, bytes */
    /* optimalBufferCopyOffsetAlignment, nonCoherentAtomSize: what bulk copies should respect */
    uint32_t copy_align;
    uint32_t texel_align;      /* minTexelBufferOffsetAlignment, bytes */
    uint32_t max_texels;       /* maxTexelBufferElements */
    uint32_t subgroup_size;
    bool subgroup;             /* basic + arithmetic subgroup operations in compute */
    bool rows_on_lanes;        /* ballot operations, subgroups of eight lanes or more, scalarBlockLayout */
    bool texels;               /* weights may be read through texel buffers */
    bool f16, dot8, bda, budget, host_import;
    bool dot8_fast;            /* integer dot products are instructions of their own */
    bool transfer_queue;       /* a queue family for transfers alone, used for copies out of rings */
    bool array;                /* shaderStorageBufferArrayDynamicIndexing, enabled */
    bool uma;                  /* device-local memory is host-visible and uploads go straight into it */
    bool coherent;             /* host-visible memory needs no flush and no invalidate */
    bool rounding;             /* inputs of 8 bits, where a session asks for --fast-math */
    bool exec_props;           /* VK_KHR_pipeline_executable_properties, enabled when asked for */
};

enum vkmoe_status gpu_instance_open(struct gpu_instance **out, const struct gpu_instance_params *p,
                                    struct vkmoe_err *err);
void gpu_instance_close(struct gpu_instance *inst);
uint32_t gpu_instance_device_count(const struct gpu_instance *inst);
/* NULL: out of range */
const struct vkmoe_device_info *gpu_instance_device_info(const struct gpu_instance *inst, uint32_t index);
/* Real caps, before clamping. */
const struct gpu_caps *gpu_instance_device_caps(const struct gpu_instance *inst, uint32_t index);
/* One JSON object: heaps, limits, base and fast-path features, kernels that will be used. cor_free by the
 * caller. */
enum vkmoe_status gpu_instance_device_json(const struct gpu_instance *inst, uint32_t index, char **json,
                                           struct vkmoe_err *err);
/* Applies a --caps list, as opening a device does. */
enum vkmoe_status gpu_caps_clamp(struct gpu_caps *caps, const char *list, struct vkmoe_err *err);
/* Index of the device named by digits or part of its name, any case; name NULL: the best usable one
 * (discrete, integrated, virtual, cpu, other; then the largest heap; then the lower index). */
enum vkmoe_status gpu_instance_choose(const struct gpu_instance *inst, const char *name, uint32_t *index,
                                      struct vkmoe_err *err);
/* NULL: nothing is kept on disk. */
const char *gpu_instance_cache_dir(const struct gpu_instance *inst);
/* What a file that is valid for one device with one driver has to name. */
struct gpu_identity {
    char file[17];  /* for file names: the same for all versions of the driver */
    char text[192]; /* vendor, device, driver version and UUIDs, in hexadecimal digits and dashes */
};
void gpu_instance_identity(const struct gpu_instance *inst, uint32_t index, struct gpu_identity *id);
/* Validation messages since opening (errors and warnings that are not on the suppression list). */
uint64_t gpu_instance_validation_count(const struct gpu_instance *inst);
/* True when the validation layer was asked for and is active. */
bool gpu_instance_validates(const struct gpu_instance *inst);

struct gpu_device_params {
    const char *caps;        /* clamp list, NULL: none */
    const char *shader_dir;  /* DIR/KERNEL.spv stands in for a built-in one; NULL: none */
    bool compile_only;       /* never allocate memory (drivers without hardware); only pipelines work */
    bool exec_props;         /* enable pipeline statistics */
    bool robust;             /* enable robustBufferAccess (tests) */
    bool profile;            /* time every kernel: VKMOE_ERR_UNSUPPORTED where there are no timestamps */
    bool fake_transfer;      /* tests: ring copies go the way of a transfer queue, on the only queue */
    int32_t skip_barrier;    /* tests: leave out the nth barrier (from 0) recorded after opening; -1: none */
};

enum vkmoe_status gpu_device_open(struct gpu_device **out, struct gpu_instance *inst, uint32_t index,
                                  const struct gpu_device_params *p, struct vkmoe_err *err);
void gpu_device_close(struct gpu_device *dev); /* saves the pipeline cache */
const struct gpu_caps *gpu_device_caps(const struct gpu_device *dev);
const struct vkmoe_device_info *gpu_device_info(const struct gpu_device *dev);
/* Fails, with the line of that call, when an earlier call found the device lost or timed out. */
enum vkmoe_status gpu_alive(const struct gpu_device *dev, struct vkmoe_err *err);
/* Sets the switch and clears the count of barriers recorded. Barriers between device commands count,
 * GPU_BARRIER_HOST does
 * not: the wait for the fence hides it from the validation layer. */
void gpu_device_set_skip_barrier(struct gpu_device *dev, int32_t nth);
uint32_t gpu_device_barriers_recorded(const struct gpu_device *dev);

/* Tests: from now on the nth Vulkan call that can fail (1 = the next) and all later ones fail with the given
 * kind; 0: off. */
enum gpu_fault { GPU_FAULT_OUT_OF_MEMORY, GPU_FAULT_DEVICE_LOST, GPU_FAULT_TIMEOUT };
void gpu_fail_from(long nth, enum gpu_fault kind);
long gpu_requests(void);

#endif
