#include "core/log.h"

#include <stdarg.h>
#include <stdio.h>

static vkmoe_log_fn sink;
static void *sink_user;

void cor_log_sink(vkmoe_log_fn fn, void *user)
{
    sink = fn;
    sink_user = user;
}

void cor_log(enum vkmoe_log_level level, const char *fmt, ...)
{
    char line[2048];
    va_list ap;

    if (!sink)
        return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    sink(sink_user, level, line);
}
