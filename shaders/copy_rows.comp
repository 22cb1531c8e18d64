/* Copies one row of DIM words per token: dst[dst_row0 + t'] = src[t''], where t' and t'' are the token's row
 * in the chunk, plus the chunk's position with TO_POS and FROM_POS. Bits, not numbers.
 * Grid: (ceil(DIM / WG), n_tokens). Test: test_kernels_step. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_COPY_ROWS(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_rows p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer Src { uint data[]; } src;
layout(std430, set = 0, binding = 2) writeonly restrict buffer Dst { uint data[]; } dst;

void main()
{
    uint t = gl_WorkGroupID.y;
    uint i = gl_GlobalInvocationID.x;
    uint pos = state.data[STEP_POS];
    uint from = t + (FROM_POS != 0u ? pos : 0u);
    uint to = t + p.dst_row0 + (TO_POS != 0u ? pos : 0u);

    if (i < DIM)
        dst.data[to * DIM + i] = src.data[from * DIM + i];
}
