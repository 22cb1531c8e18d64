/* vkmoe bench pool: route traces through the expert pool's allocator, policy by policy, beside the optimum.
 * Needs no model and no device. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "core/alloc.h"
#include "experts/replay.h"
#include "model/json.h"

enum { CAPACITIES_MAX = 32, POLICIES_MAX = 32, NAME_CHARS = 32, EXPERT_BYTES = 3538944, BAR = 44 };

struct policy_row {
    char name[NAME_CHARS];
    struct run_policy policy;
    bool optimum; /* policy.scope only */
};

struct bench {
    /* options */
    const char *trace, *capacity, *policy, *format;
    int64_t prompt, tokens, expert_bytes;
    double link, compute;
    /* parsed */
    double capacities[CAPACITIES_MAX];
    struct policy_row policies[POLICIES_MAX + 2];
    uint32_t n_capacities, n_policies;
    struct xp_trace *traces;
    const char **files;
    uint32_t n_traces;
    struct run_slots_stats *stats; /* (n_capacities, n_policies) */
};

/* One line of the result. Ratios below zero: not defined. */
struct result {
    double capacity;
    uint32_t slots;
    bool refused;
    const char *name;
    const struct run_slots_stats *s;
    double hit_cold, hit_warm, misses, of_lru, cr, ub, rf, blocking, speed;
};

/* ---- arguments
 * ----------------------------------------------------------------------------------------------- */

static enum vkmoe_status parse_capacities(struct bench *b, struct vkmoe_err *err)
{
    const char *p = b->capacity;

    for (;;) {
        char *end;
        double v = strtod(p, &end);

        if (end == p || (*end && *end != ',') || !(v > 0 && v <= 100))
            return cor_fail(err, VKMOE_ERR_ARGUMENT, "--capacity takes percentages such as 12.5,25, not '%s'",
                            b->capacity);
        if (b->n_capacities == CAPACITIES_MAX)
            return cor_fail(err, VKMOE_ERR_ARGUMENT, "--capacity takes at most %d numbers", CAPACITIES_MAX);
        b->capacities[b->n_capacities++] = v;
        if (!*end)
            return VKMOE_OK;
        p = end + 1;
    }
}

static enum vkmoe_status parse_policies(struct bench *b, struct vkmoe_err *err)
{
    static const char all[] = "lru/layer,lru/global,lfu/layer,lfu/global,decay/layer,decay/global,decay";
    const char *p = strcmp(b->policy, "all") ? b->policy : all;
    enum vkmoe_status st = VKMOE_OK;

    while (p) {
        struct policy_row *row = &b->policies[b->n_policies];
        size_t n = strcspn(p, ",");

        if (n >= NAME_CHARS || b->n_policies == POLICIES_MAX)
            FAIL(VKMOE_ERR_ARGUMENT, "--policy takes at most %d policies such as decay:48/layer, not '%.80s'",
                 POLICIES_MAX, p);
        memcpy(row->name, p, n);
        row->name[n] = '\0';
        TRY(run_policy_parse(&row->policy, row->name, err));
        b->n_policies++;
        p = p[n] ? p + n + 1 : NULL;
    }
    b->policies[b->n_policies++] = (struct policy_row){"optimum/layer", {.scope = RUN_SCOPE_LAYER}, true};
    b->policies[b->n_policies++] = (struct policy_row){"optimum/global", {.scope = RUN_SCOPE_GLOBAL}, true};
done:
    return st;
}

static enum vkmoe_status read_traces(struct bench *b, int n_pos, char **argv, struct vkmoe_err *err)
{
    const struct xp_trace_info *first;
    enum vkmoe_status st = VKMOE_OK;

