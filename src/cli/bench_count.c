/* vkmoe bench --count: dispatches, barriers, submits, waits and bytes of a decoded token. Nothing is timed.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/bench.h"

enum { WARM = 1, COUNTED = BENCH_COUNTED - WARM };

struct count {
    struct vkmoe_session_counts c;
    uint32_t pos, n_layers;         /* of the last token */
    double submits, waits;          /* per token */
    double weights, cache;          /* bytes that the model makes necessary */
    struct vkmoe_session_cost cost; /* of what is recorded */
};

/* Weights and cache that are read over those that must be; negative: costs are not told. */
static double ratio(const struct count *n)
{
    return n->cost.weight_bytes
               ? (double)(n->cost.weight_bytes + n->cost.cache_bytes) / (n->weights + n->cache)
               : -1;
}

static void print_text(const struct cli_engine *e, const struct bench_model *m, const struct count *n)
{
    char device[1024], t[CLI_NUMBER];

    cli_engine_device_line(e, device, sizeof(device));
    printf("%s, %s\none token at position %" PRIu32 ", %" PRIu32 " layers\n\n", m->type, device, n->pos,
           n->n_layers);
    printf("| | per layer | outside layers | per token |\n|---|--:|--:|--:|\n");
    printf("| dispatches | %" PRIu32 " | %" PRIu32 " | %" PRIu32 " |\n", n->c.layer_dispatches,
           n->c.outside_dispatches, n->c.dispatches);
    printf("| barriers | %" PRIu32 " | %" PRIu32 " | %" PRIu32 " |\n", n->c.layer_barriers,
           n->c.outside_barriers, n->c.barriers);
    printf("| submits | | | %g |\n| waits | | | %g |\n", n->submits, n->waits);
    printf("| weights read, bytes | | | %" PRIu64 " |\n", n->cost.weight_bytes);
    printf("| cache read, bytes | | | %" PRIu64 " |\n", n->cost.cache_bytes);
    printf("| active weights, bytes | | | %.0f |\n| cache in use, bytes | | | %.0f |\n", n->weights,
           n->cache);
    printf("| read of what must be | | | %s |\n", cli_number(t, ratio(n), 4));
    printf("| activations, bytes | | | %" PRIu64 " |\n| operations | | | %" PRIu64 " |\n",
           n->cost.activation_bytes, n->cost.flops);
}

static void print_json(const struct cli_engine *e, const struct bench_model *m, const struct count *n)
{
    char device[1024];

    cli_engine_device_line(e, device, sizeof(device));
    printf("{\"model\": ");
    cli_json_string(m->path, strlen(m->path));
    printf(", \"model_type\": ");
    cli_json_string(m->type, strlen(m->type));
    printf(", \"device\": ");
    cli_json_string(device, strlen(device));
    printf(", \"position\": %" PRIu32 ", \"layers\": %" PRIu32 ", \"dispatches_per_layer\": %" PRIu32
           ", \"barriers_per_layer\": %" PRIu32 ", \"dispatches_outside\": %" PRIu32
           ", \"barriers_outside\": %" PRIu32 ", \"dispatches\": %" PRIu32 ", \"barriers\": %" PRIu32,
           n->pos, n->n_layers, n->c.layer_dispatches, n->c.layer_barriers, n->c.outside_dispatches,
           n->c.outside_barriers, n->c.dispatches, n->c.barriers);
    printf(", \"submits\": %.6g, \"waits\": %.6g, \"active_weight_bytes\": %.0f, \"cache_bytes\": %.0f",
           n->submits, n->waits, n->weights, n->cache);
    if (ratio(n) < 0)
        printf(", \"bytes_read\": null, \"read_of_needed\": null");
    else
        printf(", \"bytes_read\": %" PRIu64 ", \"read_of_needed\": %.6f",
               n->cost.weight_bytes + n->cost.cache_bytes, ratio(n));
    printf(", \"activation_bytes\": %" PRIu64 ", \"flops\": %" PRIu64 "}\n", n->cost.activation_bytes,
           n->cost.flops);
}

enum vkmoe_status bench_count(struct cli_engine *e, const struct bench_model *m, const int32_t *ids,
                              uint32_t depth, const char *format, struct vkmoe_err *err)
{
    struct vkmoe_session_stats before, after;
    struct count n = {.n_layers = m->n_layers};
    enum vkmoe_status st = VKMOE_OK;
    size_t fed;

    if (depth)
        TRY(cli_engine_feed(e, ids, depth, &fed, err));
    for (uint32_t i = 0; i < WARM; i++)
        TRY(vkmoe_session_feed(e->ses, ids + depth + i, 1, err));
    vkmoe_session_get_stats(e->ses, &before);
    for (uint32_t i = 0; i < COUNTED; i++)
        TRY(vkmoe_session_feed(e->ses, ids + depth + WARM + i, 1, err));
    vkmoe_session_get_stats(e->ses, &after);
    n.pos = depth + WARM + COUNTED - 1;
    n.submits = (double)(after.submits - before.submits) / COUNTED;
    n.waits = (double)(after.waits - before.waits) / COUNTED;
    vkmoe_session_get_counts(e->ses, &n.c);
    vkmoe_session_get_cost(e->ses, n.pos, &n.cost);
    bench_bytes(e, m, n.pos, &n.weights, &n.cache);
    if (!strcmp(format, "json"))
        print_json(e, m, &n);
    else
        print_text(e, m, &n);
done:
    return st;
}
