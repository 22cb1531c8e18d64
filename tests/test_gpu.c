/* The device layer: choice, clamps, memory, transfers, commands, barriers, faults. Runs on the driver that
 * VK_DRIVER_FILES names; everything but the instance loop runs under the validation layer, which must stay
 * silent. */
#include "support/test.h"

#include <cjson/cJSON.h>
#include <stdio.h>

#include "core/log.h"
#include "gpu/commands.h"
#include "support/device.h"

#define SECOND 1000000000u

static struct gpu_instance *inst;
static long live_before; /* blocks, before inst */
static uint32_t picked;
static bool expect_messages; /* the log is quiet while a test provokes the layer */
static char last_log[512];

static void on_log(void *user, enum vkmoe_log_level level, const char *line)
{
    (void)user;
    snprintf(last_log, sizeof(last_log), "%s", line);
    if (level >= VKMOE_LOG_WARN && !expect_messages)
        print_message("[log %d] %s\n", level, line);
}

static int open_instance(void **state)
{
    const struct gpu_instance_params p = {.validation = true};
    struct vkmoe_err err = {0};

    (void)state;
    cor_log_sink(on_log, NULL);
    live_before = cor_alloc_live();
    test_ok(gpu_instance_open(&inst, &p, &err), &err);
    test_ok(gpu_instance_choose(inst, NULL, &picked, &err), &err);
    return 0;
}

static int close_instance(void **state)
{
    (void)state;
    gpu_instance_close(inst);
    return cor_alloc_live() != live_before;
}

static bool profile; /* devices opened from now on time their kernels */

static struct gpu_device *open_device(const char *caps)
{
    const struct gpu_device_params p = {.caps = caps, .profile = profile, .skip_barrier = -1};
    struct gpu_device *dev = NULL;
    struct vkmoe_err err = {0};

    test_ok(gpu_device_open(&dev, inst, picked, &p, &err), &err);
    return dev;
}

static struct gpu_buffer *make_buffer(struct gpu_device *dev, uint64_t bytes, enum gpu_mem mem,
                                      const char *name)
{
    struct gpu_buffer *b = NULL;
    struct vkmoe_err err = {0};

    test_ok(gpu_buffer_create(&b, dev, bytes, mem, name, &err), &err);
    return b;
}

static struct gpu_pipeline *make_pipeline(struct gpu_device *dev, enum gpu_kernel k, const void *spec,
                                          size_t bytes)
{
    struct gpu_pipeline *p = NULL;
    struct vkmoe_err err = {0};

    test_ok(gpu_pipeline_get(&p, dev, k, spec, bytes, 1, &err), &err);
    return p;
}

static void quiet(uint64_t before)
{
    assert_int_equal(gpu_instance_validation_count(inst) - before, 0);
}

/* ---- instance and choice
 * -------------------------------------------------------------------------------------- */

static void validation_is_on(void **state)
{
    (void)state;
    assert_true(gpu_instance_validates(inst)); /* package vulkan-validationlayers */
    assert_int_equal(gpu_instance_validation_count(inst), 0);
}

static void choice(void **state)
{
    const struct vkmoe_device_info *d = gpu_instance_device_info(inst, picked);
    struct vkmoe_err err = {0};
    char part[16] = {0};
    uint32_t i = 99;

    (void)state;
    assert_true(d->usable);
    assert_string_equal(d->refused, "");
    test_ok(gpu_instance_choose(inst, "0", &i, &err), &err);
    assert_int_equal(i, 0);
    for (size_t k = 0; k < 5; k++) /* a part of the name in the other case */
        part[k] = (char)(d->name[k + 1] ^ (d->name[k + 1] >= 'A' ? 32 : 0));
    test_ok(gpu_instance_choose(inst, part, &i, &err), &err);
    assert_int_equal(i, picked);
    assert_int_equal(gpu_instance_choose(inst, "no such thing", &i, &err), VKMOE_ERR_NO_DEVICE);
    assert_non_null(strstr(err.message, "no such thing"));
    assert_int_equal(gpu_instance_choose(inst, "", &i, &err), VKMOE_ERR_ARGUMENT);
    assert_int_equal(gpu_instance_choose(inst, "4711", &i, &err), VKMOE_ERR_ARGUMENT);
    assert_int_equal(gpu_instance_choose(inst, "99999999999999999999999", &i, &err), VKMOE_ERR_ARGUMENT);
    assert_null(gpu_instance_device_info(inst, 4711));
    assert_null(gpu_instance_device_caps(inst, 4711));
}

