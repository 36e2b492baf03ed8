/* image.h - from images[] to bootable files in the instance directory
 *
 * Tries the entries for the instance's architecture in order (the variant of
 * the first match fixes the choice, reference/lima-yaml.md §5) until one is
 * there; each failure is a note in @progress, all of them are in @err if none
 * works. Fetching and caching is download.h, building from packages build.h.
 *
 * Everything is made in INSTDIR/prepare.tmp and moved in place when it is
 * whole, disk last: a disk in the instance directory means that all is there.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"
#include "lib/base/progress.h"
#include "lib/config/config.h"

/* What a prepared image is, for the line that `start` shows. */
struct image_info {
	char *name;		/* "debian-13-genericcloud-amd64", "mmdebstrap:trixie" */
	bool cached;		/* nothing was fetched or built */
	bool direct_kernel;	/* kernel, initrd and cmdline are in place */
};
void image_info_done(struct image_info *info);

/* Fills INSTDIR/disk (or iso and an empty disk), kernel, initrd, kernel.cmdline
 * unless they are there already. Blocks; ends early when interrupted; leaves
 * either everything or nothing. The caller holds the instance's lock. */
int image_prepare(const char *instance_dir, const struct config *config,
		  const struct progress *progress, struct image_info *ret, struct error *err);

/* What people call the image at @location: file name without ".qcow2", ".img.xz"
 * and the like, "mmdebstrap:SUITE"; caller frees. */
char *image_name(const char *location);
