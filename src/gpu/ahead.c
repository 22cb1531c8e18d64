/* Threads that make pipelines ahead of their use (Vulkan allows it: the pipeline cache is synchronised
 * inside). They begin with what was wished for last, so that whoever asks in the order of wishes seldom
 * waits. Owns the threads; the list of pipelines is the device's. */
#include "core/thread.h"
#include "gpu/internal.h"

#define THREADS 2

struct gpu_ahead {
    struct cor_mutex *lock;
    struct cor_cond *done; /* a pipeline is no longer busy */
    struct cor_thread *threads[THREADS];
    bool stop;
};

void gpu_ahead_lock(struct gpu_device *dev)
{
    if (dev->ahead)
        cor_mutex_lock(dev->ahead->lock);
}

void gpu_ahead_unlock(struct gpu_device *dev)
{
    if (dev->ahead)
        cor_mutex_unlock(dev->ahead->lock);
}

bool gpu_ahead_claim(struct gpu_device *dev, struct gpu_pipeline *p)
{
    bool mine;

    gpu_ahead_lock(dev);
    while (p->made == GPU_BUSY)
        cor_cond_wait(dev->ahead->done, dev->ahead->lock);
    mine = p->made == GPU_RAW;
    if (mine)
        p->made = GPU_BUSY;
    gpu_ahead_unlock(dev);
    return mine;
}

void gpu_ahead_made(struct gpu_device *dev, struct gpu_pipeline *p, bool good)
{
    gpu_ahead_lock(dev);
    p->made = good ? GPU_MADE : GPU_RAW;
    p->wished = false;
    if (dev->ahead)
        cor_cond_broadcast(dev->ahead->done);
    gpu_ahead_unlock(dev);
}

/* The next one to make, claimed; NULL: none, or it is time to end. */
static struct gpu_pipeline *next_wish(struct gpu_device *dev)
{
    struct gpu_pipeline *p;

    gpu_ahead_lock(dev);
    for (p = dev->ahead->stop ? NULL : dev->pipelines; p; p = p->next)
        if (p->wished && p->made == GPU_RAW) {
            p->made = GPU_BUSY;
            break;
        }
    gpu_ahead_unlock(dev);
    return p;
}

static void make_wishes(void *arg)
{
    struct gpu_device *dev = arg;
    struct gpu_pipeline *p;

    while ((p = next_wish(dev)) != NULL)
        gpu_ahead_made(dev, p, gpu_pipeline_compile(dev, p) == VK_SUCCESS);
}

static void join(struct gpu_ahead *a)
{
    for (int i = 0; i < THREADS; i++) {
        cor_thread_join(a->threads[i]);
        a->threads[i] = NULL;
    }
}

void gpu_pipelines_ahead(struct gpu_device *dev)
{
    struct gpu_ahead *a = dev->ahead;
    struct vkmoe_err err;

    if (a)
        join(a);
    else
        a = cor_zalloc(sizeof(*a));
    if (!a)
        return;
    if ((!a->lock && cor_mutex_create(&a->lock, &err) != VKMOE_OK) ||
        (!a->done && cor_cond_create(&a->done, &err) != VKMOE_OK)) {
        cor_mutex_destroy(a->lock);
        cor_free(a);
        return;
    }
    dev->ahead = a;
    for (int i = 0; i < THREADS; i++)
        if (cor_thread_start(&a->threads[i], make_wishes, dev, "pipelines", &err) != VKMOE_OK)
            a->threads[i] = NULL;
}

void gpu_ahead_stop(struct gpu_device *dev)
{
    struct gpu_ahead *a = dev->ahead;

    if (!a)
        return;
    gpu_ahead_lock(dev);
    a->stop = true;
    gpu_ahead_unlock(dev);
    join(a);
    dev->ahead = NULL;
    cor_cond_destroy(a->done);
    cor_mutex_destroy(a->lock);
    cor_free(a);
}
