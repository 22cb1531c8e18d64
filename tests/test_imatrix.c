/* Importance matrices: both formats, what quantising with them changes, and every way in which a file can be
 * wrong. */
#include <math.h>
#include <stdio.h>

#include "experts/inputs.h"
#include "model/convert.h"
#include "model/imatrix.h"
#include "model/synth.h"
#include "support/cli.h"

enum { DIM = 256, EXPERTS = 3 };

static struct vkmoe_err err;
static const char *dir;
static char model[4200], matrix[4200], old[4200], out[4200];

/* What the files hold: sums of squares and counts of three tensors. */
static float o_sums[DIM], down_sums[EXPERTS][DIM], head_sums[DIM];
static const float one_count[1] = {200}, counts[EXPERTS] = {100, 0, 50};

static const struct {
    const char *name;
    const float *sums, *counts;
    uint32_t n;
} entries[] = {{"blk.0.attn_output.weight", o_sums, one_count, 1},
               {"blk.0.ffn_down_exps.weight", down_sums[0], counts, EXPERTS},
               {"output.weight", head_sums, one_count, 1}};

static void write_gguf(uint64_t cols, float first)
{
    const struct mdl_str set = {"some.txt", 8};
    struct mdl_gguf_writer *w;
    char name[64];

    test_ok(mdl_gguf_create(&w, matrix, &err), &err);
    test_ok(mdl_gguf_put_str(w, "general.type", "imatrix", 7, &err), &err);
    test_ok(mdl_gguf_put_array(w, "imatrix.datasets", MDL_GGUF_STRING, &set, 1, &err), &err);
    test_ok(mdl_gguf_put_u32(w, "imatrix.chunk_count", 7, &err), &err);
    o_sums[0] = first;
    for (size_t i = 0; i < COR_COUNT(entries); i++) {
        const uint64_t sums[2] = {cols, entries[i].n}, n[2] = {1, entries[i].n};

        snprintf(name, sizeof(name), "%s.in_sum2", entries[i].name);
        test_ok(mdl_gguf_put_tensor(w, name, MDL_F32, 2, sums, &err), &err);
        snprintf(name, sizeof(name), "%s.counts", entries[i].name);
        test_ok(mdl_gguf_put_tensor(w, name, MDL_F32, 2, n, &err), &err);
    }
    for (size_t i = 0; i < COR_COUNT(entries); i++) {
        test_ok(mdl_gguf_write_data(w, entries[i].sums, 4 * (size_t)cols * entries[i].n, &err), &err);
        test_ok(mdl_gguf_write_data(w, entries[i].counts, 4 * (size_t)entries[i].n, &err), &err);
    }
    test_ok(mdl_gguf_commit(w, &err), &err);
}

static void put(FILE *f, const void *p, size_t n)
{
    assert_true(fwrite(p, 1, n, f) == n);
}

static void put_u32(FILE *f, uint32_t v)
{
    const uint8_t b[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};

    put(f, b, 4);
}

/* The same numbers as the older format has them: means times calls, ones where there is no data. */
static void write_dat(void)
{
    FILE *f = fopen(old, "wb");

    assert_non_null(f);
    put_u32(f, COR_COUNT(entries));
    for (size_t i = 0; i < COR_COUNT(entries); i++) {
        put_u32(f, (uint32_t)strlen(entries[i].name));
        put(f, entries[i].name, strlen(entries[i].name));
        put_u32(f, 4);
        put_u32(f, entries[i].n * DIM);
        for (uint32_t k = 0; k < entries[i].n * DIM; k++) {
            const float n = entries[i].counts[k / DIM], v = n > 0 ? entries[i].sums[k] / n * 4 : 1;

            put(f, &v, 4);
        }
    }
    put_u32(f, 7);
    put_u32(f, 8);
    put(f, "some.txt", 8);
    fclose(f);
}

static int setup(void **state)
{
    struct mdl_synth_params p = {.shape = *mdl_shape_find("emo-nano"), .type = MDL_F32, .seed = 3};
    uint64_t rng = test_seed();

    (void)state;
    dir = test_tmp();
    snprintf(model, sizeof(model), "%s/model.gguf", dir);
    snprintf(matrix, sizeof(matrix), "%s/imatrix.gguf", dir);
    snprintf(old, sizeof(old), "%s/imatrix.dat", dir);
    snprintf(out, sizeof(out), "%s/out.gguf", dir);
    p.out = model;
    p.shape.config.n_layers = 1;
    p.shape.config.ff_expert = DIM;
    p.shape.config.n_shared = 0;
    p.shape.config.n_experts = EXPERTS;
    p.shape.config.n_experts_used = 2;
    p.shape.config.vocab_size = 288;
    p.shape.eos = 280;
    test_ok(mdl_synth(&p, &err), &err);
    for (size_t i = 0; i < DIM; i++) { /* some columns count a thousand times as much as others */
        o_sums[i] = (float)exp(7 * test_rand_unit(&rng));
        head_sums[i] = (float)exp(7 * test_rand_unit(&rng));
        for (size_t e = 0; e < EXPERTS; e++)
            down_sums[e][i] = (float)exp(7 * test_rand_unit(&rng));
    }
    return 0;
}

