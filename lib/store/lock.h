/* lock.h - who may change an instance
 *
 * flock on INSTDIR/lock (an open file description lock: it goes with the
 * process, so a crash leaves nothing to clean), and on LIMA_HOME/_config/create.lock
 * for creation. The holder's pid and verb are written into the file for the
 * message of whoever finds it taken.
 */
#pragma once

#include "lib/base/error.h"

/* Takes the lock without waiting; @verb is what we are doing ("start").
 * -EBUSY: "instance `x` is being changed by `limactl start` (pid 12)". The lock
 * is held until the returned descriptor is closed; it is close-on-exec. */
int lock_instance(const char *instance_dir, const char *verb, int *ret_fd, struct error *err);
/* Waits for it, up to @timeout_ms, interruptible. */
int lock_instance_wait(const char *instance_dir, const char *verb, unsigned timeout_ms,
		       int *ret_fd, struct error *err);
int lock_creation(const char *lima_home, const char *verb, int *ret_fd, struct error *err);
