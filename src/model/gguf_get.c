/* Looking up keys and tensors of an open GGUF file, and reading tensor bytes. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/utf8.h"
#include "model/gguf.h"

const char *mdl_show(char dst[MDL_SHOW_BYTES], const char *s, uint64_t n)
{
    size_t used = 0;

    for (uint64_t i = 0; i < n;) {
        const unsigned char *c = (const unsigned char *)s + i;
        size_t len = cor_utf8_char(s + i, (size_t)(n - i), NULL);
        bool plain = len && c[0] >= 32 && c[0] != 127 && !(c[0] == 0xc2 && c[1] < 0xa0);

        if (used + 4 + 4 > MDL_SHOW_BYTES) { /* room for one more and "..." */
            memcpy(dst + used, "...", 3);
            used += 3;
            break;
        }
        if (plain)
            memcpy(dst + used, c, len);
        else
            snprintf(dst + used, 5, "\\x%02x", c[0]);
        used += plain ? len : 4;
        i += plain ? len : 1;
    }
    dst[used] = 0;
    return dst;
}

const struct mdl_kv *mdl_gguf_find(const struct mdl_gguf *g, const char *key)
{
    for (uint64_t i = 0; i < g->n_kv; i++)
        if (!strcmp(g->kv[i].key, key))
            return &g->kv[i];
    return NULL;
}

const struct mdl_tensor *mdl_gguf_tensor(const struct mdl_gguf *g, const char *name)
{
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (!strcmp(g->tensors[i].name, name))
            return &g->tensors[i];
    return NULL;
}

static enum vkmoe_status find(const struct mdl_gguf *g, const char *key, const struct mdl_kv **kv,
                              struct vkmoe_err *err)
{
    *kv = mdl_gguf_find(g, key);
    if (!*kv)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s is missing", cor_file_path(g->file), key);
    return VKMOE_OK;
}

static enum vkmoe_status wrong(const struct mdl_gguf *g, const char *key, const char *want,
                               struct vkmoe_err *err)
{
    return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s is not %s", cor_file_path(g->file), key, want);
}

enum vkmoe_status mdl_gguf_u32(const struct mdl_gguf *g, const char *key, uint32_t *v, struct vkmoe_err *err)
{
    const struct mdl_kv *kv;
    enum vkmoe_status st = find(g, key, &kv, err);

    if (st != VKMOE_OK)
        return st;
    switch (kv->type) {
    case MDL_GGUF_U8:
    case MDL_GGUF_U16:
    case MDL_GGUF_U32:
    case MDL_GGUF_U64:
        if (kv->v.u > UINT32_MAX)
            break;
        *v = (uint32_t)kv->v.u;
        return VKMOE_OK;
    case MDL_GGUF_I8:
    case MDL_GGUF_I16:
    case MDL_GGUF_I32:
    case MDL_GGUF_I64:
        if (kv->v.i < 0 || kv->v.i > (int64_t)UINT32_MAX)
            break;
        *v = (uint32_t)kv->v.i;
        return VKMOE_OK;
    default:
        break;
    }
    return wrong(g, key, "an integer from 0 to 4294967295", err);
}

enum vkmoe_status mdl_gguf_f32(const struct mdl_gguf *g, const char *key, float *v, struct vkmoe_err *err)
{
    const struct mdl_kv *kv;
    enum vkmoe_status st = find(g, key, &kv, err);

    if (st != VKMOE_OK)
        return st;
    if (kv->type != MDL_GGUF_F32 && kv->type != MDL_GGUF_F64)
        return wrong(g, key, "a floating-point number", err);
    *v = (float)kv->v.f;
    return VKMOE_OK;
}

enum vkmoe_status mdl_gguf_bool(const struct mdl_gguf *g, const char *key, bool *v, struct vkmoe_err *err)
{
    const struct mdl_kv *kv;
    enum vkmoe_status st = find(g, key, &kv, err);

    if (st != VKMOE_OK)
        return st;
    if (kv->type != MDL_GGUF_BOOL)
        return wrong(g, key, "a boolean", err);
    *v = kv->v.u != 0;
    return VKMOE_OK;
}

enum vkmoe_status mdl_gguf_str(const struct mdl_gguf *g, const char *key, struct mdl_str *v,
                               struct vkmoe_err *err)
{
    const struct mdl_kv *kv;
    enum vkmoe_status st = find(g, key, &kv, err);

    if (st != VKMOE_OK)
        return st;
    if (kv->type != MDL_GGUF_STRING)
        return wrong(g, key, "a string", err);
    *v = kv->v.s;
    return VKMOE_OK;
}

uint32_t mdl_kv_u32(const struct mdl_kv *kv, uint64_t i)
{
    const uint8_t *b = (const uint8_t *)kv->v.array + 4 * i;

    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

enum vkmoe_status mdl_gguf_read(const struct mdl_gguf *g, const struct mdl_tensor *t, uint64_t off, void *dst,
                                size_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct cor_file *f = g->files[t->part];
    char text[MDL_SHOW_BYTES];

    if (!t->known)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: tensor '%s' has type %u, which is not supported",
                        cor_file_path(f), mdl_show(text, t->name, strlen(t->name)), t->gguf_type);
    if (off > t->bytes || n > t->bytes - off)
        return cor_fail(err, VKMOE_ERR_ARGUMENT,
                        "%s: tensor '%s': bytes %" PRIu64 "..%" PRIu64 " pass its end at %" PRIu64,
                        cor_file_path(f), mdl_show(text, t->name, strlen(t->name)), off, off + n, t->bytes);
    TRY(cor_file_read(f, t->file_off + off, dst, n, err));
    TRY(cor_file_unchanged(f, err)); /* experts are read long after the index was */
done:
    return st;
}
