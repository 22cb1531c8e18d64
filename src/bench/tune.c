#include "bench/tune.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "bench/runner.h"
#include "core/os.h"
#include "gpu/commands.h"
#include "model/model.h"
#include "run/tuned.h"

#define PAYS       0.97 /* of the default's time: less is noise */
#define BUDGET     0.08 /* seconds for the rounds of one case */
#define HOPELESS   1.6  /* times the default: not measured again */
#define TOKENS     32u  /* of a chunk: one tile */
#define ROUNDS     2
#define MAX_VALUES 8

/* ---- what is measured for a field
 * --------------------------------------------------------------------------- */

/* Kernels whose time a field decides; names without what follows from the variants. */
enum group { GROUP_ROWS, GROUP_TILES, GROUP_SMALL, GROUP_DENSE, GROUPS };

struct part {
    enum group group;
    const char *kernel;
    uint32_t use;
    const char *by; /* what its name ends with: "core", "dense", "tile" or "sg" (where usable); "": nothing */
    bool array;     /* and _arr where the device can */
};

static const struct part parts[] = {
    {GROUP_ROWS, "matvec", 0, "core", false},        {GROUP_ROWS, "matvec", 1, "core", false},
    {GROUP_ROWS, "expert_gate_up", 0, "core", true}, {GROUP_ROWS, "expert_down", 0, "core", true},
    {GROUP_TILES, "matmul", 1, "tile", false},       {GROUP_TILES, "expert_down_tile", 0, "tile", true},
    {GROUP_SMALL, "rmsnorm", 0, "sg", false},        {GROUP_SMALL, "rope_kv", 0, "", false},
    {GROUP_SMALL, "attn_one", 0, "sg", false},       {GROUP_SMALL, "router", 0, "", false},
    {GROUP_SMALL, "combine", 0, "", false},          {GROUP_DENSE, "matvec", 0, "dense", false},
    {GROUP_DENSE, "matvec", 1, "dense", false},
};

struct field {
    const char *name;
    size_t at;
    enum group group;
    uint32_t values[MAX_VALUES], n_values;
};

/* A field of RUN_VARIANT_LIST without a group does not compile. */
#define GROUP_OF_core   GROUP_ROWS
#define GROUP_OF_rows   GROUP_ROWS
#define GROUP_OF_tile   GROUP_TILES
#define GROUP_OF_lanes  GROUP_SMALL
#define GROUP_OF_texels GROUP_DENSE

#define RUN_X(field, ...) static const uint32_t values_##field[] = __VA_ARGS__;
RUN_VARIANT_LIST(RUN_X)
#undef RUN_X

