/* The routed experts of a layer as dispatches: who was chosen and where they stand, two steps, their sum. For
 * run/layer.c alone, which puts barriers between them. */
#ifndef RUN_MOE_H
#define RUN_MOE_H

#include "run/layer.h"

enum { RUN_GATE_UP, RUN_DOWN };

/* One token: all experts and their sum in two dispatches. Needs every matrix bound at once, and leaves no
 * outputs of single experts to be watched. */
bool run_moe_fuses(const struct run_graph *g, uint32_t layer);
/* Is what the shared expert adds scaled, in a dispatch of its own? */
bool run_moe_scales_shared(const struct run_graph *g, uint32_t layer);
/* Dispatches that one step takes: one with the array, else one per segment of the layer. */
uint32_t run_moe_dispatches(const struct run_pool *pool);
/* Dispatches of run_moe_quantise. */
uint32_t run_moe_quantised(const struct run_graph *g, uint32_t layer);

/* One token: the router's logits, its choice and where the experts chosen stand. Halts the submit when one is
 * absent; a partial step ends n_partial dispatches behind it. */
void run_moe_route_one(const struct run_graph *g, uint32_t layer, uint32_t n_partial);
/* Many tokens: the same behind the router. Behind it stand, in this order, the experts' two steps, the shared
 * expert's second one, and their sum. */
void run_moe_find_slots(const struct run_graph *g, uint32_t layer);
/* RUN_GATE_UP or RUN_DOWN of all experts chosen. */
void run_moe_step(const struct run_graph *g, uint32_t layer, int step);
/* One token: the second step of all experts, their sum into x, and the norm of x by w. */
void run_moe_down_and_norm(const struct run_graph *g, uint32_t layer, const struct run_matrix *w);
/* Rounds hidden activations of the experts and of the shared one for the second step, where that takes them
 * so; with the barrier behind it. */
void run_moe_quantise(const struct run_graph *g, uint32_t layer);
/* x += the sum of experts' outputs by their weights. */
void run_moe_combine(const struct run_graph *g);
/* What Easy-EP asks of the experts' outputs, for the host. */
void run_moe_show_sums(const struct run_graph *g, uint32_t layer);

#endif
