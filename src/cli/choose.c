#include "cli/choose.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

#define TOPIC_PROMPT 16 /* tokens that tell of a topic */
#define TOPIC_TOKENS 32

/* ---- the option
 * --------------------------------------------------------------------------------------------- */

static bool number(const char *s, uint64_t most, uint64_t *out)
{
    char *end;

    if (*s < '0' || *s > '9')
        return false;
    *out = strtoull(s, &end, 10);
    return !*end && *out <= most;
}

/* "FILE" or "FILE@TOKENS". */
static enum vkmoe_status add_file(struct cli_choice *c, char *word, struct vkmoe_err *err)
{
    char *at = c->n ? strrchr(word, '@') : NULL;
    uint64_t *turn = &c->at[c->n];
    enum vkmoe_status st = VKMOE_OK;

    if (c->n == CLI_SUBSETS)
        FAIL(VKMOE_ERR_ARGUMENT, "--experts takes at most %d files", CLI_SUBSETS);
    if (c->n && (!at || !number(at + 1, UINT32_MAX, turn) || *turn <= c->at[c->n - 1]))
        FAIL(
            VKMOE_ERR_ARGUMENT,
            "--experts: '%s' says not from which token on it holds: FILE,FILE@TOKENS,... with rising numbers",
            word);
    if (at)
        *at = '\0';
    c->files[c->n] = word;
    TRY(vkmoe_subset_open(&c->subsets[c->n], word, err));
    c->n++;
done:
    return st;
}

enum vkmoe_status cli_choice_open(struct cli_choice *c, const char *text, struct vkmoe_err *err)
{
    uint64_t doc;
    enum vkmoe_status st = VKMOE_OK;

    if (!text || !strcmp(text, "all"))
        return VKMOE_OK;
    if (!strncmp(text, "doc:", 4)) {
        if (!number(text + 4, UINT32_MAX, &doc) || !doc)
            FAIL(VKMOE_ERR_ARGUMENT, "--experts: '%s' is not doc:N with a number of routed experts", text);
        c->doc = (uint32_t)doc;
        return VKMOE_OK;
    }
    c->text = cor_strdup(text);
    if (!c->text)
        FAIL(VKMOE_ERR_MEMORY, "no memory for --experts");
    for (char *word = c->text, *next; word; word = next) {
        next = strchr(word, ',');
        if (next)
            *next++ = '\0';
        TRY(add_file(c, word, err));
    }
done:
    return st;
}

void cli_choice_close(struct cli_choice *c)
{
    for (uint32_t i = 0; i < CLI_SUBSETS; i++)
        vkmoe_subset_close(c->subsets[i]);
    cor_free(c->text);
    memset(c, 0, sizeof(*c));
}

bool cli_choice_some(const struct cli_choice *c)
{
    return c->n || c->doc;
}

enum vkmoe_status cli_choice_step(struct cli_choice *c, vkmoe_session *ses, uint64_t n, struct vkmoe_err *err)
{
    uint32_t next = c->now;

    while (next + 1 < c->n && c->at[next + 1] <= n)
        next++;
    if (next == c->now && (n || c->n < 2)) /* a model with one subset begins with it */
        return VKMOE_OK;
    c->now = next;
    return vkmoe_session_use_subset(ses, c->subsets[next], err);
}

/* ---- what came of it
 * ------------------------------------------------------------------------------------------ */

/* What can be said of a choice at work. Shares of probability are means over tokens, negative: no tokens. */
struct outcome {
    struct vkmoe_outside out;
    double prompt, decode; /* router probability outside what may be chosen */
    double even;           /* what an even router would have there */
    uint32_t least, most;  /* routed experts that a layer may choose from now */
};

static double share(double sum, uint64_t n)
{
    return n ? sum / (double)n : -1;
}

static struct outcome find_outcome(const vkmoe_model *m, const vkmoe_session *ses)
{
    const struct vkmoe_model_info *info = vkmoe_model_facts(m);
    struct outcome o = {.least = info->n_experts};
    uint64_t all = 0, layers = 0; /* with experts: others are dense */

    vkmoe_session_get_outside(ses, &o.out);
    o.prompt = share(o.out.prompt, o.out.prompt_tokens);
    o.decode = share(o.out.decoded, o.out.tokens);
    for (uint32_t l = 0; l < info->n_layers; l++) {
        uint32_t n = 0;

        for (uint32_t e = 0; e < info->n_experts; e++)
            n += vkmoe_session_may_choose(ses, l, e);
        if (!n)
            continue;
        o.least = n < o.least ? n : o.least;
        o.most = n > o.most ? n : o.most;
        all += n;
        layers++;
    }
    o.even = layers ? 1 - (double)all / ((double)layers * info->n_experts) : 0;
    return o;
}

static void json_share(const char *key, double v)
{
    if (v >= 0)
        printf(", \"%s\": %.9g", key, v);
    else
        printf(", \"%s\": null", key);
}

void cli_choice_json(const struct cli_choice *c, const vkmoe_model *m, const vkmoe_session *ses)
{
    struct outcome o = find_outcome(m, ses);
    bool some = cli_choice_some(c);

    printf("\"experts\": {\"mode\": \"%s\", \"files\": [", c->doc ? "doc" : c->n ? "subset" : "all");
    for (uint32_t i = 0; i < c->n; i++) {
        printf("%s", i ? ", " : "");
        cli_json_string(c->files[i], strlen(c->files[i]));
    }
    printf("], \"routed_least\": %" PRIu32 ", \"routed_most\": %" PRIu32, o.least, o.most);
    json_share("outside_prompt", some ? o.prompt : -1);
    json_share("outside_decode", some ? o.decode : -1);
    json_share("outside_even", some ? o.even : -1);
    printf(", \"refreshes\": %" PRIu64 ", \"exchanged\": %" PRIu64 "}", o.out.refreshes, o.out.exchanged);
}

static void print_share(const char *where, double v)
{
    if (v >= 0)
        fprintf(stderr, ", %.1f %% %s", v * 100, where);
}

/* Experts that suit a text hold more than an even router would give them. Where decode has lost half of what
 * the prompt had in excess, it is about something else. */
static bool has_left(const struct outcome *o)
{
    return o->out.prompt_tokens >= TOPIC_PROMPT && o->out.tokens >= TOPIC_TOKENS && o->prompt < o->even &&
           o->even - o->decode < (o->even - o->prompt) / 2;
}

void cli_choice_line(const struct cli_choice *c, const vkmoe_model *m, const vkmoe_session *ses,
                     int key_width)
{
    struct outcome o = find_outcome(m, ses);

    if (!cli_choice_some(c))
        return;
    fprintf(stderr, "%-*s%s: %" PRIu32, key_width, "choice", c->doc ? "document pool" : c->files[c->now],
            o.least);
    if (o.most != o.least)
        fprintf(stderr, " to %" PRIu32, o.most);
    fprintf(stderr, " of %" PRIu32 " routed experts per layer; router probability outside",
            vkmoe_model_facts(m)->n_experts);
    print_share("in the prompt", o.prompt);
    print_share("in decode", o.decode);
    print_share("if it were even", o.even);
    if (o.out.refreshes)
        fprintf(stderr, "; %" PRIu64 " exchanged in %" PRIu64 " looks", o.out.exchanged, o.out.refreshes);
    fputc('\n', stderr);
    if (has_left(&o))
        fprintf(stderr,
                "vkmoe: warning: the text has left the topic of its experts: the router wants others\n");
}
