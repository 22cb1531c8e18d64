/* vkmoe bench without a subcommand, --count and compare: rows that follow from each other in every format,
 * what a token costs in commands, and results that are not of one kind. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/alloc.h"
#include "support/cli.h"
#include "support/golden.h"

enum { N_ROWS = 6, PEAK = 10, N_LAYERS = 6 };

/* Of a layer of one decoded token, at most. */
enum { LAYER_DISPATCHES = 8, LAYER_BARRIERS = 7 };

static const char *model(void)
{
    return golden_model("emo-nano", MDL_Q8_0);
}

static cJSON *array(const struct cli_result *r)
{
    cJSON *a = cJSON_Parse(r->out);

    assert_true(cJSON_IsArray(a));
    return a;
}

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = cli_get(o, key);

    if (!cJSON_IsNumber(v))
        fail_msg("%s is no number", key);
    return v->valuedouble;
}

static void check_near(double got, double want, const char *what)
{
    if (!(fabs(got - want) <= 1e-6 * fabs(want)))
        fail_msg("%s: %g, not %g", what, got, want);
}

#define BENCH(...)                                                                                      \
    "bench", "-m", model(), "-p", "8", "-n", "4", "-pg", "4,2", "-d", "0,8", "-r", "2", "--peak", "10", \
        "-c", "64", __VA_ARGS__

/* ---- rows ---- */

static void check_keys(const cJSON *row)
{
    static const char *const keys[] = {"build_commit",
                                       "build_number",
                                       "cpu_info",
                                       "gpu_info",
                                       "backends",
                                       "model_filename",
                                       "model_type",
                                       "model_size",
                                       "model_n_params",
                                       "n_batch",
                                       "n_ubatch",
                                       "n_threads",
                                       "type_k",
                                       "type_v",
                                       "n_gpu_layers",
                                       "n_cpu_moe",
                                       "flash_attn",
                                       "devices",
                                       "n_prompt",
                                       "n_gen",
                                       "n_depth",
                                       "test_time",
                                       "avg_ns",
                                       "stddev_ns",
                                       "avg_ts",
                                       "stddev_ts",
                                       "samples_ns",
                                       "samples_ts",
                                       "test",
                                       "vkmoe_version",
                                       "driver",
                                       "driver_version",
                                       "model_digest",
                                       "text",
                                       "synthetic",
                                       "text_tokens",
                                       "text_wrapped",
                                       "fast_math",
                                       "variants",
                                       "variant_list",
                                       "pool",
                                       "experts",
                                       "caps",
                                       "n_ctx",
                                       "hit_rate",
                                       "uploaded_bytes_per_token",
                                       "bytes_per_token",
                                       "weight_bytes_per_token",
                                       "cache_bytes_per_token",
                                       "gb_per_second",
                                       "read_gb_per_second",
                                       "share_of_read"};

    for (size_t i = 0; i < COR_COUNT(keys); i++)
        cli_get(row, keys[i]);
    assert_int_equal(cJSON_GetArraySize(row), COR_COUNT(keys));
}

static void check_times(const cJSON *row)
{
    const cJSON *ns = cli_get(row, "samples_ns"), *ts = cli_get(row, "samples_ts");
    double n = number(row, "n_prompt") + number(row, "n_gen"), sum = 0, speed = 0;

    assert_int_equal(cJSON_GetArraySize(ns), 2);
    assert_int_equal(cJSON_GetArraySize(ts), 2);
    for (int i = 0; i < 2; i++) {
        double t = cJSON_GetArrayItem(ns, i)->valuedouble;

        assert_true(t > 0);
        check_near(cJSON_GetArrayItem(ts, i)->valuedouble, n * 1e9 / t, "a sample's speed");
        sum += t / 2;
        speed += n * 1e9 / t / 2;
    }
    check_near(number(row, "avg_ns"), sum, "avg_ns");
    check_near(number(row, "avg_ts"), speed, "avg_ts");
}

/* Bytes of tests that decode and nothing else: weights as the file has them, and two half floats of every
 * element of cache. */
static void check_bytes(const cJSON *row)
{
    double depth = number(row, "n_depth"), bytes;

    if (number(row, "n_prompt") > 0) {
        assert_true(cJSON_IsNull(cli_get(row, "bytes_per_token")));
        assert_true(cJSON_IsNull(cli_get(row, "gb_per_second")));
        return;
    }
    bytes = number(row, "bytes_per_token");
    check_near(number(row, "cache_bytes_per_token"), (depth + 2.5) * N_LAYERS * 256 * 4, "cache");
    check_near(bytes, number(row, "cache_bytes_per_token") + number(row, "weight_bytes_per_token"), "bytes");
    assert_true(number(row, "weight_bytes_per_token") > 4.5e6 && bytes < 6e6);
    check_near(number(row, "gb_per_second"), bytes * number(row, "avg_ts") * 1e-9, "GB/s");
    check_near(number(row, "share_of_read"), number(row, "gb_per_second") / PEAK, "share");
}

