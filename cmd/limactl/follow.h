/* follow.h - what the host agent says, shown while a command waits for it
 *
 * The host agent writes JSON lines to ha.stdout.log (hostagent/events.h). A
 * follower reads them from the start of this run's log, woken by inotify and by
 * the end of the host agent's process, and turns them into steps on the ui.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "cmd/limactl/ui.h"
#include "lib/base/buf.h"
#include "lib/base/error.h"

struct follow {
	const char *dir;	/* instance directory */
	pid_t ha_pid;
	struct ui *ui;
	int log_fd, watch_fd, pid_fd;
	struct buf pending;	/* incomplete last line */
	bool began, running, degraded, exiting;
	unsigned forwards, waiting_forwards;	/* port events since the start */
	uint16_t ssh_port;
	uint64_t delay_ms;	/* it told that a stop takes up to as much longer */
	char reason[1024];	/* first error of a degraded or exiting event */
};

/* @offset: where this run's events begin in ha.stdout.log. Without that file
 * only the end of the host agent is seen. */
int follow_open(struct follow *f, const char *dir, pid_t ha_pid, struct ui *ui, off_t offset,
		struct error *err);
void follow_close(struct follow *f);

enum follow_until { FOLLOW_BEGAN, FOLLOW_RUNNING, FOLLOW_GONE };

/* Waits for what @until says. FOLLOW_RUNNING: 0 when running (look at
 * degraded), negative with the host agent's own reason when it gave up.
 * FOLLOW_GONE: 0 when its process has ended, for which it is given f->delay_ms
 * more. -ETIMEDOUT, -ECANCELED (interrupted) otherwise. */
int follow_wait(struct follow *f, enum follow_until until, uint64_t timeout_ms, struct error *err);

/* Waits up to @wait_ms, whatever is pending, and tells if the host agent's
 * process has ended. */
bool follow_gone(struct follow *f, unsigned wait_ms);

/* The last lines of ha.stderr.log of level warning and above, and of qemu.log,
 * for a message that must say more; "" when there is nothing. Caller frees. */
char *follow_log_tail(const char *dir);
