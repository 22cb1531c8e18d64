#include "model/ref.h"

#include "core/alloc.h"
#include "model/rope.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#define MAX_WEIGHTS (UINT64_C(1) << 30)
#define CHUNK       (1u << 20) /* bytes read from the file at a time, at least one row */

struct weights { /* of one layer; matrices are (rows, columns) with rows contiguous; NULL: there is none */
    float *attn_norm, *q, *k, *v, *o, *ffn_norm;
    uint32_t n_experts;               /* of this layer */
    float *router;                    /* (n_experts, dim) */
    float *gate, *up, *down;          /* (n_experts, ff, dim) twice, (n_experts, dim, ff) */
    float *gate_sh, *up_sh, *down_sh; /* shared expert or dense FFN: (width, dim) twice, (dim, width) */
    float *q_norm, *k_norm, *q_bias, *k_bias, *v_bias, *o_bias, *sinks, *router_bias;
    float *gate_bias, *up_bias, *down_bias; /* (n_experts, ff) twice, (n_experts, dim) */
    float *shared_gate;                     /* (dim) */
};

struct mdl_ref {
    struct mdl_config c;
    struct mdl_ref_params p;
    uint32_t *allowed;  /* own copy of p.allowed or NULL */
    uint64_t n_weights; /* floats held */
    float *embed, *out_norm, *head;
    struct weights *layers;
    float *keys, *values; /* (n_layers, n_ctx, kv_dim) */
    uint32_t n_past;
    /* of the token in hand */
    float *x, *h;         /* (dim): residual stream and its norm */
    float *q, *att;       /* (n_heads * head_dim) */
    float *act_g, *act_u; /* (widest expert): gate and up projections */
    float *y;             /* (dim): one expert's output */
    float *probs;         /* (n_experts) */
    double *scores;       /* (n_ctx) */
    double *acc;          /* (dim) */
    double *freq;         /* (n_rot / 2): turns of RoPE */
    double rope_scale;
    double *rope;  /* (n_rot / 2, 2): cosine and sine */
    float *logits; /* (vocab_size) */
    struct mdl_ref_watch watch;
};

/* ---- arithmetic
 * -------------------------------------------------------------------------------------------------- */

/* A product of two floats is exact in a double. Eight independent sums, written out, so that the compiler may
 * use vectors without reordering any of them (three times the speed of an inner loop at gcc -O2). */
static double dot(const float *a, const float *b, uint32_t n)
{
    double s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;

    for (; n >= 8; n -= 8, a += 8, b += 8) {
        s0 += (double)a[0] * (double)b[0];
        s1 += (double)a[1] * (double)b[1];
        s2 += (double)a[2] * (double)b[2];
        s3 += (double)a[3] * (double)b[3];
        s4 += (double)a[4] * (double)b[4];
        s5 += (double)a[5] * (double)b[5];
        s6 += (double)a[6] * (double)b[6];
        s7 += (double)a[7] * (double)b[7];
    }
    for (uint32_t i = 0; i < n; i++)
        s0 += (double)a[i] * (double)b[i];
    return ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7));
}

static void matvec(float *y, const float *w, const float *x, uint32_t rows, uint32_t cols)
{
    for (uint32_t r = 0; r < rows; r++)
        y[r] = (float)dot(w + (size_t)r * cols, x, cols);
}

static void rms_norm(float *y, const float *x, const float *w, uint32_t n, float eps)
{
    double scale = 1 / sqrt(dot(x, x, n) / n + (double)eps);

    for (uint32_t i = 0; i < n; i++)
        y[i] = (float)(x[i] * scale * w[i]);
}

/* y += b; b may be NULL. */
static void add_bias(float *y, const float *b, uint32_t n)
{
    for (uint32_t i = 0; b && i < n; i++)
        y[i] += b[i];
}

static void scale_by(float *y, float factor, uint32_t n)
{
    for (uint32_t i = 0; factor > 0 && i < n; i++)
        y[i] *= factor;
}

static void round_cached(enum mdl_type to, float *x, uint32_t n)
{
    uint8_t block[34];

    for (uint32_t i = 0; to == MDL_F16 && i < n; i++)
        x[i] = mdl_half_to_float(mdl_float_to_half(x[i]));
    for (uint32_t i = 0; to == MDL_Q8_0 && i < n; i += 32) {
        mdl_quant_row(MDL_Q8_0, x + i, block, 32);
        mdl_dequant_row(MDL_Q8_0, block, x + i, 32);
    }
}

