/* What the tokenizer's files share: the loaded tables and the pre-tokenizer. Private to
 * src/model/tokenizer*.c. */
#ifndef MDL_TOKENIZER_IMPL_H
#define MDL_TOKENIZER_IMPL_H

#include "model/tokenizer.h"

enum {
    MDL_TOKENS_MAX = 1 << 24,      /* tokens, and merges, of one file */
    MDL_TOKEN_TEXT_MAX = 1 << 16,  /* bytes of one token's string */
    MDL_SPECIAL_TEXT_MAX = 512,    /* bytes of a special token's name: bounds the search at each position */
    MDL_TOKENS_TEXT_MAX = 1 << 30, /* bytes of all strings */
    MDL_PIECE_MAX = 1 << 20 /* bytes merged at once; longer pieces are cut there (tokenizer.h, mdl_encode) */
};

/* ---- pre-tokenizer (tokenizer_pre.c) ---- */

struct mdl_pre {
    const char *name;    /* as in tokenizer.ggml.pre */
    const char *regex;   /* as tokenizer.json writes it; NULL: ByteLevel's own */
    const char *pattern; /* the same language for PCRE2, without backtracking */
    bool ignore_merges;  /* a piece that is a token as a whole is taken whole */
};

const struct mdl_pre *mdl_pre_find(const char *name); /* NULL: unknown */
const struct mdl_pre *mdl_pre_by_regex(const char *regex, bool ignore_merges); /* NULL: unknown */

struct mdl_splitter;
enum vkmoe_status mdl_splitter_create(struct mdl_splitter **out, const struct mdl_pre *pre,
                                      struct vkmoe_err *err);
void mdl_splitter_destroy(struct mdl_splitter *s);

/* One walk over texts; what makes a splitter, which is read-only, usable for several encodings. */
struct mdl_split_run;
enum vkmoe_status mdl_split_begin(struct mdl_split_run **out, const struct mdl_splitter *s,
                                  struct vkmoe_err *err);
void mdl_split_end(struct mdl_split_run *r);
/* End of the piece that starts at byte `at` (< n) of valid UTF-8. */
enum vkmoe_status mdl_split_next(struct mdl_split_run *r, const char *text, size_t n, size_t at, size_t *end,
                                 struct vkmoe_err *err);

/* ---- tables (tokenizer.c) ---- */

struct mdl_merge {
    int32_t left, right, id; /* index = rank */
};

struct mdl_tokenizer {
    const struct mdl_pre *pre;
    struct mdl_splitter *splitter;
    uint32_t n_tokens, used;
    char *bytes;   /* of all tokens, in id order */
    uint32_t *off; /* n_tokens + 1, into bytes */
    uint8_t *kind; /* n_tokens */
    uint32_t n_merges;
    struct mdl_merge *merges;
    uint32_t *by_pair; /* hash of (left, right): rank + 1, 0: empty */
    uint32_t pair_mask;
    int32_t *by_bytes; /* hash of the bytes of normal tokens: id + 1, 0: empty */
    uint32_t bytes_mask;
    int32_t byte_id[256];
    int32_t *special; /* ids of named tokens, sorted by name */
    uint32_t n_special;
    uint32_t special_at[257]; /* range in special of each first byte */
    int32_t eos;
};

/* Rank of the merge of two tokens; false: there is none. */
bool mdl_merge_find(const struct mdl_tokenizer *t, int32_t left, int32_t right, uint32_t *rank);
/* Normal token with exactly these bytes; -1: none. */
int32_t mdl_token_by_bytes(const struct mdl_tokenizer *t, const char *p, size_t n);

/* Byte that a character of the GPT-2 byte alphabet stands for; -1: not in the alphabet. */
int mdl_alphabet_byte(uint32_t cp);

#endif
