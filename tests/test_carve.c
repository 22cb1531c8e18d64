/* Carving, putting back, comparing: bytes of every expert, the scalar reference with a mask against the
 * carved file, refusals, and what failures leave behind. */
#include <stdio.h>

#include "experts/carve.h"
#include "experts/diff.h"
#include "experts/merge.h"
#include "model/json.h"
#include "model/ref.h"
#include "model/synth.h"
#include "support/cli.h"
#include "support/fault.h"

static struct vkmoe_err err;
static const char *dir;

static const char *file(const char *name)
{
    return cli_path(dir, name);
}

static int setup(void **state)
{
    (void)state;
    dir = test_tmp();
    return 0;
}

enum { LAYERS = 3, EXPERTS = 9, USED = 3 };

/* Three layers of nine routed experts and a shared one. */
static void make_full(const char *path, enum mdl_type type, uint64_t seed)
{
    struct mdl_synth_params p = {
        .out = path, .shape = *mdl_shape_find("emo-nano"), .type = type, .seed = seed};
    struct mdl_config *c = &p.shape.config;

    c->n_layers = LAYERS;
    c->dim = 64;
    c->n_heads = 2;
    c->n_kv_heads = 2;
    c->head_dim = 32;
    c->n_rot = 32;
    c->vocab_size = 288;
    c->n_experts = EXPERTS;
    c->n_experts_used = USED;
    c->ff_expert = 32;
    p.shape.eos = 280;
    test_ok(mdl_synth(&p, &err), &err);
}

/* keep: routed experts of each layer, picked at random. */
static void make_subset(struct xp_subset *s, uint32_t n_routed, const uint32_t keep[LAYERS], uint64_t *rng)
{
    test_ok(xp_subset_init(s, "emo-nano", LAYERS, n_routed, 1, "random", &err), &err);
    for (uint32_t l = 0; l < LAYERS; l++)
        while (xp_subset_count(s, l) < keep[l])
            xp_subset_set(s, l, (uint32_t)(test_rand(rng) % n_routed));
}

static enum vkmoe_status carve(const char *in, const struct xp_subset *s, const char *out, bool vkmoe_only,
                               struct xp_carve_result *r)
{
    return xp_carve(
        &(struct xp_carve_params){
            .model = in, .subset = s, .subset_name = "the-subset", .out = out, .vkmoe_only = vkmoe_only},
        r, &err);
}

static void must_say(enum vkmoe_status st, const char *says)
{
    if (st == VKMOE_OK)
        fail_msg("accepted, but should say '%s'", says);
    if (!strstr(err.message, says))
        fail_msg("'%s' does not say '%s'", err.message, says);
}

static void read_part(const struct mdl_model *m, uint32_t layer, int part, uint32_t e, uint8_t *dst)
{
    uint64_t n = xp_part_bytes(m, layer, part);

    if (xp_part(m, layer, part))
        test_ok(mdl_gguf_read(m->gguf, xp_part(m, layer, part), n * e, dst, (size_t)n, &err), &err);
}

/* Every byte of small is the right one of full. */
static void check_bytes(const char *full_path, const char *small_path, const struct xp_subset *s)
{
    static uint8_t x[1 << 17], y[1 << 17];
    struct mdl_model *full, *small;

    test_ok(mdl_open(&full, full_path, &err), &err);
    test_ok(mdl_open(&small, small_path, &err), &err);
    assert_int_equal(full->gguf->n_tensors, small->gguf->n_tensors);
    for (uint32_t l = 0; l < LAYERS; l++) {
        uint32_t to = 0;

        assert_int_equal(mdl_expert_count(small, l), xp_subset_count(s, l));
        for (uint32_t e = 0; e < mdl_expert_count(full, l); e++) {
            if (!xp_subset_has(s, l, e))
                continue;
            for (int part = 0; part < XP_PARTS; part++) {
                read_part(full, l, part, e, x);
                read_part(small, l, part, to, y);
                assert_memory_equal(x, y, (size_t)xp_part_bytes(full, l, part));
            }
            to++;
        }
        assert_int_equal(to, mdl_expert_count(small, l));
    }
    for (uint64_t i = 0; i < full->gguf->n_tensors; i++) {
        const struct mdl_tensor *a = &full->gguf->tensors[i], *b = &small->gguf->tensors[i];
        uint32_t layer;
        int part;

        assert_string_equal(a->name, b->name);
        if (xp_part_of(full, a, &layer, &part))
            continue;
        assert_true(a->bytes == b->bytes && a->bytes <= sizeof(x));
        test_ok(mdl_gguf_read(full->gguf, a, 0, x, (size_t)a->bytes, &err), &err);
        test_ok(mdl_gguf_read(small->gguf, b, 0, y, (size_t)a->bytes, &err), &err);
        assert_memory_equal(x, y, (size_t)a->bytes);
    }
    mdl_close(full);
    mdl_close(small);
}

