/* The facts about a device as one JSON object. Owns the key names (add, never rename). */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gpu/internal.h"

struct text {
    char *p;
    size_t n, size;
    bool failed;
};

static void put(struct text *t, const char *fmt, ...) COR_PRINTF(2, 3);

static void put(struct text *t, const char *fmt, ...)
{
    va_list ap;
    int n;

    if (t->failed)
        return;
    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0 && t->n + (size_t)n + 1 > t->size) {
        size_t size = 2 * (t->n + (size_t)n) + 256;
        char *p = cor_resize(t->p, size, 1);

        if (p) {
            t->p = p;
            t->size = size;
        }
        t->failed = !p;
    }
    if (n < 0 || t->failed) {
        t->failed = true;
        return;
    }
    va_start(ap, fmt);
    vsnprintf(t->p + t->n, t->size - t->n, fmt, ap);
    va_end(ap);
    t->n += (size_t)n;
}

/* Drivers are no trusted source of text: control characters, quotes and bytes past ASCII are escaped one by
 * one. */
static void put_string(struct text *t, const char *s)
{
    put(t, "\"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;

        if (c < 32 || c > 126)
            put(t, "\\u%04x", c);
        else
            put(t, c == '"' || c == '\\' ? "\\%c" : "%c", c);
    }
    put(t, "\"");
}

static void put_key(struct text *t, const char *key, const char *value)
{
    put(t, "\"%s\":", key);
    put_string(t, value);
    put(t, ",");
}

static void put_heaps(struct text *t, const struct gpu_phys *p)
{
    put(t, "\"heaps\":[");
    for (uint32_t i = 0; i < p->memory.memoryHeapCount; i++) {
        const VkMemoryHeap *h = &p->memory.memoryHeaps[i];
        const bool local = (h->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0;

        put(t, "%s{\"bytes\":%" PRIu64 ",\"device_local\":%s", i ? "," : "", (uint64_t)h->size,
            local ? "true" : "false");
        if (i == p->heap && p->caps.budget)
            put(t, ",\"free_bytes\":%" PRIu64, gpu_phys_free_bytes(p));
        put(t, "}");
    }
    put(t, "],");
}

static void put_caps(struct text *t, const struct gpu_phys *p)
{
    const struct gpu_caps *c = &p->caps;
    const struct {
        const char *key;
        bool on;
    } fast[] = {
        {"subgroup", c->subgroup},
        {"rows_on_lanes", c->rows_on_lanes},
        {"texels", c->texels},
        {"f16", c->f16},
        {"dot8", c->dot8},
        {"buffer_device_address", c->bda},
        {"memory_budget", c->budget},
        {"external_host_memory", c->host_import},
        {"transfer_queue", c->transfer_queue},
        {"segment_array", c->array},
        {"unified_memory", c->uma},
        {"coherent", c->coherent},
        {"rounding", c->rounding},
        {"executable_properties", c->exec_props},
    };

    put(t,
        "\"limits\":{\"storage_range_bytes\":%" PRIu64 ",\"allocation_bytes\":%" PRIu64
        ",\"storage_buffers\":%u,",
        c->max_range, c->max_alloc, c->max_buffers);
    put(t, "\"shared_memory_bytes\":%u,\"workgroup\":%u,\"groups\":%u,", c->max_shared, c->max_wg,
        c->max_groups);
    put(t, "\"offset_align\":%u,\"copy_align\":%u,\"push_constant_bytes\":%u},", c->offset_align,
        c->copy_align, p->props.limits.maxPushConstantsSize);
    put(t, "\"subgroup_size\":%u,\"base\":{", c->subgroup_size);
    for (uint32_t i = 0; i < p->n_base; i++)
        put(t, "%s\"%s\":%s", i ? "," : "", p->base[i].key, p->base[i].ok ? "true" : "false");
    put(t, "},\"fast_paths\":{");
    for (size_t i = 0; i < COR_COUNT(fast); i++)
        put(t, "%s\"%s\":%s", i ? "," : "", fast[i].key, fast[i].on ? "true" : "false");
    put(t, "},");
}

static void put_kernels(struct text *t, const struct gpu_phys *p)
{
    const char *sep = "";

    put(t, "\"kernels\":[");
    for (int k = 0; k < GPU_KERNEL_COUNT && p->info.usable; k++)
        if (gpu_caps_allow(&p->caps, gpu_kernel_info((enum gpu_kernel)k)->needs)) {
            put(t, "%s\"%s\"", sep, gpu_kernel_info((enum gpu_kernel)k)->name);
            sep = ",";
        }
    put(t, "],");
}

enum vkmoe_status gpu_instance_device_json(const struct gpu_instance *inst, uint32_t index, char **json,
                                           struct vkmoe_err *err)
{
    const struct gpu_phys *p = index < inst->n_devices ? &inst->devices[index] : NULL;
    struct text t = {NULL, 0, 0, false};

    *json = NULL;
    if (!p)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "device %u: there are only %u devices", index,
                        inst->n_devices);
    put(&t, "{\"index\":%u,", index);
    put_key(&t, "name", p->info.name);
    put_key(&t, "driver", p->info.driver);
    put_key(&t, "driver_version", p->info.driver_version);
    put_key(&t, "api_version", p->info.api_version);
    put_key(&t, "type", p->info.type);
    put(&t, "\"vendor_id\":%u,\"device_id\":%u,", p->props.vendorID, p->props.deviceID);
    put(&t, "\"heap_bytes\":%" PRIu64 ",\"free_bytes\":%" PRIu64 ",", p->info.heap_bytes,
        gpu_phys_free_bytes(p));
    put_heaps(&t, p);
    put_caps(&t, p);
    put_kernels(&t, p);
    put(&t, "\"usable\":%s,\"refused\":", p->info.usable ? "true" : "false");
    put_string(&t, p->info.refused);
    put(&t, "}");
    if (t.failed) {
        cor_free(t.p);
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for its description", p->info.name);
    }
    *json = t.p;
    return VKMOE_OK;
}
