/* Rotates queries and keys by position STEP_POS + t, stores queries in qr, keys and values in the caches. qkv
 * row: N_HEADS queries, N_KV keys, N_KV values of HEAD_DIM (even) elements; elements from N_ROT on are
 * copied.
 * A block of a cache in Q8_0 is done by the lane of its first elements; HEAD_DIM is a multiple of CACHE_ELEMS
 * then.
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
#include "lib/math.glsl"

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

void put_word(bool value, uint at, uint word)
{
    if (value)
        vc.data[at] = word;
    else
        kc.data[at] = word;
}

/* Elements at and at + 1 of a cache. */
void put_pair(bool value, uint format, uint at, vec2 v)
{
    if (format == FMT_F16) {
        put_word(value, at / 2u, floats_to_halves(v));
    } else {
        put_word(value, at, floatBitsToUint(v.x));
        put_word(value, at + 1u, floatBitsToUint(v.y));
    }
}

/* Elements at .. at + 31, as lib/cache.glsl reads them and as Q8_0 rounds: the scale is the largest / 127, in
 * half precision; halves away from zero. What is not finite stays visible in the scale. */
void put_block(bool value, uint at, uint head, uint d, uint pos)
{
    float v[CACHE_ELEMS];
    float most = 0.0;
    bool finite = true;

    for (uint i = 0u; i < CACHE_ELEMS; i++) {
        v[i] = value ? qkv.data[head + d + i] : rotated(head, d + i, pos);
        finite = finite && bits_finite(floatBitsToUint(v[i]));
        most = max(most, abs(v[i]));
    }
    float scale = most / 127.0, inverse = scale > 0.0 ? 1.0 / scale : 0.0;
    uint block = at / CACHE_ELEMS * CACHE_WORDS;
    for (uint i = 0u; i < 8u; i++) {
        uint word = 0u;
        for (uint j = 0u; j < 4u; j++) {
            float q = v[4u * i + j] * inverse;
            word |= (uint(int(q + (q < 0.0 ? -0.5 : 0.5))) & 0xffu) << (8u * j);
        }
        put_word(value, block + i, finite ? word : 0x01010101u);
    }
    put_word(value, block + CACHE_WORDS - 1u,
             finite ? floatBitsToUint(half_to_float(float_to_half(scale))) : 0x7fc00000u);
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
    bool value = e >= n_q + n_kv;
    uint format = value ? V_CACHE : K_CACHE;

    if (e >= n_q + 2u * n_kv)
        return;
    uint at = pos * n_kv + e - n_q - (value ? n_kv : 0u); /* in the cache */
    if (e >= n_q && format == FMT_Q8_0) {
        if (d % CACHE_ELEMS == 0u)
            put_block(value, at, head, d, pos);
        return;
    }
    vec2 v = value ? vec2(qkv.data[row + e], qkv.data[row + e + 1u])
                   : vec2(rotated(head, d, pos), rotated(head, d + 1u, pos));
    if (e >= n_q) {
        put_pair(value, format, at, v);
        return;
    }
    qr.data[t * n_q + e] = v.x;
    qr.data[t * n_q + e + 1u] = v.y;
}
