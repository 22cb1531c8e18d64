/* Text to ids: special tokens, and between them what the model of the tokenizer makes of the text. */
#include "model/tokenizer_impl.h"

#include <string.h>

#include "core/alloc.h"

enum vkmoe_status mdl_push_id(struct mdl_encoder *e, int32_t id, struct vkmoe_err *err)
{
    if (e->n_ids == e->ids_room) {
        size_t room = e->ids_room + e->ids_room / 2 + 64;
        int32_t *ids = cor_resize(e->ids, room, sizeof(*ids));

        if (!ids)
            return cor_fail(err, VKMOE_ERR_MEMORY, "tokenizer: no memory for %zu tokens", room);
        e->ids = ids;
        e->ids_room = room;
    }
    e->ids[e->n_ids++] = id;
    return VKMOE_OK;
}

static void sift_down(uint64_t *h, size_t n, size_t i)
{
    uint64_t v = h[i];

    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && h[c + 1] < h[c])
            c++;
        if (h[c] >= v)
            break;
        h[i] = h[c];
    }
    h[i] = v;
}

void mdl_heap_push(struct mdl_encoder *e, uint64_t v)
{
    size_t i = e->n_heap++;

    for (; i && e->heap[(i - 1) / 2] > v; i = (i - 1) / 2)
        e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = v;
}

uint64_t mdl_heap_pop(struct mdl_encoder *e)
{
    uint64_t top = e->heap[0];

    e->heap[0] = e->heap[--e->n_heap];
    if (e->n_heap)
        sift_down(e->heap, e->n_heap, 0);
    return top;
}

void mdl_heap_order(struct mdl_encoder *e)
{
    for (size_t i = e->n_heap / 2; i-- > 0;)
        sift_down(e->heap, e->n_heap, i);
}

enum vkmoe_status mdl_encoder_grow(struct mdl_encoder *e, size_t n, struct vkmoe_err *err)
{
    if (n <= e->room)
        return VKMOE_OK;
    n = n < 64 ? 64 : n;
    struct mdl_symbol *sym = cor_resize(e->sym, n, sizeof(*sym));
    if (sym)
        e->sym = sym;
    uint64_t *heap = sym ? cor_resize(e->heap, 2 * n, sizeof(*heap)) : NULL;
    if (!heap)
        return cor_fail(err, VKMOE_ERR_MEMORY, "tokenizer: no memory to merge a piece of %zu bytes", n);
    e->heap = heap;
    e->room = n;
    return VKMOE_OK;
}

/* First index in [lo, hi) of the sorted names whose byte at depth d is at least b; a name that ends there
 * counts as -1. */
static uint32_t lower_bound(const struct mdl_tokenizer *t, uint32_t lo, uint32_t hi, size_t d, int b)
{
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        const char *s;
        size_t n = mdl_token_bytes(t, t->special[mid], &s);

        if ((d < n ? (int)(uint8_t)s[d] : -1) < b)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* Longest user token at p, or with `control` longest special token; -1: none. */
static int32_t special_at(const struct mdl_tokenizer *t, const char *p, size_t n, bool control, size_t *len)
{
    uint32_t lo = t->special_at[(uint8_t)p[0]], hi = t->special_at[(uint8_t)p[0] + 1];
    int32_t best = -1;
    const char *s;

    for (size_t d = 0; d < n && lo < hi; d++) {
        int b = (uint8_t)p[d];

        lo = lower_bound(t, lo, hi, d, b);
        hi = lower_bound(t, lo, hi, d, b + 1);
        /* The shortest of equal prefixes comes first. */
        if (lo < hi && mdl_token_bytes(t, t->special[lo], &s) == d + 1 &&
            (control || t->kind[t->special[lo]] == MDL_TOKEN_USER)) {
            best = t->special[lo];
            *len = d + 1;
        }
    }
    return best;
}

/* Text without special tokens. */
static enum vkmoe_status encode_plain(struct mdl_encoder *e, const char *p, size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = !n          ? VKMOE_OK
                           : e->t->spm ? mdl_encode_spm(e, p, n, err)
                                       : mdl_encode_bpe(e, p, n, err);

    e->behind_special = e->behind_special && !n;
    return st;
}

enum vkmoe_status mdl_encode(const struct mdl_tokenizer *t, const char *text, size_t n, bool parse_special,
                             int32_t **ids, size_t *n_ids, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_encoder e = {.t = t, .behind_special = true};
    size_t from = 0, len = 0;

    *ids = NULL;
    *n_ids = 0;
    if (t->splitter)
        TRY(mdl_split_begin(&e.run, t->splitter, err));
    for (size_t at = 0; at < n;) {
        int32_t id = special_at(t, text + at, n - at, parse_special, &len);

        if (id < 0) {
            at++;
            continue;
        }
        TRY(encode_plain(&e, text + from, at - from, err));
        TRY(mdl_push_id(&e, id, err));
        e.behind_special = true;
        from = at += len;
    }
    TRY(encode_plain(&e, text + from, n - from, err));
    if (!e.ids && !(e.ids = cor_alloc(0)))
        FAIL(VKMOE_ERR_MEMORY, "tokenizer: no memory for the tokens");
    *ids = e.ids;
    *n_ids = e.n_ids;
    e.ids = NULL;
done:
    mdl_split_end(e.run);
    cor_free(e.sym);
    cor_free(e.heap);
    cor_free(e.ids);
    cor_free(e.text);
    return st;
}

enum vkmoe_status mdl_encode_prompt(const struct mdl_tokenizer *t, const char *text, size_t n,
                                    bool parse_special, int32_t **ids, size_t *n_ids, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    int32_t bos = mdl_token_bos(t), *more;

    TRY(mdl_encode(t, text, n, parse_special, ids, n_ids, err));
    if (bos < 0 || (*n_ids && (*ids)[0] == bos))
        return VKMOE_OK;
    more = cor_resize(*ids, *n_ids + 1, sizeof(*more));
    if (!more) {
        cor_free(*ids);
        *ids = NULL;
        FAIL(VKMOE_ERR_MEMORY, "tokenizer: no memory for the tokens");
    }
    memmove(more + 1, more, *n_ids * sizeof(*more));
    more[0] = bos;
    *ids = more;
    ++*n_ids;
done:
    return st;
}
