/* Kernels of --fast-math against plain C: inputs rounded to 8 bits, and matrices times such inputs. The
 * integers are exact, so that results differ from the sums in double by the rounding of block sums alone. */
#include <math.h>
#include <stdio.h>

#include "support/kernel_test.h"

enum { BLOCK = 32 };

/* Words of a quantised row, as lib/dot8.glsl has it. */
static uint32_t row_words(uint32_t k)
{
    return (k / BLOCK * 10 + 3) / 4 * 4;
}

/* ---- quant_x
 * ------------------------------------------------------------------------------------------------ */

static void quant_block(const float *x, const uint32_t *q, uint32_t n, uint32_t b)
{
    const int8_t *bytes = (const int8_t *)(q + (size_t)b * 8);
    float d = kt_float(q[n * 8 + b]), most = 0;
    int32_t sum = 0;

    for (uint32_t i = 0; i < BLOCK; i++) {
        if (!isfinite(x[i])) {
            assert_true(isnan(d));
            return;
        }
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        sum += bytes[i];
    }
    assert_int_equal(sum, (int32_t)q[n * 9 + b]);
    if (most < 1e-36f) { /* devices may flush the scale */
        assert_true(d >= 0 && d < 1e-36f);
        return;
    }
    if (fabs(d * 127.0 - most) > most * 1e-6)
        fail_msg("quant_x: scale %g of a block whose largest is %g", (double)d, (double)most);
    for (uint32_t i = 0; i < BLOCK; i++)
        if (fabs((double)bytes[i] * d - x[i]) > d * 0.50001)
            fail_msg("quant_x: %g became %d times %g", (double)x[i], bytes[i], (double)d);
}

static void quant_case(uint32_t k, uint32_t stride, uint32_t y, uint32_t z, uint32_t wg)
{
    const struct spec_quant_x spec = {wg, k, stride};
    uint32_t rows = y * z, words = row_words(k), n = k / BLOCK;
    float *x = kt_floats((size_t)rows * stride);
    uint32_t *q = kt_words((size_t)rows * words);
    struct kt_buf bufs[] = {{x, (size_t)rows * stride * 4, KT_IN, false},
                            {q, (size_t)rows * words * 4, KT_OUT, false}};

    for (uint32_t i = 0; i < BLOCK; i++)
        x[i] = 0;
    for (uint32_t i = 0; rows > 1 && i < BLOCK; i++)
        x[stride + i] *= 1e-30f;
    x[(size_t)(rows - 1) * stride + k - 3] = 1e30f;
    if (rows > 2) {
        x[2 * (size_t)stride + 5] = NAN;
        x[2 * (size_t)stride + k - 1] = -INFINITY;
    }
    KT_RUN(GPU_K_quant_x, spec, NULL, bufs, (n + wg - 1) / wg, y, z);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t b = 0; b < n; b++)
            quant_block(x + (size_t)r * stride + b * BLOCK, q + (size_t)r * words, n, b);
    cor_free(x);
    cor_free(q);
}

static void test_quant_x(void **unused)
{
    (void)unused;
    quant_case(32, 32, 1, 1, 32);
    quant_case(96, 100, 5, 1, 8);
    quant_case(2048, 2048, 2, 1, 32);
    quant_case(1120, 1120, 2, 3, 32);
}

/* ---- inputs
 * ------------------------------------------------------------------------------------------------- */

/* Random quantised rows, and what they stand for. */
static uint32_t *make_inputs(uint32_t rows, uint32_t k, float *values)
{
    uint32_t words = row_words(k), n = k / BLOCK;
    uint32_t *q = kt_words((size_t)rows * words);

    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t b = 0; b < n; b++) {
            uint32_t *at = q + (size_t)r * words;
            int8_t *bytes = (int8_t *)(at + (size_t)b * 8);
            float d = kt_uniform(0.001f, 0.01f);
            bool ends = kt_below(8) == 0; /* largest sums */
            int32_t sum = 0;

            for (uint32_t i = 0; i < BLOCK; i++) {
                bytes[i] = (int8_t)(ends ? 127 : (int)kt_below(255) - 127);
                sum += bytes[i];
                values[(size_t)r * k + b * BLOCK + i] = d * (float)bytes[i];
            }
            at[n * 8 + b] = kt_bits(d);
            at[n * 9 + b] = (uint32_t)sum;
        }
    return q;
}

