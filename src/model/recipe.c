#include "model/recipe.h"

#include <stdio.h>
#include <string.h>

/* ---- names
 * ------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    enum mdl_type type;
    enum mdl_mix mix;
    uint32_t file_type;
} mixes[] = {{"q3_k_s", MDL_Q3_K, MDL_MIX_S, 11}, {"q3_k_m", MDL_Q3_K, MDL_MIX_M, 12},
             {"q3_k_l", MDL_Q3_K, MDL_MIX_L, 13}, {"q4_k_s", MDL_Q4_K, MDL_MIX_S, 14},
             {"q4_k_m", MDL_Q4_K, MDL_MIX_M, 15}, {"q5_k_s", MDL_Q5_K, MDL_MIX_S, 16},
             {"q5_k_m", MDL_Q5_K, MDL_MIX_M, 17}};

#define N_MIXES (sizeof(mixes) / sizeof(mixes[0]))

void mdl_recipe_plain(struct mdl_recipe *r, enum mdl_type type)
{
    *r = (struct mdl_recipe){.type = type, .file_type = mdl_type_find((uint32_t)type)->file_type};
}

bool mdl_recipe_parse(struct mdl_recipe *r, const char *name)
{
    const struct mdl_type_info *info = mdl_type_by_name(name);

    if (info) {
        mdl_recipe_plain(r, info->type);
        return true;
    }
    for (size_t i = 0; i < N_MIXES; i++)
        if (mdl_same_name(mixes[i].name, name)) {
            *r = (struct mdl_recipe){
                .type = mixes[i].type, .mix = mixes[i].mix, .file_type = mixes[i].file_type};
            return true;
        }
    return false;
}

char *mdl_recipe_names(char *dst, size_t n)
{
    const char *const types[] = {
#define MDL_X(id, value, name, elems, bytes, file) name,
        MDL_TYPE_LIST(MDL_X)
#undef MDL_X
    };
    size_t used = 0;

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]) + N_MIXES && used < n; i++) {
        const size_t n_types = sizeof(types) / sizeof(types[0]);

        used += (size_t)snprintf(dst + used, n - used, "%s%s", i ? ", " : "",
                                 i < n_types ? types[i] : mixes[i - n_types].name);
    }
    return dst;
}

/* ---- choices
 * ---------------------------------------------------------------------------------------------------- */

/* In place of a format whose blocks do not fit the rows. */
static enum mdl_type next_best(enum mdl_type type)
{
    switch (type) {
    case MDL_Q2_K:
    case MDL_Q3_K:
        return MDL_Q4_0;
    case MDL_Q4_K:
        return MDL_Q5_0;
    case MDL_Q5_K:
        return MDL_Q5_1;
    case MDL_Q6_K:
        return MDL_Q8_0;
    default:
        return MDL_F16;
    }
}

static bool fits(enum mdl_type type, uint64_t cols)
{
    return cols % mdl_type_find((uint32_t)type)->block_elems == 0;
}

/* The first and the last eighth of the layers, and every third between. */
static bool wants_more(uint32_t layer, uint32_t n)
{
    return layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
}

/* Values: they weigh more than their size. */
static enum mdl_type of_values(const struct mdl_recipe *r, const struct mdl_recipe_model *m, uint32_t layer)
{
    if (m->n_experts == 8)
        return MDL_Q8_0;
    if (r->type == MDL_Q3_K && r->mix == MDL_MIX_M)
        return layer < 2 ? MDL_Q5_K : MDL_Q4_K;
    if (r->type == MDL_Q3_K && r->mix == MDL_MIX_L)
        return MDL_Q5_K;
    if (r->type != MDL_Q3_K && r->mix == MDL_MIX_M && wants_more(layer, m->n_layers))
        return MDL_Q6_K;
    if (r->type == MDL_Q4_K && r->mix == MDL_MIX_S && layer < 4)
        return MDL_Q5_K;
    return r->type;
}

static enum mdl_type of_down(const struct mdl_recipe *r, const struct mdl_recipe_model *m, uint32_t layer)
{
    if (r->type == MDL_Q3_K && r->mix == MDL_MIX_M)
        return layer < m->n_layers / 16 ? MDL_Q5_K : MDL_Q4_K;
    if (r->type == MDL_Q3_K && r->mix == MDL_MIX_L)
        return MDL_Q5_K;
    if (r->type != MDL_Q3_K && r->mix == MDL_MIX_M && wants_more(layer, m->n_layers))
        return MDL_Q6_K;
    if (r->type == MDL_Q4_K && r->mix == MDL_MIX_S && layer < m->n_layers / 8)
        return MDL_Q5_K;
    return r->type;
}

static enum mdl_type of_attention_output(const struct mdl_recipe *r, const struct mdl_recipe_model *m)
{
    if (m->n_experts == 8)
        return r->type == MDL_Q4_K || (r->type == MDL_Q3_K && r->mix != MDL_MIX_L) ? MDL_Q5_K : r->type;
    if (r->type == MDL_Q3_K && r->mix == MDL_MIX_M)
        return MDL_Q4_K;
    if (r->type == MDL_Q3_K && r->mix == MDL_MIX_L)
        return MDL_Q5_K;
    return r->type;
}

static enum mdl_type mixed(const struct mdl_recipe *r, const struct mdl_recipe_model *m, const char *tensor,
                           uint64_t cols)
{
    uint32_t layer = 0;

    if (!strcmp(tensor, "output.weight") || (m->tied && !strcmp(tensor, "token_embd.weight")))
        return fits(r->type, cols) ? MDL_Q6_K : MDL_Q8_0;
    if (sscanf(tensor, "blk.%u.", &layer) != 1)
        return r->type;
    if (strstr(tensor, ".attn_v."))
        return of_values(r, m, layer);
    if (strstr(tensor, ".attn_k."))
        return m->n_experts == 8 ? MDL_Q8_0 : r->type;
    if (strstr(tensor, ".attn_output."))
        return of_attention_output(r, m);
    return strstr(tensor, ".ffn_down") ? of_down(r, m, layer) : r->type;
}

enum mdl_type mdl_recipe_wish(const struct mdl_recipe *r, const struct mdl_recipe_model *m,
                              const char *tensor, uint64_t cols)
{
    if (strstr(tensor, "_exps.") ? r->has_experts : r->has_dense)
        return strstr(tensor, "_exps.") ? r->experts : r->dense;
    return r->mix != MDL_MIX_NONE ? mixed(r, m, tensor, cols) : r->type;
}

enum mdl_type mdl_recipe_type(const struct mdl_recipe *r, const struct mdl_recipe_model *m,
                              const char *tensor, uint64_t cols)
{
    enum mdl_type type = mdl_recipe_wish(r, m, tensor, cols);

    while (!fits(type, cols))
        type = next_best(type);
    return type;
}
