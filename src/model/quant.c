#include "model/quant.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "core/bits.h"

#define BLOCK 32 /* elements per block of Q8_0 and Q4_0 */

static const struct mdl_type_info types[] = {
#define MDL_X(id, value, name, elems, bytes) {id, name, elems, bytes},
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

static bool same_name(const char *a, const char *b)
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
        if (same_name(types[i].name, name))
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

/* ---- bytes of a file, little-endian, any alignment
 * ----------------------------------------------------------- */

static uint16_t get_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void put_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static float get_f32(const uint8_t *p)
{
    return cor_float_from_bits((uint32_t)get_u16(p) | (uint32_t)get_u16(p + 2) << 16);
}

static void put_f32(uint8_t *p, float f)
{
    put_u16(p, (uint16_t)cor_float_bits(f));
    put_u16(p + 2, (uint16_t)(cor_float_bits(f) >> 16));
}

/* ---- reading
 * ----------------------------------------------------------------------------------------------- */

/* A Q8_0 block: half d, then 32 signed bytes q; element i is d * q[i]. */
static void dequant_q8_0(const uint8_t *p, float *dst)
{
    float d = mdl_half_to_float(get_u16(p));

    for (int i = 0; i < BLOCK; i++)
        dst[i] = d * (float)(int8_t)p[2 + i];
}

/* A Q4_0 block: half d, then 16 bytes; the low nibble of byte i is element i, the high one element i + 16,
 * and a nibble q means d * (q - 8). */
static void dequant_q4_0(const uint8_t *p, float *dst)
{
    float d = mdl_half_to_float(get_u16(p));

    for (int i = 0; i < BLOCK / 2; i++) {
        dst[i] = d * (float)((p[2 + i] & 15) - 8);
        dst[i + BLOCK / 2] = d * (float)((p[2 + i] >> 4) - 8);
    }
}

void mdl_dequant_row(enum mdl_type type, const void *src, float *dst, uint64_t n)
{
    const uint8_t *p = src;

    switch (type) {
    case MDL_F32:
        for (uint64_t i = 0; i < n; i++)
            dst[i] = get_f32(p + 4 * i);
        return;
    case MDL_F16:
        for (uint64_t i = 0; i < n; i++)
            dst[i] = mdl_half_to_float(get_u16(p + 2 * i));
        return;
    case MDL_BF16:
        for (uint64_t i = 0; i < n; i++)
            dst[i] = mdl_bf16_to_float(get_u16(p + 2 * i));
        return;
    case MDL_Q8_0:
        assert(n % BLOCK == 0);
        for (uint64_t b = 0; b < n / BLOCK; b++)
            dequant_q8_0(p + 34 * b, dst + BLOCK * b);
        return;
    case MDL_Q4_0:
        assert(n % BLOCK == 0);
        for (uint64_t b = 0; b < n / BLOCK; b++)
            dequant_q4_0(p + 18 * b, dst + BLOCK * b);
        return;
    }
    assert(!"unknown type");
}

/* ---- writing
 * ----------------------------------------------------------------------------------------------- */

/* Nearest integer of v, halves upwards, clamped. A cast after an offset, because calls of roundf do not
 * vectorise. */
static int nearest_q(float v, int low, int high)
{
    float x = v < (float)low ? (float)low : v > (float)high ? (float)high : v;

    return (int)(x - (float)low + 0.5f) + low;
}

/* d = amax / 127 as the format's writers do it, but rounded up to the next half where the nearest one is so
 * much smaller (possible among subnormals only) that the largest value would be clipped. */
static bool quant_q8_0(const float *src, uint8_t *p)
{
    float amax = 0, d;
    uint16_t h;

    for (int i = 0; i < BLOCK; i++)
        amax = fabsf(src[i]) > amax ? fabsf(src[i]) : amax;
    h = mdl_float_to_half(amax / 127);
    if (amax > mdl_half_to_float(h) * 127.5f)
        h++;
    if (h >= 0x7c00) /* more than a half can scale */
        return false;
    d = mdl_half_to_float(h);
    put_u16(p, h);
    for (int i = 0; i < BLOCK; i++)
        p[2 + i] = (uint8_t)(int8_t)(d > 0 ? nearest_q(src[i] / d, -127, 127) : 0);
    return true;
}

/* One candidate scale for a Q4_0 block: the nearest q of every element and the squared error that leaves. */
struct q4_fit {
    uint16_t h;
    float q[BLOCK]; /* -8 .. 7, whole numbers */
    double error;
};

static void q4_try(struct q4_fit *fit, const float *src, uint16_t h)
{
    float d = mdl_half_to_float(h), part[8] = {0};

    fit->h = h;
    for (int i = 0; i < BLOCK; i++) {
        float v = src[i] / d, rest;

        v = v < -8.0f ? -8.0f : v > 7.0f ? 7.0f : v;
        fit->q[i] = (float)(int)(v + 8.5f) - 8.0f;
        rest = (src[i] - d * fit->q[i]) / d; /* in units of d, so that squares of subnormals do not vanish */
        part[i % 8] += rest * rest;
    }
    fit->error = 0;
    for (int i = 0; i < 8; i++)
        fit->error += part[i];
    fit->error *= (double)d * d;
}

/* Squared error of a whole row is what counts, so beside the usual d = (value of largest magnitude) / -8 the
 * block tries scales around it (the extreme value is clipped or the other end of the range serves it), and
 * then the least-squares scale of the best ones' integers. The usual scale is always among the candidates. */
static bool quant_q4_0(const float *src, uint8_t *p)
{
    static const float divisors[] = {-8.0f, -8.6f, -8.3f, -7.7f, -7.4f, -7.1f, -6.7f, 7.0f, 7.3f, -9.2f};
    struct q4_fit best, fit;
    float top = 0;

    for (int i = 0; i < BLOCK; i++)
        top = fabsf(src[i]) > fabsf(top) ? src[i] : top;
    if ((mdl_float_to_half(top / -8) & 0x7fff) >= 0x7c00)
        return false;
    memset(&best, 0, sizeof(best));
    best.error = HUGE_VAL;
    for (size_t c = 0; c < sizeof(divisors) / sizeof(divisors[0]); c++) {
        uint16_t h = mdl_float_to_half(top / divisors[c]);

        if ((h & 0x7fff) == 0 && top != 0)
            h |= 1; /* the smallest subnormal of that sign: better than losing the block */
        if ((h & 0x7fff) == 0 || (h & 0x7fff) >= 0x7c00)
            continue;
        q4_try(&fit, src, h);
        if (fit.error < best.error)
            best = fit;
    }
    for (int round = 0; round < 2 && best.error > 0 && best.error < HUGE_VAL; round++) {
        double xq = 0, qq = 0;
        uint16_t h;

        for (int i = 0; i < BLOCK; i++) {
            xq += (double)src[i] * best.q[i];
            qq += (double)best.q[i] * best.q[i];
        }
        h = qq > 0 ? mdl_float_to_half((float)(xq / qq)) : 0;
        if ((h & 0x7fff) == 0 || (h & 0x7fff) >= 0x7c00 || h == best.h)
            break;
        q4_try(&fit, src, h);
        if (fit.error >= best.error)
            break;
        best = fit;
    }
    put_u16(p, best.h);
    for (int i = 0; i < BLOCK / 2; i++)
        p[2 + i] = (uint8_t)((int)(best.q[i] + 8.0f) | (int)(best.q[i + BLOCK / 2] + 8.0f) << 4);
    return true;
}

static bool all_finite(const float *src, uint64_t n)
{
    uint32_t bad = 0;

    for (uint64_t i = 0; i < n; i++)
        bad |= (cor_float_bits(src[i]) & 0x7f800000u) == 0x7f800000u;
    return !bad;
}

bool mdl_quant_row(enum mdl_type type, const float *src, void *dst, uint64_t n)
{
    uint8_t *p = dst;
    bool ok = all_finite(src, n);

    switch (type) {
    case MDL_F32:
        for (uint64_t i = 0; i < n; i++)
            put_f32(p + 4 * i, src[i]);
        return ok;
    case MDL_F16:
        for (uint64_t i = 0; ok && i < n; i++) {
            uint16_t h = mdl_float_to_half(src[i]);

            ok = (h & 0x7c00) != 0x7c00;
            put_u16(p + 2 * i, h);
        }
        return ok;
    case MDL_BF16:
        for (uint64_t i = 0; ok && i < n; i++) {
            uint16_t h = mdl_float_to_bf16(src[i]);

            ok = (h & 0x7f80) != 0x7f80;
            put_u16(p + 2 * i, h);
        }
        return ok;
    case MDL_Q8_0:
        assert(n % BLOCK == 0);
        for (uint64_t b = 0; ok && b < n / BLOCK; b++)
            ok = quant_q8_0(src + BLOCK * b, p + 34 * b);
        return ok;
    case MDL_Q4_0:
        assert(n % BLOCK == 0);
        for (uint64_t b = 0; ok && b < n / BLOCK; b++)
            ok = quant_q4_0(src + BLOCK * b, p + 18 * b);
        return ok;
    }
    assert(!"unknown type");
    return false;
}
