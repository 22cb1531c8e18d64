#include "support/golden.h"

#include "model/convert.h"

#include <math.h>
#include <stdio.h>

#define FLIP_MARGIN 1e-4 /* of p_k */
#define GREEDY_GAP  1e-3

/* Domain of each prompt, as an index into subset_125.npy (manifest.json: domains). */
static const uint32_t prompt_domain[GOLDEN_PROMPTS] = {0, 1, 0, 2, 3, 5};

/* ---- files
 * -------------------------------------------------------------------------------------------------------- */

static const char *find(const char *model, const char *file)
{
    char rel[256];
    const char *path;

    snprintf(rel, sizeof(rel), "tests/golden/%s/%s", model, file);
    path = test_source(rel);
    if (cor_path_exists(path))
        return path;
    snprintf(rel, sizeof(rel), "models/golden/%s/%s", model, file);
    return test_shared(rel);
}

/* Reads p<index>_<part>.npy if there is one. */
static bool read_part(struct cor_npy *out, const char *model, uint32_t index, const char *part, char type)
{
    struct vkmoe_err err;
    char file[128];
    const char *path;

    snprintf(file, sizeof(file), "p%u_%s.npy", (unsigned)index, part);
    path = find(model, file);
    if (!path)
        return false;
    test_ok(cor_npy_read(out, path, &err), &err);
    if (out->type != type)
        fail_msg("%s: numbers of the wrong type", path);
    return true;
}

static void read_run(struct golden_run *run, const char *model, uint32_t index, const char *prefix)
{
    static const struct {
        const char *part;
        size_t off;
        char type;
    } parts[] = {{"last_logits", offsetof(struct golden_run, last_logits), 'f'},
                 {"logits", offsetof(struct golden_run, logits), 'f'},
                 {"experts", offsetof(struct golden_run, experts), 'i'},
                 {"weights", offsetof(struct golden_run, weights), 'f'},
                 {"greedy", offsetof(struct golden_run, greedy), 'i'},
                 {"greedy_gap", offsetof(struct golden_run, gap), 'f'}};
    char part[64];

    for (size_t i = 0; i < COR_COUNT(parts); i++) {
        snprintf(part, sizeof(part), "%s%s", prefix, parts[i].part);
        read_part((struct cor_npy *)((char *)run + parts[i].off), model, index, part, parts[i].type);
    }
}

static void free_run(struct golden_run *run)
{
    cor_npy_free(&run->last_logits);
    cor_npy_free(&run->logits);
    cor_npy_free(&run->experts);
    cor_npy_free(&run->weights);
    cor_npy_free(&run->greedy);
    cor_npy_free(&run->gap);
}

static void check_run(const struct golden *g, const struct golden_run *run)
{
    if (!run->last_logits.data || run->last_logits.count != g->vocab_size || !run->greedy.data ||
        !run->gap.data || run->greedy.count != GOLDEN_GREEDY || run->gap.count != GOLDEN_GREEDY)
        fail_msg("%s: logits or greedy continuation are missing or of the wrong size", g->name);
    if (run->logits.data && run->logits.count != (uint64_t)g->n_tokens * g->vocab_size)
        fail_msg("%s: logits of the wrong size", g->name);
    if (run->experts.data &&
        (run->experts.n_dims != 3 || run->experts.dims[0] != g->n_layers ||
         run->experts.dims[1] != g->n_tokens || run->weights.count != run->experts.count))
        fail_msg("%s: experts of the wrong size", g->name);
}

/* subset_125.npy: (domains, n_layers, 7); router_mean.npy: (domains, n_layers, routed experts). */
static void read_subset(struct golden *g, const char *model, uint32_t domain)
{
    struct cor_npy subset = {0}, mean = {0};
    const char *subset_path = find(model, "subset_125.npy"), *mean_path = find(model, "router_mean.npy");
    struct vkmoe_err err;
    uint32_t words, per_layer;

    if (!subset_path || !mean_path)
        fail_msg("%s: subset_125.npy or router_mean.npy is missing", g->name);
    test_ok(cor_npy_read(&subset, subset_path, &err), &err);
    test_ok(cor_npy_read(&mean, mean_path, &err), &err);
    if (subset.n_dims != 3 || mean.n_dims != 3 || subset.type != 'i' || subset.dims[0] <= domain ||
        mean.dims[1] != subset.dims[1])
        fail_msg("%s: subset_125.npy or router_mean.npy has the wrong shape", g->name);
    g->n_layers = (uint32_t)subset.dims[1];
    g->n_experts = (uint32_t)mean.dims[2];
    per_layer = (uint32_t)subset.dims[2];
    words = (g->n_experts + 31) / 32;
    g->allowed = cor_array((size_t)g->n_layers * words, sizeof(*g->allowed));
    assert_non_null(g->allowed);
    for (uint32_t layer = 0; layer < g->n_layers; layer++)
        for (uint32_t i = 0; i < per_layer; i++) {
            int32_t e = ((int32_t *)subset.data)[((size_t)domain * g->n_layers + layer) * per_layer + i];

            assert_true(e >= 0 && (uint32_t)e < g->n_experts);
            g->allowed[layer * words + (uint32_t)e / 32] |= 1u << (e % 32);
        }
    cor_npy_free(&subset);
    cor_npy_free(&mean);
}

