#include "run/fetch.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#include "core/alloc.h"
#include "core/thread.h"

#define NO_TAG  UINT32_MAX
#define WAKE_NS 100000 /* waking threads costs about this much; reads out of the page cache may be faster */

enum load_state {
    LOAD_FREE,
    LOAD_READING, /* until its reads are in and moved on */
    LOAD_COPYING  /* the device reads its staging entry */
};

struct load {
    enum load_state state;
    uint32_t tag, n_parts;
    uint32_t left; /* parts that are not in yet */
    struct run_fetch_part parts[RUN_FETCH_PARTS];
    bool in[RUN_FETCH_PARTS];
    struct gpu_buffer *dst;
    uint64_t off;
    char *to;     /* where the parts are read to: the slot itself or a staging entry */
    bool mapped;  /* the slot itself */
    uint64_t age; /* when it was begun */
};

struct job { /* one read */
    uint32_t load, part;
};

struct run_fetch {
    struct gpu_device *dev;
    struct cor_file *const *files;
    bool *used; /* by file: read from since the last finish */
    uint32_t n_files;
    struct gpu_ring *ring; /* NULL: slots are mapped */
    struct run_fetch_params p;
    struct cor_thread **threads;
    uint32_t n_threads;
    struct gpu_ring_copy *copies; /* scratch */
    uint64_t clock;
    uint64_t n_begun; /* since the last finish */
    uint32_t bad_tag;

    /* Everything from here on, and parts and `left` of loads that are being read, under the lock. */
    struct cor_mutex *lock;
    struct cor_cond *work, *done;
    struct job *jobs; /* a ring of n_entries * RUN_FETCH_PARTS */
    uint32_t first, n_jobs, n_running;
    uint64_t typical_ns; /* of a read, lately */
    bool stop;
    struct load *loads;    /* n_entries; their state belongs to the caller alone */
    struct vkmoe_err fail; /* the first failure of a read; status VKMOE_OK: none */
    uint32_t fail_tag;
    struct run_fetch_stats stats;
};

/* ---- test hooks ---- */

static struct run_fetch_hooks hooks;
static atomic_ullong n_reads; /* since the hooks were set */

void run_fetch_set_hooks(const struct run_fetch_hooks *h)
{
    static const struct run_fetch_hooks none;

    hooks = h ? *h : none;
    atomic_store(&n_reads, 0);
}

static void delay(uint32_t up_to_us, uint64_t nth)
{
    uint64_t z = hooks.seed + nth * 0x9e3779b97f4a7c15u;

    if (!up_to_us)
        return;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    cor_sleep_us((uint32_t)((z ^ z >> 31) % ((uint64_t)up_to_us + 1)));
}

/* ---- reading: any thread ---- */

static uint32_t padded(uint32_t bytes)
{
    return (bytes + 3) / 4 * 4;
}

/* nth: number of this read, for the hooks. */
static enum vkmoe_status read_part(struct run_fetch *f, const struct load *l,
                                   const struct run_fetch_part *part, uint64_t nth, struct vkmoe_err *err)
{
    const bool hit = hooks.fault != RUN_FETCH_NO_FAULT && hooks.nth == nth;
    const uint32_t n = hit && hooks.fault == RUN_FETCH_SHORT ? part->bytes / 2 : part->bytes;
    enum vkmoe_status st = VKMOE_OK;

    delay(hooks.read_delay_us, nth);
    if (hit && hooks.fault == RUN_FETCH_FAIL)
        FAIL(VKMOE_ERR_IO, "%s: reading %" PRIu32 " bytes at offset %" PRIu64 ": simulated failure",
             cor_file_path(f->files[part->file]), part->bytes, part->file_off);
    TRY(cor_file_read(f->files[part->file], part->file_off, l->to + part->at, n, err));
    if (n != part->bytes)
        FAIL(VKMOE_ERR_IO, "%s: reading %" PRIu32 " bytes at offset %" PRIu64 ": only %" PRIu32 " arrived",
             cor_file_path(f->files[part->file]), part->bytes, part->file_off, n);
    memset(l->to + part->at + n, 0, padded(n) - n);
done:
    return st;
}

