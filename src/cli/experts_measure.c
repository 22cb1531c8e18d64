#include "cli/experts_measure.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cli/pool.h"
#include "cli/score.h"
#include "core/alloc.h"
#include "core/digest.h"
#include "core/log.h"
#include "core/os.h"
#include "experts/carve.h"

enum { PROMPT = 16, WARM = 2 }; /* tokens fed at once and decoded before speed is measured */

void eval_free(struct eval *ev)
{
    size_t n_sets = (1 + ev->n_counts) * ev->n_levels;

    for (size_t i = 0; i < ev->n_texts; i++) {
        struct eval_text *t = &ev->texts[i];

        for (size_t k = 0; t->subsets && k < n_sets; k++)
            xp_subset_free(&t->subsets[k]);
        cor_free(t->subsets);
        cor_free(t->rows);
        cli_corpus_free(&t->calibration);
        cli_corpus_free(&t->scored);
        cli_questions_free(&t->questions);
    }
    for (size_t k = 0; ev->random && k < (size_t)ev->n_random * ev->n_levels; k++)
        xp_subset_free(&ev->random[k]);
    cor_free(ev->random);
    for (size_t k = 0; k < ev->n_levels; k++)
        xp_budget_free(&ev->levels[k].budget);
    xp_stats_free(&ev->stats);
    mdl_close(ev->mdl);
}

/* ---- preparing
 * ---------------------------------------------------------------------------------------------- */

static enum vkmoe_status prepare(struct eval *ev, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(mdl_open(&ev->mdl, ev->e.path, err));
    TRY(xp_stats_init(&ev->stats, ev->mdl, cli_method_family(ev->method), err));
    ev->shape = xp_stats_shape(&ev->stats);
    for (size_t k = 0; k < ev->n_levels; k++) {
        struct eval_level *level = &ev->levels[k];
        bool rounded;

        TRY(xp_budget_fit(&level->budget, &ev->shape, &rounded, err));
        level->all = level->budget.keep == ev->shape.n_routed + ev->shape.n_shared;
        if (rounded)
            cor_log(VKMOE_LOG_WARN,
                    "%g %% of %" PRIu32 " experts is not a whole number: %" PRIu32 " are kept",
                    level->budget.percent, ev->shape.n_routed + ev->shape.n_shared, level->budget.keep);
    }
    for (size_t i = 0; i < ev->n_texts; i++) {
        struct eval_text *t = &ev->texts[i];

        t->rows = cor_array(ev->n_levels, sizeof(*t->rows));
        t->subsets = cor_array((1 + ev->n_counts) * ev->n_levels, sizeof(*t->subsets));
        if (!t->rows || !t->subsets)
            FAIL(VKMOE_ERR_MEMORY, "no memory for %zu levels", ev->n_levels);
        for (size_t k = 0; k < ev->n_levels; k++) {
            struct eval_row *r = &t->rows[k];

            *r = (struct eval_row){NAN, NAN, NAN, NAN, NAN, {0}, NAN, NAN, NAN, NAN, 0, 0, 0};
            for (size_t c = 0; c < EVAL_COUNTS; c++)
                r->by_count[c] = NAN;
        }
    }
    ev->random = cor_array((size_t)ev->n_random * ev->n_levels + 1, sizeof(*ev->random));
    if (!ev->random)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %" PRId64 " random subsets", ev->n_random);
done:
    return st;
}

/* A session of another kind in place of the one there is. */
static enum vkmoe_status new_session(struct eval *ev, enum vkmoe_watch watch, uint32_t doc,
                                     struct vkmoe_err *err)
{
    struct cli_engine *e = &ev->e;

    vkmoe_session_destroy(e->ses);
    e->ses = NULL;
    e->params.watch = watch;
    e->params.doc_experts = doc;
    return vkmoe_session_create(&e->ses, e->mdl, &e->params, err);
}

