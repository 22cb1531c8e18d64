#include "experts/sum.h"

#include <math.h>
#include <string.h>

#define MANTISSA_BITS 53

/* x >= 0, below 2^64, as a multiple of 2^-64. */
static struct xp_sum from_double(double x)
{
    struct xp_sum r = {0, 0};
    int exponent, shift;
    uint64_t m;

    if (!(x > 0))
        return r;
    m = (uint64_t)ldexp(frexp(x, &exponent), MANTISSA_BITS); /* x = m * 2^(exponent - 53) */
    shift = exponent - MANTISSA_BITS + 64;
    if (shift >= 64) {
        r.hi = m << (shift - 64);
    } else if (shift > 0) {
        r.hi = m >> (64 - shift);
        r.lo = m << shift;
    } else if (shift == 0) {
        r.lo = m;
    } else if (shift >= -(MANTISSA_BITS + 1)) {
        uint64_t half = UINT64_C(1) << (-shift - 1), rest = m & (2 * half - 1);

        r.lo = m >> -shift;
        r.lo += rest > half || (rest == half && (r.lo & 1));
    }
    return r;
}

bool xp_sum_merge(struct xp_sum *s, const struct xp_sum *other)
{
    uint64_t lo = s->lo + other->lo, carry = lo < s->lo, hi = s->hi + other->hi;

    if (hi < s->hi || (carry && hi == UINT64_MAX))
        return false;
    s->hi = hi + carry;
    s->lo = lo;
    return true;
}

bool xp_sum_add(struct xp_sum *s, double x)
{
    struct xp_sum term;

    if (!(x >= 0 && x < 18446744073709551616.0)) /* NaN too */
        return false;
    term = from_double(x);
    return xp_sum_merge(s, &term);
}

double xp_sum_value(const struct xp_sum *s)
{
    uint64_t top = s->hi, rest = s->lo;
    int shift = 0;

    if (!top)
        return ldexp((double)rest, -64);
    while (!(top >> 63)) {
        top = top << 1 | rest >> 63;
        rest <<= 1;
        shift++;
    }
    top |= rest != 0; /* far below the last bit that a double keeps: it only breaks ties */
    return ldexp((double)top, -shift);
}

int xp_sum_compare(const struct xp_sum *a, const struct xp_sum *b)
{
    if (a->hi != b->hi)
        return a->hi < b->hi ? -1 : 1;
    return a->lo == b->lo ? 0 : a->lo < b->lo ? -1 : 1;
}

const char *xp_sum_hex(char hex[XP_SUM_HEX], const struct xp_sum *s)
{
    for (int i = 0; i < 16; i++) {
        hex[i] = "0123456789abcdef"[s->hi >> (60 - 4 * i) & 15];
        hex[16 + i] = "0123456789abcdef"[s->lo >> (60 - 4 * i) & 15];
    }
    hex[32] = '\0';
    return hex;
}

bool xp_sum_parse(struct xp_sum *s, const char *hex)
{
    static const char digits[] = "0123456789abcdef";
    struct xp_sum r = {0, 0};

    if (strlen(hex) != 32)
        return false;
    for (int i = 0; i < 32; i++) {
        const char *at = strchr(digits, hex[i]);
        uint64_t *half = i < 16 ? &r.hi : &r.lo;

        if (!at)
            return false;
        *half = *half << 4 | (uint64_t)(at - digits);
    }
    *s = r;
    return true;
}
