/* Files of core/os.h: exact reads, atomic outputs, devices, directories, simulated failures. */
#include "core/thread.h"
#include "support/test.h"

#include <stdio.h>

static struct vkmoe_err err;

static const char *in_dir(const char *dir, const char *name)
{
    static char ring[4][4096];
    static unsigned next;
    char *p = ring[next++ % 4];

    snprintf(p, sizeof(ring[0]), "%s/%s", dir, name);
    return p;
}

static void write_file(const char *path, const char *text)
{
    struct cor_out *o;

    test_ok(cor_out_create(&o, path, &err), &err);
    test_ok(cor_out_write(o, text, strlen(text), &err), &err);
    test_ok(cor_out_commit(o, &err), &err);
}

static size_t count_entries(const char *dir)
{
    char **names;
    size_t n;

    test_ok(cor_dir_list(dir, &names, &n, &err), &err);
    cor_free(names);
    return n;
}

static void assert_content(const char *path, const char *want)
{
    char *data;
    size_t n;

    test_ok(cor_file_slurp(path, 1000, &data, &n, &err), &err);
    assert_int_equal(n, strlen(want));
    assert_memory_equal(data, want, n + 1); /* with its NUL */
    cor_free(data);
}

static void read_exact(void **state)
{
    const char *dir = test_tmp(), *path = in_dir(dir, "a");
    struct cor_file *f;
    char buf[16] = {0};

    (void)state;
    write_file(path, "0123456789");
    test_ok(cor_file_open(&f, path, &err), &err);
    assert_int_equal(cor_file_size(f), 10);
    assert_string_equal(cor_file_path(f), path);
    test_ok(cor_file_read(f, 3, buf, 4, &err), &err);
    assert_string_equal(buf, "3456");
    test_ok(cor_file_read(f, 10, buf, 0, &err), &err);
    assert_int_equal(cor_file_read(f, 7, buf, 4, &err), VKMOE_ERR_IO);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(cor_file_read(f, UINT64_MAX, buf, 2, &err), VKMOE_ERR_IO);
    test_ok(cor_file_unchanged(f, &err), &err);
    cor_file_close(f);
    cor_file_close(NULL);
}

static void changed_file_is_seen(void **state)
{
    const char *path = in_dir(test_tmp(), "a");
    struct cor_file *f;
    FILE *c;

    (void)state;
    write_file(path, "0123456789");
    test_ok(cor_file_open(&f, path, &err), &err);
    c = fopen(path, "ab");
    assert_non_null(c);
    fputs("x", c);
    fclose(c);
    assert_int_equal(cor_file_unchanged(f, &err), VKMOE_ERR_IO);
    assert_non_null(strstr(err.message, "changed"));
    cor_file_close(f);
}

static void wrong_things_are_refused(void **state)
{
    const char *dir = test_tmp();
    struct cor_file *f;
    struct cor_out *o;
    char *data;
    size_t n;

    (void)state;
    assert_int_equal(cor_file_open(&f, dir, &err), VKMOE_ERR_IO);
    assert_non_null(strstr(err.message, "directory"));
    assert_null(f);
    assert_int_equal(cor_file_open(&f, in_dir(dir, "absent"), &err), VKMOE_ERR_IO);
    assert_int_equal(cor_file_slurp(dir, 10, &data, &n, &err), VKMOE_ERR_IO);
    assert_int_equal(cor_out_create(&o, dir, &err), VKMOE_ERR_IO);
    assert_non_null(strstr(err.message, "directory"));
    assert_int_equal(cor_out_create(&o, in_dir(dir, "absent/file"), &err), VKMOE_ERR_IO);
    assert_null(o);
    write_file(in_dir(dir, "plain"), "x");
    assert_int_equal(cor_out_create(&o, in_dir(dir, "plain/file"), &err), VKMOE_ERR_IO);
    assert_int_equal(cor_dir_make(in_dir(dir, "plain"), &err), VKMOE_ERR_IO);
    assert_int_equal(cor_dir_make(in_dir(dir, "plain/deep"), &err), VKMOE_ERR_IO);
    assert_int_equal(count_entries(dir), 1);
    write_file(in_dir(dir, "ten"), "0123456789");
    assert_int_equal(cor_file_slurp(in_dir(dir, "ten"), 9, &data, &n, &err), VKMOE_ERR_LIMIT);
    test_ok(cor_file_slurp(in_dir(dir, "ten"), 10, &data, &n, &err), &err);
    assert_int_equal(n, 10);
    cor_free(data);
}

