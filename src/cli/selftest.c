/* vkmoe selftest: every kernel against plain C on this device. */
#include <string.h>

#include "bench/selftest.h"
#include "cli/bench_device.h"
#include "cli/cli.h"
#include "core/os.h"

struct report {
    bool json;
    uint32_t n;
    struct cli_progress bar;
};

static void put(const char *key, const char *text, const char *end)
{
    printf("\"%s\":", key);
    cli_json_string(text, strlen(text));
    printf("%s", end);
}

static void finding(void *user, const struct bench_finding *f)
{
    struct report *r = user;
    const struct bench_miss *m = f->miss;
    char where[48];

    if (m->element == SIZE_MAX)
        snprintf(where, sizeof(where), "buffer %u", m->buf);
    else
        snprintf(where, sizeof(where), "buffer %u, element %zu", m->buf, m->element);
    cli_progress_end(&r->bar);
    if (!r->json) {
        printf("wrong: %s%s%s (%s: %s): %s: %s, expected %s\n", f->kernel, f->format[0] ? ", " : "",
               f->format, f->shape, f->sizes, where, m->got, m->expected);
        return;
    }
    printf("%s{", r->n++ ? "," : "");
    put("kernel", f->kernel, ",");
    put("format", f->format, ",");
    put("shape", f->shape, ",");
    put("sizes", f->sizes, ",");
    put("where", where, ",");
    put("got", m->got, ",");
    put("expected", m->expected, "}");
}

static void progress(void *user, uint64_t done, uint64_t total)
{
    struct report *r = user;

    cli_progress_step(&r->bar, done, total);
}

static void begin(const struct report *r, const struct vkmoe_device_info *d)
{
    if (!r->json) {
        printf("%s, %s %s\n", d->name, d->driver, d->driver_version);
        return;
    }
    putchar('{');
    put("device", d->name, ",");
    put("driver", d->driver, ",");
    put("driver_version", d->driver_version, ",\"wrong\":[");
}

/* remembered: another shader or a clamped device says nothing of this one. */
static void end(const struct report *r, const struct bench_selftest *s, bool remembered)
{
    if (r->json) {
        printf("],\"kernels\":%u,\"kernels_wrong\":%u,\"kernels_not_here\":%u,\"kernels_left\":%u,"
               "\"kernels_partly\":%u,\"cases\":%u,\"seconds\":%.2f,"
               "\"base_wrong\":%s,",
               s->n_kernels, s->n_wrong, s->n_unusable, s->n_left, s->n_partly, s->n_cases, s->seconds,
               s->base_wrong ? "true" : "false");
        printf("\"remembered\":%s,", remembered ? "true" : "false");
        put("off", s->off, "}\n");
        return;
    }
    printf("%u kernels, %u cases in %.1f s: %s", s->n_kernels, s->n_cases, s->seconds,
           s->n_wrong ? "" : "all good\n");
    if (s->n_left || s->n_partly)
        printf("this driver compiles too slowly: %u kernels not tested, %u with their first case only (many "
               "drivers keep what they compiled: run again)\n",
               s->n_left, s->n_partly);
    if (s->n_wrong)
        printf("%u wrong\n", s->n_wrong);
    if (s->off[0])
        printf("%s: %s\n",
               remembered ? "switched off from now on, on this device with this driver"
                          : "would be switched off",
               s->off);
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct report r = {.bar = {.what = "testing", .unit = "kernels"}};
    struct bench_selftest_params p = {.finding = finding, .progress = progress, .user = &r};
    struct bench_device_params dp = {0};
    const struct cli_opt opts[] = {
        {"--json", CLI_FLAG, &r.json, NULL, "one JSON object on standard output", 0, 0},
        {"--filter", CLI_STR, &p.only, "PARTS", "only kernels with one of these parts, as matvec,expert", 0,
         0},
        CLI_BENCH_DEVICE_OPTS(dp),
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    struct bench_device d = {0};
    struct vkmoe_err err = {0};
    struct bench_selftest s;
    enum vkmoe_status st;
    bool remember;
    char cache[4096];
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    cor_cache_dir(cache, sizeof(cache));
    dp.cache_dir = cache[0] ? cache : NULL;
    TRY(bench_device_open(&d, &dp, &err));
    begin(&r, bench_device_info(&d));
    TRY(bench_selftest(&s, &d, &p, &err));
    cli_progress_end(&r.bar);
    remember = !dp.shader_dir && !dp.caps && !p.only && !s.base_wrong;
    if (remember)
        TRY(bench_selftest_remember(&s, &d, &err));
    end(&r, &s, remember);
    if (s.base_wrong)
        st = cor_fail(
            &err, VKMOE_ERR_UNSUPPORTED,
            "%s: the driver miscomputes kernels that every device needs: nothing can be switched off "
            "instead",
            bench_device_info(&d)->name);
done:
    cli_progress_end(&r.bar);
    bench_device_close(&d);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_selftest = {
    .name = "selftest",
    .summary = "check every kernel against plain C on the device, and switch off what its driver miscomputes",
    .synopsis = "[-dev NAME] [--json]",
    .example = "  vkmoe selftest -dev 0\n  vkmoe selftest --json\n",
    .run = run,
};
