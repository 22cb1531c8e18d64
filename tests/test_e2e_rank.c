/* `vkmoe experts rank` and `merge` on the device, against a plain transcription of the published formulas
 * over the scalar reference; and what a user gets wrong. The PyTorch original's means: tools/full/rank.py. */
#include <math.h>
#include <stdio.h>

#include "experts/rank.h"
#include "model/ref.h"
#include "support/cli.h"
#include "support/golden.h"

#define F32     "-ctk", "f32", "-ctv", "f32"
#define MEAN    1e-5 /* of a mean router probability */
#define TIE     2e-5 /* means that near may change places */
#define MARGIN  2e-5 /* of p_k: choices that near may flip, and change what easy-ep sums */
#define OFFSET  505  /* of the first document: no choice in these texts is nearer than MARGIN */
#define N_DOCS  3
#define N_TOKEN 40 /* of a document, at most */

struct text {
    const char *name;
    struct mdl_model *m;
    struct mdl_ref *ref;
    uint32_t *all; /* mask */
    char path[512], docs[N_DOCS][200];
    int32_t ids[N_DOCS][N_TOKEN];
    size_t n[N_DOCS], n_ids;
};

static char dir[512];

static const char *file(const char *name)
{
    return cli_path(dir, name);
}

static int setup(void **state)
{
    const char *twin = test_full() ? golden_model("stdmoe-nano", MDL_BF16) : NULL;

    (void)state; /* a converted model takes the directory of the program, which is this one then */
    snprintf(dir, sizeof(dir), "%s", twin ? twin : test_tmp());
    if (twin)
        *strrchr(dir, '/') = '\0';
    return 0;
}

/* ---- three short documents
 * ---------------------------------------------------------------------------------- */

/* The first bytes of three documents, as JSON lines in docs.jsonl and one line each in doc0.jsonl ... */
static void write_docs(struct text *t)
{
    static const char *const from[] = {"scripture", "python", "scripture"};
    struct vkmoe_err err = {0};
    char rel[128], all[4096] = "", name[32];

    for (int d = 0; d < N_DOCS; d++) {
        char *text, line[1024];
        size_t n;
        cJSON *o = cJSON_CreateObject();

        snprintf(rel, sizeof(rel), "tests/golden/data/%s.calibration.txt", from[d]);
        test_ok(cor_file_slurp(test_source(rel), 1 << 20, &text, &n, &err), &err);
        snprintf(t->docs[d], sizeof(t->docs[d]), "%.90s", text + OFFSET + 1000 * d);
        cor_free(text);
        cJSON_AddStringToObject(o, "text", t->docs[d]);
        text = cJSON_PrintUnformatted(o);
        snprintf(line, sizeof(line), "%s\n", text);
        cJSON_free(text);
        cJSON_Delete(o);
        snprintf(name, sizeof(name), "doc%d.jsonl", d);
        test_write(file(name), line, strlen(line));
        strncat(all, line, sizeof(all) - strlen(all) - 1);
    }
    test_write(file("docs.jsonl"), all, strlen(all));
}

/* False: the model is not here. */
static bool open_text(struct text *t, const char *name)
{
    const char *path = golden_model(name, MDL_BF16);
    struct vkmoe_err err = {0};
    struct mdl_ref_params p = {.n_ctx = N_TOKEN};
    size_t words;

    *t = (struct text){.name = name};
    if (!path)
        return false;
    snprintf(t->path, sizeof(t->path), "%s", path);
    test_ok(mdl_open(&t->m, path, &err), &err);
    words = (size_t)t->m->config.n_layers * ((t->m->config.n_experts + 31) / 32);
    p.allowed = t->all = cor_alloc(words * sizeof(*t->all));
    memset(t->all, 0xff, words * sizeof(*t->all));
    test_ok(mdl_ref_create(&t->ref, t->m, &p, &err), &err);
    write_docs(t);
    for (int d = 0; d < N_DOCS; d++) {
        int32_t *ids;
        size_t n;

        test_ok(mdl_encode(t->m->tok, t->docs[d], strlen(t->docs[d]), false, &ids, &n, &err), &err);
        assert_in_range(n, 10, N_TOKEN - 1);
        t->ids[d][0] = mdl_token_eos(t->m->tok);
        memcpy(t->ids[d] + 1, ids, n * sizeof(*ids));
        t->n[d] = n + 1;
        t->n_ids += n + 1;
        cor_free(ids);
    }
    return true;
}

