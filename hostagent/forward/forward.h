/* forward.h - guest ports on the host's localhost
 *
 * The one door to this folder for the rest of the host agent. It is told what
 * listens in the guest (snapshots and deltas) and keeps host listeners as the
 * rules say; it needs a lane (lane.h) to carry connections and copes with there
 * being none for a while (agent link lost): listeners stay for as long as the
 * guest's ports are believed to exist, new clients wait a bounded time.
 *
 *   rule      (pure) which guest address goes where
 *   wish      what wants to be on the host: listeners, ports of static rules
 *   endpoint  one host address: reference count, close before open, bind retry
 *   reserved  host ports that are other instances' ssh; remember  those we chose
 *   tcp, udp  one connection, one table of flows
 *   lane      how bytes reach the guest, one of several ways
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <netinet/in.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"
#include "lib/config/config.h"

struct forward;
struct lane;

/* Bounds and waits; a 0 stands for the default. */
struct forward_limits {
	unsigned max_ports;		/* guest listeners remembered; 16384 */
	unsigned max_listeners;		/* host addresses open at once; 4096 */
	unsigned max_connections;	/* 16384; one more is reset */
	unsigned max_flows;		/* UDP clients of one host socket; 4096, the longest idle goes */
	unsigned max_flows_in_all;	/* 6144: of the 16,384 tunnels (proto/rpc.h) 10,240 are left to TCP */
	unsigned udp_wait_bytes;	/* datagrams that wait for a lane; 64 MiB, the oldest go */
	unsigned lane_wait_ms;		/* a client waits for a lane; 10 s */
	/* … for the guest's connect(); 30 s, up to four times that while others on its
	 * lane have an answer */
	unsigned open_wait_ms;
	unsigned udp_idle_ms;		/* 90 s, as Lima means it */
	unsigned retry_min_ms, retry_max_ms;	/* a taken host port is tried again; 100 ms … 5 s */
};

enum forward_event_type { FORWARD_FORWARDING, FORWARD_NOT_FORWARDING, FORWARD_STOPPING, FORWARD_FAILED };

struct forward_event {		/* becomes status.portForward, reference/hostagent.md §6 */
	enum forward_event_type type;
	const char *protocol;	/* "tcp", "udp" */
	const char *guest_addr;	/* "127.0.0.1:80", "[::1]:80" */
	const char *host_addr;	/* "" when not forwarded */
	const char *error;	/* "" or why: "address already in use (nginx, pid 812)" */
};

struct forward_reserved {	/* a host port that is not to be taken */
	uint16_t port;
	char name[80];		/* of the instance whose ssh port it is */
};

struct forward_reserved_source {
	/* Fills at most @max; runs in libuv's pool. NULL: there are none. */
	size_t (*list)(void *arg, struct forward_reserved *ret, size_t max);
	void *arg;
};

struct forward_options {
	const struct config *config;	/* rules; borrowed for the forward's life */
	uint16_t ssh_local_port;	/* never forwarded */
	struct forward_reserved_source reserved;	/* ssh ports of other instances */
	/* This instance's own 127.0.0.x, which stands for 127.0.0.1 in rules
	 * (conflict: loopback-per-instance); all zero: none does. */
	struct in6_addr loopback;
	const char *remember_file;	/* chosen host ports, see remember.h; NULL: none */
	unsigned unprivileged_start;	/* 0: net.ipv4.ip_unprivileged_port_start */
	/* Once per change, but for a guest that makes tens of thousands of them:
	 * then 20 a second. Never inside forward_new() or forward_close(). */
	void (*event)(void *arg, const struct forward_event *ev);
	void *arg;
	struct forward_limits limits;
};

/* The process ignores SIGPIPE (libuv writes to sockets with write()). */
int forward_new(struct loop *loop, const struct forward_options *opts, struct forward **ret,
		struct error *err);
/* Opens what static rules want, guest sockets as soon as there is ssh to carry them (or
 * was: they stay open); nothing of them is there before. */
void forward_start(struct forward *f);

struct guest_port {		/* a listener in the guest */
	int proto;		/* IPPROTO_TCP, IPPROTO_UDP */
	struct in6_addr ip;	/* IPv4 as ::ffff:a.b.c.d */
	uint16_t port;		/* host byte order, never 0 */
};

/* The full list: what is not in it goes away, what was known stays untouched. */
void forward_set_ports(struct forward *f, const struct guest_port *ports, size_t n);
/* Changes; removals are done first. */
void forward_change_ports(struct forward *f, const struct guest_port *added, size_t n_added,
			  const struct guest_port *removed, size_t n_removed);

