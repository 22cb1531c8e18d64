/* The expert pool: equal slots in segments on the device, which expert is in which slot, loading on demand.
 * Host state is authoritative; the device's slot table follows through the changes that a submit publishes.
 * Owns segments and table; knows nothing of sessions. */
#ifndef RUN_POOL_H
#define RUN_POOL_H

#include "run/weights.h"

#define RUN_MAX_SEGMENTS 64 /* bound as one array */

/* Where the three matrices of one expert stand in its slot, per layer (formats may differ by layer). */
struct run_expert_layout {
    enum mdl_type gate, up, down;
    uint32_t up_off, down_off; /* bytes; gate is at 0 */
    uint32_t bytes;
};

struct run_pool {
    struct gpu_device *dev;
    const struct mdl_model *mdl;
    uint32_t n_layers, n_experts;
    struct run_expert_layout *layout; /* n_layers */
    uint32_t slot_bytes;              /* stride: largest expert, aligned */
    uint32_t slots_per_seg;
    uint32_t n_slots, n_segs;
    bool array;               /* segments are bound as one array; else each belongs to one layer */
    uint32_t segs_per_layer;  /* without the array */
    struct gpu_buffer **segs; /* n_segs */
    struct gpu_buffer *table; /* device: n_layers x n_experts slots, NONE when absent */
    uint32_t *slot_of;        /* host: the same, authoritative */
    uint32_t *owner;          /* n_slots: layer * n_experts + expert, NONE when free */
    uint32_t *changes;        /* table indices not published yet */
    uint32_t n_changes;
    uint64_t uploads, uploaded_bytes;
};

/* Plans slots for every expert and makes the segments; all slots are empty. */
enum vkmoe_status run_pool_create(struct run_pool *p, struct gpu_device *dev, const struct mdl_model *m,
                                  struct vkmoe_err *err);
void run_pool_close(struct run_pool *p);

/* Loads the experts of `layer` whose bits are set in `missing` (ceil(n_experts / 32) words) and that are not
 * resident. */
enum vkmoe_status run_pool_load(struct run_pool *p, uint32_t layer, const uint32_t *missing,
                                struct run_progress *progress, struct vkmoe_err *err);
/* Loads every expert of every layer. */
enum vkmoe_status run_pool_load_all(struct run_pool *p, struct run_progress *progress, struct vkmoe_err *err);

/* Writes (table index, slot) pairs that the device does not know yet; returns how many. They stay pending
 * until run_pool_published says that the submit which carries them was accepted. */
uint32_t run_pool_pending(const struct run_pool *p, uint32_t *pairs);
void run_pool_published(struct run_pool *p);

uint64_t run_pool_bytes(const struct run_pool *p); /* on the device: slots and table */
/* Segments that hold slots of a layer: [*first, *first + *n). */
void run_pool_segments(const struct run_pool *p, uint32_t layer, uint32_t *first, uint32_t *n);

#endif
