/* Attention kernels against plain C in double: rope_kv, attn_one, attn_many. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "support/kernel_test.h"

/* exp of a score may err by 3 + 2 |x| units in the last place (Vulkan); scores here stay within 8 of the
 * maximum. */
#define ATTN_NMSE 4e-12

struct shape {
    uint32_t head_dim, n_heads, n_kv, n_rot;
    bool neox;
    enum mdl_type k, v; /* of the caches */
    uint32_t window;
    bool sinks;
};

#define F32 MDL_F32
#define F16 MDL_F16
#define Q8  MDL_Q8_0

/* One cache: values as the kernels should see them, and the words that hold them. */
struct cache {
    float *values; /* (n_pos, n_kv, head_dim) */
    uint32_t *words;
    size_t n_words;
};

static size_t cache_words(size_t n, enum mdl_type type)
{
    return type == MDL_Q8_0 ? n / CACHE_ELEMS * CACHE_WORDS : type == MDL_F16 ? n / 2 : n;
}

/* Block of 32 elements as a cache in Q8_0 has it, and what it stands for. */
static void cache_block(float *values, uint32_t *words)
{
    uint8_t block[34];
    uint16_t d;

    mdl_quant_row(MDL_Q8_0, values, block, CACHE_ELEMS);
    mdl_dequant_row(MDL_Q8_0, block, values, CACHE_ELEMS);
    memcpy(&d, block, sizeof(d));
    memcpy(words, block + 2, CACHE_ELEMS);
    words[CACHE_WORDS - 1] = kt_bits(mdl_half_to_float(d));
}

static void cache_make(struct cache *c, size_t n, enum mdl_type type)
{
    c->values = kt_floats(n);
    c->n_words = cache_words(n, type);
    c->words = kt_words(c->n_words);
    for (size_t i = 0; i < n; i++) {
        uint16_t h = mdl_float_to_half(c->values[i]);

        if (type == MDL_F16) {
            c->values[i] = mdl_half_to_float(h);
            c->words[i / 2] |= (uint32_t)h << (i % 2 * 16);
        } else if (type == MDL_F32) {
            c->words[i] = kt_bits(c->values[i]);
        } else if (i % CACHE_ELEMS == 0) {
            cache_block(c->values + i, c->words + i / CACHE_ELEMS * CACHE_WORDS);
        }
    }
}

static void cache_free(struct cache *c)
{
    cor_free(c->values);
    cor_free(c->words);
}

/* ---- rope_kv
 * ------------------------------------------------------------------------------------------------ */

/* Element d of a head of qkv, rotated by the cos and sin of one position. */
static double rotated(const struct shape *s, const float *head, uint32_t d, const float *rope)
{
    uint32_t half = s->n_rot / 2;
    bool first = s->neox ? d < half : d % 2 == 0;
    uint32_t i = s->neox ? (d < half ? d : d - half) : d / 2;
    uint32_t other = s->neox ? (first ? d + half : d - half) : d ^ 1u;

    if (d >= s->n_rot)
        return head[d];
    if (first)
        return (double)head[d] * rope[2 * i] - (double)head[other] * rope[2 * i + 1];
    return (double)head[d] * rope[2 * i] + (double)head[other] * rope[2 * i + 1];
}

static float cached(const uint32_t *words, size_t i, enum mdl_type type)
{
    const uint32_t *block = words + i / CACHE_ELEMS * CACHE_WORDS;
    int8_t q[CACHE_ELEMS];

    if (type == MDL_Q8_0) {
        memcpy(q, block, sizeof(q));
        return (float)q[i % CACHE_ELEMS] * kt_float(block[CACHE_WORDS - 1]);
    }
    return type == MDL_F16 ? mdl_half_to_float((uint16_t)(words[i / 2] >> (i % 2 * 16))) : kt_float(words[i]);
}

/* n elements from `at` on: within half a unit in the last place of a half, within f32 rounding, or within
 * half a step of the block and what its scale in half precision adds. */
