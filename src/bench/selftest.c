#include "bench/selftest.h"

#include <stdio.h>
#include <string.h>

#include "bench/kernels.h"
#include "bench/runner.h"
#include "core/os.h"
#include "gpu/commands.h"
#include "run/tuned.h"

#define SEED       20261122u
#define SLOW_AFTER 25.0 /* seconds */

/* Needs of a kernel that can be switched off, by the word that does it; those that are wanted least come
 * first. */
static const struct {
    uint32_t need;
    const char *word;
} paths[] = {{GPU_NEED_DOT, "-dot8"},         {GPU_NEED_ROUNDED, "-rounding"}, {GPU_NEED_F16, "-f16"},
             {GPU_NEED_TEXELS, "-texels"},    {GPU_NEED_LANES, "-lanes"},      {GPU_NEED_ARRAY, "-array"},
             {GPU_NEED_SUBGROUP, "-subgroup"}};

struct test {
    struct bench_runner runner;
    const struct bench_selftest_params *p;
    struct bench_selftest *r;
    uint64_t start, n_done, n_total; /* kernels of all rounds */
    bool wishing;                    /* cases are not run: threads are asked for their pipelines */
};

/* First one case of each kernel, then the others: drivers that take long to compile leave no kernel untested.
 * Kernels that some drivers compile for a minute each come last in either. */
static const struct round {
    bool first, slow;
} rounds[] = {{true, false}, {true, true}, {false, false}, {false, true}};

static bool out_of_time(const struct test *t)
{
    return (double)(cor_now_ns() - t->start) / 1e9 > SLOW_AFTER;
}

static enum vkmoe_status check_case(struct test *t, const struct bench_case *c, bool *wrong,
                                    struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct bench_miss miss;
    const struct bench_finding f = {gpu_kernel_info(c->kernel)->name, c->shape, c->format, c->what, &miss};
    bool good;

    TRY(bench_run_check(&t->runner, c, &good, &miss, err));
    t->r->n_cases++;
    *wrong = !good;
    if (!good && t->p->finding)
        t->p->finding(t->p->user, &f);
done:
    return st;
}

static enum vkmoe_status case_of(struct test *t, const struct bench_case *c, bool *wrong,
                                 struct vkmoe_err *err)
{
    if (!t->wishing)
        return check_case(t, c, wrong, err);
    gpu_pipeline_wish(t->runner.dev, c->kernel, c->spec, c->n_spec * sizeof(uint32_t), c->n_segs);
    return VKMOE_OK;
}

/* What is left to do of a kernel's cases: *from of them are passed over, then `most` run, until one is
 * wrong. */
struct span {
    uint32_t from, most;
    bool wrong;
};

/* The cases of one kernel, shape and format. */
static enum vkmoe_status cases_of(struct test *t, enum gpu_kernel k, const struct bench_env *env,
                                  struct span *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct bench_case c = {0};
    bool made = true;

    for (uint32_t use = 0; made && s->most && !s->wrong; use++) {
        TRY(bench_case_make(&c, k, use, env, &made, err));
        if (made && s->from) {
            s->from--;
        } else if (made) {
            s->most--;
            TRY(case_of(t, &c, &s->wrong, err));
        }
        bench_case_free(&c);
    }
done:
    bench_case_free(&c);
    return st;
}

/* Formats at each of bench_shape_odd: every decoder once, and one at the larger shape; then those of modules
 * of their own (GPU_FMT_*), which fit two of the shapes. */
static const enum mdl_type types[][3] = {
    {MDL_Q4_0, MDL_Q8_0}, {MDL_F16, MDL_F32, MDL_BF16}, {MDL_Q4_0, MDL_F16}};
static const uint32_t n_types[] = {2, 3, 2};
static const enum mdl_type more[][5] = {{MDL_MXFP4, MDL_IQ4_NL, MDL_Q5_1, MDL_Q5_0, MDL_Q4_1},
                                        {MDL_F32},
                                        {MDL_Q4_K, MDL_Q6_K, MDL_Q5_K, MDL_Q3_K, MDL_Q2_K}};

