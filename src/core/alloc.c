#include "core/alloc.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static atomic_long fail_from, requests, live;

static int refuse(void)
{
    long n = atomic_fetch_add(&requests, 1) + 1;
    long f = atomic_load(&fail_from);

    return f && n >= f;
}

static void *counted(void *p)
{
    if (p)
        atomic_fetch_add(&live, 1);
    return p;
}

void *cor_alloc(size_t bytes)
{
    return refuse() ? NULL : counted(malloc(bytes ? bytes : 1));
}

void *cor_zalloc(size_t bytes)
{
    return refuse() ? NULL : counted(calloc(1, bytes ? bytes : 1));
}

void *cor_array(size_t count, size_t size)
{
    if (size && count > SIZE_MAX / size)
        return NULL;
    return cor_zalloc(count * size);
}

void *cor_resize(void *p, size_t count, size_t size)
{
    size_t bytes = count * size;

    if ((size && count > SIZE_MAX / size) || refuse())
        return NULL;
    if (!p)
        return counted(malloc(bytes ? bytes : 1));
    return realloc(p, bytes ? bytes : 1);
}

char *cor_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = cor_alloc(n);

    if (p)
        memcpy(p, s, n);
    return p;
}

void cor_free(void *p)
{
    if (!p)
        return;
    atomic_fetch_sub(&live, 1);
    free(p);
}

void cor_alloc_fail_from(long nth)
{
    atomic_store(&requests, 0);
    atomic_store(&fail_from, nth);
}

long cor_alloc_requests(void)
{
    return atomic_load(&requests);
}

long cor_alloc_live(void)
{
    return atomic_load(&live);
}
