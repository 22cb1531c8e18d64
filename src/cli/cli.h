/* What every subcommand shares: the table of commands, option parsing, error lines, exit status. */
#ifndef CLI_H
#define CLI_H

#include <stdio.h>

#include "core/status.h"
#include "model/quant.h"

enum { CLI_GOOD = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct cli_cmd {
    const char *name;
    const char *summary;  /* one line for `vkmoe --help` */
    const char *synopsis; /* behind "vkmoe NAME " */
    const char *example;  /* whole lines */
    /* argv[0] is the command's name; returns the exit status */
    int (*run)(const struct cli_cmd *cmd, int argc, char **argv);
};

extern const struct cli_cmd cli_devices, cli_convert, cli_quantize, cli_inspect, cli_tokenize, cli_run,
    cli_chat, cli_logits, cli_eval, cli_experts, cli_synth, cli_bench, cli_bench_pool, cli_bench_decode,
    cli_bench_compare, cli_bench_peak, cli_bench_kernels, cli_selftest, cli_tune;
extern const struct cli_cmd cli_experts_rank, cli_experts_merge;
extern const struct cli_cmd cli_experts_carve, cli_experts_merge_back, cli_experts_diff;
extern const struct cli_cmd cli_experts_report, cli_experts_eval;

/* Values of an option that takes several: those behind it up to the next option, and repeats add to them. */
struct cli_strs {
    const char *at[64];
    size_t n;
};

/* dst points to bool, const char *, int64_t, double or struct cli_strs. */
enum cli_kind { CLI_FLAG, CLI_STR, CLI_INT, CLI_FLOAT, CLI_STRS };

struct cli_opt {
    const char *names; /* "-n|--n-predict": every spelling, shown in --help as is */
    enum cli_kind kind;
    void *dst;       /* holds the default before parsing */
    const char *arg; /* name of the value in --help; NULL for flags */
    const char *help;
    double min, max; /* of CLI_INT and CLI_FLOAT; both 0: any */
};

/* Parses argv[1..]. Ends with an entry whose names is NULL. Positional arguments are moved to
 * argv[0..*n_pos-1] (n_pos NULL: none allowed; "-" alone is positional, "--" ends options). --help prints
 * synopsis, options and example. Returns -1 to go on, else the exit status to return at once. */
int cli_parse(const struct cli_cmd *cmd, const struct cli_opt *opts, int argc, char **argv, int *n_pos);

/* For commands that consist of others, named "PARENT CHILD": runs the one that argv[1] names. --help lists
 * them. */
int cli_dispatch(const struct cli_cmd *cmd, const struct cli_cmd *const *children, size_t n, int argc,
                 char **argv);
/* Their part of --help. */
void cli_list_children(const struct cli_cmd *const *children, size_t n);

/* "vkmoe: message" on stderr; returns CLI_USAGE for VKMOE_ERR_ARGUMENT, else CLI_FAILED. */
int cli_error(const struct vkmoe_err *err);
/* One line "vkmoe NAME: ...; try vkmoe NAME --help" on stderr; returns CLI_USAGE. */
int cli_usage(const struct cli_cmd *cmd, const char *fmt, ...) COR_PRINTF(2, 3);
/* Prints text from column `column` on, broken at spaces outside [] to stay within 80 columns, with further
 * lines indented; then a newline. */
void cli_wrap(FILE *to, const char *text, int column, int indent);

/* Warnings and errors of the library to stderr. main installs it; pass it as vkmoe_params.log too. */
void cli_log(void *user, enum vkmoe_log_level level, const char *line);
/* Flushes stdout; false when it could not be written (disk full, reader gone), with a line on stderr the
 * first time. main asks at the end; commands that stream ask after each token and stop. */
bool cli_stdout_good(void);

/* The file of -m, or the bundled model: beside the program, in the build or source tree, or installed. path:
 * 4096 bytes. */
enum vkmoe_status cli_model_path(const char *m, char *path, struct vkmoe_err *err);
/* Another bundled file, in the same places. */
enum vkmoe_status cli_bundled_path(const char *name, char *path, struct vkmoe_err *err);

/* Text of -p, -f FILE or "-" (stdin); *text is cor_free'd by the caller. Exactly one source must be given. */
enum vkmoe_status cli_read_text(const char *p, const char *f, char **text, size_t *n, struct vkmoe_err *err);
/* Name of a block format. false: after a line that lists them all; the status is then CLI_USAGE. */
bool cli_parse_type(const struct cli_cmd *cmd, const char *name, enum mdl_type *type);
/* "1,2,3" to ids; *ids is cor_free'd by the caller. */
enum vkmoe_status cli_parse_ids(const char *list, int32_t **ids, size_t *n, struct vkmoe_err *err);

/* Progress bar with an estimate on a terminal, nothing elsewhere. Fits the progress callbacks; user: struct
 * cli_progress. */
struct cli_progress {
    const char *what;
    uint64_t start_ns, last_ns;
    int width;        /* of the line on the terminal; 0: none */
    const char *unit; /* of done and total; NULL: bytes, shown as MiB */
};
void cli_progress_step(void *user, uint64_t done, uint64_t total);
void cli_progress_end(struct cli_progress *p);

/* String as JSON with quotes to stdout; invalid UTF-8 becomes U+FFFD. */
void cli_json_string(const char *s, size_t n);
/* v with so many digits, "-" below 0, for tables; returns text. */
enum { CLI_NUMBER = 24 };
const char *cli_number(char text[CLI_NUMBER], double v, int digits);

#endif
