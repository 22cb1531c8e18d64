/* Memory and budgets of an expert pool: the nth allocation or Vulkan call fails while it evicts or changes
 * its size, the device's free memory shrinks and grows, the model file changes. Bits stay those of full
 * residency, bytes stay within what is free, failures are one line and leave a pool that the next session can
 * use. */
#include <stdio.h>

#include "core/log.h"
#include "run/tags.h"
#include "support/fault.h"
#include "support/hazard.h"

#define MIB (1u << 20)

static struct hazard_text text;

static int setup(void **state)
{
    (void)state;
    hazard_setup();
    hazard_text_make(&text, test_seed(), NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    hazard_text_free(&text);
    hazard_teardown();
    return 0;
}

/* ---- the nth request fails
 * ----------------------------------------------------------------------------------- */

/* A session made and used with failures from the nth request on; *used: requests, when all went well. */
static enum vkmoe_status live(struct device_case *c, enum fault f, long nth, long *used)
{
    const struct run_session_params sp = {.n_ctx = HAZARD_TOKENS};
    struct run_session *s = NULL;
    struct vkmoe_err err = {0};
    enum vkmoe_status st;
    uint32_t fed;

    *used = 0;
    fault_arm(f, nth);
    st = run_session_create(&s, c->model, &sp, &err);
    if (st == VKMOE_OK)
        st = hazard_read(s, &text, &fed, &err);
    if (st == VKMOE_OK)
        *used = fault_requests(f);
    fault_arm(f, 0);
    if (st != VKMOE_OK && (st != fault_status(f) || !err.message[0] || strchr(err.message, '\n')))
        fail_msg("request %ld fails: %s: \"%s\"", nth, vkmoe_status_text(st), err.message);
    if (st != VKMOE_OK && s)
        hazard_latched(s, &text, &err);
    if (st != VKMOE_OK && f <= FAULT_MEMORY) /* the broken session may have work in flight */
        test_ok(run_tags_check(&c->model->pool, NULL, 0, &err), &err);
    run_session_destroy(s);
    return st;
}

/* A device that goes on: one model for all rounds. */
static void sweep(enum fault f, const char *caps, uint32_t rounds)
{
    struct device_case c;
    long total, used, failed = 0;

    hazard_open(&c, &(struct hazard_params){.caps = caps});
    hazard_sound(&c, &text);
    assert_int_equal(live(&c, f, 0, &total), VKMOE_OK);
    assert_true(total > 10);
    for (uint32_t i = 0; i < rounds; i++) {
        long nth = i < 2 ? 1 + (long)i : (long)((double)total * (i - 1) / rounds) + (long)i;

        failed += live(&c, f, nth, &used) != VKMOE_OK;
        if (i % 3 == 2)
            hazard_sound(&c, &text);
    }
    hazard_sound(&c, &text);
    print_message("%s: %ld of %u rounds failed, of %ld requests\n", caps ? caps : "-", failed, rounds, total);
    assert_true(failed > (long)rounds / 2);
    hazard_close(&c);
}

static void test_requests(void **state)
{
    (void)state;
    sweep(FAULT_ALLOC, "range=1M,-uma", 9);
    sweep(FAULT_MEMORY, "range=1M,-uma", hazard_slow_driver() ? 9 : 18);
    if (!hazard_slow_driver())
        sweep(FAULT_MEMORY, NULL, 9);
}

/* A device that is dead afterwards, in mid-text. */
static void die(enum fault f, long nth)
{
    const struct hazard_params p = {.caps = "range=1M,-uma"};
    struct device_case c;
    struct run_session *s, *other, *late;
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;

    hazard_device(&c, &p);
    hazard_load(&c, &p);
    s = hazard_session(&c, &text, false);
    other = hazard_session(&c, &text, false);
    test_ok(hazard_feed(s, &text, 0, &err), &err);
    fault_arm(f, nth);
    for (uint32_t i = 1; i <= HAZARD_DECODE && st == VKMOE_OK; i++)
        st = hazard_feed(s, &text, i, &err);
    fault_arm(f, 0);
    assert_int_equal(st, fault_status(f));
    assert_non_null(strstr(err.message, gpu_device_info(c.dev)->name));
    hazard_latched(s, &text, &err);
    assert_int_equal(hazard_feed(other, &text, 0, &err), fault_status(f));
    assert_int_equal(run_session_create(&late, c.model, &(struct run_session_params){.n_ctx = 4}, &err),
                     fault_status(f));
    assert_int_equal(run_pool_resize(&c.model->pool, run_pool_bytes(&c.model->pool) + MIB, &err),
                     fault_status(f));
    run_session_destroy(other);
    run_session_destroy(s);
    device_close(&c);
}

static void test_dead(void **state)
{
    (void)state;
    die(FAULT_TIMEOUT, 14);
    if (hazard_slow_driver())
        return;
    die(FAULT_LOST, 5);
    die(FAULT_LOST, 33);
}

/* ---- size
 * ---------------------------------------------------------------------------------------------------- */

static uint64_t others(const struct device_case *c)
{
    return gpu_device_bytes(c->dev) - run_pool_purposes(&c->model->pool).slots;
}

/* What the pool says of itself is what the device holds. */
static void check_pool(const struct device_case *c, uint64_t rest)
{
    const struct run_pool *p = &c->model->pool;
    uint64_t sum = 0;

    for (uint32_t i = 0; i < p->n_segs; i++) {
        assert_true(gpu_buffer_bytes(p->segs[i]) >= (uint64_t)run_pool_seg_slots(p, i) * p->slot_bytes);
        sum += run_pool_seg_slots(p, i);
    }
    assert_int_equal(sum, p->n_slots);
    assert_int_equal(run_slots_count(p->slots), p->n_slots);
    assert_int_equal(others(c), rest);
}

static void test_resize_fails(void **state)
{
    static const uint32_t percents[] = {30, 60, 8, 70, 20, 50};
    struct device_case c;
    struct run_session *s;
    struct vkmoe_err err = {0};
    uint64_t rest, least, most;
    uint32_t failed = 0;

    (void)state;
    hazard_open(&c, &(struct hazard_params){.caps = "range=1M,-uma", .percent = 50});
    if (!c.model->pool.array) {
        hazard_close(&c);
        test_skip_listed("the device has too few bindings for a segment array of this size");
        return;
    }
    s = hazard_session(&c, &text, false);
    rest = others(&c);
    least = run_pool_floor_bytes(&c.model->pool);
    most = run_pool_load_bytes(&c.model->pool, NULL, 0);
    for (uint32_t i = 0; i < 2 * COR_COUNT(percents); i++) {
        const uint64_t budget = least + (most - least) * percents[i % COR_COUNT(percents)] / 100;
        const enum fault f = i % 2 ? FAULT_ALLOC : FAULT_MEMORY;
        enum vkmoe_status st;

        fault_arm(f, 1 + (long)i * 3 / 2);
        st = run_pool_resize(&c.model->pool, budget, &err);
        fault_arm(f, 0);
        if (st != VKMOE_OK) {
            failed++;
            assert_int_equal(st, VKMOE_ERR_MEMORY);
            assert_true(err.message[0] && !strchr(err.message, '\n'));
        } else {
            assert_true(run_pool_bytes(&c.model->pool) <= budget);
        }
        check_pool(&c, rest);
        test_ok(run_tags_check(&c.model->pool, NULL, 0, &err), &err);
        test_ok(hazard_feed(s, &text, i % (1 + HAZARD_DECODE), &err), &err);
        if (i % (1 + HAZARD_DECODE) == HAZARD_DECODE)
            run_session_reset(s);
    }
    print_message("%u changes of size failed\n", failed);
    assert_true(failed > 3);
    run_session_destroy(s);
    hazard_close(&c);
}

struct weather { /* what the device tells of its memory */
    struct gpu_device *dev;
    uint64_t budget, others;
};

static void tell_budget(void *user, uint64_t *budget, uint64_t *usage)
{
    const struct weather *w = user;

    *budget = w->budget;
    *usage = gpu_device_bytes(w->dev) + w->others;
}

/* Other programs take memory and give it back: segments follow, one poll per feed. */
static void test_weather(void **state)
{
    const struct hazard_params p = {.caps = "heap=32M,range=1M,-uma", .automatic = true};
    struct device_case c;
    struct run_session *s;
    struct run_pool *pool;
    struct weather w = {.budget = 32 * MIB};
    struct vkmoe_err err = {0};
    uint32_t smallest = UINT32_MAX, largest = 0, generation, n;
    bool least = false; /* it gave all that it can */

    (void)state;
    hazard_device(&c, &p);
    w.dev = c.dev;
    gpu_device_set_budget(c.dev, tell_budget, &w);
    hazard_load(&c, &p);
    pool = &c.model->pool;
    if (!pool->array) {
        device_close(&c);
        test_skip_listed("the device has too few bindings for a segment array of this size");
        return;
    }
    s = hazard_session(&c, &text, false);
    generation = pool->generation;
    n = hazard_slow_driver() ? 12 : 40;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t feed = i % (1 + HAZARD_DECODE);

        w.others = i < n / 2 ? (uint64_t)i * 24 * MIB / (n / 2) : 0; /* rises, then is gone */
        c.model->last_poll_ns = 0;
        if (!feed)
            run_session_reset(s);
        test_ok(hazard_feed(s, &text, feed, &err), &err);
        smallest = pool->n_slots < smallest ? pool->n_slots : smallest;
        largest = pool->n_slots > largest ? pool->n_slots : largest;
        if (run_pool_bytes(pool) == run_pool_least_bytes(pool))
            least = true;
        else
            assert_true(gpu_device_bytes(c.dev) + w.others <= w.budget);
        check_pool(&c, others(&c));
    }
    print_message("%u to %u slots in segments of %u, %u changes\n", smallest, largest, pool->slots_per_seg,
                  pool->generation - generation);
    assert_true(least && largest > 2 * smallest);
    assert_true(pool->n_slots > smallest + 2 * pool->slots_per_seg); /* it came back */
    run_session_destroy(s);
    device_close(&c);
}

