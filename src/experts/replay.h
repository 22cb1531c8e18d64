/* Replay of route traces: the pool's allocator with nothing behind it, and the optimum that knows the future.
 * Owns how a trace is fed; the counters are the allocator's own. */
#ifndef XP_REPLAY_H
#define XP_REPLAY_H

#include "experts/trace.h"
#include "run/slots.h"

struct xp_replay_params {
    uint32_t n_slots;
    uint32_t prompt; /* tokens of each stream that are fed as prefill, in chunks of at most XP_REPLAY_CHUNK */
    uint32_t tokens; /* decoded after them, at most */
    struct run_policy policy; /* not of the optimum */
};

#define XP_REPLAY_CHUNK 512

/* Smallest n_slots for the trace. */
uint32_t xp_replay_floor(const struct xp_trace *t);
/* Every stream of the trace through a pool of its own, as a live session feeds it; adds to *stats (zeroed
 * before the first trace). Errors: VKMOE_ERR_LIMIT below the floor, VKMOE_ERR_MEMORY. */
enum vkmoe_status xp_replay(const struct xp_trace *t, const struct xp_replay_params *p,
                            struct run_slots_stats *stats, struct vkmoe_err *err);
/* Belady's optimum with forced admission: of equal experts, the one whose next use is farthest goes, and all
 * that a token chose in a layer are in slots at once. It starts with the best choice of the experts that the
 * prompt used, so no policy misses less on the decoded tokens. scope LAYER: equal shares per layer, else one
 * pool for all. */
enum vkmoe_status xp_replay_optimum(const struct xp_trace *t, const struct xp_replay_params *p,
                                    enum run_policy_scope scope, struct run_slots_stats *stats,
                                    struct vkmoe_err *err);

#endif
