#include "model/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "model/gguf.h"
#include "model/json.h"

enum {
    HEADER_MAX = 16 << 20,
    INDEX_MAX = 64 << 20,
    SHARDS_MAX = 512,
    PATH_MAX_BYTES = 4096,
    TENSOR_NAME_MAX = 1024
};

/* ---- one file ---- */

static const struct {
    const char *name;
    unsigned bytes;
    bool known;
    enum mdl_type type;
} dtypes[] = {
    {"F32", 4, true, MDL_F32},   {"F16", 2, true, MDL_F16},      {"BF16", 2, true, MDL_BF16},
    {"F64", 8, false, MDL_F32},  {"I64", 8, false, MDL_F32},     {"U64", 8, false, MDL_F32},
    {"I32", 4, false, MDL_F32},  {"U32", 4, false, MDL_F32},     {"I16", 2, false, MDL_F32},
    {"U16", 2, false, MDL_F32},  {"I8", 1, false, MDL_F32},      {"U8", 1, false, MDL_F32},
    {"BOOL", 1, false, MDL_F32}, {"F8_E4M3", 1, false, MDL_F32}, {"F8_E5M2", 1, false, MDL_F32},
};

/* dtype, shape and data_offsets of one entry; t->file_off is relative to the data. */
static enum vkmoe_status read_entry(struct mdl_st_tensor *t, const cJSON *entry, uint64_t data_bytes,
                                    const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const cJSON *dtype = mdl_json_get(entry, "dtype"), *shape = mdl_json_get(entry, "shape");
    const cJSON *offsets = mdl_json_get(entry, "data_offsets"), *item;
    uint64_t begin = 0, end = 0, count = 1;
    size_t k = 0;
    char name[MDL_SHOW_BYTES], text[MDL_SHOW_BYTES];

    mdl_show(name, t->name, strlen(t->name));
    if (!cJSON_IsString(dtype) || !cJSON_IsArray(shape) || !cJSON_IsArray(offsets) ||
        cJSON_GetArraySize(offsets) != 2)
        FAIL(VKMOE_ERR_FORMAT, "%s: tensor '%s': dtype, shape or data_offsets is missing or malformed", path,
             name);
    while (k < COR_COUNT(dtypes) && strcmp(dtypes[k].name, dtype->valuestring))
        k++;
    if (k == COR_COUNT(dtypes))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: tensor '%s': unknown dtype '%s'", path, name,
             mdl_show(text, dtype->valuestring, strlen(dtype->valuestring)));
    snprintf(t->dtype, sizeof(t->dtype), "%s", dtypes[k].name);
    t->type = dtypes[k].type;
    t->known = dtypes[k].known;
    if (!mdl_json_u64(offsets->child, UINT64_MAX, &begin) ||
        !mdl_json_u64(offsets->child->next, UINT64_MAX, &end) || begin > end || end > data_bytes)
        FAIL(VKMOE_ERR_FORMAT, "%s: tensor '%s': data_offsets do not lie in the %" PRIu64 " bytes of data",
             path, name, data_bytes);
    for (item = shape->child; item; item = item->next) {
        uint64_t d;

        if (t->n_dims == MDL_ST_MAX_DIMS)
            FAIL(VKMOE_ERR_UNSUPPORTED, "%s: tensor '%s' has more than %d dimensions", path, name,
                 MDL_ST_MAX_DIMS);
        if (!mdl_json_u64(item, UINT64_MAX, &d) || (d && count > UINT64_MAX / 16 / d))
            FAIL(VKMOE_ERR_FORMAT, "%s: tensor '%s': bad shape", path, name);
        t->dims[t->n_dims++] = d;
        count *= d;
    }
    if (count * dtypes[k].bytes != end - begin)
        FAIL(VKMOE_ERR_FORMAT, "%s: tensor '%s': %" PRIu64 " bytes for %" PRIu64 " elements of %s", path,
             name, end - begin, count, t->dtype);
    t->file_off = begin;
    t->bytes = end - begin;
done:
    return st;
}

static int compare_offsets(const void *a, const void *b)
{
    const struct mdl_st_tensor *x = a, *y = b;

    if (x->file_off != y->file_off)
        return x->file_off < y->file_off ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Every byte of the data belongs to exactly one tensor. Sorts them by offset. */
static enum vkmoe_status check_places(struct mdl_st_tensor *t, size_t n, uint64_t data_bytes,
                                      const char *path, struct vkmoe_err *err)
{
    uint64_t at = 0;
    char name[MDL_SHOW_BYTES];

    qsort(t, n, sizeof(*t), compare_offsets);
    for (size_t i = 0; i < n; i++) {
        if (t[i].file_off != at)
            return cor_fail(err, VKMOE_ERR_FORMAT,
                            "%s: tensor '%s' begins at %" PRIu64 " of the data, %s ends at %" PRIu64, path,
                            mdl_show(name, t[i].name, strlen(t[i].name)), t[i].file_off,
                            t[i].file_off < at ? "but the one it overlaps" : "a hole: the one before", at);
        at += t[i].bytes;
    }
    if (at != data_bytes)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: the tensors end at %" PRIu64 ", the data at %" PRIu64,
                        path, at, data_bytes);
    return VKMOE_OK;
}

