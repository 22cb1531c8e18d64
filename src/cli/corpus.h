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
/* What to do with the object of a line; where: "FILE: line N". */
typedef enum vkmoe_status (*cli_line_fn)(void *user, const cJSON *o, size_t line, const char *where,
                                         struct vkmoe_err *err);
/* JSON lines: parses text (n bytes and a NUL behind them; lines are ended by NULs), whose empty lines are
 * skipped, and hands over each object. *objects of *n own the strings: cJSON_Delete and cor_free by the
 * caller, after a failure, too. A NUL inside a string is refused: cJSON ends strings there, and the rest
 * would be lost without a word. */
enum vkmoe_status cli_json_lines(cJSON ***objects, size_t *n_objects, char *text, size_t n, const char *file,
                                 cli_line_fn fn, void *user, struct vkmoe_err *err);
void cli_corpus_free(struct cli_corpus *c);

#endif
