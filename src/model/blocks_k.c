/* Blocks of 256: parts of 16 or 32 elements with small whole scales, which share one or two halves. */
#include <math.h>
#include <string.h>

#include "model/blocks.h"
#include "model/fit.h"

#define BLOCK     256 /* elements */
#define PARTS_MAX 16

/* A block on its way into a file: element i of part j is d * scale[j] * q[i] + m * low[j]. */
struct parts {
    int n, size; /* parts, elements of each */
    float d, m;
    int scale[PARTS_MAX], low[PARTS_MAX];
    int q[BLOCK];
};

static const float *part_of(const float *v, int j, int size)
{
    return v ? v + (size_t)j * (size_t)size : NULL;
}

/* ---- a scale per part
 * ----------------------------------------------------------------------------------------------- */

/* Scales are whole numbers of [-limit, limit - 1]; the one of largest magnitude becomes -limit. */
static bool fit_scales(struct parts *b, const float *src, const float *weights, int low, int high, int limit,
                       uint8_t *half)
{
    float d[PARTS_MAX], top = 0;

    for (int j = 0; j < b->n; j++) {
        d[j] = mdl_fit_scale(part_of(src, j, b->size), part_of(weights, j, b->size), b->size, low, high);
        top = fabsf(d[j]) > fabsf(top) ? d[j] : top;
    }
    b->d = top / (float)-limit;
    if (!mdl_put_half(half, &b->d))
        return false;
    for (int j = 0; j < b->n; j++) {
        const float *x = part_of(src, j, b->size), *w = part_of(weights, j, b->size);
        const int nearest = mdl_fit_nearest(d[j], b->d, 0, -limit, limit - 1);
        double least = HUGE_VAL;

        b->scale[j] = 0;
        for (int s = nearest - 1; s <= nearest + 1; s++) {
            double error;

            if (s < -limit || s >= limit)
                continue;
            error = mdl_fit_error(x, w, b->size, b->d * (float)s, 0, low, high);
            if (error < least) {
                least = error;
                b->scale[j] = s;
            }
        }
        for (int i = 0; i < b->size; i++)
            b->q[j * b->size + i] = mdl_fit_nearest(x[i], b->d * (float)b->scale[j], 0, low, high);
    }
    return true;
}

/* ---- a scale and a minimum per part
 * -------------------------------------------------------------------------------- */

/* The pair of whole numbers of [0, limit] near (s, l) that leaves the least error. */
static void nearest_pair(struct parts *b, int j, const float *x, const float *w, int high, int limit)
{
    const int scale = b->scale[j], low = b->low[j];
    double least = HUGE_VAL;

    for (int s = scale > 0 ? scale - 1 : 0; s <= scale + 1 && s <= limit; s++)
        for (int l = low > 0 ? low - 1 : 0; l <= low + 1 && l <= limit; l++) {
            double error =
                mdl_fit_error(x, w, b->size, b->d * (float)s, b->m * (float)l, 0, s ? high : 0);

            if (error < least) {
                least = error;
                b->scale[j] = s;
                b->low[j] = l;
            }
        }
}

/* Scales and minima are whole numbers of [0, limit], minima of a step below zero; both halves are written. */
static bool fit_ranges(struct parts *b, const float *src, const float *weights, int high, int limit,
                       uint8_t *half_d, uint8_t *half_m)
{
    float d[PARTS_MAX], m[PARTS_MAX], top = 0, deep = 0;

    for (int j = 0; j < b->n; j++) {
        mdl_fit_range(part_of(src, j, b->size), part_of(weights, j, b->size), b->size, high, true, &d[j],
                      &m[j]);
        top = d[j] > top ? d[j] : top;
        deep = m[j] < deep ? m[j] : deep;
    }
    b->d = top / (float)limit;
    b->m = -deep / (float)limit;
    if (!mdl_put_half(half_d, &b->d) || !mdl_put_half(half_m, &b->m))
        return false;
    b->m = -b->m;
    for (int j = 0; j < b->n; j++) {
        const float *x = part_of(src, j, b->size), *w = part_of(weights, j, b->size);

        b->scale[j] = mdl_fit_nearest(d[j], b->d, 0, 0, limit);
        b->low[j] = mdl_fit_nearest(m[j], b->m, 0, 0, limit);
        nearest_pair(b, j, x, w, high, limit);
        for (int i = 0; i < b->size; i++)
            b->q[j * b->size + i] =
                mdl_fit_nearest(x[i], b->d * (float)b->scale[j], b->m * (float)b->low[j], 0, high);
    }
    return true;
}

