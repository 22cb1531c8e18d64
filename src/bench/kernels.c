#include "bench/kernels.h"

#include <string.h>

#include "bench/runner.h"
#include "core/os.h"
#include "gpu/commands.h"

bool bench_filter(const char *filter, const char *name)
{
    bool any = false; /* parts in the filter */

    while (filter && *filter) {
        const size_t n = strcspn(filter, ",");

        any |= n != 0;
        for (const char *at = name; n && strlen(at) >= n; at++)
            if (!memcmp(at, filter, n))
                return true;
        filter += n + (filter[n] == ',');
    }
    return !any;
}

struct list {
    struct bench_runner runner;
    const struct bench_kernels_params *p;
    const struct bench_peak *peak;
    bool stop;
};

static enum vkmoe_status one_row(struct list *l, const struct bench_case *c, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct bench_kernel_row row = {.kernel = gpu_kernel_info(c->kernel)->name,
                                   .shape = c->shape,
                                   .format = c->format,
                                   .what = c->what,
                                   .bytes = c->bytes,
                                   .flops = c->flops};
    struct bench_speed speed;

    TRY(bench_run_speed(&l->runner, c, l->p->budget, &speed, err));
    row.runs = speed.runs;
    row.seconds = speed.seconds;
    if (l->peak->read > 0)
        row.bytes_share = c->bytes / speed.seconds / l->peak->read;
    if (l->peak->ops[BENCH_RATE_F32] > 0)
        row.flops_share = c->flops / speed.seconds / l->peak->ops[BENCH_RATE_F32];
    l->stop = !l->p->row(l->p->user, &row) || cor_interrupted();
done:
    return st;
}

static enum vkmoe_status kernel_rows(struct list *l, enum gpu_kernel k, const struct bench_env *env,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct bench_case c = {0};
    bool made = true;

    for (uint32_t use = 0; made && !l->stop; use++) {
        TRY(bench_case_make(&c, k, use, env, &made, err));
        if (made)
            TRY(one_row(l, &c, err));
        bench_case_free(&c);
    }
done:
    bench_case_free(&c);
    return st;
}

static enum vkmoe_status shape_rows(struct list *l, const struct bench_shape *shape, struct vkmoe_err *err)
{
    struct bench_env env = {.shape = shape, .caps = gpu_device_caps(l->runner.dev), .seed = 1};
    enum vkmoe_status st = VKMOE_OK;

    env.variants = l->p->variants;
    for (int k = 0; k < GPU_KERNEL_COUNT && !l->stop; k++) {
        const enum gpu_kernel kernel = (enum gpu_kernel)k;
        const char *name = gpu_kernel_info(kernel)->name;
        const bool cache = strstr(name, "attn_") || strstr(name, "rope");
        const enum mdl_type f16 = l->p->n_types == 1 && l->p->types[0] == MDL_F32 ? MDL_F32 : MDL_F16;

        if (!bench_filter(l->p->filter, name) || !gpu_kernel_usable(l->runner.dev, kernel))
            continue;
        for (uint32_t t = 0; t < l->p->n_types && !l->stop; t++) {
            if (t && (cache || !bench_case_typed(kernel)))
                break;
            env.type = cache ? f16 : l->p->types[t];
            TRY(kernel_rows(l, kernel, &env, err));
        }
    }
done:
    return st;
}

enum vkmoe_status bench_kernels(struct bench_device *d, const struct bench_kernels_params *p,
                                const struct bench_peak *peak, struct vkmoe_err *err)
{
    static const enum bench_shape_id all[] = {BENCH_EMO, BENCH_OLMOE, BENCH_QWEN3};
    struct list l = {.p = p, .peak = peak};
    enum vkmoe_status st = VKMOE_OK;

    TRY(bench_runner_open(&l.runner, d->dev, err));
    for (size_t i = 0; i < (p->shape ? 1 : COR_COUNT(all)) && !l.stop; i++)
        TRY(shape_rows(&l, p->shape ? p->shape : bench_shape(all[i]), err));
done:
    bench_runner_close(&l.runner);
    return st;
}
