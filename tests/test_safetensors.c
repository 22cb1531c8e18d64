/* safetensors: one file and shards; every lie of a header is refused; damage and failures leave nothing. */
#include <stdio.h>

#include "model/safetensors.h"
#include "support/hf.h"

static struct vkmoe_err err;

/* model.safetensors with this JSON and n_data bytes of data. header_n: the length it states, 0: the true one.
 */
static void put_file(const struct hf_dir *h, const char *json, size_t n_data, uint64_t header_n)
{
    static uint8_t buf[8192];
    size_t n = strlen(json);

    assert_true(n + n_data + 8 < sizeof(buf));
    if (!header_n)
        header_n = n;
    for (int i = 0; i < 8; i++)
        buf[i] = (uint8_t)(header_n >> (8 * i));
    memcpy(buf + 8, json, n);
    for (size_t i = 0; i < n_data; i++)
        buf[8 + n + i] = (uint8_t)i;
    hf_write_file(h, "model.safetensors", buf, 8 + n + n_data);
}

static const char two[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                          "\"b\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[24,40]},"
                          "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}   ";

static void one_file(void **state)
{
    struct hf_dir h;
    struct mdl_st *s;
    const struct mdl_st_tensor *t;
    uint8_t data[24];

    (void)state;
    hf_init(&h);
    put_file(&h, two, 40, 0);
    test_ok(mdl_st_open(&s, h.path, &err), &err);
    assert_int_equal(s->n_tensors, 2);
    t = mdl_st_find(s, "a");
    assert_non_null(t);
    assert_true(t->known && t->type == MDL_F32);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->dims[0], 2);
    assert_int_equal(t->dims[1], 3);
    assert_int_equal(t->bytes, 24);
    test_ok(cor_file_read(t->file, t->file_off, data, 24, &err), &err);
    for (int i = 0; i < 24; i++)
        assert_int_equal(data[i], i);
    t = mdl_st_find(s, "b");
    assert_non_null(t);
    assert_false(t->known);
    assert_string_equal(t->dtype, "I64");
    assert_null(mdl_st_find(s, "c"));
    assert_null(mdl_st_find(s, "__metadata__"));
    test_ok(mdl_st_unchanged(s, &err), &err);
    mdl_st_close(s);
    mdl_st_close(NULL);
}

static void lies_are_refused(void **state)
{
#define T(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
    static const struct {
        const char *json;
        size_t n_data;
        uint64_t header_n;
        const char *says;
    } cases[] = {
        {"{" T("a", "F32", "[2]", "[0,8]") "}", 9, 0, "end"},
        {"{" T("a", "F32", "[2]", "[0,8]") "}", 7, 0, "data_offsets"},
        {"{" T("a", "F32", "[2]", "[0,8]") "}", 8, (uint64_t)1 << 63, "passes the end"},
        {"{" T("a", "F32", "[2]", "[0,8]") "}", 8, 20, "JSON"},
        {"{" T("a", "F32", "[2]", "[0,8]") "} x", 8, 0, "JSON"},
        {"[]", 0, 0, "object"},
        {"", 0, 0, "JSON"},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("a", "F32", "[2]", "[8,16]") "}", 16, 0, "twice"},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[4,12]") "}", 12, 0, "overlaps"},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[12,20]") "}", 20, 0, "hole"},
        {"{" T("a", "F32", "[2]", "[8,16]") "}", 16, 0, "hole"},
        {"{" T("a", "F32", "[2]", "[8,0]") "}", 8, 0, "data_offsets"},
        {"{" T("a", "F32", "[2]", "[0,8,9]") "}", 8, 0, "malformed"},
        {"{" T("a", "F32", "[2]", "[-8,0]") "}", 8, 0, "data_offsets"},
        {"{" T("a", "F32", "[2]", "[0,8.5]") "}", 9, 0, "data_offsets"},
        {"{" T("a", "F32", "[2]", "[0,1e300]") "}", 8, 0, "data_offsets"},
        {"{" T("a", "F32", "[3]", "[0,8]") "}", 8, 0, "elements"},
        {"{" T("a", "F32", "[2.5]", "[0,8]") "}", 8, 0, "shape"},
        {"{" T("a", "F32", "[-2]", "[0,8]") "}", 8, 0, "shape"},
        {"{" T("a", "F32", "[4294967296,4294967296,4294967296]", "[0,8]") "}", 8, 0, "shape"},
        {"{" T("a", "F32", "[1,1,1,1,2]", "[0,8]") "}", 8, 0, "dimensions"},
        {"{" T("a", "F12", "[2]", "[0,8]") "}", 8, 0, "F12"},
        {"{" T("", "F32", "[2]", "[0,8]") "}", 8, 0, "name"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, 0, "missing"},
        {"{\"a\":7}", 8, 0, "missing"},
    };
    struct hf_dir h;

    (void)state;
    hf_init(&h);
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        struct mdl_st *s;

        put_file(&h, cases[i].json, cases[i].n_data, cases[i].header_n);
        if (mdl_st_open(&s, h.path, &err) == VKMOE_OK)
            fail_msg("accepted: %s", cases[i].json);
        assert_null(s);
        if (!strstr(err.message, cases[i].says) || !strstr(err.message, "model.safetensors"))
            fail_msg("'%s' does not say '%s'", err.message, cases[i].says);
    }
}

