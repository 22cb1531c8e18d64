#include "model/synth.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/bits.h"
#include "core/rand.h"
#include "model/gguf_keys.h"
#include "model/synth_blocks.h"
#include "model/tokenizer_impl.h" /* the byte alphabet */

#define BAND_BYTES  (4u << 20) /* written at once; a row may be longer */
#define SYLLABLES   100        /* a consonant of 20 and a vowel of 5 */
#define WORDS_MAX   1000000    /* of three syllables */
#define TOKEN_BYTES 12         /* text of a byte or a word, NUL included */

/* ---- tokenizer
 * ---------------------------------------------------------------------------------------------- */

/* U+0080 .. U+07FF as UTF-8, and below that as it is; returns the bytes written. */
static size_t put_char(char *dst, uint32_t cp)
{
    if (cp < 0x80) {
        dst[0] = (char)cp;
        return 1;
    }
    dst[0] = (char)(0xc0 | cp >> 6);
    dst[1] = (char)(0x80 | (cp & 0x3f));
    return 2;
}

/* A blank, as the byte alphabet writes it, and three syllables. */
static void put_word(char *dst, uint32_t n)
{
    static const char consonants[] = "bcdfghjklmnpqrstvwxz", vowels[] = "aeiou";
    size_t at = put_char(dst, 0x120);

    for (int i = 0; i < 3; i++, n /= SYLLABLES) {
        dst[at++] = consonants[n % SYLLABLES / 5];
        dst[at++] = vowels[n % 5];
    }
    dst[at] = '\0';
}

static enum vkmoe_status put_tokenizer(struct mdl_gguf_writer *w, const struct mdl_synth_params *p,
                                       struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t n = p->shape.config.vocab_size, eos = p->shape.eos;
    const char **text = cor_array(n, sizeof(*text));
    char *block = cor_array(eos, TOKEN_BYTES);
    uint8_t *kind = cor_alloc(n);
    const struct mdl_tokenizer_spec spec = {
        .source = p->out, .pre = "dbrx", .n_tokens = n, .text = text, .kind = kind, .eos = (int32_t)eos};

    if (!text || !block || !kind)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u tokens", p->out, n);
    for (uint32_t cp = 0; cp < 0x800; cp++) /* block is zeroed: a NUL stands behind each */
        if (mdl_alphabet_byte(cp) >= 0)
            put_char(block + (size_t)mdl_alphabet_byte(cp) * TOKEN_BYTES, cp);
    for (uint32_t i = 256; i < eos; i++)
        put_word(block + (size_t)i * TOKEN_BYTES, i - 256);
    for (uint32_t i = 0; i < n; i++) {
        text[i] = i < eos ? block + (size_t)i * TOKEN_BYTES : i == eos ? "<|endoftext|>" : "";
        kind[i] = i < eos ? MDL_TOKEN_NORMAL : i == eos ? MDL_TOKEN_CONTROL : MDL_TOKEN_UNUSED;
    }
    TRY(mdl_put_tokenizer(w, &spec, -1, err));
done:
    cor_free(text);
    cor_free(block);
    cor_free(kind);
    return st;
}

/* ---- weights
 * ------------------------------------------------------------------------------------------------ */

struct matrix {
    char name[48];
    enum mdl_type type;
    uint32_t n_dims;
    uint64_t dims[3];
    double variance; /* 0: a norm */
    bool lively;     /* a norm that is not nearly one */
};

struct synth {
    const struct mdl_synth_params *p;
    struct mdl_gguf_writer *w;
    struct matrix *list;
    size_t n, cap;
    uint8_t *band;
    float *row; /* one, for the types without blocks */
    uint64_t done, total;
};

/* 1/2 .. 3/2 */
static void fill_lively(float *dst, uint64_t n, uint64_t *state)
{
    for (uint64_t i = 0; i < n; i++)
        dst[i] = (float)(0x800000 + (int32_t)(cor_rand(state) >> 40)) * 0x1p-24f;
}

/* Whole numbers of 24 bits times one factor: no sum that a compiler may round otherwise. */
static void fill_floats(float *dst, uint64_t n, double variance, uint64_t *state)
{
    const float step = (float)(sqrt(3 * variance) / 0x1p23);

    for (uint64_t i = 0; i < n; i++) {
        int32_t v = (int32_t)(cor_rand(state) >> 40);

        dst[i] = variance > 0 ? (float)(v - 0x800000) * step : (float)(0xf00000 + v / 8) * 0x1p-24f;
    }
}

