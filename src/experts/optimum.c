/* Belady's optimum over a route trace. */
#include <inttypes.h>
#include <string.h>

#include "core/alloc.h"
#include "experts/replay.h"

#define NEVER    UINT64_MAX
#define LONG_AGO (-1000000)

struct oracle {
    const struct xp_trace *t;
    uint32_t n_layers, n_experts, n_slots;
    bool layered;
    uint64_t *next;     /* (n_layers, n_experts) time of the next use: token * n_layers + layer; NEVER */
    uint32_t *after;    /* (tokens of the stream, n_layers, k) tokens until the expert's next use, 0: none */
    bool *here, *asked; /* (n_layers, n_experts) in a slot; used by the prompt */
    int64_t *gone;      /* the same, token of the last eviction */
    uint32_t *held, *share, n_held;
    struct run_slots_stats stats;
};

static void oracle_close(struct oracle *o)
{
    cor_free(o->next);
    cor_free(o->after);
    cor_free(o->here);
    cor_free(o->asked);
    cor_free(o->gone);
    cor_free(o->held);
    cor_free(o->share);
}

static enum vkmoe_status oracle_open(struct oracle *o, const struct xp_trace *t,
                                     const struct xp_replay_params *p, bool layered, struct vkmoe_err *err)
{
    size_t bank = (size_t)t->info.n_layers * t->info.n_experts, longest = 0;
    uint32_t left = p->n_slots;

    for (size_t i = 0; i < t->n_streams; i++)
        longest = t->first[i + 1] - t->first[i] > longest ? t->first[i + 1] - t->first[i] : longest;
    *o = (struct oracle){.t = t,
                         .n_layers = t->info.n_layers,
                         .n_experts = t->info.n_experts,
                         .n_slots = p->n_slots,
                         .layered = layered};
    o->next = cor_array(bank, sizeof(*o->next));
    o->after = cor_array(longest, (size_t)t->info.n_layers * t->info.n_used * sizeof(*o->after));
    o->here = cor_array(bank, sizeof(*o->here));
    o->asked = cor_array(bank, sizeof(*o->asked));
    o->gone = cor_array(bank, sizeof(*o->gone));
    o->held = cor_array(o->n_layers, sizeof(*o->held));
    o->share = cor_array(o->n_layers, sizeof(*o->share));
    if (!o->next || !o->after || !o->here || !o->asked || !o->gone || !o->held || !o->share)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the optimum of %zu tokens", longest);
    for (bool given = true; given;) { /* as the allocator shares out */
        given = false;
        for (uint32_t l = 0; l < o->n_layers && left; l++)
            if (o->share[l] < o->n_experts) {
                o->share[l]++;
                left--;
                given = true;
            }
    }
    return VKMOE_OK;
}

/* ---- the future
 * ---------------------------------------------------------------------------------------------- */

/* For every choice of the tokens [at, end), when the same expert is chosen next. */
static void look_ahead(struct oracle *o, size_t at, size_t end)
{
    const uint32_t k = o->t->info.n_used;

    for (size_t i = 0; i < (size_t)o->n_layers * o->n_experts; i++)
        o->next[i] = NEVER;
    for (size_t t = end; t-- > at;)
        for (uint32_t l = 0; l < o->n_layers; l++) {
            const uint32_t *sel = xp_trace_sel(o->t, t, l);

            for (uint32_t j = 0; j < k; j++) {
                uint64_t *next;

                if (sel[2 * j] == NONE)
                    continue;
                next = &o->next[l * o->n_experts + sel[2 * j]];
                o->after[((t - at) * o->n_layers + l) * k + j] = *next == NEVER ? 0 : (uint32_t)(*next - t);
                *next = t;
            }
        }
}

/* The uses of a token at a layer are behind us. */
static void pass(struct oracle *o, size_t at, size_t t, uint32_t l)
{
    const uint32_t *sel = xp_trace_sel(o->t, t, l), k = o->t->info.n_used;

    for (uint32_t j = 0; j < k; j++)
        if (sel[2 * j] != NONE) {
            uint32_t d = o->after[((t - at) * o->n_layers + l) * k + j];

            o->next[l * o->n_experts + sel[2 * j]] = d ? t + d : NEVER;
        }
}

/* When expert i is used next, in visits. */
static uint64_t next_visit(const struct oracle *o, size_t i)
{
    return o->next[i] == NEVER ? NEVER : o->next[i] * o->n_layers + i / o->n_experts;
}

/* ---- slots
 * --------------------------------------------------------------------------------------------------- */

static void put(struct oracle *o, size_t i)
{
    o->here[i] = true;
    o->held[i / o->n_experts]++;
    o->n_held++;
}

static bool full(const struct oracle *o, uint32_t layer)
{
    return o->layered ? o->held[layer] == o->share[layer] : o->n_held == o->n_slots;
}

