/* digest.h - "sha256:HEX", as images name what they should be
 *
 * The three algorithms of OCI digests: sha256, sha384, sha512. libcrypto does
 * the work (its assembly is 3 to 5 times plain C) and is loaded on first use.
 */
#pragma once

#include <stddef.h>

#include "lib/base/error.h"
#include "lib/base/progress.h"
#include "lib/base/scoped.h"

enum {
	DIGEST_ALGO_SIZE = sizeof("sha512"),
	DIGEST_HEX_SIZE = 128 + 1,				/* of sha512 */
	DIGEST_TEXT_SIZE = DIGEST_ALGO_SIZE + DIGEST_HEX_SIZE,	/* "sha512:…" */
};

/* Checks the text: known algorithm, right number of hex digits, lower case. */
int digest_check_text(const char *text, struct error *err);
/* "sha256" of "sha256:…" (or of "sha256" itself). */
const char *digest_algo(const char *text, char out[DIGEST_ALGO_SIZE]);

struct digest;

/* @algo: "sha256" or a whole digest text. */
int digest_new(const char *algo, struct digest **ret, struct error *err);
void digest_update(struct digest *d, const void *data, size_t len);
/* Writes "ALGO:hex" and returns @out; nothing may be added after. */
const char *digest_final(struct digest *d, char out[DIGEST_TEXT_SIZE]);
void digest_free(struct digest *d);
SCOPED_DEFINE(digest, struct digest, digest_free)
#define scoped_digest SCOPED(digest)

/* Adds the whole file; interruptible. @what: for @progress, e.g. "checking x". */
int digest_update_file(struct digest *d, const char *path, const char *what,
		       const struct progress *progress, struct error *err);
/* -EBADMSG "PATH: digest mismatch: expected …, got …" when the file is another. */
int digest_verify_file(const char *path, const char *expected, const char *what,
		       const struct progress *progress, struct error *err);
/* "sha256:…" of a short text, e.g. a URL. */
int digest_text(const char *algo, const void *data, size_t len, char out[DIGEST_TEXT_SIZE],
		struct error *err);
