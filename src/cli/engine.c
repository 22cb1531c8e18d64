#include "cli/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/pool.h"
#include "core/os.h"

#define PIECE 512 /* tokens fed between two looks at Ctrl-C: the session's chunk on all but small devices */

static bool parse_kv(const char *name, enum vkmoe_kv_type *type)
{
    static const char *const names[] = {
        [VKMOE_KV_F16] = "f16", [VKMOE_KV_F32] = "f32", [VKMOE_KV_Q8_0] = "q8_0"};

    for (size_t i = 0; i < COR_COUNT(names); i++)
        if (!strcmp(name, names[i])) {
            *type = (enum vkmoe_kv_type)i;
            return true;
        }
    return false;
}

/* ---- opening
 * ------------------------------------------------------------------------------------------------ */

int cli_engine_open_device(struct cli_engine *e, const struct cli_cmd *cmd)
{
    char cache[4096];
    struct vkmoe_params params = {.log = cli_log, .validation = e->validation};
    const struct vkmoe_device_params dp = {.device = e->device,
                                           .caps = e->caps,
                                           .shader_dir = e->shader_dir,
                                           .variants = e->variants,
                                           .profile = e->profile};
    struct vkmoe_err err = {0};
    enum vkmoe_status st;

    e->params.n_ctx = (uint32_t)e->n_ctx;
    e->params.doc_refresh = (uint32_t)e->doc_refresh;
    e->params.fast_math = e->fast_math;
    if (!parse_kv(e->kv_k, &e->params.kv_k))
        return cli_usage(cmd, "-ctk takes f16, f32 or q8_0, not '%s'", e->kv_k);
    if (!parse_kv(e->kv_v, &e->params.kv_v))
        return cli_usage(cmd, "-ctv takes f16, f32 or q8_0, not '%s'", e->kv_v);
    TRY(cli_choice_open(&e->choice, e->experts, &err));
    e->params.doc_experts = e->choice.doc;
    if (e->doc_refresh && !e->choice.doc)
        return cli_usage(cmd, "--doc-refresh belongs to --experts doc:N");
    cor_cache_dir(cache, sizeof(cache));
    params.cache_dir = cache[0] ? cache : NULL;
    TRY(cli_model_path(e->model, e->path, &err));
    TRY(vkmoe_open(&e->ctx, &params, &err));
    TRY(vkmoe_device_open(&e->dev, e->ctx, &dp, &err));
done:
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

enum vkmoe_status cli_engine_load(struct cli_engine *e, uint64_t pool_bytes, struct vkmoe_err *err)
{
    struct cli_progress bar = {.what = "loading"};
    const struct vkmoe_model_params mp = {.lazy_experts = e->lazy,
                                          .pool_bytes = pool_bytes,
                                          .pool_policy = e->policy,
                                          .warm_start = e->warm_start,
                                          .session = &e->params,
                                          .subsets = (const vkmoe_subset *const *)e->choice.subsets,
                                          .n_subsets = e->choice.n,
                                          .check_slots = e->check_slots,
                                          .progress = cli_progress_step,
                                          .progress_user = &bar};
    enum vkmoe_status st = VKMOE_OK;

    TRY(vkmoe_model_open(&e->mdl, e->dev, e->path, &mp, err));
    TRY(vkmoe_session_create(&e->ses, e->mdl, &e->params, err));
    TRY(cli_choice_step(&e->choice, e->ses, 0, err));
    cli_engine_profile_begin(e);
done:
    cli_progress_end(&bar);
    return st;
}

/* Name of a model for people: its file's, without folders and ending. */
static void model_name(const struct cli_engine *e, char *name, size_t cap)
{
    const char *base = cor_path_base(e->path), *dot = strrchr(base, '.');

    snprintf(name, cap, "%.*s", dot && dot > base ? (int)(dot - base) : (int)strlen(base), base);
}

static enum vkmoe_status begin_trace(struct cli_engine *e, struct vkmoe_err *err)
{
    const struct vkmoe_model_info *m = vkmoe_model_facts(e->mdl);
    char name[256];
    const struct xp_trace_info info = {.model = name,
                                       .n_layers = m->n_layers,
                                       .n_experts = m->n_experts,
                                       .n_used = m->n_experts_used,
                                       .expert_bytes = m->expert_bytes,
                                       .weights = e->trace_weights};
    enum vkmoe_status st = VKMOE_OK;

    if (m->n_layers > XP_TRACE_LAYERS)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: a trace of %" PRIu32 " layers is not possible",
                        e->trace, m->n_layers);
    model_name(e, name, sizeof(name));
    cor_catch_interrupt(); /* so that no temporary file is left */
    TRY(xp_trace_create(&e->tracer, e->trace, &info, err));
    vkmoe_session_on_route(e->ses, xp_trace_add, e->tracer);
done:
    return st;
}

