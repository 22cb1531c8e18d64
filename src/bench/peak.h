/* What a device can do: bandwidths, arithmetic and the cost of a submit, measured with small kernels of their
 * own. Every figure is the best of several rounds; bytes and operations are counted, not estimated. */
#ifndef BENCH_PEAK_H
#define BENCH_PEAK_H

#include "bench/device.h"

enum bench_rate { BENCH_RATE_F32, BENCH_RATE_F16, BENCH_RATE_I32, BENCH_RATE_DOT8, BENCH_RATES };

struct bench_peak {
    double read;         /* bytes per second that a shader reads: the better of the two */
    double read_words;   /* word by word */
    double read_vectors; /* four words at a time */
    double copy;         /* bytes per second copied by the device, each counted once, read and written */
    double to_device, to_host;       /* bytes per second between host memory and the device, as uploads go */
    double ops[BENCH_RATES];         /* operations per second; a product with its sum is two. 0: see why */
    const char *why[BENCH_RATES];    /* what is missing; NULL: measured */
    double submit_median, submit_99; /* seconds from a submit of next to nothing to the end of its wait */
    uint64_t buffer_bytes;           /* of the buffers that were read and copied */
};

/* "f32", "f16", "i32", "dot8" */
const char *bench_rate_name(enum bench_rate r);

/* All of it, in a few seconds; needs up to half a GiB of device memory, less where there is less. */
enum vkmoe_status bench_peak(struct bench_peak *peak, struct bench_device *d, struct vkmoe_err *err);

/* Reading alone, in under two seconds: what bytes per token are held against. Opens a device of its own. */
enum vkmoe_status bench_peak_read(double *bytes_per_second, const struct bench_device_params *p,
                                  struct vkmoe_err *err);
/* The same on an open device. */
enum vkmoe_status bench_peak_read_on(double *bytes_per_second, struct bench_device *d, struct vkmoe_err *err);

#endif
