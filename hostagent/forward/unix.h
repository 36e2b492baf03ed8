/* unix.h - a socket in the host's file system that leads into the guest
 *
 * The directory is made with mode 0700 if missing, the socket gets mode 0600.
 * What already has the name is removed only when it is a socket that nobody
 * listens on any more.
 */
#pragma once

#include <stdbool.h>
#include <sys/stat.h>

#include "lib/base/error.h"

struct unix_id { /* which file we made: another one of that name is left alone */
	dev_t dev;
	ino_t ino;
};

/* Somebody listens there, or it cannot be told. Changes nothing. */
bool unix_is_served(const char *path);
/* The socket that is there now; negative: none. */
int unix_identify(const char *path, struct unix_id *ret);
/* -EADDRINUSE: somebody listens there, -EEXIST: something else than a socket. */
int unix_listen(const char *path, int *ret_fd, struct unix_id *ret_id, struct error *err);
void unix_remove(const char *path, const struct unix_id *id);
