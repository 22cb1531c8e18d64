#include "model/synth_blocks.h"

#include <math.h>
#include <string.h>

#include "core/bits.h"
#include "core/rand.h"
#include "model/blocks.h"

enum { SCALES = 256 };

/* What a block is made of: a half d, or d and m behind it, and else random bits. */
struct kind {
    enum mdl_type type;
    uint8_t scale_at; /* of d in the block: at its start or its end */
    /* Of formats with a minimum: where the integers' middle lies, so that m moves it to 0. 0: none; half of
     * the scales are negative then, as the integers' mean of -1/2 must add up to nothing. */
    double centre;
    double square; /* mean square of the values where d is 1 */
    void (*tie)(uint8_t *block);
};

/* Minima like the scales, and both in the upper half of their range: every part then has mean 0. */
static void tie_q2_k(uint8_t *p)
{
    for (int i = 0; i < 16; i++)
        p[i] = (uint8_t)(((p[i] & 15) | 8) * 17);
}

static void tie_q4_k(uint8_t *p)
{
    for (int i = 0; i < 4; i++) {
        p[4 + i] |= 0xa0; /* the top bits of scales i and i + 4 */
        p[8 + i] = p[4 + i];
        p[12 + i] = (uint8_t)((p[12 + i] & 15) * 17);
    }
}

/* Mean squares: of whole numbers from -n to n - 1 (2 n^2 + 1) / 6, of n equally spaced ones around their
 * middle (n^2 - 1) / 12; of scales that tie makes 8 .. 15 137.5, 32 .. 63 2341.5. */
static const struct kind kinds[] = {
    {MDL_Q4_0, 0, 0, 21.5, NULL},
    {MDL_Q4_1, 0, 7.5, 21.25, NULL},
    {MDL_Q5_0, 0, 0, 85.5, NULL},
    {MDL_Q5_1, 0, 15.5, 85.25, NULL},
    {MDL_Q8_0, 0, 0, 5461.5, NULL},
    {MDL_Q2_K, 80, 1.5, 137.5 * 1.25, tie_q2_k},
    {MDL_Q3_K, 108, 0, 341.5 * 5.5, NULL},
    {MDL_Q4_K, 0, 7.5, 2341.5 * 21.25, tie_q4_k},
    {MDL_Q5_K, 0, 15.5, 2341.5 * 85.25, tie_q4_k},
    {MDL_Q6_K, 208, 0, 5461.5 * 341.5, NULL},
    {MDL_IQ4_NL, 0, 0, 4548, NULL}, /* of the format's table */
};

static const struct kind *find(enum mdl_type type)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (kinds[i].type == type)
            return &kinds[i];
    return NULL;
}

bool mdl_synth_has_blocks(enum mdl_type type)
{
    return type == MDL_MXFP4 || find(type);
}

static void put_random(uint8_t *p, unsigned n, uint64_t *state)
{
    uint64_t v;

    for (; n >= 8; n -= 8, p += 8) {
        v = cor_rand(state);
        for (unsigned i = 0; i < 8; i++)
            p[i] = (uint8_t)(v >> 8 * i);
    }
    v = n ? cor_rand(state) : 0;
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

/* Scales vary by a quarter to either side. */
static void halves(uint8_t dst[SCALES][4], const struct kind *k, double rms)
{
    const double unit = sqrt(k->square);
    const bool before = k->type == MDL_Q4_1 || k->type == MDL_Q5_1; /* m is added, not taken away */

    for (int i = 0; i < SCALES; i++) {
        const uint16_t d = mdl_float_to_half((float)(rms / unit * (0.75 + (double)(i / 2) / 254)));
        const double m = k->centre * (double)mdl_half_to_float(d);

        mdl_put_u16(dst[i], (uint16_t)(d | (k->centre > 0 ? 0 : (i & 1) << 15)));
        mdl_put_u16(dst[i] + 2, mdl_float_to_half((float)(before ? -m : m)));
    }
}

/* A byte e, then 32 values of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, mean square 68.5 / 8, times
 * 2^(e - 127): of the two powers around rms the larger so often that the mean is met. */
static void fill_mxfp4(uint8_t *p, uint64_t n, double rms, uint64_t *state)
{
    const double square = rms * rms * 8 / 68.5;
    double power = 1; /* 4^(e - 127) */
    unsigned often;
    uint8_t e = 127;

    for (; power * 4 <= square && e < 253; e++)
        power *= 4;
    for (; power > square && e > 1; e--)
        power /= 4;
    often = (unsigned)((square / power - 1) / 3 * SCALES + 0.5);
    for (uint64_t b = 0; b < n; b++, p += 17) {
        p[0] = (uint8_t)(e + (cor_rand(state) >> 56 < often));
        put_random(p + 1, 16, state);
    }
}

void mdl_synth_blocks(uint8_t *p, uint64_t n, enum mdl_type type, double rms, uint64_t *state)
{
    const struct kind *k = find(type);
    uint8_t scales[SCALES][4];
    unsigned bytes, held, random_at;

    if (!k) {
        fill_mxfp4(p, n, rms, state);
        return;
    }
    halves(scales, k, rms);
    bytes = mdl_type_find((uint32_t)type)->block_bytes;
    held = k->centre > 0 ? 4 : 2;
    random_at = k->scale_at ? 0 : held;
    for (uint64_t b = 0; b < n; b++, p += bytes) {
        memcpy(p + k->scale_at, scales[cor_rand(state) >> 56], held);
        put_random(p + random_at, bytes - held, state);
        if (k->tie)
            k->tie(p);
    }
}
