/* A pool at its floor when reads fail, are short, late or never made, when slots hold other bytes than they
 * should, when sessions share it, and when the device reports what cannot be: the logits are those of full
 * residency, or the call ends in one clear error and the next session finds a sound pool. */
#include <inttypes.h>
#include <stdio.h>

#include "run/tags.h"
#include "support/hazard.h"

static struct hazard_text texts[2], masked;
static uint32_t mask[64 * MAX_EXPERTS / 32];

static int setup(void **state)
{
    uint64_t seed = test_seed();

    (void)state;
    hazard_setup();
    for (size_t i = 0; i < COR_COUNT(mask); i++)
        mask[i] = (uint32_t)(test_rand(&seed) | test_rand(&seed)); /* three of four */
    hazard_text_make(&texts[0], seed + 1, NULL);
    hazard_text_make(&texts[1], seed + 2, NULL);
    hazard_text_make(&masked, seed + 1, mask);
    assert_memory_not_equal(masked.want, texts[0].want, masked.vocab * sizeof(float));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    hazard_text_free(&texts[0]);
    hazard_text_free(&texts[1]);
    hazard_text_free(&masked);
    hazard_teardown();
    return 0;
}

static const char *const ways[] = {NULL, "-uma", "-uma,-coherent", "-array"};

/* ---- reads
 * -------------------------------------------------------------------------------------------------- */

static uint64_t reads(const struct device_case *c)
{
    return run_fetch_stats(c->model->pool.fetch)->reads;
}

static const char *const told[] = {"", "simulated failure", "arrived", "was never made"};

/* Read number nth of a session that starts now goes wrong. True: it was made. */
static bool spoil_read(struct device_case *c, enum run_fetch_fault fault, uint64_t nth, bool whole)
{
    const struct run_fetch_hooks hooks = {.seed = nth, .read_delay_us = 50, .fault = fault, .nth = nth};
    struct run_session *s = hazard_session(c, &texts[0], false);
    struct vkmoe_err err = {0};
    uint64_t before = reads(c);
    enum vkmoe_status st;
    uint32_t fed;

    run_fetch_set_hooks(&hooks);
    st = hazard_read(s, &texts[0], &fed, &err);
    run_fetch_set_hooks(NULL);
    if (st == VKMOE_OK) {
        if (reads(c) - before >= nth)
            fail_msg("read %" PRIu64 " of %" PRIu64 " went wrong (%s), and nothing was said", nth,
                     reads(c) - before, told[fault]);
    } else {
        assert_int_equal(st, VKMOE_ERR_IO);
        if (!strstr(err.message, told[fault]) || !strstr(err.message, "emo-nano"))
            fail_msg("\"%s\" does not say \"%s\" and the file", err.message, told[fault]);
        hazard_latched(s, &texts[0], &err);
    }
    /* With the broken session still there, and what it left in flight. */
    if (whole || st == VKMOE_OK)
        hazard_sound(c, &texts[0]);
    else
        test_ok(run_tags_check(&c->model->pool, NULL, 0, &err), &err);
    run_session_destroy(s);
    return st != VKMOE_OK;
}

static void spoil_reads(const char *caps)
{
    uint64_t prompt, all, first;
    uint32_t rounds = 0, made = 0, step = hazard_slow_driver() ? 3 : 1;
    struct device_case c;
    struct run_session *s;
    struct vkmoe_err err = {0};

    hazard_open(&c, &(struct hazard_params){.caps = caps});
    hazard_sound(&c, &texts[0]);
    first = reads(&c);
    s = hazard_session(&c, &texts[0], false);
    test_ok(hazard_feed(s, &texts[0], 0, &err), &err);
    prompt = reads(&c) - first;
    for (uint32_t i = 1; i <= HAZARD_DECODE; i++)
        test_ok(hazard_feed(s, &texts[0], i, &err), &err);
    all = reads(&c) - first;
    run_session_destroy(s);
    assert_true(prompt > 100 && all > prompt + 20);
    for (uint32_t i = 0; i < 6; i += step) {
        const uint64_t nths[] = {1, prompt / 2, prompt - 2, prompt + 4, (prompt + all) / 2, all - 3};

        for (enum run_fetch_fault f = RUN_FETCH_FAIL; f <= RUN_FETCH_DROP; f++)
            if ((i + (uint32_t)f) % (caps ? 6 : 2) == 0) {
                made += spoil_read(&c, f, nths[i], rounds % 3 == 0);
                rounds++;
            }
    }
    hazard_sound(&c, &texts[0]);
    print_message("%s: %u reads went wrong, of %" PRIu64 " for the prompt and %" PRIu64 " behind it\n",
                  caps ? caps : "-", made, prompt, all - prompt);
    assert_true(2 * made >= rounds);
    hazard_close(&c);
}

