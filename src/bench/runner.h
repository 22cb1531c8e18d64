/* Runs cases on a device: once with guards round every buffer, for checks, or again and again, for time. Owns
 * the device memory of cases. */
#ifndef BENCH_RUNNER_H
#define BENCH_RUNNER_H

#include "bench/cases.h"
#include "bench/device.h"

struct gpu_buffer;

struct bench_runner {
    struct gpu_device *dev;
    struct gpu_cmds *cmds;
    struct gpu_buffer *bufs[BENCH_BUFS];
    uint64_t bytes[BENCH_BUFS]; /* of each; kept from case to case while large enough */
};

enum vkmoe_status bench_runner_open(struct bench_runner *r, struct gpu_device *dev, struct vkmoe_err *err);
void bench_runner_close(struct bench_runner *r); /* zeroed is fine */

/* *good: everything is as the case wants it, guards and inputs included; else *miss is the first that is not,
 * with element SIZE_MAX for a guard. */
enum vkmoe_status bench_run_check(struct bench_runner *r, const struct bench_case *c, bool *good,
                                  struct bench_miss *miss, struct vkmoe_err *err);

struct bench_speed {
    double seconds; /* of one dispatch with the barrier behind it, the least of several rounds */
    uint32_t runs;  /* dispatches of a round */
};

/* Dispatches in one command buffer, with a barrier between them; weights rotate over copies that no cache
 * holds, as far as memory goes. budget: seconds for all rounds. */
enum vkmoe_status bench_run_speed(struct bench_runner *r, const struct bench_case *c, double budget,
                                  struct bench_speed *speed, struct vkmoe_err *err);

#endif
