/* Weights that every token uses, on the device: block bytes as they stand in the file. Owns their buffers and
 * how large matrices are cut into row ranges that the device can bind; routed experts are in pool.h. */
#ifndef RUN_WEIGHTS_H
#define RUN_WEIGHTS_H

#include "model/model.h"
#include "run/arena.h"

struct run_progress {
    void (*fn)(void *user, uint64_t done_bytes, uint64_t total_bytes); /* NULL: none */
    void *user;
    uint64_t done, total;
};

struct run_piece { /* rows [row0, row0 + n_rows) of a matrix */
    struct run_region region;
    uint32_t row0, n_rows;
};

/* One matrix, or several of one format stacked by rows (q, k and v; gate and up), in pieces that fit a
 * binding. */
struct run_matrix {
    const struct mdl_tensor *src[3];
    uint32_t n_src;
    enum mdl_type type;
    uint32_t rows, cols;
    uint64_t row_bytes;
    uint32_t n_pieces;
    struct run_piece *pieces;
};

/* What one activation is multiplied with at once; the outputs stand behind each other. One matrix where the
 * formats are the same, else one each. */
struct run_linear {
    uint32_t n;
    struct run_matrix m[3];
    uint32_t n_out; /* rows of all */
};

struct run_layer_weights {
    struct run_matrix attn_norm, ffn_norm, router; /* router: n_src == 0: a dense layer */
    struct run_linear qkv, o;
    struct run_linear shared_gate_up, shared_down; /* or of a dense layer; n == 0: no shared expert */
    /* Lists of f32 behind each other, each one piece of one column; n_src == 0: there is none. */
    struct run_matrix qk_norm, qkv_bias, o_bias, sinks, router_bias, shared_gate;
};

struct run_weights {
    struct run_arena arena;
    struct run_matrix embed, out_norm;
    struct run_linear head;
    bool tied; /* head uses embed's pieces */
    struct run_layer_weights *layers;
    uint32_t n_layers;
};

/* Plans every dense tensor; no device memory is taken yet. */
enum vkmoe_status run_weights_plan(struct run_weights *w, struct gpu_device *dev, const struct mdl_model *m,
                                   struct vkmoe_err *err);
/* Takes the memory and uploads from the file. */
enum vkmoe_status run_weights_load(struct run_weights *w, const struct mdl_model *m,
                                   struct run_progress *progress, struct vkmoe_err *err);
void run_weights_close(struct run_weights *w);
uint64_t run_weights_bytes(const struct run_weights *w);

/* n bytes of a tensor from tensor_off on, to buf at off (a multiple of 4). n is rounded up to 4 with zeros on
 * the device. */
enum vkmoe_status run_upload_tensor(struct gpu_device *dev, struct gpu_buffer *buf, uint64_t off,
                                    const struct mdl_gguf *g, const struct mdl_tensor *t, uint64_t tensor_off,
                                    uint64_t n, struct run_progress *progress, struct vkmoe_err *err);

#endif
