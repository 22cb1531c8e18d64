/* vkmoe: mixture-of-experts language models on any Vulkan GPU, with only the experts in use on the device.
 *
 * Usage in eight lines (examples/hello.c is the whole program):
 *   vkmoe_open(&ctx, NULL, &err);
 *   vkmoe_device_open(&dev, ctx, NULL, &err);
 *   vkmoe_model_open(&model, dev, "model.gguf", NULL, &err);
 *   vkmoe_session_create(&ses, model, NULL, &err);
 *   vkmoe_tokenize_prompt(model, text, n_bytes, false, &ids, &n, &err);
 *   vkmoe_session_feed(ses, ids, n, &err);
 *   vkmoe_sample(sampler, vkmoe_session_logits(ses), n_vocab, n_vocab, &token, &err);
 *   ...
 * Ownership: a context outlives its devices, a device its models, a model its sessions. Close in reverse
 * order. Closing NULL is fine.
 * Errors: every function that can fail returns a status and fills *err (may be NULL) with one line that says
 * what failed, where and with which value. Output pointers are set to NULL first and written only on success.
 * Threads: objects of one context may be used from one thread at a time. The library never exits, prints or
 * reads the environment. */
#ifndef VKMOE_H
#define VKMOE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(VKMOE_BUILD_SHARED) && !defined(_WIN32)
#define VKMOE_API __attribute__((visibility("default")))
#else
#define VKMOE_API
#endif

#define VKMOE_VERSION_MAJOR 0
#define VKMOE_VERSION_MINOR 1
#define VKMOE_VERSION_PATCH 0

/* ---- status -------------------------------------------------------------------------------------------- */

/* X(enumerator, value, text) */
#define VKMOE_STATUS_LIST(X)                                                                                 \
    X(VKMOE_OK, 0, "success")                                                                                \
    X(VKMOE_ERR_ARGUMENT, 1, "invalid argument")                                                             \
    X(VKMOE_ERR_MEMORY, 2, "out of memory")                                                                  \
    X(VKMOE_ERR_IO, 3, "input or output error")                                                              \
    X(VKMOE_ERR_FORMAT, 4, "malformed file")                                                                 \
    X(VKMOE_ERR_UNSUPPORTED, 5, "not supported")                                                             \
    X(VKMOE_ERR_NO_DEVICE, 6, "no usable Vulkan device")                                                     \
    X(VKMOE_ERR_DEVICE, 7, "Vulkan device error")                                                            \
    X(VKMOE_ERR_DEVICE_LOST, 8, "Vulkan device lost")                                                        \
    X(VKMOE_ERR_TIMEOUT, 9, "Vulkan device timed out")                                                       \
    X(VKMOE_ERR_CONTEXT_FULL, 10, "context full")                                                            \
    X(VKMOE_ERR_NUMERIC, 11, "non-finite result")                                                            \
    X(VKMOE_ERR_LIMIT, 12, "resource limit exceeded")

enum vkmoe_status {
#define VKMOE_X(name, value, text) name = value,
    VKMOE_STATUS_LIST(VKMOE_X)
#undef VKMOE_X
};

struct vkmoe_err {
    enum vkmoe_status status;
    char message[1024]; /* one line, no newline, NUL-terminated */
};

/* Text of a status; never NULL. */
VKMOE_API const char *vkmoe_status_text(enum vkmoe_status status);

/* Library version as "major.minor.patch". */
VKMOE_API const char *vkmoe_version(void);

/* ---- context and log ----------------------------------------------------------------------------------- */

enum vkmoe_log_level { VKMOE_LOG_DEBUG, VKMOE_LOG_INFO, VKMOE_LOG_WARN, VKMOE_LOG_ERROR };

/* Receives one line without a newline. Called on the thread that uses the library or on a driver's thread. */
typedef void (*vkmoe_log_fn)(void *user, enum vkmoe_log_level level, const char *line);

struct vkmoe_context;
typedef struct vkmoe_context vkmoe_context;

struct vkmoe_params {
    vkmoe_log_fn log;      /* NULL: silent */
    void *log_user;
    const char *cache_dir; /* pipeline caches; NULL: none are read or written */
    /* core, synchronisation and queue-submit validation, where the layer is installed */
    bool validation;
};

/* Loads Vulkan and lists its devices.
 *
 * params: NULL for defaults. Errors: VKMOE_ERR_NO_DEVICE when no Vulkan loader or driver is installed. */