static void test_json(void **state)
{
    static const char *const names[N_ROWS] = {"pp8",      "tg4",      "pp4+tg2",
                                              "pp8 @ d8", "tg4 @ d8", "pp4+tg2 @ d8"};
    struct cli_result r, lines;
    const cJSON *row;
    size_t n = 0;
    cJSON *a;
    int i = 0;

    (void)state;
    cli_good(&r, BENCH("-o", "json"));
    assert_int_equal(r.n_err, 0);
    a = array(&r);
    assert_int_equal(cJSON_GetArraySize(a), N_ROWS);
    cJSON_ArrayForEach(row, a)
    {
        check_keys(row);
        check_times(row);
        check_bytes(row);
        assert_string_equal(cli_get(row, "test")->valuestring, names[i++]);
        assert_string_equal(cli_get(row, "text")->valuestring, "bench.txt");
        assert_true(cJSON_IsFalse(cli_get(row, "synthetic")) && cJSON_IsFalse(cli_get(row, "text_wrapped")));
        assert_true(number(row, "text_tokens") >= 6000);
        assert_true(number(row, "hit_rate") == 1 && number(row, "uploaded_bytes_per_token") == 0);
    }
    cJSON_Delete(a);
    cli_result_free(&r);
    cli_good(&lines, "bench", "-m", model(), "-p", "8", "-n", "4", "-r", "1", "--peak", "0", "--synthetic",
             "-o", "jsonl");
    for (char *p = lines.out, *end; (end = strchr(p, '\n')) != NULL; p = end + 1, n++) {
        *end = '\0';
        a = cJSON_Parse(p);
        check_keys(a);
        assert_true(cJSON_IsTrue(cli_get(a, "synthetic")) && cJSON_IsNull(cli_get(a, "share_of_read")));
        cJSON_Delete(a);
    }
    assert_int_equal(n, 2);
    cli_result_free(&lines);
}

static size_t count_of(const char *text, const char *what)
{
    size_t n = 0;

    for (; (text = strstr(text, what)) != NULL; text += strlen(what))
        n++;
    return n;
}

static void test_tables(void **state)
{
    struct cli_result r;

    (void)state;
    cli_good(&r, "bench", "-m", model(), "-p", "4", "-n", "2", "-r", "1", "--peak", "10", "-o", "csv");
    assert_int_equal(count_of(r.out, "\n"), 3);
    assert_int_equal(strncmp(r.out, "build_commit,", 13), 0);
    assert_int_equal(count_of(r.out, "emo-nano-q8_0.gguf\""), 2);
    cli_result_free(&r);
    cli_good(&r, "bench", "-m", model(), "-p", "0", "-n", "3", "-r", "1", "--peak", "10", "--tokens", "5,6",
             "-ctk", "f32");
    assert_non_null(strstr(r.out, "| tg3 |"));
    assert_non_null(strstr(r.out, "| type_k | type_v |"));
    assert_non_null(strstr(r.out, "| exact |"));
    assert_non_null(strstr(r.out, "ids of --tokens, repeated"));
    assert_non_null(strstr(r.out, "\nbuild: "));
    cli_result_free(&r);
}

static void test_pool(void **state)
{
    struct cli_result r;
    const cJSON *row;
    cJSON *a;

    (void)state;
    cli_good(&r, "bench", "-m", model(), "-p", "0", "-n", "8", "-r", "1", "--peak", "0", "--pool-mib", "3",
             "-o", "json");
    a = array(&r);
    row = cJSON_GetArrayItem(a, 0);
    assert_true(number(row, "hit_rate") < 1 && number(row, "hit_rate") > 0);
    assert_true(number(row, "uploaded_bytes_per_token") > 0);
    assert_string_equal(cli_get(row, "pool")->valuestring, "3");
    cJSON_Delete(a);
    cli_result_free(&r);
    cli_bad(2, "positions", "bench", "-m", model(), "-p", "64", "-c", "32", "--peak", "0");
    cli_bad(1, "none.gguf", "bench", "-m", "none.gguf", "--peak", "0");
    cli_bad(1, "none.txt", "bench", "-m", model(), "-f", "none.txt", "--peak", "0");
}

/* ---- what a token costs ---- */

