/* The forward pass as a readable list of dispatches and barriers, for one token and for many.
 * Owns the order of the mathematics; kernels are in shaders/, memory in state.h, weights.h and pool.h. */
#ifndef RUN_LAYER_H
#define RUN_LAYER_H

#include "run/program.h"
#include "run/state.h"

struct run_graph {
    struct run_program *prog;
    const struct run_model *model;
    const struct run_state *state;
    struct run_variants variants; /* the model's, or what its formats leave of them: run_suited */
    bool few;  /* with many: chunks of at most RUN_FEW tokens (mat-vec of several) */
    bool many; /* a chunk of tokens (mat-mul, expert tiles), else one token (mat-vec) */
    /* Layers are the outer loop and chunks the inner one: every part takes the chunk's residual stream from
     * that of the whole text and puts it back. */
    bool by_layer;
};

/* Each records one part. Before a: the norm of the residual stream stands in xn (one token), or a begins with
 * it (many). c begins with what may halt, and may be submitted again from there. */
void run_record_embed(const struct run_graph *g);
void run_record_keys(const struct run_graph *g, uint32_t layer);      /* a: q; k and v into the cache */
void run_record_attention(const struct run_graph *g, uint32_t layer); /* b: from q to the router */
void run_record_experts(const struct run_graph *g, uint32_t layer);   /* c */
/* Many: the row of the chunk that the step names by its position becomes the first, in what b reads. Then b,
 * c and the head may run for that row alone. */
void run_record_last(const struct run_graph *g);
/* Output head for the rows [row0, row0 + n_rows) of the step: one row, or up to state->n_rows (all). */
void run_record_head(const struct run_graph *g, bool all);

/* Parts of a program in this order: embed, then keys, attention and experts of each layer, then the head. */
#define RUN_LAYER_PARTS 3u
static inline uint32_t run_part_keys(uint32_t layer)
{
    return 1 + RUN_LAYER_PARTS * layer;
}
static inline uint32_t run_part_attention(uint32_t layer)
{
    return 2 + RUN_LAYER_PARTS * layer;
}
static inline uint32_t run_part_experts(uint32_t layer)
{
    return 3 + RUN_LAYER_PARTS * layer;
}
/* Of any part but embed; of the head: the number of layers. */
static inline uint32_t run_layer_of(uint32_t part)
{
    return (part - 1) / RUN_LAYER_PARTS;
}

/* Upper bound of the dispatches that the whole pass records. */
uint32_t run_count_dispatches(const struct run_model *m);

#endif
