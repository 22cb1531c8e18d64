/* Kernels of the dense parts against plain C in double: embed, rmsnorm, matvec with and without a norm,
 * matmul, swiglu, topk. */
#include <math.h>
#include <stdio.h>

#include "support/kernel_test.h"

static const enum mdl_type formats[] = {MDL_F32, MDL_F16, MDL_BF16, MDL_Q8_0, MDL_Q4_0};
/* Blocks that rows on lanes know nothing of. */
static const enum mdl_type others[] = {MDL_Q4_1, MDL_Q5_0, MDL_Q5_1, MDL_Q2_K,   MDL_Q3_K,
                                       MDL_Q4_K, MDL_Q5_K, MDL_Q6_K, MDL_IQ4_NL, MDL_MXFP4};

static struct kt_buf in(const void *data, size_t bytes)
{
    return (struct kt_buf){.data = (void *)(uintptr_t)data, .bytes = bytes, .use = KT_IN};
}

/* ---- embed
 * -------------------------------------------------------------------------------------------------- */

static bool same_value(float got, float want)
{
    if (isnan(want))
        return isnan(got);
    if (kt_bits(got) == kt_bits(want))
        return true;
    return fpclassify(want) == FP_SUBNORMAL && got == 0; /* devices may flush f32 subnormals */
}

/* Rows [row0, row0 + n_rows) of a table whose bytes start at m->bytes + off; every token's row must come out
 * exactly, other tokens' rows must stay. */
static void embed_case(enum mdl_type type, uint32_t dim, uint32_t wg, uint32_t row0, uint32_t n_rows,
                       const uint8_t *bytes, size_t n_bytes, uint32_t off, const float *values)
{
    enum { TOKENS = 9 };
    const struct spec_embed spec = {wg, dim, type, (uint32_t)mdl_row_bytes(type, dim)};
    const struct push_embed push = {row0, n_rows, off};
    uint32_t *state = kt_state(TOKENS, 5, 0, 1);
    float *x = kt_floats((size_t)TOKENS * dim);
    struct kt_buf bufs[] = {in(state, (STEP_TOKENS + TOKENS) * 4),
                            in(bytes, n_bytes),
                            {.data = x, .bytes = (size_t)TOKENS * dim * 4, .use = KT_OUT}};

    for (uint32_t t = 0; t < TOKENS; t++)
        state[STEP_TOKENS + t] = kt_below(row0 + n_rows + 3);
    state[STEP_TOKENS] = row0;
    state[STEP_TOKENS + 1] = row0 + n_rows - 1;
    state[STEP_TOKENS + 2] = row0 + n_rows;
    KT_RUN(GPU_K_embed, spec, &push, bufs, (dim + 8 * wg - 1) / (8 * wg), TOKENS, 1);
    for (uint32_t t = 0; t < TOKENS; t++) {
        uint32_t row = state[STEP_TOKENS + t] - row0;

        for (uint32_t i = 0; i < dim; i++) {
            float got = x[(size_t)t * dim + i];
            float want = row < n_rows ? values[(size_t)row * dim + i] : kt_float(KT_POISON);

            if (!same_value(got, want))
                fail_msg("embed: type %d, token %u, element %u: 0x%08x, expected 0x%08x", (int)type, t, i,
                         kt_bits(got), kt_bits(want));
        }
    }
    cor_free(state);
    cor_free(x);
}

static void test_embed(void **unused)
{
    static const uint32_t dims[5] = {37, 1, 129, 96, 352}; /* tails and odd block counts */

    (void)unused;
    for (uint32_t f = 0; f < COR_COUNT(formats); f++)
        for (uint32_t off = 0; off < 4; off += 2) {
            struct kt_matrix m;

            kt_matrix_make(&m, formats[f], 11, dims[f], off);
            embed_case(formats[f], dims[f], 32, off ? 4 : 0, 11, m.bytes, m.n_bytes, off, m.values);
            kt_matrix_free(&m);
        }
}

/* Every half and every bfloat16 there is. */
static void test_embed_all_halves(void **unused)
{
    static const enum mdl_type types[2] = {MDL_F16, MDL_BF16};
    uint16_t *bits = cor_array(65536, 2);
    float *values = cor_array(65536, 4);

    (void)unused;
    for (uint32_t i = 0; i < 65536; i++)
        bits[i] = (uint16_t)i;
    for (int f = 0; f < 2; f++) {
        mdl_dequant_row(types[f], bits, values, 65536);
        for (uint32_t row0 = 0; row0 < 64; row0 += 8)
            embed_case(types[f], 65536 / 64, 128, row0, 8, (uint8_t *)(bits + (size_t)row0 * 1024), 16384, 0,
                       values + (size_t)row0 * 1024);
    }
    cor_free(bits);
    cor_free(values);
}

