/* RMSNorm of queries and keys before they are rotated, in place: each head (LEN_Q = LEN_KV = the head's
 * size), or all queries as one row and all keys as another. A qkv row holds N_Q elements of queries, N_KV of
 * keys and N_KV of values, which stay; w holds LEN_Q weights, then LEN_KV. f32 sums.
 * Grid: (N_Q / LEN_Q + N_KV / LEN_KV, n_tokens), one workgroup per norm. Test: test_kernels_attn. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"

SPEC_QK_NORM(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) restrict buffer Qkv { float data[]; } qkv;
layout(std430, set = 0, binding = 1) readonly restrict buffer W { float data[]; } w;

#include "lib/reduce.glsl"

void main()
{
    const uint n_queries = N_Q / LEN_Q;
    bool keys = gl_WorkGroupID.x >= n_queries;
    uint n = keys ? LEN_KV : LEN_Q;
    uint w0 = keys ? LEN_Q : 0u;
    uint x0 = gl_WorkGroupID.y * (N_Q + 2u * N_KV) +
              (keys ? N_Q + (gl_WorkGroupID.x - n_queries) * LEN_KV : gl_WorkGroupID.x * LEN_Q);
    float sum = 0.0;

    for (uint i = gl_LocalInvocationIndex; i < n; i += WG)
        sum += qkv.data[x0 + i] * qkv.data[x0 + i];
    float scale = 1.0 / sqrt(reduce_add(sum) / float(n) + uintBitsToFloat(EPS_BITS));
    for (uint i = gl_LocalInvocationIndex; i < n; i += WG)
        qkv.data[x0 + i] = qkv.data[x0 + i] * scale * w.data[w0 + i];
}