/* The JSON header; *data_off is where the data begins. */
static enum vkmoe_status read_header(struct cor_file *f, cJSON **out, uint64_t *data_off,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const char *path = cor_file_path(f);
    uint64_t size = cor_file_size(f), n = 0;
    uint8_t head[8];
    char *text = NULL;

    *out = NULL;
    *data_off = 0;
    if (size < 8)
        FAIL(VKMOE_ERR_FORMAT, "%s: %" PRIu64 " bytes are too few for safetensors", path, size);
    TRY(cor_file_read(f, 0, head, 8, err));
    for (int i = 7; i >= 0; i--)
        n = n << 8 | head[i];
    if (n > size - 8)
        FAIL(VKMOE_ERR_FORMAT,
             "%s: a header of %" PRIu64 " bytes passes the end of the file (%" PRIu64 " bytes)", path, n,
             size);
    if (n > HEADER_MAX)
        FAIL(VKMOE_ERR_LIMIT, "%s: the header is larger than %d MiB", path, HEADER_MAX >> 20);
    text = cor_zalloc((size_t)n + 1);
    if (!text)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the header", path);
    TRY(cor_file_read(f, 8, text, (size_t)n, err));
    *data_off = 8 + n;
    while (n && text[n - 1] == ' ') /* padding */
        text[--n] = 0;
    TRY(mdl_json_parse(out, text, (size_t)n, path, err));
done:
    cor_free(text);
    return st;
}

static enum vkmoe_status add_file(struct mdl_st *s, const char *dir, const char *file_name,
                                  struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char path[PATH_MAX_BYTES], text[MDL_SHOW_BYTES];
    struct cor_file *f = NULL;
    cJSON *root = NULL;
    uint64_t data_off, data_bytes;
    size_t count = 0, first = s->n_tensors;
    void *grown;

    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, file_name) >= sizeof(path))
        FAIL(VKMOE_ERR_ARGUMENT, "%s: the path is too long", dir);
    grown = cor_resize(s->files, s->n_files + 1, sizeof(*s->files));
    if (!grown)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the list of files", path);
    s->files = grown;
    TRY(cor_file_open(&f, path, err));
    s->files[s->n_files++] = f;
    TRY(read_header(f, &root, &data_off, err));
    for (const cJSON *item = root->child; item; item = item->next)
        count += strcmp(item->string, "__metadata__") != 0;
    grown = cor_resize(s->tensors, s->n_tensors + count, sizeof(*s->tensors));
    if (!grown)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %zu tensors", path, count);
    s->tensors = grown;
    data_bytes = cor_file_size(f) - data_off;
    for (const cJSON *item = root->child; item; item = item->next) {
        struct mdl_st_tensor *t = &s->tensors[s->n_tensors];

        if (!strcmp(item->string, "__metadata__"))
            continue;
        memset(t, 0, sizeof(*t));
        if (strlen(item->string) > TENSOR_NAME_MAX || !item->string[0])
            FAIL(VKMOE_ERR_FORMAT, "%s: tensor name '%s' is empty or too long", path,
                 mdl_show(text, item->string, strlen(item->string)));
        t->name = cor_strdup(item->string);
        if (!t->name)
            FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %zu tensors", path, count);
        s->n_tensors++;
        t->file = f;
        TRY(read_entry(t, item, data_bytes, path, err));
    }
    TRY(check_places(s->tensors + first, count, data_bytes, path, err));
    for (size_t i = first; i < s->n_tensors; i++)
        s->tensors[i].file_off += data_off;
done:
    cJSON_Delete(root);
    return st;
}

/* ---- the directory ---- */

/* "model-00002-of-00011.safetensors": 2 and 11. */
static bool parse_shard_name(const char *name, uint32_t *index, uint32_t *total)
{
    static const char form[] = "model-#####-of-#####.safetensors";
    uint32_t v[2] = {0, 0};
    int which = 0;

    if (strlen(name) != sizeof(form) - 1)
        return false;
    for (size_t i = 0; form[i]; i++) {
        if (form[i] != '#') {
            if (name[i] != form[i])
                return false;
            which = i > 6;
        } else {
            if (name[i] < '0' || name[i] > '9')
                return false;
            v[which] = v[which] * 10 + (uint32_t)(name[i] - '0');
        }
    }
    *index = v[0];
    *total = v[1];
    return true;
}

