/* A tiny Hugging Face EMO checkpoint on disk, with weights that a test can compute for itself. */
#ifndef TEST_HF_H
#define TEST_HF_H

#include "model/quant.h"
#include "support/test.h"

struct hf_dir {
    char path[2048];
    uint32_t layers, dim, heads, kv_heads, ff, experts, shared, per_tok, vocab;
    const uint32_t *per_layer; /* experts of each layer, shared included; NULL: all have `experts` */
    enum mdl_type type;        /* of model.safetensors: F32, F16 or BF16 */
    bool tied;                /* no lm_head.weight */
    bool sharded;             /* two shards and an index */
    const char *extra_tensor; /* NULL or the name of one more, a vector of 4 */
    const char *no_tensor;    /* NULL or one to leave out */
    const char *infinite;     /* NULL or one whose last element is infinite */
};

/* 2 layers, dim 64, 4 heads of 16 (2 for keys and values), 5 experts of 32 (1 shared), 3 per token,
 * vocabulary 264, BF16. path: a new directory. */
void hf_init(struct hf_dir *h);
/* Writes config.json, tokenizer.json and the weights. */
void hf_write(const struct hf_dir *h);
void hf_write_weights(const struct hf_dir *h);
void hf_write_tokenizer(const struct hf_dir *h);
/* config.json with one key's line replaced: with NULL it is left out, else line is the whole text, as "\"a\":
 * 1". A key that is not there is added. key NULL: unchanged. */
void hf_write_config(const struct hf_dir *h, const char *key, const char *line);
void hf_write_file(const struct hf_dir *h, const char *name, const void *data, size_t n);
const char *hf_file(const struct hf_dir *h, const char *name); /* path, in a static ring */
/* Element i of a tensor by its checkpoint name: exact in F16 and BF16. */
float hf_value(const char *tensor, uint64_t i);

#endif
