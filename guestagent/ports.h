/* ports.h - which ports of this guest serve: the authoritative list
 *
 * Truth is a dump of the kernel's sockets (ports_diag.h) in our network
 * namespace. Something only has to say when to look:
 *
 *   BPF (ports_bpf.h)  a kick on every change, which says the protocol: only that
 *                      one's sockets are dumped, what is known of the other one's
 *                      stays. We look at once, once more right
 *                      away if that found nothing, and again after 1, 4, 15, 100
 *                      and 1000 ms: the kernel tells of a listen() just before
 *                      the socket can be found, of a UDP close just before it is
 *                      gone, and under load "just" can be long. Nothing wakes us
 *                      while nothing happens, but for a look every 30 s.
 *   polling            where BPF is missing, or for the half it does not cover:
 *                      every 100 ms while things change, slowing down to 1 s.
 *                      Closes kick there too (ports_destroy.h).
 *
 * A dump's cost grows with the sockets, so dumps take at most a ninth of one CPU
 * (of its time, not of the clock's: who is kept waiting by others pays for nothing),
 * however busy the guest, but for 5 ms of them in a row, which is some ten to
 * twenty with few sockets (0.2 ms at ten listeners, 48 ms at 20,000 under TCG;
 * prototypes/ports.md).
 *
 * Which UDP sockets count: ports_udp.h. Ports without a socket, published by
 * address translation: ports_nat.h, which has its own events.
 */
#pragma once

#include "guestagent/dial.h"
#include "guestagent/ports_list.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

struct ports;

struct ports_options {
	bool no_bpf;		/* for tests and as a way out: poll */
	bool no_bpf_udp;	/* for tests: as where the kernel has only TCP's half */
	bool no_diag;		/* read /proc/net */
	bool no_nat;		/* sockets only */
	const char *udp_keep;	/* file for the next agent (ports_udp_keep.h); NULL: none */
};

/* The list changed; sets are borrowed for the call, ports_current() is new. */
typedef void (*ports_changed_fn)(void *arg, const struct port_set *added,
				 const struct port_set *removed);

/* Takes the first dump before it returns (without calling @changed). What address
 * translation publishes is in it only when another agent ran in this boot (@udp_keep):
 * a host then waits for this list, and closes what it lacks. Fails only when the
 * kernel tells nothing at all. */
int ports_new(struct loop *loop, const struct ports_options *opts, ports_changed_fn changed,
	      void *arg, struct ports **ret, struct error *err);

const struct port_set *ports_current(const struct ports *p);
/* For the log: "events (tcp, udp)", "events (tcp), polling", "polling". */
const char *ports_mode(const struct ports *p);
/* Why BPF could not be had, "" when it could. */
const char *ports_bpf_problem(const struct ports *p);

/* Look at everything now, as every 30 s. */
void ports_rescan(struct ports *p);

/* What else to connect to, or to send to, for what @d says; any thread. */
void ports_dial(struct ports *p, int proto, struct dial *d);

/* No @changed follows; @closed runs when all is freed. */
void ports_close(struct ports *p, void (*closed)(void *arg), void *arg);
