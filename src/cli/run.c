/* vkmoe run: continue a text. Streams to stdout; statistics to stderr, or one JSON object. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/pool.h"
#include "cli/sampling.h"
#include "core/alloc.h"
#include "core/npy.h"
#include "core/os.h"

enum { N_CONTEXT = -1, N_DEFAULT = -2 }; /* values of n_predict */

struct options {
    struct cli_engine e;
    const char *prompt, *file, *tokens, *force, *logits_out;
    struct cli_sampling sampling;
    int64_t n_predict;
    bool json, ignore_eos, special;
};

struct generation {
    struct options *o;
    char *prompt_text, *force_text; /* as given; NULL where ids were given or nothing is forced */
    size_t prompt_bytes, force_bytes;
    int32_t *prompt, *out, *forced;
    size_t n_prompt, n_fed, n_out, n_forced, cap;
    vkmoe_sampler *sampler;
    struct cor_npy_writer *npy;
    uint64_t prompt_ns, decode_ns;
    size_t n_decoded; /* tokens fed after the prompt: the first token comes from the prompt's logits */
    const char *stop; /* "limit", "end", "context", "interrupt", "output" */
    char last;        /* byte written to stdout */
    struct cli_status status;
};

static double seconds(uint64_t ns)
{
    return (double)ns * 1e-9;
}

static double per_second(size_t n, uint64_t ns)
{
    return ns ? (double)n / seconds(ns) : 0;
}

/* ---- input
 * -------------------------------------------------------------------------------------------------- */

/* What can fail without a device, so that it does so at once. */
static enum vkmoe_status read_inputs(struct generation *g, struct vkmoe_err *err)
{
    const struct options *o = g->o;
    enum vkmoe_status st = VKMOE_OK;

    if (o->tokens)
        TRY(cli_parse_ids(o->tokens, &g->prompt, &g->n_prompt, err));
    else
        TRY(cli_read_text(o->prompt, o->file, &g->prompt_text, &g->prompt_bytes, err));
    if (!o->tokens && !g->prompt_bytes)
        FAIL(VKMOE_ERR_ARGUMENT, "the prompt is empty: at least one token is needed");
    if (o->force)
        TRY(cli_read_text(NULL, o->force, &g->force_text, &g->force_bytes, err));
    if (o->force && !g->force_bytes)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: no text to force", o->force);
done:
    return st;
}

static enum vkmoe_status tokenize_inputs(struct generation *g, struct vkmoe_err *err)
{
    const struct options *o = g->o;
    enum vkmoe_status st = VKMOE_OK;

    if (!o->tokens)
        TRY(vkmoe_tokenize_prompt(o->e.mdl, g->prompt_text, g->prompt_bytes, o->special, &g->prompt,
                                  &g->n_prompt, err));
    if (o->force)
        TRY(vkmoe_tokenize(o->e.mdl, g->force_text, g->force_bytes, o->special, &g->forced, &g->n_forced,
                           err));
    g->cap = (size_t)o->n_predict;
    if (o->n_predict == N_DEFAULT)
        g->cap = o->force ? g->n_forced : 128;
    else if (o->n_predict == N_CONTEXT) /* more than can be had */
        g->cap = (size_t)vkmoe_session_n_ctx(o->e.ses) + 1;
    if (o->force && g->cap > g->n_forced)
        g->cap = g->n_forced;
    g->out = cor_array(g->cap, sizeof(*g->out));
    if (!g->out)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %zu tokens", g->cap);
done:
    return st;
}

/* How many of the best logits decide every token; 0: all are needed. */
static uint32_t logits_needed(const struct options *o)
{
    if (o->logits_out)
        return 0;
    return o->force ? 1 : cli_sampling_logits(&o->sampling);
}

/* ---- generation
 * --------------------------------------------------------------------------------------------- */

static enum vkmoe_status choose(struct generation *g, int32_t *token, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    if (g->npy)
        TRY(cor_npy_append(g->npy, vkmoe_session_logits(g->o->e.ses), err));
    if (g->forced) {
        *token = g->forced[g->n_out];
        vkmoe_sampler_accept(g->sampler, *token);
    } else {
        TRY(cli_sample(g->sampler, &g->o->e, token, err));
    }
done:
    return st;
}

