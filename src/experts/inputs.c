#include "experts/inputs.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"

/* Of a layer; SHARED is EXPERTS for all tokens, and all that a dense layer has. */
enum kind { ATTENTION, OUTPUT, EXPERTS, DOWN, SHARED, SHARED_DOWN, KINDS };

static enum vkmoe_status init(struct xp_squares *s, uint32_t planes, uint32_t cols, struct vkmoe_err *err)
{
    s->planes = planes;
    s->cols = cols;
    s->sums = cor_array((size_t)planes * cols, sizeof(*s->sums));
    s->counts = cor_array(planes, sizeof(*s->counts));
    if (!s->sums || !s->counts)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the sums of %" PRIu32 " x %" PRIu32 " columns",
                        planes, cols);
    return VKMOE_OK;
}

enum vkmoe_status xp_inputs_init(struct xp_inputs *x, const struct mdl_model *m, struct vkmoe_err *err)
{
    const struct mdl_config *c = &m->config;
    enum vkmoe_status st = VKMOE_OK;

    *x = (struct xp_inputs){.m = m};
    x->layers = cor_array((size_t)c->n_layers * KINDS, sizeof(*x->layers));
    if (!x->layers)
        FAIL(VKMOE_ERR_MEMORY, "no memory for the sums of %" PRIu32 " layers", c->n_layers);
    for (uint32_t l = 0; l < c->n_layers; l++) {
        struct xp_squares *s = x->layers + (size_t)l * KINDS;

        TRY(init(&s[ATTENTION], 1, c->dim, err));
        TRY(init(&s[OUTPUT], 1, c->n_heads * c->head_dim, err));
        TRY(init(&s[EXPERTS], mdl_expert_count(m, l), c->dim, err));
        TRY(init(&s[DOWN], mdl_expert_count(m, l), c->ff_expert, err));
        if (mdl_ffn_width(c, l)) {
            TRY(init(&s[SHARED], 1, c->dim, err));
            TRY(init(&s[SHARED_DOWN], 1, mdl_ffn_width(c, l), err));
        }
    }
    TRY(init(&x->head, 1, c->dim, err));
done:
    return st;
}

static void release(struct xp_squares *s)
{
    cor_free(s->sums);
    cor_free(s->counts);
}

void xp_inputs_free(struct xp_inputs *x)
{
    for (size_t i = 0; x->layers && i < (size_t)x->m->config.n_layers * KINDS; i++)
        release(&x->layers[i]);
    release(&x->head);
    cor_free(x->layers);
    *x = (struct xp_inputs){.m = NULL};
}

/* ---- adding
 * ------------------------------------------------------------------------------------------------------ */

static void add_row(struct xp_squares *s, uint32_t plane, const float *row)
{
    double *sums = s->sums + (size_t)plane * s->cols;

    for (uint32_t i = 0; i < s->cols; i++)
        sums[i] += (double)row[i] * row[i];
    s->counts[plane]++;
}

static void add_rows(struct xp_squares *s, const struct vkmoe_inputs *in)
{
    assert(s->cols == in->width && s->planes == 1);
    for (uint32_t t = 0; t < in->n_tokens; t++)
        add_row(s, 0, in->rows + (size_t)t * in->width);
}

/* Rows of the experts that were chosen: one of each token, or one of each choice. */
static void add_chosen(struct xp_squares *s, const struct vkmoe_inputs *in, bool each)
{
    assert(s->cols == in->width);
    for (uint32_t i = 0; i < in->n_tokens * in->n_used; i++)
        if (in->pairs[2 * i] < s->planes) /* fewer were allowed */
            add_row(s, in->pairs[2 * i], in->rows + (size_t)(each ? i : i / in->n_used) * in->width);
}

void xp_inputs_add(void *user, const struct vkmoe_inputs *in)
{
    struct xp_inputs *x = user;
    struct xp_squares *s;

    if (in->what == VKMOE_INPUT_HEAD) {
        add_rows(&x->head, in);
        return;
    }
    assert(in->layer < x->m->config.n_layers);
    s = x->layers + (size_t)in->layer * KINDS;
    switch (in->what) {
    case VKMOE_INPUT_ATTENTION:
        add_rows(&s[ATTENTION], in);
        break;
    case VKMOE_INPUT_OUTPUT:
        add_rows(&s[OUTPUT], in);
        break;
    case VKMOE_INPUT_EXPERTS:
        add_chosen(&s[EXPERTS], in, false);
        if (s[SHARED].planes)
            add_rows(&s[SHARED], in);
        break;
    case VKMOE_INPUT_DOWN:
        add_chosen(&s[DOWN], in, true);
        break;
    case VKMOE_INPUT_SHARED_DOWN:
        add_rows(&s[SHARED_DOWN], in);
        break;
    case VKMOE_INPUT_HEAD:
        break;
    }
}