/* Logits of both, bit for bit, over a few tokens. */
static void check_reference(const char *full_path, const uint32_t *mask, const char *small_path)
{
    struct mdl_ref_params p = {.n_ctx = 8};
    struct mdl_ref_route a_routes[LAYERS], b_routes[LAYERS];
    static float a_logits[288], b_logits[288];
    struct mdl_model *full, *small;
    struct mdl_ref *a, *b;
    struct xp_ids ids;

    test_ok(mdl_open(&full, full_path, &err), &err);
    test_ok(mdl_open(&small, small_path, &err), &err);
    test_ok(xp_ids_read(&ids, small, &err), &err);
    test_ok(mdl_ref_create(&b, small, &p, &err), &err);
    p.allowed = mask;
    test_ok(mdl_ref_create(&a, full, &p, &err), &err);
    for (int32_t t = 0; t < 8; t++) {
        int32_t token = t * 37 % 256;

        test_ok(mdl_ref_feed(a, token, a_logits, a_routes, &err), &err);
        test_ok(mdl_ref_feed(b, token, b_logits, b_routes, &err), &err);
        assert_memory_equal(a_logits, b_logits, sizeof(a_logits));
        for (uint32_t l = 0; l < LAYERS; l++) {
            assert_int_equal(a_routes[l].n, b_routes[l].n);
            for (uint32_t i = 0; i < a_routes[l].n; i++)
                assert_int_equal(a_routes[l].ids[i], xp_ids_original(&ids, l, b_routes[l].ids[i]));
        }
    }
    xp_ids_free(&ids);
    mdl_ref_destroy(a);
    mdl_ref_destroy(b);
    mdl_close(full);
    mdl_close(small);
}

/* ---- carve
 * --------------------------------------------------------------------------------------------------- */

static void every_format_and_size(void **state)
{
    static const enum mdl_type types[] = {MDL_F32, MDL_F16, MDL_BF16, MDL_Q8_0, MDL_Q4_0};
    static const struct {
        uint32_t keep[LAYERS];
        uint32_t n_used;
    } cases[] = {
        {{4, 4, 4}, 3}, {{3, 3, 3}, 3}, {{2, 2, 2}, 2} /* top-k falls */, {{1, 1, 1}, 1}, {{9, 9, 9}, 3},
        {{5, 2, 9}, 3}, {{1, 2, 2}, 2},
    };
    uint64_t rng = test_seed();

    (void)state;
    for (size_t t = 0; t < COR_COUNT(types); t++) {
        make_full(file("full.gguf"), types[t], 7 + t);
        for (size_t i = 0; i < COR_COUNT(cases); i++) {
            const uint32_t *keep = cases[i].keep;
            bool equal = keep[0] == keep[1] && keep[1] == keep[2];
            struct xp_carve_result r;
            struct xp_subset s, back;

            make_subset(&s, EXPERTS, keep, &rng);
            if (!equal) {
                must_say(carve(file("full.gguf"), &s, file("small.gguf"), false, &r), "--vkmoe-only");
                must_say(VKMOE_ERR_ARGUMENT, keep[0] == 5 ? "9 in every layer" : "2 in every layer");
            }
            test_ok(carve(file("full.gguf"), &s, file("small.gguf"), !equal, &r), &err);
            assert_int_equal(r.n_used, cases[i].n_used);
            assert_string_equal(r.metadata, file("pruning_metadata.json"));
            check_bytes(file("full.gguf"), file("small.gguf"), &s);
            check_reference(file("full.gguf"), s.allowed, file("small.gguf"));
            /* Both files say which experts they are. */
            for (int k = 0; k < 2; k++) {
                test_ok(xp_subset_read(&back, k ? file("small.gguf") : r.metadata, &err), &err);
                assert_int_equal(back.n_routed, EXPERTS);
                assert_memory_equal(back.allowed, s.allowed, LAYERS * sizeof(*s.allowed));
                assert_string_equal(back.method, "random");
                assert_string_equal(back.model, "emo-nano");
                xp_subset_free(&back);
            }
            xp_subset_free(&s);
        }
    }
}

static void get_text(const struct mdl_gguf *g, const char *key, char dst[128])
{
    struct mdl_str s;

    test_ok(mdl_gguf_str(g, key, &s, &err), &err);
    assert_true(s.n < 128);
    memcpy(dst, s.p, (size_t)s.n);
    dst[s.n] = 0;
}

