/* Models cut into several files, as gguf-split of llama.cpp writes them, and such files with a lie in them.
 */
#ifndef TEST_SPLIT_H
#define TEST_SPLIT_H

#include "model/gguf.h"
#include "support/test.h"

/* What a part says of itself. */
struct split_part {
    uint32_t no, count, n_tensors; /* its keys */
    uint32_t n_keys;               /* how many of the three it has, in this order */
    uint64_t first, end;           /* tensors of the whole */
};

/* dir/STEM-00001-of-0000N.gguf with the number of this part, from 0, in a static ring of buffers. */
const char *split_path(const char *dir, const char *stem, uint32_t no, uint32_t n);
/* What gguf-split would say of n parts of about as many tensors each. */
void split_plan(struct split_part *parts, uint32_t n, const struct mdl_gguf *whole);
/* Writes one part: the first with all keys of the whole. */
void split_write(const struct mdl_gguf *whole, const char *path, const struct split_part *part,
                 bool with_keys);
/* All n parts of the file at path; returns the path of the first. */
const char *split_copy(const char *path, const char *dir, const char *stem, uint32_t n);

#endif
