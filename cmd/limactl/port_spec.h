/* port_spec.h - a forward as it is written on a command line
 *
 *	[HOST:]GUEST[/tcp|/udp]
 *
 *	8080:80			host 127.0.0.1, one port to another
 *	3000			the same port on both sides
 *	0.0.0.0:8080:80		on all addresses of the host
 *	[::1]:8080:80		addresses of IPv6 stand in brackets
 *	8000-8010:9000-9010	a range, as long on both sides
 *	auto:80			any free port of the host
 *	8080:10.0.0.7:80	an address of the guest that is not its loopback
 *	8080:*:80		any address of the guest
 *	/run/web.sock:80	a socket of the host
 *	/tmp/d.sock:/run/docker.sock	a socket of each
 *
 * It becomes an item of `portForwards` as lima.yaml has it. Only the form is
 * judged here; what fits together is the host agent's to say, with the same
 * words as for lima.yaml.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "lib/base/error.h"

struct port_side {
	char *ip;		/* as inet_ntop() writes it, or "*": any; NULL: not given */
	char *socket;		/* absolute; NULL: none */
	uint16_t port[2];	/* first, last; 0 with a socket and with is_auto */
	bool is_auto;
};

struct port_spec {
	struct port_side host, guest;
	bool one_side;		/* only one was written: both are it */
	const char *proto;	/* "tcp", "udp"; NULL: not given */
};

int port_spec_parse(const char *text, struct port_spec *ret, struct error *err);
void port_spec_done(struct port_spec *s);
#define scoped_port_spec __attribute__((cleanup(port_spec_done)))

/* An item of `portForwards`; the caller releases it. */
json_t *port_spec_rule(const struct port_spec *s);
/* The rule that keeps what @s names in the guest closed, whatever address it
 * listens on unless one is given. -EINVAL when a host's side was written, too. */
int port_spec_ignore_rule(const struct port_spec *s, json_t **ret, struct error *err);

/* A rule as GET /v1/rules shows it, as a person would write it: "8080:80/udp";
 * caller frees. */
char *port_spec_of_rule(const json_t *rule);
char *port_spec_guest_of_rule(const json_t *rule);	/* the guest's side alone */
char *port_spec_host_of_rule(const json_t *rule);	/* "" when it ignores */
/* Does @s name @rule? A side that stands alone is the host's, or for a rule that
 * ignores, the guest's; no protocol is any. */
bool port_spec_is_rule(const struct port_spec *s, const json_t *rule);
