/* Byte-level BPE: pieces of the pre-tokenizer, merged by rank. */
#include "model/tokenizer_impl.h"

#include "core/utf8.h"

static bool candidate(const struct mdl_encoder *e, int32_t left, uint64_t *entry)
{
    int32_t right = left < 0 ? -1 : e->sym[left].next;
    uint32_t rank;

    if (right < 0 || !mdl_merge_find(e->t, e->sym[left].id, e->sym[right].id, &rank))
        return false;
    *entry = (uint64_t)rank << 32 | (uint32_t)left;
    return true;
}

static void merge_all(struct mdl_encoder *e)
{
    struct mdl_symbol *sym = e->sym;

    while (e->n_heap) {
        uint64_t top = mdl_heap_pop(e), entry;
        const struct mdl_merge *m = &e->t->merges[top >> 32];
        int32_t left = (int32_t)(uint32_t)top, right = sym[left].next;

        if (sym[left].id != m->left || right < 0 || sym[right].id != m->right)
            continue;
        sym[left].id = m->id;
        sym[left].next = sym[right].next;
        sym[right].id = -1;
        if (sym[left].next >= 0)
            sym[sym[left].next].prev = left;
        if (candidate(e, sym[left].prev, &entry))
            mdl_heap_push(e, entry);
        if (candidate(e, left, &entry))
            mdl_heap_push(e, entry);
    }
}

/* At most MDL_PIECE_MAX bytes. */
static enum vkmoe_status encode_part(struct mdl_encoder *e, const char *p, size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t entry;

    if (n == 1)
        return mdl_push_id(e, e->t->byte_id[(uint8_t)p[0]], err);
    if (e->t->pre->ignore_merges) {
        int32_t whole = mdl_token_by_bytes(e->t, p, n);

        if (whole >= 0)
            return mdl_push_id(e, whole, err);
    }
    TRY(mdl_encoder_grow(e, n, err));
    for (size_t i = 0; i < n; i++)
        e->sym[i] = (struct mdl_symbol){.id = e->t->byte_id[(uint8_t)p[i]],
                                        .prev = (int32_t)i - 1,
                                        .next = i + 1 < n ? (int32_t)i + 1 : -1};
    e->n_heap = 0;
    for (size_t i = 0; i + 1 < n; i++)
        if (candidate(e, (int32_t)i, &entry))
            e->heap[e->n_heap++] = entry;
    mdl_heap_order(e);
    merge_all(e);
    for (int32_t i = 0; i >= 0; i = e->sym[i].next)
        TRY(mdl_push_id(e, e->sym[i].id, err));
done:
    return st;
}

static enum vkmoe_status encode_piece(struct mdl_encoder *e, const char *p, size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (size_t at = 0; at < n; at += MDL_PIECE_MAX)
        TRY(encode_part(e, p + at, n - at < MDL_PIECE_MAX ? n - at : MDL_PIECE_MAX, err));
done:
    return st;
}

/* A byte that is no part of a character; U+FFFD for one without a token. */
static enum vkmoe_status push_byte(struct mdl_encoder *e, uint8_t b, struct vkmoe_err *err)
{
    static const uint8_t replacement[] = {0xEF, 0xBF, 0xBD};
    enum vkmoe_status st = VKMOE_OK;

    if (e->t->byte_id[b] >= 0)
        return mdl_push_id(e, e->t->byte_id[b], err);
    for (size_t i = 0; i < sizeof(replacement); i++)
        TRY(mdl_push_id(e, e->t->byte_id[replacement[i]], err));
done:
    return st;
}

/* Text without special tokens: runs of valid UTF-8 through the pre-tokenizer, each invalid byte as itself. */
enum vkmoe_status mdl_encode_bpe(struct mdl_encoder *e, const char *p, size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (size_t at = 0; at < n;) {
        size_t end = at, len, cut;

        while (end < n && (len = cor_utf8_char(p + end, n - end, NULL)) != 0)
            end += len;
        for (size_t i = 0; i < end - at; i = cut) {
            TRY(mdl_split_next(e->run, p + at, end - at, i, &cut, err));
            TRY(encode_piece(e, p + at + i, cut - i, err));
        }
        if (end < n)
            TRY(push_byte(e, (uint8_t)p[end++], err));
        at = end;
    }
done:
    return st;
}
