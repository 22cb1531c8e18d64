#include "core/npy.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/os.h"

enum { HEADER = 128, PREFIX = 10 }; /* bytes: what the writer's header takes; magic, version and length */

/* ---- reading ---- */

struct cursor { /* over the text of the header's Python dictionary, NUL-terminated */
    const char *p;
};

static void skip_space(struct cursor *c)
{
    while (*c->p == ' ' || *c->p == '\t' || *c->p == '\n')
        c->p++;
}

static bool take(struct cursor *c, char want)
{
    skip_space(c);
    if (*c->p != want)
        return false;
    c->p++;
    return true;
}

static bool take_word(struct cursor *c, const char *word)
{
    size_t n = strlen(word);

    skip_space(c);
    if (strncmp(c->p, word, n))
        return false;
    c->p += n;
    return true;
}

/* A quoted string of fewer than n characters, without escapes. */
static bool take_string(struct cursor *c, char *dst, size_t n)
{
    size_t used = 0;
    char quote;

    skip_space(c);
    quote = *c->p;
    if (quote != '\'' && quote != '"')
        return false;
    for (c->p++; *c->p && *c->p != quote && used + 1 < n; c->p++)
        dst[used++] = *c->p;
    dst[used] = 0;
    return take(c, quote);
}

static bool take_number(struct cursor *c, uint64_t *v)
{
    skip_space(c);
    if (*c->p < '0' || *c->p > '9')
        return false;
    for (*v = 0; *c->p >= '0' && *c->p <= '9'; c->p++) {
        unsigned digit = (unsigned)(*c->p - '0');

        if (*v > (UINT64_MAX - digit) / 10)
            return false;
        *v = *v * 10 + digit;
    }
    return true;
}

static bool take_shape(struct cursor *c, struct cor_npy *a)
{
    if (!take(c, '('))
        return false;
    for (a->n_dims = 0; !take(c, ')'); a->n_dims++) {
        if (a->n_dims == COR_NPY_MAX_DIMS || !take_number(c, &a->dims[a->n_dims]))
            return false;
        if (!take(c, ',')) {
            a->n_dims++;
            return a->n_dims > 1 && take(c, ')'); /* "(3)" is a number, not a shape */
        }
    }
    return true;
}

/* {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } with the keys in any order, each once. */
static enum vkmoe_status parse_header(struct cor_npy *a, const char *text, const char *path,
                                      struct vkmoe_err *err)
{
    struct cursor c = {text};
    char key[32], descr[16] = "";
    bool order = false, shape = false;

    if (!take(&c, '{'))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: the header is not a dictionary", path);
    while (!take(&c, '}')) {
        bool good = false;

        if (!take_string(&c, key, sizeof(key)) || !take(&c, ':'))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: header: malformed at byte %zu", path,
                            (size_t)(c.p - text) + PREFIX);
        if (!strcmp(key, "descr") && !descr[0]) {
            good = take_string(&c, descr, sizeof(descr));
        } else if (!strcmp(key, "fortran_order") && !order) {
            if (take_word(&c, "True"))
                return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: Fortran order is not supported", path);
            good = order = take_word(&c, "False");
        } else if (!strcmp(key, "shape") && !shape) {
            good = shape = take_shape(&c, a);
        }
        if (!good)
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: header: bad or repeated entry '%s'", path, key);
        if (!take(&c, ',')) {
            if (!take(&c, '}'))
                return cor_fail(err, VKMOE_ERR_FORMAT, "%s: header: no end after '%s'", path, key);
            break;
        }
    }
    skip_space(&c);
    if (*c.p)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: header: text after the dictionary", path);
    if (!descr[0] || !order || !shape)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: header: descr, fortran_order or shape is missing", path);
    if (strcmp(descr, "<f4") && strcmp(descr, "<i4"))
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: element type '%s' is neither <f4 nor <i4", path,
                        descr);
    a->type = descr[1];
    return VKMOE_OK;
}

static enum vkmoe_status read_header(struct cor_npy *a, struct cor_file *f, uint64_t *data_off,
                                     struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const char *path = cor_file_path(f);
    unsigned char prefix[PREFIX];
    char *text = NULL;
    size_t n;

    if (cor_file_size(f) < PREFIX)
        FAIL(VKMOE_ERR_FORMAT, "%s: %" PRIu64 " bytes are too few for a .npy file", path, cor_file_size(f));
    TRY(cor_file_read(f, 0, prefix, PREFIX, err));
    if (memcmp(prefix, "\x93NUMPY", 6))
        FAIL(VKMOE_ERR_FORMAT, "%s: not a .npy file", path);
    if (prefix[6] != 1 || prefix[7] != 0)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: .npy version %u.%u, only 1.0 is supported", path, prefix[6],
             prefix[7]);
    n = (size_t)prefix[8] | (size_t)prefix[9] << 8;
    if (n > cor_file_size(f) - PREFIX)
        FAIL(VKMOE_ERR_FORMAT, "%s: header of %zu bytes passes the end of the file", path, n);
    text = cor_zalloc(n + 1);
    if (!text)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the header", path);
    TRY(cor_file_read(f, PREFIX, text, n, err));
    if (memchr(text, 0, n))
        FAIL(VKMOE_ERR_FORMAT, "%s: header: NUL byte", path);
    TRY(parse_header(a, text, path, err));
    *data_off = PREFIX + n;