/* ---- writing
 * ------------------------------------------------------------------------------------------------------ */

struct file {
    struct mdl_gguf_writer *w;
    const char *path;
    bool data; /* declared: now the data */
    struct vkmoe_err *err;
};

static enum vkmoe_status put_values(struct file *f, const struct xp_squares *s, const char *name)
{
    const size_t n = (size_t)s->planes * s->cols;
    float *v = cor_array(n + s->planes, sizeof(*v));
    struct vkmoe_err *err = f->err;
    enum vkmoe_status st = VKMOE_OK;

    if (!v)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %s", f->path, name);
    for (size_t i = 0; i < n; i++)
        v[i] = (float)s->sums[i];
    for (uint32_t i = 0; i < s->planes; i++)
        v[n + i] = (float)s->counts[i];
    for (size_t i = 0; i < n; i++)
        if (!isfinite(v[i]))
            FAIL(VKMOE_ERR_NUMERIC, "%s: inputs of %s are not finite", f->path, name);
    mdl_quant_row(MDL_F32, v, v, n + s->planes); /* the file's byte order */
    TRY(mdl_gguf_write_data(f->w, v, n * sizeof(*v), err));
    TRY(mdl_gguf_write_data(f->w, v + n, s->planes * sizeof(*v), err));
done:
    cor_free(v);
    return st;
}

static enum vkmoe_status put(struct file *f, const struct xp_squares *s, const struct mdl_tensor *t)
{
    const uint64_t sums[2] = {s->cols, s->planes}, counts[2] = {1, s->planes};
    enum vkmoe_status st;
    char name[128];

    if (f->data)
        return put_values(f, s, t->name);
    snprintf(name, sizeof(name), "%s.in_sum2", t->name);
    TRY(mdl_gguf_put_tensor(f->w, name, MDL_F32, 2, sums, f->err));
    snprintf(name, sizeof(name), "%s.counts", t->name);
    TRY(mdl_gguf_put_tensor(f->w, name, MDL_F32, 2, counts, f->err));
done:
    return st;
}

static enum vkmoe_status put_all(struct file *f, const struct xp_inputs *x)
{
    const struct mdl_model *m = x->m;
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t i = 0; i < m->config.n_layers; i++) {
        const struct mdl_layer *l = &m->layers[i];
        const struct xp_squares *s = x->layers + (size_t)i * KINDS;
        const struct {
            const struct mdl_tensor *t;
            enum kind kind;
        } all[] = {{l->q, ATTENTION},        {l->k, ATTENTION},       {l->v, ATTENTION},
                   {l->o, OUTPUT},           {l->gate_exps, EXPERTS}, {l->up_exps, EXPERTS},
                   {l->down_exps, DOWN},     {l->gate_sh, SHARED},    {l->up_sh, SHARED},
                   {l->down_sh, SHARED_DOWN}};

        for (size_t k = 0; k < COR_COUNT(all); k++)
            if (all[k].t)
                TRY(put(f, &s[all[k].kind], all[k].t));
    }
    if (m->head != m->embed)
        TRY(put(f, &x->head, m->head));
done:
    return st;
}

enum vkmoe_status xp_inputs_write(const struct xp_inputs *x, const char *path, const char *const *datasets,
                                  size_t n_datasets, uint32_t chunks, struct vkmoe_err *err)
{
    struct mdl_str *names = cor_array(n_datasets, sizeof(*names));
    struct file f = {.path = path, .err = err};
    struct mdl_gguf_writer *w;
    enum vkmoe_status st = VKMOE_OK;

    if (!names)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %zu names", path, n_datasets);
    for (size_t i = 0; i < n_datasets; i++)
        names[i] = (struct mdl_str){datasets[i], strlen(datasets[i])};
    TRY(mdl_gguf_create(&f.w, path, err));
    TRY(mdl_gguf_put_str(f.w, "general.type", "imatrix", 7, err));
    TRY(mdl_gguf_put_array(f.w, "imatrix.datasets", MDL_GGUF_STRING, names, n_datasets, err));
    TRY(mdl_gguf_put_u32(f.w, "imatrix.chunk_count", chunks, err));
    TRY(mdl_gguf_put_u32(f.w, "imatrix.chunk_size", x->m->config.n_ctx_train, err));
    TRY(put_all(&f, x));
    f.data = true;
    TRY(put_all(&f, x));
    w = f.w;
    f.w = NULL; /* commit frees it in either case */
    TRY(mdl_gguf_commit(w, err));
done:
    mdl_gguf_discard(f.w);
    cor_free(names);
    return st;
}
