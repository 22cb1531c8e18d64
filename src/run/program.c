#include "run/program.h"

#include <string.h>

#include "core/alloc.h"

#define PUBLISH_WG 128

static enum vkmoe_status create_lists(struct run_program *p, struct gpu_device *dev, const char *name,
                                      uint32_t cap_parts, uint32_t cap_dispatches, struct vkmoe_err *err)
{
    memset(p, 0, sizeof(*p));
    p->dev = dev;
    p->name = name;
    p->cap_parts = cap_parts;
    p->cap_dispatches = cap_dispatches;
    p->parts = cor_array(cap_parts, sizeof(*p->parts));
    p->first = cor_array(cap_parts, sizeof(*p->first));
    p->barriers = cor_array(cap_parts, sizeof(*p->barriers));
    p->costs = cor_array(cap_dispatches, sizeof(*p->costs));
    p->tmpl = cor_array(TMPL_HEAD + (size_t)cap_dispatches * TMPL_WORDS, 4);
    p->list = cor_array((size_t)cap_parts + 2, sizeof(*p->list));
    if (!p->parts || !p->first || !p->barriers || !p->costs || !p->tmpl || !p->list)
        return cor_fail(err, VKMOE_ERR_MEMORY, "%s: no memory for %u dispatches", name, cap_dispatches);
    return VKMOE_OK;
}

enum vkmoe_status run_program_create(struct run_program *p, struct gpu_device *dev, const char *name,
                                     uint32_t cap_parts, uint32_t cap_dispatches, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;

    TRY(create_lists(p, dev, name, cap_parts, cap_dispatches, err));
    TRY(gpu_buffer_create(&p->tmpl_buf, dev, (TMPL_HEAD + (uint64_t)cap_dispatches * TMPL_WORDS) * 4,
                          GPU_MEM_DEVICE, "argument template", err));
    TRY(gpu_buffer_create(&p->args, dev, (uint64_t)cap_dispatches * 12, GPU_MEM_DEVICE, "arguments", err));
    for (uint32_t i = 0; i < GPU_IN_FLIGHT; i++)
        TRY(gpu_cmds_create(&p->publish[i], dev, "publish", err));
done:
    return st;
}

enum vkmoe_status run_program_create_dry(struct run_program *p, struct gpu_device *dev, uint32_t cap_parts,
                                         uint32_t cap_dispatches, struct vkmoe_err *err)
{
    const struct spec_publish spec = {.wg = PUBLISH_WG};
    enum vkmoe_status st = create_lists(p, dev, "dry", cap_parts, cap_dispatches, err);

    p->dry = true;
    if (st == VKMOE_OK)
        gpu_pipeline_wish(dev, GPU_K_publish, &spec, sizeof(spec), 1);
    return st;
}

void run_program_close(struct run_program *p)
{
    for (uint32_t i = 0; p->parts && i < p->n_parts; i++)
        gpu_cmds_destroy(p->parts[i]);
    for (uint32_t i = 0; i < GPU_IN_FLIGHT; i++)
        gpu_cmds_destroy(p->publish[i]);
    gpu_buffer_destroy(p->tmpl_buf);
    gpu_buffer_destroy(p->args);
    cor_free(p->parts);
    cor_free(p->first);
    cor_free(p->barriers);
    cor_free(p->costs);
    cor_free(p->tmpl);
    cor_free(p->list);
    memset(p, 0, sizeof(*p));
}

static void keep(struct run_program *p, enum vkmoe_status st)
{
    if (p->st == VKMOE_OK)
        p->st = st;
}

void run_part_begin(struct run_program *p)
{
    if (p->st != VKMOE_OK)
        return;
    if (p->n_parts == p->cap_parts) {
        keep(p, cor_fail(&p->err, VKMOE_ERR_LIMIT, "%s: more than %u parts", p->name, p->cap_parts));
        return;
    }
    if (!p->dry)
        keep(p, gpu_cmds_create(&p->parts[p->n_parts], p->dev, p->name, &p->err));
    if (p->st != VKMOE_OK)
        return;
    p->barriers[p->n_parts] = 0;
    p->first[p->n_parts++] = p->n_dispatches;
    if (!p->dry)
        gpu_cmds_begin(p->parts[p->n_parts - 1]);
}

void run_cost(struct run_program *p, const struct gpu_cost *cost)
{
    p->cost = *cost;
}

