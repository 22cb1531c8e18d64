/* Cases of the kernels round the KV cache: rotation and storing, attention of one and of many tokens. The
 * format of a case is that of the cache, F16 or F32. */
#include <math.h>
#include <stdio.h>

#include "bench/make.h"

static bool f16(const struct bench_maker *m)
{
    return m->env->type == MDL_F16;
}

/* There is one case, of the two types; of attention another one in checks, with windows and sinks. */
static bool is_case(const struct bench_maker *m, uint32_t n)
{
    return m->use < (check(m) && m->s->context > ATTN_SPLIT ? n : 1) && (f16(m) || m->env->type == MDL_F32);
}

/* Keys that are seen: a few splits of the last. */
static uint32_t window(const struct bench_maker *m)
{
    return m->use ? ATTN_SPLIT + 5 : 0;
}

static uint32_t first_seen(const struct bench_maker *m, uint32_t n_keys)
{
    return window(m) && n_keys > window(m) ? n_keys - window(m) : 0;
}

struct cache {
    float *values; /* as the kernels should see them */
    uint32_t *words;
    size_t n_words;
};

static void cache_make(struct bench_maker *m, struct cache *c, size_t n)
{
    c->values = bench_floats(m, n);
    c->n_words = f16(m) ? n / 2 : n;
    c->words = bench_array(m, c->n_words, 4);
    for (size_t i = 0; !m->failed && i < n; i++) {
        const uint16_t h = mdl_float_to_half(c->values[i] * (i % 97 ? 1.0f : 1e-5f)); /* subnormals too */

        if (f16(m)) {
            c->values[i] = mdl_half_to_float(h);
            c->words[i / 2] |= (uint32_t)h << (i % 2 * 16);
        } else {
            c->words[i] = cor_float_bits(c->values[i]);
        }
    }
}

/* ---- rope_kv
 * ----------------------------------------------------------------------------------------------- */

static void rope_want(struct bench_maker *m, const float *qkv, const float *rope, uint32_t pos,
                      uint32_t n_tokens)
{
    const struct bench_shape *s = m->s;
    const uint32_t n_q = s->n_heads * s->head_dim, n_kv = s->n_kv * s->head_dim, row = n_q + 2 * n_kv;
    double *q = doubles(m, (size_t)n_tokens * n_q), *k = doubles(m, (size_t)n_tokens * n_kv);
    double *v = doubles(m, (size_t)n_tokens * n_kv);
    const size_t first = (size_t)pos * n_kv, n = (size_t)n_tokens * n_kv;

    for (uint32_t t = 0; q && k && v && t < n_tokens; t++) {
        const float *in = qkv + (size_t)t * row, *turn = rope + (size_t)(pos + t) * s->head_dim;

        for (uint32_t e = 0; e < n_q + n_kv; e++) { /* neighbours are pairs */
            const uint32_t i = e % s->head_dim / 2 * 2;
            const double c = turn[i], si = turn[i + 1];
            const double turned = e % 2 ? in[e] * c + in[e - 1] * si : in[e] * c - in[e + 1] * si;

            if (e < n_q)
                q[(size_t)t * n_q + e] = turned;
            else
                k[(size_t)t * n_kv + e - n_q] = turned;
        }
        for (uint32_t e = 0; e < n_kv; e++)
            v[(size_t)t * n_kv + e] = in[n_q + n_kv + e];
    }
    bench_want_floats(m, 2, (size_t)n_tokens * n_q, q, BENCH_NMSE);
    for (uint32_t b = 3; v && b < 5; b++)
        bench_want(m, &(struct bench_want){.buf = b,
                                           .kind = f16(m) ? BENCH_HALVES : BENCH_FLOATS,
                                           .first = first,
                                           .n = n,
                                           .values = b == 3 ? k : v,
                                           .nmse = BENCH_NMSE,
                                           .largest = f16(m) ? 0x1p-23 : BENCH_LARGEST});
}

