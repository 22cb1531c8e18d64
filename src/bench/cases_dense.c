/* Cases of the kernels that know no experts and no cache: rows and matrices. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/make.h"

/* ---- embed
 * ------------------------------------------------------------------------------------------------- */

static void embed_case(struct bench_maker *m, uint32_t dim, uint32_t rows, uint32_t n_tokens, uint32_t off,
                       const uint8_t *bytes, size_t n_bytes, const float *values)
{
    const enum mdl_type t = m->env->type;
    const uint32_t wg = bench_lanes(m), row0 = check(m) ? 3 : 0;
    const struct spec_embed spec = {wg, dim, t, (uint32_t)mdl_row_bytes(t, dim)};
    const struct push_embed push = {row0, rows, off};
    uint32_t *state = bench_state(m, n_tokens, 0, 0, 1), x;
    double *want = doubles(m, (size_t)n_tokens * dim);

    if (m->failed)
        return;
    for (uint32_t i = 0; i < n_tokens; i++)
        state[STEP_TOKENS + i] = row0 + (check(m) ? i % rows : bench_below(m, rows));
    bench_buf(m, BENCH_IN, state, STEP_TOKENS + (size_t)n_tokens);
    m->c->bufs[bench_buf(m, BENCH_IN, (void *)(uintptr_t)bytes, n_bytes / 4)].weights = true;
    x = bench_buf(m, BENCH_OUT, NULL, (size_t)n_tokens * dim);
    for (uint32_t i = 0; want && values && i < n_tokens; i++)
        for (uint32_t j = 0; j < dim; j++)
            want[(size_t)i * dim + j] = values[(size_t)(i % rows) * dim + j];
    if (want)
        bench_want(m, &(struct bench_want){
                          .buf = x, .kind = BENCH_VALUES, .n = (size_t)n_tokens * dim, .values = want});
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, bench_div_up(dim, 8 * wg), n_tokens, 1);
    m->c->bytes = n_tokens * ((double)mdl_row_bytes(t, dim) + 4.0 * dim);
    WHAT(m, "%u tokens of %u", n_tokens, dim);
}

/* Use 1, checks only: every half, or every bfloat16, there is. */
static bool make_embed(struct bench_maker *m)
{
    const bool all = m->use == 1;
    const uint32_t rows = check(m) ? m->s->n_tokens : 4096, off = check(m) ? 2 : 0;
    float *values = NULL;
    uint8_t *bytes;
    size_t n_bytes;

    if (m->use > 1 || (all && !(check(m) && (m->env->type == MDL_F16 || m->env->type == MDL_BF16))))
        return false;
    if (!all) {
        bytes = bench_matrix(m, m->env->type, rows, m->s->dim, off, &n_bytes, &values);
        embed_case(m, m->s->dim, rows, m->s->n_tokens, off, bytes, n_bytes, values);
        return true;
    }
    n_bytes = 65536 * 2;
    bytes = bench_array(m, n_bytes, 1);
    values = bench_array(m, 65536, sizeof(*values));
    for (uint32_t i = 0; !m->failed && i < 65536; i++) {
        const uint16_t h = (uint16_t)i;

        memcpy(bytes + 2 * (size_t)i, &h, 2);
        mdl_dequant_row(m->env->type, &h, &values[i], 1);
    }
    if (!m->failed)
        embed_case(m, 1024, 64, 64, 0, bytes, n_bytes, values);
    WHAT(m, "all 65536 values");
    return true;
}

/* ---- rmsnorm
 * ----------------------------------------------------------------------------------------------- */

static bool make_rmsnorm(struct bench_maker *m)
{
    const uint32_t dim = m->s->dim, rows = check(m) ? m->s->n_tokens : 1, row0 = check(m) ? 2 : 0;
    const struct spec_rmsnorm spec = {bench_lanes(m), dim, cor_float_bits(1e-6f), check(m)};
    uint32_t *state = bench_state(m, 1, 0, row0, rows), y;
    float *x = bench_floats(m, (size_t)(rows + row0) * dim), *w = bench_floats(m, dim);
    double *want = doubles(m, (size_t)rows * dim);

    if (m->use || m->failed)
        return false;
    bench_buf(m, BENCH_IN, state, STEP_TOKENS + 1);
    bench_buf(m, BENCH_IN, x, (size_t)(rows + row0) * dim);
    bench_buf(m, BENCH_IN, w, dim);
    y = bench_buf(m, BENCH_OUT, NULL, (size_t)rows * dim);
    for (uint32_t r = 0; want && r < rows; r++) {
        const float *in = x + (size_t)(row0 + r) * dim;
        double scale = 1 / sqrt(bench_dot(in, in, dim) / dim + (double)1e-6f);

        for (uint32_t i = 0; i < dim; i++)
            want[(size_t)r * dim + i] = in[i] * scale * w[i];
    }
    bench_want_floats(m, y, (size_t)rows * dim, want, BENCH_NMSE);
    BENCH_SPEC(m, spec);
    bench_grid(m, 1, rows, 1);
    m->c->bytes = 4.0 * dim * (2.0 * rows + 1);
    WHAT(m, "%u x %u", rows, dim);
    return true;
}

