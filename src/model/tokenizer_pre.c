/* Pre-tokenizers: the regular expressions that cut text into pieces before merging, known by name.
 * Owns all use of PCRE2; knows nothing of tokens. */
#include "model/tokenizer_impl.h"

#include <string.h>

#include "core/alloc.h"
#include "core/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Unicode White_Space, which is what \s means in the original implementations (PCRE2's \s also has U+180E).
 */
#define WS_BUT_NL                                                                                            \
    "\\x09\\x0B\\x0C\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{" \
    "3000}"
#define WS WS_BUT_NL "\\r\\n"
/* The tail of both patterns. The lookahead gives back at most one character. */
#define WS_TAIL "[" WS "]+(?![^" WS "])|[" WS "]++"

/* cl100k: also used by llama 3, which takes whole words from the vocabulary first. */
#define CL100K_REGEX                                                                                         \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
/* `\s*[\r\n]+` ends behind the last line break of a run of white space; the repeated possessive group says
 * the same without trying every shorter run, so that a match costs time linear in its length and no stack. */
#define CL100K_PATTERN                                                                 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}++|\\p{N}{1,3}+| ?[^" WS \
    "\\p{L}\\p{N}]++[\\r\\n]*+|"                                                       \
    "(?:[" WS_BUT_NL "]*+[\\r\\n]++)++|" WS_TAIL
#define GPT2_REGEX   "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}++| ?\\p{N}++| ?[^" WS "\\p{L}\\p{N}]++|" WS_TAIL

/* The first entry that fits a regex gives its name to a converted file. */
static const struct mdl_pre known[] = {
    {"dbrx", CL100K_REGEX, CL100K_PATTERN, false},     {"smaug-bpe", CL100K_REGEX, CL100K_PATTERN, false},
    {"llama-bpe", CL100K_REGEX, CL100K_PATTERN, true}, {"gpt-2", NULL, GPT2_PATTERN, false},
    {"gpt-2", GPT2_REGEX, GPT2_PATTERN, false},
};

const struct mdl_pre *mdl_pre_find(const char *name)
{
    for (size_t i = 0; i < COR_COUNT(known); i++)
        if (!strcmp(known[i].name, name))
            return &known[i];
    return NULL;
}

const struct mdl_pre *mdl_pre_by_regex(const char *regex, bool ignore_merges)
{
    for (size_t i = 0; i < COR_COUNT(known); i++) {
        const char *r = known[i].regex;

        if (known[i].ignore_merges == ignore_merges && (regex && r ? !strcmp(regex, r) : regex == r))
            return &known[i];
    }
    return NULL;
}

struct mdl_splitter {
    pcre2_general_context *memory;
    pcre2_code *code;
};

struct mdl_split_run {
    const struct mdl_splitter *s;
    pcre2_match_context *limits;
    pcre2_match_data *match;
};

static void *pcre_alloc(size_t n, void *user)
{
    (void)user;
    return cor_alloc(n);
}

static void pcre_free(void *p, void *user)
{
    (void)user;
    cor_free(p);
}

enum vkmoe_status mdl_splitter_create(struct mdl_splitter **out, const struct mdl_pre *pre,
                                      struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_splitter *s = cor_zalloc(sizeof(*s));
    int code = 0;
    size_t at = 0;

    *out = NULL;
    if (!s || !(s->memory = pcre2_general_context_create(pcre_alloc, pcre_free, NULL)))
        FAIL(VKMOE_ERR_MEMORY, "tokenizer: no memory for the pre-tokenizer \"%s\"", pre->name);
    pcre2_compile_context *cc = pcre2_compile_context_create(s->memory);
    if (!cc)
        FAIL(VKMOE_ERR_MEMORY, "tokenizer: no memory for the pre-tokenizer \"%s\"", pre->name);
    s->code = pcre2_compile((PCRE2_SPTR)pre->pattern, PCRE2_ZERO_TERMINATED,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_NO_AUTO_CAPTURE, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (!s->code)
        FAIL(code == PCRE2_ERROR_HEAP_FAILED ? VKMOE_ERR_MEMORY : VKMOE_ERR_UNSUPPORTED,
             "tokenizer: PCRE2 refuses the pre-tokenizer \"%s\" at %zu with error %d", pre->name, at, code);
    (void)pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE); /* where it fails, pcre2_match interprets */
    *out = s;
    s = NULL;
done:
    mdl_splitter_destroy(s);
    return st;
}

void mdl_splitter_destroy(struct mdl_splitter *s)
{
    if (!s)
        return;
    pcre2_code_free(s->code);
    pcre2_general_context_free(s->memory);
    cor_free(s);
}

enum vkmoe_status mdl_split_begin(struct mdl_split_run **out, const struct mdl_splitter *s,
                                  struct vkmoe_err *err)
{
    struct mdl_split_run *r = cor_zalloc(sizeof(*r));

    *out = NULL;
    if (r) {
        r->s = s;
        r->limits = pcre2_match_context_create(s->memory);
        r->match = pcre2_match_data_create(1, s->memory);
    }
    if (!r || !r->limits || !r->match) {
        mdl_split_end(r);
        return cor_fail(err, VKMOE_ERR_MEMORY, "tokenizer: no memory for the pre-tokenizer");
    }
    pcre2_set_heap_limit(r->limits, 16 << 10); /* KiB */
    pcre2_set_depth_limit(r->limits, 1 << 16);
    *out = r;
    return VKMOE_OK;
}

void mdl_split_end(struct mdl_split_run *r)
{
    if (!r)
        return;
    pcre2_match_data_free(r->match);
    pcre2_match_context_free(r->limits);
    cor_free(r);
}

enum vkmoe_status mdl_split_next(struct mdl_split_run *r, const char *text, size_t n, size_t at, size_t *end,
                                 struct vkmoe_err *err)
{
    /* The patterns need a few steps per character; more means that one of them backtracks after all. */
    size_t left = n - at, steps = left < (1u << 29) ? 65536 + 4 * left : UINT32_MAX;
    PCRE2_SPTR p = (PCRE2_SPTR)text;

    pcre2_set_match_limit(r->limits, (uint32_t)steps);
    int rc = pcre2_match(r->s->code, p, n, at, PCRE2_NO_UTF_CHECK, r->match, r->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(r->s->code, p, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, r->match, r->limits);
    if (rc == PCRE2_ERROR_NOMEMORY)
        return cor_fail(err, VKMOE_ERR_MEMORY, "tokenizer: no memory to cut the text at byte %zu", at);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "tokenizer: cutting the text at byte %zu failed with PCRE2 error %d", at, rc);
    size_t e = rc < 0 ? at : pcre2_get_ovector_pointer(r->match)[1];

    *end = e > at ? e
                  : at + cor_utf8_char(text + at, left,
                                       NULL); /* what no alternative takes is a piece of its own */
    return VKMOE_OK;
}
