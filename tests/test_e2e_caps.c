/* Devices made smaller than they are, down to below any real one: every file format gives the logits of the
 * unclamped run, the clamps bite where they should, and what does not fit is refused with numbers. */
#include <math.h>
#include <stdio.h>

#include "support/device.h"

#define N_PREFILL 48
#define N_TEXT    60

static int32_t text[N_TEXT];
static const char *program; /* this one */

static int setup(void **state)
{
    (void)state;
    golden_scripture(text, N_TEXT);
    return 0;
}

/* ---- the same logits
 * ---------------------------------------------------------------------------------------- */

/* Logits of all rows, (N_TEXT, vocab): a prompt at once, the rest token by token. */
static float *all_logits(struct device_case *c)
{
    struct run_session *s = device_session(c, &(struct run_session_params){.n_ctx = N_TEXT});
    uint32_t vocab = c->model->mdl->config.vocab_size;
    float *rows = cor_array((size_t)N_TEXT * vocab, sizeof(float));
    float *prompt = device_feed_all(c, s, text, N_PREFILL);

    assert_non_null(rows);
    memcpy(rows, prompt, (size_t)N_PREFILL * vocab * sizeof(float));
    cor_free(prompt);
    for (uint32_t t = N_PREFILL; t < N_TEXT; t++) {
        device_feed(s, text + t, 1);
        memcpy(rows + (size_t)t * vocab, run_session_logits(s), vocab * sizeof(float));
    }
    run_session_destroy(s);
    return rows;
}

static bool has(const char *caps, const char *word)
{
    return caps && strstr(caps, word);
}

static uint32_t check_pieces(const struct run_matrix *m, uint64_t limit)
{
    uint32_t rows = 0;

    for (uint32_t i = 0; i < m->n_pieces; i++) {
        assert_int_equal(m->pieces[i].row0, rows);
        assert_true(m->pieces[i].region.bytes <= limit);
        rows += m->pieces[i].n_rows;
    }
    assert_int_equal(rows, m->rows);
    return m->n_pieces;
}

/* What the clamps ask for is what was done. */
static void check_shape(const struct device_case *c, const char *caps)
{
    const struct gpu_caps *d = gpu_device_caps(c->dev);
    const struct run_pool *pool = &c->model->pool;
    const struct run_weights *w = &c->model->weights;
    uint32_t embed = check_pieces(&w->embed, d->max_range), head = check_pieces(&w->head.m[0], d->max_range);

    assert_int_equal(w->head.n, 1);
    for (uint32_t i = 0; i < pool->n_segs; i++) {
        assert_true(gpu_buffer_bytes(pool->segs[i]) <= d->max_range);
        assert_int_equal(gpu_buffer_map(pool->segs[i]) != NULL, d->uma);
    }
    for (uint32_t i = 0; i < w->arena.n_chunks; i++)
        assert_int_equal(gpu_buffer_map(w->arena.chunks[i]) != NULL, d->uma);
    if (has(caps, "buffers=8")) {
        assert_true(pool->n_segs >= 10 && !pool->array);
        assert_true(embed >= 2 && head >= 2);
    } else if (has(caps, "range=")) { /* small segments in one array */
        assert_true(pool->n_segs >= 10);
        assert_int_equal(pool->array, d->array);
    } else {
        assert_true(embed == 1 && head == 1);
    }
    if (has(caps, "-array"))
        assert_false(pool->array || d->array);
    if (has(caps, "-subgroup"))
        assert_false(d->subgroup || gpu_kernel_usable(c->dev, GPU_K_matvec_sg));
    if (has(caps, "-uma"))
        assert_null(gpu_buffer_map(pool->table));
    if (has(caps, "-coherent"))
        assert_false(d->coherent);
}

static void check_caps(enum mdl_type type, const char *caps, const float *want)
{
    struct golden_diff diff = {0};
    struct device_case c;
    char what[160];
    float *got;

    device_open(&c, golden_model("emo-nano", type), &(struct device_params){.caps = caps});
    check_shape(&c, caps);
    got = all_logits(&c);
    golden_diff_add(&diff, got, want, (size_t)N_TEXT * c.model->mdl->config.vocab_size);
    snprintf(what, sizeof(what), "%s, %s", mdl_type_find((uint32_t)type)->name, caps);
    golden_diff_check(&diff, what, 1e-10, 5e-4);
    cor_free(got);
    device_close(&c);
}