static void test_reads(void **state)
{
    (void)state;
    for (size_t i = 0; i < COR_COUNT(ways); i++)
        if (i != 1 || !hazard_slow_driver()) /* the fake transfer queue goes this way too */
            spoil_reads(ways[i]);
}

static void test_late(void **state)
{
    const struct run_fetch_hooks late = {
        .seed = test_seed(), .read_delay_us = 1500, .copy_delay_us = 1500, .reverse = true};
    struct device_case c;

    (void)state;
    for (size_t i = 0; i < COR_COUNT(ways); i += hazard_slow_driver() ? 3 : 1) {
        hazard_open(&c, &(struct hazard_params){.caps = ways[i]});
        run_fetch_set_hooks(&late);
        hazard_sound(&c, &texts[0]);
        run_fetch_set_hooks(NULL);
        hazard_close(&c);
    }
}

/* ---- sessions that share a pool
 * ------------------------------------------------------------------------------- */

static void take_turns(const struct hazard_params *p)
{
    struct device_case c;
    struct run_session *s[4]; /* two texts, one with a mask, one slow */
    const struct hazard_text *t[4] = {&texts[0], &texts[1], &masked, &texts[1]};
    const uint64_t seed = test_seed();
    uint64_t at = seed;
    uint32_t fed[4] = {0}, left = 4 * (1 + HAZARD_DECODE);
    struct vkmoe_err err = {0};

    hazard_open(&c, p);
    for (uint32_t i = 0; i < 4; i++)
        s[i] = hazard_session(&c, t[i], i == 3);
    while (left) {
        uint32_t i = (uint32_t)(test_rand(&at) % 4);

        if (fed[i] > HAZARD_DECODE)
            continue;
        test_ok(hazard_feed(s[i], t[i], fed[i]++, &err), &err);
        left--;
    }
    for (uint32_t i = 0; i < 4; i++) {
        assert_true(run_session_stats(s[i])->halts > 0);
        run_session_destroy(s[i]);
    }
    test_ok(run_tags_check(&c.model->pool, NULL, 0, &err), &err);
    hazard_close(&c);
}

static void test_turns(void **state)
{
    (void)state;
    if (!hazard_slow_driver()) {
        take_turns(&(struct hazard_params){0});
        take_turns(&(struct hazard_params){.caps = "-array"});
    }
    take_turns(&(struct hazard_params){.caps = "range=1M,-uma", .percent = 5});
}

/* The way of a transfer queue, and everything else at the floor, under the validation layer. */
static void check_silent(const char *caps, bool fake)
{
    const struct hazard_params p = {.caps = caps, .validation = true, .fake_transfer = fake};
    struct device_case c;
    struct run_session *s, *other;
    struct vkmoe_err err = {0};

    hazard_device(&c, &p);
    hazard_load(&c, &p);
    if (!gpu_instance_validates(c.inst)) {
        device_close(&c);
        test_skip("the validation layer is not installed");
        return;
    }
    s = hazard_session(&c, &texts[0], false);
    other = hazard_session(&c, &texts[1], false);
    for (uint32_t i = 0; i <= (hazard_slow_driver() ? 1 : HAZARD_DECODE); i++) {
        test_ok(hazard_feed(s, &texts[0], i, &err), &err);
        if (i < 2)
            test_ok(hazard_feed(other, &texts[1], i, &err), &err);
    }
    assert_true(run_session_stats(s)->overlapped > 0);
    assert_int_equal(gpu_instance_validation_count(c.inst), 0);
    run_session_destroy(other);
    /* A failure in mid-token, and on with another session. */
    run_fetch_set_hooks(&(struct run_fetch_hooks){.fault = RUN_FETCH_FAIL, .nth = 4});
    run_session_reset(s);
    assert_int_equal(hazard_feed(s, &texts[0], 0, &err), VKMOE_ERR_IO);
    run_fetch_set_hooks(NULL);
    other = hazard_session(&c, &texts[1], false);
    test_ok(hazard_feed(other, &texts[1], 0, &err), &err);
    assert_int_equal(gpu_instance_validation_count(c.inst), 0);
    run_session_destroy(other);
    run_session_destroy(s);
    run_model_close(c.model);
    c.model = NULL;
    gpu_device_close(c.dev);
    c.dev = NULL;
    assert_int_equal(gpu_instance_validation_count(c.inst), 0);
    device_close(&c);
}