VKMOE_API enum vkmoe_status vkmoe_open(vkmoe_context **out, const struct vkmoe_params *params,
                                       struct vkmoe_err *err);
VKMOE_API void vkmoe_close(vkmoe_context *ctx);

/* ---- devices ------------------------------------------------------------------------------------------- */

struct vkmoe_device_info {
    uint32_t index;
    char name[256];
    char driver[256];        /* driver name */
    char driver_version[256];
    char api_version[32];
    const char *type;        /* "discrete", "integrated", "virtual", "cpu" or "other" */
    uint64_t heap_bytes;     /* largest device-local heap */
    uint64_t free_bytes;     /* of that heap, by VK_EXT_memory_budget; 0: unknown */
    uint32_t subgroup_size;
    bool usable;
    char refused[256];       /* the one thing that is missing, "" when usable */
};

VKMOE_API uint32_t vkmoe_device_count(const vkmoe_context *ctx);

/* Facts about device `index`; NULL when out of range. Owned by the context. */
VKMOE_API const struct vkmoe_device_info *vkmoe_device_get(const vkmoe_context *ctx, uint32_t index);

/* One JSON object with everything known about the device: heaps, limits, features, kernels it will use.
 *
 * The string belongs to the caller: vkmoe_free. */
VKMOE_API enum vkmoe_status vkmoe_device_json(const vkmoe_context *ctx, uint32_t index, char **json,
                                              struct vkmoe_err *err);

struct vkmoe_device;
typedef struct vkmoe_device vkmoe_device;

struct vkmoe_device_params {
    const char *device; /* index as digits, or part of a name in any case; NULL: the best usable device */
    const char *caps;   /* clamp list such as "-f16,-subgroup,range=1M"; NULL: none (docs/DEVICES.md) */
    /* For work on shaders: FOLDER/KERNEL.spv stands in for the built-in module where it exists, and no
     * pipeline cache is read or written. A file that is no SPIR-V: VKMOE_ERR_FORMAT when its kernel is first
     * used; what it does is not checked. NULL: none. */
    const char *shader_dir;
    /* For tests and measurements: kernel variants such as "core=subgroup,rows=4" in place of those that
     * `vkmoe tune` found, or of the defaults (docs/DEVICES.md). NULL: none. With caps or shader_dir the
     * defaults are used, not what was found; paths that `vkmoe selftest` switched off stay off but for
     * "-tuned" in caps. */
    const char *variants;
    bool profile;       /* time every kernel; VKMOE_ERR_UNSUPPORTED where the device has no timestamps */
};

VKMOE_API enum vkmoe_status vkmoe_device_open(vkmoe_device **out, vkmoe_context *ctx,
                                              const struct vkmoe_device_params *params,
                                              struct vkmoe_err *err);
VKMOE_API void vkmoe_device_close(vkmoe_device *dev);
VKMOE_API const struct vkmoe_device_info *vkmoe_device_facts(const vkmoe_device *dev);

/* Kernel variants that models on this device run with, as vkmoe_device_params.variants takes them. *from (may
 * be NULL) becomes "default", "tuned" or "forced". Both strings belong to the device. */
VKMOE_API const char *vkmoe_device_variants(const vkmoe_device *dev, const char **from);

struct vkmoe_device_memory {
    uint64_t in_use_bytes, peak_bytes; /* device memory that models and sessions hold, and once held */
    uint64_t free_bytes;               /* of the largest device-local heap */
};

VKMOE_API void vkmoe_device_get_memory(const vkmoe_device *dev, struct vkmoe_device_memory *memory);

struct vkmoe_kernel_time {
    const char *kernel;
    uint64_t count; /* dispatches since opening or reset, those that had nothing to do too */
    double ms;      /* on the device, in all */
    double bytes;   /* that had to be read and written at least once, by the shapes */
    double flops;   /* additions and multiplications */
};

/* Times of entry `index`, kernels that were dispatched only, in no order; false behind the last, and without
 * `profile`. */
VKMOE_API bool vkmoe_device_kernel_time(const vkmoe_device *dev, uint32_t index,
                                        struct vkmoe_kernel_time *time);

