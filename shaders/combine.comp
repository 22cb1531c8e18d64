/* x[t] += sum over ranks j, ascending, of weight_j * y[t * K_USED + j], plus the shared expert's ysh[t]
 * (SHARED). The order is fixed, so results do not depend on which expert was there first; f32.
 * Grid: (ceil(DIM / WG), n_tokens). Test: test_kernels_moe. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_COMBINE(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer Sel { uint data[]; } sel;
layout(std430, set = 0, binding = 1) readonly restrict buffer Y { float data[]; } y;
layout(std430, set = 0, binding = 2) readonly restrict buffer Shared { float data[]; } ysh;
layout(std430, set = 0, binding = 3) restrict buffer X { float data[]; } x;

void main()
{
    uint t = gl_WorkGroupID.y;
    uint i = gl_GlobalInvocationID.x;
    precise float sum = 0.0;

    if (i >= DIM)
        return;
    for (uint j = 0u; j < K_USED; j++) {
        uint pair = t * K_USED + j;
        if (sel.data[2u * pair] != NONE)
            sum = sum + uintBitsToFloat(sel.data[2u * pair + 1u]) * y.data[pair * DIM + i];
    }
    if (SHARED != 0u)
        sum = sum + ysh.data[t * DIM + i];
    x.data[t * DIM + i] += sum;
}
