/* One text being read and continued: cuts feeds into steps and hands out logits. Owns its KV cache,
 * activations and programs; shares the model. */
#ifndef RUN_SESSION_H
#define RUN_SESSION_H

#include "run/pass.h"

struct run_session_params {
    uint32_t n_ctx; /* at least 1 */
    uint32_t chunk; /* prefill chunk; 0: what fits, at most 512 */
    bool k_f16, v_f16;
    bool slow; /* one submit and one wait per part: the oracle for everything that is done in fewer */
};

/* Logits of row `index` of the feed, vocab_size floats; false ends the feed. */
typedef bool (*run_logits_fn)(void *user, size_t index, const float *logits);

struct run_session;

/* Device bytes of such a session; the model need not be loaded yet. */
enum vkmoe_status run_session_bytes(uint64_t *bytes, const struct run_model *m,
                                    const struct run_session_params *p, struct vkmoe_err *err);
enum vkmoe_status run_session_create(struct run_session **out, struct run_model *m,
                                     const struct run_session_params *p, struct vkmoe_err *err);
void run_session_destroy(struct run_session *s);
/* fn NULL: only the last token's logits are computed. */
enum vkmoe_status run_session_feed(struct run_session *s, const int32_t *tokens, size_t n, run_logits_fn fn,
                                   void *user, struct vkmoe_err *err);
const float *run_session_logits(const struct run_session *s); /* NULL before the first feed */
uint32_t run_session_argmax(const struct run_session *s);     /* of the last logits, found on the device */
uint32_t run_session_position(const struct run_session *s);
void run_session_reset(struct run_session *s);
const struct run_stats *run_session_stats(const struct run_session *s);
const struct run_state *run_session_state(const struct run_session *s);

/* Expert mask, n_layers x ceil(n_experts / 32) words: routed experts that may be chosen. */
enum vkmoe_status run_session_set_mask(struct run_session *s, const uint32_t *allowed, struct vkmoe_err *err);

/* fn NULL: no calls. */
void run_session_on_route(struct run_session *s, run_route_fn fn, void *user);

#endif
