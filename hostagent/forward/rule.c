#include "hostagent/forward/rule.h"

#include "hostagent/forward/address.h"
#include "lib/base/mem.h"

enum { RULE_BUILTIN = 3 }; /* ssh's two and the last one */

static struct config_port_forward never(uint16_t port)
{
	return (struct config_port_forward){
		.guest_ip = address_v4(0, 0, 0, 0), /* wildcard: must_be_zero stays off */
		.guest_port = { port, port },
		.proto = L4_ANY,
		.ignore = true,
	};
}

static struct config_port_forward localhost_to_localhost(void)
{
	return (struct config_port_forward){
		.guest_ip = address_v4(127, 0, 0, 1),
		.guest_port = { 1, 65535 },
		.host_ip = address_v4(127, 0, 0, 1),
		.host_port = { 1, 65535 },
		.proto = L4_ANY,
	};
}

static bool speaks(const struct config_port_forward *r, int proto)
{
	return r->proto == L4_ANY || r->proto == (proto == IPPROTO_UDP ? L4_UDP : L4_TCP);
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
		set->quiet_tcp |= speaks(r, IPPROTO_TCP);
		set->quiet_udp |= speaks(r, IPPROTO_UDP);
	}
}

void rule_set_init(struct rule_set *set, const struct config_port_forward *user, size_t n_user,
		   uint16_t ssh_local_port)
{
	*set = (struct rule_set){ .rules = xcalloc(n_user + RULE_BUILTIN, sizeof(*set->rules)) };
	set->rules[set->n++] = never(22);
	if (ssh_local_port)
		set->rules[set->n++] = never(ssh_local_port);
	for (size_t i = 0; i < n_user; i++)
		set->rules[set->n++] = user[i];
	set->rules[set->n++] = localhost_to_localhost();
	find_quiet(set, user, n_user);
}

void rule_set_done(struct rule_set *set)
{
	free(set->rules);
	*set = (struct rule_set){ 0 };
}

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
	if (r->guest_socket || r->reverse || !speaks(r, proto))
		return false;
	if (r->host_socket && proto == IPPROTO_UDP)
		return false; /* a stream socket cannot carry datagrams */
	if (port < r->guest_port[0] || port > r->guest_port[1])
		return false;
	return covers_ip(r, ip);
}

const struct config_port_forward *rule_match(const struct rule_set *set, int proto,
					     const struct in6_addr *ip, uint16_t port)
{
	bool wildcard = address_is_wildcard(ip);

	for (size_t i = 0; i < set->n; i++) {
		const struct config_port_forward *r = &set->rules[i];

		if (!matches(r, proto, ip, port))
			continue;
		if (!r->ignore)
			return r;
		/* "ignore 127.0.0.1" must not close what listens everywhere */
		if (!wildcard || address_is_wildcard(&r->guest_ip))
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
