/* Threads, locks and conditions of the operating system, behind core/thread.h. */
#include "core/thread.h"

#include "core/alloc.h"
#include "core/sys.h"

#include <errno.h>
#include <stdint.h>

struct start {
    void (*fn)(void *arg);
    void *arg;
};

/* ---- Windows ---- */
#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

struct cor_thread {
    struct start start;
    HANDLE h;
};

struct cor_mutex {
    SRWLOCK lock;
};

struct cor_cond {
    CONDITION_VARIABLE cv;
};

static DWORD WINAPI thread_main(LPVOID p)
{
    const struct start *s = p;

    s->fn(s->arg);
    return 0;
}

static bool thread_begin(struct cor_thread *t)
{
    t->h = CreateThread(NULL, 0, thread_main, &t->start, 0, NULL);
    return t->h != NULL;
}

static void thread_end(struct cor_thread *t)
{
    WaitForSingleObject(t->h, INFINITE);
    CloseHandle(t->h);
}

static bool mutex_begin(struct cor_mutex *m)
{
    InitializeSRWLock(&m->lock);
    return true;
}

static void mutex_end(struct cor_mutex *m)
{
    (void)m;
}

void cor_mutex_lock(struct cor_mutex *m)
{
    AcquireSRWLockExclusive(&m->lock);
}

void cor_mutex_unlock(struct cor_mutex *m)
{
    ReleaseSRWLockExclusive(&m->lock);
}

static bool cond_begin(struct cor_cond *c)
{
    InitializeConditionVariable(&c->cv);
    return true;
}

static void cond_end(struct cor_cond *c)
{
    (void)c;
}

void cor_cond_wait(struct cor_cond *c, struct cor_mutex *m)
{
    SleepConditionVariableSRW(&c->cv, &m->lock, INFINITE, 0);
}

void cor_cond_signal(struct cor_cond *c)
{
    WakeConditionVariable(&c->cv);
}

void cor_cond_broadcast(struct cor_cond *c)
{
    WakeAllConditionVariable(&c->cv);
}

void cor_sleep_us(uint32_t us)
{
    Sleep(us / 1000 + (us % 1000 != 0));
}

/* ---- POSIX ---- */
#else
#include <pthread.h>
#include <signal.h>
#include <time.h>

struct cor_thread {
    struct start start;
    pthread_t id;
};

struct cor_mutex {
    pthread_mutex_t lock;
};

struct cor_cond {
    pthread_cond_t cv;
};

static void *thread_main(void *p)
{
    const struct start *s = p;

    s->fn(s->arg);
    return NULL;
}

static bool thread_begin(struct cor_thread *t)
{
    sigset_t all, old;

    sigfillset(&all); /* inherited: Ctrl-C must interrupt the main thread, not a worker's read */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    errno = pthread_create(&t->id, NULL, thread_main, &t->start);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return !errno;
}

static void thread_end(struct cor_thread *t)
{
    pthread_join(t->id, NULL);
}

static bool mutex_begin(struct cor_mutex *m)
{
    return !(errno = pthread_mutex_init(&m->lock, NULL));
}

static void mutex_end(struct cor_mutex *m)
{
    pthread_mutex_destroy(&m->lock);
}

void cor_mutex_lock(struct cor_mutex *m)
{
    pthread_mutex_lock(&m->lock);
}

void cor_mutex_unlock(struct cor_mutex *m)
{
    pthread_mutex_unlock(&m->lock);
}

static bool cond_begin(struct cor_cond *c)
{
    return !(errno = pthread_cond_init(&c->cv, NULL));
}

static void cond_end(struct cor_cond *c)
{
    pthread_cond_destroy(&c->cv);
}

void cor_cond_wait(struct cor_cond *c, struct cor_mutex *m)
{
    pthread_cond_wait(&c->cv, &m->lock);
}

void cor_cond_signal(struct cor_cond *c)
{
    pthread_cond_signal(&c->cv);
}

void cor_cond_broadcast(struct cor_cond *c)
{
    pthread_cond_broadcast(&c->cv);
}

void cor_sleep_us(uint32_t us)
{
    struct timespec left = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};

    while (nanosleep(&left, &left) && errno == EINTR)
        ;
}
#endif

/* ---- what both share ---- */

enum vkmoe_status cor_thread_start(struct cor_thread **out, void (*fn)(void *arg), void *arg,
                                   const char *name, struct vkmoe_err *err)
{
    struct cor_thread *t = cor_zalloc(sizeof(*t));
    char text[256];

    *out = NULL;
    if (!t)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a thread", name);
    t->start.fn = fn;
    t->start.arg = arg;
    if (!thread_begin(t)) {
        cor_free(t);
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: cannot start a thread: %s", name,
                        sys_error(text, sizeof(text)));
    }
    *out = t;
    return VKMOE_OK;
}

void cor_thread_join(struct cor_thread *t)
{
    if (!t)
        return;
    thread_end(t);
    cor_free(t);
}

enum vkmoe_status cor_mutex_create(struct cor_mutex **out, struct vkmoe_err *err)
{
    struct cor_mutex *m = cor_zalloc(sizeof(*m));

    *out = NULL;
    if (!m || !mutex_begin(m)) {
        cor_free(m);
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a lock");
    }
    *out = m;
    return VKMOE_OK;
}

void cor_mutex_destroy(struct cor_mutex *m)
{
    if (!m)
        return;
    mutex_end(m);
    cor_free(m);
}

enum vkmoe_status cor_cond_create(struct cor_cond **out, struct vkmoe_err *err)
{
    struct cor_cond *c = cor_zalloc(sizeof(*c));

    *out = NULL;
    if (!c || !cond_begin(c)) {
        cor_free(c);
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a condition");
    }
    *out = c;
    return VKMOE_OK;
}

void cor_cond_destroy(struct cor_cond *c)
{
    if (!c)
        return;
    cond_end(c);
    cor_free(c);
}
