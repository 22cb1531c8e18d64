/* Route traces: what is written is read again, whatever the order of chunks; nothing in a file is trusted. */
#include <math.h>
#include <stdio.h>

#include "core/bits.h"
#include "experts/trace.h"
#include "shared/step.h"
#include "support/test.h"

enum { LAYERS = 3, EXPERTS = 20, USED = 4, TOKENS = 40 };

static const struct xp_trace_info info = {"nano \"x\"\n", LAYERS, EXPERTS, USED, 4096, true};
static uint32_t routes[TOKENS][LAYERS][USED][2];

static void make_routes(void)
{
    uint64_t rng = test_seed();

    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t j = 0; j < USED; j++) {
                bool none = (t + l) % 7 == 0 && j == USED - 1;

                routes[t][l][j][0] = none ? NONE : ((uint32_t)(test_rand(&rng) % 5) + 5 * j + t) % EXPERTS;
                routes[t][l][j][1] = none ? 0 : cor_float_bits((float)test_rand_unit(&rng));
            }
}

/* A name in one directory, in a ring of buffers. */
static const char *file(const char *name)
{
    static char ring[4][512];
    static const char *dir;
    static int at;
    char *path = ring[at++ % 4];

    if (!dir)
        dir = test_tmp();
    snprintf(path, sizeof(ring[0]), "%s/%s", dir, name);
    return path;
}

static struct xp_trace_writer *create(const char *path)
{
    struct vkmoe_err err = {0};
    struct xp_trace_writer *w;

    test_ok(xp_trace_create(&w, path, &info, &err), &err);
    return w;
}

/* Tokens [first, first + n) of the routes at position pos, one layer. */
static void add(struct xp_trace_writer *w, uint32_t layer, uint32_t first, uint32_t n, uint32_t pos)
{
    uint32_t sel[TOKENS][USED][2];

    for (uint32_t t = 0; t < n; t++)
        memcpy(sel[t], routes[first + t][layer], sizeof(sel[t]));
    xp_trace_add(w, layer, pos, n, &sel[0][0][0]);
}

static void check(const struct xp_trace *t, size_t at, uint32_t first, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t l = 0; l < LAYERS; l++)
            assert_memory_equal(xp_trace_sel(t, at + i, l), routes[first + i][l], sizeof(routes[0][0]));
}

/* Chunks one after the other, single tokens, layers outside and chunks inside, a text cut off and begun
 * again. */
static void test_round_trip(void **state)
{
    const char *path = file("round.jsonl");
    struct xp_trace_writer *w = create(path);
    struct vkmoe_err err = {0};
    struct xp_trace t;

    (void)state;
    for (uint32_t l = 0; l < LAYERS; l++)
        add(w, l, 0, 10, 0);
    assert_int_equal(xp_trace_tokens(w), 10);
    for (uint32_t i = 10; i < 13; i++)
        for (uint32_t l = 0; l < LAYERS; l++)
            add(w, l, i, 1, i);
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t i = 13; i < 25; i += 4)
            add(w, l, i, 4, i);
    add(w, 0, 30, 5, 25); /* never complete */
    add(w, 1, 30, 5, 25);
    for (uint32_t l = 0; l < LAYERS; l++) /* begins again */
        add(w, l, 25, 5, 25);
    add(w, 0, 1, 5, 30); /* never complete */
    for (uint32_t l = 0; l < LAYERS; l++)
        add(w, l, 30, 10, 0);
    add(w, 0, 0, 2, 10);
    assert_int_equal(xp_trace_tokens(w), 40);
    test_ok(xp_trace_commit(w, &err), &err);

    test_ok(xp_trace_read(&t, path, &err), &err);
    assert_int_equal(t.n_tokens, 40);
    assert_int_equal(t.n_streams, 2);
    assert_int_equal(t.first[1], 30);
    assert_int_equal(t.first[2], 40);
    assert_int_equal(t.pos[29], 29);
    assert_int_equal(t.pos[39], 9);
    assert_string_equal(t.info.model, info.model);
    assert_int_equal(t.info.expert_bytes, 4096);
    assert_true(t.info.weights);
    check(&t, 0, 0, 40);
    xp_trace_free(&t);
    xp_trace_free(&t);
}