/* Some blocks at the ends of their range. */
static void extreme_blocks(struct kt_matrix *m, enum mdl_type type, uint32_t rows, uint32_t cols)
{
    uint32_t bytes = mdl_type_find(type)->block_bytes;

    for (uint32_t i = 0; i < rows; i += 3) {
        uint8_t *row = m->bytes + m->off + (size_t)i * m->row_bytes;

        memset(row + 2, type == MDL_Q4_0 ? (i % 2 ? 0xff : 0) : i % 2 ? 0x7f : 0x80, bytes - 2);
        mdl_dequant_row(type, row, m->values + (size_t)i * cols, cols);
    }
}

/* ---- matvec_dot
 * --------------------------------------------------------------------------------------------- */

struct mat_case {
    enum mdl_type type;
    uint32_t k, n_rows, t;
    uint32_t wg, rows, lanes, blocks, tokens;
    uint32_t off; /* bytes before the first row */
    bool wide, add, count_rows;
};

static void run_mat(enum gpu_kernel k, const struct mat_case *c, const struct kt_matrix *m, uint32_t *q,
                    float *y, uint32_t n_out, uint32_t out0)
{
    const struct spec_mat_dot spec = {.wg = c->wg,
                                      .k = c->k,
                                      .n_out = n_out,
                                      .format = c->type,
                                      .row_bytes = m->row_bytes,
                                      .add = c->add,
                                      .rows = c->rows,
                                      .many = c->t > 1,
                                      .count_rows = c->count_rows,
                                      .lanes = c->lanes,
                                      .blocks = c->blocks,
                                      .tokens = c->tokens,
                                      .wide = c->wide};
    const struct push_mat push = {out0, c->n_rows, c->off};
    uint32_t groups = (c->n_rows + c->rows - 1) / c->rows;
    uint32_t *state = kt_state(c->count_rows ? 500 : c->t, 3, 0, c->count_rows ? c->t : 500);
    struct kt_buf bufs[] = {{state, (size_t)STEP_TOKENS * 4, KT_IN, false},
                            {q, (size_t)c->t * row_words(c->k) * 4, KT_IN, false},
                            {m->bytes, m->n_bytes, KT_IN, false},
                            {y, (size_t)c->t * n_out * 4, KT_INOUT, false}};

    KT_RUN(k, spec, &push, bufs, (groups + 2) / 3, (c->t + c->tokens - 1) / c->tokens, 3);
    cor_free(state);
}

static void mat_case(const enum gpu_kernel *kernels, uint32_t n_kernels, const struct mat_case *c)
{
    uint32_t n_out = c->n_rows + 5, out0 = 2;
    size_t n_y = (size_t)c->t * n_out;
    float *x = kt_floats((size_t)c->t * c->k), *y0 = kt_floats(n_y), *y = kt_floats(n_y),
          *sg = kt_floats(n_y);
    uint32_t *q = make_inputs(c->t, c->k, x);
    double *want = cor_array(n_y, sizeof(*want));
    struct kt_matrix m;
    char what[160];

    kt_matrix_make(&m, c->type, c->n_rows, c->k, c->off);
    extreme_blocks(&m, c->type, c->n_rows, c->k);
    for (uint32_t t = 0; t < c->t; t++)
        for (uint32_t i = 0; i < n_out; i++) {
            size_t at = (size_t)t * n_out + i;
            bool mine = i >= out0 && i < out0 + c->n_rows;

            want[at] = mine ? kt_matrix_dot(&m, c->k, i - out0, x + (size_t)t * c->k) + (c->add ? y0[at] : 0)
                            : y0[at];
        }
    for (uint32_t v = c->wide ? 1 : 0; v < n_kernels; v++) { /* wide ones take long to compile */
        if (!kt_usable(kernels[v]))
            continue;
        memcpy(y, y0, n_y * 4);
        run_mat(kernels[v], c, &m, q, y, n_out, out0);
        snprintf(what, sizeof(what), "%s: type %d, k %u, rows %u, t %u, wg %u, lanes %u, blocks %u, wide %d",
                 gpu_kernel_info(kernels[v])->name, (int)c->type, c->k, c->n_rows, c->t, c->wg, c->lanes,
                 c->blocks, c->wide);
        kt_close(what, y, want, n_y, KT_NMSE, KT_LARGEST);
        if (kernels[v] == GPU_K_matvec_dot_sg)
            memcpy(sg, y, n_y * 4);
        if (kernels[v] == GPU_K_matvec_dot_hw && memcmp(sg, y, n_y * 4))
            fail_msg("%s: bits differ from those without the device's dot product", what);
    }
    kt_matrix_free(&m);
    cor_free(x);
    cor_free(y0);
    cor_free(y);
    cor_free(sg);
    cor_free(q);
    cor_free(want);
}

