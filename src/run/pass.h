/* One token or one chunk on its way through the layers: submits, waits, halts and what they load, and telling
 * the pool and the listener what was chosen. Owns the recorded programs; knows no logits and no text. */
#ifndef RUN_PASS_H
#define RUN_PASS_H

#include "run/inputs.h"
#include "run/model.h"
#include "run/program.h"
#include "run/state.h"
#include "run/watch.h"

struct run_step {
    const int32_t *tokens;
    uint32_t n_tokens, pos;
    uint32_t row0, n_rows; /* rows for the output head */
};

struct run_stats {
    uint64_t submits, waits, halts;
    uint64_t overlapped; /* submits, counted above, of resident experts while absent ones were read */
};

/* What the router chose at one layer for the tokens [pos, pos + n_tokens): pairs (id, weight bits) as in
 * shared/step.h, valid during the call. Layers come in order, each once per step. */
typedef void (*run_route_fn)(void *user, uint32_t layer, uint32_t pos, uint32_t n_tokens,
                             const uint32_t *sel);

struct run_pass {
    struct run_model *model;
    struct run_state *state;
    struct run_program one;    /* one token */
    struct run_program many;   /* a chunk of prefill */
    struct run_program few;    /* one of at most RUN_FEW tokens; none where tiles are of rows on lanes */
    struct run_program layers; /* the same where layers are the outer loop: document pools */
    struct run_program last;   /* a chunk's last row becomes its first, to go on alone */
    struct run_program rows;   /* output head for several rows of the chunk that was just fed */
    struct gpu_cmds *finish;   /* ends every submit: makes results visible to the host */
    uint32_t generation;       /* of the pool's segments that the programs bind */
    bool slow; /* one submit and one wait per part: the oracle for all that is done in fewer */
    run_route_fn on_route;
    void *route_user;
    struct run_watch *watch;
    struct run_inputs *inputs;
    struct run_stats stats;
    /* of the step in hand */
    uint32_t turn;       /* step buffer of the next submit */
    bool in_flight;      /* a submit has not been waited for */
    uint32_t next_layer; /* first layer whose choices have not been taken */
    uint32_t next_watch; /* first layer whose experts have not been seen to run */
    uint32_t done_layer; /* layer whose experts in `done` have run; NONE: none */
    uint32_t done[MAX_EXPERTS / 32], needed[MAX_EXPERTS / 32];
};

/* watch, inputs: of the same session, which owns them. */
enum vkmoe_status run_pass_create(struct run_pass *p, struct run_model *m, struct run_state *s,
                                  struct run_watch *watch, struct run_inputs *inputs,
                                  struct vkmoe_err *err);
void run_pass_close(struct run_pass *p);
/* Wishes for the pipelines of such a pass (gpu_pipeline_wish): weights and pool have their memory, s is
 * planned and need not be created. */
void run_pass_foresee(const struct run_model *m, const struct run_state *s);
/* Records again when the pool's segments are others than before. Nothing may be in flight. */
enum vkmoe_status run_pass_refresh(struct run_pass *p, struct vkmoe_err *err);

/* What one decoded token moves and computes at this position. */
void run_pass_amount(const struct run_pass *p, uint32_t pos, struct gpu_amount *sum);
/* Of one decoded token, as it is recorded now. */
void run_pass_counts(const struct run_pass *p, struct vkmoe_session_counts *counts);

/* One token, to the logits of the next. */
enum vkmoe_status run_pass_token(struct run_pass *p, const struct run_step *in, struct vkmoe_err *err);
/* Which logits a chunk is for. */
enum run_want { RUN_WANT_NONE, RUN_WANT_LAST, RUN_WANT_ALL };
/* Does a chunk leave out what only the logits of other rows depend on, the last layer's attention and
 * experts? Where nobody watches the router. */
bool run_pass_trims(const struct run_pass *p, uint32_t n_tokens, enum run_want want);
/* A chunk. RUN_WANT_LAST: with the logits of its last token; RUN_WANT_ALL: run_pass_rows may follow.
 * per_submit: parts at most. */
enum vkmoe_status run_pass_chunk(struct run_pass *p, const struct run_step *in, enum run_want want,
                                 uint32_t per_submit, struct vkmoe_err *err);
/* One layer's step of a chunk, for texts whose residual stream the state keeps: the experts of the layer
 * before (layer 0: the embedding), then attention and router of `layer` (the number of layers: the head, if
 * asked for). Every expert that can be chosen is resident. last: the text's last chunk. */
enum vkmoe_status run_pass_layer(struct run_pass *p, const struct run_step *in, uint32_t layer, bool last,
                                 bool head, struct vkmoe_err *err);
/* A token or a chunk, to the router of layer `last`: no logits. */
enum vkmoe_status run_pass_to_router(struct run_pass *p, const struct run_step *in, uint32_t last,
                                     uint32_t per_submit, struct vkmoe_err *err);
/* Logits of n_rows rows of the chunk that was just fed, from row0 on. */
enum vkmoe_status run_pass_rows(struct run_pass *p, const struct run_step *in, struct vkmoe_err *err);

#endif
