#include "support/hf.h"

#include <math.h>
#include <stdio.h>

void hf_init(struct hf_dir *h)
{
    memset(h, 0, sizeof(*h));
    snprintf(h->path, sizeof(h->path), "%s/tiny-emo", test_tmp());
    h->layers = 2;
    h->dim = 64;
    h->heads = 4;
    h->kv_heads = 2;
    h->ff = 32;
    h->experts = 5;
    h->shared = 1;
    h->per_tok = 3;
    h->vocab = 264;
    h->type = MDL_BF16;
    test_ok(cor_dir_make(h->path, NULL), NULL);
}

const char *hf_file(const struct hf_dir *h, const char *name)
{
    static char ring[4][4096];
    static unsigned next;
    char *p = ring[next++ % 4];

    snprintf(p, sizeof(ring[0]), "%s/%s", h->path, name);
    return p;
}

void hf_write_file(const struct hf_dir *h, const char *name, const void *data, size_t n)
{
    test_write(hf_file(h, name), data, n);
}

float hf_value(const char *tensor, uint64_t i)
{
    uint64_t s = i;

    for (; *tensor; tensor++)
        s = s * 31 + (unsigned char)*tensor;
    return (float)((int)(test_rand(&s) & 255) - 128) / 64; /* 8 significant bits */
}

/* ---- config.json ---- */

void hf_write_config(const struct hf_dir *h, const char *key, const char *line)
{
    char lines[24][160], text[4096] = "{\n";
    char quoted[80];
    size_t n = 0, used = 2;
    bool replaced = false;

#define LINE(...) snprintf(lines[n++], sizeof(lines[0]), __VA_ARGS__)
    LINE("\"architectures\": [\"EmoForCausalLM\"]");
    LINE("\"model_type\": \"emo\"");
    LINE("\"hidden_size\": %u", h->dim);
    LINE("\"intermediate_size\": %u", h->ff);
    LINE("\"num_hidden_layers\": %u", h->layers);
    LINE("\"num_attention_heads\": %u", h->heads);
    LINE("\"num_key_value_heads\": %u", h->kv_heads);
    LINE("\"vocab_size\": %u", h->vocab);
    LINE("\"num_experts\": %u", h->experts);
    LINE("\"num_shared_experts\": %u", h->shared);
    LINE("\"num_experts_per_tok\": %u", h->per_tok);
    LINE("\"norm_topk_prob\": false");
    LINE("\"rms_norm_eps\": 1e-06");
    LINE("\"rope_theta\": 500000.0");
    LINE("\"rope_scaling\": null");
    LINE("\"max_position_embeddings\": 128");
    LINE("\"tie_word_embeddings\": %s", h->tied ? "true" : "false");
    LINE("\"eos_token_id\": 258");
    LINE("\"pad_token_id\": 259");
    LINE("\"hidden_act\": \"silu\"");
#undef LINE
    snprintf(quoted, sizeof(quoted), "\"%s\":", key ? key : "");
    for (size_t i = 0; i < n; i++) {
        const char *out = lines[i];

        if (key && !strncmp(out, quoted, strlen(quoted))) {
            replaced = true;
            out = line;
        }
        if (out)
            used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s", used > 2 ? ",\n" : "", out);
    }
    if (key && line && !replaced)
        used += (size_t)snprintf(text + used, sizeof(text) - used, ",\n%s", line);
    used += (size_t)snprintf(text + used, sizeof(text) - used, "\n}\n");
    hf_write_file(h, "config.json", text, used);
}

/* ---- tokenizer.json ---- */

