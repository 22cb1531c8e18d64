#include "run/variants.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_MAX 8u

static const char *const cores[RUN_CORES] = {"shared", "subgroup", "lanes"};
static const char *const tiles[RUN_TILES] = {"shared", "lanes"};

static const struct field {
    const char *name;
    size_t at;
    const char *const *words; /* of its values; NULL: a number */
    uint32_t n_words;
} fields[] = {
    {"core", offsetof(struct run_variants, core), cores, RUN_CORES},
    {"rows", offsetof(struct run_variants, rows), NULL, 0},
    {"tile", offsetof(struct run_variants, tile), tiles, RUN_TILES},
    {"lanes", offsetof(struct run_variants, lanes), NULL, 0},
};

#define RUN_X(field, ...) +1
_Static_assert(COR_COUNT(fields) == 0 RUN_VARIANT_LIST(RUN_X), "a variant without a name");
#undef RUN_X

static uint32_t *value_of(struct run_variants *v, const struct field *f)
{
    return (uint32_t *)(void *)((char *)v + f->at);
}

/* Narrow devices (software drivers, small phone GPUs) run lanes one after the other: fewer lanes with more
 * work each pay there, and above all fewer loads (docs/SPEED.md). Rows on lanes are for those
 * with eight; GPUs with more read memory along rows better, and with four the gain is half and compilers take
 * long. */
void run_variants_default(struct run_variants *v, const struct gpu_caps *caps)
{
    bool narrow = caps->subgroup_size <= RUN_NARROW;
    bool on_lanes = caps->broadcast && caps->subgroup_size <= 8;

    *v = (struct run_variants){
        .core = on_lanes         ? RUN_CORE_LANES
                : caps->subgroup ? RUN_CORE_SUBGROUP
                                 : RUN_CORE_SHARED,
        .rows = narrow ? 8 : 4,
        .tile = on_lanes ? RUN_TILE_LANES : RUN_TILE_SHARED,
        .lanes = narrow ? 32 : 128,
    };
}

bool run_variants_usable(const struct run_variants *v, const struct gpu_caps *caps)
{
    return v->core < RUN_CORES && v->tile < RUN_TILES && v->rows >= 1 && v->rows <= ROWS_MAX &&
           v->lanes >= 1 && v->lanes <= caps->max_wg && (v->core != RUN_CORE_SUBGROUP || caps->subgroup) &&
           ((v->core != RUN_CORE_LANES && v->tile != RUN_TILE_LANES) ||
            (caps->broadcast && caps->subgroup_size <= RUN_NARROW)); /* GPUs would spill registers */
}

static bool parse_value(const struct field *f, const char *text, size_t n, uint32_t *value)
{
    char number[12] = "", *end;

    for (uint32_t i = 0; i < f->n_words; i++)
        if (strlen(f->words[i]) == n && !memcmp(f->words[i], text, n)) {
            *value = i;
            return true;
        }
    if (f->words || !n || n >= sizeof(number) || text[0] < '0' || text[0] > '9')
        return false;
    memcpy(number, text, n);
    *value = (uint32_t)strtoul(number, &end, 10);
    return !*end;
}

enum vkmoe_status run_variants_parse(struct run_variants *v, const char *list, const struct gpu_caps *caps,
                                     struct vkmoe_err *err)
{
    struct run_variants out = *v;

    for (const char *p = list; *p;) {
        size_t n = strcspn(p, ","), name = strcspn(p, "=,");
        const struct field *f = NULL;

        for (size_t i = 0; i < COR_COUNT(fields); i++)
            if (strlen(fields[i].name) == name && !memcmp(fields[i].name, p, name))
                f = &fields[i];
        if (!f || p[name] != '=' || !parse_value(f, p + name + 1, n - name - 1, value_of(&out, f)))
            return cor_fail(
                err, VKMOE_ERR_ARGUMENT,
                "variants: '%.*s' is none of core=shared|subgroup|lanes, rows=N, tile=shared|lanes, "
                "lanes=N",
                (int)n, p);
        p += n;
        p += *p == ',';
    }
    if (!run_variants_usable(&out, caps))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "variants: the device cannot '%s'", list);
    *v = out;
    return VKMOE_OK;
}

char *run_variants_text(const struct run_variants *v, char *dst, size_t n)
{
    snprintf(dst, n, "core=%s,rows=%u,tile=%s,lanes=%u", cores[v->core], v->rows, tiles[v->tile], v->lanes);
    return dst;
}
