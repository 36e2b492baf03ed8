/* lane_vsock.h - the fast lane: a connection of the guest's vsock per client
 *
 * Connections are opened ahead, so that a client costs no round trip before its
 * first byte: it is given one from the pool, with the greeting of proto/relay.h in
 * front of what it says, and the device (lib/virtio/vsock.h) moves the bytes from
 * there on. When a client has been served and the guest is done with its last bytes,
 * the connection goes back into the pool. Where that does not keep it full it is
 * filled up in batches, so the guest's agent wakes once for several; clients that
 * come faster make it grow, quiet makes it shrink.
 *
 * The lane is usable while the device is up and the guest's agent accepts. An
 * agent that does not for a moment (it restarts) only makes clients wait; when it
 * goes on, the lane says so by `changed`, and they are given to another lane.
 */
#pragma once

#include "hostagent/forward/lane.h"
#include "lib/base/loop.h"
#include "proto/relay.h"

struct vsock;

struct lane_vsock_options {
	struct loop *loop;
	struct vsock *vsock; /* borrowed for the lane's life */
	/* To tell the forwards: forward_set_lane(f, CONFIG_LANE_VSOCK, usable ? lane :
	 * NULL). Never inside relay(), lane_vsock_new() or lane_vsock_close(). */
	void (*changed)(void *arg, struct lane *lane, bool usable);
	void *arg;
	unsigned pool_min, pool_max; /* 0: 8, 32 */
	/* So long the guest may take to pass on the last bytes of a client that is gone;
	 * later only while there are not many of them. 0: 60 s */
	unsigned rest_ms;
};

struct lane_vsock_counts { /* connections by what they do */
	unsigned opening, pool, busy, resting;
};

struct lane *lane_vsock_new(const struct lane_vsock_options *opts);

/* To be called by vsock's `up` and `down`. */
void lane_vsock_set_device(struct lane *lane, bool up);
/* The guest's agent is there and listens on @ports (Info); first 0: it does not, being an
 * older one. Each time it says so: what failed before is tried again at once. */
void lane_vsock_set_agent(struct lane *lane, struct relay_ports ports);

struct lane_vsock_counts lane_vsock_count(const struct lane *lane);

/* After the forwards were told to use it no more. Connections still on it end with
 * -ECANCELED before this returns. @closed (may be NULL) runs when it is freed. */
void lane_vsock_close(struct lane *lane, void (*closed)(void *arg), void *arg);
