#include "run/cost.h"

#include "model/quant.h"

struct gpu_cost run_cost_words(uint64_t n, uint64_t m, bool count_rows)
{
    return (struct gpu_cost){.activations = 4 * n, .flops = m, .rows = count_rows};
}

struct gpu_cost run_cost_matrix(uint64_t rows, uint64_t cols, uint64_t row_bytes, bool add, bool count_rows)
{
    return (struct gpu_cost){.weights = rows * row_bytes,
                             .weights_most = rows * row_bytes,
                             .activations = 4 * (cols + (add ? 2 : 1) * rows),
                             .flops = 2 * rows * cols,
                             .rows = count_rows};
}

struct gpu_cost run_cost_norm(const struct mdl_config *c, bool count_rows)
{
    return (struct gpu_cost){.weights = 4ull * c->dim,
                             .weights_most = 4ull * c->dim,
                             .activations = 8ull * c->dim,
                             .flops = 4ull * c->dim,
                             .rows = count_rows};
}

struct gpu_cost run_cost_embed(const struct mdl_config *c, uint64_t row_bytes)
{
    return (struct gpu_cost){
        .weights = row_bytes, .weights_most = row_bytes * c->vocab_size, .activations = 4ull * c->dim};
}

struct gpu_cost run_cost_rope(const struct mdl_config *c, uint64_t cached)
{
    const uint64_t q = (uint64_t)c->n_heads * c->head_dim, kv = (uint64_t)c->n_kv_heads * c->head_dim;

    return (struct gpu_cost){.activations = 4 * (2 * q + 2 * kv + c->n_rot) + cached, .flops = 3 * (q + kv)};
}

struct gpu_cost run_cost_attention(const struct mdl_config *c, uint64_t cached)
{
    const uint64_t q = (uint64_t)c->n_heads * c->head_dim;

    return (struct gpu_cost){.activations = 8 * q, .cache = cached, .flops_cache = 4 * q + 4ull * c->n_heads};
}

/* A token reads the matrices of its experts, a chunk at most those of all. */
static struct gpu_cost expert_matrices(const struct mdl_config *c, uint64_t bytes, uint32_t n_allowed)
{
    return (struct gpu_cost){.weights = c->n_experts_used * bytes, .weights_most = n_allowed * bytes};
}

struct gpu_cost run_cost_gate_up(const struct mdl_config *c, const struct run_expert_layout *at,
                                 uint32_t n_allowed)
{
    const uint64_t k = c->n_experts_used, ff = c->ff_expert;
    struct gpu_cost cost =
        expert_matrices(c, ff * (mdl_row_bytes(at->gate, c->dim) + mdl_row_bytes(at->up, c->dim)), n_allowed);

    cost.activations = 4 * (c->dim + k * ff);
    cost.flops = k * ff * (4ull * c->dim + 5);
    return cost;
}

struct gpu_cost run_cost_down(const struct mdl_config *c, const struct run_expert_layout *at,
                              uint32_t n_allowed)
{
    const uint64_t k = c->n_experts_used, ff = c->ff_expert;
    struct gpu_cost cost = expert_matrices(c, c->dim * mdl_row_bytes(at->down, ff), n_allowed);

    cost.activations = 4 * k * (ff + c->dim);
    cost.flops = 2 * k * ff * c->dim;
    return cost;
}

struct gpu_cost run_cost_sum(struct gpu_cost a, struct gpu_cost b)
{
    a.weights += b.weights;
    a.weights_most += b.weights_most;
    a.activations += b.activations;
    a.cache += b.cache;
    a.flops += b.flops;
    a.flops_cache += b.flops_cache;
    return a;
}
