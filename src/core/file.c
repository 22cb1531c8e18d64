/* Files and directories of core/os.h, on top of sys.h: whole reads, atomic output, error lines, simulated
 * failures. */
#include "core/os.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/sys.h"

#define IO_CHUNK ((size_t)1 << 30) /* bytes per system call; above 2^31 - 1 the calls shorten or fail */

static atomic_long fail_from, requests;

/* True when a test wants this read or write to fail. */
static bool refuse(void)
{
    long n = atomic_fetch_add(&requests, 1) + 1;
    long f = atomic_load(&fail_from);

    return f && n >= f;
}

void cor_os_fail_from(long nth)
{
    atomic_store(&requests, 0);
    atomic_store(&fail_from, nth);
}

long cor_os_requests(void)
{
    return atomic_load(&requests);
}

bool cor_path_is_dir(const char *path)
{
    struct sys_stat st;

    sys_stat_path(path, &st);
    return st.kind == SYS_DIR;
}

bool cor_path_exists(const char *path)
{
    struct sys_stat st;

    sys_stat_path(path, &st);
    return st.kind != SYS_ABSENT;
}

bool cor_path_same(const char *a, const char *b)
{
    return sys_same(a, b);
}

static bool in_place(const char *path, const struct sys_stat *s)
{
    return s->kind == SYS_OTHER || (s->kind == SYS_REGULAR && sys_is_descriptor(path));
}

bool cor_path_in_place(const char *path)
{
    struct sys_stat st;

    sys_stat_path(path, &st);
    return in_place(path, &st);
}

void cor_path_remove(const char *path)
{
    sys_remove(path);
}

struct cor_file {
    sys_handle h;
    bool open;
    struct sys_stat at_open;
    char *path;
};

enum vkmoe_status cor_file_open(struct cor_file **out, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct cor_file *f = cor_zalloc(sizeof(*f));
    struct sys_stat s;
    char text[256];

    *out = NULL;
    if (!f || !(f->path = cor_strdup(path)))
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to open the file", path);
    sys_stat_path(path, &s); /* before opening: opening a pipe would wait for its writer */
    if (s.kind == SYS_DIR)
        FAIL(VKMOE_ERR_IO, "%s: is a directory, not a file", path);
    if (s.kind == SYS_OTHER)
        FAIL(VKMOE_ERR_IO, "%s: is not a regular file", path);
    if (!sys_open_read(&f->h, path))
        FAIL(VKMOE_ERR_IO, "%s: cannot open: %s", path, sys_error(text, sizeof(text)));
    f->open = true;
    if (!sys_stat_handle(f->h, &f->at_open))
        FAIL(VKMOE_ERR_IO, "%s: cannot read its size: %s", path, sys_error(text, sizeof(text)));
    if (f->at_open.kind != SYS_REGULAR)
        FAIL(VKMOE_ERR_IO, "%s: is not a regular file", path);
    *out = f;
    f = NULL;
done:
    cor_file_close(f);
    return st;
}

void cor_file_close(struct cor_file *f)
{
    if (!f)
        return;
    if (f->open)
        sys_close(f->h);
    cor_free(f->path);
    cor_free(f);
}

uint64_t cor_file_size(const struct cor_file *f)
{
    return f->at_open.size;
}

const char *cor_file_path(const struct cor_file *f)
{
    return f->path;
}

enum vkmoe_status cor_file_read(struct cor_file *f, uint64_t off, void *dst, size_t n, struct vkmoe_err *err)
{
    size_t done = 0;
    char text[256];

