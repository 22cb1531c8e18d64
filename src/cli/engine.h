/* Device, model and session for the commands that compute: one set of options, one way to open, feed and
 * close. */
#ifndef CLI_ENGINE_H
#define CLI_ENGINE_H

#include "cli/choose.h"
#include "experts/trace.h"

struct cli_engine {
    /* options, from CLI_ENGINE_DEFAULTS */
    const char *model, *device, *caps, *shader_dir, *variants, *kv_k, *kv_v;
    const char *pool, *policy, *warm_start, *save_hot, *trace, *experts;
    int64_t n_ctx, doc_refresh;
    bool fast_math, validation, profile, lazy, check_slots, trace_weights;
    /* opened */
    struct cli_choice choice; /* of --experts */
    vkmoe_context *ctx;
    vkmoe_device *dev;
    vkmoe_model *mdl;
    vkmoe_session *ses;
    char path[4096];                    /* of the model */
    struct vkmoe_session_params params; /* of ses */
    struct xp_trace_writer *tracer;     /* of --route-trace; NULL: none */
    uint64_t profile_since;             /* the last table of --profile, or the opening */
};

#define CLI_ENGINE_DEFAULTS          \
    {                                \
        .kv_k = "f16", .kv_v = "f16" \
    }

/* Rows for a struct cli_opt table. */
/* clang-format off */
#define CLI_ENGINE_OPTS(e)                                                                                   \
    {"-m|--model", CLI_STR, &(e).model, "FILE", "GGUF file (default: the bundled model)", 0, 0},             \
    CLI_DEVICE_OPTS(e)

/* The same but for the model. */
#define CLI_DEVICE_OPTS(e)                                                                                   \
    {"-dev|--device", CLI_STR, &(e).device, "NAME",                                                          \
     "index or part of a name (default: the best one)", 0, 0},                                               \
    {"-c|--ctx-size", CLI_INT, &(e).n_ctx, "N",                                                              \
     "context (default 0: the model's, at most 4096)", 0, 1 << 24},                                          \
    {"-ctk|--cache-type-k", CLI_STR, &(e).kv_k, "TYPE", "key cache: f16 (default), f32 or q8_0", 0, 0},            \
    {"-ctv|--cache-type-v", CLI_STR, &(e).kv_v, "TYPE", "value cache: f16 (default), f32 or q8_0", 0, 0},          \
    {"--experts", CLI_STR, &(e).experts, "all|FILE|doc:N",                                                    \
     "choose only from a subset's experts, or from N per layer that the text picks", 0, 0},                  \
    {"--doc-refresh", CLI_INT, &(e).doc_refresh, "T",                                                        \
     "with doc:N, exchange experts that fell behind every T decoded tokens (default 0: never)", 0, 1 << 24}, \
    {"--pool-policy", CLI_STR, &(e).policy, "TEXT",                                                          \
     "lru, lfu, decay or decay:TOKENS, each also with /layer or /global behind it (default decay)", 0, 0},   \
    {"--warm-start", CLI_STR, &(e).warm_start, "FILE",                                                       \
     "begin with the experts of a file that --save-hot wrote", 0, 0},                                        \
    {"--lazy-experts", CLI_FLAG, &(e).lazy, NULL, "load each expert when a token first asks for it", 0, 0},  \
    {"--check-slots", CLI_FLAG, &(e).check_slots, NULL,                                                      \
     "compare slots with the file after each load (for debugging)", 0, 0},                                   \
    {"--fast-math", CLI_FLAG, &(e).fast_math, NULL,                                                          \
     "round activations to 8 bits for Q8_0 and Q4_0 weights: faster, not exact", 0, 0},                      \
    {"--caps", CLI_STR, &(e).caps, "LIST",                                                                   \
     "use less of the device than it has, as -f16,-subgroup (docs/DEVICES.md)", 0, 0},                       \
    {"--variants", CLI_STR, &(e).variants, "LIST",                                                           \
     "kernel variants in place of tuned ones, as core=shared,rows=4 (docs/DEVICES.md)", 0, 0},               \
    {"--shader-dir", CLI_STR, &(e).shader_dir, "DIR",                                                        \
     "kernels from DIR/KERNEL.spv where it exists, as build/shaders (docs/DEVICES.md)", 0, 0},               \
    {"--profile", CLI_FLAG, &(e).profile, NULL, "time every kernel and show the sums at the end", 0, 0},      \
    {"--validation", CLI_FLAG, &(e).validation, NULL, "run under the Vulkan validation layer", 0, 0}

/* Rows for commands that feed one text through one pool. */
#define CLI_POOL_OPTS(e)                                                                                     \
    {"--pool-mib|--moe-cache-mib", CLI_STR, &(e).pool, "N",                                                  \
     "MiB on the device for experts, or all, or auto (the default: all where they fit)", 0, 0},              \
    {"--save-hot", CLI_STR, &(e).save_hot, "FILE",                                                           \
     "at the end, write which experts were used most, for --warm-start", 0, 0},                              \
    {"--route-trace", CLI_STR, &(e).trace, "FILE",                                                           \
     "write the experts that each token chose in each layer, for `vkmoe bench pool`", 0, 0},                 \
    {"--route-weights", CLI_FLAG, &(e).trace_weights, NULL, "with their probabilities", 0, 0}
/* clang-format on */

/* Opens everything. Returns CLI_GOOD, or the exit status after printing the reason. */
int cli_engine_open(struct cli_engine *e, const struct cli_cmd *cmd);
/* Writes what options asked for besides the command's own results: hot set and route trace. Before those
 * results, so that a failure leaves none. */
enum vkmoe_status cli_engine_commit(struct cli_engine *e, struct vkmoe_err *err);
void cli_engine_close(struct cli_engine *e);
/* The end of a command: prints the reason when st is a failure, and closes. Returns the exit status: `status`
 * where all went well. */
int cli_engine_end(struct cli_engine *e, int status, enum vkmoe_status st, const struct vkmoe_err *err);

/* ---- the two halves of open, for commands that open several pools on one device */

/* Device and path of the model. Returns as open. */
int cli_engine_open_device(struct cli_engine *e, const struct cli_cmd *cmd);
/* Model with a pool of so many bytes (or VKMOE_POOL_AUTO, _ALL), and session. */
enum vkmoe_status cli_engine_load(struct cli_engine *e, uint64_t pool_bytes, struct vkmoe_err *err);
void cli_engine_unload(struct cli_engine *e);

/* Appends a prompt to the empty session, with progress. *fed < n: Ctrl-C, heard between pieces of the prompt.
 */
enum vkmoe_status cli_engine_feed(struct cli_engine *e, const int32_t *ids, size_t n, size_t *fed,
                                  struct vkmoe_err *err);
/* Fails, with a line for people, when n tokens are none or more than the context. */
enum vkmoe_status cli_engine_check_prompt(const struct cli_engine *e, size_t n, struct vkmoe_err *err);

/* What stands before a document that is read alone: the token that begins every text of the model, else its
 * end-of-text token; -1: none. */
int32_t cli_first_token(const vkmoe_model *mdl);

/* With --profile: a table of what kernels took and moved since the last one or since begin, headed by `what`,
 * beside the time that went by; to stderr. */
void cli_engine_profile(struct cli_engine *e, const char *what);
void cli_engine_profile_begin(struct cli_engine *e);

/* "NAME, DRIVER VERSION" */
void cli_engine_device_line(const struct cli_engine *e, char *dst, size_t n);

#endif
