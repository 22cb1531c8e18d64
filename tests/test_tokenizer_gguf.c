/* The tokenizer keys of a GGUF file: the same ids as from tokenizer.json, and one line for every key that is
 * wrong. */
#include "support/test.h"

#include <stdio.h>

#include "model/gguf.h"
#include "model/tokenizer.h"

static struct vkmoe_err err;
static char path[4096];
static struct mdl_tokenizer_json *owner;
static struct mdl_tokenizer_spec nano;
static struct mdl_str tokens[4096], merges[4096];
static int32_t kinds[4096];

/* What a test changes in the file; NULL or 0: as usual, "-": the key is left out. */
struct keys {
    const char *model, *pre;
    uint32_t n_tokens, n_kinds, eos;
    bool no_kinds, no_merges, merges_are_numbers, no_eos;
    struct mdl_str token_300;
    int32_t kind_300;
};

static struct mdl_str str(const char *s)
{
    return (struct mdl_str){s, strlen(s)};
}

static int load_nano(void **state)
{
    (void)state;
    snprintf(path, sizeof(path), "%s/t.gguf", test_tmp());
    test_ok(mdl_tokenizer_json_load(&owner, &nano, test_source("tests/golden/emo-nano/tokenizer.json"), 4096,
                                    4094, &err),
            &err);
    for (uint32_t i = 0; i < nano.n_tokens; i++) {
        tokens[i] = str(nano.text[i]);
        kinds[i] = nano.kind[i];
    }
    for (uint32_t i = 0; i < nano.n_merges; i++)
        merges[i] = str(nano.merges[i]);
    return 0;
}

static int free_nano(void **state)
{
    (void)state;
    mdl_tokenizer_json_free(owner);
    assert_int_equal(cor_alloc_live(), 0);
    return 0;
}

static void put_name(struct mdl_gguf_writer *w, const char *key, const char *value)
{
    if (strcmp(value, "-"))
        test_ok(mdl_gguf_put_str(w, key, value, strlen(value), &err), &err);
}

