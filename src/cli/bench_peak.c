/* vkmoe bench peak: what the device can do, as a table or JSON. */
#include <string.h>

#include "bench/peak.h"
#include "cli/bench_device.h"
#include "cli/cli.h"
#include "core/os.h"

struct options {
    struct bench_device_params p;
    const char *format;
};

#define GB(v) ((v) / 1e9)

static void print_md(const struct vkmoe_device_info *d, const struct bench_peak *p)
{
    printf("| %s, %s %s | |\n|---|--:|\n", d->name, d->driver, d->driver_version);
    printf("| read by a shader, GB/s | %.2f |\n", GB(p->read));
    printf("| word by word | %.2f |\n", GB(p->read_words));
    printf("| four words at a time | %.2f |\n", GB(p->read_vectors));
    printf("| copied on the device, GB/s (each byte once) | %.2f |\n", GB(p->copy));
    printf("| host to device, GB/s | %.2f |\n", GB(p->to_device));
    printf("| device to host, GB/s | %.2f |\n", GB(p->to_host));
    for (int r = 0; r < BENCH_RATES; r++)
        if (p->why[r])
            printf("| %s, 10^9 operations/s | - (%s) |\n", bench_rate_name((enum bench_rate)r), p->why[r]);
        else
            printf("| %s, 10^9 operations/s | %.1f |\n", bench_rate_name((enum bench_rate)r),
                   p->ops[r] / 1e9);
    printf("| submit and wait, median, us | %.1f |\n", p->submit_median * 1e6);
    printf("| submit and wait, 99 %% within, us | %.1f |\n", p->submit_99 * 1e6);
}

static void print_text(const char *key, const char *text)
{
    printf("\"%s\":", key);
    cli_json_string(text, strlen(text));
    putchar(',');
}

static void print_json(const struct vkmoe_device_info *d, const struct bench_peak *p)
{
    putchar('{');
    print_text("device", d->name);
    print_text("driver", d->driver);
    print_text("driver_version", d->driver_version);
    printf("\"buffer_bytes\":%llu,", (unsigned long long)p->buffer_bytes);
    printf("\"read_gb_per_second\":%.4f,\"read_words_gb_per_second\":%.4f,", GB(p->read), GB(p->read_words));
    printf("\"read_vectors_gb_per_second\":%.4f,\"copy_gb_per_second\":%.4f,", GB(p->read_vectors),
           GB(p->copy));
    printf("\"to_device_gb_per_second\":%.4f,\"to_host_gb_per_second\":%.4f,\"rates\":{", GB(p->to_device),
           GB(p->to_host));
    for (int r = 0; r < BENCH_RATES; r++) {
        printf("%s\"%s\":{", r ? "," : "", bench_rate_name((enum bench_rate)r));
        if (p->why[r]) {
            printf("\"gops\":null,\"why\":");
            cli_json_string(p->why[r], strlen(p->why[r]));
        } else {
            printf("\"gops\":%.3f,\"why\":null", p->ops[r] / 1e9);
        }
        putchar('}');
    }
    printf("},\"submit_median_us\":%.2f,\"submit_99_us\":%.2f}\n", p->submit_median * 1e6,
           p->submit_99 * 1e6);
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct options o = {.format = "md"};
    const struct cli_opt opts[] = {
        {"-o|--format", CLI_STR, &o.format, "FORMAT", "md (default) or json", 0, 0},
        CLI_BENCH_DEVICE_OPTS(o.p),
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    struct bench_device d = {0};
    struct vkmoe_err err = {0};
    enum vkmoe_status st;
    struct bench_peak peak;
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    if (strcmp(o.format, "md") != 0 && strcmp(o.format, "json") != 0)
        return cli_usage(cmd, "-o takes md or json, not '%s'", o.format);
    TRY(bench_device_open(&d, &o.p, &err));
    TRY(bench_peak(&peak, &d, &err));
    if (!strcmp(o.format, "json"))
        print_json(bench_device_info(&d), &peak);
    else
        print_md(bench_device_info(&d), &peak);
done:
    bench_device_close(&d);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_bench_peak = {
    .name = "bench peak",
    .summary = "what the device can do: reading and copying in GB/s, products and sums per second and type, "
               "transfers, and the cost of a submit; the best of several rounds",
    .synopsis = "[-dev NAME] [-o md|json]",
    .example = "  vkmoe bench peak\n  vkmoe bench peak -dev radeon -o json\n",
    .run = run,
};