/* What kernels' times leave out, since opening or reset. */
struct vkmoe_device_gaps {
    uint64_t waits;
    double between_ms; /* on the device, from first kernel to last of what was waited for: barriers, clocks */
    double around_ms;  /* the host's submits and waits beyond that: launching, waking, reading the clocks */
};

/* false: the device was opened without `profile`. */
VKMOE_API bool vkmoe_device_get_gaps(const vkmoe_device *dev, struct vkmoe_device_gaps *gaps);
VKMOE_API void vkmoe_device_reset_times(vkmoe_device *dev);

/* ---- subsets of experts -------------------------------------------------------------------------------- */

/* Which routed experts of each layer may be chosen. */
struct vkmoe_subset;
typedef struct vkmoe_subset vkmoe_subset;

/* Reads a subset file, a pruning_metadata.json, or the original ids that a carved GGUF file keeps
 * (docs/FORMATS.md). It is compared with a model when it is given to one.
 *
 * Errors: VKMOE_ERR_FORMAT, VKMOE_ERR_IO, VKMOE_ERR_MEMORY. */
VKMOE_API enum vkmoe_status vkmoe_subset_open(vkmoe_subset **out, const char *path, struct vkmoe_err *err);
/* keep: (n_layers, n_experts) bytes, not 0: may be chosen. Copied. */
VKMOE_API enum vkmoe_status vkmoe_subset_create(vkmoe_subset **out, uint32_t n_layers, uint32_t n_experts,
                                                const uint8_t *keep, struct vkmoe_err *err);
VKMOE_API void vkmoe_subset_close(vkmoe_subset *subset);
/* False outside the subset's own numbers of layers and experts. */
VKMOE_API bool vkmoe_subset_has(const vkmoe_subset *subset, uint32_t layer, uint32_t expert);

/* ---- model --------------------------------------------------------------------------------------------- */

struct vkmoe_model;
typedef struct vkmoe_model vkmoe_model;

/* Budgets of the expert pool: bytes of slots, staging and tables, or one of these. */
#define VKMOE_POOL_AUTO 0          /* every expert where it fits, else what the device has free */
#define VKMOE_POOL_ALL  UINT64_MAX /* every expert, or an error */

struct vkmoe_session_params;

struct vkmoe_model_params {
    bool lazy_experts; /* load each expert when a token first asks for it instead of all at the start */
    uint64_t pool_bytes;
    /* "lru", "lfu", "decay" or "decay:48" (half-life in tokens), each with "/layer" or "/global" behind it
     * or without; NULL: the default */
    const char *pool_policy;
    const char *warm_start; /* file of vkmoe_model_save_hot: experts to begin with when not all fit; NULL */
    const struct vkmoe_session_params *session; /* the pool leaves room for one such session; NULL: default */
    /* Experts outside the union of these are never loaded; sessions begin with the union. None: all experts.
     * Not needed after opening. */
    const vkmoe_subset *const *subsets;
    uint32_t n_subsets;
    bool check_slots; /* debug: after every load slots are compared with the file, on the device */
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes); /* NULL: none */
    void *progress_user;
};

struct vkmoe_model_info {
    uint32_t vocab_size;
    uint32_t n_layers;
    uint32_t n_experts;      /* routed, per layer; 0: all layers are dense */
    uint32_t n_experts_used; /* routed, per token */
    uint32_t n_shared;       /* shared experts per layer */
    uint32_t n_ctx_train;
    int32_t bos_token;       /* that stands before every text; -1: none */
    int32_t eos_token;       /* -1: none */
    uint32_t n_tokens_used;  /* 1 + the last id that has a string: n_allowed of vkmoe_sample */
    uint64_t dense_bytes;    /* device bytes of weights that every token uses */
    uint64_t expert_bytes;   /* device bytes of one slot */
    uint32_t n_slots;
    uint32_t n_segments;
    uint64_t pool_bytes;     /* device bytes of all slots and tables */
};

/* Opens a GGUF file and places its dense weights and experts on the device. */
VKMOE_API enum vkmoe_status vkmoe_model_open(vkmoe_model **out, vkmoe_device *dev, const char *path,
                                             const struct vkmoe_model_params *params, struct vkmoe_err *err);
VKMOE_API void vkmoe_model_close(vkmoe_model *model);
VKMOE_API const struct vkmoe_model_info *vkmoe_model_facts(const vkmoe_model *model);

struct vkmoe_model_stats {
    uint64_t uploads, uploaded_bytes; /* experts brought to the device, with those at opening */
};

