/* The tokenizer: ids equal to an independent encoder's, to a slow obvious one's, and any bytes survive the
 * round trip. Expected counts and hashes were made with tools/train/bpe.py. */
#include "support/test.h"

#include <stdio.h>
#include <time.h>

#include "core/npy.h"
#include "model/tokenizer.h"

static struct vkmoe_err err;
static struct mdl_tokenizer *nano; /* the bundled model's */
static struct mdl_tokenizer_spec nano_spec;
static struct mdl_tokenizer_json *nano_json;

static int load_nano(void **state)
{
    (void)state;
    test_ok(mdl_tokenizer_json_load(&nano_json, &nano_spec,
                                    test_source("tests/golden/emo-nano/tokenizer.json"), 4096, 4094, &err),
            &err);
    test_ok(mdl_tokenizer_create(&nano, &nano_spec, &err), &err);
    return 0;
}

static int free_nano(void **state)
{
    (void)state;
    mdl_tokenizer_close(nano);
    mdl_tokenizer_json_free(nano_json);
    assert_int_equal(cor_alloc_live(), 0);
    return 0;
}

static uint64_t fnv(const int32_t *ids, size_t n)
{
    uint64_t h = 0xCBF29CE484222325u;

    for (size_t i = 0; i < n; i++)
        for (int b = 0; b < 4; b++)
            h = (h ^ (uint8_t)((uint32_t)ids[i] >> 8 * b)) * 0x100000001B3u;
    return h;
}

/* Encodes, checks that the tokens' bytes are the text again, returns the ids. */
static int32_t *encode(const struct mdl_tokenizer *t, const char *text, size_t n, bool special, size_t *n_ids)
{
    int32_t *ids;
    size_t at = 0;

    test_ok(mdl_encode(t, text, n, special, &ids, n_ids, &err), &err);
    for (size_t i = 0; i < *n_ids; i++) {
        const char *p;
        size_t len = mdl_token_bytes(t, ids[i], &p);

        assert_true(len > 0 && len <= n - at);
        assert_memory_equal(p, text + at, len);
        at += len;
    }
    assert_int_equal(at, n);
    return ids;
}

static void expect(const struct mdl_tokenizer *t, const char *text, bool special, const char *const *pieces)
{
    size_t n, k = 0;
    int32_t *ids = encode(t, text, strlen(text), special, &n);

    for (; k < n && pieces[k]; k++) {
        const char *p;
        size_t len = mdl_token_bytes(t, ids[k], &p);

        if (len != strlen(pieces[k]) || memcmp(p, pieces[k], len))
            fail_msg("\"%s\": token %zu is \"%.*s\", expected \"%s\"", text, k, (int)len, p, pieces[k]);
    }
    if (k < n || pieces[k])
        fail_msg("\"%s\": %zu tokens, another number expected", text, n);
    cor_free(ids);
}

/* ---- against bpe.py ---- */

static void golden_ids(void **state)
{
    static const char *const names[] = {"scripture.validation", "scripture.calibration", "python.validation",
                                        "python.calibration"};

    (void)state;
    for (size_t f = 0; f < COR_COUNT(names); f++) {
        char rel[128], *text;
        size_t n, n_ids;
        struct cor_npy want;

        snprintf(rel, sizeof(rel), "tests/golden/data/%s.txt", names[f]);
        test_ok(cor_file_slurp(test_source(rel), 1 << 20, &text, &n, &err), &err);
        snprintf(rel, sizeof(rel), "tests/golden/data/%s.ids.npy", names[f]);
        test_ok(cor_npy_read(&want, test_source(rel), &err), &err);
        int32_t *ids = encode(nano, text, n, false, &n_ids);
        for (size_t i = 0; i < n_ids && i < want.count; i++)
            if (ids[i] != ((int32_t *)want.data)[i])
                fail_msg("%s: token %zu is %d, not %d", names[f], i, (int)ids[i],
                         (int)((int32_t *)want.data)[i]);
        assert_int_equal(n_ids, want.count);
        cor_npy_free(&want);
        cor_free(ids);
        cor_free(text);
    }
}

