// variants: sg=USE_SUBGROUP arr=SEG_ARRAY sg_arr=USE_SUBGROUP,SEG_ARRAY hw=USE_SUBGROUP,SEG_ARRAY,USE_DOT
/* y[pair] = down h[pair] for quantised inputs h, pairs (t * K_USED + rank) as lib/dot_expert.glsl says;
 * integers within blocks of 32, sums of blocks in f32. combine weighs and adds the rows.
 * Grid: (ceil(DIM / ROWS), K_USED or n_tiles).
 * Binding 4: the segment p.seg, other slots are skipped; with SEG_ARRAY all segments. Test:
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

SPEC_EXPERT_DOT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_expert p; };

layout(std430, set = 0, binding = 0) readonly buffer X { uint data[]; } x;
layout(std430, set = 0, binding = 0) readonly buffer X4 { uvec4 data[]; } x4;
/* MANY: tiles and pairs of group; else the slot of each rank (NONE: nothing to do), and no second one */
layout(std430, set = 0, binding = 1) readonly restrict buffer Tiles { uint data[]; } tiles;
layout(std430, set = 0, binding = 2) readonly restrict buffer Pairs { uint data[]; } pairs;
layout(std430, set = 0, binding = 3) writeonly restrict buffer Y { float data[]; } y;

#define SEG_BINDING 4
#include "lib/dot_expert.glsl"

/* The matrix rows of this workgroup for the TOKENS pairs from `first` on. */
void rows_of(uint base, uint first)
{
    uint row0 = gl_WorkGroupID.x * ROWS, i = first + dot_out_token();
    uint y0 = dot_expert_pair(i) * DIM;

    for (uint r = row0; r < min(row0 + ROWS, DIM); r += TEAMS) {
        uint at = base + DOWN_OFF + min(r + dot_team(), DIM - 1u) * row_bytes(FORMAT, FF);
        float v = dot_reduce(dot_row(FORMAT, at, FF));
        uint row = r + dot_out_team();
        if (dot_out() && row < DIM && i < pairs_count)
            y.data[y0 + row] = v;
    }
}

void main()
{
    uint base;

    if (!dot_expert_open(base))
        return;
    for (uint first = 0u; first < pairs_count; first += TOKENS) {
        [[unroll]] for (uint t = 0u; t < TOKENS; t++)
            dot_load_x(t, dot_expert_pair(first + t), FF);
        rows_of(base, first);
    }
}
