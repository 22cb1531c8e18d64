#include "run/moe.h"

#include "run/dot.h"
#include "run/record.h"

_Static_assert(MDL_ACT_SILU == ACT_SILU && MDL_ACT_CLAMPED == ACT_CLAMPED, "act of SPEC_EXPERT");

#define DOWN_SUM_BINDINGS 5u /* of expert_down_sum before its segments */
#define EXPERT_BINDINGS   (DOWN_SUM_BINDINGS + RUN_MAX_SEGMENTS + 1)

static struct run_graph suited_experts(const struct run_graph *g, uint32_t layer, int step)
{
    const struct run_expert_layout *at = &g->model->pool.layout[layer];

    return step == RUN_GATE_UP ? run_suited(g, at->gate, at->up) : run_suited(g, at->down, at->down);
}

/* The module for a step of the experts. */
static enum gpu_kernel expert_kernel(const struct run_graph *g, int step)
{
    static const enum gpu_kernel tile[2][RUN_TILES][2] = {
        {{GPU_K_expert_gate_up_tile, GPU_K_expert_gate_up_tile_arr},
         {GPU_K_expert_gate_up_tile_ln, GPU_K_expert_gate_up_tile_ln_arr}},
        {{GPU_K_expert_down_tile, GPU_K_expert_down_tile_arr},
         {GPU_K_expert_down_tile_ln, GPU_K_expert_down_tile_ln_arr}}};
    static const enum gpu_kernel one[2][RUN_CORES][2] = {
        {{GPU_K_expert_gate_up, GPU_K_expert_gate_up_arr},
         {GPU_K_expert_gate_up_sg, GPU_K_expert_gate_up_sg_arr},
         {GPU_K_expert_gate_up_ln, GPU_K_expert_gate_up_ln_arr}},
        {{GPU_K_expert_down, GPU_K_expert_down_arr},
         {GPU_K_expert_down_sg, GPU_K_expert_down_sg_arr},
         {GPU_K_expert_down_ln, GPU_K_expert_down_ln_arr}}};
    static const enum gpu_kernel few[2][2][2] = {
        {{GPU_K_expert_gate_up_few, GPU_K_expert_gate_up_few_arr},
         {GPU_K_expert_gate_up_few_sg, GPU_K_expert_gate_up_few_sg_arr}},
        {{GPU_K_expert_down_few, GPU_K_expert_down_few_arr},
         {GPU_K_expert_down_few_sg, GPU_K_expert_down_few_sg_arr}}};
    bool array = g->model->pool.array;

    if (g->few)
        return few[step][variants_of(g)->core != RUN_CORE_SHARED][array];
    return g->many ? tile[step][variants_of(g)->tile][array] : one[step][variants_of(g)->core][array];
}

/* One token: is the layer's shared expert one more of its experts, in format and shape? */
static bool shared_is_alike(const struct run_graph *g, uint32_t layer)
{
    const struct run_expert_layout *at = &g->model->pool.layout[layer];
    const struct run_linear *up = &g->model->weights.layers[layer].shared_gate_up,
                            *down = &g->model->weights.layers[layer].shared_down;

    return config_of(g)->n_shared == 1 && mdl_shared_width(config_of(g)) == config_of(g)->ff_expert &&
           up->n == 1 && down->n == 1 && up->m[0].n_pieces == 1 && down->m[0].n_pieces == 1 &&
           up->m[0].type == at->gate && up->m[0].type == at->up && down->m[0].type == at->down;
}

bool run_moe_scales_shared(const struct run_graph *g, uint32_t layer)
{
    const struct run_layer_weights *w = &g->model->weights.layers[layer];

    return w->shared_gate_up.n && (w->shared_gate.n_src || config_of(g)->residual_scale > 0);
}

bool run_moe_fuses(const struct run_graph *g, uint32_t layer)
{
    const struct run_pool *pool = &g->model->pool;
    bool shared = config_of(g)->n_shared > 0;

    return !g->many && pool->array && !g->state->sums && !run_dot_takes_experts(g, layer) &&
           !(shared && run_moe_scales_shared(g, layer)) && (!shared || shared_is_alike(g, layer)) &&
           DOWN_SUM_BINDINGS + pool->n_segs + shared <= caps_of(g)->max_buffers;
}

