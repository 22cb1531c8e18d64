/* What selftest and tune found out about a device with its driver and these kernels: one small text file in
 * the cache folder, ignored when any of the three has changed. Owns its format; what variants mean is in
 * run/variants.h. */
#ifndef RUN_TUNED_H
#define RUN_TUNED_H

#include "run/variants.h"

struct run_tuned {
    char off[96];       /* words of --caps for paths that the driver miscomputes, "" for none */
    char variants[192]; /* as run_variants_text writes them, "" for the defaults */
};

/* Reads the file of a device. No file, or one that is not for this device, driver and kernels, or damaged:
 * all empty, and a line in the log that says why. */
void run_tuned_read(struct run_tuned *t, const struct gpu_instance *inst, uint32_t index);

/* Replaces the file; removes it when there is nothing to keep. Without a cache folder nothing happens.
 *
 * Errors: those of writing. */
enum vkmoe_status run_tuned_write(const struct run_tuned *t, const struct gpu_instance *inst, uint32_t index,
                                  struct vkmoe_err *err);

/* Its name into path; false: there is no cache folder. */
bool run_tuned_path(char *path, size_t n, const struct gpu_instance *inst, uint32_t index);

/* The --caps list a device is opened with: the user's (NULL: none) and t->off behind it, into list. The
 * user's word -tuned leaves t->off out.
 *
 * Errors: VKMOE_ERR_ARGUMENT when it is too long. */
enum vkmoe_status run_tuned_caps(const struct run_tuned *t, const char *user, char *list, size_t n,
                                 struct vkmoe_err *err);

/* The variants of a device that was opened so: forced ones (NULL: none), else those of t where the user's
 * list is empty (any clamp makes another device), else the defaults. What t has and the device cannot is
 * logged and left out. *from: "forced", "tuned" or "default".
 *
 * Errors: VKMOE_ERR_ARGUMENT for forced ones. */
enum vkmoe_status run_tuned_variants(const struct run_tuned *t, const char *user, const char *forced,
                                     const struct gpu_device *dev, struct run_variants *v, const char **from,
                                     struct vkmoe_err *err);

/* gpu_instance_device_json with `variants` that models would run with when the device were opened without
 * --caps, `variants_from` ("tuned" or "default"), and `selftest_off`. cor_free by the caller. */
enum vkmoe_status run_tuned_json(const struct gpu_instance *inst, uint32_t index, char **json,
                                 struct vkmoe_err *err);

#endif
