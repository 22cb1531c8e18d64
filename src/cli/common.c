/* What subcommands share beside options: error lines, standard output, the bundled model, input text,
 * progress, JSON. Knows files and terminals; no model and no device. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "core/alloc.h"
#include "core/os.h"
#include "core/utf8.h"

#define BUNDLED_MODEL "emo-nano.gguf"
#define TEXT_MAX      ((size_t)1 << 30) /* bytes; past it a prompt or a text to score is a mistake */
#define PATH_BYTES    4096              /* as cli.h promises */

int cli_error(const struct vkmoe_err *err)
{
    fprintf(stderr, "vkmoe: %s\n", err->message);
    return err->status == VKMOE_ERR_ARGUMENT ? CLI_USAGE : CLI_FAILED;
}

void cli_log(void *user, enum vkmoe_log_level level, const char *line)
{
    (void)user;
    if (level >= VKMOE_LOG_WARN)
        fprintf(stderr, "vkmoe: %s%s\n", level == VKMOE_LOG_WARN ? "warning: " : "", line);
}

bool cli_stdout_good(void)
{
    static bool told;

    errno = 0;
    if (!fflush(stdout) && !ferror(stdout))
        return true;
    /* A reader that closed its end (`vkmoe run | head`) has what it wanted: no line. */
    if (!told && errno != EPIPE)
        fprintf(stderr, "vkmoe: standard output: %s\n", errno ? strerror(errno) : "write failed");
    told = true;
    return false;
}

/* ---- the bundled model
 * -------------------------------------------------------------------------------------- */

enum vkmoe_status cli_bundled_path(const char *name, char *path, struct vkmoe_err *err)
{
    /* Places relative to the program come first, so that a moved tree or installation finds its own files. */
    static const char *const beside[] = {"", "/models", "/../models", "/../share/vkmoe/models"};
    static const char *const fixed[] = {VKMOE_INSTALL_MODELS, VKMOE_SOURCE_MODELS};
    char dir[PATH_BYTES - 64];

    cor_program_dir(dir, sizeof(dir));
    for (size_t i = 0; dir[0] && i < COR_COUNT(beside); i++) {
        snprintf(path, PATH_BYTES, "%s%s/%s", dir, beside[i], name);
        if (cor_path_exists(path))
            return VKMOE_OK;
    }
    for (size_t i = 0; i < COR_COUNT(fixed); i++) {
        snprintf(path, PATH_BYTES, "%s/%s", fixed[i], name);
        if (cor_path_exists(path))
            return VKMOE_OK;
    }
    path[0] = '\0';
    return cor_fail(err, VKMOE_ERR_IO, "the bundled file %s was not found beside the program or in %s", name,
                    VKMOE_INSTALL_MODELS);
}

enum vkmoe_status cli_model_path(const char *m, char *path, struct vkmoe_err *err)
{
    path[0] = '\0';
    if (m) {
        if (strlen(m) >= PATH_BYTES)
            return cor_fail(err, VKMOE_ERR_ARGUMENT, "-m: a path of %zu bytes is too long", strlen(m));
        memcpy(path, m, strlen(m) + 1);
        return VKMOE_OK;
    }
    if (cli_bundled_path(BUNDLED_MODEL, path, NULL) == VKMOE_OK)
        return VKMOE_OK;
    return cor_fail(err, VKMOE_ERR_IO,
                    "the bundled model %s was not found beside the program or in %s; give one with -m",
                    BUNDLED_MODEL, VKMOE_INSTALL_MODELS);
}

/* ---- input
 * -------------------------------------------------------------------------------------------------- */

enum vkmoe_status cli_read_text(const char *p, const char *f, char **text, size_t *n, struct vkmoe_err *err)
{
    *text = NULL;
    *n = 0;
    if (p && f)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "text is given twice, by -p and by %s",
                        strcmp(f, "-") ? "-f" : "-");
    if (!p && !f)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "no text: give -p TEXT, -f FILE or - for standard input");
    if (f)
        return strcmp(f, "-") ? cor_file_slurp(f, TEXT_MAX, text, n, err)
                              : cor_stdin_slurp(TEXT_MAX, text, n, err);
    *text = cor_strdup(p);
    if (!*text)
        return cor_fail(err, VKMOE_ERR_MEMORY, "-p: no memory for %zu bytes", strlen(p));
    *n = strlen(p);
    return VKMOE_OK;
}

