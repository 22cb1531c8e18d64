/* vkmoe run: continue a text. Streams to stdout; statistics to stderr, or one JSON object. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/engine.h"
#include "core/alloc.h"
#include "core/npy.h"
#include "core/os.h"

struct options {
    struct cli_engine e;
    const char *prompt, *file, *tokens, *force, *logits_out;
    int64_t n_predict, seed, top_k;
    double temp, top_p, min_p, repeat_penalty;
    bool json, ignore_eos, special;
};

struct generation {
    struct options *o;
    int32_t *prompt, *out, *forced;
    size_t n_prompt, n_out, n_forced, cap;
    vkmoe_sampler *sampler;
    struct cor_npy_writer *npy;
    uint64_t prompt_ns, decode_ns;
    size_t n_decoded; /* tokens fed after the prompt */
    const char *stop; /* "limit", "end", "context", "interrupt", "output" */
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

static enum vkmoe_status read_ids(const struct options *o, const char *p, const char *f, int32_t **ids,
                                  size_t *n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char *text = NULL;
    size_t bytes;

    TRY(cli_read_text(p, f, &text, &bytes, err));
    TRY(vkmoe_tokenize(o->e.mdl, text, bytes, o->special, ids, n, err));
done:
    cor_free(text);
    return st;
}

static enum vkmoe_status read_inputs(struct generation *g, struct vkmoe_err *err)
{
    const struct options *o = g->o;
    enum vkmoe_status st = VKMOE_OK;

    if (o->tokens)
        TRY(cli_parse_ids(o->tokens, &g->prompt, &g->n_prompt, err));
    else
        TRY(read_ids(o, o->prompt, o->file, &g->prompt, &g->n_prompt, err));
    if (!g->n_prompt)
        FAIL(VKMOE_ERR_ARGUMENT, "the prompt is empty: give at least one token");
    if (o->force)
        TRY(read_ids(o, NULL, o->force, &g->forced, &g->n_forced, err));
    g->cap = o->n_predict < 0 ? vkmoe_session_n_ctx(o->e.ses) : (size_t)o->n_predict;
    if (o->force && g->cap > g->n_forced)
        g->cap = g->n_forced;
    g->out = cor_array(g->cap + 1, sizeof(*g->out));
    if (!g->out)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %zu tokens", g->cap);
done:
    return st;
}

/* ---- generation
 * --------------------------------------------------------------------------------------------- */

static enum vkmoe_status choose(struct generation *g, int32_t *token, struct vkmoe_err *err)
{
    const struct vkmoe_model_info *m = vkmoe_model_facts(g->o->e.mdl);
    const float *logits = vkmoe_session_logits(g->o->e.ses);
    enum vkmoe_status st = VKMOE_OK;

    if (g->npy)
        TRY(cor_npy_append(g->npy, logits, err));
    if (g->forced) {
        *token = g->forced[g->n_out];
        vkmoe_sampler_accept(g->sampler, *token);
    } else {
        TRY(vkmoe_sample(g->sampler, logits, m->vocab_size, m->n_tokens_used, token, err));
    }
done:
    return st;
}

static void print_token(const struct generation *g, int32_t token)
{
    const char *bytes;
    size_t n = vkmoe_token_bytes(g->o->e.mdl, token, &bytes);

    if (!g->o->json)
        fwrite(bytes, 1, n, stdout);
}

static enum vkmoe_status generate(struct generation *g, struct vkmoe_err *err)
{
    struct cli_engine *e = &g->o->e;
    uint64_t start = cor_now_ns();
    enum vkmoe_status st = VKMOE_OK;

