/* Reading the index of a GGUF file: two passes of one parser over the header, the first to find its end and
 * to count, the second to fill the arrays; then checks across entries (duplicates, overlaps, the end of the
 * file). */
#include "model/gguf_impl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

enum {
    INDEX_BYTES_MAX = 256 << 20, /* a header larger than this is not one */
    FIRST_READ = 64 << 10,
    KEY_BYTES_MAX = 65535, /* the format's own limit */
    NAME_BYTES_MAX = 1024,
    KV_MAX = 1 << 16,
    TENSORS_MAX = 1 << 20,
    KV_BYTES_MIN = 8 + 1 + 4 + 1, /* key length, one character, type, smallest value */
    TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8,
    ALIGNMENT_MAX = 1 << 20
};

struct parser {
    struct mdl_gguf *g;
    const char *path;
    uint64_t size;   /* of the file */
    uint64_t loaded; /* bytes of the file in g->index */
    uint64_t at;
    bool build;                  /* second pass: fill g->kv and g->tensors */
    uint64_t n_strs, name_bytes; /* counted by the first pass, placed by the second */
    struct mdl_str *strs;
    char *names;
    struct vkmoe_err *err;
};

static const uint8_t value_bytes[] = {1, 1, 2, 2, 4, 4, 4,
                                      1, 0, 0, 8, 8, 8}; /* by enum mdl_gguf_type; 0: not fixed */

/* Makes sure that n bytes from p->at on are loaded. */
static enum vkmoe_status need(struct parser *p, uint64_t n, const char *what)
{
    uint64_t end, want;
    char *grown;
    enum vkmoe_status st;

    if (n > p->size - p->at)
        return cor_fail(p->err, VKMOE_ERR_FORMAT,
                        "%s: truncated: %s at offset %" PRIu64 " needs %" PRIu64
                        " bytes, the file has %" PRIu64 " more",
                        p->path, what, p->at, n, p->size - p->at);
    end = p->at + n;
    if (end <= p->loaded)
        return VKMOE_OK;
    if (end > INDEX_BYTES_MAX)
        return cor_fail(p->err, VKMOE_ERR_LIMIT, "%s: the header is larger than %d MiB", p->path,
                        INDEX_BYTES_MAX >> 20);
    want = p->loaded ? p->loaded * 2 : FIRST_READ;
    if (want < end)
        want = end;
    if (want > p->size)
        want = p->size;
    grown = cor_resize(p->g->index, (size_t)want, 1);
    if (!grown)
        return cor_fail(p->err, VKMOE_ERR_MEMORY, "%s: no memory for %" PRIu64 " bytes of header", p->path,
                        want);
    p->g->index = grown;
    st = cor_file_read(p->g->file, p->loaded, grown + p->loaded, (size_t)(want - p->loaded), p->err);
    if (st == VKMOE_OK)
        p->loaded = want;
    return st;
}

static uint64_t load_le(const void *src, unsigned bytes)
{
    const uint8_t *b = src;
    uint64_t v = 0;

    while (bytes--)
        v = v << 8 | b[bytes];
    return v;
}

static enum vkmoe_status read_int(struct parser *p, unsigned bytes, uint64_t *v, const char *what)
{
    enum vkmoe_status st = need(p, bytes, what);

    if (st == VKMOE_OK) {
        *v = load_le(p->g->index + p->at, bytes);
        p->at += bytes;
    }
    return st;
}

/* s->p is valid until the buffer grows: keep it in the second pass only. */
static enum vkmoe_status read_string(struct parser *p, struct mdl_str *s, const char *what)
{
    enum vkmoe_status st;

    s->p = NULL;
    s->n = 0;
    TRY(read_int(p, 8, &s->n, what));
    TRY(need(p, s->n, what));
    s->p = p->g->index + p->at;
    p->at += s->n;
done:
    return st;
}

