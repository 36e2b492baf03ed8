/* endpoint.h - QEMU's unix sockets, seen from our side
 *
 * We bind and listen, QEMU inherits the descriptor and accepts. A connection
 * can be made at once, also before QEMU is up (it waits in the backlog). The
 * peer's pid then tells who listens now: listen(2) renews it, and QEMU calls
 * listen on what it inherits, so even a VM whose pid file was lost is found.
 */
#pragma once

#include <sys/types.h>

#include "lib/base/error.h"

/* A listening socket at @path, 0600; what was there before is removed. Close-on-exec. */
int endpoint_listen(const char *path, int *ret_fd, struct error *err);

/* A connected, non-blocking socket. -ENOENT or -ECONNREFUSED: nobody listens. */
int endpoint_connect(const char *path, int *ret_fd, struct error *err);

/* The process that listens at the other end of @fd; 0 unknown. */
pid_t endpoint_peer(int fd);