bool golden_load(struct golden *g, const char *model, uint32_t index)
{
    memset(g, 0, sizeof(*g));
    assert_true(index < GOLDEN_PROMPTS);
    snprintf(g->name, sizeof(g->name), "%s p%u", model, (unsigned)index);
    if (!read_part(&g->ids, model, index, "ids", 'i'))
        return false;
    g->tokens = g->ids.data;
    g->n_tokens = (uint32_t)g->ids.count;
    assert_true(g->n_tokens > 0 && g->n_tokens + GOLDEN_GREEDY <= GOLDEN_MAX_LEN);
    read_subset(g, model, prompt_domain[index]);
    read_run(&g->full, model, index, "");
    read_run(&g->sub, model, index, "sub_");
    g->vocab_size = (uint32_t)g->full.last_logits.count;
    check_run(g, &g->full);
    check_run(g, &g->sub);
    return true;
}

void golden_free(struct golden *g)
{
    cor_npy_free(&g->ids);
    free_run(&g->full);
    free_run(&g->sub);
    cor_free(g->allowed);
    memset(g, 0, sizeof(*g));
}

const char *golden_model(const char *model, enum mdl_type type)
{
    static char dir[4096];
    static char made[8][4200];
    static unsigned next;
    const char *bundled = test_source("models/emo-nano.gguf"), *source;
    struct mdl_convert_params p = {.type = type};
    struct vkmoe_err err;
    char rel[128], path[4200];
    bool is_bundled = !strcmp(model, "emo-nano") && cor_path_exists(bundled);

    if (is_bundled && type == MDL_BF16)
        return bundled;
    snprintf(rel, sizeof(rel), "models/%s", model);
    source = is_bundled ? bundled : test_shared(rel);
    if (!source)
        return NULL;
    if (!dir[0] || !cor_path_is_dir(dir)) /* the test may have taken a new one since */
        snprintf(dir, sizeof(dir), "%s", test_tmp());
    snprintf(path, sizeof(path), "%s/%s-%s.gguf", dir, model, mdl_type_find((uint32_t)type)->name);
    if (!cor_path_exists(path)) {
        p.in = source;
        p.out = path;
        test_ok(mdl_convert(&p, &err), &err);
    }
    snprintf(made[next % COR_COUNT(made)], sizeof(made[0]), "%s", path);
    return made[next++ % COR_COUNT(made)];
}

void golden_scripture(int32_t *ids, size_t n)
{
    struct vkmoe_err err = {0};
    struct cor_npy file;

    test_ok(cor_npy_read(&file, test_source("tests/golden/data/scripture.validation.ids.npy"), &err), &err);
    assert_true(file.type == 'i' && file.count >= n - 1);
    ids[0] = 4094;
    memcpy(ids + 1, file.data, (n - 1) * sizeof(*ids));
    cor_npy_free(&file);
}

/* ---- rules
 * -------------------------------------------------------------------------------------------------------- */

double golden_token_nll(const float *logits, uint32_t vocab, int32_t id)
{
    double top = logits[0], sum = 0;

    for (uint32_t i = 1; i < vocab; i++)
        top = fmax(top, logits[i]);
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - top);
    return log(sum) + top - logits[id];
}

void golden_diff_add(struct golden_diff *d, const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double diff = (double)got[i] - want[i];

        d->count++;
        if (!isfinite(diff)) {
            d->bad++;
            continue;
        }
        d->err2 += diff * diff;
        d->ref2 += (double)want[i] * want[i];
        if (fabs(diff) > d->max_diff)
            d->max_diff = fabs(diff);
    }
}

double golden_nmse(const struct golden_diff *d)
{
    return d->bad || d->ref2 == 0 ? HUGE_VAL : d->err2 / d->ref2;
}

