/* Cases of the kernels that run experts out of slots, for one token and for tiles of many, and of what adds
 * their outputs. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/make.h"

#define SLOTS_MEASURED 32u          /* experts that a chunk spreads over */
#define POOL_MEASURED  (192u << 20) /* bytes of slots */

/* Slots of experts 0 .. n_slots - 1, in another order. */
struct pool {
    uint32_t n_slots, per_seg, stride, up_off, down_off;
    uint32_t bias; /* of gate, up and down behind each other; 0: none */
    size_t seg_words;
    uint8_t *segs[BENCH_SEGS];
    float **gate, **up, **down, **biases; /* of each slot's expert; NULL: not checked */
};

/* Checks of one shape have a second case: experts with biases and the clamped activation. */
static bool has_bias(const struct bench_maker *m)
{
    return m->use == 1 && check(m) && !strcmp(m->s->name, "blocks");
}

static uint32_t n_biases(const struct bench_maker *m)
{
    return 2 * m->s->ff + m->s->dim;
}

/* One matrix of a slot: bytes to where it stands, values to *values. */
static void place(struct bench_maker *m, uint8_t *at, uint32_t rows, uint32_t cols, float **values)
{
    size_t n;
    const uint8_t *bytes = bench_matrix(m, m->env->type, rows, cols, 0, &n, values);

    if (bytes)
        memcpy(at, bytes, (size_t)rows * (size_t)mdl_row_bytes(m->env->type, cols));
}

/* Some of them are large enough to be clamped. */
static void place_biases(struct bench_maker *m, uint8_t *at, float **values)
{
    *values = bench_floats(m, n_biases(m));
    for (uint32_t i = 0; !m->failed && i < n_biases(m); i++)
        (*values)[i] *= 9;
    if (!m->failed)
        memcpy(at, *values, 4 * (size_t)n_biases(m));
}

/* Kernels with quantised inputs. */
static bool is_dot(const struct bench_maker *m)
{
    return strstr(gpu_kernel_info(m->c->kernel)->name, "_dot") != NULL;
}

static void pool_layout(const struct bench_maker *m, struct pool *p, bool many)
{
    const struct bench_shape *s = m->s;
    const uint64_t row_in = mdl_row_bytes(m->env->type, s->dim), row_out = mdl_row_bytes(m->env->type, s->ff);
    /* odd offsets within a slot, but for kernels that take another path on 16-byte boundaries */
    const bool wide = m->env->type != MDL_F32 && (row_in | row_out) % 16 == 0 && is_dot(m);
    const uint32_t gap = !check(m) || m->env->type == MDL_F32 ? 0 : wide ? 16 : 2;
    const uint64_t max = m->env->caps->max_range < POOL_MEASURED ? m->env->caps->max_range : POOL_MEASURED;
    uint32_t n = check(m) ? s->n_experts : many ? SLOTS_MEASURED : s->k_used;

    p->up_off = (uint32_t)row_in * s->ff + gap;
    p->down_off = 2 * p->up_off;
    p->stride = (p->down_off + (uint32_t)row_out * s->dim + gap + 3) / 4 * 4;
    if (has_bias(m) && !is_dot(m)) {
        p->bias = p->stride;
        p->stride += 4 * n_biases(m);
    }
    if (check(m) && n > 12)
        n = 12;
    if (n > s->n_experts)
        n = s->n_experts;
    while (n > s->k_used && (uint64_t)bench_div_up(n, m->c->n_segs) * p->stride > max)
        n--;
    p->n_slots = n;
    p->per_seg = bench_div_up(n, m->c->n_segs);
    p->seg_words = ((size_t)p->stride * p->per_seg + 7) / 4;
}

