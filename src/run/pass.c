#include "run/pass.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "run/layer.h"
#include "run/tags.h"

#define WAIT_NS 120000000000ull /* a wait that lasts this long is a hang */

static uint32_t n_layers(const struct run_pass *p)
{
    return p->model->mdl->config.n_layers;
}

/* Has the layer no experts to choose, to load and to tell of? */
static bool is_dense(const struct run_pass *p, uint32_t layer)
{
    return mdl_is_dense(&p->model->mdl->config, layer);
}

static uint32_t part_head(const struct run_pass *p)
{
    return run_part_keys(n_layers(p));
}

static bool bit(const uint32_t *set, uint32_t i)
{
    return set[i / 32] >> (i % 32) & 1;
}

/* ---- recording
 * ---------------------------------------------------------------------------------------------- */

static struct run_publish publish_binds(const struct run_pass *p)
{
    struct run_publish pub = {
        .state = p->state->state, .table = p->model->pool.table, .mailbox = p->state->mailbox};

    memcpy(pub.step, p->state->step, sizeof(pub.step));
    return pub;
}

/* What a program is for. */
enum kind { ONE, FEW, MANY, BY_LAYER };

static struct run_graph graph_of(struct run_program *prog, const struct run_model *m,
                                 const struct run_state *s, enum kind kind)
{
    return (struct run_graph){.prog = prog,
                              .model = m,
                              .state = s,
                              .variants = m->variants,
                              .many = kind != ONE,
                              .few = kind == FEW,
                              .by_layer = kind == BY_LAYER};
}

/* Tiles of rows on lanes are narrow enough, and narrow devices, whose mat-vec takes more rows at once, would
 * pay for a program more than they gain. */
static bool wants_few(const struct run_model *m, const struct run_state *s)
{
    return s->chunk > 1 && m->variants.tile == RUN_TILE_SHARED && m->variants.rows <= 4;
}

/* In the order of run_part_keys, run_part_attention and run_part_experts. */
static void record_parts(const struct run_graph *g)
{
    run_record_embed(g);
    for (uint32_t l = 0; l < g->model->mdl->config.n_layers; l++) {
        run_record_keys(g, l);
        run_record_attention(g, l);
        run_record_experts(g, l);
    }
    run_record_head(g, false);
}

static enum vkmoe_status record_pass(struct run_pass *p, struct run_program *prog, enum kind kind,
                                     const char *name, struct vkmoe_err *err)
{
    const struct run_graph g = graph_of(prog, p->model, p->state, kind);
    const struct run_publish pub = publish_binds(p);
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_program_create(prog, p->model->dev, name, part_head(p) + 1, run_count_dispatches(p->model), err));
    record_parts(&g);
    TRY(run_program_finish(prog, &pub, err));
done:
    return st;
}

/* Everything of one program, dry. A failure here is met again by who records. */
static void foresee(const struct run_model *m, const struct run_state *s, enum kind kind)
{
    struct run_program prog;
    const struct run_graph g = graph_of(&prog, m, s, kind);
    struct vkmoe_err err;

    if (run_program_create_dry(&prog, m->dev, run_part_keys(m->mdl->config.n_layers) + 1,
                               run_count_dispatches(m), &err) == VKMOE_OK)
        record_parts(&g);
    run_program_close(&prog);
}

void run_pass_foresee(const struct run_model *m, const struct run_state *s)
{
    foresee(m, s, ONE);
    if (s->chunk > 1)
        foresee(m, s, MANY);
    if (wants_few(m, s))
        foresee(m, s, FEW);
    if (s->by_layer)
        foresee(m, s, BY_LAYER);
}

static enum vkmoe_status record_last(struct run_pass *p, struct vkmoe_err *err)
{
    const struct run_graph g = graph_of(&p->last, p->model, p->state, MANY);
    const struct run_publish pub = publish_binds(p);
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_program_create(&p->last, p->model->dev, "last row", 1, 2, err));
    run_record_last(&g);
    TRY(run_program_finish(&p->last, &pub, err));
done:
    return st;
}