/* ---- attention
 * ----------------------------------------------------------------------------------------------------- */

static void rope_angles(struct mdl_ref *r, uint32_t position)
{
    for (uint32_t i = 0; i < r->c.n_rot / 2; i++) {
        double angle = position * r->freq[i];

        r->rope[2 * i] = cos(angle) * r->rope_scale;
        r->rope[2 * i + 1] = sin(angle) * r->rope_scale;
    }
}

/* Queries or keys, before they are rotated: each head, or all of them as one row. */
static void norm_heads(const struct mdl_ref *r, float *x, const float *w, uint32_t n_heads)
{
    const struct mdl_config *c = &r->c;
    bool rows = c->qk_norm == MDL_QK_NORM_ROW;
    uint32_t n = rows ? n_heads * c->head_dim : c->head_dim;

    for (uint32_t i = 0; w && i < (rows ? 1 : n_heads); i++)
        rms_norm(x + (size_t)i * n, x + (size_t)i * n, w, n, c->rms_eps);
}

static void rotate(const struct mdl_ref *r, float *x, uint32_t n_heads)
{
    uint32_t half = r->c.n_rot / 2;
    bool norm = r->c.rope == MDL_ROPE_NORM;

    for (uint32_t head = 0; head < n_heads; head++, x += r->c.head_dim)
        for (uint32_t i = 0; i < half; i++) {
            float *a = norm ? x + 2 * i : x + i, *b = norm ? a + 1 : a + half;
            double c = r->rope[2 * i], s = r->rope[2 * i + 1], va = *a, vb = *b;

            *a = (float)(va * c - vb * s);
            *b = (float)(va * s + vb * c);
        }
}

/* One head over positions first .. n-1; keys and values are this head's columns in rows of kv_dim. sink: a
 * score whose value is 0; NULL: none. */
static void attend(struct mdl_ref *r, float *out, const float *q, const float *keys, const float *values,
                   uint32_t first, uint32_t n, const float *sink)
{
    uint32_t d = r->c.head_dim, stride = r->c.n_kv_heads * d;
    double scale = r->c.attn_scale > 0 ? (double)r->c.attn_scale : 1 / sqrt((double)d);
    double top = sink ? (double)*sink : -HUGE_VAL, sum;

    for (uint32_t t = first; t < n; t++) {
        r->scores[t] = dot(q, keys + (size_t)t * stride, d) * scale;
        top = r->scores[t] > top ? r->scores[t] : top;
    }
    sum = sink ? exp(*sink - top) : 0;
    for (uint32_t t = first; t < n; t++)
        sum += r->scores[t] = exp(r->scores[t] - top);
    for (uint32_t i = 0; i < d; i += 2) { /* head_dim is even */
        const float *v = values + (size_t)first * stride + i;
        double a = 0, b = 0;

        for (uint32_t t = first; t < n; t++, v += stride) {
            a += r->scores[t] * (double)v[0];
            b += r->scores[t] * (double)v[1];
        }
        out[i] = (float)(a / sum);
        out[i + 1] = (float)(b / sum);
    }
}

/* The token's query, key and value; the latter two into the cache. */
static void project(struct mdl_ref *r, const struct weights *w, float *k, float *v)
{
    const struct mdl_config *c = &r->c;
    uint32_t q_dim = c->n_heads * c->head_dim, kv_dim = c->n_kv_heads * c->head_dim;

    rms_norm(r->h, r->x, w->attn_norm, c->dim, c->rms_eps);
    matvec(r->q, w->q, r->h, q_dim, c->dim);
    matvec(k, w->k, r->h, kv_dim, c->dim);
    matvec(v, w->v, r->h, kv_dim, c->dim);
    add_bias(r->q, w->q_bias, q_dim);
    add_bias(k, w->k_bias, kv_dim);
    add_bias(v, w->v_bias, kv_dim);
    norm_heads(r, r->q, w->q_norm, c->n_heads);
    norm_heads(r, k, w->k_norm, c->n_kv_heads);
    rotate(r, r->q, c->n_heads);
    rotate(r, k, c->n_kv_heads);
    round_cached(r->p.kv, k, kv_dim);
    round_cached(r->p.kv, v, kv_dim);
}

