/* `vkmoe experts eval` against what `eval`, `experts rank`, `experts carve` and `logits` say of the same
 * texts, and `experts report` where it must refuse. */
#include <math.h>
#include <stdio.h>

#include "support/cli.h"

#define CAL_A \
    "And the LORD spake unto Moses and unto Aaron, saying, Every man shall pitch by his own standard"
#define CAL_B  "def read(self, n=-1):\n    if self._file is None:\n        raise ValueError(\"closed\")\n"
#define TEST_A "And these are the names of the children of Israel"
#define TEST_B "class Reader(object):\n    def close(self):\n"
#define SEP    "\n<|endoftext|>\n"

static const char *dir, *cal_a, *cal_b, *test_a, *test_b;

static const char *written(const char *name, const char *text)
{
    const char *path = cor_strdup(cli_path(dir, name));

    test_write(path, text, strlen(text));
    return path;
}

static int setup(void **state)
{
    (void)state;
    dir = test_tmp();
    cal_a = written("cal_a.txt", CAL_A SEP TEST_A ", which came into Egypt");
    cal_b = written("cal_b.txt", CAL_B SEP "import os\nimport sys\n");
    test_a = written("test_a.txt", TEST_A);
    test_b = written("test_b.txt", TEST_B);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    cor_free((void *)cal_a);
    cor_free((void *)cal_b);
    cor_free((void *)test_a);
    cor_free((void *)test_b);
    return 0;
}

/* Nats per token by `vkmoe eval`; experts NULL: all. */
static double eval_nll(const char *file, const char *experts)
{
    struct cli_result r;
    double nll;
    cJSON *o;

    cli_good(&r, "eval", "-f", file, "--json", experts ? "--experts" : NULL, experts);
    o = cli_json(&r);
    nll = cli_get(o, "nll")->valuedouble / cli_get(o, "tokens")->valuedouble;
    cJSON_Delete(o);
    cli_result_free(&r);
    return nll;
}

static const char *rank(const char *name, const char *cal, const char *seed)
{
    const char *path = cli_path(dir, name);
    struct cli_result r;

    if (seed)
        cli_good(&r, "experts", "rank", "--method", "random", "--seed", seed, "--keep", "12.5%", "-o", path);
    else
        cli_good(&r, "experts", "rank", "-f", cal, "--keep", "12.5%", "-o", path);
    cli_result_free(&r);
    return path;
}

static double number(const cJSON *row, const char *key)
{
    const cJSON *v = cli_get(row, key);

    return cJSON_IsNumber(v) ? v->valuedouble : NAN;
}

static void same(double got, double want, const char *what)
{
    if (!(fabs(got - want) <= 1e-7 * fabs(want)))
        fail_msg("%s: %.12g, not %.12g", what, got, want);
}

static void check_carved(const cJSON *row, const char *subset)
{
    const char *path = cli_path(dir, "carved.gguf");
    struct vkmoe_err err;
    struct cor_file *f;
    struct cli_result r;

    cli_good(&r, "experts", "carve", "--experts", subset, "-o", path);
    cli_result_free(&r);
    test_ok(cor_file_open(&f, path, &err), &err);
    same(number(row, "disk_bytes"), (double)cor_file_size(f), "bytes of the file");
    cor_file_close(f);
}

static void test_equals_eval(void **state)
{
    struct cli_result r;
    const cJSON *rows, *all, *kept;
    const char *own, *other;
    cJSON *o;

    (void)state;
    cli_good(&r, "experts", "eval", "--calibrate", cal_a, cal_b, "--test", test_a, test_b, "--keep", "100%,8",
             "--random-seeds", "1", "--doc", "--calibrate-documents", "1,9", "--decode-tokens", "3",
             "--format", "json");
    o = cli_json(&r);
    rows = cli_get(o, "rows");
    assert_int_equal(cJSON_GetArraySize(rows), 4);
    all = cJSON_GetArrayItem(rows, 2);
    kept = cJSON_GetArrayItem(rows, 3); /* of the second text */
    assert_int_equal((int)number(all, "keep"), 64);
    assert_int_equal((int)number(kept, "keep_routed"), 7);
    own = rank("own.json", cal_b, NULL);
    other = rank("other.json", cal_a, NULL);
    same(number(all, "nll_right"), eval_nll(test_b, NULL), "all experts");
    assert_true(isnan(number(all, "nll_wrong")) && isnan(number(all, "nll_random")));
    same(number(kept, "nll_right"), eval_nll(test_b, own), "the right subset");
    same(number(kept, "ppl_right"), exp(number(kept, "nll_right")), "perplexity");
    same(number(kept, "nll_wrong"), eval_nll(test_b, other), "the wrong subset");
    same(number(kept, "nll_worst"), number(kept, "nll_wrong"), "the worst of one");
    same(number(kept, "nll_random"), eval_nll(test_b, rank("random.json", NULL, "0")), "the random subset");
    same(number(kept, "nll_doc"), eval_nll(test_b, "doc:7"), "document pool");
    check_carved(kept, own);
    assert_true(number(kept, "device_bytes") < number(all, "device_bytes"));
    assert_true(number(kept, "expert_bytes") < number(all, "expert_bytes") / 8);
    assert_true(number(kept, "tokens_per_second") > 0);
    assert_true(number(cli_get(kept, "ppl_right_by_documents"), "1") > 1);
    assert_true(isnan(number(cli_get(kept, "ppl_right_by_documents"), "9"))); /* there are two */
    cJSON_Delete(o);
    cli_result_free(&r);
}

