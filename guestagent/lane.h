/* lane.h - the guest's end of the vsock lane: a listener for the host, and the relay
 *
 * The listener needs AF_VSOCK in the kernel, not the device: it is there before the
 * device is plugged, and survives its unplugging. Where the kernel has no AF_VSOCK
 * there is no lane, which is normal; its module may still be loaded later, so the
 * name of its device is waited for (watch.h). Nothing is polled.
 *
 * The port is one that only root may bind (vsock's first 1023, af_vsock.c), so that
 * no other process of the guest can stand in for an agent that is restarting.
 */
#pragma once

#include "guestagent/dial.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

struct lane;

struct lane_options {
	unsigned port;
	void (*opened)(void *arg);	/* the listener came up later; lane_port() is not 0 now */
	void (*dial_more)(void *arg, struct dial *d);	/* as relay_options has it */
	void *arg;
};

int lane_new(struct loop *loop, const struct lane_options *opts, struct lane **ret,
	     struct error *err);
/* Where the host may connect to; 0: nowhere. */
unsigned lane_port(const struct lane *l);
void lane_close(struct lane *l, void (*closed)(void *arg), void *arg);
