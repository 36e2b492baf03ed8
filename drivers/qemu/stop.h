/* stop.h - ending a running VM, from polite to certain
 *
 *   powerdown   the ACPI power button; pressed again every second, because a guest
 *               that still boots loses the press (nobody listens yet). One that
 *               stands still is let run first, if it may: run_state.h
 *   quit        QMP: QEMU ends, disks flushed, the guest is cut off
 *   SIGTERM     the same when QMP is stuck
 *   SIGKILL
 *
 * Each has its wait; one that cannot be done at all (no QMP) is passed over at
 * once. A guest that shows that it obeys gets the long wait: its agent's port
 * closes early in a shutdown, and systemd gives services 90 s. One whose agent
 * simply goes on is taken to ignore the button, and does not.
 *
 * The owner sees the process end and then calls stop_free(); this only pushes.
 */
#pragma once

#include <stdbool.h>

#include "drivers/qemu/process.h"
#include "drivers/qemu/qmp.h"
#include "lib/base/loop.h"

struct stop_waits {
	unsigned powerdown_ms;	/* a guest that may be shutting down */
	unsigned ignored_ms;	/* one whose agent goes on as if nothing was */
	unsigned again_ms;	/* between presses of the button */
	unsigned quit_ms, term_ms, kill_ms;
};
extern const struct stop_waits stop_waits_default;

struct stop_target {
	struct loop *loop;
	struct process *process;
	struct qmp *const *qmp;		/* looked at when needed: NULL while there is none */
	const bool *agent_open;		/* is the agent's port open in the guest now */
	/* One line each time the next step is needed. */
	void (*say)(void *arg, const char *text);
	/* Not even SIGKILL ended it within its wait. The stop is over. */
	void (*failed)(void *arg, const struct error *err);
	void *arg;
};

struct stop;
/* @force: begins at quit. */
struct stop *stop_begin(const struct stop_target *target, const struct stop_waits *waits,
			bool force);
/* Goes to quit now if it is not that far. */
void stop_force(struct stop *s);
/* Any time, no callbacks after. */
void stop_free(struct stop *s);
