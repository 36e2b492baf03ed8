#include "drivers/qemu/qmp.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/buf.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum qmp_state {
	QMP_GREETING,		/* waiting for QEMU's first line */
	QMP_NEGOTIATING,	/* qmp_capabilities sent */
	QMP_READY,
	QMP_BROKEN,		/* lost, closed() was or is being told; calls fail */
};

struct qmp_pending {
	uint64_t id;
	char command[48];
	unsigned timeout_ms;
	uint64_t deadline_ms;	/* uv_now() time */
	int failed;		/* not sent, with this code: told at the next turn */
	qmp_reply_fn fn;
	void *arg;
	struct qmp_pending *next;
};

struct qmp {			/* owner: the driver. refs: open handles + writes in flight */
	struct loop *loop;
	uv_pipe_t pipe;
	uv_timer_t timer;	/* the earliest deadline */
	unsigned refs;
	bool closing;
	enum qmp_state state;
	struct qmp_callbacks cb;
	struct qemu_version version;
	uint64_t greet_deadline_ms;
	uint64_t last_id;
	struct qmp_pending *pending;	/* in the order of sending */
	unsigned n_pending;
	struct buf in;			/* an unfinished line */
	char chunk[16384];		/* what libuv reads into */
};

struct qmp_write {
	uv_write_t req;
	struct qmp *qmp;
	char *line;
};

static void qmp_unref(struct qmp *q)
{
	if (--q->refs > 0)
		return;
	buf_done(&q->in);
	free(q);
}

static void on_handle_closed(uv_handle_t *h)
{
	qmp_unref(h->data);
}

/* --- pending calls and deadlines ---------------------------------------- */

static void on_timer(uv_timer_t *timer);

static void arm_timer(struct qmp *q)
{
	uint64_t now = uv_now(&q->loop->uv), next = UINT64_MAX;

	if (q->closing)
		return;
	if (q->state == QMP_GREETING || q->state == QMP_NEGOTIATING)
		next = q->greet_deadline_ms;
	for (struct qmp_pending *p = q->pending; p; p = p->next)
		next = MIN(next, p->failed ? now : p->deadline_ms);
	if (next == UINT64_MAX)
		uv_timer_stop(&q->timer);
	else
		uv_timer_start(&q->timer, on_timer, next > now ? next - now : 0, 0);
}

static void complete(struct qmp *q, struct qmp_pending *p, json_t *ret, const struct error *err)
{
	struct error none = ERROR_NONE;

	if (p->fn)
		p->fn(p->arg, ret, err ? err : &none);
	else if (err && err->code != -ECANCELED)
		log_debug("qmp: %s", err->msg);
	free(p);
}

static struct qmp_pending *unlink_pending(struct qmp *q, struct qmp_pending **at)
{
	struct qmp_pending *p = *at;

	*at = p->next;
	q->n_pending--;
	return p;
}

/* All of them get @code; @why: in words. */
static void fail_all(struct qmp *q, int code, const char *why)
{
	while (q->pending) {
		struct qmp_pending *p = unlink_pending(q, &q->pending);
		struct error err = ERROR_NONE;

		error_set(&err, code, "qmp `%s`: %s", p->command, why);
		complete(q, p, NULL, &err);
	}
}

static void broken(struct qmp *q, int code, const char *why)
{
	struct error err = ERROR_NONE;

	if (q->closing || q->state == QMP_BROKEN)
		return;
	q->state = QMP_BROKEN;
	uv_read_stop((uv_stream_t *)&q->pipe);
	buf_reset(&q->in);
	q->refs++;	/* callbacks may close us */
	fail_all(q, -ECONNRESET, why);
	if (!q->closing) {
		arm_timer(q);
		error_set(&err, code, "qmp: %s", why);
		q->cb.closed(q->cb.arg, &err);
	}
	qmp_unref(q);
}

static struct qmp_pending **find_due(struct qmp *q, uint64_t now)
{
	for (struct qmp_pending **at = &q->pending; *at; at = &(*at)->next)
		if ((*at)->failed || (*at)->deadline_ms <= now)
			return at;
	return NULL;
}