static void print_token(struct generation *g, int32_t token)
{
    const char *bytes;
    size_t n = vkmoe_token_bytes(g->o->e.mdl, token, &bytes);

    if (g->o->json || !n)
        return;
    cli_status_text(&g->status, bytes, n);
    g->last = bytes[n - 1];
}

/* The text ends with a newline, its own or one more: what follows on the terminal begins a line. */
static void end_line(const struct generation *g)
{
    if (!g->o->json && g->n_out && g->last != '\n' && cli_stdout_good()) {
        putchar('\n');
        cli_stdout_good();
    }
}

/* Why the last token is the last one; NULL: it is not. */
static const char *reason_to_stop(const struct generation *g, int32_t token)
{
    const struct cli_engine *e = &g->o->e;

    if (!cli_stdout_good())
        return "output";
    if (vkmoe_token_is_end(e->mdl, token) && !g->o->ignore_eos && !g->forced)
        return "end";
    if (g->n_out == g->cap)
        return "limit";
    if (cor_interrupted())
        return "interrupt";
    if (vkmoe_session_position(e->ses) == vkmoe_session_n_ctx(e->ses))
        return "context";
    return NULL;
}

static enum vkmoe_status decode(struct generation *g, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    int32_t token;

    g->stop = g->cap ? NULL : "limit";
    cli_status_begin(&g->status, &g->o->e, !g->o->json);
    while (!g->stop) {
        TRY(choose(g, &token, err));
        g->out[g->n_out++] = token;
        print_token(g, token);
        g->stop = reason_to_stop(g, token);
        if (g->stop)
            break;
        TRY(cli_choice_step(&g->o->e.choice, g->o->e.ses, g->n_decoded, err));
        TRY(vkmoe_session_feed(g->o->e.ses, &token, 1, err));
        g->n_decoded++;
        cli_status_step(&g->status, g->n_decoded);
    }
done:
    cli_status_end(&g->status);
    return st;
}

static enum vkmoe_status generate(struct generation *g, struct vkmoe_err *err)
{
    uint64_t start = cor_now_ns();
    enum vkmoe_status st = VKMOE_OK;

    TRY(cli_engine_feed(&g->o->e, g->prompt, g->n_prompt, &g->n_fed, err));
    g->prompt_ns = cor_now_ns() - start;
    cli_engine_profile(&g->o->e, "prefill");
    if (g->n_fed < g->n_prompt) {
        g->stop = "interrupt";
        return VKMOE_OK;
    }
    for (size_t i = 0; i < g->n_prompt; i++)
        vkmoe_sampler_accept(g->sampler, g->prompt[i]);
    start = cor_now_ns();
    st = decode(g, err);
    g->decode_ns = cor_now_ns() - start;
    end_line(g);
    cli_engine_profile(&g->o->e, "decode");
done:
    return st;
}

/* ---- results
 * ------------------------------------------------------------------------------------------------ */

static void print_ids(const char *key, const int32_t *ids, size_t n)
{
    printf("\"%s\": [", key);
    for (size_t i = 0; i < n; i++)
        printf("%s%" PRId32, i ? ", " : "", ids[i]);
    printf("]");
}

static enum vkmoe_status print_text(const struct generation *g, struct vkmoe_err *err)
{
    size_t n = 0, at = 0;
    const char *bytes;
    char *text;

    for (size_t i = 0; i < g->n_out; i++)
        n += vkmoe_token_bytes(g->o->e.mdl, g->out[i], &bytes);
    text = cor_alloc(n);
    if (!text)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu bytes of text", n);
    for (size_t i = 0; i < g->n_out; i++) {
        size_t k = vkmoe_token_bytes(g->o->e.mdl, g->out[i], &bytes);

        if (k)
            memcpy(text + at, bytes, k);
        at += k;
    }
    cli_json_string(text, n);
    cor_free(text);
    return VKMOE_OK;
}

static enum vkmoe_status print_json(const struct generation *g, struct vkmoe_err *err)
{
    const struct vkmoe_device_info *d = vkmoe_device_facts(g->o->e.dev);
    enum vkmoe_status st = VKMOE_OK;

