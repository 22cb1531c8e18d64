// variants: sg=USE_SUBGROUP
/* y[r] = x[r'] / sqrt(mean(x[r']^2) + eps) * w, sum in f32; r' = r, or STEP_ROW0 + r with FROM_ROW0.
 * Grid: (1, rows), one workgroup per row. Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#include "shared/params.h"
#include "shared/step.h"

SPEC_RMSNORM(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer X { float data[]; } x;
layout(std430, set = 0, binding = 2) readonly restrict buffer W { float data[]; } w;
layout(std430, set = 0, binding = 3) writeonly restrict buffer Y { float data[]; } y;

#include "lib/reduce.glsl"

void main()
{
    uint row = gl_WorkGroupID.y;
    uint from = row;
    float sum = 0.0;

    if (FROM_ROW0 != 0u)
        from += state.data[STEP_ROW0];
    for (uint i = gl_LocalInvocationIndex; i < DIM; i += WG) {
        float v = x.data[from * DIM + i];
        sum += v * v;
    }
    float scale = 1.0 / sqrt(reduce_add(sum) / float(DIM) + uintBitsToFloat(EPS_BITS));
    for (uint i = gl_LocalInvocationIndex; i < DIM; i += WG)
        y.data[row * DIM + i] = x.data[from * DIM + i] * scale * w.data[i];
}
