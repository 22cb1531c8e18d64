/* tokenizer.json: the shapes that are accepted, those that are refused, and damage. */
#include "support/test.h"

#include <stdio.h>

#include "model/tokenizer.h"

enum { N = 256 + 6, FILE_MAX = 16384 };

static struct vkmoe_err err;
static char path[4096];

/* What a test changes in the file; NULL: as usual. */
struct shape {
    const char *model, *merges, *pre, *added, *top, *vocab;
};

static size_t put_char(char *dst, unsigned c)
{
    if (c < 0x80)
        return dst[0] = (char)c, 1;
    return dst[0] = (char)(0xC0 | c >> 6), dst[1] = (char)(0x80 | (c & 63)), 2;
}

#define SPLIT(regex, behavior)                                                           \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"" behavior \
    "\",\"invert\":false}"
#define CL100K                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| " \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+"                                                           \
    "[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define LEVEL(regex) \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":" regex "}"
#define SEQ(a, b)              "{\"type\":\"Sequence\",\"pretokenizers\":[" a "," b "]}"
#define ADDED(id, text, extra) "{\"id\":" id ",\"content\":\"" text "\",\"special\":true" extra "}"

/* 256 bytes in alphabet order, "he", "ll", "hell", " w"; 260 <|endoftext|>, 261 an added token that is not
 * special. */
static size_t build(char *dst, const struct shape *s)
{
    unsigned extra = 256;
    size_t n = 0;

    n += (size_t)sprintf(dst + n, "{%s\"added_tokens\":%s,\"normalizer\":null,\"pre_tokenizer\":%s,",
                         s->top ? s->top : "",
                         s->added ? s->added
                                  : "[" ADDED("260", "<|endoftext|>",
                                              "") ",{\"id\":261,\"content\":\"|||X|||\",\"special\":false}]",
                         s->pre ? s->pre : SEQ(SPLIT(CL100K, "Isolated"), LEVEL("false")));
    n += (size_t)sprintf(dst + n, "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{%s,\"vocab\":{",
                         s->model ? s->model : "\"type\":\"BPE\",\"unk_token\":null,\"ignore_merges\":false");
    for (unsigned b = 0; b < 256; b++) {
        bool shown = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;

        dst[n++] = '"';
        if (b == '"' || b == '\\')
            dst[n++] = '\\';
        n += put_char(dst + n, shown ? b : extra++);
        n += (size_t)sprintf(dst + n, "\":%u,", b);
    }
    n += (size_t)sprintf(
        dst + n, "%s},\"merges\":%s}}",
        s->vocab ? s->vocab : "\"he\":256,\"ll\":257,\"hell\":258,\"\\u0120w\":259,\"<|endoftext|>\":260",
        s->merges ? s->merges : "[\"h e\",\"l l\",\"he ll\",\"\\u0120 w\"]");
    return n;
}

static void put_file(const char *p, size_t n)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    fclose(f);
}

static enum vkmoe_status load(struct mdl_tokenizer_json **owner, struct mdl_tokenizer_spec *spec)
{
    return mdl_tokenizer_json_load(owner, spec, path, N, 260, &err);
}

static void expect_good(const struct shape *s, const char *pre)
{
    static char file[FILE_MAX];
    struct mdl_tokenizer_json *owner;
    struct mdl_tokenizer_spec spec;
    struct mdl_tokenizer *t;
    int32_t *ids;
    size_t n;

    put_file(file, build(file, s));
    test_ok(load(&owner, &spec), &err);
    assert_string_equal(spec.pre, pre);
    assert_int_equal(spec.n_tokens, N);
    assert_int_equal(spec.n_merges, 4);
    assert_int_equal(spec.eos, 260);
    assert_string_equal(spec.merges[2], "he ll");
    assert_int_equal(spec.kind[258], MDL_TOKEN_NORMAL);
    assert_int_equal(spec.kind[260], MDL_TOKEN_CONTROL);
    test_ok(mdl_tokenizer_create(&t, &spec, &err), &err);
    mdl_tokenizer_json_free(owner); /* the tokenizer has copies */
    test_ok(mdl_encode(t, "hello w<|endoftext|>", 20, true, &ids, &n, &err), &err);
    const int32_t want[] = {258, 'o', 259, 260};
    assert_int_equal(n, 4);
    assert_memory_equal(ids, want, sizeof(want));
    cor_free(ids);
    mdl_tokenizer_close(t);
}

static void expect_bad(const struct shape *s, enum vkmoe_status st, const char *words)
{
    static char file[FILE_MAX];
    struct mdl_tokenizer_json *owner;
    struct mdl_tokenizer_spec spec;

    put_file(file, build(file, s));
    assert_int_equal(load(&owner, &spec), st);
    assert_null(owner);
    if (!strstr(err.message, words) || strncmp(err.message, path, strlen(path)))
        fail_msg("\"%s\" lacks \"%s\"", err.message, words);
}

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof(path), "%s/tokenizer.json", test_tmp());
    return 0;
}

