/* Which expert is in which slot: residency, replacement, counters. Integers only and deterministic: the live
 * pool and the replay of traces run this very code, so their counters agree to the last digit. Owns the
 * table; knows no device, no file and no thread. */
#ifndef RUN_SLOTS_H
#define RUN_SLOTS_H

#include "core/status.h"
#include "shared/step.h"

/* ---- policy */

enum run_policy_kind {
    RUN_DECAY, /* the smallest use count, where a use halves every half_life tokens */
    RUN_LRU,   /* longest unused */
    RUN_LFU    /* fewest uses since the pool was made */
};

enum run_policy_scope {
    RUN_SCOPE_AUTO,  /* as GLOBAL, but RUN_DECAY weighs layers that hold more than their share: a count is
                      * halved RUN_SOFT_QUOTA times for each share that its layer holds above its own */
    RUN_SCOPE_LAYER, /* equal shares: a layer with its share full evicts its own */
    RUN_SCOPE_GLOBAL /* any layer that stays at or above its floor */
};

#define RUN_SOFT_QUOTA    8
#define RUN_HALF_LIFE     64 /* tokens; what half_life 0 means */
#define RUN_HALF_LIFE_MAX 65536

struct run_policy { /* zero: the default */
    enum run_policy_kind kind;
    enum run_policy_scope scope;
    uint32_t half_life; /* tokens, of RUN_DECAY; 0: the default */
};

/* "lru", "lfu", "decay" or "decay:48", each with "/layer" or "/global" behind it or without.
 * Errors: VKMOE_ERR_ARGUMENT. */
enum vkmoe_status run_policy_parse(struct run_policy *p, const char *text, struct vkmoe_err *err);
/* The same spelling; returns text. 32 bytes are enough. */
const char *run_policy_print(const struct run_policy *p, char *text, size_t n);

/* ---- the slots */

struct run_slots_params {
    uint32_t n_layers, n_experts; /* routed per layer, at most MAX_EXPERTS */
    uint32_t n_used;              /* k: chosen per token and layer, at most MAX_TOP_K */
    uint32_t n_slots;
    /* 0: a slot holds experts of any layer. Else slot s holds only those of layer s / layer_slots (devices
     * without the segment array), n_slots == n_layers * layer_slots, and victims are always of the layer. */
    uint32_t layer_slots;
    const uint32_t *allowed; /* experts that may be chosen, per layer; NULL: all. Copied. */
    uint32_t least; /* experts that every layer can hold at once whatever the others do: document pools */
    struct run_policy policy;
};

struct run_slots_load { /* bytes of an expert that belong into a slot */
    uint32_t expert, slot;
    uint32_t victim; /* layer * n_experts + expert that was there, NONE: the slot was free */
};

struct run_slots_counts {
    uint64_t tokens;
    uint64_t visits;          /* of a layer by a token */
    uint64_t hits, misses;    /* chosen experts, per visit; a miss is a load */
    uint64_t evictions;       /* misses that took an occupied slot */
    uint64_t blocking_visits; /* with at least one miss */
    uint64_t reuploads;       /* misses of an expert evicted fewer than RUN_REUPLOAD_TOKENS before */
};

struct run_slots_prefill {
    uint64_t chunks, tokens;
    uint64_t hits, loads; /* experts that a chunk needed in a layer: there before, not there */
    uint64_t evictions;   /* loads that took an occupied slot */
    uint64_t displaced;   /* evictions of experts that were there when the chunk began */
};

#define RUN_COLD_TOKENS     32
#define RUN_REUPLOAD_TOKENS 8

struct run_slots_stats {
    struct run_slots_counts total, cold,
        warm; /* decode; cold: the first RUN_COLD_TOKENS tokens of the pool */
    struct run_slots_prefill prefill;
    uint64_t drops, placed;
};

struct run_slots;

/* Smallest n_slots that works: the sum over layers of min(max(k + 1, least), allowed), and with layer_slots
 * n_layers times the largest of these. n_slots and policy are not looked at. */
uint32_t run_slots_floor(const struct run_slots_params *p);

/* Errors: VKMOE_ERR_LIMIT below the floor, with the number that would work. */
enum vkmoe_status run_slots_create(struct run_slots **out, const struct run_slots_params *p,
                                   struct vkmoe_err *err);
void run_slots_destroy(struct run_slots *s); /* NULL is fine */

uint32_t run_slots_find(const struct run_slots *s, uint32_t layer, uint32_t expert); /* slot or NONE */
/* (n_layers, n_experts) slots, NONE when absent. Lives as long as s; always current. */
const uint32_t *run_slots_table(const struct run_slots *s);
/* (n_slots) layer * n_experts + expert, NONE when free. */
const uint32_t *run_slots_owners(const struct run_slots *s);
uint32_t run_slots_count(const struct run_slots *s);    /* n_slots */
uint32_t run_slots_resident(const struct run_slots *s); /* occupied slots */
void run_slots_stats(const struct run_slots *s, struct run_slots_stats *out);
/* Adds b, with total made from cold and warm. */
void run_slots_stats_add(struct run_slots_stats *a, const struct run_slots_stats *b);
/* The policy at work: no half-life 0, LAYER where slots belong to layers. */
struct run_policy run_slots_policy(const struct run_slots *s);

