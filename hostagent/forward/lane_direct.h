/* lane_direct.h - a connection to the guest's own address
 *
 * For guests that the host can reach by IP (a bridge, a tap; not QEMU's user
 * networking), asked for by `lane: direct` or _LIMA_DIRECT_IP_PORT_FORWARDER=true.
 * Only what listens on a wildcard or on that very address can be had this way; for
 * the rest, while there is no address, and where a connection failed lately (a
 * firewall in the guest), the lane says that it cannot, and others are used.
 */
#pragma once

#include <netinet/in.h>

#include "hostagent/forward/lane.h"
#include "lib/base/loop.h"

struct lane *lane_direct_new(struct loop *loop);
/* NULL: the guest has none that can be reached. IPv4 as ::ffff:a.b.c.d. */
void lane_direct_set_address(struct lane *lane, const struct in6_addr *guest_ip);
/* As lane_vsock_close(). */
void lane_direct_close(struct lane *lane, void (*closed)(void *arg), void *arg);