/* ---- Q2_K
 * ------------------------------------------------------------------------------------------------------ */

/* Elements 128 n + 32 s + i, i < 32, are bits 2 s and 2 s + 1 of byte 32 n + i. */
static int two_bits(const uint8_t *qs, int i)
{
    return qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

static void put_two_bits(uint8_t *qs, const int *q)
{
    memset(qs, 0, 64);
    for (int i = 0; i < BLOCK; i++)
        qs[i / 128 * 32 + i % 32] |= (uint8_t)((q[i] & 3) << (i / 32 % 4 * 2));
}

/* 16 bytes of a scale (low four bits) and a minimum, 64 of q, half d, half m: d scale q - m minimum. */
static void read_q2_k(const uint8_t *p, float *dst)
{
    const float d = mdl_get_half(p + 80), m = mdl_get_half(p + 82);

    for (int i = 0; i < BLOCK; i++) {
        const int both = p[i / 16];

        dst[i] = d * (float)(both & 15) * (float)two_bits(p + 16, i) - m * (float)(both >> 4);
    }
}

static bool write_q2_k(const float *src, const float *weights, uint8_t *p)
{
    struct parts b = {.n = 16, .size = 16};

    if (!fit_ranges(&b, src, weights, 3, 15, p + 80, p + 82))
        return false;
    for (int j = 0; j < b.n; j++)
        p[j] = (uint8_t)(b.scale[j] | b.low[j] << 4);
    put_two_bits(p + 16, b.q);
    return true;
}

const struct mdl_block_code mdl_code_q2_k = {read_q2_k, write_q2_k};

/* ---- Q3_K
 * ------------------------------------------------------------------------------------------------------ */

/* Six bits of scale j, plus 32: four in the nibbles of bytes 0 to 7 (0 to 7 low, 8 to 15 high), two in bytes
 * 8 to 11. */
static int scale_q3(const uint8_t *p, int j)
{
    const int low = j < 8 ? p[j] & 15 : p[j - 8] >> 4;

    return (low | (p[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
}

static void put_scales_q3(uint8_t *p, const int *scale)
{
    memset(p, 0, 12);
    for (int j = 0; j < 16; j++) {
        const int s = scale[j] + 32;

        p[j % 8] |= (uint8_t)((s & 15) << (j / 8 * 4));
        p[8 + j % 4] |= (uint8_t)((s >> 4) << (j / 4 * 2));
    }
}

/* 32 bytes of third bits (element i: bit i / 32 of byte i % 32; clear: 4 less), 64 of the others, 12 of
 * scales, half d. */
static void read_q3_k(const uint8_t *p, float *dst)
{
    const float d = mdl_get_half(p + 108);

    for (int i = 0; i < BLOCK; i++) {
        const int q = two_bits(p + 32, i) - (p[i % 32] >> (i / 32) & 1 ? 0 : 4);

        dst[i] = d * (float)scale_q3(p + 96, i / 16) * (float)q;
    }
}

static bool write_q3_k(const float *src, const float *weights, uint8_t *p)
{
    struct parts b = {.n = 16, .size = 16};

    if (!fit_scales(&b, src, weights, -4, 3, 32, p + 108))
        return false;
    put_scales_q3(p + 96, b.scale);
    memset(p, 0, 32);
    for (int i = 0; i < BLOCK; i++) {
        b.q[i] += 4;
        p[i % 32] |= (uint8_t)((b.q[i] >> 2) << (i / 32));
    }
    put_two_bits(p + 32, b.q);
    return true;
}

const struct mdl_block_code mdl_code_q3_k = {read_q3_k, write_q3_k};

/* ---- Q4_K and Q5_K
 * ----------------------------------------------------------------------------------------------- */

/* Six bits each of eight scales and eight minima: 0 to 3 in bytes 0 to 3 and 4 to 7; of 4 to 7 the low four
 * bits in the nibbles of bytes 8 to 11, the upper two above those of 0 to 3. */
static int scale_q4(const uint8_t *p, int j)
{
    return j < 4 ? p[j] & 63 : (p[j + 4] & 15) | p[j - 4] >> 6 << 4;
}

static int low_q4(const uint8_t *p, int j)
{
    return j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | p[j] >> 6 << 4;
}

static void put_scales_q4(uint8_t *p, const int *scale, const int *low)
{
    for (int j = 0; j < 4; j++) {
        p[j] = (uint8_t)(scale[j] | scale[j + 4] >> 4 << 6);
        p[j + 4] = (uint8_t)(low[j] | low[j + 4] >> 4 << 6);
        p[j + 8] = (uint8_t)((scale[j + 4] & 15) | (low[j + 4] & 15) << 4);
    }
}

/* Elements 64 n + i, i < 32, are the low nibbles of bytes 32 n + i, those behind them the high ones. */
static int four_bits(const uint8_t *qs, int i)
{
    return qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}

static void put_four_bits(uint8_t *qs, const int *q)
{
    memset(qs, 0, 128);
    for (int i = 0; i < BLOCK; i++)
        qs[i / 64 * 32 + i % 32] |= (uint8_t)((q[i] & 15) << (i / 32 % 2 * 4));
}

/* Half d, half m, 12 bytes of scales, 128 of q: d scale q - m minimum. */
static void read_q4_k(const uint8_t *p, float *dst)
{
    const float d = mdl_get_half(p), m = mdl_get_half(p + 2);

    for (int i = 0; i < BLOCK; i++)
        dst[i] = d * (float)scale_q4(p + 4, i / 32) * (float)four_bits(p + 16, i) -
                 m * (float)low_q4(p + 4, i / 32);
}

static bool write_q4_k(const float *src, const float *weights, uint8_t *p)
{
    struct parts b = {.n = 8, .size = 32};

    if (!fit_ranges(&b, src, weights, 15, 63, p, p + 2))
        return false;
    put_scales_q4(p + 4, b.scale, b.low);
    put_four_bits(p + 16, b.q);
    return true;
}

const struct mdl_block_code mdl_code_q4_k = {read_q4_k, write_q4_k};

/* The same with 32 bytes of fifth bits (element i: bit i / 32 of byte i % 32) before q. */
static void read_q5_k(const uint8_t *p, float *dst)
{
    const float d = mdl_get_half(p), m = mdl_get_half(p + 2);

    for (int i = 0; i < BLOCK; i++) {
        const int q = four_bits(p + 48, i) | (p[16 + i % 32] >> (i / 32) & 1) << 4;

        dst[i] = d * (float)scale_q4(p + 4, i / 32) * (float)q - m * (float)low_q4(p + 4, i / 32);
    }
}

static bool write_q5_k(const float *src, const float *weights, uint8_t *p)
{
    struct parts b = {.n = 8, .size = 32};

    if (!fit_ranges(&b, src, weights, 31, 63, p, p + 2))
        return false;
    put_scales_q4(p + 4, b.scale, b.low);
    memset(p + 16, 0, 32);
    for (int i = 0; i < BLOCK; i++)
        p[16 + i % 32] |= (uint8_t)((b.q[i] >> 4) << (i / 32));
    put_four_bits(p + 48, b.q);
    return true;
}

const struct mdl_block_code mdl_code_q5_k = {read_q5_k, write_q5_k};

/* ---- Q6_K
 * ------------------------------------------------------------------------------------------------------ */

/* Of element 128 n + i the low four bits are the low (i < 64) or high nibble of byte 64 n + i % 64, the
 * others bits 2 (i / 32) and up of byte 32 n + i % 32 of the 64 behind. Then 16 signed scales, half d:
 * d scale (q - 32). */
static void read_q6_k(const uint8_t *p, float *dst)
{
    const float d = mdl_get_half(p + 208);

    for (int i = 0; i < BLOCK; i++) {
        const int n = i / 128, at = i % 128;
        const int q = (p[64 * n + at % 64] >> (at / 64 * 4) & 15) |
                      (p[128 + 32 * n + at % 32] >> (at / 32 * 2) & 3) << 4;

        dst[i] = d * (float)(int8_t)p[192 + i / 16] * (float)(q - 32);
    }
}

static bool write_q6_k(const float *src, const float *weights, uint8_t *p)
{
    struct parts b = {.n = 16, .size = 16};

    memset(p, 0, 192);
    if (!fit_scales(&b, src, weights, -32, 31, 128, p + 208))
        return false;
    for (int j = 0; j < b.n; j++)
        p[192 + j] = (uint8_t)(int8_t)b.scale[j];
    for (int i = 0; i < BLOCK; i++) {
        const int n = i / 128, at = i % 128, q = b.q[i] + 32;

        p[64 * n + at % 64] |= (uint8_t)((q & 15) << (at / 64 * 4));
        p[128 + 32 * n + at % 32] |= (uint8_t)((q >> 4) << (at / 32 * 2));
    }
    return true;
}

const struct mdl_block_code mdl_code_q6_k = {read_q6_k, write_q6_k};