/* ---- choosing
 * ----------------------------------------------------------------------------------------------- */

static enum vkmoe_status begin_subset(struct eval *ev, struct xp_subset *sub, enum cli_method method,
                                      struct vkmoe_err *err)
{
    return xp_subset_init(sub, ev->stats.model, ev->shape.n_layers, ev->shape.n_routed, ev->shape.n_shared,
                          cli_method_name(method), err);
}

/* Where a subset comes from, as experts rank writes it: carve copies it. */
static enum vkmoe_status sign(struct xp_subset *sub, const struct xp_stats *s, struct vkmoe_err *err)
{
    char hex[COR_SHA256_HEX], *copy = cor_strdup(xp_stats_digest(hex, s));

    if (!copy)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a digest");
    cor_free(sub->calibration);
    sub->calibration = copy;
    return VKMOE_OK;
}

static enum vkmoe_status fresh_stats(struct eval *ev, struct vkmoe_err *err)
{
    xp_stats_free(&ev->stats);
    return xp_stats_init(&ev->stats, ev->mdl, cli_method_family(ev->method), err);
}

/* Layer by layer, on the first `most` documents of a calibration text (0: all): a pass for each level, one
 * subset a level, at subsets. */
static enum vkmoe_status rank_layerwise(struct eval *ev, struct eval_text *t, int64_t most,
                                        struct xp_subset *subsets, struct vkmoe_err *err)
{
    struct cli_calibration c = {0};
    enum vkmoe_status st = VKMOE_OK;

    TRY(cli_calibration_add(&c, &ev->e, &t->calibration, most, t->calibrate, err));
    for (size_t k = 0; k < ev->n_levels; k++) {
        if (ev->levels[k].all)
            continue;
        TRY(begin_subset(ev, &subsets[k], ev->method, err));
        TRY(fresh_stats(ev, err));
        TRY(cli_calibrate_layerwise(&ev->e, &c, &ev->levels[k].budget, &ev->stats, &subsets[k], err));
        TRY(sign(&subsets[k], &ev->stats, err));
    }
done:
    cli_calibration_free(&c);
    return st;
}

/* One subset a level from the sums there are, at subsets. */
static enum vkmoe_status rank_sums(struct eval *ev, struct xp_subset *subsets, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (size_t k = 0; k < ev->n_levels; k++) {
        if (ev->levels[k].all)
            continue;
        TRY(begin_subset(ev, &subsets[k], ev->method, err));
        TRY(sign(&subsets[k], &ev->stats, err));
        TRY(xp_rank(&subsets[k], &ev->stats, &ev->levels[k].budget, cli_method_order(ev->method), 0, err));
    }
done:
    return st;
}

/* Subsets by the first counts[c] documents. */
static struct xp_subset *by_count(const struct eval *ev, const struct eval_text *t, size_t c)
{
    return t->subsets + (1 + c) * ev->n_levels;
}

/* The other methods add up: one pass over the text, and a ranking wherever a count of documents is reached.
 */
static enum vkmoe_status rank_on_the_way(struct eval *ev, struct eval_text *t, struct vkmoe_err *err)
{
    const size_t n_counts = t->test ? ev->n_counts : 0;
    struct cli_calibration cal = {0};
    enum vkmoe_status st = VKMOE_OK;

    TRY(cli_calibration_add(&cal, &ev->e, &t->calibration, 0, t->calibrate, err));
    TRY(fresh_stats(ev, err));
    for (size_t at = 0, next; at < cal.n_docs; at = next) {
        next = cal.n_docs;
        for (size_t c = 0; c < n_counts; c++)
            if (ev->counts[c] > at && ev->counts[c] < next)
                next = ev->counts[c];
        TRY(cli_calibrate(&ev->e, &cal, at, next, &ev->stats, err));
        for (size_t c = 0; c < n_counts; c++)
            if (ev->counts[c] == next)
                TRY(rank_sums(ev, by_count(ev, t, c), err));
    }
    TRY(rank_sums(ev, t->subsets, err));
done:
    cli_calibration_free(&cal);
    return st;
}

