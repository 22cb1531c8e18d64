// variants: arr=SEG_ARRAY
/* expert_gate_up_tile for narrow devices (lib/lanes.glsl): h[pair] = silu(gate x[t]) * (up x[t]) for
 * all pairs (t * K_USED + rank) of a tile, which share one expert; f32 sums.
 * Grid: (ceil(FF / ROWS), n_tiles). WG is the subgroup size, 8 or more, ROWS is 8 WG.
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

layout(std430, set = 0, binding = 0) readonly buffer X { float data[]; } x;
layout(std430, set = 0, binding = 0) readonly buffer X4 { vec4 data[]; } x4;
layout(std430, set = 0, binding = 1) readonly restrict buffer Tiles { uint data[]; } tiles;
layout(std430, set = 0, binding = 2) readonly restrict buffer Pairs { uint data[]; } pairs;
layout(std430, set = 0, binding = 3) writeonly restrict buffer H { float data[]; } h;

#define SEG_BINDING 4
#include "lib/segment.glsl"
#define LOAD_X(i) x.data[i]
#define LOAD_X4(i) x4.data[i]
#define X_ALIGNED (DIM % 4u == 0u)
#include "lib/lanes.glsl"
#include "lib/pairs.glsl"
#include "lib/expert.glsl"

void put(uint base, uint row, uvec4 pair, uint n, vec4 gate, vec4 up)
{
    if (row >= FF)
        return;
    for (uint j = 0u; j < n; j++)
        h.data[pair[j] * FF + row] = hidden(gate[j], up[j], base, row);
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
        uvec4 x_at = pair / K_USED * DIM;
        uint n = min(n_pairs - i, 4u);
        mat4 gate_a, gate_b, up_a = mat4(0.0), up_b = mat4(0.0);
        for (uint j = 0u; j < 2u; j++) { /* as rows_dot2 */
            uint format = j == 0u ? FMT_GATE : FMT_UP;
            gate_a = up_a;
            gate_b = up_b;
            lanes_dot4(format, base + j * UP_OFF, row_bytes(format, DIM), row0, FF, DIM, x_at, up_a, up_b);
        }
        for (uint r = 0u; r < 4u; r++) {
            put(base, row0 + rows_row(r), pair, n, gate_a[r], up_a[r]);
            put(base, row0 + 4u * WG + rows_row(r), pair, n, gate_b[r], up_b[r]);
        }
    }
}
