/* vkmoe devices: every Vulkan device, what it can do, which kernels it will use, or why it is refused.
 * The facts are gpu/'s, as the JSON of the public API; this file only lays them out. */
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "cli/cli.h"
#include "core/os.h"

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);

    return cJSON_IsNumber(v) ? v->valuedouble : 0;
}

static bool is_true(const cJSON *o, const char *key)
{
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, key));
}

/* "" where there is none. */
static const char *string(const cJSON *o, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, key));

    return text ? text : "";
}

/* "512 MiB" into dst of 32 bytes; returns dst. */
static const char *show_bytes(char *dst, double bytes)
{
    const double mib = bytes / 1048576;

    if (mib >= 10240)
        snprintf(dst, 32, "%.1f GiB", mib / 1024);
    else
        snprintf(dst, 32, "%.0f MiB", mib);
    return dst;
}

/* "  label     text", further lines under the text. */
static void print_row(const char *label, const char *text)
{
    printf("  %-9s ", label);
    cli_wrap(stdout, text, 12, 12);
}

/* The names in an object of booleans that are on, or off; `none` where there is not one. */
static void print_flags(const char *label, const cJSON *o, const char *key, bool on, const char *none)
{
    char text[1024] = "";
    const cJSON *v;
    size_t n = 0;

    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(o, key)) if (cJSON_IsTrue(v) == on &&
                                                                        n < sizeof(text)) n +=
        (size_t)snprintf(text + n, sizeof(text) - n, "%s%s", n ? ", " : "", v->string);
    print_row(label, n ? text : none);
}

static void print_names(const char *label, const cJSON *list)
{
    char text[2048] = "";
    const cJSON *v;
    size_t n = 0;

    cJSON_ArrayForEach(v, list) if (n < sizeof(text)) n +=
        (size_t)snprintf(text + n, sizeof(text) - n, "%s%s", n ? " " : "", v->valuestring);
    print_row(label, text);
}

static void print_memory(const cJSON *o)
{
    const cJSON *h, *heaps = cJSON_GetObjectItemCaseSensitive(o, "heaps");
    char text[1024] = "none", size[32], left[32];
    size_t n = 0;

    cJSON_ArrayForEach(h, heaps)
    {
        const bool known = cJSON_GetObjectItemCaseSensitive(h, "free_bytes") != NULL;

        if (n < sizeof(text))
            n += (size_t)snprintf(
                text + n, sizeof(text) - n, "%s%s %s%s%s", n ? "; " : "",
                show_bytes(size, number(h, "bytes")), is_true(h, "device_local") ? "device-local" : "host",
                known ? ", free " : "", known ? show_bytes(left, number(h, "free_bytes")) : "");
    }
    if (n && n < sizeof(text) && !is_true(cJSON_GetObjectItemCaseSensitive(o, "fast_paths"), "memory_budget"))
        snprintf(text + n, sizeof(text) - n, "; free bytes unknown");
    print_row("memory", text);
}

static void print_device(const struct vkmoe_device_info *d, const cJSON *o, bool best)
{
    const cJSON *lim = cJSON_GetObjectItemCaseSensitive(o, "limits");
    char text[1024], size[32];

    printf("%u: %s%s\n", d->index, d->name, best ? " (default)" : "");
    snprintf(text, sizeof(text), "%s, %s; Vulkan %s", d->driver, d->driver_version, d->api_version);
    print_row("driver", text);
    print_row("type", d->type);
    print_memory(o);
    snprintf(text, sizeof(text),
             "%u storage buffers of %s, workgroups of %u, %u bytes of shared memory, subgroups of %u",
             (unsigned)number(lim, "storage_buffers"), show_bytes(size, number(lim, "storage_range_bytes")),
             (unsigned)number(lim, "workgroup"), (unsigned)number(lim, "shared_memory_bytes"),
             d->subgroup_size);
    print_row("limits", text);
    print_flags("base", o, "base", true, "none");
    print_flags("fast", o, "fast_paths", true, "none");
    print_flags("not here", o, "fast_paths", false, "-");
    if (d->usable) {
        print_names("kernels", cJSON_GetObjectItemCaseSensitive(o, "kernels"));
        snprintf(text, sizeof(text), "%s (%s)", string(o, "variants"), string(o, "variants_from"));
        print_row("variants", text);
        if (*string(o, "selftest_off")) {
            snprintf(text, sizeof(text), "%s: vkmoe selftest found the driver wrong",
                     string(o, "selftest_off"));
            print_row("off", text);
        }
    } else {
        print_row("refused", d->refused);
    }
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
    struct vkmoe_params params = {.log = cli_log};
    char cache[4096];
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
    cor_cache_dir(cache, sizeof(cache));
    params.cache_dir = cache[0] ? cache : NULL;
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
