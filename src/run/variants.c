#include "run/variants.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/kernels.h"

#define ROWS_MAX    8u
#define TILE_WG     128u /* tiles in shared memory have no other size */
#define FEW_ROWS    4u   /* matrix rows per workgroup of kernels for few tokens */
#define MATVEC_UNIT 8u   /* elements that one lane takes at a time */
#define TEXEL_UNIT  256u /* elements that one lane keeps */
#define DOT_BLOCK   32u  /* elements of a block of quantised inputs */
#define DOT_BLOCKS  8u   /* of them that one lane keeps in registers */
#define DOT_LANES   128u /* a workgroup of the base */

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
    {"texels", offsetof(struct run_variants, texels), NULL, 0},
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
    bool on_lanes = caps->rows_on_lanes && caps->subgroup_size <= 8;

    *v = (struct run_variants){
        .core = on_lanes         ? RUN_CORE_LANES
                : caps->subgroup ? RUN_CORE_SUBGROUP
                                 : RUN_CORE_SHARED,
        .rows = narrow ? 8 : 4,
        .tile = on_lanes ? RUN_TILE_LANES : RUN_TILE_SHARED,
        .lanes = narrow ? 32 : 128,
        .texels = on_lanes && caps->texels,
    };
}

bool run_variants_usable(const struct run_variants *v, const struct gpu_caps *caps)
{
    return v->core < RUN_CORES && v->tile < RUN_TILES && v->rows >= 1 && v->rows <= ROWS_MAX &&
           v->lanes >= 1 && v->lanes <= caps->max_wg && v->texels <= 1 && (!v->texels || caps->texels) &&
           (v->core != RUN_CORE_SUBGROUP || caps->subgroup) &&
           ((v->core != RUN_CORE_LANES && v->tile != RUN_TILE_LANES) ||
            (caps->rows_on_lanes && caps->subgroup_size <= RUN_NARROW)); /* GPUs would spill registers */
}

void run_variants_suit(struct run_variants *v, const struct gpu_caps *caps, enum mdl_type type)
{
    if (gpu_format_plain(type))
        return;
    v->texels = 0;
    if (v->core == RUN_CORE_LANES)
        v->core = caps->subgroup ? RUN_CORE_SUBGROUP : RUN_CORE_SHARED;
    v->tile = RUN_TILE_SHARED;
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
                "lanes=N, texels=0|1",
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
    snprintf(dst, n, "core=%s,rows=%u,tile=%s,lanes=%u,texels=%u", cores[v->core], v->rows, tiles[v->tile],
             v->lanes, v->texels);
    return dst;
}

/* ---- how work is cut
 * -------------------------------------------------------------------------------------------- */

uint32_t run_few_lanes(const struct gpu_caps *caps)
{
    return caps->subgroup_size <= RUN_NARROW ? 8 : 32;
}

uint32_t run_core_rows(enum run_core core, const struct run_variants *v, const struct gpu_caps *caps)
{
    return core == RUN_CORE_LANES ? 4 * caps->subgroup_size : v->rows;
}

/* One subgroup; without one as many lanes as a row has units, within 128, on narrow devices 8. */
uint32_t run_core_lanes(enum run_core core, const struct gpu_caps *caps, uint32_t k)
{
    uint32_t wg = run_few_lanes(caps), most = wg == 8 ? 8 : 128;

    if (core != RUN_CORE_SHARED)
        return caps->subgroup_size;
    while (wg < most && wg * MATVEC_UNIT < k)
        wg *= 2;
    return wg;
}

bool run_texels_fit(const struct gpu_caps *caps, enum mdl_type t, uint32_t k, uint64_t row_bytes, uint64_t at,
                    uint64_t bytes)
{
    return (t == MDL_Q8_0 || t == MDL_Q4_0) && k % TEXEL_UNIT == 0 && row_bytes % GPU_TEXEL_BYTES == 0 &&
           at % caps->texel_align == 0 && bytes / GPU_TEXEL_BYTES <= caps->max_texels;
}

uint32_t run_tile_rows(enum run_tile tile, const struct gpu_caps *caps)
{
    return tile == RUN_TILE_LANES ? 8 * caps->subgroup_size : tile == RUN_TILE_FEW ? FEW_ROWS : TILE_ROWS;
}

uint32_t run_tile_lanes(enum run_tile tile, enum run_core core, const struct gpu_caps *caps, uint32_t k)
{
    return tile == RUN_TILE_LANES ? caps->subgroup_size
           : tile == RUN_TILE_FEW ? run_core_lanes(core, caps, k)
                                  : TILE_WG;
}

uint32_t run_alignment(enum mdl_type t, uint64_t row_bytes, uint64_t at, uint64_t stride)
{
    const struct mdl_type_info *info = mdl_type_find(t);
    const uint64_t all = row_bytes | at | stride, pair = 2u * info->block_bytes;

    if (info->block_elems == 1)
        return all % 16 == 0 ? 2 : all % 4 == 0;
    if (info->block_bytes % 4 == 2)
        return row_bytes % pair == 0 && at % pair == 0 && stride % pair == 0 ? 3 : 0;
    return all % 4 == 0;
}

uint64_t run_dot_row_bytes(uint32_t k)
{
    return (uint64_t)((k / DOT_BLOCK * 10 + 3) & ~3u) * 4 + (k < DOT_BLOCK ? 16 : 0);
}

bool run_dot_fits(enum mdl_type t, uint32_t k)
{
    return (t == MDL_Q8_0 || t == MDL_Q4_0) && k % DOT_BLOCK == 0 && k / DOT_BLOCK <= DOT_LANES * DOT_BLOCKS;
}

static uint32_t most(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static uint32_t power_of_two(uint32_t n)
{
    uint32_t p = 1;

    while (p < n)
        p *= 2;
    return p;
}

/* Narrow devices pay for loads: eight blocks for each lane, loaded in fours of words, and many matrix rows
 * for inputs that were loaded once. Others read along rows. Four tokens fill a vector of sums. */
struct run_dot_cut run_dot_cut(const struct gpu_caps *caps, uint32_t k, bool aligned, bool many)
{
    const bool narrow = caps->subgroup_size <= RUN_NARROW;
    const uint32_t n = k / DOT_BLOCK;
    struct run_dot_cut c = {.wg = caps->subgroup ? caps->subgroup_size
                                  : narrow       ? 8
                                                 : 32,
                            .tokens = many ? 4 : 1};

    if (caps->subgroup_size > DOT_LANES)
        c.wg = DOT_LANES;
    c.wide = narrow && aligned && n % DOT_BLOCKS == 0;
    while (c.wg < DOT_LANES && (c.wg * DOT_BLOCKS < n || c.wg < c.tokens))
        c.wg *= 2;
    c.lanes = power_of_two(c.wide ? n / DOT_BLOCKS : n);
    c.lanes = most(c.lanes, most(c.tokens, c.wg / 4)); /* at most four teams, each lane one result */
    if (c.lanes > c.wg)
        c.lanes = c.wg;
    c.blocks = c.wide ? DOT_BLOCKS : (n + c.lanes - 1) / c.lanes;
    c.rows = narrow ? many ? 64 : 32 : many ? 32 : most(4, 2 * (c.wg / c.lanes));
    return c;
}
