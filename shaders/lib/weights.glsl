/* The words of a matrix, as lib/dequant.glsl and lib/chunk.glsl read them: a binding of its own or, with
 * WEIGHTS_ARRAY, an array of so many bindings, of which segment_index names one.
 * Before inclusion: WEIGHTS_BINDING, and ALIGNED of shared/params.h. */
#ifndef LIB_WEIGHTS_GLSL
#define LIB_WEIGHTS_GLSL

#include "lib/block_pair.glsl"

#ifdef WEIGHTS_ARRAY
uint segment_index;
#define VIEW(name) name[WEIGHTS_ARRAY]
#define VIEWED(name) name[segment_index]
#else
#define VIEW(name) name
#define VIEWED(name) name
#endif

layout(std430, set = 0, binding = WEIGHTS_BINDING) readonly buffer Words { uint data[]; } VIEW(words);
layout(std430, set = 0, binding = WEIGHTS_BINDING) readonly buffer Words4 { uvec4 data[]; } VIEW(words4);
#define LOAD_WORD(i) VIEWED(words).data[i]
#define LOAD_WORD4(i) VIEWED(words4).data[i]
#define WORDS_ALIGNED (ALIGNED >= 1u)
#define WORDS_WIDE (ALIGNED >= 2u)

#ifdef USE_LANES
layout(scalar, set = 0, binding = WEIGHTS_BINDING) readonly buffer PairsQ4 { pair_q4 data[]; } VIEW(pairs_q4);
layout(scalar, set = 0, binding = WEIGHTS_BINDING) readonly buffer PairsQ8 { pair_q8 data[]; } VIEW(pairs_q8);
#define LOAD_PAIR_Q4(i) VIEWED(pairs_q4).data[i]
#define LOAD_PAIR_Q8(i) VIEWED(pairs_q8).data[i]
#endif

#endif
