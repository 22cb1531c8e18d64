/* The operating system behind core/os.h: what POSIX and Windows do differently (threads: thread.c). What both
 * share (whole files, temporary names, error lines) is in file.c, on top of the sys_* functions here. */
#if !defined(_WIN32) && !defined(_XOPEN_SOURCE)
#define _XOPEN_SOURCE 700 /* realpath */
#endif

#include "core/sys.h"

#include "core/alloc.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t interrupted;

/* ---- Windows ---- */
#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
/* after windows.h */
#include <fcntl.h>
#include <io.h>
#include <psapi.h>
#include <shellapi.h>

const char *sys_error(char *text, size_t n)
{
    DWORD code = GetLastError();
    DWORD len = FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, NULL, code, 0,
                               text, (DWORD)n, NULL);

    while (len && (text[len - 1] == '\n' || text[len - 1] == '\r' || text[len - 1] == '.'))
        text[--len] = 0;
    if (!len)
        snprintf(text, n, "error %lu", (unsigned long)code);
    return text;
}

static wchar_t *wide(const char *s)
{
    int n = MultiByteToWideChar(CP_UTF8, 0, s, -1, NULL, 0);
    wchar_t *w = n > 0 ? cor_array((size_t)n, sizeof(*w)) : NULL;

    if (w)
        MultiByteToWideChar(CP_UTF8, 0, s, -1, w, n);
    return w;
}

static char *narrow(const wchar_t *w)
{
    int n = WideCharToMultiByte(CP_UTF8, 0, w, -1, NULL, 0, NULL, NULL);
    char *s = n > 0 ? cor_alloc((size_t)n) : NULL;

    if (s)
        WideCharToMultiByte(CP_UTF8, 0, w, -1, s, n, NULL, NULL);
    return s;
}

bool sys_stat_handle(sys_handle h, struct sys_stat *st)
{
    BY_HANDLE_FILE_INFORMATION i;

    memset(st, 0, sizeof(*st));
    if (GetFileType((HANDLE)h) != FILE_TYPE_DISK) {
        st->kind = SYS_OTHER;
        return true;
    }
    if (!GetFileInformationByHandle((HANDLE)h, &i))
        return false;
    st->kind = i.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? SYS_DIR : SYS_REGULAR;
    st->size = (uint64_t)i.nFileSizeHigh << 32 | i.nFileSizeLow;
    st->mtime = (uint64_t)i.ftLastWriteTime.dwHighDateTime << 32 | i.ftLastWriteTime.dwLowDateTime;
    return true;
}

void sys_stat_path(const char *path, struct sys_stat *st)
{
    wchar_t *w = wide(path);
    DWORD a = w ? GetFileAttributesW(w) : INVALID_FILE_ATTRIBUTES;

    memset(st, 0, sizeof(*st));
    if (a != INVALID_FILE_ATTRIBUTES)
        st->kind = a & FILE_ATTRIBUTE_DIRECTORY ? SYS_DIR : SYS_REGULAR;
    else if (!_stricmp(path, "nul") || !_stricmp(path, "con"))
        st->kind = SYS_OTHER;
    cor_free(w);
}

static bool sys_open(sys_handle *h, const char *path, DWORD access, DWORD how)
{
    wchar_t *w = wide(path);
    HANDLE f;

    if (!w) {
        SetLastError(ERROR_NOT_ENOUGH_MEMORY);
        return false;
    }
    f = CreateFileW(w, access, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL, how,
                    FILE_ATTRIBUTE_NORMAL, NULL);
    cor_free(w);
    *h = (sys_handle)f;
    return f != INVALID_HANDLE_VALUE;
}

bool sys_open_read(sys_handle *h, const char *path)
{
    return sys_open(h, path, GENERIC_READ, OPEN_EXISTING);
}

bool sys_open_write(sys_handle *h, const char *path)
{
    return sys_open(h, path, GENERIC_WRITE, OPEN_EXISTING);
}

bool sys_create_new(sys_handle *h, const char *path, unsigned mode, bool *exists)
{
    bool good = sys_open(h, path, GENERIC_WRITE, CREATE_NEW);

    (void)mode;
    *exists = !good && GetLastError() == ERROR_FILE_EXISTS;
    return good;
}

void sys_close(sys_handle h)
{
    CloseHandle((HANDLE)h);
}

int64_t sys_pread(sys_handle h, uint64_t off, void *dst, size_t n)
{
    OVERLAPPED o = {0};
    DWORD got = 0;

    o.Offset = (DWORD)off;
    o.OffsetHigh = (DWORD)(off >> 32);
    if (!ReadFile((HANDLE)h, dst, (DWORD)n, &got, &o))
        return GetLastError() == ERROR_HANDLE_EOF ? 0 : -1;
    return got;
}

