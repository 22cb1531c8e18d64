/* The debug check of slots: silent on a sound pool, and it names the slot whose first or last bytes are not
 * the expert's. */
#include "support/device.h"

#include <stdio.h>

#include "run/tags.h"

static void spoil(struct run_pool *p, uint32_t slot, uint64_t off)
{
    struct gpu_buffer *seg = p->segs[slot / p->slots_per_seg];
    const uint64_t at = (uint64_t)(slot % p->slots_per_seg) * p->slot_bytes + off;
    struct vkmoe_err err = {0};
    uint32_t word;

    test_ok(gpu_download(p->dev, seg, at, &word, 4, &err), &err);
    word ^= 0x100;
    test_ok(gpu_upload(p->dev, seg, at, &word, 4, &err), &err);
}

/* Spoiled at off, told; mended, silent. */
static void told(struct run_pool *p, uint32_t layer, uint32_t expert, uint64_t off, bool seen)
{
    const uint32_t index = layer * p->n_experts + expert, slot = run_slots_find(p->slots, layer, expert);
    const uint32_t other = index ? index - 1 : index + 1;
    struct vkmoe_err err = {0};
    char line[200];

    spoil(p, slot, off);
    if (seen) {
        snprintf(line, sizeof(line), "layer %u, expert %u: slot %u holds", layer, expert, slot);
        assert_int_equal(run_tags_check(p, NULL, 0, &err), VKMOE_ERR_DEVICE);
        assert_non_null(strstr(err.message, line));
        assert_int_equal(run_tags_check(p, &index, 1, &err), VKMOE_ERR_DEVICE);
        assert_non_null(strstr(err.message, "(1 of 1 slots)"));
    } else {
        test_ok(run_tags_check(p, NULL, 0, &err), &err);
    }
    test_ok(run_tags_check(p, &other, 1, &err), &err);
    spoil(p, slot, off);
    test_ok(run_tags_check(p, NULL, 0, &err), &err);
}

static void slots_are_checked(void **state)
{
    static const char *const caps[] = {NULL, "-uma", "-array,-uma,-coherent", "range=1M,buffers=8"};
    const char *path = golden_model("emo-nano", MDL_Q8_0);

    (void)state;
    assert_non_null(path);
    for (size_t i = 0; i < COR_COUNT(caps); i++) {
        const struct device_params dp = {.caps = caps[i], .validation = true};
        struct vkmoe_err err = {0};
        struct device_case c;
        struct run_pool *p;
        uint64_t end;

        device_open(&c, path, &dp);
        p = &c.model->pool;
        end = p->layout[1].down_off + mdl_expert_bytes(p->mdl->layers[1].down_exps);
        test_ok(run_tags_check(p, NULL, 0, &err), &err);
        told(p, 0, 0, 0, true);
        told(p, p->n_layers - 1, p->n_experts - 1, 60, true);
        told(p, 1, 3, end / 4 * 4 - 4, true);
        told(p, 1, 2, end / 4 * 4 - 64, true);
        told(p, 1, 1, 64, false); /* behind the first bytes: not looked at */
        assert_int_equal(gpu_instance_validation_count(c.inst), 0);
        device_close(&c);
    }
}

static void nothing_resident(void **state)
{
    const struct device_params dp = {.lazy = true};
    struct vkmoe_err err = {0};
    struct device_case c;

    (void)state;
    device_open(&c, golden_model("emo-nano", MDL_Q8_0), &dp);
    test_ok(run_tags_check(&c.model->pool, NULL, 0, &err), &err);
    device_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_are_checked),
        cmocka_unit_test(nothing_resident),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
