/* The tables of a tokenizer: checked construction and look-ups. Encoding is in tokenizer_encode.c, the ways
 * to get a specification in tokenizer_gguf.c and tokenizer_json.c. */
#include "model/tokenizer_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/utf8.h"

int mdl_alphabet_byte(uint32_t cp)
{
    /* Printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100 and up. */
    if ((cp >= 33 && cp <= 126) || (cp >= 161 && cp <= 172) || (cp >= 174 && cp <= 255))
        return (int)cp;
    if (cp < 256 || cp > 256 + 67)
        return -1;
    cp -= 256;
    return cp < 33 ? (int)cp : cp < 67 ? (int)cp - 33 + 127 : 173;
}

static uint32_t hash_bytes(const char *p, size_t n)
{
    uint64_t h = 0xCBF29CE484222325u; /* FNV-1a */

    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)p[i]) * 0x100000001B3u;
    return (uint32_t)(h ^ h >> 32);
}

static uint32_t hash_pair(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;

    h = (h ^ h >> 29) * 0xBF58476D1CE4E5B9u;
    return (uint32_t)(h >> 32);
}

/* Power of two with at most half of the slots used by n. */
static uint32_t hash_slots(uint32_t n)
{
    uint32_t s = 16;

    while (s / 2 < n)
        s *= 2;
    return s;
}

static size_t token_size(const struct mdl_tokenizer *t, int32_t id)
{
    return t->off[id + 1] - t->off[id];
}

/* Slot of these bytes, or the empty slot where they belong. */
static uint32_t bytes_slot(const struct mdl_tokenizer *t, const char *p, size_t n)
{
    uint32_t i = hash_bytes(p, n) & t->bytes_mask;

    for (; t->by_bytes[i]; i = (i + 1) & t->bytes_mask) {
        int32_t id = t->by_bytes[i] - 1;

        if (token_size(t, id) == n && !memcmp(t->bytes + t->off[id], p, n))
            break;
    }
    return i;
}

int32_t mdl_token_by_bytes(const struct mdl_tokenizer *t, const char *p, size_t n)
{
    return t->by_bytes[bytes_slot(t, p, n)] - 1;
}

static uint32_t pair_slot(const struct mdl_tokenizer *t, int32_t left, int32_t right)
{
    uint32_t i = hash_pair(left, right) & t->pair_mask;

    for (; t->by_pair[i]; i = (i + 1) & t->pair_mask) {
        const struct mdl_merge *m = &t->merges[t->by_pair[i] - 1];

        if (m->left == left && m->right == right)
            break;
    }
    return i;
}

bool mdl_merge_find(const struct mdl_tokenizer *t, int32_t left, int32_t right, uint32_t *rank)
{
    uint32_t r = t->by_pair[pair_slot(t, left, right)];

    *rank = r - 1;
    return r != 0;
}

/* Alphabet text to bytes; false when a character is not in the alphabet. dst holds at least n bytes. */
static bool from_alphabet(const char *p, size_t n, char *dst, size_t *n_dst)
{
    size_t k = 0;

    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        size_t len = cor_utf8_char(p + i, n - i, &cp);
        int b = len ? mdl_alphabet_byte(cp) : -1;

        if (b < 0)
            return false;
        dst[k++] = (char)b;
        i += len;
    }
    *n_dst = k;
    return true;
}

static bool is_utf8(const char *p, size_t n)
{
    for (size_t i = 0, len; i < n; i += len)
        if (!(len = cor_utf8_char(p + i, n - i, NULL)))
            return false;
    return true;
}

static bool is_named(uint8_t kind)
{
    return kind == MDL_TOKEN_CONTROL || kind == MDL_TOKEN_USER || kind == MDL_TOKEN_UNKNOWN;
}

/* Length of a string of the specification; past max it is refused before anything is read further. */
static size_t bounded_length(const char *s, size_t max)
{
    const char *end = memchr(s, 0, max + 1);

    return end ? (size_t)(end - s) : max + 1;
}

static enum vkmoe_status check_spec(const struct mdl_tokenizer_spec *s, struct vkmoe_err *err)
{
    uint64_t total = 0;

