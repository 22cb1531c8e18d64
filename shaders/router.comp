/* Chooses K_USED of the allowed experts for each token: softmax over the allowed logits, the largest by
 * falling weight, ties to the lower id. NORM divides the weights by their sum; then they are scaled.
 * The softmax's sum runs over allowed experts in ascending id, one after the other, so that masking experts
 * and leaving them out give the same bits. Ranks are counted on integer keys (NaN lowest, masked experts
 * below), so ids are distinct and valid whatever the logits are. Fewer allowed than K_USED: NONE with weight
 * 0.
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

#include "lib/math.glsl"

shared uint keys[N_EXPERTS];
shared float probs[N_EXPERTS];
shared uint ranked[K_USED];
shared float softmax_sum, weight_sum;

void load_keys(uint t)
{
    uint words = (N_EXPERTS + 31u) / 32u;
    for (uint e = gl_LocalInvocationIndex; e < N_EXPERTS; e += WG) {
        uint mask = allowed.data[p.layer * words + e / 32u];
        uint bits = logits.data[t * N_EXPERTS + e];
        keys[e] = (mask >> (e % 32u) & 1u) != 0u ? sort_key(bits) : KEY_NONE;
        probs[e] = uintBitsToFloat(bits);
    }
    for (uint j = gl_LocalInvocationIndex; j < K_USED; j += WG)
        ranked[j] = NONE;
}

void rank_experts()
{
    for (uint e = gl_LocalInvocationIndex; e < N_EXPERTS; e += WG) {
        uint key = keys[e];
        uint rank = 0u;
        for (uint o = 0u; o < N_EXPERTS; o++) {
            uint other = keys[o];
            rank += uint(other > key || (other == key && o < e));
        }
        if (rank < K_USED && key != KEY_NONE)
            ranked[rank] = e;
    }
}

/* One lane: the order of these sums is the contract. */
void sum_up()
{
    precise float sum = 0.0;
    precise float chosen = 0.0;

    for (uint e = 0u; e < N_EXPERTS; e++) {
        if (keys[e] != KEY_NONE)
            sum = sum + probs[e];
    }
    for (uint j = 0u; j < K_USED; j++) {
        uint e = ranked[j];
        if (e != NONE) {
            precise float w = probs[e] / sum;
            chosen = chosen + w;
        }
    }
    softmax_sum = sum;
    weight_sum = chosen;
}

void main()
{
    uint lane = gl_LocalInvocationIndex;
    uint t = gl_WorkGroupID.y;

    load_keys(t);
    barrier();
    rank_experts();
    barrier();
    uint best = ranked[0];
    float top = best != NONE ? probs[best] : 0.0;
    barrier(); /* the logits in probs make way for exp(logit - top) */
    for (uint e = lane; e < N_EXPERTS; e += WG) {
        precise float d = probs[e] - top;
        probs[e] = exp_nan(d);
    }
    barrier();
    if (lane == 0u)
        sum_up();
    barrier();
    for (uint j = lane; j < K_USED; j += WG) {
        uint e = ranked[j];
        precise float w = 0.0;
        if (e != NONE) {
            w = probs[e] / softmax_sum;
            if (NORM != 0u)
                w = w / weight_sum;
            w = w * uintBitsToFloat(SCALE_BITS);
        }
        sel.data[(t * K_USED + j) * 2u] = e;
        sel.data[(t * K_USED + j) * 2u + 1u] = floatBitsToUint(w);
    }
}
