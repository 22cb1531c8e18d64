// variants: sg=USE_SUBGROUP *k=MORE_BLOCKS ln=USE_LANES
/* x += sum over ranks j, ascending, of weight_j * down h[j] for the expert in the slot of rank j, plus the
 * shared expert's, rank K_USED (SHARED), with weight 1; the workgroup that finishes last of n_groups writes
 * rmsnorm(x) * w to xn. The order of the sum is fixed, so results do not depend on which expert was there
 * first; sums in f32. For one token; all segments stand in the array, behind them the shared expert's matrix.
 * Grid: (ceil(DIM / ROWS)), a workgroup takes ROWS rows of every rank. Test: test_kernels_moe. */
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#ifdef USE_LANES
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_EXT_scalar_block_layout : require
#endif
#define SEG_ARRAY
#include "shared/params.h"
#include "shared/step.h"

SPEC_EXPERT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_down_sum p; };

layout(std430, set = 0, binding = 0) readonly buffer H { float data[]; } h;
layout(std430, set = 0, binding = 0) readonly buffer X4 { vec4 data[]; } x4;
/* CHOICE_* of shared/step.h */
layout(std430, set = 0, binding = 1) coherent buffer Choice { uint data[]; } choice;
layout(std430, set = 0, binding = 2) coherent buffer X { float data[]; } x;
layout(std430, set = 0, binding = 3) readonly restrict buffer NormW { float data[]; } w;
layout(std430, set = 0, binding = 4) writeonly restrict buffer Xn { float data[]; } xn;

#define SEG_BINDING 5
#include "lib/segment.glsl"
#define LOAD_X(i) h.data[i]
#define LOAD_X4(i) x4.data[i]
#define X_ALIGNED (FF % 4u == 0u)
#include "lib/rows.glsl"
#include "lib/expert.glsl"
#define LAST_COUNTER(i) choice.data[CHOICE_COUNT]
#include "lib/last.glsl"
#define NORM_IN(i) x.data[i]
#define NORM_W(i) w.data[i]
#define NORM_OUT(i) xn.data[i]
#include "lib/norm.glsl"

void main()
{
    uint row0 = gl_WorkGroupID.x * ROWS;
    precise vec4 sum = vec4(0.0);

    for (uint j = 0u; j < K_USED + SHARED; j++) {
        uint base;
        if (!segment_open(choice.data[CHOICE_SLOTS + j], base))
            continue;
        float weight = j < K_USED ? uintBitsToFloat(choice.data[CHOICE_SEL + 2u * j + 1u]) : 1.0;
        uint down = j < K_USED ? base + DOWN_OFF : base;
        precise vec4 y = rows_dot(FMT_DOWN, down, row_bytes(FMT_DOWN, FF), row0, DIM, FF, j * FF);
        if (DOWN_BIAS != 0u) {
            uvec4 rows = row0 + uvec4(rows_row(0u), rows_row(1u), rows_row(2u), rows_row(3u));
            y = biased4(y, base, DOWN_BIAS, rows, DIM);
        }
        sum = sum + weight * y;
    }
    for (uint i = 0u; i < 4u; i++) {
        uint row = row0 + rows_row(i);
        if (!rows_has(i) || row >= DIM)
            break;
        x.data[row] += sum[i];
    }
    if (last_of(0u, p.n_groups))
        norm_row();
}
