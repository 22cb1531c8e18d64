#include "run/state.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/alloc.h"
#include "model/rope.h"
#include "run/dot.h"

#define CHUNK_MAX       512u
#define LOGITS_ROWS_MAX 32u

/* Of the shared expert or of a dense layer, whichever is wider. */
static uint32_t ffn_width(const struct mdl_config *c)
{
    uint32_t shared = mdl_shared_width(c);

    return shared > c->ff_dense ? shared : c->ff_dense;
}

struct plan { /* one region to take */
    struct run_region *region;
    uint64_t bytes;
    const char *name;
};

/* Largest chunk for which every activation still fits one binding, and all of them an eighth of the heap. */
static uint32_t fit_chunk(const struct mdl_config *c, const struct gpu_caps *caps, uint32_t wanted,
                          uint32_t n_ctx, enum vkmoe_watch watch)
{
    uint64_t ff = ffn_width(c);
    uint64_t per[] = {
        c->dim,
        (c->n_heads + 2ull * c->n_kv_heads) * c->head_dim,
        c->n_experts,
        (uint64_t)c->n_experts_used * c->dim,
        (uint64_t)c->n_experts_used * c->ff_expert,
        2 * ff,
        watch ? (uint64_t)c->n_layers * c->n_experts : 0, /* for the host, of all layers */
    };
    uint64_t chunk = wanted ? wanted : CHUNK_MAX, token = 0;

    for (uint32_t i = 0; i < COR_COUNT(per); i++) {
        token += 4 * per[i];
        if (per[i] && chunk > caps->max_range / (4 * per[i]))
            chunk = caps->max_range / (4 * per[i]);
    }
    if (!wanted && chunk > caps->heap_bytes / 8 / (2 * token)) /* about twice the list above in all */
        chunk = caps->heap_bytes / 8 / (2 * token);
    if (chunk > CHUNK_MAX)
        chunk = CHUNK_MAX;
    if (chunk > n_ctx)
        chunk = n_ctx;
    if (chunk > TILE_TOKENS && !wanted)
        chunk -= chunk % TILE_TOKENS;
    return chunk ? (uint32_t)chunk : 1;
}

static enum vkmoe_status plan_kv(struct run_state *s, const struct mdl_config *c, struct vkmoe_err *err)
{
    const struct gpu_caps *caps = gpu_device_caps(s->dev);
    uint64_t row = (uint64_t)c->n_kv_heads * c->head_dim;
    uint64_t k = CACHE_BYTES(s->k_type, row), v = CACHE_BYTES(s->v_type, row);
    uint64_t rope = 4ull * c->n_rot, row_max = k > v ? k : v;
    uint64_t most = caps->max_range / (row_max > rope ? row_max : rope);
    enum vkmoe_status st = VKMOE_OK;

    if (s->n_ctx > most)
        return cor_fail(
            err, VKMOE_ERR_LIMIT,
            "context of %u positions: a layer's cache or the RoPE table passes one binding; at most %" PRIu64,
            s->n_ctx, most);
    s->kv = cor_array(c->n_layers, sizeof(*s->kv));
    if (!s->kv)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the cache of %u layers", c->n_layers);
    for (uint32_t l = 0; l < c->n_layers; l++) {
        TRY(run_arena_plan(&s->kv_arena, k * s->n_ctx, "key cache", &s->kv[l].k, err));
        TRY(run_arena_plan(&s->kv_arena, v * s->n_ctx, "value cache", &s->kv[l].v, err));
    }
done:
    return st;
}

/* Bytes from a word of a region on; a binding may start there. */
static struct run_region part_of(const struct run_region *r, uint32_t word, uint64_t bytes)
{
    return (struct run_region){.chunk = r->chunk, .off = r->off + word * 4ull, .bytes = bytes};
}

