/* A subset: which routed experts of each layer may be chosen, as a file and as an expert mask. Owns the file
 * format (docs/FORMATS.md); how experts are ranked and what runs with a mask is others'. */
#ifndef XP_SUBSET_H
#define XP_SUBSET_H

#include "model/model.h"

#define XP_SUBSET_LAYERS  1024u
#define XP_SUBSET_EXPERTS 512u /* routed, and shared, of a layer */
/* n_shared of a subset that was made in memory: fits any model. */
#define XP_SHARED_UNKNOWN UINT32_MAX

struct xp_subset {
    char *model;  /* of the model that the ids belong to, as xp_model_name gives it; "": not stated */
    char *method; /* how it was chosen: "router", "layerwise", "easy-ep", "random", ...; "": not stated */
    char *calibration; /* SHA-256 of the calibration text in hex; "": not stated */
    uint32_t n_layers, n_routed, n_shared;
    uint32_t *allowed; /* (n_layers, ceil(n_routed / 32)) words */
};

/* No expert; xp_subset_free by the caller. Strings are copied. Errors: VKMOE_ERR_MEMORY. */
enum vkmoe_status xp_subset_init(struct xp_subset *s, const char *model, uint32_t n_layers, uint32_t n_routed,
                                 uint32_t n_shared, const char *method, struct vkmoe_err *err);
void xp_subset_free(struct xp_subset *s); /* zeroed or freed before: fine */
void xp_subset_set(struct xp_subset *s, uint32_t layer, uint32_t expert);
bool xp_subset_has(const struct xp_subset *s, uint32_t layer, uint32_t expert);
uint32_t xp_subset_count(const struct xp_subset *s, uint32_t layer);
/* Routed experts of every layer where all layers keep the same number, else 0. */
uint32_t xp_subset_equal_count(const struct xp_subset *s);

/* A subset file or pruning_metadata.json (JSON), or a carved GGUF file. Ids out of range, repeated ids,
 * counts that disagree: VKMOE_ERR_FORMAT with layer and value. */
enum vkmoe_status xp_subset_read(struct xp_subset *s, const char *path, struct vkmoe_err *err);
/* A subset file, whole or not at all. */
enum vkmoe_status xp_subset_write(const struct xp_subset *s, const char *path, struct vkmoe_err *err);
/* general.name for messages and comparisons, "" where there is none. */
void xp_model_name(char dst[MDL_SHOW_BYTES], const struct mdl_gguf *g);
/* Is it of this model (name where both state one, layers, experts), with enough experts in every layer? name:
 * of the subset, for messages. Errors: VKMOE_ERR_ARGUMENT. */
enum vkmoe_status xp_subset_check(const struct xp_subset *s, const struct mdl_model *m, const char *name,
                                  struct vkmoe_err *err);

#endif
