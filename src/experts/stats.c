#include "experts/stats.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/bits.h"
#include "core/digest.h"
#include "experts/stats_impl.h"
#include "experts/subset.h"

/* ---- making
 * ------------------------------------------------------------------------------------------------- */

enum vkmoe_status xp_stats_make(struct xp_stats *s, struct vkmoe_err *err)
{
    size_t n = (size_t)s->n_layers * s->n_routed;

    s->n_there = cor_array(s->n_layers, sizeof(*s->n_there));
    s->probability = cor_array(n, sizeof(*s->probability));
    s->chosen = cor_array(n, sizeof(*s->chosen));
    s->seen = cor_array(s->n_layers, sizeof(*s->seen));
    s->row = cor_array(s->n_routed, sizeof(*s->row));
    if (s->family == XP_EASY_EP)
        s->importance = cor_array(n, sizeof(*s->importance));
    s->last_layer = s->n_layers - 1;
    if (s->n_there && s->probability && s->chosen && s->seen && s->row &&
        (s->importance || s->family != XP_EASY_EP))
        return VKMOE_OK;
    xp_stats_free(s);
    return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for statistics of %zu experts", n);
}

enum vkmoe_status xp_stats_init(struct xp_stats *s, const struct mdl_model *m, enum xp_family family,
                                struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->config;
    const struct mdl_tensor *experts = mdl_main_matrix(m);
    enum vkmoe_status st = VKMOE_OK;

    *s = (struct xp_stats){.n_layers = c->n_layers,
                           .n_routed = c->n_experts,
                           .n_shared = c->n_shared,
                           .n_used = c->n_experts_used,
                           .family = family};
    xp_model_name(s->model, m->gguf);
    snprintf(s->type, sizeof(s->type), "%s", experts->known ? mdl_type_find(experts->gguf_type)->name : "");
    TRY(xp_stats_make(s, err));
    for (uint32_t l = 0; l < s->n_layers; l++)
        s->n_there[l] = mdl_expert_count(m, l);
done:
    return st;
}

void xp_stats_free(struct xp_stats *s)
{
    cor_free(s->n_there);
    cor_free(s->probability);
    cor_free(s->chosen);
    cor_free(s->importance);
    cor_free(s->seen);
    cor_free(s->row);
    *s = (struct xp_stats){0};
}

/* ---- counting
 * ------------------------------------------------------------------------------------------------- */

void xp_softmax(float *p, const float *logits, uint32_t n)
{
    double top = logits[0], sum = 0;

    for (uint32_t e = 1; e < n; e++)
        top = logits[e] > top ? logits[e] : top;
    for (uint32_t e = 0; e < n; e++)
        sum += exp(logits[e] - top);
    for (uint32_t e = 0; e < n; e++)
        p[e] = (float)(exp(logits[e] - top) / sum);
}

double xp_turn(double hh, double hm, double mm)
{
    double length2 = hh + 2 * hm + mm, cosine, sine2;

    if (!(hh > 0) || !(length2 > 0))
        return 1; /* a cosine with nothing counts as 0 */
    cosine = (hh + hm) / sqrt(hh * length2);
    if (cosine < 0)
        return 1 - cosine;
    /* 1 - cosine would cancel where m hardly turns h. */
    sine2 = (hh * mm - hm * hm) / (hh * length2);
    return sine2 > 0 ? sine2 / (1 + cosine) : 0;
}

static void add_probabilities(struct xp_stats *s, uint32_t layer, const float *logits)
{
    struct xp_sum *sum = s->probability + (size_t)layer * s->n_routed;

    xp_softmax(s->row, logits, s->n_there[layer]);
    for (uint32_t e = 0; e < s->n_there[layer]; e++)
        if (!xp_sum_add(&sum[e], s->row[e]) && s->failed.status == VKMOE_OK)
            cor_fail(&s->failed, VKMOE_ERR_NUMERIC,
                     "layer %" PRIu32 ": the router gives no finite probability", layer);
}

/* One token's choices. sums: h.h, h.m, m.m, then y.y of each rank. */
static void add_choices(struct xp_stats *s, uint32_t layer, const uint32_t *pairs, uint32_t n_used,
                        const float *sums)
{
    size_t row = (size_t)layer * s->n_routed;
    double turn = sums ? xp_turn(sums[0], sums[1], sums[2]) : 0;

    for (uint32_t rank = 0; rank < n_used; rank++) {
        uint32_t id = pairs[2 * rank];

        if (id >= s->n_routed) /* fewer were allowed */
            continue;
        s->chosen[row + id]++;
        if (s->importance && sums &&
            !xp_sum_add(&s->importance[row + id],
                        cor_float_from_bits(pairs[2 * rank + 1]) * sqrt(sums[3 + rank]) * turn) &&
            s->failed.status == VKMOE_OK)
            cor_fail(&s->failed, VKMOE_ERR_NUMERIC,
                     "layer %" PRIu32 ", expert %" PRIu32 ": an importance that is not finite or past 2^64",
                     layer, id);
    }
}

/* Those that the router would choose, from the probabilities in s->row: ties to the lower id. Takes them out
 * of the row. */
static void add_best(struct xp_stats *s, uint32_t layer, uint32_t n_used)
{
    uint32_t n = s->n_there[layer];

    for (uint32_t rank = 0; rank < n_used && rank < n; rank++) {
        uint32_t best = 0;

        for (uint32_t e = 1; e < n; e++)
            if (s->row[e] > s->row[best])
                best = e;
        s->row[best] = -1;
        s->chosen[(size_t)layer * s->n_routed + best]++;
    }
}

