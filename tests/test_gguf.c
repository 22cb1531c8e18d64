/* GGUF files: what is written is read back; every lie a header can tell is refused; damage and failures leave
 * nothing. */
#include "support/test.h"

#include <stdio.h>

#include "model/gguf.h"

static struct vkmoe_err err;
static char path[4096];

struct bytes {
    uint8_t p[8192];
    size_t n;
};

static void put(struct bytes *b, const void *src, size_t n)
{
    assert_true(b->n + n <= sizeof(b->p));
    memcpy(b->p + b->n, src, n);
    b->n += n;
}

static void put_int(struct bytes *b, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        put(b, &(uint8_t){(uint8_t)(v >> (8 * i))}, 1);
}

static void put_str(struct bytes *b, const char *s)
{
    put_int(b, strlen(s), 8);
    put(b, s, strlen(s));
}

/* What a header states; a test changes one thing. */
struct header {
    uint32_t version;
    uint64_t n_tensors, n_kv;
    uint32_t alignment;
    const char *key2;
    uint32_t dims_n;
    uint64_t dims[5];
    uint32_t type;
    uint64_t off2;
    const char *name2;
    size_t data_bytes;
};

static const struct header plain = {3, 2, 2, 32, "b.text", 2, {32, 2, 1, 1, 1}, MDL_F32, 256, "second", 512};

static void build(struct bytes *b, const struct header *h)
{
    b->n = 0;
    put(b, "GGUF", 4);
    put_int(b, h->version, 4);
    put_int(b, h->n_tensors, 8);
    put_int(b, h->n_kv, 8);
    put_str(b, "general.alignment");
    put_int(b, MDL_GGUF_U32, 4);
    put_int(b, h->alignment, 4);
    put_str(b, h->key2);
    put_int(b, MDL_GGUF_ARRAY, 4);
    put_int(b, MDL_GGUF_STRING, 4);
    put_int(b, 2, 8);
    put_str(b, "one");
    put_str(b, "two");
    put_str(b, "first");
    put_int(b, h->dims_n, 4);
    for (uint32_t i = 0; i < h->dims_n && i < 5; i++)
        put_int(b, h->dims[i], 8);
    put_int(b, h->type, 4);
    put_int(b, 0, 8);
    put_str(b, h->name2);
    put_int(b, 1, 4);
    put_int(b, 64, 8);
    put_int(b, MDL_F32, 4);
    put_int(b, h->off2, 8);
    while (b->n % 32)
        put_int(b, 0, 1);
    for (size_t i = 0; i < h->data_bytes; i++)
        put_int(b, i, 1);
}

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof(path), "%s/a.gguf", test_tmp());
    return 0;
}

static void expect(const struct header *h, enum vkmoe_status want, const char *in_message)
{
    struct bytes b;
    struct mdl_gguf *g;

    build(&b, h);
    test_write(path, b.p, b.n);
    assert_int_equal(mdl_gguf_open(&g, path, &err), want);
    if (want == VKMOE_OK) {
        mdl_gguf_close(g);
        return;
    }
    assert_null(g);
    if (!strstr(err.message, in_message) || !strstr(err.message, "a.gguf"))
        fail_msg("'%s' does not say '%s'", err.message, in_message);
}

