/* Experts from file to slot: every way the bytes can take, late, short, failing and missing reads, failing
 * allocations and Vulkan calls, a file that changes. Bytes are checked through a submit that nothing but the
 * fetcher's own synchronisation orders behind the copies; the validation layer must stay silent. */
#include "support/test.h"

#include <stdio.h>

#include "core/log.h"
#include "gpu/commands.h"
#include "run/fetch.h"

#define FILE_BYTES 300001u
#define SLOT       6016u /* stride */
#define SLOTS      12u   /* in each of two segments */
#define SEG_BYTES  (SLOT * SLOTS)
#define SECOND     1000000000u

static struct gpu_instance *inst;
static uint32_t picked;
static long live_before;
static uint8_t *content; /* of the file */
static char path[1200];

struct way { /* how bytes travel */
    const char *caps;
    bool fake;
};

static const struct way ways[] = {{NULL, false},   {"-coherent", false},
                                  {"-uma", false}, {"-uma,-coherent", false},
                                  {"-uma", true},  {"-transfer,-uma", false}};

static void on_log(void *user, enum vkmoe_log_level level, const char *line)
{
    (void)user;
    if (level >= VKMOE_LOG_WARN)
        print_message("[log %d] %s\n", level, line);
}

static void write_content(void)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(content, 1, FILE_BYTES, f), FILE_BYTES);
    assert_int_equal(fclose(f), 0);
}

static int open_instance(void **state)
{
    const struct gpu_instance_params p = {.validation = true};
    uint64_t rng = test_seed();
    struct vkmoe_err err = {0};

    (void)state;
    cor_log_sink(on_log, NULL);
    snprintf(path, sizeof(path), "%s/experts.bin", test_tmp());
    content = malloc(FILE_BYTES);
    assert_non_null(content);
    for (uint32_t i = 0; i < FILE_BYTES; i++)
        content[i] = (uint8_t)(1 + test_rand(&rng) % 255); /* never what a cleared buffer holds */
    write_content();
    live_before = cor_alloc_live();
    test_ok(gpu_instance_open(&inst, &p, &err), &err);
    test_ok(gpu_instance_choose(inst, NULL, &picked, &err), &err);
    return 0;
}

static int close_instance(void **state)
{
    const uint64_t messages = gpu_instance_validation_count(inst);

    (void)state;
    gpu_instance_close(inst);
    free(content);
    return messages != 0 || cor_alloc_live() != live_before;
}

/* ---- a device with two segments, a file and a fetcher ---- */

struct rig {
    struct gpu_device *dev;
    struct gpu_buffer *seg[2], *back;
    struct gpu_cmds *read; /* both segments to back */
    struct cor_file *file;
    struct run_fetch *f;
    uint8_t want[2 * SEG_BYTES];
};

static void rig_close(struct rig *r)
{
    run_fetch_close(r->f);
    run_fetch_set_hooks(NULL); /* no thread reads them now */
    cor_file_close(r->file);
    gpu_cmds_destroy(r->read);
    gpu_buffer_destroy(r->back);
    gpu_buffer_destroy(r->seg[0]);
    gpu_buffer_destroy(r->seg[1]);
    gpu_device_close(r->dev);
    memset(r, 0, sizeof(*r));
}

static enum vkmoe_status rig_try(struct rig *r, const struct way *w, uint32_t workers, uint32_t entries,
                                 struct vkmoe_err *err)
{
    const struct gpu_device_params dp = {.caps = w->caps, .fake_transfer = w->fake, .skip_barrier = -1};
    const struct run_fetch_params fp = {workers, entries, SLOT};
    enum vkmoe_status st = VKMOE_OK;