static void test_tables(void **state)
{
    struct cli_result r;

    (void)state;
    cli_good(&r, "experts", "eval", "--calibrate", cal_a, "--test", test_a, "--keep", "12.5%",
             "--random-seeds", "0", "--decode-tokens", "0", "--method", "layerwise");
    assert_non_null(strstr(r.out,
                           "| text | keep | right | file MiB | device MiB |\n|---|---:|---:|---:|---:|\n"
                           "| test_a.txt | 12.5 % (8) | "));
    assert_non_null(strstr(r.err, "chosen   by layerwise"));
    cli_result_free(&r);
    cli_good(&r, "experts", "eval", "--calibrate", cal_a, "--test", test_a, "--keep", "100%", "--format",
             "csv", "--decode-tokens", "0");
    assert_non_null(strstr(r.out, "text,keep,keep_percent,ppl_right,"));
    assert_non_null(strstr(r.out, "\n\"test_a.txt\",64,100,"));
    assert_int_equal(r.n_err, 0);
    cli_result_free(&r);
}

/* ---- questions */

#define CONTEXT "And the LORD spake unto"

static int32_t *tokens(const char *text, size_t *n)
{
    struct cli_result r;
    int32_t *ids;
    cJSON *o;

    cli_good(&r, "tokenize", "--json", "-p", text);
    o = cli_json(&r);
    ids = cli_ids(cli_get(o, "tokens"), n);
    cJSON_Delete(o);
    cli_result_free(&r);
    return ids;
}

/* From the logits of every position, in double. */
static double plain_nll(const char *context, const char *choice)
{
    const char *path = cli_path(dir, "logits.npy");
    char text[256];
    size_t n_context, n;
    int32_t *of_context = tokens(context, &n_context), *ids;
    struct vkmoe_err err;
    struct cli_result r;
    struct cor_npy a;
    double nll = 0;
    char *list;

    snprintf(text, sizeof(text), "%s%s", context, choice);
    ids = tokens(text, &n);
    list = cli_id_list(ids, n);
    cli_good(&r, "logits", "--tokens", list, "--all", "-o", path, "-ctk", "f32", "-ctv", "f32");
    test_ok(cor_npy_read(&a, path, &err), &err);
    for (size_t j = n_context; j < n; j++) {
        const float *row = (const float *)a.data + (j - 1) * 4096;
        double sum = 0;

        for (size_t v = 0; v < 4096; v++)
            sum += exp((double)row[v]);
        nll += log(sum) - (double)row[ids[j]];
    }
    cor_npy_free(&a);
    cli_result_free(&r);
    cor_free(list);
    cor_free(ids);
    cor_free(of_context);
    return nll;
}

static void test_choices(void **state)
{
    static const char *const choices[2] = {" Moses, saying", " import sys"};
    const double nll[2] = {plain_nll(CONTEXT, choices[0]), plain_nll(CONTEXT, choices[1])};
    const char *path =
        written("q.jsonl", "{\"context\": \"" CONTEXT "\", \"choices\": [\" Moses, saying\", \" import "
                           "sys\"], \"answer\": 0}\r\n\n"
                           "{\"context\": \"" CONTEXT "\", \"choices\": [\" Moses, saying\", \" import "
                           "sys\"], \"answer\": 1}\n");
    struct cli_result r;
    const cJSON *row;
    cJSON *o;

    (void)state;
    assert_true(nll[0] < nll[1]);
    cli_good(&r, "experts", "eval", "--calibrate", cal_a, "--choices", path, "--keep", "100%",
             "--decode-tokens", "0", "--format", "json", "-ctk", "f32", "-ctv", "f32");
    o = cli_json(&r);
    row = cJSON_GetArrayItem(cli_get(o, "rows"), 0);
    assert_true(number(row, "accuracy") == .5); /* the likelier one is right once */
    assert_true(fabs(number(row, "answer_nll") - nll[0] - nll[1]) < 1e-3);
    assert_true(isnan(number(row, "ppl_right")));
    assert_int_equal((int)number(cJSON_GetArrayItem(cli_get(o, "texts"), 0), "questions"), 2);
    cJSON_Delete(o);
    cli_result_free(&r);
    cor_free((void *)path);
}

