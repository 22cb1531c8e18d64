/* The expert pool from the command line: the same results as without it, its figures in JSON, hot sets, route
 * traces, lines for people, the status line. */
#include <math.h>
#include <stdio.h>

#include "experts/trace.h"
#include "support/cli.h"
#include "support/golden.h"

#define PROMPT "In the beginning"

enum { N_PROMPT = 4, N_OUT = 48, N_LAYERS = 6, N_USED = 5, N_EXPERTS = 378, POOL_MIB = 3 };

static const char *model(void)
{
    return golden_model("emo-nano", MDL_Q8_0);
}

/* An empty folder beside the model: there is one test_tmp at a time. */
static const char *folder(void)
{
    static char dir[4200];
    const char *file = model();

    snprintf(dir, sizeof(dir), "%.*s/files", (int)(strrchr(file, '/') - file), file);
    test_ok(cor_dir_make(dir, NULL), NULL);
    cli_check_empty(dir);
    return dir;
}

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = cli_get(o, key);

    assert_true(cJSON_IsNumber(v));
    return v->valuedouble;
}

/* ---- figures
 * ------------------------------------------------------------------------------------------------------ */

static void check_rate(const cJSON *counts)
{
    double hits = number(counts, "hits"), all = hits + number(counts, "misses");

    if (all > 0)
        assert_true(fabs(number(counts, "hit_rate") - hits / all) < 1e-6);
    else
        assert_true(cJSON_IsNull(cli_get(counts, "hit_rate")));
}

/* Decoded tokens, one by one; prompt: tokens of prefill. */
static void check_counts(const cJSON *pool, size_t n_decoded, size_t n_prompt)
{
    static const char *const keys[] = {
        "tokens",     "hits",   "misses",          "evictions", "uploaded_bytes",
        "host_waits", "visits", "blocking_visits", "reuploads",
    };
    const cJSON *cold = cli_get(pool, "cold"), *warm = cli_get(pool, "warm");

    for (size_t i = 0; i < COR_COUNT(keys); i++)
        assert_true(number(pool, keys[i]) == number(cold, keys[i]) + number(warm, keys[i]));
    assert_true(number(pool, "tokens") == (double)n_decoded);
    assert_true(number(cold, "tokens") == (double)(n_decoded < 32 ? n_decoded : 32));
    assert_true(number(pool, "hits") + number(pool, "misses") == (double)(n_decoded * N_LAYERS * N_USED));
    assert_true(number(pool, "visits") == (double)(n_decoded * N_LAYERS));
    assert_true(number(pool, "host_waits") == (double)n_decoded + number(pool, "blocking_visits"));
    assert_true(number(pool, "uploaded_bytes") == number(pool, "misses") * number(pool, "slot_bytes"));
    check_rate(pool);
    check_rate(cold);
    check_rate(warm);
    assert_true(number(cli_get(pool, "prefill"), "tokens") == (double)n_prompt);
    assert_true(number(pool, "resident") <= number(pool, "slots"));
    assert_true(number(pool, "experts") == N_EXPERTS);
    assert_true(number(pool, "slots_bytes") == number(pool, "slots") * number(pool, "slot_bytes"));
    assert_true(number(pool, "slots_bytes") + number(pool, "staging_bytes") + number(pool, "table_bytes") <=
                number(pool, "budget_bytes"));
}

/* `run --json` with the given options behind the usual ones. */
static cJSON *run(struct cli_result *r, const char *const *more)
{
    struct cli_call call = {.args = {"run", "-m", model(), "-p", PROMPT, "-n", "48", "--temp", "0", "-c",
                                     "128", "--ignore-eos", "--json"}};
    size_t n = 13;

    for (size_t i = 0; more && more[i]; i++)
        call.args[n++] = more[i];
    cli_good_(r, &call);
    return cli_json(r);
}

