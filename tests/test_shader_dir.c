/* Modules from a folder in place of built-in ones: which are taken, what is refused, and that no pipeline
 * cache remembers them. */
#include <stdio.h>

#include "gpu/commands.h"
#include "support/test.h"

#define SPIRV_OP_GREATER 172u /* OpUGreaterThan */
#define SPIRV_OP_LESS    176u /* OpULessThan */

static struct gpu_instance *inst;
static char cache_dir[4096], shaders[4096];

static const char *path_of(const char *kernel)
{
    static char path[4200];

    snprintf(path, sizeof(path), "%s/%s.spv", shaders, kernel);
    return path;
}

/* The built-in module with every "greater" turned into "less". */
static void write_wrong_topk(void)
{
    uint32_t *words, n = 0;
    struct vkmoe_err err;
    size_t n_words;

    test_ok(gpu_spirv_read(&words, &n_words, "topk", &err), &err);
    assert_non_null(words);
    for (uint32_t i = 5; i < n_words; i += words[i] >> 16)
        if ((words[i] & 0xffff) == SPIRV_OP_GREATER) {
            words[i] = (words[i] & 0xffff0000u) | SPIRV_OP_LESS;
            n++;
        }
    assert_true(n);
    test_write(path_of("topk"), words, n_words * 4);
    cor_free(words);
}

static enum vkmoe_status best(const char *dir, uint32_t *index, struct vkmoe_err *err)
{
    const struct gpu_device_params p = {.shader_dir = dir, .skip_barrier = -1};
    const struct spec_topk spec = {32, 3, 3, 1, 0};
    const struct push_none push = {0};
    const float logits[4] = {1, 3, 2, 9};
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_buffer *in = NULL, *out = NULL;
    struct gpu_cmds *c = NULL;
    struct gpu_device *dev = NULL;
    struct gpu_pipeline *pipe;
    uint32_t top[TOPK_WORDS(1)];

    TRY(gpu_device_open(&dev, inst, 0, &p, err));
    TRY(gpu_buffer_create(&in, dev, sizeof(logits), GPU_MEM_DEVICE, "in", err));
    TRY(gpu_buffer_create(&out, dev, sizeof(top), GPU_MEM_DEVICE, "out", err));
    TRY(gpu_upload(dev, in, 0, logits, sizeof(logits), err));
    TRY(gpu_pipeline_get(&pipe, dev, GPU_K_topk, &spec, sizeof(spec), 1, err));
    TRY(gpu_cmds_create(&c, dev, "topk", err));
    gpu_cmds_begin(c);
    gpu_cmds_dispatch(c, pipe, (const struct gpu_bind[]){{in, 0, 0}, {out, 0, 0}}, 2, &push, 1, 1, 1);
    gpu_cmds_barrier(c, GPU_BARRIER_COPY);
    TRY(gpu_cmds_end(c, err));
    TRY(gpu_submit(dev, &c, 1, err));
    TRY(gpu_wait(dev, 10000000000u, "topk", err));
    TRY(gpu_download(dev, out, 0, top, sizeof(top), err));
    *index = top[0];
done:
    gpu_cmds_destroy(c);
    gpu_buffer_destroy(in);
    gpu_buffer_destroy(out);
    gpu_device_close(dev);
    return st;
}

static size_t cache_files(void)
{
    char **names = NULL;
    struct vkmoe_err err;
    size_t n;

    test_ok(cor_dir_list(cache_dir, &names, &n, &err), &err);
    cor_free(names);
    return n;
}

static void test_replaced(void **unused)
{
    struct vkmoe_err err;
    uint32_t index = 0;

    (void)unused;
    test_ok(best(shaders, &index, &err), &err); /* an empty folder: built-in modules */
    assert_int_equal(index, 1);
    write_wrong_topk();
    test_ok(best(shaders, &index, &err), &err);
    assert_int_equal(index, NONE);
    assert_int_equal(cache_files(), 0);
    test_ok(best(NULL, &index, &err), &err);
    assert_int_equal(index, 1);
    assert_int_equal(cache_files(), 1);
    test_ok(best(shaders, &index, &err), &err);
    assert_int_equal(index, NONE);
    cor_path_remove(path_of("topk"));
}

static void test_refused(void **unused)
{
    static const uint32_t wrong_magic[6] = {0x03022307};
    static const uint32_t right_magic[6] = {0x07230203};
    const struct {
        const void *data;
        size_t n;
        const char *says;
    } cases[] = {{wrong_magic, 24, "begins with 0x03022307"},
                 {right_magic, 0, "0 bytes"},
                 {right_magic, 16, "16 bytes"},
                 {right_magic, 23, "23 bytes"}};
    struct vkmoe_err err;
    uint32_t index;

    (void)unused;
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        test_write(path_of("topk"), cases[i].data, cases[i].n);
        assert_int_equal(best(shaders, &index, &err), VKMOE_ERR_FORMAT);
        assert_non_null(strstr(err.message, cases[i].says));
        assert_non_null(strstr(err.message, "topk.spv"));
    }
    cor_path_remove(path_of("topk"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_replaced), cmocka_unit_test(test_refused)};
    struct gpu_instance_params params = {.validation = false};
    struct vkmoe_err err;
    int failed;

    const char *tmp = test_tmp();

    snprintf(cache_dir, sizeof(cache_dir), "%s/cache", tmp);
    snprintf(shaders, sizeof(shaders), "%s/shaders", tmp);
    params.cache_dir = cache_dir;
    if (cor_dir_make(cache_dir, &err) != VKMOE_OK || cor_dir_make(shaders, &err) != VKMOE_OK ||
        gpu_instance_open(&inst, &params, &err) != VKMOE_OK) {
        print_error("%s\n", err.message);
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    gpu_instance_close(inst);
    return failed;
}
