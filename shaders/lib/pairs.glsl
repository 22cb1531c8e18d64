/* The list of pairs (token * K_USED + rank) of expert tiles. Before inclusion: its binding `pairs`. */
#ifndef LIB_PAIRS_GLSL
#define LIB_PAIRS_GLSL

#include "lib/dequant.glsl"

/* Entries first + i .. first + i + 3 of n from `first` on; those behind the end are the last. */
uvec4 pairs4(uint first, uint i, uint n)
{
    uvec4 at = first + min(i + FOUR, uvec4(n - 1u));
    return uvec4(pairs.data[at.x], pairs.data[at.y], pairs.data[at.z], pairs.data[at.w]);
}

#endif