/* A key or tensor name, as NUL-terminated copy in the second pass; before that *out is NULL. */
static enum vkmoe_status read_name(struct parser *p, const char **out, uint64_t max, const char *what)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = p->err;
    struct mdl_str s;
    char text[MDL_SHOW_BYTES];

    *out = NULL;
    TRY(read_string(p, &s, what));
    if (!s.n || s.n > max)
        FAIL(VKMOE_ERR_FORMAT, "%s: %s before offset %" PRIu64 ": length %" PRIu64 " is not in 1..%" PRIu64,
             p->path, what, p->at, s.n, max);
    if (memchr(s.p, 0, (size_t)s.n))
        FAIL(VKMOE_ERR_FORMAT, "%s: %s '%s' contains a NUL byte", p->path, what, mdl_show(text, s.p, s.n));
    if (p->build) {
        memcpy(p->names, s.p, (size_t)s.n);
        p->names[s.n] = 0;
        *out = p->names;
        p->names += s.n + 1;
    } else {
        p->name_bytes += s.n + 1;
    }
done:
    return st;
}

static enum vkmoe_status read_scalar(struct parser *p, struct mdl_kv *kv)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = p->err;
    unsigned bytes = value_bytes[kv->type];
    uint64_t raw = 0, sign = (uint64_t)1 << (bytes * 8 - 1);
    float f;

    TRY(read_int(p, bytes, &raw, "a value"));
    switch (kv->type) {
    case MDL_GGUF_I8:
    case MDL_GGUF_I16:
    case MDL_GGUF_I32:
    case MDL_GGUF_I64:
        kv->v.i = (int64_t)((raw ^ sign) - sign);
        break;
    case MDL_GGUF_F32: {
        uint32_t bits = (uint32_t)raw;

        memcpy(&f, &bits, sizeof(f));
        kv->v.f = f;
        break;
    }
    case MDL_GGUF_F64:
        memcpy(&kv->v.f, &raw, sizeof(raw));
        break;
    case MDL_GGUF_BOOL:
        if (raw > 1)
            FAIL(VKMOE_ERR_FORMAT, "%s: a boolean at offset %" PRIu64 " is %" PRIu64, p->path, p->at - 1,
                 raw);
        kv->v.u = raw;
        break;
    default:
        kv->v.u = raw;
    }
done:
    return st;
}

static enum vkmoe_status read_array(struct parser *p, struct mdl_kv *kv)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = p->err;
    uint64_t elem = 0, each;

    TRY(read_int(p, 4, &elem, "an array's type"));
    if (elem == MDL_GGUF_ARRAY)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: an array of arrays at offset %" PRIu64 " is not supported", p->path,
             p->at - 4);
    if (elem >= COR_COUNT(value_bytes))
        FAIL(VKMOE_ERR_FORMAT, "%s: unknown array type %" PRIu64 " at offset %" PRIu64, p->path, elem,
             p->at - 4);
    kv->elem_type = (enum mdl_gguf_type)elem;
    TRY(read_int(p, 8, &kv->count, "an array's length"));
    each = elem == MDL_GGUF_STRING ? 8 : value_bytes[elem];
    if (kv->count > (p->size - p->at) / each)
        FAIL(VKMOE_ERR_FORMAT,
             "%s: an array of %" PRIu64 " elements at offset %" PRIu64 " passes the end of the file", p->path,
             kv->count, p->at);
    if (elem != MDL_GGUF_STRING) {
        TRY(need(p, kv->count * each, "an array"));
        kv->v.array = p->g->index + p->at;
        p->at += kv->count * each;
    } else {
        kv->v.strs = p->strs;
        for (uint64_t i = 0; i < kv->count; i++) {
            struct mdl_str s;

            TRY(read_string(p, &s, "a string of an array"));
            if (p->build)
                *p->strs++ = s;
        }
        if (!p->build)
            p->n_strs += kv->count;
    }
done:
    return st;
}

