#include "core/digest.h"

#include <string.h>

#include "core/alloc.h"

enum { PIECE = 1 << 20 };

void cor_sha256_begin(struct cor_sha256 *h)
{
    sha256_init(&h->state);
}

void cor_sha256_add(struct cor_sha256 *h, const void *data, size_t n)
{
    if (n)
        sha256_update(&h->state, n, data);
}

void cor_sha256_end(struct cor_sha256 *h, uint8_t digest[COR_SHA256_BYTES])
{
    sha256_digest(&h->state, COR_SHA256_BYTES, digest);
}

const char *cor_sha256_hex(char hex[COR_SHA256_HEX], const uint8_t digest[COR_SHA256_BYTES])
{
    static const char digits[] = "0123456789abcdef";

    for (int i = 0; i < COR_SHA256_BYTES; i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    hex[COR_SHA256_HEX - 1] = '\0';
    return hex;
}

const char *cor_sha256_end_hex(struct cor_sha256 *h, char hex[COR_SHA256_HEX])
{
    uint8_t digest[COR_SHA256_BYTES];

    cor_sha256_end(h, digest);
    return cor_sha256_hex(hex, digest);
}

bool cor_sha256_is_hex(const char *s)
{
    return strlen(s) == COR_SHA256_HEX - 1 && strspn(s, "0123456789abcdef") == COR_SHA256_HEX - 1;
}

enum vkmoe_status cor_sha256_files(struct cor_file *const *files, size_t n_files, char hex[COR_SHA256_HEX],
                                   void (*progress)(void *user, uint64_t done, uint64_t total), void *user,
                                   struct vkmoe_err *err)
{
    enum vkmoe_status st = VKMOE_OK;
    uint64_t total = 0, done = 0;
    uint8_t *piece = cor_alloc(PIECE);
    struct cor_sha256 h;

    if (!piece)
        FAIL(VKMOE_ERR_MEMORY, "%s: no memory to compute its SHA-256", cor_file_path(files[0]));
    for (size_t i = 0; i < n_files; i++)
        total += cor_file_size(files[i]);
    cor_sha256_begin(&h);
    for (size_t i = 0; i < n_files; i++) {
        const uint64_t size = cor_file_size(files[i]);

        for (uint64_t off = 0; off < size;) {
            size_t n = size - off < PIECE ? (size_t)(size - off) : PIECE;

            TRY(cor_file_read(files[i], off, piece, n, err));
            cor_sha256_add(&h, piece, n);
            off += n;
            done += n;
            if (progress)
                progress(user, done, total);
            if (cor_interrupted())
                FAIL(VKMOE_ERR_IO, "%s: interrupted", cor_file_path(files[i]));
        }
    }
    cor_sha256_end_hex(&h, hex);
done:
    cor_free(piece);
    return st;
}