    memset(r, 0, sizeof(*r));
    TRY(gpu_device_open(&r->dev, inst, picked, &dp, err));
    TRY(gpu_buffer_create(&r->seg[0], r->dev, SEG_BYTES, GPU_MEM_DEVICE, "first", err));
    TRY(gpu_buffer_create(&r->seg[1], r->dev, SEG_BYTES, GPU_MEM_DEVICE, "second", err));
    TRY(gpu_buffer_create(&r->back, r->dev, 2 * SEG_BYTES, GPU_MEM_READ, "back", err));
    TRY(gpu_cmds_create(&r->read, r->dev, "read back", err));
    gpu_cmds_begin(r->read);
    gpu_cmds_copy(r->read, r->seg[0], 0, r->back, 0, SEG_BYTES);
    gpu_cmds_copy(r->read, r->seg[1], 0, r->back, SEG_BYTES, SEG_BYTES);
    gpu_cmds_barrier(r->read, GPU_BARRIER_HOST);
    TRY(gpu_cmds_end(r->read, err));
    TRY(cor_file_open(&r->file, path, err));
    TRY(run_fetch_create(&r->f, r->dev, r->file, &fp, err));
done:
    return st;
}

static void rig_open(struct rig *r, const struct way *w, uint32_t workers, uint32_t entries)
{
    struct vkmoe_err err = {0};

    test_ok(rig_try(r, w, workers, entries, &err), &err);
}

/* One load of parts of odd sizes, as many as there may be, into a slot; what it then holds goes to want. */
static enum vkmoe_status load(struct rig *r, uint32_t slot, uint64_t *rng, struct vkmoe_err *err)
{
    const uint32_t n = 1 + (uint32_t)(test_rand(rng) % RUN_FETCH_PARTS);
    uint8_t *want = r->want + slot * SLOT;
    struct run_fetch_part parts[RUN_FETCH_PARTS];
    uint32_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct run_fetch_part *p = &parts[i];

        p->bytes = 1 + (uint32_t)(test_rand(rng) % (SLOT / RUN_FETCH_PARTS - 20));
        p->file_off = test_rand(rng) % (FILE_BYTES - p->bytes + 1);
        p->at = at;
        memset(want + at, 0, (p->bytes + 3) / 4 * 4);
        memcpy(want + at, content + p->file_off, p->bytes);
        at += (p->bytes + 3) / 4 * 4 + 4 * (uint32_t)(test_rand(rng) % 3);
    }
    return run_fetch_begin(r->f, r->seg[slot / SLOTS], (uint64_t)(slot % SLOTS) * SLOT, parts, n, 1000 + slot,
                           err);
}

static enum vkmoe_status look(struct rig *r, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(gpu_submit(r->dev, &r->read, 1, err));
    TRY(gpu_wait(r->dev, 10u * (uint64_t)SECOND, "read back", err));
    TRY(gpu_buffer_invalidate(r->back, 0, 2 * SEG_BYTES, err));
done:
    return st;
}

/* Distinct slots, finished, then compared with the file. */
static void round_trip(struct rig *r, uint32_t n, uint64_t *rng)
{
    struct vkmoe_err err = {0};
    uint32_t first = (uint32_t)(test_rand(rng) % (2 * SLOTS));

    for (uint32_t i = 0; i < n; i++) {
        test_ok(load(r, (first + i * 5) % (2 * SLOTS), rng, &err), &err);
        if (i % 3 == 2)
            test_ok(run_fetch_pump(r->f, &err), &err);
    }
    test_ok(run_fetch_finish(r->f, &err), &err);
    test_ok(look(r, &err), &err);
    assert_memory_equal(gpu_buffer_map(r->back), r->want, sizeof(r->want));
}

/* ---- good ways ---- */

static void same_bytes(void **state)
{
    static const uint32_t workers[] = {0, 1, 4}, entries[] = {1, 3, 16};
    uint64_t rng = test_seed();
    struct rig r;

    (void)state;
    for (size_t w = 0; w < COR_COUNT(ways); w++)
        for (size_t k = 0; k < 9; k++) {
            const struct run_fetch_hooks h = {.seed = rng,
                                              .read_delay_us = k % 2 ? 300 : 0,
                                              .copy_delay_us = k % 3 ? 200 : 0,
                                              .reverse = k % 2};
            const struct run_fetch_stats *s;

            rig_open(&r, &ways[w], workers[k / 3], entries[k % 3]);
            run_fetch_set_hooks(&h);
            for (uint32_t i = 0; i < 6; i++)
                round_trip(&r, i ? (uint32_t)(test_rand(&rng) % 20) : 0, &rng);
            s = run_fetch_stats(r.f);
            assert_true(s->reads >= s->loads && s->bytes > s->loads && s->loads > 0);
            assert_int_equal(s->submits > 0, !gpu_device_caps(r.dev)->uma);
            assert_int_equal(run_fetch_staging_bytes(r.f) > 0, !gpu_device_caps(r.dev)->uma);
            assert_int_equal(run_fetch_bad_tag(r.f), UINT32_MAX);
            rig_close(&r);
        }
}