/* The character that stands for a byte in GPT-2's alphabet. */
static unsigned byte_char(unsigned b)
{
    unsigned extra = 0;

    if ((b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae)
        return b;
    for (unsigned i = 0; i < b; i++)
        extra += !((i >= '!' && i <= '~') || (i >= 0xa1 && i <= 0xac) || i >= 0xae);
    return 256 + extra;
}

void hf_write_tokenizer(const struct hf_dir *h)
{
    static char text[16384];
    size_t n = 0;

#define PUT(...) n += (size_t)snprintf(text + n, sizeof(text) - n, __VA_ARGS__)
    PUT("{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
        "{\"id\":258,\"content\":\"<|endoftext|>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
        "\"normalized\":false,\"special\":true},"
        "{\"id\":259,\"content\":\"<|pad|>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
        "\"normalized\":false,\"special\":true}],\"normalizer\":null,\"pre_tokenizer\":{\"type\":"
        "\"Sequence\","
        "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\","
        "\"invert\":false},"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}]},"
        "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_"
        "offsets\":true,"
        "\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
        "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":"
        "false,"
        "\"ignore_merges\":false,\"vocab\":{",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
        "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*"
        "|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+");
    for (unsigned b = 0; b < 256; b++) {
        unsigned c = byte_char(b);

        PUT("\"");
        if (c == '"' || c == '\\')
            PUT("\\%c", c);
        else if (c < 128)
            PUT("%c", c);
        else
            PUT("%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
        PUT("\":%u,", b);
    }
    PUT("\"he\":256,\"ll\":257},\"merges\":[\"h e\",\"l l\"]}}");
#undef PUT
    assert_true(n < sizeof(text));
    hf_write_file(h, "tokenizer.json", text, n);
}

/* ---- weights ---- */

struct shard {
    FILE *data; /* tensor bytes, before the header is known */
    char *header;
    size_t header_n;
    uint64_t bytes;
};

struct writer {
    const struct hf_dir *h;
    struct shard shards[2];
    unsigned count;
    char *index;
    size_t index_n;
};

enum { TEXT_BYTES = 1 << 18 };

static void put_tensor(struct writer *w, const char *name, uint64_t rows, uint64_t cols)
{
    const struct hf_dir *h = w->h;
    unsigned which = h->sharded ? w->count % 2 : 0;
    struct shard *s = &w->shards[which];
    uint64_t n = (rows ? rows : 1) * cols, bytes = n * (h->type == MDL_F32 ? 4 : 2);

    if (h->no_tensor && !strcmp(h->no_tensor, name))
        return;
    for (uint64_t i = 0; i < n; i++) {
        float v = hf_value(name, i);
        uint8_t raw[4];
        uint16_t half;

        if (h->infinite && !strcmp(h->infinite, name) && i + 1 == n)
            v = HUGE_VALF;
        half = h->type == MDL_F16 ? mdl_float_to_half(v) : mdl_float_to_bf16(v);
        memcpy(raw, h->type == MDL_F32 ? (const void *)&v : &half, bytes / n);
        assert_int_equal(fwrite(raw, bytes / n, 1, s->data), 1);
    }
    s->header_n += (size_t)snprintf(s->header + s->header_n, TEXT_BYTES - s->header_n,
                                    ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", name,
                                    h->type == MDL_F32   ? "F32"
                                    : h->type == MDL_F16 ? "F16"
                                                         : "BF16");
    if (rows)
        s->header_n +=
            (size_t)snprintf(s->header + s->header_n, TEXT_BYTES - s->header_n, "%u,", (unsigned)rows);
    s->header_n += (size_t)snprintf(s->header + s->header_n, TEXT_BYTES - s->header_n,
                                    "%u],\"data_offsets\":[%llu,%llu]}", (unsigned)cols,
                                    (unsigned long long)s->bytes, (unsigned long long)(s->bytes + bytes));
    w->index_n += (size_t)snprintf(w->index + w->index_n, TEXT_BYTES - w->index_n,
                                   "%s\"%s\":\"model-0000%u-of-00002.safetensors\"", w->count ? "," : "",
                                   name, which + 1);
    s->bytes += bytes;
    w->count++;
}

