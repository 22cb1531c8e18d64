/* vkmoe inspect: what a GGUF file holds: architecture, sizes by part, formats, tokenizer, provenance. Needs
 * no device. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "core/alloc.h"
#include "experts/ids.h"

enum part { EMBEDDING, HEAD, ATTENTION, NORMS, ROUTERS, DENSE, SHARED, ROUTED, OTHER, N_PARTS };

static const struct {
    const char *label, *json;
} part_names[N_PARTS] = {
    {"embedding", "embedding"},
    {"head", "head"},
    {"attention", "attention"},
    {"norms", "norms"},
    {"routers", "routers"},
    {"dense layers", "dense_layers"},
    {"shared experts", "shared_experts"},
    {"routed experts", "routed_experts"},
    {"other tensors", "other"},
};

struct size {
    uint64_t tensors, params, bytes;
    uint32_t types[16]; /* GGUF numbers, the first n_types of those met */
    uint32_t n_types;
};

struct report {
    const struct mdl_gguf *g;
    const struct mdl_model *m; /* NULL: the architecture is not one that can be run */
    const char *path;
    char why_not[512]; /* why it cannot be run, "" when it can */
    struct size parts[N_PARTS], total, dense, expert, layer, active;
    uint64_t n_routed; /* of all layers */
    bool unequal;      /* layers differ in their number of experts */
    bool tensors;
    struct xp_ids ids;    /* with experts */
    uint8_t *digests;     /* COR_SHA256_BYTES of each expert, by ids' index; NULL: not asked for */
    uint8_t *row_digests; /* of their rows in the routers */
};

/* ---- sizes ---- */

static void add(struct size *s, const struct mdl_tensor *t)
{
    uint64_t n = t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    uint32_t i = 0;

    s->tensors++;
    s->params += n;
    s->bytes += t->bytes;
    while (i < s->n_types && s->types[i] != t->gguf_type)
        i++;
    if (i == s->n_types && i < COR_COUNT(s->types))
        s->types[s->n_types++] = t->gguf_type;
}

/* Adds num/den of b to a: one expert's or one token's share of stacked tensors. */
static void add_share(struct size *a, const struct size *b, uint64_t num, uint64_t den)
{
    a->tensors += b->tensors;
    a->params += b->params / den * num;
    a->bytes += b->bytes / den * num;
    for (uint32_t i = 0; i < b->n_types; i++) {
        uint32_t k = 0;

        while (k < a->n_types && a->types[k] != b->types[i])
            k++;
        if (k == a->n_types && k < COR_COUNT(a->types))
            a->types[a->n_types++] = b->types[i];
    }
}

static enum part layer_part(const struct mdl_layer *l, const struct mdl_tensor *t)
{
    const struct mdl_tensor *const *tensors = (const struct mdl_tensor *const *)l;
    static const enum part parts[MDL_LAYER_PARTS] = {
        NORMS,     ATTENTION, ATTENTION, ATTENTION, ATTENTION, NORMS,  ROUTERS,   ROUTED,    ROUTED,
        ROUTED,    SHARED,    SHARED,    SHARED,    NORMS,     NORMS,  ATTENTION, ATTENTION, ATTENTION,
        ATTENTION, ATTENTION, ROUTERS,   ROUTED,    ROUTED,    ROUTED, SHARED};

    for (int i = 0; i < MDL_LAYER_PARTS; i++)
        if (tensors[i] == t)
            return parts[i] == SHARED && !l->gate_inp ? DENSE : parts[i];
    return OTHER;
}

static enum part part_of(const struct report *r, const struct mdl_tensor *t)
{
    enum part p = OTHER;

    if (!r->m)
        return OTHER;
    if (t == r->m->embed)
        return EMBEDDING;
    if (t == r->m->head)
        return HEAD;
    if (t == r->m->out_norm)
        return NORMS;
    for (uint32_t i = 0; i < r->m->config.n_layers && p == OTHER; i++)
        p = layer_part(&r->m->layers[i], t);
    return p;
}

