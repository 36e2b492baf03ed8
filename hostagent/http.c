#include "hostagent/http.h"

#include <ctype.h>
#include <jansson.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

static const struct {
	int status;
	const char *text;
} statuses[] = {
	{ 200, "OK" },
	{ 201, "Created" },
	{ 400, "Bad Request" },
	{ 403, "Forbidden" },
	{ 404, "Not Found" },
	{ 405, "Method Not Allowed" },
	{ 408, "Request Timeout" },
	{ 409, "Conflict" },
	{ 411, "Length Required" },
	{ 413, "Content Too Large" },
	{ 414, "URI Too Long" },
	{ 417, "Expectation Failed" },
	{ 422, "Unprocessable Content" },
	{ 431, "Request Header Fields Too Large" },
	{ 501, "Not Implemented" },
	{ 503, "Service Unavailable" },
	{ 505, "HTTP Version Not Supported" },
	{ 507, "Insufficient Storage" },
};

const char *http_status_text(int status)
{
	for (size_t i = 0; i < ARRAY_SIZE(statuses); i++)
		if (statuses[i].status == status)
			return statuses[i].text;
	return "Error";
}

/* --- requests ------------------------------------------------------------ */

static bool is_token(const char *s, size_t len)	/* RFC 9110 5.6.2 */
{
	if (len == 0)
		return false;
	for (size_t i = 0; i < len; i++)
		if (!isalnum((unsigned char)s[i]) && !strchr("!#$%&'*+-.^_`|~", s[i]))
			return false;
	return true;
}

/* "GET /v1/info?x=y HTTP/1.1" without the line end. 0 or -status. */
static int parse_request_line(const char *line, size_t len, struct http_request *r)
{
	const char *target = memchr(line, ' ', len), *version, *query;
	size_t n;

	if (!target)
		return -400;
	n = (size_t)(target - line);
	if (n >= sizeof(r->method))
		return -501;
	if (!is_token(line, n))
		return -400;
	memcpy(r->method, line, n);
	r->method[n] = 0;
	target++;
	version = memchr(target, ' ', len - (size_t)(target - line));
	if (!version || *target != '/')
		return -400;
	query = memchr(target, '?', (size_t)(version - target));
	n = (size_t)((query ? query : version) - target);
	if (n >= sizeof(r->path))
		return -414;
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)target[i] <= ' ' || target[i] == 0x7f)
			return -400;
	memcpy(r->path, target, n);
	r->path[n] = 0;
	version++;
	n = len - (size_t)(version - line);
	if (n != strlen("HTTP/1.1") || strncmp(version, "HTTP/", 5) != 0)
		return -400;
	if (strncmp(version + 5, "1.1", 3) != 0 && strncmp(version + 5, "1.0", 3) != 0)
		return -505;
	r->is_http10 = version[7] == '0';
	r->keep_alive = !r->is_http10;
	return 0;
}

static bool value_is(const char *value, size_t len, const char *word)
{
	return len == strlen(word) && strncasecmp(value, word, len) == 0;
}

/* RFC 9112 6.3: two that disagree are an attack on whoever stands in between. */
static int parse_body_len(const char *value, size_t len, struct http_request *r, bool *seen)
{
	size_t n = 0;

	if (!len)
		return -400;
	for (size_t i = 0; i < len; i++) {
		if (!isdigit((unsigned char)value[i]))
			return -400;
		n = n * 10 + (size_t)(value[i] - '0');
		if (n > HTTP_BODY_MAX_BYTES)
			return -413;
	}
	if (*seen && n != r->body_len)
		return -400;
	*seen = true;
	r->body_len = n;
	return 0;
}

