/* rule.h - may a guest port appear on the host, and where
 *
 * Rules are an ordered list; the first match wins, and a match may say "leave
 * closed". Asking allocates nothing. Worst case: 65,535 ports x 40 rules when a
 * guest first reports.
 *
 * The list is: guest port 22 never; this instance's ssh port never; rules added
 * while it runs, the newest first; the file's rules; at last guest 127.0.0.1, any
 * port, to the same port of the host's 127.0.0.1 (reference/port-forwarding.md §2,
 * §3).
 *
 * Rules about a socket in the guest (guestSocket, reverse) say nothing about a
 * port and never match one, whatever port range their defaults gave them. A
 * static rule matches like any other: it names where the port belongs. A rule
 * that wants ssh for its lane speaks TCP only, as ssh does.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/config/config.h"

enum rule_origin { RULE_BUILTIN, RULE_FILE, RULE_LIVE };

struct rule { /* stays where it is for as long as it is in the set */
	struct config_port_forward c; /* FILE: its texts are the config's. LIVE: our own */
	enum rule_origin origin;
	unsigned id;   /* 0: built in */
	char name[40]; /* "portForwards[2]", "live rule 7", "" */
	/* It names few host ports, so it means each: privileged ones too. */
	bool is_narrow;
};

enum { RULE_NARROW_PORTS = 16, RULE_LIVE_MAX = 256 };

struct rule_set {
	struct rule **rules;
	size_t n, n_live;
	unsigned last_id;
	/* The user begins with "ignore everything": then ports that stay closed
	 * are not worth an event each. */
	bool quiet_tcp, quiet_udp;
};

struct rule_host {          /* where on the host */
	const char *socket; /* absolute path, or NULL: ip and port; lives as long as the rule */
	struct in6_addr ip;
	uint16_t port;
};

/* @c: its rules, borrowed; @ssh_local_port: 0 when there is none. */
void rule_set_init(struct rule_set *set, const struct config *c, uint16_t ssh_local_port);
void rule_set_done(struct rule_set *set);

/* A copy of @c before all others but ssh's. Fails as forward_add_rule() says. */
int rule_set_add(struct rule_set *set, const struct config_port_forward *c, struct rule **ret,
		 struct error *err);
/* Takes a live one out; rule_free() it when nobody refers to it any more. */
struct rule *rule_set_detach(struct rule_set *set, struct rule *rule);
void rule_free(struct rule *rule);
struct rule *rule_find(const struct rule_set *set, unsigned id); /* NULL: none */

/* First rule for a guest listener, or NULL: stays closed. @ret_ignored (may be
 * NULL): the rule that said so, if one did.
 * @proto: IPPROTO_TCP or IPPROTO_UDP. @ip: IPv4 as ::ffff:a.b.c.d. @port: 1..65535. */
struct rule *rule_match(const struct rule_set *set, int proto, const struct in6_addr *ip,
			uint16_t port, const struct rule **ret_ignored);

/* Does it carry such packets at all? */
bool rule_speaks(const struct config_port_forward *rule, int proto);
/* What a guest socket's path must not have: ssh takes it for the end. */
#define RULE_NOT_FOR_SSH "\r\n:"
#define RULE_NOT_FOR_SSH_WHY "ssh cannot forward a socket with a colon or a line break in its path"
/* The host's side of @rule for a guest @port it matched. */
struct rule_host rule_host_address(const struct config_port_forward *rule, uint16_t port);

/* No event is worth sending when such a port stays closed. */
bool rule_set_is_quiet(const struct rule_set *set, int proto);

const char *rule_origin_name(const struct rule *rule); /* "" for NULL */
