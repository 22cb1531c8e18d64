/* SentencePiece's merges by score: ids equal to a slow obvious encoder's, round trips, the keys of a GGUF
 * file, and damaged files. Ids are compared with llama.cpp's by tools/full/tokenizers_against_peer.py. */
#include "support/test.h"

#include <math.h>
#include <stdio.h>

#include "model/gguf.h"
#include "model/tokenizer.h"

enum { N_BYTES = 3, N_PIECES = N_BYTES + 256, N_MAX = 700 };

static struct vkmoe_err err;

static struct {
    char text[N_MAX][64]; /* with U+2581 */
    const char *texts[N_MAX];
    uint8_t kind[N_MAX];
    float score[N_MAX];
    uint32_t n;
    struct mdl_tokenizer_spec spec;
} v;

static uint32_t add(const char *text, uint8_t kind, float score)
{
    snprintf(v.text[v.n], sizeof(v.text[v.n]), "%s", text);
    v.texts[v.n] = v.text[v.n];
    v.kind[v.n] = kind;
    v.score[v.n] = score;
    return v.n++;
}

static bool has(const char *text)
{
    for (uint32_t i = 0; i < v.n; i++)
        if (!strcmp(v.text[i], text))
            return true;
    return false;
}

/* Bytes, characters, and pairs of what there is; scores meet in ties. across: also a space behind letters. */
static void make(uint64_t *rng, bool across)
{
    static const char *const chars[] = {"\xE2\x96\x81", "a", "b", "c", "\xC3\xA9", "\xE6\xBC\xA2",
                                        "\n",           "1", "<", "s", ">",        "/"};
    char hex[8];

    memset(&v, 0, sizeof(v));
    add("<unk>", MDL_TOKEN_UNKNOWN, 0);
    add("<s>", MDL_TOKEN_CONTROL, 0);
    add("</s>", MDL_TOKEN_CONTROL, 0);
    for (int b = 0; b < 256; b++) {
        snprintf(hex, sizeof(hex), "<0x%02X>", (unsigned)b);
        add(hex, MDL_TOKEN_BYTE, 0);
    }
    for (size_t i = 0; i < COR_COUNT(chars); i++)
        add(chars[i], MDL_TOKEN_NORMAL, -50);
    add("<s", MDL_TOKEN_NORMAL, 100); /* no way to <s> */
    while (v.n < N_MAX - 4) {
        const char *a = v.text[N_PIECES + test_rand(rng) % (v.n - N_PIECES)];
        const char *b = v.text[N_PIECES + test_rand(rng) % (v.n - N_PIECES)];
        char both[128];

        snprintf(both, sizeof(both), "%s%s", a, b);
        if (strlen(both) > 24 || has(both) || (!across && strstr(b, "\xE2\x96\x81")))
            continue;
        add(both, MDL_TOKEN_NORMAL, (float)(test_rand(rng) % 64) - 32);
    }
    add("a b", MDL_TOKEN_NORMAL, 99); /* with a plain space: no text makes it */
    add("[MARK]", MDL_TOKEN_USER, 0);
    add("   ", MDL_TOKEN_USER, 0);
    v.spec = (struct mdl_tokenizer_spec){.source = "spm",
                                         .spm = true,
                                         .n_tokens = v.n,
                                         .text = v.texts,
                                         .kind = v.kind,
                                         .scores = v.score,
                                         .add_space = true,
                                         .unk = 0,
                                         .add_bos = true,
                                         .bos = 1,
                                         .eos = 2};
}

/* The token of n bytes at p, in which U+2581 stands for spaces; -1: none. */
static int32_t find(const char *p, size_t n)
{
    for (uint32_t i = N_PIECES; i < v.n; i++)
        if (v.kind[i] == MDL_TOKEN_NORMAL && strlen(v.text[i]) == n && !memcmp(v.text[i], p, n))
            return (int32_t)i;
    return -1;
}

