/* download.h - files from http and https, through a cache that is Lima's too
 *
 * An entry is CACHE/download/by-url-sha256/HEX/ (reference/drivers-mcp.md §7):
 *	url		the URL
 *	data		the body as served; there only when it is whole
 *	time, type	Last-Modified and Content-Type
 *	etag		ETag (ours; Lima does not look)
 *	ALGO.digest	"sha256:…" when it was verified
 *	data.part	what came so far; data.part.etag its validator, so that
 *			the rest can be asked for (RFC 9110 13.1.5, 14.2)
 * The directory is locked (flock) while one process works in it: whoever wants
 * the same URL waits and then finds it there.
 *
 * What fails for a moment (timeouts, cut connections, 408, 429, 5xx) is tried
 * again with growing pauses, from where it stopped. What will not get better by
 * waiting fails at once; no network at all in DOWNLOAD_CONNECT_MS at most. A
 * cached copy that cannot be checked because there is no network is used.
 */
#pragma once

#include <stdbool.h>

#include "lib/base/error.h"
#include "lib/base/progress.h"

enum { DOWNLOAD_CONNECT_MS = 4500 };	/* name service, TCP and TLS together */

struct download {
	char *path;		/* the entry's data; caller frees with download_done */
	bool cached;		/* nothing was fetched */
};
void download_done(struct download *d);
#define scoped_download __attribute__((cleanup(download_done)))

bool download_is_url(const char *location);	/* http:// or https:// */

/* Blocks; interruptible. @digest: "sha256:…" or NULL; @what: "downloading x".
 * -ENETUNREACH: the server cannot be reached now, and would not be in a minute
 * (no name, refused, no answer); -EBADMSG: digest mismatch; -ENOSPC: no room,
 * nothing is left. */
int download_fetch(const char *url, const char *digest, const char *what,
		   const struct progress *progress, struct download *ret, struct error *err);

/* CACHE/download/by-url-sha256/HEX of @url; caller frees. */
int download_entry_dir(const char *url, char **ret, struct error *err);
