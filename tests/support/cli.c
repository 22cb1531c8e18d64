#define _XOPEN_SOURCE 700 /* pseudo-terminals */
#include "support/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIMIT_S     120
#define LIMIT_EMU_S 1200  /* under an emulator */
#define SANITIZER   99    /* exit status of a program that a sanitizer ended */
#define INPUT_MAX   60000 /* fits any pipe, so that it can be written before the program reads */

/* One place for pipeline and driver caches of all runs: software drivers compile slowly. */
#define CACHE VKMOE_TEST_BINARY_DIR "/test-cache/home"

/* ---- the program's side: between fork and exec
 * ------------------------------------------------------------------ */

/* Adds to a list of options in the environment, so that reports are told from the program's own failures. */
static void add_option(const char *name, const char *option)
{
    const char *old = getenv(name);
    char text[1024];

    snprintf(text, sizeof(text), "%s%s%s", old ? old : "", old && *old ? ":" : "", option);
    setenv(name, text, 1);
}

static void set_environment(const struct cli_call *c)
{
    char option[32];

    snprintf(option, sizeof(option), "exitcode=%d", SANITIZER);
    add_option("ASAN_OPTIONS", option);
    add_option("UBSAN_OPTIONS", option);
    setenv("XDG_CACHE_HOME", CACHE, 1);
    setenv("TERM", "xterm", 1);
    for (size_t i = 0; i < COR_COUNT(c->env) && c->env[i]; i++) {
        char name[64];
        const char *eq = strchr(c->env[i], '=');

        snprintf(name, sizeof(name), "%.*s", (int)(eq - c->env[i]), c->env[i]);
        setenv(name, eq + 1, 1);
    }
}

/* fds[0]: what is written to the terminal is read here; fds[1]: the program's end. */
static void open_terminal(int fds[2])
{
    const struct winsize size = {.ws_row = 24, .ws_col = 80};

    fds[0] = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(fds[0] >= 0 && !grantpt(fds[0]) && !unlockpt(fds[0]));
    fds[1] = open(ptsname(fds[0]), O_RDWR | O_NOCTTY);
    assert_true(fds[1] >= 0 && !ioctl(fds[1], TIOCSWINSZ, &size));
}

static void become(const struct cli_call *c, const int fds[3])
{
    static const char program[] = VKMOE_TEST_BINARY_DIR "/vkmoe";
    const char *wrapper = getenv("VKMOE_TEST_WRAPPER"); /* an emulator */
    char *argv[CLI_MAX_ARGS + 3];
    size_t n = 0;

    for (int i = 0; i < 3; i++)
        dup2(fds[i], i);
    for (int fd = 3; fd < 64; fd++)
        close(fd);
    signal(SIGINT, SIG_DFL); /* a shell's background job would ignore it */
    signal(SIGPIPE, SIG_DFL);
    if (c->file_limit) {
        const struct rlimit most = {c->file_limit, c->file_limit};

        signal(SIGXFSZ, SIG_IGN); /* a write past the limit then fails as on a full disk */
        setrlimit(RLIMIT_FSIZE, &most);
    }
    set_environment(c);
    if (wrapper && *wrapper)
        argv[n++] = (char *)wrapper;
    argv[n++] = (char *)program;
    for (size_t i = 0; i < CLI_MAX_ARGS && c->args[i]; i++)
        argv[n++] = (char *)c->args[i];
    argv[n] = NULL;
    if (wrapper && *wrapper)
        execvp(argv[0], argv);
    else
        execv(argv[0], argv);
    _exit(127);
}

/* ---- our side
 * --------------------------------------------------------------------------------------------------- */

struct stream {
    int fd; /* -1: at its end */
    char *data;
    size_t n, cap;
};

static void grow(struct stream *s, size_t more)
{
    if (s->cap - s->n <= more) {
        size_t cap = 2 * s->cap + more + 1;
        char *p = cor_resize(s->data, cap, 1);

        assert_non_null(p);
        s->data = p;
        s->cap = cap;
    }
    s->data[s->n] = '\0';
}

static void take(struct stream *s)
{
    ssize_t got;

    grow(s, 65536);
    do
        got = read(s->fd, s->data + s->n, 65536);
    while (got < 0 && errno == EINTR);
    if (got <= 0) {
        close(s->fd);
        s->fd = -1;
        got = 0;
    }
    s->n += (size_t)got;
    s->data[s->n] = '\0';
}

static bool holds_file(const char *dir)
{
    char **names = NULL;
    size_t n = 0;

    cor_dir_list(dir, &names, &n, NULL);
    cor_free(names);
    return n > 0;
}

/* Reads both streams to their ends; false when the time is over. */
static bool follow(struct stream s[2], const struct cli_call *c, pid_t pid)
{
    const char *wrapper = getenv("VKMOE_TEST_WRAPPER");
    const uint64_t end = cor_now_ns() + (wrapper && *wrapper ? LIMIT_EMU_S : LIMIT_S) * 1000000000ull;
    bool told = !c->interrupt_after && !c->interrupt_dir;

    while (s[0].fd >= 0 || s[1].fd >= 0) {
        struct pollfd p[2] = {{s[0].fd, POLLIN, 0}, {s[1].fd, POLLIN, 0}};

        if (cor_now_ns() > end)
            return false;
        if (poll(p, 2, told ? 1000 : 5) > 0)
            for (int i = 0; i < 2; i++)
                if (p[i].revents)
                    take(&s[i]);
        if (!told && ((c->interrupt_after && s[0].n >= c->interrupt_after) ||
                      (c->interrupt_dir && holds_file(c->interrupt_dir)))) {
            kill(pid, SIGINT);
            told = true;
        }
        if (c->close_after && s[0].n >= c->close_after && s[0].fd >= 0) {
            close(s[0].fd);
            s[0].fd = -1;
        }
    }
    return true;
}