static void lies_are_refused(void **state)
{
    struct header h;

    (void)state;
    expect(&plain, VKMOE_OK, NULL);
#define LIE(change, status, text) \
    h = plain;                    \
    h.change;                     \
    expect(&h, status, text)
    LIE(version = 2, VKMOE_OK, NULL);
    LIE(version = 1, VKMOE_ERR_UNSUPPORTED, "version 1");
    LIE(version = 4, VKMOE_ERR_UNSUPPORTED, "version 4");
    LIE(version = 0x03000000, VKMOE_ERR_UNSUPPORTED, "big-endian");
    LIE(n_tensors = (uint64_t)1 << 60, VKMOE_ERR_FORMAT, "tensors");
    LIE(n_tensors = 20, VKMOE_ERR_FORMAT, "a.gguf");
    LIE(n_tensors = 1, VKMOE_OK, NULL);
    LIE(n_kv = UINT64_MAX, VKMOE_ERR_FORMAT, "keys");
    LIE(n_kv = 3, VKMOE_ERR_FORMAT, "a.gguf");
    LIE(alignment = 48, VKMOE_ERR_FORMAT, "alignment");
    LIE(alignment = 0, VKMOE_ERR_FORMAT, "alignment");
    LIE(alignment = 4, VKMOE_ERR_FORMAT, "alignment");
    LIE(alignment = 1u << 31, VKMOE_ERR_FORMAT, "alignment");
    LIE(key2 = "general.alignment", VKMOE_ERR_FORMAT, "twice");
    LIE(key2 = "", VKMOE_ERR_FORMAT, "length 0");
    LIE(key2 = "\xff\xfe\x01", VKMOE_OK, NULL); /* not UTF-8: tolerated */
    LIE(dims_n = 0, VKMOE_ERR_FORMAT, "dimensions");
    LIE(dims_n = 5, VKMOE_ERR_FORMAT, "dimensions");
    LIE(dims[0] = 0, VKMOE_ERR_FORMAT, "empty");
    LIE(dims[1] = 0, VKMOE_ERR_FORMAT, "empty");
    LIE(dims[0] = (uint64_t)1 << 62, VKMOE_ERR_FORMAT, "larger than the file");
    LIE(dims[1] = (uint64_t)1 << 62, VKMOE_ERR_FORMAT, "larger than the file");
    LIE(dims[1] = 3, VKMOE_ERR_FORMAT, "overlap");
    LIE(type = MDL_Q8_0, VKMOE_OK, NULL);
    h = plain;
    h.dims_n = 3;
    h.dims[1] = h.dims[2] = (uint64_t)1 << 33;
    expect(&h, VKMOE_ERR_FORMAT, "overflows");
    h = plain;
    h.type = MDL_Q4_0;
    h.dims[0] = 33;
    expect(&h, VKMOE_ERR_FORMAT, "blocks");
    LIE(type = 99, VKMOE_OK, NULL); /* listed, cannot be read */
    LIE(off2 = 257, VKMOE_ERR_FORMAT, "multiple");
    LIE(off2 = 0, VKMOE_ERR_FORMAT, "overlap");
    LIE(off2 = 288, VKMOE_ERR_FORMAT, "truncated");
    LIE(off2 = UINT64_MAX - 31, VKMOE_ERR_FORMAT, "truncated");
    LIE(name2 = "first", VKMOE_ERR_FORMAT, "twice");
    LIE(data_bytes = 511, VKMOE_ERR_FORMAT, "truncated");
    LIE(data_bytes = 600, VKMOE_OK, NULL);
#undef LIE
}

static void bad_values_are_refused(void **state)
{
    static const struct {
        uint32_t type, elem;
        uint64_t value;
        const char *says;
    } cases[] = {
        {MDL_GGUF_BOOL, 0, 2, "boolean"},
        {13, 0, 0, "type 13"},
        {MDL_GGUF_ARRAY, MDL_GGUF_ARRAY, 1, "array of arrays"},
        {MDL_GGUF_ARRAY, 77, 1, "array type 77"},
        {MDL_GGUF_ARRAY, MDL_GGUF_U8, UINT64_MAX, "passes the end"},
        {MDL_GGUF_ARRAY, MDL_GGUF_F64, (uint64_t)1 << 61, "passes the end"},
        {MDL_GGUF_ARRAY, MDL_GGUF_STRING, (uint64_t)1 << 61, "passes the end"},
        {MDL_GGUF_STRING, 0, UINT64_MAX, "truncated"},
    };

    (void)state;
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        struct bytes b = {.n = 0};
        struct mdl_gguf *g;

        put(&b, "GGUF", 4);
        put_int(&b, 3, 4);
        put_int(&b, 0, 8);
        put_int(&b, 1, 8);
        put_str(&b, "key");
        put_int(&b, cases[i].type, 4);
        if (cases[i].type == MDL_GGUF_ARRAY)
            put_int(&b, cases[i].elem, 4);
        put_int(&b, cases[i].value, cases[i].type == MDL_GGUF_BOOL ? 1 : 8);
        put_int(&b, 0, 8);
        test_write(path, b.p, b.n);
        assert_int_not_equal(mdl_gguf_open(&g, path, &err), VKMOE_OK);
        if (!strstr(err.message, cases[i].says))
            fail_msg("'%s' does not say '%s'", err.message, cases[i].says);
    }
}

