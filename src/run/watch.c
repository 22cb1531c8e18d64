#include "run/watch.h"

#include <math.h>
#include <string.h>

#include "core/alloc.h"

static const struct mdl_config *config_of(const struct run_watch *w)
{
    return &w->model->mdl->config;
}

static uint32_t *pool_of(const struct run_watch *w, uint32_t layer)
{
    return w->pool + (size_t)layer * run_mask_words(config_of(w));
}

enum vkmoe_status run_watch_create(struct run_watch *w, const struct run_model *m, const struct run_state *s,
                                   uint32_t doc, uint32_t refresh, struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;

    w->model = m;
    w->state = s;
    w->doc = doc;
    w->refresh = refresh;
    w->probs = cor_array(c->n_experts, sizeof(*w->probs));
    w->sum = cor_array((size_t)c->n_layers * c->n_experts, sizeof(*w->sum));
    w->pool = cor_array((size_t)c->n_layers * run_mask_words(c), sizeof(*w->pool));
    w->mask = cor_array((size_t)c->n_layers * run_mask_words(c), sizeof(*w->mask));
    if (!w->probs || !w->sum || !w->pool || !w->mask)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the sums of %u routers", c->n_layers);
    run_watch_reset(w);
    return VKMOE_OK;
}

void run_watch_close(struct run_watch *w)
{
    cor_free(w->probs);
    cor_free(w->sum);
    cor_free(w->pool);
    cor_free(w->mask);
    memset(w, 0, sizeof(*w));
}

void run_watch_reset(struct run_watch *w)
{
    const struct mdl_config *c = config_of(w);

    w->picked = false;
    w->since = 0;
    memset(w->sum, 0, (size_t)c->n_layers * c->n_experts * sizeof(*w->sum));
    memset(w->pool, 0, (size_t)c->n_layers * run_mask_words(c) * sizeof(*w->pool));
    memcpy(w->mask, w->model->allowed, (size_t)c->n_layers * run_mask_words(c) * sizeof(*w->mask));
}

/* ---- probabilities
 * ------------------------------------------------------------------------------------------ */

/* (n_tokens, n_experts) as the device wrote them. */
static enum vkmoe_status logits_of(const struct run_watch *w, uint32_t layer, uint32_t n_tokens,
                                   const float **logits, struct vkmoe_err *err)
{
    uint64_t row = config_of(w)->n_experts, first = (uint64_t)layer * w->state->chunk * row;
    enum vkmoe_status st = VKMOE_OK;

    TRY(gpu_buffer_invalidate(w->state->seen, first * 4, n_tokens * row * 4, err));
    *logits = (const float *)gpu_buffer_map(w->state->seen) + first;
done:
    return st;
}

/* Softmax over the experts that the layer has. */
static void find_probs(struct run_watch *w, uint32_t layer, const float *logits)
{
    uint32_t n = mdl_expert_count(w->model->mdl, layer);
    double top = logits[0], sum = 0;

    memset(w->probs, 0, config_of(w)->n_experts * sizeof(*w->probs));
    for (uint32_t e = 1; e < n; e++)
        top = logits[e] > top ? logits[e] : top;
    for (uint32_t e = 0; e < n; e++)
        sum += w->probs[e] = exp(logits[e] - top);
    for (uint32_t e = 0; e < n; e++)
        w->probs[e] /= sum;
}

static void add_probs(struct run_watch *w, uint32_t layer)
{
    const struct mdl_config *c = config_of(w);

    for (uint32_t e = 0; e < c->n_experts; e++)
        w->sum[(size_t)layer * c->n_experts + e] += w->probs[e];
}

enum vkmoe_status run_watch_sum(struct run_watch *w, uint32_t layer, uint32_t n_tokens, struct vkmoe_err *err)
{
    const float *logits;
    enum vkmoe_status st = VKMOE_OK;

    TRY(logits_of(w, layer, n_tokens, &logits, err));
    for (uint32_t t = 0; t < n_tokens; t++) {
        find_probs(w, layer, logits + (size_t)t * config_of(w)->n_experts);
        add_probs(w, layer);
    }
done:
    return st;
}

/* ---- a layer that is complete
 * ------------------------------------------------------------------------------- */

static void count_outside(struct run_watch *w, uint32_t layer, uint32_t n_tokens, const float *logits)
{
    const struct mdl_config *c = config_of(w);
    bool decode = n_tokens == 1;
    double *to = decode ? &w->outside.decoded : &w->outside.prompt;

    for (uint32_t t = 0; t < n_tokens; t++) {
        double out = 0;

        find_probs(w, layer, logits + (size_t)t * c->n_experts);
        for (uint32_t e = 0; e < c->n_experts; e++)
            out += run_mask_has(w->state->allowed, c, layer, e) ? 0 : w->probs[e];
        *to += out / (c->n_layers - c->n_dense_layers);
        if (w->doc && !w->summed)
            add_probs(w, layer);
    }
    if (layer + 1 == c->n_layers)
        *(decode ? &w->outside.tokens : &w->outside.prompt_tokens) += n_tokens;
}

