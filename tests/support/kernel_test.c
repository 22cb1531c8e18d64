#include "support/kernel_test.h"

#include <math.h>
#include <stdio.h>

#include "core/bits.h"
#include "run/variants.h"
#include "support/device.h"

#define GUARD_WORDS 64
#define MAX_BUFS    24

/* Which program covers a kernel: a kernel without a line here does not compile. */
#define KT_PROGRAM_publish                    KT_STEP
#define KT_PROGRAM_embed                      KT_DENSE
#define KT_PROGRAM_rmsnorm                    KT_DENSE
#define KT_PROGRAM_rmsnorm_sg                 KT_DENSE
#define KT_PROGRAM_matvec                     KT_DENSE
#define KT_PROGRAM_matvec_sg                  KT_DENSE
#define KT_PROGRAM_matvec_ln                  KT_DENSE
#define KT_PROGRAM_matvec_tx                  KT_DENSE
#define KT_PROGRAM_matvec_norm                KT_DENSE
#define KT_PROGRAM_matvec_norm_sg             KT_DENSE
#define KT_PROGRAM_matvec_norm_ln             KT_DENSE
#define KT_PROGRAM_matvec_norm_tx             KT_DENSE
#define KT_PROGRAM_matmul                     KT_DENSE
#define KT_PROGRAM_matmul_ln                  KT_DENSE
#define KT_PROGRAM_rope_kv                    KT_ATTN
#define KT_PROGRAM_attn_one                   KT_ATTN
#define KT_PROGRAM_attn_one_sg                KT_ATTN
#define KT_PROGRAM_attn_many                  KT_ATTN
#define KT_PROGRAM_attn_many_ln               KT_ATTN
#define KT_PROGRAM_router                     KT_STEP
#define KT_PROGRAM_router_one                 KT_STEP
#define KT_PROGRAM_router_one_sg              KT_STEP
#define KT_PROGRAM_router_one_ln              KT_STEP
#define KT_PROGRAM_group                      KT_STEP
#define KT_PROGRAM_expert_gate_up             KT_MOE
#define KT_PROGRAM_expert_gate_up_sg          KT_MOE
#define KT_PROGRAM_expert_gate_up_arr         KT_MOE
#define KT_PROGRAM_expert_gate_up_sg_arr      KT_MOE
#define KT_PROGRAM_expert_gate_up_ln          KT_MOE
#define KT_PROGRAM_expert_gate_up_ln_arr      KT_MOE
#define KT_PROGRAM_expert_down                KT_MOE
#define KT_PROGRAM_expert_down_sg             KT_MOE
#define KT_PROGRAM_expert_down_arr            KT_MOE
#define KT_PROGRAM_expert_down_sg_arr         KT_MOE
#define KT_PROGRAM_expert_down_ln             KT_MOE
#define KT_PROGRAM_expert_down_ln_arr         KT_MOE
#define KT_PROGRAM_expert_down_sum            KT_MOE
#define KT_PROGRAM_expert_down_sum_sg         KT_MOE
#define KT_PROGRAM_expert_down_sum_ln         KT_MOE
#define KT_PROGRAM_expert_gate_up_tile        KT_MOE
#define KT_PROGRAM_expert_gate_up_tile_arr    KT_MOE
#define KT_PROGRAM_expert_gate_up_tile_ln     KT_MOE
#define KT_PROGRAM_expert_gate_up_tile_ln_arr KT_MOE
#define KT_PROGRAM_expert_down_tile           KT_MOE
#define KT_PROGRAM_expert_down_tile_arr       KT_MOE
#define KT_PROGRAM_expert_down_tile_ln        KT_MOE
#define KT_PROGRAM_expert_down_tile_ln_arr    KT_MOE
#define KT_PROGRAM_swiglu                     KT_DENSE
#define KT_PROGRAM_combine                    KT_MOE
#define KT_PROGRAM_copy_rows                  KT_STEP
#define KT_PROGRAM_expert_sums                KT_MOE
#define KT_PROGRAM_topk                       KT_DENSE
#define KT_PROGRAM_slot_tags                  KT_MOE
#define KT_PROGRAM_slot_tags_arr              KT_MOE
#define KT_PROGRAM_peak_read                  KT_BENCH
#define KT_PROGRAM_peak_fma                   KT_BENCH
#define KT_PROGRAM_peak_fma_half              KT_BENCH
#define KT_PROGRAM_peak_fma_int               KT_BENCH
#define KT_PROGRAM_matvec_few                 KT_DENSE
#define KT_PROGRAM_matvec_few_sg              KT_DENSE
#define KT_PROGRAM_expert_gate_up_few         KT_MOE
#define KT_PROGRAM_expert_gate_up_few_sg      KT_MOE
#define KT_PROGRAM_expert_gate_up_few_arr     KT_MOE
#define KT_PROGRAM_expert_gate_up_few_sg_arr  KT_MOE
#define KT_PROGRAM_expert_down_few            KT_MOE
#define KT_PROGRAM_expert_down_few_sg         KT_MOE
#define KT_PROGRAM_expert_down_few_arr        KT_MOE
#define KT_PROGRAM_expert_down_few_sg_arr     KT_MOE
#define KT_PROGRAM_quant_x                    KT_DOT
#define KT_PROGRAM_shared_gate                KT_DENSE
#define KT_PROGRAM_scale_add                  KT_DENSE
#define KT_PROGRAM_qk_norm                    KT_ATTN
#define KT_PROGRAM_matvec_dot                 KT_DOT
#define KT_PROGRAM_matvec_dot_sg              KT_DOT
#define KT_PROGRAM_matvec_dot_hw              KT_DOT
#define KT_PROGRAM_expert_gate_up_dot         KT_DOT
#define KT_PROGRAM_expert_gate_up_dot_sg      KT_DOT
#define KT_PROGRAM_expert_gate_up_dot_arr     KT_DOT
#define KT_PROGRAM_expert_gate_up_dot_sg_arr  KT_DOT
#define KT_PROGRAM_expert_gate_up_dot_hw      KT_DOT
#define KT_PROGRAM_expert_down_dot            KT_DOT
#define KT_PROGRAM_expert_down_dot_sg         KT_DOT
#define KT_PROGRAM_expert_down_dot_arr        KT_DOT
#define KT_PROGRAM_expert_down_dot_sg_arr     KT_DOT
#define KT_PROGRAM_expert_down_dot_hw         KT_DOT

