/* tcp.h - byte streams between a host client and a guest server
 *
 * A listener accepts; each client becomes a connection of the set, which does
 * not depend on the listener any more: a forward that goes away leaves its
 * connections alone. Clients of a unix socket are the same thing, without RST.
 *
 * A connection first waits for a lane (for limits.lane_wait_ms), then for the guest's
 * connect(). Until then its descriptor is looked at by nobody, so nothing is taken
 * from the client: when a lane fails, another is tried and the client does not
 * notice. Then the lane moves the bytes, by itself or through tcp_stream.h. Neither wait
 * runs while the machine is paused.
 *
 * A client that the guest refuses is reset, so it never sees a clean empty answer.
 * The two directions end independently (FIN for FIN), and a reset on one side is a
 * reset on the other.
 */
#pragma once

#include <stddef.h>

#include "hostagent/forward/hub.h"
#include "hostagent/forward/target.h"

struct tcp_listener;

/* Whom to connect a new client to; borrowed for the call, never NULL. */
typedef struct target *(*target_pick_fn)(void *arg);

struct tcp_set *tcp_set_new(struct hub *hub);
/* hub->lanes.of[@which] changed: clients that wait try it. */
void tcp_set_lane_changed(struct tcp_set *set, enum config_lane which);
void tcp_set_close(struct tcp_set *set);        /* resets all */
void tcp_set_free(struct tcp_set *set);         /* after close, when the hub is idle */
size_t tcp_set_count(const struct tcp_set *set);

/* Takes @fd, also on failure: bound, listening, TCP or unix. */
int tcp_listener_new(struct hub *hub, int fd, target_pick_fn pick, void *arg,
		     struct tcp_listener **ret, struct error *err);
/* The descriptor is closed on return: the address can be bound again. */
void tcp_listener_close(struct tcp_listener *l);
