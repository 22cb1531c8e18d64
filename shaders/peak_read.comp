/* How fast a shader can read: sums a buffer, each lane TRIPS units of one word, or of four with VEC.
 * Grid: (x, y), one group per WG * TRIPS units, which the buffer has exactly. out: one sum per lane.
 * Test: test_kernels_bench. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"

SPEC_PEAK_READ(SPEC_X)
layout(local_size_x_id = 0) in;

/* The same buffer twice: word by word and four words at a time. */
layout(std430, set = 0, binding = 0) readonly buffer Words { uint data[]; } words;
layout(std430, set = 0, binding = 0) readonly buffer Vectors { uvec4 data[]; } vectors;
layout(std430, set = 0, binding = 1) writeonly restrict buffer Out { uint data[]; } sums;

void main()
{
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    uint first = group * WG * TRIPS + gl_LocalInvocationIndex;
    uint sum = 0u;

    if (VEC != 0u) {
        uvec4 v = uvec4(0u);
        for (uint i = 0u; i < TRIPS; i++)
            v += vectors.data[first + i * WG];
        sum = v.x + v.y + v.z + v.w;
    } else {
        for (uint i = 0u; i < TRIPS; i++)
            sum += words.data[first + i * WG];
    }
    sums.data[group * WG + gl_LocalInvocationIndex] = sum;
}
