/* Status and error lines. Owns how a failure is written down; not what is done about it. */
#ifndef COR_STATUS_H
#define COR_STATUS_H

#include "vkmoe.h"

#if defined(__MINGW32__) && !defined(__clang__) /* "printf" would mean Microsoft's formats there */
#define COR_PRINTF(f, a) __attribute__((format(gnu_printf, f, a)))
#elif defined(__GNUC__)
#define COR_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define COR_PRINTF(f, a)
#endif

/* Writes the line into err (may be NULL) and returns st. */
enum vkmoe_status cor_fail(struct vkmoe_err *err, enum vkmoe_status st, const char *fmt, ...)
    COR_PRINTF(3, 4);

/* Needs `enum vkmoe_status st` and a label `done`. */
#define TRY(call)                                                                                            \
    do {                                                                                                     \
        if ((st = (call)) != VKMOE_OK)                                                                       \
            goto done;                                                                                       \
    } while (0)

/* As TRY, for a failure found here: FAIL(VKMOE_ERR_FORMAT, "%s: ...", path). Needs `err` too. */
#define FAIL(status, ...)                                                                                    \
    do {                                                                                                     \
        st = cor_fail(err, status, __VA_ARGS__);                                                             \
        goto done;                                                                                           \
    } while (0)

#define COR_COUNT(a) (sizeof(a) / sizeof((a)[0]))

#endif