uint32_t run_dispatch(struct run_program *p, enum gpu_kernel k, const void *spec, size_t spec_bytes,
                      uint32_t n_segs, const struct gpu_bind *binds, uint32_t n_binds, const void *push,
                      const struct run_dim grid[3])
{
    uint32_t *t = p->tmpl + TMPL_HEAD + (size_t)p->n_dispatches * TMPL_WORDS;
    struct gpu_pipeline *pipe;

    if (p->st == VKMOE_OK && p->n_dispatches == p->cap_dispatches)
        keep(p,
             cor_fail(&p->err, VKMOE_ERR_LIMIT, "%s: more than %u dispatches", p->name, p->cap_dispatches));
    if (p->st == VKMOE_OK && p->dry) {
        gpu_pipeline_wish(p->dev, k, spec, spec_bytes, n_segs);
        return p->n_dispatches++;
    }
    if (p->st == VKMOE_OK)
        keep(p, gpu_pipeline_get(&pipe, p->dev, k, spec, spec_bytes, n_segs, &p->err));
    if (p->st != VKMOE_OK)
        return 0;
    for (int i = 0; i < 3; i++) {
        t[2 * i] = grid[i].mode;
        t[2 * i + 1] = grid[i].a;
    }
    p->costs[p->n_dispatches] = p->cost;
    gpu_cmds_cost(p->parts[p->n_parts - 1], &p->cost);
    memset(&p->cost, 0, sizeof(p->cost));
    gpu_cmds_dispatch_indirect(p->parts[p->n_parts - 1], pipe, binds, n_binds, push, p->args,
                               (uint64_t)p->n_dispatches * 12);
    return p->n_dispatches++;
}

void run_barrier(struct run_program *p, enum gpu_barrier kind)
{
    if (p->st != VKMOE_OK || p->dry)
        return;
    gpu_cmds_barrier(p->parts[p->n_parts - 1], kind);
    p->barriers[p->n_parts - 1]++;
}

void run_copy(struct run_program *p, struct gpu_buffer *src, uint64_t src_off, struct gpu_buffer *dst,
              uint64_t bytes)
{
    if (p->st == VKMOE_OK && !p->dry)
        gpu_cmds_copy(p->parts[p->n_parts - 1], src, src_off, dst, 0, bytes);
}

void run_part_end(struct run_program *p)
{
    if (p->st == VKMOE_OK && !p->dry)
        keep(p, gpu_cmds_end(p->parts[p->n_parts - 1], &p->err));
}

enum vkmoe_status run_program_finish(struct run_program *p, const struct run_publish *pub,
                                     struct vkmoe_err *err)
{
    const struct spec_publish spec = {.wg = PUBLISH_WG};
    const struct push_none push = {0};
    struct gpu_bind binds[] = {{.buf = NULL},       {.buf = p->tmpl_buf}, {.buf = p->args},
                               {.buf = pub->state}, {.buf = pub->table},  {.buf = pub->mailbox}};
    struct gpu_pipeline *pipe;
    enum vkmoe_status st = VKMOE_OK;

    if (p->st != VKMOE_OK) {
        if (err)
            *err = p->err;
        return p->st;
    }
    p->tmpl[0] = p->n_dispatches;
    TRY(gpu_upload(p->dev, p->tmpl_buf, 0, p->tmpl, (TMPL_HEAD + (uint64_t)p->n_dispatches * TMPL_WORDS) * 4,
                   err));
    TRY(gpu_pipeline_get(&pipe, p->dev, GPU_K_publish, &spec, sizeof(spec), 1, err));
    for (uint32_t i = 0; i < GPU_IN_FLIGHT; i++) {
        binds[0].buf = pub->step[i];
        gpu_cmds_begin(p->publish[i]);
        gpu_cmds_dispatch(p->publish[i], pipe, binds, COR_COUNT(binds), &push, 1, 1, 1);
        gpu_cmds_barrier(p->publish[i], GPU_BARRIER_ARGS);
        TRY(gpu_cmds_end(p->publish[i], err));
    }
done:
    return st;
}

void run_program_count(const struct run_program *p, uint32_t from, uint32_t to, uint32_t *dispatches,
                       uint32_t *barriers)
{
    *dispatches = (to < p->n_parts ? p->first[to] : p->n_dispatches) - p->first[from];
    *barriers = 0;
    for (uint32_t i = from; i < to; i++)
        *barriers += p->barriers[i];
}

void run_program_amount(const struct run_program *p, const struct gpu_step *step, struct gpu_amount *sum)
{
    memset(sum, 0, sizeof(*sum));
    for (uint32_t i = 0; i < p->n_dispatches; i++)
        gpu_cost_add(sum, &p->costs[i], step);
}

enum vkmoe_status run_program_submit(struct run_program *p, uint32_t step, uint32_t from, uint32_t to,
                                     struct gpu_cmds *last, struct vkmoe_err *err)
{
    uint32_t n = 0;

    p->list[n++] = p->publish[step];
    for (uint32_t i = from; i < to; i++)
        p->list[n++] = p->parts[i];
    if (last)
        p->list[n++] = last;
    return gpu_submit(p->dev, p->list, n, err);
}
