/* The device that measurements run on, opened from the options of a command, and time taken of what runs on
 * it. Owns nothing of a model. */
#ifndef BENCH_DEVICE_H
#define BENCH_DEVICE_H

#include "run/variants.h"

struct gpu_cmds;

struct bench_device_params {
    const char *device, *caps, *shader_dir; /* as vkmoe_device_params; NULL: the best one, none, none */
    const char *cache_dir;                  /* pipeline caches and tuning; NULL: none */
    const char *variants;                   /* as vkmoe_device_params */
    bool tuned; /* what selftest and tune found is heeded, as vkmoe_device_open does; else nothing of it */
    bool validation;
};

struct bench_device {
    struct gpu_instance *inst;
    struct gpu_device *dev;
    struct run_variants variants; /* models would run with these */
    const char *variants_from;    /* "default", "tuned" or "forced" */
};

/* p NULL: defaults. Beside a vkmoe_context that is open this makes another instance and device. */
enum vkmoe_status bench_device_open(struct bench_device *d, const struct bench_device_params *p,
                                    struct vkmoe_err *err);
void bench_device_close(struct bench_device *d); /* zeroed or half open is fine */
const struct vkmoe_device_info *bench_device_info(const struct bench_device *d);

/* Wall time of one submit of cmds with its wait: the least of n. */
enum vkmoe_status bench_time(double *seconds, struct gpu_device *dev, struct gpu_cmds *cmds, uint32_t n,
                             const char *what, struct vkmoe_err *err);

#endif
