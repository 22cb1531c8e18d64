#include "cli/questions.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/corpus.h"
#include "cli/score.h"
#include "core/alloc.h"
#include "core/os.h"
#include "model/json.h"

#define MAX_CHOICES 64

/* ---- reading
 * ------------------------------------------------------------------------------------------------ */

void cli_questions_free(struct cli_questions *qs)
{
    for (size_t i = 0; i < qs->n; i++)
        cor_free(qs->q[i].choices);
    for (size_t i = 0; i < qs->n_lines; i++)
        cJSON_Delete(qs->lines[i]);
    cor_free(qs->q);
    cor_free(qs->lines);
    cor_free(qs->text);
    memset(qs, 0, sizeof(*qs));
}

static bool is_text(const cJSON *v)
{
    return cJSON_IsString(v) && v->valuestring[0];
}

static enum vkmoe_status read_question(void *user, const cJSON *o, size_t line, const char *where,
                                       struct vkmoe_err *err)
{
    struct cli_questions *qs = user;
    const cJSON *context = mdl_json_get(o, "context"), *choices = mdl_json_get(o, "choices");
    int n = cJSON_IsArray(choices) ? cJSON_GetArraySize(choices) : 0;
    struct cli_question *q = &qs->q[qs->n];
    uint64_t answer;

    if (!is_text(context))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: no \"context\", or an empty one", where);
    if (n < 2 || n > MAX_CHOICES)
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: \"choices\" is no list of 2 to %d texts", where,
                        MAX_CHOICES);
    if (!mdl_json_u64(mdl_json_get(o, "answer"), (uint64_t)n - 1, &answer))
        return cor_fail(err, VKMOE_ERR_FORMAT, "%s: \"answer\" is no number from 0 to %d", where, n - 1);
    q->choices = cor_array((size_t)n, sizeof(*q->choices));
    if (!q->choices)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory", where);
    qs->n++;
    q->context = context->valuestring;
    q->answer = (uint32_t)answer;
    q->n_choices = (uint32_t)n;
    q->line = line;
    for (int i = 0; i < n; i++) {
        const cJSON *c = cJSON_GetArrayItem(choices, i);

        if (!is_text(c))
            return cor_fail(err, VKMOE_ERR_FORMAT, "%s: choice %d is no text, or an empty one", where, i);
        q->choices[i] = c->valuestring;
    }
    return VKMOE_OK;
}

enum vkmoe_status cli_questions_load(struct cli_questions *qs, const char *file, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    size_t n, n_lines = 1;

    qs->file = file;
    TRY(cli_read_text(NULL, file, &qs->text, &n, err));
    for (size_t i = 0; i < n; i++)
        n_lines += qs->text[i] == '\n';
    qs->q = cor_array(n_lines, sizeof(*qs->q));
    if (!qs->q)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %zu lines", file, n_lines);
    TRY(cli_json_lines(&qs->lines, &qs->n_lines, qs->text, n, file, read_question, qs, err));
    if (!qs->n)
        FAIL(VKMOE_ERR_FORMAT, "%s: no question", file);
done:
    return st;
}

static size_t count(const struct cli_questions *qs, int64_t most)
{
    return most > 0 && (uint64_t)most < qs->n ? (size_t)most : qs->n;
}

uint64_t cli_questions_bytes(const struct cli_questions *qs, int64_t most)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < count(qs, most); i++)
        for (uint32_t k = 0; k < qs->q[i].n_choices; k++)
            bytes += strlen(qs->q[i].context) + strlen(qs->q[i].choices[k]);
    return bytes;
}

/* ---- scoring
 * ------------------------------------------------------------------------------------------------ */

struct rows {
    const int32_t *next; /* token that row i predicts */
    uint32_t vocab;
    double nll;
};

static bool add_row(void *user, size_t index, const float *logits)
{
    struct rows *r = user;

    r->nll += cli_token_nll(logits, r->vocab, r->next[index]);
    return true;
}

/* ids: context and choice, of which the first n_context are the context's. */
static enum vkmoe_status score_ids(struct cli_engine *e, const int32_t *ids, size_t n, size_t n_context,
                                   double *nll, struct vkmoe_err *err)
{
    struct rows r = {ids + n_context, vkmoe_model_facts(e->mdl)->vocab_size, 0};
    enum vkmoe_status st = VKMOE_OK;

    vkmoe_session_reset(e->ses);
    if (n_context > 1)
        TRY(vkmoe_session_feed(e->ses, ids, n_context - 1, err));
    TRY(vkmoe_session_feed_all(e->ses, ids + n_context - 1, n - n_context, add_row, &r, err));
    *nll = r.nll;
done:
    return st;
}

static enum vkmoe_status score_choice(struct cli_engine *e, const struct cli_questions *qs,
                                      const struct cli_question *q, size_t n_context, uint32_t choice,
                                      double *nll, struct vkmoe_err *err)
{
    size_t n_c = strlen(q->context), n_a = strlen(q->choices[choice]), n;
    char *text = cor_alloc(n_c + n_a + 1);
    int32_t *ids = NULL;
    enum vkmoe_status st = VKMOE_OK;

    if (!text)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for a question", qs->file);
    memcpy(text, q->context, n_c);
    memcpy(text + n_c, q->choices[choice], n_a);
    TRY(vkmoe_tokenize_prompt(e->mdl, text, n_c + n_a, false, &ids, &n, err));
    if (n <= n_context)
        FAIL(VKMOE_ERR_FORMAT, "%s: line %zu: choice %" PRIu32 " adds no token to the context", qs->file,
             q->line, choice);
    if (n - 1 > vkmoe_session_n_ctx(e->ses))
        FAIL(VKMOE_ERR_CONTEXT_FULL, "%s: line %zu: %zu tokens do not fit the context of %" PRIu32 " (-c)",
             qs->file, q->line, n - 1, vkmoe_session_n_ctx(e->ses));
    TRY(score_ids(e, ids, n, n_context, nll, err));
done:
    vkmoe_free(ids);
    cor_free(text);
    return st;
}

enum vkmoe_status cli_questions_score(struct cli_engine *e, const struct cli_questions *qs, int64_t most,
                                      struct cli_answers *a, struct vkmoe_err *err)
{
    size_t n = count(qs, most);
    enum vkmoe_status st = VKMOE_OK;

    for (size_t i = 0; i < n; i++) {
        const struct cli_question *q = &qs->q[i];
        int32_t *ids = NULL;
        uint32_t best = 0;
        double least = 0;
        size_t n_context;

        TRY(vkmoe_tokenize_prompt(e->mdl, q->context, strlen(q->context), false, &ids, &n_context, err));
        vkmoe_free(ids);
        for (uint32_t k = 0; k < q->n_choices; k++) {
            double nll = 0;

            if (cor_interrupted())
                FAIL(VKMOE_ERR_IO, "interrupted after %" PRIu64 " questions", a->questions);
            TRY(score_choice(e, qs, q, n_context, k, &nll, err));
            if (!k || nll < least) {
                least = nll;
                best = k;
            }
            if (k == q->answer)
                a->answer_nll += nll;
            a->done += strlen(q->context) + strlen(q->choices[k]);
            cli_progress_step(a->bar, a->done, a->total);
        }
        a->questions++;
        a->right += best == q->answer;
    }
done:
    return st;
}
