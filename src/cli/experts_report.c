/* vkmoe experts report: one page that shows which experts texts use, and what keeping few would cost. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/page.h"
#include "cli/pool.h"
#include "cli/report.h"
#include "cli/texts.h"
#include "core/alloc.h"
#include "core/os.h"
#include "experts/profile.h"

#define SHOWN      1024 /* tokens of a text that the page shows one by one */
#define LEADERS    3    /* experts named for each of them, per layer; the page knows the number, too */
#define LEAD_BYTES (3 * LEADERS)
#define KEEP       0.125
#define MAX_MODELS 2
#define MAX_TEXTS  64

struct text_figures {
    struct cli_text text;
    struct xp_profile profile;
    size_t n_shown;
    uint8_t *lead; /* (n_shown, n_layers) x LEADERS x (number, 16 bits; probability in half percents) */
    struct cli_text_pass all, kept;
};

struct report_model {
    char name[256];
    struct vkmoe_model_info info;
    uint32_t *counts; /* (n_layers) */
    uint32_t keep;    /* routed */
    struct text_figures *texts;
};

struct report {
    const char *out, *separator;
    struct cli_strs models, files;
    int64_t documents, tokens;
    bool lines;
    struct report_model m[MAX_MODELS];
    size_t n_models;
};

/* ---- running the texts */

struct watcher {
    struct text_figures *t;
    uint32_t n_layers;
    const size_t *shown_first; /* (documents) shown tokens before each */
};

static void note_leaders(const struct watcher *w, const struct vkmoe_watched *x, uint32_t count)
{
    const struct text_figures *t = w->t;
    double *p = t->profile.row;

    for (uint32_t i = 0; i < x->n_tokens; i++) {
        size_t token = w->shown_first[t->all.doc] + x->pos + i;
        uint8_t *to;

        if (!(x->pos + i) || token - 1 >= t->n_shown) /* the end-of-text token in front is not shown */
            continue;
        to = t->lead + ((token - 1) * w->n_layers + x->layer) * LEAD_BYTES;
        xp_profile_softmax(p, x->logits + (size_t)i * x->n_experts, count);
        for (uint32_t k = 0; k < LEADERS; k++, to += 3) {
            uint32_t best = 0;

            for (uint32_t e = 1; e < count; e++)
                best = p[e] > p[best] ? e : best;
            if (p[best] < 0)
                best = UINT16_MAX; /* the layer has fewer experts */
            to[0] = (uint8_t)best;
            to[1] = (uint8_t)(best >> 8);
            to[2] = best == UINT16_MAX ? 0 : (uint8_t)lround(200 * p[best]);
            if (best != UINT16_MAX)
                p[best] = -1;
        }
    }
}

static void watch(void *user, const struct vkmoe_watched *x)
{
    const struct watcher *w = user;

    xp_profile_add(&w->t->profile, x);
    note_leaders(w, x, w->t->profile.counts[x->layer]);
}

/* Once with all experts, watched. */
static enum vkmoe_status read_text(struct cli_engine *e, struct report_model *m, struct text_figures *t,
                                   struct vkmoe_err *err)
{
    size_t *first = cor_array(t->text.n_docs, sizeof(*first)), n = t->text.n - t->text.n_docs;
    struct watcher w = {t, m->info.n_layers, first};
    enum vkmoe_status st = VKMOE_OK;

    t->n_shown = n < SHOWN ? n : SHOWN;
    t->lead = cor_array(t->n_shown + 1, (size_t)m->info.n_layers * LEAD_BYTES);
    if (!first || !t->lead)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %zu tokens", t->text.name, t->n_shown);
    for (size_t d = 0; d < t->text.n_docs; d++)
        first[d] = t->text.docs[d].first - d;
    TRY(xp_profile_init(&t->profile, m->info.n_layers, m->info.n_experts, m->counts, err));
    vkmoe_session_on_watch(e->ses, watch, &w);
    TRY(cli_text_feed(&t->text, e, &t->all, err));
done:
    vkmoe_session_on_watch(e->ses, NULL, NULL);
    cor_free(first);
    return st;
}

/* Once more with the experts that it wants most. */
static enum vkmoe_status score_kept(struct cli_engine *e, struct report_model *m, struct text_figures *t,
                                    struct vkmoe_err *err)
{
    uint32_t n_experts = m->info.n_experts, *ids = cor_array(m->keep, sizeof(*ids));
    uint8_t *keep = cor_array(m->info.n_layers, n_experts);
    vkmoe_subset *subset = NULL;
    enum vkmoe_status st = VKMOE_OK;