static const enum kt_program program_of[GPU_KERNEL_COUNT] = {
#define KT_X(name, push, n_buffers, segs, formats, needs) [GPU_K_##name] = KT_PROGRAM_##name,
    GPU_KERNEL_LIST(KT_X)
#undef KT_X
};

static struct gpu_device *dev;
static struct gpu_cmds *cmds;
static struct {
    struct gpu_buffer *buf;
    size_t bytes;
} slots[MAX_BUFS];
static unsigned runs[GPU_KERNEL_COUNT][2]; /* [1]: of module NAME_k */
static bool skipped[GPU_KERNEL_COUNT];
static uint64_t rng;
static bool robust_device, slow_device;

static void log_line(void *user, enum vkmoe_log_level level, const char *line)
{
    (void)user;
    if (level >= VKMOE_LOG_WARN)
        print_error("%s\n", line);
}

static void open_device(struct gpu_instance *inst, bool robust)
{
    const struct gpu_device_params params = {.robust = robust, .skip_barrier = -1};
    struct vkmoe_err err;

    robust_device = robust;
    slow_device = false;
    test_ok(gpu_device_open(&dev, inst, 0, &params, &err), &err);
    test_ok(gpu_cmds_create(&cmds, dev, "test", &err), &err);
    slow_device = device_slow_driver(gpu_device_info(dev));
    print_message("device: %s, robustBufferAccess %s\n", gpu_device_info(dev)->name, robust ? "on" : "off");
}

static void close_device(void)
{
    gpu_cmds_destroy(cmds);
    for (uint32_t i = 0; i < MAX_BUFS; i++)
        gpu_buffer_destroy(slots[i].buf);
    memset(slots, 0, sizeof(slots));
    gpu_device_close(dev);
    cmds = NULL;
    dev = NULL;
}

static int uncovered(enum kt_program program)
{
    int n = 0;

    for (uint32_t k = 0; k < GPU_KERNEL_COUNT; k++)
        for (int more = 0; more < (gpu_kernel_info(k)->formats && !slow_device ? 2 : 1); more++)
            if (program_of[k] == program && !runs[k][more] && !skipped[k]) {
                print_error("%s%s: no test case ran this kernel\n", gpu_kernel_info(k)->name,
                            more ? "_k" : "");
                n++;
            }
    return n;
}

int kt_main(enum kt_program program, const struct CMUnitTest *tests, size_t n)
{
    static const char *names[2] = {"plain", "robust"};
    const struct gpu_instance_params params = {.cache_dir = NULL};
    struct gpu_instance *inst;
    struct vkmoe_err err;
    int failed = 0;

    cor_log_sink(log_line, NULL);
    if (gpu_instance_open(&inst, &params, &err) != VKMOE_OK) {
        print_error("%s\n", err.message);
        return 1;
    }
    for (int robust = 0; robust < 2; robust++) {
        rng = test_seed();
        open_device(inst, robust);
        failed += _cmocka_run_group_tests(names[robust], tests, n, NULL, NULL);
        close_device();
    }
    gpu_instance_close(inst);
    failed += uncovered(program);
    return failed != 0;
}

