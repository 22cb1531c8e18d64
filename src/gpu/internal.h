/* What the files of gpu/ share: Vulkan objects behind the opaque types, the one wrapper of calls that can
 * fail. Only gpu/ includes this header; it is the only door to volk. */
#ifndef GPU_INTERNAL_H
#define GPU_INTERNAL_H

#include <stdatomic.h>

#include <volk.h>

#include "core/alloc.h"
#include "core/log.h"
#include "gpu/commands.h"

/* ---- failures
 * ----------------------------------------------------------------------------------------------- */

/* Every Vulkan call that returns a VkResult is written VK_CALL(...), so that tests can fail the nth one. */
#define VK_CALL(expr) (gpu_fault_due() ? gpu_fault_result() : (expr))
bool gpu_fault_due(void); /* counts the request */
VkResult gpu_fault_result(void);

const char *gpu_result_text(VkResult r);
/* Writes "DEVICE: WHAT: result" and maps the result; dev may be NULL. A lost device is latched. */
enum vkmoe_status gpu_fail(struct gpu_device *dev, VkResult r, const char *what, const char *name,
                           struct vkmoe_err *err);

/* ---- instance
 * ----------------------------------------------------------------------------------------------- */

/* Optional extensions of a device; X(field, name). */
#define GPU_EXT_LIST(X)                                    \
    X(memory_budget, "VK_EXT_memory_budget")               \
    X(exec_props, "VK_KHR_pipeline_executable_properties") \
    X(feedback, "VK_EXT_pipeline_creation_feedback")       \
    X(driver_props, "VK_KHR_driver_properties")            \
    X(float16_int8, "VK_KHR_shader_float16_int8")          \
    X(int_dot, "VK_KHR_shader_integer_dot_product")        \
    X(scalar_layout, "VK_EXT_scalar_block_layout")         \
    X(buffer_address, "VK_KHR_buffer_device_address")      \
    X(host_memory, "VK_EXT_external_memory_host")          \
    X(portability, "VK_KHR_portability_subset")

struct gpu_exts {
#define GPU_X(field, name) bool field;
    GPU_EXT_LIST(GPU_X)
#undef GPU_X
};

#define GPU_BASE_MAX 12

struct gpu_base { /* one requirement of the base path */
    const char *key;
    bool ok;
    char missing[160]; /* what the device has instead, "" when ok */
};

struct gpu_phys {
    VkPhysicalDevice vk;
    VkPhysicalDeviceProperties props;
    VkPhysicalDeviceMemoryProperties memory;
    VkPhysicalDeviceFeatures features;
    uint8_t device_uuid[VK_UUID_SIZE], driver_uuid[VK_UUID_SIZE];
    uint32_t queue_family; /* UINT32_MAX: none */
    uint32_t copy_family;  /* transfers and nothing else; UINT32_MAX: none */
    uint32_t heap;         /* index of the largest device-local heap; UINT32_MAX: none */
    struct gpu_exts exts;
    bool exec_props_feature;
    uint32_t n_base;
    struct gpu_base base[GPU_BASE_MAX];
    struct gpu_caps caps; /* unclamped */
    struct vkmoe_device_info info;
};

struct gpu_instance {
    VkInstance vk;
    VkDebugUtilsMessengerEXT messenger;
    PFN_vkDestroyDebugUtilsMessengerEXT destroy_messenger;
    PFN_vkSetDebugUtilsObjectNameEXT set_name; /* NULL: no debug names */
    bool validation;                           /* the layer is there and was asked for */
    char *cache_dir;
    uint32_t n_devices;
    struct gpu_phys *devices;
    atomic_ullong messages;
};

/* Fills caps, base and info of a device whose vk is set. */
enum vkmoe_status gpu_phys_query(struct gpu_phys *p, uint32_t index, struct vkmoe_err *err);
/* What VK_EXT_memory_budget says of the heap, unchecked; false: nothing. */
bool gpu_phys_budget(const struct gpu_phys *p, uint64_t *budget, uint64_t *usage);
/* Free bytes by a budget that may lie; own: bytes that are surely in use. */
uint64_t gpu_budget_free(uint64_t heap, uint64_t budget, uint64_t usage, uint64_t own);
/* Free bytes of the heap by VK_EXT_memory_budget, lies clamped; 0: unknown. */
uint64_t gpu_phys_free_bytes(const struct gpu_phys *p);
/* True when caps allow a kernel with these needs. */
bool gpu_caps_allow(const struct gpu_caps *caps, uint32_t needs);

