/* A text as documents: cut at a separator, or JSON lines. Owns how files become documents. */
#ifndef CLI_CORPUS_H
#define CLI_CORPUS_H

#include <cjson/cJSON.h>

#include "cli/cli.h"

#define CLI_SEPARATOR "\n<|endoftext|>\n"

struct cli_document { /* bytes inside the text, or a decoded JSON string */
    const char *p;
    size_t n;
};

struct cli_corpus { /* zeroed before loading */
    char *text;
    size_t n_text;
    struct cli_document *docs; /* none is empty */
    size_t n_docs, cap;
    cJSON **lines; /* JSON lines: parsed objects that own the strings */
    size_t n_lines;
};

/* json, or a name that ends with .jsonl: one object a line, the document is its string "text". Errors: no
 * document at all, malformed lines; cli_corpus_free in either case. */
enum vkmoe_status cli_corpus_load(struct cli_corpus *c, const char *file, const char *separator, bool json,
                                  struct vkmoe_err *err);
void cli_corpus_free(struct cli_corpus *c);

/* cJSON ends strings at a NUL, so the text behind \u0000 would be lost without a word. line: n bytes, valid
 * JSON. */
bool cli_json_has_nul(const char *line, size_t n);

#endif