/* Contents in checks; in measurements one expert's bytes serve all. */
static void pool_make(struct bench_maker *m, struct pool *p, bool many)
{
    const struct bench_shape *s = m->s;
    uint8_t *first = NULL;

    memset(p, 0, sizeof(*p));
    pool_layout(m, p, many);
    for (uint32_t i = 0; i < m->c->n_segs; i++) {
        p->segs[i] = bench_array(m, p->seg_words, 4);
        if (p->segs[i])
            memset(p->segs[i], 0x7f, p->seg_words * 4);
    }
    if (check(m)) {
        p->gate = bench_array(m, p->n_slots, sizeof(*p->gate));
        p->up = bench_array(m, p->n_slots, sizeof(*p->up));
        p->down = bench_array(m, p->n_slots, sizeof(*p->down));
        p->biases = bench_array(m, p->n_slots, sizeof(*p->biases));
    }
    for (uint32_t i = 0; !m->failed && i < p->n_slots; i++) {
        uint8_t *at = p->segs[i / p->per_seg] + (size_t)(i % p->per_seg) * p->stride;

        if (!check(m) && first) {
            memcpy(at, first, p->stride);
            continue;
        }
        /* A few experts differ; the case has room for so many pieces of memory. */
        if (check(m) && i >= 2) {
            memcpy(at, p->segs[0] + (size_t)(i % 2) * p->stride, p->stride);
            p->gate[i] = p->gate[i % 2];
            p->up[i] = p->up[i % 2];
            p->down[i] = p->down[i % 2];
            p->biases[i] = p->biases[i % 2];
            continue;
        }
        place(m, at, s->ff, s->dim, check(m) ? &p->gate[i] : NULL);
        place(m, at + p->up_off, s->ff, s->dim, check(m) ? &p->up[i] : NULL);
        place(m, at + p->down_off, s->dim, s->ff, check(m) ? &p->down[i] : NULL);
        if (p->bias)
            place_biases(m, at + p->bias, &p->biases[i]);
        first = at;
    }
}

/* A slot for an expert: neighbours in id stand in different segments. */
static uint32_t slot_of(const struct pool *p, uint32_t expert)
{
    return (expert * 11 + 1) % p->n_slots;
}

struct experts {
    struct pool pool;
    uint32_t n_tokens, n_pairs, n_tiles, n_listed;
    uint32_t *sel, *ranks, *tiles, *pairs;
    bool down, many;
};

static void make_tiles(struct bench_maker *m, struct experts *x)
{
    x->tiles = bench_array(m, (size_t)(x->pool.n_slots + x->n_pairs / TILE_TOKENS + 1) * TILE_WORDS, 4);
    x->pairs = bench_array(m, x->n_pairs, 4);
    for (uint32_t e = 0; !m->failed && e < x->pool.n_slots; e++) {
        uint32_t in_tile = TILE_TOKENS;

        for (uint32_t i = 0; i < x->n_pairs; i++) {
            if (x->sel[2 * i] != e)
                continue;
            if (in_tile == TILE_TOKENS) {
                uint32_t *t = x->tiles + (size_t)x->n_tiles++ * TILE_WORDS;

                t[TILE_SLOT] = slot_of(&x->pool, e);
                t[TILE_FIRST] = x->n_listed;
                t[TILE_EXPERT] = e;
                in_tile = 0;
            }
            x->tiles[(size_t)(x->n_tiles - 1) * TILE_WORDS + TILE_COUNT] = ++in_tile;
            x->pairs[x->n_listed++] = i;
        }
    }
}

static void make_choices(struct bench_maker *m, struct experts *x)
{
    struct bench_shape limited = *m->s;

    limited.n_experts = x->pool.n_slots;
    m->s = &limited;
    x->sel = bench_choose(m, x->n_tokens, check(m));
    m->s = m->env->shape;
    x->ranks = bench_array(m, x->n_pairs, 4);
    for (uint32_t i = 0; !m->failed && i < x->n_pairs; i++)
        x->ranks[i] = x->sel[2 * i] == NONE ? NONE : slot_of(&x->pool, x->sel[2 * i]);
    if (x->many)
        make_tiles(m, x);
}

