/* vkmoe chat: a conversation, in the form that the model was trained on. Replies stream to stdout; what was
 * said stays in the session's cache, so each turn reads only what is new. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/pool.h"
#include "cli/sampling.h"
#include "core/alloc.h"
#include "core/os.h"
#include "model/chat.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

enum { LINE_MAX_BYTES = 1 << 20, PIECE = 512 };

struct options {
    struct cli_engine e;
    const char *system, *system_file;
    struct cli_sampling sampling;
    int64_t n_predict;
    bool json, no_template;
};

struct chat {
    struct options *o;
    struct mdl_gguf *gguf;
    struct mdl_tokenizer *tok;
    struct mdl_chat *family;
    vkmoe_sampler *sampler;
    char *system_text; /* of a file */
    const char *system;
    uint64_t turns;
    bool first; /* nothing is in the context */
    size_t n_decoded;
    struct cli_status status;
};

/* One turn. */
struct reply {
    int32_t *prompt, *out;
    size_t n_prompt, n_out, cap;
    uint64_t prompt_ns, decode_ns;
    size_t n_decoded;
    const char *stop; /* "limit", "end", "context", "interrupt", "output" */
    struct mdl_chat_hearing hearing;
    char *text; /* what was heard */
    size_t n_text, text_room;
};

static double per_second(size_t n, uint64_t ns)
{
    return ns ? (double)n / ((double)ns * 1e-9) : 0;
}

/* ---- what the user says */

/* A line of standard input without its end; one that ends with a backslash goes on in the next. *line: NULL
 * at the end of the input, or after Ctrl-C. */
static enum vkmoe_status read_said(char **line, struct vkmoe_err *err)
{
    char *text = NULL;
    size_t n = 0, room = 0;
    enum vkmoe_status st = VKMOE_OK;

    *line = NULL;
    for (;;) {
        if (room - n < 4096) {
            char *more = cor_resize(text, room = 2 * room + 8192, 1);

            if (!more)
                FAIL(VKMOE_ERR_MEMORY, "no memory for a line of %zu bytes", room);
            text = more;
        }
        text[n] = 0;
        bool got = fgets(text + n, 4096, stdin) != NULL;
        n += strlen(text + n); /* a NUL ends what is seen of its piece */
        if (n > LINE_MAX_BYTES)
            FAIL(VKMOE_ERR_LIMIT, "a line of more than %d bytes", LINE_MAX_BYTES);
        if (!got && (!n || cor_interrupted()))
            goto done;
        if (got && n && text[n - 1] != '\n')
            continue;
        n -= got;
        n -= n && text[n - 1] == '\r';
        if (!got || !n || text[n - 1] != '\\')
            break;
        text[n - 1] = '\n';
    }
    text[n] = 0;
    *line = text;
    text = NULL;
done:
    cor_free(text);
    return st;
}

static void invite(const struct chat *c)
{
    if (cor_is_tty(1) && !c->o->json) {
        fputs("\n> ", stdout);
        fflush(stdout);
    }
}

/* ---- a reply */

static enum vkmoe_status hear(struct chat *c, struct reply *r, int32_t token, struct vkmoe_err *err)
{
    const char *p;
    size_t n = vkmoe_token_bytes(c->o->e.mdl, token, &p);

    if (mdl_chat_hear(c->family, &r->hearing, token) != MDL_CHAT_TEXT || mdl_chat_ends(c->family, token) ||
        !n)
        return VKMOE_OK;
    /* A reply behind a mark that is text begins with a space. */
    if (!r->n_text && *p == ' ' && !c->o->no_template) {
        p++;
        n--;
    }
    if (r->text_room - r->n_text < n) {
        char *text = cor_resize(r->text, 2 * r->text_room + n, 1);

        if (!text)
            return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the reply");
        r->text = text;
        r->text_room = 2 * r->text_room + n;
    }
    if (n)
        memcpy(r->text + r->n_text, p, n);
    r->n_text += n;
    if (!c->o->json && n)
        cli_status_text(&c->status, p, n);
    return VKMOE_OK;
}

/* Why the last token is the last one; NULL: it is not. */
static const char *reason_to_stop(const struct chat *c, const struct reply *r, int32_t token)
{
    const struct cli_engine *e = &c->o->e;

    if (!cli_stdout_good())
        return "output";
    if (mdl_chat_ends(c->family, token))
        return "end";
    if (r->n_out == r->cap)
        return "limit";
    if (cor_interrupted())
        return "interrupt";
    return vkmoe_session_position(e->ses) == vkmoe_session_n_ctx(e->ses) ? "context" : NULL;
}

/* In the context stands all of a reply but its last token, whose place the next turn fills. */
static enum vkmoe_status decode(struct chat *c, struct reply *r, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    int32_t token;

    cli_status_begin(&c->status, &c->o->e, !c->o->json);
    while (!r->stop) {
        TRY(cli_sample(c->sampler, &c->o->e, &token, err));
        r->out[r->n_out++] = token;
        TRY(hear(c, r, token, err));
        r->stop = reason_to_stop(c, r, token);
        if (r->stop)
            break;
        TRY(cli_choice_step(&c->o->e.choice, c->o->e.ses, c->n_decoded, err));
        TRY(vkmoe_session_feed(c->o->e.ses, &token, 1, err));
        c->n_decoded++;
        r->n_decoded++;
        cli_status_step(&c->status, r->n_decoded);
    }
done:
    cli_status_end(&c->status);
    return st;
}

