/* The program without a device: help, wrong usage, files that are missing, broken or cannot be written, and
 * what is left behind. */
#include <errno.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/cli.h"
#include "support/golden.h"

static const char *const commands[] = {"devices", "convert", "inspect", "tokenize", "run",      "chat",
                                       "logits",  "eval",    "synth",   "bench",    "selftest", "tune"};

/* ---- help
 * ------------------------------------------------------------------------------------------------------- */

/* No line is wider than a terminal of 80 columns, and none ends in a blank. */
static void check_layout(const char *text, const char *what)
{
    while (*text) {
        size_t n = strcspn(text, "\n");

        if (n > 80)
            fail_msg("%s: %zu columns: %.*s", what, n, (int)n, text);
        if (n && text[n - 1] == ' ')
            fail_msg("%s: blank at the end of: %.*s", what, (int)n, text);
        text += n + (text[n] == '\n');
    }
}

static void test_help(void **state)
{
    struct cli_result r, again;
    char want[64];

    (void)state;
    for (size_t i = 0; i < COR_COUNT(commands); i++) {
        cli_good(&r, commands[i], "--help");
        snprintf(want, sizeof(want), "usage: vkmoe %s ", commands[i]);
        assert_int_equal(strncmp(r.out, want, strlen(want)), 0);
        snprintf(want, sizeof(want), "\nexample:\n  vkmoe %s ", commands[i]);
        if (!strstr(r.out, want) && strcmp(commands[i], "devices")) /* `vkmoe devices` needs no more */
            fail_msg("%s --help has no example", commands[i]);
        assert_non_null(strstr(r.out, "\nexample:\n"));
        assert_int_equal(r.n_err, 0);
        check_layout(r.out, commands[i]);
        cli_good(&again, "help", commands[i]);
        assert_string_equal(r.out, again.out);
        cli_result_free(&again);
        cli_good(&again, commands[i], "-h");
        assert_string_equal(r.out, again.out);
        cli_result_free(&again);
        cli_result_free(&r);
    }
}

static void test_program_help(void **state)
{
    static const char *const ways[] = {"--help", "-h", "help"};
    struct cli_result r;
    char want[64];

    (void)state;
    for (size_t i = 0; i < COR_COUNT(ways); i++) {
        cli_good(&r, ways[i]);
        for (size_t k = 0; k < COR_COUNT(commands); k++) {
            snprintf(want, sizeof(want), "\n  %s ", commands[k]);
            if (!strstr(r.out, want))
                fail_msg("%s does not list %s", ways[i], commands[k]);
        }
        check_layout(r.out, "vkmoe --help");
        assert_int_equal(r.n_err, 0);
        cli_result_free(&r);
    }
    cli_good(&r, "--version");
    snprintf(want, sizeof(want), "vkmoe %s\n", vkmoe_version());
    assert_string_equal(r.out, want);
    cli_result_free(&r);
    cli_call(&r, &(const struct cli_call){.args = {NULL}}); /* no command: the help, as an error */
    assert_int_equal(r.status, 2);
    assert_int_equal(r.n_out, 0);
    assert_non_null(strstr(r.err, "usage: vkmoe"));
    cli_result_free(&r);
}

/* ---- wrong usage
 * ------------------------------------------------------------------------------------------------ */

struct wrong {
    const char *word, *args[10]; /* that the line names, of the command */
};

static void expect_usage(const struct wrong *cases, size_t n)
{
    struct cli_call call;

    for (size_t i = 0; i < n; i++) {
        memset(&call, 0, sizeof(call));
        memcpy(call.args, cases[i].args, sizeof(cases[i].args));
        cli_bad_(2, cases[i].word, &call);
    }
}