/* Row r of an expert's hidden state. */
static double hidden(const struct bench_maker *m, const float *bias, uint32_t r, double g, double u)
{
    if (!bias)
        return g / (1 + exp(-g)) * u;
    g += bias[r];
    u += bias[m->s->ff + r];
    g = g > ACT_LIMIT ? ACT_LIMIT : g; /* NaN stays */
    u = u > ACT_LIMIT ? ACT_LIMIT : u < -ACT_LIMIT ? -ACT_LIMIT : u;
    return g / (1 + exp(-ACT_ALPHA * g)) * (u + 1);
}

static void expert_want(struct bench_maker *m, const struct experts *x, const float *in, uint32_t buf)
{
    const struct bench_shape *s = m->s;
    const uint32_t rows = x->down ? s->dim : s->ff, n_in = x->down ? s->ff : s->dim;
    double *want = doubles(m, (size_t)x->n_pairs * rows);

    for (uint32_t i = 0; want && i < x->n_pairs; i++) {
        const float *v = in + (size_t)(x->down ? i : i / s->k_used) * n_in;
        const uint32_t slot = x->ranks[i];

        for (uint32_t r = 0; r < rows; r++) {
            double *w = want + (size_t)i * rows + r;

            if (slot == NONE) {
                *w = NAN; /* stays as it was: poison */
            } else if (x->down) {
                *w = bench_dot(x->pool.down[slot] + (size_t)r * n_in, v, n_in) +
                     (x->pool.bias ? (double)x->pool.biases[slot][2 * s->ff + r] : 0);
            } else {
                *w = hidden(m, x->pool.bias ? x->pool.biases[slot] : NULL, r,
                            bench_dot(x->pool.gate[slot] + (size_t)r * n_in, v, n_in),
                            bench_dot(x->pool.up[slot] + (size_t)r * n_in, v, n_in));
            }
        }
    }
    bench_want_sums(m, buf, (size_t)x->n_pairs * rows, want, n_in);
}

static void expert_spec(struct bench_maker *m, const struct experts *x, uint32_t *rows)
{
    const struct bench_shape *s = m->s;
    const enum mdl_type t = m->env->type;
    const uint32_t n_in = x->down ? s->ff : s->dim;
    const struct push_expert push = {0};
    const struct spec_expert spec = {
        .wg = x->many ? bench_tile_lanes(m, n_in) : bench_row_lanes(m, n_in),
        .dim = s->dim,
        .ff = s->ff,
        .n_experts = s->n_experts,
        .k_used = s->k_used,
        .fmt_gate = t,
        .fmt_up = t,
        .fmt_down = t,
        .up_off = x->pool.up_off,
        .down_off = x->pool.down_off,
        .slot_stride = x->pool.stride,
        .slots_per_seg = x->pool.per_seg,
        .n_segs = m->c->n_segs,
        .rows = x->many ? bench_tile_rows(m) : bench_rows(m),
        .aligned = run_alignment(t, mdl_row_bytes(t, n_in), x->down ? x->pool.down_off : x->pool.up_off,
                                 x->pool.stride),
        .gate_bias = x->pool.bias,
        .up_bias = x->pool.bias ? x->pool.bias + 4 * s->ff : 0,
        .down_bias = x->pool.bias ? x->pool.bias + 8 * s->ff : 0,
        .act = x->pool.bias ? ACT_CLAMPED : ACT_SILU,
    };

    *rows = spec.rows;
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
}

