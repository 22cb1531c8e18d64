/* --fast-math: matrices of Q8_0 and Q4_0 times activations rounded to 8 bits, block by block. Records
 * these kernels (variants.h cuts them); the order of the pass is in layer.c. */
#ifndef RUN_DOT_H
#define RUN_DOT_H

#include "run/layer.h"

/* Whether the session rounds and kernels take this: every matrix of a linear, all three of a layer's experts.
 * Else the exact kernels run. */
bool run_dot_takes(const struct run_graph *g, const struct run_linear *l);
bool run_dot_takes_experts(const struct run_graph *g, uint32_t layer);

/* Rows of k floats, one behind the other, from in to out; rows: y times z of the grid. */
void run_dot_quantise(const struct run_graph *g, struct gpu_bind in, struct gpu_bind out, uint32_t k,
                      struct run_dim y, struct run_dim z);

struct run_dot_use {
    struct gpu_bind in, out;              /* in: quantised rows */
    uint32_t n_out;                       /* elements between rows of out */
    bool add, many, count_rows, out_rows; /* as in layer.c */
};

void run_dot_linear(const struct run_graph *g, const struct run_linear *l, const struct run_dot_use *u);

/* One step of a layer's experts: gate and up from `in`, or down. One dispatch with the array of segments,
 * else one per segment of the layer. */
void run_dot_experts(const struct run_graph *g, uint32_t layer, bool down, struct gpu_bind in,
                     struct gpu_bind out);

#endif
