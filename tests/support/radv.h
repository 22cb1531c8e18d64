/* What AMD's compiler (RADV without a GPU) makes of a kernel: statistics, and the loop over a row in its
 * disassembly. One measurement is one line of bench/amd-baseline.csv. */
#ifndef TEST_RADV_H
#define TEST_RADV_H

#include "gpu/commands.h"
#include "support/specs.h"

enum radv_stat {
    RADV_VGPRS,
    RADV_SGPRS,
    RADV_WAVES, /* subgroups per SIMD */
    RADV_LDS,
    RADV_INSTRUCTIONS,
    RADV_LATENCY,
    RADV_THROUGHPUT, /* inverse: cycles */
    RADV_CODE,
    RADV_SPILL_V,
    RADV_SPILL_S,
    RADV_SCRATCH,
    RADV_STATS
};

/* Instructions of one round of the loop over a row: its innermost loop, and what stands round that in the
 * loop that stages tiles for it. */
struct radv_loop {
    uint32_t all, valu, scalar, memory, lds; /* waits and branches are in `all` only */
    uint32_t fma;                            /* multiplications and multiply-adds among valu */
};

struct radv_row {
    double stats[RADV_STATS];
    struct radv_loop loop; /* zeros: not a mat-vec or mat-mul, or no loop is left */
    uint32_t weights;      /* that one lane multiplies in a round, each counted once per token; 0: as above */
    double per_weight;     /* loop.all / weights */
};

#define RADV_CSV_HEAD                                                                      \
    "gpu,kernel,use,format,vgprs,sgprs,subgroups_per_simd,lds_bytes,instructions,latency," \
    "inverse_throughput,code_bytes,loop,loop_valu,loop_scalar,loop_memory,loop_lds,weights,per_weight"

/* Needs a device opened with exec_props. Errors: VKMOE_ERR_UNSUPPORTED when a statistic is absent or when the
 * loop does not fit what the kernel's case says of it. */
enum vkmoe_status radv_measure(struct gpu_device *dev, const struct specs_case *c, struct radv_row *row,
                               struct vkmoe_err *err);
bool radv_spills(const struct radv_row *row);
/* "NAVI21" of "Null hardware (RADV NAVI21)". */
void radv_family(const struct gpu_device *dev, char *family, size_t size);
/* A line of the file without newline; up to and with the fourth comma it names the case. */
void radv_csv_line(char *line, size_t size, const char *family, const struct specs_case *c,
                   const struct radv_row *row);

#endif
