/* Small functions whose answer for NaN and ties matters. */
#ifndef LIB_MATH_GLSL
#define LIB_MATH_GLSL

#define LOWEST (-3.4028234663852886e38) /* below every finite value but itself; stands for minus infinity */
#define KEY_NONE 0u /* below every key */
#define KEY_NAN 1u

float silu(float x)
{
    return x / (1.0 + exp(-x));
}

/* NaN stays NaN, which the exp of a driver does not promise. */
float exp_nan(float x)
{
    return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u ? x : exp(x);
}

bool bits_finite(uint bits)
{
    return (bits & 0x7f800000u) != 0x7f800000u;
}

/* Unsigned order of the keys is the order of the floats; both zeros are equal, every NaN is lowest. */
uint sort_key(uint bits)
{
    uint a = bits & 0x7fffffffu;
    if (a > 0x7f800000u)
        return KEY_NAN;
    if (a == 0u)
        return 0x80000000u;
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

#endif
