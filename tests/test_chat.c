/* Chat templates: which family a file's template is of, and the ids of its turns, shown as text with the
 * marks that became tokens in brackets. */
#include "support/test.h"

#include <stdio.h>

#include "model/chat.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

enum { MORE_MAX = 12 };

static struct vkmoe_err err;
static char path[4096];
static struct mdl_gguf *gguf;
static struct mdl_tokenizer *tok;

/* A vocabulary of bytes and the named tokens, of which the first ends a text. */
struct file {
    const char *template;
    const char *more[MORE_MAX];
    const char *bos;   /* NULL: no such key */
    bool user_defined; /* the named tokens, except for the first */
};

static void put_char(char *dst, uint32_t cp)
{
    if (cp < 0x80) {
        dst[0] = (char)cp;
        dst[1] = 0;
    } else {
        dst[0] = (char)(0xC0 | cp >> 6);
        dst[1] = (char)(0x80 | (cp & 63));
        dst[2] = 0;
    }
}

static void write_file(const struct file *f)
{
    static char bytes[256][4];
    struct mdl_str tokens[256 + MORE_MAX];
    int32_t kinds[256 + MORE_MAX];
    struct mdl_gguf_writer *w;
    uint32_t extra = 256, n = 256;

    for (uint32_t b = 0; b < 256; b++) {
        bool shown = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;

        put_char(bytes[b], shown ? b : extra++);
        tokens[b] = (struct mdl_str){bytes[b], strlen(bytes[b])};
        kinds[b] = MDL_TOKEN_NORMAL;
    }
    test_ok(mdl_gguf_create(&w, path, &err), &err);
    test_ok(mdl_gguf_put_str(w, "tokenizer.ggml.model", "gpt2", 4, &err), &err);
    test_ok(mdl_gguf_put_str(w, "tokenizer.ggml.pre", "gpt-2", 5, &err), &err);
    test_ok(mdl_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 256, &err), &err);
    for (size_t i = 0; i < MORE_MAX && f->more[i]; i++, n++) {
        tokens[n] = (struct mdl_str){f->more[i], strlen(f->more[i])};
        kinds[n] = i && f->user_defined ? MDL_TOKEN_USER : MDL_TOKEN_CONTROL;
        if (f->bos && !strcmp(f->bos, f->more[i]))
            test_ok(mdl_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", n, &err), &err);
    }
    test_ok(mdl_gguf_put_array(w, "tokenizer.ggml.tokens", MDL_GGUF_STRING, tokens, n, &err), &err);
    test_ok(mdl_gguf_put_array(w, "tokenizer.ggml.token_type", MDL_GGUF_I32, kinds, n, &err), &err);
    test_ok(mdl_gguf_put_array(w, "tokenizer.ggml.merges", MDL_GGUF_STRING, tokens, 0, &err), &err);
    if (f->template)
        test_ok(mdl_gguf_put_str(w, "tokenizer.chat_template", f->template, strlen(f->template), &err), &err);
    test_ok(mdl_gguf_commit(w, &err), &err);
}

static enum vkmoe_status open_file(struct mdl_chat **c, const struct file *f)
{
    write_file(f);
    test_ok(mdl_gguf_open(&gguf, path, &err), &err);
    test_ok(mdl_tokenizer_from_gguf(&tok, gguf, &err), &err);
    return mdl_chat_open(c, gguf, tok, &err);
}

static void close_file(struct mdl_chat *c)
{
    mdl_chat_close(c);
    mdl_tokenizer_close(tok);
    mdl_gguf_close(gguf);
}

static void expect_turn(const struct mdl_chat *c, bool first, const char *system, const char *user,
                        const char *want)
{
    char got[1024] = "";
    int32_t *ids;
    size_t n, k = 0;

    test_ok(mdl_chat_turn(c, first, system, user, &ids, &n, &err), &err);
    for (size_t i = 0; i < n; i++) {
        const char *p;
        size_t len = mdl_token_bytes(tok, ids[i], &p);
        bool mark = ids[i] >= 256;

        k += (size_t)snprintf(got + k, sizeof(got) - k, "%s%.*s%s", mark ? "{" : "", (int)len, p,
                              mark ? "}" : "");
        assert_true(k < sizeof(got));
    }
    if (strcmp(got, want))
        fail_msg("%s: \"%s\", expected \"%s\"", mdl_chat_family(c), got, want);
    cor_free(ids);
}