static void put_all_types(struct mdl_gguf_writer *w)
{
    static const struct mdl_str strs[] = {{"a", 1}, {"", 0}, {"\0\xff", 2}};
    static const uint16_t u16s[] = {1, 2, 65535};
    static const struct {
        const char *key;
        enum mdl_gguf_type type;
        int64_t v;
    } ints[] = {{"u8", MDL_GGUF_U8, 200},           {"i8", MDL_GGUF_I8, -100},
                {"u16", MDL_GGUF_U16, 60000},       {"i16", MDL_GGUF_I16, -30000},
                {"i32", MDL_GGUF_I32, -2000000000}, {"u64", MDL_GGUF_U64, INT64_MAX},
                {"i64", MDL_GGUF_I64, INT64_MIN}};
    struct mdl_kv kv;

    test_ok(mdl_gguf_put_u32(w, "u32", 4000000000u, &err), &err);
    test_ok(mdl_gguf_put_f32(w, "f32", -0.125f, &err), &err);
    test_ok(mdl_gguf_put_bool(w, "bool", true, &err), &err);
    test_ok(mdl_gguf_put_str(w, "str", "text", 4, &err), &err);
    test_ok(mdl_gguf_put_array(w, "strs", MDL_GGUF_STRING, strs, 3, &err), &err);
    test_ok(mdl_gguf_put_array(w, "u16s", MDL_GGUF_U16, u16s, 3, &err), &err);
    test_ok(mdl_gguf_put_array(w, "none", MDL_GGUF_I32, NULL, 0, &err), &err);
    for (size_t i = 0; i < COR_COUNT(ints); i++) {
        memset(&kv, 0, sizeof(kv));
        kv.key = ints[i].key;
        kv.type = ints[i].type;
        kv.v.i = ints[i].v;
        test_ok(mdl_gguf_put_kv(w, &kv, &err), &err);
    }
    memset(&kv, 0, sizeof(kv));
    kv.key = "f64";
    kv.type = MDL_GGUF_F64;
    kv.v.f = 1e300;
    test_ok(mdl_gguf_put_kv(w, &kv, &err), &err);
}

static void write_sample(void)
{
    struct mdl_gguf_writer *w;
    const uint64_t a[2] = {3, 5}, b[3] = {32, 2, 2};
    uint8_t data[256];

    for (int i = 0; i < 256; i++)
        data[i] = (uint8_t)i;
    test_ok(mdl_gguf_create(&w, path, &err), &err);
    put_all_types(w);
    test_ok(mdl_gguf_put_tensor(w, "a", MDL_F32, 2, a, &err), &err);
    test_ok(mdl_gguf_put_tensor(w, "b", MDL_Q8_0, 3, b, &err), &err);
    assert_int_equal(mdl_gguf_put_tensor(w, "c", MDL_Q8_0, 2, a, &err), VKMOE_ERR_ARGUMENT);
    test_ok(mdl_gguf_write_data(w, data, 40, &err), &err);
    test_ok(mdl_gguf_write_data(w, data + 40, 20, &err), &err);
    assert_int_equal(mdl_gguf_write_data(w, data, 137, &err), VKMOE_ERR_ARGUMENT);
    test_ok(mdl_gguf_write_data(w, data + 100, 136, &err), &err);
    test_ok(mdl_gguf_commit(w, &err), &err);
}

