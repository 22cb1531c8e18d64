/* Sessions when the outside world fails: memory, files and Vulkan calls that fail from the nth one on, lost
 * and hanging devices, files that change or end early, weights that are no numbers. */
#include <math.h>
#include <stdio.h>

#include "core/bits.h"
#include "core/log.h"
#include "support/device.h"
#include "support/fault.h"
#include "support/split.h"

#define N_PROMPT 6

static const struct run_model_params lazy = {.lazy = true};
static const int32_t text[] = {4094, 318, 1200, 75, 2046, 901, 33, 3471, 250, 1999, 640, 88};

static struct device_case base; /* a device without a model */

static int setup(void **state)
{
    (void)state;
    device_open(&base, NULL, &(struct device_params){0});
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    device_close(&base);
    return 0;
}

/* The model at path on the shared device, whose kernels are compiled once. */
static void open_on_base(struct device_case *c, const char *path)
{
    struct vkmoe_err err = {0};

    *c = (struct device_case){.inst = base.inst, .dev = base.dev};
    test_ok(run_model_open(&c->model, base.dev, path, &lazy, NULL, &err), &err);
}

static const char *model_path(void)
{
    return golden_model("emo-nano", MDL_BF16);
}

/* One line that says something. */
static void check_line(const struct vkmoe_err *err)
{
    assert_true(err->message[0]);
    assert_null(strchr(err->message, '\n'));
}

/* ---- the nth request fails
 * ----------------------------------------------------------------------------------- */

struct life {
    struct gpu_device *dev; /* NULL: one of its own, with staging and flushes */
    enum fault fault;
    long used; /* requests up to the last token, 0 unless all went well */
};

/* Opens a model whose experts are loaded on demand, reads a prompt, decodes two tokens, closes everything. */
static enum vkmoe_status live(struct life *l, struct vkmoe_err *err)
{
    const struct gpu_device_params dp = {.caps = "-uma,-coherent", .skip_barrier = -1};
    const struct run_session_params sp = {.n_ctx = 16};
    struct gpu_device *own = NULL;
    struct run_model *m = NULL;
    struct run_session *s = NULL;
    enum vkmoe_status st = VKMOE_OK;

    l->used = 0;
    if (!l->dev)
        TRY(gpu_device_open(&own, base.inst, gpu_device_info(base.dev)->index, &dp, err));
    TRY(run_model_open(&m, own ? own : l->dev, model_path(), &lazy, NULL, err));
    TRY(run_session_create(&s, m, &sp, err));
    TRY(run_session_feed(s, text, N_PROMPT, NULL, NULL, err));
    TRY(run_session_feed(s, text + N_PROMPT, 1, NULL, NULL, err));
    TRY(run_session_feed(s, text + N_PROMPT + 1, 1, NULL, NULL, err));
    l->used = fault_requests(l->fault);
done:
    run_session_destroy(s);
    run_model_close(m);
    gpu_device_close(own);
    return st;
}

static void fail_at(struct life *l, long n)
{
    long blocks = cor_alloc_live(), made;
    struct vkmoe_err err = {0};
    enum vkmoe_status st;

    fault_arm(l->fault, n);
    st = live(l, &err);
    made = l->used;
    fault_arm(l->fault, 0);
    if (st == VKMOE_OK && made < n) /* copies share submits as reads come in: their number differs a little */
        return;
    if (st != fault_status(l->fault))
        fail_msg("%s %ld fails: %s: %s", fault_name(l->fault), n, vkmoe_status_text(st), err.message);
    check_line(&err);
    if (cor_alloc_live() != blocks)
        fail_msg("%s %ld fails: %ld blocks are left", fault_name(l->fault), n, cor_alloc_live() - blocks);
}

/* The first and the last `dense` of total one by one, those between in growing steps. */
static long next_to_fail(long n, long total, long dense, double factor)
{
    long grown = (long)((double)n * factor) + 1, tail = total - dense;

    if (n < dense || n >= tail)
        return n + 1;
    return grown < tail ? grown : tail;
}

