/* Heap memory with overflow-checked sizes, a live count and a switch that fails the Nth request (tests). */
#ifndef COR_ALLOC_H
#define COR_ALLOC_H

#include <stddef.h>

/* NULL when out of memory; 0 bytes give a valid pointer */
void *cor_alloc(size_t bytes);
void *cor_zalloc(size_t bytes);                       /* zeroed */
void *cor_array(size_t count, size_t size);           /* zeroed; NULL when count * size overflows */
void *cor_resize(void *p, size_t count, size_t size); /* new part not zeroed; p stays valid on NULL */
char *cor_strdup(const char *s);
void cor_free(void *p);

/* Tests: from now on the nth request (1 = the next) and all later ones fail; 0 switches it off. */
void cor_alloc_fail_from(long nth);
/* Tests: requests made since the last cor_alloc_fail_from, and blocks not freed yet. */
long cor_alloc_requests(void);
long cor_alloc_live(void);

#endif
