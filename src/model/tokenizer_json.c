/* Hugging Face tokenizer.json to a tokenizer specification. Shapes that are not known are refused, never
 * guessed. */
#include "model/tokenizer_impl.h"

#include <string.h>

#include <cjson/cJSON.h>

#include "core/alloc.h"
#include "core/os.h"

enum { JSON_BYTES_MAX = 64 << 20, JSON_VALUES_MAX = 4 << 20 };

struct mdl_tokenizer_json {
    char *path;
    char *pre;
    cJSON *root; /* owns token strings and merges written as one string */
    const char **text;
    uint8_t *kind;
    const char **merges;
    char *joined; /* merges written as pairs */
};

static const cJSON *get(const cJSON *o, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(o, key);
}

/* Absent, null, false, 0 or "": the setting is off. */
static bool is_off(const cJSON *v)
{
    return !v || cJSON_IsNull(v) || cJSON_IsFalse(v) || (cJSON_IsNumber(v) && v->valuedouble == 0) ||
           (cJSON_IsString(v) && !v->valuestring[0]);
}

static bool has_type(const cJSON *o, const char *type)
{
    const cJSON *t = get(o, "type");

    return cJSON_IsString(t) && !strcmp(t->valuestring, type);
}

/* An integer in [0, end). */
static bool as_id(const cJSON *v, uint32_t end, uint32_t *id)
{
    if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0 && v->valuedouble < end))
        return false;
    *id = (uint32_t)v->valuedouble;
    return (double)*id == v->valuedouble;
}

static enum vkmoe_status parse(struct mdl_tokenizer_json *j, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char *data = NULL;
    size_t n = 0, values = 0;
    const char *end = NULL;

    TRY(cor_file_slurp(j->path, JSON_BYTES_MAX, &data, &n, err));
    for (size_t i = 0; i < n;
         i++) /* a bound on what the parser allocates: every value but one follows one of these */
        values += data[i] == ',' || data[i] == '[' || data[i] == '{';
    if (values > JSON_VALUES_MAX)
        FAIL(VKMOE_ERR_FORMAT, "%s: more than %d JSON values", j->path, (int)JSON_VALUES_MAX);
    j->root = cJSON_ParseWithLengthOpts(data, n + 1, &end, true); /* slurp adds a NUL */
    if (!j->root)
        FAIL(VKMOE_ERR_FORMAT, "%s: not JSON, at byte %zu of %zu", j->path, end ? (size_t)(end - data) : 0,
             n);
    if (!cJSON_IsObject(j->root))
        FAIL(VKMOE_ERR_FORMAT, "%s: not a JSON object", j->path);
done:
    cor_free(data);
    return st;
}

static bool adds_nothing(const cJSON *post)
{
    const cJSON *item;

    if (is_off(post) || has_type(post, "ByteLevel"))
        return true;
    if (has_type(post, "Sequence")) {
        cJSON_ArrayForEach(item, get(post, "processors")) if (!adds_nothing(item)) return false;
        return true;
    }
    if (!has_type(post, "TemplateProcessing"))
        return false;
    cJSON_ArrayForEach(item, get(post, "single")) if (!get(item, "Sequence")) return false;
    return true;
}

/* [Split by a known regex, ByteLevel without its own], or ByteLevel with its own. */
static enum vkmoe_status read_pre(struct mdl_tokenizer_json *j, bool ignore_merges, struct vkmoe_err *err)
{
    const cJSON *pre = get(j->root, "pre_tokenizer"), *level = pre, *split = NULL;
    const char *regex = NULL;

