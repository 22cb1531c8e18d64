/* What a session tells of the inputs of its matrices, of experts and of dense layers, held against what is
 * known of them otherwise: the embedding, the sums of watched experts, the shared expert's first step, the
 * logits. A pool that is too small for all experts tells the same. */
#include <math.h>
#include <stdio.h>

#include "model/synth.h"
#include "run/session.h"
#include "support/device.h"

enum { N = 21, CHUNK = 8 }; /* two chunks, a short one and none of a single token */

static struct vkmoe_err err;
static int32_t tokens[N];

/* Rows as they came, of every kind and layer. */
struct told {
    const struct mdl_model *m;
    float *rows[VKMOE_INPUT_HEAD + 1]; /* (n_layers, N, ...); of HEAD (N, dim) */
    uint32_t *pairs;                   /* (n_layers, N, n_used, 2) */
    float *sums;                       /* (n_layers, N, 3 + n_used) */
    uint32_t n_calls, n_rows[VKMOE_INPUT_HEAD + 1];
};

static size_t row_floats(const struct mdl_config *c, enum vkmoe_input what)
{
    switch (what) {
    case VKMOE_INPUT_OUTPUT:
        return (size_t)c->n_heads * c->head_dim;
    case VKMOE_INPUT_DOWN:
        return (size_t)c->n_experts_used * c->ff_expert;
    case VKMOE_INPUT_SHARED_DOWN:
        return mdl_shared_width(c) > c->ff_dense ? mdl_shared_width(c) : c->ff_dense;
    default:
        return c->dim;
    }
}

static float *row_of(const struct told *t, enum vkmoe_input what, uint32_t layer, uint32_t pos)
{
    return t->rows[what] +
           ((size_t)(what == VKMOE_INPUT_HEAD ? 0 : layer) * N + pos) * row_floats(&t->m->config, what);
}

static void on_inputs(void *user, const struct vkmoe_inputs *in)
{
    struct told *t = user;
    const struct mdl_config *c = &t->m->config;
    const size_t n =
        in->what == VKMOE_INPUT_SHARED_DOWN ? mdl_ffn_width(c, in->layer) : row_floats(c, in->what);
    const bool chosen =
        (in->what == VKMOE_INPUT_EXPERTS || in->what == VKMOE_INPUT_DOWN) && !mdl_is_dense(c, in->layer);

    assert_int_equal(in->n_used, chosen ? c->n_experts_used : 0);
    assert_int_equal(in->width, in->what == VKMOE_INPUT_DOWN ? c->ff_expert : n);
    assert_true(in->pos + in->n_tokens <= N);
    assert_true(in->what == VKMOE_INPUT_HEAD ? in->layer == c->n_layers : in->layer < c->n_layers);
    for (uint32_t i = 0; i < in->n_tokens; i++)
        memcpy(row_of(t, in->what, in->layer, in->pos + i), in->rows + i * n, n * sizeof(float));
    if (chosen)
        memcpy(t->pairs + ((size_t)in->layer * N + in->pos) * c->n_experts_used * 2, in->pairs,
               (size_t)in->n_tokens * c->n_experts_used * 8);
    t->n_rows[in->what] += in->n_tokens;
    t->n_calls++;
}

static void on_watch(void *user, const struct vkmoe_watched *w)
{
    struct told *t = user;
    const size_t n = 3 + w->n_used;

    assert_non_null(w->sums);
    memcpy(t->sums + ((size_t)w->layer * N + w->pos) * n, w->sums, w->n_tokens * n * sizeof(float));
}

/* Feeds the text; returns the hash of all that was told. */
static uint64_t feed(struct told *t, struct device_case *d, float *logits)
{
    const struct mdl_config *c = &d->model->mdl->config;
    const struct run_session_params p = {.n_ctx = N, .chunk = CHUNK, .watch = VKMOE_WATCH_INPUTS};
    struct run_session *s = device_session(d, &p);
    uint64_t h = 0;

    *t = (struct told){.m = d->model->mdl};
    for (int w = 0; w <= VKMOE_INPUT_HEAD; w++)
        assert_non_null(t->rows[w] = cor_array((size_t)c->n_layers * N * row_floats(c, w), sizeof(float)));
    assert_non_null(t->pairs = cor_array((size_t)c->n_layers * N * c->n_experts_used, 8));
    assert_non_null(t->sums = cor_array((size_t)c->n_layers * N * (3 + c->n_experts_used), sizeof(float)));
    run_session_on_inputs(s, on_inputs, t);
    run_session_on_watch(s, on_watch, t);
    device_feed(s, tokens, N);
    memcpy(logits, run_session_logits(s), c->vocab_size * sizeof(float));
    for (int w = 0; w <= VKMOE_INPUT_HEAD; w++) {
        const uint32_t layers = w == VKMOE_INPUT_HEAD ? 1 : c->n_layers;
        const uint32_t without = w == VKMOE_INPUT_DOWN ? c->n_dense_layers : 0;

        assert_int_equal(t->n_rows[w], (layers - without) * N);
        h = h * 31 + device_hash(t->rows[w], (size_t)layers * N * row_floats(c, w));
    }
    run_session_destroy(s);
    return h;
}

