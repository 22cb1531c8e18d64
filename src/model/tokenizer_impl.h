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
    MDL_PIECE_MAX = 1 << 20, /* bytes merged at once; longer pieces are cut there (tokenizer.h, mdl_encode) */
    MDL_ENDS_MAX = 32        /* tokens that end a text or a turn */
};

/* ---- pre-tokenizers by name (tokenizer_patterns.c) ---- */

enum { MDL_CUTS_MAX = 6 };

/* One pattern, for PCRE2, that takes time linear in the text. What it matches, and what lies between two
 * matches, are pieces. */
struct mdl_cut {
    const char *pattern; /* NULL behind the last */
    bool thirds;         /* a match is a number, cut in threes of its digits from the right */
};

struct mdl_pre {
    const char *name;           /* as in tokenizer.ggml.pre */
    const struct mdl_cut *cuts; /* at most MDL_CUTS_MAX, each cuts the pieces of the one before */
    bool ignore_merges;         /* a piece that is a token as a whole is taken whole */
    bool add_bos;               /* where the file does not say */
};

const struct mdl_pre *mdl_pre_find(const char *name); /* NULL: unknown */
/* regex: as tokenizer.json writes it; NULL: ByteLevel's own. NULL: unknown. */
const struct mdl_pre *mdl_pre_by_regex(const char *regex, bool ignore_merges);
const char *mdl_pre_names(char *dst, size_t room); /* all names, with commas, cut to room; returns dst */

/* ---- cutting (tokenizer_pre.c) ---- */

struct mdl_splitter;
enum vkmoe_status mdl_splitter_create(struct mdl_splitter **out, const struct mdl_pre *pre,
                                      struct vkmoe_err *err);
void mdl_splitter_destroy(struct mdl_splitter *s);

/* One walk over texts; what makes a splitter, which is read-only, usable for several encodings. */
struct mdl_split_run;
enum vkmoe_status mdl_split_begin(struct mdl_split_run **out, const struct mdl_splitter *s,
                                  struct vkmoe_err *err);
void mdl_split_end(struct mdl_split_run *r);
/* End of the piece that starts at byte `at` (< n) of valid UTF-8. at: 0 at first, then the end before. */
enum vkmoe_status mdl_split_next(struct mdl_split_run *r, const char *text, size_t n, size_t at, size_t *end,
                                 struct vkmoe_err *err);

/* ---- tables (tokenizer.c) ---- */

struct mdl_merge {
    int32_t left, right, id; /* index = rank */
};

struct mdl_tokenizer {
    bool spm;                      /* SentencePiece's merges by score, else byte-level BPE's by rank */
    const struct mdl_pre *pre;     /* BPE */
    struct mdl_splitter *splitter; /* BPE */
    uint32_t n_tokens, used;
    char *bytes;   /* of all tokens, in id order; U+2581 of SPM's normal tokens is a space */
    uint32_t *off; /* n_tokens + 1, into bytes */
    uint8_t *kind; /* n_tokens */
    uint32_t n_merges;
    struct mdl_merge *merges;
    uint32_t *by_pair; /* hash of (left, right): rank + 1, 0: empty */
    uint32_t pair_mask;
    int32_t *by_bytes; /* hash of the bytes of normal tokens: id + 1, 0: empty */
    uint32_t bytes_mask;
    int32_t byte_id[256]; /* -1: none, of bytes that UTF-8 never has */
    float *score;         /* SPM: n_tokens */
    size_t longest;       /* SPM: bytes of the longest normal token */
    bool words;       /* SPM: no normal token has a space behind another character, so words merge alone */
    bool add_space;   /* SPM: a text, and one behind a special token, is encoded with a space before it */
    int32_t unk;      /* SPM: -1: none */
    int32_t *special; /* ids of named tokens, sorted by name */
    uint32_t n_special;
    uint32_t special_at[257]; /* range in special of each first byte */
    int32_t bos;              /* -1: none stands before a text */
    int32_t eos;
    int32_t ends[MDL_ENDS_MAX]; /* that end a text or a turn */
    uint32_t n_ends;
};

/* Rank of the merge of two tokens; false: there is none. */
bool mdl_merge_find(const struct mdl_tokenizer *t, int32_t left, int32_t right, uint32_t *rank);
/* Normal token with exactly these bytes; -1: none. */
int32_t mdl_token_by_bytes(const struct mdl_tokenizer *t, const char *p, size_t n);

/* ---- names (tokenizer_names.c) ---- */

bool mdl_is_end_name(const char *s); /* of a token that ends a text or a turn, whatever the file says of it */
bool mdl_is_turn_mark(const char *s); /* or begins one */

/* ---- encoding (tokenizer_encode.c, _bpe.c, _spm.c) ---- */

/* What is being merged is a linked list of symbols over its bytes; the heap holds candidate pairs by a key
 * (rank or score) and position of the left symbol, which is the order "best first, leftmost among equals".
 * Entries are not removed when a neighbour changes: they are checked when they come up. */
struct mdl_symbol {
    int32_t id;         /* BPE: -1 when merged into the one on its left. SPM: -1 when it is no token */
    int32_t prev, next; /* -1: none */
    uint32_t off, len;  /* SPM: in the text; len 0 when merged into the one on its left */
    int32_t pair;       /* SPM: token that this and the next symbol make, -1: none */
};

struct mdl_encoder {
    const struct mdl_tokenizer *t;
    struct mdl_split_run *run; /* BPE */
    struct mdl_symbol *sym;
    uint64_t *heap;      /* key << 32 | position of the left symbol */
    size_t n_heap, room; /* room: symbols; the heap has twice as many: a merge takes one entry, adds two */
    int32_t *ids;
    size_t n_ids, ids_room;
    char *text;          /* SPM: what is encoded, with its spaces */
    bool behind_special; /* or at the start */
};

enum vkmoe_status mdl_push_id(struct mdl_encoder *e, int32_t id, struct vkmoe_err *err);
enum vkmoe_status mdl_encoder_grow(struct mdl_encoder *e, size_t n, struct vkmoe_err *err);
void mdl_heap_push(struct mdl_encoder *e, uint64_t v);
uint64_t mdl_heap_pop(struct mdl_encoder *e);
void mdl_heap_order(struct mdl_encoder *e); /* what was filled in any order */
/* Text without special tokens, n > 0 bytes. */
enum vkmoe_status mdl_encode_bpe(struct mdl_encoder *e, const char *p, size_t n, struct vkmoe_err *err);
enum vkmoe_status mdl_encode_spm(struct mdl_encoder *e, const char *p, size_t n, struct vkmoe_err *err);

/* Byte that a character of the GPT-2 byte alphabet stands for; -1: not in the alphabet. */
int mdl_alphabet_byte(uint32_t cp);

#endif
