/* Cases of the kernels of --fast-math that know no experts: inputs rounded to 8 bits, and matrices times such
 * inputs. Integers are exact there, so that results differ from sums in double by sums of blocks alone. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/make.h"

#define BLOCK 32u

/* Words of a quantised row. */
static uint32_t row_words(uint32_t k)
{
    return (uint32_t)(run_dot_row_bytes(k) / 4);
}

float *bench_rounded(struct bench_maker *m, uint32_t rows, uint32_t cols)
{
    const uint32_t words = row_words(cols), n = cols / BLOCK;
    float *values = bench_array(m, (size_t)rows * cols, sizeof(*values));
    uint32_t *q = bench_array(m, (size_t)rows * words, sizeof(*q));

    for (uint32_t i = 0; !m->failed && i < rows * n; i++) {
        uint32_t *row = q + (size_t)(i / n) * words, b = i % n;
        int8_t *bytes = (int8_t *)(row + (size_t)b * 8);
        const float d = bench_uniform(m, 0.001f, 0.01f);
        const bool ends = bench_below(m, 8) == 0; /* the largest sums there are */
        int32_t sum = 0;

        for (uint32_t j = 0; j < BLOCK; j++) {
            bytes[j] = (int8_t)(ends ? 127 : (int)bench_below(m, 255) - 127);
            sum += bytes[j];
            values[(size_t)i * BLOCK + j] = d * (float)bytes[j];
        }
        row[n * 8 + b] = cor_float_bits(d);
        row[n * 9 + b] = (uint32_t)sum;
    }
    bench_buf(m, BENCH_IN, q, (size_t)rows * words);
    return values;
}

/* ---- quant_x
 * ------------------------------------------------------------------------------------------------ */

static bool tell(struct bench_miss *miss, size_t element, double got, double expected)
{
    miss->buf = 1;
    miss->element = element;
    snprintf(miss->got, sizeof(miss->got), "%.9g", got);
    snprintf(miss->expected, sizeof(miss->expected), "%.9g", expected);
    return false;
}

/* Block b of n at words q: what a device's division and rounding may make of x, a step of the scale at most
 * away; a NaN for a scale where an element is not finite. */
static bool check_block(const float *x, const uint32_t *q, uint32_t n, uint32_t b, struct bench_miss *miss)
{
    const int8_t *bytes = (const int8_t *)(q + (size_t)b * 8);
    const double d = (double)cor_float_from_bits(q[n * 8 + b]);
    double most = 0;
    int32_t sum = 0;

    for (uint32_t i = 0; i < BLOCK; i++) {
        if (!isfinite(x[i]))
            return isnan(d) || tell(miss, n * 8 + b, d, NAN);
        most = fmax(most, fabs((double)x[i]));
        sum += bytes[i];
    }
    if (sum != (int32_t)q[n * 9 + b])
        return tell(miss, n * 9 + b, (int32_t)q[n * 9 + b], sum);
    if (most < 1e-36) /* devices may flush the scale */
        return (d >= 0 && d < 1e-36) || tell(miss, n * 8 + b, d, most / 127);
    if (!(fabs(d * 127 - most) <= most * 1e-6))
        return tell(miss, n * 8 + b, d, most / 127);
    for (uint32_t i = 0; i < BLOCK; i++)
        if (fabs(bytes[i] * d - (double)x[i]) > d * 0.50001)
            return tell(miss, b * 8 + i / 4, bytes[i], (double)x[i] / d);
    return true;
}

static bool check_rounded(const struct bench_case *c, void *const *after, struct bench_miss *miss)
{
    const uint32_t k = c->spec[1], n = k / BLOCK, words = row_words(k);
    const float *x = c->bufs[0].data;

    for (uint32_t r = 0; r < c->grid[1]; r++) {
        const uint32_t *q = (const uint32_t *)after[1] + (size_t)r * words;

        for (uint32_t b = 0; b < n; b++)
            if (!check_block(x + (size_t)r * k + (size_t)b * BLOCK, q, n, b, miss)) {
                miss->element += (size_t)r * words;
                return false;
            }
        for (uint32_t i = n * 10; i < words; i++)
            if (q[i] != BENCH_POISON)
                return tell(miss, (size_t)r * words + i, (double)q[i], (double)BENCH_POISON);
    }
    return true;
}

