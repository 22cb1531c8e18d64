/* Expert kernels against plain C in double: gate and up, down, by token and by tile, and combine. */
#include <math.h>
#include <stdio.h>

#include "support/kernel_test.h"

/* ---- experts
 * ------------------------------------------------------------------------------------------------ */

struct expert_case {
    uint32_t dim, ff, k, n_tokens;
    enum mdl_type gate, up, down;
    uint32_t wg, rows, gap; /* gap: bytes between the matrices of a slot */
    uint32_t aligned;
    bool extra; /* biases, and the clamped activation */
};

enum { EXPERTS = 9, SEGS = 3, PER_SEG = 3, MAX_TILES = 64 };

/* A pool of one layer's experts in three segments, in an order of slots that is not the experts'. */
struct pool {
    struct spec_expert spec;
    struct kt_matrix gate[EXPERTS], up[EXPERTS], down[EXPERTS];
    float *bias[EXPERTS]; /* of gate, up and down, behind each other; NULL: none */
    uint32_t slot[EXPERTS];
    uint8_t *segs[SEGS];
    size_t seg_bytes;
};

/* Behind the matrices of a slot, which end at `end`; returns where all of it ends. Large enough for what the
 * activation clamps. */
static uint32_t place_biases(struct pool *p, const struct expert_case *c, uint32_t end)
{
    if (!c->extra)
        return end;
    end = (end + 3) / 4 * 4;
    p->spec.act = ACT_CLAMPED;
    p->spec.gate_bias = end;
    p->spec.up_bias = end + 4 * c->ff;
    p->spec.down_bias = end + 8 * c->ff;
    for (uint32_t e = 0; e < EXPERTS; e++) {
        p->bias[e] = kt_floats(2 * (size_t)c->ff + c->dim);
        for (uint32_t i = 0; i < 2 * c->ff + c->dim; i++)
            p->bias[e][i] *= 12;
    }
    return end + (2 * c->ff + c->dim) * 4;
}

static void pool_make(struct pool *p, const struct expert_case *c)
{
    uint32_t up_off = (uint32_t)mdl_row_bytes(c->gate, c->dim) * c->ff + c->gap;
    uint32_t down_off = up_off + (uint32_t)mdl_row_bytes(c->up, c->dim) * c->ff + c->gap;
    uint32_t stride = down_off + (uint32_t)mdl_row_bytes(c->down, c->ff) * c->dim + c->gap;

    p->spec = (struct spec_expert){c->wg,      c->dim, c->ff,          EXPERTS, c->k,    c->gate, c->up,
                                   c->down,    up_off, down_off,       stride,  PER_SEG, SEGS,    c->rows,
                                   c->aligned, 0,      kt_bits(1e-5f), 0,       0,       0,       ACT_SILU};
    stride = place_biases(p, c, stride);
    p->spec.slot_stride = stride;
    p->seg_bytes = ((size_t)stride * PER_SEG + 7) / 4 * 4;
    for (uint32_t i = 0; i < SEGS; i++) {
        p->segs[i] = cor_alloc(p->seg_bytes);
        memset(p->segs[i], 0x7f, p->seg_bytes); /* NaN between matrices */
    }
    for (uint32_t e = 0; e < EXPERTS; e++) {
        uint32_t slot = (e * 2 + 5) % EXPERTS;
        uint8_t *at = p->segs[slot / PER_SEG] + (size_t)(slot % PER_SEG) * stride;

        kt_matrix_make(&p->gate[e], c->gate, c->ff, c->dim, 0);
        kt_matrix_make(&p->up[e], c->up, c->ff, c->dim, 0);
        kt_matrix_make(&p->down[e], c->down, c->dim, c->ff, 0);
        memcpy(at, p->gate[e].bytes, (size_t)p->gate[e].row_bytes * c->ff);
        memcpy(at + up_off, p->up[e].bytes, (size_t)p->up[e].row_bytes * c->ff);
        memcpy(at + down_off, p->down[e].bytes, (size_t)p->down[e].row_bytes * c->dim);
        if (p->bias[e])
            memcpy(at + p->spec.gate_bias, p->bias[e], (2 * (size_t)c->ff + c->dim) * 4);
        p->slot[e] = slot;
    }
}

/* Hidden state r of an expert, from the dot products of gate and up. */
static double hidden(const struct pool *p, uint32_t e, uint32_t r, double g, double u)
{
    const float *bias = p->bias[e];

    if (!bias)
        return g / (1 + exp(-g)) * u;
    g += bias[r];
    u += bias[p->spec.ff + r];
    g = g > ACT_LIMIT ? ACT_LIMIT : g; /* NaN stays */
    u = u > ACT_LIMIT ? ACT_LIMIT : u < -ACT_LIMIT ? -ACT_LIMIT : u;
    return g / (1 + exp(-ACT_ALPHA * g)) * (u + 1);
}

