#include "run/tuned.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/alloc.h"
#include "core/fnv.h"
#include "core/log.h"
#include "core/os.h"
#include "gpu/kernels.h"

#define MAGIC    "vkmoe tuning 1\n"
#define FILE_MAX 4096u

bool run_tuned_path(char *path, size_t n, const struct gpu_instance *inst, uint32_t index)
{
    const char *dir = gpu_instance_cache_dir(inst);
    struct gpu_identity id;
    int len;

    if (!dir)
        return false;
    gpu_instance_identity(inst, index, &id);
    len = snprintf(path, n, "%s/tuning-%s.txt", dir, id.file);
    return len > 0 && (size_t)len < n;
}

/* The lines that say what the file is for. */
static void write_head(char *dst, size_t n, const struct gpu_instance *inst, uint32_t index)
{
    struct gpu_identity id;

    gpu_instance_identity(inst, index, &id);
    snprintf(dst, n, "device %s\nkernels %016" PRIx64 "\n", id.text, gpu_spirv_sum());
}

/* "key text\n" at *at; text of letters, digits and "-=,_" only. Moves *at behind it. */
static bool take_line(const char **at, const char *key, char *text, size_t size)
{
    const size_t n_key = strlen(key);
    const char *p = *at + n_key;
    size_t n;

    if (strncmp(*at, key, n_key) != 0)
        return false;
    n = strspn(p, "abcdefghijklmnopqrstuvwxyz0123456789-=,_");
    if (p[n] != '\n' || n >= size)
        return false;
    memcpy(text, p, n);
    text[n] = '\0';
    *at = p + n + 1;
    return true;
}

/* NULL when the text is whole and for this device, driver and kernels, else what is wrong with it. */
static const char *parse(struct run_tuned *t, const char *text, const struct gpu_instance *inst,
                         uint32_t index)
{
    char head[384], sum[32];
    const char *at = text;

    if (strncmp(at, MAGIC, sizeof(MAGIC) - 1) != 0)
        return "not a tuning file";
    at += sizeof(MAGIC) - 1;
    if (!take_line(&at, "sum ", sum, sizeof(sum)))
        return "damaged";
    snprintf(head, sizeof(head), "%016" PRIx64, cor_fnv(COR_FNV_START, at, strlen(at)));
    if (strcmp(sum, head) != 0)
        return "damaged";
    write_head(head, sizeof(head), inst, index);
    if (strncmp(at, head, strlen(head)) != 0)
        return "for another device, driver or version of the kernels";
    at += strlen(head);
    if (!take_line(&at, "off ", t->off, sizeof(t->off)) ||
        !take_line(&at, "variants ", t->variants, sizeof(t->variants)) || *at)
        return "damaged";
    return NULL;
}

void run_tuned_read(struct run_tuned *t, const struct gpu_instance *inst, uint32_t index)
{
    struct vkmoe_err err;
    char path[4096], *data;
    const char *wrong;
    size_t n;

    memset(t, 0, sizeof(*t));
    if (!run_tuned_path(path, sizeof(path), inst, index) || !cor_path_exists(path))
        return;
    if (cor_file_slurp(path, FILE_MAX, &data, &n, &err) != VKMOE_OK) {
        cor_log(VKMOE_LOG_WARN, "tuning: %s", err.message);
        return;
    }
    wrong = strlen(data) == n ? parse(t, data, inst, index) : "damaged";
    if (wrong) {
        cor_log(VKMOE_LOG_INFO, "tuning: %s: ignored: %s", path, wrong);
        memset(t, 0, sizeof(*t));
    }
    cor_free(data);
}

enum vkmoe_status run_tuned_write(const struct run_tuned *t, const struct gpu_instance *inst, uint32_t index,
                                  struct vkmoe_err *err)
{
    char path[4096], head[384], body[768], first[64];
    enum vkmoe_status st = VKMOE_OK;
    struct cor_out *out = NULL;

