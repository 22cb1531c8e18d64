// variants: arr=SEG_ARRAY
/* expert_down_tile for narrow devices (lib/lanes.glsl): y[pair] = down h[pair] for all pairs
 * (t * K_USED + rank) of a tile, which share one expert; f32 sums.
 * Grid: (ceil(DIM / ROWS), n_tiles). WG is the subgroup size, 8 or more, ROWS is 8 WG.
 * Binding 4: the segment p.seg, other slots are skipped; with SEG_ARRAY all segments. Test:
 * test_kernels_moe. */
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_EXT_scalar_block_layout : require
#define USE_LANES
#include "shared/params.h"
#include "shared/step.h"

SPEC_EXPERT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_expert p; };

layout(std430, set = 0, binding = 0) readonly buffer H { float data[]; } h;
layout(std430, set = 0, binding = 0) readonly buffer X4 { vec4 data[]; } x4;
layout(std430, set = 0, binding = 1) readonly restrict buffer Tiles { uint data[]; } tiles;
layout(std430, set = 0, binding = 2) readonly restrict buffer Pairs { uint data[]; } pairs;
layout(std430, set = 0, binding = 3) writeonly restrict buffer Y { float data[]; } y;

#define SEG_BINDING 4
#include "lib/segment.glsl"
#define LOAD_X(i) h.data[i]
#define LOAD_X4(i) x4.data[i]
#define X_ALIGNED (FF % 4u == 0u)
#include "lib/lanes.glsl"
#include "lib/pairs.glsl"
#include "lib/expert.glsl"

void put(uint base, uint row, uvec4 pair, uint n, vec4 v)
{
    if (row >= DIM)
        return;
    for (uint j = 0u; j < n; j++)
        y.data[pair[j] * DIM + row] = biased(v[j], base, DOWN_BIAS, row);
}

void main()
{
    uint tile = gl_WorkGroupID.y * TILE_WORDS;
    uint first = tiles.data[tile + TILE_FIRST];
    uint n_pairs = tiles.data[tile + TILE_COUNT];
    uint row0 = gl_WorkGroupID.x * ROWS;
    uint base;

    if (!segment_open(tiles.data[tile + TILE_SLOT], base))
        return;
    for (uint i = 0u; i < n_pairs; i += 4u) {
        uvec4 pair = pairs4(first, i, n_pairs);
        uint n = min(n_pairs - i, 4u);
        mat4 a, b;
        lanes_dot4(FMT_DOWN, base + DOWN_OFF, row_bytes(FMT_DOWN, FF), row0, DIM, FF, pair * FF, a, b);
        for (uint r = 0u; r < 4u; r++) {
            put(base, row0 + rows_row(r), pair, n, a[r]);
            put(base, row0 + 4u * WG + rows_row(r), pair, n, b[r]);
        }
    }
}