    if (cJSON_IsObject(pre) && has_type(pre, "Sequence")) {
        const cJSON *list = get(pre, "pretokenizers");

        split = cJSON_IsArray(list) && cJSON_GetArraySize(list) == 2 ? list->child : NULL;
        level = split ? split->next : NULL;
        const cJSON *r = split ? get(get(split, "pattern"), "Regex") : NULL;
        const cJSON *how = split ? get(split, "behavior") : NULL;
        if (!split || !has_type(split, "Split") || !cJSON_IsString(r) || !cJSON_IsString(how) ||
            strcmp(how->valuestring, "Isolated") || !is_off(get(split, "invert")))
            return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                            "%s: pre_tokenizer is not a Split by regex (Isolated) and ByteLevel", j->path);
        regex = r->valuestring;
    }
    const cJSON *own = get(level, "use_regex");
    bool use_regex = !own || cJSON_IsTrue(own);
    if (!level || !has_type(level, "ByteLevel") || !is_off(get(level, "add_prefix_space")) ||
        use_regex != !regex)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED,
                        "%s: pre_tokenizer is not ByteLevel without a prefix space and %s regex", j->path,
                        regex ? "with one" : "with its own");
    const struct mdl_pre *p = mdl_pre_by_regex(regex, ignore_merges);
    if (!p)
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: unknown pre-tokenizer regex %.300s", j->path,
                        regex ? regex : "of ByteLevel with ignore_merges");
    j->pre = cor_strdup(p->name);
    return j->pre ? VKMOE_OK : cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a name", j->path);
}

static enum vkmoe_status check_settings(struct mdl_tokenizer_json *j, struct vkmoe_err *err)
{
    static const char *const off[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                      "byte_fallback"};
    const cJSON *model = get(j->root, "model"), *decoder = get(j->root, "decoder");

    if (!cJSON_IsObject(model) || !has_type(model, "BPE"))
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: the tokenizer model is not BPE", j->path);
    if (!is_off(get(j->root, "normalizer")))
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: a normalizer is not supported", j->path);
    /* model.unk_token may be anything: with all 256 byte tokens, which is checked, nothing is unknown. */
    for (size_t i = 0; i < COR_COUNT(off); i++)
        if (!is_off(get(model, off[i])))
            return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: model.%s is not supported", j->path, off[i]);
    if (!is_off(decoder) && !has_type(decoder, "ByteLevel"))
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: the decoder is not ByteLevel", j->path);
    if (!adds_nothing(get(j->root, "post_processor")))
        return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: a post_processor that adds tokens is not supported",
                        j->path);
    return read_pre(j, cJSON_IsTrue(get(model, "ignore_merges")), err);
}

static enum vkmoe_status read_vocab(struct mdl_tokenizer_json *j, uint32_t n, struct vkmoe_err *err)
{
    const cJSON *vocab = get(get(j->root, "model"), "vocab"), *v;
    uint32_t id;

    j->text = cor_array(n, sizeof(*j->text));
    j->kind = cor_alloc(n);
    if (!j->text || !j->kind)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %u tokens", j->path, n);
    memset(j->kind, MDL_TOKEN_UNUSED, n);
    for (uint32_t i = 0; i < n; i++)
        j->text[i] = "";
    if (!cJSON_IsObject(vocab))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: model.vocab is not an object", j->path);
    cJSON_ArrayForEach(v, vocab)
    {
        if (!as_id(v, n, &id))
            return cor_fail(err, VKMOE_ERR_FORMAT,
                            "%s: token \"%.64s\" has no id below the vocabulary size %u", j->path, v->string,
                            n);
        if (j->kind[id] != MDL_TOKEN_UNUSED)
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: tokens \"%.64s\" and \"%.64s\" have the same id %u",
                            j->path, j->text[id], v->string, id);
        j->text[id] = v->string;
        j->kind[id] = MDL_TOKEN_NORMAL;
    }
    return VKMOE_OK;
}

static enum vkmoe_status read_added(struct mdl_tokenizer_json *j, uint32_t n, struct vkmoe_err *err)
{
    static const char *const off[] = {"single_word", "lstrip", "rstrip"};
    const cJSON *added = get(j->root, "added_tokens"), *a;
    uint32_t id;

    if (!is_off(added) && !cJSON_IsArray(added))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: added_tokens is not an array", j->path);
    cJSON_ArrayForEach(a, added)
    {
        const cJSON *name = get(a, "content");

        if (!cJSON_IsString(name) || !as_id(get(a, "id"), n, &id))
            return cor_fail(err, VKMOE_ERR_FORMAT,
                            "%s: an added token has no text or no id below the vocabulary size %u", j->path,
                            n);
        for (size_t i = 0; i < COR_COUNT(off); i++)
            if (!is_off(get(a, off[i])))
                return cor_fail(err, VKMOE_ERR_UNSUPPORTED, "%s: %s of added token %u is not supported",
                                j->path, off[i], id);
        /* An added token usually stands in the vocabulary too. */
        if (j->kind[id] != MDL_TOKEN_UNUSED &&
            (j->kind[id] != MDL_TOKEN_NORMAL || strcmp(j->text[id], name->valuestring)))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: added token %u \"%.64s\" collides with \"%.64s\"",
                            j->path, id, name->valuestring, j->text[id]);
        j->text[id] = name->valuestring;
        j->kind[id] = cJSON_IsTrue(get(a, "special")) ? MDL_TOKEN_CONTROL : MDL_TOKEN_USER;
    }
    return VKMOE_OK;
}