static void expert_cost(struct bench_maker *m, const struct experts *x)
{
    const struct bench_shape *s = m->s;
    const double matrix =
        (double)mdl_row_bytes(m->env->type, x->down ? s->ff : s->dim) * (x->down ? s->dim : 2.0 * s->ff);
    const uint32_t n_in = x->down ? s->ff : s->dim, n_out = x->down ? s->dim : s->ff;
    uint32_t n_experts = 0;

    for (uint32_t i = 0; i < (x->many ? x->n_tiles : x->n_pairs); i++)
        n_experts += !x->many || !x->tiles[i * TILE_WORDS + TILE_FIRST] ||
                     x->tiles[i * TILE_WORDS + TILE_EXPERT] != x->tiles[(i - 1) * TILE_WORDS + TILE_EXPERT];
    m->c->bytes = n_experts * matrix + 4.0 * (double)x->n_pairs * n_out +
                  (is_dot(m) ? 1.25 : 4.0) * (x->down ? x->n_pairs : x->n_tokens) * n_in;
    m->c->flops = 2.0 * x->n_pairs * n_in * n_out * (x->down ? 1 : 2);
    if (x->many)
        WHAT(m, "%u tokens, %u experts, %u x %u", x->n_tokens, n_experts, n_out, n_in);
    else
        WHAT(m, "%u experts, %u x %u", s->k_used, n_out, n_in);
}

static bool make_experts(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const char *name = gpu_kernel_info(m->c->kernel)->name;
    struct experts x = {.down = strstr(name, "_down") != NULL,
                        .many = strstr(name, "_tile") || strstr(name, "_few")};
    const struct mdl_type_info *info = mdl_type_find(m->env->type);
    uint32_t rows, n_out, out;
    float *in;

    if ((m->use && !has_bias(m)) || s->dim % info->block_elems || s->ff % info->block_elems)
        return false;
    x.n_tokens = !check(m) && strstr(name, "_few") ? RUN_FEW : x.many ? s->n_tokens : check(m) ? 3 : 1;
    x.n_pairs = x.n_tokens * s->k_used;
    n_out = x.down ? s->dim : s->ff;
    pool_make(m, &x.pool, x.many);
    make_choices(m, &x);
    const size_t n_in = x.down ? (size_t)x.n_pairs * s->ff : (size_t)x.n_tokens * s->dim;

    in = bench_floats(m, n_in);
    if (m->failed)
        return false;
    bench_buf(m, BENCH_IN, in, n_in);
    if (x.many) {
        bench_buf(m, BENCH_IN, x.tiles, (size_t)x.n_tiles * TILE_WORDS);
        bench_buf(m, BENCH_IN, x.pairs, x.n_pairs);
    } else {
        bench_buf(m, BENCH_IN, x.ranks, x.n_pairs);
    }
    out = bench_buf(m, BENCH_OUT, NULL, (size_t)x.n_pairs * n_out);
    for (uint32_t i = 0; i < m->c->n_segs; i++)
        m->c->bufs[bench_buf(m, BENCH_IN, x.pool.segs[i], x.pool.seg_words)].weights = true;
    expert_want(m, &x, in, out);
    expert_spec(m, &x, &rows);
    bench_grid(m, bench_div_up(n_out, rows), x.many ? x.n_tiles : s->k_used, x.many ? 1 : x.n_tokens);
    expert_cost(m, &x);
    return true;
}

/* Quantised inputs; use 0: one token, 1: tiles of many. */
static void dot_spec(struct bench_maker *m, const struct experts *x, uint32_t *rows)
{
    const struct bench_shape *s = m->s;
    const struct pool *p = &x->pool;
    const uint32_t n_in = x->down ? s->ff : s->dim;
    const bool aligned = (mdl_row_bytes(m->env->type, n_in) | p->up_off | p->down_off | p->stride) % 16 == 0;
    const struct run_dot_cut cut = run_dot_cut(m->env->caps, n_in, aligned, x->many);
    const struct push_expert push = {0};
    const struct spec_expert_dot spec = {.wg = cut.wg,
                                         .dim = s->dim,
                                         .ff = s->ff,
                                         .k_used = s->k_used,
                                         .format = m->env->type,
                                         .up_off = p->up_off,
                                         .down_off = p->down_off,
                                         .slot_stride = p->stride,
                                         .slots_per_seg = p->per_seg,
                                         .n_segs = m->c->n_segs,
                                         .rows = cut.rows,
                                         .many = x->many,
                                         .lanes = cut.lanes,
                                         .blocks = cut.blocks,
                                         .tokens = cut.tokens,
                                         .wide = cut.wide};

    *rows = cut.rows;
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
}