VKMOE_API void vkmoe_model_get_stats(const vkmoe_model *model, struct vkmoe_model_stats *stats);

struct vkmoe_pool_counts { /* of decode */
    uint64_t tokens;
    uint64_t hits, misses;    /* routed experts chosen, by token and layer */
    uint64_t evictions;
    uint64_t uploaded_bytes;
    uint64_t host_waits;      /* for the device */
    uint64_t visits;          /* of a layer by a token */
    uint64_t blocking_visits; /* with at least one miss */
    uint64_t reuploads;       /* misses of experts evicted fewer than 8 tokens before */
};

struct vkmoe_pool_prefill {
    uint64_t chunks, tokens;
    uint64_t hits, loads; /* experts that a chunk needed in a layer: resident before, and not */
    uint64_t evictions;
    uint64_t displaced; /* experts evicted that were resident when their chunk began */
    uint64_t uploaded_bytes, host_waits;
};

struct vkmoe_pool_stats {
    uint32_t slots, resident, segments;
    uint32_t experts; /* that the model was opened with, in all layers */
    uint64_t slot_bytes, budget_bytes;
    uint64_t slots_bytes, staging_bytes, table_bytes; /* in use, by purpose */
    bool holds_all;                                   /* a slot for every expert: nothing is ever evicted */
    char policy[32];
    struct vkmoe_pool_counts total, cold, warm; /* cold: the first 32 tokens */
    struct vkmoe_pool_prefill prefill;
};

VKMOE_API void vkmoe_model_get_pool(const vkmoe_model *model, struct vkmoe_pool_stats *stats);

/* Holds the pool to another budget, between feeds: whole segments are freed or made.
 *
 * Errors: VKMOE_ERR_LIMIT below the smallest pool that works, VKMOE_ERR_UNSUPPORTED where the device gives
 * each layer segments of its own; the pool is then as it was. */
VKMOE_API enum vkmoe_status vkmoe_model_resize_pool(vkmoe_model *model, uint64_t pool_bytes,
                                                    struct vkmoe_err *err);

/* Writes which experts were used most, best first, for warm_start of the same model. */
VKMOE_API enum vkmoe_status vkmoe_model_save_hot(const vkmoe_model *model, const char *path,
                                                 struct vkmoe_err *err);

/* True for tokens that end a text. */
VKMOE_API bool vkmoe_token_is_end(const vkmoe_model *model, int32_t token);

/* Text to token ids, as a part of a text: vkmoe_tokenize_prompt is for the beginning of one.
 *
 * text: n_bytes bytes, any bytes. parse_special: names of control tokens in the text become those tokens
 * (those of tokens that the file calls user-defined always do).
 * *ids belongs to the caller: vkmoe_free. */
VKMOE_API enum vkmoe_status vkmoe_tokenize(const vkmoe_model *model, const char *text, size_t n_bytes,
                                           bool parse_special, int32_t **ids, size_t *n_ids,
                                           struct vkmoe_err *err);

/* The same with bos_token before it, where the model has one and the text does not begin with it. */
VKMOE_API enum vkmoe_status vkmoe_tokenize_prompt(const vkmoe_model *model, const char *text, size_t n_bytes,
                                                  bool parse_special, int32_t **ids, size_t *n_ids,
                                                  struct vkmoe_err *err);

/* Bytes of one token (not NUL-terminated; may be part of a UTF-8 character). Ids without a string: 0 bytes.
 * The pointer belongs to the model. */
VKMOE_API size_t vkmoe_token_bytes(const vkmoe_model *model, int32_t token, const char **bytes);

VKMOE_API void vkmoe_free(void *p);

/* ---- session ------------------------------------------------------------------------------------------- */

struct vkmoe_session;
typedef struct vkmoe_session vkmoe_session;

#define VKMOE_TOP_MAX 64

/* Q8_0: 8 bits with a scale for each 32 elements of a head, whose size must be a multiple of 32. */
enum vkmoe_kv_type { VKMOE_KV_F16, VKMOE_KV_F32, VKMOE_KV_Q8_0 };

/* What a session tells of its router besides its choices, for vkmoe_session_on_watch. */
enum vkmoe_watch {
    VKMOE_WATCH_NONE,
    VKMOE_WATCH_ROUTER,  /* logits */
    VKMOE_WATCH_EXPERTS, /* and outputs */
    VKMOE_WATCH_INPUTS   /* and what vkmoe_session_on_inputs gets: slow, and not with doc_experts */
};

