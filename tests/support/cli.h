/* The built program, run as a user runs it: arguments, input, and what comes out, within a time limit. Also
 * what the tests of the program ask of every result. POSIX only. */
#ifndef TEST_CLI_H
#define TEST_CLI_H

#include <cjson/cJSON.h>

#include "core/npy.h"
#include "support/test.h"

#define CLI_MAX_ARGS 24

enum cli_terminal {
    CLI_TERMINAL_NONE,
    CLI_TERMINAL_ERR,  /* standard error is a terminal of 80 columns */
    CLI_TERMINAL_BOTH, /* standard output, too: all of it is in the result's err */
};

struct cli_call {
    const char *args[CLI_MAX_ARGS]; /* behind the program's name, up to NULL */
    const char *input;              /* standard input, at most 60000 bytes; NULL: empty */
    const char *out_path;           /* where standard output goes, as /dev/full; NULL: into the result */
    const char *env[3];             /* NAME=VALUE */
    size_t interrupt_after;         /* SIGINT once so many bytes of standard output have come; 0: never */
    const char *interrupt_dir;      /* SIGINT once this directory holds a file; NULL: never */
    size_t close_after;             /* the reader goes away after so many bytes; 0: never */
    enum cli_terminal terminal;
    size_t file_limit; /* bytes a file may grow to, as on a disk that fills up; 0: any */
};

struct cli_result {
    int status;      /* exit status; 1000 + signal when one ended the program */
    char *out, *err; /* NUL behind each */
    size_t n_out, n_err;
};

/* Runs the program to its end; fails the test when it takes more than two minutes. */
void cli_call(struct cli_result *r, const struct cli_call *c);
void cli_result_free(struct cli_result *r);

/* Runs the program; the test fails unless it ends with status 0. */
#define cli_good(r, ...) cli_good_(r, &(const struct cli_call){.args = {__VA_ARGS__}})
void cli_good_(struct cli_result *r, const struct cli_call *c);
/* Runs the program; the test fails unless it ends with `status`, nothing on standard output, and one line on
 * standard error that begins with "vkmoe" and holds `word` (NULL: any). */
#define cli_bad(status, word, ...) cli_bad_(status, word, &(const struct cli_call){.args = {__VA_ARGS__}})
void cli_bad_(int status, const char *word, const struct cli_call *c);
/* The same demands on a result that is there; frees it. said: what was run, for messages. */
void cli_check_bad(struct cli_result *r, int status, const char *word, const char *said);

/* One JSON object, and nothing but a newline behind it; cJSON_Delete by the caller. */
cJSON *cli_json(const struct cli_result *r);
/* Member of an object, or the test fails. */
const cJSON *cli_get(const cJSON *object, const char *key);
/* Whole numbers of an array; *n of them, cor_free by the caller. */
int32_t *cli_ids(const cJSON *array, size_t *n);
/* Ids as "1,2,3"; cor_free by the caller. */
char *cli_id_list(const int32_t *ids, size_t n);

/* dir/name in a static ring of buffers. */
const char *cli_path(const char *dir, const char *name);
/* Fails the test when the directory holds anything. */
void cli_check_empty(const char *dir);

#endif
