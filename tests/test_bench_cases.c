/* The table of cases, bench kernels and selftest: every kernel has cases, they pass on this device, and a
 * wrong module is found, named and switched off. */
#include <stdio.h>

#include "bench/kernels.h"
#include "bench/runner.h"
#include "bench/selftest.h"
#include "bench/tune.h"
#include "core/log.h"
#include "gpu/commands.h"
#include "run/tuned.h"
#include "support/test.h"

#define SPIRV_OP_FADD 129u
#define SPIRV_OP_FSUB 131u

static char shaders[4096];

static void open_device(struct bench_device *d, const char *shader_dir, const char *caps)
{
    const struct bench_device_params p = {.shader_dir = shader_dir, .caps = caps};
    struct vkmoe_err err;

    test_ok(bench_device_open(d, &p, &err), &err);
}

/* Kernels that only measure the device need none (tests/test_kernels_bench.c has them). */
static void test_every_kernel(void **unused)
{
    int missing = 0;

    (void)unused;
    for (int k = 0; k < GPU_KERNEL_COUNT; k++) {
        const char *name = gpu_kernel_info((enum gpu_kernel)k)->name;

        if (!bench_case_known((enum gpu_kernel)k) && strncmp(name, "peak_", 5) != 0) {
            print_error("%s: no case in src/bench/cases_*.c\n", name);
            missing++;
        }
    }
    assert_int_equal(missing, 0);
}

/* At every model and format: within the limits of the device, with contents behind every input. */
static void test_models(void **unused)
{
    static const enum mdl_type types[] = {MDL_F16, MDL_Q4_0};
    struct bench_device d;
    struct bench_case c;
    struct vkmoe_err err;
    uint32_t n = 0;

    (void)unused;
    open_device(&d, NULL, NULL);
    for (int k = 0; k < GPU_KERNEL_COUNT; k++)
        for (uint32_t t = 0; t < COR_COUNT(types); t++) {
            struct bench_env env = {.shape = bench_shape(BENCH_NANO),
                                    .type = types[t],
                                    .caps = gpu_device_caps(d.dev),
                                    .seed = 1};
            bool made = true;

            run_variants_default(&env.variants, env.caps);

            for (uint32_t use = 0; made; use++) {
                test_ok(bench_case_make(&c, (enum gpu_kernel)k, use, &env, &made, &err), &err);
                for (uint32_t i = 0; made && i < c.n_bufs; i++) {
                    assert_true(c.bufs[i].bytes && c.bufs[i].bytes <= env.caps->max_range);
                    assert_true(c.bufs[i].data || c.bufs[i].use >= BENCH_OUT);
                }
                assert_true(!made || (c.bytes > 0 && c.grid[0] && c.grid[1] && c.grid[2] && !c.n_wants));
                n += made;
                bench_case_free(&c);
            }
        }
    assert_true(n > GPU_KERNEL_COUNT);
    bench_device_close(&d);
}

static bool count_row(void *user, const struct bench_kernel_row *row)
{
    assert_true(strstr(row->kernel, "rmsnorm") || strstr(row->kernel, "swiglu"));
    assert_true(row->seconds > 0 && row->bytes_share > 0 && row->runs);
    ++*(int *)user;
    return true;
}

static void test_rows(void **unused)
{
    const enum mdl_type type = MDL_Q4_0;
    const struct bench_peak peak = {.read = 1e9, .ops = {1e9}};
    int n = 0;
    struct bench_kernels_params p = {.filter = "rmsnorm,swiglu",
                                     .shape = bench_shape(BENCH_NANO),
                                     .types = &type,
                                     .n_types = 1,
                                     .row = count_row,
                                     .user = &n};
    struct bench_device d;
    struct vkmoe_err err;

    (void)unused;
    open_device(&d, NULL, NULL);
    p.variants = d.variants;
    test_ok(bench_kernels(&d, &p, &peak, &err), &err);
    assert_int_equal(n, gpu_device_caps(d.dev)->subgroup ? 3 : 2);
    bench_device_close(&d);
    assert_true(bench_filter(NULL, "a") && bench_filter("b,a", "cat") && !bench_filter("b,d", "cat"));
}

/* ---- selftest
 * ---------------------------------------------------------------------------------------------- */

/* The built-in module with its sums turned into differences. */
static void write_wrong(const char *kernel)
{
    char path[4200];
    uint32_t *words, n = 0;
    struct vkmoe_err err;
    size_t n_words;

    test_ok(gpu_spirv_read(&words, &n_words, kernel, &err), &err);
    assert_non_null(words);
    for (uint32_t i = 5; i < n_words; i += words[i] >> 16)
        if ((words[i] & 0xffff) == SPIRV_OP_FADD) {
            words[i] = (words[i] & 0xffff0000u) | SPIRV_OP_FSUB;
            n++;
        }
    assert_true(n);
    snprintf(path, sizeof(path), "%s/%s.spv", shaders, kernel);
    test_write(path, words, n_words * 4);
    cor_free(words);
}

