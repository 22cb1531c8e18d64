#include "run/sample.h"

#include "core/alloc.h"
#include "core/rand.h"

#include <math.h>
#include <string.h>

#define WINDOW 64 /* accepted tokens that the repeat penalty looks back on */

struct candidate {
    double z; /* logit after the repeat penalty */
    double w; /* weight, relative to the best candidate's 1 */
    int32_t id;
};

struct vkmoe_sampler {
    struct vkmoe_sampler_params p;
    uint64_t rng[4]; /* xoshiro256** */
    int32_t recent[WINDOW];
    uint32_t n_recent, next_recent; /* filled entries, and the ring's next place */
    struct candidate *cand;
    uint32_t n_cand; /* room in cand */
};

/* ---- arithmetic that is the same on every machine
 * ------------------------------------------------------------- */

static uint64_t rotl(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

/* Uniform in [0, 1), 53 bits. Blackman and Vigna's xoshiro256**. */
static double draw_unit(uint64_t s[4])
{
    uint64_t out = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return (double)(out >> 11) * 0x1p-53;
}

/* e^x for x <= 0, 0 below -700. Libraries differ in the last bit of exp, and one bit can decide a draw, so
 * this uses only additions and multiplications in a fixed order: x = n ln 2 + r with |r| <= ln 2 / 2, and e^r
 * as its Taylor polynomial (truncation below 1e-17). The build forbids fused multiply-add. */
static double exp_fixed(double x)
{
    static const double inv[] = {1.0 / 2, 1.0 / 3, 1.0 / 4,  1.0 / 5,  1.0 / 6,  1.0 / 7,
                                 1.0 / 8, 1.0 / 9, 1.0 / 10, 1.0 / 11, 1.0 / 12, 1.0 / 13};
    const double ln2_high = 0x1.62e42feep-1,
                 ln2_low = 0x1.a39ef35793c76p-33; /* ln2_high: 32 bits, n * it is exact */
    double n, r, sum = 1;

    if (!(x > -700))
        return 0;
    n = floor(x * 1.4426950408889634 + 0.5);
    r = (x - n * ln2_high) - n * ln2_low;
    for (int k = (int)COR_COUNT(inv) - 1; k >= 0; k--) /* Horner: 1 + r (1 + r/2 (1 + r/3 (...))) */
        sum = 1 + r * inv[k] * sum;
    return ldexp(1 + r * sum, (int)n);
}

/* ---- candidates
 * ---------------------------------------------------------------------------------------------- */

static bool is_finite(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    return (u & 0x7f800000u) != 0x7f800000u;
}

int32_t run_argmax(const float *logits, uint32_t n)
{
    int32_t best = -1;

    for (uint32_t i = 0; i < n; i++)
        if (is_finite(logits[i]) && (best < 0 || logits[i] > logits[best]))
            best = (int32_t)i;
    return best;
}

static bool better(const struct candidate *a, const struct candidate *b)
{
    return a->z > b->z || (a->z == b->z && a->id < b->id);
}

/* Finite logits among the first n in ascending id, and the repeat penalty on those seen lately (each once).
 */
static uint32_t collect(struct vkmoe_sampler *s, const float *logits, uint32_t n)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < n; i++)
        if (is_finite(logits[i]))
            s->cand[count++] = (struct candidate){logits[i], 0, (int32_t)i};
    if (s->p.repeat_penalty == 1)
        return count;
    for (uint32_t r = 0; r < s->n_recent; r++) {
        uint32_t low = 0, high = count;
        int32_t id = s->recent[r];
        bool again = false;

        for (uint32_t k = 0; k < r && !again; k++)
            again = s->recent[k] == id;
        while (low < high) { /* candidates stand in ascending id */
            uint32_t mid = low + (high - low) / 2;

            if (s->cand[mid].id < id)
                low = mid + 1;
            else
                high = mid;
        }
        if (again || low == count || s->cand[low].id != id)
            continue;
        if (s->cand[low].z > 0)
            s->cand[low].z /= (double)s->p.repeat_penalty;
        else
            s->cand[low].z *= (double)s->p.repeat_penalty;
    }
    return count;
}

static void sift_down(struct candidate *c, uint32_t n, uint32_t i)
{
    struct candidate x = c[i];

    while (i < n / 2) {
        uint32_t child = 2 * i + 1;

        if (child + 1 < n && better(&c[child + 1], &c[child]))
            child++;
        if (!better(&c[child], &x))
            break;
        c[i] = c[child];
        i = child;
    }
    c[i] = x;
}

