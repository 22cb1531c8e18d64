/* Threads, locks and sleeping, as small as the engine needs them. Written per system in thread.c. */
#ifndef COR_THREAD_H
#define COR_THREAD_H

#include "core/status.h"

struct cor_thread;
struct cor_mutex;
struct cor_cond;

/* Runs fn(arg) on a new thread, which takes no signals. name: for error lines. */
enum vkmoe_status cor_thread_start(struct cor_thread **out, void (*fn)(void *arg), void *arg,
                                   const char *name, struct vkmoe_err *err);
void cor_thread_join(struct cor_thread *t); /* waits for its end and frees it; NULL is fine */

/* Not recursive. */
enum vkmoe_status cor_mutex_create(struct cor_mutex **out, struct vkmoe_err *err);
void cor_mutex_destroy(struct cor_mutex *m); /* NULL is fine */
void cor_mutex_lock(struct cor_mutex *m);
void cor_mutex_unlock(struct cor_mutex *m);

enum vkmoe_status cor_cond_create(struct cor_cond **out, struct vkmoe_err *err);
void cor_cond_destroy(struct cor_cond *c); /* NULL is fine */
/* The mutex is held; may return without a signal. */
void cor_cond_wait(struct cor_cond *c, struct cor_mutex *m);
void cor_cond_signal(struct cor_cond *c);    /* wakes one */
void cor_cond_broadcast(struct cor_cond *c); /* wakes all */

void cor_sleep_us(uint32_t us); /* at least this long */

#endif
