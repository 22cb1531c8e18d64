// variants: sg=USE_SUBGROUP *k=MORE_BLOCKS ln=USE_LANES tx=USE_TEXELS
/* y[t][out0 + r] = (or +=, with ADD) dot(W[r], x[t]) for matrix rows r < n_rows, sums in f32.
 * Grid: (x, t, z): workgroup x + z * (size of x) takes ROWS matrix rows. Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#ifdef USE_LANES
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_EXT_scalar_block_layout : require
#endif
#ifdef USE_TEXELS
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_EXT_control_flow_attributes : require
#endif
#include "shared/params.h"
#include "shared/step.h"

SPEC_MAT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_mat p; };

layout(std430, set = 0, binding = 0) readonly buffer X { float data[]; } x;
layout(std430, set = 0, binding = 0) readonly buffer X4 { vec4 data[]; } x4;
layout(std430, set = 0, binding = 2) restrict buffer Y { float data[]; } y;

#define LOAD_X(i) x.data[i]
#define LOAD_X4(i) x4.data[i]

#ifdef USE_TEXELS
layout(set = 0, binding = 1) uniform usamplerBuffer weights;

void put(uint row, float sum, bool first)
{
    uint at = gl_WorkGroupID.y * N_OUT + p.out0 + row;
    y.data[at] = first && ADD == 0u ? sum : y.data[at] + sum;
}

#define TEXELS(i) texelFetch(weights, int(i))
#define TEXELS_PUT(row, sum, first) put(row, sum, first)
#include "lib/texels.glsl"

void main()
{
    uint row0 = (gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x) * ROWS;

    texels_rows(FORMAT, p.w_off, ROW_BYTES, row0, p.n_rows, K, gl_WorkGroupID.y * K_STRIDE);
}
#else
#define X_ALIGNED (K_STRIDE % 4u == 0u)
#define WEIGHTS_BINDING 1
#include "lib/weights.glsl"
#include "lib/rows.glsl"

void main()
{
    uint row0 = (gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x) * ROWS;
    uint t = gl_WorkGroupID.y;
    vec4 sums = rows_dot(FORMAT, p.w_off, ROW_BYTES, row0, p.n_rows, K, t * K_STRIDE);

    for (uint i = 0u; i < 4u; i++) {
        uint row = row0 + rows_row(i);
        if (!rows_has(i) || row >= p.n_rows)
            break;
        uint at = t * N_OUT + p.out0 + row;
        y.data[at] = ADD != 0u ? y.data[at] + sums[i] : sums[i];
    }
}
#endif
