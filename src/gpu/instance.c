/* The Vulkan instance: loader, validation, the list of devices. Owns validation messages and which of them
 * are known. */
#include "gpu/internal.h"

#include <stdio.h>
#include <string.h>

#define VALIDATION_LAYER "VK_LAYER_KHRONOS_validation"

/* Messages that are not counted, each with its reason. */
static const struct {
    const char *id;
    const char *reason;
} suppressed[] = {
    {"UNASSIGNED-cache-file-error", "the layer could not write its own shader cache: no business of ours"},
    {"WARNING-cache-file-error", "the same in newer layers"},
    {"UNASSIGNED-khronos-validation-createinstance-status-message", "tells which checks are on"},
};

static VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                 VkDebugUtilsMessageTypeFlagsEXT types,
                                                 const VkDebugUtilsMessengerCallbackDataEXT *data, void *user)
{
    struct gpu_instance *inst = user;
    const char *id = data->pMessageIdName ? data->pMessageIdName : "";

    (void)types;
    for (size_t i = 0; i < COR_COUNT(suppressed); i++)
        if (!strcmp(id, suppressed[i].id))
            return VK_FALSE;
    atomic_fetch_add(&inst->messages, 1);
    cor_log(severity & VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT ? VKMOE_LOG_ERROR : VKMOE_LOG_WARN,
            "validation: %s", data->pMessage ? data->pMessage : id);
    return VK_FALSE;
}

/* ---- layer and extensions
 * ------------------------------------------------------------------------------------- */

/* Version of the validation layer, 0 when it is not installed. */
static enum vkmoe_status layer_version(uint32_t *version, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t n = 0;
    VkLayerProperties *layers = NULL;
    VkResult r;

    *version = 0;
    if ((r = VK_CALL(vkEnumerateInstanceLayerProperties(&n, NULL))) != VK_SUCCESS)
        return gpu_fail(NULL, r, "listing layers", NULL, err);
    layers = cor_array(n + 1, sizeof(*layers));
    if (!layers)
        return cor_fail(err, VKMOE_ERR_MEMORY, "Vulkan: no memory for %u layers", n);
    r = VK_CALL(vkEnumerateInstanceLayerProperties(&n, layers));
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        TRY(gpu_fail(NULL, r, "listing layers", NULL, err));
    for (uint32_t i = 0; i < n; i++)
        if (!strcmp(layers[i].layerName, VALIDATION_LAYER))
            *version = layers[i].specVersion;
done:
    cor_free(layers);
    return st;
}

static enum vkmoe_status instance_has(const char *name, bool *has, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t n = 0;
    VkExtensionProperties *exts = NULL;
    VkResult r;

    *has = false;
    if ((r = VK_CALL(vkEnumerateInstanceExtensionProperties(NULL, &n, NULL))) != VK_SUCCESS)
        return gpu_fail(NULL, r, "listing instance extensions", NULL, err);
    exts = cor_array(n + 1, sizeof(*exts));
    if (!exts)
        return cor_fail(err, VKMOE_ERR_MEMORY, "Vulkan: no memory for %u extensions", n);
    r = VK_CALL(vkEnumerateInstanceExtensionProperties(NULL, &n, exts));
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        TRY(gpu_fail(NULL, r, "listing instance extensions", NULL, err));
    for (uint32_t i = 0; i < n; i++)
        *has = *has || !strcmp(exts[i].extensionName, name);
done:
    cor_free(exts);
    return st;
}

/* Queue-submit validation is off by default in the layer of Debian 12, and no public structure asks for it:
 * that layer reads this private one. Later layers check submits by default; those between take
 * VK_LAYER_ENABLES (docs/DEVICES.md). */
#define LAYER_WITH_PRIVATE   VK_MAKE_API_VERSION(0, 1, 3, 239)
#define LAYER_SETTINGS_STYPE ((VkStructureType)0x7ffffffe)
#define LAYER_STRING_ARRAY   8

struct layer_setting {
    char name[VK_MAX_EXTENSION_NAME_SIZE];
    uint32_t type;
    union {
        uint64_t number;
        struct {
            const char *chars;
            uint32_t count;
        } string;
    } data;
};

struct layer_settings {
    VkStructureType type;
    const void *next;
    uint32_t count;
    const struct layer_setting *settings;
};

struct instance_chain {
    VkDebugUtilsMessengerCreateInfoEXT messenger;
    VkValidationFeaturesEXT features;
    VkValidationFeatureEnableEXT enables[1];
    struct layer_setting setting;
    struct layer_settings settings;
};