static void shared_ids(void **state)
{
    static const struct {
        const char *name;
        size_t n;
        uint64_t hash; /* FNV-1a 64 of the ids as little-endian int32 */
    } want[] = {
        {"c.calibration", 6526, 0xcf4c482ea3d377d2u},
        {"c.validation", 26131, 0x9d79a29f580fa0d8u},
        {"computing.calibration", 6385, 0x0daf99da035d51a7u},
        {"computing.validation", 24232, 0xd497e6dbbf6eded4u},
        {"dictionary.calibration", 6793, 0xef552de78aaae1f7u},
        {"dictionary.validation", 24848, 0x1c2890b5b9e6f111u},
        {"german.calibration", 5652, 0x4683c3d16a40c67du},
        {"german.validation", 23214, 0x99b7e276020511feu},
        {"politics.calibration", 5359, 0x952fcaf07ead4ef5u},
        {"politics.validation", 19450, 0xf7b5d50f8b46e129u},
        {"proofs.calibration", 6042, 0xd550f1b8f00e19f7u},
        {"proofs.validation", 24656, 0x7e2e27d3b267c6eeu},
    };

    (void)state;
    for (size_t f = 0; f < COR_COUNT(want); f++) {
        char rel[128], *text;
        size_t n, n_ids;

        snprintf(rel, sizeof(rel), "models/data/%s.txt", want[f].name);
        const char *path = test_shared(rel);
        if (!path)
            test_skip("shared/models/data is absent");
        test_ok(cor_file_slurp(path, 1 << 20, &text, &n, &err), &err);
        int32_t *ids = encode(nano, text, n, false, &n_ids);
        if (n_ids != want[f].n || fnv(ids, n_ids) != want[f].hash)
            fail_msg("%s: %zu tokens, or other ones than bpe.py gives", want[f].name, n_ids);
        cor_free(ids);
        cor_free(text);
    }
}

/* Characters whose class every Unicode version since 6.3 agrees on. */
enum class { L, N, S, O };

static const struct {
    uint32_t cp;
    enum class is;
} pool[] = {
    {'a', L},     {'e', L},      {'t', L},     {'s', L},     {'S', L},    {'r', L},     {'R', L},
    {'m', L},     {'d', L},      {'l', L},     {'L', L},     {'v', L},    {'E', L},     {'T', L},
    {0xE9, L},    {0xDF, L},     {0x17F, L},   {0x212A, L},  {0x3B1, L},  {0x436, L},   {0x5D0, L},
    {0x6F22, L},  {0x3042, L},   {0x1D400, L}, {0x20000, L}, {0xAA, L},   {0x2B0, L},   {0x1C5, L},
    {'0', N},     {'1', N},      {'2', N},     {'9', N},     {0x663, N},  {0x2167, N},  {0xBD, N},
    {0x1D7D8, N}, {0x3007, N},   {9, S},       {10, S},      {10, S},     {11, S},      {12, S},
    {13, S},      {' ', S},      {' ', S},     {' ', S},     {' ', S},    {0x85, S},    {0xA0, S},
    {0x1680, S},  {0x2000, S},   {0x2007, S},  {0x200A, S},  {0x2028, S}, {0x2029, S},  {0x202F, S},
    {0x205F, S},  {0x3000, S},   {'\'', O},    {'\'', O},    {'\'', O},   {'"', O},     {'.', O},
    {'!', O},     {'-', O},      {'<', O},     {'|', O},     {'>', O},    {'_', O},     {0, O},
    {1, O},       {0x1C, O},     {0x7F, O},    {0x301, O},   {0x903, O},  {0x180E, O},  {0x200B, O},
    {0x200D, O},  {0x2019, O},   {0xFEFF, O},  {0xE000, O},  {0xFFFD, O}, {0x1F600, O}, {0x1F1E6, O},
    {0xE0041, O}, {0x10FFFF, O}, {0xFFFE, O},
};

static size_t put_utf8(char *dst, uint32_t c)
{
    if (c < 0x80)
        return dst[0] = (char)c, 1;
    if (c < 0x800)
        return dst[0] = (char)(0xC0 | c >> 6), dst[1] = (char)(0x80 | (c & 63)), 2;
    if (c < 0x10000)
        return dst[0] = (char)(0xE0 | c >> 12), dst[1] = (char)(0x80 | (c >> 6 & 63)),
               dst[2] = (char)(0x80 | (c & 63)), 3;
    return dst[0] = (char)(0xF0 | c >> 18), dst[1] = (char)(0x80 | (c >> 12 & 63)),
           dst[2] = (char)(0x80 | (c >> 6 & 63)), dst[3] = (char)(0x80 | (c & 63)), 4;
}

