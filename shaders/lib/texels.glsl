/* The core of lib/rows.glsl for narrow devices that read texel buffers faster than storage buffers: each
 * lane keeps 256 elements of the input, and the matrix rows go by, sixteen bytes at a load. A team of lanes
 * holds an input row of up to 256 WG elements (longer ones take several passes), the workgroup's teams take
 * neighbouring rows. For blocks of 32 (Q8_0, Q4_0) in rows of whole multiples of 256; f32 sums.
 * Quants stay where they stand in their word: an integer whose lower bits are masked off is 2^p times as
 * large, so the kept element is 2^-p times as large; what is subtracted from every quant is subtracted once
 * for a block, times the sum of its elements.
 * Before inclusion: LOAD_X4(i), elements 4 i .. 4 i + 3 of the input; TEXELS(i), texel i of the weights;
 * TEXELS_PUT(row, sum, first), which a lane calls for each sum of a row and pass; WG, a power of two and one
 * subgroup; ROWS, a multiple of WG. */
#ifndef LIB_TEXELS_GLSL
#define LIB_TEXELS_GLSL

#include "lib/half.glsl"

#define UNIT        256u /* elements that a lane keeps: eight blocks */
#define UNIT_BLOCKS 8u

float kept[UNIT];
float kept_sum[UNIT_BLOCKS]; /* of the block's elements, times what quants are stored higher by */
uint unit_words[68];         /* of the weights that meet them; eight blocks of Q8_0 are 68 words */

/* Two neighbouring blocks begin on a word boundary, as in lib/block_pair.glsl. */
uint pair_words(uint format)
{
    return format == FMT_Q4_0 ? 9u : 17u;
}

/* Byte of the pair that holds element e of block b. */
uint quant_byte(uint format, uint b, uint e)
{
    uint first = b % 2u == 0u ? 2u : 2u * pair_words(format) + 2u;
    return first + (format == FMT_Q4_0 ? e % 16u : e);
}

/* Bits below those of element e in its word. The uppermost quant is moved down, the others are masked. */
uint quant_at(uint format, uint b, uint e)
{
    return 8u * (quant_byte(format, b, e) % 4u) + (format == FMT_Q4_0 ? e / 16u * 4u : 0u);
}

bool quant_is_top(uint format, uint at)
{
    return at == (format == FMT_Q4_0 ? 28u : 24u);
}

/* Element e of block b of the unit, plus 8 or 128, times 2^quant_at unless it is on top. */
float quant(uint format, uint b, uint e)
{
    uint word = unit_words[b / 2u * pair_words(format) + quant_byte(format, b, e) / 4u];
    uint at = quant_at(format, b, e);
    if (format == FMT_Q8_0)
        word ^= 0x80808080u;
    return float(int(quant_is_top(format, at) ? word >> at
                                              : word & ((format == FMT_Q4_0 ? 15u : 255u) << at)));
}

/* Keeps a unit of the input row that starts at element x0. */
void texels_keep(uint format, uint x0, uint unit)
{
    [[unroll]] for (uint b = 0u; b < UNIT_BLOCKS; b++) {
        float sum = 0.0;
        [[unroll]] for (uint i = 0u; i < 8u; i++) {
            vec4 x = LOAD_X4((x0 + unit * UNIT) / 4u + b * 8u + i);
            sum += (x.x + x.y) + (x.z + x.w);
            [[unroll]] for (uint j = 0u; j < 4u; j++) {
                uint at = quant_at(format, b, i * 4u + j);
                kept[b * 32u + i * 4u + j] = quant_is_top(format, at) ? x[j] : x[j] / float(1u << at);
            }
        }
        kept_sum[b] = sum * (format == FMT_Q4_0 ? 8.0 : 128.0);
    }
}

/* The kept elements times those of a matrix row that stand from texel `at` on. */
float texels_dot(uint format, uint at)
{
    float sum = 0.0;

    [[unroll]] for (uint i = 0u; i < pair_words(format); i++) {
        uvec4 w = TEXELS(at + i);
        unit_words[4u * i] = w.x;
        unit_words[4u * i + 1u] = w.y;
        unit_words[4u * i + 2u] = w.z;
        unit_words[4u * i + 3u] = w.w;
    }
    [[unroll]] for (uint b = 0u; b < UNIT_BLOCKS; b++) {
        uint first = b / 2u * pair_words(format);
        float d = b % 2u == 0u ? half_to_float(unit_words[first] & 0xffffu)
                               : half_to_float(unit_words[first + pair_words(format) / 2u] >> 16);
        vec4 block = vec4(0.0);
        [[unroll]] for (uint e = 0u; e < 32u; e += 4u)
            block += vec4(quant(format, b, e) * kept[b * 32u + e],
                          quant(format, b, e + 1u) * kept[b * 32u + e + 1u],
                          quant(format, b, e + 2u) * kept[b * 32u + e + 2u],
                          quant(format, b, e + 3u) * kept[b * 32u + e + 3u]);
        sum += d * (((block.x + block.y) + (block.z + block.w)) - kept_sum[b]);
    }
    return sum;
}

/* The sum of team `lane`, for lanes below the number of teams. */
float texels_sum(float share, uint lanes)
{
    float mine = 0.0;

    for (uint t = 0u; t < WG / lanes; t++) {
        float sum = subgroupAdd(gl_LocalInvocationIndex / lanes == t ? share : 0.0);
        mine = gl_LocalInvocationIndex == t ? sum : mine;
    }
    return mine;
}

/* As rows_dot, for rows from row0 on; base and stride are multiples of 16. What a step finds is summed in the
 * next one: compilers take a sum that they see used once apart, lane by lane. */
void texels_rows(uint format, uint base, uint stride, uint row0, uint n_rows, uint k, uint x0)
{
    uint units = k / UNIT, lane = gl_LocalInvocationIndex;
    uint lanes = units >= WG ? WG : units > 1u ? 2u << findMSB(units - 1u) : 1u;
    uint end = min(row0 + ROWS, n_rows), teams = WG / lanes;

    for (uint first = 0u; first < units; first += lanes) {
        uint unit = first + lane % lanes;
        bool idle = unit >= units;
        float share = 0.0;

        unit = min(unit, units - 1u);
        texels_keep(format, x0, unit);
        for (uint row = row0; row < end + teams; row += teams) {
            if (row != row0) {
                float sum = texels_sum(share, lanes);
                uint out_row = row - teams + lane;
                if (lane < teams && out_row < end)
                    TEXELS_PUT(out_row, sum, first == 0u);
            }
            if (row >= end)
                break;
            uint mine = min(row + lane / lanes, n_rows - 1u);
            float dot = texels_dot(format, (base + mine * stride) / 16u + unit * pair_words(format));
            share = idle ? 0.0 : dot;
        }
    }
}

#endif