/* Scales that are zero, subnormal, infinite or NaN. */
static void test_embed_scales(void **unused)
{
    static const uint16_t scales[] = {0,      0x8000, 1,      0x03ff, 0x8200, 0x0400,
                                      0x7bff, 0x7c00, 0xfc00, 0x7e01, 0xfe00};
    enum { ROWS = 11, DIM = 96 };

    (void)unused;
    for (uint32_t f = 3; f < COR_COUNT(formats); f++) {
        uint32_t block = mdl_type_find(formats[f])->block_bytes;
        struct kt_matrix m;

        kt_matrix_make(&m, formats[f], ROWS, DIM, 2);
        for (uint32_t r = 0; r < ROWS; r++)
            for (uint32_t b = 0; b < DIM / 32; b++) {
                uint16_t s = scales[(r + b) % COR_COUNT(scales)];

                memcpy(m.bytes + 2 + (size_t)r * m.row_bytes + (size_t)b * block, &s, 2);
                mdl_dequant_row(formats[f], m.bytes + 2 + (size_t)r * m.row_bytes, m.values + (size_t)r * DIM,
                                DIM);
            }
        embed_case(formats[f], DIM, 32, 0, ROWS, m.bytes, m.n_bytes, 2, m.values);
        kt_matrix_free(&m);
    }
}

/* ---- rmsnorm
 * ------------------------------------------------------------------------------------------------ */

static void rmsnorm_case(enum gpu_kernel k, uint32_t wg, uint32_t dim, uint32_t rows, bool from_row0,
                         float scale)
{
    const float eps = 1e-5f;
    const struct spec_rmsnorm spec = {wg, dim, kt_bits(eps), from_row0};
    uint32_t first = from_row0 ? 2 : 0;
    uint32_t *state = kt_state(7, 0, 2, rows);
    float *x = kt_floats((size_t)(rows + first) * dim), *w = kt_floats(dim),
          *y = kt_floats((size_t)rows * dim);
    double *want = cor_array((size_t)rows * dim, sizeof(*want));
    struct kt_buf bufs[] = {in(state, (STEP_TOKENS + 7) * 4),
                            in(x, (size_t)(rows + first) * dim * 4),
                            in(w, dim * 4),
                            {.data = y, .bytes = (size_t)rows * dim * 4, .use = KT_OUT}};

    for (size_t i = 0; i < (size_t)(rows + first) * dim; i++)
        x[i] *= scale;
    for (uint32_t r = 0; r < rows; r++) {
        const float *v = x + (size_t)(r + first) * dim;
        double sum = 0;

        for (uint32_t i = 0; i < dim; i++)
            sum += (double)v[i] * v[i];
        for (uint32_t i = 0; i < dim; i++)
            want[(size_t)r * dim + i] = v[i] / sqrt(sum / dim + eps) * w[i];
    }
    KT_RUN(k, spec, NULL, bufs, 1, rows, 1);
    kt_close(gpu_kernel_info(k)->name, y, want, (size_t)rows * dim, KT_NMSE, KT_LARGEST);
    cor_free(state);
    cor_free(x);
    cor_free(w);
    cor_free(y);
    cor_free(want);
}

static void test_rmsnorm(void **unused)
{
    static const enum gpu_kernel kernels[2] = {GPU_K_rmsnorm, GPU_K_rmsnorm_sg};

    (void)unused;
    for (int v = 0; v < 2; v++) {
        if (!kt_usable(kernels[v]))
            continue;
        rmsnorm_case(kernels[v], 128, 1, 3, false, 1);
        rmsnorm_case(kernels[v], 32, 7, 1, false, 1e-4f); /* eps decides */
        rmsnorm_case(kernels[v], 96, 257, 5, true, 30);   /* workgroup not a power of two */
        rmsnorm_case(kernels[v], 128, 2048, 2, false, 1);
    }
}

/* ---- matvec and matmul
 * -------------------------------------------------------------------------------------- */