    if (!s->n_tokens || s->n_tokens > MDL_TOKENS_MAX)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: tokenizer has %u tokens, must be 1 to %u", s->source,
                        s->n_tokens, (unsigned)MDL_TOKENS_MAX);
    if (s->n_merges > MDL_TOKENS_MAX)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: tokenizer has %u merges, at most %u", s->source,
                        s->n_merges, (unsigned)MDL_TOKENS_MAX);
    if (s->eos < -1 || s->eos >= (int64_t)s->n_tokens)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: end token %d is not one of the %u tokens", s->source,
                        (int)s->eos, s->n_tokens);
    if (s->add_bos && (s->bos < 0 || s->bos >= (int64_t)s->n_tokens))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: begin token %d is not one of the %u tokens", s->source,
                        (int)s->bos, s->n_tokens);
    if (s->spm && (s->unk < -1 || s->unk >= (int64_t)s->n_tokens))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: unknown token %d is not one of the %u tokens", s->source,
                        (int)s->unk, s->n_tokens);
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        uint8_t k = s->kind[i];
        size_t max = is_named(k) ? MDL_SPECIAL_TEXT_MAX : MDL_TOKEN_TEXT_MAX;

        if (k != MDL_TOKEN_NORMAL && k != MDL_TOKEN_UNUSED && !is_named(k) &&
            !(s->spm && k == MDL_TOKEN_BYTE))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: token %u has unknown type %u", s->source, i, k);
        if (k == MDL_TOKEN_UNUSED)
            continue;
        size_t n = bounded_length(s->text[i], max);
        if (!n || n > max)
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: token %u has %s bytes, must be 1 to %zu", s->source,
                            i, n ? "more" : "no", max);
        total += n;
    }
    if (total > MDL_TOKENS_TEXT_MAX)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: tokens have %llu bytes, at most %u", s->source,
                        (unsigned long long)total, (unsigned)MDL_TOKENS_TEXT_MAX);
    return VKMOE_OK;
}

/* Adds a normal token, whose bytes are in place, to those that can be made by merging. */
static enum vkmoe_status index_token(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s, uint32_t i,
                                     size_t n, struct vkmoe_err *err)
{
    const char *p = t->bytes + t->off[i];
    uint32_t slot = bytes_slot(t, p, n);

    if (t->by_bytes[slot])
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: tokens %d and %u have the same text", s->source,
                        (int)t->by_bytes[slot] - 1, i);
    t->by_bytes[slot] = (int32_t)i + 1;
    t->off[i + 1] = (uint32_t)(t->off[i] + n); /* bytes_slot reads it from the next token on */
    t->longest = n > t->longest ? n : t->longest;
    for (size_t k = 1; k < n; k++)
        t->words &= p[k] != ' ' || p[k - 1] == ' ';
    return VKMOE_OK;
}

/* U+2581 to spaces; false where there are spaces already: no text is cut so that it makes such a token. */
static bool from_spm(const char *p, size_t n, char *dst, size_t *n_dst)
{
    size_t k = 0;

    for (size_t i = 0; i < n; i++) {
        bool space = n - i >= 3 && !memcmp(p + i, "\xE2\x96\x81", 3);

        dst[k++] = space ? ' ' : p[i];
        i += space ? 2 : 0;
    }
    *n_dst = k;
    return !memchr(p, ' ', n);
}

static enum vkmoe_status load_byte(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s, uint32_t i,
                                   struct vkmoe_err *err)
{
    static const char hex[] = "0123456789ABCDEF";
    const char *p = s->text[i];
    const char *hi = strlen(p) == 6 ? memchr(hex, p[3], 16) : NULL, *lo = hi ? memchr(hex, p[4], 16) : NULL;

    if (!lo || strncmp(p, "<0x", 3) || p[5] != '>')
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: byte token %u is not written as <0x00> to <0xFF>",
                        s->source, i);
    int32_t *id = &t->byte_id[(hi - hex) * 16 + (lo - hex)];
    if (*id >= 0)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: tokens %d and %u are of the same byte", s->source,
                        (int)*id, i);
    *id = (int32_t)i;
    t->bytes[t->off[i]] = (char)((hi - hex) * 16 + (lo - hex));
    return VKMOE_OK;
}

