/* y[t] = SCALE * y[t] + b (BIAS), in place.
 * Grid: (ceil(N / WG), rows). Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"

SPEC_SCALE_ADD(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) restrict buffer Y { float data[]; } y;
/* read with BIAS only */
layout(std430, set = 0, binding = 1) readonly restrict buffer B { float data[]; } b;

void main()
{
    uint i = gl_GlobalInvocationID.x;
    uint at = gl_WorkGroupID.y * N + i;

    if (i >= N)
        return;
    float v = y.data[at] * uintBitsToFloat(SCALE_BITS);
    if (BIAS != 0u)
        v += b.data[i];
    y.data[at] = v;
}