static void measure(struct report *r)
{
    const struct mdl_config *c = r->m ? &r->m->config : NULL;
    uint64_t n_active = 0;

    for (uint64_t i = 0; i < r->g->n_tensors; i++) {
        add(&r->parts[part_of(r, &r->g->tensors[i])], &r->g->tensors[i]);
        add(&r->total, &r->g->tensors[i]);
    }
    if (!c)
        return;
    for (int p = 0; p < N_PARTS; p++)
        if (p != ROUTED)
            add_share(&r->dense, &r->parts[p], 1, 1);
    for (uint32_t l = 0; l < c->n_layers; l++) {
        uint32_t n = mdl_expert_count(r->m, l);

        r->n_routed += n;
        n_active += n < c->n_experts_used ? n : c->n_experts_used;
        r->unequal = r->unequal || (n != c->n_experts && !mdl_is_dense(c, l));
    }
    if (r->n_routed)
        add_share(&r->expert, &r->parts[ROUTED], 1, r->n_routed);
    r->expert.tensors = r->n_routed ? 3 : 0;
    add_share(&r->layer, &r->expert, c->n_experts, 1);
    /* A token reads one row of the embedding, which is not counted, unless the head is the same matrix. */
    add_share(&r->active, &r->dense, 1, 1);
    if (r->m->head != r->m->embed) {
        r->active.tensors -= r->parts[EMBEDDING].tensors;
        r->active.params -= r->parts[EMBEDDING].params;
        r->active.bytes -= r->parts[EMBEDDING].bytes;
    }
    add_share(&r->active, &r->expert, n_active, 1);
}

/* ---- experts ---- */

static enum vkmoe_status digest_layer(struct report *r, uint32_t layer, void *buf, struct cli_progress *bar,
                                      struct vkmoe_err *err)
{
    const struct mdl_tensor *rows = xp_part(r->m, layer, XP_GATE_INP);
    uint64_t n = xp_part_bytes(r->m, layer, XP_GATE_INP);
    enum vkmoe_status st = VKMOE_OK;
    struct cor_sha256 h;

    for (uint32_t e = 0; e < mdl_expert_count(r->m, layer); e++) {
        size_t at = (size_t)r->ids.first[layer] + e;

        TRY(xp_expert_digest(r->m, layer, e, buf, r->digests + at * COR_SHA256_BYTES, err));
        TRY(mdl_gguf_read(r->m->gguf, rows, n * e, buf, (size_t)n, err));
        cor_sha256_begin(&h);
        cor_sha256_add(&h, buf, (size_t)n);
        cor_sha256_end(&h, r->row_digests + at * COR_SHA256_BYTES);
        cli_progress_step(bar, at + 1, r->ids.first[r->ids.n_layers]);
    }
done:
    return st;
}

static enum vkmoe_status digest_experts(struct report *r, struct vkmoe_err *err)
{
    struct cli_progress bar = {.what = "reading", .unit = "experts"};
    enum vkmoe_status st = VKMOE_OK;
    void *buf = NULL;
    uint32_t n;

    TRY(xp_ids_read(&r->ids, r->m, err));
    n = r->ids.first[r->ids.n_layers];
    r->digests = cor_array(n, COR_SHA256_BYTES);
    r->row_digests = cor_array(n, COR_SHA256_BYTES);
    buf = cor_alloc((size_t)xp_largest_part(r->m));
    if (!r->digests || !r->row_digests || !buf)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the digests of %" PRIu32 " experts", r->path, n);
    for (uint32_t l = 0; l < r->ids.n_layers; l++)
        TRY(digest_layer(r, l, buf, &bar, err));
done:
    cli_progress_end(&bar);
    cor_free(buf);
    return st;
}

static void print_experts(const struct report *r)
{
    char hex[COR_SHA256_HEX];

    printf("\n%6s %6s %8s %14s  SHA-256 of gate, up and down\n", "layer", "expert", "original", "bytes");
    for (uint32_t l = 0; l < r->ids.n_layers; l++)
        for (uint32_t e = 0; e < mdl_expert_count(r->m, l); e++)
            printf("%6u %6u %8u %14" PRIu64 "  %s\n", l, e, xp_ids_original(&r->ids, l, e),
                   xp_expert_bytes(r->m, l),
                   cor_sha256_hex(hex, r->digests + (r->ids.first[l] + (size_t)e) * COR_SHA256_BYTES));
}

