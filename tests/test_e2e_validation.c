/* The validation layer on whole sessions: core, synchronisation and queue-submit checks stay silent, and each
 * barrier of the token program is one that they miss when it is left out. */
#include <stdio.h>

#include "core/log.h"
#include "run/layer.h"
#include "support/device.h"

#define N_PROMPT 40
#define N_ROWS   10
#define N_DECODE 10

static const int32_t separator = 4094;

/* Any ids do: hazards do not depend on values. */
static void make_text(int32_t *text, uint32_t n)
{
    uint64_t state = test_seed();

    text[0] = separator;
    for (uint32_t i = 1; i < n; i++)
        text[i] = (int32_t)(test_rand(&state) % 4000);
}

static bool have_layer(const struct device_case *c)
{
    return gpu_instance_validates(c->inst);
}

/* ---- silence
 * ------------------------------------------------------------------------------------------------- */

/* A prompt, logits of rows, decoding, a mask, choices read back; experts are loaded in halts. */
static void use_sessions(struct device_case *c, const int32_t *text)
{
    const struct run_session_params usual = {.n_ctx = 128},
                                    f16 = {.n_ctx = 128, .k_type = MDL_F16, .v_type = MDL_F16, .n_top = 5},
                                    slow = {.n_ctx = 16, .slow = true},
                                    doc = {.n_ctx = 64,
                                           .chunk = 12,
                                           .watch = VKMOE_WATCH_EXPERTS,
                                           .doc_experts = 16,
                                           .doc_refresh = 1};
    struct run_session *s = device_session(c, &usual), *other = device_session(c, &f16), *told;
    uint32_t mask[64 * MAX_EXPERTS / 32];
    const struct mdl_config *m = &c->model->mdl->config;
    struct device_routes routes;
    struct vkmoe_err err = {0};

    device_feed(s, text, N_PROMPT);
    cor_free(device_feed_all(c, s, text, N_ROWS));
    for (uint32_t i = 0; i < N_DECODE; i++)
        device_feed(s, text + i, 1);
    assert_true(run_session_stats(s)->halts > 0);
    device_feed(other, text, N_ROWS);
    device_feed(s, text, 1); /* in turn on one pool */
    assert_true(m->n_layers * ((m->n_experts + 31) / 32) <= COR_COUNT(mask));
    memset(mask, 0x55, sizeof(mask));
    test_ok(run_session_set_mask(s, mask, &err), &err);
    device_feed(s, text, 3);
    run_session_destroy(other);
    run_session_destroy(s);

    told = device_session(c, &doc);
    device_feed(told, text, 20);
    device_feed(told, text, 1);
    run_session_destroy(told);

    told = device_session(c, &slow);
    device_routes_init(&routes, c, 4);
    run_session_on_route(told, device_routes_hook, &routes);
    device_feed(told, text, 3);
    device_feed(told, text + 3, 1);
    device_routes_free(&routes);
    run_session_destroy(told);
}

static void check_silent(const char *caps)
{
    int32_t text[N_PROMPT];
    struct device_case c;

    make_text(text, N_PROMPT);
    device_open(&c, golden_model("emo-nano", MDL_BF16),
                &(struct device_params){.caps = caps, .validation = true, .lazy = true});
    if (!have_layer(&c)) {
        device_close(&c);
        test_skip("the validation layer is not installed");
        return;
    }
    use_sessions(&c, text);
    assert_int_equal(gpu_instance_validation_count(c.inst), 0);
    run_model_close(c.model);
    c.model = NULL;
    gpu_device_close(c.dev); /* objects left behind would be told here */
    c.dev = NULL;
    assert_int_equal(gpu_instance_validation_count(c.inst), 0);
    device_close(&c);
}

#define SILENT(name, caps)         \
    static void name(void **state) \
    {                              \
        (void)state;               \
        check_silent(caps);        \
    }

SILENT(test_silent, NULL)
SILENT(test_silent_clamped, "range=1M,buffers=8")
SILENT(test_silent_no_array_staging, "-array,-uma")