static void check_cached(const char *what, const uint32_t *words, size_t at, const double *want, uint32_t n,
                         enum mdl_type type)
{
    for (uint32_t i = 0; i < n; i++) {
        const double got = cached(words, at + i, type);
        double unit = type == MDL_F16 ? fmax(ldexp(fabs(want[i]), -11), ldexp(1, -25)) : ldexp(1, -23);

        for (uint32_t j = i / CACHE_ELEMS * CACHE_ELEMS;
             type == MDL_Q8_0 && j < i / CACHE_ELEMS * CACHE_ELEMS + 32; j++)
            unit = fmax(unit, fabs(want[j]) / 127 * 0.54);
        if (!(fabs(got - want[i]) <= unit * 1.001))
            fail_msg("rope_kv: %s is %.9g, expected %.9g", what, got, want[i]);
    }
}

static void rope_case(const struct shape *s, uint32_t wg, uint32_t pos, uint32_t n_tokens)
{
    const struct spec_rope spec = {wg, s->head_dim, s->n_heads, s->n_kv, s->n_rot, s->neox, s->k, s->v};
    uint32_t n_q = s->n_heads * s->head_dim, n_kv = s->n_kv * s->head_dim, row = n_q + 2 * n_kv,
             half = s->n_rot / 2;
    uint32_t n_pos = pos + n_tokens;
    size_t k_words = cache_words((size_t)n_pos * n_kv, s->k),
           v_words = cache_words((size_t)n_pos * n_kv, s->v);
    uint32_t *state = kt_state(n_tokens, pos, 0, 1), *k = kt_words(k_words), *v = kt_words(v_words);
    float *qkv = kt_floats((size_t)n_tokens * row), *q = kt_floats((size_t)n_tokens * n_q);
    float *rope = kt_floats((size_t)n_pos * half * 2 + 1);
    double *want = cor_array((size_t)n_tokens * n_q, sizeof(*want));
    double *keys = cor_array(2 * (size_t)n_kv, sizeof(*keys)), *values = keys + n_kv;
    struct kt_buf bufs[] = {{state, STEP_TOKENS * 4, KT_IN, false},
                            {qkv, (size_t)n_tokens * row * 4, KT_IN, false},
                            {q, (size_t)n_tokens * n_q * 4, KT_OUT, false},
                            {k, k_words * 4, KT_OUT, false},
                            {v, v_words * 4, KT_OUT, false},
                            {rope, ((size_t)n_pos * half * 2 + 1) * 4, KT_IN, false}};

    KT_RUN(GPU_K_rope_kv, spec, NULL, bufs, (row / 2 + wg - 1) / wg, n_tokens, 1);
    for (uint32_t t = 0; t < n_tokens; t++) {
        const float *in = qkv + (size_t)t * row, *turn = rope + (size_t)(pos + t) * half * 2;

        for (uint32_t e = 0; e < n_q; e++)
            want[(size_t)t * n_q + e] = rotated(s, in + e / s->head_dim * s->head_dim, e % s->head_dim, turn);
        for (uint32_t e = 0; e < n_kv; e++) {
            keys[e] = rotated(s, in + n_q + e / s->head_dim * s->head_dim, e % s->head_dim, turn);
            values[e] = in[n_q + n_kv + e];
        }
        check_cached("key", k, (size_t)(pos + t) * n_kv, keys, n_kv, s->k);
        check_cached("value", v, (size_t)(pos + t) * n_kv, values, n_kv, s->v);
    }
    for (size_t i = 0; i < k_words / n_pos * pos; i++)
        assert_int_equal(k[i], KT_POISON); /* earlier positions stay */
    for (size_t i = 0; i < v_words / n_pos * pos; i++)
        assert_int_equal(v[i], KT_POISON);
    kt_close("rope_kv: query", q, want, (size_t)n_tokens * n_q, KT_NMSE, KT_LARGEST);
    cor_free(state);
    cor_free(k);
    cor_free(v);
    cor_free(qkv);
    cor_free(q);
    cor_free(rope);
    cor_free(want);
    cor_free(keys);
}