    b->traces = cor_array((size_t)n_pos + 1, sizeof(*b->traces));
    b->files = cor_array((size_t)n_pos + 1, sizeof(*b->files));
    if (!b->traces || !b->files)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %d traces", n_pos + 1);
    if (b->trace)
        b->files[b->n_traces++] = b->trace;
    for (int i = 0; i < n_pos; i++)
        b->files[b->n_traces++] = argv[i];
    first = &b->traces[0].info;
    for (uint32_t i = 0; i < b->n_traces; i++) {
        const struct xp_trace_info *t = &b->traces[i].info;

        TRY(xp_trace_read(&b->traces[i], b->files[i], err));
        if (t->n_layers != first->n_layers || t->n_experts != first->n_experts || t->n_used != first->n_used)
            FAIL(VKMOE_ERR_ARGUMENT,
                 "%s has %" PRIu32 " layers, %" PRIu32 " experts, %" PRIu32 " used, %s has %" PRIu32
                 ", %" PRIu32 ", %" PRIu32,
                 b->files[i], t->n_layers, t->n_experts, t->n_used, b->files[0], first->n_layers,
                 first->n_experts, first->n_used);
    }
    if (!b->expert_bytes)
        b->expert_bytes = first->expert_bytes ? (int64_t)first->expert_bytes : EXPERT_BYTES;
done:
    return st;
}

/* ---- numbers
 * ------------------------------------------------------------------------------------------------- */

static uint32_t slots_at(const struct bench *b, uint32_t c)
{
    const struct xp_trace_info *t = &b->traces[0].info;

    return (uint32_t)((double)t->n_layers * t->n_experts * b->capacities[c] / 100 + 1e-9);
}

static bool refused(const struct bench *b, uint32_t c)
{
    return slots_at(b, c) < xp_replay_floor(&b->traces[0]);
}

/* Replays every trace under one policy at one capacity. */
static enum vkmoe_status replay(const struct bench *b, const struct policy_row *row, uint32_t c,
                                struct run_slots_stats *out, struct vkmoe_err *err)
{
    const struct xp_replay_params p = {.n_slots = slots_at(b, c),
                                       .prompt = (uint32_t)b->prompt,
                                       .tokens = (uint32_t)b->tokens,
                                       .policy = row->policy};
    enum vkmoe_status st = VKMOE_OK;

    memset(out, 0, sizeof(*out));
    for (uint32_t i = 0; i < b->n_traces; i++)
        TRY(row->optimum ? xp_replay_optimum(&b->traces[i], &p, row->policy.scope, out, err)
                         : xp_replay(&b->traces[i], &p, out, err));
done:
    return st;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : -1;
}

static double hit_rate(const struct run_slots_counts *c)
{
    return ratio((double)c->hits, (double)(c->hits + c->misses));
}

static struct result judge(const struct bench *b, uint32_t c, uint32_t i, const struct run_slots_stats *lru)
{
    const struct run_slots_stats *s = &b->stats[c * b->n_policies + i];
    const struct run_slots_stats *best = &b->stats[c * b->n_policies + b->n_policies - 2];
    struct result r = {.capacity = b->capacities[c],
                       .slots = slots_at(b, c),
                       .refused = refused(b, c),
                       .name = b->policies[i].name,
                       .s = s};
    double misses = (double)s->total.misses;

    r.hit_cold = hit_rate(&s->cold);
    r.hit_warm = hit_rate(&s->warm);
    r.misses = ratio(misses, (double)s->total.tokens);
    r.of_lru = ratio(misses, (double)lru->total.misses);
    r.cr = ratio(misses, (double)best->total.misses);
    r.ub = r.cr; /* nothing is uploaded but misses */
    r.rf = ratio((double)s->total.reuploads, misses);
    r.blocking = ratio((double)s->total.blocking_visits, (double)s->total.visits);
    r.speed = ratio(1000, b->compute + r.misses * (double)b->expert_bytes / (b->link * 1e6));
    return r;
}

/* ---- output
 * -------------------------------------------------------------------------------------------------- */

static void md_row(const struct result *r)
{
    char t[9][CLI_NUMBER];

    printf("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", r->name,
           cli_number(t[0], r->hit_cold * 100, 1), cli_number(t[1], r->hit_warm * 100, 1),
           cli_number(t[2], r->misses, 2), cli_number(t[3], r->of_lru, 3), cli_number(t[4], r->cr, 2),
           cli_number(t[5], r->ub, 2), cli_number(t[6], r->rf, 2), cli_number(t[7], r->blocking, 2),
           cli_number(t[8], r->speed, 1));
}

