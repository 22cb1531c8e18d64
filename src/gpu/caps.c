/* What a device can do: limits and features read once, the base path's requirements, and the clamps of
 * --caps. Does not create devices (device.c). */
#include "gpu/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

static uint64_t min64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint32_t min32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t max32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* ---- reading
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status query_exts(struct gpu_phys *p, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    VkExtensionProperties *exts = NULL;
    uint32_t n = 0;
    VkResult r;

    if ((r = VK_CALL(vkEnumerateDeviceExtensionProperties(p->vk, NULL, &n, NULL))) != VK_SUCCESS)
        return gpu_fail(NULL, r, "listing extensions of", p->props.deviceName, err);
    exts = cor_array(n + 1, sizeof(*exts));
    if (!exts)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %u extensions", p->props.deviceName, n);
    r = VK_CALL(vkEnumerateDeviceExtensionProperties(p->vk, NULL, &n, exts));
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        TRY(gpu_fail(NULL, r, "listing extensions of", p->props.deviceName, err));
    for (uint32_t i = 0; i < n; i++) {
#define GPU_X(field, name)                    \
    if (!strcmp(exts[i].extensionName, name)) \
        p->exts.field = true;
        GPU_EXT_LIST(GPU_X)
#undef GPU_X
    }
done:
    cor_free(exts);
    return st;
}

/* First family with compute, preferring one that does graphics too: it is the one every driver tests. And one
 * for copies alone. */
static void query_queues(struct gpu_phys *p)
{
    VkQueueFamilyProperties fam[32];
    uint32_t n = COR_COUNT(fam);

    vkGetPhysicalDeviceQueueFamilyProperties(p->vk, &n, fam);
    p->queue_family = UINT32_MAX;
    p->copy_family = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        const VkQueueFlags beside =
            VK_QUEUE_TRANSFER_BIT | VK_QUEUE_SPARSE_BINDING_BIT | VK_QUEUE_PROTECTED_BIT;
        bool both = (fam[i].queueFlags & VK_QUEUE_GRAPHICS_BIT) != 0;

        if (!(fam[i].queueFlags &
              VK_QUEUE_COMPUTE_BIT)) { /* nor that of a video codec, which may do transfers */
            if (p->copy_family == UINT32_MAX && (fam[i].queueFlags & VK_QUEUE_TRANSFER_BIT) &&
                !(fam[i].queueFlags & ~beside))
                p->copy_family = i;
            continue;
        }
        if (p->queue_family == UINT32_MAX ||
            (both && !(fam[p->queue_family].queueFlags & VK_QUEUE_GRAPHICS_BIT)))
            p->queue_family = i;
    }
    p->caps.transfer_queue = p->copy_family != UINT32_MAX;
}

static void query_memory(struct gpu_phys *p)
{
    const VkPhysicalDeviceMemoryProperties *m = &p->memory;
    bool cached = false, cached_coherent = false;

    vkGetPhysicalDeviceMemoryProperties(p->vk, &p->memory);
    p->heap = UINT32_MAX;
    for (uint32_t i = 0; i < m->memoryHeapCount; i++)
        if ((m->memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) &&
            (p->heap == UINT32_MAX || m->memoryHeaps[i].size > m->memoryHeaps[p->heap].size))
            p->heap = i;
    p->caps.heap_bytes = p->heap == UINT32_MAX ? 0 : m->memoryHeaps[p->heap].size;
    for (uint32_t i = 0; i < m->memoryTypeCount; i++) {
        VkMemoryPropertyFlags f = m->memoryTypes[i].propertyFlags;

        if (m->memoryTypes[i].heapIndex == p->heap && (f & VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT) &&
            (f & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT))
            p->caps.uma = true;
        if (f & VK_MEMORY_PROPERTY_HOST_CACHED_BIT) {
            cached = true;
            cached_coherent = cached_coherent || (f & VK_MEMORY_PROPERTY_HOST_COHERENT_BIT);
        }
    }
    p->caps.coherent = !cached || cached_coherent; /* cached memory is chosen for reading back */
}

