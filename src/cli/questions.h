/* Multiple-choice questions: a file of them, and which choice a model finds likeliest. Owns the file format
 * (docs/FORMATS.md) and the rule of scoring. */
#ifndef CLI_QUESTIONS_H
#define CLI_QUESTIONS_H

#include <cjson/cJSON.h>

#include "cli/engine.h"

struct cli_question {
    const char *context, **choices; /* owned by the line */
    uint32_t n_choices, answer;
    size_t line;
};

struct cli_questions { /* zeroed at first */
    const char *file;
    char *text;
    cJSON **lines;
    size_t n_lines;
    struct cli_question *q;
    size_t n;
};

/* One object a line: `context`, `choices`, `answer`. Errors name file and line. cli_questions_free in either
 * case. */
enum vkmoe_status cli_questions_load(struct cli_questions *qs, const char *file, struct vkmoe_err *err);
void cli_questions_free(struct cli_questions *qs);

/* Bytes that scoring the first `most` questions feeds, for an estimate. */
uint64_t cli_questions_bytes(const struct cli_questions *qs, int64_t most);

struct cli_answers {
    uint64_t questions, right;
    double answer_nll; /* nats of the true choices' tokens, all questions together */
    struct cli_progress *bar;
    uint64_t done, total; /* bytes, for the bar */
};

/* Adds the first `most` questions (0: all). The score of a choice is the sum of the log-likelihoods of its
 * tokens behind the context, not divided by anything; of equal scores the first wins. Nothing stands in front
 * of the context. Tokens of a choice are those of context and choice together behind as many as the context
 * has alone. Ctrl-C is an error. */
enum vkmoe_status cli_questions_score(struct cli_engine *e, const struct cli_questions *qs, int64_t most,
                                      struct cli_answers *a, struct vkmoe_err *err);

#endif
