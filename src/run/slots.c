/* The slot allocator: table, victims, decode, size, hot set. Prefill is in slots_prefill.c. */
#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "core/alloc.h"
#include "run/slots_impl.h"

/* ---- scores
 * -------------------------------------------------------------------------------------------------- */

/* log2(1 + 2^-(i / 16)) in Q16, from which sums of powers are made without floating point. */
/* clang-format off */
static const uint32_t log_table[] = {
    65536, 63510, 61529, 59591, 57698, 55849, 54044, 52283, 50565, 48889, 47257, 45667, 44119, 42612,
    41146, 39721, 38336, 36990, 35684, 34415, 33184, 31990, 30832, 29710, 28623, 27570, 26551, 25564,
    24610, 23687, 22794, 21931, 21098, 20293, 19515, 18765, 18040, 17341, 16667, 16017, 15391, 14786,
    14204, 13643, 13103, 12583, 12082, 11600, 11136, 10690, 10260, 9847, 9450, 9068, 8700, 8347,
    8008, 7682, 7369, 7068, 6778, 6501, 6234, 5978, 5732, 5496, 5269, 5052, 4843, 4643,
    4450, 4266, 4089, 3919, 3756, 3600, 3450, 3306, 3168, 3036, 2909, 2788, 2671, 2560,
    2452, 2350, 2251, 2157, 2066, 1980, 1897, 1817, 1741, 1668, 1597, 1530, 1466, 1404,
    1345, 1288, 1234, 1182, 1132, 1085, 1039, 995, 953, 913, 874, 837, 802, 768,
    736, 705, 675, 646, 619, 593, 568, 544, 521, 499, 478, 458, 438, 420,
    402, 385, 369, 353, 338, 324, 310, 297, 284, 272, 261, 250, 239, 229,
    219, 210, 201, 193, 184, 177, 169, 162, 155, 149, 142, 136, 130, 125,
    120, 115, 110, 105, 101, 96, 92, 88, 85, 81, 78, 74, 71, 68,
    65, 63, 60, 57, 55, 53, 50, 48, 46, 44, 42, 41, 39, 37,
    36, 34, 33, 31, 30, 29, 27, 26, 25, 24, 23, 22, 21, 20,
    19, 19, 18, 17, 16, 16, 15, 14, 14, 13, 13, 12, 12, 11,
    11, 10, 10, 9, 9, 9, 8, 8, 7, 7, 7, 7, 6, 6,
    6, 6, 5, 5, 5, 5, 4, 4, 4, 4, 4, 4, 3, 3,
    3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2,
    2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1,
};
/* clang-format on */

/* log2(2^a + 2^b), all in Q16 */
static int64_t log_add(int64_t a, int64_t b)
{
    int64_t top = a > b ? a : b;
    uint64_t d = (uint64_t)(a > b ? a - b : b - a), i = d >> 12;

    if (i + 1 >= COR_COUNT(log_table))
        return top;
    return top + log_table[i] - (int64_t)((log_table[i] - log_table[i + 1]) * (d & 4095) >> 12);
}

/* What a use at this time weighs, in the policy's unit. DECAY: log2 of the weight, which grows with time, so
 * that nothing has to be aged. */
static int64_t use_at(const struct run_slots *s, int64_t at)
{
    return s->policy.kind == RUN_LRU     ? at * SCORE_ONE
           : s->policy.kind == RUN_DECAY ? at * SCORE_ONE / s->policy.half_life
                                         : SCORE_ONE;
}

void run_slots_touch(struct run_slots *s, uint32_t i, int64_t at)
{
    int64_t use = use_at(s, at), *score = &s->score[i];

    if (*score == NEVER || s->policy.kind == RUN_LRU)
        *score = use;
    else if (s->policy.kind == RUN_LFU)
        *score += use;
    else
        *score = log_add(*score, use);
}

/* Q16 octaves that the layer's experts lose, or gain below its share. */
static int64_t soft_quota(const struct run_slots *s, uint32_t of, uint32_t gain)
{
    int64_t share = s->share[of] ? s->share[of] : 1;

    return RUN_SOFT_QUOTA * SCORE_ONE * ((int64_t)s->held[of] - s->set_held[of] + gain - share) / share;
}