static const struct mat_case mat_cases[] = {
    {.type = MDL_Q4_0,
     .k = 32,
     .n_rows = 1,
     .t = 1,
     .wg = 8,
     .rows = 8,
     .lanes = 1,
     .blocks = 1,
     .tokens = 1},
    {.type = MDL_Q4_0,
     .k = 736,
     .n_rows = 33,
     .t = 1,
     .wg = 64,
     .rows = 4,
     .lanes = 32,
     .blocks = 1,
     .tokens = 1,
     .off = 2,
     .add = true},
    {.type = MDL_Q8_0,
     .k = 1120,
     .n_rows = 23,
     .t = 1,
     .wg = 32,
     .rows = 4,
     .lanes = 32,
     .blocks = 2,
     .tokens = 1,
     .off = 2},
    {.type = MDL_Q8_0,
     .k = 96,
     .n_rows = 70,
     .t = 7,
     .wg = 8,
     .rows = 16,
     .lanes = 4,
     .blocks = 1,
     .tokens = 4,
     .off = 6,
     .add = true},
    {.type = MDL_Q4_0,
     .k = 1024,
     .n_rows = 40,
     .t = 1,
     .wg = 8,
     .rows = 16,
     .lanes = 4,
     .blocks = 8,
     .tokens = 1,
     .wide = true,
     .add = true},
    {.type = MDL_Q8_0,
     .k = 768,
     .n_rows = 19,
     .t = 6,
     .wg = 8,
     .rows = 16,
     .lanes = 4,
     .blocks = 8,
     .tokens = 2,
     .off = 16,
     .wide = true,
     .count_rows = true},
    {.type = MDL_Q4_0,
     .k = 2048,
     .n_rows = 50,
     .t = 5,
     .wg = 8,
     .rows = 32,
     .lanes = 8,
     .blocks = 8,
     .tokens = 2,
     .wide = true},
    {.type = MDL_Q4_0,
     .k = 160,
     .n_rows = 20,
     .t = 3,
     .wg = 32,
     .rows = 8,
     .lanes = 16,
     .blocks = 1,
     .tokens = 4,
     .off = 2},
};

static void test_matvec_dot(void **unused)
{
    static const enum gpu_kernel kernels[] = {GPU_K_matvec_dot, GPU_K_matvec_dot_sg, GPU_K_matvec_dot_hw};

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(mat_cases); i++)
        if (kt_wanted(i))
            mat_case(kernels, COR_COUNT(kernels), &mat_cases[i]);
}

/* ---- experts
 * ------------------------------------------------------------------------------------------------ */

enum { EXPERTS = 5, SEGS = 2, PER_SEG = 3, K_USED = 2, MAX_TOKENS = 80, MAX_TILES = 32 };

struct expert_case {
    enum mdl_type type;
    uint32_t dim, ff, n_tokens;
    uint32_t wg, rows, tokens;
    uint32_t lanes[2], blocks[2]; /* gate and up, down */
    uint32_t gap;                 /* bytes between matrices, 16 for wide ones */
    bool wide;
};

struct experts {
    const struct expert_case *c;
    struct kt_matrix m[EXPERTS][3];
    uint32_t slot[EXPERTS], up_off, down_off, stride;
    uint8_t *segs[SEGS];
    size_t seg_bytes;
    uint32_t sel[MAX_TOKENS * K_USED * 2], pairs[MAX_TOKENS * K_USED], ranks[K_USED];
    uint32_t tiles[MAX_TILES * TILE_WORDS], n_tiles;
};