/* Puts the bytes of token i at t->off[i]; *n: how many. */
static enum vkmoe_status load_token(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s, uint32_t i,
                                    size_t *n, struct vkmoe_err *err)
{
    uint8_t kind = t->kind[i];
    char *dst = t->bytes + t->off[i];
    const char *text = s->text[i];

    *n = kind == MDL_TOKEN_UNUSED ? 0 : strlen(text);
    if (!*n)
        return VKMOE_OK;
    if (!t->spm && kind == MDL_TOKEN_NORMAL) {
        if (!from_alphabet(text, *n, dst, n))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: token %u is not UTF-8 in the byte alphabet",
                            s->source, i);
        return index_token(t, s, i, *n, err);
    }
    if (!is_utf8(text, *n))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: token %u is not UTF-8", s->source, i);
    if (kind == MDL_TOKEN_NORMAL)
        return from_spm(text, *n, dst, n) ? index_token(t, s, i, *n, err) : VKMOE_OK;
    if (kind == MDL_TOKEN_BYTE) {
        *n = 1;
        return load_byte(t, s, i, err);
    }
    memcpy(dst, text, *n);
    t->n_special++;
    if (kind == MDL_TOKEN_USER && mdl_is_turn_mark(text))
        t->kind[i] = MDL_TOKEN_CONTROL;
    return VKMOE_OK;
}

/* Some vocabularies (DeepSeek's first ones) lack these. */
static bool never_in_utf8(int b)
{
    return b == 0xC0 || b == 0xC1 || b >= 0xF5;
}

static enum vkmoe_status load_tokens(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    size_t total = 0, n;

    for (uint32_t i = 0; i < s->n_tokens; i++)
        total += s->kind[i] == MDL_TOKEN_UNUSED ? 0 : strlen(s->text[i]);
    t->n_tokens = s->n_tokens;
    t->bytes_mask = hash_slots(s->n_tokens) - 1;
    t->bytes = cor_alloc(total); /* no text is shorter than its bytes */
    t->off = cor_array((size_t)s->n_tokens + 1, sizeof(*t->off));
    t->kind = cor_alloc(s->n_tokens);
    t->by_bytes = cor_array((size_t)t->bytes_mask + 1, sizeof(*t->by_bytes));
    if (!t->bytes || !t->off || !t->kind || !t->by_bytes)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u tokens", s->source, s->n_tokens);
    memcpy(t->kind, s->kind, s->n_tokens);
    memset(t->byte_id, -1, sizeof(t->byte_id));
    t->words = true;
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        TRY(load_token(t, s, i, &n, err));
        t->off[i + 1] = (uint32_t)(t->off[i] + n);
        if (n)
            t->used = i + 1;
    }
    for (int b = 0; b < 256; b++) {
        char c = (char)b;

        if (!t->spm)
            t->byte_id[b] = mdl_token_by_bytes(t, &c, 1);
        else if (t->byte_id[b] < 0)
            t->byte_id[b] = t->unk;
        if (t->byte_id[b] < 0 && !never_in_utf8(b))
            FAIL(VKMOE_ERR_FORMAT, "%s: no token for byte 0x%02x", s->source, (unsigned)b);
    }
done:
    return st;
}

/* SentencePiece has scores in place of merges. */
static enum vkmoe_status load_scores(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s,
                                     struct vkmoe_err *err)
{
    t->score = cor_array(s->n_tokens, sizeof(*t->score));
    if (!t->score)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %u scores", s->source, s->n_tokens);
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        if (isnan(s->scores[i]))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: the score of token %u is not a number", s->source, i);
        t->score[i] = s->scores[i];
    }
    return VKMOE_OK;
}

