/* Elements of an input, four at a time. Before inclusion: LOAD_X(i), LOAD_X4(i) and X_ALIGNED, as
 * lib/rows.glsl says. */
#ifndef LIB_INPUT_GLSL
#define LIB_INPUT_GLSL

vec4 load_x4(uint i)
{
    if (X_ALIGNED)
        return LOAD_X4(i / 4u);
    return vec4(LOAD_X(i), LOAD_X(i + 1u), LOAD_X(i + 2u), LOAD_X(i + 3u));
}

#endif