static size_t char_len(const char *p)
{
    uint8_t c = (uint8_t)*p;

    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

/* Of text that is UTF-8 without special tokens: again and again the best pair of neighbours. */
static size_t slow_encode(const char *text, int32_t *ids)
{
    char s[4096] = "\xE2\x96\x81";
    size_t cut[2048], n = 0, n_ids = 0, at = 3;

    for (const char *p = text; *p; p++) {
        memcpy(s + at, *p == ' ' ? "\xE2\x96\x81" : p, *p == ' ' ? 3 : 1);
        at += *p == ' ' ? 3 : 1;
    }
    for (size_t i = 0; i < at; i += char_len(s + i))
        cut[n++] = i;
    cut[n] = at;
    for (;;) {
        size_t best = n;
        float score = 0;

        for (size_t i = 0; i + 1 < n; i++) {
            int32_t id = find(s + cut[i], cut[i + 2] - cut[i]);

            if (id >= 0 && (best == n || v.score[id] > score))
                best = i, score = v.score[id];
        }
        if (best == n)
            break;
        memmove(cut + best + 1, cut + best + 2, (n - best - 1) * sizeof(*cut));
        n--;
    }
    for (size_t i = 0; i < n; i++) {
        int32_t id = find(s + cut[i], cut[i + 1] - cut[i]);

        if (id >= 0)
            ids[n_ids++] = id;
        for (size_t k = cut[i]; id < 0 && k < cut[i + 1]; k++)
            ids[n_ids++] = N_BYTES + (uint8_t)s[k];
    }
    return n_ids;
}

static void decode(const struct mdl_tokenizer *t, const int32_t *ids, size_t n_ids, const char *text,
                   size_t n)
{
    size_t at = 0;

    for (size_t i = 0; i < n_ids; i++) {
        const char *p;
        size_t len = mdl_token_text(t, i ? ids[i - 1] : -1, ids[i], &p);

        assert_true(len <= n - at);
        assert_memory_equal(p, text + at, len);
        at += len;
    }
    assert_int_equal(at, n);
}

static void random_texts(void **state)
{
    static const char *const parts[] = {"a",
                                        "b",
                                        "c",
                                        " ",
                                        " ",
                                        "\xC3\xA9",
                                        "\xE6\xBC\xA2",
                                        "\n",
                                        "1",
                                        "<s>",
                                        "</s>",
                                        "\xF0\x9F\x98\x80",
                                        "z",
                                        "  ",
                                        "ab",
                                        "\xE2\x82\xAC"};
    uint64_t rng = test_seed();

    (void)state;
    for (int round = 0; round < 4; round++) {
        struct mdl_tokenizer *t;

        make(&rng, round % 2);
        test_ok(mdl_tokenizer_create(&t, &v.spec, &err), &err);
        for (int k = 0; k < 150; k++) {
            char text[1024] = "";
            int32_t want[4096], *ids;
            size_t n_want, n_ids;

            for (uint64_t n = 1 + test_rand(&rng) % 80; n--;) {
                strcat(text, parts[test_rand(&rng) % COR_COUNT(parts)]);
                while (strlen(text) >= 3 && !strcmp(text + strlen(text) - 3, "   "))
                    text[strlen(text) - 1] = 0; /* that is a user token */
            }
            n_want = slow_encode(text, want);
            test_ok(mdl_encode(t, text, strlen(text), false, &ids, &n_ids, &err), &err);
            for (size_t i = 0; i < n_ids && i < n_want; i++)
                if (ids[i] != want[i])
                    fail_msg("round %d, \"%s\": token %zu is %d, not %d", round, text, i, (int)ids[i],
                             (int)want[i]);
            assert_int_equal(n_ids, n_want);
            decode(t, ids, n_ids, text, strlen(text));
            cor_free(ids);
        }
        mdl_tokenizer_close(t);
    }
}

static void special_tokens(void **state)
{
    uint64_t rng = 5;
    struct mdl_tokenizer *t;
    const char *text = "<s>a[MARK] b</s> c   a";
    int32_t *ids, none = 0;
    size_t n, k;

    (void)state;
    make(&rng, false);
    test_ok(mdl_tokenizer_create(&t, &v.spec, &err), &err);
    assert_int_equal(mdl_token_bos(t), 1);
    assert_string_equal(mdl_tokenizer_pre(t), "llama");
    assert_true(mdl_token_is_special(t, 0) && mdl_token_is_special(t, 1) && mdl_token_is_end(t, 2));
    assert_false(mdl_token_is_special(t, (int32_t)v.n - 1));
    assert_int_equal(mdl_token_by_name(t, "[MARK]"), v.n - 2);
    assert_int_equal(mdl_token_by_name(t, "[MARK"), -1);

    test_ok(mdl_encode(t, text, strlen(text), true, &ids, &n, &err), &err);
    assert_int_equal(ids[0], 1); /* <s>, then " a" with the space of a beginning */
    assert_int_equal(mdl_token_text(t, -1, ids[0], &text), 3);
    for (k = 0; k < n && ids[k] != (int32_t)v.n - 2;)
        k++;
    assert_true(k < n);
    cor_free(ids);
    text = "<s>a[MARK] b</s> c   a";
    test_ok(mdl_encode_prompt(t, text, strlen(text), true, &ids, &n, &err), &err);
    assert_true(ids[0] == 1 && ids[1] != 1); /* not twice */
    decode(t, ids, n, text, strlen(text));
    cor_free(ids);
    test_ok(mdl_encode_prompt(t, text, strlen(text), false, &ids, &n, &err), &err);
    assert_int_equal(ids[0], 1);
    for (size_t i = 1; i < n; i++) /* the text's own <s> and </s> stay text, [MARK] does not */
        assert_true(ids[i] > 2), none += ids[i] == (int32_t)v.n - 2;
    assert_int_equal(none, 1);
    cor_free(ids);
    test_ok(mdl_encode_prompt(t, "", 0, false, &ids, &n, &err), &err);
    assert_true(n == 1 && ids[0] == 1);
    cor_free(ids);
    mdl_tokenizer_close(t);
}

static void random_bytes(void **state)
{
    uint64_t rng = test_seed();
    struct mdl_tokenizer *t;

    (void)state;
    make(&rng, true);
    test_ok(mdl_tokenizer_create(&t, &v.spec, &err), &err);
    for (int k = 0; k < 2000; k++) {
        char text[200];
        size_t n = test_rand(&rng) % sizeof(text), n_ids;
        int32_t *ids;

        for (size_t i = 0; i < n; i++)
            text[i] = test_rand(&rng) % 4 ? (char)test_rand(&rng) : ' ';
        test_ok(mdl_encode(t, text, n, k % 2, &ids, &n_ids, &err), &err);
        decode(t, ids, n_ids, text, n);
        cor_free(ids);
    }
    mdl_tokenizer_close(t);
}

/* Without byte tokens the unknown token stands for each run of what is unknown. */
static void unknown(void **state)
{
    uint64_t rng = 7;
    struct mdl_tokenizer *t;
    int32_t *ids;
    size_t n;

    (void)state;
    make(&rng, false);
    for (uint32_t i = N_BYTES; i < N_PIECES; i++)
        v.kind[i] = MDL_TOKEN_UNUSED;
    test_ok(mdl_tokenizer_create(&t, &v.spec, &err), &err);
    test_ok(mdl_encode(t, "yy\xC3\xBC\na", 6, false, &ids, &n, &err), &err);
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        k += ids[i] == 0;
    assert_int_equal(k, 1);
    cor_free(ids);
    mdl_tokenizer_close(t);
}

static void long_texts(void **state)
{
    static const char *const units[] = {"a", " ", "ab ", "\xF0\x9F\x98\x80", "\xFF", "ab"};
    size_t room = (1 << 20) + 4321, n_ids;
    char *text = malloc(room);
    uint64_t rng = 9;

    (void)state;
    for (int across = 0; across < 2; across++) {
        struct mdl_tokenizer *t;

        make(&rng, across);
        v.kind[v.n - 1] = MDL_TOKEN_UNUSED; /* three spaces */
        test_ok(mdl_tokenizer_create(&t, &v.spec, &err), &err);
        for (size_t u = 0; u < COR_COUNT(units); u++) {
            size_t len = strlen(units[u]), n = room / len * len;
            int32_t *ids;

            for (size_t i = 0; i < n; i += len)
                memcpy(text + i, units[u], len);
            test_ok(mdl_encode(t, text, n, false, &ids, &n_ids, &err), &err);
            decode(t, ids, n_ids, text, n);
            cor_free(ids);
        }
        mdl_tokenizer_close(t);
    }
    free(text);
}

static void refusals(void **state)
{
    uint64_t rng = 3;

    (void)state;
#define REFUSE(change, words)                                                          \
    do {                                                                               \
        struct mdl_tokenizer *bad = NULL;                                              \
        make(&rng, false);                                                             \
        change;                                                                        \
        assert_int_equal(mdl_tokenizer_create(&bad, &v.spec, &err), VKMOE_ERR_FORMAT); \
        assert_null(bad);                                                              \
        if (!strstr(err.message, words) || strncmp(err.message, "spm: ", 5))           \
            fail_msg("\"%s\" lacks \"%s\"", err.message, words);                       \
    } while (0)
    REFUSE(v.score[300] = (float)NAN, "the score of token 300 is not a number");
    REFUSE(v.texts[5] = "<0x2>", "byte token 5 is not written as");
    REFUSE(v.texts[5] = "<0x2g>", "byte token 5 is not written as");
    REFUSE(v.texts[5] = "<0x01>", "tokens 4 and 5 are of the same byte");
    REFUSE((v.kind[5] = MDL_TOKEN_UNUSED, v.spec.unk = -1), "no token for byte 0x02");
    REFUSE(v.texts[300] = v.texts[299], "tokens 299 and 300 have the same text");
    REFUSE(v.texts[300] = "\xFF", "token 300 is not UTF-8");
    REFUSE(v.kind[300] = 7, "token 300 has unknown type 7");
    REFUSE(v.spec.bos = (int32_t)v.n, "begin token");
    REFUSE(v.spec.unk = (int32_t)v.n, "unknown token");
}

/* ---- GGUF */

static void write_file(const char *path, bool scores, bool flags)
{
    struct mdl_gguf_writer *w;
    struct mdl_str texts[N_MAX];
    int32_t kinds[N_MAX];

    for (uint32_t i = 0; i < v.n; i++) {
        texts[i] = (struct mdl_str){v.texts[i], strlen(v.texts[i])};
        kinds[i] = v.kind[i];
    }
    test_ok(mdl_gguf_create(&w, path, &err), &err);
    test_ok(mdl_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5, &err), &err);
    test_ok(mdl_gguf_put_array(w, "tokenizer.ggml.tokens", MDL_GGUF_STRING, texts, v.n, &err), &err);
    test_ok(mdl_gguf_put_array(w, "tokenizer.ggml.scores", scores ? MDL_GGUF_F32 : MDL_GGUF_I32, v.score, v.n,
                               &err),
            &err);
    test_ok(mdl_gguf_put_array(w, "tokenizer.ggml.token_type", MDL_GGUF_I32, kinds, v.n, &err), &err);
    if (flags) {
        test_ok(mdl_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false, &err), &err);
        test_ok(mdl_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", false, &err), &err);
        test_ok(mdl_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 7, &err), &err);
        test_ok(mdl_gguf_put_u32(w, "tokenizer.ggml.eot_token_id", 8, &err), &err);
    }
    test_ok(mdl_gguf_commit(w, &err), &err);
}

