/* Rows of `vkmoe bench` as Markdown, CSV and JSON: llama-bench's columns and keys, and ours beside them. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/bench.h"
#include "core/os.h"

#define GIB(bytes) ((double)(bytes) / (1 << 30))
#define MIB(bytes) ((double)(bytes) / (1 << 20))

/* ---- what a row says ---- */

static uint32_t n_tokens(const struct bench_row *r)
{
    return r->test.n_prompt + r->test.n_gen;
}

static double per_second(const struct bench_row *r, uint64_t ns)
{
    return ns ? n_tokens(r) * 1e9 / (double)ns : 0;
}

struct spread {
    double mean, dev; /* of a sample; 0 for one value */
};

static struct spread spread(const struct bench_row *r, bool speed)
{
    struct spread s = {0, 0};

    for (uint32_t i = 0; i < r->n; i++)
        s.mean += (speed ? per_second(r, r->ns[i]) : (double)r->ns[i]) / r->n;
    for (uint32_t i = 0; i < r->n && r->n > 1; i++) {
        double d = (speed ? per_second(r, r->ns[i]) : (double)r->ns[i]) - s.mean;

        s.dev += d * d / (r->n - 1);
    }
    s.dev = sqrt(s.dev);
    return s;
}

/* Weights and cache that decoding read, in GB/s. */
static double gbs(const struct bench_row *r)
{
    return (r->weight_bytes + r->cache_bytes) * spread(r, true).mean * 1e-9;
}

/* ---- keys and values, three ways ---- */

struct keys {
    enum { NAMES, VALUES, JSON } how; /* the first two are CSV's */
    bool some;
};

static void key(struct keys *k, const char *name)
{
    if (k->some)
        printf(k->how == JSON ? ", " : ",");
    k->some = true;
    if (k->how != VALUES)
        printf(k->how == JSON ? "\"%s\": " : "%s", name);
}

static void string(struct keys *k, const char *name, const char *s)
{
    key(k, name);
    if (k->how == JSON)
        cli_json_string(s, strlen(s));
    if (k->how != VALUES)
        return;
    putchar('"');
    for (; *s; s++)
        printf(*s == '"' ? "\"\"" : "%c", *s);
    putchar('"');
}

static void whole(struct keys *k, const char *name, uint64_t v)
{
    key(k, name);
    if (k->how != NAMES)
        printf(k->how == JSON ? "%" PRIu64 : "\"%" PRIu64 "\"", v);
}

static void number(struct keys *k, const char *name, double v)
{
    key(k, name);
    if (k->how == JSON)
        printf(isfinite(v) ? "%.9g" : "null", v);
    else if (k->how == VALUES)
        printf(isfinite(v) ? "\"%.9g\"" : "\"\"", v);
}

static void truth(struct keys *k, const char *name, bool v)
{
    key(k, name);
    if (k->how != NAMES)
        printf(k->how == JSON ? "%s" : "\"%s\"", v ? "true" : "false");
}

static void samples(struct keys *k, const struct bench_row *r)
{
    printf(", \"samples_ns\": [");
    for (uint32_t i = 0; i < r->n; i++)
        printf("%s%" PRIu64, i ? ", " : "", r->ns[i]);
    printf("], \"samples_ts\": [");
    for (uint32_t i = 0; i < r->n; i++)
        printf("%s%.9g", i ? ", " : "", per_second(r, r->ns[i]));
    putchar(']');
    (void)k;
}

