/* http.h - one GET through libcurl, which is loaded when first needed (shlib.h)
 *
 * Blocking, with limits in time: DOWNLOAD_CONNECT_MS until connected, then at
 * least 1 KiB/s over 30 s. No retry and no cache: that is download.c.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/error.h"

struct http_headers {		/* those of the last response, redirects followed; "" absent */
	char last_modified[64];
	char etag[256];
	char content_type[128];
	char content_range[96];
};

/* How a request failed, which decides what to do next. */
enum http_failure {
	HTTP_OK,
	HTTP_OFFLINE,		/* no name, refused, no answer while connecting */
	HTTP_TRANSIENT,		/* cut, too slow, server busy: try again */
	HTTP_FINAL,		/* will not get better: 404, bad certificate, … */
	HTTP_STOPPED,		/* a callback of ours said so; it has set the error */
};

struct http_get {
	const char *url;
	uint64_t resume_from;		/* 0: from the start */
	const char *if_range;		/* validator for resume_from; NULL: unconditional */
	const char *if_none_match;	/* NULL: none */
	const char *if_modified_since;	/* NULL: none */

	/* Before the first byte of a body that counts (200 and 206 only), with
	 * its length, 0 unknown. Negative stops. */
	int (*begin)(void *arg, long status, const struct http_headers *h, uint64_t len,
		     struct error *err);
	int (*data)(void *arg, const void *data, size_t len, struct error *err);
	/* Several times a second, also while nothing comes. */
	int (*tick)(void *arg, struct error *err);
	void *arg;
};

struct http_result {
	long status;			/* 200, 206, 304, 404 …; 0: no response */
	struct http_headers headers;
	bool began;			/* begin() was called */
};

/* HTTP_OK: the exchange is whole, whatever the status below 400. */
enum http_failure http_get(const struct http_get *req, struct http_result *ret, struct error *err);
