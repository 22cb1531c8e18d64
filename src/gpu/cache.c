/* The pipeline cache on disk: one file per device, checked against the driver and a checksum before the
 * driver sees it. Nothing here is worth an error to the user: a bad or unwritable file is a log line and a
 * slower start. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/fnv.h"
#include "core/os.h"
#include "gpu/internal.h"

#define CACHE_MAGIC "vkmoepc1"
#define CACHE_MAX   (256u << 20)
#define VK_HEADER   32 /* bytes of VkPipelineCacheHeaderVersionOne */

/* Written and read on one machine: the layout is this struct's. */
struct cache_head {
    char magic[8];
    uint32_t vendor, device, driver_version, unused;
    uint8_t driver_uuid[VK_UUID_SIZE], device_uuid[VK_UUID_SIZE], cache_uuid[VK_UUID_SIZE];
    uint64_t bytes; /* that follow */
    uint64_t sum;   /* FNV-1a of them */
};
_Static_assert(sizeof(struct cache_head) == 88, "the cache header has holes");

static void make_head(struct cache_head *h, const struct gpu_phys *p, const void *data, uint64_t bytes)
{
    memset(h, 0, sizeof(*h));
    memcpy(h->magic, CACHE_MAGIC, sizeof(h->magic));
    h->vendor = p->props.vendorID;
    h->device = p->props.deviceID;
    h->driver_version = p->props.driverVersion;
    memcpy(h->driver_uuid, p->driver_uuid, VK_UUID_SIZE);
    memcpy(h->device_uuid, p->device_uuid, VK_UUID_SIZE);
    memcpy(h->cache_uuid, p->props.pipelineCacheUUID, VK_UUID_SIZE);
    h->bytes = bytes;
    h->sum = cor_fnv(COR_FNV_START, data, (size_t)bytes);
}

static uint64_t file_key(const struct gpu_phys *p)
{
    uint64_t h = cor_fnv(COR_FNV_START, p->props.deviceName, strlen(p->props.deviceName));

    h = cor_fnv(h, &p->props.vendorID, sizeof(p->props.vendorID));
    h = cor_fnv(h, &p->props.deviceID, sizeof(p->props.deviceID));
    h = cor_fnv(h, p->device_uuid, VK_UUID_SIZE);
    return cor_fnv(h, p->info.driver, strlen(p->info.driver));
}

const char *gpu_instance_cache_dir(const struct gpu_instance *inst)
{
    return inst->cache_dir && *inst->cache_dir ? inst->cache_dir : NULL;
}

void gpu_instance_identity(const struct gpu_instance *inst, uint32_t index, struct gpu_identity *id)
{
    const struct gpu_phys *p = &inst->devices[index];
    const uint8_t *uuids[] = {p->driver_uuid, p->device_uuid, p->props.pipelineCacheUUID};
    size_t n;

    snprintf(id->file, sizeof(id->file), "%016" PRIx64, file_key(p));
    n = (size_t)snprintf(id->text, sizeof(id->text), "%x-%x-%x", p->props.vendorID, p->props.deviceID,
                         p->props.driverVersion);
    for (size_t i = 0; i < COR_COUNT(uuids); i++)
        for (size_t b = 0; b < VK_UUID_SIZE; b++)
            n += (size_t)snprintf(id->text + n, sizeof(id->text) - n, "%s%02x", b ? "" : "-", uuids[i][b]);
}

/* One file per device and driver name, so that a new version of the driver replaces the old one's file. */
static enum vkmoe_status make_path(struct gpu_device *dev, struct vkmoe_err *err)
{
    const struct gpu_phys *p = dev->phys;
    const char *dir = dev->inst->cache_dir;
    size_t size;

    if (!dir || !*dir || dev->shader_dir) /* modules from files change: none is kept */
        return VKMOE_OK;
    size = strlen(dir) + sizeof("/pipelines-0123456789abcdef.bin");
    dev->cache_path = cor_alloc(size);
    if (!dev->cache_path)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the name of the pipeline cache",
                        dev->info.name);
    snprintf(dev->cache_path, size, "%s/pipelines-%016" PRIx64 ".bin", dir, file_key(p));
    return VKMOE_OK;
}

