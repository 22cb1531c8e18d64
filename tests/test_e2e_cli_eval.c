/* `vkmoe eval` against sums made here from what `vkmoe logits` writes: documents, separators, JSON lines,
 * windows. */
#include <math.h>
#include <stdio.h>

#include "support/cli.h"

#define DOC_A \
    "And the LORD spake unto Moses and unto Aaron, saying,\nEvery man of the children of Israel shall pitch"
#define DOC_B "def read(self, n=-1):\n    return self._file.read(n)  # \xc3\xa4"
#define EOS   4094
#define F32   "-ctk", "f32", "-ctv", "f32"

/* End-of-text, the document's tokens, end-of-text. */
static int32_t *framed(const char *text, size_t *n)
{
    struct cli_result r;
    int32_t *ids, *all;
    cJSON *o;

    cli_good(&r, "tokenize", "--json", "-p", text);
    o = cli_json(&r);
    ids = cli_ids(cli_get(o, "tokens"), n);
    all = cor_array(*n + 2, sizeof(*all));
    assert_non_null(all);
    memcpy(all + 1, ids, *n * sizeof(*ids));
    all[0] = all[*n + 1] = EOS;
    *n += 2;
    cor_free(ids);
    cJSON_Delete(o);
    cli_result_free(&r);
    return all;
}

/* `vkmoe logits` of ids into a file of the test's own; all: every row, else the last. */
static void logits(struct cor_npy *a, const int32_t *ids, size_t n, bool all)
{
    const char *path = cli_path(test_tmp(), "logits.npy");
    char *list = cli_id_list(ids, n);
    struct vkmoe_err err = {0};
    struct cli_result r;

    cli_good(&r, "logits", "--tokens", list, "-o", path, "-c", "64", F32, all ? "--all" : NULL);
    assert_int_equal(r.n_out + r.n_err, 0);
    test_ok(cor_npy_read(a, path, &err), &err);
    assert_int_equal(a->n_dims, 2);
    assert_int_equal(a->dims[0], all ? n : 1);
    assert_int_equal(a->dims[1], 4096);
    cli_result_free(&r);
    cor_free(list);
}

static double nll_of(const float *row, int32_t id)
{
    double top = -HUGE_VAL, sum = 0;

    for (size_t i = 0; i < 4096; i++)
        top = fmax(top, (double)row[i]);
    for (size_t i = 0; i < 4096; i++)
        sum += exp((double)row[i] - top);
    return log(sum) + top - (double)row[id];
}

/* Where the first window that holds input j begins, with windows of c inputs that begin every c / 2. */
static size_t window_start(size_t j, size_t c)
{
    return j < c ? 0 : (j - c) / (c / 2) * (c / 2) + c / 2;
}

static double windows_nll(const int32_t *ids, size_t n, size_t c)
{
    double nll = 0;

    for (size_t j = 0; j + 1 < n;) {
        size_t start = window_start(j, c), len = n - 1 - start < c ? n - 1 - start : c;
        struct cor_npy a;

        logits(&a, ids + start, len, true);
        for (; j + 1 < n && window_start(j, c) == start; j++)
            nll += nll_of((const float *)a.data + (j - start) * 4096, ids[j + 1]);
        cor_npy_free(&a);
    }
    return nll;
}

struct expected {
    double nll;
    size_t tokens, bytes, documents;
};

/* The figures of one `eval --json` run. Returns its ppl. */
static double check(const struct expected *want, const struct cli_call *call)
{
    struct cli_result r;
    double nll, ppl;
    cJSON *o;

    cli_good_(&r, call);
    assert_int_equal(r.n_err, 0);
    o = cli_json(&r);
    nll = cli_get(o, "nll")->valuedouble;
    ppl = cli_get(o, "ppl")->valuedouble;
    print_message("[ eval   ] nll %.9f, expected %.9f\n", nll, want->nll);
    assert_int_equal((size_t)cli_get(o, "tokens")->valuedouble, want->tokens);
    assert_int_equal((size_t)cli_get(o, "bytes")->valuedouble, want->bytes);
    assert_int_equal((size_t)cli_get(o, "documents")->valuedouble, want->documents);
    assert_true(fabs(nll - want->nll) <= 1e-5 * want->nll);
    assert_true(fabs(ppl / exp(nll / (double)want->tokens) - 1) < 1e-9);
    assert_true(fabs(cli_get(o, "ppl_per_byte")->valuedouble / exp(nll / (double)want->bytes) - 1) < 1e-9);
    assert_true(cli_get(cli_get(o, "pool"), "slots")->valuedouble > 0);
    cJSON_Delete(o);
    cli_result_free(&r);
    return ppl;
}