    if (!run_tuned_path(path, sizeof(path), inst, index))
        return VKMOE_OK;
    if (!t->off[0] && !t->variants[0]) {
        cor_path_remove(path);
        return VKMOE_OK;
    }
    write_head(head, sizeof(head), inst, index);
    snprintf(body, sizeof(body), "%soff %s\nvariants %s\n", head, t->off, t->variants);
    snprintf(first, sizeof(first), MAGIC "sum %016" PRIx64 "\n", cor_fnv(COR_FNV_START, body, strlen(body)));
    TRY(cor_dir_make(gpu_instance_cache_dir(inst), err));
    TRY(cor_out_create(&out, path, err));
    TRY(cor_out_write(out, first, strlen(first), err));
    TRY(cor_out_write(out, body, strlen(body), err));
    st = cor_out_commit(out, err);
    out = NULL;
done:
    cor_out_discard(out);
    return st;
}

/* True when the word stands in the list. */
static bool has_word(const char *list, const char *word)
{
    while (list && *list) {
        const size_t n = strcspn(list, ",");

        if (n == strlen(word) && !memcmp(list, word, n))
            return true;
        list += n + (list[n] == ',');
    }
    return false;
}

enum vkmoe_status run_tuned_caps(const struct run_tuned *t, const char *user, char *list, size_t n,
                                 struct vkmoe_err *err)
{
    const char *off = has_word(user, "-tuned") ? "" : t->off;
    const bool both = user && *user && *off;
    const int len = snprintf(list, n, "%s%s%s", user ? user : "", both ? "," : "", off);

    if (len < 0 || (size_t)len >= n)
        return cor_fail(err, VKMOE_ERR_ARGUMENT, "caps: the list has more than %zu characters", n - 1);
    return VKMOE_OK;
}

enum vkmoe_status run_tuned_variants(const struct run_tuned *t, const char *user, const char *forced,
                                     const struct gpu_device *dev, struct run_variants *v, const char **from,
                                     struct vkmoe_err *err)
{
    const struct gpu_caps *caps = gpu_device_caps(dev);
    const bool clamped = user && *user;
    struct vkmoe_err why;

    *from = forced ? "forced" : "default";
    run_variants_default(v, caps);
    if (t->off[0] && !has_word(user, "-tuned"))
        cor_log(VKMOE_LOG_WARN, "%s: selftest found its driver wrong: %s (`vkmoe selftest` looks again)",
                gpu_device_info(dev)->name, t->off);
    if (forced)
        return run_variants_parse(v, forced, caps, err);
    if (clamped || !t->variants[0])
        return VKMOE_OK;
    if (run_variants_parse(v, t->variants, caps, &why) == VKMOE_OK)
        *from = "tuned";
    else
        cor_log(VKMOE_LOG_INFO, "tuning: ignored: %s", why.message);
    return VKMOE_OK;
}

enum vkmoe_status run_tuned_json(const struct gpu_instance *inst, uint32_t index, char **json,
                                 struct vkmoe_err *err)
{
    char variants[sizeof(((struct run_tuned *)0)->variants)], tail[512], *longer;
    enum vkmoe_status st = VKMOE_OK;
    struct run_tuned t = {0};
    struct run_variants v;
    struct gpu_caps caps;
    size_t n;

    TRY(gpu_instance_device_json(inst, index, json, err));
    run_tuned_read(&t, inst, index);
    caps = *gpu_instance_device_caps(inst, index);
    TRY(gpu_caps_clamp(&caps, t.off, err));
    run_variants_default(&v, &caps);
    if (t.variants[0] && run_variants_parse(&v, t.variants, &caps, NULL) != VKMOE_OK)
        t.variants[0] = '\0';
    snprintf(tail, sizeof(tail), ",\"variants\":\"%s\",\"variants_from\":\"%s\",\"selftest_off\":\"%s\"}",
             run_variants_text(&v, variants, sizeof(variants)), t.variants[0] ? "tuned" : "default", t.off);
    n = strlen(*json) - 1; /* its brace goes */
    longer = cor_resize(*json, n + strlen(tail) + 1, 1);
    if (!longer)
        FAIL(VKMOE_ERR_MEMORY, "device %u: no memory for its description", index);
    memcpy(longer + n, tail, strlen(tail) + 1);
    *json = longer;
done:
    if (st != VKMOE_OK) {
        cor_free(*json);
        *json = NULL;
    }
    return st;
}
