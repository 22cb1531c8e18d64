#include "run/pool.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "core/alloc.h"

#define SEGMENT_MAX   (1ull << 30)
#define MATRIX_ALIGN  16 /* of the matrices in a slot */
#define SLOT_ALIGN    64
#define ENTRIES_MIN   2u /* staging entries: one is read while one is copied */
#define ENTRIES_MAX   16u
#define MIB(bytes)    ((double)(bytes) / (1 << 20))
#define MIB_UP(bytes) (((bytes) + (1 << 20) - 1) >> 20)

static uint64_t align_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static uint64_t div_up(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

static uint32_t bank(const struct run_pool *p)
{
    return p->n_layers * p->n_experts;
}

bool run_pool_allows(const struct run_pool *p, uint32_t layer, uint32_t expert)
{
    const uint32_t *map = p->allowed;

    if (mdl_is_dense(&p->mdl->config, layer))
        return false;
    return !map || map[(size_t)layer * ((p->n_experts + 31) / 32) + expert / 32] >> (expert % 32) & 1;
}

/* ---- plan
 * --------------------------------------------------------------------------------------------------- */

static enum vkmoe_status count_allowed(struct run_pool *p, struct vkmoe_err *err)
{
    p->n_of_layer = cor_array(p->n_layers, sizeof(*p->n_of_layer));
    if (!p->n_of_layer)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a pool of %u layers", p->n_layers);
    for (uint32_t l = 0; l < p->n_layers; l++) {
        uint32_t *n = &p->n_of_layer[l];

        for (uint32_t e = 0; e < p->n_experts; e++)
            *n += run_pool_allows(p, l, e);
        p->n_allowed += *n;
        p->layer_allowed = *n > p->layer_allowed ? *n : p->layer_allowed;
    }
    return VKMOE_OK;
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
        uint32_t *const offs[MDL_EXPERT_PARTS] = {
            NULL, &out->up_off, &out->down_off, &out->gate_bias, &out->up_bias, &out->down_bias};
        const struct mdl_tensor *tensors[MDL_EXPERT_PARTS];
        uint64_t bytes[MDL_EXPERT_PARTS], end = 0;

        mdl_expert_parts(src, tensors, bytes);
        for (int i = 0; i < MDL_EXPERT_PARTS; i++) {
            if (!tensors[i])
                continue;
            end = align_up(end, MATRIX_ALIGN);
            if (end + bytes[i] > UINT32_MAX - SLOT_ALIGN)
                return cor_fail(err, VKMOE_ERR_LIMIT,
                                "layer %u: an expert of %" PRIu64 " bytes does not fit a slot", l,
                                end + bytes[i]);
            if (offs[i])
                *offs[i] = (uint32_t)end;
            end += bytes[i];
        }
        end = align_up(end, SLOT_ALIGN);
        if (tensors[0]) {
            out->gate = src->gate_exps->type;
            out->up = src->up_exps->type;
            out->down = src->down_exps->type;
        }
        out->bytes = (uint32_t)end;
        largest = end > largest ? end : largest;
    }
    p->slot_bytes = largest ? (uint32_t)largest : SLOT_ALIGN; /* in a model without experts: of no slot */
    return VKMOE_OK;
}

/* Whole slots per segment, by what one binding takes. */
static enum vkmoe_status most_per_segment(const struct run_pool *p, uint64_t *per, struct vkmoe_err *err)
{
    const struct gpu_caps *caps = gpu_device_caps(p->dev);
    uint64_t most = caps->max_range < caps->max_alloc ? caps->max_range : caps->max_alloc;

    most = most < SEGMENT_MAX ? most : SEGMENT_MAX;
    *per = most / p->slot_bytes;
    if (!*per)
        return cor_fail(err, VKMOE_ERR_LIMIT, "one expert takes %u bytes, the device binds %" PRIu64,
                        p->slot_bytes, most);
    return VKMOE_OK;
}

static uint32_t most_segments(const struct run_pool *p)
{
    uint32_t n = gpu_device_caps(p->dev)->max_buffers - RUN_EXPERT_BINDINGS;

    return n < RUN_MAX_SEGMENTS ? n : RUN_MAX_SEGMENTS;
}

/* Room for n slots: all segments in one array where the device can index it and has the bindings; otherwise
 * every segment belongs to one layer, each layer getting the same number, in all at most n unless n is the
 * number that is
 * allowed. */
