/* lane_socket.h - relaying to a socket of the host, for lanes that end in one
 *
 * Connects to an address, which takes the client to the guest's server by some way
 * of its own, then moves bytes between the two: what one side sends is read into a
 * buffer that all share and written to the other at once. Only what that one does
 * not take is kept, at most one buffer (128 KiB), and nothing more is read until it
 * is gone; so an idle relay holds none. FIN goes for FIN, a reset for a reset.
 *
 * A connection that cannot be made is the lane's failure (lane_is_gone()): nothing
 * was taken from the client by then.
 */
#pragma once

#include <sys/queue.h>
#include <sys/socket.h>

#include "hostagent/forward/lane.h"
#include "lib/base/loop.h"

TAILQ_HEAD(lane_socket_list, lane_conn);

struct lane_sockets { /* embedded in a lane */
	struct loop *loop;
	struct lane_socket_list conns;
	unsigned refs; /* connections whose handles are not gone yet, and until close 1 */
	void (*closed)(void *arg);
	void *closed_arg;
};

struct lane_socket_options {
	const struct sockaddr *address;
	socklen_t address_len;
	unsigned connect_ms;
	int failed_code; /* what one ends with that cannot be made; 0: -ENOTCONN, the lane's failure */
	/* The other end accepts before it knows whether the guest does, and reads nothing
	 * before: when it hangs up without a byte either way, the guest refused. */
	bool silence_is_refusal;
};

void lane_sockets_init(struct lane_sockets *set, struct loop *loop);
/* As lane_ops.relay. */
int lane_socket_relay(struct lane_sockets *set, const struct lane_socket_options *opts,
		      const struct lane_relay *relay, struct lane_conn **ret, struct error *err);
/* As lane_ops.reset. */
void lane_socket_reset(struct lane_conn *c);
/* Ends what is there with -ECANCELED; @closed runs when all handles are gone, at the
 * earliest in the next turn of the loop. */
void lane_sockets_close(struct lane_sockets *set, void (*closed)(void *arg), void *arg);