struct mat_case {
    enum mdl_type type;
    uint32_t k, n_rows, t;
    uint32_t wg, rows; /* matvec: lanes and rows per workgroup */
    uint32_t off;      /* bytes before the first row */
    uint32_t aligned;
    bool add, count_rows;
    bool tight; /* input rows stand right behind each other */
    bool wild;  /* bytes at random: infinite and NaN values occur */
};

static void wild_bytes(struct kt_matrix *m, const struct mat_case *c)
{
    for (uint32_t r = 0; r < c->n_rows; r++) {
        uint8_t *at = m->bytes + m->off + (size_t)r * m->row_bytes;

        /* one row in two: a finite matrix everywhere else */
        for (uint32_t i = 0; i < m->row_bytes && r % 2; i++)
            at[i] = (uint8_t)kt_below(256);
        mdl_dequant_row(c->type, at, m->values + (size_t)r * c->k, c->k);
    }
}

/* y and what it should be, for input rows x. */
static void mat_want(const struct mat_case *c, const struct kt_matrix *m, const float *x, uint32_t stride,
                     const float *y, uint32_t n_out, uint32_t out0, double *want)
{
    for (uint32_t t = 0; t < c->t; t++)
        for (uint32_t i = 0; i < n_out; i++) {
            size_t at = (size_t)t * n_out + i;
            bool mine = i >= out0 && i < out0 + c->n_rows;

            want[at] = y[at];
            if (mine)
                want[at] = kt_matrix_dot(m, c->k, i - out0, x + (size_t)t * stride) + (c->add ? y[at] : 0);
        }
}

static void mat_case(enum gpu_kernel k, const struct mat_case *c)
{
    bool few = k == GPU_K_matvec_few || k == GPU_K_matvec_few_sg;
    bool many = few || k == GPU_K_matmul || k == GPU_K_matmul_ln;
    uint32_t stride = c->tight ? c->k : c->k + 3, n_out = c->n_rows + 5, out0 = 2;
    const struct kt_cut cut = kt_cut(k, c->wg, many ? TILE_ROWS : c->rows);
    uint32_t groups = (c->n_rows + cut.rows - 1) / cut.rows;
    struct spec_mat spec = {cut.wg, c->k,   n_out,    stride,     c->type,
                            0,      c->add, cut.rows, c->aligned, c->count_rows};
    const struct push_mat push = {out0, c->n_rows, c->off};
    /* the other count is made wrong on purpose */
    uint32_t *state = kt_state(c->count_rows ? 500 : c->t, 3, 0, c->count_rows ? c->t : 500);
    size_t n_x = (size_t)(c->t - 1) * stride + c->k, n_y = (size_t)c->t * n_out;
    float *x = kt_floats(n_x), *y = kt_floats(n_y);
    double *want = cor_array(n_y, sizeof(*want));
    struct kt_matrix m;
    struct kt_buf bufs[4], *b = bufs;
    char what[128];

    kt_matrix_make(&m, c->type, c->n_rows, c->k, c->off);
    spec.row_bytes = m.row_bytes;
    if (c->wild)
        wild_bytes(&m, c);
    for (uint32_t t = 0; t + 1 < c->t; t++)
        for (uint32_t i = c->k; i < stride; i++)
            x[(size_t)t * stride + i] = NAN; /* between rows: never read */
    mat_want(c, &m, x, stride, y, n_out, out0, want);
    if (many)
        *b++ = in(state, (size_t)STEP_TOKENS * 4);
    *b++ = in(x, n_x * 4);
    *b++ = in(m.bytes, m.n_bytes);
    *b++ = (struct kt_buf){.data = y, .bytes = n_y * 4, .use = KT_INOUT};
    kt_run(k, &spec, sizeof(spec), 1, &push, bufs, (uint32_t)(b - bufs), (groups + 2) / 3,
           few    ? (c->t + 7) / 8
           : many ? (c->t + TILE_TOKENS - 1) / TILE_TOKENS
                  : c->t,
           3); /* groups folded into x and z */
    snprintf(what, sizeof(what), "%s: type %d, k %u, rows %u, t %u, wg %u, off %u%s",
             gpu_kernel_info(k)->name, (int)c->type, c->k, c->n_rows, c->t, cut.wg, c->off,
             c->wild ? ", wild" : "");
    if (c->wild) { /* sizes differ by row: judge each by itself */
        for (size_t i = 0; i < n_y; i++)
            if (isnan(want[i]) != isnan((double)y[i]))
                fail_msg("%s: element %zu is %g, expected %g", what, i, (double)y[i], want[i]);
    } else {
        kt_close(what, y, want, n_y, KT_NMSE, KT_LARGEST);
    }
    cor_free(state);
    cor_free(x);
    cor_free(y);
    cor_free(want);
    kt_matrix_free(&m);
}