static void close_text(struct text *t)
{
    mdl_ref_destroy(t->ref);
    mdl_close(t->m);
    cor_free(t->all);
}

/* ---- the formulas
 * --------------------------------------------------------------------------------------------- */

enum { LAYERS = 8, EXPERTS = 64, USED = 8 };

struct plain {
    double p[LAYERS][EXPERTS]; /* mean router probability */
    double importance[LAYERS][EXPERTS];
    double margin; /* the smallest p_k - p_k+1, in p_k */
};

static void plain_token(const struct text *t, struct plain *out, const float *logits, const double *sums,
                        const struct mdl_ref_route *routes)
{
    const struct mdl_config *c = &t->m->config;

    for (uint32_t l = 0; l < c->n_layers; l++) {
        const float *z = logits + (size_t)l * c->n_experts;
        const double *s = sums + (size_t)l * (3 + c->n_experts_used);
        double total = 0, cosine = (s[0] + s[1]) / sqrt(s[0] * (s[0] + 2 * s[1] + s[2]));

        for (uint32_t e = 0; e < c->n_experts; e++)
            total += exp((double)z[e]);
        for (uint32_t e = 0; e < c->n_experts; e++)
            out->p[l][e] += exp((double)z[e]) / total / (double)t->n_ids;
        for (uint32_t k = 0; k < routes[l].n; k++)
            out->importance[l][routes[l].ids[k]] +=
                routes[l].weights[k] * sqrt(s[3 + k]) * fmax(0, 1 - cosine);
        out->margin = fmin(out->margin, (routes[l].last - routes[l].next) / routes[l].last);
    }
}

/* With only the experts of `allowed`. */
static void plain_run(struct text *t, const uint32_t *allowed, struct plain *out)
{
    const struct mdl_config *c = &t->m->config;
    float logits[LAYERS * EXPERTS];
    double sums[LAYERS * (3 + USED)];
    struct mdl_ref_route routes[LAYERS];
    const struct mdl_ref_watch watch = {logits, sums};
    struct vkmoe_err err = {0};

    assert_true(c->n_layers <= LAYERS && c->n_experts <= EXPERTS && c->n_experts_used <= USED);
    memset(out, 0, sizeof(*out));
    out->margin = 1;
    mdl_ref_watch(t->ref, &watch);
    mdl_ref_allow(t->ref, allowed);
    for (int d = 0; d < N_DOCS; d++) {
        mdl_ref_reset(t->ref);
        for (size_t i = 0; i < t->n[d]; i++) {
            test_ok(mdl_ref_feed(t->ref, t->ids[d][i], NULL, routes, &err), &err);
            plain_token(t, out, logits, sums, routes);
        }
    }
}

/* The subset has the n highest scores of the layer, but for those that lie within `tie` of one another. */
static void check_best(const struct xp_subset *s, uint32_t layer, const double *score, uint32_t n, double tie)
{
    double worst_in = HUGE_VAL, best_out = -HUGE_VAL;

    assert_int_equal(xp_subset_count(s, layer), n);
    for (uint32_t e = 0; e < s->n_routed; e++) {
        if (xp_subset_has(s, layer, e))
            worst_in = fmin(worst_in, score[e]);
        else
            best_out = fmax(best_out, score[e]);
    }
    if (worst_in < best_out - tie)
        fail_msg("layer %u keeps an expert of score %.9g and not one of %.9g", (unsigned)layer, worst_in,
                 best_out);
}

/* ---- methods
 * ------------------------------------------------------------------------------------------------ */

