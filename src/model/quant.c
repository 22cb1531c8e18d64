#include "model/quant.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "core/bits.h"
#include "model/blocks.h"

static const struct mdl_type_info types[] = {
#define MDL_X(id, value, name, elems, bytes, file) {id, name, elems, bytes, file},
    MDL_TYPE_LIST(MDL_X)
#undef MDL_X
};

#define N_TYPES (sizeof(types) / sizeof(types[0]))

const struct mdl_type_info *mdl_type_find(uint32_t gguf_type)
{
    for (size_t i = 0; i < N_TYPES; i++)
        if ((uint32_t)types[i].type == gguf_type)
            return &types[i];
    return NULL;
}

bool mdl_same_name(const char *a, const char *b)
{
    for (; *a && *b; a++, b++) {
        char ca = *a >= 'A' && *a <= 'Z' ? (char)(*a + 32) : *a;
        char cb = *b >= 'A' && *b <= 'Z' ? (char)(*b + 32) : *b;

        if (ca != cb)
            return false;
    }
    return *a == *b;
}

const struct mdl_type_info *mdl_type_by_name(const char *name)
{
    for (size_t i = 0; i < N_TYPES; i++)
        if (mdl_same_name(types[i].name, name))
            return &types[i];
    return NULL;
}

uint64_t mdl_row_bytes(enum mdl_type type, uint64_t n)
{
    const struct mdl_type_info *t = mdl_type_find((uint32_t)type);

    assert(t && n % t->block_elems == 0);
    return n / t->block_elems * t->block_bytes;
}

/* ---- halves
 * ------------------------------------------------------------------------------------------------ */

/* m / 2^shift rounded to nearest, ties to even; 1 <= shift <= 31. */
static uint32_t shift_round(uint32_t m, uint32_t shift)
{
    uint32_t q = m >> shift, rest = m & ((1u << shift) - 1), tie = 1u << (shift - 1);

    return q + (rest > tie || (rest == tie && (q & 1)));
}

float mdl_half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;

    if (exponent == 0) { /* subnormal or zero: mantissa x 2^-24, exact in a float */
        float f = (float)mantissa * 0x1p-24f;

        return sign ? -f : f;
    }
    if (exponent == 31) /* infinity and NaN keep their payload */
        return cor_float_from_bits(sign | 0x7f800000u | mantissa << 13);
    return cor_float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t mdl_float_to_half(float f)
{
    uint32_t u = cor_float_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffffu;

    if (a > 0x7f800000u) /* NaN: quiet, the upper payload bits stay */
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000u) /* 65520, half way past the largest half, rounds to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (a >=
        0x38800000u) /* 2^-14 and up: normal; a carry out of the mantissa raises the exponent, as it must */
        return (uint16_t)(sign | shift_round(a - (112u << 23), 13));
    if (a <= 0x33000000u) /* up to 2^-25, half of the smallest subnormal: zero */
        return (uint16_t)sign;
    /* The value is (1.mantissa as 24-bit integer) x 2^(exponent - 150), counted in units of 2^-24. */
    return (uint16_t)(sign | shift_round((a & 0x7fffffu) | 0x800000u, 126 - (a >> 23)));
}

float mdl_bf16_to_float(uint16_t h)
{
    return cor_float_from_bits((uint32_t)h << 16);
}

uint16_t mdl_float_to_bf16(float f)
{
    uint32_t u = cor_float_bits(f);

    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* ---- rows
 * ------------------------------------------------------------------------------------------------------ */

/* NULL: the format has no blocks. */
static const struct mdl_block_code *code_of(enum mdl_type type)
{
    switch (type) {
    case MDL_F32:
    case MDL_F16:
    case MDL_BF16:
        return NULL;
    case MDL_Q4_0:
        return &mdl_code_q4_0;
    case MDL_Q4_1:
        return &mdl_code_q4_1;
    case MDL_Q5_0:
        return &mdl_code_q5_0;
    case MDL_Q5_1:
        return &mdl_code_q5_1;
    case MDL_Q8_0:
        return &mdl_code_q8_0;
    case MDL_Q2_K:
        return &mdl_code_q2_k;
    case MDL_Q3_K:
        return &mdl_code_q3_k;
    case MDL_Q4_K:
        return &mdl_code_q4_k;
    case MDL_Q5_K:
        return &mdl_code_q5_k;
    case MDL_Q6_K:
        return &mdl_code_q6_k;
    case MDL_IQ4_NL:
        return &mdl_code_iq4_nl;
    case MDL_MXFP4:
        return &mdl_code_mxfp4;
    }
    return NULL;
}

static float get_f32(const uint8_t *p)
{
    return cor_float_from_bits((uint32_t)mdl_get_u16(p) | (uint32_t)mdl_get_u16(p + 2) << 16);
}

static void put_f32(uint8_t *p, float f)
{
    mdl_put_u16(p, (uint16_t)cor_float_bits(f));
    mdl_put_u16(p + 2, (uint16_t)(cor_float_bits(f) >> 16));
}

void mdl_dequant_row(enum mdl_type type, const void *src, float *dst, uint64_t n)
{
    const struct mdl_type_info *info = mdl_type_find((uint32_t)type);
    const struct mdl_block_code *code = code_of(type);
    const uint8_t *p = src;

    assert(info && n % info->block_elems == 0);
    for (uint64_t i = 0; i < n; i += info->block_elems, p += info->block_bytes)
        if (code)
            code->read(p, dst + i);
        else
            dst[i] = type == MDL_F32   ? get_f32(p)
                     : type == MDL_F16 ? mdl_half_to_float(mdl_get_u16(p))
                                       : mdl_bf16_to_float(mdl_get_u16(p));
}

static bool all_finite(const float *src, uint64_t n)
{
    uint32_t bad = 0;

    for (uint64_t i = 0; i < n; i++)
        bad |= (cor_float_bits(src[i]) & 0x7f800000u) == 0x7f800000u;
    return !bad;
}

/* One number of a format without blocks. False: not finite there. */
static bool put_number(enum mdl_type type, float v, uint8_t *p)
{
    uint16_t h = type == MDL_F16 ? mdl_float_to_half(v) : mdl_float_to_bf16(v);

    if (type == MDL_F32) {
        put_f32(p, v);
        return true;
    }
    mdl_put_u16(p, h);
    return type == MDL_F16 ? (h & 0x7c00) != 0x7c00 : (h & 0x7f80) != 0x7f80;
}

bool mdl_quant_row_weighted(enum mdl_type type, const float *src, const float *weights, void *dst, uint64_t n)
{
    const struct mdl_type_info *info = mdl_type_find((uint32_t)type);
    const struct mdl_block_code *code = code_of(type);
    uint8_t *p = dst;
    bool ok = all_finite(src, n);

    assert(info && n % info->block_elems == 0);
    for (uint64_t i = 0; (ok || type == MDL_F32) && i < n; i += info->block_elems, p += info->block_bytes)
        if (!(code ? code->write(src + i, weights ? weights + i : NULL, p) : put_number(type, src[i], p)))
            ok = false;
    return ok;
}

bool mdl_quant_row(enum mdl_type type, const float *src, void *dst, uint64_t n)
{
    return mdl_quant_row_weighted(type, src, NULL, dst, n);
}
