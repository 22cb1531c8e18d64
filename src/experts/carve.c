#include "experts/carve.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "model/json.h"

#define PIECE        (1u << 20) /* bytes copied at a time */
#define METADATA     "pruning_metadata.json"
#define METADATA_MAX (16u << 20)

struct carve {
    const struct xp_carve_params *p;
    struct xp_carve_result *r;
    struct mdl_model *m;
    struct xp_ids ids;
    struct mdl_gguf_writer *w;
    uint8_t *piece;
    uint64_t done, total; /* bytes, for the progress */
    struct vkmoe_err *err;
};

/* ---- what is kept
 * -------------------------------------------------------------------------------------------- */

static bool keeps(const struct carve *c, uint32_t layer, uint32_t expert)
{
    return xp_subset_has(c->p->subset, layer, expert);
}

static enum vkmoe_status judge(struct carve *c)
{
    const struct xp_carve_params *p = c->p;
    struct mdl_model any_k = *c->m; /* too few for top-k is fine here: it falls */
    struct vkmoe_err *err = c->err;
    enum vkmoe_status st = VKMOE_OK;

    any_k.config.n_experts_used = 1;
    TRY(xp_subset_check(p->subset, &any_k, p->subset_name, err));
    c->r->least = UINT32_MAX;
    if (!c->m->config.n_experts)
        FAIL(VKMOE_ERR_ARGUMENT, "%s: a model without experts", p->model);
    for (uint32_t l = c->m->config.n_dense_layers; l < c->m->config.n_layers; l++) {
        uint32_t n = xp_subset_count(p->subset, l);

        c->r->least = n < c->r->least ? n : c->r->least;
        c->r->most = n > c->r->most ? n : c->r->most;
    }
    if (c->r->least != c->r->most && !p->vkmoe_only)
        FAIL(VKMOE_ERR_ARGUMENT,
             "%s: layers keep %" PRIu32 " to %" PRIu32 " routed experts: only vkmoe could run that "
             "(--vkmoe-only); %" PRIu32 " in every layer hold it (keep %" PRIu32 ")",
             p->subset_name, c->r->least, c->r->most, c->r->most, c->r->most + c->m->config.n_shared);
    c->r->n_layers = c->m->config.n_layers;
    c->r->n_routed = c->m->config.n_experts;
    c->r->n_shared = c->m->config.n_shared;
    c->r->n_used = c->m->config.n_experts_used < c->r->most ? c->m->config.n_experts_used : c->r->most;
done:
    return st;
}

/* ---- keys
 * ------------------------------------------------------------------------------------------------------ */

/* A key of the model's architecture. */
static const char *own_key(const struct carve *c, char dst[96], const char *key)
{
    snprintf(dst, 96, "%s.%s", c->m->config.arch, key);
    return dst;
}

/* Keys that number experts or say where the file comes from. */
static bool is_replaced(const struct carve *c, const char *key)
{
    char count[96], used[96];
    const char *const names[] = {own_key(c, count, "expert_count"),
                                 own_key(c, used, "expert_used_count"),
                                 "general.alignment",
                                 "vkmoe.version",
                                 "vkmoe.expert_ids",
                                 "vkmoe.expert_count_per_layer",
                                 "vkmoe.source.expert_count",
                                 "vkmoe.source.sha256",
                                 "vkmoe.parent.sha256",
                                 "vkmoe.subset.method",
                                 "vkmoe.subset.calibration"};

    for (size_t i = 0; i < COR_COUNT(names); i++)
        if (!strcmp(key, names[i]))
            return true;
    return mdl_gguf_key_of_file(key);
}

static enum vkmoe_status put_text(struct carve *c, const char *key, const char *text)
{
    return text[0] ? mdl_gguf_put_str(c->w, key, text, strlen(text), c->err) : VKMOE_OK;
}

