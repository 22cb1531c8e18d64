// variants: sg=USE_SUBGROUP
/* y[t][out0 + r] = (or +=, with ADD) dot(W[r], x[t]) for matrix rows r < n_rows, sums in f32.
 * Grid: (x, t, z): workgroup x + z * (size of x) takes ROWS matrix rows. Test: test_kernels_dense. */
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

layout(std430, set = 0, binding = 0) readonly restrict buffer X { float data[]; } x;
layout(std430, set = 0, binding = 1) readonly restrict buffer W { uint data[]; } weights;
layout(std430, set = 0, binding = 2) restrict buffer Y { float data[]; } y;

#define LOAD_X(i) x.data[i]
#define LOAD_WORD(i) weights.data[i]
#define WORDS_ALIGNED (ALIGNED != 0u)
#include "lib/rows.glsl"

void main()
{
    uint row0 = (gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x) * ROWS;
    uint t = gl_WorkGroupID.y;
    row_team team = rows_team();
    vec4 lo = vec4(0.0), hi = vec4(0.0);

    if (team.idle)
        return;
    for (uint unit = team.lane; unit < (K + 7u) / 8u; unit += team.lanes) {
        vec8 v = load_x8(t * K_STRIDE, unit, K);
        rows_add(FORMAT, p.w_off, ROW_BYTES, row0, p.n_rows, unit, K, v, lo, hi);
    }
    lo = rows_reduce(lo);
    if (ROWS > 4u)
        hi = rows_reduce(hi);
    for (uint j = team.lane; j < ROWS && row0 + j < p.n_rows; j += team.lanes) {
        uint at = t * N_OUT + p.out0 + row0 + j;
        float v = rows_pick(j, lo, hi);
        if (ADD != 0u)
            v += y.data[at];
        y.data[at] = v;
    }
}