    if (off > f->at_open.size || n > f->at_open.size - off)
        return cor_fail(err, VKMOE_ERR_IO, "%s: reading %zu bytes at offset %llu passes the end (%llu bytes)",
                        f->path, n, (unsigned long long)off, (unsigned long long)f->at_open.size);
    if (refuse())
        return cor_fail(err, VKMOE_ERR_IO, "%s: reading %zu bytes at offset %llu: simulated failure", f->path,
                        n, (unsigned long long)off);
    while (done < n) {
        size_t want = n - done < IO_CHUNK ? n - done : IO_CHUNK;
        int64_t got = sys_pread(f->h, off + done, (char *)dst + done, want);

        if (got < 0)
            return cor_fail(err, VKMOE_ERR_IO, "%s: reading %zu bytes at offset %llu: %s", f->path, n,
                            (unsigned long long)off, sys_error(text, sizeof(text)));
        if (!got)
            return cor_fail(err, VKMOE_ERR_IO,
                            "%s: reading %zu bytes at offset %llu: the file became shorter", f->path, n,
                            (unsigned long long)off);
        done += (size_t)got;
    }
    return VKMOE_OK;
}

enum vkmoe_status cor_file_unchanged(struct cor_file *f, struct vkmoe_err *err)
{
    struct sys_stat now;
    char text[256];

    if (!sys_stat_handle(f->h, &now))
        return cor_fail(err, VKMOE_ERR_IO, "%s: cannot read its size: %s", f->path,
                        sys_error(text, sizeof(text)));
    if (now.size != f->at_open.size)
        return cor_fail(err, VKMOE_ERR_IO, "%s: changed while in use: %llu bytes, %llu when opened", f->path,
                        (unsigned long long)now.size, (unsigned long long)f->at_open.size);
    if (now.mtime != f->at_open.mtime)
        return cor_fail(err, VKMOE_ERR_IO, "%s: changed while in use: written to since it was opened",
                        f->path);
    return VKMOE_OK;
}

/* Reads to the end, whatever the handle is. guess: bytes expected. */
static enum vkmoe_status slurp(sys_handle h, const char *name, uint64_t guess, size_t max, char **data,
                               size_t *n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    size_t cap = guess && guess < max ? (size_t)guess : max < 65536 ? max : 65536;
    size_t used = 0;
    char *buf = NULL, text[256];

    if (guess > max)
        FAIL(VKMOE_ERR_LIMIT, "%s: %llu bytes, the limit is %zu", name, (unsigned long long)guess, max);
    for (;;) {
        char *grown = NULL;
        int64_t got;

        if (!buf || used == cap + 1) {
            if (buf)
                cap = cap > max / 2 ? max : cap * 2;
            grown = cor_resize(buf, cap + 2, 1); /* one byte to see the end, one for the NUL */
            if (!grown)
                FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %zu bytes", name, cap);
            buf = grown;
        }
        if (refuse())
            FAIL(VKMOE_ERR_IO, "%s: reading at offset %zu: simulated failure", name, used);
        got = sys_read(h, buf + used, cap + 1 - used < IO_CHUNK ? cap + 1 - used : IO_CHUNK);
        if (got < 0)
            FAIL(VKMOE_ERR_IO, "%s: reading at offset %zu: %s", name, used, sys_error(text, sizeof(text)));
        if (!got)
            break;
        used += (size_t)got;
        if (used > max)
            FAIL(VKMOE_ERR_LIMIT, "%s: more than the limit of %zu bytes", name, max);
    }
    buf[used] = 0;
    *data = buf;
    *n = used;
    buf = NULL;
done:
    cor_free(buf);
    return st;
}

enum vkmoe_status cor_file_slurp(const char *path, size_t max, char **data, size_t *n, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct sys_stat s = {0};
    sys_handle h;
    char text[256];

    *data = NULL;
    *n = 0;
    if (cor_path_is_dir(path))
        return cor_fail(err, VKMOE_ERR_IO, "%s: is a directory, not a file", path);
    if (!sys_open_read(&h, path))
        return cor_fail(err, VKMOE_ERR_IO, "%s: cannot open: %s", path, sys_error(text, sizeof(text)));
    if (!sys_stat_handle(h, &s))
        st = cor_fail(err, VKMOE_ERR_IO, "%s: cannot read its size: %s", path, sys_error(text, sizeof(text)));
    else
        st = slurp(h, path, s.kind == SYS_REGULAR ? s.size : 0, max, data, n, err);
    sys_close(h);
    return st;
}

enum vkmoe_status cor_stdin_slurp(size_t max, char **data, size_t *n, struct vkmoe_err *err)
{
    *data = NULL;
    *n = 0;
    return slurp(sys_stdin(), "standard input", 0, max, data, n, err);
}

