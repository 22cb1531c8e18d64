/* model/quant: halves, every block format against its definition, encoders against the plain conventions. */
#include "support/test.h"

#include "core/bits.h"
#include "model/quant.h"

#include <math.h>
#include <stdio.h>

static const enum mdl_type all_types[] = {MDL_F32, MDL_F16, MDL_BF16, MDL_Q8_0, MDL_Q4_0};

/* Sum of twelve uniforms: normal enough. */
static float normal(uint64_t *state)
{
    double sum = -6;

    for (int i = 0; i < 12; i++)
        sum += test_rand_unit(state);
    return (float)sum;
}

/* ---- types
 * ---------------------------------------------------------------------------------------------------- */

static void test_types(void **state)
{
    (void)state;
    assert_null(mdl_type_find(4));
    assert_null(mdl_type_find(UINT32_MAX));
    assert_null(mdl_type_by_name("q8"));
    assert_null(mdl_type_by_name("q8_00"));
    assert_null(mdl_type_by_name(""));
    assert_int_equal(mdl_type_by_name("Q8_0")->type, MDL_Q8_0);
    assert_int_equal(mdl_type_by_name("bF16")->type, MDL_BF16);
    for (size_t i = 0; i < COR_COUNT(all_types); i++) {
        const struct mdl_type_info *t = mdl_type_find((uint32_t)all_types[i]);

        assert_non_null(t);
        assert_int_equal(t->type, all_types[i]);
        assert_ptr_equal(mdl_type_by_name(t->name), t);
        assert_int_equal(mdl_row_bytes(t->type, 0), 0);
    }
    assert_int_equal(mdl_row_bytes(MDL_F32, 7), 28);
    assert_int_equal(mdl_row_bytes(MDL_BF16, 7), 14);
    assert_int_equal(mdl_row_bytes(MDL_Q8_0, 96), 102);
    assert_int_equal(mdl_row_bytes(MDL_Q4_0, 96), 54);
    assert_true(mdl_row_bytes(MDL_Q8_0, UINT64_C(1) << 40) == (UINT64_C(1) << 35) * 34);
}

/* ---- halves
 * ----------------------------------------------------------------------------------------------------- */

/* The definition, in double. */
static double half_value(uint32_t h)
{
    int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 0x3ff);
    double v = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);

    return h & 0x8000 ? -v : v;
}

static void test_half_to_float(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = mdl_half_to_float((uint16_t)h);

        if ((h & 0x7c00) == 0x7c00) {
            assert_true(h & 0x3ff ? isnan(f) : isinf(f));
            assert_true(!signbit(f) == !(h & 0x8000));
            if (h & 0x3ff)
                assert_true(isnan(mdl_half_to_float(mdl_float_to_half(f))));
            else
                assert_int_equal(mdl_float_to_half(f), h);
        } else {
            assert_true((double)f == half_value(h));
            assert_true(!signbit(f) == !(h & 0x8000));
            assert_int_equal(mdl_float_to_half(f), h);
        }
    }
}

/* Between neighbouring halves: below, at and above the midpoint, both signs; the midpoint goes to the even
 * one. */
static void test_float_to_half_rounds(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double low = half_value(h), high = h == 0x7bff ? 65536 : half_value(h + 1);
        float mid = (float)((low + high) / 2);
        uint32_t even = h & 1 ? h + 1 : h;

        assert_int_equal(mdl_float_to_half(nextafterf(mid, 0)), h);
        assert_int_equal(mdl_float_to_half(mid), even);
        assert_int_equal(mdl_float_to_half(nextafterf(mid, INFINITY)), h + 1);
        assert_int_equal(mdl_float_to_half(-nextafterf(mid, 0)), h | 0x8000);
        assert_int_equal(mdl_float_to_half(-mid), even | 0x8000);
    }
    assert_int_equal(mdl_float_to_half(3.4e38f), 0x7c00);
    assert_int_equal(mdl_float_to_half(1e-45f), 0);
    assert_int_equal(mdl_float_to_half(-0.0f), 0x8000);
    assert_true(isnan(mdl_half_to_float(mdl_float_to_half(cor_float_from_bits(0x7f800001)))));
}

