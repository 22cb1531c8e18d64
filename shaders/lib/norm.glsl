/* RMSNorm of one row by a workgroup: out = in / sqrt(mean(in^2) + eps) * w, sum in f32. The same bits from
 * every kernel with the same workgroup.
 * Before inclusion: NORM_IN(i), NORM_W(i), NORM_OUT(i); DIM, EPS_BITS and WG. */
#ifndef LIB_NORM_GLSL
#define LIB_NORM_GLSL

#include "lib/reduce.glsl"

/* All lanes call it. */
void norm_row()
{
    precise float sum = 0.0;

    for (uint i = gl_LocalInvocationIndex; i < DIM; i += WG) {
        float v = NORM_IN(i);
        sum = sum + v * v;
    }
    float scale = 1.0 / sqrt(reduce_add(sum) / float(DIM) + uintBitsToFloat(EPS_BITS));
    for (uint i = gl_LocalInvocationIndex; i < DIM; i += WG)
        NORM_OUT(i) = NORM_IN(i) * scale * NORM_W(i);
}

#endif
