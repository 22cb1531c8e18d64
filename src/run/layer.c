#include "run/layer.h"

#include <math.h>

#include "run/dot.h"
#include "run/moe.h"
#include "run/record.h"

/* ---- pieces of the pass
 * ------------------------------------------------------------------------------------ */

/* Workgroup and kernel of a norm. One token: those of the kernels that compute the next norm themselves,
 * behind rows of k elements, so that it has the same bits with and without them. */
static uint32_t norm_lanes(const struct run_graph *g)
{
    const struct mdl_config *c = config_of(g);

    return g->many ? lanes(g) : row_lanes(g, c->ff_expert ? c->ff_expert : c->ff_dense);
}

static enum gpu_kernel norm_kernel(const struct run_graph *g)
{
    if (g->many)
        return pick(g, GPU_K_rmsnorm, GPU_K_rmsnorm_sg);
    return variants_of(g)->core == RUN_CORE_SUBGROUP ? GPU_K_rmsnorm_sg : GPU_K_rmsnorm;
}

static void norm(const struct run_graph *g, const struct run_matrix *w, bool from_row0, struct run_dim rows)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct spec_rmsnorm spec = {
        .wg = norm_lanes(g), .dim = c->dim, .eps_bits = cor_float_bits(c->rms_eps), .from_row0 = from_row0};
    const struct gpu_bind binds[] = {whole(s->state), act(g, &s->x), weights(g, &w->pieces[0]),
                                     act(g, &s->xn)};

    cost(g, run_cost_norm(c, from_row0));
    PUT(g, norm_kernel(g), spec, binds, no_push, DIM_1, rows, DIM_1);
}

/* Of the layer's attention; behind the last layer that of the output head. */
static const struct run_matrix *norm_before(const struct run_graph *g, uint32_t layer)
{
    const struct run_weights *w = &g->model->weights;

    return layer < w->n_layers ? &w->layers[layer].attn_norm : &w->out_norm;
}

/* y = factor * y + list, rows of n elements in place. One token: rows is DIM_1. */
static void scale_add(const struct run_graph *g, struct gpu_bind y, uint32_t n, float factor,
                      const struct run_matrix *list, struct run_dim rows)
{
    const bool bias = list && list->n_src;
    const struct spec_scale_add spec = {
        .wg = lanes(g), .n = n, .scale_bits = cor_float_bits(factor), .bias = bias};
    const struct gpu_bind binds[] = {y, bias ? weights(g, &list->pieces[0]) : y};

    cost(g, run_cost_words((2ull + bias) * n, (1ull + bias) * n, rows.mode == DIM_ROWS));
    PUT(g, GPU_K_scale_add, spec, binds, no_push, run_fixed(div_up(n, lanes(g))), rows, DIM_1);
}

struct mat_use {
    struct gpu_bind in, out;
    uint32_t k_stride, n_out;  /* elements between rows */
    bool add;                  /* out += */
    bool many;                 /* mat-mul over rows, else mat-vec */
    bool count_rows;           /* rows of the output head, else tokens */
    bool out_rows;             /* the output head, for its cost */
    bool as_expert;            /* the same bits as where the matrix is one more expert's: none by texels */
    struct gpu_bind quantised; /* `in` for run/dot.h, where that takes the matrices */
};