/* Up to n characters of the pool, now and then one of them several times; returns bytes. dst: 4 * n bytes. */
static size_t random_text(uint64_t *rng, size_t n, char *dst)
{
    size_t at = 0;

    for (size_t i = 0; i < n;) {
        uint64_t r = test_rand(rng);
        size_t times = (r >> 32 & 7) == 0 ? 5 : 1;

        for (size_t k = 0; k < times && i < n; k++, i++)
            at += put_utf8(dst + at, pool[(r & 0xFFFFFFFF) % COR_COUNT(pool)].cp);
    }
    return at;
}

static void random_ids(void **state)
{
    static char text[4 * 200000];
    uint64_t rng = 1; /* fixed: the expectation was made from the same text */
    size_t n_ids, n = random_text(&rng, 200000, text);
    int32_t *ids = encode(nano, text, n, false, &n_ids);

    (void)state;
    assert_int_equal(n, 385809);
    assert_int_equal(n_ids, 346564);
    assert_true(fnv(ids, n_ids) == 0x7946bddb6953dfe5u);
    cor_free(ids);
}

/* ---- against a slow obvious encoder ---- */

struct chars {
    uint32_t cp[600];
    enum class is[600];
    size_t off[601]; /* bytes */
    size_t n;
};

static bool is_nl(uint32_t c)
{
    return c == '\n' || c == '\r';
}

static uint32_t lower(uint32_t c)
{
    return c == 0x17F ? 's' : c >= 'A' && c <= 'Z' ? c + 32 : c;
}

static size_t run_of(const struct chars *c, size_t i, enum class is, size_t most)
{
    size_t k = 0;

    while (i + k < c->n && c->is[i + k] == is && k < most)
        k++;
    return k;
}

/* White space: all of a run but the last character when something else follows; a lone one whole. */
static size_t space_piece(const struct chars *c, size_t i)
{
    size_t n = run_of(c, i, S, SIZE_MAX);

    return i + n < c->n && n > 1 ? n - 1 : n;
}

