/* Chooses K_USED of the allowed experts for each token from the router's logits: lib/route.glsl.
 * Grid: (1, n_tokens). f32 sums. Test: test_kernels_step. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_ROUTER(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_layer p; };

/* [t][N_EXPERTS], bits */
layout(std430, set = 0, binding = 0) readonly restrict buffer Logits { uint data[]; } logits;
/* [layer][words] */
layout(std430, set = 0, binding = 1) readonly restrict buffer Allowed { uint data[]; } allowed;
layout(std430, set = 0, binding = 2) writeonly restrict buffer Sel { uint data[]; } sel;

#define LOGIT_BITS(e) logits.data[gl_WorkGroupID.y * N_EXPERTS + e]
#define ALLOWED_WORD(i) allowed.data[p.layer * ((N_EXPERTS + 31u) / 32u) + i]
#include "lib/route.glsl"

void main()
{
    route();
    for (uint j = gl_LocalInvocationIndex; j < K_USED; j += WG) {
        uint at = (gl_WorkGroupID.y * K_USED + j) * 2u;
        sel.data[at] = ranked[j];
        sel.data[at + 1u] = floatBitsToUint(route_weight(j));
    }
}
