#include "support/damage.h"

#include <stdio.h>

#include "model/blocks.h"
#include "model/recipe.h"
#include "model/synth.h"

static struct vkmoe_err err;

void damage_open(struct damage *d, const char *dir, const struct mdl_type_info *type)
{
    struct mdl_synth_params p = {.shape = *mdl_shape_find("emo-nano"), .seed = 11};
    struct mdl_config *c = &p.shape.config;
    struct mdl_recipe recipe;
    struct mdl_gguf *g;

    d->type = type->name;
    snprintf(d->path, sizeof(d->path), "%s/%s.gguf", dir, type->name);
    mdl_recipe_plain(&recipe, type->type);
    p.out = d->path;
    p.recipe = &recipe;
    c->n_layers = c->n_heads = c->n_kv_heads = 1;
    c->head_dim = c->n_rot = 32;
    c->dim = c->ff_expert = 256;
    c->n_shared = 0;
    c->n_experts = c->n_experts_used = DAMAGE_EXPERTS;
    c->vocab_size = DAMAGE_TOKENS;
    p.shape.eos = DAMAGE_TOKENS - 1;
    test_ok(mdl_synth(&p, &err), &err);
    test_ok(mdl_gguf_open(&g, d->path, &err), &err);
    d->header = (size_t)g->data_off;
    mdl_gguf_close(g);
    test_ok(cor_file_slurp(d->path, 1u << 24, &d->good, &d->n, &err), &err);
    assert_non_null(d->bytes = cor_alloc(d->n));
    damage_undo(d);
}

void damage_close(struct damage *d)
{
    cor_free(d->good);
    cor_free(d->bytes);
    remove(d->path);
}

void damage_undo(struct damage *d)
{
    memcpy(d->bytes, d->good, d->n);
}

static void flip(struct damage *d, size_t from, size_t to, uint64_t *rng)
{
    for (uint64_t k = test_rand(rng) % 3 + 1; k; k--)
        d->bytes[from + test_rand(rng) % (to - from)] ^= (char)(1u << (test_rand(rng) % 8));
}

/* Every second time in the last quarter: names, shapes and offsets of tensors. */
void damage_header(struct damage *d, uint64_t *rng)
{
    flip(d, test_rand(rng) % 2 ? d->header - d->header / 4 : 0, d->header, rng);
}

/* Where a block of the type has a half that scales it, or the number itself. */
static size_t scale_at(enum mdl_type type)
{
    return type == MDL_Q2_K ? 80 : type == MDL_Q3_K ? 108 : type == MDL_Q6_K ? 208 : type == MDL_F32 ? 2 : 0;
}

void damage_data(struct damage *d, uint64_t *rng)
{
    static const uint16_t halves[] = {0x7e00, 0x7c00, 0xfc00, 0x7bff, 0x7f80, 0xff80, 0x7fc0};
    const struct mdl_type_info *info = mdl_type_by_name(d->type);
    struct mdl_gguf *g;

    test_ok(mdl_gguf_open(&g, d->path, &err), &err);
    flip(d, d->header, d->n, rng);
    for (uint64_t k = test_rand(rng) % 3; k; k--) {
        const struct mdl_tensor *t = &g->tensors[test_rand(rng) % g->n_tensors];
        const size_t block = (size_t)(test_rand(rng) % (t->bytes / info->block_bytes));

        if (t->type == info->type)
            mdl_put_u16((uint8_t *)d->bytes + t->file_off + block * info->block_bytes + scale_at(info->type),
                        halves[test_rand(rng) % COR_COUNT(halves)]);
    }
    mdl_gguf_close(g);
}

void damage_write(const struct damage *d, size_t n)
{
    remove(d->path); /* a new file: rewriting one waits for the disk */
    test_write(d->path, d->bytes, n);
}

void damage_check_line(const struct damage *d, const struct vkmoe_err *e)
{
    if (strchr(e->message, '\n') || !strstr(e->message, d->path))
        fail_msg("%s: '%s' is not a line that names the file", d->type, e->message);
}
