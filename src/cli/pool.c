#include "cli/pool.h"

#include <inttypes.h>
#include <string.h>

#include "core/os.h"

#define MIB(bytes) ((double)(bytes) / (1 << 20))
#define MIB_MAX    (UINT64_C(1) << 40)

bool cli_pool_bytes(const char *text, size_t n, uint64_t *bytes)
{
    uint64_t mib = 0;

    *bytes = VKMOE_POOL_AUTO;
    if (!text || (n == 4 && !memcmp(text, "auto", n)))
        return true;
    if (n == 3 && !memcmp(text, "all", n)) {
        *bytes = VKMOE_POOL_ALL;
        return true;
    }
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        mib = 10 * mib + (uint64_t)(text[i] - '0');
        if (mib > MIB_MAX)
            return false;
    }
    *bytes = mib << 20;
    return mib > 0;
}

static uint32_t bank(const struct cli_engine *e)
{
    struct vkmoe_pool_stats s;

    vkmoe_model_get_pool(e->mdl, &s);
    return s.experts;
}

void cli_pool_note(const struct cli_engine *e)
{
    struct vkmoe_pool_stats s;
    uint64_t bytes;

    vkmoe_model_get_pool(e->mdl, &s);
    if (!s.holds_all)
        return;
    cli_pool_bytes(e->pool, e->pool ? strlen(e->pool) : 0, &bytes);
    if ((bytes != VKMOE_POOL_AUTO && bytes != VKMOE_POOL_ALL) || e->policy || e->warm_start)
        fprintf(stderr, "vkmoe: all %" PRIu32 " experts fit: the pool never evicts%s\n", bank(e),
                e->warm_start ? ", and --warm-start changes nothing" : "");
}

uint64_t cli_pool_device_bytes(const struct cli_engine *e)
{
    struct vkmoe_pool_stats p;
    struct vkmoe_session_stats s;

    vkmoe_model_get_pool(e->mdl, &p);
    vkmoe_session_get_stats(e->ses, &s);
    return vkmoe_model_facts(e->mdl)->dense_bytes + p.slots_bytes + p.staging_bytes + p.table_bytes +
           s.kv_bytes + s.state_bytes;
}

static double share(uint64_t part, uint64_t rest)
{
    return part + rest ? (double)part / (double)(part + rest) : -1;
}

double cli_pool_hit_rate(const struct vkmoe_pool_counts *c)
{
    return share(c->hits, c->misses);
}

/* ---- JSON
 * --------------------------------------------------------------------------------------------------- */

static void json_rate(double rate)
{
    if (rate < 0)
        printf("null");
    else
        printf("%.6f", rate);
}

static void json_counts(const struct vkmoe_pool_counts *c)
{
    printf("\"tokens\": %" PRIu64 ", \"hits\": %" PRIu64 ", \"misses\": %" PRIu64 ", \"evictions\": %" PRIu64
           ", \"uploaded_bytes\": %" PRIu64 ", \"host_waits\": %" PRIu64 ", \"visits\": %" PRIu64
           ", \"blocking_visits\": %" PRIu64 ", \"reuploads\": %" PRIu64 ", \"hit_rate\": ",
           c->tokens, c->hits, c->misses, c->evictions, c->uploaded_bytes, c->host_waits, c->visits,
           c->blocking_visits, c->reuploads);
    json_rate(cli_pool_hit_rate(c));
}

