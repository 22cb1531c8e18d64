// variants: sg=USE_SUBGROUP arr=SEG_ARRAY sg_arr=USE_SUBGROUP,SEG_ARRAY
/* y[t * K_USED + j] = down h[t * K_USED + j] for the expert in the slot of rank j, sums in f32; combine
 * weighs and adds the rows.
 * Grid: (ceil(DIM / ROWS), K_USED, n_tokens); a workgroup takes ROWS rows.
 * Binding 3: the segment p.seg, other slots are skipped; with SEG_ARRAY all segments. Test:
 * test_kernels_moe. */
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#include "shared/params.h"
#include "shared/step.h"

SPEC_EXPERT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_expert p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer H { float data[]; } h;
/* slot of each rank, NONE: nothing to do */
layout(std430, set = 0, binding = 1) readonly restrict buffer Ranks { uint data[]; } ranks;
layout(std430, set = 0, binding = 2) writeonly restrict buffer Y { float data[]; } y;

#define SEG_BINDING 3
#include "lib/segment.glsl"
#define LOAD_X(i) h.data[i]
#include "lib/rows.glsl"

void main()
{
    uint row0 = gl_WorkGroupID.x * ROWS;
    uint pair = gl_WorkGroupID.z * K_USED + gl_WorkGroupID.y;
    uint base;
    row_team team = rows_team();
    vec4 lo = vec4(0.0), hi = vec4(0.0);

    if (team.idle || !segment_open(ranks.data[pair], base))
        return;
    for (uint unit = team.lane; unit < (FF + 7u) / 8u; unit += team.lanes) {
        vec8 v = load_x8(pair * FF, unit, FF);
        rows_add(FMT_DOWN, base + DOWN_OFF, row_bytes(FMT_DOWN, FF), row0, DIM, unit, FF, v, lo, hi);
    }
    lo = rows_reduce(lo);
    if (ROWS > 4u)
        hi = rows_reduce(hi);
    for (uint j = team.lane; j < ROWS && row0 + j < DIM; j += team.lanes)
        y.data[pair * DIM + row0 + j] = rows_pick(j, lo, hi);
}
