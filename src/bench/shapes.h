/* Shapes of models whose kernels are measured, and small odd ones whose kernels are checked: one list for
 * bench, selftest, tune and the compiler table. */
#ifndef BENCH_SHAPES_H
#define BENCH_SHAPES_H

#include <stddef.h>
#include <stdint.h>

enum bench_shape_id { BENCH_EMO, BENCH_OLMOE, BENCH_QWEN3, BENCH_NANO, BENCH_MODELS };

struct bench_shape {
    const char *name;
    uint32_t dim, n_heads, n_kv, head_dim, ff, n_experts, k_used, n_shared, vocab;
    uint32_t n_tokens; /* of a prefill chunk that is measured or checked */
    uint32_t context;  /* cached positions at decode */
};

/* The 14B EMO, OLMoE-1B-7B, Qwen3-30B-A3B, and the bundled EMO. */
const struct bench_shape *bench_shape(enum bench_shape_id id);
/* NULL: no such name. */
const struct bench_shape *bench_shape_find(const char *name);

/* Odd sizes for checks: 0: rows of whole blocks; 1: rows that end within a unit of eight, for formats without
 * blocks; 2: a larger one. NULL behind the last. */
const struct bench_shape *bench_shape_odd(uint32_t i);

/* Bytes of n elements of a cache in F32, F16 or Q8_0 (GGUF type numbers), whole blocks. */
uint64_t bench_cache_bytes(uint32_t type, uint64_t n);

#endif