static enum vkmoe_status read_kv(struct parser *p, struct mdl_kv *kv)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = p->err;
    uint64_t type = 0;

    memset(kv, 0, sizeof(*kv));
    TRY(read_name(p, &kv->key, KEY_BYTES_MAX, "a key"));
    TRY(read_int(p, 4, &type, "a key's type"));
    if (type >= COR_COUNT(value_bytes))
        FAIL(VKMOE_ERR_FORMAT, "%s: unknown value type %" PRIu64 " at offset %" PRIu64, p->path, type,
             p->at - 4);
    kv->type = (enum mdl_gguf_type)type;
    kv->count = 1;
    if (kv->type == MDL_GGUF_STRING)
        TRY(read_string(p, &kv->v.s, "a string"));
    else if (kv->type == MDL_GGUF_ARRAY)
        TRY(read_array(p, kv));
    else
        TRY(read_scalar(p, kv));
done:
    return st;
}

/* Shape and type; t->file_off is still relative to the data. */
static enum vkmoe_status read_tensor(struct parser *p, struct mdl_tensor *t)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = p->err;
    uint64_t start = p->at, n_dims = 0, type = 0, rows = 1, row_bytes;
    const struct mdl_type_info *info;

    memset(t, 0, sizeof(*t));
    TRY(read_name(p, &t->name, NAME_BYTES_MAX, "a tensor name"));
    TRY(read_int(p, 4, &n_dims, "a tensor"));
    if (n_dims < 1 || n_dims > MDL_GGUF_MAX_DIMS)
        FAIL(VKMOE_ERR_FORMAT, "%s: the tensor at offset %" PRIu64 " has %" PRIu64 " dimensions, not 1..%d",
             p->path, start, n_dims, MDL_GGUF_MAX_DIMS);
    t->n_dims = (uint32_t)n_dims;
    for (uint32_t i = 0; i < MDL_GGUF_MAX_DIMS; i++) {
        t->dims[i] = 1;
        if (i < t->n_dims)
            TRY(read_int(p, 8, &t->dims[i], "a tensor"));
        if (!t->dims[i])
            FAIL(VKMOE_ERR_FORMAT, "%s: the tensor at offset %" PRIu64 " has an empty dimension", p->path,
                 start);
        if (i && t->dims[i] > UINT64_MAX / rows)
            FAIL(VKMOE_ERR_FORMAT, "%s: the tensor at offset %" PRIu64 ": its shape overflows", p->path,
                 start);
        rows *= i ? t->dims[i] : 1;
    }
    TRY(read_int(p, 4, &type, "a tensor"));
    t->gguf_type = (uint32_t)type;
    TRY(read_int(p, 8, &t->file_off, "a tensor"));
    info = mdl_type_find(t->gguf_type);
    if (!info)
        goto done;
    t->type = info->type;
    t->known = true;
    if (t->dims[0] % info->block_elems)
        FAIL(VKMOE_ERR_FORMAT,
             "%s: the tensor at offset %" PRIu64 ": rows of %" PRIu64 " are not whole %s blocks", p->path,
             start, t->dims[0], info->name);
    if (t->dims[0] / info->block_elems > p->size / info->block_bytes)
        FAIL(VKMOE_ERR_FORMAT, "%s: the tensor at offset %" PRIu64 " is larger than the file", p->path,
             start);
    row_bytes = mdl_row_bytes(info->type, t->dims[0]);
    if (rows > p->size / row_bytes)
        FAIL(VKMOE_ERR_FORMAT, "%s: the tensor at offset %" PRIu64 " is larger than the file", p->path,
             start);
    t->bytes = rows * row_bytes;
done:
    return st;
}