static enum vkmoe_status record_rows(struct run_pass *p, struct vkmoe_err *err)
{
    const struct run_graph g = graph_of(&p->rows, p->model, p->state, MANY);
    const struct run_publish pub = publish_binds(p);
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_program_create(&p->rows, p->model->dev, "logits of rows", 1, run_count_dispatches(p->model),
                           err));
    run_record_head(&g, true);
    TRY(run_program_finish(&p->rows, &pub, err));
done:
    return st;
}

static enum vkmoe_status record_finish(struct run_pass *p, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(gpu_cmds_create(&p->finish, p->model->dev, "finish", err));
    gpu_cmds_begin(p->finish);
    gpu_cmds_barrier(p->finish, GPU_BARRIER_HOST);
    TRY(gpu_cmds_end(p->finish, err));
done:
    return st;
}

/* The programs that bind the pool's segments. */
static enum vkmoe_status record_programs(struct run_pass *p, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    p->generation = p->model->pool.generation;
    TRY(record_pass(p, &p->one, ONE, "token", err));
    if (p->state->chunk > 1)
        TRY(record_pass(p, &p->many, MANY, "prefill", err));
    if (wants_few(p->model, p->state))
        TRY(record_pass(p, &p->few, FEW, "short prefill", err));
    if (p->state->by_layer)
        TRY(record_pass(p, &p->layers, BY_LAYER, "prefill by layer", err));
done:
    return st;
}

enum vkmoe_status run_pass_create(struct run_pass *p, struct run_model *m, struct run_state *s,
                                  struct run_watch *watch, struct run_inputs *inputs, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    p->model = m;
    p->state = s;
    p->watch = watch;
    p->inputs = inputs;
    TRY(record_finish(p, err));
    TRY(record_programs(p, err));
    if (s->chunk > RUN_FEW)
        TRY(record_last(p, err));
    if ((s->chunk > 1 || s->by_layer) && !s->n_top)
        TRY(record_rows(p, err));
done:
    return st;
}

void run_pass_close(struct run_pass *p)
{
    run_program_close(&p->one);
    run_program_close(&p->many);
    run_program_close(&p->few);
    run_program_close(&p->layers);
    run_program_close(&p->last);
    run_program_close(&p->rows);
    gpu_cmds_destroy(p->finish);
}

enum vkmoe_status run_pass_refresh(struct run_pass *p, struct vkmoe_err *err)
{
    if (p->generation == p->model->pool.generation)
        return VKMOE_OK;
    run_program_close(&p->one);
    run_program_close(&p->many);
    run_program_close(&p->few);
    run_program_close(&p->layers);
    return record_programs(p, err);
}

void run_pass_amount(const struct run_pass *p, uint32_t pos, struct gpu_amount *sum)
{
    run_program_amount(&p->one, &(struct gpu_step){.n_tokens = 1, .n_rows = 1, .pos = pos}, sum);
}

void run_pass_counts(const struct run_pass *p, struct vkmoe_session_counts *counts)
{
    uint32_t d, b;

    memset(counts, 0, sizeof(*counts));
    for (uint32_t l = 0; l < n_layers(p); l++) {
        run_program_count(&p->one, run_part_keys(l), run_part_experts(l) + 1, &d, &b);
        counts->layer_dispatches = d > counts->layer_dispatches ? d : counts->layer_dispatches;
        counts->layer_barriers = b > counts->layer_barriers ? b : counts->layer_barriers;
        counts->dispatches += d;
        counts->barriers += b;
    }
    run_program_count(&p->one, 0, 1, &d, &b);
    counts->outside_dispatches = d + 1; /* publish */
    counts->outside_barriers = b + 2;   /* behind it, and at the end */
    run_program_count(&p->one, part_head(p), part_head(p) + 1, &d, &b);
    counts->outside_dispatches += d;
    counts->outside_barriers += b;
    counts->dispatches += counts->outside_dispatches;
    counts->barriers += counts->outside_barriers;
}

