#include "cmd/limactl/port_spec.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"
#include "lib/base/strv.h"

enum { SPEC_MAX_BYTES = 1024 };

static const char form[] = "write HOST:GUEST, as in 8080:80, 127.0.0.1:8080:80/udp or /path/web.sock:80";

static void side_done(struct port_side *s)
{
	free(s->ip);
	free(s->socket);
}

void port_spec_done(struct port_spec *s)
{
	side_done(&s->host);
	side_done(&s->guest);
	*s = (struct port_spec){ 0 };
}

/* --- reading ------------------------------------------------------------- */

/* At each colon outside brackets; "" between two. */
static void cut_at_colons(const char *s, size_t len, struct strv *ret)
{
	size_t from = 0;
	bool inside = false;

	for (size_t i = 0; i <= len; i++) {
		if (i < len && (s[i] == '[' || s[i] == ']'))
			inside = s[i] == '[';
		if (i == len || (s[i] == ':' && !inside)) {
			strv_take(ret, xstrndup(s + from, i - from));
			from = i + 1;
		}
	}
}

/* The address in the one spelling that can be compared; NULL: is none. */
static char *parse_ip(const char *word)
{
	char text[INET6_ADDRSTRLEN];
	struct in6_addr v6;
	struct in_addr v4;
	size_t len = strlen(word);

	if (streq(word, "*"))
		return xstrdup(word);
	if (inet_pton(AF_INET, word, &v4) == 1)
		return xstrdup(inet_ntop(AF_INET, &v4, text, sizeof(text)));
	if (len < 2 || word[0] != '[' || word[len - 1] != ']')
		return NULL;
	scoped_free char *inner = xstrndup(word + 1, len - 2);
	return inet_pton(AF_INET6, inner, &v6) == 1 ?
	       xstrdup(inet_ntop(AF_INET6, &v6, text, sizeof(text))) : NULL;
}

/* "80", "8000-8010" */
static bool looks_like_port(const char *word)
{
	return *word && strspn(word, "0123456789-") == strlen(word);
}

static const char *read_port(const char *s, uint16_t *ret)
{
	unsigned long v = 0;
	size_t n = strspn(s, "0123456789");

	for (size_t i = 0; i < n && v <= UINT16_MAX; i++)
		v = v * 10 + (unsigned long)(s[i] - '0');
	if (!n || v == 0 || v > UINT16_MAX)
		return NULL;
	*ret = (uint16_t)v;
	return s + n;
}

static int parse_port(const char *word, uint16_t ret[2], struct error *err)
{
	const char *end = read_port(word, &ret[0]);

	ret[1] = ret[0];
	if (end && *end == '-')
		end = read_port(end + 1, &ret[1]);
	if (!end || *end)
		return error_set(err, -EINVAL, "`%s` is not a port (1–65535) or a range of them", word);
	if (ret[1] < ret[0])
		return error_set(err, -EINVAL, "`%s` ends before it begins", word);
	return 0;
}

/* One side out of the next words; *at moves behind them. */
static int take_side(const struct strv *words, size_t *at, bool host, struct port_side *ret,
		     struct error *err)
{
	const char *word = words->items[*at];

	ret->ip = parse_ip(word);
	if (ret->ip && ++*at == words->len)
		return error_set(err, -EINVAL, "a port is missing after `%s`; %s", word, form);
	word = words->items[(*at)++];
	if (*word == '/' && !ret->ip)
		ret->socket = xstrdup(word);
	else if (host && streq(word, "auto"))
		ret->is_auto = true;
	else if (looks_like_port(word))
		return parse_port(word, ret->port, err);
	else
		return error_set(err, -EINVAL, "`%s` is %s; %s", word,
				 *word ? "neither a port nor an address" : "missing", form);
	return 0;
}

/* "/udp" at the end, unless it is part of a socket's path. */
static size_t take_proto(const char *text, const char **ret)
{
	static const char *const protos[] = { "tcp", "udp" };
	const char *slash = strrchr(text, '/');

	for (size_t i = 0; slash && slash > text && i < ARRAY_SIZE(protos); i++) {
		const char *last = slash;

		while (last > text && last[-1] != ':')
			last--;
		if (streq(slash + 1, protos[i]) && *last != '/') {
			*ret = protos[i];
			return (size_t)(slash - text);
		}
	}
	return strlen(text);
}

