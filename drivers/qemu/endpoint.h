/* endpoint.h - QEMU's unix sockets, seen from our side
 *
 * We bind and listen, QEMU inherits the descriptor and accepts. A connection
 * can be made at once, also before QEMU is up (it waits in the backlog). QEMU
 * calls listen(2) on what it inherits, which makes it the one that pid_of_listener()
 * (lib/store/pid.h) finds, so even a VM whose pid file was lost is found.
 */
#pragma once

#include "lib/base/error.h"

/* A listening socket at @path, 0600; what was there before is removed. Close-on-exec. */
int endpoint_listen(const char *path, int *ret_fd, struct error *err);

/* A connected, non-blocking socket. -ENOENT or -ECONNREFUSED: nobody listens. */
int endpoint_connect(const char *path, int *ret_fd, struct error *err);
