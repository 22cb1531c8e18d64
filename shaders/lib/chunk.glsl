/* What a lane takes of a matrix row at a time, for lib/lanes.glsl: a block, or eight words of an unquantised
 * row.
 * Before inclusion: as lib/dequant.glsl; LOAD_PAIR_Q4(i) and LOAD_PAIR_Q8(i) of lib/block_pair.glsl, where
 * rows may be of blocks. */
#ifndef LIB_CHUNK_GLSL
#define LIB_CHUNK_GLSL

#include "lib/dequant.glsl"

/* Up to eight words of one row: `quads` groups of four elements, and their scale. */
struct chunk {
    uvec4 a, b;
    float d;
};

bool has_blocks(uint format)
{
    return format == FMT_Q4_0 || format == FMT_Q8_0;
}

/* Groups of four elements in a chunk of an unquantised row; a block is eight. */
uint chunk_quads(uint format)
{
    return format == FMT_F32 ? 2u : 4u;
}

/* Chunk c of the unquantised row that starts at byte `row`; all of it must lie in the row. */
chunk load_words(uint row, uint c)
{
    return chunk(load_u128(row + c * 32u), load_u128(row + c * 32u + 16u), 1.0);
}

/* Elements 4 g .. 4 g + 3 of it. g is constant, here and below. */
vec4 words_quad(uint format, chunk v, uint g)
{
    vec4 r;
    if (format == FMT_F32) {
        r = uintBitsToFloat(g == 0u ? v.a : v.b);
    } else {
        uvec4 u = g < 2u ? v.a : v.b;
        uvec2 w = (g & 1u) == 0u ? u.xy : u.zw;
        r = uintBitsToFloat(uvec4(w.x << 16, w.x & 0xffff0000u, w.y << 16, w.y & 0xffff0000u));
        if (format == FMT_F16)
            r = halves_to_floats(w);
    }
    return r;
}

#ifdef LOAD_PAIR_Q4
/* Five words hold the 18 bytes from `off` on, an even offset. */
chunk load_q4(uint off)
{
    uint i = off >> 2;
    uvec4 w = uvec4(LOAD_WORD(i), LOAD_WORD(i + 1u), LOAD_WORD(i + 2u), LOAD_WORD(i + 3u));
    uvec4 next = uvec4(w.yzw, LOAD_WORD(i + 4u));
    bool upper = (off & 2u) != 0u;

    return chunk(upper ? next : (w >> 16) | (next << 16), uvec4(0u),
                 half_to_float(upper ? w.x >> 16 : w.x & 0xffffu));
}

/* Nine words hold the 34. */
chunk load_q8(uint off)
{
    uint i = off >> 2;
    uvec4 w = uvec4(LOAD_WORD(i), LOAD_WORD(i + 1u), LOAD_WORD(i + 2u), LOAD_WORD(i + 3u));
    uvec4 v = uvec4(LOAD_WORD(i + 4u), LOAD_WORD(i + 5u), LOAD_WORD(i + 6u), LOAD_WORD(i + 7u));
    uvec4 w1 = uvec4(w.yzw, v.x);
    uvec4 v1 = uvec4(v.yzw, LOAD_WORD(i + 8u));
    bool upper = (off & 2u) != 0u;

    return chunk(upper ? w1 : (w >> 16) | (w1 << 16), upper ? v1 : (v >> 16) | (v1 << 16),
                 half_to_float(upper ? w.x >> 16 : w.x & 0xffffu));
}

/* Block c of the row that starts at byte `row`. */
chunk load_block(uint format, uint row, uint c)
{
    chunk v;
    if (format == FMT_Q4_0)
        v = load_q4(row + c * 18u);
    else
        v = load_q8(row + c * 34u);
    return v;
}

/* Blocks c and c + 1 of the row that starts at byte `row`, c even. */
struct chunks {
    chunk even, odd;
};

chunks load_pair(uint format, uint row, uint c)
{
    chunks v;
    if (!PAIRS) {
        v = chunks(load_block(format, row, c), load_block(format, row, c + 1u));
    } else if (format == FMT_Q4_0) {
        uint i = row / 36u + c / 2u;
        uvec4 w = LOAD_PAIR_Q4(i).a;
        uint mid = LOAD_PAIR_Q4(i).mid;
        v.even = chunk((w >> 16) | (uvec4(w.yzw, mid) << 16), uvec4(0u), half_to_float(w.x & 0xffffu));
        v.odd = chunk(LOAD_PAIR_Q4(i).b, uvec4(0u), half_to_float(mid >> 16));
    } else {
        uint i = row / 68u + c / 2u;
        uvec4 w = LOAD_PAIR_Q8(i).a0, w1 = LOAD_PAIR_Q8(i).a1;
        uint mid = LOAD_PAIR_Q8(i).mid;
        v.even = chunk((w >> 16) | (uvec4(w.yzw, w1.x) << 16), (w1 >> 16) | (uvec4(w1.yzw, mid) << 16),
                       half_to_float(w.x & 0xffffu));
        v.odd = chunk(LOAD_PAIR_Q8(i).b0, LOAD_PAIR_Q8(i).b1, half_to_float(mid >> 16));
    }
    return v;
}

/* Elements 4 g .. 4 g + 3 of a block, not scaled. */
vec4 block_quad(uint format, chunk v, uint g)
{
    vec4 r;
    if (format == FMT_Q8_0)
        r = signed_bytes((g < 4u ? v.a : v.b)[g & 3u]);
    else
        r = unsigned_bytes((g < 4u ? v.a[g & 3u] : v.a[g & 3u] >> 4) & 0x0f0f0f0fu) - 8.0;
    return r;
}
#endif

#endif
