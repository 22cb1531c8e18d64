#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>

enum vkmoe_status cor_fail(struct vkmoe_err *err, enum vkmoe_status st, const char *fmt, ...)
{
    va_list ap;

    if (!err)
        return st;
    err->status = st;
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    for (char *c = err->message; *c; c++) /* names come from files: keep the line one line */
        if ((unsigned char)*c < 32 || *c == 127)
            *c = '?';
    return st;
}

const char *vkmoe_status_text(enum vkmoe_status status)
{
    switch (status) {
#define VKMOE_X(name, value, text) \
    case name:                     \
        return text;
        VKMOE_STATUS_LIST(VKMOE_X)
#undef VKMOE_X
    }
    return "unknown status";
}

#define COR_STR_(x) #x
#define COR_STR(x)  COR_STR_(x)

const char *vkmoe_version(void)
{
    return COR_STR(VKMOE_VERSION_MAJOR) "." COR_STR(VKMOE_VERSION_MINOR) "." COR_STR(VKMOE_VERSION_PATCH);
}