static void query_limits(struct gpu_phys *p)
{
    const VkPhysicalDeviceLimits *l = &p->props.limits;
    struct gpu_caps *c = &p->caps;

    c->max_range = (uint64_t)l->maxStorageBufferRange & ~(uint64_t)3;
    c->max_buffers = min32(l->maxPerStageDescriptorStorageBuffers, l->maxDescriptorSetStorageBuffers);
    c->max_buffers = min32(c->max_buffers, l->maxPerStageResources);
    c->max_shared = l->maxComputeSharedMemorySize;
    c->max_wg = min32(l->maxComputeWorkGroupInvocations, l->maxComputeWorkGroupSize[0]);
    c->max_groups = min32(l->maxComputeWorkGroupCount[0], l->maxComputeWorkGroupCount[1]);
    c->offset_align = (uint32_t)min64(l->minStorageBufferOffsetAlignment, 1u << 30);
    c->offset_align = max32(c->offset_align, 4);
    c->copy_align = (uint32_t)min64(l->optimalBufferCopyOffsetAlignment, 1u << 30);
    c->copy_align = max32(c->copy_align, (uint32_t)min64(l->nonCoherentAtomSize, 1u << 30));
    c->copy_align = max32(c->copy_align, 4);
    c->texel_align = (uint32_t)min64(l->minTexelBufferOffsetAlignment, 1u << 30);
    c->texel_align = max32(c->texel_align, GPU_TEXEL_BYTES);
    c->max_texels = l->maxTexelBufferElements;
    c->texels = true;
    c->array = p->features.shaderStorageBufferArrayDynamicIndexing == VK_TRUE;
    c->rounding = true;
}

/* Chains s into a properties or features query. */
#define CHAIN(head, s) ((s).pNext = (head).pNext, (head).pNext = &(s))

static void query_properties2(struct gpu_phys *p)
{
    const bool v12 = p->props.apiVersion >= VK_API_VERSION_1_2;
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES};
    VkPhysicalDeviceMaintenance3Properties m3 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
    VkPhysicalDeviceSubgroupProperties sg = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
    VkPhysicalDeviceDriverProperties drv = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceShaderIntegerDotProductProperties dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES};
    const VkSubgroupFeatureFlags ops = VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_ARITHMETIC_BIT;

    CHAIN(p2, id);
    CHAIN(p2, m3);
    CHAIN(p2, sg);
    if (v12 || p->exts.driver_props)
        CHAIN(p2, drv);
    if (p->props.apiVersion >= VK_API_VERSION_1_3 || p->exts.int_dot)
        CHAIN(p2, dot);
    vkGetPhysicalDeviceProperties2(p->vk, &p2);

    memcpy(p->device_uuid, id.deviceUUID, VK_UUID_SIZE);
    memcpy(p->driver_uuid, id.driverUUID, VK_UUID_SIZE);
    p->caps.dot8_fast = dot.integerDotProduct4x8BitPackedSignedAccelerated == VK_TRUE;
    p->caps.max_alloc = m3.maxMemoryAllocationSize;
    p->caps.subgroup_size = sg.subgroupSize;
    p->caps.subgroup =
        (sg.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) && (sg.supportedOperations & ops) == ops;
    p->caps.rows_on_lanes = /* and the layout: query_features2 */
        p->caps.subgroup && sg.subgroupSize >= 8 && (sg.supportedOperations & VK_SUBGROUP_FEATURE_BALLOT_BIT);
    snprintf(p->info.driver, sizeof(p->info.driver), "%s",
             drv.driverName[0] ? drv.driverName : "unknown driver");
    if (drv.driverInfo[0])
        snprintf(p->info.driver_version, sizeof(p->info.driver_version), "%s", drv.driverInfo);
    else
        snprintf(p->info.driver_version, sizeof(p->info.driver_version), "0x%08" PRIx32,
                 p->props.driverVersion);
}

static void query_features2(struct gpu_phys *p)
{
    const bool v12 = p->props.apiVersion >= VK_API_VERSION_1_2;
    const bool v13 = p->props.apiVersion >= VK_API_VERSION_1_3;
    VkPhysicalDeviceFeatures2 f2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
    VkPhysicalDevice16BitStorageFeatures s16 = {.sType =
                                                    VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES};
    VkPhysicalDeviceShaderFloat16Int8Features f16 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES};
    VkPhysicalDeviceShaderIntegerDotProductFeatures dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES};
    VkPhysicalDeviceScalarBlockLayoutFeatures scalar = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SCALAR_BLOCK_LAYOUT_FEATURES};
    VkPhysicalDeviceBufferDeviceAddressFeatures bda = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES};
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR exec = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR};

    CHAIN(f2, s16);
    if (v12 || p->exts.float16_int8)
        CHAIN(f2, f16);
    if (v13 || p->exts.int_dot)
        CHAIN(f2, dot);
    if (v12 || p->exts.scalar_layout)
        CHAIN(f2, scalar);
    if (v12 || p->exts.buffer_address)
        CHAIN(f2, bda);
    if (p->exts.exec_props)
        CHAIN(f2, exec);
    vkGetPhysicalDeviceFeatures2(p->vk, &f2);
    p->features = f2.features;
    p->caps.f16 = f16.shaderFloat16 && s16.storageBuffer16BitAccess;
    p->caps.dot8 = dot.shaderIntegerDotProduct == VK_TRUE && gpu_spirv_dot;
    p->caps.rows_on_lanes = p->caps.rows_on_lanes && scalar.scalarBlockLayout == VK_TRUE;
    p->caps.bda = bda.bufferDeviceAddress == VK_TRUE;
    p->caps.budget = p->exts.memory_budget;
    p->caps.host_import = p->exts.host_memory;
    p->exec_props_feature = exec.pipelineExecutableInfo == VK_TRUE;
    p->caps.exec_props = p->exec_props_feature;
}

