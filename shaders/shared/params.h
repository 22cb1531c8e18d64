/* Push structs and specialisation constants of every kernel, read by C and by GLSL.
 * Push constants: what changes per dispatch. Specialisation constants: what is fixed at load; each list gives
 * X(constant_id, c_field, GLSL_NAME); constant 0 is always the workgroup size. */
#ifndef SHARED_PARAMS_H
#define SHARED_PARAMS_H

#ifdef VULKAN /* GLSL */
#define SPEC_X(id, field, NAME) layout(constant_id = id) const uint NAME = 1;
#define PUSH_BEGIN(name) struct name {
#define PUSH_END(name, bytes) };
#else
#include <stdint.h>
#define SPEC_X(id, field, NAME) uint32_t field;
#define PUSH_BEGIN(name) struct name {
#define PUSH_END(name, bytes) };                                      \
    _Static_assert(sizeof(struct name) == (bytes), #name " has holes");
#ifndef SHARED_UINT
#define SHARED_UINT
typedef uint32_t uint;
#endif
#endif

/* Kernels without push constants use this one. */
PUSH_BEGIN(push_none)
uint unused;
PUSH_END(push_none, 4)

/* embed: rows [row0, row0 + n_rows) of the table are bound; other tokens are left to the dispatch that
 * binds theirs. */
PUSH_BEGIN(push_embed)
uint row0, n_rows, w_off;
PUSH_END(push_embed, 12)

/* matvec, matmul: writes outputs [out0, out0 + n_rows) of each output row from the n_rows matrix rows that
 * start w_off bytes into the binding. */
PUSH_BEGIN(push_mat)
uint out0, n_rows, w_off;
PUSH_END(push_mat, 12)

/* matvec_norm: as matvec; n_groups: workgroups of all dispatches that write the row. */
PUSH_BEGIN(push_mat_norm)
uint out0, n_rows, w_off, n_groups;
PUSH_END(push_mat_norm, 16)

PUSH_BEGIN(push_layer)
uint layer;
PUSH_END(push_layer, 4)

/* copy_rows, expert_sums: row of the output that belongs to the first token of the chunk. */
PUSH_BEGIN(push_rows)
uint dst_row0;
PUSH_END(push_rows, 4)

/* router_one: out0, n_rows, n_groups as matvec_norm. next is the index of the dispatch behind it; that one
 * and all later ones are emptied when an expert is absent. after: the first dispatch that needs all experts;
 * a partial step ends before it. */
PUSH_BEGIN(push_router)
uint out0, n_rows, n_groups, layer, next, after;
PUSH_END(push_router, 24)

/* group: as router_one; of the dispatches from tiles0 on, n_tiles get the number of tiles as their y; gap
 * others stand between the first half of these and the second. */
PUSH_BEGIN(push_group)
uint layer, next, after, tiles0, n_tiles, gap;
PUSH_END(push_group, 24)

/* expert kernels: seg is the segment bound (modules without the segment array; others ignore it). */
PUSH_BEGIN(push_expert)
uint seg;
PUSH_END(push_expert, 4)

PUSH_BEGIN(push_down_sum)
uint n_groups;
PUSH_END(push_down_sum, 4)

/* slot_tags: n entries of TAG_WORDS words in the list; seg as above. An entry: slot, byte offset in the slot
 * of the last words (a multiple of 4), how many words are compared from the start of the slot and from there
 * (at most 16 each), and these words as the file has them, behind each other. */
PUSH_BEGIN(push_tags)
uint n, seg;
PUSH_END(push_tags, 8)

#define TAG_SLOT 0
#define TAG_LAST_OFF 1
#define TAG_N_FIRST 2
#define TAG_N_LAST 3
#define TAG_FIRST 4
#define TAG_WORDS 36

#define SPEC_PUBLISH(X) X(0, wg, WG)

/* dim elements per row of format `format` with row_bytes bytes. */
#define SPEC_EMBED(X) X(0, wg, WG) X(1, dim, DIM) X(2, format, FORMAT) X(3, row_bytes, ROW_BYTES)

/* eps_bits: bits of the float. from_row0: input row is STEP_ROW0 + output row (the output head), else the
 * same row. */
#define SPEC_RMSNORM(X) X(0, wg, WG) X(1, dim, DIM) X(2, eps_bits, EPS_BITS) X(3, from_row0, FROM_ROW0)

/* k: row length; n_out: stride of an output row, elements; k_stride: stride of an input row, elements;
 * add: y += instead of y =; rows: matrix rows per workgroup (matvec: 1..8, kernels of rows on lanes: 4 or
 * 8 WG); aligned (pure speed): 1: every block starts on a 4-byte boundary, 2: every row on a 16-byte one,
 * 3: rows are whole pairs of blocks that start at multiples of their size (lib/block_pair.glsl);
 * count_rows (matmul): the number of input rows is n_rows of the step, else n_tokens. */
#define SPEC_MAT(X)                                                                                          \
    X(0, wg, WG) X(1, k, K) X(2, n_out, N_OUT) X(3, k_stride, K_STRIDE) X(4, format, FORMAT)                 \
    X(5, row_bytes, ROW_BYTES) X(6, add, ADD) X(7, rows, ROWS) X(8, aligned, ALIGNED)                         \
    X(9, count_rows, COUNT_ROWS)

/* One input row; y += always, and its RMSNorm. dim: length of y. */
#define SPEC_MAT_NORM(X)                                                                                     \
    X(0, wg, WG) X(1, k, K) X(2, dim, DIM) X(3, format, FORMAT) X(4, row_bytes, ROW_BYTES) X(5, rows, ROWS)  \
    X(6, aligned, ALIGNED) X(7, eps_bits, EPS_BITS)

/* qkv row: n_heads * head_dim queries, n_kv * head_dim keys, n_kv * head_dim values. neox: pairs (i, i +
 * n_rot/2) instead of (2i, 2i + 1). k_cache, v_cache: formats of the caches, FMT_F32, FMT_F16 or FMT_Q8_0. */
#define SPEC_ROPE(X)                                                                                         \
    X(0, wg, WG) X(1, head_dim, HEAD_DIM) X(2, n_heads, N_HEADS) X(3, n_kv, N_KV) X(4, n_rot, N_ROT)         \
    X(5, neox, NEOX) X(6, k_cache, K_CACHE) X(7, v_cache, V_CACHE)

/* scale_bits: bits of the factor on scores. n_splits: splits reserved per head in the partial results.
 * window: positions that a query sees, its own among them, 0: all. sinks: each head has a score whose value
 * is 0, else that binding is not read. */
#define SPEC_ATTN(X)                                                                                         \
    X(0, wg, WG) X(1, head_dim, HEAD_DIM) X(2, n_heads, N_HEADS) X(3, n_kv, N_KV)                            \
    X(4, scale_bits, SCALE_BITS) X(5, k_cache, K_CACHE) X(6, v_cache, V_CACHE) X(7, n_splits, N_SPLITS)      \
    X(8, window, WINDOW) X(9, sinks, SINKS)

/* norm: weights divided by their sum; scale_bits: bits of the factor on the weights. */
#define SPEC_ROUTER(X)                                                                                       \
    X(0, wg, WG) X(1, n_experts, N_EXPERTS) X(2, k_used, K_USED) X(3, norm, NORM) X(4, scale_bits, SCALE_BITS)

/* k, format, row_bytes, rows, aligned: of the router's matrix, as SPEC_MAT. bias_at: word of CHOICE_* where
 * what is added to the logits of all layers stands, 0: nothing is. The rest as SPEC_ROUTER. */
#define SPEC_ROUTER_ONE(X)                                                                                   \
    X(0, wg, WG) X(1, n_experts, N_EXPERTS) X(2, k_used, K_USED) X(3, norm, NORM)                             \
    X(4, scale_bits, SCALE_BITS) X(5, k, K) X(6, format, FORMAT) X(7, row_bytes, ROW_BYTES)                  \
    X(8, rows, ROWS) X(9, aligned, ALIGNED) X(10, bias_at, BIAS_AT)

#define SPEC_RESOLVE(X) X(0, wg, WG) X(1, n_experts, N_EXPERTS) X(2, k_used, K_USED)

/* One slot: gate matrix at byte 0 (ff rows of dim), up at up_off, down at down_off (dim rows of ff).
 * slot_stride bytes between slots, slots_per_seg slots in a segment, n_segs segments bound as an array (1
 * without the array). shared: the last of them is the shared expert's matrix (gate and up behind each other,
 * or down), rank K_USED. eps_bits (expert_down_sum): as SPEC_RMSNORM. *_bias: where in the slot the f32 that
 * are added to the rows of gate, up and down stand, a multiple of 4; 0: nothing is, and always with shared.
 * act: ACT_* of shared/step.h. */
#define SPEC_EXPERT(X)                                                                                       \
    X(0, wg, WG) X(1, dim, DIM) X(2, ff, FF) X(3, n_experts, N_EXPERTS) X(4, k_used, K_USED)                 \
    X(5, fmt_gate, FMT_GATE) X(6, fmt_up, FMT_UP) X(7, fmt_down, FMT_DOWN) X(8, up_off, UP_OFF)              \
    X(9, down_off, DOWN_OFF) X(10, slot_stride, SLOT_STRIDE) X(11, slots_per_seg, SLOTS_PER_SEG)             \
    X(12, n_segs, N_SEGS) X(13, rows, ROWS) X(14, aligned, ALIGNED) X(15, shared, SHARED)                     \
    X(16, eps_bits, EPS_BITS) X(17, gate_bias, GATE_BIAS) X(18, up_bias, UP_BIAS)                            \
    X(19, down_bias, DOWN_BIAS) X(20, act, ACT)

/* Rows of k elements (a multiple of 32), k_stride (a multiple of 4) elements apart. */
#define SPEC_QUANT_X(X) X(0, wg, WG) X(1, k, K) X(2, k_stride, K_STRIDE)

/* Kernels with quantised inputs (lib/dot_rows.glsl): lanes, blocks, tokens and wide are said there, rows:
 * matrix rows per workgroup, a multiple of wg / lanes; many: a chunk of tokens, else one; the rest as
 * SPEC_MAT and SPEC_EXPERT. */
#define SPEC_MAT_DOT(X)                                                                                      \
    X(0, wg, WG) X(1, k, K) X(2, n_out, N_OUT) X(3, format, FORMAT) X(4, row_bytes, ROW_BYTES)               \
    X(5, add, ADD) X(6, rows, ROWS) X(7, many, MANY) X(8, count_rows, COUNT_ROWS) X(9, lanes, LANES)         \
    X(10, blocks, BLOCKS) X(11, tokens, TOKENS) X(12, wide, WIDE)

#define SPEC_EXPERT_DOT(X)                                                                                   \
    X(0, wg, WG) X(1, dim, DIM) X(2, ff, FF) X(3, k_used, K_USED) X(4, format, FORMAT)                       \
    X(5, up_off, UP_OFF) X(6, down_off, DOWN_OFF) X(7, slot_stride, SLOT_STRIDE)                             \
    X(8, slots_per_seg, SLOTS_PER_SEG) X(9, n_segs, N_SEGS) X(10, rows, ROWS) X(11, many, MANY)              \
    X(12, lanes, LANES) X(13, blocks, BLOCKS) X(14, tokens, TOKENS) X(15, wide, WIDE)

#define SPEC_SWIGLU(X) X(0, wg, WG) X(1, ff, FF)

/* Rows of n elements. scale_bits: bits of the factor; bias: b is added, else that binding is not read. */
#define SPEC_SCALE_ADD(X) X(0, wg, WG) X(1, n, N) X(2, scale_bits, SCALE_BITS) X(3, bias, BIAS)

/* n_q, n_kv: elements of queries and of keys in a row; len_q, len_kv: of what is normed at once. */
#define SPEC_QK_NORM(X)                                                                                      \
    X(0, wg, WG) X(1, n_q, N_Q) X(2, n_kv, N_KV) X(3, len_q, LEN_Q) X(4, len_kv, LEN_KV)                     \
    X(5, eps_bits, EPS_BITS)

#define SPEC_SHARED_GATE(X) X(0, wg, WG) X(1, dim, DIM) X(2, ff, FF)

/* shared: 0: no shared expert, binding 2 is not read. */
#define SPEC_COMBINE(X) X(0, wg, WG) X(1, dim, DIM) X(2, k_used, K_USED) X(3, shared, SHARED)

#define SPEC_EXPERT_SUMS(X) X(0, wg, WG) X(1, dim, DIM) X(2, k_used, K_USED) X(3, shared, SHARED)

/* dim words per row; from_pos, to_pos: rows of that side are counted from the text's first token, else from
 * the chunk's. */
#define SPEC_COPY_ROWS(X) X(0, wg, WG) X(1, dim, DIM) X(2, from_pos, FROM_POS) X(3, to_pos, TO_POS)

/* n: logits, or results of workgroups with merge; n_ids: indices from there on are never chosen; k: pairs of
 * a result, at most TOPK_MAX. */
#define SPEC_TOPK(X) X(0, wg, WG) X(1, n, N) X(2, n_ids, N_IDS) X(3, k, K) X(4, merge, MERGE)

/* slot_stride, slots_per_seg, n_segs: as SPEC_EXPERT. */
#define SPEC_TAGS(X)                                                                                         \
    X(0, wg, WG) X(1, slot_stride, SLOT_STRIDE) X(2, slots_per_seg, SLOTS_PER_SEG) X(3, n_segs, N_SEGS)

/* trips: units per lane; vec: a unit is four words, else one. */
#define SPEC_PEAK_READ(X) X(0, wg, WG) X(1, trips, TRIPS) X(2, vec, VEC)

/* groups: results kept; later groups write over those of earlier ones. */
#define SPEC_PEAK_FMA(X) X(0, wg, WG) X(1, trips, TRIPS) X(2, fused, FUSED) X(3, groups, GROUPS)

#ifndef VULKAN
struct spec_publish { SPEC_PUBLISH(SPEC_X) };
struct spec_embed { SPEC_EMBED(SPEC_X) };
struct spec_rmsnorm { SPEC_RMSNORM(SPEC_X) };
struct spec_mat { SPEC_MAT(SPEC_X) };
struct spec_mat_norm { SPEC_MAT_NORM(SPEC_X) };
struct spec_rope { SPEC_ROPE(SPEC_X) };
struct spec_attn { SPEC_ATTN(SPEC_X) };
struct spec_router { SPEC_ROUTER(SPEC_X) };
struct spec_router_one { SPEC_ROUTER_ONE(SPEC_X) };
struct spec_resolve { SPEC_RESOLVE(SPEC_X) };
struct spec_expert { SPEC_EXPERT(SPEC_X) };
struct spec_quant_x { SPEC_QUANT_X(SPEC_X) };
struct spec_mat_dot { SPEC_MAT_DOT(SPEC_X) };
struct spec_expert_dot { SPEC_EXPERT_DOT(SPEC_X) };
struct spec_swiglu { SPEC_SWIGLU(SPEC_X) };
struct spec_scale_add { SPEC_SCALE_ADD(SPEC_X) };
struct spec_qk_norm { SPEC_QK_NORM(SPEC_X) };
struct spec_shared_gate { SPEC_SHARED_GATE(SPEC_X) };
struct spec_combine { SPEC_COMBINE(SPEC_X) };
struct spec_expert_sums { SPEC_EXPERT_SUMS(SPEC_X) };
struct spec_copy_rows { SPEC_COPY_ROWS(SPEC_X) };
struct spec_topk { SPEC_TOPK(SPEC_X) };
struct spec_tags { SPEC_TAGS(SPEC_X) };
struct spec_peak_read { SPEC_PEAK_READ(SPEC_X) };
struct spec_peak_fma { SPEC_PEAK_FMA(SPEC_X) };
#endif

#endif