static void read_subset(struct xp_subset *s, const char *name)
{
    struct vkmoe_err err = {0};

    test_ok(xp_subset_read(s, file(name), &err), &err);
}

static void router_and_easy_ep(struct text *t)
{
    struct plain *want = cor_zalloc(sizeof(*want));
    struct vkmoe_err err = {0};
    struct cli_result r;
    struct xp_stats s;
    struct xp_subset sub;
    double worst = 0, worst_importance = 0;

    plain_run(t, t->all, want);
    assert_true(want->margin > MARGIN); /* else choose another text: choices might flip */
    cli_good(&r, "experts", "rank", "-m", t->path, "-f", file("docs.jsonl"), F32, "--method", "easy-ep",
             "--keep", "12.5%", "-o", file("easy.json"), "--stats-out", file("easy.stats.json"));
    cli_result_free(&r);
    cli_good(&r, "experts", "rank", "--stats", file("easy.stats.json"), "--method", "router", "--keep", "8",
             "-o", file("router.json"));
    cli_result_free(&r);
    test_ok(xp_stats_read(&s, file("easy.stats.json"), &err), &err);
    assert_int_equal(s.tokens, t->n_ids);
    assert_int_equal(s.documents, N_DOCS);
    for (uint32_t l = 0; l < s.n_layers; l++) {
        double most = 0;

        for (uint32_t e = 0; e < s.n_routed; e++)
            most = fmax(most, want->importance[l][e]);
        for (uint32_t e = 0; e < s.n_routed; e++) {
            size_t i = (size_t)l * s.n_routed + e;

            worst = fmax(worst, fabs(xp_sum_value(&s.probability[i]) / (double)t->n_ids - want->p[l][e]));
            worst_importance =
                fmax(worst_importance, fabs(xp_sum_value(&s.importance[i]) - want->importance[l][e]) / most);
        }
    }
    print_message("%s: mean probabilities within %.2g, importance within %.2g of a layer's largest\n",
                  t->name, worst, worst_importance);
    assert_true(worst <= MEAN);
    assert_true(worst_importance <= MEAN);
    read_subset(&sub, "router.json");
    for (uint32_t l = 0; l < s.n_layers; l++)
        check_best(&sub, l, want->p[l], 7, TIE);
    xp_subset_free(&sub);
    read_subset(&sub, "easy.json");
    assert_string_equal(sub.method, "easy-ep");
    for (uint32_t l = 0; l < s.n_layers; l++)
        check_best(&sub, l, want->importance[l], 7, 2 * MEAN * want->importance[l][0]);
    xp_subset_free(&sub);
    xp_stats_free(&s);
    cor_free(want);
}

/* Each layer's choice, given what the device kept in the layers before it. */
static void layerwise(struct text *t)
{
    const struct mdl_config *c = &t->m->config;
    uint32_t words = (c->n_experts + 31) / 32, mask[LAYERS * EXPERTS / 32];
    struct plain *want = cor_zalloc(sizeof(*want));
    struct cli_result r;
    struct xp_subset sub;
    cJSON *o;

    cli_good(&r, "experts", "rank", "-m", t->path, "-f", file("docs.jsonl"), F32, "--method", "layerwise",
             "--keep", "8", "-o", file("layers.json"), "--json");
    o = cli_json(&r);
    cli_result_free(&r);
    read_subset(&sub, "layers.json");
    memcpy(mask, t->all, c->n_layers * words * sizeof(*mask));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        double held = 0, told = cJSON_GetArrayItem(cli_get(o, "probability_held"), (int)l)->valuedouble;

        plain_run(t, mask, want);
        check_best(&sub, l, want->p[l], 7, TIE);
        for (uint32_t e = 0; e < c->n_experts; e++)
            held += xp_subset_has(&sub, l, e) ? want->p[l][e] : 0;
        assert_float_equal(told, held, 7 * MEAN);
        memcpy(mask + (size_t)l * words, sub.allowed + (size_t)l * words, words * sizeof(*mask));
    }
    cJSON_Delete(o);
    xp_subset_free(&sub);
    cor_free(want);
}

