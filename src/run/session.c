#include "run/session.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/os.h"
#include "run/layer.h"

#define SUBMIT_NS 200000000ull    /* no submit is predicted to take longer: drivers kill long ones */
#define WAIT_NS   120000000000ull /* a wait that lasts this long is a hang */

struct run_session {
    struct run_model *model;
    struct run_state state;
    struct run_program one;  /* one token */
    struct run_program many; /* a chunk of prefill */
    struct run_program rows; /* output head for several rows of the chunk that was just fed */
    struct gpu_cmds *finish; /* ends every submit: makes results visible to the host */
    uint32_t pos;
    bool has_logits;
    float *logits; /* vocab_size, after the last token */
    uint32_t argmax;
    uint64_t layer_ns; /* measured time of one prefill layer for a full chunk; 0: not known yet */
    bool slow;
    run_route_fn on_route;
    void *route_user;
    uint32_t *route; /* host copy of the choices of one layer; slow sessions only */
    struct run_stats stats;
    struct vkmoe_err broken; /* status != VKMOE_OK: every call answers with it */
};

static uint32_t n_layers(const struct run_session *s)
{
    return s->model->mdl->config.n_layers;
}

static uint32_t part_head(const struct run_session *s)
{
    return 1 + 2 * n_layers(s);
}

/* ---- creation
 * ----------------------------------------------------------------------------------------------- */

static enum vkmoe_status record_pass(struct run_session *s, struct run_program *p, bool many,
                                     const char *name, struct vkmoe_err *err)
{
    const struct run_graph g = {.prog = p, .model = s->model, .state = &s->state, .many = many};
    const struct run_publish pub = {s->state.step, s->state.state, s->model->pool.table, s->state.mailbox};
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_program_create(p, s->model->dev, name, part_head(s) + 1, run_count_dispatches(s->model), err));
    run_record_embed(&g);
    for (uint32_t l = 0; l < n_layers(s); l++) {
        run_record_attention(&g, l);
        run_record_experts(&g, l);
    }
    run_record_head(&g, false);
    TRY(run_program_finish(p, &pub, err));
done:
    return st;
}

static enum vkmoe_status record_rows(struct run_session *s, struct vkmoe_err *err)
{
    const struct run_graph g = {.prog = &s->rows, .model = s->model, .state = &s->state, .many = true};
    const struct run_publish pub = {s->state.step, s->state.state, s->model->pool.table, s->state.mailbox};
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_program_create(&s->rows, s->model->dev, "logits of rows", 1, run_count_dispatches(s->model),
                           err));
    run_record_head(&g, true);
    TRY(run_program_finish(&s->rows, &pub, err));
done:
    return st;
}

static enum vkmoe_status record_finish(struct run_session *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(gpu_cmds_create(&s->finish, s->model->dev, "finish", err));
    gpu_cmds_begin(s->finish);
    gpu_cmds_barrier(s->finish, GPU_BARRIER_HOST);
    TRY(gpu_cmds_end(s->finish, err));
done:
    return st;
}

enum vkmoe_status run_session_create(struct run_session **out, struct run_model *m,
                                     const struct run_session_params *p, struct vkmoe_err *err)
{
    const struct run_state_params sp = {
        .n_ctx = p->n_ctx, .chunk = p->chunk, .k_f16 = p->k_f16, .v_f16 = p->v_f16};
    struct run_session *s = cor_zalloc(sizeof(*s));
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!s)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for a session");
    s->model = m;
    s->logits = cor_array(m->mdl->config.vocab_size, sizeof(float));
    if (!s->logits)
        FAIL(VKMOE_ERR_MEMORY, "no memory for %u logits", m->mdl->config.vocab_size);
    TRY(run_state_create(&s->state, m, &sp, err));
    s->slow = p->slow;
    if (p->slow && !(s->route = cor_alloc(s->state.sel.bytes)))
        FAIL(VKMOE_ERR_MEMORY, "no memory for the choices of %u tokens", s->state.chunk);
    TRY(record_finish(s, err));
    TRY(record_pass(s, &s->one, false, "token", err));
    if (s->state.chunk > 1) {
        TRY(record_pass(s, &s->many, true, "prefill", err));
        TRY(record_rows(s, err));
    }
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
    run_program_close(&s->one);
    run_program_close(&s->many);
    run_program_close(&s->rows);
    gpu_cmds_destroy(s->finish);
    run_state_close(&s->state);
    cor_free(s->logits);
    cor_free(s->route);
    cor_free(s);
}

