#include "support/device.h"

#include <stdio.h>

#include "core/log.h"

static void print_log(void *user, enum vkmoe_log_level level, const char *line)
{
    (void)user;
    if (level >= VKMOE_LOG_WARN)
        print_message("[driver ] %s\n", line);
}

bool device_slow_driver(const struct vkmoe_device_info *info)
{
    return strstr(info->name, "SwiftShader") && !test_full();
}

bool device_slow(const struct device_case *c)
{
    return device_slow_driver(gpu_device_info(c->dev));
}

void device_open(struct device_case *c, const char *model, const struct device_params *p)
{
    static char cache[1024];
    const struct gpu_instance_params ip = {.validation = p->validation, .cache_dir = cache};
    const struct gpu_device_params dp = {.caps = p->caps, .robust = p->robust, .skip_barrier = -1};
    struct vkmoe_err err = {0};
    struct run_model_params mp = p->model ? *p->model : (struct run_model_params){0};
    uint32_t index;

    /* One pipeline cache for all tests of a build: software drivers compile slowly. */
    snprintf(cache, sizeof(cache), "%s/test-cache", VKMOE_TEST_BINARY_DIR);
    memset(c, 0, sizeof(*c));
    cor_log_sink(print_log, NULL);
    test_ok(gpu_instance_open(&c->inst, &ip, &err), &err);
    test_ok(gpu_instance_choose(c->inst, NULL, &index, &err), &err);
    test_ok(gpu_device_open(&c->dev, c->inst, index, &dp, &err), &err);
    mp.lazy |= p->lazy;
    if (model)
        test_ok(run_model_open(&c->model, c->dev, model, &mp, NULL, &err), &err);
    if (model && p->variants)
        test_ok(run_variants_parse(&c->model->variants, p->variants, gpu_device_caps(c->dev), &err), &err);
}

void device_close(struct device_case *c)
{
    run_model_close(c->model);
    gpu_device_close(c->dev);
    gpu_instance_close(c->inst);
    memset(c, 0, sizeof(*c));
}

struct run_session *device_session(struct device_case *c, const struct run_session_params *p)
{
    struct vkmoe_err err = {0};
    struct run_session *s;

    test_ok(run_session_create(&s, c->model, p, &err), &err);
    return s;
}

void device_feed(struct run_session *s, const int32_t *tokens, size_t n)
{
    struct vkmoe_err err = {0};

    test_ok(run_session_feed(s, tokens, n, NULL, NULL, &err), &err);
}

struct keep {
    float *to;
    uint32_t vocab;
};

static bool keep_row(void *user, size_t index, const float *logits)
{
    struct keep *k = user;

    memcpy(k->to + index * k->vocab, logits, k->vocab * sizeof(float));
    return true;
}

float *device_feed_all(const struct device_case *c, struct run_session *s, const int32_t *tokens, size_t n)
{
    struct keep k = {.vocab = c->model->mdl->config.vocab_size};
    struct vkmoe_err err = {0};

    k.to = cor_array(n * k.vocab, sizeof(float));
    assert_non_null(k.to);
    test_ok(run_session_feed(s, tokens, n, keep_row, &k, &err), &err);
    return k.to;
}

void device_routes_init(struct device_routes *r, const struct device_case *c, uint32_t n_tokens)
{
    const struct mdl_config *m = &c->model->mdl->config;
    size_t n = (size_t)m->n_layers * n_tokens * m->n_experts_used;

    *r = (struct device_routes){.n_layers = m->n_layers, .n_tokens = n_tokens, .k = m->n_experts_used};
    r->ids = cor_array(n, sizeof(*r->ids));
    r->weights = cor_array(n, sizeof(*r->weights));
    assert_true(r->ids && r->weights);
}

void device_routes_free(struct device_routes *r)
{
    cor_free(r->ids);
    cor_free(r->weights);
}

void device_routes_hook(void *user, uint32_t layer, uint32_t pos, uint32_t n_tokens, const uint32_t *sel)
{
    struct device_routes *r = user;

    for (uint32_t t = 0; t < n_tokens && pos + t < r->n_tokens; t++)
        for (uint32_t j = 0; j < r->k; j++) {
            size_t to = ((size_t)layer * r->n_tokens + pos + t) * r->k + j;

            r->ids[to] = sel[((size_t)t * r->k + j) * 2];
            memcpy(&r->weights[to], &sel[((size_t)t * r->k + j) * 2 + 1], sizeof(float));
        }
}

struct mdl_ref_route *device_reference_routes(const struct device_case *c, const int32_t *tokens, uint32_t n,
                                              const uint32_t *allowed)
{
    const struct mdl_ref_params p = {.n_ctx = n, .allowed = allowed};
    uint32_t n_layers = c->model->mdl->config.n_layers;
    struct mdl_ref_route *routes = cor_array((size_t)n * n_layers, sizeof(*routes));
    struct vkmoe_err err = {0};
    struct mdl_ref *ref;

    assert_non_null(routes);
    test_ok(mdl_ref_create(&ref, c->model->mdl, &p, &err), &err);
    for (uint32_t t = 0; t < n; t++)
        test_ok(mdl_ref_feed(ref, tokens[t], NULL, routes + (size_t)t * n_layers, &err), &err);
    mdl_ref_destroy(ref);
    return routes;
}

uint64_t device_hash(const float *x, size_t n)
{
    const unsigned char *p = (const unsigned char *)x;
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < n * sizeof(*x); i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}