static struct run_program *chunk_program(struct run_pass *p, const struct run_step *in)
{
    return in->n_tokens <= RUN_FEW && wants_few(p->model, p->state) ? &p->few : &p->many;
}

/* ---- one submit
 * --------------------------------------------------------------------------------------------- */

/* What a submit of parts [from, to) does, for messages: "prefill, layers 2 to 5 of 16". */
static void describe(const struct run_pass *p, const char *what, uint32_t from, uint32_t to, char *dst,
                     size_t n)
{
    uint32_t first = from ? run_layer_of(from) : 0, last = to > 1 ? run_layer_of(to - 1) : 0;

    if (last >= n_layers(p))
        last = n_layers(p) - 1;
    snprintf(dst, n, "%s, layers %u to %u of %u", what, first < last ? first : last, last, n_layers(p));
}

/* Fills a step buffer and submits parts [from, to); at most one other submit may be in flight. partial: the
 * experts of the layer that are resident, and no further. */
static enum vkmoe_status submit(struct run_pass *p, struct run_program *prog, const struct run_step *in,
                                uint32_t from, uint32_t to, bool partial, struct vkmoe_err *err)
{
    struct run_state *d = p->state;
    struct gpu_buffer *buf = d->step[p->turn];
    uint32_t *step = gpu_buffer_map(buf);
    enum vkmoe_status st = VKMOE_OK;

    step[STEP_N_TOKENS] = in->n_tokens;
    step[STEP_POS] = in->pos;
    step[STEP_FIRST] = prog->first[from];
    step[STEP_ROW0] = in->row0;
    step[STEP_N_ROWS] = in->n_rows;
    step[STEP_CHUNK] = d->chunk;
    step[STEP_PARTIAL] = partial;
    step[STEP_DONE_LAYER] = p->done_layer;
    memcpy(step + STEP_DONE, p->done, sizeof(p->done));
    memcpy(step + STEP_TOKENS, in->tokens, in->n_tokens * sizeof(*in->tokens));
    step[STEP_N_CHANGES] = run_pool_pending(&p->model->pool, step + STEP_TOKENS + d->chunk);
    TRY(gpu_buffer_flush(buf, 0, gpu_buffer_bytes(buf), err));
    gpu_profile_step(p->model->dev, &(struct gpu_step){in->n_tokens, in->pos, in->n_rows});
    TRY(run_program_submit(prog, p->turn, from, to, p->finish, err));
    run_pool_published(&p->model->pool);
    p->turn = (p->turn + 1) % GPU_IN_FLIGHT;
    p->in_flight = true;
    p->stats.submits++;
done:
    return st;
}

/* Waits for what is in flight, parts [from, to) for messages. */
static enum vkmoe_status wait(struct run_pass *p, uint32_t from, uint32_t to, const char *what,
                              struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char where[96];

    if (!p->in_flight)
        return VKMOE_OK;
    describe(p, what, from, to, where, sizeof(where));
    TRY(gpu_wait(p->model->dev, WAIT_NS, where, err));
    p->in_flight = false;
    p->stats.waits++;
done:
    return st;
}

/* ---- what was chosen
 * ---------------------------------------------------------------------------------------- */

static const uint32_t *routes_of(const struct run_pass *p, uint32_t layer)
{
    const uint32_t *all = gpu_buffer_map(p->state->routes);

    return all + (size_t)layer * p->state->chunk * p->model->mdl->config.n_experts_used * 2;
}

/* The choices of a layer from the device, each id checked: bytes that the device wrote are not trusted. */
static enum vkmoe_status take_routes(struct run_pass *p, const struct run_step *in, uint32_t layer,
                                     const uint32_t **sel, struct vkmoe_err *err)
{
    const struct mdl_config *c = &p->model->mdl->config;
    uint32_t n = in->n_tokens * c->n_experts_used;
    uint64_t off = (uint64_t)layer * p->state->chunk * c->n_experts_used * 8;
    enum vkmoe_status st = VKMOE_OK;

    TRY(gpu_buffer_invalidate(p->state->routes, off, (uint64_t)n * 8, err));
    *sel = routes_of(p, layer);
    memset(p->needed, 0, sizeof(p->needed));
    for (uint32_t i = 0; i < n; i++) {
        uint32_t e = (*sel)[2 * i];

        if (e == NONE)
            continue;
        if (e >= c->n_experts)
            FAIL(VKMOE_ERR_DEVICE, "the device chose expert %u of %u at layer %u", e, c->n_experts, layer);
        p->needed[e / 32] |= 1u << (e % 32);
    }
    if (p->on_route)
        p->on_route(p->route_user, layer, in->pos, in->n_tokens, *sel);
done:
    return st;
}

