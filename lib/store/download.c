#include "lib/store/download.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/digest.h"
#include "lib/store/http.h"
#include "lib/store/layout.h"
#include "lib/store/sparse.h"

enum {
	ATTEMPTS = 5,         /* in a row without a new byte */
	FIRST_PAUSE_MS = 500, /* doubles: 0.5, 1, 2, 4 s */
	LOCK_LOOK_MS = 200,
	SMALL_BYTES = 4096, /* url, time, type, etag, *.digest */
};

/* One URL being fetched. Names below are in dir. */
struct fetch {
	const char *url, *digest, *what; /* digest may be NULL */
	const struct progress *progress;
	char *dir, *data, *part, *part_etag;
	int lock_fd;

	int part_fd;                 /* data.part while a request runs, else -1 */
	uint64_t have;               /* bytes in data.part, all of them in hash */
	uint64_t total;              /* 0 unknown */
	struct digest *hash;         /* NULL without digest */
	struct http_headers headers; /* of the response that data.part comes from */
	bool answered;               /* a body began: the server is there */
};

void download_done(struct download *d)
{
	free(d->path);
	*d = (struct download){ 0 };
}

bool download_is_url(const char *location)
{
	return strncmp(location, "http://", 7) == 0 || strncmp(location, "https://", 8) == 0;
}

int download_entry_dir(const char *url, char **ret, struct error *err)
{
	scoped_free char *cache = layout_cache_dir();
	char id[DIGEST_TEXT_SIZE];

	if (digest_text("sha256", url, strlen(url), id, err) < 0)
		return err->code;
	*ret = xasprintf("%s/download/by-url-sha256/%s", cache, strchr(id, ':') + 1);
	return 0;
}

/* --- small files of the entry ------------------------------------------- */

static char *read_small(const struct fetch *f, const char *name)
{
	scoped_free char *path = xasprintf("%s/%s", f->dir, name);
	scoped_buf struct buf b = { 0 };
	struct error err;

	if (path_read_file(path, SMALL_BYTES, &b, &err) < 0)
		return NULL;
	return xstrndup(buf_str(&b), strcspn(buf_str(&b), "\r\n"));
}

/* An empty @text removes the file: what the server did not say is not known. */
static int write_small(const struct fetch *f, const char *name, const char *text, struct error *err)
{
	scoped_free char *path = xasprintf("%s/%s", f->dir, name);

	if (*text)
		return path_write_file(path, text, strlen(text), 0644, err);
	unlink(path);
	return 0;
}

static char *digest_file_name(const char *digest)
{
	char algo[DIGEST_ALGO_SIZE];

	return xasprintf("%s.digest", digest_algo(digest, algo));
}

static void forget_digests(const struct fetch *f)
{
	static const char *const names[] = { "sha256.digest", "sha384.digest", "sha512.digest" };
	struct error ignored;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		write_small(f, names[i], "", &ignored);
}

/* --- data.part ------------------------------------------------------------ */

static void part_close(struct fetch *f)
{
	if (f->part_fd >= 0)
		close(f->part_fd);
	f->part_fd = -1;
}

/* Forgets what came so far. */
static int part_restart(struct fetch *f, struct error *err)
{
	digest_free(f->hash);
	f->hash = NULL;
	f->have = f->total = 0;
	if (f->digest && digest_new(f->digest, &f->hash, err) < 0)
		return err->code;
	if (f->part_fd >= 0 && ftruncate(f->part_fd, 0) < 0)
		return error_sys(err, -errno, "truncate %s", f->part);
	return 0;
}

static void part_remove(struct fetch *f)
{
	part_close(f);
	unlink(f->part);
	unlink(f->part_etag);
	f->have = 0;
}

/* Opens data.part, and takes up what an earlier process left in it: only with a
 * validator, or a digest that will tell in the end. */