static void write_file(const struct keys *k)
{
    struct mdl_gguf_writer *w;
    struct mdl_str token = tokens[300];
    int32_t kind = kinds[300];

    if (k->token_300.p)
        tokens[300] = k->token_300;
    if (k->kind_300)
        kinds[300] = k->kind_300;
    test_ok(mdl_gguf_create(&w, path, &err), &err);
    put_name(w, "tokenizer.ggml.model", k->model ? k->model : "gpt2");
    put_name(w, "tokenizer.ggml.pre", k->pre ? k->pre : "dbrx");
    test_ok(mdl_gguf_put_array(w, "tokenizer.ggml.tokens", MDL_GGUF_STRING, tokens,
                               k->n_tokens ? k->n_tokens : 4096, &err),
            &err);
    if (!k->no_kinds)
        test_ok(mdl_gguf_put_array(w, "tokenizer.ggml.token_type", MDL_GGUF_I32, kinds,
                                   k->n_kinds ? k->n_kinds : 4096, &err),
                &err);
    if (!k->no_merges)
        test_ok(mdl_gguf_put_array(w, "tokenizer.ggml.merges",
                                   k->merges_are_numbers ? MDL_GGUF_I32 : MDL_GGUF_STRING,
                                   k->merges_are_numbers ? (const void *)kinds : merges, nano.n_merges, &err),
                &err);
    if (!k->no_eos)
        test_ok(mdl_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", k->eos ? k->eos : 4094, &err), &err);
    test_ok(mdl_gguf_commit(w, &err), &err);
    tokens[300] = token;
    kinds[300] = kind;
}

static void expect_bad(const struct keys *k, enum vkmoe_status want, const char *words)
{
    struct mdl_gguf *g;
    struct mdl_tokenizer *t;

    write_file(k);
    test_ok(mdl_gguf_open(&g, path, &err), &err);
    assert_int_equal(mdl_tokenizer_from_gguf(&t, g, &err), want);
    assert_null(t);
    if (!strstr(err.message, words) || strncmp(err.message, path, strlen(path)))
        fail_msg("\"%s\" lacks \"%s\"", err.message, words);
    mdl_gguf_close(g);
}

static void same_ids(void **state)
{
    struct mdl_gguf *g;
    struct mdl_tokenizer *a, *b;
    int32_t *ia, *ib;
    size_t n, na, nb;
    char *text;

    (void)state;
    write_file(&(struct keys){0});
    test_ok(mdl_gguf_open(&g, path, &err), &err);
    test_ok(mdl_tokenizer_from_gguf(&a, g, &err), &err);
    mdl_gguf_close(g);
    test_ok(mdl_tokenizer_create(&b, &nano, &err), &err);
    test_ok(cor_file_slurp(test_source("tests/golden/data/python.calibration.txt"), 1 << 20, &text, &n, &err),
            &err);
    test_ok(mdl_encode(a, text, n, true, &ia, &na, &err), &err);
    test_ok(mdl_encode(b, text, n, true, &ib, &nb, &err), &err);
    assert_int_equal(na, nb);
    assert_memory_equal(ia, ib, na * sizeof(*ia));
    assert_int_equal(mdl_token_eos(a), 4094);
    assert_int_equal(mdl_tokenizer_size(a), 4096);
    assert_string_equal(mdl_tokenizer_pre(a), "dbrx");
    cor_free(ia);
    cor_free(ib);
    cor_free(text);
    mdl_tokenizer_close(a);
    mdl_tokenizer_close(b);

    write_file(&(struct keys){.no_eos = true});
    test_ok(mdl_gguf_open(&g, path, &err), &err);
    test_ok(mdl_tokenizer_from_gguf(&a, g, &err), &err);
    assert_int_equal(mdl_token_eos(a), -1);
    mdl_tokenizer_close(a);
    mdl_gguf_close(g);
}

static void refused(void **state)
{
    const enum vkmoe_status format = VKMOE_ERR_FORMAT, unknown = VKMOE_ERR_UNSUPPORTED;

    (void)state;
    expect_bad(&(struct keys){.model = "bert"}, unknown, "unknown tokenizer \"bert\"");
    expect_bad(&(struct keys){.model = "llama"}, format, "tokenizer.ggml.scores is missing");
    expect_bad(&(struct keys){.model = "-"}, format, "tokenizer.ggml.model");
    expect_bad(&(struct keys){.pre = "olmo0"}, unknown, "unknown pre-tokenizer \"olmo0\"");
    expect_bad(&(struct keys){.pre = "-"}, format, "tokenizer.ggml.pre");
    expect_bad(
        &(struct keys){.pre =
                           "a name that is longer than any pre-tokenizer could possibly be named by anyone"},
        unknown, "tokenizer.ggml.pre");
    expect_bad(&(struct keys){.n_kinds = 4095}, format, "4096 tokens but 4095 token types");
    expect_bad(&(struct keys){.n_tokens = 4095}, format, "4095 tokens but 4096 token types");
    expect_bad(&(struct keys){.no_kinds = true}, format, "tokenizer.ggml.token_type is missing");
    expect_bad(&(struct keys){.no_merges = true}, format, "tokenizer.ggml.merges is missing");
    expect_bad(&(struct keys){.merges_are_numbers = true}, format,
               "tokenizer.ggml.merges is not an array of strings");
    expect_bad(&(struct keys){.eos = 4096}, format, "end token 4096");
    expect_bad(&(struct keys){.eos = UINT32_MAX}, format, "end token 4294967295");
    expect_bad(&(struct keys){.token_300 = {"a\0b", 3}}, format, "NUL");
    expect_bad(&(struct keys){.token_300 = {"", 0}}, format, "token 300 has no bytes");
    expect_bad(&(struct keys){.kind_300 = 6}, format, "token 300 has unknown type 6");
    expect_bad(&(struct keys){.kind_300 = -1}, format, "token 300 has unknown type 255");
}

static void every_allocation_fails(void **state)
{
    long failed = 0;
    struct mdl_gguf *g;

    (void)state;
    write_file(&(struct keys){0});
    test_ok(mdl_gguf_open(&g, path, &err), &err);
    for (long nth = 1, live = cor_alloc_live();; nth++) {
        struct mdl_tokenizer *t;

        assert_true(nth < 200);
        cor_alloc_fail_from(nth);
        enum vkmoe_status st = mdl_tokenizer_from_gguf(&t, g, &err);
        cor_alloc_fail_from(0);
        mdl_tokenizer_close(t);
        assert_int_equal(cor_alloc_live(), live);
        if (!st)
            break;
        assert_int_equal(st, VKMOE_ERR_MEMORY);
        failed++;
    }
    assert_true(failed > 10);
    mdl_gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_ids),
        cmocka_unit_test(refused),
        cmocka_unit_test(every_allocation_fails),
    };

    return cmocka_run_group_tests(tests, load_nano, free_nano);
}
