#include "bench/cases.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench/make.h"
#include "core/alloc.h"
#include "core/rand.h"

#define ROWS_KNOWN 16u /* different rows of a matrix that is only measured */

/* ---- table
 * ------------------------------------------------------------------------------------------------- */

static struct bench_entry entry_of(enum gpu_kernel k)
{
    struct bench_entry entries[GPU_KERNEL_COUNT];

    memset(entries, 0, sizeof(entries));
    bench_add_dense(entries);
    bench_add_dot(entries);
    bench_add_attn(entries);
    bench_add_moe(entries);
    bench_add_step(entries);
    bench_add_one(entries);
    return entries[k];
}

bool bench_case_known(enum gpu_kernel k)
{
    return entry_of(k).make != NULL;
}

bool bench_case_typed(enum gpu_kernel k)
{
    return entry_of(k).typed;
}

enum vkmoe_status bench_case_make(struct bench_case *c, enum gpu_kernel k, uint32_t use,
                                  const struct bench_env *env, bool *made, struct vkmoe_err *err)
{
    const struct gpu_kernel_info *info = gpu_kernel_info(k);
    const struct bench_entry e = entry_of(k);
    struct bench_maker m = {
        .c = c, .env = env, .s = env->shape, .rng = env->seed + (uint64_t)k * 64 + use, .use = use};

    memset(c, 0, sizeof(*c));
    c->kernel = k;
    c->shape = env->shape->name;
    c->format = e.typed ? mdl_type_find(env->type)->name : "";
    c->n_segs = info->segs && (info->needs & GPU_NEED_ARRAY) ? BENCH_SEGS : 1;
    *made = e.make && (!e.typed || info->formats || gpu_format_plain(env->type)) && e.make(&m);
    if (m.failed)
        return cor_fail(err, VKMOE_ERR_MEMORY, "kernel %s: no memory for a case", info->name);
    return VKMOE_OK;
}

void bench_case_free(struct bench_case *c)
{
    for (uint32_t i = 0; i < c->n_owned; i++)
        cor_free(c->owned[i]);
    memset(c, 0, sizeof(*c));
}

/* ---- contents
 * ---------------------------------------------------------------------------------------------- */

void *bench_array(struct bench_maker *m, size_t n, size_t size)
{
    struct bench_case *c = m->c;
    void *p = NULL;

    if (!m->failed && c->n_owned < COR_COUNT(c->owned))
        p = cor_array(n ? n : 1, size);
    if (p)
        c->owned[c->n_owned++] = p;
    m->failed |= !p;
    return p;
}

float bench_uniform(struct bench_maker *m, float lo, float hi)
{
    return lo + (hi - lo) * (float)((double)(cor_rand(&m->rng) >> 40) / (1 << 24));
}

uint32_t bench_below(struct bench_maker *m, uint32_t n)
{
    return (uint32_t)cor_rand_below(&m->rng, n);
}

float *bench_floats(struct bench_maker *m, size_t n)
{
    float *f = bench_array(m, n, sizeof(*f));

    for (size_t i = 0; f && i < n; i++)
        f[i] = bench_uniform(m, -1, 1);
    return f;
}

uint32_t bench_buf(struct bench_maker *m, enum bench_use use, void *data, size_t words)
{
    struct bench_case *c = m->c;

    if (c->n_bufs == BENCH_BUFS) {
        m->failed = true;
        return 0;
    }
    c->bufs[c->n_bufs] = (struct bench_buf){.use = use, .bytes = words * 4, .data = data};
    return c->n_bufs++;
}

void bench_want(struct bench_maker *m, const struct bench_want *w)
{
    if (m->c->n_wants < BENCH_WANTS)
        m->c->wants[m->c->n_wants++] = *w;
    else
        m->failed = true;
}

void bench_want_floats(struct bench_maker *m, uint32_t buf, size_t n, double *values, double nmse)
{
    if (values)
        bench_want(m, &(struct bench_want){
                          .buf = buf, .n = n, .values = values, .nmse = nmse, .largest = BENCH_LARGEST});
}

