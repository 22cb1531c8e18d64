#include "model/rope.h"

#include <math.h>

#define PI 3.14159265358979323846

/* The pair that makes so many turns over the original context, as a fraction. */
static double pair_of(const struct mdl_config *c, double turns)
{
    return c->n_rot * log(c->rope_scaling.n_ctx_orig / (turns * 2 * PI)) / (2 * log((double)c->rope_theta));
}

/* 1: the wave keeps its length, 0: it is stretched. */
static double kept(const struct mdl_config *c, uint32_t pair)
{
    double low = fmax(0, floor(pair_of(c, c->rope_scaling.beta_fast)));
    double high = fmin(c->n_rot - 1.0, ceil(pair_of(c, c->rope_scaling.beta_slow)));
    double along = (pair - low) / fmax(0.001, high - low);

    return 1 - fmin(1, fmax(0, along));
}

double mdl_rope_freqs(const struct mdl_config *c, const float *factors, double *freq)
{
    const struct mdl_rope_scaling *s = &c->rope_scaling;
    double factor = s->factor > 0 ? (double)s->factor : 1;
    double attn = s->attn_factor > 0 ? (double)s->attn_factor : 1;

    for (uint32_t i = 0; i < c->n_rot / 2; i++) {
        freq[i] = pow((double)c->rope_theta, -2.0 * i / c->n_rot);
        if (factors)
            freq[i] /= (double)factors[i];
        if (s->yarn)
            freq[i] *= kept(c, i) + (1 - kept(c, i)) / factor;
        else
            freq[i] /= factor;
    }
    return s->yarn ? attn * (1 + 0.1 * log(factor)) : attn;
}
