/* What the makers of cases share: memory of a case, contents, expectations. Only src/bench/cases*.c include
 * it. */
#ifndef BENCH_MAKE_H
#define BENCH_MAKE_H

#include <stdio.h>

#include "bench/cases.h"
#include "core/bits.h"

/* Limits for sums of at most a few hundred f32 products, as the kernel tests have them. */
#define BENCH_NMSE      1e-12
#define BENCH_LARGEST   1e-5
#define BENCH_ATTN_NMSE 4e-12 /* the exp of a driver errs by a few units more */

struct bench_maker {
    struct bench_case *c;
    const struct bench_env *env;
    const struct bench_shape *s;
    uint64_t rng;
    uint32_t use;
    bool failed; /* no memory; pointers may be NULL, and the case is thrown away */
};

typedef bool (*bench_make_fn)(struct bench_maker *m); /* false: there is no such case */

struct bench_entry {
    bench_make_fn make;
    bool typed;
};

/* Fill entries of their kernels; entries has GPU_KERNEL_COUNT of them. */
void bench_add_dense(struct bench_entry *entries);
void bench_add_dot(struct bench_entry *entries);
void bench_add_attn(struct bench_entry *entries);
void bench_add_moe(struct bench_entry *entries);
void bench_add_step(struct bench_entry *entries);
void bench_add_one(struct bench_entry *entries);

/* Memory of the case, zeroed; never NULL for n of 0. With *failed set they return NULL. */
void *bench_array(struct bench_maker *m, size_t n, size_t size);
float *bench_floats(struct bench_maker *m, size_t n); /* uniform in (-1, 1) */
float bench_uniform(struct bench_maker *m, float lo, float hi);
uint32_t bench_below(struct bench_maker *m, uint32_t n);

/* Adds a buffer and returns its index. */
uint32_t bench_buf(struct bench_maker *m, enum bench_use use, void *data, size_t words);
void bench_want_floats(struct bench_maker *m, uint32_t buf, size_t n, double *values, double nmse);
/* The same for sums of `terms` products, or products of two such. Each f32 product and sum has a relative
 * error of 2^-24; in a row they stay near 2^-24 * sqrt(terms) of their size, and one of many results within
 * eight times that. */
void bench_want_sums(struct bench_maker *m, uint32_t buf, size_t n, double *values, uint32_t terms);
/* In checks only: words first .. first + n - 1 of the buffer. */
void bench_want_words(struct bench_maker *m, uint32_t buf, size_t first, size_t n, uint32_t *words);
void bench_want(struct bench_maker *m, const struct bench_want *w);
void bench_spec(struct bench_maker *m, const void *spec, size_t bytes);
void bench_push(struct bench_maker *m, const void *push, size_t bytes);
void bench_grid(struct bench_maker *m, uint32_t x, uint32_t y, uint32_t z);
#define BENCH_SPEC(m, s) bench_spec(m, &(s), sizeof(s))
#define BENCH_PUSH(m, p) bench_push(m, &(p), sizeof(p))

/* rows x cols in a block format from byte `off` of what is returned. In checks each row differs, some hold
 * subnormal halves and one a NaN, and *values (NULL: not wanted) gets them dequantised; else few rows repeat
 * and *values is NULL. */
uint8_t *bench_matrix(struct bench_maker *m, enum mdl_type type, uint32_t rows, uint32_t cols, uint32_t off,
                      size_t *n_bytes, float **values);
/* Adds a buffer with rows x cols quantised inputs, as shaders/lib/dot8.glsl has them, and gives what they
 * stand for (NULL: *failed). cols: a multiple of 32. */
float *bench_rounded(struct bench_maker *m, uint32_t rows, uint32_t cols);
/* Dot product of n elements in double. */
double bench_dot(const float *w, const float *x, uint32_t n);
/* State words of a step. */
uint32_t *bench_state(struct bench_maker *m, uint32_t n_tokens, uint32_t pos, uint32_t row0, uint32_t n_rows);
/* k distinct experts per token with weights, as the router writes them; holes: some are NONE. */
uint32_t *bench_choose(struct bench_maker *m, uint32_t n_tokens, bool holes);

/* As run/layer.c chooses them. */
bool bench_takes(const struct bench_maker *m, uint32_t k); /* rows of k elements, in this format */
uint32_t bench_lanes(const struct bench_maker *m);
uint32_t bench_rows(const struct bench_maker *m);
uint32_t bench_row_lanes(const struct bench_maker *m, uint32_t k);
uint32_t bench_tile_rows(const struct bench_maker *m);
uint32_t bench_tile_lanes(const struct bench_maker *m, uint32_t k);

/* Expectations are wanted, not times alone. */
static inline bool check(const struct bench_maker *m)
{
    return m->env->check;
}

/* For the values of a want; NULL where none are wanted. */
static inline double *doubles(struct bench_maker *m, size_t n)
{
    return check(m) ? bench_array(m, n, sizeof(double)) : NULL;
}

/* Sizes, for people. */
#define WHAT(m, ...) snprintf((m)->c->what, sizeof((m)->c->what), __VA_ARGS__)

static inline uint32_t bench_div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

#endif
