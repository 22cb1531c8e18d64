#include "experts/profile.h"

#include <math.h>
#include <string.h>

#include "core/alloc.h"

enum vkmoe_status xp_profile_init(struct xp_profile *p, uint32_t n_layers, uint32_t n_experts,
                                  const uint32_t *counts, struct vkmoe_err *err)
{
    *p = (struct xp_profile){.n_layers = n_layers, .n_experts = n_experts};
    p->counts = cor_array(n_layers, sizeof(*p->counts));
    p->sum = cor_array((size_t)n_layers * n_experts, sizeof(*p->sum));
    p->tokens = cor_array(n_layers, sizeof(*p->tokens));
    p->row = cor_array(n_experts, sizeof(*p->row));
    if (!p->counts || !p->sum || !p->tokens || !p->row)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the routing of %u layers by %u experts",
                        n_layers, n_experts);
    for (uint32_t l = 0; l < n_layers; l++)
        p->counts[l] = counts ? counts[l] : n_experts;
    return VKMOE_OK;
}

void xp_profile_free(struct xp_profile *p)
{
    cor_free(p->counts);
    cor_free(p->sum);
    cor_free(p->tokens);
    cor_free(p->row);
    memset(p, 0, sizeof(*p));
}

void xp_profile_softmax(double *p, const float *logits, uint32_t n)
{
    double top = -HUGE_VAL, sum = 0;

    for (uint32_t e = 0; e < n; e++)
        if (logits[e] > top) /* false for what is no number */
            top = logits[e];
    for (uint32_t e = 0; e < n; e++) {
        p[e] = logits[e] == top ? 1 : logits[e] < top ? exp(logits[e] - top) : 0;
        sum += p[e];
    }
    for (uint32_t e = 0; e < n; e++)
        p[e] = sum > 0 ? p[e] / sum : 1.0 / n;
}

void xp_profile_add(void *user, const struct vkmoe_watched *w)
{
    struct xp_profile *p = user;
    double *sum = p->sum + (size_t)w->layer * p->n_experts;
    uint32_t n = p->counts[w->layer];

    for (uint32_t t = 0; t < w->n_tokens; t++) {
        xp_profile_softmax(p->row, w->logits + (size_t)t * w->n_experts, n);
        for (uint32_t e = 0; e < n; e++)
            sum[e] += p->row[e];
    }
    p->tokens[w->layer] += w->n_tokens;
}

double xp_profile_mean(const struct xp_profile *p, uint32_t layer, uint32_t expert)
{
    return p->tokens[layer] ? p->sum[(size_t)layer * p->n_experts + expert] / (double)p->tokens[layer] : 0;
}

double xp_profile_entropy(const struct xp_profile *p, uint32_t layer)
{
    double bits = 0;

    for (uint32_t e = 0; e < p->counts[layer]; e++) {
        double m = xp_profile_mean(p, layer, e);

        if (m > 0)
            bits -= m * log2(m);
    }
    return bits > 0 ? bits : 0; /* rounding may leave it just below */
}

uint32_t xp_profile_above(const struct xp_profile *p, uint32_t layer)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < p->counts[layer]; e++)
        n += xp_profile_mean(p, layer, e) > 1.0 / p->counts[layer];
    return n;
}

uint32_t xp_profile_best(const struct xp_profile *p, uint32_t layer, uint32_t top, uint32_t *ids)
{
    const double *sum = p->sum + (size_t)layer * p->n_experts;
    uint32_t n = 0;

    for (uint32_t e = 0; e < p->counts[layer]; e++) {
        uint32_t at = n < top ? n : top;

        while (at > 0 && sum[e] > sum[ids[at - 1]])
            at--;
        if (at == top)
            continue;
        n += n < top;
        memmove(ids + at + 1, ids + at, (n - 1 - at) * sizeof(*ids));
        ids[at] = e;
    }
    return n;
}

double xp_profile_mass(const struct xp_profile *p, uint32_t layer, uint32_t top, uint32_t *ids)
{
    uint32_t n = xp_profile_best(p, layer, top, ids);
    double mass = 0;

    for (uint32_t i = 0; i < n; i++)
        mass += xp_profile_mean(p, layer, ids[i]);
    return mass;
}

double xp_profile_cosine(const struct xp_profile *a, const struct xp_profile *b, uint32_t layer)
{
    double ab = 0, aa = 0, bb = 0;

    for (uint32_t e = 0; e < a->counts[layer]; e++) {
        double x = xp_profile_mean(a, layer, e), y = xp_profile_mean(b, layer, e);

        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
}

double xp_jaccard(const uint32_t *a, uint32_t n_a, const uint32_t *b, uint32_t n_b)
{
    uint32_t both = 0;

    for (uint32_t i = 0; i < n_a; i++)
        for (uint32_t j = 0; j < n_b; j++)
            both += a[i] == b[j];
    return n_a + n_b ? (double)both / (double)(n_a + n_b - both) : 1;
}
