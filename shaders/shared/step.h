/* What the host and the shaders both know of one submit: step, state, argument template, mailbox, slot table.
 * Read by C and by GLSL: 32-bit scalars only. */
#ifndef SHARED_STEP_H
#define SHARED_STEP_H

#define NONE 0xffffffffu      /* no expert, no slot, no layer */
#define MAX_EXPERTS 512       /* routed experts per layer */
#define MAX_TOP_K 32          /* routed experts per token */

/* The step buffer (host-visible): head, then n_tokens token ids from STEP_TOKENS on (chunk words are
 * reserved), then n_changes pairs (index into the slot table, slot). The state buffer (device) has the
 * same head and tokens. Word offsets of the head: */
#define STEP_N_TOKENS 0  /* tokens in this submit, 1 .. chunk */
#define STEP_POS 1       /* position of the first of them */
#define STEP_FIRST 2     /* first dispatch that runs; those before it get empty grids */
#define STEP_ROW0 3      /* first token row for the output head */
#define STEP_N_ROWS 4    /* rows for the output head */
#define STEP_N_CHANGES 5
#define STEP_CHUNK 6     /* words reserved for tokens */
#define STEP_PARTIAL 7   /* 1: run the resident experts of the first layer and stop before their sum */
#define STEP_DONE 8      /* bitmap: experts of the first layer whose work is done, MAX_EXPERTS / 32 words */
#define STEP_DONE_LAYER 24 /* that layer; NONE: nothing is done */
#define STEP_TOKENS 28

/* The argument template (device, written once): word 0 is the number of dispatches, entries start at
 * TMPL_HEAD, one of TMPL_WORDS words per dispatch: (mode, a) for x, y and z. The arguments have 3 words
 * per dispatch. */
#define TMPL_HEAD 4
#define TMPL_WORDS 6
#define DIM_FIXED 0   /* a */
#define DIM_TOKENS 1  /* ceil(n_tokens / a) */
#define DIM_ROWS 2    /* ceil(n_rows / a) */
#define DIM_CONTEXT 3 /* ceil((pos + n_tokens) / a) */
#define DIM_DEVICE 4  /* 0 now; a kernel of the same submit sets it (expert tiles) */

/* The mailbox (host-readable). publish clears layer to NONE, router_one and group fill it when experts are
 * absent. */
#define MAIL_LAYER 0     /* layer that halted, NONE: the submit ran to its end */
#define MAIL_N_MISSING 1
#define MAIL_MISSING 4   /* bitmap of absent experts, MAX_EXPERTS / 32 words */
#define MAIL_WORDS 20

/* The routes (host-readable): what each layer chose, word ((layer * chunk + t) * K_USED + j) * 2;
 * router_one and group write them.
 *
 * Routed choice of token t: words (t * K_USED + j) * 2: expert id (NONE: fewer allowed than K_USED), bits
 * of its weight; by falling weight. A "pair" is t * K_USED + j. */

/* What one token chose (device); each part starts where a binding may. */
#define CHOICE_COUNT 0    /* counter of lib/last.glsl */
#define CHOICE_RUN 64     /* K_USED + 1 slots to run now, NONE: nothing; the last is the shared expert's */
#define CHOICE_SLOTS 128  /* K_USED + 1 slots of all that was chosen */
#define CHOICE_SEL 192    /* the routed choice, as above */
#define CHOICE_LOGITS 256 /* of the router, MAX_EXPERTS */
#define CHOICE_MASK 768   /* allowed experts: bitmaps of ceil(n_experts / 32) words, one per layer; behind
                           * them what is added to the router's logits, n_experts f32 per layer, or nothing */
#define SLOT_SHARED 0xfffffffeu /* in place of a slot: the shared expert */

/* Expert tiles for prefill: TILE_WORDS words each. */
#define TILE_WORDS 4
#define TILE_SLOT 0   /* slot of the expert */
#define TILE_FIRST 1  /* index of its first entry in the list of pairs */
#define TILE_COUNT 2  /* entries, 1 .. TILE_TOKENS */
#define TILE_EXPERT 3
#define TILE_TOKENS 32
#define TILE_ROWS 64  /* output rows of a matmul or expert tile workgroup */

/* A result of topk: k pairs (index, bits), how many logits are not finite, a word of nothing. */
#define TOPK_WORDS(k) (2u * (k) + 2u)
#define TOPK_SLICE 1024u /* logits that a workgroup looks through */
#define TOPK_MAX 64      /* pairs */

#define ATTN_SPLIT 128 /* cached positions per workgroup of attn_one */
#define ATTN_QUERIES 16 /* queries per workgroup of attn_many */

/* A block of the cache in Q8_0 (lib/cache.glsl): elements and words. */
#define CACHE_ELEMS 32u
#define CACHE_WORDS 9u
/* Bytes of n elements of a cache, whole blocks. */
#define CACHE_BYTES(format, n)                                       \
    ((format) == FMT_Q8_0 ? (n) / CACHE_ELEMS * CACHE_WORDS * 4u     \
                          : (n) * ((format) == FMT_F16 ? 2u : 4u))
/* What stands between the halves of an expert, as in model/model.h. */
#define ACT_SILU 0
#define ACT_CLAMPED 1
#define ACT_ALPHA 1.702
#define ACT_LIMIT 7.0

/* GGUF type numbers, as in model/quant.h. */
#define FMT_F32 0
#define FMT_F16 1
#define FMT_Q4_0 2
#define FMT_Q4_1 3
#define FMT_Q5_0 6
#define FMT_Q5_1 7
#define FMT_Q8_0 8
#define FMT_Q2_K 10
#define FMT_Q3_K 11
#define FMT_Q4_K 12
#define FMT_Q5_K 13
#define FMT_Q6_K 14
#define FMT_IQ4_NL 20
#define FMT_BF16 30
#define FMT_MXFP4 39

#endif