static void json_experts(const struct report *r)
{
    char hex[COR_SHA256_HEX], row[COR_SHA256_HEX];

    printf(",\"experts\":[");
    for (uint32_t l = 0; l < r->ids.n_layers; l++)
        for (uint32_t e = 0; e < mdl_expert_count(r->m, l); e++) {
            size_t at = (r->ids.first[l] + (size_t)e) * COR_SHA256_BYTES;

            printf("%s{\"layer\":%u,\"expert\":%u,\"original\":%u,\"bytes\":%" PRIu64
                   ",\"sha256\":\"%s\",\"router_sha256\":\"%s\"}",
                   l || e ? "," : "", l, e, xp_ids_original(&r->ids, l, e), xp_expert_bytes(r->m, l),
                   cor_sha256_hex(hex, r->digests + at), cor_sha256_hex(row, r->row_digests + at));
        }
    putchar(']');
}

/* ---- text ---- */

static void print_types(const struct size *s, const char *quote)
{
    for (uint32_t i = 0; i < s->n_types; i++) {
        const struct mdl_type_info *info = mdl_type_find(s->types[i]);

        if (info)
            printf("%s%s%s%s", i ? "," : "", quote, info->name, quote);
        else
            printf("%s%stype-%u%s", i ? "," : "", quote, s->types[i], quote);
    }
}

static void print_size(const char *label, const struct size *s)
{
    printf("  %-24s %14" PRIu64 " %16" PRIu64 " %11.2f  ", label, s->params, s->bytes,
           (double)s->bytes / 1048576);
    print_types(s, "");
    putchar('\n');
}

/* One line per key that begins with prefix. */
static void print_keys(const struct mdl_gguf *g, const char *prefix)
{
    char key[MDL_SHOW_BYTES], text[MDL_SHOW_BYTES];

    for (uint64_t i = 0; i < g->n_kv; i++) {
        const struct mdl_kv *kv = &g->kv[i];

        if (strncmp(kv->key, prefix, strlen(prefix)))
            continue;
        printf("  %-28s ", mdl_show(key, kv->key, strlen(kv->key)));
        if (kv->type == MDL_GGUF_STRING)
            printf("%s\n", mdl_show(text, kv->v.s.p, kv->v.s.n));
        else if (kv->type == MDL_GGUF_ARRAY)
            printf("list of %" PRIu64 "\n", kv->count);
        else if (kv->type == MDL_GGUF_F32 || kv->type == MDL_GGUF_F64)
            printf("%g\n", kv->v.f);
        else if (kv->type == MDL_GGUF_BOOL)
            printf("%s\n", kv->v.u ? "true" : "false");
        else
            printf("%" PRId64 "\n", kv->v.i);
    }
}

static void print_model(const struct report *r)
{
    const struct mdl_config *c = &r->m->config;
    const char *eos = "";
    size_t n = mdl_token_bytes(r->m->tok, mdl_token_eos(r->m->tok), &eos);
    char text[MDL_SHOW_BYTES];

    printf("layers         %u, hidden size %u, vocabulary %u, trained context %u\n", c->n_layers, c->dim,
           c->vocab_size, c->n_ctx_train);
    printf("attention      %u heads of %u (%u for keys and values), RoPE on %u dimensions, theta %g\n",
           c->n_heads, c->head_dim, c->n_kv_heads, c->n_rot, c->rope_theta);
    if (c->n_dense_layers)
        printf("dense layers   %u%s, width %u\n", c->n_dense_layers,
               c->n_dense_layers < c->n_layers ? ", the first" : ", all", c->ff_dense);
    if (c->n_experts)
        printf("experts        %s%u routed in each layer, %u of them per token; %u shared; width %u\n",
               r->unequal ? "up to " : "", c->n_experts, c->n_experts_used, c->n_shared, c->ff_expert);
    if (r->unequal) {
        printf("per layer      ");
        for (uint32_t l = 0; l < c->n_layers; l++)
            printf("%s%u", l ? " " : "", mdl_expert_count(r->m, l));
        putchar('\n');
    }
    if (!strcmp(mdl_tokenizer_pre(r->m->tok), "llama"))
        printf("tokenizer      SentencePiece");
    else
        printf("tokenizer      byte-level BPE, pre-tokenizer %s", mdl_tokenizer_pre(r->m->tok));
    printf(", %u entries (ids below %u have a string), end token %d %s", mdl_tokenizer_size(r->m->tok),
           mdl_tokenizer_used(r->m->tok), (int)mdl_token_eos(r->m->tok), mdl_show(text, eos, n));
    n = mdl_token_bytes(r->m->tok, mdl_token_bos(r->m->tok), &eos);
    if (mdl_token_bos(r->m->tok) >= 0)
        printf(", token before a text %d %s", (int)mdl_token_bos(r->m->tok), mdl_show(text, eos, n));
    putchar('\n');
}

