#include "bench/runner.h"

#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/os.h"
#include "gpu/commands.h"

#define GUARD_BYTES  256u
#define ROTATE_BYTES (160u << 20) /* of weights, all copies together */
#define COPIES_MAX   32u
#define ROUND        0.02 /* seconds that the dispatches of a round should take */
#define RUNS_MAX     400u
#define ROUNDS       6u
#define WAIT_NS      60000000000u

enum vkmoe_status bench_runner_open(struct bench_runner *r, struct gpu_device *dev, struct vkmoe_err *err)
{
    memset(r, 0, sizeof(*r));
    r->dev = dev;
    return gpu_cmds_create(&r->cmds, dev, "bench", err);
}

void bench_runner_close(struct bench_runner *r)
{
    gpu_cmds_destroy(r->cmds);
    for (uint32_t i = 0; i < BENCH_BUFS; i++)
        gpu_buffer_destroy(r->bufs[i]);
    memset(r, 0, sizeof(*r));
}

static enum vkmoe_status reserve(struct bench_runner *r, uint32_t i, uint64_t bytes, struct vkmoe_err *err)
{
    enum vkmoe_status st;

    if (r->bytes[i] >= bytes)
        return VKMOE_OK;
    gpu_buffer_destroy(r->bufs[i]);
    r->bufs[i] = NULL;
    r->bytes[i] = 0;
    st = gpu_buffer_create(&r->bufs[i], r->dev, bytes, GPU_MEM_DEVICE, "bench", err);
    if (st == VKMOE_OK)
        r->bytes[i] = bytes;
    return st;
}

static enum vkmoe_status pipeline(struct gpu_pipeline **p, struct bench_runner *r, const struct bench_case *c,
                                  struct vkmoe_err *err)
{
    return gpu_pipeline_get(p, r->dev, c->kernel, c->spec, c->n_spec * sizeof(uint32_t), c->n_segs, err);
}

/* ---- checks
 * ------------------------------------------------------------------------------------------------- */

static uint64_t front_bytes(const struct gpu_device *dev)
{
    const uint64_t align = gpu_device_caps(dev)->offset_align;

    return align > GUARD_BYTES ? align : GUARD_BYTES;
}

/* Content of a buffer with its guards; NULL: no memory. */
static uint32_t *make_image(const struct bench_buf *b, size_t front, size_t total)
{
    uint32_t *image = cor_alloc(total);

    for (size_t i = 0; image && i < total / 4; i++)
        image[i] = BENCH_POISON;
    if (image && b->data)
        memcpy((uint8_t *)image + front, b->data, b->bytes);
    return image;
}

static enum vkmoe_status place_images(struct bench_runner *r, const struct bench_case *c,
                                      struct gpu_bind *binds, struct vkmoe_err *err)
{
    const size_t front = (size_t)front_bytes(r->dev);
    enum vkmoe_status st = VKMOE_OK;
    uint32_t *image = NULL;

    for (uint32_t i = 0; i < c->n_bufs; i++) {
        const size_t total = front + c->bufs[i].bytes + GUARD_BYTES;

        image = make_image(&c->bufs[i], front, total);
        if (!image)
            FAIL(VKMOE_ERR_MEMORY, "kernel %s: no memory for a case", gpu_kernel_info(c->kernel)->name);
        TRY(reserve(r, i, total, err));
        TRY(gpu_upload(r->dev, r->bufs[i], 0, image, total, err));
        /* With the guard behind, reads past the end are seen. */
        binds[i] = (struct gpu_bind){r->bufs[i], front, c->bufs[i].exact ? c->bufs[i].bytes : total - front};
        cor_free(image);
        image = NULL;
    }
done:
    cor_free(image);
    return st;
}

/* A buffer as it is after the run; guards are compared here. */
static enum vkmoe_status fetch(struct bench_runner *r, const struct bench_case *c, uint32_t i, void **after,
                               bool *good, struct bench_miss *miss, struct vkmoe_err *err)
{
    const size_t front = (size_t)front_bytes(r->dev), bytes = c->bufs[i].bytes;
    const size_t total = front + bytes + GUARD_BYTES;
    enum vkmoe_status st = VKMOE_OK;
    uint32_t *image = cor_alloc(total);

    if (!image)
        return cor_fail(err, VKMOE_ERR_MEMORY, "kernel %s: no memory for a case",
                        gpu_kernel_info(c->kernel)->name);
    TRY(gpu_download(r->dev, r->bufs[i], 0, image, total, err));
    for (size_t w = 0; *good && w < total / 4; w++)
        if ((w < front / 4 || w >= (front + bytes) / 4) && image[w] != BENCH_POISON) {
            *good = false;
            miss->buf = i;
            miss->element = SIZE_MAX;
            snprintf(miss->got, sizeof(miss->got), "a write outside the buffer");
            snprintf(miss->expected, sizeof(miss->expected), "none");
        }
    memmove(image, (uint8_t *)image + front, bytes);
    *after = image;
    image = NULL;
done:
    cor_free(image);
    return st;
}

