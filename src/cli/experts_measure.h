/* What `vkmoe experts eval` measures: perplexity and answers with right, wrong and random subsets, bytes and
 * speed. Owns the order of the work, so that one model stays open as long as possible; options and tables are
 * experts_eval.c's. */
#ifndef CLI_EXPERTS_MEASURE_H
#define CLI_EXPERTS_MEASURE_H

#include "cli/calibrate.h"
#include "cli/questions.h"

enum { EVAL_TEXTS = 64, EVAL_LEVELS = 16, EVAL_COUNTS = 8 };
enum eval_wrong { EVAL_WRONG_ALL, EVAL_WRONG_NEXT, EVAL_WRONG_NONE };

struct eval_level {
    struct xp_budget budget; /* fitted: keep counts the shared experts */
    bool all;                /* every expert: nothing is chosen */
};

/* Of one text at one level. NAN: not measured. */
struct eval_row {
    double right, wrong, worst, random, doc; /* nats per token; wrong and random: means over subsets */
    double by_count[EVAL_COUNTS];            /* right, ranked on fewer documents */
    double accuracy, accuracy_random;        /* of questions */
    double answer_nll;                       /* nats of the true choices, with the right subset, in all */
    double tokens_per_second;
    uint64_t disk_bytes;   /* of the file that carve would write */
    uint64_t device_bytes; /* dense weights, experts, cache and activations, opened with that subset alone */
    uint64_t slot_bytes;   /* of them, experts */
};

struct eval_text {
    const char *calibrate, *test, *choices; /* files; test and choices may be NULL */
    struct cli_corpus calibration, scored;
    struct cli_questions questions;
    int64_t n_docs; /* of scored that are scored */
    uint64_t tokens, bytes, documents;
    struct eval_row *rows;     /* (n_levels) */
    struct xp_subset *subsets; /* (1 + n_counts, n_levels); from all documents first */
};

struct eval {
    struct cli_engine e;
    /* options */
    struct cli_strs calibrate, test, choices;
    const char *keep, *method_name, *counts_text, *wrong_name, *format, *separator;
    int64_t n_random, seed, documents, max_tokens, decode_tokens, max_questions;
    bool doc, lines;
    /* what they mean */
    enum cli_method method;
    enum eval_wrong wrong;
    uint32_t counts[EVAL_COUNTS];
    size_t n_counts;
    struct eval_level levels[EVAL_LEVELS];
    size_t n_levels;
    struct eval_text texts[EVAL_TEXTS];
    size_t n_texts;
    /* made */
    struct mdl_model *mdl; /* the file, for sizes */
    struct xp_shape shape;
    struct xp_stats stats;    /* of the calibration in hand */
    struct xp_subset *random; /* (n_random, n_levels) */
    struct cli_progress bar;
    uint64_t done, total; /* bytes scored */
};

/* Fills rows and figures of all texts. Levels hold budgets as parsed. Corpora and questions are loaded; the
 * device is open. Ctrl-C is an error. */
enum vkmoe_status eval_measure(struct eval *ev, struct vkmoe_err *err);
void eval_free(struct eval *ev); /* all but the engine */

#endif
