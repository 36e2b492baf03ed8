/* media.h - what a disk file is, by its own header, without a fork
 *
 * QEMU is always told a disk's format: left to guess, it would follow whatever
 * a guest wrote into the first sector of a raw disk. We look ourselves, and a
 * qcow2 that points outside itself (backing file, external data file) is
 * refused here at every start, so a raw disk which a guest dressed up as qcow2
 * cannot make QEMU open a host file (CVE-2023-32684 and the 2026 external data
 * file finding, users-want.md F). store/disk.h does the same check through
 * qemu-img when an image comes in; this one is for the loop, where nothing
 * may block for a fork.
 */
#pragma once

#include "lib/base/error.h"

/* "qcow2" or "raw" (static text) for the file at @path. */
int qemu_media_format(const char *path, const char **ret_format, struct error *err);
