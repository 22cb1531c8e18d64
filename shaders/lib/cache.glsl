/* Pairs of neighbouring elements of the K and V caches, [pos][kv head][HEAD_DIM], one float per word or two
 * halves.
 * Before inclusion: K_WORD(i), V_WORD(i), words of the caches; K_F16, V_F16, HEAD_DIM, N_HEADS, N_KV. */
#ifndef LIB_CACHE_GLSL
#define LIB_CACHE_GLSL

#include "lib/half.glsl"

/* Index of the first pair of a cached row. */
uint cache_row(uint pos, uint kv_head)
{
    return (pos * N_KV + kv_head) * (HEAD_DIM / 2u);
}

vec2 k_pair(uint i)
{
    if (K_F16 != 0u)
        return halves_to_floats(K_WORD(i));
    return vec2(uintBitsToFloat(K_WORD(2u * i)), uintBitsToFloat(K_WORD(2u * i + 1u)));
}

vec2 v_pair(uint i)
{
    if (V_F16 != 0u)
        return halves_to_floats(V_WORD(i));
    return vec2(uintBitsToFloat(V_WORD(2u * i)), uintBitsToFloat(V_WORD(2u * i + 1u)));
}

#endif
