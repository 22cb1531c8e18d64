/* Kernels to pipelines: the table of kernels, shader modules made on first use, pipelines made once per
 * specialisation. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/os.h"
#include "gpu/internal.h"

static const struct gpu_kernel_info kernels[] = {
#define GPU_X(name, push, n_buffers, segs, formats, needs) \
    {#name, sizeof(struct push), n_buffers, segs, formats, needs},
    GPU_KERNEL_LIST(GPU_X)
#undef GPU_X
};

#define GPU_X(name, push, n_buffers, segs, formats, needs)                  \
    _Static_assert(sizeof(struct push) <= 128 && (n_buffers) + (segs) <= 8, \
                   #name " asks for more than the base has");
GPU_KERNEL_LIST(GPU_X)
#undef GPU_X

#define WORD_OF(type, field) (1u << offsetof(struct type, field) / sizeof(uint32_t))
_Static_assert(GPU_FMT_EMBED == WORD_OF(spec_embed, format) && GPU_FMT_MAT == WORD_OF(spec_mat, format) &&
                   GPU_FMT_MAT_NORM == WORD_OF(spec_mat_norm, format) &&
                   GPU_FMT_GATE_UP == (WORD_OF(spec_expert, fmt_gate) | WORD_OF(spec_expert, fmt_up)) &&
                   GPU_FMT_DOWN == WORD_OF(spec_expert, fmt_down),
               "formats stand elsewhere in shared/params.h");

const struct gpu_kernel_info *gpu_kernel_info(enum gpu_kernel k)
{
    assert((unsigned)k < GPU_KERNEL_COUNT);
    return &kernels[k];
}

bool gpu_kernel_usable(const struct gpu_device *dev, enum gpu_kernel k)
{
    return gpu_caps_allow(&dev->caps, gpu_kernel_info(k)->needs);
}

VkDescriptorType gpu_descriptor_type(enum gpu_kernel k, uint32_t binding)
{
    return (kernels[k].needs & GPU_NEED_TEXELS) && binding == GPU_TEXELS_AT
               ? VK_DESCRIPTOR_TYPE_UNIFORM_TEXEL_BUFFER
               : VK_DESCRIPTOR_TYPE_STORAGE_BUFFER;
}

/* ---- modules
 * ------------------------------------------------------------------------------------------------ */

#define SPIRV_MAGIC 0x07230203u
#define SPIRV_HEAD  20u /* bytes */
#define SPIRV_MAX   (16u << 20)

/* The file that stands in for a kernel's module; *data stays NULL where there is none. */
static enum vkmoe_status load_module(char **data, size_t *n, const struct gpu_device *dev, const char *name,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t magic;
    char *path;
    size_t size;

    *data = NULL;
    if (!dev->shader_dir)
        return VKMOE_OK;
    size = strlen(dev->shader_dir) + strlen(name) + sizeof("/.spv");
    path = cor_alloc(size);
    if (!path)
        return cor_fail(err, VKMOE_ERR_MEMORY, "kernel %s: no memory for a file name", name);
    snprintf(path, size, "%s/%s.spv", dev->shader_dir, name);
    if (!cor_path_exists(path))
        goto done;
    TRY(cor_file_slurp(path, SPIRV_MAX, data, n, err));
    if (*n < SPIRV_HEAD || *n % 4)
        FAIL(VKMOE_ERR_FORMAT, "%s: %zu bytes are no SPIR-V: a multiple of 4 and at least %u are", path, *n,
             SPIRV_HEAD);
    memcpy(&magic, *data, sizeof(magic));
    if (magic != SPIRV_MAGIC)
        FAIL(VKMOE_ERR_FORMAT, "%s: begins with 0x%08x, SPIR-V with 0x%08x", path, magic, SPIRV_MAGIC);
    cor_log(VKMOE_LOG_INFO, "kernel %s: from %s", name, path);
done:
    cor_free(path);
    if (st != VKMOE_OK) {
        cor_free(*data);
        *data = NULL;
    }
    return st;
}

