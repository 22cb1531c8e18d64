/* JSON from untrusted files, on cJSON: bounded before it is parsed, whole, an object without repeated keys.
 */
#ifndef MDL_JSON_H
#define MDL_JSON_H

#include <cjson/cJSON.h>

#include "core/os.h"

/* text holds n bytes and a NUL behind them. name is the file's, for messages. cJSON_Delete by the caller. */
enum vkmoe_status mdl_json_parse(cJSON **out, const char *text, size_t n, const char *name,
                                 struct vkmoe_err *err);
/* The same from a file of at most max bytes. */
enum vkmoe_status mdl_json_load(cJSON **out, const char *path, size_t max, struct vkmoe_err *err);

/* The object and a newline, flushed under a temporary name: the caller commits or discards. pretty: on
 * several lines. */
enum vkmoe_status mdl_json_write(struct cor_out **out, const cJSON *o, bool pretty, const char *path,
                                 struct vkmoe_err *err);
/* The same, whole or not at all. */
enum vkmoe_status mdl_json_save(const cJSON *o, bool pretty, const char *path, struct vkmoe_err *err);

const cJSON *mdl_json_get(const cJSON *object, const char *key); /* NULL: absent or null */
/* A whole number from 0 to max (at most 2^53). */
bool mdl_json_u64(const cJSON *v, uint64_t max, uint64_t *out);

#endif