static enum vkmoe_status plan_segments(struct run_pool *p, uint32_t n, struct vkmoe_err *err)
{
    uint64_t per, share;
    enum vkmoe_status st = VKMOE_OK;

    TRY(most_per_segment(p, &per, err));
    if (!p->n_allowed) { /* a model without experts: nothing is bound */
        p->array = true;
        p->slots_per_seg = 1;
        return VKMOE_OK;
    }
    p->n_segs = (uint32_t)div_up(n, per);
    p->array = gpu_device_caps(p->dev)->array && p->n_segs <= most_segments(p);
    if (p->array) {
        p->slots_per_seg = (uint32_t)div_up(n, p->n_segs);
        p->n_slots = n;
        p->cap_segs = (uint32_t)div_up(p->n_allowed, p->slots_per_seg);
        return VKMOE_OK;
    }
    share = n == p->n_allowed ? p->layer_allowed : n / p->n_layers;
    p->segs_per_layer = (uint32_t)div_up(share, per);
    p->slots_per_seg =
        (uint32_t)(n == p->n_allowed ? div_up(share, p->segs_per_layer) : share / p->segs_per_layer);
    p->n_segs = p->segs_per_layer * p->n_layers;
    p->cap_segs = p->n_segs;
    p->n_slots = p->n_segs * p->slots_per_seg;
done:
    return st;
}

static struct run_fetch_params fetch_params(const struct run_pool *p, uint32_t entries)
{
    return (struct run_fetch_params){
        .n_workers = RUN_FETCH_WORKERS, .n_entries = entries, .entry_bytes = p->slot_bytes};
}

static uint64_t staging_bytes(const struct run_pool *p, uint32_t entries)
{
    const struct run_fetch_params fp = fetch_params(p, entries);

    return run_fetch_plan_bytes(p->dev, &fp);
}

static uint64_t table_bytes(const struct run_pool *p)
{
    return (uint64_t)bank(p) * 4;
}

/* Staging for two tokens' worth of one layer. */
static uint32_t usual_entries(const struct run_pool *p)
{
    uint32_t n = 2 * p->mdl->config.n_experts_used;

    return n < ENTRIES_MIN ? ENTRIES_MIN : n > ENTRIES_MAX ? ENTRIES_MAX : n;
}

static struct run_slots_params slots_params(const struct run_pool *p)
{
    return (struct run_slots_params){
        .n_layers = p->n_layers,
        .n_experts = p->n_experts,
        .n_used = p->mdl->config.n_experts_used ? p->mdl->config.n_experts_used : 1,
        .n_slots = p->n_slots,
        .layer_slots = p->array ? 0 : p->n_slots / p->n_layers,
        .allowed = p->n_of_layer,
        .least = p->least,
    };
}

uint64_t run_pool_floor_bytes(const struct run_pool *p)
{
    struct run_slots_params sp = slots_params(p);
    uint32_t floor;
    uint64_t per;

    sp.layer_slots = !p->array;
    floor = run_slots_floor(&sp);
    if (!p->array && most_per_segment(p, &per, NULL) == VKMOE_OK) {
        uint64_t share = floor / p->n_layers, segs = div_up(share, per);

        floor = (uint32_t)(div_up(share, segs) * segs * p->n_layers);
    }
    return (uint64_t)floor * p->slot_bytes + staging_bytes(p, ENTRIES_MIN) + table_bytes(p);
}

/* Slots and staging entries that a budget pays for; 0 slots: it is below the floor. */
static uint32_t afford(const struct run_pool *p, uint64_t budget, uint32_t *entries)
{
    uint32_t most = p->n_allowed;
    uint64_t spare; /* what staging may take without touching the floor */

    *entries = usual_entries(p);
    if (budget == RUN_POOL_ALL)
        return most;
    if (budget < run_pool_floor_bytes(p))
        return 0;
    spare = budget - run_pool_floor_bytes(p) + staging_bytes(p, ENTRIES_MIN);
    while (*entries > ENTRIES_MIN && staging_bytes(p, *entries) > (budget / 8 < spare ? budget / 8 : spare))
        *entries -= 1;
    budget -= table_bytes(p) + staging_bytes(p, *entries);
    return budget / p->slot_bytes < most ? (uint32_t)(budget / p->slot_bytes) : most;
}

