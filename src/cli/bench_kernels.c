/* vkmoe bench kernels: one line per kernel and shape, for people, or as csv or JSON. */
#include <string.h>

#include "bench/kernels.h"
#include "cli/bench_device.h"
#include "cli/cli.h"
#include "core/os.h"

struct printer {
    const char *format;
    uint32_t n;
    const char *shape; /* of the last row */
};

/* Memory or arithmetic, whichever the kernel is closer to. */
static bool by_flops(const struct bench_kernel_row *r)
{
    return r->flops_share > r->bytes_share;
}

static double gflops(const struct bench_kernel_row *r)
{
    return r->flops / r->seconds / 1e9;
}

static double gbs(const struct bench_kernel_row *r)
{
    return r->bytes / r->seconds / 1e9;
}

static void print_md(struct printer *p, const struct bench_kernel_row *r)
{
    if (!p->shape || strcmp(p->shape, r->shape) != 0)
        printf("%s### %s\n\n| kernel | format | sizes | us | GB/s | GFLOP/s | share of peak |\n"
               "|---|---|---|--:|--:|--:|--:|\n",
               p->shape ? "\n" : "", r->shape);
    printf("| %s | %s | %s | %.1f | %.2f | ", r->kernel, r->format, r->what, r->seconds * 1e6, gbs(r));
    if (r->flops > 0)
        printf("%.1f | ", gflops(r));
    else
        printf("- | ");
    printf("%.0f %% %s |\n", 100 * (by_flops(r) ? r->flops_share : r->bytes_share),
           by_flops(r) ? "f32" : "read");
}

static void print_text(const struct bench_kernel_row *r)
{
    char name[160];

    snprintf(name, sizeof(name), "%s(%s%s%s, %s)", r->kernel, r->shape, r->format[0] ? ", " : "", r->format,
             r->what);
    printf("%-72s %6u runs %10.1f us/run %8.2f GB/s", name, r->runs, r->seconds * 1e6, gbs(r));
    if (r->flops > 0)
        printf(" %8.1f GFLOP/s", gflops(r));
    printf(" %4.0f %% of %s\n", 100 * (by_flops(r) ? r->flops_share : r->bytes_share),
           by_flops(r) ? "f32" : "read");
}

static void print_json(const struct printer *p, const struct bench_kernel_row *r)
{
    printf("%s{\"kernel\":\"%s\",\"shape\":\"%s\",\"format\":\"%s\",\"sizes\":\"%s\",\"runs\":%u,\"us\":%.3f,"
           "\"bytes\":%.0f,\"flops\":%.0f,\"gb_per_second\":%.4f,\"gflops\":%.3f,\"share_read\":%.4f,"
           "\"share_f32\":%.4f}",
           p->n ? "," : "", r->kernel, r->shape, r->format, r->what, r->runs, r->seconds * 1e6, r->bytes,
           r->flops, gbs(r), gflops(r), r->bytes_share, r->flops_share);
}

static bool print_row(void *user, const struct bench_kernel_row *r)
{
    struct printer *p = user;

    if (!strcmp(p->format, "md"))
        print_md(p, r);
    else if (!strcmp(p->format, "csv"))
        printf("%s,%s,%s,\"%s\",%u,%.3f,%.0f,%.0f,%.4f,%.3f,%.4f,%.4f\n", r->kernel, r->shape, r->format,
               r->what, r->runs, r->seconds * 1e6, r->bytes, r->flops, gbs(r), gflops(r), r->bytes_share,
               r->flops_share);
    else if (!strcmp(p->format, "json"))
        print_json(p, r);
    else
        print_text(r);
    p->shape = r->shape;
    p->n++;
    return cli_stdout_good();
}

