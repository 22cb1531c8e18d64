/* The nth request of one kind fails, and all later ones: what sweeps over failures share. */
#ifndef TEST_FAULT_H
#define TEST_FAULT_H

#include "core/status.h"

enum fault { FAULT_ALLOC, FAULT_FILE, FAULT_MEMORY, FAULT_LOST, FAULT_TIMEOUT };

/* From now on the nth request and all later ones fail; 0: none, and counting begins. */
void fault_arm(enum fault f, long n);
long fault_requests(enum fault f);            /* since arming */
const char *fault_name(enum fault f);         /* for messages */
enum vkmoe_status fault_status(enum fault f); /* what a call that meets it answers */

#endif
