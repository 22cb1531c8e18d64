/* Replacement policies as text. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "run/slots.h"

static const char *const kinds[] = {[RUN_DECAY] = "decay", [RUN_LRU] = "lru", [RUN_LFU] = "lfu"};
static const char *const scopes[] = {
    [RUN_SCOPE_AUTO] = "", [RUN_SCOPE_LAYER] = "/layer", [RUN_SCOPE_GLOBAL] = "/global"};

/* A whole number from 1 to max in text[0..n); 0 when it is none. */
static uint32_t number(const char *text, size_t n, uint32_t max)
{
    uint32_t v = 0;

    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9' || v > max / 10)
            return 0;
        v = v * 10 + (uint32_t)(text[i] - '0');
    }
    return v <= max ? v : 0;
}

enum vkmoe_status run_policy_parse(struct run_policy *p, const char *text, struct vkmoe_err *err)
{
    struct run_policy r = {0};
    const char *scope = strchr(text, '/');
    size_t n = scope ? (size_t)(scope - text) : strlen(text), name = 0, k = 0, c = 0;

    while (name < n && text[name] != ':')
        name++;
    while (k < COR_COUNT(kinds) && (strlen(kinds[k]) != name || memcmp(kinds[k], text, name)))
        k++;
    while (scope && c < COR_COUNT(scopes) && strcmp(scopes[c], scope))
        c++;
    if (k == COR_COUNT(kinds) || c == COR_COUNT(scopes))
        return cor_fail(err, VKMOE_ERR_ARGUMENT,
                        "policy '%.40s': lru, lfu, decay or decay:TOKENS, with /layer or /global or without",
                        text);
    r.kind = (enum run_policy_kind)k;
    r.scope = (enum run_policy_scope)c;
    if (name < n) {
        r.half_life = number(text + name + 1, n - name - 1, RUN_HALF_LIFE_MAX);
        if (r.kind != RUN_DECAY || !r.half_life)
            return cor_fail(err, VKMOE_ERR_ARGUMENT,
                            "policy '%.40s': only decay takes a half-life, from 1 to %d tokens", text,
                            RUN_HALF_LIFE_MAX);
    }
    *p = r;
    return VKMOE_OK;
}

const char *run_policy_print(const struct run_policy *p, char *text, size_t n)
{
    if (p->kind == RUN_DECAY && p->half_life)
        snprintf(text, n, "%s:%" PRIu32 "%s", kinds[p->kind], p->half_life, scopes[p->scope]);
    else
        snprintf(text, n, "%s%s", kinds[p->kind], scopes[p->scope]);
    return text;
}