static void attention(struct mdl_ref *r, uint32_t layer)
{
    const struct mdl_config *c = &r->c;
    const struct weights *w = &r->layers[layer];
    uint32_t d = c->head_dim, q_dim = c->n_heads * d, kv_dim = c->n_kv_heads * d,
             group = c->n_heads / c->n_kv_heads, window = mdl_window(c, layer), n = r->n_past + 1;
    float *keys = r->keys + (size_t)layer * r->p.n_ctx * kv_dim;
    float *values = r->values + (size_t)layer * r->p.n_ctx * kv_dim;

    project(r, w, keys + (size_t)r->n_past * kv_dim, values + (size_t)r->n_past * kv_dim);
    for (uint32_t head = 0; head < c->n_heads; head++) {
        size_t column = (size_t)(head / group) * d;

        attend(r, r->att + (size_t)head * d, r->q + (size_t)head * d, keys + column, values + column,
               window && n > window ? n - window : 0, n, w->sinks ? &w->sinks[head] : NULL);
    }
    matvec(r->h, w->o, r->att, c->dim, q_dim);
    add_bias(r->h, w->o_bias, c->dim);
    scale_by(r->h, c->residual_scale, c->dim);
    for (uint32_t i = 0; i < c->dim; i++)
        r->x[i] += r->h[i];
}

/* ---- experts
 * ---------------------------------------------------------------------------------------------------------
 */

static bool is_allowed(const struct mdl_ref *r, uint32_t layer, uint32_t e)
{
    uint32_t words = (r->c.n_experts + 31) / 32;

    if (e >= r->layers[layer].n_experts)
        return false;
    return !r->allowed || (r->allowed[(size_t)layer * words + e / 32] >> (e % 32) & 1);
}

/* Softmax over the allowed experts in ascending id; the others get -1, which no probability is. */
static void router_probs(struct mdl_ref *r, uint32_t layer)
{
    float *p = r->probs, top = -HUGE_VALF;
    uint32_t n = r->c.n_experts;
    double sum = 0;

    matvec(p, r->layers[layer].router, r->h, r->layers[layer].n_experts, r->c.dim);
    add_bias(p, r->layers[layer].router_bias, r->layers[layer].n_experts);
    if (r->watch.logits)
        memcpy(r->watch.logits + (size_t)layer * n, p, r->layers[layer].n_experts * sizeof(*p));
    for (uint32_t e = 0; e < n; e++)
        if (is_allowed(r, layer, e) && p[e] > top)
            top = p[e];
    for (uint32_t e = 0; e < n; e++)
        if (is_allowed(r, layer, e))
            sum += exp((double)p[e] - top);
    for (uint32_t e = 0; e < n; e++)
        p[e] = is_allowed(r, layer, e) ? (float)(exp((double)p[e] - top) / sum) : -1;
}

/* Takes the best allowed expert out of probs; -1 when none is left. Ties go to the lower id; NaN ranks below
 * every number, so that broken weights still give distinct valid ids. */
static int32_t take_best(struct mdl_ref *r, uint32_t layer, float *prob)
{
    int32_t best = -1;

    for (uint32_t e = 0; e < r->c.n_experts; e++) {
        if (!is_allowed(r, layer, e) || r->probs[e] == -2) /* -2: taken */
            continue;
        if (best < 0 || r->probs[e] > r->probs[best] || (isnan(r->probs[best]) && !isnan(r->probs[e])))
            best = (int32_t)e;
    }
    *prob = best < 0 ? 0 : r->probs[best];
    if (best >= 0)
        r->probs[best] = -2;
    return best;
}

static void route(struct mdl_ref *r, uint32_t layer, struct mdl_ref_route *out)
{
    double sum = 0;

    memset(out, 0, sizeof(*out));
    router_probs(r, layer);
    for (; out->n < r->c.n_experts_used; out->n++) {
        float prob;
        int32_t best = take_best(r, layer, &prob);

        if (best < 0)
            break;
        out->ids[out->n] = (uint32_t)best;
        out->weights[out->n] = out->last = prob;
        sum += prob;
    }
    (void)take_best(r, layer, &out->next);
    for (uint32_t i = 0; i < out->n; i++) {
        double w = out->weights[i];

        out->weights[i] = (float)((r->c.norm_topk ? w / sum : w) * (double)r->c.expert_scale);
    }
}

/* One feed-forward network; biases may be NULL. */
struct ffn {
    const float *gate, *up, *down, *gate_bias, *up_bias, *down_bias;
    uint32_t width;
    enum mdl_act act;
};