static void run_methods(const char *name)
{
    struct text t;

    if (!open_text(&t, name)) {
        test_skip("no such model");
        return;
    }
    router_and_easy_ep(&t);
    layerwise(&t);
    close_text(&t);
}

static void test_methods(void **state)
{
    (void)state;
    run_methods("emo-nano");
}

static void test_methods_twin(void **state)
{
    (void)state;
    if (test_full())
        run_methods("stdmoe-nano");
}

/* No model runs: the generator is test_rank.c's. */
static void test_random(void **state)
{
    struct xp_subset s, again;
    struct cli_result r;
    uint32_t ids[63];

    (void)state;
    cli_good(&r, "experts", "rank", "--method", "random", "--seed", "7", "--keep", "25%", "-o",
             file("r7.json"));
    cli_result_free(&r);
    read_subset(&s, "r7.json");
    assert_string_equal(s.method, "random");
    assert_string_equal(s.calibration, "");
    for (uint32_t l = 0; l < s.n_layers; l++) {
        assert_int_equal(xp_subset_count(&s, l), 15);
        xp_rank_shuffle(ids, 63, 7, l);
        for (int i = 0; i < 15; i++)
            assert_true(xp_subset_has(&s, l, ids[i]));
    }
    cli_good(&r, "experts", "rank", "--method", "random", "--seed", "7", "--keep-per-layer",
             "8,16,6,64,20,16", "-o", file("r7.json"));
    cli_result_free(&r);
    read_subset(&again, "r7.json");
    assert_int_equal(xp_subset_count(&again, 0), 7);
    assert_int_equal(xp_subset_count(&again, 3), 63);
    for (uint32_t e = 0; e < 63; e++)
        assert_true(!xp_subset_has(&again, 0, e) || xp_subset_has(&s, 0, e)); /* the smaller in the larger */
    xp_subset_free(&s);
    xp_subset_free(&again);
}

/* ---- adding
 * ------------------------------------------------------------------------------------------------- */

/* What one run over all documents sums, runs over each of them do, in any order and with any pool. */
static void test_merge(void **state)
{
    static const char *const orders[][3] = {{"0", "1", "2"}, {"2", "0", "1"}};
    char names[N_DOCS][32];
    struct cli_result r;
    struct text t;

    (void)state;
    if (!open_text(&t, "emo-nano")) {
        test_skip("no such model");
        return;
    }
    cli_good(&r, "experts", "rank", "-m", t.path, "-f", file("docs.jsonl"), "--stats-out", file("all.json"));
    cli_result_free(&r);
    for (int d = 0; d < N_DOCS; d++) {
        char doc[32];

        snprintf(doc, sizeof(doc), "doc%d.jsonl", d);
        snprintf(names[d], sizeof(names[d]), "part%d.json", d);
        cli_good(&r, "experts", "rank", "-m", t.path, "-f", file(doc), "--stats-out", file(names[d]),
                 "--pool-mib", d == 1 ? "4" : "all");
        cli_result_free(&r);
    }
    for (size_t i = 0; i < COR_COUNT(orders); i++) {
        const char *const *o = orders[i];

        cli_good(&r, "experts", "merge", file(names[o[0][0] - '0']), file(names[o[1][0] - '0']), "-o",
                 file("two.json"));
        cli_result_free(&r);
        cli_good(&r, "experts", "merge", file(names[o[2][0] - '0']), file("two.json"), "-o",
                 file("sum.json"));
        cli_result_free(&r);
        test_same_files(file("sum.json"), file("all.json"));
    }
    cli_good(&r, "experts", "rank", "--stats", file("part2.json"), file("part0.json"), "--stats",
             file("part1.json"), "--coverage", "50%", "-o", file("cover.json"), "--json");
    cJSON_Delete(cli_json(&r));
    cli_result_free(&r);
    close_text(&t);
}

