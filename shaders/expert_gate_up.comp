// variants: sg=USE_SUBGROUP arr=SEG_ARRAY sg_arr=USE_SUBGROUP,SEG_ARRAY
/* h[t * K_USED + j] = silu(gate x[t]) * (up x[t]) for the expert of rank j, sums in f32.
 * Grid: (ceil(FF / ROWS), K_USED, n_tokens); a workgroup takes ROWS rows of gate and of up, its lanes stride
 * over DIM.
 * Binding 4: the segment p.seg, other slots are skipped; with SEG_ARRAY all segments. Test:
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
layout(std430, set = 0, binding = 1) readonly restrict buffer Sel { uint data[]; } sel;
layout(std430, set = 0, binding = 2) readonly restrict buffer Table { uint data[]; } table;
layout(std430, set = 0, binding = 3) writeonly restrict buffer H { float data[]; } h;

#define SEG_BINDING 4
#include "lib/segment.glsl"
#define LOAD_X(i) x.data[i]
#include "lib/rows.glsl"
#include "lib/reduce.glsl"
#include "lib/math.glsl"

void main()
{
    uint lane = gl_LocalInvocationIndex;
    uint row0 = gl_WorkGroupID.x * ROWS;
    uint t = gl_WorkGroupID.z;
    uint pair = t * K_USED + gl_WorkGroupID.y;
    uint expert = sel.data[2u * pair];
    uint base;
    vec4 gate_lo = vec4(0.0), gate_hi = vec4(0.0), up_lo = vec4(0.0), up_hi = vec4(0.0);

    if (expert == NONE)
        return;
    if (!segment_open(table.data[p.layer * N_EXPERTS + expert], base))
        return;
    for (uint unit = lane; unit < (DIM + 7u) / 8u; unit += WG) {
        vec8 v = load_x8(t * DIM, unit, DIM);
        rows_add(FMT_GATE, base, row_bytes(FMT_GATE, DIM), row0, FF, unit, DIM, v, gate_lo, gate_hi);
        rows_add(FMT_UP, base + UP_OFF, row_bytes(FMT_UP, DIM), row0, FF, unit, DIM, v, up_lo, up_hi);
    }
    gate_lo = reduce_add4(gate_lo);
    up_lo = reduce_add4(up_lo);
    if (ROWS > 4u) {
        gate_hi = reduce_add4(gate_hi);
        up_hi = reduce_add4(up_hi);
    }
    if (lane < ROWS && row0 + lane < FF)
        h.data[pair * FF + row0 + lane] =
            silu(rows_pick(lane, gate_lo, gate_hi)) * rows_pick(lane, up_lo, up_hi);
}
