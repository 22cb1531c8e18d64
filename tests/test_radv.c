/* The AMD compiler without its GPU (RADV_FORCE_FAMILY): every kernel of both models compiles without spills
 * or scratch, and pipelines come back from the cache on disk, but never from a file that is damaged or
 * another driver's. */
#include "support/test.h"

#include <stdio.h>

#include "core/log.h"
#include "gpu/commands.h"
#include "support/device.h"
#include "support/specs.h"

#define N_SOME 6 /* pipelines of the cache tests */

static struct gpu_instance *inst;
static long live_before;             /* blocks, before inst */
static uint32_t picked = UINT32_MAX; /* the device without hardware */
static char cache_dir[1024], cache_file[2048], last_log[512];
static struct specs_case *cases;
static uint32_t n_cases;

static void on_log(void *user, enum vkmoe_log_level level, const char *line)
{
    (void)user;
    snprintf(last_log, sizeof(last_log), "%s", line);
    if (level >= VKMOE_LOG_ERROR)
        print_message("[log] %s\n", line);
}

static int open_instance(void **state)
{
    struct gpu_instance_params p = {.cache_dir = cache_dir};
    struct vkmoe_err err = {0};

    (void)state;
    cor_log_sink(on_log, NULL);
    snprintf(cache_dir, sizeof(cache_dir), "%s/pipelines", test_tmp());
    live_before = cor_alloc_live();
    test_ok(gpu_instance_open(&inst, &p, &err), &err);
    for (uint32_t i = 0; i < gpu_instance_device_count(inst); i++) {
        const struct gpu_caps *c = gpu_instance_device_caps(inst, i);

        if (c->exec_props && !c->heap_bytes)
            picked = i;
    }
    n_cases = specs_list(NULL, 0);
    cases = cor_array(n_cases, sizeof(*cases));
    assert_non_null(cases);
    specs_list(cases, n_cases);
    return 0;
}

static int close_instance(void **state)
{
    (void)state;
    cor_free(cases);
    gpu_instance_close(inst);
    return cor_alloc_live() != live_before;
}

static bool is_radv(void)
{
    if (picked != UINT32_MAX)
        return true;
    test_skip("the driver is no RADV: set VK_DRIVER_FILES and RADV_FORCE_FAMILY");
    return false;
}

static struct gpu_device *open_device(bool stats)
{
    const struct gpu_device_params p = {.compile_only = true, .exec_props = stats, .skip_barrier = -1};
    struct gpu_device *dev = NULL;
    struct vkmoe_err err = {0};

    last_log[0] = '\0';
    test_ok(gpu_device_open(&dev, inst, picked, &p, &err), &err);
    return dev;
}

/* ---- registers
 * ------------------------------------------------------------------------------------------------ */

static void every_kernel_is_listed(void **state)
{
    bool seen[GPU_KERNEL_COUNT] = {false};

    (void)state;
    for (uint32_t i = 0; i < n_cases; i++)
        seen[cases[i].kernel] = true;
    for (int k = 0; k < GPU_KERNEL_COUNT; k++)
        if (!seen[k])
            fail_msg("tests/support/specs.c has no case for %s", gpu_kernel_info((enum gpu_kernel)k)->name);
}

static void check_stats(struct gpu_device *dev, const struct gpu_pipeline *p, const struct specs_case *c)
{
    static const char *const zero[] = {"Spilled VGPRs", "Spilled SGPRs", "Scratch size"};
    struct gpu_pipeline_stat stats[64];
    struct vkmoe_err err = {0};
    uint32_t n, found = 0;

    test_ok(gpu_pipeline_stats(dev, p, stats, COR_COUNT(stats), &n, &err), &err);
    for (uint32_t i = 0; i < n; i++)
        for (size_t z = 0; z < COR_COUNT(zero); z++)
            if (!strcmp(stats[i].name, zero[z])) {
                found++;
                if (stats[i].value != 0)
                    fail_msg("%s %s %s: %s %.0f", gpu_kernel_info(c->kernel)->name, c->format, c->use,
                             zero[z], stats[i].value);
            }
    assert_int_equal(found, COR_COUNT(zero));
}

static void no_spills(void **state)
{
    struct gpu_device *dev;

    (void)state;
    if (!is_radv())
        return;
    print_message("%s, %u pipelines\n", gpu_instance_device_info(inst, picked)->name, n_cases);
    dev = open_device(true);
    for (uint32_t i = 0; i < n_cases; i++) {
        const struct specs_case *c = &cases[i];
        struct gpu_pipeline *p;
        struct vkmoe_err err = {0};

        test_ok(gpu_pipeline_get(&p, dev, c->kernel, c->spec, c->n_spec * sizeof(uint32_t), c->n_segs, &err),
                &err);
        check_stats(dev, p, c);
    }
    gpu_device_close(dev);
}

/* A device without heaps is refused for work and opened for compiling only. */
static void refused_for_work(void **state)
{
    const struct gpu_device_params p = {.skip_barrier = -1};
    struct gpu_device *dev;
    struct vkmoe_err err = {0};
    uint32_t index;

    (void)state;
    if (!is_radv())
        return;
    assert_int_equal(gpu_device_open(&dev, inst, picked, &p, &err), VKMOE_ERR_NO_DEVICE);
    assert_non_null(strstr(err.message, "device-local memory"));
    assert_false(gpu_instance_device_info(inst, picked)->usable);
    assert_int_equal(gpu_instance_choose(inst, "RADV", &index, &err), VKMOE_ERR_NO_DEVICE);
    assert_non_null(strstr(err.message, "refused"));
}

