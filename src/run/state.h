/* Device memory of one session: KV cache, activations, step and mailbox. Owns the buffers and their sizes. */
#ifndef RUN_STATE_H
#define RUN_STATE_H

#include "run/model.h"

struct run_kv { /* of one layer: (n_ctx, n_kv_heads, head_dim), as shaders/lib/cache.glsl has them */
    struct run_region k, v;
};

struct run_state {
    struct gpu_device *dev;
    uint32_t n_ctx;
    uint32_t chunk;               /* tokens per prefill submit; 1: prefill goes token by token */
    uint32_t n_rows;              /* rows of logits at once */
    uint32_t n_splits;            /* of attn_one */
    uint32_t n_top;               /* pairs of the best logits that the host gets; 0: all logits */
    uint32_t n_ids;               /* tokens that may be among them */
    enum mdl_type k_type, v_type; /* of the cache: MDL_F32, MDL_F16, MDL_Q8_0 */
    struct run_arena kv_arena, act;
    struct run_kv *kv; /* n_layers */
    /* Activations, f32, (chunk, ...) unless said otherwise */
    struct run_region x, xn;   /* (dim) residual stream, normed */
    struct run_region qkv, qr; /* (q + k + v rows), (q rows) rotated queries */
    struct run_region att,
        part;                 /* (q rows); (n_heads, n_splits, head_dim + 2) partial attention of one token */
    struct run_region counts; /* (n_heads) words of lib/last.glsl, 0 between dispatches */
    struct run_region route, sel; /* (n_experts) router logits; (k, 2) choice: id, weight */
    struct run_region gu, hs, ys; /* shared expert or dense FFN: (2 ff), (ff), (dim) */
    struct run_region h, y; /* (k, ff_expert), (k, dim); a single token's h has the shared expert behind it */
    /* What one token chose: CHOICE_* of shared/step.h, of which run and chosen are parts */
    struct run_region choice, run, chosen;
    struct run_region tiles, pairs;
    struct run_region logits;               /* (n_rows, vocab) */
    struct run_region top;                  /* results of topk by slice */
    struct run_region rope;                 /* (n_ctx, n_rot / 2, 2) cos and sin, computed in double */
    struct run_region mask;                 /* (n_layers, ceil(n_experts / 32)) allowed experts; in choice */
    struct run_region router_bias;          /* (n_layers, n_experts) behind it; of 0 bytes: there is none */
    uint32_t bias_at;                       /* its first word in choice; 0: there is none */
    struct run_region stream;               /* (n_ctx, dim) residual stream of a whole text: document pools */
    struct run_region xq, hq, hsq;          /* fast_math: quantised input of a linear, h, hs */
    uint32_t *allowed;                      /* host copy of the mask */
    struct gpu_buffer *state;               /* head of the step and tokens, on the device */
    struct gpu_buffer *step[GPU_IN_FLIGHT]; /* host writes, in turns */
    /* Host reads; out: logits (n_rows, vocab), or a result of topk; routes: (n_layers, chunk, k, 2); both as
     * in shared/step.h */
    struct gpu_buffer *mailbox, *out, *routes;
    /* Host reads; NULL where nobody asked: router logits (n_layers, chunk, n_experts), and what expert_sums
     * computes (n_layers, chunk, 3 + k) */
    struct gpu_buffer *seen, *sums;
    enum vkmoe_watch watch;
    bool by_layer;  /* the stream of whole texts is kept */
    bool fast_math; /* activations are rounded to 8 bits where kernels take them (dot.h) */
};

struct run_state_params {
    uint32_t n_ctx, chunk;
    enum mdl_type k_type, v_type;
    enum vkmoe_watch watch;
    bool by_layer, fast_math;
    uint32_t n_top;
};

/* Sizes and regions; no device memory is taken, and the model need not be loaded yet. */
enum vkmoe_status run_state_plan(struct run_state *s, const struct run_model *m,
                                 const struct run_state_params *p, struct vkmoe_err *err);
uint64_t run_state_bytes(const struct run_state *s); /* on the device, planned */
/* Takes what was planned. */
enum vkmoe_status run_state_create(struct run_state *s, const struct run_model *m, struct vkmoe_err *err);
void run_state_close(struct run_state *s);
/* Expert mask: n_layers x run_mask_words; no submit may be in flight. The copy of the host changes on success
 * only. */
enum vkmoe_status run_state_set_mask(struct run_state *s, const uint32_t *allowed, struct vkmoe_err *err);

#endif
