/* Two neighbouring blocks of a format whose block is an odd number of half words, as words: the first block
 * ends and the second begins in `mid`. Scalar block layout: such a pair starts on any word. */
#ifndef LIB_BLOCK_PAIR_GLSL
#define LIB_BLOCK_PAIR_GLSL

/* 36 bytes; `a` and half of mid: scale and sixteen bytes. */
struct pair_q4 {
    uvec4 a;
    uint mid;
    uvec4 b;
};

/* 68 bytes. */
struct pair_q8 {
    uvec4 a0, a1;
    uint mid;
    uvec4 b0, b1;
};

#define PAIRS (ALIGNED >= 3u) /* rows are whole pairs, and start at multiples of their size */

#endif