/* `rows` rows of m into the band; false: too large for the type. */
static bool fill_rows(struct synth *s, const struct matrix *m, uint64_t rows, uint64_t *state)
{
    uint64_t cols = m->dims[0], row_bytes = mdl_row_bytes(m->type, cols);

    if (mdl_synth_has_blocks(m->type)) {
        mdl_synth_blocks(s->band, rows * (cols / mdl_type_find((uint32_t)m->type)->block_elems), m->type,
                         sqrt(m->variance), state);
        return true;
    }
    for (uint64_t r = 0; r < rows; r++) {
        if (m->lively)
            fill_lively(s->row, cols, state);
        else
            fill_floats(s->row, cols, m->variance, state);
        if (!mdl_quant_row(m->type, s->row, s->band + r * row_bytes, cols))
            return false;
    }
    return true;
}

static enum vkmoe_status write_matrix(struct synth *s, size_t index, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct matrix *m = &s->list[index];
    uint64_t row_bytes = mdl_row_bytes(m->type, m->dims[0]), rows = m->dims[1] * m->dims[2];
    uint64_t step = BAND_BYTES / row_bytes ? BAND_BYTES / row_bytes : 1;
    uint64_t state = s->p->seed * 0xd1342543de82ef95u + index; /* far from its neighbours after one mixing */

    state = cor_rand(&state);
    for (uint64_t r = 0; r < rows; r += step) {
        uint64_t n = rows - r < step ? rows - r : step;

        if (!fill_rows(s, m, n, &state))
            FAIL(VKMOE_ERR_NUMERIC, "%s: tensor %s: a weight is too large for its type", s->p->out, m->name);
        TRY(mdl_gguf_write_data(s->w, s->band, (size_t)(n * row_bytes), err));
        s->done += n * row_bytes;
        if (s->p->progress)
            s->p->progress(s->p->progress_user, s->done, s->total);
        if (cor_interrupted())
            FAIL(VKMOE_ERR_IO, "%s: interrupted", s->p->out);
    }
done:
    return st;
}

/* ---- the file
 * ----------------------------------------------------------------------------------------------- */

static enum mdl_type matrix_type(const struct mdl_synth_params *p, const char *name, uint64_t cols)
{
    const struct mdl_recipe_model model = {p->shape.config.n_layers, p->shape.config.n_experts, false};

    return p->recipe ? mdl_recipe_type(p->recipe, &model, name, cols) : p->type;
}

static void add(struct synth *s, const char *name, bool f32, uint32_t n_dims, const uint64_t dims[3],
                double variance)
{
    struct matrix *m = &s->list[s->n++];

    snprintf(m->name, sizeof(m->name), "%s", name);
    m->type = f32 ? MDL_F32 : matrix_type(s->p, name, dims[0]);
    m->n_dims = n_dims;
    memcpy(m->dims, dims, sizeof(m->dims));
    m->variance = variance;
    m->lively = variance <= 0 && s->p->shape.lively;
}

/* Matrices keep the size of what they are multiplied with; biases and sinks make a difference. 0: a norm. */
static double variance_of(const struct mdl_part *part)
{
    const size_t n = strlen(part->name);
    const bool gate = part->f32 && strstr(part->name, "gate_inp");

    if (n > 5 && !strcmp(part->name + n - 5, ".bias"))
        return 0.25;
    if (!strcmp(part->name, "attn_sinks.weight"))
        return 1;
    return part->n_dims == 1 && !gate ? 0 : (gate ? 4.0 : 1.0) / (double)part->dims[0];
}

