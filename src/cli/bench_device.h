/* Options of the commands that measure and check a device without a model. */
#ifndef CLI_BENCH_DEVICE_H
#define CLI_BENCH_DEVICE_H

#include "bench/device.h"
#include "cli/cli.h"

/* Rows for a struct cli_opt table; p: struct bench_device_params. */
/* clang-format off */
#define CLI_BENCH_DEVICE_OPTS(p)                                                                             \
    {"-dev|--device", CLI_STR, &(p).device, "NAME",                                                          \
     "index or part of a name (default: the best one)", 0, 0},                                               \
    {"--caps", CLI_STR, &(p).caps, "LIST", "use less of the device than it has (docs/DEVICES.md)", 0, 0},    \
    {"--shader-dir", CLI_STR, &(p).shader_dir, "DIR", "kernels from DIR/KERNEL.spv where it exists", 0, 0},  \
    {"--validation", CLI_FLAG, &(p).validation, NULL, "run under the Vulkan validation layer", 0, 0}
/* clang-format on */

#endif