static void on_timer(uv_timer_t *timer)
{
	struct qmp *q = timer->data;
	uint64_t now = uv_now(&q->loop->uv);
	struct qmp_pending **at;

	if (q->closing)
		return;
	if (q->state < QMP_READY && q->greet_deadline_ms <= now) {
		broken(q, -ETIMEDOUT, "QEMU does not answer");
		return;
	}
	q->refs++;
	while (!q->closing && (at = find_due(q, now))) {
		struct qmp_pending *p = unlink_pending(q, at);
		struct error err = ERROR_NONE;

		if (p->failed)
			error_sys(&err, p->failed, "qmp `%s`", p->command);
		else
			error_set(&err, -ETIMEDOUT, "qmp: no reply to `%s` in %u ms", p->command,
				  p->timeout_ms);
		complete(q, p, NULL, &err);
	}
	arm_timer(q);
	qmp_unref(q);
}

/* --- sending --------------------------------------------------------------- */

static void on_written(uv_write_t *req, int status)
{
	struct qmp_write *w = container_of(req, struct qmp_write, req);
	struct qmp *q = w->qmp;

	free(w->line);
	free(w);
	if (status < 0 && status != UV_ECANCELED)
		broken(q, status, error_text(status));
	qmp_unref(q);
}

static int send_json(struct qmp *q, json_t *msg)
{
	struct qmp_write *w = xnew(struct qmp_write);
	scoped_free char *text = json_dumps(msg, JSON_COMPACT);
	uv_buf_t b;
	int rc;

	assert(text);
	w->line = xasprintf("%s\n", text);
	w->qmp = q;
	b = uv_buf_init(w->line, (unsigned)strlen(w->line));
	rc = uv_write(&w->req, (uv_stream_t *)&q->pipe, &b, 1, on_written);
	if (rc < 0) {
		free(w->line);
		free(w);
		return rc;
	}
	q->refs++;
	return 0;
}

static int send_command(struct qmp *q, const char *command, json_t *args, uint64_t id)
{
	json_t *msg = json_pack("{s:s, s:I}", "execute", command, "id", (json_int_t)id);
	int rc;

	assert(msg);
	if (args)
		json_object_set(msg, "arguments", args);
	log_trace("qmp: send `%s` (%ju)", command, (uintmax_t)id);
	rc = send_json(q, msg);
	json_decref(msg);
	return rc;
}

void qmp_call(struct qmp *q, const char *command, json_t *args, unsigned timeout_ms,
	      qmp_reply_fn fn, void *arg)
{
	struct qmp_pending *p = xnew(struct qmp_pending), **at;

	assert(!q->closing);
	p->id = ++q->last_id;
	snprintf(p->command, sizeof(p->command), "%s", command);
	p->timeout_ms = timeout_ms;
	p->deadline_ms = uv_now(&q->loop->uv) + timeout_ms;
	p->fn = fn;
	p->arg = arg;
	if (q->state != QMP_READY)
		p->failed = -ENOTCONN;
	else if (q->n_pending >= QMP_PENDING_MAX)
		p->failed = -EBUSY;
	else
		p->failed = send_command(q, command, args, p->id);
	json_decref(args);
	for (at = &q->pending; *at; at = &(*at)->next)
		;
	*at = p;
	q->n_pending++;
	arm_timer(q);
}

/* --- receiving -------------------------------------------------------------- */

static void on_capabilities(struct qmp *q, json_t *msg)
{
	if (!json_object_get(msg, "return")) {
		broken(q, -EPROTO, "QEMU refused qmp_capabilities");
		return;
	}
	q->state = QMP_READY;
	arm_timer(q);
	q->cb.ready(q->cb.arg, &q->version);
}

static void on_greeting(struct qmp *q, json_t *msg)
{
	int major, minor, micro, rc;

	if (json_unpack(msg, "{s:{s:{s:{s:i, s:i, s:i}}}}", "QMP", "version", "qemu", "major",
			&major, "minor", &minor, "micro", &micro) < 0 ||
	    major < 0 || minor < 0 || micro < 0) {
		broken(q, -EPROTO, "the first line is not QEMU's greeting");
		return;
	}
	q->version = (struct qemu_version){ (unsigned)major, (unsigned)minor, (unsigned)micro };
	q->state = QMP_NEGOTIATING;
	rc = send_command(q, "qmp_capabilities", NULL, 0);
	if (rc < 0)
		broken(q, rc, error_text(rc));
}