/* ---- device
 * ------------------------------------------------------------------------------------------------- */

struct gpu_staging {
    struct gpu_buffer *buf;
    VkCommandBuffer cmd;
    VkFence fence;
    bool pending;
    bool apart; /* on copy_queue, for good */
};

struct gpu_ring {
    struct gpu_device *dev;
    struct gpu_ring *next;
    struct gpu_buffer *buf;
    uint32_t n;
    uint64_t stride;
    /* n each: a submit uses the stage of its first entry, which is stage_of all its entries. */
    struct gpu_staging *stage;
    uint32_t *stage_of; /* UINT32_MAX: none */
};

struct gpu_upload {
    VkCommandPool pool, copy_pool; /* of the two queues */
    struct gpu_staging stage[2];
    uint32_t next;
    struct gpu_buffer *dst; /* between begin and end */
    uint64_t off;
    size_t bytes;
};

struct gpu_device {
    struct gpu_instance *inst;
    const struct gpu_phys *phys;
    struct gpu_caps caps;
    struct vkmoe_device_info info;
    struct VolkDeviceTable fn;
    VkDevice vk;
    VkQueue queue;
    VkQueue copy_queue; /* of rings; the same one without a transfer queue */
    uint32_t copy_family;
    /* Ring copies are told to the compute queue by a semaphore, not by a barrier. */
    bool copies_apart;
    bool copies_due;      /* submitted, and no signal behind them yet */
    bool copied_signaled; /* and no submit waits for it yet */
    VkSemaphore copied;
    bool compile_only;
    bool feedback;
    VkPhysicalDeviceMemoryProperties memory;
    uint64_t atom;              /* nonCoherentAtomSize */
    uint64_t bytes, peak_bytes; /* GPU_MEM_DEVICE */

    VkFence fences[GPU_IN_FLIGHT]; /* of gpu_submit */
    uint32_t n_in_flight;
    VkCommandBuffer *batch; /* scratch of gpu_submit */
    uint32_t batch_size;

    struct vkmoe_err dead; /* status VKMOE_OK while the device is well */
    bool hung;             /* work never came back: objects it may use are left to the driver */

    struct gpu_upload up;
    struct gpu_ring *rings;

    void (*budget)(void *user, uint64_t *budget, uint64_t *usage); /* tests */
    void *budget_user;

    VkPipelineCache cache;
    char *cache_path;        /* NULL: not kept on disk */
    uint64_t cache_sum;      /* of the blob that was loaded */
    atomic_uint n_compiled;  /* pipelines that did not come from the cache */
    struct gpu_ahead *ahead; /* threads that make pipelines; NULL: none so far */
    struct gpu_pipeline *pipelines;
    VkShaderModule modules[GPU_KERNEL_COUNT][2]; /* made on first use; [1]: NAME_k */
    char *shader_dir;                            /* files that stand in for built-in modules; NULL: none */

    struct gpu_profile *profile; /* NULL: kernels are not timed */

    int32_t skip_barrier;
    uint32_t n_barriers;
};

/* Waits (bounded) for everything submitted, whatever went wrong before; false: the device hangs, and nothing
 * that it may use can be destroyed. Called before objects are destroyed. */
bool gpu_settle(struct gpu_device *dev);

/* Debug name for the validation layer and for profilers. */
void gpu_name(struct gpu_device *dev, VkObjectType type, uint64_t handle, const char *name);

/* ---- profile
 * ------------------------------------------------------------------------------------------------ */

