/* Readers and writers of one block of each format, for quant.c alone. */
#ifndef MDL_BLOCKS_H
#define MDL_BLOCKS_H

#include <stdbool.h>
#include <stdint.h>

struct mdl_block_code {
    void (*read)(const uint8_t *block, float *dst);
    /* weights: as in fit.h, one for each element. False: beyond what the format can hold. */
    bool (*write)(const float *src, const float *weights, uint8_t *block);
};

/* Blocks of 32 elements (blocks_32.c), of 256 (blocks_k.c). */
extern const struct mdl_block_code mdl_code_q4_0, mdl_code_q4_1, mdl_code_q5_0, mdl_code_q5_1, mdl_code_q8_0,
    mdl_code_iq4_nl, mdl_code_mxfp4;
extern const struct mdl_block_code mdl_code_q2_k, mdl_code_q3_k, mdl_code_q4_k, mdl_code_q5_k, mdl_code_q6_k;

/* Halves of a file, little-endian, any alignment. */
static inline uint16_t mdl_get_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline void mdl_put_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

float mdl_get_half(const uint8_t *p);
/* Rounds and writes it, *v becomes what was written. False: infinite. */
bool mdl_put_half(uint8_t *p, float *v);

#endif
