/* A tile of TILE_ROWS (64) matrix rows by TILE_TOKENS (32) input rows per workgroup of 128: both are staged
 * in shared memory TILE_K elements at a time, and each lane keeps a 4 x 4 block of sums in registers. f32
 * sums, in the order of k, so that a result does not depend on where in a tile its row stands.
 * Before inclusion: LOAD_X(i), element i of the input; what lib/dequant.glsl wants. */
#ifndef LIB_TILE_GLSL
#define LIB_TILE_GLSL

#include "lib/dequant.glsl"

#define TILE_K 16u
#define TILE_X_STRIDE 36u /* 32 and padding against bank conflicts; a multiple of 4 */

shared float tile_w[TILE_K * TILE_ROWS];
shared float tile_x[TILE_K * TILE_X_STRIDE];

/* Rows of the tile this lane loads, and the first of the four of each it sums. */
uint tile_load_row()
{
    return gl_LocalInvocationIndex % TILE_ROWS;
}

uint tile_load_token()
{
    return gl_LocalInvocationIndex / 4u;
}

uint tile_sum_row()
{
    return gl_LocalInvocationIndex % 16u * 4u;
}

uint tile_sum_token()
{
    return gl_LocalInvocationIndex / 16u * 4u;
}

void tile_stage_w(uint format, uint w_row, uint k0, uint n)
{
    uint half_k = gl_LocalInvocationIndex / TILE_ROWS; /* which 8 of the 16 */
    uint unit = k0 / 8u + half_k;
    uint at = half_k * 8u * TILE_ROWS + tile_load_row();
    vec8 w = vec8(vec4(0.0), vec4(0.0));

    if (unit * 8u < n)
        w = load8(format, w_row, unit, n);
    tile_w[at] = w.a.x;
    tile_w[at + TILE_ROWS] = w.a.y;
    tile_w[at + 2u * TILE_ROWS] = w.a.z;
    tile_w[at + 3u * TILE_ROWS] = w.a.w;
    tile_w[at + 4u * TILE_ROWS] = w.b.x;
    tile_w[at + 5u * TILE_ROWS] = w.b.y;
    tile_w[at + 6u * TILE_ROWS] = w.b.z;
    tile_w[at + 7u * TILE_ROWS] = w.b.w;
}

void tile_stage_x(uint x_row, uint k0, uint n)
{
    uint k = gl_LocalInvocationIndex % 4u * 4u;
    for (uint i = 0u; i < 4u; i++) {
        float v = 0.0;
        if (k0 + k + i < n)
            v = LOAD_X(x_row + k0 + k + i);
        tile_x[(k + i) * TILE_X_STRIDE + tile_load_token()] = v;
    }
}

/* Column j, component i of the result: dot product of matrix row tile_sum_row() + i and input row
 * tile_sum_token() + j. w_row: byte where the matrix row tile_load_row() starts; x_row: element where the
 * input row tile_load_token() starts (callers clamp both into range); n: row length. Uniform control flow
 * only. */
mat4 tile_dot(uint format, uint w_row, uint x_row, uint n)
{
    vec4 a0 = vec4(0.0), a1 = vec4(0.0), a2 = vec4(0.0), a3 = vec4(0.0);

    for (uint k0 = 0u; k0 < n; k0 += TILE_K) {
        barrier(); /* the step before has been read */
        tile_stage_w(format, w_row, k0, n);
        tile_stage_x(x_row, k0, n);
        barrier();
        for (uint k = 0u; k < TILE_K; k++) {
            uint iw = k * TILE_ROWS + tile_sum_row();
            uint ix = k * TILE_X_STRIDE + tile_sum_token();
            vec4 w = vec4(tile_w[iw], tile_w[iw + 1u], tile_w[iw + 2u], tile_w[iw + 3u]);
            a0 += w * tile_x[ix];
            a1 += w * tile_x[ix + 1u];
            a2 += w * tile_x[ix + 2u];
            a3 += w * tile_x[ix + 3u];
        }
    }
    return mat4(a0, a1, a2, a3);
}

#endif
