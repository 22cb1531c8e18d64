#include "support/specs.h"

#include <math.h>
#include <string.h>

#include "bench/shapes.h"
#include "core/bits.h"
#include "model/quant.h"
#include "run/variants.h"

static const struct {
    enum bench_shape_id id;
    uint32_t n_segs;
} shapes[SPECS_SHAPES] = {[SPECS_EMO] = {BENCH_EMO, 8}, [SPECS_NANO] = {BENCH_NANO, 2}};

static const enum mdl_type formats[] = {MDL_F32, MDL_F16, MDL_BF16, MDL_Q8_0, MDL_Q4_0, MDL_Q4_K, MDL_Q6_K};

struct list {
    struct specs_case *cases;
    uint32_t n, max;
    enum specs_shape shape;
};

static void add(struct list *l, enum gpu_kernel k, const char *format, const char *use, const void *spec,
                size_t bytes)
{
    if (l->cases && l->n < l->max) {
        struct specs_case *c = &l->cases[l->n];
        const char *name = gpu_kernel_info(k)->name;

        memset(c, 0, sizeof(*c));
        c->kernel = k;
        c->shape = l->shape;
        c->format = format;
        c->use = use;
        memcpy(c->spec, spec, bytes);
        c->n_spec = (uint32_t)(bytes / sizeof(uint32_t));
        c->n_segs = strstr(name, "_arr") || strstr(name, "down_sum") ||
                            (strstr(name, "expert") && strstr(name, "_hw"))
                        ? shapes[l->shape].n_segs
                        : 1;
    }
    l->n++;
}

#define ADD(l, k, format, use, spec) add(l, GPU_K_##k, format, use, &(spec), sizeof(spec))

#define SUBGROUP 64u /* of RADV; a mat-vec that reduces with it takes one per workgroup */

static uint32_t row_lanes(uint32_t k)
{
    return run_core_lanes(RUN_CORE_SHARED, &(struct gpu_caps){.subgroup_size = SUBGROUP}, k);
}

/* Kernels for narrow devices, which may be chosen elsewhere: at one shape, for the formats they know. */
static bool on_lanes(const struct list *l, enum mdl_type t)
{
    return l->shape == SPECS_EMO && gpu_format_plain(t);
}

static void add_matrices(struct list *l, const struct bench_shape *s, enum mdl_type t)
{
    const char *f = mdl_type_find(t)->name;
    const struct spec_embed embed = {128, s->dim, t, (uint32_t)mdl_row_bytes(t, s->dim)};
    struct spec_mat m = {.wg = row_lanes(s->dim),
                         .k = s->dim,
                         .n_out = 3 * s->dim,
                         .k_stride = s->dim,
                         .format = t,
                         .row_bytes = (uint32_t)mdl_row_bytes(t, s->dim),
                         .rows = 4,
                         .aligned = run_alignment(t, mdl_row_bytes(t, s->dim), 0, 0)};

    const struct spec_mat_norm norm = {.k = s->dim,
                                       .dim = s->dim,
                                       .format = t,
                                       .row_bytes = (uint32_t)mdl_row_bytes(t, s->dim),
                                       .rows = 4,
                                       .aligned = run_alignment(t, mdl_row_bytes(t, s->dim), 0, 0),
                                       .eps_bits = cor_float_bits(1e-6f)};
    struct spec_mat_norm o = norm;

    ADD(l, embed, f, "", embed);
    o.wg = row_lanes(s->dim);
    ADD(l, matvec_norm, f, "", o);
    o.wg = SUBGROUP;
    ADD(l, matvec_norm_sg, f, "", o);
    o.rows = 4 * SUBGROUP;
    if (on_lanes(l, t))
        ADD(l, matvec_norm_ln, f, "", o);
    for (int head = 0; head < 2; head++) { /* projections; the one that adds */
        const char *use = head ? "adds" : "";

        m.add = (uint32_t)head;
        m.n_out = head ? s->dim : 3 * s->dim;
        m.wg = row_lanes(s->dim);
        ADD(l, matvec, f, use, m);
        ADD(l, matvec_few, f, use, m);
        m.wg = SUBGROUP;
        ADD(l, matvec_sg, f, use, m);
        ADD(l, matvec_few_sg, f, use, m);
        m.rows = 4 * SUBGROUP;
        if (!head && on_lanes(l, t))
            ADD(l, matvec_ln, f, use, m);
        m.rows = 4;
        m.wg = 128;
        ADD(l, matmul, f, use, m);
    }
}

