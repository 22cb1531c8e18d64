/* Models in several files: what is opened, read, made of them, and every way in which parts do not belong
 * together. The device reads them in test_e2e_carve and test_e2e_faults. */
#include <stdio.h>

#include "experts/carve.h"
#include "experts/diff.h"
#include "model/convert.h"
#include "model/synth.h"
#include "support/cli.h"
#include "support/split.h"

enum { LAYERS = 2, EXPERTS = 5, PARTS = 3 };

static struct vkmoe_err err;
static const char *dir, *whole;

static int setup(void **state)
{
    struct mdl_synth_params p = {.shape = *mdl_shape_find("emo-nano"), .type = MDL_Q8_0, .seed = 7};
    struct mdl_config *c = &p.shape.config;
    static char path[4200];

    (void)state;
    dir = test_tmp();
    snprintf(path, sizeof(path), "%s/whole.gguf", dir);
    p.out = whole = path;
    c->n_layers = LAYERS;
    c->dim = 64;
    c->n_heads = c->n_kv_heads = 2;
    c->head_dim = c->n_rot = c->ff_expert = 32;
    c->vocab_size = 288;
    c->n_experts = EXPERTS;
    c->n_experts_used = 2;
    p.shape.eos = 280;
    test_ok(mdl_synth(&p, &err), &err);
    return 0;
}

/* ---- what is right
 * ------------------------------------------------------------------------------------------------------ */

static void same_tensors(const char *path)
{
    struct mdl_gguf *a, *b;

    test_ok(mdl_gguf_open(&a, whole, &err), &err);
    test_ok(mdl_gguf_open(&b, path, &err), &err);
    assert_int_equal(a->n_tensors, b->n_tensors);
    for (uint64_t i = 0; i < a->n_tensors; i++) {
        const struct mdl_tensor *x = &a->tensors[i], *y = &b->tensors[i];
        char *p = cor_alloc((size_t)x->bytes), *q = cor_alloc((size_t)x->bytes);

        assert_string_equal(x->name, y->name);
        assert_int_equal(x->type, y->type);
        assert_int_equal(x->bytes, y->bytes);
        assert_memory_equal(x->dims, y->dims, sizeof(x->dims));
        test_ok(mdl_gguf_read(a, x, 0, p, (size_t)x->bytes, &err), &err);
        test_ok(mdl_gguf_read(b, y, 0, q, (size_t)x->bytes, &err), &err);
        assert_memory_equal(p, q, x->bytes);
        cor_free(p);
        cor_free(q);
    }
    mdl_gguf_close(a);
    mdl_gguf_close(b);
}

static void parts_are_one_model(void **state)
{
    static const uint32_t counts[] = {1, 2, 3, 7};
    const char *path;
    struct mdl_gguf *g;

    (void)state;
    for (size_t i = 0; i < COR_COUNT(counts); i++) {
        path = split_copy(whole, dir, "copy", counts[i]);
        same_tensors(path);
        test_ok(mdl_gguf_open(&g, path, &err), &err);
        assert_int_equal(g->n_files, counts[i]);
        assert_int_equal(g->tensors[g->n_tensors - 1].part, counts[i] - 1);
        for (uint32_t k = 0; k < counts[i]; k++)
            assert_true(mdl_gguf_is_file(g, split_path(dir, "copy", k, counts[i])));
        assert_false(mdl_gguf_is_file(g, whole));
        mdl_gguf_close(g);
    }
}

/* gguf-split --no-tensor-first-split: the first part has the keys alone. */
static void first_part_without_tensors(void **state)
{
    struct split_part parts[2];
    struct mdl_gguf *g;

    (void)state;
    test_ok(mdl_gguf_open(&g, whole, &err), &err);
    split_plan(parts, 2, g);
    parts[0].end = parts[1].first = 0;
    for (uint32_t i = 0; i < 2; i++)
        split_write(g, split_path(dir, "bare", i, 2), &parts[i], !i);
    mdl_gguf_close(g);
    same_tensors(split_path(dir, "bare", 0, 2));
}

