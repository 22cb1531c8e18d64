#include "model/blocks.h"

#include <math.h>
#include <string.h>

#include "model/fit.h"
#include "model/quant.h"

#define BLOCK 32 /* elements */

float mdl_get_half(const uint8_t *p)
{
    return mdl_half_to_float(mdl_get_u16(p));
}

bool mdl_put_half(uint8_t *p, float *v)
{
    uint16_t h = mdl_float_to_half(*v);

    mdl_put_u16(p, h);
    *v = mdl_half_to_float(h);
    return (h & 0x7fff) < 0x7c00;
}

/* ---- Q8_0
 * ------------------------------------------------------------------------------------------------------ */

/* A Q8_0 block: half d, then 32 signed bytes q; element i is d * q[i]. */
static void read_q8_0(const uint8_t *p, float *dst)
{
    float d = mdl_half_to_float(mdl_get_u16(p));

    for (int i = 0; i < BLOCK; i++)
        dst[i] = d * (float)(int8_t)p[2 + i];
}

/* d = amax / 127 as the format's writers do it, but rounded up to the next half where the nearest one is so
 * much smaller (possible among subnormals only) that the largest value would be clipped. */
static bool write_q8_0(const float *src, const float *weights, uint8_t *p)
{
    float amax = 0, d;
    uint16_t h;

    (void)weights; /* the range leaves no choice worth making */
    for (int i = 0; i < BLOCK; i++)
        amax = fabsf(src[i]) > amax ? fabsf(src[i]) : amax;
    h = mdl_float_to_half(amax / 127);
    if (amax > mdl_half_to_float(h) * 127.5f)
        h++;
    if (h >= 0x7c00) /* more than a half can scale */
        return false;
    d = mdl_half_to_float(h);
    mdl_put_u16(p, h);
    for (int i = 0; i < BLOCK; i++)
        p[2 + i] = (uint8_t)(int8_t)(d > 0 ? mdl_fit_nearest(src[i], d, 0, -127, 127) : 0);
    return true;
}

const struct mdl_block_code mdl_code_q8_0 = {read_q8_0, write_q8_0};

/* ---- Q4_0
 * ------------------------------------------------------------------------------------------------------ */

/* A Q4_0 block: half d, then 16 bytes; the low nibble of byte i is element i, the high one element i + 16,
 * and a nibble q means d * (q - 8). */
static void read_q4_0(const uint8_t *p, float *dst)
{
    float d = mdl_half_to_float(mdl_get_u16(p));

    for (int i = 0; i < BLOCK / 2; i++) {
        dst[i] = d * (float)((p[2 + i] & 15) - 8);
        dst[i + BLOCK / 2] = d * (float)((p[2 + i] >> 4) - 8);
    }
}

/* One candidate scale for a Q4_0 block: the nearest q of every element and the squared error that leaves. */
struct q4_fit {
    uint16_t h;
    float q[BLOCK]; /* -8 .. 7, whole numbers */
    double error;
};

static void q4_try(struct q4_fit *fit, const float *src, const float *w, uint16_t h)
{
    float d = mdl_half_to_float(h), part[8] = {0};

    fit->h = h;
    for (int i = 0; i < BLOCK; i++) {
        float v = src[i] / d, rest;

        v = v < -8.0f ? -8.0f : v > 7.0f ? 7.0f : v;
        fit->q[i] = (float)(int)(v + 8.5f) - 8.0f;
        rest = (src[i] - d * fit->q[i]) / d; /* in units of d, so that squares of subnormals do not vanish */
        part[i % 8] += w ? w[i] * rest * rest : rest * rest;
    }
    fit->error = 0;
    for (int i = 0; i < 8; i++)
        fit->error += part[i];
    fit->error *= (double)d * d;
}

/* Squared error of a whole row is what counts, so beside the usual d = (value of largest magnitude) / -8 the
 * block tries scales around it (the extreme value is clipped or the other end of the range serves it), and
 * then the least-squares scale of the best ones' integers. The usual scale is always among the candidates. */