enum vkmoe_status run_pool_plan(struct run_pool *p, struct gpu_device *dev, const struct mdl_model *m,
                                const struct run_pool_params *params, struct vkmoe_err *err)
{
    uint32_t n;
    enum vkmoe_status st = VKMOE_OK;

    memset(p, 0, sizeof(*p));
    p->dev = dev;
    p->mdl = m;
    p->n_layers = m->config.n_layers;
    p->n_experts = m->config.n_experts ? m->config.n_experts : 1; /* the table has a column */
    p->allowed = params->allowed;
    p->least = params->least;
    TRY(count_allowed(p, err));
    TRY(plan_layouts(p, err));
    TRY(plan_segments(p, p->n_allowed, err)); /* tells whether there is an array: the floor depends on it */
    n = afford(p, params->budget, &p->entries);
    if (!n && p->n_allowed)
        FAIL(VKMOE_ERR_LIMIT,
             "an expert pool of %.2f MiB is too small: %u layers %s %u experts of %u bytes, which takes at "
             "least %" PRIu64 " MiB",
             MIB(params->budget), p->n_layers, p->least ? "hold document pools of" : "choose",
             p->least ? p->least : m->config.n_experts_used, p->slot_bytes, MIB_UP(run_pool_floor_bytes(p)));
    TRY(plan_segments(p, n, err));
    p->budget = params->budget;
    if (params->budget == RUN_POOL_ALL)
        p->budget = run_pool_planned_bytes(p);
done:
    return st;
}

uint64_t run_pool_planned_bytes(const struct run_pool *p)
{
    return (uint64_t)p->n_slots * p->slot_bytes + staging_bytes(p, p->entries) + table_bytes(p);
}

/* ---- creation
 * ----------------------------------------------------------------------------------------------- */

uint32_t run_pool_seg_slots(const struct run_pool *p, uint32_t seg)
{
    uint32_t left = p->n_slots - seg * p->slots_per_seg;

    return left < p->slots_per_seg ? left : p->slots_per_seg;
}

static enum vkmoe_status make_segment(struct run_pool *p, uint32_t seg, struct vkmoe_err *err)
{
    return gpu_buffer_create(&p->segs[seg], p->dev, (uint64_t)run_pool_seg_slots(p, seg) * p->slot_bytes,
                             GPU_MEM_DEVICE, "expert segment", err);
}

static enum vkmoe_status upload_table(struct run_pool *p, struct vkmoe_err *err)
{
    return gpu_upload(p->dev, p->table, 0, run_slots_table(p->slots), table_bytes(p), err);
}

enum vkmoe_status run_pool_create(struct run_pool *p, const struct run_pool_params *params,
                                  struct vkmoe_err *err)
{
    struct run_slots_params sp = slots_params(p);
    const struct run_fetch_params fp = fetch_params(p, p->entries);
    enum vkmoe_status st = VKMOE_OK;

    sp.policy = params->policy;
    p->segs = cor_array(p->cap_segs, sizeof(*p->segs));
    p->changes = cor_array(bank(p), sizeof(*p->changes));
    p->changed = cor_array(bank(p), sizeof(*p->changed));
    p->batch = cor_array(p->n_experts, sizeof(*p->batch));
    if (!p->segs || !p->changes || !p->changed || !p->batch)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the table of %u experts", bank(p));
    TRY(run_slots_create(&p->slots, &sp, err));
    for (uint32_t i = 0; i < p->n_segs; i++)
        TRY(make_segment(p, i, err));
    TRY(gpu_buffer_create(&p->table, p->dev, table_bytes(p), GPU_MEM_DEVICE, "slot table", err));
    TRY(upload_table(p, err));
    TRY(run_fetch_create(&p->fetch, p->dev, p->mdl->gguf->files, p->mdl->gguf->n_files, &fp, err));
done:
    return st;
}

void run_pool_close(struct run_pool *p)
{
    run_fetch_close(p->fetch);
    for (uint32_t i = 0; p->segs && i < p->n_segs; i++)
        gpu_buffer_destroy(p->segs[i]);
    gpu_buffer_destroy(p->table);
    run_slots_destroy(p->slots);
    cor_free(p->segs);
    cor_free(p->changes);
    cor_free(p->changed);
    cor_free(p->batch);
    cor_free(p->layout);
    cor_free(p->n_of_layer);
    memset(p, 0, sizeof(*p));
}

bool run_pool_holds_all(const struct run_pool *p)
{
    return p->n_slots >= p->n_allowed;
}

bool run_pool_has_room(const struct run_pool *p, uint32_t per_layer)
{
    struct run_slots_params sp = slots_params(p);

    sp.least = per_layer;
    return run_slots_floor(&sp) <= p->n_slots;
}