static void test_writer_failures(void **state)
{
    const char *path = file("failing.jsonl");
    struct xp_trace_writer *w = create(path);
    long live = cor_alloc_live(), requests;
    struct vkmoe_err err;

    (void)state;
    add(w, 0, 0, 4, 0);
    add(w, 2, 0, 4, 0); /* layer 1 is left out */
    add(w, 1, 0, 4, 0);
    assert_int_equal(xp_trace_commit(w, &err), VKMOE_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "out of order"));
    assert_false(cor_path_exists(path));
    live = cor_alloc_live();
    for (int kind = 0; kind < 2; kind++) {
        remove(path);
        for (long nth = 1;; nth++) {
            void (*fail_from)(long) = kind ? cor_os_fail_from : cor_alloc_fail_from;
            enum vkmoe_status st;

            fail_from(nth);
            st = xp_trace_create(&w, path, &info, &err);
            for (uint32_t l = 0; st == VKMOE_OK && l < LAYERS; l++)
                add(w, l, 0, TOKENS, 0);
            if (st == VKMOE_OK)
                st = xp_trace_commit(w, &err);
            requests = kind ? cor_os_requests() : cor_alloc_requests();
            fail_from(0);
            assert_int_equal(cor_alloc_live(), live);
            assert_true(st == VKMOE_OK ? requests < nth : requests >= nth);
            assert_true(cor_path_exists(path) == (st == VKMOE_OK));
            if (st == VKMOE_OK)
                break;
            assert_true(err.message[0]);
        }
    }
}

/* ---- reading
 * ------------------------------------------------------------------------------------------------- */

#define HEAD                                                                                          \
    "{\"format\":\"vkmoe-route-trace\",\"version\":1,\"model\":\"m\",\"n_layers\":2,\"n_experts\":9," \
    "\"n_used\":2,\"expert_bytes\":0,\"weights\":false}\n"
#define WEIGHTED                                                                                      \
    "{\"format\":\"vkmoe-route-trace\",\"version\":1,\"model\":\"m\",\"n_layers\":1,\"n_experts\":9," \
    "\"n_used\":2,\"expert_bytes\":0,\"weights\":true}\n"

static enum vkmoe_status read_text(struct xp_trace *t, const char *text, size_t n, struct vkmoe_err *err)
{
    const char *path = file("in.jsonl");

    test_write(path, text, n);
    return xp_trace_read(t, path, err);
}

static void test_bad_files(void **state)
{
    static const struct {
        const char *text, *word;
    } bad[] = {
        {"", "empty"},
        {"\n", "line 1: not JSON"},
        {"{}\n", "format"},
        {"[1]\n", "line 1: not a JSON object"},
        {HEAD "{\"pos\":0,\"experts\":[[1],[2]]}", "line 2: ends inside a line"},
        {"{\"format\":\"vkmoe-route-trace\",\"version\":2}\n", "version"},
        {"{\"format\":\"vkmoe-route-trace\",\"version\":1,\"n_layers\":0}\n", "n_layers"},
        {"{\"format\":\"vkmoe-route-trace\",\"version\":1,\"n_layers\":1025}\n", "n_layers"},
        {"{\"format\":\"vkmoe-route-trace\",\"version\":1,\"n_layers\":1,\"n_experts\":513}\n", "n_experts"},
        {"{\"format\":\"vkmoe-route-trace\",\"version\":1,\"n_layers\":1,\"n_experts\":4,\"n_used\":5}\n",
         "n_used"},
        {HEAD "{\"experts\":[[1],[2]]}\n", "'pos'"},
        {HEAD "{\"pos\":-1,\"experts\":[[1],[2]]}\n", "'pos'"},
        {HEAD "{\"pos\":0,\"pos\":0,\"experts\":[[1],[2]]}\n", "twice"},
        {HEAD "{\"pos\":0,\"experts\":[[1],[2]]}\n{\"pos\":2,\"experts\":[[1],[2]]}\n", "line 3: position 2"},
        {HEAD "{\"pos\":0,\"experts\":[[1]]}\n", "2 layers"},
        {HEAD "{\"pos\":0,\"experts\":[[1],[2],[3]]}\n", "2 layers"},
        {HEAD "{\"pos\":0,\"experts\":[[1],2]}\n", "layer 1: not an array"},
        {HEAD "{\"pos\":0,\"experts\":[[],[2]]}\n", "layer 0: 0 entries"},
        {HEAD "{\"pos\":0,\"experts\":[[1,2,3],[2]]}\n", "layer 0: 3 entries"},
        {HEAD "{\"pos\":0,\"experts\":[[1],[9]]}\n", "not an expert of 9"},
        {HEAD "{\"pos\":0,\"experts\":[[1],[0.5]]}\n", "not an expert"},
        {HEAD "{\"pos\":0,\"experts\":[[1],[4,4]]}\n", "expert 4 is named twice"},
        {HEAD "{\"pos\":0,\"experts\":[[1],[null]]}\n", "not an expert"},
        {WEIGHTED "{\"pos\":0,\"experts\":[[1]]}\n", "'weights'"},
        {WEIGHTED "{\"pos\":0,\"experts\":[[1]],\"weights\":[[1,2]]}\n", "2 weights of 1"},
        {WEIGHTED "{\"pos\":0,\"experts\":[[1]],\"weights\":[[-1]]}\n", "not a weight"},
        {WEIGHTED "{\"pos\":0,\"experts\":[[1]],\"weights\":[[1e99]]}\n", "not a weight"},
        {WEIGHTED "{\"pos\":0,\"experts\":[[1]],\"weights\":[[\"x\"]]}\n", "not a weight"},
    };
    struct vkmoe_err err;
    struct xp_trace t;

    (void)state;
    for (size_t i = 0; i < COR_COUNT(bad); i++) {
        assert_int_equal(read_text(&t, bad[i].text, strlen(bad[i].text), &err), VKMOE_ERR_FORMAT);
        if (!strstr(err.message, bad[i].word) || !strstr(err.message, "in.jsonl"))
            fail_msg("'%s' does not name '%s'", err.message, bad[i].word);
        assert_null(t.sel);
    }
    assert_int_equal(xp_trace_read(&t, file("absent.jsonl"), &err), VKMOE_ERR_IO);
    test_ok(read_text(&t, HEAD, strlen(HEAD), &err), &err);
    assert_int_equal(t.n_tokens + t.n_streams, 0);
    xp_trace_free(&t);
}

