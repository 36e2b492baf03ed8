/* sparse.h - a large file written with holes, all of it or nothing
 *
 * The output of fetching, unpacking and copying. Blocks of zeros become holes,
 * so an 100 GiB raw image with 1 GiB in it takes 1 GiB. Running out of space is
 * told in one line with the figures, and the caller's sparse_abort() (or the
 * scoped end) leaves no partial file.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/progress.h"

struct sparse {		/* in place: sparse_open … sparse_commit or sparse_abort */
	int fd;
	char *path;
	uint64_t end;			/* size so far, holes included */
	uint64_t until_space_check;	/* bytes that may be written before we look */
};

#define SPARSE_NONE ((struct sparse){ .fd = -1 })

/* Creates @path (must not exist), 0600. */
int sparse_open(struct sparse *s, const char *path, struct error *err);
/* @offset ≥ what was written before; a gap is a hole. */
int sparse_write(struct sparse *s, uint64_t offset, const void *data, size_t len,
		 struct error *err);
/* Sets the size, syncs, closes; the file is there to stay. */
int sparse_commit(struct sparse *s, uint64_t size, struct error *err);
/* Closes and removes, unless committed. */
void sparse_abort(struct sparse *s);
#define scoped_sparse __attribute__((cleanup(sparse_abort)))

/* Copies @from to the new file @to: as a reflink where the file system can
 * (Btrfs, XFS, bcachefs), otherwise data extents by copy_file_range, holes kept.
 * @find_zeros: look for zeros in the data too (a raw image that came without
 * holes). Interruptible; synced. */
int sparse_copy_file(const char *from, const char *to, bool find_zeros, const char *what,
		     const struct progress *progress, struct error *err);

/* The line for ENOSPC: "write PATH: no space left on device (12.3 MiB free in
 * its file system, 600.0 MiB needed)"; @needed 0: unknown. Other codes as error_sys. */
int sparse_write_error(struct error *err, int code, const char *path, uint64_t needed);
/* -ENOSPC now instead of after minutes, when @needed bytes do not fit beside
 * @path. Unknown file systems pass. */
int sparse_check_space(const char *path, uint64_t needed, struct error *err);
