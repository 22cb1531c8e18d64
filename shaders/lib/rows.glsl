/* A team takes ROWS matrix rows together: its lanes stride over the row length in units of eight elements for
 * all rows at once, then their sums are reduced. Base: the team is the workgroup, reduced in shared memory.
 * USE_SUBGROUP: it is the workgroup's first subgroup, without shared memory and barriers; the others have
 * nothing to do, so run/layer.c makes the workgroup one subgroup. Up to eight sums stand in two vec4, so that
 * no array is indexed at run time.
 * Before inclusion: LOAD_X(i), element i of the input; what lib/dequant.glsl wants; WG and ROWS. */
#ifndef LIB_ROWS_GLSL
#define LIB_ROWS_GLSL

#include "lib/dequant.glsl"

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
        v.a = vec4(LOAD_X(i), LOAD_X(i + 1u), LOAD_X(i + 2u), LOAD_X(i + 3u));
        v.b = vec4(LOAD_X(i + 4u), LOAD_X(i + 5u), LOAD_X(i + 6u), LOAD_X(i + 7u));
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

/* Sum j of the eight, for lane j. */
float rows_pick(uint j, vec4 lo, vec4 hi)
{
    vec4 v = j < 4u ? lo : hi;
    vec2 w = (j & 2u) == 0u ? v.xy : v.zw;
    return (j & 1u) == 0u ? w.x : w.y;
}

#endif
