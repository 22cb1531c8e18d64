/* Cuts text into pieces with the patterns of a pre-tokenizer, one after another: each cuts the pieces of the
 * one before. Owns all use of PCRE2; knows nothing of tokens. */
#include "model/tokenizer_impl.h"

#include "core/alloc.h"
#include "core/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

struct mdl_splitter {
    const struct mdl_pre *pre;
    size_t n_cuts;
    pcre2_general_context *memory;
    pcre2_code *code[MDL_CUTS_MAX];
};

/* The piece that a cut is in: bytes from .. end of the text. */
struct piece {
    size_t from, end;
    size_t thirds_end; /* a number is cut in threes up to here */
};

struct mdl_split_run {
    const struct mdl_splitter *s;
    pcre2_match_context *limits;
    pcre2_match_data *match;
    struct piece piece[MDL_CUTS_MAX];
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

static enum vkmoe_status compile(struct mdl_splitter *s, const char *pattern, struct vkmoe_err *err)
{
    pcre2_compile_context *cc = pcre2_compile_context_create(s->memory);
    int code = 0;
    size_t at = 0;

    if (!cc)
        return cor_fail(err, VKMOE_ERR_MEMORY, "tokenizer: no memory for the pre-tokenizer \"%s\"",
                        s->pre->name);
    s->code[s->n_cuts] = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                       PCRE2_UTF | PCRE2_UCP | PCRE2_NO_AUTO_CAPTURE, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (!s->code[s->n_cuts])
        return cor_fail(err, code == PCRE2_ERROR_HEAP_FAILED ? VKMOE_ERR_MEMORY : VKMOE_ERR_UNSUPPORTED,
                        "tokenizer: PCRE2 refuses the pre-tokenizer \"%s\" at %zu with error %d",
                        s->pre->name, at, code);
    /* Where it fails, pcre2_match interprets. */
    (void)pcre2_jit_compile(s->code[s->n_cuts], PCRE2_JIT_COMPLETE);
    s->n_cuts++;
    return VKMOE_OK;
}

enum vkmoe_status mdl_splitter_create(struct mdl_splitter **out, const struct mdl_pre *pre,
                                      struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_splitter *s = cor_zalloc(sizeof(*s));

    *out = NULL;
    if (!s || !(s->memory = pcre2_general_context_create(pcre_alloc, pcre_free, NULL)))
        FAIL(VKMOE_ERR_MEMORY, "tokenizer: no memory for the pre-tokenizer \"%s\"", pre->name);
    s->pre = pre;
    for (size_t i = 0; pre->cuts[i].pattern; i++)
        TRY(compile(s, pre->cuts[i].pattern, err));
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
    for (size_t i = 0; i < s->n_cuts; i++)
        pcre2_code_free(s->code[i]);
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

/* The first match of a cut in text[at .. n): *from == n when there is none. */
static enum vkmoe_status find(struct mdl_split_run *r, size_t cut, const char *text, size_t n, size_t at,
                              size_t *from, size_t *end, struct vkmoe_err *err)
{
    /* The patterns need a few steps per character; more means that one of them backtracks after all. */
    size_t left = n - at, steps = left < (1u << 25) ? 65536 + 64 * left : UINT32_MAX;
    PCRE2_SPTR p = (PCRE2_SPTR)text;
    const pcre2_code *code = r->s->code[cut];

    pcre2_set_match_limit(r->limits, (uint32_t)steps);
    int rc = pcre2_match(code, p, n, at, PCRE2_NO_UTF_CHECK, r->match, r->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(code, p, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, r->match, r->limits);
    if (rc == PCRE2_ERROR_NOMEMORY)
        return cor_fail(err, VKMOE_ERR_MEMORY, "tokenizer: no memory to cut the text at byte %zu", at);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "tokenizer: cutting the text at byte %zu failed with PCRE2 error %d", at, rc);
    *from = *end = n;
    if (rc >= 0) {
        const size_t *span = pcre2_get_ovector_pointer(r->match);

        *from = span[0];
        *end = span[1] > span[0] ? span[1] : n; /* no pattern matches nothing */
    }
    return VKMOE_OK;
}

/* Bytes of the first 1 to 3 characters of a number, so that what is left has a multiple of three. */
static size_t first_third(const char *p, size_t n)
{
    size_t chars = 0, bytes = 0;

    for (size_t i = 0; i < n; i += cor_utf8_char(p + i, n - i, NULL))
        chars++;
    for (size_t k = chars % 3 ? chars % 3 : 3; k && bytes < n; k--)
        bytes += cor_utf8_char(p + bytes, n - bytes, NULL);
    return bytes;
}

/* The piece of a cut that begins at byte `at` of its parent's: a match, or what lies before the next one. */
static enum vkmoe_status next_piece(struct mdl_split_run *r, size_t cut, const char *text,
                                    const struct piece *parent, size_t at, struct vkmoe_err *err)
{
    struct piece *p = &r->piece[cut];
    const char *sub = text + parent->from; /* lookarounds see nothing of other pieces */
    size_t n = parent->end - parent->from, from = 0, end = 0;
    bool thirds = r->s->pre->cuts[cut].thirds;

    p->from = at;
    if (thirds && at < p->thirds_end) {
        p->end = at;
        for (int k = 0; k < 3 && p->end < p->thirds_end; k++)
            p->end += cor_utf8_char(text + p->end, p->thirds_end - p->end, NULL);
        return VKMOE_OK;
    }
    enum vkmoe_status st = find(r, cut, sub, n, at - parent->from, &from, &end, err);
    if (st)
        return st;
    if (from > at - parent->from)
        p->end = parent->from + from;
    else if (thirds) {
        p->thirds_end = parent->from + end;
        p->end = at + first_third(text + at, p->thirds_end - at);
    } else
        p->end = parent->from + end;
    return VKMOE_OK;
}

enum vkmoe_status mdl_split_next(struct mdl_split_run *r, const char *text, size_t n, size_t at, size_t *end,
                                 struct vkmoe_err *err)
{
    struct piece whole = {.end = n};
    const struct piece *parent = &whole;

    for (size_t i = 0; i < r->s->n_cuts; i++) {
        struct piece *p = &r->piece[i];

        if (!at) /* another text */
            p->end = p->thirds_end = 0;
        if (at >= p->end) {
            enum vkmoe_status st = next_piece(r, i, text, parent, at, err);

            if (st)
                return st;
        }
        parent = p;
    }
    *end = parent->end;
    return VKMOE_OK;
}