static void put_layer(struct writer *w, uint32_t l)
{
    const struct hf_dir *h = w->h;
    uint32_t hd = h->dim / h->heads, kv = h->kv_heads * hd;
    uint32_t experts = h->per_layer ? h->per_layer[l] : h->experts;
    char name[128];

#define NAME(...) (snprintf(name, sizeof(name), __VA_ARGS__), name)
    put_tensor(w, NAME("model.layers.%u.pre_attention_layernorm.weight", l), 0, h->dim);
    put_tensor(w, NAME("model.layers.%u.pre_feedforward_layernorm.weight", l), 0, h->dim);
    put_tensor(w, NAME("model.layers.%u.self_attn.q_proj.weight", l), h->heads * hd, h->dim);
    put_tensor(w, NAME("model.layers.%u.self_attn.k_proj.weight", l), kv, h->dim);
    put_tensor(w, NAME("model.layers.%u.self_attn.v_proj.weight", l), kv, h->dim);
    put_tensor(w, NAME("model.layers.%u.self_attn.o_proj.weight", l), h->dim, h->heads * hd);
    put_tensor(w, NAME("model.layers.%u.mlp.gate.weight", l), experts, h->dim);
    for (uint32_t e = 0; e < experts; e++) {
        put_tensor(w, NAME("model.layers.%u.mlp.experts.%u.gate_proj.weight", l, e), h->ff, h->dim);
        put_tensor(w, NAME("model.layers.%u.mlp.experts.%u.up_proj.weight", l, e), h->ff, h->dim);
        put_tensor(w, NAME("model.layers.%u.mlp.experts.%u.down_proj.weight", l, e), h->dim, h->ff);
    }
#undef NAME
}

static void finish_shard(const struct hf_dir *h, struct shard *s, const char *name)
{
    FILE *f = fopen(hf_file(h, name), "wb");
    uint64_t n = s->header_n + 1;
    uint8_t head[8];
    int c;

    assert_non_null(f);
    for (int i = 0; i < 8; i++)
        head[i] = (uint8_t)(n >> (8 * i));
    fwrite(head, 1, 8, f);
    fwrite(s->header, 1, s->header_n, f);
    fputc('}', f);
    rewind(s->data);
    while ((c = fgetc(s->data)) != EOF)
        fputc(c, f);
    assert_int_equal(fclose(f), 0);
}

void hf_write_weights(const struct hf_dir *h)
{
    struct writer w = {.h = h};

    w.index = malloc(TEXT_BYTES);
    w.index_n = (size_t)snprintf(w.index, TEXT_BYTES, "{\"metadata\":{},\"weight_map\":{");
    for (int i = 0; i < 2; i++) {
        w.shards[i].data = tmpfile();
        w.shards[i].header = malloc(TEXT_BYTES);
        assert_non_null(w.shards[i].data);
        w.shards[i].header_n =
            (size_t)snprintf(w.shards[i].header, TEXT_BYTES, "{\"__metadata__\":{\"format\":\"pt\"}");
    }
    put_tensor(&w, "model.embed_tokens.weight", h->vocab, h->dim);
    if (!h->tied)
        put_tensor(&w, "lm_head.weight", h->vocab, h->dim);
    put_tensor(&w, "model.norm.weight", 0, h->dim);
    for (uint32_t l = 0; l < h->layers; l++)
        put_layer(&w, l);
    if (h->extra_tensor)
        put_tensor(&w, h->extra_tensor, 0, 4);
    if (h->sharded) {
        finish_shard(h, &w.shards[0], "model-00001-of-00002.safetensors");
        finish_shard(h, &w.shards[1], "model-00002-of-00002.safetensors");
        w.index_n += (size_t)snprintf(w.index + w.index_n, TEXT_BYTES - w.index_n, "}}");
        hf_write_file(h, "model.safetensors.index.json", w.index, w.index_n);
    } else {
        finish_shard(h, &w.shards[0], "model.safetensors");
    }
    for (int i = 0; i < 2; i++) {
        fclose(w.shards[i].data);
        free(w.shards[i].header);
    }
    free(w.index);
}

void hf_write(const struct hf_dir *h)
{
    hf_write_config(h, NULL, NULL);
    hf_write_tokenizer(h);
    hf_write_weights(h);
}
