#include "model/imatrix.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/bits.h"

enum {
    NAME_MAX = 256, /* bytes of a tensor's name, NUL included */
    ENTRIES_MAX = 1 << 16,
    DATASET_MAX = 4096
};

#define LEAST 0.03f /* weight of a column, where the mean square of a plane gives 1 */

struct entry { /* of the older format: floats in the file */
    char *name;
    uint64_t off;
    uint32_t n;
};

struct mdl_imatrix {
    struct mdl_gguf *gguf; /* NULL: the older format */
    struct cor_file *file; /* which it is then */
    struct entry *entries;
    uint32_t n_entries, chunks;
    char dataset[DATASET_MAX];
    const char *path;
};

/* ---- GGUF
 * ------------------------------------------------------------------------------------------------------ */

static enum vkmoe_status open_gguf(struct mdl_imatrix *m, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    const struct mdl_kv *sets;
    char text[MDL_SHOW_BYTES];
    struct mdl_str type;

    TRY(mdl_gguf_open(&m->gguf, path, err));
    m->path = cor_file_path(m->gguf->file);
    if (mdl_gguf_find(m->gguf, "general.type")) {
        TRY(mdl_gguf_str(m->gguf, "general.type", &type, err));
        if (type.n != 7 || memcmp(type.p, "imatrix", 7))
            FAIL(VKMOE_ERR_FORMAT, "%s: general.type is '%s', not imatrix", path,
                 mdl_show(text, type.p, type.n));
    }
    for (uint64_t i = 0; i < m->gguf->n_tensors; i++) {
        const char *name = m->gguf->tensors[i].name;
        size_t n = strlen(name);

        m->n_entries += n > 8 && !strcmp(name + n - 8, ".in_sum2");
    }
    if (!m->n_entries)
        FAIL(VKMOE_ERR_FORMAT, "%s: no tensor NAME.in_sum2: not an importance matrix", path);
    if (mdl_gguf_find(m->gguf, "imatrix.chunk_count"))
        TRY(mdl_gguf_u32(m->gguf, "imatrix.chunk_count", &m->chunks, err));
    sets = mdl_gguf_find(m->gguf, "imatrix.datasets");
    if (sets && sets->type == MDL_GGUF_ARRAY && sets->elem_type == MDL_GGUF_STRING && sets->count)
        snprintf(m->dataset, sizeof(m->dataset), "%s", mdl_show(text, sets->v.strs[0].p, sets->v.strs[0].n));
done:
    return st;
}

static bool is_shape(const struct mdl_tensor *t, uint64_t cols, uint64_t planes)
{
    return t && t->known && t->type == MDL_F32 && t->dims[0] == cols && t->dims[1] == planes &&
           t->dims[2] == 1 && t->dims[3] == 1;
}

/* Sums, then counts behind them: (planes, cols), (planes). */
static enum vkmoe_status read_gguf(float **out, uint64_t *planes, const struct mdl_imatrix *m,
                                   const char *tensor, uint64_t cols, uint64_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct mdl_tensor *sums, *counts;
    char name[NAME_MAX + 16];

    snprintf(name, sizeof(name), "%s.in_sum2", tensor);
    sums = mdl_gguf_tensor(m->gguf, name);
    if (!sums)
        return VKMOE_OK;
    snprintf(name, sizeof(name), "%s.counts", tensor);
    counts = mdl_gguf_tensor(m->gguf, name);
    *planes = sums->dims[1];
    if ((*planes != 1 && *planes != n) || !is_shape(sums, cols, *planes) || !is_shape(counts, 1, *planes))
        FAIL(VKMOE_ERR_FORMAT,
             "%s: %s.in_sum2 and .counts are not f32 of %" PRIu64 " x %" PRIu64 " and %" PRIu64
             ": made from another model",
             m->path, tensor, n, cols, n);
    *out = cor_array((size_t)(*planes * (cols + 1)), sizeof(float));
    if (!*out)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %s", m->path, tensor);
    TRY(mdl_gguf_read(m->gguf, sums, 0, *out, (size_t)sums->bytes, err));
    TRY(mdl_gguf_read(m->gguf, counts, 0, *out + *planes * cols, (size_t)counts->bytes, err));
    mdl_dequant_row(MDL_F32, *out, *out, *planes * (cols + 1)); /* the file's byte order */
done:
    return st;
}

