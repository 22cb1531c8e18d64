/* Rows of a matrix times quantised inputs, kept in registers: a lane holds BLOCKS blocks of TOKENS input rows
 * and takes the matrix rows one after the other; LANES lanes share a row, the workgroup's WG / LANES such
 * teams take neighbouring rows. LANES * BLOCKS covers a row.
 * WIDE: a lane's blocks stand behind each other, there are eight of them, everything starts on a 16-byte
 * boundary, and words are loaded in fours. Else they are LANES blocks apart.
 * Reduction: with USE_SUBGROUP the workgroup is one subgroup, else in shared memory.
 * Before inclusion: LOAD_X(i) and LOAD_X4(i), word i and words 4 i .. of the quantised inputs; LOAD_WORD and
 * LOAD_WORD4, the same of the weights; WG, LANES, BLOCKS, TOKENS (at most 4), WIDE. */
#ifndef LIB_DOT_ROWS_GLSL
#define LIB_DOT_ROWS_GLSL

#ifdef USE_DOT
uint dot_x[TOKENS * BLOCKS * 8u];
#else
uint dot_x[TOKENS * BLOCKS * 16u];
#endif
float dot_d[TOKENS * BLOCKS];
int dot_s[TOKENS * BLOCKS];

#ifndef WORDS_ALIGNED
#define WORDS_ALIGNED false
#define WORDS_WIDE false
#endif
#include "lib/dequant.glsl"
#include "lib/dot8.glsl"
#include "lib/reduce.glsl"

#define TEAMS (WG / LANES)
#define DOT_WORDS 68u /* of eight blocks of Q8_0 */

uint dot_block(uint i)
{
    uint unit = gl_LocalInvocationIndex % LANES;
    return WIDE != 0u ? unit * BLOCKS + i : unit + i * LANES;
}

void dot_keep4(uint at, uvec4 w)
{
    dot_keep(at, w.x);
    dot_keep(at + 1u, w.y);
    dot_keep(at + 2u, w.z);
    dot_keep(at + 3u, w.w);
}

/* Takes this lane's blocks of input row `row`, of k elements, as token t. Blocks behind the end are zeros. */
void dot_load_x(uint t, uint row, uint k)
{
    uint n = k / 32u, x0 = row * dot_x_words(k);

    [[unroll]] for (uint i = 0u; i < BLOCKS; i++) {
        uint b = min(dot_block(i), n - 1u), at = t * BLOCKS + i;
        dot_keep4(at * 8u, LOAD_X4(x0 / 4u + b * 2u));
        dot_keep4(at * 8u + 4u, LOAD_X4(x0 / 4u + b * 2u + 1u));
    }
    if (WIDE != 0u) {
        uint b = min(dot_block(0u), n - BLOCKS);
        [[unroll]] for (uint i = 0u; i < BLOCKS; i += 4u) {
            uvec4 d = LOAD_X4((x0 + n * 8u + b + i) / 4u), s = LOAD_X4((x0 + n * 9u + b + i) / 4u);
            uint at = t * BLOCKS + i;
            [[unroll]] for (uint j = 0u; j < 4u; j++) {
                dot_d[at + j] = uintBitsToFloat(d[j]);
                dot_s[at + j] = int(s[j]);
            }
        }
    } else {
        [[unroll]] for (uint i = 0u; i < BLOCKS; i++) {
            uint b = min(dot_block(i), n - 1u);
            dot_d[t * BLOCKS + i] = uintBitsToFloat(LOAD_X(x0 + n * 8u + b));
            dot_s[t * BLOCKS + i] = int(LOAD_X(x0 + n * 9u + b));
        }
    }
}