static void sweep(enum fault f, struct gpu_device *dev, long dense, double factor)
{
    struct life l = {.dev = dev, .fault = f};
    struct vkmoe_err err = {0};
    long total, rounds = 0, blocks;

    /* A life takes a second on a slow driver, and without a cache of pipelines several: fewer of them. */
    if (device_slow(&base)) {
        dense = !dev ? 2 : dense < 5 ? dense : 5;
        factor = !dev ? 30 : factor > 2.5 ? factor : 2.5;
    }
    cor_log_sink(NULL, NULL);
    if (dev)
        test_ok(live(&l, &err), &err); /* what a device keeps, it has now */
    blocks = cor_alloc_live();
    fault_arm(f, 0);
    test_ok(live(&l, &err), &err);
    assert_int_equal(cor_alloc_live(), blocks);
    total = l.used;
    for (long n = 1; n <= total; n = next_to_fail(n, total, dense, factor), rounds++)
        fail_at(&l, n);
    print_message("%s: %ld of %ld requests failed in turn\n", fault_name(f), rounds, total);
    assert_true(total > 2);
    if (dev)
        test_ok(live(&l, &err), &err); /* it is as good as before */
    assert_int_equal(cor_alloc_live(), blocks);
}

static void test_allocations(void **state)
{
    (void)state;
    sweep(FAULT_ALLOC, base.dev, 20, 1.3);
    sweep(FAULT_ALLOC, NULL, 4, 2);
}

static void test_file_reads(void **state)
{
    (void)state;
    sweep(FAULT_FILE, base.dev, 6, 2);
}

static void test_calls(void **state)
{
    (void)state;
    sweep(FAULT_MEMORY, base.dev, 8, 1.6);
    sweep(FAULT_MEMORY, NULL, 4, 2.2);
}

static void test_lost(void **state)
{
    (void)state;
    sweep(FAULT_LOST, NULL, 4, 3);
}

static void test_timeouts(void **state)
{
    (void)state;
    sweep(FAULT_TIMEOUT, NULL, 3, 4);
}

/* ---- after a failure
 * ----------------------------------------------------------------------------------------- */

static uint64_t logits_hash(const struct run_model *m, const struct run_session *s)
{
    const float *logits = run_session_logits(s);

    assert_non_null(logits);
    return device_hash(logits, m->mdl->config.vocab_size);
}

/* A session that failed says so from then on; another one on the same model goes on, when the device can. */
static void check_latched(enum fault f, long nth, bool device_lives)
{
    const struct run_session_params sp = {.n_ctx = 32};
    struct vkmoe_err err = {0}, again = {0};
    struct device_case c;
    struct run_session *s, *other, *late = NULL;
    uint64_t want;
    enum vkmoe_status st;

    if (device_lives)
        open_on_base(&c, model_path());
    else
        device_open(&c, model_path(), &(struct device_params){.lazy = true});
    cor_log_sink(NULL, NULL);
    s = device_session(&c, &sp);
    other = device_session(&c, &sp);
    device_feed(s, text, N_PROMPT);
    device_feed(s, text + N_PROMPT, 1);
    want = logits_hash(c.model, s);
    run_session_reset(s);
    device_feed(s, text, N_PROMPT);

    fault_arm(f, nth);
    st = run_session_feed(s, text + N_PROMPT, 1, NULL, NULL, &err);
    fault_arm(f, 0);
    assert_int_equal(st, fault_status(f));
    check_line(&err);
    print_message("%s\n", err.message);
    if (!device_lives) { /* the line names device and work */
        assert_non_null(strstr(err.message, gpu_device_info(c.dev)->name));
        assert_true(strstr(err.message, "decode") || strstr(err.message, "publish"));
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(run_session_feed(s, text + N_PROMPT, 1, NULL, NULL, &again), st);
        assert_string_equal(again.message, err.message);
        run_session_reset(s);
    }
    st = run_session_feed(other, text, N_PROMPT, NULL, NULL, &again);
    if (device_lives) {
        test_ok(st, &again);
        device_feed(other, text + N_PROMPT, 1);
        assert_true(logits_hash(c.model, other) == want);
        late = device_session(&c, &sp);
    } else {
        assert_int_equal(st, fault_status(f));
        assert_int_equal(run_session_create(&late, c.model, &sp, &again), fault_status(f));
        assert_null(late);
    }
    run_session_destroy(late);
    run_session_destroy(other);
    run_session_destroy(s);
    if (device_lives)
        run_model_close(c.model);
    else
        device_close(&c);
}