void bench_want_sums(struct bench_maker *m, uint32_t buf, size_t n, double *values, uint32_t terms)
{
    const double random = 2 * sqrt(terms) / (1 << 24);

    if (values)
        bench_want(m, &(struct bench_want){.buf = buf,
                                           .n = n,
                                           .values = values,
                                           .nmse = fmax(BENCH_NMSE, random * random),
                                           .largest = fmax(BENCH_LARGEST, 8 * random)});
}

void bench_want_words(struct bench_maker *m, uint32_t buf, size_t first, size_t n, uint32_t *words)
{
    if (check(m))
        bench_want(
            m, &(struct bench_want){.buf = buf, .kind = BENCH_WORDS, .first = first, .n = n, .words = words});
}

void bench_spec(struct bench_maker *m, const void *spec, size_t bytes)
{
    m->failed |= bytes > sizeof(m->c->spec);
    if (m->failed)
        return;
    memcpy(m->c->spec, spec, bytes);
    m->c->n_spec = (uint32_t)(bytes / 4);
}

void bench_push(struct bench_maker *m, const void *push, size_t bytes)
{
    m->failed |= bytes > sizeof(m->c->push);
    if (!m->failed)
        memcpy(m->c->push, push, bytes);
}

void bench_grid(struct bench_maker *m, uint32_t x, uint32_t y, uint32_t z)
{
    m->c->grid[0] = x;
    m->c->grid[1] = y;
    m->c->grid[2] = z;
}

/* Subnormal halves in every fifth row, a NaN at the end of every seventh; mxfp4 has no halves. */
static void special_row(uint8_t *row, enum mdl_type type, uint32_t r, uint32_t cols)
{
    const struct mdl_type_info *info = mdl_type_find(type);
    const uint32_t blocks = cols / info->block_elems, nan = 0x7fc00000u;
    const uint16_t half_nan = 0x7e01, bf16_nan = 0x7fc1;

    if (type == MDL_MXFP4)
        return;
    if (r % 5 == 1 && type != MDL_F32 && type != MDL_BF16)
        for (uint32_t b = 0; b < blocks; b++) {
            const uint16_t tiny = (uint16_t)(((b * 37 + 0x155) & 0x3ff) | (b & 1 ? 0x8000 : 0));

            memcpy(row + (size_t)b * info->block_bytes, &tiny, 2);
        }
    if (r % 7 == 2) {
        uint8_t *last = row + (size_t)(blocks - 1) * info->block_bytes;

        if (type == MDL_F32)
            memcpy(last, &nan, 4);
        else
            memcpy(last, type == MDL_BF16 ? &bf16_nan : &half_nan, 2);
    }
}

uint8_t *bench_matrix(struct bench_maker *m, enum mdl_type type, uint32_t rows, uint32_t cols, uint32_t off,
                      size_t *n_bytes, float **values)
{
    const uint64_t row_bytes = mdl_row_bytes(type, cols);
    float *one = bench_array(m, cols, sizeof(*one)), *all = NULL;
    uint8_t *bytes;

    *n_bytes = (size_t)((off + rows * row_bytes + 3) / 4 * 4);
    bytes = bench_array(m, *n_bytes, 1);
    if (check(m) && values)
        all = bench_array(m, (size_t)rows * cols, sizeof(*all));
    if (m->failed)
        return NULL;
    memset(bytes, 0x7f, *n_bytes); /* NaN wherever no row stands */
    for (uint32_t r = 0; r < rows; r++) {
        uint8_t *at = bytes + off + r * row_bytes;

        if (!check(m) && r >= ROWS_KNOWN) {
            memcpy(at, bytes + off + r % ROWS_KNOWN * row_bytes, (size_t)row_bytes);
            continue;
        }
        for (uint32_t i = 0; i < cols; i++)
            one[i] = bench_uniform(m, -1, 1);
        m->failed |= !mdl_quant_row(type, one, at, cols);
        if (check(m))
            special_row(at, type, r, cols);
        if (all)
            mdl_dequant_row(type, at, all + (size_t)r * cols, cols);
    }
    if (values)
        *values = all;
    return bytes;
}

double bench_dot(const float *w, const float *x, uint32_t n)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += (double)w[i] * x[i];
    return sum;
}

