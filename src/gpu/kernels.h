/* The one list of kernels, and pipelines made from them. Owns module choice, specialisation and the pipeline
 * cache; knows no model. Bindings of each kernel are at the head of its .comp; sizes and meaning are in
 * shaders/shared. */
#ifndef GPU_KERNELS_H
#define GPU_KERNELS_H

#include "gpu/device.h"
#include "shared/params.h"
#include "shared/step.h"

#define GPU_NEED_NONE 0u
#define GPU_NEED_SUBGROUP 1u  /* subgroup arithmetic (basic + arithmetic operations in compute) */
#define GPU_NEED_ARRAY 2u     /* dynamic indexing of an array of storage buffers */
#define GPU_NEED_F16 8u       /* fp16 arithmetic */
#define GPU_NEED_LANES 4u     /* subgroup broadcasts, eight lanes or more, scalar block layout */
#define GPU_NEED_DOT 16u      /* integer dot products, in the device and in this build */
#define GPU_NEED_ROUNDED 32u  /* --fast-math is allowed: inputs of 8 bits */
#define GPU_NEED_TEXELS 64u   /* binding GPU_TEXELS_AT, weights, is a uniform texel buffer */

#define GPU_TEXELS_AT   1u
#define GPU_TEXEL_BYTES 16u

/* Words of a kernel's specialisation that name the formats of weights it reads: where one of them is not
 * plain (gpu_format_plain), its module is NAME_k, compiled with MORE_BLOCKS. NONE: a kernel without weights,
 * or for the plain formats alone. */
#define GPU_FMT_NONE     0u
#define GPU_FMT_EMBED    (1u << 2)
#define GPU_FMT_MAT      (1u << 4)
#define GPU_FMT_MAT_NORM (1u << 3)
#define GPU_FMT_GATE_UP  (3u << 5)
#define GPU_FMT_DOWN     (1u << 7)

/* X(name, push struct, storage buffers before the segments, segments: 0 none / 1 binding or array, formats,
 * needs).
 * With segments, the binding behind the listed ones holds them: one buffer, or an array of N_SEGS (_arr
 * modules). NAME_sg reduces with subgroup operations, NAME in shared memory; NAME_arr indexes the array of
 * segments. NAME_ln: rows on lanes, for narrow devices (shaders/lib/lanes.glsl); NAME_tx: the same devices,
 * by texels (shaders/lib/texels.glsl). NAME_few: two to eight tokens. NAME_dot takes inputs of 8 bits, for
 * --fast-math only; NAME_dot_hw with the device's dot product, besides subgroups and the array. */
