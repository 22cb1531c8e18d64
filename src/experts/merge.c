#include "experts/merge.h"

#include <inttypes.h>
#include <string.h>

#include "core/alloc.h"
#include "experts/fit.h"

#define PIECE (1u << 20) /* bytes at a time */

struct merge {
    const struct xp_merge_params *p;
    struct xp_merge_result *r;
    struct mdl_model *full, *from;
    struct xp_ids full_ids, from_ids;
    struct mdl_gguf_writer *w;
    uint8_t *a, *b; /* PIECE each */
    bool *changed;  /* by from_ids' index */
    uint64_t done, total;
    struct vkmoe_err *err;
};

/* ---- do they belong together
 * ---------------------------------------------------------------------------------- */

/* Digests of both files; from's source, or the file it was carved from itself, must be full. */
static enum vkmoe_status check_source(struct merge *m, const char *full)
{
    static const char *const keys[] = {"vkmoe.source.sha256", "vkmoe.parent.sha256"};
    const struct mdl_gguf *g = m->from->gguf;
    struct vkmoe_err *err = m->err;
    enum vkmoe_status st = VKMOE_OK;
    bool same = false, stated = false;

    for (size_t i = 0; i < COR_COUNT(keys); i++) {
        struct mdl_str text;

        if (mdl_gguf_str(g, keys[i], &text, NULL) != VKMOE_OK)
            continue;
        stated = true;
        same = same || (text.n == strlen(full) && !memcmp(text.p, full, (size_t)text.n));
    }
    if (!same && !m->p->force)
        FAIL(VKMOE_ERR_ARGUMENT,
             stated
                 ? "%s: was not carved from %s: vkmoe.source.sha256 is another (--force overrides)"
                 : "%s: does not say that it was carved from %s: no vkmoe.source.sha256 (--force overrides)",
             m->p->from, m->p->full);
done:
    return st;
}

static enum vkmoe_status check_ids(struct merge *m)
{
    const struct xp_ids *ids = &m->from_ids;

    if (!ids->stated)
        return cor_fail(m->err, VKMOE_ERR_ARGUMENT, "%s: not a carved file: key vkmoe.expert_ids is missing",
                        m->p->from);
    for (uint32_t l = 0; l < ids->n_layers; l++)
        for (uint32_t i = ids->first[l]; i < ids->first[l + 1]; i++)
            if (xp_ids_find(&m->full_ids, l, ids->original[i]) == XP_ABSENT)
                return cor_fail(m->err, VKMOE_ERR_ARGUMENT,
                                "%s: layer %" PRIu32 ": expert %" PRIu32 " is not in %s", m->p->from, l,
                                ids->original[i], m->p->full);
    return VKMOE_OK;
}

static enum vkmoe_status check_types(struct merge *m)
{
    const struct mdl_gguf *g = m->full->gguf;
    uint32_t layer;
    int part;

    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct mdl_tensor *t = &g->tensors[i], *other = mdl_gguf_tensor(m->from->gguf, t->name);
        bool taken = m->p->dense || xp_part_of(m->full, t, &layer, &part);

        if (taken && !other)
            return cor_fail(m->err, VKMOE_ERR_ARGUMENT, "%s: tensor %s is missing", m->p->from, t->name);
        if (taken && other->type != t->type)
            return cor_fail(m->err, VKMOE_ERR_ARGUMENT, "%s: tensor %s is %s, %s has it in %s", m->p->from,
                            t->name, mdl_type_find(other->gguf_type)->name, m->p->full,
                            mdl_type_find(t->gguf_type)->name);
    }
    for (uint64_t i = 0; m->p->dense && i < m->from->gguf->n_tensors; i++) {
        const char *name = m->from->gguf->tensors[i].name;

        if (!mdl_gguf_tensor(g, name))
            return cor_fail(m->err, VKMOE_ERR_ARGUMENT, "%s: tensor %s is not in %s", m->p->from, name,
                            m->p->full);
    }
    return VKMOE_OK;
}

