#include "cli/calibrate.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/log.h"
#include "core/os.h"

/* ---- methods
 * ------------------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    enum xp_family family;
    enum vkmoe_watch watch;
    enum xp_order order;
} methods[] = {
    [CLI_ROUTER] = {"router", XP_ROUTER, VKMOE_WATCH_ROUTER, XP_BY_PROBABILITY},
    [CLI_LAYERWISE] = {"layerwise", XP_ROUTER, VKMOE_WATCH_ROUTER, XP_BY_PROBABILITY},
    [CLI_EASY_EP] = {"easy-ep", XP_EASY_EP, VKMOE_WATCH_EXPERTS, XP_BY_IMPORTANCE},
    [CLI_RANDOM] = {"random", XP_ROUTER, VKMOE_WATCH_ROUTER, XP_BY_CHANCE},
};

bool cli_method_parse(const char *name, enum cli_method *method)
{
    for (size_t i = 0; i < COR_COUNT(methods); i++)
        if (!strcmp(name, methods[i].name)) {
            *method = (enum cli_method)i;
            return true;
        }
    return false;
}

const char *cli_method_name(enum cli_method method)
{
    return methods[method].name;
}

enum xp_family cli_method_family(enum cli_method method)
{
    return methods[method].family;
}

enum vkmoe_watch cli_method_watch(enum cli_method method)
{
    return methods[method].watch;
}

enum xp_order cli_method_order(enum cli_method method)
{
    return methods[method].order;
}

/* ---- documents as tokens
 * ------------------------------------------------------------------------------------- */

/* Room for `need` items in an array of *cap. */
static enum vkmoe_status grow(void **p, size_t *cap, size_t need, size_t size, struct vkmoe_err *err)
{
    size_t wider = *cap ? *cap : 256;
    void *more;

    while (wider < need)
        wider *= 2;
    if (wider == *cap)
        return VKMOE_OK;
    more = cor_resize(*p, wider, size);
    if (!more)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu calibration tokens", wider);
    *p = more;
    *cap = wider;
    return VKMOE_OK;
}

static enum vkmoe_status add_document(struct cli_calibration *c, const struct cli_engine *e,
                                      const struct cli_document *d, struct vkmoe_err *err)
{
    size_t n_ctx = vkmoe_session_n_ctx(e->ses), n;
    struct cli_calibrated doc = {.text = *d, .first = c->n_ids};
    int32_t *ids = NULL;
    void *p;
    enum vkmoe_status st = VKMOE_OK;

    TRY(vkmoe_tokenize(e->mdl, d->p, d->n, false, &ids, &n, err));
    doc.truncated = n + 1 > n_ctx;
    doc.n = doc.truncated ? n_ctx : n + 1;
    p = c->ids;
    TRY(grow(&p, &c->ids_cap, c->n_ids + doc.n, sizeof(*c->ids), err));
    c->ids = p;
    p = c->docs;
    TRY(grow(&p, &c->docs_cap, c->n_docs + 1, sizeof(*c->docs), err));
    c->docs = p;
    c->ids[c->n_ids] = cli_first_token(e->mdl);
    memcpy(c->ids + c->n_ids + 1, ids, (doc.n - 1) * sizeof(*ids));
    c->n_ids += doc.n;
    c->docs[c->n_docs++] = doc;
done:
    vkmoe_free(ids);
    return st;
}

enum vkmoe_status cli_calibration_add(struct cli_calibration *c, const struct cli_engine *e,
                                      const struct cli_corpus *corpus, int64_t most, const char *file,
                                      struct vkmoe_err *err)
{
    size_t n = most > 0 && (uint64_t)most < corpus->n_docs ? (size_t)most : corpus->n_docs;
    size_t ids = c->n_ids, docs = c->n_docs, cut = 0;
    enum vkmoe_status st = VKMOE_OK;

    if (cli_first_token(e->mdl) < 0)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "%s: no end-of-text token, which stands in front of each calibration document",
                        e->path);
    for (size_t i = 0; i < n; i++) {
        TRY(add_document(c, e, &corpus->docs[i], err));
        cut += c->docs[c->n_docs - 1].truncated;
    }
    if (c->n_ids - ids - (c->n_docs - docs) < 2)
        FAIL(VKMOE_ERR_FORMAT, "%s: a text of one token does not tell which experts it needs", file);
    if (cut)
        cor_log(VKMOE_LOG_WARN,
                "%s: %zu of %zu documents are longer than the context of %" PRIu32
                " tokens and are cut at its end (-c)",
                file, cut, n, vkmoe_session_n_ctx(e->ses));
done:
    return st;
}

void cli_calibration_free(struct cli_calibration *c)
{
    cor_free(c->ids);
    cor_free(c->docs);
    *c = (struct cli_calibration){0};
}

