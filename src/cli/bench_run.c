/* vkmoe bench without a subcommand: llama-bench's tests on real text. Owns lists, order and timing. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/peak.h"
#include "cli/bench.h"
#include "cli/pool.h"
#include "core/alloc.h"
#include "core/os.h"
#include "core/rand.h"

#define BUNDLED_TEXT "bench.txt"

enum { TESTS_MAX = 4 * BENCH_LIST, SYNTHETIC_IDS = 1 << 16, TOKENS_MAX = 1 << 24 };

struct bench {
    struct cli_engine e;
    /* options */
    struct cli_strs models, pairs;
    const char *prompts, *gens, *depths, *file, *ids, *format;
    int64_t repeats, n_chunk;
    double peak; /* GB/s; negative: measure */
    bool synthetic, count;
    /* parsed */
    uint64_t pool_bytes;
    struct bench_test tests[TESTS_MAX];
    uint32_t n_tests;
    /* of the model in hand */
    struct bench_model model;
    struct bench_text text;
    int32_t *window; /* tokens of one repeat */
    bool any, wrapped;
    struct bench_head head;
};

/* ---- lists ---- */

static bool take_number(const char **p, uint32_t *v)
{
    char *end = NULL;
    long long n = **p >= '0' && **p <= '9' ? strtoll(*p, &end, 10) : -1;

    if (n < 0 || n > TOKENS_MAX)
        return false;
    *p = end;
    *v = (uint32_t)n;
    return true;
}

/* One value or range at *p. */
static bool take_range(const char **p, uint32_t *list, uint32_t *n)
{
    uint32_t from, to, step = 1;
    char how = '+';

    if (!take_number(p, &from))
        return false;
    to = from;
    if (**p == '-') {
        ++*p;
        if (!take_number(p, &to) || to < from)
            return false;
        if (**p == '+' || **p == '*') {
            how = *(*p)++;
            if (!take_number(p, &step))
                return false;
        }
        if (how == '+' ? !step : step < 2 || !from)
            return false;
    }
    for (uint64_t v = from; v <= to; v = how == '+' ? v + step : v * step) {
        if (*n == BENCH_LIST)
            return false;
        list[(*n)++] = (uint32_t)v;
    }
    return true;
}

bool bench_parse_list(const char *text, uint32_t *list, uint32_t *n)
{
    *n = 0;
    for (;;) {
        if (!take_range(&text, list, n))
            return false;
        if (!*text)
            return true;
        if (*text++ != ',')
            return false;
    }
}

const char *bench_test_name(char name[BENCH_NAME], const struct bench_test *t)
{
    char depth[24] = "";

    if (t->n_depth)
        snprintf(depth, sizeof(depth), " @ d%" PRIu32, t->n_depth);
    if (t->n_prompt && t->n_gen)
        snprintf(name, BENCH_NAME, "pp%" PRIu32 "+tg%" PRIu32 "%s", t->n_prompt, t->n_gen, depth);
    else
        snprintf(name, BENCH_NAME, "%s%" PRIu32 "%s", t->n_gen ? "tg" : "pp",
                 t->n_gen ? t->n_gen : t->n_prompt, depth);
    return name;
}

/* ---- arguments ---- */

/* False: too many. */
static bool add_test(struct bench *b, uint32_t n_prompt, uint32_t n_gen, uint32_t n_depth)
{
    if (!n_prompt && !n_gen) /* `-p 0` leaves the tests of that kind out */
        return true;
    if (b->n_tests == TESTS_MAX)
        return false;
    b->tests[b->n_tests++] = (struct bench_test){n_prompt, n_gen, n_depth};
    return true;
}

