/* The operating system: files, time, terminal, signals. os.c is the only place that knows POSIX from
 * Windows. */
#ifndef COR_OS_H
#define COR_OS_H

#include "core/status.h"

struct cor_file; /* open for reading; positioned reads only, so one file serves several threads */

/* refuses directories */
enum vkmoe_status cor_file_open(struct cor_file **out, const char *path, struct vkmoe_err *err);
void cor_file_close(struct cor_file *f);
uint64_t cor_file_size(const struct cor_file *f);
const char *cor_file_path(const struct cor_file *f);
/* Reads exactly n bytes at off, or fails with a line that names file, offset and size. */
enum vkmoe_status cor_file_read(struct cor_file *f, uint64_t off, void *dst, size_t n, struct vkmoe_err *err);
/* Fails when size or time of change differ from those at opening. */
enum vkmoe_status cor_file_unchanged(struct cor_file *f, struct vkmoe_err *err);

/* Whole file into cor_alloc memory, NUL added behind the last byte (not counted in *n). Fails past max
 * bytes. */
enum vkmoe_status cor_file_slurp(const char *path, size_t max, char **data, size_t *n, struct vkmoe_err *err);
/* The same from standard input. */
enum vkmoe_status cor_stdin_slurp(size_t max, char **data, size_t *n, struct vkmoe_err *err);

/* A file being written: to a temporary name beside it, renamed by commit. Symbolic links are followed;
 * devices, pipes and descriptors (/dev/full, /dev/stdout) are written in place. */
struct cor_out;

enum vkmoe_status cor_out_create(struct cor_out **out, const char *path, struct vkmoe_err *err);
/* appends */
enum vkmoe_status cor_out_write(struct cor_out *o, const void *src, size_t n, struct vkmoe_err *err);
enum vkmoe_status cor_out_write_at(struct cor_out *o, uint64_t off, const void *src, size_t n,
                                   struct vkmoe_err *err);
uint64_t cor_out_size(const struct cor_out *o);
/* Everything that can be slow or fail but the renaming: for files that appear together. Nothing may be
 * written afterwards. */
enum vkmoe_status cor_out_flush(struct cor_out *o, struct vkmoe_err *err);
/* Flushes to disk and renames; on failure nothing is left behind. Frees o in either case. */
enum vkmoe_status cor_out_commit(struct cor_out *o, struct vkmoe_err *err);
void cor_out_discard(struct cor_out *o); /* removes the temporary file; NULL is fine */

bool cor_path_is_dir(const char *path);
bool cor_path_exists(const char *path);
const char *cor_path_base(const char *path); /* behind the last separator of any system; points into path */
bool cor_path_same(const char *a, const char *b); /* the same file, which exists; links are followed */
bool cor_path_in_place(const char *path);         /* cor_out writes there without a temporary name */
void cor_path_remove(const char *path);           /* a file; absent: nothing happens */
/* Entries of a directory, sorted by name, in one cor_alloc block that the caller frees. */
enum vkmoe_status cor_dir_list(const char *path, char ***names, size_t *n, struct vkmoe_err *err);
/* Creates the directory (and its parents) with mode 0700 where the system has modes. */
enum vkmoe_status cor_dir_make(const char *path, struct vkmoe_err *err);
/* Directory of the running program without a trailing slash, "" when unknown. */
void cor_program_dir(char *dst, size_t n);
/* User's cache directory for vkmoe (XDG_CACHE_HOME, LOCALAPPDATA ...), "" when unknown. For the program, not
 * the library. */
void cor_cache_dir(char *dst, size_t n);

uint64_t cor_now_ns(void);             /* monotonic */
uint64_t cor_process_peak_bytes(void); /* peak resident set; 0: unknown */
bool cor_is_tty(int fd);               /* 1: standard output, 2: standard error */
/* Columns of the terminal that standard error goes to; 0: it is none, or none that knows escape sequences. */
unsigned cor_terminal_columns(void);
/* Installs a handler for Ctrl-C (SIGINT, SIGTERM) that only sets the flag read by cor_interrupted. A second
 * one ends the process. */
void cor_catch_interrupt(void);
bool cor_interrupted(void);
/* Forgets the last one and waits for the next: for a program that only gives up what it was doing. */
void cor_clear_interrupt(void);
/* UTF-8 arguments and binary standard streams where the system needs it (Windows); elsewhere a closed pipe
 * becomes a write error instead of a silent death. Call first in main. */
void cor_program_init(int *argc, char ***argv);

/* Tests: from now on the nth positioned read or write (1 = the next) and all later ones fail; 0: off. */
void cor_os_fail_from(long nth);
long cor_os_requests(void);

#endif
