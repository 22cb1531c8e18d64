/* The slot allocator in prefill: scores from the end of the chunk, and waves of loads through few slots. */
#include <assert.h>
#include <string.h>

#include "run/slots_impl.h"

void run_slots_chunk_begin(struct run_slots *s, uint32_t n_tokens)
{
    assert(!s->in_chunk && n_tokens);
    s->in_chunk = true;
    s->chunk_tokens = n_tokens;
    s->wave_layer = NONE;
    for (uint32_t i = 0; i < s->n_layers * s->n_experts; i++) {
        if (s->slot_of[i] != NONE)
            map_set(s->before, i);
        else
            s->before[i / 32] &= ~(1u << (i % 32));
    }
}

void run_slots_seed(struct run_slots *s, uint32_t layer, const uint32_t *sel, uint32_t n)
{
    int64_t first = s->clock + s->chunk_tokens - n;

    assert(s->in_chunk && layer < s->n_layers && n <= s->chunk_tokens);
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t j = 0; j < s->n_used; j++) {
            uint32_t e = sel[2 * (t * s->n_used + j)];

            if (e < s->n_experts)
                run_slots_touch(s, layer * s->n_experts + e, first + t);
        }
    s->wave_layer = NONE;
}

void run_slots_chunk_end(struct run_slots *s)
{
    assert(s->in_chunk);
    s->in_chunk = false;
    s->clock += s->chunk_tokens;
    s->prefill.chunks++;
    s->prefill.tokens += s->chunk_tokens;
}

/* ---- the set of slots that a layer works in
 * ------------------------------------------------------------------ */

struct absent {
    uint32_t n, ids[MAX_EXPERTS]; /* by rising score, ties: the higher number first */
};

static void list_absent(const struct run_slots *s, uint32_t layer, const uint32_t *needed,
                        const uint32_t *done, struct absent *a)
{
    const uint32_t base = layer * s->n_experts;

    a->n = 0;
    for (uint32_t e = s->n_experts; e-- > 0;) {
        uint32_t j;

        if (!map_has(needed, e) || map_has(done, e) || s->slot_of[base + e] != NONE)
            continue;
        for (j = a->n++; j && s->score[base + a->ids[j - 1]] > s->score[base + e]; j--)
            a->ids[j] = a->ids[j - 1];
        a->ids[j] = e;
    }
}

static bool not_in_set(const void *user, uint32_t slot, uint32_t of, uint32_t expert)
{
    const struct run_slots *s = user;

    (void)of;
    (void)expert;
    return !s->in_set[slot];
}

static void add_to_set(struct run_slots *s, uint32_t slot)
{
    s->in_set[slot] = true;
    s->set_gain = ++s->n_set;
    if (s->owner[slot] != NONE)
        s->set_held[s->owner[slot] / s->n_experts]++;
}

/* Free slots that the layer may fill: up to its share, or an equal part of what is left for it and the layers
 * behind it. */
static uint32_t free_quota(const struct run_slots *s, uint32_t layer)
{
    uint32_t left = s->n_layers - layer;

    if (s->policy.scope != RUN_SCOPE_LAYER)
        return (s->n_slots - s->n_resident + left - 1) / left;
    return s->held[layer] < s->share[layer] ? s->share[layer] - s->held[layer] : 0;
}

static void choose_set(struct run_slots *s, uint32_t layer, const struct absent *a)
{
    const uint32_t base = layer * s->n_experts;
    uint32_t borrow = s->share[layer] / 16 > RUN_BORROW ? s->share[layer] / 16 : RUN_BORROW;
    uint32_t quota = free_quota(s, layer), slot = 0, unpaired = a->n;

    memset(s->in_set, 0, s->cap * sizeof(*s->in_set));
    s->n_set = 0;
    for (; s->n_set < a->n && s->n_set < quota; unpaired--) {
        if ((slot = run_slots_free(s, layer, slot)) == NONE)
            break;
        add_to_set(s, slot++);
    }
    while (s->n_set < a->n) {
        slot = run_slots_victim(s, layer, not_in_set, s);
        if (slot == NONE || (s->n_set >= borrow && run_slots_score(s, layer, base + a->ids[unpaired - 1]) <=
                                                       run_slots_score(s, layer, s->owner[slot])))
            break;
        unpaired--;
        add_to_set(s, slot);
    }
    memset(s->set_held, 0, s->n_layers * sizeof(*s->set_held));
    s->set_gain = 0;
    s->fits = s->n_set == a->n;
}