static int part_open(struct fetch *f, struct error *err)
{
	scoped_free char *validator = read_small(f, "data.part.etag");
	struct stat st;

	f->part_fd = open(f->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (f->part_fd < 0 || fstat(f->part_fd, &st) < 0)
		return sparse_write_error(err, -errno, f->part, 0);
	if (st.st_size == 0 || (!validator && !f->digest))
		return part_restart(f, err);
	if (f->digest && digest_new(f->digest, &f->hash, err) < 0)
		return err->code;
	if (f->hash && digest_update_file(f->hash, f->part, f->what, f->progress, err) < 0)
		return err->code;
	f->have = (uint64_t)st.st_size;
	return 0;
}

/* --- callbacks of one request -------------------------------------------- */

/* "bytes 100-199/200" (RFC 9110 14.4) */
static bool range_continues(const char *content_range, uint64_t have, uint64_t *ret_total)
{
	uint64_t first, last;

	*ret_total = 0;
	return sscanf(content_range, "bytes %" SCNu64 "-%" SCNu64 "/%" SCNu64, &first, &last,
		      ret_total) >= 2 &&
	       first == have;
}

static int on_begin(void *arg, long status, const struct http_headers *h, uint64_t len,
		    struct error *err)
{
	struct fetch *f = arg;
	const char *validator =
		h->etag[0] && strncmp(h->etag, "W/", 2) != 0 ? h->etag : h->last_modified;

	if (status == 206 && !range_continues(h->content_range, f->have, &f->total))
		return error_set(err, -EPROTO, "%s: the server answered with another range",
				 f->url);
	if (status == 200 && part_restart(f, err) < 0)
		return err->code;
	if (!f->total && len)
		f->total = f->have + len;
	f->headers = *h;
	f->answered = true;
	if (write_small(f, "data.part.etag", validator, err) < 0)
		return err->code;
	return sparse_check_space(f->part, f->total > f->have ? f->total - f->have : 0, err);
}

static int on_data(void *arg, const void *data, size_t len, struct error *err)
{
	struct fetch *f = arg;
	const char *p = data;

	if (f->hash)
		digest_update(f->hash, data, len);
	while (len) {
		ssize_t n = pwrite(f->part_fd, p, len, (off_t)f->have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return sparse_write_error(err, -errno, f->part,
						  f->total > f->have ? f->total - f->have : 0);
		p += n;
		len -= (size_t)n;
		f->have += (uint64_t)n;
	}
	progress_update(f->progress, f->what, f->have, f->total);
	return 0;
}

static int on_tick(void *arg, struct error *err)
{
	return interrupt_check(err);
}

/* --- one URL to data ------------------------------------------------------ */

static int pause_ms(unsigned ms, struct error *err)
{
	uint64_t deadline = clock_mono_ms() + ms, now;

	while ((now = clock_mono_ms()) < deadline) {
		if (interrupt_check(err) < 0)
			return err->code;
		poll(NULL, 0, (int)MIN(deadline - now, (uint64_t)LOCK_LOOK_MS));
	}
	return interrupt_check(err);
}

/* data.part is whole: check, and give it its name. The old digest files go
 * first, so that a crash leaves data that will be hashed again, never data with
 * somebody else's digest. */
static int finish(struct fetch *f, struct error *err)
{
	char got[DIGEST_TEXT_SIZE];

	if (f->hash && !streq(digest_final(f->hash, got), f->digest))
		return error_set(err, -EBADMSG, "%s: digest mismatch: expected %s, got %s", f->url,
				 f->digest, got);
	if (fsync(f->part_fd) < 0)
		return sparse_write_error(err, -errno, f->part, 0);
	part_close(f);
	forget_digests(f);
	if (rename(f->part, f->data) < 0)
		return error_sys(err, -errno, "rename %s", f->data);
	unlink(f->part_etag);
	if (write_small(f, "time", f->headers.last_modified, err) < 0 ||
	    write_small(f, "etag", f->headers.etag, err) < 0 ||
	    write_small(f, "type", f->headers.content_type, err) < 0)
		return err->code;
	if (f->digest) {
		scoped_free char *name = digest_file_name(f->digest);

		return write_small(f, name, f->digest, err);
	}
	return path_sync_dir(f->dir, err);
}

static enum http_failure request(struct fetch *f, bool conditional, struct http_result *res,
				 struct error *err)
{
	scoped_free char *validator = read_small(f, "data.part.etag");
	scoped_free char *etag = conditional ? read_small(f, "etag") : NULL;
	scoped_free char *time = conditional ? read_small(f, "time") : NULL;
	const struct http_get req = {
		.url = f->url,
		.resume_from = f->have,
		.if_range = validator,
		.if_none_match = etag,
		.if_modified_since = etag ? NULL : time, /* RFC 9110 13.1.3: one of them */
		.begin = on_begin,
		.data = on_data,
		.tick = on_tick,
		.arg = f,
	};

	return http_get(&req, res, err);
}

/* What came cannot be continued or is not what it should be: all of it again,
 * but only once. */
static int start_over(struct fetch *f, bool *done_before, struct error *err)
{
	if (*done_before)
		return err->code;
	*done_before = true;
	unlink(f->part_etag);
	return part_restart(f, err);
}

/* 0 when another attempt makes sense, after the pause before it. */
static int prepare_retry(struct fetch *f, enum http_failure failure, bool moved, unsigned *attempt,
			 struct error *err)
{
	bool was_there = failure == HTTP_OFFLINE && f->answered;

	if (failure != HTTP_TRANSIENT && !was_there)
		return err->code;
	if (moved)
		*attempt = 0; /* it gets on; nobody counts the stumbles */
	if (++*attempt >= ATTEMPTS)
		return error_wrap(err, "given up after %d attempts", ATTEMPTS);
	progress_note(f->progress, "%s; trying again", err->msg);
	return pause_ms(FIRST_PAUSE_MS << (*attempt - 1), err);
}

/* Whether data.part may hold something that the server's present file does not
 * continue: a digest that fails after a resume, a range that is not there (416)
 * or not the one asked for. */
static bool part_is_suspect(uint64_t had, const struct http_result *res, const struct error *err)
{
	return had > 0 && (res->status == 416 ||
			   (res->status == 206 && (err->code == -EBADMSG || err->code == -EPROTO)));
}

static bool is_no_space(int code)
{
	return code == -ENOSPC || code == -EDQUOT || code == -EFBIG;
}

/* GET until whole. @conditional: 304 is an answer too, told by @ret_unchanged. */
static int fetch_data(struct fetch *f, bool conditional, bool *ret_unchanged, struct error *err)
{
	bool started_over = false;
	unsigned attempt = 0;

	if (part_open(f, err) < 0)
		return err->code;
	for (;;) {
		struct http_result res = { 0 };
		uint64_t had;

		/* nothing could tell if the rest were of another version */
		if (!f->digest && !path_exists(f->part_etag) && part_restart(f, err) < 0)
			return err->code;
		had = f->have;
		/* a part of a newer version: there is nothing to ask about the old one */
		bool ask = conditional && had == 0;
		enum http_failure failure = request(f, ask, &res, err);
		int rc = failure == HTTP_OK ? 0 : err->code;

		*ret_unchanged = rc == 0 && ask && res.status == 304;
		if (*ret_unchanged)
			return 0;
		if (rc == 0 && !res.began)
			return error_set(err, -EPROTO, "%s: HTTP status %ld without a body", f->url,
					 res.status);
		if (rc == 0)
			rc = finish(f, err);
		if (rc == 0)
			return 0;
		if (part_is_suspect(had, &res, err)) {
			if (start_over(f, &started_over, err) < 0)
				return err->code;
			continue;
		}
		if (is_no_space(rc) || rc == -EBADMSG) {
			part_remove(f);
			return rc;
		}
		if (prepare_retry(f, failure, f->have > had, &attempt, err) < 0)
			return err->code;
	}
}

/* --- the cache -------------------------------------------------------------- */

static int open_entry(struct fetch *f, struct error *err)
{
	if (path_mkdir_all(f->dir, 0700, err) < 0)
		return err->code;
	f->lock_fd = open(f->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f->lock_fd < 0)
		return error_sys(err, -errno, "open %s", f->dir);
	return 0;
}

static int wait_for_entry(struct fetch *f, struct error *err)
{
	bool told = false;

	while (flock(f->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return error_sys(err, -errno, "lock %s", f->dir);
		if (!told)
			progress_note(f->progress, "waiting for another download of %s", f->url);
		told = true;
		if (pause_ms(LOCK_LOOK_MS, err) < 0)
			return err->code;
	}
	return 0;
}

/* Between our opening it and having it, the entry may have been pruned. */
static bool is_removed(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && st.st_nlink == 0;
}

static int lock_entry(struct fetch *f, struct error *err)
{
	for (;;) {
		if (open_entry(f, err) < 0 || wait_for_entry(f, err) < 0)
			return err->code;
		if (!is_removed(f->lock_fd))
			return 0;
		close(f->lock_fd);
		f->lock_fd = -1;
	}
}

/* 1: the cached data is what @digest wants, 0: it is not. */
static int cached_fits_digest(struct fetch *f, struct error *err)
{
	scoped_free char *name = digest_file_name(f->digest);
	scoped_free char *known = read_small(f, name);
	int rc;

	if (known && streq(known, f->digest))
		return 1;
	rc = digest_verify_file(f->data, f->digest, "checking the cached copy", f->progress, err);
	if (rc == -EBADMSG) {
		progress_note(f->progress, "the cached copy of %s is another one, fetching again",
			      f->url);
		return 0;
	}
	if (rc < 0)
		return rc;
	return write_small(f, name, f->digest, err) < 0 ? err->code : 1;
}

static int fetch_without_digest(struct fetch *f, struct download *ret, struct error *err)
{
	bool cached = path_exists(f->data), unchanged = false;
	int rc = fetch_data(f, cached, &unchanged, err);

	if (rc < 0 && cached && rc != -ECANCELED && !is_no_space(rc)) {
		progress_note(f->progress,
			      "cannot check for a newer one (%s), using the cached copy", err->msg);
		unchanged = true;
		rc = 0;
	}
	ret->cached = unchanged;
	return rc;
}

static int fetch_locked(struct fetch *f, struct download *ret, struct error *err)
{
	bool unchanged;

	if (write_small(f, "url", f->url, err) < 0)
		return err->code;
	if (!f->digest)
		return fetch_without_digest(f, ret, err);
	if (path_exists(f->data)) {
		int rc = cached_fits_digest(f, err);

		ret->cached = rc == 1;
		if (rc != 0)
			return rc < 0 ? rc : 0;
	}
	return fetch_data(f, false, &unchanged, err);
}

int download_fetch(const char *url, const char *digest, const char *what,
		   const struct progress *progress, struct download *ret, struct error *err)
{
	struct fetch f = {
		.url = url,
		.digest = digest,
		.what = what,
		.progress = progress,
		.lock_fd = -1,
		.part_fd = -1,
	};
	struct download got = { 0 };
	int rc;

	assert(download_is_url(url));
	if (digest && digest_check_text(digest, err) < 0)
		return error_wrap(err, "%s", url);
	if (download_entry_dir(url, &f.dir, err) < 0)
		return err->code;
	f.data = xasprintf("%s/data", f.dir);
	f.part = xasprintf("%s/data.part", f.dir);
	f.part_etag = xasprintf("%s/data.part.etag", f.dir);
	rc = lock_entry(&f, err);
	if (rc == 0)
		rc = fetch_locked(&f, &got, err);
	if (rc == 0) {
		got.path = steal_ptr(&f.data);
		*ret = got;
	}
	if (f.part_fd >= 0 && f.have == 0)
		part_remove(&f);
	part_close(&f);
	if (f.lock_fd >= 0)
		close(f.lock_fd);
	digest_free(f.hash);
	free(f.dir);
	free(f.data);
	free(f.part);
	free(f.part_etag);
	return rc;
}