void golden_diff_check(const struct golden_diff *d, const char *what, double max_nmse, double max_diff)
{
    double nmse = golden_nmse(d);

    print_message("%s: %llu values, error %.3g (limit %.3g), largest difference %.3g (limit %.3g)\n", what,
                  (unsigned long long)d->count, nmse, max_nmse, d->max_diff, max_diff);
    if (d->count == 0)
        fail_msg("%s: nothing was compared", what);
    if (d->bad)
        fail_msg("%s: %llu values are not finite", what, (unsigned long long)d->bad);
    if (!(nmse <= max_nmse) || !(d->max_diff <= max_diff))
        fail_msg("%s: error %.3g (limit %.3g), largest difference %.3g (limit %.3g)", what, nmse, max_nmse,
                 d->max_diff, max_diff);
}

static bool same_set(const uint32_t *a, const uint32_t *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        bool found = false;

        for (uint32_t k = 0; k < n; k++) {
            found |= a[i] == b[k];
            if (k > i && a[i] == a[k])
                return false; /* not distinct */
        }
        if (!found)
            return false;
    }
    return true;
}

bool golden_routes_compare(struct golden_routes *c, const char *name, uint32_t layer, uint32_t token,
                           const uint32_t *a, const uint32_t *b, uint32_t n, double p_k, double p_next)
{
    assert_true(token < GOLDEN_MAX_LEN);
    if (c->left_out[token])
        return false;
    c->compared++;
    if (same_set(a, b, n))
        return true;
    if (!c->any_margin && !(p_k - p_next < FLIP_MARGIN * p_k))
        fail_msg("%s: layer %u, token %u: other experts (first %u against %u), and p_k %.9g is clear of the "
                 "next %.9g",
                 name, (unsigned)layer, (unsigned)token, (unsigned)a[0], (unsigned)b[0], p_k, p_next);
    c->left_out[token] = true;
    c->flips++;
    print_message("%s: layer %u, token %u left out: p_k %.9g, next %.9g\n", name, (unsigned)layer,
                  (unsigned)token, p_k, p_next);
    return false;
}

void golden_routes_add(struct golden_routes *c, const struct golden *g, const struct golden_run *run,
                       uint32_t layer, uint32_t token, const uint32_t *ids, const float *weights, uint32_t n,
                       double p_k, double p_next)
{
    uint32_t want[64] = {0}, k = (uint32_t)run->experts.dims[2];
    size_t row = ((size_t)layer * g->n_tokens + token) * k;

    assert_true(layer < g->n_layers && token < g->n_tokens && k <= COR_COUNT(want));
    if (n != k - 1)
        fail_msg("%s: layer %u, token %u: %u routed experts, golden has %u", g->name, (unsigned)layer,
                 (unsigned)token, (unsigned)n, (unsigned)(k - 1));
    for (uint32_t i = 0; i < n; i++)
        want[i] = (uint32_t)((const int32_t *)run->experts.data)[row + i];
    if (!golden_routes_compare(c, g->name, layer, token, ids, want, n, p_k, p_next) || !weights)
        return;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++)
            if (ids[i] == want[j]) {
                double diff = fabs((double)weights[i] - ((const float *)run->weights.data)[row + j]);

                c->max_weight_diff = diff > c->max_weight_diff ? diff : c->max_weight_diff;
            }
}

void golden_routes_check(const struct golden_routes *c, const char *what, uint32_t max_flips)
{
    print_message("%s: experts of %u layers and tokens compared, %u tokens left out, weights within %.3g\n",
                  what, (unsigned)c->compared, (unsigned)c->flips, c->max_weight_diff);
    if (c->compared == 0)
        fail_msg("%s: no experts were compared", what);
    if (c->flips > max_flips)
        fail_msg("%s: %u tokens left out for flipped experts, at most %u may be", what, (unsigned)c->flips,
                 (unsigned)max_flips);
}

uint32_t golden_greedy_check(const struct golden *g, const struct golden_run *run, const int32_t *got,
                             uint32_t n)
{
    const int32_t *want = run->greedy.data;
    const float *gap = run->gap.data;
    uint32_t i = 0;

    assert_true(n <= GOLDEN_GREEDY);
    while (i < n && got[i] == want[i])
        i++;
    if (i < n && !((double)gap[i] < GREEDY_GAP))
        fail_msg("%s: greedy step %u gives token %d, golden has %d with a gap of %g", g->name, (unsigned)i,
                 (int)got[i], (int)want[i], (double)gap[i]);
    if (i < n)
        print_message("%s: greedy steps agree up to %u, where golden's gap is %g\n", g->name, (unsigned)i,
                      (double)gap[i]);
    return i;
}
