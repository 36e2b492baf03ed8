/* lane_ssh.h - `ssh -L` as a lane: LIMA_SSH_PORT_FORWARDER=true, or `lane: ssh`
 *
 * The host's listeners stay ours, with all that endpoint.h says of them. What ssh is
 * asked for, through the master connection that is there anyway, is a private unix
 * socket per guest address (`-O forward -L SOCKET:IP:PORT`), made when the first
 * client comes and cancelled when none came for a while; each client then is one
 * connection to it. A lost master takes all of them with it; they are made anew
 * when it is back.
 *
 * ssh accepts before it knows whether the guest does. So a connection on which it
 * hangs up without a byte read or written counts as refused and resets the client;
 * a reset later on is not told apart from an end (SSH has no message for it, RFC
 * 4254 §5.3). TCP only, as in Lima (reference/port-forwarding.md §4, §6).
 */
#pragma once

#include "hostagent/forward/lane.h"
#include "lib/base/loop.h"
#include "lib/base/strv.h"

struct lane_ssh_options {
	struct loop *loop;
	/* Sockets are PREFIX-PID-N.sock; a directory that is ours alone. */
	const char *socket_prefix; /* copied */
	/* The program and its arguments that ask the master: `ssh … -O @command @more…`
	 * (@more NULL-terminated), appended to @argv. */
	int (*control)(void *arg, const char *command, const char *const *more, struct strv *argv,
		       struct error *err);
	/* It did not do what was asked: it may be gone. NULL: nobody wants to know. */
	void (*failed)(void *arg);
	void *arg;
	unsigned unused_ms; /* 0: 60 s */
};

struct lane *lane_ssh_new(const struct lane_ssh_options *opts);
/* The master came up, or was lost. The owner tells the forwards (forward_set_lane())
 * after this when it came, before when it went. */
void lane_ssh_set_master(struct lane *lane, bool up);
/* As lane_vsock_close(). The sockets are removed; ssh's listeners end with it. */
void lane_ssh_close(struct lane *lane, void (*closed)(void *arg), void *arg);
