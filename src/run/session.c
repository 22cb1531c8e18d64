#include "run/session.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/alloc.h"
#include "core/os.h"
#include "run/layer.h"

#define SUBMIT_NS 200000000ull /* no submit is predicted to take longer: drivers kill long ones */

struct run_session {
    struct run_model *model;
    struct run_state state;
    struct run_pass pass;
    struct run_watch watch;
    struct run_inputs inputs;
    uint32_t pos;
    bool cut; /* fed to a router and no further: only reset helps */
    bool has_logits;
    float *logits; /* vocab_size, after the last token */
    struct {       /* the best logits, best first; n_top of the state */
        uint32_t n;
        int32_t ids[TOPK_MAX];
        float logits[TOPK_MAX];
    } top;
    uint64_t layer_ns;       /* measured time of one prefill layer for a full chunk; 0: not known yet */
    struct vkmoe_err broken; /* status != VKMOE_OK: every call answers with it */
};

static uint32_t n_layers(const struct run_session *s)
{
    return s->model->mdl->config.n_layers;
}

/* ---- creation
 * ----------------------------------------------------------------------------------------------- */

static struct run_state_params state_params(const struct run_session_params *p)
{
    return (struct run_state_params){.n_ctx = p->n_ctx,
                                     .chunk = p->chunk,
                                     .k_type = p->k_type,
                                     .fast_math = p->fast_math,
                                     .v_type = p->v_type,
                                     .watch = p->doc_experts && !p->watch ? VKMOE_WATCH_ROUTER : p->watch,
                                     .by_layer = p->doc_experts > 0,
                                     .n_top = p->n_top};
}

/* The pool must hold a document pool beside those of the other layers. */
static enum vkmoe_status check_doc(const struct run_model *m, uint32_t doc, struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->mdl->config;

    if (doc < c->n_experts_used || doc > c->n_experts)
        return cor_fail(
            err, VKMOE_ERR_ARGUMENT,
            "a document pool of %u routed experts: it takes from %u, which a token uses, to %u, which "
            "a layer has",
            doc, c->n_experts_used, c->n_experts);
    if (!run_pool_has_room(&m->pool, doc))
        return cor_fail(err, VKMOE_ERR_LIMIT,
                        "the expert pool has %u slots: document pools of %u in %u layers do not fit",
                        m->pool.n_slots, doc, c->n_layers);
    return VKMOE_OK;
}

enum vkmoe_status run_session_bytes(uint64_t *bytes, const struct run_model *m,
                                    const struct run_session_params *p, struct vkmoe_err *err)
{
    const struct run_state_params sp = state_params(p);
    struct run_state s;
    enum vkmoe_status st = run_state_plan(&s, m, &sp, err);

    *bytes = st == VKMOE_OK ? run_state_bytes(&s) : 0;
    run_state_close(&s);
    return st;
}

void run_session_foresee(const struct run_model *m, const struct run_session_params *p)
{
    const struct run_state_params sp = state_params(p);
    struct run_state s;
    struct vkmoe_err err;

    if (run_state_plan(&s, m, &sp, &err) == VKMOE_OK) {
        run_pass_foresee(m, &s);
        gpu_pipelines_ahead(m->dev);
    }
    run_state_close(&s);
}