bool gpu_format_plain(uint32_t format)
{
    return format == FMT_F32 || format == FMT_F16 || format == FMT_BF16 || format == FMT_Q8_0 ||
           format == FMT_Q4_0;
}

bool gpu_kernel_more(enum gpu_kernel k, const uint32_t *spec, size_t n)
{
    for (size_t i = 0; i < n && i < 32; i++)
        if ((kernels[k].formats >> i & 1) && !gpu_format_plain(spec[i]))
            return true;
    return false;
}

static enum vkmoe_status get_module(struct gpu_pipeline *p, struct gpu_device *dev, struct vkmoe_err *err)
{
    VkShaderModuleCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO};
    const bool more = gpu_kernel_more(p->kernel, p->spec, p->n_spec);
    VkShaderModule *made = &dev->modules[p->kernel][more];
    enum vkmoe_status st = VKMOE_OK;
    uint32_t *built_in = NULL;
    char *file = NULL, name[64];
    VkResult r;

    p->module = *made;
    if (p->module)
        return VKMOE_OK;
    snprintf(name, sizeof(name), "%s%s", kernels[p->kernel].name, more ? "_k" : "");
    TRY(load_module(&file, &ci.codeSize, dev, name, err));
    ci.pCode = (const uint32_t *)(const void *)file; /* cor_alloc aligns for any type */
    if (!ci.pCode) {
        TRY(gpu_spirv_read(&built_in, &ci.codeSize, name, err));
        ci.codeSize *= sizeof(uint32_t);
        ci.pCode = built_in;
    }
    if (!ci.pCode)
        FAIL(VKMOE_ERR_UNSUPPORTED, "kernel %s: this build has no module for it", name);
    if ((r = VK_CALL(dev->fn.vkCreateShaderModule(dev->vk, &ci, NULL, made))) != VK_SUCCESS) {
        *made = VK_NULL_HANDLE;
        TRY(gpu_fail(dev, r, "loading kernel", name, err));
    }
    gpu_name(dev, VK_OBJECT_TYPE_SHADER_MODULE, (uint64_t)*made, name);
    p->module = *made;
done:
    cor_free(built_in);
    cor_free(file);
    return st;
}

/* ---- layouts
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status create_layouts(struct gpu_device *dev, struct gpu_pipeline *p, struct vkmoe_err *err)
{
    const struct gpu_kernel_info *ki = &kernels[p->kernel];
    VkDescriptorSetLayoutBinding bindings[8] = {{0}};
    VkDescriptorSetLayoutCreateInfo si = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO};
    VkPushConstantRange push = {VK_SHADER_STAGE_COMPUTE_BIT, 0, ki->push_bytes};
    VkPipelineLayoutCreateInfo li = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO};
    VkResult r;

    si.bindingCount = ki->n_buffers + ki->segs;
    si.pBindings = bindings;
    for (uint32_t i = 0; i < si.bindingCount; i++) {
        bindings[i].binding = i;
        bindings[i].descriptorType = gpu_descriptor_type(p->kernel, i);
        bindings[i].descriptorCount = i < ki->n_buffers ? 1 : p->n_segs;
        bindings[i].stageFlags = VK_SHADER_STAGE_COMPUTE_BIT;
    }
    if ((r = VK_CALL(dev->fn.vkCreateDescriptorSetLayout(dev->vk, &si, NULL, &p->set_layout))) !=
        VK_SUCCESS) {
        p->set_layout = VK_NULL_HANDLE;
        return gpu_fail(dev, r, "creating the set layout of", ki->name, err);
    }
    li.setLayoutCount = 1;
    li.pSetLayouts = &p->set_layout;
    li.pushConstantRangeCount = 1;
    li.pPushConstantRanges = &push;
    if ((r = VK_CALL(dev->fn.vkCreatePipelineLayout(dev->vk, &li, NULL, &p->layout))) != VK_SUCCESS) {
        p->layout = VK_NULL_HANDLE;
        return gpu_fail(dev, r, "creating the layout of", ki->name, err);
    }
    return VKMOE_OK;
}

/* ---- pipelines
 * ---------------------------------------------------------------------------------------------- */