/* The pool may grow and cannot: that is no failure of the feed. */
static void test_cannot_grow(void **state)
{
    struct hazard_params p = {.caps = "range=2M,-uma", .percent = 1};
    struct device_case c;
    struct run_session *s;
    struct vkmoe_err err = {0};

    (void)state;
    hazard_open(&c, &p); /* one whose last segment is not whole and cannot be done without */
    while (c.model->pool.n_slots % c.model->pool.slots_per_seg == 0 ||
           run_pool_least_bytes(&c.model->pool) < run_pool_bytes(&c.model->pool)) {
        hazard_close(&c);
        assert_true(++p.percent < 20);
        hazard_open(&c, &p);
    }
    s = hazard_session(&c, &text, false);
    test_ok(hazard_feed(s, &text, 0, &err), &err);
    print_message("%u slots in segments of %u\n", c.model->pool.n_slots, c.model->pool.slots_per_seg);
    c.model->auto_budget = true; /* a pool at its floor, and plenty of memory */
    for (uint32_t i = 1; i <= HAZARD_DECODE; i++) {
        c.model->last_poll_ns = 0;
        c.model->grow_failed = false;
        fault_arm(FAULT_ALLOC, i == 1 ? 1 : 0); /* a token allocates nothing, a segment does */
        test_ok(run_model_poll(c.model, &err), &err);
        fault_arm(FAULT_ALLOC, 0);
        test_ok(hazard_feed(s, &text, i, &err), &err);
    }
    assert_true(!c.model->pool.array || c.model->pool.generation > 0);
    run_session_destroy(s);
    hazard_close(&c);
}

