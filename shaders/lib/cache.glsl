/* Pairs of neighbouring elements of the K and V caches, [pos][kv head][HEAD_DIM], in each cache's format:
 * FMT_F32, a word each; FMT_F16, two in a word; FMT_Q8_0, CACHE_ELEMS elements (HEAD_DIM is a multiple) in
 * CACHE_WORDS words, eight of signed bytes and the scale they are multiplied with, a half as a float.
 * Before inclusion: K_WORD(i), V_WORD(i), words of the caches; K_CACHE, V_CACHE, HEAD_DIM, N_HEADS, N_KV. */
#ifndef LIB_CACHE_GLSL
#define LIB_CACHE_GLSL

#include "lib/half.glsl"

/* Index of the first pair of a cached row. */
uint cache_row(uint pos, uint kv_head)
{
    return (pos * N_KV + kv_head) * (HEAD_DIM / 2u);
}

/* Pair i of all, from the word of its block's quants and the block's scale. */
vec2 quants_pair(uint word, uint i, uint scale)
{
    uint w = word >> (i % 2u * 16u);
    return vec2(ivec2(uvec2(w << 24, w << 16)) >> 24) * uintBitsToFloat(scale);
}

#define CACHE_PAIR(format, WORD, i)                                                           \
    if (format == FMT_F16)                                                                    \
        return halves_to_floats(WORD(i));                                                      \
    if (format == FMT_Q8_0) {                                                                 \
        uint block = i / 16u * CACHE_WORDS;                                                    \
        return quants_pair(WORD(block + i % 16u / 2u), i, WORD(block + CACHE_WORDS - 1u));     \
    }                                                                                         \
    return vec2(uintBitsToFloat(WORD(2u * i)), uintBitsToFloat(WORD(2u * i + 1u)));

vec2 k_pair(uint i)
{
    CACHE_PAIR(K_CACHE, K_WORD, i)
}

vec2 v_pair(uint i)
{
    CACHE_PAIR(V_CACHE, V_WORD, i)
}

#endif
