#include "support/radv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"

static const char *const names[RADV_STATS] = {
    "VGPRs",         "SGPRs",         "Subgroups per SIMD", "LDS size",
    "Instructions",  "Latency",       "Inverse Throughput", "Code size",
    "Spilled VGPRs", "Spilled SGPRs", "Scratch size"};

/* ---- what a round of the loop works on
 * ------------------------------------------------------------------------ */

struct work {
    uint32_t weights; /* of one lane in a round of the outer loop, each once per token */
    uint32_t trips;   /* rounds of the innermost loop in it, when the compiler leaves one */
};

#define UNIT      8u  /* lib/rows.glsl: weights of a row that a lane takes at a time */
#define TILE_K    16u /* lib/tile.glsl */
#define TILE_SUMS (4u * 4u)

static bool is(const struct specs_case *c, const char *prefix)
{
    return !strncmp(gpu_kernel_info(c->kernel)->name, prefix, strlen(prefix));
}

/* Elements of a row that lib/lanes.glsl takes in a round: of blocks, two. */
static uint32_t chunk_of(uint32_t format)
{
    return format == FMT_F32 ? 8 : format == FMT_F16 || format == FMT_BF16 ? 16 : 64;
}

/* Zeros: the kernel multiplies no matrix. */
static struct work work_of(const struct specs_case *c)
{
    struct spec_mat mat = {0};
    struct spec_mat_norm norm = {0};
    struct spec_expert expert = {0};

    if (is(c, "router_one"))
        return (struct work){0, 0};
    if (is(c, "matvec_norm_ln"))
        return (struct work){4 * chunk_of(c->spec[3]), 1};
    if (strstr(gpu_kernel_info(c->kernel)->name, "_ln")) {
        const uint32_t chunk = chunk_of(is(c, "mat") ? c->spec[4] : c->spec[5]); /* format, fmt_gate */

        return (struct work){4 * chunk, 1};
    }
    if (strstr(gpu_kernel_info(c->kernel)->name, "_dot")) /* no multiplications of floats to count */
        return (struct work){0, 0};
    if (strstr(gpu_kernel_info(c->kernel)->name, "_few"))
        return (struct work){4 * UNIT * 8, 1}; /* lib/few.glsl: four rows, eight tokens */
    if (is(c, "matmul") || strstr(gpu_kernel_info(c->kernel)->name, "_tile"))
        return (struct work){TILE_K * TILE_SUMS, TILE_K};
    if (is(c, "matvec_norm")) {
        memcpy(&norm, c->spec, sizeof(norm));
        return (struct work){norm.rows * UNIT, 1};
    }
    if (is(c, "matvec")) {
        memcpy(&mat, c->spec, sizeof(mat));
        return (struct work){mat.rows * UNIT, 1};
    }
    if (is(c, "expert_gate_up") || is(c, "expert_down")) {
        memcpy(&expert, c->spec, sizeof(expert));
        return (struct work){expert.rows * UNIT * (is(c, "expert_gate_up") ? 2 : 1), 1};
    }
    return (struct work){0, 0};
}

/* ---- disassembly: lines "BBn:" and "\tmnemonic operands ; bytes"
 * --------------------------------------------- */

#define MAX_LABELS 2048
#define MAX_LOOPS  256

struct range { /* lines [first, last] */
    uint32_t first, last;
};

struct listing {
    char *text;
    const char **lines; /* instructions, without the tab */
    uint32_t n;
    uint32_t labels[MAX_LABELS]; /* index of the instruction behind label BBi; UINT32_MAX: none yet */
    struct range loops[MAX_LOOPS];
    uint32_t n_loops;
};

static bool begins(const char *s, const char *prefix)
{
    return !strncmp(s, prefix, strlen(prefix));
}

/* A branch to a label that stands before it closes a loop. */
static void note_branch(struct listing *l, const char *line)
{
    const char *to = begins(line, "s_branch") || begins(line, "s_cbranch") ? strstr(line, " BB") : NULL;
    unsigned long label = to ? strtoul(to + 3, NULL, 10) : MAX_LABELS;

    if (label < MAX_LABELS && l->labels[label] != UINT32_MAX && l->n_loops < MAX_LOOPS)
        l->loops[l->n_loops++] = (struct range){l->labels[label], l->n};
}