struct vkmoe_session_params {
    uint32_t n_ctx;   /* positions; 0: the model's training context, at most 4096 */
    uint32_t n_chunk; /* prefill chunk in tokens; 0: 512 or what the device's limits allow */
    enum vkmoe_kv_type kv_k, kv_v;
    /* Rounds activations to 8 bits with a scale for each 32 before they meet Q8_0 and Q4_0 weights: faster,
     * and not exact (perplexity within 0.1 %). Other formats, the router and attention stay as they are. */
    bool fast_math;
    enum vkmoe_watch watch; /* costs a copy of the router's logits to the host, and more */
    /* Document pool: that many routed experts per layer, chosen by the first feed from all its tokens, layer
     * by layer, as in EMO's training; later feeds stay inside it. 0: none. From n_experts_used of the model
     * to n_experts. Implies VKMOE_WATCH_ROUTER. */
    uint32_t doc_experts;
    uint32_t doc_refresh; /* every so many tokens of decode the pool may exchange experts; 0: never */
    /* Only so many of the best logits come to the host, for vkmoe_session_top: at most VKMOE_TOP_MAX; 0: all
     * of them do, for vkmoe_session_logits. */
    uint32_t n_top;
};

VKMOE_API enum vkmoe_status vkmoe_session_create(vkmoe_session **out, vkmoe_model *model,
                                                 const struct vkmoe_session_params *params,
                                                 struct vkmoe_err *err);
VKMOE_API void vkmoe_session_destroy(vkmoe_session *ses);

/* Appends n tokens to the context. Afterwards vkmoe_session_logits holds those after the last of them.
 *
 * Errors: VKMOE_ERR_CONTEXT_FULL (nothing was fed), VKMOE_ERR_ARGUMENT for n == 0 or an id outside the
 * vocabulary (nothing was fed), VKMOE_ERR_NUMERIC for non-finite logits. After a device error the session
 * answers every call with that error. */
VKMOE_API enum vkmoe_status vkmoe_session_feed(vkmoe_session *ses, const int32_t *tokens, size_t n,
                                               struct vkmoe_err *err);

/* Receives the logits (vocab_size floats, valid during the call) after token `index` of the feed.
 * Returning false ends the feed early; the context then still holds all tokens of the chunk. */
typedef bool (*vkmoe_logits_fn)(void *user, size_t index, const float *logits);

/* As vkmoe_session_feed, and hands over the logits of every position. VKMOE_ERR_ARGUMENT with n_top. */
VKMOE_API enum vkmoe_status vkmoe_session_feed_all(vkmoe_session *ses, const int32_t *tokens, size_t n,
                                                   vkmoe_logits_fn fn, void *user, struct vkmoe_err *err);

/* vocab_size floats after the last token fed; NULL before the first, and with n_top. Owned by the session,
 * valid until the next call on it. */
VKMOE_API const float *vkmoe_session_logits(const vkmoe_session *ses);

/* The best logits after the last token fed, among ids below n_tokens_used: best first, equals by the lower
 * id.
 *
 * Returns how many there are: n_top of the session (fewer where the model has fewer tokens), 0 before the
 * first feed and without n_top. *ids and *logits belong to the session, valid until the next call on it. */
VKMOE_API uint32_t vkmoe_session_top(const vkmoe_session *ses, const int32_t **ids, const float **logits);

/* What the router chose at one layer for the tokens [pos, pos + n_tokens): (n_tokens, n_experts_used) pairs
 * of a routed expert's id (UINT32_MAX: fewer were allowed) and the bits of its float32 weight, by falling
 * weight. Layers come in order. Valid during the call. */
typedef void (*vkmoe_route_fn)(void *user, uint32_t layer, uint32_t pos, uint32_t n_tokens,
                               const uint32_t *pairs);

/* fn NULL: no more calls. */
VKMOE_API void vkmoe_session_on_route(vkmoe_session *ses, vkmoe_route_fn fn, void *user);

