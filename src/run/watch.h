/* What the host sees of the router: the listener, the share of probability outside the mask, and the document
 * pool that is picked from it. Owns sums and pools; loads nothing and submits nothing. */
#ifndef RUN_WATCH_H
#define RUN_WATCH_H

#include "run/state.h"

#define RUN_DOC_LEAST  16   /* tokens that a pool is picked from when the first feed had only one */
#define RUN_DOC_MARGIN 1.25 /* an expert outside comes in when its sum is that much larger than the weakest \
                             */
#define RUN_DOC_EXCHANGE 8  /* at most an eighth of the pool, per layer and look */

struct run_watch {
    const struct run_model *model;
    const struct run_state *state;
    vkmoe_watch_fn fn;
    void *user;
    struct vkmoe_outside outside;
    double *probs; /* (n_experts) of the token in hand */
    /* document pool; doc 0: none */
    uint32_t doc, refresh; /* experts per layer; tokens between two looks, 0: never */
    bool picked;
    bool summed;    /* the tokens in hand are in the sums already */
    uint32_t since; /* tokens since the last look */
    double *sum;    /* (n_layers, n_experts): router probability of the text so far */
    uint32_t *pool; /* expert masks of the layers that are picked, nothing in the others */
    uint32_t *mask; /* what may be chosen: the pool where there is one, else what the model allows */
};

enum vkmoe_status run_watch_create(struct run_watch *w, const struct run_model *m, const struct run_state *s,
                                   uint32_t doc, uint32_t refresh, struct vkmoe_err *err);
void run_watch_close(struct run_watch *w);
void run_watch_reset(struct run_watch *w); /* another text; counts of outside stay */

/* Adds the logits of a layer that the device has just shown to the sums. */
enum vkmoe_status run_watch_sum(struct run_watch *w, uint32_t layer, uint32_t n_tokens,
                                struct vkmoe_err *err);
/* The layer is complete for these tokens: counts what was outside the mask, tells the listener. sel: what was
 * chosen, NULL: nothing was. */
enum vkmoe_status run_watch_layer(struct run_watch *w, uint32_t layer, uint32_t pos, uint32_t n_tokens,
                                  const uint32_t *sel, struct vkmoe_err *err);
/* The layer's pool: the `doc` allowed experts with the largest sums, ties to the lower id. */
void run_watch_pick(struct run_watch *w, uint32_t layer);
/* Exchanges experts of every layer whose sum has fallen behind; true when any was. */
bool run_watch_exchange(struct run_watch *w);

#endif