/* ---- families: two turns, with and without a system's part */

#define HARMONY                                                                                            \
    "{<|start|>}system{<|message|>}You are ChatGPT, a large language model trained by OpenAI.\nKnowledge " \
    "cutoff: 2024-06\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must " \
    "be included for every message.{<|end|>}"

static const struct {
    struct file file;
    const char *family, *with_system, *first, *second;
} rows[] = {
    {{.template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
                  "+ '\n' }}{% endfor %}",
      .more = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}},
     "chatml",
     "{<|im_start|>}system\nbe <s>{<|im_end|>}\n{<|im_start|>}user\n "
     "hi{<|im_end|>}\n{<|im_start|>}assistant\n",
     "{<|im_start|>}user\n hi{<|im_end|>}\n{<|im_start|>}assistant\n",
     "{<|im_end|>}\n{<|im_start|>}user\n<|im_end|>{<|im_end|>}\n{<|im_start|>}assistant\n"},
    /* Qwen's: a system's part of its own, and marks that the file calls user-defined */
    {{.template = "{% if tools %}{{ '<|im_start|>system\\n' }}{% else %}{{ '<|im_start|>system\\nBe "
                  "good.<|im_end|>\\n' }}{% endif %}",
      .more = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"},
      .bos = "<|endoftext|>",
      .user_defined = true},
     "chatml",
     "{<|im_start|>}system\nbe <s>{<|im_end|>}\n{<|im_start|>}user\n "
     "hi{<|im_end|>}\n{<|im_start|>}assistant\n",
     "{<|im_start|>}system\nBe good.{<|im_end|>}\n{<|im_start|>}user\n "
     "hi{<|im_end|>}\n{<|im_start|>}assistant\n",
     "{<|im_end|>}\n{<|im_start|>}user\n<|im_end|>{<|im_end|>}\n{<|im_start|>}assistant\n"},
    {{.template =
          "{{ bos_token }}<|start_header_id|>{{ role }}<|end_header_id|>\n\n{{ content | trim }}<|eot_id|>",
      .more = {"<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
               "<|eot_id|>"},
      .bos = "<|begin_of_text|>"},
     "llama-3",
     "{<|begin_of_text|>}{<|start_header_id|>}system{<|end_header_id|>}\n\nbe "
     "<s>{<|eot_id|>}{<|start_header_id|>}user{<|end_header_id|>}\n\nhi{<|eot_id|>}{<|start_header_id|>}"
     "assistant{<|end_header_id|>}\n\n",
     "{<|begin_of_text|>}{<|start_header_id|>}user{<|end_header_id|>}\n\nhi{<|eot_id|>}{<|start_header_id|>}"
     "assistant{<|end_header_id|>}\n\n",
     "{<|eot_id|>}{<|start_header_id|>}user{<|end_header_id|>}\n\n<|im_end|>{<|eot_id|>}{<|start_header_id|>}"
     "assistant{<|end_header_id|>}\n\n"},
    {{.template = "{{ bos_token + '[INST] ' }}<<SYS>>{{ eos_token }}", .more = {"</s>", "<s>"}, .bos = "<s>"},
     "llama-2",
     "{<s>}[INST] <<SYS>>\nbe <s>\n<</SYS>>\n\nhi [/INST]",
     "{<s>}[INST] hi [/INST]",
     "{</s>}{<s>}[INST] <|im_end|> [/INST]"},
    {{.template = "{{ bos_token }}[INST] {{ content }} [/INST]{{ eos_token }}",
      .more = {"</s>", "<s>"},
      .bos = "<s>"},
     "mistral",
     "{<s>}[INST] be <s>\n\n hi [/INST]",
     "{<s>}[INST]  hi [/INST]",
     "{</s>}[INST] <|im_end|> [/INST]"},
    {{.template = "{{ bos_token }}[INST]{{ content }}[/INST]{{ eos_token }}",
      .more = {"</s>", "<s>", "[INST]", "[/INST]"},
      .bos = "<s>"},
     "mistral",
     "{<s>}{[INST]}be <s>\n\n hi{[/INST]}",
     "{<s>}{[INST]} hi{[/INST]}",
     "{</s>}{[INST]}<|im_end|>{[/INST]}"},
    {{.template = "{{ bos_token }}{{ '<|user|>\n' + m['content'] + '\n' }}{{ '<|assistant|>\n' + "
                  "m['content'] + eos_token + '\n' }}",
      .more = {"<|endoftext|>"},
      .bos = "<|endoftext|>"},
     "tulu",
     "{<|endoftext|>}<|system|>\nbe <s>\n<|user|>\n hi\n<|assistant|>\n",
     "{<|endoftext|>}<|user|>\n hi\n<|assistant|>\n",
     "{<|endoftext|>}\n<|user|>\n<|im_end|>\n<|assistant|>\n"},
    {{.template = "<|start_of_role|>{{ role }}<|end_of_role|>{{ content }}<|end_of_text|>",
      .more = {"<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"}},
     "granite",
     "{<|start_of_role|>}system{<|end_of_role|>}be "
     "<s>{<|end_of_text|>}\n{<|start_of_role|>}user{<|end_of_role|>} "
     "hi{<|end_of_text|>}\n{<|start_of_role|>}assistant{<|end_of_role|>}",
     "{<|start_of_role|>}user{<|end_of_role|>} "
     "hi{<|end_of_text|>}\n{<|start_of_role|>}assistant{<|end_of_role|>}",
     "{<|end_of_text|>}\n{<|start_of_role|>}user{<|end_of_role|>}<|im_end|>{<|end_of_text|>}\n{<|start_of_"
     "role|>}assistant{<|end_of_role|>}"},
    {{.template = "<|start|>assistant<|channel|>final<|message|>{{ content }}<|return|>",
      .more = {"<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"}},
     "harmony",
     HARMONY "{<|start|>}developer{<|message|>}# Instructions\n\nbe "
             "<s>\n\n{<|end|>}{<|start|>}user{<|message|>} hi{<|end|>}{<|start|>}assistant",
     HARMONY "{<|start|>}user{<|message|>} hi{<|end|>}{<|start|>}assistant",
     "{<|end|>}{<|start|>}user{<|message|>}<|im_end|>{<|end|>}{<|start|>}assistant"},
    {{.template = "{{ bos_token }}{{ 'User: ' + message['content'] + '\n\n' }}{{ 'Assistant: ' + "
                  "message['content'] + eos_token }}",
      .more = {"</s>", "<s>"},
      .bos = "<s>"},
     "deepseek-2",
     "{<s>}be <s>\n\nUser:  hi\n\nAssistant:",
     "{<s>}User:  hi\n\nAssistant:",
     "{</s>}User: <|im_end|>\n\nAssistant:"},
};