static enum vkmoe_status open_file(struct mdl_tokenizer **t, const char *path)
{
    struct mdl_gguf *g;
    enum vkmoe_status st = mdl_gguf_open(&g, path, &err);

    *t = NULL;
    if (!st)
        st = mdl_tokenizer_from_gguf(t, g, &err);
    mdl_gguf_close(g);
    return st;
}

static void from_gguf(void **state)
{
    char path[4096];
    struct mdl_tokenizer *t;
    uint64_t rng = 1;
    int32_t *ids;
    size_t n;

    (void)state;
    make(&rng, false);
    snprintf(path, sizeof(path), "%s/spm.gguf", test_tmp());
    write_file(path, true, false);
    test_ok(open_file(&t, path), &err);
    assert_int_equal(mdl_token_bos(t), 1); /* what is absent is as SentencePiece has it */
    assert_int_equal(mdl_token_eos(t), 2);
    test_ok(mdl_encode(t, "z", 1, false, &ids, &n, &err), &err);
    assert_int_equal(n, 2); /* a space and a byte */
    assert_int_equal(ids[1], N_BYTES + 'z');
    cor_free(ids);
    mdl_tokenizer_close(t);

    write_file(path, true, true);
    test_ok(open_file(&t, path), &err);
    assert_int_equal(mdl_token_bos(t), -1);
    assert_true(mdl_token_is_end(t, 7) && mdl_token_is_end(t, 8) && mdl_token_is_end(t, 2));
    test_ok(mdl_encode_prompt(t, "z", 1, false, &ids, &n, &err), &err);
    assert_int_equal(n, 1);
    cor_free(ids);
    mdl_tokenizer_close(t);

    write_file(path, false, false);
    assert_int_equal(open_file(&t, path), VKMOE_ERR_FORMAT);
    assert_non_null(strstr(err.message, "tokenizer.ggml.scores is not an array of float32"));
}