static bool make_rope(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const uint32_t pos = check(m) ? 4 : s->context, n_tokens = check(m) ? s->n_tokens : 1;
    const uint32_t n_q = s->n_heads * s->head_dim, n_kv = s->n_kv * s->head_dim, row = n_q + 2 * n_kv;
    const uint32_t wg = bench_lanes(m), n_pos = pos + n_tokens;
    const struct spec_rope spec = {wg, s->head_dim, s->n_heads, s->n_kv, s->head_dim, 0, f16(m), f16(m)};
    const size_t words = (size_t)n_pos * n_kv / (f16(m) ? 2 : 1);
    float *qkv, *rope;

    if (!is_case(m, 1))
        return false;
    qkv = bench_floats(m, (size_t)n_tokens * row);
    rope = bench_floats(m, (size_t)n_pos * s->head_dim);
    bench_buf(m, BENCH_IN, bench_state(m, n_tokens, pos, 0, 1), STEP_TOKENS + (size_t)n_tokens);
    bench_buf(m, BENCH_IN, qkv, (size_t)n_tokens * row);
    bench_buf(m, BENCH_OUT, NULL, (size_t)n_tokens * n_q);
    bench_buf(m, BENCH_OUT, NULL, words);
    bench_buf(m, BENCH_OUT, NULL, words);
    bench_buf(m, BENCH_IN, rope, (size_t)n_pos * s->head_dim);
    if (!m->failed)
        rope_want(m, qkv, rope, pos, n_tokens);
    BENCH_SPEC(m, spec);
    bench_grid(m, bench_div_up(row / 2, wg), n_tokens, 1);
    m->c->bytes = n_tokens * (4.0 * row + 4.0 * n_q + (f16(m) ? 4.0 : 8.0) * n_kv);
    WHAT(m, "%u tokens, %u + 2 x %u heads of %u", n_tokens, s->n_heads, s->n_kv, s->head_dim);
    return true;
}

/* ---- attention
 * --------------------------------------------------------------------------------------------- */

/* Scores of one query head against keys first .. first + n - 1, scaled. */
static void scores(const struct bench_maker *m, const float *q, const struct cache *k, uint32_t head,
                   uint32_t first, uint32_t n, double *p)
{
    const struct bench_shape *s = m->s;
    const uint32_t kv = head * s->n_kv / s->n_heads;

    for (uint32_t j = 0; j < n; j++)
        p[j] = bench_dot(q, k->values + ((size_t)(first + j) * s->n_kv + kv) * s->head_dim, s->head_dim) *
               (double)(float)(1 / sqrt(s->head_dim));
}

/* Sum over keys of p[j] * V, element d. */
static double weighted(const struct bench_maker *m, const struct cache *v, uint32_t head, uint32_t first,
                       uint32_t n, const double *p, uint32_t d)
{
    const struct bench_shape *s = m->s;
    const uint32_t kv = head * s->n_kv / s->n_heads;
    double sum = 0;

    for (uint32_t j = 0; j < n; j++)
        sum += p[j] * v->values[((size_t)(first + j) * s->n_kv + kv) * s->head_dim + d];
    return sum;
}

/* sink: one more score; NULL: none. */
static double exp_all(double *p, uint32_t n, const float *sink, double *top)
{
    double sum;

    *top = sink ? (double)*sink : -INFINITY;
    for (uint32_t j = 0; j < n; j++)
        *top = fmax(*top, p[j]);
    sum = sink ? exp(*sink - *top) : 0;
    for (uint32_t j = 0; j < n; j++)
        sum += p[j] = exp(p[j] - *top);
    return sum;
}

static struct spec_attn attn_spec(const struct bench_maker *m, uint32_t wg, uint32_t n_splits)
{
    const struct bench_shape *s = m->s;

    return (struct spec_attn){.wg = wg,
                              .head_dim = s->head_dim,
                              .n_heads = s->n_heads,
                              .n_kv = s->n_kv,
                              .scale_bits = cor_float_bits((float)(1 / sqrt(s->head_dim))),
                              .k_cache = f16(m),
                              .v_cache = f16(m),
                              .n_splits = n_splits,
                              .window = window(m),
                              .sinks = m->use > 0};
}

static double cache_bytes(const struct bench_maker *m, uint32_t n_pos)
{
    return 2.0 * n_pos * m->s->n_kv * m->s->head_dim * (f16(m) ? 2 : 4);
}

