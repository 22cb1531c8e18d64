// variants: sg=USE_SUBGROUP *k=MORE_BLOCKS
/* matmul of two to eight input rows at a time (lib/few.glsl): y[t][out0 + r] = (or +=, with ADD)
 * dot(W[r], x[t]) for matrix rows r < n_rows, sums in f32.
 * Grid: (x, ceil(n_tokens / 8), z): workgroup x + z * (size of x) takes four matrix rows. ROWS is 4. Test:
 * test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
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
#include "lib/rows.glsl"
#include "lib/few.glsl"

void main()
{
    uint n_tokens = state.data[COUNT_ROWS != 0u ? STEP_N_ROWS : STEP_N_TOKENS];
    uint row0 = (gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x) * ROWS;
    uint t0 = gl_WorkGroupID.y * FEW;

    if (row0 >= p.n_rows || t0 >= n_tokens)
        return;
    uint n = min(n_tokens - t0, FEW);
    uvec4 a = (t0 + FOUR) * K_STRIDE, b = (t0 + 4u + FOUR) * K_STRIDE;
    few_sums s = rows_few(FORMAT, p.w_off, row0, p.n_rows, K, a, b, n);
    for (uint i = few_first(); i < few_count(n); i += rows_mine.lanes) {
        uint row = row0 + i % 4u;
        if (row < p.n_rows) {
            uint at = (t0 + i / 4u) * N_OUT + p.out0 + row;
            float v = few_pick(s, i % 4u, i / 4u);
            y.data[at] = ADD != 0u ? y.data[at] + v : v;
        }
    }
}