static void test_wrong_bench_usage(void **state)
{
    static const struct wrong cases[] = {
        {"no test is left", {"bench", "-p", "0", "-n", "0"}},
        {"-p takes", {"bench", "-p", "64-32"}},
        {"-p takes", {"bench", "-p", "1-100000"}},
        {"-n takes", {"bench", "-n", "16,"}},
        {"-d takes", {"bench", "-d", "1-8*1"}},
        {"-pg takes", {"bench", "-pg", "512"}},
        {"-r", {"bench", "-r", "0"}},
        {"xml", {"bench", "-o", "xml"}},
        {"csv", {"bench", "--count", "-o", "csv"}},
        {"one of", {"bench", "--synthetic", "--tokens", "1"}},
        {"no subcommand 'nothing'", {"bench", "nothing"}},
        {"no trace", {"bench", "pool"}},
        {"--capacity", {"bench", "pool", "x", "--capacity", "0"}},
        {"--capacity", {"bench", "pool", "x", "--capacity", "25;50"}},
        {"mru", {"bench", "pool", "x", "--policy", "lru,mru"}},
        {"xml", {"bench", "pool", "x", "-o", "xml"}},
        {"--tokens", {"bench", "pool", "--trace", "x", "--tokens", "0"}},
        {"-f", {"bench", "decode"}},
        {"either", {"bench", "decode", "-f", "x", "--pool-mib", "3", "--capacity", "50"}},
        {"--pool-mib", {"bench", "decode", "-f", "x", "--pool-mib", "3,auto"}},
        {"--pool-mib", {"bench", "decode", "-f", "x", "--pool-mib", "3,,4"}},
        {"--capacity", {"bench", "decode", "-f", "x", "--capacity", "50,101"}},
        {"xml", {"bench", "decode", "-f", "x", "-o", "xml"}},
        {"xml", {"bench", "peak", "-o", "xml"}},
        {"xml", {"bench", "kernels", "-o", "xml"}},
        {"llama", {"bench", "kernels", "--shape", "llama"}},
        {"q9", {"bench", "kernels", "--type", "q9"}},
        {"--reset", {"tune", "--show", "--reset"}},
    };

    (void)state;
    expect_usage(cases, COR_COUNT(cases));
}

