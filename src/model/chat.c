#include "model/chat.h"

#include <string.h>

#include "core/alloc.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

enum { MARKS_MAX = 8, TEMPLATE_MAX = 1 << 20 };

#define S   "\1" /* where the system's text goes */
#define U   "\2" /* where the user's text goes */
#define BAR "\xEF\xBD\x9C"
#define LOW "\xE2\x96\x81"

struct family {
    const char *name;
    const char *has[4], *lacks[3]; /* in the template */
    const char *marks[MARKS_MAX];  /* tokens where the vocabulary has them, else text */
    const char *end;               /* token that ends a turn; NULL: the end of text */
    const char *closing;           /* what stands behind a reply in the context; NULL: end */
    const char *after;             /* and the text between that and the next turn */
    const char *begin;             /* before all else; NULL: nothing */
    const char *system, *user;
    const char *first; /* system and user in one, where they are */
    const char *user_marked,
        *first_marked; /* the same where the first mark is a token; NULL: no difference */
    bool trim;         /* white space round what is said is left out */
    bool bos_again;    /* before each turn */
    bool channels;
};

/* Sources: the chat templates of the models, as their makers publish them. The first that fits is taken. */
static const struct family families[] = {
    {.name = "harmony",
     .has = {"<|start|>", "<|channel|>", "<|message|>"},
     .marks = {"<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"},
     .end = "<|return|>",
     .closing = "<|end|>",
     .begin =
         "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
         "Knowledge cutoff: 2024-06\n\nReasoning: medium\n\n"
         "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>",
     .system = "<|start|>developer<|message|># Instructions\n\n" S "\n\n<|end|>",
     .user = "<|start|>user<|message|>" U "<|end|><|start|>assistant",
     .channels = true},
    {.name = "chatml",
     .has = {"<|im_start|>", "<|im_end|>"},
     .lacks = {"<|im_sep|>", "<end_of_utterance>"},
     .marks = {"<|im_start|>", "<|im_end|>"},
     .end = "<|im_end|>",
     .after = "\n",
     .system = "<|im_start|>system\n" S "<|im_end|>\n",
     .user = "<|im_start|>user\n" U "<|im_end|>\n<|im_start|>assistant\n"},
    {.name = "llama-3",
     .has = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
     .marks = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
     .end = "<|eot_id|>",
     .system = "<|start_header_id|>system<|end_header_id|>\n\n" S "<|eot_id|>",
     .user = "<|start_header_id|>user<|end_header_id|>\n\n" U
             "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
     .trim = true},
    {.name = "llama-4",
     .has = {"<|header_start|>", "<|header_end|>", "<|eot|>"},
     .marks = {"<|header_start|>", "<|header_end|>", "<|eot|>"},
     .end = "<|eot|>",
     .system = "<|header_start|>system<|header_end|>\n\n" S "<|eot|>",
     .user = "<|header_start|>user<|header_end|>\n\n" U "<|eot|><|header_start|>assistant<|header_end|>\n\n",
     .trim = true},
    {.name = "granite",
     .has = {"<|start_of_role|>", "<|end_of_role|>"},
     .marks = {"<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"},
     .end = "<|end_of_text|>",
     .after = "\n",
     .system = "<|start_of_role|>system<|end_of_role|>" S "<|end_of_text|>\n",
     .user = "<|start_of_role|>user<|end_of_role|>" U
             "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"},
    {.name = "llama-2",
     .has = {"[INST]", "<<SYS>>"},
     .system = "",
     .user = "[INST] " U " [/INST]",
     .first = "[INST] <<SYS>>\n" S "\n<</SYS>>\n\n" U " [/INST]",
     .trim = true,
     .bos_again = true},
    {.name = "mistral",
     .has = {"[INST]", "[/INST]"},
     .lacks = {"[SYSTEM_PROMPT]"},
     .marks = {"[INST]", "[/INST]"},
     .system = "",
     .user = "[INST] " U " [/INST]",
     .first = "[INST] " S "\n\n" U " [/INST]",
     .user_marked = "[INST]" U "[/INST]",
     .first_marked = "[INST]" S "\n\n" U "[/INST]"},
    {.name = "tulu",
     .has = {"<|user|>", "<|assistant|>", "eos_token"},
     .lacks = {"<|end|>", "[gMASK]"},
     .marks = {"<|system|>", "<|user|>", "<|assistant|>"},
     .after = "\n",
     .system = "<|system|>\n" S "\n",
     .user = "<|user|>\n" U "\n<|assistant|>\n"},
    {.name = "deepseek-2",
     .has = {"'User: ' + message['content']", "'Assistant: ' + message['content'] + eos_token"},
     .system = S "\n\n",
     .user = "User: " U "\n\nAssistant:"},
    {.name = "deepseek-3",
     .has = {"<" BAR "User" BAR ">", "<" BAR "Assistant" BAR ">"},
     .marks = {"<" BAR "User" BAR ">", "<" BAR "Assistant" BAR ">"},
     .end = "<" BAR "end" LOW "of" LOW "sentence" BAR ">",
     .system = S,
     .user = "<" BAR "User" BAR ">" U "<" BAR "Assistant" BAR ">"},
};