static void matrix_piece(const struct run_graph *graph, const struct run_matrix *m, const struct run_piece *p,
                         uint32_t out0, const struct mat_use *u)
{
    struct run_graph suited = run_suited(graph, m->type, m->type), *g = &suited;

    suited.variants.texels &= !u->as_expert;
    const struct spec_mat spec = {
        .wg = u->many ? tile_lanes(g, m->cols) : row_lanes(g, m->cols),
        .k = m->cols,
        .n_out = u->n_out,
        .k_stride = u->k_stride,
        .format = m->type,
        .row_bytes = (uint32_t)m->row_bytes,
        .add = u->add,
        .rows = u->many ? tile_rows(g) : piece_rows(g, m, p),
        .aligned = run_alignment(m->type, m->row_bytes, 0, 0),
        .count_rows = u->count_rows,
    };
    const struct push_mat push = {.out0 = out0 + p->row0, .n_rows = p->n_rows, .w_off = 0};
    struct run_dim grid[3];

    spread(g, div_up(p->n_rows, spec.rows), grid);
    cost(g, run_cost_matrix(p->n_rows, m->cols, m->row_bytes, u->add, u->out_rows));
    if (u->many) {
        const struct gpu_bind binds[] = {whole(g->state->state), u->in, weights(g, p), u->out};

        grid[1] = run_per(u->count_rows ? DIM_ROWS : DIM_TOKENS, g->few ? RUN_FEW : TILE_TOKENS);
        run_dispatch(g->prog, matmul_kernel(g), &spec, sizeof(spec), 1, binds, COR_COUNT(binds), &push, grid);
    } else {
        const struct gpu_bind binds[] = {u->in, weights(g, p), u->out};

        grid[1] = DIM_1;
        run_dispatch(g->prog, piece_kernel(g, m, p), &spec, sizeof(spec), 1, binds, COR_COUNT(binds), &push,
                     grid);
    }
}

/* Matrices and pieces write rows of their own in the same output: nothing to wait for between them. */
static void linear(const struct run_graph *g, const struct run_linear *l, const struct mat_use *u)
{
    const struct run_dot_use dot = {u->quantised, u->out,        u->n_out,   u->add,
                                    u->many,      u->count_rows, u->out_rows};
    uint32_t out0 = 0;

    if (run_dot_takes(g, l)) {
        run_dot_linear(g, l, &dot);
        return;
    }
    for (uint32_t i = 0; i < l->n; i++) {
        for (uint32_t j = 0; j < l->m[i].n_pieces; j++)
            matrix_piece(g, &l->m[i], &l->m[i].pieces[j], out0, u);
        out0 += l->m[i].rows;
    }
}

/* Rounds rows of k floats, one per token or rows of the head, for linears that take them so. */
static void quantise(const struct run_graph *g, bool taken, const struct run_region *in,
                     const struct run_region *out, uint32_t k, struct run_dim rows)
{
    if (!taken)
        return;
    run_dot_quantise(g, act(g, in), act(g, out), k, rows, DIM_1);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
}

/* One token: x += matrix times in, and the norm of x. */
static void add_and_norm(const struct run_graph *graph, const struct run_matrix *m, struct gpu_bind in,
                         const struct run_matrix *w)
{
    const struct run_graph suited = run_suited(graph, m->type, m->type), *g = &suited;
    static const enum gpu_kernel kernels[RUN_CORES] = {GPU_K_matvec_norm, GPU_K_matvec_norm_sg,
                                                       GPU_K_matvec_norm_ln};
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    struct spec_mat_norm spec = {
        .wg = row_lanes(g, m->cols),
        .k = m->cols,
        .dim = c->dim,
        .format = m->type,
        .row_bytes = (uint32_t)m->row_bytes,
        .aligned = run_alignment(m->type, m->row_bytes, 0, 0),
        .eps_bits = cor_float_bits(c->rms_eps),
    };

    for (uint32_t i = 0; i < m->n_pieces; i++) {
        const struct run_piece *p = &m->pieces[i];
        struct gpu_cost spent;
        const struct push_mat_norm push = {p->row0, p->n_rows, 0, groups_of(g, m)};
        const struct gpu_bind binds[] = {
            in, weights(g, p), act(g, &s->x), weights(g, &w->pieces[0]), act(g, &s->xn), act(g, &s->counts)};
        struct run_dim grid[3];

        spec.rows = piece_rows(g, m, p);
        spread(g, div_up(p->n_rows, spec.rows), grid);
        spent = run_cost_matrix(p->n_rows, m->cols, m->row_bytes, true, false);
        cost(g, i ? spent : run_cost_sum(spent, run_cost_norm(c, false)));
        PUT(g, by_texels(g, m, p) ? GPU_K_matvec_norm_tx : kernels[variants_of(g)->core], spec, binds, push,
            grid[0], DIM_1, grid[2]);
    }
}

