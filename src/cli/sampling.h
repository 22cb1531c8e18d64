/* How tokens are chosen, for the commands that write: one set of options, one way to draw. */
#ifndef CLI_SAMPLING_H
#define CLI_SAMPLING_H

#include "cli/engine.h"

struct cli_sampling {
    int64_t seed, top_k;
    double temp, top_p, min_p, repeat_penalty;
};

/* Rows for a struct cli_opt table. */
/* clang-format off */
#define CLI_SAMPLING_OPTS(s)                                                                                 \
    {"-s|--seed", CLI_INT, &(s).seed, "SEED", "seed of the sampler (default -1: from the clock)", -1, 9e15}, \
    {"--temp", CLI_FLOAT, &(s).temp, "T", "default 0.8; 0 is greedy and deterministic", 0, 1e6},             \
    {"--top-k", CLI_INT, &(s).top_k, "K", "sample from the K likeliest (default 40; 0: all)", 0, 1 << 24},   \
    {"--top-p", CLI_FLOAT, &(s).top_p, "P",                                                                  \
     "sample from the likeliest tokens that together hold P (default 0.95; 1: off)", 0, 1},                  \
    {"--min-p", CLI_FLOAT, &(s).min_p, "P",                                                                  \
     "drop tokens less likely than P times the best (default 0.05; 0: off)", 0, 1},                          \
    {"--repeat-penalty", CLI_FLOAT, &(s).repeat_penalty, "X",                                                \
     "divide recent tokens' logits by X (default 1: off)", 1e-3, 1e3}
/* clang-format on */

void cli_sampling_defaults(struct cli_sampling *s); /* before options are read */
/* After it: a seed where none was given. */
void cli_sampling_seed(struct cli_sampling *s);
/* How many of the best logits decide every token, for n_top of a session; 0: all are needed. */
uint32_t cli_sampling_logits(const struct cli_sampling *s);
enum vkmoe_status cli_sampling_create(vkmoe_sampler **out, const struct cli_sampling *s,
                                      struct vkmoe_err *err);
/* Draws from the logits, or the best of them, that the session has. */
enum vkmoe_status cli_sample(vkmoe_sampler *sampler, const struct cli_engine *e, int32_t *token,
                             struct vkmoe_err *err);

#endif
