/* vkmoe bench decode: one text, decoded token by token with every expert resident and with smaller pools, in
 * turn. Teacher-forced: a small model's own text loops, which flatters a cache. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/pool.h"
#include "core/alloc.h"
#include "core/os.h"

enum { SIZES_MAX = 16, ROUNDS_MAX = 99, SEARCH = 4 };

#define MIB(bytes) ((double)(bytes) / (1 << 20))

struct size {        /* of a pool that is measured */
    double percent;  /* of the experts, as asked for; negative: MiB were given */
    uint64_t budget; /* vkmoe_model_params.pool_bytes */
    bool skipped;    /* the device cannot hold it, or it is too small */
    double
        seconds[ROUNDS_MAX]; /* of all decoded tokens but the first: drivers compile kernels at first use */
    double *best; /* of each token the fastest round, in seconds: what else the machine did is left out */
    uint32_t n_rounds;
    struct vkmoe_pool_stats stats; /* of the last round: counts do not change from round to round */
    uint64_t device_bytes;
};

struct bench {
    struct cli_engine e;
    /* options */
    const char *file, *capacity, *format;
    int64_t prompt, tokens, rounds;
    /* parsed and measured */
    struct size sizes[1 + SIZES_MAX]; /* the first: every expert resident */
    uint32_t n_sizes;
    uint32_t n_experts, n_layers, n_used; /* n_experts: of all layers */
    char *text;
    int32_t *ids;
};

/* ---- arguments
 * ----------------------------------------------------------------------------------------------- */

static struct size *add_size(struct bench *b)
{
    return b->n_sizes <= SIZES_MAX ? &b->sizes[b->n_sizes++] : NULL;
}

static bool parse_percent(struct bench *b)
{
    const char *p = b->capacity;

    for (;;) {
        struct size *s = add_size(b);
        char *end;
        double v = strtod(p, &end);

        if (!s || end == p || (*end && *end != ',') || !(v > 0 && v <= 100))
            return false;
        s->percent = v;
        if (v == 100) /* the first row is that */
            b->n_sizes--;
        if (!*end)
            return true;
        p = end + 1;
    }
}

static bool parse_mib(struct bench *b)
{
    const char *p = b->e.pool;

    for (;;) {
        struct size *s = add_size(b);
        size_t n = strcspn(p, ",");

        if (!s || !cli_pool_bytes(p, n, &s->budget) || s->budget == VKMOE_POOL_AUTO)
            return false;
        s->percent = -1;
        if (s->budget == VKMOE_POOL_ALL)
            b->n_sizes--;
        if (!p[n])
            return true;
        p += n + 1;
    }
}

/* -1 to go on, else the exit status. */
static int parse(struct bench *b, const struct cli_cmd *cmd)
{
    b->sizes[b->n_sizes++] = (struct size){.percent = 100, .budget = VKMOE_POOL_ALL};
    if (!b->file)
        return cli_usage(cmd, "give the text to decode with -f");
    if (b->e.pool && b->capacity)
        return cli_usage(cmd, "give either --pool-mib or --capacity");
    if (b->e.pool && !parse_mib(b))
        return cli_usage(cmd, "--pool-mib takes at most %d whole numbers such as 8,16, not '%s'", SIZES_MAX,
                         b->e.pool);
    if (!b->capacity)
        b->capacity = "50,25,12.5";
    if (!b->e.pool && !parse_percent(b))
        return cli_usage(cmd, "--capacity takes at most %d percentages such as 12.5,25, not '%s'", SIZES_MAX,
                         b->capacity);
    if (strcmp(b->format, "md") && strcmp(b->format, "csv") && strcmp(b->format, "json"))
        return cli_usage(cmd, "-o takes md, csv or json, not '%s'", b->format);
    return -1;
}

/* ---- one measurement
 * ----------------------------------------------------------------------------------------- */

/* Prompt, then tokens one by one on the pool that is loaded. */
static enum vkmoe_status decode(struct bench *b, struct size *s, struct vkmoe_err *err)
{
    struct cli_engine *e = &b->e;
    enum vkmoe_status st = VKMOE_OK;
    double sum = 0;

    if (!s->best)
        s->best = cor_array((size_t)b->tokens, sizeof(*s->best));
    if (!s->best)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the times of %" PRId64 " tokens", b->tokens);
    TRY(vkmoe_session_feed(e->ses, b->ids, (size_t)b->prompt, err));
    for (int64_t i = 0; i < b->tokens; i++) {
        uint64_t start = cor_now_ns();
        double t;

        TRY(vkmoe_session_feed(e->ses, b->ids + b->prompt + i, 1, err));
        if (cor_interrupted())
            FAIL(VKMOE_ERR_IO, "interrupted, nothing is measured");
        t = (double)(cor_now_ns() - start) * 1e-9;
        sum += i ? t : 0;
        s->best[i] = s->n_rounds && s->best[i] < t ? s->best[i] : t;
    }
    s->seconds[s->n_rounds++] = sum;
    vkmoe_model_get_pool(e->mdl, &s->stats);
    s->device_bytes = cli_pool_device_bytes(e);
done:
    return st;
}

