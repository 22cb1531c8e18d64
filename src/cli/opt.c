/* Option parsing and --help for every subcommand.
 * Owns spelling and ranges of options as they are typed; what they mean is the command's. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

#define HELP_NAMES "-h|--help"

int cli_usage(const struct cli_cmd *cmd, const char *fmt, ...)
{
    char text[384];
    struct vkmoe_err line;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    /* cor_fail keeps it one line, whatever was typed. */
    cor_fail(&line, VKMOE_ERR_ARGUMENT, "%s: %s; try `vkmoe %s --help`", cmd->name, text, cmd->name);
    fprintf(stderr, "vkmoe %s\n", line.message);
    return CLI_USAGE;
}

void cli_wrap(FILE *to, const char *text, int column, int indent)
{
    int spaces = 0;

    while (*text) {
        int n = 0, depth = 0; /* the next word, with [...] as part of one */

        while (text[n] && (text[n] != ' ' || depth > 0)) {
            depth += (text[n] == '[') - (text[n] == ']');
            n++;
        }
        if (spaces && column + spaces + n > 80) {
            fputc('\n', to);
            column = 0;
            spaces = indent;
        }
        fprintf(to, "%*s%.*s", spaces, "", n, text);
        column += spaces + n;
        text += n;
        spaces = (int)strspn(text, " ");
        text += spaces;
    }
    fputc('\n', to);
}

/* True when word (n bytes) is one of the spellings in "-n|--n-predict". */
static bool is_name(const char *names, const char *word, size_t n)
{
    while (*names) {
        size_t len = strcspn(names, "|");

        if (len == n && !memcmp(names, word, n))
            return true;
        names += len + (names[len] == '|');
    }
    return false;
}

static const struct cli_opt *find(const struct cli_opt *opts, const char *word, size_t n)
{
    for (; opts->names; opts++)
        if (is_name(opts->names, word, n))
            return opts;
    return NULL;
}

static void help_line(const char *names, const char *arg, const char *text)
{
    char left[128];
    size_t n = 0;

    for (; *names && n + 3 < sizeof(left); names++) {
        left[n++] = *names == '|' ? ',' : *names;
        if (*names == '|')
            left[n++] = ' ';
    }
    left[n] = '\0';
    if (arg)
        snprintf(left + n, sizeof(left) - n, " %s", arg);
    if (strlen(left) > 26)
        printf("  %s\n%30s", left, "");
    else
        printf("  %-26s  ", left);
    cli_wrap(stdout, text, 30, 30);
}

static int print_help(const struct cli_cmd *cmd, const struct cli_opt *opts)
{
    const int indent = printf("usage: vkmoe %s ", cmd->name);

    cli_wrap(stdout, cmd->synopsis, indent, indent);
    putchar('\n');
    cli_wrap(stdout, cmd->summary, 0, 0);
    printf("\noptions:\n");
    for (; opts->names; opts++)
        help_line(opts->names, opts->kind == CLI_FLAG ? NULL : opts->arg, opts->help);
    help_line(HELP_NAMES, NULL, "show this text");
    printf("\nexample:\n%s%s", cmd->example,
           *cmd->example && cmd->example[strlen(cmd->example) - 1] == '\n' ? "" : "\n");
    return CLI_GOOD;
}

static int bad_range(const struct cli_cmd *cmd, const struct cli_opt *o, const char *value)
{
    const char *what = o->kind == CLI_INT ? "a whole number" : "a number";

    if (o->min == 0 && o->max == 0)
        return cli_usage(cmd, "%s takes %s, not '%s'", o->names, what, value);
    if (o->max >= 1e15) /* in effect no upper limit */
        return cli_usage(cmd, "%s takes %s of at least %.15g, not '%s'", o->names, what, o->min, value);
    return cli_usage(cmd, "%s takes %s from %.15g to %.15g, not '%s'", o->names, what, o->min, o->max, value);
}