static const struct mat_case matvec_cases[] = {
    {.type = MDL_F32, .k = 1, .n_rows = 1, .t = 1, .wg = 32, .rows = 1},
    {.type = MDL_F32, .k = 300, .n_rows = 19, .t = 2, .wg = 64, .rows = 4, .off = 2},
    {.type = MDL_F32, .k = 256, .n_rows = 9, .t = 1, .wg = 128, .rows = 8, .aligned = 2, .add = true},
    {.type = MDL_F16, .k = 1, .n_rows = 5, .t = 2, .wg = 32, .rows = 3},
    {.type = MDL_F16, .k = 333, .n_rows = 21, .t = 1, .wg = 96, .rows = 5, .off = 2, .add = true},
    {.type = MDL_F16, .k = 512, .n_rows = 12, .t = 1, .wg = 64, .rows = 4, .aligned = 2, .tight = true},
    {.type = MDL_BF16, .k = 7, .n_rows = 3, .t = 3, .wg = 32, .rows = 2, .off = 6},
    {.type = MDL_BF16, .k = 1023, .n_rows = 7, .t = 1, .wg = 128, .rows = 8, .add = true},
    {.type = MDL_BF16, .k = 264, .n_rows = 30, .t = 1, .wg = 32, .rows = 4, .off = 4, .aligned = 1},
    {.type = MDL_Q8_0, .k = 32, .n_rows = 1, .t = 1, .wg = 32, .rows = 4},
    {.type = MDL_Q8_0,
     .k = 1120,
     .n_rows = 23,
     .t = 2,
     .wg = 128,
     .rows = 4,
     .off = 2,
     .add = true,
     .tight = true},
    {.type = MDL_Q8_0, .k = 96, .n_rows = 25, .t = 1, .wg = 64, .rows = 2, .wild = true},
    {.type = MDL_Q4_0, .k = 32, .n_rows = 2, .t = 1, .wg = 64, .rows = 1, .off = 2},
    {MDL_Q4_0, .k = 192, .n_rows = 70, .t = 2, .wg = 32, .rows = 4, .off = 72, .aligned = 3, .tight = true},
    {MDL_Q8_0, .k = 128, .n_rows = 37, .t = 1, .wg = 32, .rows = 4, .off = 68, .aligned = 3, .tight = true},
    {.type = MDL_Q4_0, .k = 736, .n_rows = 33, .t = 1, .wg = 64, .rows = 8, .add = true},
    {.type = MDL_Q4_0,
     .k = 96,
     .n_rows = 25,
     .t = 2,
     .wg = 32,
     .rows = 4,
     .off = 2,
     .wild = true,
     .tight = true},
    {.type = MDL_F16, .k = 40, .n_rows = 25, .t = 1, .wg = 32, .rows = 4, .off = 2, .wild = true},
};

static void test_matvec(void **unused)
{
    static const enum gpu_kernel kernels[3] = {GPU_K_matvec, GPU_K_matvec_sg, GPU_K_matvec_ln};
    /* One lane to a row, two, four with one idle, all; three passes, of which the last leaves lanes idle. */
    static const struct mat_case by_texels[] = {
        {.type = MDL_Q4_0, .k = 256, .n_rows = 130, .t = 1, .add = true, .tight = true},
        {.type = MDL_Q8_0, .k = 512, .n_rows = 67, .t = 2, .off = 272, .tight = true},
        {.type = MDL_Q4_0, .k = 768, .n_rows = 65, .t = 2, .off = 16, .tight = true},
        {.type = MDL_Q4_0, .k = 2048, .n_rows = 64, .t = 1, .tight = true},
        {.type = MDL_Q8_0, .k = 4864, .n_rows = 11, .t = 1, .add = true, .tight = true},
        {.type = MDL_Q4_0, .k = 5120, .n_rows = 9, .t = 1, .tight = true},
        {.type = MDL_Q4_0, .k = 768, .n_rows = 25, .t = 1, .tight = true, .wild = true},
        {.type = MDL_Q8_0, .k = 256, .n_rows = 25, .t = 1, .tight = true, .wild = true},
    };

    (void)unused;
    for (int v = 0; v < 3; v++)
        for (uint32_t i = 0; i < COR_COUNT(matvec_cases) && kt_usable(kernels[v]); i++)
            if (kt_wanted(i + (uint32_t)v))
                mat_case(kernels[v], &matvec_cases[i]);
    for (uint32_t i = 0; i < COR_COUNT(by_texels) && kt_usable(GPU_K_matvec_tx); i++)
        mat_case(GPU_K_matvec_tx, &by_texels[i]);
}

