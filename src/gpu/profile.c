/* Times of kernels by timestamp queries around every recorded dispatch, and what they moved by their costs.
 * Owns query pools and sums; off unless the device was opened for it. */
#include <string.h>

#include "core/os.h"
#include "gpu/internal.h"

#define DISPATCHES  1024 /* of one command buffer that are timed; later ones are not */
#define SUBMITS_MAX 512  /* command buffers between two waits */

struct gpu_queries {
    VkQueryPool pool;
    uint32_t n; /* dispatches */
    uint16_t kernels[DISPATCHES];
    struct gpu_cost costs[DISPATCHES];
};

struct gpu_profile {
    struct gpu_kernel_time times[GPU_KERNEL_COUNT];
    struct gpu_gaps gaps;
    uint64_t since; /* of the first submit that has not been waited for */
    double tick_ns;
    uint64_t mask;        /* valid bits of a timestamp */
    struct gpu_step step; /* of the next submits */
    struct gpu_queries *submitted[SUBMITS_MAX];
    struct gpu_step steps[SUBMITS_MAX]; /* of those submitted */
    uint32_t n_submitted;
    uint64_t stamps[2 * DISPATCHES];
};

enum vkmoe_status gpu_profile_open(struct gpu_device *dev, struct vkmoe_err *err)
{
    const struct gpu_phys *phys = dev->phys;
    VkQueueFamilyProperties fam[64];
    uint32_t n = 64, bits;

    vkGetPhysicalDeviceQueueFamilyProperties(phys->vk, &n, fam);
    bits = phys->queue_family < n ? fam[phys->queue_family].timestampValidBits : 0;
    if (!bits || phys->props.limits.timestampPeriod <= 0)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: no timestamps: kernels cannot be timed",
                        dev->info.name);
    dev->profile = cor_zalloc(sizeof(*dev->profile));
    if (!dev->profile)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a profile", dev->info.name);
    dev->profile->tick_ns = (double)phys->props.limits.timestampPeriod;
    dev->profile->mask = bits < 64 ? (1ull << bits) - 1 : UINT64_MAX;
    return VKMOE_OK;
}

void gpu_profile_close(struct gpu_device *dev)
{
    cor_free(dev->profile);
    dev->profile = NULL;
}

enum vkmoe_status gpu_queries_create(struct gpu_queries **out, struct gpu_device *dev, struct vkmoe_err *err)
{
    VkQueryPoolCreateInfo ci = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                .queryCount = 2 * DISPATCHES};
    struct gpu_queries *q;
    VkResult r;

    *out = NULL;
    if (!dev->profile)
        return VKMOE_OK;
    q = cor_zalloc(sizeof(*q));
    if (!q)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a profile", dev->info.name);
    if ((r = VK_CALL(dev->fn.vkCreateQueryPool(dev->vk, &ci, NULL, &q->pool))) != VK_SUCCESS) {
        cor_free(q);
        return gpu_fail(dev, r, "creating timestamp queries", NULL, err);
    }
    *out = q;
    return VKMOE_OK;
}

void gpu_queries_destroy(struct gpu_queries *q, struct gpu_device *dev)
{
    struct gpu_profile *p = dev->profile;

    if (!q)
        return;
    for (uint32_t i = 0; p && i < p->n_submitted; i++)
        if (p->submitted[i] == q) {
            p->submitted[i] = p->submitted[--p->n_submitted];
            p->steps[i--] = p->steps[p->n_submitted];
        }
    if (!dev->hung)
        dev->fn.vkDestroyQueryPool(dev->vk, q->pool, NULL);
    cor_free(q);
}

void gpu_queries_begin(struct gpu_queries *q, struct gpu_device *dev, VkCommandBuffer cmd)
{
    if (!q)
        return;
    q->n = 0;
    dev->fn.vkCmdResetQueryPool(cmd, q->pool, 0, 2 * DISPATCHES);
}

