// variants: *k=MORE_BLOCKS
/* x[t] = row token[t] of the embedding table, in f32. Rows [row0, row0 + n_rows) are bound; tokens of other
 * rows are left to the dispatch that binds theirs.
 * Grid: (ceil(DIM / (8 * WG)), n_tokens), eight elements per lane. Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_EMBED(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_embed p; };

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer W { uint data[]; } weights;
layout(std430, set = 0, binding = 2) writeonly restrict buffer X { float data[]; } x;

#define LOAD_WORD(i) weights.data[i]
#define LOAD_WORD4(i) uvec4(0u)
#define WORDS_ALIGNED false
#define WORDS_WIDE false
#define DEQUANT_EXACT
#include "lib/dequant.glsl"

void store4(uint at, uint n, vec4 v)
{
    if (n > 0u)
        x.data[at] = v.x;
    if (n > 1u)
        x.data[at + 1u] = v.y;
    if (n > 2u)
        x.data[at + 2u] = v.z;
    if (n > 3u)
        x.data[at + 3u] = v.w;
}

void main()
{
    uint t = gl_WorkGroupID.y;
    uint unit = gl_GlobalInvocationID.x;
    uint row = state.data[STEP_TOKENS + t] - p.row0; /* wraps below row0 */

    if (row >= p.n_rows || unit * 8u >= DIM)
        return;
    vec8 v = load8(FORMAT, p.w_off + row * ROW_BYTES, unit, DIM);
    uint at = t * DIM + unit * 8u;
    uint n = DIM - unit * 8u;
    store4(at, n, v.a);
    if (n > 4u)
        store4(at + 4u, n - 4u, v.b);
}