/* ---- decode: one visit per layer and token in the order of layers, then token_end.
 * sel: k pairs (id, weight bits) by falling weight, as in shared/step.h; an id NONE is skipped. */

/* Counts hits, gives every absent expert a slot (free, else a victim's), updates the table at once and writes
 * what has to be loaded (room for k). No expert chosen in this visit is evicted, no other layer is pushed
 * below min(k + 1, allowed) experts. Returns the number of loads. */
uint32_t run_slots_visit(struct run_slots *s, uint32_t layer, const uint32_t *sel,
                         struct run_slots_load *loads);
void run_slots_token_end(struct run_slots *s);
/* Makes an expert absent again: its bytes did not arrive. No harm when it is absent. */
void run_slots_drop(struct run_slots *s, uint32_t layer, uint32_t expert);

/* ---- prefill: chunk_begin; per layer seed, then waves; chunk_end.
 *
 * Experts are loaded by rising score, and those that score highest come last and stay. A layer works in a set
 * of slots chosen before its first load: free ones (its fair share of what is free), then the slots of every
 * resident that an absent needed expert outscores, and at least RUN_BORROW slots (a sixteenth of the layer's
 * share if that is more), the lowest scored there are. So the residents evicted per layer and chunk are at
 * most max(RUN_BORROW, share / 16) plus those outscored; in GLOBAL scope the next layer borrows the same
 * slots again, since what passed through scores lowest. */

#define RUN_BORROW      4
#define RUN_SEED_TOKENS 64

/* n_tokens of the chunk; the clock moves on by as many at chunk_end. */
void run_slots_chunk_begin(struct run_slots *s, uint32_t n_tokens);
/* The choices of the last n tokens of the chunk at this layer, (n, k) pairs; before the layer's first wave.
 * They count as uses at their time. RUN_SEED_TOKENS is what the policy was measured with.
 */
void run_slots_seed(struct run_slots *s, uint32_t layer, const uint32_t *sel, uint32_t n);
/* The next wave: slots for absent experts that are needed and not done (bitmaps of ceil(n_experts / 32)
 * words), at most max. `done`: already handed to the device, from residents and earlier waves.
 *
 * The caller runs what is resident, needed and not done (after their loads have arrived), sets the bits, and
 * calls again: until everything needed is done. Never taken are the slots of experts that are needed and not
 * done, and of those that became done since the call before (the device may still read them). So reads of a
 * wave overlap the computation of the one before. Returns the number of loads; 0 with absent experts left
 * means: run what is ready, wait until it is complete, call again. Every expert is loaded at most once per
 * layer and chunk. Works from the floor up. */
uint32_t run_slots_wave(struct run_slots *s, uint32_t layer, const uint32_t *needed, const uint32_t *done,
                        struct run_slots_load *loads, uint32_t max);
void run_slots_chunk_end(struct run_slots *s);
/* Slots for the experts of a set (bitmap) that are absent, whatever the scores: a document pool. `kept` is
 * never evicted: (n_layers, ceil(n_experts / 32)) words, this set among them, at most `least` experts per
 * layer. Counts into prefill. Room for as many loads as experts; returns their number. */
uint32_t run_slots_hold(struct run_slots *s, uint32_t layer, const uint32_t *set, const uint32_t *kept,
                        struct run_slots_load *loads);

/* ---- size, at a token boundary. Not with layer_slots (VKMOE_ERR_UNSUPPORTED). */

/* Fewer slots: those from n_slots on vanish, what they hold becomes absent. dropped: room for the difference,
 * layer * n_experts + expert each; *n_dropped of them. Errors: VKMOE_ERR_LIMIT below the floor. */
enum vkmoe_status run_slots_shrink(struct run_slots *s, uint32_t n_slots, uint32_t *dropped,
                                   uint32_t *n_dropped, struct vkmoe_err *err);
/* More slots, free; at most n_layers * n_experts. */
enum vkmoe_status run_slots_grow(struct run_slots *s, uint32_t n_slots, struct vkmoe_err *err);

/* ---- the hot set */

/* Experts that were ever used, layer * n_experts + expert, by falling score (ties: lower number first): room
 * for n_layers * n_experts. Returns how many. */
uint32_t run_slots_hot(const struct run_slots *s, uint32_t *list);
/* At the start, in the order of run_slots_hot: an expert into a free slot, ranked behind those placed before.
 * Returns the slot to load, NONE when it is there already or no slot is free for its layer. */
uint32_t run_slots_place(struct run_slots *s, uint32_t layer, uint32_t expert);

#endif