bool kt_usable(enum gpu_kernel k)
{
    if (gpu_kernel_usable(dev, k))
        return true;
    if (!skipped[k])
        print_message("skipped: %s: the device lacks what it needs (needs %u)\n", gpu_kernel_info(k)->name,
                      (unsigned)gpu_kernel_info(k)->needs);
    skipped[k] = true;
    return false;
}

struct kt_cut kt_cut(enum gpu_kernel k, uint32_t wg, uint32_t rows)
{
    const char *name = gpu_kernel_info(k)->name;
    uint32_t subgroup = gpu_device_caps(dev)->subgroup_size;

    if (strstr(name, "_tx"))
        return (struct kt_cut){subgroup, RUN_TEXEL_ROWS};
    if (strstr(name, "_ln"))
        return (struct kt_cut){subgroup, (strstr(name, "tile") || strstr(name, "matmul") ? 8 : 4) * subgroup};
    return (struct kt_cut){wg, strstr(name, "_few") ? 4 : rows};
}

bool kt_slow(void)
{
    return slow_device;
}

bool kt_wanted(uint32_t i)
{
    return !robust_device || i % 4 == 1;
}

static size_t front_bytes(void)
{
    size_t align = gpu_device_caps(dev)->offset_align;

    return align > 256 ? align : 256;
}

/* Guards and content of a buffer before a run. */
static uint32_t *make_image(const struct kt_buf *b, size_t front, size_t total)
{
    uint32_t *image = cor_alloc(total);

    assert_non_null(image);
    assert_true(b->bytes && b->bytes % 4 == 0);
    for (size_t i = 0; i < total / 4; i++)
        image[i] = KT_POISON;
    if (b->use != KT_OUT)
        memcpy((uint8_t *)image + front, b->data, b->bytes);
    return image;
}

static void check_image(const char *kernel, uint32_t binding, const struct kt_buf *b, const uint32_t *before,
                        const uint32_t *after, size_t front, size_t total)
{
    for (size_t i = 0; i < total / 4; i++) {
        bool inside = i * 4 >= front && i * 4 < front + b->bytes;

        if (before[i] != after[i] && (!inside || b->use == KT_IN))
            fail_msg("%s: binding %u, word %ld of %zu: 0x%08x became 0x%08x", kernel, binding,
                     (long)i - (long)(front / 4), b->bytes / 4, before[i], after[i]);
    }
}

void kt_run(enum gpu_kernel k, const void *spec, size_t spec_bytes, uint32_t n_segs, const void *push,
            struct kt_buf *bufs, uint32_t n_bufs, uint32_t x, uint32_t y, uint32_t z)
{
    const struct push_none none = {0};
    struct gpu_bind binds[MAX_BUFS];
    uint32_t *images[MAX_BUFS];
    struct gpu_pipeline *pipe;
    struct vkmoe_err err;
    size_t front = front_bytes();

    assert_true(n_bufs <= MAX_BUFS);
    for (uint32_t i = 0; i < n_bufs; i++) {
        size_t total = front + bufs[i].bytes + GUARD_WORDS * 4;

        images[i] = make_image(&bufs[i], front, total);
        if (slots[i].bytes < total) {
            gpu_buffer_destroy(slots[i].buf);
            slots[i].bytes = total * 2;
            test_ok(gpu_buffer_create(&slots[i].buf, dev, slots[i].bytes, GPU_MEM_DEVICE, "test", &err),
                    &err);
        }
        test_ok(gpu_upload(dev, slots[i].buf, 0, images[i], total, &err), &err);
        binds[i] = (struct gpu_bind){slots[i].buf, front, bufs[i].exact ? bufs[i].bytes : total - front};
    }
    test_ok(gpu_pipeline_get(&pipe, dev, k, spec, spec_bytes, n_segs, &err), &err);
    gpu_cmds_begin(cmds);
    gpu_cmds_dispatch(cmds, pipe, binds, n_bufs, push ? push : &none, x, y, z);
    gpu_cmds_barrier(cmds, GPU_BARRIER_COPY);
    test_ok(gpu_cmds_end(cmds, &err), &err);
    test_ok(gpu_submit(dev, &cmds, 1, &err), &err);
    test_ok(gpu_wait(dev, 60000000000u, gpu_kernel_info(k)->name, &err), &err);
    runs[k][gpu_kernel_more(k, spec, spec_bytes / sizeof(uint32_t))]++;
    for (uint32_t i = 0; i < n_bufs; i++) {
        size_t total = front + bufs[i].bytes + GUARD_WORDS * 4;
        uint32_t *after = cor_alloc(total);

        assert_non_null(after);
        test_ok(gpu_download(dev, slots[i].buf, 0, after, total, &err), &err);
        check_image(gpu_kernel_info(k)->name, i, &bufs[i], images[i], after, front, total);
        if (bufs[i].use != KT_IN)
            memcpy(bufs[i].data, (uint8_t *)after + front, bufs[i].bytes);
        cor_free(after);
        cor_free(images[i]);
    }
}

