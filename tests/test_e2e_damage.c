/* Damaged weights of every block format on the device: logits, or the one line that there are none; ids that
 * the device reports are checked by the pass. */
#include "model/synth.h"
#include "run/session.h"
#include "support/damage.h"
#include "support/device.h"

static struct vkmoe_err err;

static void run_it(const struct device_case *device, const struct damage *d)
{
    static const int32_t tokens[] = {1, 50, 100, 150, 200};
    const uint32_t n = COR_COUNT(tokens);
    struct device_case c = *device;

    damage_write(d, d->n);
    test_ok(run_model_open(&c.model, c.dev, d->path, NULL, NULL, &err), &err);
    for (uint32_t first = 1; first < (test_full() ? n : 2); first += n - 2) { /* by tokens; a chunk and one */
        struct run_session *s = device_session(&c, &(struct run_session_params){.n_ctx = n, .chunk = first});
        enum vkmoe_status st = VKMOE_OK;

        for (uint32_t at = 0, part; st == VKMOE_OK && at < n; at += part) {
            part = at ? 1 : first;
            st = run_session_feed(s, tokens + at, part, NULL, NULL, &err);
        }
        if (st != VKMOE_OK && (st != VKMOE_ERR_NUMERIC || !strstr(err.message, "non-finite logits at token")))
            fail_msg("%s: %s", d->type, err.message);
        run_session_destroy(s);
    }
    run_model_close(c.model);
}

static void every_format(void **state)
{
    static const enum mdl_type types[] = {MDL_Q3_K, MDL_IQ4_NL,
                                          MDL_MXFP4, /* the others at length: compiling takes its time */
#define MDL_X(id, value, name, elems, bytes, file) id,
                                          MDL_TYPE_LIST(MDL_X)
#undef MDL_X
    };
    uint64_t rng = test_seed();
    struct device_case c;
    const char *dir = test_tmp();

    (void)state;
    device_open(&c, NULL, &(struct device_params){.lazy = true});
    for (size_t i = 0; i < (test_full() ? COR_COUNT(types) : device_slow(&c) ? 0 : 3); i++) {
        struct damage d;

        damage_open(&d, dir, mdl_type_find((uint32_t)types[i]));
        for (int k = 0; k < 2; k++) {
            damage_data(&d, &rng);
            run_it(&c, &d);
            damage_undo(&d);
            damage_write(&d, d.n);
        }
        damage_close(&d);
    }
    device_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format),
    };

    return cmocka_run_group_tests_name("e2e_damage", tests, NULL, NULL);
}