void xp_stats_add(void *user, const struct vkmoe_watched *w)
{
    struct xp_stats *s = user;

    if (w->layer < s->first_layer || w->layer > s->last_layer)
        return;
    assert(w->layer < s->n_layers && w->n_experts == s->n_routed);
    if (s->importance && !w->sums && s->failed.status == VKMOE_OK)
        cor_fail(&s->failed, VKMOE_ERR_ARGUMENT, "easy-ep needs a session that watches experts");
    for (uint32_t t = 0; t < w->n_tokens; t++) {
        add_probabilities(s, w->layer, w->logits + (size_t)t * w->n_experts);
        if (w->pairs)
            add_choices(s, w->layer, w->pairs + (size_t)t * w->n_used * 2, w->n_used,
                        w->sums ? w->sums + (size_t)t * (3 + w->n_used) : NULL);
        else
            add_best(s, w->layer, w->n_used);
    }
    s->seen[w->layer] += w->n_tokens;
}

/* a += b, lowest word first, modulo 2^256. */
static void add_words(uint64_t a[4], const uint64_t b[4])
{
    uint64_t carry = 0;

    for (int i = 0; i < 4; i++) {
        uint64_t sum = a[i] + carry;

        carry = sum < carry;
        a[i] = sum + b[i];
        carry += a[i] < sum;
    }
}

enum vkmoe_status xp_stats_check(const struct xp_stats *s, struct vkmoe_err *err)
{
    if (s->failed.status == VKMOE_OK)
        return VKMOE_OK;
    return cor_fail(err, s->failed.status, "document %" PRIu64 ": %s", s->documents, s->failed.message);
}

enum vkmoe_status xp_stats_document(struct xp_stats *s, const void *text, size_t n, bool truncated,
                                    struct vkmoe_err *err)
{
    enum vkmoe_status st = xp_stats_check(s, err);
    uint8_t bytes[COR_SHA256_BYTES];
    struct cor_sha256 h;
    uint64_t words[4] = {0};

    if (st != VKMOE_OK)
        return st;
    cor_sha256_begin(&h);
    cor_sha256_add(&h, text, n);
    cor_sha256_end(&h, bytes);
    for (int i = 0; i < COR_SHA256_BYTES; i++)
        words[3 - i / 8] = words[3 - i / 8] << 8 | bytes[i];
    add_words(s->digest, words);
    s->documents++;
    s->truncated += truncated;
    s->tokens = s->seen[s->first_layer];
    return VKMOE_OK;
}

const char *xp_stats_digest(char hex[65], const struct xp_stats *s)
{
    snprintf(hex, 65, "%016" PRIx64 "%016" PRIx64 "%016" PRIx64 "%016" PRIx64, s->digest[3], s->digest[2],
             s->digest[1], s->digest[0]);
    return hex;
}

/* ---- adding
 * ------------------------------------------------------------------------------------------------- */

static enum vkmoe_status same_model(const struct xp_stats *a, const struct xp_stats *b, const char *a_name,
                                    const char *b_name, struct vkmoe_err *err)
{
    if (strcmp(a->model, b->model))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "%s: statistics of '%s', %s is of '%s'", b_name, b->model,
                        a_name, a->model);
    if (a->n_layers != b->n_layers || a->n_routed != b->n_routed || a->n_shared != b->n_shared ||
        a->n_used != b->n_used || memcmp(a->n_there, b->n_there, a->n_layers * sizeof(*a->n_there)) != 0)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "%s: statistics of a model of another shape than %s", b_name,
                        a_name);
    if (strcmp(a->type, b->type))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "%s: statistics of a model in %s, %s is of one in %s",
                        b_name, b->type, a_name, a->type);
    if (a->family != b->family)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "%s: statistics of method %s, %s is of %s", b_name,
                        xp_family_name(b->family), a_name, xp_family_name(a->family));
    return VKMOE_OK;
}

enum vkmoe_status xp_stats_merge(struct xp_stats *a, const struct xp_stats *b, const char *a_name,
                                 const char *b_name, struct vkmoe_err *err)
{
    size_t n = (size_t)a->n_layers * a->n_routed;
    enum vkmoe_status st = VKMOE_OK;
    bool fits = true;

    TRY(same_model(a, b, a_name, b_name, err));
    if (b->tokens > XP_COUNT_MAX - a->tokens || b->documents > XP_COUNT_MAX - a->documents)
        FAIL(VKMOE_ERR_LIMIT, "%s: more than 2^53 tokens together with %s", b_name, a_name);
    for (size_t i = 0; i < n; i++) {
        a->chosen[i] += b->chosen[i]; /* at most the tokens, so it fits */
        fits = xp_sum_merge(&a->probability[i], &b->probability[i]) && fits;
        if (a->importance)
            fits = xp_sum_merge(&a->importance[i], &b->importance[i]) && fits;
    }
    if (!fits)
        FAIL(VKMOE_ERR_LIMIT, "%s: a sum passes 2^64 together with %s", b_name, a_name);
    a->tokens += b->tokens;
    a->documents += b->documents;
    a->truncated += b->truncated;
    add_words(a->digest, b->digest);
done:
    return st;
}