/* Takes the text apart in place. */
static enum vkmoe_status read_listing(struct listing *l, char *text, struct vkmoe_err *err)
{
    size_t n = 0;
    char *next;

    for (const char *p = text; *p; p++)
        n += *p == '\n';
    *l = (struct listing){.text = text, .lines = cor_array(n + 1, sizeof(*l->lines))};
    if (!l->lines)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for %zu lines of disassembly", n);
    memset(l->labels, 0xff, sizeof(l->labels));
    for (char *p = text; *p; p = next) {
        char *end = p + strcspn(p, "\n");

        next = *end ? end + 1 : end;
        *end = '\0';
        if (begins(p, "BB")) {
            unsigned long label = strtoul(p + 2, NULL, 10);

            if (label < MAX_LABELS)
                l->labels[label] = l->n;
        } else if (*p == '\t') {
            note_branch(l, p + 1);
            l->lines[l->n++] = p + 1;
        }
    }
    return VKMOE_OK;
}

static void close_listing(struct listing *l)
{
    cor_free(l->lines);
    cor_free(l->text);
}

static bool is_fma(const char *s)
{
    return begins(s, "v_fma") || begins(s, "v_mac_f") || begins(s, "v_mad_f") || begins(s, "v_mul_f32") ||
           begins(s, "v_dual_fma") || begins(s, "v_dual_mul_f") || begins(s, "v_pk_fma") ||
           begins(s, "v_dot");
}

static bool is_free(const char *s)
{
    return begins(s, "s_waitcnt") || begins(s, "s_clause") || begins(s, "s_nop") ||
           begins(s, "s_delay_alu") || begins(s, "s_barrier") || begins(s, "s_branch") ||
           begins(s, "s_cbranch");
}

/* sign -1 takes a range out again. */
static void count_range(struct radv_loop *sum, const struct listing *l, const struct range *r, uint32_t times)
{
    for (uint32_t i = r->first; i <= r->last; i++) {
        const char *s = l->lines[i];

        sum->all += times;
        if (begins(s, "v_"))
            sum->valu += times;
        else if (begins(s, "s_") && !is_free(s))
            sum->scalar += times;
        else if (begins(s, "ds_"))
            sum->lds += times;
        else if (!begins(s, "s_"))
            sum->memory += times; /* buffer_, global_, flat_ */
        if (is_fma(s))            /* the two halves of a dual instruction */
            sum->fma += times * (begins(s, "v_dual") && strstr(s + 6, ":: v_dual") ? 2 : 1);
    }
}

static bool inside(const struct range *a, const struct range *b)
{
    return a->first >= b->first && a->last <= b->last && (a->first != b->first || a->last != b->last);
}

static uint32_t fma_of(const struct listing *l, const struct range *r)
{
    struct radv_loop sum = {0};

    count_range(&sum, l, r, 1);
    return sum.fma;
}

/* The innermost loop that multiplies most; NULL: none. */
static const struct range *inner_loop(const struct listing *l)
{
    const struct range *best = NULL;

    for (uint32_t i = 0; i < l->n_loops; i++) {
        bool innermost = true;

        for (uint32_t j = 0; j < l->n_loops && innermost; j++)
            innermost = !inside(&l->loops[j], &l->loops[i]) || !fma_of(l, &l->loops[j]);
        if (innermost && (!best || fma_of(l, &l->loops[i]) > fma_of(l, best)))
            best = &l->loops[i];
    }
    return best && fma_of(l, best) ? best : NULL;
}

/* The smallest loop round another; NULL: none. */
static const struct range *outer_loop(const struct listing *l, const struct range *in)
{
    const struct range *best = NULL;

    for (uint32_t i = 0; i < l->n_loops; i++)
        if (inside(in, &l->loops[i]) && (!best || inside(&l->loops[i], best)))
            best = &l->loops[i];
    return best;
}