/* NULL when the file is this driver's and whole, else what is wrong with it. */
static const char *check(const struct gpu_phys *p, const char *data, size_t n)
{
    struct cache_head has, want;

    if (n < sizeof(has) + VK_HEADER)
        return "truncated";
    memcpy(&has, data, sizeof(has));
    if (memcmp(has.magic, CACHE_MAGIC, sizeof(has.magic)) != 0)
        return "not a pipeline cache";
    if (has.bytes != n - sizeof(has))
        return "truncated";
    make_head(&want, p, data + sizeof(has), has.bytes);
    if (has.vendor != want.vendor || has.device != want.device || has.driver_version != want.driver_version ||
        memcmp(has.driver_uuid, want.driver_uuid, VK_UUID_SIZE) != 0 ||
        memcmp(has.device_uuid, want.device_uuid, VK_UUID_SIZE) != 0 ||
        memcmp(has.cache_uuid, want.cache_uuid, VK_UUID_SIZE) != 0)
        return "of another driver";
    if (has.sum != want.sum)
        return "damaged";
    if (memcmp(data + sizeof(has) + VK_HEADER - VK_UUID_SIZE, want.cache_uuid, VK_UUID_SIZE) != 0)
        return "of another driver";
    return NULL;
}

/* The file's bytes, NULL when there is none that can be used. */
static char *load(struct gpu_device *dev, size_t *n)
{
    struct vkmoe_err err;
    const char *wrong;
    char *data;

    *n = 0;
    if (!dev->cache_path || !cor_path_exists(dev->cache_path))
        return NULL;
    if (cor_file_slurp(dev->cache_path, CACHE_MAX, &data, n, &err) != VKMOE_OK) {
        cor_log(VKMOE_LOG_WARN, "pipeline cache: %s", err.message);
        *n = 0;
        return NULL;
    }
    wrong = check(dev->phys, data, *n);
    if (!wrong)
        return data;
    cor_log(VKMOE_LOG_INFO, "pipeline cache: %s: ignored: %s", dev->cache_path, wrong);
    cor_free(data);
    *n = 0;
    return NULL;
}

enum vkmoe_status gpu_cache_open(struct gpu_device *dev, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    VkPipelineCacheCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    char *data = NULL;
    size_t n;
    VkResult r;

    TRY(make_path(dev, err));
    data = load(dev, &n);
    if (data) {
        ci.initialDataSize = n - sizeof(struct cache_head);
        ci.pInitialData = data + sizeof(struct cache_head);
        dev->cache_sum = cor_fnv(COR_FNV_START, ci.pInitialData, ci.initialDataSize);
    }
    if ((r = VK_CALL(dev->fn.vkCreatePipelineCache(dev->vk, &ci, NULL, &dev->cache))) != VK_SUCCESS) {
        dev->cache = VK_NULL_HANDLE;
        TRY(gpu_fail(dev, r, "creating the pipeline cache", NULL, err));
    }
done:
    cor_free(data);
    return st;
}

/* The driver's bytes behind our header. */
static enum vkmoe_status write_file(struct gpu_device *dev, const void *data, size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct cor_out *out = NULL;
    struct cache_head head;

    make_head(&head, dev->phys, data, n);
    if (head.sum == dev->cache_sum)
        return VKMOE_OK;
    TRY(cor_dir_make(dev->inst->cache_dir, err));
    TRY(cor_out_create(&out, dev->cache_path, err));
    TRY(cor_out_write(out, &head, sizeof(head), err));
    TRY(cor_out_write(out, data, n, err));
    st = cor_out_commit(out, err);
    out = NULL;
done:
    cor_out_discard(out);
    return st;
}

static enum vkmoe_status save(struct gpu_device *dev, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    void *data = NULL;
    size_t n = 0;
    VkResult r;

    if ((r = VK_CALL(dev->fn.vkGetPipelineCacheData(dev->vk, dev->cache, &n, NULL))) != VK_SUCCESS)
        return gpu_fail(dev, r, "reading the pipeline cache", NULL, err);
    if (n < VK_HEADER || n > CACHE_MAX - sizeof(struct cache_head))
        return VKMOE_OK;
    data = cor_alloc(n);
    if (!data)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the pipeline cache", dev->info.name);
    if ((r = VK_CALL(dev->fn.vkGetPipelineCacheData(dev->vk, dev->cache, &n, data))) != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "reading the pipeline cache", NULL, err));
    TRY(write_file(dev, data, n, err));
done:
    cor_free(data);
    return st;
}

void gpu_cache_close(struct gpu_device *dev)
{
    struct vkmoe_err err;

    if (dev->cache && dev->cache_path && dev->n_compiled && dev->dead.status == VKMOE_OK &&
        save(dev, &err) != VKMOE_OK)
        cor_log(VKMOE_LOG_WARN, "pipeline cache: %s", err.message);
    if (!dev->hung)
        dev->fn.vkDestroyPipelineCache(dev->vk, dev->cache, NULL);
    cor_free(dev->cache_path);
    dev->cache_path = NULL;
}