#define GPU_KERNEL_LIST(X)                                                                                   \
    X(publish, push_none, 6, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                 \
    X(embed, push_embed, 3, 0, GPU_FMT_EMBED, GPU_NEED_NONE)                                                 \
    X(rmsnorm, push_none, 4, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                 \
    X(rmsnorm_sg, push_none, 4, 0, GPU_FMT_NONE, GPU_NEED_SUBGROUP)                                          \
    X(matvec, push_mat, 3, 0, GPU_FMT_MAT, GPU_NEED_NONE)                                                    \
    X(matvec_sg, push_mat, 3, 0, GPU_FMT_MAT, GPU_NEED_SUBGROUP)                                             \
    X(matvec_ln, push_mat, 3, 0, GPU_FMT_NONE, GPU_NEED_LANES)                                               \
    X(matvec_tx, push_mat, 3, 0, GPU_FMT_NONE, GPU_NEED_LANES | GPU_NEED_TEXELS)                             \
    X(matvec_few, push_mat, 4, 0, GPU_FMT_MAT, GPU_NEED_NONE)                                                \
    X(matvec_few_sg, push_mat, 4, 0, GPU_FMT_MAT, GPU_NEED_SUBGROUP)                                         \
    X(matvec_norm, push_mat_norm, 6, 0, GPU_FMT_MAT_NORM, GPU_NEED_NONE)                                     \
    X(matvec_norm_sg, push_mat_norm, 6, 0, GPU_FMT_MAT_NORM, GPU_NEED_SUBGROUP)                              \
    X(matvec_norm_ln, push_mat_norm, 6, 0, GPU_FMT_NONE, GPU_NEED_LANES)                                     \
    X(matvec_norm_tx, push_mat_norm, 6, 0, GPU_FMT_NONE, GPU_NEED_LANES | GPU_NEED_TEXELS)                   \
    X(matmul, push_mat, 4, 0, GPU_FMT_MAT, GPU_NEED_NONE)                                                    \
    X(matmul_ln, push_mat, 4, 0, GPU_FMT_NONE, GPU_NEED_LANES)                                               \
    X(rope_kv, push_none, 6, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                 \
    X(attn_one, push_none, 8, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                \
    X(attn_one_sg, push_none, 8, 0, GPU_FMT_NONE, GPU_NEED_SUBGROUP)                                         \
    X(attn_many, push_none, 6, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                               \
    X(attn_many_ln, push_none, 6, 0, GPU_FMT_NONE, GPU_NEED_LANES)                                           \
    X(router, push_layer, 3, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                 \
    X(router_one, push_router, 8, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                            \
    X(router_one_sg, push_router, 8, 0, GPU_FMT_NONE, GPU_NEED_SUBGROUP)                                     \
    X(router_one_ln, push_router, 8, 0, GPU_FMT_NONE, GPU_NEED_LANES)                                        \
    X(group, push_group, 8, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                  \
    X(expert_gate_up, push_expert, 3, 1, GPU_FMT_GATE_UP, GPU_NEED_NONE)                                     \
    X(expert_gate_up_sg, push_expert, 3, 1, GPU_FMT_GATE_UP, GPU_NEED_SUBGROUP)                              \
    X(expert_gate_up_arr, push_expert, 3, 1, GPU_FMT_GATE_UP, GPU_NEED_ARRAY)                                \
    X(expert_gate_up_sg_arr, push_expert, 3, 1, GPU_FMT_GATE_UP, GPU_NEED_SUBGROUP | GPU_NEED_ARRAY)         \
    X(expert_gate_up_ln, push_expert, 3, 1, GPU_FMT_NONE, GPU_NEED_LANES)                                    \
    X(expert_gate_up_ln_arr, push_expert, 3, 1, GPU_FMT_NONE, GPU_NEED_LANES | GPU_NEED_ARRAY)               \
    X(expert_down, push_expert, 3, 1, GPU_FMT_DOWN, GPU_NEED_NONE)                                           \
    X(expert_down_sg, push_expert, 3, 1, GPU_FMT_DOWN, GPU_NEED_SUBGROUP)                                    \
    X(expert_down_arr, push_expert, 3, 1, GPU_FMT_DOWN, GPU_NEED_ARRAY)                                      \
    X(expert_down_sg_arr, push_expert, 3, 1, GPU_FMT_DOWN, GPU_NEED_SUBGROUP | GPU_NEED_ARRAY)               \
    X(expert_down_ln, push_expert, 3, 1, GPU_FMT_NONE, GPU_NEED_LANES)                                       \
    X(expert_down_ln_arr, push_expert, 3, 1, GPU_FMT_NONE, GPU_NEED_LANES | GPU_NEED_ARRAY)                  \
    X(expert_down_sum, push_down_sum, 5, 1, GPU_FMT_DOWN, GPU_NEED_ARRAY)                                    \
    X(expert_down_sum_sg, push_down_sum, 5, 1, GPU_FMT_DOWN, GPU_NEED_SUBGROUP | GPU_NEED_ARRAY)             \
    X(expert_down_sum_ln, push_down_sum, 5, 1, GPU_FMT_NONE, GPU_NEED_LANES | GPU_NEED_ARRAY)                \
    X(expert_gate_up_tile, push_expert, 4, 1, GPU_FMT_GATE_UP, GPU_NEED_NONE)                                \
    X(expert_gate_up_tile_arr, push_expert, 4, 1, GPU_FMT_GATE_UP, GPU_NEED_ARRAY)                           \
    X(expert_gate_up_tile_ln, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_LANES)                               \
    X(expert_gate_up_tile_ln_arr, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_LANES | GPU_NEED_ARRAY)          \
    X(expert_gate_up_few, push_expert, 4, 1, GPU_FMT_GATE_UP, GPU_NEED_NONE)                                 \
    X(expert_gate_up_few_sg, push_expert, 4, 1, GPU_FMT_GATE_UP, GPU_NEED_SUBGROUP)                          \
    X(expert_gate_up_few_arr, push_expert, 4, 1, GPU_FMT_GATE_UP, GPU_NEED_ARRAY)                            \
    X(expert_gate_up_few_sg_arr, push_expert, 4, 1, GPU_FMT_GATE_UP, GPU_NEED_SUBGROUP | GPU_NEED_ARRAY)     \
    X(expert_down_tile, push_expert, 4, 1, GPU_FMT_DOWN, GPU_NEED_NONE)                                      \
    X(expert_down_tile_arr, push_expert, 4, 1, GPU_FMT_DOWN, GPU_NEED_ARRAY)                                 \
    X(expert_down_tile_ln, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_LANES)                                  \
    X(expert_down_tile_ln_arr, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_LANES | GPU_NEED_ARRAY)             \
    X(expert_down_few, push_expert, 4, 1, GPU_FMT_DOWN, GPU_NEED_NONE)                                       \
    X(expert_down_few_sg, push_expert, 4, 1, GPU_FMT_DOWN, GPU_NEED_SUBGROUP)                                \
    X(expert_down_few_arr, push_expert, 4, 1, GPU_FMT_DOWN, GPU_NEED_ARRAY)                                  \
    X(expert_down_few_sg_arr, push_expert, 4, 1, GPU_FMT_DOWN, GPU_NEED_SUBGROUP | GPU_NEED_ARRAY)           \
    X(swiglu, push_none, 2, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                  \
    X(shared_gate, push_none, 3, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                             \
    X(scale_add, push_none, 2, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                               \
    X(qk_norm, push_none, 2, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                 \
    X(combine, push_none, 4, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                 \
    X(copy_rows, push_rows, 3, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                               \
    X(expert_sums, push_rows, 5, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                             \
    X(topk, push_none, 2, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                    \
    X(quant_x, push_none, 2, 0, GPU_FMT_NONE, GPU_NEED_ROUNDED)                                              \
    X(matvec_dot, push_mat, 4, 0, GPU_FMT_NONE, GPU_NEED_ROUNDED)                                            \
    X(matvec_dot_sg, push_mat, 4, 0, GPU_FMT_NONE, GPU_NEED_SUBGROUP | GPU_NEED_ROUNDED)                     \
    X(matvec_dot_hw, push_mat, 4, 0, GPU_FMT_NONE, GPU_NEED_SUBGROUP | GPU_NEED_DOT | GPU_NEED_ROUNDED)      \
    X(expert_gate_up_dot, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_ROUNDED)                                 \
    X(expert_gate_up_dot_sg, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_SUBGROUP | GPU_NEED_ROUNDED)          \
    X(expert_gate_up_dot_arr, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_ARRAY | GPU_NEED_ROUNDED)            \
    X(expert_gate_up_dot_sg_arr, push_expert, 4, 1, GPU_FMT_NONE,                                            \
      GPU_NEED_SUBGROUP | GPU_NEED_ARRAY | GPU_NEED_ROUNDED)                                                 \
    X(expert_gate_up_dot_hw, push_expert, 4, 1, GPU_FMT_NONE,                                                \
      GPU_NEED_SUBGROUP | GPU_NEED_ARRAY | GPU_NEED_DOT | GPU_NEED_ROUNDED)                                  \
    X(expert_down_dot, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_ROUNDED)                                    \
    X(expert_down_dot_sg, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_SUBGROUP | GPU_NEED_ROUNDED)             \
    X(expert_down_dot_arr, push_expert, 4, 1, GPU_FMT_NONE, GPU_NEED_ARRAY | GPU_NEED_ROUNDED)               \
    X(expert_down_dot_sg_arr, push_expert, 4, 1, GPU_FMT_NONE,                                               \
      GPU_NEED_SUBGROUP | GPU_NEED_ARRAY | GPU_NEED_ROUNDED)                                                 \
    X(expert_down_dot_hw, push_expert, 4, 1, GPU_FMT_NONE,                                                   \
      GPU_NEED_SUBGROUP | GPU_NEED_ARRAY | GPU_NEED_DOT | GPU_NEED_ROUNDED)                                  \
    X(slot_tags, push_tags, 2, 1, GPU_FMT_NONE, GPU_NEED_NONE)                                               \
    X(slot_tags_arr, push_tags, 2, 1, GPU_FMT_NONE, GPU_NEED_ARRAY)                                          \
    X(peak_read, push_none, 2, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                               \
    X(peak_fma, push_none, 2, 0, GPU_FMT_NONE, GPU_NEED_NONE)                                                \
    X(peak_fma_half, push_none, 2, 0, GPU_FMT_NONE, GPU_NEED_F16)                                            \
    X(peak_fma_int, push_none, 2, 0, GPU_FMT_NONE, GPU_NEED_NONE)

enum gpu_kernel {
#define GPU_X(name, push, n_buffers, segs, formats, needs) GPU_K_##name,
    GPU_KERNEL_LIST(GPU_X)
#undef GPU_X
    GPU_KERNEL_COUNT
};

struct gpu_kernel_info {
    const char *name;
    uint32_t push_bytes;
    uint32_t n_buffers; /* without segments */
    bool segs;
    uint32_t formats; /* GPU_FMT_* */
    uint32_t needs;
};

const struct gpu_kernel_info *gpu_kernel_info(enum gpu_kernel k);
/* True when the device's (clamped) caps allow the kernel. */
bool gpu_kernel_usable(const struct gpu_device *dev, enum gpu_kernel k);

/* F32, F16, BF16, Q8_0, Q4_0 (FMT_* of shared/step.h). */
bool gpu_format_plain(uint32_t format);
/* True when kernel k with these n constants takes its module NAME_k. */
bool gpu_kernel_more(enum gpu_kernel k, const uint32_t *spec, size_t n);

struct gpu_pipeline;

/* The pipeline of kernel k for these specialisation constants (a spec_* struct of params.h: constant i is
 * word i).
 * n_segs: length of the segment array (1 for other kernels). Made once per device and spec; owned by the
 * device. */
enum vkmoe_status gpu_pipeline_get(struct gpu_pipeline **out, struct gpu_device *dev, enum gpu_kernel k,
                                   const void *spec,
                                   size_t spec_bytes, uint32_t n_segs, struct vkmoe_err *err);

/* Asks for a pipeline ahead of its use: from gpu_pipelines_ahead on, threads make all that were wished for,
 * while the caller uploads or records. Never fails: gpu_pipeline_get makes what they did not, and says why it
 * cannot. */
void gpu_pipeline_wish(struct gpu_device *dev, enum gpu_kernel k, const void *spec, size_t spec_bytes,
                       uint32_t n_segs);
void gpu_pipelines_ahead(struct gpu_device *dev);

/* True when the driver took it from the pipeline cache (VK_EXT_pipeline_creation_feedback; false where that
 * is absent). */
bool gpu_pipeline_from_cache(const struct gpu_pipeline *p);

/* What the driver's compiler says of a pipeline (VK_KHR_pipeline_executable_properties): one line per
 * statistic. */
struct gpu_pipeline_stat {
    char name[64];
    double value;
};
enum vkmoe_status gpu_pipeline_stats(struct gpu_device *dev, const struct gpu_pipeline *p,
                                     struct gpu_pipeline_stat *stats,
                                     uint32_t max, uint32_t *n, struct vkmoe_err *err);

/* The compiler's text whose name contains `name`, NUL-terminated; cor_free by the caller. Drivers name them
 * as they like: VKMOE_ERR_UNSUPPORTED where there is none. */
enum vkmoe_status gpu_pipeline_text(struct gpu_device *dev, const struct gpu_pipeline *p, const char *name,
                                    char **text, struct vkmoe_err *err);

/* SPIR-V of every kernel, built from shaders/ and embedded (generated source). */
struct gpu_spirv {
    const char *name;
    const uint8_t *deflated; /* and behind it, little-endian, CRC-32 and number of the bytes (RFC 1952) */
    size_t n_bytes;
};
extern const struct gpu_spirv gpu_spirv_modules[];
extern const uint32_t gpu_spirv_count;
/* The built-in module, for the caller to free; *words is NULL when this build has none of that name. */
enum vkmoe_status gpu_spirv_read(uint32_t **words, size_t *n_words, const char *name, struct vkmoe_err *err);
/* A sum of all of them: another one, other kernels. */
uint64_t gpu_spirv_sum(void);
extern const bool gpu_spirv_dot; /* with the modules that use integer dot products: _hw */

#endif
