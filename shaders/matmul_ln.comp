/* matmul for narrow devices (lib/lanes.glsl): y[t][out0 + r] = (or +=, with ADD) dot(W[r], x[t]) for
 * matrix rows r < n_rows and all input rows t, sums in f32.
 * Grid: (x, ceil(T / 32), z): workgroup x + z * (size of x) takes ROWS = 8 WG matrix rows, four input rows at
 * a time. WG is the subgroup size, 8 or more. Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_EXT_scalar_block_layout : require
#define USE_LANES
#include "shared/params.h"
#include "shared/step.h"

SPEC_MAT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_mat p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly buffer X { float data[]; } x;
layout(std430, set = 0, binding = 1) readonly buffer X4 { vec4 data[]; } x4;
layout(std430, set = 0, binding = 3) restrict buffer Y { float data[]; } y;

#define LOAD_X(i) x.data[i]
#define LOAD_X4(i) x4.data[i]
#define X_ALIGNED (K_STRIDE % 4u == 0u)
#define WEIGHTS_BINDING 2
#include "lib/weights.glsl"
#include "lib/lanes.glsl"

void put(uint row, uint t0, uint n_tokens, vec4 v)
{
    if (row >= p.n_rows)
        return;
    for (uint j = 0u; j < 4u && t0 + j < n_tokens; j++) {
        uint at = (t0 + j) * N_OUT + p.out0 + row;
        y.data[at] = ADD != 0u ? y.data[at] + v[j] : v[j];
    }
}

void main()
{
    uint n_tokens = state.data[COUNT_ROWS != 0u ? STEP_N_ROWS : STEP_N_TOKENS];
    uint row0 = (gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x) * ROWS;
    uint t0 = gl_WorkGroupID.y * TILE_TOKENS;
    uint end = min(t0 + TILE_TOKENS, n_tokens);

    if (row0 >= p.n_rows)
        return;
    for (uint t = t0; t < end; t += 4u) {
        uvec4 at = min(t + FOUR, uvec4(end - 1u)) * K_STRIDE;
        mat4 a, b;
        lanes_dot4(FORMAT, p.w_off, ROW_BYTES, row0, p.n_rows, K, at, a, b);
        for (uint i = 0u; i < 4u; i++) {
            put(row0 + rows_row(i), t, end, a[i]);
            put(row0 + 4u * WG + rows_row(i), t, end, b[i]);
        }
    }
}