void run_pool_segments(const struct run_pool *p, uint32_t layer, uint32_t *first, uint32_t *n)
{
    *first = p->array ? 0 : layer * p->segs_per_layer;
    *n = p->array ? p->n_segs : p->segs_per_layer;
}

/* ---- loading
 * ------------------------------------------------------------------------------------------------ */

static void change(struct run_pool *p, uint32_t index)
{
    if (!p->changed[index])
        p->changes[p->n_changes++] = index;
    p->changed[index] = true;
}

static uint64_t expert_bytes(const struct run_pool *p, uint32_t layer)
{
    const struct mdl_tensor *tensors[MDL_EXPERT_PARTS];
    uint64_t bytes[MDL_EXPERT_PARTS], sum = 0;

    mdl_expert_parts(&p->mdl->layers[layer], tensors, bytes);
    for (int i = 0; i < MDL_EXPERT_PARTS; i++)
        sum += bytes[i];
    return sum;
}

/* Bytes only: who is where is in slots, and the device learns of it once they have arrived. */
static enum vkmoe_status begin_load(struct run_pool *p, uint32_t layer, uint32_t expert, uint32_t slot,
                                    struct vkmoe_err *err)
{
    const struct run_expert_layout *at = &p->layout[layer];
    const uint32_t off[MDL_EXPERT_PARTS] = {0,           at->up_off,   at->down_off, at->gate_bias,
                                            at->up_bias, at->down_bias};
    const struct mdl_tensor *src[MDL_EXPERT_PARTS];
    struct run_fetch_part parts[MDL_EXPERT_PARTS];
    uint64_t bytes[MDL_EXPERT_PARTS];
    uint32_t n = 0;

    mdl_expert_parts(&p->mdl->layers[layer], src, bytes);
    for (uint32_t i = 0; i < MDL_EXPERT_PARTS; i++)
        if (src[i])
            parts[n++] = (struct run_fetch_part){.file = src[i]->part,
                                                 .file_off = src[i]->file_off + bytes[i] * expert,
                                                 .bytes = (uint32_t)bytes[i],
                                                 .at = off[i]};
    return run_fetch_begin(p->fetch, p->segs[slot / p->slots_per_seg],
                           (uint64_t)(slot % p->slots_per_seg) * p->slot_bytes, parts, n,
                           layer * p->n_experts + expert, err);
}

/* What did not surely arrive is absent again. */
static void drop_batch(struct run_pool *p)
{
    for (uint32_t i = 0; i < p->n_batch; i++)
        run_slots_drop(p->slots, p->batch_layer, p->batch[i].expert);
    p->n_batch = 0;
}

/* Starts the loads that slots has decided on; they stand in p->batch. */
static enum vkmoe_status begin_batch(struct run_pool *p, uint32_t layer, uint32_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    p->batch_layer = layer;
    p->n_batch = n;
    for (uint32_t i = 0; i < n; i++) {
        change(p, layer * p->n_experts + p->batch[i].expert);
        if (p->batch[i].victim != NONE)
            change(p, p->batch[i].victim);
    }
    for (uint32_t i = 0; i < n; i++)
        TRY(begin_load(p, layer, p->batch[i].expert, p->batch[i].slot, err));
done:
    if (st != VKMOE_OK)
        drop_batch(p);
    return st;
}

enum vkmoe_status run_pool_visit(struct run_pool *p, uint32_t layer, const uint32_t *sel, uint32_t *n_loads,
                                 struct vkmoe_err *err)
{
    assert(!p->n_batch);
    *n_loads = run_slots_visit(p->slots, layer, sel, p->batch);
    return begin_batch(p, layer, *n_loads, err);
}

enum vkmoe_status run_pool_wave(struct run_pool *p, uint32_t layer, const uint32_t *needed,
                                const uint32_t *done, uint32_t *n_loads, struct vkmoe_err *err)
{
    assert(!p->n_batch);
    *n_loads = run_slots_wave(p->slots, layer, needed, done, p->batch, p->n_experts);
    return begin_batch(p, layer, *n_loads, err);
}

enum vkmoe_status run_pool_hold(struct run_pool *p, uint32_t layer, const uint32_t *set, const uint32_t *kept,
                                uint32_t *n_loads, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    assert(!p->n_batch);
    *n_loads = run_slots_hold(p->slots, layer, set, kept, p->batch);
    TRY(begin_batch(p, layer, *n_loads, err));
    TRY(run_pool_arrive(p, true, err));
done:
    return st;
}