/* The file that the ids belong to stays the source; the one read here is then the parent. */
static enum vkmoe_status put_digests(struct carve *c)
{
    const struct mdl_gguf *g = c->m->gguf;
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_str source;

    if (mdl_gguf_find(g, "vkmoe.source.sha256")) {
        TRY(mdl_gguf_str(g, "vkmoe.source.sha256", &source, c->err));
        TRY(mdl_gguf_put_str(c->w, "vkmoe.source.sha256", source.p, (size_t)source.n, c->err));
        TRY(put_text(c, "vkmoe.parent.sha256", c->r->sha256));
    } else {
        TRY(put_text(c, "vkmoe.source.sha256", c->r->sha256));
    }
done:
    return st;
}

/* counts NULL: the same number in every layer. */
static enum vkmoe_status put_ids(struct carve *c, const uint32_t *counts, uint32_t total)
{
    uint32_t *list = cor_array(total, sizeof(*list)), n = 0;
    struct vkmoe_err *err = c->err;
    enum vkmoe_status st = VKMOE_OK;

    if (!list)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for expert ids", c->p->out);
    for (uint32_t l = 0; l < c->m->config.n_layers; l++)
        for (uint32_t e = 0; e < mdl_expert_count(c->m, l); e++)
            if (keeps(c, l, e))
                list[n++] = xp_ids_original(&c->ids, l, e);
    TRY(mdl_gguf_put_array(c->w, "vkmoe.expert_ids", MDL_GGUF_U32, list, n, err));
    if (counts)
        TRY(mdl_gguf_put_array(c->w, "vkmoe.expert_count_per_layer", MDL_GGUF_U32, counts,
                               c->m->config.n_layers, err));
done:
    cor_free(list);
    return st;
}

static enum vkmoe_status put_keys(struct carve *c)
{
    const struct mdl_gguf *g = c->m->gguf;
    uint32_t n_layers = c->m->config.n_layers, total = 0;
    uint32_t *counts = cor_array(n_layers, sizeof(*counts));
    char key[96];
    struct vkmoe_err *err = c->err;
    enum vkmoe_status st = VKMOE_OK;

    if (!counts)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %" PRIu32 " layers", c->p->out, n_layers);
    for (uint32_t l = 0; l < n_layers; l++)
        total += counts[l] = xp_subset_count(c->p->subset, l);
    for (uint64_t i = 0; i < g->n_kv; i++)
        if (!is_replaced(c, g->kv[i].key))
            TRY(mdl_gguf_put_kv(c->w, &g->kv[i], err));
    TRY(mdl_gguf_put_u32(c->w, own_key(c, key, "expert_count"), c->r->most, err));
    TRY(mdl_gguf_put_u32(c->w, own_key(c, key, "expert_used_count"), c->r->n_used, err));
    TRY(put_text(c, "vkmoe.version", vkmoe_version()));
    TRY(put_ids(c, c->r->least == c->r->most ? NULL : counts, total));
    TRY(mdl_gguf_put_u32(c->w, "vkmoe.source.expert_count", c->ids.n_source, err));
    TRY(put_digests(c));
    TRY(put_text(c, "vkmoe.subset.method", c->p->subset->method));
    TRY(put_text(c, "vkmoe.subset.calibration", c->p->subset->calibration));
done:
    cor_free(counts);
    return st;
}

/* ---- tensors
 * -------------------------------------------------------------------------------------------------- */

static enum vkmoe_status step(struct carve *c, uint64_t n)
{
    c->done += n;
    if (c->p->progress)
        c->p->progress(c->p->progress_user, c->done, c->total);
    if (cor_interrupted())
        return cor_fail(c->err, VKMOE_ERR_IO, "%s: interrupted", c->p->out);
    return VKMOE_OK;
}

static enum vkmoe_status copy(struct carve *c, const struct mdl_tensor *t, uint64_t off, uint64_t n)
{
    enum vkmoe_status st = VKMOE_OK;

