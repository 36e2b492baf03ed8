/* firmware.h - which UEFI image a guest starts with
 *
 * Only asked when the instance has no kernel of its own and does not want the
 * legacy BIOS. The order is Lima's (network-dns-mounts.md §6): the instance's
 * own file, the user's, QEMU's prefix, then what distributions install. The
 * flash is read-only and there is no variable store: EDK2 then keeps variables
 * in memory, and the boot order comes from QEMU every time.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"
#include "lib/config/config.h"

struct qemu_firmware {
	char *path;	/* caller frees */
	bool flash;	/* pflash; otherwise -bios (images not padded to flash size) */
};

/* Where to look; tests bring their own roots. */
struct qemu_firmware_search {
	const char *instance_file;	/* INSTDIR/qemu-efi-code.fd; may not exist */
	const char *home;		/* for HOME/.local/share/qemu; NULL: skip */
	const char *qemu_prefix;	/* PREFIX of PREFIX/bin/qemu-system-…; NULL: skip */
	const char *root;		/* put in front of the distributions' paths; "" */
};

/* -ENOENT with the name of the package to install. */
int qemu_firmware_find(enum arch arch, const struct qemu_firmware_search *where,
		       struct qemu_firmware *ret, struct error *err);
