/* Facts of a model file for rows of a benchmark: size, type, digest, bytes that a token reads. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/bench.h"
#include "core/alloc.h"
#include "model/model.h"
#include "bench/shapes.h"

enum { PIECES = 64, PIECE_BYTES = 1 << 16 };

/* Size and PIECES pieces at equal distances: a file of many gigabytes is told from another at once. */
static enum vkmoe_status add_file(struct cor_sha256 *h, struct cor_file *f, unsigned char *piece,
                                  struct vkmoe_err *err)
{
    uint64_t size = cor_file_size(f), step = size > PIECE_BYTES ? (size - PIECE_BYTES) / (PIECES - 1) : 0;
    size_t n = (size_t)(size < PIECE_BYTES ? size : PIECE_BYTES);
    enum vkmoe_status st = VKMOE_OK;
    unsigned char le[8];

    for (int i = 0; i < 8; i++)
        le[i] = (unsigned char)(size >> 8 * i);
    cor_sha256_add(h, le, sizeof(le));
    for (uint64_t i = 0; i < PIECES; i++) {
        TRY(cor_file_read(f, i * step, piece, n, err));
        cor_sha256_add(h, piece, n);
    }
done:
    return st;
}

static enum vkmoe_status digest(struct bench_model *m, const struct mdl_gguf *g, struct vkmoe_err *err)
{
    unsigned char *piece = cor_alloc(PIECE_BYTES);
    enum vkmoe_status st = VKMOE_OK;
    struct cor_sha256 h;

    if (!piece)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for a digest", m->path);
    cor_sha256_begin(&h);
    for (uint32_t i = 0; i < g->n_files; i++)
        TRY(add_file(&h, g->files[i], piece, err));
    cor_sha256_end_hex(&h, m->digest);
done:
    cor_free(piece);
    return st;
}

static uint64_t elements(const struct mdl_tensor *t)
{
    return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
}

static uint64_t expert_bytes(const struct mdl_layer *l)
{
    const struct mdl_tensor *tensors[MDL_EXPERT_PARTS];
    uint64_t bytes[MDL_EXPERT_PARTS], sum = 0;

    mdl_expert_parts(l, tensors, bytes);
    for (int i = 0; i < MDL_EXPERT_PARTS; i++)
        sum += bytes[i];
    return sum;
}

/* As `vkmoe inspect` counts what is active, and the one row of the embedding. */
static uint64_t weight_bytes(const struct mdl_model *mdl)
{
    const struct mdl_config *c = &mdl->config;
    uint64_t bytes = mdl->embed->bytes / mdl->embed->dims[1];

    for (uint64_t i = 0; i < mdl->gguf->n_tensors; i++)
        if (&mdl->gguf->tensors[i] != mdl->embed || mdl->embed == mdl->head)
            bytes += mdl->gguf->tensors[i].bytes;
    for (uint32_t l = 0; l < c->n_layers; l++) {
        uint32_t n = mdl_expert_count(mdl, l), used = n < c->n_experts_used ? n : c->n_experts_used;

        bytes -= (n - used) * expert_bytes(&mdl->layers[l]);
    }
    return bytes;
}

/* llama-bench's "architecture size format"; the format is mdl_main_matrix's. */
static void name_type(struct bench_model *m, const struct mdl_model *mdl)
{
    const struct mdl_type_info *info = mdl_type_find(mdl_main_matrix(mdl)->gguf_type);
    char format[32];

    snprintf(format, sizeof(format), "%s", info ? info->name : "?");
    for (char *p = format; *p; p++)
        if (*p >= 'a' && *p <= 'z')
            *p = (char)(*p - 'a' + 'A');
    if (m->params >= 100000000)
        snprintf(m->type, sizeof(m->type), "%s %.2fB %s", mdl->config.arch, (double)m->params * 1e-9, format);
    else
        snprintf(m->type, sizeof(m->type), "%s %.2fM %s", mdl->config.arch, (double)m->params * 1e-6, format);
}

/* type: as -ctk and -ctv name it. */
static uint64_t cache_bytes(const char *type, uint64_t n)
{
    return bench_cache_bytes((uint32_t)mdl_type_by_name(type)->type, n);
}

void bench_bytes(const struct cli_engine *e, const struct bench_model *m, double pos, double *weights,
                 double *cache)
{
    *weights = (double)m->weight_bytes;
    *cache = (pos + 1) * (double)(cache_bytes(e->kv_k, m->cache_row_elems) +
                                  cache_bytes(e->kv_v, m->cache_row_elems));
}

enum vkmoe_status bench_model_read(struct bench_model *m, const char *path, struct vkmoe_err *err)
{
    struct mdl_model *mdl = NULL;
    const struct mdl_config *c;
    enum vkmoe_status st = VKMOE_OK;

    memset(m, 0, sizeof(*m));
    snprintf(m->path, sizeof(m->path), "%s", path);
    TRY(mdl_open(&mdl, path, err));
    c = &mdl->config;
    for (uint64_t i = 0; i < mdl->gguf->n_tensors; i++) {
        m->bytes += mdl->gguf->tensors[i].bytes;
        m->params += elements(&mdl->gguf->tensors[i]);
    }
    m->n_layers = c->n_layers;
    m->weight_bytes = weight_bytes(mdl);
    m->cache_row_elems = (uint64_t)c->n_layers * c->n_kv_heads * c->head_dim;
    name_type(m, mdl);
    TRY(digest(m, mdl->gguf, err));
done:
    mdl_close(mdl);
    return st;
}
