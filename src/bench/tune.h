/* Measures which variants of run/variants.h a device runs best at the shapes of models, and keeps them for
 * it. Only variants that compute the same are tried: nothing here turns --fast-math on. */
#ifndef BENCH_TUNE_H
#define BENCH_TUNE_H

#include "bench/device.h"
#include "bench/shapes.h"
#include "model/quant.h"

#define BENCH_TUNE_SHAPES 2

struct bench_tune_row {  /* one candidate */
    const char *variant; /* as "core=lanes"; valid during the call only */
    double share;        /* of the time that the defaults take, a mean over shapes */
    bool chosen;
};

struct bench_tune_params {
    struct bench_shape shapes[BENCH_TUNE_SHAPES];
    enum mdl_type types[BENCH_TUNE_SHAPES]; /* of their experts */
    uint32_t n_shapes;
    double seconds; /* after which no further candidate is measured */
    void (*row)(void *user, const struct bench_tune_row *row); /* NULL: none */
    void *user;
};

struct bench_tune {
    struct run_variants best;
    bool changed;      /* best differs from the defaults */
    uint32_t measured; /* candidates */
    bool complete;     /* the time sufficed for all of them */
    double seconds;
};

/* Fields in turn, each value against the default in alternation; one that is not at least 3 % faster stays as
 * it is by default. d: opened with what selftest found, without variants of its own. */
enum vkmoe_status bench_tune(struct bench_tune *result, struct bench_device *d,
                             const struct bench_tune_params *p, struct vkmoe_err *err);

/* Keeps result->best for this device, its driver and these kernels; defaults are kept as nothing. What
 * selftest found stays. */
enum vkmoe_status bench_tune_remember(const struct bench_tune *result, const struct bench_device *d,
                                      struct vkmoe_err *err);
/* Forgets what tune found. */
enum vkmoe_status bench_tune_reset(const struct bench_device *d, struct vkmoe_err *err);

/* Shape of a GGUF file, and the format of its experts. */
enum vkmoe_status bench_tune_shape(struct bench_shape *shape, enum mdl_type *type, const char *path,
                                   struct vkmoe_err *err);

#endif
