// variants: sg=USE_SUBGROUP arr=SEG_ARRAY sg_arr=USE_SUBGROUP,SEG_ARRAY *k=MORE_BLOCKS
/* expert_down_tile for two to eight tokens (lib/few.glsl): y[pair] = down h[pair] for all pairs
 * (t * K_USED + rank) of a tile, which share one expert; f32 sums.
 * Grid: (ceil(DIM / 4), n_tiles). ROWS is 4.
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

layout(std430, set = 0, binding = 0) readonly buffer X { float data[]; } x;
layout(std430, set = 0, binding = 0) readonly buffer X4 { vec4 data[]; } x4;
layout(std430, set = 0, binding = 1) readonly restrict buffer Tiles { uint data[]; } tiles;
layout(std430, set = 0, binding = 2) readonly restrict buffer Pairs { uint data[]; } pairs;
layout(std430, set = 0, binding = 3) writeonly restrict buffer Y { float data[]; } y;

#define SEG_BINDING 4
#include "lib/segment.glsl"
#define LOAD_X(i) x.data[i]
#define LOAD_X4(i) x4.data[i]
#define X_ALIGNED (FF % 4u == 0u)
#include "lib/rows.glsl"
#include "lib/few.glsl"
#include "lib/pairs.glsl"
#include "lib/expert.glsl"

void main()
{
    uint tile = gl_WorkGroupID.y * TILE_WORDS;
    uint first = tiles.data[tile + TILE_FIRST];
    uint n_pairs = tiles.data[tile + TILE_COUNT];
    uint row0 = gl_WorkGroupID.x * ROWS;
    uint base;

    if (!segment_open(tiles.data[tile + TILE_SLOT], base))
        return;
    for (uint i0 = 0u; i0 < n_pairs; i0 += FEW) {
        uint n = min(n_pairs - i0, FEW);
        uvec4 a = pairs4(first, i0, n_pairs), b = pairs4(first, i0 + 4u, n_pairs);
        few_sums s = rows_few(FMT_DOWN, base + DOWN_OFF, row0, DIM, FF, a * FF, b * FF, n);
        for (uint i = few_first(); i < few_count(n); i += rows_mine.lanes) {
            uint row = row0 + i % 4u;
            uint pair = pairs.data[first + i0 + i / 4u];
            if (row < DIM)
                y.data[pair * DIM + row] = biased(few_pick(s, i % 4u, i / 4u), base, DOWN_BIAS, row);
        }
    }
}
