/* FNV-1a: a checksum against damage, not against forgery. */
#ifndef COR_FNV_H
#define COR_FNV_H

#include <stddef.h>
#include <stdint.h>

#define COR_FNV_START 0xcbf29ce484222325u

/* Of n bytes more. */
static inline uint64_t cor_fnv(uint64_t h, const void *data, size_t n)
{
    const uint8_t *p = data;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

#endif
