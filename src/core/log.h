/* Log lines to the sink that the user of the library set. The library itself prints nothing. */
#ifndef COR_LOG_H
#define COR_LOG_H

#include "core/status.h"

void cor_log_sink(vkmoe_log_fn fn, void *user); /* fn NULL: silent */
void cor_log(enum vkmoe_log_level level, const char *fmt, ...) COR_PRINTF(2, 3);

#endif
