/* Device memory: buffers, mapping, bulk uploads. A few large allocations, one VkBuffer each; users cut them
 * up by offset. */
#ifndef GPU_MEMORY_H
#define GPU_MEMORY_H

#include "gpu/device.h"

enum gpu_mem {
    GPU_MEM_DEVICE, /* device-local; mapped as well when caps.uma */
    GPU_MEM_STEP,   /* host writes, device reads; always mapped */
    GPU_MEM_READ    /* device writes, host reads: cached where there is such memory; always mapped */
};

struct gpu_buffer;

/* Storage + indirect + transfer usage. Bytes are counted against caps.heap_bytes for GPU_MEM_DEVICE: past it
 * the error says what was asked for, what is in use and the limit. bytes > 0, rounded up to 16. Content
 * starts as zeros. */
enum vkmoe_status gpu_buffer_create(struct gpu_buffer **out, struct gpu_device *dev, uint64_t bytes,
                                    enum gpu_mem mem, const char *name, struct vkmoe_err *err);
void gpu_buffer_destroy(struct gpu_buffer *b); /* the device must be idle on it; NULL is fine */
uint64_t gpu_buffer_bytes(const struct gpu_buffer *b);
void *gpu_buffer_map(const struct gpu_buffer *b); /* NULL when the memory is not mapped */
/* No-ops on coherent memory. */
enum vkmoe_status gpu_buffer_flush(struct gpu_buffer *b, uint64_t off, uint64_t bytes, struct vkmoe_err *err);
enum vkmoe_status gpu_buffer_invalidate(struct gpu_buffer *b, uint64_t off, uint64_t bytes,
                                        struct vkmoe_err *err);

#define GPU_UPLOAD_MAX (8u << 20)
/* Bulk upload, so that a file can be read straight to where it goes: begin gives n <= GPU_UPLOAD_MAX bytes to
 * write to (mapped memory of the buffer itself when caps.uma, else staging, double-buffered); end flushes
 * and, with staging, queues the copy. gpu_upload_wait returns when all queued copies have arrived, those of
 * rings too; nothing may read the buffer before. off and n must be multiples of 4. One upload at a time per
 * device; one that was begun and never ended is forgotten by the next begin (a failed read may return between
 * the two). */
enum vkmoe_status gpu_upload_begin(struct gpu_device *dev, struct gpu_buffer *b, uint64_t off, size_t n,
                                   void **dst, struct vkmoe_err *err);
enum vkmoe_status gpu_upload_end(struct gpu_device *dev, struct vkmoe_err *err);
enum vkmoe_status gpu_upload_wait(struct gpu_device *dev, struct vkmoe_err *err);
/* Whole thing from memory, any n that is a multiple of 4; waits. */
enum vkmoe_status gpu_upload(struct gpu_device *dev, struct gpu_buffer *b, uint64_t off, const void *src,
                             uint64_t n, struct vkmoe_err *err);
/* Device to host, any buffer; waits. For tests and rare reads. */
enum vkmoe_status gpu_download(struct gpu_device *dev, struct gpu_buffer *b, uint64_t off, void *dst,
                               uint64_t n, struct vkmoe_err *err);

/* Staging in n equal entries that are filled at leisure and copied on without a wait. On a device with a
 * queue of its own for transfers (caps.transfer_queue) copies run there, beside compute work. One thread. */
struct gpu_ring;

struct gpu_ring_copy {
    uint32_t entry, at; /* bytes into the entry */
    struct gpu_buffer *dst;
    uint64_t off, bytes;
};

enum vkmoe_status gpu_ring_create(struct gpu_ring **out, struct gpu_device *dev, uint32_t n_entries,
                                  uint32_t entry_bytes, struct vkmoe_err *err);
void gpu_ring_destroy(struct gpu_ring *r); /* waits for its copies; NULL is fine */
/* Bytes of memory of such a ring. */
uint64_t gpu_ring_plan_bytes(const struct gpu_device *dev, uint32_t n_entries, uint32_t entry_bytes);
/* entry_bytes of mapped memory, for any thread; written while the entry is not busy. */
void *gpu_ring_map(const struct gpu_ring *r, uint32_t entry);
/* Flushes and copies, in one submit and without a wait. Entries are busy from here on; all copies out of an
 * entry belong in one call. A gpu_submit made afterwards sees the bytes; nothing submitted before may still
 * use what is overwritten. */
enum vkmoe_status gpu_ring_submit(struct gpu_ring *r, const struct gpu_ring_copy *copies, uint32_t n,
                                  struct vkmoe_err *err);
/* wait: returns when the entry is free (bounded). */
enum vkmoe_status gpu_ring_busy(struct gpu_ring *r, uint32_t entry, bool wait, bool *busy,
                                struct vkmoe_err *err);

uint64_t gpu_device_bytes(const struct gpu_device *dev); /* GPU_MEM_DEVICE in use now */
uint64_t gpu_device_peak_bytes(const struct gpu_device *dev);
/* Bytes of the device-local heap that can still be taken: by VK_EXT_memory_budget, asked anew at each call
 * and held against what cannot be (no budget or one past the heap counts as the heap; use is at least our
 * own), else heap minus use; never more than caps.heap_bytes minus use. */
uint64_t gpu_device_free_bytes(const struct gpu_device *dev);
/* Tests: fn tells budget and usage in place of the driver, true or not; NULL: the driver again. */
void gpu_device_set_budget(struct gpu_device *dev, void (*fn)(void *user, uint64_t *budget, uint64_t *usage),
                           void *user);

#endif
