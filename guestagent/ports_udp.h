/* ports_udp.h - which bound UDP sockets are servers
 *
 * UDP has no listen(), so a rule has to tell a server from a client that waits
 * for its answer. A socket is a server when all of this holds (facts:
 * prototypes/ports.md, recommendation 4):
 *
 *  1. It is not connected when first judged. Once taken for a server it stays
 *     one until it is gone: `nc -lu` and OpenVPN connect() to their first client.
 *  2. Its port is not a client's well-known one: 68 and 546 (DHCP), 5353 (mDNS).
 *  3. It lived for UDP_MIN_AGE_MS: clients that bind a fixed port connect at once.
 *  4. Its port was chosen by its program. Seen by BPF at bind() this is exact: a
 *     port given to bind() counts, one that the kernel chose (bind to 0, or a
 *     send without bind) never does, however old the socket gets. Not seen (no
 *     BPF or only TCP's half of it, sockets listed by /proc, or bound before we
 *     started): ports outside net.ipv4.ip_local_port_range count, ports inside
 *     count after UDP_UNSURE_AGE_MS, which a client's socket rarely reaches
 *     unconnected.
 *
 * Sockets already there at the first dump skip rule 3. What an agent before this one
 * knew of them goes on being true: ports_udp_keep.h.
 */
#pragma once

#include "guestagent/ports_list.h"

enum {
	UDP_MIN_AGE_MS = 8,
	UDP_UNSURE_AGE_MS = 5000,
};

enum udp_bind {
	UDP_BIND_UNKNOWN,
	UDP_BIND_CHOSEN,	/* bind() named the port */
	UDP_BIND_KERNEL,	/* bind() to port 0 */
};

struct udp_range {
	uint16_t low, high;	/* net.ipv4.ip_local_port_range, inclusive */
};

struct udp_known {
	uint64_t cookie;
	uint64_t since_ms;
	enum udp_bind bind;
	bool server;
	bool connected;
	bool lasting;	/* the next agent should know: a server, or an old client */
	bool kept;	/* ports_udp_keep.h wrote it down */
	struct port port;
};

struct udp_servers {
	struct udp_known *items;	/* by cookie */
	size_t len;
	bool started;
};

void udp_servers_done(struct udp_servers *u);

/* What another agent knew; before anything is judged. Takes @items, in any order. */
void udp_servers_restore(struct udp_servers *u, struct udp_known *items, size_t len);

/* Judges the UDP sockets of one dump and adds servers' ports to @ret.
 * @how: asked once for each socket seen for the first time, restored ones too.
 * Returns in how many ms a socket may become a server or `lasting` by age alone, 0: none. */
uint64_t udp_servers_judge(struct udp_servers *u, const struct sock_list *dump, uint64_t now_ms,
			   struct udp_range range,
			   enum udp_bind (*how)(void *arg, uint64_t cookie), void *arg,
			   struct port_set *ret);

/* From /proc; the kernel's default 32768–60999 when unreadable. */
struct udp_range udp_range_read(void);
