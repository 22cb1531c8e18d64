/* vkmoe tune: finds the fastest variants of kernels on a device, and keeps them. */
#include <string.h>

#include "bench/tune.h"
#include "cli/cli.h"
#include "core/os.h"

struct options {
    struct bench_device_params dp;
    const char *model;
    bool reset, show, json;
    uint32_t n; /* rows printed */
};

static void print_row(void *user, const struct bench_tune_row *row)
{
    struct options *o = user;

    if (o->json)
        printf("%s{\"variant\":\"%s\",\"share\":%.4f,\"chosen\":%s}", o->n++ ? "," : "", row->variant,
               row->share, row->chosen ? "true" : "false");
    else
        printf("  %-16s %6.2f x%s\n", row->variant, row->share, row->chosen ? "  <" : "");
    fflush(stdout);
}

static void put(const char *key, const char *text, const char *end)
{
    printf("\"%s\":", key);
    cli_json_string(text, strlen(text));
    printf("%s", end);
}

/* Shapes to measure: of -m, else of the bundled model and EMO's. */
static enum vkmoe_status choose_shapes(struct bench_tune_params *p, const struct options *o,
                                       struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char path[4096];

    TRY(cli_model_path(o->model, path, err));
    TRY(bench_tune_shape(&p->shapes[0], &p->types[0], path, err));
    p->n_shapes = 1;
    if (!o->model) {
        p->shapes[1] = *bench_shape(BENCH_EMO);
        p->types[1] = MDL_Q4_0;
        p->n_shapes = 2;
    }
done:
    return st;
}

static enum vkmoe_status tune(struct options *o, struct bench_device *d, struct vkmoe_err *err)
{
    struct bench_tune_params p = {.seconds = 45, .row = print_row, .user = o};
    enum vkmoe_status st = VKMOE_OK;
    struct bench_tune r;
    char text[192];

    TRY(choose_shapes(&p, o, err));
    if (o->json) {
        put("device", bench_device_info(d)->name, ",");
        put("driver_version", bench_device_info(d)->driver_version, ",\"rows\":[");
    } else {
        printf("%s: time of kernels as a share of what the defaults take\n", bench_device_info(d)->name);
    }
    TRY(bench_tune(&r, d, &p, err));
    TRY(bench_tune_remember(&r, d, err));
    run_variants_text(&r.best, text, sizeof(text));
    if (o->json) {
        printf("],");
        put("variants", text, ",");
        printf("\"changed\":%s,\"complete\":%s,\"seconds\":%.2f}\n", r.changed ? "true" : "false",
               r.complete ? "true" : "false", r.seconds);
    } else {
        printf("%s%s, after %.1f s%s\n", text, r.changed ? "" : " (the defaults)", r.seconds,
               r.complete ? "" : "; the time did not suffice for all");
    }
done:
    return st;
}

/* What is kept, and where it comes from. */
static void show(const struct options *o, const struct bench_device *d)
{
    char text[192];

    run_variants_text(&d->variants, text, sizeof(text));
    if (o->json) {
        put("device", bench_device_info(d)->name, ",");
        put("variants", text, ",");
        put("variants_from", d->variants_from, "}\n");
        return;
    }
    printf("%s: %s (%s)\n", bench_device_info(d)->name, text, d->variants_from);
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct options o = {.dp = {.tuned = true}};
    const struct cli_opt opts[] = {
        {"-dev|--device", CLI_STR, &o.dp.device, "NAME", "index or part of a name (default: the best one)", 0,
         0},
        {"-m|--model", CLI_STR, &o.model, "FILE",
         "measure at this model's shapes (default: those of the bundled model and of EMO)", 0, 0},
        {"--show", CLI_FLAG, &o.show, NULL, "only show the variants in use", 0, 0},
        {"--reset", CLI_FLAG, &o.reset, NULL, "forget what was found", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object on standard output", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    struct bench_device d = {0};
    struct vkmoe_err err = {0};
    enum vkmoe_status st;
    char cache[4096];
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    if (o.show && o.reset)
        return cli_usage(cmd, "--show and --reset are two things to do");
    cor_cache_dir(cache, sizeof(cache));
    o.dp.cache_dir = cache[0] ? cache : NULL;
    cor_catch_interrupt();
    TRY(bench_device_open(&d, &o.dp, &err));
    if (o.reset) {
        TRY(bench_tune_reset(&d, &err));
        bench_device_close(&d);
        TRY(bench_device_open(&d, &o.dp, &err));
    }
    if (o.json)
        putchar('{');
    if (o.show || o.reset)
        show(&o, &d);
    else
        TRY(tune(&o, &d, &err));
done:
    bench_device_close(&d);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_tune = {
    .name = "tune",
    .summary = "measure kernel variants on the device, in under a minute, and use the fastest from then on",
    .synopsis = "[-dev NAME] [-m FILE] [--show | --reset] [--json]",
    .example = "  vkmoe tune -dev 0\n  vkmoe tune -m emo.gguf\n  vkmoe tune --show\n",
    .run = run,
};