static void test_wrong_usage(void **state)
{
    static const struct wrong cases[] = {
        {"nonsense", {"nonsense"}},
        {"nonsense", {"help", "nonsense"}},
        {"no?sense", {"no\nsense"}},
        {"--no?such", {"run", "--no\nsuch"}},
        {"", {""}},
        {"extra", {"devices", "extra"}},
        {"--json", {"devices", "--json=1"}},
        {"needed", {"convert"}},
        {"-o", {"convert", "x", "--type", "f16"}},
        {"--type", {"convert", "x", "-o", "y"}},
        {"q9", {"convert", "x", "-o", "y", "--type", "q9"}},
        {"one file", {"inspect", "x", "y"}},
        {"no text", {"tokenize"}},
        {"--decode", {"tokenize", "--decode", "1", "-p", "x"}},
        {"twice", {"tokenize", "-p", "x", "-f", "y"}},
        {"1.5", {"tokenize", "--decode", "1.5"}},
        {"--no-bos", {"tokenize", "--decode", "1", "--no-bos"}},
        {"--json-lines", {"tokenize", "--json-lines", "-p", "x"}},
        {"one prompt", {"run"}},
        {"one prompt", {"run", "-p", "x", "-f", "y"}},
        {"one prompt", {"run", "-p", "x", "--tokens", "1"}},
        {"one prompt", {"run", "-p", "x", "-"}},
        {"-f", {"run", "-f", "y", "-"}},
        {"extra", {"run", "extra"}},
        {"extra", {"run", "-", "extra"}},
        {"empty", {"run", "-p", ""}},
        {"empty", {"run", "-f", "/dev/null"}},
        {"empty", {"run", "-"}},
        {"TEXT", {"run", "-p"}},
        {"-n", {"run", "-p", "x", "-n"}},
        {"-n", {"run", "-p", "x", "-n", "many"}},
        {"-n", {"run", "-p", "x", "-n", "3x"}},
        {"-n", {"run", "-p", "x", "-n", "-2"}},
        {"-n", {"run", "-p", "x", "-n", "99999999999999999999"}},
        {"-n", {"run", "-p", "x", "-n", ""}},
        {"-c", {"run", "-p", "x", "-c", "-1"}},
        {"-s", {"run", "-p", "x", "-s", "seven"}},
        {"--temp", {"run", "-p", "x", "--temp", "nan"}},
        {"--temp", {"run", "-p", "x", "--temp", "-1"}},
        {"--temp", {"run", "-p", "x", "--temp=hot"}},
        {"--top-k", {"run", "-p", "x", "--top-k", "0.5"}},
        {"--top-p", {"run", "-p", "x", "--top-p", "1.5"}},
        {"--min-p", {"run", "-p", "x", "--min-p", "inf"}},
        {"--repeat-penalty", {"run", "-p", "x", "--repeat-penalty", "0"}},
        {"--ignore-eos", {"run", "-p", "x", "--ignore-eos=yes"}},
        {"'two,3'", {"run", "--tokens", "1,two,3"}},
        {"token id 2", {"run", "--tokens", "1,,2"}},
        {"token id 2", {"run", "--tokens", "1,"}},
        {"token id 1", {"run", "--tokens", ""}},
        {"token id 1", {"run", "--tokens", "-1"}},
        {"token id 1", {"run", "--tokens", "99999999999"}},
        {"token id 1", {"run", "--tokens", "1 2"}},
        {"no text to force", {"run", "-p", "x", "--force", "/dev/null"}},
        {"-ctk", {"run", "-p", "x", "-ctk", "q4_0"}},
        {"-ctv", {"eval", "-f", "/proc/self/status", "-ctv", "F32"}},
        {"one of", {"logits", "-o", "x.npy"}},
        {"one of", {"logits", "-p", "x", "--tokens", "1", "-o", "x.npy"}},
        {"-o", {"logits", "-p", "x"}},
        {"token id 1", {"logits", "--tokens", "x", "-o", "x.npy"}},
        {"--pool-mib", {"run", "-p", "x", "--pool-mib", "0"}},
        {"--pool-mib", {"run", "-p", "x", "--pool-mib", "2.5"}},
        {"--pool-mib", {"run", "-p", "x", "--pool-mib", ""}},
        {"--pool-mib", {"run", "-p", "x", "--moe-cache-mib", "-3"}},
        {"--pool-mib", {"eval", "-f", "/proc/self/status", "--pool-mib", "most"}},
        {"--pool-mib", {"logits", "-p", "x", "-o", "x.npy", "--pool-mib", "9999999999999999999999"}},
        {"--route-trace", {"run", "-p", "x", "--route-weights"}},
        {"--save-hot", {"run", "-p", "x", "--save-hot"}},
        {"-f", {"eval"}},
        {"--documents", {"eval", "-f", "x", "--documents", "-1"}},
    };

    (void)state;
    expect_usage(cases, COR_COUNT(cases));
    for (size_t i = 0; i < COR_COUNT(commands); i++)
        cli_bad(2, "--no-such-option", commands[i], "--no-such-option");
}

/* ---- input
 * ------------------------------------------------------------------------------------------------------ */

static void test_missing_input(void **state)
{
    const char *dir = test_tmp(), *none = cli_path(dir, "none"), *empty = cli_path(dir, "empty");

    (void)state;
    test_write(empty, "", 0);
    cli_bad(1, none, "inspect", none);
    cli_bad(1, none, "inspect", "-m", none);
    cli_bad(1, none, "tokenize", "-m", none, "-p", "x");
    cli_bad(1, none, "tokenize", "-f", none);
    cli_bad(1, none, "convert", none, "-o", "/dev/null", "--type", "f16");
    cli_bad(1, none, "run", "-f", none);
    cli_bad(1, none, "run", "-p", "x", "--force", none);
    cli_bad(1, none, "logits", "-f", none, "-o", "/dev/null");
    cli_bad(1, none, "eval", "-f", none);
    cli_bad(1, dir, "inspect", dir);
    cli_bad(1, dir, "tokenize", "-m", dir, "-p", "x");
    cli_bad(1, dir, "tokenize", "-f", dir);
    cli_bad(1, dir, "convert", dir, "-o", "/dev/null", "--type", "f16"); /* no config.json in it */
    cli_bad(1, dir, "run", "-f", dir);
    cli_bad(1, dir, "logits", "-f", dir, "-o", "/dev/null");
    cli_bad(1, dir, "eval", "-f", dir);
    cli_bad(1, empty, "eval", "-f", empty);
    cli_bad(1, empty, "inspect", empty);
}