static bool resident(const struct run_pass *p, uint32_t layer, uint32_t e)
{
    return run_slots_find(p->model->pool.slots, layer, e) != NONE;
}

/* The host's view of who is absent must be the device's. */
static enum vkmoe_status check_missing(const struct run_pass *p, uint32_t layer, const uint32_t *missing,
                                       struct vkmoe_err *err)
{
    for (uint32_t e = 0; e < p->model->mdl->config.n_experts; e++)
        if ((missing && bit(missing, e)) != (bit(p->needed, e) && !resident(p, layer, e)))
            return cor_fail(err, VKMOE_ERR_DEVICE,
                            "layer %u, expert %u: the device's slot table is not the host's", layer, e);
    return VKMOE_OK;
}

/* The last tokens of a chunk count as uses. */
static void seed(struct run_pass *p, const struct run_step *in, uint32_t layer, const uint32_t *sel)
{
    uint32_t n = in->n_tokens < RUN_SEED_TOKENS ? in->n_tokens : RUN_SEED_TOKENS;

    run_slots_seed(p->model->pool.slots, layer,
                   sel + (size_t)(in->n_tokens - n) * p->model->mdl->config.n_experts_used * 2, n);
}

/* ---- halts
 * -------------------------------------------------------------------------------------------------- */

static void mark_done(struct run_pass *p, uint32_t layer, const uint32_t *ready)
{
    if (p->done_layer != layer)
        memset(p->done, 0, sizeof(p->done));
    p->done_layer = layer;
    for (uint32_t w = 0; w < MAX_EXPERTS / 32; w++)
        p->done[w] |= ready[w];
}

/* Needed experts of the layer that have arrived and not run; *absent: of those that have not, how many. */
static uint32_t find_ready(const struct run_pass *p, uint32_t layer, uint32_t *ready, uint32_t *absent)
{
    uint32_t n = 0;

    *absent = 0;
    memset(ready, 0, sizeof(p->done));
    for (uint32_t e = 0; e < p->model->mdl->config.n_experts; e++) {
        if (!bit(p->needed, e) || (p->done_layer == layer && bit(p->done, e)))
            continue;
        if (!resident(p, layer, e)) {
            *absent += 1;
            continue;
        }
        ready[e / 32] |= 1u << (e % 32);
        n++;
    }
    return n;
}

/* Runs what is ready while the host goes on. */
static enum vkmoe_status run_ready(struct run_pass *p, struct run_program *prog, const struct run_step *in,
                                   uint32_t layer, const uint32_t *ready, struct vkmoe_err *err)
{
    uint32_t part = run_part_experts(layer);
    enum vkmoe_status st = VKMOE_OK;

    TRY(submit(p, prog, in, part, part + 1, true, err));
    p->stats.overlapped++;
    mark_done(p, layer, ready);
done:
    return st;
}

/* Waits until what is being loaded has arrived; when debugging, compares every slot with the file. */
static enum vkmoe_status arrive(struct run_pass *p, uint32_t layer, bool prefill, struct vkmoe_err *err)
{
    uint32_t part = run_part_experts(layer);
    enum vkmoe_status st = VKMOE_OK;

    TRY(run_pool_arrive(&p->model->pool, prefill, err));
    if (!p->model->check_slots)
        return VKMOE_OK;
    TRY(wait(p, part, part + 1, prefill ? "prefill" : "decode", err));
    TRY(run_tags_check(&p->model->pool, NULL, 0, err));
done:
    return st;
}

