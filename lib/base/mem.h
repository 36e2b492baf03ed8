/* mem.h - allocation that does not fail
 *
 * A small allocation that fails ends the process (Linux overcommits; the
 * alternative is thousands of untested paths). A size that a peer chose is
 * bounded by the caller before it comes here.
 */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/scoped.h"

void *xmalloc(size_t size) __attribute__((malloc, returns_nonnull));
void *xcalloc(size_t n, size_t size) __attribute__((malloc, returns_nonnull));
void *xrealloc(void *p, size_t size) __attribute__((returns_nonnull));
void *xreallocarray(void *p, size_t n, size_t size) __attribute__((returns_nonnull));
char *xstrdup(const char *s) __attribute__((malloc, returns_nonnull));
char *xstrndup(const char *s, size_t n) __attribute__((malloc, returns_nonnull));
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2), returns_nonnull));
char *xvasprintf(const char *fmt, va_list ap) __attribute__((returns_nonnull));

/* One zeroed object of the type: struct tunnel *t = xnew(struct tunnel); */
#define xnew(type) ((type *)xcalloc(1, sizeof(type)))

#undef MIN	/* sys/param.h has its own, which evaluates twice */
#undef MAX
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)                       \
	({                                  \
		__typeof__(a) min_a = (a);      \
		__typeof__(b) min_b = (b);      \
		min_a < min_b ? min_a : min_b;  \
	})
#define MAX(a, b)                       \
	({                                  \
		__typeof__(a) max_a = (a);      \
		__typeof__(b) max_b = (b);      \
		max_a > max_b ? max_a : max_b;  \
	})
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

static inline int streq(const char *a, const char *b)
{
	return strcmp(a, b) == 0;
}
