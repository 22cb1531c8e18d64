/* Device, model and session for the commands that compute: one set of options, one way to open and close. */
#ifndef CLI_ENGINE_H
#define CLI_ENGINE_H

#include "cli/cli.h"

struct cli_engine {
    /* options; set defaults with cli_engine_defaults */
    const char *model, *device, *caps, *kv_k, *kv_v;
    int64_t n_ctx;
    bool validation, lazy;
    /* opened */
    vkmoe_context *ctx;
    vkmoe_device *dev;
    vkmoe_model *mdl;
    vkmoe_session *ses;
    char path[4096]; /* of the model */
};

#define CLI_ENGINE_DEFAULTS          \
    {                                \
        .kv_k = "f16", .kv_v = "f16" \
    }

/* Rows for a struct cli_opt table. */
#define CLI_ENGINE_OPTS(e)                                                                                 \
    {"-m|--model", CLI_STR, &(e).model, "FILE", "GGUF file (default: the bundled model)", 0, 0},           \
        {"-dev|--device", CLI_STR, &(e).device, "NAME", "index or part of a device's name", 0, 0},         \
        {"-c|--ctx-size", CLI_INT, &(e).n_ctx, "N", "context in tokens (0: the model's, at most 4096)", 0, \
         1 << 24},                                                                                         \
        {"-ctk|--cache-type-k", CLI_STR, &(e).kv_k, "TYPE", "key cache: f16 or f32", 0, 0},                \
        {"-ctv|--cache-type-v", CLI_STR, &(e).kv_v, "TYPE", "value cache: f16 or f32", 0, 0},              \
        {"--caps", CLI_STR, &(e).caps, "LIST", "clamp what is believed of the device (docs/DEVICES.md)",   \
         0,        0},                                                                                     \
        {"--lazy-experts",                                                                                 \
         CLI_FLAG,                                                                                         \
         &(e).lazy,                                                                                        \
         NULL,                                                                                             \
         "load each expert when a token first asks for it",                                                \
         0,                                                                                                \
         0},                                                                                               \
    {                                                                                                      \
        "--validation", CLI_FLAG, &(e).validation, NULL, "run under the Vulkan validation layer", 0, 0     \
    }

/* Opens everything. Returns CLI_GOOD, or the exit status after printing the reason. */
int cli_engine_open(struct cli_engine *e, const struct cli_cmd *cmd);
/* Opens all but the session: its context may depend on the text. */
int cli_engine_open_model(struct cli_engine *e, const struct cli_cmd *cmd);
int cli_engine_open_session(struct cli_engine *e);
void cli_engine_close(struct cli_engine *e);
/* "NAME (DRIVER VERSION)" */
void cli_engine_device_line(const struct cli_engine *e, char *dst, size_t n);
/* `"pool": {...}` without a newline, to stdout. */
void cli_engine_pool_json(const struct cli_engine *e);

#endif
