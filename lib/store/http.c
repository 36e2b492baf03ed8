#include "lib/store/http.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "lib/base/mem.h"
#include "lib/store/download.h"
#include "lib/store/shlib.h"

enum {
	LOW_SPEED_BYTES = 1024,
	LOW_SPEED_S = 30,
	MAX_REDIRECTS = 10,
};

static struct curl_api {
	__typeof__(curl_global_init) *global_init;
	__typeof__(curl_easy_init) *easy_init;
	__typeof__(curl_easy_setopt) *setopt;
	__typeof__(curl_easy_perform) *perform;
	__typeof__(curl_easy_getinfo) *getinfo;
	__typeof__(curl_easy_cleanup) *cleanup;
	__typeof__(curl_easy_strerror) *strerror;
	__typeof__(curl_slist_append) *slist_append;
	__typeof__(curl_slist_free_all) *slist_free_all;
} curl;

static const struct shlib_symbol curl_symbols[] = {
	SHLIB_SYM(struct curl_api, global_init, curl_global_init),
	SHLIB_SYM(struct curl_api, easy_init, curl_easy_init),
	SHLIB_SYM(struct curl_api, setopt, curl_easy_setopt),
	SHLIB_SYM(struct curl_api, perform, curl_easy_perform),
	SHLIB_SYM(struct curl_api, getinfo, curl_easy_getinfo),
	SHLIB_SYM(struct curl_api, cleanup, curl_easy_cleanup),
	SHLIB_SYM(struct curl_api, strerror, curl_easy_strerror),
	SHLIB_SYM(struct curl_api, slist_append, curl_slist_append),
	SHLIB_SYM(struct curl_api, slist_free_all, curl_slist_free_all),
};

/* Debian builds it against OpenSSL and against GnuTLS; either will do. */
static const char *const curl_sonames[] = { "libcurl.so.4", "libcurl-gnutls.so.4", NULL };

static struct shlib curl_lib = {
	.sonames = curl_sonames,
	.package = "libcurl4",
	.symbols = curl_symbols,
	.n_symbols = ARRAY_SIZE(curl_symbols),
	.table = &curl,
};

struct exchange {
	const struct http_get *req;
	struct http_result *result;
	struct error *err;
	CURL *easy;
	struct curl_slist *headers;
	bool stopped;
	char detail[CURL_ERROR_SIZE];
};

static void add_header(struct exchange *x, const char *name, const char *value)
{
	scoped_free char *line = xasprintf("%s: %s", name, value);

	x->headers = curl.slist_append(x->headers, line);
}

/* @line is "Name: value\r\n", not terminated. True when it was @name's. */
static bool take_header(const char *line, size_t len, const char *name, char *out, size_t cap)
{
	size_t n = strlen(name);

	if (len <= n || strncasecmp(line, name, n) != 0 || line[n] != ':')
		return false;
	line += n + 1;
	len -= n + 1;
	while (len && (*line == ' ' || *line == '\t')) {
		line++;
		len--;
	}
	while (len && (line[len - 1] == '\r' || line[len - 1] == '\n' || line[len - 1] == ' '))
		len--;
	if (len >= cap)
		len = 0; /* no server of good faith: as if it were absent */
	memcpy(out, line, len);
	out[len] = 0;
	return true;
}

static size_t on_header(char *line, size_t size, size_t n, void *arg)
{
	struct exchange *x = arg;
	struct http_headers *h = &x->result->headers;
	size_t len = size * n;

	if (len > 5 && strncmp(line, "HTTP/", 5) == 0) /* of the next hop of a redirect */
		*h = (struct http_headers){ 0 };
	if (!take_header(line, len, "Last-Modified", h->last_modified, sizeof(h->last_modified)) &&
	    !take_header(line, len, "ETag", h->etag, sizeof(h->etag)) &&
	    !take_header(line, len, "Content-Type", h->content_type, sizeof(h->content_type)))
		take_header(line, len, "Content-Range", h->content_range, sizeof(h->content_range));
	return len;
}

static int begin_body(struct exchange *x)
{
	curl_off_t len = 0;

	x->result->began = true;
	curl.getinfo(x->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &len);
	return x->req->begin(x->req->arg, x->result->status, &x->result->headers,
			     len > 0 ? (uint64_t)len : 0, x->err);
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
	struct exchange *x = arg;
	size_t len = size * n;

	curl.getinfo(x->easy, CURLINFO_RESPONSE_CODE, &x->result->status);
	if (x->result->status != 200 && x->result->status != 206)
		return len; /* the page that goes with an error */
	if ((!x->result->began && begin_body(x) < 0) ||
	    x->req->data(x->req->arg, data, len, x->err) < 0) {
		x->stopped = true;
		return 0;
	}
	return len;
}

static int on_progress(void *arg, curl_off_t dltotal, curl_off_t dlnow, curl_off_t ultotal,
		       curl_off_t ulnow)
{
	struct exchange *x = arg;

	if (x->req->tick && x->req->tick(x->req->arg, x->err) < 0)
		x->stopped = true;
	return x->stopped;
}

