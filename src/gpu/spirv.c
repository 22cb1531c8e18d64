/* The built-in modules as they stand in the program, deflated. */
#include <string.h>
#include <zlib.h>

#include "core/alloc.h"
#include "core/fnv.h"
#include "gpu/kernels.h"

#define BEHIND 8u /* bytes: CRC-32, size */

static uint32_t get_u32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Raw deflate: the header of gzip was left out when building. */
static bool inflate_all(const struct gpu_spirv *m, uint8_t *dst, size_t n)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)m->deflated,
                  .avail_in = (uInt)(m->n_bytes - BEHIND),
                  .next_out = dst,
                  .avail_out = (uInt)n};
    bool good;

    if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
        return false;
    good = inflate(&z, Z_FINISH) == Z_STREAM_END && z.total_out == n;
    inflateEnd(&z);
    return good && (uint32_t)crc32(0, dst, (uInt)n) == get_u32(m->deflated + m->n_bytes - BEHIND);
}

enum vkmoe_status gpu_spirv_read(uint32_t **words, size_t *n_words, const char *name, struct vkmoe_err *err)
{
    const struct gpu_spirv *m = NULL;
    uint32_t n;

    *words = NULL;
    *n_words = 0;
    for (uint32_t i = 0; i < gpu_spirv_count && !m; i++)
        if (!strcmp(gpu_spirv_modules[i].name, name))
            m = &gpu_spirv_modules[i];
    if (!m)
        return VKMOE_OK;
    n = get_u32(m->deflated + m->n_bytes - 4);
    *words = cor_array(n / 4, sizeof(uint32_t));
    if (!*words)
        return cor_fail(err, VKMOE_ERR_MEMORY, "no memory for kernel %s", name);
    if (!inflate_all(m, (uint8_t *)*words, n)) {
        cor_free(*words);
        *words = NULL;
        return cor_fail(err, VKMOE_ERR_IO, "kernel %s: the program's own copy is damaged", name);
    }
    *n_words = n / 4;
    return VKMOE_OK;
}

uint64_t gpu_spirv_sum(void)
{
    uint64_t h = COR_FNV_START;

    for (uint32_t i = 0; i < gpu_spirv_count; i++) {
        h = cor_fnv(h, gpu_spirv_modules[i].name, strlen(gpu_spirv_modules[i].name));
        h = cor_fnv(h, gpu_spirv_modules[i].deflated, gpu_spirv_modules[i].n_bytes);
    }
    return h;
}