static void chain_init(struct instance_chain *c, struct gpu_instance *inst, uint32_t layer)
{
    static const char submit[] = "VALIDATION_CHECK_ENABLE_SYNCHRONIZATION_VALIDATION_QUEUE_SUBMIT";

    memset(c, 0, sizeof(*c));
    c->messenger.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT;
    c->messenger.messageSeverity =
        VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
    c->messenger.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT;
    c->messenger.pfnUserCallback = on_message;
    c->messenger.pUserData = inst;
    c->messenger.pNext = &c->features;
    c->enables[0] = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
    c->features.sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT;
    c->features.enabledValidationFeatureCount = 1;
    c->features.pEnabledValidationFeatures = c->enables;
    if (layer == LAYER_WITH_PRIVATE) {
        memcpy(c->setting.name, "enables", sizeof("enables"));
        c->setting.type = LAYER_STRING_ARRAY;
        c->setting.data.string.chars = submit;
        c->setting.data.string.count = sizeof(submit) - 1;
        c->settings.type = LAYER_SETTINGS_STYPE;
        c->settings.count = 1;
        c->settings.settings = &c->setting;
        c->features.pNext = &c->settings;
    }
}

/* ---- opening
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status load_vulkan(uint32_t *version, struct vkmoe_err *err)
{
    if (!volkGetInstanceVersion() && VK_CALL(volkInitialize()) != VK_SUCCESS)
        return cor_fail(err, VKMOE_ERR_NO_DEVICE,
                        "no Vulkan loader (Debian package libvulkan1) on this machine");
    *version = volkGetInstanceVersion();
    if (*version < VK_API_VERSION_1_1)
        return cor_fail(err, VKMOE_ERR_NO_DEVICE, "the Vulkan loader knows only Vulkan 1.0; 1.1 is needed");
    if (*version > VK_API_VERSION_1_3)
        *version = VK_API_VERSION_1_3;
    return VKMOE_OK;
}

static enum vkmoe_status create_instance(struct gpu_instance *inst, uint32_t version, bool validation,
                                         struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const char *layers[1] = {VALIDATION_LAYER};
    const char *exts[2];
    struct instance_chain chain;
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO};
    VkInstanceCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO};
    uint32_t layer = 0;
    bool utils, portability;
    VkResult r;

    TRY(instance_has(VK_EXT_DEBUG_UTILS_EXTENSION_NAME, &utils, err));
    TRY(instance_has(VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME, &portability, err));
    if (validation)
        TRY(layer_version(&layer, err));
    if (validation && !(layer && utils))
        cor_log(VKMOE_LOG_WARN, "validation was asked for, but the layer %s is not installed",
                VALIDATION_LAYER);
    inst->validation = layer && utils;

    app.pApplicationName = "vkmoe";
    app.pEngineName = "vkmoe";
    app.apiVersion = version;
    ci.pApplicationInfo = &app;
    ci.ppEnabledExtensionNames = exts;
    ci.ppEnabledLayerNames = layers;
    if (utils)
        exts[ci.enabledExtensionCount++] = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
    if (portability) {
        exts[ci.enabledExtensionCount++] = VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME;
        ci.flags |= VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
    }
    if (inst->validation) {
        chain_init(&chain, inst, layer);
        ci.enabledLayerCount = 1;
        ci.pNext = &chain.messenger;
    }
    if ((r = VK_CALL(vkCreateInstance(&ci, NULL, &inst->vk))) != VK_SUCCESS) {
        inst->vk = VK_NULL_HANDLE;
        if (r == VK_ERROR_INCOMPATIBLE_DRIVER)
            FAIL(VKMOE_ERR_NO_DEVICE,
                 "no Vulkan driver on this machine (Debian package mesa-vulkan-drivers)");
        TRY(gpu_fail(NULL, r, "creating the instance", NULL, err));
    }
    volkLoadInstanceOnly(inst->vk);
    if (utils)
        inst->set_name = vkSetDebugUtilsObjectNameEXT;
    if (inst->validation) {
        inst->destroy_messenger = vkDestroyDebugUtilsMessengerEXT;
        chain.messenger.pNext = NULL;
        r = VK_CALL(vkCreateDebugUtilsMessengerEXT(inst->vk, &chain.messenger, NULL, &inst->messenger));
        if (r != VK_SUCCESS) {
            inst->messenger = VK_NULL_HANDLE;
            TRY(gpu_fail(NULL, r, "creating the message callback", NULL, err));
        }
    }
done:
    return st;
}

static enum vkmoe_status list_devices(struct gpu_instance *inst, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    VkPhysicalDevice *all = NULL;
    uint32_t n = 0;
    VkResult r = VK_CALL(vkEnumeratePhysicalDevices(inst->vk, &n, NULL));

    if (r == VK_ERROR_INITIALIZATION_FAILED ||
        (r == VK_SUCCESS && !n)) /* the loader's way to say: no driver */
        FAIL(VKMOE_ERR_NO_DEVICE, "no Vulkan driver on this machine (Debian package mesa-vulkan-drivers)");
    if (r != VK_SUCCESS)
        TRY(gpu_fail(NULL, r, "listing devices", NULL, err));
    all = cor_array(n, sizeof(*all));
    inst->devices = cor_array(n, sizeof(*inst->devices));
    if (!all || !inst->devices)
        FAIL(VKMOE_ERR_MEMORY, "Vulkan: no memory for %u devices", n);
    r = VK_CALL(vkEnumeratePhysicalDevices(inst->vk, &n, all));
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        TRY(gpu_fail(NULL, r, "listing devices", NULL, err));
    for (uint32_t i = 0; i < n; i++) {
        inst->devices[i].vk = all[i];
        TRY(gpu_phys_query(&inst->devices[i], i, err));
    }
    inst->n_devices = n;
