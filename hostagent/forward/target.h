/* target.h - one guest address to connect to, and what went there
 *
 * Held by the guest listener it stands for and by each connection or flow made
 * to it, which may outlive the listener. Loop thread only.
 */
#pragma once

#include <stdint.h>

#include "hostagent/forward/latency.h"
#include "lib/config/config.h"

struct target {
	unsigned refs;
	enum config_lane lane_wanted;                /* by its rule, or the instance */
	uint64_t connections_total, connections_now; /* UDP: flows */
	uint64_t bytes_in, bytes_out;                /* into, out of the guest */
	/* Ended badly: turned away by the guest's server, cut off by either side
	 * once it was there, no answer or no lane in time. */
	uint64_t refused, resets, timeouts;
	const char *lane;       /* of the newest connection; "" none yet */
	struct latency connect; /* from asking the lane to the guest's connection */
	/* Dialed literally in the guest: an address, with room for any other, or a path. */
	char guest_addr[];
};

struct target *target_new(const char *guest_addr); /* one reference, the caller's */
struct target *target_ref(struct target *t);
void target_unref(struct target *t);