/* ---- matrices
 * ---------------------------------------------------------------------------------------------- */

struct mat_size {
    uint32_t rows, k;
    bool add;
    const char *name;
};

/* The matrices of a model that are no experts; what a binding cannot hold is cut. */
static bool mat_size(const struct bench_maker *m, struct mat_size *z)
{
    const struct bench_shape *s = m->s;
    const uint32_t q = s->n_heads * s->head_dim;
    const struct mat_size sizes[] = {{q + 2 * s->n_kv * s->head_dim, s->dim, false, "qkv"},
                                     {s->dim, q, true, "attention output"},
                                     {s->vocab, s->dim, false, "head"}};
    uint64_t row, max = m->env->caps->max_range;

    if (m->use >= (check(m) ? 2 : 3))
        return false;
    *z = sizes[m->use];
    if (!bench_takes(m, z->k))
        return false;
    row = mdl_row_bytes(m->env->type, z->k);
    if (z->rows > max / row)
        z->rows = (uint32_t)(max / row);
    return true;
}

/* Matrix rows per workgroup and its size, as run/ has them. */
static void mat_groups(const struct bench_maker *m, uint32_t k, bool many, uint32_t *wg, uint32_t *rows)
{
    *wg = many ? bench_tile_lanes(m, k) : bench_row_lanes(m, k);
    *rows = many ? bench_tile_rows(m) : bench_rows(m);
}

static void mat_want(struct bench_maker *m, const struct mat_size *z, const float *w, const float *x,
                     const float *before, uint32_t n_tokens, uint32_t y)
{
    double *want = doubles(m, (size_t)n_tokens * z->rows);

    for (uint32_t t = 0; want && w && t < n_tokens; t++)
        for (uint32_t r = 0; r < z->rows; r++) {
            const size_t at = (size_t)t * z->rows + r;

            want[at] =
                bench_dot(w + (size_t)r * z->k, x + (size_t)t * z->k, z->k) + (z->add ? before[at] : 0);
        }
    bench_want_sums(m, y, (size_t)n_tokens * z->rows, want, z->k);
}

static bool make_mat(struct bench_maker *m)
{
    const char *name = gpu_kernel_info(m->c->kernel)->name;
    const bool few = strstr(name, "_few") != NULL, many = few || strstr(name, "matmul") != NULL;
    const bool texels = strstr(name, "_tx") != NULL;
    const uint32_t off = !check(m) ? 0
                         : texels  ? GPU_TEXEL_BYTES
                                   : 2,
                   n_tokens = few && !check(m) ? RUN_FEW
                              : many           ? m->s->n_tokens
                                               : 1;
    const enum mdl_type t = m->env->type;
    const uint32_t w_off = t == MDL_F32 ? 2 * off : off;
    struct mat_size z;
    uint32_t wg, rows, y;
    float *w, *x, *before;
    uint8_t *bytes;
    size_t n_bytes;

    if (!mat_size(m, &z))
        return false;
    mat_groups(m, z.k, many, &wg, &rows);
    const uint64_t row_bytes = mdl_row_bytes(t, z.k);
    const struct spec_mat spec = {.wg = wg,
                                  .k = z.k,
                                  .n_out = z.rows,
                                  .k_stride = z.k,
                                  .format = t,
                                  .row_bytes = (uint32_t)row_bytes,
                                  .add = z.add,
                                  .rows = rows,
                                  .aligned = run_alignment(t, row_bytes, w_off, 0)};
    const struct push_mat push = {0, z.rows, w_off};

    bytes = bench_matrix(m, t, z.rows, z.k, w_off, &n_bytes, &w);
    x = bench_floats(m, (size_t)n_tokens * z.k);
    before = z.add ? bench_floats(m, (size_t)n_tokens * z.rows) : NULL;
    if (many)
        bench_buf(m, BENCH_IN, bench_state(m, n_tokens, 0, 0, 1), STEP_TOKENS + (size_t)n_tokens);
    bench_buf(m, BENCH_IN, x, (size_t)n_tokens * z.k);
    m->c->bufs[bench_buf(m, BENCH_IN, bytes, n_bytes / 4)].weights = true;
    y = bench_buf(m, z.add ? BENCH_INOUT : BENCH_OUT, before, (size_t)n_tokens * z.rows);
    if (m->failed)
        return false;
    mat_want(m, &z, w, x, before, n_tokens, y);
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, bench_div_up(z.rows, rows), many ? bench_div_up(n_tokens, few ? RUN_FEW : TILE_TOKENS) : 1,
               1);
    m->c->bytes = (double)z.rows * (double)row_bytes + 4.0 * n_tokens * (z.k + (z.add ? 2.0 : 1.0) * z.rows);
    m->c->flops = 2.0 * z.rows * z.k * n_tokens;
    if (many)
        WHAT(m, "%s, %u x %u, %u tokens", z.name, z.rows, z.k, n_tokens);
    else
        WHAT(m, "%s, %u x %u", z.name, z.rows, z.k);
    return true;
}

