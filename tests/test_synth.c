/* Files of random weights: their shapes, values and tokenizer, the scalar reference on them, the same bytes
 * from the same seed, and what is left behind by failures. */
#include <math.h>
#include <stdio.h>

#include "model/ref.h"
#include "model/synth.h"
#include "support/cli.h"

static struct vkmoe_err err;

static struct mdl_synth_params small(const char *out, enum mdl_type type)
{
    struct mdl_synth_params p = {.out = out, .shape = *mdl_shape_find("emo-nano"), .type = type, .seed = 1};

    p.shape.config.n_layers = 2;
    p.shape.config.n_experts = 8;
    p.shape.config.n_experts_used = 2;
    p.shape.config.vocab_size = 320;
    p.shape.eos = 300;
    return p;
}

/* ---- shapes
 * ------------------------------------------------------------------------------------------------- */

static uint64_t parameters(const struct mdl_config *c)
{
    struct mdl_part parts[MDL_LAYER_PARTS];
    uint64_t sum = 0;

    mdl_layer_parts(parts, c, 0);
    for (size_t k = 0; k < MDL_LAYER_PARTS; k++)
        sum += !parts[k].name ? 0 : parts[k].dims[0] * parts[k].dims[1] * parts[k].dims[2];
    return sum * c->n_layers + 2 * (uint64_t)c->vocab_size * c->dim + c->dim;
}

/* docs/DESIGN.md, section 12, less the dead router rows of the shared experts, and the data card of emo-nano.
 */
static void test_shapes(void **state)
{
    const struct mdl_shape *big = mdl_shape_find("emo-1b14b"), *nano = mdl_shape_find("emo-nano");
    struct mdl_model *m;

    (void)state;
    assert_non_null(big);
    assert_non_null(nano);
    assert_null(mdl_shape_find("emo"));
    assert_int_equal(parameters(&big->config), 13568641024u - 16 * 2048);
    assert_int_equal(parameters(&nano->config), 22644480);
    test_ok(mdl_open(&m, test_source("models/emo-nano.gguf"), &err), &err);
    assert_memory_equal(&m->config, &nano->config, sizeof(m->config));
    assert_int_equal(mdl_token_eos(m->tok), nano->eos);
    mdl_close(m);
}

/* The keys of every shape say all of it. */
static void test_every_shape(void **state)
{
    const char *path = cli_path(test_tmp(), "x.gguf");
    const struct mdl_shape *s;

    (void)state;
    for (size_t i = 0; (s = mdl_shape_at(i)) != NULL; i++) {
        const struct mdl_synth_params p = {.out = path, .shape = *s, .type = MDL_F32, .seed = 1};
        struct mdl_config want = s->config;
        struct mdl_model *m;

        if (strncmp(s->name, "tiny-", 5)) /* large */
            continue;
        test_ok(mdl_synth(&p, &err), &err);
        test_ok(mdl_open(&m, path, &err), &err);
        assert_true(cor_file_size(m->gguf->file) < 3u << 20);
        assert_int_equal(m->head == m->embed, s->tied);
        assert_int_equal(m->rope_factors != NULL, s->rope_factors);
        if (want.rope_scaling.yarn && !want.rope_scaling.attn_factor)
            want.rope_scaling.attn_factor = 1; /* as it is read */
        if (memcmp(&m->config, &want, sizeof(want)) != 0)
            fail_msg("%s is not read as it was meant", s->name);
        mdl_close(m);
    }
}

static void test_impossible(void **state)
{
    const char *dir = test_tmp();
    struct mdl_synth_params p = small(cli_path(dir, "x.gguf"), MDL_Q4_0);

    (void)state;
    p.shape.config.n_experts = 1;
    assert_int_equal(mdl_synth(&p, &err), VKMOE_ERR_ARGUMENT);
    p = small(p.out, MDL_Q4_0);
    p.shape.eos = 320;
    assert_int_equal(mdl_synth(&p, &err), VKMOE_ERR_ARGUMENT);
    p.shape.eos = 255;
    assert_int_equal(mdl_synth(&p, &err), VKMOE_ERR_ARGUMENT);
    p = small(p.out, MDL_Q4_0);
    p.shape.config.ff_expert = 40; /* no whole blocks */
    assert_int_equal(mdl_synth(&p, &err), VKMOE_ERR_ARGUMENT);
    cli_check_empty(dir);
}

