// variants: sg=USE_SUBGROUP
/* Attention of one query: a workgroup takes one split of ATTN_SPLIT cached positions of a head, and the last
 * of a head to finish joins its splits: out[head] = sum(exp(m_s - m) * acc_s) / sum(exp(m_s - m) * l_s).
 * part[head][split]: largest score m, sum l of exp(score - m), then HEAD_DIM unnormalised sums of V. f32
 * sums. WINDOW: keys further back are not seen; SINKS: a score of each head's own joins the sum of exps.
 * Grid: (N_HEADS, ceil((pos + 1) / ATTN_SPLIT)). Scores: one lane per key; values: one lane per pair of
 * elements, with the keys dealt out to as many groups of lanes as there are. Test: test_kernels_attn. */
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#include "shared/params.h"
#include "shared/step.h"

SPEC_ATTN(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer Q { float data[]; } qr;
layout(std430, set = 0, binding = 2) readonly restrict buffer KCache { uint data[]; } kc;
layout(std430, set = 0, binding = 3) readonly restrict buffer VCache { uint data[]; } vc;
layout(std430, set = 0, binding = 4) coherent buffer Part { float data[]; } part;
layout(std430, set = 0, binding = 5) writeonly restrict buffer Out { float data[]; } outp;
/* [head] */
layout(std430, set = 0, binding = 6) coherent buffer Counts { uint data[]; } counts;
/* [head], read with SINKS only */
layout(std430, set = 0, binding = 7) readonly restrict buffer Sinks { float data[]; } sinks;

#define K_WORD(i) kc.data[i]
#define V_WORD(i) vc.data[i]
#include "lib/cache.glsl"
#include "lib/math.glsl"
#include "lib/reduce.glsl"
#define LAST_COUNTER(i) counts.data[i]
#include "lib/last.glsl"

const uint PART = HEAD_DIM + 2u; /* words of a partial result */
const uint PAIRS = HEAD_DIM / 2u;
const uint KEY_GROUPS = WG > PAIRS ? WG / PAIRS : 1u;

shared vec2 query[PAIRS];
shared float prob[ATTN_SPLIT];
shared vec2 sums[WG];

float score(uint pos, uint kv_head)
{
    uint row = cache_row(pos, kv_head);
    float s = 0.0;
    for (uint i = 0u; i < PAIRS; i++)
        s += dot(k_pair(row + i), query[i]);
    return s;
}

/* Sum over keys from, from + step .. of prob * V, for one pair of elements. */
vec2 weighted(uint first, uint from, uint step_, uint n, uint kv_head, uint pair)
{
    vec2 a = vec2(0.0);
    for (uint j = from; j < n; j += step_)
        a += prob[j] * v_pair(cache_row(first + j, kv_head) + pair);
    return a;
}

/* One split's part of a head, `n` keys from `first` on. */
void attend(uint first, uint n, uint head, uint kv_head, uint out0)
{
    uint lane = gl_LocalInvocationIndex;
    float m = LOWEST, l = 0.0;

    for (uint j = lane; j < n; j += WG) {
        float s = score(first + j, kv_head);
        prob[j] = s;
        m = max(m, s);
    }
    m = reduce_max(m);
    for (uint j = lane; j < n; j += WG) {
        float e = exp(prob[j] - m);
        prob[j] = e;
        l += e;
    }
    l = reduce_add(l);
    barrier(); /* prob, also where the reductions needed none */
    if (lane == 0u) {
        part.data[out0] = m;
        part.data[out0 + 1u] = l;
    }
    if (KEY_GROUPS == 1u) {
        for (uint i = lane; i < PAIRS; i += WG) {
            vec2 a = weighted(first, 0u, 1u, n, kv_head, i);
            part.data[out0 + 2u + 2u * i] = a.x;
            part.data[out0 + 3u + 2u * i] = a.y;
        }
        return;
    }
    if (lane < KEY_GROUPS * PAIRS)
        sums[lane] = weighted(first, lane / PAIRS, KEY_GROUPS, n, kv_head, lane % PAIRS);
    barrier();
    if (lane < PAIRS) {
        vec2 a = sums[lane];
        for (uint g = 1u; g < KEY_GROUPS; g++)
            a += sums[g * PAIRS + lane];
        part.data[out0 + 2u + 2u * lane] = a.x;
        part.data[out0 + 3u + 2u * lane] = a.y;
    }
}

/* Splits s0 .. n_splits - 1, and the sink as one more key. */
void join_splits(uint head, uint s0, uint n_splits)
{
    uint first = head * N_SPLITS * PART;
    float m = LOWEST;

    if (SINKS != 0u)
        m = sinks.data[head];
    for (uint s = s0; s < n_splits; s++)
        m = max(m, part.data[first + s * PART]);
    for (uint d = gl_LocalInvocationIndex; d < HEAD_DIM; d += WG) {
        float l = 0.0, a = 0.0;
        if (SINKS != 0u)
            l = exp(sinks.data[head] - m);
        for (uint s = s0; s < n_splits; s++) {
            uint at = first + s * PART;
            float scale = exp(part.data[at] - m);
            l += scale * part.data[at + 1u];
            a += scale * part.data[at + 2u + d];
        }
        outp.data[head * HEAD_DIM + d] = a / l;
    }
}

void main()
{
    uint head = gl_WorkGroupID.x;
    uint split = gl_WorkGroupID.y;
    uint first = split * ATTN_SPLIT;
    uint n_keys = state.data[STEP_POS] + 1u;
    uint seen = WINDOW != 0u && n_keys > WINDOW ? n_keys - WINDOW : 0u; /* the first key */
    uint s0 = seen / ATTN_SPLIT;

    if (first >= n_keys || split < s0)
        return;
    uint unseen = first < seen ? seen - first : 0u; /* keys of the split before the window */
    for (uint i = gl_LocalInvocationIndex; i < PAIRS; i += WG) {
        uint at = head * HEAD_DIM + 2u * i;
        query[i] = vec2(qr.data[at], qr.data[at + 1u]) * uintBitsToFloat(SCALE_BITS);
    }
    barrier();
    attend(first + unseen, min(n_keys - first, ATTN_SPLIT) - unseen, head, head * N_KV / N_HEADS,
           (head * N_SPLITS + split) * PART);
    uint n_splits = (n_keys + ATTN_SPLIT - 1u) / ATTN_SPLIT;
    if (last_of(head, n_splits - s0))
        join_splits(head, s0, n_splits);
}
