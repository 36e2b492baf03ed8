/* hub.h - what all listeners, connections and flows of one forward share
 *
 * The loop, the limits, the lanes of the moment, and a count of everything that
 * still has a handle with libuv or work in its pool. The owner (forward.c) asks
 * everybody to close and is told when the count reaches zero; nothing here is
 * freed before.
 */
#pragma once

#include <stdbool.h>

#include "hostagent/forward/forward.h"
#include "hostagent/forward/lane.h"
#include "lib/base/loop.h"

struct owner_finder;
struct tcp_set;
struct udp_set;

struct hub {
	struct loop *loop;
	struct forward_limits limits; /* no zeros */
	struct lanes lanes;
	struct tcp_set *tcp;          /* connections */
	struct udp_set *udp;          /* host sockets with their flows */
	struct owner_finder *owner;   /* who has a busy port */
	bool paused;                  /* the machine */
	uint64_t paused_since_ms;
	uint64_t paused_ms;           /* in pauses that are over */
	unsigned refs;                /* handles and requests */
	void (*idle)(void *arg);      /* refs reached 0; once */
	void *idle_arg;
};

void hub_ref(struct hub *hub);
void hub_unref(struct hub *hub);
void hub_set_paused(struct hub *hub, bool paused);
/* uv_now() less all pauses: what the guest has had to answer. */
uint64_t hub_guest_ms(const struct hub *hub);
