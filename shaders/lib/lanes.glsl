/* The core of lib/rows.glsl for narrow devices, whose lanes run one after the other or nearly so and pay for
 * every load from a buffer: each lane sums four matrix rows of its own, row, row + WG, row + 2 WG and
 * row + 3 WG, in chunks of 8 words at most; each input element is loaded once per workgroup, which is one
 * subgroup, and broadcast. No reduction; f32 sums in the order of k (blocks are summed before they are
 * scaled), so that a result does not depend on its place. ROWS is 4 WG; WG is the subgroup size, 8 or more.
 * Before inclusion: as lib/rows.glsl. */
#ifndef LIB_LANES_GLSL
#define LIB_LANES_GLSL

#include "lib/dequant.glsl"
#include "lib/input.glsl"

/* Up to eight words of one row: `quads` groups of four elements, and their scale. */
struct chunk {
    uvec4 a, b;
    float d;
};

/* Groups of four elements in a chunk. */
uint chunk_quads(uint format)
{
    uint n = 8u;
    if (format == FMT_F32)
        n = 2u;
    if (format == FMT_F16 || format == FMT_BF16)
        n = 4u;
    return n;
}

/* Five words hold the 18 bytes from `off` on, an even offset. */
chunk load_q4(uint off)
{
    uint i = off >> 2;
    uvec4 w = uvec4(LOAD_WORD(i), LOAD_WORD(i + 1u), LOAD_WORD(i + 2u), LOAD_WORD(i + 3u));
    uvec4 next = uvec4(w.yzw, LOAD_WORD(i + 4u));
    bool upper = (off & 2u) != 0u;

    return chunk(upper ? next : (w >> 16) | (next << 16), uvec4(0u),
                 half_to_float(upper ? w.x >> 16 : w.x & 0xffffu));
}

/* Nine words hold the 34. */
chunk load_q8(uint off)
{
    uint i = off >> 2;
    uvec4 w = uvec4(LOAD_WORD(i), LOAD_WORD(i + 1u), LOAD_WORD(i + 2u), LOAD_WORD(i + 3u));
    uvec4 v = uvec4(LOAD_WORD(i + 4u), LOAD_WORD(i + 5u), LOAD_WORD(i + 6u), LOAD_WORD(i + 7u));
    uvec4 w1 = uvec4(w.yzw, v.x);
    uvec4 v1 = uvec4(v.yzw, LOAD_WORD(i + 8u));
    bool upper = (off & 2u) != 0u;

    return chunk(upper ? w1 : (w >> 16) | (w1 << 16), upper ? v1 : (v >> 16) | (v1 << 16),
                 half_to_float(upper ? w.x >> 16 : w.x & 0xffffu));
}

/* Chunk c of the row that starts at byte `row`; all of it must lie in the row. */
chunk load_chunk(uint format, uint row, uint c)
{
    chunk v;
    if (format == FMT_Q4_0)
        v = load_q4(row + c * 18u);
    else if (format == FMT_Q8_0)
        v = load_q8(row + c * 34u);
    else
        v = chunk(load_u128(row + c * 32u), load_u128(row + c * 32u + 16u), 1.0);
    return v;
}

/* Elements 4 g .. 4 g + 3 of a chunk, not scaled. g is constant. */
vec4 chunk_quad(uint format, chunk v, uint g)
{
    vec4 r;
    if (format == FMT_F32) {
        r = uintBitsToFloat(g == 0u ? v.a : v.b);
    } else if (format == FMT_F16 || format == FMT_BF16) {
        uvec4 u = g < 2u ? v.a : v.b;
        uvec2 w = (g & 1u) == 0u ? u.xy : u.zw;
        r = uintBitsToFloat(uvec4(w.x << 16, w.x & 0xffff0000u, w.y << 16, w.y & 0xffff0000u));
        if (format == FMT_F16)
            r = halves_to_floats(w);
    } else if (format == FMT_Q8_0) {
        r = signed_bytes((g < 4u ? v.a : v.b)[g & 3u]);
    } else {
        r = unsigned_bytes((g < 4u ? v.a[g & 3u] : v.a[g & 3u] >> 4) & 0x0f0f0f0fu) - 8.0;
    }
    return r;
}