/* ---- the older format: a number of entries; of each the length of its name, the name, a number of calls, of
 * values, and these, divided by nothing else than the calls
 * ------------------------------------------------------------------------------------------------------ */

static enum vkmoe_status read_u32(const struct mdl_imatrix *m, uint64_t *at, uint32_t *v, const char *what,
                                  struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint8_t b[4];

    if (cor_file_size(m->file) - *at < 4)
        FAIL(VKMOE_ERR_FORMAT, "%s: truncated: %s at offset %" PRIu64, m->path, what, *at);
    TRY(cor_file_read(m->file, *at, b, 4, err));
    *v = (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
    *at += 4;
done:
    return st;
}

static enum vkmoe_status read_entry(struct mdl_imatrix *m, struct entry *e, uint64_t *at,
                                    struct vkmoe_err *err)
{
    const uint64_t size = cor_file_size(m->file), start = *at;
    enum vkmoe_status st;
    uint32_t n, calls;

    TRY(read_u32(m, at, &n, "the length of a name", err));
    if (!n || n >= NAME_MAX || n > size - *at)
        FAIL(VKMOE_ERR_FORMAT, "%s: the name at offset %" PRIu64 " has %" PRIu32 " bytes, not 1 to %d",
             m->path, start, n, NAME_MAX - 1);
    e->name = cor_zalloc(n + 1);
    if (!e->name)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for its index", m->path);
    TRY(cor_file_read(m->file, *at, e->name, n, err));
    *at += n;
    TRY(read_u32(m, at, &calls, "a number of calls", err));
    TRY(read_u32(m, at, &e->n, "a number of values", err));
    if (!e->n || e->n > (size - *at) / 4)
        FAIL(VKMOE_ERR_FORMAT, "%s: %" PRIu32 " values at offset %" PRIu64 " pass the end of the file",
             m->path, e->n, *at);
    e->off = *at;
    *at += 4 * (uint64_t)e->n;
done:
    return st;
}

/* Behind the entries: how many chunks there were, and the name of the text. Both may be missing. */
static enum vkmoe_status read_tail(struct mdl_imatrix *m, uint64_t at, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char text[MDL_SHOW_BYTES], raw[MDL_SHOW_BYTES];
    uint32_t n;

    if (cor_file_size(m->file) - at < 8)
        return VKMOE_OK;
    TRY(read_u32(m, &at, &m->chunks, "chunks", err));
    TRY(read_u32(m, &at, &n, "the length of a name", err));
    if (n > cor_file_size(m->file) - at)
        FAIL(VKMOE_ERR_FORMAT, "%s: truncated: a name of %" PRIu32 " bytes at offset %" PRIu64, m->path, n,
             at);
    n = n < sizeof(raw) ? n : (uint32_t)sizeof(raw);
    TRY(cor_file_read(m->file, at, raw, n, err));
    snprintf(m->dataset, sizeof(m->dataset), "%s", mdl_show(text, raw, n));
done:
    return st;
}

static enum vkmoe_status open_dat(struct mdl_imatrix *m, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    uint64_t at = 0;
    uint32_t n;

    TRY(cor_file_open(&m->file, path, err));
    m->path = cor_file_path(m->file);
    TRY(read_u32(m, &at, &n, "the number of entries", err));
    if (!n || n > ENTRIES_MAX || n > cor_file_size(m->file) / 16)
        FAIL(VKMOE_ERR_FORMAT, "%s: neither GGUF nor an importance matrix of the older format", path);
    m->entries = cor_array(n, sizeof(*m->entries));
    if (!m->entries)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for its index", path);
    m->n_entries = n;
    for (uint32_t i = 0; i < n; i++)
        TRY(read_entry(m, &m->entries[i], &at, err));
    TRY(read_tail(m, at, err));
done:
    return st;
}

/* As read_gguf; the numbers are means already, up to a factor. */
static enum vkmoe_status read_dat(float **out, uint64_t *planes, const struct mdl_imatrix *m,
                                  const char *tensor, uint64_t cols, uint64_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct entry *e = NULL;

    for (uint32_t i = 0; i < m->n_entries && !e; i++)
        e = strcmp(m->entries[i].name, tensor) ? NULL : &m->entries[i];
    if (!e)
        return VKMOE_OK;
    *planes = e->n == cols ? 1 : n;
    if (e->n != *planes * cols)
        FAIL(VKMOE_ERR_FORMAT,
             "%s: %s has %" PRIu32 " values, not %" PRIu64 " x %" PRIu64 ": made from another model", m->path,
             tensor, e->n, n, cols);
    *out = cor_array((size_t)(*planes * (cols + 1)), sizeof(float));
    if (!*out)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %s", m->path, tensor);
    TRY(cor_file_read(m->file, e->off, *out, 4 * (size_t)e->n, err));
    mdl_dequant_row(MDL_F32, *out, *out, e->n); /* the file's byte order */
    for (uint64_t i = 0; i < *planes; i++)
        (*out)[*planes * cols + i] = 1;
done:
    return st;
}

/* ---- both
 * ------------------------------------------------------------------------------------------------------ */

enum vkmoe_status mdl_imatrix_open(struct mdl_imatrix **out, const char *path, struct vkmoe_err *err)
{
    struct mdl_imatrix *m = cor_zalloc(sizeof(*m));
    enum vkmoe_status st;
    struct cor_file *f = NULL;
    char magic[4] = "";

    *out = NULL;
    if (!m)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for its index", path);
    TRY(cor_file_open(&f, path, err));
    if (cor_file_size(f) >= sizeof(magic))
        TRY(cor_file_read(f, 0, magic, sizeof(magic), err));
    TRY((memcmp(magic, "GGUF", 4) ? open_dat : open_gguf)(m, path, err));
    *out = m;
    m = NULL;
done:
    cor_file_close(f);
    mdl_imatrix_close(m);
    return st;
}

void mdl_imatrix_close(struct mdl_imatrix *m)
{
    if (!m)
        return;
    for (uint32_t i = 0; m->entries && i < m->n_entries; i++)
        cor_free(m->entries[i].name);
    cor_free(m->entries);
    cor_file_close(m->file);
    mdl_gguf_close(m->gguf);
    cor_free(m);
}

uint32_t mdl_imatrix_entries(const struct mdl_imatrix *m)
{
    return m->n_entries;
}

const char *mdl_imatrix_dataset(const struct mdl_imatrix *m)
{
    return m->dataset;
}

uint32_t mdl_imatrix_chunks(const struct mdl_imatrix *m)
{
    return m->chunks;
}

/* False: a number that is none. */
static bool make_weights(float *dst, const float *sums, float count, uint64_t cols)
{
    double total = 0;

    if (!(count >= 0) || !isfinite(count))
        return false;
    for (uint64_t i = 0; i < cols; i++) {
        if (!(sums[i] >= 0) || !isfinite(sums[i]))
            return false;
        total += sums[i];
    }
    for (uint64_t i = 0; i < cols; i++) {
        const float w = count > 0 && total > 0 ? (float)sqrt(sums[i] * (double)cols / total) : 1;

        dst[i] = w > LEAST ? w : LEAST;
    }
    return true;
}

enum vkmoe_status mdl_imatrix_load(float **out, const struct mdl_imatrix *m, const char *tensor,
                                   uint64_t cols, uint64_t n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    float *raw = NULL, *weights = NULL;
    uint64_t planes = 0;

    *out = NULL;
    if (strlen(tensor) >= NAME_MAX)
        return VKMOE_OK;
    TRY((m->gguf ? read_gguf : read_dat)(&raw, &planes, m, tensor, cols, n, err));
    if (!raw)
        goto done;
    weights = cor_array((size_t)(n * cols), sizeof(float));
    if (!weights)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %s", m->path, tensor);
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t from = planes == 1 ? 0 : i;

        if (!make_weights(weights + i * cols, raw + from * cols, raw[planes * cols + from], cols))
            FAIL(VKMOE_ERR_FORMAT, "%s: %s, expert %" PRIu64 ": a number is negative or not finite", m->path,
                 tensor, i);
    }
    *out = weights;
    weights = NULL;
done:
    cor_free(raw);
    cor_free(weights);
    return st;
}