/* What a layer's router and experts did for the tokens [pos, pos + n_tokens). Valid during the call. */
struct vkmoe_watched {
    uint32_t layer, pos, n_tokens;
    uint32_t n_experts, n_used;
    const float *logits;   /* (n_tokens, n_experts) before any mask */
    /* (n_tokens, n_used) as in vkmoe_route_fn, within the mask; NULL at the end of vkmoe_session_feed_to */
    const uint32_t *pairs;
    /* VKMOE_WATCH_EXPERTS, else NULL: (n_tokens, 3 + n_used). With h the normed input of the MoE and m its
     * output, the shared expert's part in it: h.h, h.m, m.m, then y.y of each chosen expert's output before
     * its weight (0: not chosen). */
    const float *sums;
};

/* Layers come in order for each step of a feed; with doc_experts, layer by layer for the whole first feed. */
typedef void (*vkmoe_watch_fn)(void *user, const struct vkmoe_watched *w);

/* Needs a session with `watch` or `doc_experts`. fn NULL: no more calls. */
VKMOE_API void vkmoe_session_on_watch(vkmoe_session *ses, vkmoe_watch_fn fn, void *user);

/* What is told of, and by which matrices it is multiplied. */
enum vkmoe_input {
    VKMOE_INPUT_ATTENTION,   /* q, k and v */
    VKMOE_INPUT_OUTPUT,      /* the projection behind the attention */
    VKMOE_INPUT_EXPERTS,     /* router, gate and up of the experts that were chosen and of the shared one,
                              * or of a dense layer: n_used is 0 then */
    VKMOE_INPUT_DOWN,        /* down of each expert that was chosen */
    VKMOE_INPUT_SHARED_DOWN, /* down of the shared expert, or of a dense layer */
    VKMOE_INPUT_HEAD         /* the output head, of all tokens; layer is the number of layers */
};

/* Of the tokens [pos, pos + n_tokens). Valid during the call. */
struct vkmoe_inputs {
    enum vkmoe_input what;
    uint32_t layer, pos, n_tokens;
    uint32_t width;        /* elements of a row */
    uint32_t n_used;       /* of EXPERTS and DOWN, else 0 */
    const float *rows;     /* (n_tokens, width); of DOWN (n_tokens, n_used, width) */
    const uint32_t *pairs; /* of EXPERTS and DOWN: (n_tokens, n_used) as in vkmoe_route_fn */
};

/* Layers come in order for each step of a feed. */
typedef void (*vkmoe_inputs_fn)(void *user, const struct vkmoe_inputs *in);

/* What the matrices of the model are multiplied with, for importance matrices. Needs a session with
 * VKMOE_WATCH_INPUTS, else fn is never called. fn NULL: no more calls. */
VKMOE_API void vkmoe_session_on_inputs(vkmoe_session *ses, vkmoe_inputs_fn fn, void *user);

/* From the next feed on only these experts are chosen; NULL: all that the model was opened with. Not with
 * doc_experts. The subset may be closed afterwards.
 *
 * Errors: VKMOE_ERR_ARGUMENT for a subset of another shape, with experts that the model was opened without,
 * or with fewer than n_experts_used in a layer; the session then keeps what it had. */
VKMOE_API enum vkmoe_status vkmoe_session_use_subset(vkmoe_session *ses, const vkmoe_subset *subset,
                                                     struct vkmoe_err *err);

/* As vkmoe_session_feed, but ends with the router of layer `last`: no logits, and the session answers nothing
 * but vkmoe_session_reset afterwards. For rankings that go layer by layer. */
VKMOE_API enum vkmoe_status vkmoe_session_feed_to(vkmoe_session *ses, const int32_t *tokens, size_t n,
                                                  uint32_t last, struct vkmoe_err *err);

/* How much of the router's probability lay outside the experts that may be chosen: the sign that a text has
 * left the topic of its pool or subset. Sums over tokens of means over layers; needs `watch`. */
struct vkmoe_outside {
    uint64_t prompt_tokens, tokens; /* fed in chunks, and one by one */
    double prompt, decoded;         /* probability, summed over these tokens */
    uint64_t refreshes, exchanged;  /* of a document pool: times it was looked at, experts that came in */
};

VKMOE_API void vkmoe_session_get_outside(const vkmoe_session *ses, struct vkmoe_outside *out);
/* True where layer's expert may be chosen now: by the subset, or by the document pool that was picked. */
VKMOE_API bool vkmoe_session_may_choose(const vkmoe_session *ses, uint32_t layer, uint32_t expert);

