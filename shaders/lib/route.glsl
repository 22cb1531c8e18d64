/* The choice of one token: softmax over the allowed logits, the K_USED largest by falling weight, ties to the
 * lower id. NORM divides the weights by their sum; then they are scaled. The softmax's sum runs over allowed
 * experts in ascending id, one after the other, so that masking experts and leaving them out give the same
 * bits. Ranks go by integer keys (NaN lowest, masked experts below), so ids are distinct and valid whatever
 * the logits are. Fewer allowed than K_USED: NONE with weight 0.
 * Before inclusion: LOGIT_BITS(e); ALLOWED_WORD(i), word i of the layer's mask; N_EXPERTS, K_USED, NORM,
 * SCALE_BITS and WG. */
#ifndef LIB_ROUTE_GLSL
#define LIB_ROUTE_GLSL

#include "lib/math.glsl"
#include "shared/step.h"

shared uint keys[N_EXPERTS];
shared float probs[N_EXPERTS];
shared uint ranked[K_USED];
shared uint best_key[WG], best_id[WG];
shared float softmax_sum, weight_sum;

void load_keys()
{
    for (uint e = gl_LocalInvocationIndex; e < N_EXPERTS; e += WG) {
        uint mask = ALLOWED_WORD(e / 32u);
        uint bits = LOGIT_BITS(e);
        keys[e] = (mask >> (e % 32u) & 1u) != 0u ? sort_key(bits) : KEY_NONE;
        probs[e] = uintBitsToFloat(bits);
    }
}

/* Does (key, id) stand before (other, other_id)? Largest key first, ties to the lower id. */
bool ranks_before(uint key, uint id, uint other, uint other_id)
{
    return key > other || (key == other && id < other_id);
}

/* ranked[]: in each round the first of those that stand behind the one before. */
void rank_experts()
{
    uint lane = gl_LocalInvocationIndex;
    uint last_key = NONE, last_id = 0u; /* no key is that large */

    for (uint j = 0u; j < K_USED; j++) {
        uint key = KEY_NONE, id = NONE;
        for (uint e = lane; e < N_EXPERTS; e += WG)
            if (ranks_before(last_key, last_id, keys[e], e) && ranks_before(keys[e], e, key, id)) {
                key = keys[e];
                id = e;
            }
        best_key[lane] = key;
        best_id[lane] = id;
        for (uint s = WG > 1u ? 1u << findMSB(WG - 1u) : 0u; s > 0u; s >>= 1) {
            barrier();
            if (lane < s && lane + s < WG &&
                ranks_before(best_key[lane + s], best_id[lane + s], best_key[lane], best_id[lane])) {
                best_key[lane] = best_key[lane + s];
                best_id[lane] = best_id[lane + s];
            }
        }
        barrier();
        last_key = best_key[0];
        last_id = best_id[0];
        barrier(); /* before lane 0 begins another round */
        if (lane == 0u)
            ranked[j] = last_key != KEY_NONE ? last_id : NONE;
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

/* All lanes call it; afterwards ranked[] and route_weight() hold for all. */
void route()
{
    load_keys();
    barrier();
    rank_experts();
    barrier();
    uint best = ranked[0];
    float top = best != NONE ? probs[best] : 0.0;
    barrier(); /* the logits in probs make way for exp(logit - top) */
    for (uint e = gl_LocalInvocationIndex; e < N_EXPERTS; e += WG) {
        precise float d = probs[e] - top;
        probs[e] = exp_nan(d);
    }
    barrier();
    if (gl_LocalInvocationIndex == 0u)
        sum_up();
    barrier();
}

/* Weight of rank j. */
float route_weight(uint j)
{
    uint e = ranked[j];
    precise float w = 0.0;

    if (e != NONE) {
        w = probs[e] / softmax_sum;
        if (NORM != 0u)
            w = w / weight_sum;
        w = w * uintBitsToFloat(SCALE_BITS);
    }
    return w;
}

#endif