bool cli_parse_type(const struct cli_cmd *cmd, const char *name, enum mdl_type *type)
{
    const struct mdl_type_info *info = mdl_type_by_name(name);
    char names[192] = "";
    size_t used = 0;

    if (info) {
        *type = info->type;
        return true;
    }
#define MDL_X(id, value, known, elems, bytes, file)                                                  \
    used += (size_t)snprintf(names + used, used < sizeof(names) ? sizeof(names) - used : 0, "%s%s", \
                             used ? ", " : "", known);
    MDL_TYPE_LIST(MDL_X)
#undef MDL_X
    cli_usage(cmd, "--type '%s' is not one of %s", name, names);
    return false;
}

enum vkmoe_status cli_parse_ids(const char *list, int32_t **ids, size_t *n, struct vkmoe_err *err)
{
    size_t count = 1, used = 0;
    const char *c = list;
    int32_t *out;

    *ids = NULL;
    *n = 0;
    for (const char *s = list; *s; s++)
        count += *s == ',';
    out = cor_array(count, sizeof(*out));
    if (!out)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu token ids", count);
    while (used < count) {
        char *end = NULL;
        long long v;

        errno = 0;
        v = strtoll(c, &end, 10);
        if (end == c || errno || v < 0 || v > INT32_MAX || (*end && *end != ',')) {
            cor_free(out);
            return cor_fail(err, VKMOE_ERR_ARGUMENT,
                            "token id %zu of the list is not a number from 0 to %d: '%.20s'", used + 1,
                            INT32_MAX, c);
        }
        out[used++] = (int32_t)v;
        c = end + (*end == ',');
    }
    *ids = out;
    *n = used;
    return VKMOE_OK;
}

/* ---- progress
 * ----------------------------------------------------------------------------------------------- */

#define BAR 24 /* characters */

void cli_progress_step(void *user, uint64_t done, uint64_t total)
{
    struct cli_progress *p = user;
    uint64_t now = cor_now_ns();
    double part, seconds;
    char bar[BAR + 1], left[32] = "", size[48];
    int n;

    if (!p->start_ns)
        p->start_ns = p->last_ns = now;
    if (!total || now - p->last_ns < 100000000 || !cor_is_tty(2)) /* ten times a second is enough */
        return;
    p->last_ns = now;
    part = done < total ? (double)done / (double)total : 1;
    seconds = (double)(now - p->start_ns) / 1e9;
    for (int i = 0; i < BAR; i++)
        bar[i] = i < part * BAR ? '#' : '.';
    bar[BAR] = '\0';
    if (part > 0.01 && seconds > 1)
        snprintf(left, sizeof(left), ", %.0f s left", seconds / part * (1 - part));
    if (p->unit)
        snprintf(size, sizeof(size), "%" PRIu64 " %s", total, p->unit);
    else
        snprintf(size, sizeof(size), "%.1f MiB", (double)total / 1048576);
    n = fprintf(stderr, "\r%s %s %3.0f %% of %s%s", p->what, bar, part * 100, size, left) - 1;
    fprintf(stderr, "%*s", p->width > n ? p->width - n : 0, ""); /* covers what the line before was longer */
    fflush(stderr);
    p->width = n;
}

void cli_progress_end(struct cli_progress *p)
{
    if (p->width)
        fprintf(stderr, "\r%*s\r", p->width, "");
    p->width = 0;
    p->start_ns = 0;
}

/* ---- JSON
 * --------------------------------------------------------------------------------------------------- */

void cli_json_string(const char *s, size_t n)
{
    static const char named[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const unsigned char *u = (const unsigned char *)s;

    putchar('"');
    for (size_t i = 0; i < n;) {
        size_t len = cor_utf8_char(s + i, n - i, NULL);
        const char *esc = u[i] ? strchr(named, u[i]) : NULL;

        if (!len) {
            fputs("\xef\xbf\xbd", stdout); /* U+FFFD */
            len = 1;
        } else if (esc) {
            printf("\\%c", letters[esc - named]);
        } else if (u[i] < 0x20 || u[i] == 0x7f) {
            printf("\\u%04x", u[i]);
        } else {
            fwrite(u + i, 1, len, stdout);
        }
        i += len;
    }
    putchar('"');
}

const char *cli_number(char text[CLI_NUMBER], double v, int digits)
{
    if (v < 0)
        snprintf(text, CLI_NUMBER, "-");
    else
        snprintf(text, CLI_NUMBER, "%.*f", digits, v);
    return text;
}
