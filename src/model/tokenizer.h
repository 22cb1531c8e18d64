/* Text to token ids and back: byte-level BPE, and SentencePiece's merges by score. Owns vocabulary, merges or
 * scores, special tokens and the patterns that cut text before merging. */
#ifndef MDL_TOKENIZER_H
#define MDL_TOKENIZER_H

#include "core/status.h"

struct mdl_gguf;
struct mdl_tokenizer;

enum mdl_token_kind {
    MDL_TOKEN_NORMAL = 1,
    MDL_TOKEN_UNKNOWN = 2,
    MDL_TOKEN_CONTROL = 3,
    MDL_TOKEN_USER = 4,
    MDL_TOKEN_UNUSED = 5,
    MDL_TOKEN_BYTE = 6 /* SentencePiece's <0x00> to <0xFF> */
};                     /* GGUF's token_type */

/* What a tokenizer is made of; strings are plain UTF-8, but normal tokens of BPE are in the GPT-2 byte
 * alphabet, and those of SentencePiece have U+2581 for a space. */
struct mdl_tokenizer_spec {
    const char *source; /* file name for messages */
    bool spm;           /* SentencePiece, else BPE */
    const char *pre;    /* BPE: as in tokenizer.ggml.pre, see tokenizer_patterns.c */
    uint32_t n_tokens;  /* ids 0 .. n_tokens - 1 */
    const char *const
        *text;           /* n_tokens, NUL-terminated UTF-8; ids without a string: "" with MDL_TOKEN_UNUSED */
    const uint8_t *kind; /* n_tokens, enum mdl_token_kind */
    uint32_t n_merges;
    const char *const *merges; /* BPE: "left right", by falling priority */
    const float *scores;       /* SPM: n_tokens */
    bool add_space;            /* SPM: a text is encoded with a space before it */
    int32_t unk;               /* SPM: for what has no token, where bytes have none; -1: none */
    bool add_bos;              /* bos stands before a text */
    int32_t bos;               /* with add_bos */
    int32_t eos;               /* -1: none */
    const int32_t *ends;       /* more tokens that end a text, n_ends of them */
    uint32_t n_ends;
};

/* Copies what it needs. Refuses, with the index: a type outside enum mdl_token_kind, empty, overlong,
 * repeated or non-alphabet texts, a missing token for a byte that UTF-8 can have, merges that repeat or name
 * unknown tokens, scores that are no numbers, ids out of range, an unknown pre-tokenizer. A user token whose
 * name is one of the usual marks of a turn is taken for a control token: text must not make it. */
enum vkmoe_status mdl_tokenizer_create(struct mdl_tokenizer **out, const struct mdl_tokenizer_spec *spec,
                                       struct vkmoe_err *err);
/* From tokenizer.ggml.* keys; a pre-tokenizer or model that is not known is refused, never guessed. */
enum vkmoe_status mdl_tokenizer_from_gguf(struct mdl_tokenizer **out, const struct mdl_gguf *g,
                                          struct vkmoe_err *err);
void mdl_tokenizer_close(struct mdl_tokenizer *t);

/* A Hugging Face tokenizer.json, checked down to every token and merge: BPE, byte-level, a pre-tokenizer
 * regex that is known by name, no normalizer, nothing added around the text. Any other shape is refused. The
 * strings in the spec live in *owner; free it with mdl_tokenizer_json_free. n_tokens is vocab_size (ids
 * without a string get unused entries). eos: -1 or an id, as config.json says. Used by the converter. */
struct mdl_tokenizer_json;
enum vkmoe_status mdl_tokenizer_json_load(struct mdl_tokenizer_json **owner, struct mdl_tokenizer_spec *spec,
                                          const char *path, uint32_t vocab_size, int32_t eos,
                                          struct vkmoe_err *err);
void mdl_tokenizer_json_free(struct mdl_tokenizer_json *owner);

/* Text to ids. Any bytes, invalid UTF-8 and NUL included: decode(encode(x)) == x (SentencePiece: U+2581 comes
 * back as a space, and what has no token, not even by bytes, is lost). *ids: cor_free by the caller.
 *
 * The names of user tokens become those tokens, the longest at each position first, and with parse_special
 * those of control tokens, too; without it they are plain text. A byte that is no part of a UTF-8 character
 * is a piece of its own, and the text on either side of it is cut into pieces as if it ended there. Letters,
 * numbers and case are those of the Unicode version of PCRE2. A piece of more than 1 MiB (one "word") is
 * merged in parts of 1 MiB, so that memory stays bounded. Time: linear in the text, times the logarithm of
 * the longest piece. */
enum vkmoe_status mdl_encode(const struct mdl_tokenizer *t, const char *text, size_t n, bool parse_special,
                             int32_t **ids, size_t *n_ids, struct vkmoe_err *err);
/* The same with the token before it that stands before every text, if there is one (mdl_token_bos) and the
 * text does not begin with it. */
enum vkmoe_status mdl_encode_prompt(const struct mdl_tokenizer *t, const char *text, size_t n,
                                    bool parse_special, int32_t **ids, size_t *n_ids, struct vkmoe_err *err);
/* Bytes of a token, owned by the tokenizer; 0 for ids out of range or without a string. Special tokens give
 * their name. */
size_t mdl_token_bytes(const struct mdl_tokenizer *t, int32_t id, const char **bytes);
/* The same without the space that encoding adds at the start of a text and behind special tokens; prev: the
 * token before it, -1 at the start. */
size_t mdl_token_text(const struct mdl_tokenizer *t, int32_t prev, int32_t id, const char **bytes);
int32_t mdl_token_by_name(const struct mdl_tokenizer *t, const char *name); /* a special token; -1: none */
bool mdl_token_is_special(const struct mdl_tokenizer *t,
                          int32_t id); /* control and unknown tokens; user tokens are text */
bool mdl_token_is_end(const struct mdl_tokenizer *t,
                      int32_t id); /* eos and the end-of-turn names the file marks as control */
int32_t mdl_token_bos(const struct mdl_tokenizer *t); /* that stands before every text; -1: none */
int32_t mdl_token_eos(const struct mdl_tokenizer *t);
uint32_t mdl_tokenizer_size(const struct mdl_tokenizer *t);
uint32_t mdl_tokenizer_used(const struct mdl_tokenizer *t);   /* 1 + the last id that has a string */
const char *mdl_tokenizer_pre(const struct mdl_tokenizer *t); /* "llama" for SentencePiece */

#endif