    TRY(vkmoe_session_feed(e->ses, g->prompt, g->n_prompt, err));
    g->prompt_ns = cor_now_ns() - start;
    for (size_t i = 0; i < g->n_prompt; i++)
        vkmoe_sampler_accept(g->sampler, g->prompt[i]);
    start = cor_now_ns();
    g->stop = "limit";
    while (g->n_out < g->cap) {
        int32_t token;

        TRY(choose(g, &token, err));
        g->out[g->n_out++] = token;
        print_token(g, token);
        if (!cli_stdout_good()) {
            g->stop = "output";
            break;
        }
        if (vkmoe_token_is_end(e->mdl, token) && !g->o->ignore_eos && !g->forced) {
            g->stop = "end";
            break;
        }
        if (cor_interrupted()) {
            g->stop = "interrupt";
            break;
        }
        if (g->n_out == g->cap)
            break;
        if (vkmoe_session_position(e->ses) == vkmoe_session_n_ctx(e->ses)) {
            g->stop = "context";
            break;
        }
        TRY(vkmoe_session_feed(e->ses, &token, 1, err));
        g->n_decoded++;
    }
done:
    g->decode_ns = cor_now_ns() - start;
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
    printf(", \"stop\": \"%s\", \"seed\": %" PRId64 ", \"device\": {\"name\": ", g->stop, g->o->seed);
    cli_json_string(d->name, strlen(d->name));
    printf(", \"driver\": ");
    cli_json_string(d->driver, strlen(d->driver));
    printf(", \"driver_version\": ");
    cli_json_string(d->driver_version, strlen(d->driver_version));
    printf("}, \"timings\": {\"prompt_n\": %zu, \"prompt_ms\": %.3f, \"prompt_per_second\": %.3f, "
           "\"predicted_n\": %zu, "
           "\"predicted_ms\": %.3f, \"predicted_per_second\": %.3f}, ",
           g->n_prompt, seconds(g->prompt_ns) * 1e3, per_second(g->n_prompt, g->prompt_ns), g->n_decoded,
           seconds(g->decode_ns) * 1e3, per_second(g->n_decoded, g->decode_ns));
    cli_engine_pool_json(&g->o->e);
    printf("}\n");
done:
    return st;
}

static void print_stats(const struct generation *g)
{
    const struct cli_engine *e = &g->o->e;
    const struct vkmoe_model_info *m = vkmoe_model_facts(e->mdl);
    struct vkmoe_session_stats s;
    char device[1024];

    vkmoe_session_get_stats(e->ses, &s);
    cli_engine_device_line(e, device, sizeof(device));
    printf("\n");
    fflush(stdout);
    fprintf(stderr, "\ndevice   %s\n", device);
    fprintf(stderr, "prefill  %zu tokens, %.1f tokens/s\n", g->n_prompt,
            per_second(g->n_prompt, g->prompt_ns));
    fprintf(stderr, "decode   %zu tokens, %.1f tokens/s\n", g->n_decoded,
            per_second(g->n_decoded, g->decode_ns));
    fprintf(stderr,
            "memory   %.1f MiB dense, %.1f MiB experts (%" PRIu32
            " slots), %.1f MiB cache, %.1f MiB activations\n",
            (double)m->dense_bytes / 1048576, (double)m->pool_bytes / 1048576, m->n_slots,
            (double)s.kv_bytes / 1048576, (double)s.state_bytes / 1048576);
    if (!strcmp(g->stop, "context"))
        fprintf(stderr, "stopped  the context of %" PRIu32 " tokens is full (-c)\n",
                vkmoe_session_n_ctx(e->ses));
    if (!strcmp(g->stop, "interrupt"))
        fprintf(stderr, "stopped  interrupted after %zu tokens\n", g->n_out);
}

