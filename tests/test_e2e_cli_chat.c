/* `vkmoe chat` on a device: turns that stay in the cache, lines as they are and by a template. */
#include <stdio.h>

#include "model/gguf.h"
#include "support/cli.h"
#include "support/golden.h"

enum { TURNS_MAX = 4, ROOM = 256 };

static struct vkmoe_err err;

struct turn {
    int32_t *prompt, *tokens;
    size_t n_prompt, n_tokens;
    char *text, stop[16];
    int position;
};

/* Each line of the output is a turn. */
static size_t talk(struct turn *turns, const char *model, const char *template, const char *input,
                   const char *n)
{
    struct cli_result r;
    size_t k = 0;

    cli_good_(&r, &(const struct cli_call){
                      .args = {"chat", "-m", model, "--temp", "0", "-c", "256", "-n", n, "--json", template},
                      .input = input});
    for (char *line = r.out, *end; *line; line = end + 1, k++) {
        end = strchr(line, '\n');
        assert_non_null(end);
        assert_true(k < TURNS_MAX);
        *end = 0;
        cJSON *o = cJSON_Parse(line);
        assert_non_null(o);
        assert_int_equal(cli_get(o, "turn")->valueint, k + 1);
        turns[k].prompt = cli_ids(cli_get(o, "prompt_tokens"), &turns[k].n_prompt);
        turns[k].tokens = cli_ids(cli_get(o, "tokens"), &turns[k].n_tokens);
        turns[k].text = cor_strdup(cli_get(o, "text")->valuestring);
        turns[k].position = cli_get(o, "position")->valueint;
        snprintf(turns[k].stop, sizeof(turns[k].stop), "%s", cli_get(o, "stop")->valuestring);
        cJSON_Delete(o);
    }
    cli_result_free(&r);
    return k;
}

static void free_turns(struct turn *turns, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        cor_free(turns[i].prompt);
        cor_free(turns[i].tokens);
        cor_free(turns[i].text);
    }
}

/* A reply must be what `run` makes of all that was fed before it. */
static void check_reply(const char *model, const struct turn *turns, size_t k)
{
    int32_t all[ROOM], *got;
    struct cli_result r;
    size_t n = 0, n_got;
    char many[16], *list;
    cJSON *o;

    for (size_t i = 0; i <= k; i++) {
        assert_true(n + turns[i].n_prompt + turns[i].n_tokens < ROOM);
        memcpy(all + n, turns[i].prompt, turns[i].n_prompt * sizeof(*all));
        n += turns[i].n_prompt;
        if (i < k) {
            memcpy(all + n, turns[i].tokens, turns[i].n_tokens * sizeof(*all));
            n += turns[i].n_tokens;
        }
    }
    list = cli_id_list(all, n);
    snprintf(many, sizeof(many), "%zu", turns[k].n_tokens);
    cli_good(&r, "run", "-m", model, "--tokens", list, "--temp", "0", "-c", "256", "-n", many, "--json");
    o = cli_json(&r);
    got = cli_ids(cli_get(o, "tokens"), &n_got);
    assert_int_equal(n_got, turns[k].n_tokens);
    assert_memory_equal(got, turns[k].tokens, n_got * sizeof(*got));
    cor_free(got);
    cor_free(list);
    cJSON_Delete(o);
    cli_result_free(&r);
}

static void test_lines(void **state)
{
    const char *model = golden_model("emo-nano", MDL_BF16);
    struct turn turns[TURNS_MAX];

    (void)state;
    assert_int_equal(talk(turns, model, "--no-template",
                          "In the beginning\n\nAnd God said,\\\nmore\n/clear\nIn the beginning\n"
                          "/exit\nno more\n",
                          "10"),
                     3);
    for (size_t i = 0; i < 2; i++) {
        assert_string_equal(turns[i].stop, "limit");
        assert_int_equal(turns[i].n_tokens, 10);
    }
    check_reply(model, turns, 1);
    assert_int_equal(turns[0].position, turns[0].n_prompt + 10);
    assert_int_equal(turns[2].position, turns[2].n_prompt + 10); /* all was forgotten */
    assert_string_equal(turns[0].text, turns[2].text);
    free_turns(turns, 3);
}

#define BOS     4095
#define ADD_BOS "tokenizer.ggml.add_bos_token"