/* The keys of llama-bench; null: it means nothing here. */
static void theirs(struct keys *k, const struct bench_head *h, const struct bench_model *m,
                   const struct bench_row *r)
{
    const struct vkmoe_device_info *d = vkmoe_device_facts(h->e->dev);
    const struct spread ns = spread(r, false), ts = spread(r, true);

    string(k, "build_commit", VKMOE_BUILD_COMMIT);
    number(k, "build_number", NAN);
    string(k, "cpu_info", h->cpu);
    string(k, "gpu_info", d->name);
    string(k, "backends", "Vulkan");
    string(k, "model_filename", m->path);
    string(k, "model_type", m->type);
    whole(k, "model_size", m->bytes);
    whole(k, "model_n_params", m->params);
    whole(k, "n_batch", vkmoe_session_n_chunk(h->e->ses));
    whole(k, "n_ubatch", vkmoe_session_n_chunk(h->e->ses));
    number(k, "n_threads", NAN);
    string(k, "type_k", h->e->kv_k);
    string(k, "type_v", h->e->kv_v);
    whole(k, "n_gpu_layers", m->n_layers);
    number(k, "n_cpu_moe", NAN);
    number(k, "flash_attn", NAN);
    string(k, "devices", d->name);
    whole(k, "n_prompt", r->test.n_prompt);
    whole(k, "n_gen", r->test.n_gen);
    whole(k, "n_depth", r->test.n_depth);
    string(k, "test_time", r->time);
    number(k, "avg_ns", round(ns.mean));
    number(k, "stddev_ns", round(ns.dev));
    number(k, "avg_ts", ts.mean);
    number(k, "stddev_ts", ts.dev);
}

static void ours(struct keys *k, const struct bench_head *h, const struct bench_model *m,
                 const struct bench_text *t, const struct bench_row *r)
{
    const struct vkmoe_device_info *d = vkmoe_device_facts(h->e->dev);
    char name[BENCH_NAME];

    string(k, "test", bench_test_name(name, &r->test));
    string(k, "vkmoe_version", vkmoe_version());
    string(k, "driver", d->driver);
    string(k, "driver_version", d->driver_version);
    string(k, "model_digest", m->digest);
    string(k, "text", t->name);
    truth(k, "synthetic", t->synthetic);
    whole(k, "text_tokens", t->n);
    truth(k, "text_wrapped", r->wrapped);
    truth(k, "fast_math", h->fast_math);
    string(k, "variants", h->variants);
    string(k, "variant_list", vkmoe_device_variants(h->e->dev, NULL));
    string(k, "pool", h->pool ? h->pool : "auto");
    string(k, "experts", h->e->experts ? h->e->experts : "all");
    string(k, "caps", h->e->caps ? h->e->caps : "");
    whole(k, "n_ctx", vkmoe_session_n_ctx(h->e->ses));
    number(k, "hit_rate", r->hit_rate);
    number(k, "uploaded_bytes_per_token", r->uploaded_bytes);
    number(k, "bytes_per_token", r->weight_bytes + r->cache_bytes);
    number(k, "weight_bytes_per_token", r->weight_bytes);
    number(k, "cache_bytes_per_token", r->cache_bytes);
    number(k, "gb_per_second", gbs(r));
    number(k, "read_gb_per_second", h->read_gbs);
    number(k, "share_of_read", gbs(r) / h->read_gbs);
}

/* ---- Markdown ---- */

/* A file name in a cell: no bar ends it. */
static void cell(const char *s)
{
    printf("| ");
    for (; *s; s++)
        printf(*s == '|' ? "\\|" : "%c", *s);
    putchar(' ');
}

static const char *or_dash(char text[CLI_NUMBER], double v, int digits)
{
    return cli_number(text, isfinite(v) ? v : -1, digits);
}

/* Columns that differ from what is usual are there only then. */
static bool cache_unusual(const struct bench_head *h)
{
    return strcmp(h->e->kv_k, "f16") || strcmp(h->e->kv_v, "f16");
}

static void begin_md(const struct bench_head *h)
{
    printf(
        "| model | size | params | backend | ngl |%s math | test | t/s | MiB/token | GB/s | of read | hits "
        "| up MiB/token |\n",
        cache_unusual(h) ? " type_k | type_v |" : "");
    printf("| --- | ---: | ---: | --- | ---: |%s --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
           cache_unusual(h) ? " ---: | ---: |" : "");
}

