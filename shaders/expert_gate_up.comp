// variants: sg=USE_SUBGROUP arr=SEG_ARRAY sg_arr=USE_SUBGROUP,SEG_ARRAY
/* h[t * K_USED + j] = silu(gate x[t]) * (up x[t]) for the expert in the slot of rank j, sums in f32.
 * Grid: (ceil(FF / ROWS), K_USED, n_tokens); a workgroup takes ROWS rows of gate and of up.
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

layout(std430, set = 0, binding = 0) readonly restrict buffer X { float data[]; } x;
/* slot of each rank, NONE: nothing to do */
layout(std430, set = 0, binding = 1) readonly restrict buffer Ranks { uint data[]; } ranks;
layout(std430, set = 0, binding = 2) writeonly restrict buffer H { float data[]; } h;

#define SEG_BINDING 3
#include "lib/segment.glsl"
#define LOAD_X(i) x.data[i]
#include "lib/rows.glsl"
#include "lib/math.glsl"

void main()
{
    uint row0 = gl_WorkGroupID.x * ROWS;
    uint t = gl_WorkGroupID.z;
    uint pair = t * K_USED + gl_WorkGroupID.y;
    uint base;
    row_team team = rows_team();
    vec4 gate_lo = vec4(0.0), gate_hi = vec4(0.0), up_lo = vec4(0.0), up_hi = vec4(0.0);

    if (team.idle || !segment_open(ranks.data[pair], base))
        return;
    for (uint unit = team.lane; unit < (DIM + 7u) / 8u; unit += team.lanes) {
        vec8 v = load_x8(t * DIM, unit, DIM);
        rows_add(FMT_GATE, base, row_bytes(FMT_GATE, DIM), row0, FF, unit, DIM, v, gate_lo, gate_hi);
        rows_add(FMT_UP, base + UP_OFF, row_bytes(FMT_UP, DIM), row0, FF, unit, DIM, v, up_lo, up_hi);
    }
    gate_lo = rows_reduce(gate_lo);
    up_lo = rows_reduce(up_lo);
    if (ROWS > 4u) {
        gate_hi = rows_reduce(gate_hi);
        up_hi = rows_reduce(up_hi);
    }
    for (uint j = team.lane; j < ROWS && row0 + j < FF; j += team.lanes)
        h.data[pair * FF + row0 + j] = silu(rows_pick(j, gate_lo, gate_hi)) * rows_pick(j, up_lo, up_hi);
}
