#include "experts/diff.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "experts/fit.h"

#define PIECE (1u << 20) /* bytes at a time */

struct compare {
    const struct mdl_model *a, *b;
    struct xp_ids a_ids, b_ids;
    struct xp_diff *d;
    uint8_t *x, *y; /* PIECE each */
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
    uint64_t done, total;
    struct vkmoe_err *err;
};

/* n bytes of both. */
static enum vkmoe_status bytes_differ(struct compare *c, const struct mdl_tensor *a, uint64_t a_off,
                                      const struct mdl_tensor *b, uint64_t b_off, uint64_t n,
                                      enum xp_diff_kind *kind)
{
    enum vkmoe_status st = VKMOE_OK;

    while (n && *kind == XP_SAME) {
        size_t part = n < PIECE ? (size_t)n : PIECE;

        TRY(mdl_gguf_read(c->a->gguf, a, a_off, c->x, part, c->err));
        TRY(mdl_gguf_read(c->b->gguf, b, b_off, c->y, part, c->err));
        if (memcmp(c->x, c->y, part))
            *kind = XP_DIFFERS;
        a_off += part;
        b_off += part;
        n -= part;
        if (cor_interrupted())
            return cor_fail(c->err, VKMOE_ERR_IO, "%s: interrupted", cor_file_path(c->a->gguf->file));
    }
done:
    return st;
}

static void advance(struct compare *c, uint64_t n)
{
    c->done += n;
    if (c->progress)
        c->progress(c->user, c->done, c->total);
}

static enum vkmoe_status part_differs(struct compare *c, uint32_t layer, int part, uint32_t in_a,
                                      uint32_t in_b, enum xp_diff_kind *kind)
{
    const struct mdl_tensor *a = xp_part(c->a, layer, part), *b = xp_part(c->b, layer, part);
    uint64_t n = xp_part_bytes(c->a, layer, part);
    enum vkmoe_status st = VKMOE_OK;

    if (a->type != b->type)
        *kind = XP_DIFFERS;
    else
        TRY(bytes_differ(c, a, n * in_a, b, n * in_b, n, kind));
    advance(c, n);
done:
    return st;
}

static int compare_originals(const void *x, const void *y)
{
    const struct xp_diff_expert *a = x, *b = y;

    return a->original < b->original ? -1 : a->original > b->original;
}

static enum vkmoe_status compare_layer(struct compare *c, uint32_t layer)
{
    uint32_t n_a = mdl_expert_count(c->a, layer), n_b = mdl_expert_count(c->b, layer);
    struct xp_diff_expert *first = c->d->experts + c->d->n_experts, *at = first;
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t e = 0; e < n_a; e++, at++) {
        uint32_t original = xp_ids_original(&c->a_ids, layer, e);
        uint32_t other = xp_ids_find(&c->b_ids, layer, original);

        *at = (struct xp_diff_expert){layer, original, XP_ONLY_A, XP_ONLY_A};
        if (other == XP_ABSENT)
            continue;
        at->weights = at->row = XP_SAME;
        for (int p = 0; p < XP_PARTS; p++)
            if (xp_part(c->a, layer, p))
                TRY(part_differs(c, layer, p, e, other, p < XP_OWN_PARTS ? &at->weights : &at->row));
    }
    for (uint32_t e = 0; e < n_b; e++) {
        uint32_t original = xp_ids_original(&c->b_ids, layer, e);

        if (xp_ids_find(&c->a_ids, layer, original) == XP_ABSENT)
            *at++ = (struct xp_diff_expert){layer, original, XP_ONLY_B, XP_ONLY_B};
    }
    qsort(first, (size_t)(at - first), sizeof(*first), compare_originals);
    c->d->n_experts += (size_t)(at - first);
done:
    return st;
}

static enum vkmoe_status compare_dense(struct compare *c)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t layer;
    int part;

    for (uint64_t i = 0; i < c->a->gguf->n_tensors; i++) {
        const struct mdl_tensor *a = &c->a->gguf->tensors[i], *b = mdl_gguf_tensor(c->b->gguf, a->name);
        struct xp_diff_tensor *t = &c->d->tensors[c->d->n_tensors];

        if (xp_part_of(c->a, a, &layer, &part))
            continue;
        *t = (struct xp_diff_tensor){a->name, b ? XP_SAME : XP_ONLY_A};
        if (b && (a->type != b->type || a->bytes != b->bytes))
            t->kind = XP_DIFFERS;
        else if (b)
            TRY(bytes_differ(c, a, 0, b, 0, a->bytes, &t->kind));
        advance(c, a->bytes);
        c->d->n_tensors++;
    }
    for (uint64_t i = 0; i < c->b->gguf->n_tensors; i++)
        if (!mdl_gguf_tensor(c->a->gguf, c->b->gguf->tensors[i].name))
            c->d->tensors[c->d->n_tensors++] =
                (struct xp_diff_tensor){c->b->gguf->tensors[i].name, XP_ONLY_B};
done:
    return st;
}

static enum vkmoe_status run(struct compare *c)
{
    const char *path = cor_file_path(c->a->gguf->file);
    struct xp_diff *d = c->d;
    struct vkmoe_err *err = c->err;
    enum vkmoe_status st = VKMOE_OK;

    TRY(xp_fit(c->a, c->b, err));
    TRY(xp_ids_read(&c->a_ids, c->a, err));
    TRY(xp_ids_read(&c->b_ids, c->b, err));
    d->experts = cor_array((size_t)c->a_ids.first[c->a_ids.n_layers] + c->b_ids.first[c->b_ids.n_layers],
                           sizeof(*d->experts));
    d->tensors = cor_array((size_t)(c->a->gguf->n_tensors + c->b->gguf->n_tensors), sizeof(*d->tensors));
    c->x = cor_alloc(PIECE);
    c->y = cor_alloc(PIECE);
    if (!d->experts || !d->tensors || !c->x || !c->y)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to compare", path);
    for (uint64_t i = 0; i < c->a->gguf->n_tensors; i++)
        c->total += c->a->gguf->tensors[i].bytes;
    for (uint32_t l = 0; l < c->a->config.n_layers; l++)
        TRY(compare_layer(c, l));
    TRY(compare_dense(c));
    d->same = true;
    for (size_t i = 0; i < d->n_experts; i++)
        d->same = d->same && d->experts[i].weights == XP_SAME && d->experts[i].row == XP_SAME;
    for (size_t i = 0; i < d->n_tensors; i++)
        d->same = d->same && d->tensors[i].kind == XP_SAME;
done:
    return st;
}

enum vkmoe_status xp_diff(struct xp_diff *d, const struct mdl_model *a, const struct mdl_model *b,
                          void (*progress)(void *user, uint64_t done, uint64_t total), void *user,
                          struct vkmoe_err *err)
{
    struct compare c = {.a = a, .b = b, .d = d, .progress = progress, .user = user, .err = err};
    enum vkmoe_status st;

    *d = (struct xp_diff){0};
    st = run(&c);
    cor_free(c.x);
    cor_free(c.y);
    xp_ids_free(&c.a_ids);
    xp_ids_free(&c.b_ids);
    if (st != VKMOE_OK)
        xp_diff_free(d);
    return st;
}

void xp_diff_free(struct xp_diff *d)
{
    cor_free(d->experts);
    cor_free(d->tensors);
    *d = (struct xp_diff){0};
}