enum vkmoe_status run_session_create(struct run_session **out, struct run_model *m,
                                     const struct run_session_params *p, struct vkmoe_err *err)
{
    const struct run_state_params sp = state_params(p);
    struct run_session *s = cor_zalloc(sizeof(*s));
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!s)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a session");
    s->model = m;
    if (p->n_top > TOPK_MAX)
        FAIL(VKMOE_ERR_ARGUMENT, "the %u best logits: at most %d are possible", p->n_top, TOPK_MAX);
    if ((p->watch || p->doc_experts) && !m->mdl->config.n_experts)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: a model without experts has no router to watch and no document pools",
             cor_file_path(m->mdl->gguf->file));
    if (p->doc_experts)
        TRY(check_doc(m, p->doc_experts, err));
    if (p->doc_experts && p->watch >= VKMOE_WATCH_INPUTS)
        FAIL(VKMOE_ERR_ARGUMENT, "a session with a document pool does not show the inputs of matrices");
    s->logits = p->n_top ? NULL : cor_array(m->mdl->config.vocab_size, sizeof(float));
    if (!s->logits && !p->n_top)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %u logits", m->mdl->config.vocab_size);
    TRY(run_state_plan(&s->state, m, &sp, err));
    TRY(run_state_create(&s->state, m, err));
    TRY(run_watch_create(&s->watch, m, &s->state, p->doc_experts, p->doc_refresh, err));
    TRY(run_inputs_create(&s->inputs, m, &s->state, err));
    s->pass.slow = p->slow || s->state.watch >= VKMOE_WATCH_INPUTS;
    TRY(run_pass_create(&s->pass, m, &s->state, &s->watch, &s->inputs, err));
    *out = s;
    s = NULL;
done:
    run_session_destroy(s);
    return st;
}

void run_session_destroy(struct run_session *s)
{
    if (!s)
        return;
    run_pass_close(&s->pass);
    run_inputs_close(&s->inputs);
    run_watch_close(&s->watch);
    run_state_close(&s->state);
    cor_free(s->logits);
    cor_free(s);
}

/* ---- logits
 * ------------------------------------------------------------------------------------------------- */

static enum vkmoe_status check_finite(const float *logits, uint32_t n, uint32_t pos, struct vkmoe_err *err)
{
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(logits[i]))
            return cor_fail(err, VKMOE_ERR_NUMERIC, "non-finite logits at token %u", pos);
    return VKMOE_OK;
}

/* The same for the best of a row. */
static enum vkmoe_status take_top(struct run_session *s, uint32_t pos, struct vkmoe_err *err)
{
    const uint32_t *from = gpu_buffer_map(s->state.out), k = s->state.n_top;
    uint32_t n = 0;

    for (; n < k && from[2 * n] != NONE; n++) {
        s->top.ids[n] = (int32_t)from[2 * n];
        memcpy(&s->top.logits[n], &from[2 * n + 1], sizeof(float));
    }
    s->top.n = n;
    if (from[2 * k])
        return cor_fail(err, VKMOE_ERR_NUMERIC, "non-finite logits at token %u", pos);
    return VKMOE_OK;
}

/* Copies row `row` of the host's logits buffer, which holds those after position pos. */
static enum vkmoe_status take_logits(struct run_session *s, uint32_t row, uint32_t pos, struct vkmoe_err *err)
{
    uint32_t n = s->model->mdl->config.vocab_size;
    const float *from = gpu_buffer_map(s->state.out);
    const uint64_t bytes = s->state.n_top ? gpu_buffer_bytes(s->state.out) : n * sizeof(float);
    enum vkmoe_status st = VKMOE_OK;

    TRY(gpu_buffer_invalidate(s->state.out, row * bytes, bytes, err));
    s->has_logits = !s->state.n_top;
    if (s->state.n_top)
        return take_top(s, pos, err);
    memcpy(s->logits, from + (size_t)row * n, n * sizeof(float));
    st = check_finite(s->logits, n, pos, err);
done:
    return st;
}

/* ---- feeding
 * ------------------------------------------------------------------------------------------------ */

struct feed {
    run_logits_fn fn;
    void *user;
    size_t index; /* of the first token in hand within the feed */
    bool stop;
};

static enum vkmoe_status feed_one(struct run_session *s, int32_t token, struct feed *f, struct vkmoe_err *err)
{
    const struct run_step in = {.tokens = &token, .n_tokens = 1, .pos = s->pos, .row0 = 0, .n_rows = 1};
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_pass_token(&s->pass, &in, err));
    s->pos++;
    TRY(take_logits(s, 0, in.pos, err));
    if (f->fn)
        f->stop = !f->fn(f->user, f->index, s->logits);
done:
    return st;
}

/* Logits of every row of the chunk, state.n_rows at a time. */
static enum vkmoe_status chunk_logits(struct run_session *s, const struct run_step *chunk, struct feed *f,
                                      struct vkmoe_err *err)
{
    struct run_step in = *chunk;
    enum vkmoe_status st = VKMOE_OK;

