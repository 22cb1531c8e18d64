/* Rounds rows of K elements to 8 bits with a scale for each 32, for the kernels of --fast-math: lib/dot8.glsl
 * says how they stand. Scale: largest element / 127; a block with an element that is not finite gets NaN.
 * Grid: (ceil(K / 32 / WG), y, z): row gl_WorkGroupID.y * (size of z) + gl_WorkGroupID.z; one lane takes a
 * block. Test: test_kernels_dot. */
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "shared/params.h"

SPEC_QUANT_X(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer X { vec4 data[]; } x;
layout(std430, set = 0, binding = 1) writeonly restrict buffer Q { uint data[]; } q;

#include "lib/math.glsl"

void main()
{
    uint b = gl_GlobalInvocationID.x, n = K / 32u;
    uint row = gl_WorkGroupID.y * gl_NumWorkGroups.z + gl_WorkGroupID.z;
    uint q0 = row * ((n * 10u + 3u) & ~3u);
    vec4 v[8], most = vec4(0.0);
    uint bits = 0u;
    ivec4 sums = ivec4(0);

    if (b >= n)
        return;
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        v[i] = x.data[(row * K_STRIDE + b * 32u) / 4u + i];
        most = max(most, abs(v[i]));
        uvec4 e = floatBitsToUint(v[i]) & 0x7f800000u; /* max may pass over a NaN */
        bits = max(bits, max(max(e.x, e.y), max(e.z, e.w)));
    }
    float d = max(max(most.x, most.y), max(most.z, most.w)) / 127.0;
    bool finite = bits_finite(bits), zero = d < 1.1754943508222875e-38;
    float inverse = finite && !zero ? 1.0 / d : 0.0;
    [[unroll]] for (uint i = 0u; i < 8u; i++) {
        vec4 scaled = finite ? v[i] * inverse : vec4(0.0);
        ivec4 r = clamp(ivec4(roundEven(scaled)), ivec4(-127), ivec4(127));
        uvec4 u = uvec4(r) & 0xffu;
        sums += r;
        q.data[q0 + b * 8u + i] = u.x | (u.y << 8) | (u.z << 16) | (u.w << 24);
    }
    q.data[q0 + n * 8u + b] = finite ? floatBitsToUint(zero ? 0.0 : d) : 0x7fc00000u;
    q.data[q0 + n * 9u + b] = uint(sums.x + sums.y + sums.z + sums.w);
}
