/* Kernels of bench/peak.c against plain C: a measurement that computes something else measures nothing. */
#include <math.h>

#include "support/kernel_test.h"

static void read_case(uint32_t wg, uint32_t trips, bool vec)
{
    enum { X = 3, Y = 2 };
    const struct spec_peak_read spec = {wg, trips, vec};
    const uint32_t unit = vec ? 4 : 1, n_out = X * Y * wg, n_in = n_out * trips * unit;
    uint32_t *in = kt_words(n_in), *out = kt_words(n_out);
    struct kt_buf bufs[] = {{in, (size_t)n_in * 4, KT_IN, false}, {out, (size_t)n_out * 4, KT_OUT, false}};

    for (uint32_t i = 0; i < n_in; i++)
        in[i] = kt_below(1u << 30) * 4 + kt_below(4);
    KT_RUN(GPU_K_peak_read, spec, NULL, bufs, X, Y, 1);
    for (uint32_t g = 0; g < X * Y; g++)
        for (uint32_t l = 0; l < wg; l++) {
            uint32_t want = 0;

            for (uint32_t i = 0; i < trips; i++)
                for (uint32_t j = 0; j < unit; j++)
                    want += in[(g * wg * trips + i * wg + l) * unit + j];
            assert_int_equal(out[g * wg + l], want);
        }
    cor_free(in);
    cor_free(out);
}

static void test_peak_read(void **unused)
{
    (void)unused;
    read_case(32, 16, false);
    read_case(32, 16, true);
    read_case(128, 1, true);
    read_case(5, 3, false);
}

/* Steps of x = x * a + b with every value a small multiple of 2^-8, so that all of them are exact in f32, and
 * in f16 up to its 11 bits. */
static void fma_case(enum gpu_kernel k, uint32_t fused)
{
    enum { WG = 32, TRIPS = 3, GROUPS = 2 };
    const struct spec_peak_fma spec = {WG, TRIPS, fused, GROUPS};
    const bool whole = k == GPU_K_peak_fma_int;
    uint32_t in[2 + WG], out[GROUPS * WG];
    struct kt_buf bufs[] = {{in, sizeof(in), KT_IN, false}, {out, sizeof(out), KT_OUT, false}};

    in[0] = whole ? 3 : kt_bits(2);
    in[1] = whole ? 0x12345678 : kt_bits(1);
    for (uint32_t i = 0; i < WG; i++)
        in[2 + i] = whole ? kt_below(UINT32_MAX) : kt_bits((float)i);
    KT_RUN(k, spec, NULL, bufs, 3, 1, 1);
    for (uint32_t i = 0; i < GROUPS * WG; i++) {
        uint32_t sum = 0;

        for (uint32_t j = 0; j < 8; j++) {
            uint32_t x = (whole ? in[2 + i % WG] : i % WG) + j * (whole ? in[1] : 1);

            for (uint32_t t = 0; t < TRIPS; t++)
                x = x * (whole ? 3 : 2) + (whole ? in[1] : 1);
            sum += 4 * x;
        }
        if (whole)
            assert_int_equal(out[i], sum);
        else /* sums of halves round past 2048 */
            assert_true(fabs((double)kt_float(out[i]) - sum) <= (k == GPU_K_peak_fma ? 0 : sum * 0x1p-9));
    }
}

static void test_peak_fma(void **unused)
{
    static const enum gpu_kernel kernels[] = {GPU_K_peak_fma, GPU_K_peak_fma_half, GPU_K_peak_fma_int};

    (void)unused;
    for (uint32_t i = 0; i < COR_COUNT(kernels); i++)
        for (uint32_t fused = 0; fused < 2 && kt_usable(kernels[i]); fused++)
            fma_case(kernels[i], fused);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_peak_read), cmocka_unit_test(test_peak_fma)};

    return kt_main(KT_BENCH, tests, COR_COUNT(tests));
}