static void plot(const struct bench *b, const struct result *all)
{
    const uint32_t n = b->n_capacities * b->n_policies;
    double most = 0;

    for (uint32_t i = 0; i < n; i++)
        most = !all[i].refused && all[i].misses > most ? all[i].misses : most;
    printf("\nMisses per token over capacity (the longest bar is %.2f):\n\n```\n", most);
    for (uint32_t i = 0; i < n; i++) {
        if (i % b->n_policies == 0)
            printf("%s%g %%%s\n", i ? "\n" : "", all[i].capacity, all[i].refused ? ": refused" : "");
        if (all[i].refused)
            continue;
        printf("  %-16s ", all[i].name);
        for (int x = 0; most > 0 && x < (int)(all[i].misses / most * BAR + 0.5); x++)
            putchar('#');
        printf(" %.2f\n", all[i].misses);
    }
    printf("```\n");
}

static void print_md(const struct bench *b, const struct result *all)
{
    const struct xp_trace_info *t = &b->traces[0].info;
    uint32_t n = b->n_capacities * b->n_policies;
    uint64_t tokens = 0;
    size_t streams = 0;

    for (uint32_t i = 0; i < b->n_traces; i++)
        streams += b->traces[i].n_streams;
    for (uint32_t i = 0; i < n; i++)
        tokens = all[i].s->total.tokens > tokens ? all[i].s->total.tokens : tokens;
    printf("%" PRIu32 " layers of %" PRIu32 " experts, %" PRIu32 " used; %zu streams, %" PRIu64
           " decoded tokens after prompts of %" PRId64 ".\n",
           t->n_layers, t->n_experts, t->n_used, streams, tokens, b->prompt);
    printf("Experts of %" PRId64 " bytes, link %g GB/s, %g ms of computing per token.\n", b->expert_bytes,
           b->link, b->compute);
    for (uint32_t i = 0; i < n; i++) {
        if (i % b->n_policies == 0)
            printf("\n%g %% of the experts, %" PRIu32 " slots (at least %" PRIu32 " are needed)%s\n",
                   all[i].capacity, all[i].slots, xp_replay_floor(&b->traces[0]),
                   all[i].refused ? ": refused" : "\n");
        if (all[i].refused)
            continue;
        if (i % b->n_policies == 0)
            printf("| policy | hits cold %% | hits warm %% | misses/token | of lru/layer | CR | UB | RF | "
                   "blocking "
                   "| tokens/s |\n|---|---|---|---|---|---|---|---|---|---|\n");
        md_row(&all[i]);
    }
    plot(b, all);
}

static void print_csv(const struct bench *b, const struct result *all)
{
    printf(
        "capacity,slots,policy,refused,tokens,hits_cold,misses_cold,hits_warm,misses_warm,evictions,"
        "reuploads,"
        "blocking_visits,visits,prefill_loads,prefill_displaced,misses_of_lru,cr,ub,rf,tokens_per_second\n");
    for (uint32_t i = 0; i < b->n_capacities * b->n_policies; i++) {
        const struct result *r = &all[i];
        const struct run_slots_stats *s = r->s;

        printf("%g,%" PRIu32 ",%s,%s", r->capacity, r->slots, r->name, r->refused ? "yes" : "no");
        if (r->refused) {
            printf(",,,,,,,,,,,,,,,,\n");
            continue;
        }
        printf(",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64
               ",%" PRIu64 ",%" PRIu64 ",%" PRIu64,
               s->total.tokens, s->cold.hits, s->cold.misses, s->warm.hits, s->warm.misses,
               s->total.evictions, s->total.reuploads, s->total.blocking_visits, s->total.visits,
               s->prefill.loads, s->prefill.displaced);
        printf(",%.6g,%.6g,%.6g,%.6g,%.6g\n", r->of_lru, r->cr, r->ub, r->rf, r->speed);
    }
}