/* ---- writing
 * -------------------------------------------------------------------------------------------------- */

static enum vkmoe_status step(struct merge *m, uint64_t n)
{
    m->done += n;
    if (m->p->progress)
        m->p->progress(m->p->progress_user, m->done, m->total);
    if (cor_interrupted())
        return cor_fail(m->err, VKMOE_ERR_IO, "%s: interrupted", m->p->out);
    return VKMOE_OK;
}

/* n bytes of full, or of from where that is not NULL and take says so; *differs where both are there and are
 * not the same. */
static enum vkmoe_status copy(struct merge *m, const struct mdl_tensor *full, uint64_t full_off,
                              const struct mdl_tensor *from, uint64_t from_off, uint64_t n, bool take,
                              bool *differs)
{
    enum vkmoe_status st = VKMOE_OK;

    while (n) {
        size_t part = n < PIECE ? (size_t)n : PIECE;

        TRY(mdl_gguf_read(m->full->gguf, full, full_off, m->a, part, m->err));
        if (from) {
            TRY(mdl_gguf_read(m->from->gguf, from, from_off, m->b, part, m->err));
            *differs = *differs || memcmp(m->a, m->b, part);
        }
        TRY(mdl_gguf_write_data(m->w, from && take ? m->b : m->a, part, m->err));
        TRY(step(m, part));
        full_off += part;
        from_off += part;
        n -= part;
    }
done:
    return st;
}

static enum vkmoe_status put_experts(struct merge *m, const struct mdl_tensor *t, uint32_t layer, int part)
{
    const struct mdl_tensor *from = xp_part(m->from, layer, part);
    uint64_t each = xp_part_bytes(m->full, layer, part);
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t e = 0; e < mdl_expert_count(m->full, layer); e++) {
        uint32_t place = xp_ids_find(&m->from_ids, layer, xp_ids_original(&m->full_ids, layer, e));
        bool there = place != XP_ABSENT, differs = false;

        TRY(copy(m, t, each * e, there ? from : NULL, there ? each * place : 0, each, true, &differs));
        if (differs && part >= XP_OWN_PARTS)
            m->r->n_rows_changed++;
        else if (differs)
            m->changed[m->from_ids.first[layer] + place] = true;
    }
done:
    return st;
}

static enum vkmoe_status put_dense(struct merge *m, const struct mdl_tensor *t)
{
    const struct mdl_tensor *from = mdl_gguf_tensor(m->from->gguf, t->name);
    enum vkmoe_status st = VKMOE_OK;
    bool differs = false;

    if (from && (from->type != t->type || from->bytes != t->bytes)) {
        differs = true; /* not taken: check_types has seen to that */
        from = NULL;
    }
    TRY(copy(m, t, 0, from, 0, t->bytes, m->p->dense, &differs));
    m->r->n_dense++;
    m->r->n_dense_changed += differs;
done:
    return st;
}

static enum vkmoe_status put_header(struct merge *m, const char *digest)
{
    const struct mdl_gguf *g = m->full->gguf;
    struct vkmoe_err *err = m->err;
    enum vkmoe_status st = VKMOE_OK;

    for (uint64_t i = 0; i < g->n_kv; i++) {
        const char *key = g->kv[i].key;

        if (!mdl_gguf_key_of_file(key) && strcmp(key, "vkmoe.version") && strcmp(key, "vkmoe.merged.sha256"))
            TRY(mdl_gguf_put_kv(m->w, &g->kv[i], err));
    }
    TRY(mdl_gguf_put_str(m->w, "vkmoe.version", vkmoe_version(), strlen(vkmoe_version()), err));
    TRY(mdl_gguf_put_str(m->w, "vkmoe.merged.sha256", digest, strlen(digest), err));
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct mdl_tensor *t = &g->tensors[i];

        TRY(mdl_gguf_put_tensor(m->w, t->name, t->type, t->n_dims, t->dims, err));
    }
done:
    return st;
}