/* ---- the model file
 * ------------------------------------------------------------------------------------------ */

enum change { APPENDED, CUT, REPLACED, CHANGES };

static void write_bytes(const char *path, const char *mode, const void *bytes, size_t n)
{
    FILE *f = fopen(path, mode);

    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* While experts come and go. */
static void change_file(enum change how, const char *bytes, size_t n)
{
    char path[1200], other[1210];
    struct device_case c;
    struct run_session *s;
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;

    snprintf(path, sizeof(path), "%s/model.gguf", test_tmp());
    snprintf(other, sizeof(other), "%s.new", path);
    remove(path);
    write_bytes(path, "wb", bytes, n);
    hazard_open(&c, &(struct hazard_params){.path = path});
    s = hazard_session(&c, &text, false);
    test_ok(hazard_feed(s, &text, 0, &err), &err);
    test_ok(hazard_feed(s, &text, 1, &err), &err);
    if (how == APPENDED)
        write_bytes(path, "ab", "more", 4);
    else if (how == CUT)
        write_bytes(path, "wb", bytes, 4096);
    else { /* by another file of the same name: what is open stays what it was */
        write_bytes(other, "wb", bytes, 4096);
        assert_int_equal(rename(other, path), 0);
    }
    for (uint32_t i = 2; i <= HAZARD_DECODE && st == VKMOE_OK; i++)
        st = hazard_feed(s, &text, i, &err);
    if (how == REPLACED) {
        test_ok(st, &err);
    } else {
        assert_int_equal(st, VKMOE_ERR_IO);
        assert_non_null(strstr(err.message, path));
        assert_non_null(strstr(err.message, how == CUT ? "shorter" : "changed while in use"));
        hazard_latched(s, &text, &err);
    }
    run_session_destroy(s);
    hazard_close(&c);
    remove(path);
}

static void test_file(void **state)
{
    struct vkmoe_err err = {0};
    char *bytes;
    size_t n;

    (void)state;
    test_ok(cor_file_slurp(golden_model("emo-nano", MDL_BF16), 1u << 30, &bytes, &n, &err), &err);
    for (enum change how = 0; how < CHANGES; how++)
        change_file(how, bytes, n);
    cor_free(bytes);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests),     cmocka_unit_test(test_dead),
        cmocka_unit_test(test_resize_fails), cmocka_unit_test(test_weather),
        cmocka_unit_test(test_cannot_grow),  cmocka_unit_test(test_file),
    };

    if (argc > 1) /* a part of them, by name */
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, setup, teardown);
}
