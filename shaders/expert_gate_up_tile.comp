// variants: arr=SEG_ARRAY *k=MORE_BLOCKS
/* h[pair] = silu(gate x[t]) * (up x[t]) for all pairs (t * K_USED + rank) of a tile, which share one expert;
 * f32 sums.
 * Grid: (ceil(FF / 64), n_tiles). WG is 128.
 * Binding 4: the segment p.seg, other slots are skipped; with SEG_ARRAY all segments. Test:
 * test_kernels_moe. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_EXPERT(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_expert p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer X { float data[]; } x;
layout(std430, set = 0, binding = 1) readonly restrict buffer Tiles { uint data[]; } tiles;
layout(std430, set = 0, binding = 2) readonly restrict buffer Pairs { uint data[]; } pairs;
layout(std430, set = 0, binding = 3) writeonly restrict buffer H { float data[]; } h;

#define SEG_BINDING 4
#include "lib/segment.glsl"
#define LOAD_X(i) x.data[i]
#include "lib/tile.glsl"
#include "lib/expert.glsl"

void put4(uint base, uint row, uint i, uint n_pairs, uint first, vec4 gate, vec4 up)
{
    if (i >= n_pairs)
        return;
    uint at = pairs.data[first + i] * FF + row;
    if (row < FF)
        h.data[at] = hidden(gate.x, up.x, base, row);
    if (row + 1u < FF)
        h.data[at + 1u] = hidden(gate.y, up.y, base, row + 1u);
    if (row + 2u < FF)
        h.data[at + 2u] = hidden(gate.z, up.z, base, row + 2u);
    if (row + 3u < FF)
        h.data[at + 3u] = hidden(gate.w, up.w, base, row + 3u);
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
    uint w_row = min(row0 + tile_load_row(), FF - 1u);
    uint x_row = pairs.data[first + min(tile_load_token(), n_pairs - 1u)] / K_USED * DIM;
    mat4 gate = tile_dot(FMT_GATE, base + w_row * row_bytes(FMT_GATE, DIM), x_row, DIM);
    mat4 up = tile_dot(FMT_UP, base + UP_OFF + w_row * row_bytes(FMT_UP, DIM), x_row, DIM);
    uint row = row0 + tile_sum_row();
    uint i = tile_sum_token();
    put4(base, row, i, n_pairs, first, gate[0], up[0]);
    put4(base, row, i + 1u, n_pairs, first, gate[1], up[1]);
    put4(base, row, i + 2u, n_pairs, first, gate[2], up[2]);
    put4(base, row, i + 3u, n_pairs, first, gate[3], up[3]);
}