static uint32_t list_fields(struct field *out)
{
    uint32_t n = 0;

#define RUN_X(field, ...)                                          \
    out[n].name = #field;                                          \
    out[n].at = offsetof(struct run_variants, field);              \
    out[n].group = GROUP_OF_##field;                               \
    out[n].n_values = (uint32_t)COR_COUNT(values_##field);         \
    memcpy(out[n].values, values_##field, sizeof(values_##field)); \
    n++;
    RUN_VARIANT_LIST(RUN_X)
#undef RUN_X
    return n;
}

#define RUN_X(field, ...) +1
enum { FIELDS = 0 RUN_VARIANT_LIST(RUN_X) };
#undef RUN_X

static uint32_t *value_of(struct run_variants *v, const struct field *f)
{
    return (uint32_t *)(void *)((char *)v + f->at);
}

/* ---- time
 * --------------------------------------------------------------------------------------------------- */

struct tune {
    struct bench_runner runner;
    const struct bench_tune_params *p;
    struct bench_tune *r;
    uint64_t start;
};

static double elapsed(const struct tune *t)
{
    return (double)(cor_now_ns() - t->start) / 1e9;
}

static bool find_kernel(const char *name, enum gpu_kernel *k)
{
    for (int i = 0; i < GPU_KERNEL_COUNT; i++)
        if (!strcmp(gpu_kernel_info((enum gpu_kernel)i)->name, name)) {
            *k = (enum gpu_kernel)i;
            return true;
        }
    return false;
}

/* The module that run/layer.c takes with these variants; false: the device cannot. */
static bool kernel_of(const struct tune *t, const struct part *part, const struct run_variants *v,
                      enum gpu_kernel *k)
{
    static const char *const cores[RUN_CORES] = {"", "_sg", "_ln"}, *const tiles[RUN_TILES] = {"", "_ln"};
    const char *array = part->array && gpu_device_caps(t->runner.dev)->array ? "_arr" : "";
    const char *by = !strcmp(part->by, "core")   ? cores[v->core]
                     : !strcmp(part->by, "tile") ? tiles[v->tile]
                     : !strcmp(part->by, "dense")
                         ? v->core == RUN_CORE_LANES && v->texels ? "_tx" : cores[v->core]
                         : "";
    char name[64];

    if (!strcmp(part->by, "sg")) {
        snprintf(name, sizeof(name), "%s_sg%s", part->kernel, array);
        if (find_kernel(name, k) && gpu_kernel_usable(t->runner.dev, *k))
            return true;
    }
    snprintf(name, sizeof(name), "%s%s%s", part->kernel, by, array);
    return find_kernel(name, k) && gpu_kernel_usable(t->runner.dev, *k);
}

/* Seconds of the group's kernels at one shape. */
static enum vkmoe_status group_seconds(struct tune *t, enum group group, uint32_t shape,
                                       const struct run_variants *v, double *seconds, struct vkmoe_err *err)
{
    struct bench_shape s = t->p->shapes[shape];
    struct bench_env env = {.shape = &s,
                            .type = t->p->types[shape],
                            .caps = gpu_device_caps(t->runner.dev),
                            .variants = *v,
                            .seed = 1};
    enum vkmoe_status st = VKMOE_OK;
    struct bench_case c = {0};
    struct bench_speed speed;
    enum gpu_kernel k;
    bool made;

    *seconds = 0;
    s.n_tokens = TOKENS;
    if (group == GROUP_TILES && s.n_experts > s.k_used + 1) /* tiles that are nearly full */
        s.n_experts = s.k_used + 1;
    for (size_t i = 0; i < COR_COUNT(parts); i++) {
        if (parts[i].group != group || !kernel_of(t, &parts[i], v, &k))
            continue;
        env.type =
            strstr(parts[i].kernel, "attn") || strstr(parts[i].kernel, "rope") ? MDL_F16 : t->p->types[shape];
        TRY(bench_case_make(&c, k, parts[i].use, &env, &made, err));
        if (made)
            TRY(bench_run_speed(&t->runner, &c, BUDGET, &speed, err));
        *seconds += made ? speed.seconds : 0;
        bench_case_free(&c);
    }
done:
    bench_case_free(&c);
    return st;
}

/* Seconds per shape, the least of what was measured before and now. */
static enum vkmoe_status measure(struct tune *t, enum group group, const struct run_variants *v, double *best,
                                 struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t s = 0; s < t->p->n_shapes; s++) {
        double now;

        TRY(group_seconds(t, group, s, v, &now, err));
        if (best[s] <= 0 || now < best[s])
            best[s] = now;
    }
done:
    return st;
}

static double share_of(const struct tune *t, const double *times, const double *base)
{
    double sum = 0;

    for (uint32_t s = 0; s < t->p->n_shapes; s++)
        sum += base[s] > 0 ? times[s] / base[s] : 1;
    return sum / t->p->n_shapes;
}

/* ---- search
 * ------------------------------------------------------------------------------------------------- */

struct candidate {
    struct run_variants v;
    double times[BENCH_TUNE_SHAPES], share;
};

static void tell(const struct tune *t, const struct field *f, const struct candidate *c, bool chosen)
{
    char all[192], *at, *end, name[64];
    struct bench_tune_row row = {.share = c->share, .chosen = chosen};

    if (!t->p->row)
        return;
    run_variants_text(&c->v, all, sizeof(all));
    snprintf(name, sizeof(name), "%s=", f->name);
    at = strstr(all, name);
    while (at && at > all && at[-1] != ',')
        at = strstr(at + 1, name);
    end = at ? strchr(at, ',') : NULL;
    if (end)
        *end = '\0';
    row.variant = at ? at : f->name;
    t->p->row(t->p->user, &row);
}

/* Values of one field that the device can and that make another variant than *v. */
static uint32_t list_candidates(const struct tune *t, const struct field *f, const struct run_variants *v,
                                struct candidate *list)
{
    uint32_t n = 1;

    memset(list, 0, (MAX_VALUES + 1) * sizeof(*list));
    list[0].v = *v;
    for (uint32_t i = 0; i < f->n_values; i++) {
        struct run_variants other = *v;

        *value_of(&other, f) = f->values[i];
        if (memcmp(&other, v, sizeof(other)) != 0 &&
            run_variants_usable(&other, gpu_device_caps(t->runner.dev)))
            list[n++].v = other;
    }
    return n;
}

/* The first candidate is what stands; the others must beat it. Alternates, so that a machine that is busy for
 * a while is busy for all. */
static enum vkmoe_status tune_field(struct tune *t, const struct field *f, struct run_variants *v,
                                    struct vkmoe_err *err)
{
    struct candidate list[MAX_VALUES + 1];
    const uint32_t n = list_candidates(t, f, v, list);
    enum vkmoe_status st = VKMOE_OK;
    uint32_t best = 0;

    for (int round = 0; round < ROUNDS; round++)
        for (uint32_t i = 0; i < n; i++) {
            if (elapsed(t) > t->p->seconds || cor_interrupted()) {
                t->r->complete = false;
                goto done;
            }
            if (list[i].share > HOPELESS)
                continue;
            TRY(measure(t, f->group, &list[i].v, list[i].times, err));
            list[i].share = share_of(t, list[i].times, list[0].times);
        }
    for (uint32_t i = 1; i < n; i++) {
        list[i].share = share_of(t, list[i].times, list[0].times);
        if (list[i].share < (best ? list[best].share : PAYS))
            best = i;
    }
    *v = list[best].v;
    for (uint32_t i = 0; i < n; i++)
        tell(t, f, &list[i], i == best);
    t->r->measured += n;
done:
    return st;
}

enum vkmoe_status bench_tune(struct bench_tune *result, struct bench_device *d,
                             const struct bench_tune_params *p, struct vkmoe_err *err)
{
    struct tune t = {.p = p, .r = result, .start = cor_now_ns()};
    struct field fields[FIELDS];
    struct run_variants base;
    enum vkmoe_status st = VKMOE_OK;
    const uint32_t n = list_fields(fields);

    memset(result, 0, sizeof(*result));
    result->complete = true;
    run_variants_default(&base, gpu_device_caps(d->dev));
    result->best = base;
    TRY(bench_runner_open(&t.runner, d->dev, err));
    for (uint32_t i = 0; i < n; i++) {
        if (!strcmp(fields[i].name, result->best.core == RUN_CORE_LANES ? "rows" : "texels"))
            continue; /* the core has rows of its own, or none by texels */
        TRY(tune_field(&t, &fields[i], &result->best, err));
    }
    result->changed = memcmp(&result->best, &base, sizeof(base)) != 0;
    result->seconds = elapsed(&t);
done:
    bench_runner_close(&t.runner);
    return st;
}

/* ---- keeping
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status keep(const struct bench_device *d, const char *variants, struct vkmoe_err *err)
{
    const uint32_t index = gpu_device_info(d->dev)->index;
    struct run_tuned t;

    run_tuned_read(&t, d->inst, index);
    snprintf(t.variants, sizeof(t.variants), "%s", variants);
    return run_tuned_write(&t, d->inst, index, err);
}

enum vkmoe_status bench_tune_remember(const struct bench_tune *result, const struct bench_device *d,
                                      struct vkmoe_err *err)
{
    char text[192];

    return keep(d, result->changed ? run_variants_text(&result->best, text, sizeof(text)) : "", err);
}

enum vkmoe_status bench_tune_reset(const struct bench_device *d, struct vkmoe_err *err)
{
    return keep(d, "", err);
}

enum vkmoe_status bench_tune_shape(struct bench_shape *shape, enum mdl_type *type, const char *path,
                                   struct vkmoe_err *err)
{
    struct mdl_model *m = NULL;
    enum vkmoe_status st = VKMOE_OK;

    TRY(mdl_open(&m, path, err));
    *shape = (struct bench_shape){.name = "model",
                                  .dim = m->config.dim,
                                  .n_heads = m->config.n_heads,
                                  .n_kv = m->config.n_kv_heads,
                                  .head_dim = m->config.head_dim,
                                  .ff = m->config.n_experts ? m->config.ff_expert : m->config.ff_dense,
                                  .n_experts = m->config.n_experts ? m->config.n_experts : 1,
                                  .k_used = m->config.n_experts ? m->config.n_experts_used : 1,
                                  .n_shared = m->config.n_shared,
                                  .vocab = m->config.vocab_size,
                                  .n_tokens = TOKENS,
                                  .context = 1024};
    *type = (enum mdl_type)mdl_main_matrix(m)->type;
done:
    mdl_close(m);
    return st;
}
