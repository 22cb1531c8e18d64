/* The page of `vkmoe bench compare`: a heading that says who is fastest, bars of every test, tables. Plain
 * HTML and SVG, without a script. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cli/bench_compare.h"

enum { COLOURS = 8 };

static void put(struct cli_page *p, const char *text)
{
    cli_page_put(p, text, strlen(text));
}

static void put_text(struct cli_page *p, const char *text)
{
    cli_page_html(p, text, strlen(text));
}

static void put_element(struct cli_page *p, const char *tag, const char *text)
{
    cli_page_format(p, "<%s>", tag);
    put_text(p, text);
    cli_page_format(p, "</%.*s>", (int)strcspn(tag, " "), tag);
}

static const char *device(const struct compare *c, uint32_t i)
{
    return c->files[i].name;
}

/* The test of the heading: the first that decodes, else the first. */
static const struct bench_test *main_test(const struct compare *c)
{
    for (uint32_t i = 0; i < c->n_tests; i++)
        if (c->tests[i].n_gen && !c->tests[i].n_prompt)
            return &c->tests[i];
    return &c->tests[0];
}

static void put_heading(struct cli_page *p, const struct compare *c)
{
    const struct bench_test *t = main_test(c);
    const struct compare_row *best = NULL, *slowest = NULL;
    uint32_t at = 0, last = 0;
    char name[BENCH_NAME];

    for (uint32_t i = 0; i < c->n_files; i++) {
        const struct compare_row *r = compare_find(&c->files[i], t);

        if (r && (!best || r->ts > best->ts)) {
            best = r;
            at = i;
        }
        if (r && (!slowest || r->ts < slowest->ts)) {
            slowest = r;
            last = i;
        }
    }
    put(p, "<header><p class=\"kicker\">vkmoe bench compare</p><h1>");
    put_text(p, c->files[0].facts[COMPARE_TYPE]);
    cli_page_format(p, " on %" PRIu32 " devices</h1><p class=\"lead\">", c->n_files);
    put_element(p, "b", device(c, at));
    cli_page_format(p, " is fastest at %s: %.2f tokens a second", bench_test_name(name, t), best->ts);
    if (isfinite(best->share))
        cli_page_format(p, ", %.0f %% of the bandwidth that a shader reads there", 100 * best->share);
    if (at != last && slowest->ts > 0) {
        cli_page_format(p, "; that is %.2f times ", best->ts / slowest->ts);
        put_text(p, device(c, last));
    }
    put(p, ".</p></header>\n");
}

static void put_differences(struct cli_page *p, const struct compare *c)
{
    if (!c->n_differences)
        return;
    put(p, "<div class=\"note\"><p><b>Compared by force.</b> What differs:</p><ul>");
    for (uint32_t i = 0; i < c->n_differences && i < COMPARE_DIFFERENCES; i++)
        put_element(p, "li", c->differences[i]);
    if (c->n_differences > COMPARE_DIFFERENCES)
        cli_page_format(p, "<li>and %" PRIu32 " more</li>", c->n_differences - COMPARE_DIFFERENCES);
    put(p, "</ul></div>\n");
}

/* ---- bars ---- */

/* Values and deviations on a scale of 0 to `full`, drawn in percent. */
static void put_bar(struct cli_page *p, uint32_t colour, double v, double dev, double full)
{
    double low = fmax(v - dev, 0) / full * 100, high = fmin(v + dev, full) / full * 100;

    put(p, "<svg class=\"bar\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"
           "<rect class=\"bed\" width=\"100\" height=\"10\"/>");
    cli_page_format(p, "<rect class=\"f%u\" width=\"%.2f\" height=\"10\"/>", (unsigned)(colour % COLOURS),
                    fmin(v / full, 1) * 100);
    if (dev > 0)
        cli_page_format(p, "<line class=\"dev\" x1=\"%.2f\" x2=\"%.2f\" y1=\"5\" y2=\"5\"/>", low, high);
    put(p, "</svg>");
}

static void put_speed(struct cli_page *p, const struct compare *c, const struct bench_test *t)
{
    const struct compare_row *first = compare_find(&c->files[0], t), *r;
    char name[BENCH_NAME];
    double full = 0;

    for (uint32_t i = 0; i < c->n_files; i++)
        if ((r = compare_find(&c->files[i], t)) != NULL)
            full = fmax(full, r->ts + r->dev);
    cli_page_format(p, "<figure><figcaption><b>%s</b> <span>tokens a second</span></figcaption>",
                    bench_test_name(name, t));
    for (uint32_t i = 0; i < c->n_files; i++) {
        put(p, "<div class=\"row\">");
        put_element(p, "span class=\"who\"", device(c, i));
        r = compare_find(&c->files[i], t);
        if (!r) {
            put(p, "<span class=\"value\">not measured</span></div>");
            continue;
        }
        put_bar(p, i, r->ts, r->dev, full > 0 ? full : 1);
        cli_page_format(p, "<span class=\"value\">%.2f ± %.2f", r->ts, r->dev);
        if (first && i && first->ts > 0)
            cli_page_format(p, " <small>%.2f ×</small>", r->ts / first->ts);
        put(p, "</span></div>");
    }
    put(p, "</figure>\n");
}

static bool has_share(const struct compare *c, const struct bench_test *t)
{
    for (uint32_t i = 0; i < c->n_files; i++) {
        const struct compare_row *r = compare_find(&c->files[i], t);

        if (r && isfinite(r->share))
            return true;
    }
    return false;
}