static bool make_dot_experts(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    struct experts x = {.down = strstr(gpu_kernel_info(m->c->kernel)->name, "_down") != NULL,
                        .many = m->use == 1};
    uint32_t rows, n_out, out;
    float *in;

    if (m->use > 1 || !run_dot_fits(m->env->type, s->dim) || !run_dot_fits(m->env->type, s->ff))
        return false;
    x.n_tokens = x.many ? s->n_tokens : 1;
    x.n_pairs = x.n_tokens * s->k_used;
    n_out = x.down ? s->dim : s->ff;
    pool_make(m, &x.pool, x.many);
    make_choices(m, &x);
    in = bench_rounded(m, x.down ? x.n_pairs : x.n_tokens, x.down ? s->ff : s->dim);
    if (m->failed)
        return false;
    if (x.many)
        bench_buf(m, BENCH_IN, x.tiles, (size_t)x.n_tiles * TILE_WORDS);
    else
        bench_buf(m, BENCH_IN, x.ranks, x.n_pairs);
    bench_buf(m, BENCH_IN, x.many ? x.pairs : x.ranks, x.n_pairs);
    out = bench_buf(m, BENCH_OUT, NULL, (size_t)x.n_pairs * n_out);
    for (uint32_t i = 0; i < m->c->n_segs; i++)
        m->c->bufs[bench_buf(m, BENCH_IN, x.pool.segs[i], x.pool.seg_words)].weights = true;
    expert_want(m, &x, in, out);
    dot_spec(m, &x, &rows);
    bench_grid(m, bench_div_up(n_out, rows), x.many ? x.n_tiles : s->k_used, 1);
    expert_cost(m, &x);
    return true;
}

/* ---- sums
 * -------------------------------------------------------------------------------------------------- */

/* Outputs of experts, NaN where none ran. */
static float *outputs(struct bench_maker *m, const uint32_t *sel, uint32_t n_pairs)
{
    const uint32_t dim = m->s->dim;
    float *y = bench_floats(m, (size_t)n_pairs * dim);

    for (uint32_t i = 0; !m->failed && i < n_pairs; i++)
        for (uint32_t d = 0; sel[2 * i] == NONE && d < dim; d++)
            y[(size_t)i * dim + d] = NAN;
    return y;
}

/* Weighted sum of a token's experts and the shared one, element d. */
static double moe_sum(const struct bench_maker *m, const uint32_t *sel, const float *y, const float *shared,
                      uint32_t t, uint32_t d)
{
    const uint32_t dim = m->s->dim, k = m->s->k_used;
    double sum = shared ? shared[(size_t)t * dim + d] : 0;

    for (uint32_t j = 0; j < k; j++) {
        const size_t pair = (size_t)t * k + j;

        if (sel[2 * pair] != NONE)
            sum += (double)cor_float_from_bits(sel[2 * pair + 1]) * y[pair * dim + d];
    }
    return sum;
}