static void print_text(const struct report *r)
{
    struct mdl_str arch = {"unknown", 7}, name = {"", 0};
    char text[MDL_SHOW_BYTES];

    mdl_gguf_str(r->g, "general.architecture", &arch, NULL);
    mdl_gguf_str(r->g, "general.name", &name, NULL);
    printf("file           %s\n", r->path);
    printf("format         GGUF version %u, %" PRIu64 " bytes, %" PRIu64 " keys, %" PRIu64 " tensors\n",
           r->g->version, mdl_gguf_file_bytes(r->g), r->g->n_kv, r->g->n_tensors);
    if (r->g->n_files > 1)
        printf("parts          %" PRIu32 " files\n", r->g->n_files);
    printf("architecture   %s\n", mdl_show(text, arch.p, arch.n));
    if (name.n)
        printf("name           %s\n", mdl_show(text, name.p, name.n));
    if (r->why_not[0])
        printf("cannot be run  %s\n", r->why_not);
    if (r->m)
        print_model(r);
    printf("\n  %-24s %14s %16s %11s  %s\n", "part", "parameters", "bytes", "MiB", "formats");
    for (int p = 0; p < N_PARTS; p++)
        if (r->parts[p].tensors)
            print_size(part_names[p].label, &r->parts[p]);
    if (r->m) {
        print_size("dense (all but routed)", &r->dense);
        print_size("one routed expert", &r->expert);
        print_size(r->unequal ? "experts of largest layer" : "experts of one layer", &r->layer);
        print_size("active per token", &r->active);
    }
    print_size("total", &r->total);
    printf("\nprovenance\n");
    print_keys(r->g, "vkmoe.");
    for (uint64_t i = 0; r->tensors && i < r->g->n_tensors; i++) {
        const struct mdl_tensor *t = &r->g->tensors[i];
        const struct mdl_type_info *info = mdl_type_find(t->gguf_type);

        if (!i)
            printf("\n%s%14s %14s  %-6s %-20s name\n", r->g->n_files > 1 ? " part" : "", "offset", "bytes",
                   "format", "shape");
        if (r->g->n_files > 1)
            printf("%5" PRIu32, t->part + 1);
        snprintf(text, sizeof(text), "%" PRIu64 " x %" PRIu64 " x %" PRIu64, t->dims[2] * t->dims[3],
                 t->dims[1], t->dims[0]);
        printf("%14" PRIu64 " %14" PRIu64 "  %-6s %-20s ", t->file_off, t->bytes, info ? info->name : "?",
               text);
        printf("%s\n", mdl_show(text, t->name, strlen(t->name)));
    }
    if (r->digests)
        print_experts(r);
}

/* ---- JSON ---- */

static void json_str(const char *key, const char *p, size_t n)
{
    printf("\"%s\":", key);
    cli_json_string(p, n);
}

static void json_size(const char *key, const struct size *s)
{
    printf("\"%s\":{\"tensors\":%" PRIu64 ",\"parameters\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"formats\":[",
           key, s->tensors, s->params, s->bytes);
    print_types(s, "\"");
    printf("]}");
}

