#include "model/json.h"

#include <stdlib.h>
#include <string.h>

#include "core/alloc.h"
#include "core/os.h"
#include "model/gguf.h"

enum { VALUES_MAX = 4 << 20 }; /* at about 64 bytes each in the parser */

static int compare_keys(const void *a, const void *b)
{
    return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string);
}

static enum vkmoe_status refuse_repeated_keys(const cJSON *object, const char *name, struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    const cJSON **sorted = NULL, *item;
    size_t n = 0;
    char text[MDL_SHOW_BYTES];

    for (item = object->child; item; item = item->next)
        n++;
    sorted = cor_array(n, sizeof(*sorted));
    if (!sorted)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for %zu keys", name, n);
    n = 0;
    for (item = object->child; item; item = item->next)
        sorted[n++] = item;
    qsort(sorted, n, sizeof(*sorted), compare_keys);
    for (size_t i = 1; i < n; i++)
        if (!strcmp(sorted[i - 1]->string, sorted[i]->string))
            FAIL(VKMOE_ERR_FORMAT, "%s: '%s' occurs twice", name,
                 mdl_show(text, sorted[i]->string, strlen(sorted[i]->string)));
done:
    cor_free(sorted);
    return st;
}

enum vkmoe_status mdl_json_parse(cJSON **out, const char *text, size_t n, const char *name,
                                 struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    cJSON *root = NULL;
    const char *end = NULL;
    size_t values = 0;

    *out = NULL;
    for (size_t i = 0; i < n; i++) /* every value but the first follows one of these */
        values += text[i] == ',' || text[i] == '[' || text[i] == '{';
    if (values > VALUES_MAX)
        FAIL(VKMOE_ERR_LIMIT, "%s: more than %d JSON values", name, VALUES_MAX);
    root = cJSON_ParseWithLengthOpts(text, n + 1, &end, true);
    if (!root)
        FAIL(VKMOE_ERR_FORMAT, "%s: not JSON, at byte %zu of %zu", name, end ? (size_t)(end - text) : 0, n);
    if (end && (size_t)(end - text) < n) /* a NUL in the text */
        FAIL(VKMOE_ERR_FORMAT, "%s: text after the JSON object, at byte %zu", name, (size_t)(end - text));
    if (!cJSON_IsObject(root))
        FAIL(VKMOE_ERR_FORMAT, "%s: not a JSON object", name);
    TRY(refuse_repeated_keys(root, name, err));
    *out = root;
    root = NULL;
done:
    cJSON_Delete(root);
    return st;
}

enum vkmoe_status mdl_json_load(cJSON **out, const char *path, size_t max, struct vkmoe_err *err)
{
    char *text = NULL;
    size_t n;
    enum vkmoe_status st = cor_file_slurp(path, max, &text, &n, err);

    *out = NULL;
    if (st == VKMOE_OK)
        st = mdl_json_parse(out, text, n, path, err);
    cor_free(text);
    return st;
}

enum vkmoe_status mdl_json_write(struct cor_out **out, const cJSON *o, bool pretty, const char *path,
                                 struct vkmoe_err *err)
{
    char *text = pretty ? cJSON_Print(o) : cJSON_PrintUnformatted(o);
    enum vkmoe_status st = VKMOE_OK;

    *out = NULL;
    if (!text)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory for its text", path);
    TRY(cor_out_create(out, path, err));
    TRY(cor_out_write(*out, text, strlen(text), err));
    TRY(cor_out_write(*out, "\n", 1, err));
    TRY(cor_out_flush(*out, err));
done:
    if (st != VKMOE_OK) {
        cor_out_discard(*out);
        *out = NULL;
    }
    cJSON_free(text);
    return st;
}

enum vkmoe_status mdl_json_save(const cJSON *o, bool pretty, const char *path, struct vkmoe_err *err)
{
    struct cor_out *out;
    enum vkmoe_status st = mdl_json_write(&out, o, pretty, path, err);

    return st == VKMOE_OK ? cor_out_commit(out, err) : st;
}

const cJSON *mdl_json_get(const cJSON *object, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);

    return v && cJSON_IsNull(v) ? NULL : v;
}

bool mdl_json_u64(const cJSON *v, uint64_t max, uint64_t *out)
{
    const uint64_t exact = (uint64_t)1 << 53;
    double d = v ? v->valuedouble : -1;

    if (!cJSON_IsNumber(v) || !(d >= 0 && d <= (double)exact))
        return false;
    *out = (uint64_t)d;
    return (double)*out == d && *out <= max;
}
