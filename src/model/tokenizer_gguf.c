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

enum vkmoe_status mdl_tokenizer_from_gguf(struct mdl_tokenizer **out, const struct mdl_gguf *g,
                                          struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char model[64], pre[64];
    const struct mdl_kv *tokens, *types, *merges;
    const char **text = NULL, **merge_text = NULL;
    char *text_block = NULL, *merge_block = NULL;
    uint8_t *kind = NULL;
    uint32_t eos = 0;
    bool has_eos = mdl_gguf_find(g, "tokenizer.ggml.eos_token_id") != NULL;

    *out = NULL;
    TRY(short_string(model, sizeof(model), g, "tokenizer.ggml.model", err));
    if (strcmp(model, "gpt2"))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: unknown tokenizer \"%s\", only gpt2 (byte-level BPE) is known",
             file_of(g), model);
    TRY(short_string(pre, sizeof(pre), g, "tokenizer.ggml.pre", err));
    TRY(find_array(&tokens, g, "tokenizer.ggml.tokens", true, err));
    TRY(find_array(&types, g, "tokenizer.ggml.token_type", false, err));
    TRY(find_array(&merges, g, "tokenizer.ggml.merges", true, err));
    if (types->count != tokens->count)
        FAIL(VKMOE_ERR_FORMAT, "%s: %llu tokens but %llu token types", file_of(g),
             (unsigned long long)tokens->count, (unsigned long long)types->count);
    if (has_eos)
        TRY(mdl_gguf_u32(g, "tokenizer.ggml.eos_token_id", &eos, err));
    TRY(copy_strings(&text, &text_block, g, tokens, err));
    TRY(copy_strings(&merge_text, &merge_block, g, merges, err));
    TRY(copy_kinds(&kind, g, types, (uint32_t)tokens->count, err));
    if (eos >= (has_eos ? tokens->count : 1))
        FAIL(VKMOE_ERR_FORMAT, "%s: end token %u is not one of the %llu tokens", file_of(g), eos,
             (unsigned long long)tokens->count);
    struct mdl_tokenizer_spec spec = {.source = file_of(g),
                                      .pre = pre,
                                      .n_tokens = (uint32_t)tokens->count,
                                      .text = text,
                                      .kind = kind,
                                      .n_merges = (uint32_t)merges->count,
                                      .merges = merge_text,
                                      .eos = has_eos ? (int32_t)eos : -1};
    TRY(mdl_tokenizer_create(out, &spec, err));
done:
    cor_free(text);
    cor_free(text_block);
    cor_free(merge_text);
    cor_free(merge_block);
    cor_free(kind);
    return st;
}