void cli_pool_json(const struct cli_engine *e)
{
    struct vkmoe_pool_stats s;
    struct vkmoe_model_stats ms;
    struct vkmoe_session_stats ss;
    struct vkmoe_device_memory dm;
    const struct vkmoe_pool_prefill *p = &s.prefill;

    vkmoe_model_get_pool(e->mdl, &s);
    vkmoe_model_get_stats(e->mdl, &ms);
    vkmoe_session_get_stats(e->ses, &ss);
    printf("\"pool\": {\"slots\": %" PRIu32 ", \"slot_bytes\": %" PRIu64 ", \"segments\": %" PRIu32
           ", \"resident\": %" PRIu32 ", \"experts\": %" PRIu32 ", \"holds_all\": %s, \"policy\": ",
           s.slots, s.slot_bytes, s.segments, s.resident, bank(e), s.holds_all ? "true" : "false");
    cli_json_string(s.policy, strlen(s.policy));
    printf(", \"budget_bytes\": %" PRIu64 ", \"slots_bytes\": %" PRIu64 ", \"staging_bytes\": %" PRIu64
           ", \"table_bytes\": %" PRIu64 ", \"uploads\": %" PRIu64 ", \"halts\": %" PRIu64 ", ",
           s.budget_bytes, s.slots_bytes, s.staging_bytes, s.table_bytes, ms.uploads, ss.halts);
    json_counts(&s.total);
    printf(", \"cold\": {");
    json_counts(&s.cold);
    printf("}, \"warm\": {");
    json_counts(&s.warm);
    printf("}, \"prefill\": {\"chunks\": %" PRIu64 ", \"tokens\": %" PRIu64 ", \"hits\": %" PRIu64
           ", \"loads\": %" PRIu64 ", \"evictions\": %" PRIu64 ", \"displaced\": %" PRIu64
           ", \"uploaded_bytes\": %" PRIu64 ", \"host_waits\": %" PRIu64 "}",
           p->chunks, p->tokens, p->hits, p->loads, p->evictions, p->displaced, p->uploaded_bytes,
           p->host_waits);
    printf(", \"opening\": {\"uploaded_bytes\": %" PRIu64 "}}",
           ms.uploaded_bytes - s.total.uploaded_bytes - p->uploaded_bytes);
    vkmoe_device_get_memory(e->dev, &dm);
    printf(", \"memory\": {\"dense_bytes\": %" PRIu64 ", \"session_bytes\": %" PRIu64
           ", \"device_bytes\": %" PRIu64 ", \"device_peak_bytes\": %" PRIu64 "}",
           vkmoe_model_facts(e->mdl)->dense_bytes, ss.kv_bytes + ss.state_bytes, dm.in_use_bytes,
           dm.peak_bytes);
}

/* ---- lines for people
 * --------------------------------------------------------------------------------------- */

void cli_pool_line(const struct cli_engine *e, int key_width)
{
    struct vkmoe_pool_stats s;
    struct vkmoe_model_stats ms;
    double hits;

    vkmoe_model_get_pool(e->mdl, &s);
    vkmoe_model_get_stats(e->mdl, &ms);
    fprintf(stderr, "%-*s", key_width, "experts");
    if (s.holds_all && s.resident == bank(e)) {
        fprintf(stderr, "all %" PRIu32 " resident (%.1f MiB)\n", bank(e), MIB(s.slots_bytes));
        return;
    }
    hits = s.total.tokens ? cli_pool_hit_rate(&s.total) : share(s.prefill.hits, s.prefill.loads);
    fprintf(stderr, "%" PRIu32 " slots of %" PRIu32 " (%.1f MiB)", s.slots, bank(e), MIB(s.slots_bytes));
    if (hits >= 0)
        fprintf(stderr, ", hits %.1f %%", hits * 100);
    fprintf(stderr, ", %" PRIu64 " loads, %.1f MiB\n", ms.uploads, MIB(ms.uploaded_bytes));
    if (!s.holds_all && s.total.tokens >= 32 && !s.total.hits)
        fprintf(stderr,
                "vkmoe: warning: no token found an expert in the pool: %" PRIu32
                " slots under the policy %s are of no use here\n",
                s.slots, s.policy);
}

/* Ten figures a second are enough. */
#define UPDATE_NS 100000000u