static void test_silent(void **state)
{
    (void)state;
    check_silent("range=1M,-uma", true);
    if (!hazard_slow_driver())
        check_silent("range=1M", false);
}

static void test_fake_transfer(void **state)
{
    struct device_case c;

    (void)state;
    hazard_open(&c, &(struct hazard_params){.caps = "-uma", .fake_transfer = true});
    for (enum run_fetch_fault f = RUN_FETCH_FAIL; f <= RUN_FETCH_DROP; f++)
        assert_true(spoil_read(&c, f, 40 + 7 * (uint64_t)f, false));
    hazard_sound(&c, &texts[0]);
    hazard_close(&c);
}

/* ---- slots that hold other bytes
 * ------------------------------------------------------------------------------ */

struct spoiler {
    struct device_case *c;
    uint32_t from;     /* first position at which it spoils */
    bool spoilt, last; /* last: bytes at the end of the expert */
    uint32_t layer, expert, slot;
};

/* At the first token from there on that found some of its experts but not all: spoils one that it found,
 * which is about to run. Nothing is in flight. */
static void spoil_slot(void *user, uint32_t layer, uint32_t pos, uint32_t n_tokens, const uint32_t *sel)
{
    struct spoiler *sp = user;
    const struct run_pool *p = &sp->c->model->pool;
    const uint32_t k = p->mdl->config.n_experts_used;
    uint32_t found = NONE, absent = 0, slot, words[8];
    uint64_t off;
    struct vkmoe_err err = {0};

    for (uint32_t i = 0; i < n_tokens * k; i++) {
        uint32_t at = run_slots_find(p->slots, layer, sel[2 * i]);

        absent += at == NONE;
        found = at == NONE ? found : sel[2 * i];
    }
    if (sp->spoilt || pos < sp->from || found == NONE || !absent)
        return;
    slot = run_slots_find(p->slots, layer, found);
    off = (uint64_t)(slot % p->slots_per_seg) * p->slot_bytes;
    if (sp->last)
        off += p->layout[layer].down_off + mdl_expert_bytes(p->mdl->layers[layer].down_exps) - sizeof(words);
    for (size_t i = 0; i < COR_COUNT(words); i++)
        words[i] = 0x40004000; /* pairs of 2.0 */
    test_ok(gpu_upload(p->dev, p->segs[slot / p->slots_per_seg], off, words, sizeof(words), &err), &err);
    *sp = (struct spoiler){sp->c, sp->from, true, sp->last, layer, found, slot};
}

static void check_wrong_slot(const char *caps, uint32_t from, bool last, bool check)
{
    struct device_case c;
    struct spoiler sp = {.c = &c, .from = from, .last = last};
    struct run_session *s;
    struct vkmoe_err err = {0};
    char want[160];
    bool differs = false;
    enum vkmoe_status st = VKMOE_OK;

    hazard_open(&c, &(struct hazard_params){.caps = caps, .percent = 10, .check_slots = check});
    hazard_sound(&c, &texts[1]); /* some are resident */
    s = hazard_session(&c, &texts[0], false);
    run_session_on_route(s, spoil_slot, &sp);
    for (uint32_t i = 0; i <= HAZARD_DECODE && st == VKMOE_OK; i++) {
        st = run_session_feed(s, i ? texts[0].tokens + HAZARD_PROMPT + i - 1 : texts[0].tokens,
                              i ? 1 : HAZARD_PROMPT, NULL, NULL, &err);
        differs |= st == VKMOE_OK && memcmp(run_session_logits(s), texts[0].want + (size_t)i * texts[0].vocab,
                                            texts[0].vocab * sizeof(float)) != 0;
    }
    assert_true(sp.spoilt);
    snprintf(want, sizeof(want), "layer %u, expert %u: slot %u holds other bytes", sp.layer, sp.expert,
             sp.slot);
    if (check) {
        if (st != VKMOE_ERR_DEVICE || !strstr(err.message, want))
            fail_msg("\"%s\" is not \"%s\"", err.message, want);
        assert_false(differs);
        hazard_latched(s, &texts[0], &err);
    } else {
        test_ok(st, &err);
        if (!differs) /* a check that cannot see anything is worth nothing */
            fail_msg("%s, and the logits are the same", want);
    }
    run_session_destroy(s);
    hazard_close(&c);
}