/* Takes the best candidate off the heap c[0 .. n-1] and puts it at c[n-1]. */
static void pop_best(struct candidate *c, uint32_t n)
{
    struct candidate top = c[0];

    c[0] = c[n - 1];
    sift_down(c, n - 1, 0);
    c[n - 1] = top;
}

/* Top-p among k candidates that stand in front of and below `best`, best first; returns how many stay. */
static uint32_t cut_mass(const struct vkmoe_sampler *s, const struct candidate *best, uint32_t k)
{
    double sum = 0, mass = 0, want;
    uint32_t kept = 0;

    if (s->p.top_p >= 1)
        return k;
    for (uint32_t i = 0; i < k; i++)
        sum += (best - i)->w;
    want = (double)s->p.top_p * sum;
    do {
        mass += (best - kept)->w;
        kept++;
    } while (kept < k && mass < want);
    return kept;
}

/* Top-k, then top-p among those. Weights must be set, sum is that of all n. Returns how many stay; they stand
 * at the end of s->cand[0 .. n-1], the best last. Work is O(n) and O(log n) for each that stays. */
static uint32_t select_top(struct vkmoe_sampler *s, uint32_t n, double sum)
{
    struct candidate *c = s->cand;
    uint32_t k = s->p.top_k > 0 && (uint32_t)s->p.top_k < n ? (uint32_t)s->p.top_k : n, kept = 0;
    double mass = 0, want;

    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(c, n, i);
    if (k < n) {
        for (uint32_t i = 0; i < k; i++)
            pop_best(c, n - i);
        return cut_mass(s, c + n - 1, k);
    }
    want = (double)s->p.top_p * sum; /* below 1, or nobody would have called */
    do {
        pop_best(c, n - kept);
        mass += c[n - 1 - kept].w;
        kept++;
    } while (kept < k && mass < want);
    return kept;
}

/* Draws one of c[0 .. n-1], walking in the given order (step 1 or -1 from `first`). */
static int32_t draw(struct vkmoe_sampler *s, struct candidate *first, int step, uint32_t n, double top)
{
    const double temp = (double)s->p.temp, min_p = (double)s->p.min_p;
    struct candidate *c = first;
    double sum = 0, at;
    int32_t id = -1;

    for (uint32_t i = 0; i < n; i++, c += step) {
        c->w = c->w >= min_p ? exp_fixed((c->z - top) / temp) : 0;
        sum += c->w;
    }
    at = draw_unit(s->rng) * sum;
    c = first;
    for (uint32_t i = 0; i < n; i++, c += step) {
        if (c->w <= 0)
            continue;
        id = c->id; /* the last one that can be drawn stands in where rounding leaves `at` behind the sum */
        if (at < c->w)
            break;
        at -= c->w;
    }
    return id;
}

/* ---- public
 * ---------------------------------------------------------------------------------------------------- */

void vkmoe_sampler_defaults(struct vkmoe_sampler_params *params)
{
    *params = (struct vkmoe_sampler_params){
        .temp = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1.0f, .seed = 0};
}

static enum vkmoe_status check_params(const struct vkmoe_sampler_params *p, struct vkmoe_err *err)
{
    if (!is_finite(p->temp) || p->temp < 0)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "sampler: temp %g is not 0 or more", (double)p->temp);
    if (p->top_k < 0)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "sampler: top_k %d is not 0 or more", (int)p->top_k);
    if (!(p->top_p >= 0 && p->top_p <= 1))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "sampler: top_p %g is not from 0 to 1", (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "sampler: min_p %g is not from 0 to 1", (double)p->min_p);
    if (!is_finite(p->repeat_penalty) || p->repeat_penalty <= 0)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "sampler: repeat_penalty %g is not above 0",
                        (double)p->repeat_penalty);
    return VKMOE_OK;
}

enum vkmoe_status vkmoe_sampler_create(vkmoe_sampler **out, const struct vkmoe_sampler_params *params,
                                       struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_sampler_params p;
    struct vkmoe_sampler *s;
    uint64_t seed;

    *out = NULL;
    if (params)
        p = *params;
    else
        vkmoe_sampler_defaults(&p);
    TRY(check_params(&p, err));
    s = cor_zalloc(sizeof(*s));
    if (!s)
        FAIL(VKMOE_ERR_MEMORY, "sampler: no memory for %zu bytes", sizeof(*s));
    s->p = p;
    seed = p.seed;
    for (int i = 0; i < 4; i++)
        s->rng[i] = cor_rand(&seed);
    *out = s;
done:
    return st;
}

