#include "cli/score.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/alloc.h"
#include "core/os.h"

struct window {
    const int32_t *next; /* token that the logits of row i predict */
    uint32_t vocab;
    struct cli_score *score;
    double bytes_per_row; /* for the progress bar */
    uint64_t bytes;       /* scored before this window */
};

/* -log softmax(logits)[id], in double. */
double cli_token_nll(const float *logits, uint32_t vocab, int32_t id)
{
    double top = logits[0], sum = 0;

    for (uint32_t i = 1; i < vocab; i++)
        top = logits[i] > top ? logits[i] : top;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - top);
    return log(sum) + top - logits[id];
}

static void step(struct cli_score *s, uint64_t bytes)
{
    if (s->over)
        cli_progress_step(s->over, s->over_done + bytes, s->over_total);
    else
        cli_progress_step(&s->bar, bytes, s->total);
}

static bool score_row(void *user, size_t index, const float *logits)
{
    const struct window *w = user;

    w->score->nll += cli_token_nll(logits, w->vocab, w->next[index]);
    w->score->tokens++;
    step(w->score, w->bytes + (uint64_t)((double)(index + 1) * w->bytes_per_row));
    return !cor_interrupted();
}

/* ids: a token that begins a text, document, end-of-text; all but the first are predicted, in windows of
 * n_ctx with half overlap: the first half of a window only gives context to the second. bytes: of the
 * document. */
static enum vkmoe_status score_ids(struct cli_engine *e, const int32_t *ids, size_t n, size_t bytes,
                                   struct cli_score *s, struct vkmoe_err *err)
{
    size_t ctx = vkmoe_session_n_ctx(e->ses), step = ctx / 2 ? ctx / 2 : 1, at = 0, scored = 0;
    double per_row = (double)bytes / (double)(n - 1);
    enum vkmoe_status st = VKMOE_OK;

    for (; scored < n - 1 && !cor_interrupted(); at += step) {
        size_t len = n - 1 - at < ctx ? n - 1 - at : ctx;
        struct window w = {.next = ids + scored + 1,
                           .vocab = vkmoe_model_facts(e->mdl)->vocab_size,
                           .score = s,
                           .bytes_per_row = per_row,
                           .bytes = s->bytes + (uint64_t)(per_row * (double)scored)};

        vkmoe_session_reset(e->ses);
        if (scored > at)
            TRY(vkmoe_session_feed(e->ses, ids + at, scored - at, err));
        if (!scored && s->first_feed && s->first_feed < len) {
            TRY(vkmoe_session_feed_all(e->ses, ids, s->first_feed, score_row, &w, err));
            scored = s->first_feed;
            w.next = ids + scored + 1;
        }
        TRY(vkmoe_session_feed_all(e->ses, ids + scored, at + len - scored, score_row, &w, err));
        scored = at + len;
    }
done:
    return st;
}

static enum vkmoe_status score_document(struct cli_engine *e, const struct cli_document *d,
                                        struct cli_score *s, struct vkmoe_err *err)
{
    int32_t *ids = NULL, *framed = NULL;
    enum vkmoe_status st = VKMOE_OK;
    size_t n;

    TRY(vkmoe_tokenize(e->mdl, d->p, d->n, false, &ids, &n, err));
    framed = cor_array(n + 2, sizeof(*framed));
    if (!framed)
        FAIL(VKMOE_ERR_MEMORY, "no memory for a document of %zu tokens", n);
    framed[0] = cli_first_token(e->mdl);
    framed[n + 1] = vkmoe_model_facts(e->mdl)->eos_token;
    memcpy(framed + 1, ids, n * sizeof(*ids));
    TRY(score_ids(e, framed, n + 2, d->n, s, err));
    if (cor_interrupted())
        FAIL(VKMOE_ERR_IO, "interrupted after %" PRIu64 " documents", s->documents);
    s->bytes += d->n;
    s->documents++;
done:
    cor_free(ids);
    cor_free(framed);
    return st;
}

enum vkmoe_status cli_score_corpus(struct cli_engine *e, const struct cli_corpus *c, int64_t most,
                                   struct cli_score *s, struct vkmoe_err *err)
{
    size_t n = most > 0 && (uint64_t)most < c->n_docs ? (size_t)most : c->n_docs;
    enum vkmoe_status st = VKMOE_OK;

    s->bar.what = "scoring";
    if (vkmoe_model_facts(e->mdl)->eos_token < 0)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "%s: no end-of-text token, which scoring puts round each document", e->path);
    for (size_t i = 0; i < n; i++)
        s->total += c->docs[i].n;
    for (size_t i = 0; i < n; i++)
        TRY(score_document(e, &c->docs[i], s, err));
done:
    cli_progress_end(&s->bar);
    return st;
}
