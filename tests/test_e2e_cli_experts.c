/* The option --experts of run, eval and logits: subsets, document pools, switching, what is told, and what is
 * refused. */
#include <math.h>
#include <stdio.h>

#include "support/cli.h"
#include "support/device.h"

#define F32    "-ctk", "f32", "-ctv", "f32"
#define PROMPT "And God said unto Moses, Go down, charge the people"

/* Every `step`th routed expert of emo-nano from `first` on, in every layer, as a subset file. */
static const char *write_subset(const char *dir, const char *name, unsigned first, unsigned step,
                                const char *model)
{
    const char *path = cli_path(dir, name);
    FILE *f = fopen(path, "w");
    unsigned n = 1;

    assert_non_null(f);
    for (unsigned e = first; e < 63; e += step)
        n++;
    fprintf(f,
            "{\"format\":\"vkmoe.subset\",\"version\":1,\"model\":\"%s\",\"n_layers\":6,\"n_routed\":63,"
            "\"n_shared\":1,\"keep\":%u,\"method\":\"test\",\"experts_kept_per_layer\":[",
            model, n);
    for (unsigned l = 0; l < 6; l++) {
        fprintf(f, "%s[", l ? "," : "");
        for (unsigned e = first; e < 63; e += step)
            fprintf(f, "%u,", e);
        fprintf(f, "63]");
    }
    fprintf(f, "]}\n");
    assert_int_equal(fclose(f), 0);
    return path;
}

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = cli_get(o, key);

    assert_true(cJSON_IsNumber(v));
    return v->valuedouble;
}

static cJSON *run_json(const char *experts, const char *pool)
{
    struct cli_result r;
    cJSON *o;

    cli_good(&r, "run", "-p", PROMPT, "-n", "6", "--temp", "0", "--ignore-eos", "--json", "-c", "64",
             "--experts", experts, "--pool-mib", pool);
    o = cli_json(&r);
    cli_result_free(&r);
    return o;
}

static void check_tokens(const cJSON *a, const cJSON *b, bool same)
{
    assert_int_equal(cJSON_Compare(cli_get(a, "tokens"), cli_get(b, "tokens"), true), same);
}

/* A subset takes only its own slots, and a pool of all experts is the whole model. */
static void test_modes(void **state)
{
    const char *dir = test_tmp();
    const char *subset = write_subset(dir, "third.json", 0, 3, "emo-nano");
    cJSON *all = run_json("all", "all"), *doc = run_json("doc:63", "all"), *few = run_json(subset, "all");
    cJSON *tight = run_json("doc:12", "8");
    const cJSON *e = cli_get(few, "experts");

    (void)state;
    check_tokens(all, doc, true);
    assert_string_equal(cli_get(cli_get(all, "experts"), "mode")->valuestring, "all");
    assert_string_equal(cli_get(e, "mode")->valuestring, "subset");
    assert_int_equal(number(cli_get(few, "pool"), "slots"), 6 * 21);
    assert_int_equal(number(cli_get(few, "pool"), "misses"), 0);
    assert_int_equal(number(e, "routed_least"), 21);
    assert_int_equal(number(e, "routed_most"), 21);
    assert_true(number(e, "outside_prompt") > 0.2 && number(e, "outside_prompt") < 1);
    assert_true(number(e, "outside_decode") > 0.2 && number(e, "outside_decode") < 1);
    assert_true(fabs(number(e, "outside_even") - (1 - 21.0 / 63)) < 1e-6);
    assert_string_equal(cli_get(cli_get(tight, "experts"), "mode")->valuestring, "doc");
    assert_int_equal(number(cli_get(tight, "experts"), "routed_most"), 12);
    assert_int_equal(number(cli_get(tight, "pool"), "misses"), 0);
    cJSON_Delete(all);
    cJSON_Delete(doc);
    cJSON_Delete(few);
    cJSON_Delete(tight);
}

/* One subset for the prompt and two tokens, another behind them: the first three tokens are those of the
 * first. */
static void test_switch(void **state)
{
    const char *dir = test_tmp();
    char both[1024];
    const char *a = write_subset(dir, "a.json", 0, 4, "emo-nano"),
               *b = write_subset(dir, "b.json", 2, 4, "emo-nano");
    cJSON *first = run_json(a, "all"), *switched;

    (void)state;
    snprintf(both, sizeof(both), "%s,%s@2", a, b);
    switched = run_json(both, "all");
    check_tokens(first, switched, false);
    for (int i = 0; i < 3; i++)
        assert_int_equal(cJSON_GetArrayItem(cli_get(first, "tokens"), i)->valueint,
                         cJSON_GetArrayItem(cli_get(switched, "tokens"), i)->valueint);
    assert_int_equal(number(cli_get(switched, "pool"), "slots"), 6 * 32);
    assert_int_equal(cJSON_GetArraySize(cli_get(cli_get(switched, "experts"), "files")), 2);
    cJSON_Delete(first);
    cJSON_Delete(switched);
}

