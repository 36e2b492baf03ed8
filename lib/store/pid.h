/* pid.h - pid files that survive pid reuse and reboot
 *
 * First line: the pid, as Lima and `kill $(cat ha.pid)` expect. Second line:
 * the kernel's boot id. Third: the process's start time in clock ticks since
 * boot (proc(5), stat field 22). A file whose boot id or start time does not
 * fit names nobody. A file with only the first line (QEMU writes its own; so
 * does Lima) counts if the process's program name starts with @comm_prefix.
 */
#pragma once

#include <sys/types.h>

#include "lib/base/error.h"

/* The process the file names, 0 when it is gone (stale files are left alone).
 * @comm_prefix may be NULL. */
pid_t pid_file_read(const char *path, const char *comm_prefix);
/* The process that listens on the unix socket @path: 0 when nobody does, or when its
 * program's name does not start with @comm_prefix. Finds one whose pid file was
 * lost. It sees a client that comes and goes. */
pid_t pid_of_listener(const char *path, const char *comm_prefix);
/* Writes our format for @pid, atomically, 0644. */
int pid_file_write(const char *path, pid_t pid, struct error *err);
/* Waits until @pid (checked by start time taken at call) is gone; pidfd where
 * the kernel has it. 0, -ETIMEDOUT, -ECANCELED when interrupted. */
int pid_wait_gone(pid_t pid, unsigned timeout_ms);