static bool is_driver(const struct device_case *c, const char *name)
{
    return strstr(gpu_device_info(c->dev)->name, name) != NULL;
}

/* SwiftShader keeps no compiled kernels, so an open costs it seconds: it takes the last of the clamps, which
 * holds all others, and each one alone stands in test_e2e_golden. */
static void check_type(enum mdl_type type, const char *const *caps, size_t n)
{
    struct device_case c;
    float *want;
    size_t first;

    device_open(&c, golden_model("emo-nano", type), &(struct device_params){0});
    first = is_driver(&c, "SwiftShader") ? n - 1 : 0;
    check_shape(&c, NULL);
    want = all_logits(&c);
    device_close(&c);
    for (size_t i = first; i < n; i++)
        check_caps(type, caps[i], want);
    cor_free(want);
}

#define SMALL(range) "range=" range ",buffers=8"
#define ALL_OF_THEM  "-array,-subgroup,-uma,-coherent"

static void test_q8_0(void **state)
{
    static const char *const caps[] = {
        SMALL("1M"), "range=2M", "-array", "-subgroup", "-uma", "-coherent", SMALL("1M") "," ALL_OF_THEM};

    (void)state;
    check_type(MDL_Q8_0, caps, COR_COUNT(caps));
}

static void test_q4_0(void **state)
{
    static const char *const caps[] = {SMALL("512K"), ALL_OF_THEM, SMALL("512K") "," ALL_OF_THEM};

    (void)state;
    check_type(MDL_Q4_0, caps, COR_COUNT(caps));
}

static void check_wide(enum mdl_type type)
{
    static const char *const caps[] = {SMALL("1M"), ALL_OF_THEM, SMALL("1M") "," ALL_OF_THEM};

    check_type(type, caps, COR_COUNT(caps));
}

static void test_f16(void **state)
{
    (void)state;
    check_wide(MDL_F16);
}

static void test_f32(void **state)
{
    (void)state;
    check_wide(MDL_F32);
}

/* ---- refusals
 * ------------------------------------------------------------------------------------------------ */

static void test_small_heap(void **state)
{
    struct vkmoe_err err = {0};
    struct run_model *m;
    struct device_case c;

    (void)state;
    device_open(&c, NULL, &(struct device_params){.caps = "heap=1M"});
    assert_int_equal(run_model_open(&m, c.dev, golden_model("emo-nano", MDL_BF16), NULL, NULL, &err),
                     VKMOE_ERR_LIMIT);
    assert_null(m);
    print_message("%s\n", err.message);
    assert_non_null(strstr(err.message, "1.00 free on the device are too few"));
    assert_null(strchr(err.message, '\n'));
    assert_int_equal(gpu_device_bytes(c.dev), 0);
    device_close(&c);
}

/* The last number of a line. */
static uint32_t last_number(const char *line)
{
    const char *p = line + strlen(line);

    while (p > line && p[-1] >= '0' && p[-1] <= '9')
        p--;
    return (uint32_t)strtoul(p, NULL, 10);
}

static void test_context(void **state)
{
    struct device_case c;

    (void)state;
    device_open(&c, golden_model("emo-nano", MDL_BF16),
                &(struct device_params){.caps = "range=1M,buffers=8", .lazy = true});
    for (int f16 = 0; f16 < 2; f16++) {
        struct run_session_params p = {
            .n_ctx = 1000000, .k_type = f16 ? MDL_F16 : MDL_F32, .v_type = f16 ? MDL_F16 : MDL_F32};
        struct vkmoe_err err = {0};
        struct run_session *s;
        uint32_t most;

        assert_int_equal(run_session_create(&s, c.model, &p, &err), VKMOE_ERR_LIMIT);
        assert_null(s);
        print_message("%s\n", err.message);
        most = last_number(err.message);
        assert_true(most >= 1024 && most < 1000000);
        p.n_ctx = most + 1;
        assert_int_equal(run_session_create(&s, c.model, &p, &err), VKMOE_ERR_LIMIT);
        p.n_ctx = most;
        s = device_session(&c, &p);
        device_feed(s, text, 3);
        run_session_destroy(s);
    }
    device_close(&c);
}

