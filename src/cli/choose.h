/* The option --experts: which experts may be chosen, from text to subsets and document pools, and what came
 * of it as JSON and for people. */
#ifndef CLI_CHOOSE_H
#define CLI_CHOOSE_H

#include "cli/cli.h"
#include "vkmoe.h"

enum { CLI_SUBSETS = 16 };

struct cli_choice { /* from zero; cli_choice_close */
    const char *files[CLI_SUBSETS];
    vkmoe_subset *subsets[CLI_SUBSETS];
    uint64_t at[CLI_SUBSETS]; /* decoded tokens after which the subset takes over; 0 of the first */
    uint32_t n, now;
    char *text;   /* owns the names */
    uint32_t doc; /* experts of a document pool; 0: none */
};

/* "all" or NULL, "doc:N", or "FILE" and more of ",FILE@TOKENS" with rising numbers. Reads the files. */
enum vkmoe_status cli_choice_open(struct cli_choice *c, const char *text, struct vkmoe_err *err);
void cli_choice_close(struct cli_choice *c);
/* All of them, or one of several subsets. */
bool cli_choice_some(const struct cli_choice *c);
/* Before decoded token `n` is fed: takes the subset whose turn it is. */
enum vkmoe_status cli_choice_step(struct cli_choice *c, vkmoe_session *ses, uint64_t n,
                                  struct vkmoe_err *err);

/* `"experts": {...}` without a newline, to stdout. */
void cli_choice_json(const struct cli_choice *c, const vkmoe_model *m, const vkmoe_session *ses);
/* A line to stderr where not all may be chosen. key_width: of its first word. */
void cli_choice_line(const struct cli_choice *c, const vkmoe_model *m, const vkmoe_session *ses,
                     int key_width);

#endif
