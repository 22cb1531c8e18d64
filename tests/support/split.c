#include "support/split.h"

#include <inttypes.h>
#include <stdio.h>

enum { MAX_PARTS = 16 };

static struct vkmoe_err err;

const char *split_path(const char *dir, const char *stem, uint32_t no, uint32_t n)
{
    static char ring[8][4200];
    static unsigned at;
    char *path = ring[at++ % 8];

    snprintf(path, sizeof(ring[0]), "%s/%s-%05" PRIu32 "-of-%05" PRIu32 ".gguf", dir, stem, no + 1, n);
    return path;
}

void split_plan(struct split_part *parts, uint32_t n, const struct mdl_gguf *whole)
{
    for (uint32_t i = 0; i < n; i++)
        parts[i] = (struct split_part){.no = i,
                                       .count = n,
                                       .n_tensors = (uint32_t)whole->n_tensors,
                                       .n_keys = 3,
                                       .first = whole->n_tensors * i / n,
                                       .end = whole->n_tensors * (i + 1) / n};
}

static void put_split_keys(struct mdl_gguf_writer *w, const struct split_part *part)
{
    const struct mdl_kv keys[] = {
        {.key = "split.no", .type = MDL_GGUF_U16, .v.u = part->no},
        {.key = "split.count", .type = MDL_GGUF_U16, .v.u = part->count},
        {.key = "split.tensors.count", .type = MDL_GGUF_I32, .v.i = part->n_tensors},
    };

    for (uint32_t i = 0; i < part->n_keys; i++)
        test_ok(mdl_gguf_put_kv(w, &keys[i], &err), &err);
}

void split_write(const struct mdl_gguf *whole, const char *path, const struct split_part *part,
                 bool with_keys)
{
    struct mdl_gguf_writer *w;

    test_ok(mdl_gguf_create(&w, path, &err), &err);
    for (uint64_t i = 0; with_keys && i < whole->n_kv; i++)
        if (!mdl_gguf_key_of_file(whole->kv[i].key))
            test_ok(mdl_gguf_put_kv(w, &whole->kv[i], &err), &err);
    put_split_keys(w, part);
    for (uint64_t i = part->first; i < part->end; i++) {
        const struct mdl_tensor *t = &whole->tensors[i];

        test_ok(mdl_gguf_put_tensor(w, t->name, t->type, t->n_dims, t->dims, &err), &err);
    }
    for (uint64_t i = part->first; i < part->end; i++) {
        const struct mdl_tensor *t = &whole->tensors[i];
        char *bytes = cor_alloc((size_t)t->bytes);

        assert_non_null(bytes);
        test_ok(mdl_gguf_read(whole, t, 0, bytes, (size_t)t->bytes, &err), &err);
        test_ok(mdl_gguf_write_data(w, bytes, (size_t)t->bytes, &err), &err);
        cor_free(bytes);
    }
    test_ok(mdl_gguf_commit(w, &err), &err);
}

const char *split_copy(const char *path, const char *dir, const char *stem, uint32_t n)
{
    struct split_part parts[MAX_PARTS];
    struct mdl_gguf *whole;

    assert_true(n <= MAX_PARTS);
    test_ok(mdl_gguf_open(&whole, path, &err), &err);
    split_plan(parts, n, whole);
    for (uint32_t i = 0; i < n; i++)
        split_write(whole, split_path(dir, stem, i, n), &parts[i], !i);
    mdl_gguf_close(whole);
    return split_path(dir, stem, 0, n);
}
