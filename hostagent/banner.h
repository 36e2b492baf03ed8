/* banner.h - does an sshd answer
 *
 * Connects to the host's end of the guest's port 22 until something says "SSH-"
 * (RFC 4253 4.2), with back-off and without a login: cheap enough to be asked
 * all through a boot. It has no deadline; whoever asked closes it.
 */
#pragma once

#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"

struct banner;

typedef void (*banner_done_fn)(void *arg);

struct banner *banner_start(struct loop *loop, const char *host, uint16_t port,
			    banner_done_fn done, void *arg);
/* Forgets it, also after done and inside it; no callback follows. */
void banner_close(struct banner *b);