int64_t run_slots_score(const struct run_slots *s, uint32_t layer, uint32_t i)
{
    int64_t score = s->score[i];
    uint32_t of = i / s->n_experts;

    if (score == NEVER)
        return score;
    if (s->in_chunk && of > layer && s->policy.kind != RUN_LFU)
        score += use_at(s, s->chunk_tokens);
    if (s->policy.scope == RUN_SCOPE_AUTO && s->policy.kind == RUN_DECAY)
        score -= soft_quota(s, of, of == layer ? s->set_gain : 0);
    return score;
}

/* ---- creation
 * ------------------------------------------------------------------------------------------------ */

static uint32_t allowed_in(const struct run_slots_params *p, uint32_t layer)
{
    return p->allowed && p->allowed[layer] < p->n_experts ? p->allowed[layer] : p->n_experts;
}

static uint32_t least(const struct run_slots_params *p, uint32_t allowed)
{
    uint32_t n = p->least > p->n_used + 1 ? p->least : p->n_used + 1;

    return allowed < n ? allowed : n;
}

uint32_t run_slots_floor(const struct run_slots_params *p)
{
    uint32_t sum = 0, most = 0;

    for (uint32_t l = 0; l < p->n_layers; l++) {
        uint32_t n = least(p, allowed_in(p, l));

        sum += n;
        most = n > most ? n : most;
    }
    return p->layer_slots ? most * p->n_layers : sum;
}

/* Policy and shares for the size of now. */
static void settle(struct run_slots *s)
{
    uint32_t left = s->n_slots;

    for (uint32_t l = 0; l < s->n_layers; l++)
        s->share[l] = s->layer_slots;
    s->policy = s->asked;
    if (s->layer_slots)
        s->policy.scope = RUN_SCOPE_LAYER;

    if (s->policy.kind == RUN_DECAY && !s->policy.half_life)
        s->policy.half_life = RUN_HALF_LIFE;
    for (bool given = true; given && !s->layer_slots;) {
        given = false;
        for (uint32_t l = 0; l < s->n_layers && left; l++)
            if (s->share[l] < s->allowed[l]) {
                s->share[l]++;
                left--;
                given = true;
            }
    }
}

static enum vkmoe_status allocate(struct run_slots *s, struct vkmoe_err *err)
{
    size_t bank = (size_t)s->n_layers * s->n_experts;

    s->slot_of = cor_array(bank, sizeof(*s->slot_of));
    s->score = cor_array(bank, sizeof(*s->score));
    s->gone = cor_array(bank, sizeof(*s->gone));
    s->before = cor_array(bank / 32 + 1, sizeof(*s->before));
    s->owner = cor_array(s->cap, sizeof(*s->owner));
    s->in_set = cor_array(s->cap, sizeof(*s->in_set));
    s->allowed = cor_array(s->n_layers, sizeof(*s->allowed));
    s->floor = cor_array(s->n_layers, sizeof(*s->floor));
    s->share = cor_array(s->n_layers, sizeof(*s->share));
    s->held = cor_array(s->n_layers, sizeof(*s->held));
    s->set_held = cor_array(s->n_layers, sizeof(*s->set_held));
    if (!s->slot_of || !s->score || !s->gone || !s->before || !s->owner || !s->in_set || !s->allowed ||
        !s->floor || !s->share || !s->held || !s->set_held)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a table of %zu experts", bank);
    for (size_t i = 0; i < bank; i++) {
        s->slot_of[i] = NONE;
        s->score[i] = NEVER;
        s->gone[i] = NEVER_GONE;
    }
    for (uint32_t i = 0; i < s->cap; i++)
        s->owner[i] = NONE;
    return VKMOE_OK;
}

enum vkmoe_status run_slots_create(struct run_slots **out, const struct run_slots_params *p,
                                   struct vkmoe_err *err)
{
    struct run_slots *s = cor_zalloc(sizeof(*s));
    enum vkmoe_status st = VKMOE_OK;
    uint32_t bank = p->n_layers * p->n_experts;

