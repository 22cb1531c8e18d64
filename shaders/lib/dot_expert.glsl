/* What the two steps of the experts share, with quantised inputs: decode (one token, workgroup row j is
 * rank j) and prefill (MANY: workgroup row j is tile j of the pairs that share an expert) in one module.
 * Before inclusion: the push block as `p` (push_expert), SEG_BINDING (4), the constants of SPEC_EXPERT_DOT
 * and the bindings x, x4, tiles, pairs. */
#ifndef LIB_DOT_EXPERT_GLSL
#define LIB_DOT_EXPERT_GLSL

#define ALIGNED 0u
#define SHARED 0u /* slots only */
#include "lib/segment.glsl"
#define LOAD_X(i) x.data[i]
#define LOAD_X4(i) x4.data[i]
#include "lib/dot_rows.glsl"

uint pairs_first, pairs_count;

/* False: nothing to do for this workgroup. */
bool dot_expert_open(out uint base)
{
    uint at = gl_WorkGroupID.y * (MANY != 0u ? uint(TILE_WORDS) : 1u);

    pairs_first = 0u;
    pairs_count = 1u;
    if (MANY != 0u) {
        pairs_first = tiles.data[at + TILE_FIRST];
        pairs_count = tiles.data[at + TILE_COUNT];
    }
    return segment_open(tiles.data[at + (MANY != 0u ? uint(TILE_SLOT) : 0u)], base);
}

/* Pair (token * K_USED + rank) i of this workgroup; the last one from there on. */
uint dot_expert_pair(uint i)
{
    uint pair = gl_WorkGroupID.y;
    if (MANY != 0u)
        pair = pairs.data[pairs_first + min(i, pairs_count - 1u)];
    return pair;
}

#endif