/* ---- swiglu, topk
 * ---------------------------------------------------------------------------------------- */

static bool make_swiglu(struct bench_maker *m)
{
    const uint32_t ff = m->s->ff, n = m->s->n_tokens, wg = bench_lanes(m);
    const struct spec_swiglu spec = {wg, ff};
    float *gu = bench_floats(m, (size_t)n * 2 * ff);
    double *want = doubles(m, (size_t)n * ff);
    uint32_t h;

    if (m->use || m->failed)
        return false;
    bench_buf(m, BENCH_IN, gu, (size_t)n * 2 * ff);
    h = bench_buf(m, BENCH_OUT, NULL, (size_t)n * ff);
    for (uint32_t t = 0; want && t < n; t++)
        for (uint32_t i = 0; i < ff; i++) {
            float *g = gu + (size_t)t * 2 * ff + i;

            *g *= 20;
            want[(size_t)t * ff + i] = *g / (1 + exp(-(double)*g)) * g[ff];
        }
    bench_want_floats(m, h, (size_t)n * ff, want, BENCH_NMSE);
    BENCH_SPEC(m, spec);
    bench_grid(m, bench_div_up(ff, wg), n, 1);
    m->c->bytes = 12.0 * n * ff;
    WHAT(m, "%u x %u", n, ff);
    return true;
}

static bool make_scale_add(struct bench_maker *m)
{
    const uint32_t dim = m->s->dim, n = m->s->n_tokens, wg = bench_lanes(m);
    const struct spec_scale_add spec = {wg, dim, cor_float_bits(0.75f), 1};
    float *y = bench_floats(m, (size_t)n * dim), *b = bench_floats(m, dim);
    double *want = doubles(m, (size_t)n * dim);

    if (m->use || m->failed)
        return false;
    for (uint32_t i = 0; want && i < n * dim; i++)
        want[i] = 0.75 * y[i] + b[i % dim];
    bench_want_floats(m, bench_buf(m, BENCH_INOUT, y, (size_t)n * dim), (size_t)n * dim, want, BENCH_NMSE);
    bench_buf(m, BENCH_IN, b, dim);
    BENCH_SPEC(m, spec);
    bench_grid(m, bench_div_up(dim, wg), n, 1);
    m->c->bytes = 8.0 * n * dim;
    WHAT(m, "%u x %u", n, dim);
    return true;
}

static bool make_shared_gate(struct bench_maker *m)
{
    const uint32_t dim = m->s->dim, ff = m->s->ff, n = m->s->n_tokens;
    const struct spec_shared_gate spec = {bench_lanes(m), dim, ff};
    float *x = bench_floats(m, (size_t)n * dim), *w = bench_floats(m, dim);
    float *h = bench_floats(m, (size_t)n * ff);
    double *want = doubles(m, (size_t)n * ff);

    if (m->use || m->failed)
        return false;
    for (uint32_t i = 0; want && i < n * ff; i++)
        want[i] = h[i] / (1 + exp(-bench_dot(x + (size_t)(i / ff) * dim, w, dim)));
    bench_buf(m, BENCH_IN, x, (size_t)n * dim);
    bench_buf(m, BENCH_IN, w, dim);
    /* the gate's sum errs like one of dim products */
    bench_want_sums(m, bench_buf(m, BENCH_INOUT, h, (size_t)n * ff), (size_t)n * ff, want, dim * 16);
    BENCH_SPEC(m, spec);
    bench_grid(m, 1, n, 1);
    m->c->bytes = 4.0 * n * (dim + 2.0 * ff);
    WHAT(m, "%u x %u, %u", n, ff, dim);
    return true;
}

