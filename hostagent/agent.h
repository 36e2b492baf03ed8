/* agent.h - the host agent: everything of one instance, in one process
 *
 * limactl spawns it as `limactl hostagent NAME` and then talks to it only
 * through ha.sock, the event log and the instance directory. It starts the
 * machine as a list of steps with undo (steps.h), keeps forwards and the agent
 * link true while it runs, and walks the list back when told to stop (SIGINT,
 * SIGTERM; a second one cuts the guest off), when the VM ends, or when a step
 * fails.
 *
 * It may die at any moment: the next one finds the running VM and adopts it. Two
 * at once cannot be: each holds a lock on the instance directory itself.
 *
 *   agent          life: lock, signals, what is answered on ha.sock
 *   agent_machine  steps seed, qemu, link: what we bring up
 *   agent_ports    forwards: GET, POST, DELETE, the stream
 *   agent_guest    steps guest up … forwards: what we wait for
 */
#pragma once

#include <stdbool.h>

#include "drivers/driver.h"
#include "lib/base/error.h"

struct agent_waits {		/* 0: the default */
	unsigned guest_up_ms;	/* power on to user space; 10 min */
	unsigned ssh_ms;	/* to a login; 10 min */
	unsigned boot_quiet_ms;	/* boot scripts without any progress; 10 min */
	unsigned probe_ms;	/* each user probe; 10 min */
	unsigned ports_ms;	/* for the agent's list of ports; 60 s */
	unsigned no_agent_ms;	/* sshd answers, the agent does not: go on; 5 s */
	unsigned ssh_boot_ms;	/* ssh.overVsock: power on to a way to sshd; 2 min */
	unsigned ssh_agent_ms;	/* … from the agent's first word; 15 s */
	unsigned ssh_again_ms;	/* … when the port could not be had; 2 s */
	unsigned replug_ms;	/* a vsock device that stays down; 10 s, then longer */
};

struct agent_options {
	const char *name;
	const char *lima_home;
	const char *pid_file;	/* INSTDIR/ha.pid */
	const char *socket;	/* INSTDIR/ha.sock */
	const char *guest_agent;	/* file for the seed; NULL in plain mode */
	const struct driver_ops *driver_ops;	/* NULL: by vmType; tests have their own */
	struct agent_waits waits;
};

/* Runs to the end of the VM's life. 0 after an ordered stop (asked for, or the
 * guest powered itself off); the caller exits with 1 otherwise and prints @err.
 * Events go to stdout, logs to stderr. -EBUSY: another host agent has the
 * instance. */
int agent_run(const struct agent_options *opts, struct error *err);