/* A form of the row core that these variants do not take: tuning may. */
static bool is_spare(const char *name, const struct run_variants *v)
{
    return (strstr(name, "_sg") && v->core != RUN_CORE_SUBGROUP) ||
           (strstr(name, "_ln") && v->core != RUN_CORE_LANES) || (strstr(name, "_tx") && !v->texels);
}

/* Drivers take long to compile some kernels. Modules that index the array of segments differ from the plain
 * ones in that alone; rows on lanes, and few tokens, need no larger shape; of forms that nobody takes without
 * asking, each block and one other format do: */
static uint32_t types_of(enum gpu_kernel k, uint32_t shape, const struct run_variants *v)
{
    const char *name = gpu_kernel_info(k)->name;

    if (!bench_case_typed(k))
        return 1;
    if (strstr(name, "_tx")) /* rows of 256 elements at least */
        return shape == 2;
    if (is_spare(name, v))
        return strstr(name, "_arr") ? shape == 0 : shape == 0 ? n_types[0] : shape == 1;
    if (strstr(name, "_few") && v->tile != RUN_TILE_SHARED)
        return shape == 0;
    if (strstr(name, "_arr"))
        return shape < 2;
    return (strstr(name, "_ln") || strstr(name, "_few")) && !strstr(name, "attn") && shape == 2
               ? 0
               : n_types[shape];
}

/* How many of `more`: each decoder in embed and matvec, one in every other module. */
static uint32_t more_of(enum gpu_kernel k, uint32_t shape)
{
    const char *name = gpu_kernel_info(k)->name;
    const bool all = !strcmp(name, "embed") || !strcmp(name, "matvec");

    return !gpu_kernel_info(k)->formats || shape == 1 ? 0 : all ? COR_COUNT(more[0]) : shape == 0;
}

static enum vkmoe_status test_kernel(struct test *t, enum gpu_kernel k, bool first, bool *wrong,
                                     struct vkmoe_err *err)
{
    struct bench_env env = {.caps = gpu_device_caps(t->runner.dev), .check = true, .seed = SEED};
    struct span s = {.from = first ? 0 : 1, .most = first ? 1 : UINT32_MAX};
    enum vkmoe_status st = VKMOE_OK;

    run_variants_default(&env.variants, env.caps);
    for (uint32_t i = 0; i < COR_COUNT(types); i++) {
        const uint32_t n = types_of(k, i, &env.variants);

        env.shape = bench_shape_odd(i);
        for (uint32_t f = 0; f < n + more_of(k, i); f++) {
            env.type = f < n ? types[i][f] : more[i][f - n];
            TRY(cases_of(t, k, &env, &s, err));
        }
    }
done:
    *wrong = s.wrong;
    return st;
}

/* The needs to give up so that no kernel in use is wrong: first those of kernels with one need, then, for
 * kernels with several that are all still there, the one that is wanted least. */
static void choose_off(struct bench_selftest *r, const bool *wrong)
{
    uint32_t off = 0;
    size_t n = 0;

    for (int round = 0; round < 2; round++)
        for (int k = 0; k < GPU_KERNEL_COUNT; k++) {
            const uint32_t needs = gpu_kernel_info((enum gpu_kernel)k)->needs;
            const bool single = !(needs & (needs - 1));

            if (!wrong[k] || needs & off || (!round && !single))
                continue;
            r->base_wrong |= !needs;
            for (size_t i = 0; i < COR_COUNT(paths) && !(needs & off); i++)
                off |= needs & paths[i].need;
        }
    for (size_t i = 0; i < COR_COUNT(paths); i++)
        if (off & paths[i].need)
            n += (size_t)snprintf(r->off + n, sizeof(r->off) - n, "%s%s", n ? "," : "", paths[i].word);
}

