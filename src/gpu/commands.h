/* Command buffers: recorded once, submitted many times. Owns descriptor sets of what it records, submits and
 * waits. */
#ifndef GPU_COMMANDS_H
#define GPU_COMMANDS_H

#include "gpu/kernels.h"
#include "gpu/memory.h"

struct gpu_bind {
    struct gpu_buffer *buf;
    uint64_t off;   /* a multiple of caps.offset_align */
    uint64_t bytes; /* 0: to the end of the buffer; at most caps.max_range */
};

struct gpu_cmds;

enum gpu_barrier {
    GPU_BARRIER_COMPUTE,  /* shader writes -> shader reads and writes */
    GPU_BARRIER_ARGS,     /* shader writes -> shader reads and writes, and indirect arguments */
    GPU_BARRIER_COPY,     /* shader writes -> transfer reads */
    GPU_BARRIER_HOST      /* shader and transfer writes -> host reads; last in a submit */
};

/* Reusable command buffer. Recording: begin, any of the below, end. A failed call makes end fail with the
 * same error, so recorders may check once. Beginning again throws the old recording away (the device must be
 * idle on it). */
enum vkmoe_status gpu_cmds_create(struct gpu_cmds **out, struct gpu_device *dev, const char *name,
                                  struct vkmoe_err *err);
void gpu_cmds_destroy(struct gpu_cmds *c);
void gpu_cmds_begin(struct gpu_cmds *c);
/* n_binds: the kernel's buffers and then its segments. push: the kernel's push struct, copied. */
void gpu_cmds_dispatch(struct gpu_cmds *c, struct gpu_pipeline *p, const struct gpu_bind *binds,
                       uint32_t n_binds, const void *push,
                       uint32_t x, uint32_t y, uint32_t z);
void gpu_cmds_dispatch_indirect(struct gpu_cmds *c, struct gpu_pipeline *p, const struct gpu_bind *binds,
                                uint32_t n_binds,
                                const void *push, struct gpu_buffer *args, uint64_t args_off);
void gpu_cmds_barrier(struct gpu_cmds *c, enum gpu_barrier kind);
void gpu_cmds_copy(struct gpu_cmds *c, struct gpu_buffer *src, uint64_t src_off, struct gpu_buffer *dst,
                   uint64_t dst_off, uint64_t bytes);
enum vkmoe_status gpu_cmds_end(struct gpu_cmds *c, struct vkmoe_err *err);

#define GPU_IN_FLIGHT 2
/* Submits in order, as one submit. At most GPU_IN_FLIGHT may be in flight per device. */
enum vkmoe_status gpu_submit(struct gpu_device *dev, struct gpu_cmds *const *cmds, uint32_t n,
                             struct vkmoe_err *err);
/* Waits for the submits in flight. A time-out or a lost device names device and `what`; afterwards every call
 * on the device fails with the same status. */
enum vkmoe_status gpu_wait(struct gpu_device *dev, uint64_t timeout_ns, const char *what,
                           struct vkmoe_err *err);

struct gpu_kernel_time {
    uint64_t count; /* dispatches, those with empty grids too */
    double ns;
};

/* Sums by kernel since opening or reset, of what gpu_wait has seen end: GPU_KERNEL_COUNT entries. NULL unless
 * the device was opened with `profile`. */
const struct gpu_kernel_time *gpu_profile_times(const struct gpu_device *dev);
void gpu_profile_reset(struct gpu_device *dev);

#endif