/* ---- the base path
 * ------------------------------------------------------------------------------------------ */

static void require(struct gpu_phys *p, const char *key, bool ok, const char *what, uint64_t has)
{
    struct gpu_base *b = &p->base[p->n_base++];

    b->key = key;
    b->ok = ok;
    if (!ok)
        snprintf(b->missing, sizeof(b->missing), "needs %s, has %" PRIu64, what, has);
    if (!ok && !p->info.refused[0])
        memcpy(p->info.refused, b->missing, sizeof(b->missing));
}

static void check_base(struct gpu_phys *p)
{
    const VkPhysicalDeviceLimits *l = &p->props.limits;
    const struct gpu_caps *c = &p->caps;
    const uint32_t api = p->props.apiVersion;
    bool host = false;

    for (uint32_t i = 0; i < p->memory.memoryTypeCount; i++)
        host = host || (p->memory.memoryTypes[i].propertyFlags & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT);
    require(p, "vulkan_1_1", api >= VK_API_VERSION_1_1, "Vulkan 1.1 (minor version 1)",
            VK_API_VERSION_MINOR(api));
    require(p, "compute_queue", p->queue_family != UINT32_MAX, "a compute queue", 0);
    require(p, "push_constants", l->maxPushConstantsSize >= 128, "128 bytes of push constants",
            l->maxPushConstantsSize);
    require(p, "storage_buffers", c->max_buffers >= 8, "8 storage buffers per stage", c->max_buffers);
    require(p, "shared_memory", c->max_shared >= 16 * KIB, "16384 bytes of shared memory", c->max_shared);
    require(p, "workgroup", c->max_wg >= 128, "workgroups of 128", c->max_wg);
    require(p, "groups", c->max_groups >= 65535, "65535 workgroups per dimension", c->max_groups);
    require(p, "storage_range", c->max_range >= 128 * MIB, "storage buffers of 134217728 bytes",
            c->max_range);
    require(p, "device_memory", c->heap_bytes > 0, "device-local memory", c->heap_bytes);
    require(p, "host_memory", host, "host-visible memory", 0);
    p->info.usable = !p->info.refused[0];
}

static const char *type_name(VkPhysicalDeviceType type)
{
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
        return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
        return "cpu";
    default:
        return "other";
    }
}

bool gpu_phys_budget(const struct gpu_phys *p, uint64_t *budget, uint64_t *usage)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT b = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 m = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};

    if (!p->exts.memory_budget || p->heap == UINT32_MAX)
        return false;
    m.pNext = &b;
    vkGetPhysicalDeviceMemoryProperties2(p->vk, &m);
    *budget = b.heapBudget[p->heap];
    *usage = b.heapUsage[p->heap];
    return true;
}

uint64_t gpu_budget_free(uint64_t heap, uint64_t budget, uint64_t usage, uint64_t own)
{
    if (!budget || budget > heap) /* drivers have been seen to say 0 and more than there is */
        budget = heap;
    if (usage < own)
        usage = own;
    return usage < budget ? budget - usage : 0;
}

uint64_t gpu_phys_free_bytes(const struct gpu_phys *p)
{
    uint64_t budget, usage;

    return gpu_phys_budget(p, &budget, &usage)
               ? gpu_budget_free(p->memory.memoryHeaps[p->heap].size, budget, usage, 0)
               : 0;
}

enum vkmoe_status gpu_phys_query(struct gpu_phys *p, uint32_t index, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const uint32_t v = (vkGetPhysicalDeviceProperties(p->vk, &p->props), p->props.apiVersion);

    p->info.index = index;
    snprintf(p->info.name, sizeof(p->info.name), "%s", p->props.deviceName);
    snprintf(p->info.api_version, sizeof(p->info.api_version), "%u.%u.%u", VK_API_VERSION_MAJOR(v),
             VK_API_VERSION_MINOR(v), VK_API_VERSION_PATCH(v));
    p->info.type = type_name(p->props.deviceType);
    TRY(query_exts(p, err));
    query_queues(p);
    query_memory(p);
    if (v >= VK_API_VERSION_1_1) {
        query_properties2(p);
        query_features2(p);
    }
    query_limits(p);
    check_base(p);
    p->info.heap_bytes = p->caps.heap_bytes;
    p->info.free_bytes = gpu_phys_free_bytes(p);
    p->info.subgroup_size = p->caps.subgroup_size;
done:
    return st;
}

