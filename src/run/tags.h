/* A debug check: do slots hold the bytes of the experts that the pool says they hold? Owns nothing that
 * outlives a call. */
#ifndef RUN_TAGS_H
#define RUN_TAGS_H

#include "run/pool.h"

/* Reads the first and last 64 bytes of experts from the file anew and compares them with their slots on the
 * device, in a submit of its own that it waits for; nothing may be in flight. indices: n of layer * n_experts
 * + expert, absent ones are skipped; NULL: all that are resident. Errors: VKMOE_ERR_DEVICE, with the layer,
 * expert and slot of the first that differs. */
enum vkmoe_status run_tags_check(const struct run_pool *p, const uint32_t *indices, uint32_t n,
                                 struct vkmoe_err *err);

#endif
