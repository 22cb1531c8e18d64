#include "cli/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/os.h"

static bool parse_kv(const char *name, enum vkmoe_kv_type *type)
{
    *type = strcmp(name, "f32") ? VKMOE_KV_F16 : VKMOE_KV_F32;
    return !strcmp(name, "f32") || !strcmp(name, "f16");
}

int cli_engine_open_model(struct cli_engine *e, const struct cli_cmd *cmd)
{
    char cache[4096];
    struct cli_progress bar = {.what = "loading"};
    struct vkmoe_params params = {.log = cli_log, .validation = e->validation};
    const struct vkmoe_device_params dp = {.device = e->device, .caps = e->caps};
    const struct vkmoe_model_params mp = {
        .lazy_experts = e->lazy, .progress = cli_progress_step, .progress_user = &bar};
    enum vkmoe_kv_type kv;
    struct vkmoe_err err = {0};
    enum vkmoe_status st;

    if (!parse_kv(e->kv_k, &kv))
        return cli_usage(cmd, "-ctk %s: expected f16 or f32", e->kv_k);
    if (!parse_kv(e->kv_v, &kv))
        return cli_usage(cmd, "-ctv %s: expected f16 or f32", e->kv_v);
    cor_cache_dir(cache, sizeof(cache));
    params.cache_dir = cache[0] ? cache : NULL;
    TRY(cli_model_path(e->model, e->path, &err));
    TRY(vkmoe_open(&e->ctx, &params, &err));
    TRY(vkmoe_device_open(&e->dev, e->ctx, &dp, &err));
    st = vkmoe_model_open(&e->mdl, e->dev, e->path, &mp, &err);
    cli_progress_end(&bar);
done:
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

int cli_engine_open_session(struct cli_engine *e)
{
    struct vkmoe_session_params sp = {.n_ctx = (uint32_t)e->n_ctx};
    struct vkmoe_err err = {0};

    parse_kv(e->kv_k, &sp.kv_k);
    parse_kv(e->kv_v, &sp.kv_v);
    return vkmoe_session_create(&e->ses, e->mdl, &sp, &err) == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

int cli_engine_open(struct cli_engine *e, const struct cli_cmd *cmd)
{
    int status = cli_engine_open_model(e, cmd);

    return status == CLI_GOOD ? cli_engine_open_session(e) : status;
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

void cli_engine_device_line(const struct cli_engine *e, char *dst, size_t n)
{
    const struct vkmoe_device_info *d = vkmoe_device_facts(e->dev);

    snprintf(dst, n, "%s (%s %s)", d->name, d->driver, d->driver_version);
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