static int plan(struct bench *b, const struct cli_cmd *cmd)
{
    uint32_t p[BENCH_LIST], g[BENCH_LIST], d[BENCH_LIST], pair[BENCH_LIST], n_p, n_g, n_d, n;
    bool room = true;

    if (!bench_parse_list(b->prompts, p, &n_p))
        return cli_usage(cmd, "-p takes numbers such as 512, 64,512 or 64-512+64, not '%s'", b->prompts);
    if (!bench_parse_list(b->gens, g, &n_g))
        return cli_usage(cmd, "-n takes numbers such as 128, 16,128 or 16-64+16, not '%s'", b->gens);
    if (!bench_parse_list(b->depths, d, &n_d))
        return cli_usage(cmd, "-d takes numbers such as 0, 0,4096 or 0-4096+1024, not '%s'", b->depths);
    for (uint32_t i = 0; i < n_d; i++) {
        for (uint32_t k = 0; k < n_p; k++)
            room &= add_test(b, p[k], 0, d[i]);
        for (uint32_t k = 0; k < n_g; k++)
            room &= add_test(b, 0, g[k], d[i]);
        for (size_t k = 0; k < b->pairs.n; k++) {
            if (!bench_parse_list(b->pairs.at[k], pair, &n) || n != 2 || !pair[0] || !pair[1])
                return cli_usage(cmd, "-pg takes two numbers such as 512,128, not '%s'", b->pairs.at[k]);
            room &= add_test(b, pair[0], pair[1], d[i]);
        }
    }
    if (!room)
        return cli_usage(cmd, "at most %d tests at a time", TESTS_MAX);
    return b->n_tests ? -1 : cli_usage(cmd, "no test is left: give -p, -n or -pg");
}

static int parse(struct bench *b, const struct cli_cmd *cmd)
{
    int status = plan(b, cmd);

    if (status >= 0)
        return status;
    if (strcmp(b->format, "md") && strcmp(b->format, "csv") && strcmp(b->format, "json") &&
        strcmp(b->format, "jsonl"))
        return cli_usage(cmd, "-o takes md, csv, json or jsonl, not '%s'", b->format);
    if (b->count && strcmp(b->format, "md") && strcmp(b->format, "json"))
        return cli_usage(cmd, "--count prints md or json, not '%s'", b->format);
    if (b->synthetic + !!b->file + !!b->ids > 1)
        return cli_usage(cmd, "give one of --synthetic, -f and --tokens");
    if (!cli_pool_bytes(b->e.pool, b->e.pool ? strlen(b->e.pool) : 0, &b->pool_bytes))
        return cli_usage(cmd, "--pool-mib takes auto, all or a whole number of at least 1, not '%s'",
                         b->e.pool);
    return -1;
}

/* ---- tokens ---- */

static enum vkmoe_status make_ids(struct bench *b, struct vkmoe_err *err)
{
    uint32_t n_used = vkmoe_model_facts(b->e.mdl)->n_tokens_used;
    uint64_t state = 1;

    b->text.n = SYNTHETIC_IDS;
    b->text.ids = cor_array(b->text.n, sizeof(*b->text.ids));
    if (!b->text.ids)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu tokens", b->text.n);
    for (size_t i = 0; i < b->text.n; i++)
        b->text.ids[i] = (int32_t)cor_rand_below(&state, n_used);
    return VKMOE_OK;
}

static enum vkmoe_status read_ids(struct bench *b, struct vkmoe_err *err)
{
    char path[4096], *text = NULL;
    const char *file = b->file;
    enum vkmoe_status st = VKMOE_OK;
    int32_t *ids = NULL;
    size_t n_text, n;

    if (!file) {
        TRY(cli_bundled_path(BUNDLED_TEXT, path, err));
        file = path;
        b->text.bundled = true;
    }
    TRY(cli_read_text(NULL, file, &text, &n_text, err));
    TRY(vkmoe_tokenize(b->e.mdl, text, n_text, true, &ids, &n, err));
    if (!n)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: the text is empty", file);
    snprintf(b->text.name, sizeof(b->text.name), "%s", strcmp(file, "-") ? cor_path_base(file) : "-");
    b->text.ids = cor_array(n, sizeof(*ids));
    if (!b->text.ids)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %zu tokens", n);
    memcpy(b->text.ids, ids, n * sizeof(*ids));
    b->text.n = n;
done:
    cor_free(text);
    vkmoe_free(ids);
    return st;
}

static enum vkmoe_status load_ids(struct bench *b, struct vkmoe_err *err)
{
    cor_free(b->text.ids);
    memset(&b->text, 0, sizeof(b->text));
    b->text.synthetic = b->synthetic;
    if (b->synthetic)
        return make_ids(b, err);
    if (b->ids)
        return cli_parse_ids(b->ids, &b->text.ids, &b->text.n, err);
    return read_ids(b, err);
}

static uint32_t tokens_of(const struct bench_test *t)
{
    return t->n_depth + t->n_prompt + t->n_gen;
}

/* The tokens of a repeat follow those of the one before: a text fed again would find its experts there. */
static const int32_t *window(struct bench *b, uint64_t repeat, uint32_t n, bool *wrapped)
{
    size_t at = (size_t)(repeat * n % b->text.n);

    *wrapped |= repeat * n + n > b->text.n;
    for (uint32_t i = 0; i < n; i++) {
        b->window[i] = b->text.ids[at];
        at = at + 1 == b->text.n ? 0 : at + 1;
    }
    return b->window;
}

