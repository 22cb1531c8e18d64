// variants: *k=MORE_BLOCKS
/* y[t][out0 + r] = (or +=, with ADD) dot(W[r], x[t]) for matrix rows r < n_rows and all input rows t, sums in
 * f32.
 * Grid: (x, ceil(T / 32), z): workgroup x + z * (size of x) takes 64 matrix rows. WG is 128. Test:
 * test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_MAT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_mat p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer X { float data[]; } x;
layout(std430, set = 0, binding = 3) restrict buffer Y { float data[]; } y;

#define LOAD_X(i) x.data[i]
#define WEIGHTS_BINDING 2
#include "lib/weights.glsl"
#include "lib/tile.glsl"

void put(uint row, uint at, float v)
{
    if (row >= p.n_rows)
        return;
    if (ADD != 0u)
        v += y.data[at];
    y.data[at] = v;
}

void put4(uint row, uint t, uint n_tokens, vec4 v)
{
    uint at = t * N_OUT + p.out0 + row;
    if (t >= n_tokens)
        return;
    put(row, at, v.x);
    put(row + 1u, at + 1u, v.y);
    put(row + 2u, at + 2u, v.z);
    put(row + 3u, at + 3u, v.w);
}

void main()
{
    uint n_tokens = state.data[COUNT_ROWS != 0u ? STEP_N_ROWS : STEP_N_TOKENS];
    uint row0 = (gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x) * TILE_ROWS;
    uint t0 = gl_WorkGroupID.y * TILE_TOKENS;

    if (row0 >= p.n_rows || t0 >= n_tokens)
        return;
    uint w_row = min(row0 + tile_load_row(), p.n_rows - 1u);
    uint x_row = min(t0 + tile_load_token(), n_tokens - 1u);
    mat4 sums = tile_dot(FORMAT, p.w_off + w_row * ROW_BYTES, x_row * K_STRIDE, K);
    uint row = row0 + tile_sum_row();
    uint t = t0 + tile_sum_token();
    put4(row, t, n_tokens, sums[0]);
    put4(row, t + 1u, n_tokens, sums[1]);
    put4(row, t + 2u, n_tokens, sums[2]);
    put4(row, t + 3u, n_tokens, sums[3]);
}