static enum vkmoe_status plan_activations(struct run_state *s, const struct mdl_config *c,
                                          struct vkmoe_err *err)
{
    uint64_t t = s->chunk, k = c->n_experts_used, q = (uint64_t)c->n_heads * c->head_dim;
    uint64_t kv = (uint64_t)c->n_kv_heads * c->head_dim, ff = ffn_width(c);
    uint64_t tiles =
        t * k / TILE_TOKENS + c->n_experts; /* each expert has at most one tile that is not full */
    uint64_t slices = (c->vocab_size + TOPK_SLICE - 1) / TOPK_SLICE;
    uint64_t mask = (uint64_t)c->n_layers * run_mask_words(c) * 4;
    uint64_t bias = c->has & MDL_HAS_ROUTER_BIAS ? (uint64_t)c->n_layers * c->n_experts * 4 : 0;
    uint64_t stream = s->by_layer ? (uint64_t)s->n_ctx * c->dim * 4 : 4;
    uint64_t xq = run_dot_row_bytes(c->dim > q ? c->dim : (uint32_t)q), off = s->fast_math ? 0 : 4;
    const struct plan list[] = {
        {&s->x, t * c->dim * 4, "residual stream"},
        {&s->xn, t * c->dim * 4, "normed stream"},
        {&s->qkv, t * (q + 2 * kv) * 4, "queries, keys and values"},
        {&s->qr, t * q * 4, "rotated queries"},
        {&s->att, t * q * 4, "attention output"},
        {&s->part, (uint64_t)c->n_heads * s->n_splits * (c->head_dim + 2) * 4, "partial attention"},
        {&s->counts, c->n_heads * 4ull, "counters"},
        {&s->route, t * c->n_experts * 4, "router logits"},
        {&s->sel, t * k * 8, "expert choice"},
        {&s->gu, ff ? t * 2 * ff * 4 : 4, "shared gate and up"},
        {&s->hs, ff ? t * ff * 4 : 4, "shared hidden"},
        {&s->ys, ff ? t * c->dim * 4 : 4, "shared output"},
        {&s->h, (t > 1 ? t * k : k + 1) * c->ff_expert * 4, "expert hidden"},
        {&s->y, t * k * c->dim * 4, "expert outputs"},
        {&s->choice, CHOICE_MASK * 4ull + mask + bias, "choice of a token"},
        {&s->tiles, tiles * TILE_WORDS * 4, "expert tiles"},
        {&s->pairs, t * k * 4, "expert pairs"},
        {&s->logits, (uint64_t)s->n_rows * c->vocab_size * 4, "logits"},
        {&s->top, s->n_top ? slices * TOPK_WORDS(s->n_top) * 4 : 4, "best logits by slice"},
        {&s->rope, (uint64_t)s->n_ctx * c->n_rot * 4, "RoPE table"},
        {&s->stream, stream, "residual stream of a text"},
        {&s->xq, off ? off : t * xq, "quantised inputs"},
        {&s->hq, off ? off : t * k * run_dot_row_bytes(c->ff_expert), "quantised expert hidden"},
        {&s->hsq, off || !ff ? 4 : t * run_dot_row_bytes((uint32_t)ff), "quantised shared hidden"},
    };
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < COR_COUNT(list); i++)
        TRY(run_arena_plan(&s->act, list[i].bytes ? list[i].bytes : 4, list[i].name, list[i].region, err));
    s->run = part_of(&s->choice, CHOICE_RUN, (k + 1) * 4);
    s->chosen = part_of(&s->choice, CHOICE_SEL, k * 8);
    s->mask = part_of(&s->choice, CHOICE_MASK, mask);
    if (bias) {
        s->bias_at = CHOICE_MASK + (uint32_t)(mask / 4);
        s->router_bias = part_of(&s->choice, s->bias_at, bias);
    }
done:
    return st;
}

/* cos and sin of every position, in double: shaders call neither (docs/DESIGN.md section 3). */
static enum vkmoe_status upload_rope(struct run_state *s, const struct mdl_model *m, struct vkmoe_err *err)
{
    uint32_t half = m->config.n_rot / 2;
    float *table = cor_array((size_t)s->n_ctx * half * 2, sizeof(*table));
    double *freq = cor_array(half, sizeof(*freq)), scale;
    enum vkmoe_status st = VKMOE_OK;

