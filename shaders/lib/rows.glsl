/* A workgroup takes ROWS matrix rows together: its lanes stride over the row length in units of eight
 * elements, and the caller reduces the lanes' sums. Up to eight sums stand in two vec4, so that no array is
 * indexed at run time.
 * Before inclusion: LOAD_X(i), element i of the input; what lib/dequant.glsl wants; WG and ROWS. */
#ifndef LIB_ROWS_GLSL
#define LIB_ROWS_GLSL

#include "lib/dequant.glsl"

float load_x_or_0(uint i, bool inside)
{
    float v = 0.0;
    if (inside)
        v = LOAD_X(i);
    return v;
}

vec4 load_x4(uint i)
{
    return vec4(LOAD_X(i), LOAD_X(i + 1u), LOAD_X(i + 2u), LOAD_X(i + 3u));
}

/* Input elements start + 8 * unit ..; zeros from start + n on, even where weights there would be zero: 0 *
 * NaN. */
vec8 load_x8(uint start, uint unit, uint n)
{
    uint i = start + unit * 8u;
    if (n % 8u != 0u && unit == n / 8u) {
        uint left = n % 8u;
        return vec8(vec4(LOAD_X(i), load_x_or_0(i + 1u, left > 1u), load_x_or_0(i + 2u, left > 2u),
                         load_x_or_0(i + 3u, left > 3u)),
                    vec4(load_x_or_0(i + 4u, left > 4u), load_x_or_0(i + 5u, left > 5u),
                         load_x_or_0(i + 6u, left > 6u), 0.0));
    }
    return vec8(load_x4(i), load_x4(i + 4u));
}

float dot8(vec8 w, vec8 x)
{
    return dot(w.a, x.a) + dot(w.b, x.b);
}

/* Adds unit's share of rows row0 .. row0 + ROWS - 1 to lo and hi. `base`: byte of row 0; rows from n_rows
 * on repeat the last one (their sums are not used). */
void rows_add(uint format, uint base, uint stride, uint row0, uint n_rows, uint unit, uint n, vec8 x,
              inout vec4 lo, inout vec4 hi)
{
    uint last = n_rows - 1u;
    lo.x += dot8(load8(format, base + row0 * stride, unit, n), x);
    if (ROWS > 1u)
        lo.y += dot8(load8(format, base + min(row0 + 1u, last) * stride, unit, n), x);
    if (ROWS > 2u)
        lo.z += dot8(load8(format, base + min(row0 + 2u, last) * stride, unit, n), x);
    if (ROWS > 3u)
        lo.w += dot8(load8(format, base + min(row0 + 3u, last) * stride, unit, n), x);
    if (ROWS > 4u)
        hi.x += dot8(load8(format, base + min(row0 + 4u, last) * stride, unit, n), x);
    if (ROWS > 5u)
        hi.y += dot8(load8(format, base + min(row0 + 5u, last) * stride, unit, n), x);
    if (ROWS > 6u)
        hi.z += dot8(load8(format, base + min(row0 + 6u, last) * stride, unit, n), x);
    if (ROWS > 7u)
        hi.w += dot8(load8(format, base + min(row0 + 7u, last) * stride, unit, n), x);
}

/* Sum j of the eight, for lane j. */
float rows_pick(uint j, vec4 lo, vec4 hi)
{
    vec4 v = j < 4u ? lo : hi;
    vec2 w = (j & 2u) == 0u ? v.xy : v.zw;
    return (j & 1u) == 0u ? w.x : w.y;
}

#endif