void cli_call(struct cli_result *r, const struct cli_call *c)
{
    size_t n_input = c->input ? strlen(c->input) : 0;
    int in[2], out[2], err[2], status = 0;
    struct stream s[2] = {{0}};
    bool in_time;
    pid_t pid;

    assert_true(n_input <= INPUT_MAX);
    cor_dir_make(CACHE, NULL); /* Mesa complains where it is missing */
    assert_true(!pipe(in) && !pipe(out));
    if (c->terminal)
        open_terminal(err);
    else
        assert_true(!pipe(err));
    fflush(stdout);
    pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        const int to = c->out_path                        ? open(c->out_path, O_WRONLY)
                       : c->terminal == CLI_TERMINAL_BOTH ? err[1]
                                                          : out[1];

        become(c, (const int[3]){in[0], to, err[1]});
    }
    assert_int_equal(write(in[1], c->input ? c->input : "", n_input), n_input); /* in[0] is open here, too */
    close(in[0]);
    close(in[1]);
    close(out[1]);
    close(err[1]);
    s[0].fd = out[0];
    s[1].fd = err[0];
    grow(&s[0], 1);
    grow(&s[1], 1);
    in_time = follow(s, c, pid);
    if (!in_time)
        kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    *r = (struct cli_result){.status = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status),
                             .out = s[0].data,
                             .err = s[1].data,
                             .n_out = s[0].n,
                             .n_err = s[1].n};
    if (!in_time)
        fail_msg("vkmoe %s ... did not end in time; it said: %s", c->args[0], r->err);
    if (r->status == SANITIZER || r->status == 127)
        fail_msg("vkmoe %s ... ended with status %d: %s", c->args[0], r->status, r->err);
}

void cli_result_free(struct cli_result *r)
{
    cor_free(r->out);
    cor_free(r->err);
    memset(r, 0, sizeof(*r));
}

/* ---- what is asked of results
 * ----------------------------------------------------------------------------------- */

/* "vkmoe run -p x", in a static buffer. */
static const char *said(const struct cli_call *c)
{
    static char text[512];
    size_t n = (size_t)snprintf(text, sizeof(text), "vkmoe");

    for (size_t i = 0; i < CLI_MAX_ARGS && c->args[i] && n < sizeof(text); i++)
        n += (size_t)snprintf(text + n, sizeof(text) - n, " %s", c->args[i]);
    return text;
}

void cli_good_(struct cli_result *r, const struct cli_call *c)
{
    cli_call(r, c);
    if (r->status)
        fail_msg("%s: status %d: %s", said(c), r->status, r->err);
}

void cli_check_bad(struct cli_result *r, int status, const char *word, const char *what)
{
    size_t lines = 0;

    for (size_t i = 0; i < r->n_err; i++)
        lines += r->err[i] == '\n';
    if (r->status != status)
        fail_msg("%s: status %d, not %d: %s", what, r->status, status, r->err);
    if (r->n_out)
        fail_msg("%s: a failure wrote to standard output: %s", what, r->out);
    if (lines != 1 || r->err[r->n_err - 1] != '\n' || strncmp(r->err, "vkmoe", 5))
        fail_msg("%s: not one line of error: %s", what, r->err);
    if (word && !strstr(r->err, word))
        fail_msg("%s: no '%s' in: %s", what, word, r->err);
    cli_result_free(r);
}

void cli_bad_(int status, const char *word, const struct cli_call *c)
{
    struct cli_result r;

    cli_call(&r, c);
    cli_check_bad(&r, status, word, said(c));
}

cJSON *cli_json(const struct cli_result *r)
{
    const char *end = NULL;
    cJSON *o = cJSON_ParseWithOpts(r->out, &end, false);

    if (!cJSON_IsObject(o) || strcmp(end, "\n") || strlen(r->out) != r->n_out)
        fail_msg("not one JSON object and a newline: %.300s", r->out);
    return o;
}

const cJSON *cli_get(const cJSON *object, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!v)
        fail_msg("no key \"%s\"", key);
    return v;
}

int32_t *cli_ids(const cJSON *array, size_t *n)
{
    int32_t *ids;
    const cJSON *v;

    assert_true(cJSON_IsArray(array));
    ids = cor_array((size_t)cJSON_GetArraySize(array) + 1, sizeof(*ids));
    assert_non_null(ids);
    *n = 0;
    cJSON_ArrayForEach(v, array)
    {
        assert_true(cJSON_IsNumber(v) && v->valuedouble == v->valueint);
        ids[(*n)++] = v->valueint;
    }
    return ids;
}

char *cli_id_list(const int32_t *ids, size_t n)
{
    size_t cap = 12 * n + 1, at = 0;
    char *text = cor_zalloc(cap);

    assert_non_null(text);
    for (size_t i = 0; i < n; i++)
        at += (size_t)snprintf(text + at, cap - at, "%s%d", i ? "," : "", (int)ids[i]);
    return text;
}

/* ---- files
 * ------------------------------------------------------------------------------------------------------ */

const char *cli_path(const char *dir, const char *name)
{
    static char ring[8][4096];
    static unsigned next;
    char *dst = ring[next++ % 8];

    snprintf(dst, sizeof(ring[0]), "%s/%s", dir, name);
    return dst;
}

void cli_check_empty(const char *dir)
{
    struct vkmoe_err err;
    char **names;
    size_t n;

    test_ok(cor_dir_list(dir, &names, &n, &err), &err);
    if (n)
        fail_msg("left behind: %s", names[0]);
    cor_free(names);
}