/* The model's first bytes as a file of their own. */
static const char *cut_model(const char *dir, size_t n)
{
    const char *from = golden_model("emo-nano", MDL_BF16), *to = cli_path(dir, "cut.gguf");
    struct vkmoe_err err = {0};
    struct cor_file *f;
    char *data = cor_alloc(n);

    assert_non_null(data);
    test_ok(cor_file_open(&f, from, &err), &err);
    test_ok(cor_file_read(f, 0, data, n, &err), &err);
    test_write(to, data, n);
    cor_file_close(f);
    cor_free(data);
    return to;
}

static void test_cut_model(void **state)
{
    static const size_t sizes[] = {3, 4, 24, 1000, 50000, 200000, 4000000};
    const char *dir = test_tmp();

    (void)state;
    for (size_t i = 0; i < COR_COUNT(sizes); i++) {
        const char *cut = cut_model(dir, sizes[i]);

        cli_bad(1, "cut.gguf", "inspect", cut);
        cli_bad(1, "cut.gguf", "tokenize", "-m", cut, "-p", "x");
        cli_bad(1, "cut.gguf", "convert", cut, "-o", cli_path(dir, "out.gguf"), "--type", "f16");
    }
    remove(cli_path(dir, "cut.gguf"));
    cli_check_empty(dir);
}

static void test_bad_json_lines(void **state)
{
    static const struct {
        const char *word, *text;
    } cases[] = {
        {"line 2", "{\"text\": \"a\"}\n{\"text\": \n"},
        {"line 2", "{\"text\": \"a\"}\n{\"text\": \"b\"} {}\n"},
        {"line 1", "[\"text\"]\n"},
        {"line 1", "{\"txt\": \"a\"}\n"},
        {"line 3", "{\"text\": \"a\"}\n\n{\"text\": 7}\n"},
        {"line 1", "{\"text\": \"a\", \"text\": \"b\"}\n"},
        {"NUL", "{\"text\": \"a\\u0000b\"}\n"},
        {"no document", "{\"text\": \"\"}\n\n"},
    };
    const char *path = cli_path(test_tmp(), "a.jsonl");

    (void)state;
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        test_write(path, cases[i].text, strlen(cases[i].text));
        cli_bad(1, cases[i].word, "eval", "-f", path);
        cli_bad_(
            1, cases[i].word,
            &(const struct cli_call){.args = {"eval", "-f", "-", "--json-lines"}, .input = cases[i].text});
    }
}

/* The loader's words for "no driver" differ; ours is one line with the package. */
static void test_no_driver(void **state)
{
    static const struct cli_call calls[] = {
        {.args = {"devices"}},
        {.args = {"devices", "--json"}},
        {.args = {"run", "-p", "x"}},
        {.args = {"logits", "-p", "x", "-o", "/dev/null"}},
        {.args = {"eval", "-f", "/proc/self/status"}},
    };

    (void)state;
    for (size_t i = 0; i < COR_COUNT(calls); i++) {
        struct cli_call call = calls[i];

        call.env[0] = "VK_DRIVER_FILES=/nonexistent";
        call.env[1] = "VK_ICD_FILENAMES=/nonexistent";
        cli_bad_(1, "mesa-vulkan-drivers", &call);
    }
}

/* ---- output
 * ----------------------------------------------------------------------------------------------------- */

