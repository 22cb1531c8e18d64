/* Cases of the kernels that do for one token what takes several others for many: a projection and the norm
 * behind it, the router with its choice, experts with their sum and the norm. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/make.h"

enum { DISPATCHES = 12, NEXT = 3, AFTER = 9 };

/* As run/ has them: workgroup and matrix rows per workgroup, by the row core that the kernel's name ends
 * with. */
static uint32_t row_lanes(const struct bench_maker *m, uint32_t k)
{
    const char *name = gpu_kernel_info(m->c->kernel)->name;
    const uint32_t subgroup = m->env->caps->subgroup_size;
    uint32_t wg = 32;

    if (strstr(name, "_ln") || strstr(name, "_tx") || strstr(name, "_sg"))
        return subgroup;
    if (subgroup <= 16)
        return 8;
    while (wg < 128 && wg * 8 < k)
        wg *= 2;
    return wg;
}

static uint32_t group_rows(const struct bench_maker *m)
{
    return strstr(gpu_kernel_info(m->c->kernel)->name, "_ln") ? 4 * m->env->caps->subgroup_size
                                                              : bench_rows(m);
}

/* As bench_matrix, but no row holds a NaN: a norm would spread it over all. */
static uint8_t *finite_matrix(struct bench_maker *m, uint32_t rows, uint32_t cols, size_t *n_bytes,
                              float **values)
{
    const size_t row_bytes = (size_t)mdl_row_bytes(m->env->type, cols);
    uint8_t *bytes = bench_matrix(m, m->env->type, rows, cols, 0, n_bytes, values);

    for (uint32_t r = 1; check(m) && bytes && *values && r < rows; r++) {
        if (isfinite(bench_dot(*values + (size_t)r * cols, *values, cols)))
            continue;
        memcpy(bytes + r * row_bytes, bytes + (r - 1) * row_bytes, row_bytes);
        memcpy(*values + (size_t)r * cols, *values + (size_t)(r - 1) * cols, cols * sizeof(**values));
    }
    return bytes;
}

/* RMSNorm of x times w. */
static void norm(const double *x, const float *w, uint32_t n, double *to)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        to[i] = x[i] / sqrt(sum / n + (double)1e-6f) * w[i];
}

/* ---- matvec_norm
 * -------------------------------------------------------------------------------------------- */

static bool make_mat_norm(struct bench_maker *m)
{
    const uint32_t q = m->s->n_heads * m->s->head_dim, dim = m->s->dim;
    const enum mdl_type t = m->env->type;
    const uint64_t row_bytes = mdl_row_bytes(t, q);
    const uint32_t rows = group_rows(m);
    const struct spec_mat_norm spec = {.wg = row_lanes(m, q),
                                       .k = q,
                                       .dim = dim,
                                       .format = t,
                                       .row_bytes = (uint32_t)row_bytes,
                                       .rows = rows,
                                       .aligned = run_alignment(t, row_bytes, 0, 0),
                                       .eps_bits = cor_float_bits(1e-6f)};
    const struct push_mat_norm push = {0, dim, 0, bench_div_up(dim, rows)};
    float *matrix, *x, *before, *w;
    uint8_t *bytes;
    size_t n_bytes;
    double *want = doubles(m, dim), *normed = doubles(m, dim);
    uint32_t y, yn;

    if (m->use || !bench_takes(m, q))
        return false;
    bytes = finite_matrix(m, dim, q, &n_bytes, &matrix);
    x = bench_floats(m, q);
    before = bench_floats(m, dim);
    w = bench_floats(m, dim);
    bench_buf(m, BENCH_IN, x, q);
    m->c->bufs[bench_buf(m, BENCH_IN, bytes, n_bytes / 4)].weights = true;
    y = bench_buf(m, BENCH_INOUT, before, dim);
    bench_buf(m, BENCH_IN, w, dim);
    yn = bench_buf(m, BENCH_OUT, NULL, dim);
    bench_buf(m, BENCH_INOUT, bench_array(m, 1, 4), 1);
    if (m->failed)
        return false;
    for (uint32_t r = 0; want && r < dim; r++)
        want[r] = before[r] + bench_dot(matrix + (size_t)r * q, x, q);
    if (want)
        norm(want, w, dim, normed);
    bench_want_sums(m, y, dim, want, q);
    bench_want_sums(m, yn, dim, normed, q);
    bench_want_words(m, 5, 0, 1, bench_array(m, 1, 4)); /* the counter is 0 again */
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, push.n_groups, 1, 1);
    m->c->bytes = (double)dim * (double)row_bytes + 4.0 * (q + 6.0 * dim);
    m->c->flops = 2.0 * dim * q;
    WHAT(m, "attention output, %u x %u", dim, q);
    return true;
}