/* Stores one value. Returns -1 when good, else the exit status. */
static int store(const struct cli_cmd *cmd, const struct cli_opt *o, const char *value)
{
    bool any = o->min == 0 && o->max == 0;
    char *end = NULL;

    errno = 0;
    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)o->dst = true;
        break;
    case CLI_STR:
        *(const char **)o->dst = value;
        break;
    case CLI_STRS: {
        struct cli_strs *list = o->dst;

        if (list->n == COR_COUNT(list->at))
            return cli_usage(cmd, "%s takes at most %zu values", o->names, COR_COUNT(list->at));
        list->at[list->n++] = value;
        break;
    }
    case CLI_INT: {
        long long v = strtoll(value, &end, 10);

        if (end == value || *end || errno || (!any && ((double)v < o->min || (double)v > o->max)))
            return bad_range(cmd, o, value);
        *(int64_t *)o->dst = v;
        break;
    }
    case CLI_FLOAT: {
        double v = strtod(value, &end);

        /* ERANGE of a tiny number is fine: it is as good as zero. */
        if (end == value || *end || !isfinite(v) || (!any && (v < o->min || v > o->max)))
            return bad_range(cmd, o, value);
        *(double *)o->dst = v;
        break;
    }
    }
    return -1;
}

/* One option at argv[*i]; moves *i past its value. Returns -1 when good, else the exit status. */
static int take(const struct cli_cmd *cmd, const struct cli_opt *opts, int argc, char **argv, int *i)
{
    const char *word = argv[*i];
    size_t n = strlen(word);
    const char *value = word[1] == '-' ? strchr(word, '=') : NULL;
    const struct cli_opt *o;

    if (value)
        n = (size_t)(value++ - word);
    o = find(opts, word, n);
    if (!o)
        return is_name(HELP_NAMES, word, n) ? print_help(cmd, opts)
                                            : cli_usage(cmd, "unknown option '%s'", word);
    if (o->kind == CLI_FLAG) {
        if (value)
            return cli_usage(cmd, "%.*s takes no value", (int)n, word);
    } else if (!value) {
        if (*i + 1 >= argc)
            return cli_usage(cmd, "%s needs %s", word, o->arg ? o->arg : "a value");
        value = argv[++*i];
    }
    if (o->kind == CLI_STRS) {
        int status = store(cmd, o, value);

        while (status < 0 && *i + 1 < argc && (argv[*i + 1][0] != '-' || !argv[*i + 1][1]))
            status = store(cmd, o, argv[++*i]);
        return status;
    }
    return store(cmd, o, value);
}

int cli_parse(const struct cli_cmd *cmd, const struct cli_opt *opts, int argc, char **argv, int *n_pos)
{
    int n = 0;
    bool options = true;

    for (int i = 1; i < argc; i++) {
        if (options && !strcmp(argv[i], "--")) {
            options = false;
        } else if (options && argv[i][0] == '-' && argv[i][1]) {
            int st = take(cmd, opts, argc, argv, &i);

            if (st >= 0)
                return st;
        } else if (!n_pos) {
            return cli_usage(cmd, "'%s' is not expected", argv[i]);
        } else {
            argv[n++] = argv[i]; /* n < i: never overwrites what is still to be read */
        }
    }
    if (n_pos)
        *n_pos = n;
    return -1;
}

/* ---- commands of commands
 * --------------------------------------------------------------------------------------- */

static const char *child_name(const struct cli_cmd *child)
{
    return strchr(child->name, ' ') + 1;
}

void cli_list_children(const struct cli_cmd *const *children, size_t n)
{
    printf("\nsubcommands:\n");
    for (size_t i = 0; i < n; i++) {
        printf("  %-12s  ", child_name(children[i]));
        cli_wrap(stdout, children[i]->summary, 16, 16);
    }
}

int cli_dispatch(const struct cli_cmd *cmd, const struct cli_cmd *const *children, size_t n, int argc,
                 char **argv)
{
    const struct cli_opt none[] = {{NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0}};
    int status;

    for (size_t i = 0; i < n && argc > 1; i++)
        if (!strcmp(child_name(children[i]), argv[1]))
            return children[i]->run(children[i], argc - 1, argv + 1);
    if (argc > 1 && argv[1][0] != '-')
        return cli_usage(cmd, "no subcommand '%s'", argv[1]);
    if ((status = cli_parse(cmd, none, argc, argv, NULL)) != CLI_GOOD)
        return status >= 0 ? status : cli_usage(cmd, "no subcommand named");
    cli_list_children(children, n);
    return CLI_GOOD;
}
