/* guest_client.h - the host agent's end of GuestService
 *
 * One client is one connection: it is given a connected descriptor and lives
 * until that breaks or it is closed; whoever owns it then makes a new one (a
 * gRPC channel on a descriptor never reconnects). On the virtio-serial channel
 * the link handshake runs first (link.h); on sockets it must not.
 *
 * Peers: our guest agent, and Lima's. Features of ours that a peer lacks
 * (Info.features) are emulated or left out, see guest_client_features().
 *
 * All on the loop thread. A callback never runs before the call that asked for
 * it returned, and never after guest_client_close() except where said.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"
#include "proto/guestservice.pb-c.h"
#include "proto/rpc.h"

struct guest_client;
struct guest_tunnel;

enum { GUEST_LINK_SECRET_SIZE = 16 };

struct guest_client_callbacks {
	/* The link is up and GetInfo answered. @info: borrowed, for the call.
	 * info->relay_vsock_port, when not 0, is the first of relay_vsock_ports where
	 * the agent's relay listens (relay.h): take it here ... */
	void (*ready)(void *arg, const Info *info);
	/* Port and boot events, one by one, validated: protocol is "tcp" or
	 * "udp", ip parses, port 1..65535; entries that fail this were dropped
	 * and logged (limited). With a Lima agent the first event is given
	 * snapshot = true if it is a full list. An event left out by the agent is
	 * made up for by another snapshot. event->relay_vsock_port, when not
	 * 0: ... and here, where it is told when the relay came up later. */
	void (*event)(void *arg, const Event *event);
	/* The connection is no more; last callback. Not called after close(). */
	void (*lost)(void *arg, const struct error *why);
	void *arg;
};

struct guest_client_options {
	/* Set on the virtio-serial channel only: do the link handshake. */
	const uint8_t *link_secret;	/* GUEST_LINK_SECRET_SIZE bytes, or NULL */
	/* How long until `lost` with -ETIMEDOUT when nothing answers; 0: wait
	 * for ever (the guest is still booting). */
	unsigned connect_timeout_ms;
	/* Once ready: how long a question may go unanswered until the connection is
	 * lost. 0: 90 s. An agent that ends is told of sooner, by the end of the
	 * socket or by guest_client_close() when its port closed. */
	unsigned patience_ms;
};

/* Takes @fd, also on failure. */
int guest_client_new(struct loop *loop, struct rpc *rpc, int fd,
		     const struct guest_client_options *opts,
		     const struct guest_client_callbacks *cb, struct guest_client **ret,
		     struct error *err);

/* The agent just opened its serial port (DRIVER_AGENT_PORT_OPEN): try the
 * handshake now instead of at the next round. No-op once the link is up. */
void guest_client_kick(struct guest_client *c);

/* The machine stands still, or goes on: however long, that is no silence. Also
 * before ready. */
void guest_client_set_paused(struct guest_client *c, bool paused);

enum {
	GUEST_FEATURE_SNAPSHOT		= 1 << 0,
	GUEST_FEATURE_TUNNEL_KINDS	= 1 << 1,
	GUEST_FEATURE_BOOT_PROGRESS	= 1 << 2,
	GUEST_FEATURE_TIME_RTT		= 1 << 3,
	GUEST_FEATURE_VSOCK_RELAY	= 1 << 4,
};
unsigned guest_client_features(const struct guest_client *c);	/* valid from ready on */

/* Sends the host's time; @done gets the drift before the step, in ms. Measures
 * the round trip itself. Asked for now and then it also finds out that the agent
 * does not answer any more, which otherwise only a tunnel that waits does. */
void guest_client_sync_time(struct guest_client *c,
			    void (*done)(void *arg, int64_t drift_ms, bool adjusted,
					 const struct error *err),
			    void *arg);

/* Cancels everything: open tunnels get `closed` with -ECANCELED before this
 * returns to the loop. @closed (may be NULL) runs when nothing is left. */
void guest_client_close(struct guest_client *c, void (*closed)(void *arg), void *arg);

/* --- tunnels: one stream each ------------------------------------------- */

struct guest_tunnel_callbacks {
	/* The guest's connect() succeeded. Before it nothing is taken from the
	 * client. (A peer without kinds: called when the stream started.) */
	void (*opened)(void *arg);
	/* TCP: the next bytes; UDP: one datagram, @len may be 0. Borrowed for the
	 * call. After guest_tunnel_pause() none follows until resume. */
	void (*data)(void *arg, const uint8_t *data, size_t len);
	/* The guest's socket sent FIN. The other direction goes on. */
	void (*eof)(void *arg);
	/* Room again after guest_tunnel_write() returned false. */
	void (*writable)(void *arg);
	/* The end; the tunnel is freed after this. @why->code: 0 both directions
	 * ended in order, -ECONNREFUSED/-EHOSTUNREACH/… connect failed in the
	 * guest, -ECONNRESET reset there, else the link broke. */
	void (*closed)(void *arg, const struct error *why);
	void *arg;
};

/* @proto: IPPROTO_TCP or IPPROTO_UDP. @guest_addr: "ip:port", "[ip]:port". */
int guest_tunnel_open(struct guest_client *c, int proto, const char *guest_addr,
		      const struct guest_tunnel_callbacks *cb, struct guest_tunnel **ret,
		      struct error *err);

/* Takes ownership of @data (malloc'd), which goes to the wire without a copy.
 * Returns false when more than ~256 KiB wait: stop reading the source until
 * `writable`. */
bool guest_tunnel_write(struct guest_tunnel *t, uint8_t *data, size_t len);
/* No more data from us (the client half-closed); after what is queued. */
void guest_tunnel_eof(struct guest_tunnel *t);
/* Stops / goes on delivering `data` and `eof`; the peer is held back by HTTP/2
 * flow control, other tunnels are not. */
void guest_tunnel_pause(struct guest_tunnel *t);
void guest_tunnel_resume(struct guest_tunnel *t);
/* The client's socket was reset: reset the guest's, no further callback, frees. */
void guest_tunnel_reset(struct guest_tunnel *t);
/* Ends without an error (UDP flow idle): no further callback, frees. */
void guest_tunnel_close(struct guest_tunnel *t);