static void json(void **state)
{
    struct vkmoe_err err = {0};
    char *text = NULL;
    cJSON *o;

    (void)state;
    test_ok(gpu_instance_device_json(inst, picked, &text, &err), &err);
    o = cJSON_Parse(text);
    assert_non_null(o);
    assert_string_equal(cJSON_GetObjectItem(o, "name")->valuestring,
                        gpu_instance_device_info(inst, picked)->name);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(o, "usable")));
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(cJSON_GetObjectItem(o, "base"), "storage_range")));
    assert_true(cJSON_GetArraySize(cJSON_GetObjectItem(o, "kernels")) > 10);
    assert_true(cJSON_GetArraySize(cJSON_GetObjectItem(o, "heaps")) > 0);
    cJSON_Delete(o);
    cor_free(text);
    assert_int_equal(gpu_instance_device_json(inst, 4711, &text, &err), VKMOE_ERR_ARGUMENT);
    assert_null(text);
}

static void clamps(void **state)
{
    static const char *const bad[] = {"f16",
                                      "-f17",
                                      "range",
                                      "range=",
                                      "range=1X",
                                      "range=K",
                                      "buffers=7",
                                      "heap=-1",
                                      "speed=1M",
                                      "-uma,,x",
                                      "range=1M,nonsense",
                                      "alloc=99999999999999",
                                      "heap=999999999999G",
                                      "range=1K",
                                      "-range=1M",
                                      " -f16"};
    const struct gpu_caps *real = gpu_instance_device_caps(inst, picked);
    const char *all = "-f16,-subgroup,-dot8,-bda,-budget,-hostimport,-transfer,-array,-uma,-coherent,"
                      "-rounding,range=1M,buffers=8,heap=12m,alloc=4000K,";
    struct gpu_device *dev = open_device(all);
    const struct gpu_caps *c = gpu_device_caps(dev);
    struct vkmoe_err err;

    (void)state;
    assert_false(c->f16 || c->subgroup || c->dot8 || c->bda || c->budget || c->host_import ||
                 c->transfer_queue);
    assert_false(c->array || c->uma || c->coherent || c->rounding);
    assert_int_equal(c->max_range, 1 << 20);
    assert_int_equal(c->max_buffers, 8);
    assert_int_equal(c->heap_bytes, 12 << 20);
    assert_int_equal(c->max_alloc, 4000 << 10);
    assert_false(gpu_kernel_usable(dev, GPU_K_matvec_sg) || gpu_kernel_usable(dev, GPU_K_expert_down_arr));
    assert_true(gpu_kernel_usable(dev, GPU_K_matvec) && !gpu_kernel_usable(dev, GPU_K_quant_x));
    gpu_device_close(dev);
    dev = open_device("range=4000G,buffers=100000,"); /* clamps never raise */
    assert_int_equal(gpu_device_caps(dev)->max_range, real->max_range);
    assert_int_equal(gpu_device_caps(dev)->max_buffers, real->max_buffers);
    gpu_device_close(dev);
    for (size_t i = 0; i < COR_COUNT(bad); i++) {
        const struct gpu_device_params p = {.caps = bad[i], .skip_barrier = -1};

        if (gpu_device_open(&dev, inst, picked, &p, &err) != VKMOE_ERR_ARGUMENT)
            fail_msg("\"%s\" was accepted", bad[i]);
        assert_null(dev);
        assert_non_null(strstr(err.message, "caps: "));
    }
    assert_int_equal(gpu_device_open(&dev, inst, 4711, NULL, &err), VKMOE_ERR_ARGUMENT);
}

/* ---- memory
 * --------------------------------------------------------------------------------------------------- */

static void buffers(void **state)
{
    const uint64_t before = gpu_instance_validation_count(inst);
    struct gpu_device *dev = open_device("heap=1M,alloc=600K");
    struct gpu_buffer *a = make_buffer(dev, 600 << 10, GPU_MEM_DEVICE, "first");
    struct gpu_buffer *b = NULL;
    struct vkmoe_err err = {0};
    uint8_t data[1000];

    (void)state;
    assert_int_equal(gpu_device_bytes(dev), 600 << 10);
    assert_int_equal(gpu_device_free_bytes(dev), 424 << 10);
    assert_int_equal(gpu_buffer_create(&b, dev, 500 << 10, GPU_MEM_DEVICE, "second", &err), VKMOE_ERR_LIMIT);
    assert_null(b);
    assert_non_null(strstr(err.message, "second"));
    assert_non_null(strstr(err.message, "512000"));  /* asked for */
    assert_non_null(strstr(err.message, "614400"));  /* in use */
    assert_non_null(strstr(err.message, "1048576")); /* limit */
    assert_int_equal(gpu_buffer_create(&b, dev, (600 << 10) + 1, GPU_MEM_DEVICE, "big", &err),
                     VKMOE_ERR_LIMIT);
    assert_int_equal(gpu_buffer_create(&b, dev, UINT64_MAX, GPU_MEM_DEVICE, "huge", &err), VKMOE_ERR_LIMIT);
    gpu_buffer_destroy(a);
    assert_int_equal(gpu_device_bytes(dev), 0);
    assert_int_equal(gpu_device_peak_bytes(dev), 600 << 10);

    for (int mem = GPU_MEM_DEVICE; mem <= GPU_MEM_READ; mem++) { /* zeros, rounded up to 16 */
        a = make_buffer(dev, 985, (enum gpu_mem)mem, "zeros");
        assert_int_equal(gpu_buffer_bytes(a), 992);
        memset(data, 1, sizeof(data));
        test_ok(gpu_download(dev, a, 0, data, 992, &err), &err);
        for (size_t i = 0; i < 992; i++)
            assert_int_equal(data[i], 0);
        assert_true(mem == GPU_MEM_DEVICE || gpu_buffer_map(a));
        gpu_buffer_destroy(a);
    }
    gpu_device_close(dev);
    quiet(before);
}