static double down_bias(const struct pool *p, uint32_t e, uint32_t r)
{
    return p->bias[e] ? (double)p->bias[e][2 * p->spec.ff + r] : 0;
}

static void pool_free(struct pool *p)
{
    for (uint32_t e = 0; e < EXPERTS; e++) {
        kt_matrix_free(&p->gate[e]);
        kt_matrix_free(&p->up[e]);
        kt_matrix_free(&p->down[e]);
        cor_free(p->bias[e]);
    }
    for (uint32_t i = 0; i < SEGS; i++)
        cor_free(p->segs[i]);
}

/* One step of the experts: all segments as an array, or one dispatch for each. head: the n buffers before
 * the segments. */
static void expert_run(enum gpu_kernel k, bool array, const struct pool *p, const struct kt_buf *head,
                       uint32_t n, uint32_t x, uint32_t y, uint32_t z)
{
    struct spec_expert spec = p->spec;
    struct kt_buf bufs[4 + SEGS];

    spec.n_segs = array ? SEGS : 1;
    memcpy(bufs, head, n * sizeof(*bufs));
    for (uint32_t i = 0; i < SEGS; i++)
        bufs[array ? n + i : n] = (struct kt_buf){p->segs[i], p->seg_bytes, KT_IN, false};
    for (uint32_t seg = 0; seg < (array ? 1 : SEGS); seg++) {
        const struct push_expert push = {array ? 12345 : seg};

        bufs[n].data = p->segs[seg];
        kt_run(k, &spec, sizeof(spec), array ? SEGS : 1, &push, bufs, array ? n + SEGS : n + 1, x, y, z);
    }
}

struct expert_data {
    const struct expert_case *c;
    struct pool pool;
    uint32_t n_pairs, n_tiles;
    uint32_t *sel, *ranks, *tiles, *pairs; /* ranks: slot of each pair */
    float *x, *h, *y, *h_in;               /* h_in: input of down */
    double *want_h, *want_y;
};

/* Tiles as group would make them, but with short ones among them. */
static void make_tiles(struct expert_data *d)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < EXPERTS; e++)
        for (uint32_t i = 0; i < d->n_pairs; i++) {
            uint32_t *tile = d->tiles + (size_t)d->n_tiles * TILE_WORDS;

            if (d->sel[2 * i] != e)
                continue;
            if (!d->n_tiles || tile[TILE_EXPERT - TILE_WORDS] != e ||
                tile[TILE_COUNT - TILE_WORDS] == TILE_TOKENS) {
                tile[TILE_SLOT] = d->pool.slot[e];
                tile[TILE_FIRST] = n;
                tile[TILE_EXPERT] = e;
                d->n_tiles++;
                assert_true(d->n_tiles < MAX_TILES);
            }
            d->tiles[(size_t)(d->n_tiles - 1) * TILE_WORDS + TILE_COUNT]++;
            d->pairs[n++] = i;
        }
}

static void expert_make(struct expert_data *d, const struct expert_case *c)
{
    memset(d, 0, sizeof(*d));
    d->c = c;
    d->n_pairs = c->n_tokens * c->k;
    pool_make(&d->pool, c);
    d->sel = kt_words((size_t)d->n_pairs * 2);
    d->ranks = kt_words(d->n_pairs);
    d->tiles = kt_words((size_t)MAX_TILES * TILE_WORDS);
    d->pairs = kt_words(d->n_pairs);
    d->x = kt_floats((size_t)c->n_tokens * c->dim);
    d->h = kt_floats((size_t)d->n_pairs * c->ff);
    d->h_in = kt_floats((size_t)d->n_pairs * c->ff);
    d->y = kt_floats((size_t)d->n_pairs * c->dim);
    d->want_h = cor_array((size_t)d->n_pairs * c->ff, sizeof(double));
    d->want_y = cor_array((size_t)d->n_pairs * c->dim, sizeof(double));
    /* With many tokens some experts are empty. */
    kt_choose(d->sel, c->n_tokens, c->n_tokens > 20 ? c->k + 1 : EXPERTS, c->k, c->k > 1);
    make_tiles(d);
    for (uint32_t i = 0; i < d->n_pairs; i++) /* one of them is left out, as if it had run before */
        d->ranks[i] = d->sel[2 * i] == NONE || i == 4 ? NONE : d->pool.slot[d->sel[2 * i]];
    for (uint32_t i = 0; i < d->n_pairs; i++) {
        uint32_t e = d->sel[2 * i];

        for (uint32_t r = 0; r < c->ff; r++) {
            const float *x = d->x + (size_t)(i / c->k) * c->dim;
            double g = e == NONE ? 0 : kt_matrix_dot(&d->pool.gate[e], c->dim, r, x);

            d->want_h[(size_t)i * c->ff + r] =
                e == NONE ? NAN : hidden(&d->pool, e, r, g, kt_matrix_dot(&d->pool.up[e], c->dim, r, x));
        }
        for (uint32_t r = 0; r < c->dim; r++)
            d->want_y[(size_t)i * c->dim + r] =
                e == NONE ? NAN
                          : kt_matrix_dot(&d->pool.down[e], c->ff, r, d->h_in + (size_t)i * c->ff) +
                                down_bias(&d->pool, e, r);
    }
}

