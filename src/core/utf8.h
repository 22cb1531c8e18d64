/* UTF-8, one character at a time. */
#ifndef COR_UTF8_H
#define COR_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the UTF-8 character at p (n > 0 bytes follow), 0 when it is not one: truncated, overlong, a
 * surrogate or past U+10FFFF. cp may be NULL. */
size_t cor_utf8_char(const char *p, size_t n, uint32_t *cp);

#endif
