/* The AMD compiler without its GPU (RADV_FORCE_FAMILY): every kernel of both models compiles without spills
 * or scratch and as bench/amd-baseline.csv says, and pipelines come back from the cache on disk, but never
 * from a file that is damaged or another driver's. */
#include "support/test.h"

#include <stdio.h>

#include "core/log.h"
#include "gpu/commands.h"
#include "support/device.h"
#include "support/radv.h"

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

/* What works on many tokens with a few lanes is for software drivers: AMD's compiler takes minutes over tiles
 * of eight rows by four vectors per lane, and runs out of registers; a lane that keeps 256 elements has none
 * left either. */
static bool for_narrow(const char *name)
{
    return !strcmp(name, "matmul_ln") || !strcmp(name, "attn_many_ln") || strstr(name, "_tile_ln") ||
           strstr(name, "_tx");
}

static void every_kernel_is_listed(void **state)
{
    bool seen[GPU_KERNEL_COUNT] = {false};

    (void)state;
    for (uint32_t i = 0; i < n_cases; i++)
        seen[cases[i].kernel] = true;
    for (int k = 0; k < GPU_KERNEL_COUNT; k++)
        if (!seen[k] && !for_narrow(gpu_kernel_info((enum gpu_kernel)k)->name))
            fail_msg("tests/support/specs.c has no case for %s", gpu_kernel_info((enum gpu_kernel)k)->name);
}

/* ---- the baseline
 * ------------------------------------------------------------------------------------------------ */

#define MAX_NAMED 12 /* changed rows that are named */

struct baseline {
    char *text;
    char **lines; /* of this GPU */
    size_t n;
    bool *met;
    uint32_t n_changed;
};

/* Lines of this GPU, of the driver that is running; false, with a skip, when another version wrote them. */
static bool read_baseline(struct baseline *b, const char *family, const char *version)
{
    struct vkmoe_err err = {0};
    char head[512], *next;
    size_t bytes;

    test_ok(cor_file_slurp(VKMOE_TEST_SOURCE_DIR "/bench/amd-baseline.csv", 1u << 24, &b->text, &bytes, &err),
            &err);
    b->lines = cor_array(bytes, sizeof(*b->lines));
    b->met = cor_array(bytes, sizeof(*b->met));
    assert_true(b->lines && b->met);
    snprintf(head, sizeof(head), "# RADV of %s\n%s\n", version, RADV_CSV_HEAD);
    if (strncmp(b->text, head, strlen(head)) != 0) {
        print_message("bench/amd-baseline.csv was not written by %s, or has other columns\n", version);
        test_skip("bench/amd-baseline.csv is of another driver");
        return false;
    }
    for (char *p = b->text; *p; p = next) {
        next = strchr(p, '\n');
        assert_non_null(next);
        *next++ = '\0';
        if (!strncmp(p, family, strlen(family)) && p[strlen(family)] == ',')
            b->lines[b->n++] = p;
    }
    return true;
}

static void close_baseline(struct baseline *b)
{
    cor_free(b->text);
    cor_free(b->lines);
    cor_free(b->met);
}

/* Bytes up to and with the fourth comma. */
static size_t key_bytes(const char *line)
{
    size_t n = 0;

    for (int commas = 0; commas < 4 && line[n]; n++)
        commas += line[n] == ',';
    return n;
}

static void note_change(struct baseline *b, const char *was, const char *now)
{
    if (b->n_changed++ < MAX_NAMED)
        print_message("%s%s%s%s%s\n", was ? "-" : "", was ? was : "", was && now ? "\n" : "", now ? "+" : "",
                      now ? now : "");
}

static void compare_line(struct baseline *b, const char *line)
{
    const size_t key = key_bytes(line);

    for (size_t i = 0; i < b->n; i++)
        if (!b->met[i] && key_bytes(b->lines[i]) == key && !strncmp(b->lines[i], line, key)) {
            b->met[i] = true;
            if (strcmp(b->lines[i], line) != 0)
                note_change(b, b->lines[i], line);
            return;
        }
    note_change(b, NULL, line);
}

/* Nothing spills, and what the compiler makes of every kernel is what the baseline says. */
static void as_in_baseline(void **state)
{
    struct baseline b = {0};
    struct gpu_device *dev;
    char family[64], line[512];
    uint32_t n_spilled = 0;
    bool compare;

    (void)state;
    if (!is_radv())
        return;
    dev = open_device(true);
    radv_family(dev, family, sizeof(family));
    print_message("%s, %u pipelines\n", family, n_cases);
    compare = read_baseline(&b, family, gpu_device_info(dev)->driver_version);
    for (uint32_t i = 0; i < n_cases; i++) {
        struct radv_row row;
        struct vkmoe_err err = {0};

        if (!gpu_kernel_usable(dev, cases[i].kernel)) /* no fp16 on the oldest */
            continue;
        test_ok(radv_measure(dev, &cases[i], &row, &err), &err);
        radv_csv_line(line, sizeof(line), family, &cases[i], &row);
        if (radv_spills(&row))
            print_message("spills or scratch: %s\n", line);
        n_spilled += radv_spills(&row);
        if (compare && cases[i].shape == SPECS_EMO)
            compare_line(&b, line);
    }
    for (size_t i = 0; compare && i < b.n; i++)
        if (!b.met[i])
            note_change(&b, b.lines[i], NULL);
    gpu_device_close(dev);
    close_baseline(&b);
    assert_int_equal(n_spilled, 0);
    if (b.n_changed)
        fail_msg("%u rows differ from bench/amd-baseline.csv: tools/radv_table.sh --baseline writes it "
                 "again, in a "
                 "commit that says why",
                 b.n_changed);
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
        cmocka_unit_test(as_in_baseline),
        cmocka_unit_test(refused_for_work),
        cmocka_unit_test_setup(round_trip, make_cache),
        cmocka_unit_test_setup(truncated, make_cache),
        cmocka_unit_test_setup(foreign, make_cache),
        cmocka_unit_test_setup(damaged, make_cache),
        cmocka_unit_test_setup(unwritable, make_cache),
    };

    return cmocka_run_group_tests(tests, open_instance, close_instance);
}
