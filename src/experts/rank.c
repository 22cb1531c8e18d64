#include "experts/rank.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>

#include "core/alloc.h"
#include "core/rand.h"

/* ---- budgets as typed
 * ------------------------------------------------------------------------------------------- */

/* Digits only, at most max; *end: behind them. */
static bool parse_count(const char *text, uint32_t max, uint32_t *v, const char **end)
{
    uint64_t n = 0;

    for (*end = text; **end >= '0' && **end <= '9' && n <= max; ++*end)
        n = 10 * n + (uint64_t)(**end - '0');
    *v = (uint32_t)n;
    return *end > text && n <= max;
}

/* "12.5%": above 0, at most 100. */
static bool parse_percent(const char *text, double *v)
{
    double unit = 1;
    uint32_t whole;

    if (!parse_count(text, 100, &whole, &text))
        return false;
    *v = whole;
    if (*text == '.')
        for (text++; *text >= '0' && *text <= '9'; text++)
            *v += (unit /= 10) * (*text - '0');
    return text[0] == '%' && !text[1] && *v > 0 && *v <= 100;
}

enum vkmoe_status xp_budget_keep(struct xp_budget *b, const char *text, struct vkmoe_err *err)
{
    const char *end;

    *b = (struct xp_budget){.kind = XP_KEEP};
    if (parse_percent(text, &b->percent)) {
        b->kind = XP_PERCENT;
        return VKMOE_OK;
    }
    if (!parse_count(text, 2 * XP_SUBSET_EXPERTS, &b->keep, &end) || *end || !b->keep)
        return cor_fail(err, VKMOE_ERR_ARGUMENT,
                        "'%s' is neither a number of experts per layer nor a percentage as 12.5%%", text);
    return VKMOE_OK;
}

enum vkmoe_status xp_budget_per_layer(struct xp_budget *b, const char *text, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const char *at = text, *end;

    *b = (struct xp_budget){.kind = XP_PER_LAYER};
    b->list = cor_array(XP_SUBSET_LAYERS, sizeof(*b->list));
    if (!b->list)
        FAIL(VKMOE_ERR_MEMORY, "no memory for a budget of each layer");
    for (;; at = end + 1) {
        uint32_t n;

        if (!parse_count(at, 2 * XP_SUBSET_EXPERTS, &n, &end) || (*end && *end != ','))
            FAIL(VKMOE_ERR_ARGUMENT, "'%s' is not a number of experts for each layer, as 16,16,12", text);
        if (b->n_list == XP_SUBSET_LAYERS)
            FAIL(VKMOE_ERR_ARGUMENT, "budgets for more than %u layers", XP_SUBSET_LAYERS);
        b->list[b->n_list++] = n;
        if (!*end)
            break;
    }
done:
    if (st != VKMOE_OK)
        xp_budget_free(b);
    return st;
}

enum vkmoe_status xp_budget_coverage(struct xp_budget *b, const char *text, struct vkmoe_err *err)
{
    *b = (struct xp_budget){.kind = XP_COVERAGE};
    if (!parse_percent(text, &b->percent))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "'%s' is not a percentage as 95%%", text);
    return VKMOE_OK;
}

void xp_budget_free(struct xp_budget *b)
{
    cor_free(b->list);
    *b = (struct xp_budget){0};
}

/* ---- budgets of a model
 * --------------------------------------------------------------------------------------- */

static enum vkmoe_status check_keep(uint32_t keep, const struct xp_shape *s, struct vkmoe_err *err)
{
    uint32_t least = s->n_used + s->n_shared, most = s->n_routed + s->n_shared;

    if (keep < least)
        return cor_fail(err, VKMOE_ERR_ARGUMENT,
                        "keeping %" PRIu32 " experts of a layer is too few: a token uses %" PRIu32
                        " routed and %" PRIu32 " shared ones, so %" PRIu32 " is the smallest that works",
                        keep, s->n_used, s->n_shared, least);
    if (keep > most)
        return cor_fail(err, VKMOE_ERR_ARGUMENT,
                        "keeping %" PRIu32 " experts of a layer is too many: it has %" PRIu32, keep, most);
    return VKMOE_OK;
}

enum vkmoe_status xp_budget_fit(struct xp_budget *b, const struct xp_shape *s, bool *rounded,
                                struct vkmoe_err *err)
{
    double exact = b->percent / 100 * (s->n_routed + s->n_shared);
    enum vkmoe_status st = VKMOE_OK;