static void copy_side(const struct port_side *from, struct port_side *to)
{
	*to = *from;
	to->ip = NULL;	/* the host's address says nothing about the guest's */
	to->socket = NULL;
}

static int parse_words(const struct strv *words, struct port_spec *s, struct error *err)
{
	size_t at = 0;

	if (take_side(words, &at, true, &s->host, err) < 0)
		return err->code;
	s->one_side = at == words->len;
	if (s->one_side) {
		if (s->host.is_auto)
			return error_set(err, -EINVAL, "a port of the guest is missing: auto:80");
		copy_side(&s->host, &s->guest);
		return 0;
	}
	if (take_side(words, &at, false, &s->guest, err) < 0)
		return err->code;
	if (at < words->len)
		return error_set(err, -EINVAL, "`%s` is too much; %s", words->items[at], form);
	if (s->host.port[1] && s->guest.port[1] &&
	    s->host.port[1] - s->host.port[0] != s->guest.port[1] - s->guest.port[0])
		return error_set(err, -EINVAL, "%d ports of the host do not fit %d of the guest",
				 s->host.port[1] - s->host.port[0] + 1,
				 s->guest.port[1] - s->guest.port[0] + 1);
	if (s->host.ip && streq(s->host.ip, "*"))
		return error_set(err, -EINVAL, "`*` is for the guest; 0.0.0.0 is every address of the host");
	return 0;
}

int port_spec_parse(const char *text, struct port_spec *ret, struct error *err)
{
	scoped_strv struct strv words = { 0 };
	scoped_port_spec struct port_spec s = { 0 };
	size_t len = take_proto(text, &s.proto);

	if (len > SPEC_MAX_BYTES)
		return error_set(err, -EINVAL, "a forward of %zu bytes; %s", len, form);
	cut_at_colons(text, len, &words);
	if (parse_words(&words, &s, err) < 0)
		return error_wrap(err, "`%s`", text);
	*ret = s;
	s = (struct port_spec){ 0 };
	return 0;
}

/* --- to a rule ----------------------------------------------------------- */

static void add_ports(json_t *rule, const char *one, const char *range, const uint16_t port[2])
{
	if (port[0] == port[1])
		json_object_set_new(rule, one, json_integer(port[0]));
	else
		json_object_set_new(rule, range, json_pack("[i, i]", (int)port[0], (int)port[1]));
}

static void add_guest(json_t *rule, const struct port_side *guest)
{
	if (guest->ip && streq(guest->ip, "*")) {
		json_object_set_new(rule, "guestIP", json_string("0.0.0.0"));
		json_object_set_new(rule, "guestIPMustBeZero", json_false());
	} else if (guest->ip) {
		json_object_set_new(rule, "guestIP", json_string(guest->ip));
	}
	if (guest->socket)
		json_object_set_new(rule, "guestSocket", json_string(guest->socket));
	else
		add_ports(rule, "guestPort", "guestPortRange", guest->port);
}

json_t *port_spec_rule(const struct port_spec *s)
{
	json_t *rule = json_object();

	if (s->host.ip)
		json_object_set_new(rule, "hostIP", json_string(s->host.ip));
	if (s->host.socket)
		json_object_set_new(rule, "hostSocket", json_string(s->host.socket));
	else if (s->host.is_auto)
		json_object_set_new(rule, "hostPort", json_string("auto"));
	else
		add_ports(rule, "hostPort", "hostPortRange", s->host.port);
	add_guest(rule, &s->guest);
	if (s->proto)
		json_object_set_new(rule, "proto", json_string(s->proto));
	return rule;
}

int port_spec_ignore_rule(const struct port_spec *s, json_t **ret, struct error *err)
{
	struct port_side guest = s->host;
	json_t *rule;

	if (!s->one_side)
		return error_set(err, -EINVAL, "--ignore is about the guest's port alone: write 80, 8000-8010/udp or 10.0.0.7:80");
	if (!guest.ip)
		guest.ip = (char *)"*";
	rule = json_object();
	add_guest(rule, &guest);
	json_object_set_new(rule, "ignore", json_true());
	if (s->proto)
		json_object_set_new(rule, "proto", json_string(s->proto));
	*ret = rule;
	return 0;
}

/* --- from a rule --------------------------------------------------------- */

static const char *get(const json_t *rule, const char *key)
{
	const char *s = json_string_value(json_object_get(rule, key));

	return s ? s : "";
}

