/* safetensors checkpoints: one file or shards in a directory, read-only, tensors by name.
 * Owns the file format with all its checks; knows no model. */
#ifndef MDL_SAFETENSORS_H
#define MDL_SAFETENSORS_H

#include "core/os.h"
#include "model/quant.h"

#define MDL_ST_MAX_DIMS 4

struct mdl_st_tensor {
    char *name;
    char dtype[12];     /* as in the file: "F32", "BF16", "I64" ... */
    enum mdl_type type; /* valid when known */
    bool known;         /* F32, F16 or BF16 */
    bool used;          /* for the caller */
    uint32_t n_dims;
    uint64_t dims[MDL_ST_MAX_DIMS]; /* as in the file: the last one is the row length, fastest */
    struct cor_file *file;
    uint64_t file_off, bytes;
};

struct mdl_st {
    struct mdl_st_tensor *tensors; /* by name */
    size_t n_tensors;
    struct cor_file **files;
    size_t n_files;
};

/* dir holds model.safetensors, or model-0000x-of-0000n.safetensors with or without
 * model.safetensors.index.json. The shards must be complete, agree with the index, and hold every byte of
 * their data in exactly one tensor. */
enum vkmoe_status mdl_st_open(struct mdl_st **out, const char *dir, struct vkmoe_err *err);
void mdl_st_close(struct mdl_st *s);
struct mdl_st_tensor *mdl_st_find(const struct mdl_st *s, const char *name); /* NULL: absent */
/* Fails when a file changed since it was opened. */
enum vkmoe_status mdl_st_unchanged(const struct mdl_st *s, struct vkmoe_err *err);

#endif