static void fake_budget(void *user, uint64_t *budget, uint64_t *usage)
{
    const uint64_t *says = user;

    *budget = says[0];
    *usage = says[1];
}

/* What a driver may say of a heap of 64 MiB of which we use 1 MiB, and what is then free. */
static void budgets(void **state)
{
    enum { M = 1 << 20 };
    static const struct {
        uint64_t budget, usage, free;
    } cases[] = {
        {64 * M, 1 * M, 63 * M},     {64 * M, 0, 63 * M}, /* less in use than we know of */
        {32 * M, 1 * M, 31 * M},     {32 * M, 30 * M, 2 * M},
        {32 * M, 32 * M, 0},         {32 * M, 40 * M, 0}, /* past the budget: it shrank */
        {0, 1 * M, 63 * M},          {0, 64 * M, 0},      /* no budget: the heap */
        {65 * M, 1 * M, 63 * M},     {UINT64_MAX, UINT64_MAX, 0},
        {UINT64_MAX, 2 * M, 62 * M}, {1, 0, 0},
    };
    struct gpu_device *dev = open_device("heap=64M");
    struct gpu_buffer *b = make_buffer(dev, M, GPU_MEM_DEVICE, "one MiB");
    struct gpu_buffer *big = NULL;
    struct vkmoe_err err = {0};
    uint64_t says[2];

    (void)state;
    assert_in_range(gpu_device_free_bytes(dev), 0, 63 * M); /* by the driver, or heap minus use */
    gpu_device_set_budget(dev, fake_budget, says);
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        says[0] = cases[i].budget;
        says[1] = cases[i].usage;
        assert_int_equal(gpu_device_free_bytes(dev), cases[i].free);
    }
    says[0] = says[1] = UINT64_MAX; /* allocations past the heap are refused whatever the budget says */
    assert_int_equal(gpu_buffer_create(&big, dev, 64 * M, GPU_MEM_DEVICE, "big", &err), VKMOE_ERR_LIMIT);
    gpu_device_set_budget(dev, NULL, NULL);
    assert_in_range(gpu_device_free_bytes(dev), 0, 63 * M);
    gpu_buffer_destroy(b);
    gpu_device_close(dev);
}

/* Random uploads into a buffer and a copy of it on the host; then all of it is read back, in parts. */
static void transfers_with(const char *caps, uint64_t *rng)
{
    const uint64_t before = gpu_instance_validation_count(inst);
    const size_t n = (18u << 20) + 16; /* more than two staging buffers */
    struct gpu_device *dev = open_device(caps);
    struct gpu_buffer *b = make_buffer(dev, n, GPU_MEM_DEVICE, "target");
    uint8_t *model = calloc(1, n), *src = malloc(n), *back = malloc(n);
    struct vkmoe_err err = {0};

    assert_true(model && src && back);
    assert_int_equal(gpu_buffer_map(b) != NULL, gpu_device_caps(dev)->uma);
    for (size_t i = 0; i + 8 <= n; i += 8) {
        uint64_t v = test_rand(rng);

        memcpy(src + i, &v, 8);
    }
    for (int i = 0; i < 12; i++) {
        size_t off = (size_t)(test_rand(rng) % n) & ~(size_t)3;
        size_t len = (size_t)(test_rand(rng) % (i ? 100000 : n)) & ~(size_t)3;

        len = len > n - off ? n - off : len;
        test_ok(gpu_upload(dev, b, off, src + off, len, &err), &err);
        memcpy(model + off, src + off, len);
    }
    for (size_t off = 0; off < n;) { /* the other way in: several queued, then one wait */
        size_t len = n - off < 3000000 ? n - off : 3000000;
        void *dst;

        test_ok(gpu_upload_begin(dev, b, off, len, &dst, &err), &err);
        for (size_t i = 0; i < len; i++)
            ((uint8_t *)dst)[i] = model[off + i] ^= 0x5a;
        test_ok(gpu_upload_end(dev, &err), &err);
        off += len;
    }
    test_ok(gpu_upload_wait(dev, &err), &err);
    test_ok(gpu_download(dev, b, 0, back, n, &err), &err);
    assert_memory_equal(back, model, n);
    test_ok(gpu_download(dev, b, n - 100, back, 100, &err), &err);
    assert_memory_equal(back, model + n - 100, 100);
    gpu_buffer_destroy(b);
    gpu_device_close(dev);
    free(model);
    free(src);
    free(back);
    quiet(before);
}