/* before: workgroups of other dispatches that have finished; short: one that has not, so nobody is last. */
static void mat_norm_case(enum gpu_kernel k, const struct mat_case *c, uint32_t before, bool short_of_one)
{
    const float eps = 1e-5f;
    const struct kt_cut cut = kt_cut(k, c->wg, c->rows);
    uint32_t dim = c->n_rows + 5, out0 = 2, n = (c->n_rows + cut.rows - 1) / cut.rows;
    uint32_t groups = (n + 2) / 3 * 3, count = before;
    struct spec_mat_norm spec = {cut.wg, c->k, dim, c->type, 0, cut.rows, c->aligned, kt_bits(eps)};
    const struct push_mat_norm push = {out0, c->n_rows, c->off, before + groups + short_of_one};
    float *x = kt_floats(c->k), *y = kt_floats(dim), *w = kt_floats(dim), *yn = kt_floats(dim);
    double *want = cor_array(dim, sizeof(*want)), sum = 0;
    struct kt_matrix m;
    char what[96];

    kt_matrix_make(&m, c->type, c->n_rows, c->k, c->off);
    spec.row_bytes = m.row_bytes;
    for (uint32_t i = 0; i < dim; i++) {
        want[i] = y[i];
        if (i >= out0 && i < out0 + c->n_rows)
            want[i] += kt_matrix_dot(&m, c->k, i - out0, x);
        sum += want[i] * want[i];
    }
    struct kt_buf bufs[] = {in(x, (size_t)c->k * 4),
                            in(m.bytes, m.n_bytes),
                            {.data = y, .bytes = (size_t)dim * 4, .use = KT_INOUT},
                            in(w, (size_t)dim * 4),
                            {.data = yn, .bytes = (size_t)dim * 4, .use = KT_OUT},
                            {.data = &count, .bytes = 4, .use = KT_INOUT, .exact = true}};
    KT_RUN(k, spec, &push, bufs, groups / 3, 1, 3);
    snprintf(what, sizeof(what), "%s: type %d, k %u, rows %u", gpu_kernel_info(k)->name, (int)c->type, c->k,
             c->n_rows);
    kt_close(what, y, want, dim, KT_NMSE, KT_LARGEST);
    assert_int_equal(count, short_of_one ? before + groups : 0);
    for (uint32_t i = 0; i < dim; i++) {
        want[i] = want[i] / sqrt(sum / dim + eps) * w[i];
        if (short_of_one)
            assert_int_equal(kt_bits(yn[i]), KT_POISON);
    }
    if (!short_of_one)
        kt_close(what, yn, want, dim, KT_NMSE, KT_LARGEST);
    cor_free(x);
    cor_free(y);
    cor_free(w);
    cor_free(yn);
    cor_free(want);
    kt_matrix_free(&m);
}

static void test_matvec_norm(void **unused)
{
    static const enum gpu_kernel kernels[3] = {GPU_K_matvec_norm, GPU_K_matvec_norm_sg, GPU_K_matvec_norm_ln};
    static const struct mat_case cases[] = {
        {.type = MDL_F32, .k = 1, .n_rows = 1, .t = 1, .wg = 32, .rows = 1},
        {.type = MDL_Q4_0, .k = 96, .n_rows = 2000, .t = 1, .wg = 32, .rows = 4, .off = 2},
        {.type = MDL_F16, .k = 333, .n_rows = 61, .t = 1, .wg = 96, .rows = 5, .off = 2},
        {.type = MDL_Q4_0, .k = 128, .n_rows = 50, .t = 1, .wg = 32, .rows = 4, .aligned = 3},
    };
    static const struct mat_case by_texels[] = {{.type = MDL_Q4_0, .k = 1024, .n_rows = 300, .t = 1},
                                                {.type = MDL_Q8_0, .k = 2304, .n_rows = 70, .t = 1}};

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(by_texels) && kt_usable(GPU_K_matvec_norm_tx); i++)
        mat_norm_case(GPU_K_matvec_norm_tx, &by_texels[i], i, i == 1);
    for (int v = 0; v < 3; v++)
        for (uint32_t i = 0; i < COR_COUNT(cases) && kt_usable(kernels[v]); i++)
            if (kt_wanted(i)) {
                mat_norm_case(kernels[v], &cases[i], i == 2 ? 3 : 0, false);
                if (i == 1)
                    mat_norm_case(kernels[v], &cases[i], 1, true);
            }
}

