/* The tests of llama-bench (pp512, tg128, pp512+tg128, tg128 @ d4096) as data: what is measured, of which
 * model, and what came out. Measured by bench_run.c, printed by bench_out.c. */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include "cli/engine.h"
#include "core/digest.h"

enum { BENCH_LIST = 64 /* values of one option */, BENCH_REPEATS = 99, BENCH_COUNTED = 3 };

struct bench_test {
    uint32_t n_prompt, n_gen; /* tokens fed at once, then one by one; either may be 0 */
    uint32_t n_depth;         /* tokens in the cache before; not timed */
};

/* "pp512+tg128 @ d4096"; returns name. */
enum { BENCH_NAME = 64 };
const char *bench_test_name(char name[BENCH_NAME], const struct bench_test *t);

/* Whole numbers as llama-bench takes them: "512", "0,64,512", "64-512+64", "64-512*2". False: none. */
bool bench_parse_list(const char *text, uint32_t *list, uint32_t *n);

/* What is known of a model file without a device. */
struct bench_model {
    char path[4096];
    char type[96];               /* "deepseek 13.57B Q4_0" */
    uint64_t bytes, params;      /* of all tensors */
    char digest[COR_SHA256_HEX]; /* of the file's size and of pieces all over it */
    uint32_t n_layers;
    uint64_t weight_bytes;    /* that a token reads: all but the embedding's other rows and other experts */
    uint64_t cache_row_elems; /* of keys, and of values, of one position in all layers */
};

enum vkmoe_status bench_model_read(struct bench_model *m, const char *path, struct vkmoe_err *err);

/* Where token ids come from. */
struct bench_text {
    char name[256]; /* "bench.txt", or of the file of -f; "" where ids were given or made up */
    bool bundled, synthetic;
    int32_t *ids; /* n */
    size_t n;
};

/* What one test gave; NAN where a number means nothing or is not known. */
struct bench_row {
    struct bench_test test;
    char time[32]; /* ISO, of the beginning */
    uint32_t n;    /* repeats */
    uint64_t ns[BENCH_REPEATS];
    bool wrapped;                     /* the text was shorter than what was fed */
    double hit_rate, uploaded_bytes;  /* experts; per token */
    double weight_bytes, cache_bytes; /* that a token reads; tests with n_gen and no n_prompt */
};

/* The same for all rows of a command. */
struct bench_head {
    const struct cli_engine *e;
    const char *format;         /* md, csv, json or jsonl */
    const char *pool;           /* as typed; NULL: auto */
    const char *variants;       /* "default", "tuned" or "forced" */
    bool fast_math, read_given; /* the latter: by --peak */
    double read_gbs;            /* measured, through a shader; NAN: not */
    char cpu[128];              /* "": not known */
};

/* Without a subcommand, as struct cli_cmd.run. */
int bench_run(const struct cli_cmd *cmd, int argc, char **argv);

/* What a decoded token costs in commands and bytes: `vkmoe bench --count`. The engine is loaded, and ids are
 * as many as depth and BENCH_COUNTED. format: md or json. */
enum vkmoe_status bench_count(struct cli_engine *e, const struct bench_model *m, const int32_t *ids,
                              uint32_t depth, const char *format, struct vkmoe_err *err);
/* Bytes of weights and cache that the token at this position reads. */
void bench_bytes(const struct cli_engine *e, const struct bench_model *m, double pos, double *weights,
                 double *cache);

/* Rows go out as they come. */
void bench_out_begin(const struct bench_head *h);
void bench_out_row(const struct bench_head *h, const struct bench_model *m, const struct bench_text *t,
                   const struct bench_row *r, bool first);
void bench_out_end(const struct bench_head *h, const struct bench_text *t, bool wrapped);

#endif