/* Takes a job and does it. The lock is held, except while reading; there is a job. */
static void do_job(struct run_fetch *f)
{
    const uint32_t room = f->p.n_entries * RUN_FETCH_PARTS;
    const uint64_t nth = atomic_fetch_add(&n_reads, 1) + 1;
    uint32_t at = f->first;
    struct job job;
    struct load *l;
    enum vkmoe_status st;
    struct vkmoe_err err = {0};
    uint64_t start;

    if (hooks.reverse)
        at = (f->first + f->n_jobs - 1) % room;
    else
        f->first = (f->first + 1) % room;
    f->n_jobs--;
    job = f->jobs[at];
    l = &f->loads[job.load];
    if (hooks.fault == RUN_FETCH_DROP && hooks.nth == nth)
        return;
    f->n_running++;
    cor_mutex_unlock(f->lock);
    start = cor_now_ns();
    st = read_part(f, l, &l->parts[job.part], nth, &err);
    start = cor_now_ns() - start;
    cor_mutex_lock(f->lock);
    f->n_running--;
    f->stats.busy_ns += start;
    f->typical_ns = (3 * f->typical_ns + start) / 4;
    if (st == VKMOE_OK) {
        l->in[job.part] = true;
        l->left--;
        f->stats.reads++;
    } else if (f->fail.status == VKMOE_OK) {
        f->fail = err;
        f->fail_tag = l->tag;
    }
}

/* Has the queue read by threads where that is worth it; false: the caller does it sooner. The lock is held.
 */
static bool wake(struct run_fetch *f)
{
    if (!f->n_threads || f->n_jobs * f->typical_ns < WAKE_NS)
        return false;
    for (uint32_t i = 0; i < f->n_jobs && i < f->n_threads; i++)
        cor_cond_signal(f->work);
    return true;
}

static void worker(void *arg)
{
    struct run_fetch *f = arg;

    cor_mutex_lock(f->lock);
    while (!f->stop) {
        if (!f->n_jobs) {
            cor_cond_wait(f->work, f->lock);
            continue;
        }
        do_job(f);
        cor_cond_signal(f->done);
    }
    cor_mutex_unlock(f->lock);
}

/* ---- opening and closing ---- */

uint64_t run_fetch_plan_bytes(const struct gpu_device *dev, const struct run_fetch_params *p)
{
    return gpu_device_caps(dev)->uma ? 0 : gpu_ring_plan_bytes(dev, p->n_entries, p->entry_bytes);
}

uint64_t run_fetch_staging_bytes(const struct run_fetch *f)
{
    return f->ring ? run_fetch_plan_bytes(f->dev, &f->p) : 0;
}

enum vkmoe_status run_fetch_create(struct run_fetch **out, struct gpu_device *dev,
                                   struct cor_file *const *files, uint32_t n_files,
                                   const struct run_fetch_params *p, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct run_fetch *f = cor_zalloc(sizeof(*f));

    *out = NULL;
    assert(n_files && p->n_entries && p->entry_bytes);
    if (!f)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for reading experts", cor_file_path(files[0]));
    f->dev = dev;
    f->files = files;
    f->n_files = n_files;
    f->p = *p;
    f->bad_tag = NO_TAG;
    f->typical_ns = WAKE_NS;
    f->used = cor_array(n_files, sizeof(*f->used));
    f->loads = cor_array(p->n_entries, sizeof(*f->loads));
    f->jobs = cor_array((size_t)p->n_entries * RUN_FETCH_PARTS, sizeof(*f->jobs));
    f->copies = cor_array((size_t)p->n_entries * RUN_FETCH_PARTS, sizeof(*f->copies));
    f->threads = cor_array(p->n_workers, sizeof(struct cor_thread *));
    if (!f->used || !f->loads || !f->jobs || !f->copies || !f->threads)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %" PRIu32 " reads at once", cor_file_path(files[0]),
             p->n_entries);
    if (!gpu_device_caps(dev)->uma)
        TRY(gpu_ring_create(&f->ring, dev, p->n_entries, p->entry_bytes, err));
    TRY(cor_mutex_create(&f->lock, err));
    TRY(cor_cond_create(&f->work, err));
    TRY(cor_cond_create(&f->done, err));
    for (; f->n_threads < p->n_workers; f->n_threads++)
        TRY(cor_thread_start(&f->threads[f->n_threads], worker, f, "reading experts", err));
    *out = f;
    f = NULL;
done:
    run_fetch_close(f);
    return st;
}

void run_fetch_close(struct run_fetch *f)
{
    if (!f)
        return;
    if (f->n_threads) {
        cor_mutex_lock(f->lock);
        f->stop = true;
        f->n_jobs = 0;
        cor_cond_broadcast(f->work);
        cor_mutex_unlock(f->lock);
    }
    for (uint32_t i = 0; i < f->n_threads; i++)
        cor_thread_join(f->threads[i]);
    cor_cond_destroy(f->done);
    cor_cond_destroy(f->work);
    cor_mutex_destroy(f->lock);
    gpu_ring_destroy(f->ring);
    cor_free(f->threads);
    cor_free(f->copies);
    cor_free(f->jobs);
    cor_free(f->loads);
    cor_free(f->used);
    cor_free(f);
}