static void set_options(struct exchange *x)
{
	const struct http_get *req = x->req;
	CURL *e = x->easy;

	if (req->resume_from) { /* not CURLOPT_RESUME_FROM: it makes an error of a plain 200 */
		scoped_free char *range =
			xasprintf("bytes=%llu-", (unsigned long long)req->resume_from);

		add_header(x, "Range", range);
		if (req->if_range)
			add_header(x, "If-Range", req->if_range);
	}
	if (req->if_none_match)
		add_header(x, "If-None-Match", req->if_none_match);
	if (req->if_modified_since)
		add_header(x, "If-Modified-Since", req->if_modified_since);
	curl.setopt(e, CURLOPT_HTTPHEADER, x->headers);
	curl.setopt(e, CURLOPT_URL, req->url);
	curl.setopt(e, CURLOPT_USERAGENT, "lima-c/" LIMA_VERSION);
	curl.setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
	curl.setopt(e, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
	curl.setopt(e, CURLOPT_FOLLOWLOCATION, 1L);
	curl.setopt(e, CURLOPT_MAXREDIRS, (long)MAX_REDIRECTS);
	curl.setopt(e, CURLOPT_NOSIGNAL, 1L); /* SIGALRM belongs to nobody here */
	/* or closing waits for a name lookup that hangs (CURLOPT_QUICK_EXIT(3)) */
	curl.setopt(e, CURLOPT_QUICK_EXIT, 1L);
	curl.setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)DOWNLOAD_CONNECT_MS);
	curl.setopt(e, CURLOPT_LOW_SPEED_LIMIT, (long)LOW_SPEED_BYTES);
	curl.setopt(e, CURLOPT_LOW_SPEED_TIME, (long)LOW_SPEED_S);
	curl.setopt(e, CURLOPT_BUFFERSIZE, 256L << 10);
	curl.setopt(e, CURLOPT_ERRORBUFFER, x->detail);
	curl.setopt(e, CURLOPT_HEADERFUNCTION, on_header);
	curl.setopt(e, CURLOPT_HEADERDATA, x);
	curl.setopt(e, CURLOPT_WRITEFUNCTION, on_body);
	curl.setopt(e, CURLOPT_WRITEDATA, x);
	curl.setopt(e, CURLOPT_NOPROGRESS, 0L);
	curl.setopt(e, CURLOPT_XFERINFOFUNCTION, on_progress);
	curl.setopt(e, CURLOPT_XFERINFODATA, x);
}

/* A timeout before the connection was ready is a network that is not there; one
 * after it a server that fell silent. */
static bool was_connected(struct exchange *x)
{
	curl_off_t us = 0;

	return curl.getinfo(x->easy, CURLINFO_PRETRANSFER_TIME_T, &us) == CURLE_OK && us > 0;
}

static const struct {
	CURLcode code;
	enum http_failure failure;
} curl_failures[] = {
	{ CURLE_COULDNT_RESOLVE_HOST, HTTP_OFFLINE }, { CURLE_COULDNT_RESOLVE_PROXY, HTTP_OFFLINE },
	{ CURLE_COULDNT_CONNECT, HTTP_OFFLINE },      { CURLE_OPERATION_TIMEDOUT, HTTP_TRANSIENT },
	{ CURLE_PARTIAL_FILE, HTTP_TRANSIENT },       { CURLE_GOT_NOTHING, HTTP_TRANSIENT },
	{ CURLE_SEND_ERROR, HTTP_TRANSIENT },         { CURLE_RECV_ERROR, HTTP_TRANSIENT },
	{ CURLE_SSL_CONNECT_ERROR, HTTP_TRANSIENT },  { CURLE_HTTP2, HTTP_TRANSIENT },
	{ CURLE_HTTP2_STREAM, HTTP_TRANSIENT },
};

static enum http_failure judge_curl(struct exchange *x, CURLcode rc)
{
	enum http_failure failure = HTTP_FINAL;
	const char *why = x->detail[0] ? x->detail : curl.strerror(rc);

	if (x->stopped)
		return HTTP_STOPPED;
	for (size_t i = 0; i < ARRAY_SIZE(curl_failures); i++)
		if (curl_failures[i].code == rc)
			failure = curl_failures[i].failure;
	if (failure == HTTP_TRANSIENT && !was_connected(x))
		failure = HTTP_OFFLINE;
	error_set(x->err, failure == HTTP_OFFLINE ? -ENETUNREACH : -EIO, "%s: %s", x->req->url,
		  why);
	return failure;
}

static enum http_failure judge_status(struct exchange *x)
{
	long status = x->result->status;

	if (status < 400)
		return HTTP_OK;
	error_set(x->err, status == 404 || status == 410 ? -ENOENT : -EIO, "%s: HTTP status %ld",
		  x->req->url, status);
	return status == 408 || status == 429 || status >= 500 ? HTTP_TRANSIENT : HTTP_FINAL;
}

enum http_failure http_get(const struct http_get *req, struct http_result *ret, struct error *err)
{
	struct exchange x = { .req = req, .result = ret, .err = err };
	enum http_failure failure;
	CURLcode rc;

	*ret = (struct http_result){ 0 };
	if (shlib_load(&curl_lib, err) < 0)
		return HTTP_FINAL;
	curl.global_init(CURL_GLOBAL_DEFAULT); /* counted, once is enough: it stays */
	x.easy = curl.easy_init();
	if (!x.easy) {
		error_set(err, -ENOMEM, "libcurl cannot be started");
		return HTTP_FINAL;
	}
	set_options(&x);
	rc = curl.perform(x.easy);
	curl.getinfo(x.easy, CURLINFO_RESPONSE_CODE, &ret->status);
	/* 200 with an empty body: begin() has not been called yet */
	if (rc == CURLE_OK && ret->status == 200 && !ret->began && begin_body(&x) < 0) {
		x.stopped = true;
		rc = CURLE_WRITE_ERROR;
	}
	failure = rc == CURLE_OK ? judge_status(&x) : judge_curl(&x, rc);
	curl.cleanup(x.easy);
	curl.slist_free_all(x.headers);
	return failure;
}
