/* loopback.h - an instance's own address in 127.0.0.0/8
 *
 * For portForwarding.conflict: loopback-per-instance. Linux answers on all of
 * 127/8 without any set-up. The address is 127.0.0.x, chosen once from the
 * instance's name, kept in its directory, and another one than those of all other
 * instances below the same LIMA_HOME. 127.0.0.1 and the two of systemd-resolved
 * are left alone.
 */
#pragma once

#include <netinet/in.h>

#include "lib/base/error.h"

/* The kept one, else a new one, written down. Blocks for a moment. */
int loopback_choose(const char *lima_home, const char *name, struct in6_addr *ret,
		    struct error *err);
/* The kept one; false: none. */
bool loopback_read(const char *instance_dir, struct in6_addr *ret);