static void expert_free(struct expert_data *d)
{
    pool_free(&d->pool);
    cor_free(d->sel);
    cor_free(d->ranks);
    cor_free(d->tiles);
    cor_free(d->pairs);
    cor_free(d->x);
    cor_free(d->h);
    cor_free(d->h_in);
    cor_free(d->y);
    cor_free(d->want_h);
    cor_free(d->want_y);
}

static void poison(float *f, size_t n)
{
    for (size_t i = 0; i < n; i++)
        f[i] = kt_float(KT_POISON);
}

/* down: the second step, else gate and up; many: tiles. */
static void expert_step(struct expert_data *d, enum gpu_kernel k, bool down, bool many, bool array)
{
    const struct expert_case *c = d->c;
    const struct kt_cut cut = kt_cut(k, c->wg, many ? TILE_ROWS : c->rows);
    uint32_t rows = down ? c->dim : c->ff;
    size_t n_in = down ? (size_t)d->n_pairs * c->ff : (size_t)c->n_tokens * c->dim,
           n_out = (size_t)d->n_pairs * rows;
    float *out = down ? d->y : d->h;
    const struct kt_buf in = {down ? d->h_in : d->x, n_in * 4, KT_IN, false};
    const struct kt_buf result = {out, n_out * 4, KT_INOUT, false};
    const struct kt_buf one[] = {in, {d->ranks, (size_t)d->n_pairs * 4, KT_IN, false}, result};
    const struct kt_buf tiles[] = {in,
                                   {d->tiles, (size_t)d->n_tiles * TILE_WORDS * 4, KT_IN, false},
                                   {d->pairs, (size_t)d->n_pairs * 4, KT_IN, false},
                                   result};
    double *want = down ? d->want_y : d->want_h;
    char what[128];

    if (!kt_usable(k))
        return;
    d->pool.spec.wg = cut.wg;
    d->pool.spec.rows = cut.rows;
    poison(out, n_out);
    for (uint32_t i = 0; !many && i < d->n_pairs; i++) /* not run: not written */
        for (uint32_t r = 0; d->ranks[i] == NONE && r < rows; r++)
            want[(size_t)i * rows + r] = NAN;
    expert_run(k, array, &d->pool, many ? tiles : one, many ? 4 : 3, (rows + cut.rows - 1) / cut.rows,
               many ? d->n_tiles : c->k, many ? 1 : c->n_tokens);
    snprintf(what, sizeof(what), "%s: dim %u, ff %u, formats %d %d %d", gpu_kernel_info(k)->name, c->dim,
             c->ff, (int)c->gate, (int)c->up, (int)c->down);
    kt_close(what, out, want, n_out, KT_NMSE, KT_LARGEST);
}

static const struct expert_case cases[] = {
    {96, 64, 3, 2, MDL_Q4_0, MDL_Q4_0, MDL_Q8_0, 32, 4, 2, 0, false},
    {33, 21, 2, 3, MDL_F16, MDL_BF16, MDL_F32, 64, 3, 2, 0, false},
    {64, 160, 7, 40, MDL_Q8_0, MDL_F32, MDL_Q4_0, 128, 8, 6, 0, false},
    {136, 72, 4, 70, MDL_BF16, MDL_BF16, MDL_BF16, 32, 4, 4, 1, false},
    {96, 64, 3, 12, MDL_BF16, MDL_F16, MDL_F32, 32, 4, 16, 2, false},
    {192, 64, 3, 2, MDL_Q4_0, MDL_Q4_0, MDL_Q4_0, 32, 4, 72, 3, false},
    {64, 128, 2, 5, MDL_Q8_0, MDL_Q8_0, MDL_Q8_0, 32, 4, 0, 3, false},
    {1, 1, 1, 1, MDL_F32, MDL_F16, MDL_F16, 32, 1, 0, 0, false},
};

static void test_experts(void **unused)
{
    enum { KINDS = 6 };
    static const enum gpu_kernel one[2][KINDS] = {
        {GPU_K_expert_gate_up, GPU_K_expert_gate_up_sg, GPU_K_expert_gate_up_ln, GPU_K_expert_gate_up_arr,
         GPU_K_expert_gate_up_ln_arr, GPU_K_expert_gate_up_sg_arr},
        {GPU_K_expert_down, GPU_K_expert_down_sg, GPU_K_expert_down_ln, GPU_K_expert_down_arr,
         GPU_K_expert_down_ln_arr, GPU_K_expert_down_sg_arr}};

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(cases); i++) {
        struct expert_case c = cases[i];
        struct expert_data d;

        if (c.n_tokens > 3)
            c.n_tokens = 3;
        expert_make(&d, &c);
        for (uint32_t v = 0; v < KINDS; v++) {
            bool all = v == 0 || v >= 4; /* the others differ from these in one way each */

            if (!kt_wanted(i) || (!all && i % 4 != 1))
                continue;
            expert_step(&d, one[0][v], false, false, v >= 3);
            expert_step(&d, one[1][v], true, false, v >= 3);
        }
        expert_free(&d);
    }
}