static void test_bf16(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = mdl_bf16_to_float((uint16_t)h);

        assert_int_equal(cor_float_bits(f), h << 16);
        if (isnan(f))
            assert_true(isnan(mdl_bf16_to_float(mdl_float_to_bf16(f))));
        else
            assert_int_equal(mdl_float_to_bf16(f), h);
        if ((h & 0x7f80) == 0x7f80)
            continue;
        assert_int_equal(mdl_float_to_bf16(cor_float_from_bits(h << 16 | 0x7fff)), h);
        assert_int_equal(mdl_float_to_bf16(cor_float_from_bits(h << 16 | 0x8000)), h & 1 ? h + 1 : h);
        assert_int_equal(mdl_float_to_bf16(cor_float_from_bits(h << 16 | 0x8001)), h + 1);
    }
    assert_true(isnan(mdl_bf16_to_float(mdl_float_to_bf16(cor_float_from_bits(0x7f800001)))));
}

/* ---- reading
 * ---------------------------------------------------------------------------------------------------- */

static void test_dequant_definition(void **state)
{
    uint64_t seed = test_seed();
    uint8_t raw[1 + 3 * 34];
    float got[96];

    (void)state;
    for (int round = 0; round < 200; round++) {
        const uint8_t *p = raw + (round & 1); /* any alignment */

        for (size_t i = 0; i < sizeof(raw); i++)
            raw[i] = (uint8_t)test_rand(&seed);
        for (int b = 0; b < 3; b++) { /* finite scales, every other one subnormal */
            raw[(round & 1) + 34 * b + 1] = (uint8_t)(raw[(round & 1) + 34 * b + 1] & (b & 1 ? 0x83 : 0xbf));
            raw[(round & 1) + 18 * b + 1] = (uint8_t)(raw[(round & 1) + 18 * b + 1] & (b & 1 ? 0x83 : 0xbf));
        }
        mdl_dequant_row(MDL_Q8_0, p, got, 96);
        for (int i = 0; i < 96; i++) {
            const uint8_t *block = p + i / 32 * 34;
            double d = half_value((uint32_t)(block[0] | block[1] << 8));
            int q = block[2 + i % 32];

            assert_true((double)got[i] == d * (q < 128 ? q : q - 256) || (q == 0 && got[i] == 0));
        }
        mdl_dequant_row(MDL_Q4_0, p, got, 96);
        for (int i = 0; i < 96; i++) {
            const uint8_t *block = p + i / 32 * 18;
            double d = half_value((uint32_t)(block[0] | block[1] << 8));
            int e = i % 32, q = e < 16 ? block[2 + e] & 15 : block[2 + e - 16] >> 4;

            assert_true((double)got[i] == d * (q - 8));
        }
        mdl_dequant_row(MDL_F16, p, got, 7);
        for (int i = 0; i < 7; i++) {
            float want = mdl_half_to_float((uint16_t)(p[2 * i] | p[2 * i + 1] << 8));

            assert_memory_equal(&got[i], &want, 4);
        }
        mdl_dequant_row(MDL_F32, p, got, 7);
        assert_memory_equal(got, p, 28);
    }
}

/* Infinite and NaN scales give non-finite values, not a trap. */
static void test_dequant_non_finite_scale(void **state)
{
    uint8_t q8[34] = {0x00, 0x7c, 1, 0xff}, q4[18] = {0x01, 0x7e};
    float got[32];

    (void)state;
    mdl_dequant_row(MDL_Q8_0, q8, got, 32);
    assert_true(isinf(got[0]) && isinf(got[1]) && got[1] < 0 && isnan(got[2]));
    mdl_dequant_row(MDL_Q4_0, q4, got, 32);
    assert_true(isnan(got[0]) && isnan(got[31]));
}

/* ---- writing
 * ---------------------------------------------------------------------------------------------------- */

static double squared_error(const float *a, const float *b, size_t n)
{
    double e = 0;

    for (size_t i = 0; i < n; i++)
        e += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return e;
}

