/* The expert pool: equal slots in segments on the device, loading on demand, the budget they are held to.
 * Which expert is in which slot is slots.h; host state is authoritative, and the device's slot table follows
 * through the changes that a submit publishes. Owns segments, table, slots and fetcher; knows nothing of
 * sessions. */
#ifndef RUN_POOL_H
#define RUN_POOL_H

#include "run/fetch.h"
#include "run/slots.h"
#include "run/weights.h"

#define RUN_MAX_SEGMENTS    64 /* bound as one array */
#define RUN_EXPERT_BINDINGS 4  /* storage buffers of an expert kernel besides its segments, at most */

/* Where the parts of one expert stand in its slot, per layer (formats may differ by layer). All zero: a dense
 * layer. */
struct run_expert_layout {
    enum mdl_type gate, up, down;
    uint32_t up_off, down_off;              /* bytes; gate is at 0 */
    uint32_t gate_bias, up_bias, down_bias; /* bytes; 0: there is none */
    uint32_t bytes;
};

struct run_pool_params {
    uint64_t budget; /* bytes of slots, staging and table; RUN_POOL_ALL: what every expert needs */
    struct run_policy policy;
    /* Experts that may be chosen, n_layers x ceil(n_experts / 32) words: others are never loaded; NULL: all.
     * Used from plan to close. */
    const uint32_t *allowed;
    uint32_t least; /* experts of each layer that must have room at once: document pools; 0 */
};

#define RUN_POOL_ALL UINT64_MAX

struct run_pool_bytes { /* on the device, or visible to it */
    uint64_t slots, staging, table;
};

struct run_pool_traffic {
    uint64_t loads, bytes; /* experts that arrived, and their bytes */
    uint64_t waits;        /* of the host for the device */
};

struct run_pool {
    struct gpu_device *dev;
    const struct mdl_model *mdl;
    uint32_t n_layers, n_experts; /* n_experts: 1 at least */
    const uint32_t *allowed;      /* as in the parameters */
    uint32_t least;
    uint32_t *n_of_layer;              /* allowed, n_layers */
    uint32_t n_allowed, layer_allowed; /* in all, and of the layer with most */
    struct run_expert_layout *layout;  /* n_layers */
    uint32_t slot_bytes;               /* stride: largest expert, aligned */
    uint32_t slots_per_seg;            /* of all segments but the last */
    uint32_t n_slots, n_segs;
    bool array;               /* segments are bound as one array; else each belongs to one layer */
    uint32_t segs_per_layer;  /* without the array */
    struct gpu_buffer **segs; /* n_segs, room for cap_segs */
    uint32_t cap_segs;
    uint32_t generation; /* changes with the list of segments: what binds them is recorded again */
    uint64_t budget;
    uint32_t entries;         /* of staging */
    struct gpu_buffer *table; /* device: n_layers x n_experts slots, NONE when absent */
    struct run_slots *slots;
    struct run_fetch *fetch;
    uint32_t *changes; /* table indices not published yet, each once */
    bool *changed;     /* per table index: it is among them */
    uint32_t n_changes;
    struct run_slots_load *batch; /* being loaded; n_experts */
    uint32_t batch_layer, n_batch;
    struct run_pool_traffic opening, prefill, cold, warm; /* cold, warm: of decode, as slots.h cuts it */
};

/* Bytes of a pool for these params: what create would take. Errors: VKMOE_ERR_LIMIT when the budget is below
 * the floor, with the smallest budget that works; a budget above what all experts need is cut to that. */
enum vkmoe_status run_pool_plan(struct run_pool *p, struct gpu_device *dev, const struct mdl_model *m,
                                const struct run_pool_params *params, struct vkmoe_err *err);
/* Device bytes that create takes after plan, and the least that a plan accepts. */
uint64_t run_pool_planned_bytes(const struct run_pool *p);
uint64_t run_pool_floor_bytes(const struct run_pool *p);
/* Makes segments, table and fetcher as planned; all slots are empty. */
enum vkmoe_status run_pool_create(struct run_pool *p, const struct run_pool_params *params,
                                  struct vkmoe_err *err);