/* ---- one token, with the shared expert as one more rank, and the sum */

struct shared_data {
    struct expert_data d;
    struct kt_matrix gate, up, down;
    uint8_t *gate_up; /* behind each other */
    size_t gate_up_bytes;
};

static void shared_make(struct shared_data *s, const struct expert_case *c)
{
    size_t half;

    expert_make(&s->d, c);
    kt_matrix_make(&s->gate, c->gate, c->ff, c->dim, 0);
    kt_matrix_make(&s->up, c->up, c->ff, c->dim, 0);
    kt_matrix_make(&s->down, c->down, c->dim, c->ff, 0);
    half = (size_t)s->gate.row_bytes * c->ff;
    s->gate_up_bytes = (half + (size_t)s->up.row_bytes * c->ff + 3) / 4 * 4;
    s->gate_up = cor_zalloc(s->gate_up_bytes);
    assert_non_null(s->gate_up);
    memcpy(s->gate_up, s->gate.bytes, half);
    memcpy(s->gate_up + half, s->up.bytes, (size_t)s->up.row_bytes * c->ff);
}

static void shared_free(struct shared_data *s)
{
    expert_free(&s->d);
    kt_matrix_free(&s->gate);
    kt_matrix_free(&s->up);
    kt_matrix_free(&s->down);
    cor_free(s->gate_up);
}

/* The segments and, with `shared`, what stands behind them. */
static void one_run(enum gpu_kernel k, const struct shared_data *s, bool shared, const void *push,
                    const struct kt_buf *head, uint32_t n, struct kt_buf last, uint32_t x, uint32_t y)
{
    const struct kt_cut cut = kt_cut(k, s->d.c->wg, s->d.c->rows);
    struct spec_expert spec = s->d.pool.spec;
    struct kt_buf bufs[5 + SEGS + 1];

    spec.wg = cut.wg;
    spec.rows = cut.rows;
    spec.shared = shared;
    spec.n_segs = SEGS + shared;
    memcpy(bufs, head, n * sizeof(*bufs));
    for (uint32_t i = 0; i < SEGS; i++)
        bufs[n + i] = (struct kt_buf){s->d.pool.segs[i], s->d.pool.seg_bytes, KT_IN, false};
    bufs[n + SEGS] = last;
    kt_run(k, &spec, sizeof(spec), spec.n_segs, push, bufs, n + spec.n_segs, (x + cut.rows - 1) / cut.rows, y,
           1);
}

static void gate_up_one(struct shared_data *s, enum gpu_kernel k, bool shared)
{
    const struct expert_case *c = s->d.c;
    const struct push_expert push = {12345};
    const uint32_t n = c->k + shared;
    uint32_t *ranks = kt_words(n);
    float *h = kt_floats((size_t)n * c->ff);
    double *want = cor_array((size_t)n * c->ff, sizeof(*want));
    const struct kt_buf head[] = {{s->d.x, (size_t)c->dim * 4, KT_IN, false},
                                  {ranks, (size_t)n * 4, KT_IN, false},
                                  {h, (size_t)n * c->ff * 4, KT_OUT, false}};

    memcpy(ranks, s->d.ranks, c->k * sizeof(*ranks));
    memcpy(want, s->d.want_h, (size_t)c->k * c->ff * sizeof(*want));
    for (uint32_t j = 0; j < c->k; j++)
        for (uint32_t r = 0; ranks[j] == NONE && r < c->ff; r++)
            want[(size_t)j * c->ff + r] = NAN;
    for (uint32_t r = 0; shared && r < c->ff; r++) {
        double g = kt_matrix_dot(&s->gate, c->dim, r, s->d.x);

        want[(size_t)c->k * c->ff + r] = g / (1 + exp(-g)) * kt_matrix_dot(&s->up, c->dim, r, s->d.x);
    }
    if (shared)
        ranks[c->k] = SLOT_SHARED;
    one_run(k, s, shared, &push, head, 3, (struct kt_buf){s->gate_up, s->gate_up_bytes, KT_IN, false}, c->ff,
            n);
    kt_close(gpu_kernel_info(k)->name, h, want, (size_t)n * c->ff, KT_NMSE, KT_LARGEST);
    cor_free(ranks);
    cor_free(h);
    cor_free(want);
}