/* ---- what it changes
 * ------------------------------------------------------------------------------------------------------ */

static void quantise(enum mdl_type type, const char *imatrix)
{
    test_ok(
        mdl_convert(&(struct mdl_convert_params){.in = model, .out = out, .type = type, .imatrix = imatrix},
                    &err),
        &err);
}

/* The tensor's values as written; cor_free. */
static float *values(const char *path, const char *name, uint64_t *n)
{
    struct mdl_gguf *g;
    const struct mdl_tensor *t;
    float *v;
    char *raw;

    test_ok(mdl_gguf_open(&g, path, &err), &err);
    assert_non_null(t = mdl_gguf_tensor(g, name));
    *n = t->dims[0] * t->dims[1] * t->dims[2];
    assert_non_null(raw = cor_alloc((size_t)t->bytes));
    assert_non_null(v = cor_array((size_t)*n, sizeof(*v)));
    test_ok(mdl_gguf_read(g, t, 0, raw, (size_t)t->bytes, &err), &err);
    mdl_dequant_row(t->type, raw, v, *n);
    cor_free(raw);
    mdl_gguf_close(g);
    return v;
}

/* Squared error of the file at `out`, weighted as the entry says; per plane. */
static void errors(double *sum, size_t entry)
{
    uint64_t n, planes = entries[entry].n;
    float *a = values(model, entries[entry].name, &n), *b = values(out, entries[entry].name, &n);

    memset(sum, 0, (size_t)planes * sizeof(*sum));
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t plane = i / (n / planes);
        const double w = entries[entry].sums[plane * DIM + i % DIM], d = a[i] - b[i];

        sum[plane] += w * d * d;
    }
    cor_free(a);
    cor_free(b);
}

static void important_columns_are_better(void **state)
{
    static const enum mdl_type types[] = {MDL_Q2_K, MDL_Q3_K, MDL_Q4_K, MDL_Q4_0, MDL_Q5_1};
    double plain[COR_COUNT(entries)][EXPERTS], weighted[EXPERTS];

    (void)state;
    write_gguf(DIM, 9);
    for (size_t t = 0; t < COR_COUNT(types); t++) {
        quantise(types[t], NULL);
        for (size_t e = 0; e < COR_COUNT(entries); e++)
            errors(plain[e], e);
        quantise(types[t], matrix);
        for (size_t e = 0; e < COR_COUNT(entries); e++) {
            errors(weighted, e);
            for (uint32_t k = 0; k < entries[e].n; k++) {
                const double share = weighted[k] / plain[e][k];

                if (entries[e].counts[k] > 0 ? share > 0.97 : types[t] != MDL_Q2_K && share != 1)
                    fail_msg("type %d, %s, plane %u: %.3f of the weighted error without importances",
                             (int)types[t], entries[e].name, k, share);
            }
        }
    }
}

/* Tensors that the file does not know, and formats that have no use for it, keep their bytes. */
static void nothing_else_changes(void **state)
{
    static const char *const others[] = {"token_embd.weight", "blk.0.attn_q.weight",
                                         "blk.0.ffn_gate_exps.weight"};
    uint64_t n, m;

    (void)state;
    write_gguf(DIM, 9);
    for (size_t i = 0; i < COR_COUNT(others); i++) {
        float *a, *b;

        quantise(MDL_Q4_0, NULL);
        a = values(out, others[i], &n);
        quantise(MDL_Q4_0, matrix);
        b = values(out, others[i], &m);
        assert_memory_equal(a, b, n * sizeof(*a));
        cor_free(a);
        cor_free(b);
    }
    quantise(MDL_F16, matrix);
}

