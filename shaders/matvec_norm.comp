// variants: sg=USE_SUBGROUP *k=MORE_BLOCKS ln=USE_LANES tx=USE_TEXELS
/* y[out0 + r] += dot(W[r], x) for matrix rows r < n_rows, sums in f32; the workgroup that finishes last of
 * n_groups, which may belong to several dispatches that no barrier parts, writes rmsnorm(y) * w to yn.
 * Grid: (x, 1, z): workgroup x + z * (size of x) takes ROWS matrix rows. Test: test_kernels_dense. */
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

SPEC_MAT_NORM(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_mat_norm p; };

layout(std430, set = 0, binding = 0) readonly buffer X { float data[]; } x;
layout(std430, set = 0, binding = 0) readonly buffer X4 { vec4 data[]; } x4;
layout(std430, set = 0, binding = 2) coherent buffer Y { float data[]; } y;
layout(std430, set = 0, binding = 3) readonly restrict buffer NormW { float data[]; } w;
layout(std430, set = 0, binding = 4) writeonly restrict buffer Yn { float data[]; } yn;
layout(std430, set = 0, binding = 5) coherent buffer Counts { uint data[]; } counts;

#define LOAD_X(i) x.data[i]
#define LOAD_X4(i) x4.data[i]
#ifdef USE_TEXELS
layout(set = 0, binding = 1) uniform usamplerBuffer weights;
#define TEXELS(i) texelFetch(weights, int(i))
#define TEXELS_PUT(row, sum, first) y.data[p.out0 + (row)] += sum
#include "lib/texels.glsl"
#else
#define X_ALIGNED true
#define WEIGHTS_BINDING 1
#include "lib/weights.glsl"
#include "lib/rows.glsl"
#endif
#define LAST_COUNTER(i) counts.data[i]
#include "lib/last.glsl"
#define NORM_IN(i) y.data[i]
#define NORM_W(i) w.data[i]
#define NORM_OUT(i) yn.data[i]
#include "lib/norm.glsl"

void main()
{
    uint row0 = (gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x) * ROWS;

#ifdef USE_TEXELS
    texels_rows(FORMAT, p.w_off, ROW_BYTES, row0, p.n_rows, K, 0u);
#else
    vec4 sums = rows_dot(FORMAT, p.w_off, ROW_BYTES, row0, p.n_rows, K, 0u);

    for (uint i = 0u; i < 4u; i++) {
        uint row = row0 + rows_row(i);
        if (!rows_has(i) || row >= p.n_rows)
            break;
        y.data[p.out0 + row] += sums[i];
    }
#endif
    if (last_of(0u, p.n_groups))
        norm_row();
}