static void experts_pool(struct experts *d)
{
    const struct expert_case *c = d->c;
    uint32_t gate_bytes = (uint32_t)mdl_row_bytes(c->type, c->dim) * c->ff;
    uint32_t down_bytes = (uint32_t)mdl_row_bytes(c->type, c->ff) * c->dim;

    d->up_off = gate_bytes + c->gap;
    d->down_off = d->up_off + gate_bytes + c->gap;
    d->stride = d->down_off + down_bytes + c->gap;
    d->seg_bytes = ((size_t)d->stride * PER_SEG + 15) / 16 * 16;
    for (uint32_t i = 0; i < SEGS; i++) {
        d->segs[i] = cor_alloc(d->seg_bytes);
        memset(d->segs[i], 0x7f, d->seg_bytes); /* NaN between matrices */
    }
    for (uint32_t e = 0; e < EXPERTS; e++) {
        uint8_t *at;

        d->slot[e] = (e * 2 + 3) % EXPERTS;
        at = d->segs[d->slot[e] / PER_SEG] + (size_t)(d->slot[e] % PER_SEG) * d->stride;
        for (int i = 0; i < 3; i++) {
            kt_matrix_make(&d->m[e][i], c->type, i == 2 ? c->dim : c->ff, i == 2 ? c->ff : c->dim, 0);
            memcpy(at + (i == 0   ? 0
                         : i == 1 ? d->up_off
                                  : d->down_off),
                   d->m[e][i].bytes, i == 2 ? down_bytes : gate_bytes);
        }
    }
}

static void experts_make(struct experts *d, const struct expert_case *c)
{
    uint32_t n = 0;

    memset(d, 0, sizeof(*d));
    d->c = c;
    experts_pool(d);
    kt_choose(d->sel, c->n_tokens, EXPERTS, K_USED, false);
    for (uint32_t j = 0; j < K_USED; j++)
        d->ranks[j] = d->slot[d->sel[2 * j]];
    for (uint32_t e = 0; e < EXPERTS; e++)
        for (uint32_t i = 0; i < c->n_tokens * K_USED; i++) {
            uint32_t *tile = d->tiles + (size_t)d->n_tiles * TILE_WORDS;

            if (d->sel[2 * i] != e)
                continue;
            if (!d->n_tiles || tile[TILE_EXPERT - TILE_WORDS] != e ||
                tile[TILE_COUNT - TILE_WORDS] == TILE_TOKENS) {
                tile[TILE_SLOT] = d->slot[e];
                tile[TILE_FIRST] = n;
                tile[TILE_EXPERT] = e;
                d->n_tiles++;
                assert_true(d->n_tiles < MAX_TILES);
            }
            d->tiles[(size_t)(d->n_tiles - 1) * TILE_WORDS + TILE_COUNT]++;
            d->pairs[n++] = i;
        }
}

static void experts_free(struct experts *d)
{
    for (uint32_t i = 0; i < SEGS; i++)
        cor_free(d->segs[i]);
    for (uint32_t e = 0; e < EXPERTS; e++)
        for (int i = 0; i < 3; i++)
            kt_matrix_free(&d->m[e][i]);
}

static double expert_want(const struct experts *d, uint32_t pair, bool down, uint32_t r, const float *x)
{
    const struct expert_case *c = d->c;
    const struct kt_matrix *m = d->m[d->sel[2 * pair]];
    double g;

    if (down)
        return kt_matrix_dot(&m[2], c->ff, r, x);
    g = kt_matrix_dot(&m[0], c->dim, r, x);
    return g / (1 + exp(-g)) * kt_matrix_dot(&m[1], c->dim, r, x);
}

/* All segments as an array, or one dispatch for each. */
static void experts_run(struct experts *d, enum gpu_kernel k, bool down, bool array, struct kt_buf in,
                        struct kt_buf out)
{
    const struct expert_case *c = d->c;
    bool many = c->n_tokens > 1;
    struct spec_expert_dot spec = {.wg = c->wg,
                                   .dim = c->dim,
                                   .ff = c->ff,
                                   .k_used = K_USED,
                                   .format = c->type,
                                   .up_off = d->up_off,
                                   .down_off = d->down_off,
                                   .slot_stride = d->stride,
                                   .slots_per_seg = PER_SEG,
                                   .n_segs = array ? SEGS : 1,
                                   .rows = c->rows,
                                   .many = many,
                                   .lanes = c->lanes[down],
                                   .blocks = c->blocks[down],
                                   .tokens = c->tokens,
                                   .wide = c->wide};
    struct kt_buf bufs[4 + SEGS] = {in,
                                    {many ? d->tiles : d->ranks,
                                     many ? (size_t)d->n_tiles * TILE_WORDS * 4 : sizeof(d->ranks), KT_IN,
                                     false},
                                    {d->pairs, (size_t)c->n_tokens * K_USED * 4, KT_IN, false},
                                    out};
    uint32_t x = ((down ? c->dim : c->ff) + c->rows - 1) / c->rows, y = many ? d->n_tiles : K_USED;