    for (in.row0 = 0; in.row0 < in.n_tokens; in.row0 += in.n_rows) {
        in.n_rows = s->state.n_rows;
        if (in.n_rows > in.n_tokens - in.row0)
            in.n_rows = in.n_tokens - in.row0;
        TRY(run_pass_rows(&s->pass, &in, err));
        for (uint32_t r = 0; r < in.n_rows; r++) {
            TRY(take_logits(s, r, in.pos + in.row0 + r, err));
            if (!f->stop)
                f->stop = !f->fn(f->user, f->index + in.row0 + r, s->logits);
        }
    }
done:
    return st;
}

/* Parts per submit so that none is predicted to pass the limit: layers, of which the first submit takes one,
 * or, where a layer takes too long, each part by itself. Less than a part is not to be had: chunks are not
 * cut by time, since results must not depend on it. */
static uint32_t parts_per_submit(const struct run_session *s, uint32_t n_tokens)
{
    uint64_t layer_ns = s->layer_ns * n_tokens / s->state.chunk;

    if (!s->layer_ns)
        return RUN_LAYER_PARTS;
    if (layer_ns >= SUBMIT_NS)
        return 1;
    return layer_ns * (n_layers(s) + 1) <= SUBMIT_NS ? 0 : (uint32_t)(SUBMIT_NS / layer_ns) * RUN_LAYER_PARTS;
}

/* Tokens of the next chunk. No single token is left over: by itself it would take the kernels of decode. */
static uint32_t next_part(const struct run_session *s, size_t left)
{
    uint32_t chunk = s->state.chunk;

    if (left == chunk + 1u && chunk > 2)
        return chunk - 1;
    return left < chunk ? (uint32_t)left : chunk;
}

static enum vkmoe_status feed_chunk(struct run_session *s, const int32_t *tokens, uint32_t n, bool last,
                                    struct feed *f, struct vkmoe_err *err)
{
    const struct run_step in = {.tokens = tokens, .n_tokens = n, .pos = s->pos, .row0 = n - 1, .n_rows = 1};
    const enum run_want want = f->fn ? RUN_WANT_ALL : last ? RUN_WANT_LAST : RUN_WANT_NONE;
    uint64_t start = cor_now_ns(), halts = s->pass.stats.halts, ns;
    uint32_t layers = n_layers(s);
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_pass_chunk(&s->pass, &in, want, parts_per_submit(s, n), err));
    if (layers > 1 && run_pass_trims(&s->pass, n, want))
        layers--;
    ns = (cor_now_ns() - start) / layers * s->state.chunk / n;
    if (s->pass.stats.halts == halts) /* uploads say nothing of the layers */
        s->layer_ns = ns;
    if (want == RUN_WANT_LAST)
        TRY(take_logits(s, 0, s->pos + n - 1, err));
    else if (want == RUN_WANT_ALL)
        TRY(chunk_logits(s, &in, f, err));
    s->pos += n;
done:
    return st;
}

/* ---- document pools
 * ----------------------------------------------------------------------------------------- */

/* What the watch decided for layers [from, to) holds from now on: on the device, in the pool's slots. */
static enum vkmoe_status hold_layers(struct run_session *s, uint32_t from, uint32_t to, struct vkmoe_err *err)
{
    const struct run_watch *w = &s->watch;
    uint32_t words = run_mask_words(&s->model->mdl->config), n_loads;
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_state_set_mask(&s->state, w->mask, err));
    for (uint32_t l = from; l < to; l++)
        TRY(run_pool_hold(&s->model->pool, l, w->pool + (size_t)l * words, w->pool, &n_loads, err));
done:
    return st;
}

/* The first feed: layer by layer, so that a layer's pool is picked from all tokens before any of them is
 * routed there, and the next layer sees what comes of it. */
static enum vkmoe_status feed_text(struct run_session *s, const int32_t *tokens, uint32_t n, struct feed *f,
                                   struct vkmoe_err *err)
{
    struct run_slots *slots = s->model->pool.slots;
    enum vkmoe_status st = VKMOE_OK;