static void row_md(const struct bench_head *h, const struct bench_model *m, const struct bench_row *r)
{
    const struct spread ts = spread(r, true);
    char name[BENCH_NAME], t[5][CLI_NUMBER];
    bool small = m->bytes < 1 << 30;

    cell(m->type);
    printf("| %.2f %s | %.2f %s | Vulkan | %" PRIu32 " | ", small ? MIB(m->bytes) : GIB(m->bytes),
           small ? "MiB" : "GiB", (double)m->params * (m->params < 1000000000 ? 1e-6 : 1e-9),
           m->params < 1000000000 ? "M" : "B", m->n_layers);
    if (cache_unusual(h))
        printf("%s | %s | ", h->e->kv_k, h->e->kv_v);
    printf("%s | %s | %.2f ± %.2f | %s | %s | %s%s | %s%s | %s |\n", h->fast_math ? "fast" : "exact",
           bench_test_name(name, &r->test), ts.mean, ts.dev,
           or_dash(t[0], MIB(r->weight_bytes + r->cache_bytes), 2), or_dash(t[1], gbs(r), 2),
           or_dash(t[2], 100 * gbs(r) / h->read_gbs, 1), isfinite(gbs(r) / h->read_gbs) ? " %" : "",
           or_dash(t[3], 100 * r->hit_rate, 1), isfinite(r->hit_rate) ? " %" : "",
           or_dash(t[4], MIB(r->uploaded_bytes), 2));
}

static void end_md(const struct bench_head *h, const struct bench_text *t, bool wrapped)
{
    char device[1024];

    cli_engine_device_line(h->e, device, sizeof(device));
    printf("\nbuild: %s (vkmoe %s)\ndevice: %s", VKMOE_BUILD_COMMIT, vkmoe_version(), device);
    if (isfinite(h->read_gbs))
        printf(h->read_given ? "; held against %.2f GB/s" : "; a shader reads %.2f GB/s", h->read_gbs);
    printf("\nkernels: %s variants (%s), %s mathematics\n", h->variants,
           vkmoe_device_variants(h->e->dev, NULL), h->fast_math ? "fast (--fast-math)" : "exact");
    if (t->synthetic)
        printf("tokens: pseudo-random (--synthetic): experts and hits are not those of real use\n");
    else if (!t->name[0])
        printf("tokens: ids of --tokens%s\n", wrapped ? ", repeated" : "");
    else
        printf("tokens: %s text, %s (%zu tokens)%s\n", t->bundled ? "the bundled" : "of the", t->name, t->n,
               wrapped ? ", read again from its beginning where it was too short" : "");
}

/* ---- rows ---- */

void bench_out_begin(const struct bench_head *h)
{
    if (!strcmp(h->format, "md"))
        begin_md(h);
    else if (!strcmp(h->format, "json"))
        putchar('[');
}

void bench_out_row(const struct bench_head *h, const struct bench_model *m, const struct bench_text *t,
                   const struct bench_row *r, bool first)
{
    struct keys k = {.how = NAMES};

    if (!strcmp(h->format, "md")) {
        row_md(h, m, r);
    } else if (!strcmp(h->format, "csv")) {
        if (first) {
            theirs(&k, h, m, r);
            ours(&k, h, m, t, r);
            putchar('\n');
        }
        k = (struct keys){.how = VALUES};
        theirs(&k, h, m, r);
        ours(&k, h, m, t, r);
        putchar('\n');
    } else {
        bool array = !strcmp(h->format, "json");

        k.how = JSON;
        printf(array ? (first ? "\n  {" : ",\n  {") : "{");
        theirs(&k, h, m, r);
        samples(&k, r);
        ours(&k, h, m, t, r);
        printf(array ? "}" : "}\n");
    }
    cli_stdout_good();
}

void bench_out_end(const struct bench_head *h, const struct bench_text *t, bool wrapped)
{
    if (!strcmp(h->format, "md"))
        end_md(h, t, wrapped);
    else if (!strcmp(h->format, "json"))
        printf("\n]\n");
}
