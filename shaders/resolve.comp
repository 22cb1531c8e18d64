/* Looks up the slot of each expert that one token chose, and tells the host what was chosen. If an expert has
 * no slot, the token halts here: the mailbox names layer and absent experts, and all later dispatches are
 * emptied. In a partial step the experts that have one run, and what needs all of them is emptied.
 * Grid: one workgroup. Test: test_kernels_step. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_RESOLVE(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_resolve p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer Sel { uint data[]; } sel;
/* [layer][N_EXPERTS] */
layout(std430, set = 0, binding = 2) readonly restrict buffer Table { uint data[]; } table;
/* [K_USED]: slot that the expert kernels run for each rank, NONE: nothing */
layout(std430, set = 0, binding = 3) writeonly restrict buffer Ranks { uint data[]; } ranks;
layout(std430, set = 0, binding = 4) writeonly restrict buffer Mail { uint data[]; } mail;
layout(std430, set = 0, binding = 5) writeonly restrict buffer Args { uint data[]; } args;
layout(std430, set = 0, binding = 6) writeonly restrict buffer Routes { uint data[]; } routes;

#include "lib/resolve.glsl"

void main()
{
    missing_clear();
    barrier();
    for (uint j = gl_LocalInvocationIndex; j < K_USED; j += WG) {
        uint expert = sel.data[2u * j];
        ranks.data[j] = expert == NONE ? NONE : slot_to_run(expert);
    }
    tell_routes(K_USED);
    barrier();
    uint n = missing_count();
    if (state.data[STEP_PARTIAL] != 0u)
        stop_at(p.after);
    else if (n != 0u)
        halt(n);
}
