/* Looks up the slot of each expert that one token chose. If one has none, the token halts here: the mailbox
 * names layer and absent experts, and all later dispatches are emptied.
 * Grid: one workgroup. Test: test_kernels_step. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_RESOLVE(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_resolve p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer Sel { uint data[]; } sel;
/* [layer][N_EXPERTS] */
layout(std430, set = 0, binding = 1) readonly restrict buffer Table { uint data[]; } table;
layout(std430, set = 0, binding = 2) writeonly restrict buffer Mail { uint data[]; } mail;
layout(std430, set = 0, binding = 3) writeonly restrict buffer Args { uint data[]; } args;

#include "lib/resolve.glsl"

void main()
{
    missing_clear();
    barrier();
    for (uint j = gl_LocalInvocationIndex; j < K_USED; j += WG) {
        uint expert = sel.data[2u * j];
        if (expert != NONE && table.data[p.layer * N_EXPERTS + expert] == NONE)
            missing_add(expert);
    }
    barrier();
    uint n = missing_count();
    if (n != 0u)
        halt(p.layer, p.next, n);
}