/* ---- moving loads on: the caller's thread ---- */

/* Gives up everything that was begun: nothing is read, and nobody writes to slots or staging, afterwards. */
static void drain(struct run_fetch *f)
{
    cor_mutex_lock(f->lock);
    f->n_jobs = 0;
    while (f->n_running)
        cor_cond_wait(f->done, f->lock);
    f->fail.status = VKMOE_OK;
    cor_mutex_unlock(f->lock);
    for (uint32_t i = 0; i < f->p.n_entries; i++)
        if (f->loads[i].state == LOAD_READING)
            f->loads[i].state = LOAD_FREE;
    f->n_begun = 0;
}

/* The failure of a read, if there was one. The lock is held. */
static enum vkmoe_status read_failure(struct run_fetch *f, struct vkmoe_err *err)
{
    if (f->fail.status != VKMOE_OK) {
        f->bad_tag = f->fail_tag;
        if (err)
            *err = f->fail;
    }
    return f->fail.status;
}

static enum vkmoe_status flush_load(const struct load *l, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < l->n_parts; i++)
        TRY(gpu_buffer_flush(l->dst, l->off + l->parts[i].at, padded(l->parts[i].bytes), err));
done:
    return st;
}

/* Copies of a load, joined where one part follows on the other. Returns their number. */
static uint32_t list_copies(const struct load *l, uint32_t entry, struct gpu_ring_copy *copies)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < l->n_parts; i++) {
        const struct run_fetch_part *part = &l->parts[i];

        if (n && copies[n - 1].at + copies[n - 1].bytes == part->at)
            copies[n - 1].bytes += padded(part->bytes);
        else
            copies[n++] =
                (struct gpu_ring_copy){entry, part->at, l->dst, l->off + part->at, padded(part->bytes)};
    }
    return n;
}

/* Flushes or submits what has been read; *reading: loads of which reads are missing. */
static enum vkmoe_status move_on(struct run_fetch *f, uint32_t *reading, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t n = 0;

    *reading = 0;
    for (uint32_t i = 0; i < f->p.n_entries; i++) {
        struct load *l = &f->loads[i];
        bool ready;

        if (l->state != LOAD_READING)
            continue;
        cor_mutex_lock(f->lock);
        st = read_failure(f, err);
        ready = !l->left;
        cor_mutex_unlock(f->lock);
        TRY(st);
        if (!ready) {
            ++*reading;
            continue;
        }
        if (l->mapped)
            TRY(flush_load(l, err));
        else
            n += list_copies(l, i, f->copies + n);
        l->state = l->mapped ? LOAD_FREE : LOAD_COPYING;
        f->stats.loads++;
        for (uint32_t k = 0; k < l->n_parts; k++)
            f->stats.bytes += l->parts[k].bytes;
    }
    if (n) {
        delay(hooks.copy_delay_us, ~f->stats.submits);
        TRY(gpu_ring_submit(f->ring, f->copies, n, err));
        f->stats.submits++;
    }
done:
    return st;
}

/* A load that waits for a read which nobody has and nobody will make. The lock is held. */
static enum vkmoe_status never_made(struct run_fetch *f, struct vkmoe_err *err)
{
    for (uint32_t i = 0; i < f->p.n_entries; i++) {
        const struct load *l = &f->loads[i];

        for (uint32_t k = 0; l->state == LOAD_READING && k < l->n_parts; k++)
            if (!l->in[k]) {
                f->bad_tag = l->tag;
                return cor_fail(
                    err, VKMOE_ERR_IO, "%s: reading %" PRIu32 " bytes at offset %" PRIu64 ": was never made",
                    cor_file_path(f->files[l->parts[k].file]), l->parts[k].bytes, l->parts[k].file_off);
            }
    }
    return VKMOE_OK;
}

/* Waits until a load that is being read can be moved on; there is one. */
static enum vkmoe_status await_read(struct run_fetch *f, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const uint64_t start = cor_now_ns();
    bool ready = false;

    cor_mutex_lock(f->lock);
    for (;;) {
        TRY(read_failure(f, err));
        for (uint32_t i = 0; i < f->p.n_entries; i++)
            ready = ready || (f->loads[i].state == LOAD_READING && !f->loads[i].left);
        if (ready)
            break;
        if (f->n_jobs && !wake(f))
            do_job(f);
        else if (f->n_jobs || f->n_running)
            cor_cond_wait(f->done, f->lock);
        else
            TRY(never_made(f, err));
    }
done:
    cor_mutex_unlock(f->lock);
    f->stats.wait_ns += cor_now_ns() - start;
    return st;
}

