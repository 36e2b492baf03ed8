/* launch.h - from an instance directory to a running machine, and back
 *
 * What `start`, `restart`, `stop` and `delete -f` share. The caller holds the
 * instance's lock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cmd/limactl/ui.h"
#include "lib/base/error.h"
#include "lib/store/instance.h"

struct launch_options {
	uint64_t timeout_ms;
	bool foreground;	/* become the host agent instead of watching one */
};

enum { LAUNCH_TIMEOUT_MS = 10 * 60 * 1000, STOP_TIMEOUT_MS = 190 * 1000 };

/* Image, kernel and disk in place: what can be done without a host agent. */
int launch_prepare(const struct instance *inst, struct ui *ui, struct error *err);
/* Starts the host agent and waits for READY. An instance that came up with
 * complaints (degraded) stays up and is an error too. When interrupted, the host
 * agent is told to undo and waited for. */
int launch_start(const struct instance *inst, const struct launch_options *opts, struct ui *ui,
		 struct error *err);
/* An instance that was changed or stopped since it was looked at: prepares and
 * starts it as it is now. */
int launch_again(const struct instance *before, const struct launch_options *opts, struct ui *ui,
		 struct error *err);
/* Asks the host agent to stop the machine and waits until both are gone, longer
 * than STOP_TIMEOUT_MS where it says how much longer (follow.h). When the host
 * agent is dead but the machine runs, a new one is started first: it adopts the
 * machine. */
int launch_stop(const struct instance *inst, struct ui *ui, struct error *err);
/* Kills both, removes what they leave: *.pid, *.sock, *.tmp.*. */
int launch_kill(const struct instance *inst, struct error *err);
