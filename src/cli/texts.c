#include "cli/texts.h"

#include <inttypes.h>
#include <string.h>

#include "cli/score.h"
#include "core/alloc.h"
#include "core/os.h"

void cli_text_free(struct cli_text *t)
{
    cor_free(t->ids);
    cor_free(t->docs);
    memset(t, 0, sizeof(*t));
}

/* The file's name without its folders. */
static void name_text(struct cli_text *t, const char *file)
{
    snprintf(t->name, sizeof(t->name), "%s", strcmp(file, "-") ? cor_path_base(file) : "standard input");
}

/* Appends the token that begins a text and the first n of ids. */
static enum vkmoe_status append(struct cli_text *t, int32_t first, const int32_t *ids, size_t n, bool whole,
                                struct vkmoe_err *err)
{
    if (t->cap - t->n < n + 1) {
        size_t cap = 2 * t->cap + n + 1;
        int32_t *more = cor_resize(t->ids, cap, sizeof(*more));

        if (!more)
            return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %zu tokens", t->name, cap);
        t->ids = more;
        t->cap = cap;
    }
    t->docs[t->n_docs++] = (struct cli_text_doc){t->n, n + 1, whole};
    t->ids[t->n] = first;
    memcpy(t->ids + t->n + 1, ids, n * sizeof(*ids));
    t->n += n + 1;
    return VKMOE_OK;
}

static enum vkmoe_status add(struct cli_text *t, const struct cli_engine *e, const struct cli_document *d,
                             size_t most, struct vkmoe_err *err)
{
    size_t n_ctx = vkmoe_session_n_ctx(e->ses), n, room;
    int32_t *ids = NULL;
    enum vkmoe_status st = VKMOE_OK;

    TRY(vkmoe_tokenize(e->mdl, d->p, d->n, false, &ids, &n, err));
    room = most < n_ctx ? most : n_ctx;
    if (n + 1 > n_ctx && most >= n_ctx)
        t->cut++;
    TRY(append(t, cli_first_token(e->mdl), ids, n + 1 > room ? room - 1 : n, n + 1 <= room, err));
done:
    cor_free(ids);
    return st;
}

enum vkmoe_status cli_text_load(struct cli_text *t, const struct cli_engine *e, const char *file,
                                const char *separator, bool lines, size_t max_docs, size_t max_tokens,
                                struct vkmoe_err *err)
{
    struct cli_corpus corpus = {0};
    enum vkmoe_status st = VKMOE_OK;
    size_t n;

    name_text(t, file);
    if (vkmoe_model_facts(e->mdl)->eos_token < 0)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "%s: no end-of-text token, which stands in front of each document", e->path);
    TRY(cli_corpus_load(&corpus, file, separator, lines, err));
    n = max_docs && max_docs < corpus.n_docs ? max_docs : corpus.n_docs;
    t->docs = cor_array(n, sizeof(*t->docs));
    if (!t->docs)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %zu documents", file, n);
    for (size_t i = 0; i < n && max_tokens - t->n >= 2; i++)
        TRY(add(t, e, &corpus.docs[i], max_tokens - t->n, err));
    t->whole = t->n_docs == corpus.n_docs && (t->docs[t->n_docs - 1].whole || t->cut);
    if (t->cut)
        fprintf(stderr,
                "vkmoe: warning: %s: %" PRIu64 " of %zu documents are cut to the context of %" PRIu32
                " tokens (-c)\n",
                file, t->cut, t->n_docs, vkmoe_session_n_ctx(e->ses));
done:
    cli_corpus_free(&corpus);
    return st;
}

struct row_sink {
    struct cli_text_pass *pass;
    const struct cli_text *text;
    const struct cli_text_doc *doc;
    uint32_t vocab;
    int32_t eos;
};

static bool score_row(void *user, size_t index, const float *logits)
{
    const struct row_sink *s = user;
    struct cli_text_pass *p = s->pass;
    const int32_t *ids = s->text->ids + s->doc->first;
    bool last = index + 1 == s->doc->n;

    if (!last || s->doc->whole) {
        p->nll += cli_token_nll(logits, s->vocab, last ? s->eos : ids[index + 1]);
        p->scored++;
    }
    p->done++;
    cli_progress_step(p->bar, p->done, p->total);
    return !cor_interrupted();
}

enum vkmoe_status cli_text_feed(const struct cli_text *t, struct cli_engine *e, struct cli_text_pass *pass,
                                struct vkmoe_err *err)
{
    const struct vkmoe_model_info *m = vkmoe_model_facts(e->mdl);
    struct row_sink sink = {.pass = pass, .text = t, .vocab = m->vocab_size, .eos = m->eos_token};
    enum vkmoe_status st = VKMOE_OK;

    for (pass->doc = 0; pass->doc < t->n_docs; pass->doc++) {
        sink.doc = &t->docs[pass->doc];
        vkmoe_session_reset(e->ses);
        TRY(vkmoe_session_feed_all(e->ses, t->ids + sink.doc->first, sink.doc->n, score_row, &sink, err));
        if (cor_interrupted())
            FAIL(VKMOE_ERR_IO, "interrupted, nothing is written");
    }
done:
    return st;
}