static const struct family plain = {.name = "none", .system = S "\n", .user = U "\n", .after = "\n"};

struct mdl_chat {
    const struct family *f;
    const struct mdl_tokenizer *t;
    int32_t bos;             /* before the first turn; -1: none */
    int32_t end, closing;    /* -1: none */
    int32_t mark[MARKS_MAX]; /* ids; -1: text */
    char *system;            /* the template's own; NULL: none */
};

/* ---- recognition */

static bool fits(const struct family *f, const char *template)
{
    for (size_t i = 0; i < COR_COUNT(f->has) && f->has[i]; i++)
        if (!strstr(template, f->has[i]))
            return false;
    for (size_t i = 0; i < COR_COUNT(f->lacks) && f->lacks[i]; i++)
        if (strstr(template, f->lacks[i]))
            return false;
    return true;
}

/* Zephyr's looks like Tulu's, but ends the user's turn with the end of text, too. */
static bool is_zephyr(const char *template)
{
    const char *user = strstr(template, "<|user|>"), *close = user ? strstr(user, "}}") : NULL;
    const char *eos = user ? strstr(user, "eos_token") : NULL;

    return close && eos && eos < close;
}

/* The text that a ChatML template puts in the system's place by itself, as Qwen's do: what stands as plain
 * text between the marks of that turn. */
static enum vkmoe_status own_system(struct mdl_chat *c, const char *template, struct vkmoe_err *err)
{
    static const char *const heads[] = {"<|im_start|>system\\n", "<|im_start|>system\n"};

    for (size_t i = 0; i < COR_COUNT(heads); i++)
        for (const char *p = template; (p = strstr(p, heads[i])) != NULL;) {
            p += strlen(heads[i]);
            size_t n = strcspn(p, "'\"{}\\<");

            if (!n || strncmp(p + n, "<|im_end|>", 10))
                continue;
            c->system = cor_zalloc(n + 1);
            if (!c->system)
                return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the template's system text");
            memcpy(c->system, p, n);
            return VKMOE_OK;
        }
    return VKMOE_OK;
}

/* The file's template, with a NUL behind it. */
static enum vkmoe_status read_template(char **out, const struct mdl_gguf *g, struct vkmoe_err *err)
{
    static const char *const key = "tokenizer.chat_template";
    const char *file = cor_file_path(g->file);
    struct mdl_str s;
    enum vkmoe_status st = VKMOE_OK;

    if (!mdl_gguf_find(g, key))
        FAIL(VKMOE_ERR_UNSUPPORTED, "%s: no %s: a base model; --no-template talks to it as it is", file, key);
    TRY(mdl_gguf_str(g, key, &s, err));
    if (s.n > TEMPLATE_MAX || (s.n && memchr(s.p, 0, (size_t)s.n)))
        FAIL(VKMOE_ERR_FORMAT, "%s: %s has %llu bytes, or a NUL among them", file, key,
             (unsigned long long)s.n);
    *out = cor_zalloc((size_t)s.n + 1);
    if (!*out)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %s", file, key);
    if (s.n)
        memcpy(*out, s.p, (size_t)s.n);
done:
    return st;
}

/* The token that the template writes before everything, whether the tokenizer adds it or not. */
static int32_t bos_of(const struct mdl_gguf *g, const struct mdl_tokenizer *t, const char *template)
{
    uint32_t id = 0;
    int32_t bos = mdl_token_bos(t);

    if (bos < 0 && strstr(template, "bos_token") && mdl_gguf_find(g, "tokenizer.ggml.bos_token_id") &&
        !mdl_gguf_u32(g, "tokenizer.ggml.bos_token_id", &id, NULL) && id < mdl_tokenizer_size(t))
        bos = (int32_t)id;
    return bos;
}

