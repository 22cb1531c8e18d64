/* What AMD's compiler without its GPU says of every kernel, one line of bench/amd-baseline.csv each. Run with
 * VK_DRIVER_FILES naming the driver and RADV_FORCE_FAMILY the GPU; tools/radv_table.sh does it for all GPUs.
 * Exit status 1 when anything spills. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "support/radv.h"

static enum vkmoe_status table(struct gpu_device *dev, uint32_t *n_spilled, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const uint32_t n = specs_list(NULL, 0);
    struct specs_case *cases = cor_array(n, sizeof(*cases));
    char family[64], line[512];

    if (!cases)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %u cases", n);
    specs_list(cases, n);
    radv_family(dev, family, sizeof(family));
    for (uint32_t i = 0; i < n; i++) {
        struct radv_row row;

        if (!gpu_kernel_usable(dev, cases[i].kernel))
            continue;
        TRY(radv_measure(dev, &cases[i], &row, err));
        radv_csv_line(line, sizeof(line), family, &cases[i], &row);
        if (cases[i].shape == SPECS_EMO)
            puts(line);
        if (radv_spills(&row))
            fprintf(stderr, "radv_table: spills or scratch: %s\n", line);
        *n_spilled += radv_spills(&row);
    }
done:
    cor_free(cases);
    return st;
}

int main(int argc, char **argv)
{
    const struct gpu_device_params dp = {.compile_only = true, .exec_props = true, .skip_barrier = -1};
    struct gpu_instance *inst = NULL;
    struct gpu_device *dev = NULL;
    struct vkmoe_err err = {0};
    enum vkmoe_status st = VKMOE_OK;
    uint32_t n_spilled = 0;

    TRY(gpu_instance_open(&inst, NULL, &err));
    TRY(gpu_device_open(&dev, inst, 0, &dp, &err));
    if (argc > 1 && !strcmp(argv[1], "--head"))
        printf("# RADV of %s\n%s\n", gpu_device_info(dev)->driver_version, RADV_CSV_HEAD);
    else
        TRY(table(dev, &n_spilled, &err));
done:
    if (st != VKMOE_OK)
        fprintf(stderr, "radv_table: %s\n", err.message);
    gpu_device_close(dev);
    gpu_instance_close(inst);
    return st != VKMOE_OK || n_spilled ? EXIT_FAILURE : EXIT_SUCCESS;
}