/* Parts of splits, and what they come to. */
static void one_want(struct bench_maker *m, const float *q, const struct cache *k, const struct cache *v,
                     const float *sinks, uint32_t n_keys, uint32_t n_splits)
{
    const uint32_t hd = m->s->head_dim, heads = m->s->n_heads;
    double *part = doubles(m, (size_t)heads * n_splits * (hd + 2)), *p = doubles(m, n_keys);
    double *out = doubles(m, (size_t)heads * hd), top, sum;
    const uint32_t seen = first_seen(m, n_keys), s0 = seen / ATTN_SPLIT;

    for (uint32_t h = 0; part && p && out && h < heads; h++) {
        for (uint32_t i = 0; i < n_splits; i++) {
            double *w = part + ((size_t)h * n_splits + i) * (hd + 2);
            const uint32_t first = i == s0 ? seen : i * ATTN_SPLIT, last = (i + 1) * ATTN_SPLIT;
            const uint32_t n = (n_keys < last ? n_keys : last) - first;

            for (uint32_t d = 0; i < s0 && d < hd + 2; d++)
                w[d] = NAN; /* stays as it was: poison */
            if (i < s0)
                continue;
            scores(m, q + (size_t)h * hd, k, h, first, n, p);
            w[1] = exp_all(p, n, NULL, &w[0]);
            for (uint32_t d = 0; d < hd; d++)
                w[2 + d] = weighted(m, v, h, first, n, p, d);
        }
        scores(m, q + (size_t)h * hd, k, h, seen, n_keys - seen, p);
        sum = exp_all(p, n_keys - seen, m->use ? &sinks[h] : NULL, &top);
        for (uint32_t d = 0; d < hd; d++)
            out[(size_t)h * hd + d] = weighted(m, v, h, seen, n_keys - seen, p, d) / sum;
    }
    bench_want_floats(m, 4, (size_t)heads * n_splits * (hd + 2), part, BENCH_ATTN_NMSE);
    bench_want_floats(m, 5, (size_t)heads * hd, out, BENCH_ATTN_NMSE);
}

static bool make_one(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const uint32_t n_keys = s->context, n_splits = bench_div_up(n_keys, ATTN_SPLIT);
    const size_t n = (size_t)n_keys * s->n_kv * s->head_dim, n_q = (size_t)s->n_heads * s->head_dim;
    const struct spec_attn spec = attn_spec(m, bench_lanes(m), n_splits);
    struct cache k, v;
    float *q, *sinks;

    if (!is_case(m, 2))
        return false;
    cache_make(m, &k, n);
    cache_make(m, &v, n);
    q = bench_floats(m, n_q);
    bench_buf(m, BENCH_IN, bench_state(m, 1, n_keys - 1, 0, 1), STEP_TOKENS + 1);
    bench_buf(m, BENCH_IN, q, n_q);
    m->c->bufs[bench_buf(m, BENCH_IN, k.words, k.n_words)].weights = true;
    m->c->bufs[bench_buf(m, BENCH_IN, v.words, v.n_words)].weights = true;
    bench_buf(m, BENCH_OUT, NULL, (size_t)s->n_heads * n_splits * (s->head_dim + 2));
    bench_buf(m, BENCH_OUT, NULL, n_q);
    bench_buf(m, BENCH_INOUT, bench_array(m, s->n_heads, 4), s->n_heads); /* counters come back as zeros */
    sinks = bench_floats(m, s->n_heads);
    bench_buf(m, BENCH_IN, sinks, s->n_heads);
    if (!m->failed)
        one_want(m, q, &k, &v, sinks, n_keys, n_splits);
    BENCH_SPEC(m, spec);
    bench_grid(m, s->n_heads, n_splits, 1);
    m->c->bytes = cache_bytes(m, n_keys) + 4.0 * (double)n_q;
    m->c->flops = 4.0 * n_keys * s->n_heads * s->head_dim;
    WHAT(m, "%u positions, %u/%u heads of %u", n_keys, s->n_heads, s->n_kv, s->head_dim);
    return true;
}

static void many_want(struct bench_maker *m, const float *q, const struct cache *k, const struct cache *v,
                      const float *sinks, uint32_t pos, uint32_t n_tokens)
{
    const uint32_t hd = m->s->head_dim, heads = m->s->n_heads;
    const size_t n = (size_t)n_tokens * heads * hd;
    double *want = doubles(m, n), *p = doubles(m, (size_t)pos + n_tokens);

    for (uint32_t t = 0; want && p && t < n_tokens; t++)
        for (uint32_t h = 0; h < heads; h++) {
            const size_t at = ((size_t)t * heads + h) * hd;
            const uint32_t first = first_seen(m, pos + t + 1), n_keys = pos + t + 1 - first;
            double top, sum;

            scores(m, q + at, k, h, first, n_keys, p);
            sum = exp_all(p, n_keys, m->use ? &sinks[h] : NULL, &top);
            for (uint32_t d = 0; d < hd; d++)
                want[at + d] = weighted(m, v, h, first, n_keys, p, d) / sum;
        }
    bench_want_floats(m, 4, n, want, BENCH_ATTN_NMSE);
}

