/* Statistics of a calibration run, which add up: the router's probability per layer and expert, how often
 * each was chosen, and what easy-ep calls importance. Owns the sums and their file format (docs/FORMATS.md);
 * what is fed and what is made of it is others'. */
#ifndef XP_STATS_H
#define XP_STATS_H

#include "experts/sum.h"
#include "model/model.h"

enum xp_family { XP_ROUTER, XP_EASY_EP }; /* what a run sums: probabilities; and importance */

struct xp_stats {
    /* the model, as whatever is added must agree */
    char model[MDL_SHOW_BYTES]; /* as xp_model_name gives it */
    char type[16];              /* of the experts' matrices */
    uint32_t n_layers, n_routed, n_shared, n_used;
    uint32_t *n_there; /* (n_layers) routed experts that the layer has */
    enum xp_family family;

    uint64_t documents, tokens;
    uint64_t truncated; /* documents of which only the beginning was fed */
    uint64_t digest[4]; /* sum of the documents' SHA-256 modulo 2^256, lowest word first */
    /* (n_layers, n_routed) */
    struct xp_sum *probability;
    uint64_t *chosen;
    struct xp_sum *importance; /* NULL unless XP_EASY_EP */

    /* while a model runs */
    uint32_t first_layer, last_layer; /* layers that count; 0 and n_layers - 1 at the start */
    uint64_t *seen;                   /* (n_layers) tokens */
    float *row;
    struct vkmoe_err failed; /* what went wrong in xp_stats_add */
};

/* Nothing counted; xp_stats_free by the caller. */
enum vkmoe_status xp_stats_init(struct xp_stats *s, const struct mdl_model *m, enum xp_family family,
                                struct vkmoe_err *err);
void xp_stats_free(struct xp_stats *s); /* zeroed or freed before: fine */

/* Counts what a session tells; fits vkmoe_watch_fn, user: struct xp_stats. An error is kept for
 * xp_stats_check. */
void xp_stats_add(void *user, const struct vkmoe_watched *w);
enum vkmoe_status xp_stats_check(const struct xp_stats *s, struct vkmoe_err *err);
/* Counts a document of n bytes whose tokens have been added. Errors: as check. */
enum vkmoe_status xp_stats_document(struct xp_stats *s, const void *text, size_t n, bool truncated,
                                    struct vkmoe_err *err);

/* Softmax of n logits as everything here sums it: in double, in ascending order, rounded to float once. */
void xp_softmax(float *p, const float *logits, uint32_t n);
/* 1 - cos(h, h + m) from h.h, h.m and m.m, at least 0; 1 where one of them is zero. */
double xp_turn(double hh, double hm, double mm);

/* Digest of the documents: 64 digits. Of one document it is its SHA-256. hex: 65 bytes. Returns hex. */
const char *xp_stats_digest(char hex[65], const struct xp_stats *s);
/* Adds b to a. Names: for messages. Errors: VKMOE_ERR_ARGUMENT for those of another model or family,
 * VKMOE_ERR_LIMIT for sums that do not fit; a is then as it was or not to be used. */
enum vkmoe_status xp_stats_merge(struct xp_stats *a, const struct xp_stats *b, const char *a_name,
                                 const char *b_name, struct vkmoe_err *err);

/* A statistics file, whole or not at all: the same bytes for the same sums. */
enum vkmoe_status xp_stats_write(const struct xp_stats *s, const char *path, struct vkmoe_err *err);
/* Errors: VKMOE_ERR_FORMAT, VKMOE_ERR_UNSUPPORTED, VKMOE_ERR_IO, VKMOE_ERR_MEMORY. */
enum vkmoe_status xp_stats_read(struct xp_stats *s, const char *path, struct vkmoe_err *err);

#endif