/* Characters in the piece at i, as the cl100k regex reads from left to right. */
static size_t cl100k_piece(const struct chars *c, size_t i)
{
    static const char *const tails[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    size_t n, at;

    for (size_t k = 0; c->cp[i] == '\'' && k < COR_COUNT(tails); k++) {
        for (n = 0; tails[k][n] && i + 1 + n < c->n && lower(c->cp[i + 1 + n]) == (uint32_t)tails[k][n];)
            n++;
        if (!tails[k][n])
            return 1 + n;
    }
    at = c->is[i] != L && c->is[i] != N && !is_nl(c->cp[i]) ? 1 : 0;
    if ((n = run_of(c, i + at, L, SIZE_MAX)) != 0)
        return at + n;
    if ((n = run_of(c, i, N, 3)) != 0)
        return n;
    at = c->cp[i] == ' ' ? 1 : 0;
    if ((n = run_of(c, i + at, O, SIZE_MAX)) != 0) {
        for (n += at; i + n < c->n && is_nl(c->cp[i + n]);)
            n++;
        return n;
    }
    for (n = run_of(c, i, S, SIZE_MAX); n && !is_nl(c->cp[i + n - 1]);)
        n--;
    return n ? n : space_piece(c, i);
}

static size_t gpt2_piece(const struct chars *c, size_t i)
{
    static const char *const tails[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    size_t n, at = c->cp[i] == ' ' ? 1 : 0;

    for (size_t k = 0; c->cp[i] == '\'' && k < COR_COUNT(tails); k++) {
        for (n = 0; tails[k][n] && i + 1 + n < c->n && c->cp[i + 1 + n] == (uint32_t)tails[k][n];)
            n++;
        if (!tails[k][n])
            return 1 + n;
    }
    if ((n = run_of(c, i + at, L, SIZE_MAX)) || (n = run_of(c, i + at, N, SIZE_MAX)) ||
        (n = run_of(c, i + at, O, SIZE_MAX)))
        return at + n;
    return space_piece(c, i);
}

/* A vocabulary in plain bytes: 256 single bytes, then merges in an order that has nothing to do with their
 * length. */
struct toy {
    char alphabet[256][3]; /* UTF-8 of the GPT-2 alphabet */
    char bytes[1000][16];
    size_t len[1000];
    uint32_t n, n_merges;
    uint32_t left[800], right[800], made[800];
    char text[1000][48], merge[800][64];
    const char *texts[1000], *merges[800];
    uint8_t kind[1000];
    struct mdl_tokenizer_spec spec;
};

static uint32_t toy_find(const struct toy *t, const char *p, size_t n)
{
    for (uint32_t i = 0; i < t->n; i++)
        if (t->len[i] == n && !memcmp(t->bytes[i], p, n))
            return i;
    return UINT32_MAX;
}

static void toy_text(struct toy *t, uint32_t id)
{
    size_t n = 0;

    for (size_t i = 0; i < t->len[id]; i++)
        for (const char *c = t->alphabet[(uint8_t)t->bytes[id][i]]; *c; c++)
            t->text[id][n++] = *c;
    t->text[id][n] = 0;
    t->texts[id] = t->text[id];
    t->kind[id] = MDL_TOKEN_NORMAL;
}

static void toy_make(struct toy *t, const char *pre, uint64_t *rng)
{
    uint32_t extra = 256;
    char c[8];

    memset(t, 0, sizeof(*t));
    for (uint32_t b = 0; b < 256; b++) {
        bool shown = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;

        put_utf8(t->alphabet[b], shown ? b : extra++);
        t->bytes[b][0] = (char)b;
        t->len[b] = 1;
    }
    t->n = 256;
    while (t->n_merges < 700) {
        uint32_t a = (uint32_t)(test_rand(rng) % t->n), b = (uint32_t)(test_rand(rng) % t->n);
        uint64_t how = test_rand(rng);
        char both[32];

        if (how % 4 == 0) { /* the bytes of one character */
            size_t n = put_utf8(c, pool[(how >> 8) % COR_COUNT(pool)].cp);
            a = toy_find(t, c, 1);
            b = n > 1 ? toy_find(t, c + 1, n - 1) : b;
        } else if (how % 4 < 3) { /* two ASCII characters of any classes: shows where pieces are cut */
            a = pool[(how >> 8) % COR_COUNT(pool)].cp;
            b = pool[(how >> 32) % COR_COUNT(pool)].cp;
            if (a > 127 || b > 127)
                continue;
        }
        if (b == UINT32_MAX || t->len[a] + t->len[b] > 12)
            continue;
        memcpy(both, t->bytes[a], t->len[a]);
        memcpy(both + t->len[a], t->bytes[b], t->len[b]);
        uint32_t made = toy_find(t, both, t->len[a] + t->len[b]);
        bool twice = false;
        for (uint32_t i = 0; i < t->n_merges; i++)
            twice |= t->left[i] == a && t->right[i] == b;
        if (twice)
            continue;
        if (made == UINT32_MAX) {
            made = t->n++;
            t->len[made] = t->len[a] + t->len[b];
            memcpy(t->bytes[made], both, t->len[made]);
        }
        uint32_t at = (uint32_t)(test_rand(rng) % (t->n_merges + 1)); /* shuffled ranks */
        uint32_t last = t->n_merges++;
        t->left[last] = t->left[at], t->right[last] = t->right[at], t->made[last] = t->made[at];
        t->left[at] = a, t->right[at] = b, t->made[at] = made;
    }
    for (uint32_t i = 0; i < t->n; i++)
        toy_text(t, i);
    for (uint32_t i = 0; i < t->n_merges; i++) {
        snprintf(t->merge[i], sizeof(t->merge[i]), "%.30s %.30s", t->text[t->left[i]], t->text[t->right[i]]);
        t->merges[i] = t->merge[i];
    }
    t->spec = (struct mdl_tokenizer_spec){.source = "toy",
                                          .pre = pre,
                                          .n_tokens = t->n,
                                          .text = t->texts,
                                          .kind = t->kind,
                                          .n_merges = t->n_merges,
                                          .merges = t->merges,
                                          .eos = -1};
}

static size_t toy_merge(const struct toy *t, const char *p, size_t n, int32_t *ids)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint8_t)p[i];
    for (;;) {
        uint32_t best = t->n_merges;
        size_t at = 0;

        for (size_t i = 0; i + 1 < n; i++)
            for (uint32_t r = 0; r < best; r++)
                if (t->left[r] == (uint32_t)ids[i] && t->right[r] == (uint32_t)ids[i + 1])
                    best = r, at = i;
        if (best == t->n_merges)
            return n;
        ids[at] = (int32_t)t->made[best];
        n--;
        for (size_t i = at + 1; i < n; i++)
            ids[i] = ids[i + 1];
    }
}

