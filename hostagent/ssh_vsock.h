/* ssh_vsock.h - the host's ssh port, led into the guest over its vsock
 *
 * With `ssh.overVsock` it is the host agent that listens on 127.0.0.1:PORT, and
 * each connection goes to the guest's sshd without the guest's network:
 *
 *	1. vsock port 22, where systemd ≥ 256 lets sshd listen (its
 *	   systemd-ssh-generator); the guest's kernel refuses at once where
 *	   nobody does, so asking costs one trip into the guest
 *	2. the relay of the guest's agent (proto/relay.h) to 127.0.0.1:22
 *
 * Nobody else in the guest can take port 22 of the vsock: it needs
 * CAP_NET_BIND_SERVICE as TCP's does, and ssh checks the pinned host key anyhow.
 *
 * While the device is down, or sshd is only to be had from an agent that did not
 * come yet, a client waits for a bounded time; then, as when sshd refuses, it is
 * reset. Whoever asks for sshd during a boot comes again.
 */
#pragma once

#include <stdbool.h>

#include "hostagent/forward/lane.h"
#include "lib/base/loop.h"

struct vsock;
struct ssh_vsock;

enum { SSH_VSOCK_PORT = 22 };	/* systemd-ssh-generator(8) */

struct ssh_vsock_options {
	struct loop *loop;
	struct vsock *vsock;	/* borrowed, as is the lane */
	struct lane *lane;	/* lane_vsock.h */
	unsigned wait_ms;	/* for a client; 0: 10 s */
	/* An sshd was reached for the first time since the device came up. */
	void (*reached)(void *arg);
	void *arg;
};

struct ssh_vsock *ssh_vsock_new(const struct ssh_vsock_options *opts);
/* Takes @fd, a bound TCP socket, on failure too. Not while it listens already. */
int ssh_vsock_listen(struct ssh_vsock *s, int fd, struct error *err);
/* The port is free when this returned. Clients that wait are reset, connections
 * stay. Twice is fine. */
void ssh_vsock_unlisten(struct ssh_vsock *s);

/* The device came up or went down. */
void ssh_vsock_set_device(struct ssh_vsock *s, bool up);
/* The guest's agent came: those who wait for it try again. */
void ssh_vsock_try_again(struct ssh_vsock *s);

bool ssh_vsock_was_reached(const struct ssh_vsock *s);	/* since the device came up */
unsigned ssh_vsock_connections(const struct ssh_vsock *s);

/* Resets all connections; before the lane and the device are closed. Frees when
 * the handles are gone, then @closed. */
void ssh_vsock_close(struct ssh_vsock *s, void (*closed)(void *arg), void *arg);