#define SPEC_WORDS 32 /* at most */

VkResult gpu_pipeline_compile(struct gpu_device *dev, struct gpu_pipeline *p)
{
    VkSpecializationMapEntry map[SPEC_WORDS];
    VkSpecializationInfo spec = {p->n_spec, map, p->n_spec * sizeof(uint32_t), p->spec};
    VkPipelineCreationFeedbackEXT whole = {0}, stage = {0};
    VkPipelineCreationFeedbackCreateInfoEXT fb = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_CREATION_FEEDBACK_CREATE_INFO_EXT};
    VkComputePipelineCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO};
    VkResult r;

    assert(p->n_spec <= SPEC_WORDS);
    for (uint32_t i = 0; i < p->n_spec; i++) {
        map[i].constantID = i;
        map[i].offset = i * (uint32_t)sizeof(uint32_t);
        map[i].size = sizeof(uint32_t);
    }
    ci.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
    ci.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
    ci.stage.pName = "main";
    ci.stage.module = p->module;
    ci.stage.pSpecializationInfo = &spec;
    ci.layout = p->layout;
    if (dev->caps.exec_props)
        ci.flags |= VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR |
                    VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR;
    if (dev->feedback) {
        fb.pPipelineCreationFeedback = &whole;
        fb.pipelineStageCreationFeedbackCount = 1;
        fb.pPipelineStageCreationFeedbacks = &stage;
        ci.pNext = &fb;
    }
    r = VK_CALL(dev->fn.vkCreateComputePipelines(dev->vk, dev->cache, 1, &ci, NULL, &p->vk));
    if (r != VK_SUCCESS) {
        p->vk = VK_NULL_HANDLE;
        return r;
    }
    p->from_cache = (whole.flags & VK_PIPELINE_CREATION_FEEDBACK_VALID_BIT_EXT) &&
                    (whole.flags & VK_PIPELINE_CREATION_FEEDBACK_APPLICATION_PIPELINE_CACHE_HIT_BIT_EXT);
    atomic_fetch_add(&dev->n_compiled, !p->from_cache);
    gpu_name(dev, VK_OBJECT_TYPE_PIPELINE, (uint64_t)p->vk, kernels[p->kernel].name);
    return VK_SUCCESS;
}

static void destroy_pipeline(struct gpu_device *dev, struct gpu_pipeline *p)
{
    if (!p)
        return;
    if (!dev->hung) {
        dev->fn.vkDestroyPipeline(dev->vk, p->vk, NULL);
        dev->fn.vkDestroyPipelineLayout(dev->vk, p->layout, NULL);
        dev->fn.vkDestroyDescriptorSetLayout(dev->vk, p->set_layout, NULL);
    }
    cor_free(p->spec);
    cor_free(p);
}

static enum vkmoe_status check_request(const struct gpu_device *dev, enum gpu_kernel k, uint32_t wg,
                                       uint32_t n_segs, struct vkmoe_err *err)
{
    const struct gpu_kernel_info *ki = &kernels[k];
    const uint32_t n = ki->n_buffers + (ki->segs ? n_segs : 0);

    if (!gpu_kernel_usable(dev, k))
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "%s: kernel %s needs a feature that is absent or switched off", dev->info.name,
                        ki->name);
    if (n > dev->caps.max_buffers)
        return cor_fail(err, VKMOE_ERR_LIMIT, "%s: kernel %s: %u storage buffers, %u are allowed",
                        dev->info.name, ki->name, n, dev->caps.max_buffers);
    if (!wg || wg > dev->caps.max_wg)
        return cor_fail(err, VKMOE_ERR_LIMIT, "%s: kernel %s: a workgroup of %u, 1 to %u are allowed",
                        dev->info.name, ki->name, wg, dev->caps.max_wg);
    return VKMOE_OK;
}

