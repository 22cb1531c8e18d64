/* Inside of the slot allocator: state, scores and the search for a victim. Used by slots*.c only. */
#ifndef RUN_SLOTS_IMPL_H
#define RUN_SLOTS_IMPL_H

#include "run/slots.h"

#define NEVER      INT64_MIN /* score of an expert that was not used yet */
#define MAP_WORDS  (MAX_EXPERTS / 32)
#define SCORE_ONE  65536 /* scores are Q16 */
#define NEVER_GONE (INT64_MIN / 2)

static inline bool map_has(const uint32_t *map, uint32_t i)
{
    return map[i / 32] >> (i % 32) & 1;
}
static inline void map_set(uint32_t *map, uint32_t i)
{
    map[i / 32] |= 1u << (i % 32);
}

struct run_slots {
    uint32_t n_layers, n_experts, n_used, layer_slots;
    uint32_t n_slots, cap;           /* cap: slots that owner and in_set have room for */
    struct run_policy asked, policy; /* as given; at work */
    int64_t clock;                   /* tokens, prefill included */

    uint32_t *slot_of; /* (n_layers, n_experts) */
    int64_t *score;    /* the same, of absent experts too */
    int64_t *gone;     /* the same, clock of the last eviction */
    uint32_t *owner;   /* (cap) */
    uint32_t n_resident;
    uint32_t *allowed, *floor, *share, *held; /* per layer: experts, least slots, quota of LAYER, slots now */

    /* the chunk in hand */
    bool in_chunk;
    uint32_t chunk_tokens;
    uint32_t *before; /* bitmap of (n_layers, n_experts): resident when the chunk began */

    /* the layer in hand */
    uint32_t wave_layer; /* NONE: its first wave is still to come */
    uint32_t wave_done[MAP_WORDS];
    bool *in_set; /* (cap) slots that the layer works in */
    uint32_t n_set;
    uint32_t set_gain;  /* n_set while the set is chosen, else zero */
    uint32_t *set_held; /* per layer: how many of them its experts hold; zero but while the set is chosen */
    bool fits;          /* every absent expert got a slot of its own */

    struct run_slots_counts cold, warm;
    struct run_slots_prefill prefill;
    uint64_t drops, placed;
};

/* Counts a use of expert i (layer * n_experts + expert) at clock `at`. */
void run_slots_touch(struct run_slots *s, uint32_t i, int64_t at);

/* Slots that may hold experts of a layer: [*first, *end). */
void run_slots_range(const struct run_slots *s, uint32_t layer, uint32_t *first, uint32_t *end);
/* Lowest free slot for the layer at or behind `from`; NONE. */
uint32_t run_slots_free(const struct run_slots *s, uint32_t layer, uint32_t from);

/* May slot (owned by an expert of layer `of`) be taken? */
typedef bool (*run_slots_may_fn)(const void *user, uint32_t slot, uint32_t of, uint32_t expert);
/* The occupied slot that layer gives up: lowest score, ties to the farthest next use, then to the lowest
 * slot; NONE when there is none that scope, floors and `may` leave. */
uint32_t run_slots_victim(const struct run_slots *s, uint32_t layer, run_slots_may_fn may, const void *user);
/* The score as `layer` sees it: layers whose turn in this chunk is still to come are taken to go on as
 * before, and layers above their share lose (AUTO). i: layer * n_experts + expert. */
int64_t run_slots_score(const struct run_slots *s, uint32_t layer, uint32_t i);

/* Puts expert i into a slot; returns who was there or NONE. */
uint32_t run_slots_assign(struct run_slots *s, uint32_t i, uint32_t slot);

#endif