    s->watch.summed = true;
    run_slots_chunk_begin(slots, n);
    for (uint32_t layer = 0; layer <= n_layers(s); layer++) {
        bool end = layer == n_layers(s);

        if (layer) {
            run_watch_pick(&s->watch, layer - 1);
            TRY(hold_layers(s, layer - 1, layer, err));
        }
        for (uint32_t at = 0, len; at < n; at += len) {
            len = next_part(s, n - at);
            const struct run_step in = {
                .tokens = tokens + at, .n_tokens = len, .pos = at, .row0 = len - 1, .n_rows = 1};
            bool last = at + len == n;

            TRY(run_pass_layer(&s->pass, &in, layer, last, last && end && !f->fn, err));
            f->index = at;
            if (!end && !mdl_is_dense(&s->model->mdl->config, layer))
                TRY(run_watch_sum(&s->watch, layer, len, err));
            else if (f->fn)
                TRY(chunk_logits(s, &in, f, err));
        }
    }
    if (!f->fn)
        TRY(take_logits(s, 0, n - 1, err));
    s->watch.picked = true;
done:
    s->pos = n;
    f->index = n;
    s->watch.summed = false;
    run_slots_chunk_end(slots);
    return st;
}

/* Behind n_tokens more: a pool that is still to be picked, or exchanges its members. */
static enum vkmoe_status tend_pool(struct run_session *s, uint32_t n_tokens, struct vkmoe_err *err)
{
    struct run_watch *w = &s->watch;
    enum vkmoe_status st = VKMOE_OK;

    w->since += n_tokens;
    if (!w->picked && s->pos >= RUN_DOC_LEAST) {
        for (uint32_t l = 0; l < n_layers(s); l++)
            run_watch_pick(w, l);
        w->picked = true;
        TRY(hold_layers(s, 0, n_layers(s), err));
    } else if (w->picked && w->refresh && w->since >= w->refresh) {
        w->since = 0;
        if (run_watch_exchange(w))
            TRY(hold_layers(s, 0, n_layers(s), err));
    }
done:
    return st;
}

/* A new text: nothing is picked. */
static enum vkmoe_status begin_text(struct run_session *s, struct vkmoe_err *err)
{
    run_watch_reset(&s->watch);
    return run_state_set_mask(&s->state, s->watch.mask, err);
}

/* ---- a feed
 * ------------------------------------------------------------------------------------------------- */

static enum vkmoe_status check_tokens(const struct run_session *s, const int32_t *tokens, size_t n,
                                      struct vkmoe_err *err)
{
    uint32_t vocab = s->model->mdl->config.vocab_size;

    if (s->cut)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "the session was fed to a router only: reset it first");
    if (!n)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "no tokens to feed");
    if (n > s->state.n_ctx - s->pos)
        return cor_fail(err, VKMOE_ERR_CONTEXT_FULL,
                        "context full: %u of %u positions used, %zu more asked for", s->pos, s->state.n_ctx,
                        n);
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return cor_fail(err, VKMOE_ERR_ARGUMENT,
                            "token %zu: id %" PRId32 " is outside the vocabulary of %u", i, tokens[i], vocab);
    return VKMOE_OK;
}

enum vkmoe_status run_session_feed(struct run_session *s, const int32_t *tokens, size_t n, run_logits_fn fn,
                                   void *user, struct vkmoe_err *err)
{
    struct feed f = {.fn = fn, .user = user};
    struct vkmoe_err local = {0};
    enum vkmoe_status st = VKMOE_OK;

    if (s->broken.status != VKMOE_OK)
        return cor_fail(err, s->broken.status, "%s", s->broken.message);
    if (fn && s->state.n_top)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "a session of the %u best logits hands out no others",
                        s->state.n_top);
    if ((st = check_tokens(s, tokens, n, err)) != VKMOE_OK)
        return st;
    TRY(run_model_poll(s->model, &local));
    TRY(run_pass_refresh(&s->pass, &local));
    if (s->watch.doc && !s->pos) {
        TRY(begin_text(s, &local));
        if (n > 1) /* a text's first token alone tells nothing of its topic */
            TRY(feed_text(s, tokens, (uint32_t)n, &f, &local));
    }
    while (f.index < n && !f.stop) {
        uint32_t part = next_part(s, n - f.index);

        if (part == 1)
            TRY(feed_one(s, tokens[f.index], &f, &local));
        else
            TRY(feed_chunk(s, tokens + f.index, part, part == n - f.index, &f, &local));
        f.index += part;
        if (s->watch.doc)
            TRY(tend_pool(s, part, &local));
    }
