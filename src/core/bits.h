/* The bits of a float as a number, and back. */
#ifndef COR_BITS_H
#define COR_BITS_H

#include <stdint.h>
#include <string.h>

static inline float cor_float_from_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof(f));
    return f;
}

static inline uint32_t cor_float_bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    return u;
}

#endif