static enum vkmoe_status read_preamble(struct parser *p)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = p->err;
    struct mdl_gguf *g = p->g;
    uint64_t version = 0;

    TRY(need(p, 8, "the start"));
    if (memcmp(g->index, "GGUF", 4))
        FAIL(VKMOE_ERR_FORMAT, "%s: not a GGUF file", p->path);
    p->at = 4;
    TRY(read_int(p, 4, &version, "the version"));
    if (version && !(version & 0xffff))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: big-endian GGUF is not supported", p->path);
    if (version == 1)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: GGUF version 1 is not supported; convert the file again", p->path);
    if (version != 2 && version != 3)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: GGUF version %" PRIu64 " is not supported, only 2 and 3", p->path,
             version);
    g->version = (uint32_t)version;
    TRY(read_int(p, 8, &g->n_tensors, "the number of tensors"));
    TRY(read_int(p, 8, &g->n_kv, "the number of keys"));
    if (g->n_kv > KV_MAX || g->n_kv > p->size / KV_BYTES_MIN)
        FAIL(VKMOE_ERR_FORMAT, "%s: %" PRIu64 " keys cannot be in a file of %" PRIu64 " bytes", p->path,
             g->n_kv, p->size);
    if (g->n_tensors > TENSORS_MAX || g->n_tensors > p->size / TENSOR_BYTES_MIN)
        FAIL(VKMOE_ERR_FORMAT, "%s: %" PRIu64 " tensors cannot be in a file of %" PRIu64 " bytes", p->path,
             g->n_tensors, p->size);
done:
    return st;
}

static enum vkmoe_status read_entries(struct parser *p)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_kv kv;
    struct mdl_tensor t;

    for (uint64_t i = 0; i < p->g->n_kv; i++)
        TRY(read_kv(p, p->build ? &p->g->kv[i] : &kv));
    for (uint64_t i = 0; i < p->g->n_tensors; i++)
        TRY(read_tensor(p, p->build ? &p->g->tensors[i] : &t));
done:
    return st;
}

/* One block: keys, tensors, string arrays, names. The counts are bounded by the header's size. */
static enum vkmoe_status place_arrays(struct parser *p)
{
    struct mdl_gguf *g = p->g;
    size_t kv = (size_t)g->n_kv * sizeof(*g->kv), tensors = (size_t)g->n_tensors * sizeof(*g->tensors);
    size_t strs = (size_t)p->n_strs * sizeof(*p->strs);

    g->arena = cor_alloc(kv + tensors + strs + (size_t)p->name_bytes);
    if (!g->arena)
        return cor_fail(p->err, VKMOE_ERR_MEMORY, "%s: no memory for the index", p->path);
    g->kv = g->arena;
    g->tensors = (struct mdl_tensor *)((char *)g->arena + kv);
    p->strs = (struct mdl_str *)((char *)g->arena + kv + tensors);
    p->names = (char *)g->arena + kv + tensors + strs;
    return VKMOE_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int compare_offsets(const void *a, const void *b)
{
    const struct mdl_tensor *x = *(const struct mdl_tensor *const *)a,
                            *y = *(const struct mdl_tensor *const *)b;

    if (x->file_off != y->file_off)
        return x->file_off < y->file_off ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static enum vkmoe_status check_duplicates(const char **names, uint64_t n, const char *what, const char *path,
                                          struct vkmoe_err *err)
{
    char text[MDL_SHOW_BYTES];

    qsort(names, (size_t)n, sizeof(*names), compare_names);
    for (uint64_t i = 1; i < n; i++)
        if (!strcmp(names[i - 1], names[i]))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: %s '%s' occurs twice", path, what,
                            mdl_show(text, names[i], strlen(names[i])));
    return VKMOE_OK;
}

/* Tensors end inside the file and do not overlap. */
static enum vkmoe_status check_places(struct parser *p, const struct mdl_tensor **sorted)
{
    struct mdl_gguf *g = p->g;
    char a[MDL_SHOW_BYTES], b[MDL_SHOW_BYTES];