enum vkmoe_status bench_run_check(struct bench_runner *r, const struct bench_case *c, bool *good,
                                  struct bench_miss *miss, struct vkmoe_err *err)
{
    const char *name = gpu_kernel_info(c->kernel)->name;
    struct gpu_bind binds[BENCH_BUFS];
    void *after[BENCH_BUFS] = {NULL};
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_pipeline *p;

    *good = true;
    memset(miss, 0, sizeof(*miss));
    TRY(pipeline(&p, r, c, err));
    TRY(place_images(r, c, binds, err));
    gpu_cmds_begin(r->cmds);
    gpu_cmds_dispatch(r->cmds, p, binds, c->n_bufs, c->push, c->grid[0], c->grid[1], c->grid[2]);
    gpu_cmds_barrier(r->cmds, GPU_BARRIER_COPY);
    TRY(gpu_cmds_end(r->cmds, err));
    TRY(gpu_submit(r->dev, &r->cmds, 1, err));
    TRY(gpu_wait(r->dev, WAIT_NS, name, err));
    for (uint32_t i = 0; i < c->n_bufs; i++)
        TRY(fetch(r, c, i, &after[i], good, miss, err));
    if (*good)
        *good = bench_case_check(c, after, miss);
done:
    for (uint32_t i = 0; i < BENCH_BUFS; i++)
        cor_free(after[i]);
    return st;
}

/* ---- time
 * --------------------------------------------------------------------------------------------------- */

/* Copies of the weights, so many that they pass a cache together and fit a quarter of what is free. */
static uint32_t count_copies(struct gpu_device *dev, const struct bench_case *c)
{
    uint64_t weights = 0, room = gpu_device_free_bytes(dev) / 4;
    uint32_t n;

    for (uint32_t i = 0; i < c->n_bufs; i++)
        weights += c->bufs[i].weights ? c->bufs[i].bytes : 0;
    if (!weights)
        return 1;
    if (room > ROTATE_BYTES)
        room = ROTATE_BYTES;
    n = (uint32_t)(room / weights);
    return n < 1 ? 1 : n > COPIES_MAX ? COPIES_MAX : n;
}

static uint64_t step_of(const struct gpu_device *dev, const struct bench_buf *b)
{
    const uint64_t align = gpu_device_caps(dev)->offset_align;

    return (b->bytes + align - 1) / align * align;
}

static enum vkmoe_status place(struct bench_runner *r, const struct bench_case *c, uint32_t copies,
                               struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < c->n_bufs; i++) {
        const struct bench_buf *b = &c->bufs[i];
        const uint32_t n = b->weights ? copies : 1;

        TRY(reserve(r, i, step_of(r->dev, b) * n, err));
        for (uint32_t j = 0; b->data && j < n; j++)
            TRY(gpu_upload(r->dev, r->bufs[i], j * step_of(r->dev, b), b->data, b->bytes, err));
    }
done:
    return st;
}

static enum vkmoe_status record(struct bench_runner *r, const struct bench_case *c, struct gpu_pipeline *p,
                                uint32_t runs, uint32_t copies, struct vkmoe_err *err)
{
    struct gpu_bind binds[BENCH_BUFS];

    gpu_cmds_begin(r->cmds);
    for (uint32_t k = 0; k < runs; k++) {
        for (uint32_t i = 0; i < c->n_bufs; i++)
            binds[i] = (struct gpu_bind){r->bufs[i],
                                         c->bufs[i].weights ? k % copies * step_of(r->dev, &c->bufs[i]) : 0,
                                         c->bufs[i].bytes};
        gpu_cmds_dispatch(r->cmds, p, binds, c->n_bufs, c->push, c->grid[0], c->grid[1], c->grid[2]);
        gpu_cmds_barrier(r->cmds, GPU_BARRIER_COMPUTE);
    }
    return gpu_cmds_end(r->cmds, err);
}

enum vkmoe_status bench_run_speed(struct bench_runner *r, const struct bench_case *c, double budget,
                                  struct bench_speed *speed, struct vkmoe_err *err)
{
    const char *name = gpu_kernel_info(c->kernel)->name;
    const uint32_t copies = count_copies(r->dev, c);
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_pipeline *p;
    double once, s;
    uint64_t start;
    uint32_t runs;

    memset(speed, 0, sizeof(*speed));
    TRY(pipeline(&p, r, c, err));
    TRY(place(r, c, copies, err));
    TRY(record(r, c, p, 1, copies, err));
    TRY(bench_time(&once, r->dev, r->cmds, 1, name, err)); /* some drivers compile here */
    TRY(bench_time(&once, r->dev, r->cmds, 1, name, err));
    if (once > budget) {
        *speed = (struct bench_speed){once, 1};
        goto done;
    }
    runs = once > ROUND ? 1 : (uint32_t)(ROUND / once) + 1;
    runs = runs > RUNS_MAX ? RUNS_MAX : runs;
    TRY(record(r, c, p, runs, copies, err));
    start = cor_now_ns();
    speed->runs = runs;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        if (i && (double)(cor_now_ns() - start) / 1e9 > budget)
            break;
        TRY(bench_time(&s, r->dev, r->cmds, 1, name, err));
        if (!i || s / runs < speed->seconds)
            speed->seconds = s / runs;
    }
done:
    return st;
}