struct cor_out {
    sys_handle h;
    bool open;
    char *path; /* as the caller named it: for messages */
    char *real; /* what the temporary file becomes; NULL: written in place (devices, pipes) */
    char *temp; /* NULL before it exists */
    uint64_t size;
};

static bool out_create_temp(struct cor_out *o, unsigned mode)
{
    static atomic_uint serial;
    size_t n = strlen(o->real) + 48;
    bool exists = true;

    o->temp = cor_alloc(n);
    if (!o->temp)
        return false;
    for (int tries = 0; tries < 100 && exists; tries++) {
        snprintf(o->temp, n, "%s.%lu-%u.tmp", o->real, sys_process_id(), atomic_fetch_add(&serial, 1));
        o->open = sys_create_new(&o->h, o->temp, mode, &exists);
        if (o->open)
            return true;
    }
    return false;
}

static void out_free(struct cor_out *o)
{
    if (o->open)
        sys_close(o->h);
    cor_free(o->temp);
    cor_free(o->real);
    cor_free(o->path);
    cor_free(o);
}

enum vkmoe_status cor_out_create(struct cor_out **out, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct cor_out *o = cor_zalloc(sizeof(*o));
    struct sys_stat s;
    char text[256];

    *out = NULL;
    if (!o || !(o->path = cor_strdup(path)))
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to create the file", path);
    sys_stat_path(path, &s);
    if (s.kind == SYS_DIR)
        FAIL(VKMOE_ERR_IO, "%s: cannot write: is a directory", path);
    if (s.kind != SYS_ABSENT && !sys_writable(path))
        FAIL(VKMOE_ERR_IO, "%s: cannot write: %s", path, sys_error(text, sizeof(text)));
    if (in_place(path, &s)) {
        if (!sys_open_write(&o->h, path))
            FAIL(VKMOE_ERR_IO, "%s: cannot write: %s", path, sys_error(text, sizeof(text)));
        o->open = true;
    } else {
        o->real = s.kind == SYS_REGULAR ? sys_resolve(path) : NULL;
        if (!o->real && !(o->real = cor_strdup(path)))
            FAIL(VKMOE_ERR_MEMORY, "%s: no memory to create the file", path);
        if (!out_create_temp(o, s.mode)) {
            if (!o->temp)
                FAIL(VKMOE_ERR_MEMORY, "%s: no memory to create the file", path);
            FAIL(VKMOE_ERR_IO, "%s: cannot create a file there: %s", path, sys_error(text, sizeof(text)));
        }
    }
    *out = o;
    o = NULL;
done:
    if (o)
        out_free(o);
    return st;
}

/* at: NULL appends through the file position, else at that offset. */
static enum vkmoe_status out_put(struct cor_out *o, const uint64_t *at, const void *src, size_t n,
                                 struct vkmoe_err *err)
{
    uint64_t off = at ? *at : o->size;
    size_t done = 0;
    char text[256];

    if (refuse())
        return cor_fail(err, VKMOE_ERR_IO, "%s: writing %zu bytes at offset %llu: simulated failure", o->path,
                        n, (unsigned long long)off);
    while (done < n) {
        size_t want = n - done < IO_CHUNK ? n - done : IO_CHUNK;
        const char *from = (const char *)src + done;
        int64_t put = at ? sys_pwrite(o->h, off + done, from, want) : sys_write(o->h, from, want);

        if (put <= 0)
            return cor_fail(err, VKMOE_ERR_IO, "%s: writing %zu bytes at offset %llu: %s", o->path, n,
                            (unsigned long long)off,
                            put ? sys_error(text, sizeof(text)) : "nothing was taken");
        done += (size_t)put;
    }
    if (off + n > o->size)
        o->size = off + n;
    return VKMOE_OK;
}

enum vkmoe_status cor_out_write(struct cor_out *o, const void *src, size_t n, struct vkmoe_err *err)
{
    return out_put(o, NULL, src, n, err);
}

