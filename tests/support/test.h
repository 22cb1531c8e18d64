/* What every test program shares: cmocka, paths, skips that are counted. */
#ifndef TEST_H
#define TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/alloc.h"
#include "core/os.h"
#include "core/status.h"

/* Fails the test with the message when st is not VKMOE_OK. */
void test_ok(enum vkmoe_status st, const struct vkmoe_err *err);
/* Path of a file in the source tree ("tests/golden/..."), in a static ring of buffers. */
const char *test_source(const char *rel);
/* Path of a file in shared/ beside the checkout ("models/data/c.validation.txt"); NULL where it is absent:
 * the test then calls test_skip(), which fails where CI=true. */
const char *test_shared(const char *rel);
void test_skip(const char *why);
/* A skip that a row of tests/skips.txt expects, where CI=true as well. */
void test_skip_listed(const char *why);
/* Replaces a file by n bytes. */
void test_write(const char *path, const void *data, size_t n);
/* Fails the test unless both files hold the same bytes. */
void test_same_files(const char *a, const char *b);
/* A new empty directory for temporary files, removed at exit. */
const char *test_tmp(void);
/* `./check --full` asks for everything, at length (VKMOE_TEST_FULL=1). */
bool test_full(void);
/* Seed for random tests: --seed or VKMOE_TEST_SEED or a fixed one; printed once. */
uint64_t test_seed(void);
uint64_t test_rand(uint64_t *state);    /* splitmix64 */
double test_rand_unit(uint64_t *state); /* [0, 1) */

#endif