/* ---- router_one
 * --------------------------------------------------------------------------------------------- */

/* Logits whose order no rounding changes: expert e has (7 e mod n) / 4 and a little more. */
static float *make_router(struct bench_maker *m, float *x, double *logits)
{
    const uint32_t n = m->s->n_experts, dim = m->s->dim;
    float *w = bench_floats(m, (size_t)n * dim);

    for (uint32_t e = 0; !m->failed && e < n; e++) {
        for (uint32_t i = 0; i < dim; i++)
            w[(size_t)e * dim + i] *= 1e-3f;
        w[(size_t)e * dim] = (float)(e * 7 % n) / 4;
    }
    if (!m->failed)
        x[0] = 1;
    for (uint32_t e = 0; logits && !m->failed && e < n; e++)
        logits[e] = bench_dot(w + (size_t)e * dim, x, dim);
    return w;
}

/* The k_used largest, with their probabilities. */
static void choose(const struct bench_shape *s, const double *logits, uint32_t *ids, double *weights)
{
    double sum = 0, top = -INFINITY;
    bool taken[MAX_EXPERTS] = {false};

    for (uint32_t e = 0; e < s->n_experts; e++)
        top = fmax(top, logits[e]);
    for (uint32_t e = 0; e < s->n_experts; e++)
        sum += exp(logits[e] - top);
    for (uint32_t j = 0; j < s->k_used; j++) {
        ids[j] = NONE;
        for (uint32_t e = 0; e < s->n_experts; e++)
            if (!taken[e] && (ids[j] == NONE || logits[e] > logits[ids[j]]))
                ids[j] = e;
        taken[ids[j]] = true;
        weights[j] = exp(logits[ids[j]] - top) / sum;
    }
}

static bool check_choice(const struct bench_case *c, void *const *after, struct bench_miss *miss)
{
    const struct spec_router_one *spec = (const void *)c->spec;
    const uint32_t *choice = after[4], *want = c->owned[0]; /* (slot, id, weight) of each rank */

    miss->buf = 4;
    for (uint32_t j = 0; j < spec->k_used; j++) {
        const uint32_t got[2] = {choice[CHOICE_SLOTS + j], choice[CHOICE_SEL + 2 * j]};
        const double w = (double)cor_float_from_bits(choice[CHOICE_SEL + 2 * j + 1]),
                     exact = (double)cor_float_from_bits(want[3 * j + 2]);

        miss->element = CHOICE_SEL + 2 * j;
        if (got[0] != want[3 * j] || got[1] != want[3 * j + 1]) {
            snprintf(miss->got, sizeof(miss->got), "expert %u in slot %u", got[1], got[0]);
            snprintf(miss->expected, sizeof(miss->expected), "%u in %u", want[3 * j + 1], want[3 * j]);
            return false;
        }
        if (!(fabs(w - exact) <= 1e-4 * exact)) { /* a logit of 30 errs by 4e-6 */
            snprintf(miss->got, sizeof(miss->got), "%.9g", w);
            snprintf(miss->expected, sizeof(miss->expected), "%.9g", exact);
            return false;
        }
    }
    return true;
}

static uint32_t *make_args(struct bench_maker *m, uint32_t emptied_from)
{
    uint32_t *args = bench_array(m, (size_t)DISPATCHES * 3, 4);

    for (uint32_t i = 0; args && i < DISPATCHES * 3; i++)
        args[i] = i / 3 < emptied_from ? 7 + i : 0;
    return args;
}

/* Checks only: in use 1 the expert that is chosen last has no slot, and the token halts; in use 2 logits get
 * biases, which turn their order round. */
