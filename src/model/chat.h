/* Turns of a conversation as token ids, as the chat templates of the common families write them. A file's
 * template is recognised by its marks, not interpreted; owns the families and which ids their marks are. */
#ifndef MDL_CHAT_H
#define MDL_CHAT_H

#include "core/status.h"

struct mdl_gguf;
struct mdl_tokenizer;
struct mdl_chat;

/* By the file's tokenizer.chat_template. t stays the caller's, and must outlive it. Refuses a file without a
 * template, a template of no known family, and a family whose mark for the end of a turn the vocabulary
 * lacks. */
enum vkmoe_status mdl_chat_open(struct mdl_chat **out, const struct mdl_gguf *g,
                                const struct mdl_tokenizer *t, struct vkmoe_err *err);
/* The same without a template: what is said stands on lines of its own. */
enum vkmoe_status mdl_chat_plain(struct mdl_chat **out, const struct mdl_tokenizer *t, struct vkmoe_err *err);
void mdl_chat_close(struct mdl_chat *c);

const char *mdl_chat_family(const struct mdl_chat *c);    /* "chatml"; "none" without a template */
bool mdl_chat_ends(const struct mdl_chat *c, int32_t id); /* a reply ends with this token */

/* Which part of a reply a token belongs to: families with channels say who hears what follows. */
enum mdl_chat_part {
    MDL_CHAT_TEXT,
    MDL_CHAT_ASIDE /* thoughts */,
    MDL_CHAT_MARK /* marks and channel names */
};
struct mdl_chat_hearing { /* zeroed when a reply begins */
    bool in_head, aside;
    char head[32];
    size_t n_head;
};
enum mdl_chat_part mdl_chat_hear(const struct mdl_chat *c, struct mdl_chat_hearing *h, int32_t id);

/* What is fed before a reply: the first turn of a conversation begins with what stands before every text and
 * with the system's part (NULL: the template's own, if it has one), a later one with the end of the reply
 * before it. Marks become their tokens; names of control tokens in `system` and `user` stay text. *ids:
 * cor_free by the caller. */
enum vkmoe_status mdl_chat_turn(const struct mdl_chat *c, bool first, const char *system, const char *user,
                                int32_t **ids, size_t *n_ids, struct vkmoe_err *err);

#endif
