/* link_host.h - the host's end of the link handshake (link.h)
 *
 * Is given the socket connected to QEMU, and gives it back once the guest agent
 * answered: the next byte read from it is the new session's first. Until then it
 * sends a SYN now and again: at first, 1 s, 2 s, 4 s and then every 8 s later,
 * and whenever link_host_kick() says that the agent opened its port. A guest may
 * take minutes to boot.
 */
#pragma once

#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"

struct link_host;

struct link_host_callbacks {	/* one of the two, once */
	void (*ready)(void *arg, int fd);	/* the callee owns @fd */
	void (*failed)(void *arg, const struct error *why);
};

/* Takes @fd, also on failure. @secret: LINK_MAGIC_SIZE bytes, copied. */
int link_host_new(struct loop *loop, int fd, const uint8_t *secret,
		  const struct link_host_callbacks *cb, void *arg, struct link_host **ret,
		  struct error *err);
void link_host_kick(struct link_host *l);
/* Always needed, also after ready or failed. @closed runs when all is freed,
 * which may be before this returns. */
void link_host_close(struct link_host *l, void (*closed)(void *arg), void *arg);
