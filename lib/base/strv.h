/* strv.h - a growing list of strings, NULL-terminated: argv, environment, names
 *
 * Owns its strings. The list is always terminated, so `v.items` can go to exec
 * as it is (an empty, never used list has items == NULL).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct strv {
	char **items;
	size_t len;
	size_t cap;
};

void strv_done(struct strv *v);			/* frees all, leaves an empty list */
void strv_add(struct strv *v, const char *s);	/* copies */
void strv_take(struct strv *v, char *s);	/* owns @s from now on */
void strv_addf(struct strv *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strv_add_all(struct strv *v, ...) __attribute__((sentinel)); /* copies; end with NULL */
bool strv_contains(const struct strv *v, const char *s);
/* Items joined by @sep; caller frees. */
char *strv_join(const struct strv *v, const char *sep);
/* Splits at any char of @seps; empty pieces are dropped. */
void strv_split(struct strv *v, const char *s, const char *seps);

#define scoped_strv __attribute__((cleanup(strv_done)))
#define strv_foreach(s, v)                                                          \
	for (size_t s##_i = 0; s##_i < (v)->len && ((s) = (v)->items[s##_i], 1); s##_i++)