/* Bytes and reads are counted exactly. */
static void counts(void **state)
{
    const struct run_fetch_part parts[] = {{5, 17, 0}, {99, 4000, 20}};
    struct vkmoe_err err = {0};
    struct rig r;

    (void)state;
    for (size_t w = 0; w < COR_COUNT(ways); w++) {
        rig_open(&r, &ways[w], 2, 2);
        for (uint32_t i = 0; i < 7; i++)
            test_ok(run_fetch_begin(r.f, r.seg[0], i * SLOT, parts, 2, i, &err), &err);
        test_ok(run_fetch_finish(r.f, &err), &err);
        test_ok(run_fetch_finish(r.f, &err), &err); /* nothing to do */
        assert_int_equal(run_fetch_stats(r.f)->loads, 7);
        assert_int_equal(run_fetch_stats(r.f)->reads, 14);
        assert_int_equal(run_fetch_stats(r.f)->bytes, 7 * 4017);
        assert_true(run_fetch_stats(r.f)->busy_ns > 0);
        rig_close(&r);
    }
}

/* Reads that take 10 ms each overlap; copies leave while others are still being read. */
static void overlap(void **state)
{
    const struct run_fetch_hooks h = {.seed = 1, .read_delay_us = 20000};
    const struct run_fetch_part part = {0, 4000, 0};
    struct vkmoe_err err = {0};
    uint64_t start;
    struct rig r;

    (void)state;
    rig_open(&r, &ways[2], 4, 12);
    run_fetch_set_hooks(&h);
    start = cor_now_ns();
    for (uint32_t i = 0; i < SLOTS; i++)
        test_ok(run_fetch_begin(r.f, r.seg[0], i * SLOT, &part, 1, i, &err), &err);
    assert_true(run_fetch_stats(r.f)->wait_ns < 1000000); /* there were entries for all */
    test_ok(run_fetch_finish(r.f, &err), &err);
    assert_true(run_fetch_stats(r.f)->busy_ns > 3 * (cor_now_ns() - start) / 2);
    assert_true(run_fetch_stats(r.f)->submits > 1);
    rig_close(&r);
}

/* A submit that the driver refuses between copies and their reader: the signal it should have waited for is
 * still there, and so are the bytes. */
static void refused_submit(void **state)
{
    uint64_t rng = test_seed();
    struct vkmoe_err err = {0};
    struct rig r;

    (void)state;
    rig_open(&r, &ways[4], 2, 4);
    for (int i = 0; i < 3; i++) {
        test_ok(load(&r, 3, &rng, &err), &err);
        test_ok(run_fetch_finish(r.f, &err), &err);
        gpu_fail_from(2, GPU_FAULT_OUT_OF_MEMORY); /* the signal of the copies is the first */
        assert_int_equal(look(&r, &err), VKMOE_ERR_MEMORY);
        gpu_fail_from(0, GPU_FAULT_OUT_OF_MEMORY);
        if (i == 1)
            round_trip(&r, 5, &rng);
    }
    rig_close(&r); /* with the signal left over */
}

