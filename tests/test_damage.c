/* Files of every block format, cut and with bits flipped: opened and computed with, or refused with one line
 * that names the file. The device gets them in test_e2e_damage. */
#include "model/ref.h"
#include "support/damage.h"

static struct vkmoe_err err;

static const struct mdl_type_info *type_at(size_t i)
{
    static const enum mdl_type types[] = {
#define MDL_X(id, value, name, elems, bytes, file) id,
        MDL_TYPE_LIST(MDL_X)
#undef MDL_X
    };

    return i < COR_COUNT(types) ? mdl_type_find((uint32_t)types[i]) : NULL;
}

/* Two tokens through the scalar reference: logits or one line that there are none, and experts that exist. */
static void compute(const struct mdl_model *m)
{
    const struct mdl_ref_params p = {.n_ctx = 2};
    struct mdl_ref_route routes[8];
    float *logits = cor_array(m->config.vocab_size, sizeof(*logits));
    struct mdl_ref *r;

    assert_non_null(logits);
    assert_true(m->config.n_layers <= COR_COUNT(routes));
    test_ok(mdl_ref_create(&r, m, &p, &err), &err);
    for (int32_t t = 0; t < 2; t++) {
        const enum vkmoe_status st = mdl_ref_feed(r, 100 + t, logits, routes, &err);

        if (st != VKMOE_OK)
            assert_int_equal(st, VKMOE_ERR_NUMERIC);
        if (st != VKMOE_OK)
            assert_string_equal(err.message, "non-finite logits at token 0");
        for (uint32_t k = 0; k < routes[0].n; k++)
            assert_true(routes[0].ids[k] < m->config.n_experts &&
                        (!k || routes[0].ids[0] != routes[0].ids[k]));
        if (st != VKMOE_OK)
            break;
    }
    mdl_ref_destroy(r);
    cor_free(logits);
}

static void open_it(const struct damage *d, size_t n, bool must_fail)
{
    const long live = cor_alloc_live();
    struct mdl_model *m;

    damage_write(d, n);
    if (mdl_open(&m, d->path, &err) != VKMOE_OK) {
        damage_check_line(d, &err);
    } else {
        assert_false(must_fail);
        compute(m);
    }
    mdl_close(m);
    assert_int_equal(cor_alloc_live(), live);
}

static void every_format(void **state)
{
    const char *dir = test_tmp();
    uint64_t rng = test_seed();

    (void)state;
    for (size_t i = 0; type_at(i); i++) {
        const int rounds = type_at(i)->block_elems == 1 ? 5 : 25;
        struct damage d;

        damage_open(&d, dir, type_at(i));
        for (int k = 0; k < rounds; k++) {
            damage_header(&d, &rng);
            open_it(&d, d.n, false);
            damage_undo(&d);
            open_it(&d, (size_t)(test_rand(&rng) % (k % 2 ? d.header : d.n - 32)), true);
            damage_write(&d, d.n);
            damage_data(&d, &rng);
            open_it(&d, d.n, false);
            damage_undo(&d);
        }
        damage_close(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format),
    };

    return cmocka_run_group_tests_name("damage", tests, NULL, NULL);
}