/* Whatever is left of a damaged file is refused with one line, or is a tokenizer that works. */
static void try_damaged(const char *path, const char *bytes, size_t n)
{
    struct mdl_tokenizer *t;
    int32_t *ids;
    size_t n_ids;

    test_write(path, bytes, n);
    if (open_file(&t, path)) {
        assert_true(err.message[0] && !strchr(err.message, '\n'));
        return;
    }
    test_ok(mdl_encode_prompt(t, "ab <s>c \xC3\xA9 [MARK] \xFF", 19, true, &ids, &n_ids, &err), &err);
    cor_free(ids);
    mdl_tokenizer_close(t);
}

static void damaged_files(void **state)
{
    char path[4096], *bytes;
    uint64_t rng = test_seed();
    size_t n;

    (void)state;
    make(&rng, false);
    snprintf(path, sizeof(path), "%s/damaged.gguf", test_tmp());
    write_file(path, true, true);
    test_ok(cor_file_slurp(path, 1 << 20, &bytes, &n, &err), &err);
    for (size_t len = 0; len < n; len += len < 300 || n - len < 300 ? 1 : 61)
        try_damaged(path, bytes, len);
    for (int k = 0; k < 1500; k++) {
        size_t at = k < 400 ? (size_t)k % n : test_rand(&rng) % n;
        char was = bytes[at];

        bytes[at] ^= (char)(1 << test_rand(&rng) % 8);
        try_damaged(path, bytes, n);
        bytes[at] = was;
    }
    cor_free(bytes);
}

