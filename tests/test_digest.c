/* SHA-256: the published examples, any division into pieces, files, and failures that leave nothing. */
#include "support/test.h"

#include <stdio.h>

#include "core/digest.h"

static struct vkmoe_err err;

/* FIPS 180-2, appendix B, and the empty message. */
static void published_examples(void **state)
{
    static const struct {
        const char *text, *hex;
    } known[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    char hex[COR_SHA256_HEX];
    struct cor_sha256 h;

    (void)state;
    for (size_t i = 0; i < COR_COUNT(known); i++) {
        cor_sha256_begin(&h);
        cor_sha256_add(&h, known[i].text, strlen(known[i].text));
        assert_string_equal(cor_sha256_end_hex(&h, hex), known[i].hex);
        assert_true(cor_sha256_is_hex(hex));
    }
    cor_sha256_begin(&h);
    for (int i = 0; i < 1000000; i++)
        cor_sha256_add(&h, "a", 1);
    assert_string_equal(cor_sha256_end_hex(&h, hex),
                        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

static void any_pieces(void **state)
{
    uint8_t data[700], whole[COR_SHA256_BYTES], parts[COR_SHA256_BYTES];
    uint64_t rng = test_seed();
    struct cor_sha256 h;

    (void)state;
    for (int round = 0; round < 300; round++) {
        size_t n = (size_t)(test_rand(&rng) % (sizeof(data) + 1)), at = 0;

        for (size_t i = 0; i < n; i++)
            data[i] = (uint8_t)test_rand(&rng);
        cor_sha256_begin(&h);
        cor_sha256_add(&h, data, n);
        cor_sha256_end(&h, whole);
        cor_sha256_begin(&h);
        while (at < n) {
            size_t part = (size_t)(test_rand(&rng) % 130);

            part = part < n - at ? part : n - at;
            cor_sha256_add(&h, data + at, part);
            at += part;
        }
        cor_sha256_end(&h, parts);
        assert_memory_equal(whole, parts, sizeof(whole));
        if (n) { /* it can tell data apart */
            data[test_rand(&rng) % n] ^= (uint8_t)(1u << (test_rand(&rng) % 8));
            cor_sha256_begin(&h);
            cor_sha256_add(&h, data, n);
            cor_sha256_end(&h, parts);
            assert_memory_not_equal(whole, parts, sizeof(whole));
        }
    }
}

static void only_digits_are_hex(void **state)
{
    char hex[COR_SHA256_HEX + 1] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    (void)state;
    assert_true(cor_sha256_is_hex(hex));
    hex[3] = 'A';
    assert_false(cor_sha256_is_hex(hex));
    hex[3] = 'g';
    assert_false(cor_sha256_is_hex(hex));
    hex[3] = '3';
    hex[63] = '\0';
    assert_false(cor_sha256_is_hex(hex));
    memcpy(hex + 63, "ff", 3);
    assert_false(cor_sha256_is_hex(hex));
    assert_false(cor_sha256_is_hex(""));
}

static void seen(void *user, uint64_t done, uint64_t total)
{
    uint64_t *last = user;

    assert_true(done > *last && done <= total);
    *last = done;
}

static void files(void **state)
{
    static uint8_t data[(2 << 20) + 5];
    char path[4096], hex[COR_SHA256_HEX], want[COR_SHA256_HEX];
    uint64_t rng = test_seed(), last = 0;
    long live = cor_alloc_live();
    struct cor_sha256 h;
    struct cor_file *f;

    (void)state;
    snprintf(path, sizeof(path), "%s/data", test_tmp());
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)test_rand(&rng);
    cor_sha256_begin(&h);
    cor_sha256_add(&h, data, sizeof(data));
    cor_sha256_end_hex(&h, want);
    test_write(path, data, sizeof(data));
    test_ok(cor_file_open(&f, path, &err), &err);
    test_ok(cor_sha256_files(&f, 1, hex, seen, &last, &err), &err);
    assert_string_equal(hex, want);
    assert_true(last == sizeof(data));
    for (int io = 0; io < 2; io++) {
        enum vkmoe_status st = VKMOE_ERR_IO;
        long nth;

        for (nth = 1; st != VKMOE_OK; nth++) {
            assert_true(nth < 20);
            (io ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = cor_sha256_files(&f, 1, hex, NULL, NULL, &err);
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
        }
        assert_true(nth > 2); /* something could fail */
    }
    cor_file_close(f);
    assert_int_equal(cor_alloc_live(), live);
    test_write(path, data, 0);
    test_ok(cor_file_open(&f, path, &err), &err);
    test_ok(cor_sha256_files(&f, 1, hex, NULL, NULL, &err), &err);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    cor_file_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_examples),
        cmocka_unit_test(any_pieces),
        cmocka_unit_test(only_digits_are_hex),
        cmocka_unit_test(files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