static void add_experts(struct list *l, const struct bench_shape *s, enum mdl_type t)
{
    const char *f = mdl_type_find(t)->name;
    const uint32_t matrix = s->ff * (uint32_t)mdl_row_bytes(t, s->dim);
    const struct spec_expert base = {.dim = s->dim,
                                     .ff = s->ff,
                                     .n_experts = s->n_experts,
                                     .k_used = s->k_used,
                                     .fmt_gate = t,
                                     .fmt_up = t,
                                     .fmt_down = t,
                                     .up_off = matrix,
                                     .down_off = 2 * matrix,
                                     .slot_stride = 3 * matrix,
                                     .slots_per_seg = 64,
                                     .n_segs = 1,
                                     .rows = 4,
                                     .aligned = run_alignment(t, mdl_row_bytes(t, s->dim), 0, 0),
                                     .eps_bits = cor_float_bits(1e-6f)};
    struct spec_expert up = base, down = base, tile = base, team = base, lanes = base;

    up.wg = row_lanes(s->dim);
    down.wg = row_lanes(s->ff);
    tile.wg = 128;
    team.wg = lanes.wg = SUBGROUP;
    lanes.rows = 4 * SUBGROUP;
    ADD(l, expert_gate_up, f, "", up);
    ADD(l, expert_gate_up_sg, f, "", team);
    ADD(l, expert_down, f, "", down);
    ADD(l, expert_down_sg, f, "", team);
    ADD(l, expert_gate_up_few, f, "", up);
    ADD(l, expert_gate_up_few_sg, f, "", team);
    ADD(l, expert_down_few, f, "", down);
    ADD(l, expert_down_few_sg, f, "", team);
    ADD(l, expert_gate_up_tile, f, "", tile);
    ADD(l, expert_down_tile, f, "", tile);
    if (on_lanes(l, t)) {
        ADD(l, expert_gate_up_ln, f, "", lanes);
        ADD(l, expert_down_ln, f, "", lanes);
    }
    up.n_segs = down.n_segs = tile.n_segs = team.n_segs = lanes.n_segs = shapes[l->shape].n_segs;
    up.shared = down.shared = team.shared = lanes.shared = 1; /* the last of the segments */
    ADD(l, expert_gate_up_arr, f, "", up);
    ADD(l, expert_gate_up_sg_arr, f, "", team);
    ADD(l, expert_down_sum, f, "", down);
    ADD(l, expert_down_sum_sg, f, "", team);
    if (on_lanes(l, t))
        ADD(l, expert_down_sum_ln, f, "", lanes);
    down.shared = team.shared = 0;
    ADD(l, expert_down_arr, f, "", down);
    ADD(l, expert_down_sg_arr, f, "", team);
    ADD(l, expert_gate_up_few_arr, f, "", up);
    ADD(l, expert_gate_up_few_sg_arr, f, "", team);
    ADD(l, expert_down_few_arr, f, "", down);
    ADD(l, expert_down_few_sg_arr, f, "", team);
    ADD(l, expert_gate_up_tile_arr, f, "", tile);
    ADD(l, expert_down_tile_arr, f, "", tile);
    if (on_lanes(l, t)) {
        ADD(l, expert_gate_up_ln_arr, f, "", lanes);
        ADD(l, expert_down_ln_arr, f, "", lanes);
    }
}