done:
    cor_free(all);
    return st;
}

enum vkmoe_status gpu_instance_open(struct gpu_instance **out, const struct gpu_instance_params *p,
                                    struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_instance *inst = cor_zalloc(sizeof(*inst));
    uint32_t version = 0;

    *out = NULL;
    if (!inst)
        return cor_fail(err, VKMOE_ERR_MEMORY, "Vulkan: no memory for the instance");
    atomic_init(&inst->messages, 0);
    if (p && p->cache_dir) {
        inst->cache_dir = cor_strdup(p->cache_dir);
        if (!inst->cache_dir)
            FAIL(VKMOE_ERR_MEMORY, "Vulkan: no memory for the name of the cache directory");
    }
    TRY(load_vulkan(&version, err));
    TRY(create_instance(inst, version, p && p->validation, err));
    TRY(list_devices(inst, err));
    *out = inst;
    inst = NULL;
done:
    gpu_instance_close(inst);
    return st;
}

void gpu_instance_close(struct gpu_instance *inst)
{
    if (!inst)
        return;
    if (inst->messenger)
        inst->destroy_messenger(inst->vk, inst->messenger, NULL);
    if (inst->vk)
        vkDestroyInstance(inst->vk, NULL);
    cor_free(inst->devices);
    cor_free(inst->cache_dir);
    cor_free(inst);
}

/* ---- facts
 * -------------------------------------------------------------------------------------------------- */

uint32_t gpu_instance_device_count(const struct gpu_instance *inst)
{
    return inst->n_devices;
}

const struct vkmoe_device_info *gpu_instance_device_info(const struct gpu_instance *inst, uint32_t index)
{
    return index < inst->n_devices ? &inst->devices[index].info : NULL;
}

const struct gpu_caps *gpu_instance_device_caps(const struct gpu_instance *inst, uint32_t index)
{
    return index < inst->n_devices ? &inst->devices[index].caps : NULL;
}

uint64_t gpu_instance_validation_count(const struct gpu_instance *inst)
{
    return atomic_load(&inst->messages);
}

bool gpu_instance_validates(const struct gpu_instance *inst)
{
    return inst->validation;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool contains(const char *text, const char *part)
{
    for (; *text; text++) {
        size_t i = 0;

        while (part[i] && lower(text[i]) == lower(part[i]))
            i++;
        if (!part[i])
            return true;
    }
    return !*part;
}

static uint32_t type_rank(const struct gpu_phys *p)
{
    switch (p->props.deviceType) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return 4;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return 3;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
        return 2;
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
        return 1;
    default:
        return 0;
    }
}

static bool better(const struct gpu_phys *a, const struct gpu_phys *b)
{
    if (type_rank(a) != type_rank(b))
        return type_rank(a) > type_rank(b);
    return a->info.heap_bytes > b->info.heap_bytes;
}

/* Digits: an index. -1: a name; -2: an index past the end. */
static int64_t parse_index(const struct gpu_instance *inst, const char *name)
{
    uint64_t v = 0;

    for (const char *c = name; *c; c++) {
        if (*c < '0' || *c > '9')
            return -1;
        v = v * 10 + (uint64_t)(*c - '0');
        if (v >= inst->n_devices)
            v = inst->n_devices;
    }
    return v < inst->n_devices ? (int64_t)v : -2;
}

enum vkmoe_status gpu_instance_choose(const struct gpu_instance *inst, const char *name, uint32_t *index,
                                      struct vkmoe_err *err)
{
    int64_t digits = name && *name ? parse_index(inst, name) : -1;
    const struct gpu_phys *best = NULL;
    const struct gpu_phys *refused = NULL;

    if (name && !*name)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "device: the name is empty");
    if (digits == -2)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "device %s: there are only %u devices, from 0 on", name,
                        inst->n_devices);
    for (uint32_t i = 0; i < inst->n_devices; i++) {
        const struct gpu_phys *p = &inst->devices[i];

        if (digits >= 0 ? (uint32_t)digits != i : name && !contains(p->info.name, name))
            continue;
        if (!p->info.usable)
            refused = refused ? refused : p;
        else if (!best || better(p, best))
            best = p;
    }
    if (!best && refused)
        return cor_fail(err, VKMOE_ERR_NO_DEVICE, "%s: refused: %s", refused->info.name,
                        refused->info.refused);
    if (!best)
        return cor_fail(err, VKMOE_ERR_NO_DEVICE, "device %s: no device has this in its name",
                        name ? name : "");
    *index = best->info.index;
    return VKMOE_OK;
}
