/* vkmoe bench compare: reads results, holds them to one model, the same tests and settings, prints them. */
#include "cli/bench_compare.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/corpus.h"
#include "cli/report.h"
#include "core/alloc.h"
#include "model/gguf.h"
#include "model/json.h"

#define FILE_MAX ((size_t)64 << 20)

enum kind { STRING, WHOLE, TRUTH };

static const struct fact {
    const char *key, *label;
    enum kind kind;
    bool needed;
} facts[COMPARE_FACTS] = {
#define COMPARE_X(name, key, label, kind, needed) [COMPARE_##name] = {key, label, kind, needed},
    COMPARE_SAME(COMPARE_X) COMPARE_TOLD(COMPARE_X)
#undef COMPARE_X
};

/* ---- one row ---- */

/* The value as text. False: absent where it is needed, or of another kind. */
static bool take_fact(const cJSON *o, const struct fact *f, char text[COMPARE_CHARS])
{
    const cJSON *v = mdl_json_get(o, f->key);
    uint64_t u;

    text[0] = '\0';
    if (!v)
        return !f->needed;
    if (f->kind == STRING && cJSON_IsString(v) && strlen(v->valuestring) < COMPARE_CHARS)
        memcpy(text, v->valuestring, strlen(v->valuestring) + 1);
    else if (f->kind == WHOLE && mdl_json_u64(v, UINT64_C(1) << 53, &u))
        snprintf(text, COMPARE_CHARS, "%" PRIu64, u);
    else if (f->kind == TRUTH && cJSON_IsBool(v))
        snprintf(text, COMPARE_CHARS, "%s", cJSON_IsTrue(v) ? "yes" : "no");
    else
        return false;
    return true;
}

static bool take_number(const cJSON *o, const char *key, bool needed, double *out)
{
    const cJSON *v = mdl_json_get(o, key);

    *out = NAN;
    if (!v)
        return !needed;
    if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble) || v->valuedouble < 0 || v->valuedouble > 1e15)
        return false;
    *out = v->valuedouble;
    return true;
}

static bool take_tokens(const cJSON *o, const char *key, uint32_t *out)
{
    uint64_t v;

    if (!mdl_json_u64(mdl_json_get(o, key), 1 << 24, &v))
        return false;
    *out = (uint32_t)v;
    return true;
}

/* Name of the first key whose value will not do; NULL: all are good. */
static const char *take_row(const cJSON *o, struct compare_row *r, double *read_gbs)
{
    if (!take_tokens(o, "n_prompt", &r->test.n_prompt))
        return "n_prompt";
    if (!take_tokens(o, "n_gen", &r->test.n_gen))
        return "n_gen";
    if (!take_tokens(o, "n_depth", &r->test.n_depth))
        return "n_depth";
    if (!r->test.n_prompt && !r->test.n_gen)
        return "n_gen";
    if (!take_number(o, "avg_ts", true, &r->ts))
        return "avg_ts";
    if (!take_number(o, "stddev_ts", true, &r->dev))
        return "stddev_ts";
    if (!take_number(o, "share_of_read", false, &r->share))
        return "share_of_read";
    if (!take_number(o, "gb_per_second", false, &r->gbs))
        return "gb_per_second";
    if (!take_number(o, "hit_rate", false, &r->hits))
        return "hit_rate";
    if (!take_number(o, "bytes_per_token", false, &r->bytes))
        return "bytes_per_token";
    return take_number(o, "read_gb_per_second", false, read_gbs) ? NULL : "read_gb_per_second";
}

/* ---- differences ---- */

/* A failure, or with --force a line to be shown. */
static enum vkmoe_status differ(struct compare *c, const char *where, const char *label, const char *got,
                                const char *want, const char *other, struct vkmoe_err *err)
{
    char a[MDL_SHOW_BYTES], b[MDL_SHOW_BYTES];

    mdl_show(a, got, strlen(got));
    mdl_show(b, want, strlen(want));
    if (!c->force)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "%s: %s is '%s', not '%s' as in %s; --force compares all the same", where, label, a,
                        b, other);
    if (c->n_differences < COMPARE_DIFFERENCES)
        snprintf(c->differences[c->n_differences], sizeof(c->differences[0]),
                 "%.200s: %s is '%s', not '%s' as in %.200s", where, label, a, b, other);
    c->n_differences++;
    return VKMOE_OK;
}

