#include "support/hazard.h"

#include <stdio.h>

#include "core/log.h"
#include "run/tags.h"

#define MAX_SHARED 8

static struct gpu_instance *inst;
static long blocks_before;
static struct shared_device {
    const char *caps;
    bool fake;
    struct gpu_device *dev;
} shared[MAX_SHARED];

static void quiet(void *user, enum vkmoe_log_level level, const char *line)
{
    if (level == VKMOE_LOG_ERROR)
        print_message("[driver ] %s\n", line);
    (void)user;
}

static struct gpu_instance *open_instance(bool validation)
{
    char cache[1024];
    const struct gpu_instance_params ip = {.validation = validation, .cache_dir = cache};
    struct vkmoe_err err = {0};
    struct gpu_instance *out;

    snprintf(cache, sizeof(cache), "%s/test-cache", VKMOE_TEST_BINARY_DIR);
    cor_log_sink(quiet, NULL);
    test_ok(gpu_instance_open(&out, &ip, &err), &err);
    return out;
}

void hazard_setup(void)
{
    assert_non_null(golden_model("emo-nano", MDL_BF16));
    blocks_before = cor_alloc_live();
    inst = open_instance(false);
}

void hazard_teardown(void)
{
    for (size_t i = 0; i < MAX_SHARED; i++)
        gpu_device_close(shared[i].dev);
    gpu_instance_close(inst);
    assert_int_equal(cor_alloc_live(), blocks_before);
}

static uint32_t best(const struct gpu_instance *from)
{
    struct vkmoe_err err = {0};
    uint32_t index;

    test_ok(gpu_instance_choose(from, NULL, &index, &err), &err);
    return index;
}

bool hazard_slow_driver(void)
{
    return device_slow_driver(gpu_instance_device_info(inst, best(inst)));
}

/* ---- the pool
 * ----------------------------------------------------------------------------------------------- */

static uint64_t budget_of(const struct run_model *m, uint32_t percent)
{
    const struct run_pool_params all = {.budget = RUN_POOL_ALL};
    struct vkmoe_err err = {0};
    struct run_pool p;
    uint64_t least, most;

    test_ok(run_pool_plan(&p, m->dev, m->mdl, &all, &err), &err);
    least = run_pool_floor_bytes(&p);
    most = run_pool_planned_bytes(&p);
    run_pool_close(&p);
    return least + (most - least) * percent / 100;
}

void hazard_device(struct device_case *c, const struct hazard_params *p)
{
    const struct gpu_device_params dp = {
        .caps = p->caps, .fake_transfer = p->fake_transfer, .skip_barrier = -1};
    struct vkmoe_err err = {0};

    memset(c, 0, sizeof(*c));
    if (p->validation)
        c->inst = open_instance(true);
    test_ok(gpu_device_open(&c->dev, c->inst ? c->inst : inst, best(c->inst ? c->inst : inst), &dp, &err),
            &err);
}

void hazard_load(struct device_case *c, const struct hazard_params *p)
{
    struct run_model_params mp = {.pool_budget = RUN_POOL_ALL, .lazy = true, .check_slots = p->check_slots};
    struct vkmoe_err err = {0};

    test_ok(run_model_plan(&c->model, c->dev, p->path ? p->path : golden_model("emo-nano", MDL_BF16), &err),
            &err);
    if (p->automatic)
        mp.pool_budget = RUN_POOL_AUTO;
    else if (!p->all)
        mp.pool_budget = budget_of(c->model, p->percent);
    test_ok(run_model_load(c->model, &mp, NULL, &err), &err);
}

void hazard_open(struct device_case *c, const struct hazard_params *p)
{
    struct shared_device *d = shared;

    while (d->dev && (d->fake != p->fake_transfer || strcmp(d->caps, p->caps ? p->caps : "") != 0))
        assert_true(++d < shared + MAX_SHARED);
    if (!d->dev) {
        hazard_device(c, p);
        *d = (struct shared_device){p->caps ? p->caps : "", p->fake_transfer, c->dev};
    }
    *c = (struct device_case){.dev = d->dev};
    hazard_load(c, p);
}

