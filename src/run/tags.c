#include "run/tags.h"

#include <inttypes.h>

#include "core/alloc.h"
#include "gpu/commands.h"

#define TAG_BYTES   64
#define TAG_WG      32
#define TAG_COLUMNS 1024 /* of the grid */
#define TAG_WAIT_NS 10000000000u

struct tags {
    const struct run_pool *p;
    uint32_t n;     /* entries */
    uint32_t *list; /* n x TAG_WORDS */
    struct gpu_buffer *list_buf, *result;
    struct gpu_cmds *cmds;
};

static uint64_t words_of(uint64_t bytes)
{
    return bytes / 4 < TAG_BYTES / 4 ? bytes / 4 : TAG_BYTES / 4;
}

/* Whole words only, so a matrix that ends within one is compared up to there. */
static enum vkmoe_status fill_entry(struct tags *t, uint32_t index, uint32_t slot, struct vkmoe_err *err)
{
    const uint32_t layer = index / t->p->n_experts, expert = index % t->p->n_experts;
    const struct mdl_layer *l = &t->p->mdl->layers[layer];
    const uint64_t first = words_of(mdl_expert_bytes(l->gate_exps));
    const uint64_t last = words_of(mdl_expert_bytes(l->down_exps));
    const uint64_t last_off = mdl_expert_bytes(l->down_exps) / 4 * 4 - last * 4;
    uint32_t *e = t->list + (size_t)t->n * TAG_WORDS;
    enum vkmoe_status st = VKMOE_OK;

    e[TAG_SLOT] = slot;
    e[TAG_N_FIRST] = (uint32_t)first;
    e[TAG_N_LAST] = (uint32_t)last;
    e[TAG_LAST_OFF] = t->p->layout[layer].down_off + (uint32_t)last_off;
    TRY(mdl_gguf_read(t->p->mdl->gguf, l->gate_exps, mdl_expert_off(l->gate_exps, expert), e + TAG_FIRST,
                      (size_t)first * 4, err));
    TRY(mdl_gguf_read(t->p->mdl->gguf, l->down_exps, mdl_expert_off(l->down_exps, expert) + last_off,
                      e + TAG_FIRST + first, (size_t)last * 4, err));
    t->n++;
done:
    return st;
}

static enum vkmoe_status fill_list(struct tags *t, const uint32_t *indices, uint32_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    t->list = cor_array((size_t)n + 1, TAG_WORDS * sizeof(*t->list));
    if (!t->list)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the tags of %" PRIu32 " experts", n);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t index = indices ? indices[i] : i, slot = run_slots_table(t->p->slots)[index];

        if (slot != NONE)
            TRY(fill_entry(t, index, slot, err));
    }
done:
    return st;
}

/* One dispatch for all segments as an array, else one for each. */
static enum vkmoe_status record(struct tags *t, struct vkmoe_err *err)
{
    const struct run_pool *p = t->p;
    const uint32_t n_bound = p->array ? p->n_segs : 1;
    const struct spec_tags spec = {TAG_WG, p->slot_bytes, p->slots_per_seg, n_bound};
    const uint32_t x = t->n < TAG_COLUMNS ? t->n : TAG_COLUMNS;
    struct gpu_pipeline *pipeline;
    struct gpu_bind binds[2 + RUN_MAX_SEGMENTS] = {{t->list_buf, 0, 0}, {t->result, 0, 0}};
    enum vkmoe_status st = VKMOE_OK;

    TRY(gpu_pipeline_get(&pipeline, p->dev, p->array ? GPU_K_slot_tags_arr : GPU_K_slot_tags, &spec,
                         sizeof(spec), n_bound, err));
    TRY(gpu_cmds_create(&t->cmds, p->dev, "slot tags", err));
    gpu_cmds_begin(t->cmds);
    for (uint32_t seg = 0; seg < p->n_segs; seg += n_bound) {
        const struct push_tags push = {t->n, seg};

        for (uint32_t i = 0; i < n_bound; i++)
            binds[2 + i] = (struct gpu_bind){p->segs[seg + i], 0, 0};
        gpu_cmds_dispatch(t->cmds, pipeline, binds, 2 + n_bound, &push, x, (t->n + x - 1) / x, 1);
        gpu_cmds_barrier(t->cmds, seg + n_bound < p->n_segs ? GPU_BARRIER_COMPUTE : GPU_BARRIER_HOST);
    }
    TRY(gpu_cmds_end(t->cmds, err));
done:
    return st;
}

static enum vkmoe_status compare(struct tags *t, struct vkmoe_err *err)
{
    const uint64_t bytes = (uint64_t)t->n * TAG_WORDS * 4;
    enum vkmoe_status st = VKMOE_OK;
    uint32_t *result;

    TRY(gpu_buffer_create(&t->list_buf, t->p->dev, bytes, GPU_MEM_STEP, "slot tags", err));
    TRY(gpu_upload(t->p->dev, t->list_buf, 0, t->list, bytes, err));
    TRY(gpu_buffer_create(&t->result, t->p->dev, 8, GPU_MEM_READ, "slot tags that differ", err));
    result = gpu_buffer_map(t->result);
    result[0] = 0;
    result[1] = NONE;
    TRY(gpu_buffer_flush(t->result, 0, 8, err));
    TRY(record(t, err));
    TRY(gpu_submit(t->p->dev, &t->cmds, 1, err));
    TRY(gpu_wait(t->p->dev, TAG_WAIT_NS, "slot tags", err));
    TRY(gpu_buffer_invalidate(t->result, 0, 8, err));
    if (result[0]) {
        const uint32_t slot = t->list[(size_t)(result[1] < t->n ? result[1] : 0) * TAG_WORDS + TAG_SLOT];
        const uint32_t owner = run_slots_owners(t->p->slots)[slot];

        FAIL(VKMOE_ERR_DEVICE,
             "layer %" PRIu32 ", expert %" PRIu32 ": slot %" PRIu32
             " holds other bytes than the file (%" PRIu32 " of %" PRIu32 " slots)",
             owner / t->p->n_experts, owner % t->p->n_experts, slot, result[0], t->n);
    }
done:
    return st;
}

enum vkmoe_status run_tags_check(const struct run_pool *p, const uint32_t *indices, uint32_t n,
                                 struct vkmoe_err *err)
{
    struct tags t = {.p = p};
    enum vkmoe_status st = VKMOE_OK;

    TRY(fill_list(&t, indices, indices ? n : p->n_layers * p->n_experts, err));
    if (t.n)
        TRY(compare(&t, err));
done:
    gpu_cmds_destroy(t.cmds);
    gpu_buffer_destroy(t.result);
    gpu_buffer_destroy(t.list_buf);
    cor_free(t.list);
    return st;
}