/* A reply that something else than its end cut short is in the context but for its last token. */
static enum vkmoe_status close_reply(struct chat *c, const struct reply *r, struct vkmoe_err *err)
{
    vkmoe_session *ses = c->o->e.ses;
    bool cut = r->n_out && strcmp(r->stop, "end") && strcmp(r->stop, "context");

    return cut && vkmoe_session_position(ses) < vkmoe_session_n_ctx(ses)
               ? vkmoe_session_feed(ses, &r->out[r->n_out - 1], 1, err)
               : VKMOE_OK;
}

static enum vkmoe_status feed_prompt(struct chat *c, struct reply *r, struct vkmoe_err *err)
{
    vkmoe_session *ses = c->o->e.ses;
    size_t left = vkmoe_session_n_ctx(ses) - vkmoe_session_position(ses);
    enum vkmoe_status st = VKMOE_OK;

    if (!r->n_prompt)
        FAIL(VKMOE_ERR_ARGUMENT, "nothing was said: at least one token is needed");
    if (r->n_prompt > left)
        FAIL(VKMOE_ERR_CONTEXT_FULL,
             "%zu tokens are too many for the %zu that the context of %" PRIu32
             " (-c) has left; /clear begins anew",
             r->n_prompt, left, vkmoe_session_n_ctx(ses));
    if (c->first && c->o->e.choice.doc) /* picked from all of it */
        TRY(vkmoe_session_feed(ses, r->prompt, r->n_prompt, err));
    for (size_t at = c->first && c->o->e.choice.doc ? r->n_prompt : 0; at < r->n_prompt;) {
        size_t n = r->n_prompt - at < PIECE ? r->n_prompt - at : PIECE;

        TRY(vkmoe_session_feed(ses, r->prompt + at, n, err));
        at += n;
    }
    c->first = false;
    for (size_t i = 0; i < r->n_prompt; i++)
        vkmoe_sampler_accept(c->sampler, r->prompt[i]);
done:
    return st;
}

static void print_ids(const char *key, const int32_t *ids, size_t n)
{
    printf("\"%s\": [", key);
    for (size_t i = 0; i < n; i++)
        printf("%s%" PRId32, i ? ", " : "", ids[i]);
    printf("], ");
}

static void print_reply(const struct chat *c, const struct reply *r)
{
    if (!c->o->json) {
        if (!r->n_text || r->text[r->n_text - 1] != '\n')
            putchar('\n');
        if (!strcmp(r->stop, "context"))
            fprintf(stderr, "vkmoe: the context of %" PRIu32 " tokens is full (-c); /clear begins anew\n",
                    vkmoe_session_n_ctx(c->o->e.ses));
        return;
    }
    printf("{\"turn\": %" PRIu64 ", ", c->turns);
    print_ids("prompt_tokens", r->prompt, r->n_prompt);
    print_ids("tokens", r->out, r->n_out);
    printf("\"text\": ");
    cli_json_string(r->text ? r->text : "", r->n_text);
    printf(", \"stop\": \"%s\", \"position\": %" PRIu32
           ", \"timings\": {\"prompt_n\": %zu, \"prompt_ms\": %.3f, \"prompt_per_second\": %.3f, "
           "\"predicted_n\": %zu, \"predicted_ms\": %.3f, \"predicted_per_second\": %.3f}}\n",
           r->stop, vkmoe_session_position(c->o->e.ses), r->n_prompt, (double)r->prompt_ns * 1e-6,
           per_second(r->n_prompt, r->prompt_ns), r->n_decoded, (double)r->decode_ns * 1e-6,
           per_second(r->n_decoded, r->decode_ns));
}

/* *stop: why the reply ended. */
static enum vkmoe_status answer(struct chat *c, const char *said, const char **stop, struct vkmoe_err *err)
{
    struct reply r = {.cap = (size_t)c->o->n_predict};
    enum vkmoe_status st = VKMOE_OK;
    uint64_t start = cor_now_ns();

    if (c->o->n_predict < 0)
        r.cap = (size_t)vkmoe_session_n_ctx(c->o->e.ses) + 1;
    r.stop = r.cap ? NULL : "limit";
    r.out = cor_array(r.cap, sizeof(*r.out));
    if (!r.out)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %zu tokens", r.cap);
    TRY(mdl_chat_turn(c->family, c->first, c->system, said, &r.prompt, &r.n_prompt, err));
    TRY(feed_prompt(c, &r, err));
    r.prompt_ns = cor_now_ns() - start;
    start = cor_now_ns();
    c->turns++;
    TRY(decode(c, &r, err));
    TRY(close_reply(c, &r, err));
    r.decode_ns = cor_now_ns() - start;
    print_reply(c, &r);
    *stop = r.stop;
done:
    cor_free(r.prompt);
    cor_free(r.out);
    cor_free(r.text);
    return st;
}

