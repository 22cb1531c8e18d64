#include "experts/fit.h"

#include <inttypes.h>
#include <string.h>

#include "core/bits.h"

enum vkmoe_status xp_fit(const struct mdl_model *a, const struct mdl_model *b, struct vkmoe_err *err)
{
    const struct mdl_config *x = &a->config, *y = &b->config;
    const struct {
        const char *what;
        uint32_t a, b;
    } numbers[] = {
        {"layers", x->n_layers, y->n_layers},
        {"hidden size", x->dim, y->dim},
        {"heads", x->n_heads, y->n_heads},
        {"key/value heads", x->n_kv_heads, y->n_kv_heads},
        {"head size", x->head_dim, y->head_dim},
        {"rotated dimensions", x->n_rot, y->n_rot},
        {"vocabulary", x->vocab_size, y->vocab_size},
        {"shared experts", x->n_shared, y->n_shared},
        {"width of an expert", x->ff_expert, y->ff_expert},
        {"width of the shared experts", mdl_shared_width(x), mdl_shared_width(y)},
        {"dense layers", x->n_dense_layers, y->n_dense_layers},
        {"bits of the RoPE base", cor_float_bits(x->rope_theta), cor_float_bits(y->rope_theta)},
        {"bits of the norms' epsilon", cor_float_bits(x->rms_eps), cor_float_bits(y->rms_eps)},
        {"bits of the experts' scale", cor_float_bits(x->expert_scale), cor_float_bits(y->expert_scale)},
        {"normalised weights", x->norm_topk, y->norm_topk},
    };

    if (strcmp(x->arch, y->arch) != 0 || x->has != y->has)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "%s: not of the same architecture as %s: %s, not %s",
                        cor_file_path(b->gguf->file), cor_file_path(a->gguf->file), y->arch, x->arch);
    for (size_t i = 0; i < COR_COUNT(numbers); i++)
        if (numbers[i].a != numbers[i].b)
            return cor_fail(err, VKMOE_ERR_ARGUMENT,
                            "%s: not of the same model as %s: %s %" PRIu32 ", not %" PRIu32,
                            cor_file_path(b->gguf->file), cor_file_path(a->gguf->file), numbers[i].what,
                            numbers[i].b, numbers[i].a);
    return VKMOE_OK;
}