static void accepted(void **state)
{
    (void)state;
    expect_good(&(struct shape){0}, "dbrx");
    expect_good(
        &(struct shape){.merges = "[[\"h\",\"e\"],[\"l\",\"l\"],[\"he\",\"ll\"],[\"\\u0120\",\"w\"]]"},
        "dbrx");
    expect_good(
        &(struct shape){
            .model = "\"type\":\"BPE\",\"ignore_merges\":true,\"dropout\":null,\"byte_fallback\":false"},
        "llama-bpe");
    expect_good(&(struct shape){.pre = LEVEL("true")}, "gpt-2");
    expect_good(&(struct shape){.top = "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
                                       "\"Sequence\":{\"id\":\"A\"}}]},"},
                "dbrx");
    expect_good(
        &(struct shape){
            .top = "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"}]},"},
        "dbrx");
}

static void refused(void **state)
{
    const enum vkmoe_status format = VKMOE_ERR_FORMAT, shape = VKMOE_ERR_UNSUPPORTED;
    struct mdl_tokenizer_json *owner;
    struct mdl_tokenizer_spec spec;

    (void)state;
    expect_bad(&(struct shape){.model = "\"type\":\"WordPiece\""}, shape, "not BPE");
    expect_bad(&(struct shape){.model = "\"type\":\"BPE\",\"byte_fallback\":true"}, shape, "byte_fallback");
    expect_bad(&(struct shape){.model = "\"type\":\"BPE\",\"dropout\":0.1"}, shape, "dropout");
    expect_bad(&(struct shape){.model = "\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\""}, shape,
               "end_of_word_suffix");
    expect_bad(&(struct shape){.top = "\"normalizer\":{\"type\":\"NFC\"},"}, shape, "normalizer");
    expect_bad(&(struct shape){.top = "\"decoder\":{\"type\":\"WordPiece\"},"}, shape, "decoder");
    expect_bad(&(struct shape){.top = "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
                                      "\"SpecialToken\":{\"id\":\"<s>\"}}]},"},
               shape, "post_processor");
    expect_bad(&(struct shape){.pre = "null"}, shape, "pre_tokenizer");
    expect_bad(&(struct shape){.pre = LEVEL("false")}, shape, "pre_tokenizer");
    expect_bad(&(struct shape){.pre = SEQ(SPLIT(CL100K, "Isolated"), LEVEL("true"))}, shape, "pre_tokenizer");
    expect_bad(&(struct shape){.pre = SEQ(SPLIT(CL100K, "Removed"), LEVEL("false"))}, shape, "pre_tokenizer");
    expect_bad(&(struct shape){.pre = SEQ(SPLIT("\\\\s+|\\\\S+", "Isolated"), LEVEL("false"))}, shape,
               "unknown pre-tokenizer regex \\s+|\\S+");
    expect_bad(&(struct shape){.added = "{}"}, format, "added_tokens");
    expect_bad(&(struct shape){.added = "[" ADDED("262", "x", "") "]"}, format, "vocabulary size 262");
    expect_bad(&(struct shape){.added = "[" ADDED("260.5", "x", "") "]"}, format, "added token");
    expect_bad(&(struct shape){.added = "[" ADDED("-1", "x", "") "]"}, format, "added token");
    expect_bad(&(struct shape){.added = "[" ADDED("256", "x", "") "]"}, format, "collides");
    expect_bad(&(struct shape){.added = "[" ADDED("261", "x", "") "," ADDED("261", "x", "") "]"}, format,
               "collides");
    expect_bad(&(struct shape){.added = "[" ADDED("260", "<|endoftext|>", ",\"lstrip\":true") "]"}, shape,
               "lstrip");
    expect_bad(&(struct shape){.vocab = "\"he\":256,\"ll\":256"}, format, "the same id 256");
    expect_bad(&(struct shape){.vocab = "\"he\":256,\"he\":257"}, format, "the same text");
    expect_bad(&(struct shape){.vocab = "\"he\":\"256\""}, format, "no id below");
    expect_bad(&(struct shape){.vocab = "\"he\":1e300"}, format, "no id below");
    expect_bad(&(struct shape){.vocab = "\"h e\":256"}, format, "byte alphabet");
    expect_bad(&(struct shape){.merges = "{}"}, format, "merges");
    expect_bad(&(struct shape){.merges = "[1]"}, format, "merge 0");
    expect_bad(&(struct shape){.merges = "[[\"a\"]]"}, format, "merge 0");
    expect_bad(&(struct shape){.merges = "[[\"a\",\"b\",\"c\"]]"}, format, "merge 0");
    expect_bad(&(struct shape){.merges = "[\"h e\",\"q q\"]"}, format, "merge 1 names an unknown token");
    expect_bad(&(struct shape){.merges = "[\"h e\",\"h e\"]"}, format, "merges 0 and 1");

    static char file[FILE_MAX];
    put_file(file, build(file, &(struct shape){0}));
    assert_int_equal(mdl_tokenizer_json_load(&owner, &spec, path, 200, -1, &err), format);
    assert_int_equal(mdl_tokenizer_json_load(&owner, &spec, path, 0, -1, &err), format);
    assert_int_equal(mdl_tokenizer_json_load(&owner, &spec, path, UINT32_MAX, -1, &err), format);
    assert_int_equal(mdl_tokenizer_json_load(&owner, &spec, path, N, N, &err), format);
    assert_int_equal(mdl_tokenizer_json_load(&owner, &spec, test_source("no such file"), N, -1, &err),
                     VKMOE_ERR_IO);
    put_file("[]", 2);
    assert_int_equal(load(&owner, &spec), format);
    put_file("", 0);
    assert_int_equal(load(&owner, &spec), format);
    put_file("{}\0x", 4);
    assert_int_equal(load(&owner, &spec), format);
}

