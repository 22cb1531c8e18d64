/* The public API over the inner layers: argument checks, defaults, ownership. No work of its own. */
#include <inttypes.h>
#include <string.h>

#include "api/subset.h"
#include "core/alloc.h"
#include "core/log.h"
#include "experts/hot.h"
#include "run/session.h"
#include "run/tuned.h"

#define DEFAULT_CTX_MAX 4096u

struct vkmoe_context {
    struct gpu_instance *gpu;
};

struct vkmoe_device {
    struct gpu_device *gpu;
    struct run_variants variants; /* of models that are opened on it */
    char variants_text[192];
    const char *variants_from;
};

struct vkmoe_model {
    struct run_model *run;
    struct vkmoe_model_info info;
};

struct vkmoe_session {
    struct run_session *run;
    vkmoe_model *model;
};

/* ---- context and devices
 * ------------------------------------------------------------------------------------ */

enum vkmoe_status vkmoe_open(vkmoe_context **out, const struct vkmoe_params *params, struct vkmoe_err *err)
{
    const struct vkmoe_params none = {0};
    const struct vkmoe_params *p = params ? params : &none;
    const struct gpu_instance_params gp = {.validation = p->validation, .cache_dir = p->cache_dir};
    vkmoe_context *ctx = cor_zalloc(sizeof(*ctx));
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!ctx)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a context");
    cor_log_sink(p->log, p->log_user);
    TRY(gpu_instance_open(&ctx->gpu, &gp, err));
    *out = ctx;
    ctx = NULL;
done:
    vkmoe_close(ctx);
    return st;
}

void vkmoe_close(vkmoe_context *ctx)
{
    if (!ctx)
        return;
    gpu_instance_close(ctx->gpu);
    cor_free(ctx);
}

uint32_t vkmoe_device_count(const vkmoe_context *ctx)
{
    return gpu_instance_device_count(ctx->gpu);
}

const struct vkmoe_device_info *vkmoe_device_get(const vkmoe_context *ctx, uint32_t index)
{
    return gpu_instance_device_info(ctx->gpu, index);
}

enum vkmoe_status vkmoe_device_json(const vkmoe_context *ctx, uint32_t index, char **json,
                                    struct vkmoe_err *err)
{
    return run_tuned_json(ctx->gpu, index, json, err);
}

enum vkmoe_status vkmoe_device_open(vkmoe_device **out, vkmoe_context *ctx,
                                    const struct vkmoe_device_params *params, struct vkmoe_err *err)
{
    const struct vkmoe_device_params none = {0};
    const struct vkmoe_device_params *p = params ? params : &none;
    struct gpu_device_params gp = {.shader_dir = p->shader_dir, .profile = p->profile, .skip_barrier = -1};
    struct run_tuned tuned = {0};
    char caps[512];
    vkmoe_device *dev = cor_zalloc(sizeof(*dev));
    enum vkmoe_status st = VKMOE_OK;
    uint32_t index;

    *out = NULL;
    if (!dev)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a device");
    TRY(gpu_instance_choose(ctx->gpu, p->device, &index, err));
    if (!p->shader_dir) /* other kernels than those that were measured */
        run_tuned_read(&tuned, ctx->gpu, index);
    TRY(run_tuned_caps(&tuned, p->caps, caps, sizeof(caps), err));
    gp.caps = caps;
    TRY(gpu_device_open(&dev->gpu, ctx->gpu, index, &gp, err));
    TRY(run_tuned_variants(&tuned, p->caps, p->variants, dev->gpu, &dev->variants, &dev->variants_from, err));
    run_variants_text(&dev->variants, dev->variants_text, sizeof(dev->variants_text));
    *out = dev;
    dev = NULL;
done:
    vkmoe_device_close(dev);
    return st;
}

void vkmoe_device_close(vkmoe_device *dev)
{
    if (!dev)
        return;
    gpu_device_close(dev->gpu);
    cor_free(dev);
}

const struct vkmoe_device_info *vkmoe_device_facts(const vkmoe_device *dev)
{
    return gpu_device_info(dev->gpu);
}

const char *vkmoe_device_variants(const vkmoe_device *dev, const char **from)
{
    if (from)
        *from = dev->variants_from;
    return dev->variants_text;
}