static void round_trip(void **state)
{
    struct mdl_gguf *g;
    const struct mdl_kv *kv;
    const struct mdl_tensor *t;
    uint32_t u;
    float f;
    bool yes;
    struct mdl_str s;
    uint8_t data[136];
    uint16_t last;

    (void)state;
    write_sample();
    test_ok(mdl_gguf_open(&g, path, &err), &err);
    assert_int_equal(g->version, 3);
    assert_int_equal(g->n_kv, 15);
    test_ok(mdl_gguf_u32(g, "u32", &u, &err), &err);
    assert_true(u == 4000000000u);
    test_ok(mdl_gguf_u32(g, "u8", &u, &err), &err);
    assert_int_equal(u, 200);
    assert_int_equal(mdl_gguf_u32(g, "i8", &u, &err), VKMOE_ERR_FORMAT);
    assert_int_equal(mdl_gguf_u32(g, "u64", &u, &err), VKMOE_ERR_FORMAT);
    assert_int_equal(mdl_gguf_u32(g, "bool", &u, &err), VKMOE_ERR_FORMAT);
    assert_int_equal(mdl_gguf_u32(g, "absent", &u, &err), VKMOE_ERR_FORMAT);
    assert_non_null(strstr(err.message, "absent"));
    test_ok(mdl_gguf_f32(g, "f32", &f, &err), &err);
    assert_true(f == -0.125f);
    assert_int_equal(mdl_gguf_f32(g, "u32", &f, &err), VKMOE_ERR_FORMAT);
    test_ok(mdl_gguf_bool(g, "bool", &yes, &err), &err);
    assert_true(yes);
    assert_int_equal(mdl_gguf_bool(g, "u8", &yes, &err), VKMOE_ERR_FORMAT);
    test_ok(mdl_gguf_str(g, "str", &s, &err), &err);
    assert_int_equal(s.n, 4);
    assert_memory_equal(s.p, "text", 4);
    assert_int_equal(mdl_gguf_str(g, "strs", &s, &err), VKMOE_ERR_FORMAT);
    assert_true(mdl_gguf_find(g, "i8")->v.i == -100);
    assert_true(mdl_gguf_find(g, "i16")->v.i == -30000);
    assert_true(mdl_gguf_find(g, "i32")->v.i == -2000000000);
    assert_true(mdl_gguf_find(g, "i64")->v.i == INT64_MIN);
    assert_true(mdl_gguf_find(g, "u64")->v.u == INT64_MAX);
    assert_true(mdl_gguf_find(g, "f64")->v.f == 1e300);
    kv = mdl_gguf_find(g, "strs");
    assert_int_equal(kv->count, 3);
    assert_int_equal(kv->v.strs[2].n, 2);
    assert_memory_equal(kv->v.strs[2].p, "\0\xff", 2);
    kv = mdl_gguf_find(g, "u16s");
    memcpy(&last, (const char *)kv->v.array + 4, 2);
    assert_int_equal(last, 65535);
    assert_int_equal(mdl_gguf_find(g, "none")->count, 0);
    t = mdl_gguf_tensor(g, "b");
    assert_non_null(t);
    assert_int_equal(t->bytes, 136);
    assert_int_equal(t->file_off % 32, 0);
    test_ok(mdl_gguf_read(g, t, 0, data, 136, &err), &err);
    assert_int_equal(data[0], 100);
    assert_int_equal(data[135], 235);
    assert_int_equal(mdl_gguf_read(g, t, 130, data, 7, &err), VKMOE_ERR_ARGUMENT);
    t = mdl_gguf_tensor(g, "a");
    test_ok(mdl_gguf_read(g, t, 59, data, 1, &err), &err);
    assert_int_equal(data[0], 59);
    assert_null(mdl_gguf_tensor(g, "c"));
    mdl_gguf_close(g);
    mdl_gguf_close(NULL);
}

static void incomplete_file_is_not_written(void **state)
{
    struct mdl_gguf_writer *w;
    const uint64_t dims[1] = {8};

    (void)state;
    test_ok(mdl_gguf_create(&w, path, &err), &err);
    test_ok(mdl_gguf_put_tensor(w, "a", MDL_F32, 1, dims, &err), &err);
    test_ok(mdl_gguf_write_data(w, dims, 8, &err), &err);
    assert_int_equal(mdl_gguf_put_u32(w, "late", 1, &err), VKMOE_ERR_ARGUMENT);
    assert_int_equal(mdl_gguf_commit(w, &err), VKMOE_ERR_ARGUMENT);
    assert_false(cor_path_exists(path));
}

