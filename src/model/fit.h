/* Least-squares fits of a few numbers by whole multiples of a scale: what the encoders of block formats
 * search with. Weights say how much the squared error of each number counts; NULL: all the same. */
#ifndef MDL_FIT_H
#define MDL_FIT_H

#include <stdbool.h>
#include <stdint.h>

#define FIT_MAX 32 /* numbers at once */

/* The d for x[i] ~ d q[i], q whole numbers of [low, high], low < 0 < high. 0: all are zero. */
float mdl_fit_scale(const float *x, const float *weights, int n, int low, int high);
/* d >= 0 and m for x[i] ~ d q[i] + m, q whole numbers of [0, high]. down: m <= 0. */
void mdl_fit_range(const float *x, const float *weights, int n, int high, bool down, float *d, float *m);
/* The nearest q of [low, high] for x ~ d q + m; where d is 0: 0, or low above it. */
int mdl_fit_nearest(float x, float d, float m, int low, int high);
/* Sum of w (x - d q - m)^2 with the nearest q. */
double mdl_fit_error(const float *x, const float *weights, int n, float d, float m, int low, int high);

#endif