static void test_unwritable_output(void **state)
{
    const char *dir = test_tmp(), *model = golden_model("emo-nano", MDL_BF16), *file = cli_path(dir, "file");
    const char *folder = cli_path(dir, "folder");

    (void)state;
    test_write(file, "x", 1);
    assert_int_equal(mkdir(folder, 0700), 0);
    cli_bad(1, "none", "convert", model, "-o", cli_path(dir, "none/x.gguf"), "--type", "f16");
    cli_bad(1, "file/x", "convert", model, "-o", cli_path(dir, "file/x.gguf"), "--type", "f16");
    cli_bad(1, folder, "convert", model, "-o", folder, "--type", "f16");
    cli_bad(1, "/proc/x.gguf", "convert", model, "-o", "/proc/x.gguf", "--type", "f16");
    cli_bad(1, "/dev/full", "convert", model, "-o", "/dev/full", "--type", "f16");
    cli_check_empty(folder);
    assert_int_equal(rmdir(folder), 0);
    assert_int_equal(remove(file), 0);
    cli_check_empty(dir);
}

/* A disk that fills up while the file is written: nothing is left, and a file that was there stays as it was.
 */
static void test_file_limit(void **state)
{
    const char *dir = test_tmp(), *model = golden_model("emo-nano", MDL_BF16), *out = cli_path(dir, "x.gguf");
    struct vkmoe_err err;
    char *data;
    size_t n;

    (void)state;
    cli_bad_(1, "x.gguf",
             &(const struct cli_call){.args = {"convert", model, "-o", out, "--type", "f16"},
                                      .file_limit = 1 << 20});
    cli_check_empty(dir);
    test_write(out, "precious", 8);
    cli_bad_(1, "x.gguf",
             &(const struct cli_call){.args = {"convert", model, "-o", out, "--type", "f16"},
                                      .file_limit = 1 << 20});
    test_ok(cor_file_slurp(out, 100, &data, &n, &err), &err);
    assert_string_equal(data, "precious");
    cor_free(data);
    assert_int_equal(remove(out), 0);
    cli_check_empty(dir);
}

/* Ctrl-C while the file is written: it is not there afterwards, nor is a part of it. */
static void test_interrupt(void **state)
{
    const char *dir = test_tmp(), *out = cli_path(dir, "x.gguf");
    struct cli_result r;

    (void)state;
    cli_call(&r, &(const struct cli_call){
                     .args = {"convert", golden_model("emo-nano", MDL_BF16), "-o", out, "--type", "f32"},
                     .interrupt_dir = dir});
    if (r.status) {
        cli_check_bad(&r, 1, "interrupted", "convert, interrupted");
        cli_check_empty(dir);
    } else { /* it was quicker than the signal: then the file is whole */
        cli_result_free(&r);
        cli_good(&r, "inspect", out);
        cli_result_free(&r);
    }
}

static void test_full_disk(void **state)
{
    const char *dir = test_tmp(), *model = golden_model("emo-nano", MDL_BF16);
    const char *disk = cli_path(dir, "disk");
    struct cli_result r;
    char **names = NULL;
    size_t n = 0;

    (void)state;
    assert_int_equal(mkdir(disk, 0700), 0);
    if (mount("vkmoe-test", disk, "tmpfs", 0, "size=64k")) {
        rmdir(disk);
        printf("skipped: mounting a small disk: %s\n", strerror(errno));
        skip(); /* expected without privileges: tests/skips.txt; test_file_limit covers the same lines of ours
                 */
    }
    cli_call(&r, &(const struct cli_call){
                     .args = {"convert", model, "-o", cli_path(disk, "x.gguf"), "--type", "f16"}});
    cor_dir_list(disk, &names, &n, NULL);
    cor_free(names);
    umount2(disk, MNT_DETACH);
    rmdir(disk);
    cli_check_bad(&r, 1, "x.gguf", "convert to a full disk");
    assert_int_equal(n, 0);
}

