/* What an expert does to the sums of its rows: biases, which stand in its slot behind the matrices, and what
 * stands between its halves.
 * Before inclusion: lib/segment.glsl and the constants of SPEC_EXPERT. base is the slot's. */
#ifndef LIB_EXPERT_GLSL
#define LIB_EXPERT_GLSL

#include "lib/math.glsl"

/* Sum of row `row` with the bias of the list at byte `at` of the slot; 0: there is none. */
float biased(float sum, uint base, uint at, uint row)
{
    return at == 0u ? sum : sum + uintBitsToFloat(LOAD_WORD((base + at) / 4u + row));
}

/* The same for four rows of one expert, each below n. */
vec4 biased4(vec4 sums, uint base, uint at, uvec4 rows, uint n)
{
    if (at == 0u)
        return sums;
    rows = min(rows, uvec4(n - 1u));
    return vec4(biased(sums.x, base, at, rows.x), biased(sums.y, base, at, rows.y),
                biased(sums.z, base, at, rows.z), biased(sums.w, base, at, rows.w));
}

float act(float gate, float up)
{
    if (ACT == ACT_CLAMPED) {
        float g = gate > ACT_LIMIT ? ACT_LIMIT : gate; /* NaN stays */
        float u = up > ACT_LIMIT ? ACT_LIMIT : up < -ACT_LIMIT ? -ACT_LIMIT : up;
        return g / (1.0 + exp(-ACT_ALPHA * g)) * (u + 1.0);
    }
    return silu(gate) * up;
}

/* Row `row` of gate and up to that of the expert's hidden state. */
float hidden(float gate, float up, uint base, uint row)
{
    return act(biased(gate, base, GATE_BIAS, row), biased(up, base, UP_BIAS, row));
}

#endif
