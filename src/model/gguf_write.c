/* Writing GGUF version 3: keys and tensor declarations are collected in memory, the header is written before
 * the first tensor's data, tensors follow in the order declared, each padded to the alignment. */
#include <inttypes.h>
#include <string.h>

#include "core/alloc.h"
#include "core/bits.h"
#include "model/gguf.h"

enum { ALIGNMENT = 32 };

struct growing {
    char *p;
    size_t n, cap;
};

struct mdl_gguf_writer {
    struct cor_out *out;
    char *path;
    struct growing kvs, infos; /* header bytes */
    uint64_t n_kv, n_tensors;
    uint64_t *tensor_bytes; /* n_tensors */
    size_t cap_tensors;
    uint64_t data_bytes; /* declared so far, padded */
    bool header_written;
    uint64_t current; /* tensor being written */
    uint64_t done;    /* bytes of it written */
};

static const uint8_t elem_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static enum vkmoe_status no_memory(const struct mdl_gguf_writer *w, struct vkmoe_err *err)
{
    return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the header", w->path);
}

static enum vkmoe_status append(struct mdl_gguf_writer *w, struct growing *g, const void *src, size_t n,
                                struct vkmoe_err *err)
{
    if (n > g->cap - g->n) {
        size_t cap = (g->cap + n) * 2;
        char *grown = n < SIZE_MAX / 4 ? cor_resize(g->p, cap, 1) : NULL;

        if (!grown)
            return no_memory(w, err);
        g->p = grown;
        g->cap = cap;
    }
    if (n)
        memcpy(g->p + g->n, src, n);
    g->n += n;
    return VKMOE_OK;
}

static enum vkmoe_status append_int(struct mdl_gguf_writer *w, struct growing *g, uint64_t v, unsigned bytes,
                                    struct vkmoe_err *err)
{
    uint8_t b[8];

    for (unsigned i = 0; i < bytes; i++)
        b[i] = (uint8_t)(v >> (8 * i));
    return append(w, g, b, bytes, err);
}

static enum vkmoe_status append_string(struct mdl_gguf_writer *w, struct growing *g, const char *p,
                                       uint64_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = append_int(w, g, n, 8, err);

    return st == VKMOE_OK ? append(w, g, p, (size_t)n, err) : st;
}

static enum vkmoe_status begin_kv(struct mdl_gguf_writer *w, const char *key, enum mdl_gguf_type type,
                                  struct vkmoe_err *err)
{
    enum vkmoe_status st;

    if (w->header_written)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: key %s comes after tensor data", w->path, key);
    TRY(append_string(w, &w->kvs, key, strlen(key), err));
    TRY(append_int(w, &w->kvs, type, 4, err));
    w->n_kv++;
done:
    return st;
}

enum vkmoe_status mdl_gguf_create(struct mdl_gguf_writer **out, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_gguf_writer *w = cor_zalloc(sizeof(*w));

    *out = NULL;
    if (!w || !(w->path = cor_strdup(path ? path : "GGUF")))
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to write the file", path ? path : "GGUF");
    if (path)
        TRY(cor_out_create(&w->out, path, err));
    *out = w;
    w = NULL;
done:
    mdl_gguf_discard(w);
    return st;
}

enum vkmoe_status mdl_gguf_put_u32(struct mdl_gguf_writer *w, const char *key, uint32_t v,
                                   struct vkmoe_err *err)
{
    enum vkmoe_status st = begin_kv(w, key, MDL_GGUF_U32, err);

    return st == VKMOE_OK ? append_int(w, &w->kvs, v, 4, err) : st;
}

enum vkmoe_status mdl_gguf_put_f32(struct mdl_gguf_writer *w, const char *key, float v, struct vkmoe_err *err)
{
    enum vkmoe_status st = begin_kv(w, key, MDL_GGUF_F32, err);

    return st == VKMOE_OK ? append_int(w, &w->kvs, cor_float_bits(v), 4, err) : st;
}

enum vkmoe_status mdl_gguf_put_bool(struct mdl_gguf_writer *w, const char *key, bool v, struct vkmoe_err *err)
{
    enum vkmoe_status st = begin_kv(w, key, MDL_GGUF_BOOL, err);

    return st == VKMOE_OK ? append_int(w, &w->kvs, v, 1, err) : st;
}

enum vkmoe_status mdl_gguf_put_str(struct mdl_gguf_writer *w, const char *key, const char *p, size_t n,
                                   struct vkmoe_err *err)
{
    enum vkmoe_status st = begin_kv(w, key, MDL_GGUF_STRING, err);

    return st == VKMOE_OK ? append_string(w, &w->kvs, p, n, err) : st;
}

enum vkmoe_status mdl_gguf_put_array(struct mdl_gguf_writer *w, const char *key, enum mdl_gguf_type elem,
                                     const void *items, uint64_t count, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    const struct mdl_str *strs = items;

    TRY(begin_kv(w, key, MDL_GGUF_ARRAY, err));
    TRY(append_int(w, &w->kvs, elem, 4, err));
    TRY(append_int(w, &w->kvs, count, 8, err));
    if (elem == MDL_GGUF_STRING)
        for (uint64_t i = 0; i < count; i++)
            TRY(append_string(w, &w->kvs, strs[i].p, strs[i].n, err));
    else
        TRY(append(w, &w->kvs, items, (size_t)count * elem_bytes[elem], err));
done:
    return st;
}

