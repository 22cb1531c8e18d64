#include "cli/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/os.h"

#define PIECE 512 /* tokens fed between two looks at Ctrl-C: the session's chunk on all but small devices */

static bool parse_kv(const char *name, enum vkmoe_kv_type *type)
{
    *type = strcmp(name, "f32") ? VKMOE_KV_F16 : VKMOE_KV_F32;
    return !strcmp(name, "f32") || !strcmp(name, "f16");
}

int cli_engine_open(struct cli_engine *e, const struct cli_cmd *cmd)
{
    char cache[4096];
    struct cli_progress bar = {.what = "loading"};
    struct vkmoe_params params = {.log = cli_log, .validation = e->validation};
    const struct vkmoe_device_params dp = {.device = e->device, .caps = e->caps};
    const struct vkmoe_model_params mp = {
        .lazy_experts = e->lazy, .progress = cli_progress_step, .progress_user = &bar};
    struct vkmoe_session_params sp = {.n_ctx = (uint32_t)e->n_ctx};
    struct vkmoe_err err = {0};
    enum vkmoe_status st;

    if (!parse_kv(e->kv_k, &sp.kv_k))
        return cli_usage(cmd, "-ctk takes f16 or f32, not '%s'", e->kv_k);
    if (!parse_kv(e->kv_v, &sp.kv_v))
        return cli_usage(cmd, "-ctv takes f16 or f32, not '%s'", e->kv_v);
    cor_cache_dir(cache, sizeof(cache));
    params.cache_dir = cache[0] ? cache : NULL;
    TRY(cli_model_path(e->model, e->path, &err));
    TRY(vkmoe_open(&e->ctx, &params, &err));
    TRY(vkmoe_device_open(&e->dev, e->ctx, &dp, &err));
    TRY(vkmoe_model_open(&e->mdl, e->dev, e->path, &mp, &err));
    TRY(vkmoe_session_create(&e->ses, e->mdl, &sp, &err));
done:
    cli_progress_end(&bar);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

void cli_engine_close(struct cli_engine *e)
{
    vkmoe_session_destroy(e->ses);
    vkmoe_model_close(e->mdl);
    vkmoe_device_close(e->dev);
    vkmoe_close(e->ctx);
    e->ses = NULL;
    e->mdl = NULL;
    e->dev = NULL;
    e->ctx = NULL;
}

int cli_engine_end(struct cli_engine *e, int status, enum vkmoe_status st, const struct vkmoe_err *err)
{
    if (st != VKMOE_OK)
        status = cli_error(err);
    cli_engine_close(e);
    return status;
}

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

enum vkmoe_status cli_engine_feed(struct cli_engine *e, const int32_t *ids, size_t n, size_t *fed,
                                  struct vkmoe_err *err)
{
    struct cli_progress bar = {.what = "reading", .unit = "tokens"};
    enum vkmoe_status st = VKMOE_OK;
    size_t at = 0;

    *fed = 0;
    TRY(cli_engine_check_prompt(e, n, err));
    while (at < n && !cor_interrupted()) {
        size_t part = n - at < PIECE ? n - at : PIECE;

        cli_progress_step(&bar, at, n);
        TRY(vkmoe_session_feed(e->ses, ids + at, part, err));
        at += part;
    }
    *fed = at;
done:
    cli_progress_end(&bar);
    return st;
}

void cli_engine_device_line(const struct cli_engine *e, char *dst, size_t n)
{
    const struct vkmoe_device_info *d = vkmoe_device_facts(e->dev);

    snprintf(dst, n, "%s, %s %s", d->name, d->driver, d->driver_version);
}

void cli_engine_pool_json(const struct cli_engine *e)
{
    const struct vkmoe_model_info *m = vkmoe_model_facts(e->mdl);
    struct vkmoe_model_stats ms;
    struct vkmoe_session_stats ss;

    vkmoe_model_get_stats(e->mdl, &ms);
    vkmoe_session_get_stats(e->ses, &ss);
    printf("\"pool\": {\"slots\": %" PRIu32 ", \"slot_bytes\": %" PRIu64 ", \"segments\": %" PRIu32
           ", \"budget_bytes\": %" PRIu64 ", \"uploads\": %" PRIu64 ", \"uploaded_bytes\": %" PRIu64
           ", \"host_waits\": %" PRIu64 ", \"halts\": %" PRIu64 "}",
           m->n_slots, m->expert_bytes, m->n_segments, m->pool_bytes, ms.uploads, ms.uploaded_bytes, ss.waits,
           ss.halts);
}
