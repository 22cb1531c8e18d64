/* Sorts the (token, rank) pairs of a chunk by expert and cuts each expert's list into tiles of at most
 * TILE_TOKENS pairs with the expert's slot. The dispatches of the tiles get one workgroup row per tile. An
 * expert without a slot halts the chunk; a partial step runs those that have one (as router_one).
 * Within an expert the order of pairs is not fixed; no result depends on it.
 * Grid: one workgroup. Test: test_kernels_step. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_RESOLVE(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_group p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer Sel { uint data[]; } sel;
/* [layer][N_EXPERTS] */
layout(std430, set = 0, binding = 2) readonly restrict buffer Table { uint data[]; } table;
layout(std430, set = 0, binding = 3) writeonly restrict buffer Tiles { uint data[]; } tiles;
layout(std430, set = 0, binding = 4) writeonly restrict buffer Pairs { uint data[]; } pairs;
layout(std430, set = 0, binding = 5) writeonly restrict buffer Mail { uint data[]; } mail;
layout(std430, set = 0, binding = 6) writeonly restrict buffer Args { uint data[]; } args;
layout(std430, set = 0, binding = 7) writeonly restrict buffer Routes { uint data[]; } routes;

#include "lib/resolve.glsl"

shared uint count[N_EXPERTS];      /* pairs of each expert */
shared uint next_pair[N_EXPERTS];  /* where its next pair goes */
shared uint slots[N_EXPERTS];      /* NONE: no tiles */
shared uint first_tile[N_EXPERTS];
shared uint n_all_tiles;

/* The choices, to where the host reads them. */
void tell_routes(uint n_pairs)
{
    uint to = p.layer * state.data[STEP_CHUNK] * K_USED * 2u;
    for (uint i = gl_LocalInvocationIndex; i < 2u * n_pairs; i += WG)
        routes.data[to + i] = sel.data[i];
}

void count_pairs(uint n_pairs)
{
    for (uint i = gl_LocalInvocationIndex; i < n_pairs; i += WG) {
        uint expert = sel.data[2u * i];
        if (expert != NONE)
            atomicAdd(count[expert], 1u);
    }
}

/* Notes who is absent, too. */
void find_slots()
{
    for (uint e = gl_LocalInvocationIndex; e < N_EXPERTS; e += WG)
        slots[e] = count[e] == 0u ? NONE : slot_to_run(e);
}

void place_experts()
{
    uint pair = 0u, tile = 0u;
    for (uint e = 0u; e < N_EXPERTS; e++) {
        next_pair[e] = pair;
        first_tile[e] = tile;
        pair += count[e];
        if (slots[e] != NONE)
            tile += (count[e] + TILE_TOKENS - 1u) / TILE_TOKENS;
    }
    n_all_tiles = tile;
}

void write_tiles()
{
    for (uint e = gl_LocalInvocationIndex; e < N_EXPERTS; e += WG) {
        uint n = slots[e] == NONE ? 0u : count[e];
        for (uint i = 0u; i < n; i += TILE_TOKENS) {
            uint at = (first_tile[e] + i / TILE_TOKENS) * TILE_WORDS;
            tiles.data[at + TILE_SLOT] = slots[e];
            tiles.data[at + TILE_FIRST] = next_pair[e] + i;
            tiles.data[at + TILE_COUNT] = min(n - i, TILE_TOKENS);
            tiles.data[at + TILE_EXPERT] = e;
        }
    }
}

void main()
{
    uint lane = gl_LocalInvocationIndex;
    uint n_pairs = state.data[STEP_N_TOKENS] * K_USED;

    for (uint e = lane; e < N_EXPERTS; e += WG)
        count[e] = 0u;
    missing_clear();
    barrier();
    count_pairs(n_pairs);
    tell_routes(n_pairs);
    barrier();
    find_slots();
    barrier();
    if (lane == 0u)
        place_experts();
    barrier();
    write_tiles();
    barrier();
    for (uint i = lane; i < n_pairs; i += WG) {
        uint expert = sel.data[2u * i];
        if (expert != NONE)
            pairs.data[atomicAdd(next_pair[expert], 1u)] = i;
    }
    uint n = missing_count();
    bool partial = state.data[STEP_PARTIAL] != 0u;
    if (n != 0u && !partial) {
        halt(n);
        return;
    }
    for (uint i = lane; i < p.n_tiles; i += WG)
        args.data[(p.tiles0 + i + (i >= p.n_tiles / 2u ? p.gap : 0u)) * 3u + 1u] = n_all_tiles;
    if (partial)
        stop_at(p.after);
}