/* x, and its norm in xn. */
static void want_sum(const struct shared_data *s, bool shared, const float *h, const uint32_t *sel,
                     const float *w, double *x, double *xn)
{
    const struct expert_case *c = s->d.c;
    double sum = 0;

    for (uint32_t r = 0; r < c->dim; r++) {
        for (uint32_t j = 0; j < c->k; j++)
            if (sel[2 * j] != NONE)
                x[r] += (double)kt_float(sel[2 * j + 1]) *
                        (kt_matrix_dot(&s->d.pool.down[sel[2 * j]], c->ff, r, h + (size_t)j * c->ff) +
                         down_bias(&s->d.pool, sel[2 * j], r));
        if (shared)
            x[r] += kt_matrix_dot(&s->down, c->ff, r, h + (size_t)c->k * c->ff);
        sum += x[r] * x[r];
    }
    for (uint32_t r = 0; r < c->dim; r++)
        xn[r] = x[r] / sqrt(sum / c->dim + (double)1e-5f) * w[r];
}

static void down_one(struct shared_data *s, enum gpu_kernel k, bool shared)
{
    const struct expert_case *c = s->d.c;
    const struct kt_cut cut = kt_cut(k, c->wg, c->rows);
    const struct push_down_sum push = {(c->dim + cut.rows - 1) / cut.rows};
    uint32_t *choice = kt_words(CHOICE_MASK), *sel = s->d.sel;
    float *h = kt_floats((size_t)(c->k + 1) * c->ff), *x = kt_floats(c->dim), *w = kt_floats(c->dim),
          *xn = kt_floats(c->dim);
    double *want = cor_array(c->dim, sizeof(*want)), *want_n = cor_array(c->dim, sizeof(*want));
    const struct kt_buf head[] = {{h, (size_t)(c->k + 1) * c->ff * 4, KT_IN, false},
                                  {choice, CHOICE_MASK * 4, KT_INOUT, false},
                                  {x, (size_t)c->dim * 4, KT_INOUT, false},
                                  {w, (size_t)c->dim * 4, KT_IN, false},
                                  {xn, (size_t)c->dim * 4, KT_OUT, false}};

    for (uint32_t j = 0; j < c->k; j++) {
        choice[CHOICE_RUN + j] = NONE; /* of no meaning here */
        choice[CHOICE_SLOTS + j] = sel[2 * j] == NONE ? NONE : s->d.pool.slot[sel[2 * j]];
    }
    choice[CHOICE_SLOTS + c->k] = SLOT_SHARED;
    memcpy(choice + CHOICE_SEL, sel, (size_t)c->k * 8);
    if (c->dim == 1) /* no other elements to measure what is left after cancellation against */
        x[0] += 4;
    for (uint32_t r = 0; r < c->dim; r++)
        want[r] = x[r];
    want_sum(s, shared, h, sel, w, want, want_n);
    one_run(k, s, shared, &push, head, 5, (struct kt_buf){s->down.bytes, s->down.n_bytes, KT_IN, false},
            c->dim, 1);
    kt_close(gpu_kernel_info(k)->name, x, want, c->dim, KT_NMSE, KT_LARGEST);
    kt_close(gpu_kernel_info(k)->name, xn, want_n, c->dim, KT_NMSE, KT_LARGEST);
    assert_int_equal(choice[CHOICE_COUNT], 0);
    cor_free(choice);
    cor_free(h);
    cor_free(x);
    cor_free(w);
    cor_free(xn);
    cor_free(want);
    cor_free(want_n);
}

static void test_one(void **unused)
{
    static const enum gpu_kernel up[] = {GPU_K_expert_gate_up_arr, GPU_K_expert_gate_up_sg_arr,
                                         GPU_K_expert_gate_up_ln_arr},
                                 down[] = {GPU_K_expert_down_sum, GPU_K_expert_down_sum_sg,
                                           GPU_K_expert_down_sum_ln};

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(cases); i++)
        for (uint32_t v = 0; v < 3; v++) {
            struct expert_case c = cases[i];
            struct shared_data s;

            if (!kt_wanted(i) || !kt_usable(down[v]) || (i % 3 != v && i != 1 && c.aligned != 3))
                continue;
            c.n_tokens = 1;
            shared_make(&s, &c);
            gate_up_one(&s, up[v], true);
            down_one(&s, down[v], true);
            if (i == v)
                down_one(&s, down[v], false);
            shared_free(&s);
        }
}

