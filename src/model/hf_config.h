/* config.json of a Hugging Face EMO checkpoint. Owns its keys; knows no tensor. */
#ifndef MDL_HF_CONFIG_H
#define MDL_HF_CONFIG_H

#include "core/status.h"

struct hf_config {
    char arch[64]; /* as the file names it */
    uint32_t dim, ff, n_layers, n_heads, n_kv_heads, head_dim, vocab, n_ctx;
    uint32_t n_experts;          /* shared ones included; of the layer with most */
    uint32_t n_shared, n_routed; /* 0 or 1; the others */
    uint32_t *n_of_layer;        /* (n_layers) as n_experts, where layers differ; NULL: all have as many */
    uint32_t top_k;              /* routed experts a token uses */
    float eps, theta;
    bool norm_topk, tied;
    uint32_t eos;
    int64_t pad; /* -1: none */
};

/* hf_config_free by the caller, after a failure as well. */
enum vkmoe_status hf_config_read(struct hf_config *c, const char *path, struct vkmoe_err *err);
void hf_config_free(struct hf_config *c);

#endif
