#include "lib/base/error.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/mem.h"

const char *error_text(int code)
{
	static __thread char text[128];
	const char *s = strerrordesc_np(-code);

	if (!s) {
		snprintf(text, sizeof(text), "error %d", -code);
		return text;
	}
	snprintf(text, sizeof(text), "%s", s);
	/* "No such file" -> "no such file", but "RPC struct is bad" stays */
	if (isupper((unsigned char)text[0]) && !isupper((unsigned char)text[1]))
		text[0] = (char)tolower((unsigned char)text[0]);
	return text;
}

bool error_is_unreachable(int code)
{
	static const int codes[] = { -ECONNREFUSED, -EHOSTUNREACH, -ENETUNREACH, -EHOSTDOWN,
				     -ENETDOWN };

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
		if (codes[i] == code)
			return true;
	return false;
}

/* Joins head and tail. If they do not fit, the middle goes: the tail keeps what
 * the head leaves free, but at least half. */
static void join(struct error *err, const char *head, const char *tail)
{
	static const char cut[] = "[…]";
	size_t head_len = strlen(head), tail_len = strlen(tail);
	size_t room = sizeof(err->msg) - 1;
	char out[ERROR_MSG_SIZE];

	if (head_len + tail_len <= room) {
		memcpy(out, head, head_len);
		memcpy(out + head_len, tail, tail_len + 1);
	} else {
		size_t keep;

		room -= sizeof(cut) - 1;
		keep = head_len < room / 2 ? room - head_len : room / 2;
		if (keep > tail_len)
			keep = tail_len;
		if (head_len > room - keep)
			head_len = room - keep;
		snprintf(out, sizeof(out), "%.*s%s%s", (int)head_len, head, cut,
			 tail + tail_len - keep);
	}
	memcpy(err->msg, out, sizeof(out));
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
	va_list ap;

	assert(code < 0);
	err->code = code;
	va_start(ap, fmt);
	scoped_free char *msg = xvasprintf(fmt, ap);
	va_end(ap);
	join(err, msg, "");
	return code;
}

int error_sys(struct error *err, int code, const char *fmt, ...)
{
	va_list ap;

	assert(code < 0);
	err->code = code;
	va_start(ap, fmt);
	scoped_free char *msg = xvasprintf(fmt, ap);
	va_end(ap);
	scoped_free char *tail = xasprintf(": %s", error_text(code));
	join(err, msg, tail);
	return code;
}

int error_wrap(struct error *err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	scoped_free char *msg = xvasprintf(fmt, ap);
	va_end(ap);
	scoped_free char *tail = xasprintf(": %s", err->msg);
	join(err, msg, tail);
	return err->code < 0 ? err->code : -1;
}

int error_append(struct error *err, const char *text)
{
	scoped_free char *head = xstrdup(err->msg);

	join(err, head, text);
	return err->code < 0 ? err->code : -1;
}
