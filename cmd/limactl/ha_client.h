/* ha_client.h - a question to the host agent of an instance, or a stream from it
 *
 * HTTP/1.0 on ha.sock (docs/api.md): one connection a question, the answer ends
 * with it, nothing is chunked. Every wait has a deadline and ends with Ctrl-C.
 */
#pragma once

#include <jansson.h>
#include <stdint.h>

#include "lib/base/buf.h"
#include "lib/base/error.h"

/* @method: "GET", "POST", "DELETE". @body: NULL for none. An answer of 400 or
 * more is an error with the host agent's own text: -ENOENT for 404, -EEXIST for
 * 409, -EAGAIN for 503, else -EINVAL. -ECONNREFUSED or -ENOENT with "connect" in
 * the text: nobody listens. */
int ha_client_call(const char *socket, const char *method, const char *path, const json_t *body,
		   json_t **ret, struct error *err);

/* As above, for what takes longer than an answer should: at most @ms. */
int ha_client_call_for(const char *socket, const char *method, const char *path,
		       const json_t *body, uint64_t ms, json_t **ret, struct error *err);

struct ha_stream {
	int fd;			/* to poll for reading; -1: not open */
	struct buf in;
};
int ha_stream_open(const char *socket, const char *path, struct ha_stream *ret, struct error *err);
void ha_stream_close(struct ha_stream *s);
#define scoped_ha_stream __attribute__((cleanup(ha_stream_close)))
/* Takes what has come, without waiting. 1: a line is in *ret, without its end,
 * caller frees; 0: none is complete; -EPIPE: the host agent hung up. */
int ha_stream_next(struct ha_stream *s, char **ret, struct error *err);
