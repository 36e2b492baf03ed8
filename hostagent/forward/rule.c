#include "hostagent/forward/rule.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "hostagent/forward/address.h"
#include "lib/base/mem.h"

enum { RULE_BUILTIN_MAX = 3 }; /* ssh's two and the last one */

static struct config_port_forward never(uint16_t port)
{
	return (struct config_port_forward){
		.guest_ip = address_v4(0, 0, 0, 0), /* wildcard: must_be_zero stays off */
		.guest_port = { port, port },
		.proto = L4_ANY,
		.ignore = true,
	};
}

static struct config_port_forward localhost_to_localhost(enum config_lane lane)
{
	return (struct config_port_forward){
		.guest_ip = address_v4(127, 0, 0, 1),
		.guest_port = { 1, 65535 },
		.host_ip = address_v4(127, 0, 0, 1),
		.host_port = { 1, 65535 },
		.proto = L4_ANY,
		.lane = lane,
	};
}

bool rule_speaks(const struct config_port_forward *r, int proto)
{
	if (proto == IPPROTO_UDP && !r->ignore && (r->lane == CONFIG_LANE_SSH || r->host_socket))
		return false; /* ssh has no datagrams, a stream socket neither */
	return r->proto == L4_ANY || r->proto == (proto == IPPROTO_UDP ? L4_UDP : L4_TCP);
}

/* Not for ports. */
static bool is_socket(const struct config_port_forward *r)
{
	return r->guest_socket || r->reverse;
}

/* Leading rules that ignore everything; the scan ends at the first other rule
 * (reference/port-forwarding.md §10). */
static void find_quiet(struct rule_set *set, const struct config_port_forward *user, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const struct config_port_forward *r = &user[i];

		if (!r->ignore || r->guest_socket || r->guest_port[0] != 1 ||
		    r->guest_port[1] != 65535)
			return;
		set->quiet_tcp |= rule_speaks(r, IPPROTO_TCP);
		set->quiet_udp |= rule_speaks(r, IPPROTO_UDP);
	}
}

/* --- the list ---------------------------------------------------------------- */

static struct rule *rule_new(const struct config_port_forward *c, enum rule_origin origin)
{
	struct rule *r = xnew(struct rule);

	r->c = *c;
	r->origin = origin;
	r->is_narrow = origin != RULE_BUILTIN &&
		       c->guest_port[1] - c->guest_port[0] < RULE_NARROW_PORTS;
	return r;
}

static void append(struct rule_set *set, const struct config_port_forward *c,
		   enum rule_origin origin)
{
	set->rules[set->n++] = rule_new(c, origin);
}

void rule_set_init(struct rule_set *set, const struct config *c, uint16_t ssh_local_port)
{
	struct config_port_forward ssh = never(22), own = never(ssh_local_port),
				   last = localhost_to_localhost(c->port_forwarding.lane);

	*set = (struct rule_set){ .rules = xcalloc(c->n_port_forwards + RULE_BUILTIN_MAX +
							   RULE_LIVE_MAX,
						   sizeof(*set->rules)) };
	append(set, &ssh, RULE_BUILTIN);
	if (ssh_local_port)
		append(set, &own, RULE_BUILTIN);
	for (size_t i = 0; i < c->n_port_forwards; i++) {
		struct rule *r;

		append(set, &c->port_forwards[i], RULE_FILE);
		r = set->rules[set->n - 1];
		r->id = ++set->last_id;
		snprintf(r->name, sizeof(r->name), "portForwards[%zu]", i);
	}
	if (!c->plain) /* plain: nobody would tell what listens */
		append(set, &last, RULE_BUILTIN);
	find_quiet(set, c->port_forwards, c->n_port_forwards);
}

void rule_free(struct rule *r)
{
	if (r->origin == RULE_LIVE) {
		free(r->c.guest_socket);
		free(r->c.host_socket);
	}
	free(r);
}

void rule_set_done(struct rule_set *set)
{
	while (set->n)
		rule_free(set->rules[--set->n]);
	free(set->rules);
	*set = (struct rule_set){ 0 };
}

static bool same_text(const char *a, const char *b)
{
	return a && b ? streq(a, b) : a == b;
}

static bool same_rule(const struct config_port_forward *a, const struct config_port_forward *b)
{
	return address_equal(&a->guest_ip, &b->guest_ip) &&
	       address_equal(&a->host_ip, &b->host_ip) &&
	       memcmp(a->guest_port, b->guest_port, sizeof(a->guest_port)) == 0 &&
	       memcmp(a->host_port, b->host_port, sizeof(a->host_port)) == 0 &&
	       same_text(a->guest_socket, b->guest_socket) &&
	       same_text(a->host_socket, b->host_socket) && a->proto == b->proto &&
	       a->guest_ip_must_be_zero == b->guest_ip_must_be_zero &&
	       a->host_port_auto == b->host_port_auto && a->reverse == b->reverse &&
	       a->ignore == b->ignore && a->is_static == b->is_static && a->lane == b->lane;
}