static bool make_many(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const uint32_t n_tokens = s->n_tokens, pos = check(m) ? 33 : 0;
    const size_t n = (size_t)(pos + n_tokens) * s->n_kv * s->head_dim;
    const size_t n_q = (size_t)n_tokens * s->n_heads * s->head_dim;
    const struct spec_attn spec = attn_spec(m, bench_tile_lanes(m, 0), 1);
    struct cache k, v;
    float *q, *sinks;

    if (!is_case(m, 2) || (m->c->kernel == GPU_K_attn_many_ln && s->head_dim % 8))
        return false;
    cache_make(m, &k, n);
    cache_make(m, &v, n);
    q = bench_floats(m, n_q);
    bench_buf(m, BENCH_IN, bench_state(m, n_tokens, pos, 0, 1), STEP_TOKENS + (size_t)n_tokens);
    bench_buf(m, BENCH_IN, q, n_q);
    bench_buf(m, BENCH_IN, k.words, k.n_words);
    bench_buf(m, BENCH_IN, v.words, v.n_words);
    bench_buf(m, BENCH_OUT, NULL, n_q);
    sinks = bench_floats(m, s->n_heads);
    bench_buf(m, BENCH_IN, sinks, s->n_heads);
    if (!m->failed)
        many_want(m, q, &k, &v, sinks, pos, n_tokens);
    BENCH_SPEC(m, spec);
    bench_grid(m, s->n_heads, bench_div_up(n_tokens, ATTN_QUERIES), 1);
    m->c->bytes = cache_bytes(m, pos + n_tokens) + 8.0 * (double)n_q;
    m->c->flops = 4.0 * s->n_heads * s->head_dim * n_tokens * (pos + (n_tokens + 1) / 2.0);
    WHAT(m, "%u tokens, %u/%u heads of %u", n_tokens, s->n_heads, s->n_kv, s->head_dim);
    return true;
}

/* ---- qk_norm
 * ----------------------------------------------------------------------------------------------- */

/* By heads, which are rows of their own in checks of the second use. */
static bool make_qk_norm(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const uint32_t n_q = s->n_heads * s->head_dim, n_kv = s->n_kv * s->head_dim, row = n_q + 2 * n_kv;
    const uint32_t n_tokens = check(m) ? s->n_tokens : 1;
    const uint32_t len_q = m->use ? n_q : s->head_dim, len_kv = m->use ? n_kv : s->head_dim;
    const struct spec_qk_norm spec = {bench_lanes(m), n_q, n_kv, len_q, len_kv, cor_float_bits(1e-6f)};
    double *want = doubles(m, (size_t)n_tokens * row);
    float *qkv, *w;

    if (m->use > check(m))
        return false;
    qkv = bench_floats(m, (size_t)n_tokens * row);
    w = bench_floats(m, (size_t)len_q + len_kv);
    for (uint32_t t = 0; want && !m->failed && t < n_tokens; t++)
        for (uint32_t at = 0, n; at < row; at += n) {
            const float *x = qkv + (size_t)t * row + at, *weights = at < n_q ? w : w + len_q;
            const bool values = at >= n_q + n_kv;

            n = at < n_q ? len_q : len_kv;
            const double scale = 1 / sqrt(bench_dot(x, x, n) / n + 1e-6);

            for (uint32_t i = 0; i < n; i++)
                want[(size_t)t * row + at + i] = values ? (double)x[i] : x[i] * scale * weights[i];
        }
    bench_buf(m, BENCH_INOUT, qkv, (size_t)n_tokens * row);
    bench_buf(m, BENCH_IN, w, (size_t)len_q + len_kv);
    bench_want_floats(m, 0, (size_t)n_tokens * row, want, BENCH_NMSE);
    BENCH_SPEC(m, spec);
    bench_grid(m, n_q / len_q + n_kv / len_kv, n_tokens, 1);
    m->c->bytes = 8.0 * n_tokens * (n_q + n_kv);
    m->c->flops = 4.0 * n_tokens * (n_q + n_kv);
    WHAT(m, "%u tokens, %u + %u heads of %u", n_tokens, s->n_heads, s->n_kv, s->head_dim);
    return true;
}

void bench_add_attn(struct bench_entry *entries)
{
    entries[GPU_K_qk_norm] = (struct bench_entry){make_qk_norm, false};
    entries[GPU_K_rope_kv] = (struct bench_entry){make_rope, true};
    entries[GPU_K_attn_one] = entries[GPU_K_attn_one_sg] = (struct bench_entry){make_one, true};
    entries[GPU_K_attn_many] = entries[GPU_K_attn_many_ln] = (struct bench_entry){make_many, true};
}