/* Budget for a percentage of the experts: slots are what counts, and staging comes on top. like: a pool of
 * the same model. */
static uint64_t budget_for(const struct bench *b, const struct size *s, const struct vkmoe_pool_stats *like)
{
    uint64_t slots = (uint64_t)((double)b->n_experts * s->percent / 100 + 1e-9);

    return slots * like->slot_bytes + like->staging_bytes + like->table_bytes;
}

/* Loads a pool of that size; what staging takes is known when one is there, so that a percentage may need
 * another try. *fits false: the library refuses the size. */
static enum vkmoe_status load(struct bench *b, struct size *s, bool *fits, struct vkmoe_err *err)
{
    struct vkmoe_pool_stats p;
    enum vkmoe_status st = VKMOE_OK;

    *fits = true;
    for (int i = 0; i < SEARCH; i++) {
        uint64_t want;

        cli_engine_unload(&b->e);
        st = cli_engine_load(&b->e, s->budget, err);
        if (st == VKMOE_ERR_LIMIT) {
            *fits = false;
            return VKMOE_OK;
        }
        TRY(st);
        vkmoe_model_get_pool(b->e.mdl, &p);
        want = s->percent < 0 || s->percent == 100 ? s->budget : budget_for(b, s, &p);
        if (want == s->budget)
            break;
        s->budget = want;
    }
done:
    return st;
}

/* What the sizes need to know of the model, from a pool of any size. */
static enum vkmoe_status look(struct bench *b, struct vkmoe_err *err)
{
    struct vkmoe_pool_stats p;
    const struct vkmoe_model_info *m;
    enum vkmoe_status st = VKMOE_OK;
    size_t n_text, n;

    TRY(cli_engine_load(&b->e, VKMOE_POOL_AUTO, err));
    m = vkmoe_model_facts(b->e.mdl);
    b->n_layers = m->n_layers;
    b->n_used = m->n_experts_used;
    vkmoe_model_get_pool(b->e.mdl, &p);
    b->n_experts = p.experts;
    for (uint32_t i = 1; i < b->n_sizes; i++)
        if (b->sizes[i].percent >= 0)
            b->sizes[i].budget = budget_for(b, &b->sizes[i], &p);
    TRY(cli_read_text(NULL, b->file, &b->text, &n_text, err));
    TRY(vkmoe_tokenize(b->e.mdl, b->text, n_text, false, &b->ids, &n, err));
    if ((int64_t)n < b->prompt + b->tokens)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: %zu tokens, not %" PRId64 " for the prompt and %" PRId64 " to decode",
             b->file, n, b->prompt, b->tokens);
    TRY(cli_engine_check_prompt(&b->e, (size_t)(b->prompt + b->tokens), err));
done:
    return st;
}

static enum vkmoe_status measure(struct bench *b, struct vkmoe_err *err)
{
    struct cli_progress bar = {.what = "decoding", .unit = "runs"};
    uint64_t done = 0, total = (uint64_t)b->rounds * b->n_sizes;
    enum vkmoe_status st = VKMOE_OK;

    TRY(look(b, err));
    for (int64_t r = 0; r < b->rounds; r++)
        for (uint32_t i = 0; i < b->n_sizes; i++) {
            struct size *s = &b->sizes[i];
            struct vkmoe_err why;
            bool fits;

            cli_progress_step(&bar, done++, total);
            if (s->skipped)
                continue;
            TRY(load(b, s, &fits, &why));
            if (fits) {
                TRY(decode(b, s, err));
            } else {
                s->skipped = true;
                cli_progress_end(&bar);
                fprintf(stderr, "vkmoe: left out: %s\n", why.message);
            }
        }
done:
    cli_progress_end(&bar);
    return st;
}

/* ---- results
 * ------------------------------------------------------------------------------------------------- */

struct row {
    double percent, speed, slowest, fastest, best; /* speeds in tokens/s */
    double ratio, best_ratio;                      /* of every expert resident; negative: not known */
    double hit_cold, hit_warm, misses, mib, waits, blocking; /* the last four: per token, share of visits */
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double per(uint64_t a, uint64_t b)
{
    return b ? (double)a / (double)b : -1;
}

static struct row judge(const struct bench *b, const struct size *s)
{
    const struct vkmoe_pool_counts *t = &s->stats.total;
    double sorted[ROUNDS_MAX], n = (double)(b->tokens - 1), seconds = 0;
    struct row r = {.percent = 100.0 * s->stats.slots / b->n_experts};

