#include "bench/device.h"

#include <string.h>

#include "core/os.h"
#include "gpu/commands.h"
#include "run/tuned.h"

#define WAIT_NS 60000000000u

enum vkmoe_status bench_device_open(struct bench_device *d, const struct bench_device_params *p,
                                    struct vkmoe_err *err)
{
    const struct gpu_instance_params ip = {.validation = p && p->validation,
                                           .cache_dir = p ? p->cache_dir : NULL};
    struct gpu_device_params dp = {.shader_dir = p ? p->shader_dir : NULL, .skip_barrier = -1};
    enum vkmoe_status st = VKMOE_OK;
    struct run_tuned tuned = {0};
    char caps[512];
    uint32_t index;

    memset(d, 0, sizeof(*d));
    TRY(gpu_instance_open(&d->inst, &ip, err));
    TRY(gpu_instance_choose(d->inst, p ? p->device : NULL, &index, err));
    if (p && p->tuned && !p->shader_dir)
        run_tuned_read(&tuned, d->inst, index);
    TRY(run_tuned_caps(&tuned, p ? p->caps : NULL, caps, sizeof(caps), err));
    dp.caps = caps;
    TRY(gpu_device_open(&d->dev, d->inst, index, &dp, err));
    TRY(run_tuned_variants(&tuned, p ? p->caps : NULL, p ? p->variants : NULL, d->dev, &d->variants,
                           &d->variants_from, err));
done:
    if (st != VKMOE_OK)
        bench_device_close(d);
    return st;
}

void bench_device_close(struct bench_device *d)
{
    gpu_device_close(d->dev);
    gpu_instance_close(d->inst);
    memset(d, 0, sizeof(*d));
}

const struct vkmoe_device_info *bench_device_info(const struct bench_device *d)
{
    return gpu_device_info(d->dev);
}

enum vkmoe_status bench_time(double *seconds, struct gpu_device *dev, struct gpu_cmds *cmds, uint32_t n,
                             const char *what, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    *seconds = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t start = cor_now_ns();
        double s;

        TRY(gpu_submit(dev, &cmds, 1, err));
        TRY(gpu_wait(dev, WAIT_NS, what, err));
        s = (double)(cor_now_ns() - start) / 1e9;
        if (!i || s < *seconds)
            *seconds = s;
    }
done:
    return st;
}
