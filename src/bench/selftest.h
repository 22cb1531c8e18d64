/* Every kernel against plain C in double on one device: what its driver miscomputes, and which paths to leave
 * alone because of it. */
#ifndef BENCH_SELFTEST_H
#define BENCH_SELFTEST_H

#include "bench/cases.h"
#include "bench/device.h"

struct bench_finding { /* the first wrong result of a kernel; pointers are valid during the call only */
    const char *kernel, *shape, *format, *sizes;
    const struct bench_miss *miss;
};

struct bench_selftest_params {
    void (*finding)(void *user, const struct bench_finding *f);
    void (*progress)(void *user, uint64_t done, uint64_t total); /* of kernels; NULL: none */
    void *user;
    const char *only; /* parts of names of kernels, with commas between them; NULL: all */
};

struct bench_selftest {
    uint32_t n_cases, n_kernels, n_wrong; /* wrong: kernels */
    uint32_t n_unusable;                  /* kernels that the device, or --caps, has no use for */
    uint32_t n_left, n_partly; /* kernels that a slow driver left no time for, or only for their first case */
    bool base_wrong; /* a kernel that every device needs: nothing can be switched off instead */
    char off[64];    /* words of --caps that switch the wrong paths off, "" for none */
    double seconds;
};

/* The same cases with the same contents each time. Errors are those of running; a wrong result is none. */
enum vkmoe_status bench_selftest(struct bench_selftest *result, struct bench_device *d,
                                 const struct bench_selftest_params *p, struct vkmoe_err *err);

/* Keeps result->off for this device, its driver and these kernels in the cache folder, so that every later
 * opening leaves those paths alone (run/tuned.h); what tune found stays. */
enum vkmoe_status bench_selftest_remember(const struct bench_selftest *result, const struct bench_device *d,
                                          struct vkmoe_err *err);

#endif