/* ---- one submit
 * --------------------------------------------------------------------------------------------- */

struct step {
    const int32_t *tokens;
    uint32_t n_tokens, pos;
    uint32_t row0, n_rows; /* rows for the output head */
};

/* What a submit of parts [from, to) does, for messages: "prefill, layers 2 to 5 of 16". */
static void describe(const struct run_session *s, const char *what, uint32_t from, uint32_t to, char *dst,
                     size_t n)
{
    uint32_t first = from ? (from - 1) / 2 : 0, last = to > 1 ? (to - 2) / 2 : 0;

    if (last >= n_layers(s))
        last = n_layers(s) - 1;
    snprintf(dst, n, "%s, layers %u to %u of %u", what, first < last ? first : last, last, n_layers(s));
}

/* Fills the step buffer, submits parts [from, to), waits, and brings the mailbox up to date. */
static enum vkmoe_status submit_wait(struct run_session *s, struct run_program *p, const struct step *in,
                                     uint32_t from, uint32_t to, const char *what, struct vkmoe_err *err)
{
    struct run_state *d = &s->state;
    uint32_t *step = gpu_buffer_map(d->step);
    enum vkmoe_status st = VKMOE_OK;
    char where[96];

    step[STEP_N_TOKENS] = in->n_tokens;
    step[STEP_POS] = in->pos;
    step[STEP_FIRST] = p->first[from];
    step[STEP_ROW0] = in->row0;
    step[STEP_N_ROWS] = in->n_rows;
    step[STEP_CHUNK] = d->chunk;
    memcpy(step + STEP_TOKENS, in->tokens, in->n_tokens * sizeof(*in->tokens));
    step[STEP_N_CHANGES] = run_pool_pending(&s->model->pool, step + STEP_TOKENS + d->chunk);
    TRY(gpu_buffer_flush(d->step, 0, gpu_buffer_bytes(d->step), err));
    TRY(run_program_submit(p, from, to, s->finish, err));
    run_pool_published(&s->model->pool);
    s->stats.submits++;
    describe(s, what, from, to, where, sizeof(where));
    TRY(gpu_wait(s->model->dev, WAIT_NS, where, err));
    s->stats.waits++;
    TRY(gpu_buffer_invalidate(d->mailbox, 0, MAIL_WORDS * 4, err));
done:
    return st;
}

/* Did the last submit halt? Loads what it missed and gives the part to go on from; NONE when it ran to its
 * end. */
static enum vkmoe_status serve_halt(struct run_session *s, uint32_t *resume, struct vkmoe_err *err)
{
    const uint32_t *mail = gpu_buffer_map(s->state.mailbox);
    uint32_t layer = mail[MAIL_LAYER];

    *resume = NONE;
    if (layer == NONE)
        return VKMOE_OK;
    if (layer >= n_layers(s))
        return cor_fail(err, VKMOE_ERR_DEVICE, "the device reports a halt at layer %u of %u", layer,
                        n_layers(s));
    s->stats.halts++;
    *resume = run_part_experts(layer);
    return run_pool_load(&s->model->pool, layer, mail + MAIL_MISSING, NULL, err);
}

/* Tells of the choices of a layer when `part`, which has just run, is the one that makes them. */
static enum vkmoe_status tell_route(struct run_session *s, const struct step *in, uint32_t part,
                                    struct vkmoe_err *err)
{
    const struct run_region *sel = &s->state.sel;
    uint64_t bytes = (uint64_t)in->n_tokens * s->model->mdl->config.n_experts_used * 8;
    enum vkmoe_status st = VKMOE_OK;