/* A file carved from a carved one names the experts and the digest of the first. */
static void chain(void **state)
{
    const uint32_t six[] = {6, 6, 6}, four[] = {4, 4, 4};
    char text[128], digest[COR_SHA256_HEX], mid_digest[COR_SHA256_HEX];
    struct xp_subset first, second, both, back;
    struct xp_carve_result r;
    uint64_t rng = test_seed();
    struct mdl_model *m, *mid;
    struct cor_file *f;
    struct xp_ids ids;
    uint32_t n;

    (void)state;
    make_full(file("full.gguf"), MDL_BF16, 1);
    make_subset(&first, EXPERTS, six, &rng);
    make_subset(&second, 6, four, &rng);
    cor_free(second.calibration);
    second.calibration = cor_strdup("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
    test_ok(carve(file("full.gguf"), &first, file("mid.gguf"), false, &r), &err);
    test_ok(cor_file_open(&f, file("full.gguf"), &err), &err);
    test_ok(cor_sha256_files(&f, 1, digest, NULL, NULL, &err), &err);
    cor_file_close(f);
    assert_string_equal(r.sha256, digest);
    test_ok(carve(file("mid.gguf"), &second, file("end.gguf"), false, &r), &err);
    memcpy(mid_digest, r.sha256, sizeof(mid_digest));
    test_ok(mdl_open(&mid, file("mid.gguf"), &err), &err);
    test_ok(xp_ids_read(&ids, mid, &err), &err);
    test_ok(xp_subset_init(&both, "", LAYERS, EXPERTS, 1, "", &err), &err);
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < 6; e++)
            if (xp_subset_has(&second, l, e))
                xp_subset_set(&both, l, xp_ids_original(&ids, l, e));
    xp_ids_free(&ids);
    mdl_close(mid);
    check_bytes(file("full.gguf"), file("end.gguf"), &both);
    test_ok(xp_subset_read(&back, file("end.gguf"), &err), &err);
    assert_memory_equal(back.allowed, both.allowed, LAYERS * sizeof(*both.allowed));
    xp_subset_free(&back);
    test_ok(mdl_open(&m, file("end.gguf"), &err), &err);
    get_text(m->gguf, "vkmoe.source.sha256", text);
    assert_string_equal(text, digest);
    get_text(m->gguf, "vkmoe.parent.sha256", text);
    assert_string_equal(text, mid_digest);
    get_text(m->gguf, "vkmoe.subset.calibration", text);
    assert_string_equal(text, second.calibration);
    get_text(m->gguf, "vkmoe.version", text);
    assert_string_equal(text, vkmoe_version());
    test_ok(mdl_gguf_u32(m->gguf, "vkmoe.source.expert_count", &n, &err), &err);
    assert_int_equal(n, EXPERTS);
    mdl_close(m);
    xp_subset_free(&first);
    xp_subset_free(&second);
    xp_subset_free(&both);
}

/* The official names, and which file they stand in. */
static void metadata(void **state)
{
    const uint32_t three[] = {3, 3, 3}, unequal[] = {3, 4, 3};
    char plain[4200];
    struct xp_carve_result r;
    struct xp_subset s;
    uint64_t rng = test_seed(), n;
    char path[XP_CARVE_PATH];
    const cJSON *list;
    cJSON *o;

    (void)state;
    snprintf(plain, sizeof(plain), "%s", file("pruning_metadata.json"));
    make_full(file("full.gguf"), MDL_F32, 3);
    make_subset(&s, EXPERTS, three, &rng);
    test_ok(carve(file("full.gguf"), &s, file("a.gguf"), false, &r), &err);
    assert_string_equal(r.metadata, plain);
    test_ok(mdl_json_load(&o, plain, 1 << 20, &err), &err);
    assert_string_equal(cli_get(o, "original_model")->valuestring, "emo-nano");
    assert_true(mdl_json_u64(cli_get(o, "prune_keep_k"), 100, &n) && n == 4);
    assert_true(mdl_json_u64(cli_get(o, "num_shared_experts"), 100, &n) && n == 1);
    list = cli_get(o, "experts_kept_per_layer");
    assert_int_equal(cJSON_GetArraySize(list), LAYERS);
    for (int l = 0; l < LAYERS; l++) {
        const cJSON *ids = cJSON_GetArrayItem(list, l);

        assert_int_equal(cJSON_GetArraySize(ids), 4);
        for (int i = 0; i < 3; i++)
            assert_true(xp_subset_has(&s, (uint32_t)l, (uint32_t)cJSON_GetArrayItem(ids, i)->valueint));
        assert_int_equal(cJSON_GetArrayItem(ids, 3)->valueint, EXPERTS); /* the shared one, last */
    }
    cJSON_Delete(o);
    /* The same file again: the same place. Another: beside it, under its own name, and there it stays. */
    test_ok(carve(file("full.gguf"), &s, file("a.gguf"), false, &r), &err);
    assert_string_equal(r.metadata, plain);
    test_ok(carve(file("full.gguf"), &s, file("b.gguf"), false, &r), &err);
    assert_string_equal(r.metadata, file("b.pruning_metadata.json"));
    cor_path_remove(plain);
    test_ok(xp_metadata_path(path, file("b.gguf"), &err), &err);
    assert_string_equal(path, file("b.pruning_metadata.json"));
    test_ok(xp_metadata_path(path, file("c"), &err), &err);
    assert_string_equal(path, plain);
    test_write(plain, "{]", 2); /* somebody else's */
    test_ok(xp_metadata_path(path, file("c"), &err), &err);
    assert_string_equal(path, file("c.pruning_metadata.json"));
    test_ok(xp_metadata_path(path, "x.gguf", &err), &err);
    assert_string_equal(path, "pruning_metadata.json");
    xp_subset_free(&s);
    make_subset(&s, EXPERTS, unequal, &rng);
    test_ok(carve(file("full.gguf"), &s, file("a.gguf"), true, &r), &err);
    assert_string_equal(r.metadata, file("a.pruning_metadata.json"));
    test_ok(mdl_json_load(&o, r.metadata, 1 << 20, &err), &err);
    assert_int_equal(cJSON_GetArrayItem(cli_get(o, "prune_keep_k"), 1)->valueint, 5);
    cJSON_Delete(o);
    xp_subset_free(&s);
    /* Devices have no place beside them. */
    make_subset(&s, EXPERTS, three, &rng);
    test_ok(carve(file("full.gguf"), &s, "/dev/null", false, &r), &err);
    assert_string_equal(r.metadata, "");
    xp_subset_free(&s);
}

