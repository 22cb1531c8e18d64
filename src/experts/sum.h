/* Sums that are the same to the last bit in any order and grouping: 128-bit fixed point. Each term is rounded
 * once, to a multiple of 2^-64; adding is exact from there on. */
#ifndef XP_SUM_H
#define XP_SUM_H

#include <stdbool.h>
#include <stdint.h>

struct xp_sum { /* hi + lo / 2^64 */
    uint64_t hi, lo;
};

enum { XP_SUM_HEX = 33 /* 32 digits and the NUL */ };

/* False, and nothing changed: x is negative or not finite, or the sum would reach 2^64. Half a unit is
 * rounded to even. */
bool xp_sum_add(struct xp_sum *s, double x);
bool xp_sum_merge(struct xp_sum *s, const struct xp_sum *other);    /* false, and nothing changed: 2^64 */
double xp_sum_value(const struct xp_sum *s);                        /* the nearest double */
int xp_sum_compare(const struct xp_sum *a, const struct xp_sum *b); /* negative: a < b */
/* 32 digits: the sum times 2^64. Returns hex. */
const char *xp_sum_hex(char hex[XP_SUM_HEX], const struct xp_sum *s);
bool xp_sum_parse(struct xp_sum *s, const char *hex); /* false: not 32 lower-case digits */

#endif
