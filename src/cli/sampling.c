#include "cli/sampling.h"

#include "core/os.h"

void cli_sampling_defaults(struct cli_sampling *s)
{
    struct vkmoe_sampler_params d;

    vkmoe_sampler_defaults(&d);
    *s = (struct cli_sampling){.seed = -1,
                               .top_k = d.top_k,
                               .temp = d.temp,
                               .top_p = d.top_p,
                               .min_p = d.min_p,
                               .repeat_penalty = d.repeat_penalty};
}

void cli_sampling_seed(struct cli_sampling *s)
{
    if (s->seed < 0)
        s->seed = (int64_t)(cor_now_ns() & 0xffffffff);
}

uint32_t cli_sampling_logits(const struct cli_sampling *s)
{
    if (s->repeat_penalty != 1)
        return 0;
    return s->temp == 0 ? 1 : s->top_k <= VKMOE_TOP_MAX ? (uint32_t)s->top_k : 0;
}

enum vkmoe_status cli_sampling_create(vkmoe_sampler **out, const struct cli_sampling *s,
                                      struct vkmoe_err *err)
{
    const struct vkmoe_sampler_params p = {.temp = (float)s->temp,
                                           .top_k = (int32_t)s->top_k,
                                           .top_p = (float)s->top_p,
                                           .min_p = (float)s->min_p,
                                           .repeat_penalty = (float)s->repeat_penalty,
                                           .seed = (uint64_t)s->seed};

    return vkmoe_sampler_create(out, &p, err);
}

enum vkmoe_status cli_sample(vkmoe_sampler *sampler, const struct cli_engine *e, int32_t *token,
                             struct vkmoe_err *err)
{
    const struct vkmoe_model_info *m = vkmoe_model_facts(e->mdl);
    const float *logits = vkmoe_session_logits(e->ses);
    const int32_t *ids;
    uint32_t n;

    if (logits)
        return vkmoe_sample(sampler, logits, m->vocab_size, m->n_tokens_used, token, err);
    n = vkmoe_session_top(e->ses, &ids, &logits);
    return vkmoe_sample_top(sampler, ids, logits, n, m->n_tokens_used, token, err);
}
