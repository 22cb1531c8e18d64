/* Weight blocks as they stand in a GGUF file: the only place that knows what their bits mean (model/quant.h
 * is the same in C). Offsets are in bytes; rows may start at any even offset.
 * Before inclusion: LOAD_WORD(i), 32-bit word i of the binding; WORDS_ALIGNED, true when every row of an
 * unquantised matrix starts on a 4-byte boundary. */
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
 * load is read twice instead, which keeps lanes from diverging. */
uint load_u16(uint off)
{
    return (LOAD_WORD(off >> 2) >> ((off & 2u) * 8u)) & 0xffffu;
}

uint load_u32(uint off)
{
    uint i = off >> 2;
    uint sh = (off & 3u) * 8u;

    if (WORDS_ALIGNED)
        return LOAD_WORD(i);
    return funnel(LOAD_WORD(i), LOAD_WORD(i + uint(sh != 0u)), sh);
}

/* Never on a 4-byte boundary throughout a matrix: blocks of 18 and 34 bytes. */
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
    uint sh = (off & 3u) * 8u;
    uvec4 w = uvec4(LOAD_WORD(i), LOAD_WORD(i + 1u), LOAD_WORD(i + 2u), LOAD_WORD(i + 3u));

    if (WORDS_ALIGNED)
        return w;
    uint w4 = LOAD_WORD(i + 3u + uint(sh != 0u));
    return uvec4(funnel(w.x, w.y, sh), funnel(w.y, w.z, sh), funnel(w.z, w.w, sh), funnel(w.w, w4, sh));
}

/* Bytes of a row of n elements. */
uint row_bytes(uint format, uint n)
{
    if (format == FMT_F32)
        return n * 4u;
    if (format == FMT_Q8_0)
        return n / 32u * 34u;
    if (format == FMT_Q4_0)
        return n / 32u * 18u;
    return n * 2u;
}

vec4 signed_bytes(uint w)
{
    int i = int(w);
    return vec4(bitfieldExtract(i, 0, 8), bitfieldExtract(i, 8, 8), bitfieldExtract(i, 16, 8), i >> 24);
}

vec4 unsigned_bytes(uint w)
{
    return vec4(w & 0xffu, (w >> 8) & 0xffu, (w >> 16) & 0xffu, w >> 24);
}

vec8 load8_f32(uint off)
{
    return vec8(uintBitsToFloat(load_u128(off)), uintBitsToFloat(load_u128(off + 16u)));
}

vec8 load8_f16(uint off)
{
    uvec4 w = load_u128(off);
    return vec8(vec4(halves_to_floats(w.x), halves_to_floats(w.y)),
                vec4(halves_to_floats(w.z), halves_to_floats(w.w)));
}

vec8 load8_bf16(uint off)
{
    uvec4 w = load_u128(off);
    uvec4 lo = w << 16;
    uvec4 hi = w & 0xffff0000u;
    return vec8(uintBitsToFloat(uvec4(lo.x, hi.x, lo.y, hi.y)),
                uintBitsToFloat(uvec4(lo.z, hi.z, lo.w, hi.w)));
}

/* 34 bytes: half scale d, 32 signed bytes. */
vec8 load8_q8_0(uint row, uint unit)
{
    uint block = row + unit / 4u * 34u;
    float d = half_to_float(load_u16(block));
    uvec2 q = load_u64(block + 2u + unit % 4u * 8u);
    return vec8(d * signed_bytes(q.x), d * signed_bytes(q.y));
}

/* 18 bytes: half scale d, 16 bytes; byte i holds elements i (low four bits) and i + 16, each plus 8. */
vec8 load8_q4_0(uint row, uint unit)
{
    uint block = row + unit / 4u * 18u;
    float d = half_to_float(load_u16(block));
    uvec2 q = (load_u64(block + 2u + (unit & 1u) * 8u) >> ((unit & 2u) * 2u)) & 0x0f0f0f0fu;
    return vec8(d * (unsigned_bytes(q.x) - 8.0), d * (unsigned_bytes(q.y) - 8.0));
}

/* Element i of an unquantised row. */
float load1(uint format, uint row, uint i)
{
    if (format == FMT_F32)
        return uintBitsToFloat(load_u32(row + i * 4u));
    uint h = load_u16(row + i * 2u);
    return format == FMT_F16 ? half_to_float(h) : uintBitsToFloat(h << 16);
}

/* load1 with zeros from element n on. */
float load1_or_0(uint format, uint row, uint i, uint n)
{
    float v = 0.0;
    if (i < n)
        v = load1(format, row, i);
    return v;
}

vec4 load4_tail(uint format, uint row, uint i, uint n)
{
    return vec4(load1_or_0(format, row, i, n), load1_or_0(format, row, i + 1u, n),
                load1_or_0(format, row, i + 2u, n), load1_or_0(format, row, i + 3u, n));
}

/* Elements 8 * unit .. 8 * unit + 7 of the row of n elements that starts at byte `row`; zeros behind the
 * row's end. unit < ceil(n / 8). */
vec8 load8(uint format, uint row, uint unit, uint n)
{
    if (n % 8u != 0u && unit == n / 8u)
        return vec8(load4_tail(format, row, unit * 8u, n), load4_tail(format, row, unit * 8u + 4u, n));
    if (format == FMT_F32)
        return load8_f32(row + unit * 32u);
    if (format == FMT_F16)
        return load8_f16(row + unit * 16u);
    if (format == FMT_BF16)
        return load8_bf16(row + unit * 16u);
    if (format == FMT_Q8_0)
        return load8_q8_0(row, unit);
    return load8_q4_0(row, unit);
}

#endif