static struct run_pool_traffic *traffic(struct run_pool *p, bool prefill)
{
    struct run_slots_stats stats;

    if (prefill)
        return &p->prefill;
    run_slots_stats(p->slots, &stats);
    return stats.total.tokens < RUN_COLD_TOKENS ? &p->cold : &p->warm;
}

enum vkmoe_status run_pool_arrive(struct run_pool *p, bool prefill, struct vkmoe_err *err)
{
    struct run_pool_traffic *t;
    enum vkmoe_status st = VKMOE_OK;

    if (!p->n_batch)
        return VKMOE_OK;
    TRY(run_fetch_finish(p->fetch, err));
    t = traffic(p, prefill);
    t->loads += p->n_batch;
    t->bytes += p->n_batch * expert_bytes(p, p->batch_layer);
    p->n_batch = 0;
done:
    if (st != VKMOE_OK)
        drop_batch(p);
    return st;
}

void run_pool_count_wait(struct run_pool *p, bool prefill)
{
    traffic(p, prefill)->waits++;
}

/* ---- opening
 * ------------------------------------------------------------------------------------------------ */

uint64_t run_pool_load_bytes(const struct run_pool *p, const uint32_t *list, uint32_t n)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < (list ? n : bank(p)); i++) {
        uint32_t index = list ? list[i] : i;

        if (run_pool_allows(p, index / p->n_experts, index % p->n_experts))
            sum += expert_bytes(p, index / p->n_experts);
    }
    return sum;
}

enum vkmoe_status run_pool_load_list(struct run_pool *p, const uint32_t *list, uint32_t n,
                                     struct run_progress *progress, struct vkmoe_err *err)
{
    struct run_pool_traffic t = {0};
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t index = list ? list[i] : i, layer = index / p->n_experts, e = index % p->n_experts;
        uint32_t slot = run_pool_allows(p, layer, e) ? run_slots_place(p->slots, layer, e) : NONE;

        if (slot == NONE)
            continue;
        TRY(begin_load(p, layer, e, slot, err));
        t.loads++;
        t.bytes += expert_bytes(p, layer);
        if (progress && progress->fn) {
            progress->done += expert_bytes(p, layer);
            progress->fn(progress->user, progress->done, progress->total);
        }
    }
    TRY(run_fetch_finish(p->fetch, err));
    p->opening.loads += t.loads;
    p->opening.bytes += t.bytes;
    TRY(upload_table(p, err));
done:
    return st;
}

enum vkmoe_status run_pool_load_all(struct run_pool *p, struct run_progress *progress, struct vkmoe_err *err)
{
    return run_pool_load_list(p, NULL, bank(p), progress, err);
}

/* ---- publishing
 * --------------------------------------------------------------------------------------------- */

uint32_t run_pool_pending(const struct run_pool *p, uint32_t *pairs)
{
    const uint32_t *table = run_slots_table(p->slots);

    assert(!p->n_batch);
    for (uint32_t i = 0; i < p->n_changes; i++) {
        pairs[2 * i] = p->changes[i];
        pairs[2 * i + 1] = table[p->changes[i]];
    }
    return p->n_changes;
}

void run_pool_published(struct run_pool *p)
{
    for (uint32_t i = 0; i < p->n_changes; i++)
        p->changed[p->changes[i]] = false;
    p->n_changes = 0;
}

/* ---- size
 * --------------------------------------------------------------------------------------------------- */

static enum vkmoe_status shrink(struct run_pool *p, uint32_t n_segs, struct vkmoe_err *err)
{
    uint32_t n_slots = n_segs * p->slots_per_seg, n;
    uint32_t *dropped = cor_array(p->n_slots - n_slots, sizeof(*dropped));
    enum vkmoe_status st = VKMOE_OK;

    if (!dropped)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory to give back %u slots", p->n_slots - n_slots);
    TRY(run_slots_shrink(p->slots, n_slots, dropped, &n, err));
    for (uint32_t i = 0; i < n; i++)
        change(p, dropped[i]);
    while (p->n_segs > n_segs) {
        gpu_buffer_destroy(p->segs[--p->n_segs]);
        p->segs[p->n_segs] = NULL;
    }
    p->n_slots = n_slots;
    p->generation++;
done:
    cor_free(dropped);
    return st;
}