static bool make_router_one(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const uint32_t n = s->n_experts, k = s->k_used, rows = group_rows(m), words = bench_div_up(n, 32);
    const struct spec_router_one spec = {.wg = row_lanes(m, s->dim),
                                         .n_experts = n,
                                         .k_used = k,
                                         .scale_bits = cor_float_bits(1.0f),
                                         .k = s->dim,
                                         .format = MDL_F32,
                                         .row_bytes = 4 * s->dim,
                                         .rows = rows,
                                         .aligned = true,
                                         .bias_at = m->use == 2 ? CHOICE_MASK + 2 * words : 0};
    const size_t n_choice = CHOICE_MASK + 2 * (size_t)(words + n);
    const struct push_router push = {0, n, bench_div_up(n, rows), 1, NEXT, AFTER};
    uint32_t *want = bench_array(m, 3 * (size_t)k, 4), *table = bench_array(m, 2 * (size_t)n, 4),
             *choice = bench_array(m, n_choice, 4), ids[MAX_TOP_K];
    float *x = bench_floats(m, s->dim), *w;
    double *logits = bench_array(m, n, sizeof(*logits)), weights[MAX_TOP_K];

    if (m->use > (check(m) ? 2u : 0u))
        return false;
    w = make_router(m, x, logits);
    if (m->failed)
        return false;
    for (uint32_t e = 0; m->use == 2 && e < n; e++) {
        const float bias = -(float)(e * 7 % n) / 2;

        choice[CHOICE_MASK + 2 * words + n + e] = cor_float_bits(bias);
        logits[e] += (double)bias;
    }
    choose(s, logits, ids, weights);
    for (uint32_t e = 0; e < n; e++)
        table[n + e] = m->use == 1 && e == ids[k - 1] ? NONE : (e * 2 + 5) % (2 * n);
    for (uint32_t j = 0; j < k; j++) {
        want[3 * j] = table[n + ids[j]];
        want[3 * j + 1] = ids[j];
        want[3 * j + 2] = cor_float_bits((float)weights[j]);
    }
    for (uint32_t i = 0; i < words; i++)
        choice[CHOICE_MASK + words + i] = UINT32_MAX;
    bench_buf(m, BENCH_IN, x, s->dim);
    m->c->bufs[bench_buf(m, BENCH_IN, w, (size_t)n * s->dim)].weights = true;
    bench_buf(m, BENCH_IN, bench_state(m, 1, 9, 0, 1), STEP_TOKENS + 1);
    bench_buf(m, BENCH_IN, table, 2 * (size_t)n);
    bench_buf(m, BENCH_SCRATCH, choice, n_choice);
    bench_buf(m, BENCH_SCRATCH, NULL, MAIL_WORDS);
    bench_want_words(m, bench_buf(m, BENCH_INOUT, make_args(m, DISPATCHES), (size_t)DISPATCHES * 3), 0,
                     (size_t)DISPATCHES * 3, make_args(m, m->use == 1 ? NEXT : DISPATCHES));
    m->c->bufs[6].exact = true;
    bench_buf(m, BENCH_SCRATCH, NULL, 64 * (size_t)k);
    m->c->check = check(m) ? check_choice : NULL;
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, push.n_groups, 1, 1);
    m->c->bytes = 4.0 * ((double)n * s->dim + s->dim + n);
    m->c->flops = 2.0 * n * s->dim;
    WHAT(m, "%u of %u experts%s", k, n, m->use == 1 ? ", one absent" : "");
    return true;
}

/* ---- expert_down_sum
 * ---------------------------------------------------------------------------------------- */

