/* Results of `vkmoe bench -o json|jsonl` of several devices, checked and side by side. Read and printed as
 * Markdown by bench_compare.c, as a page by bench_compare_page.c. */
#ifndef CLI_BENCH_COMPARE_H
#define CLI_BENCH_COMPARE_H

#include "cli/bench.h"
#include "cli/page.h"

enum { COMPARE_MOST = 16, COMPARE_ROWS = 4 * BENCH_LIST, COMPARE_CHARS = 256, COMPARE_DIFFERENCES = 24 };

/* What must be the same in all rows of all files. X(name, key, for people, kind, needed) */
#define COMPARE_SAME(X)                                                  \
    X(TYPE, "model_type", "model", STRING, true)                         \
    X(SIZE, "model_size", "bytes of the model", WHOLE, true)             \
    X(PARAMS, "model_n_params", "parameters", WHOLE, true)               \
    X(DIGEST, "model_digest", "digest of the model file", STRING, false) \
    X(TYPE_K, "type_k", "key cache", STRING, true)                       \
    X(TYPE_V, "type_v", "value cache", STRING, true)                     \
    X(FAST, "fast_math", "--fast-math", TRUTH, false)                    \
    X(SYNTHETIC, "synthetic", "synthetic tokens", TRUTH, false)          \
    X(TEXT, "text", "text", STRING, false)                               \
    X(POOL, "pool", "expert pool", STRING, false)                        \
    X(EXPERTS, "experts", "experts", STRING, false)                      \
    X(CAPS, "caps", "--caps", STRING, false)

/* What is told of a device. */
#define COMPARE_TOLD(X)                                                  \
    X(DEVICE, "gpu_info", "device", STRING, true)                        \
    X(DRIVER, "driver", "driver", STRING, false)                         \
    X(DRIVER_VERSION, "driver_version", "driver version", STRING, false) \
    X(VARIANTS, "variants", "kernel variants", STRING, false)            \
    X(VERSION, "vkmoe_version", "vkmoe", STRING, false)                  \
    X(BUILD, "build_commit", "build", STRING, false)                     \
    X(TIME, "test_time", "measured", STRING, false)

enum compare_fact {
#define COMPARE_X(name, key, label, kind, needed) COMPARE_##name,
    COMPARE_SAME(COMPARE_X) COMPARE_N_SAME,
    COMPARE_BEFORE_TOLD = COMPARE_N_SAME - 1, /* the next name continues the count */
    COMPARE_TOLD(COMPARE_X)
#undef COMPARE_X
        COMPARE_FACTS
};

/* NAN: not measured. */
struct compare_row {
    struct bench_test test;
    double ts, dev;                 /* tokens per second */
    double share, gbs, hits, bytes; /* of the read bandwidth; GB/s; rate; per token */
};

struct compare_file {
    const char *path;
    char name[2 * COMPARE_CHARS]; /* of the device; with that of the file where devices are the same */
    char facts[COMPARE_FACTS][COMPARE_CHARS]; /* "": not told */
    double read_gbs;
    struct compare_row *rows; /* COMPARE_ROWS */
    uint32_t n_rows;
};

struct compare {
    struct compare_file files[COMPARE_MOST];
    uint32_t n_files;
    struct bench_test tests[COMPARE_ROWS]; /* of all files, in the order of the first */
    uint32_t n_tests;
    bool force;
    char differences[COMPARE_DIFFERENCES][640]; /* with force: what was found to differ */
    uint32_t n_differences;                     /* may be more than are kept */
};

/* The file's row of a test; NULL: it has none. */
const struct compare_row *compare_find(const struct compare_file *f, const struct bench_test *t);
/* What the page says, as HTML, appended. */
void compare_page(struct cli_page *page, const struct compare *c);

#endif