static bool write_q4_0(const float *src, const float *weights, uint8_t *p)
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
        q4_try(&fit, src, weights, h);
        if (fit.error < best.error)
            best = fit;
    }
    for (int round = 0; round < 2 && best.error > 0 && best.error < HUGE_VAL; round++) {
        double xq = 0, qq = 0;
        uint16_t h;

        for (int i = 0; i < BLOCK; i++) {
            const double w = weights ? weights[i] : 1;

            xq += w * src[i] * best.q[i];
            qq += w * best.q[i] * best.q[i];
        }
        h = qq > 0 ? mdl_float_to_half((float)(xq / qq)) : 0;
        if ((h & 0x7fff) == 0 || (h & 0x7fff) >= 0x7c00 || h == best.h)
            break;
        q4_try(&fit, src, weights, h);
        if (fit.error >= best.error)
            break;
        best = fit;
    }
    mdl_put_u16(p, best.h);
    for (int i = 0; i < BLOCK / 2; i++)
        p[2 + i] = (uint8_t)((int)(best.q[i] + 8.0f) | (int)(best.q[i + BLOCK / 2] + 8.0f) << 4);
    return true;
}

const struct mdl_block_code mdl_code_q4_0 = {read_q4_0, write_q4_0};

/* ---- four or five bits, and a scale or a range
 * ----------------------------------------------------------------- */

/* Low four bits as in Q4_0; the fifth of element i is bit i of a word. */
static uint32_t get_bits(const uint8_t *p)
{
    return (uint32_t)mdl_get_u16(p) | (uint32_t)mdl_get_u16(p + 2) << 16;
}

static void put_bits(uint8_t *p, uint32_t v)
{
    mdl_put_u16(p, (uint16_t)v);
    mdl_put_u16(p + 2, (uint16_t)(v >> 16));
}

static int nibble(const uint8_t *qs, int i)
{
    return i < BLOCK / 2 ? qs[i] & 15 : qs[i - BLOCK / 2] >> 4;
}

static void put_nibbles(uint8_t *qs, const int *q)
{
    for (int i = 0; i < BLOCK / 2; i++)
        qs[i] = (uint8_t)((q[i] & 15) | (q[i + BLOCK / 2] & 15) << 4);
}

static void put_fifths(uint8_t *p, const int *q)
{
    uint32_t bits = 0;

    for (int i = 0; i < BLOCK; i++)
        bits |= (uint32_t)(q[i] >> 4 & 1) << i;
    put_bits(p, bits);
}

/* Half d, half m, q: d q + m. */
static bool write_range(const float *src, const float *weights, uint8_t *p, int high, int *q)
{
    float d, m;

    mdl_fit_range(src, weights, BLOCK, high, false, &d, &m);
    if (!mdl_put_half(p, &d) || !mdl_put_half(p + 2, &m))
        return false;
    for (int i = 0; i < BLOCK; i++)
        q[i] = mdl_fit_nearest(src[i], d, m, 0, high);
    return true;
}

static void read_q4_1(const uint8_t *p, float *dst)
{
    const float d = mdl_get_half(p), m = mdl_get_half(p + 2);

    for (int i = 0; i < BLOCK; i++)
        dst[i] = d * (float)nibble(p + 4, i) + m;
}

static bool write_q4_1(const float *src, const float *weights, uint8_t *p)
{
    int q[BLOCK];

    if (!write_range(src, weights, p, 15, q))
        return false;
    put_nibbles(p + 4, q);
    return true;
}

const struct mdl_block_code mdl_code_q4_1 = {read_q4_1, write_q4_1};

/* Half d, the fifth bits, the others: d (q - 16). */
static void read_q5_0(const uint8_t *p, float *dst)
{
    const float d = mdl_get_half(p);
    const uint32_t fifth = get_bits(p + 2);

    for (int i = 0; i < BLOCK; i++)
        dst[i] = d * (float)((nibble(p + 6, i) | (int)(fifth >> i & 1) << 4) - 16);
}

static bool write_q5_0(const float *src, const float *weights, uint8_t *p)
{
    float d = mdl_fit_scale(src, weights, BLOCK, -16, 15);
    int q[BLOCK];

    if (!mdl_put_half(p, &d))
        return false;
    for (int i = 0; i < BLOCK; i++)
        q[i] = mdl_fit_nearest(src[i], d, 0, -16, 15) + 16;
    put_fifths(p + 2, q);
    put_nibbles(p + 6, q);
    return true;
}

const struct mdl_block_code mdl_code_q5_0 = {read_q5_0, write_q5_0};

/* Half d, half m, the fifth bits, the others: d q + m. */
static void read_q5_1(const uint8_t *p, float *dst)
{
    const float d = mdl_get_half(p), m = mdl_get_half(p + 2);
    const uint32_t fifth = get_bits(p + 4);

    for (int i = 0; i < BLOCK; i++)
        dst[i] = d * (float)(nibble(p + 8, i) | (int)(fifth >> i & 1) << 4) + m;
}

