/* disk.h - disk images: what they are, and that they stay within themselves
 *
 * An image that came from elsewhere may name other files of the host in its
 * header: a backing file (CVE-2023-32684) or an external data file
 * (CVE-2024-4467, where already `qemu-img info` followed it). So the format is
 * told from the first bytes and the qcow2 header is read by our own few lines,
 * before any of QEMU's programs sees the file; these are then always told the
 * format, and opened through the file driver only (a name such as "nbd:…" is
 * never a protocol).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/child.h"
#include "lib/base/error.h"

struct disk_info {
	char format[16];		/* "qcow2", "raw", "vmdk" … */
	uint64_t virtual_bytes, actual_bytes;	/* virtual: 0 for formats we refuse */
	bool has_backing;		/* backing file or external data file: refused */
};

/* From the file's own header, without another program and without following
 * anything it names. */
int disk_inspect(const char *path, struct disk_info *ret, struct error *err);
/* Refuses an image that points outside itself (backing or external data file),
 * whose format is neither qcow2 nor raw, that is encrypted, or that qemu-img
 * does not understand; and what is no image at all. */
int disk_check_untrusted(const char *path, struct disk_info *ret, struct error *err);
/* ISO 9660 by its volume descriptor (ECMA-119 8.1). */
bool disk_is_iso(const char *path);
/* A new, empty qcow2, mode 0600. */
int disk_create(const char *path, uint64_t bytes, struct error *err);
/* Grows INSTDIR/disk to @bytes; smaller than now is -EINVAL ("shrink"). */
int disk_grow(const char *path, uint64_t bytes, struct error *err);

/* How QEMU's programs are told of @path (--image-opts), so that nothing is guessed;
 * caller frees. */
char *disk_image_opts(const char *format, const char *path);
/* qemu-img to its end; one that is not there is told with the package's name. */
int disk_run_qemu_img(const char *const *argv, struct child_result *ret, struct error *err);
/* The image at @path names another file of the host as part of itself: says so. */
int disk_refuse_outside(const char *path, struct error *err);