static void transfers(void **state)
{
    static const char *const caps[] = {NULL, "-uma", "-coherent", "-uma,-coherent"};
    uint64_t rng = test_seed();

    (void)state;
    for (size_t i = 0; i < COR_COUNT(caps); i++)
        transfers_with(caps[i], &rng);
}

/* ---- pipelines and commands
 * ------------------------------------------------------------------------------------- */

static void pipelines(void **state)
{
    const struct spec_topk s1 = {128, 100, 100, 1, 0}, s2 = {128, 101, 101, 1, 0},
                           wide = {1u << 20, 100, 100, 1, 0};
    const struct spec_expert ex = {.wg = 64,
                                   .dim = 64,
                                   .ff = 64,
                                   .n_experts = 8,
                                   .k_used = 2,
                                   .slots_per_seg = 4,
                                   .n_segs = 5,
                                   .rows = 1,
                                   .slot_stride = 65536};
    const struct spec_mat mat = {.wg = 64, .k = 32, .n_out = 32, .rows = 1};
    struct gpu_device *dev = open_device("-subgroup,-array,buffers=8");
    struct gpu_pipeline *p = make_pipeline(dev, GPU_K_topk, &s1, sizeof(s1)), *q;
    struct vkmoe_err err = {0};

    (void)state;
    assert_ptr_equal(make_pipeline(dev, GPU_K_topk, &s1, sizeof(s1)), p);
    assert_ptr_not_equal(make_pipeline(dev, GPU_K_topk, &s2, sizeof(s2)), p);
    assert_int_equal(gpu_pipeline_get(&q, dev, GPU_K_matvec_sg, &mat, sizeof(mat), 1, &err),
                     VKMOE_ERR_UNSUPPORTED);
    assert_null(q);
    assert_int_equal(gpu_pipeline_get(&q, dev, GPU_K_topk, &wide, sizeof(wide), 1, &err), VKMOE_ERR_LIMIT);
    gpu_device_close(dev);
    dev = open_device("buffers=8");
    assert_int_equal(gpu_pipeline_get(&q, dev, GPU_K_expert_down_arr, &ex, sizeof(ex), 6, &err),
                     VKMOE_ERR_LIMIT);
    assert_non_null(strstr(err.message, "9 storage buffers"));
    gpu_device_close(dev);
    for (int k = 0; k < GPU_KERNEL_COUNT; k++)
        assert_true(gpu_kernel_info((enum gpu_kernel)k)->n_buffers >= 2);
}

/* Pipelines that threads make are those that are asked for; who asks first waits or makes it himself. Wishes
 * that cannot be had are told when they are asked for, and closing ends threads in the middle of their work.
 */
static void pipelines_ahead(void **state)
{
    enum { N = 24 };
    const uint64_t before = gpu_instance_validation_count(inst);

    (void)state;
    for (int asked = 0; asked <= N; asked += N / 2) {
        struct gpu_device *dev = open_device(NULL);
        const struct spec_topk bad = {1u << 20, 100, 100, 1, 0};
        struct vkmoe_err err = {0};
        struct gpu_pipeline *p;

        for (uint32_t round = 0; round < 2; round++) {
            for (uint32_t i = round * N / 2; i < (round + 1) * N / 2; i++) {
                const struct spec_topk s = {32, 100 + i, 100 + i, 1, 0};

                gpu_pipeline_wish(dev, GPU_K_topk, &s, sizeof(s), 1);
                gpu_pipeline_wish(dev, GPU_K_topk, &s, sizeof(s), 1);
            }
            gpu_pipeline_wish(dev, GPU_K_topk, &bad, sizeof(bad), 1);
            gpu_pipelines_ahead(dev);
        }
        for (uint32_t i = 0; i < (uint32_t)asked; i++) {
            const struct spec_topk s = {32, 100 + i, 100 + i, 1, 0};

            p = make_pipeline(dev, GPU_K_topk, &s, sizeof(s));
            assert_ptr_equal(make_pipeline(dev, GPU_K_topk, &s, sizeof(s)), p);
        }
        assert_int_equal(gpu_pipeline_get(&p, dev, GPU_K_topk, &bad, sizeof(bad), 1, &err), VKMOE_ERR_LIMIT);
        gpu_device_close(dev);
    }
    quiet(before);
}

