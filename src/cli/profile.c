/* Times of kernels for people, and what they moved: the table of --profile. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/engine.h"
#include "core/os.h"

#define MAX_KERNELS 128

static int by_time(const void *a, const void *b)
{
    const struct vkmoe_kernel_time *x = a, *y = b;

    return (x->ms < y->ms) - (x->ms > y->ms);
}

void cli_engine_profile_begin(struct cli_engine *e)
{
    e->profile_since = cor_now_ns();
    if (e->profile)
        vkmoe_device_reset_times(e->dev);
}

static void print_row(const struct vkmoe_kernel_time *t, double sum)
{
    const double s = t->ms / 1e3;

    fprintf(stderr, "  %-24s %8" PRIu64 " %10.1f %10.2f %9.2f %8.2f %9.2f %6.1f %%\n", t->kernel, t->count,
            t->count ? t->ms * 1e3 / (double)t->count : 0, t->ms, t->bytes / 1e6,
            s > 0 ? t->bytes / s / 1e9 : 0, s > 0 ? t->flops / s / 1e9 : 0, sum > 0 ? 100 * t->ms / sum : 0);
}

static void print_gap(const char *name, uint64_t n, double ms, double sum)
{
    print_row(&(struct vkmoe_kernel_time){.kernel = name, .count = n, .ms = ms}, sum);
}

void cli_engine_profile(struct cli_engine *e, const char *what)
{
    const double wall = (double)(cor_now_ns() - e->profile_since) / 1e6;
    struct vkmoe_kernel_time times[MAX_KERNELS], all = {.kernel = "all"};
    struct vkmoe_device_gaps gaps;
    uint32_t n = 0;
    double sum;

    if (!e->profile || !vkmoe_device_get_gaps(e->dev, &gaps))
        return;
    for (; n < MAX_KERNELS && vkmoe_device_kernel_time(e->dev, n, &times[n]); n++) {
        all.count += times[n].count;
        all.ms += times[n].ms;
        all.bytes += times[n].bytes;
        all.flops += times[n].flops;
    }
    if (!n)
        return; /* nothing since the last table */
    qsort(times, n, sizeof(*times), by_time);
    sum = all.ms + gaps.between_ms + gaps.around_ms;
    fprintf(stderr, "\n%s: %.1f ms on the device and waiting for it, %.1f %% of %.1f ms\n", what, sum,
            wall > 0 ? 100 * sum / wall : 0, wall);
    fprintf(stderr, "  %-24s %8s %10s %10s %9s %8s %9s %8s\n", "kernel", "calls", "us/call", "ms", "MB",
            "GB/s", "GFLOP/s", "share");
    for (uint32_t i = 0; i < n; i++)
        print_row(&times[i], wall);
    print_row(&all, wall);
    print_gap("between", gaps.waits, gaps.between_ms, wall);
    print_gap("submit+wait", gaps.waits, gaps.around_ms, wall);
    print_gap("host", gaps.waits, wall > sum ? wall - sum : 0, wall);
    cli_engine_profile_begin(e);
}
