/* decompress.h - gz, bz2, xz and zst files, unpacked through libarchive
 *
 * What a file is, its first bytes tell; a name that promises one of these and
 * bytes that do not keep it is an error, not a disk image.
 */
#pragma once

#include "lib/base/error.h"
#include "lib/base/progress.h"

enum compression { COMPRESSION_NONE, COMPRESSION_GZIP, COMPRESSION_BZIP2, COMPRESSION_XZ,
		   COMPRESSION_ZSTD, COMPRESSION_COUNT };

const char *compression_name(enum compression c);	/* "gzip" … */

/* By the first bytes of the file. @name: what it was called ("debian.img.xz",
 * may be NULL); -EBADMSG when its suffix says otherwise. */
int decompress_probe(const char *path, const char *name, enum compression *ret,
		     struct error *err);

/* Unpacks @from (which decompress_probe found compressed) to the new file @to,
 * 0600, sparse, synced. Interruptible; nothing is left on failure, and 16 MiB
 * of the file system stay free whatever the file swells to. */
int decompress_file(const char *from, const char *to, const char *what,
		    const struct progress *progress, struct error *err);
