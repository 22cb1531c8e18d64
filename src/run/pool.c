#include "run/pool.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "core/alloc.h"

#define SEGMENT_MAX     (1ull << 30)
#define EXPERT_BINDINGS 4  /* storage buffers of an expert kernel besides its segments */
#define MATRIX_ALIGN    16 /* of the matrices in a slot */
#define SLOT_ALIGN      64

static uint64_t align_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static enum vkmoe_status plan_layouts(struct run_pool *p, struct vkmoe_err *err)
{
    uint64_t largest = 0;

    p->layout = cor_array(p->n_layers, sizeof(*p->layout));
    if (!p->layout)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the layout of %u layers", p->n_layers);
    for (uint32_t l = 0; l < p->n_layers; l++) {
        const struct mdl_layer *src = &p->mdl->layers[l];
        struct run_expert_layout *out = &p->layout[l];
        uint64_t up = align_up(mdl_expert_bytes(src->gate_exps), MATRIX_ALIGN);
        uint64_t down = up + align_up(mdl_expert_bytes(src->up_exps), MATRIX_ALIGN);
        uint64_t end = align_up(down + mdl_expert_bytes(src->down_exps), SLOT_ALIGN);

        if (end > UINT32_MAX)
            return cor_fail(err, VKMOE_ERR_LIMIT,
                            "layer %u: an expert of %" PRIu64 " bytes does not fit a slot", l, end);
        out->gate = src->gate_exps->type;
        out->up = src->up_exps->type;
        out->down = src->down_exps->type;
        out->up_off = (uint32_t)up;
        out->down_off = (uint32_t)down;
        out->bytes = (uint32_t)end;
        largest = end > largest ? end : largest;
    }
    p->slot_bytes = (uint32_t)largest;
    return VKMOE_OK;
}

/* Whole slots in segments no larger than one binding. All segments in one array where the device can index it
 * and has the bindings; otherwise every segment belongs to one layer. */
static enum vkmoe_status plan_segments(struct run_pool *p, struct vkmoe_err *err)
{
    const struct gpu_caps *caps = gpu_device_caps(p->dev);
    uint64_t most = caps->max_range < caps->max_alloc ? caps->max_range : caps->max_alloc, per;
    uint32_t n = p->n_layers * p->n_experts;

    most = most < SEGMENT_MAX ? most : SEGMENT_MAX;
    per = most / p->slot_bytes;
    if (!per)
        return cor_fail(err, VKMOE_ERR_LIMIT, "one expert takes %u bytes, the device binds %" PRIu64,
                        p->slot_bytes, most);
    p->n_segs = (uint32_t)((n + per - 1) / per);
    p->array =
        caps->array && p->n_segs <= caps->max_buffers - EXPERT_BINDINGS && p->n_segs <= RUN_MAX_SEGMENTS;
    if (p->array) {
        p->slots_per_seg = (uint32_t)((n + p->n_segs - 1) / p->n_segs);
    } else {
        p->segs_per_layer = (uint32_t)((p->n_experts + per - 1) / per);
        p->slots_per_seg = (p->n_experts + p->segs_per_layer - 1) / p->segs_per_layer;
        p->n_segs = p->segs_per_layer * p->n_layers;
    }
    p->n_slots = p->n_segs * p->slots_per_seg;
    return VKMOE_OK;
}

enum vkmoe_status run_pool_create(struct run_pool *p, struct gpu_device *dev, const struct mdl_model *m,
                                  struct vkmoe_err *err)
{
    uint32_t n = m->config.n_layers * m->config.n_experts;
    enum vkmoe_status st = VKMOE_OK;

    memset(p, 0, sizeof(*p));
    p->dev = dev;
    p->mdl = m;
    p->n_layers = m->config.n_layers;
    p->n_experts = m->config.n_experts;
    TRY(plan_layouts(p, err));
    TRY(plan_segments(p, err));
    p->segs = cor_array(p->n_segs, sizeof(*p->segs));
    p->slot_of = cor_array(n, sizeof(*p->slot_of));
    p->owner = cor_array(p->n_slots, sizeof(*p->owner));
    p->changes = cor_array(n, sizeof(*p->changes));
    if (!p->segs || !p->slot_of || !p->owner || !p->changes)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the table of %u experts", n);
    memset(p->slot_of, 0xff, n * sizeof(*p->slot_of));
    memset(p->owner, 0xff, p->n_slots * sizeof(*p->owner));
    for (uint32_t i = 0; i < p->n_segs; i++)
        TRY(gpu_buffer_create(&p->segs[i], dev, (uint64_t)p->slots_per_seg * p->slot_bytes, GPU_MEM_DEVICE,
                              "expert segment", err));
    TRY(gpu_buffer_create(&p->table, dev, (uint64_t)n * 4, GPU_MEM_DEVICE, "slot table", err));
    TRY(gpu_upload(dev, p->table, 0, p->slot_of, (uint64_t)n * 4, err));
done:
    return st;
}

