/* Encoding: special tokens, invalid bytes, pieces, merges by rank. */
#include "model/tokenizer_impl.h"

#include <string.h>

#include "core/alloc.h"
#include "core/utf8.h"

/* A piece being merged is a linked list over its bytes; the heap holds candidate pairs by (rank, position),
 * which is the order "lowest rank first, leftmost among equals". Entries are not removed when a neighbour
 * changes: they are checked when they come up. */
struct symbol {
    int32_t id;         /* -1: merged into the one on its left */
    int32_t prev, next; /* -1: none */
};

struct encoder {
    const struct mdl_tokenizer *t;
    struct mdl_split_run *run;
    struct symbol *sym;
    uint64_t *heap; /* rank << 32 | position of the left symbol */
    size_t n_heap,
        room; /* room: symbols; the heap has twice as many, since a merge takes one entry and adds two */
    int32_t *ids;
    size_t n_ids, ids_room;
};

static enum vkmoe_status push_id(struct encoder *e, int32_t id, struct vkmoe_err *err)
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

static void heap_push(struct encoder *e, uint64_t v)
{
    size_t i = e->n_heap++;

    for (; i && e->heap[(i - 1) / 2] > v; i = (i - 1) / 2)
        e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = v;
}

static uint64_t heap_pop(struct encoder *e)
{
    uint64_t top = e->heap[0];

    e->heap[0] = e->heap[--e->n_heap];
    if (e->n_heap)
        sift_down(e->heap, e->n_heap, 0);
    return top;
}

static bool candidate(const struct encoder *e, int32_t left, uint64_t *entry)
{
    int32_t right = left < 0 ? -1 : e->sym[left].next;
    uint32_t rank;

    if (right < 0 || !mdl_merge_find(e->t, e->sym[left].id, e->sym[right].id, &rank))
        return false;
    *entry = (uint64_t)rank << 32 | (uint32_t)left;
    return true;
}

static enum vkmoe_status grow(struct encoder *e, size_t n, struct vkmoe_err *err)
{
    if (n <= e->room)
        return VKMOE_OK;
    n = n < 64 ? 64 : n;
    struct symbol *sym = cor_resize(e->sym, n, sizeof(*sym));
    if (sym)
        e->sym = sym;
    uint64_t *heap = sym ? cor_resize(e->heap, 2 * n, sizeof(*heap)) : NULL;
    if (!heap)
        return cor_fail(err, VKMOE_ERR_MEMORY, "tokenizer: no memory to merge a piece of %zu bytes", n);
    e->heap = heap;
    e->room = n;
    return VKMOE_OK;
}

static void merge_all(struct encoder *e)
{
    struct symbol *sym = e->sym;

    while (e->n_heap) {
        uint64_t top = heap_pop(e), entry;
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
            heap_push(e, entry);
        if (candidate(e, left, &entry))
            heap_push(e, entry);
    }
}

/* At most MDL_PIECE_MAX bytes. */
static enum vkmoe_status encode_part(struct encoder *e, const char *p, size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t entry;

    if (n == 1)
        return push_id(e, e->t->byte_id[(uint8_t)p[0]], err);
    if (e->t->pre->ignore_merges) {
        int32_t whole = mdl_token_by_bytes(e->t, p, n);

        if (whole >= 0)
            return push_id(e, whole, err);
    }
    TRY(grow(e, n, err));
    for (size_t i = 0; i < n; i++)
        e->sym[i] =
            (struct symbol){e->t->byte_id[(uint8_t)p[i]], (int32_t)i - 1, i + 1 < n ? (int32_t)i + 1 : -1};
    e->n_heap = 0;
    for (size_t i = 0; i + 1 < n; i++)
        if (candidate(e, (int32_t)i, &entry))
            e->heap[e->n_heap++] = entry;
    for (size_t i = e->n_heap / 2; i-- > 0;)
        sift_down(e->heap, e->n_heap, i);
    merge_all(e);
    for (int32_t i = 0; i >= 0; i = e->sym[i].next)
        TRY(push_id(e, e->sym[i].id, err));
done:
    return st;
}

static enum vkmoe_status encode_piece(struct encoder *e, const char *p, size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (size_t at = 0; at < n; at += MDL_PIECE_MAX)
        TRY(encode_part(e, p + at, n - at < MDL_PIECE_MAX ? n - at : MDL_PIECE_MAX, err));
done:
    return st;
}

/* Text without special tokens: runs of valid UTF-8 through the pre-tokenizer, each invalid byte as itself. */
static enum vkmoe_status encode_plain(struct encoder *e, const char *p, size_t n, struct vkmoe_err *err)
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
            TRY(push_id(e, e->t->byte_id[(uint8_t)p[end++]], err));
        at = end;
    }
done:
    return st;
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

/* Longest special token at p; -1: none. */
static int32_t special_at(const struct mdl_tokenizer *t, const char *p, size_t n, size_t *len)
{
    uint32_t lo = t->special_at[(uint8_t)p[0]], hi = t->special_at[(uint8_t)p[0] + 1];
    int32_t best = -1;
    const char *s;

    for (size_t d = 0; d < n && lo < hi; d++) {
        int b = (uint8_t)p[d];

        lo = lower_bound(t, lo, hi, d, b);
        hi = lower_bound(t, lo, hi, d, b + 1);
        if (lo < hi && mdl_token_bytes(t, t->special[lo], &s) ==
                           d + 1) { /* the shortest of equal prefixes comes first */
            best = t->special[lo];
            *len = d + 1;
        }
    }
    return best;
}

enum vkmoe_status mdl_encode(const struct mdl_tokenizer *t, const char *text, size_t n, bool parse_special,
                             int32_t **ids, size_t *n_ids, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct encoder e = {.t = t};
    size_t from = 0, len = 0;

    *ids = NULL;
    *n_ids = 0;
    TRY(mdl_split_begin(&e.run, t->splitter, err));
    for (size_t at = 0; parse_special && at < n;) {
        int32_t id = special_at(t, text + at, n - at, &len);

        if (id < 0) {
            at++;
            continue;
        }
        TRY(encode_plain(&e, text + from, at - from, err));
        TRY(push_id(&e, id, err));
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
    return st;
}