void hazard_close(struct device_case *c)
{
    run_model_close(c->model);
    c->model = NULL;
}

/* ---- texts
 * -------------------------------------------------------------------------------------------------- */

void hazard_text_make(struct hazard_text *t, uint64_t seed, const uint32_t *mask)
{
    struct device_case c;
    struct run_session *s;

    memset(t, 0, sizeof(*t));
    for (uint32_t i = 0; i < HAZARD_TOKENS; i++)
        t->tokens[i] = (int32_t)(test_rand(&seed) % 4000);
    t->mask = mask;
    hazard_open(&c, &(struct hazard_params){.all = true});
    t->vocab = c.model->mdl->config.vocab_size;
    s = hazard_session(&c, t, false);
    t->want =
        malloc((size_t)(1 + HAZARD_DECODE) * t->vocab * sizeof(float)); /* not counted as the engine's */
    assert_non_null(t->want);
    for (uint32_t i = 0; i <= HAZARD_DECODE; i++) {
        device_feed(s, i ? t->tokens + HAZARD_PROMPT + i - 1 : t->tokens, i ? 1 : HAZARD_PROMPT);
        memcpy(t->want + (size_t)i * t->vocab, run_session_logits(s), t->vocab * sizeof(float));
    }
    run_session_destroy(s);
    hazard_close(&c);
}

void hazard_text_free(struct hazard_text *t)
{
    free(t->want);
    t->want = NULL;
}

struct run_session *hazard_session(struct device_case *c, const struct hazard_text *t, bool slow)
{
    struct run_session *s =
        device_session(c, &(struct run_session_params){.n_ctx = HAZARD_TOKENS, .slow = slow});
    struct vkmoe_err err = {0};

    if (t->mask)
        test_ok(run_session_set_mask(s, t->mask, &err), &err);
    return s;
}

enum vkmoe_status hazard_feed(struct run_session *s, const struct hazard_text *t, uint32_t i,
                              struct vkmoe_err *err)
{
    enum vkmoe_status st = run_session_feed(s, i ? t->tokens + HAZARD_PROMPT + i - 1 : t->tokens,
                                            i ? 1 : HAZARD_PROMPT, NULL, NULL, err);

    if (st == VKMOE_OK &&
        memcmp(run_session_logits(s), t->want + (size_t)i * t->vocab, t->vocab * sizeof(float)))
        fail_msg("feed %u: the logits are not those of full residency", i);
    return st;
}

enum vkmoe_status hazard_read(struct run_session *s, const struct hazard_text *t, uint32_t *fed,
                              struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (*fed = 0; *fed <= HAZARD_DECODE; ++*fed)
        if ((st = hazard_feed(s, t, *fed, err)) != VKMOE_OK)
            break;
    return st;
}

void hazard_sound(struct device_case *c, const struct hazard_text *t)
{
    struct run_session *s = hazard_session(c, t, false);
    struct vkmoe_err err = {0};
    uint32_t fed;

    test_ok(run_tags_check(&c->model->pool, NULL, 0, &err), &err);
    test_ok(hazard_read(s, t, &fed, &err), &err);
    test_ok(run_tags_check(&c->model->pool, NULL, 0, &err), &err);
    run_session_destroy(s);
}

void hazard_latched(struct run_session *s, const struct hazard_text *t, const struct vkmoe_err *err)
{
    struct vkmoe_err again = {0};

    assert_true(err->message[0]);
    assert_null(strchr(err->message, '\n'));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(run_session_feed(s, t->tokens, 1, NULL, NULL, &again), err->status);
        assert_string_equal(again.message, err->message);
        run_session_reset(s);
    }
}