uint32_t *bench_state(struct bench_maker *m, uint32_t n_tokens, uint32_t pos, uint32_t row0, uint32_t n_rows)
{
    uint32_t *s = bench_array(m, STEP_TOKENS + (size_t)n_tokens, 4);

    if (!s)
        return NULL;
    s[STEP_N_TOKENS] = n_tokens;
    s[STEP_POS] = pos;
    s[STEP_ROW0] = row0;
    s[STEP_N_ROWS] = n_rows;
    s[STEP_CHUNK] = n_tokens;
    s[STEP_DONE_LAYER] = NONE;
    return s;
}

uint32_t *bench_choose(struct bench_maker *m, uint32_t n_tokens, bool holes)
{
    const uint32_t k = m->s->k_used;
    uint32_t *sel = bench_array(m, (size_t)n_tokens * k * 2, 4);

    for (uint32_t t = 0; sel && t < n_tokens; t++)
        for (uint32_t j = 0; j < k; j++) {
            uint32_t *s = sel + ((size_t)t * k + j) * 2;
            bool again = true;

            while (again) {
                s[0] = bench_below(m, m->s->n_experts);
                again = false;
                for (uint32_t i = 0; i < j; i++)
                    again |= sel[((size_t)t * k + i) * 2] == s[0];
            }
            s[1] = cor_float_bits(bench_uniform(m, 0, 1));
            if (holes && j == k - 1 && t % 3 == 0) {
                s[0] = NONE;
                s[1] = 0;
            }
        }
    return sel;
}

/* ---- choices of run/
 * --------------------------------------------------------------------------------------- */

static bool named(const struct bench_maker *m, const char *part)
{
    return strstr(gpu_kernel_info(m->c->kernel)->name, part) != NULL;
}

uint32_t bench_lanes(const struct bench_maker *m)
{
    return m->env->variants.lanes;
}

/* What kernels of this name are forms of. */
static enum run_core core_of(const struct bench_maker *m)
{
    return named(m, "_ln") || named(m, "_tx") ? RUN_CORE_LANES
           : named(m, "_sg")                  ? RUN_CORE_SUBGROUP
                                              : RUN_CORE_SHARED;
}

static enum run_tile tile_of(const struct bench_maker *m)
{
    return named(m, "_ln") ? RUN_TILE_LANES : named(m, "_few") ? RUN_TILE_FEW : RUN_TILE_SHARED;
}

uint32_t bench_rows(const struct bench_maker *m)
{
    return named(m, "_tx") ? RUN_TEXEL_ROWS : run_core_rows(core_of(m), &m->env->variants, m->env->caps);
}

uint32_t bench_row_lanes(const struct bench_maker *m, uint32_t k)
{
    return run_core_lanes(core_of(m), m->env->caps, k);
}

bool bench_takes(const struct bench_maker *m, uint32_t k)
{
    const struct mdl_type_info *info = mdl_type_find(m->env->type);
    const uint64_t row_bytes = k % info->block_elems ? 0 : mdl_row_bytes(m->env->type, k);

    return row_bytes &&
           (!named(m, "_tx") || run_texels_fit(m->env->caps, m->env->type, k, row_bytes, 0, row_bytes));
}

uint32_t bench_tile_rows(const struct bench_maker *m)
{
    return run_tile_rows(tile_of(m), m->env->caps);
}

uint32_t bench_tile_lanes(const struct bench_maker *m, uint32_t k)
{
    return run_tile_lanes(tile_of(m), core_of(m), m->env->caps, k);
}

/* ---- comparing
 * --------------------------------------------------------------------------------------------- */

static bool tell(struct bench_miss *miss, uint32_t buf, size_t element, double got, double expected)
{
    miss->buf = buf;
    miss->element = element;
    snprintf(miss->got, sizeof(miss->got), "%.9g", got);
    snprintf(miss->expected, sizeof(miss->expected), "%.9g", expected);
    return false;
}

