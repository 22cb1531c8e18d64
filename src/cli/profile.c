/* Times of kernels for people: the table of --profile. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/engine.h"

#define MAX_KERNELS 128

static int by_time(const void *a, const void *b)
{
    const struct vkmoe_kernel_time *x = a, *y = b;

    return (x->ms < y->ms) - (x->ms > y->ms);
}

void cli_engine_profile(const struct cli_engine *e, const char *what)
{
    struct vkmoe_kernel_time times[MAX_KERNELS];
    uint32_t n = 0;
    double sum = 0;

    if (!e->profile)
        return;
    while (n < MAX_KERNELS && vkmoe_device_kernel_time(e->dev, n, &times[n]))
        sum += times[n++].ms;
    if (!n)
        return; /* nothing since the last table */
    qsort(times, n, sizeof(*times), by_time);
    fprintf(stderr, "\n%s: %.1f ms in kernels\n  %-24s %12s %12s %8s\n", what, sum, "kernel", "dispatches",
            "ms", "share");
    for (uint32_t i = 0; i < n; i++)
        fprintf(stderr, "  %-24s %12" PRIu64 " %12.2f %6.1f %%\n", times[i].kernel, times[i].count,
                times[i].ms, sum > 0 ? 100 * times[i].ms / sum : 0);
    vkmoe_device_reset_times(e->dev);
}
