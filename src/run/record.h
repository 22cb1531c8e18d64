/* What the dispatches of the pass have in common: how they are bound, how work is cut into workgroups on this
 * device, and which of several kernels it takes. For run/layer.c, run/moe.c and run/dot.c alone. */
#ifndef RUN_RECORD_H
#define RUN_RECORD_H

#include "core/bits.h"
#include "run/cost.h"
#include "run/layer.h"

#define TILE_WG     128u /* mat-mul, expert tiles and attention of many have no other size */
#define MATVEC_UNIT 8u   /* elements that one lane takes at a time */

static inline const struct gpu_caps *caps_of(const struct run_graph *g)
{
    return gpu_device_caps(g->model->dev);
}

static inline const struct mdl_config *config_of(const struct run_graph *g)
{
    return &g->model->mdl->config;
}

static inline struct gpu_bind act(const struct run_graph *g, const struct run_region *r)
{
    return run_arena_bind(&g->state->act, r);
}

static inline struct gpu_bind weights(const struct run_graph *g, const struct run_piece *p)
{
    return run_arena_bind(&g->model->weights.arena, &p->region);
}

static inline struct gpu_bind whole(struct gpu_buffer *b)
{
    return (struct gpu_bind){.buf = b};
}

/* One group per token of the step. */
static inline struct run_dim tokens(const struct run_graph *g)
{
    return g->many ? run_per(DIM_TOKENS, 1) : DIM_1;
}

static inline uint32_t div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

/* n groups, in x as far as the device allows and the rest in z; kernels fold them back. */
static inline void spread(const struct run_graph *g, uint32_t n, struct run_dim grid[3])
{
    uint32_t z = div_up(n, caps_of(g)->max_groups);

    grid[0] = run_fixed(div_up(n, z));
    grid[2] = run_fixed(z);
}

static inline const struct run_variants *variants_of(const struct run_graph *g)
{
    return &g->variants;
}

/* The graph for matrices of these formats. */
static inline struct run_graph run_suited(const struct run_graph *g, enum mdl_type a, enum mdl_type b)
{
    struct run_graph suited = *g;

    run_variants_suit(&suited.variants, caps_of(g), a);
    run_variants_suit(&suited.variants, caps_of(g), b);
    return suited;
}

/* Workgroup of kernels that take any size. */
static inline uint32_t lanes(const struct run_graph *g)
{
    return variants_of(g)->lanes;
}

/* Where more lanes would idle. */
static inline uint32_t few_lanes(const struct run_graph *g)
{
    return run_few_lanes(caps_of(g));
}

/* Matrix rows per workgroup of mat-vec kernels. */
static inline uint32_t matvec_rows(const struct run_graph *g)
{
    return run_core_rows(variants_of(g)->core, variants_of(g), caps_of(g));
}

/* Workgroup of mat-vec kernels for rows of k elements. */
static inline uint32_t row_lanes(const struct run_graph *g, uint32_t k)
{
    return run_core_lanes(variants_of(g)->core, caps_of(g), k);
}

static inline enum run_tile tile_of(const struct run_graph *g)
{
    return g->few ? RUN_TILE_FEW : (enum run_tile)variants_of(g)->tile;
}

/* Matrix rows and lanes per workgroup of kernels for many tokens; k: row length. */
static inline uint32_t tile_rows(const struct run_graph *g)
{
    return run_tile_rows(tile_of(g), caps_of(g));
}

static inline uint32_t tile_lanes(const struct run_graph *g, uint32_t k)
{
    return run_tile_lanes(tile_of(g), variants_of(g)->core, caps_of(g), k);
}

static inline uint32_t min32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline enum gpu_kernel pick(const struct run_graph *g, enum gpu_kernel base, enum gpu_kernel subgroup)
{
    return gpu_kernel_usable(g->model->dev, subgroup) ? subgroup : base;
}

/* Is this piece of a dense matrix times one vector read by texels? */
static inline bool by_texels(const struct run_graph *g, const struct run_matrix *m, const struct run_piece *p)
{
    return variants_of(g)->core == RUN_CORE_LANES && variants_of(g)->texels &&
           run_texels_fit(caps_of(g), m->type, m->cols, m->row_bytes, p->region.off, p->region.bytes);
}

/* Matrix rows per workgroup of such a mat-vec. */
static inline uint32_t piece_rows(const struct run_graph *g, const struct run_matrix *m,
                                  const struct run_piece *p)
{
    return by_texels(g, m, p) ? RUN_TEXEL_ROWS : matvec_rows(g);
}

/* Its kernel, by row core. */
static inline enum gpu_kernel piece_kernel(const struct run_graph *g, const struct run_matrix *m,
                                           const struct run_piece *p)
{
    static const enum gpu_kernel kernels[RUN_CORES] = {GPU_K_matvec, GPU_K_matvec_sg, GPU_K_matvec_ln};

    return by_texels(g, m, p) ? GPU_K_matvec_tx : kernels[variants_of(g)->core];
}

static inline enum gpu_kernel matmul_kernel(const struct run_graph *g)
{
    static const enum gpu_kernel kernels[RUN_TILES] = {GPU_K_matmul, GPU_K_matmul_ln};

    if (g->few)
        return variants_of(g)->core == RUN_CORE_SHARED ? GPU_K_matvec_few : GPU_K_matvec_few_sg;
    return kernels[tile_of(g)];
}

/* Workgroups of the dispatches that take the rows of a dense matrix. */
static inline uint32_t groups_of(const struct run_graph *g, const struct run_matrix *m)
{
    struct run_dim grid[3];
    uint32_t n = 0;

    for (uint32_t i = 0; i < m->n_pieces; i++) {
        spread(g, div_up(m->pieces[i].n_rows, piece_rows(g, m, &m->pieces[i])), grid);
        n += grid[0].a * grid[2].a;
    }
    return n;
}

static inline uint32_t pieces_of(const struct run_linear *l)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < l->n; i++)
        n += l->m[i].n_pieces;
    return n;
}

/* A layer whose feed-forward network all tokens pass, and nothing else. */
static inline bool is_dense(const struct run_graph *g, uint32_t layer)
{
    return mdl_is_dense(config_of(g), layer);
}

/* A list of f32, or what may stand in its place where there is none: any binding. */
static inline struct gpu_bind list_or(const struct run_graph *g, const struct run_matrix *m,
                                      struct gpu_bind other)
{
    return m->n_src ? weights(g, &m->pieces[0]) : other;
}

#define PUT(g, k, spec, binds, push, ...)                                                  \
    run_dispatch((g)->prog, k, &(spec), sizeof(spec), 1, binds, COR_COUNT(binds), &(push), \
                 (const struct run_dim[3]){__VA_ARGS__})

static const struct push_none no_push;

/* Of the next dispatch. */
static inline void cost(const struct run_graph *g, struct gpu_cost c)
{
    run_cost(g->prog, &c);
}

/* Bytes of one position's keys and values in the cache. */
static inline uint64_t cached(const struct run_graph *g)
{
    const uint64_t row = (uint64_t)config_of(g)->n_kv_heads * config_of(g)->head_dim;

    return CACHE_BYTES(g->state->k_type, row) + CACHE_BYTES(g->state->v_type, row);
}

#endif