static enum vkmoe_status choose(struct eval *ev, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (size_t i = 0; i < ev->n_texts; i++) {
        struct eval_text *t = &ev->texts[i];

        if (ev->method != CLI_LAYERWISE) {
            TRY(rank_on_the_way(ev, t, err));
            continue;
        }
        TRY(rank_layerwise(ev, t, 0, t->subsets, err));
        for (size_t c = 0; c < ev->n_counts && t->test; c++)
            if (ev->counts[c] <= t->calibration.n_docs)
                TRY(rank_layerwise(ev, t, ev->counts[c], by_count(ev, t, c), err));
    }
    for (int64_t s = 0; s < ev->n_random; s++)
        for (size_t k = 0; k < ev->n_levels; k++) {
            struct xp_subset *sub = &ev->random[(size_t)s * ev->n_levels + k];

            if (ev->levels[k].all)
                continue;
            TRY(begin_subset(ev, sub, CLI_RANDOM, err));
            TRY(xp_rank(sub, &ev->stats, &ev->levels[k].budget, XP_BY_CHANCE, (uint64_t)(ev->seed + s), err));
        }
done:
    return st;
}

/* ---- scoring
 * ------------------------------------------------------------------------------------------------ */

/* How many documents are scored: whole ones, until there are max_tokens. */
static enum vkmoe_status limit(struct eval *ev, struct eval_text *t, struct vkmoe_err *err)
{
    size_t most = ev->documents && (uint64_t)ev->documents < t->scored.n_docs ? (size_t)ev->documents
                                                                              : t->scored.n_docs;
    enum vkmoe_status st = VKMOE_OK;
    uint64_t tokens = 0;

    for (size_t d = 0; d < most && (!ev->max_tokens || tokens < (uint64_t)ev->max_tokens); d++) {
        const struct cli_document *doc = &t->scored.docs[d];
        int32_t *ids;
        size_t n;

        if (ev->max_tokens) {
            TRY(vkmoe_tokenize(ev->e.mdl, doc->p, doc->n, false, &ids, &n, err));
            vkmoe_free(ids);
            tokens += n + 1;
        }
        t->bytes += doc->n;
        t->n_docs++;
    }
done:
    return st;
}

/* Nats per token of a text with the experts that the session may choose. */
static enum vkmoe_status score(struct eval *ev, struct eval_text *t, double *nll, struct vkmoe_err *err)
{
    struct cli_score s = {.over = &ev->bar, .over_done = ev->done, .over_total = ev->total};
    enum vkmoe_status st = VKMOE_OK;

    TRY(cli_score_corpus(&ev->e, &t->scored, t->n_docs, &s, err));
    ev->done += s.bytes;
    t->tokens = s.tokens;
    t->documents = s.documents;
    *nll = s.nll / (double)s.tokens;
done:
    return st;
}

static enum vkmoe_status use(struct eval *ev, const struct xp_subset *sub, struct vkmoe_err *err)
{
    vkmoe_subset *subset = NULL;
    enum vkmoe_status st = VKMOE_OK;

    if (sub)
        TRY(cli_subset(&subset, sub, err));
    TRY(vkmoe_session_use_subset(ev->e.ses, subset, err));
done:
    vkmoe_subset_close(subset);
    return st;
}

static enum vkmoe_status score_with(struct eval *ev, struct eval_text *t, const struct xp_subset *sub,
                                    double *nll, struct vkmoe_err *err)
{
    enum vkmoe_status st = use(ev, sub, err);

    return st == VKMOE_OK ? score(ev, t, nll, err) : st;
}

/* Is text j's subset a wrong one for text i, and measured? */
static bool is_wrong(const struct eval *ev, size_t i, size_t j)
{
    if (i == j || ev->wrong == EVAL_WRONG_NONE)
        return false;
    return ev->wrong == EVAL_WRONG_ALL || j == (i + 1) % ev->n_texts;
}

