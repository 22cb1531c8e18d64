// variants: sg=USE_SUBGROUP hw=USE_SUBGROUP,USE_DOT
/* y[t][out0 + r] = (or +=, with ADD) dot(W[r], x[t]) for matrix rows r < n_rows and quantised input rows t;
 * integers within blocks of 32, sums of blocks in f32.
 * Grid: (x, ceil(T / TOKENS), z): workgroup x + z * (size of x) takes ROWS matrix rows. Test:
 * test_kernels_dot. */
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#ifdef USE_DOT
#extension GL_EXT_spirv_intrinsics : require
#endif
#include "shared/params.h"
#include "shared/step.h"

SPEC_MAT_DOT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_mat p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly buffer X { uint data[]; } x;
layout(std430, set = 0, binding = 1) readonly buffer X4 { uvec4 data[]; } x4;
layout(std430, set = 0, binding = 2) readonly buffer W { uint data[]; } weights;
layout(std430, set = 0, binding = 2) readonly buffer W4 { uvec4 data[]; } weights4;
layout(std430, set = 0, binding = 3) restrict buffer Y { float data[]; } y;

#define LOAD_X(i) x.data[i]
#define LOAD_X4(i) x4.data[i]
#define LOAD_WORD(i) weights.data[i]
#define LOAD_WORD4(i) weights4.data[i]
#include "lib/dot_rows.glsl"

void put(uint row, uint t, float v)
{
    uint at = t * N_OUT + p.out0 + row;
    if (ADD != 0u)
        v += y.data[at];
    y.data[at] = v;
}

void main()
{
    uint row0 = (gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x) * ROWS;
    uint n_tokens = MANY == 0u ? 1u : state.data[COUNT_ROWS != 0u ? STEP_N_ROWS : STEP_N_TOKENS];
    uint t0 = gl_WorkGroupID.y * TOKENS, lane = gl_LocalInvocationIndex;

    if (row0 >= p.n_rows || t0 >= n_tokens)
        return;
    [[unroll]] for (uint t = 0u; t < TOKENS; t++)
        dot_load_x(t, min(t0 + t, n_tokens - 1u), K);
    for (uint r = row0; r < min(row0 + ROWS, p.n_rows); r += TEAMS) {
        uint row = min(r + dot_team(), p.n_rows - 1u);
        float v = dot_reduce(dot_row(FORMAT, p.w_off + row * ROW_BYTES, K));
        uint t = t0 + dot_out_token();
        row = r + dot_out_team();
        if (dot_out() && row < p.n_rows && t < n_tokens)
            put(row, t, v);
    }
}