static bool is_pair(const cJSON *m)
{
    return cJSON_IsArray(m) && m->child && cJSON_IsString(m->child) && m->child->next &&
           cJSON_IsString(m->child->next) && !m->child->next->next && !strchr(m->child->valuestring, ' ');
}

static enum vkmoe_status read_merges(struct mdl_tokenizer_json *j, uint32_t *n_merges, struct vkmoe_err *err)
{
    const cJSON *merges = get(get(j->root, "model"), "merges"), *m;
    size_t n = 0, bytes = 0, at = 0;

    if (!cJSON_IsArray(merges))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: model.merges is not an array", j->path);
    cJSON_ArrayForEach(m, merges)
    {
        if (!cJSON_IsString(m) && !is_pair(m))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: merge %zu is neither \"a b\" nor [\"a\", \"b\"]",
                            j->path, n);
        bytes +=
            cJSON_IsString(m) ? 0 : strlen(m->child->valuestring) + strlen(m->child->next->valuestring) + 2;
        n++;
    }
    j->merges = cor_array(n, sizeof(*j->merges));
    j->joined = cor_alloc(bytes);
    if (!j->merges || !j->joined)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %zu merges", j->path, n);
    n = 0;
    cJSON_ArrayForEach(m, merges)
    {
        if (cJSON_IsString(m)) {
            j->merges[n++] = m->valuestring;
            continue;
        }
        size_t left = strlen(m->child->valuestring), right = strlen(m->child->next->valuestring);
        char *dst = j->joined + at;

        memcpy(dst, m->child->valuestring, left);
        dst[left] = ' ';
        memcpy(dst + left + 1, m->child->next->valuestring, right + 1);
        j->merges[n++] = dst;
        at += left + right + 2;
    }
    *n_merges = (uint32_t)n; /* at most JSON_VALUES_MAX */
    return VKMOE_OK;
}

enum vkmoe_status mdl_tokenizer_json_load(struct mdl_tokenizer_json **owner, struct mdl_tokenizer_spec *spec,
                                          const char *path, uint32_t vocab_size, int32_t eos,
                                          struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_tokenizer_json *j = cor_zalloc(sizeof(*j));
    struct mdl_tokenizer *probe = NULL;
    uint32_t n_merges = 0;

    *owner = NULL;
    if (!j || !(j->path = cor_strdup(path)))
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the tokenizer", path);
    if (!vocab_size || vocab_size > MDL_TOKENS_MAX)
        FAIL(VKMOE_ERR_FORMAT, "%s: vocabulary size %u, must be 1 to %u", path, vocab_size,
             (unsigned)MDL_TOKENS_MAX);
    TRY(parse(j, err));
    TRY(check_settings(j, err));
    TRY(read_vocab(j, vocab_size, err));
    TRY(read_added(j, vocab_size, err));
    TRY(read_merges(j, &n_merges, err));
    struct mdl_tokenizer_spec s = {.source = j->path,
                                   .pre = j->pre,
                                   .n_tokens = vocab_size,
                                   .text = j->text,
                                   .kind = j->kind,
                                   .n_merges = n_merges,
                                   .merges = j->merges,
                                   .eos = eos};
    TRY(mdl_tokenizer_create(&probe, &s, err)); /* every token and merge */
    *spec = s;
    *owner = j;
    j = NULL;
done:
    mdl_tokenizer_close(probe);
    mdl_tokenizer_json_free(j);
    return st;
}

void mdl_tokenizer_json_free(struct mdl_tokenizer_json *j)
{
    if (!j)
        return;
    cJSON_Delete(j->root);
    cor_free(j->path);
    cor_free(j->pre);
    cor_free(j->text);
    cor_free(j->kind);
    cor_free(j->merges);
    cor_free(j->joined);
    cor_free(j);
}
