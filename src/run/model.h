/* A model on a device: file, dense weights, expert pool. Sessions share it; one submit is in flight at a
 * time. */
#ifndef RUN_MODEL_H
#define RUN_MODEL_H

#include "run/pool.h"

struct run_model {
    struct gpu_device *dev;
    struct mdl_model *mdl;
    struct run_weights weights;
    struct run_pool pool;
};

/* lazy: experts are loaded when a token first asks for them. */
enum vkmoe_status run_model_open(struct run_model **out, struct gpu_device *dev, const char *path, bool lazy,
                                 struct run_progress *progress, struct vkmoe_err *err);
void run_model_close(struct run_model *m);

#endif