static void json_model(const struct report *r)
{
    const struct mdl_config *c = &r->m->config;

    printf(",\"config\":{\"n_layers\":%u,\"dim\":%u,\"vocab_size\":%u,\"n_ctx_train\":%u,\"n_heads\":%u,\"n_"
           "kv_heads\":%u,"
           "\"head_dim\":%u,\"n_rot\":%u,\"rope_theta\":%.9g,\"rms_eps\":%.9g,\"n_routed\":%u,\"n_routed_"
           "used\":%u,"
           "\"n_shared\":%u,\"ff_expert\":%u,\"norm_topk\":%s,\"n_routed_per_layer\":[",
           c->n_layers, c->dim, c->vocab_size, c->n_ctx_train, c->n_heads, c->n_kv_heads, c->head_dim,
           c->n_rot, (double)c->rope_theta, (double)c->rms_eps, c->n_experts, c->n_experts_used, c->n_shared,
           c->ff_expert, c->norm_topk ? "true" : "false");
    for (uint32_t l = 0; l < c->n_layers; l++)
        printf("%s%u", l ? "," : "", mdl_expert_count(r->m, l));
    printf("]},\"tokenizer\":{");
    json_str("pre", mdl_tokenizer_pre(r->m->tok), strlen(mdl_tokenizer_pre(r->m->tok)));
    printf(",\"entries\":%u,\"used\":%u,\"bos\":%d,\"eos\":%d}", mdl_tokenizer_size(r->m->tok),
           mdl_tokenizer_used(r->m->tok), (int)mdl_token_bos(r->m->tok), (int)mdl_token_eos(r->m->tok));
}

static void json_number(const struct mdl_kv *kv)
{
    if (kv->type == MDL_GGUF_BOOL)
        printf("%s", kv->v.u ? "true" : "false");
    else if (kv->type == MDL_GGUF_F32 || kv->type == MDL_GGUF_F64)
        printf(kv->v.f - kv->v.f == 0 ? "%.17g" : "null", kv->v.f); /* JSON has no infinities */
    else if (kv->type == MDL_GGUF_I8 || kv->type == MDL_GGUF_I16 || kv->type == MDL_GGUF_I32 ||
             kv->type == MDL_GGUF_I64)
        printf("%" PRId64, kv->v.i);
    else
        printf("%" PRIu64, kv->v.u);
}

/* vkmoe.* keys; lists of unsigned numbers in full (original expert ids), other lists by their length. */
static void json_provenance(const struct mdl_gguf *g)
{
    bool first = true;

    printf(",\"provenance\":{");
    for (uint64_t i = 0; i < g->n_kv; i++) {
        const struct mdl_kv *kv = &g->kv[i];

        if (strncmp(kv->key, "vkmoe.", 6))
            continue;
        printf(first ? "" : ",");
        first = false;
        cli_json_string(kv->key, strlen(kv->key));
        putchar(':');
        if (kv->type == MDL_GGUF_STRING) {
            cli_json_string(kv->v.s.p, (size_t)kv->v.s.n);
        } else if (kv->type != MDL_GGUF_ARRAY) {
            json_number(kv);
        } else if (kv->elem_type == MDL_GGUF_U32) {
            putchar('[');
            for (uint64_t k = 0; k < kv->count; k++) {
                uint32_t v;

                memcpy(&v, (const char *)kv->v.array + 4 * k, 4);
                printf("%s%u", k ? "," : "", v);
            }
            putchar(']');
        } else {
            printf("{\"count\":%" PRIu64 "}", kv->count);
        }
    }
    putchar('}');
}

static void json_tensors(const struct mdl_gguf *g)
{
    printf(",\"tensors\":[");
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const struct mdl_tensor *t = &g->tensors[i];
        const struct mdl_type_info *info = mdl_type_find(t->gguf_type);

        printf("%s{", i ? "," : "");
        json_str("name", t->name, strlen(t->name));
        printf(",\"format\":");
        if (info)
            printf("\"%s\"", info->name);
        else
            printf("\"type-%u\"", t->gguf_type);
        printf(",\"dims\":[");
        for (uint32_t d = 0; d < t->n_dims; d++)
            printf("%s%" PRIu64, d ? "," : "", t->dims[d]);
        printf("],\"part\":%" PRIu32 ",\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64 "}", t->part + 1,
               t->file_off, t->bytes);
    }
    putchar(']');
}

