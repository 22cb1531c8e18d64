/* Brings expert bytes from the model file into slots: positioned reads on worker threads, then, where slots
 * are not mapped, copies from a ring of staging entries. Owns threads, queue and staging; knows no slots, no
 * experts and no policy. */
#ifndef RUN_FETCH_H
#define RUN_FETCH_H

#include "core/os.h"
#include "gpu/memory.h"

#define RUN_FETCH_WORKERS 4 /* by default */
#define RUN_FETCH_PARTS   6 /* at most, of one load */

struct run_fetch_params {
    uint32_t n_workers;   /* threads; the calling thread makes reads that are not worth a thread. 0: all */
    uint32_t n_entries;   /* loads in hand at once, at least 1 */
    uint32_t entry_bytes; /* of a staging entry: the slot stride. None are made where caps.uma. */
};

struct run_fetch_part {
    uint32_t file; /* of those given to create */
    uint64_t file_off;
    uint32_t bytes; /* > 0 */
    uint32_t at;    /* in the slot; a multiple of 4. at + bytes rounded up to 4 is inside the slot. */
};

struct run_fetch_stats {
    uint64_t loads, reads, bytes; /* that landed in staging or slot, whole ones only */
    uint64_t submits;             /* of copies */
    uint64_t busy_ns;             /* spent in reads, over all threads */
    uint64_t wait_ns;             /* the caller waited in begin and finish */
};

struct run_fetch;

/* Starts the workers. dev, files and their array outlive the fetcher. One thread calls everything below; only
 * that one makes Vulkan calls. */
enum vkmoe_status run_fetch_create(struct run_fetch **out, struct gpu_device *dev,
                                   struct cor_file *const *files, uint32_t n_files,
                                   const struct run_fetch_params *p, struct vkmoe_err *err);
void run_fetch_close(struct run_fetch *f); /* drops what is queued, joins the threads; NULL is fine */
/* Bytes of staging that create would make, and that it made. */
uint64_t run_fetch_plan_bytes(const struct gpu_device *dev, const struct run_fetch_params *p);
uint64_t run_fetch_staging_bytes(const struct run_fetch *f);

/* Queues the reads of one load into dst at off (a multiple of 4); bytes behind a part up to the next multiple
 * of 4 become zeros. Returns at once while fewer than n_entries loads are in hand, else first moves finished
 * ones on. Threads are woken
 * only for reads that are expected to take longer than waking them; others are left for finish. No submitted
 * work may read these bytes of dst, and no other load since the last finish writes them.
 *
 * An error of begin, pump or finish is one line that names file, offset and what went wrong, and concerns
 * every load begun since the last finish that succeeded: none of them counts as arrived. All of them are
 * drained: no read and no write to mapped slots is under way. The fetcher can be used again unless the device
 * is lost (all calls then say so). */
enum vkmoe_status run_fetch_begin(struct run_fetch *f, struct gpu_buffer *dst, uint64_t off,
                                  const struct run_fetch_part *parts, uint32_t n_parts, uint32_t tag,
                                  struct vkmoe_err *err);
/* Moves on what has been read so far, without waiting. */
enum vkmoe_status run_fetch_pump(struct run_fetch *f, struct vkmoe_err *err);
/* Waits until all reads are in and all copies submitted, but not for the copies: a gpu_submit made afterwards
 * sees the bytes. Fails as well when the file changed since it was opened. */
enum vkmoe_status run_fetch_finish(struct run_fetch *f, struct vkmoe_err *err);
/* Tag of the load that the last error names; UINT32_MAX: no single one. */
uint32_t run_fetch_bad_tag(const struct run_fetch *f);

const struct run_fetch_stats *run_fetch_stats(const struct run_fetch *f); /* since create */

/* ---- tests ---- */

enum run_fetch_fault {
    RUN_FETCH_NO_FAULT,
    RUN_FETCH_FAIL,  /* the read fails */
    RUN_FETCH_SHORT, /* half of its bytes arrive */
    RUN_FETCH_DROP   /* it is taken from the queue and never made */
};

/* For every fetcher of the process; to be set while none has loads in hand. */
struct run_fetch_hooks {
    uint64_t seed;          /* of the delays */
    uint32_t read_delay_us; /* each read is late by up to this */
    uint32_t copy_delay_us; /* and each submit of copies */
    enum run_fetch_fault fault;
    uint64_t nth; /* read that the fault hits, 1 = the next; only that one */
    bool reverse; /* reads are taken from the end of the queue */
};

void run_fetch_set_hooks(const struct run_fetch_hooks *h); /* copied, read count restarts; NULL: none */

#endif