int64_t sys_read(sys_handle h, void *dst, size_t n)
{
    DWORD got = 0;

    if (!ReadFile((HANDLE)h, dst, (DWORD)n, &got, NULL))
        return GetLastError() == ERROR_BROKEN_PIPE ? 0 : -1;
    return got;
}

int64_t sys_write(sys_handle h, const void *src, size_t n)
{
    DWORD put = 0;

    return WriteFile((HANDLE)h, src, (DWORD)n, &put, NULL) ? (int64_t)put : -1;
}

int64_t sys_pwrite(sys_handle h, uint64_t off, const void *src, size_t n)
{
    OVERLAPPED o = {0};
    DWORD put = 0;

    o.Offset = (DWORD)off;
    o.OffsetHigh = (DWORD)(off >> 32);
    return WriteFile((HANDLE)h, src, (DWORD)n, &put, &o) ? (int64_t)put : -1;
}

bool sys_sync(sys_handle h)
{
    return FlushFileBuffers((HANDLE)h);
}

bool sys_rename(const char *from, const char *to)
{
    wchar_t *a = wide(from), *b = wide(to);
    bool good = a && b && MoveFileExW(a, b, MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH);

    cor_free(a);
    cor_free(b);
    return good;
}

void sys_remove(const char *path)
{
    wchar_t *w = wide(path);

    if (w)
        DeleteFileW(w);
    cor_free(w);
}

static bool identify(const char *path, BY_HANDLE_FILE_INFORMATION *info)
{
    wchar_t *w = wide(path);
    HANDLE f = INVALID_HANDLE_VALUE;
    bool known = false;

    if (w)
        f = CreateFileW(w, 0, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL, OPEN_EXISTING,
                        FILE_FLAG_BACKUP_SEMANTICS, NULL);
    if (f != INVALID_HANDLE_VALUE) {
        known = GetFileInformationByHandle(f, info);
        CloseHandle(f);
    }
    cor_free(w);
    return known;
}

bool sys_same(const char *a, const char *b)
{
    BY_HANDLE_FILE_INFORMATION x, y;

    return identify(a, &x) && identify(b, &y) && x.dwVolumeSerialNumber == y.dwVolumeSerialNumber &&
           x.nFileIndexHigh == y.nFileIndexHigh && x.nFileIndexLow == y.nFileIndexLow;
}

bool sys_writable(const char *path)
{
    wchar_t *w = wide(path);
    DWORD a = w ? GetFileAttributesW(w) : 0;

    cor_free(w);
    if (a & FILE_ATTRIBUTE_READONLY)
        SetLastError(ERROR_ACCESS_DENIED);
    return !(a & FILE_ATTRIBUTE_READONLY);
}

char *sys_resolve(const char *path)
{
    (void)path;
    return NULL;
}

bool sys_is_descriptor(const char *path)
{
    (void)path;
    return false;
}

sys_handle sys_stdin(void)
{
    return (sys_handle)GetStdHandle(STD_INPUT_HANDLE);
}

unsigned long sys_process_id(void)
{
    return GetCurrentProcessId();
}

bool sys_make_dir(const char *path)
{
    wchar_t *w = wide(path);
    bool good = w && (CreateDirectoryW(w, NULL) || GetLastError() == ERROR_ALREADY_EXISTS);

    cor_free(w);
    return good;
}

bool sys_is_separator(char c)
{
    return c == '/' || c == '\\';
}

bool sys_list(const char *path, bool (*fn)(void *user, const char *name), void *user, bool *no_memory)
{
    size_t n = strlen(path);
    char *pattern = cor_alloc(n + 3);
    wchar_t *w = NULL;
    HANDLE h = INVALID_HANDLE_VALUE;
    WIN32_FIND_DATAW d;

    *no_memory = true;
    if (pattern) {
        memcpy(pattern, path, n);
        memcpy(pattern + n, "/*", 3);
        w = wide(pattern);
        cor_free(pattern);
    }
    if (!w)
        return false;
    h = FindFirstFileW(w, &d);
    cor_free(w);
    *no_memory = false;
    if (h == INVALID_HANDLE_VALUE)
        return false;
    do {
        char *name = narrow(d.cFileName);
        bool dots = name && (!strcmp(name, ".") || !strcmp(name, ".."));

        *no_memory = !name || (!dots && !fn(user, name));
        cor_free(name);
    } while (!*no_memory && FindNextFileW(h, &d));
    FindClose(h);
    return !*no_memory;
}