/* "left right" to token ids. The alphabet has no space, so the first one separates. */
static enum vkmoe_status load_merge(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s,
                                    uint32_t rank, char *scratch, struct vkmoe_err *err)
{
    struct mdl_merge *m = &t->merges[rank];
    const char *text = s->merges[rank];
    size_t n = bounded_length(text, 2 * MDL_TOKEN_TEXT_MAX), n_left = 0, n_right = 0;
    const char *space = n > 2 * MDL_TOKEN_TEXT_MAX ? NULL : memchr(text, ' ', n);
    size_t cut = space ? (size_t)(space - text) : 0;

    if (!space || !from_alphabet(text, cut, scratch, &n_left) ||
        !from_alphabet(space + 1, n - cut - 1, scratch + n_left, &n_right) || !n_left || !n_right)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: merge %u is not two tokens in the byte alphabet",
                        s->source, rank);
    m->left = mdl_token_by_bytes(t, scratch, n_left);
    m->right = mdl_token_by_bytes(t, scratch + n_left, n_right);
    m->id = mdl_token_by_bytes(t, scratch, n_left + n_right);
    if (m->left < 0 || m->right < 0 || m->id < 0)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: merge %u names an unknown token", s->source, rank);
    uint32_t slot = pair_slot(t, m->left, m->right);
    if (t->by_pair[slot])
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: merges %u and %u are the same", s->source,
                        t->by_pair[slot] - 1, rank);
    t->by_pair[slot] = rank + 1;
    return VKMOE_OK;
}

static enum vkmoe_status load_merges(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char *scratch = cor_alloc(2 * MDL_TOKEN_TEXT_MAX);

    t->n_merges = s->n_merges;
    t->pair_mask = hash_slots(s->n_merges) - 1;
    t->merges = cor_array(s->n_merges, sizeof(*t->merges));
    t->by_pair = cor_array((size_t)t->pair_mask + 1, sizeof(*t->by_pair));
    if (!scratch || !t->merges || !t->by_pair)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u merges", s->source, s->n_merges);
    for (uint32_t i = 0; i < s->n_merges; i++)
        TRY(load_merge(t, s, i, scratch, err));
done:
    cor_free(scratch);
    return st;
}

struct named {
    const char *text; /* NUL-terminated, of the specification */
    int32_t id;
};

static int by_name(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    int c = strcmp(x->text, y->text); /* as unsigned bytes */

    return c ? c : (x->id > y->id) - (x->id < y->id);
}

static enum vkmoe_status load_special(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s,
                                      struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct named *all = cor_array(t->n_special, sizeof(*all));
    uint32_t n = 0;

    t->special = cor_array(t->n_special, sizeof(*t->special));
    if (!all || !t->special)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u special tokens", s->source, t->n_special);
    for (uint32_t i = 0; i < t->n_tokens; i++)
        if (is_named(t->kind[i]))
            all[n++] = (struct named){s->text[i], (int32_t)i};
    qsort(all, n, sizeof(*all), by_name);
    for (uint32_t i = 0; i < n; i++) {
        if (i && !strcmp(all[i].text, all[i - 1].text))
            FAIL(VKMOE_ERR_FORMAT, "%s: special tokens %d and %d have the same name", s->source,
                 (int)all[i - 1].id, (int)all[i].id);
        t->special[i] = all[i].id;
        t->special_at[(uint8_t)all[i].text[0] + 1]++;
    }
    for (int b = 0; b < 256; b++)
        t->special_at[b + 1] += t->special_at[b];
done:
    cor_free(all);
    return st;
}

static void add_end(struct mdl_tokenizer *t, int32_t id)
{
    for (uint32_t i = 0; i < t->n_ends; i++)
        if (t->ends[i] == id)
            return;
    if (id >= 0 && t->n_ends < MDL_ENDS_MAX)
        t->ends[t->n_ends++] = id;
}

/* Tokens that end a text or a turn: those that the file names, and those known by their names. */
static void load_ends(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s)
{
    /* Where these are, <|end|> stands between the parts of one turn. */
    bool parts = mdl_token_by_name(t, "<|return|>") >= 0 || mdl_token_by_name(t, "<|flush|>") >= 0;

    add_end(t, s->eos);
    for (uint32_t i = 0; i < s->n_ends; i++)
        if (s->ends[i] < (int64_t)t->n_tokens)
            add_end(t, s->ends[i]);
    for (uint32_t i = 0; i < t->n_special; i++) {
        int32_t id = t->special[i];

        if (t->kind[id] == MDL_TOKEN_CONTROL && mdl_is_end_name(s->text[id]) &&
            !(parts && !strcmp(s->text[id], "<|end|>")))
            add_end(t, id);
    }
}

