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

/* What the tokens of a step are to a dispatch. */
struct gpu_step {
    uint32_t n_tokens, pos; /* of the first of them */
    uint32_t n_rows;        /* of the output head */
};

/* What a dispatch reads, writes and computes: bytes that must move at least once, whatever caches do. */
struct gpu_cost {
    uint64_t weights, weights_most; /* per token; in all at most */
    uint64_t activations;           /* per token, read and written */
    uint64_t cache;                 /* per token and position that it sees, itself included */
    uint64_t flops, flops_cache;    /* per token; per token and position */
    bool rows;                      /* "token" above is a row of the output head */
};

struct gpu_amount {
    uint64_t weights, activations, cache; /* bytes */
    uint64_t flops;
};

/* Adds what the cost comes to in a step. */
void gpu_cost_add(struct gpu_amount *sum, const struct gpu_cost *cost, const struct gpu_step *step);

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
/* Of the next dispatch; without it a dispatch costs nothing. Only profiles look at it. */
void gpu_cmds_cost(struct gpu_cmds *c, const struct gpu_cost *cost);
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
    double bytes, flops; /* by the costs of dispatches; of those that an absent expert emptied too */
};

/* What is no kernel, added up over waits: on the device, from the first kernel's begin to the last one's end;
 * on the host, from the first submit to the end of the wait, beyond that. */
struct gpu_gaps {
    uint64_t waits;
    double between_ns, around_ns;
};

/* NULL: as gpu_profile_times. */
const struct gpu_gaps *gpu_profile_gaps(const struct gpu_device *dev);
/* Sums by kernel since opening or reset, of what gpu_wait has seen end: GPU_KERNEL_COUNT entries. NULL unless
 * the device was opened with `profile`. */
const struct gpu_kernel_time *gpu_profile_times(const struct gpu_device *dev);
/* What costs are reckoned for in submits from now on. */
void gpu_profile_step(struct gpu_device *dev, const struct gpu_step *step);
void gpu_profile_reset(struct gpu_device *dev);

#endif
