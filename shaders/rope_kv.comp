/* Rotates queries and keys by position STEP_POS + t, stores queries in qr, keys and values in the caches. qkv
 * row: N_HEADS queries, N_KV keys, N_KV values of HEAD_DIM (even) elements; elements from N_ROT on are
 * copied.
 * Pairs: (2i, 2i + 1), with NEOX (i, i + N_ROT / 2); cos and sin come from a table of the host's.
 * Grid: (ceil(pairs / WG), n_tokens), two neighbouring elements of the output per lane. Test:
 * test_kernels_attn. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_ROPE(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer Qkv { float data[]; } qkv;
layout(std430, set = 0, binding = 2) writeonly restrict buffer Q { float data[]; } qr;
layout(std430, set = 0, binding = 3) writeonly restrict buffer KCache { uint data[]; } kc;
layout(std430, set = 0, binding = 4) writeonly restrict buffer VCache { uint data[]; } vc;
/* [pos][N_ROT / 2][cos, sin] */
layout(std430, set = 0, binding = 5) readonly restrict buffer Rope { float data[]; } rope;

#include "lib/half.glsl"

const uint HALF_ROT = N_ROT / 2u;

/* Element d of the head that starts at `head`, rotated. */
float rotated(uint head, uint d, uint pos)
{
    bool first = NEOX != 0u ? d < HALF_ROT : (d & 1u) == 0u;
    uint i = NEOX != 0u ? (first ? d : d - HALF_ROT) : d / 2u;
    uint other = NEOX != 0u ? (first ? d + HALF_ROT : i) : d ^ 1u;
    float v = qkv.data[head + d];

    if (d >= N_ROT)
        return v;
    float c = rope.data[(pos * HALF_ROT + i) * 2u];
    float s = rope.data[(pos * HALF_ROT + i) * 2u + 1u];
    float u = qkv.data[head + other];
    return first ? v * c - u * s : v * c + u * s;
}

void main()
{
    const uint n_q = N_HEADS * HEAD_DIM;
    const uint n_kv = N_KV * HEAD_DIM;
    uint t = gl_WorkGroupID.y;
    uint e = gl_GlobalInvocationID.x * 2u; /* element of the qkv row */
    uint pos = state.data[STEP_POS] + t;
    uint row = t * (n_q + 2u * n_kv);
    uint d = e % HEAD_DIM;
    uint head = row + e - d;

    if (e >= n_q + 2u * n_kv)
        return;
    if (e >= n_q + n_kv) {
        uint at = pos * n_kv + e - n_q - n_kv;
        vec2 v = vec2(qkv.data[row + e], qkv.data[row + e + 1u]);
        if (V_F16 != 0u) {
            vc.data[at / 2u] = floats_to_halves(v);
        } else {
            vc.data[at] = floatBitsToUint(v.x);
            vc.data[at + 1u] = floatBitsToUint(v.y);
        }
        return;
    }
    vec2 v = vec2(rotated(head, d, pos), rotated(head, d + 1u, pos));
    if (e < n_q) {
        qr.data[t * n_q + e] = v.x;
        qr.data[t * n_q + e + 1u] = v.y;
        return;
    }
    uint at = pos * n_kv + e - n_q;
    if (K_F16 != 0u) {
        kc.data[at / 2u] = floats_to_halves(v);
    } else {
        kc.data[at] = floatBitsToUint(v.x);
        kc.data[at + 1u] = floatBitsToUint(v.y);
    }
}
