/* Negative log-likelihood of a text by the scalar reference, as `vkmoe eval` defines it (docs/DESIGN.md
 * section 10): for texts on which single precision decides a near tie between experts otherwise.
 *
 *     score_reference MODEL TEXT
 *
 * Prints a JSON object: nll in nats, tokens predicted, and how often an expert was chosen before another by
 * less than 1e-4 of its probability. */
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/os.h"
#include "model/ref.h"
#include "support/golden.h"

#define SEPARATOR  "\n<|endoftext|>\n"
#define TEXT_MAX   (64u << 20)
#define LAYERS_MAX 256
#define CLOSE      1e-4f

struct scorer {
    const struct mdl_model *m;
    struct mdl_ref *ref;
    float *logits;
    struct mdl_ref_route routes[LAYERS_MAX];
    double nll;
    uint64_t tokens, close;
};

/* End of text, the document, end of text; documents that are longer than the context are passed over. */
static enum vkmoe_status score(struct scorer *s, const char *text, size_t n_bytes, struct vkmoe_err *err)
{
    const struct mdl_config *c = &s->m->config;
    const int32_t eos = mdl_token_eos(s->m->tok);
    enum vkmoe_status st = VKMOE_OK;
    int32_t *ids = NULL;
    size_t n;

    TRY(mdl_encode(s->m->tok, text, n_bytes, false, &ids, &n, err));
    if (!n || n + 1 > c->n_ctx_train)
        goto done;
    mdl_ref_reset(s->ref);
    for (size_t t = 0; t <= n; t++) {
        TRY(mdl_ref_feed(s->ref, t ? ids[t - 1] : eos, s->logits, s->routes, err));
        s->nll += golden_token_nll(s->logits, c->vocab_size, t < n ? ids[t] : eos);
        for (uint32_t l = 0; l < c->n_layers; l++)
            s->close += s->routes[l].last - s->routes[l].next < CLOSE * s->routes[l].last;
    }
    s->tokens += n + 1;
done:
    cor_free(ids);
    return st;
}

static enum vkmoe_status score_file(struct scorer *s, const char *path, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    char *all = NULL;
    size_t n;

    TRY(cor_file_slurp(path, TEXT_MAX, &all, &n, err));
    for (const char *p = all; p;) {
        const char *end = strstr(p, SEPARATOR);

        TRY(score(s, p, end ? (size_t)(end - p) : strlen(p), err));
        p = end ? end + strlen(SEPARATOR) : NULL;
    }
done:
    cor_free(all);
    return st;
}

int main(int argc, char **argv)
{
    enum vkmoe_status st = VKMOE_OK;
    static struct scorer s;
    struct mdl_model *m = NULL;
    struct vkmoe_err error, *err = &error;

    if (argc != 3) {
        fprintf(stderr, "usage: score_reference MODEL TEXT\n");
        return 2;
    }
    TRY(mdl_open(&m, argv[1], err));
    if (m->config.n_layers > LAYERS_MAX)
        FAIL(VKMOE_ERR_LIMIT, "%s: more than %d layers", argv[1], LAYERS_MAX);
    s.m = m;
    s.logits = cor_array(m->config.vocab_size, sizeof(float));
    TRY(mdl_ref_create(&s.ref, m, &(struct mdl_ref_params){.n_ctx = m->config.n_ctx_train}, err));
    TRY(score_file(&s, argv[2], err));
    printf("{\"nll\": %.9f, \"tokens\": %llu, \"close\": %llu}\n", s.nll, (unsigned long long)s.tokens,
           (unsigned long long)s.close);
done:
    if (st != VKMOE_OK)
        fprintf(stderr, "score_reference: %s\n", error.message);
    mdl_ref_destroy(s.ref);
    cor_free(s.logits);
    mdl_close(m);
    return st != VKMOE_OK;
}