void cor_program_dir(char *dst, size_t n)
{
    wchar_t w[2048];
    DWORD len = GetModuleFileNameW(NULL, w, 2048);
    char *s = len && len < 2048 ? narrow(w) : NULL;
    size_t end = s ? strlen(s) : 0;

    while (end && !sys_is_separator(s[end - 1]))
        end--;
    snprintf(dst, n, "%.*s", end ? (int)end - 1 : 0, s ? s : "");
    cor_free(s);
}

void cor_cache_dir(char *dst, size_t n)
{
    wchar_t w[2048];
    DWORD len = GetEnvironmentVariableW(L"LOCALAPPDATA", w, 2048);
    char *s = len && len < 2048 ? narrow(w) : NULL;

    if (!s || (size_t)snprintf(dst, n, "%s/vkmoe", s) >= n)
        dst[0] = 0;
    cor_free(s);
}

uint64_t cor_now_ns(void)
{
    LARGE_INTEGER now, per_s;

    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&per_s);
    return (uint64_t)(now.QuadPart / per_s.QuadPart) * 1000000000u +
           (uint64_t)(now.QuadPart % per_s.QuadPart) * 1000000000u / (uint64_t)per_s.QuadPart;
}

uint64_t cor_process_peak_bytes(void)
{
    PROCESS_MEMORY_COUNTERS c;

    return K32GetProcessMemoryInfo(GetCurrentProcess(), &c, sizeof(c)) ? c.PeakWorkingSetSize : 0;
}

bool cor_is_tty(int fd)
{
    return _isatty(fd);
}

unsigned cor_terminal_columns(void)
{
    HANDLE h = GetStdHandle(STD_ERROR_HANDLE);
    CONSOLE_SCREEN_BUFFER_INFO info;
    DWORD mode;

    /* 4: ENABLE_VIRTUAL_TERMINAL_PROCESSING, without which escape sequences would be shown as they are */
    return GetConsoleMode(h, &mode) && SetConsoleMode(h, mode | 4) && GetConsoleScreenBufferInfo(h, &info)
               ? (unsigned)info.dwSize.X
               : 0;
}

static BOOL WINAPI on_console_event(DWORD event)
{
    if (interrupted || (event != CTRL_C_EVENT && event != CTRL_BREAK_EVENT))
        return FALSE; /* the default: the process ends */
    interrupted = 1;
    return TRUE;
}

void cor_catch_interrupt(void)
{
    SetConsoleCtrlHandler(on_console_event, TRUE);
}

void cor_program_init(int *argc, char ***argv)
{
    int n = 0;
    wchar_t **w = CommandLineToArgvW(GetCommandLineW(), &n);
    char **args = w ? cor_array((size_t)n + 1, sizeof(*args)) : NULL;
    bool good = args != NULL;

    for (int i = 0; good && i < n; i++)
        good = (args[i] = narrow(w[i])) != NULL;
    if (good) {
        *argc = n;
        *argv = args; /* lives as long as the process */
    }
    LocalFree(w);
    _setmode(0, _O_BINARY);
    _setmode(1, _O_BINARY);
    _setmode(2, _O_BINARY);
    SetConsoleOutputCP(CP_UTF8);
}

/* ---- POSIX ---- */
#else
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

const char *sys_error(char *text, size_t n)
{
    snprintf(text, n, "%s", strerror(errno));
    return text;
}

static void from_stat(const struct stat *s, struct sys_stat *st)
{
    st->kind = S_ISREG(s->st_mode) ? SYS_REGULAR : S_ISDIR(s->st_mode) ? SYS_DIR : SYS_OTHER;
    st->size = (uint64_t)s->st_size;
#ifdef __APPLE__
    st->mtime = (uint64_t)s->st_mtime;
#else
    st->mtime = (uint64_t)s->st_mtim.tv_sec * 1000000000u + (uint64_t)s->st_mtim.tv_nsec;
#endif
    st->mode = (unsigned)s->st_mode & 0777u;
}

bool sys_stat_handle(sys_handle h, struct sys_stat *st)
{
    struct stat s;

    if (fstat((int)h, &s))
        return false;
    from_stat(&s, st);
    return true;
}

void sys_stat_path(const char *path, struct sys_stat *st)
{
    struct stat s;

    memset(st, 0, sizeof(*st));
    if (!stat(path, &s))
        from_stat(&s, st);
}

bool sys_open_read(sys_handle *h, const char *path)
{
    return (*h = open(path, O_RDONLY | O_CLOEXEC)) >= 0;
}

bool sys_open_write(sys_handle *h, const char *path)
{
    return (*h = open(path, O_WRONLY | O_CLOEXEC)) >= 0;
}

bool sys_create_new(sys_handle *h, const char *path, unsigned mode, bool *exists)
{
    *h = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    *exists = *h < 0 && errno == EEXIST;
    if (*h >= 0 && mode && fchmod((int)*h, (mode_t)mode))
        errno = 0; /* a nicety: file systems without modes are fine */
    return *h >= 0;
}