static void check_trace(const char *path, bool weights)
{
    struct vkmoe_err err = {0};
    struct xp_trace t = {0};
    size_t size, lines = 0;
    char *text;

    test_ok(cor_file_slurp(path, 1 << 24, &text, &size, &err), &err);
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    assert_int_equal(lines, 1 + N_PROMPT + N_OUT - 1); /* the last token is not fed */
    cor_free(text);
    test_ok(xp_trace_read(&t, path, &err), &err);
    assert_int_equal(t.n_tokens, N_PROMPT + N_OUT - 1);
    assert_int_equal(t.info.n_layers, N_LAYERS);
    assert_int_equal(t.info.n_used, N_USED);
    assert_int_equal(t.info.n_layers * t.info.n_experts, N_EXPERTS);
    assert_int_equal(t.n_streams, 1);
    assert_int_equal(t.info.weights, weights);
    assert_true((xp_trace_sel(&t, 0, 0)[1] != 0) == weights);
    xp_trace_free(&t);
}

/* Everything resident, a small pool, the same pool begun with the hot set of the run before. */
static void test_same_text(void **state)
{
    const char *dir = folder(), *hot = cli_path(dir, "hot.json"), *trace = cli_path(dir, "trace.jsonl");
    const char *const small[] = {"--pool-mib",    "3",   "--save-hot",    hot,
                                 "--route-trace", trace, "--check-slots", NULL};
    const char *const warm[] = {"--moe-cache-mib", "3",   "--warm-start",    hot,
                                "--route-trace",   trace, "--route-weights", "--pool-policy",
                                "lru/global",      NULL};
    struct cli_result r[3];
    cJSON *o[3];
    const cJSON *p[3];

    (void)state;
    o[0] = run(&r[0], NULL);
    o[1] = run(&r[1], small);
    check_trace(trace, false);
    o[2] = run(&r[2], warm);
    check_trace(trace, true);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(r[i].n_err, 0);
        assert_string_equal(cli_get(o[i], "text")->valuestring, cli_get(o[0], "text")->valuestring);
        p[i] = cli_get(o[i], "pool");
        check_counts(p[i], N_OUT - 1, N_PROMPT);
        assert_int_equal(cJSON_IsTrue(cli_get(p[i], "holds_all")), i == 0);
    }
    assert_true(number(p[0], "misses") == 0 && number(p[0], "slots") == N_EXPERTS);
    assert_true(number(p[1], "misses") > 0 && number(p[1], "hits") > 0);
    assert_true(number(p[1], "budget_bytes") == POOL_MIB << 20);
    assert_true(number(cli_get(p[1], "opening"), "uploaded_bytes") == 0);
    assert_true(number(cli_get(p[2], "opening"), "uploaded_bytes") > 0);
    assert_string_equal(cli_get(p[1], "policy")->valuestring, "decay:64");
    assert_string_equal(cli_get(p[2], "policy")->valuestring, "lru/global");
    for (int i = 0; i < 3; i++) {
        cJSON_Delete(o[i]);
        cli_result_free(&r[i]);
    }
    assert_int_equal(remove(hot), 0);
    assert_int_equal(remove(trace), 0);
    cli_check_empty(dir);
}

/* ---- other commands
 * ------------------------------------------------------------------------------------------- */

static void test_eval(void **state)
{
    static const char text[] =
        "And the LORD spake unto Moses and unto Aaron, saying,\n<|endoftext|>\ndef read(self, n=-1):";
    const char *dir = folder(), *trace = cli_path(dir, "trace.jsonl");
    const struct cli_call all = {.args = {"eval", "-m", model(), "-f", "-", "--json", "-c", "64"},
                                 .input = text};
    const struct cli_call few = {.args = {"eval", "-m", model(), "-f", "-", "--json", "-c", "64",
                                          "--pool-mib", "3", "--route-trace", trace},
                                 .input = text};
    struct vkmoe_err err = {0};
    struct xp_trace t = {0};
    struct cli_result a, b;
    cJSON *o, *q;

    (void)state;
    cli_good_(&a, &all);
    cli_good_(&b, &few);
    o = cli_json(&a);
    q = cli_json(&b);
    assert_true(number(o, "nll") > 0);
    assert_true(number(o, "nll") == number(q, "nll")); /* to the last digit */
    assert_true(number(cli_get(cli_get(q, "pool"), "prefill"), "loads") > 0);
    test_ok(xp_trace_read(&t, trace, &err), &err);
    assert_int_equal(t.n_streams, 2); /* documents */
    assert_int_equal(t.n_tokens, (size_t)number(q, "tokens"));
    xp_trace_free(&t);
    cJSON_Delete(o);
    cJSON_Delete(q);
    cli_result_free(&a);
    cli_result_free(&b);
    remove(trace);
}