struct rig { /* the best of a row, twice, with a copy before and indirect arguments written by publish */
    struct gpu_device *dev;
    struct gpu_buffer *src, *logits, *step, *tmpl, *args, *state, *table, *mail;
    struct gpu_pipeline *publish, *topk;
    struct gpu_cmds *cmds[2];
};

#define RIG_N 5000 /* topk looks at the first slice */

static void rig_open(struct rig *r, const char *caps)
{
    const struct spec_publish sp = {128};
    const struct spec_topk sa = {128, TOPK_SLICE, TOPK_SLICE, 1, 0};
    struct vkmoe_err err = {0};
    uint32_t *w;

    memset(r, 0, sizeof(*r));
    r->dev = open_device(caps);
    r->src = make_buffer(r->dev, RIG_N * 4, GPU_MEM_STEP, "src");
    r->logits = make_buffer(r->dev, RIG_N * 4, GPU_MEM_DEVICE, "logits");
    r->step = make_buffer(r->dev, 64 * 4, GPU_MEM_STEP, "step");
    r->tmpl = make_buffer(r->dev, 64 * 4, GPU_MEM_STEP, "template");
    r->args = make_buffer(r->dev, 64 * 4, GPU_MEM_DEVICE, "arguments");
    r->state = make_buffer(r->dev, 64 * 4, GPU_MEM_DEVICE, "state");
    r->table = make_buffer(r->dev, 64 * 4, GPU_MEM_DEVICE, "slot table");
    r->mail = make_buffer(r->dev, MAIL_WORDS * 4, GPU_MEM_READ, "mailbox");
    r->publish = make_pipeline(r->dev, GPU_K_publish, &sp, sizeof(sp));
    r->topk = make_pipeline(r->dev, GPU_K_topk, &sa, sizeof(sa));
    for (int i = 0; i < 2; i++)
        test_ok(gpu_cmds_create(&r->cmds[i], r->dev, i ? "second" : "first", &err), &err);
    w = gpu_buffer_map(r->step);
    w[STEP_N_TOKENS] = w[STEP_N_ROWS] = w[STEP_CHUNK] = 1;
    w = gpu_buffer_map(r->tmpl);
    w[0] = 2; /* dispatches, each of one group */
    for (uint32_t i = 0; i < 2 * TMPL_WORDS; i++)
        w[TMPL_HEAD + i] = i % 2 ? 1 : DIM_FIXED;
    test_ok(gpu_buffer_flush(r->step, 0, 64 * 4, &err), &err);
    test_ok(gpu_buffer_flush(r->tmpl, 0, 64 * 4, &err), &err);
}

static void rig_close(struct rig *r)
{
    struct gpu_buffer *all[] = {r->src, r->logits, r->step, r->tmpl, r->args, r->state, r->table, r->mail};

    for (int i = 0; i < 2; i++)
        gpu_cmds_destroy(r->cmds[i]);
    for (size_t i = 0; i < COR_COUNT(all); i++)
        gpu_buffer_destroy(all[i]);
    gpu_device_close(r->dev);
}

static void record_publish(struct rig *r, struct gpu_cmds *c)
{
    const struct gpu_bind binds[] = {{r->step, 0, 0},  {r->tmpl, 0, 0},  {r->args, 0, 0},
                                     {r->state, 0, 0}, {r->table, 0, 0}, {r->mail, 0, 0}};

    gpu_cmds_dispatch(c, r->publish, binds, 6, NULL, 1, 1, 1);
}

static void record_topk(struct rig *r, struct gpu_cmds *c, uint32_t nth)
{
    const struct gpu_bind binds[] = {{r->logits, 0, RIG_N * 4}, {r->mail, 0, 0}};

    gpu_cmds_dispatch_indirect(c, r->topk, binds, 2, NULL, r->args, (uint64_t)nth * 12);
}

/* Hazards between commands, between command buffers of a submit, and write after read on the arguments. */
static void rig_record(struct rig *r)
{
    struct vkmoe_err err = {0};
    struct gpu_cmds *c = r->cmds[0];

    gpu_cmds_begin(c);
    record_publish(r, c);
    gpu_cmds_copy(c, r->src, 0, r->logits, 0, RIG_N * 4);
    gpu_cmds_barrier(c, GPU_BARRIER_ARGS);
    record_topk(r, c, 0); /* reads what was copied, writes the mailbox that publish cleared */
    gpu_cmds_barrier(c, GPU_BARRIER_COMPUTE);
    test_ok(gpu_cmds_end(c, &err), &err);
    c = r->cmds[1];
    gpu_cmds_begin(c);
    record_publish(r, c); /* rewrites the arguments that the dispatch before has read */
    gpu_cmds_barrier(c, GPU_BARRIER_ARGS);
    record_topk(r, c, 1);
    gpu_cmds_barrier(c, GPU_BARRIER_COPY);
    gpu_cmds_copy(c, r->mail, 0, r->src, 0, 64);
    gpu_cmds_barrier(c, GPU_BARRIER_HOST);
    test_ok(gpu_cmds_end(c, &err), &err);
}