static void test_expert_tiles(void **unused)
{
    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(cases); i++) {
        struct expert_case c = cases[i];
        struct expert_data d;

        if (!kt_wanted(i + 2))
            continue;
        c.wg = 128;
        expert_make(&d, &c);
        expert_step(&d, GPU_K_expert_gate_up_tile_arr, false, true, true);
        expert_step(&d, GPU_K_expert_down_tile_arr, true, true, true);
        expert_step(&d, GPU_K_expert_gate_up_tile_ln_arr, false, true, true);
        expert_step(&d, GPU_K_expert_down_tile_ln_arr, true, true, true);
        if (i % 2) { /* by turns: compiling takes long */
            expert_step(&d, GPU_K_expert_gate_up_few_arr, false, true, true);
            expert_step(&d, GPU_K_expert_down_few_sg_arr, true, true, true);
        } else {
            expert_step(&d, GPU_K_expert_gate_up_few_sg_arr, false, true, true);
            expert_step(&d, GPU_K_expert_down_few_arr, true, true, true);
        }
        if (i == 3) {
            expert_step(&d, GPU_K_expert_gate_up_tile_ln, false, true, false);
            expert_step(&d, GPU_K_expert_down_tile_ln, true, true, false);
            expert_step(&d, GPU_K_expert_gate_up_few_sg, false, true, false);
            expert_step(&d, GPU_K_expert_down_few, true, true, false);
        }
        if (i == 1) {
            expert_step(&d, GPU_K_expert_gate_up_few, false, true, false);
            expert_step(&d, GPU_K_expert_down_few_sg, true, true, false);
            expert_step(&d, GPU_K_expert_gate_up_tile, false, true, false);
            expert_step(&d, GPU_K_expert_down_tile, true, true, false);
        }
        expert_free(&d);
    }
}

/* Formats that rows on lanes do not know, by all other kernels; of the second case, and where compiling takes
 * long, by one of each kind. */
static void test_other_formats(void **unused)
{
    static const struct expert_case others[] = {
        {256, 512, 2, 3, MDL_Q4_K, MDL_Q6_K, MDL_Q3_K, 32, 4, 2, 0, false},
        {96, 64, 3, 5, MDL_IQ4_NL, MDL_MXFP4, MDL_Q5_1, 32, 4, 2, 0, false},
    };
    static const struct {
        enum gpu_kernel up, down;
        bool many, array;
    } kinds[] = {
        {GPU_K_expert_gate_up_arr, GPU_K_expert_down_arr, false, true},
        {GPU_K_expert_gate_up_tile_arr, GPU_K_expert_down_tile_arr, true, true},
        {GPU_K_expert_gate_up_few_arr, GPU_K_expert_down_few_arr, true, true},
        {GPU_K_expert_gate_up, GPU_K_expert_down, false, false}, /* from here on of the first case alone */
        {GPU_K_expert_gate_up_sg, GPU_K_expert_down_sg, false, false},
        {GPU_K_expert_gate_up_sg_arr, GPU_K_expert_down_sg_arr, false, true},
        {GPU_K_expert_gate_up_tile, GPU_K_expert_down_tile, true, false},
        {GPU_K_expert_gate_up_few, GPU_K_expert_down_few, true, false},
        {GPU_K_expert_gate_up_few_sg, GPU_K_expert_down_few_sg, true, false},
        {GPU_K_expert_gate_up_few_sg_arr, GPU_K_expert_down_few_sg_arr, true, true},
    };
    static const enum gpu_kernel sums[] = {GPU_K_expert_down_sum, GPU_K_expert_down_sum_sg};

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(others); i++)
        for (uint32_t v = 0; v < (i || kt_slow() ? 3 : COR_COUNT(kinds)) && kt_wanted(i); v++) {
            struct expert_case c = others[i];
            struct expert_data d;

            if (kinds[v].many)
                c.wg = 128;
            expert_make(&d, &c);
            expert_step(&d, kinds[v].up, false, kinds[v].many, kinds[v].array);
            expert_step(&d, kinds[v].down, true, kinds[v].many, kinds[v].array);
            expert_free(&d);
        }
    for (uint32_t v = 0; v < COR_COUNT(sums); v++) {
        struct expert_case c = others[0];
        struct shared_data s;

        if (!kt_wanted(v) || !kt_usable(sums[v]))
            continue;
        c.n_tokens = 1;
        shared_make(&s, &c);
        down_one(&s, sums[v], true);
        shared_free(&s);
    }
}

