/* A text as the router sees it: its documents as tokens, each alone behind an end-of-text token, up to a
 * number of tokens. Owns how a text is fed and scored for `vkmoe experts report`. */
#ifndef CLI_TEXTS_H
#define CLI_TEXTS_H

#include "cli/corpus.h"
#include "cli/engine.h"

struct cli_text_doc {
    size_t first, n; /* in ids: the end-of-text token and what follows it */
    bool whole;      /* all of the document: what follows it is an end-of-text token */
};

struct cli_text {   /* zeroed at first */
    char name[256]; /* of the file, for people; any bytes */
    int32_t *ids;
    size_t n, cap; /* tokens to feed */
    struct cli_text_doc *docs;
    size_t n_docs;
    uint64_t cut; /* documents of which only the beginning fits the context */
    bool whole;   /* every document of the file is there */
};

/* max_tokens: of all documents together; the last one is cut to it. Warns of documents cut to the context.
 * cli_text_free in either case. */
enum vkmoe_status cli_text_load(struct cli_text *t, const struct cli_engine *e, const char *file,
                                const char *separator, bool lines, size_t max_docs, size_t max_tokens,
                                struct vkmoe_err *err);
void cli_text_free(struct cli_text *t);

struct cli_text_pass {
    double nll; /* nats of the tokens behind each document's first, and the end-of-text token of whole ones */
    uint64_t scored;
    size_t doc; /* being fed: for those who watch */
    struct cli_progress *bar;
    uint64_t done, total; /* tokens, of all passes */
};

/* Feeds every document to the empty session. Ctrl-C is an error. */
enum vkmoe_status cli_text_feed(const struct cli_text *t, struct cli_engine *e, struct cli_text_pass *pass,
                                struct vkmoe_err *err);

#endif
