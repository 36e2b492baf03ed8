#include "lib/config/size.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static const char units[] = "KMGTP";	/* 1024^1 … */

bool size_parse(const char *s, uint64_t *ret)
{
	double value = 0, digit = 1;
	bool any = false, fraction = false;
	const char *unit;

	for (; isdigit((unsigned char)*s) || (*s == '.' && !fraction && any); s++) {
		if (*s == '.') {
			fraction = true;
		} else if (fraction) {
			digit /= 10;
			value += (*s - '0') * digit;
		} else {
			value = value * 10 + (*s - '0');
			any = true;
		}
	}
	if (!any)
		return false;
	s += *s == ' ';
	unit = *s ? strchr(units, toupper((unsigned char)*s)) : NULL;
	if (unit) {
		for (const char *u = units; u <= unit; u++)
			value *= 1024;
		s++;
		s += *s == 'i' || *s == 'I';
	}
	s += *s == 'b' || *s == 'B';
	if (*s || value >= 9223372036854775808.0)	/* 2^63 */
		return false;
	*ret = (uint64_t)value;
	return true;
}

const char *size_format(uint64_t bytes, char out[SIZE_TEXT_SIZE])
{
	double value = (double)bytes;
	size_t u = 0;

	for (; value >= 1024 && u < sizeof(units) - 1; u++)
		value /= 1024;
	if (u)
		snprintf(out, SIZE_TEXT_SIZE, "%.4g%ciB", value, units[u - 1]);
	else
		snprintf(out, SIZE_TEXT_SIZE, "%.0fB", value);
	return out;
}
