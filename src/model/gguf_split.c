/* Models in several files, NAME-00001-of-0000N.gguf, as llama.cpp's gguf-split writes them: the first has the
 * keys, all of them have tensors, and the keys split.no (from 0), split.count and split.tensors.count. They
 * are opened by the first and are then one model, whose tensors know their part. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "model/gguf_impl.h"

enum {
    PARTS_MAX = 65535, /* split.count is a 16-bit number */
    SUFFIX_ROOM = 32
};

struct split {
    uint32_t no, count, n_tensors;
};

static enum vkmoe_status read_split(struct split *s, const struct mdl_gguf *g, struct vkmoe_err *err)
{
    enum vkmoe_status st;

    TRY(mdl_gguf_u32(g, "split.no", &s->no, err));
    TRY(mdl_gguf_u32(g, "split.count", &s->count, err));
    TRY(mdl_gguf_u32(g, "split.tensors.count", &s->n_tensors, err));
done:
    return st;
}

static size_t suffix(char dst[SUFFIX_ROOM], uint32_t no, uint32_t count)
{
    return (size_t)snprintf(dst, SUFFIX_ROOM, "-%05" PRIu32 "-of-%05" PRIu32 ".gguf", no + 1, count);
}

/* What the first file says of the others. */
static enum vkmoe_status check_first(const struct mdl_gguf *g, const struct split *s, struct vkmoe_err *err)
{
    const char *path = cor_file_path(g->file);
    char tail[SUFFIX_ROOM];
    size_t n = suffix(tail, 0, s->count), have = strlen(path);

    if (s->count > PARTS_MAX)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key split.count: %" PRIu32 " parts, at most %d", path,
                        s->count, PARTS_MAX);
    if (s->no >= s->count)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key split.no: %" PRIu32 " is not in 0..%" PRIu32, path,
                        s->no, s->count - 1);
    if (s->no)
        return cor_fail(err, VKMOE_ERR_FORMAT,
                        "%s: part %" PRIu32 " of %" PRIu32 " of a model: open the first, ...%s", path,
                        s->no + 1, s->count, tail);
    if (have <= n || strcmp(path + have - n, tail))
        return cor_fail(err, VKMOE_ERR_FORMAT,
                        "%s: the first of %" PRIu32 " parts of a model, but its name does not end with %s",
                        path, s->count, tail);
    return VKMOE_OK;
}

static enum vkmoe_status check_part(const struct mdl_gguf *part, const struct split *first, uint32_t no,
                                    struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct split s;

    TRY(read_split(&s, part, err));
    if (s.no != no)
        FAIL(VKMOE_ERR_FORMAT, "%s: key split.no: %" PRIu32 ", but by its name it is %" PRIu32,
             cor_file_path(part->file), s.no, no);
    if (s.count != first->count)
        FAIL(VKMOE_ERR_FORMAT, "%s: key split.count: %" PRIu32 ", the first part says %" PRIu32,
             cor_file_path(part->file), s.count, first->count);
    if (s.n_tensors != first->n_tensors)
        FAIL(VKMOE_ERR_FORMAT, "%s: key split.tensors.count: %" PRIu32 ", the first part says %" PRIu32,
             cor_file_path(part->file), s.n_tensors, first->n_tensors);
done:
    return st;
}

static enum vkmoe_status open_parts(struct mdl_gguf *g, const struct split *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const char *first = cor_file_path(g->file);
    char *path = cor_strdup(first), tail[SUFFIX_ROOM];
    const size_t stem = strlen(first) - suffix(tail, 0, s->count);

    g->parts = cor_array(s->count, sizeof(struct mdl_gguf *));
    g->files = cor_array(s->count, sizeof(struct cor_file *));
    if (!path || !g->parts || !g->files)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %" PRIu32 " parts", first, s->count);
    g->files[0] = g->file;
    while (g->n_files < s->count) {
        const uint32_t no = g->n_files;

        suffix(path + stem, no, s->count);
        if (!cor_path_exists(path))
            FAIL(VKMOE_ERR_IO, "%s: is missing: part %" PRIu32 " of %" PRIu32, path, no + 1, s->count);
        TRY(mdl_gguf_open_one(&g->parts[no], path, err));
        g->files[g->n_files++] = g->parts[no]->file;
        TRY(check_part(g->parts[no], s, no, err));
    }
done:
    cor_free(path);
    return st;
}