static enum vkmoe_status score_wrong(struct eval *ev, size_t i, size_t k, struct vkmoe_err *err)
{
    struct eval_row *r = &ev->texts[i].rows[k];
    double sum = 0, nll;
    enum vkmoe_status st = VKMOE_OK;
    size_t n = 0;

    for (size_t j = 0; j < ev->n_texts; j++) {
        if (!is_wrong(ev, i, j))
            continue;
        TRY(score_with(ev, &ev->texts[i], &ev->texts[j].subsets[k], &nll, err));
        sum += nll;
        r->worst = n++ && r->worst > nll ? r->worst : nll;
    }
    if (n)
        r->wrong = sum / (double)n;
done:
    return st;
}

static enum vkmoe_status score_level(struct eval *ev, size_t i, size_t k, struct vkmoe_err *err)
{
    struct eval_text *t = &ev->texts[i];
    struct eval_row *r = &t->rows[k];
    double nll;
    enum vkmoe_status st = VKMOE_OK;

    if (ev->levels[k].all)
        return score_with(ev, t, NULL, &r->right, err);
    TRY(score_with(ev, t, &t->subsets[k], &r->right, err));
    TRY(score_wrong(ev, i, k, err));
    for (int64_t s = 0; s < ev->n_random; s++) {
        TRY(score_with(ev, t, &ev->random[(size_t)s * ev->n_levels + k], &nll, err));
        r->random = s ? r->random + nll : nll;
    }
    r->random /= ev->n_random ? (double)ev->n_random : 1;
    for (size_t c = 0; c < ev->n_counts; c++)
        if (t->subsets[(1 + c) * ev->n_levels + k].allowed)
            TRY(score_with(ev, t, &t->subsets[(1 + c) * ev->n_levels + k], &r->by_count[c], err));
done:
    return st;
}

static enum vkmoe_status answer_with(struct eval *ev, struct eval_text *t, const struct xp_subset *sub,
                                     struct cli_answers *a, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    *a = (struct cli_answers){.bar = &ev->bar, .done = ev->done, .total = ev->total};
    TRY(use(ev, sub, err));
    TRY(cli_questions_score(&ev->e, &t->questions, ev->max_questions, a, err));
    ev->done = a->done;
done:
    return st;
}

static enum vkmoe_status answer_level(struct eval *ev, size_t i, size_t k, struct vkmoe_err *err)
{
    struct eval_text *t = &ev->texts[i];
    struct eval_row *r = &t->rows[k];
    const bool all = ev->levels[k].all;
    struct cli_answers a;
    double sum = 0;
    enum vkmoe_status st = VKMOE_OK;

    TRY(answer_with(ev, t, all ? NULL : &t->subsets[k], &a, err));
    r->accuracy = (double)a.right / (double)a.questions;
    r->answer_nll = a.answer_nll;
    for (int64_t s = 0; !all && s < ev->n_random; s++) {
        TRY(answer_with(ev, t, &ev->random[(size_t)s * ev->n_levels + k], &a, err));
        sum += (double)a.right / (double)a.questions;
    }
    if (!all && ev->n_random)
        r->accuracy_random = sum / (double)ev->n_random;
done:
    return st;
}

/* With a pool that each document picks for itself, as large as the subset. */
static enum vkmoe_status score_doc(struct eval *ev, size_t k, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(new_session(ev, VKMOE_WATCH_NONE, ev->levels[k].budget.keep - ev->shape.n_shared, err));
    for (size_t i = 0; i < ev->n_texts; i++)
        if (ev->texts[i].test)
            TRY(score(ev, &ev->texts[i], &ev->texts[i].rows[k].doc, err));
done:
    return st;
}