static struct spec_expert expert_spec(const struct run_graph *g, uint32_t layer, int step)
{
    const struct mdl_config *c = config_of(g);
    const struct run_pool *pool = &g->model->pool;
    const struct run_expert_layout *at = &pool->layout[layer];
    uint32_t aligned =
        step == RUN_GATE_UP
            ? min32(run_alignment(at->gate, mdl_row_bytes(at->gate, c->dim), 0, pool->slot_bytes),
                    run_alignment(at->up, mdl_row_bytes(at->up, c->dim), at->up_off, pool->slot_bytes))
            : run_alignment(at->down, mdl_row_bytes(at->down, c->ff_expert), at->down_off, pool->slot_bytes);
    bool shared = c->n_shared && run_moe_fuses(g, layer);

    uint32_t k = step == RUN_GATE_UP ? c->dim : c->ff_expert;

    return (struct spec_expert){
        .wg = g->many ? tile_lanes(g, k) : row_lanes(g, k),
        .dim = c->dim,
        .ff = c->ff_expert,
        .n_experts = c->n_experts,
        .k_used = c->n_experts_used,
        .fmt_gate = at->gate,
        .fmt_up = at->up,
        .fmt_down = at->down,
        .up_off = at->up_off,
        .down_off = at->down_off,
        .slot_stride = pool->slot_bytes,
        .slots_per_seg = pool->slots_per_seg,
        .n_segs = pool->array ? pool->n_segs + shared : 1,
        .rows = g->many ? tile_rows(g) : matvec_rows(g),
        .aligned = aligned,
        .shared = shared,
        .eps_bits = cor_float_bits(c->rms_eps),
        .gate_bias = at->gate_bias,
        .up_bias = at->up_bias,
        .down_bias = at->down_bias,
        .act = c->act,
    };
}

uint32_t run_moe_dispatches(const struct run_pool *pool)
{
    return pool->array ? 1 : pool->segs_per_layer;
}

/* The layer's segments from `first` on, n of them, and behind them the shared expert's matrix of the step
 * where it is one more expert. Returns how many there are. */
static uint32_t bind_segments(const struct run_graph *g, uint32_t layer, int step, uint32_t first, uint32_t n,
                              struct gpu_bind *binds)
{
    const struct run_layer_weights *w = &g->model->weights.layers[layer];
    const struct run_linear *shared = step == RUN_GATE_UP ? &w->shared_gate_up : &w->shared_down;

    for (uint32_t i = 0; i < n; i++)
        binds[i] = whole(g->model->pool.segs[first + i]);
    if (shared->n && run_moe_fuses(g, layer))
        binds[n++] = weights(g, &shared->m[0].pieces[0]);
    return n;
}

static struct gpu_cost expert_cost(const struct run_graph *g, uint32_t layer, int step)
{
    const struct mdl_config *c = config_of(g);
    const struct run_expert_layout *at = &g->model->pool.layout[layer];
    const struct run_layer_weights *w = &g->model->weights.layers[layer];
    const struct run_matrix *m = step == RUN_GATE_UP ? &w->shared_gate_up.m[0] : &w->shared_down.m[0];
    struct gpu_cost sum =
        step == RUN_GATE_UP ? run_cost_gate_up(c, at, c->n_experts) : run_cost_down(c, at, c->n_experts);

    if (c->n_shared && run_moe_fuses(g, layer))
        sum = run_cost_sum(sum, run_cost_matrix(m->rows, m->cols, m->row_bytes, false, false));
    return sum;
}

/* A pair of token and rank is written by the dispatch of its expert's segment alone: no barriers between
 * them. */