void run_pool_close(struct run_pool *p);
bool run_pool_holds_all(const struct run_pool *p); /* room for every expert that is allowed */
/* Could so many experts of every layer be resident at once? */
bool run_pool_has_room(const struct run_pool *p, uint32_t per_layer);
bool run_pool_allows(const struct run_pool *p, uint32_t layer, uint32_t expert);

/* ---- opening: no submit reads the table yet */

/* Loads every expert that is allowed, or those of a list (layer * n_experts + expert) while slots are free.
 */
enum vkmoe_status run_pool_load_all(struct run_pool *p, struct run_progress *progress, struct vkmoe_err *err);
enum vkmoe_status run_pool_load_list(struct run_pool *p, const uint32_t *list, uint32_t n,
                                     struct run_progress *progress, struct vkmoe_err *err);
uint64_t run_pool_load_bytes(const struct run_pool *p, const uint32_t *list, uint32_t n); /* NULL: all */

/* ---- one visit of a layer. sel: pairs (id, weight bits) as in shared/step.h */

/* Decode: begins to load what the token chose and the layer lacks; *n_loads of them. */
enum vkmoe_status run_pool_visit(struct run_pool *p, uint32_t layer, const uint32_t *sel, uint32_t *n_loads,
                                 struct vkmoe_err *err);
/* Prefill: begins to load the next wave (run_slots_wave). */
enum vkmoe_status run_pool_wave(struct run_pool *p, uint32_t layer, const uint32_t *needed,
                                const uint32_t *done, uint32_t *n_loads, struct vkmoe_err *err);
/* Document pools: makes the experts of a set (bitmap) resident and waits for them; *n_loads arrived. kept: as
 * in run_slots_hold. */
enum vkmoe_status run_pool_hold(struct run_pool *p, uint32_t layer, const uint32_t *set, const uint32_t *kept,
                                uint32_t *n_loads, struct vkmoe_err *err);
/* Waits until what visit or wave began has arrived for every later submit. Fails as run_fetch_finish; what
 * did not surely arrive is absent again. */
enum vkmoe_status run_pool_arrive(struct run_pool *p, bool prefill, struct vkmoe_err *err);
void run_pool_count_wait(struct run_pool *p, bool prefill);

/* Writes (table index, slot) pairs that the device does not know yet; returns how many. They stay pending
 * until run_pool_published says that the submit which carries them was accepted. Nothing may be loading. */
uint32_t run_pool_pending(const struct run_pool *p, uint32_t *pairs);
void run_pool_published(struct run_pool *p);

/* ---- size, while nothing is in flight */

/* Holds the pool to another budget: whole segments are freed or made. Errors: VKMOE_ERR_LIMIT below the least
 * that whole segments allow, VKMOE_ERR_UNSUPPORTED where segments belong to layers; the pool is then as it
 * was. A failure to make a segment leaves those that there are. */
enum vkmoe_status run_pool_resize(struct run_pool *p, uint64_t budget, struct vkmoe_err *err);
/* The smallest budget that resize takes: the floor in whole segments, or what there is. */
uint64_t run_pool_least_bytes(const struct run_pool *p);
/* A budget that makes one more segment, after a last one that is not whole. */
uint64_t run_pool_next_bytes(const struct run_pool *p);

uint64_t run_pool_bytes(const struct run_pool *p); /* sum of the following */
struct run_pool_bytes run_pool_purposes(const struct run_pool *p);
/* Segments that hold slots of a layer: [*first, *first + *n). */
void run_pool_segments(const struct run_pool *p, uint32_t layer, uint32_t *first, uint32_t *n);
/* Slots of one segment. */
uint32_t run_pool_seg_slots(const struct run_pool *p, uint32_t seg);

#endif
