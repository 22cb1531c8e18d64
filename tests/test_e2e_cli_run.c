/* `vkmoe devices` and `vkmoe run` on a device: text, seeds, JSON, forced text, end tokens, the context's end.
 */
#include <math.h>
#include <stdio.h>

#include "support/cli.h"
#include "support/golden.h"

#define PROMPT  "In the beginning"
#define EOS_KEY "tokenizer.ggml.eos_token_id"

/* Bytes that a model's tokenizer gives for ids: what `run` must have printed. cli_result_free. */
static void decode(struct cli_result *r, const int32_t *ids, size_t n)
{
    char *list = cli_id_list(ids, n);

    if (n)
        cli_good(r, "tokenize", "--decode", list);
    else
        *r = (struct cli_result){.out = cor_strdup("")};
    cor_free(list);
}

/* ---- devices
 * ---------------------------------------------------------------------------------------------------- */

static void test_devices(void **state)
{
    struct cli_result text, json;
    const cJSON *list, *d;
    cJSON *o;

    (void)state;
    cli_good(&text, "devices");
    cli_good(&json, "--list-devices", "--json");
    o = cli_json(&json);
    list = cli_get(o, "devices");
    assert_true(cJSON_IsArray(list) && cJSON_GetArraySize(list) > 0);
    cJSON_ArrayForEach(d, list)
    {
        assert_non_null(strstr(text.out, cli_get(d, "name")->valuestring));
        assert_non_null(strstr(text.out, cli_get(d, "driver_version")->valuestring));
        assert_true(cJSON_IsArray(cli_get(d, "heaps")));
    }
    assert_int_equal(text.n_err + json.n_err, 0);
    cJSON_Delete(o);
    cli_result_free(&text);
    cli_result_free(&json);
}

static void test_wrong_device(void **state)
{
    (void)state;
    cli_bad(1, "no-such-device", "run", "-p", "x", "-dev", "no-such-device");
    cli_bad(2, "99", "run", "-p", "x", "-dev", "99");
    cli_bad(2, "turbo", "run", "-p", "x", "--caps", "-f16,turbo");
    cli_bad(2, "range=", "run", "-p", "x", "--caps", "range=much");
}

static void test_wrong_model(void **state)
{
    const char *dir = test_tmp(), *cut = cli_path(dir, "cut.gguf");
    struct vkmoe_err err = {0};
    struct cor_file *f;
    char data[100000];

    (void)state;
    test_ok(cor_file_open(&f, golden_model("emo-nano", MDL_BF16), &err), &err);
    test_ok(cor_file_read(f, 0, data, sizeof(data), &err), &err);
    cor_file_close(f);
    test_write(cut, data, sizeof(data));
    cli_bad(1, "cut.gguf", "run", "-m", cut, "-p", "x");
    cli_bad(1, "none.gguf", "run", "-m", cli_path(dir, "none.gguf"), "-p", "x");
    cli_bad(1, dir, "run", "-m", dir, "-p", "x");
}

/* ---- run
 * -------------------------------------------------------------------------------------------------------- */

static void check_timings(const cJSON *o, size_t n_prompt, size_t n_decoded)
{
    static const char *const names[] = {"prompt", "predicted"};
    const size_t counts[] = {n_prompt, n_decoded};
    const cJSON *t = cli_get(o, "timings");
    char key[64];

    for (size_t i = 0; i < 2; i++) {
        double n, ms, rate;

        snprintf(key, sizeof(key), "%s_n", names[i]);
        n = cli_get(t, key)->valuedouble;
        snprintf(key, sizeof(key), "%s_ms", names[i]);
        ms = cli_get(t, key)->valuedouble;
        snprintf(key, sizeof(key), "%s_per_second", names[i]);
        rate = cli_get(t, key)->valuedouble;
        assert_int_equal((size_t)n, counts[i]);
        assert_true(ms > 0);
        assert_true(fabs(rate - n / ms * 1e3) <= 0.01 * rate + 0.01);
    }
}

static void check_device_and_pool(const cJSON *o)
{
    static const char *const strings[] = {"name", "driver", "driver_version"};
    static const char *const numbers[] = {"slots", "slot_bytes", "budget_bytes", "hits", "host_waits"};

    for (size_t i = 0; i < COR_COUNT(strings); i++)
        assert_true(cJSON_IsString(cli_get(cli_get(o, "device"), strings[i])));
    for (size_t i = 0; i < COR_COUNT(numbers); i++) {
        const cJSON *v = cli_get(cli_get(o, "pool"), numbers[i]);

        assert_true(cJSON_IsNumber(v) && v->valuedouble > 0);
    }
}

