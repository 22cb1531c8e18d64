/* SHA-256 of bytes that come in pieces: what says that a file, or an expert in it, is the same. */
#ifndef COR_DIGEST_H
#define COR_DIGEST_H

#include <nettle/sha2.h>

#include "core/os.h"

enum { COR_SHA256_BYTES = 32, COR_SHA256_HEX = 2 * COR_SHA256_BYTES + 1 /* with the NUL */ };

/* The members are nettle's and nobody else's; a value may be copied to go on from there twice. */
struct cor_sha256 {
    struct sha256_ctx state;
};

void cor_sha256_begin(struct cor_sha256 *h);
void cor_sha256_add(struct cor_sha256 *h, const void *data, size_t n); /* any n, 0 included */
/* h must be begun again before it is used again. */
void cor_sha256_end(struct cor_sha256 *h, uint8_t digest[COR_SHA256_BYTES]);

/* The 64 lower-case digits, with a NUL. Returns hex. */
const char *cor_sha256_hex(char hex[COR_SHA256_HEX], const uint8_t digest[COR_SHA256_BYTES]);
/* end and hex at once. Returns hex. */
const char *cor_sha256_end_hex(struct cor_sha256 *h, char hex[COR_SHA256_HEX]);
/* True when s is exactly 64 hexadecimal digits in lower case. */
bool cor_sha256_is_hex(const char *s);

/* Of whole files, one behind the other as cat joins them, read in pieces of 1 MiB. progress (NULL: none) gets
 * bytes done and the size of all. Ctrl-C ends it with VKMOE_ERR_IO. */
enum vkmoe_status cor_sha256_files(struct cor_file *const *files, size_t n_files, char hex[COR_SHA256_HEX],
                                   void (*progress)(void *user, uint64_t done, uint64_t total), void *user,
                                   struct vkmoe_err *err);

#endif
