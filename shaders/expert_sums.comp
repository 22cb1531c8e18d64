/* What Easy-EP's importance of an expert is made of, per token: with h the normed input of the MoE and m its
 * output (weighted experts and, SHARED, the shared one) h.h, h.m and m.m; then y.y of every chosen expert's
 * output before its weight, by rank, 0 where fewer than K_USED were allowed. f32 sums.
 * Grid: (1, n_tokens), one workgroup per token. Test: test_kernels_moe. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_EXPERT_SUMS(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_rows p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer Sel { uint data[]; } sel;
layout(std430, set = 0, binding = 1) readonly restrict buffer H { float data[]; } h;
layout(std430, set = 0, binding = 2) readonly restrict buffer Y { float data[]; } y;
layout(std430, set = 0, binding = 3) readonly restrict buffer Shared { float data[]; } ysh;
/* [p.dst_row0 + t][3 + K_USED] */
layout(std430, set = 0, binding = 4) writeonly restrict buffer Sums { float data[]; } sums;

#include "lib/reduce.glsl"

/* The MoE's output, element i, summed as combine does. */
float moe_output(uint t, uint i)
{
    precise float m = 0.0;

    for (uint j = 0u; j < K_USED; j++) {
        uint pair = t * K_USED + j;
        if (sel.data[2u * pair] != NONE)
            m = m + uintBitsToFloat(sel.data[2u * pair + 1u]) * y.data[pair * DIM + i];
    }
    if (SHARED != 0u)
        m = m + ysh.data[t * DIM + i];
    return m;
}

float output_square(uint pair)
{
    float sum = 0.0;

    if (sel.data[2u * pair] != NONE)
        for (uint i = gl_LocalInvocationIndex; i < DIM; i += WG)
            sum += y.data[pair * DIM + i] * y.data[pair * DIM + i];
    return reduce_add(sum);
}

void main()
{
    uint t = gl_WorkGroupID.y;
    uint out0 = (p.dst_row0 + t) * (3u + K_USED);
    bool first = gl_LocalInvocationIndex == 0u;
    vec4 dots = vec4(0.0);

    for (uint i = gl_LocalInvocationIndex; i < DIM; i += WG) {
        float a = h.data[t * DIM + i], m = moe_output(t, i);
        dots += vec4(a * a, a * m, m * m, 0.0);
    }
    dots = reduce_add4(dots);
    if (first) {
        sums.data[out0] = dots.x;
        sums.data[out0 + 1u] = dots.y;
        sums.data[out0 + 2u] = dots.z;
    }
    for (uint j = 0u; j < K_USED; j++) {
        float square = output_square(t * K_USED + j);
        if (first)
            sums.data[out0 + 3u + j] = square;
    }
}