/* Bytes that all scoring will read, for the estimate. */
static void plan(struct eval *ev)
{
    for (size_t i = 0; i < ev->n_texts; i++) {
        const struct eval_text *t = &ev->texts[i];
        uint64_t wrong = 0, random = (uint64_t)ev->n_random;

        for (size_t j = 0; j < ev->n_texts; j++)
            wrong += is_wrong(ev, i, j);
        for (size_t k = 0; k < ev->n_levels; k++) {
            const bool all = ev->levels[k].all;
            uint64_t counts = 0;

            for (size_t c = 0; c < ev->n_counts; c++)
                counts += t->subsets[(1 + c) * ev->n_levels + k].allowed != NULL;
            ev->total += t->bytes * (all ? 1 : 1 + wrong + random + counts + ev->doc);
            ev->total += cli_questions_bytes(&t->questions, ev->max_questions) * (all ? 1 : 1 + random);
        }
    }
}

static enum vkmoe_status score_all(struct eval *ev, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (size_t i = 0; i < ev->n_texts; i++)
        if (ev->texts[i].test)
            TRY(limit(ev, &ev->texts[i], err));
    plan(ev);
    TRY(new_session(ev, VKMOE_WATCH_NONE, 0, err));
    for (size_t i = 0; i < ev->n_texts; i++)
        for (size_t k = 0; k < ev->n_levels; k++) {
            if (ev->texts[i].test)
                TRY(score_level(ev, i, k, err));
            if (ev->texts[i].choices)
                TRY(answer_level(ev, i, k, err));
        }
    for (size_t k = 0; ev->doc && k < ev->n_levels; k++)
        if (!ev->levels[k].all)
            TRY(score_doc(ev, k, err));
done:
    cli_progress_end(&ev->bar);
    return st;
}

/* ---- bytes and speed
 * ---------------------------------------------------------------------------------------- */

/* n tokens of a text's beginning, again and again where it is short; the end-of-text token first. */
static enum vkmoe_status first_tokens(struct eval *ev, const struct cli_corpus *c, int32_t *ids, size_t n,
                                      struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    size_t at = 0;

    for (size_t d = 0; at < n; d = (d + 1) % c->n_docs) {
        int32_t *doc;
        size_t k;

        TRY(vkmoe_tokenize(ev->e.mdl, c->docs[d].p, c->docs[d].n, false, &doc, &k, err));
        ids[at++] = cli_first_token(ev->e.mdl);
        k = k < n - at ? k : n - at;
        memcpy(ids + at, doc, k * sizeof(*ids));
        at += k;
        vkmoe_free(doc);
    }
done:
    return st;
}

static enum vkmoe_status decode_speed(struct eval *ev, struct eval_text *t, struct eval_row *r,
                                      struct vkmoe_err *err)
{
    size_t n_ctx = vkmoe_session_n_ctx(ev->e.ses), n = PROMPT + WARM + (size_t)ev->decode_tokens;
    int32_t *ids;
    enum vkmoe_status st = VKMOE_OK;
    uint64_t start = 0;

    n = n < n_ctx ? n : n_ctx;
    if (n <= PROMPT + WARM)
        return VKMOE_OK; /* a context too small to measure in */
    ids = cor_array(n, sizeof(*ids));
    if (!ids)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu tokens", n);
    TRY(first_tokens(ev, t->test ? &t->scored : &t->calibration, ids, n, err));
    TRY(vkmoe_session_feed(ev->e.ses, ids, PROMPT, err));
    for (size_t i = PROMPT; i < n; i++) {
        if (cor_interrupted())
            FAIL(VKMOE_ERR_IO, "interrupted while measuring speed");
        if (i == PROMPT + WARM)
            start = cor_now_ns();
        TRY(vkmoe_session_feed(ev->e.ses, ids + i, 1, err));
    }
    r->tokens_per_second = (double)(n - PROMPT - WARM) / ((double)(cor_now_ns() - start) * 1e-9);
done:
    cor_free(ids);
    return st;
}