VKMOE_API uint32_t vkmoe_session_position(const vkmoe_session *ses);
VKMOE_API uint32_t vkmoe_session_n_ctx(const vkmoe_session *ses);
/* Tokens of a feed that are computed at once, at most. */
VKMOE_API uint32_t vkmoe_session_n_chunk(const vkmoe_session *ses);

/* Forgets all tokens. */
VKMOE_API void vkmoe_session_reset(vkmoe_session *ses);

struct vkmoe_session_stats {
    /* queue submits, host waits, and submits that stopped at an absent expert */
    uint64_t submits, waits, halts;
    uint64_t overlapped; /* submits among them that ran resident experts while absent ones were read */
    uint64_t kv_bytes, state_bytes; /* on the device */
};

VKMOE_API void vkmoe_session_get_stats(const vkmoe_session *ses, struct vkmoe_session_stats *stats);

/* What one decoded token is on the device when no expert is absent: commands as they are recorded. */
struct vkmoe_session_counts {
    uint32_t dispatches, barriers;                 /* in all */
    uint32_t layer_dispatches, layer_barriers;     /* of the layer with the most */
    uint32_t outside_dispatches, outside_barriers; /* embedding, output head, begin and end of the submit */
};

VKMOE_API void vkmoe_session_get_counts(const vkmoe_session *ses, struct vkmoe_session_counts *counts);

/* What one decoded token has to move and compute, by the shapes of what is recorded. Each byte counts once
 * per command that uses it, whatever caches do. */
struct vkmoe_session_cost {
    uint64_t weight_bytes;     /* of matrices, norms and chosen experts */
    uint64_t cache_bytes;      /* of keys and values that attention reads */
    uint64_t activation_bytes; /* between commands, read and written, and what is written to the cache */
    uint64_t flops;            /* additions and multiplications */
};

/* For a token at position pos, all its experts resident. */
VKMOE_API void vkmoe_session_get_cost(const vkmoe_session *ses, uint32_t pos,
                                      struct vkmoe_session_cost *cost);

/* ---- sampling ------------------------------------------------------------------------------------------ */

struct vkmoe_sampler;
typedef struct vkmoe_sampler vkmoe_sampler;

struct vkmoe_sampler_params {
    float temp;           /* 0: greedy, ties to the lower id */
    int32_t top_k;        /* 0: all */
    float top_p;          /* 1: off */
    float min_p;          /* 0: off */
    float repeat_penalty; /* 1: off; over the last 64 accepted tokens */
    uint64_t seed;
};

/* llama.cpp's defaults: temp 0.8, top_k 40, top_p 0.95, min_p 0.05, repeat_penalty 1. */
VKMOE_API void vkmoe_sampler_defaults(struct vkmoe_sampler_params *params);
VKMOE_API enum vkmoe_status vkmoe_sampler_create(vkmoe_sampler **out,
                                                 const struct vkmoe_sampler_params *params,
                                                 struct vkmoe_err *err);
VKMOE_API void vkmoe_sampler_destroy(vkmoe_sampler *s);

/* Next token for n logits, and remembers it for the repeat penalty. The same seed and logits give the same
 * token on every machine. n_allowed: ids from n_allowed on are never drawn (rows without a string).
 * Errors: VKMOE_ERR_NUMERIC when no allowed logit is finite; VKMOE_ERR_MEMORY. */
VKMOE_API enum vkmoe_status vkmoe_sample(vkmoe_sampler *s, const float *logits, uint32_t n,
                                         uint32_t n_allowed,
                                         int32_t *token, struct vkmoe_err *err);

/* As vkmoe_sample, from what vkmoe_session_top gives: n pairs, the best of n_allowed logits, and exactly the
 * token that all of them would give.
 *
 * Errors: also VKMOE_ERR_ARGUMENT where n pairs do not decide: with a repeat penalty, or when temp > 0, n is
 * less than n_allowed and top_k is 0 or more than n. */
VKMOE_API enum vkmoe_status vkmoe_sample_top(vkmoe_sampler *s, const int32_t *ids, const float *logits,
                                             uint32_t n, uint32_t n_allowed, int32_t *token,
                                             struct vkmoe_err *err);

/* Tells the sampler of a token it did not draw (prompt, forced text). */
VKMOE_API void vkmoe_sampler_accept(vkmoe_sampler *s, int32_t token);

#ifdef __cplusplus
}
#endif
#endif
