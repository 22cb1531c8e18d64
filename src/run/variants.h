/* Which of several kernels for one thing a device uses, and how they are cut. All compute the same. Defaults
 * come from the device's limits and subgroup size; `vkmoe tune` measures. */
#ifndef RUN_VARIANTS_H
#define RUN_VARIANTS_H

#include "gpu/device.h"
#include "model/quant.h"

/* How a workgroup shares out the rows of a matrix times one vector. */
enum run_core {
    RUN_CORE_SHARED,   /* lanes along a row, sums in shared memory: every device */
    RUN_CORE_SUBGROUP, /* one subgroup along a row */
    RUN_CORE_LANES,    /* a subgroup, four rows on each lane: where loads are dear (shaders/lib/lanes.glsl) */
    RUN_CORES
};

/* The same for a matrix times many vectors. */
enum run_tile {
    RUN_TILE_SHARED, /* 64 rows x 32 vectors staged in shared memory */
    RUN_TILE_LANES,  /* a subgroup with eight rows x four vectors on each lane */
    RUN_TILES,
    RUN_TILE_FEW = RUN_TILES /* mat-vec of two to RUN_FEW vectors, for short chunks in place of the first */
};

#define RUN_FEW 8u

/* X(field, default for wide and for narrow devices are in variants.c; values worth measuring) */
#define RUN_VARIANT_LIST(X)                                                    \
    X(core, {RUN_CORE_SHARED, RUN_CORE_SUBGROUP, RUN_CORE_LANES})              \
    X(rows, {2, 4, 8}) /* matrix rows per workgroup of the first two cores */  \
    X(tile, {RUN_TILE_SHARED, RUN_TILE_LANES})                                 \
    X(lanes, {32, 64, 128, 256}) /* workgroup of kernels that take any size */ \
    X(texels, {0, 1})            /* 1: with core lanes, dense matrices of blocks times one vector by texels */

struct run_variants {
#define RUN_X(field, ...) uint32_t field;
    RUN_VARIANT_LIST(RUN_X)
#undef RUN_X
};

#define RUN_NARROW 16u /* subgroups up to this size: lanes that run one after the other or nearly so */

void run_variants_default(struct run_variants *v, const struct gpu_caps *caps);
/* Rows on lanes know few formats: takes another core and another tile for the others. */
void run_variants_suit(struct run_variants *v, const struct gpu_caps *caps, enum mdl_type type);
/* False: the device lacks what they need, or a value is none that kernels take. */
bool run_variants_usable(const struct run_variants *v, const struct gpu_caps *caps);
/* Changes v by "core=lanes,rows=4": names of cores and tiles (shared, subgroup, lanes) or numbers.
 *
 * Errors: VKMOE_ERR_ARGUMENT names the word that is unknown, or that the device cannot. */
enum vkmoe_status run_variants_parse(struct run_variants *v, const char *list, const struct gpu_caps *caps,
                                     struct vkmoe_err *err);
/* The same text of all fields; returns dst. */
char *run_variants_text(const struct run_variants *v, char *dst, size_t n);

/* ---- how work is cut into workgroups: for the pass, measurements and tests alike */

/* Lanes where more would idle: devices whose lanes run one after the other take fewer. */
uint32_t run_few_lanes(const struct gpu_caps *caps);
/* Matrix rows and lanes per workgroup of mat-vec kernels with this core; k: row length. */
uint32_t run_core_rows(enum run_core core, const struct run_variants *v, const struct gpu_caps *caps);
uint32_t run_core_lanes(enum run_core core, const struct gpu_caps *caps, uint32_t k);
/* Rows that kernels by texels take (shaders/lib/texels.glsl): k elements in row_bytes bytes each, in all
 * `bytes` from byte `at` of a buffer on. Their workgroups are those of rows on lanes, of RUN_TEXEL_ROWS
 * matrix rows each. */
bool run_texels_fit(const struct gpu_caps *caps, enum mdl_type t, uint32_t k, uint64_t row_bytes, uint64_t at,
                    uint64_t bytes);
#define RUN_TEXEL_ROWS 64u
/* The same of kernels for many vectors. core: of RUN_TILE_FEW. */
uint32_t run_tile_rows(enum run_tile tile, const struct gpu_caps *caps);
uint32_t run_tile_lanes(enum run_tile tile, enum run_core core, const struct gpu_caps *caps, uint32_t k);
/* The same of kernels that take quantised inputs, of spec_mat_dot and spec_expert_dot. aligned: all
 * matrix rows start on a 16-byte boundary; many: more than one token. */
struct run_dot_cut {
    uint32_t wg, rows, lanes, blocks, tokens;
    bool wide;
};

/* Bytes of a quantised row of k elements (shaders/lib/dot8.glsl); never 0. */
uint64_t run_dot_row_bytes(uint32_t k);
bool run_dot_fits(enum mdl_type t, uint32_t k); /* rows that these kernels take */
struct run_dot_cut run_dot_cut(const struct gpu_caps *caps, uint32_t k, bool aligned, bool many);
/* `aligned` of shared/params.h for matrices of rows of row_bytes bytes that start at at + i stride. */
uint32_t run_alignment(enum mdl_type t, uint64_t row_bytes, uint64_t at, uint64_t stride);

#endif
