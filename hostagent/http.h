/* http.h - the little of HTTP/1.1 that ha.sock speaks (RFC 9112)
 *
 * Pure: bytes in, a request or a refusal out, and text of responses. A head is
 * at most 8 KiB; a body has a Content-Length of at most 64 KiB, no chunks.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "lib/base/buf.h"

enum { HTTP_HEAD_MAX_BYTES = 8192, HTTP_BODY_MAX_BYTES = 65536 };

struct http_request {
	char method[16];
	char path[256];		/* without the query; as sent, starts with "/" */
	bool keep_alive;	/* HTTP/1.1 and no "Connection: close" */
	bool is_http10;		/* knows no chunks */
	size_t body_len;	/* what follows the head */
	bool expects_continue;	/* waits for http_add_continue() before it sends that */
};

/* Looks for one request head at the start of @data.
 * > 0: its length, @ret is filled, the body is the caller's to await; 0: more bytes are needed; < 0: -status, an
 * HTTP status to answer with (400, 413, 414, 431, 501, 505), then hang up. */
int http_parse(const char *data, size_t len, struct http_request *ret);

/* A whole response. @type: Content-Type. @head_only: for HEAD. */
void http_add_response(struct buf *b, int status, const char *type, const char *body, size_t len,
		       bool keep_alive, bool head_only);
/* The shape of every error: {"error": @text, "message": @text}; the second is
 * Lima's name for it. @allow: with 405, the methods there are; NULL otherwise. */
void http_add_error(struct buf *b, int status, const char *allow, const char *text, bool keep_alive);
void http_add_continue(struct buf *b);
/* The head of a stream of unknown length, and one piece of it. */
void http_add_stream_head(struct buf *b, const char *type, bool chunked);
void http_add_stream_piece(struct buf *b, const char *data, size_t len, bool chunked);

const char *http_status_text(int status);
