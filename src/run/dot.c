#include "run/dot.h"

#include "run/record.h"

#define BLOCK 32u

/* The session allows rounding, and it pays: with rows on lanes one token is faster by the exact kernels,
 * which are fused (docs/SPEED.md). */
static bool wanted(const struct run_graph *g)
{
    return g->state->fast_math && (g->many || g->variants.core != RUN_CORE_LANES);
}

bool run_dot_takes(const struct run_graph *g, const struct run_linear *l)
{
    for (uint32_t i = 0; i < l->n; i++)
        if (!run_dot_fits(l->m[i].type, l->m[i].cols))
            return false;
    return wanted(g) && l->n;
}

bool run_dot_takes_experts(const struct run_graph *g, uint32_t layer)
{
    const struct run_expert_layout *at = &g->model->pool.layout[layer];
    const struct mdl_config *c = &g->model->mdl->config;

    return wanted(g) && !at->gate_bias && c->act == MDL_ACT_SILU && at->gate == at->up &&
           at->gate == at->down && run_dot_fits(at->gate, c->dim) && run_dot_fits(at->down, c->ff_expert);
}

void run_dot_quantise(const struct run_graph *g, struct gpu_bind in, struct gpu_bind out, uint32_t k,
                      struct run_dim y, struct run_dim z)
{
    const struct push_none push = {0};
    const struct spec_quant_x spec = {.wg = run_few_lanes(caps_of(g)), .k = k, .k_stride = k};
    const struct gpu_bind binds[] = {in, out};
    const struct run_dim grid[3] = {run_fixed(div_up(k / BLOCK, spec.wg)), y, z};
    const struct gpu_cost cost = run_cost_words((uint64_t)k * (z.mode == DIM_FIXED ? z.a : 1) * 21 / 16, 0,
                                                y.mode == DIM_ROWS); /* 1.25 bytes out for 4 in */

    run_cost(g->prog, &cost);
    run_dispatch(g->prog, GPU_K_quant_x, &spec, sizeof(spec), 1, binds, COR_COUNT(binds), &push, grid);
}

/* The module with the device's dot product, else with subgroup operations, else the base. Where dot products
 * are taken apart the others do it better, but for narrow devices, which compile them faster. */
static enum gpu_kernel best(const struct run_graph *g, enum gpu_kernel hw, enum gpu_kernel sg,
                            enum gpu_kernel base)
{
    const struct gpu_caps *caps = caps_of(g);

    if (gpu_kernel_usable(g->model->dev, hw) && (caps->dot8_fast || caps->subgroup_size <= RUN_NARROW))
        return hw;
    return gpu_kernel_usable(g->model->dev, sg) ? sg : base;
}

/* Bytes by which k inputs are smaller than as floats. */
static uint64_t rounded_less(uint64_t k)
{
    return 4 * k - k / BLOCK * 40;
}

static void matrix_piece(const struct run_graph *g, const struct run_matrix *m, const struct run_piece *p,
                         uint32_t out0, const struct run_dot_use *u)
{
    const struct run_dot_cut cut = run_dot_cut(caps_of(g), m->cols, m->row_bytes % 16 == 0, u->many);
    const struct spec_mat_dot spec = {
        .wg = cut.wg,
        .k = m->cols,
        .n_out = u->n_out,
        .format = m->type,
        .row_bytes = (uint32_t)m->row_bytes,
        .add = u->add,
        .rows = cut.rows,
        .many = u->many,
        .count_rows = u->count_rows,
        .lanes = cut.lanes,
        .blocks = cut.blocks,
        .tokens = cut.tokens,
        .wide = cut.wide,
    };
    const struct push_mat push = {.out0 = out0 + p->row0, .n_rows = p->n_rows, .w_off = 0};
    const struct gpu_bind binds[] = {
        {.buf = g->state->state}, u->in, run_arena_bind(&g->model->weights.arena, &p->region), u->out};
    uint32_t groups = div_up(p->n_rows, cut.rows), z = div_up(groups, caps_of(g)->max_groups);
    const struct run_dim grid[3] = {
        run_fixed(div_up(groups, z)),
        u->many ? run_per(u->count_rows ? DIM_ROWS : DIM_TOKENS, cut.tokens) : DIM_1, run_fixed(z)};
    struct gpu_cost cost = run_cost_matrix(p->n_rows, m->cols, m->row_bytes, u->add, u->out_rows);

    cost.activations -= rounded_less(m->cols);
    run_cost(g->prog, &cost);
    run_dispatch(g->prog, best(g, GPU_K_matvec_dot_hw, GPU_K_matvec_dot_sg, GPU_K_matvec_dot), &spec,
                 sizeof(spec), 1, binds, COR_COUNT(binds), &push, grid);
}