    for (uint64_t i = 0; i < g->n_tensors; i++) {
        struct mdl_tensor *t = &g->tensors[i];
        uint64_t space = p->size > g->data_off ? p->size - g->data_off : 0;

        if (t->file_off % g->alignment)
            return cor_fail(p->err, VKMOE_ERR_FORMAT,
                            "%s: tensor '%s': offset %" PRIu64 " is not a multiple of %u", p->path,
                            mdl_show(a, t->name, strlen(t->name)), t->file_off, g->alignment);
        if (t->file_off > space || t->bytes > space - t->file_off)
            return cor_fail(p->err, VKMOE_ERR_FORMAT,
                            "%s: truncated: tensor '%s' (%" PRIu64 " bytes at offset %" PRIu64
                            " of the data) passes the end of the file",
                            p->path, mdl_show(a, t->name, strlen(t->name)), t->bytes, t->file_off);
        t->file_off += g->data_off;
        sorted[i] = t;
    }
    qsort(sorted, (size_t)g->n_tensors, sizeof(*sorted), compare_offsets);
    for (uint64_t i = 1; i < g->n_tensors; i++)
        if (sorted[i - 1]->file_off + sorted[i - 1]->bytes > sorted[i]->file_off)
            return cor_fail(p->err, VKMOE_ERR_FORMAT, "%s: tensors '%s' and '%s' overlap", p->path,
                            mdl_show(a, sorted[i - 1]->name, strlen(sorted[i - 1]->name)),
                            mdl_show(b, sorted[i]->name, strlen(sorted[i]->name)));
    return VKMOE_OK;
}

static enum vkmoe_status check_alignment(struct parser *p)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err *err = p->err;
    struct mdl_gguf *g = p->g;

    g->alignment = 32;
    if (mdl_gguf_find(g, "general.alignment"))
        TRY(mdl_gguf_u32(g, "general.alignment", &g->alignment, err));
    if (g->alignment < 8 || g->alignment > ALIGNMENT_MAX || (g->alignment & (g->alignment - 1)))
        FAIL(VKMOE_ERR_FORMAT, "%s: general.alignment %u is not a power of two in 8..%d", p->path,
             g->alignment, ALIGNMENT_MAX);
    g->data_off = (p->at + g->alignment - 1) / g->alignment * g->alignment;
done:
    return st;
}

static enum vkmoe_status check_index(struct parser *p)
{
    enum vkmoe_status st;
    struct vkmoe_err *err = p->err;
    struct mdl_gguf *g = p->g;
    uint64_t most = g->n_kv > g->n_tensors ? g->n_kv : g->n_tensors;
    const void **sorted = cor_array((size_t)most, sizeof(*sorted));

    if (!sorted)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to check the index", p->path);
    for (uint64_t i = 0; i < g->n_kv; i++)
        sorted[i] = g->kv[i].key;
    TRY(check_duplicates((const char **)sorted, g->n_kv, "key", p->path, err));
    for (uint64_t i = 0; i < g->n_tensors; i++)
        sorted[i] = g->tensors[i].name;
    TRY(check_duplicates((const char **)sorted, g->n_tensors, "tensor", p->path, err));
    TRY(check_alignment(p));
    TRY(check_places(p, (const struct mdl_tensor **)sorted));
done:
    cor_free(sorted);
    return st;
}

enum vkmoe_status mdl_gguf_open_one(struct mdl_gguf **out, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_gguf *g = cor_zalloc(sizeof(*g));
    struct parser p;
    uint64_t start;
    char *fitted;

    *out = NULL;
    if (!g)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the index", path);
    memset(&p, 0, sizeof(p));
    p.g = g;
    p.path = path;
    p.err = err;
    TRY(cor_file_open(&g->file, path, err));
    g->files = &g->file;
    g->n_files = 1;
    p.size = cor_file_size(g->file);
    TRY(read_preamble(&p));
    start = p.at;
    TRY(read_entries(&p));
    p.loaded = p.at;
    fitted = cor_resize(g->index, (size_t)p.at, 1);
    if (!fitted)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the index", path);
    g->index = fitted;
    TRY(place_arrays(&p));
    p.at = start;
    p.build = true;
    TRY(read_entries(&p));
    TRY(check_index(&p));
    *out = g;
    g = NULL;
done:
    mdl_gguf_close(g);
    return st;
}

void mdl_gguf_close(struct mdl_gguf *g)
{
    if (!g)
        return;
    for (uint32_t i = 1; g->parts && i < g->n_files; i++)
        mdl_gguf_close(g->parts[i]);
    cor_free(g->parts);
    if (g->files != &g->file)
        cor_free(g->files);
    cor_free(g->joined);
    cor_file_close(g->file);
    cor_free(g->index);
    cor_free(g->arena);
    cor_free(g);
}