static void test_latched(void **state)
{
    (void)state;
    for (long nth = 1; nth <= 3; nth++) { /* submit, wait, reset of the fence */
        if (nth <= 2)                     /* where they happen */
            check_latched(nth == 1 ? FAULT_LOST : FAULT_TIMEOUT, nth, false);
        check_latched(FAULT_MEMORY, nth, true);
    }
}

/* ---- the model file
 * ------------------------------------------------------------------------------------------ */

/* The model's bytes, and where its tensors are. */
struct copy {
    char *bytes;
    size_t n;
    struct mdl_gguf *gguf;
    char path[4200];
};

static void copy_open(struct copy *c)
{
    struct vkmoe_err err = {0};

    test_ok(cor_file_slurp(model_path(), 1u << 30, &c->bytes, &c->n, &err), &err);
    test_ok(mdl_gguf_open(&c->gguf, model_path(), &err), &err);
    snprintf(c->path, sizeof(c->path), "%s/changed.gguf", test_tmp());
}

static void copy_close(struct copy *c)
{
    mdl_gguf_close(c->gguf);
    cor_free(c->bytes);
}

static void write_bytes(const char *path, const char *mode, const void *bytes, size_t n)
{
    FILE *f = fopen(path, mode);

    assert_non_null(f);
    assert_true(n == 0 || fwrite(bytes, 1, n, f) == n);
    assert_int_equal(fclose(f), 0);
}

static void copy_write(const struct copy *c, size_t n)
{
    remove(c->path); /* a new file: rewriting one waits for the disk */
    write_bytes(c->path, "wb", c->bytes, n);
}

/* Bytes of a tensor in the copy. */
static unsigned char *tensor(const struct copy *c, const char *name, size_t off, size_t n)
{
    const struct mdl_tensor *t = mdl_gguf_tensor(c->gguf, name);

    if (!t || off > t->bytes || n > t->bytes - off)
        fail_msg("%s: no such tensor, or too short", name);
    return (unsigned char *)c->bytes + t->file_off + off;
}

static void put_f32(const struct copy *c, const char *name, size_t first, size_t n, float v)
{
    for (size_t i = first; i < first + n; i++)
        memcpy(tensor(c, name, i * 4, 4), &v, 4);
}

static void put_bf16(const struct copy *c, const char *name, size_t first, size_t n, uint16_t bits)
{
    for (size_t i = first; i < first + n; i++)
        memcpy(tensor(c, name, i * 2, 2), &bits, 2);
}

/* Written to after it was opened, before experts are read from it. */
static void check_change(bool cut)
{
    struct vkmoe_err err = {0};
    struct run_session *s;
    struct device_case c;
    struct copy k;

    copy_open(&k);
    copy_write(&k, k.n);
    open_on_base(&c, k.path);
    s = device_session(&c, &(struct run_session_params){.n_ctx = 16});
    if (cut) /* opening it for writing empties it */
        write_bytes(k.path, "wb", k.bytes, 4096);
    else
        write_bytes(k.path, "ab", "more", 4);
    assert_int_equal(run_session_feed(s, text, N_PROMPT, NULL, NULL, &err), VKMOE_ERR_IO);
    print_message("%s\n", err.message);
    check_line(&err);
    assert_non_null(strstr(err.message, k.path));
    assert_non_null(strstr(err.message, cut ? "shorter" : "changed while in use"));
    run_session_destroy(s);
    run_model_close(c.model);
    copy_close(&k);
}

/* The same of a model in two files, the second of which changes. */
static void check_change_of_part(void)
{
    const char *first = split_copy(model_path(), test_tmp(), "part", 2);
    struct vkmoe_err err = {0};
    struct device_case c;
    struct run_session *s;
    const char *second;

    open_on_base(&c, first);
    second = cor_file_path(c.model->mdl->gguf->files[1]);
    s = device_session(&c, &(struct run_session_params){.n_ctx = 16});
    write_bytes(second, "ab", "more", 4);
    assert_int_equal(run_session_feed(s, text, N_PROMPT, NULL, NULL, &err), VKMOE_ERR_IO);
    check_line(&err);
    assert_non_null(strstr(err.message, second));
    assert_non_null(strstr(err.message, "changed while in use"));
    run_session_destroy(s);
    run_model_close(c.model);
}

static void test_file_changes(void **state)
{
    (void)state;
    check_change(false);
    check_change(true);
    check_change_of_part();
}