/* Greedy: the text twice, once from JSON; every key; what is printed is what the ids stand for. */
static void test_greedy_text_and_json(void **state)
{
    struct cli_result text, json, want, ids;
    size_t n_prompt, n, n_want;
    int32_t *prompt, *tokens, *want_prompt;
    cJSON *o, *prompt_json;

    (void)state;
    cli_good(&text, "run", "-p", PROMPT, "-n", "8", "--temp", "0", "-c", "64");
    cli_good_(&json,
              &(const struct cli_call){.args = {"run", "-", "-n", "8", "--temp", "0", "-c", "64", "--json"},
                                       .input = PROMPT});
    assert_int_equal(json.n_err, 0);
    o = cli_json(&json);
    prompt = cli_ids(cli_get(o, "prompt_tokens"), &n_prompt);
    tokens = cli_ids(cli_get(o, "tokens"), &n);
    assert_int_equal(n, 8);
    cli_good(&ids, "tokenize", "--json", "-p", PROMPT);
    prompt_json = cli_json(&ids);
    want_prompt = cli_ids(cli_get(prompt_json, "tokens"), &n_want);
    assert_int_equal(n_prompt, n_want);
    assert_memory_equal(prompt, want_prompt, n_want * sizeof(*prompt));
    decode(&want, tokens, n);
    assert_string_equal(cli_get(o, "text")->valuestring, want.out);
    assert_int_equal(strncmp(text.out, want.out, want.n_out), 0);
    assert_string_equal(text.out + want.n_out, want.out[want.n_out - 1] == '\n' ? "" : "\n");
    assert_string_equal(cli_get(o, "stop")->valuestring, "limit");
    check_timings(o, n_prompt, n - 1);
    check_device_and_pool(o);
    assert_non_null(strstr(text.err, "\ndevice "));
    assert_non_null(strstr(text.err, "\nprefill  4 tokens in "));
    assert_non_null(strstr(text.err, "\ndecode   7 tokens in "));
    assert_non_null(strstr(text.err, "\nmemory "));
    assert_non_null(strstr(text.err, cli_get(cli_get(o, "device"), "name")->valuestring));
    assert_null(strchr(text.err, '\r')); /* no progress bar where there is no terminal */
    cJSON_Delete(o);
    cJSON_Delete(prompt_json);
    cor_free(prompt);
    cor_free(tokens);
    cor_free(want_prompt);
    cli_result_free(&ids);
    cli_result_free(&want);
    cli_result_free(&text);
    cli_result_free(&json);
}

static void test_seeds(void **state)
{
    struct cli_result a, b, other;

    (void)state;
    cli_good(&a, "run", "-p", PROMPT, "-n", "6", "-s", "7", "-c", "32", "--temp", "1.2");
    cli_good(&b, "run", "-p", PROMPT, "-n", "6", "-s", "7", "-c", "32", "--temp", "1.2");
    cli_good(&other, "run", "-p", PROMPT, "-n", "6", "-s", "8", "-c", "32", "--temp", "1.2");
    assert_string_equal(a.out, b.out);
    assert_string_not_equal(a.out, other.out);
    assert_non_null(strstr(a.err, "\nseed     7\n"));
    cli_result_free(&a);
    cli_result_free(&b);
    cli_result_free(&other);
}

/* Whether the best logits come to the host or all of them (--logits-out), the text is the same. */
static void test_same_text_from_the_best(void **state)
{
    static const char *const temps[] = {"0", "0.9"}, *const top_k[] = {"64", "25"};
    const char *npy = cli_path(test_tmp(), "all_logits.npy");

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct cli_result best, all;

        cli_good(&best, "run", "-p", PROMPT, "-n", "12", "-s", "5", "-c", "64", "--temp", temps[i], "--top-k",
                 top_k[i]);
        cli_good(&all, "run", "-p", PROMPT, "-n", "12", "-s", "5", "-c", "64", "--temp", temps[i], "--top-k",
                 top_k[i], "--logits-out", npy);
        assert_string_equal(best.out, all.out);
        cli_result_free(&best);
        cli_result_free(&all);
    }
}

/* Kernels of both tables add up to "all", that and the rows below to the wall time, and kernels that read
 * weights say how much. */
static void check_profile(const struct cli_result *r)
{
    double sum = 0, moved = 0, shares = 0;
    uint32_t tables = 0;
    bool below = false;

    for (const char *p = r->err; (p = strchr(p, '\n')) != NULL;) {
        double count, us, ms, mb, rate, flops, share;
        char name[64];

        p++;
        if (sscanf(p, "  %63s %lf %lf %lf %lf %lf %lf %lf %%", name, &count, &us, &ms, &mb, &rate, &flops,
                   &share) != 8)
            continue;
        if (!strcmp(name, "all")) {
            assert_true(fabs(sum - ms) < 0.2 && fabs(moved - mb) < 0.2 && mb > 1);
            sum = moved = 0;
            shares = share;
            below = true;
            continue;
        }
        if (below) {
            shares += share;
            below = strcmp(name, "host") != 0;
            tables += !below;
            assert_true(below || fabs(shares - 100) < 0.3);
            continue;
        }
        sum += ms;
        moved += mb;
        if (!strncmp(name, "mat", 3) || !strncmp(name, "expert_", 7))
            assert_true(mb > 0 && rate > 0 && flops > 0);
    }
    assert_int_equal(tables, 2);
}