static void test_rope(void **unused)
{
    static const struct shape shapes[] = {
        {64, 4, 2, 64, false, F16, F16, 0, false}, {64, 4, 2, 64, true, F32, F32, 0, false},
        {6, 3, 3, 6, true, F16, F32, 0, false},   {10, 2, 1, 6, true, F32, F16, 0, false},
        {10, 2, 1, 6, false, F16, F16, 0, false},  {2, 1, 1, 2, false, F32, F32, 0, false},
        {4, 1, 1, 0, false, F16, F16, 0, false},   {64, 4, 2, 64, true, Q8, Q8, 0, false},
        {96, 2, 1, 32, false, F16, Q8, 0, false},
    };

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(shapes); i++)
        rope_case(&shapes[i], i % 2 ? 32 : 128, i * 3, 1 + i % 3);
}

/* What a half cannot hold: NaN and infinities stay visible, finite values too large become the largest half.
 */
static void test_rope_halves(void **unused)
{
    static const float values[] = {
        NAN,     INFINITY, -INFINITY, 1e6f,   -70000.0f, 65504.0f,       65519.0f, 65520.0f, 6.1e-5f, 5.9e-8f,
        2.9e-8f, 3e-8f,    -0.0f,     1e-30f, -4.17e-7f, 1.00048828125f, 2049.0f,  2051.0f,  0.1f,    -3.3f};
    enum { N = COR_COUNT(values) };
    const struct spec_rope spec = {32, N, 1, 1, 0, 0, 1, 1};
    uint32_t *state = kt_state(1, 0, 0, 1), k[N / 2], v[N / 2];
    float qkv[3 * N], q[N], rope[2] = {1, 0};
    struct kt_buf bufs[] = {{state, STEP_TOKENS * 4, KT_IN, false}, {qkv, sizeof(qkv), KT_IN, false},
                            {q, sizeof(q), KT_OUT, false},          {k, sizeof(k), KT_OUT, false},
                            {v, sizeof(v), KT_OUT, false},          {rope, sizeof(rope), KT_IN, false}};

    (void)unused;
    for (uint32_t i = 0; i < 3 * N; i++)
        qkv[i] = values[i % N];
    KT_RUN(GPU_K_rope_kv, spec, NULL, bufs, 1, 1, 1);
    for (uint32_t i = 0; i < N; i++) {
        uint16_t want = mdl_float_to_half(values[i]), got = (uint16_t)(v[i / 2] >> (i % 2 * 16));

        if (isfinite(values[i]) && isinf(mdl_half_to_float(want)))
            want = (uint16_t)((want & 0x8000) | 0x7bff);
        if (isnan(values[i]) ? !isnan(mdl_half_to_float(got)) : got != want)
            fail_msg("rope_kv: %.9g as half is 0x%04x, expected 0x%04x", (double)values[i], got, want);
        assert_int_equal(k[i / 2] >> (i % 2 * 16) & 0xffff, got);
    }
    cor_free(state);
}

/* Q8_0: what the encoder makes where nothing is rotated, but for quotients that a device rounds otherwise:
 * one step of a quant, one unit of the scale. What is not finite stays visible. */
