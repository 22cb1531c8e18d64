/* First kernel of every submit: takes the host's step to the device.
 * Copies head and tokens to the state, applies the slot changes (distinct indices) to the slot table, expands
 * the argument template into the arguments of this submit, and clears the mailbox.
 * Grid: one workgroup. Test: test_kernels_step. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_PUBLISH(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer Step { uint data[]; } st;
layout(std430, set = 0, binding = 1) readonly restrict buffer Template { uint data[]; } tmpl;
layout(std430, set = 0, binding = 2) writeonly restrict buffer Args { uint data[]; } args;
layout(std430, set = 0, binding = 3) writeonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 4) writeonly restrict buffer Table { uint data[]; } table;
layout(std430, set = 0, binding = 5) writeonly restrict buffer Mail { uint data[]; } mail;

uint groups(uint mode, uint a, uint n_tokens, uint n_rows, uint n_context)
{
    uint n = mode == DIM_ROWS ? n_rows : mode == DIM_CONTEXT ? n_context : n_tokens;

    if (mode == DIM_FIXED)
        return a;
    return mode == DIM_DEVICE ? 0u : (n + a - 1u) / a;
}

void main()
{
    uint lane = gl_LocalInvocationIndex;
    uint n_tokens = st.data[STEP_N_TOKENS], n_rows = st.data[STEP_N_ROWS];
    uint n_context = st.data[STEP_POS] + n_tokens;
    uint n_state = STEP_TOKENS + n_tokens;
    uint n_changes = st.data[STEP_N_CHANGES];
    uint changes = STEP_TOKENS + st.data[STEP_CHUNK];
    uint n_args = tmpl.data[0] * 3u;
    uint first = st.data[STEP_FIRST] * 3u;

    for (uint i = lane; i < n_state; i += WG)
        state.data[i] = st.data[i];
    for (uint i = lane; i < n_changes; i += WG) {
        uint at = st.data[changes + 2u * i];
        if (at < table.data.length())
            table.data[at] = st.data[changes + 2u * i + 1u];
    }
    for (uint i = lane; i < n_args; i += WG) {
        uint entry = TMPL_HEAD + 2u * i;
        uint n = 0u;
        if (i >= first)
            n = groups(tmpl.data[entry], tmpl.data[entry + 1u], n_tokens, n_rows, n_context);
        args.data[i] = n;
    }
    if (lane == 0u) {
        mail.data[MAIL_LAYER] = NONE;
        mail.data[MAIL_N_MISSING] = 0u;
    }
    for (uint i = lane; i < MAX_EXPERTS / 32; i += WG)
        mail.data[MAIL_MISSING + i] = 0u;
}