static double activate(enum mdl_act act, double g, double u)
{
    const double limit = MDL_ACT_LIMIT;

    if (act == MDL_ACT_SILU)
        return g / (1 + exp(-g)) * u;
    g = g > limit ? limit : g; /* NaN stays */
    u = u > limit ? limit : u < -limit ? -limit : u;
    return g / (1 + exp(-(double)MDL_ACT_ALPHA * g)) * (u + 1);
}

/* y = down act(gate h, up h) */
static void expert(struct mdl_ref *r, const struct ffn *f)
{
    matvec(r->act_g, f->gate, r->h, f->width, r->c.dim);
    matvec(r->act_u, f->up, r->h, f->width, r->c.dim);
    add_bias(r->act_g, f->gate_bias, f->width);
    add_bias(r->act_u, f->up_bias, f->width);
    for (uint32_t i = 0; i < f->width; i++)
        r->act_g[i] = (float)activate(f->act, r->act_g[i], r->act_u[i]);
    matvec(r->y, f->down, r->act_g, r->c.dim, f->width);
    add_bias(r->y, f->down_bias, r->c.dim);
}

static struct ffn routed(const struct mdl_ref *r, const struct weights *w, size_t e)
{
    const size_t ff = r->c.ff_expert, size = ff * r->c.dim;

    return (struct ffn){.gate = w->gate + e * size,
                        .up = w->up + e * size,
                        .down = w->down + e * size,
                        .gate_bias = w->gate_bias ? w->gate_bias + e * ff : NULL,
                        .up_bias = w->up_bias ? w->up_bias + e * ff : NULL,
                        .down_bias = w->down_bias ? w->down_bias + e * r->c.dim : NULL,
                        .width = r->c.ff_expert,
                        .act = r->c.act};
}

/* The shared expert, or the network of a dense layer: what it adds to acc. */
static void add_shared(struct mdl_ref *r, uint32_t layer)
{
    const struct mdl_config *c = &r->c;
    const struct weights *w = &r->layers[layer];
    const struct ffn f = {
        .gate = w->gate_sh, .up = w->up_sh, .down = w->down_sh, .width = mdl_ffn_width(c, layer)};
    double factor = c->residual_scale > 0 ? (double)c->residual_scale : 1;

    if (w->shared_gate)
        factor /= 1 + exp(-dot(w->shared_gate, r->h, c->dim));
    expert(r, &f);
    for (uint32_t i = 0; i < c->dim; i++)
        r->acc[i] += factor * r->y[i];
}

/* h.h, h.m and m.m of a layer, m being the sum of all experts. */
static void watch_turn(struct mdl_ref *r, double *sums)
{
    memset(sums, 0, 3 * sizeof(*sums));
    for (uint32_t i = 0; i < r->c.dim; i++) {
        double h = r->h[i];

        sums[0] += h * h;
        sums[1] += h * r->acc[i];
        sums[2] += r->acc[i] * r->acc[i];
    }
}

/* Routed experts in rank order, then the shared one. */
static void feed_forward(struct mdl_ref *r, uint32_t layer, struct mdl_ref_route *chosen)
{
    const struct mdl_config *c = &r->c;
    const struct weights *w = &r->layers[layer];
    size_t row = 3 + c->n_experts_used;
    double *sums = r->watch.sums && w->router ? r->watch.sums + layer * row : NULL;

    rms_norm(r->h, r->x, w->ffn_norm, c->dim, c->rms_eps);
    if (w->router)
        route(r, layer, chosen);
    else
        memset(chosen, 0, sizeof(*chosen));
    memset(r->acc, 0, c->dim * sizeof(*r->acc));
    for (uint32_t k = 0; k < chosen->n; k++) {
        const struct ffn f = routed(r, w, chosen->ids[k]);

        expert(r, &f);
        for (uint32_t i = 0; i < c->dim; i++)
            r->acc[i] += (double)chosen->weights[k] * r->y[i];
        if (sums)
            sums[3 + k] = dot(r->y, r->y, c->dim);
    }
    for (uint32_t k = chosen->n; sums && k < c->n_experts_used; k++)
        sums[3 + k] = 0;
    if (w->gate_sh)
        add_shared(r, layer);
    if (sums)
        watch_turn(r, sums);
    for (uint32_t i = 0; i < c->dim; i++)
        r->x[i] = (float)(r->x[i] + r->acc[i]);
}