enum vkmoe_status cor_out_write_at(struct cor_out *o, uint64_t off, const void *src, size_t n,
                                   struct vkmoe_err *err)
{
    return out_put(o, &off, src, n, err);
}

uint64_t cor_out_size(const struct cor_out *o)
{
    return o->size;
}

enum vkmoe_status cor_out_flush(struct cor_out *o, struct vkmoe_err *err)
{
    char text[256];

    if (!o->real || !o->open)
        return VKMOE_OK;
    if (refuse())
        return cor_fail(err, VKMOE_ERR_IO, "%s: flushing to disk: simulated failure", o->path);
    if (!sys_sync(o->h))
        return cor_fail(err, VKMOE_ERR_IO, "%s: flushing to disk: %s", o->path,
                        sys_error(text, sizeof(text)));
    sys_close(o->h);
    o->open = false;
    return VKMOE_OK;
}

enum vkmoe_status cor_out_commit(struct cor_out *o, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    char text[256];

    TRY(cor_out_flush(o, err));
    if (o->real) {
        if (!sys_rename(o->temp, o->real))
            FAIL(VKMOE_ERR_IO, "%s: renaming the finished file: %s", o->path, sys_error(text, sizeof(text)));
    }
    out_free(o);
    o = NULL;
done:
    cor_out_discard(o);
    return st;
}

void cor_out_discard(struct cor_out *o)
{
    if (!o)
        return;
    if (o->open)
        sys_close(o->h);
    o->open = false;
    if (o->temp)
        sys_remove(o->temp);
    out_free(o);
}

struct name_list {
    char *text; /* names, each with its NUL */
    size_t used, cap, count;
};

static bool collect_name(void *user, const char *name)
{
    struct name_list *l = user;
    size_t n = strlen(name) + 1;

    if (n > l->cap - l->used) {
        size_t cap = (l->cap + n) * 2;
        char *grown = cor_resize(l->text, cap, 1);

        if (!grown)
            return false;
        l->text = grown;
        l->cap = cap;
    }
    memcpy(l->text + l->used, name, n);
    l->used += n;
    l->count++;
    return true;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

enum vkmoe_status cor_dir_list(const char *path, char ***names, size_t *n, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct name_list l = {0};
    char **block = NULL, *at, text[256];
    bool no_memory;

    *names = NULL;
    *n = 0;
    if (!sys_list(path, collect_name, &l, &no_memory)) {
        if (no_memory)
            FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the list of files", path);
        FAIL(VKMOE_ERR_IO, "%s: cannot list the directory: %s", path, sys_error(text, sizeof(text)));
    }
    block = cor_alloc((l.count + 1) * sizeof(*block) + l.used);
    if (!block)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the list of files", path);
    at = (char *)(block + l.count + 1);
    if (l.used)
        memcpy(at, l.text, l.used);
    for (size_t i = 0; i < l.count; i++, at += strlen(at) + 1)
        block[i] = at;
    block[l.count] = NULL;
    qsort(block, l.count, sizeof(*block), compare_names);
    *names = block;
    *n = l.count;
done:
    cor_free(l.text);
    return st;
}

enum vkmoe_status cor_dir_make(const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char *p = cor_strdup(path), text[256];
    size_t n = strlen(path);

    if (!p)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to create the directory", path);
    for (size_t i = 1; i <= n; i++) {
        char c = p[i];

        if ((c && !sys_is_separator(c)) || sys_is_separator(p[i - 1]))
            continue;
        p[i] = 0;
        if (!cor_path_is_dir(p) && !sys_make_dir(p))
            FAIL(VKMOE_ERR_IO, "%s: cannot create the directory: %s", p, sys_error(text, sizeof(text)));
        p[i] = c;
    }
    if (!cor_path_is_dir(path))
        FAIL(VKMOE_ERR_IO, "%s: cannot create the directory: a file of that name exists", path);
done:
    cor_free(p);
    return st;
}

const char *cor_path_base(const char *path)
{
    const char *base = path;

    for (const char *c = path; *c; c++)
        if (*c == '/' || *c == '\\')
            base = c + 1;
    return base;
}
