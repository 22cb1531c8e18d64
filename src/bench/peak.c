#include "bench/peak.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/bits.h"
#include "core/os.h"
#include "gpu/commands.h"

#define BUFFER_MAX  (256u << 20) /* past the last cache of any device known */
#define BUFFER_UNIT (1u << 20)
#define TRIPS       16u /* units a lane reads */
#define ROUNDS      5
#define SUBMITS     400
#define TRANSFER    (64u << 20)
#define FMA_TRIPS   1024u
#define FMA_OPS     64u  /* of a lane and trip: eight vectors of four, product and sum */
#define FMA_GROUPS  256u /* whose results are kept */
#define FMA_SECONDS 0.03 /* that a round should take, well below what drivers kill */
#define FMA_BUDGET  1.0  /* seconds for one type */

const char *bench_rate_name(enum bench_rate r)
{
    static const char *const names[BENCH_RATES] = {"f32", "f16", "i32", "dot8"};

    return names[r];
}

/* Bytes of a buffer that fits this device n times, with room to spare. */
static uint64_t buffer_bytes(const struct gpu_device *dev, uint32_t n)
{
    const struct gpu_caps *caps = gpu_device_caps(dev);
    uint64_t bytes = gpu_device_free_bytes(dev) / (2 * n);

    if (bytes > caps->max_range)
        bytes = caps->max_range;
    if (bytes > caps->max_alloc)
        bytes = caps->max_alloc;
    if (bytes > BUFFER_MAX)
        bytes = BUFFER_MAX;
    return bytes / BUFFER_UNIT * BUFFER_UNIT;
}

static enum vkmoe_status make_buffer(struct gpu_buffer **b, struct gpu_device *dev, uint64_t bytes,
                                     struct vkmoe_err *err)
{
    if (!bytes)
        return cor_fail(err, VKMOE_ERR_LIMIT, "%s: less than %u bytes of memory for measurements",
                        gpu_device_info(dev)->name, BUFFER_UNIT);
    return gpu_buffer_create(b, dev, bytes, GPU_MEM_DEVICE, "peak", err);
}

/* n groups as a grid of two dimensions; the last row may hold a few too many. */
static void split_grid(uint32_t n, uint32_t *x, uint32_t *y)
{
    *x = n < 32768 ? n : 32768;
    *y = (n + *x - 1) / *x;
}

/* ---- reading
 * ------------------------------------------------------------------------------------------------ */

/* Bytes per second of one way to read the first part of the buffer that its groups divide. */
static enum vkmoe_status read_once(double *rate, struct gpu_device *dev, struct gpu_cmds *c,
                                   struct gpu_buffer *in, struct gpu_buffer *out, uint32_t wg, bool vec,
                                   struct vkmoe_err *err)
{
    const struct spec_peak_read spec = {.wg = wg, .trips = TRIPS, .vec = vec};
    const struct gpu_bind binds[2] = {{in, 0, 0}, {out, 0, 0}};
    const uint32_t group_bytes = wg * TRIPS * (vec ? 16 : 4);
    uint32_t n = (uint32_t)(gpu_buffer_bytes(in) / group_bytes), x = n < 32768 ? n : 32768, y = n / x;
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_pipeline *pipe;
    double seconds;

    TRY(gpu_pipeline_get(&pipe, dev, GPU_K_peak_read, &spec, sizeof(spec), 1, err));
    gpu_cmds_begin(c);
    gpu_cmds_dispatch(c, pipe, binds, 2, NULL, x, y, 1);
    TRY(gpu_cmds_end(c, err));
    TRY(bench_time(&seconds, dev, c, ROUNDS, "peak_read", err));
    *rate = (double)x * y * group_bytes / seconds;
done:
    return st;
}

/* words, vectors: the best over workgroups. */
static enum vkmoe_status measure_read(struct gpu_device *dev, uint64_t bytes, double *words, double *vectors,
                                      struct vkmoe_err *err)
{
    static const uint32_t groups[] = {32, 128, 256};
    const uint32_t max_wg = gpu_device_caps(dev)->max_wg;
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_buffer *in = NULL, *out = NULL;
    struct gpu_cmds *c = NULL;

    *words = *vectors = 0;
    TRY(make_buffer(&in, dev, bytes, err));
    TRY(make_buffer(&out, dev, bytes / TRIPS, err)); /* a word of sums for TRIPS words read */
    TRY(gpu_cmds_create(&c, dev, "peak_read", err));
    for (uint32_t i = 0; i < COR_COUNT(groups) && groups[i] <= max_wg; i++)
        for (int vec = 0; vec < 2; vec++) {
            double *best = vec ? vectors : words, rate;

            TRY(read_once(&rate, dev, c, in, out, groups[i], vec, err));
            if (rate > *best)
                *best = rate;
        }
done:
    gpu_cmds_destroy(c);
    gpu_buffer_destroy(in);
    gpu_buffer_destroy(out);
    return st;
}