/* Digests and sizes are of all parts; what is made of them is one file without the keys of parts. */
static void made_of_parts(void **state)
{
    const char *path = split_copy(whole, dir, "made", PARTS), *out = cli_path(dir, "out.gguf");
    struct xp_carve_result one = {0}, many = {0};
    const struct xp_carve_params p = {.model = path, .subset_name = "all", .out = out};
    struct xp_carve_params q = p;
    struct xp_subset all;
    struct xp_diff d;
    struct mdl_model *a, *b;
    struct mdl_gguf *g;

    (void)state;
    test_ok(xp_subset_init(&all, "", LAYERS, EXPERTS, 1, "random", &err), &err);
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < EXPERTS; e++)
            xp_subset_set(&all, l, e);
    q.subset = &all;
    test_ok(xp_carve(&q, &many, &err), &err);
    same_tensors(out);
    test_ok(mdl_gguf_open(&g, out, &err), &err);
    assert_null(mdl_gguf_find(g, "split.count"));
    assert_null(mdl_gguf_find(g, "split.no"));
    mdl_gguf_close(g);
    q.model = whole;
    test_ok(xp_carve(&q, &one, &err), &err);
    assert_int_equal(one.out_bytes, many.out_bytes);
    assert_true(many.in_bytes > one.in_bytes); /* more headers */
    assert_string_not_equal(one.sha256, many.sha256);
    q.model = path;
    q.out = split_path(dir, "made", 1, PARTS);
    assert_int_equal(xp_carve(&q, &many, &err), VKMOE_ERR_ARGUMENT);
    assert_non_null(strstr(err.message, "is read"));
    xp_subset_free(&all);

    test_ok(mdl_convert(&(struct mdl_convert_params){.in = path, .out = out, .type = MDL_Q8_0}, &err), &err);
    same_tensors(out);
    test_ok(mdl_open(&a, path, &err), &err);
    test_ok(mdl_open(&b, out, &err), &err);
    test_ok(xp_diff(&d, a, b, NULL, NULL, &err), &err);
    assert_true(d.same);
    xp_diff_free(&d);
    mdl_close(a);
    mdl_close(b);
}

static void changes_are_seen(void **state)
{
    const char *path = split_copy(whole, dir, "late", PARTS), *last = split_path(dir, "late", 2, PARTS);
    struct mdl_gguf *g;
    char byte;
    FILE *f;

    (void)state;
    test_ok(mdl_gguf_open(&g, path, &err), &err);
    assert_non_null(f = fopen(last, "ab"));
    fputc('x', f);
    fclose(f);
    test_ok(mdl_gguf_read(g, &g->tensors[0], 0, &byte, 1, &err), &err);
    assert_int_equal(mdl_gguf_read(g, &g->tensors[g->n_tensors - 1], 0, &byte, 1, &err), VKMOE_ERR_IO);
    assert_non_null(strstr(err.message, last));
    assert_int_equal(mdl_gguf_unchanged(g, &err), VKMOE_ERR_IO);
    mdl_gguf_close(g);
}

static void the_program_takes_parts(void **state)
{
    const char *path = split_copy(whole, dir, "cli", PARTS);
    struct cli_result r;
    cJSON *json;

    (void)state;
    cli_good(&r, "inspect", "--json", "--tensors", path);
    json = cli_json(&r);
    assert_int_equal(cli_get(json, "files")->valueint, PARTS);
    assert_int_equal(cli_get(cJSON_GetArrayItem(cli_get(json, "tensors"), 0), "part")->valueint, 1);
    cJSON_Delete(json);
    cli_result_free(&r);
    cli_good(&r, "quantize", path, cli_path(dir, "cli.gguf"), "q4_0");
    cli_result_free(&r);
    cli_bad(1, "open the first", "inspect", split_path(dir, "cli", 1, PARTS));
}

/* ---- what does not belong together
 * ------------------------------------------------------------------------------------------------------ */

static void refused(const char *path, const char *names, const char *says)
{
    struct mdl_gguf *g;
    const size_t live = cor_alloc_live();

    if (mdl_gguf_open(&g, path, &err) == VKMOE_OK)
        fail_msg("opened, but should say '%s'", says);
    if (!strstr(err.message, says) || strncmp(err.message, names, strlen(names)))
        fail_msg("'%s' does not begin with %s and say '%s'", err.message, names, says);
    assert_null(strchr(err.message, '\n'));
    assert_int_equal(cor_alloc_live(), live);
}

static void parts_that_lie(void **state)
{
    static const struct {
        uint32_t part, named;  /* that lies, that the message names */
        struct split_part add; /* to what is right */
        const char *says;
    } lies[] = {
        {0, 0, {.no = 1}, "open the first"},
        {0, 0, {.no = 3}, "not in 0..2"},
        {0, 0, {.count = 1}, "does not end with -00001-of-00004.gguf"},
        {0, 1, {.n_tensors = 1}, "the first part says 30"},
        {0, 0, {.n_keys = UINT32_MAX}, "split.tensors.count is missing"},
        {0, 0, {.end = (uint64_t)-1}, "the 3 parts have"},
        {1, 1, {.no = 1}, "by its name it is 1"},
        {1, 1, {.count = 1}, "the first part says 3"},
        {1, 1, {.n_tensors = 1}, "the first part says"},
        {1, 1, {.n_keys = (uint32_t)-3}, "split.no is missing"},
        {2, 2, {.n_keys = UINT32_MAX}, "split.tensors.count is missing"},
        {2, 2, {.first = (uint64_t)-1, .end = (uint64_t)-1}, "is already in part 2"},
    };
    struct split_part parts[PARTS];
    struct mdl_gguf *g;

    (void)state;
    test_ok(mdl_gguf_open(&g, whole, &err), &err);
    for (size_t i = 0; i < COR_COUNT(lies); i++) {
        const char *names = split_path(dir, "lie", lies[i].named, PARTS);
        struct split_part *p = &parts[lies[i].part];

        split_plan(parts, PARTS, g);
        p->no += lies[i].add.no;
        p->count += lies[i].add.count;
        p->n_tensors += lies[i].add.n_tensors;
        p->n_keys += lies[i].add.n_keys;
        p->first += lies[i].add.first;
        p->end += lies[i].add.end;
        for (uint32_t k = 0; k < PARTS; k++)
            split_write(g, split_path(dir, "lie", k, PARTS), &parts[k], !k);
        refused(split_path(dir, "lie", 0, PARTS), names, lies[i].says);
    }
    mdl_gguf_close(g);
}