void run_moe_step(const struct run_graph *graph, uint32_t layer, int step)
{
    const struct run_graph suited = suited_experts(graph, layer, step), *g = &suited;
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_pool *pool = &g->model->pool;
    const struct spec_expert spec = expert_spec(g, layer, step);
    uint32_t rows = step == RUN_GATE_UP ? c->ff_expert : c->dim, first, n, head = 0;
    struct gpu_bind binds[EXPERT_BINDINGS];
    const struct run_dim many[3] = {run_fixed(div_up(rows, spec.rows)), {DIM_DEVICE, 0}, DIM_1};
    const struct run_dim one[3] = {run_fixed(div_up(rows, spec.rows)),
                                   run_fixed(c->n_experts_used + spec.shared), DIM_1};

    if (run_dot_takes_experts(g, layer)) {
        run_dot_experts(g, layer, step == RUN_DOWN, act(g, step == RUN_GATE_UP ? &s->xq : &s->hq),
                        act(g, step == RUN_GATE_UP ? &s->h : &s->y));
        return;
    }
    binds[head++] = act(g, step == RUN_GATE_UP ? &s->xn : &s->h);
    binds[head++] = act(g, g->many ? &s->tiles : &s->run);
    if (g->many)
        binds[head++] = act(g, &s->pairs);
    binds[head++] = act(g, step == RUN_GATE_UP ? &s->h : &s->y);
    run_pool_segments(pool, layer, &first, &n);
    for (uint32_t d = 0; d < run_moe_dispatches(pool); d++) {
        const struct push_expert push = {.seg = first + d};
        uint32_t n_segs = bind_segments(g, layer, step, first + d, pool->array ? n : 1, binds + head);

        if (d == 0) /* a choice is in one segment */
            cost(g, expert_cost(g, layer, step));
        run_dispatch(g->prog, expert_kernel(g, step), &spec, sizeof(spec), n_segs, binds, head + n_segs,
                     &push, g->many ? many : one);
    }
}

void run_moe_down_and_norm(const struct run_graph *graph, uint32_t layer, const struct run_matrix *w)
{
    const struct run_graph suited = suited_experts(graph, layer, RUN_DOWN), *g = &suited;
    static const enum gpu_kernel kernels[RUN_CORES] = {GPU_K_expert_down_sum, GPU_K_expert_down_sum_sg,
                                                       GPU_K_expert_down_sum_ln};
    const struct run_state *s = g->state;
    const struct spec_expert spec = expert_spec(g, layer, RUN_DOWN);
    const struct push_down_sum push = {.n_groups = div_up(config_of(g)->dim, spec.rows)};
    const struct run_dim grid[3] = {run_fixed(push.n_groups), DIM_1, DIM_1};
    struct gpu_bind binds[EXPERT_BINDINGS] = {act(g, &s->h), act(g, &s->choice), act(g, &s->x),
                                              weights(g, &w->pieces[0]), act(g, &s->xn)};
    uint32_t first, n;

    run_pool_segments(&g->model->pool, layer, &first, &n);
    n = bind_segments(g, layer, RUN_DOWN, first, n, binds + DOWN_SUM_BINDINGS);
    cost(g, run_cost_sum(expert_cost(g, layer, RUN_DOWN), run_cost_norm(config_of(g), false)));
    run_dispatch(g->prog, kernels[variants_of(g)->core], &spec, sizeof(spec), n, binds, DOWN_SUM_BINDINGS + n,
                 &push, grid);
}

uint32_t run_moe_quantised(const struct run_graph *g, uint32_t layer)
{
    return run_dot_takes_experts(g, layer) + run_dot_takes(g, &g->model->weights.layers[layer].shared_down);
}

void run_moe_quantise(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;

    if (run_dot_takes_experts(g, layer))
        run_dot_quantise(g, act(g, &s->h), act(g, &s->hq), c->ff_expert, tokens(g),
                         run_fixed(c->n_experts_used));
    if (run_dot_takes(g, &g->model->weights.layers[layer].shared_down))
        run_dot_quantise(g, act(g, &s->hs), act(g, &s->hsq), mdl_shared_width(c), tokens(g), DIM_1);
    if (run_moe_quantised(g, layer))
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
}