    printf("{");
    print_ids("prompt_tokens", g->prompt, g->n_prompt);
    printf(", ");
    print_ids("tokens", g->out, g->n_out);
    printf(", \"text\": ");
    TRY(print_text(g, err));
    printf(", \"stop\": \"%s\", \"seed\": %" PRId64 ", \"fast_math\": %s, \"device\": {\"name\": ", g->stop,
           g->o->sampling.seed, g->o->e.fast_math ? "true" : "false");
    cli_json_string(d->name, strlen(d->name));
    printf(", \"driver\": ");
    cli_json_string(d->driver, strlen(d->driver));
    printf(", \"driver_version\": ");
    cli_json_string(d->driver_version, strlen(d->driver_version));
    printf("}, \"timings\": {\"prompt_n\": %zu, \"prompt_ms\": %.3f, \"prompt_per_second\": %.3f, "
           "\"predicted_n\": %zu, "
           "\"predicted_ms\": %.3f, \"predicted_per_second\": %.3f}, ",
           g->n_fed, seconds(g->prompt_ns) * 1e3, per_second(g->n_fed, g->prompt_ns), g->n_decoded,
           seconds(g->decode_ns) * 1e3, per_second(g->n_decoded, g->decode_ns));
    cli_choice_json(&g->o->e.choice, g->o->e.mdl, g->o->e.ses);
    printf(", ");
    cli_pool_json(&g->o->e);
    printf("}\n");
done:
    return st;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576;
}

static void print_speed(const char *what, size_t n, uint64_t ns)
{
    fprintf(stderr, "%-8s %zu token%s", what, n, n == 1 ? "" : "s");
    if (n)
        fprintf(stderr, " in %.2f s, %.1f tokens/s", seconds(ns), per_second(n, ns));
    fputc('\n', stderr);
}

static void print_stats(const struct generation *g)
{
    const struct cli_engine *e = &g->o->e;
    const struct vkmoe_model_info *m = vkmoe_model_facts(e->mdl);
    struct vkmoe_pool_stats p;
    struct vkmoe_session_stats s;
    char device[1024];

    vkmoe_model_get_pool(e->mdl, &p);
    vkmoe_session_get_stats(e->ses, &s);
    cli_engine_device_line(e, device, sizeof(device));
    fprintf(stderr, "\ndevice   %s\n", device);
    if (e->fast_math)
        fprintf(stderr, "math     fast: activations rounded to 8 bits for Q8_0 and Q4_0 weights\n");
    print_speed("prefill", g->n_fed, g->prompt_ns);
    print_speed("decode", g->n_decoded, g->decode_ns);
    fprintf(stderr,
            "memory   %.1f MiB: %.1f dense, %.1f experts (%" PRIu32 " slots), %.1f cache, %.1f activations\n",
            mib(cli_pool_device_bytes(e)), mib(m->dense_bytes),
            mib(p.slots_bytes + p.staging_bytes + p.table_bytes), p.slots, mib(s.kv_bytes),
            mib(s.state_bytes));
    cli_pool_line(e, 9);
    cli_choice_line(&e->choice, e->mdl, e->ses, 9);
    if (g->o->sampling.temp > 0 && !g->forced)
        fprintf(stderr, "seed     %" PRId64 "\n", g->o->sampling.seed);
    if (!strcmp(g->stop, "context"))
        fprintf(stderr, "stopped  the context of %" PRIu32 " tokens is full (-c)\n",
                vkmoe_session_n_ctx(e->ses));
    if (!strcmp(g->stop, "interrupt"))
        fprintf(stderr, "stopped  interrupted after %zu token%s\n", g->n_out, g->n_out == 1 ? "" : "s");
}

static enum vkmoe_status run_generation(struct generation *g, struct vkmoe_err *err)
{
    const struct options *o = g->o;
    struct cor_npy_writer *npy;
    enum vkmoe_status st = VKMOE_OK;