static void refusals(void **state)
{
    const uint32_t three[] = {3, 3, 3};
    struct xp_carve_params p = {.model = file("full.gguf"), .out = file("small.gguf")};
    struct xp_carve_result r;
    struct xp_subset s;
    uint64_t rng = test_seed();

    (void)state;
    make_full(file("full.gguf"), MDL_Q8_0, 5);
    make_subset(&s, EXPERTS, three, &rng);
    p.subset = &s;
    p.subset_name = file("s.json");
    test_ok(xp_subset_write(&s, p.subset_name, &err), &err);
    p.out = file("full.gguf");
    must_say(xp_carve(&p, &r, &err), "is read");
    p.out = p.subset_name;
    must_say(xp_carve(&p, &r, &err), "is read");
    p.out = file("none/small.gguf");
    must_say(xp_carve(&p, &r, &err), "none/small.gguf");
    p.out = dir;
    must_say(xp_carve(&p, &r, &err), "directory");
    p.out = file("small.gguf");
    p.model = file("s.json");
    must_say(xp_carve(&p, &r, &err), "not a GGUF");
    p.model = file("full.gguf");
    xp_subset_free(&s);
    test_ok(xp_subset_init(&s, "", LAYERS, EXPERTS + 1, 1, "", &err), &err);
    must_say(xp_carve(&p, &r, &err), "another model");
    xp_subset_free(&s);
    test_ok(xp_subset_init(&s, "", LAYERS, EXPERTS, 1, "", &err), &err);
    must_say(xp_carve(&p, &r, &err), "keeps 0");
    xp_subset_free(&s);
    assert_false(cor_path_exists(file("small.gguf")));
    assert_false(cor_path_exists(file("pruning_metadata.json")));
    /* A file whose layers differ has no expert beyond a layer's own. */
    test_ok(xp_subset_init(&s, "", LAYERS, EXPERTS, 1, "", &err), &err);
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 0; e < 3 + l; e++)
            xp_subset_set(&s, l, e);
    test_ok(carve(file("full.gguf"), &s, file("unequal.gguf"), true, &r), &err);
    xp_subset_free(&s);
    test_ok(xp_subset_init(&s, "", LAYERS, 5, 1, "", &err), &err);
    for (uint32_t l = 0; l < LAYERS; l++)
        for (uint32_t e = 1; e < 5; e++)
            xp_subset_set(&s, l, e);
    must_say(carve(file("unequal.gguf"), &s, file("x.gguf"), true, &r), "no expert 3");
    xp_subset_free(&s);
}

/* Nothing is left of either file, whichever request fails. */
static void failures_of_carving(void **state)
{
    const uint32_t three[] = {3, 3, 3};
    uint64_t rng = test_seed();
    struct xp_subset s;
    long live;

    (void)state;
    make_full(file("full.gguf"), MDL_Q4_0, 5);
    make_subset(&s, EXPERTS, three, &rng);
    live = cor_alloc_live();
    for (int f = FAULT_ALLOC; f <= FAULT_FILE; f++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            const char *sub = file("out");
            struct xp_carve_result r;
            char path[4200];

            test_ok(cor_dir_make(sub, &err), &err);
            live = cor_alloc_live();
            snprintf(path, sizeof(path), "%s/small.gguf", sub);
            assert_true(nth < 3000);
            fault_arm((enum fault)f, nth);
            st = carve(file("full.gguf"), &s, path, false, &r);
            fault_arm((enum fault)f, 0);
            assert_int_equal(cor_alloc_live(), live);
            if (st == VKMOE_OK)
                break;
            assert_int_equal(st, fault_status((enum fault)f));
            cli_check_empty(sub);
        }
        cor_path_remove(file("out/small.gguf"));
        cor_path_remove(file("out/pruning_metadata.json"));
    }
    xp_subset_free(&s);
}

