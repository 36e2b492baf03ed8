/* clock.h - the guest's wall clock follows the host's
 *
 * The host sends its time and how long the round trip before took, so the time
 * on arrival is host_time + round_trip / 2, uncertain by as much. What follows:
 *
 *   |drift| within 100 ms, or within the uncertainty   nothing: kvm-clock, chrony
 *                                                      or systemd-timesyncd does it
 *   up to 500 ms     slewed by adjtime(), monotonic for programs that look; left
 *                    alone where an NTP service disciplines the clock
 *   beyond           stepped: the host slept, or the guest was paused
 *
 * A host that tells no round trip (Lima's) may have been delayed on the way,
 * which looks like a guest that is fast: then going back needs at least 2 s.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/guestservice.pb-c.h"

enum guest_clock_action { GUEST_CLOCK_LEAVE, GUEST_CLOCK_SLEW, GUEST_CLOCK_STEP };

struct guest_clock_plan {
	enum guest_clock_action action;
	int64_t drift_ns;	/* ours minus the host's */
};

/* Pure. @ntp_synced: the kernel says an NTP service keeps it. */
struct guest_clock_plan guest_clock_plan(int64_t host_ns, int64_t round_trip_ns, int64_t now_ns,
					 bool ntp_synced);

/* Checks @req, acts, fills @res (error text included; valid until the next call). */
void guest_clock_sync(const TimeSyncRequest *req, TimeSyncResponse *res);
