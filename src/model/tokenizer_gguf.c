/* A tokenizer from the tokenizer.ggml.* keys of a GGUF file. */
#include "model/tokenizer_impl.h"

#include <string.h>

#include "core/alloc.h"
#include "model/gguf.h"

static const char *file_of(const struct mdl_gguf *g)
{
    return cor_file_path(g->file);
}

static enum vkmoe_status find_array(const struct mdl_kv **out, const struct mdl_gguf *g, const char *key,
                                    bool strings, struct vkmoe_err *err)
{
    const struct mdl_kv *kv = mdl_gguf_find(g, key);
    bool fits = kv && kv->type == MDL_GGUF_ARRAY &&
                (strings ? kv->elem_type == MDL_GGUF_STRING
                         : kv->elem_type == MDL_GGUF_I32 || kv->elem_type == MDL_GGUF_U32);

    *out = kv;
    if (!kv)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s is missing", file_of(g), key);
    /* An empty array of merges may carry any element type. */
    if (!fits && !(kv->type == MDL_GGUF_ARRAY && !kv->count))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s is not an array of %s", file_of(g), key,
                        strings ? "strings" : "integers");
    if (kv->count > MDL_TOKENS_MAX)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s has %llu entries, at most %u", file_of(g), key,
                        (unsigned long long)kv->count, (unsigned)MDL_TOKENS_MAX);
    return VKMOE_OK;
}

/* NUL-terminated copies of an array of strings, in two blocks. */
static enum vkmoe_status copy_strings(const char ***list, char **block, const struct mdl_gguf *g,
                                      const struct mdl_kv *kv, struct vkmoe_err *err)
{
    size_t total = 0, at = 0;

    for (uint64_t i = 0; i < kv->count; i++) {
        uint64_t n = kv->v.strs[i].n;

        if (n > 2 * MDL_TOKEN_TEXT_MAX || (total += (size_t)n + 1) > 2u * MDL_TOKENS_TEXT_MAX)
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: entry %llu of %s is too long (%llu bytes)",
                            file_of(g), (unsigned long long)i, kv->key, (unsigned long long)n);
        if (n && memchr(kv->v.strs[i].p, 0, (size_t)n))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: entry %llu of %s contains a NUL byte", file_of(g),
                            (unsigned long long)i, kv->key);
    }
    *list = cor_array((size_t)kv->count, sizeof(**list));
    *block = cor_alloc(total);
    if (!*list || !*block)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %s", file_of(g), kv->key);
    for (uint64_t i = 0; i < kv->count; i++) {
        size_t n = (size_t)kv->v.strs[i].n;

        if (n)
            memcpy(*block + at, kv->v.strs[i].p, n);
        (*block)[at + n] = 0;
        (*list)[i] = *block + at;
        at += n + 1;
    }
    return VKMOE_OK;
}

static enum vkmoe_status copy_kinds(uint8_t **out, const struct mdl_gguf *g, const struct mdl_kv *kv,
                                    uint32_t n, struct vkmoe_err *err)
{
    uint8_t *kind = cor_alloc(n);

    *out = kind;
    if (!kind)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %s", file_of(g), kv->key);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t v;

        memcpy(&v, (const char *)kv->v.array + 4 * (size_t)i, 4);
        kind[i] = v > 255 ? 255 : (uint8_t)v;
    }
    return VKMOE_OK;
}

static enum vkmoe_status short_string(char *dst, size_t room, const struct mdl_gguf *g, const char *key,
                                      struct vkmoe_err *err)
{
    struct mdl_str s;
    enum vkmoe_status st = mdl_gguf_str(g, key, &s, err);

    if (st)
        return st;
    size_t n = s.n < room - 1 ? (size_t)s.n : room - 1;
    if (n)
        memcpy(dst, s.p, n);
    dst[n] = 0;
    if (s.n >= room || strlen(dst) != s.n)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: unknown value \"%s\" of %s", file_of(g), dst, key);
    return VKMOE_OK;
}

/* The keys as they were read; what a specification points to. */
struct source {
    const struct mdl_gguf *g;
    const struct mdl_kv *tokens, *types, *merges, *scores;
    char pre[64];
    const char **text, **merge_text;
    char *text_block, *merge_block;
    uint8_t *kind;
    float *score;
    int32_t ends[2];
    struct mdl_tokenizer_spec spec;
};

static void source_free(struct source *s)
{
    cor_free(s->text);
    cor_free(s->text_block);
    cor_free(s->merge_text);
    cor_free(s->merge_block);
    cor_free(s->kind);
    cor_free(s->score);
}

/* An id below the number of tokens; `absent` where there is no such key. */
static enum vkmoe_status read_id(int32_t *id, const struct source *s, const char *key, const char *what,
                                 int32_t absent, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint32_t v;

    *id = absent;
    if (!mdl_gguf_find(s->g, key))
        return VKMOE_OK;
    TRY(mdl_gguf_u32(s->g, key, &v, err));
    if (v >= s->tokens->count)
        FAIL(VKMOE_ERR_FORMAT, "%s: %s token %u is not one of the %llu tokens", file_of(s->g), what, v,
             (unsigned long long)s->tokens->count);
    *id = (int32_t)v;
done:
    return st;
}