static void wrong_files(void **state)
{
    const char *path = split_copy(whole, dir, "w", PARTS), *second = split_path(dir, "w", 1, PARTS),
               *third = split_path(dir, "w", 2, PARTS), *aside = cli_path(dir, "renamed.gguf");
    char plain[4200];

    (void)state;
    assert_int_equal(rename(second, aside), 0);
    refused(path, second, "is missing: part 2 of 3");
    assert_int_equal(rename(third, second), 0); /* the third in the second's place */
    refused(path, second, "by its name it is 1");
    assert_int_equal(rename(second, third), 0);
    assert_int_equal(rename(aside, second), 0);
    same_tensors(path);
    refused(third, third, "open the first");
    assert_int_equal(rename(path, aside), 0);
    refused(aside, aside, "does not end with -00001-of-00003.gguf");
    snprintf(plain, sizeof(plain), "%s", aside);
    assert_int_equal(rename(plain, path), 0);
}

/* Any part, cut or with bits flipped: opened and read within its bounds, or refused with a line that names a
 * part. */
static void damaged_parts(void **state)
{
    uint64_t rng = test_seed();
    struct mdl_gguf *g;

    (void)state;
    split_copy(whole, dir, "hurt", PARTS);
    for (uint32_t i = 0; i < 400; i++) {
        const char *part = split_path(dir, "hurt", (uint32_t)(test_rand(&rng) % PARTS), PARTS);
        size_t n, header;
        char *good, *hurt;

        test_ok(cor_file_slurp(part, 1 << 20, &good, &n, &err), &err);
        assert_non_null(hurt = cor_alloc(n));
        memcpy(hurt, good, n);
        header = n < 3000 ? n : 3000;
        for (uint64_t k = test_rand(&rng) % 3 + 1; k; k--)
            hurt[test_rand(&rng) % header] ^= (char)(1u << (test_rand(&rng) % 8));
        test_write(part, hurt, i % 4 ? n : (size_t)(test_rand(&rng) % n));
        if (mdl_gguf_open(&g, split_path(dir, "hurt", 0, PARTS), &err) == VKMOE_OK) {
            for (uint64_t k = 0; k < g->n_tensors; k++)
                if (g->tensors[k].known)
                    test_ok(mdl_gguf_read(g, &g->tensors[k], g->tensors[k].bytes - 1, hurt, 1, &err), &err);
        } else {
            assert_non_null(strstr(err.message, "hurt-0000"));
            assert_null(strchr(err.message, '\n'));
        }
        mdl_gguf_close(g);
        test_write(part, good, n);
        cor_free(good);
        cor_free(hurt);
    }
    same_tensors(split_path(dir, "hurt", 0, PARTS));
}

static void every_failure_leaves_nothing(void **state)
{
    const char *path = split_copy(whole, dir, "fail", PARTS);
    const size_t live = cor_alloc_live();
    struct mdl_gguf *g;

    (void)state;
    for (int io = 0; io < 2; io++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            assert_true(nth < 200);
            (io ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = mdl_gguf_open(&g, path, &err);
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            if (st == VKMOE_OK)
                assert_true(nth > 3);
            mdl_gguf_close(g);
            assert_int_equal(cor_alloc_live(), live);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_are_one_model),
        cmocka_unit_test(first_part_without_tensors),
        cmocka_unit_test(made_of_parts),
        cmocka_unit_test(changes_are_seen),
        cmocka_unit_test(the_program_takes_parts),
        cmocka_unit_test(parts_that_lie),
        cmocka_unit_test(wrong_files),
        cmocka_unit_test(damaged_parts),
        cmocka_unit_test(every_failure_leaves_nothing),
    };

    return cmocka_run_group_tests_name("split", tests, setup, NULL);
}
