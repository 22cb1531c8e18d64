/* Dot products of weight blocks (Q8_0, Q4_0) with activations of 8 bits, exact in integers: for --fast-math.
 * A quantised row of k elements, B = k / 32 blocks, as quant_x writes it: 8 B words of packed signed bytes,
 * B scales (f32), B sums of the bytes (signed), then padding up to a multiple of four words.
 * USE_DOT: the device's packed dot product. Without it the same integers from ordinary arithmetic: two
 * products by one multiplication, as (w0 + w1 * 2^16) * (x1 + x0 * 2^16) = w1 x1 + w0 x0 in the upper half
 * and w0 x1 in the lower one. Weights are unsigned four-bit numbers there, so that sums of 16 elements, at
 * most 16 * 15 * 127 = 30480 in size, stay in a half; eight-bit weights are two such numbers. */
#ifndef LIB_DOT8_GLSL
#define LIB_DOT8_GLSL

/* Words of a quantised row of k elements. */
uint dot_x_words(uint k)
{
    return (k / 32u * 10u + 3u) & ~3u;
}

#ifdef USE_DOT
#define DOT_X_PER_BLOCK 8u
spirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6018, 6019], id = 4450)
int dot_4x8(uint a, uint b, spirv_literal int packed_format);

/* Words 4 j .. of a block of inputs as they are kept in registers. */
void dot_keep(uint at, uint word)
{
    dot_x[at] = word;
}

int dot_4(uint w, uint x, int sum)
{
    return dot_4x8(w, x, 0) + sum;
}
#else
#define DOT_X_PER_BLOCK 16u

/* Bytes 2 and 0 of the word as x1 + x0 * 2^16, and bytes 3 and 1. */
void dot_keep(uint at, uint word)
{
    dot_x[2u * at] = uint((int(word << 24) >> 8) + (int(word << 8) >> 24));
    dot_x[2u * at + 1u] = uint((int((word << 16) & 0xff000000u) >> 8) + (int(word) >> 24));
}

/* Adds the products of four-bit weights, bytes of which the low halves count, with inputs word `at`. */
uint dot_nibbles(uint w, uint at, uint sum)
{
    return (w & 0x000f000fu) * dot_x[2u * at] + ((w >> 8) & 0x000f000fu) * dot_x[2u * at + 1u] + sum;
}

/* The upper half of a sum, freed of what the lower one took from it. */
int dot_upper(uint sum)
{
    return int(sum + 0x8000u) >> 16;
}
#endif

/* Block of 16 bytes q of Q4_0 with the inputs from word `at` on, whose sum is x_sum. */
int dot_q4_0(uvec4 q, uint at, int x_sum)
{
#ifdef USE_DOT
    int sum = -8 * x_sum;
    uvec4 lo = q & 0x0f0f0f0fu, hi = (q >> 4) & 0x0f0f0f0fu;
    sum = dot_4(lo.x, dot_x[at], dot_4(lo.y, dot_x[at + 1u], sum));
    sum = dot_4(lo.z, dot_x[at + 2u], dot_4(lo.w, dot_x[at + 3u], sum));
    sum = dot_4(hi.x, dot_x[at + 4u], dot_4(hi.y, dot_x[at + 5u], sum));
    return dot_4(hi.z, dot_x[at + 6u], dot_4(hi.w, dot_x[at + 7u], sum));
#else
    uint lo = dot_nibbles(q.x, at, dot_nibbles(q.y, at + 1u, 0u));
    uint hi = dot_nibbles(q.x >> 4, at + 4u, dot_nibbles(q.y >> 4, at + 5u, 0u));
    lo = dot_nibbles(q.z, at + 2u, dot_nibbles(q.w, at + 3u, lo));
    hi = dot_nibbles(q.z >> 4, at + 6u, dot_nibbles(q.w >> 4, at + 7u, hi));
    return dot_upper(lo) + dot_upper(hi) - 8 * x_sum;
#endif
}

/* Half a block of Q8_0, 16 bytes. x_sum: of these 16 inputs or, in one of the halves, of all 32 and 0 in the
 * other. */
int dot_q8_0(uvec4 q, uint at, int x_sum)
{
#ifdef USE_DOT
    int sum = dot_4(q.x, dot_x[at], dot_4(q.y, dot_x[at + 1u], 0));
    return dot_4(q.z, dot_x[at + 2u], dot_4(q.w, dot_x[at + 3u], sum));
#else
    q ^= 0x80808080u; /* plus 128 */
    uint lo = dot_nibbles(q.x, at, dot_nibbles(q.y, at + 1u, 0u));
    uint hi = dot_nibbles(q.x >> 4, at, dot_nibbles(q.y >> 4, at + 1u, 0u));
    lo = dot_nibbles(q.z, at + 2u, dot_nibbles(q.w, at + 3u, lo));
    hi = dot_nibbles(q.z >> 4, at + 2u, dot_nibbles(q.w >> 4, at + 3u, hi));
    return dot_upper(lo) + 16 * dot_upper(hi) - 128 * x_sum;
#endif
}

#endif
