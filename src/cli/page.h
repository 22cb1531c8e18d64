/* A page that carries its data: JSON that cannot leave its script element, and the template it goes into.
 * Owns escaping and the content security policy; what the data are is the command's. */
#ifndef CLI_PAGE_H
#define CLI_PAGE_H

#include "core/status.h"

/* Text that grows; zeroed at first. Without memory it becomes `failed` and takes nothing more. */
struct cli_page {
    char *p; /* n bytes and a NUL; NULL: empty */
    size_t n, cap;
    bool failed;
};

void cli_page_free(struct cli_page *t);
void cli_page_put(struct cli_page *t, const char *bytes, size_t n);
void cli_page_format(struct cli_page *t, const char *fmt, ...) COR_PRINTF(2, 3);
/* A JSON string with its quotes. Any bytes: what is no UTF-8 becomes U+FFFD; < > &, control characters, line
 * separators and characters that change the direction of text are written as \uXXXX. */
void cli_page_string(struct cli_page *t, const char *s, size_t n);
/* The first place at or behind `end` where no character goes on, walking from `at`, where one begins. */
size_t cli_page_characters(const char *s, size_t n, size_t at, size_t end);
void cli_page_base64(struct cli_page *t, const void *data, size_t n);

/* Text of an element or a quoted attribute: & < > " ' as references, hidden characters as their number. */
void cli_page_html(struct cli_page *t, const char *s, size_t n);

/* Parts of a page that the program carries. html has {{style}}, {{style-hash}}, {{script}}, {{script-hash}}
 * and {{data}}. */
struct cli_template {
    const char *html, *css, *js; /* js NULL: none is asked for */
};

/* The template with style, script, their hashes for the policy, and data, which must be JSON or HTML made by
 * the functions above. page is `failed` without memory, or when data failed. */
void cli_page_fill(struct cli_page *page, const struct cli_template *t, const struct cli_page *data);
/* The same as a file, whole or not at all. Errors: VKMOE_ERR_MEMORY, VKMOE_ERR_IO. */
enum vkmoe_status cli_page_write(const char *path, const struct cli_template *t, const struct cli_page *data,
                                 struct vkmoe_err *err);

#endif
