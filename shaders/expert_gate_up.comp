// variants: sg=USE_SUBGROUP arr=SEG_ARRAY sg_arr=USE_SUBGROUP,SEG_ARRAY *k=MORE_BLOCKS ln=USE_LANES ln_arr=USE_LANES,SEG_ARRAY
/* h[t * K_USED + j] = silu(gate x[t]) * (up x[t]), or what lib/expert.glsl has for the model, for the
 * expert in the slot of rank j, sums in f32.
 * Grid: (ceil(FF / ROWS), K_USED, n_tokens); a workgroup takes ROWS rows of gate and of up. With SHARED (one
 * token, SEG_ARRAY) one more rank in y: the shared expert.
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

layout(std430, set = 0, binding = 0) readonly buffer X { float data[]; } x;
layout(std430, set = 0, binding = 0) readonly buffer X4 { vec4 data[]; } x4;
/* slot of each rank, NONE: nothing to do */
layout(std430, set = 0, binding = 1) readonly restrict buffer Ranks { uint data[]; } ranks;
layout(std430, set = 0, binding = 2) writeonly restrict buffer H { float data[]; } h;

#define SEG_BINDING 3
#include "lib/segment.glsl"
#define LOAD_X(i) x.data[i]
#define LOAD_X4(i) x4.data[i]
#define X_ALIGNED (DIM % 4u == 0u)
#include "lib/rows.glsl"
#include "lib/expert.glsl"

void main()
{
    uint row0 = gl_WorkGroupID.x * ROWS;
    uint t = gl_WorkGroupID.z;
    uint pair = t * K_USED + gl_WorkGroupID.y;
    uint slot = ranks.data[pair];
    uint base;
    vec4 gate, up;

    if (!segment_open(slot, base))
        return;
    uint up_off = is_shared(slot) ? FF * row_bytes(FMT_GATE, DIM) : UP_OFF;
    rows_dot2(FMT_GATE, base, FMT_UP, base + up_off, row0, FF, DIM, t * DIM, gate, up);
    for (uint i = 0u; i < 4u; i++) {
        uint row = row0 + rows_row(i);
        if (!rows_has(i) || row >= FF)
            break;
        h.data[pair * FF + row] = hidden(gate[i], up[i], base, row);
    }
}
