/* Runs one kernel on the test device (VK_DRIVER_FILES chooses it; index 0), once without and once with
 * robustBufferAccess. Every buffer stands between guard words; the guards, and inputs, must come back
 * unchanged. */
#ifndef KERNEL_TEST_H
#define KERNEL_TEST_H

#include "core/log.h"
#include "gpu/commands.h"
#include "model/quant.h"
#include "shared/params.h"
#include "shared/step.h"
#include "support/test.h"

/* A NaN as f32, and as two halves or bfloat16: guards and outputs hold it before each run, so that stray
 * reads show in results and stray writes in guards. */
#define KT_POISON 0x7fc57fc5u

enum kt_use { KT_IN, KT_OUT, KT_INOUT };

struct kt_buf {
    void *data;   /* read before the run (KT_IN, KT_INOUT), written after it (KT_OUT, KT_INOUT) */
    size_t bytes; /* a multiple of 4, more than 0 */
    enum kt_use use;
    bool exact; /* bind `bytes` only; else the guard behind as well, so that reads past the end are seen */
};

/* Test programs; kernel_test.c says which one covers which kernel. */
enum kt_program { KT_DENSE, KT_ATTN, KT_STEP, KT_MOE, KT_DOT, KT_BENCH };

/* Runs the tests on both kinds of device and then fails if a usable kernel of the program was never run. */
int kt_main(enum kt_program program, const struct CMUnitTest *tests, size_t n);

/* False, counted and printed once: the device lacks what the kernel needs. */
bool kt_usable(enum gpu_kernel k);

/* Workgroup and matrix rows per workgroup: those given, but for kernels with rows on lanes the only ones. */
struct kt_cut {
    uint32_t wg, rows;
};
struct kt_cut kt_cut(enum gpu_kernel k, uint32_t wg, uint32_t rows);

/* True on a driver that takes many times as long as the other to compile, unless test_full(): of modules
 * NAME_k some are enough there. */
bool kt_slow(void);

/* One case in four on the robust device, all on the plain one: drivers take long to compile. */
bool kt_wanted(uint32_t i);

void kt_run(enum gpu_kernel k, const void *spec, size_t spec_bytes, uint32_t n_segs, const void *push,
            struct kt_buf *bufs, uint32_t n_bufs, uint32_t x, uint32_t y, uint32_t z);
#define KT_RUN(k, spec, push, bufs, x, y, z) \
    kt_run(k, &(spec), sizeof(spec), 1, push, bufs, (uint32_t)COR_COUNT(bufs), x, y, z)

/* Fails when the normalised mean square error or the largest error, in units of the root mean square of
 * `want`, is past the limit, or when one is NaN and the other is not. */
void kt_close(const char *what, const float *got, const double *want, size_t n, double nmse, double largest);

/* Limits for sums of at most a few thousand f32 products: each of them has a relative error of 2^-24, sums in
 * any order stay near 2^-24 * sqrt(n) of their size, 4e-6 at worst here; squared, and with room for
 * cancellation. */
#define KT_NMSE    1e-12
#define KT_LARGEST 1e-5

float *kt_floats(size_t n);   /* uniform in (-1, 1), cor_free by the caller */
uint32_t *kt_words(size_t n); /* zeros, cor_free by the caller */
float kt_uniform(float lo, float hi);
uint32_t kt_below(uint32_t n); /* 0 .. n - 1 */
uint32_t kt_bits(float f);
float kt_float(uint32_t bits);

/* A random matrix in a block format. */
struct kt_matrix {
    uint8_t *bytes; /* n_bytes of them: `off` bytes of poison, rows, poison up to a multiple of 4 */
    size_t n_bytes;
    float *values; /* (rows, cols), dequantised */
    uint32_t off, row_bytes;
};

void kt_matrix_make(struct kt_matrix *m, enum mdl_type type, uint32_t rows, uint32_t cols, uint32_t off);
void kt_matrix_free(struct kt_matrix *m);
/* Dot product of row r with x, in double. */
double kt_matrix_dot(const struct kt_matrix *m, uint32_t cols, uint32_t r, const float *x);

/* State words of a step (STEP_TOKENS + n_tokens of them); cor_free by the caller. */
uint32_t *kt_state(uint32_t n_tokens, uint32_t pos, uint32_t row0, uint32_t n_rows);

/* k distinct experts per token with random weights, as router writes them (n_tokens * k * 2 words); with
 * `hole`, the last rank of every third token is NONE. */
void kt_choose(uint32_t *sel, uint32_t n_tokens, uint32_t n_experts, uint32_t k, bool hole);

#endif
