/* rule.h - may a guest port appear on the host, and where
 *
 * Rules are an ordered list; the first match wins, and a match may say "leave
 * closed". The list is fixed after load, so asking is lock-free and allocates
 * nothing. Worst case: 65,535 ports x 40 rules when a guest first reports.
 *
 * The list is: guest port 22 never; this instance's ssh port never; the user's
 * rules; at last guest 127.0.0.1, any port, to the same port of the host's
 * 127.0.0.1 (reference/port-forwarding.md §2, §3).
 *
 * Rules about a socket in the guest (guestSocket, reverse) say nothing about a
 * port and never match one, whatever port range their defaults gave them. A
 * static rule matches like any other: it names where the port belongs.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/config/config.h"

struct rule_set {
	struct config_port_forward *rules; /* shallow copies: the config outlives us */
	size_t n;
	/* The user begins with "ignore everything": then ports that stay closed
	 * are not worth an event each. */
	bool quiet_tcp, quiet_udp;
};

struct rule_host {          /* where on the host */
	const char *socket; /* absolute path, or NULL: ip and port; lives as long as the rule */
	struct in6_addr ip;
	uint16_t port;
};

/* @ssh_local_port: 0 when there is none. */
void rule_set_init(struct rule_set *set, const struct config_port_forward *user, size_t n_user,
		   uint16_t ssh_local_port);
void rule_set_done(struct rule_set *set);

/* First rule for a guest listener, or NULL: stays closed. Points into @set.
 * @proto: IPPROTO_TCP or IPPROTO_UDP. @ip: IPv4 as ::ffff:a.b.c.d. @port: 1..65535. */
const struct config_port_forward *rule_match(const struct rule_set *set, int proto,
					     const struct in6_addr *ip, uint16_t port);

/* The host's side of @rule for a guest @port it matched. */
struct rule_host rule_host_address(const struct config_port_forward *rule, uint16_t port);

/* No event is worth sending when such a port stays closed. */
bool rule_set_is_quiet(const struct rule_set *set, int proto);