/* ---- one test ---- */

static enum vkmoe_status feed_one_by_one(struct bench *b, const int32_t *ids, uint32_t n,
                                         struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < n; i++) {
        TRY(vkmoe_session_feed(b->e.ses, ids + i, 1, err));
        if (cor_interrupted())
            FAIL(VKMOE_ERR_IO, "interrupted");
    }
done:
    return st;
}

/* What the pool counted while tests were timed. */
struct uses {
    uint64_t hits, misses, bytes;
};

static struct uses pool_uses(const struct bench *b)
{
    struct vkmoe_pool_stats s;

    vkmoe_model_get_pool(b->e.mdl, &s);
    return (struct uses){s.total.hits + s.prefill.hits, s.total.misses + s.prefill.loads,
                         s.total.uploaded_bytes + s.prefill.uploaded_bytes};
}

static enum vkmoe_status feed_depth(struct bench *b, const int32_t *ids, uint32_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    size_t fed;

    vkmoe_session_reset(b->e.ses);
    if (!n)
        return VKMOE_OK;
    TRY(cli_engine_feed(&b->e, ids, n, &fed, err));
    if (fed < n)
        FAIL(VKMOE_ERR_IO, "interrupted");
done:
    return st;
}

/* Warms up as llama-bench does, with a whole prompt and a few tokens, in an empty context: what follows finds
 * kernels compiled. */
static enum vkmoe_status warm_up(struct bench *b, const struct bench_test *t, struct vkmoe_err *err)
{
    bool wrapped = false;
    const int32_t *ids = window(b, (uint64_t)b->repeats, t->n_prompt + t->n_gen, &wrapped);
    enum vkmoe_status st = VKMOE_OK;

    vkmoe_session_reset(b->e.ses);
    if (t->n_prompt)
        TRY(vkmoe_session_feed(b->e.ses, ids, t->n_prompt, err));
    TRY(feed_one_by_one(b, ids + t->n_prompt, t->n_gen < 2 ? t->n_gen : 2, err));
done:
    return st;
}

static enum vkmoe_status repeat(struct bench *b, struct bench_row *r, struct uses *uses,
                                struct vkmoe_err *err)
{
    const struct bench_test *t = &r->test;
    const int32_t *ids = window(b, r->n, tokens_of(t), &r->wrapped);
    enum vkmoe_status st = VKMOE_OK;
    struct uses before, after;
    uint64_t start;

    TRY(feed_depth(b, ids, t->n_depth, err));
    ids += t->n_depth;
    before = pool_uses(b);
    start = cor_now_ns();
    if (t->n_prompt)
        TRY(vkmoe_session_feed(b->e.ses, ids, t->n_prompt, err));
    TRY(feed_one_by_one(b, ids + t->n_prompt, t->n_gen, err));
    r->ns[r->n++] = cor_now_ns() - start;
    after = pool_uses(b);
    uses->hits += after.hits - before.hits;
    uses->misses += after.misses - before.misses;
    uses->bytes += after.bytes - before.bytes;
    if (cor_interrupted())
        FAIL(VKMOE_ERR_IO, "interrupted");
done:
    return st;
}

static void stamp(char dst[32])
{
    time_t now = time(NULL);
    struct tm *utc = gmtime(&now);

    if (!utc || !strftime(dst, 32, "%Y-%m-%dT%H:%M:%SZ", utc))
        dst[0] = '\0';
}

static enum vkmoe_status run_test(struct bench *b, const struct bench_test *t, struct cli_progress *bar,
                                  uint64_t *done, struct vkmoe_err *err)
{
    struct bench_row r = {
        .test = *t, .hit_rate = NAN, .uploaded_bytes = NAN, .weight_bytes = NAN, .cache_bytes = NAN};
    uint64_t total = (uint64_t)b->n_tests * (uint64_t)(b->repeats + 1);
    enum vkmoe_status st = VKMOE_OK;
    struct uses uses = {0};

    stamp(r.time);
    cli_progress_step(bar, (*done)++, total);
    TRY(warm_up(b, t, err));
    for (int64_t i = 0; i < b->repeats; i++) {
        cli_progress_step(bar, (*done)++, total);
        TRY(repeat(b, &r, &uses, err));
    }
    cli_progress_end(bar);
    if (uses.hits + uses.misses)
        r.hit_rate = (double)uses.hits / (double)(uses.hits + uses.misses);
    r.uploaded_bytes = (double)uses.bytes / ((double)(t->n_prompt + t->n_gen) * r.n);
    if (!t->n_prompt) /* as the middle one of those decoded */
        bench_bytes(&b->e, &b->model, t->n_depth + (t->n_gen - 1) / 2.0, &r.weight_bytes, &r.cache_bytes);
    bench_out_row(&b->head, &b->model, &b->text, &r, !b->any);
    b->any = true;
    b->wrapped |= r.wrapped;
done:
    cli_progress_end(bar);
    return st;
}