static void remove_wrong(const char *kernel)
{
    char path[4200];

    snprintf(path, sizeof(path), "%s/%s.spv", shaders, kernel);
    cor_path_remove(path);
}

static char found[1024];

static void note(void *user, const struct bench_finding *f)
{
    size_t n = strlen(found);

    (void)user;
    snprintf(found + n, sizeof(found) - n, "%s: element %zu: %s, expected %s\n", f->kernel, f->miss->element,
             f->miss->got, f->miss->expected);
}

/* only: parts of names of kernels. */
static void selftest(struct bench_selftest *r, const char *only, const char *caps)
{
    const struct bench_selftest_params p = {.finding = note, .only = only};
    struct bench_device d;
    struct vkmoe_err err;

    found[0] = '\0';
    open_device(&d, shaders, caps);
    test_ok(bench_selftest(r, &d, &p, &err), &err);
    bench_device_close(&d);
    if (found[0])
        print_message("%s", found);
}

static void test_good(void **unused)
{
    struct bench_selftest r;

    (void)unused;
    selftest(&r, test_full() ? NULL : "rmsnorm,router,group,rope,combine,publish,copy,topk,embed,quant",
             NULL);
    assert_int_equal(r.n_wrong, 0);
    assert_string_equal(r.off, "");
    assert_false(r.base_wrong);
    assert_true(r.n_cases >= 20);
}

static void test_wrong(void **unused)
{
    struct bench_selftest r;

    (void)unused;
    write_wrong("rmsnorm_sg");
    selftest(&r, "rmsnorm", NULL);
    if (r.n_unusable)
        test_skip("the device has no subgroup arithmetic");
    else {
        assert_int_equal(r.n_wrong, 1);
        assert_string_equal(r.off, "-subgroup");
        assert_false(r.base_wrong);
        assert_non_null(strstr(found, "rmsnorm_sg: element "));
        selftest(&r, "rmsnorm", r.off); /* what is left is good */
        assert_int_equal(r.n_wrong, 0);
    }
    remove_wrong("rmsnorm_sg");
    write_wrong("rmsnorm");
    selftest(&r, "rmsnorm", NULL);
    assert_true(r.base_wrong);
    assert_string_equal(r.off, "");
    remove_wrong("rmsnorm");
    write_wrong("matvec_dot");
    selftest(&r, "matvec_dot", "-subgroup,-dot8");
    assert_int_equal(r.n_wrong, 1);
    assert_string_equal(r.off, "-rounding"); /* the exact path stays */
    assert_false(r.base_wrong);
    remove_wrong("matvec_dot");
}

/* ---- tune
 * -------------------------------------------------------------------------------------------------- */

static void note_tuned(void *user, const struct bench_tune_row *row)
{
    assert_true(row->share > 0);
    assert_non_null(strchr(row->variant, '='));
    assert_null(strchr(row->variant, ','));
    *(uint32_t *)user += row->chosen;
}

/* On a device whose only choice is the number of rows: quick to compile. */
static void test_tune(void **unused)
{
    uint32_t chosen = 0;
    struct bench_tune_params p = {.shapes = {*bench_shape(BENCH_NANO)},
                                  .types = {MDL_Q8_0},
                                  .n_shapes = 1,
                                  .seconds = 3,
                                  .row = note_tuned,
                                  .user = &chosen};
    const struct bench_device_params dp = {.caps = "-subgroup,-array", .cache_dir = shaders};
    struct bench_device d;
    struct bench_tune r;
    struct run_tuned t;
    struct vkmoe_err err;

    (void)unused;
    test_ok(bench_device_open(&d, &dp, &err), &err);
    test_ok(bench_tune(&r, &d, &p, &err), &err);
    assert_true(run_variants_usable(&r.best, gpu_device_caps(d.dev)));
    assert_int_equal(r.best.core, RUN_CORE_SHARED);
    assert_true(!r.complete || (r.measured >= 6 && chosen >= 3)); /* machines may be busy */
    r.changed = true;                                             /* whatever it found: kept, and forgotten */
    test_ok(bench_tune_remember(&r, &d, &err), &err);
    run_tuned_read(&t, d.inst, gpu_device_info(d.dev)->index);
    assert_non_null(strstr(t.variants, "core=shared,rows="));
    test_ok(bench_tune_reset(&d, &err), &err);
    run_tuned_read(&t, d.inst, gpu_device_info(d.dev)->index);
    assert_string_equal(t.variants, "");
    bench_device_close(&d);
}

static void test_shape_of_model(void **unused)
{
    struct bench_shape s;
    enum mdl_type type;
    struct vkmoe_err err;

    (void)unused;
    assert_int_equal(bench_tune_shape(&s, &type, shaders, &err), VKMOE_ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_kernel),  cmocka_unit_test(test_models),
                                       cmocka_unit_test(test_rows),          cmocka_unit_test(test_good),
                                       cmocka_unit_test(test_wrong),         cmocka_unit_test(test_tune),
                                       cmocka_unit_test(test_shape_of_model)};

    snprintf(shaders, sizeof(shaders), "%s", test_tmp());
    return cmocka_run_group_tests(tests, NULL, NULL);
}
