/* A model on a device: file, dense weights, expert pool. Sessions share it; one submit is in flight at a
 * time. */
#ifndef RUN_MODEL_H
#define RUN_MODEL_H

#include "run/pool.h"
#include "run/variants.h"

struct run_model {
    struct gpu_device *dev;
    struct mdl_model *mdl;
    struct run_weights weights;
    struct run_pool pool;
    struct run_variants variants; /* kernels of this device; recorders read them */
    uint32_t *allowed;     /* experts that may be chosen at all: n_layers x run_mask_words */
    bool auto_budget;      /* the pool follows the device's free memory */
    uint64_t reserve;      /* bytes that auto leaves free */
    uint64_t last_poll_ns; /* of the free memory; 0: the next poll asks */
    bool grow_failed;      /* not tried again until memory was short and came back */
    bool check_slots;      /* debug: compare slots with the file after every load */
};

#define RUN_POOL_AUTO 0 /* everything when it fits, else what the device has free */

struct run_model_params {
    uint64_t pool_budget; /* bytes, RUN_POOL_AUTO or RUN_POOL_ALL */
    struct run_policy policy;
    uint64_t session_bytes; /* to keep free for sessions, on the device */
    bool lazy;              /* experts are loaded when a token first asks for them */
    bool check_slots;
    /* Experts to begin with when not all fit, layer * n_experts + expert, best first; NULL: none. */
    const uint32_t *hot;
    uint32_t n_hot;
    /* Expert mask, n_layers x run_mask_words: others are never loaded; NULL: all. */
    const uint32_t *allowed;
    uint32_t doc_experts; /* document pools of so many experts per layer must have room; 0 */
    /* Called when weights and pool have their memory, before experts are loaded; NULL: not. */
    void (*placed)(void *user, const struct run_model *m);
    void *placed_user;
};

/* Words of an expert mask per layer. */
static inline uint32_t run_mask_words(const struct mdl_config *c)
{
    return (c->n_experts + 31) / 32;
}
static inline bool run_mask_has(const uint32_t *mask, const struct mdl_config *c, uint32_t layer,
                                uint32_t expert)
{
    return mask[layer * run_mask_words(c) + expert / 32] >> (expert % 32) & 1;
}

/* Opens file and plan: config and sizes are known afterwards, no device memory is taken. */
enum vkmoe_status run_model_plan(struct run_model **out, struct gpu_device *dev, const char *path,
                                 struct vkmoe_err *err);
/* Decides the size of the pool and places weights and experts on the device. p NULL: defaults.
 *
 * Errors: VKMOE_ERR_LIMIT for a stated budget that is below the floor or does not fit beside dense weights
 * and sessions, with the size that would. */
enum vkmoe_status run_model_load(struct run_model *m, const struct run_model_params *p,
                                 struct run_progress *progress, struct vkmoe_err *err);
/* Both. */
enum vkmoe_status run_model_open(struct run_model **out, struct gpu_device *dev, const char *path,
                                 const struct run_model_params *p, struct run_progress *progress,
                                 struct vkmoe_err *err);
void run_model_close(struct run_model *m);

/* Between tokens, nothing in flight: with an automatic budget and at most once a second, gives segments back
 * when the device runs short of memory, and takes them again when there is plenty. */
enum vkmoe_status run_model_poll(struct run_model *m, struct vkmoe_err *err);

#endif