/* Waits for the oldest copy. */
static enum vkmoe_status await_copy(struct run_fetch *f, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const uint64_t start = cor_now_ns();
    struct load *oldest = NULL;
    bool busy;

    for (uint32_t i = 0; i < f->p.n_entries; i++)
        if (f->loads[i].state == LOAD_COPYING && (!oldest || f->loads[i].age < oldest->age))
            oldest = &f->loads[i];
    TRY(gpu_ring_busy(f->ring, (uint32_t)(oldest - f->loads), true, &busy, err));
    oldest->state = LOAD_FREE;
done:
    f->stats.wait_ns += cor_now_ns() - start;
    return st;
}

/* Index of a free load, with its staging entry. */
static enum vkmoe_status free_load(struct run_fetch *f, uint32_t *index, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t reading, copying;
    bool busy;

    TRY(gpu_alive(f->dev, err));
    for (;;) {
        copying = 0;
        TRY(move_on(f, &reading, err));
        for (*index = 0; *index < f->p.n_entries; ++*index)
            if (f->loads[*index].state == LOAD_FREE)
                return VKMOE_OK;
        for (*index = 0; *index < f->p.n_entries; ++*index)
            if (f->loads[*index].state == LOAD_COPYING) {
                TRY(gpu_ring_busy(f->ring, *index, false, &busy, err));
                if (!busy) {
                    f->loads[*index].state = LOAD_FREE;
                    return VKMOE_OK;
                }
                copying++;
            }
        TRY(copying ? await_copy(f, err) : await_read(f, err));
    }
done:
    return st;
}

enum vkmoe_status run_fetch_begin(struct run_fetch *f, struct gpu_buffer *dst, uint64_t off,
                                  const struct run_fetch_part *parts, uint32_t n_parts, uint32_t tag,
                                  struct vkmoe_err *err)
{
    const uint32_t room = f->p.n_entries * RUN_FETCH_PARTS;
    enum vkmoe_status st = VKMOE_OK;
    uint32_t index;
    struct load *l;
    char *map = gpu_buffer_map(dst);

    assert(n_parts && n_parts <= RUN_FETCH_PARTS && off % 4 == 0 && (map || f->ring));
    f->bad_tag = NO_TAG;
    TRY(free_load(f, &index, err));
    l = &f->loads[index];
    *l = (struct load){.state = LOAD_READING, .tag = tag, .n_parts = n_parts, .left = n_parts};
    l->dst = dst;
    l->off = off;
    l->mapped = map != NULL;
    l->to = map ? map + off : gpu_ring_map(f->ring, index);
    l->age = f->clock++;
    for (uint32_t i = 0; i < n_parts; i++) {
        assert(parts[i].bytes && parts[i].at % 4 == 0);
        assert((uint64_t)parts[i].at + padded(parts[i].bytes) <= f->p.entry_bytes);
        assert(off + parts[i].at + padded(parts[i].bytes) <= gpu_buffer_bytes(dst));
        assert(parts[i].file < f->n_files);
        l->parts[i] = parts[i];
        f->used[parts[i].file] = true;
    }
    f->n_begun++;
    cor_mutex_lock(f->lock);
    for (uint32_t i = 0; i < n_parts; i++)
        f->jobs[(f->first + f->n_jobs++) % room] = (struct job){index, i};
    wake(f);
    cor_mutex_unlock(f->lock);
done:
    if (st != VKMOE_OK)
        drain(f);
    return st;
}

enum vkmoe_status run_fetch_pump(struct run_fetch *f, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t reading;

    f->bad_tag = NO_TAG;
    TRY(gpu_alive(f->dev, err));
    TRY(move_on(f, &reading, err));
done:
    if (st != VKMOE_OK)
        drain(f);
    return st;
}

enum vkmoe_status run_fetch_finish(struct run_fetch *f, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t reading = 0;

    f->bad_tag = NO_TAG;
    TRY(gpu_alive(f->dev, err));
    for (;;) {
        TRY(move_on(f, &reading, err));
        if (!reading)
            break;
        TRY(await_read(f, err));
    }
    for (uint32_t i = 0; f->n_begun && i < f->n_files; i++)
        if (f->used[i]) {
            TRY(cor_file_unchanged(f->files[i], err));
            f->used[i] = false;
        }
    f->n_begun = 0;
done:
    if (st != VKMOE_OK)
        drain(f);
    return st;
}

uint32_t run_fetch_bad_tag(const struct run_fetch *f)
{
    return f->bad_tag;
}

const struct run_fetch_stats *run_fetch_stats(const struct run_fetch *f)
{
    return &f->stats;
}