    TRY(tokenize_inputs(g, err));
    TRY(cli_sampling_create(&g->sampler, &o->sampling, err));
    cor_catch_interrupt(); /* before a temporary file exists */
    if (o->logits_out)
        TRY(cor_npy_create(&g->npy, o->logits_out, vkmoe_model_facts(o->e.mdl)->vocab_size, err));
    TRY(generate(g, err));
    npy = g->npy;
    g->npy = NULL;
    if (npy)
        TRY(cor_npy_commit(npy, err));
    TRY(cli_engine_commit(&g->o->e, err));
    if (o->json)
        TRY(print_json(g, err));
    else if (strcmp(g->stop, "output")) /* whoever closed the pipe wants no more lines */
        print_stats(g);
done:
    return st;
}

static void close_generation(struct generation *g)
{
    cor_npy_discard(g->npy);
    vkmoe_sampler_destroy(g->sampler);
    cor_free(g->prompt_text);
    cor_free(g->force_text);
    cor_free(g->prompt);
    cor_free(g->out);
    cor_free(g->forced);
}

static int run_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct options o = {.e = CLI_ENGINE_DEFAULTS, .n_predict = N_DEFAULT};
    struct generation g = {.o = &o, .stop = "limit"};
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    const struct cli_opt opts[] = {
        {"-p|--prompt", CLI_STR, &o.prompt, "TEXT", "text to continue (it is not printed again)", 0, 0},
        {"-f|--file", CLI_STR, &o.file, "FILE", "read the prompt from a file; a lone - reads standard input",
         0, 0},
        {"--tokens", CLI_STR, &o.tokens, "1,2,3", "prompt as token ids", 0, 0},
        {"--special", CLI_FLAG, &o.special, NULL, "names of special tokens in texts become tokens", 0, 0},
        {"-n|--n-predict", CLI_INT, &o.n_predict, "N",
         "tokens to generate (default 128, or all of --force; -1: until the context is full)", N_CONTEXT,
         1 << 24},
        CLI_SAMPLING_OPTS(o.sampling),
        {"--force", CLI_STR, &o.force, "FILE", "decode this file's text instead of sampling", 0, 0},
        {"--ignore-eos", CLI_FLAG, &o.ignore_eos, NULL, "go on behind end tokens", 0, 0},
        {"--logits-out", CLI_STR, &o.logits_out, "OUT.npy",
         "write the logits each token was chosen from: (generated, vocab) float32", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object instead of text", 0, 0},
        CLI_POOL_OPTS(o.e),
        CLI_ENGINE_OPTS(o.e),
        {0},
    };
    int n_pos, status;

    cli_sampling_defaults(&o.sampling);
    if ((status = cli_parse(cmd, opts, argc, argv, &n_pos)) >= 0)
        return status;
    if (n_pos > 1 || (n_pos == 1 && strcmp(argv[0], "-")))
        return cli_usage(cmd, "'%s' is not expected; a prompt comes from -p, -f, - or --tokens",
                         argv[n_pos > 1 && !strcmp(argv[0], "-") ? 1 : 0]);
    if (n_pos == 1 && !o.file)
        o.file = "-";
    else if (n_pos == 1)
        return cli_usage(cmd, "give either -f or -");
    if (!!o.prompt + !!o.file + !!o.tokens != 1)
        return cli_usage(cmd, "give one prompt: -p, -f, - or --tokens");
    cli_sampling_seed(&o.sampling);
    TRY(read_inputs(&g, &err));
    o.e.params.n_top = logits_needed(&o);
    status = cli_engine_open(&o.e, cmd);
    if (status == CLI_GOOD)
        TRY(run_generation(&g, &err));
done:
    close_generation(&g);
    return cli_engine_end(&o.e, status, st, &err);
}

const struct cli_cmd cli_run = {
    .name = "run",
    .summary = "continue a text",
    .synopsis = "[-m FILE] -p TEXT | -f FILE | - | --tokens 1,2,3 [OPTION...]",
    .example = "  vkmoe run -p \"In the beginning\" -n 64 --temp 0\n"
               "  vkmoe run -f notes.txt -n -1 -s 7 --json\n"
               "  echo \"def read(\" | vkmoe run - --temp 0.5\n"
               "  vkmoe run -f notes.txt --experts doc:16\n",
    .run = run_main,
};