void vkmoe_device_get_memory(const vkmoe_device *dev, struct vkmoe_device_memory *memory)
{
    *memory = (struct vkmoe_device_memory){.in_use_bytes = gpu_device_bytes(dev->gpu),
                                           .peak_bytes = gpu_device_peak_bytes(dev->gpu),
                                           .free_bytes = gpu_device_free_bytes(dev->gpu)};
}

bool vkmoe_device_kernel_time(const vkmoe_device *dev, uint32_t index, struct vkmoe_kernel_time *time)
{
    const struct gpu_kernel_time *t = gpu_profile_times(dev->gpu);

    for (uint32_t k = 0; t && k < GPU_KERNEL_COUNT; k++) {
        if (!t[k].count || index--)
            continue;
        *time = (struct vkmoe_kernel_time){.kernel = gpu_kernel_info((enum gpu_kernel)k)->name,
                                           .count = t[k].count,
                                           .ms = t[k].ns / 1e6,
                                           .bytes = t[k].bytes,
                                           .flops = t[k].flops};
        return true;
    }
    return false;
}

bool vkmoe_device_get_gaps(const vkmoe_device *dev, struct vkmoe_device_gaps *gaps)
{
    const struct gpu_gaps *g = gpu_profile_gaps(dev->gpu);

    memset(gaps, 0, sizeof(*gaps));
    if (g)
        *gaps = (struct vkmoe_device_gaps){g->waits, g->between_ns / 1e6, g->around_ns / 1e6};
    return g != NULL;
}

void vkmoe_device_reset_times(vkmoe_device *dev)
{
    gpu_profile_reset(dev->gpu);
}

/* ---- model
 * -------------------------------------------------------------------------------------------------- */

static enum mdl_type kv_type(enum vkmoe_kv_type t)
{
    return t == VKMOE_KV_F32 ? MDL_F32 : t == VKMOE_KV_Q8_0 ? MDL_Q8_0 : MDL_F16;
}

static struct run_session_params session_params(const struct vkmoe_session_params *params,
                                                const struct mdl_config *c)
{
    const struct vkmoe_session_params none = {0};
    const struct vkmoe_session_params *p = params ? params : &none;
    uint32_t usual = c->n_ctx_train < DEFAULT_CTX_MAX ? c->n_ctx_train : DEFAULT_CTX_MAX;

    return (struct run_session_params){.n_ctx = p->n_ctx ? p->n_ctx : usual,
                                       .chunk = p->n_chunk,
                                       .k_type = kv_type(p->kv_k),
                                       .fast_math = p->fast_math,
                                       .v_type = kv_type(p->kv_v),
                                       .watch = p->watch,
                                       .doc_experts = p->doc_experts,
                                       .doc_refresh = p->doc_refresh,
                                       .n_top = p->n_top};
}

static enum vkmoe_status check_subset(const vkmoe_subset *s, const struct run_model *m, struct vkmoe_err *err)
{
    return xp_subset_check(&s->s, m->mdl, s->name ? s->name : "subset", err);
}

/* The union of subsets, checked against the model; *mask stays NULL for none. */
static enum vkmoe_status join_subsets(const struct run_model *m, const struct vkmoe_model_params *p,
                                      uint32_t **mask, struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;
    size_t n = (size_t)c->n_layers * run_mask_words(c);
    enum vkmoe_status st = VKMOE_OK;

    if (!p->n_subsets)
        return VKMOE_OK;
    *mask = cor_array(n, sizeof(**mask));
    if (!*mask)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the mask of %u layers", c->n_layers);
    for (uint32_t i = 0; i < p->n_subsets; i++) {
        TRY(check_subset(p->subsets[i], m, err));
        for (size_t w = 0; w < n; w++)
            (*mask)[w] |= p->subsets[i]->s.allowed[w];
    }
done:
    return st;
}

/* *hot and *mask are freed by the caller, after loading. */
static enum vkmoe_status model_params(const struct run_model *m, const struct vkmoe_model_params *params,
                                      struct run_model_params *out, uint32_t **hot, uint32_t **mask,
                                      struct vkmoe_err *err)
{
    const struct vkmoe_model_params none = {0};
    const struct vkmoe_model_params *p = params ? params : &none;
    const struct run_session_params sp = session_params(p->session, &m->mdl->config);
    enum vkmoe_status st = VKMOE_OK;

