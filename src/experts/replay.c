/* Feeding a trace to the slot allocator: prefill by waves, then token after token. */
#include <string.h>

#include "core/alloc.h"
#include "experts/replay.h"

#define MAP_WORDS (MAX_EXPERTS / 32)

static struct run_slots_params slots_params(const struct xp_trace *t, const struct xp_replay_params *p)
{
    return (struct run_slots_params){.n_layers = t->info.n_layers,
                                     .n_experts = t->info.n_experts,
                                     .n_used = t->info.n_used,
                                     .n_slots = p ? p->n_slots : 0,
                                     .policy = p ? p->policy : (struct run_policy){0}};
}

uint32_t xp_replay_floor(const struct xp_trace *t)
{
    const struct run_slots_params p = slots_params(t, NULL);

    return run_slots_floor(&p);
}

/* Residents run first, then wave after wave, as src/run does it. */
static void run_waves(struct run_slots *s, const struct xp_trace *t, uint32_t layer, const uint32_t *needed)
{
    struct run_slots_load loads[MAX_EXPERTS];
    uint32_t done[MAP_WORDS] = {0};

    for (;;) {
        uint32_t absent = 0;

        for (uint32_t e = 0; e < t->info.n_experts; e++) {
            if (!(needed[e / 32] >> (e % 32) & 1) || done[e / 32] >> (e % 32) & 1)
                continue;
            if (run_slots_find(s, layer, e) == NONE)
                absent++;
            else
                done[e / 32] |= 1u << (e % 32);
        }
        run_slots_wave(s, layer, needed, done, loads, MAX_EXPERTS);
        if (!absent)
            break;
    }
}

static void prefill(struct run_slots *s, const struct xp_trace *t, size_t first, uint32_t n, uint32_t *seed)
{
    const size_t words = (size_t)t->info.n_used * 2;
    uint32_t n_seed = n < RUN_SEED_TOKENS ? n : RUN_SEED_TOKENS;

    run_slots_chunk_begin(s, n);
    for (uint32_t l = 0; l < t->info.n_layers; l++) {
        uint32_t needed[MAP_WORDS] = {0};

        for (uint32_t i = 0; i < n; i++) {
            const uint32_t *sel = xp_trace_sel(t, first + i, l);

            for (uint32_t j = 0; j < t->info.n_used; j++)
                if (sel[2 * j] != NONE)
                    needed[sel[2 * j] / 32] |= 1u << (sel[2 * j] % 32);
            if (i + n_seed >= n)
                memcpy(seed + (i + n_seed - n) * words, sel, words * sizeof(*sel));
        }
        run_slots_seed(s, l, seed, n_seed);
        run_waves(s, t, l, needed);
    }
    run_slots_chunk_end(s);
}

static void decode(struct run_slots *s, const struct xp_trace *t, size_t token)
{
    struct run_slots_load loads[MAX_TOP_K];

    for (uint32_t l = 0; l < t->info.n_layers; l++)
        run_slots_visit(s, l, xp_trace_sel(t, token, l), loads);
    run_slots_token_end(s);
}

enum vkmoe_status xp_replay(const struct xp_trace *t, const struct xp_replay_params *p,
                            struct run_slots_stats *stats, struct vkmoe_err *err)
{
    const struct run_slots_params sp = slots_params(t, p);
    struct run_slots_stats one;
    struct run_slots *s = NULL;
    uint32_t *seed = cor_array((size_t)RUN_SEED_TOKENS * t->info.n_used, 2 * sizeof(*seed));
    enum vkmoe_status st = VKMOE_OK;

    if (!seed)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the replay of a trace");
    for (size_t i = 0; i < t->n_streams; i++) {
        size_t at = t->first[i], end = t->first[i + 1];
        size_t start = end - at < p->prompt ? end : at + p->prompt;

        TRY(run_slots_create(&s, &sp, err));
        while (at < start) {
            uint32_t n = start - at < XP_REPLAY_CHUNK ? (uint32_t)(start - at) : XP_REPLAY_CHUNK;

            prefill(s, t, at, n, seed);
            at += n;
        }
        for (; at < end && at - start < p->tokens; at++)
            decode(s, t, at);
        run_slots_stats(s, &one);
        run_slots_stats_add(stats, &one);
        run_slots_destroy(s);
        s = NULL;
    }
done:
    run_slots_destroy(s);
    cor_free(seed);
    return st;
}
