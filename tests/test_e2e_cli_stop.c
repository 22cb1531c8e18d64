/* `vkmoe run` and `vkmoe logits` when something ends them early: Ctrl-C, a closed pipe, a full disk. */
#include <errno.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/cli.h"
#include "support/golden.h"

/* The text so far, a newline, the statistics, and a whole file of logits: exit status 0. */
static void test_interrupt(void **state)
{
    const char *out = cli_path(test_tmp(), "out.npy");
    unsigned n_tokens = 0;
    struct vkmoe_err err = {0};
    struct cli_result r, want;
    struct golden g;
    struct cor_npy rows;
    const char *stopped;
    char *list;
    size_t same;

    (void)state;
    cli_call(&r, &(const struct cli_call){.args = {"run", "--tokens", "4094", "-n", "-1", "--ignore-eos",
                                                   "--temp", "0", "--logits-out", out},
                                          .interrupt_after = 10});
    if (r.status)
        fail_msg("interrupted: status %d: %s", r.status, r.err);
    stopped = strstr(r.err, "\nstopped  interrupted after ");
    assert_non_null(stopped);
    assert_int_equal(sscanf(stopped, "\nstopped  interrupted after %u token", &n_tokens), 1);
    assert_in_range(n_tokens, 1, 1000);
    assert_true(r.n_out >= 10 && r.out[r.n_out - 1] == '\n');
    assert_true(golden_load(&g, "emo-nano", 0));
    list = cli_id_list(g.full.greedy.data, n_tokens < GOLDEN_GREEDY ? n_tokens : GOLDEN_GREEDY);
    cli_good(&want, "tokenize", "--decode", list);
    same = r.n_out - 1 < want.n_out ? r.n_out - 1 : want.n_out;
    assert_memory_equal(r.out, want.out, same);
    if (n_tokens < GOLDEN_GREEDY)
        assert_in_range(r.n_out - want.n_out, 0, 1); /* the newline is the text's own or one more */
    test_ok(cor_npy_read(&rows, out, &err), &err);
    assert_int_equal(rows.dims[0], n_tokens);
    cor_npy_free(&rows);
    cor_free(list);
    golden_free(&g);
    cli_result_free(&want);
    cli_result_free(&r);
}

/* A file that is not whole is no result: exit status 1 and nothing left. */
static void test_interrupted_logits(void **state)
{
    const char *dir = test_tmp();
    int32_t ids[400];
    struct cli_result r;
    char *list;

    (void)state;
    for (size_t i = 0; i < COR_COUNT(ids); i++)
        ids[i] = (int32_t)(i * 7 % 4000);
    list = cli_id_list(ids, COR_COUNT(ids));
    cli_call(&r, &(const struct cli_call){
                     .args = {"logits", "--tokens", list, "--all", "-o", cli_path(dir, "x.npy")},
                     .interrupt_dir = dir});
    cli_check_bad(&r, 1, "interrupted", "logits, interrupted");
    cli_check_empty(dir);
    cor_free(list);
}

static void test_closed_pipe(void **state)
{
    struct cli_result r;

    (void)state;
    cli_call(&r, &(const struct cli_call){
                     .args = {"run", "--tokens", "4094", "-n", "-1", "--ignore-eos", "--temp", "0"},
                     .close_after = 10});
    assert_string_equal(r.err, "");
    assert_int_equal(r.status, 1); /* and it ends soon, not at the end of the context: the time limit tells */
    cli_result_free(&r);
}

static void test_full_disk(void **state)
{
    (void)state;
    cli_bad(1, "/dev/full", "logits", "-p", "In the beginning", "-o", "/dev/full", "-c", "16");
    cli_bad(1, "/dev/full", "run", "-p", "x", "-n", "4", "--logits-out", "/dev/full", "-c", "16", "--json");
    cli_bad_(1, "standard output",
             &(const struct cli_call){.args = {"run", "-p", "x", "-n", "100", "--ignore-eos"},
                                      .out_path = "/dev/full"});
    cli_bad_(1, "standard output",
             &(const struct cli_call){.args = {"run", "-p", "x", "-n", "1", "-c", "8", "--json"},
                                      .out_path = "/dev/full"});
}

/* Whether the directory holds nothing. */
static bool is_empty(const char *dir)
{
    char **names = NULL;
    size_t n = 1;

    cor_dir_list(dir, &names, &n, NULL);
    cor_free(names);
    return !n;
}

/* A disk of two rows of logits. Not by a limit on file sizes as in test_cli: SwiftShader keeps its code in
 * files. */
static void test_small_disk(void **state)
{
    const char *dir = test_tmp(), *disk = cli_path(dir, "disk"), *out = cli_path(disk, "out.npy");
    struct cli_result r, run;
    bool empty;

    (void)state;
    assert_int_equal(mkdir(disk, 0700), 0);
    if (mount("vkmoe-test", disk, "tmpfs", 0, "size=32k")) {
        rmdir(disk);
        printf("skipped: mounting a small disk: %s\n", strerror(errno));
        skip(); /* expected without privileges: tests/skips.txt */
    }
    cli_call(&r, &(const struct cli_call){
                     .args = {"logits", "-p", "In the beginning", "--all", "-o", out, "-c", "16"}});
    empty = is_empty(disk);
    cli_call(&run, &(const struct cli_call){.args = {"run", "-p", "x", "-n", "8", "--logits-out", out, "-c",
                                                     "16", "--ignore-eos"}});
    empty = empty && is_empty(disk);
    umount2(disk, MNT_DETACH);
    rmdir(disk);
    cli_check_bad(&r, 1, "out.npy", "logits to a full disk");
    assert_true(empty);
    assert_int_equal(run.status, 1);
    assert_non_null(strstr(run.err, "out.npy"));
    assert_true(run.n_out > 0 && run.out[run.n_out - 1] == '\n'); /* the text that was streamed until then */
    cli_result_free(&run);
}

static void test_unwritable(void **state)
{
    const char *dir = test_tmp(), *file = cli_path(dir, "file");

    (void)state;
    test_write(file, "x", 1);
    cli_bad(1, "file/x.npy", "run", "-p", "x", "-n", "1", "-c", "8", "--logits-out",
            cli_path(dir, "file/x.npy"));
    cli_bad(1, "none/x.npy", "logits", "-p", "x", "-c", "8", "-o", cli_path(dir, "none/x.npy"));
    cli_bad(1, dir, "logits", "-p", "x", "-c", "8", "-o", dir);
    cli_bad(1, "/proc/x.npy", "logits", "-p", "x", "-c", "8", "-o", "/proc/x.npy");
    assert_int_equal(remove(file), 0);
    cli_check_empty(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_interrupt),   cmocka_unit_test(test_interrupted_logits),
        cmocka_unit_test(test_closed_pipe), cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_small_disk),  cmocka_unit_test(test_unwritable),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