/* The model opened with nothing but a subset (NULL: all experts). */
static enum vkmoe_status open_only(struct eval *ev, const struct xp_subset *sub, struct vkmoe_err *err)
{
    struct cli_engine *e = &ev->e;
    vkmoe_subset *subset = NULL;
    struct vkmoe_model_params mp = {
        .session = &e->params, .pool_policy = e->policy, .check_slots = e->check_slots};
    enum vkmoe_status st = VKMOE_OK;

    cli_engine_unload(e);
    e->params.watch = VKMOE_WATCH_NONE;
    e->params.doc_experts = 0;
    if (sub) {
        TRY(cli_subset(&subset, sub, err));
        mp.subsets = (const vkmoe_subset *const *)&subset;
        mp.n_subsets = 1;
    } else {
        cli_pool_bytes(e->pool, e->pool ? strlen(e->pool) : 0, &mp.pool_bytes);
    }
    TRY(vkmoe_model_open(&e->mdl, e->dev, e->path, &mp, err));
    TRY(vkmoe_session_create(&e->ses, e->mdl, &e->params, err));
done:
    vkmoe_subset_close(subset);
    return st;
}

static enum vkmoe_status weigh(struct eval *ev, struct eval_text *t, size_t k, struct vkmoe_err *err)
{
    const struct xp_subset *sub = ev->levels[k].all ? NULL : &t->subsets[k];
    const struct xp_carve_params carve = {.model = ev->e.path, .subset = sub, .subset_name = "subset"};
    struct eval_row *r = &t->rows[k];
    struct vkmoe_pool_stats pool;
    enum vkmoe_status st = VKMOE_OK;

    r->disk_bytes = mdl_gguf_file_bytes(ev->mdl->gguf);
    if (sub)
        TRY(xp_carve_size(&carve, ev->mdl, &r->disk_bytes, err));
    TRY(open_only(ev, sub, err));
    vkmoe_model_get_pool(ev->e.mdl, &pool);
    r->slot_bytes = pool.slots_bytes;
    r->device_bytes = cli_pool_device_bytes(&ev->e);
    if (ev->decode_tokens)
        TRY(decode_speed(ev, t, r, err));
done:
    return st;
}

/* The row with all experts says the same of every text: it is measured once. */
static enum vkmoe_status weigh_all(struct eval *ev, struct vkmoe_err *err)
{
    uint64_t n = ev->n_texts * ev->n_levels;
    enum vkmoe_status st = VKMOE_OK;

    ev->bar = (struct cli_progress){.what = "decoding", .unit = "subsets"};
    for (size_t i = 0; i < ev->n_texts; i++)
        for (size_t k = 0; k < ev->n_levels; k++) {
            struct eval_row *r = &ev->texts[i].rows[k], *first = &ev->texts[0].rows[k];

            cli_progress_step(&ev->bar, i * ev->n_levels + k, n);
            if (i && ev->levels[k].all) {
                r->disk_bytes = first->disk_bytes;
                r->device_bytes = first->device_bytes;
                r->slot_bytes = first->slot_bytes;
                r->tokens_per_second = first->tokens_per_second;
            } else {
                TRY(weigh(ev, &ev->texts[i], k, err));
            }
        }
done:
    cli_progress_end(&ev->bar);
    return st;
}

enum vkmoe_status eval_measure(struct eval *ev, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t pool;

    cli_pool_bytes(ev->e.pool, ev->e.pool ? strlen(ev->e.pool) : 0, &pool);
    ev->bar = (struct cli_progress){.what = "scoring"};
    TRY(prepare(ev, err));
    ev->e.params.watch = cli_method_watch(ev->method);
    TRY(cli_engine_load(&ev->e, pool, err));
    TRY(choose(ev, err));
    TRY(score_all(ev, err));
    TRY(weigh_all(ev, err));
done:
    return st;
}