    if (!ids || !keep)
        FAIL(VKMOE_ERR_MEMORY, "no memory for a subset");
    for (uint32_t l = 0; l < m->info.n_layers; l++) {
        uint32_t n = xp_profile_best(&t->profile, l, m->keep, ids);

        for (uint32_t i = 0; i < n; i++)
            keep[(size_t)l * n_experts + ids[i]] = 1;
    }
    TRY(vkmoe_subset_create(&subset, m->info.n_layers, n_experts, keep, err));
    TRY(vkmoe_session_use_subset(e->ses, subset, err));
    TRY(cli_text_feed(&t->text, e, &t->kept, err));
    TRY(vkmoe_session_use_subset(e->ses, NULL, err));
done:
    vkmoe_subset_close(subset);
    cor_free(keep);
    cor_free(ids);
    return st;
}

static void name_model(struct report_model *m, const char *path)
{
    const char *base = path, *dot;

    for (const char *c = path; *c; c++)
        if (*c == '/' || *c == '\\')
            base = c + 1;
    dot = strrchr(base, '.');
    snprintf(m->name, sizeof(m->name), "%.*s", dot && dot > base ? (int)(dot - base) : (int)strlen(base),
             base);
}

/* What the open model is: shape, experts of each layer, how many 12.5 % are. */
static enum vkmoe_status describe(struct report_model *m, const struct cli_engine *e, size_t n_texts,
                                  struct vkmoe_err *err)
{
    uint32_t keep;

    m->info = *vkmoe_model_facts(e->mdl);
    name_model(m, e->path);
    m->counts = cor_array(m->info.n_layers, sizeof(*m->counts));
    m->texts = cor_array(n_texts, sizeof(*m->texts));
    if (!m->counts || !m->texts)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu texts", n_texts);
    for (uint32_t l = 0; l < m->info.n_layers; l++)
        for (uint32_t x = 0; x < m->info.n_experts; x++)
            if (vkmoe_session_may_choose(e->ses, l, x))
                m->counts[l] = x + 1;
    keep = (uint32_t)lround(KEEP * (m->info.n_experts + m->info.n_shared));
    keep = keep > m->info.n_shared ? keep - m->info.n_shared : 0;
    m->keep = keep > m->info.n_experts_used ? keep : m->info.n_experts_used;
    return VKMOE_OK;
}

static enum vkmoe_status run_model(struct report *r, struct report_model *m, struct cli_engine *e,
                                   struct vkmoe_err *err)
{
    struct cli_progress bar = {.what = "reading", .unit = "tokens"};
    enum vkmoe_status st = VKMOE_OK;
    uint64_t total = 0, done = 0;

    TRY(describe(m, e, r->files.n, err));
    for (size_t i = 0; i < r->files.n; i++) {
        TRY(cli_text_load(&m->texts[i].text, e, r->files.at[i], r->separator, r->lines, (size_t)r->documents,
                          (size_t)r->tokens, err));
        total += 2 * m->texts[i].text.n;
    }
    for (size_t i = 0; i < r->files.n; i++) {
        struct text_figures *t = &m->texts[i];

        t->all = (struct cli_text_pass){.bar = &bar, .done = done, .total = total};
        TRY(read_text(e, m, t, err));
        t->kept = (struct cli_text_pass){.bar = &bar, .done = t->all.done, .total = total};
        TRY(score_kept(e, m, t, err));
        done = t->kept.done;
    }
done:
    cli_progress_end(&bar);
    return st;
}

static void free_model(struct report_model *m, size_t n_texts)
{
    for (size_t i = 0; m->texts && i < n_texts; i++) {
        cli_text_free(&m->texts[i].text);
        xp_profile_free(&m->texts[i].profile);
        cor_free(m->texts[i].lead);
    }
    cor_free(m->texts);
    cor_free(m->counts);
}

/* ---- writing what was found as JSON */

static uint32_t tops(const struct report_model *m, uint32_t top[4])
{
    uint32_t n = 0;

    for (uint32_t d = 8; d <= 64; d *= 2)
        if (d <= m->info.n_experts)
            top[n++] = d;
    return n;
}

static const char *sep(size_t i)
{
    return i ? "," : "";
}