/* One token: its resident experts run while the absent ones are read. */
static enum vkmoe_status load_for_token(struct run_pass *p, const struct run_step *in, uint32_t layer,
                                        const uint32_t *sel, struct vkmoe_err *err)
{
    uint32_t ready[MAX_EXPERTS / 32], absent, n_loads;
    enum vkmoe_status st = VKMOE_OK;

    if (find_ready(p, layer, ready, &absent))
        TRY(run_ready(p, &p->one, in, layer, ready, err));
    TRY(run_pool_visit(&p->model->pool, layer, sel, &n_loads, err));
    TRY(arrive(p, layer, false, err));
done:
    return st;
}

/* A chunk: wave after wave, the next one read while the one before runs. The last is left to the submit that
 * goes on. */
static enum vkmoe_status load_for_chunk(struct run_pass *p, struct run_program *prog,
                                        const struct run_step *in, uint32_t layer, const uint32_t *sel,
                                        struct vkmoe_err *err)
{
    const uint32_t part = run_part_experts(layer);
    uint32_t ready[MAX_EXPERTS / 32], absent, n_loads;
    struct run_pool *pool = &p->model->pool;
    enum vkmoe_status st = VKMOE_OK;

    memset(p->done, 0, sizeof(p->done));
    p->done_layer = layer;
    seed(p, in, layer, sel);
    for (;;) {
        uint32_t n_ready = find_ready(p, layer, ready, &absent);

        if (!absent)
            break;
        if (n_ready) {
            if (p->in_flight) {
                TRY(wait(p, part, part + 1, "prefill", err));
                run_pool_count_wait(pool, true);
            }
            TRY(run_ready(p, prog, in, layer, ready, err));
        }
        TRY(run_pool_wave(pool, layer, p->needed, p->done, &n_loads, err));
        if (!n_loads) { /* all slots that may be taken are still being read */
            if (!p->in_flight)
                FAIL(VKMOE_ERR_LIMIT, "layer %u: no slot is free for %u experts", layer, absent);
            TRY(wait(p, part, part + 1, "prefill", err));
            run_pool_count_wait(pool, true);
            continue;
        }
        TRY(arrive(p, layer, true, err));
    }
    if (p->in_flight) { /* the step buffers go round */
        TRY(wait(p, part, part + 1, "prefill", err));
        run_pool_count_wait(pool, true);
    }
done:
    return st;
}

/* Did the last submit, of this program, halt? Then loads what the layer lacks and gives the part to go on
 * from, else NONE. */
static enum vkmoe_status serve_halt(struct run_pass *p, struct run_program *prog, const struct run_step *in,
                                    bool prefill, uint32_t *resume, struct vkmoe_err *err)
{
    const uint32_t *mail = gpu_buffer_map(p->state->mailbox), *sel;
    uint32_t layer = mail[MAIL_LAYER];
    enum vkmoe_status st = VKMOE_OK;

    *resume = NONE;
    if (layer == NONE)
        return VKMOE_OK;
    /* What was missing has been loaded: a device that halts again is not to be trusted. */
    if (layer >= n_layers(p) || layer != p->next_layer)
        FAIL(VKMOE_ERR_DEVICE, "the device reports a halt at layer %u, layer %u of %u was to run", layer,
             p->next_layer, n_layers(p));
    p->stats.halts++;
    TRY(take_routes(p, in, layer, &sel, err));
    TRY(check_missing(p, layer, mail + MAIL_MISSING, err));
    p->next_layer = layer + 1;
    if (prefill)
        TRY(load_for_chunk(p, prog, in, layer, sel, err));
    else
        TRY(load_for_token(p, in, layer, sel, err));
    *resume = run_part_experts(layer);
done:
    return st;
}

/* ---- all parts
 * ---------------------------------------------------------------------------------------------- */

/* What a stretch of parts is for: what a halt means, and how uses are counted. */
enum use {
    DECODE,
    PREFILL,
    HELD, /* prefill whose experts are all resident; not the text's last chunk */
    HELD_LAST
};