static size_t toy_encode(const struct toy *t, const struct chars *c, const char *text, int32_t *ids)
{
    bool gpt2 = !strcmp(t->spec.pre, "gpt-2"), whole = !strcmp(t->spec.pre, "llama-bpe");
    size_t n_ids = 0;

    for (size_t i = 0, n; i < c->n; i += n) {
        n = gpt2 ? gpt2_piece(c, i) : cl100k_piece(c, i);
        const char *p = text + c->off[i];
        size_t bytes = c->off[i + n] - c->off[i];
        uint32_t id = whole ? toy_find(t, p, bytes) : UINT32_MAX;

        if (id != UINT32_MAX)
            ids[n_ids++] = (int32_t)id;
        else
            n_ids += toy_merge(t, p, bytes, ids + n_ids);
    }
    return n_ids;
}

static void random_utf8(void **state)
{
    static const char *const pres[] = {"dbrx", "llama-bpe", "smaug-bpe", "gpt-2"};
    static struct toy toy;
    static struct chars c;
    uint64_t rng = test_seed();
    size_t merged = 0;

    (void)state;
    for (int round = 0; round < 8; round++) {
        struct mdl_tokenizer *t;

        toy_make(&toy, pres[round % 4], &rng);
        test_ok(mdl_tokenizer_create(&t, &toy.spec, &err), &err);
        assert_string_equal(mdl_tokenizer_pre(t), pres[round % 4]);
        for (int k = 0; k < 60; k++) {
            char text[4 * 600 + 4];
            int32_t want[4 * 600];
            size_t n = 0, n_want, n_ids;

            c.n = test_rand(&rng) % 600;
            for (size_t i = 0; i < c.n; i++) {
                bool same = i && test_rand(&rng) % 8 == 0;
                size_t j = test_rand(&rng) % COR_COUNT(pool);

                c.cp[i] = same ? c.cp[i - 1] : pool[j].cp;
                c.is[i] = same ? c.is[i - 1] : pool[j].is;
                c.off[i] = n;
                n += put_utf8(text + n, c.cp[i]);
            }
            c.off[c.n] = n;
            n_want = toy_encode(&toy, &c, text, want);
            int32_t *ids = encode(t, text, n, false, &n_ids);
            merged += n - n_ids;
            for (size_t i = 0; i < n_ids && i < n_want; i++)
                if (ids[i] != want[i])
                    fail_msg("round %d, text %d: token %zu is %d, not %d", round, k, i, (int)ids[i],
                             (int)want[i]);
            assert_int_equal(n_ids, n_want);
            cor_free(ids);
        }
        mdl_tokenizer_close(t);
    }
    assert_true(merged > 10000); /* the merges did meet */
}

/* ---- particular texts ---- */

static void particular_pieces(void **state)
{
    size_t n;
    int32_t *ids = encode(nano, "", 0, true, &n);

    (void)state;
    assert_non_null(ids);
    assert_int_equal(n, 0);
    cor_free(ids);
    /* Digits in threes at most, two line breaks as one. */
    expect(nano, "a\n\nb 12345", false,
           (const char *const[]){"a", "\n\n", "b", " ", "12", "3", "4", "5", NULL});
    expect(nano, "I've WE'LL it'S", false,
           (const char *const[]){"I", "'", "ve", " W", "E", "'", "LL", " it", "'", "S", NULL});
}

/* With every string a token, ignore_merges shows the pieces themselves. */
static void contractions(void **state)
{
    static struct toy t;
    uint64_t rng = 7;
    static const char *const words[] = {"'S", "'s", "'Re",  "'VE", "'ll", "'lL", "'\xC5\xBF", "I",
                                        "we", "x",  " don", "'t",  "'x",  "'r",  "o"};
    struct mdl_tokenizer *tok;

    (void)state;
    toy_make(&t, "llama-bpe", &rng);
    for (size_t i = 0; i < COR_COUNT(words); i++)
        if (toy_find(&t, words[i], strlen(words[i])) == UINT32_MAX) {
            memcpy(t.bytes[t.n], words[i], strlen(words[i]));
            t.len[t.n] = strlen(words[i]);
            toy_text(&t, t.n++);
        }
    t.spec.n_tokens = t.n;
    test_ok(mdl_tokenizer_create(&tok, &t.spec, &err), &err);
    expect(tok, "I'S", false, (const char *const[]){"I", "'S", NULL});
    expect(tok, "we'Re", false, (const char *const[]){"we", "'Re", NULL});
    expect(tok, "we'VE", false, (const char *const[]){"we", "'VE", NULL});
    expect(tok, "we'lL", false, (const char *const[]){"we", "'lL", NULL});
    expect(tok, "x'\xC5\xBF", false, (const char *const[]){"x", "'\xC5\xBF", NULL}); /* long s folds to s */
    expect(tok, " don't", false, (const char *const[]){" don", "'t", NULL});
    expect(tok, "x'x", false, (const char *const[]){"x", "'x", NULL});
    expect(tok, "'so", false, (const char *const[]){"'s", "o", NULL}); /* the contraction is tried first */
    mdl_tokenizer_close(tok);
}

