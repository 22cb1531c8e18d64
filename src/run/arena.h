/* Regions of device memory cut out of a few large buffers. Plan all regions, create once, then look them up.
 * Owns the buffers; knows nothing of what the regions hold. */
#ifndef RUN_ARENA_H
#define RUN_ARENA_H

#include "gpu/commands.h"

struct run_region {
    uint32_t chunk; /* index of the buffer */
    uint64_t off;   /* bytes, a multiple of the device's offset alignment */
    uint64_t bytes;
};

struct run_arena {
    struct gpu_device *dev;
    uint64_t limit;        /* largest buffer */
    uint64_t *chunk_bytes; /* planned sizes, n_chunks */
    struct gpu_buffer **chunks;
    uint32_t n_chunks;
};

void run_arena_init(struct run_arena *a, struct gpu_device *dev);
/* Plans a region of at most caps.max_range bytes. `what` names it in errors. */
enum vkmoe_status run_arena_plan(struct run_arena *a, uint64_t bytes, const char *what,
                                 struct run_region *out, struct vkmoe_err *err);
enum vkmoe_status run_arena_create(struct run_arena *a, const char *name, struct vkmoe_err *err);
void run_arena_close(struct run_arena *a);
uint64_t run_arena_bytes(const struct run_arena *a); /* planned, all buffers */
/* The buffer is NULL before create. */
struct gpu_bind run_arena_bind(const struct run_arena *a, const struct run_region *r);
struct gpu_buffer *run_arena_buffer(const struct run_arena *a, const struct run_region *r);

#endif
