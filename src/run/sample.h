/* Sampling from logits: the chain repeat penalty, top-k, top-p, min-p, temperature, draw. Implements the
 * sampler part of vkmoe.h; knows no model and no device. */
#ifndef RUN_SAMPLE_H
#define RUN_SAMPLE_H

#include "core/status.h"

/* Index of the largest finite logit among the first n, ties to the lower index; -1 when none is finite. */
int32_t run_argmax(const float *logits, uint32_t n);

#endif
