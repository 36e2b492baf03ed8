/* socket_forward.h - sockets in the guest that lead to one of the host, by ssh
 *
 *	reverse		ssh -R GUEST:OURS, a listener that leads to the host's (forward/reverse.h)
 *
 * asked for from the master (`-O forward`). What has to be there is a list; a supervisor
 * keeps it true: as soon as there is a master all are set up, when it is lost (the guest
 * rebooted) all are set up anew with the next one, one that fails is tried again with
 * back-off, and says once why.
 *
 * In front of a request whatever has the path in the guest is removed. What a host
 * agent before us asked the same master for is cancelled first.
 *
 * The other direction is a listener of ours and ssh's lane (forward/wish.h, lane_ssh.h).
 *
 * One ssh request runs at a time. Loop thread.
 */
#pragma once

#include <stdbool.h>

#include "hostagent/forward/forward.h"
#include "hostagent/ssh.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

struct socket_forwards;

struct socket_forwards_options {
	struct loop *loop;
	const struct ssh_target *target;	/* borrowed for their life */
	/* Our listeners are PREFIX-rN.sock; a directory that is ours alone. */
	const char *socket_prefix;
	/* forwarding, failed, stopping, as of ports; protocol "unix". Never
	 * inside a call of this interface, nor after close. */
	void (*event)(void *arg, const struct forward_event *ev);
	void *arg;
	unsigned retry_min_ms, retry_max_ms;	/* 0: 200 ms, 5 s */
	unsigned request_max_ms;		/* 0: 15 s */
};

struct socket_forwards *socket_forwards_new(const struct socket_forwards_options *opts);
/* For forward_set_sockets(). */
void socket_forwards_ops(struct socket_forwards *s, struct forward_sockets *ret);
bool socket_forwards_any(const struct socket_forwards *s);
/* All are up, or failed at least once. */
bool socket_forwards_settled(const struct socket_forwards *s);

/* The master came up or was lost. */
void socket_forwards_set_master(struct socket_forwards *s, bool up);

/* The forwards themselves end with the master. @closed (may be NULL) runs when it is
 * freed. */
void socket_forwards_close(struct socket_forwards *s, void (*closed)(void *arg), void *arg);
