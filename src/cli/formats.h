/* What convert, quantize and synth have in common: the formats of a file; and writing it. */
#ifndef CLI_FORMATS_H
#define CLI_FORMATS_H

#include "cli/cli.h"
#include "model/recipe.h"

struct cli_formats {
    const char *type, *experts, *dense; /* names; NULL: not given */
    const char *imatrix;                /* file; NULL: not given */
};

/* clang-format off */
#define CLI_FORMAT_OPTIONS(f)                                                                \
    {"--experts-type", CLI_STR, &(f).experts, "TYPE",                                        \
     "another type for the routed experts, of which a token uses few", 0, 0},                \
    {"--dense-type", CLI_STR, &(f).dense, "TYPE",                                            \
     "another type for all other matrices, which every token uses", 0, 0}

/* Of what has weights to quantise. */
#define CLI_IMATRIX_OPTION(f)                                                                \
    {"--imatrix", CLI_STR, &(f).imatrix, "FILE",                                             \
     "how much each column counts, from `experts rank --imatrix-out` or llama.cpp", 0, 0}
/* clang-format on */

/* False: f has a name that is none; usage is told. */
bool cli_parse_formats(const struct cli_cmd *cmd, const struct cli_formats *f, struct mdl_recipe *r);
/* Returns an exit status. what: "converting", for the progress. */
int cli_write_formats(const struct cli_cmd *cmd, const struct cli_formats *f, const char *in, const char *out,
                      const char *what);

#endif