    while (n) {
        size_t part = n < PIECE ? (size_t)n : PIECE;

        TRY(mdl_gguf_read(c->m->gguf, t, off, c->piece, part, c->err));
        TRY(mdl_gguf_write_data(c->w, c->piece, part, c->err));
        TRY(step(c, part));
        off += part;
        n -= part;
    }
done:
    return st;
}

/* Experts that stand beside each other are copied at once. */
static enum vkmoe_status copy_kept(struct carve *c, const struct mdl_tensor *t, uint32_t layer, int part)
{
    uint64_t each = xp_part_bytes(c->m, layer, part);
    uint32_t n = mdl_expert_count(c->m, layer);
    enum vkmoe_status st = VKMOE_OK;

    for (uint32_t e = 0, end; e < n; e = end) {
        end = e + 1;
        if (!keeps(c, layer, e))
            continue;
        while (end < n && keeps(c, layer, end))
            end++;
        TRY(copy(c, t, each * e, each * (end - e)));
    }
done:
    return st;
}

static enum vkmoe_status put_tensors(struct carve *c)
{
    const struct mdl_gguf *g = c->m->gguf;
    enum vkmoe_status st = VKMOE_OK;
    uint32_t layer;
    int part;

    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct mdl_tensor *t = &g->tensors[i];
        uint64_t dims[MDL_GGUF_MAX_DIMS], bytes = t->bytes;

        memcpy(dims, t->dims, sizeof(dims));
        if (xp_part_of(c->m, t, &layer, &part)) {
            dims[xp_part_dim(part)] = xp_subset_count(c->p->subset, layer);
            bytes = xp_part_bytes(c->m, layer, part) * xp_subset_count(c->p->subset, layer);
        }
        TRY(mdl_gguf_put_tensor(c->w, t->name, t->type, t->n_dims, dims, c->err));
        c->total += bytes;
    }
done:
    return st;
}

static enum vkmoe_status copy_tensors(struct carve *c)
{
    const struct mdl_gguf *g = c->m->gguf;
    enum vkmoe_status st = VKMOE_OK;
    uint32_t layer;
    int part;

    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct mdl_tensor *t = &g->tensors[i];

        if (xp_part_of(c->m, t, &layer, &part))
            TRY(copy_kept(c, t, layer, part));
        else
            TRY(copy(c, t, 0, t->bytes));
    }
    TRY(mdl_gguf_unchanged(g, c->err));
done:
    return st;
}

/* ---- pruning_metadata.json
 * ------------------------------------------------------------------------------------ */

/* Does the metadata there name this file? What cannot be read is somebody else's. */
static bool is_of(const char *path, const char *file)
{
    const cJSON *name;
    cJSON *root = NULL;
    bool own;

    if (mdl_json_load(&root, path, METADATA_MAX, NULL) != VKMOE_OK)
        return false;
    name = mdl_json_get(root, "file");
    own = cJSON_IsString(name) && !strcmp(name->valuestring, file);
    cJSON_Delete(root);
    return own;
}

enum vkmoe_status xp_metadata_path(char dst[XP_CARVE_PATH], const char *out, struct vkmoe_err *err)
{
    const char *base = cor_path_base(out);
    size_t n = strlen(base), stem = n > 5 && !strcmp(base + n - 5, ".gguf") ? n - 5 : n;
    int dir = (int)(base - out);
    char plain[XP_CARVE_PATH];

    if (strlen(out) + sizeof("." METADATA) > XP_CARVE_PATH)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "%.80s...: a path of %zu bytes is too long", out,
                        strlen(out));
    snprintf(plain, sizeof(plain), "%.*s" METADATA, dir, out);
    snprintf(dst, XP_CARVE_PATH, "%.*s.%s", dir + (int)stem, out, METADATA);
    if (!cor_path_exists(dst) && (!cor_path_exists(plain) || is_of(plain, base)))
        memcpy(dst, plain, sizeof(plain));
    return VKMOE_OK;
}