static enum vkmoe_status read_flag(bool *flag, const struct source *s, const char *key, bool absent,
                                   struct vkmoe_err *err)
{
    *flag = absent;
    return mdl_gguf_find(s->g, key) ? mdl_gguf_bool(s->g, key, flag, err) : VKMOE_OK;
}

/* Which tokens stand before and behind a text. What is absent is as llama.cpp takes it, but a BPE vocabulary
 * without tokenizer.ggml.bos_token_id has no such token. */
static enum vkmoe_status read_ids(struct source *s, struct vkmoe_err *err)
{
    static const char *const add_bos = "tokenizer.ggml.add_bos_token";
    struct mdl_tokenizer_spec *t = &s->spec;
    const struct mdl_pre *pre = t->spm ? NULL : mdl_pre_find(s->pre);
    bool small = s->tokens->count < 3;
    enum vkmoe_status st = VKMOE_OK;

    TRY(read_id(&t->eos, s, "tokenizer.ggml.eos_token_id", "end", t->spm && !small ? 2 : -1, err));
    TRY(read_id(&t->bos, s, "tokenizer.ggml.bos_token_id", "begin", t->spm && !small ? 1 : -1, err));
    TRY(read_id(&t->unk, s, "tokenizer.ggml.unknown_token_id", "unknown", t->spm ? 0 : -1, err));
    TRY(read_id(&s->ends[0], s, "tokenizer.ggml.eot_token_id", "end-of-turn", -1, err));
    TRY(read_id(&s->ends[1], s, "tokenizer.ggml.eom_token_id", "end-of-message", -1, err));
    t->ends = s->ends;
    t->n_ends = COR_COUNT(s->ends);
    TRY(read_flag(&t->add_bos, s, add_bos, t->spm || (pre && pre->add_bos && t->bos >= 0), err));
    if (t->add_bos && t->bos < 0)
        FAIL(VKMOE_ERR_FORMAT, "%s: key %s is true, but tokenizer.ggml.bos_token_id is missing",
             file_of(s->g), add_bos);
    TRY(read_flag(&t->add_space, s, "tokenizer.ggml.add_space_prefix", t->spm, err));
done:
    return st;
}

static enum vkmoe_status read_scores(struct source *s, struct vkmoe_err *err)
{
    static const char *const key = "tokenizer.ggml.scores";
    const struct mdl_kv *kv = mdl_gguf_find(s->g, key);

    if (!kv)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s is missing", file_of(s->g), key);
    if (kv->type != MDL_GGUF_ARRAY || kv->elem_type != MDL_GGUF_F32)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: key %s is not an array of float32", file_of(s->g), key);
    if (kv->count != s->tokens->count)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: %llu tokens but %llu scores", file_of(s->g),
                        (unsigned long long)s->tokens->count, (unsigned long long)kv->count);
    s->score = cor_array((size_t)kv->count, sizeof(*s->score));
    if (!s->score)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %s", file_of(s->g), key);
    if (kv->count)
        memcpy(s->score, kv->v.array, (size_t)kv->count * sizeof(*s->score));
    s->spec.scores = s->score;
    return VKMOE_OK;
}

static enum vkmoe_status read_merges(struct source *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(short_string(s->pre, sizeof(s->pre), s->g, "tokenizer.ggml.pre", err));
    TRY(find_array(&s->merges, s->g, "tokenizer.ggml.merges", true, err));
    TRY(copy_strings(&s->merge_text, &s->merge_block, s->g, s->merges, err));
    s->spec.pre = s->pre;
    s->spec.n_merges = (uint32_t)s->merges->count;
    s->spec.merges = s->merge_text;
done:
    return st;
}

static enum vkmoe_status read_tokens(struct source *s, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(find_array(&s->tokens, s->g, "tokenizer.ggml.tokens", true, err));
    TRY(find_array(&s->types, s->g, "tokenizer.ggml.token_type", false, err));
    if (s->types->count != s->tokens->count)
        FAIL(VKMOE_ERR_FORMAT, "%s: %llu tokens but %llu token types", file_of(s->g),
             (unsigned long long)s->tokens->count, (unsigned long long)s->types->count);
    TRY(copy_strings(&s->text, &s->text_block, s->g, s->tokens, err));
    TRY(copy_kinds(&s->kind, s->g, s->types, (uint32_t)s->tokens->count, err));
    s->spec.n_tokens = (uint32_t)s->tokens->count;
    s->spec.text = s->text;
    s->spec.kind = s->kind;
done:
    return st;
}

enum vkmoe_status mdl_tokenizer_from_gguf(struct mdl_tokenizer **out, const struct mdl_gguf *g,
                                          struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct source s = {.g = g, .spec = {.source = file_of(g)}};
    char model[64];

    *out = NULL;
    TRY(short_string(model, sizeof(model), g, "tokenizer.ggml.model", err));
    s.spec.spm = !strcmp(model, "llama");
    if (!s.spec.spm && strcmp(model, "gpt2"))
        FAIL(VKMOE_ERR_UNSUPPORTED,
             "%s: unknown tokenizer \"%s\", known are gpt2 (byte-level BPE) and llama (SentencePiece)",
             file_of(g), model);
    TRY(read_tokens(&s, err));
    TRY(s.spec.spm ? read_scores(&s, err) : read_merges(&s, err));
    TRY(read_ids(&s, err));
    TRY(mdl_tokenizer_create(out, &s.spec, err));
done:
    source_free(&s);
    return st;
}