static void special_tokens(void **state)
{
    static struct toy t;
    static const struct {
        const char *text;
        uint8_t kind;
    } names[] = {
        {"<|a|>", MDL_TOKEN_CONTROL},      {"<|a|>b", MDL_TOKEN_USER},          {"<", MDL_TOKEN_USER},
        {"<|a", MDL_TOKEN_CONTROL},        {"\xE2\x82\xAC", MDL_TOKEN_CONTROL}, {"", MDL_TOKEN_UNUSED},
        {"<|im_end|>", MDL_TOKEN_CONTROL}, {"[PAD]", MDL_TOKEN_UNUSED}};
    uint64_t rng = 3;
    struct mdl_tokenizer *tok;
    const char *p;
    size_t n;

    (void)state;
    toy_make(&t, "dbrx", &rng);
    uint32_t first = t.n;
    for (size_t i = 0; i < COR_COUNT(names); i++) {
        t.texts[t.n] = names[i].text;
        t.kind[t.n++] = names[i].kind;
    }
    t.spec.n_tokens = t.n;
    t.spec.eos = (int32_t)first;
    test_ok(mdl_tokenizer_create(&tok, &t.spec, &err), &err);
    expect(tok, "<|a|>", true, (const char *const[]){"<|a|>", NULL});
    expect(tok, "<|a|>b<|a|><|a<\xE2\x82\xAC<", true,
           (const char *const[]){"<|a|>b", "<|a|>", "<|a", "<", "\xE2\x82\xAC", "<", NULL});
    expect(tok, "\x82<\xE2\x82", true, (const char *const[]){"\x82", "<", "\xE2", "\x82", NULL});
    int32_t *ids = encode(tok, "<|a|>b|a|><|im_end|>", 20, false, &n);
    for (size_t i = 0; i < n; i++) /* user tokens are parsed always, "<" twice here; control tokens are not */
        assert_true((uint32_t)ids[i] < first || (uint32_t)ids[i] == first + (i ? 2 : 1));
    assert_int_equal(ids[0], first + 1);
    cor_free(ids);
    assert_true(mdl_token_is_special(tok, (int32_t)first));
    assert_false(mdl_token_is_special(tok, (int32_t)first + 1));
    assert_true(mdl_token_is_end(tok, (int32_t)first));
    assert_false(mdl_token_is_end(tok, (int32_t)first + 3));
    assert_true(mdl_token_is_end(tok, (int32_t)first + 6));
    assert_int_equal(mdl_token_bytes(tok, (int32_t)first + 5, &p), 0);
    assert_int_equal(mdl_token_bytes(tok, (int32_t)first + 7, &p), 0);
    assert_int_equal(mdl_token_bytes(tok, -1, &p), 0);
    assert_int_equal(mdl_token_bytes(tok, INT32_MAX, &p), 0);
    assert_int_equal(mdl_tokenizer_size(tok), t.n);
    assert_int_equal(mdl_tokenizer_used(tok), first + 7);
    assert_int_equal(mdl_token_eos(tok), first);
    mdl_tokenizer_close(tok);

    ids = encode(nano, "x<|endoftext|>y", 15, true, &n);
    assert_int_equal(n, 3);
    assert_int_equal(ids[1], 4094);
    cor_free(ids);
    ids = encode(nano, "x<|endoftext|>y", 15, false, &n);
    assert_true(n > 5);
    cor_free(ids);
}

