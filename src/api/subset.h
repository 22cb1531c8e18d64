/* The public subset as inner layers see it. */
#ifndef API_SUBSET_H
#define API_SUBSET_H

#include "experts/subset.h"

struct vkmoe_subset {
    struct xp_subset s;
    char *name; /* of its file, for messages; NULL: made by the program */
};

#endif