static void json_counts(const char *key, const struct run_slots_counts *c)
{
    printf(",\"%s\":{\"tokens\":%" PRIu64 ",\"hits\":%" PRIu64 ",\"misses\":%" PRIu64
           ",\"evictions\":%" PRIu64 ",\"blocking_visits\":%" PRIu64 ",\"visits\":%" PRIu64
           ",\"reuploads\":%" PRIu64 "}",
           key, c->tokens, c->hits, c->misses, c->evictions, c->blocking_visits, c->visits, c->reuploads);
}

static void json_ratio(const char *key, double v)
{
    if (v < 0)
        printf(",\"%s\":null", key);
    else
        printf(",\"%s\":%.6g", key, v);
}

static void print_json(const struct bench *b, const struct result *all)
{
    const struct xp_trace_info *t = &b->traces[0].info;

    printf("{\"model\":");
    cli_json_string(t->model, strlen(t->model));
    printf(",\"traces\":[");
    for (uint32_t i = 0; i < b->n_traces; i++) {
        printf(i ? "," : "");
        cli_json_string(b->files[i], strlen(b->files[i]));
    }
    printf("],\"n_layers\":%" PRIu32 ",\"n_experts\":%" PRIu32 ",\"n_used\":%" PRIu32 ",\"floor\":%" PRIu32
           ",\"prompt\":%" PRId64 ",\"expert_bytes\":%" PRId64 ",\"link_gb_per_second\":%g,\"compute_ms\":%g",
           t->n_layers, t->n_experts, t->n_used, xp_replay_floor(&b->traces[0]), b->prompt, b->expert_bytes,
           b->link, b->compute);
    printf(",\"results\":[");
    for (uint32_t i = 0; i < b->n_capacities * b->n_policies; i++) {
        const struct result *r = &all[i];

        printf("%s\n{\"capacity\":%g,\"slots\":%" PRIu32 ",\"policy\":\"%s\",\"refused\":%s", i ? "," : "",
               r->capacity, r->slots, r->name, r->refused ? "true" : "false");
        if (!r->refused) {
            json_counts("total", &r->s->total);
            json_counts("cold", &r->s->cold);
            json_counts("warm", &r->s->warm);
            printf(",\"prefill\":{\"hits\":%" PRIu64 ",\"loads\":%" PRIu64 ",\"displaced\":%" PRIu64 "}",
                   r->s->prefill.hits, r->s->prefill.loads, r->s->prefill.displaced);
            json_ratio("misses_of_lru", r->of_lru);
            json_ratio("cr", r->cr);
            json_ratio("ub", r->ub);
            json_ratio("rf", r->rf);
            json_ratio("tokens_per_second", r->speed);
        }
        putchar('}');
    }
    printf("\n]}\n");
}

/* ---- command
 * ------------------------------------------------------------------------------------------------- */

static enum vkmoe_status measure(struct bench *b, struct vkmoe_err *err)
{
    const struct policy_row lru = {.policy = {.kind = RUN_LRU, .scope = RUN_SCOPE_LAYER}};
    size_t n = (size_t)b->n_capacities * b->n_policies;
    struct result *all = cor_array(n, sizeof(*all));
    uint64_t tokens = 0;
    enum vkmoe_status st = VKMOE_OK;

    b->stats = cor_array(n, sizeof(*b->stats));
    if (!all || !b->stats)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %zu results", n);
    for (uint32_t c = 0; c < b->n_capacities; c++) {
        struct run_slots_stats base = {0};

        if (!refused(b, c)) {
            for (uint32_t i = 0; i < b->n_policies; i++)
                TRY(replay(b, &b->policies[i], c, &b->stats[c * b->n_policies + i], err));
            TRY(replay(b, &lru, c, &base, err));
            tokens = base.total.tokens;
            if (!tokens)
                FAIL(VKMOE_ERR_ARGUMENT,
                     "no stream of the traces is longer than the prompt of %" PRId64 " tokens", b->prompt);
        }
        for (uint32_t i = 0; i < b->n_policies; i++)
            all[c * b->n_policies + i] = judge(b, c, i, &base);
    }
    (strcmp(b->format, "md") ? strcmp(b->format, "csv") ? print_json : print_csv : print_md)(b, all);
done:
    cor_free(all);
    return st;
}

