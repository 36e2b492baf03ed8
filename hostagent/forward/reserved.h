/* reserved.h - host ports that are no guest's to take: the ssh ports of all instances
 *
 * Also of those that do not run: their next start wants the same port again. What
 * ports these are is read from their directories, by a function of the owner's
 * that runs in libuv's pool: at the start, and when host ports are opened, but
 * once a second at most. In between the last answer counts.
 */
#pragma once

#include <stdint.h>

#include "hostagent/forward/hub.h"

struct reserved;

enum { RESERVED_MAX = 1024 };

/* @changed: on the loop, after a look that found another answer; maybe NULL. */
struct reserved *reserved_new(struct hub *hub, const struct forward_reserved_source *source,
			      void (*changed)(void *arg), void *arg);
/* No more callbacks; the hub is held until it is gone. */
void reserved_close(struct reserved *r);
/* Something was opened: look again, now or soon. */
void reserved_look(struct reserved *r);
/* Whose ssh port it is, NULL: nobody's. */
const char *reserved_by(const struct reserved *r, uint16_t port);