/* --fast-math, as run/dot.c cuts them for 64 lanes: decode, and prefill with four tokens. */
static void add_dot(struct list *l, const struct bench_shape *s, enum mdl_type t)
{
    const char *f = mdl_type_find(t)->name;
    const uint32_t matrix = s->ff * (uint32_t)mdl_row_bytes(t, s->dim);

    for (uint32_t many = 0; many < 2; many++) {
        const char *use = many ? "prefill" : "";
        uint32_t least = many ? 16 : SUBGROUP / 4;
        uint32_t dim_lanes = s->dim / 32 > SUBGROUP ? SUBGROUP : s->dim / 32 < least ? least : s->dim / 32;
        uint32_t ff_lanes = s->ff / 32 < least ? least : s->ff / 32;
        const struct spec_mat_dot m = {.wg = SUBGROUP,
                                       .k = s->dim,
                                       .n_out = 3 * s->dim,
                                       .format = t,
                                       .row_bytes = (uint32_t)mdl_row_bytes(t, s->dim),
                                       .rows = many ? 32 : 4,
                                       .many = many,
                                       .lanes = dim_lanes,
                                       .blocks = (s->dim / 32 + dim_lanes - 1) / dim_lanes,
                                       .tokens = many ? 4 : 1};
        struct spec_expert_dot e = {.wg = SUBGROUP,
                                    .dim = s->dim,
                                    .ff = s->ff,
                                    .k_used = s->k_used,
                                    .format = t,
                                    .up_off = matrix,
                                    .down_off = 2 * matrix,
                                    .slot_stride = 3 * matrix,
                                    .slots_per_seg = 64,
                                    .n_segs = 1,
                                    .rows = m.rows,
                                    .many = many,
                                    .lanes = dim_lanes,
                                    .blocks = m.blocks,
                                    .tokens = m.tokens};
        struct spec_expert_dot d = e;

        d.lanes = ff_lanes;
        d.blocks = 1;
        d.rows = many ? 32 : 8;
        ADD(l, matvec_dot, f, use, m);
        ADD(l, matvec_dot_sg, f, use, m);
        ADD(l, matvec_dot_hw, f, use, m);
        ADD(l, expert_gate_up_dot, f, use, e);
        ADD(l, expert_gate_up_dot_sg, f, use, e);
        ADD(l, expert_down_dot, f, use, d);
        ADD(l, expert_down_dot_sg, f, use, d);
        e.n_segs = d.n_segs = shapes[l->shape].n_segs;
        ADD(l, expert_gate_up_dot_arr, f, use, e);
        ADD(l, expert_gate_up_dot_sg_arr, f, use, e);
        ADD(l, expert_gate_up_dot_hw, f, use, e);
        ADD(l, expert_down_dot_arr, f, use, d);
        ADD(l, expert_down_dot_sg_arr, f, use, d);
        ADD(l, expert_down_dot_hw, f, use, d);
    }
}

static void add_attention(struct list *l, const struct bench_shape *s, uint32_t f16)
{
    const char *f = f16 ? "f16" : "f32";
    const struct spec_rope rope = {128, s->head_dim, s->n_heads, s->n_kv, s->head_dim, 0, f16, f16};
    const struct spec_attn attn = {.wg = 128,
                                   .head_dim = s->head_dim,
                                   .n_heads = s->n_heads,
                                   .n_kv = s->n_kv,
                                   .scale_bits = cor_float_bits((float)(1.0 / sqrt(s->head_dim))),
                                   .k_cache = f16,
                                   .v_cache = f16,
                                   .n_splits = 4096 / ATTN_SPLIT};

    const struct spec_qk_norm norm = {
        64, s->n_heads * s->head_dim, s->n_kv * s->head_dim, s->head_dim, s->head_dim, cor_float_bits(1e-6f)};

    if (f16)
        ADD(l, qk_norm, "", "", norm);
    ADD(l, rope_kv, f, "", rope);
    ADD(l, attn_one, f, "", attn);
    ADD(l, attn_one_sg, f, "", attn);
    ADD(l, attn_many, f, "", attn);
}