static bool make_combine(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const uint32_t dim = s->dim, n = check(m) ? s->n_tokens : 1, wg = bench_lanes(m);
    const struct spec_combine spec = {wg, dim, s->k_used, s->n_shared != 0};
    uint32_t *sel = bench_choose(m, n, check(m)), x;
    float *y, *shared = bench_floats(m, (size_t)n * dim), *before = bench_floats(m, (size_t)n * dim);
    double *want = doubles(m, (size_t)n * dim);

    if (m->use || m->failed)
        return false;
    y = outputs(m, sel, n * s->k_used);
    bench_buf(m, BENCH_IN, sel, (size_t)n * s->k_used * 2);
    bench_buf(m, BENCH_IN, y, (size_t)n * s->k_used * dim);
    bench_buf(m, BENCH_IN, shared, (size_t)n * dim);
    x = bench_buf(m, BENCH_INOUT, before, (size_t)n * dim);
    for (uint32_t t = 0; want && !m->failed && t < n; t++)
        for (uint32_t d = 0; d < dim; d++)
            want[(size_t)t * dim + d] =
                before[(size_t)t * dim + d] + moe_sum(m, sel, y, s->n_shared ? shared : NULL, t, d);
    bench_want_floats(m, x, (size_t)n * dim, want, BENCH_NMSE);
    BENCH_SPEC(m, spec);
    bench_grid(m, bench_div_up(dim, wg), n, 1);
    m->c->bytes = 4.0 * n * dim * (s->k_used + 2 + (s->n_shared ? 1 : 0));
    WHAT(m, "%u tokens of %u, %u experts", n, dim, s->k_used);
    return true;
}

static bool make_sums(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const uint32_t dim = s->dim, k = s->k_used, n = s->n_tokens, row0 = check(m) ? 2 : 0;
    const struct spec_expert_sums spec = {bench_lanes(m), dim, k, s->n_shared != 0};
    const struct push_rows push = {row0};
    uint32_t *sel = bench_choose(m, n, check(m)), out;
    float *y, *h = bench_floats(m, (size_t)n * dim), *shared = bench_floats(m, (size_t)n * dim);
    double *want = doubles(m, (size_t)n * (3 + k));

    if (m->use || m->failed)
        return false;
    y = outputs(m, sel, n * k);
    bench_buf(m, BENCH_IN, sel, (size_t)n * k * 2);
    bench_buf(m, BENCH_IN, h, (size_t)n * dim);
    bench_buf(m, BENCH_IN, y, (size_t)n * k * dim);
    bench_buf(m, BENCH_IN, shared, (size_t)n * dim);
    out = bench_buf(m, BENCH_OUT, NULL, (size_t)(row0 + n) * (3 + k));
    for (uint32_t t = 0; want && !m->failed && t < n; t++) {
        double *w = want + (size_t)t * (3 + k);

        for (uint32_t d = 0; d < dim; d++) {
            const double a = h[(size_t)t * dim + d];
            const double sum = moe_sum(m, sel, y, s->n_shared ? shared : NULL, t, d);

            w[0] += a * a;
            w[1] += a * sum;
            w[2] += sum * sum;
            for (uint32_t j = 0; j < k; j++) {
                const size_t pair = (size_t)t * k + j;

                if (sel[2 * pair] != NONE)
                    w[3 + j] += (double)y[pair * dim + d] * y[pair * dim + d];
            }
        }
    }
    if (want)
        bench_want(m, &(struct bench_want){.buf = out,
                                           .first = (size_t)row0 * (3 + k),
                                           .n = (size_t)n * (3 + k),
                                           .values = want,
                                           .nmse = BENCH_NMSE,
                                           .largest = BENCH_LARGEST});
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, 1, n, 1);
    m->c->bytes = 4.0 * n * dim * (k + 1 + (s->n_shared ? 1 : 0));
    WHAT(m, "%u tokens of %u, %u experts", n, dim, k);
    return true;
}

/* ---- slot_tags
 * --------------------------------------------------------------------------------------------- */

