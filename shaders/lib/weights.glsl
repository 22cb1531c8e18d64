/* A matrix in a binding of its own, as lib/dequant.glsl and lib/lanes.glsl read it.
 * Before inclusion: WEIGHTS_BINDING, and ALIGNED of shared/params.h. */
#ifndef LIB_WEIGHTS_GLSL
#define LIB_WEIGHTS_GLSL

#include "lib/block_pair.glsl"

layout(std430, set = 0, binding = WEIGHTS_BINDING) readonly buffer Weights {
    uint data[];
} weights;
layout(std430, set = 0, binding = WEIGHTS_BINDING) readonly buffer Weights4 {
    uvec4 data[];
} weights4;
#define LOAD_WORD(i) weights.data[i]
#define LOAD_WORD4(i) weights4.data[i]
#define WORDS_ALIGNED (ALIGNED >= 1u)
#define WORDS_WIDE (ALIGNED >= 2u)

#ifdef USE_LANES
layout(scalar, set = 0, binding = WEIGHTS_BINDING) readonly buffer PairsQ4 {
    pair_q4 data[];
} pairs_q4;
layout(scalar, set = 0, binding = WEIGHTS_BINDING) readonly buffer PairsQ8 {
    pair_q8 data[];
} pairs_q8;
#define LOAD_PAIR_Q4(i) pairs_q4.data[i]
#define LOAD_PAIR_Q8(i) pairs_q8.data[i]
#endif

#endif