static uint32_t rig_run(struct rig *r, uint32_t peak)
{
    struct vkmoe_err err = {0};
    float *x = gpu_buffer_map(r->src);
    uint32_t *mail = gpu_buffer_map(r->mail);

    for (uint32_t i = 0; i < RIG_N; i++)
        x[i] = i == peak ? 2.0f : (float)i / RIG_N;
    test_ok(gpu_buffer_flush(r->src, 0, RIG_N * 4, &err), &err);
    test_ok(gpu_submit(r->dev, r->cmds, 2, &err), &err);
    test_ok(gpu_wait(r->dev, 10u * (uint64_t)SECOND, "the rig", &err), &err);
    test_ok(gpu_wait(r->dev, 0, "nothing", &err), &err);
    test_ok(gpu_buffer_invalidate(r->mail, 0, MAIL_WORDS * 4, &err), &err);
    return mail[0];
}

static void commands(void **state)
{
    static const char *const caps[] = {NULL, "-uma", "-coherent"};
    const uint64_t before = gpu_instance_validation_count(inst);
    struct rig r;

    (void)state;
    for (size_t i = 0; i < COR_COUNT(caps); i++) {
        rig_open(&r, caps[i]);
        for (int again = 0; again < 2; again++) { /* recording again reuses pools */
            rig_record(&r);
            assert_int_equal(rig_run(&r, 77), 77);
            assert_int_equal(rig_run(&r, 876), 876);
        }
        rig_close(&r);
    }
    quiet(before);
}

static void kernel_times(void **state)
{
    const uint64_t before = gpu_instance_validation_count(inst);
    const struct gpu_kernel_time *t;
    struct rig r;

    (void)state;
    rig_open(&r, NULL);
    assert_null(gpu_profile_times(r.dev));
    rig_close(&r);
    profile = true;
    rig_open(&r, NULL);
    profile = false;
    rig_record(&r);
    for (int i = 0; i < 3; i++)
        rig_run(&r, 99);
    t = gpu_profile_times(r.dev);
    assert_int_equal(t[GPU_K_topk].count, 6);
    assert_int_equal(t[GPU_K_publish].count, 6);
    assert_int_equal(t[GPU_K_embed].count, 0);
    assert_true(t[GPU_K_topk].ns > 0 && t[GPU_K_topk].ns < 10.0 * SECOND);
    gpu_profile_reset(r.dev);
    assert_int_equal(t[GPU_K_topk].count, 0);
    rig_close(&r);
    quiet(before);
}

/* Many sets grow the pools; a bad dispatch is told by end, once, and nothing is submitted. */
static void recording_errors(void **state)
{
    struct vkmoe_err err = {0};
    struct rig r;
    struct gpu_cmds *c;
    uint32_t align;

    (void)state;
    rig_open(&r, NULL);
    c = r.cmds[0];
    align = gpu_device_caps(r.dev)->offset_align;
    gpu_cmds_begin(c);
    for (int i = 0; i < 300; i++) {
        record_publish(&r, c);
        gpu_cmds_barrier(c, GPU_BARRIER_ARGS);
    }
    test_ok(gpu_cmds_end(c, &err), &err);
    const struct gpu_bind bad[][2] = {
        {{r.logits, 2, 0}, {r.mail, 0, 0}},                                    /* not aligned */
        {{r.logits, RIG_N * 4ull / align * align + align, 0}, {r.mail, 0, 0}}, /* past the end */
        {{r.logits, 0, RIG_N * 4 + 256}, {r.mail, 0, 0}},                      /* too long */
    };
    for (size_t i = 0; i < COR_COUNT(bad); i++) {
        gpu_cmds_begin(c);
        gpu_cmds_dispatch(c, r.topk, bad[i], 2, NULL, 1, 1, 1);
        gpu_cmds_barrier(c, GPU_BARRIER_HOST);
        assert_int_equal(gpu_cmds_end(c, &err), VKMOE_ERR_LIMIT);
        assert_non_null(strstr(err.message, "logits"));
    }
    gpu_cmds_begin(c);
    gpu_cmds_dispatch(c, r.topk, bad[0], 2, NULL, 1u << 31, 1, 1);
    assert_int_equal(gpu_cmds_end(c, &err), VKMOE_ERR_LIMIT);
    assert_non_null(strstr(err.message, "grid"));
    rig_close(&r);
    rig_open(&r, "range=8K");
    gpu_cmds_begin(r.cmds[0]);
    record_topk(&r, r.cmds[0], 0);
    assert_int_equal(gpu_cmds_end(r.cmds[0], &err), VKMOE_ERR_LIMIT);
    assert_non_null(strstr(err.message, "8192"));
    rig_close(&r);
}

