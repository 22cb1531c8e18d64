/* The file of selftest and tune: read back, ignored when damaged or of another kind, heeded when a device is
 * opened, and left out where the user asks. */
#include <stdio.h>

#include "bench/selftest.h"
#include "core/log.h"
#include "gpu/kernels.h"
#include "run/tuned.h"
#include "support/test.h"

static char cache[4096], last_log[512];
static struct gpu_instance *inst;

static void on_log(void *user, enum vkmoe_log_level level, const char *line)
{
    (void)user;
    (void)level;
    snprintf(last_log, sizeof(last_log), "%s", line);
}

static const struct run_tuned some = {.off = "-subgroup", .variants = "core=shared,rows=2"};

static void write_some(void)
{
    struct vkmoe_err err;

    test_ok(run_tuned_write(&some, inst, 0, &err), &err);
}

static char *slurp(size_t *n)
{
    struct vkmoe_err err;
    char path[4200], *data;

    assert_true(run_tuned_path(path, sizeof(path), inst, 0));
    test_ok(cor_file_slurp(path, 1 << 16, &data, n, &err), &err);
    return data;
}

static void put(const char *data, size_t n)
{
    char path[4200];

    assert_true(run_tuned_path(path, sizeof(path), inst, 0));
    test_write(path, data, n);
}

static void expect_none(const char *why)
{
    struct run_tuned t;

    last_log[0] = '\0';
    run_tuned_read(&t, inst, 0);
    assert_string_equal(t.off, "");
    assert_string_equal(t.variants, "");
    if (!strstr(last_log, why))
        fail_msg("the log says '%s', expected '%s'", last_log, why);
}

static void test_round_trip(void **unused)
{
    const struct run_tuned nothing = {{0}, {0}};
    struct run_tuned t;
    struct vkmoe_err err;
    char path[4200];

    (void)unused;
    expect_none("");
    write_some();
    run_tuned_read(&t, inst, 0);
    assert_string_equal(t.off, some.off);
    assert_string_equal(t.variants, some.variants);
    test_ok(run_tuned_write(&nothing, inst, 0, &err), &err);
    assert_true(run_tuned_path(path, sizeof(path), inst, 0));
    assert_false(cor_path_exists(path));
}

/* Every truncated prefix and every flipped byte. */
static void test_damaged(void **unused)
{
    char *data;
    size_t n;

    (void)unused;
    write_some();
    data = slurp(&n);
    for (size_t i = 0; i < n; i++) {
        put(data, i);
        expect_none("ignored");
    }
    for (size_t i = 0; i < n; i++) {
        data[i] ^= 1;
        put(data, n);
        expect_none("ignored");
        data[i] ^= 1;
    }
    put("", 0);
    expect_none("not a tuning file");
    cor_free(data);
}

/* A sound file of another driver: one digit of the identity differs, and the sum is right. */
static void test_foreign(void **unused)
{
    char *data, *line, text[1024];
    uint64_t sum = 0xcbf29ce484222325u;
    size_t n;

    (void)unused;
    write_some();
    data = slurp(&n);
    line = strstr(data, "device ");
    assert_non_null(line);
    line[8] = line[8] == '0' ? '1' : '0';
    for (const char *p = line; *p; p++)
        sum = (sum ^ (uint8_t)*p) * 0x100000001b3u;
    snprintf(text, sizeof(text), "vkmoe tuning 1\nsum %016llx\n%s", (unsigned long long)sum, line);
    put(text, strlen(text));
    expect_none("another device, driver or version");
    cor_free(data);
}

static struct vkmoe_context *open_context(void)
{
    const struct vkmoe_params p = {.log = on_log, .cache_dir = cache};
    struct vkmoe_context *ctx;
    struct vkmoe_err err;

    test_ok(vkmoe_open(&ctx, &p, &err), &err);
    return ctx;
}

/* What a device that is opened so may use. */
static bool says(const char *caps, const char *variants, const char *shader_dir, const char *text)
{
    const struct vkmoe_device_params p = {
        .device = "0", .caps = caps, .variants = variants, .shader_dir = shader_dir};
    struct vkmoe_context *ctx = open_context();
    struct vkmoe_device *dev;
    struct vkmoe_err err;
    bool told;

    last_log[0] = '\0';
    test_ok(vkmoe_device_open(&dev, ctx, &p, &err), &err);
    told = strstr(last_log, text) != NULL;
    vkmoe_device_close(dev);
    vkmoe_close(ctx);
    cor_log_sink(on_log, NULL);
    return told;
}

static void test_opening(void **unused)
{
    const char *told = "selftest found its driver wrong: -subgroup";
    struct vkmoe_context *ctx;
    struct vkmoe_device *dev;
    struct vkmoe_err err;
    char *json;

    (void)unused;
    write_some();
    assert_true(says(NULL, NULL, NULL, told));
    assert_true(says("-f16", NULL, NULL, told));
    assert_false(says("-tuned", NULL, NULL, told));
    assert_false(says(NULL, NULL, cache, told));
    ctx = open_context();
    test_ok(vkmoe_device_json(ctx, 0, &json, &err), &err);
    assert_non_null(strstr(json, "\"variants\":\"core=shared,rows=2"));
    assert_non_null(strstr(json, "\"variants_from\":\"tuned\",\"selftest_off\":\"-subgroup\"}"));
    vkmoe_free(json);
    assert_int_equal(
        vkmoe_device_open(&dev, ctx, &(struct vkmoe_device_params){.variants = "core=subgroup"}, &err),
        VKMOE_ERR_ARGUMENT); /* switched off */
    assert_int_equal(vkmoe_device_open(&dev, ctx, &(struct vkmoe_device_params){.variants = "rows=99"}, &err),
                     VKMOE_ERR_ARGUMENT);
    vkmoe_close(ctx);
    cor_log_sink(on_log, NULL);
}

/* What selftest finds is kept beside what tune found, and goes when it is found no more. */
static void test_selftest(void **unused)
{
    const struct bench_device_params p = {.device = "0", .cache_dir = cache};
    struct bench_selftest r = {.off = "-array"};
    struct bench_device d;
    struct run_tuned t;
    struct vkmoe_err err;

    (void)unused;
    write_some();
    test_ok(bench_device_open(&d, &p, &err), &err);
    test_ok(bench_selftest_remember(&r, &d, &err), &err);
    run_tuned_read(&t, inst, 0);
    assert_string_equal(t.off, "-array");
    assert_string_equal(t.variants, some.variants);
    r.off[0] = '\0';
    test_ok(bench_selftest_remember(&r, &d, &err), &err);
    run_tuned_read(&t, inst, 0);
    assert_string_equal(t.off, "");
    bench_device_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_damaged),
                                       cmocka_unit_test(test_foreign), cmocka_unit_test(test_opening),
                                       cmocka_unit_test(test_selftest)};
    const struct gpu_instance_params p = {.cache_dir = cache};
    struct vkmoe_err err;
    int failed;

    snprintf(cache, sizeof(cache), "%s", test_tmp());
    cor_log_sink(on_log, NULL);
    if (gpu_instance_open(&inst, &p, &err) != VKMOE_OK) {
        print_error("%s\n", err.message);
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    gpu_instance_close(inst);
    return failed;
}