/* ---- merge-back and diff
 * ------------------------------------------------------------------------------------- */

static enum vkmoe_status merge(const char *full, const char *from, const char *out, bool dense, bool force,
                               struct xp_merge_result *r)
{
    return xp_merge_back(
        &(struct xp_merge_params){.full = full, .from = from, .out = out, .dense = dense, .force = force}, r,
        &err);
}

/* Open until diff_end: names in a result are theirs. */
static struct mdl_model *diff_a, *diff_b;

static void diff(struct xp_diff *d, const char *a, const char *b)
{
    test_ok(mdl_open(&diff_a, a, &err), &err);
    test_ok(mdl_open(&diff_b, b, &err), &err);
    test_ok(xp_diff(d, diff_a, diff_b, NULL, NULL, &err), &err);
}

static void diff_end(struct xp_diff *d)
{
    xp_diff_free(d);
    mdl_close(diff_a);
    mdl_close(diff_b);
}

static size_t count(const struct xp_diff *d, enum xp_diff_kind kind)
{
    size_t n = 0;

    for (size_t i = 0; i < d->n_experts; i++)
        n += d->experts[i].weights == kind;
    return n;
}

/* Changes one byte of a file. */
static void hurt(const char *path, uint64_t off)
{
    char *data;
    size_t n;

    test_ok(cor_file_slurp(path, 1 << 24, &data, &n, &err), &err);
    assert_true(off < n);
    data[off] ^= 1;
    test_write(path, data, n);
    cor_free(data);
}

static void unchanged_goes_back(void **state)
{
    static const uint32_t keeps[][LAYERS] = {{4, 4, 4}, {2, 5, 9}};
    static const enum mdl_type types[] = {MDL_BF16, MDL_Q4_0};
    uint64_t rng = test_seed();

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct xp_carve_result carved;
        struct xp_merge_result r;
        struct xp_subset s;
        struct xp_diff d;

        make_full(file("full.gguf"), types[i / 2], i);
        make_subset(&s, EXPERTS, keeps[i % 2], &rng);
        test_ok(carve(file("full.gguf"), &s, file("small.gguf"), true, &carved), &err);
        test_ok(merge(file("full.gguf"), file("small.gguf"), file("again.gguf"), i % 2, false, &r), &err);
        assert_int_equal(r.n_changed + r.n_rows_changed + r.n_dense_changed, 0);
        assert_int_equal(r.n_experts, keeps[i % 2][0] + keeps[i % 2][1] + keeps[i % 2][2]);
        diff(&d, file("full.gguf"), file("again.gguf"));
        assert_true(d.same);
        assert_int_equal(count(&d, XP_SAME), LAYERS * EXPERTS);
        diff_end(&d);
        diff(&d, file("full.gguf"), file("small.gguf"));
        assert_false(d.same);
        assert_int_equal(count(&d, XP_SAME), r.n_experts);
        assert_int_equal(count(&d, XP_ONLY_A), LAYERS * EXPERTS - r.n_experts);
        for (size_t k = 0; k < d.n_experts; k++)
            assert_int_equal(d.experts[k].weights == XP_SAME,
                             xp_subset_has(&s, d.experts[k].layer, d.experts[k].original));
        diff_end(&d);
        diff(&d, file("small.gguf"), file("full.gguf"));
        assert_int_equal(count(&d, XP_ONLY_B), LAYERS * EXPERTS - r.n_experts);
        diff_end(&d);
        xp_subset_free(&s);
    }
}