/* ---- the conversation */

static enum vkmoe_status open_chat(struct chat *c, struct vkmoe_err *err)
{
    const struct options *o = c->o;
    char path[4096];
    enum vkmoe_status st = VKMOE_OK;
    size_t n;

    c->system = o->system;
    if (o->system_file) {
        TRY(cli_read_text(NULL, o->system_file, &c->system_text, &n, err));
        c->system = c->system_text;
    }
    TRY(cli_model_path(o->e.model, path, err));
    TRY(mdl_gguf_open(&c->gguf, path, err));
    TRY(mdl_tokenizer_from_gguf(&c->tok, c->gguf, err));
    TRY(o->no_template ? mdl_chat_plain(&c->family, c->tok, err)
                       : mdl_chat_open(&c->family, c->gguf, c->tok, err));
    TRY(cli_sampling_create(&c->sampler, &o->sampling, err));
done:
    return st;
}

/* Lines of standard input, each a turn, until it ends. A turn for which there is no room is told of and left
 * out at a terminal, elsewhere it is the end. */
static enum vkmoe_status converse(struct chat *c, struct vkmoe_err *err)
{
    bool tty = cor_is_tty(1);
    const char *stop = "end";
    char *said = NULL;
    enum vkmoe_status st = VKMOE_OK;

    c->first = true;
    for (invite(c); strcmp(stop, "output"); invite(c)) {
        cor_free(said);
        TRY(read_said(&said, err));
        if (!said || !strcmp(said, "/exit"))
            break;
        if (!strcmp(said, "/clear")) {
            vkmoe_session_reset(c->o->e.ses);
            c->first = true;
            continue;
        }
        if (!said[0])
            continue;
        st = answer(c, said, &stop, err);
        if (st == VKMOE_ERR_CONTEXT_FULL && tty)
            cli_error(err);
        else if (st)
            goto done;
        if (cor_interrupted() && !tty)
            break;
        cor_clear_interrupt();
    }
    st = VKMOE_OK;
    if (tty && !c->o->json)
        putchar('\n');
    TRY(cli_engine_commit(&c->o->e, err));
done:
    cor_free(said);
    return st;
}

static void close_chat(struct chat *c)
{
    vkmoe_sampler_destroy(c->sampler);
    mdl_chat_close(c->family);
    mdl_tokenizer_close(c->tok);
    mdl_gguf_close(c->gguf);
    cor_free(c->system_text);
}

static void introduce(const struct chat *c)
{
    char device[1024];

    cli_engine_device_line(&c->o->e, device, sizeof(device));
    fprintf(stderr,
            "device   %s\ntemplate %s; /clear forgets all, /exit or Ctrl-D ends, a \\ at the end of a line "
            "goes on\n",
            device, mdl_chat_family(c->family));
}

static int chat_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct options o = {.e = CLI_ENGINE_DEFAULTS, .n_predict = -1};
    struct chat c = {.o = &o};
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    const struct cli_opt opts[] = {
        {"-sys|--system-prompt", CLI_STR, &o.system, "TEXT", "what the system says before the first turn", 0,
         0},
        {"-sysf|--system-prompt-file", CLI_STR, &o.system_file, "FILE", "the same from a file", 0, 0},
        {"--no-template", CLI_FLAG, &o.no_template, NULL,
         "lines as they are, without the marks of the file's chat template: for base models", 0, 0},
        {"-n|--n-predict", CLI_INT, &o.n_predict, "N",
         "most tokens of a reply (default -1: until it ends, or the context is full)", -1, 1 << 24},
        CLI_SAMPLING_OPTS(o.sampling),
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object per turn instead of text", 0, 0},
        CLI_POOL_OPTS(o.e),
        CLI_ENGINE_OPTS(o.e),
        {0},
    };
    int status;

    cli_sampling_defaults(&o.sampling);
    if ((status = cli_parse(cmd, opts, argc, argv, NULL)) >= 0)
        return status;
    if (o.system && o.system_file)
        return cli_usage(cmd, "give -sys or -sysf");
    cli_sampling_seed(&o.sampling);
    TRY(open_chat(&c, &err));
    o.e.params.n_top = cli_sampling_logits(&o.sampling);
    status = cli_engine_open(&o.e, cmd);
    if (status == CLI_GOOD) {
        cor_catch_interrupt();
        if (cor_is_tty(2))
            introduce(&c);
        TRY(converse(&c, &err));
    }
done:
    close_chat(&c);
    return cli_engine_end(&o.e, status, st, &err);
}

const struct cli_cmd cli_chat = {
    .name = "chat",
    .summary = "talk with a model, by the chat template of its file",
    .synopsis = "[-m FILE] [-sys TEXT] [--no-template] [OPTION...]",
    .example = "  vkmoe chat -m model.gguf -sys \"You answer in one line.\"\n"
               "  echo \"In the beginning\" | vkmoe chat --no-template -n 32 --temp 0\n",
    .run = chat_main,
};