int cli_engine_open(struct cli_engine *e, const struct cli_cmd *cmd)
{
    struct vkmoe_err err = {0};
    uint64_t pool_bytes;
    enum vkmoe_status st = VKMOE_OK;
    int status;

    if (!cli_pool_bytes(e->pool, e->pool ? strlen(e->pool) : 0, &pool_bytes))
        return cli_usage(cmd, "--pool-mib takes auto, all or a whole number of at least 1, not '%s'",
                         e->pool);
    if (e->trace_weights && !e->trace)
        return cli_usage(cmd, "--route-weights belongs to --route-trace FILE");
    if ((status = cli_engine_open_device(e, cmd)) != CLI_GOOD)
        return status;
    if (cli_choice_some(&e->choice) && !e->params.watch) /* what lies outside is told */
        e->params.watch = VKMOE_WATCH_ROUTER;
    TRY(cli_engine_load(e, pool_bytes, &err));
    cli_pool_note(e);
    if (e->trace)
        TRY(begin_trace(e, &err));
done:
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

/* ---- the end
 * ------------------------------------------------------------------------------------------------ */

enum vkmoe_status cli_engine_commit(struct cli_engine *e, struct vkmoe_err *err)
{
    struct xp_trace_writer *tracer = e->tracer;
    enum vkmoe_status st = VKMOE_OK;

    e->tracer = NULL;
    if (tracer) {
        vkmoe_session_on_route(e->ses, NULL, NULL);
        TRY(xp_trace_commit(tracer, err));
    }
    if (e->save_hot)
        TRY(vkmoe_model_save_hot(e->mdl, e->save_hot, err));
done:
    return st;
}

void cli_engine_unload(struct cli_engine *e)
{
    vkmoe_session_destroy(e->ses);
    vkmoe_model_close(e->mdl);
    xp_trace_discard(e->tracer);
    e->ses = NULL;
    e->mdl = NULL;
    e->tracer = NULL;
}

void cli_engine_close(struct cli_engine *e)
{
    cli_engine_unload(e);
    cli_choice_close(&e->choice);
    vkmoe_device_close(e->dev);
    vkmoe_close(e->ctx);
    e->dev = NULL;
    e->ctx = NULL;
}

int cli_engine_end(struct cli_engine *e, int status, enum vkmoe_status st, const struct vkmoe_err *err)
{
    if (st != VKMOE_OK)
        status = cli_error(err);
    else if (e->dev)
        cli_engine_profile(e, "all");
    cli_engine_close(e);
    return status;
}

/* ---- feeding
 * ------------------------------------------------------------------------------------------------ */

enum vkmoe_status cli_engine_check_prompt(const struct cli_engine *e, size_t n, struct vkmoe_err *err)
{
    uint32_t n_ctx = vkmoe_session_n_ctx(e->ses);

    if (!n)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "the prompt is empty: at least one token is needed");
    if (n > n_ctx)
        return cor_fail(err, VKMOE_ERR_CONTEXT_FULL,
                        "the prompt of %zu tokens does not fit the context of %" PRIu32 " (-c)", n, n_ctx);
    return VKMOE_OK;
}

/* A document pool is picked from the whole prompt, at once. Otherwise pieces, none of one token: by itself it
 * would take the kernels of decode. */
static size_t piece_of(const struct cli_engine *e, size_t left)
{
    if (e->choice.doc)
        return left;
    if (left == PIECE + 1)
        return PIECE - 1;
    return left < PIECE ? left : PIECE;
}

enum vkmoe_status cli_engine_feed(struct cli_engine *e, const int32_t *ids, size_t n, size_t *fed,
                                  struct vkmoe_err *err)
{
    struct cli_progress bar = {.what = "reading", .unit = "tokens"};
    enum vkmoe_status st = VKMOE_OK;
    size_t at = 0;

    *fed = 0;
    TRY(cli_engine_check_prompt(e, n, err));
    while (at < n && !cor_interrupted()) {
        size_t part = piece_of(e, n - at);

        cli_progress_step(&bar, at, n);
        TRY(vkmoe_session_feed(e->ses, ids + at, part, err));
        at += part;
    }
    *fed = at;
done:
    cli_progress_end(&bar);
    return st;
}

int32_t cli_first_token(const vkmoe_model *mdl)
{
    const struct vkmoe_model_info *m = vkmoe_model_facts(mdl);

    return m->bos_token >= 0 ? m->bos_token : m->eos_token;
}

void cli_engine_device_line(const struct cli_engine *e, char *dst, size_t n)
{
    const struct vkmoe_device_info *d = vkmoe_device_facts(e->dev);

    snprintf(dst, n, "%s, %s %s", d->name, d->driver, d->driver_version);
}
