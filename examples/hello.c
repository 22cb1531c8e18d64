/* hello: the shortest complete use of the library. `hello MODEL.gguf "In the beginning"` writes what follows.
 */
#include <stdio.h>
#include <string.h>

#include <vkmoe.h>

#define TRY(call)           \
    if ((call) != VKMOE_OK) \
    goto done

int main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "models/emo-nano.gguf";
    const char *text = argc > 2 ? argv[2] : "In the beginning";
    struct vkmoe_err err = {0};
    struct vkmoe_sampler_params sampling;
    vkmoe_context *ctx = NULL;
    vkmoe_device *dev = NULL;
    vkmoe_model *model = NULL;
    vkmoe_session *ses = NULL;
    vkmoe_sampler *sampler = NULL;
    int32_t *ids = NULL, token;
    size_t n = 0;

    TRY(vkmoe_open(&ctx, NULL, &err));
    TRY(vkmoe_device_open(&dev, ctx, NULL, &err)); /* the best one */
    TRY(vkmoe_model_open(&model, dev, path, NULL, &err));
    TRY(vkmoe_session_create(&ses, model, NULL, &err));
    vkmoe_sampler_defaults(&sampling);
    sampling.seed = 7;
    TRY(vkmoe_sampler_create(&sampler, &sampling, &err));

    TRY(vkmoe_tokenize_prompt(model, text, strlen(text), false, &ids, &n, &err));
    TRY(vkmoe_session_feed(ses, ids, n, &err));
    fputs(text, stdout);
    for (int i = 0; i < 64; i++) {
        const struct vkmoe_model_info *m = vkmoe_model_facts(model);
        const char *bytes;

        TRY(vkmoe_sample(sampler, vkmoe_session_logits(ses), m->vocab_size, m->n_tokens_used, &token, &err));
        if (vkmoe_token_is_end(model, token))
            break;
        n = vkmoe_token_bytes(model, token, &bytes);
        fwrite(bytes, 1, n, stdout);
        TRY(vkmoe_session_feed(ses, &token, 1, &err));
    }
    putchar('\n');
done:
    if (err.status != VKMOE_OK)
        fprintf(stderr, "hello: %s\n", err.message);
    vkmoe_free(ids);
    vkmoe_sampler_destroy(sampler);
    vkmoe_session_destroy(ses);
    vkmoe_model_close(model);
    vkmoe_device_close(dev);
    vkmoe_close(ctx);
    return err.status != VKMOE_OK;
}