/* "Name: value". 0 or -status. */
static int parse_field(const char *line, size_t len, struct http_request *r, bool *has_len)
{
	const char *colon = memchr(line, ':', len), *value;
	size_t name_len, value_len;

	if (!colon)
		return -400;
	name_len = (size_t)(colon - line);
	if (!is_token(line, name_len))	/* also: no space before the colon, no folding */
		return -400;
	value = colon + 1;
	value_len = len - name_len - 1;
	while (value_len && (*value == ' ' || *value == '\t'))
		value++, value_len--;
	while (value_len && (value[value_len - 1] == ' ' || value[value_len - 1] == '\t'))
		value_len--;
	for (size_t i = 0; i < value_len; i++)
		if ((unsigned char)value[i] < ' ' && value[i] != '\t')
			return -400;
	if (value_is(line, name_len, "connection") && value_is(value, value_len, "close"))
		r->keep_alive = false;
	if (value_is(line, name_len, "transfer-encoding"))
		return -501;
	if (value_is(line, name_len, "content-length"))
		return parse_body_len(value, value_len, r, has_len);
	if (value_is(line, name_len, "expect") && !r->is_http10) {
		if (!value_is(value, value_len, "100-continue"))
			return -417;
		r->expects_continue = true;
	}
	return 0;
}

int http_parse(const char *data, size_t len, struct http_request *ret)
{
	struct http_request r = { .keep_alive = true };
	const char *end = memmem(data, MIN(len, (size_t)HTTP_HEAD_MAX_BYTES), "\r\n\r\n", 4);
	const char *line = data, *stop;
	bool has_len = false;
	int rc;

	/* Not our protocol (TLS, a stray key): say so before 8 KiB of it came. */
	if (len && !isupper((unsigned char)data[0]))
		return -400;
	if (!end)
		return len >= HTTP_HEAD_MAX_BYTES ? -431 : 0;
	stop = memmem(line, (size_t)(end - line) + 2, "\r\n", 2);
	rc = parse_request_line(line, (size_t)(stop - line), &r);
	while (rc == 0 && stop < end) {
		line = stop + 2;
		stop = memmem(line, (size_t)(end - line) + 2, "\r\n", 2);
		rc = parse_field(line, (size_t)(stop - line), &r, &has_len);
	}
	if (rc < 0)
		return rc;
	*ret = r;
	return (int)(end - data) + 4;
}

/* --- responses ----------------------------------------------------------- */

static void add_status(struct buf *b, int status)
{
	buf_addf(b, "HTTP/1.1 %d %s\r\n", status, http_status_text(status));
}

static void add_rest(struct buf *b, const char *type, const char *body, size_t len, bool keep_alive,
		     bool head_only)
{
	buf_addf(b, "Content-Type: %s\r\nContent-Length: %zu\r\n%s\r\n", type, len,
		 keep_alive ? "" : "Connection: close\r\n");
	if (!head_only)
		buf_add(b, body, len);
}

void http_add_response(struct buf *b, int status, const char *type, const char *body, size_t len,
		       bool keep_alive, bool head_only)
{
	add_status(b, status);
	add_rest(b, type, body, len, keep_alive, head_only);
}

void http_add_error(struct buf *b, int status, const char *allow, const char *text, bool keep_alive)
{
	scoped_free char *clean = log_escape(text, 1024);
	json_t *o = json_pack("{s:s, s:s}", "error", clean, "message", clean);
	scoped_free char *body = json_dumps(o, JSON_COMPACT);

	json_decref(o);
	add_status(b, status);
	if (allow)
		buf_addf(b, "Allow: %s\r\n", allow);	/* RFC 9110 15.5.6 */
	add_rest(b, "application/json", body, strlen(body), keep_alive, false);
}

void http_add_continue(struct buf *b)
{
	buf_add_str(b, "HTTP/1.1 100 Continue\r\n\r\n");
}

void http_add_stream_head(struct buf *b, const char *type, bool chunked)
{
	buf_addf(b, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nCache-Control: no-store\r\n%s\r\n", type,
		 chunked ? "Transfer-Encoding: chunked\r\n" : "Connection: close\r\n");
}

void http_add_stream_piece(struct buf *b, const char *data, size_t len, bool chunked)
{
	if (chunked)
		buf_addf(b, "%zx\r\n", len);
	buf_add(b, data, len);
	if (chunked)
		buf_add_str(b, "\r\n");
}