    *out = NULL;
    assert(p->n_layers && p->n_experts && p->n_experts <= MAX_EXPERTS && p->n_used && p->n_used <= MAX_TOP_K);
    assert(!p->layer_slots || p->n_slots == p->n_layers * p->layer_slots);
    if (!s)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the slot table");
    if (p->n_slots < run_slots_floor(p))
        FAIL(VKMOE_ERR_LIMIT,
             "%" PRIu32 " expert slots are too few, the smallest number that works is %" PRIu32, p->n_slots,
             run_slots_floor(p));
    s->n_layers = p->n_layers;
    s->n_experts = p->n_experts;
    s->n_used = p->n_used;
    s->layer_slots = p->layer_slots;
    s->n_slots = p->n_slots;
    s->cap = p->n_slots > bank ? p->n_slots : bank;
    s->asked = p->policy;
    s->wave_layer = NONE;
    TRY(allocate(s, err));
    for (uint32_t l = 0; l < p->n_layers; l++) {
        s->allowed[l] = allowed_in(p, l);
        s->floor[l] = least(p, s->allowed[l]);
    }
    settle(s);
    *out = s;
    s = NULL;
done:
    run_slots_destroy(s);
    return st;
}

void run_slots_destroy(struct run_slots *s)
{
    if (!s)
        return;
    cor_free(s->slot_of);
    cor_free(s->score);
    cor_free(s->gone);
    cor_free(s->before);
    cor_free(s->owner);
    cor_free(s->in_set);
    cor_free(s->allowed);
    cor_free(s->floor);
    cor_free(s->share);
    cor_free(s->held);
    cor_free(s->set_held);
    cor_free(s);
}

/* ---- what is where
 * ------------------------------------------------------------------------------------------- */

uint32_t run_slots_find(const struct run_slots *s, uint32_t layer, uint32_t expert)
{
    assert(layer < s->n_layers && expert < s->n_experts);
    return s->slot_of[layer * s->n_experts + expert];
}

const uint32_t *run_slots_table(const struct run_slots *s)
{
    return s->slot_of;
}

const uint32_t *run_slots_owners(const struct run_slots *s)
{
    return s->owner;
}

uint32_t run_slots_count(const struct run_slots *s)
{
    return s->n_slots;
}

uint32_t run_slots_resident(const struct run_slots *s)
{
    return s->n_resident;
}

struct run_policy run_slots_policy(const struct run_slots *s)
{
    return s->policy;
}

void run_slots_stats(const struct run_slots *s, struct run_slots_stats *out)
{
    *out = (struct run_slots_stats){0};
    run_slots_stats_add(
        out,
        &(struct run_slots_stats){
            .cold = s->cold, .warm = s->warm, .prefill = s->prefill, .drops = s->drops, .placed = s->placed});
}

static void add_counts(struct run_slots_counts *a, const struct run_slots_counts *b)
{
    a->tokens += b->tokens;
    a->visits += b->visits;
    a->hits += b->hits;
    a->misses += b->misses;
    a->evictions += b->evictions;
    a->blocking_visits += b->blocking_visits;
    a->reuploads += b->reuploads;
}

void run_slots_stats_add(struct run_slots_stats *a, const struct run_slots_stats *b)
{
    struct run_slots_prefill *p = &a->prefill;

    add_counts(&a->cold, &b->cold);
    add_counts(&a->warm, &b->warm);
    a->total = a->cold;
    add_counts(&a->total, &a->warm);
    p->chunks += b->prefill.chunks;
    p->tokens += b->prefill.tokens;
    p->hits += b->prefill.hits;
    p->loads += b->prefill.loads;
    p->evictions += b->prefill.evictions;
    p->displaced += b->prefill.displaced;
    a->drops += b->drops;
    a->placed += b->placed;
}

static void vacate(struct run_slots *s, uint32_t slot)
{
    uint32_t i = s->owner[slot];

    s->owner[slot] = NONE;
    s->slot_of[i] = NONE;
    s->held[i / s->n_experts]--;
    s->n_resident--;
}

uint32_t run_slots_assign(struct run_slots *s, uint32_t i, uint32_t slot)
{
    uint32_t victim = s->owner[slot];

    assert(slot < s->n_slots && s->slot_of[i] == NONE);
    if (victim != NONE) {
        vacate(s, slot);
        s->gone[victim] = s->clock + (s->in_chunk ? s->chunk_tokens : 0);
    }
    s->owner[slot] = i;
    s->slot_of[i] = slot;
    s->held[i / s->n_experts]++;
    s->n_resident++;
    return victim;
}