/* ---- all tests ---- */

/* The context holds the largest test, or is what -c says. */
static enum vkmoe_status fit_context(struct bench *b, struct vkmoe_err *err)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < b->n_tests; i++)
        if (tokens_of(&b->tests[i]) > most)
            most = tokens_of(&b->tests[i]);
    if (b->e.n_ctx && b->e.n_ctx < most)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "-c %" PRId64 ": a test needs %" PRIu32 " positions",
                        b->e.n_ctx, most);
    b->e.params.n_ctx = b->e.n_ctx ? (uint32_t)b->e.n_ctx : most;
    b->e.params.n_chunk = (uint32_t)b->n_chunk;
    b->e.params.n_top = 1; /* as greedy decoding does: one word comes back */
    cor_free(b->window);
    b->window = cor_array(most, sizeof(*b->window));
    return b->window ? VKMOE_OK : cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %" PRIu32 " tokens", most);
}

static enum vkmoe_status run_model(struct bench *b, const char *name, struct vkmoe_err *err)
{
    struct cli_progress bar = {.what = "measuring", .unit = "runs"};
    enum vkmoe_status st = VKMOE_OK;
    uint64_t done = 0;

    TRY(cli_model_path(name, b->e.path, err));
    TRY(bench_model_read(&b->model, b->e.path, err));
    TRY(cli_engine_load(&b->e, b->pool_bytes, err));
    TRY(load_ids(b, err));
    if (!b->any)
        bench_out_begin(&b->head);
    for (uint32_t i = 0; i < b->n_tests; i++)
        TRY(run_test(b, &b->tests[i], &bar, &done, err));
    cli_engine_profile(&b->e, b->model.type);
    cli_engine_unload(&b->e);
done:
    return st;
}

/* Counts at the first depth, of each model. */
static enum vkmoe_status count_model(struct bench *b, const char *name, struct vkmoe_err *err)
{
    uint32_t depth[BENCH_LIST], n;
    enum vkmoe_status st = VKMOE_OK;
    bool wrapped = false;

    bench_parse_list(b->depths, depth, &n);
    b->tests[0] = (struct bench_test){.n_gen = BENCH_COUNTED, .n_depth = depth[0]};
    b->n_tests = 1;
    TRY(fit_context(b, err));
    TRY(cli_model_path(name, b->e.path, err));
    TRY(bench_model_read(&b->model, b->e.path, err));
    TRY(cli_engine_load(&b->e, b->pool_bytes, err));
    TRY(load_ids(b, err));
    TRY(bench_count(&b->e, &b->model, window(b, 0, tokens_of(b->tests), &wrapped), depth[0], b->format, err));
    cli_engine_unload(&b->e);
done:
    return st;
}

/* What a shader reads, before memory is taken by a model. */
static enum vkmoe_status find_peak(struct bench *b, struct vkmoe_err *err)
{
    struct bench_device_params p = {.device = b->e.device,
                                    .caps = b->e.caps,
                                    .shader_dir = b->e.shader_dir,
                                    .validation = b->e.validation};
    char cache[4096];
    double bytes;
    enum vkmoe_status st;

    b->head.read_gbs = b->peak > 0 ? b->peak : NAN;
    b->head.read_given = b->peak > 0;
    if (b->peak >= 0 || b->count)
        return VKMOE_OK;
    cor_cache_dir(cache, sizeof(cache));
    p.cache_dir = cache[0] ? cache : NULL;
    st = bench_peak_read(&bytes, &p, err);
    if (st == VKMOE_OK)
        b->head.read_gbs = bytes * 1e-9;
    return st;
}

