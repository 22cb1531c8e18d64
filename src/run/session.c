#include "run/session.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/alloc.h"
#include "core/os.h"

#define SUBMIT_NS 200000000ull /* no submit is predicted to take longer: drivers kill long ones */

struct run_session {
    struct run_model *model;
    struct run_state state;
    struct run_pass pass;
    uint32_t pos;
    bool has_logits;
    float *logits; /* vocab_size, after the last token */
    uint32_t argmax;
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
    return (struct run_state_params){
        .n_ctx = p->n_ctx, .chunk = p->chunk, .k_f16 = p->k_f16, .v_f16 = p->v_f16};
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
    s->logits = cor_array(m->mdl->config.vocab_size, sizeof(float));
    if (!s->logits)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %u logits", m->mdl->config.vocab_size);
    TRY(run_state_plan(&s->state, m, &sp, err));
    TRY(run_state_create(&s->state, m, err));
    s->pass.slow = p->slow;
    TRY(run_pass_create(&s->pass, m, &s->state, err));
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

/* Copies row `row` of the host's logits buffer, which holds those after position pos. */
static enum vkmoe_status take_logits(struct run_session *s, uint32_t row, uint32_t pos, struct vkmoe_err *err)
{
    uint32_t n = s->model->mdl->config.vocab_size;
    const uint32_t *mail = gpu_buffer_map(s->state.mailbox);
    const float *from = gpu_buffer_map(s->state.out);

    memcpy(s->logits, from + (size_t)row * n, n * sizeof(float));
    s->argmax = mail[MAIL_ARGMAX];
    s->has_logits = true;
    return check_finite(s->logits, n, pos, err);
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
    uint64_t bytes = (uint64_t)s->model->mdl->config.vocab_size * 4;
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_pass_token(&s->pass, &in, err));
    TRY(gpu_buffer_invalidate(s->state.out, 0, bytes, err));
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
        TRY(gpu_buffer_invalidate(s->state.out, 0, gpu_buffer_bytes(s->state.out), err));
        for (uint32_t r = 0; r < in.n_rows; r++) {
            TRY(take_logits(s, r, in.pos + in.row0 + r, err));
            if (!f->stop)
                f->stop = !f->fn(f->user, f->index + in.row0 + r, s->logits);
        }
    }
done:
    return st;
}

/* Parts per submit so that none is predicted to pass the limit; the first submit takes one layer, of two
 * parts. Less than a part is not to be had: chunks are not cut by time, since results must not depend on it.
 */
static uint32_t parts_per_submit(const struct run_session *s, uint32_t n_tokens)
{
    uint64_t part_ns = s->layer_ns * n_tokens / s->state.chunk / 2;
    uint64_t all = 2 * n_layers(s) + 2;

    if (!s->layer_ns)
        return 2;
    if (part_ns >= SUBMIT_NS)
        return 1;
    return part_ns * all <= SUBMIT_NS ? (uint32_t)all : (uint32_t)(SUBMIT_NS / part_ns);
}

static enum vkmoe_status feed_chunk(struct run_session *s, const int32_t *tokens, uint32_t n, bool last,
                                    struct feed *f, struct vkmoe_err *err)
{
    const struct run_step in = {.tokens = tokens, .n_tokens = n, .pos = s->pos, .row0 = n - 1, .n_rows = 1};
    uint64_t start = cor_now_ns(), halts = s->pass.stats.halts, ns;
    bool head = last && !f->fn;
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_pass_chunk(&s->pass, &in, head, parts_per_submit(s, n), err));
    ns = (cor_now_ns() - start) / n_layers(s) * s->state.chunk / n;
    if (s->pass.stats.halts == halts) /* uploads say nothing of the layers */
        s->layer_ns = ns;
    if (head) {
        TRY(gpu_buffer_invalidate(s->state.out, 0, (uint64_t)s->model->mdl->config.vocab_size * 4, err));
        TRY(take_logits(s, 0, s->pos + n - 1, err));
    } else if (f->fn) {
        TRY(chunk_logits(s, &in, f, err));
    }
    s->pos += n;
done:
    return st;
}

static enum vkmoe_status check_tokens(const struct run_session *s, const int32_t *tokens, size_t n,
                                      struct vkmoe_err *err)
{
    uint32_t vocab = s->model->mdl->config.vocab_size;

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
    if ((st = check_tokens(s, tokens, n, err)) != VKMOE_OK)
        return st;
    TRY(run_model_poll(s->model, &local));
    TRY(run_pass_refresh(&s->pass, &local));
    while (f.index < n && !f.stop) {
        size_t left = n - f.index;
        uint32_t part = left < s->state.chunk ? (uint32_t)left : s->state.chunk;

        if (part == 1)
            TRY(feed_one(s, tokens[f.index], &f, &local));
        else
            TRY(feed_chunk(s, tokens + f.index, part, part == left, &f, &local));
        f.index += part;
    }
done:
    if (st != VKMOE_OK) {
        if (st != VKMOE_ERR_NUMERIC) /* the context no longer holds what was fed */
            s->broken = local;
        cor_fail(err, st, "%s", local.message);
    }
    return st;
}

const float *run_session_logits(const struct run_session *s)
{
    return s->has_logits ? s->logits : NULL;
}

uint32_t run_session_argmax(const struct run_session *s)
{
    return s->argmax;
}

uint32_t run_session_position(const struct run_session *s)
{
    return s->pos;
}

void run_session_reset(struct run_session *s)
{
    s->pos = 0;
    s->has_logits = false;
}

const struct run_stats *run_session_stats(const struct run_session *s)
{
    return &s->pass.stats;
}

const struct run_state *run_session_state(const struct run_session *s)
{
    return &s->state;
}

void run_session_on_route(struct run_session *s, run_route_fn fn, void *user)
{
    s->pass.on_route = fn;
    s->pass.route_user = user;
}

enum vkmoe_status run_session_set_mask(struct run_session *s, const uint32_t *allowed, struct vkmoe_err *err)
{
    return run_state_set_mask(&s->state, s->model, allowed, err);
}