static void test_count(void **state)
{
    struct cli_result r;
    cJSON *o;

    (void)state;
    cli_good(&r, "bench", "--count", "-m", model(), "-d", "16", "-o", "json");
    o = cli_json(&r);
    assert_true(number(o, "submits") == 1 && number(o, "waits") == 1);
    assert_true(number(o, "position") == 18 && number(o, "layers") == N_LAYERS);
    assert_true(number(o, "dispatches_per_layer") <= LAYER_DISPATCHES);
    assert_true(number(o, "barriers_per_layer") <= LAYER_BARRIERS);
    assert_true(number(o, "dispatches") ==
                N_LAYERS * number(o, "dispatches_per_layer") + number(o, "dispatches_outside"));
    assert_true(number(o, "barriers") ==
                N_LAYERS * number(o, "barriers_per_layer") + number(o, "barriers_outside"));
    assert_true(number(o, "read_of_needed") > 0.98 && number(o, "read_of_needed") <= 1.02);
    check_near(number(o, "cache_bytes"), 19 * N_LAYERS * 256 * 4, "cache");
    cJSON_Delete(o);
    cli_result_free(&r);
    cli_good(&r, "bench", "--count", "-m", model());
    assert_non_null(strstr(r.out, "| dispatches |"));
    cli_result_free(&r);
}

/* ---- compare ---- */

static const char row_text[] =
    "{\"gpu_info\": \"%s\", \"model_type\": \"m\", \"model_size\": 7, \"model_n_params\": 8, "
    "\"type_k\": \"%s\", \"type_v\": \"f16\", \"n_prompt\": 0, \"n_gen\": 16, \"n_depth\": 0, "
    "\"avg_ts\": %s, \"stddev_ts\": 0.5, \"share_of_read\": 0.25}\n";

static const char *write_row(const char *dir, const char *name, const char *device, const char *cache,
                             const char *speed)
{
    const char *path = cli_path(dir, name);
    char text[1024];

    snprintf(text, sizeof(text), row_text, device, cache, speed);
    test_write(path, text, strlen(text));
    return path;
}

static void test_compare(void **state)
{
    const char *dir = test_tmp(), *a, *b, *c, *d; /* the model is no longer there */
    struct cli_result r;

    (void)state;
    a = write_row(dir, "a.jsonl", "one | <i>", "f16", "10");
    b = write_row(dir, "b.jsonl", "two", "f16", "25");
    c = write_row(dir, "c.jsonl", "two", "f32", "25");
    d = write_row(dir, "d.jsonl", "two", "f16", "\"fast\"");
    cli_good(&r, "bench", "compare", a, b);
    assert_non_null(strstr(r.out, "10.00 ± 0.50, 25.0 %"));
    assert_non_null(strstr(r.out, "25.00 ± 0.50, 2.50 x, 25.0 %"));
    assert_non_null(strstr(r.out, "one \\| \\<i\\>"));
    assert_null(strstr(r.out, "force"));
    cli_result_free(&r);
    cli_bad(1, "key cache is 'f32', not 'f16'", "bench", "compare", a, b, c);
    cli_good(&r, "bench", "compare", a, c, "--force");
    assert_non_null(strstr(r.out, "key cache is 'f32', not 'f16'"));
    cli_result_free(&r);
    cli_good(&r, "bench", "compare", a, b, "-o", "html");
    assert_non_null(strstr(r.out, "default-src 'none'"));
    assert_non_null(strstr(r.out, "one | &#60;i&#62;"));
    assert_null(strstr(r.out, "<i>"));
    cli_result_free(&r);
    cli_bad(1, "avg_ts", "bench", "compare", a, d);
    cli_bad(1, "none", "bench", "compare", a, cli_path(dir, "none"));
    cli_bad(2, "two files", "bench", "compare", a);
    cli_bad(2, "xml", "bench", "compare", a, b, "-o", "xml");
}

/* A file that ends early, or is of another kind: one line, and no page. */
static void test_compare_broken(void **state)
{
    static const char *const texts[] = {
        "",     "[]",  "[1]", "[{}]", "{}", "[", "{\"rows\": []}", "[],\"x\":[", "[{\"n_gen\": -1}]",
        "\x00", "null"};
    const char *dir = test_tmp(), *good, *bad;
    char text[1024];
    size_t n;

    (void)state;
    good = write_row(dir, "good.jsonl", "one", "f16", "10");
    bad = cli_path(dir, "bad.json");
    for (size_t i = 0; i < COR_COUNT(texts); i++) {
        test_write(bad, texts[i], strlen(texts[i]));
        cli_bad(1, "bad.json", "bench", "compare", good, bad, "--force");
    }
    snprintf(text, sizeof(text), row_text, "one", "f16", "10");
    n = strlen(text) - 1;
    for (size_t i = 0; i < n; i += 7) {
        test_write(bad, text, i);
        cli_bad(1, "bad.json", "bench", "compare", good, bad);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),  cmocka_unit_test(test_tables),  cmocka_unit_test(test_pool),
        cmocka_unit_test(test_count), cmocka_unit_test(test_compare), cmocka_unit_test(test_compare_broken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
