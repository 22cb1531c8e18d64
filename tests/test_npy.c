/* .npy files: what NumPy writes is read, what is written NumPy reads, damage gives an error line. */
#include "support/test.h"

#include <stdio.h>

#include "core/npy.h"

static struct vkmoe_err err;
static char path[4096];

/* A file with this dictionary and n_data bytes of data; returns its size. */
static size_t make(unsigned char *dst, const char *dict, size_t n_data)
{
    size_t n = strlen(dict);

    memcpy(dst, "\x93NUMPY\x01\x00", 8);
    dst[8] = (unsigned char)n;
    dst[9] = (unsigned char)(n >> 8);
    memcpy(dst + 10, dict, n);
    for (size_t i = 0; i < n_data; i++)
        dst[10 + n + i] = (unsigned char)i;
    return 10 + n + n_data;
}

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof(path), "%s/a.npy", test_tmp());
    return 0;
}

static void round_trip(void **state)
{
    float rows[3][5];
    struct cor_npy_writer *w;
    struct cor_npy a;

    (void)state;
    for (int i = 0; i < 15; i++)
        rows[i / 5][i % 5] = (float)i * 0.25f - 1;
    test_ok(cor_npy_create(&w, path, 5, &err), &err);
    for (int i = 0; i < 3; i++)
        test_ok(cor_npy_append(w, rows[i], &err), &err);
    assert_false(cor_path_exists(path));
    test_ok(cor_npy_commit(w, &err), &err);
    test_ok(cor_npy_read(&a, path, &err), &err);
    assert_int_equal(a.type, 'f');
    assert_int_equal(a.n_dims, 2);
    assert_int_equal(a.dims[0], 3);
    assert_int_equal(a.dims[1], 5);
    assert_memory_equal(a.data, rows, sizeof(rows));
    cor_npy_free(&a);
    cor_npy_free(&a);
}

static void numpy_variants(void **state)
{
    static const struct {
        const char *dict;
        size_t bytes;
        uint32_t n_dims;
        uint64_t count;
        char type;
    } good[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }  \n", 24, 2, 6, 'f'},
        {"{'shape': (4,), 'fortran_order': False, 'descr': '<i4'}\n", 16, 1, 4, 'i'},
        {"{\"descr\":\"<f4\",\"fortran_order\":False,\"shape\":()}", 4, 0, 1, 'f'},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 7), }", 0, 2, 0, 'f'},
    };
    static const struct {
        const char *dict;
        size_t bytes;
    } bad[] = {
        {"{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", 8},
        {"{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", 4},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }", 4},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 4},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", 5},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1), }", 4},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", 4},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1), }", 4},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }", 4},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999), }", 0},
        {"{'descr': '<f4', 'fortran_order': False, }", 4},
        {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", 4},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } x", 4},
        {"", 4},
    };
    unsigned char buf[512];

    (void)state;
    for (size_t i = 0; i < COR_COUNT(good); i++) {
        struct cor_npy a;

        test_write(path, buf, make(buf, good[i].dict, good[i].bytes));
        test_ok(cor_npy_read(&a, path, &err), &err);
        assert_int_equal(a.n_dims, good[i].n_dims);
        assert_int_equal(a.count, good[i].count);
        assert_int_equal(a.type, good[i].type);
        cor_npy_free(&a);
    }
    for (size_t i = 0; i < COR_COUNT(bad); i++) {
        struct cor_npy a;

        test_write(path, buf, make(buf, bad[i].dict, bad[i].bytes));
        if (cor_npy_read(&a, path, &err) == VKMOE_OK)
            fail_msg("accepted: %s", bad[i].dict);
        assert_non_null(strstr(err.message, "a.npy"));
        assert_null(a.data);
    }
}

static void damaged_files(void **state)
{
    unsigned char buf[256], hurt[256];
    size_t n = make(buf, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }  \n", 24);
    uint64_t rng = test_seed();
    struct cor_npy a;

    (void)state;
    for (size_t cut = 0; cut < n; cut++) {
        test_write(path, buf, cut);
        assert_int_not_equal(cor_npy_read(&a, path, &err), VKMOE_OK);
    }
    for (int i = 0; i < 2000; i++) {
        memcpy(hurt, buf, n);
        hurt[test_rand(&rng) % n] ^= (unsigned char)(1u << (test_rand(&rng) % 8));
        test_write(path, hurt, n);
        if (cor_npy_read(&a, path, &err) == VKMOE_OK)
            cor_npy_free(&a);
    }
}

static void every_failure_leaves_nothing(void **state)
{
    long live = cor_alloc_live();

    (void)state;
    for (int io = 0; io < 2; io++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            struct cor_npy_writer *w;
            struct cor_npy a = {0};
            float row[2] = {1, 2};

            assert_true(nth < 50);
            setup(state);
            (io ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = cor_npy_create(&w, path, 2, &err);
            if (st == VKMOE_OK && (st = cor_npy_append(w, row, &err)) != VKMOE_OK)
                cor_npy_discard(w);
            else if (st == VKMOE_OK)
                st = cor_npy_commit(w, &err);
            if (st == VKMOE_OK)
                st = cor_npy_read(&a, path, &err);
            cor_npy_free(&a);
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            assert_int_equal(cor_alloc_live(), live);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(round_trip, setup),
        cmocka_unit_test_setup(numpy_variants, setup),
        cmocka_unit_test_setup(damaged_files, setup),
        cmocka_unit_test_setup(every_failure_leaves_nothing, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
