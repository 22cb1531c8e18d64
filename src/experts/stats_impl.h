/* What stats.c and stats_file.c share. */
#ifndef XP_STATS_IMPL_H
#define XP_STATS_IMPL_H

#include "experts/stats.h"

#define XP_COUNT_MAX (UINT64_C(1) << 53) /* of tokens: what JSON numbers hold exactly */

const char *xp_family_name(enum xp_family f);
/* Arrays for the shape and family of s. On failure s is freed. */
enum vkmoe_status xp_stats_make(struct xp_stats *s, struct vkmoe_err *err);

#endif
