/* Are two files versions of one model, one of them perhaps with fewer experts? */
#ifndef XP_FIT_H
#define XP_FIT_H

#include "model/model.h"

/* Everything in the configurations is equal but the number of routed experts and how many a token uses.
 * Errors: VKMOE_ERR_ARGUMENT, with the value of both. */
enum vkmoe_status xp_fit(const struct mdl_model *a, const struct mdl_model *b, struct vkmoe_err *err);

#endif