static bool same_test(const struct bench_test *a, const struct bench_test *b)
{
    return a->n_prompt == b->n_prompt && a->n_gen == b->n_gen && a->n_depth == b->n_depth;
}

const struct compare_row *compare_find(const struct compare_file *f, const struct bench_test *t)
{
    for (uint32_t i = 0; i < f->n_rows; i++)
        if (same_test(&f->rows[i].test, t))
            return &f->rows[i];
    return NULL;
}

/* ---- one file ---- */

struct reading {
    struct compare *c;
    struct compare_file *f;
};

static enum vkmoe_status add_row(void *user, const cJSON *o, size_t line, const char *where,
                                 struct vkmoe_err *err)
{
    struct compare_file *f = ((struct reading *)user)->f;
    struct compare *c = ((struct reading *)user)->c;
    char text[COMPARE_CHARS], name[BENCH_NAME];
    enum vkmoe_status st = VKMOE_OK;
    struct compare_row r;
    double read_gbs;
    const char *bad;

    (void)line;
    if (f->n_rows == COMPARE_ROWS)
        FAIL(VKMOE_ERR_LIMIT, "%s: more than %d rows", where, COMPARE_ROWS);
    if ((bad = take_row(o, &r, &read_gbs)) != NULL)
        FAIL(VKMOE_ERR_FORMAT, "%s: \"%s\" is not as `vkmoe bench -o json` writes it", where, bad);
    for (int i = 0; i < COMPARE_FACTS; i++) {
        if (!take_fact(o, &facts[i], text))
            FAIL(VKMOE_ERR_FORMAT, "%s: \"%s\" is not as `vkmoe bench -o json` writes it", where,
                 facts[i].key);
        if (!f->n_rows)
            memcpy(f->facts[i], text, sizeof(text));
        else if ((i < COMPARE_N_SAME || i == COMPARE_DEVICE) && strcmp(f->facts[i], text))
            TRY(differ(c, where, facts[i].label, text, f->facts[i], "its first row", err));
    }
    if (!f->n_rows)
        f->read_gbs = read_gbs;
    if (compare_find(f, &r.test)) {
        TRY(differ(c, where, "the test", bench_test_name(name, &r.test), "another", "a row before it", err));
        goto done;
    }
    f->rows[f->n_rows++] = r;
done:
    return st;
}

/* mdl_json_parse takes objects only: the array becomes the value of one. */
static enum vkmoe_status read_array(struct reading *r, const char *text, size_t n, struct vkmoe_err *err)
{
    static const char before[] = "{\"rows\":", after[] = "}";
    const size_t n_before = sizeof(before) - 1;
    char *whole = cor_alloc(n_before + n + sizeof(after)), where[4200];
    enum vkmoe_status st = VKMOE_OK;
    cJSON *o = NULL, *item;
    const cJSON *rows;
    size_t i = 0;

    if (!whole)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %zu bytes", r->f->path, n);
    memcpy(whole, before, n_before);
    memcpy(whole + n_before, text, n);
    memcpy(whole + n_before + n, after, sizeof(after));
    TRY(mdl_json_parse(&o, whole, n_before + n + 1, r->f->path, err));
    rows = mdl_json_get(o, "rows");
    if (!cJSON_IsArray(rows))
        FAIL(VKMOE_ERR_FORMAT, "%s: not an array of results", r->f->path);
    cJSON_ArrayForEach(item, rows)
    {
        snprintf(where, sizeof(where), "%s: result %zu", r->f->path, ++i);
        if (!cJSON_IsObject(item))
            FAIL(VKMOE_ERR_FORMAT, "%s: not an object", where);
        TRY(add_row(r, item, i, where, err));
    }
done:
    cJSON_Delete(o);
    cor_free(whole);
    return st;
}

static enum vkmoe_status read_file(struct compare *c, const char *path, struct vkmoe_err *err)
{
    struct compare_file *f = &c->files[c->n_files++];
    struct reading r = {.c = c, .f = f};
    enum vkmoe_status st = VKMOE_OK;
    cJSON **lines = NULL;
    size_t n, n_lines = 0;
    char *text = NULL;