enum vkmoe_status bench_peak_read_on(double *bytes_per_second, struct bench_device *d, struct vkmoe_err *err)
{
    double words = 0, vectors = 0;
    enum vkmoe_status st = measure_read(d->dev, buffer_bytes(d->dev, 2), &words, &vectors, err);

    *bytes_per_second = words > vectors ? words : vectors;
    return st;
}

enum vkmoe_status bench_peak_read(double *bytes_per_second, const struct bench_device_params *p,
                                  struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct bench_device d;

    *bytes_per_second = 0;
    TRY(bench_device_open(&d, p, err));
    st = bench_peak_read_on(bytes_per_second, &d, err);
    bench_device_close(&d);
done:
    return st;
}

/* ---- copies
 * ------------------------------------------------------------------------------------------------- */

static enum vkmoe_status measure_copy(struct gpu_device *dev, uint64_t bytes, double *rate,
                                      struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_buffer *a = NULL, *b = NULL;
    struct gpu_cmds *c = NULL;
    double seconds;

    TRY(make_buffer(&a, dev, bytes, err));
    TRY(make_buffer(&b, dev, bytes, err));
    TRY(gpu_cmds_create(&c, dev, "copy", err));
    gpu_cmds_begin(c);
    gpu_cmds_copy(c, a, 0, b, 0, bytes);
    TRY(gpu_cmds_end(c, err));
    TRY(bench_time(&seconds, dev, c, ROUNDS, "copy", err));
    *rate = (double)bytes / seconds;
done:
    gpu_cmds_destroy(c);
    gpu_buffer_destroy(a);
    gpu_buffer_destroy(b);
    return st;
}

static enum vkmoe_status measure_transfers(struct gpu_device *dev, uint64_t bytes, struct bench_peak *p,
                                           struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_buffer *b = NULL;
    double best[2] = {0, 0};
    uint8_t *host = NULL;

    bytes = bytes < TRANSFER ? bytes : TRANSFER;
    TRY(make_buffer(&b, dev, bytes, err));
    host = cor_zalloc((size_t)bytes);
    if (!host)
        FAIL(VKMOE_ERR_MEMORY, "no memory for a transfer of %llu bytes", (unsigned long long)bytes);
    memset(host, 1, (size_t)bytes);
    for (int i = 0; i < 2 * ROUNDS; i++) {
        const uint64_t start = cor_now_ns();
        double s;

        TRY(i % 2 ? gpu_download(dev, b, 0, host, bytes, err) : gpu_upload(dev, b, 0, host, bytes, err));
        s = (double)(cor_now_ns() - start) / 1e9;
        if (best[i % 2] == 0 || s < best[i % 2])
            best[i % 2] = s;
    }
    p->to_device = (double)bytes / best[0];
    p->to_host = (double)bytes / best[1];
done:
    cor_free(host);
    gpu_buffer_destroy(b);
    return st;
}

/* ---- arithmetic
 * --------------------------------------------------------------------------------------------- */

/* a, b and the start values: near 1, so that nothing overflows in 2^-9 steps and nothing is subnormal. */
static enum vkmoe_status fma_input(struct gpu_buffer **in, struct gpu_device *dev, bool whole, uint32_t wg,
                                   struct vkmoe_err *err)
{
    uint32_t words[2 + 256];
    enum vkmoe_status st = VKMOE_OK;

    words[0] = whole ? 3 : cor_float_bits(0.5f);
    words[1] = whole ? 1 : cor_float_bits(0.5f);
    for (uint32_t i = 0; i < wg; i++)
        words[2 + i] = whole ? i : cor_float_bits(1.0f + (float)i / 512);
    TRY(gpu_buffer_create(in, dev, sizeof(words), GPU_MEM_DEVICE, "peak_fma", err));
    TRY(gpu_upload(dev, *in, 0, words, (2 + (uint64_t)wg) * 4, err));
done:
    return st;
}

/* Groups grow until a round takes long enough to be told from the cost of a submit. */
static enum vkmoe_status fma_rate(double *best, struct gpu_device *dev, struct gpu_cmds *c,
                                  struct gpu_pipeline *pipe, const struct gpu_bind binds[2], uint32_t wg,
                                  struct vkmoe_err *err)
{
    const uint64_t start = cor_now_ns();
    const char *name = gpu_kernel_info(GPU_K_peak_fma)->name;
    enum vkmoe_status st = VKMOE_OK;
    uint32_t groups = 16, x, y;
    int rounds = 0;

    while (rounds < ROUNDS && (double)(cor_now_ns() - start) / 1e9 < FMA_BUDGET) {
        double s, rate;

        split_grid(groups, &x, &y);
        gpu_cmds_begin(c);
        gpu_cmds_dispatch(c, pipe, binds, 2, NULL, x, y, 1);
        TRY(gpu_cmds_end(c, err));
        TRY(bench_time(&s, dev, c, 1, name, err));
        rate = (double)x * y * wg * FMA_TRIPS * FMA_OPS / s;
        if (rate > *best)
            *best = rate;
        if (s > FMA_SECONDS / 2 || groups > 1u << 24) {
            rounds++;
            continue;
        }
        s = FMA_SECONDS / (s > FMA_SECONDS / 8 ? s : FMA_SECONDS / 8);
        groups = (uint32_t)(groups * s) + 1;
    }
done:
    return st;
}