    if (!s->on_route || part % 2 == 0 || part == part_head(s))
        return VKMOE_OK;
    TRY(gpu_download(s->model->dev, run_arena_buffer(&s->state.act, sel), sel->off, s->route, bytes, err));
    s->on_route(s->route_user, part / 2, in->pos, in->n_tokens, s->route);
done:
    return st;
}

/* Runs parts [0, to) with as many submits as halts and the time limit ask for. per_submit: parts at most, 0:
 * all. */
static enum vkmoe_status run_parts(struct run_session *s, struct run_program *p, const struct step *in,
                                   uint32_t to, uint32_t per_submit, const char *what, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t from = 0, last_halt = NONE, halts_here = 0;

    if (s->slow)
        per_submit = 1;
    while (from < to) {
        uint32_t end = per_submit && to - from > per_submit ? from + per_submit : to, resume;

        TRY(submit_wait(s, p, in, from, end, what, err));
        TRY(serve_halt(s, &resume, err));
        if (s->slow)
            TRY(tell_route(s, in, from, err));
        if (resume == NONE) {
            from = end;
            continue;
        }
        halts_here = resume == last_halt ? halts_here + 1 : 1;
        last_halt = resume;
        if (halts_here >
            2) /* what was missing has been loaded: a device that halts again is not to be trusted */
            FAIL(VKMOE_ERR_DEVICE, "%s: halted three times at one layer", what);
        from = resume;
    }
done:
    return st;
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
    const struct step in = {.tokens = &token, .n_tokens = 1, .pos = s->pos, .row0 = 0, .n_rows = 1};
    uint64_t bytes = (uint64_t)s->model->mdl->config.vocab_size * 4;
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_parts(s, &s->one, &in, s->one.n_parts, 0, "decode", err));
    TRY(gpu_buffer_invalidate(s->state.out, 0, bytes, err));
    s->pos++;
    TRY(take_logits(s, 0, in.pos, err));
    if (f->fn)
        f->stop = !f->fn(f->user, f->index, s->logits);
done:
    return st;
}

/* Logits of every row of the chunk, state.n_rows at a time. */
static enum vkmoe_status chunk_logits(struct run_session *s, const struct step *chunk, struct feed *f,
                                      struct vkmoe_err *err)
{
    struct step in = *chunk;
    enum vkmoe_status st = VKMOE_OK;

    for (in.row0 = 0; in.row0 < in.n_tokens; in.row0 += in.n_rows) {
        in.n_rows = s->state.n_rows;
        if (in.n_rows > in.n_tokens - in.row0)
            in.n_rows = in.n_tokens - in.row0;
        TRY(submit_wait(s, &s->rows, &in, 0, 1, "logits of rows", err));
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
    const struct step in = {.tokens = tokens, .n_tokens = n, .pos = s->pos, .row0 = n - 1, .n_rows = 1};
    uint64_t start = cor_now_ns(), halts = s->stats.halts, ns;
    bool head = last && !f->fn;
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_parts(s, &s->many, &in, part_head(s) + head, parts_per_submit(s, n), "prefill", err));
    ns = (cor_now_ns() - start) / n_layers(s) * s->state.chunk / n;
    if (s->stats.halts == halts) /* uploads say nothing of the layers */
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
    return &s->stats;
}

const struct run_state *run_session_state(const struct run_session *s)
{
    return &s->state;
}

void run_session_on_route(struct run_session *s, run_route_fn fn, void *user)
{
    assert(s->slow);
    s->on_route = fn;
    s->route_user = user;
}

enum vkmoe_status run_session_set_mask(struct run_session *s, const uint32_t *allowed, struct vkmoe_err *err)
{
    return run_state_set_mask(&s->state, s->model, allowed, err);
}
