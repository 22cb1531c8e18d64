#include "run/model.h"

#include <inttypes.h>

#include "core/alloc.h"
#include "core/log.h"
#include "core/os.h"

#define RESERVE_MIN     (512ull << 20)
#define POLL_NS         1000000000ull
#define MIB(bytes)      ((double)(bytes) / (1 << 20))
#define MIB_DOWN(bytes) ((bytes) >> 20)

static uint64_t min64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

/* What other programs and the driver keep: 512 MiB or a tenth, on small devices a quarter at most. */
static uint64_t reserve_of(const struct gpu_device *dev)
{
    uint64_t heap = gpu_device_caps(dev)->heap_bytes, r = heap / 10;

    return min64(r > RESERVE_MIN ? r : RESERVE_MIN, heap / 4);
}

/* ---- the pool's size
 * ---------------------------------------------------------------------------------------- */

/* All experts where they fit beside the reserve, else as many as fit, at least the floor. */
static uint64_t automatic_budget(const struct run_model *m, uint64_t room, uint64_t all, uint64_t floor)
{
    uint64_t budget = less(room, m->reserve);

    if (budget >= all)
        return RUN_POOL_ALL;
    if (budget < floor && room >= floor)
        cor_log(
            VKMOE_LOG_WARN,
            "%.0f MiB are free on the device: the smallest expert pool leaves less than the reserve of %.0f",
            MIB(room), MIB(m->reserve));
    return budget < floor ? floor : budget;
}

static enum vkmoe_status too_large(const struct run_model *m, const struct run_model_params *p, uint64_t room,
                                   uint64_t floor, struct vkmoe_err *err)
{
    const char *file = cor_file_path(m->mdl->gguf->file);
    double beside = MIB(run_weights_bytes(&m->weights)), sessions = MIB(p->session_bytes);

    if (room < floor)
        return cor_fail(
            err, VKMOE_ERR_LIMIT,
            "%s: the smallest expert pool takes %.2f MiB, but beside %.2f MiB of dense weights and "
            "%.2f of cache and activations (-c) %.2f free on the device are too few",
            file, MIB(floor), beside, sessions, MIB(gpu_device_free_bytes(m->dev)));
    return cor_fail(
        err, VKMOE_ERR_LIMIT,
        "%s: an expert pool of %.2f MiB does not fit beside %.2f MiB of dense weights and %.2f of "
        "cache and activations: at most %" PRIu64 " MiB",
        file, MIB(run_pool_planned_bytes(&m->pool)), beside, sessions, MIB_DOWN(room));
}

static enum vkmoe_status size_pool(struct run_model *m, const struct run_model_params *p,
                                   struct run_pool_params *pp, struct vkmoe_err *err)
{
    uint64_t room = less(gpu_device_free_bytes(m->dev), run_weights_bytes(&m->weights) + p->session_bytes);
    uint64_t all, floor;
    enum vkmoe_status st = VKMOE_OK;

    pp->budget = RUN_POOL_ALL;
    TRY(run_pool_plan(&m->pool, m->dev, m->mdl, pp, err));
    all = run_pool_planned_bytes(&m->pool);
    floor = run_pool_floor_bytes(&m->pool);
    m->reserve = reserve_of(m->dev);
    m->auto_budget = p->pool_budget == RUN_POOL_AUTO;
    pp->budget = m->auto_budget ? automatic_budget(m, room, all, floor) : p->pool_budget;
    run_pool_close(&m->pool);
    TRY(run_pool_plan(&m->pool, m->dev, m->mdl, pp, err));
    if (run_pool_planned_bytes(&m->pool) > room)
        TRY(too_large(m, p, room, floor, err));
    if (!m->auto_budget && run_pool_planned_bytes(&m->pool) > less(room, m->reserve))
        cor_log(VKMOE_LOG_WARN, "an expert pool of %.0f MiB leaves less than %.0f MiB free on the device",
                MIB(run_pool_planned_bytes(&m->pool)), MIB(m->reserve));
done:
    return st;
}

static void give_back(struct run_model *m, uint64_t bytes)
{
    uint64_t now = run_pool_bytes(&m->pool), least = run_pool_least_bytes(&m->pool), want = less(now, bytes);
    struct vkmoe_err err = {0};

    if (now > least && run_pool_resize(&m->pool, want > least ? want : least, &err) != VKMOE_OK)
        cor_log(VKMOE_LOG_WARN, "the device is short of memory and the expert pool keeps its size: %s",
                err.message);
}

/* More is welcome, not needed: only a device that is gone is an error. */
static enum vkmoe_status take_more(struct run_model *m, struct vkmoe_err *err)
{
    struct vkmoe_err why = {0};
    enum vkmoe_status st = run_pool_resize(&m->pool, run_pool_next_bytes(&m->pool), &why);

    if (st != VKMOE_ERR_MEMORY && st != VKMOE_ERR_LIMIT)
        return st == VKMOE_OK ? st : cor_fail(err, st, "%s", why.message);
    m->grow_failed = true;
    cor_log(VKMOE_LOG_INFO, "the expert pool does not grow: %s", why.message);
    return VKMOE_OK;
}