static bool tell_words(struct bench_miss *miss, uint32_t buf, size_t element, uint32_t got, uint32_t expected)
{
    miss->buf = buf;
    miss->element = element;
    snprintf(miss->got, sizeof(miss->got), "0x%08x", got);
    snprintf(miss->expected, sizeof(miss->expected), "0x%08x", expected);
    return false;
}

static bool check_floats(const struct bench_want *w, const uint32_t *after, struct bench_miss *miss)
{
    double err = 0, power = 0, worst = -1;
    size_t worst_at = 0, n = 0;

    for (size_t i = 0; i < w->n; i++) {
        const double want = w->values[i], got = (double)cor_float_from_bits(after[w->first + i]);

        if (isnan(want) != isnan(got) || isinf(want) != isinf(got))
            return tell(miss, w->buf, w->first + i, got, want);
        if (isnan(want) || isinf(want))
            continue;
        if (fabs(got - want) > worst) {
            worst = fabs(got - want);
            worst_at = i;
        }
        err += (got - want) * (got - want);
        power += want * want;
        n++;
    }
    if (!n || (err <= w->nmse * power && worst <= w->largest * sqrt(power / (double)n)))
        return true;
    return tell(miss, w->buf, w->first + worst_at, (double)cor_float_from_bits(after[w->first + worst_at]),
                w->values[worst_at]);
}

static bool same_value(double got, double want)
{
    if (isnan(want))
        return isnan(got);
    return got == want || (want != 0 && fabs(want) < 1.17549435e-38 && got == 0);
}

/* slack: of the f32 arithmetic before. */
static bool half_close(double got, double want, double slack)
{
    const double unit = fmax(ldexp(fabs(want), -11), ldexp(1, -25));

    return isnan(want) ? isnan(got) : fabs(got - want) <= unit * 1.001 + slack;
}

static bool check_want(const struct bench_want *w, const uint32_t *after, struct bench_miss *miss)
{
    if (w->kind == BENCH_FLOATS)
        return check_floats(w, after, miss);
    for (size_t i = 0; i < w->n; i++) {
        const size_t at = w->first + i;
        double got;

        if (w->kind == BENCH_WORDS) {
            if (after[at] != w->words[i])
                return tell_words(miss, w->buf, at, after[at], w->words[i]);
            continue;
        }
        got = w->kind == BENCH_HALVES
                  ? (double)mdl_half_to_float((uint16_t)(after[at / 2] >> (at % 2 * 16) & 0xffff))
                  : (double)cor_float_from_bits(after[at]);
        if (w->kind == BENCH_HALVES ? !half_close(got, w->values[i], w->largest)
                                    : !same_value(got, w->values[i]))
            return tell(miss, w->buf, at, got, w->values[i]);
    }
    return true;
}

/* True when word i of the buffer is one of those that wants speak of. */
static bool wanted(const struct bench_case *c, uint32_t buf, size_t i)
{
    for (uint32_t j = 0; j < c->n_wants; j++) {
        const struct bench_want *w = &c->wants[j];
        const size_t per = w->kind == BENCH_HALVES ? 2 : 1;

        if (w->buf == buf && i >= w->first / per && i < (w->first + w->n + per - 1) / per)
            return true;
    }
    return false;
}

/* Words that must be as they were. */
static bool check_rest(const struct bench_case *c, uint32_t buf, const uint32_t *after,
                       struct bench_miss *miss)
{
    const struct bench_buf *b = &c->bufs[buf];
    const uint32_t *before = b->data;

    for (size_t i = 0; b->use != BENCH_SCRATCH && i < b->bytes / 4; i++) {
        const uint32_t was = before ? before[i] : BENCH_POISON;

        if (after[i] != was && (b->use == BENCH_IN || !wanted(c, buf, i)))
            return tell_words(miss, buf, i, after[i], was);
    }
    return true;
}

bool bench_case_check(const struct bench_case *c, void *const *after, struct bench_miss *miss)
{
    for (uint32_t i = 0; i < c->n_wants; i++)
        if (!check_want(&c->wants[i], after[c->wants[i].buf], miss))
            return false;
    for (uint32_t i = 0; i < c->n_bufs; i++)
        if (!check_rest(c, i, after[i], miss))
            return false;
    return !c->check || c->check(c, after, miss);
}