/* Transfers of the other kind beside the ring, and in what order they come. */
static void beside_uploads(void **state)
{
    const uint32_t word = 0x12345678;
    uint64_t rng = test_seed();
    struct vkmoe_err err = {0};
    uint32_t back = 0;
    struct rig r;

    (void)state;
    for (size_t w = 0; w < COR_COUNT(ways); w++) {
        rig_open(&r, &ways[w], 2, 4);
        for (uint32_t i = 0; i < 8; i++)
            test_ok(load(&r, i, &rng, &err), &err);
        test_ok(run_fetch_finish(r.f, &err), &err);
        test_ok(gpu_download(r.dev, r.seg[0], 2 * SLOT, &back, 4, &err), &err);
        assert_memory_equal(&back, r.want + 2 * SLOT, 4);
        test_ok(load(&r, 9, &rng, &err), &err);
        test_ok(run_fetch_finish(r.f, &err), &err);
        test_ok(gpu_upload(r.dev, r.seg[0], 9 * SLOT, &word, 4, &err), &err); /* after the copy */
        memcpy(r.want + 9 * SLOT, &word, 4);
        test_ok(look(&r, &err), &err);
        assert_memory_equal(gpu_buffer_map(r.back), r.want, sizeof(r.want));
        rig_close(&r);
    }
}

/* ---- failures ---- */

/* Loads until the error; false: none came. */
static bool fails(struct rig *r, uint32_t n, uint64_t *rng, struct vkmoe_err *err)
{
    for (uint32_t i = 0; i < n; i++)
        if (load(r, i, rng, err) != VKMOE_OK)
            return true;
    return run_fetch_finish(r->f, err) != VKMOE_OK;
}

static void bad_reads(void **state)
{
    static const char *const words[] = {"", "simulated failure", "only", "never made"};
    uint64_t rng = test_seed();

    (void)state;
    for (size_t w = 0; w < COR_COUNT(ways); w++)
        for (uint32_t fault = RUN_FETCH_FAIL; fault <= RUN_FETCH_DROP; fault++)
            for (uint32_t nth = 1; nth <= 10; nth += 3) {
                const struct run_fetch_hooks h = {.seed = nth,
                                                  .read_delay_us = nth % 2 * 200,
                                                  .fault = fault,
                                                  .nth = nth,
                                                  .reverse = nth == 7};
                struct vkmoe_err err = {0};
                struct rig r;

                rig_open(&r, &ways[w], nth == 4 ? 0 : 3, 5);
                round_trip(&r, 4, &rng);
                run_fetch_set_hooks(&h);
                assert_true(fails(&r, 10, &rng, &err)); /* at least ten reads */
                assert_int_equal(err.status, VKMOE_ERR_IO);
                assert_non_null(strstr(err.message, path));
                assert_non_null(strstr(err.message, "offset "));
                assert_non_null(strstr(err.message, words[fault]));
                assert_in_range(run_fetch_bad_tag(r.f), 1000, 1009);
                run_fetch_set_hooks(NULL);
                for (uint32_t i = 0; i < 2 * SLOTS; i++) { /* what was in hand is unknown: all of it anew */
                    test_ok(gpu_download(r.dev, r.seg[i / SLOTS], i % SLOTS * SLOT, r.want + i * SLOT, SLOT,
                                         &err),
                            &err);
                    test_ok(load(&r, i, &rng, &err), &err);
                }
                test_ok(run_fetch_finish(r.f, &err), &err);
                round_trip(&r, 7, &rng);
                rig_close(&r);
            }
}

static void wrong_files(void **state)
{
    const struct run_fetch_part past = {FILE_BYTES - 10, 11, 0};
    uint64_t rng = test_seed();
    struct vkmoe_err err = {0};
    struct rig r;
    FILE *f;

    (void)state;
    rig_open(&r, &ways[2], 2, 3);
    test_ok(run_fetch_begin(r.f, r.seg[0], 0, &past, 1, 77, &err), &err);
    assert_int_equal(run_fetch_finish(r.f, &err), VKMOE_ERR_IO);
    assert_non_null(strstr(err.message, "passes the end"));
    assert_int_equal(run_fetch_bad_tag(r.f), 77);
    round_trip(&r, 6, &rng);
    test_ok(load(&r, 1, &rng, &err), &err);
    assert_non_null(f = fopen(path, "ab"));
    fputc('x', f);
    fclose(f);
    assert_int_equal(run_fetch_finish(r.f, &err), VKMOE_ERR_IO);
    assert_non_null(strstr(err.message, "changed"));
    assert_int_equal(run_fetch_bad_tag(r.f), UINT32_MAX);
    rig_close(&r);
    write_content();

    rig_open(&r, &ways[0], 4, 8); /* closed with reads in hand */
    const struct run_fetch_hooks h = {.seed = 5, .read_delay_us = 5000};
    run_fetch_set_hooks(&h);
    for (uint32_t i = 0; i < 8; i++)
        test_ok(load(&r, i, &rng, &err), &err);
    rig_close(&r);
}