    *out = (struct run_model_params){.pool_budget = p->pool_bytes,
                                     .lazy = p->lazy_experts,
                                     .check_slots = p->check_slots,
                                     .doc_experts = p->session ? p->session->doc_experts : 0};
    if (p->pool_policy)
        TRY(run_policy_parse(&out->policy, p->pool_policy, err));
    TRY(run_session_bytes(&out->session_bytes, m, &sp, err));
    if (p->warm_start)
        TRY(xp_hot_load(m, p->warm_start, hot, &out->n_hot, err));
    out->hot = *hot;
    TRY(join_subsets(m, p, mask, err));
    out->allowed = *mask;
done:
    return st;
}

/* Pipelines are made while experts are read and uploaded. */
static void begin_pipelines(void *user, const struct run_model *m)
{
    const struct run_session_params sp = session_params(user, &m->mdl->config);

    run_session_foresee(m, &sp);
}

enum vkmoe_status vkmoe_model_open(vkmoe_model **out, vkmoe_device *dev, const char *path,
                                   const struct vkmoe_model_params *params, struct vkmoe_err *err)
{
    struct run_progress progress = {0};
    struct run_model_params mp;
    uint32_t *hot = NULL, *mask = NULL;
    vkmoe_model *m = cor_zalloc(sizeof(*m));
    const struct mdl_config *c;
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!m)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the model", path);
    if (params) {
        progress.fn = params->progress;
        progress.user = params->progress_user;
    }
    TRY(run_model_plan(&m->run, dev->gpu, path, err));
    m->run->variants = dev->variants;
    c = &m->run->mdl->config;
    TRY(model_params(m->run, params, &mp, &hot, &mask, err));
    mp.placed = begin_pipelines;
    mp.placed_user = params ? (void *)(uintptr_t)params->session : NULL;
    TRY(run_model_load(m->run, &mp, &progress, err));
    m->info = (struct vkmoe_model_info){
        .vocab_size = c->vocab_size,
        .n_layers = c->n_layers,
        .n_experts = c->n_experts,
        .n_experts_used = c->n_experts_used,
        .n_shared = c->n_shared,
        .n_ctx_train = c->n_ctx_train,
        .bos_token = mdl_token_bos(m->run->mdl->tok),
        .eos_token = mdl_token_eos(m->run->mdl->tok),
        .n_tokens_used = mdl_tokenizer_used(m->run->mdl->tok),
        .dense_bytes = run_weights_bytes(&m->run->weights),
        .expert_bytes = m->run->pool.slot_bytes,
        .n_slots = m->run->pool.n_slots,
        .n_segments = m->run->pool.n_segs,
        .pool_bytes = run_pool_bytes(&m->run->pool),
    };
    *out = m;
    m = NULL;
done:
    cor_free(hot);
    cor_free(mask);
    vkmoe_model_close(m);
    return st;
}

void vkmoe_model_close(vkmoe_model *model)
{
    if (!model)
        return;
    run_model_close(model->run);
    cor_free(model);
}

const struct vkmoe_model_info *vkmoe_model_facts(const vkmoe_model *model)
{
    return &model->info;
}

void vkmoe_model_get_stats(const vkmoe_model *model, struct vkmoe_model_stats *stats)
{
    const struct run_pool *p = &model->run->pool;

    *stats = (struct vkmoe_model_stats){
        .uploads = p->opening.loads + p->prefill.loads + p->cold.loads + p->warm.loads,
        .uploaded_bytes = p->opening.bytes + p->prefill.bytes + p->cold.bytes + p->warm.bytes};
}

static struct vkmoe_pool_counts pool_counts(const struct run_slots_counts *c, uint64_t bytes, uint64_t waits)
{
    return (struct vkmoe_pool_counts){.tokens = c->tokens,
                                      .hits = c->hits,
                                      .misses = c->misses,
                                      .evictions = c->evictions,
                                      .uploaded_bytes = bytes,
                                      .host_waits = waits,
                                      .visits = c->visits,
                                      .blocking_visits = c->blocking_visits,
                                      .reuploads = c->reuploads};
}