/* ---- values
 * ------------------------------------------------------------------------------------------------- */

static void check_tensor(const struct mdl_gguf *g, const struct mdl_tensor *t, double rms)
{
    uint64_t cols = t->dims[0], rows = t->dims[1] * t->dims[2], bytes = mdl_row_bytes(t->type, cols);
    double sum = 0, squares = 0, n = (double)(rows * cols), off;
    uint8_t raw[4096];
    float x[1024];

    assert_true(cols <= 1024);
    for (uint64_t r = 0; r < rows; r++) {
        test_ok(mdl_gguf_read(g, t, r * bytes, raw, (size_t)bytes, &err), &err);
        mdl_dequant_row(t->type, raw, x, cols);
        for (uint64_t i = 0; i < cols; i++) {
            assert_true(isfinite(x[i]));
            sum += x[i];
            squares += (double)x[i] * x[i];
        }
    }
    if (t->n_dims == 1) {
        assert_true(fabs(sum / n - 1) < 0.02);
        return;
    }
    off = fabs(sum / n) / rms;
    if (off > 5 / sqrt(n) + 0.01 || fabs(sqrt(squares / n) / rms - 1) > 0.05)
        fail_msg("%s: mean %g, rms %g where %g was meant", t->name, sum / n, sqrt(squares / n), rms);
}

static void test_values(void **state)
{
    static const enum mdl_type types[] = {
#define MDL_X(id, value, name, elems, bytes, file) id,
        MDL_TYPE_LIST(MDL_X)
#undef MDL_X
    };
    struct mdl_synth_params p = small(cli_path(test_tmp(), "x.gguf"), MDL_F32);
    struct mdl_model *m;

    (void)state;
    p.shape.config.ff_expert = 256; /* one of the larger blocks */
    for (size_t k = 0; k < COR_COUNT(types); k++) {
        p.type = types[k];
        test_ok(mdl_synth(&p, &err), &err);
        test_ok(mdl_open(&m, p.out, &err), &err);
        assert_memory_equal(&m->config, &p.shape.config, sizeof(m->config));
        for (uint64_t i = 0; i < m->gguf->n_tensors; i++) {
            const struct mdl_tensor *t = &m->gguf->tensors[i];
            bool router = strstr(t->name, "gate_inp") != NULL;

            assert_int_equal(t->type, router || t->n_dims == 1 ? MDL_F32 : types[k]);
            check_tensor(m->gguf, t, t == m->embed ? 1 : (router ? 2 : 1) / sqrt((double)t->dims[0]));
        }
        mdl_close(m);
    }
}

static void test_tokenizer(void **state)
{
    struct mdl_synth_params p = small(cli_path(test_tmp(), "x.gguf"), MDL_Q8_0);
    char all[256];
    struct mdl_model *m;
    const char *bytes;
    int32_t *ids;
    size_t n;

    (void)state;
    test_ok(mdl_synth(&p, &err), &err);
    test_ok(mdl_open(&m, p.out, &err), &err);
    for (int b = 0; b < 256; b++)
        all[b] = (char)b;
    test_ok(mdl_encode(m->tok, all, sizeof(all), true, &ids, &n, &err), &err);
    assert_int_equal(n, 256);
    for (int b = 0; b < 256; b++)
        assert_int_equal(ids[b], b);
    cor_free(ids);
    assert_int_equal(mdl_token_bytes(m->tok, 256, &bytes), 7); /* a blank and three syllables */
    assert_memory_equal(bytes, " bababa", 7);
    assert_int_equal(mdl_token_eos(m->tok), 300);
    assert_true(mdl_token_is_end(m->tok, 300));
    assert_int_equal(mdl_token_bytes(m->tok, 301, &bytes), 0);
    mdl_close(m);
}