static enum vkmoe_status grow(struct run_pool *p, uint32_t n_slots, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    while (p->n_slots < n_slots) {
        uint32_t before = p->n_slots, after = before + p->slots_per_seg;

        p->n_slots = after < n_slots ? after : n_slots;
        st = make_segment(p, p->n_segs, err);
        if (st == VKMOE_OK)
            st = run_slots_grow(p->slots, p->n_slots, err);
        if (st != VKMOE_OK) {
            gpu_buffer_destroy(p->segs[p->n_segs]);
            p->segs[p->n_segs] = NULL;
            p->n_slots = before;
            break;
        }
        p->n_segs++;
        p->generation++;
    }
    return st;
}

/* Slots that a last segment which is not whole lacks. */
static uint32_t lacking(const struct run_pool *p)
{
    uint32_t n = p->n_slots % p->slots_per_seg;

    return n ? p->slots_per_seg - n : 0;
}

/* Makes the last segment whole. What it held is absent again: the number of slots never falls, so that a pool
 * at its floor can grow. */
static enum vkmoe_status fill_up(struct run_pool *p, struct vkmoe_err *err)
{
    const uint32_t seg = p->n_segs - 1, before = p->n_slots, after = before + lacking(p);
    struct gpu_buffer *old = p->segs[seg];
    enum vkmoe_status st;

    p->segs[seg] = NULL;
    p->n_slots = after < p->n_allowed ? after : p->n_allowed;
    st = make_segment(p, seg, err);
    if (st == VKMOE_OK)
        st = run_slots_grow(p->slots, p->n_slots, err);
    if (st != VKMOE_OK) {
        gpu_buffer_destroy(p->segs[seg]);
        p->segs[seg] = old;
        p->n_slots = before;
        return st;
    }
    for (uint32_t i = seg * p->slots_per_seg; i < before; i++) {
        uint32_t owner = run_slots_owners(p->slots)[i];

        if (owner == NONE)
            continue;
        change(p, owner);
        run_slots_drop(p->slots, owner / p->n_experts, owner % p->n_experts);
    }
    gpu_buffer_destroy(old);
    p->generation++;
    return VKMOE_OK;
}

uint64_t run_pool_least_bytes(const struct run_pool *p)
{
    struct run_slots_params sp = slots_params(p);
    uint64_t n;

    sp.layer_slots = 0;
    n = div_up(run_slots_floor(&sp), p->slots_per_seg) * p->slots_per_seg;
    n = p->array && n < p->n_slots ? n : p->n_slots;
    return run_pool_bytes(p) - (p->n_slots - n) * p->slot_bytes;
}

uint64_t run_pool_next_bytes(const struct run_pool *p)
{
    return run_pool_bytes(p) + (uint64_t)(lacking(p) + p->slots_per_seg) * p->slot_bytes;
}

enum vkmoe_status run_pool_resize(struct run_pool *p, uint64_t budget, struct vkmoe_err *err)
{
    uint64_t fixed = run_pool_purposes(p).staging + table_bytes(p);
    uint32_t most = p->n_allowed, room = most_segments(p) * p->slots_per_seg, n, whole;
    enum vkmoe_status st = VKMOE_OK;

    if (!p->array)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "the pool cannot change its size: its segments belong to one layer each");
    if (budget < run_pool_least_bytes(p))
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "an expert pool of %.2f MiB is too small: it takes at least %" PRIu64 " MiB",
                        MIB(budget), MIB_UP(run_pool_least_bytes(p)));
    n = (budget - fixed) / p->slot_bytes < most ? (uint32_t)((budget - fixed) / p->slot_bytes) : most;
    n = n < room ? n : room;
    whole = n == most ? n : n / p->slots_per_seg * p->slots_per_seg;
    if (n < p->n_slots)
        TRY(shrink(p, n / p->slots_per_seg, err));
    else if (whole > p->n_slots) {
        /* The new last segment stands beside the old one for a while, within the budget. */
        if (lacking(p) && p->n_slots + p->slots_per_seg <= n)
            TRY(fill_up(p, err));
        if (!lacking(p))
            TRY(grow(p, whole, err));
    }
    p->budget = budget;
done:
    return st;
}

struct run_pool_bytes run_pool_purposes(const struct run_pool *p)
{
    return (struct run_pool_bytes){.slots = (uint64_t)p->n_slots * p->slot_bytes,
                                   .staging = p->fetch ? run_fetch_staging_bytes(p->fetch) : 0,
                                   .table = table_bytes(p)};
}

uint64_t run_pool_bytes(const struct run_pool *p)
{
    struct run_pool_bytes b = run_pool_purposes(p);

    return b.slots + b.staging + b.table;
}