/* GGUF's usual Q4_0: d = (value of largest magnitude) / -8, q = floor(x / d + 8.5) at most 15. */
static double plain_q4_0_error(const float *x)
{
    float top = 0, d, e, back[32];

    for (int i = 0; i < 32; i++)
        top = fabsf(x[i]) > fabsf(top) ? x[i] : top;
    d = top / -8;
    e = mdl_half_to_float(mdl_float_to_half(d));
    for (int i = 0; i < 32; i++) {
        int q = d != 0 ? (int)(x[i] * (1 / d) + 8.5f) : 8;

        back[i] = e * (float)((q > 15 ? 15 : q) - 8);
    }
    return squared_error(x, back, 32);
}

static void test_exact_types(void **state)
{
    uint64_t seed = test_seed();
    float x[33], back[33];
    uint8_t raw[33 * 4 + 1];

    (void)state;
    for (int round = 0; round < 100; round++) {
        for (int i = 0; i < 33; i++)
            x[i] = normal(&seed);
        assert_true(mdl_quant_row(MDL_F32, x, raw + 1, 33));
        mdl_dequant_row(MDL_F32, raw + 1, back, 33);
        assert_memory_equal(x, back, sizeof(x));
        assert_true(mdl_quant_row(MDL_F16, x, raw + 1, 33));
        mdl_dequant_row(MDL_F16, raw + 1, back, 33);
        for (int i = 0; i < 33; i++)
            assert_true(fabs((double)back[i] - x[i]) <= fabs((double)x[i]) * 0x1p-11 + 0x1p-25);
        assert_true(mdl_quant_row(MDL_BF16, x, raw + 1, 33));
        mdl_dequant_row(MDL_BF16, raw + 1, back, 33);
        for (int i = 0; i < 33; i++)
            assert_true(fabs((double)back[i] - x[i]) <= fabs((double)x[i]) * 0x1p-8);
    }
}

static void test_q8_0_error(void **state)
{
    uint64_t seed = test_seed();
    float x[32], back[32];
    uint8_t raw[34];

    (void)state;
    for (int round = 0; round < 4000; round++) {
        double amax = 0, scale = ldexp(1, (int)(test_rand(&seed) % 40) - 26), d;

        for (int i = 0; i < 32; i++) {
            x[i] = (float)(normal(&seed) * scale);
            amax = fabs((double)x[i]) > amax ? fabs((double)x[i]) : amax;
        }
        assert_true(mdl_quant_row(MDL_Q8_0, x, raw, 32));
        mdl_dequant_row(MDL_Q8_0, raw, back, 32);
        d = half_value((uint32_t)(raw[0] | raw[1] << 8));
        assert_true(fabs(d - amax / 127) <= amax / 127 * 0x1p-11 + 0x1p-24);
        for (int i = 0; i < 32; i++) /* half a step, and no clipping anywhere */
            assert_true(fabs((double)back[i] - x[i]) <= d * 0.501);
    }
}

static void test_q4_0_error(void **state)
{
    uint64_t seed = test_seed();
    double ours = 0, plain = 0;
    float x[32], back[32];
    uint8_t raw[18];

    (void)state;
    for (int round = 0; round < 20000; round++) {
        double p, o;

        for (int i = 0; i < 32; i++)
            x[i] = 0.02f * normal(&seed);
        if (round % 5 == 0)
            x[round % 32] *= 6; /* an outlier */
        assert_true(mdl_quant_row(MDL_Q4_0, x, raw, 32));
        mdl_dequant_row(MDL_Q4_0, raw, back, 32);
        p = plain_q4_0_error(x);
        o = squared_error(x, back, 32);
        assert_true(o <= p * (1 + 1e-5));
        ours += o;
        plain += p;
    }
    print_message("q4_0: %.1f %% of the usual convention's squared error\n", 100 * ours / plain);
    assert_true(ours <= 0.98 * plain);
}