enum vkmoe_status gpu_profile_open(struct gpu_device *dev, struct vkmoe_err *err);
void gpu_profile_close(struct gpu_device *dev);
/* Timestamps of one command buffer; *out is NULL, and the others do nothing, without a profile. */
struct gpu_queries;
enum vkmoe_status gpu_queries_create(struct gpu_queries **out, struct gpu_device *dev, struct vkmoe_err *err);
void gpu_queries_destroy(struct gpu_queries *q, struct gpu_device *dev);
void gpu_queries_begin(struct gpu_queries *q, struct gpu_device *dev, VkCommandBuffer cmd);
void gpu_queries_stamp(struct gpu_queries *q, struct gpu_device *dev, VkCommandBuffer cmd, enum gpu_kernel k,
                       const struct gpu_cost *cost, bool after);
void gpu_profile_submitting(struct gpu_device *dev); /* before the first submit behind a wait */
void gpu_profile_submitted(struct gpu_device *dev, struct gpu_queries *q);
void gpu_profile_collect(struct gpu_device *dev); /* after a wait */

/* ---- memory
 * ------------------------------------------------------------------------------------------------- */

struct gpu_buffer {
    struct gpu_device *dev;
    VkBuffer vk;
    VkDeviceMemory memory;
    uint64_t bytes;     /* of the buffer */
    uint64_t allocated; /* of the memory, a multiple of the atom */
    enum gpu_mem mem;
    bool coherent; /* flush and invalidate do nothing */
    void *map;
    struct gpu_view *views; /* of parts, as texels; made on demand, they live as long as the buffer */
    char name[64];
};

/* The part as texels of four words. off: a multiple of caps.texel_align, bytes: of GPU_TEXEL_BYTES. */
enum vkmoe_status gpu_buffer_view(VkBufferView *out, struct gpu_buffer *b, uint64_t off, uint64_t bytes,
                                  struct vkmoe_err *err);

/* ---- uploads
 * ------------------------------------------------------------------------------------------------ */

enum vkmoe_status gpu_fill_zero(struct gpu_buffer *b, struct vkmoe_err *err);
/* Makes the next submit to the compute queue wait for all ring copies: fills the semaphore part of *si where
 * that is needed. After the submit was accepted, copied_signaled is to be cleared. */
enum vkmoe_status gpu_join_copies(struct gpu_device *dev, VkSubmitInfo *si, struct vkmoe_err *err);
/* Waits for what is queued and frees staging; called by gpu_device_close. */
void gpu_upload_close(struct gpu_device *dev);

/* ---- pipelines
 * ---------------------------------------------------------------------------------------------- */

struct gpu_pipeline {
    struct gpu_pipeline *next;
    enum gpu_kernel kernel;
    uint32_t n_segs;
    uint32_t n_spec;
    uint32_t *spec;
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    VkShaderModule module; /* the device's */
    VkPipeline vk;
    bool from_cache; /* by VK_EXT_pipeline_creation_feedback */
    /* Under the lock of ahead.c once its threads run */
    enum { GPU_RAW, GPU_BUSY /* somebody compiles it */, GPU_MADE } made;
    bool wished; /* for a thread to make, which tries once */
};

/* Compiles a prepared pipeline; any thread may, one at a time per pipeline. */
VkResult gpu_pipeline_compile(struct gpu_device *dev, struct gpu_pipeline *p);
/* Of a binding below the segments. */
VkDescriptorType gpu_descriptor_type(enum gpu_kernel k, uint32_t binding);

/* Locks the list of pipelines and what stands in them, where there are threads. */
void gpu_ahead_lock(struct gpu_device *dev);
void gpu_ahead_unlock(struct gpu_device *dev);
/* Waits while another thread compiles p; true: it is not made, and the caller compiles it now. */
bool gpu_ahead_claim(struct gpu_device *dev, struct gpu_pipeline *p);
void gpu_ahead_made(struct gpu_device *dev, struct gpu_pipeline *p, bool good);
/* Ends the threads when they have finished what is in hand. */
void gpu_ahead_stop(struct gpu_device *dev);

void gpu_pipelines_close(struct gpu_device *dev);

/* Opens the device's pipeline cache, from its file where that is sound. */
enum vkmoe_status gpu_cache_open(struct gpu_device *dev, struct vkmoe_err *err);
/* Writes it back when it changed, and destroys it. A failure is logged: a cache is never worth an error. */
void gpu_cache_close(struct gpu_device *dev);

#endif