/* ---- clamps
 * ------------------------------------------------------------------------------------------------- */

#define CLAMP_FLAGS(X)                                                                       \
    X(f16, f16)                                                                              \
    X(subgroup, subgroup)                                                                    \
    X(lanes, rows_on_lanes)                                                                  \
    X(texels, texels) X(dot8, dot8) X(bda, bda) X(budget, budget) X(hostimport, host_import) \
        X(transfer, transfer_queue) X(array, array) X(uma, uma) X(coherent, coherent) X(rounding, rounding)

#define WORDS                                                                                       \
    "-f16 -subgroup -lanes -texels -dot8 -bda -budget -hostimport -transfer -array -uma -coherent " \
    "-rounding -tuned range= buffers= heap= alloc="

static bool is_word(const char *w, size_t n, const char *word)
{
    return strlen(word) == n && !memcmp(w, word, n);
}

/* Digits with an optional K, M or G. */
static bool parse_size(const char *s, size_t n, uint64_t *v)
{
    uint64_t unit = 1;

    *v = 0;
    if (n && strchr("kKmMgG", s[n - 1])) {
        char c = s[--n];

        unit = c == 'k' || c == 'K' ? 1u << 10 : c == 'm' || c == 'M' ? 1u << 20 : 1u << 30;
    }
    if (!n || n > 12)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        *v = *v * 10 + (uint64_t)(s[i] - '0');
    }
    if (*v > (UINT64_MAX >> 1) / unit)
        return false;
    *v *= unit;
    return true;
}

static enum vkmoe_status clamp_size(struct gpu_caps *c, const char *w, size_t n, size_t eq,
                                    struct vkmoe_err *err)
{
    const char *val = w + eq + 1;
    const size_t val_n = n - eq - 1;
    uint64_t v;

    if (!parse_size(val, val_n, &v))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "caps: %.*s: not a number with K, M or G behind it", (int)n,
                        w);
    if (is_word(w, eq, "buffers")) {
        if (v < 8)
            return cor_fail(err, VKMOE_ERR_ARGUMENT, "caps: %.*s: at least 8 buffers are needed", (int)n, w);
        c->max_buffers = (uint32_t)min64(c->max_buffers, v);
        return VKMOE_OK;
    }
    v &= ~(uint64_t)3;
    if (v < 4 * KIB)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "caps: %.*s: at least 4K", (int)n, w);
    if (is_word(w, eq, "range"))
        c->max_range = min64(c->max_range, v);
    else if (is_word(w, eq, "heap"))
        c->heap_bytes = min64(c->heap_bytes, v);
    else if (is_word(w, eq, "alloc"))
        c->max_alloc = min64(c->max_alloc, v);
    else
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "caps: unknown word \"%.*s\"; there are " WORDS, (int)n, w);
    return VKMOE_OK;
}

static enum vkmoe_status clamp_word(struct gpu_caps *c, const char *w, size_t n, struct vkmoe_err *err)
{
    const char *eq = memchr(w, '=', n);

    if (eq && *w != '-')
        return clamp_size(c, w, n, (size_t)(eq - w), err);
    if (is_word(w, n, "-tuned")) /* heeded by run/tuned.c */
        return VKMOE_OK;
#define GPU_X(word, field)          \
    if (is_word(w, n, "-" #word)) { \
        c->field = false;           \
        return VKMOE_OK;            \
    }
    CLAMP_FLAGS(GPU_X)
#undef GPU_X
    return cor_fail(err, VKMOE_ERR_ARGUMENT, "caps: unknown word \"%.*s\"; there are " WORDS, (int)n, w);
}

enum vkmoe_status gpu_caps_clamp(struct gpu_caps *caps, const char *list, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    while (list && *list) {
        size_t n = strcspn(list, ",");

        TRY(clamp_word(caps, list, n, err));
        list += n;
        if (*list == ',')
            list++;
    }
    if (!caps->subgroup) {
        caps->subgroup_size = 0;
        caps->rows_on_lanes = false;
    }
done:
    return st;
}

bool gpu_caps_allow(const struct gpu_caps *caps, uint32_t needs)
{
    return (!(needs & GPU_NEED_SUBGROUP) || caps->subgroup) && (!(needs & GPU_NEED_ARRAY) || caps->array) &&
           (!(needs & GPU_NEED_F16) || caps->f16) && (!(needs & GPU_NEED_LANES) || caps->rows_on_lanes) &&
           (!(needs & GPU_NEED_TEXELS) || caps->texels) && (!(needs & GPU_NEED_DOT) || caps->dot8) &&
           (!(needs & GPU_NEED_ROUNDED) || caps->rounding);
}