static int run_generation(struct options *o)
{
    const struct vkmoe_sampler_params sp = {.temp = (float)o->temp,
                                            .top_k = (int32_t)o->top_k,
                                            .top_p = (float)o->top_p,
                                            .min_p = (float)o->min_p,
                                            .repeat_penalty = (float)o->repeat_penalty,
                                            .seed = (uint64_t)o->seed};
    struct generation g = {.o = o, .stop = "limit"};
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;

    TRY(read_inputs(&g, &err));
    TRY(vkmoe_sampler_create(&g.sampler, &sp, &err));
    if (o->logits_out)
        TRY(cor_npy_create(&g.npy, o->logits_out, vkmoe_model_facts(o->e.mdl)->vocab_size, &err));
    cor_catch_interrupt();
    TRY(generate(&g, &err));
    if (g.npy) {
        struct cor_npy_writer *w = g.npy;

        g.npy = NULL;
        TRY(cor_npy_commit(w, &err));
    }
    if (o->json)
        TRY(print_json(&g, &err));
    else
        print_stats(&g);
done:
    cor_npy_discard(g.npy);
    vkmoe_sampler_destroy(g.sampler);
    cor_free(g.prompt);
    cor_free(g.out);
    cor_free(g.forced);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

static int run_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct options o = {.e = CLI_ENGINE_DEFAULTS, .n_predict = 128, .seed = -1};
    struct vkmoe_sampler_params d;
    const struct cli_opt opts[] = {
        {"-p|--prompt", CLI_STR, &o.prompt, "TEXT", "text to continue", 0, 0},
        {"-f|--file", CLI_STR, &o.file, "FILE", "read the prompt from a file (a lone - reads standard input)",
         0, 0},
        {"--tokens", CLI_STR, &o.tokens, "1,2,3", "prompt as token ids", 0, 0},
        {"--special", CLI_FLAG, &o.special, NULL, "names of special tokens in texts become those tokens", 0,
         0},
        {"-n|--n-predict", CLI_INT, &o.n_predict, "N", "tokens to generate (-1: until the context is full)",
         -1, 1 << 24},
        {"-s|--seed", CLI_INT, &o.seed, "SEED", "seed of the sampler (-1: from the clock)", -1, 9e15},
        {"--temp", CLI_FLOAT, &o.temp, "T", "temperature; 0 is greedy and deterministic", 0, 1e6},
        {"--top-k", CLI_INT, &o.top_k, "K", "sample from the K likeliest tokens (0: all)", 0, 1 << 24},
        {"--top-p", CLI_FLOAT, &o.top_p, "P", "sample from the likeliest tokens that hold P (1: off)", 0, 1},
        {"--min-p", CLI_FLOAT, &o.min_p, "P", "drop tokens less likely than P times the best (0: off)", 0, 1},
        {"--repeat-penalty", CLI_FLOAT, &o.repeat_penalty, "X",
         "divide logits of recent tokens by X (1: off)", 1e-3, 1e3},
        {"--force", CLI_STR, &o.force, "FILE", "decode this text token by token instead of sampling", 0, 0},
        {"--ignore-eos", CLI_FLAG, &o.ignore_eos, NULL, "go on behind end tokens", 0, 0},
        {"--logits-out", CLI_STR, &o.logits_out, "OUT.npy", "(generated, vocab) float32 logits", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object instead of text", 0, 0},
        CLI_ENGINE_OPTS(o.e),
        {0},
    };
    int n_pos, status;

    vkmoe_sampler_defaults(&d);
    o.temp = d.temp;
    o.top_k = d.top_k;
    o.top_p = d.top_p;
    o.min_p = d.min_p;
    o.repeat_penalty = d.repeat_penalty;
    if ((status = cli_parse(cmd, opts, argc, argv, &n_pos)) >= 0)
        return status;
    if (n_pos > 1 || (n_pos == 1 && strcmp(argv[0], "-")))
        return cli_usage(cmd, "unexpected argument %s", argv[n_pos > 1 ? 1 : 0]);
    if (n_pos == 1 && !o.file)
        o.file = "-";
    else if (n_pos == 1)
        return cli_usage(cmd, "give either -f or -");
    if (!!o.prompt + !!o.file + !!o.tokens != 1)
        return cli_usage(cmd, "give one prompt: -p, -f, - or --tokens");
    if (o.seed < 0)
        o.seed = (int64_t)(cor_now_ns() & 0xffffffff);
    status = cli_engine_open(&o.e, cmd);
    if (status == CLI_GOOD)
        status = run_generation(&o);
    cli_engine_close(&o.e);
    return status;
}

const struct cli_cmd cli_run = {
    .name = "run",
    .summary = "continue a text",
    .synopsis = "[-m FILE] -p TEXT | -f FILE | - | --tokens 1,2,3 [OPTION...]",
    .example = "  vkmoe run -p \"In the beginning\" -n 64 --temp 0\n",
    .run = run_main,
};
