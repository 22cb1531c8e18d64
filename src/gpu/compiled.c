/* What the driver's compiler made of a pipeline (VK_KHR_pipeline_executable_properties): numbers, and its
 * code as text. */
#include <stdio.h>
#include <string.h>

#include "gpu/internal.h"

static double stat_value(const VkPipelineExecutableStatisticKHR *s)
{
    switch (s->format) {
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR:
        return s->value.b32 ? 1 : 0;
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR:
        return (double)s->value.i64;
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_UINT64_KHR:
        return (double)s->value.u64;
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_FLOAT64_KHR:
        return s->value.f64;
    default:
        return 0;
    }
}

enum vkmoe_status gpu_pipeline_stats(struct gpu_device *dev, const struct gpu_pipeline *p,
                                     struct gpu_pipeline_stat *stats, uint32_t max, uint32_t *n,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    VkPipelineExecutableStatisticKHR *all = NULL;
    VkPipelineExecutableInfoKHR info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR};
    uint32_t count = 0;
    VkResult r;

    *n = 0;
    if (!dev->caps.exec_props)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: the driver tells nothing of its pipelines",
                        dev->info.name);
    info.pipeline = p->vk;
    r = VK_CALL(dev->fn.vkGetPipelineExecutableStatisticsKHR(dev->vk, &info, &count, NULL));
    if (r != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "statistics of kernel", gpu_kernel_info(p->kernel)->name, err));
    all = cor_array(count + 1, sizeof(*all));
    if (!all)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u statistics", dev->info.name, count);
    for (uint32_t i = 0; i < count; i++)
        all[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR;
    r = VK_CALL(dev->fn.vkGetPipelineExecutableStatisticsKHR(dev->vk, &info, &count, all));
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        TRY(gpu_fail(dev, r, "statistics of kernel", gpu_kernel_info(p->kernel)->name, err));
    for (uint32_t i = 0; i < count && i < max; i++) {
        snprintf(stats[i].name, sizeof(stats[i].name), "%.63s", all[i].name);
        stats[i].value = stat_value(&all[i]);
        *n = i + 1;
    }
done:
    cor_free(all);
    return st;
}

static const VkPipelineExecutableInternalRepresentationKHR *
find_text(const VkPipelineExecutableInternalRepresentationKHR *all, uint32_t n, const char *name)
{
    for (uint32_t i = 0; i < n; i++)
        if (all[i].isText && strstr(all[i].name, name))
            return &all[i];
    return NULL;
}

enum vkmoe_status gpu_pipeline_text(struct gpu_device *dev, const struct gpu_pipeline *p, const char *name,
                                    char **text, struct vkmoe_err *err)
{
    const char *kernel = gpu_kernel_info(p->kernel)->name;
    enum vkmoe_status st = VKMOE_OK;
    VkPipelineExecutableInternalRepresentationKHR all[16] = {{0}};
    VkPipelineExecutableInfoKHR info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR};
    uint32_t n = (uint32_t)COR_COUNT(all);
    char *mem[16] = {NULL};
    VkResult r;

    *text = NULL;
    if (!dev->caps.exec_props)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: the driver tells nothing of its pipelines",
                        dev->info.name);
    info.pipeline = p->vk;
    for (uint32_t i = 0; i < n; i++)
        all[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR;
    r = VK_CALL(dev->fn.vkGetPipelineExecutableInternalRepresentationsKHR(dev->vk, &info, &n, all));
    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        TRY(gpu_fail(dev, r, "code of kernel", kernel, err));
    if (!find_text(all, n, name))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: kernel %s: no \"%s\" from the driver", dev->info.name, kernel, name);
    for (uint32_t i = 0; i < n; i++) {
        mem[i] = cor_zalloc(all[i].dataSize + 1);
        if (!mem[i])
            FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the code of %s", dev->info.name, kernel);
        all[i].pData = mem[i];
    }
    r = VK_CALL(dev->fn.vkGetPipelineExecutableInternalRepresentationsKHR(dev->vk, &info, &n, all));
    if (r != VK_SUCCESS)
        TRY(gpu_fail(dev, r, "code of kernel", kernel, err));
    const size_t at = (size_t)(find_text(all, n, name) - all);

    *text = mem[at];
    mem[at] = NULL;
done:
    for (uint32_t i = 0; i < COR_COUNT(mem); i++)
        cor_free(mem[i]);
    return st;
}
