/* Block formats in plain C: the definition that shaders, converter and tests are held to.
 * Owns what a block's bits mean; knows no file and no device. */
#ifndef MDL_QUANT_H
#define MDL_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Values are GGUF's type numbers; X(enumerator, value, name, elements per block, bytes per block, GGUF's
 * general.file_type for files mostly of that type). */
#define MDL_TYPE_LIST(X)                  \
    X(MDL_F32, 0, "f32", 1, 4, 0)         \
    X(MDL_F16, 1, "f16", 1, 2, 1)         \
    X(MDL_Q4_0, 2, "q4_0", 32, 18, 2)     \
    X(MDL_Q4_1, 3, "q4_1", 32, 20, 3)     \
    X(MDL_Q5_0, 6, "q5_0", 32, 22, 8)     \
    X(MDL_Q5_1, 7, "q5_1", 32, 24, 9)     \
    X(MDL_Q8_0, 8, "q8_0", 32, 34, 7)     \
    X(MDL_Q2_K, 10, "q2_k", 256, 84, 10)  \
    X(MDL_Q3_K, 11, "q3_k", 256, 110, 11) \
    X(MDL_Q4_K, 12, "q4_k", 256, 144, 14) \
    X(MDL_Q5_K, 13, "q5_k", 256, 176, 16) \
    X(MDL_Q6_K, 14, "q6_k", 256, 210, 18) \
    X(MDL_IQ4_NL, 20, "iq4_nl", 32, 18, 25) \
    X(MDL_BF16, 30, "bf16", 1, 2, 32)     \
    X(MDL_MXFP4, 39, "mxfp4", 32, 17, 38)

enum mdl_type {
#define MDL_X(id, value, name, elems, bytes, file) id = value,
    MDL_TYPE_LIST(MDL_X)
#undef MDL_X
};

struct mdl_type_info {
    enum mdl_type type;
    const char *name;
    uint32_t block_elems;
    uint32_t block_bytes;
    uint32_t file_type;
};

const struct mdl_type_info *mdl_type_find(uint32_t gguf_type);    /* NULL: unknown */
const struct mdl_type_info *mdl_type_by_name(const char *name);   /* any case; NULL: unknown */
bool mdl_same_name(const char *a, const char *b); /* any case */
/* Bytes of a row of n elements; n must be a multiple of block_elems. */
uint64_t mdl_row_bytes(enum mdl_type type, uint64_t n);

float mdl_half_to_float(uint16_t h);
uint16_t mdl_float_to_half(float f);   /* round to nearest even; overflow gives infinity; NaN stays NaN */
float mdl_bf16_to_float(uint16_t h);
uint16_t mdl_float_to_bf16(float f);   /* round to nearest even; NaN stays NaN */

/* n elements of one row. src and dst may have any alignment on the quantised side. */
void mdl_dequant_row(enum mdl_type type, const void *src, float *dst, uint64_t n);
/* Non-finite input, or values beyond what the type can hold: false, and dst is unspecified (the caller names
 * the tensor). Zero and subnormal blocks are fine. Encoders search for scales with a small squared error. */
bool mdl_quant_row(enum mdl_type type, const float *src, void *dst, uint64_t n);
/* The same where the squared error of element i counts weights[i] times; NULL: all the same. */
bool mdl_quant_row_weighted(enum mdl_type type, const float *src, const float *weights, void *dst,
                            uint64_t n);

#endif