/* One list of numbers: original ids, then the shared experts, which stood behind all others. */
static cJSON *layer_list(const struct carve *c, uint32_t layer)
{
    cJSON *list = cJSON_CreateArray();
    bool good = list != NULL;

    for (uint32_t e = 0; good && e < mdl_expert_count(c->m, layer); e++)
        if (keeps(c, layer, e))
            good = cJSON_AddItemToArray(list, cJSON_CreateNumber(xp_ids_original(&c->ids, layer, e)));
    for (uint32_t e = 0; good && !mdl_is_dense(&c->m->config, layer) && e < c->m->config.n_shared; e++)
        good = cJSON_AddItemToArray(list, cJSON_CreateNumber(c->ids.n_source + e));
    if (good)
        return list;
    cJSON_Delete(list);
    return NULL;
}

static bool add_item(cJSON *to, const char *key, cJSON *item)
{
    if (item && (key ? cJSON_AddItemToObject(to, key, item) : cJSON_AddItemToArray(to, item)))
        return true;
    cJSON_Delete(item);
    return false;
}

/* A list of how many each layer keeps where they differ, else a number; the shared ones are counted. */
static cJSON *keep_k(const struct carve *c)
{
    cJSON *list;

    if (c->r->least == c->r->most)
        return cJSON_CreateNumber(c->r->most + c->r->n_shared);
    list = cJSON_CreateArray();
    for (uint32_t l = 0; list && l < c->r->n_layers; l++)
        if (!add_item(list, NULL, cJSON_CreateNumber(xp_subset_count(c->p->subset, l) + c->r->n_shared))) {
            cJSON_Delete(list);
            return NULL;
        }
    return list;
}

static bool fill_metadata(const struct carve *c, cJSON *o)
{
    const struct xp_subset *s = c->p->subset;
    char model[MDL_SHOW_BYTES];
    struct mdl_str name;
    cJSON *layers;
    bool good;

    xp_model_name(model, c->m->gguf);
    if (mdl_gguf_str(c->m->gguf, "vkmoe.pruning.original_model", &name, NULL) == VKMOE_OK)
        mdl_show(model, name.p, name.n);
    good = add_item(o, "original_model", cJSON_CreateString(model)) &&
           add_item(o, "prune_keep_k", keep_k(c)) &&
           add_item(o, "num_shared_experts", cJSON_CreateNumber(c->r->n_shared)) &&
           (!s->method[0] || add_item(o, "pruning_method", cJSON_CreateString(s->method))) &&
           (!s->calibration[0] || add_item(o, "calibration_sha256", cJSON_CreateString(s->calibration))) &&
           add_item(o, "file", cJSON_CreateString(cor_path_base(c->p->out))) &&
           add_item(o, "source_sha256", cJSON_CreateString(c->r->sha256)) &&
           add_item(o, "vkmoe_version", cJSON_CreateString(vkmoe_version()));
    layers = good ? cJSON_AddArrayToObject(o, "experts_kept_per_layer") : NULL;
    for (uint32_t l = 0; layers && l < c->r->n_layers; l++)
        if (!add_item(layers, NULL, layer_list(c, l)))
            return false;
    return layers != NULL;
}

/* Written and flushed under a temporary name; the caller commits. */
static enum vkmoe_status write_metadata(struct carve *c, struct cor_out **out)
{
    cJSON *o = cJSON_CreateObject();
    struct vkmoe_err *err = c->err;
    enum vkmoe_status st = VKMOE_OK;

    if (!o || !fill_metadata(c, o))
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory", c->r->metadata);
    TRY(mdl_json_write(out, o, true, c->r->metadata, err));
done:
    cJSON_Delete(o);
    return st;
}

/* ---- the whole
 * ------------------------------------------------------------------------------------------------ */