static void every_allocation_fails(void **state)
{
    uint64_t rng = 11;
    struct mdl_tokenizer *t = NULL;
    long live = cor_alloc_live(), failed = 0;

    (void)state;
    make(&rng, false);
    for (long nth = 1; !t; nth++) {
        assert_true(nth < 200);
        cor_alloc_fail_from(nth);
        enum vkmoe_status st = mdl_tokenizer_create(&t, &v.spec, &err);
        cor_alloc_fail_from(0);
        if (st)
            assert_int_equal(cor_alloc_live(), live);
        failed += st != VKMOE_OK;
    }
    assert_true(failed > 5);
    live = cor_alloc_live();
    for (long nth = 1;; nth++) {
        int32_t *ids = NULL;
        size_t n;

        assert_true(nth < 200);
        cor_alloc_fail_from(nth);
        enum vkmoe_status st = mdl_encode_prompt(t, "abc <s>z a", 10, true, &ids, &n, &err);
        cor_alloc_fail_from(0);
        cor_free(ids);
        assert_int_equal(cor_alloc_live(), live);
        if (!st)
            break;
        assert_int_equal(st, VKMOE_ERR_MEMORY);
    }
    mdl_tokenizer_close(t);
    assert_int_equal(cor_alloc_live(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_texts),
        cmocka_unit_test(special_tokens),
        cmocka_unit_test(random_bytes),
        cmocka_unit_test(unknown),
        cmocka_unit_test(long_texts),
        cmocka_unit_test(refusals),
        cmocka_unit_test(from_gguf),
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(every_allocation_fails),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
