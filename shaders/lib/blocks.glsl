/* Every block format, eight elements of a row at a time (model/blocks_32.c and blocks_k.c say what the bits
 * mean). For lib/dequant.glsl alone. An element is d q + m, where q is a byte: unsigned less block_offset, or
 * signed. DEQUANT_EXACT: values are rounded as plain C rounds them, products first. */
#ifndef LIB_BLOCKS_GLSL
#define LIB_BLOCKS_GLSL

struct unit_q {
    uvec2 q;
    float d, m;
};

uint load_u8(uint off)
{
    return (LOAD_WORD(off >> 2) >> ((off & 3u) * 8u)) & 0xffu;
}

/* Two neighbouring halves, on an even offset. */
vec2 load_halves(uint off)
{
    return vec2(half_to_float(load_u16(off)), half_to_float(load_u16(off + 2u)));
}

/* The low four bits of b as bytes, 16 for one that is set. */
uint fifths(uint b)
{
    return (((b & 0xfu) * 0x00204081u) & 0x01010101u) << 4;
}

/* Sixteen signed bytes in four words, by four bits. */
uint pick_byte(uvec4 values, uint q)
{
    uvec2 half8 = (q & 8u) != 0u ? values.zw : values.xy;
    return (((q & 4u) != 0u ? half8.y : half8.x) >> ((q & 3u) * 8u)) & 0xffu;
}

uint pick_bytes(uvec4 values, uint q)
{
    return pick_byte(values, q & 0xfu) | pick_byte(values, (q >> 8) & 0xfu) << 8 |
           pick_byte(values, (q >> 16) & 0xfu) << 16 | pick_byte(values, q >> 24) << 24;
}

/* 2^(e - 128), of the smallest exponents by their bits: they are subnormal. */
float scale_mxfp4(uint e)
{
    return uintBitsToFloat(e < 2u ? 0x00200000u << e : (e - 1u) << 23);
}

/* Blocks of 32: unit u < 4 of the block at `at`. */
unit_q unit_32(uint format, uint at, uint u)
{
    unit_q v = unit_q(uvec2(0u), 0.0, 0.0);
    uint nibbles = at + 2u, shift = (u & 2u) * 2u;

    if (format == FMT_Q4_1 || format == FMT_Q5_1) {
        vec2 dm = load_halves(at);
        v.d = dm.x;
        v.m = dm.y;
        nibbles = at + (format == FMT_Q4_1 ? 4u : 8u);
    } else if (format == FMT_MXFP4) {
        v.d = scale_mxfp4(load_u8(at));
        nibbles = at + 1u;
    } else {
        v.d = half_to_float(load_u16(at));
        nibbles = at + (format == FMT_Q5_0 ? 6u : 2u);
    }
    if (format == FMT_Q8_0) {
        v.q = load_u64(at + 2u + u * 8u);
    } else {
        v.q = (load_u64(nibbles + (u & 1u) * 8u) >> shift) & 0x0f0f0f0fu;
        if (format == FMT_Q5_0 || format == FMT_Q5_1) {
            uint b = load_u8(nibbles - 4u + u);
            v.q |= uvec2(fifths(b), fifths(b >> 4));
        }
        if (format == FMT_IQ4_NL || format == FMT_MXFP4) {
            uvec4 values = format == FMT_IQ4_NL
                               ? uvec4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u)
                               : uvec4(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
            v.q = uvec2(pick_bytes(values, v.q.x), pick_bytes(values, v.q.y));
        }
    }
    return v;
}

/* Six bits each of a scale and a minimum, of part j < 8, from the twelve bytes at `at`. */
uvec2 scale_and_low(uint at, uint j)
{
    uint a = load_u8(at + (j & 3u)), b = load_u8(at + 4u + (j & 3u)), c = load_u8(at + 8u + (j & 3u));
    return j < 4u ? uvec2(a & 63u, b & 63u) : uvec2((c & 15u) | ((a >> 6) << 4), (c >> 4) | ((b >> 6) << 4));
}

