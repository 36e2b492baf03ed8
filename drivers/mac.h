/* mac.h - the hardware address of an instance's first NIC
 *
 * Stable for a machine and an instance directory, so that DHCP leases, the
 * seed's network-config and cloud-init's idea of "the same machine" survive a
 * restart; two machines with the same directory name differ. Locally
 * administered prefix 52:55:55, then three bytes of
 * sha256(machine-id || directory), as Lima does (network-dns-mounts.md §1), so
 * an instance keeps its address when it changes hands.
 */
#pragma once

#include "lib/base/error.h"

enum { DRIVER_MAC_SIZE = sizeof("52:55:55:00:00:00") };

/* machine-id: /etc/machine-id, /var/lib/dbus/machine-id, else the host name. */
int driver_mac(const char *instance_dir, char out[DRIVER_MAC_SIZE], struct error *err);

/* The pure part. */
int driver_mac_from(const char *machine_id, const char *instance_dir, char out[DRIVER_MAC_SIZE],
		    struct error *err);