/* Both are flushed: what can still fail is to rename, and then a metadata file that was not there goes. */
static enum vkmoe_status commit(struct carve *c)
{
    struct mdl_gguf_writer *w = c->w;
    struct cor_out *json = NULL;
    enum vkmoe_status st = VKMOE_OK;
    bool is_new = false;

    TRY(mdl_gguf_finish(w, c->err));
    c->r->out_bytes = mdl_gguf_written(w);
    if (c->r->metadata[0]) {
        TRY(write_metadata(c, &json));
        TRY(step(c, 0)); /* flushing may have taken its time */
        is_new = !cor_path_exists(c->r->metadata);
        st = cor_out_commit(json, c->err);
        json = NULL;
        TRY(st);
    }
    c->w = NULL; /* commit frees it in either case */
    st = mdl_gguf_commit(w, c->err);
    if (st != VKMOE_OK && is_new)
        cor_path_remove(c->r->metadata);
done:
    cor_out_discard(json);
    return st;
}

/* The first part of the work: all of the file is read once for its digest. */
static void hashed(void *user, uint64_t done, uint64_t size)
{
    struct carve *c = user;

    (void)size;
    c->done = done;
    if (c->p->progress)
        c->p->progress(c->p->progress_user, c->done, c->total);
}

static enum vkmoe_status run(struct carve *c)
{
    const struct xp_carve_params *p = c->p;
    struct vkmoe_err *err = c->err;
    const struct mdl_gguf *g;
    enum vkmoe_status st;

    TRY(mdl_open(&c->m, p->model, err));
    g = c->m->gguf;
    if (mdl_gguf_is_file(g, p->out) || cor_path_same(p->subset_name, p->out))
        FAIL(VKMOE_ERR_ARGUMENT, "%s: is read; write to another file", p->out);
    TRY(xp_ids_read(&c->ids, c->m, err));
    TRY(judge(c));
    if (!cor_path_in_place(p->out))
        TRY(xp_metadata_path(c->r->metadata, p->out, err));
    c->piece = cor_alloc(PIECE);
    if (!c->piece)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to copy", p->out);
    TRY(mdl_gguf_create(&c->w, p->out, err));
    TRY(put_tensors(c));
    c->r->in_bytes = mdl_gguf_file_bytes(g);
    c->total += c->r->in_bytes;
    TRY(cor_sha256_files(g->files, g->n_files, c->r->sha256, hashed, c, err));
    TRY(put_keys(c));
    TRY(copy_tensors(c));
    TRY(commit(c));
done:
    return st;
}

enum vkmoe_status xp_carve(const struct xp_carve_params *p, struct xp_carve_result *r, struct vkmoe_err *err)
{
    struct carve c = {.p = p, .r = r, .err = err};
    enum vkmoe_status st;

    *r = (struct xp_carve_result){0};
    st = run(&c);
    mdl_gguf_discard(c.w);
    cor_free(c.piece);
    xp_ids_free(&c.ids);
    mdl_close(c.m);
    return st;
}

enum vkmoe_status xp_carve_size(const struct xp_carve_params *p, struct mdl_model *m, uint64_t *bytes,
                                struct vkmoe_err *err)
{
    struct xp_carve_params named = *p; /* for messages: nothing is written */
    struct xp_carve_result r = {.out_bytes = 0};
    struct carve c = {.p = &named, .r = &r, .m = m, .err = err};
    enum vkmoe_status st = VKMOE_OK;

    *bytes = 0;
    named.out = p->subset_name;
    memset(r.sha256, '0', sizeof(r.sha256) - 1); /* any digest is as long */
    TRY(xp_ids_read(&c.ids, m, err));
    TRY(judge(&c));
    TRY(mdl_gguf_create(&c.w, NULL, err));
    TRY(put_tensors(&c));
    TRY(put_keys(&c));
    *bytes = mdl_gguf_declared(c.w);
done:
    mdl_gguf_discard(c.w);
    xp_ids_free(&c.ids);
    return st;
}