static void add_rest(struct list *l, const struct bench_shape *s)
{
    const struct spec_publish publish = {128};
    const struct spec_rmsnorm norm = {128, s->dim, cor_float_bits(1e-6f), 0};
    const struct spec_router router = {128, s->n_experts, s->k_used, 0, cor_float_bits(1.0f)};
    const struct spec_resolve group = {128, s->n_experts, s->k_used};
    struct spec_router_one one = {.wg = row_lanes(s->dim),
                                  .n_experts = s->n_experts,
                                  .k_used = s->k_used,
                                  .scale_bits = cor_float_bits(1.0f),
                                  .k = s->dim,
                                  .format = MDL_F32,
                                  .row_bytes = 4 * s->dim,
                                  .rows = 4,
                                  .aligned = 1};
    const struct spec_swiglu swiglu = {128, s->ff};
    const struct spec_scale_add scale = {128, s->dim, cor_float_bits(1.0f), 1};
    const struct spec_shared_gate gate = {128, s->dim, s->ff};
    const struct spec_combine combine = {128, s->dim, s->k_used, 1};
    const struct spec_expert_sums sums = {128, s->dim, s->k_used, 1};
    const struct spec_copy_rows rows = {128, s->dim, 0, 1};
    const struct spec_topk slice = {128, s->vocab, s->vocab, 40, 0};
    const struct spec_topk merge = {128, (s->vocab + TOPK_SLICE - 1) / TOPK_SLICE, s->vocab, 40, 1};
    struct spec_tags tags = {32, 3 * s->ff * s->dim, 64, 1};
    const struct spec_quant_x quant = {32, s->dim, s->dim};

    ADD(l, publish, "", "", publish);
    ADD(l, quant_x, "", "", quant);
    ADD(l, rmsnorm, "", "", norm);
    ADD(l, rmsnorm_sg, "", "", norm);
    ADD(l, router, "", "", router);
    ADD(l, router_one, "", "", one);
    one.wg = SUBGROUP;
    ADD(l, router_one_sg, "", "", one);
    one.rows = 4 * SUBGROUP;
    if (l->shape == SPECS_EMO)
        ADD(l, router_one_ln, "", "", one);
    ADD(l, group, "", "", group);
    ADD(l, swiglu, "", "", swiglu);
    ADD(l, scale_add, "", "", scale);
    ADD(l, shared_gate, "", "", gate);
    ADD(l, combine, "", "", combine);
    ADD(l, expert_sums, "", "", sums);
    ADD(l, copy_rows, "", "", rows);
    ADD(l, topk, "", "", slice);
    ADD(l, topk, "", "merges", merge);
    ADD(l, slot_tags, "", "", tags);
    tags.n_segs = shapes[l->shape].n_segs;
    ADD(l, slot_tags_arr, "", "", tags);
}

/* Kernels of measurements: of no model. */
static void add_peak(struct list *l)
{
    const struct spec_peak_read peak_read = {128, 16, 1};
    const struct spec_peak_fma peak_fma = {128, 1024, 0, 256};

    ADD(l, peak_read, "", "", peak_read);
    ADD(l, peak_fma, "", "", peak_fma);
    ADD(l, peak_fma_half, "", "", peak_fma);
    ADD(l, peak_fma_int, "", "", peak_fma);
}

uint32_t specs_list(struct specs_case *cases, uint32_t max)
{
    struct list l = {.cases = cases, .max = max};

    for (int shape = 0; shape < SPECS_SHAPES; shape++) {
        const struct bench_shape *s = bench_shape(shapes[shape].id);

        l.shape = (enum specs_shape)shape;
        add_rest(&l, s);
        add_attention(&l, s, 1);
        add_attention(&l, s, 0);
        for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
            const uint32_t block = mdl_type_find(formats[i])->block_elems;

            if (s->dim % block || s->ff % block)
                continue;
            add_matrices(&l, s, formats[i]);
            add_experts(&l, s, formats[i]);
        }
        add_dot(&l, s, MDL_Q8_0);
        add_dot(&l, s, MDL_Q4_0);
    }
    add_peak(&l);
    return l.n;
}