static enum vkmoe_status sums_of(const struct run_watch *w, uint32_t layer, uint32_t n_tokens,
                                 const float **sums, struct vkmoe_err *err)
{
    uint64_t row = 3 + config_of(w)->n_experts_used, first = (uint64_t)layer * w->state->chunk * row;
    enum vkmoe_status st = VKMOE_OK;

    *sums = NULL;
    if (!w->state->sums)
        return VKMOE_OK;
    TRY(gpu_buffer_invalidate(w->state->sums, first * 4, n_tokens * row * 4, err));
    *sums = (const float *)gpu_buffer_map(w->state->sums) + first;
done:
    return st;
}

enum vkmoe_status run_watch_layer(struct run_watch *w, uint32_t layer, uint32_t pos, uint32_t n_tokens,
                                  const uint32_t *sel, struct vkmoe_err *err)
{
    const struct mdl_config *c = config_of(w);
    struct vkmoe_watched seen = {.layer = layer,
                                 .pos = pos,
                                 .n_tokens = n_tokens,
                                 .n_experts = c->n_experts,
                                 .n_used = c->n_experts_used,
                                 .pairs = sel};
    enum vkmoe_status st = VKMOE_OK;

    if (!w->state->seen)
        return VKMOE_OK;
    TRY(logits_of(w, layer, n_tokens, &seen.logits, err));
    if (sel) {
        TRY(sums_of(w, layer, n_tokens, &seen.sums, err));
        count_outside(w, layer, n_tokens, seen.logits);
    }
    if (w->fn)
        w->fn(w->user, &seen);
done:
    return st;
}

/* ---- document pools
 * ----------------------------------------------------------------------------------------- */

/* Sums of a text that is not a number anywhere compare like any other. */
static double score(const struct run_watch *w, uint32_t layer, uint32_t e)
{
    double s = w->sum[(size_t)layer * config_of(w)->n_experts + e];

    return isfinite(s) ? s : -1;
}

static void adopt(struct run_watch *w, uint32_t layer)
{
    uint32_t words = run_mask_words(config_of(w));

    memcpy(w->mask + (size_t)layer * words, pool_of(w, layer), words * sizeof(*w->mask));
}

static bool has(const uint32_t *set, uint32_t e)
{
    return set[e / 32] >> (e % 32) & 1;
}

/* The allowed expert that is (inside) or is not in the pool with the largest sum, or the smallest; NONE.
 * Ties: the largest is the lower id, the smallest the higher one. */
static uint32_t extreme(const struct run_watch *w, uint32_t layer, bool inside, bool largest)
{
    const struct mdl_config *c = config_of(w);
    const uint32_t *pool = pool_of(w, layer);
    uint32_t best = NONE;

    for (uint32_t e = 0; e < c->n_experts; e++) {
        if (!run_mask_has(w->model->allowed, c, layer, e) || has(pool, e) != inside)
            continue;
        if (best == NONE || (largest ? score(w, layer, e) > score(w, layer, best)
                                     : score(w, layer, e) <= score(w, layer, best)))
            best = e;
    }
    return best;
}

void run_watch_pick(struct run_watch *w, uint32_t layer)
{
    uint32_t *pool = pool_of(w, layer);

    memset(pool, 0, run_mask_words(config_of(w)) * sizeof(*pool));
    for (uint32_t i = 0; i < w->doc; i++) {
        uint32_t e = extreme(w, layer, false, true);

        if (e == NONE)
            break;
        pool[e / 32] |= 1u << (e % 32);
    }
    adopt(w, layer);
}

bool run_watch_exchange(struct run_watch *w)
{
    uint64_t before = w->outside.exchanged;
    uint32_t most = (w->doc + RUN_DOC_EXCHANGE - 1) / RUN_DOC_EXCHANGE;

    w->outside.refreshes++;
    for (uint32_t l = 0; l < config_of(w)->n_layers; l++) {
        for (uint32_t i = 0; i < most; i++) {
            uint32_t in = extreme(w, l, false, true), out = extreme(w, l, true, false);

            if (in == NONE || out == NONE || score(w, l, in) <= RUN_DOC_MARGIN * score(w, l, out))
                break;
            pool_of(w, l)[in / 32] |= 1u << (in % 32);
            pool_of(w, l)[out / 32] &= ~(1u << (out % 32));
            w->outside.exchanged++;
        }
        adopt(w, l);
    }
    return w->outside.exchanged != before;
}