static enum vkmoe_status measure_fma(struct gpu_device *dev, enum gpu_kernel k, double *best,
                                     struct vkmoe_err *err)
{
    const uint32_t wg = 128;
    struct spec_peak_fma spec = {.wg = wg, .trips = FMA_TRIPS, .groups = FMA_GROUPS};
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_buffer *in = NULL, *out = NULL;
    struct gpu_pipeline *pipe;
    struct gpu_cmds *c = NULL;

    *best = 0;
    TRY(fma_input(&in, dev, k == GPU_K_peak_fma_int, wg, err));
    TRY(gpu_buffer_create(&out, dev, (uint64_t)FMA_GROUPS * wg * 4, GPU_MEM_DEVICE, "peak_fma", err));
    TRY(gpu_cmds_create(&c, dev, "peak_fma", err));
    for (spec.fused = 0; spec.fused < (k == GPU_K_peak_fma_int ? 1u : 2u); spec.fused++) {
        const struct gpu_bind binds[2] = {{in, 0, 0}, {out, 0, 0}};

        TRY(gpu_pipeline_get(&pipe, dev, k, &spec, sizeof(spec), 1, err));
        TRY(fma_rate(best, dev, c, pipe, binds, wg, err));
    }
done:
    gpu_cmds_destroy(c);
    gpu_buffer_destroy(in);
    gpu_buffer_destroy(out);
    return st;
}

static enum vkmoe_status measure_rates(struct gpu_device *dev, struct bench_peak *p, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(measure_fma(dev, GPU_K_peak_fma, &p->ops[BENCH_RATE_F32], err));
    TRY(measure_fma(dev, GPU_K_peak_fma_int, &p->ops[BENCH_RATE_I32], err));
    if (gpu_kernel_usable(dev, GPU_K_peak_fma_half))
        TRY(measure_fma(dev, GPU_K_peak_fma_half, &p->ops[BENCH_RATE_F16], err));
    else
        p->why[BENCH_RATE_F16] = "the device has no fp16 arithmetic";
    p->why[BENCH_RATE_DOT8] = gpu_device_caps(dev)->dot8 ? "this build has no kernel for it"
                                                         : "the device has no packed integer dot product";
done:
    return st;
}

/* ---- submits
 * ------------------------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

static enum vkmoe_status measure_submits(struct gpu_device *dev, struct bench_peak *p, struct vkmoe_err *err)
{
    const struct spec_peak_read spec = {.wg = 32, .trips = 1};
    double seconds[SUBMITS];
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_buffer *b = NULL, *out = NULL;
    struct gpu_pipeline *pipe;
    struct gpu_cmds *c = NULL;

    TRY(gpu_buffer_create(&b, dev, 128, GPU_MEM_DEVICE, "peak", err));
    TRY(gpu_buffer_create(&out, dev, 128, GPU_MEM_DEVICE, "peak", err));
    TRY(gpu_cmds_create(&c, dev, "submit", err));
    TRY(gpu_pipeline_get(&pipe, dev, GPU_K_peak_read, &spec, sizeof(spec), 1, err));
    gpu_cmds_begin(c);
    gpu_cmds_dispatch(c, pipe, (const struct gpu_bind[2]){{b, 0, 0}, {out, 0, 0}}, 2, NULL, 1, 1, 1);
    gpu_cmds_barrier(c, GPU_BARRIER_HOST);
    TRY(gpu_cmds_end(c, err));
    for (uint32_t i = 0; i < SUBMITS + 20; i++) /* the first ones warm up */
        TRY(bench_time(&seconds[i % SUBMITS], dev, c, 1, "an empty submit", err));
    qsort(seconds, SUBMITS, sizeof(seconds[0]), compare);
    p->submit_median = seconds[SUBMITS / 2];
    p->submit_99 = seconds[SUBMITS * 99 / 100];
done:
    gpu_cmds_destroy(c);
    gpu_buffer_destroy(b);
    gpu_buffer_destroy(out);
    return st;
}

enum vkmoe_status bench_peak(struct bench_peak *peak, struct bench_device *d, struct vkmoe_err *err)
{
    const uint64_t bytes = buffer_bytes(d->dev, 2);
    enum vkmoe_status st = VKMOE_OK;
    struct bench_peak p;

    memset(&p, 0, sizeof(p));
    p.buffer_bytes = bytes;
    TRY(measure_submits(d->dev, &p, err));
    TRY(measure_read(d->dev, bytes, &p.read_words, &p.read_vectors, err));
    p.read = p.read_words > p.read_vectors ? p.read_words : p.read_vectors;
    TRY(measure_copy(d->dev, bytes, &p.copy, err));
    TRY(measure_transfers(d->dev, bytes, &p, err));
    TRY(measure_rates(d->dev, &p, err));
    *peak = p;
done:
    return st;
}