static void changed_goes_back(void **state)
{
    const uint32_t four[] = {4, 4, 4};
    uint64_t rng = test_seed(), off[3];
    struct xp_carve_result carved;
    struct xp_merge_result r;
    struct mdl_model *m;
    struct xp_subset s;
    struct xp_ids ids;
    struct xp_diff d;
    uint32_t expert, row;

    (void)state;
    make_full(file("full.gguf"), MDL_Q8_0, 2);
    make_subset(&s, EXPERTS, four, &rng);
    test_ok(carve(file("full.gguf"), &s, file("small.gguf"), false, &carved), &err);
    test_ok(mdl_open(&m, file("small.gguf"), &err), &err);
    test_ok(xp_ids_read(&ids, m, &err), &err);
    /* One expert of layer 1, one row of layer 2's router, one dense tensor. */
    off[0] = xp_part(m, 1, XP_DOWN)->file_off + xp_part_bytes(m, 1, XP_DOWN) * 2 + 7;
    off[1] = xp_part(m, 2, XP_GATE_INP)->file_off + xp_part_bytes(m, 2, XP_GATE_INP) * 3 + 9;
    off[2] = m->layers[0].q->file_off + 5;
    expert = xp_ids_original(&ids, 1, 2);
    row = xp_ids_original(&ids, 2, 3);
    xp_ids_free(&ids);
    mdl_close(m);
    for (int i = 0; i < 3; i++)
        hurt(file("small.gguf"), off[i]);
    for (int dense = 0; dense < 2; dense++) {
        test_ok(merge(file("full.gguf"), file("small.gguf"), file("new.gguf"), dense, false, &r), &err);
        assert_int_equal(r.n_changed, 1);
        assert_int_equal(r.n_rows_changed, 1);
        assert_int_equal(r.n_dense_changed, 1);
        diff(&d, file("full.gguf"), file("new.gguf"));
        assert_false(d.same);
        for (size_t i = 0; i < d.n_experts; i++) {
            const struct xp_diff_expert *e = &d.experts[i];

            assert_int_equal(e->weights, e->layer == 1 && e->original == expert ? XP_DIFFERS : XP_SAME);
            assert_int_equal(e->row, e->layer == 2 && e->original == row ? XP_DIFFERS : XP_SAME);
        }
        for (size_t i = 0; i < d.n_tensors; i++)
            assert_int_equal(d.tensors[i].kind, dense && !strcmp(d.tensors[i].name, "blk.0.attn_q.weight")
                                                    ? XP_DIFFERS
                                                    : XP_SAME);
        diff_end(&d);
        /* Carved again it is the changed file, but for what was left out. */
        diff(&d, file("small.gguf"), file("new.gguf"));
        assert_int_equal(count(&d, XP_DIFFERS), 0);
        assert_int_equal(count(&d, XP_ONLY_B), LAYERS * (EXPERTS - 4));
        diff_end(&d);
    }
    xp_subset_free(&s);
}

static void what_cannot_go_back(void **state)
{
    const uint32_t four[] = {4, 4, 4};
    uint64_t rng = test_seed();
    struct xp_carve_result carved;
    struct xp_merge_result r;
    struct xp_subset s;

    (void)state;
    make_full(file("full.gguf"), MDL_BF16, 2);
    make_full(file("other.gguf"), MDL_BF16, 3);
    make_full(file("f16.gguf"), MDL_F16, 2);
    make_subset(&s, EXPERTS, four, &rng);
    test_ok(carve(file("full.gguf"), &s, file("small.gguf"), false, &carved), &err);
    must_say(merge(file("full.gguf"), file("small.gguf"), file("small.gguf"), false, false, &r), "is read");
    must_say(merge(file("full.gguf"), file("small.gguf"), file("full.gguf"), false, false, &r), "is read");
    must_say(merge(file("full.gguf"), file("other.gguf"), file("x.gguf"), false, true, &r), "expert_ids");
    must_say(merge(file("small.gguf"), file("full.gguf"), file("x.gguf"), false, true, &r), "expert_ids");
    must_say(merge(file("f16.gguf"), file("small.gguf"), file("x.gguf"), false, true, &r), "is bf16");
    must_say(merge(file("other.gguf"), file("small.gguf"), file("x.gguf"), false, false, &r), "--force");
    assert_false(cor_path_exists(file("x.gguf")));
    test_ok(merge(file("other.gguf"), file("small.gguf"), file("x.gguf"), false, true, &r), &err);
    assert_int_equal(r.n_changed, 12);
    must_say(merge(test_source("models/emo-nano.gguf"), file("small.gguf"), file("x.gguf"), false, true, &r),
             "not of the same model");
    xp_subset_free(&s);
    /* Experts that the file it should go back to does not have. */
    make_subset(&s, 4, (const uint32_t[]){3, 3, 3}, &rng);
    test_ok(carve(file("small.gguf"), &s, file("smaller.gguf"), false, &carved), &err);
    test_ok(merge(file("small.gguf"), file("smaller.gguf"), file("y.gguf"), false, false, &r), &err);
    test_ok(merge(file("full.gguf"), file("smaller.gguf"), file("y.gguf"), false, false, &r), &err);
    must_say(merge(file("smaller.gguf"), file("small.gguf"), file("y.gguf"), false, true, &r), "is not in");
    xp_subset_free(&s);
}

