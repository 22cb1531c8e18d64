/* Halves in 32-bit words, without fp16 arithmetic or 16-bit storage.
 * Devices may flush subnormal halves and round as they like when packing, so both are spelt out here. */
#ifndef LIB_HALF_GLSL
#define LIB_HALF_GLSL

/* Both halves of a word, the low one first. Exponent 0 is mantissa * 2^-24; infinities and NaN stay. */
vec2 halves_to_floats(uint w)
{
    uvec2 h = uvec2(w & 0xffffu, w >> 16);
    vec2 tiny = vec2(h & 0x3ffu) * 5.9604644775390625e-8;
    tiny = mix(tiny, -tiny, notEqual(h & 0x8000u, uvec2(0u)));
    return mix(unpackHalf2x16(w), tiny, equal(h & 0x7c00u, uvec2(0u)));
}

/* The same for two words. */
vec4 halves_to_floats(uvec2 w)
{
    uvec4 h = uvec4(w.x & 0xffffu, w.x >> 16, w.y & 0xffffu, w.y >> 16);
    vec4 tiny = vec4(h & 0x3ffu) * 5.9604644775390625e-8;
    tiny = mix(tiny, -tiny, notEqual(h & 0x8000u, uvec4(0u)));
    return mix(vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y)), tiny, equal(h & 0x7c00u, uvec4(0u)));
}

float half_to_float(uint h)
{
    return halves_to_floats(h).x;
}

/* Round to nearest even. Finite values past the range become the largest half; infinities and NaN stay
 * visible. */
uint float_to_half(float v)
{
    uint bits = floatBitsToUint(v);
    uint sign = (bits >> 16) & 0x8000u;
    uint a = bits & 0x7fffffffu;

    if (a >= 0x7f800000u)
        return sign | (a > 0x7f800000u ? 0x7e00u : 0x7c00u);
    if (a >= 0x477ff000u)
        return sign | 0x7bffu;
    if (a < 0x38800000u)
        return sign | uint(roundEven(uintBitsToFloat(a) * 16777216.0));
    a -= 0x38000000u;
    return sign | ((a + 0xfffu + ((a >> 13) & 1u)) >> 13);
}

uint floats_to_halves(vec2 v)
{
    return float_to_half(v.x) | (float_to_half(v.y) << 16);
}

#endif
