/* Causal attention of all tokens of the step: query t sees cached positions 0 .. STEP_POS + t. One pass over
 * the keys with a running maximum and sum (online softmax), f32. WINDOW: keys further back are not seen;
 * SINKS: a score of each head's own joins the sum of exps.
 * Grid: (N_HEADS, ceil(n_tokens / 16)). WG is 128. Keys come 32 at a time. Lane = key or pair of elements
 * + 32 * group; a group of lanes has four of the sixteen queries in the components of its vec4. For the
 * softmax, lane = query + 16 * part, a part being four keys. HEAD_DIM: even, at most 256. Test:
 * test_kernels_attn. */
#version 450
#extension GL_GOOGLE_include_directive : require
#include "shared/params.h"
#include "shared/step.h"

SPEC_ATTN(SPEC_X)
layout(local_size_x_id = 0) in;

layout(std430, set = 0, binding = 0) readonly restrict buffer State { uint data[]; } state;
layout(std430, set = 0, binding = 1) readonly restrict buffer Q { float data[]; } qr;
layout(std430, set = 0, binding = 2) readonly restrict buffer KCache { uint data[]; } kc;
layout(std430, set = 0, binding = 3) readonly restrict buffer VCache { uint data[]; } vc;
/* [t][head][HEAD_DIM] */
layout(std430, set = 0, binding = 4) writeonly restrict buffer Out { float data[]; } outp;
/* [head], read with SINKS only */
layout(std430, set = 0, binding = 5) readonly restrict buffer Sinks { float data[]; } sinks;

#define K_WORD(i) kc.data[i]
#define V_WORD(i) vc.data[i]
#include "lib/cache.glsl"
#include "lib/math.glsl"

#define QUERIES 16u /* ATTN_QUERIES */
#define KEYS 32u
#define STEP_D 32u /* elements of a head staged at a time */
#define K_STRIDE 33u
#define Q_STRIDE 20u

const uint PAIRS = HEAD_DIM / 2u;

shared float stage_k[STEP_D * K_STRIDE];
shared float stage_q[STEP_D * Q_STRIDE];
shared float scores[KEYS * QUERIES];
shared float part_max[128], part_sum[128];
shared float factor[QUERIES];

/* Elements d0 .. d0 + 31 of keys k0 .. k0 + 31 and of the queries, zeros behind the head's end. */
void stage(uint d0, uint k0, uint last, uint t0, uint n_tokens, uint head)
{
    uint kv_head = head * N_KV / N_HEADS;
    uint d = gl_LocalInvocationIndex % 16u * 2u;
    uint row = gl_LocalInvocationIndex / 16u;
    bool inside = d0 + d < HEAD_DIM;

    for (uint j = row; j < KEYS; j += 8u) {
        vec2 v = vec2(0.0);
        if (inside)
            v = k_pair(cache_row(min(k0 + j, last), kv_head) + (d0 + d) / 2u);
        stage_k[d * K_STRIDE + j] = v.x;
        stage_k[(d + 1u) * K_STRIDE + j] = v.y;
    }
    for (uint j = row; j < QUERIES; j += 8u) {
        uint at = (min(t0 + j, n_tokens - 1u) * N_HEADS + head) * HEAD_DIM + d0 + d;
        vec2 v = vec2(0.0);
        if (inside)
            v = vec2(qr.data[at], qr.data[at + 1u]);
        stage_q[d * Q_STRIDE + j] = v.x;
        stage_q[(d + 1u) * Q_STRIDE + j] = v.y;
    }
}

/* Scores of one key for four queries, not scaled. */
vec4 score4(uint k0, uint last, uint t0, uint n_tokens, uint head)
{
    uint key = gl_LocalInvocationIndex % KEYS;
    uint query = gl_LocalInvocationIndex / KEYS * 4u;
    vec4 s = vec4(0.0);

    for (uint d0 = 0u; d0 < HEAD_DIM; d0 += STEP_D) {
        barrier();
        stage(d0, k0, last, t0, n_tokens, head);
        barrier();
        for (uint d = 0u; d < STEP_D; d++) {
            uint at = d * Q_STRIDE + query;
            vec4 q = vec4(stage_q[at], stage_q[at + 1u], stage_q[at + 2u], stage_q[at + 3u]);
            s += stage_k[d * K_STRIDE + key] * q;
        }
    }
    return s;
}

/* Does a query at position `at` see the key? last: the last position that any of them may. */
bool sees_key(uint key, uint at, uint last)
{
    return key <= min(at, last) && (WINDOW == 0u || key + WINDOW > at);
}

float exp_or_0(float s, float m)
{
    return s == LOWEST ? 0.0 : exp(s - m); /* NaN goes on to the sum */
}

/* Turns scores into exp(score - m), updates the running m and l of this lane's query, leaves the factor
 * for earlier sums. */
void softmax_step(inout float m, inout float l)
{
    uint lane = gl_LocalInvocationIndex;
    uint query = lane % QUERIES;
    uint at = lane / QUERIES * 4u * QUERIES + query;
    vec4 s = vec4(scores[at], scores[at + QUERIES], scores[at + 2u * QUERIES], scores[at + 3u * QUERIES]);
    float top = m, sum = 0.0;

    part_max[lane] = max(max(s.x, s.y), max(s.z, s.w));
    barrier();
    for (uint i = query; i < 128u; i += QUERIES)
        top = max(top, part_max[i]);
    vec4 e = vec4(exp_or_0(s.x, top), exp_or_0(s.y, top), exp_or_0(s.z, top), exp_or_0(s.w, top));
    float scale = exp(m - top);
    scores[at] = e.x;
    scores[at + QUERIES] = e.y;
    scores[at + 2u * QUERIES] = e.z;
    scores[at + 3u * QUERIES] = e.w;
    part_sum[lane] = (e.x + e.y) + (e.z + e.w);
    if (lane < QUERIES)
        factor[query] = scale;
    barrier();
    for (uint i = query; i < 128u; i += QUERIES)
        sum += part_sum[i];
    l = l * scale + sum;
    m = top;
}

