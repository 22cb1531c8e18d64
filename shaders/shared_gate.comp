/* h[t] *= sigmoid(dot(w, x[t])): how much of the shared expert a token takes, applied to its hidden state, as
 * what follows is linear. f32 sums.
 * Grid: (1, n_tokens). Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"

SPEC_SHARED_GATE(SPEC_X)
layout(local_size_x_id = 0) in;

/* [t][DIM] */
layout(std430, set = 0, binding = 0) readonly restrict buffer X { float data[]; } x;
layout(std430, set = 0, binding = 1) readonly restrict buffer W { float data[]; } w;
/* [t][FF] */
layout(std430, set = 0, binding = 2) restrict buffer H { float data[]; } h;

#include "lib/reduce.glsl"

void main()
{
    uint t = gl_WorkGroupID.y;
    float sum = 0.0;

    for (uint i = gl_LocalInvocationIndex; i < DIM; i += WG)
        sum += x.data[t * DIM + i] * w.data[i];
    float gate = 1.0 / (1.0 + exp(-reduce_add(sum)));
    for (uint i = gl_LocalInvocationIndex; i < FF; i += WG)
        h.data[t * FF + i] *= gate;
}