/* Elements of a chunk of the input, from element i on: group g of four in lane g, any in lanes behind. */
vec4 load_spread(uint quads, uint i)
{
    return load_x4(i + 4u * min(gl_SubgroupInvocationID, quads - 1u));
}

#define LANES_QUAD(format, quads, w, x, sum, g)       \
    if ((g) < quads) {                                \
        vec4 e = subgroupBroadcast(x, g);                   \
        sum.x += dot(chunk_quad(format, w##0, g), e); \
        sum.y += dot(chunk_quad(format, w##1, g), e); \
        sum.z += dot(chunk_quad(format, w##2, g), e); \
        sum.w += dot(chunk_quad(format, w##3, g), e); \
    }

uint rows_row(uint i)
{
    return gl_SubgroupInvocationID + i * WG;
}

bool rows_has(uint i)
{
    return true;
}

uvec4 lanes_rows(uint base, uint stride, uint row0, uint n_rows)
{
    uvec4 row = row0 + uvec4(rows_row(0u), rows_row(1u), rows_row(2u), rows_row(3u));
    return base + min(row, uvec4(n_rows - 1u)) * stride;
}

/* The elements behind the last whole chunk, one at a time. */
vec4 lanes_tail(uint format, uvec4 row, uint from, uint k, uint x0)
{
    vec4 sum = vec4(0.0);
    if (format != FMT_Q8_0 && format != FMT_Q4_0)
        for (uint i = from; i < k; i++)
            sum += LOAD_X(x0 + i) * vec4(load1(format, row.x, i), load1(format, row.y, i),
                                         load1(format, row.z, i), load1(format, row.w, i));
    return sum;
}

vec4 rows_dot(uint format, uint base, uint stride, uint row0, uint n_rows, uint k, uint x0)
{
    uvec4 row = lanes_rows(base, stride, row0, n_rows);
    uint quads = chunk_quads(format), n = k / (4u * quads);
    vec4 sum = vec4(0.0);

    for (uint c = 0u; c < n; c++) {
        vec4 x = load_spread(quads, x0 + c * 4u * quads);
        chunk w0 = load_chunk(format, row.x, c), w1 = load_chunk(format, row.y, c);
        chunk w2 = load_chunk(format, row.z, c), w3 = load_chunk(format, row.w, c);
        vec4 s = vec4(0.0);
        LANES_QUAD(format, quads, w, x, s, 0u) LANES_QUAD(format, quads, w, x, s, 1u)
        LANES_QUAD(format, quads, w, x, s, 2u) LANES_QUAD(format, quads, w, x, s, 3u)
        LANES_QUAD(format, quads, w, x, s, 4u) LANES_QUAD(format, quads, w, x, s, 5u)
        LANES_QUAD(format, quads, w, x, s, 6u) LANES_QUAD(format, quads, w, x, s, 7u)
        sum += vec4(w0.d, w1.d, w2.d, w3.d) * s;
    }
    return sum + lanes_tail(format, row, n * 4u * quads, k, x0);
}

/* Two matrices and one input. */
void rows_dot2(uint format_a, uint base_a, uint format_b, uint base_b, uint row0, uint n_rows, uint k,
               uint x0, out vec4 a, out vec4 b)
{
    a = rows_dot(format_a, base_a, row_bytes(format_a, k), row0, n_rows, k, x0);
    b = rows_dot(format_b, base_b, row_bytes(format_b, k), row0, n_rows, k, x0);
}

/* ---- eight rows per lane, four input rows
 * ------------------------------------------------------------------- */

#define LANES_ROW4(format, w, sum, g) \
    {                                 \
        vec4 q = chunk_quad(format, w, g); \
        sum += vec4(dot(q, e0), dot(q, e1), dot(q, e2), dot(q, e3)); \
    }
#define LANES_QUAD4(format, quads, g)                                                               \
    if ((g) < quads) {                                                                              \
        vec4 e0 = subgroupBroadcast(x0, g), e1 = subgroupBroadcast(x1, g);                          \
        vec4 e2 = subgroupBroadcast(x2, g), e3 = subgroupBroadcast(x3, g);                          \
        LANES_ROW4(format, w0, s0, g) LANES_ROW4(format, w1, s1, g)                                 \
        LANES_ROW4(format, w2, s2, g) LANES_ROW4(format, w3, s3, g)                                 \
        LANES_ROW4(format, w4, s4, g) LANES_ROW4(format, w5, s5, g)                                 \
        LANES_ROW4(format, w6, s6, g) LANES_ROW4(format, w7, s7, g)                                 \
    }

/* The elements behind the last whole chunk. */
mat4 lanes_tail4(uint format, uvec4 row, uint from, uint k, uvec4 x)
{
    mat4 sum = mat4(0.0);
    for (uint j = 0u; j < 4u; j++)
        sum[j] = lanes_tail(format, row, from, k, x[j]);
    return transpose(sum);
}

/* Row lane + i * WG of the 8 WG rows from `row0` on is column i of a, lane + (4 + i) WG column i of b;
 * component j of a column belongs to the input row that starts at element x[j]. */
void lanes_dot4(uint format, uint base, uint stride, uint row0, uint n_rows, uint k, uvec4 x, out mat4 a,
                out mat4 b)
{
    uvec4 row_a = lanes_rows(base, stride, row0, n_rows);
    uvec4 row_b = lanes_rows(base, stride, row0 + 4u * WG, n_rows);
    uint quads = chunk_quads(format), n = k / (4u * quads);

    a = mat4(0.0);
    b = mat4(0.0);
    for (uint c = 0u; c < n; c++) {
        uvec4 at = x + c * 4u * quads;
        vec4 x0 = load_spread(quads, at.x), x1 = load_spread(quads, at.y);
        vec4 x2 = load_spread(quads, at.z), x3 = load_spread(quads, at.w);
        chunk w0 = load_chunk(format, row_a.x, c), w1 = load_chunk(format, row_a.y, c);
        chunk w2 = load_chunk(format, row_a.z, c), w3 = load_chunk(format, row_a.w, c);
        chunk w4 = load_chunk(format, row_b.x, c), w5 = load_chunk(format, row_b.y, c);
        chunk w6 = load_chunk(format, row_b.z, c), w7 = load_chunk(format, row_b.w, c);
        vec4 s0 = vec4(0.0), s1 = vec4(0.0), s2 = vec4(0.0), s3 = vec4(0.0);
        vec4 s4 = vec4(0.0), s5 = vec4(0.0), s6 = vec4(0.0), s7 = vec4(0.0);
        LANES_QUAD4(format, quads, 0u) LANES_QUAD4(format, quads, 1u)
        LANES_QUAD4(format, quads, 2u) LANES_QUAD4(format, quads, 3u)
        LANES_QUAD4(format, quads, 4u) LANES_QUAD4(format, quads, 5u)
        LANES_QUAD4(format, quads, 6u) LANES_QUAD4(format, quads, 7u)
        a[0] += w0.d * s0;
        a[1] += w1.d * s1;
        a[2] += w2.d * s2;
        a[3] += w3.d * s3;
        b[0] += w4.d * s4;
        b[1] += w5.d * s5;
        b[2] += w6.d * s6;
        b[3] += w7.d * s7;
    }
    if (n * 4u * quads < k) {
        a += lanes_tail4(format, row_a, n * 4u * quads, k, x);
        b += lanes_tail4(format, row_b, n * 4u * quads, k, x);
    }
}

#endif
