/* Route traces: which experts each token chose in each layer, as JSON lines (docs/FORMATS.md). Owns the file
 * format; where routes come from and what is done with them is others'. */
#ifndef XP_TRACE_H
#define XP_TRACE_H

#include "core/status.h"

struct xp_trace_info {
    const char *model;          /* a name for people, UTF-8 */
    uint32_t n_layers;          /* 1 .. XP_TRACE_LAYERS */
    uint32_t n_experts, n_used; /* routed per layer, at most MAX_EXPERTS; k, at most MAX_TOP_K */
    uint64_t expert_bytes;      /* that a miss uploads, the largest layer's; 0: not known */
    bool weights;               /* router probabilities of the chosen follow */
};

#define XP_TRACE_LAYERS 1024

/* ---- writing */

struct xp_trace_writer;

/* The file appears at commit; the name is copied. Errors: VKMOE_ERR_MEMORY, VKMOE_ERR_IO. */
enum vkmoe_status xp_trace_create(struct xp_trace_writer **out, const char *path,
                                  const struct xp_trace_info *info, struct vkmoe_err *err);
/* The choices of one layer for the tokens [pos, pos + n_tokens): k pairs (id, weight bits) each, as in
 * shared/step.h. The signature is that of run_route_fn; user is the writer. Layers of a token come in order,
 * from 0 to the last; chunks may come layer by layer or one after the other. Whatever begins again at layer 0
 * before it was complete replaces what was there. Errors are kept for commit; further calls then do nothing.
 */
void xp_trace_add(void *user, uint32_t layer, uint32_t pos, uint32_t n_tokens, const uint32_t *sel);
uint64_t xp_trace_tokens(const struct xp_trace_writer *w); /* complete ones */
/* Tokens that are not complete are left out. Frees w in either case; on failure nothing is left behind. */
enum vkmoe_status xp_trace_commit(struct xp_trace_writer *w, struct vkmoe_err *err);
void xp_trace_discard(struct xp_trace_writer *w); /* NULL is fine */

/* ---- reading */

struct xp_trace {
    char *name; /* the model's */
    struct xp_trace_info info;
    size_t n_tokens;
    uint32_t *pos; /* (n_tokens) 0, or one more than the token before */
    uint32_t
        *sel; /* (n_tokens, n_layers, k) pairs: id, weight bits (0 without weights); NONE behind the last */
    size_t n_streams;
    size_t *first; /* (n_streams + 1) first token of each stream, then n_tokens */
};

/* Errors: VKMOE_ERR_FORMAT with file and line, VKMOE_ERR_LIMIT past 1 GiB, VKMOE_ERR_IO, VKMOE_ERR_MEMORY. */
enum vkmoe_status xp_trace_read(struct xp_trace *t, const char *path, struct vkmoe_err *err);
void xp_trace_free(struct xp_trace *t); /* zeroed or freed before: fine */
/* Choices of a token at a layer: k pairs. */
const uint32_t *xp_trace_sel(const struct xp_trace *t, size_t token, uint32_t layer);

#endif