void run_moe_find_slots(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_pool *pool = &g->model->pool;
    const struct spec_resolve spec = {.wg = lanes(g), .n_experts = c->n_experts, .k_used = c->n_experts_used};
    uint32_t next = g->prog->n_dispatches + 1, per_step = run_moe_dispatches(pool);
    uint32_t gap = run_moe_quantised(g, layer);
    uint32_t after = next + 2 * per_step + gap + pieces_of(&g->model->weights.layers[layer].shared_down);
    const struct push_group push = {
        .layer = layer, .next = next, .after = after, .tiles0 = next, .n_tiles = 2 * per_step, .gap = gap};
    const struct gpu_bind binds[] = {whole(s->state),      act(g, &s->sel),   whole(pool->table),
                                     act(g, &s->tiles),    act(g, &s->pairs), whole(s->mailbox),
                                     whole(g->prog->args), whole(s->routes)};

    PUT(g, GPU_K_group, spec, binds, push, DIM_1, DIM_1, DIM_1);
}

void run_moe_route_one(const struct run_graph *graph, uint32_t layer, uint32_t n_partial)
{
    const enum mdl_type type = graph->model->weights.layers[layer].router.type;
    const struct run_graph suited = run_suited(graph, type, type), *g = &suited;
    static const enum gpu_kernel kernels[RUN_CORES] = {GPU_K_router_one, GPU_K_router_one_sg,
                                                       GPU_K_router_one_ln};
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_matrix *m = &g->model->weights.layers[layer].router;
    const struct spec_router_one spec = {
        .wg = row_lanes(g, m->cols),
        .n_experts = c->n_experts,
        .k_used = c->n_experts_used,
        .norm = c->norm_topk,
        .scale_bits = cor_float_bits(c->expert_scale),
        .k = m->cols,
        .format = m->type,
        .row_bytes = (uint32_t)m->row_bytes,
        .rows = matvec_rows(g),
        .aligned = run_alignment(m->type, m->row_bytes, 0, 0),
        .bias_at = s->bias_at,
    };
    const uint32_t next = g->prog->n_dispatches + m->n_pieces;

    for (uint32_t i = 0; i < m->n_pieces; i++) {
        const struct run_piece *p = &m->pieces[i];
        const struct push_router push = {p->row0, p->n_rows, groups_of(g, m), layer, next, next + n_partial};
        const struct gpu_bind binds[] = {
            act(g, &s->xn),     weights(g, p),     whole(s->state),      whole(g->model->pool.table),
            act(g, &s->choice), whole(s->mailbox), whole(g->prog->args), whole(s->routes)};
        struct run_dim grid[3];

        spread(g, div_up(p->n_rows, spec.rows), grid);
        cost(g, run_cost_matrix(p->n_rows, m->cols, m->row_bytes, false, false));
        PUT(g, kernels[variants_of(g)->core], spec, binds, push, grid[0], DIM_1, grid[2]);
    }
}

void run_moe_combine(const struct run_graph *g)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct spec_combine spec = {
        .wg = lanes(g), .dim = c->dim, .k_used = c->n_experts_used, .shared = c->n_shared > 0};
    const struct gpu_bind binds[] = {act(g, g->many ? &s->sel : &s->chosen), act(g, &s->y), act(g, &s->ys),
                                     act(g, &s->x)};

    cost(g, run_cost_words((c->n_experts_used + 2ull + (c->n_shared > 0)) * c->dim,
                           (2ull * c->n_experts_used + 1) * c->dim, false));
    PUT(g, GPU_K_combine, spec, binds, no_push, run_fixed(div_up(c->dim, lanes(g))), tokens(g), DIM_1);
}

void run_moe_show_sums(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct spec_expert_sums spec = {
        .wg = lanes(g), .dim = c->dim, .k_used = c->n_experts_used, .shared = c->n_shared > 0};
    const struct push_rows push = {.dst_row0 = layer * s->chunk};
    const struct gpu_bind binds[] = {act(g, g->many ? &s->sel : &s->chosen), act(g, &s->xn), act(g, &s->y),
                                     act(g, &s->ys), whole(s->sums)};

    PUT(g, GPU_K_expert_sums, spec, binds, push, DIM_1, tokens(g), DIM_1);
}