/* Values that a block can hold exactly come back exactly. */
static void test_quant_representable(void **state)
{
    uint64_t seed = test_seed();
    float x[32], back[32];
    uint8_t raw[34];

    (void)state;
    for (int round = 0; round < 500; round++) {
        float d = mdl_half_to_float((uint16_t)(0x0401 + test_rand(&seed) % 0x7000));

        for (int i = 0; i < 32; i++)
            x[i] = d * (float)((int)(test_rand(&seed) % 255) - 127);
        x[round % 32] = d * 127;
        assert_true(mdl_quant_row(MDL_Q8_0, x, raw, 32));
        mdl_dequant_row(MDL_Q8_0, raw, back, 32);
        assert_memory_equal(x, back, sizeof(x));
        for (int i = 0; i < 32; i++)
            x[i] = d * (float)((int)(test_rand(&seed) % 16) - 8);
        x[round % 32] = d * -8;
        assert_true(mdl_quant_row(MDL_Q4_0, x, raw, 32));
        mdl_dequant_row(MDL_Q4_0, raw, back, 32);
        for (int i = 0; i < 32; i++)
            assert_true(back[i] == x[i]);
    }
}

static void test_quant_zero_and_subnormal(void **state)
{
    float x[64] = {0}, back[64];
    uint8_t raw[68];

    (void)state;
    for (size_t t = 0; t < COR_COUNT(all_types); t++) {
        memset(raw, 0xff, sizeof(raw));
        memset(x, 0, sizeof(x));
        x[3] = -0.0f;
        if (all_types[t] == MDL_F32)
            continue;
        assert_true(mdl_quant_row(all_types[t], x, raw, 32));
        mdl_dequant_row(all_types[t], raw, back, 32);
        for (int i = 0; i < 32; i++)
            assert_true(back[i] == 0);
        for (int e = -149; e < -20; e++) { /* whole blocks around and below the smallest half */
            for (int i = 0; i < 32; i++)
                x[i] = (float)ldexp(i & 1 ? -1 : 1, e);
            assert_true(mdl_quant_row(all_types[t], x, raw, 32));
            mdl_dequant_row(all_types[t], raw, back, 32);
            for (int i = 0; i < 32; i++) /* the smallest step is 2^-24 for halves */
                assert_true(fabs((double)back[i] - x[i]) <= 0x1p-25 + fabs((double)x[i]) * 0.07);
        }
    }
    memset(x, 0, sizeof(x));
    assert_true(mdl_quant_row(MDL_Q8_0, x, raw, 32));
    assert_int_equal(raw[0] | raw[1], 0);
    assert_true(mdl_quant_row(MDL_Q4_0, x, raw, 32));
    assert_int_equal(raw[0] | raw[1], 0);
}

static void test_quant_refuses(void **state)
{
    static const uint32_t bad[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001};
    float x[64] = {0};
    uint8_t raw[256];

    (void)state;
    for (size_t t = 0; t < COR_COUNT(all_types); t++)
        for (size_t b = 0; b < COR_COUNT(bad); b++)
            for (int at = 0; at < 64; at += 21) {
                memset(x, 0, sizeof(x));
                x[at] = cor_float_from_bits(bad[b]);
                assert_false(mdl_quant_row(all_types[t], x, raw, 64));
            }
    memset(x, 0, sizeof(x)); /* finite, but past what the type can hold */
    x[40] = -70000;
    assert_false(mdl_quant_row(MDL_F16, x, raw, 64));
    assert_true(mdl_quant_row(MDL_Q8_0, x, raw, 64));
    assert_true(mdl_quant_row(MDL_Q4_0, x, raw, 64));
    x[40] = 3.4028235e38f;
    assert_true(mdl_quant_row(MDL_F32, x, raw, 64));
    assert_false(mdl_quant_row(MDL_BF16, x, raw, 64));
    assert_false(mdl_quant_row(MDL_Q8_0, x, raw, 64));
    assert_false(mdl_quant_row(MDL_Q4_0, x, raw, 64));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_half_to_float),
        cmocka_unit_test(test_float_to_half_rounds),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_dequant_definition),
        cmocka_unit_test(test_dequant_non_finite_scale),
        cmocka_unit_test(test_exact_types),
        cmocka_unit_test(test_q8_0_error),
        cmocka_unit_test(test_q4_0_error),
        cmocka_unit_test(test_quant_representable),
        cmocka_unit_test(test_quant_zero_and_subnormal),
        cmocka_unit_test(test_quant_refuses),
    };

    return cmocka_run_group_tests_name("quant", tests, NULL, NULL);
}
