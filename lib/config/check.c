/* What a single value must be, beyond its type. */
#include "lib/config/schema.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/base/utf8.h"
#include "lib/config/version.h"

const char *check_digest(const struct node *n)
{
	static const struct { const char *name; size_t digits; } kinds[] = {
		{ "sha256:", 64 }, { "sha512:", 128 }, { "sha384:", 96 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		size_t len = strlen(kinds[i].name);

		if (strncmp(n->text, kinds[i].name, len) != 0)
			continue;
		if (n->text_len == len + kinds[i].digits &&
		    strspn(n->text + len, "0123456789abcdef") == kinds[i].digits)
			return NULL;
		return "is not a digest: the number of hex digits is wrong";
	}
	return "is not a digest such as sha256:<64 hex digits>";
}

const char *check_one_line(const struct node *n)
{
	for (const char *p = n->text; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			return "has a line break or control character";
	return utf8_valid(n->text, n->text_len) ? NULL : "is not UTF-8 text";
}

const char *check_location(const struct node *n)
{
	static const char *const starts[] = { "https://", "http://", "file:///", "mmdebstrap:",
					      "/", "~/" };

	if (check_one_line(n))
		return check_one_line(n);
	for (size_t i = 0; i < ARRAY_SIZE(starts); i++) {
		size_t len = strlen(starts[i]);

		if (strncmp(n->text, starts[i], len) == 0 && n->text_len > len)
			return NULL;
	}
	return "is neither a URL (https://…), an absolute path, nor mmdebstrap:SUITE";
}

const char *check_semver(const struct node *n)
{
	return version_valid(n->text) ? NULL : "is not a version such as 2.0.0";
}

const char *check_octal(const struct node *n)
{
	bool ok = n->text_len >= 1 && n->text_len <= 5 &&
		  strspn(n->text, "01234567") == n->text_len;

	return ok ? NULL : "is not an octal mode such as 644";
}

const char *check_absolute(const struct node *n)
{
	if (check_one_line(n))
		return check_one_line(n);
	return *n->text == '/' ? NULL : "is not an absolute path";
}

/* A colon would begin the next field of /etc/passwd, the next directory of $PATH. */
const char *check_guest_path(const struct node *n)
{
	const char *what = check_absolute(n);

	return what || !strchr(n->text, ':') ? what : "has a colon, which such a path cannot have";
}

const char *check_ssh_port(const struct node *n)
{
	return n->num == 22 ? "is the port of the host's own sshd; take another, or 0 for any" :
			      NULL;
}

const char *check_ips(const struct node *list)
{
	struct in6_addr ip;

	for (size_t i = 0; i < list->n_items; i++)
		if (inet_pton(AF_INET, list->items[i]->text, &ip) != 1 &&
		    inet_pton(AF_INET6, list->items[i]->text, &ip) != 1)
			return "is not an IP address";
	return NULL;
}

static bool is_identifier(const char *s)
{
	if (!isalpha((unsigned char)*s) && *s != '_')
		return false;
	for (; *s; s++)
		if (!isalnum((unsigned char)*s) && *s != '_')
			return false;
	return true;
}

/* They become lines of the guest's /etc/environment. */
const char *check_env(const struct node *map)
{
	for (size_t i = 0; i < map->n_items; i++) {
		if (!is_identifier(map->items[i]->key))
			return "is no name of a variable (letters, digits and _)";
		if (check_one_line(map->items[i]))
			return "has a value with a line break or control character";
	}
	return NULL;
}

/* They become PARAM_NAME=VALUE in the guest; printable, tab and space are fine. */
const char *check_param(const struct node *map)
{
	for (size_t i = 0; i < map->n_items; i++) {
		const struct node *n = map->items[i];

		if (!is_identifier(n->key) || *n->key == '_')
			return "is no name of a param (a letter, then letters, digits and _)";
		for (const char *p = n->text; *p; p++)
			if (((unsigned char)*p < 0x20 && *p != '\t') || *p == 0x7f)
				return "has a value with a line break or control character";
	}
	return NULL;
}