/* Leaving out any one barrier between device commands makes the layer complain; leaving out none does not. */
static void every_barrier_counts(void **state)
{
    const uint64_t before = gpu_instance_validation_count(inst);
    struct rig r;
    uint32_t n;

    (void)state;
    rig_open(&r, NULL);
    gpu_device_set_skip_barrier(r.dev, -1);
    rig_record(&r);
    rig_run(&r, 5);
    n = gpu_device_barriers_recorded(r.dev);
    assert_int_equal(n, 4);
    quiet(before);
    expect_messages = true;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t start = gpu_instance_validation_count(inst);

        gpu_device_set_skip_barrier(r.dev, (int32_t)i);
        rig_record(&r);
        rig_run(&r, 5);
        if (gpu_instance_validation_count(inst) == start)
            fail_msg("barrier %u of %u is not missed", i, n);
    }
    expect_messages = false;
    rig_close(&r);
}

static void robust(void **state)
{
    const struct gpu_device_params p = {.robust = true, .skip_barrier = -1};
    const struct spec_topk s = {128, 100, 100, 1, 0};
    struct gpu_device *dev;
    struct vkmoe_err err = {0};

    (void)state;
    test_ok(gpu_device_open(&dev, inst, picked, &p, &err), &err);
    make_pipeline(dev, GPU_K_topk, &s, sizeof(s));
    gpu_device_close(dev);
}

/* ---- failures
 * --------------------------------------------------------------------------------------------------- */

/* A lost device or a time-out is told with device and work, and then by every call. */
static void dead_devices(void **state)
{
    static const struct {
        enum gpu_fault kind;
        enum vkmoe_status st;
    } cases[] = {{GPU_FAULT_TIMEOUT, VKMOE_ERR_TIMEOUT}, {GPU_FAULT_DEVICE_LOST, VKMOE_ERR_DEVICE_LOST}};
    const uint64_t before = gpu_instance_validation_count(inst);

    (void)state;
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        struct vkmoe_err err = {0};
        struct gpu_buffer *b;
        struct gpu_cmds *c;
        struct rig r;
        uint32_t word;

        rig_open(&r, NULL);
        rig_record(&r);
        test_ok(gpu_submit(r.dev, r.cmds, 2, &err), &err);
        gpu_fail_from(1, cases[i].kind);
        assert_int_equal(gpu_wait(r.dev, SECOND, "layer 7", &err), cases[i].st);
        gpu_fail_from(0, cases[i].kind);
        assert_non_null(strstr(err.message, "layer 7"));
        assert_non_null(strstr(err.message, gpu_device_info(r.dev)->name));
        memset(&err, 0, sizeof(err));
        assert_int_equal(gpu_submit(r.dev, r.cmds, 2, &err), cases[i].st);
        assert_non_null(strstr(err.message, "layer 7"));
        assert_int_equal(gpu_wait(r.dev, SECOND, "more", &err), cases[i].st);
        assert_int_equal(gpu_buffer_create(&b, r.dev, 16, GPU_MEM_DEVICE, "late", &err), cases[i].st);
        assert_int_equal(gpu_download(r.dev, r.mail, 0, &word, 4, &err), cases[i].st);
        assert_int_equal(gpu_cmds_create(&c, r.dev, "late", &err), cases[i].st);
        gpu_cmds_begin(r.cmds[0]);
        assert_int_equal(gpu_cmds_end(r.cmds[0], &err), cases[i].st);
        rig_close(&r);
    }
    quiet(before);
}

/* Everything a session does to a device, giving up at the first failure. */
static enum vkmoe_status life(struct vkmoe_err *err)
{
    const struct gpu_device_params dp = {.caps = "-uma,-coherent", .skip_barrier = -1};
    const struct spec_topk spec = {128, 64, 64, 1, 0};
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_device *dev = NULL;
    struct gpu_buffer *a = NULL, *b = NULL;
    struct gpu_cmds *c = NULL;
    struct gpu_pipeline *p;
    uint32_t data[64] = {0};

