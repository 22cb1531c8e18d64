// variants: arr=SEG_ARRAY *k=MORE_BLOCKS
/* y[pair] = down h[pair] for all pairs (t * K_USED + rank) of a tile, which share one expert; f32 sums.
 * Grid: (ceil(DIM / 64), n_tiles). WG is 128.
 * Binding 4: the segment p.seg, other slots are skipped; with SEG_ARRAY all segments. Test:
 * test_kernels_moe. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_EXPERT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_expert p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer H { float data[]; } h;
layout(std430, set = 0, binding = 1) readonly restrict buffer Tiles { uint data[]; } tiles;
layout(std430, set = 0, binding = 2) readonly restrict buffer Pairs { uint data[]; } pairs;
layout(std430, set = 0, binding = 3) writeonly restrict buffer Y { float data[]; } y;

#define SEG_BINDING 4
#include "lib/segment.glsl"
#define LOAD_X(i) h.data[i]
#include "lib/tile.glsl"
#include "lib/expert.glsl"

void put4(uint base, uint row, uint i, uint n_pairs, uint first, vec4 v)
{
    if (i >= n_pairs)
        return;
    v = biased4(v, base, DOWN_BIAS, row + FOUR, DIM);
    uint at = pairs.data[first + i] * DIM + row;
    if (row < DIM)
        y.data[at] = v.x;
    if (row + 1u < DIM)
        y.data[at + 1u] = v.y;
    if (row + 2u < DIM)
        y.data[at + 2u] = v.z;
    if (row + 3u < DIM)
        y.data[at + 3u] = v.w;
}

void main()
{
    uint tile = gl_WorkGroupID.y * TILE_WORDS;
    uint first = tiles.data[tile + TILE_FIRST];
    uint n_pairs = tiles.data[tile + TILE_COUNT];
    uint row0 = gl_WorkGroupID.x * TILE_ROWS;
    uint base;

    if (!segment_open(tiles.data[tile + TILE_SLOT], base))
        return;
    uint w_row = min(row0 + tile_load_row(), DIM - 1u);
    uint x_row = pairs.data[first + min(tile_load_token(), n_pairs - 1u)] * FF;
    mat4 sums = tile_dot(FMT_DOWN, base + DOWN_OFF + w_row * row_bytes(FMT_DOWN, FF), x_row, FF);
    uint row = row0 + tile_sum_row();
    uint i = tile_sum_token();
    put4(base, row, i, n_pairs, first, sums[0]);
    put4(base, row, i + 1u, n_pairs, first, sums[1]);
    put4(base, row, i + 2u, n_pairs, first, sums[2]);
    put4(base, row, i + 3u, n_pairs, first, sums[3]);
}
