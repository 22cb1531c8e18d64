/* GGUF files, versions 2 and 3, little-endian: reading the index with every count checked, and writing.
 * Owns the file format; knows nothing of what the tensors mean (config.h, model.h). */
#ifndef MDL_GGUF_H
#define MDL_GGUF_H

#include "core/os.h"
#include "model/quant.h"

#define MDL_GGUF_MAX_DIMS 4

enum mdl_gguf_type { /* value types of metadata, GGUF's numbers */
    MDL_GGUF_U8, MDL_GGUF_I8, MDL_GGUF_U16, MDL_GGUF_I16, MDL_GGUF_U32, MDL_GGUF_I32, MDL_GGUF_F32,
    MDL_GGUF_BOOL,
    MDL_GGUF_STRING, MDL_GGUF_ARRAY, MDL_GGUF_U64, MDL_GGUF_I64, MDL_GGUF_F64
};

struct mdl_str { /* bytes inside the index; not NUL-terminated */
    const char *p;
    uint64_t n;
};

struct mdl_kv {
    const char *key; /* NUL-terminated */
    enum mdl_gguf_type type;
    enum mdl_gguf_type elem_type; /* of arrays */
    uint64_t count;               /* elements of an array, else 1 */
    union {
        uint64_t u;   /* U8 .. U64, BOOL */
        int64_t i;    /* I8 .. I64 */
        double f;     /* F32, F64 */
        struct mdl_str s;
        const void *array;          /* numbers as they stand in the file (any alignment) */
        const struct mdl_str *strs; /* arrays of strings */
    } v;
};

struct mdl_tensor {
    const char *name;
    uint32_t gguf_type;  /* the number in the file */
    enum mdl_type type;  /* valid when known */
    bool known;          /* the type is one of mdl_type; others are listed but cannot be read */
    uint32_t n_dims;
    uint64_t dims[MDL_GGUF_MAX_DIMS]; /* dims[0] is the row length, fastest; unused ones are 1 */
    uint32_t part;       /* which of the model's files, from 0 */
    uint64_t file_off;   /* absolute, bytes */
    uint64_t bytes;      /* 0 when !known */
};

struct mdl_gguf {
    struct cor_file *file;   /* the first, which has the keys */
    struct cor_file **files; /* all of them, by mdl_tensor.part; one unless the model is split */
    uint32_t n_files;
    uint32_t version;
    uint32_t alignment;
    uint64_t n_kv, n_tensors;
    struct mdl_kv *kv;
    struct mdl_tensor *tensors; /* in file order */
    uint64_t data_off;          /* in the first file */
    /* private */
    char *index; /* header bytes, from the start of the file to the last tensor's entry */
    void *arena;
    struct mdl_gguf **parts; /* n_files where there are more than one, [0] is NULL */
    struct mdl_tensor *joined;
};

/* s for messages: control characters and bytes that are not UTF-8 as \xNN, long text cut. Returns dst. */
enum { MDL_SHOW_BYTES = 96 };
const char *mdl_show(char dst[MDL_SHOW_BYTES], const char *s, uint64_t n);

/* Reads the index in growing pieces, never the data. Everything in it is checked: counts and lengths against
 * the file's size, shapes, offsets, alignment, duplicates, overlaps. The first part of a split model opens
 * all others, which stand beside it; another part is refused. */
enum vkmoe_status mdl_gguf_open(struct mdl_gguf **out, const char *path, struct vkmoe_err *err);
void mdl_gguf_close(struct mdl_gguf *g);

const struct mdl_kv *mdl_gguf_find(const struct mdl_gguf *g, const char *key);          /* NULL: absent */
const struct mdl_tensor *mdl_gguf_tensor(const struct mdl_gguf *g, const char *name);   /* NULL: absent */
/* Typed look-ups. Any integer type is accepted where the value fits. Absent or wrong type: an error that
 * names file and key. */
