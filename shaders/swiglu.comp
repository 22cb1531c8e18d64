/* h[t] = silu(gate[t]) * up[t]; a row of gu holds FF gates, then FF ups.
 * Grid: (ceil(FF / WG), n_tokens). Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"

SPEC_SWIGLU(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer Gu { float data[]; } gu;
layout(std430, set = 0, binding = 1) writeonly restrict buffer H { float data[]; } h;

#include "lib/math.glsl"

void main()
{
    uint t = gl_WorkGroupID.y;
    uint i = gl_GlobalInvocationID.x;
    if (i < FF)
        h.data[t * FF + i] = silu(gu.data[t * 2u * FF + i]) * gu.data[t * 2u * FF + FF + i];
}