static int compare_names(const void *a, const void *b)
{
    const struct mdl_tensor *x = *(const struct mdl_tensor *const *)a,
                            *y = *(const struct mdl_tensor *const *)b;
    int order = strcmp(x->name, y->name);

    return order ? order : (x->part > y->part) - (x->part < y->part);
}

/* Within a part opening it has seen to that. */
static enum vkmoe_status check_repeats(const struct mdl_gguf *g, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct mdl_tensor **sorted = cor_array((size_t)g->n_tensors, sizeof(struct mdl_tensor *));
    char text[MDL_SHOW_BYTES];

    if (!sorted)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to check the index", cor_file_path(g->file));
    for (uint64_t i = 0; i < g->n_tensors; i++)
        sorted[i] = &g->tensors[i];
    qsort(sorted, (size_t)g->n_tensors, sizeof(*sorted), compare_names);
    for (uint64_t i = 1; i < g->n_tensors; i++)
        if (!strcmp(sorted[i - 1]->name, sorted[i]->name))
            FAIL(VKMOE_ERR_FORMAT, "%s: tensor '%s' is already in part %" PRIu32,
                 cor_file_path(g->files[sorted[i]->part]),
                 mdl_show(text, sorted[i]->name, strlen(sorted[i]->name)), sorted[i - 1]->part + 1);
done:
    cor_free(sorted);
    return st;
}

/* One list of all parts' tensors, in their order. */
static enum vkmoe_status join_tensors(struct mdl_gguf *g, const struct split *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t total = g->n_tensors, n = g->n_tensors;

    for (uint32_t i = 1; i < g->n_files; i++)
        total += g->parts[i]->n_tensors;
    if (total != s->n_tensors)
        FAIL(VKMOE_ERR_FORMAT,
             "%s: key split.tensors.count: %" PRIu32 ", but the %" PRIu32 " parts have %" PRIu64,
             cor_file_path(g->file), s->n_tensors, s->count, total);
    g->joined = cor_array((size_t)total, sizeof(*g->joined));
    if (!g->joined)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %" PRIu64 " tensors", cor_file_path(g->file), total);
    if (n)
        memcpy(g->joined, g->tensors, (size_t)n * sizeof(*g->joined));
    for (uint32_t i = 1; i < g->n_files; i++)
        for (uint64_t k = 0; k < g->parts[i]->n_tensors; k++) {
            g->joined[n] = g->parts[i]->tensors[k];
            g->joined[n++].part = i;
        }
    g->tensors = g->joined;
    g->n_tensors = total;
    TRY(check_repeats(g, err));
done:
    return st;
}

enum vkmoe_status mdl_gguf_open(struct mdl_gguf **out, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct mdl_gguf *g = NULL;
    struct split s = {0, 0, 0};

    *out = NULL;
    TRY(mdl_gguf_open_one(&g, path, err));
    if (mdl_gguf_find(g, "split.count"))
        TRY(mdl_gguf_u32(g, "split.count", &s.count, err));
    if (s.count > 1) { /* 0 and 1 are left in files that were joined */
        TRY(read_split(&s, g, err));
        TRY(check_first(g, &s, err));
        TRY(open_parts(g, &s, err));
        TRY(join_tensors(g, &s, err));
    }
    *out = g;
    g = NULL;
done:
    mdl_gguf_close(g);
    return st;
}

/* ---- all parts of an open file
 * ------------------------------------------------------------------------------------------------------ */

uint64_t mdl_gguf_file_bytes(const struct mdl_gguf *g)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < g->n_files; i++)
        bytes += cor_file_size(g->files[i]);
    return bytes;
}

enum vkmoe_status mdl_gguf_unchanged(const struct mdl_gguf *g, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < g->n_files; i++)
        TRY(cor_file_unchanged(g->files[i], err));
done:
    return st;
}

bool mdl_gguf_is_file(const struct mdl_gguf *g, const char *path)
{
    for (uint32_t i = 0; i < g->n_files; i++)
        if (cor_path_same(cor_file_path(g->files[i]), path))
            return true;
    return false;
}

bool mdl_gguf_key_of_file(const char *key)
{
    return !strcmp(key, "general.alignment") || !strcmp(key, "split.no") || !strcmp(key, "split.count") ||
           !strcmp(key, "split.tensors.count");
}