static void families(void **state)
{
    (void)state;
    for (size_t i = 0; i < COR_COUNT(rows); i++) {
        struct mdl_chat *c;

        test_ok(open_file(&c, &rows[i].file), &err);
        assert_string_equal(mdl_chat_family(c), rows[i].family);
        expect_turn(c, true, "be <s>", " hi", rows[i].with_system);
        expect_turn(c, true, NULL, " hi", rows[i].first);
        expect_turn(c, false, "be <s>", "<|im_end|>", rows[i].second);
        close_file(c);
    }
}

static void without_template(void **state)
{
    const struct file f = {.more = {"</s>", "<s>"}};
    struct mdl_chat *c;

    (void)state;
    assert_int_equal(open_file(&c, &f), VKMOE_ERR_UNSUPPORTED);
    assert_null(c);
    test_ok(mdl_chat_plain(&c, tok, &err), &err);
    assert_string_equal(mdl_chat_family(c), "none");
    expect_turn(c, true, NULL, "a", "a\n");
    expect_turn(c, true, "sys", "a</s>", "sys\na</s>\n");
    expect_turn(c, false, NULL, "b", "\nb\n");
    assert_true(mdl_chat_ends(c, 256));
    assert_false(mdl_chat_ends(c, 'a'));
    close_file(c);
}