static enum vkmoe_status plan(struct synth *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const struct mdl_config *c = &s->p->shape.config;
    struct mdl_part parts[MDL_LAYER_PARTS];
    char name[48];

    s->list = cor_array(4 + MDL_LAYER_PARTS * (size_t)c->n_layers, sizeof(*s->list));
    if (!s->list)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %u layers", s->p->out, c->n_layers);
    add(s, "token_embd.weight", false, 2, (const uint64_t[]){c->dim, c->vocab_size, 1},
        s->p->shape.tied ? 4.0 / c->dim : 1); /* a head of them wants less */
    add(s, "output_norm.weight", true, 1, (const uint64_t[]){c->dim, 1, 1}, 0);
    if (!s->p->shape.tied)
        add(s, "output.weight", false, 2, (const uint64_t[]){c->dim, c->vocab_size, 1}, 1.0 / c->dim);
    if (s->p->shape.rope_factors)
        add(s, "rope_freqs.weight", true, 1, (const uint64_t[]){c->n_rot / 2, 1, 1}, 0);
    for (uint32_t l = 0; l < c->n_layers; l++) {
        mdl_layer_parts(parts, c, l);
        for (size_t k = 0; k < MDL_LAYER_PARTS; k++) {
            const struct mdl_part *part = &parts[k];

            if (!part->name)
                continue;
            snprintf(name, sizeof(name), "blk.%u.%s", l, part->name);
            add(s, name, part->f32, part->n_dims, part->dims, variance_of(part));
        }
    }
    for (size_t i = 0; i < s->n; i++) {
        const struct matrix *m = &s->list[i];

        TRY(mdl_gguf_put_tensor(s->w, m->name, m->type, m->n_dims, m->dims, err));
        s->total += mdl_row_bytes(m->type, m->dims[0]) * m->dims[1] * m->dims[2];
    }
done:
    return st;
}

static enum vkmoe_status put_keys(struct synth *s, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    const struct mdl_shape *shape = &s->p->shape;
    const struct mdl_kv seed = {
        .key = "vkmoe.source.seed", .type = MDL_GGUF_U64, .count = 1, .v.u = s->p->seed};

    TRY(mdl_put_config(s->w, shape->name, &shape->config,
                       s->p->recipe ? s->p->recipe->file_type
                                    : mdl_type_find((uint32_t)s->p->type)->file_type,
                       err));
    TRY(put_tokenizer(s->w, s->p, err));
    TRY(mdl_gguf_put_str(s->w, "vkmoe.version", vkmoe_version(), strlen(vkmoe_version()), err));
    TRY(mdl_gguf_put_str(s->w, "vkmoe.source.name", shape->name, strlen(shape->name), err));
    TRY(mdl_gguf_put_str(s->w, "vkmoe.source.format", "random", 6, err));
    TRY(mdl_gguf_put_kv(s->w, &seed, err));
done:
    return st;
}

static enum vkmoe_status check(const struct mdl_synth_params *p, struct vkmoe_err *err)
{
    const struct mdl_config *c = &p->shape.config;

    if (c->n_experts_used > c->n_experts)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "%s: a token uses %u routed experts, there would be %u",
                        p->shape.name, c->n_experts_used, c->n_experts);
    if (p->shape.eos < 256 || p->shape.eos >= c->vocab_size || p->shape.eos - 256 > WORDS_MAX)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "%s: end of text %u does not fit %u tokens", p->shape.name,
                        p->shape.eos, c->vocab_size);
    return VKMOE_OK;
}

enum vkmoe_status mdl_synth(const struct mdl_synth_params *p, struct vkmoe_err *err)
{
    enum vkmoe_status st;
    struct synth s = {.p = p};
    struct mdl_gguf_writer *w;
    uint64_t longest = 0;

    TRY(check(p, err));
    TRY(mdl_gguf_create(&s.w, p->out, err));
    TRY(plan(&s, err));
    TRY(put_keys(&s, err));
    for (size_t i = 0; i < s.n; i++)
        longest = s.list[i].dims[0] > longest ? s.list[i].dims[0] : longest;
    s.row = cor_array((size_t)longest, sizeof(float));
    s.band = cor_alloc(longest * sizeof(float) > BAND_BYTES ? (size_t)longest * sizeof(float) : BAND_BYTES);
    if (!s.row || !s.band)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for rows of %" PRIu64, p->out, longest);
    for (size_t i = 0; i < s.n; i++)
        TRY(write_matrix(&s, i, err));
    w = s.w;
    s.w = NULL; /* commit frees it in either case */
    TRY(mdl_gguf_commit(w, err));
done:
    mdl_gguf_discard(s.w);
    cor_free(s.list);
    cor_free(s.row);
    cor_free(s.band);
    return st;
}