/* "24.2 tokens/s, hits 93.1 %, ...": 78 columns as a rule, cut where the terminal is narrower. */
static void compose(struct cli_status *s, size_t n_decoded, uint64_t now)
{
    double seconds = (double)(now - s->start_ns) * 1e-9, hits;
    struct vkmoe_pool_stats p;
    struct vkmoe_model_stats ms;
    char rate[32] = "hits -";

    vkmoe_model_get_pool(s->e->mdl, &p);
    vkmoe_model_get_stats(s->e->mdl, &ms);
    hits = cli_pool_hit_rate(&p.total);
    if (hits >= 0)
        snprintf(rate, sizeof(rate), "hits %.1f %%", hits * 100);
    snprintf(s->line, sizeof(s->line),
             "%.1f tokens/s, %s, experts %" PRIu32 "/%" PRIu32 ", device %.1f MiB, loaded %.1f MiB",
             seconds > 0 ? (double)n_decoded / seconds : 0, rate, p.resident, p.slots,
             MIB(cli_pool_device_bytes(s->e)), MIB(ms.uploaded_bytes));
    if (s->columns && s->columns - 1 < sizeof(s->line))
        s->line[s->columns - 1] = '\0'; /* a full line would wrap */
}

void cli_status_begin(struct cli_status *s, const struct cli_engine *e, bool text)
{
    *s = (struct cli_status){.e = e, .below = text && cor_is_tty(1), .start_ns = cor_now_ns()};
    s->columns = cor_terminal_columns();
    s->on = s->columns > 1;
    s->last_ns = s->start_ns;
}

/* Columns that a character takes, by the first byte of its UTF-8: exact for Latin, Greek, Cyrillic, CJK and
 * most symbols. */
static unsigned width(unsigned char c)
{
    return c < 0x20 || c == 0x7f ? 0 : c < 0xe3 ? 1 : 2;
}

/* Moves the idea of the cursor behind the text; true when that is not the same line or at its very end. */
static bool advance(struct cli_status *s, const char *bytes, size_t n)
{
    bool left = false;

    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)bytes[i];
        unsigned w = c == '\t' ? 8 - s->column % 8 : width(c);

        if (c >= 0x80 && c < 0xc0) {
            s->more -= s->more > 0;
            continue;
        }
        s->more = c < 0xc0 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
        if (c == '\n' || c == '\r') {
            s->column = 0;
            left = left || c == '\n';
            continue;
        }
        left = left || s->column + w >= s->columns;
        s->column = s->column + w > s->columns ? w : s->column + w;
    }
    return left;
}

/* One write: nothing else comes between. Below the text: makes sure that there is a line, goes there, and
 * comes back; never at the very end of a line, where terminals differ in what they remember. */
static void draw(struct cli_status *s)
{
    int n = (int)strlen(s->line);

    if (s->below)
        fprintf(stderr,
                "\x1b"
                "D\x1b[A\x1b"
                "7\x1b[B\r\x1b[2K%s\x1b"
                "8",
                s->line);
    else
        fprintf(stderr, "\r%s%*s", s->line, s->shown > n ? s->shown - n : 0, "");
    fflush(stderr);
    s->shown = n;
}

static void erase(struct cli_status *s)
{
    if (!s->shown)
        return;
    if (s->below)
        fputs("\x1b"
              "7\x1b[B\r\x1b[2K\x1b"
              "8",
              stderr);
    else
        fprintf(stderr, "\r%*s\r", s->shown, "");
    fflush(stderr);
    s->shown = 0;
}

void cli_status_text(struct cli_status *s, const char *bytes, size_t n)
{
    if (s->on && s->below && advance(s, bytes, n))
        erase(s);
    fwrite(bytes, 1, n, stdout);
    if (s->on && s->below)
        fflush(stdout); /* cli_stdout_good tells of failures */
}

void cli_status_step(struct cli_status *s, size_t n_decoded)
{
    uint64_t now = cor_now_ns();
    bool due = now - s->last_ns >= UPDATE_NS;

    if (!s->on || (!due && (s->shown || !s->line[0])))
        return;
    if (s->below && (s->more || s->column >= s->columns))
        return;
    if (due) {
        s->columns = cor_terminal_columns();
        s->on = s->columns > 1 && s->column < s->columns;
        if (!s->on)
            return;
        compose(s, n_decoded, now);
        s->last_ns = now;
    }
    draw(s);
}

void cli_status_end(struct cli_status *s)
{
    erase(s);
    s->on = false;
}