static void expect_failure(const struct hf_dir *h, const char *says)
{
    struct mdl_st *s;

    assert_int_not_equal(mdl_st_open(&s, h->path, &err), VKMOE_OK);
    if (!strstr(err.message, says))
        fail_msg("'%s' does not say '%s'", err.message, says);
}

static void shards(void **state)
{
    struct hf_dir h;
    struct mdl_st *s;
    size_t n;
    char *index;

    (void)state;
    hf_init(&h);
    expect_failure(&h, "neither");
    h.sharded = true;
    hf_write_weights(&h);
    test_ok(mdl_st_open(&s, h.path, &err), &err);
    n = s->n_tensors;
    assert_int_equal(s->n_files, 2);
    assert_non_null(mdl_st_find(s, "model.layers.1.mlp.experts.4.down_proj.weight"));
    mdl_st_close(s);
    test_ok(cor_file_slurp(hf_file(&h, "model.safetensors.index.json"), 1 << 20, &index, &(size_t){0}, &err),
            &err);
    *strstr(index, "00002-of") = '1'; /* a tensor said to be in another shard: 10002 */
    hf_write_file(&h, "model.safetensors.index.json", index, strlen(index));
    expect_failure(&h, "index");
    cor_free(index);
    hf_write_file(&h, "model.safetensors.index.json", "{\"weight_map\":{}}", 17);
    expect_failure(&h, "lists 0 tensors");
    remove(hf_file(&h, "model.safetensors.index.json"));
    test_ok(mdl_st_open(&s, h.path, &err), &err); /* the names say enough */
    assert_int_equal(s->n_tensors, n);
    mdl_st_close(s);
    hf_write_file(&h, "model.safetensors", "x", 1);
    expect_failure(&h, "both");
    remove(hf_file(&h, "model.safetensors"));
    assert_int_equal(rename(hf_file(&h, "model-00002-of-00002.safetensors"),
                            hf_file(&h, "model-00002-of-00003.safetensors")),
                     0);
    expect_failure(&h, "does not belong");
    remove(hf_file(&h, "model-00002-of-00003.safetensors"));
    expect_failure(&h, "shard 2 of 2 is missing");
}

static void same_tensor_in_two_shards(void **state)
{
    struct hf_dir h;
    char *data;
    size_t n;

    (void)state;
    hf_init(&h);
    put_file(&h, two, 40, 0);
    test_ok(cor_file_slurp(hf_file(&h, "model.safetensors"), 4096, &data, &n, &err), &err);
    hf_write_file(&h, "model-00001-of-00002.safetensors", data, n);
    hf_write_file(&h, "model-00002-of-00002.safetensors", data, n);
    remove(hf_file(&h, "model.safetensors"));
    cor_free(data);
    expect_failure(&h, "two shards");
}

static void damaged_files(void **state)
{
    struct hf_dir h;
    struct mdl_st *s;
    uint64_t rng = test_seed();
    char *good, hurt[512];
    size_t n;

    (void)state;
    hf_init(&h);
    put_file(&h, two, 40, 0);
    test_ok(cor_file_slurp(hf_file(&h, "model.safetensors"), 4096, &good, &n, &err), &err);
    assert_true(n < sizeof(hurt));
    for (size_t cut = 0; cut < n; cut++) {
        hf_write_file(&h, "model.safetensors", good, cut);
        assert_int_not_equal(mdl_st_open(&s, h.path, &err), VKMOE_OK);
    }
    for (int i = 0; i < 2000; i++) {
        memcpy(hurt, good, n);
        for (uint64_t k = test_rand(&rng) % 3 + 1; k; k--)
            hurt[test_rand(&rng) % n] ^= (char)(1u << (test_rand(&rng) % 8));
        hf_write_file(&h, "model.safetensors", hurt, n);
        if (mdl_st_open(&s, h.path, &err) == VKMOE_OK)
            mdl_st_close(s);
    }
    cor_free(good);
}

static void every_failure_leaves_nothing(void **state)
{
    long live;
    struct hf_dir h;

    (void)state;
    hf_init(&h);
    h.layers = 1;
    h.experts = 2;
    h.sharded = true;
    hf_write_weights(&h);
    live = cor_alloc_live();
    for (int io = 0; io < 2; io++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            struct mdl_st *s;

            assert_true(nth < 200);
            (io ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = mdl_st_open(&s, h.path, &err);
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            mdl_st_close(s);
            assert_int_equal(cor_alloc_live(), live);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_file),      cmocka_unit_test(lies_are_refused),
        cmocka_unit_test(shards),        cmocka_unit_test(same_tensor_in_two_shards),
        cmocka_unit_test(damaged_files), cmocka_unit_test(every_failure_leaves_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
