/* Weight blocks as they stand in a GGUF file: the only place, with lib/blocks.glsl, that knows what their
 * bits mean (model/quant.h is the same in C). Offsets are in bytes; rows may start at any even offset, with
 * MORE_BLOCKS at any. MORE_BLOCKS: all formats, else F32, F16, BF16, Q8_0 and Q4_0: drivers that inline
 * everything before they fold constants take twice as long for all (gpu/kernels.h chooses the module).
 * Before inclusion: LOAD_WORD(i), 32-bit word i of the binding; WORDS_ALIGNED, true when every row of an
 * unquantised matrix starts on a 4-byte boundary; WORDS_WIDE, true when all of them start on a 16-byte
 * boundary, and LOAD_WORD4(i), words 4 i .. 4 i + 3, for that case. */
#ifndef LIB_DEQUANT_GLSL
#define LIB_DEQUANT_GLSL

#include "lib/half.glsl"
#include "shared/step.h"

/* Eight neighbouring elements. */
struct vec8 {
    vec4 a, b;
};

/* 32 bits from `sh` (0, 8, 16 or 24) bits into hi:lo. */
uint funnel(uint lo, uint hi, uint sh)
{
    return (lo >> sh) | ((hi << 1) << (31u - sh));
}

/* The loads below never touch a word that holds none of the bytes asked for: the last word of an aligned
 * load is read twice instead, which keeps lanes from diverging. Functions here have one return and occur once
 * in a kernel where they can: some drivers inline everything before they fold specialisation constants. */
uint load_u16(uint off)
{
    return (LOAD_WORD(off >> 2) >> ((off & 2u) * 8u)) & 0xffffu;
}

/* On any byte; blocks are of no multiple of four, or start with less than eight bytes: no wider load pays. */
uvec2 load_u64(uint off)
{
    uint i = off >> 2;
    uint sh = (off & 3u) * 8u;
    uint w1 = LOAD_WORD(i + 1u);

    return uvec2(funnel(LOAD_WORD(i), w1, sh), funnel(w1, LOAD_WORD(i + 1u + uint(sh != 0u)), sh));
}

uvec4 load_u128(uint off)
{
    uint i = off >> 2;

    if (WORDS_WIDE)
        return LOAD_WORD4(i >> 2);
    uvec4 w = uvec4(LOAD_WORD(i), LOAD_WORD(i + 1u), LOAD_WORD(i + 2u), LOAD_WORD(i + 3u));
    if (!WORDS_ALIGNED) {
        uint sh = (off & 3u) * 8u;
        uvec4 next = uvec4(w.yzw, LOAD_WORD(i + 3u + uint(sh != 0u)));
        w = (w >> sh) | ((next << 1) << (31u - sh));
    }
    return w;
}

#ifndef MORE_BLOCKS
/* Bytes of a row of n elements. */
uint row_bytes(uint format, uint n)
{
    uint bytes = n * 2u;
    if (format == FMT_F32)
        bytes = n * 4u;
    if (format == FMT_Q8_0)
        bytes = n / 32u * 34u;
    if (format == FMT_Q4_0)
        bytes = n / 32u * 18u;
    return bytes;
}
#endif

vec4 signed_bytes(uint w)
{
    return vec4(ivec4(uvec4(w << 24, w << 16, w << 8, w)) >> 24);
}

vec4 unsigned_bytes(uint w)
{
    return vec4((uvec4(w) >> uvec4(0u, 8u, 16u, 24u)) & 0xffu);
}

vec8 load8_f32(uint off)
{
    return vec8(uintBitsToFloat(load_u128(off)), uintBitsToFloat(load_u128(off + 16u)));
}

/* Halves and bfloat16. */
vec8 load8_16(uint format, uint off)
{
    uvec4 w = load_u128(off);
    uvec4 lo = w << 16;
    uvec4 hi = w & 0xffff0000u;
    vec8 v = vec8(uintBitsToFloat(uvec4(lo.x, hi.x, lo.y, hi.y)),
                  uintBitsToFloat(uvec4(lo.z, hi.z, lo.w, hi.w)));

    if (format == FMT_F16)
        v = vec8(halves_to_floats(w.xy), halves_to_floats(w.zw));
    return v;
}

#ifdef MORE_BLOCKS
#include "lib/blocks.glsl"
#else
/* Q8_0, 34 bytes: half scale d, 32 signed bytes. Q4_0, 18 bytes: half scale d, 16 bytes; byte i holds
 * elements i (low four bits) and i + 16, each plus 8. */
vec8 load8_block(uint format, uint row, uint unit)
{
    bool q4 = format == FMT_Q4_0;
    uint block = row + unit / 4u * (q4 ? 18u : 34u);
    float d = half_to_float(load_u16(block));
    uvec2 q = load_u64(block + 2u + (q4 ? unit & 1u : unit & 3u) * 8u);
    vec8 v;

    if (q4) {
        q = (q >> ((unit & 2u) * 2u)) & 0x0f0f0f0fu;
        v = vec8(d * (unsigned_bytes(q.x) - 8.0), d * (unsigned_bytes(q.y) - 8.0));
    } else {
        v = vec8(d * signed_bytes(q.x), d * signed_bytes(q.y));
    }
    return v;
}

#endif

/* Element i of an unquantised row. */
float load1(uint format, uint row, uint i)
{
    uint bits;
    if (format == FMT_F32) {
        uint off = row + i * 4u;
        bits = load_u16(off) | (load_u16(off + 2u) << 16);
    } else {
        bits = load_u16(row + i * 2u);
        bits = format == FMT_F16 ? floatBitsToUint(half_to_float(bits)) : bits << 16;
    }
    return uintBitsToFloat(bits);
}

const uvec4 FOUR = uvec4(0u, 1u, 2u, 3u);

/* The last, incomplete unit of an unquantised row; `left` elements, zeros behind them. */
vec8 load8_tail(uint format, uint row, uint unit, uint left)
{
    vec8 v = vec8(vec4(0.0), vec4(0.0));
    for (uint i = 0u; i < left; i++) {
        vec4 e = vec4(load1(format, row, unit * 8u + i));
        v.a = mix(v.a, e, equal(uvec4(i), FOUR));
        v.b = mix(v.b, e, equal(uvec4(i), FOUR + 4u));
    }
    return v;
}

/* Elements 8 * unit .. 8 * unit + 7 of the row of n elements that starts at byte `row`; zeros behind the
 * row's end. unit < ceil(n / 8). */
vec8 load8(uint format, uint row, uint unit, uint n)
{
    vec8 v;
    if (n % 8u != 0u && unit == n / 8u)
        v = load8_tail(format, row, unit, n % 8u);
    else if (format == FMT_F32)
        v = load8_f32(row + unit * 32u);
    else if (format == FMT_F16 || format == FMT_BF16)
        v = load8_16(format, row + unit * 16u);
    else
        v = load8_block(format, row, unit);
    return v;
}

#endif
