/* Every kernel with the specialisations that real models give it: what the register table and its test
 * compile. */
#ifndef TEST_SPECS_H
#define TEST_SPECS_H

#include "gpu/kernels.h"

enum specs_shape { SPECS_EMO /* the 14B model */, SPECS_NANO /* the bundled one */, SPECS_SHAPES };

struct specs_case {
    enum gpu_kernel kernel;
    enum specs_shape shape;
    const char *format; /* block format, or that of the cache; "" where there is none */
    const char *use;    /* what sets it apart from other cases of the kernel, "" for the first */
    uint32_t spec[20];
    uint32_t n_spec; /* words */
    uint32_t n_segs;
};

/* Fills cases (NULL: only counts) up to max; returns how many there are. */
uint32_t specs_list(struct specs_case *cases, uint32_t max);

#endif