enum vkmoe_status run_model_poll(struct run_model *m, struct vkmoe_err *err)
{
    uint64_t now = cor_now_ns(), free, seg = (uint64_t)m->pool.slots_per_seg * m->pool.slot_bytes;

    if (!m->auto_budget || !m->pool.array || !m->pool.n_allowed ||
        (m->last_poll_ns && now - m->last_poll_ns < POLL_NS))
        return VKMOE_OK;
    m->last_poll_ns = now;
    free = gpu_device_free_bytes(m->dev);
    if (free < m->reserve / 2) {
        m->grow_failed = false;
        give_back(m, m->reserve - free);
    } else if (free > m->reserve + 2 * seg && !m->grow_failed && !run_pool_holds_all(&m->pool)) {
        return take_more(m, err);
    }
    return VKMOE_OK;
}

/* ---- opening
 * ------------------------------------------------------------------------------------------------ */

static enum vkmoe_status allow_existing(struct run_model *m, struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;

    m->allowed = cor_array((size_t)c->n_layers * run_mask_words(c), 4);
    if (!m->allowed)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the mask of %u layers", c->n_layers);
    for (uint32_t l = 0; l < c->n_layers; l++)
        for (uint32_t e = 0; e < mdl_expert_count(m->mdl, l); e++)
            m->allowed[l * run_mask_words(c) + e / 32] |= 1u << (e % 32);
    return VKMOE_OK;
}

enum vkmoe_status run_model_plan(struct run_model **out, struct gpu_device *dev, const char *path,
                                 struct vkmoe_err *err)
{
    struct run_model *m = cor_zalloc(sizeof(*m));
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!m)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the model", path);
    m->dev = dev;
    run_variants_default(&m->variants, gpu_device_caps(dev));
    TRY(mdl_open(&m->mdl, path, err));
    TRY(allow_existing(m, err));
    TRY(run_weights_plan(&m->weights, dev, m->mdl, err));
    *out = m;
    m = NULL;
done:
    run_model_close(m);
    return st;
}

static uint64_t dense_file_bytes(const struct mdl_model *m)
{
    uint64_t sum = 0;

    for (uint64_t i = 0; i < m->gguf->n_tensors; i++)
        sum += m->gguf->tensors[i].bytes;
    for (uint32_t l = 0; l < m->config.n_layers; l++) {
        const struct mdl_tensor *tensors[MDL_EXPERT_PARTS];
        uint64_t bytes[MDL_EXPERT_PARTS];

        mdl_expert_parts(&m->layers[l], tensors, bytes);
        for (int i = 0; i < MDL_EXPERT_PARTS; i++)
            sum -= tensors[i] ? tensors[i]->bytes : 0;
    }
    return sum;
}

enum vkmoe_status run_model_load(struct run_model *m, const struct run_model_params *p,
                                 struct run_progress *progress, struct vkmoe_err *err)
{
    const struct run_model_params defaults = {0};
    struct run_pool_params pp = {0};
    struct run_progress none = {0};
    bool all;
    enum vkmoe_status st = VKMOE_OK;

    if (!p)
        p = &defaults;
    if (!progress)
        progress = &none;
    for (uint32_t i = 0; p->allowed && i < m->mdl->config.n_layers * run_mask_words(&m->mdl->config); i++)
        m->allowed[i] &= p->allowed[i];
    pp.policy = p->policy;
    pp.allowed = m->allowed;
    pp.least = p->doc_experts;
    m->check_slots = p->check_slots;
    TRY(size_pool(m, p, &pp, err));
    all = run_pool_holds_all(&m->pool) && !p->lazy;
    progress->total = dense_file_bytes(m->mdl);
    if (all || p->hot)
        progress->total += run_pool_load_bytes(&m->pool, all ? NULL : p->hot, p->n_hot);
    TRY(run_weights_load(&m->weights, m->mdl, progress, err));
    TRY(run_pool_create(&m->pool, &pp, err));
    if (p->placed)
        p->placed(p->placed_user, m);
    if (all)
        TRY(run_pool_load_all(&m->pool, progress, err));
    else if (p->hot)
        TRY(run_pool_load_list(&m->pool, p->hot, p->n_hot, progress, err));
done:
    return st;
}

enum vkmoe_status run_model_open(struct run_model **out, struct gpu_device *dev, const char *path,
                                 const struct run_model_params *p, struct run_progress *progress,
                                 struct vkmoe_err *err)
{
    struct run_model *m;
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    TRY(run_model_plan(&m, dev, path, err));
    st = run_model_load(m, p, progress, err);
    if (st != VKMOE_OK)
        run_model_close(m);
    else
        *out = m;
done:
    return st;
}

void run_model_close(struct run_model *m)
{
    if (!m)
        return;
    run_pool_close(&m->pool);
    run_weights_close(&m->weights);
    mdl_close(m->mdl);
    cor_free(m->allowed);
    cor_free(m);
}