/* ---- loading
 * ----------------------------------------------------------------------------------------------------------
 */

/* Reads a tensor of `count` elements into a new float array. */
static enum vkmoe_status load(struct mdl_ref *r, float **out, const struct mdl_model *m,
                              const struct mdl_tensor *t, uint64_t count, struct vkmoe_err *err)
{
    const char *path = cor_file_path(m->gguf->file);
    enum vkmoe_status st = VKMOE_OK;
    uint64_t row_bytes, rows, n = 1, per_read;
    uint8_t *raw = NULL;

    assert(t);
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->dims[i]; /* the reader has checked that this does not overflow */
    if (!t->known)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: tensor %s has type number %" PRIu32 ", which is not supported", path,
             t->name, t->gguf_type);
    if (n != count || count == 0)
        FAIL(VKMOE_ERR_FORMAT, "%s: tensor %s has %" PRIu64 " elements, not %" PRIu64, path, t->name, n,
             count);
    r->n_weights += count;
    if (r->n_weights > MAX_WEIGHTS)
        FAIL(VKMOE_ERR_LIMIT,
             "%s: the scalar reference holds at most %" PRIu64 " weights, tensor %s is past that", path,
             MAX_WEIGHTS, t->name);
    row_bytes = mdl_row_bytes(t->type, t->dims[0]);
    rows = count / t->dims[0];
    per_read = CHUNK > row_bytes ? CHUNK / row_bytes : 1;
    *out = cor_array((size_t)count, sizeof(**out));
    raw = cor_alloc((size_t)(per_read * row_bytes));
    if (!*out || !raw)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the %" PRIu64 " floats of %s", path, count, t->name);
    for (uint64_t row = 0; row < rows; row += per_read) {
        uint64_t part = rows - row < per_read ? rows - row : per_read;

        TRY(mdl_gguf_read(m->gguf, t, row * row_bytes, raw, (size_t)(part * row_bytes), err));
        mdl_dequant_row(t->type, raw, *out + row * t->dims[0], part * t->dims[0]);
    }
done:
    cor_free(raw);
    return st;
}

static enum vkmoe_status load_layer(struct mdl_ref *r, struct weights *w, const struct mdl_model *m,
                                    uint32_t layer, struct vkmoe_err *err)
{
    const struct mdl_config *c = &r->c;
    const struct mdl_layer *l = &m->layers[layer];
    uint64_t dim = c->dim, d = c->head_dim, q = c->n_heads * d, kv = c->n_kv_heads * d;
    uint64_t rows = mdl_expert_count(m, layer), n = rows < c->n_experts ? rows : c->n_experts;
    uint64_t bank = dim * c->ff_expert * n, shared = dim * mdl_ffn_width(c, layer);
    bool heads = c->qk_norm == MDL_QK_NORM_HEAD;
    const struct {
        float **to;
        const struct mdl_tensor *t;
        uint64_t count;
    } list[] = {
        {&w->attn_norm, l->attn_norm, dim},
        {&w->q, l->q, dim * q},
        {&w->k, l->k, dim * kv},
        {&w->v, l->v, dim * kv},
        {&w->o, l->o, dim * q},
        {&w->ffn_norm, l->ffn_norm, dim},
        {&w->router, l->gate_inp, dim * n},
        {&w->gate, l->gate_exps, bank},
        {&w->up, l->up_exps, bank},
        {&w->down, l->down_exps, bank},
        {&w->gate_sh, l->gate_sh, shared},
        {&w->up_sh, l->up_sh, shared},
        {&w->down_sh, l->down_sh, shared},
        {&w->q_norm, l->q_norm, heads ? d : q},
        {&w->k_norm, l->k_norm, heads ? d : kv},
        {&w->q_bias, l->q_bias, q},
        {&w->k_bias, l->k_bias, kv},
        {&w->v_bias, l->v_bias, kv},
        {&w->o_bias, l->o_bias, dim},
        {&w->sinks, l->sinks, c->n_heads},
        {&w->router_bias, l->router_bias, n},
        {&w->gate_bias, l->gate_bias, n * c->ff_expert},
        {&w->up_bias, l->up_bias, n * c->ff_expert},
        {&w->down_bias, l->down_bias, n * dim},
        {&w->shared_gate, l->shared_gate, dim},
    };
    enum vkmoe_status st = VKMOE_OK;

    w->n_experts = (uint32_t)n;
    for (size_t i = 0; i < COR_COUNT(list); i++)
        if (list[i].t)
            TRY(load(r, list[i].to, m, list[i].t, list[i].count, err));
done:
    return st;
}

