/* ports_list.h - sockets as the kernel lists them, and sorted sets of ports
 *
 * A `struct sock` is one kernel socket with its cookie; a `struct port` is what
 * the host hears about: protocol, address, port. Many sockets may stand behind
 * one port (SO_REUSEPORT, a listener that others inherited), so a set holds each
 * port once, in memcmp() order, and two sets are compared by one walk.
 *
 * Everything in the guest can open sockets, so both are bounded.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	SOCK_LIST_MAX = 131072,	/* sockets taken from one dump, 4 MiB */
	PORT_SET_MAX = 16384,	/* ports ever reported at once */
};

/* Which protocols something is about. */
enum {
	PORTS_TCP = 1,
	PORTS_UDP = 2,
	PORTS_ALL = PORTS_TCP | PORTS_UDP,
};

struct port {
	uint8_t proto;		/* IPPROTO_TCP, IPPROTO_UDP */
	uint8_t family;		/* AF_INET, AF_INET6 */
	uint16_t port;		/* host byte order, 1..65535 */
	uint8_t addr[16];	/* network byte order; IPv4 in the first four */
};

struct sock {
	struct port port;
	bool connected;		/* UDP only; TCP sockets listed are all listening */
	uint64_t cookie;	/* kernel's socket cookie (inode where /proc is the source) */
};

struct sock_list {
	struct sock *items;
	size_t len, cap;
	bool full;		/* SOCK_LIST_MAX was hit, the rest was left out */
};

struct port_set {
	struct port *items;
	size_t len, cap;
};

void sock_list_done(struct sock_list *l);
/* Adds what a kernel source says. Folds ::ffff:a.b.c.d into IPv4; leaves out
 * port 0, multicast addresses (nobody can connect to one) and link-local IPv6
 * (means nothing without a scope, which the protocol does not carry). */
void sock_list_add(struct sock_list *l, int proto, int family, const void *addr, uint16_t port,
		   bool connected, uint64_t cookie);

void port_set_done(struct port_set *s);
void port_set_add(struct port_set *s, const struct port *p);
void port_set_add_all(struct port_set *s, const struct port_set *more);
/* Sorts, drops duplicates and what exceeds PORT_SET_MAX. To be called once
 * after the last add; false when ports were dropped. */
bool port_set_seal(struct port_set *s);
/* What @now has more and less than @before; the results are sealed sets. */
void port_set_diff(const struct port_set *before, const struct port_set *now,
		   struct port_set *ret_added, struct port_set *ret_removed);

/* "127.0.0.1", "::1". */
const char *port_ip(const struct port *p, char out[INET6_ADDRSTRLEN]);
const char *port_proto(const struct port *p);	/* "tcp", "udp" */

#define scoped_sock_list __attribute__((cleanup(sock_list_done)))
#define scoped_port_set	 __attribute__((cleanup(port_set_done)))