static void on_reply(struct qmp *q, json_t *msg)
{
	json_t *id = json_object_get(msg, "id"), *error = json_object_get(msg, "error");
	struct qmp_pending **at = &q->pending;
	struct qmp_pending *p;
	struct error err = ERROR_NONE;

	while (*at && (!json_is_integer(id) || (*at)->failed ||
		       (*at)->id != (uint64_t)json_integer_value(id)))
		at = &(*at)->next;
	if (!*at) {
		log_debug("qmp: a reply nobody waits for (any more), ignoring");
		return;
	}
	p = unlink_pending(q, at);
	arm_timer(q);
	if (error) {
		const char *desc = json_string_value(json_object_get(error, "desc"));

		error_set(&err, -EREMOTEIO, "qmp `%s`: %s", p->command, desc ? desc : "failed");
		complete(q, p, NULL, &err);
		return;
	}
	complete(q, p, json_object_get(msg, "return"), NULL);
}

static void on_message(struct qmp *q, json_t *msg)
{
	const char *event = json_string_value(json_object_get(msg, "event"));

	if (q->state == QMP_GREETING)
		on_greeting(q, msg);
	else if (event && q->cb.event)
		q->cb.event(q->cb.arg, event, json_object_get(msg, "data"));
	else if (event)
		return;
	else if (!json_object_get(msg, "return") && !json_object_get(msg, "error"))
		broken(q, -EPROTO, "a message that is neither reply nor event");
	else if (q->state == QMP_NEGOTIATING)
		on_capabilities(q, msg);
	else
		on_reply(q, msg);
}

static void on_line(struct qmp *q, const char *line, size_t len)
{
	json_error_t jerr;
	json_t *msg = json_loadb(line, len, 0, &jerr);

	if (!json_is_object(msg)) {
		broken(q, -EPROTO, "a line that is no JSON object");
		json_decref(msg);
		return;
	}
	on_message(q, msg);
	json_decref(msg);
}

/* Hands out whole lines. They are consumed in one go at the end, or when one of
 * them ends the connection. */
static void take_lines(struct qmp *q)
{
	size_t done = 0;

	while (!q->closing && q->state != QMP_BROKEN) {
		const char *start = (const char *)q->in.data + done;
		const char *nl = q->in.len > done ? memchr(start, '\n', q->in.len - done) : NULL;
		size_t len;

		if (!nl)
			break;
		len = (size_t)(nl - start);
		done += len + 1;
		while (len && (start[len - 1] == '\r' || start[len - 1] == ' '))
			len--;
		if (len)
			on_line(q, start, len);
	}
	if (q->state != QMP_BROKEN)
		buf_consume(&q->in, done);
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *ret)
{
	struct qmp *q = h->data;

	*ret = uv_buf_init(q->chunk, sizeof(q->chunk));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *b)
{
	struct qmp *q = stream->data;

	if (q->closing || n == 0)
		return;
	if (n < 0) {
		broken(q, (int)n, n == UV_EOF ? "QEMU closed the connection" : error_text((int)n));
		return;
	}
	buf_add(&q->in, b->base, (size_t)n);
	q->refs++;	/* callbacks may close us */
	take_lines(q);
	if (!q->closing && q->in.len > QMP_LINE_MAX_BYTES)
		broken(q, -EMSGSIZE, "a line of more than a MiB");
	qmp_unref(q);
}

/* --- life -------------------------------------------------------------------- */

int qmp_open(struct loop *loop, int fd, unsigned timeout_ms, const struct qmp_callbacks *cb,
	     struct qmp **ret, struct error *err)
{
	struct qmp *q = xnew(struct qmp);
	int rc;

	q->loop = loop;
	q->cb = *cb;
	uv_update_time(&loop->uv);
	q->greet_deadline_ms = uv_now(&loop->uv) + timeout_ms;
	rc = uv_timer_init(&loop->uv, &q->timer);
	assert(rc == 0);
	q->timer.data = q;
	rc = uv_pipe_init(&loop->uv, &q->pipe, 0);
	assert(rc == 0);
	q->pipe.data = q;
	q->refs = 2;
	rc = uv_pipe_open(&q->pipe, fd);
	if (rc < 0)
		close(fd);
	else
		rc = uv_read_start((uv_stream_t *)&q->pipe, on_alloc, on_read);
	if (rc < 0) {
		qmp_close(q);
		return error_sys(err, rc, "qmp: socket");
	}
	arm_timer(q);
	*ret = q;
	return 0;
}

void qmp_close(struct qmp *q)
{
	assert(!q->closing);
	q->closing = true;
	fail_all(q, -ECANCELED, "closed");
	uv_close((uv_handle_t *)&q->timer, on_handle_closed);
	uv_close((uv_handle_t *)&q->pipe, on_handle_closed);
}