/* What selftest switches off is refused where a session asks for it by name, not replaced in silence. */
static void test_rounding(void **state)
{
    const struct run_session_params p = {.n_ctx = 16, .fast_math = true};
    struct vkmoe_err err = {0};
    struct run_session *s;
    struct device_case c;

    (void)state;
    device_open(&c, golden_model("emo-nano", MDL_BF16),
                &(struct device_params){.caps = "-rounding", .lazy = true});
    assert_int_equal(run_session_create(&s, c.model, &p, &err), VKMOE_ERR_UNSUPPORTED);
    assert_null(s);
    print_message("%s\n", err.message);
    assert_non_null(strstr(err.message, "-rounding"));
    device_close(&c);
}

/* ---- subgroup sizes
 * ------------------------------------------------------------------------------------------ */

/* In a process of its own: the golden prompt of 128 tokens, on a device with the subgroup size asked for. */
static void child(void **state)
{
    const uint32_t size = *(const uint32_t *)*state;
    struct golden_diff diff = {0};
    struct device_case c;
    struct golden g;
    struct run_session *s;
    float *logits;

    assert_true(golden_load(&g, "emo-nano", 3));
    device_open(&c, golden_model("emo-nano", MDL_BF16), &(struct device_params){0});
    assert_int_equal(gpu_device_caps(c.dev)->subgroup_size, size);
    assert_true(gpu_kernel_usable(c.dev, GPU_K_matvec_sg));
    s = device_session(&c, &(struct run_session_params){.n_ctx = g.n_tokens});
    logits = device_feed_all(&c, s, g.tokens, g.n_tokens);
    golden_diff_add(&diff, logits, g.full.logits.data, (size_t)g.n_tokens * g.vocab_size);
    golden_diff_check(&diff, "prefill", GOLDEN_NMSE_F32, GOLDEN_DIFF_F32);
    run_session_reset(s);
    memset(&diff, 0, sizeof(diff));
    for (uint32_t t = 0; t < g.n_tokens; t++) {
        device_feed(s, g.tokens + t, 1);
        golden_diff_add(&diff, run_session_logits(s),
                        (const float *)g.full.logits.data + (size_t)t * g.vocab_size, g.vocab_size);
    }
    golden_diff_check(&diff, "token by token", GOLDEN_NMSE_F32, GOLDEN_DIFF_F32);
    cor_free(logits);
    run_session_destroy(s);
    device_close(&c);
    golden_free(&g);
}

/* The driver reads the width of its vectors when a process begins. */
static void test_subgroup_sizes(void **state)
{
    static const uint32_t sizes[] = {4, 8, 16};
    char log[4096], command[9000];
    struct device_case c;
    bool lavapipe;

    (void)state;
    device_open(&c, NULL, &(struct device_params){0});
    lavapipe = is_driver(&c, "llvmpipe");
    device_close(&c);
    if (!lavapipe) {
        test_skip_listed("only lavapipe has subgroups of any size");
        return;
    }
    snprintf(log, sizeof(log), "%s/child.log", test_tmp());
    for (size_t i = 0; i < COR_COUNT(sizes); i++) {
        snprintf(command, sizeof(command), "LP_NATIVE_VECTOR_WIDTH=%u '%s' --subgroup %u >'%s' 2>&1",
                 32 * sizes[i], program, sizes[i], log);
        if (system(command) != 0) {
            struct vkmoe_err err = {0};
            char *said = NULL;
            size_t n;

            test_ok(cor_file_slurp(log, 1 << 20, &said, &n, &err), &err);
            print_message("%s", said);
            cor_free(said);
            fail_msg("subgroups of %u", sizes[i]);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_q8_0),       cmocka_unit_test(test_q4_0),
        cmocka_unit_test(test_f16),        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_small_heap), cmocka_unit_test(test_context),
        cmocka_unit_test(test_rounding),   cmocka_unit_test(test_subgroup_sizes),
    };
    uint32_t size = argc == 3 && !strcmp(argv[1], "--subgroup") ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    const struct CMUnitTest children[] = {cmocka_unit_test_prestate(child, &size)};

    program = argv[0];
    if (size)
        return cmocka_run_group_tests(children, setup, NULL);
    return cmocka_run_group_tests(tests, setup, NULL);
}