/* ---- use
 * ---------------------------------------------------------------------------------------------------- */

/* Hundreds of tokens: finite logits, every expert used, none by all. */
static void check_decode(enum mdl_type type)
{
    enum { N = 300, LAYERS = 3, EXPERTS = 32, USED = 4 };
    struct mdl_synth_params p = small(cli_path(test_tmp(), "x.gguf"), type);
    const struct mdl_ref_params rp = {.n_ctx = N};
    struct mdl_ref_route routes[LAYERS];
    uint32_t used[LAYERS][EXPERTS] = {{0}}, best = 0;
    uint64_t rng = test_seed();
    float logits[320];
    struct mdl_model *m;
    struct mdl_ref *ref;

    if (mdl_type_find((uint32_t)type)->block_elems == 256)
        p.shape.config.ff_expert = 256;
    p.shape.config.n_layers = LAYERS;
    p.shape.config.n_experts = EXPERTS;
    p.shape.config.n_experts_used = USED;
    test_ok(mdl_synth(&p, &err), &err);
    test_ok(mdl_open(&m, p.out, &err), &err);
    test_ok(mdl_ref_create(&ref, m, &rp, &err), &err);
    for (uint32_t t = 0; t < N; t++) { /* half of them greedy, as a run would be */
        int32_t token = (int32_t)(t % 2 ? best : (uint32_t)(test_rand(&rng) % 300));

        test_ok(mdl_ref_feed(ref, token, logits, routes, &err), &err);
        best = 0;
        for (uint32_t i = 0; i < 300; i++)
            best = logits[i] > logits[best] ? i : best;
        assert_true(fabsf(logits[best]) < 50);
        for (uint32_t l = 0; l < LAYERS; l++)
            for (uint32_t k = 0; k < USED; k++)
                used[l][routes[l].ids[k]]++;
    }
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < EXPERTS; e++)
            if (used[l][e] < 2 || used[l][e] > N * 2 / 3)
                fail_msg("layer %u: expert %u is used by %u of %u tokens", l, e, used[l][e], (unsigned)N);
    mdl_ref_destroy(ref);
    mdl_close(m);
}

static void test_decode(void **state)
{
    (void)state;
    check_decode(MDL_Q4_0);
    check_decode(MDL_Q4_K);
    check_decode(MDL_MXFP4);
}

/* FNV-1a of everything behind the header, which names the version. */
static uint64_t hash(const struct mdl_synth_params *p)
{
    struct mdl_gguf *g;
    uint64_t h = 0xcbf29ce484222325u, off;
    char *data;
    size_t n;

    test_ok(mdl_synth(p, &err), &err);
    test_ok(mdl_gguf_open(&g, p->out, &err), &err);
    off = g->data_off;
    mdl_gguf_close(g);
    test_ok(cor_file_slurp(p->out, 1 << 28, &data, &n, &err), &err);
    for (size_t i = (size_t)off; i < n; i++)
        h = (h ^ (uint8_t)data[i]) * 0x100000001b3u;
    cor_free(data);
    return h;
}

/* On every machine and with every compiler: the figures are part of what --seed promises. */
static void test_same_bytes(void **state)
{
    static const struct {
        const char *type; /* or mix */
        uint64_t hash;
    } cases[] = {
        {"q4_0", 0x1f8a931f01eb4652},   {"q8_0", 0x31f4779af893b665},   {"f16", 0x6df0fcec893bd099},
        {"q4_k_m", 0x68234da79c345b97}, {"q2_k", 0x224fab48657f9304},   {"q3_k", 0xf4e41bbd928280da},
        {"q5_k", 0x8f0ac0e074f9ac7c},   {"q6_k", 0xf12030bf27e0e3ff},   {"q4_1", 0x60a851ec1b378be8},
        {"q5_0", 0xb148f2a293e2c7b3},   {"iq4_nl", 0x321efa70e8bb6cac}, {"mxfp4", 0x32240be312de6d85}};
    struct mdl_recipe recipe;
    struct mdl_synth_params p = small(cli_path(test_tmp(), "x.gguf"), MDL_F32);

    (void)state;
    for (size_t i = 0; i < COR_COUNT(cases); i++) {
        uint64_t h;

        assert_true(mdl_recipe_parse(&recipe, cases[i].type));
        p.recipe = &recipe;
        p.seed = 1;
        h = hash(&p);
        if (h != cases[i].hash)
            fail_msg("%s: the bytes hash to 0x%016llx", cases[i].type, (unsigned long long)h);
        p.seed = 2;
        assert_true(hash(&p) != h);
    }
}