/* "key": [[...], ...] of the means, and the figures of each layer. ids: scratch of n_experts. */
static void put_layers(struct cli_page *j, const struct report_model *m, const struct text_figures *t,
                       uint32_t *ids)
{
    const struct xp_profile *p = &t->profile;
    uint32_t top[4], n_top = tops(m, top), L = m->info.n_layers;

    cli_page_format(j, "\"mean\":[");
    for (uint32_t l = 0; l < L; l++)
        for (uint32_t e = 0; e < p->counts[l]; e++)
            cli_page_format(j, "%s%s%.6g%s", e ? "," : sep(l), e ? "" : "[", xp_profile_mean(p, l, e),
                            e + 1 == p->counts[l] ? "]" : "");
    cli_page_format(j, "],\n\"entropy\":[");
    for (uint32_t l = 0; l < L; l++)
        cli_page_format(j, "%s%.6g", sep(l), xp_profile_entropy(p, l));
    cli_page_format(j, "],\n\"above\":[");
    for (uint32_t l = 0; l < L; l++)
        cli_page_format(j, "%s%" PRIu32, sep(l), xp_profile_above(p, l));
    cli_page_format(j, "],\n\"mass\":[");
    for (uint32_t l = 0; l < L; l++) {
        cli_page_format(j, "%s[", sep(l));
        for (uint32_t i = 0; i < n_top; i++)
            cli_page_format(j, "%s%.6g", sep(i), xp_profile_mass(p, l, top[i], ids));
        cli_page_format(j, "]");
    }
    cli_page_format(j, "],\n\"kept\":[");
    for (uint32_t l = 0; l < L; l++) {
        uint32_t n = xp_profile_best(p, l, m->keep, ids);

        cli_page_format(j, "%s[", sep(l));
        for (uint32_t i = 0; i < n; i++)
            cli_page_format(j, "%s%" PRIu32, sep(i), ids[i]);
        cli_page_format(j, "]");
    }
    cli_page_format(j, "],\n");
}

/* The shown tokens of one document as strings: a character belongs to the token that its first byte is in, so
 * a token that only goes on with one is "". */
static void put_document(struct cli_page *j, const vkmoe_model *mdl, const int32_t *ids, size_t n, bool first,
                         struct cli_page *bytes)
{
    size_t end = 0, at = 0;
    const char *p;

    bytes->n = 0;
    for (size_t i = 0; i < n; i++) {
        size_t k = vkmoe_token_bytes(mdl, ids[i], &p);

        cli_page_put(bytes, p, k);
    }
    for (size_t i = 0; i < n && !bytes->failed; i++) {
        size_t from = at;

        end += vkmoe_token_bytes(mdl, ids[i], &p);
        at = cli_page_characters(bytes->p, bytes->n, at, end);
        cli_page_format(j, "%s", i || !first ? "," : "");
        cli_page_string(j, bytes->p + from, at - from);
    }
    j->failed = j->failed || bytes->failed;
}

static void put_tokens(struct cli_page *j, const vkmoe_model *mdl, const struct report_model *m,
                       const struct text_figures *t)
{
    struct cli_page bytes = {0};
    size_t left = t->n_shown, at = 0;

    cli_page_format(j, "\"shown\":[");
    for (size_t d = 0; d < t->text.n_docs && left; d++) {
        const struct cli_text_doc *doc = &t->text.docs[d];
        size_t n = doc->n - 1 < left ? doc->n - 1 : left;

        put_document(j, mdl, t->text.ids + doc->first + 1, n, left == t->n_shown, &bytes);
        left -= n;
    }
    cli_page_format(j, "],\n\"starts\":[");
    for (size_t d = 0; d < t->text.n_docs && at < t->n_shown; d++) {
        cli_page_format(j, "%s%zu", sep(d), at);
        at += t->text.docs[d].n - 1;
    }
    cli_page_format(j, "],\n\"lead\":\"");
    cli_page_base64(j, t->lead, t->n_shown * m->info.n_layers * LEAD_BYTES);
    cli_page_format(j, "\"");
    cli_page_free(&bytes);
}

/* JSON has no infinity; such a text counts as not scored. */
static bool is_scored(const struct text_figures *t)
{
    return t->all.scored && isfinite(t->all.nll) && isfinite(t->kept.nll);
}

static void put_text(struct cli_page *j, const vkmoe_model *mdl, const struct report_model *m,
                     const struct text_figures *t, uint32_t *ids)
{
    const bool scored = is_scored(t);

    cli_page_format(j, "{\"tokens\":%zu,\"documents\":%zu,\"cut\":%" PRIu64 ",\"whole\":%s,\n",
                    t->text.n - t->text.n_docs, t->text.n_docs, t->text.cut,
                    t->text.whole ? "true" : "false");
    cli_page_format(j, "\"scored\":%" PRIu64 ",\"nll\":%.12g,\"nll_kept\":%.12g,\n",
                    scored ? t->all.scored : 0, scored ? t->all.nll : 0, scored ? t->kept.nll : 0);
    put_layers(j, m, t, ids);
    put_tokens(j, mdl, m, t);
    cli_page_format(j, "}");
}