static void test_full_stdout(void **state)
{
    static const struct cli_call calls[] = {
        {.args = {"--help"}},
        {.args = {"--version"}},
        {.args = {"run", "--help"}},
        {.args = {"inspect"}},
        {.args = {"inspect", "--json", "--tensors"}},
        {.args = {"tokenize", "-p", "In the beginning"}},
        {.args = {"tokenize", "--decode", "1,2"}},
    };

    (void)state;
    for (size_t i = 0; i < COR_COUNT(calls); i++) {
        struct cli_call call = calls[i];

        call.out_path = "/dev/full";
        cli_bad_(1, "standard output", &call);
    }
}

/* A reader that has seen enough, as `head` does: no words about it. */
static void test_closed_pipe(void **state)
{
    struct cli_result r;

    (void)state;
    cli_call(&r, &(const struct cli_call){.args = {"inspect", "--json", "--tensors"}, .close_after = 1});
    assert_string_equal(r.err, "");
    assert_in_range(r.status, 0, 1); /* 0: all was in the pipe before it closed */
    cli_result_free(&r);
}

/* ---- what works without a device
 * -------------------------------------------------------------------------------- */

/* One object per line, empty texts, too; a line without a text ends it. */
static void test_tokenize_lines(void **state)
{
    struct cli_result r;

    (void)state;
    cli_good_(&r, &(const struct cli_call){.args = {"tokenize", "--json-lines", "-"},
                                           .input = "{\"text\": \"ab\\n\"}\n\n{\"text\": \"\"}\n"});
    assert_non_null(strstr(r.out, "\"bytes\":3}\n{\"tokens\":[],\"n_tokens\":0,\"bytes\":0}\n"));
    assert_int_equal(strncmp(r.out, "{\"tokens\":[", 11), 0);
    cli_result_free(&r);
    cli_call(
        &r, &(const struct cli_call){.args = {"tokenize", "--json-lines", "-"}, .input = "{\"texts\": 1}\n"});
    cli_check_bad(&r, 1, "line 1: no string \"text\"", "tokenize --json-lines");
}

static void test_tokenize(void **state)
{
    static const char text[] = "In the beginning\tGod \xc3\xa4nd\n\n  <|endoftext|>";
    struct cli_result r, back;
    cJSON *o, *same;
    int32_t *ids;
    size_t n, bytes;
    char *list;

    (void)state;
    cli_good(&r, "tokenize", "-p", text, "--json");
    o = cli_json(&r);
    ids = cli_ids(cli_get(o, "tokens"), &n);
    bytes = (size_t)cli_get(o, "bytes")->valuedouble;
    assert_int_equal(bytes, sizeof(text) - 1);
    assert_int_equal((size_t)cli_get(o, "n_tokens")->valuedouble, n);
    list = cli_id_list(ids, n);
    cli_good(&back, "tokenize", "--decode", list);
    assert_string_equal(back.out, text);
    cli_result_free(&back);
    cli_good_(&back, &(const struct cli_call){.args = {"tokenize", "-", "--json"}, .input = text});
    same = cli_json(&back);
    assert_true(cJSON_Compare(o, same, true));
    cJSON_Delete(same);
    cli_result_free(&back);
    cli_good(&back, "tokenize", "--json", "--special", "-p", text);
    same = cli_json(&back);
    assert_true(cJSON_GetArraySize(cli_get(same, "tokens")) < (int)n); /* one token instead of several */
    cJSON_Delete(same);
    cli_result_free(&back);
    cJSON_Delete(o);
    cor_free(ids);
    cor_free(list);
    cli_result_free(&r);
    cli_bad(2, "4096", "tokenize", "--decode", "4096"); /* behind the vocabulary */
}

/* ---- bench pool
 * --------------------------------------------------------------------------------------------------- */

