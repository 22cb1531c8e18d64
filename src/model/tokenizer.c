/* The tables of a byte-level BPE tokenizer: checked construction and look-ups. Encoding is in
 * tokenizer_bpe.c, the ways to get a specification in tokenizer_gguf.c and tokenizer_json.c. */
#include "model/tokenizer_impl.h"

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
    return kind == MDL_TOKEN_CONTROL || kind == MDL_TOKEN_USER;
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
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        uint8_t k = s->kind[i];
        size_t max = is_named(k) ? MDL_SPECIAL_TEXT_MAX : MDL_TOKEN_TEXT_MAX;

        if (k != MDL_TOKEN_NORMAL && k != MDL_TOKEN_UNUSED && !is_named(k))
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

static enum vkmoe_status load_tokens(struct mdl_tokenizer *t, const struct mdl_tokenizer_spec *s,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    size_t total = 0, at = 0;

    for (uint32_t i = 0; i < s->n_tokens; i++)
        total += s->kind[i] == MDL_TOKEN_UNUSED ? 0 : strlen(s->text[i]);
    t->n_tokens = s->n_tokens;
    t->bytes_mask = hash_slots(s->n_tokens) - 1;
    t->bytes = cor_alloc(total); /* alphabet text is never shorter than its bytes */
    t->off = cor_array((size_t)s->n_tokens + 1, sizeof(*t->off));
    t->kind = cor_alloc(s->n_tokens);
    t->by_bytes = cor_array((size_t)t->bytes_mask + 1, sizeof(*t->by_bytes));
    if (!t->bytes || !t->off || !t->kind || !t->by_bytes)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u tokens", s->source, s->n_tokens);
    memcpy(t->kind, s->kind, s->n_tokens);
    for (uint32_t i = 0; i < s->n_tokens; i++) {
        size_t n = t->kind[i] == MDL_TOKEN_UNUSED ? 0 : strlen(s->text[i]);

        t->off[i] = (uint32_t)at;
        if (is_named(t->kind[i])) {
            if (!is_utf8(s->text[i], n))
                FAIL(VKMOE_ERR_FORMAT, "%s: token %u is not UTF-8", s->source, i);
            memcpy(t->bytes + at, s->text[i], n);
            t->n_special++;
        } else if (n) {
            if (!from_alphabet(s->text[i], n, t->bytes + at, &n))
                FAIL(VKMOE_ERR_FORMAT, "%s: token %u is not UTF-8 in the byte alphabet", s->source, i);
            uint32_t slot = bytes_slot(t, t->bytes + at, n);
            if (t->by_bytes[slot])
                FAIL(VKMOE_ERR_FORMAT, "%s: tokens %d and %u have the same text", s->source,
                     (int)t->by_bytes[slot] - 1, i);
            t->by_bytes[slot] = (int32_t)i + 1;
            t->off[i + 1] = (uint32_t)(at + n); /* bytes_slot reads it from the next token on */
        }
        at += n;
        if (n)
            t->used = i + 1;
    }
    t->off[s->n_tokens] = (uint32_t)at;
    for (int b = 0; b < 256; b++) {
        char c = (char)b;

        t->byte_id[b] = mdl_token_by_bytes(t, &c, 1);
        if (t->byte_id[b] < 0)
            FAIL(VKMOE_ERR_FORMAT, "%s: no token for byte 0x%02x", s->source, (unsigned)b);
    }
done:
    return st;
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

enum vkmoe_status mdl_tokenizer_create(struct mdl_tokenizer **out, const struct mdl_tokenizer_spec *spec,
                                       struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_tokenizer *t = cor_zalloc(sizeof(*t));

    *out = NULL;
    if (!t)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the tokenizer", spec->source);
    t->pre = mdl_pre_find(spec->pre);
    if (!t->pre)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: unknown pre-tokenizer \"%.64s\"", spec->source, spec->pre);
    t->eos = spec->eos;
    TRY(check_spec(spec, err));
    TRY(load_tokens(t, spec, err));
    TRY(load_merges(t, spec, err));
    TRY(load_special(t, spec, err));
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

bool mdl_token_is_special(const struct mdl_tokenizer *t, int32_t id)
{
    return in_range(t, id) && t->kind[id] == MDL_TOKEN_CONTROL;
}

bool mdl_token_is_end(const struct mdl_tokenizer *t, int32_t id)
{
    static const char *const names[] = {"<|endoftext|>", "<|im_end|>", "<|end|>",         "<|eot_id|>",
                                        "<|eom_id|>",    "</s>",       "<|end_of_text|>", "<end_of_turn>"};

    if (!mdl_token_is_special(t, id))
        return in_range(t, id) && id == t->eos;
    for (size_t i = 0; i < COR_COUNT(names); i++)
        if (strlen(names[i]) == token_size(t, id) &&
            !memcmp(names[i], t->bytes + t->off[id], strlen(names[i])))
            return true;
    return id == t->eos;
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
    return t->pre->name;
}