/* Evicts the expert whose next use is farthest, none of those that the visit chose. */
static void make_room(struct oracle *o, uint32_t layer, const uint32_t *sel, size_t now)
{
    size_t bank = (size_t)o->n_layers * o->n_experts, own = (size_t)layer * o->n_experts;
    size_t from = o->layered ? own : 0, to = o->layered ? own + o->n_experts : bank, best = bank;

    for (uint32_t j = 0; j < o->t->info.n_used; j++) /* not in a slot while we look */
        if (sel[2 * j] != NONE)
            o->asked[own + sel[2 * j]] = true;
    for (size_t i = from; i < to; i++)
        if (o->here[i] && !(i / o->n_experts == layer && o->asked[i]) &&
            (best == bank || next_visit(o, i) > next_visit(o, best)))
            best = i;
    for (uint32_t j = 0; j < o->t->info.n_used; j++)
        if (sel[2 * j] != NONE)
            o->asked[own + sel[2 * j]] = false;
    o->here[best] = false;
    o->gone[best] = (int64_t)now;
    o->held[best / o->n_experts]--;
    o->n_held--;
}

/* Fills the slots with those of the prompt's experts that are used soonest. */
static void start_from_prompt(struct oracle *o, size_t at, size_t start)
{
    size_t bank = (size_t)o->n_layers * o->n_experts, best;

    for (size_t t = at; t < start; t++)
        for (uint32_t l = 0; l < o->n_layers; l++) {
            const uint32_t *sel = xp_trace_sel(o->t, t, l);

            for (uint32_t j = 0; j < o->t->info.n_used; j++)
                if (sel[2 * j] != NONE)
                    o->asked[l * o->n_experts + sel[2 * j]] = true;
            pass(o, at, t, l);
        }
    do {
        best = bank;
        for (size_t i = 0; i < bank; i++)
            if (o->asked[i] && !full(o, (uint32_t)(i / o->n_experts)) &&
                (best == bank || next_visit(o, i) < next_visit(o, best)))
                best = i;
        if (best < bank) {
            o->asked[best] = false;
            put(o, best);
        }
    } while (best < bank);
    memset(o->asked, 0, bank * sizeof(*o->asked));
}

static void visit(struct oracle *o, size_t at, size_t t, uint32_t l, struct run_slots_counts *c)
{
    const uint32_t *sel = xp_trace_sel(o->t, t, l);
    uint32_t misses = 0;

    pass(o, at, t, l);
    for (uint32_t j = 0; j < o->t->info.n_used; j++) {
        size_t i = (size_t)l * o->n_experts + sel[2 * j];

        if (sel[2 * j] == NONE)
            continue;
        if (o->here[i]) {
            c->hits++;
            continue;
        }
        misses++;
        if (full(o, l)) {
            make_room(o, l, sel, t);
            c->evictions++;
        }
        c->reuploads += (int64_t)t - o->gone[i] < RUN_REUPLOAD_TOKENS;
        put(o, i);
    }
    c->visits++;
    c->misses += misses;
    c->blocking_visits += misses > 0;
}

static void run_stream(struct oracle *o, size_t at, size_t end, const struct xp_replay_params *p)
{
    size_t bank = (size_t)o->n_layers * o->n_experts, start = end - at < p->prompt ? end : at + p->prompt;

    end = end - start < p->tokens ? end : start + p->tokens; /* nothing behind is counted */
    memset(o->here, 0, bank * sizeof(*o->here));
    memset(o->held, 0, o->n_layers * sizeof(*o->held));
    o->n_held = 0;
    for (size_t i = 0; i < bank; i++)
        o->gone[i] = LONG_AGO;
    look_ahead(o, at, end);
    start_from_prompt(o, at, start);
    for (size_t t = start; t < end; t++) {
        struct run_slots_counts *c = t - start < RUN_COLD_TOKENS ? &o->stats.cold : &o->stats.warm;

        for (uint32_t l = 0; l < o->n_layers; l++)
            visit(o, at, t, l, c);
        c->tokens++;
    }
}

enum vkmoe_status xp_replay_optimum(const struct xp_trace *t, const struct xp_replay_params *p,
                                    enum run_policy_scope scope, struct run_slots_stats *stats,
                                    struct vkmoe_err *err)
{
    struct oracle o = {0};
    enum vkmoe_status st = VKMOE_OK;

    if (p->n_slots < xp_replay_floor(t))
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%" PRIu32 " expert slots are too few, the smallest number that works is %" PRIu32,
                        p->n_slots, xp_replay_floor(t));
    TRY(oracle_open(&o, t, p, scope == RUN_SCOPE_LAYER, err));
    for (size_t i = 0; i < t->n_streams; i++)
        run_stream(&o, t->first[i], t->first[i + 1], p);
    run_slots_stats_add(stats, &o.stats);
done:
    oracle_close(&o);
    return st;
}