enum vkmoe_status mdl_gguf_put_kv(struct mdl_gguf_writer *w, const struct mdl_kv *kv, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    uint64_t raw = kv->v.u;

    if (kv->type == MDL_GGUF_ARRAY)
        return mdl_gguf_put_array(w, kv->key, kv->elem_type,
                                  kv->elem_type == MDL_GGUF_STRING ? (const void *)kv->v.strs : kv->v.array,
                                  kv->count, err);
    if (kv->type == MDL_GGUF_STRING)
        return mdl_gguf_put_str(w, kv->key, kv->v.s.p, (size_t)kv->v.s.n, err);
    if (kv->type == MDL_GGUF_F32)
        return mdl_gguf_put_f32(w, kv->key, (float)kv->v.f, err);
    if (kv->type == MDL_GGUF_F64)
        memcpy(&raw, &kv->v.f, sizeof(raw));
    st = begin_kv(w, kv->key, kv->type, err);
    return st == VKMOE_OK ? append_int(w, &w->kvs, raw, elem_bytes[kv->type], err) : st;
}

enum vkmoe_status mdl_gguf_put_tensor(struct mdl_gguf_writer *w, const char *name, enum mdl_type type,
                                      uint32_t n_dims, const uint64_t *dims, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct mdl_type_info *info = mdl_type_find((uint32_t)type);
    uint64_t bytes;

    if (w->header_written || !info || n_dims < 1 || n_dims > MDL_GGUF_MAX_DIMS || !dims[0] ||
        dims[0] % info->block_elems)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: tensor %s cannot be declared", w->path, name);
    if (w->n_tensors == w->cap_tensors) {
        size_t cap = w->cap_tensors * 2 + 64;
        uint64_t *grown = cor_resize(w->tensor_bytes, cap, sizeof(*grown));

        if (!grown)
            return no_memory(w, err);
        w->tensor_bytes = grown;
        w->cap_tensors = cap;
    }
    bytes =
        dims[0] / info->block_elems > UINT64_MAX / 2 / info->block_bytes ? 0 : mdl_row_bytes(type, dims[0]);
    for (uint32_t i = 1; i < n_dims && bytes; i++)
        bytes = dims[i] > UINT64_MAX / 2 / bytes ? 0 : bytes * dims[i];
    if (!bytes || bytes > UINT64_MAX / 2 - w->data_bytes)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: tensor %s: its shape overflows or is empty", w->path, name);
    w->tensor_bytes[w->n_tensors] = bytes;
    TRY(append_string(w, &w->infos, name, strlen(name), err));
    TRY(append_int(w, &w->infos, n_dims, 4, err));
    for (uint32_t i = 0; i < n_dims; i++)
        TRY(append_int(w, &w->infos, dims[i], 8, err));
    TRY(append_int(w, &w->infos, (uint64_t)type, 4, err));
    TRY(append_int(w, &w->infos, w->data_bytes, 8, err));
    w->data_bytes += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    w->n_tensors++;
done:
    return st;
}

static enum vkmoe_status pad(struct mdl_gguf_writer *w, struct vkmoe_err *err)
{
    static const char zeros[ALIGNMENT];
    size_t over = (size_t)(cor_out_size(w->out) % ALIGNMENT);

    return over ? cor_out_write(w->out, zeros, ALIGNMENT - over, err) : VKMOE_OK;
}

uint64_t mdl_gguf_declared(const struct mdl_gguf_writer *w)
{
    uint64_t header = 4 + 4 + 8 + 8 + w->kvs.n + w->infos.n;

    return (header + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + w->data_bytes;
}

static enum vkmoe_status write_header(struct mdl_gguf_writer *w, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct growing start = {0};

    TRY(append(w, &start, "GGUF", 4, err));
    TRY(append_int(w, &start, 3, 4, err));
    TRY(append_int(w, &start, w->n_tensors, 8, err));
    TRY(append_int(w, &start, w->n_kv, 8, err));
    TRY(cor_out_write(w->out, start.p, start.n, err));
    TRY(cor_out_write(w->out, w->kvs.p, w->kvs.n, err));
    TRY(cor_out_write(w->out, w->infos.p, w->infos.n, err));
    TRY(pad(w, err));
    w->header_written = true;
done:
    cor_free(start.p);
    return st;
}

enum vkmoe_status mdl_gguf_write_data(struct mdl_gguf_writer *w, const void *data, size_t n,
                                      struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    if (!w->header_written)
        TRY(write_header(w, err));
    if (w->current == w->n_tensors || n > w->tensor_bytes[w->current] - w->done)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: %zu bytes pass the end of tensor number %" PRIu64, w->path, n,
             w->current);
    TRY(cor_out_write(w->out, data, n, err));
    w->done += n;
    if (w->done == w->tensor_bytes[w->current]) {
        TRY(pad(w, err));
        w->current++;
        w->done = 0;
    }
done:
    return st;
}

uint64_t mdl_gguf_written(const struct mdl_gguf_writer *w)
{
    return cor_out_size(w->out);
}

enum vkmoe_status mdl_gguf_finish(struct mdl_gguf_writer *w, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    if (!w->header_written)
        TRY(write_header(w, err));
    if (w->current != w->n_tensors)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: tensor number %" PRIu64 " of %" PRIu64 " is not complete", w->path,
             w->current, w->n_tensors);
    TRY(cor_out_flush(w->out, err));
done:
    return st;
}

enum vkmoe_status mdl_gguf_commit(struct mdl_gguf_writer *w, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct cor_out *out;

    TRY(mdl_gguf_finish(w, err));
    out = w->out;
    w->out = NULL; /* commit frees it in either case */
    st = cor_out_commit(out, err);
done:
    mdl_gguf_discard(w);
    return st;
}

void mdl_gguf_discard(struct mdl_gguf_writer *w)
{
    if (!w)
        return;
    cor_out_discard(w->out);
    cor_free(w->kvs.p);
    cor_free(w->infos.p);
    cor_free(w->tensor_bytes);
    cor_free(w->path);
    cor_free(w);
}