struct stretch {
    struct run_program *prog;
    uint32_t from, to;   /* parts */
    uint32_t per_submit; /* at most, 0: all */
    enum use use;
};

static const char *name_of(enum use use)
{
    return use == DECODE ? "decode" : "prefill";
}

/* A layer that found all its experts: uses are counted, nothing is loaded. */
static enum vkmoe_status take_layer(struct run_pass *p, const struct run_step *in, uint32_t layer,
                                    enum use use, struct vkmoe_err *err)
{
    const uint32_t none[MAX_EXPERTS / 32] = {0};
    struct run_pool *pool = &p->model->pool;
    const uint32_t *sel;
    uint32_t n_loads = 0;
    enum vkmoe_status st = VKMOE_OK;

    p->next_layer = layer + 1;
    if (is_dense(p, layer))
        return VKMOE_OK;
    TRY(take_routes(p, in, layer, &sel, err));
    TRY(check_missing(p, layer, NULL, err));
    if (use == PREFILL || use == HELD_LAST)
        seed(p, in, layer, sel);
    if (use == PREFILL)
        TRY(run_pool_wave(pool, layer, p->needed, none, &n_loads, err));
    if (use == DECODE)
        TRY(run_pool_visit(pool, layer, sel, &n_loads, err));
    assert(!n_loads);
done:
    return st;
}

/* Layers below `halt` whose experts have run: parts up to `end` are complete. */
static enum vkmoe_status show_layers(struct run_pass *p, const struct run_step *in, uint32_t end,
                                     uint32_t halt, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t l = p->next_watch; l < n_layers(p) && l < halt && run_part_experts(l) < end; l++) {
        if (!is_dense(p, l))
            TRY(run_watch_layer(p->watch, l, in->pos, in->n_tokens, routes_of(p, l), err));
        p->next_watch = l + 1;
    }
done:
    return st;
}

/* Runs the parts with as many submits as halts and the limit ask for. */
static enum vkmoe_status run_parts(struct run_pass *p, const struct run_step *in, const struct stretch *s,
                                   struct vkmoe_err *err)
{
    const uint32_t *mail = gpu_buffer_map(p->state->mailbox);
    uint32_t per_submit = p->slow ? 1 : s->per_submit, from = s->from;
    const char *what = name_of(s->use);
    enum vkmoe_status st = VKMOE_OK;

    p->next_layer = p->next_watch = from ? run_layer_of(from) : 0;
    p->done_layer = NONE;
    while (from < s->to) {
        uint32_t end = per_submit && s->to - from > per_submit ? from + per_submit : s->to, halt, resume;

        TRY(submit(p, s->prog, in, from, end, false, err));
        TRY(wait(p, from, end, what, err));
        run_pool_count_wait(&p->model->pool, s->use != DECODE);
        TRY(gpu_buffer_invalidate(p->state->mailbox, 0, MAIL_WORDS * 4, err));
        halt = mail[MAIL_LAYER];
        for (uint32_t l = p->next_layer; l < n_layers(p) && l < halt && run_part_experts(l) < end; l++)
            TRY(take_layer(p, in, l, s->use, err));
        TRY(show_layers(p, in, end, halt, err));
        TRY(serve_halt(p, s->prog, in, s->use != DECODE, &resume, err));
        if (resume == NONE && p->slow) /* one part */
            TRY(run_inputs_part(p->inputs, in, from, routes_of(p, from ? run_layer_of(from) : 0), err));
        from = resume == NONE ? end : resume;
    }
done:
    if (st != VKMOE_OK && p->in_flight) { /* other sessions record, load and resize as if nothing were */
        (void)gpu_wait(p->model->dev, WAIT_NS, what, NULL);
        p->in_flight = false;
    }
    return st;
}

static enum vkmoe_status run_token(struct run_pass *p, const struct run_step *in, uint32_t to,
                                   struct vkmoe_err *err)
{
    const struct stretch s = {&p->one, 0, to, 0, DECODE};
    enum vkmoe_status st = run_parts(p, in, &s, err);

    run_slots_token_end(p->model->pool.slots);
    return st;
}