/* ---- passes
 * ------------------------------------------------------------------------------------------------- */

struct pass {
    struct cli_engine *e;
    const struct cli_calibration *c;
    size_t from, to; /* documents */
    struct xp_stats *s;
    struct cli_progress bar;
    uint64_t done, total; /* for the bar: tokens times layers */
};

static enum vkmoe_status interrupted(size_t documents, struct vkmoe_err *err)
{
    return cor_fail(err, VKMOE_ERR_IO, "interrupted after %zu calibration documents", documents);
}

/* The pass's documents up to the router of layer `last`, or to the end: UINT32_MAX. count: they are new to
 * *s. */
static enum vkmoe_status feed_all(struct pass *p, uint32_t last, bool count, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    vkmoe_session_on_watch(p->e->ses, xp_stats_add, p->s);
    for (size_t i = p->from; i < p->to; i++) {
        const struct cli_calibrated *d = &p->c->docs[i];
        const int32_t *ids = p->c->ids + d->first;

        if (cor_interrupted())
            TRY(interrupted(i, err));
        cli_progress_step(&p->bar, p->done, p->total);
        vkmoe_session_reset(p->e->ses);
        if (last == UINT32_MAX)
            TRY(vkmoe_session_feed(p->e->ses, ids, d->n, err));
        else
            TRY(vkmoe_session_feed_to(p->e->ses, ids, d->n, last, err));
        TRY(xp_stats_check(p->s, err));
        if (count)
            TRY(xp_stats_document(p->s, d->text.p, d->text.n, d->truncated, err));
        p->done += d->n * (last == UINT32_MAX ? 1 : last + UINT64_C(1));
    }
done:
    vkmoe_session_on_watch(p->e->ses, NULL, NULL);
    vkmoe_session_reset(p->e->ses);
    return st;
}

enum vkmoe_status cli_calibrate(struct cli_engine *e, const struct cli_calibration *c, size_t from, size_t to,
                                struct xp_stats *s, struct vkmoe_err *err)
{
    struct pass p = {
        .e = e, .c = c, .from = from, .to = to, .s = s, .bar = {.what = "calibrating", .unit = "tokens"}};
    enum vkmoe_status st;

    for (size_t i = from; i < to; i++)
        p.total += c->docs[i].n;
    st = feed_all(&p, UINT32_MAX, true, err);
    cli_progress_end(&p.bar);
    return st;
}

/* n_there: experts of the layers from first_free on, all of which may be chosen. */
static enum vkmoe_status create_subset(vkmoe_subset **out, const struct xp_subset *sub, uint32_t first_free,
                                       const uint32_t *n_there, struct vkmoe_err *err)
{
    uint8_t *keep = cor_array((size_t)sub->n_layers * sub->n_routed, sizeof(*keep));
    enum vkmoe_status st;

    *out = NULL;
    if (!keep)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a subset");
    for (uint32_t l = 0; l < sub->n_layers; l++)
        for (uint32_t x = 0; x < sub->n_routed; x++)
            keep[(size_t)l * sub->n_routed + x] = l >= first_free ? x < n_there[l] : xp_subset_has(sub, l, x);
    st = vkmoe_subset_create(out, sub->n_layers, sub->n_routed, keep, err);
    cor_free(keep);
    return st;
}

enum vkmoe_status cli_subset(vkmoe_subset **out, const struct xp_subset *sub, struct vkmoe_err *err)
{
    return create_subset(out, sub, sub->n_layers, NULL, err);
}

enum vkmoe_status cli_calibrate_layerwise(struct cli_engine *e, const struct cli_calibration *c,
                                          const struct xp_budget *b, struct xp_stats *s,
                                          struct xp_subset *sub, struct vkmoe_err *err)
{
    uint64_t n = s->n_layers;
    struct pass p = {.e = e,
                     .c = c,
                     .to = c->n_docs,
                     .s = s,
                     .bar = {.what = "calibrating layer by layer", .unit = "steps"},
                     .total = c->n_ids * (n * (n + 1) / 2)};
    vkmoe_subset *restricted = NULL;
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t l = 0; l < n; l++) {
        TRY(create_subset(&restricted, sub, l, s->n_there, err));
        TRY(vkmoe_session_use_subset(e->ses, restricted, err));
        vkmoe_subset_close(restricted);
        restricted = NULL;
        s->first_layer = s->last_layer = l;
        TRY(feed_all(&p, l, l == 0, err));
        TRY(xp_rank_layer(sub, s, l, b, XP_BY_PROBABILITY, 0, err));
    }
    TRY(vkmoe_session_use_subset(e->ses, NULL, err));
done:
    s->first_layer = 0;
    s->last_layer = s->n_layers - 1;
    vkmoe_subset_close(restricted);
    cli_progress_end(&p.bar);
    return st;
}