static void both_formats(void **state)
{
    char first[4200];
    struct mdl_gguf *g;
    struct mdl_str s;
    uint32_t v;

    (void)state;
    write_gguf(DIM, 9);
    write_dat();
    quantise(MDL_Q4_0, matrix);
    test_ok(mdl_gguf_open(&g, out, &err), &err);
    test_ok(mdl_gguf_str(g, "quantize.imatrix.file", &s, &err), &err);
    assert_memory_equal(s.p, "imatrix.gguf", s.n);
    test_ok(mdl_gguf_str(g, "quantize.imatrix.dataset", &s, &err), &err);
    assert_memory_equal(s.p, "some.txt", s.n);
    test_ok(mdl_gguf_u32(g, "quantize.imatrix.entries_count", &v, &err), &err);
    assert_int_equal(v, COR_COUNT(entries));
    test_ok(mdl_gguf_u32(g, "quantize.imatrix.chunks_count", &v, &err), &err);
    assert_int_equal(v, 7);
    mdl_gguf_close(g);
    snprintf(first, sizeof(first), "%s/first.gguf", dir);
    assert_int_equal(rename(out, first), 0);
    quantise(MDL_Q4_0, old);
    for (size_t e = 0; e < COR_COUNT(entries); e++) {
        uint64_t n, m;
        float *a = values(first, entries[e].name, &n), *b = values(out, entries[e].name, &m);
        double rest = 0, all = 0;

        for (uint64_t i = 0; i < n; i++) { /* the mean was rounded on its way: a few blocks may differ */
            rest += (double)(a[i] - b[i]) * (a[i] - b[i]);
            all += (double)a[i] * a[i];
        }
        assert_true(rest < 1e-3 * all);
        cor_free(a);
        cor_free(b);
    }
}

/* ---- what is refused
 * ------------------------------------------------------------------------------------------------------ */

static void refused(const char *path, const char *says)
{
    const struct mdl_convert_params p = {.in = model, .out = out, .type = MDL_Q4_0, .imatrix = path};
    const long live = cor_alloc_live();

    remove(out);
    if (mdl_convert(&p, &err) == VKMOE_OK)
        fail_msg("taken, but should say '%s'", says);
    if (!strstr(err.message, says) || !strstr(err.message, path))
        fail_msg("'%s' does not say '%s' of %s", err.message, says, path);
    assert_false(cor_path_exists(out));
    assert_int_equal(cor_alloc_live(), live);
}

static void wrong_files(void **state)
{
    (void)state;
    refused(model, "not imatrix");
    write_gguf(DIM / 2, 9);
    refused(matrix, "made from another model");
    write_gguf(DIM, -1);
    refused(matrix, "negative or not finite");
    write_gguf(DIM, NAN);
    refused(matrix, "negative or not finite");
    write_gguf(DIM, INFINITY);
    refused(matrix, "negative or not finite");
    test_write(matrix, "abc", 3);
    refused(matrix, "truncated");
    test_write(matrix, "abcdefghijklmnop", 16);
    refused(matrix, "older format");
    refused(cli_path(dir, "absent"), "cannot open");
    cli_bad(1, "absent", "quantize", model, out, "q4_0", "--imatrix", cli_path(dir, "absent"));
}

/* Any prefix and any flipped bits: used, or refused with one line. */
static void damaged_files(void **state)
{
    const char *const paths[] = {matrix, old};
    uint64_t rng = test_seed();

    (void)state;
    write_gguf(DIM, 9);
    write_dat();
    for (int i = 0; i < 400; i++) {
        const char *path = paths[i % 2];
        struct mdl_imatrix *m;
        char *good, *hurt;
        size_t n;

        test_ok(cor_file_slurp(path, 1 << 20, &good, &n, &err), &err);
        assert_non_null(hurt = cor_alloc(n));
        memcpy(hurt, good, n);
        for (uint64_t k = test_rand(&rng) % 4; k; k--)
            hurt[test_rand(&rng) % (k % 2 ? 600 : n)] ^= (char)(1u << (test_rand(&rng) % 8));
        test_write(path, hurt, i % 3 ? n : (size_t)(test_rand(&rng) % n));
        if (mdl_imatrix_open(&m, path, &err) == VKMOE_OK)
            for (size_t e = 0; e < COR_COUNT(entries); e++) {
                float *w;

                if (mdl_imatrix_load(&w, m, entries[e].name, DIM, entries[e].n, &err) == VKMOE_OK)
                    for (uint32_t k = 0; w && k < entries[e].n * DIM; k++)
                        assert_true(isfinite(w[k]) && w[k] > 0);
                cor_free(w);
            }
        assert_null(strchr(err.message, '\n'));
        mdl_imatrix_close(m);
        test_write(path, good, n);
        cor_free(good);
        cor_free(hurt);
    }
}

static void every_failure_leaves_nothing(void **state)
{
    const long live = cor_alloc_live();

    (void)state;
    write_gguf(DIM, 9);
    write_dat();
    for (int way = 0; way < 4; way++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            struct mdl_imatrix *m;
            float *w = NULL;

            assert_true(nth < 200);
            (way % 2 ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = mdl_imatrix_open(&m, way / 2 ? old : matrix, &err);
            if (st == VKMOE_OK)
                st = mdl_imatrix_load(&w, m, entries[1].name, DIM, EXPERTS, &err);
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            cor_free(w);
            mdl_imatrix_close(m);
            assert_int_equal(cor_alloc_live(), live);
        }
    }
}

