/* Dot products of ROWS matrix rows with one input row, by a workgroup: the core of mat-vec and of the
 * experts' kernels.
 * Base: lanes stride over the row length in units of eight elements for all rows at once, then their sums are
 * reduced in shared memory. USE_SUBGROUP: the same by the workgroup's first subgroup, without shared memory
 * and barriers; the others have nothing to do, so run/layer.c makes the workgroup one subgroup. Up to eight
 * sums stand in two vec4, so that no array is indexed at run time. USE_LANES: lib/lanes.glsl instead.
 * Component i of a result belongs to row row0 + rows_row(i) where rows_has(i).
 * Before inclusion: LOAD_X(i), element i of the input; LOAD_X4(i), elements 4 i .. 4 i + 3, and X_ALIGNED,
 * true when all input rows start on a multiple of four elements; what lib/dequant.glsl wants; WG and ROWS. */
#ifndef LIB_ROWS_GLSL
#define LIB_ROWS_GLSL

#ifdef USE_LANES
#include "lib/lanes.glsl"
#else
#include "lib/dequant.glsl"
#include "lib/input.glsl"

/* This lane's place among those of the team; idle: not in the team. Lanes of a subgroup are counted, so that
 * one of any size and shape is served. */
struct row_team {
    uint lane, lanes;
    bool idle;
};

#ifdef USE_SUBGROUP
row_team rows_team()
{
    return row_team(subgroupExclusiveAdd(1u), subgroupAdd(1u), gl_SubgroupID != 0u);
}

vec4 rows_reduce(vec4 v)
{
    return subgroupAdd(v);
}
#else
#include "lib/reduce.glsl"

row_team rows_team()
{
    return row_team(gl_LocalInvocationIndex, WG, false);
}

vec4 rows_reduce(vec4 v)
{
    return reduce_add4(v);
}
#endif

/* Input elements start + 8 * unit ..; zeros from start + n on, even where weights there would be zero: 0 *
 * NaN. */
vec8 load_x8(uint start, uint unit, uint n)
{
    uint i = start + unit * 8u;
    vec8 v;
    if (n % 8u != 0u && unit == n / 8u) {
        v = vec8(vec4(0.0), vec4(0.0));
        for (uint j = 0u; j < n % 8u; j++) {
            vec4 e = vec4(LOAD_X(i + j));
            v.a = mix(v.a, e, equal(uvec4(j), FOUR));
            v.b = mix(v.b, e, equal(uvec4(j), FOUR + 4u));
        }
    } else {
        v.a = load_x4(i);
        v.b = load_x4(i + 4u);
    }
    return v;
}

/* Adds unit's share of rows row0 .. row0 + ROWS - 1 to lo and hi. `base`: byte of row 0; rows from n_rows
 * on repeat the last one (their sums are not used). */
void rows_add(uint format, uint base, uint stride, uint row0, uint n_rows, uint unit, uint n, vec8 x,
              inout vec4 lo, inout vec4 hi)
{
    for (uint j = 0u; j < ROWS; j++) {
        vec8 w = load8(format, base + min(row0 + j, n_rows - 1u) * stride, unit, n);
        float d = dot(w.a, x.a) + dot(w.b, x.b);
        lo = mix(lo, lo + d, equal(uvec4(j), FOUR));
        if (ROWS > 4u)
            hi = mix(hi, hi + d, equal(uvec4(j), FOUR + 4u));
    }
}

/* Sum j of the eight. */
float rows_pick(uint j, vec4 lo, vec4 hi)
{
    vec4 v = j < 4u ? lo : hi;
    vec2 w = (j & 2u) == 0u ? v.xy : v.zw;
    return (j & 1u) == 0u ? w.x : w.y;
}

row_team rows_mine; /* set by the functions below, where all lanes of the subgroup are active */

uint rows_row(uint i)
{
    return rows_mine.lane + i * rows_mine.lanes;
}

bool rows_has(uint i)
{
    return !rows_mine.idle && rows_row(i) < ROWS;
}

vec4 rows_spread(vec4 lo, vec4 hi)
{
    lo = rows_reduce(lo);
    if (ROWS > 4u)
        hi = rows_reduce(hi);
    return vec4(rows_pick(rows_row(0u), lo, hi), rows_pick(rows_row(1u), lo, hi),
                rows_pick(rows_row(2u), lo, hi), rows_pick(rows_row(3u), lo, hi));
}

/* Rows of k elements in `format`, `stride` bytes apart, row 0 at byte `base`; rows from n_rows on repeat the
 * last one. x0: element where the input row starts. Uniform control flow only. */
vec4 rows_dot(uint format, uint base, uint stride, uint row0, uint n_rows, uint k, uint x0)
{
    vec4 lo = vec4(0.0), hi = vec4(0.0);

    rows_mine = rows_team();
    for (uint unit = rows_mine.lane; unit < (k + 7u) / 8u; unit += rows_mine.lanes)
        rows_add(format, base, stride, row0, n_rows, unit, k, load_x8(x0, unit, k), lo, hi);
    return rows_spread(lo, hi);
}

/* The same for two matrices and one input: a and b. */
void rows_dot2(uint format_a, uint base_a, uint format_b, uint base_b, uint row0, uint n_rows, uint k,
               uint x0, out vec4 a, out vec4 b)
{
    vec4 a_lo = vec4(0.0), a_hi = vec4(0.0), b_lo = vec4(0.0), b_hi = vec4(0.0);

    rows_mine = rows_team();
    for (uint unit = rows_mine.lane; unit < (k + 7u) / 8u; unit += rows_mine.lanes) {
        vec8 x = load_x8(x0, unit, k);
        rows_add(format_a, base_a, row_bytes(format_a, k), row0, n_rows, unit, k, x, a_lo, a_hi);
        rows_add(format_b, base_b, row_bytes(format_b, k), row0, n_rows, unit, k, x, b_lo, b_hi);
    }
    a = rows_spread(a_lo, a_hi);
    b = rows_spread(b_lo, b_hi);
}

#endif
#endif