static json_int_t range_at(const json_t *rule, const char *key, size_t i)
{
	return json_integer_value(json_array_get(json_object_get(rule, key), i));
}

static void add_port_text(struct buf *b, const json_t *rule, const char *key)
{
	json_int_t first = range_at(rule, key, 0), last = range_at(rule, key, 1);

	buf_addf(b, "%lld", (long long)first);
	if (last != first)
		buf_addf(b, "-%lld", (long long)last);
}

static void add_ip_text(struct buf *b, const char *ip, const char *usual)
{
	if (!*ip || streq(ip, usual))
		return;
	buf_addf(b, strchr(ip, ':') ? "[%s]:" : "%s:", ip);
}

static bool takes_any_address(const json_t *rule)
{
	const char *ip = get(rule, "guestIP");

	return (streq(ip, "0.0.0.0") || streq(ip, "::")) &&
	       !json_is_true(json_object_get(rule, "guestIPMustBeZero"));
}

char *port_spec_guest_of_rule(const json_t *rule)
{
	bool ignores = json_is_true(json_object_get(rule, "ignore"));
	struct buf b = { 0 };

	if (*get(rule, "guestSocket")) {
		buf_add_str(&b, get(rule, "guestSocket"));
		return buf_steal_str(&b);
	}
	if (!takes_any_address(rule))
		add_ip_text(&b, get(rule, "guestIP"), "127.0.0.1");
	else if (!ignores)
		buf_add_str(&b, "*:");
	add_port_text(&b, rule, "guestPortRange");
	return buf_steal_str(&b);
}

char *port_spec_host_of_rule(const json_t *rule)
{
	struct buf b = { 0 };

	if (json_is_true(json_object_get(rule, "ignore")))
		return xstrdup("");
	if (*get(rule, "hostSocket")) {
		buf_add_str(&b, get(rule, "hostSocket"));
		return buf_steal_str(&b);
	}
	add_ip_text(&b, get(rule, "hostIP"), "127.0.0.1");
	if (json_is_true(json_object_get(rule, "hostPortAuto")))
		buf_add_str(&b, "auto");
	else
		add_port_text(&b, rule, "hostPortRange");
	return buf_steal_str(&b);
}

char *port_spec_of_rule(const json_t *rule)
{
	scoped_free char *host = port_spec_host_of_rule(rule), *guest = port_spec_guest_of_rule(rule);
	const char *proto = get(rule, "proto");
	bool some = *proto && !streq(proto, "any");

	return xasprintf("%s%s%s%s%s", host, *host ? ":" : "", guest, some ? "/" : "", some ? proto : "");
}

static bool same_ports(const uint16_t port[2], const json_t *rule, const char *key)
{
	return range_at(rule, key, 0) == port[0] && range_at(rule, key, 1) == port[1];
}

static bool same_host(const struct port_side *host, const json_t *rule)
{
	if (host->socket || *get(rule, "hostSocket"))
		return host->socket && streq(host->socket, get(rule, "hostSocket"));
	if (!streq(host->ip ? host->ip : "127.0.0.1", get(rule, "hostIP")))
		return false;
	if (host->is_auto || json_is_true(json_object_get(rule, "hostPortAuto")))
		return host->is_auto && json_is_true(json_object_get(rule, "hostPortAuto"));
	return same_ports(host->port, rule, "hostPortRange");
}

static bool same_guest(const struct port_side *guest, const char *usual, const json_t *rule)
{
	const char *ip = guest->ip ? guest->ip : usual;

	if (guest->socket || *get(rule, "guestSocket"))
		return guest->socket && streq(guest->socket, get(rule, "guestSocket"));
	if (streq(ip, "*") ? !takes_any_address(rule) : !streq(ip, get(rule, "guestIP")))
		return false;
	return same_ports(guest->port, rule, "guestPortRange");
}

bool port_spec_is_rule(const struct port_spec *s, const json_t *rule)
{
	bool ignores = json_is_true(json_object_get(rule, "ignore"));

	if (s->proto && !streq(s->proto, get(rule, "proto")))
		return false;
	if (ignores)
		return s->one_side && same_guest(&s->host, "*", rule);
	return same_host(&s->host, rule) &&
	       (s->one_side || same_guest(&s->guest, "127.0.0.1", rule));
}
