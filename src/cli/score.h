/* Scoring text as section 10 of docs/DESIGN.md defines it: each document alone between two end-of-text
 * tokens. */
#ifndef CLI_SCORE_H
#define CLI_SCORE_H

#include "cli/corpus.h"
#include "cli/engine.h"

struct cli_score {
    double nll; /* nats */
    uint64_t tokens, bytes, documents;
    struct cli_progress bar;
    uint64_t total;    /* bytes to score */
    size_t first_feed; /* tokens of a document that are fed before the others, 0: no such cut */
    /* one bar over several corpora, NULL: the own one; bytes before this corpus, and of all of them */
    struct cli_progress *over;
    uint64_t over_done, over_total;
};

/* -log softmax(logits)[id], in double. */
double cli_token_nll(const float *logits, uint32_t vocab, int32_t id);
/* Adds the first `most` documents (0: all) to *s. Ctrl-C is an error. */
enum vkmoe_status cli_score_corpus(struct cli_engine *e, const struct cli_corpus *c, int64_t most,
                                   struct cli_score *s, struct vkmoe_err *err);

#endif