/* What follows the last layer's keys, for the chunk's last token alone: the same kernels, one row of them. */
static enum vkmoe_status run_last(struct run_pass *p, const struct run_step *in, struct vkmoe_err *err)
{
    const uint32_t row = in->n_tokens - 1;
    const struct run_step pick = {in->tokens + row, .n_tokens = 1, .pos = row, .n_rows = 1};
    const struct run_step last = {in->tokens + row, .n_tokens = 1, .pos = in->pos + row, .n_rows = 1};
    const struct stretch s = {.prog = chunk_program(p, in),
                              .from = run_part_attention(n_layers(p) - 1),
                              .to = part_head(p) + 1,
                              .use = PREFILL};
    enum vkmoe_status st = VKMOE_OK;

    p->done_layer = NONE;
    TRY(submit(p, &p->last, &pick, 0, 1, false, err));
    TRY(wait(p, s.from, s.from + 1, "prefill", err));
    TRY(run_parts(p, &last, &s, err));
done:
    return st;
}

/* to: parts. */
static enum vkmoe_status run_chunk(struct run_pass *p, const struct run_step *in, uint32_t to, bool then_last,
                                   uint32_t per_submit, struct vkmoe_err *err)
{
    const struct stretch s = {chunk_program(p, in), 0, to, per_submit, PREFILL};
    enum vkmoe_status st = VKMOE_OK;

    run_slots_chunk_begin(p->model->pool.slots, in->n_tokens);
    TRY(run_parts(p, in, &s, err));
    if (then_last)
        TRY(run_last(p, in, err));
done:
    run_slots_chunk_end(p->model->pool.slots);
    return st;
}

enum vkmoe_status run_pass_token(struct run_pass *p, const struct run_step *in, struct vkmoe_err *err)
{
    return run_token(p, in, part_head(p) + 1, err);
}

bool run_pass_trims(const struct run_pass *p, uint32_t n_tokens, enum run_want want)
{
    return want != RUN_WANT_ALL && n_tokens > RUN_FEW && !p->on_route && !p->state->seen && !p->state->sums;
}

enum vkmoe_status run_pass_chunk(struct run_pass *p, const struct run_step *in, enum run_want want,
                                 uint32_t per_submit, struct vkmoe_err *err)
{
    bool trims = run_pass_trims(p, in->n_tokens, want), head = want == RUN_WANT_LAST;
    uint32_t to = trims ? run_part_attention(n_layers(p) - 1) : part_head(p) + head;

    return run_chunk(p, in, to, trims && head, per_submit, err);
}

enum vkmoe_status run_pass_to_router(struct run_pass *p, const struct run_step *in, uint32_t last,
                                     uint32_t per_submit, struct vkmoe_err *err)
{
    uint32_t to = run_part_attention(last) + 1;
    enum vkmoe_status st = VKMOE_OK;

    TRY(in->n_tokens == 1 ? run_token(p, in, to, err) : run_chunk(p, in, to, false, per_submit, err));
    if (!is_dense(p, last))
        TRY(run_watch_layer(p->watch, last, in->pos, in->n_tokens, NULL, err));
done:
    return st;
}

enum vkmoe_status run_pass_layer(struct run_pass *p, const struct run_step *in, uint32_t layer, bool last,
                                 bool head, struct vkmoe_err *err)
{
    const struct stretch s = {.prog = &p->layers,
                              .from = layer ? run_part_experts(layer - 1) : 0,
                              .to = layer < n_layers(p) ? run_part_attention(layer) + 1 : part_head(p) + head,
                              .use = last ? HELD_LAST : HELD};

    return run_parts(p, in, &s, err);
}

enum vkmoe_status run_pass_rows(struct run_pass *p, const struct run_step *in, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    p->done_layer = NONE;
    TRY(submit(p, &p->rows, in, 0, 1, false, err));
    TRY(wait(p, 0, 1, "logits of rows", err));
    TRY(gpu_buffer_invalidate(p->state->mailbox, 0, MAIL_WORDS * 4, err));
done:
    return st;
}