/* ---- what goes wrong
 * ----------------------------------------------------------------------------------------- */

static void test_usage(void **state)
{
    (void)state;
    cli_bad(2, "--keep", "experts", "rank", "-f", "x.txt");
    cli_bad(2, "with -f", "experts", "rank", "--keep", "8");
    cli_bad(2, "one of", "experts", "rank", "-f", "x.txt", "--keep", "8", "--coverage", "5%");
    cli_bad(2, "neither", "experts", "rank", "-f", "x.txt", "--keep", "8,8");
    cli_bad(2, "--method", "experts", "rank", "-f", "x.txt", "--keep", "8", "--method", "best");
    cli_bad(2, "exclude", "experts", "rank", "-f", "x.txt", "--stats", "y.json", "--keep", "8");
    cli_bad(2, "layerwise", "experts", "rank", "--stats", "y.json", "--keep", "8", "--method", "layerwise");
    cli_bad(2, "layerwise", "experts", "rank", "-f", "x", "--stats-out", "y", "--method", "layerwise");
    cli_bad(2, "--coverage needs", "experts", "rank", "--method", "random", "--coverage", "5%");
    cli_bad(2, "-o", "experts", "merge", "a.json");
    cli_bad(2, "no statistics", "experts", "merge", "-o", "a.json");
    cli_bad(1, "none.txt", "experts", "rank", "-f", file("none.txt"), "--keep", "8");
    test_write(file("empty.txt"), "", 0);
    cli_bad(1, "empty.txt: no document", "experts", "rank", "-f", file("empty.txt"), "--keep", "8");
    test_write(file("text.txt"), "In the beginning", 16);
    cli_bad(2, "6 is the smallest", "experts", "rank", "-f", file("text.txt"), "--keep", "5");
    cli_bad(2, "it has 64", "experts", "rank", "-f", file("text.txt"), "--keep", "65");
    cli_bad(2, "2 numbers of experts for 6", "experts", "rank", "-f", file("text.txt"), "--keep-per-layer",
            "8,8");
    test_write(file("short.txt"), "a", 1);
    cli_bad(1, "short.txt: a text of one token", "experts", "rank", "-f", file("short.txt"), "--keep", "8");
}

/* Statistics that do not belong together, and one that cannot be written. */
static void test_mixed(void **state)
{
    struct vkmoe_err err = {0};
    struct mdl_model *m;
    struct xp_stats s;

    (void)state;
    test_ok(mdl_open(&m, golden_model("emo-nano", MDL_BF16), &err), &err);
    test_ok(xp_stats_init(&s, m, XP_ROUTER, &err), &err);
    test_ok(xp_stats_write(&s, file("a.json"), &err), &err);
    memcpy(s.model, "other", 6);
    test_ok(xp_stats_write(&s, file("b.json"), &err), &err);
    xp_stats_free(&s);
    mdl_close(m);
    cli_bad(2, "statistics of 'other'", "experts", "merge", file("a.json"), file("b.json"), "-o",
            file("c.json"));
    assert_false(cor_path_exists(file("c.json")));
    cli_bad(2, "statistics of 'other'", "experts", "rank", "--stats", file("a.json"), file("b.json"),
            "--keep", "8");
    cli_bad(2, "no importance", "experts", "rank", "--stats", file("a.json"), "--method", "easy-ep", "--keep",
            "8");
    cli_bad(1, "no/where", "experts", "rank", "--stats", file("a.json"), "--keep", "8", "-o",
            file("no/where.json"));
    test_write(file("d.json"), "{}", 2);
    cli_bad(1, "d.json: `format`", "experts", "merge", file("a.json"), file("d.json"), "-o", file("c.json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_methods), cmocka_unit_test(test_methods_twin), cmocka_unit_test(test_random),
        cmocka_unit_test(test_merge),   cmocka_unit_test(test_usage),        cmocka_unit_test(test_mixed),
    };

    return cmocka_run_group_tests_name("e2e_rank", tests, setup, NULL);
}