static void begin(const struct printer *p, const struct vkmoe_device_info *d, const struct bench_peak *peak)
{
    if (!strcmp(p->format, "csv")) {
        puts("kernel,shape,format,sizes,runs,us,bytes,flops,gb_per_second,gflops,share_read,share_f32");
    } else if (!strcmp(p->format, "json")) {
        printf("{\"device\":");
        cli_json_string(d->name, strlen(d->name));
        printf(",\"driver\":");
        cli_json_string(d->driver, strlen(d->driver));
        printf(",\"driver_version\":");
        cli_json_string(d->driver_version, strlen(d->driver_version));
        printf(",\"read_gb_per_second\":%.4f,\"f32_gops\":%.3f,\"rows\":[", peak->read / 1e9,
               peak->ops[BENCH_RATE_F32] / 1e9);
    } else {
        printf("%s, %s %s: reads %.2f GB/s, f32 %.1f GFLOP/s\n\n", d->name, d->driver, d->driver_version,
               peak->read / 1e9, peak->ops[BENCH_RATE_F32] / 1e9);
    }
}

static bool is_format(const char *name)
{
    return !strcmp(name, "md") || !strcmp(name, "csv") || !strcmp(name, "json") || !strcmp(name, "text");
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    static const enum mdl_type all[] = {
#define MDL_X(id, value, name, elems, bytes, file) id,
        MDL_TYPE_LIST(MDL_X)
#undef MDL_X
    };
    struct printer printer = {.format = "text"};
    struct bench_device_params dp = {0};
    enum mdl_type type = MDL_Q4_0;
    struct bench_kernels_params p = {
        .types = &type, .n_types = 1, .budget = 0.3, .row = print_row, .user = &printer};
    const char *shape = NULL, *type_name = "q4_0";
    const struct cli_opt opts[] = {
        {"--filter", CLI_STR, &p.filter, "PARTS", "only kernels with one of these parts, as matvec,expert", 0,
         0},
        {"--shape", CLI_STR, &shape, "NAME", "emo, olmoe, qwen3-30b or nano (default: the first three)", 0,
         0},
        {"--type", CLI_STR, &type_name, "T", "format of the weights (default q4_0), or all", 0, 0},
        {"-o|--format", CLI_STR, &printer.format, "FORMAT", "text (default), md, csv or json", 0, 0},
        {"--variants", CLI_STR, &dp.variants, "LIST", "as rows=4,lanes=64 (docs/DEVICES.md)", 0, 0},
        CLI_BENCH_DEVICE_OPTS(dp),
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    struct bench_device d = {0};
    struct vkmoe_err err = {0};
    enum vkmoe_status st;
    struct bench_peak peak;
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    if (!is_format(printer.format))
        return cli_usage(cmd, "-o takes text, md, csv or json, not '%s'", printer.format);
    if (shape && !(p.shape = bench_shape_find(shape)))
        return cli_usage(cmd, "--shape takes emo, olmoe, qwen3-30b or nano, not '%s'", shape);
    if (!strcmp(type_name, "all")) {
        p.types = all;
        p.n_types = COR_COUNT(all);
    } else if (!cli_parse_type(cmd, type_name, &type)) {
        return CLI_USAGE;
    }
    cor_catch_interrupt();
    TRY(bench_device_open(&d, &dp, &err));
    p.variants = d.variants;
    TRY(bench_peak(&peak, &d, &err));
    begin(&printer, bench_device_info(&d), &peak);
    TRY(bench_kernels(&d, &p, &peak, &err));
    if (!strcmp(printer.format, "json"))
        printf("]}\n");
done:
    bench_device_close(&d);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_bench_kernels = {
    .name = "bench kernels",
    .summary =
        "the time of every kernel at the shapes of EMO, OLMoE and Qwen3-30B-A3B, with bytes and operations "
        "per second and the share of what `vkmoe bench peak` finds",
    .synopsis = "[--filter PARTS] [--shape NAME] [--type T] [-o text|md|csv|json]",
    .example = "  vkmoe bench kernels --filter matvec --shape emo\n"
               "  vkmoe bench kernels --type all -o csv\n",
    .run = run,
};
