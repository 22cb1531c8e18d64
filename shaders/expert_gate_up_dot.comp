// variants: sg=USE_SUBGROUP arr=SEG_ARRAY sg_arr=USE_SUBGROUP,SEG_ARRAY hw=USE_SUBGROUP,SEG_ARRAY,USE_DOT
/* h[pair] = silu(gate x[t]) * (up x[t]) for quantised inputs x, pairs (t * K_USED + rank) as
 * lib/dot_expert.glsl says; integers within blocks of 32, sums of blocks in f32. gate and up have one format.
 * Grid: (ceil(FF / ROWS), K_USED or n_tiles).
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
layout(std430, set = 0, binding = 3) writeonly restrict buffer H { float data[]; } h;

#define SEG_BINDING 4
#include "lib/dot_expert.glsl"
#include "lib/math.glsl"

/* The matrix rows of this workgroup for the TOKENS pairs from `first` on. */
void rows_of(uint base, uint first)
{
    uint row0 = gl_WorkGroupID.x * ROWS, i = first + dot_out_token();
    uint h0 = dot_expert_pair(i) * FF;

    for (uint r = row0; r < min(row0 + ROWS, FF); r += TEAMS) {
        uint at = base + min(r + dot_team(), FF - 1u) * row_bytes(FORMAT, DIM);
        float gate = 0.0, up = 0.0;
        for (uint m = 0u; m < 2u; m++) {
            up = dot_reduce(dot_row(FORMAT, at + m * UP_OFF, DIM));
            gate = m == 0u ? up : gate;
        }
        uint row = r + dot_out_team();
        if (dot_out() && row < FF && i < pairs_count)
            h.data[h0 + row] = silu(gate) * up;
    }
}

void main()
{
    uint base;

    if (!dot_expert_open(base))
        return;
    for (uint first = 0u; first < pairs_count; first += TOKENS) {
        [[unroll]] for (uint t = 0u; t < TOKENS; t++)
            dot_load_x(t, MANY != 0u ? dot_expert_pair(first + t) / K_USED : 0u, DIM);
        rows_of(base, first);
    }
}