    if (rounded)
        *rounded = false;
    if (b->kind == XP_PERCENT) {
        b->keep = (uint32_t)floor(exact + 0.5);
        if (rounded)
            *rounded = fabs(exact - b->keep) > 1e-9 * exact;
        b->kind = XP_KEEP;
    }
    if (b->kind == XP_KEEP)
        TRY(check_keep(b->keep, s, err));
    if (b->kind == XP_PER_LAYER) {
        if (b->n_list != s->n_layers)
            FAIL(VKMOE_ERR_ARGUMENT, "%" PRIu32 " numbers of experts for %" PRIu32 " layers", b->n_list,
                 s->n_layers);
        for (uint32_t l = 0; l < s->n_layers; l++)
            TRY(check_keep(b->list[l], s, err));
    }
done:
    return st;
}

struct xp_shape xp_stats_shape(const struct xp_stats *s)
{
    return (struct xp_shape){s->n_layers, s->n_routed, s->n_shared, s->n_used};
}

/* ---- order
 * -------------------------------------------------------------------------------------------------- */

void xp_rank_order(uint32_t *ids, const struct xp_sum *score, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;

        for (; at && xp_sum_compare(&score[ids[at - 1]], &score[i]) < 0; at--)
            ids[at] = ids[at - 1];
        ids[at] = i;
    }
}

void xp_rank_shuffle(uint32_t *ids, uint32_t n, uint64_t seed, uint32_t layer)
{
    uint64_t state = seed;

    for (uint32_t l = 0; l <= layer; l++) /* a generator for each layer, seeded by the first one */
        seed = cor_rand(&state);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = i;
    for (uint32_t i = 0; i + 1 < n; i++) {
        uint32_t other = i + (uint32_t)cor_rand_below(&seed, n - i), id = ids[i];

        ids[i] = ids[other];
        ids[other] = id;
    }
}

/* ---- choosing
 * ----------------------------------------------------------------------------------------------- */

static double total(const struct xp_sum *p, uint32_t n)
{
    struct xp_sum all = {0, 0};

    for (uint32_t e = 0; e < n; e++)
        (void)xp_sum_merge(&all, &p[e]); /* about the number of tokens */
    return xp_sum_value(&all);
}

/* How many of the ordered experts hold the share, at least `least`. */
static uint32_t count_covering(const uint32_t *ids, const struct xp_sum *p, uint32_t n, double percent,
                               uint32_t least)
{
    double want = percent / 100 * total(p, n);
    struct xp_sum held = {0, 0};
    uint32_t count = 0;

    while (count < n && (count < least || xp_sum_value(&held) < want))
        (void)xp_sum_merge(&held, &p[ids[count++]]);
    return count;
}

enum vkmoe_status xp_rank_layer(struct xp_subset *to, const struct xp_stats *s, uint32_t layer,
                                const struct xp_budget *b, enum xp_order order, uint64_t seed,
                                struct vkmoe_err *err)
{
    uint32_t n = s->n_there[layer], keep, *ids = cor_array(s->n_routed, sizeof(*ids));
    const struct xp_sum *p = s->probability + (size_t)layer * s->n_routed;

    if (!ids)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory to rank %" PRIu32 " experts", n);
    assert(order != XP_BY_IMPORTANCE || s->importance);
    if (order == XP_BY_CHANCE)
        xp_rank_shuffle(ids, n, seed, layer);
    else
        xp_rank_order(ids, order == XP_BY_IMPORTANCE ? s->importance + (size_t)layer * s->n_routed : p, n);
    if (b->kind == XP_COVERAGE)
        keep = count_covering(ids, p, n, b->percent, s->n_used);
    else
        keep = (b->kind == XP_PER_LAYER ? b->list[layer] : b->keep) - s->n_shared;
    for (uint32_t i = 0; i < keep && i < n; i++)
        xp_subset_set(to, layer, ids[i]);
    cor_free(ids);
    return VKMOE_OK;
}

enum vkmoe_status xp_rank(struct xp_subset *to, const struct xp_stats *s, const struct xp_budget *b,
                          enum xp_order order, uint64_t seed, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t l = 0; l < s->n_layers; l++)
        TRY(xp_rank_layer(to, s, l, b, order, seed, err));
done:
    return st;
}

double xp_rank_held(const struct xp_subset *sub, const struct xp_stats *s, uint32_t layer)
{
    const struct xp_sum *p = s->probability + (size_t)layer * s->n_routed;
    double all = total(p, s->n_routed);
    struct xp_sum held = {0, 0};

    for (uint32_t e = 0; e < s->n_routed; e++)
        if (xp_subset_has(sub, layer, e))
            (void)xp_sum_merge(&held, &p[e]);
    return all > 0 ? xp_sum_value(&held) / all : 0;
}

double xp_rank_chosen(const struct xp_subset *sub, const struct xp_stats *s, uint32_t layer)
{
    const uint64_t *chosen = s->chosen + (size_t)layer * s->n_routed;
    uint64_t all = 0, kept = 0;

    for (uint32_t e = 0; e < s->n_routed; e++) {
        all += chosen[e];
        kept += xp_subset_has(sub, layer, e) ? chosen[e] : 0;
    }
    return all ? (double)kept / (double)all : 0;
}
