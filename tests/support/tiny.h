/* A very small model with random weights that a test may change before it is written as GGUF and opened. It
 * has no keys and no tokenizer: struct mdl_model is filled in by hand. */
#ifndef TEST_TINY_H
#define TEST_TINY_H

#include "model/model.h"
#include "support/test.h"

enum tiny_part { /* tensors of a layer */
                 TINY_ATTN_NORM,
                 TINY_Q,
                 TINY_K,
                 TINY_V,
                 TINY_O,
                 TINY_FFN_NORM,
                 TINY_ROUTER,
                 TINY_GATE,
                 TINY_UP,
                 TINY_DOWN,
                 TINY_GATE_SH,
                 TINY_UP_SH,
                 TINY_DOWN_SH,
                 TINY_PARTS
};

enum { TINY_EMBED, TINY_OUT_NORM, TINY_HEAD, TINY_GLOBALS, TINY_MAX_LAYERS = 2 };

struct tiny_tensor {
    char name[32];
    uint32_t n_dims;
    uint64_t dims[3]; /* row length first */
    size_t count;
    float *data;
};

struct tiny {
    struct mdl_config c;
    struct tiny_tensor tensors[TINY_GLOBALS + TINY_MAX_LAYERS * TINY_PARTS];
    uint32_t n_tensors;
    struct mdl_model model; /* after tiny_open */
    struct mdl_layer layers[TINY_MAX_LAYERS];
};

/* Two layers, every width a multiple of 32, 4 heads on 2 KV heads, 6 routed experts of which 2 are used, 1
 * shared. */
struct mdl_config tiny_config(void);
/* Random weights for c. */
void tiny_make(struct tiny *t, const struct mdl_config *c, uint64_t seed);
/* Tensor `part` of a layer, (rows, columns) with rows contiguous. */
float *tiny_part(struct tiny *t, uint32_t layer, enum tiny_part part);
/* Writes t as dir/name, matrices in `type` (norms and routers F32), and opens it as t->model. tied: the head
 * is embed. */
void tiny_open(struct tiny *t, const char *dir, const char *name, enum mdl_type type, bool tied);
void tiny_close(struct tiny *t);

#endif