/* Whatever is accepted is in range. */
static void check_range(const struct xp_trace *t)
{
    for (size_t i = 0; i < t->n_tokens; i++)
        for (uint32_t l = 0; l < t->info.n_layers; l++)
            for (uint32_t j = 0; j < t->info.n_used; j++) {
                const uint32_t *pair = xp_trace_sel(t, i, l) + 2 * j;

                assert_true(pair[0] == NONE ? j > 0 : pair[0] < t->info.n_experts);
                assert_true(cor_float_from_bits(pair[1]) >= 0 && isfinite(cor_float_from_bits(pair[1])));
            }
}

static void test_damaged(void **state)
{
    char path[512];
    struct xp_trace_writer *w;
    struct vkmoe_err err = {0};
    uint64_t rng = test_seed();
    struct xp_trace t;
    char *text;
    size_t n, refused = 0;
    long live;

    (void)state;
    snprintf(path, sizeof(path), "%s", file("whole.jsonl"));
    w = create(path);
    for (uint32_t l = 0; l < LAYERS; l++)
        add(w, l, 0, 5, 0);
    test_ok(xp_trace_commit(w, &err), &err);
    test_ok(cor_file_slurp(path, 1 << 20, &text, &n, &err), &err);
    live = cor_alloc_live();
    for (size_t i = 0; i < n; i++) { /* prefixes are whole only at the end of a line */
        bool whole = i && text[i - 1] == '\n';

        assert_int_equal(read_text(&t, text, i, &err), whole ? VKMOE_OK : VKMOE_ERR_FORMAT);
        xp_trace_free(&t);
        assert_int_equal(cor_alloc_live(), live);
    }
    for (int i = 0; i < 2000; i++) {
        size_t at = (size_t)(test_rand(&rng) % n);
        int bit = 1 << (test_rand(&rng) % 8);

        text[at] = (char)(text[at] ^ bit);
        if (read_text(&t, text, n, &err) == VKMOE_OK)
            check_range(&t);
        else
            refused++;
        xp_trace_free(&t);
        assert_int_equal(cor_alloc_live(), live);
        text[at] = (char)(text[at] ^ bit);
    }
    assert_true(refused > 500);
    for (long nth = 1;; nth++) {
        enum vkmoe_status st;

        cor_alloc_fail_from(nth);
        st = xp_trace_read(&t, path, &err);
        cor_alloc_fail_from(0);
        xp_trace_free(&t);
        assert_int_equal(cor_alloc_live(), live);
        if (st == VKMOE_OK)
            break;
        assert_int_equal(st, VKMOE_ERR_MEMORY);
    }
    cor_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_writer_failures),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_damaged),
    };

    make_routes();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