/* Between texts, per layer: of(i, j). */
static void put_between(struct cli_page *j, const struct report_model *m, size_t n, const char *key,
                        uint32_t *ids)
{
    const bool cosine = key[0] == 'c';

    cli_page_format(j, ",\n\"%s\":[", key);
    for (uint32_t l = 0; l < m->info.n_layers; l++) {
        cli_page_format(j, "%s[", sep(l));
        for (size_t a = 0; a < n; a++)
            for (size_t b = 0; b < n; b++) {
                const struct xp_profile *p = &m->texts[a].profile, *q = &m->texts[b].profile;
                uint32_t *other = ids + m->keep, n_p = xp_profile_best(p, l, m->keep, ids),
                         n_q = xp_profile_best(q, l, m->keep, other);

                cli_page_format(j, "%s%s%.6g%s", b ? "," : sep(a), b ? "" : "[",
                                cosine ? xp_profile_cosine(p, q, l) : xp_jaccard(ids, n_p, other, n_q),
                                b + 1 == n ? "]" : "");
            }
        cli_page_format(j, "]");
    }
    cli_page_format(j, "]");
}

/* While the model is open: token strings are its own. */
static enum vkmoe_status put_model(struct cli_page *j, const struct report *r, const struct report_model *m,
                                   const vkmoe_model *mdl, struct vkmoe_err *err)
{
    uint32_t *ids = cor_array(2 * (size_t)m->info.n_experts + 2 * m->keep, sizeof(*ids)), top[4];
    const uint32_t n_top = tops(m, top);

    if (!ids)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the page");
    cli_page_format(j, "%s{\"name\":", m == r->m ? "" : ",\n");
    cli_page_string(j, m->name, strlen(m->name));
    cli_page_format(
        j, ",\"layers\":%" PRIu32 ",\"experts\":%" PRIu32 ",\"used\":%" PRIu32 ",\"shared\":%" PRIu32,
        m->info.n_layers, m->info.n_experts, m->info.n_experts_used, m->info.n_shared);
    cli_page_format(j, ",\"keep\":%" PRIu32 ",\"expert_bytes\":%" PRIu64 ",\"counts\":[",
                    m->keep + m->info.n_shared, m->info.expert_bytes);
    for (uint32_t l = 0; l < m->info.n_layers; l++)
        cli_page_format(j, "%s%" PRIu32, sep(l), m->counts[l]);
    cli_page_format(j, "],\"top\":[");
    for (uint32_t i = 0; i < n_top; i++)
        cli_page_format(j, "%s%" PRIu32, sep(i), top[i]);
    cli_page_format(j, "],\n\"texts\":[");
    for (size_t i = 0; i < r->files.n; i++) {
        cli_page_format(j, "%s", i ? ",\n" : "");
        put_text(j, mdl, m, &m->texts[i], ids);
    }
    cli_page_format(j, "]");
    put_between(j, m, r->files.n, "cosine", ids);
    put_between(j, m, r->files.n, "jaccard", ids);
    cli_page_format(j, "}");
    cor_free(ids);
    return VKMOE_OK;
}

static void put_names(struct cli_page *j, const struct report *r)
{
    cli_page_format(j, "{\"tool\":\"vkmoe %s\",\"keep_percent\":%g,\"texts\":[", vkmoe_version(), 100 * KEEP);
    for (size_t i = 0; i < r->files.n; i++) {
        const char *name = r->m[0].texts[i].text.name;

        cli_page_format(j, "%s", sep(i));
        cli_page_string(j, name, strlen(name));
    }
    cli_page_format(j, "],\n\"models\":[\n");
}

/* ---- the command */

/* For people, on standard output. */
static void print_line(const struct report *r, const struct report_model *m, size_t i)
{
    const struct text_figures *t = &m->texts[i];
    double all = exp(t->all.nll / (double)t->all.scored), kept = exp(t->kept.nll / (double)t->all.scored);

    printf("%s%s%s: %zu tokens", r->n_models > 1 ? m->name : "", r->n_models > 1 ? ", " : "", t->text.name,
           t->text.n - t->text.n_docs);
    if (is_scored(t))
        printf(", perplexity %.4f, with %" PRIu32 " of %" PRIu32 " experts %.4f (%+.1f %%)", all,
               m->keep + m->info.n_shared, m->info.n_experts + m->info.n_shared, kept,
               100 * (kept / all - 1));
    printf("\n");
}