static void put_share(struct cli_page *p, const struct compare *c, const struct bench_test *t)
{
    char name[BENCH_NAME];

    cli_page_format(p, "<figure><figcaption><b>%s</b> <span>share of the read bandwidth</span></figcaption>",
                    bench_test_name(name, t));
    for (uint32_t i = 0; i < c->n_files; i++) {
        const struct compare_row *r = compare_find(&c->files[i], t);

        put(p, "<div class=\"row\">");
        put_element(p, "span class=\"who\"", device(c, i));
        if (r && isfinite(r->share)) {
            put_bar(p, i, 100 * r->share, 0, 100);
            cli_page_format(p, "<span class=\"value\">%.1f %% <small>%.1f of %.1f GB/s</small></span></div>",
                            100 * r->share, r->gbs, c->files[i].read_gbs);
        } else {
            put(p, "<span class=\"value\">not measured</span></div>");
        }
    }
    put(p, "</figure>\n");
}

static void put_shares(struct cli_page *p, const struct compare *c)
{
    uint32_t n = 0;

    for (uint32_t k = 0; k < c->n_tests; k++) {
        if (!has_share(c, &c->tests[k]))
            continue;
        if (!n++)
            put(p,
                "<h2>How much of the memory's speed is used</h2><p class=\"how\">Bytes of weights and cache "
                "that a token must read, a second, over what a shader that does nothing else reads on the "
                "same device.</p><div class=\"cols\">");
        put_share(p, c, &c->tests[k]);
    }
    if (n)
        put(p, "</div>\n");
}

/* ---- tables ---- */

static void put_head_row(struct cli_page *p, const struct compare *c, const char *corner)
{
    put(p, "<thead><tr>");
    put_element(p, "th scope=\"col\"", corner);
    for (uint32_t i = 0; i < c->n_files; i++)
        put_element(p, "th scope=\"col\"", device(c, i));
    put(p, "</tr></thead><tbody>");
}

static void put_results(struct cli_page *p, const struct compare *c)
{
    char name[BENCH_NAME];

    put(p, "<h2>Figures</h2><div class=\"wide\" tabindex=\"0\"><table><caption>Tokens a second, times the "
           "first device's, share of the read bandwidth</caption>");
    put_head_row(p, c, "test");
    for (uint32_t k = 0; k < c->n_tests; k++) {
        const struct compare_row *first = compare_find(&c->files[0], &c->tests[k]);

        put(p, "<tr>");
        put_element(p, "th scope=\"row\"", bench_test_name(name, &c->tests[k]));
        for (uint32_t i = 0; i < c->n_files; i++) {
            const struct compare_row *r = compare_find(&c->files[i], &c->tests[k]);

            if (!r) {
                put(p, "<td>-</td>");
                continue;
            }
            cli_page_format(p, "<td>%.2f ± %.2f", r->ts, r->dev);
            if (first && i && first->ts > 0)
                cli_page_format(p, "<br>%.2f ×", r->ts / first->ts);
            if (isfinite(r->share))
                cli_page_format(p, "<br>%.1f %%", 100 * r->share);
            put(p, "</td>");
        }
        put(p, "</tr>");
    }
    put(p, "</tbody></table></div>\n");
}

static void put_devices(struct cli_page *p, const struct compare *c)
{
    static const char *const labels[] = {
#define COMPARE_X(name, key, label, kind, needed) label,
        COMPARE_TOLD(COMPARE_X)
#undef COMPARE_X
    };

    put(p, "<h2>Devices</h2><div class=\"wide\" tabindex=\"0\"><table>");
    put_head_row(p, c, "");
    for (int k = COMPARE_DRIVER; k < COMPARE_FACTS; k++) {
        put(p, "<tr>");
        put_element(p, "th scope=\"row\"", labels[k - COMPARE_DEVICE]);
        for (uint32_t i = 0; i < c->n_files; i++)
            put_element(p, "td", c->files[i].facts[k][0] ? c->files[i].facts[k] : "-");
        put(p, "</tr>");
    }
    put(p, "<tr><th scope=\"row\">a shader reads, GB/s</th>");
    for (uint32_t i = 0; i < c->n_files; i++)
        if (isfinite(c->files[i].read_gbs))
            cli_page_format(p, "<td>%.1f</td>", c->files[i].read_gbs);
        else
            put(p, "<td>-</td>");
    put(p, "</tr><tr><th scope=\"row\">file</th>");
    for (uint32_t i = 0; i < c->n_files; i++)
        put_element(p, "td", c->files[i].path);
    put(p, "</tr></tbody></table></div>\n");
}

static void put_settings(struct cli_page *p, const struct compare *c)
{
    static const char *const labels[] = {
#define COMPARE_X(name, key, label, kind, needed) label,
        COMPARE_SAME(COMPARE_X)
#undef COMPARE_X
    };

    cli_page_format(p, "<h2>What was measured%s</h2><dl>", c->n_differences ? ", by the first file" : "");
    for (int k = 0; k < COMPARE_N_SAME; k++) {
        if (!c->files[0].facts[k][0])
            continue;
        put_element(p, "dt", labels[k]);
        put_element(p, "dd", c->files[0].facts[k]);
    }
    put(p, "</dl>\n");
}

void compare_page(struct cli_page *page, const struct compare *c)
{
    put_heading(page, c);
    put_differences(page, c);
    put(page, "<main><h2>Speed</h2><div class=\"cols\">");
    for (uint32_t k = 0; k < c->n_tests; k++)
        put_speed(page, c, &c->tests[k]);
    put(page, "</div>");
    put_shares(page, c);
    put_results(page, c);
    put_devices(page, c);
    put_settings(page, c);
    put(page, "</main>\n");
}