static void test_rope_blocks(void **unused)
{
    enum { N = 96 };
    const struct spec_rope spec = {32, N, 1, 1, 0, 0, Q8, Q8};
    uint32_t *state = kt_state(1, 0, 0, 1), k[N / CACHE_ELEMS * CACHE_WORDS], v[COR_COUNT(k)],
             want[COR_COUNT(k)];
    float *qkv = kt_floats(3 * N), q[N], rope[2] = {1, 0};
    uint32_t near = 0;
    struct kt_buf bufs[] = {{state, STEP_TOKENS * 4, KT_IN, false}, {qkv, 3 * N * 4, KT_IN, false},
                            {q, sizeof(q), KT_OUT, false},          {k, sizeof(k), KT_OUT, false},
                            {v, sizeof(v), KT_OUT, false},          {rope, sizeof(rope), KT_IN, false}};

    (void)unused;
    memset(qkv + 2 * N + 32, 0, 32 * sizeof(*qkv));
    qkv[N + 40] = NAN;
    qkv[N + 70] = -INFINITY;
    KT_RUN(GPU_K_rope_kv, spec, NULL, bufs, (3 * N / 2 + 31) / 32, 1, 1);
    cor_free(state);
    for (uint32_t b = 0; b < N / CACHE_ELEMS; b++)
        cache_block(qkv + 2 * N + b * CACHE_ELEMS, want + b * CACHE_WORDS);
    for (uint32_t e = 0; e < N; e++) {
        const float step = kt_float(want[(e / CACHE_ELEMS + 1) * CACHE_WORDS - 1]);
        const float got = cached(v, e, Q8), expected = cached(want, e, Q8);

        assert_true(fabsf(got - expected) <= 1.1f * step);
        near += fabsf(got - expected) <= 1e-3f * fabsf(expected);
    }
    assert_true(near >= N - 2);
    assert_true(isfinite(kt_float(k[CACHE_WORDS - 1])));
    for (uint32_t e = CACHE_ELEMS; e < N; e++)
        assert_true(isnan(cached(k, e, Q8)));
    cor_free(qkv);
}

/* ---- attention
 * ---------------------------------------------------------------------------------------------- */

/* First position that a query at `at` sees. */
static uint32_t first_seen(const struct shape *s, uint32_t at)
{
    return s->window && at >= s->window ? at - s->window + 1 : 0;
}

/* out[t][head][head_dim] of queries q at positions pos + t. sinks: (n_heads), or NULL. */
static void attn_want(const struct shape *s, const float *q, const struct cache *k, const struct cache *v,
                      const float *sinks, uint32_t pos, uint32_t n_tokens, double *out)
{
    uint32_t hd = s->head_dim;
    double *p = cor_array((size_t)pos + n_tokens, sizeof(*p));

    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t h = 0; h < s->n_heads; h++) {
            const float *qh = q + ((size_t)t * s->n_heads + h) * hd;
            double *o = out + ((size_t)t * s->n_heads + h) * hd, top = sinks ? (double)sinks[h] : -INFINITY,
                   sum;
            uint32_t kv = h * s->n_kv / s->n_heads, first = first_seen(s, pos + t);

            for (uint32_t j = first; j <= pos + t; j++) {
                p[j] = 0;
                for (uint32_t d = 0; d < hd; d++)
                    p[j] += (double)qh[d] * k->values[((size_t)j * s->n_kv + kv) * hd + d];
                p[j] *= (double)(float)(1 / sqrt(hd));
                top = fmax(top, p[j]);
            }
            sum = sinks ? exp(sinks[h] - top) : 0;
            for (uint32_t j = first; j <= pos + t; j++)
                sum += p[j] = exp(p[j] - top);
            for (uint32_t d = 0; d < hd; d++) {
                o[d] = 0;
                for (uint32_t j = first; j <= pos + t; j++)
                    o[d] += p[j] / sum * v->values[((size_t)j * s->n_kv + kv) * hd + d];
            }
        }
    cor_free(p);
}

struct attn_data {
    struct cache k, v;
    uint32_t *state;
    float *q, *out, *sinks;
    double *want;
    size_t n_out;
};