/* What topk makes of logits [first, last): pairs, then how many are not finite. */
static void best_of(const float *x, uint32_t first, uint32_t last, uint32_t k, uint32_t *to)
{
    uint32_t before = NONE;

    for (uint32_t i = first; i < last; i++)
        to[2 * k] += !isfinite(x[i]);
    for (uint32_t j = 0; j < k; j++) {
        uint32_t best = NONE;

        for (uint32_t i = first; i < last; i++) {
            const bool behind = !j || x[i] < x[before] || (x[i] == x[before] && i > before);

            if (isfinite(x[i]) && behind && (best == NONE || x[i] > x[best]))
                best = i;
        }
        to[2 * j] = before = best;
        if (best == NONE) {
            for (; ++j < k;)
                to[2 * j] = NONE;
            return;
        }
        to[2 * j + 1] = cor_float_bits(x[best]);
    }
}

/* Slices by workgroup, and their merge. */
static bool make_topk(struct bench_maker *m)
{
    const uint32_t n = m->s->vocab, k = check(m) ? 3 : 40, words = TOPK_WORDS(k);
    const uint32_t groups = bench_div_up(n, TOPK_SLICE), out = m->use ? 1 : groups;
    const struct spec_topk spec = {bench_lanes(m), m->use ? groups : n, n, k, m->use};
    float *x = bench_floats(m, n);
    uint32_t *parts = bench_array(m, groups, words * 4), *best = bench_array(m, 1, words * 4), to;

    if (m->use > 1 || m->failed)
        return false;
    if (check(m)) { /* neither of these is a choice; the second of two equals comes second */
        x[1] = NAN;
        x[n - 1] = INFINITY;
        x[n / 2] = x[n / 2 + 3] = 2;
    }
    for (uint32_t g = 0; g < groups; g++) {
        const uint32_t first = g * TOPK_SLICE, left = n - first;

        best_of(x, first, first + (left < TOPK_SLICE ? left : TOPK_SLICE), k, parts + (size_t)g * words);
    }
    best_of(x, 0, n, k, best);
    if (m->use)
        bench_buf(m, BENCH_IN, parts, (size_t)groups * words);
    else
        bench_buf(m, BENCH_IN, x, n);
    to = bench_buf(m, BENCH_OUT, NULL, (size_t)out * words);
    if (check(m))
        bench_want(
            m, &(struct bench_want){
                   .buf = to, .kind = BENCH_WORDS, .n = (size_t)out * words, .words = m->use ? best : parts});
    BENCH_SPEC(m, spec);
    bench_grid(m, out, 1, 1);
    m->c->bytes = 4.0 * (m->use ? groups * words : n) + 4.0 * out * words;
    WHAT(m, "%u of %u%s", k, n, m->use ? ", merge" : "");
    return true;
}

void bench_add_dense(struct bench_entry *entries)
{
    entries[GPU_K_embed] = (struct bench_entry){make_embed, true};
    entries[GPU_K_rmsnorm] = entries[GPU_K_rmsnorm_sg] = (struct bench_entry){make_rmsnorm, false};
    entries[GPU_K_matvec] = entries[GPU_K_matvec_sg] = entries[GPU_K_matvec_ln] = entries[GPU_K_matvec_tx] =
        entries[GPU_K_matmul] = entries[GPU_K_matmul_ln] = entries[GPU_K_matvec_few] =
            entries[GPU_K_matvec_few_sg] = (struct bench_entry){make_mat, true};
    entries[GPU_K_swiglu] = (struct bench_entry){make_swiglu, false};
    entries[GPU_K_scale_add] = (struct bench_entry){make_scale_add, false};
    entries[GPU_K_shared_gate] = (struct bench_entry){make_shared_gate, false};
    entries[GPU_K_topk] = (struct bench_entry){make_topk, false};
}