    f->path = path;
    f->read_gbs = NAN;
    f->rows = cor_array(COMPARE_ROWS, sizeof(*f->rows));
    if (!f->rows)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for its rows", path);
    TRY(cor_file_slurp(path, FILE_MAX, &text, &n, err));
    if (text[strspn(text, " \t\r\n")] == '[')
        TRY(read_array(&r, text, n, err));
    else
        TRY(cli_json_lines(&lines, &n_lines, text, n, path, add_row, &r, err));
    if (!f->n_rows)
        FAIL(VKMOE_ERR_FORMAT, "%s: no results in it", path);
done:
    for (size_t i = 0; i < n_lines; i++)
        cJSON_Delete(lines[i]);
    cor_free(lines);
    cor_free(text);
    return st;
}

/* ---- all files ---- */

static void add_tests(struct compare *c, const struct compare_file *f)
{
    for (uint32_t i = 0; i < f->n_rows; i++) {
        uint32_t k = 0;

        while (k < c->n_tests && !same_test(&c->tests[k], &f->rows[i].test))
            k++;
        if (k == c->n_tests && k < COMPARE_ROWS)
            c->tests[c->n_tests++] = f->rows[i].test;
    }
}

static void name_files(struct compare *c)
{
    for (uint32_t i = 0; i < c->n_files; i++) {
        struct compare_file *f = &c->files[i];
        uint32_t same = 0;

        for (uint32_t k = 0; k < c->n_files; k++)
            same += !strcmp(c->files[k].facts[COMPARE_DEVICE], f->facts[COMPARE_DEVICE]);
        if (same > 1)
            snprintf(f->name, sizeof(f->name), "%s, %.200s", f->facts[COMPARE_DEVICE],
                     cor_path_base(f->path));
        else
            snprintf(f->name, sizeof(f->name), "%s", f->facts[COMPARE_DEVICE]);
    }
}

static enum vkmoe_status check_same(struct compare *c, struct vkmoe_err *err)
{
    const struct compare_file *first = &c->files[0];
    enum vkmoe_status st = VKMOE_OK;
    char name[BENCH_NAME];

    for (uint32_t i = 1; i < c->n_files; i++)
        for (int k = 0; k < COMPARE_N_SAME; k++)
            if (strcmp(c->files[i].facts[k], first->facts[k]))
                TRY(differ(c, c->files[i].path, facts[k].label, c->files[i].facts[k], first->facts[k],
                           first->path, err));
    for (uint32_t i = 0; i < c->n_files; i++)
        for (uint32_t k = 0; k < c->n_tests; k++)
            if (!compare_find(&c->files[i], &c->tests[k]))
                TRY(differ(c, c->files[i].path, "a test", "missing", bench_test_name(name, &c->tests[k]),
                           compare_find(first, &c->tests[k]) ? first->path : "another file", err));
done:
    return st;
}

/* ---- Markdown ---- */

/* Text of a file in a cell: no bar ends it, and nothing is markup. */
static void cell(const char *s)
{
    char text[MDL_SHOW_BYTES];

    mdl_show(text, s, strlen(s));
    printf(" ");
    for (const char *p = text; *p; p++) {
        if (strchr("|<>`*_[]&\\", *p))
            putchar('\\');
        putchar(*p);
    }
    printf(" |");
}

static void rule(uint32_t n)
{
    printf("\n|---|");
    for (uint32_t i = 0; i < n; i++)
        printf("--:|");
    putchar('\n');
}

static void print_devices(const struct compare *c)
{
    char t[CLI_NUMBER];

    printf("| |");
    for (uint32_t i = 0; i < c->n_files; i++)
        cell(c->files[i].name);
    rule(c->n_files);
    for (int k = COMPARE_DRIVER; k < COMPARE_FACTS; k++) {
        printf("| %s |", facts[k].label);
        for (uint32_t i = 0; i < c->n_files; i++)
            cell(c->files[i].facts[k][0] ? c->files[i].facts[k] : "-");
        putchar('\n');
    }
    printf("| a shader reads, GB/s |");
    for (uint32_t i = 0; i < c->n_files; i++)
        printf(" %s |", cli_number(t, isfinite(c->files[i].read_gbs) ? c->files[i].read_gbs : -1, 1));
    printf("\n| file |");
    for (uint32_t i = 0; i < c->n_files; i++)
        cell(c->files[i].path);
    printf("\n\n");
}

