/* machine.h - from what is in an instance directory to QEMU's command line
 *
 * The half of building a command line that looks at files: which disk, kernel and
 * firmware there are and whether they may be run. What is made of them is
 * args.h's, which is pure. Blocks for a few file headers.
 */
#pragma once

#include <stdbool.h>

#include "drivers/driver.h"
#include "drivers/qemu/accel.h"
#include "drivers/qemu/version.h"
#include "lib/base/error.h"
#include "lib/base/strv.h"

struct qemu_machine {		/* all borrowed */
	const struct driver_spec *spec;
	const struct strv *program;	/* argv[0] and what $QEMU_SYSTEM_ARCH adds */
	const struct qemu_version *version;
	enum qemu_accel_kind accel;
	bool sandbox;			/* this QEMU was built with seccomp */
	bool vsock;			/* and may have the vsock device */
};

/* Appends to @ret. A disk that refers to other files of the host is -EPERM. */
int qemu_machine_argv(const struct qemu_machine *m, struct strv *ret, struct error *err);