static enum vkmoe_status find_pre(struct mdl_tokenizer *t, const char *source, const char *name,
                                  struct vkmoe_err *err)
{
    char names[sizeof(err->message)];

    t->pre = mdl_pre_find(name);
    return t->pre ? VKMOE_OK
                  : cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: unknown pre-tokenizer \"%.64s\"; known: %s",
                             source, name, mdl_pre_names(names, sizeof(names)));
}

enum vkmoe_status mdl_tokenizer_create(struct mdl_tokenizer **out, const struct mdl_tokenizer_spec *spec,
                                       struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_tokenizer *t = cor_zalloc(sizeof(*t));

    *out = NULL;
    if (!t)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the tokenizer", spec->source);
    t->spm = spec->spm;
    if (!t->spm)
        TRY(find_pre(t, spec->source, spec->pre, err));
    t->add_space = spec->spm && spec->add_space;
    t->unk = spec->spm ? spec->unk : -1;
    t->bos = spec->add_bos ? spec->bos : -1;
    t->eos = spec->eos;
    TRY(check_spec(spec, err));
    TRY(load_tokens(t, spec, err));
    TRY(t->spm ? load_scores(t, spec, err) : load_merges(t, spec, err));
    TRY(load_special(t, spec, err));
    load_ends(t, spec);
    if (!t->spm)
        TRY(mdl_splitter_create(&t->splitter, t->pre, err));
    *out = t;
    t = NULL;
done:
    mdl_tokenizer_close(t);
    return st;
}

void mdl_tokenizer_close(struct mdl_tokenizer *t)
{
    if (!t)
        return;
    mdl_splitter_destroy(t->splitter);
    cor_free(t->bytes);
    cor_free(t->off);
    cor_free(t->kind);
    cor_free(t->merges);
    cor_free(t->by_pair);
    cor_free(t->by_bytes);
    cor_free(t->special);
    cor_free(t->score);
    cor_free(t);
}

static bool in_range(const struct mdl_tokenizer *t, int32_t id)
{
    return id >= 0 && (uint32_t)id < t->n_tokens;
}

size_t mdl_token_bytes(const struct mdl_tokenizer *t, int32_t id, const char **bytes)
{
    bool has = in_range(t, id);

    *bytes = has ? t->bytes + t->off[id] : "";
    return has ? token_size(t, id) : 0;
}

size_t mdl_token_text(const struct mdl_tokenizer *t, int32_t prev, int32_t id, const char **bytes)
{
    size_t n = mdl_token_bytes(t, id, bytes);
    bool begins = prev < 0 || (in_range(t, prev) && is_named(t->kind[prev]));

    if (!t->add_space || !begins || !n || (*bytes)[0] != ' ' || is_named(t->kind[id]))
        return n;
    ++*bytes;
    return n - 1;
}

int32_t mdl_token_by_name(const struct mdl_tokenizer *t, const char *name)
{
    const char *p;

    for (uint32_t i = t->special_at[(uint8_t)name[0]]; i < t->special_at[(uint8_t)name[0] + 1]; i++)
        if (mdl_token_bytes(t, t->special[i], &p) == strlen(name) && !memcmp(p, name, strlen(name)))
            return t->special[i];
    return -1;
}

bool mdl_token_is_special(const struct mdl_tokenizer *t, int32_t id)
{
    return in_range(t, id) && is_named(t->kind[id]) && t->kind[id] != MDL_TOKEN_USER;
}

bool mdl_token_is_end(const struct mdl_tokenizer *t, int32_t id)
{
    for (uint32_t i = 0; i < t->n_ends; i++)
        if (t->ends[i] == id)
            return true;
    return false;
}

int32_t mdl_token_bos(const struct mdl_tokenizer *t)
{
    return t->bos;
}

int32_t mdl_token_eos(const struct mdl_tokenizer *t)
{
    return t->eos;
}

uint32_t mdl_tokenizer_size(const struct mdl_tokenizer *t)
{
    return t->n_tokens;
}

uint32_t mdl_tokenizer_used(const struct mdl_tokenizer *t)
{
    return t->used;
}

const char *mdl_tokenizer_pre(const struct mdl_tokenizer *t)
{
    return t->spm ? "llama" : t->pre->name;
}