/* The caches end with the last position, so that a read behind it meets the guard's NaN. */
static void attn_make(struct attn_data *a, const struct shape *s, uint32_t pos, uint32_t n_tokens)
{
    size_t n_cache = (size_t)(pos + n_tokens) * s->n_kv * s->head_dim;

    a->n_out = (size_t)n_tokens * s->n_heads * s->head_dim;
    cache_make(&a->k, n_cache, s->k);
    cache_make(&a->v, n_cache, s->v);
    a->state = kt_state(n_tokens, pos, 0, 1);
    a->q = kt_floats(a->n_out);
    a->out = kt_floats(a->n_out);
    a->sinks = kt_floats(s->n_heads);
    a->want = cor_array(a->n_out, sizeof(*a->want));
    for (size_t i = 0; i < a->n_out; i++)
        a->q[i] *= 4;
    for (uint32_t h = 0; h < s->n_heads; h++)
        a->sinks[h] *= 6;
    attn_want(s, a->q, &a->k, &a->v, s->sinks ? a->sinks : NULL, pos, n_tokens, a->want);
}

static void attn_free(struct attn_data *a)
{
    cache_free(&a->k);
    cache_free(&a->v);
    cor_free(a->state);
    cor_free(a->q);
    cor_free(a->out);
    cor_free(a->sinks);
    cor_free(a->want);
}

static struct spec_attn attn_spec(const struct shape *s, uint32_t wg, uint32_t n_splits)
{
    return (struct spec_attn){
        wg,   s->head_dim, s->n_heads, s->n_kv,   kt_bits((float)(1 / sqrt(s->head_dim))),
        s->k, s->v,        n_splits,   s->window, s->sinks};
}

static void attn_one_case(enum gpu_kernel k, const struct shape *s, uint32_t wg, uint32_t pos)
{
    uint32_t n = pos / ATTN_SPLIT + 1, n_splits = n + 1; /* one split more than used */
    const struct spec_attn spec = attn_spec(s, wg, n_splits);
    size_t n_part = (size_t)s->n_heads * n_splits * (s->head_dim + 2);
    float *part = kt_floats(n_part);
    uint32_t *counts = kt_words(s->n_heads);
    char what[96];
    struct attn_data a;

    attn_make(&a, s, pos, 1);
    struct kt_buf bufs[] = {
        {a.state, STEP_TOKENS * 4, KT_IN, false},   {a.q, a.n_out * 4, KT_IN, false},
        {a.k.words, a.k.n_words * 4, KT_IN, false}, {a.v.words, a.v.n_words * 4, KT_IN, false},
        {part, n_part * 4, KT_OUT, false},          {a.out, a.n_out * 4, KT_OUT, false},
        {counts, s->n_heads * 4, KT_INOUT, true},   {a.sinks, s->n_heads * 4, KT_IN, false}};
    KT_RUN(k, spec, NULL, bufs, s->n_heads, n, 1);
    for (uint32_t h = 0; h < s->n_heads; h++)
        for (uint32_t i = 0; i < s->head_dim + 2; i++)
            assert_int_equal(kt_bits(part[((size_t)h * n_splits + n) * (s->head_dim + 2) + i]), KT_POISON);
    for (uint32_t h = 0; h < s->n_heads; h++)
        assert_int_equal(counts[h], 0); /* as the next token wants it */
    snprintf(what, sizeof(what), "%s: head %u, heads %u/%u, position %u", gpu_kernel_info(k)->name,
             s->head_dim, s->n_heads, s->n_kv, pos);
    kt_close(what, a.out, a.want, a.n_out, ATTN_NMSE, KT_LARGEST);
    attn_free(&a);
    cor_free(part);
    cor_free(counts);
}