static void test_truncated(void **state)
{
    const size_t keep[] = {0, 3, 24, 1000, 100000, 0, 0};
    long blocks;
    struct copy k;

    (void)state;
    copy_open(&k);
    blocks = cor_alloc_live();
    for (size_t i = 0; i < COR_COUNT(keep); i++) {
        size_t n = i == 5 ? k.n / 2 : i == 6 ? k.n - 1 : keep[i];
        struct vkmoe_err err = {0};
        struct run_model *m;

        copy_write(&k, n);
        assert_int_not_equal(run_model_open(&m, base.dev, k.path, NULL, NULL, &err), VKMOE_OK);
        assert_null(m);
        check_line(&err);
        assert_non_null(strstr(err.message, k.path));
        assert_int_equal(cor_alloc_live(), blocks);
    }
    copy_close(&k);
}

/* ---- weights that are no numbers
 * ----------------------------------------------------------------------------- */

/* Every choice is of distinct experts that exist. */
static void check_ids(const struct device_routes *r, uint32_t n_experts)
{
    for (size_t row = 0; row < (size_t)r->n_layers * r->n_tokens; row++) {
        const uint32_t *ids = r->ids + row * r->k;

        for (uint32_t i = 0; i < r->k; i++) {
            assert_true(ids[i] < n_experts);
            for (uint32_t j = 0; j < i; j++)
                assert_int_not_equal(ids[i], ids[j]);
        }
    }
}

enum outcome { FINITE, NON_FINITE, EITHER };

/* Opens the changed copy, feeds the whole text slowly and as usual (prefill and token by token), and expects
 * the same of all: logits, or the one line that there are none. */
static void check_weights(struct copy *k, enum outcome want, const char *what)
{
    const uint32_t n = COR_COUNT(text);
    struct device_case c;

    copy_write(k, k->n);
    open_on_base(&c, k->path);
    for (int mode = 0; mode < 4; mode++) { /* slow prefill, prefill, token by token, best logits */
        struct run_session *s = device_session(
            &c, &(struct run_session_params){.n_ctx = n, .slow = mode == 0, .n_top = mode == 3 ? 5 : 0});
        uint32_t at = mode == 2 ? 0 : n - 1;
        struct vkmoe_err err = {0};
        struct device_routes routes;
        enum vkmoe_status st;
        char line[64];

        snprintf(line, sizeof(line), "non-finite logits at token %u", at);
        device_routes_init(&routes, &c, n);
        if (mode == 0)
            run_session_on_route(s, device_routes_hook, &routes);
        st = run_session_feed(s, text, mode == 2 ? 1 : n, NULL, NULL, &err);
        if ((st == VKMOE_OK && want == NON_FINITE) || (st != VKMOE_OK && want == FINITE))
            fail_msg("%s, mode %d: %s: %s", what, mode, vkmoe_status_text(st), err.message);
        if (st != VKMOE_OK)
            assert_string_equal(err.message, line);
        if (st != VKMOE_OK)
            assert_int_equal(st, VKMOE_ERR_NUMERIC);
        if (mode == 0)
            check_ids(&routes, c.model->mdl->config.n_experts);
        device_routes_free(&routes);
        run_session_destroy(s);
    }
    run_model_close(c.model);
}

/* One change to a fresh copy of the model. */
static void try_weights(enum outcome want, const char *what, const char *name, bool bf16, size_t first,
                        size_t n, float v)
{
    struct copy k;

    copy_open(&k);
    if (bf16)
        put_bf16(&k, name, first, n, (uint16_t)(cor_float_bits(v) >> 16));
    else
        put_f32(&k, name, first, n, v);
    check_weights(&k, want, what);
    copy_close(&k);
}

static void test_nan_norm(void **state)
{
    (void)state;
    try_weights(NON_FINITE, "NaN in the last norm", "output_norm.weight", false, 7, 1, NAN);
}

static void test_router(void **state)
{
    (void)state;
    try_weights(NON_FINITE, "NaN in a router row", "blk.2.ffn_gate_inp.weight", false, 40 * 256, 256, NAN);
    try_weights(NON_FINITE, "NaN in all router rows", "blk.2.ffn_gate_inp.weight", false, 0, 63 * 256, NAN);
    try_weights(EITHER, "infinity in a router row", "blk.5.ffn_gate_inp.weight", false, 3 * 256 + 8, 2,
                INFINITY);
}

