#include "support/test.h"

#include <inttypes.h>
#include <stdio.h>

void test_ok(enum vkmoe_status st, const struct vkmoe_err *err)
{
    if (st != VKMOE_OK)
        fail_msg("%s: %s", vkmoe_status_text(st), err ? err->message : "(no message)");
}

static const char *ring_path(const char *base, const char *rel)
{
    static char ring[8][4096];
    static unsigned next;
    char *dst = ring[next++ % 8];

    snprintf(dst, sizeof(ring[0]), "%s/%s", base, rel);
    return dst;
}

const char *test_source(const char *rel)
{
    return ring_path(VKMOE_TEST_SOURCE_DIR, rel);
}

const char *test_shared(const char *rel)
{
    const char *path = ring_path(VKMOE_TEST_SOURCE_DIR "/../shared", rel);

    return cor_path_exists(path) ? path : NULL;
}

void test_skip(const char *why)
{
    const char *ci = getenv("CI");

    if (ci && !strcmp(ci, "true"))
        fail_msg("must not be skipped where CI=true: %s", why);
    test_skip_listed(why);
}

void test_skip_listed(const char *why)
{
    printf("skipped: %s\n", why);
    fflush(stdout);
    skip();
}

void test_write(const char *path, const void *data, size_t n)
{
    FILE *f;

    remove(path); /* truncating in place makes ext4 wait for the disk */
    f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static char tmp_dir[4096];

/* Removes a directory and what is in it; remove() takes files and empty directories. */
static void remove_tree(const char *dir)
{
    char **names = NULL;
    size_t n = 0;

    if (cor_dir_list(dir, &names, &n, NULL) == VKMOE_OK)
        for (size_t i = 0; i < n; i++) {
            char path[8192];

            snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
            if (cor_path_is_dir(path))
                remove_tree(path);
            else
                remove(path);
        }
    cor_free(names);
    remove(dir);
}

static void remove_tmp(void)
{
    cor_alloc_fail_from(0);
    cor_os_fail_from(0);
    if (tmp_dir[0])
        remove_tree(tmp_dir);
}

const char *test_tmp(void)
{
    static bool registered;
    static unsigned serial;
    struct vkmoe_err err;

    if (tmp_dir[0]) /* each call gives an empty directory */
        remove_tree(tmp_dir);
    snprintf(tmp_dir, sizeof(tmp_dir), "%s/tests/tmp/%" PRIx64 "-%u", VKMOE_TEST_BINARY_DIR, cor_now_ns(),
             serial++);
    test_ok(cor_dir_make(tmp_dir, &err), &err);
    if (!registered)
        atexit(remove_tmp);
    registered = true;
    return tmp_dir;
}

/* The value behind --seed on this program's own command line (Linux), else NULL. */
static const char *seed_argument(char **owner)
{
    size_t n = 0, i = 0;

    *owner = NULL;
    if (cor_file_slurp("/proc/self/cmdline", 1 << 16, owner, &n, NULL) != VKMOE_OK)
        return NULL;
    while (i < n) {
        const char *arg = *owner + i;

        i += strlen(arg) + 1;
        if (!strcmp(arg, "--seed") && i < n)
            return *owner + i;
    }
    return NULL;
}

bool test_full(void)
{
    const char *v = getenv("VKMOE_TEST_FULL");

    return v && !strcmp(v, "1");
}

uint64_t test_seed(void)
{
    static uint64_t seed;
    static bool known;

    if (!known) {
        char *owner;
        const char *text = seed_argument(&owner);

        if (!text)
            text = getenv("VKMOE_TEST_SEED");
        seed = text ? strtoull(text, NULL, 0) : 20261122u;
        cor_free(owner);
        known = true;
        printf("seed: %" PRIu64 "\n", seed);
        fflush(stdout);
    }
    return seed;
}

uint64_t test_rand(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double test_rand_unit(uint64_t *state)
{
    return (double)(test_rand(state) >> 11) * 0x1p-53;
}

void test_same_files(const char *a, const char *b)
{
    struct vkmoe_err err = {0};
    char *x, *y;
    size_t n, m;

    test_ok(cor_file_slurp(a, 1 << 20, &x, &n, &err), &err);
    test_ok(cor_file_slurp(b, 1 << 20, &y, &m, &err), &err);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    cor_free(x);
    cor_free(y);
}
