/* A device, a model on it and what the end-to-end tests do with them. The driver is chosen by
 * VK_DRIVER_FILES, as for any program; the device is the best one it offers. */
#ifndef TEST_DEVICE_H
#define TEST_DEVICE_H

#include "model/ref.h"
#include "run/session.h"
#include "support/golden.h"

struct device_case {
    struct gpu_instance *inst;
    struct gpu_device *dev;
    struct run_model *model;
};

struct device_params {
    const char *caps;
    const char *variants; /* as --variants; NULL: the defaults */
    bool validation, lazy, robust;
    const struct run_model_params *model; /* NULL: defaults; lazy is added */
};

/* A driver that takes many times as long as the other (SwiftShader): tests may ask it for less unless
 * test_full(). */
bool device_slow(const struct device_case *c);
bool device_slow_driver(const struct vkmoe_device_info *info);
/* Opens everything or fails the test. model: path of a GGUF file, NULL: device only. */
void device_open(struct device_case *c, const char *model, const struct device_params *p);
void device_close(struct device_case *c);
struct run_session *device_session(struct device_case *c, const struct run_session_params *p);
/* Feeds or fails the test. */
void device_feed(struct run_session *s, const int32_t *tokens, size_t n);
/* Feeds and keeps the logits of every position: (n, vocab) floats, cor_free by the caller. */
float *device_feed_all(const struct device_case *c, struct run_session *s, const int32_t *tokens, size_t n);

/* Routed experts of every layer and token of a prompt, as a slow session reports them. */
struct device_routes {
    uint32_t n_layers, n_tokens, k;
    uint32_t *ids;  /* (n_layers, n_tokens, k), NONE behind the last */
    float *weights; /* the same */
};
void device_routes_init(struct device_routes *r, const struct device_case *c, uint32_t n_tokens);
void device_routes_free(struct device_routes *r);
void device_routes_hook(void *user, uint32_t layer, uint32_t pos, uint32_t n_tokens,
                        const uint32_t *sel); /* user: device_routes */

/* The scalar reference's routes of a prompt, for the margins of the flip rule: (n_tokens, n_layers);
 * cor_free. */
struct mdl_ref_route *device_reference_routes(const struct device_case *c, const int32_t *tokens, uint32_t n,
                                              const uint32_t *allowed);

/* FNV-1a of n floats, for "the same bits". */
uint64_t device_hash(const float *x, size_t n);

#endif