void vkmoe_model_get_pool(const vkmoe_model *model, struct vkmoe_pool_stats *stats)
{
    const struct run_pool *p = &model->run->pool;
    const struct run_pool_bytes bytes = run_pool_purposes(p);
    const struct run_policy policy = run_slots_policy(p->slots);
    struct run_slots_stats s;

    run_slots_stats(p->slots, &s);
    *stats = (struct vkmoe_pool_stats){
        .slots = p->n_slots,
        .resident = run_slots_resident(p->slots),
        .segments = p->n_segs,
        .experts = p->n_allowed,
        .slot_bytes = p->slot_bytes,
        .budget_bytes = p->budget,
        .slots_bytes = bytes.slots,
        .staging_bytes = bytes.staging,
        .table_bytes = bytes.table,
        .holds_all = run_pool_holds_all(p),
        .total = pool_counts(&s.total, p->cold.bytes + p->warm.bytes, p->cold.waits + p->warm.waits),
        .cold = pool_counts(&s.cold, p->cold.bytes, p->cold.waits),
        .warm = pool_counts(&s.warm, p->warm.bytes, p->warm.waits),
        .prefill = {.chunks = s.prefill.chunks,
                    .tokens = s.prefill.tokens,
                    .hits = s.prefill.hits,
                    .loads = s.prefill.loads,
                    .evictions = s.prefill.evictions,
                    .displaced = s.prefill.displaced,
                    .uploaded_bytes = p->prefill.bytes,
                    .host_waits = p->prefill.waits}};
    run_policy_print(&policy, stats->policy, sizeof(stats->policy));
}

enum vkmoe_status vkmoe_model_resize_pool(vkmoe_model *model, uint64_t pool_bytes, struct vkmoe_err *err)
{
    enum vkmoe_status st = run_pool_resize(&model->run->pool, pool_bytes, err);

    if (st == VKMOE_OK) {
        model->run->auto_budget = false;
        model->info.n_slots = model->run->pool.n_slots;
        model->info.n_segments = model->run->pool.n_segs;
        model->info.pool_bytes = run_pool_bytes(&model->run->pool);
    }
    return st;
}

enum vkmoe_status vkmoe_model_save_hot(const vkmoe_model *model, const char *path, struct vkmoe_err *err)
{
    return xp_hot_save(model->run, path, err);
}

bool vkmoe_token_is_end(const vkmoe_model *model, int32_t token)
{
    return mdl_token_is_end(model->run->mdl->tok, token);
}

enum vkmoe_status vkmoe_tokenize(const vkmoe_model *model, const char *text, size_t n_bytes,
                                 bool parse_special, int32_t **ids, size_t *n_ids, struct vkmoe_err *err)
{
    return mdl_encode(model->run->mdl->tok, text, n_bytes, parse_special, ids, n_ids, err);
}

enum vkmoe_status vkmoe_tokenize_prompt(const vkmoe_model *model, const char *text, size_t n_bytes,
                                        bool parse_special, int32_t **ids, size_t *n_ids,
                                        struct vkmoe_err *err)
{
    return mdl_encode_prompt(model->run->mdl->tok, text, n_bytes, parse_special, ids, n_ids, err);
}

size_t vkmoe_token_bytes(const vkmoe_model *model, int32_t token, const char **bytes)
{
    return mdl_token_bytes(model->run->mdl->tok, token, bytes);
}

void vkmoe_free(void *p)
{
    cor_free(p);
}

/* ---- session
 * ------------------------------------------------------------------------------------------------ */

enum vkmoe_status vkmoe_session_create(vkmoe_session **out, vkmoe_model *model,
                                       const struct vkmoe_session_params *params, struct vkmoe_err *err)
{
    const struct run_session_params rp = session_params(params, &model->run->mdl->config);
    vkmoe_session *s = cor_zalloc(sizeof(*s));
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!s)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a session");
    s->model = model;
    TRY(run_session_create(&s->run, model->run, &rp, err));
    *out = s;
    s = NULL;
done:
    vkmoe_session_destroy(s);
    return st;
}

void vkmoe_session_destroy(vkmoe_session *ses)
{
    if (!ses)
        return;
    run_session_destroy(ses->run);
    cor_free(ses);
}

enum vkmoe_status vkmoe_session_feed(vkmoe_session *ses, const int32_t *tokens, size_t n,
                                     struct vkmoe_err *err)
{
    return run_session_feed(ses->run, tokens, n, NULL, NULL, err);
}

enum vkmoe_status vkmoe_session_feed_all(vkmoe_session *ses, const int32_t *tokens, size_t n,
                                         vkmoe_logits_fn fn, void *user, struct vkmoe_err *err)
{
    if (!fn)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "no function to receive the logits");
    return run_session_feed(ses->run, tokens, n, fn, user, err);
}

