/* vkmoe devices: every Vulkan device, what it can do, which kernels it will use, or why it is refused.
 * The facts are gpu/'s, as the JSON of the public API; this file only lays them out. */
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "cli/cli.h"

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);

    return cJSON_IsNumber(v) ? v->valuedouble : 0;
}

static bool is_true(const cJSON *o, const char *key)
{
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, key));
}

static void print_bytes(double bytes)
{
    const double mib = bytes / 1048576;

    if (mib >= 10240)
        printf("%.1f GiB", mib / 1024);
    else
        printf("%.0f MiB", mib);
}

/* The names in an object of booleans that are on, or off. */
static int print_flags(const cJSON *o, const char *key, bool on)
{
    const cJSON *v;
    int n = 0;

    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(o, key)) if (cJSON_IsTrue(v) == on)
        printf("%s%s", n++ ? ", " : "", v->string);
    return n;
}

/* Names, wrapped at 100 columns under the first one. */
static void print_list(const cJSON *list, int indent)
{
    const cJSON *v;
    int column = indent;

    cJSON_ArrayForEach(v, list)
    {
        const int n = (int)strlen(v->valuestring);

        if (column > indent && column + n > 100) {
            printf("\n%*s", indent, "");
            column = indent;
        }
        printf("%s%s", column > indent ? " " : "", v->valuestring);
        column += n + 1;
    }
    printf("\n");
}

static void print_memory(const cJSON *o)
{
    const cJSON *h, *heaps = cJSON_GetObjectItemCaseSensitive(o, "heaps");
    int n = 0;

    printf("  memory    ");
    cJSON_ArrayForEach(h, heaps)
    {
        printf("%s", n++ ? "; " : "");
        print_bytes(number(h, "bytes"));
        printf(is_true(h, "device_local") ? " device-local" : " host");
        if (cJSON_GetObjectItemCaseSensitive(h, "free_bytes")) {
            printf(", free ");
            print_bytes(number(h, "free_bytes"));
        }
    }
    printf("%s\n", n ? is_true(cJSON_GetObjectItemCaseSensitive(o, "fast_paths"), "memory_budget")
                           ? ""
                           : "; free bytes unknown"
                     : "none");
}

static void print_device(const struct vkmoe_device_info *d, const cJSON *o, bool best)
{
    const cJSON *lim = cJSON_GetObjectItemCaseSensitive(o, "limits");
    const cJSON *kernels = cJSON_GetObjectItemCaseSensitive(o, "kernels");

    printf("%u: %s%s\n", d->index, d->name, best ? " (default)" : "");
    printf("  driver    %s, %s; Vulkan %s\n", d->driver, d->driver_version, d->api_version);
    printf("  type      %s\n", d->type);
    print_memory(o);
    printf("  limits    %u storage buffers of ", (unsigned)number(lim, "storage_buffers"));
    print_bytes(number(lim, "storage_range_bytes"));
    printf(", workgroups of %u, %u bytes of shared memory, subgroups of %u\n",
           (unsigned)number(lim, "workgroup"), (unsigned)number(lim, "shared_memory_bytes"),
           d->subgroup_size);
    printf("  base      ");
    print_flags(o, "base", true);
    printf("\n  fast      ");
    if (!print_flags(o, "fast_paths", true))
        printf("none");
    printf("\n  not here  ");
    if (!print_flags(o, "fast_paths", false))
        printf("-");
    printf("\n");
    if (!d->usable) {
        printf("  refused   %s\n", d->refused);
        return;
    }
    printf("  kernels   ");
    print_list(kernels, 12);
}

static enum vkmoe_status print_all(vkmoe_context *ctx, bool json, struct vkmoe_err *err)
{
    const uint32_t n = vkmoe_device_count(ctx);
    enum vkmoe_status st = VKMOE_OK;
    vkmoe_device *dev = NULL;
    uint32_t best = UINT32_MAX;
    char *text = NULL;
    cJSON *o = NULL;

    if (!json && vkmoe_device_open(&dev, ctx, NULL, NULL) == VKMOE_OK)
        best = vkmoe_device_facts(dev)->index;
    if (json)
        printf("{\"devices\":[");
    for (uint32_t i = 0; i < n; i++) {
        TRY(vkmoe_device_json(ctx, i, &text, err));
        if (json) {
            printf("%s%s", i ? "," : "", text);
        } else {
            o = cJSON_Parse(text);
            if (!o)
                FAIL(VKMOE_ERR_MEMORY, "device %u: no memory for its description", i);
            print_device(vkmoe_device_get(ctx, i), o, i == best);
        }
        cJSON_Delete(o);
        vkmoe_free(text);
        o = NULL;
        text = NULL;
    }
    if (json)
        printf("]}\n");
done:
    cJSON_Delete(o);
    vkmoe_free(text);
    vkmoe_device_close(dev);
    return st;
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    const struct vkmoe_params params = {.log = cli_log};
    vkmoe_context *ctx = NULL;
    struct vkmoe_err err;
    enum vkmoe_status st;
    bool json = false;
    const struct cli_opt opts[] = {
        {"--json", CLI_FLAG, &json, NULL, "one JSON object on standard output (docs/DEVICES.md)", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    int status = cli_parse(cmd, opts, argc, argv, NULL);

    if (status >= 0)
        return status;
    st = vkmoe_open(&ctx, &params, &err);
    if (st == VKMOE_OK)
        st = print_all(ctx, json, &err);
    vkmoe_close(ctx);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_devices = {
    .name = "devices",
    .summary = "list Vulkan devices and what vkmoe will use of them",
    .synopsis = "[--json]",
    .example = "  vkmoe devices\n  vkmoe devices --json\n",
    .run = run,
};