void run_slots_drop(struct run_slots *s, uint32_t layer, uint32_t expert)
{
    uint32_t slot = run_slots_find(s, layer, expert);

    if (slot == NONE)
        return;
    vacate(s, slot);
    s->drops++;
}

/* ---- victims
 * ------------------------------------------------------------------------------------------------- */

void run_slots_range(const struct run_slots *s, uint32_t layer, uint32_t *first, uint32_t *end)
{
    *first = layer * s->layer_slots;
    *end = s->layer_slots ? *first + s->layer_slots : s->n_slots;
}

uint32_t run_slots_free(const struct run_slots *s, uint32_t layer, uint32_t from)
{
    uint32_t first, end;

    if (s->n_resident == s->n_slots)
        return NONE;
    run_slots_range(s, layer, &first, &end);
    for (uint32_t i = from > first ? from : first; i < end; i++)
        if (s->owner[i] == NONE)
            return i;
    return NONE;
}

/* May `layer` take a slot from layer `of`? Slots of the set in hand count as taken already. */
static bool may_take(const struct run_slots *s, uint32_t layer, uint32_t of)
{
    uint32_t rest = s->held[of] - s->set_held[of];

    if (s->policy.scope != RUN_SCOPE_LAYER)
        return of == layer || rest > s->floor[of];
    /* A layer has less than its share and finds nothing free only after a change of size or scope. */
    return s->held[layer] < s->share[layer] ? rest > s->share[of] : of == layer;
}

/* Layers until the next visit, from the layer in hand on: 1 .. n_layers */
static uint32_t distance(const struct run_slots *s, uint32_t layer, uint32_t of)
{
    return of > layer ? of - layer : of + s->n_layers - layer;
}

uint32_t run_slots_victim(const struct run_slots *s, uint32_t layer, run_slots_may_fn may, const void *user)
{
    uint32_t first, end, best = NONE, best_far = 0;
    int64_t best_score = 0;

    run_slots_range(s, layer, &first, &end);
    for (uint32_t i = first; i < end; i++) {
        uint32_t o = s->owner[i], of, far;
        int64_t score;

        if (o == NONE)
            continue;
        of = o / s->n_experts;
        if (!may_take(s, layer, of) || !may(user, i, of, o % s->n_experts))
            continue;
        score = run_slots_score(s, layer, o);
        far = distance(s, layer, of);
        if (best == NONE || score < best_score || (score == best_score && far > best_far)) {
            best = i;
            best_score = score;
            best_far = far;
        }
    }
    return best;
}

/* ---- decode
 * -------------------------------------------------------------------------------------------------- */

struct visit {
    uint32_t layer;
    uint32_t chosen[MAP_WORDS];
};

static bool not_chosen(const void *user, uint32_t slot, uint32_t of, uint32_t expert)
{
    const struct visit *v = user;

    (void)slot;
    return of != v->layer || !map_has(v->chosen, expert);
}

static uint32_t slot_for(const struct run_slots *s, const struct visit *v)
{
    uint32_t slot = NONE;

    if (s->policy.scope != RUN_SCOPE_LAYER || s->held[v->layer] < s->share[v->layer])
        slot = run_slots_free(s, v->layer, 0);
    return slot != NONE ? slot : run_slots_victim(s, v->layer, not_chosen, v);
}

uint32_t run_slots_visit(struct run_slots *s, uint32_t layer, const uint32_t *sel,
                         struct run_slots_load *loads)
{
    struct run_slots_counts *c = s->cold.tokens < RUN_COLD_TOKENS ? &s->cold : &s->warm;
    struct visit v = {.layer = layer};
    uint32_t absent[MAX_TOP_K], n_absent = 0;

