#include "run/arena.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "core/alloc.h"

#define ARENA_CHUNK_MAX (1ull << 30)

void run_arena_init(struct run_arena *a, struct gpu_device *dev)
{
    const struct gpu_caps *caps = gpu_device_caps(dev);

    memset(a, 0, sizeof(*a));
    a->dev = dev;
    a->limit = caps->max_alloc < ARENA_CHUNK_MAX ? caps->max_alloc : ARENA_CHUNK_MAX;
}

static uint64_t align_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

enum vkmoe_status run_arena_plan(struct run_arena *a, uint64_t bytes, const char *what,
                                 struct run_region *out, struct vkmoe_err *err)
{
    const struct gpu_caps *caps = gpu_device_caps(a->dev);
    uint64_t align = caps->offset_align < 16 ? 16 : caps->offset_align;
    uint64_t start = 0, most = caps->max_range < a->limit ? caps->max_range : a->limit;

    assert(!a->chunks && bytes > 0);
    if (bytes > most)
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "%s: %" PRIu64 " bytes in one buffer, the device allows %" PRIu64, what, bytes, most);
    if (a->n_chunks)
        start = align_up(a->chunk_bytes[a->n_chunks - 1], align);
    if (!a->n_chunks || start + bytes > a->limit) {
        uint64_t *p = cor_resize(a->chunk_bytes, a->n_chunks + 1, sizeof(*p));

        if (!p)
            return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for the plan", what);
        a->chunk_bytes = p;
        a->n_chunks++;
        start = 0;
    }
    a->chunk_bytes[a->n_chunks - 1] = start + bytes;
    *out = (struct run_region){.chunk = a->n_chunks - 1, .off = start, .bytes = bytes};
    return VKMOE_OK;
}

enum vkmoe_status run_arena_create(struct run_arena *a, const char *name, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    a->chunks = cor_array(a->n_chunks, sizeof(*a->chunks));
    if (!a->chunks)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %u buffers", name, a->n_chunks);
    for (uint32_t i = 0; i < a->n_chunks; i++)
        TRY(gpu_buffer_create(&a->chunks[i], a->dev, a->chunk_bytes[i], GPU_MEM_DEVICE, name, err));
done:
    return st;
}

void run_arena_close(struct run_arena *a)
{
    for (uint32_t i = 0; a->chunks && i < a->n_chunks; i++)
        gpu_buffer_destroy(a->chunks[i]);
    cor_free(a->chunks);
    cor_free(a->chunk_bytes);
    memset(a, 0, sizeof(*a));
}

uint64_t run_arena_bytes(const struct run_arena *a)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < a->n_chunks; i++)
        sum += a->chunk_bytes[i];
    return sum;
}

struct gpu_bind run_arena_bind(const struct run_arena *a, const struct run_region *r)
{
    return (struct gpu_bind){.buf = a->chunks ? a->chunks[r->chunk] : NULL, .off = r->off, .bytes = r->bytes};
}

struct gpu_buffer *run_arena_buffer(const struct run_arena *a, const struct run_region *r)
{
    return a->chunks ? a->chunks[r->chunk] : NULL;
}