/* ---- and it sees
 * --------------------------------------------------------------------------------------------- */

struct seen {
    uint64_t recording, submit; /* messages while recording, and from submits */
    char last[512];
};

static void keep_message(void *user, enum vkmoe_log_level level, const char *line)
{
    struct seen *seen = user;

    if (level < VKMOE_LOG_WARN)
        return;
    if (strstr(line, "vkQueueSubmit"))
        seen->submit++;
    else
        seen->recording++;
    snprintf(seen->last, sizeof(seen->last), "%s", line);
}

/* Messages of a session that reads a token from each step buffer with barrier `skip` left out (-1: none). */
static struct seen run_without(struct device_case *c, int32_t skip, uint32_t n_top, uint32_t *barriers)
{
    /* Only the token program is recorded. */
    const struct run_session_params one = {.n_ctx = 4, .chunk = 1, .n_top = n_top};
    struct seen seen = {0};
    struct run_session *s;

    cor_log_sink(keep_message, &seen);
    gpu_device_set_skip_barrier(c->dev, skip);
    s = device_session(c, &one);
    *barriers = gpu_device_barriers_recorded(c->dev);
    gpu_device_set_skip_barrier(c->dev, -1);
    for (uint32_t i = 0; i < GPU_IN_FLIGHT; i++)
        device_feed(s, &separator, 1);
    run_session_destroy(s);
    return seen;
}

/* per_layer: barriers that a layer is meant to have. */
static void check_seen(const char *caps, uint32_t n_top, uint32_t per_layer)
{
    struct device_case c;
    uint32_t n, n_again, missed = 0, at_submit = 0, step;
    struct seen seen;

    device_open(&c, golden_model("emo-nano", MDL_BF16),
                &(struct device_params){.caps = caps, .validation = true});
    if (!have_layer(&c)) {
        device_close(&c);
        test_skip("the validation layer is not installed");
        return;
    }
    /* What is recorded does not depend on the driver; SwiftShader, where a token takes seconds under the
     * layer, is asked about some. */
    step = strstr(gpu_device_info(c.dev)->name, "SwiftShader") ? 11 : 1;
    seen = run_without(&c, -1, n_top, &n);
    assert_int_equal(seen.recording + seen.submit, 0);
    for (uint32_t i = 0; i < n; i += step) {
        seen = run_without(&c, (int32_t)i, n_top, &n_again);
        assert_int_equal(n_again, n);
        at_submit += !seen.recording && seen.submit;
        if (seen.recording + seen.submit)
            continue;
        missed++;
        print_message("barrier %u of %u: nothing was said when it was left out\n", i, n);
    }
    seen = run_without(&c, -1, n_top, &n); /* what was said was about the missing barriers only */
    assert_int_equal(seen.recording + seen.submit, 0);
    print_message("%u barriers, left out one at a time in steps of %u: %u at a boundary of command buffers\n",
                  n, step, at_submit);
    assert_int_equal(missed, 0);
    /* publish; embedding and norm; head, and its best by slice and of all */
    assert_int_equal(n, GPU_IN_FLIGHT + 3 + (n_top ? 1 : 0) + per_layer * c.model->mdl->config.n_layers);
    /* Each publish, embedding, and part of a layer ends with a barrier that only queue-submit validation can
     * miss. */
    if (step == 1)
        assert_int_equal(at_submit, GPU_IN_FLIGHT + 1 + RUN_LAYER_PARTS * c.model->mdl->config.n_layers);
    assert_true(at_submit > 0);
    device_close(&c);
}

static void test_every_barrier(void **state)
{
    (void)state;
    check_seen(NULL, 3, 7);
}

static void test_every_barrier_clamped(void **state)
{
    (void)state;
    check_seen("range=1M,buffers=8", 0, 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_silent),
        cmocka_unit_test(test_silent_clamped),
        cmocka_unit_test(test_silent_no_array_staging),
        cmocka_unit_test(test_every_barrier),
        cmocka_unit_test(test_every_barrier_clamped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