/* Every slot holds one of two matrices; the shared expert's stands behind them, where the model has one. */
static bool make_down_sum(struct bench_maker *m)
{
    const struct bench_shape *s = m->s;
    const enum mdl_type t = m->env->type;
    const uint32_t dim = s->dim, ff = s->ff, k = s->k_used, rows = group_rows(m), shared = s->n_shared != 0;
    const uint64_t row_bytes = mdl_row_bytes(t, ff);
    const uint32_t n_segs = m->c->n_segs, routed = n_segs - shared;
    float *values[BENCH_SEGS] = {NULL}, *h = bench_floats(m, (size_t)(k + 1) * ff),
          *before = bench_floats(m, dim), *w = bench_floats(m, dim);
    double *want = doubles(m, dim), *normed = doubles(m, dim);
    uint32_t *choice = bench_array(m, CHOICE_MASK, 4), x, xn;
    uint8_t *bytes[BENCH_SEGS];
    size_t n_bytes = 0;

    if (m->use || ff % mdl_type_find(t)->block_elems || dim * row_bytes > m->env->caps->max_range)
        return false;
    for (uint32_t i = 0; i < n_segs; i++)
        bytes[i] = finite_matrix(m, dim, ff, &n_bytes, &values[i]);
    if (m->failed)
        return false;
    const struct spec_expert spec = {.wg = row_lanes(m, ff),
                                     .dim = dim,
                                     .ff = ff,
                                     .n_experts = s->n_experts,
                                     .k_used = k,
                                     .fmt_gate = t,
                                     .fmt_up = t,
                                     .fmt_down = t,
                                     .slot_stride = (uint32_t)n_bytes,
                                     .slots_per_seg = 1,
                                     .n_segs = n_segs,
                                     .rows = rows,
                                     .aligned = run_alignment(t, row_bytes, 0, 0),
                                     .shared = shared,
                                     .eps_bits = cor_float_bits(1e-6f)};
    const struct push_down_sum push = {bench_div_up(dim, rows)};

    for (uint32_t j = 0; j < k; j++) {
        choice[CHOICE_SLOTS + j] = j % routed;
        choice[CHOICE_SEL + 2 * j] = j;
        choice[CHOICE_SEL + 2 * j + 1] = cor_float_bits(bench_uniform(m, 0, 1));
    }
    choice[CHOICE_SLOTS + k] = SLOT_SHARED;
    bench_buf(m, BENCH_IN, h, (size_t)(k + 1) * ff);
    bench_buf(m, BENCH_SCRATCH, choice, CHOICE_MASK);
    x = bench_buf(m, BENCH_INOUT, before, dim);
    bench_buf(m, BENCH_IN, w, dim);
    xn = bench_buf(m, BENCH_OUT, NULL, dim);
    for (uint32_t i = 0; i < n_segs; i++)
        m->c->bufs[bench_buf(m, BENCH_IN, bytes[i], n_bytes / 4)].weights = true;
    for (uint32_t r = 0; want && r < dim; r++) {
        want[r] = before[r];
        for (uint32_t j = 0; j < k + shared; j++)
            want[r] +=
                (j < k ? (double)cor_float_from_bits(choice[CHOICE_SEL + 2 * j + 1]) : 1.0) *
                bench_dot(values[j < k ? j % routed : routed] + (size_t)r * ff, h + (size_t)j * ff, ff);
    }
    if (want)
        norm(want, w, dim, normed);
    bench_want_sums(m, x, dim, want, ff * (k + shared));
    bench_want_sums(m, xn, dim, normed, ff * (k + shared));
    BENCH_SPEC(m, spec);
    BENCH_PUSH(m, push);
    bench_grid(m, push.n_groups, 1, 1);
    m->c->bytes = (double)(k + shared) * ((double)dim * (double)row_bytes + 4.0 * ff) + 4.0 * 6.0 * dim;
    m->c->flops = 2.0 * (k + shared) * dim * ff;
    WHAT(m, "%u experts, %u x %u", k + shared, dim, ff);
    return true;
}

void bench_add_one(struct bench_entry *entries)
{
    entries[GPU_K_matvec_norm] = entries[GPU_K_matvec_norm_sg] = entries[GPU_K_matvec_norm_ln] =
        entries[GPU_K_matvec_norm_tx] = (struct bench_entry){make_mat_norm, true};
    entries[GPU_K_router_one] = entries[GPU_K_router_one_sg] = entries[GPU_K_router_one_ln] =
        (struct bench_entry){make_router_one, false};
    entries[GPU_K_expert_down_sum] = entries[GPU_K_expert_down_sum_sg] = entries[GPU_K_expert_down_sum_ln] =
        (struct bench_entry){make_down_sum, true};
}