/* The lane of that kind from now on; NULL: none. Borrowed: the owner keeps it until
 * it set another. New connections take the best there is (lanes_choose()); those
 * that there are stay on theirs. */
void forward_set_lane(struct forward *f, enum config_lane which, struct lane *lane);
/* There is none of that kind and none will come, because @why (static); NULL: it may.
 * TCP clients that would wait for it are reset at once, and rows say why. */
void forward_set_lane_missing(struct forward *f, enum config_lane which, const char *why);

/* The machine is paused (QMP stop, a snapshot, a full disk), or goes on. Nobody's time to
 * wait for the guest runs meanwhile; what is new waits, too. */
void forward_set_paused(struct forward *f, bool paused);

/* One row per guest listener, per port of a static rule and per rule of a guest
 * socket, for GET /v1/ports. */
struct forward_row {
	const char *protocol;	/* "tcp", "udp", "unix": both ends sockets */
	const char *guest_addr, *host_addr;	/* "127.0.0.1:80", "[::1]:80", a path */
	const char *state;	/* "forwarding", "waiting", "not-forwarded" */
	const char *error;
	unsigned rule_id;	/* 0: none decided, or a built-in one */
	const char *origin;	/* whose rule: "file", "live", "builtin", "" none matched */
	const char *rule;	/* for people: "portForwards[2]", "live rule 7", "" */
	bool is_static;		/* is there whether or not something listens in the guest */
	bool reverse;		/* host_addr is what the guest reaches */
	uint64_t since_ms;	/* uv_now() when it came to this state */
	uint64_t connections_total, connections_now;	/* UDP: clients */
	uint64_t bytes_in, bytes_out;			/* into, out of the guest */
	uint64_t refused, resets, timeouts;	/* clients turned away by the guest's server,
					 * cut off by either side, given up on */
	/* Of the newest connection: "vsock", "grpc", "ssh", "direct"; "" none yet. Of a
	 * guest socket: "ssh". */
	const char *lane;
	/* How long the guest took to connect to its server, seen from here, in
	 * microseconds: the newest, and over the last 64. 0: none yet. */
	uint32_t connect_last_us, connect_p50_us, connect_p99_us;
};
/* Static rules first, then reverse ones, then guest listeners in the order they appeared. A host
 * address that several of them share counts at the one that is dialed. */
void forward_list(struct forward *f, void (*each)(void *arg, const struct forward_row *row),
		  void *arg);

/* --- rules while the instance runs ------------------------------------------- */

/* Puts @rule (copied; config_rule_parse() makes and checks one) before all others;
 * what is forwarded by then moves to where it says. It lives until it is removed
 * or the instance stops. *ret_id names it, is never 0 and never given twice.
 * Fails without having changed anything: -EEXIST (there is one just like it),
 * -EPERM (ssh's port), -ENOSPC (too many), -EINVAL (a path ssh cannot be told),
 * -ENOTSUP (no ssh to carry a reverse socket).
 * That a host port is taken is no failure: the row says who has it. */
int forward_add_rule(struct forward *f, const struct config_port_forward *rule, unsigned *ret_id,
		     struct error *err);
/* The next rule's id is @id, or more if that was given already. */
void forward_set_next_rule_id(struct forward *f, unsigned id);
/* -ENOENT: none has that id. -EPERM: it is the file's, not a live one. */
int forward_remove_rule(struct forward *f, unsigned id, struct error *err);

/* Who carries rules with `reverse`, which is ssh's business (hostagent/socket_forward.h).
 * NULL: nobody, any more. The file's are added by this call. */
struct forward_sockets {
	int (*add)(void *arg, unsigned id, const struct config_port_forward *rule,
		   struct error *err);
	void (*remove)(void *arg, unsigned id);
	/* Rows with protocol, addresses, state, error, rule_id, reverse, since_ms, and what
	 * is counted. */
	void (*list)(void *arg, void (*each)(void *arg, const struct forward_row *row),
		     void *each_arg);
	void *arg;
};
void forward_set_sockets(struct forward *f, const struct forward_sockets *sockets);

struct forward_rule_info {
	unsigned id;
	const char *origin, *name;	/* as in a row */
	const struct config_port_forward *rule;
};
/* In the order they are asked, without the built-in ones. */
void forward_each_rule(struct forward *f,
		       void (*each)(void *arg, const struct forward_rule_info *info), void *arg);

/* Closes listeners, resets connections; @closed runs when all handles are gone.
 * The lane is not used any more once this returned. */
void forward_close(struct forward *f, void (*closed)(void *arg), void *arg);