/* ---- what vkmoe writes
 * ------------------------------------------------------------------------------------------------------ */

static float slope(size_t i)
{
    return (float)(1 + i % 3);
}

/* Two tokens, both to expert 2, the first to expert 0 as well: rows of 3, but the second is a slope. */
static void add_inputs(struct xp_inputs *x)
{
    const uint32_t pairs[2][2][2] = {{{2, 0}, {0, 0}}, {{2, 0}, {UINT32_MAX, 0}}};
    float rows[4][DIM];
    struct vkmoe_inputs in = {.n_tokens = 2, .width = DIM, .rows = rows[0]};

    for (size_t i = 0; i < DIM; i++) {
        rows[0][i] = rows[2][i] = rows[3][i] = 3;
        rows[1][i] = slope(i);
    }
    in.what = VKMOE_INPUT_ATTENTION;
    xp_inputs_add(x, &in);
    in.what = VKMOE_INPUT_OUTPUT;
    xp_inputs_add(x, &in);
    in.what = VKMOE_INPUT_HEAD;
    in.layer = 1;
    xp_inputs_add(x, &in);
    in.layer = 0;
    in.pairs = pairs[0][0];
    in.n_used = 2;
    in.what = VKMOE_INPUT_EXPERTS; /* rows of tokens */
    xp_inputs_add(x, &in);
    in.what = VKMOE_INPUT_DOWN; /* of choices: expert 0 gets the second */
    xp_inputs_add(x, &in);
}

/* The plane's sums are those of so many rows of 3 and slopes. */
static void check_weights(const char *name, uint64_t planes, uint64_t plane, double threes, double slopes)
{
    double total = 0;
    struct mdl_imatrix *m;
    float *w;

    test_ok(mdl_imatrix_open(&m, matrix, &err), &err);
    test_ok(mdl_imatrix_load(&w, m, name, DIM, planes, &err), &err);
    assert_non_null(w);
    for (size_t i = 0; i < DIM; i++)
        total += 9 * threes + slopes * slope(i) * slope(i);
    for (size_t i = 0; i < DIM; i++) {
        const double want = sqrt((9 * threes + slopes * slope(i) * slope(i)) * DIM / total);

        if (fabs(w[plane * DIM + i] - want) > 1e-5)
            fail_msg("%s, plane %u, column %u: %g, not %g", name, (unsigned)plane, (unsigned)i,
                     (double)w[plane * DIM + i], want);
    }
    cor_free(w);
    mdl_imatrix_close(m);
}

static void written_and_read(void **state)
{
    const char *const texts[] = {"one.txt", "two.txt"};
    const long live = cor_alloc_live();
    struct xp_inputs x;
    struct mdl_model *m;

    (void)state;
    test_ok(mdl_open(&m, model, &err), &err);
    for (int way = 0; way < 2; way++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            assert_true(nth < 300);
            remove(matrix);
            (way ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = xp_inputs_init(&x, m, &err);
            if (st == VKMOE_OK) {
                add_inputs(&x);
                st = xp_inputs_write(&x, matrix, texts, 2, 5, &err);
            }
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            xp_inputs_free(&x);
            assert_true(cor_path_exists(matrix) == (st == VKMOE_OK));
        }
    }
    mdl_close(m);
    assert_int_equal(cor_alloc_live(), live);
    check_weights("blk.0.attn_q.weight", 1, 0, 1, 1);
    check_weights("blk.0.attn_v.weight", 1, 0, 1, 1);
    check_weights("blk.0.attn_output.weight", 1, 0, 1, 1);
    check_weights("output.weight", 1, 0, 1, 1);
    check_weights("blk.0.ffn_gate_exps.weight", EXPERTS, 2, 1, 1);
    check_weights("blk.0.ffn_up_exps.weight", EXPERTS, 0, 1, 0);
    check_weights("blk.0.ffn_up_exps.weight", EXPERTS, 1, 1, 0); /* never chosen: ones */
    check_weights("blk.0.ffn_down_exps.weight", EXPERTS, 2, 2, 0);
    check_weights("blk.0.ffn_down_exps.weight", EXPERTS, 0, 0, 1);
    quantise(MDL_Q4_0, matrix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(important_columns_are_better),
        cmocka_unit_test(nothing_else_changes),
        cmocka_unit_test(both_formats),
        cmocka_unit_test(wrong_files),
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(every_failure_leaves_nothing),
        cmocka_unit_test(written_and_read),
    };

    return cmocka_run_group_tests_name("imatrix", tests, setup, NULL);
}