vec4 factor4(uint query)
{
    return vec4(factor[query], factor[query + 1u], factor[query + 2u], factor[query + 3u]);
}

/* Sums of even and odd elements of pair lane % 32 + 32 * j, four queries each; j < 4 covers 256 elements. */
#define ADD_PAIR(j)                                                   \
    if (PAIRS > 32u * j && pair + 32u * j < PAIRS) {                  \
        vec2 v = v_pair(row + 32u * j);                               \
        even##j += prob * v.x;                                        \
        odd##j += prob * v.y;                                         \
    }
/* The same where some of the four queries do not see the key: its V, which may be NaN, leaves them alone. */
#define ADD_PAIR_SEEN(j)                                              \
    if (PAIRS > 32u * j && pair + 32u * j < PAIRS) {                  \
        vec2 v = v_pair(row + 32u * j);                               \
        even##j += mix(vec4(0.0), prob * v.x, sees);                  \
        odd##j += mix(vec4(0.0), prob * v.y, sees);                   \
    }
#define SCALE_PAIR(j)   \
    even##j *= scale;   \
    odd##j *= scale;
#define PUT(j, i, c)                                                                \
    if (query + i < n_queries) {                                                    \
        uint at = ((t0 + query + i) * N_HEADS + head) * HEAD_DIM + 2u * (pair + 32u * j); \
        outp.data[at] = even##j.c;                                                  \
        outp.data[at + 1u] = odd##j.c;                                              \
    }
#define PUT_PAIR(j)                                    \
    if (PAIRS > 32u * j && pair + 32u * j < PAIRS) {   \
        PUT(j, 0u, x) PUT(j, 1u, y) PUT(j, 2u, z) PUT(j, 3u, w) \
    }

void main()
{
    uint lane = gl_LocalInvocationIndex;
    uint head = gl_WorkGroupID.x;
    uint t0 = gl_WorkGroupID.y * QUERIES;
    uint n_tokens = state.data[STEP_N_TOKENS];
    uint pos = state.data[STEP_POS];
    uint pair = lane % KEYS;
    uint query = lane / KEYS * 4u;
    float m = LOWEST, l = 0.0;
    vec4 even0 = vec4(0.0), even1 = vec4(0.0), even2 = vec4(0.0), even3 = vec4(0.0);
    vec4 odd0 = vec4(0.0), odd1 = vec4(0.0), odd2 = vec4(0.0), odd3 = vec4(0.0);

    if (t0 >= n_tokens)
        return;
    uint n_queries = min(n_tokens - t0, QUERIES);
    uint last = pos + t0 + n_queries - 1u; /* last position any of the queries sees */
    uint first = 0u;
    if (WINDOW != 0u && pos + t0 >= WINDOW)
        first = (pos + t0 - WINDOW + 1u) / KEYS * KEYS;
    if (SINKS != 0u) { /* as if one key had been there before */
        m = sinks.data[head];
        l = 1.0;
    }
    for (uint k0 = first; k0 <= last; k0 += KEYS) {
        vec4 s = score4(k0, last, t0, n_tokens, head) * uintBitsToFloat(SCALE_BITS);
        uint key = k0 + pair;
        uint at = pair * QUERIES + query;
        uint seen = pos + t0 + query; /* last position that component 0 sees */
        scores[at] = sees_key(key, seen, last) ? s.x : LOWEST;
        scores[at + 1u] = sees_key(key, seen + 1u, last) ? s.y : LOWEST;
        scores[at + 2u] = sees_key(key, seen + 2u, last) ? s.z : LOWEST;
        scores[at + 3u] = sees_key(key, seen + 3u, last) ? s.w : LOWEST;
        barrier();
        softmax_step(m, l);

        vec4 scale = factor4(query);
        SCALE_PAIR(0) SCALE_PAIR(1) SCALE_PAIR(2) SCALE_PAIR(3)
        uint n = min(last - k0 + 1u, KEYS);
        uint n_all = pos + t0 < k0 ? 0u : min(pos + t0 - k0 + 1u, n); /* keys that all queries see */
        for (uint j = 0u; j < n_all; j++) {
            uint row = cache_row(k0 + j, head * N_KV / N_HEADS) + pair;
            uint p = j * QUERIES + query;
            vec4 prob = vec4(scores[p], scores[p + 1u], scores[p + 2u], scores[p + 3u]);
            ADD_PAIR(0) ADD_PAIR(1) ADD_PAIR(2) ADD_PAIR(3)
        }
        for (uint j = n_all; j < n; j++) {
            uint row = cache_row(k0 + j, head * N_KV / N_HEADS) + pair;
            uint p = j * QUERIES + query;
            vec4 prob = vec4(scores[p], scores[p + 1u], scores[p + 2u], scores[p + 3u]);
            bvec4 sees = lessThanEqual(uvec4(k0 + j), seen + uvec4(0u, 1u, 2u, 3u));
            ADD_PAIR_SEEN(0) ADD_PAIR_SEEN(1) ADD_PAIR_SEEN(2) ADD_PAIR_SEEN(3)
        }
    }
    barrier(); /* factor has been read */
    if (lane < QUERIES)
        factor[lane] = 1.0 / l;
    barrier();
    vec4 scale = factor4(query);
    SCALE_PAIR(0) SCALE_PAIR(1) SCALE_PAIR(2) SCALE_PAIR(3)
    PUT_PAIR(0) PUT_PAIR(1) PUT_PAIR(2) PUT_PAIR(3)
}
