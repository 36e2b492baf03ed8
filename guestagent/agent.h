/* agent.h - the guest agent: what listens, tunnels, the clock, boot progress
 *
 * One loop, one thread of ours beside gRPC's. Starts as early in boot as it is
 * run: channels that do not exist yet are waited for, and nothing needs a
 * network. Keeps no state on disk: a host that connects gets a snapshot. What cannot
 * be seen again after a restart is kept in @runtime_dir (ports_udp_keep.h).
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "lib/base/error.h"

struct agent_options {
	const char *virtio_port;	/* name or device, NULL: none */
	const char *secret_file;	/* for virtio_port */
	unsigned vsock_port;		/* 0: none */
	unsigned relay_vsock_port;	/* data connections of the host's; 0: none */
	const char *socket;		/* path, NULL: none */
	uid_t socket_owner;
	const char *progress_dir;
	const char *runtime_dir;	/* gone with the boot; NULL: keep nothing there */
	bool poll_ports;		/* no BPF */
};

/* Runs until SIGTERM or SIGINT. */
int agent_run(const struct agent_options *opts, struct error *err);