static void refused(void **state)
{
    static const struct {
        struct file file;
        const char *words;
    } bad[] = {
        {{.more = {"</s>"}}, "no tokenizer.chat_template"},
        {{.template = "{{ messages }}", .more = {"</s>"}}, "of no family that is known"},
        {{.template = "<|im_start|><|im_sep|><|im_end|>", .more = {"<|im_end|>"}}, "of no family"},
        {{.template = "{{ '<|user|>\n' + m + eos_token }}{{ '<|assistant|>\n' }}", .more = {"</s>"}},
         "of no family"}, /* Zephyr's */
        {{.template = "<|im_start|>{{ m }}<|im_end|>", .more = {"</s>"}},
         "is chatml's, but no token is <|im_end|>"},
    };

    (void)state;
    for (size_t i = 0; i < COR_COUNT(bad); i++) {
        struct mdl_chat *c;

        assert_true(open_file(&c, &bad[i].file) != VKMOE_OK);
        assert_null(c);
        if (!strstr(err.message, bad[i].words) || !strstr(err.message, "--no-template"))
            fail_msg("\"%s\" lacks \"%s\"", err.message, bad[i].words);
        close_file(c);
    }
}

/* Of a reply with channels only what the user is meant to hear is text. */
static void channels(void **state)
{
    static const char reply[] =
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
        "Hi!<|return|>";
    const struct file f = {.template = "<|start|><|channel|><|message|>",
                           .more = {"<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"}};
    struct mdl_chat_hearing h = {0};
    char heard[64] = "", aside[64] = "";
    struct mdl_chat *c;
    int32_t *ids;
    size_t n;

    (void)state;
    test_ok(open_file(&c, &f), &err);
    test_ok(mdl_encode(tok, reply, strlen(reply), true, &ids, &n, &err), &err);
    for (size_t i = 0; i < n; i++) {
        enum mdl_chat_part part = mdl_chat_hear(c, &h, ids[i]);
        const char *p;

        mdl_token_bytes(tok, ids[i], &p);
        assert_int_equal(mdl_chat_ends(c, ids[i]), i + 1 == n); /* not <|end|> */
        if (part == MDL_CHAT_TEXT)
            strncat(heard, p, 1);
        if (part == MDL_CHAT_ASIDE)
            strncat(aside, p, 1);
    }
    assert_string_equal(heard, "Hi!");
    assert_string_equal(aside, "Hm.");
    cor_free(ids);
    close_file(c);
}

static void every_allocation_fails(void **state)
{
    struct mdl_chat *c;
    long live;

    (void)state;
    test_ok(open_file(&c, &rows[1].file), &err);
    mdl_chat_close(c);
    live = cor_alloc_live();
    for (long nth = 1, done = 0; !done; nth++) {
        int32_t *ids = NULL;
        size_t n;

        assert_true(nth < 200);
        cor_alloc_fail_from(nth);
        enum vkmoe_status st = mdl_chat_open(&c, gguf, tok, &err);
        if (!st)
            st = mdl_chat_turn(c, false, NULL, "hello", &ids, &n, &err);
        cor_alloc_fail_from(0);
        cor_free(ids);
        mdl_chat_close(c);
        assert_int_equal(cor_alloc_live(), live);
        done = !st;
    }
    close_file(NULL);
}

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof(path), "%s/chat.gguf", test_tmp());
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    assert_int_equal(cor_alloc_live(), 0);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families), cmocka_unit_test(without_template),       cmocka_unit_test(refused),
        cmocka_unit_test(channels), cmocka_unit_test(every_allocation_fails),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