/* ---- failures
 * ----------------------------------------------------------------------------------------------- */

static void test_every_failure(void **state)
{
    const char *dir = test_tmp();
    struct mdl_synth_params p = small(cli_path(dir, "x.gguf"), MDL_Q4_0);
    long live = cor_alloc_live();

    (void)state;
    p.shape.config.n_layers = 1;
    for (int way = 0; way < 2; way++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            assert_true(nth < 1000);
            (way ? cor_os_fail_from : cor_alloc_fail_from)(nth);
            st = mdl_synth(&p, &err);
            cor_os_fail_from(0);
            cor_alloc_fail_from(0);
            assert_int_equal(cor_alloc_live(), live);
            if (st != VKMOE_OK)
                cli_check_empty(dir);
        }
        remove(p.out);
    }
}

static void test_program(void **state)
{
    const char *dir = test_tmp(), *out = cli_path(dir, "x.gguf");
    struct cli_result r;
    char *a, *b;
    size_t n, m;

    (void)state;
    cli_good(&r, "synth", "--shape", "emo-nano", "-o", out, "--layers", "1", "--experts", "6", "--seed", "7");
    assert_string_equal(r.out, "");
    assert_string_equal(r.err, "");
    cli_result_free(&r);
    test_ok(cor_file_slurp(out, 1 << 24, &a, &n, &err), &err);
    cli_good(&r, "synth", "--shape=emo-nano", "-o", out, "--layers=1", "--experts=6", "-s", "7", "--type",
             "Q4_0");
    cli_result_free(&r);
    test_ok(cor_file_slurp(out, 1 << 24, &b, &m, &err), &err);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n);
    cor_free(a);
    cor_free(b);
    remove(out);
    cli_check_empty(dir);
    cli_bad(2, "emo-1b14b", "synth", "-o", out);
    cli_bad(2, "'emo' is not one of emo-1b14b, emo-nano", "synth", "--shape", "emo", "-o", out);
    cli_bad(2, "q9", "synth", "--shape", "emo-nano", "--type", "q9", "-o", out);
    cli_bad(2, "5 routed experts", "synth", "--shape", "emo-nano", "--experts", "4", "-o", out);
    cli_bad(2, "--layers", "synth", "--shape", "emo-nano", "--layers", "0", "-o", out);
    cli_bad(1, "none", "synth", "--shape", "emo-nano", "-o", cli_path(dir, "none/x.gguf"));
    cli_bad(1, "/dev/full", "synth", "--shape", "emo-nano", "-o", "/dev/full");
    cli_bad_(
        1, "x.gguf",
        &(const struct cli_call){.args = {"synth", "--shape", "emo-nano", "-o", out}, .file_limit = 1 << 20});
    cli_check_empty(dir);
}

/* The large shape: seconds to write, so that the signal comes in time. */
static void test_interrupt(void **state)
{
    const char *dir = test_tmp();
    struct cli_result r;

    (void)state;
    cli_call(
        &r, &(const struct cli_call){.args = {"synth", "--shape", "emo-1b14b", "-o", cli_path(dir, "x.gguf")},
                                     .interrupt_dir = dir});
    cli_check_bad(&r, 1, "interrupted", "synth, interrupted");
    cli_check_empty(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),     cmocka_unit_test(test_every_shape),
        cmocka_unit_test(test_impossible), cmocka_unit_test(test_values),
        cmocka_unit_test(test_tokenizer),  cmocka_unit_test(test_decode),
        cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_every_failure),
        cmocka_unit_test(test_program),    cmocka_unit_test(test_interrupt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
