/* What a compiler without its GPU says of every kernel: registers, spills, scratch, shared memory,
 * instructions, latency. Run with VK_DRIVER_FILES naming the driver and RADV_FORCE_FAMILY the GPU
 * (tools/radv_table.sh does it for all and writes docs/DEVICES.md). Prints one table in Markdown; exit status
 * 1 when anything spills. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "gpu/commands.h"
#include "support/specs.h"

enum { VGPRS, SGPRS, SPILL_V, SPILL_S, SCRATCH, LDS, INSTRUCTIONS, LATENCY, COLUMNS };

static const char *const columns[COLUMNS] = {"VGPRs",        "SGPRs",    "Spilled VGPRs", "Spilled SGPRs",
                                             "Scratch size", "LDS size", "Instructions",  "Latency"};

static enum vkmoe_status measure(struct gpu_device *dev, const struct specs_case *c, double *row,
                                 struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_pipeline_stat stats[64];
    struct gpu_pipeline *p;
    uint32_t n;

    TRY(gpu_pipeline_get(&p, dev, c->kernel, c->spec, c->n_spec * sizeof(uint32_t), c->n_segs, err));
    TRY(gpu_pipeline_stats(dev, p, stats, COR_COUNT(stats), &n, err));
    for (int i = 0; i < COLUMNS; i++) {
        row[i] = -1;
        for (uint32_t k = 0; k < n; k++)
            if (!strcmp(stats[k].name, columns[i]))
                row[i] = stats[k].value;
        if (row[i] < 0)
            FAIL(VKMOE_ERR_UNSUPPORTED, "the driver gives no \"%s\"", columns[i]);
    }
done:
    return st;
}

static void print_row(const struct specs_case *c, const double *row)
{
    printf("| %s%s%s | %s |", gpu_kernel_info(c->kernel)->name, c->use[0] ? ", " : "", c->use, c->format);
    printf(" %.0f | %.0f | %.0f / %.0f | %.0f | %.0f | %.0f | %.0f |\n", row[VGPRS], row[SGPRS], row[SPILL_V],
           row[SPILL_S], row[SCRATCH], row[LDS], row[INSTRUCTIONS], row[LATENCY]);
}

static enum vkmoe_status table(struct gpu_device *dev, uint32_t *n_spilled, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const uint32_t n = specs_list(NULL, 0);
    struct specs_case *cases = cor_array(n, sizeof(*cases));

    if (!cases)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %u cases", n);
    specs_list(cases, n);
    printf("### %s (%s)\n\n", gpu_device_info(dev)->name, gpu_device_info(dev)->driver_version);
    printf("| kernel | format | VGPRs | SGPRs | spilled V / S | scratch | LDS bytes | instructions | latency "
           "|\n");
    printf("|---|---|--:|--:|--:|--:|--:|--:|--:|\n");
    for (uint32_t i = 0; i < n; i++) {
        double row[COLUMNS];

        TRY(measure(dev, &cases[i], row, err));
        const bool spills = row[SPILL_V] > 0 || row[SPILL_S] > 0 || row[SCRATCH] > 0;

        *n_spilled += spills;
        if ((cases[i].shape == SPECS_EMO && !cases[i].use[0]) || spills)
            print_row(&cases[i], row);
    }
    printf("\n%u pipelines of both models, %u with spills or scratch.\n\n", n, *n_spilled);
done:
    cor_free(cases);
    return st;
}

int main(void)
{
    const struct gpu_device_params dp = {.compile_only = true, .exec_props = true, .skip_barrier = -1};
    struct gpu_instance *inst = NULL;
    struct gpu_device *dev = NULL;
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    uint32_t n_spilled = 0;

    TRY(gpu_instance_open(&inst, NULL, &err));
    TRY(gpu_device_open(&dev, inst, 0, &dp, &err));
    TRY(table(dev, &n_spilled, &err));
done:
    if (st != VKMOE_OK)
        fprintf(stderr, "radv_table: %s\n", err.message);
    gpu_device_close(dev);
    gpu_instance_close(inst);
    return st != VKMOE_OK || n_spilled ? EXIT_FAILURE : EXIT_SUCCESS;
}