static void test_bench_pool(void **state)
{
    char a[512], b[512];
    struct cli_result r;
    const cJSON *rows, *row;
    cJSON *json;
    size_t lines = 0;

    (void)state;
    snprintf(a, sizeof(a), "%s", test_source("tests/golden/traces/emo-nano.scripture.jsonl"));
    snprintf(b, sizeof(b), "%s", test_source("tests/golden/traces/emo-nano.python.jsonl"));
    cli_good(&r, "bench", "pool", "--trace", a, b, "--capacity", "5,50", "--policy", "decay:64/layer,lru",
             "-o", "json");
    json = cli_json(&r);
    assert_string_equal(cli_get(json, "model")->valuestring, "emo-nano");
    assert_int_equal(cli_get(json, "floor")->valueint, 36);
    rows = cli_get(json, "results");
    assert_int_equal(cJSON_GetArraySize(rows), 8);
    cJSON_ArrayForEach(row, rows)
    {
        bool refused = cli_get(row, "slots")->valueint < 36;
        const cJSON *total = cJSON_GetObjectItem(row, "total");

        assert_true(cJSON_IsTrue(cli_get(row, "refused")) == refused);
        assert_true(refused == !total);
        if (refused)
            continue;
        assert_int_equal(cli_get(total, "tokens")->valueint, 1024);
        assert_true(cli_get(total, "hits")->valueint + cli_get(total, "misses")->valueint == 1024 * 6 * 5);
        assert_true(cli_get(row, "cr")->valuedouble >= 0.8);
    }
    cJSON_Delete(json);
    cli_result_free(&r);
    cli_good(&r, "bench", "pool", "--trace", a, "--capacity", "5,50", "-o", "csv");
    for (const char *p = r.out; *p; lines++) {
        size_t commas = 0;

        for (; *p != '\n'; p++)
            commas += *p == ',';
        assert_int_equal(commas, 19);
        p++;
    }
    assert_int_equal(lines, 1 + 2 * 9);
    cli_result_free(&r);
    cli_good(&r, "bench", "pool", a);
    assert_non_null(strstr(r.out, "optimum/global"));
    assert_non_null(strstr(r.out, "####"));
    cli_result_free(&r);
    cli_bad(1, "cannot open", "bench", "pool", "--trace", "no/such.jsonl");
    cli_bad(1, "line 1", "bench", "pool", test_source("README.md"));
    cli_bad(2, "longer than the prompt", "bench", "pool", a, "--prompt", "576");
}

static void test_inspect(void **state)
{
    struct cli_result r;
    const char *dense = cli_path(test_tmp(), "dense.gguf");
    cJSON *o;

    (void)state;
    cli_good(&r, "inspect", "--json", golden_model("emo-nano", MDL_BF16));
    o = cli_json(&r);
    assert_string_equal(cli_get(o, "architecture")->valuestring, "deepseek");
    assert_true(cJSON_IsTrue(cli_get(o, "runnable")));
    assert_int_equal(cli_get(cli_get(o, "config"), "n_routed")->valueint, 63);
    assert_null(cJSON_GetObjectItem(o, "tensors"));
    cJSON_Delete(o);
    cli_result_free(&r);
    cli_good(&r, "inspect", "--tensors");
    assert_non_null(strstr(r.out, "blk.5.ffn_down_exps.weight"));
    assert_int_equal(r.n_err, 0);
    cli_result_free(&r);
    cli_good(&r, "synth", "--shape", "tiny-qwen3", "--type", "f32", "-o", dense); /* without experts */
    cli_result_free(&r);
    cli_good(&r, "inspect", "--experts", dense);
    assert_non_null(strstr(r.out, "dense layers   3, all, width 96"));
    cli_result_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_program_help),
        cmocka_unit_test(test_wrong_usage),
        cmocka_unit_test(test_wrong_bench_usage),
        cmocka_unit_test(test_missing_input),
        cmocka_unit_test(test_cut_model),
        cmocka_unit_test(test_bad_json_lines),
        cmocka_unit_test(test_no_driver),
        cmocka_unit_test(test_unwritable_output),
        cmocka_unit_test(test_file_limit),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_full_stdout),
        cmocka_unit_test(test_closed_pipe),
        cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_tokenize_lines),
        cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_bench_pool),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
