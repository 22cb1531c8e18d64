/* Feeding calibration documents to a model that is open, and what its router made of them. Owns how documents
 * become tokens: each alone, behind an end-of-text token, cut at the end where the context is too short. */
#ifndef CLI_CALIBRATE_H
#define CLI_CALIBRATE_H

#include "cli/corpus.h"
#include "cli/engine.h"
#include "experts/rank.h"

enum cli_method { CLI_ROUTER, CLI_LAYERWISE, CLI_EASY_EP, CLI_RANDOM };

/* "router", "layerwise", "easy-ep" or "random". False: none of these. */
bool cli_method_parse(const char *name, enum cli_method *method);
const char *cli_method_name(enum cli_method method);
/* What the statistics of a method must sum, and what its session must be created with. */
enum xp_family cli_method_family(enum cli_method method);
enum vkmoe_watch cli_method_watch(enum cli_method method);
enum xp_order cli_method_order(enum cli_method method);

struct cli_calibration { /* zeroed before the first cli_calibration_add */
    int32_t *ids;        /* of all documents, end-of-text token first in each */
    size_t n_ids, ids_cap;
    struct cli_calibrated {
        struct cli_document text; /* in the corpus, which must outlive this */
        size_t first, n;          /* tokens in ids */
        bool truncated;
    } * docs;
    size_t n_docs, docs_cap;
};

/* Appends the corpus's first `most` documents (0: all), as tokens. file: for messages. Errors:
 * VKMOE_ERR_UNSUPPORTED for models without an end-of-text token, VKMOE_ERR_FORMAT for a text of one token. */
enum vkmoe_status cli_calibration_add(struct cli_calibration *c, const struct cli_engine *e,
                                      const struct cli_corpus *corpus, int64_t most, const char *file,
                                      struct vkmoe_err *err);
void cli_calibration_free(struct cli_calibration *c);

/* One pass over the documents [from, to) with the experts that the session may choose; adds to *s. The
 * session watches what the family needs. Ctrl-C is an error. */
enum vkmoe_status cli_calibrate(struct cli_engine *e, const struct cli_calibration *c, size_t from, size_t to,
                                struct xp_stats *s, struct vkmoe_err *err);
/* Layer by layer: all documents up to the router of layer l, with the layers before it restricted to what
 * they keep; then l keeps its best. Fills *sub, and *s with what each layer's choice was made from. b was
 * fitted. The session may choose everything again afterwards. */
enum vkmoe_status cli_calibrate_layerwise(struct cli_engine *e, const struct cli_calibration *c,
                                          const struct xp_budget *b, struct xp_stats *s,
                                          struct xp_subset *sub, struct vkmoe_err *err);
/* A subset for vkmoe_session_use_subset. */
enum vkmoe_status cli_subset(vkmoe_subset **out, const struct xp_subset *sub, struct vkmoe_err *err);

#endif