static void test_logits(void **state)
{
    const char *dir = folder(), *a = cli_path(dir, "a.npy"), *b = cli_path(dir, "b.npy");
    struct vkmoe_err err = {0};
    struct cli_result r;
    size_t n, n_few;
    char *all, *few;
    cJSON *o;

    (void)state;
    cli_good(&r, "logits", "-m", model(), "-p", PROMPT, "--all", "-c", "64", "-o", a);
    cli_result_free(&r);
    cli_good(&r, "logits", "-m", model(), "-p", PROMPT, "--all", "-c", "64", "-o", b, "--pool-mib", "3",
             "--json");
    o = cli_json(&r);
    assert_true(number(o, "tokens") == N_PROMPT && number(o, "rows") == N_PROMPT);
    assert_string_equal(cli_get(o, "output")->valuestring, b);
    check_counts(cli_get(o, "pool"), 0, N_PROMPT);
    test_ok(cor_file_slurp(a, 1 << 24, &all, &n, &err), &err);
    test_ok(cor_file_slurp(b, 1 << 24, &few, &n_few, &err), &err);
    assert_int_equal(n, n_few);
    assert_memory_equal(all, few, n);
    cor_free(all);
    cor_free(few);
    cJSON_Delete(o);
    cli_result_free(&r);
    remove(a);
    remove(b);
}

/* Counts of a decode are those of the sizes: 50 % of 378 experts, and 3 MiB. */
static void test_bench_decode(void **state)
{
    static const char text[] = "In the beginning God created the heaven and the earth. And the earth was "
                               "without form, and void; and darkness was upon the face of the deep.";
    static const int slots[2][2] = {{N_EXPERTS, N_EXPERTS / 2}, {N_EXPERTS, 60}};
    struct cli_call call = {.args = {"bench", "decode", "-m", model(), "-f", "-", "--prompt", "4", "-n", "16",
                                     "--rounds", "2", "-c", "64", "-o", "json", "--capacity", "50"},
                            .input = text};

    (void)state;
    for (int i = 0; i < 2; i++) {
        const cJSON *rows, *row;
        struct cli_result r;
        cJSON *o;

        if (i == 1) {
            call.args[16] = "--pool-mib";
            call.args[17] = "3";
            call.args[11] = "1";
        }
        cli_good_(&r, &call);
        assert_int_equal(r.n_err, 0);
        o = cli_json(&r);
        rows = cli_get(o, "rows");
        assert_int_equal(cJSON_GetArraySize(rows), 2);
        for (int k = 0; k < 2; k++) {
            row = cJSON_GetArrayItem(rows, k);
            assert_true(number(row, "slots") == slots[i][k]);
            assert_true(number(row, "hits") + number(row, "misses") == 16 * N_LAYERS * N_USED);
            assert_int_equal(cJSON_GetArraySize(cli_get(row, "seconds")), 2 - i);
            assert_true(number(row, "tokens_per_second") > 0 && number(row, "of_full") > 0);
            assert_true(number(row, "best_tokens_per_second") >= 0.999 * number(row, "tokens_per_second"));
            assert_true((number(row, "misses") > 0) == (k > 0));
        }
        assert_true(number(cJSON_GetArrayItem(rows, 0), "host_waits_per_token") == 1);
        cJSON_Delete(o);
        cli_result_free(&r);
    }
    call.args[9] = "1000"; /* more than the text has */
    cli_bad_(2, "1000", &call);
}