    if (!table || !freq)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the RoPE table of %u positions", s->n_ctx);
    scale = mdl_rope_freqs(&m->config, m->rope_factors, freq);
    for (uint32_t i = 0; i < half; i++)
        for (uint32_t pos = 0; pos < s->n_ctx; pos++) {
            float *to = table + ((size_t)pos * half + i) * 2;

            to[0] = (float)(cos(pos * freq[i]) * scale);
            to[1] = (float)(sin(pos * freq[i]) * scale);
        }
    TRY(gpu_upload(s->dev, run_arena_buffer(&s->act, &s->rope), s->rope.off, table, s->rope.bytes, err));
done:
    cor_free(table);
    cor_free(freq);
    return st;
}

/* What router_one adds to its logits: in the buffer of the choice, for it has no binding left. */
static enum vkmoe_status upload_router_bias(struct run_state *s, const struct mdl_model *m,
                                            struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->config;
    float *all = cor_array(s->router_bias.bytes / 4 + 1, sizeof(*all));
    enum vkmoe_status st = VKMOE_OK;

    if (!all)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the biases of %u routers", c->n_layers);
    for (uint32_t l = 0; s->router_bias.bytes && l < c->n_layers; l++) {
        const struct mdl_tensor *t = m->layers[l].router_bias;

        if (t)
            TRY(mdl_gguf_read(m->gguf, t, 0, all + (size_t)l * c->n_experts, (size_t)t->bytes, err));
    }
    if (s->router_bias.bytes)
        TRY(gpu_upload(s->dev, run_arena_buffer(&s->act, &s->router_bias), s->router_bias.off, all,
                       s->router_bias.bytes, err));
done:
    cor_free(all);
    return st;
}

enum vkmoe_status run_state_set_mask(struct run_state *s, const uint32_t *allowed, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    if (s->mask.bytes)
        TRY(gpu_upload(s->dev, run_arena_buffer(&s->act, &s->mask), s->mask.off, allowed, s->mask.bytes,
                       err));
    memmove(s->allowed, allowed, s->mask.bytes);
done:
    return st;
}

/* Counters of lib/last.glsl begin at 0 and end there after every dispatch. */
static enum vkmoe_status clear_counts(struct run_state *s, struct vkmoe_err *err)
{
    const struct run_region one = part_of(&s->choice, CHOICE_COUNT, 4), *all[2] = {&s->counts, &one};
    uint32_t *zeros = cor_zalloc(s->counts.bytes);
    enum vkmoe_status st = VKMOE_OK;

    if (!zeros)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the counters of a session");
    for (uint32_t i = 0; i < 2; i++)
        TRY(gpu_upload(s->dev, run_arena_buffer(&s->act, all[i]), all[i]->off, zeros, all[i]->bytes, err));
done:
    cor_free(zeros);
    return st;
}

static enum vkmoe_status create_watch(struct run_state *s, const struct mdl_config *c, struct vkmoe_err *err)
{
    uint64_t rows = (uint64_t)c->n_layers * s->chunk;
    enum vkmoe_status st = VKMOE_OK;

    if (s->watch >= VKMOE_WATCH_ROUTER)
        TRY(gpu_buffer_create(&s->seen, s->dev, rows * c->n_experts * 4, GPU_MEM_READ, "watched router",
                              err));
    if (s->watch >= VKMOE_WATCH_EXPERTS)
        TRY(gpu_buffer_create(&s->sums, s->dev, rows * (3 + c->n_experts_used) * 4, GPU_MEM_READ,
                              "watched experts", err));
done:
    return st;
}

static uint64_t head_bytes(const struct run_state *s)
{
    return (STEP_TOKENS + (uint64_t)s->chunk) * 4;
}