void vkmoe_sampler_destroy(vkmoe_sampler *s)
{
    if (!s)
        return;
    cor_free(s->cand);
    cor_free(s);
}

void vkmoe_sampler_accept(vkmoe_sampler *s, int32_t token)
{
    s->recent[s->next_recent] = token;
    s->next_recent = (s->next_recent + 1) % WINDOW;
    if (s->n_recent < WINDOW)
        s->n_recent++;
}

static enum vkmoe_status reserve(struct vkmoe_sampler *s, uint32_t n, struct vkmoe_err *err)
{
    struct candidate *c;

    if (n <= s->n_cand)
        return VKMOE_OK;
    c = cor_resize(s->cand, n, sizeof(*c));
    if (!c)
        return cor_fail(err, VKMOE_ERR_MEMORY, "sampler: no memory for %u candidates", (unsigned)n);
    s->cand = c;
    s->n_cand = n;
    return VKMOE_OK;
}

/* The token that the first count candidates give, which stand in ascending id. */
static int32_t choose(struct vkmoe_sampler *s, uint32_t count)
{
    uint32_t best = 0;
    double top, sum = 0;

    for (uint32_t i = 1; i < count; i++)
        if (s->cand[i].z > s->cand[best].z)
            best = i;
    top = s->cand[best].z;
    if (s->p.temp <= 0)
        return s->cand[best].id;
    for (uint32_t i = 0; i < count; i++)
        sum += s->cand[i].w = exp_fixed(s->cand[i].z - top);
    if (s->p.top_p < 1 || (s->p.top_k > 0 && (uint32_t)s->p.top_k < count)) {
        const uint32_t kept = select_top(s, count, sum);

        return draw(s, s->cand + count - 1, -1, kept, top);
    }
    return draw(s, s->cand, 1, count, top);
}

enum vkmoe_status vkmoe_sample(vkmoe_sampler *s, const float *logits, uint32_t n, uint32_t n_allowed,
                               int32_t *token, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t count;

    n_allowed = n_allowed < n ? n_allowed : n;
    TRY(reserve(s, n_allowed, err));
    count = collect(s, logits, n_allowed);
    if (count == 0)
        FAIL(VKMOE_ERR_NUMERIC, "sampler: none of the %u logits is finite", (unsigned)n_allowed);
    *token = choose(s, count);
    vkmoe_sampler_accept(s, *token);
done:
    return st;
}

/* The n best of more candidates, best first, of which top-k leaves no more than there are. */
static int32_t choose_among_best(struct vkmoe_sampler *s, const int32_t *ids, const float *logits, uint32_t n)
{
    struct candidate *best = s->cand + n - 1;
    const double top = (double)logits[0];

    if (s->p.temp <= 0)
        return ids[0];
    for (uint32_t i = 0; i < n; i++)
        *(best - i) = (struct candidate){(double)logits[i], exp_fixed((double)logits[i] - top), ids[i]};
    return draw(s, best, -1, cut_mass(s, best, (uint32_t)s->p.top_k), top);
}

/* All candidates, put into ascending id. */
static int32_t choose_among_all(struct vkmoe_sampler *s, const int32_t *ids, const float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;

        for (; at && s->cand[at - 1].id > ids[i]; at--)
            s->cand[at] = s->cand[at - 1];
        s->cand[at] = (struct candidate){(double)logits[i], 0, ids[i]};
    }
    return choose(s, n);
}

enum vkmoe_status vkmoe_sample_top(vkmoe_sampler *s, const int32_t *ids, const float *logits, uint32_t n,
                                   uint32_t n_allowed, int32_t *token, struct vkmoe_err *err)
{
    const struct vkmoe_sampler_params *p = &s->p;
    enum vkmoe_status st = VKMOE_OK;

    if (n == 0)
        FAIL(VKMOE_ERR_NUMERIC, "sampler: none of the logits is finite");
    if (p->repeat_penalty != 1)
        FAIL(VKMOE_ERR_ARGUMENT, "sampler: a repeat penalty needs all logits");
    if (p->temp > 0 && n < n_allowed && (p->top_k <= 0 || (uint32_t)p->top_k > n))
        FAIL(VKMOE_ERR_ARGUMENT, "sampler: top_k %d needs more than the %u best logits", (int)p->top_k,
             (unsigned)n);
    TRY(reserve(s, n, err));
    *token = n < n_allowed ? choose_among_best(s, ids, logits, n) : choose_among_all(s, ids, logits, n);
    vkmoe_sampler_accept(s, *token);
done:
    return st;
}