static struct gpu_pipeline *find(const struct gpu_device *dev, enum gpu_kernel k, const void *spec,
                                 size_t spec_bytes, uint32_t n_segs)
{
    assert((unsigned)k < GPU_KERNEL_COUNT && spec_bytes >= 4 && spec_bytes % sizeof(uint32_t) == 0 && n_segs);
    for (struct gpu_pipeline *p = dev->pipelines; p; p = p->next)
        if (p->kernel == k && p->n_segs == n_segs && p->n_spec * sizeof(uint32_t) == spec_bytes &&
            !memcmp(p->spec, spec, spec_bytes))
            return p;
    return NULL;
}

/* All of a pipeline that costs next to nothing. */
static enum vkmoe_status prepare(struct gpu_pipeline **out, struct gpu_device *dev, enum gpu_kernel k,
                                 const void *spec, size_t spec_bytes, uint32_t n_segs, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_pipeline *p = NULL;
    uint32_t wg;

    memcpy(&wg, spec, sizeof(wg));
    TRY(gpu_alive(dev, err));
    TRY(check_request(dev, k, wg, n_segs, err));
    p = cor_zalloc(sizeof(*p));
    if (!p)
        FAIL(VKMOE_ERR_MEMORY, "kernel %s: no memory for the pipeline", kernels[k].name);
    p->kernel = k;
    p->n_segs = n_segs;
    p->n_spec = (uint32_t)(spec_bytes / sizeof(uint32_t));
    p->spec = cor_alloc(spec_bytes);
    if (!p->spec)
        FAIL(VKMOE_ERR_MEMORY, "kernel %s: no memory for its constants", kernels[k].name);
    memcpy(p->spec, spec, spec_bytes);
    TRY(create_layouts(dev, p, err));
    TRY(get_module(p, dev, err));
    gpu_ahead_lock(dev);
    p->next = dev->pipelines;
    dev->pipelines = p;
    gpu_ahead_unlock(dev);
    *out = p;
    p = NULL;
done:
    destroy_pipeline(dev, p);
    return st;
}

enum vkmoe_status gpu_pipeline_get(struct gpu_pipeline **out, struct gpu_device *dev, enum gpu_kernel k,
                                   const void *spec, size_t spec_bytes, uint32_t n_segs,
                                   struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_pipeline *p = find(dev, k, spec, spec_bytes, n_segs);
    VkResult r;

    *out = NULL;
    if (!p)
        TRY(prepare(&p, dev, k, spec, spec_bytes, n_segs, err));
    if (gpu_ahead_claim(dev, p)) {
        r = gpu_pipeline_compile(dev, p);
        gpu_ahead_made(dev, p, r == VK_SUCCESS);
        if (r != VK_SUCCESS)
            TRY(gpu_fail(dev, r, "compiling kernel", kernels[k].name, err));
    }
    *out = p;
done:
    return st;
}

void gpu_pipeline_wish(struct gpu_device *dev, enum gpu_kernel k, const void *spec, size_t spec_bytes,
                       uint32_t n_segs)
{
    struct gpu_pipeline *p = find(dev, k, spec, spec_bytes, n_segs);
    struct vkmoe_err err;

    if (p || prepare(&p, dev, k, spec, spec_bytes, n_segs, &err) != VKMOE_OK)
        return; /* who asks for it is told why */
    gpu_ahead_lock(dev);
    p->wished = true;
    gpu_ahead_unlock(dev);
}

bool gpu_pipeline_from_cache(const struct gpu_pipeline *p)
{
    return p->from_cache;
}

void gpu_pipelines_close(struct gpu_device *dev)
{
    gpu_ahead_stop(dev);
    while (dev->pipelines) {
        struct gpu_pipeline *next = dev->pipelines->next;

        destroy_pipeline(dev, dev->pipelines);
        dev->pipelines = next;
    }
    if (!dev->hung)
        for (uint32_t i = 0; i < 2 * GPU_KERNEL_COUNT; i++)
            dev->fn.vkDestroyShaderModule(dev->vk, dev->modules[i / 2][i % 2], NULL);
}
