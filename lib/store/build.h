/* build.h - a guest image out of Debian packages: location "mmdebstrap:SUITE[?include=P,P…]"
 *
 * Built once by mmdebstrap, rootless with user namespaces or as root, into the
 * cache, under a key of everything that went into it; facts in
 * prototypes/image.md. The result is a qcow2 root disk and kernel, initrd and
 * command line for direct kernel boot.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"
#include "lib/base/progress.h"
#include "lib/config/config.h"

struct build_result {		/* paths into the cache; caller frees with build_result_done */
	char *disk, *kernel, *initrd;
	char *cmdline;		/* text */
	bool cached;
};
void build_result_done(struct build_result *r);

bool build_is_location(const char *location);	/* starts with "mmdebstrap:" */

/* CACHE/build/KEY for @location; caller frees. Fails as build_image() does for a
 * location that cannot be built here. */
int build_entry_dir(const char *location, enum arch arch, char **ret, struct error *err);

/* Blocks (40 to 90 s when not cached); interruptible; two builds of one key at
 * once wait for each other. */
int build_image(const char *location, enum arch arch, const struct progress *progress,
		struct build_result *ret, struct error *err);