/* ---- lines for people
 * ----------------------------------------------------------------------------------------- */

static void test_lines(void **state)
{
    struct cli_result r;

    (void)state;
    cli_good(&r, "run", "-m", model(), "-p", PROMPT, "-n", "4", "-c", "64", "--pool-mib", "4");
    assert_non_null(strstr(r.err, "\nexperts  80 slots of 378 (4.0 MiB), hits "));
    assert_null(strstr(r.err, "vkmoe:"));
    assert_null(strchr(r.err, '\r')); /* no status line where there is no terminal */
    assert_null(strchr(r.out, '\x1b'));
    cli_result_free(&r);
    cli_good(&r, "run", "-m", model(), "-p", PROMPT, "-n", "4", "-c", "64", "--pool-mib", "400");
    assert_non_null(strstr(r.err, "vkmoe: all 378 experts fit: the pool never evicts\n"));
    assert_non_null(strstr(r.err, "\nexperts  all 378 resident (18.8 MiB)\n"));
    cli_result_free(&r);
    cli_bad(1, "at least 2 MiB", "run", "-m", model(), "-p", PROMPT, "-c", "64", "--pool-mib", "1");
    cli_bad(1, "at most ", "run", "-m", model(), "-p", PROMPT, "-c", "64", "--pool-mib", "17", "--caps",
            "range=1M,buffers=8,heap=16M");
    cli_bad(2, "mru", "run", "-m", model(), "-p", PROMPT, "--pool-policy", "mru");
}

/* On a terminal the status comes with cursor movements in pairs, and the text is as it is without. */
static void test_status_line(void **state)
{
    struct cli_result plain, err_only, both;
    struct cli_call call = {.args = {"run", "-m", model(), "-p", PROMPT, "-n", "24", "--temp", "0", "-c",
                                     "64", "--ignore-eos", "--pool-mib", "3"}};
    size_t saves = 0, returns = 0;

    (void)state;
    cli_good_(&plain, &call);
    assert_null(strchr(plain.err, '\r'));
    call.terminal = CLI_TERMINAL_ERR;
    cli_good_(&err_only, &call);
    assert_string_equal(err_only.out, plain.out);
    assert_non_null(strstr(err_only.err, " tokens/s, hits "));
    assert_null(strstr(err_only.err, "\x1b"
                                     "7"));
    call.terminal = CLI_TERMINAL_BOTH;
    cli_good_(&both, &call);
    assert_int_equal(both.n_out, 0);
    for (const char *p = both.err; (p = strchr(p, '\x1b')); p++) {
        saves += p[1] == '7';
        returns += p[1] == '8';
    }
    assert_true(saves > 1 && saves == returns);
    assert_non_null(strstr(both.err, "\x1b[2K\x1b"
                                     "8")); /* taken away at the end */
    cli_result_free(&plain);
    cli_result_free(&err_only);
    cli_result_free(&both);
}

static void test_files(void **state)
{
    const char *dir = folder(), *none = cli_path(dir, "none"), *bad = cli_path(dir, "bad.json");
    const char *far = cli_path(dir, "none/x");

    (void)state;
    cli_bad(1, none, "run", "-m", model(), "-p", PROMPT, "--pool-mib", "3", "--warm-start", none);
    test_write(bad, "{}", 2);
    cli_bad(1, "bad.json", "run", "-m", model(), "-p", PROMPT, "--pool-mib", "3", "--warm-start", bad);
    cli_bad(1, "none/x", "run", "-m", model(), "-p", PROMPT, "-n", "1", "-c", "16", "--json", "--route-trace",
            far);
    cli_bad(1, "none/x", "run", "-m", model(), "-p", PROMPT, "-n", "1", "-c", "16", "--json", "--save-hot",
            far);
    remove(bad);
    cli_check_empty(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_text),   cmocka_unit_test(test_eval),
        cmocka_unit_test(test_logits),      cmocka_unit_test(test_bench_decode),
        cmocka_unit_test(test_status_line), cmocka_unit_test(test_lines),
        cmocka_unit_test(test_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
