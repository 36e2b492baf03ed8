#include "lib/config/version.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct version {
	unsigned long part[3];
	const char *pre;	/* after '-', NULL none */
	size_t pre_len;		/* without "+build" */
};

static bool parse(const char *s, struct version *ret)
{
	*ret = (struct version){ 0 };
	s += *s == 'v';
	for (int i = 0; i < 3; i++) {
		char *end;

		if (!isdigit((unsigned char)*s) || strspn(s, "0123456789") > 9)
			return false;
		ret->part[i] = strtoul(s, &end, 10);
		s = end;
		if (*s != '.' || i == 2)
			break;
		s++;
	}
	if (*s == '-') {
		ret->pre = ++s;
		ret->pre_len = strcspn(s, "+");
		s += ret->pre_len;
		if (!ret->pre_len)
			return false;
	}
	if (*s == '+')
		s += strlen(s);
	return !*s;
}

bool version_valid(const char *s)
{
	struct version v;

	return parse(s, &v);
}

/* Identifiers between dots: numbers by value and before words. */
static int compare_pre(const char *a, size_t la, const char *b, size_t lb)
{
	while (la && lb) {
		size_t na = 0, nb = 0;
		bool digits_a, digits_b;
		int d;

		while (na < la && a[na] != '.')
			na++;
		while (nb < lb && b[nb] != '.')
			nb++;
		digits_a = strspn(a, "0123456789") >= na;
		digits_b = strspn(b, "0123456789") >= nb;
		if (digits_a != digits_b)
			return digits_a ? -1 : 1;
		if (digits_a && na != nb)
			return na < nb ? -1 : 1;
		d = strncmp(a, b, na < nb ? na : nb);
		if (d || na != nb)
			return d ? d : na < nb ? -1 : 1;
		a += na + (na < la);
		la -= na + (na < la);
		b += nb + (nb < lb);
		lb -= nb + (nb < lb);
	}
	return la ? 1 : lb ? -1 : 0;
}

int version_compare(const char *a, const char *b)
{
	struct version va, vb;

	if (!parse(a, &va) || !parse(b, &vb))
		return strcmp(a, b);
	for (int i = 0; i < 3; i++)
		if (va.part[i] != vb.part[i])
			return va.part[i] < vb.part[i] ? -1 : 1;
	if (!va.pre || !vb.pre)
		return va.pre ? -1 : vb.pre ? 1 : 0;
	return compare_pre(va.pre, va.pre_len, vb.pre, vb.pre_len);
}