/* "12.34 ± 0.05 (1.23 x, 45.6 %)": of the first file's speed, of the device's bandwidth. */
static void print_result(const struct compare_row *r, const struct compare_row *first)
{
    if (!r) {
        printf(" - |");
        return;
    }
    printf(" %.2f ± %.2f", r->ts, r->dev);
    if (first && first != r && first->ts > 0)
        printf(", %.2f x", r->ts / first->ts);
    if (isfinite(r->share))
        printf(", %.1f %%", 100 * r->share);
    printf(" |");
}

static void print_md(const struct compare *c)
{
    char name[BENCH_NAME];

    printf("%s: tokens per second", c->files[0].facts[COMPARE_TYPE]);
    printf(", times the first device's, share of the read bandwidth\n\n");
    if (c->n_differences)
        printf("Compared by force. What differs:\n\n");
    for (uint32_t i = 0; i < c->n_differences && i < COMPARE_DIFFERENCES; i++)
        printf("- %s\n", c->differences[i]);
    if (c->n_differences > COMPARE_DIFFERENCES)
        printf("- and %" PRIu32 " more\n", c->n_differences - COMPARE_DIFFERENCES);
    if (c->n_differences)
        putchar('\n');
    print_devices(c);
    printf("| test |");
    for (uint32_t i = 0; i < c->n_files; i++)
        cell(c->files[i].name);
    rule(c->n_files);
    for (uint32_t k = 0; k < c->n_tests; k++) {
        const struct compare_row *first = compare_find(&c->files[0], &c->tests[k]);

        printf("| %s |", bench_test_name(name, &c->tests[k]));
        for (uint32_t i = 0; i < c->n_files; i++)
            print_result(compare_find(&c->files[i], &c->tests[k]), first);
        putchar('\n');
    }
}

/* ---- the command ---- */

static enum vkmoe_status print_page(const struct compare *c, struct vkmoe_err *err)
{
    const struct cli_template parts = {cli_compare_html, cli_compare_css, NULL};
    struct cli_page data = {0}, page = {0};
    enum vkmoe_status st = VKMOE_OK;

    compare_page(&data, c);
    cli_page_fill(&page, &parts, &data);
    if (page.failed)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the page");
    fwrite(page.p, 1, page.n, stdout);
done:
    cli_page_free(&data);
    cli_page_free(&page);
    return st;
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    struct compare *c = cor_zalloc(sizeof(*c));
    const char *format = "md";
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    bool force = false;
    const struct cli_opt opts[] = {
        {"-o|--output", CLI_STR, &format, "FORMAT", "md (default) or html: one page, without network", 0, 0},
        {"--force", CLI_FLAG, &force, NULL, "compare different models, tests or settings, and say so", 0, 0},
        {0},
    };
    int n = 0, status = cli_parse(cmd, opts, argc, argv, &n);

    if (status < 0 && n < 2)
        status = cli_usage(cmd, "give at least two files of `vkmoe bench -o json`");
    else if (status < 0 && n > COMPARE_MOST)
        status = cli_usage(cmd, "at most %d files at a time", COMPARE_MOST);
    else if (status < 0 && strcmp(format, "md") && strcmp(format, "html"))
        status = cli_usage(cmd, "-o takes md or html, not '%s'", format);
    if (status >= 0 || !c) {
        cor_free(c);
        return status >= 0 ? status : CLI_FAILED;
    }
    c->force = force;
    for (int i = 0; i < n; i++)
        TRY(read_file(c, argv[i], &err));
    for (uint32_t i = 0; i < c->n_files; i++)
        add_tests(c, &c->files[i]);
    name_files(c);
    TRY(check_same(c, &err));
    if (!strcmp(format, "html"))
        TRY(print_page(c, &err));
    else
        print_md(c);
done:
    for (uint32_t i = 0; i < c->n_files; i++)
        cor_free(c->files[i].rows);
    cor_free(c);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(&err);
}

const struct cli_cmd cli_bench_compare = {
    .name = "bench compare",
    .summary = "results of several devices side by side: speed, ratio to the first, share of the bandwidth, "
               "driver versions; different models, tests or settings are refused",
    .synopsis = "A.json B.json... [-o md|html] [--force]",
    .example = "  vkmoe bench compare laptop.json desktop.json\n"
               "  vkmoe bench compare a.json b.json c.json -o html > devices.html\n",
    .run = run,
};