/* Staged tiles: when a loop is left inside the staging one it runs `trips` times. */
static void measure_loop(struct radv_row *row, const struct listing *l, const struct work *w)
{
    const struct range *in = inner_loop(l), *out = in && w->trips > 1 ? outer_loop(l, in) : NULL;

    if (!in)
        return;
    row->weights = w->weights;
    count_range(&row->loop, l, in, out ? w->trips : 1);
    if (out && out->first < in->first)
        count_range(&row->loop, l, &(struct range){out->first, in->first - 1}, 1);
    if (out && in->last < out->last)
        count_range(&row->loop, l, &(struct range){in->last + 1, out->last}, 1);
    row->per_weight = (double)row->loop.all / w->weights;
}

/* ---- public
 * --------------------------------------------------------------------------------------------------- */

static enum vkmoe_status read_stats(struct radv_row *row, struct gpu_device *dev, struct gpu_pipeline *p,
                                    struct vkmoe_err *err)
{
    struct gpu_pipeline_stat stats[64];
    enum vkmoe_status st = VKMOE_OK;
    uint32_t n;

    TRY(gpu_pipeline_stats(dev, p, stats, COR_COUNT(stats), &n, err));
    for (int i = 0; i < RADV_STATS; i++) {
        row->stats[i] = -1;
        for (uint32_t k = 0; k < n; k++)
            if (!strcmp(stats[k].name, names[i]))
                row->stats[i] = stats[k].value;
        if (row->stats[i] < 0)
            FAIL(VKMOE_ERR_UNSUPPORTED, "the driver gives no \"%s\"", names[i]);
    }
done:
    return st;
}

enum vkmoe_status radv_measure(struct gpu_device *dev, const struct specs_case *c, struct radv_row *row,
                               struct vkmoe_err *err)
{
    const struct work w = work_of(c);
    enum vkmoe_status st = VKMOE_OK;
    struct gpu_pipeline *p;
    struct listing l = {0};
    char *text;

    memset(row, 0, sizeof(*row));
    TRY(gpu_pipeline_get(&p, dev, c->kernel, c->spec, c->n_spec * sizeof(uint32_t), c->n_segs, err));
    TRY(read_stats(row, dev, p, err));
    if (c->shape != SPECS_EMO || !w.weights)
        goto done;
    TRY(gpu_pipeline_text(dev, p, "Assembly", &text, err));
    TRY(read_listing(&l, text, err));
    measure_loop(row, &l, &w);
    if (row->weights && (row->loop.fma < w.weights || row->loop.fma > 4 * w.weights))
        FAIL(VKMOE_ERR_UNSUPPORTED,
             "%s %s %s: work_of of tests/support/radv.c says %u weights a round, its loop has %u "
             "multiplications",
             gpu_kernel_info(c->kernel)->name, c->use, c->format, w.weights, row->loop.fma);
done:
    close_listing(&l);
    return st;
}

bool radv_spills(const struct radv_row *row)
{
    return row->stats[RADV_SPILL_V] > 0 || row->stats[RADV_SPILL_S] > 0 || row->stats[RADV_SCRATCH] > 0;
}

void radv_family(const struct gpu_device *dev, char *family, size_t size)
{
    const char *at = strstr(gpu_device_info(dev)->name, "RADV ");

    at = at ? at + 5 : gpu_device_info(dev)->name;
    snprintf(family, size, "%.*s", (int)strcspn(at, ")"), at);
}

void radv_csv_line(char *line, size_t size, const char *family, const struct specs_case *c,
                   const struct radv_row *row)
{
    int n = snprintf(line, size, "%s,%s,%s,%s", family, gpu_kernel_info(c->kernel)->name, c->use, c->format);

    for (int i = 0; i < RADV_SPILL_V && n > 0 && (size_t)n < size; i++)
        n += snprintf(line + n, size - (size_t)n, ",%.0f", row->stats[i]);
    if (n < 0 || (size_t)n >= size)
        return;
    if (row->weights)
        snprintf(line + n, size - (size_t)n, ",%u,%u,%u,%u,%u,%u,%.3f", row->loop.all, row->loop.valu,
                 row->loop.scalar, row->loop.memory, row->loop.lds, row->weights, row->per_weight);
    else
        snprintf(line + n, size - (size_t)n, ",,,,,,,");
}