/* Biases and the clamped activation, by every kernel that has them. */
static void test_biases(void **unused)
{
    static const struct expert_case extra[] = {
        {96, 64, 3, 5, MDL_MXFP4, MDL_MXFP4, MDL_MXFP4, 32, 4, 2, 0, true},
        {67, 35, 2, 3, MDL_F16, MDL_F32, MDL_BF16, 64, 3, 6, 0, true},
        {64, 96, 4, 40, MDL_Q8_0, MDL_Q8_0, MDL_Q8_0, 32, 4, 16, 1, true},
    };
    static const struct {
        enum gpu_kernel up, down;
        bool many, array;
    } kinds[] = {
        {GPU_K_expert_gate_up_arr, GPU_K_expert_down_arr, false, true},
        {GPU_K_expert_gate_up_tile_arr, GPU_K_expert_down_tile_arr, true, true},
        {GPU_K_expert_gate_up_few_arr, GPU_K_expert_down_few_arr, true, true},
        {GPU_K_expert_gate_up_ln_arr, GPU_K_expert_down_ln_arr, false, true}, /* plain formats from here on */
        {GPU_K_expert_gate_up_tile_ln_arr, GPU_K_expert_down_tile_ln_arr, true, true},
        {GPU_K_expert_gate_up_sg, GPU_K_expert_down_sg, false, false},
    };
    static const enum gpu_kernel sums[] = {GPU_K_expert_down_sum, GPU_K_expert_down_sum_sg,
                                           GPU_K_expert_down_sum_ln};

    (void)unused;
    for (uint32_t i = 0; i < (kt_slow() ? 1 : COR_COUNT(extra)); i++)
        for (uint32_t v = 0; v < (i ? COR_COUNT(kinds) : 3) && kt_wanted(i + 2 * v); v++) {
            struct expert_case c = extra[i];
            struct expert_data d;

            if (kinds[v].many)
                c.wg = 128;
            else if (c.n_tokens > 3)
                c.n_tokens = 3;
            expert_make(&d, &c);
            expert_step(&d, kinds[v].up, false, kinds[v].many, kinds[v].array);
            expert_step(&d, kinds[v].down, true, kinds[v].many, kinds[v].array);
            expert_free(&d);
        }
    for (uint32_t v = 0; v < COR_COUNT(sums); v++) {
        struct expert_case c = extra[v == 2 ? 2 : v];
        struct shared_data s;

        if (!kt_usable(sums[v]))
            continue;
        c.n_tokens = 1;
        shared_make(&s, &c);
        down_one(&s, sums[v], false);
        shared_free(&s);
    }
}

/* ---- combine
 * ------------------------------------------------------------------------------------------------ */

static void combine_case(uint32_t dim, uint32_t k, uint32_t n_tokens, bool shared)
{
    const struct spec_combine spec = {64, dim, k, shared};
    uint32_t *sel = kt_words((size_t)n_tokens * k * 2);
    float *y = kt_floats((size_t)n_tokens * k * dim), *ysh = kt_floats((size_t)n_tokens * dim);
    float *x = kt_floats((size_t)n_tokens * dim);
    double *want = cor_array((size_t)n_tokens * dim, sizeof(*want));
    struct kt_buf bufs[] = {{sel, (size_t)n_tokens * k * 8, KT_IN, false},
                            {y, (size_t)n_tokens * k * dim * 4, KT_IN, false},
                            {ysh, shared ? (size_t)n_tokens * dim * 4 : 4, KT_IN, true},
                            {x, (size_t)n_tokens * dim * 4, KT_INOUT, false}};

    kt_choose(sel, n_tokens, 64, k, true);
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t i = 0; i < dim; i++) {
            double *w = want + (size_t)t * dim + i;

            *w = x[(size_t)t * dim + i] + (shared ? (double)ysh[(size_t)t * dim + i] : 0);
            for (uint32_t j = 0; j < k; j++) {
                size_t pair = (size_t)t * k + j;

                if (sel[2 * pair] == NONE)
                    y[pair * dim + i] = NAN; /* never written: not read either */
                else
                    *w += (double)kt_float(sel[2 * pair + 1]) * y[pair * dim + i];
            }
        }
    KT_RUN(GPU_K_combine, spec, NULL, bufs, (dim + 63) / 64, n_tokens, 1);
    kt_close("combine", x, want, (size_t)n_tokens * dim, KT_NMSE, KT_LARGEST);
    cor_free(sel);
    cor_free(y);
    cor_free(ysh);
    cor_free(x);
    cor_free(want);
}

/* ---- expert_sums
 * -------------------------------------------------------------------------------------------- */

static void sums_case(uint32_t dim, uint32_t k, uint32_t n_tokens, bool shared, uint32_t row0)
{
    const struct spec_expert_sums spec = {64, dim, k, shared};
    const struct push_rows push = {row0};
    size_t n = (size_t)n_tokens * (3 + k), before = (size_t)row0 * (3 + k);
    uint32_t *sel = kt_words((size_t)n_tokens * k * 2);
    float *y = kt_floats((size_t)n_tokens * k * dim), *ysh = kt_floats((size_t)n_tokens * dim);
    float *h = kt_floats((size_t)n_tokens * dim), *got = kt_floats(before + n), *kept = kt_floats(before + n);
    double *want = cor_array(n, sizeof(*want));
    struct kt_buf bufs[] = {{sel, (size_t)n_tokens * k * 8, KT_IN, false},
                            {h, (size_t)n_tokens * dim * 4, KT_IN, false},
                            {y, (size_t)n_tokens * k * dim * 4, KT_IN, false},
                            {ysh, shared ? (size_t)n_tokens * dim * 4 : 4, KT_IN, true},
                            {got, (before + n) * 4, KT_INOUT, false}};

    kt_choose(sel, n_tokens, 64, k, true);
    memcpy(kept, got, (before + n) * 4);
    for (uint32_t t = 0; t < n_tokens; t++) {
        double *w = want + (size_t)t * (3 + k);

        for (uint32_t i = 0; i < dim; i++) {
            double m = shared ? (double)ysh[(size_t)t * dim + i] : 0, a = h[(size_t)t * dim + i];

            for (uint32_t j = 0; j < k; j++) {
                size_t pair = (size_t)t * k + j;
                double v = y[pair * dim + i];

                if (sel[2 * pair] == NONE) {
                    y[pair * dim + i] = NAN;
                    continue;
                }
                w[3 + j] += v * v;
                m += (double)kt_float(sel[2 * pair + 1]) * v;
            }
            w[0] += a * a;
            w[1] += a * m;
            w[2] += m * m;
        }
    }
    KT_RUN(GPU_K_expert_sums, spec, &push, bufs, 1, n_tokens, 1);
    assert_memory_equal(got, kept, before * 4);
    kt_close("expert_sums", got + before, want, n, KT_NMSE, KT_LARGEST * dim);
    cor_free(sel);
    cor_free(y);
    cor_free(ysh);
    cor_free(h);
    cor_free(got);
    cor_free(kept);
    cor_free(want);
}

