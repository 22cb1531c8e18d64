/* A generator of 64-bit numbers that is the same on every machine: an odd step and a mixer of shifts and odd
 * factors (SplitMix64), each a bijection, so that all 2^64 states give different numbers. */
#ifndef COR_RAND_H
#define COR_RAND_H

#include <stdint.h>

static inline uint64_t cor_rand(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* A number below n, each equally likely: draws that would favour small ones are thrown away. n > 0. */
static inline uint64_t cor_rand_below(uint64_t *state, uint64_t n)
{
    uint64_t unfair = (UINT64_MAX - n + 1) % n, x; /* 2^64 mod n */

    do
        x = cor_rand(state);
    while (x < unfair);
    return x % n;
}

#endif
