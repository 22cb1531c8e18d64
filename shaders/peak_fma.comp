// variants: half=USE_HALF int=USE_INT
/* How many products and sums per second: each lane turns x = x * a + b TRIPS times over eight independent
 * vectors of four, which makes 64 operations a trip. FUSED asks for fma(), else the compiler chooses.
 * Grid: (x, y). The start values come from memory, so that nothing is known when compiling. out: one word per
 * lane. Test: test_kernels_bench. */
#version 450
#extension GL_GOOGLE_include_directive : require
#ifdef USE_HALF
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#endif
#include "shared/params.h"

SPEC_PEAK_FMA(SPEC_X)
layout(local_size_x_id = 0) in;

/* a and b as floats, then one start value per lane of a group; as whole numbers with USE_INT */
layout(std430, set = 0, binding = 0) readonly restrict buffer In { uint data[]; } start;
layout(std430, set = 0, binding = 1) writeonly restrict buffer Out { uint data[]; } result;

#if defined(USE_HALF)
#define VEC f16vec4
#define VALUE(w) VEC(float16_t(uintBitsToFloat(w)))
#define BITS(v) floatBitsToUint(float((v).x + (v).y + (v).z + (v).w))
#elif defined(USE_INT)
#define VEC uvec4
#define VALUE(w) VEC(w)
#define BITS(v) ((v).x + (v).y + (v).z + (v).w)
#else
#define VEC vec4
#define VALUE(w) VEC(uintBitsToFloat(w))
#define BITS(v) floatBitsToUint((v).x + (v).y + (v).z + (v).w)
#endif

#ifdef USE_INT
#define STEP(x) x = x * a + b;
#else
#define STEP(x) x = FUSED != 0u ? fma(x, a, b) : x * a + b;
#endif

void main()
{
    uint lane = gl_LocalInvocationIndex;
    VEC a = VALUE(start.data[0]), b = VALUE(start.data[1]);
    VEC x0 = VALUE(start.data[2u + lane]);
    VEC x1 = x0 + b, x2 = x1 + b, x3 = x2 + b, x4 = x3 + b, x5 = x4 + b, x6 = x5 + b, x7 = x6 + b;

    for (uint i = 0u; i < TRIPS; i++) {
        STEP(x0) STEP(x1) STEP(x2) STEP(x3) STEP(x4) STEP(x5) STEP(x6) STEP(x7)
    }
    uint group = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    result.data[group % GROUPS * WG + lane] = BITS(x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7);
}
