/* What dispatches of the pass read, write and compute, from shapes alone; sums of these stand for fused ones.
 * Every byte counts once per dispatch. Small words (choices, slots, arguments) are left out. */
#ifndef RUN_COST_H
#define RUN_COST_H

#include "gpu/commands.h"
#include "model/config.h"
#include "run/pool.h"

/* y = or += W x for rows matrix rows. count_rows: rows of the output head, else tokens. */
struct gpu_cost run_cost_matrix(uint64_t rows, uint64_t cols, uint64_t row_bytes, bool add, bool count_rows);
struct gpu_cost run_cost_norm(const struct mdl_config *c, bool count_rows);
struct gpu_cost run_cost_embed(const struct mdl_config *c, uint64_t row_bytes);
/* cached: bytes of one position's keys and values in the cache. */
struct gpu_cost run_cost_rope(const struct mdl_config *c, uint64_t cached);
struct gpu_cost run_cost_attention(const struct mdl_config *c, uint64_t cached);
/* Routed experts of one layer, n_allowed of which may be chosen: gate, up and their product; down. */
struct gpu_cost run_cost_gate_up(const struct mdl_config *c, const struct run_expert_layout *at,
                                 uint32_t n_allowed);
struct gpu_cost run_cost_down(const struct mdl_config *c, const struct run_expert_layout *at,
                              uint32_t n_allowed);
/* n words read and written in all per token (or row), m operations. */
struct gpu_cost run_cost_words(uint64_t n, uint64_t m, bool count_rows);

/* Of a dispatch that does both; of one kind of token. */
struct gpu_cost run_cost_sum(struct gpu_cost a, struct gpu_cost b);

#endif