static enum vkmoe_status run_all(struct report *r, struct cli_engine *e, struct vkmoe_err *err)
{
    const struct cli_template parts = {cli_report_html, cli_report_css, cli_report_js};
    struct cli_page json = {0}, data = {0};
    enum vkmoe_status st = VKMOE_OK;

    r->n_models = r->models.n ? r->models.n : 1;
    for (size_t i = 0; i < r->n_models; i++) {
        uint64_t pool;

        e->model = r->models.n ? r->models.at[i] : NULL;
        TRY(cli_model_path(e->model, e->path, err));
        cli_pool_bytes(e->pool, e->pool ? strlen(e->pool) : 0, &pool);
        TRY(cli_engine_load(e, pool, err));
        TRY(run_model(r, &r->m[i], e, err));
        TRY(put_model(&json, r, &r->m[i], e->mdl, err));
        cli_engine_unload(e);
    }
    put_names(&data, r);
    cli_page_put(&data, json.p, json.n);
    cli_page_format(&data, "]}");
    data.failed = data.failed || json.failed;
    TRY(cli_page_write(r->out, &parts, &data, err));
    for (size_t i = 0; i < r->n_models; i++)
        for (size_t t = 0; t < r->files.n; t++)
            print_line(r, &r->m[i], t);
done:
    cli_page_free(&json);
    cli_page_free(&data);
    return st;
}

static int report_main(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct cli_engine e = CLI_ENGINE_DEFAULTS;
    struct report r = {.separator = CLI_SEPARATOR, .tokens = 2048};
    const struct cli_opt opts[] = {
        {"-f|--file", CLI_STRS, &r.files, "TEXT...",
         "texts to compare, required; - is standard input; *.jsonl: one {\"text\": ...} a line", 0, 0},
        {"-o|--output", CLI_STR, &r.out, "REPORT.html", "page to write (required)", 0, 0},
        {"-m|--model", CLI_STRS, &r.models, "FILE...",
         "GGUF file (default: the bundled model); two are shown side by side", 0, 0},
        {"--tokens", CLI_INT, &r.tokens, "N", "read so many tokens of each text (default 2048)", 2, 1 << 24},
        {"--documents", CLI_INT, &r.documents, "N",
         "read the first N documents of each text (default 0: all)", 0, 9e15},
        {"--separator", CLI_STR, &r.separator, "TEXT",
         "what stands between documents (default: newline, <|endoftext|>, newline; empty: the file is one)",
         0, 0},
        {"--json-lines", CLI_FLAG, &r.lines, NULL, "the files hold JSON lines whatever their names", 0, 0},
        {"--pool-mib|--moe-cache-mib", CLI_STR, &e.pool, "N",
         "MiB on the device for experts, or all, or auto (the default: all where they fit)", 0, 0},
        CLI_DEVICE_OPTS(e),
        {0},
    };
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    uint64_t pool;
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    if (!r.files.n)
        return cli_usage(cmd, "give the texts with -f");
    if (!r.out)
        return cli_usage(cmd, "give the page to write with -o");
    if (r.models.n > MAX_MODELS)
        return cli_usage(cmd, "-m takes at most %d models", MAX_MODELS);
    if (e.experts)
        return cli_usage(cmd, "--experts is not for experts report: it looks at all of them");
    for (size_t i = 0; i < r.files.n; i++)
        if (r.models.n > 1 && !strcmp(r.files.at[i], "-"))
            return cli_usage(cmd, "standard input cannot be read twice, for two models");
    if (!cli_pool_bytes(e.pool, e.pool ? strlen(e.pool) : 0, &pool))
        return cli_usage(cmd, "--pool-mib takes auto, all or a whole number of at least 1, not '%s'", e.pool);
    e.model = r.models.n ? r.models.at[0] : NULL;
    e.params.watch = VKMOE_WATCH_ROUTER;
    status = cli_engine_open_device(&e, cmd);
    if (status == CLI_GOOD) {
        cor_catch_interrupt(); /* so that no temporary file is left */
        TRY(run_all(&r, &e, &err));
    }
done:
    for (size_t i = 0; i < r.n_models; i++)
        free_model(&r.m[i], r.files.n);
    return cli_engine_end(&e, status, st, &err);
}

const struct cli_cmd cli_experts_report = {
    .name = "experts report",
    .summary =
        "a page that shows which experts texts use, token by token, what they have in common, and what "
        "keeping 12.5 % would cost and save",
    .synopsis = "[-m FILE [FILE]] -f TEXT... -o REPORT.html [OPTION...]",
    .example = "  vkmoe experts report -f scripture.txt python.txt -o report.html\n"
               "  vkmoe experts report -m emo.gguf twin.gguf -f a.jsonl -o both.html\n",
    .run = report_main,
};