void sys_close(sys_handle h)
{
    close((int)h);
}

static bool again(int64_t n)
{
    return n < 0 && errno == EINTR && !interrupted;
}

int64_t sys_pread(sys_handle h, uint64_t off, void *dst, size_t n)
{
    int64_t got;

    do
        got = pread((int)h, dst, n, (off_t)off);
    while (again(got));
    return got;
}

int64_t sys_read(sys_handle h, void *dst, size_t n)
{
    int64_t got;

    do
        got = read((int)h, dst, n);
    while (again(got));
    return got;
}

int64_t sys_write(sys_handle h, const void *src, size_t n)
{
    int64_t put;

    do
        put = write((int)h, src, n);
    while (again(put));
    return put;
}

int64_t sys_pwrite(sys_handle h, uint64_t off, const void *src, size_t n)
{
    int64_t put;

    do
        put = pwrite((int)h, src, n, (off_t)off);
    while (again(put));
    return put;
}

bool sys_sync(sys_handle h)
{
    return !fsync((int)h) || errno == EINVAL || errno == EROFS; /* EINVAL: file systems that cannot */
}

bool sys_rename(const char *from, const char *to)
{
    return !rename(from, to);
}

void sys_remove(const char *path)
{
    unlink(path);
}

bool sys_same(const char *a, const char *b)
{
    struct stat x, y;

    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool sys_writable(const char *path)
{
    return !access(path, W_OK);
}

char *sys_resolve(const char *path)
{
    char *real = realpath(path, NULL);
    char *copy = real ? cor_strdup(real) : NULL;

    free(real);
    return copy;
}

bool sys_is_descriptor(const char *path)
{
    return !strncmp(path, "/dev/fd/", 8) || !strncmp(path, "/dev/std", 8) || !strncmp(path, "/proc/", 6);
}

sys_handle sys_stdin(void)
{
    return 0;
}

unsigned long sys_process_id(void)
{
    return (unsigned long)getpid();
}

bool sys_make_dir(const char *path)
{
    return !mkdir(path, 0700) || errno == EEXIST;
}

bool sys_is_separator(char c)
{
    return c == '/';
}

bool sys_list(const char *path, bool (*fn)(void *user, const char *name), void *user, bool *no_memory)
{
    DIR *d = opendir(path);
    struct dirent *e;

    *no_memory = false;
    if (!d)
        return false;
    while (!*no_memory && (e = readdir(d)))
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            *no_memory = !fn(user, e->d_name);
    closedir(d);
    return !*no_memory;
}

void cor_program_dir(char *dst, size_t n)
{
    char path[4096];
    ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - 1);

    if (len < 0)
        len = 0;
    while (len > 0 && path[len - 1] != '/')
        len--;
    path[len > 0 ? len - 1 : 0] = 0;
    if ((size_t)snprintf(dst, n, "%s", path) >= n)
        dst[0] = 0;
}

void cor_cache_dir(char *dst, size_t n)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int len = -1;

    if (xdg && xdg[0] == '/') /* the specification: relative ones are ignored */
        len = snprintf(dst, n, "%s/vkmoe", xdg);
    else if (home && home[0] == '/')
        len = snprintf(dst, n, "%s/.cache/vkmoe", home);
    if (len < 0 || (size_t)len >= n)
        dst[0] = 0;
}

uint64_t cor_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t cor_process_peak_bytes(void)
{
    struct rusage r;

    if (getrusage(RUSAGE_SELF, &r))
        return 0;
#ifdef __APPLE__
    return (uint64_t)r.ru_maxrss;
#else
    return (uint64_t)r.ru_maxrss * 1024;
#endif
}

bool cor_is_tty(int fd)
{
    return isatty(fd);
}

unsigned cor_terminal_columns(void)
{
    const char *term = getenv("TERM");
    struct winsize size;

    return term && strcmp(term, "dumb") && isatty(2) && !ioctl(2, TIOCGWINSZ, &size) ? size.ws_col : 0;
}

static void on_signal(int sig)
{
    (void)sig;
    interrupted = 1;
}

void cor_catch_interrupt(void)
{
    struct sigaction a;

    memset(&a, 0, sizeof(a));
    a.sa_handler = on_signal;
    a.sa_flags = (int)SA_RESETHAND; /* the second one ends the process */
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
}

void cor_program_init(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is then a write error with a line, not a silent death */
}
#endif

void cor_clear_interrupt(void)
{
    interrupted = 0;
    cor_catch_interrupt();
}

bool cor_interrupted(void)
{
    return interrupted;
}
