/* The one table of cases: a kernel with everything one dispatch of it needs, what that reads and computes,
 * and, for checks, what must come out by plain C in double. bench kernels, selftest and tune all run these.
 */
#ifndef BENCH_CASES_H
#define BENCH_CASES_H

#include "bench/shapes.h"
#include "core/status.h"
#include "gpu/kernels.h"
#include "model/quant.h"
#include "run/variants.h"

#define BENCH_BUFS  16
#define BENCH_WANTS 4
#define BENCH_SEGS  2 /* length of segment arrays in cases */

/* Content of outputs before a run, and of what stands round every buffer in a check: a NaN as f32, as halves
 * and as bfloat16. */
#define BENCH_POISON 0x7fc57fc5u

enum bench_use {
    BENCH_IN,
    BENCH_OUT,    /* every word stays poison but those that the wants list */
    BENCH_INOUT,  /* the same with a content of its own */
    BENCH_SCRATCH /* written as the kernel likes */
};

struct bench_buf {
    enum bench_use use;
    bool exact;   /* bound to its last byte in checks: the kernel asks for its length */
    bool weights; /* rotated over copies in measurements, so that no cache holds them all */
    size_t bytes; /* a multiple of 4, not 0 */
    void *data;   /* bytes of them; NULL: poison */
};

enum bench_kind {
    BENCH_FLOATS, /* within the limits; NaN where NaN is expected */
    BENCH_VALUES, /* f32, exact; NaN is NaN, subnormals may be 0 */
    BENCH_HALVES, /* f16, within half a unit in the last place */
    BENCH_WORDS   /* exact */
};

struct bench_want {
    uint32_t buf;
    enum bench_kind kind;
    size_t first, n; /* elements: words, or halves */
    double *values;  /* n; all kinds but words */
    uint32_t *words;
    double nmse, largest; /* BENCH_FLOATS: of all n, and of one in units of their root mean square;
                             BENCH_HALVES: largest on top of that half a unit */
};

struct bench_miss { /* what a device miscomputed */
    uint32_t buf;
    size_t element;
    char got[40], expected[40];
};

struct bench_case {
    enum gpu_kernel kernel;
    const char *shape, *format; /* format "": no weights */
    char what[64];              /* sizes, for people */
    uint32_t spec[24], n_spec, n_segs;
    uint32_t push[16];
    struct bench_buf bufs[BENCH_BUFS];
    uint32_t n_bufs;
    uint32_t grid[3];
    double bytes, flops; /* that must be read and written once, and computed */
    struct bench_want wants[BENCH_WANTS];
    uint32_t n_wants;
    /* A check of its own besides the wants; after: the content of each buffer. false: *miss says what. */
    bool (*check)(const struct bench_case *c, void *const *after, struct bench_miss *miss);
    void *owned[40];
    uint32_t n_owned;
};

/* What a case is made for. */
struct bench_env {
    const struct bench_shape *shape;
    enum mdl_type type;
    const struct gpu_caps *caps;
    struct run_variants variants; /* sizes of workgroups; which kernel it is, is the caller's choice */
    bool check; /* expectations and special values; else the sizes of the shape alone matter */
    uint64_t seed;
};

/* Case `use` (from 0) of kernel k. *made is false behind the last, and where the kernel has no case of this
 * type. c is freed with bench_case_free in any case. */
enum vkmoe_status bench_case_make(struct bench_case *c, enum gpu_kernel k, uint32_t use,
                                  const struct bench_env *env, bool *made, struct vkmoe_err *err);
void bench_case_free(struct bench_case *c);
/* True for kernels that have cases. */
bool bench_case_known(enum gpu_kernel k);
/* True for kernels whose cases depend on the format of weights (or of the cache). */
bool bench_case_typed(enum gpu_kernel k);
/* Compares the contents of buffers after a run with what the case wants. after[i]: bytes of buffer i. */
bool bench_case_check(const struct bench_case *c, void *const *after, struct bench_miss *miss);

#endif