static void find_marks(struct mdl_chat *c)
{
    const struct family *f = c->f;

    for (size_t i = 0; i < MARKS_MAX; i++)
        c->mark[i] = f->marks[i] ? mdl_token_by_name(c->t, f->marks[i]) : -1;
    c->end = f->end ? mdl_token_by_name(c->t, f->end) : mdl_token_eos(c->t);
    c->closing = f->closing ? mdl_token_by_name(c->t, f->closing) : c->end;
}

enum vkmoe_status mdl_chat_open(struct mdl_chat **out, const struct mdl_gguf *g,
                                const struct mdl_tokenizer *t, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct mdl_chat *c = cor_zalloc(sizeof(*c));
    const char *file = cor_file_path(g->file);
    char *template = NULL;

    *out = NULL;
    if (!c)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for the chat", file);
    TRY(read_template(&template, g, err));
    c->t = t;
    for (size_t i = 0; !c->f && i < COR_COUNT(families); i++)
        if (fits(&families[i], template))
            c->f = &families[i];
    if (!c->f || (!strcmp(c->f->name, "tulu") && is_zephyr(template)))
        FAIL(VKMOE_ERR_UNSUPPORTED,
             "%s: tokenizer.chat_template is of no family that is known; --no-template talks to it as it is",
             file);
    find_marks(c);
    if (c->end < 0 || c->closing < 0)
        FAIL(VKMOE_ERR_FORMAT,
             "%s: tokenizer.chat_template is %s's, but no token is %s; --no-template talks to it as it is",
             file, c->f->name, c->f->end ? c->f->end : "the end of text");
    c->bos = bos_of(g, t, template);
    if (!strcmp(c->f->name, "chatml"))
        TRY(own_system(c, template, err));
    *out = c;
    c = NULL;
done:
    cor_free(template);
    mdl_chat_close(c);
    return st;
}

enum vkmoe_status mdl_chat_plain(struct mdl_chat **out, const struct mdl_tokenizer *t, struct vkmoe_err *err)
{
    struct mdl_chat *c = cor_zalloc(sizeof(*c));

    *out = c;
    if (!c)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for the chat");
    c->f = &plain;
    c->t = t;
    c->bos = mdl_token_bos(t);
    find_marks(c);
    c->closing = -1; /* a text goes on */
    return VKMOE_OK;
}

void mdl_chat_close(struct mdl_chat *c)
{
    if (!c)
        return;
    cor_free(c->system);
    cor_free(c);
}

const char *mdl_chat_family(const struct mdl_chat *c)
{
    return c->f->name;
}

bool mdl_chat_ends(const struct mdl_chat *c, int32_t id)
{
    return id == c->end || (id != c->closing && mdl_token_is_end(c->t, id));
}

/* A channel's name stands between its mark and <|message|>; <|start|> and <|end|> stand between messages. */
enum mdl_chat_part mdl_chat_hear(const struct mdl_chat *c, struct mdl_chat_hearing *h, int32_t id)
{
    const char *p;
    size_t n = mdl_token_bytes(c->t, id, &p);

    if (!c->f->channels)
        return mdl_token_is_special(c->t, id) ? MDL_CHAT_MARK : MDL_CHAT_TEXT;
    if (id == mdl_token_by_name(c->t, "<|message|>")) {
        h->in_head = false;
        h->aside = h->n_head >= 8 && !memcmp(h->head, "analysis", 8);
        return MDL_CHAT_MARK;
    }
    if (id == mdl_token_by_name(c->t, "<|channel|>") || mdl_token_is_special(c->t, id)) {
        h->in_head = true;
        h->n_head = 0;
        return MDL_CHAT_MARK;
    }
    if (!h->in_head)
        return h->aside ? MDL_CHAT_ASIDE : MDL_CHAT_TEXT;
    for (size_t i = 0; i < n && h->n_head < sizeof(h->head); i++)
        h->head[h->n_head++] = p[i];
    return MDL_CHAT_MARK;
}

/* ---- rendering */

/* Ids, and the text behind the last of them that is not encoded yet: it is encoded whole, up to the next
 * mark, so that it is cut as the text of a template would be. */
struct turn {
    const struct mdl_chat *c;
    char *text;
    size_t n_text, text_room;
    int32_t *ids;
    size_t n_ids, ids_room;
};

