/* The waves of RoPE, in double: what a pair of elements turns by at each position. Owns how they are
 * stretched for contexts longer than the trained one. */
#ifndef MDL_ROPE_H
#define MDL_ROPE_H

#include "model/model.h"

/* freq[i]: angle by which pair i of n_rot / 2 turns from one position to the next. factors: as
 * mdl_model.rope_factors. Returns the factor on cosine and sine.
 *
 * Pair i turns by f = theta^(-2i / n_rot) / factors[i]. Linear scaling divides f by the factor; YaRN (Peng et
 * al., arXiv 2309.00071) does so for long waves only and gradually between the pairs that make beta_fast and
 * beta_slow turns over the original context, and lengthens queries and keys by 1 + ln(factor) / 10. */
double mdl_rope_freqs(const struct mdl_config *c, const float *factors, double *freq);

#endif
