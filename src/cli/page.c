#include "cli/page.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/digest.h"
#include "core/os.h"
#include "core/utf8.h"

/* ---- text that grows */

void cli_page_free(struct cli_page *t)
{
    cor_free(t->p);
    memset(t, 0, sizeof(*t));
}

static bool grow(struct cli_page *t, size_t more)
{
    size_t cap = t->cap ? t->cap : 4096;
    char *p;

    if (t->failed)
        return false;
    if (t->cap - t->n > more)
        return true;
    while (cap - t->n <= more)
        cap *= 2;
    p = cor_resize(t->p, cap, 1);
    t->failed = !p;
    if (!p)
        return false;
    t->p = p;
    t->cap = cap;
    return true;
}

void cli_page_put(struct cli_page *t, const char *bytes, size_t n)
{
    if (!grow(t, n))
        return;
    memcpy(t->p + t->n, bytes, n);
    t->n += n;
    t->p[t->n] = '\0';
}

void cli_page_format(struct cli_page *t, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof(text))
        t->failed = true;
    else
        cli_page_put(t, text, (size_t)n);
}

/* Characters that nobody sees, or that turn the text round. */
static bool is_hidden(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0xad || c == 0x61c || c == 0x180e ||
           (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) ||
           c == 0xfeff || (c >= 0xfff9 && c <= 0xfffb);
}

void cli_page_string(struct cli_page *t, const char *s, size_t n)
{
    cli_page_put(t, "\"", 1);
    for (size_t i = 0; i < n;) {
        uint32_t c = 0xfffd;
        size_t len = cor_utf8_char(s + i, n - i, &c);

        if (!len)
            cli_page_put(t, "\xef\xbf\xbd", 3);
        else if (is_hidden(c) || (c < 0x80 && strchr("\"\\<>&", (int)c)))
            cli_page_format(t, "\\u%04x", (unsigned)c);
        else
            cli_page_put(t, s + i, len);
        i += len ? len : 1;
    }
    cli_page_put(t, "\"", 1);
}

void cli_page_html(struct cli_page *t, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t c = 0xfffd;
        size_t len = cor_utf8_char(s + i, n - i, &c);

        if (!len)
            cli_page_put(t, "\xef\xbf\xbd", 3);
        else if (is_hidden(c))
            cli_page_format(t, "U+%04X", (unsigned)c);
        else if (c < 0x80 && strchr("&<>\"'", (int)c))
            cli_page_format(t, "&#%u;", (unsigned)c);
        else
            cli_page_put(t, s + i, len);
        i += len ? len : 1;
    }
}

size_t cli_page_characters(const char *s, size_t n, size_t at, size_t end)
{
    while (at < end) {
        size_t len = cor_utf8_char(s + at, n - at, NULL);

        at += len ? len : 1;
    }
    return at;
}

void cli_page_base64(struct cli_page *t, const void *data, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *u = data;

    for (size_t i = 0; i < n; i += 3) {
        size_t left = n - i;
        uint32_t v =
            (uint32_t)u[i] << 16 | (left > 1 ? (uint32_t)u[i + 1] << 8 : 0) | (left > 2 ? u[i + 2] : 0);
        const char four[4] = {digits[v >> 18], digits[v >> 12 & 63], left > 1 ? digits[v >> 6 & 63] : '=',
                              left > 2 ? digits[v & 63] : '='};

        cli_page_put(t, four, 4);
    }
}

/* ---- the template */

static void put_hash(struct cli_page *t, const char *text)
{
    uint8_t digest[COR_SHA256_BYTES];
    struct cor_sha256 h;

    cor_sha256_begin(&h);
    cor_sha256_add(&h, text, strlen(text));
    cor_sha256_end(&h, digest);
    cli_page_put(t, "sha256-", 7);
    cli_page_base64(t, digest, sizeof(digest));
}

/* One "{{name}}" of the template, n bytes of name. */
static void put_part(struct cli_page *t, const struct cli_template *from, const char *name, size_t n,
                     const struct cli_page *data)
{
    const char *text = n >= 5 && !memcmp(name, "style", 5) ? from->css : from->js;

    if (n == 4 && !memcmp(name, "data", 4))
        cli_page_put(t, data->p, data->n);
    else if (n > 5 && !memcmp(name + n - 5, "-hash", 5))
        put_hash(t, text);
    else
        cli_page_put(t, text, strlen(text));
}

void cli_page_fill(struct cli_page *page, const struct cli_template *t, const struct cli_page *data)
{
    const char *at = t->html, *mark;

    page->failed |= data->failed;
    for (; (mark = strstr(at, "{{")); at = strstr(mark, "}}") + 2) {
        cli_page_put(page, at, (size_t)(mark - at));
        put_part(page, t, mark + 2, (size_t)(strstr(mark, "}}") - mark) - 2, data);
    }
    cli_page_put(page, at, strlen(at));
}

enum vkmoe_status cli_page_write(const char *path, const struct cli_template *t, const struct cli_page *data,
                                 struct vkmoe_err *err)
{
    struct cli_page page = {0};
    struct cor_out *out = NULL, *whole;
    enum vkmoe_status st = VKMOE_OK;

    cli_page_fill(&page, t, data);
    if (page.failed)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the page", path);
    TRY(cor_out_create(&out, path, err));
    TRY(cor_out_write(out, page.p, page.n, err));
    whole = out;
    out = NULL;
    TRY(cor_out_commit(whole, err));
done:
    cor_out_discard(out);
    cli_page_free(&page);
    return st;
}