static enum vkmoe_status load_all(struct mdl_ref *r, const struct mdl_model *m, struct vkmoe_err *err)
{
    const struct mdl_config *c = &r->c;
    enum vkmoe_status st = VKMOE_OK;

    r->layers = cor_array(c->n_layers, sizeof(*r->layers));
    if (!r->layers)
        FAIL(VKMOE_ERR_MEMORY, "reference: no memory for %" PRIu32 " layers", c->n_layers);
    TRY(load(r, &r->embed, m, m->embed, (uint64_t)c->vocab_size * c->dim, err));
    TRY(load(r, &r->out_norm, m, m->out_norm, c->dim, err));
    if (m->head == m->embed)
        r->head = r->embed;
    else
        TRY(load(r, &r->head, m, m->head, (uint64_t)c->vocab_size * c->dim, err));
    for (uint32_t i = 0; i < c->n_layers; i++)
        TRY(load_layer(r, &r->layers[i], m, i, err));
done:
    return st;
}

static enum vkmoe_status make_state(struct mdl_ref *r, struct vkmoe_err *err)
{
    const struct mdl_config *c = &r->c;
    size_t q_dim = (size_t)c->n_heads * c->head_dim, kv_dim = (size_t)c->n_kv_heads * c->head_dim;
    size_t words = (c->n_experts + 31) / 32, widest = c->ff_expert;

    widest = widest < mdl_shared_width(c) ? mdl_shared_width(c) : widest;
    widest = widest < c->ff_dense ? c->ff_dense : widest;
    if ((uint64_t)r->p.n_ctx * c->n_layers > SIZE_MAX / sizeof(float) / kv_dim)
        return cor_fail(err, VKMOE_ERR_LIMIT, "reference: a context of %" PRIu32 " tokens is too long",
                        r->p.n_ctx);
    r->keys = cor_array((size_t)c->n_layers * r->p.n_ctx, kv_dim * sizeof(float));
    r->values = cor_array((size_t)c->n_layers * r->p.n_ctx, kv_dim * sizeof(float));
    r->x = cor_array(c->dim, sizeof(float));
    r->h = cor_array(c->dim, sizeof(float));
    r->q = cor_array(q_dim, sizeof(float));
    r->att = cor_array(q_dim, sizeof(float));
    r->act_g = cor_array(widest, sizeof(float));
    r->act_u = cor_array(widest, sizeof(float));
    r->y = cor_array(c->dim, sizeof(float));
    r->probs = cor_array(c->n_experts + 1, sizeof(float)); /* there may be none */
    r->freq = cor_array(c->n_rot / 2, sizeof(double));
    r->scores = cor_array(r->p.n_ctx, sizeof(double));
    r->acc = cor_array(c->dim, sizeof(double));
    r->rope = cor_array(c->n_rot, sizeof(double));
    r->logits = cor_array(c->vocab_size, sizeof(float));
    if (r->p.allowed)
        r->allowed = cor_array(words * c->n_layers, sizeof(*r->allowed));
    if (!r->keys || !r->values || !r->x || !r->h || !r->q || !r->att || !r->act_g || !r->act_u || !r->y ||
        !r->probs || !r->scores || !r->acc || !r->freq || !r->rope || !r->logits ||
        (r->p.allowed && !r->allowed))
        return cor_fail(err, VKMOE_ERR_MEMORY, "reference: no memory for a context of %" PRIu32 " tokens",
                        r->p.n_ctx);
    if (r->p.allowed)
        memcpy(r->allowed, r->p.allowed, words * c->n_layers * sizeof(*r->allowed));
    r->p.allowed = NULL; /* the caller's array is not needed any more */
    return VKMOE_OK;
}

/* ---- public ------------------------------------------------------------------------------------- */