    for (uint32_t seg = 0; seg < (array ? 1 : SEGS); seg++) {
        const struct push_expert push = {array ? 12345 : seg};

        for (uint32_t i = 0; i < (array ? SEGS : 1); i++)
            bufs[4 + i] = (struct kt_buf){d->segs[array ? i : seg], d->seg_bytes, KT_IN, false};
        kt_run(k, &spec, sizeof(spec), array ? SEGS : 1, &push, bufs, array ? 4 + SEGS : 5, x, y, 1);
    }
}

static void experts_step(struct experts *d, bool down, bool both)
{
    static const enum gpu_kernel kernels[2][5] = {
        {GPU_K_expert_gate_up_dot, GPU_K_expert_gate_up_dot_sg, GPU_K_expert_gate_up_dot_arr,
         GPU_K_expert_gate_up_dot_sg_arr, GPU_K_expert_gate_up_dot_hw},
        {GPU_K_expert_down_dot, GPU_K_expert_down_dot_sg, GPU_K_expert_down_dot_arr,
         GPU_K_expert_down_dot_sg_arr, GPU_K_expert_down_dot_hw}};
    const struct expert_case *c = d->c;
    uint32_t n_pairs = c->n_tokens * K_USED, in_rows = down ? n_pairs : c->n_tokens;
    uint32_t k = down ? c->ff : c->dim, rows = down ? c->dim : c->ff;
    size_t n_out = (size_t)n_pairs * rows;
    float *x = kt_floats((size_t)in_rows * k), *y = kt_floats(n_out), *sg = kt_floats(n_out);
    uint32_t *q = make_inputs(in_rows, k, x);
    double *want = cor_array(n_out, sizeof(*want));
    char what[128];

    for (uint32_t i = 0; i < n_pairs; i++)
        for (uint32_t r = 0; r < rows; r++)
            want[(size_t)i * rows + r] = expert_want(d, i, down, r, x + (size_t)(down ? i : i / K_USED) * k);
    for (uint32_t v = both ? 0 : 3; v < 5; v++) {
        enum gpu_kernel kernel = kernels[down][v];

        if (!kt_usable(kernel))
            continue;
        for (size_t i = 0; i < n_out; i++)
            y[i] = kt_float(KT_POISON);
        experts_run(d, kernel, down, v >= 2,
                    (struct kt_buf){q, (size_t)in_rows * row_words(k) * 4, KT_IN, false},
                    (struct kt_buf){y, n_out * 4, KT_INOUT, false});
        snprintf(what, sizeof(what), "%s: type %d, dim %u, ff %u, tokens %u", gpu_kernel_info(kernel)->name,
                 (int)c->type, c->dim, c->ff, c->n_tokens);
        kt_close(what, y, want, n_out, KT_NMSE, KT_LARGEST);
        if (v == 3)
            memcpy(sg, y, n_out * 4);
        if (v == 4 && memcmp(sg, y, n_out * 4))
            fail_msg("%s: bits differ from those without the device's dot product", what);
    }
    cor_free(x);
    cor_free(y);
    cor_free(sg);
    cor_free(q);
    cor_free(want);
}

static const struct expert_case expert_cases[] = {
    {MDL_Q8_0, 160, 96, 70, 8, 16, 2, {4, 4}, {2, 1}, 2, false},
    {MDL_Q4_0, 96, 64, 1, 32, 16, 1, {4, 2}, {1, 1}, 2, false},
    {MDL_Q4_0, 512, 256, 9, 8, 16, 2, {4, 4}, {8, 8}, 16, true},
    {MDL_Q8_0, 256, 512, 1, 4, 8, 1, {1, 2}, {8, 8}, 32, true},
};

static void test_experts_dot(void **unused)
{
    static struct experts d;

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(expert_cases); i++) {
        if (!kt_wanted(i))
            continue;
        experts_make(&d, &expert_cases[i]);
        experts_step(&d, false, i < 2);
        experts_step(&d, true, i < 2);
        experts_free(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quant_x),
        cmocka_unit_test(test_matvec_dot),
        cmocka_unit_test(test_experts_dot),
    };

    return kt_main(KT_DOT, tests, COR_COUNT(tests));
}
