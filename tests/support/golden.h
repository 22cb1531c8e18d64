/* Golden outputs of the PyTorch original, and the rules by which another implementation is held to them.
 * Used by the scalar reference's test and by the device's end-to-end tests. Files: tests/golden/README.md. */
#ifndef TEST_GOLDEN_H
#define TEST_GOLDEN_H

#include "core/npy.h"
#include "model/quant.h"
#include "support/test.h"

#define GOLDEN_GREEDY  64 /* steps of a greedy continuation */
#define GOLDEN_PROMPTS 6  /* p0 .. p5: 1, 2, 17, 128, 300 and 700 tokens */
#define GOLDEN_MAX_LEN 1024

/* Limits of issue 2; they are never loosened. */
#define GOLDEN_NMSE_F32  1e-10
#define GOLDEN_DIFF_F32  5e-4
#define GOLDEN_NMSE_F16  1e-6
#define GOLDEN_DIFF_F16  2e-2
#define GOLDEN_MAX_FLIPS 3 /* positions left out in one run with an f32 cache */

/* What the original gave with one set of experts. data is NULL where golden has none (long prompts). */
struct golden_run {
    struct cor_npy last_logits; /* (vocab) after the last prompt token */
    struct cor_npy logits;      /* (n_tokens, vocab), prompts up to 128 tokens, full set of experts only */
    struct cor_npy experts; /* (n_layers, n_tokens, k): routed by falling weight, then the shared one; up to
                               300 tokens */
    struct cor_npy weights; /* as experts */
    struct cor_npy greedy;  /* (GOLDEN_GREEDY) */
    struct cor_npy gap;     /* (GOLDEN_GREEDY): best minus second-best logit at each step */
};

struct golden {
    char name[64]; /* "emo-nano p3", for messages */
    uint32_t n_tokens, n_layers, n_experts /* routed */, vocab_size;
    const int32_t *tokens;
    struct cor_npy ids;
    struct golden_run full;
    struct golden_run sub; /* only the experts of `allowed`: the 12.5 % subset of the prompt's domain */
    uint32_t *allowed;     /* expert mask as mdl_ref_params wants it, n_layers x ceil(n_experts / 32) words */
};

/* Loads prompt `index` of "emo-nano" or "stdmoe-nano". False when its files are neither in tests/golden nor
 * in shared/: the test then calls test_skip. Fails the test for files that are there and broken. */
bool golden_load(struct golden *g, const char *model, uint32_t index);
void golden_free(struct golden *g);

/* The start of scripture's validation text as emo-nano was trained to see it: an end-of-text token, then n -
 * 1 tokens of the first document. */
void golden_scripture(int32_t *ids, size_t n);

/* Path of the model as GGUF: the bundled file for emo-nano in BF16, else converted from shared/ (or, for
 * emo-nano, from the bundled file) into test_tmp() at the first call. NULL when there is nothing to make it
 * from: test_skip. */
const char *golden_model(const char *model, enum mdl_type type);

/* Running comparison of float arrays. */
struct golden_diff {
    double err2, ref2; /* sums of squares of the differences and of the golden values */
    double max_diff;
    uint64_t count, bad; /* values compared, and non-finite ones among them */
};

void golden_diff_add(struct golden_diff *d, const float *got, const float *want, size_t n);
/* -log of the probability of id, in double. */
double golden_token_nll(const float *logits, uint32_t vocab, int32_t id);
double golden_nmse(const struct golden_diff *d); /* infinite when a value was not finite */
/* Prints both figures, and fails the test past a limit or when nothing was compared. */
void golden_diff_check(const struct golden_diff *d, const char *what, double max_nmse, double max_diff);

/* Running comparison of routed experts. A position where the sets differ although the reference's
 * probabilities p_k and p_(k+1) are nearly equal there (p_k - p_(k+1) < 1e-4 p_k) is a flip: it is left out,
 * with all deeper layers of that token, and counted. Any other difference fails the test at once. */
struct golden_routes {
    bool any_margin; /* every difference is a flip: caches of halves, where the limit is a share of all */
    uint32_t compared, flips;      /* (layer, token) pairs compared; tokens left out */
    double max_weight_diff;        /* of routing weights where the sets agree */
    bool left_out[GOLDEN_MAX_LEN]; /* tokens whose logits must not be compared */
};

/* ids: n routed experts in any order; weights: theirs, or NULL; p_k, p_next: mdl_ref_route's last and next.
 */
void golden_routes_add(struct golden_routes *c, const struct golden *g, const struct golden_run *run,
                       uint32_t layer, uint32_t token, const uint32_t *ids, const float *weights, uint32_t n,
                       double p_k, double p_next);
/* The same rule between two implementations, without golden files: true when the sets are equal. A flip (see
 * above) is counted and gives false; any other difference fails the test. */
bool golden_routes_compare(struct golden_routes *c, const char *name, uint32_t layer, uint32_t token,
                           const uint32_t *a, const uint32_t *b, uint32_t n, double p_k, double p_next);
/* Fails when nothing was compared or more than max_flips tokens were left out. */
void golden_routes_check(const struct golden_routes *c, const char *what, uint32_t max_flips);

/* Greedy continuation: equal to golden's, except from a step on where golden's two best logits lie within
 * 1e-3. Returns the number of steps that agreed; fails the test otherwise. */
uint32_t golden_greedy_check(const struct golden *g, const struct golden_run *run, const int32_t *got,
                             uint32_t n);

#endif
