// variants: sg=USE_SUBGROUP
/* y[r] = rmsnorm(x[r']) * w, sum in f32; r' = r, or STEP_ROW0 + r with FROM_ROW0.
 * Grid: (1, rows), one workgroup per row. Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#include "shared/params.h"
#include "shared/step.h"

SPEC_RMSNORM(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer X { float data[]; } x;
layout(std430, set = 0, binding = 2) readonly restrict buffer W { float data[]; } w;
layout(std430, set = 0, binding = 3) writeonly restrict buffer Y { float data[]; } y;

uint in0, out0; /* where the rows start */
#define NORM_IN(i) x.data[in0 + i]
#define NORM_W(i) w.data[i]
#define NORM_OUT(i) y.data[out0 + i]
#include "lib/norm.glsl"

void main()
{
    uint row = gl_WorkGroupID.y;

    out0 = row * DIM;
    in0 = (FROM_ROW0 != 0u ? row + state.data[STEP_ROW0] : row) * DIM;
    norm_row();
}