/* A vocabulary without some of the bytes that UTF-8 never has. */
static void bytes_without_token(void **state)
{
    static struct toy t;
    static const char text[] = "a\xC0\xFF";
    uint64_t rng = 3;
    struct mdl_tokenizer *tok;
    int32_t *ids;
    size_t n;

    (void)state;
    toy_make(&t, "dbrx", &rng);
    t.spec.n_merges = 0;
    t.texts[0xC0] = "\xC3\x80"; /* as DeepSeek's: a token of its own, not of the byte */
    t.kind[0xC0] = MDL_TOKEN_USER;
    test_ok(mdl_tokenizer_create(&tok, &t.spec, &err), &err);
    test_ok(mdl_encode(tok, text, 3, false, &ids, &n, &err), &err);
    assert_int_equal(n, 5);
    assert_true(ids[0] == 'a' && ids[1] == 0xEF && ids[2] == 0xBF && ids[3] == 0xBD && ids[4] == 0xFF);
    cor_free(ids);
    test_ok(mdl_encode(tok, "\xC3\x80", 2, false, &ids, &n, &err), &err);
    assert_true(n == 1 && ids[0] == 0xC0);
    cor_free(ids);
    mdl_tokenizer_close(tok);
}

static void random_bytes(void **state)
{
    static const char *const hard[] = {"\xC0\x80",
                                       "\xE0\x80\x80",
                                       "\xED\xA0\x80",
                                       "\xF4\x90\x80\x80",
                                       "\xF8\x88\x80\x80\x80",
                                       "\xFF",
                                       "\xE2\x82",
                                       "\xF0\x9F\x98",
                                       "  ",
                                       "\n ",
                                       "abc",
                                       "12"};
    uint64_t rng = test_seed();

    (void)state;
    for (int k = 0; k < 3000; k++) {
        char text[400];
        size_t n = 0, want = test_rand(&rng) % 300, n_ids;

        while (n < want) {
            uint64_t r = test_rand(&rng);
            const char *h = hard[(r >> 8) % COR_COUNT(hard)];

            if (r & 1) {
                memcpy(text + n, h, strlen(h));
                n += strlen(h);
            } else
                text[n++] = (char)(r >> 16);
        }
        for (int special = 0; special < 2; special++)
            cor_free(encode(nano, text, n, special, &n_ids));
    }
    /* Each invalid byte is a piece; a run of spaces before it ends there. */
    size_t n_ids;
    int32_t *ids = encode(nano,
                          "ab  \xC0\xC0"
                          "cd",
                          8, false, &n_ids);
    const char *p;

    assert_int_equal(n_ids, 5);
    assert_int_equal(mdl_token_bytes(nano, ids[1], &p), 2);
    cor_free(ids);
}

static void long_pieces(void **state)
{
    static const char *const units[] = {"a",  " ", "1", "!", " \n", "e\xCC\x81", "\xFF", "\xF0\x9F\x98\x80",
                                        "ab "};
    size_t room = 1000000, n_ids;
    char *text = malloc(room);

    (void)state;
    for (size_t u = 0; u < COR_COUNT(units); u++) {
        size_t len = strlen(units[u]), n = room / len * len;
        clock_t start = clock();

        for (size_t i = 0; i < n; i += len)
            memcpy(text + i, units[u], len);
        cor_free(encode(nano, text, n, true, &n_ids));
        double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (seconds > 5)
            fail_msg("1 MB of \"%s\" took %.1f s", units[u], seconds);
    }
    free(text);
}

/* Longer than one part: cut, but nothing is lost. */
static void longest_piece(void **state)
{
    size_t n = (1 << 20) + 12345, n_ids;
    char *text = malloc(n);

    (void)state;
    memset(text, 'a', n);
    cor_free(encode(nano, text, n, false, &n_ids));
    free(text);
}

/* ---- failures ---- */

