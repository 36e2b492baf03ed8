/* tcp.h - byte streams between a host client and a guest server
 *
 * A listener accepts; each client becomes a connection of the set, which does
 * not depend on the listener any more: a forward that goes away leaves its
 * connections alone. Clients of a unix socket are the same thing, without RST.
 *
 * A connection first waits for a lane (hub.lane, for limits.lane_wait_ms), then
 * for the guest's connect(). Only then is the first byte taken from the client;
 * when the guest refuses, the client is reset, so that it never sees a clean
 * empty answer. After that the two directions end independently (FIN for FIN),
 * and a reset on one side is a reset on the other.
 *
 * An idle connection holds no buffer. One that moves data is read in pieces of
 * 4 to 128 KiB, growing with what comes, which are handed to the lane as they
 * are; a lane that does not keep up stops the reading, a client that does not
 * keep up pauses the lane.
 */
#pragma once

#include <stddef.h>

#include "hostagent/forward/hub.h"
#include "hostagent/forward/target.h"

struct tcp_listener;

/* Whom to connect a new client to; borrowed for the call, never NULL. */
typedef struct target *(*target_pick_fn)(void *arg);

struct tcp_set *tcp_set_new(struct hub *hub);
void tcp_set_lane_changed(struct tcp_set *set); /* clients that wait try hub->lane */
void tcp_set_close(struct tcp_set *set);        /* resets all */
void tcp_set_free(struct tcp_set *set);         /* after close, when the hub is idle */
size_t tcp_set_count(const struct tcp_set *set);

/* Takes @fd, also on failure: bound, listening, TCP or unix. */
int tcp_listener_new(struct hub *hub, int fd, target_pick_fn pick, void *arg,
		     struct tcp_listener **ret, struct error *err);
/* The descriptor is closed on return: the address can be bound again. */
void tcp_listener_close(struct tcp_listener *l);
