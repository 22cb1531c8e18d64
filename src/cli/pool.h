/* The expert pool as a user sees it: its size as typed, JSON, a line for people, the status line. */
#ifndef CLI_POOL_H
#define CLI_POOL_H

#include "cli/engine.h"

/* "12", "auto" or "all" to vkmoe_model_params.pool_bytes; NULL: auto. False: none of these. n: bytes of text
 * that count. */
bool cli_pool_bytes(const char *text, size_t n, uint64_t *bytes);

/* Says so when options for a small pool were given and every expert fits. */
void cli_pool_note(const struct cli_engine *e);
/* Device bytes of dense weights, pool, cache and activations. */
uint64_t cli_pool_device_bytes(const struct cli_engine *e);
double cli_pool_hit_rate(const struct vkmoe_pool_counts *c); /* negative: nothing was chosen */

/* `"pool": {...}, "memory": {...}` without a newline, to stdout. */
void cli_pool_json(const struct cli_engine *e);
/* "experts  207 slots of 378 ..." to stderr, and a warning when the pool has been of no use. key_width: of
 * the first word. */
void cli_pool_line(const struct cli_engine *e, int key_width);

/* ---- the status line: on a terminal, while tokens are generated, below the text */

struct cli_status {
    const struct cli_engine *e;
    bool on;          /* there is a terminal that can show it */
    bool below;       /* the text goes to the same terminal: the status has the line below it */
    unsigned columns; /* of the terminal */
    unsigned column;  /* of the text's cursor; columns: the next character begins a line */
    int more;         /* bytes that the last UTF-8 character still lacks */
    uint64_t start_ns, last_ns;
    int shown; /* characters on the screen; 0: none */
    char line[160];
};

/* text: tokens are printed to stdout while the line is shown. */
void cli_status_begin(struct cli_status *s, const struct cli_engine *e, bool text);
/* Text to stdout, with the status out of its way. */
void cli_status_text(struct cli_status *s, const char *bytes, size_t n);
/* After each token: brings the line up to date, ten times a second at most. */
void cli_status_step(struct cli_status *s, size_t n_decoded);
void cli_status_end(struct cli_status *s);

#endif