static void test_bad_questions(void **state)
{
    static const struct {
        const char *text, *word;
    } bad[] = {
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\nnonsense\n", "line 2"},
        {"[]\n", "line 1"},
        {"{\"choices\": [\"b\", \"c\"], \"answer\": 0}", "context"},
        {"{\"context\": \"\", \"choices\": [\"b\", \"c\"], \"answer\": 0}", "context"},
        {"{\"context\": 7, \"choices\": [\"b\", \"c\"], \"answer\": 0}", "context"},
        {"{\"context\": \"a\", \"choices\": [\"b\"], \"answer\": 0}", "choices"},
        {"{\"context\": \"a\", \"choices\": \"bc\", \"answer\": 0}", "choices"},
        {"{\"context\": \"a\", \"choices\": [\"b\", 3], \"answer\": 0}", "choice 1"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"\"], \"answer\": 0}", "choice 1"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 2}", "answer"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": -1}", "answer"},
        {"{\"context\": \"a\", \"choices\": [\"b\", \"c\"]}", "answer"},
        {"{\"context\": \"a\\u0000\", \"choices\": [\"b\", \"c\"], \"answer\": 0}", "NUL"},
        {"\n\n", "no question"},
        {"", "no question"},
    };

    (void)state;
    for (size_t i = 0; i < COR_COUNT(bad); i++) {
        const char *path = written("bad.jsonl", bad[i].text);

        cli_bad(1, bad[i].word, "experts", "eval", "--calibrate", cal_a, "--choices", path);
        cor_free((void *)path);
    }
}

static void test_usage(void **state)
{
    const char *empty = written("empty.txt", ""), *out = cli_path(dir, "r.html");

    (void)state;
    cli_bad(2, "--calibrate", "experts", "eval", "--test", test_a);
    cli_bad(2, "--test", "experts", "eval", "--calibrate", cal_a);
    cli_bad(2, "1 texts of --test for 2", "experts", "eval", "--calibrate", cal_a, cal_b, "--test", test_a);
    cli_bad(2, "--choices", "experts", "eval", "--calibrate", cal_a, "--choices", test_a, test_b);
    cli_bad(2, "--method", "experts", "eval", "--calibrate", cal_a, "--test", test_a, "--method", "random");
    cli_bad(2, "--wrong", "experts", "eval", "--calibrate", cal_a, "--test", test_a, "--wrong", "some");
    cli_bad(2, "--format", "experts", "eval", "--calibrate", cal_a, "--test", test_a, "--format", "xml");
    cli_bad(2, "'x'", "experts", "eval", "--calibrate", cal_a, "--test", test_a, "--calibrate-documents",
            "1,x");
    cli_bad(2, NULL, "experts", "eval", "--calibrate", cal_a, "--test", test_a, "--keep", "many");
    cli_bad(2, "6", "experts", "eval", "--calibrate", cal_a, "--test", test_a, "--keep",
            "5"); /* 5 + 1 shared */
    cli_bad(2, "--experts", "experts", "eval", "--calibrate", cal_a, "--test", test_a, "--experts", "doc:8");
    cli_bad(1, "empty.txt", "experts", "eval", "--calibrate", empty, "--test", test_a);
    cli_bad(2, "-f", "experts", "report", "-o", out);
    cli_bad(2, "-o", "experts", "report", "-f", test_a);
    cli_bad(2, "at most 2", "experts", "report", "-f", test_a, "-o", out, "-m", "a", "b", "c");
    cli_bad(2, "twice", "experts", "report", "-f", "-", "-o", out, "-m", "a", "b");
    cli_bad(1, "empty.txt", "experts", "report", "-f", empty, "-o", out);
    assert_false(cor_path_exists(out));
    cor_free((void *)empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_eval),   cmocka_unit_test(test_tables), cmocka_unit_test(test_choices),
        cmocka_unit_test(test_bad_questions), cmocka_unit_test(test_usage),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