static enum vkmoe_status create_buffers(struct run_state *s, const struct mdl_config *c,
                                        struct vkmoe_err *err)
{
    uint64_t head = head_bytes(s), changes = (uint64_t)c->n_layers * c->n_experts * 8;
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_arena_create(&s->kv_arena, "KV cache", err));
    TRY(run_arena_create(&s->act, "activations", err));
    TRY(gpu_buffer_create(&s->state, s->dev, head, GPU_MEM_DEVICE, "state", err));
    for (uint32_t i = 0; i < GPU_IN_FLIGHT; i++)
        TRY(gpu_buffer_create(&s->step[i], s->dev, head + changes, GPU_MEM_STEP, "step", err));
    TRY(gpu_buffer_create(&s->routes, s->dev, (uint64_t)c->n_layers * s->chunk * c->n_experts_used * 8 + 4,
                          GPU_MEM_READ, "routes", err));
    TRY(gpu_buffer_create(&s->mailbox, s->dev, MAIL_WORDS * 4, GPU_MEM_READ, "mailbox", err));
    TRY(gpu_buffer_create(&s->out, s->dev, s->n_top ? TOPK_WORDS(s->n_top) * 4 : s->logits.bytes,
                          GPU_MEM_READ, "logits for the host", err));
done:
    return st;
}

enum vkmoe_status run_state_plan(struct run_state *s, const struct run_model *m,
                                 const struct run_state_params *p, struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;
    const struct gpu_caps *caps = gpu_device_caps(m->dev);
    uint64_t rows = caps->max_range / (4ull * c->vocab_size);
    enum vkmoe_status st = VKMOE_OK;

    memset(s, 0, sizeof(*s));
    if (p->fast_math && !caps->rounding)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "%s: fast math is switched off here, by selftest or by -rounding of the capabilities",
                        gpu_device_info(m->dev)->name);
    if ((p->k_type == MDL_Q8_0 || p->v_type == MDL_Q8_0) && c->head_dim % CACHE_ELEMS)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "a cache in q8_0 takes heads of a multiple of %u elements, the model has %u",
                        CACHE_ELEMS, c->head_dim);
    s->dev = m->dev;
    s->n_ctx = p->n_ctx;
    s->k_type = p->k_type;
    s->v_type = p->v_type;
    s->watch = p->watch;
    s->by_layer = p->by_layer;
    s->fast_math = p->fast_math;
    s->chunk = fit_chunk(c, caps, p->chunk, p->n_ctx, p->watch);
    s->n_rows = rows < 1 ? 1 : rows > LOGITS_ROWS_MAX ? LOGITS_ROWS_MAX : (uint32_t)rows;
    if (s->n_rows > s->chunk)
        s->n_rows = s->chunk;
    s->n_ids = mdl_tokenizer_used(m->mdl->tok);
    s->n_top = p->n_top < s->n_ids ? p->n_top : s->n_ids;
    if (s->n_top)
        s->n_rows = 1;
    s->n_splits = (p->n_ctx + ATTN_SPLIT - 1) / ATTN_SPLIT;
    run_arena_init(&s->kv_arena, m->dev);
    run_arena_init(&s->act, m->dev);
    TRY(plan_kv(s, c, err));
    TRY(plan_activations(s, c, err));
done:
    return st;
}

uint64_t run_state_bytes(const struct run_state *s)
{
    return run_arena_bytes(&s->kv_arena) + run_arena_bytes(&s->act) + head_bytes(s);
}

enum vkmoe_status run_state_create(struct run_state *s, const struct run_model *m, struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;
    enum vkmoe_status st = VKMOE_OK;

    s->allowed = cor_alloc(s->mask.bytes + 1);
    if (!s->allowed)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the expert mask");
    TRY(create_buffers(s, c, err));
    TRY(create_watch(s, c, err));
    TRY(upload_rope(s, m->mdl, err));
    TRY(upload_router_bias(s, m->mdl, err));
    TRY(clear_counts(s, err));
    TRY(run_state_set_mask(s, m->allowed, err));
done:
    return st;
}

void run_state_close(struct run_state *s)
{
    run_arena_close(&s->kv_arena);
    run_arena_close(&s->act);
    gpu_buffer_destroy(s->state);
    for (uint32_t i = 0; i < GPU_IN_FLIGHT; i++)
        gpu_buffer_destroy(s->step[i]);
    gpu_buffer_destroy(s->routes);
    gpu_buffer_destroy(s->mailbox);
    gpu_buffer_destroy(s->out);
    gpu_buffer_destroy(s->seen);
    gpu_buffer_destroy(s->sums);
    cor_free(s->allowed);
    cor_free(s->kv);
    memset(s, 0, sizeof(*s));
}
