/* lane.h - the guest's end of the vsock lane: a listener for the host, and the relay
 *
 * The listener needs AF_VSOCK in the kernel, not the device: it is there before the
 * device is plugged, and survives its unplugging. Where the kernel has no AF_VSOCK
 * there is no lane, which is normal; its module may still be loaded later, so the
 * name of its device is waited for (watch.h). Nothing is polled.
 *
 * The ports are some that only root may bind (vsock's first 1023, af_vsock.c), so that
 * no other process of the guest can stand in for an agent that is restarting. Why they
 * are many: proto/relay.h.
 */
#pragma once

#include "guestagent/dial.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"
#include "proto/relay.h"

struct lane;

struct lane_options {
	unsigned port;			/* the first of RELAY_VSOCK_PORTS */
	void (*opened)(void *arg);	/* the listeners came up later; lane_ports() has them now */
	void (*dial_more)(void *arg, struct dial *d);	/* as relay_options has it */
	void *arg;
};

int lane_new(struct loop *loop, const struct lane_options *opts, struct lane **ret,
	     struct error *err);
/* Where the host may connect to: fewer where another has taken one of them. */
struct relay_ports lane_ports(const struct lane *l);
void lane_close(struct lane *l, void (*closed)(void *arg), void *arg);