static double eval_nll(const char *text, const char *experts, const char *prompt)
{
    struct cli_result r;
    double nll;
    cJSON *o;

    cli_good(&r, "eval", "-f", text, "--json", F32, "-c", "256", "--experts", experts, "--doc-prompt",
             prompt);
    o = cli_json(&r);
    nll = number(o, "nll");
    cJSON_Delete(o);
    cli_result_free(&r);
    return nll;
}

/* A pool picked from scripture says so when code follows, and keeps quiet when scripture does. */
static void test_topic(void **state)
{
    const char *names[] = {"tests/golden/data/scripture.validation.txt",
                           "tests/golden/data/python.validation.txt"};
    const char *dir = test_tmp(), *prompt = cli_path(dir, "prompt.txt");
    struct vkmoe_err err = {0};
    char *text;
    size_t n;

    (void)state;
    test_ok(cor_file_slurp(test_source(names[0]), 1 << 20, &text, &n, &err), &err);
    test_write(prompt, text + 2000, 400);
    cor_free(text);
    for (int i = 0; i < 2; i++) {
        struct cli_result r;

        cli_good(&r, "run", "-f", prompt, "--force", test_source(names[i]), "-n", "60", "-c", "256",
                 "--experts", "doc:16");
        assert_int_equal(strstr(r.err, "left the topic") != NULL, i);
        cli_result_free(&r);
    }
}

/* Picking from the first tokens only is another pool than picking from all, and all experts are all experts.
 */
static void test_eval(void **state)
{
    const char *text = cli_path(test_tmp(), "text.txt");
    FILE *f = fopen(text, "w");
    double all, doc, first;

    (void)state;
    assert_non_null(f);
    fprintf(f, "%s.\nAnd Moses said unto the LORD, The people cannot come up to mount Sinai.", PROMPT);
    assert_int_equal(fclose(f), 0);
    all = eval_nll(text, "all", "0");
    assert_true(all == eval_nll(text, "doc:63", "0"));
    doc = eval_nll(text, "doc:7", "0");
    first = eval_nll(text, "doc:7", "8");
    assert_true(doc != all && first != doc && isfinite(first));
}

/* Importances of a text, which quantize takes without a word: they are of the same model. */
static void test_imatrix(void **state)
{
    const char *dir = test_tmp(), *text = cli_path(dir, "text.txt"), *imatrix = cli_path(dir, "imatrix.gguf"),
               *out = cli_path(dir, "out.gguf");
    struct device_case device;
    struct cli_result r;
    bool slow;
    cJSON *o;

    (void)state;
    cli_bad(2, "layerwise", "experts", "rank", "-f", text, "--imatrix-out", imatrix, "--method", "layerwise",
            "--keep", "16");
    cli_bad(2, "needs a text", "experts", "rank", "--stats", text, "--imatrix-out", imatrix);
    device_open(&device, NULL, &(struct device_params){.lazy = true});
    slow = device_slow(&device);
    device_close(&device);
    if (slow) /* what is read back depends on no driver */
        return;
    test_write(text, PROMPT, strlen(PROMPT));
    cli_good(&r, "experts", "rank", "-f", text, "--imatrix-out", imatrix, "--json", "-c", "64");
    o = cli_json(&r);
    assert_string_equal(cli_get(o, "imatrix_output")->valuestring, imatrix);
    cJSON_Delete(o);
    cli_result_free(&r);
    cli_good(&r, "quantize", test_source("models/emo-nano.gguf"), out, "q4_0", "--imatrix", imatrix);
    assert_string_equal(r.err, "");
    cli_result_free(&r);
}

static void test_bad(void **state)
{
    const char *dir = test_tmp();
    const char *other = write_subset(dir, "other.json", 0, 3, "somebody"),
               *few = write_subset(dir, "few.json", 0, 20, "");
    const char *good = write_subset(dir, "good.json", 0, 3, "emo-nano");
    char text[1024];

    (void)state;
#define BAD(status, word, experts) cli_bad(status, word, "run", "-p", "x", "-n", "1", "--experts", experts)
    BAD(2, "doc:N", "doc:0");
    BAD(2, "doc:N", "doc:12x");
    BAD(2, "from 5", "doc:4");
    BAD(2, "to 63", "doc:64");
    BAD(1, "missing.json", "missing.json");
    BAD(2, "somebody", other);
    BAD(2, "few.json: layer 0 keeps 4", few);
    snprintf(text, sizeof(text), "%s,%s", good, good);
    BAD(2, "FILE@TOKENS", text);
    snprintf(text, sizeof(text), "%s,%s@0", good, good);
    BAD(2, "rising", text);
    cli_bad(2, "--doc-refresh", "run", "-p", "x", "-n", "1", "--doc-refresh", "4");
    cli_bad(1, "at least 10 MiB", "run", "-p", "x", "-n", "1", "--experts", "doc:16", "--pool-mib", "5");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes), cmocka_unit_test(test_switch),  cmocka_unit_test(test_eval),
        cmocka_unit_test(test_topic), cmocka_unit_test(test_imatrix), cmocka_unit_test(test_bad),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
