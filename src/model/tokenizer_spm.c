/* SentencePiece's BPE: from single characters, the pair that makes the token of the best score is merged, the
 * leftmost of equals first; what is no token in the end is spelled in bytes.
 *
 * Texts and tokens have plain spaces here where SentencePiece writes U+2581, so a U+2581 of the text is one,
 * too. Control, unknown and byte tokens are never made by merging, as in SentencePiece (llama.cpp makes
 * them), nor are unused ones. */
#include "model/tokenizer_impl.h"

#include <string.h>

#include "core/alloc.h"
#include "core/utf8.h"

/* Orders scores, the best first. */
static uint32_t score_key(float score)
{
    uint32_t u;

    score += 0.0f; /* -0 is 0 */
    memcpy(&u, &score, sizeof(u));
    return u >> 31 ? u : ~(u | 0x80000000u);
}

/* Looks up the pair at left and, when it is a token, gives its entry for the heap. */
static bool candidate(struct mdl_encoder *e, int32_t left, uint64_t *entry)
{
    struct mdl_symbol *s = left < 0 ? NULL : &e->sym[left];

    if (!s)
        return false;
    s->pair = -1;
    if (s->next >= 0 && s->len + e->sym[s->next].len <= e->t->longest)
        s->pair = mdl_token_by_bytes(e->t, e->text + s->off, s->len + e->sym[s->next].len);
    if (s->pair < 0)
        return false;
    *entry = (uint64_t)score_key(e->t->score[s->pair]) << 32 | (uint32_t)left;
    return true;
}

static void merge_all(struct mdl_encoder *e)
{
    struct mdl_symbol *sym = e->sym;

    while (e->n_heap) {
        uint64_t top = mdl_heap_pop(e), entry;
        int32_t left = (int32_t)(uint32_t)top, right = sym[left].next;

        /* An entry of another pair at this place that has the same score says the same of this one. */
        if (!sym[left].len || sym[left].pair < 0 || score_key(e->t->score[sym[left].pair]) != top >> 32)
            continue;
        sym[left].id = sym[left].pair;
        sym[left].len += sym[right].len;
        sym[left].next = sym[right].next;
        sym[right].len = 0;
        if (sym[left].next >= 0)
            sym[sym[left].next].prev = left;
        if (candidate(e, sym[left].prev, &entry))
            mdl_heap_push(e, entry);
        if (candidate(e, left, &entry))
            mdl_heap_push(e, entry);
    }
}

static enum vkmoe_status push_symbol(struct mdl_encoder *e, const struct mdl_symbol *s, struct vkmoe_err *err)
{
    const struct mdl_tokenizer *t = e->t;
    enum vkmoe_status st = VKMOE_OK;

    if (s->id >= 0)
        return mdl_push_id(e, s->id, err);
    for (uint32_t i = 0; i < s->len; i++) {
        int32_t id = t->byte_id[(uint8_t)e->text[s->off + i]];

        if (id != t->unk || !e->n_ids || e->ids[e->n_ids - 1] != id) /* one for a run of unknown text */
            TRY(mdl_push_id(e, id, err));
    }
done:
    return st;
}

/* Bytes off .. end of e->text, which merge with nothing outside. */
static enum vkmoe_status encode_part(struct mdl_encoder *e, size_t off, size_t end, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t entry;
    int32_t n = 0;

    TRY(mdl_encoder_grow(e, end - off, err));
    for (size_t i = off, len; i < end; i += len) {
        len = cor_utf8_char(e->text + i, end - i, NULL);
        int32_t id = len ? mdl_token_by_bytes(e->t, e->text + i, len) : -1;

        len = len ? len : 1; /* a byte that is no part of a character */
        e->sym[n] = (struct mdl_symbol){.id = id,
                                        .prev = n - 1,
                                        .next = i + len < end ? n + 1 : -1,
                                        .off = (uint32_t)i,
                                        .len = (uint32_t)len,
                                        .pair = -1};
        n++;
    }
    e->n_heap = 0;
    for (int32_t i = 0; i < n; i++)
        if (candidate(e, i, &entry))
            e->heap[e->n_heap++] = entry;
    mdl_heap_order(e);
    merge_all(e);
    for (int32_t i = 0; i >= 0; i = e->sym[i].next)
        TRY(push_symbol(e, &e->sym[i], err));
done:
    return st;
}

/* End of what is merged together from `at` on: a word with the spaces before it where no token goes over its
 * end, and no more than MDL_PIECE_MAX bytes. */
static size_t part_end(const struct mdl_encoder *e, size_t at, size_t n)
{
    const char *p = e->text;
    size_t most = n - at < MDL_PIECE_MAX ? n : at + MDL_PIECE_MAX, end = at + 1;

    if (e->t->words)
        while (end < most && !(p[end] == ' ' && p[end - 1] != ' '))
            end++;
    else
        end = most;
    while (end < n && end > at + 1 && ((uint8_t)p[end] & 0xC0) == 0x80) /* not inside a character */
        end--;
    return end;
}

enum vkmoe_status mdl_encode_spm(struct mdl_encoder *e, const char *p, size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    size_t k = 0, end;

    if (n >= UINT32_MAX)
        return cor_fail(err, VKMOE_ERR_LIMIT, "tokenizer: a text of %zu bytes, at most %u", n,
                        UINT32_MAX - 1);
    char *text = cor_resize(e->text, n + 1, 1);
    if (!text)
        return cor_fail(err, VKMOE_ERR_MEMORY, "tokenizer: no memory for a text of %zu bytes", n);
    e->text = text;
    if (e->t->add_space && e->behind_special)
        text[k++] = ' ';
    for (size_t i = 0; i < n; i++) {
        bool space = n - i >= 3 && !memcmp(p + i, "\xE2\x96\x81", 3);

        text[k++] = space ? ' ' : p[i];
        i += space ? 2 : 0;
    }
    for (size_t at = 0; at < k; at = end) {
        end = part_end(e, at, k);
        TRY(encode_part(e, at, end, err));
    }
done:
    return st;
}