static void refusals(void **state)
{
    static struct toy t;
    uint64_t rng = 5;

    (void)state;
#define REFUSE(status, change, words)                                        \
    do {                                                                     \
        struct mdl_tokenizer *bad = NULL;                                    \
        toy_make(&t, "dbrx", &rng);                                          \
        change;                                                              \
        assert_int_equal(mdl_tokenizer_create(&bad, &t.spec, &err), status); \
        assert_null(bad);                                                    \
        if (!strstr(err.message, words) || strncmp(err.message, "toy: ", 5)) \
            fail_msg("\"%s\" lacks \"%s\"", err.message, words);             \
    } while (0)
    REFUSE(VKMOE_ERR_UNSUPPORTED, t.spec.pre = "qwen1", "unknown pre-tokenizer \"qwen1\"; known: a.x-4.0, ");
    REFUSE(VKMOE_ERR_UNSUPPORTED, t.spec.pre = "", "tiny_aya, trillion, youtu"); /* the list is whole */
    REFUSE(VKMOE_ERR_FORMAT, t.texts[300] = t.texts[299], "tokens 299 and 300 have the same text");
    REFUSE(VKMOE_ERR_FORMAT, t.texts[300] = "", "token 300 has no bytes");
    REFUSE(VKMOE_ERR_FORMAT, t.texts[300] = "a b", "token 300 is not UTF-8 in the byte alphabet");
    REFUSE(VKMOE_ERR_FORMAT, t.texts[300] = "\xFF", "token 300 is not UTF-8");
    REFUSE(VKMOE_ERR_FORMAT, (t.texts[300] = "\xFF", t.kind[300] = MDL_TOKEN_CONTROL),
           "token 300 is not UTF-8");
    REFUSE(VKMOE_ERR_FORMAT,
           (t.texts[t.n] = t.texts[t.n + 1] = "<x>", t.kind[t.n] = t.kind[t.n + 1] = MDL_TOKEN_CONTROL,
            t.spec.n_tokens += 2),
           "have the same name");
    REFUSE(VKMOE_ERR_FORMAT, t.kind[300] = 6, "token 300 has unknown type 6");
    REFUSE(VKMOE_ERR_FORMAT, t.kind[97] = MDL_TOKEN_UNUSED, "no token for byte 0x61");
    REFUSE(VKMOE_ERR_FORMAT, t.kind[300] = MDL_TOKEN_UNUSED, "names an unknown token");
    REFUSE(VKMOE_ERR_FORMAT, t.merges[7] = t.merges[3], "merges 3 and 7 are the same");
    REFUSE(VKMOE_ERR_FORMAT, t.merges[7] = "ab", "merge 7 is not two tokens");
    REFUSE(VKMOE_ERR_FORMAT, t.merges[7] = " ab", "merge 7 is not two tokens");
    REFUSE(VKMOE_ERR_FORMAT, t.merges[7] = "a b c", "merge 7 is not two tokens");
    REFUSE(VKMOE_ERR_FORMAT, t.spec.eos = (int32_t)t.n, "end token");
    REFUSE(VKMOE_ERR_FORMAT, t.spec.eos = -2, "end token -2");
    REFUSE(VKMOE_ERR_FORMAT, t.spec.n_tokens = 0, "0 tokens");
    REFUSE(VKMOE_ERR_FORMAT, t.spec.n_tokens = UINT32_MAX, "4294967295 tokens");
    REFUSE(VKMOE_ERR_FORMAT, t.spec.n_merges = UINT32_MAX, "4294967295 merges");
}

static void every_allocation_fails(void **state)
{
    static struct toy t;
    static char text[4 * 500];
    uint64_t rng = 11;
    long live = cor_alloc_live(), failed = 0;
    size_t n = random_text(&rng, 500, text);

    (void)state;
    toy_make(&t, "dbrx", &rng);
    for (long nth = 1;; nth++) {
        struct mdl_tokenizer *tok = NULL;

        assert_true(nth < 200);
        cor_alloc_fail_from(nth);
        enum vkmoe_status st = mdl_tokenizer_create(&tok, &t.spec, &err);
        cor_alloc_fail_from(0);
        mdl_tokenizer_close(tok);
        assert_int_equal(cor_alloc_live(), live);
        if (!st)
            break;
        assert_int_equal(st, VKMOE_ERR_MEMORY);
        assert_null(tok);
        failed++;
    }
    assert_true(failed > 8);
    failed = 0;
    for (long nth = 1;; nth++) {
        int32_t *ids = NULL;
        size_t n_ids;

        assert_true(nth < 5000);
        cor_alloc_fail_from(nth);
        enum vkmoe_status st = mdl_encode(nano, text, n, true, &ids, &n_ids, &err);
        cor_alloc_fail_from(0);
        cor_free(ids);
        assert_int_equal(cor_alloc_live(), live);
        if (!st)
            break;
        assert_int_equal(st, VKMOE_ERR_MEMORY);
        failed++;
    }
    assert_true(failed > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_ids),
        cmocka_unit_test(shared_ids),
        cmocka_unit_test(random_ids),
        cmocka_unit_test(random_utf8),
        cmocka_unit_test(particular_pieces),
        cmocka_unit_test(contractions),
        cmocka_unit_test(special_tokens),
        cmocka_unit_test(random_bytes),
        cmocka_unit_test(bytes_without_token),
        cmocka_unit_test(long_pieces),
        cmocka_unit_test(longest_piece),
        cmocka_unit_test(refusals),
        cmocka_unit_test(every_allocation_fails),
    };

    return cmocka_run_group_tests(tests, load_nano, free_nano);
}
