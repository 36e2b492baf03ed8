/* lock.h - who may change an instance
 *
 * flock on INSTDIR/lock (an open file description lock: it goes with the
 * process, so a crash leaves nothing to clean), and on LIMA_HOME/_config/create.lock
 * for creation. The holder's pid and verb are written into the file for the
 * message of whoever finds it taken; the text means nothing while the lock is
 * free.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "lib/base/error.h"

/* Takes the lock without waiting; @verb is what we are doing ("start").
 * -EBUSY: "instance `x` is being changed by `limactl start` (pid 12)"; -ENOENT:
 * there is no such instance. The lock is held until the returned descriptor is
 * closed; it is close-on-exec. */
int lock_instance(const char *instance_dir, const char *verb, int *ret_fd, struct error *err);
/* Waits for it, up to @timeout_ms, interruptible. */
int lock_instance_wait(const char *instance_dir, const char *verb, unsigned timeout_ms,
		       int *ret_fd, struct error *err);
/* Makes LIMA_HOME and _config where needed. Waits up to 30 s, interruptible: it
 * is held for moments only. instance_create() takes it itself; -EDEADLK when
 * this process holds it already. */
int lock_creation(const char *lima_home, const char *verb, int *ret_fd, struct error *err);

struct lock_holder {
	pid_t pid;
	char verb[32];
};
/* Looks who holds the instance's lock, without touching it; false when nobody. */
bool lock_instance_holder(const char *instance_dir, struct lock_holder *ret);

/* Does a @line of /proc/locks tell of an flock on the file @st, which names @holder as
 * who has it (0: nobody)? Pure. */
struct stat;
bool lock_line_is_of(const char *line, const struct stat *st, pid_t holder);
