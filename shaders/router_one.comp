// variants: sg=USE_SUBGROUP ln=USE_LANES
/* The router of one token: logits of experts [out0, out0 + n_rows), dot(W[r], x), sums in f32. The workgroup
 * that finishes last of n_groups, which may belong to several dispatches that no barrier parts, chooses
 * (lib/route.glsl), looks up the slot of each expert chosen and tells the host what was chosen. If an expert
 * has no slot, the token halts here: the mailbox names layer and absent experts, and all later dispatches are
 * emptied. In a partial step the experts that have one run, and what needs all of them is emptied.
 * Grid: (x, 1, z): workgroup x + z * (size of x) takes ROWS experts. Test: test_kernels_step. */
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef USE_SUBGROUP
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#ifdef USE_LANES
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_EXT_scalar_block_layout : require
#endif
#include "shared/params.h"
#include "shared/step.h"

SPEC_ROUTER_ONE(SPEC_X)
layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { push_router p; };

layout(std430, set = 0, binding = 0) readonly buffer X { float data[]; } x;
layout(std430, set = 0, binding = 0) readonly buffer X4 { vec4 data[]; } x4;
layout(std430, set = 0, binding = 2) readonly restrict buffer State { uint data[]; } state;
/* [layer][N_EXPERTS] */
layout(std430, set = 0, binding = 3) readonly restrict buffer Table { uint data[]; } table;
/* CHOICE_* of shared/step.h */
layout(std430, set = 0, binding = 4) coherent buffer Choice { uint data[]; } choice;
layout(std430, set = 0, binding = 5) writeonly restrict buffer Mail { uint data[]; } mail;
layout(std430, set = 0, binding = 6) writeonly restrict buffer Args { uint data[]; } args;
layout(std430, set = 0, binding = 7) writeonly restrict buffer Routes { uint data[]; } routes;

#define LOAD_X(i) x.data[i]
#define LOAD_X4(i) x4.data[i]
#define X_ALIGNED true
#define WEIGHTS_BINDING 1
#include "lib/weights.glsl"
#include "lib/rows.glsl"
#define LAST_COUNTER(i) choice.data[CHOICE_COUNT]
#include "lib/last.glsl"
#define LOGIT_BITS(e) choice.data[CHOICE_LOGITS + e]
#define ALLOWED_WORD(i) choice.data[CHOICE_MASK + p.layer * ((N_EXPERTS + 31u) / 32u) + i]
#include "lib/route.glsl"
#include "lib/resolve.glsl"

/* Slots of the experts chosen, and which of them run now. */
void find_slots()
{
    uint route0 = p.layer * state.data[STEP_CHUNK] * K_USED * 2u;

    for (uint j = gl_LocalInvocationIndex; j < K_USED; j += WG) {
        uint expert = ranked[j];
        uint weight = floatBitsToUint(route_weight(j));
        choice.data[CHOICE_SLOTS + j] = expert == NONE ? NONE : table.data[p.layer * N_EXPERTS + expert];
        choice.data[CHOICE_RUN + j] = expert == NONE ? NONE : slot_to_run(expert);
        choice.data[CHOICE_SEL + 2u * j] = expert;
        choice.data[CHOICE_SEL + 2u * j + 1u] = weight;
        routes.data[route0 + 2u * j] = expert;
        routes.data[route0 + 2u * j + 1u] = weight;
    }
    if (gl_LocalInvocationIndex == 0u) { /* it ran with the first of the layer's experts */
        choice.data[CHOICE_SLOTS + K_USED] = SLOT_SHARED;
        choice.data[CHOICE_RUN + K_USED] = state.data[STEP_DONE_LAYER] == p.layer ? NONE : SLOT_SHARED;
    }
}

void main()
{
    uint row0 = (gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x) * ROWS;
    vec4 sums = rows_dot(FORMAT, 0u, ROW_BYTES, row0, p.n_rows, K, 0u);

    for (uint i = 0u; i < 4u; i++) {
        uint row = row0 + rows_row(i);
        if (!rows_has(i) || row >= p.n_rows)
            break;
        float logit = sums[i];
        if (BIAS_AT != 0u)
            logit += uintBitsToFloat(choice.data[BIAS_AT + p.layer * N_EXPERTS + p.out0 + row]);
        choice.data[CHOICE_LOGITS + p.out0 + row] = floatBitsToUint(logit);
    }
    if (!last_of(0u, p.n_groups))
        return;
    missing_clear();
    route();
    find_slots();
    barrier();
    uint n = missing_count();
    if (state.data[STEP_PARTIAL] != 0u)
        stop_at(p.after);
    else if (n != 0u)
        halt(n);
}