static enum vkmoe_status add_shards(struct mdl_st *s, const char *dir, char **names, size_t n,
                                    struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t index, total, want_total = 0, next = 1;

    for (size_t i = 0; i < n; i++) { /* sorted by name, so by number */
        if (!parse_shard_name(names[i], &index, &total))
            continue;
        if (!want_total)
            want_total = total;
        if (total != want_total || total > SHARDS_MAX)
            FAIL(VKMOE_ERR_FORMAT, "%s: %s does not belong to a set of %u shards", dir, names[i], want_total);
        if (index != next)
            FAIL(VKMOE_ERR_FORMAT, "%s: shard %u of %u is missing", dir, next, want_total);
        next++;
        TRY(add_file(s, dir, names[i], err));
    }
    if (!want_total)
        FAIL(VKMOE_ERR_IO, "%s: holds neither model.safetensors nor model-*-of-*.safetensors", dir);
    if (next != want_total + 1)
        FAIL(VKMOE_ERR_FORMAT, "%s: shard %u of %u is missing", dir, next, want_total);
done:
    return st;
}

static int compare_tensor_names(const void *a, const void *b)
{
    return strcmp(((const struct mdl_st_tensor *)a)->name, ((const struct mdl_st_tensor *)b)->name);
}

static enum vkmoe_status sort_names(struct mdl_st *s, const char *dir, struct vkmoe_err *err)
{
    char name[MDL_SHOW_BYTES];

    if (s->n_tensors)
        qsort(s->tensors, s->n_tensors, sizeof(*s->tensors), compare_tensor_names);
    for (size_t i = 1; i < s->n_tensors; i++)
        if (!strcmp(s->tensors[i - 1].name, s->tensors[i].name))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: tensor '%s' occurs in two shards", dir,
                            mdl_show(name, s->tensors[i].name, strlen(s->tensors[i].name)));
    return VKMOE_OK;
}

/* The index, where there is one, and the shards say the same. */
static enum vkmoe_status check_shard_index(const struct mdl_st *s, const char *dir, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char path[PATH_MAX_BYTES], name[MDL_SHOW_BYTES];
    cJSON *root = NULL;
    const cJSON *map, *item;
    size_t count = 0, n = strlen(dir);

    snprintf(path, sizeof(path), "%s/model.safetensors.index.json",
             dir); /* shorter than the shards' paths were */
    if (!cor_path_exists(path))
        return VKMOE_OK;
    TRY(mdl_json_load(&root, path, INDEX_MAX, err));
    map = mdl_json_get(root, "weight_map");
    if (!cJSON_IsObject(map))
        FAIL(VKMOE_ERR_FORMAT, "%s: weight_map is missing", path);
    for (item = map->child; item; item = item->next, count++) {
        const struct mdl_st_tensor *t = mdl_st_find(s, item->string);

        if (!cJSON_IsString(item) || !t || strcmp(cor_file_path(t->file) + n + 1, item->valuestring))
            FAIL(VKMOE_ERR_FORMAT, "%s: tensor '%s' is not in the shard that the index names", path,
                 mdl_show(name, item->string, strlen(item->string)));
    }
    if (count != s->n_tensors)
        FAIL(VKMOE_ERR_FORMAT, "%s: lists %zu tensors, the shards hold %zu", path, count, s->n_tensors);
done:
    cJSON_Delete(root);
    return st;
}

enum vkmoe_status mdl_st_open(struct mdl_st **out, const char *dir, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_st *s = cor_zalloc(sizeof(*s));
    char **names = NULL;
    size_t n = 0;
    bool single = false, shards = false;
    uint32_t a, b;

    *out = NULL;
    if (!s)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to open the checkpoint", dir);
    TRY(cor_dir_list(dir, &names, &n, err));
    for (size_t i = 0; i < n; i++) {
        single = single || !strcmp(names[i], "model.safetensors");
        shards = shards || parse_shard_name(names[i], &a, &b);
    }
    if (single && shards)
        FAIL(VKMOE_ERR_FORMAT, "%s: holds both model.safetensors and shards", dir);
    if (single)
        TRY(add_file(s, dir, "model.safetensors", err));
    else
        TRY(add_shards(s, dir, names, n, err));
    TRY(sort_names(s, dir, err));
    if (shards)
        TRY(check_shard_index(s, dir, err));
    *out = s;
    s = NULL;
done:
    cor_free(names);
    mdl_st_close(s);
    return st;
}

void mdl_st_close(struct mdl_st *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_tensors; i++)
        cor_free(s->tensors[i].name);
    for (size_t i = 0; i < s->n_files; i++)
        cor_file_close(s->files[i]);
    cor_free(s->tensors);
    cor_free(s->files);
    cor_free(s);
}

struct mdl_st_tensor *mdl_st_find(const struct mdl_st *s, const char *name)
{
    size_t low = 0, high = s->n_tensors;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int c = strcmp(name, s->tensors[mid].name);

        if (!c)
            return &s->tensors[mid];
        if (c < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

enum vkmoe_status mdl_st_unchanged(const struct mdl_st *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (size_t i = 0; i < s->n_files; i++)
        TRY(cor_file_unchanged(s->files[i], err));
done:
    return st;
}