static const struct mat_case matmul_cases[] = {
    {.type = MDL_F32, .k = 1, .n_rows = 1, .t = 1, .wg = 128},
    {.type = MDL_F32, .k = 75, .n_rows = 130, .t = 33, .wg = 128, .off = 2, .add = true},
    {.type = MDL_F16, .k = 161, .n_rows = 65, .t = 5, .wg = 128, .off = 2, .count_rows = true},
    {.type = MDL_F16, .k = 256, .n_rows = 200, .t = 64, .wg = 128, .aligned = 2},
    {.type = MDL_BF16,
     .k = 300,
     .n_rows = 64,
     .t = 40,
     .wg = 128,
     .off = 4,
     .aligned = 1,
     .add = true,
     .tight = true},
    {.type = MDL_Q8_0, .k = 32, .n_rows = 3, .t = 2, .wg = 128},
    {.type = MDL_Q8_0, .k = 288, .n_rows = 100, .t = 31, .wg = 128, .off = 2, .count_rows = true},
    {.type = MDL_Q4_0, .k = 160, .n_rows = 67, .t = 70, .wg = 128, .off = 2, .tight = true},
    {.type = MDL_Q4_0, .k = 96, .n_rows = 70, .t = 3, .wg = 128, .wild = true},
};

static void test_matmul(void **unused)
{
    static const enum gpu_kernel kernels[] = {GPU_K_matmul, GPU_K_matmul_ln, GPU_K_matvec_few,
                                              GPU_K_matvec_few_sg};

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(matmul_cases); i++)
        for (uint32_t v = 0; v < COR_COUNT(kernels) && kt_wanted(i); v++)
            if (kt_usable(kernels[v]))
                mat_case(kernels[v], &matmul_cases[i]);
}

/* ---- formats that rows on lanes do not know
 * -------------------------------------------------------------------------------- */

/* Rows of whole blocks; of blocks of 17 bytes every other one starts on an odd byte. */
static uint32_t width_of(enum mdl_type type)
{
    return mdl_type_find(type)->block_elems == 256 ? 512 : 288;
}

/* The table's values to the last bit: what plain C makes of them. */
static void test_other_embed(void **unused)
{
    enum { ROWS = 7 };

    (void)unused;
    for (uint32_t f = 0; f < COR_COUNT(others); f++) {
        const uint32_t dim = width_of(others[f]);
        struct kt_matrix m;

        kt_matrix_make(&m, others[f], ROWS, dim, 2);
        embed_case(others[f], dim, 32, 0, ROWS, m.bytes, m.n_bytes, 2, m.values);
        kt_matrix_free(&m);
    }
}

/* Every decoder by mat-vec; they are the same code elsewhere, where one for each kind of block does. */
static void test_other_products(void **unused)
{
    static const enum gpu_kernel one[] = {GPU_K_matvec, GPU_K_matvec_sg},
                                 norm[] = {GPU_K_matvec_norm, GPU_K_matvec_norm_sg},
                                 many[] = {GPU_K_matmul, GPU_K_matvec_few, GPU_K_matvec_few_sg};

    (void)unused;
    for (uint32_t f = 0; f < COR_COUNT(others); f++) {
        const bool all = kt_slow() ? others[f] == MDL_Q4_K : f % 4 == 1;
        struct mat_case c = {
            .type = others[f], .k = width_of(others[f]), .n_rows = 23, .t = 1, .wg = 32, .rows = 4, .off = 2};

        for (uint32_t v = 0; v < COR_COUNT(one) && kt_wanted(f + v); v++)
            if (kt_usable(one[v]))
                mat_case(one[v], &c);
        for (uint32_t v = 0; v < COR_COUNT(norm) && all && kt_wanted(v); v++)
            if (kt_usable(norm[v]))
                mat_norm_case(norm[v], &c, 0, false);
        c.wg = 128;
        c.t = 5;
        for (uint32_t v = 0; v < COR_COUNT(many) && all && kt_wanted(v); v++)
            if (kt_usable(many[v]))
                mat_case(many[v], &c);
    }
}

