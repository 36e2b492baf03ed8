/* ports_nat.h - ports that only address translation publishes
 *
 * Containers and Kubernetes services often have no socket in the guest's network
 * namespace; which rules publish a port is said in nat_rules.h. The tables are
 * read on a thread of libuv's pool: they can be large.
 *
 * When: NAT_SETTLE_MS after nf_tables told of a change (nat_watch.h); rules come
 * in bursts. iptables-legacy tells of nothing: while one of its nat tables
 * exists it is read every NAT_LEGACY_MS. And whenever ports_nat_rescan() is
 * called. What failed is read again NAT_SETTLE_MS later, then after twice the time.
 * After a reading that took T the next begins no sooner than 8 T later.
 *
 * Reaching such a port from inside the guest is a matter of its own: rules often
 * leave out 127.0.0.1, or apply only to what comes in from outside. So for each
 * port we know what else to connect to, see ports_nat_dial().
 */
#pragma once

#include "guestagent/dial.h"
#include "guestagent/nat_rules.h"
#include "lib/base/loop.h"

enum {
	NAT_SETTLE_MS = 10,
	NAT_LEGACY_MS = 1000,
};

struct ports_nat;

/* @now: reads before it returns, so that the first list has all that is published;
 * takes as long as the tables do, and where that fails another half second. @changed: the published ports are others than before. */
struct ports_nat *ports_nat_new(struct loop *loop, bool now, void (*changed)(void *arg),
				void *arg);
void ports_nat_rescan(struct ports_nat *n);
/* Adds what is published to @ret. */
void ports_nat_add(const struct ports_nat *n, struct port_set *ret);

/* Which sockets listen, for ports_nat_dial(); after every look. */
void ports_nat_note_listeners(struct ports_nat *n, const struct port_set *tcp);

/* Adds to @d what else leads to a published port: in front of what is there, since
 * where rules rewrite what goes to 127.0.0.1, but not where it comes from, the kernel
 * throws it away and nothing refuses (route_localnet in Linux' ip-sysctl). Only behind
 * it when a TCP socket listens at that very address, or on all, and no rule is about
 * what the guest itself sends: such rules come before sockets. Any thread. */
void ports_nat_dial(struct ports_nat *n, int proto, struct dial *d);

/* No @changed follows; @closed runs when all is freed. */
void ports_nat_close(struct ports_nat *n, void (*closed)(void *arg), void *arg);