static void failures_of_merging(void **state)
{
    const uint32_t four[] = {4, 4, 4};
    uint64_t rng = test_seed();
    struct xp_carve_result carved;
    struct xp_subset s;
    long live;

    (void)state;
    make_full(file("full.gguf"), MDL_Q4_0, 2);
    make_subset(&s, EXPERTS, four, &rng);
    test_ok(carve(file("full.gguf"), &s, file("small.gguf"), false, &carved), &err);
    test_ok(cor_dir_make(file("merged"), &err), &err);
    for (int f = FAULT_ALLOC; f <= FAULT_FILE; f++) {
        enum vkmoe_status st = VKMOE_ERR_IO;

        for (long nth = 1; st != VKMOE_OK; nth++) {
            const char *full = file("full.gguf"), *small = file("small.gguf"), *out = file("merged/x.gguf");
            struct xp_merge_result r;
            struct mdl_model *a = NULL, *b = NULL;
            struct xp_diff d = {0};
            bool merged;

            live = cor_alloc_live();
            assert_true(nth < 3000);
            fault_arm((enum fault)f, nth);
            st = merge(full, small, out, false, false, &r);
            merged = st == VKMOE_OK;
            if (st == VKMOE_OK)
                st = mdl_open(&a, full, &err);
            if (st == VKMOE_OK)
                st = mdl_open(&b, out, &err);
            if (st == VKMOE_OK)
                st = xp_diff(&d, a, b, NULL, NULL, &err);
            fault_arm((enum fault)f, 0);
            if (st != VKMOE_OK)
                assert_int_equal(st, fault_status((enum fault)f));
            xp_diff_free(&d);
            mdl_close(a);
            mdl_close(b);
            assert_int_equal(cor_alloc_live(), live);
            if (merged)
                cor_path_remove(out);
            else
                cli_check_empty(file("merged"));
        }
    }
    xp_subset_free(&s);
}

/* Flipped bits in the header of a carved file: an error line or a file, never more. */
static void damaged(void **state)
{
    const uint32_t three[] = {3, 3, 3};
    uint64_t rng = test_seed();
    struct xp_carve_result carved;
    struct xp_merge_result r;
    struct xp_subset s;
    struct mdl_model *m;
    uint64_t header;
    char *data;
    size_t n;

    (void)state;
    make_full(file("full.gguf"), MDL_Q4_0, 2);
    make_subset(&s, EXPERTS, three, &rng);
    test_ok(carve(file("full.gguf"), &s, file("small.gguf"), false, &carved), &err);
    test_ok(mdl_open(&m, file("small.gguf"), &err), &err);
    header = m->gguf->data_off;
    mdl_close(m);
    test_ok(cor_file_slurp(file("small.gguf"), 1 << 24, &data, &n, &err), &err);
    for (int i = 0; i < 300; i++) {
        uint64_t at = test_rand(&rng) % header;
        char bit = (char)(1 << (test_rand(&rng) % 8));

        data[at] ^= bit;
        test_write(file("hurt.gguf"), data, n);
        data[at] ^= bit;
        if (merge(file("full.gguf"), file("hurt.gguf"), file("x.gguf"), true, true, &r) != VKMOE_OK)
            assert_non_null(strstr(err.message, ".gguf"));
    }
    for (int i = 0; i < 40; i++) {
        test_write(file("hurt.gguf"), data, (size_t)(test_rand(&rng) % n));
        assert_int_not_equal(merge(file("full.gguf"), file("hurt.gguf"), file("x.gguf"), true, true, &r),
                             VKMOE_OK);
    }
    cor_free(data);
    xp_subset_free(&s);
}