static void test_wrong_slots(void **state)
{
    (void)state;
    if (!hazard_slow_driver()) {
        check_wrong_slot(NULL, 0, false, true);
        check_wrong_slot(NULL, 0, false, false);
    }
    check_wrong_slot("-uma", HAZARD_PROMPT + 1, true, true);
    check_wrong_slot("-uma", HAZARD_PROMPT + 1, true, false);
}

/* ---- a device that reports what cannot be
 * --------------------------------------------------------------------- */

enum lie { LIE_MISSING, LIE_NOT_MISSING, LIE_LAYER, LIE_NO_LAYER, LIE_ID, LIES };

static const char *const lie_told[LIES] = {
    "the device's slot table is not the host's", "the device's slot table is not the host's",
    "the device reports a halt at layer", "the device reports a halt at layer", "the device chose expert"};

struct liar {
    struct device_case *c;
    struct run_session *s;
    enum lie lie;
    uint32_t pos; /* of the token that is lied about */
    bool lied;
};

/* Between what the device wrote and the host's look at it; mailbox and routes are coherent memory. */
static void tell_lie(void *user, uint32_t layer, uint32_t pos, uint32_t n_tokens, const uint32_t *sel)
{
    struct liar *l = user;
    const struct run_state *state = run_session_state(l->s);
    const struct mdl_config *m = &l->c->model->mdl->config;
    uint32_t *mail = gpu_buffer_map(state->mailbox), *routes = gpu_buffer_map(state->routes);

    (void)n_tokens;
    if (l->lied || pos < l->pos)
        return;
    if (mail[MAIL_LAYER] == layer && l->lie == LIE_MISSING)
        mail[MAIL_MISSING + sel[0] / 32] ^= 1u << (sel[0] % 32);
    else if (mail[MAIL_LAYER] == layer && l->lie == LIE_NOT_MISSING)
        memset(mail + MAIL_MISSING, 0, MAX_EXPERTS / 8);
    else if (mail[MAIL_LAYER] > layer && l->lie == LIE_LAYER)
        mail[MAIL_LAYER] = layer;
    else if (mail[MAIL_LAYER] > layer && l->lie == LIE_NO_LAYER)
        mail[MAIL_LAYER] = m->n_layers;
    else if (mail[MAIL_LAYER] > layer && l->lie == LIE_ID && layer + 1 < m->n_layers)
        routes[((size_t)(layer + 1) * state->chunk) * m->n_experts_used * 2] = m->n_experts;
    else
        return;
    l->lied = true;
}

static void test_lies(void **state)
{
    (void)state;
    for (enum lie lie = 0; lie < LIES; lie += hazard_slow_driver() ? 2 : 1) {
        struct device_case c;
        struct liar l = {.c = &c, .lie = lie, .pos = HAZARD_PROMPT};
        struct vkmoe_err err = {0};
        uint32_t fed;

        hazard_open(&c, &(struct hazard_params){.percent = 60});
        l.s = hazard_session(&c, &texts[0], false);
        run_session_on_route(l.s, tell_lie, &l);
        assert_int_equal(hazard_read(l.s, &texts[0], &fed, &err), VKMOE_ERR_DEVICE);
        assert_true(l.lied && fed > 0);
        if (!strstr(err.message, lie_told[lie]))
            fail_msg("lie %d: \"%s\"", (int)lie, err.message);
        hazard_latched(l.s, &texts[0], &err);
        hazard_sound(&c, &texts[0]);
        run_session_destroy(l.s);
        hazard_close(&c);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),         cmocka_unit_test(test_late),
        cmocka_unit_test(test_turns),         cmocka_unit_test(test_silent),
        cmocka_unit_test(test_fake_transfer), cmocka_unit_test(test_wrong_slots),
        cmocka_unit_test(test_lies),
    };

    if (argc > 1) /* a part of them, by name */
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, setup, teardown);
}