done:
    cor_free(text);
    return st;
}

enum vkmoe_status cor_npy_read(struct cor_npy *out, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct cor_file *f = NULL;
    struct cor_npy a;
    uint64_t off = 0, have;

    memset(out, 0, sizeof(*out));
    memset(&a, 0, sizeof(a));
    TRY(cor_file_open(&f, path, err));
    TRY(read_header(&a, f, &off, err));
    have = (cor_file_size(f) - off) / 4;
    a.count = 1;
    for (uint32_t i = 0; i < a.n_dims; i++) {
        if (a.dims[i] && a.count > have / a.dims[i])
            FAIL(VKMOE_ERR_FORMAT, "%s: the shape needs more elements than the %" PRIu64 " in the file", path,
                 have);
        a.count *= a.dims[i];
    }
    if (cor_file_size(f) - off != a.count * 4)
        FAIL(VKMOE_ERR_FORMAT, "%s: %" PRIu64 " bytes of data, the shape needs %" PRIu64, path,
             cor_file_size(f) - off, a.count * 4);
    a.data = cor_array((size_t)a.count, 4);
    if (!a.data)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %" PRIu64 " elements", path, a.count);
    TRY(cor_file_read(f, off, a.data, (size_t)a.count * 4, err));
    *out = a;
    a.data = NULL;
done:
    cor_free(a.data);
    cor_file_close(f);
    return st;
}

void cor_npy_free(struct cor_npy *a)
{
    cor_free(a->data);
    a->data = NULL;
    a->count = 0;
}

/* ---- writing ---- */

struct cor_npy_writer {
    struct cor_out *out;
    uint64_t rows, cols;
};

/* The header has one length for every number of rows, so it can be written again at the end. */
static void make_header(char dst[HEADER], uint64_t rows, uint64_t cols)
{
    char text[HEADER];
    int n = snprintf(text, sizeof(text),
                     "{'descr': '<f4', 'fortran_order': False, 'shape': (%" PRIu64 ", %" PRIu64 "), }", rows,
                     cols);

    memset(dst, ' ', HEADER);
    memcpy(dst, "\x93NUMPY\x01\x00", 8);
    dst[8] = HEADER - PREFIX;
    dst[9] = 0;
    memcpy(dst + PREFIX, text, (size_t)n); /* two numbers of 20 digits still leave room */
    dst[HEADER - 1] = '\n';
}

enum vkmoe_status cor_npy_create(struct cor_npy_writer **out, const char *path, uint64_t cols,
                                 struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct cor_npy_writer *w = cor_zalloc(sizeof(*w));
    char header[HEADER];

    *out = NULL;
    if (!w)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to write the file", path);
    if (cols > SIZE_MAX / sizeof(float))
        FAIL(VKMOE_ERR_ARGUMENT, "%s: %" PRIu64 " columns are too many", path, cols);
    w->cols = cols;
    TRY(cor_out_create(&w->out, path, err));
    make_header(header, 0, cols);
    TRY(cor_out_write(w->out, header, HEADER, err));
    *out = w;
    w = NULL;
done:
    cor_npy_discard(w);
    return st;
}

enum vkmoe_status cor_npy_append(struct cor_npy_writer *w, const float *row, struct vkmoe_err *err)
{
    enum vkmoe_status st = cor_out_write(w->out, row, (size_t)w->cols * sizeof(float), err);

    if (st == VKMOE_OK)
        w->rows++;
    return st;
}

enum vkmoe_status cor_npy_commit(struct cor_npy_writer *w, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct cor_out *out;
    char header[HEADER];

    make_header(header, w->rows, w->cols);
    TRY(cor_out_write_at(w->out, 0, header, HEADER, err));
    out = w->out;
    w->out = NULL; /* commit frees it in either case */
    st = cor_out_commit(out, err);
done:
    cor_npy_discard(w);
    return st;
}

void cor_npy_discard(struct cor_npy_writer *w)
{
    if (!w)
        return;
    cor_out_discard(w->out);
    cor_free(w);
}
