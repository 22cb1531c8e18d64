/* One text being read and continued: cuts feeds into steps and hands out logits. Owns its KV cache,
 * activations and programs; shares the model. */
#ifndef RUN_SESSION_H
#define RUN_SESSION_H

#include "run/pass.h"

struct run_session_params {
    uint32_t n_ctx;               /* at least 1 */
    uint32_t chunk;               /* prefill chunk; 0: what fits, at most 512 */
    enum mdl_type k_type, v_type; /* of the cache: MDL_F32, MDL_F16, MDL_Q8_0 */
    bool fast_math;               /* activations rounded to 8 bits (dot.h) */
    bool slow; /* one submit and one wait per part: the oracle for everything that is done in fewer */
    enum vkmoe_watch watch;
    uint32_t doc_experts, doc_refresh; /* document pool, as in vkmoe.h; 0: none */
    uint32_t n_top;                    /* only the best logits come to the host, at most TOPK_MAX; 0: all */
};

/* Logits of row `index` of the feed, vocab_size floats; false ends the feed. */
typedef bool (*run_logits_fn)(void *user, size_t index, const float *logits);

struct run_session;

/* Device bytes of such a session; the model need not be loaded yet. */
enum vkmoe_status run_session_bytes(uint64_t *bytes, const struct run_model *m,
                                    const struct run_session_params *p, struct vkmoe_err *err);
/* Has threads make the pipelines of such a session while the caller does something else: any time after
 * weights and pool have their memory. */
void run_session_foresee(const struct run_model *m, const struct run_session_params *p);
enum vkmoe_status run_session_create(struct run_session **out, struct run_model *m,
                                     const struct run_session_params *p, struct vkmoe_err *err);
void run_session_destroy(struct run_session *s);
/* fn NULL: only the last token's logits are computed. */
enum vkmoe_status run_session_feed(struct run_session *s, const int32_t *tokens, size_t n, run_logits_fn fn,
                                   void *user, struct vkmoe_err *err);
/* Ends with the router of layer `last`; afterwards the session only takes run_session_reset. */
enum vkmoe_status run_session_feed_to(struct run_session *s, const int32_t *tokens, size_t n, uint32_t last,
                                      struct vkmoe_err *err);
const float *run_session_logits(const struct run_session *s); /* NULL before the first feed, and with n_top */
/* How many pairs of the best logits there are, best first; 0 before the first feed and without n_top. */
uint32_t run_session_top(const struct run_session *s, const int32_t **ids, const float **logits);
uint32_t run_session_position(const struct run_session *s);
void run_session_reset(struct run_session *s);
void run_session_amount(const struct run_session *s, uint32_t pos, struct gpu_amount *sum); /* of one token */
const struct run_stats *run_session_stats(const struct run_session *s);
const struct run_state *run_session_state(const struct run_session *s);
void run_session_counts(const struct run_session *s, struct vkmoe_session_counts *counts);

/* Expert mask, n_layers x run_mask_words: routed experts that may be chosen, all of them allowed by the
 * model. Not with a document pool. */
enum vkmoe_status run_session_set_mask(struct run_session *s, const uint32_t *allowed, struct vkmoe_err *err);

bool run_session_has_doc(const struct run_session *s);
void run_session_on_watch(struct run_session *s, vkmoe_watch_fn fn, void *user); /* NULL: no calls */
/* Of a session that watches inputs. NULL: no calls. */
void run_session_on_inputs(struct run_session *s, vkmoe_inputs_fn fn, void *user);
const struct vkmoe_outside *run_session_outside(const struct run_session *s);
/* fn NULL: no calls. */
void run_session_on_route(struct run_session *s, run_route_fn fn, void *user);

#endif
