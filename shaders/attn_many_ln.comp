/* attn_many for narrow devices (lib/lanes.glsl): causal attention of all tokens of the step, query t sees
 * cached positions 0 .. STEP_POS + t; online softmax, f32. WINDOW and SINKS as attn_many.
 * Four queries at a time. Scores: a lane has eight keys of 8 WG, the queries are broadcast. Sums of V: a lane
 * has eight neighbouring elements of the head (and those WG units behind), the keys' weights are in shared
 * memory.
 * Grid: (N_HEADS, ceil(n_tokens / 16)). WG is the subgroup size, 8 or more. HEAD_DIM: a multiple of 8, at
 * most 256. Caches in F32 or F16. Test: test_kernels_attn. */
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_ATTN(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly buffer Q { float data[]; } qr;
layout(std430, set = 0, binding = 1) readonly buffer Q4 { vec4 data[]; } qr4;
layout(std430, set = 0, binding = 2) readonly buffer KCache { uint data[]; } kc;
layout(std430, set = 0, binding = 2) readonly buffer KCache4 { uvec4 data[]; } kc4;
layout(std430, set = 0, binding = 3) readonly restrict buffer VCache4 { uvec4 data[]; } vc4;
/* [t][head][HEAD_DIM] */
layout(std430, set = 0, binding = 4) writeonly restrict buffer Out { vec4 data[]; } outp;
/* [head], read with SINKS only */
layout(std430, set = 0, binding = 5) readonly restrict buffer Sinks { float data[]; } sinks;

#define LOAD_X(i) qr.data[i]
#define LOAD_X4(i) qr4.data[i]
#define X_ALIGNED true
#define LOAD_WORD(i) kc.data[i]
#define LOAD_WORD4(i) kc4.data[i]
#define WORDS_ALIGNED true
#define WORDS_WIDE true
#include "lib/lanes.glsl"
#include "lib/math.glsl"

#define AT_ONCE 4u /* queries */
const uint KEYS = 8u * WG;
const uint UNITS = HEAD_DIM / 8u; /* of eight elements */
const uint ROUNDS = (UNITS + WG - 1u) / WG;
const uint K_BYTES = K_CACHE == FMT_F16 ? 2u : 4u;

shared vec4 weights[KEYS]; /* of the four queries */
vec4 sums[ROUNDS * 8u];    /* of each element, the four queries */

/* Eight elements of V at position pos. */
vec8 load_v(uint pos, uint kv_head, uint unit)
{
    uint i = (pos * N_KV + kv_head) * UNITS + unit;
    vec8 v;
    if (V_CACHE == FMT_F16) {
        uvec4 w = vc4.data[i];
        v = vec8(halves_to_floats(w.xy), halves_to_floats(w.zw));
    } else {
        v = vec8(uintBitsToFloat(vc4.data[2u * i]), uintBitsToFloat(vc4.data[2u * i + 1u]));
    }
    return v;
}

/* sees: which queries see the key; its V, which may be NaN, leaves the others alone. */
void add_key(uint round, vec8 v, vec4 w, bvec4 sees, bool all)
{
    uint at = round * 8u;
    for (uint i = 0u; i < 4u; i++) {
        vec4 a = v.a[i] * w, b = v.b[i] * w;
        sums[at + i] += all ? a : mix(vec4(0.0), a, sees);
        sums[at + 4u + i] += all ? b : mix(vec4(0.0), b, sees);
    }
}

/* Keys k0 + from .. k0 + to - 1; all: every query sees all of them. */
void add_keys(uint k0, uint from, uint to, uint kv_head, uvec4 seen, bool all)
{
    for (uint j = from; j < to; j++) {
        vec4 w = weights[j];
        bvec4 sees = lessThanEqual(uvec4(k0 + j), seen);
        for (uint r = 0u; r < ROUNDS; r++) {
            uint unit = gl_SubgroupInvocationID + r * WG;
            add_key(r, load_v(k0 + j, kv_head, min(unit, UNITS - 1u)), w, sees, all);
        }
    }
}

vec4 exp_or_0(vec4 s, vec4 m)
{
    return mix(exp(s - m), vec4(0.0), equal(s, vec4(LOWEST))); /* NaN goes on to the sum */
}

/* Scores of key `key`, one per query, those it is hidden from at LOWEST. */
vec4 hide(vec4 s, uint key, uvec4 seen)
{
    vec4 v = mix(vec4(LOWEST), s * uintBitsToFloat(SCALE_BITS), lessThanEqual(uvec4(key), seen));
    if (WINDOW != 0u)
        v = mix(vec4(LOWEST), v, greaterThan(uvec4(key + WINDOW), seen));
    return v;
}

void attend(uint t0, uint n_queries, uint head, uint pos)
{
    uint kv_head = head * N_KV / N_HEADS;
    uvec4 query = t0 + min(FOUR, uvec4(n_queries - 1u));
    uvec4 seen = pos + query, at = (query * N_HEADS + head) * HEAD_DIM;
    uint last = pos + t0 + n_queries - 1u;
    vec4 m = vec4(LOWEST), l = vec4(0.0);
    uint first = 0u;

    if (WINDOW != 0u && pos + t0 >= WINDOW)
        first = (pos + t0 - WINDOW + 1u) / KEYS * KEYS;
    if (SINKS != 0u) { /* as if one key had been there before */
        m = vec4(sinks.data[head]);
        l = vec4(1.0);
    }
    for (uint i = 0u; i < ROUNDS * 8u; i++)
        sums[i] = vec4(0.0);
    for (uint k0 = first; k0 <= last; k0 += KEYS) {
        uint key = k0 + gl_SubgroupInvocationID;
        mat4 a, b;
        lanes_dot4(K_CACHE, kv_head * HEAD_DIM * K_BYTES, N_KV * HEAD_DIM * K_BYTES, k0, last + 1u,
                   HEAD_DIM, at, a, b);
        vec4 top = m;
        for (uint i = 0u; i < 4u; i++) {
            a[i] = hide(a[i], key + i * WG, seen);
            b[i] = hide(b[i], key + (4u + i) * WG, seen);
            top = max(top, max(a[i], b[i]));
        }
        top = subgroupMax(top);
        vec4 scale = exp(m - top), sum = vec4(0.0);
        barrier(); /* the weights before have been read */
        for (uint i = 0u; i < 4u; i++) {
            vec4 wa = exp_or_0(a[i], top), wb = exp_or_0(b[i], top);
            weights[gl_SubgroupInvocationID + i * WG] = wa;
            weights[gl_SubgroupInvocationID + (4u + i) * WG] = wb;
            sum += wa + wb;
        }
        barrier();
        l = l * scale + subgroupAdd(sum);
        m = top;
        for (uint i = 0u; i < ROUNDS * 8u; i++)
            sums[i] *= scale;
        uint n = min(last - k0 + 1u, KEYS);
        uint n_all = seen.x < k0 ? 0u : min(seen.x - k0 + 1u, n); /* keys that all queries see */
        add_keys(k0, 0u, n_all, kv_head, seen, true);
        add_keys(k0, n_all, n, kv_head, seen, false);
    }
    for (uint r = 0u; r < ROUNDS; r++) {
        uint unit = gl_SubgroupInvocationID + r * WG;
        for (uint q = 0u; q < n_queries && unit < UNITS; q++) {
            uint i = (at[q] + unit * 8u) / 4u;
            uint s = r * 8u;
            vec4 a = vec4(sums[s][q], sums[s + 1u][q], sums[s + 2u][q], sums[s + 3u][q]);
            vec4 b = vec4(sums[s + 4u][q], sums[s + 5u][q], sums[s + 6u][q], sums[s + 7u][q]);
            outp.data[i] = a / l[q];
            outp.data[i + 1u] = b / l[q];
        }
    }
}

void main()
{
    uint t0 = gl_WorkGroupID.y * ATTN_QUERIES;
    uint n_tokens = state.data[STEP_N_TOKENS];
    uint pos = state.data[STEP_POS];
    uint end = min(t0 + ATTN_QUERIES, n_tokens);

    for (uint t = t0; t < end; t += AT_ONCE)
        attend(t, min(end - t, AT_ONCE), gl_WorkGroupID.x, pos);
}
