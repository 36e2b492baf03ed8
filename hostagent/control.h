/* control.h - ha.sock: the host agent answers questions
 *
 * HTTP/1.1 on a unix socket of mode 0600 in a directory of mode 0700; who may
 * connect is our user, and still a client that stalls, floods or talks nonsense
 * costs nothing but its own connection.
 *
 *	GET /v1/info		what this instance is and where
 *	GET /v1/ports		the forwards, one object each; POST, DELETE change rules
 *	GET /v1/events		the lines of ha.stdout.log from now on, as a stream
 *	GET /v1/snapshots	the snapshots; POST, DELETE make and drop one
 *
 * docs/api.md has them all. Paths are a table of the caller's; this file knows
 * sockets, events.h and http.h only.
 */
#pragma once

#include <jansson.h>

#include "hostagent/events.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

struct control;

/* One line of a stream. False: the client has not read what it got, the line was
 * not taken. */
typedef bool (*control_line_fn)(void *to, const char *line);

struct control_stream {
	/* Lines from now on; a first one may come inside. Returns an id, not 0. */
	unsigned (*subscribe)(void *arg, control_line_fn fn, void *to);
	void (*unsubscribe)(void *arg, unsigned id);
};

/* A change: the HTTP status of the answer, which is *@ret below 400 and the text
 * of @err otherwise. @body is borrowed and may be any JSON. */
typedef int (*control_change_fn)(void *arg, const json_t *body, json_t **ret, struct error *err);

/* What takes its time: control_answer() comes later, once, also when the client did
 * not wait for it. @body: NULL of a GET. */
struct control_reply;
typedef void (*control_task_fn)(void *arg, const json_t *body, struct control_reply *reply);

struct control_path {
	const char *path;
	json_t *(*get)(void *arg);	/* the caller's answer; NULL, and no task: a stream */
	const struct control_stream *stream;	/* NULL: the events */
	control_change_fn post, del;	/* NULL: 405 */
	struct {
		control_task_fn get, post, del;
	} tasks;			/* in place of the functions above */
};

struct control_options {
	const char *socket;		/* a stale one is removed */
	struct events *events;
	const struct control_path *paths;
	size_t n_paths;
	void *arg;			/* for the functions of paths */
	unsigned idle_timeout_ms;	/* for a request to be complete; 0: 10 s */
	unsigned stall_timeout_ms;	/* for a stream's reader to read; 0: 30 s */
};

/* The caller makes sure that no other host agent owns the socket. */
int control_new(struct loop *loop, const struct control_options *opts, struct control **ret,
		struct error *err);
/* @answer, which is taken, or with a status of 400 or more the text of @err. Frees. */
void control_answer(struct control_reply *reply, int status, json_t *answer,
		    const struct error *err);
/* Hangs up on everybody and removes the socket; what is queued for them (the
 * last event) is tried once more. @closed may be NULL. */
void control_close(struct control *c, void (*closed)(void *arg), void *arg);