/* The program: what is printed, and the exit status of every kind of wrong. */
static void program(void **state)
{
    const uint32_t three[] = {3, 3, 3};
    char full[4200], small[4200], again[4200];
    uint64_t rng = test_seed();
    struct cli_result r;
    struct xp_subset s;
    cJSON *o;

    (void)state;
    snprintf(full, sizeof(full), "%s", file("full.gguf"));
    snprintf(small, sizeof(small), "%s", file("small.gguf"));
    snprintf(again, sizeof(again), "%s", file("again.gguf"));
    make_full(full, MDL_BF16, 2);
    make_subset(&s, EXPERTS, three, &rng);
    test_ok(xp_subset_write(&s, file("s.json"), &err), &err);
    cli_good(&r, "experts", "carve", "-m", full, "--experts", file("s.json"), "-o", small, "--json");
    o = cli_json(&r);
    assert_string_equal(cli_get(o, "metadata")->valuestring, file("pruning_metadata.json"));
    assert_int_equal(cli_get(o, "kept_most")->valueint, 3);
    assert_int_equal(cli_get(o, "n_routed")->valueint, EXPERTS);
    assert_true(cor_sha256_is_hex(cli_get(o, "source_sha256")->valuestring));
    cJSON_Delete(o);
    cli_result_free(&r);
    cli_good(&r, "experts", "merge-back", "-m", full, "--from", small, "-o", again, "--json");
    o = cli_json(&r);
    assert_int_equal(cli_get(o, "experts")->valueint, 9);
    assert_int_equal(cli_get(o, "experts_changed")->valueint, 0);
    cJSON_Delete(o);
    cli_result_free(&r);
    cli_good(&r, "experts", "diff", full, again, "--json");
    o = cli_json(&r);
    assert_true(cJSON_IsTrue(cli_get(o, "same")));
    cJSON_Delete(o);
    cli_result_free(&r);
    cli_good(&r, "experts", "diff", full, small);
    assert_non_null(strstr(r.out, "9 the same, 0 different, 18 only in A, 0 only in B"));
    assert_non_null(strstr(r.out, "not the same weights"));
    cli_result_free(&r);
    cli_good(&r, "inspect", "--experts", small);
    assert_non_null(strstr(r.out, "SHA-256"));
    cli_result_free(&r);
    cli_good(&r, "inspect", "--experts", "--json", small);
    o = cli_json(&r);
    assert_int_equal(cJSON_GetArraySize(cli_get(o, "experts")), 9);
    assert_true(xp_subset_has(
        &s, 0, (uint32_t)cli_get(cJSON_GetArrayItem(cli_get(o, "experts"), 0), "original")->valueint));
    cJSON_Delete(o);
    cli_result_free(&r);
    cli_bad(2, "--experts", "experts", "carve", "-m", full, "-o", small);
    cli_bad(2, "-o FILE", "experts", "carve", "-m", full, "--experts", small);
    cli_bad(2, "is read", "experts", "carve", "-m", full, "--experts", file("s.json"), "-o", full);
    cli_bad(2, "another model", "experts", "carve", "--experts", file("s.json"), "-o", again);
    cli_bad(1, "none.json", "experts", "carve", "-m", full, "--experts", file("none.json"), "-o", again);
    cli_bad(2, "--from", "experts", "merge-back", "-m", full, "-o", again);
    cli_bad(2, "expert_ids", "experts", "merge-back", "-m", full, "--from", again, "-o", file("x"));
    cli_bad(2, "two GGUF files", "experts", "diff", full);
    cli_bad(2, "not of the same model", "experts", "diff", full, test_source("models/emo-nano.gguf"));
    cli_bad(1, "s.json", "inspect", "--experts", file("s.json"));
    xp_subset_free(&s);
}

/* A full disk and Ctrl-C leave nothing of either file. */
static void stopped(void **state)
{
    char out[4200], empty[4200], subset[4200];
    const char *bundled = test_source("models/emo-nano.gguf");
    struct cli_result r;
    struct xp_subset s;

    (void)state;
    snprintf(empty, sizeof(empty), "%s", file("out"));
    snprintf(out, sizeof(out), "%s", file("out/x.gguf"));
    snprintf(subset, sizeof(subset), "%s", file("s.json"));
    test_ok(cor_dir_make(empty, &err), &err);
    test_ok(xp_subset_init(&s, "", 6, 63, 1, "", &err), &err);
    for (uint32_t i = 0; i < 6 * 62; i++) /* all but one of each layer */
        xp_subset_set(&s, i / 62, i % 62);
    test_ok(xp_subset_write(&s, subset, &err), &err);
    xp_subset_free(&s);
    cli_bad_(1, "x.gguf",
             &(const struct cli_call){.args = {"experts", "carve", "--experts", subset, "-o", out},
                                      .file_limit = 1 << 20});
    cli_check_empty(empty);
    cli_call(&r, &(const struct cli_call){.args = {"experts", "carve", "--experts", subset, "-o", out},
                                          .interrupt_dir = empty});
    cli_check_bad(&r, 1, "interrupted", "carve, interrupted");
    cli_check_empty(empty);
    cli_good(&r, "experts", "carve", "--experts", subset, "-o", file("small.gguf"));
    cli_result_free(&r);
    cli_bad_(1, "x.gguf",
             &(const struct cli_call){
                 .args = {"experts", "merge-back", "--from", file("small.gguf"), "-m", bundled, "-o", out},
                 .file_limit = 1 << 20});
    cli_check_empty(empty);
    cli_call(&r, &(const struct cli_call){
                     .args = {"experts", "merge-back", "--from", file("small.gguf"), "-o", out},
                     .interrupt_dir = empty});
    cli_check_bad(&r, 1, "interrupted", "merge-back, interrupted");
    cli_check_empty(empty);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(every_format_and_size, setup),
        cmocka_unit_test_setup(chain, setup),
        cmocka_unit_test_setup(metadata, setup),
        cmocka_unit_test_setup(refusals, setup),
        cmocka_unit_test_setup(failures_of_carving, setup),
        cmocka_unit_test_setup(unchanged_goes_back, setup),
        cmocka_unit_test_setup(changed_goes_back, setup),
        cmocka_unit_test_setup(what_cannot_go_back, setup),
        cmocka_unit_test_setup(failures_of_merging, setup),
        cmocka_unit_test_setup(damaged, setup),
        cmocka_unit_test_setup(program, setup),
        cmocka_unit_test_setup(stopped, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