/* Blocks of 256: unit u < 32. */
unit_q unit_256(uint format, uint at, uint u)
{
    unit_q v;
    uint in32 = (u & 3u) * 8u, part = u >> 2; /* of 32 elements: byte in it, and which */

    if (format == FMT_Q2_K) {
        uint s = load_u8(at + (u >> 1));
        vec2 dm = load_halves(at + 80u);
        v.q = (load_u64(at + 16u + (u >> 4) * 32u + in32) >> ((part & 3u) * 2u)) & 0x03030303u;
        v.d = dm.x * float(s & 15u);
        v.m = -(dm.y * float(s >> 4));
    } else if (format == FMT_Q3_K) {
        uint j = u >> 1;
        uint low = load_u8(at + 96u + (j & 7u)) >> ((j >> 3) * 4u);
        uint high = load_u8(at + 104u + (j & 3u)) >> ((j >> 2) * 2u);
        v.q = (load_u64(at + 32u + (u >> 4) * 32u + in32) >> ((part & 3u) * 2u)) & 0x03030303u;
        v.q |= ((load_u64(at + in32) >> part) & 0x01010101u) << 2;
        v.d = half_to_float(load_u16(at + 108u)) * (float((low & 15u) | ((high & 3u) << 4)) - 32.0);
        v.m = 0.0;
    } else if (format == FMT_Q6_K) {
        uint at16 = u & 15u;
        uint s = load_u8(at + 192u + (u >> 1));
        v.q = (load_u64(at + (u >> 4) * 64u + (at16 & 7u) * 8u) >> ((at16 >> 3) * 4u)) & 0x0f0f0f0fu;
        v.q |= ((load_u64(at + 128u + (u >> 4) * 32u + in32) >> ((part & 3u) * 2u)) & 0x03030303u) << 4;
        v.d = half_to_float(load_u16(at + 208u)) * (float(s ^ 128u) - 128.0);
        v.m = 0.0;
    } else {
        bool five = format == FMT_Q5_K;
        vec2 dm = load_halves(at);
        uvec2 s = scale_and_low(at + 4u, part);
        v.q = (load_u64(at + (five ? 48u : 16u) + (u >> 3) * 32u + in32) >> ((part & 1u) * 4u)) & 0x0f0f0f0fu;
        if (five)
            v.q |= ((load_u64(at + 16u + in32) >> part) & 0x01010101u) << 4;
        v.d = dm.x * float(s.x);
        v.m = -(dm.y * float(s.y));
    }
    return v;
}

/* Bytes of a block; 0: the format has none. */
uint block_bytes(uint format)
{
    uint n = 0u;
    if (format == FMT_Q4_0 || format == FMT_IQ4_NL)
        n = 18u;
    if (format == FMT_Q4_1)
        n = 20u;
    if (format == FMT_Q5_0)
        n = 22u;
    if (format == FMT_Q5_1)
        n = 24u;
    if (format == FMT_Q8_0)
        n = 34u;
    if (format == FMT_MXFP4)
        n = 17u;
    if (format == FMT_Q2_K)
        n = 84u;
    if (format == FMT_Q3_K)
        n = 110u;
    if (format == FMT_Q4_K)
        n = 144u;
    if (format == FMT_Q5_K)
        n = 176u;
    if (format == FMT_Q6_K)
        n = 210u;
    return n;
}

bool is_k(uint format)
{
    return format >= FMT_Q2_K && format <= FMT_Q6_K;
}

/* What an unsigned q stands above its value; the other formats have signed bytes. */
float block_offset(uint format)
{
    float offset = 0.0;
    if (format == FMT_Q4_0)
        offset = 8.0;
    if (format == FMT_Q5_0)
        offset = 16.0;
    if (format == FMT_Q3_K)
        offset = 4.0;
    if (format == FMT_Q6_K)
        offset = 32.0;
    return offset;
}

bool has_signed_bytes(uint format)
{
    return format == FMT_Q8_0 || format == FMT_IQ4_NL || format == FMT_MXFP4;
}

bool has_minimum(uint format)
{
    return format == FMT_Q4_1 || format == FMT_Q5_1 || format == FMT_Q2_K || format == FMT_Q4_K ||
           format == FMT_Q5_K;
}

/* Bytes of a row of n elements. */
uint row_bytes(uint format, uint n)
{
    uint block = block_bytes(format), bytes = n * (format == FMT_F32 ? 4u : 2u);
    if (block != 0u)
        bytes = n / (is_k(format) ? 256u : 32u) * block;
    return bytes;
}

#ifdef DEQUANT_EXACT
#define DEQUANT_VALUE precise vec4
#else
#define DEQUANT_VALUE vec4
#endif

vec4 block_values(uint format, unit_q u, uint q)
{
    vec4 bytes = has_signed_bytes(format) ? signed_bytes(q) : unsigned_bytes(q) - block_offset(format);
    DEQUANT_VALUE v = u.d * bytes;
    if (has_minimum(format)) {
        DEQUANT_VALUE sum = v + u.m;
        v = sum;
    }
    return v;
}

vec8 load8_block(uint format, uint row, uint unit)
{
    unit_q u;
    if (is_k(format))
        u = unit_256(format, row + unit / 32u * block_bytes(format), unit % 32u);
    else
        u = unit_32(format, row + unit / 4u * block_bytes(format), unit % 4u);
    return vec8(block_values(format, u, u.q.x), block_values(format, u, u.q.y));
}

#endif
