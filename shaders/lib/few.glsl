/* Two to eight input rows for four matrix rows: what lib/rows.glsl does for one, so that weights are read
 * once for all of them (tiles of lib/tile.glsl would be mostly empty). lib/rows.glsl is included first; ROWS
 * is 4. */
#ifndef LIB_FEW_GLSL
#define LIB_FEW_GLSL

#define FEW 8u

struct few_sums { /* of the four rows, for each input row */
    vec4 s0, s1, s2, s3, s4, s5, s6, s7;
};

#define FEW_ADD(t, start, sum)                                                           \
    if ((t) < n) {                                                                       \
        vec8 x = load_x8(start, unit, k);                                                \
        sum += vec4(dot(w0.a, x.a) + dot(w0.b, x.b), dot(w1.a, x.a) + dot(w1.b, x.b),    \
                    dot(w2.a, x.a) + dot(w2.b, x.b), dot(w3.a, x.a) + dot(w3.b, x.b));   \
    }
#define FEW_REDUCE(t, sum) \
    if ((t) < n)           \
        sum = rows_reduce(sum);

/* Rows of k elements in `format`, row 0 at byte `base`; rows from n_rows on repeat the last one. Input row
 * t < n starts at element a[t] or b[t - 4]. n is uniform in the workgroup. */
few_sums rows_few(uint format, uint base, uint row0, uint n_rows, uint k, uvec4 a, uvec4 b, uint n)
{
    uvec4 row = base + min(row0 + FOUR, uvec4(n_rows - 1u)) * row_bytes(format, k);
    few_sums s = few_sums(vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0),
                          vec4(0.0));

    rows_mine = rows_team();
    for (uint unit = rows_mine.lane; unit < (k + 7u) / 8u; unit += rows_mine.lanes) {
        vec8 w0 = load8(format, row.x, unit, k), w1 = load8(format, row.y, unit, k);
        vec8 w2 = load8(format, row.z, unit, k), w3 = load8(format, row.w, unit, k);
        FEW_ADD(0u, a.x, s.s0) FEW_ADD(1u, a.y, s.s1) FEW_ADD(2u, a.z, s.s2) FEW_ADD(3u, a.w, s.s3)
        FEW_ADD(4u, b.x, s.s4) FEW_ADD(5u, b.y, s.s5) FEW_ADD(6u, b.z, s.s6) FEW_ADD(7u, b.w, s.s7)
    }
    FEW_REDUCE(0u, s.s0) FEW_REDUCE(1u, s.s1) FEW_REDUCE(2u, s.s2) FEW_REDUCE(3u, s.s3)
    FEW_REDUCE(4u, s.s4) FEW_REDUCE(5u, s.s5) FEW_REDUCE(6u, s.s6) FEW_REDUCE(7u, s.s7)
    return s;
}

/* Sum of matrix row j and input row t. */
float few_pick(few_sums s, uint j, uint t)
{
    vec4 v = s.s0;
    v = t == 1u ? s.s1 : v;
    v = t == 2u ? s.s2 : v;
    v = t == 3u ? s.s3 : v;
    v = t == 4u ? s.s4 : v;
    v = t == 5u ? s.s5 : v;
    v = t == 6u ? s.s6 : v;
    v = t == 7u ? s.s7 : v;
    return rows_pick(j, v, v);
}

/* Lanes share out the sums: this one has those at i = few_first(), i + rows_mine.lanes .. below few_count(n),
 * i being t * 4 + j. */
uint few_first()
{
    return rows_mine.lane;
}

uint few_count(uint n)
{
    return rows_mine.idle ? 0u : 4u * n;
}

#endif