/* Biases and norms of queries, keys and values, where the model has them. */
static void finish_qkv(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_layer_weights *w = &g->model->weights.layers[layer];
    const uint32_t n_q = c->n_heads * c->head_dim, n_kv = c->n_kv_heads * c->head_dim;
    const bool rows = c->qk_norm == MDL_QK_NORM_ROW;
    const struct spec_qk_norm spec = {.wg = rows ? lanes(g) : few_lanes(g),
                                      .n_q = n_q,
                                      .n_kv = n_kv,
                                      .len_q = rows ? n_q : c->head_dim,
                                      .len_kv = rows ? n_kv : c->head_dim,
                                      .eps_bits = cor_float_bits(c->rms_eps)};

    if (w->qkv_bias.n_src) {
        scale_add(g, act(g, &g->state->qkv), w->qkv.n_out, 1, &w->qkv_bias, tokens(g));
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    if (w->qk_norm.n_src) {
        const struct gpu_bind binds[] = {act(g, &g->state->qkv), weights(g, &w->qk_norm.pieces[0])};

        cost(g, run_cost_words(3ull * (n_q + n_kv), 4ull * (n_q + n_kv), false));
        PUT(g, GPU_K_qk_norm, spec, binds, no_push, run_fixed(n_q / spec.len_q + n_kv / spec.len_kv),
            tokens(g), DIM_1);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
}

static void rope_and_store(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct spec_rope spec = {
        .wg = lanes(g),
        .head_dim = c->head_dim,
        .n_heads = c->n_heads,
        .n_kv = c->n_kv_heads,
        .n_rot = c->n_rot,
        .neox = c->rope == MDL_ROPE_NEOX,
        .k_cache = s->k_type,
        .v_cache = s->v_type,
    };
    const struct gpu_bind binds[] = {whole(s->state),
                                     act(g, &s->qkv),
                                     act(g, &s->qr),
                                     run_arena_bind(&s->kv_arena, &s->kv[layer].k),
                                     run_arena_bind(&s->kv_arena, &s->kv[layer].v),
                                     act(g, &s->rope)};
    uint32_t words = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim / 2;

    cost(g, run_cost_rope(c, cached(g)));
    PUT(g, GPU_K_rope_kv, spec, binds, no_push, run_fixed(div_up(words, lanes(g))), tokens(g), DIM_1);
}

static void attention(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_layer_weights *w = &g->model->weights.layers[layer];
    bool on_lanes = variants_of(g)->tile == RUN_TILE_LANES && c->head_dim % 8 == 0 &&
                    s->k_type != MDL_Q8_0 && s->v_type != MDL_Q8_0;
    const struct spec_attn spec = {
        .wg = !g->many   ? lanes(g)
              : on_lanes ? caps_of(g)->subgroup_size
                         : TILE_WG,
        .head_dim = c->head_dim,
        .n_heads = c->n_heads,
        .n_kv = c->n_kv_heads,
        .scale_bits = cor_float_bits(c->attn_scale > 0 ? c->attn_scale : (float)(1.0 / sqrt(c->head_dim))),
        .k_cache = s->k_type,
        .v_cache = s->v_type,
        .n_splits = s->n_splits,
        .window = mdl_window(c, layer),
        .sinks = w->sinks.n_src > 0,
    };
    const struct gpu_bind k = run_arena_bind(&s->kv_arena, &s->kv[layer].k),
                          v = run_arena_bind(&s->kv_arena, &s->kv[layer].v);
    const struct gpu_bind q = act(g, &s->qr), sinks = list_or(g, &w->sinks, q);
    const struct gpu_bind many[] = {whole(s->state), q, k, v, act(g, &s->att), sinks};
    const struct gpu_bind one[] = {whole(s->state),    q,    k, v, act(g, &s->part), act(g, &s->att),
                                   act(g, &s->counts), sinks};

    cost(g, run_cost_attention(c, cached(g)));
    if (g->many)
        PUT(g, on_lanes ? GPU_K_attn_many_ln : GPU_K_attn_many, spec, many, no_push, run_fixed(c->n_heads),
            run_per(DIM_TOKENS, ATTN_QUERIES), DIM_1);
    else
        PUT(g, pick(g, GPU_K_attn_one, GPU_K_attn_one_sg), spec, one, no_push, run_fixed(c->n_heads),
            run_per(DIM_CONTEXT, ATTN_SPLIT), DIM_1);
}

static void route(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct spec_router spec = {
        .wg = lanes(g),
        .n_experts = c->n_experts,
        .k_used = c->n_experts_used,
        .norm = c->norm_topk,
        .scale_bits = cor_float_bits(c->expert_scale),
    };
    const struct push_layer push = {.layer = layer};
    const struct gpu_bind binds[] = {act(g, &s->route), act(g, &s->mask), act(g, &s->sel)};

    cost(g, run_cost_words(c->n_experts, 4ull * c->n_experts, false));
    PUT(g, GPU_K_router, spec, binds, push, DIM_1, tokens(g), DIM_1);
}

/* One row per token from src to dst, f32 or any words. */
static void copy_rows(const struct run_graph *g, struct gpu_bind src, struct gpu_bind dst, uint32_t dim,
                      bool from_pos, bool to_pos, uint32_t dst_row0)
{
    const struct spec_copy_rows spec = {.wg = lanes(g), .dim = dim, .from_pos = from_pos, .to_pos = to_pos};
    const struct push_rows push = {.dst_row0 = dst_row0};
    const struct gpu_bind binds[] = {whole(g->state->state), src, dst};

    cost(g, run_cost_words(2ull * dim, 0, false));
    PUT(g, GPU_K_copy_rows, spec, binds, push, run_fixed(div_up(dim, lanes(g))), tokens(g), DIM_1);
}

/* The chunk's residual stream, from that of the whole text. */
static void take_stream(const struct run_graph *g)
{
    copy_rows(g, act(g, &g->state->stream), act(g, &g->state->x), config_of(g)->dim, true, false, 0);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
}

static void put_stream(const struct run_graph *g)
{
    copy_rows(g, act(g, &g->state->x), act(g, &g->state->stream), config_of(g)->dim, false, true, 0);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
}

/* The router's logits of this layer for the host. */
static void show_logits(const struct run_graph *g, uint32_t layer)
{
    copy_rows(g, act(g, &g->state->route), whole(g->state->seen), config_of(g)->n_experts, false, false,
              layer * g->state->chunk);
}

/* The shared expert's hidden state, or that of a dense layer. */
static void swiglu(const struct run_graph *g, uint32_t layer)
{
    const struct spec_swiglu spec = {.wg = lanes(g), .ff = mdl_ffn_width(config_of(g), layer)};
    const struct gpu_bind binds[] = {act(g, &g->state->gu), act(g, &g->state->hs)};

    cost(g, run_cost_words(3ull * spec.ff, 5ull * spec.ff, false));
    PUT(g, GPU_K_swiglu, spec, binds, no_push, run_fixed(div_up(spec.ff, lanes(g))), tokens(g), DIM_1);
}

/* Behind it, with a barrier between: how much of the shared expert counts. What follows is linear. */
static void scale_shared(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_matrix *gate = &g->model->weights.layers[layer].shared_gate;
    const struct spec_shared_gate spec = {.wg = lanes(g), .dim = c->dim, .ff = mdl_ffn_width(c, layer)};
    const struct gpu_bind binds[] = {act(g, &s->xn), list_or(g, gate, act(g, &s->xn)), act(g, &s->hs)};

    if (!gate->n_src) {
        scale_add(g, act(g, &s->hs), spec.ff, c->residual_scale, NULL, tokens(g));
        return;
    }
    cost(g, run_cost_words(2ull * (spec.dim + spec.ff), 2ull * spec.dim + spec.ff, false));
    PUT(g, GPU_K_shared_gate, spec, binds, no_push, DIM_1, tokens(g), DIM_1);
}

/* ---- parts
 * -------------------------------------------------------------------------------------------------- */

void run_record_embed(const struct run_graph *g)
{
    const struct mdl_config *c = config_of(g);
    const struct run_matrix *m = &g->model->weights.embed;
    const struct spec_embed spec = {
        .wg = lanes(g), .dim = c->dim, .format = m->type, .row_bytes = (uint32_t)m->row_bytes};

    run_part_begin(g->prog);
    for (uint32_t i = 0; i < m->n_pieces; i++) {
        const struct run_piece *p = &m->pieces[i];
        const struct push_embed push = {.row0 = p->row0, .n_rows = p->n_rows, .w_off = 0};
        const struct gpu_bind binds[] = {whole(g->state->state), weights(g, p), act(g, &g->state->x)};

        if (i == 0) /* a token's row is in one piece */
            cost(g, run_cost_embed(c, m->row_bytes));
        PUT(g, GPU_K_embed, spec, binds, push, run_fixed(div_up(c->dim, lanes(g) * MATVEC_UNIT)), tokens(g),
            DIM_1);
    }
    run_barrier(g->prog, GPU_BARRIER_COMPUTE); /* each token's row was written by one piece alone */
    if (c->embed_scale > 0) {
        scale_add(g, act(g, &g->state->x), c->dim, c->embed_scale, NULL, tokens(g));
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    if (!g->many) {
        norm(g, norm_before(g, 0), false, DIM_1);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    if (g->by_layer)
        put_stream(g);
    run_part_end(g->prog);
}

void run_record_keys(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_layer_weights *w = &g->model->weights.layers[layer];
    const struct mat_use to_qkv = {act(g, &s->xn), act(g, &s->qkv), c->dim,
                                   w->qkv.n_out,   .many = g->many, .quantised = act(g, &s->xq)};

    run_part_begin(g->prog);
    if (g->by_layer)
        take_stream(g);
    if (g->many) {
        norm(g, &w->attn_norm, false, tokens(g));
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    quantise(g, run_dot_takes(g, &w->qkv), &s->xn, &s->xq, c->dim, tokens(g));
    linear(g, &w->qkv, &to_qkv);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    finish_qkv(g, layer);
    rope_and_store(g, layer);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    run_part_end(g->prog);
}

/* x += attention(norm(x)) from its rotated queries. One token: the MoE's norm is left in xn. */
static void attend(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_layer_weights *w = &g->model->weights.layers[layer];
    uint32_t q = c->n_heads * c->head_dim;
    const struct mat_use to_x = {
        act(g, &s->att), act(g, &s->x), q, c->dim, .add = true, .many = g->many, .quantised = act(g, &s->xq)};

    attention(g, layer);
    if (w->o_bias.n_src) /* beside it: the output comes on top */
        scale_add(g, act(g, &s->x), c->dim, 1, &w->o_bias, tokens(g));
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    if (c->residual_scale > 0) { /* as the projection is linear */
        scale_add(g, act(g, &s->att), q, c->residual_scale, NULL, tokens(g));
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    quantise(g, run_dot_takes(g, &w->o), &s->att, &s->xq, q, tokens(g));
    if (g->many || run_dot_takes(g, &w->o))
        linear(g, &w->o, &to_x);
    else
        add_and_norm(g, &w->o.m[0], act(g, &s->att), &w->ffn_norm);
    if (!g->many && run_dot_takes(g, &w->o)) {
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
        norm(g, &w->ffn_norm, false, DIM_1);
    }
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
}

static void router_logits(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_linear router = {
        .n = 1, .m = {g->model->weights.layers[layer].router}, .n_out = c->n_experts};
    const struct mat_use use = {act(g, &s->xn), act(g, &s->route), c->dim, c->n_experts, .many = g->many};

    linear(g, &router, &use);
}

/* Behind them, with a barrier before and after. */
static void router_bias(const struct run_graph *g, uint32_t layer)
{
    const struct run_matrix *bias = &g->model->weights.layers[layer].router_bias;

    if (!bias->n_src)
        return;
    scale_add(g, act(g, &g->state->route), config_of(g)->n_experts, 1, bias, tokens(g));
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
}

static void shared_gate_up(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct mat_use use = {act(g, &s->xn),  act(g, &s->gu),
                                c->dim,          2 * mdl_ffn_width(c, layer),
                                .many = g->many, .quantised = act(g, &s->xq),
                                .as_expert = !is_dense(g, layer)};

    linear(g, &g->model->weights.layers[layer].shared_gate_up, &use);
}

static void shared_down(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct mat_use use = {act(g, &s->hs), act(g, &s->ys),  mdl_ffn_width(c, layer),
                                c->dim,         .many = g->many, .quantised = act(g, &s->hsq),
                                .as_expert = true};

    linear(g, &g->model->weights.layers[layer].shared_down, &use);
}

/* Is what the experts are multiplied with rounded? */
static bool takes_moe_input(const struct run_graph *g, uint32_t layer)
{
    return run_dot_takes(g, &g->model->weights.layers[layer].shared_gate_up) ||
           run_dot_takes_experts(g, layer);
}

/* Many tokens: normed input of the MoE and the router's logits; choose: what it chooses too, and the shared
 * expert's first half. */
static void ask_router(const struct run_graph *g, uint32_t layer, bool choose)
{
    norm(g, &g->model->weights.layers[layer].ffn_norm, false, tokens(g));
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    if (choose)
        quantise(g, takes_moe_input(g, layer), &g->state->xn, &g->state->xq, config_of(g)->dim, tokens(g));
    router_logits(g, layer);
    if (choose)
        shared_gate_up(g, layer);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    router_bias(g, layer);
    if (choose)
        route(g, layer);
    if (choose && config_of(g)->n_shared)
        swiglu(g, layer);
    if (g->state->seen)
        show_logits(g, layer);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    if (choose && run_moe_scales_shared(g, layer)) {
        scale_shared(g, layer);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
}

/* A dense layer from its normed input: x += its network of that. One token: what comes next is normed. */
static void dense(const struct run_graph *g, uint32_t layer)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_layer_weights *w = &g->model->weights.layers[layer];
    const uint32_t ff = mdl_ffn_width(c, layer);
    const bool rounds = run_dot_takes(g, &w->shared_down);
    const struct mat_use to_x = {act(g, &s->hs),
                                 act(g, &s->x),
                                 ff,
                                 c->dim,
                                 .add = true,
                                 .many = g->many,
                                 .quantised = act(g, &s->hsq)};

    if (g->many) {
        norm(g, &w->ffn_norm, false, tokens(g));
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    quantise(g, run_dot_takes(g, &w->shared_gate_up), &s->xn, &s->xq, c->dim, tokens(g));
    shared_gate_up(g, layer);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    swiglu(g, layer);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    if (run_moe_scales_shared(g, layer)) {
        scale_shared(g, layer);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    quantise(g, rounds, &s->hs, &s->hsq, ff, tokens(g));
    if (g->many || rounds)
        linear(g, &w->shared_down, &to_x);
    else
        add_and_norm(g, &w->shared_down.m[0], act(g, &s->hs), norm_before(g, layer + 1));
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    if (!g->many && rounds) {
        norm(g, norm_before(g, layer + 1), false, DIM_1);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
}

void run_record_attention(const struct run_graph *g, uint32_t layer)
{
    run_part_begin(g->prog);
    attend(g, layer);
    if (g->by_layer)
        put_stream(g);
    if (is_dense(g, layer)) {
        run_part_end(g->prog);
        return;
    }
    if (g->many) {
        ask_router(g, layer, !g->by_layer);
    } else if (g->state->seen) { /* the router computes them again: it runs once more after a halt */
        router_logits(g, layer);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
        router_bias(g, layer);
        show_logits(g, layer);
    }
    run_part_end(g->prog);
}

void run_record_last(const struct run_graph *g)
{
    const struct mdl_config *c = config_of(g);
    const struct gpu_bind x = act(g, &g->state->x), q = act(g, &g->state->qr);

    run_part_begin(g->prog);
    copy_rows(g, x, x, c->dim, true, false, 0);
    copy_rows(g, q, q, c->n_heads * c->head_dim, true, false, 0);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    run_part_end(g->prog);
}

/* x += sum of experts; what comes next is normed. */
static void experts_of_one(const struct run_graph *g, uint32_t layer)
{
    run_moe_route_one(g, layer, 1);
    run_barrier(g->prog, GPU_BARRIER_ARGS);
    run_moe_step(g, layer, RUN_GATE_UP);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    run_moe_down_and_norm(g, layer, norm_before(g, layer + 1));
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
}

/* The experts' second step, the shared expert's, and their sum, each a dispatch. */
static void down_and_sum(const struct run_graph *g, uint32_t layer)
{
    run_moe_quantise(g, layer);
    run_moe_step(g, layer, RUN_DOWN);
    shared_down(g, layer);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    if (g->state->sums)
        run_moe_show_sums(g, layer);
    run_moe_combine(g);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
}

/* What experts_of_one does, where not all matrices can be bound at once, the shared expert is not like the
 * others, or outputs of single experts are watched. */
static void experts_of_one_apart(const struct run_graph *g, uint32_t layer)
{
    const struct run_layer_weights *w = &g->model->weights.layers[layer];
    bool shared = config_of(g)->n_shared > 0;

    quantise(g, takes_moe_input(g, layer), &g->state->xn, &g->state->xq, config_of(g)->dim, DIM_1);
    run_moe_route_one(g, layer,
                      2 * run_moe_dispatches(&g->model->pool) + pieces_of(&w->shared_gate_up) + shared +
                          run_moe_scales_shared(g, layer) + run_moe_quantised(g, layer) +
                          pieces_of(&w->shared_down));
    run_barrier(g->prog, GPU_BARRIER_ARGS);
    run_moe_step(g, layer, RUN_GATE_UP);
    shared_gate_up(g, layer);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    if (shared) {
        swiglu(g, layer);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    if (run_moe_scales_shared(g, layer)) {
        scale_shared(g, layer);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    down_and_sum(g, layer);
    norm(g, norm_before(g, layer + 1), false, DIM_1);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
}

static void experts_of_many(const struct run_graph *g, uint32_t layer)
{
    run_moe_find_slots(g, layer);
    run_barrier(g->prog, GPU_BARRIER_ARGS);
    run_moe_step(g, layer, RUN_GATE_UP);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    down_and_sum(g, layer); /* the dispatches of both steps stand together: group sets their grids */
}

void run_record_experts(const struct run_graph *g, uint32_t layer)
{
    run_part_begin(g->prog);
    if (g->by_layer) {
        take_stream(g);
        if (!is_dense(g, layer))
            ask_router(g, layer, true);
    }
    if (is_dense(g, layer))
        dense(g, layer);
    else if (g->many)
        experts_of_many(g, layer);
    else if (run_moe_fuses(g, layer))
        experts_of_one(g, layer);
    else
        experts_of_one_apart(g, layer);
    if (g->by_layer)
        put_stream(g);
    run_part_end(g->prog);
}

static void topk_step(const struct run_graph *g, struct gpu_bind from, struct gpu_bind to, uint32_t n,
                      uint32_t groups, bool merge)
{
    const struct spec_topk spec = {
        .wg = lanes(g), .n = n, .n_ids = g->state->n_ids, .k = g->state->n_top, .merge = merge};
    const struct gpu_bind binds[] = {from, to};

    cost(g, run_cost_words(merge ? (uint64_t)n * TOPK_WORDS(spec.k) : n, n, true));
    PUT(g, GPU_K_topk, spec, binds, no_push, run_fixed(groups), DIM_1, DIM_1);
}

/* The best logits of the row, straight to the host's memory: of slices side by side, then of all. */
static void best_logits(const struct run_graph *g)
{
    const struct run_state *s = g->state;
    const uint32_t vocab = config_of(g)->vocab_size, groups = div_up(vocab, TOPK_SLICE);

    if (groups == 1) {
        topk_step(g, act(g, &s->logits), whole(s->out), vocab, 1, false);
        return;
    }
    topk_step(g, act(g, &s->logits), act(g, &s->top), vocab, groups, false);
    run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    topk_step(g, act(g, &s->top), whole(s->out), groups, 1, true);
}

void run_record_head(const struct run_graph *g, bool all)
{
    const struct mdl_config *c = config_of(g);
    const struct run_state *s = g->state;
    const struct run_weights *w = &g->model->weights;
    const struct mat_use to_logits = {
        act(g, &s->xn), act(g, &s->logits), c->dim,           c->vocab_size,
        .many = all,    .count_rows = all,  .out_rows = true, .quantised = act(g, &s->xq)};

    run_part_begin(g->prog);
    if (g->many) {
        norm(g, &w->out_norm, true, all ? run_per(DIM_ROWS, 1) : DIM_1);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    if (c->logit_scale > 0) {
        scale_add(g, act(g, &s->xn), c->dim, 1 / c->logit_scale, NULL, all ? run_per(DIM_ROWS, 1) : DIM_1);
        run_barrier(g->prog, GPU_BARRIER_COMPUTE);
    }
    quantise(g, run_dot_takes(g, &w->head), &s->xn, &s->xq, c->dim, all ? run_per(DIM_ROWS, 1) : DIM_1);
    linear(g, &w->head, &to_logits);
    run_barrier(g->prog, s->n_top ? GPU_BARRIER_COMPUTE : GPU_BARRIER_COPY);
    if (s->n_top)
        best_logits(g);
    else
        run_copy(g->prog, run_arena_buffer(&s->act, &s->logits), s->logits.off, s->out,
                 all ? s->logits.bytes : (uint64_t)c->vocab_size * 4);
    run_part_end(g->prog);
}

/* Dispatches that only some architectures have, and Granite's scales of attention and shared expert. */
static uint32_t extras(const struct run_layer_weights *l, const struct mdl_config *c)
{
    return (l->qk_norm.n_src > 0) + (l->qkv_bias.n_src > 0) + (l->o_bias.n_src > 0) +
           (l->router_bias.n_src > 0) + (l->shared_gate.n_src > 0) + (c->residual_scale > 0 ? 2 : 0);
}

uint32_t run_count_dispatches(const struct run_model *m)
{
    const struct run_weights *w = &m->weights;
    uint32_t n = w->embed.n_pieces + pieces_of(&w->head) + 8;

    for (uint32_t i = 0; i < w->n_layers; i++) {
        const struct run_layer_weights *l = &w->layers[i];

        n += pieces_of(&l->qkv) + pieces_of(&l->o) + 2 * l->router.n_pieces + pieces_of(&l->shared_gate_up) +
             pieces_of(&l->shared_down) + 2 * run_moe_dispatches(&m->pool) + 20 + extras(l, &m->mdl->config);
    }
    return n;
}
