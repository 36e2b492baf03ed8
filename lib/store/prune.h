/* prune.h - give back what the cache holds
 *
 * The cache is downloads and built images (download.h, build.h), and no more than
 * a cache: an instance has copies of what it needs. An entry is removed under the
 * lock that who fills it takes, so one that is being filled stays.
 */
#pragma once

#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/strv.h"

struct prune {
	struct strv keep;	/* entry directories that stay: download_entry_dir(), build_entry_dir() */
	unsigned removed, busy;	/* entries */
	uint64_t bytes;		/* that the removed ones had on disk */
};
void prune_done(struct prune *p);
#define scoped_prune __attribute__((cleanup(prune_done)))

/* Blocks; ends early when interrupted, with what was removed counted. */
int prune_cache(struct prune *p, struct error *err);