static enum vkmoe_status put_text(struct turn *t, const char *p, size_t n, struct vkmoe_err *err)
{
    if (t->text_room - t->n_text < n) {
        size_t room = 2 * t->text_room + n;
        char *text = cor_resize(t->text, room, 1);

        if (!text)
            return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu bytes of text", room);
        t->text = text;
        t->text_room = room;
    }
    if (n)
        memcpy(t->text + t->n_text, p, n);
    t->n_text += n;
    return VKMOE_OK;
}

static enum vkmoe_status put_ids(struct turn *t, const int32_t *ids, size_t n, struct vkmoe_err *err)
{
    if (t->ids_room - t->n_ids < n) {
        size_t room = 2 * t->ids_room + n;
        int32_t *more = cor_resize(t->ids, room, sizeof(*more));

        if (!more)
            return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu tokens", room);
        t->ids = more;
        t->ids_room = room;
    }
    if (n)
        memcpy(t->ids + t->n_ids, ids, n * sizeof(*ids));
    t->n_ids += n;
    return VKMOE_OK;
}

static enum vkmoe_status flush_text(struct turn *t, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    int32_t *ids = NULL;
    size_t n;

    if (!t->n_text)
        return VKMOE_OK;
    TRY(mdl_encode(t->c->t, t->text, t->n_text, false, &ids, &n, err));
    TRY(put_ids(t, ids, n, err));
    t->n_text = 0;
done:
    cor_free(ids);
    return st;
}

static enum vkmoe_status put_token(struct turn *t, int32_t id, struct vkmoe_err *err)
{
    enum vkmoe_status st = flush_text(t, err);

    return st || id < 0 ? st : put_ids(t, &id, 1, err);
}

static enum vkmoe_status put_said(struct turn *t, const char *s, struct vkmoe_err *err)
{
    static const char *const white = " \t\r\n\v\f";
    size_t n;

    if (t->c->f->trim)
        s += strspn(s, white);
    for (n = strlen(s); t->c->f->trim && n && strchr(white, s[n - 1]);)
        n--;
    return put_text(t, s, n, err);
}

/* The mark at p, if its token is known; *len: bytes of it. */
static int32_t mark_at(const struct mdl_chat *c, const char *p, size_t *len)
{
    for (size_t i = 0; i < MARKS_MAX; i++)
        if (c->mark[i] >= 0 && !strncmp(p, c->f->marks[i], strlen(c->f->marks[i]))) {
            *len = strlen(c->f->marks[i]);
            return c->mark[i];
        }
    return -1;
}

static enum vkmoe_status put_part(struct turn *t, const char *part, const char *system, const char *user,
                                  struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    size_t len = 1;

    for (const char *p = part; *p; p += len) {
        int32_t id = mark_at(t->c, p, &len);

        if (id >= 0) {
            TRY(put_token(t, id, err));
            continue;
        }
        len = 1;
        if (*p == S[0] || *p == U[0])
            TRY(put_said(t, *p == S[0] ? system : user, err));
        else
            TRY(put_text(t, p, 1, err));
    }
done:
    return st;
}

enum vkmoe_status mdl_chat_turn(const struct mdl_chat *c, bool first, const char *system, const char *user,
                                int32_t **ids, size_t *n_ids, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    struct turn t = {.c = c};
    const struct family *f = c->f;
    bool marked = f->user_marked && c->mark[0] >= 0;

    *ids = NULL;
    *n_ids = 0;
    system = system ? system : c->system;
    if (!first) {
        TRY(put_token(&t, c->closing, err));
        TRY(put_text(&t, f->after ? f->after : "", f->after ? strlen(f->after) : 0, err));
    }
    if (first || f->bos_again)
        TRY(put_token(&t, c->bos, err));
    if (first && f->begin)
        TRY(put_part(&t, f->begin, NULL, NULL, err));
    if (first && system && f->first) {
        TRY(put_part(&t, marked ? f->first_marked : f->first, system, user, err));
    } else {
        if (first && system)
            TRY(put_part(&t, f->system, system, user, err));
        TRY(put_part(&t, marked ? f->user_marked : f->user, system, user, err));
    }
    TRY(flush_text(&t, err));
    *ids = t.ids;
    *n_ids = t.n_ids;
    t.ids = NULL;
done:
    cor_free(t.text);
    cor_free(t.ids);
    return st;
}