void gpu_queries_stamp(struct gpu_queries *q, struct gpu_device *dev, VkCommandBuffer cmd, enum gpu_kernel k,
                       const struct gpu_cost *cost, bool after)
{
    if (!q || q->n == DISPATCHES)
        return;
    dev->fn.vkCmdWriteTimestamp(cmd, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, q->pool, 2 * q->n + after);
    if (after) {
        q->costs[q->n] = *cost;
        q->kernels[q->n++] = (uint16_t)k;
    }
}

void gpu_cost_add(struct gpu_amount *sum, const struct gpu_cost *cost, const struct gpu_step *step)
{
    const uint64_t n = cost->rows ? step->n_rows : step->n_tokens;
    const uint64_t seen = n * step->pos + n * (n + 1) / 2, weights = cost->weights * n;

    sum->weights += weights < cost->weights_most ? weights : cost->weights_most;
    sum->activations += cost->activations * n;
    sum->cache += cost->cache * seen;
    sum->flops += cost->flops * n + cost->flops_cache * seen;
}

void gpu_profile_step(struct gpu_device *dev, const struct gpu_step *step)
{
    if (dev->profile)
        dev->profile->step = *step;
}

void gpu_profile_submitting(struct gpu_device *dev)
{
    if (dev->profile)
        dev->profile->since = cor_now_ns();
}

void gpu_profile_submitted(struct gpu_device *dev, struct gpu_queries *q)
{
    struct gpu_profile *p = dev->profile;

    if (p && q && q->n && p->n_submitted < SUBMITS_MAX) {
        p->steps[p->n_submitted] = p->step;
        p->submitted[p->n_submitted++] = q;
    }
}

/* A command buffer that was submitted twice since the last wait has kept its second run only. */
void gpu_profile_collect(struct gpu_device *dev)
{
    struct gpu_profile *p = dev->profile;
    uint64_t first = 0, last = 0, busy = 0; /* ticks: last from the first stamp on, busy in kernels */

    for (uint32_t i = 0; p && i < p->n_submitted; i++) {
        const struct gpu_queries *q = p->submitted[i];

        if (dev->fn.vkGetQueryPoolResults(dev->vk, q->pool, 0, 2 * q->n, sizeof(p->stamps), p->stamps, 8,
                                          VK_QUERY_RESULT_64_BIT) != VK_SUCCESS)
            continue;
        if (!first)
            first = p->stamps[0];
        for (uint32_t j = 0; j < q->n; j++) {
            uint64_t end = (p->stamps[2 * j + 1] - first) & p->mask;
            uint64_t ticks = (p->stamps[2 * j + 1] - p->stamps[2 * j]) & p->mask;
            struct gpu_kernel_time *t = &p->times[q->kernels[j]];
            struct gpu_amount amount = {0};

            last = end > last && end < p->mask / 2 ? end : last;
            busy += ticks;
            gpu_cost_add(&amount, &q->costs[j], &p->steps[i]);
            t->count++;
            t->ns += (double)ticks * p->tick_ns;
            t->bytes += (double)(amount.weights + amount.activations + amount.cache);
            t->flops += (double)amount.flops;
        }
    }
    if (p && p->n_submitted) {
        const double device_ns = (double)last * p->tick_ns, host_ns = (double)(cor_now_ns() - p->since);

        p->n_submitted = 0;
        p->gaps.waits++;
        p->gaps.between_ns += last > busy ? (double)(last - busy) * p->tick_ns : 0; /* kernels may overlap */
        p->gaps.around_ns += host_ns > device_ns ? host_ns - device_ns : 0;
    }
}

const struct gpu_gaps *gpu_profile_gaps(const struct gpu_device *dev)
{
    return dev->profile ? &dev->profile->gaps : NULL;
}

const struct gpu_kernel_time *gpu_profile_times(const struct gpu_device *dev)
{
    return dev->profile ? dev->profile->times : NULL;
}

void gpu_profile_reset(struct gpu_device *dev)
{
    if (!dev->profile)
        return;
    memset(dev->profile->times, 0, sizeof(dev->profile->times));
    memset(&dev->profile->gaps, 0, sizeof(dev->profile->gaps));
}