/* Open, load, look, load again; gives up at the first failure. */
static enum vkmoe_status life(const struct way *w, uint32_t workers, bool *bytes, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t rng = 1;
    struct rig r;

    TRY(rig_try(&r, w, workers, 2, err));
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t k = 0; k < 5; k++)
            TRY(load(&r, k + 10 * i, &rng, err));
        TRY(run_fetch_finish(r.f, err));
        TRY(look(&r, err));
    }
    *bytes = !memcmp(gpu_buffer_map(r.back), r.want, sizeof(r.want));
done:
    if (st == VKMOE_ERR_DEVICE_LOST && r.f) { /* every later call says so */
        struct vkmoe_err again = {0};

        assert_int_equal(load(&r, 0, &rng, &again), VKMOE_ERR_DEVICE_LOST);
        assert_int_equal(run_fetch_finish(r.f, &again), VKMOE_ERR_DEVICE_LOST);
        assert_string_equal(again.message, err->message);
    }
    rig_close(&r);
    return st;
}

static void nth_call_fails(void **state)
{
    static const enum gpu_fault kinds[] = {GPU_FAULT_OUT_OF_MEMORY, GPU_FAULT_DEVICE_LOST, GPU_FAULT_TIMEOUT};
    static const struct way hard[] = {{"-uma,-coherent", false}, {"-uma", true}};
    const long live = cor_alloc_live();

    (void)state;
    for (size_t i = 0; i < COR_COUNT(hard) * COR_COUNT(kinds); i++) {
        const enum gpu_fault kind = kinds[i % 3];
        enum vkmoe_status st = VKMOE_ERR_DEVICE;
        long n = 0;

        while (st != VKMOE_OK) {
            struct vkmoe_err err = {0};
            bool bytes = false;

            gpu_fail_from(++n, kind);
            st = life(&hard[i / 3], 0, &bytes, &err);
            gpu_fail_from(0, kind);
            assert_int_equal(cor_alloc_live(), live);
            assert_true(st == VKMOE_OK ? bytes : err.message[0] != 0);
        }
        assert_true(n > 50);
    }
}

static void nth_allocation_or_read_fails(void **state)
{
    static const struct way hard[] = {{NULL, false}, {"-uma", true}};
    const long live = cor_alloc_live();

    (void)state;
    for (size_t i = 0; i < 2 * COR_COUNT(hard); i++) {
        enum vkmoe_status st = VKMOE_ERR_MEMORY;
        long n = 0;

        while (st != VKMOE_OK) {
            struct vkmoe_err err = {0};
            bool bytes = false;

            (i % 2 ? cor_os_fail_from : cor_alloc_fail_from)(++n);
            st = life(&hard[i / 2], 3, &bytes, &err);
            cor_alloc_fail_from(0);
            cor_os_fail_from(0);
            assert_int_equal(cor_alloc_live(), live);
            assert_true(st == VKMOE_OK ? bytes : err.message[0] != 0);
        }
        assert_true(n > 10);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bytes),
        cmocka_unit_test(counts),
        cmocka_unit_test(overlap),
        cmocka_unit_test(refused_submit),
        cmocka_unit_test(beside_uploads),
        cmocka_unit_test(bad_reads),
        cmocka_unit_test(wrong_files),
        cmocka_unit_test(nth_call_fails),
        cmocka_unit_test(nth_allocation_or_read_fails),
    };

    return cmocka_run_group_tests(tests, open_instance, close_instance);
}