    memcpy(sorted, s->seconds, s->n_rounds * sizeof(*sorted));
    qsort(sorted, s->n_rounds, sizeof(*sorted), compare);
    r.speed = n * 2 / (sorted[(s->n_rounds - 1) / 2] + sorted[s->n_rounds / 2]);
    r.slowest = n / sorted[s->n_rounds - 1];
    r.fastest = n / sorted[0];
    for (int64_t i = 1; i < b->tokens; i++)
        seconds += s->best[i];
    r.best = n / seconds;
    r.ratio = r.best_ratio = -1;
    r.hit_cold = cli_pool_hit_rate(&s->stats.cold);
    r.hit_warm = cli_pool_hit_rate(&s->stats.warm);
    r.misses = per(t->misses, t->tokens);
    r.mib = MIB(t->uploaded_bytes) / (double)b->tokens;
    r.waits = per(t->host_waits, t->tokens);
    r.blocking = per(t->blocking_visits, t->visits);
    return r;
}

static void print_md(const struct size *s, const struct row *r)
{
    char t[8][CLI_NUMBER];

    printf("| %.1f %% | %" PRIu32
           " | %.1f | %.1f (%.1f-%.1f) | %s | %.1f | %s | %s | %s | %s | %s | %s | %s |\n",
           r->percent, s->stats.slots, MIB(s->stats.slots_bytes), r->speed, r->slowest, r->fastest,
           cli_number(t[0], r->ratio, 3), r->best, cli_number(t[1], r->best_ratio, 3),
           cli_number(t[2], r->hit_cold * 100, 1), cli_number(t[3], r->hit_warm * 100, 1),
           cli_number(t[4], r->misses, 2), cli_number(t[5], r->mib, 2), cli_number(t[6], r->waits, 2),
           cli_number(t[7], r->blocking, 3));
}

static void print_csv(const struct size *s, const struct row *r)
{
    char t[7][CLI_NUMBER];

    printf("%.2f,%" PRIu32 ",%" PRIu64 ",%.3f,%.3f,%.3f,%s,%.3f,%s,%s,%s,%s,%.4f,%s,%s\n", r->percent,
           s->stats.slots, s->stats.slots_bytes, r->speed, r->slowest, r->fastest,
           cli_number(t[0], r->ratio, 4), r->best, cli_number(t[1], r->best_ratio, 4),
           cli_number(t[2], r->hit_cold, 6), cli_number(t[3], r->hit_warm, 6), cli_number(t[4], r->misses, 4),
           r->mib, cli_number(t[5], r->waits, 4), cli_number(t[6], r->blocking, 4));
}

static void json_number(const char *key, double v)
{
    if (v < 0)
        printf("\"%s\": null, ", key);
    else
        printf("\"%s\": %.6f, ", key, v);
}

static void print_json(const struct size *s, const struct row *r, bool first)
{
    printf("%s{", first ? "" : ", ");
    json_number("capacity", r->percent);
    printf("\"slots\": %" PRIu32 ", \"slots_bytes\": %" PRIu64 ", \"device_bytes\": %" PRIu64
           ", \"policy\": ",
           s->stats.slots, s->stats.slots_bytes, s->device_bytes);
    cli_json_string(s->stats.policy, strlen(s->stats.policy));
    printf(", ");
    json_number("tokens_per_second", r->speed);
    json_number("of_full", r->ratio);
    json_number("best_tokens_per_second", r->best);
    json_number("best_of_full", r->best_ratio);
    json_number("hit_rate_cold", r->hit_cold);
    json_number("hit_rate_warm", r->hit_warm);
    json_number("misses_per_token", r->misses);
    json_number("uploaded_mib_per_token", r->mib);
    json_number("host_waits_per_token", r->waits);
    json_number("blocking_share", r->blocking);
    printf("\"seconds\": [");
    for (uint32_t i = 0; i < s->n_rounds; i++)
        printf("%s%.6f", i ? ", " : "", s->seconds[i]);
    printf("], \"hits\": %" PRIu64 ", \"misses\": %" PRIu64 ", \"evictions\": %" PRIu64
           ", \"reuploads\": %" PRIu64 "}",
           s->stats.total.hits, s->stats.total.misses, s->stats.total.evictions, s->stats.total.reuploads);
}

static void print_head(const struct bench *b, bool md)
{
    char device[1024];

    cli_engine_device_line(&b->e, device, sizeof(device));
    if (md) {
        printf("%s: %" PRId64 " tokens of %s after a prompt of %" PRId64 ", %" PRId64
               " rounds in turn: medians (slowest-fastest);\nbest: of each token the fastest "
               "round. %s; %" PRIu32 " experts, %" PRIu32 " layers choose %" PRIu32 " each.\n\n",
               b->e.path, b->tokens, b->file, b->prompt, b->rounds, device, b->n_experts, b->n_layers,
               b->n_used);
        printf(
            "| experts | slots | MiB | tokens/s | of full | best | of full | hits cold %% | hits warm %% | "
            "misses/token | "
            "MiB/token | waits/token | blocking |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
        return;
    }
    printf("{\"model\": ");
    cli_json_string(b->e.path, strlen(b->e.path));
    printf(", \"device\": ");
    cli_json_string(device, strlen(device));
    printf(", \"file\": ");
    cli_json_string(b->file, strlen(b->file));
    printf(", \"prompt\": %" PRId64 ", \"tokens\": %" PRId64 ", \"rounds\": %" PRId64
           ", \"experts\": %" PRIu32 ", \"rows\": [",
           b->prompt, b->tokens, b->rounds, b->n_experts);
}

static void print(const struct bench *b)
{
    bool md = !strcmp(b->format, "md"), csv = !strcmp(b->format, "csv"), first = true;
    double full = 0, best = 0;

    if (csv)
        printf("capacity,slots,slots_bytes,tokens_per_second,slowest,fastest,of_full,best,best_of_full,"
               "hit_rate_cold,hit_rate_warm,misses_per_token,uploaded_mib_per_token,host_waits_per_token,"
               "blocking_share\n");
    else
        print_head(b, md);
    for (uint32_t i = 0; i < b->n_sizes; i++) {
        const struct size *s = &b->sizes[i];
        struct row r;

        if (s->skipped)
            continue;
        r = judge(b, s);
        if (i == 0) {
            full = r.speed;
            best = r.best;
        }
        if (full > 0) {
            r.ratio = r.speed / full;
            r.best_ratio = r.best / best;
        }
        if (md)
            print_md(s, &r);
        else if (csv)
            print_csv(s, &r);
        else
            print_json(s, &r, first);
        first = false;
    }
    if (!md && !csv)
        printf("]}\n");
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct bench b = {.e = CLI_ENGINE_DEFAULTS, .prompt = 64, .tokens = 512, .rounds = 3, .format = "md"};
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    const struct cli_opt opts[] = {
        {"-f|--file", CLI_STR, &b.file, "FILE", "text to decode, required; - is standard input", 0, 0},
        {"--prompt", CLI_INT, &b.prompt, "N", "its first tokens are the prompt (default 64)", 1, 1 << 24},
        {"-n|--tokens", CLI_INT, &b.tokens, "N",
         "tokens to decode behind them (default 512); the first is not timed", 2, 1 << 24},
        {"--capacity", CLI_STR, &b.capacity, "LIST",
         "pools to measure, in percent of the experts (default 50,25,12.5)", 0, 0},
        {"--pool-mib|--moe-cache-mib", CLI_STR, &b.e.pool, "LIST", "pools to measure, in MiB", 0, 0},
        {"--rounds", CLI_INT, &b.rounds, "N", "measurements of each, taken in turn (default 3)", 1,
         ROUNDS_MAX},
        {"-o", CLI_STR, &b.format, "FORMAT", "md (default), csv or json", 0, 0},
        CLI_ENGINE_OPTS(b.e),
        {0},
    };
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0 || (status = parse(&b, cmd)) >= 0)
        return status;
    if ((status = cli_engine_open_device(&b.e, cmd)) == CLI_GOOD) {
        cor_catch_interrupt();
        TRY(measure(&b, &err));
        print(&b);
    }
done:
    for (uint32_t i = 0; i < b.n_sizes; i++)
        cor_free(b.sizes[i].best);
    cor_free(b.text);
    vkmoe_free(b.ids);
    return cli_engine_end(&b.e, status, st, &err);
}

const struct cli_cmd cli_bench_decode = {
    .name = "bench decode",
    .summary = "decode a text with all experts on the device and with smaller pools, in turn",
    .synopsis = "-f FILE [--prompt N] [-n N] [--capacity LIST | --pool-mib LIST] [--rounds N] "
                "[-o md|csv|json] [OPTION...]",
    .example = "  vkmoe bench decode -f text.txt --capacity 50,25\n"
               "  vkmoe bench decode -m emo.gguf -f text.txt -c 1024 --pool-mib 512,1024 -o csv\n",
    .run = run,
};
