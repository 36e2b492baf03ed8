#include "lib/base/strv.h"

#include <stdarg.h>
#include <string.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"

void strv_done(struct strv *v)
{
	for (size_t i = 0; i < v->len; i++)
		free(v->items[i]);
	free(v->items);
	*v = (struct strv){ 0 };
}

void strv_take(struct strv *v, char *s)
{
	if (v->len + 2 > v->cap) {
		v->cap = v->cap ? v->cap * 2 : 8;
		v->items = xreallocarray(v->items, v->cap, sizeof(*v->items));
	}
	v->items[v->len++] = s;
	v->items[v->len] = NULL;
}

void strv_add(struct strv *v, const char *s)
{
	strv_take(v, xstrdup(s));
}

void strv_addf(struct strv *v, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	strv_take(v, xvasprintf(fmt, ap));
	va_end(ap);
}

void strv_add_all(struct strv *v, ...)
{
	va_list ap;
	const char *s;

	va_start(ap, v);
	while ((s = va_arg(ap, const char *)))
		strv_add(v, s);
	va_end(ap);
}

bool strv_contains(const struct strv *v, const char *s)
{
	for (size_t i = 0; i < v->len; i++)
		if (streq(v->items[i], s))
			return true;
	return false;
}

char *strv_join(const struct strv *v, const char *sep)
{
	struct buf b = { 0 };

	for (size_t i = 0; i < v->len; i++)
		buf_addf(&b, "%s%s", i ? sep : "", v->items[i]);
	return buf_steal_str(&b);
}

void strv_split(struct strv *v, const char *s, const char *seps)
{
	while (*(s += strspn(s, seps))) {
		size_t n = strcspn(s, seps);

		strv_take(v, xstrndup(s, n));
		s += n;
	}
}