static void output_appears_whole_or_not_at_all(void **state)
{
    const char *dir = test_tmp(), *path = in_dir(dir, "out");
    struct cor_out *o;

    (void)state;
    write_file(path, "old");
    test_ok(cor_out_create(&o, path, &err), &err);
    test_ok(cor_out_write(o, "0000new", 7, &err), &err);
    test_ok(cor_out_write_at(o, 0, "HEAD", 4, &err), &err);
    test_ok(cor_out_write(o, "er", 2, &err), &err); /* appending goes on where it was */
    assert_int_equal(cor_out_size(o), 9);
    assert_content(path, "old");
    assert_int_equal(count_entries(dir), 2);
    test_ok(cor_out_commit(o, &err), &err);
    assert_content(path, "HEADnewer");
    assert_int_equal(count_entries(dir), 1);
    test_ok(cor_out_create(&o, path, &err), &err);
    test_ok(cor_out_write(o, "half", 4, &err), &err);
    cor_out_discard(o);
    cor_out_discard(NULL);
    assert_content(path, "HEADnewer");
    assert_int_equal(count_entries(dir), 1);
}

static void two_outputs_of_one_name(void **state)
{
    const char *dir = test_tmp(), *path = in_dir(dir, "out");
    struct cor_out *a, *b;

    (void)state;
    test_ok(cor_out_create(&a, path, &err), &err);
    test_ok(cor_out_create(&b, path, &err), &err);
    test_ok(cor_out_write(a, "a", 1, &err), &err);
    test_ok(cor_out_write(b, "b", 1, &err), &err);
    test_ok(cor_out_commit(a, &err), &err);
    test_ok(cor_out_commit(b, &err), &err);
    assert_content(path, "b");
    assert_int_equal(count_entries(dir), 1);
}

/* Two files that appear together: both flushed, then renamed. */
static void flushed_before_it_appears(void **state)
{
    const char *dir = test_tmp(), *path = in_dir(dir, "out");
    struct cor_out *o;

    (void)state;
    for (int commits = 0; commits < 2; commits++) {
        test_ok(cor_out_create(&o, path, &err), &err);
        test_ok(cor_out_write(o, "x", 1, &err), &err);
        cor_os_fail_from(1);
        assert_int_equal(cor_out_flush(o, &err), VKMOE_ERR_IO);
        cor_os_fail_from(0);
        test_ok(cor_out_flush(o, &err), &err);
        assert_false(cor_path_exists(path));
        cor_os_fail_from(1); /* nothing is left to fail */
        if (commits)
            test_ok(cor_out_commit(o, &err), &err);
        else
            cor_out_discard(o);
        cor_os_fail_from(0);
        assert_int_equal(count_entries(dir), commits);
    }
    assert_content(path, "x");
    assert_true(cor_path_same(path, path));
    assert_false(cor_path_same(path, in_dir(dir, "other")));
    test_write(in_dir(dir, "other"), "x", 1);
    assert_false(cor_path_same(path, in_dir(dir, "other")));
    assert_true(cor_path_same(in_dir(dir, "other"), in_dir(dir, "./other")));
    assert_false(cor_path_in_place(path));
    cor_path_remove(path);
    cor_path_remove(path);
    assert_int_equal(count_entries(dir), 1);
}

static void devices(void **state)
{
    struct cor_out *o;

    (void)state;
    if (!cor_path_exists("/dev/full"))
        test_skip("no /dev/full on this system");
    test_ok(cor_out_create(&o, "/dev/full", &err), &err);
    assert_int_equal(cor_out_write(o, "x", 1, &err), VKMOE_ERR_IO); /* a full disk */
    assert_non_null(strstr(err.message, "/dev/full"));
    cor_out_discard(o);
    assert_true(cor_path_exists("/dev/full"));
    test_ok(cor_out_create(&o, "/dev/null", &err), &err);
    test_ok(cor_out_write(o, "x", 1, &err), &err);
    test_ok(cor_out_commit(o, &err), &err);
    assert_true(cor_path_exists("/dev/null"));
    assert_true(cor_path_in_place("/dev/null"));
}

static void directories(void **state)
{
    const char *dir = test_tmp();
    char **names;
    size_t n;

    (void)state;
    test_ok(cor_dir_make(in_dir(dir, "a/b//c/"), &err), &err);
    test_ok(cor_dir_make(in_dir(dir, "a/b/c"), &err), &err);
    assert_true(cor_path_is_dir(in_dir(dir, "a/b/c")));
    write_file(in_dir(dir, "z"), "");
    write_file(in_dir(dir, "m"), "");
    assert_false(cor_path_is_dir(in_dir(dir, "m")));
    test_ok(cor_dir_list(dir, &names, &n, &err), &err);
    assert_int_equal(n, 3);
    assert_string_equal(names[0], "a");
    assert_string_equal(names[1], "m");
    assert_string_equal(names[2], "z");
    cor_free(names);
    assert_int_equal(cor_dir_list(in_dir(dir, "absent"), &names, &n, &err), VKMOE_ERR_IO);
}

/* Writes, reads back and lists; every failure must come back as a status. */
static enum vkmoe_status all_steps(const char *dir)
{
    enum vkmoe_status st = VKMOE_OK;
    const char *path = in_dir(dir, "f");
    struct cor_out *o = NULL, *done;
    struct cor_file *f = NULL;
    char **names = NULL, *data = NULL, buf[4];
    size_t n;

