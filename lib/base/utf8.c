#include "lib/base/utf8.h"

#include <stdint.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"

size_t utf8_seq_len(const char *str, size_t len)
{
	const uint8_t *s = (const uint8_t *)str;
	uint32_t cp;
	size_t n;

	if (len == 0)
		return 0;
	if (s[0] < 0x80)
		return 1;
	if ((s[0] & 0xe0) == 0xc0)
		n = 2, cp = s[0] & 0x1f;
	else if ((s[0] & 0xf0) == 0xe0)
		n = 3, cp = s[0] & 0x0f;
	else if ((s[0] & 0xf8) == 0xf0)
		n = 4, cp = s[0] & 0x07;
	else
		return 0;
	if (n > len)
		return 0;
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		cp = cp << 6 | (s[i] & 0x3f);
	}
	if ((n == 2 && cp < 0x80) || (n == 3 && cp < 0x800) || (n == 4 && cp < 0x10000) ||
	    cp > 0x10ffff || (cp >= 0xd800 && cp < 0xe000))
		return 0;
	return n;
}

bool utf8_valid(const char *s, size_t len)
{
	while (len) {
		size_t n = utf8_seq_len(s, len);

		if (!n)
			return false;
		s += n;
		len -= n;
	}
	return true;
}

char *utf8_clean(const char *s)
{
	struct buf b = { 0 };
	size_t len = strlen(s);

	while (len) {
		size_t n = utf8_seq_len(s, len);
		const uint8_t *u = (const uint8_t *)s;

		if (n == 2 && u[0] == 0xc2 && u[1] < 0xa0)
			n = 0;
		if (n) {
			buf_add(&b, s, n);
		} else {
			buf_addf(&b, "\\x%02x", u[0]);
			n = 1;
		}
		s += n;
		len -= n;
	}
	return buf_steal_str(&b);
}