int rule_set_add(struct rule_set *set, const struct config_port_forward *c, struct rule **ret,
		 struct error *err)
{
	size_t at = 0;
	struct rule *r;

	while (at < set->n && set->rules[at]->origin == RULE_BUILTIN && set->rules[at]->c.ignore)
		at++;
	for (size_t i = at; i < at + set->n_live; i++)
		if (same_rule(&set->rules[i]->c, c))
			return error_set(err, -EEXIST, "there is such a rule already, %s",
					 set->rules[i]->name);
	if (set->n_live >= RULE_LIVE_MAX)
		return error_set(err, -ENOSPC, "%d rules were added already; remove some",
				 RULE_LIVE_MAX);
	r = rule_new(c, RULE_LIVE);
	r->c.guest_socket = c->guest_socket ? xstrdup(c->guest_socket) : NULL;
	r->c.host_socket = c->host_socket ? xstrdup(c->host_socket) : NULL;
	r->id = ++set->last_id;
	snprintf(r->name, sizeof(r->name), "live rule %u", r->id);
	memmove(&set->rules[at + 1], &set->rules[at], (set->n - at) * sizeof(*set->rules));
	set->rules[at] = r;
	set->n++;
	set->n_live++;
	*ret = r;
	return 0;
}

struct rule *rule_set_detach(struct rule_set *set, struct rule *rule)
{
	for (size_t i = 0; i < set->n; i++) {
		if (set->rules[i] != rule)
			continue;
		set->n--;
		set->n_live--;
		memmove(&set->rules[i], &set->rules[i + 1], (set->n - i) * sizeof(*set->rules));
		break;
	}
	return rule;
}

struct rule *rule_find(const struct rule_set *set, unsigned id)
{
	for (size_t i = 0; id && i < set->n; i++)
		if (set->rules[i]->id == id)
			return set->rules[i];
	return NULL;
}

/* --- matching ---------------------------------------------------------------- */

/* The table of reference/port-forwarding.md §3, row by row. */
static bool covers_ip(const struct config_port_forward *r, const struct in6_addr *ip)
{
	if (address_is_wildcard(ip))
		return true;
	if (address_equal(ip, &r->guest_ip))
		return true;
	if (IN6_IS_ADDR_LOOPBACK(ip) && address_is_v4_loopback(&r->guest_ip))
		return true;
	return address_is_wildcard(&r->guest_ip) && !r->guest_ip_must_be_zero;
}

static bool matches(const struct config_port_forward *r, int proto, const struct in6_addr *ip,
		    uint16_t port)
{
	if (is_socket(r) || !rule_speaks(r, proto))
		return false;
	if (port < r->guest_port[0] || port > r->guest_port[1])
		return false;
	return covers_ip(r, ip);
}

struct rule *rule_match(const struct rule_set *set, int proto, const struct in6_addr *ip,
			uint16_t port, const struct rule **ret_ignored)
{
	bool wildcard = address_is_wildcard(ip);

	for (size_t i = 0; i < set->n; i++) {
		struct rule *r = set->rules[i];

		if (!matches(&r->c, proto, ip, port))
			continue;
		if (!r->c.ignore)
			return r;
		/* "ignore 127.0.0.1" must not close what listens everywhere */
		if (wildcard && !address_is_wildcard(&r->c.guest_ip))
			continue;
		if (ret_ignored)
			*ret_ignored = r;
		return NULL;
	}
	return NULL;
}

struct rule_host rule_host_address(const struct config_port_forward *rule, uint16_t port)
{
	if (rule->host_socket)
		return (struct rule_host){ .socket = rule->host_socket };
	return (struct rule_host){
		.ip = rule->host_ip,
		.port = (uint16_t)(port - rule->guest_port[0] + rule->host_port[0]),
	};
}

bool rule_set_is_quiet(const struct rule_set *set, int proto)
{
	return proto == IPPROTO_UDP ? set->quiet_udp : set->quiet_tcp;
}

const char *rule_origin_name(const struct rule *rule)
{
	static const char *const names[] = {
		[RULE_BUILTIN] = "builtin", [RULE_FILE] = "file", [RULE_LIVE] = "live",
	};

	return rule ? names[rule->origin] : "";
}