static void test_documents(void **state)
{
    static const char between[] = DOC_A "\n<|endoftext|>\n" DOC_B,
                      dashes[] = DOC_A "\n--\n\n--\n" DOC_B "\n--\n";
    static const char lines[] =
        "{\"text\": \"And the LORD spake unto Moses and unto Aaron, saying,\\nEvery man of "
        "the children of Israel shall pitch\"}\r\n\n{\"text\": \"\"}\n{\"id\": 2, \"text\": "
        "\"def read(self, n=-1):\\n    return self._file.read(n)  # \\u00e4\"}";
    size_t n_a, n_b;
    int32_t *a = framed(DOC_A, &n_a), *b = framed(DOC_B, &n_b);
    const struct expected first = {windows_nll(a, n_a, 64), n_a - 1, sizeof(DOC_A) - 1, 1};
    const struct expected both = {first.nll + windows_nll(b, n_b, 64), n_a + n_b - 2,
                                  sizeof(DOC_A) + sizeof(DOC_B) - 2, 2};
    const char *dir = test_tmp(), *text = cli_path(dir, "a.txt"), *jsonl = cli_path(dir, "a.jsonl");
    struct cli_result r;
    char want[128];
    double ppl;

    (void)state;
    test_write(text, between, sizeof(between) - 1);
    test_write(jsonl, lines, sizeof(lines) - 1);
    ppl = check(&both, &(const struct cli_call){.args = {"eval", "-f", text, "--json", "-c", "64", F32}});
    check(&both, &(const struct cli_call){
                     .args = {"eval", "-f", "-", "--separator", "\n--\n", "--json", "-c", "64", F32},
                     .input = dashes});
    check(&first, &(const struct cli_call){.args = {"eval", "-f", "-", "--json-lines", "--documents", "1",
                                                    "--json", "-c", "64", F32},
                                           .input = lines});
    cli_good(&r, "eval", "-f", jsonl, "-c", "64", F32); /* the same figures for people, of JSON lines */
    snprintf(want, sizeof(want), "\nperplexity  %.6f per token, ", ppl);
    assert_non_null(strstr(r.out, want));
    assert_non_null(strstr(r.out, "documents   2\n"));
    assert_null(strchr(r.err, '\r'));
    cli_result_free(&r);
    cor_free(a);
    cor_free(b);
}

static void test_windows(void **state)
{
    size_t n;
    int32_t *ids = framed(DOC_A, &n);
    struct expected want = {0, n - 1, sizeof(DOC_A) - 1, 1};

    (void)state;
    assert_true(n - 1 > 20);
    assert_int_equal(window_start(11, 12), 0);
    assert_int_equal(window_start(12, 12), 6);
    assert_int_equal(window_start(17, 12), 6);
    assert_int_equal(window_start(18, 12), 12);
    want.nll = windows_nll(ids, n, 12);
    check(&want,
          &(const struct cli_call){.args = {"eval", "-f", "-", "--separator", "", "--json", "-c", "12", F32},
                                   .input = DOC_A});
    cor_free(ids);
}

static void test_last_logits(void **state)
{
    static const int32_t ids[] = {EOS, 17, 300, 4000, 5};
    struct cor_npy all, last;
    float worst = 0;

    (void)state;
    logits(&all, ids, COR_COUNT(ids), true);
    logits(&last, ids, COR_COUNT(ids), false);
    for (size_t i = 0; i < 4096; i++) {
        float d = fabsf(((const float *)last.data)[i] - ((const float *)all.data)[4 * 4096 + i]);

        worst = d > worst || isnan(d) ? d : worst;
    }
    assert_true(worst <= 1e-4f);
    cor_npy_free(&all);
    cor_npy_free(&last);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_last_logits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