static void test_attn_one(void **unused)
{
    static const enum gpu_kernel kernels[2] = {GPU_K_attn_one, GPU_K_attn_one_sg};
    static const struct shape shapes[] = {
        {64, 4, 2, 0, false, F16, F16, 0, false},
        {64, 2, 1, 0, false, F32, F16, 0, false},
        {2, 1, 1, 0, false, F16, F32, 0, false},
        {80, 3, 3, 0, false, F32, F32, 0, false},
        {256, 2, 1, 0, false, F16, F16, 0, false},
        {16, 6, 2, 0, false, F16, F16, 40, true},
        {64, 4, 2, 0, false, F32, F32, ATTN_SPLIT + 9, false},
        {96, 4, 2, 0, false, Q8, Q8, 0, false},
    };
    static const struct {
        uint32_t shape, wg, pos;
    } cases[] = {{0, 128, 0},
                 {0, 128, 1},
                 {0, 128, ATTN_SPLIT - 1},
                 {0, 128, ATTN_SPLIT},
                 {1, 32, 299},
                 {2, 64, 5},
                 {3, 64, 130},
                 {4, 64, 40},
                 {0, 32, 20 * ATTN_SPLIT + 9},
                 {5, 64, 7},
                 {5, 64, 39},
                 {5, 32, 3 * ATTN_SPLIT + 5},
                 {6, 128, 4 * ATTN_SPLIT},
                 {7, 128, 139}};

    (void)unused;
    for (int v = 0; v < 2; v++)
        for (uint32_t i = 0; i < COR_COUNT(cases) && kt_usable(kernels[v]); i++)
            if (kt_wanted(i + (uint32_t)v))
                attn_one_case(kernels[v], &shapes[cases[i].shape], cases[i].wg, cases[i].pos);
}

static void attn_many_case(enum gpu_kernel k, const struct shape *s, uint32_t pos, uint32_t n_tokens)
{
    const struct spec_attn spec = attn_spec(s, kt_cut(k, 128, 0).wg, 1);
    char what[96];
    struct attn_data a;

    attn_make(&a, s, pos, n_tokens);
    struct kt_buf bufs[] = {
        {a.state, STEP_TOKENS * 4, KT_IN, false},   {a.q, a.n_out * 4, KT_IN, false},
        {a.k.words, a.k.n_words * 4, KT_IN, false}, {a.v.words, a.v.n_words * 4, KT_IN, false},
        {a.out, a.n_out * 4, KT_OUT, false},        {a.sinks, s->n_heads * 4, KT_IN, false}};
    KT_RUN(k, spec, NULL, bufs, s->n_heads, (n_tokens + ATTN_QUERIES - 1) / ATTN_QUERIES, 1);
    snprintf(what, sizeof(what), "%s: head %u, heads %u/%u, position %u, %u tokens", gpu_kernel_info(k)->name,
             s->head_dim, s->n_heads, s->n_kv, pos, n_tokens);
    kt_close(what, a.out, a.want, a.n_out, ATTN_NMSE, KT_LARGEST);
    attn_free(&a);
}

static void test_attn_many(void **unused)
{
    static const struct shape shapes[] = {
        {64, 4, 2, 0, false, F16, F16, 0, false},    {6, 2, 1, 0, false, F32, F16, 0, false},
        {80, 3, 3, 0, false, F32, F32, 0, false},  {256, 2, 1, 0, false, F16, F32, 0, false},
        {130, 1, 1, 0, false, F32, F32, 0, false}, {16, 6, 2, 0, false, F16, F16, 20, true},
        {64, 4, 2, 0, false, F32, F16, 1, true},    {24, 3, 1, 0, false, F32, F32, 70, false},
        {32, 2, 1, 0, false, Q8, F32, 0, false},       {64, 2, 2, 0, false, F16, Q8, 0, false},
    };
    static const struct {
        uint32_t shape, pos, n_tokens;
    } cases[] = {{0, 0, 1},  {0, 129, 17}, {0, 0, 33},  {0, 31, 16}, {1, 3, 50},  {3, 20, 18}, {2, 64, 5},
                 {4, 0, 64}, {5, 0, 40},   {5, 77, 35}, {6, 5, 18},  {7, 90, 40}, {8, 9, 40},  {9, 2, 19}};

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(cases); i++)
        for (int v = 0; v < 2 && kt_wanted(i); v++) {
            const struct shape *s = &shapes[cases[i].shape];
            enum gpu_kernel k = v ? GPU_K_attn_many_ln : GPU_K_attn_many;

            if ((v == 0 || (s->head_dim % 8 == 0 && s->k != Q8 && s->v != Q8)) && kt_usable(k))
                attn_many_case(k, s, cases[i].pos, cases[i].n_tokens);
        }
}

