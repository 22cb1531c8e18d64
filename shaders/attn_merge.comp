/* Joins the splits of attn_one: out[head] = sum(exp(m_s - m) * acc_s) / sum(exp(m_s - m) * l_s), f32 sums.
 * Grid: (N_HEADS), lanes over HEAD_DIM. Test: test_kernels_attn. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_ATTN(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer Part { float data[]; } part;
layout(std430, set = 0, binding = 2) writeonly restrict buffer Out { float data[]; } outp;

#include "lib/math.glsl"

void main()
{
    uint head = gl_WorkGroupID.x;
    uint n_splits = (state.data[STEP_POS] + ATTN_SPLIT) / ATTN_SPLIT; /* ceil((pos + 1) / ATTN_SPLIT) */
    uint first = head * N_SPLITS * (HEAD_DIM + 2u);
    float m = LOWEST;

    for (uint s = 0u; s < n_splits; s++)
        m = max(m, part.data[first + s * (HEAD_DIM + 2u)]);
    for (uint d = gl_LocalInvocationIndex; d < HEAD_DIM; d += WG) {
        float l = 0.0, a = 0.0;
        for (uint s = 0u; s < n_splits; s++) {
            uint at = first + s * (HEAD_DIM + 2u);
            float scale = exp(part.data[at] - m);
            l += scale * part.data[at + 1u];
            a += scale * part.data[at + 2u + d];
        }
        outp.data[head * HEAD_DIM + d] = a / l;
    }
}