static void bench_close(struct bench *b)
{
    for (uint32_t i = 0; b->traces && i < b->n_traces; i++)
        xp_trace_free(&b->traces[i]);
    cor_free(b->traces);
    cor_free(b->files);
    cor_free(b->stats);
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct vkmoe_err error, *err = &error;
    struct bench b = {.capacity = "12.5,25,50,75",
                      .policy = "all",
                      .format = "md",
                      .prompt = 64,
                      .tokens = 512,
                      .link = 12.5,
                      .compute = 4};
    const struct cli_opt opts[] = {
        {"--trace", CLI_STR, &b.trace, "FILE",
         "route trace (`vkmoe run --route-trace`); more files may follow, of models of one shape", 0, 0},
        {"--capacity", CLI_STR, &b.capacity, "LIST",
         "slots, in percent of all experts (default 12.5,25,50,75)", 0, 0},
        {"--policy", CLI_STR, &b.policy, "LIST",
         "all (default), or any of lru, lfu, decay, decay:TOKENS, each with /layer or /global or without", 0,
         0},
        {"--prompt", CLI_INT, &b.prompt, "N", "tokens of each stream that are fed as prefill (default 64)", 0,
         1 << 20},
        {"--tokens", CLI_INT, &b.tokens, "N", "tokens decoded after them, at most (default 512)", 1, 1 << 30},
        {"--expert-bytes", CLI_INT, &b.expert_bytes, "N",
         "bytes of one expert (default: what the trace says, else 3538944)", 1, 4294967295.0},
        {"--link", CLI_FLOAT, &b.link, "GB/S", "speed of uploads, 10^9 bytes per second (default 12.5)", 1e-6,
         1e6},
        {"--compute", CLI_FLOAT, &b.compute, "MS",
         "time of a token without misses (default 4); tokens/s = 1000 / (compute + misses per token x expert "
         "bytes / link), nothing overlapped",
         1e-6, 1e6},
        {"-o", CLI_STR, &b.format, "FORMAT", "md (default), csv or json", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    int n_pos = 0, status = cli_parse(cmd, opts, argc, argv, &n_pos);
    enum vkmoe_status st = VKMOE_OK;

    if (status >= 0)
        return status;
    if (!b.trace && !n_pos)
        return cli_usage(cmd, "no trace: give --trace FILE");
    if (strcmp(b.format, "md") && strcmp(b.format, "csv") && strcmp(b.format, "json"))
        return cli_usage(cmd, "-o takes md, csv or json, not '%s'", b.format);
    TRY(parse_capacities(&b, err));
    TRY(parse_policies(&b, err));
    TRY(read_traces(&b, n_pos, argv, err));
    TRY(measure(&b, err));
done:
    bench_close(&b);
    return st ? cli_error(err) : CLI_GOOD;
}

const struct cli_cmd cli_bench_pool = {
    .name = "bench pool",
    .summary =
        "route traces replayed through the expert pool: hits and misses of each policy at each size, beside "
        "Belady's optimum (the next use farthest away goes; what is asked for must be let in). CR: misses "
        "over "
        "those of the optimum with equal shares per layer; UB: the same of uploaded bytes; RF: share of "
        "misses of an expert evicted fewer than 8 tokens before; blocking: share of layer visits with a "
        "miss.",
    .synopsis =
        "--trace FILE... [--capacity LIST] [--policy all|LIST] [--prompt N] [--tokens N] [--expert-bytes N] "
        "[--link GB/S] [--compute MS] [-o md|csv|json]",
    .example = "  vkmoe bench pool --trace scripture.jsonl python.jsonl --capacity 25,50\n",
    .run = run,
};
