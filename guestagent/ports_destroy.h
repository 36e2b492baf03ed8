/* ports_destroy.h - the kernel tells when sockets are gone, where BPF cannot
 *
 * The multicast groups of NETLINK_SOCK_DIAG (linux/sock_diag.h, SKNLGRP_*_DESTROY)
 * tell of each socket that is freed; there is no such thing for listen() or
 * bind(), so this only makes closes quick while opens are polled for. A filter
 * lets through what has no peer: listeners and unconnected UDP sockets. The ends
 * of connections do not wake us, though the kernel still writes a message for
 * each: connect and close cost 477 instead of 270 us under TCG with it
 * (prototypes/ports.md, "CPU"), so nothing listens here that BPF serves.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"

struct ports_destroy;

/* @tcp, @udp: what to be told of. */
int ports_destroy_new(struct loop *loop, bool tcp, bool udp, void (*kick)(void *arg), void *arg,
		      struct ports_destroy **ret, struct error *err);
/* No kick follows; @closed runs when all is freed. */
void ports_destroy_close(struct ports_destroy *d, void (*closed)(void *arg), void *arg);