static bool make_quant(struct bench_maker *m)
{
    const uint32_t k = m->s->dim, rows = m->s->n_tokens, wg = run_few_lanes(m->env->caps);
    const struct spec_quant_x spec = {wg, k, k};
    float *x;

    if (m->use || k % BLOCK)
        return false;
    x = bench_floats(m, (size_t)rows * k);
    if (m->failed)
        return false;
    bench_buf(m, BENCH_IN, x, (size_t)rows * k);
    bench_buf(m, check(m) ? BENCH_SCRATCH : BENCH_OUT, NULL, (size_t)rows * row_words(k));
    if (check(m)) { /* zeros, tiny and large ones, and what is not finite */
        memset(x, 0, BLOCK * sizeof(*x));
        for (uint32_t i = 0; i < BLOCK; i++)
            x[k + i] *= 1e-30f;
        x[(size_t)rows * k - 3] = 1e30f;
        x[2 * (size_t)k + 5] = NAN;
        x[3 * (size_t)k - 1] = -INFINITY;
        m->c->check = check_rounded;
    }
    BENCH_SPEC(m, spec);
    bench_grid(m, bench_div_up(k / BLOCK, wg), rows, 1);
    m->c->bytes = 4.0 * rows * (k + row_words(k));
    WHAT(m, "%u x %u", rows, k);
    return true;
}

/* ---- matvec_dot
 * --------------------------------------------------------------------------------------------- */

/* Two matrices, each for one token and for many; in checks only one case of each. */
static bool make_mat(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const bool add = check(m) ? m->use == 1 : m->use / 2 == 1, many = m->use % 2 == 1;
    const uint32_t q = s->n_heads * s->head_dim, k = add ? q : s->dim, n_tokens = many ? s->n_tokens : 1;
    const uint32_t n_out = add ? s->dim : q + 2 * s->n_kv * s->head_dim;
    const enum mdl_type t = m->env->type;

    if (m->use >= (check(m) ? 2 : 4) || !run_dot_fits(t, k))
        return false;
    const uint64_t row_bytes = mdl_row_bytes(t, k);
    const bool aligned = row_bytes % 16 == 0;
    const uint32_t off = check(m) && !aligned ? 2 : 0;
    const struct run_dot_cut cut = run_dot_cut(m->env->caps, k, aligned, many);
    const struct spec_mat_dot spec = {.wg = cut.wg,
                                      .k = k,
                                      .n_out = n_out,
                                      .format = t,
                                      .row_bytes = (uint32_t)row_bytes,
                                      .add = add,
                                      .rows = cut.rows,
                                      .many = many,
                                      .lanes = cut.lanes,
                                      .blocks = cut.blocks,
                                      .tokens = cut.tokens,
                                      .wide = cut.wide};
    const struct push_mat push = {0, n_out, off};
    const size_t n_y = (size_t)n_tokens * n_out;
    double *want = check(m) ? bench_array(m, n_y, sizeof(*want)) : NULL;
    float *w, *x, *before = add ? bench_floats(m, n_y) : NULL;
    uint8_t *bytes;
    size_t n_bytes;
    uint32_t y;

    bench_buf(m, BENCH_IN, bench_state(m, n_tokens, 0, 0, 1), STEP_TOKENS + (size_t)n_tokens);
    x = bench_rounded(m, n_tokens, k);
    bytes = bench_matrix(m, t, n_out, k, off, &n_bytes, &w);
    m->c->bufs[bench_buf(m, BENCH_IN, bytes, n_bytes / 4)].weights = true;
    y = bench_buf(m, add ? BENCH_INOUT : BENCH_OUT, before, n_y);
    if (m->failed)
        return false;
    for (size_t i = 0; want && i < n_y; i++)
        want[i] = bench_dot(w + i % n_out * k, x + i / n_out * k, k) + (add ? before[i] : 0);
    bench_want_sums(m, y, n_y, want, k);
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, bench_div_up(n_out, cut.rows), bench_div_up(n_tokens, cut.tokens), 1);
    m->c->bytes =
        (double)n_out * (double)row_bytes + 4.0 * n_tokens * (row_words(k) + (add ? 2.0 : 1.0) * n_out);
    m->c->flops = 2.0 * n_out * k * n_tokens;
    WHAT(m, "%s, %u x %u, %u token%s", add ? "attention output" : "qkv", n_out, k, n_tokens,
         n_tokens == 1 ? "" : "s");
    return true;
}

void bench_add_dot(struct bench_entry *entries)
{
    entries[GPU_K_quant_x] = (struct bench_entry){make_quant, false};
    entries[GPU_K_matvec_dot] = entries[GPU_K_matvec_dot_sg] = entries[GPU_K_matvec_dot_hw] =
        (struct bench_entry){make_mat, true};
}