done:
    if (st != VKMOE_OK) {
        if (st != VKMOE_ERR_NUMERIC) /* the context no longer holds what was fed */
            s->broken = local;
        cor_fail(err, st, "%s", local.message);
    }
    return st;
}

enum vkmoe_status run_session_feed_to(struct run_session *s, const int32_t *tokens, size_t n, uint32_t last,
                                      struct vkmoe_err *err)
{
    struct vkmoe_err local = {0};
    enum vkmoe_status st = VKMOE_OK;

    if (s->broken.status != VKMOE_OK)
        return cor_fail(err, s->broken.status, "%s", s->broken.message);
    if (last >= n_layers(s))
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "layer %u of %u", last, n_layers(s));
    if (s->watch.doc)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "a session with a document pool feeds whole texts");
    if ((st = check_tokens(s, tokens, n, err)) != VKMOE_OK)
        return st;
    TRY(run_model_poll(s->model, &local));
    TRY(run_pass_refresh(&s->pass, &local));
    for (uint32_t at = 0, part; at < n; at += part) {
        part = next_part(s, n - at);
        const struct run_step in = {.tokens = tokens + at, .n_tokens = part, .pos = s->pos};

        TRY(run_pass_to_router(&s->pass, &in, last, parts_per_submit(s, part), &local));
        s->pos += part;
    }
    s->cut = true;
    s->has_logits = false;
    s->top.n = 0;
done:
    if (st != VKMOE_OK) {
        s->broken = local;
        cor_fail(err, st, "%s", local.message);
    }
    return st;
}

const float *run_session_logits(const struct run_session *s)
{
    return s->has_logits ? s->logits : NULL;
}

uint32_t run_session_top(const struct run_session *s, const int32_t **ids, const float **logits)
{
    *ids = s->top.ids;
    *logits = s->top.logits;
    return s->top.n;
}

uint32_t run_session_position(const struct run_session *s)
{
    return s->pos;
}

void run_session_reset(struct run_session *s)
{
    s->pos = 0;
    s->cut = false;
    s->has_logits = false;
    s->top.n = 0;
}

void run_session_amount(const struct run_session *s, uint32_t pos, struct gpu_amount *sum)
{
    run_pass_amount(&s->pass, pos, sum);
}

const struct run_stats *run_session_stats(const struct run_session *s)
{
    return &s->pass.stats;
}

const struct run_state *run_session_state(const struct run_session *s)
{
    return &s->state;
}

void run_session_counts(const struct run_session *s, struct vkmoe_session_counts *counts)
{
    run_pass_counts(&s->pass, counts);
}

void run_session_on_route(struct run_session *s, run_route_fn fn, void *user)
{
    s->pass.on_route = fn;
    s->pass.route_user = user;
}

enum vkmoe_status run_session_set_mask(struct run_session *s, const uint32_t *allowed, struct vkmoe_err *err)
{
    return run_state_set_mask(&s->state, allowed, err);
}

bool run_session_has_doc(const struct run_session *s)
{
    return s->watch.doc > 0;
}

void run_session_on_watch(struct run_session *s, vkmoe_watch_fn fn, void *user)
{
    s->watch.fn = fn;
    s->watch.user = user;
}

void run_session_on_inputs(struct run_session *s, vkmoe_inputs_fn fn, void *user)
{
    s->inputs.fn = s->state.watch >= VKMOE_WATCH_INPUTS ? fn : NULL;
    s->inputs.user = user;
}

const struct vkmoe_outside *run_session_outside(const struct run_session *s)
{
    return &s->watch.outside;
}