enum vkmoe_status vkmoe_session_feed_to(vkmoe_session *ses, const int32_t *tokens, size_t n, uint32_t last,
                                        struct vkmoe_err *err)
{
    return run_session_feed_to(ses->run, tokens, n, last, err);
}

const float *vkmoe_session_logits(const vkmoe_session *ses)
{
    return run_session_logits(ses->run);
}

uint32_t vkmoe_session_top(const vkmoe_session *ses, const int32_t **ids, const float **logits)
{
    return run_session_top(ses->run, ids, logits);
}

void vkmoe_session_on_route(vkmoe_session *ses, vkmoe_route_fn fn, void *user)
{
    run_session_on_route(ses->run, fn, user);
}

void vkmoe_session_on_watch(vkmoe_session *ses, vkmoe_watch_fn fn, void *user)
{
    run_session_on_watch(ses->run, fn, user);
}

void vkmoe_session_on_inputs(vkmoe_session *ses, vkmoe_inputs_fn fn, void *user)
{
    run_session_on_inputs(ses->run, fn, user);
}

/* Every expert of the subset must be one that the model was opened with. */
static enum vkmoe_status check_inside(const struct run_model *m, const struct xp_subset *s,
                                      struct vkmoe_err *err)
{
    for (uint32_t l = 0; l < s->n_layers; l++)
        for (uint32_t e = 0; e < s->n_routed; e++)
            if (xp_subset_has(s, l, e) && !run_mask_has(m->allowed, &m->mdl->config, l, e))
                return cor_fail(err, VKMOE_ERR_ARGUMENT,
                                "layer %" PRIu32 ", expert %" PRIu32 ": the model was opened without it", l,
                                e);
    return VKMOE_OK;
}

enum vkmoe_status vkmoe_session_use_subset(vkmoe_session *ses, const vkmoe_subset *subset,
                                           struct vkmoe_err *err)
{
    const struct run_model *m = ses->model->run;
    enum vkmoe_status st = VKMOE_OK;

    if (run_session_has_doc(ses->run))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "a session with a document pool chooses its experts itself");
    if (!subset)
        return run_session_set_mask(ses->run, m->allowed, err);
    TRY(check_subset(subset, m, err));
    TRY(check_inside(m, &subset->s, err));
    TRY(run_session_set_mask(ses->run, subset->s.allowed, err));
done:
    return st;
}

void vkmoe_session_get_outside(const vkmoe_session *ses, struct vkmoe_outside *out)
{
    *out = *run_session_outside(ses->run);
}

bool vkmoe_session_may_choose(const vkmoe_session *ses, uint32_t layer, uint32_t expert)
{
    const struct mdl_config *c = &ses->model->run->mdl->config;

    return layer < c->n_layers && expert < c->n_experts &&
           run_mask_has(run_session_state(ses->run)->allowed, c, layer, expert);
}

uint32_t vkmoe_session_position(const vkmoe_session *ses)
{
    return run_session_position(ses->run);
}

uint32_t vkmoe_session_n_ctx(const vkmoe_session *ses)
{
    return run_session_state(ses->run)->n_ctx;
}

uint32_t vkmoe_session_n_chunk(const vkmoe_session *ses)
{
    return run_session_state(ses->run)->chunk;
}

void vkmoe_session_reset(vkmoe_session *ses)
{
    run_session_reset(ses->run);
}

void vkmoe_session_get_stats(const vkmoe_session *ses, struct vkmoe_session_stats *stats)
{
    const struct run_stats *from = run_session_stats(ses->run);
    const struct run_state *state = run_session_state(ses->run);

    *stats = (struct vkmoe_session_stats){.submits = from->submits,
                                          .waits = from->waits,
                                          .halts = from->halts,
                                          .overlapped = from->overlapped,
                                          .kv_bytes = run_arena_bytes(&state->kv_arena),
                                          .state_bytes = run_arena_bytes(&state->act)};
}

void vkmoe_session_get_cost(const vkmoe_session *ses, uint32_t pos, struct vkmoe_session_cost *cost)
{
    struct gpu_amount sum;

    run_session_amount(ses->run, pos, &sum);
    *cost = (struct vkmoe_session_cost){.weight_bytes = sum.weights,
                                        .cache_bytes = sum.cache,
                                        .activation_bytes = sum.activations,
                                        .flops = sum.flops};
}

void vkmoe_session_get_counts(const vkmoe_session *ses, struct vkmoe_session_counts *counts)
{
    run_session_counts(ses->run, counts);
}