/* ---- waves
 * ---------------------------------------------------------------------------------------------------- */

struct wave {
    const struct run_slots *s;
    uint32_t layer;
    const uint32_t *needed;
};

/* A resident that still has to run stays, and so does one that may be running: handed out since the last
 * call. */
static bool may_overwrite(const struct wave *w, uint32_t of, uint32_t expert)
{
    if (of != w->layer || !map_has(w->needed, expert))
        return true;
    return map_has(w->s->wave_done, expert);
}

/* The free or lowest scored slot of the set that may be overwritten; NONE. */
static uint32_t take_from_set(const struct wave *w)
{
    const struct run_slots *s = w->s;
    uint32_t first, end, best = NONE;
    int64_t best_score = 0;

    run_slots_range(s, w->layer, &first, &end);
    for (uint32_t i = first; i < end; i++) {
        uint32_t o = s->owner[i];
        int64_t score;

        if (!s->in_set[i])
            continue;
        if (o == NONE)
            return i;
        if (!may_overwrite(w, o / s->n_experts, o % s->n_experts))
            continue;
        score = run_slots_score(s, w->layer, o);
        if (best == NONE || score < best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

static void begin_layer(struct run_slots *s, uint32_t layer, const uint32_t *needed, const struct absent *a)
{
    s->wave_layer = layer;
    memset(s->wave_done, 0, sizeof(s->wave_done));
    for (uint32_t e = 0; e < s->n_experts; e++)
        s->prefill.hits += map_has(needed, e) && s->slot_of[layer * s->n_experts + e] != NONE;
    choose_set(s, layer, a);
}

uint32_t run_slots_wave(struct run_slots *s, uint32_t layer, const uint32_t *needed, const uint32_t *done,
                        struct run_slots_load *loads, uint32_t max)
{
    const struct wave w = {s, layer, needed};
    struct absent a;
    uint32_t n = 0;

    assert(s->in_chunk && layer < s->n_layers);
    list_absent(s, layer, needed, done, &a);
    if (s->wave_layer != layer)
        begin_layer(s, layer, needed, &a);
    /* Half of the set at most when slots are used again, so that the next wave finds some as well. */
    if (!s->fits && max > s->n_set / 2)
        max = s->n_set > 1 ? s->n_set / 2 : 1;
    while (n < max && n < a.n) {
        uint32_t slot = take_from_set(&w), i = layer * s->n_experts + a.ids[n], victim;

        if (slot == NONE)
            break;
        victim = s->owner[slot];
        s->prefill.evictions += victim != NONE;
        s->prefill.displaced += victim != NONE && map_has(s->before, victim);
        loads[n] = (struct run_slots_load){a.ids[n], slot, run_slots_assign(s, i, slot)};
        n++;
    }
    s->prefill.loads += n;
    memcpy(s->wave_done, done, ((s->n_experts + 31) / 32) * sizeof(*done));
    return n;
}

/* ---- document pools
 * ------------------------------------------------------------------------------------------- */

struct kept {
    const uint32_t *map;
    uint32_t words; /* per layer */
};

static bool not_kept(const void *user, uint32_t slot, uint32_t of, uint32_t expert)
{
    const struct kept *k = user;

    (void)slot;
    return !map_has(k->map + (size_t)of * k->words, expert);
}

uint32_t run_slots_hold(struct run_slots *s, uint32_t layer, const uint32_t *set, const uint32_t *kept,
                        struct run_slots_load *loads)
{
    const struct kept k = {kept, (s->n_experts + 31) / 32};
    uint32_t n = 0;

    assert(layer < s->n_layers);
    for (uint32_t e = 0; e < s->n_experts; e++) {
        uint32_t i = layer * s->n_experts + e, slot;

        if (!map_has(set, e))
            continue;
        if (s->slot_of[i] != NONE) {
            s->prefill.hits++;
            continue;
        }
        slot = run_slots_free(s, layer, 0);
        if (slot == NONE)
            slot = run_slots_victim(s, layer, not_kept, &k);
        assert(slot != NONE);
        s->prefill.evictions += s->owner[slot] != NONE;
        loads[n] = (struct run_slots_load){e, slot, run_slots_assign(s, i, slot)};
        n++;
    }
    s->prefill.loads += n;
    return n;
}
