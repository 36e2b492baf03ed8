/* agent.h - the host agent: everything of one instance, in one process
 *
 * limactl spawns it as `limactl hostagent NAME` and then talks to it only
 * through ha.sock, the event log and the instance directory. It starts the
 * machine as a list of steps with undo, keeps forwards and the agent link true
 * while it runs, and walks the list back when told to stop (SIGINT, SIGTERM),
 * when the VM ends, or when a step fails.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"

struct agent_options {
	const char *name;
	const char *lima_home;
	const char *pid_file;	/* INSTDIR/ha.pid */
	const char *socket;	/* INSTDIR/ha.sock */
	const char *guest_agent;	/* file for the seed; NULL in plain mode */
};

/* Runs to the end of the VM's life. 0 after an ordered stop; the caller exits
 * with 1 otherwise and prints @err. Events go to stdout, logs to stderr. */
int agent_run(const struct agent_options *opts, struct error *err);
