/* disk.h - the root disk, through qemu-img */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/error.h"

struct disk_info {
	char format[16];		/* "qcow2", "raw", … */
	uint64_t virtual_bytes, actual_bytes;
	bool has_backing;		/* backing file or external data file: refused */
};

/* `qemu-img info --output=json`, without following references. */
int disk_inspect(const char *path, struct disk_info *ret, struct error *err);
/* Refuses an image that points outside itself (backing or external data file),
 * or whose format is neither qcow2 nor raw. */
int disk_check_untrusted(const char *path, struct disk_info *ret, struct error *err);
/* Grows INSTDIR/disk to @bytes; smaller than now is -EINVAL ("shrink"). */
int disk_grow(const char *path, uint64_t bytes, struct error *err);