static enum vkmoe_status put_tensors(struct merge *m)
{
    const struct mdl_gguf *g = m->full->gguf;
    enum vkmoe_status st = VKMOE_OK;
    uint32_t layer;
    int part;

    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct mdl_tensor *t = &g->tensors[i];

        if (xp_part_of(m->full, t, &layer, &part))
            TRY(put_experts(m, t, layer, part));
        else
            TRY(put_dense(m, t));
    }
    TRY(mdl_gguf_unchanged(g, m->err));
    TRY(mdl_gguf_unchanged(m->from->gguf, m->err));
done:
    return st;
}

/* ---- the whole
 * ------------------------------------------------------------------------------------------------ */

static void hashed(void *user, uint64_t done, uint64_t size)
{
    struct merge *m = user;

    (void)size;
    if (m->p->progress)
        m->p->progress(m->p->progress_user, m->done + done, m->total);
}

static enum vkmoe_status digest(struct merge *m, const struct mdl_gguf *g, char hex[COR_SHA256_HEX])
{
    enum vkmoe_status st = cor_sha256_files(g->files, g->n_files, hex, hashed, m, m->err);

    m->done += mdl_gguf_file_bytes(g);
    return st;
}

static enum vkmoe_status run(struct merge *m)
{
    const struct xp_merge_params *p = m->p;
    char full[COR_SHA256_HEX], from[COR_SHA256_HEX];
    struct mdl_gguf_writer *w;
    struct vkmoe_err *err = m->err;
    enum vkmoe_status st = VKMOE_OK;

    TRY(mdl_open(&m->full, p->full, err));
    TRY(mdl_open(&m->from, p->from, err));
    if (mdl_gguf_is_file(m->full->gguf, p->out) || mdl_gguf_is_file(m->from->gguf, p->out))
        FAIL(VKMOE_ERR_ARGUMENT, "%s: is read; write to another file", p->out);
    TRY(xp_fit(m->full, m->from, err));
    TRY(xp_ids_read(&m->full_ids, m->full, err));
    TRY(xp_ids_read(&m->from_ids, m->from, err));
    TRY(check_ids(m));
    TRY(check_types(m));
    m->r->n_experts = m->from_ids.first[m->from_ids.n_layers];
    m->changed = cor_array(m->r->n_experts, sizeof(*m->changed));
    m->a = cor_alloc(PIECE);
    m->b = cor_alloc(PIECE);
    if (!m->changed || !m->a || !m->b)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to copy", p->out);
    TRY(mdl_gguf_create(&m->w, p->out, err));
    m->total = mdl_gguf_file_bytes(m->from->gguf) + 2 * mdl_gguf_file_bytes(m->full->gguf);
    TRY(digest(m, m->full->gguf, full));
    TRY(check_source(m, full));
    TRY(digest(m, m->from->gguf, from));
    TRY(put_header(m, from));
    TRY(put_tensors(m));
    for (uint32_t i = 0; i < m->r->n_experts; i++)
        m->r->n_changed += m->changed[i];
    TRY(mdl_gguf_finish(m->w, err));
    m->r->out_bytes = mdl_gguf_written(m->w);
    TRY(step(m, 0)); /* flushing may have taken its time */
    w = m->w;
    m->w = NULL; /* commit frees it in either case */
    TRY(mdl_gguf_commit(w, err));
done:
    return st;
}

enum vkmoe_status xp_merge_back(const struct xp_merge_params *p, struct xp_merge_result *r,
                                struct vkmoe_err *err)
{
    struct merge m = {.p = p, .r = r, .err = err};
    enum vkmoe_status st;

    *r = (struct xp_merge_result){0};
    st = run(&m);
    mdl_gguf_discard(m.w);
    cor_free(m.a);
    cor_free(m.b);
    cor_free(m.changed);
    xp_ids_free(&m.full_ids);
    xp_ids_free(&m.from_ids);
    mdl_close(m.from);
    mdl_close(m.full);
    return st;
}
