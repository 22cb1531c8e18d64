#include "bench/shapes.h"

#include <string.h>

#include "shared/step.h"

#define TOKENS  64
#define CONTEXT 1024

static const struct bench_shape models[BENCH_MODELS] = {
    [BENCH_EMO] = {"emo", 2048, 16, 16, 128, 1024, 127, 7, 1, 100352, TOKENS, CONTEXT},
    [BENCH_OLMOE] = {"olmoe", 2048, 16, 16, 128, 1024, 64, 8, 0, 50304, TOKENS, CONTEXT},
    [BENCH_QWEN3] = {"qwen3-30b", 2048, 32, 4, 128, 768, 128, 8, 0, 151936, TOKENS, CONTEXT},
    [BENCH_NANO] = {"nano", 256, 4, 4, 64, 64, 63, 5, 1, 4096, TOKENS, CONTEXT},
};

static const struct bench_shape odd[] = {
    {"blocks", 96, 4, 2, 64, 160, 9, 3, 1, 301, 5, 130},
    {"tails", 37, 3, 3, 10, 21, 33, 2, 0, 29, 3, 4},
    {"larger", 512, 4, 2, 128, 256, 127, 7, 1, 4099, 40, 300},
};

const struct bench_shape *bench_shape(enum bench_shape_id id)
{
    return &models[id];
}

const struct bench_shape *bench_shape_find(const char *name)
{
    for (int i = 0; i < BENCH_MODELS; i++)
        if (!strcmp(models[i].name, name))
            return &models[i];
    return NULL;
}

const struct bench_shape *bench_shape_odd(uint32_t i)
{
    return i < sizeof(odd) / sizeof(odd[0]) ? &odd[i] : NULL;
}

uint64_t bench_cache_bytes(uint32_t type, uint64_t n)
{
    return CACHE_BYTES(type, n);
}