/* ---- the cache
 * ------------------------------------------------------------------------------------------------ */

/* Opens a device, makes some pipelines and closes it; how many the driver took from the cache. */
static uint32_t some_pipelines(void)
{
    struct gpu_device *dev = open_device(false);
    struct vkmoe_err err = {0};
    uint32_t hits = 0;

    for (uint32_t i = 0; i < N_SOME; i++) {
        const struct specs_case *c = &cases[i * 7 % n_cases];
        struct gpu_pipeline *p;

        test_ok(gpu_pipeline_get(&p, dev, c->kernel, c->spec, c->n_spec * sizeof(uint32_t), c->n_segs, &err),
                &err);
        hits += gpu_pipeline_from_cache(p);
    }
    gpu_device_close(dev);
    return hits;
}

static char *slurp(size_t *n)
{
    struct vkmoe_err err = {0};
    char *data;

    test_ok(cor_file_slurp(cache_file, 1u << 28, &data, n, &err), &err);
    return data;
}

static void spill(const char *data, size_t n)
{
    struct vkmoe_err err = {0};
    struct cor_out *o;

    test_ok(cor_out_create(&o, cache_file, &err), &err);
    test_ok(cor_out_write(o, data, n, &err), &err);
    test_ok(cor_out_commit(o, &err), &err);
}

static int make_cache(void **state)
{
    struct vkmoe_err err = {0};
    char **names;
    size_t n;

    (void)state;
    if (cache_file[0] || picked == UINT32_MAX)
        return 0;
    some_pipelines();
    test_ok(cor_dir_list(cache_dir, &names, &n, &err), &err);
    if (n == 1)
        snprintf(cache_file, sizeof(cache_file), "%s/%s", cache_dir, names[0]);
    cor_free(names);
    return n != 1;
}

static void round_trip(void **state)
{
    size_t n, again;
    char *data;

    (void)state;
    if (!is_radv())
        return;
    data = slurp(&n);
    assert_true(n > 1000);
    assert_int_equal(some_pipelines(), N_SOME);
    assert_string_equal(last_log, "");
    cor_free(data);
    data = slurp(&again);
    assert_int_equal(again, n); /* nothing new: not written again */
    cor_free(data);
}

/* With this in the file, nothing comes from the cache, one line says why, and closing makes the file good
 * again. */
static void bad_file(const char *data, size_t n, const char *why)
{
    spill(data, n);
    struct gpu_device *dev = open_device(false);
    if (!strstr(last_log, why))
        fail_msg("%zu bytes: \"%s\" does not say \"%s\"", n, last_log, why);
    gpu_device_close(dev);
    assert_int_equal(some_pipelines(), 0);
    assert_int_equal(some_pipelines(), N_SOME);
}

static void truncated(void **state)
{
    size_t n;
    char *data;

    (void)state;
    if (!is_radv())
        return;
    data = slurp(&n);
    bad_file(data, 0, "truncated");
    bad_file(data, 50, "truncated");
    bad_file(data, 88, "truncated");
    bad_file(data, n / 2, "truncated");
    bad_file(data, n - 1, "truncated");
    cor_free(data);
}

static void foreign(void **state)
{
    static const size_t fields[] = {8, 12, 16, 24, 40, 56}; /* vendor, device, version, three UUIDs */
    size_t n;
    char *data;

    (void)state;
    if (!is_radv())
        return;
    data = slurp(&n);
    for (size_t i = 0; i < COR_COUNT(fields); i++) {
        data[fields[i]] ^= 1;
        bad_file(data, n, "another driver");
        data[fields[i]] ^= 1;
    }
    data[0] ^= 1;
    bad_file(data, n, "not a pipeline cache");
    cor_free(data);
}

static void damaged(void **state)
{
    uint64_t rng = test_seed();
    size_t n;
    char *data;

    (void)state;
    if (!is_radv())
        return;
    data = slurp(&n);
    for (int i = 0; i < 5; i++) {
        size_t at = 88 + test_rand(&rng) % (n - 88);

        data[at] ^= 16;
        bad_file(data, n, "damaged");
        data[at] ^= 16;
    }
    cor_free(data);
}

/* A directory that cannot be written costs a log line. */
static void unwritable(void **state)
{
    struct gpu_instance_params p = {.cache_dir = cache_file}; /* a file, no directory */
    struct gpu_instance *keep = inst;
    struct vkmoe_err err = {0};

    (void)state;
    if (!is_radv())
        return;
    test_ok(gpu_instance_open(&inst, &p, &err), &err);
    assert_int_equal(some_pipelines(), 0);
    assert_non_null(strstr(last_log, "pipeline cache: "));
    gpu_instance_close(inst);
    inst = keep;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kernel_is_listed),
        cmocka_unit_test(no_spills),
        cmocka_unit_test(refused_for_work),
        cmocka_unit_test_setup(round_trip, make_cache),
        cmocka_unit_test_setup(truncated, make_cache),
        cmocka_unit_test_setup(foreign, make_cache),
        cmocka_unit_test_setup(damaged, make_cache),
        cmocka_unit_test_setup(unwritable, make_cache),
    };

    return cmocka_run_group_tests(tests, open_instance, close_instance);
}