static void test_profile(void **state)
{
    struct cli_result plain, timed;
    const char *prefill, *decode;

    (void)state;
    cli_good(&plain, "run", "-p", PROMPT, "-n", "3", "-c", "16", "--temp", "0");
    cli_good(&timed, "run", "-p", PROMPT, "-n", "3", "-c", "16", "--temp", "0", "--profile");
    assert_string_equal(plain.out, timed.out);
    assert_null(strstr(plain.err, "submit+wait"));
    check_profile(&timed);
    prefill = strstr(timed.err, "\nprefill: ");
    decode = strstr(timed.err, "\ndecode: ");
    assert_true(prefill && decode && prefill < decode);
    assert_non_null(strstr(prefill, "  group "));
    assert_non_null(strstr(decode, "  router_one"));
    assert_null(strstr(decode, "  group ")); /* tables begin anew */
    cli_result_free(&plain);
    cli_result_free(&timed);
}

static void test_nothing_to_generate(void **state)
{
    struct cli_result r;
    cJSON *o;

    (void)state;
    cli_good(&r, "run", "-p", PROMPT, "-n", "0", "-c", "16", "--json");
    o = cli_json(&r);
    assert_int_equal(cJSON_GetArraySize(cli_get(o, "tokens")), 0);
    assert_int_equal(cJSON_GetArraySize(cli_get(o, "prompt_tokens")), 4);
    assert_string_equal(cli_get(o, "text")->valuestring, "");
    cJSON_Delete(o);
    cli_result_free(&r);
}

/* ---- the context's end
 * ------------------------------------------------------------------------------------------ */

static void test_context(void **state)
{
    struct cli_result r;
    cJSON *o;

    (void)state;
    cli_bad(1, "(-c)", "run", "-p", PROMPT, "-c", "3");
    /* Four tokens in a context of eight: four more fit, and the last of them predicts a fifth. */
    cli_good(&r, "run", "-p", PROMPT, "-c", "8", "-n", "-1", "--temp", "0", "--ignore-eos", "--json");
    o = cli_json(&r);
    assert_int_equal(cJSON_GetArraySize(cli_get(o, "tokens")), 5);
    assert_string_equal(cli_get(o, "stop")->valuestring, "context");
    cJSON_Delete(o);
    cli_result_free(&r);
    cli_good(&r, "run", "-p", PROMPT, "-c", "4", "-n", "100", "--temp", "0"); /* it just fits */
    assert_non_null(strstr(r.err, "\nstopped  the context of 4 tokens is full (-c)\n"));
    assert_true(r.n_out > 0);
    cli_result_free(&r);
    cli_bad(2, "4096", "run", "--tokens", "1,4096", "-c", "8"); /* behind the vocabulary */
}

/* ---- end tokens
 * ------------------------------------------------------------------------------------------------- */

/* A copy of the model whose end token is `id`. */
static const char *with_end_token(int32_t id)
{
    const char *path = cli_path(test_tmp(), "end.gguf");
    struct vkmoe_err err = {0};
    char *data, *at;
    size_t n;

    test_ok(cor_file_slurp(golden_model("emo-nano", MDL_BF16), (size_t)1 << 30, &data, &n, &err), &err);
    at = data;
    for (size_t i = 0; i + 64 < n; i++, at++) /* the key, its type, the value: GGUF is little-endian */
        if (!memcmp(at, EOS_KEY, sizeof(EOS_KEY) - 1))
            break;
    at += sizeof(EOS_KEY) - 1 + 4;
    for (int i = 0; i < 4; i++)
        at[i] = (char)((uint32_t)id >> 8 * i);
    test_write(path, data, n);
    cor_free(data);
    return path;
}

static void check_tokens(const char *model, bool ignore, const int32_t *want, size_t n_want, const char *stop)
{
    struct cli_result r;
    int32_t *got;
    cJSON *o;
    size_t n;

    cli_good(&r, "run", "-m", model, "--tokens", "4094", "--temp", "0", "-n", "8", "-c", "16", "--json",
             ignore ? "--ignore-eos" : NULL);
    o = cli_json(&r);
    got = cli_ids(cli_get(o, "tokens"), &n);
    assert_int_equal(n, n_want);
    assert_memory_equal(got, want, n * sizeof(*want));
    assert_string_equal(cli_get(o, "stop")->valuestring, stop);
    cor_free(got);
    cJSON_Delete(o);
    cli_result_free(&r);
}