static void test_infinite(void **state)
{
    (void)state;
    try_weights(NON_FINITE, "infinity in the head", "output.weight", true, 17 * 256, 1, INFINITY);
    try_weights(NON_FINITE, "infinity in the shared expert", "blk.0.ffn_down_shexp.weight", true, 5, 1,
                -INFINITY);
    try_weights(NON_FINITE, "infinity in all experts", "blk.3.ffn_gate_exps.weight", true, 0, 63 * 64 * 256,
                INFINITY);
}

static void test_subnormal(void **state)
{
    (void)state;
    try_weights(FINITE, "subnormals in a norm", "blk.1.ffn_norm.weight", false, 0, 256, 1e-40f);
    try_weights(FINITE, "subnormals in all experts", "blk.3.ffn_up_exps.weight", true, 0, 63 * 64 * 256,
                5e-39f);
    try_weights(FINITE, "subnormals in an embedding", "token_embd.weight", true, 318 * 256, 256, 1e-40f);
}

struct rows {
    float *logits; /* (n, vocab) */
    uint32_t n, vocab;
};

static bool keep_row(void *user, size_t index, const float *logits)
{
    struct rows *r = user;

    memcpy(r->logits + index * r->vocab, logits, r->vocab * sizeof(float));
    r->n++;
    return true;
}

/* A token whose embedding is NaN spoils the texts that hold it, from where it stands, and nothing else: not
 * earlier rows, not the next text of the session, not another session. */
static void test_nan_embedding(void **state)
{
    const uint32_t n = COR_COUNT(text), at = 8;
    const struct run_session_params sp = {.n_ctx = 64},
                                    f16 = {.n_ctx = 64, .k_type = MDL_F16, .v_type = MDL_F16};
    struct rows clean = {0}, spoilt = {0};
    struct device_case c;
    struct copy k;

    (void)state;
    copy_open(&k);
    put_bf16(&k, "token_embd.weight", (size_t)text[at] * 256, 256, 0x7fc0);
    copy_write(&k, k.n);
    open_on_base(&c, k.path);
    clean.vocab = spoilt.vocab = c.model->mdl->config.vocab_size;
    clean.logits = cor_array((size_t)n * clean.vocab, sizeof(float));
    spoilt.logits = cor_array((size_t)n * clean.vocab, sizeof(float));
    assert_true(clean.logits && spoilt.logits);
    for (int half = 0; half < 2; half++) {
        struct run_session *s = device_session(&c, half ? &f16 : &sp), *fresh;
        struct vkmoe_err err = {0};
        int32_t other[COR_COUNT(text)];
        uint64_t h;

        memcpy(other, text, sizeof(other));
        other[at] = 77;
        clean.n = spoilt.n = 0;
        test_ok(run_session_feed(s, other, n, keep_row, &clean, &err), &err);
        run_session_reset(s);
        assert_int_equal(run_session_feed(s, text, n, keep_row, &spoilt, &err), VKMOE_ERR_NUMERIC);
        assert_string_equal(err.message, "non-finite logits at token 8");
        assert_int_equal(spoilt.n, at);
        assert_memory_equal(spoilt.logits, clean.logits, (size_t)at * clean.vocab * sizeof(float));

        run_session_reset(s); /* stale NaN in the cache and in every activation */
        device_feed(s, other, 3);
        device_feed(s, other + 3, 1);
        device_feed(s, other + 4, 1);
        h = logits_hash(c.model, s);
        fresh = device_session(&c, half ? &f16 : &sp);
        device_feed(fresh, other, 3);
        device_feed(fresh, other + 3, 1);
        device_feed(fresh, other + 4, 1);
        assert_true(logits_hash(c.model, fresh) == h);
        run_session_destroy(fresh);
        run_session_destroy(s);
    }
    cor_free(clean.logits);
    cor_free(spoilt.logits);
    run_model_close(c.model);
    copy_close(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_allocations),   cmocka_unit_test(test_file_reads),
        cmocka_unit_test(test_calls),         cmocka_unit_test(test_lost),
        cmocka_unit_test(test_timeouts),      cmocka_unit_test(test_latched),
        cmocka_unit_test(test_file_changes),  cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_nan_norm),      cmocka_unit_test(test_router),
        cmocka_unit_test(test_infinite),      cmocka_unit_test(test_subnormal),
        cmocka_unit_test(test_nan_embedding),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