/* The model with a template, and with a token that stands before every text. */
static void with_template(const char *path, const char *template)
{
    struct mdl_gguf *g;
    struct mdl_gguf_writer *w;

    test_ok(mdl_gguf_open(&g, golden_model("emo-nano", MDL_BF16), &err), &err);
    test_ok(mdl_gguf_create(&w, path, &err), &err);
    for (uint64_t i = 0; i < g->n_kv; i++)
        if (strcmp(g->kv[i].key, ADD_BOS))
            test_ok(mdl_gguf_put_kv(w, &g->kv[i], &err), &err);
    test_ok(mdl_gguf_put_bool(w, ADD_BOS, true, &err), &err);
    test_ok(mdl_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", BOS, &err), &err);
    test_ok(mdl_gguf_put_str(w, "tokenizer.chat_template", template, strlen(template), &err), &err);
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct mdl_tensor *t = &g->tensors[i];

        test_ok(mdl_gguf_put_tensor(w, t->name, t->type, t->n_dims, t->dims, &err), &err);
    }
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        void *data = cor_alloc((size_t)g->tensors[i].bytes);

        test_ok(mdl_gguf_read(g, &g->tensors[i], 0, data, (size_t)g->tensors[i].bytes, &err), &err);
        test_ok(mdl_gguf_write_data(w, data, (size_t)g->tensors[i].bytes, &err), &err);
        cor_free(data);
    }
    test_ok(mdl_gguf_commit(w, &err), &err);
    mdl_gguf_close(g);
}

/* Tulu's: marks are text, but for the end of text, which closes each reply. */
static void test_template(void **state)
{
    const char *model = *state;
    struct turn turns[TURNS_MAX];
    struct cli_result r;
    char *list;

    with_template(model, "{{ '<|user|>\n' + m + '\n' }}{{ '<|assistant|>\n' + m + eos_token + '\n' }}");
    assert_int_equal(talk(turns, model, NULL, "In <|endoftext|>\nthe\n", "6"), 2);
    check_reply(model, turns, 1);
    for (size_t i = 0; i < turns[0].n_prompt; i++)
        assert_true(turns[0].prompt[i] != 4094); /* what the user writes is text */
    assert_int_equal(turns[0].prompt[0], BOS);
    assert_int_equal(turns[1].prompt[0], 4094);
    list = cli_id_list(turns[1].prompt, turns[1].n_prompt);
    cli_good(&r, "tokenize", "--decode", list);
    assert_string_equal(r.out, "<|endoftext|>\n<|user|>\nthe\n<|assistant|>\n");
    cor_free(list);
    cli_result_free(&r);
    free_turns(turns, 2);
}

/* The same file: its token before a text stands before prompts and scored documents, once. */
static void test_first_token(void **state)
{
    const char *model = *state;
    struct cli_result r;
    double nll[2];
    int32_t *ids;
    size_t n;
    cJSON *o;

    cli_good(&r, "run", "-m", model, "-p", "<|padding|>In", "--special", "-n", "1", "-c", "16", "--json");
    o = cli_json(&r);
    ids = cli_ids(cli_get(o, "prompt_tokens"), &n);
    assert_true(n >= 2 && ids[0] == BOS && ids[1] != BOS);
    cor_free(ids);
    cJSON_Delete(o);
    cli_result_free(&r);
    cli_good(&r, "tokenize", "-m", model, "-p", "In");
    assert_memory_equal(r.out, "  4095  \"<|padding|>\"  special\n", 29);
    cli_result_free(&r);
    for (int i = 0; i < 2; i++) { /* what a document begins with changes what it is worth */
        cli_good_(&r, &(const struct cli_call){
                          .args = {"eval", "-f", "-", "-c", "16", "--json", i ? NULL : "-m", model},
                          .input = "In the beginning"});
        o = cli_json(&r);
        nll[i] = cli_get(o, "nll")->valuedouble;
        assert_true(cli_get(o, "tokens")->valuedouble > 3);
        cJSON_Delete(o);
        cli_result_free(&r);
    }
    assert_true(nll[0] != nll[1]);
}

static void test_refusals(void **state)
{
    struct cli_result r;

    (void)state;
    cli_bad(1, "no tokenizer.chat_template", "chat");
    cli_bad(2, "-sys or -sysf", "chat", "-sys", "a", "-sysf", "b");
    cli_bad(2, "'x'", "chat", "x");
    cli_call(
        &r, &(const struct cli_call){.args = {"chat", "--no-template", "-c", "16", "-n", "4", "--temp", "0"},
                                     .input = "In the beginning\nIn the beginning God created the heaven and "
                                              "the earth, and the earth was without form\nmore\n"});
    assert_int_equal(r.status, 1); /* no terminal: the end, behind the first reply */
    assert_true(r.n_out > 0);
    assert_non_null(strstr(r.err, "are too many for the 7 that the context of 16 (-c) has left"));
    cli_result_free(&r);
}

static int setup(void **state)
{
    static char path[4096];

    snprintf(path, sizeof(path), "%s/template.gguf", test_tmp());
    *state = path;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_template),
        cmocka_unit_test(test_first_token),
        cmocka_unit_test(test_refusals),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