void run_pool_close(struct run_pool *p)
{
    for (uint32_t i = 0; p->segs && i < p->n_segs; i++)
        gpu_buffer_destroy(p->segs[i]);
    gpu_buffer_destroy(p->table);
    cor_free(p->segs);
    cor_free(p->slot_of);
    cor_free(p->owner);
    cor_free(p->changes);
    cor_free(p->layout);
    memset(p, 0, sizeof(*p));
}

void run_pool_segments(const struct run_pool *p, uint32_t layer, uint32_t *first, uint32_t *n)
{
    *first = p->array ? 0 : layer * p->segs_per_layer;
    *n = p->array ? p->n_segs : p->segs_per_layer;
}

static uint32_t free_slot(const struct run_pool *p, uint32_t layer)
{
    uint32_t first, n;

    run_pool_segments(p, layer, &first, &n);
    for (uint32_t s = first * p->slots_per_seg; s < (first + n) * p->slots_per_seg; s++)
        if (p->owner[s] == NONE)
            return s;
    return NONE;
}

/* Bytes only: the table is changed by the caller once the copies have arrived. */
static enum vkmoe_status upload_expert(struct run_pool *p, uint32_t layer, uint32_t expert, uint32_t slot,
                                       struct run_progress *progress, struct vkmoe_err *err)
{
    const struct mdl_layer *l = &p->mdl->layers[layer];
    const struct run_expert_layout *at = &p->layout[layer];
    const struct mdl_tensor *src[] = {l->gate_exps, l->up_exps, l->down_exps};
    const uint32_t off[] = {0, at->up_off, at->down_off};
    struct gpu_buffer *seg = p->segs[slot / p->slots_per_seg];
    uint64_t base = (uint64_t)(slot % p->slots_per_seg) * p->slot_bytes;
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < COR_COUNT(src); i++) {
        TRY(run_upload_tensor(p->dev, seg, base + off[i], p->mdl->gguf, src[i],
                              mdl_expert_off(src[i], expert), mdl_expert_bytes(src[i]), progress, err));
        p->uploaded_bytes += mdl_expert_bytes(src[i]);
    }
    p->uploads++;
done:
    return st;
}

enum vkmoe_status run_pool_load(struct run_pool *p, uint32_t layer, const uint32_t *missing,
                                struct run_progress *progress, struct vkmoe_err *err)
{
    uint32_t first_change = p->n_changes;
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t e = 0; e < p->n_experts; e++) {
        uint32_t index = layer * p->n_experts + e, slot;

        if (!(missing[e / 32] >> e % 32 & 1) || p->slot_of[index] != NONE)
            continue;
        slot = free_slot(p, layer);
        if (slot == NONE)
            FAIL(VKMOE_ERR_LIMIT, "layer %u, expert %u: no free slot among %u", layer, e, p->n_slots);
        TRY(upload_expert(p, layer, e, slot, progress, err));
        p->slot_of[index] = slot;
        p->owner[slot] = index;
        assert(p->n_changes < p->n_layers * p->n_experts);
        p->changes[p->n_changes++] = index;
    }
    TRY(gpu_upload_wait(p->dev, err));
done:
    if (st != VKMOE_OK) { /* what did not surely arrive is absent again */
        while (p->n_changes > first_change) {
            uint32_t index = p->changes[--p->n_changes];

            p->owner[p->slot_of[index]] = NONE;
            p->slot_of[index] = NONE;
        }
    }
    return st;
}

enum vkmoe_status run_pool_load_all(struct run_pool *p, struct run_progress *progress, struct vkmoe_err *err)
{
    uint32_t all[MAX_EXPERTS / 32];
    enum vkmoe_status st = VKMOE_OK;

    memset(all, 0xff, sizeof(all));
    for (uint32_t l = 0; l < p->n_layers; l++)
        TRY(run_pool_load(p, l, all, progress, err));
    /* No submit reads the table yet, so it can be written whole instead of published. */
    TRY(gpu_upload(p->dev, p->table, 0, p->slot_of, (uint64_t)p->n_layers * p->n_experts * 4, err));
    p->n_changes = 0;
done:
    return st;
}

uint32_t run_pool_pending(const struct run_pool *p, uint32_t *pairs)
{
    for (uint32_t i = 0; i < p->n_changes; i++) {
        pairs[2 * i] = p->changes[i];
        pairs[2 * i + 1] = p->slot_of[p->changes[i]];
    }
    return p->n_changes;
}

void run_pool_published(struct run_pool *p)
{
    p->n_changes = 0;
}

uint64_t run_pool_bytes(const struct run_pool *p)
{
    return (uint64_t)p->n_slots * p->slot_bytes + (uint64_t)p->n_layers * p->n_experts * 4;
}