/* ---- swiglu and topk
 * -------------------------------------------------------------------------------------- */

static void test_swiglu(void **unused)
{
    enum { FF = 77, T = 3 };
    const struct spec_swiglu spec = {32, FF};
    float *gu = kt_floats((size_t)T * 2 * FF), *h = kt_floats((size_t)T * FF);
    double want[T * FF];
    struct kt_buf bufs[] = {in(gu, (size_t)T * 2 * FF * 4),
                            {.data = h, .bytes = (size_t)T * FF * 4, .use = KT_OUT}};

    (void)unused;
    gu[0] = -100; /* exp(100) overflows: the product is -0 */
    gu[1] = 100;
    gu[2] = NAN;
    for (uint32_t t = 0; t < T; t++)
        for (uint32_t i = 0; i < FF; i++) {
            double g = gu[t * 2 * FF + i];

            want[t * FF + i] = g / (1 + exp(-g)) * gu[t * 2 * FF + FF + i];
        }
    KT_RUN(GPU_K_swiglu, spec, NULL, bufs, (FF + 31) / 32, T, 1);
    kt_close("swiglu", h, want, (size_t)T * FF, KT_NMSE, KT_LARGEST);
    cor_free(gu);
    cor_free(h);
}

static void scale_add_case(uint32_t n, float factor, bool bias)
{
    enum { T = 3 };
    const struct spec_scale_add spec = {32, n, kt_bits(factor), bias};
    float *y = kt_floats(T * (size_t)n), *b = kt_floats(n);
    double *want = cor_array(T * (size_t)n, sizeof(*want));
    struct kt_buf bufs[] = {{.data = y, .bytes = T * (size_t)n * 4, .use = KT_INOUT}, in(b, (size_t)n * 4)};

    for (uint32_t i = 0; i < T * n; i++)
        want[i] = (double)y[i] * factor + (bias ? (double)b[i % n] : 0);
    KT_RUN(GPU_K_scale_add, spec, NULL, bufs, (n + 31) / 32, T, 1);
    kt_close("scale_add", y, want, T * (size_t)n, KT_NMSE, KT_LARGEST);
    cor_free(y);
    cor_free(b);
    cor_free(want);
}

static void test_scale_add(void **unused)
{
    (void)unused;
    scale_add_case(77, 1, true);
    scale_add_case(64, 0.22f, false);
    scale_add_case(1, -3, true);
}

static void shared_gate_case(uint32_t wg, uint32_t dim, uint32_t ff)
{
    enum { T = 3 };
    const struct spec_shared_gate spec = {wg, dim, ff};
    float *x = kt_floats(T * (size_t)dim), *w = kt_floats(dim), *h = kt_floats(T * (size_t)ff);
    double *want = cor_array(T * (size_t)ff, sizeof(*want));
    struct kt_buf bufs[] = {in(x, T * (size_t)dim * 4),
                            in(w, (size_t)dim * 4),
                            {.data = h, .bytes = T * (size_t)ff * 4, .use = KT_INOUT}};

    for (uint32_t t = 0; t < T; t++) {
        double sum = 0;

        for (uint32_t i = 0; i < dim; i++)
            sum += (double)x[t * dim + i] * w[i];
        for (uint32_t i = 0; i < ff; i++)
            want[t * ff + i] = (double)h[t * ff + i] / (1 + exp(-sum));
    }
    KT_RUN(GPU_K_shared_gate, spec, NULL, bufs, 1, T, 1);
    kt_close("shared_gate", h, want, T * (size_t)ff, KT_NMSE, KT_LARGEST);
    cor_free(x);
    cor_free(w);
    cor_free(h);
    cor_free(want);
}

static void test_shared_gate(void **unused)
{
    (void)unused;
    shared_gate_case(32, 77, 45);
    shared_gate_case(128, 256, 64);
    shared_gate_case(64, 1, 1);
}

static bool finite_bits(float f)
{
    return (kt_bits(f) & 0x7f800000u) != 0x7f800000u;
}

/* Index of the best of the first n logits behind index `after` (NONE: the first of all) in the order of the
 * result. */