static bool is_slow(enum gpu_kernel k)
{
    const char *name = gpu_kernel_info(k)->name;

    return strstr(name, "_ln") || strstr(name, "_tx") || strstr(name, "_few") || strstr(name, "_dot");
}

/* Belongs to the round, and the device can run it. */
static bool is_wanted(const struct test *t, enum gpu_kernel k, const struct round *r)
{
    return is_slow(k) == r->slow && bench_case_known(k) && gpu_kernel_usable(t->runner.dev, k) &&
           bench_filter(t->p->only, gpu_kernel_info(k)->name);
}

/* Asks threads for the pipelines of a round, those that are needed first last. */
static enum vkmoe_status wish(struct test *t, const struct round *r, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    bool wrong;

    t->wishing = true;
    for (int k = GPU_KERNEL_COUNT - 1; k >= 0; k--)
        if (is_wanted(t, (enum gpu_kernel)k, r))
            TRY(test_kernel(t, (enum gpu_kernel)k, r->first, &wrong, err));
    gpu_pipelines_ahead(t->runner.dev);
done:
    t->wishing = false;
    return st;
}

/* One kernel in one round; what is left when the time is up is counted. */
static enum vkmoe_status one_kernel(struct test *t, enum gpu_kernel k, const struct round *r, bool *wrong,
                                    struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    if (out_of_time(t)) {
        t->r->n_left += r->first;
        t->r->n_partly += !r->first;
        return VKMOE_OK;
    }
    TRY(test_kernel(t, k, r->first, wrong, err));
    t->r->n_kernels += r->first;
    t->r->n_wrong += *wrong;
done:
    return st;
}

static enum vkmoe_status one_round(struct test *t, const struct round *r, bool *wrong, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    if (!out_of_time(t))
        TRY(wish(t, r, err));
    for (int k = 0; k < GPU_KERNEL_COUNT; k++) {
        if (!is_wanted(t, (enum gpu_kernel)k, r))
            continue;
        if (t->p->progress)
            t->p->progress(t->p->user, t->n_done++, t->n_total);
        if (!wrong[k])
            TRY(one_kernel(t, (enum gpu_kernel)k, r, &wrong[k], err));
    }
done:
    return st;
}

enum vkmoe_status bench_selftest(struct bench_selftest *result, struct bench_device *d,
                                 const struct bench_selftest_params *p, struct vkmoe_err *err)
{
    struct test t = {.p = p, .r = result, .start = cor_now_ns()};
    bool wrong[GPU_KERNEL_COUNT] = {false};
    enum vkmoe_status st = VKMOE_OK;

    memset(result, 0, sizeof(*result));
    TRY(bench_runner_open(&t.runner, d->dev, err));
    for (int k = 0; k < GPU_KERNEL_COUNT; k++)
        result->n_unusable += bench_case_known((enum gpu_kernel)k) &&
                              bench_filter(p->only, gpu_kernel_info((enum gpu_kernel)k)->name) &&
                              !gpu_kernel_usable(d->dev, (enum gpu_kernel)k);
    for (size_t i = 0; i < COR_COUNT(rounds); i++)
        for (int k = 0; k < GPU_KERNEL_COUNT; k++)
            t.n_total += is_wanted(&t, (enum gpu_kernel)k, &rounds[i]);
    for (size_t i = 0; i < COR_COUNT(rounds); i++)
        TRY(one_round(&t, &rounds[i], wrong, err));
    choose_off(result, wrong);
    result->seconds = (double)(cor_now_ns() - t.start) / 1e9;
done:
    bench_runner_close(&t.runner);
    return st;
}

enum vkmoe_status bench_selftest_remember(const struct bench_selftest *result, const struct bench_device *d,
                                          struct vkmoe_err *err)
{
    const uint32_t index = gpu_device_info(d->dev)->index;
    struct run_tuned t;

    run_tuned_read(&t, d->inst, index);
    snprintf(t.off, sizeof(t.off), "%s", result->off);
    return run_tuned_write(&t, d->inst, index, err);
}
