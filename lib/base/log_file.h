/* log_file.h - logs that a guest can fill, and the host's disk that it must not
 *
 * QEMU appends to serial.log whatever the guest writes to its console, and to
 * qemu.log what it thinks of the guest's doings; it has no limit for either. The host
 * agent's own logs have one by the minute, but run for years. Who owns a log looks
 * now and then, and a file that outgrew its bound is cut to what was said last. All
 * are open with O_APPEND where they are written, so that it goes on behind that.
 */
#pragma once

#include <stddef.h>
#include <sys/types.h>

#include "lib/base/error.h"

enum {
	LOG_FILE_LOOK_MS = 15 * 1000,
	LOG_FILE_MAX_BYTES = 64 << 20,	/* far more than people read */
	LOG_FILE_KEEP_BYTES = 1 << 20,
};

/* When @path takes more than @max_bytes of the disk, all but its last @keep_bytes, from
 * the beginning of a line, goes; @note is written before them. A few milliseconds when
 * it does. No file: success. */
int log_file_trim(const char *path, off_t max_bytes, size_t keep_bytes, const char *note,
		  struct error *err);
