// variants: sg=USE_SUBGROUP arr=SEG_ARRAY sg_arr=USE_SUBGROUP,SEG_ARRAY *k=MORE_BLOCKS ln=USE_LANES ln_arr=USE_LANES,SEG_ARRAY
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
#ifdef USE_LANES
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_EXT_scalar_block_layout : require
#endif
#include "shared/params.h"
#include "shared/step.h"

SPEC_EXPERT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_expert p; };

layout(std430, set = 0, binding = 0) readonly buffer H { float data[]; } h;
layout(std430, set = 0, binding = 0) readonly buffer X4 { vec4 data[]; } x4;
/* slot of each rank, NONE: nothing to do */
layout(std430, set = 0, binding = 1) readonly restrict buffer Ranks { uint data[]; } ranks;
layout(std430, set = 0, binding = 2) writeonly restrict buffer Y { float data[]; } y;

#define SEG_BINDING 3
#include "lib/segment.glsl"
#define LOAD_X(i) h.data[i]
#define LOAD_X4(i) x4.data[i]
#define X_ALIGNED (FF % 4u == 0u)
#include "lib/rows.glsl"
#include "lib/expert.glsl"

void main()
{
    uint row0 = gl_WorkGroupID.x * ROWS;
    uint pair = gl_WorkGroupID.z * K_USED + gl_WorkGroupID.y;
    uint base;

    if (!segment_open(ranks.data[pair], base))
        return;
    vec4 sums = rows_dot(FMT_DOWN, base + DOWN_OFF, row_bytes(FMT_DOWN, FF), row0, DIM, FF, pair * FF);
    for (uint i = 0u; i < 4u; i++) {
        uint row = row0 + rows_row(i);
        if (!rows_has(i) || row >= DIM)
            break;
        y.data[pair * DIM + row] = biased(sums[i], base, DOWN_BIAS, row);
    }
}
