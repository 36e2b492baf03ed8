/* qmp.h - the control channel to a running QEMU
 *
 * QMP is lines of JSON on a socket (QEMU docs/interop/qmp-spec): QEMU greets,
 * we answer qmp_capabilities, then commands carry an id which the reply
 * repeats, and events come in between. One client lives as long as the
 * connection; commands may overlap, each has a deadline.
 *
 * QEMU is not trusted much more than the guest inside it: a line is bounded
 * before it is kept, and anything that is not QMP ends the connection.
 *
 * The process ignores SIGPIPE: libuv writes with write(2), and QEMU may die.
 *
 *   qmp_open → ready() → any number of qmp_call() → closed() or qmp_close()
 *
 * A reply callback runs exactly once, on the loop, never before qmp_call()
 * returned. When the connection is lost the pending ones get -ECONNRESET, then
 * closed() runs. qmp_close() gives the pending ones -ECANCELED before it
 * returns; after that nothing is called any more, so whoever owns the client
 * may free what the callbacks point at.
 */
#pragma once

#include <jansson.h>

#include "drivers/qemu/version.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

enum {
	QMP_LINE_MAX_BYTES = 1 << 20,	/* replies we ask for are a few KiB */
	QMP_PENDING_MAX = 64,		/* calls in flight; ours are two or three */
};

struct qmp;

struct qmp_callbacks {
	/* Greeting and capabilities are done; calls are welcome. Once. */
	void (*ready)(void *arg, const struct qemu_version *version);
	/* @data: the event's object, borrowed; NULL when it has none. */
	void (*event)(void *arg, const char *name, json_t *data);
	/* The connection is of no more use: QEMU closed it, broke the protocol,
	 * or did not greet in time. Once; not after qmp_close(), which is still
	 * the caller's to call. */
	void (*closed)(void *arg, const struct error *why);
	void *arg;
};

/* @ret: the reply's object, borrowed, NULL when @err->code != 0. An error that
 * QEMU itself reported is -EREMOTEIO with its text. */
typedef void (*qmp_reply_fn)(void *arg, json_t *ret, const struct error *err);

/* Takes the connected socket @fd, on failure too. @timeout_ms: for greeting and
 * capabilities together. */
int qmp_open(struct loop *loop, int fd, unsigned timeout_ms, const struct qmp_callbacks *cb,
	     struct qmp **ret, struct error *err);

/* @args: reference is taken, NULL: none. @fn may be NULL. Fine before ready():
 * then it fails with -ENOTCONN, by callback like every failure. */
void qmp_call(struct qmp *q, const char *command, json_t *args, unsigned timeout_ms,
	      qmp_reply_fn fn, void *arg);

/* Twice is not fine; inside its own callbacks is. */
void qmp_close(struct qmp *q);