static void deep_and_wide(void **state)
{
    size_t n = 5000000;
    char *text = malloc(n);
    struct mdl_tokenizer_json *owner;
    struct mdl_tokenizer_spec spec;

    (void)state;
    memset(text, '[', n);
    put_file(text, 100000);
    assert_int_equal(load(&owner, &spec), VKMOE_ERR_FORMAT);
    put_file(text, n);
    assert_int_equal(load(&owner, &spec), VKMOE_ERR_FORMAT);
    assert_non_null(strstr(err.message, "JSON values"));
    free(text);
}

/* Whatever the bytes, an error line or a tokenizer that works. */
static bool try_file(void)
{
    struct mdl_tokenizer_json *owner;
    struct mdl_tokenizer_spec spec;
    struct mdl_tokenizer *t;
    long live = cor_alloc_live();
    int32_t *ids;
    size_t n;

    err.message[0] = 0;
    if (load(&owner, &spec)) {
        assert_null(owner);
        assert_true(err.message[0]);
        assert_int_equal(cor_alloc_live(), live);
        return false;
    }
    test_ok(mdl_tokenizer_create(&t, &spec, &err), &err);
    test_ok(mdl_encode(t, "hello w<|endoftext|>", 20, true, &ids, &n, &err), &err);
    cor_free(ids);
    mdl_tokenizer_close(t);
    mdl_tokenizer_json_free(owner);
    assert_int_equal(cor_alloc_live(), live);
    return true;
}

static void truncated(void **state)
{
    static char file[FILE_MAX];
    size_t n = build(file, &(struct shape){0});

    (void)state;
    for (size_t k = 0; k < n; k++) {
        put_file(file, k);
        assert_false(try_file());
    }
    put_file(file, n);
    assert_true(try_file());
}

static void flipped(void **state)
{
    static char file[FILE_MAX], bad[FILE_MAX];
    uint64_t rng = test_seed();
    size_t n = build(file, &(struct shape){0});
    int good = 0;

    (void)state;
    for (int k = 0; k < 2000; k++) {
        memcpy(bad, file, n);
        for (uint64_t flips = 1 + test_rand(&rng) % 3; flips; flips--)
            bad[test_rand(&rng) % n] ^= (char)(1 + test_rand(&rng) % 255);
        put_file(bad, n);
        good += try_file();
    }
    assert_true(good < 1000);
}

static void every_allocation_fails(void **state)
{
    static char file[FILE_MAX];
    long live = cor_alloc_live(), failed = 0;

    (void)state;
    put_file(file, build(file, &(struct shape){.merges = "[[\"h\",\"e\"],[\"l\",\"l\"]]"}));
    for (long nth = 1;; nth++) {
        struct mdl_tokenizer_json *owner;
        struct mdl_tokenizer_spec spec;

        assert_true(nth < 200);
        cor_alloc_fail_from(nth);
        enum vkmoe_status st = load(&owner, &spec);
        cor_alloc_fail_from(0);
        mdl_tokenizer_json_free(owner);
        assert_int_equal(cor_alloc_live(), live);
        if (!st)
            break;
        assert_int_equal(st, VKMOE_ERR_MEMORY);
        failed++;
    }
    assert_true(failed > 15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(accepted, setup),      cmocka_unit_test_setup(refused, setup),
        cmocka_unit_test_setup(deep_and_wide, setup), cmocka_unit_test_setup(truncated, setup),
        cmocka_unit_test_setup(flipped, setup),       cmocka_unit_test_setup(every_allocation_fails, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