enum vkmoe_status mdl_ref_create(struct mdl_ref **out, const struct mdl_model *m,
                                 const struct mdl_ref_params *p, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_ref *r = NULL;

    *out = NULL;
    if (p->n_ctx == 0)
        FAIL(VKMOE_ERR_ARGUMENT, "reference: a context of 0 tokens");
    assert(m->config.n_experts_used <= COR_COUNT(((struct mdl_ref_route *)0)->ids));
    r = cor_zalloc(sizeof(*r));
    if (!r)
        FAIL(VKMOE_ERR_MEMORY, "reference: no memory for %zu bytes", sizeof(*r));
    r->c = m->config;
    r->p = *p;
    TRY(make_state(r, err));
    r->rope_scale = mdl_rope_freqs(&r->c, m->rope_factors, r->freq);
    TRY(load_all(r, m, err));
    *out = r;
    r = NULL;
done:
    mdl_ref_destroy(r); /* NULL after success */
    return st;
}

static void free_layer(struct weights *w)
{
    float *const all[] = {w->attn_norm,   w->q,         w->k,       w->v,         w->o,
                          w->ffn_norm,    w->router,    w->gate,    w->up,        w->down,
                          w->gate_sh,     w->up_sh,     w->down_sh, w->q_norm,    w->k_norm,
                          w->q_bias,      w->k_bias,    w->v_bias,  w->o_bias,    w->sinks,
                          w->router_bias, w->gate_bias, w->up_bias, w->down_bias, w->shared_gate};

    for (size_t i = 0; i < COR_COUNT(all); i++)
        cor_free(all[i]);
}

void mdl_ref_destroy(struct mdl_ref *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; r->layers && i < r->c.n_layers; i++)
        free_layer(&r->layers[i]);
    cor_free(r->layers);
    if (r->head != r->embed)
        cor_free(r->head);
    cor_free(r->embed);
    cor_free(r->out_norm);
    cor_free(r->allowed);
    cor_free(r->keys);
    cor_free(r->values);
    cor_free(r->x);
    cor_free(r->h);
    cor_free(r->q);
    cor_free(r->att);
    cor_free(r->act_g);
    cor_free(r->act_u);
    cor_free(r->y);
    cor_free(r->probs);
    cor_free(r->scores);
    cor_free(r->acc);
    cor_free(r->freq);
    cor_free(r->rope);
    cor_free(r->logits);
    cor_free(r);
}

void mdl_ref_reset(struct mdl_ref *r)
{
    r->n_past = 0;
}

void mdl_ref_watch(struct mdl_ref *r, const struct mdl_ref_watch *w)
{
    r->watch = w ? *w : (struct mdl_ref_watch){NULL, NULL};
}

void mdl_ref_allow(struct mdl_ref *r, const uint32_t *allowed)
{
    assert(r->allowed);
    memcpy(r->allowed, allowed, (size_t)r->c.n_layers * ((r->c.n_experts + 31) / 32) * sizeof(*allowed));
}

enum vkmoe_status mdl_ref_feed(struct mdl_ref *r, int32_t token, float *logits, struct mdl_ref_route *routes,
                               struct vkmoe_err *err)
{
    const struct mdl_config *c = &r->c;
    struct mdl_ref_route own;

    if (token < 0 || (uint32_t)token >= c->vocab_size)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "token %" PRId32 " is outside the vocabulary of %" PRIu32,
                        token, c->vocab_size);
    if (r->n_past == r->p.n_ctx)
        return cor_fail(err, VKMOE_ERR_CONTEXT_FULL, "the context of %" PRIu32 " tokens is full", r->p.n_ctx);
    memcpy(r->x, r->embed + (size_t)token * c->dim, c->dim * sizeof(*r->x));
    scale_by(r->x, c->embed_scale, c->dim);
    rope_angles(r, r->n_past);
    for (uint32_t layer = 0; layer < c->n_layers; layer++) {
        attention(r, layer);
        feed_forward(r, layer, routes ? &routes[layer] : &own);
    }
    if (logits) {
        rms_norm(r->h, r->x, r->out_norm, c->dim, c->rms_eps);
        matvec(r->logits, r->head, r->h, c->vocab_size, c->dim);
        scale_by(r->logits, c->logit_scale > 0 ? 1 / c->logit_scale : 0, c->vocab_size);
        for (uint32_t i = 0; i < c->vocab_size; i++)
            if (!isfinite(r->logits[i]))
                return cor_fail(err, VKMOE_ERR_NUMERIC, "non-finite logits at token %" PRIu32, r->n_past);
        memcpy(logits, r->logits, c->vocab_size * sizeof(*logits));
    }
    r->n_past++;
    return VKMOE_OK;
}