/* Block i of this lane: scale d, quants q0 and, of Q8_0, q1. */
void dot_add_block(uint format, uint i, float d, uvec4 q0, uvec4 q1, inout vec4 sums)
{
    [[unroll]] for (uint t = 0u; t < TOKENS; t++) {
        uint at = t * BLOCKS + i;
        int dots;
        if (format == FMT_Q4_0)
            dots = dot_q4_0(q0, at * 8u, dot_s[at]);
        else
            dots = dot_q8_0(q0, at * 8u, dot_s[at]) + dot_q8_0(q1, at * 8u + 4u, 0);
        precise float sum = sums[t] + (d * dot_d[at]) * float(dots);
        sums[t] = sum;
    }
}

uint dot_words[DOT_WORDS];

/* Words k .. k + 3 of the lane's blocks, from their upper half on if `odd`. */
uvec4 dot_words4(uint k, bool odd)
{
    uvec4 v = uvec4(dot_words[k], dot_words[k + 1u], dot_words[k + 2u], dot_words[k + 3u]);
    if (odd) {
        uvec4 next = uvec4(v.yzw, dot_words[k + 4u]);
        v = (v >> 16) | (next << 16);
    }
    return v;
}

void dot_row_wide(uint format, uint row, inout vec4 sums)
{
    uint block_words = format == FMT_Q4_0 ? 9u : 17u; /* of two blocks */
    uint first = (row + dot_block(0u) * block_words * 2u) / 16u;

    [[unroll]] for (uint i = 0u; i < block_words; i++) {
        uvec4 w = LOAD_WORD4(first + i);
        dot_words[4u * i] = w.x;
        dot_words[4u * i + 1u] = w.y;
        dot_words[4u * i + 2u] = w.z;
        dot_words[4u * i + 3u] = w.w;
    }
    [[unroll]] for (uint i = 0u; i < BLOCKS; i++) {
        bool even = i % 2u == 0u;
        uint k = i / 2u * block_words + (even ? 0u : block_words / 2u);
        float d = half_to_float(even ? dot_words[k] & 0xffffu : dot_words[k] >> 16);
        uvec4 q0 = dot_words4(even ? k : k + 1u, even), q1 = q0;
        if (format == FMT_Q8_0)
            q1 = dot_words4(even ? k + 4u : k + 5u, even);
        dot_add_block(format, i, d, q0, q1, sums);
    }
}

/* Component t: this lane's share of the dot product of the matrix row of k elements at byte `row` with
 * token t. */
vec4 dot_row(uint format, uint row, uint k)
{
    uint n = k / 32u, bytes = format == FMT_Q4_0 ? 18u : 34u;
    vec4 sums = vec4(0.0);

    if (WIDE != 0u) {
        if (dot_block(0u) < n)
            dot_row_wide(format, row, sums);
    } else {
        [[unroll]] for (uint i = 0u; i < BLOCKS; i++) {
            if (dot_block(i) < n) {
                uint block = row + dot_block(i) * bytes;
                uvec4 q0 = load_u128(block + 2u), q1 = q0;
                if (format == FMT_Q8_0)
                    q1 = load_u128(block + 18u);
                dot_add_block(format, i, half_to_float(load_u16(block)), q0, q1, sums);
            }
        }
    }
    return sums;
}

/* Which team's matrix row this lane works on. */
uint dot_team()
{
    return gl_LocalInvocationIndex / LANES;
}

/* Whose sum it gets from dot_reduce, and whether it gets one. */
uint dot_out_team()
{
    return gl_LocalInvocationIndex / TOKENS;
}

uint dot_out_token()
{
    return gl_LocalInvocationIndex % TOKENS;
}

bool dot_out()
{
    return gl_LocalInvocationIndex < TEAMS * TOKENS;
}

/* Sums over the lanes of each team. */
float dot_reduce(vec4 v)
{
    float mine = 0.0;

    [[unroll]] for (uint s = 0u; s < TEAMS; s++) {
        if (TOKENS == 1u) {
            float sum = reduce_add(dot_team() == s ? v.x : 0.0);
            mine = dot_out_team() == s ? sum : mine;
        } else {
            vec4 sum = reduce_add4(dot_team() == s ? v : vec4(0.0));
            mine = dot_out_team() == s ? sum[dot_out_token()] : mine;
        }
    }
    return mine;
}

#endif