static uint32_t next_best(const float *x, uint32_t n, uint32_t after)
{
    uint32_t best = NONE;

    for (uint32_t i = 0; i < n; i++) {
        bool behind = after == NONE || x[i] < x[after] || (x[i] == x[after] && i > after);

        if (finite_bits(x[i]) && behind && (best == NONE || x[i] > x[best]))
            best = i;
    }
    return best;
}

/* Slices by workgroup and then their merge, as run/layer.c does it, against a search in C. */
static void topk_case(uint32_t n, uint32_t n_ids, uint32_t k, uint32_t wg, const float *x)
{
    const uint32_t groups = (n + TOPK_SLICE - 1) / TOPK_SLICE;
    const struct spec_topk slice = {wg, n, n_ids, k, 0}, merge = {wg, groups, n_ids, k, 1};
    uint32_t *parts = kt_words((size_t)groups * TOPK_WORDS(k)), top[TOPK_WORDS(TOPK_MAX)], best = NONE;
    const size_t part_bytes = (size_t)groups * TOPK_WORDS(k) * 4;
    struct kt_buf first[] = {in(x, n * (size_t)4), {.data = parts, .bytes = part_bytes, .use = KT_OUT}};
    struct kt_buf last[] = {in(parts, part_bytes), {.data = top, .bytes = TOPK_WORDS(k) * 4, .use = KT_OUT}};
    uint32_t n_bad = 0;

    KT_RUN(GPU_K_topk, slice, NULL, first, groups, 1, 1);
    KT_RUN(GPU_K_topk, merge, NULL, last, 1, 1, 1);
    for (uint32_t i = 0; i < n; i++)
        n_bad += !finite_bits(x[i]);
    assert_int_equal(top[2 * k], n_bad);
    for (uint32_t j = 0; j < k; j++) {
        best = j && best == NONE ? NONE : next_best(x, n_ids, best);
        if (top[2 * j] != best || (best != NONE && top[2 * j + 1] != kt_bits(x[best])))
            fail_msg("topk of %u (%u): pair %u of %u is %u, expected %u", n, n_ids, j, k, top[2 * j], best);
        if (groups == 1)
            assert_int_equal(parts[2 * j], best);
    }
    cor_free(parts);
}

/* Equal values everywhere, both zeros, NaN and infinities, fewer finite values than pairs. */
static void test_topk(void **unused)
{
    static const struct {
        uint32_t n, n_ids, k, wg;
    } cases[] = {{1, 1, 1, 64},       {5, 5, 7, 32},         {1000, 1000, 1, 64},  {1024, 1024, 64, 128},
                 {1025, 1025, 7, 32}, {4096, 4080, 40, 128}, {5003, 5003, 64, 48}, {9001, 8005, 1, 32}};
    static const uint32_t odd[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00001u, 0x80000000u, 0};

    (void)unused;
    for (size_t c = 0; c < COR_COUNT(cases); c++) {
        const uint32_t n = cases[c].n, k = cases[c].k, wg = cases[c].wg;
        float *x = kt_floats(n);

        if (!kt_wanted((uint32_t)c)) {
            cor_free(x);
            continue;
        }
        topk_case(n, cases[c].n_ids, k, wg, x);
        for (uint32_t i = 0; i < n; i++)
            x[i] = (float)(int)(x[i] * 4) / 4;
        topk_case(n, cases[c].n_ids, k, wg, x);
        for (uint32_t i = 0; i < n; i += 1 + kt_below(5))
            x[i] = kt_float(odd[kt_below(COR_COUNT(odd))]);
        topk_case(n, cases[c].n_ids, k, wg, x);
        for (uint32_t i = 0; i < n; i++)
            x[i] = i == n / 2 ? -3e38f : kt_float(0x7fc00000u + i % 3);
        topk_case(n, cases[c].n_ids, k, wg, x);
        cor_free(x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),          cmocka_unit_test(test_embed_all_halves),
        cmocka_unit_test(test_embed_scales),   cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_matvec),         cmocka_unit_test(test_matvec_norm),
        cmocka_unit_test(test_matmul),         cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_scale_add),      cmocka_unit_test(test_shared_gate),
        cmocka_unit_test(test_topk),           cmocka_unit_test(test_other_embed),
        cmocka_unit_test(test_other_products),
    };

    return kt_main(KT_DENSE, tests, COR_COUNT(tests));
}
