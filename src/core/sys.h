/* The system calls under core/os.h, one version per system in os.c. Used by os.c and file.c only.
 * Failing calls leave their reason for sys_error. */
#ifndef COR_SYS_H
#define COR_SYS_H

#include "core/os.h"

enum sys_kind { SYS_ABSENT, SYS_REGULAR, SYS_DIR, SYS_OTHER };

struct sys_stat {
    enum sys_kind kind;
    uint64_t size;
    uint64_t mtime; /* the system's finest unit */
    unsigned mode;  /* permission bits; 0 where there are none */
};

typedef intptr_t sys_handle; /* descriptor or HANDLE */

/* Text of the last failure; returns text. */
const char *sys_error(char *text, size_t n);

void sys_stat_path(const char *path, struct sys_stat *st); /* SYS_ABSENT when it cannot be seen */
bool sys_stat_handle(sys_handle h, struct sys_stat *st);
/* True when both name the same file (links followed), which is there. */
bool sys_same(const char *a, const char *b);
bool sys_writable(const char *path);
/* Where a write to path really goes (symbolic links are kept), cor_free'd by the caller; NULL: path itself.
 */
char *sys_resolve(const char *path);
/* Names that stand for open descriptors: a temporary file beside them makes no sense. */
bool sys_is_descriptor(const char *path);

bool sys_open_read(sys_handle *h, const char *path);
bool sys_open_write(sys_handle *h, const char *path);
/* Fails when the file exists, and says so in *exists. mode 0: the default. */
bool sys_create_new(sys_handle *h, const char *path, unsigned mode, bool *exists);
void sys_close(sys_handle h);
sys_handle sys_stdin(void);

/* Bytes moved, possibly fewer than n (below 2^31); 0 at the end; -1 on failure. */
int64_t sys_pread(sys_handle h, uint64_t off, void *dst, size_t n);
int64_t sys_read(sys_handle h, void *dst, size_t n);
int64_t sys_write(sys_handle h, const void *src, size_t n);
int64_t sys_pwrite(sys_handle h, uint64_t off, const void *src, size_t n);

bool sys_sync(sys_handle h);
bool sys_rename(const char *from, const char *to); /* replaces */
void sys_remove(const char *path);
unsigned long sys_process_id(void);
bool sys_make_dir(const char *path); /* true when it exists already */
bool sys_is_separator(char c);
/* Calls fn with every entry but "." and "..", until it returns false (no memory). */
bool sys_list(const char *path, bool (*fn)(void *user, const char *name), void *user, bool *no_memory);

#endif