/* NaN in what a query sees ends in NaN, not in a silent number. */
static void attn_nan_case(enum gpu_kernel k)
{
    const struct shape s = {8, 1, 1, 0, false, F32, F32, 0, false};
    const struct spec_attn spec = attn_spec(&s, kt_cut(k, 128, 0).wg, 1);
    struct attn_data a;

    attn_make(&a, &s, 0, 20);
    a.k.words[10 * 8] = kt_bits(NAN);
    struct kt_buf bufs[] = {
        {a.state, STEP_TOKENS * 4, KT_IN, false},   {a.q, a.n_out * 4, KT_IN, false},
        {a.k.words, a.k.n_words * 4, KT_IN, false}, {a.v.words, a.v.n_words * 4, KT_IN, false},
        {a.out, a.n_out * 4, KT_OUT, false},        {a.sinks, 4, KT_IN, false}};
    KT_RUN(k, spec, NULL, bufs, 1, 2, 1);
    for (uint32_t t = 0; t < 20; t++)
        for (uint32_t d = 0; d < 8; d++)
            assert_int_equal(isnan(a.out[t * 8 + d]) != 0, t >= 10);
    attn_free(&a);
}

static void test_attn_nan(void **unused)
{
    (void)unused;
    attn_nan_case(GPU_K_attn_many);
    if (kt_usable(GPU_K_attn_many_ln))
        attn_nan_case(GPU_K_attn_many_ln);
}

/* ---- qk_norm
 * ------------------------------------------------------------------------------------------------ */

static void qk_norm_case(uint32_t wg, uint32_t n_q, uint32_t n_kv, uint32_t len_q, uint32_t len_kv)
{
    enum { T = 3 };
    const struct spec_qk_norm spec = {wg, n_q, n_kv, len_q, len_kv, kt_bits(1e-3f)};
    const size_t row = n_q + 2 * (size_t)n_kv;
    float *qkv = kt_floats(T * row), *w = kt_floats(len_q + (size_t)len_kv);
    double *want = cor_array(T * row, sizeof(*want));
    struct kt_buf bufs[] = {{qkv, T * row * 4, KT_INOUT, false},
                            {w, (len_q + (size_t)len_kv) * 4, KT_IN, false}};

    for (size_t i = 0; i < T * row; i++)
        want[i] = qkv[i];
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t at = 0; at < n_q + n_kv;) {
            const bool keys = at >= n_q;
            const uint32_t n = keys ? len_kv : len_q;
            double *x = want + t * row + at, sum = 0;

            for (uint32_t i = 0; i < n; i++)
                sum += x[i] * x[i];
            for (uint32_t i = 0; i < n; i++)
                x[i] *= w[(keys ? len_q : 0) + i] / sqrt(sum / n + (double)1e-3f);
            at += n;
        }
    KT_RUN(GPU_K_qk_norm, spec, NULL, bufs, n_q / len_q + n_kv / len_kv, T, 1);
    kt_close("qk_norm", qkv, want, T * row, KT_NMSE, KT_LARGEST);
    cor_free(qkv);
    cor_free(w);
    cor_free(want);
}

static void test_qk_norm(void **unused)
{
    (void)unused;
    qk_norm_case(32, 6 * 24, 2 * 24, 24, 24);
    qk_norm_case(128, 320, 64, 320, 64);
    qk_norm_case(64, 2, 2, 2, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_qk_norm),     cmocka_unit_test(test_rope),
        cmocka_unit_test(test_rope_halves), cmocka_unit_test(test_rope_blocks),
        cmocka_unit_test(test_attn_one),    cmocka_unit_test(test_attn_many),
        cmocka_unit_test(test_attn_nan),
    };

    return kt_main(KT_ATTN, tests, COR_COUNT(tests));
}
