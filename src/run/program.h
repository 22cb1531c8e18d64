/* A program: the dispatches of one kind of submit, recorded once in parts that can be submitted from any of
 * them on. Every dispatch is indirect; the publish kernel computes the arguments from the step that the host
 * wrote. Owns command buffers, argument template and arguments; knows no model. */
#ifndef RUN_PROGRAM_H
#define RUN_PROGRAM_H

#include "gpu/commands.h"

struct run_dim {
    uint32_t mode; /* DIM_* of shared/step.h */
    uint32_t a;
};

#define DIM_1 ((struct run_dim){DIM_FIXED, 1})
static inline struct run_dim run_fixed(uint32_t n)
{
    return (struct run_dim){DIM_FIXED, n};
}
static inline struct run_dim run_per(uint32_t mode, uint32_t a)
{
    return (struct run_dim){mode, a};
}

struct run_program {
    struct gpu_device *dev;
    const char *name;
    struct gpu_cmds *publish[GPU_IN_FLIGHT]; /* one per step buffer */
    struct gpu_cmds **parts;                 /* n_parts */
    struct gpu_cmds **list;                  /* scratch of submit: cap_parts + 2 */
    uint32_t *first;                         /* index of each part's first dispatch */
    uint32_t *barriers;                      /* of each part */
    uint32_t n_parts, cap_parts, n_dispatches, cap_dispatches;
    struct gpu_cost *costs, cost; /* of each dispatch; of the next one */
    bool dry;       /* recording only wishes for the pipelines it needs: gpu_pipeline_wish */
    uint32_t *tmpl; /* host copy */
    struct gpu_buffer *tmpl_buf, *args;
    enum vkmoe_status st; /* first failure while recording */
    struct vkmoe_err err;
};

/* What publish binds besides the program's own buffers. */
struct run_publish {
    struct gpu_buffer *step[GPU_IN_FLIGHT], *state, *table, *mailbox;
};

/* cap: more dispatches than will be recorded fail the recording. */
enum vkmoe_status run_program_create(struct run_program *p, struct gpu_device *dev, const char *name,
                                     uint32_t cap_parts, uint32_t cap_dispatches, struct vkmoe_err *err);
/* A program that records nothing: buffers that are bound need not exist. Not finished, not submitted. */
enum vkmoe_status run_program_create_dry(struct run_program *p, struct gpu_device *dev, uint32_t cap_parts,
                                         uint32_t cap_dispatches, struct vkmoe_err *err);
void run_program_close(struct run_program *p);

/* Recording: parts in order, each with its dispatches and barriers. Errors are kept and reported by finish.
 */
void run_part_begin(struct run_program *p);
/* What the next dispatch reads and computes; a dispatch without it counts for nothing. */
void run_cost(struct run_program *p, const struct gpu_cost *cost);
/* spec, n_segs: as gpu_pipeline_get. Returns the index of the dispatch. */
uint32_t run_dispatch(struct run_program *p, enum gpu_kernel k, const void *spec, size_t spec_bytes,
                      uint32_t n_segs, const struct gpu_bind *binds, uint32_t n_binds, const void *push,
                      const struct run_dim grid[3]);
void run_barrier(struct run_program *p, enum gpu_barrier kind);
void run_copy(struct run_program *p, struct gpu_buffer *src, uint64_t src_off, struct gpu_buffer *dst,
              uint64_t bytes);
void run_part_end(struct run_program *p);
/* Records publish, uploads the template. */
enum vkmoe_status run_program_finish(struct run_program *p, const struct run_publish *pub,
                                     struct vkmoe_err *err);

/* What parts [from, to) hold. */
void run_program_count(const struct run_program *p, uint32_t from, uint32_t to, uint32_t *dispatches,
                       uint32_t *barriers);

/* What all dispatches come to in a step in which no expert is absent. */
void run_program_amount(const struct run_program *p, const struct gpu_step *step, struct gpu_amount *sum);

/* One submit: publish of step buffer `step`, parts [from, to), last (may be NULL). */
enum vkmoe_status run_program_submit(struct run_program *p, uint32_t step, uint32_t from, uint32_t to,
                                     struct gpu_cmds *last, struct vkmoe_err *err);

#endif
