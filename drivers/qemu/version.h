/* version.h - which QEMU this is
 *
 * Read from `qemu-system-ARCH -version`, whose first line is "QEMU emulator
 * version 7.2.22 (Debian …)", or from the QMP greeting.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct qemu_version {
	unsigned major, minor, micro;
};

enum { QEMU_VERSION_SIZE = 32 };	/* of its text */

/* "7.2.22" anywhere after "version ", or at the start of @text. */
bool qemu_version_parse(const char *text, struct qemu_version *ret);
/* Negative, 0, positive as @a is older than, the same as, newer than @b. */
int qemu_version_compare(const struct qemu_version *a, const struct qemu_version *b);
const char *qemu_version_text(const struct qemu_version *v, char out[QEMU_VERSION_SIZE]);