void kt_close(const char *what, const float *got, const double *want, size_t n, double nmse, double largest)
{
    double err = 0, power = 0, worst = 0;
    size_t worst_at = 0;

    for (size_t i = 0; i < n; i++) {
        double d = fabs(got[i] - want[i]);

        if (isnan(want[i]) != isnan((double)got[i]) || isinf(want[i]) != isinf((double)got[i]))
            fail_msg("%s: element %zu of %zu is %g, expected %g", what, i, n, (double)got[i], want[i]);
        if (isnan(want[i]) || isinf(want[i]))
            continue;
        if (d > worst) {
            worst = d;
            worst_at = i;
        }
        err += d * d;
        power += want[i] * want[i];
    }
    if (err > nmse * power || worst > largest * sqrt(power / (double)n))
        fail_msg("%s: error %.3g (limit %.3g), largest %.3g at element %zu of %zu: %.9g, expected %.9g", what,
                 err / power, nmse, worst, worst_at, n, (double)got[worst_at], want[worst_at]);
}

float kt_uniform(float lo, float hi)
{
    return lo + (hi - lo) * (float)test_rand_unit(&rng);
}

uint32_t kt_below(uint32_t n)
{
    return (uint32_t)(test_rand(&rng) % n);
}

uint32_t kt_bits(float f)
{
    return cor_float_bits(f);
}

float kt_float(uint32_t bits)
{
    return cor_float_from_bits(bits);
}

float *kt_floats(size_t n)
{
    float *f = cor_array(n, sizeof(*f));

    assert_non_null(f);
    for (size_t i = 0; i < n; i++)
        f[i] = kt_uniform(-1, 1);
    return f;
}

uint32_t *kt_words(size_t n)
{
    uint32_t *w = cor_array(n, sizeof(*w));

    assert_non_null(w);
    return w;
}

void kt_matrix_make(struct kt_matrix *m, enum mdl_type type, uint32_t rows, uint32_t cols, uint32_t off)
{
    const uint32_t poison = KT_POISON;

    m->off = off;
    m->row_bytes = (uint32_t)mdl_row_bytes(type, cols);
    m->n_bytes = (off + (size_t)rows * m->row_bytes + 3) / 4 * 4;
    m->bytes = cor_alloc(m->n_bytes);
    m->values = kt_floats((size_t)rows * cols);
    assert_non_null(m->bytes);
    for (size_t i = 0; i < m->n_bytes; i += 4)
        memcpy(m->bytes + i, &poison, 4);
    for (uint32_t r = 0; r < rows; r++) {
        float *v = m->values + (size_t)r * cols;
        uint8_t *at = m->bytes + off + (size_t)r * m->row_bytes;

        assert_true(mdl_quant_row(type, v, at, cols));
        mdl_dequant_row(type, at, v, cols);
    }
}

void kt_matrix_free(struct kt_matrix *m)
{
    cor_free(m->bytes);
    cor_free(m->values);
    memset(m, 0, sizeof(*m));
}

double kt_matrix_dot(const struct kt_matrix *m, uint32_t cols, uint32_t r, const float *x)
{
    const float *w = m->values + (size_t)r * cols;
    double sum = 0;

    for (uint32_t i = 0; i < cols; i++)
        sum += (double)w[i] * x[i];
    return sum;
}

uint32_t *kt_state(uint32_t n_tokens, uint32_t pos, uint32_t row0, uint32_t n_rows)
{
    uint32_t *s = kt_words(STEP_TOKENS + n_tokens);

    s[STEP_N_TOKENS] = n_tokens;
    s[STEP_POS] = pos;
    s[STEP_ROW0] = row0;
    s[STEP_N_ROWS] = n_rows;
    return s;
}

void kt_choose(uint32_t *sel, uint32_t n_tokens, uint32_t n_experts, uint32_t k, bool hole)
{
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t j = 0; j < k; j++) {
            uint32_t *s = sel + ((size_t)t * k + j) * 2;
            bool again = true;

            while (again) {
                s[0] = kt_below(n_experts);
                again = false;
                for (uint32_t i = 0; i < j; i++)
                    again |= sel[((size_t)t * k + i) * 2] == s[0];
            }
            s[1] = kt_bits(kt_uniform(0, 1));
            if (hole && j == k - 1 && t % 3 == 0) {
                s[0] = NONE;
                s[1] = 0;
            }
        }
}