static bool write_q5_1(const float *src, const float *weights, uint8_t *p)
{
    int q[BLOCK];

    if (!write_range(src, weights, p, 31, q))
        return false;
    put_fifths(p + 4, q);
    put_nibbles(p + 8, q);
    return true;
}

const struct mdl_block_code mdl_code_q5_1 = {read_q5_1, write_q5_1};

/* ---- sixteen values
 * -------------------------------------------------------------------------------------------- */

/* Ascending. */
static const int8_t iq4_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
/* Four-bit floats with two bits of exponent and one of mantissa, doubled. */
static const int8_t fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static int nearest_of(const int8_t *values, float v)
{
    int best = 0;

    for (int i = 1; i < 16; i++)
        if (fabsf(v - values[i]) < fabsf(v - values[best]))
            best = i;
    return best;
}

/* The codes for d, the error, and the scale that least squares give for these codes. */
static double fit_values(const int8_t *values, const float *src, const float *weights, float d, int *q,
                         float *better)
{
    double error = 0, xv = 0, vv = 0;

    for (int i = 0; i < BLOCK; i++) {
        const double w = weights ? weights[i] : 1;
        double v, rest;

        q[i] = nearest_of(values, src[i] / d);
        v = values[q[i]];
        rest = src[i] - (double)d * v;
        error += w * rest * rest;
        xv += w * src[i] * v;
        vv += w * v * v;
    }
    *better = vv > 0 ? (float)(xv / vv) : 0;
    return error;
}

static void read_iq4_nl(const uint8_t *p, float *dst)
{
    const float d = mdl_get_half(p);

    for (int i = 0; i < BLOCK; i++)
        dst[i] = d * (float)iq4_nl[nibble(p + 2, i)];
}

static bool write_iq4_nl(const float *src, const float *weights, uint8_t *p)
{
    float top = 0, best = 0, better;
    double least = HUGE_VAL, error;
    int q[BLOCK] = {0};

    for (int i = 0; i < BLOCK; i++)
        top = fabsf(src[i]) > fabsf(top) ? src[i] : top;
    for (int t = -7; t <= 7 && isnormal(top); t++) {
        float d = top / (-127.0f + 3.0f * (float)t);

        error = fit_values(iq4_nl, src, weights, d, q, &better);
        if (error < least) {
            least = error;
            best = d;
        }
        if (better == 0)
            continue;
        error = fit_values(iq4_nl, src, weights, better, q, &d);
        if (error < least) {
            least = error;
            best = better;
        }
    }
    if (!mdl_put_half(p, &best))
        return false;
    for (int i = 0; i < BLOCK; i++)
        q[i] = nearest_of(iq4_nl, best != 0 ? src[i] / best : 0);
    put_nibbles(p + 2, q);
    return true;
}

const struct mdl_block_code mdl_code_iq4_nl = {read_iq4_nl, write_iq4_nl};

/* A byte e for the scale 2^(e - 128), of the doubled values. */
static void read_mxfp4(const uint8_t *p, float *dst)
{
    const float d = ldexpf(1, (int)p[0] - 128);

    for (int i = 0; i < BLOCK; i++)
        dst[i] = d * (float)fp4[nibble(p + 1, i)];
}

static bool write_mxfp4(const float *src, const float *weights, uint8_t *p)
{
    float top = 0, unused;
    double least = HUGE_VAL;
    int exponent, q[BLOCK];

    for (int i = 0; i < BLOCK; i++)
        top = fabsf(src[i]) > top ? fabsf(src[i]) : top;
    memset(p, 0, 1 + BLOCK / 2);
    if (top == 0)
        return true;
    (void)frexpf(top, &exponent); /* top: at least 2^(exponent - 1); 2^(e - 128) 8 is there */
    for (int e = exponent + 123; e <= exponent + 126; e++) {
        double error;

        if (e < 0 || e > 254)
            continue;
        error = fit_values(fp4, src, weights, ldexpf(1, e - 128), q, &unused);
        if (error < least) {
            least = error;
            p[0] = (uint8_t)e;
            put_nibbles(p + 1, q);
        }
    }
    return true;
}

const struct mdl_block_code mdl_code_mxfp4 = {read_mxfp4, write_mxfp4};