static void told_free(struct told *t)
{
    for (int w = 0; w <= VKMOE_INPUT_HEAD; w++)
        cor_free(t->rows[w]);
    cor_free(t->pairs);
    cor_free(t->sums);
}

/* ---- what they must be
 * ------------------------------------------------------------------------------------------------------ */

static float *load(const struct mdl_model *m, const struct mdl_tensor *t)
{
    const uint64_t n = t->dims[0] * t->dims[1] * t->dims[2];
    float *v = cor_array((size_t)n, sizeof(*v));
    char *raw = cor_alloc((size_t)t->bytes);

    assert_non_null(v);
    assert_non_null(raw);
    test_ok(mdl_gguf_read(m->gguf, t, 0, raw, (size_t)t->bytes, &err), &err);
    mdl_dequant_row(t->type, raw, v, n);
    cor_free(raw);
    return v;
}

static double dot(const float *a, const float *b, uint64_t n)
{
    double sum = 0;

    for (uint64_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

static void close_to(double got, double want, double scale, const char *what)
{
    if (!(fabs(got - want) <= 1e-4 * scale))
        fail_msg("%s: %.9g, not %.9g", what, got, want);
}

/* y = norm(x) times w, by rows. */
static void check_norm(const float *y, const float *x, const float *w, const struct mdl_config *c,
                       const char *what)
{
    const double scale = 1 / sqrt(dot(x, x, c->dim) / c->dim + (double)c->rms_eps);

    for (uint32_t i = 0; i < c->dim; i++)
        close_to(y[i], x[i] * scale * w[i], 1, what);
}

/* Layer 0: what the attention gets, and what the experts get of what it gave. */
static void check_first_layer(const struct told *t)
{
    const struct mdl_config *c = &t->m->config;
    const struct mdl_layer *l = &t->m->layers[0];
    const uint64_t q = row_floats(c, VKMOE_INPUT_OUTPUT);
    float *embed = load(t->m, t->m->embed), *norm = load(t->m, l->attn_norm), *o = load(t->m, l->o),
          *next = load(t->m, l->ffn_norm), x[1024];

    assert_true(c->dim <= 1024);
    for (uint32_t pos = 0; pos < N; pos++) {
        const float *att = row_of(t, VKMOE_INPUT_OUTPUT, 0, pos);

        memcpy(x, embed + (size_t)tokens[pos] * c->dim, c->dim * sizeof(*x));
        check_norm(row_of(t, VKMOE_INPUT_ATTENTION, 0, pos), x, norm, c, "input of the attention");
        for (uint32_t i = 0; i < c->dim; i++)
            x[i] += (float)dot(o + i * q, att, q);
        check_norm(row_of(t, VKMOE_INPUT_EXPERTS, 0, pos), x, next, c, "input of the experts");
    }
    cor_free(embed);
    cor_free(norm);
    cor_free(o);
    cor_free(next);
}

/* Squares of inputs and outputs of experts are watched, too. */
static void check_experts(const struct told *t, uint32_t layer)
{
    const struct mdl_config *c = &t->m->config;
    const uint32_t k = c->n_experts_used;
    float *down = load(t->m, t->m->layers[layer].down_exps);

    for (uint32_t pos = 0; pos < N; pos++) {
        const float *sums = t->sums + ((size_t)layer * N + pos) * (3 + k);
        const float *h = row_of(t, VKMOE_INPUT_EXPERTS, layer, pos);
        const uint32_t *pairs = t->pairs + ((size_t)layer * N + pos) * k * 2;

        close_to(dot(h, h, c->dim), sums[0], sums[0], "h.h");
        for (uint32_t r = 0; r < k; r++) {
            const float *in = row_of(t, VKMOE_INPUT_DOWN, layer, pos) + (size_t)r * c->ff_expert;
            const float *w = down + (size_t)pairs[2 * r] * c->dim * c->ff_expert;
            double yy = 0;

            for (uint32_t i = 0; i < c->dim; i++) {
                const double y = dot(w + (size_t)i * c->ff_expert, in, c->ff_expert);

                yy += y * y;
            }
            close_to(yy, sums[3 + r], sums[3 + r], "y.y");
        }
    }
    cor_free(down);
}

static void check_shared(const struct told *t, uint32_t layer)
{
    const struct mdl_config *c = &t->m->config;
    const uint32_t ff = mdl_ffn_width(c, layer);
    float *gate = load(t->m, t->m->layers[layer].gate_sh), *up = load(t->m, t->m->layers[layer].up_sh);

    for (uint32_t pos = 0; pos < N; pos++) {
        const float *h = row_of(t, VKMOE_INPUT_EXPERTS, layer, pos);

        for (uint32_t i = 0; i < ff; i++) {
            const double g = dot(gate + (size_t)i * c->dim, h, c->dim),
                         u = dot(up + (size_t)i * c->dim, h, c->dim);

            close_to(row_of(t, VKMOE_INPUT_SHARED_DOWN, layer, pos)[i], g / (1 + exp(-g)) * u,
                     1 + fabs(g * u), "input of the shared expert's second step");
        }
    }
    cor_free(gate);
    cor_free(up);
}

static void check_ffn(const struct told *t, uint32_t layer)
{
    if (!mdl_is_dense(&t->m->config, layer))
        check_experts(t, layer);
    check_shared(t, layer);
}

static void check_head(const struct told *t, const float *logits)
{
    const struct mdl_config *c = &t->m->config;
    float *head = load(t->m, t->m->head);

    for (uint32_t i = 0; i < c->vocab_size; i++)
        close_to(dot(head + (size_t)i * c->dim, row_of(t, VKMOE_INPUT_HEAD, 0, N - 1), c->dim), logits[i], 30,
                 "logit");
    cor_free(head);
}

static void inputs_are_true(void **state)
{
    const struct run_model_params few = {.pool_budget = 12 << 20};
    struct device_case c;
    struct told t;
    float *logits;
    uint64_t hash;

    (void)state;
    golden_scripture(tokens, N);
    device_open(&c, golden_model("emo-nano", MDL_BF16), &(struct device_params){.lazy = true});
    if (device_slow(&c) && !test_full()) { /* parts are read back as anywhere */
        device_close(&c);
        return;
    }
    assert_non_null(logits = cor_array(c.model->mdl->config.vocab_size, sizeof(*logits)));
    hash = feed(&t, &c, logits);
    check_first_layer(&t);
    for (uint32_t l = 0; l < t.m->config.n_layers; l += 3)
        check_ffn(&t, l);
    check_head(&t, logits);
    told_free(&t);
    device_close(&c);

    device_open(&c, golden_model("emo-nano", MDL_BF16), &(struct device_params){.model = &few});
    assert_true(feed(&t, &c, logits) == hash);
    told_free(&t);
    device_close(&c);
    cor_free(logits);
}

/* Leading layers without a router are told of as shared experts are. */
static void dense_layers(void **state)
{
    struct mdl_synth_params p = {.shape = *mdl_shape_find("tiny-deepseek"), .type = MDL_F32, .seed = 1};
    struct device_case c;
    struct told t;
    char path[4200];
    float logits[1024];

    (void)state;
    device_open(&c, NULL, &(struct device_params){.lazy = true});
    if (device_slow(&c) && !test_full()) {
        device_close(&c);
        return;
    }
    device_close(&c);
    snprintf(path, sizeof(path), "%s/dense.gguf", test_tmp());
    p.out = path;
    test_ok(mdl_synth(&p, &err), &err);
    for (int32_t i = 0; i < N; i++)
        tokens[i] = 40 + i * 7 % 100;
    device_open(&c, path, &(struct device_params){.lazy = true});
    assert_true(c.model->mdl->config.n_dense_layers && c.model->mdl->config.vocab_size <= 1024);
    feed(&t, &c, logits);
    check_first_layer(&t);
    for (uint32_t l = 0; l < t.m->config.n_layers; l++)
        check_ffn(&t, l);
    check_head(&t, logits);
    told_free(&t);
    device_close(&c);
}

/* Nothing is told, and no time lost, unless a session asks. */
static void others_tell_nothing(void **state)
{
    struct run_session *s;
    struct device_case c;
    struct told t = {0};

    (void)state;
    device_open(&c, golden_model("emo-nano", MDL_BF16), &(struct device_params){.lazy = true});
    if (!device_slow(&c)) {
        s = device_session(&c, &(struct run_session_params){.n_ctx = N, .watch = VKMOE_WATCH_EXPERTS});
        t.m = c.model->mdl;
        run_session_on_inputs(s, on_inputs, &t);
        device_feed(s, tokens, 2);
        assert_int_equal(t.n_calls, 0);
        run_session_destroy(s);
        assert_int_equal(run_session_create(&s, c.model,
                                            &(struct run_session_params){
                                                .n_ctx = N, .doc_experts = 8, .watch = VKMOE_WATCH_INPUTS},
                                            &err),
                         VKMOE_ERR_ARGUMENT);
    }
    device_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inputs_are_true),
        cmocka_unit_test(dense_layers),
        cmocka_unit_test(others_tell_nothing),
    };

    return cmocka_run_group_tests_name("inputs", tests, NULL, NULL);
}