    assert(layer < s->n_layers && !s->in_chunk);
    for (uint32_t j = 0; j < s->n_used; j++) {
        uint32_t e = sel[2 * j], i = layer * s->n_experts + e;

        if (e >= s->n_experts || map_has(v.chosen, e)) /* NONE, or one that the caller should not give */
            continue;
        map_set(v.chosen, e);
        run_slots_touch(s, i, s->clock);
        if (s->slot_of[i] == NONE)
            absent[n_absent++] = e;
        else
            c->hits++;
    }
    for (uint32_t j = 0; j < n_absent; j++) {
        uint32_t slot = slot_for(s, &v), i = layer * s->n_experts + absent[j];

        assert(slot != NONE); /* the floor leaves k + 1 slots or room for all that is allowed */
        c->reuploads += s->clock - s->gone[i] < RUN_REUPLOAD_TOKENS;
        loads[j] = (struct run_slots_load){absent[j], slot, run_slots_assign(s, i, slot)};
        c->evictions += loads[j].victim != NONE;
    }
    c->visits++;
    c->misses += n_absent;
    c->blocking_visits += n_absent > 0;
    return n_absent;
}

void run_slots_token_end(struct run_slots *s)
{
    struct run_slots_counts *c = s->cold.tokens < RUN_COLD_TOKENS ? &s->cold : &s->warm;

    assert(!s->in_chunk);
    c->tokens++;
    s->clock++;
}

/* ---- size
 * ---------------------------------------------------------------------------------------------------- */

enum vkmoe_status run_slots_shrink(struct run_slots *s, uint32_t n_slots, uint32_t *dropped,
                                   uint32_t *n_dropped, struct vkmoe_err *err)
{
    uint32_t floor = 0;

    assert(n_slots <= s->n_slots && !s->in_chunk);
    *n_dropped = 0;
    for (uint32_t l = 0; l < s->n_layers; l++)
        floor += s->floor[l];
    if (s->layer_slots)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "slots that belong to layers cannot be given back");
    if (n_slots < floor)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%" PRIu32 " expert slots are too few, the smallest number that works is %" PRIu32,
                        n_slots, floor);
    for (uint32_t i = n_slots; i < s->n_slots; i++) {
        if (s->owner[i] == NONE)
            continue;
        dropped[(*n_dropped)++] = s->owner[i];
        s->gone[s->owner[i]] = s->clock;
        vacate(s, i);
    }
    s->n_slots = n_slots;
    settle(s);
    return VKMOE_OK;
}

enum vkmoe_status run_slots_grow(struct run_slots *s, uint32_t n_slots, struct vkmoe_err *err)
{
    assert(n_slots >= s->n_slots && !s->in_chunk);
    if (s->layer_slots)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "slots that belong to layers cannot become more");
    if (n_slots > s->cap)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%" PRIu32 " expert slots are more than the %" PRIu32 " experts", n_slots, s->cap);
    s->n_slots = n_slots;
    settle(s);
    return VKMOE_OK;
}

/* ---- the hot set
 * --------------------------------------------------------------------------------------------- */

static bool hotter(const struct run_slots *s, uint32_t a, uint32_t b)
{
    return s->score[a] > s->score[b] || (s->score[a] == s->score[b] && a < b);
}

uint32_t run_slots_hot(const struct run_slots *s, uint32_t *list)
{
    uint32_t n = 0, gap = 1;

    for (uint32_t i = 0; i < s->n_layers * s->n_experts; i++)
        if (s->score[i] != NEVER)
            list[n++] = i;
    while (gap < n / 3)
        gap = gap * 3 + 1;
    for (; gap; gap /= 3)
        for (uint32_t i = gap; i < n; i++) {
            uint32_t v = list[i], j = i;

            for (; j >= gap && hotter(s, v, list[j - gap]); j -= gap)
                list[j] = list[j - gap];
            list[j] = v;
        }
    return n;
}

uint32_t run_slots_place(struct run_slots *s, uint32_t layer, uint32_t expert)
{
    uint32_t i = layer * s->n_experts + expert, slot = NONE;

    if (run_slots_find(s, layer, expert) != NONE)
        return NONE;
    if (s->policy.scope != RUN_SCOPE_LAYER || s->held[layer] < s->share[layer])
        slot = run_slots_free(s, layer, 0);
    if (slot == NONE)
        return NONE;
    run_slots_assign(s, i, slot);
    if (s->score[i] == NEVER) /* less than one use now, in the order of the calls */
        s->score[i] = use_at(s, s->clock) - (s->policy.kind == RUN_LFU ? 1 : SCORE_ONE) - (int64_t)s->placed;
    s->placed++;
    return slot;
}