/* The golden continuation of the end token alone is known, so any token of it can be made the end. */
static void test_end_token(void **state)
{
    struct golden g;
    const int32_t *greedy;
    const char *model;
    size_t at = 2;

    (void)state;
    assert_true(golden_load(&g, "emo-nano", 0));
    greedy = g.full.greedy.data;
    for (size_t i = 0; i < at; i++)
        if (greedy[i] == greedy[at]) /* the first of its kind */
            i = (size_t)-1, at++;
    assert_true(at < 7);
    model = with_end_token(greedy[at]);
    check_tokens(model, false, greedy, at + 1, "end");
    check_tokens(model, true, greedy, 8, "limit");
    golden_free(&g);
}

/* ---- forced text
 * ------------------------------------------------------------------------------------------------ */

/* The rows of --logits-out are those of `logits --all` over prompt and forced text, where each token was
 * chosen. */
static void test_force(void **state)
{
    static const char forced[] = " God created the heaven and the earth.\n";
    const char *dir = test_tmp(), *text = cli_path(dir, "forced"), *out = cli_path(dir, "out.npy");
    const char *all = cli_path(dir, "all.npy");
    struct cor_npy got, want;
    struct vkmoe_err err = {0};
    size_t n_prompt, n;
    int32_t *prompt, *tokens, *ids;
    struct cli_result r;
    char *list;
    cJSON *o;
    float worst = 0;

    (void)state;
    test_write(text, forced, sizeof(forced) - 1);
    cli_good(&r, "run", "-p", PROMPT, "--force", text, "--logits-out", out, "-ctk", "f32", "-ctv", "f32",
             "-c", "64", "--json");
    o = cli_json(&r);
    prompt = cli_ids(cli_get(o, "prompt_tokens"), &n_prompt);
    tokens = cli_ids(cli_get(o, "tokens"), &n);
    assert_string_equal(cli_get(o, "text")->valuestring, forced);
    ids = cor_array(n_prompt + n, sizeof(*ids));
    assert_non_null(ids);
    memcpy(ids, prompt, n_prompt * sizeof(*ids));
    memcpy(ids + n_prompt, tokens, n * sizeof(*ids));
    list = cli_id_list(ids, n_prompt + n);
    cli_result_free(&r);
    cli_good(&r, "logits", "--tokens", list, "--all", "-o", all, "-ctk", "f32", "-ctv", "f32", "-c", "64");
    assert_int_equal(r.n_out, 0);
    test_ok(cor_npy_read(&got, out, &err), &err);
    test_ok(cor_npy_read(&want, all, &err), &err);
    assert_int_equal(got.n_dims, 2);
    assert_int_equal(got.dims[0], n);
    assert_int_equal(got.dims[1], 4096);
    assert_int_equal(want.dims[0], n_prompt + n);
    for (size_t i = 0; i < n * 4096; i++) {
        float d = fabsf(((float *)got.data)[i] - ((float *)want.data)[(n_prompt - 1) * 4096 + i]);

        worst = d > worst || isnan(d) ? d : worst;
    }
    print_message("[ forced ] largest difference %.3g over %zu tokens\n", (double)worst, n);
    assert_true(worst <= 1e-4f);
    cor_npy_free(&got);
    cor_npy_free(&want);
    cor_free(prompt);
    cor_free(tokens);
    cor_free(ids);
    cor_free(list);
    cJSON_Delete(o);
    cli_result_free(&r);
}

/* A file of random weights decodes like any other. */
static void test_synth(void **state)
{
    const char *out = cli_path(test_tmp(), "random.gguf");
    struct cli_result r;
    int32_t *tokens;
    cJSON *o;
    size_t n;

    (void)state;
    cli_good(&r, "synth", "--shape", "emo-nano", "--layers", "2", "--experts", "16", "-o", out);
    cli_result_free(&r);
    cli_good(&r, "run", "-m", out, "-p", PROMPT, "-n", "8", "--ignore-eos", "--json");
    o = cli_json(&r);
    tokens = cli_ids(cli_get(o, "tokens"), &n);
    assert_int_equal(n, 8);
    assert_string_equal(cli_get(o, "stop")->valuestring, "limit");
    cor_free(tokens);
    cJSON_Delete(o);
    cli_result_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_wrong_device),
        cmocka_unit_test(test_wrong_model),
        cmocka_unit_test(test_greedy_text_and_json),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_nothing_to_generate),
        cmocka_unit_test(test_same_text_from_the_best),
        cmocka_unit_test(test_profile),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_end_token),
        cmocka_unit_test(test_force),
        cmocka_unit_test(test_synth),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