    TRY(gpu_device_open(&dev, inst, picked, &dp, err));
    TRY(gpu_buffer_create(&a, dev, 256, GPU_MEM_DEVICE, "a", err));
    TRY(gpu_buffer_create(&b, dev, 256, GPU_MEM_READ, "b", err));
    TRY(gpu_upload(dev, a, 0, data, 256, err));
    TRY(gpu_pipeline_get(&p, dev, GPU_K_topk, &spec, sizeof(spec), 1, err));
    TRY(gpu_cmds_create(&c, dev, "life", err));
    const struct gpu_bind binds[] = {{a, 0, 0}, {b, 0, 0}};
    gpu_cmds_begin(c);
    gpu_cmds_dispatch(c, p, binds, 2, NULL, 1, 1, 1);
    gpu_cmds_barrier(c, GPU_BARRIER_HOST);
    TRY(gpu_cmds_end(c, err));
    TRY(gpu_submit(dev, &c, 1, err));
    TRY(gpu_wait(dev, 10u * (uint64_t)SECOND, "life", err));
    TRY(gpu_buffer_invalidate(b, 0, 256, err));
    TRY(gpu_download(dev, a, 0, data, 256, err));
done:
    gpu_cmds_destroy(c);
    gpu_buffer_destroy(b);
    gpu_buffer_destroy(a);
    gpu_device_close(dev);
    return st;
}

static void nth_call_fails(void **state)
{
    static const enum gpu_fault kinds[] = {GPU_FAULT_OUT_OF_MEMORY, GPU_FAULT_DEVICE_LOST, GPU_FAULT_TIMEOUT};
    const uint64_t before = gpu_instance_validation_count(inst);
    const long live = cor_alloc_live();

    (void)state;
    for (size_t k = 0; k < COR_COUNT(kinds); k++) {
        enum vkmoe_status st = VKMOE_ERR_DEVICE;
        struct vkmoe_err err;
        long n = 0;

        while (st != VKMOE_OK) {
            memset(&err, 0, sizeof(err));
            gpu_fail_from(++n, kinds[k]);
            st = life(&err);
            gpu_fail_from(0, kinds[k]);
            assert_int_equal(cor_alloc_live(), live);
            assert_true(st == VKMOE_OK || err.message[0]);
        }
        assert_true(n > 40);
    }
    quiet(before); /* no object outlived its device */
}

static void nth_allocation_fails(void **state)
{
    const uint64_t before = gpu_instance_validation_count(inst);
    const long live = cor_alloc_live();
    enum vkmoe_status st = VKMOE_ERR_MEMORY;
    struct vkmoe_err err;
    long n = 0;

    (void)state;
    while (st != VKMOE_OK) {
        memset(&err, 0, sizeof(err));
        cor_alloc_fail_from(++n);
        st = life(&err);
        cor_alloc_fail_from(0);
        assert_int_equal(cor_alloc_live(), live);
        assert_true(st == VKMOE_OK || (st == VKMOE_ERR_MEMORY && err.message[0]));
    }
    assert_true(n > 10);
    quiet(before);
}

/* Opening the instance itself, calls and allocations in turn, without the layer (it is slow to load). */
static void nth_failure_of_the_instance(void **state)
{
    const struct gpu_instance_params p = {.cache_dir = "unused"};
    const long live = cor_alloc_live();

    (void)state;
    for (int alloc = 0; alloc < 2; alloc++) {
        enum vkmoe_status st = VKMOE_ERR_MEMORY;
        long n = 0;

        while (st != VKMOE_OK) {
            struct gpu_instance *other;
            struct vkmoe_err err = {0};

            n++;
            if (alloc)
                cor_alloc_fail_from(n);
            else
                gpu_fail_from(n, GPU_FAULT_OUT_OF_MEMORY);
            st = gpu_instance_open(&other, &p, &err);
            cor_alloc_fail_from(0);
            gpu_fail_from(0, GPU_FAULT_OUT_OF_MEMORY);
            assert_int_equal(other != NULL, st == VKMOE_OK);
            assert_true(st == VKMOE_OK || err.message[0]);
            gpu_instance_close(other);
            assert_int_equal(cor_alloc_live(), live);
        }
        assert_true(n > 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(validation_is_on),
        cmocka_unit_test(choice),
        cmocka_unit_test(json),
        cmocka_unit_test(clamps),
        cmocka_unit_test(buffers),
        cmocka_unit_test(budgets),
        cmocka_unit_test(transfers),
        cmocka_unit_test(pipelines),
        cmocka_unit_test(pipelines_ahead),
        cmocka_unit_test(kernel_times),
        cmocka_unit_test(commands),
        cmocka_unit_test(recording_errors),
        cmocka_unit_test(every_barrier_counts),
        cmocka_unit_test(robust),
        cmocka_unit_test(dead_devices),
        cmocka_unit_test(nth_call_fails),
        cmocka_unit_test(nth_allocation_fails),
        cmocka_unit_test(nth_failure_of_the_instance),
    };

    return cmocka_run_group_tests(tests, open_instance, close_instance);
}