void run_dot_linear(const struct run_graph *g, const struct run_linear *l, const struct run_dot_use *u)
{
    uint32_t out0 = 0;

    for (uint32_t i = 0; i < l->n; i++) {
        for (uint32_t j = 0; j < l->m[i].n_pieces; j++)
            matrix_piece(g, &l->m[i], &l->m[i].pieces[j], out0, u);
        out0 += l->m[i].rows;
    }
}

static enum gpu_kernel expert_kernel(const struct run_graph *g, bool down)
{
    if (g->model->pool.array)
        return down ? best(g, GPU_K_expert_down_dot_hw, GPU_K_expert_down_dot_sg_arr,
                           GPU_K_expert_down_dot_arr)
                    : best(g, GPU_K_expert_gate_up_dot_hw, GPU_K_expert_gate_up_dot_sg_arr,
                           GPU_K_expert_gate_up_dot_arr);
    return down ? best(g, GPU_K_expert_down_dot_sg, GPU_K_expert_down_dot_sg, GPU_K_expert_down_dot)
                : best(g, GPU_K_expert_gate_up_dot_sg, GPU_K_expert_gate_up_dot_sg, GPU_K_expert_gate_up_dot);
}

static struct spec_expert_dot expert_spec(const struct run_graph *g, uint32_t layer, bool down)
{
    const struct mdl_config *c = &g->model->mdl->config;
    const struct run_pool *pool = &g->model->pool;
    const struct run_expert_layout *at = &pool->layout[layer];
    uint32_t k = down ? c->ff_expert : c->dim;
    bool aligned = mdl_row_bytes(at->gate, k) % 16 == 0 && at->up_off % 16 == 0 && at->down_off % 16 == 0 &&
                   pool->slot_bytes % 16 == 0;
    const struct run_dot_cut cut = run_dot_cut(caps_of(g), k, aligned, g->many);

    return (struct spec_expert_dot){
        .wg = cut.wg,
        .dim = c->dim,
        .ff = c->ff_expert,
        .k_used = c->n_experts_used,
        .format = at->gate,
        .up_off = at->up_off,
        .down_off = at->down_off,
        .slot_stride = pool->slot_bytes,
        .slots_per_seg = pool->slots_per_seg,
        .n_segs = pool->array ? pool->n_segs : 1,
        .rows = cut.rows,
        .many = g->many,
        .lanes = cut.lanes,
        .blocks = cut.blocks,
        .tokens = cut.tokens,
        .wide = cut.wide,
    };
}

void run_dot_experts(const struct run_graph *g, uint32_t layer, bool down, struct gpu_bind in,
                     struct gpu_bind out)
{
    const struct mdl_config *c = &g->model->mdl->config;
    const struct run_state *s = g->state;
    const struct run_pool *pool = &g->model->pool;
    const struct spec_expert_dot spec = expert_spec(g, layer, down);
    uint32_t rows = down ? c->dim : c->ff_expert, first, n, head = 0;
    struct gpu_bind binds[RUN_EXPERT_BINDINGS + RUN_MAX_SEGMENTS];
    const struct run_dim grid[3] = {run_fixed(div_up(rows, spec.rows)),
                                    g->many ? run_per(DIM_DEVICE, 0) : run_fixed(c->n_experts_used), DIM_1};

    struct gpu_cost cost = down ? run_cost_down(c, &pool->layout[layer], c->n_experts)
                                : run_cost_gate_up(c, &pool->layout[layer], c->n_experts);

    cost.activations -= down ? c->n_experts_used * rounded_less(c->ff_expert) : rounded_less(c->dim);
    binds[head++] = in;
    binds[head++] = run_arena_bind(&s->act, g->many ? &s->tiles : &s->run);
    binds[head++] = run_arena_bind(&s->act, g->many ? &s->pairs : &s->run);
    binds[head++] = out;
    run_pool_segments(pool, layer, &first, &n);
    for (uint32_t d = 0; d < (pool->array ? 1 : pool->segs_per_layer); d++) {
        const struct push_expert push = {.seg = first + d};
        uint32_t n_segs = pool->array ? n : 1;

        for (uint32_t i = 0; i < n_segs; i++)
            binds[head + i] = (struct gpu_bind){.buf = pool->segs[first + d + i]};
        if (d == 0) /* a choice is in one segment */
            run_cost(g->prog, &cost);
        run_dispatch(g->prog, expert_kernel(g, down), &spec, sizeof(spec), n_segs, binds, head + n_segs,
                     &push, grid);
    }
}