/* Name of the processor, "" when unknown: for the reader only. */
static void find_cpu(char *dst, size_t n)
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    const char *named = getenv("PROCESSOR_IDENTIFIER"); /* Windows */
    char line[256];

    snprintf(dst, n, "%s", named ? named : "");
    while (f && fgets(line, sizeof(line), f)) {
        char *colon = strchr(line, ':');

        if (!colon || strncmp(line, "model name", 10))
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(dst, n, "%s", colon + 1 + strspn(colon + 1, " "));
        break;
    }
    if (f)
        fclose(f);
}

static enum vkmoe_status run_all(struct bench *b, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    if (!b->count)
        TRY(fit_context(b, err));
    find_cpu(b->head.cpu, sizeof(b->head.cpu));
    for (size_t i = 0; i < (b->models.n ? b->models.n : 1); i++)
        TRY((b->count ? count_model : run_model)(b, b->models.n ? b->models.at[i] : NULL, err));
    if (!b->count)
        bench_out_end(&b->head, &b->text, b->wrapped);
done:
    return st;
}

int bench_run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct bench *b = cor_zalloc(sizeof(*b));
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    int status;

    if (!b)
        return CLI_FAILED;
    b->e = (struct cli_engine)CLI_ENGINE_DEFAULTS;
    b->prompts = "512";
    b->gens = "128";
    b->depths = "0";
    b->format = "md";
    b->repeats = 5;
    b->peak = -1;
    const struct cli_opt opts[] = {
        {"-m|--model", CLI_STRS, &b->models, "FILE", "GGUF files (default: the bundled model)", 0, 0},
        {"-p|--n-prompt", CLI_STR, &b->prompts, "LIST",
         "prompts to time, in tokens: 512 (default), 64,512 or 64-512+64; 0: none", 0, 0},
        {"-n|--n-gen", CLI_STR, &b->gens, "LIST",
         "tokens to decode one by one from an empty context (default 128); 0: none", 0, 0},
        {"-pg", CLI_STRS, &b->pairs, "P,N", "time P tokens of prompt and N decoded behind it together", 0, 0},
        {"-d|--n-depth", CLI_STR, &b->depths, "LIST", "tokens in the cache before each test (default 0)", 0,
         0},
        {"-r|--repetitions", CLI_INT, &b->repeats, "N", "times each test is measured (default 5)", 1,
         BENCH_REPEATS},
        {"-o|--output", CLI_STR, &b->format, "FORMAT", "md (default), csv, json or jsonl", 0, 0},
        {"-f|--file", CLI_STR, &b->file, "FILE",
         "text to replay (default: the bundled one); - is standard input", 0, 0},
        {"--synthetic", CLI_FLAG, &b->synthetic, NULL,
         "pseudo-random tokens instead of a text: experts and hit rates are then not those of real use", 0,
         0},
        {"--tokens", CLI_STR, &b->ids, "1,2,3", "token ids to replay, again and again", 0, 0},
        {"--peak", CLI_FLOAT, &b->peak, "GB/s",
         "read bandwidth that bytes are held against (default: measured first; 0: none)", 0, 1e6},
        {"--count", CLI_FLAG, &b->count, NULL,
         "time nothing: dispatches, barriers, submits, waits and bytes of a token decoded at -d", 0, 0},
        {"-ub|--ubatch-size", CLI_INT, &b->n_chunk, "N",
         "tokens of a chunk of prefill (default 0: 512, or what the device allows)", 0, 1 << 16},
        {"--pool-mib|--moe-cache-mib", CLI_STR, &b->e.pool, "N",
         "MiB on the device for experts, or all, or auto (the default: all where they fit)", 0, 0},
        CLI_DEVICE_OPTS(b->e),
        {0},
    };

    if ((status = cli_parse(cmd, opts, argc, argv, NULL)) >= 0 || (status = parse(b, cmd)) >= 0)
        goto done;
    b->head = (struct bench_head){.e = &b->e,
                                  .format = b->format,
                                  .pool = b->e.pool,
                                  .fast_math = b->e.fast_math,
                                  .variants = "default",
                                  .read_gbs = NAN};
    TRY(find_peak(b, &err));
    if ((status = cli_engine_open_device(&b->e, cmd)) == CLI_GOOD) {
        cor_catch_interrupt();
        vkmoe_device_variants(b->e.dev, &b->head.variants);
        TRY(run_all(b, &err));
    }
done:
    status = cli_engine_end(&b->e, status, st, &err);
    cor_free(b->text.ids);
    cor_free(b->window);
    cor_free(b);
    return status;
}