static bool make_tags(struct bench_maker *m)
{
    enum { ENTRIES = 8, STRIDE = 256, WORDS = 16 };
    const uint32_t per_seg = bench_div_up(ENTRIES, m->c->n_segs);
    const struct spec_tags spec = {32, STRIDE, per_seg, m->c->n_segs};
    const struct push_tags push = {ENTRIES, 0};
    uint32_t *list = bench_array(m, (size_t)ENTRIES * TAG_WORDS, 4), *segs[BENCH_SEGS];
    uint32_t *result = bench_array(m, 2, 4), *want = bench_array(m, 2, 4);

    for (uint32_t i = 0; i < m->c->n_segs; i++)
        segs[i] = bench_array(m, (size_t)per_seg * STRIDE / 4, 4);
    if (m->use || m->failed)
        return false;
    for (uint32_t i = 0; i < ENTRIES; i++) {
        uint32_t *e = list + (size_t)i * TAG_WORDS, slot = (i * 3 + 1) % ENTRIES;
        uint32_t *at = segs[slot / per_seg] + slot % per_seg * STRIDE / 4;

        e[TAG_SLOT] = slot;
        e[TAG_LAST_OFF] = STRIDE - 4 * WORDS;
        e[TAG_N_FIRST] = e[TAG_N_LAST] = WORDS;
        for (uint32_t w = 0; w < 2 * WORDS; w++)
            at[w < WORDS ? w : STRIDE / 4 - 2 * WORDS + w] = e[TAG_FIRST + w] = bench_below(m, UINT32_MAX);
        if (i == 3 || i == 6) /* two that differ, by one bit */
            e[TAG_FIRST + 5 * (i - 2)] ^= 1u << i;
    }
    result[1] = NONE;
    want[0] = 2;
    want[1] = 3;
    bench_buf(m, BENCH_IN, list, (size_t)ENTRIES * TAG_WORDS);
    bench_buf(m, BENCH_INOUT, result, 2);
    for (uint32_t i = 0; i < m->c->n_segs; i++)
        bench_buf(m, BENCH_IN, segs[i], (size_t)per_seg * STRIDE / 4);
    if (check(m))
        bench_want(m, &(struct bench_want){.buf = 1, .kind = BENCH_WORDS, .n = 2, .words = want});
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, ENTRIES, 1, 1);
    m->c->bytes = ENTRIES * 2 * WORDS * 8.0;
    WHAT(m, "%u slots", (unsigned)ENTRIES);
    return true;
}

void bench_add_moe(struct bench_entry *entries)
{
    /* Every kernel of experts but expert_sums: their makers read the rest from the name. */
    static const enum gpu_kernel experts[] = {
#define EXPERTS(step)                                                                                       \
    GPU_K_expert_##step, GPU_K_expert_##step##_arr, GPU_K_expert_##step##_sg, GPU_K_expert_##step##_sg_arr, \
        GPU_K_expert_##step##_ln, GPU_K_expert_##step##_ln_arr, GPU_K_expert_##step##_tile,                 \
        GPU_K_expert_##step##_tile_arr, GPU_K_expert_##step##_tile_ln, GPU_K_expert_##step##_tile_ln_arr,   \
        GPU_K_expert_##step##_few, GPU_K_expert_##step##_few_arr, GPU_K_expert_##step##_few_sg,             \
        GPU_K_expert_##step##_few_sg_arr
        EXPERTS(gate_up), EXPERTS(down)
#undef EXPERTS
    };
    static const enum gpu_kernel dots[] = {
#define DOTS(step)                                                                          \
    GPU_K_expert_##step##_dot, GPU_K_expert_##step##_dot_sg, GPU_K_expert_##step##_dot_arr, \
        GPU_K_expert_##step##_dot_sg_arr, GPU_K_expert_##step##_dot_hw
        DOTS(gate_up), DOTS(down)
#undef DOTS
    };

    for (size_t i = 0; i < COR_COUNT(experts); i++)
        entries[experts[i]] = (struct bench_entry){make_experts, true};
    for (size_t i = 0; i < COR_COUNT(dots); i++)
        entries[dots[i]] = (struct bench_entry){make_dot_experts, true};
    entries[GPU_K_combine] = (struct bench_entry){make_combine, false};
    entries[GPU_K_expert_sums] = (struct bench_entry){make_sums, false};
    entries[GPU_K_slot_tags] = entries[GPU_K_slot_tags_arr] = (struct bench_entry){make_tags, false};
}
