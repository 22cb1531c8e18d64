/* Times of every kernel at the shapes of real models. */
#ifndef BENCH_KERNELS_H
#define BENCH_KERNELS_H

#include "bench/peak.h"
#include "bench/shapes.h"
#include "model/quant.h"

struct bench_kernel_row {
    const char *kernel, *shape, *format, *what; /* format "": no weights; valid during the call only */
    uint32_t runs;                              /* of a round */
    double seconds;                             /* of one run */
    double bytes, flops;
    double bytes_share, flops_share; /* of what the device read and computed in bench_peak */
};

struct bench_kernels_params {
    const char *filter;              /* parts of names with commas between them; NULL: all kernels */
    const struct bench_shape *shape; /* NULL: EMO's, OLMoE's and Qwen3-30B-A3B's */
    const enum mdl_type *types;      /* of weights */
    uint32_t n_types;
    struct run_variants variants;                                /* sizes of workgroups */
    double budget;                                               /* seconds per row */
    bool (*row)(void *user, const struct bench_kernel_row *row); /* false: stop */
    void *user;
};

/* peak: of this device. Caches are of F16, or F32 where that is the only type. Kernels that the device cannot
 * run, or that have no case at a shape, have no row. */
enum vkmoe_status bench_kernels(struct bench_device *d, const struct bench_kernels_params *p,
                                const struct bench_peak *peak, struct vkmoe_err *err);

/* True when a name has one of the parts of the filter in it; filter NULL: always. */
bool bench_filter(const char *filter, const char *name);

#endif
