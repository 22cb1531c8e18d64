/* The core of lib/rows.glsl for narrow devices, whose lanes run one after the other or nearly so and pay for
 * every load from a buffer: each lane sums four matrix rows of its own, row, row + WG, row + 2 WG and
 * row + 3 WG, in chunks of 8 words at most; each input element is loaded once per workgroup, which is one
 * subgroup, and broadcast. No reduction; f32 sums in the order of k (blocks are summed before they are
 * scaled), so that a result does not depend on its place. ROWS is 4 WG; WG is the subgroup size, 8 or more.
 * Before inclusion: as lib/rows.glsl and lib/chunk.glsl. */
#ifndef LIB_LANES_GLSL
#define LIB_LANES_GLSL

#include "lib/chunk.glsl"
#include "lib/input.glsl"

/* Elements of a chunk of the input, from element i on: group g of four in lane g, any in lanes behind. */
vec4 load_spread(uint quads, uint i)
{
    return load_x4(i + 4u * min(gl_SubgroupInvocationID, quads - 1u));
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

#define LANES_QUAD(quad, g)                         \
    {                                               \
        vec4 e = subgroupBroadcast(x, g);           \
        sum.x += dot(quad(format, w[0], g), e);     \
        sum.y += dot(quad(format, w[1], g), e);     \
        sum.z += dot(quad(format, w[2], g), e);     \
        sum.w += dot(quad(format, w[3], g), e);     \
    }

/* A chunk of four unquantised rows times that of the input, which is spread. */
vec4 words_dot(uint format, chunk w[4], vec4 x)
{
    vec4 sum = vec4(0.0);
    LANES_QUAD(words_quad, 0u) LANES_QUAD(words_quad, 1u)
    if (format != FMT_F32) {
        LANES_QUAD(words_quad, 2u) LANES_QUAD(words_quad, 3u)
    }
    return sum;
}

#ifdef LOAD_PAIR_Q4
/* A block of four rows. */
vec4 block_dot(uint format, chunk w[4], vec4 x)
{
    vec4 sum = vec4(0.0);
    LANES_QUAD(block_quad, 0u) LANES_QUAD(block_quad, 1u) LANES_QUAD(block_quad, 2u)
    LANES_QUAD(block_quad, 3u) LANES_QUAD(block_quad, 4u) LANES_QUAD(block_quad, 5u)
    LANES_QUAD(block_quad, 6u) LANES_QUAD(block_quad, 7u)
    return vec4(w[0].d, w[1].d, w[2].d, w[3].d) * sum;
}

vec4 blocks_dot(uint format, uvec4 row, uint n, uint x0)
{
    vec4 sum = vec4(0.0);
    for (uint c = 0u; c < n; c += 2u) {
        chunks w0 = load_pair(format, row.x, c), w1 = load_pair(format, row.y, c);
        chunks w2 = load_pair(format, row.z, c), w3 = load_pair(format, row.w, c);
        sum += block_dot(format, chunk[4](w0.even, w1.even, w2.even, w3.even), load_spread(8u, x0 + c * 32u));
        if (!PAIRS && c + 1u == n)
            break;
        sum += block_dot(format, chunk[4](w0.odd, w1.odd, w2.odd, w3.odd),
                         load_spread(8u, x0 + c * 32u + 32u));
    }
    return sum;
}
#endif

vec4 rows_dot(uint format, uint base, uint stride, uint row0, uint n_rows, uint k, uint x0)
{
    uvec4 row = lanes_rows(base, stride, row0, n_rows);
    vec4 sum = vec4(0.0);

#ifdef LOAD_PAIR_Q4
    if (has_blocks(format))
        return blocks_dot(format, row, k / 32u, x0);
#endif
    uint quads = chunk_quads(format), n = k / (4u * quads);
    for (uint c = 0u; c < n; c++)
        sum += words_dot(format,
                         chunk[4](load_words(row.x, c), load_words(row.y, c), load_words(row.z, c),
                                  load_words(row.w, c)),
                         load_spread(quads, x0 + c * 4u * quads));
    return sum + lanes_tail(format, row, n * 4u * quads, k, x0);
}

/* Two matrices and one input. A loop, since drivers that translate a kernel in every process pay for its
 * size; two formats that differ are then told apart at run time. */
void rows_dot2(uint format_a, uint base_a, uint format_b, uint base_b, uint row0, uint n_rows, uint k,
               uint x0, out vec4 a, out vec4 b)
{
    b = vec4(0.0);
    for (uint i = 0u; i < 2u; i++) {
        uint format = i == 0u ? format_a : format_b;
        a = b;
        b = rows_dot(format, i == 0u ? base_a : base_b, row_bytes(format, k), row0, n_rows, k, x0);
    }
}

/* ---- eight rows per lane, four input rows
 * ------------------------------------------------------------------- */

#define LANES_ROW4(quad, i, sum, g)                                  \
    {                                                                \
        vec4 q = quad(format, w[i], g);                              \
        sum += vec4(dot(q, e0), dot(q, e1), dot(q, e2), dot(q, e3)); \
    }
#define LANES_QUAD4(quad, g)                                                                     \
    {                                                                                            \
        vec4 e0 = subgroupBroadcast(x[0], g), e1 = subgroupBroadcast(x[1], g);                   \
        vec4 e2 = subgroupBroadcast(x[2], g), e3 = subgroupBroadcast(x[3], g);                   \
        LANES_ROW4(quad, 0, s[0], g) LANES_ROW4(quad, 1, s[1], g) LANES_ROW4(quad, 2, s[2], g)   \
        LANES_ROW4(quad, 3, s[3], g) LANES_ROW4(quad, 4, r[0], g) LANES_ROW4(quad, 5, r[1], g)   \
        LANES_ROW4(quad, 6, r[2], g) LANES_ROW4(quad, 7, r[3], g)                                \
    }

/* Adds a chunk of eight unquantised rows; column j of x is the chunk of input row j, spread. */
void words_dot4(uint format, chunk w[8], mat4 x, inout mat4 a, inout mat4 b)
{
    mat4 s = mat4(0.0), r = mat4(0.0);
    LANES_QUAD4(words_quad, 0u) LANES_QUAD4(words_quad, 1u)
    if (format != FMT_F32) {
        LANES_QUAD4(words_quad, 2u) LANES_QUAD4(words_quad, 3u)
    }
    a += s;
    b += r;
}

mat4 load_spread4(uint quads, uvec4 i)
{
    return mat4(load_spread(quads, i.x), load_spread(quads, i.y), load_spread(quads, i.z),
                load_spread(quads, i.w));
}

#ifdef LOAD_PAIR_Q4
/* A block of eight rows. */
void block_dot4(uint format, chunk w[8], mat4 x, inout mat4 a, inout mat4 b)
{
    mat4 s = mat4(0.0), r = mat4(0.0);
    LANES_QUAD4(block_quad, 0u) LANES_QUAD4(block_quad, 1u) LANES_QUAD4(block_quad, 2u)
    LANES_QUAD4(block_quad, 3u) LANES_QUAD4(block_quad, 4u) LANES_QUAD4(block_quad, 5u)
    LANES_QUAD4(block_quad, 6u) LANES_QUAD4(block_quad, 7u)
    for (uint i = 0u; i < 4u; i++) {
        a[i] += w[i].d * s[i];
        b[i] += w[4u + i].d * r[i];
    }
}

/* Blocks are loaded one by one: a pair at once is a fifth faster and twice the code, which drivers that
 * translate a kernel in every process take a third of a second longer for. */
void blocks_dot4(uint format, uvec4 ra, uvec4 rb, uint n, uvec4 x, inout mat4 a, inout mat4 b)
{
    for (uint c = 0u; c < n; c++)
        block_dot4(format,
                   chunk[8](load_block(format, ra.x, c), load_block(format, ra.y, c),
                            load_block(format, ra.z, c), load_block(format, ra.w, c),
                            load_block(format, rb.x, c), load_block(format, rb.y, c),
                            load_block(format, rb.z, c), load_block(format, rb.w, c)),
                   load_spread4(8u, x + c * 32u), a, b);
}
#endif

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
    uvec4 ra = lanes_rows(base, stride, row0, n_rows);
    uvec4 rb = lanes_rows(base, stride, row0 + 4u * WG, n_rows);
    uint quads = chunk_quads(format), n = k / (4u * quads);

    a = mat4(0.0);
    b = mat4(0.0);
#ifdef LOAD_PAIR_Q4
    if (has_blocks(format)) {
        blocks_dot4(format, ra, rb, k / 32u, x, a, b);
        return;
    }
#endif
    for (uint c = 0u; c < n; c++)
        words_dot4(format,
                   chunk[8](load_words(ra.x, c), load_words(ra.y, c), load_words(ra.z, c),
                            load_words(ra.w, c), load_words(rb.x, c), load_words(rb.y, c),
                            load_words(rb.z, c), load_words(rb.w, c)),
                   load_spread4(quads, x + c * 4u * quads), a, b);
    if (n * 4u * quads < k) {
        a += lanes_tail4(format, ra, n * 4u * quads, k, x);
        b += lanes_tail4(format, rb, n * 4u * quads, k, x);
    }
}

#endif