static void print_json(const struct report *r)
{
    struct mdl_str arch = {"", 0}, name = {"", 0};

    mdl_gguf_str(r->g, "general.architecture", &arch, NULL);
    mdl_gguf_str(r->g, "general.name", &name, NULL);
    putchar('{');
    json_str("file", r->path, strlen(r->path));
    printf(",\"file_bytes\":%" PRIu64 ",\"files\":%" PRIu32 ",\"gguf_version\":%u,",
           mdl_gguf_file_bytes(r->g), r->g->n_files, r->g->version);
    json_str("architecture", arch.p, (size_t)arch.n);
    putchar(',');
    json_str("name", name.p, (size_t)name.n);
    printf(",\"runnable\":%s", r->m ? "true" : "false");
    if (r->why_not[0]) {
        putchar(',');
        json_str("refused", r->why_not, strlen(r->why_not));
    }
    if (r->m)
        json_model(r);
    printf(",\"parts\":{");
    for (int p = 0, n = 0; p < N_PARTS; p++)
        if (r->parts[p].tensors) {
            printf(n++ ? "," : "");
            json_size(part_names[p].json, &r->parts[p]);
        }
    printf("},");
    if (r->m) {
        json_size("dense", &r->dense);
        putchar(',');
        json_size("per_expert", &r->expert);
        putchar(',');
        json_size("per_layer", &r->layer);
        putchar(',');
        json_size("active", &r->active);
        putchar(',');
    }
    json_size("total", &r->total);
    json_provenance(r->g);
    if (r->tensors)
        json_tensors(r->g);
    if (r->digests)
        json_experts(r);
    printf("}\n");
}

static int run(const struct cli_cmd *cmd, int argc, char **argv)
{
    const char *model = NULL;
    bool json = false, tensors = false, experts = false;
    const struct cli_opt opts[] = {
        {"-m|--model", CLI_STR, &model, "FILE", "the same as FILE; without either: the bundled model", 0, 0},
        {"--tensors", CLI_FLAG, &tensors, NULL, "list every tensor", 0, 0},
        {"--experts", CLI_FLAG, &experts, NULL,
         "list every routed expert: its id, that of the original model, bytes and SHA-256", 0, 0},
        {"--json", CLI_FLAG, &json, NULL, "one JSON object on stdout", 0, 0},
        {NULL, CLI_FLAG, NULL, NULL, NULL, 0, 0},
    };
    enum vkmoe_status st = VKMOE_OK;
    struct vkmoe_err line, *err = &line;
    struct mdl_gguf *g = NULL;
    struct mdl_model *m = NULL;
    struct report r;
    char path[4096];
    int n_pos = 0, status = cli_parse(cmd, opts, argc, argv, &n_pos);

    if (status >= 0)
        return status;
    if (n_pos > 1 || (n_pos && model))
        return cli_usage(cmd, "one file at a time");
    memset(&r, 0, sizeof(r));
    TRY(cli_model_path(n_pos ? argv[0] : model, path, err));
    st = mdl_open(&m, path, err);
    if (st == VKMOE_ERR_UNSUPPORTED) { /* another architecture: what every GGUF file has can still be shown */
        memcpy(r.why_not, err->message, sizeof(r.why_not));
        TRY(mdl_gguf_open(&g, path, err));
    } else if (st != VKMOE_OK) {
        goto done;
    }
    r.m = m;
    r.g = m ? m->gguf : g;
    r.path = path;
    r.tensors = tensors;
    measure(&r);
    if (experts && !m)
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: no experts to list: %s", path, r.why_not);
    if (experts)
        TRY(digest_experts(&r, err));
    if (json)
        print_json(&r);
    else
        print_text(&r);
done:
    xp_ids_free(&r.ids);
    cor_free(r.digests);
    cor_free(r.row_digests);
    mdl_close(m);
    mdl_gguf_close(g);
    return st == VKMOE_OK ? CLI_GOOD : cli_error(err);
}

const struct cli_cmd cli_inspect = {
    "inspect",
    "show what a GGUF file holds: sizes by part, formats, tokenizer",
    "[FILE] [--json] [--tensors] [--experts]",
    "  vkmoe inspect emo-nano-q8_0.gguf\n  vkmoe inspect --json --tensors emo-nano-q8_0.gguf\n",
    run,
};
