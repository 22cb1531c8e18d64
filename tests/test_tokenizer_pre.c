/* Pre-tokenizers: where each family of patterns cuts, and that none of them backtracks. Whole ids are
 * compared with llama.cpp's by tools/full/tokenizers_against_peer.py. */
#include "support/test.h"

#include <stdio.h>

#include "model/tokenizer_impl.h"

static struct vkmoe_err err;

/* Pieces of text with `|` between them, into dst. */
static void cut(const char *name, const char *text, size_t n, char *dst, size_t *n_pieces)
{
    const struct mdl_pre *pre = mdl_pre_find(name);
    struct mdl_splitter *s;
    struct mdl_split_run *r;
    size_t at = 0, end, k = 0;

    assert_non_null(pre);
    test_ok(mdl_splitter_create(&s, pre, &err), &err);
    test_ok(mdl_split_begin(&r, s, &err), &err);
    for (*n_pieces = 0; at < n; at = end, ++*n_pieces) {
        test_ok(mdl_split_next(r, text, n, at, &end, &err), &err);
        assert_true(end > at && end <= n);
        if (!dst)
            continue;
        if (at)
            dst[k++] = '|';
        memcpy(dst + k, text + at, end - at);
        k += end - at;
    }
    if (dst)
        dst[k] = 0;
    mdl_split_end(r);
    mdl_splitter_destroy(s);
}

static void families(void **state)
{
    static const struct {
        const char *name, *text, *want;
    } rows[] = {
        {"gpt-2", "I'll 12345  x", "I|'ll| 12345| | x"},
        {"llama3", "I'LL 12345\n\nx", "I|'LL| |123|45|\n\n|x"},
        {"qwen2", "a12 b!\n\n", "a|1|2| b|!\n\n"},
        {"qwen35", "e\xCC\x81x 12", "e\xCC\x81x| |1|2"},
        {"hunyuan", "e\xCC\x81x 12", "e|\xCC\x81x| |1|2"},
        {"default", "x<=12345!", "x|<=|123|45|!"},
        {"falcon", "a`+1234", "a|`+|123|4"},
        {"refact", "ab12", "ab|1|2"},
        {"deepseek-llm", "a b\n12 \xE6\xBC\xA2\xE5\xAD\x97x ?!  ",
         "a| b|\n|12| |\xE6\xBC\xA2\xE5\xAD\x97|x| ?!|  "},
        {"deepseek-coder", "ab 12 .x", "ab| |1|2| .|x"},
        {"deepseek-v3",
         "f(x) 1234\xE6\xBC\xA2\xE5\xAD\x97"
         "a\n\n",
         "f|(x|)| |123|4|\xE6\xBC\xA2\xE5\xAD\x97|a|\n\n"},
        {"deepseek-v3",
         "\x01\x02"
         "12\x03 ",
         "\x01\x02|12|\x03| "}, /* nothing takes these: one piece */
        {"spark2_5", "1234\n\n", "1|2|3|4|\n|\n"},
        {"gpt-4o", "HelloWORLDx'LL HTMLParser/\n", "Hello|WORLDx'LL| HTMLParser|/\n"},
        {"gpt-4o",
         "ABC\xCA\xB0"
         "AB \xC3\x84\xC3\x96\xC3\xBC",
         "ABC\xCA\xB0|AB| \xC3\x84\xC3\x96\xC3\xBC"},
        {"tekken", "it's 12/", "it|'s| |1|2|/"},
        {"kimi-k2",
         "\xE6\xBC\xA2\xE5\xAD\x97"
         "abC\xE6\xBC\xA2 12345",
         "\xE6\xBC\xA2\xE5\xAD\x97|ab|C|\xE6\xBC\xA2| |123|45"},
        {"youtu",
         "\xED\x95\x9C"
         "a\xE6\xBC\xA2"
         "12",
         "\xED\x95\x9C|a|\xE6\xBC\xA2|1|2"},
        {"cohere2moe", "1234 1234a 123456", "1|234| |123|4|a| |123|456"},
        {"afmoe", "x12345  1 \xD9\xA1\xD9\xA2\xD9\xA3\xD9\xA4",
         "x|12|345|  |1| |\xD9\xA1|\xD9\xA2\xD9\xA3\xD9\xA4"},
        {"bailingmoe", "a\n \nb", "a|\n \n|b"},
        {"seed-coder", "a!\nb1", "a|!|\n|b|1"},
        {"exaone-moe", "to be or 12!/", "to be or| |1|2|!/"},
        {"laguna", " a \nb", " a| |\n|b"},
        {"minicpm5", "12345", "123|45"},
    };
    char got[256];
    size_t n;

    (void)state;
    for (size_t i = 0; i < COR_COUNT(rows); i++) {
        cut(rows[i].name, rows[i].text, strlen(rows[i].text), got, &n);
        if (strcmp(got, rows[i].want))
            fail_msg("%s: \"%s\", expected \"%s\"", rows[i].name, got, rows[i].want);
    }
}

/* What one text leaves behind must not show in the next. */
static void texts_do_not_mix(void **state)
{
    struct mdl_splitter *s;
    struct mdl_split_run *r;
    size_t end;

    (void)state;
    test_ok(mdl_splitter_create(&s, mdl_pre_find("afmoe"), &err), &err);
    test_ok(mdl_split_begin(&r, s, &err), &err);
    test_ok(mdl_split_next(r, "1234567890", 10, 0, &end, &err), &err);
    assert_int_equal(end, 1);
    test_ok(mdl_split_next(r, "12ab", 4, 0, &end, &err), &err);
    assert_int_equal(end, 2);
    test_ok(mdl_split_next(r, "12ab", 4, 2, &end, &err), &err);
    assert_int_equal(end, 4);
    mdl_split_end(r);
    mdl_splitter_destroy(s);
}

/* A pattern that tries again from many places runs into the limit of its steps and fails. */
static void long_runs(void **state)
{
    static const char *const units[] = {"a",
                                        " ",
                                        "1",
                                        "!",
                                        " \n",
                                        "e\xCC\x81",
                                        "A",
                                        "Aa",
                                        "'s",
                                        "\xCC\x81",
                                        "\t",
                                        "\x01",
                                        "\xE6\xBC\xA2",
                                        "\xE6\xBC\xA2"
                                        "A",
                                        "a ",
                                        "/\n",
                                        "\xE2\x80\xA8",
                                        "\xCA\xB0"
                                        "A"};
    const size_t room = 1 << 15;
    char names[1024], *text = malloc(room + 1), *name = names;
    size_t n_names = 0, n_pieces;

    (void)state;
    mdl_pre_names(names, sizeof(names));
    for (char *comma; name; name = comma ? comma + 2 : NULL, n_names++) {
        comma = strchr(name, ',');
        if (comma)
            *comma = 0;
        assert_non_null(mdl_pre_find(name));
        bool first = true; /* of the names that share patterns */
        for (const char *p = names; p < name; p += strlen(p) + 2)
            first &= mdl_pre_find(p)->cuts != mdl_pre_find(name)->cuts;
        for (size_t u = 0; first && u < COR_COUNT(units); u++) {
            size_t len = strlen(units[u]), n = room / len * len;

            for (size_t i = 0; i < n; i += len)
                memcpy(text + i, units[u], len);
            text[n] = 'x';
            cut(name, text, n, NULL, &n_pieces);
            cut(name, text, n + 1, NULL, &n_pieces);
        }
    }
    assert_true(n_names > 60);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families),
        cmocka_unit_test(texts_do_not_mix),
        cmocka_unit_test(long_runs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
