/* Small files in every block format, and damage to them. */
#ifndef TEST_DAMAGE_H
#define TEST_DAMAGE_H

#include "model/gguf.h"
#include "support/test.h"

enum { DAMAGE_TOKENS = 257, DAMAGE_EXPERTS = 2 };

struct damage {
    const char *type; /* its matrices' */
    char path[4200];
    char *good, *bytes; /* the file, and the copy that is damaged */
    size_t n, header;   /* bytes: all; before the data */
};

/* One layer, two experts of rows of 256, random weights; the output matrix of the attention is narrow, and in
 * the format that stands in. */
void damage_open(struct damage *d, const char *dir, const struct mdl_type_info *type);
void damage_close(struct damage *d);
/* Everything is good again. */
void damage_undo(struct damage *d);
/* Flips up to three bits; in the data, scales of a few blocks may become infinite or no numbers as well. */
void damage_header(struct damage *d, uint64_t *rng);
void damage_data(struct damage *d, uint64_t *rng);
/* The copy, or its beginning, as the file at d->path. */
void damage_write(const struct damage *d, size_t n);
/* Fails the test unless the message is one line that names the file. */
void damage_check_line(const struct damage *d, const struct vkmoe_err *err);

#endif
