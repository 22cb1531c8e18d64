/* The K best of a row of logits as pairs (index, bits), best first; equals by the lower index, pairs behind
 * the last finite one NONE. Counts values that are not finite; they are never chosen.
 * Grid: MERGE 0: workgroup i takes logits [i * TOPK_SLICE, + TOPK_SLICE); MERGE 1: one workgroup takes what N
 * others found. Each writes TOPK_WORDS(K) words of its own. Test: test_kernels_dense. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_TOPK(SPEC_X)
layout(local_size_x_id = 0) in;

/* bits of N floats, or N results of workgroups */
layout(std430, set = 0, binding = 0) readonly restrict buffer From { uint data[]; } from;
layout(std430, set = 0, binding = 1) writeonly restrict buffer To { uint data[]; } to;

#include "lib/math.glsl"

shared uint keys[WG], indices[WG];
shared uint n_bad;

/* Entry e of this workgroup: its index, and where its bits stand. */
uint first_of_group()
{
    return MERGE != 0u ? 0u : gl_WorkGroupID.x * TOPK_SLICE;
}

uint place(uint e)
{
    return MERGE != 0u ? e / K * TOPK_WORDS(K) + e % K * 2u + 1u : first_of_group() + e;
}

uint index_of(uint e)
{
    return MERGE != 0u ? from.data[place(e) - 1u] : first_of_group() + e;
}

/* This lane's best entry behind (key, index) in the order of the result; false: none is left. */
bool next_best(uint n, uint key, uint index, out uint best_key, out uint best_index, out uint best_place)
{
    best_key = KEY_NONE;
    best_index = NONE;
    best_place = 0u;
    for (uint e = gl_LocalInvocationIndex; e < n; e += WG) {
        uint i = index_of(e);
        uint bits = from.data[place(e)];
        uint k = sort_key(bits);
        bool behind = key > k || (key == k && i > index);
        if (i < N_IDS && bits_finite(bits) && behind && (k > best_key || (k == best_key && best_index > i))) {
            best_key = k;
            best_index = i;
            best_place = place(e);
        }
    }
    return best_key != KEY_NONE;
}

/* The best of all lanes' entries, to entry 0 of the shared arrays. */
void reduce_best()
{
    uint lane = gl_LocalInvocationIndex;

    for (uint n = WG; n > 1u;) {
        uint h = (n + 1u) / 2u;
        if (lane + h < n) {
            uint k = keys[lane + h], i = indices[lane + h];
            if (k > keys[lane] || (k == keys[lane] && indices[lane] > i)) {
                keys[lane] = k;
                indices[lane] = i;
            }
        }
        barrier();
        n = h;
    }
}

uint count_bad(uint n)
{
    uint bad = 0u;

    if (MERGE != 0u) {
        for (uint g = gl_LocalInvocationIndex; g < N; g += WG)
            bad += from.data[g * TOPK_WORDS(K) + 2u * K];
        return bad;
    }
    for (uint e = gl_LocalInvocationIndex; e < n; e += WG)
        bad += bits_finite(from.data[place(e)]) ? 0u : 1u;
    return bad;
}

void main()
{
    uint lane = gl_LocalInvocationIndex;
    uint n = MERGE != 0u ? N * K : min(TOPK_SLICE, N - first_of_group());
    uint out0 = MERGE != 0u ? 0u : gl_WorkGroupID.x * TOPK_WORDS(K);
    uint bad = count_bad(n);
    uint key, index, at;
    bool has = next_best(n, 0xffffffffu, 0u, key, index, at);

    if (lane == 0u)
        n_bad = 0u;
    barrier();
    if (bad != 0u)
        atomicAdd(n_bad, bad);
    for (uint j = 0u; j < K; j++) {
        keys[lane] = key;
        indices[lane] = index;
        barrier();
        reduce_best();
        uint best_key = keys[0], best = indices[0];
        barrier(); /* all have read */
        if (has && best == index) {
            to.data[out0 + 2u * j] = index;
            to.data[out0 + 2u * j + 1u] = from.data[at];
            has = j + 1u < K && next_best(n, best_key, best, key, index, at);
        } else if (best_key == KEY_NONE && lane == 0u) {
            to.data[out0 + 2u * j] = NONE;
            to.data[out0 + 2u * j + 1u] = 0u;
        }
    }
    if (lane == 0u) {
        to.data[out0 + 2u * K] = n_bad;
        to.data[out0 + 2u * K + 1u] = 0u;
    }
}