enum vkmoe_status mdl_gguf_u32(const struct mdl_gguf *g, const char *key, uint32_t *v, struct vkmoe_err *err);
enum vkmoe_status mdl_gguf_f32(const struct mdl_gguf *g, const char *key, float *v, struct vkmoe_err *err);
enum vkmoe_status mdl_gguf_bool(const struct mdl_gguf *g, const char *key, bool *v, struct vkmoe_err *err);
enum vkmoe_status mdl_gguf_str(const struct mdl_gguf *g, const char *key, struct mdl_str *v,
                               struct vkmoe_err *err);
/* Element i of an array of U32. */
uint32_t mdl_kv_u32(const struct mdl_kv *kv, uint64_t i);
/* The whole tensor, or a part of it, as the file's bytes. */
enum vkmoe_status mdl_gguf_read(const struct mdl_gguf *g, const struct mdl_tensor *t, uint64_t off,
                                void *dst, size_t n,
                                struct vkmoe_err *err);

/* Of a split model: of all its files. */
uint64_t mdl_gguf_file_bytes(const struct mdl_gguf *g);
enum vkmoe_status mdl_gguf_unchanged(const struct mdl_gguf *g, struct vkmoe_err *err);
bool mdl_gguf_is_file(const struct mdl_gguf *g, const char *path); /* path is one of them */
/* True of keys that say how a file is written, not what the model is: who copies keys leaves these out. */
bool mdl_gguf_key_of_file(const char *key);

/* Writing: declare all keys and tensors, then append the data of each tensor in the order declared, then
 * commit. */
struct mdl_gguf_writer;
/* path NULL: no file, only to ask mdl_gguf_declared; nothing but declarations then. */
enum vkmoe_status mdl_gguf_create(struct mdl_gguf_writer **out, const char *path, struct vkmoe_err *err);
enum vkmoe_status mdl_gguf_put_u32(struct mdl_gguf_writer *w, const char *key, uint32_t v,
                                   struct vkmoe_err *err);
enum vkmoe_status mdl_gguf_put_f32(struct mdl_gguf_writer *w, const char *key, float v,
                                   struct vkmoe_err *err);
enum vkmoe_status mdl_gguf_put_bool(struct mdl_gguf_writer *w, const char *key, bool v,
                                    struct vkmoe_err *err);
enum vkmoe_status mdl_gguf_put_str(struct mdl_gguf_writer *w, const char *key, const char *p, size_t n,
                                   struct vkmoe_err *err);
/* Items of STRING are struct mdl_str. */
enum vkmoe_status mdl_gguf_put_array(struct mdl_gguf_writer *w, const char *key, enum mdl_gguf_type elem,
                                     const void *items, uint64_t count, struct vkmoe_err *err);
/* A copy of kv, as read from another file. */
enum vkmoe_status mdl_gguf_put_kv(struct mdl_gguf_writer *w, const struct mdl_kv *kv, struct vkmoe_err *err);
enum vkmoe_status mdl_gguf_put_tensor(struct mdl_gguf_writer *w, const char *name, enum mdl_type type,
                                      uint32_t n_dims,
                                      const uint64_t *dims, struct vkmoe_err *err);
enum vkmoe_status mdl_gguf_write_data(struct mdl_gguf_writer *w, const void *data, size_t n,
                                      struct vkmoe_err *err);
uint64_t mdl_gguf_written(const struct mdl_gguf_writer *w); /* bytes of the file so far */
/* Bytes that the file will have with what has been declared so far. */
uint64_t mdl_gguf_declared(const struct mdl_gguf_writer *w);
/* Checks that it is whole and flushes it to disk under its temporary name: commit then only renames. */
enum vkmoe_status mdl_gguf_finish(struct mdl_gguf_writer *w, struct vkmoe_err *err);
/* Frees w in either case. */
enum vkmoe_status mdl_gguf_commit(struct mdl_gguf_writer *w, struct vkmoe_err *err);
void mdl_gguf_discard(struct mdl_gguf_writer *w);

#endif