    TRY(cor_out_create(&o, path, &err));
    TRY(cor_out_write(o, "abcd", 4, &err));
    TRY(cor_out_write_at(o, 1, "X", 1, &err));
    done = o;
    o = NULL;
    TRY(cor_out_commit(done, &err));
    TRY(cor_file_open(&f, path, &err));
    TRY(cor_file_read(f, 0, buf, 4, &err));
    TRY(cor_file_slurp(path, 100, &data, &n, &err));
    TRY(cor_dir_list(dir, &names, &n, &err));
    TRY(cor_dir_make(dir, &err));
done:
    cor_out_discard(o);
    cor_file_close(f);
    cor_free(names);
    cor_free(data);
    return st;
}

static void every_failure_leaves_nothing(void **state)
{
    long live = cor_alloc_live(), nth;

    (void)state;
    for (int reads = 0; reads < 2; reads++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (nth = 1; st != VKMOE_OK && nth < 100; nth++) {
            const char *dir = test_tmp();

            (reads ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = all_steps(dir);
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            assert_int_equal(cor_alloc_live(), live);
            assert_true(count_entries(dir) <= 1); /* the finished file at most */
        }
        assert_true(nth > 4 && nth < 100);
    }
}

/* Four threads add up numbers that one lock guards and one condition announces. */
struct adders {
    struct cor_mutex *lock;
    struct cor_cond *changed;
    uint32_t go, sum, finished;
};

static void add_up(void *arg)
{
    struct adders *a = arg;

    cor_mutex_lock(a->lock);
    while (!a->go)
        cor_cond_wait(a->changed, a->lock);
    for (uint32_t i = 0; i < 1000; i++) {
        a->sum++;
        cor_mutex_unlock(a->lock); /* let the others in between */
        cor_mutex_lock(a->lock);
    }
    a->finished++;
    cor_cond_signal(a->changed);
    cor_mutex_unlock(a->lock);
}

static enum vkmoe_status threads_once(uint32_t *sum)
{
    enum vkmoe_status st = VKMOE_OK;
    struct adders a = {0};
    struct cor_thread *t[4] = {0};
    uint32_t n = 0;

    TRY(cor_mutex_create(&a.lock, &err));
    TRY(cor_cond_create(&a.changed, &err));
    for (; n < 4; n++)
        TRY(cor_thread_start(&t[n], add_up, &a, "adding", &err));
done:
    if (n) {
        cor_mutex_lock(a.lock);
        a.go = 1;
        cor_cond_broadcast(a.changed);
        while (a.finished < n)
            cor_cond_wait(a.changed, a.lock);
        cor_mutex_unlock(a.lock);
    }
    for (uint32_t i = 0; i < 4; i++)
        cor_thread_join(t[i]);
    cor_cond_destroy(a.changed);
    cor_mutex_destroy(a.lock);
    *sum = a.sum;
    return st;
}

static void threads(void **state)
{
    const long live = cor_alloc_live();
    enum vkmoe_status st = VKMOE_ERR_MEMORY;
    uint32_t sum = 0;
    uint64_t start;

    (void)state;
    test_ok(threads_once(&sum), &err);
    assert_int_equal(sum, 4000);
    for (long n = 1; st != VKMOE_OK; n++) {
        cor_alloc_fail_from(n);
        st = threads_once(&sum);
        cor_alloc_fail_from(0);
        assert_int_equal(cor_alloc_live(), live);
        assert_true(st == VKMOE_OK || (st == VKMOE_ERR_MEMORY && err.message[0]));
        assert_true(n < 20);
    }
    cor_thread_join(NULL);
    cor_cond_destroy(NULL);
    cor_mutex_destroy(NULL);
    start = cor_now_ns();
    cor_sleep_us(2000);
    assert_true(cor_now_ns() - start >= 2000000);
}

static void places_and_time(void **state)
{
    char buf[4096];
    uint64_t a = cor_now_ns();

    (void)state;
    assert_true(cor_now_ns() >= a);
    cor_program_dir(buf, sizeof(buf));
    assert_true(!buf[0] || cor_path_is_dir(buf));
    cor_program_dir(buf, 2);
    assert_true(strlen(buf) < 2);
    cor_cache_dir(buf, sizeof(buf));
    assert_true(!buf[0] || strstr(buf, "vkmoe"));
    assert_true(cor_process_peak_bytes() > 1000000);
    assert_false(cor_interrupted());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(read_exact),
        cmocka_unit_test(changed_file_is_seen),
        cmocka_unit_test(wrong_things_are_refused),
        cmocka_unit_test(output_appears_whole_or_not_at_all),
        cmocka_unit_test(two_outputs_of_one_name),
        cmocka_unit_test(flushed_before_it_appears),
        cmocka_unit_test(devices),
        cmocka_unit_test(directories),
        cmocka_unit_test(every_failure_leaves_nothing),
        cmocka_unit_test(threads),
        cmocka_unit_test(places_and_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