static void test_expert_sums(void **unused)
{
    (void)unused;
    sums_case(1, 1, 1, false, 0);
    sums_case(150, 7, 4, true, 5);
    sums_case(64, 32, 3, false, 1);
}

static void test_combine(void **unused)
{
    (void)unused;
    combine_case(1, 1, 1, false);
    combine_case(150, 7, 4, true);
    combine_case(64, 32, 7, false);
}

/* ---- slot tags ---- */

/* Random slots, entries for most of them in any order, a few words of which are then spoiled. */
static void tags_case(bool array, uint32_t n, uint32_t columns, uint32_t n_bad)
{
    enum { STRIDE = 320, SLOTS = SEGS * PER_SEG };
    const uint32_t seg_bytes = STRIDE * PER_SEG;
    const struct spec_tags spec = {32, STRIDE, PER_SEG, array ? SEGS : 1};
    uint32_t *words = kt_words(SLOTS * STRIDE / 4), *list = kt_words((size_t)n * TAG_WORDS);
    uint32_t result[2] = {0, NONE}, bad = 0, lowest = NONE;
    struct kt_buf bufs[2 + SEGS] = {{list, (size_t)n * TAG_WORDS * 4, KT_IN, true},
                                    {result, sizeof(result), KT_INOUT, true}};

    for (uint32_t i = 0; i < SLOTS * STRIDE / 4; i++)
        words[i] = kt_below(1u << 31);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *e = list + (size_t)i * TAG_WORDS;
        const uint32_t slot = kt_below(SLOTS), first = i % 5 ? 16 : kt_below(17),
                       last = i % 3 ? 16 : kt_below(17);
        const uint32_t off = (16 + kt_below(STRIDE / 4 - 32)) * 4;

        e[TAG_SLOT] = slot;
        e[TAG_LAST_OFF] = off;
        e[TAG_N_FIRST] = first;
        e[TAG_N_LAST] = last;
        memcpy(e + TAG_FIRST, words + slot * STRIDE / 4, first * 4u);
        memcpy(e + TAG_FIRST + first, words + slot * STRIDE / 4 + off / 4, last * 4u);
        for (uint32_t k = first + last; k < 32; k++)
            e[TAG_FIRST + k] = KT_POISON; /* not compared */
        if (i % 7 == 3 && bad < n_bad && first + last) {
            e[TAG_FIRST + kt_below(first + last)] ^= 1u << kt_below(32);
            lowest = bad++ ? lowest : i;
        }
    }
    for (uint32_t seg = 0; seg < (array ? 1 : SEGS); seg++) {
        const struct push_tags push = {n, array ? 12345 : seg};

        for (uint32_t i = 0; i < SEGS; i++)
            bufs[2 + i] = (struct kt_buf){words + (array ? i : seg) * seg_bytes / 4, seg_bytes, KT_IN, true};
        kt_run(array ? GPU_K_slot_tags_arr : GPU_K_slot_tags, &spec, sizeof(spec), array ? SEGS : 1, &push,
               bufs, array ? 2 + SEGS : 3, columns, (n + columns - 1) / columns, 1);
    }
    assert_int_equal(result[0], bad);
    assert_int_equal(result[1], lowest);
    cor_free(words);
    cor_free(list);
}

static void test_slot_tags(void **unused)
{
    (void)unused;
    for (int array = 0; array < 2; array++) {
        if (!kt_usable(array ? GPU_K_slot_tags_arr : GPU_K_slot_tags))
            continue;
        tags_case(array, 1, 1, 0);
        tags_case(array, 60, 7, 0);
        tags_case(array, 60, 64, 1);
        tags_case(array, 45, 10, 5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_experts),      cmocka_unit_test(test_one),
        cmocka_unit_test(test_expert_tiles), cmocka_unit_test(test_other_formats),
        cmocka_unit_test(test_biases),       cmocka_unit_test(test_combine),
        cmocka_unit_test(test_expert_sums),  cmocka_unit_test(test_slot_tags),
    };

    return kt_main(KT_MOE, tests, COR_COUNT(tests));
}