static void damaged_files(void **state)
{
    struct mdl_gguf *g;
    uint64_t rng = test_seed();
    char *good, *hurt;
    size_t n;

    (void)state;
    write_sample();
    test_ok(cor_file_slurp(path, 1 << 20, &good, &n, &err), &err);
    hurt = cor_alloc(n);
    assert_non_null(hurt);
    for (size_t cut = 0; cut < n; cut++) {
        enum vkmoe_status st;

        test_write(path, good, cut);
        st = mdl_gguf_open(&g, path, &err);
        assert_true(st != VKMOE_OK || cut >= n - 24); /* only the last tensor's padding may be missing */
        mdl_gguf_close(g);
    }
    for (int i = 0; i < 2000; i++) {
        memcpy(hurt, good, n);
        for (uint64_t k = test_rand(&rng) % 3 + 1; k; k--)
            hurt[test_rand(&rng) % n] ^= (char)(1u << (test_rand(&rng) % 8));
        test_write(path, hurt, n);
        if (mdl_gguf_open(&g, path, &err) == VKMOE_OK)
            for (uint64_t k = 0; k < g->n_tensors; k++) {
                char one;

                if (g->tensors[k].known)
                    test_ok(mdl_gguf_read(g, &g->tensors[k], g->tensors[k].bytes - 1, &one, 1, &err), &err);
            }
        mdl_gguf_close(g);
    }
    cor_free(good);
    cor_free(hurt);
}

/* Writes and reads a file as a user would, handing back the first failure. */
static enum vkmoe_status write_and_read(void)
{
    enum vkmoe_status st;
    struct mdl_gguf_writer *w = NULL, *last;
    struct mdl_gguf *g = NULL;
    const struct mdl_str strs[2] = {{"a", 1}, {"b", 1}};
    const uint64_t dims[2] = {4, 2};
    float data[8] = {0};

    TRY(mdl_gguf_create(&w, path, &err));
    TRY(mdl_gguf_put_u32(w, "a", 1, &err));
    TRY(mdl_gguf_put_array(w, "b", MDL_GGUF_STRING, strs, 2, &err));
    TRY(mdl_gguf_put_tensor(w, "t", MDL_F32, 2, dims, &err));
    TRY(mdl_gguf_write_data(w, data, sizeof(data), &err));
    last = w;
    w = NULL;
    TRY(mdl_gguf_commit(last, &err));
    TRY(mdl_gguf_open(&g, path, &err));
    TRY(mdl_gguf_read(g, &g->tensors[0], 0, data, sizeof(data), &err));
done:
    mdl_gguf_discard(w);
    mdl_gguf_close(g);
    return st;
}

static void every_failure_leaves_nothing(void **state)
{
    long live = cor_alloc_live();

    for (int io = 0; io < 2; io++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            char **names;
            size_t n;

            assert_true(nth < 100);
            setup(state);
            (io ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = write_and_read();
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            assert_int_equal(cor_alloc_live(), live);
            *strrchr(path, '/') = '\0';
            test_ok(cor_dir_list(path, &names, &n, &err), &err);
            assert_true(n <= 1 && (!n || !strcmp(names[0], "a.gguf"))); /* no temporary file */
            cor_free(names);
        }
    }
}

static void names_are_shown_escaped(void **state)
{
    char text[MDL_SHOW_BYTES], longer[500];

    (void)state;
    assert_string_equal(mdl_show(text, "plain", 5), "plain");
    assert_string_equal(mdl_show(text, "\xc3\xa4", 2), "\xc3\xa4");
    assert_string_equal(mdl_show(text, "a\xff\n\xc3", 4), "a\\xff\\x0a\\xc3");
    assert_string_equal(mdl_show(text, "\xed\xa0\x80", 3), "\\xed\\xa0\\x80"); /* a surrogate */
    memset(longer, 'x', sizeof(longer));
    mdl_show(text, longer, sizeof(longer));
    assert_true(strlen(text) < sizeof(text));
    assert_string_equal(text + strlen(text) - 4, "x...");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(round_trip, setup),
        cmocka_unit_test_setup(lies_are_refused, setup),
        cmocka_unit_test_setup(bad_values_are_refused, setup),
        cmocka_unit_test_setup(incomplete_file_is_not_written, setup),
        cmocka_unit_test_setup(damaged_files, setup),
        cmocka_unit_test_setup(every_failure_leaves_nothing, setup),
        cmocka_unit_test(names_are_shown_escaped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
