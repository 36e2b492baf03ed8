#include "hostagent/events.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/strv.h"

enum {
	TEXT_MAX_BYTES = 2048,	/* any text in an event; guests have a say in some */
	ERRORS_MAX = 32,	/* kept in status.errors */
	LINE_MAX_BYTES = 256 * 1024,	/* a line we are willing to parse */
	DELAY_MAX_MS = 2 * 24 * 3600 * 1000,	/* that we are willing to wait */
};

struct subscriber {
	unsigned id;
	void (*fn)(void *arg, const char *line);	/* NULL: unsubscribed */
	void *arg;
};

struct events {
	int fd;
	bool fd_is_file;	/* a write to anything else may block, see write_line */
	bool torn;		/* what it ends with is half a line: the disk was full */
	bool running, degraded, exiting;
	uint16_t ssh_port;
	struct strv errors;
	struct subscriber *subs;
	size_t n_subs;
	unsigned last_id;
	unsigned sending;	/* depth of deliver(): subs must not move */
};

static const char *const step_states[] = {
	[STEP_STARTED] = "started",
	[STEP_PROGRESS] = "progress",
	[STEP_DONE] = "done",
	[STEP_FAILED] = "failed",
};

/* reference/hostagent.md §6 */
static const char *const port_types[] = {
	[FORWARD_FORWARDING] = "forwarding",
	[FORWARD_NOT_FORWARDING] = "not-forwarding",
	[FORWARD_STOPPING] = "stopping",
	[FORWARD_FAILED] = "failed",
};

struct events *events_new(int fd)
{
	struct events *e = xnew(struct events);
	struct stat st;

	e->fd = fd;
	e->fd_is_file = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
	return e;
}

void events_free(struct events *e)
{
	if (!e)
		return;
	strv_done(&e->errors);
	free(e->subs);
	free(e);
}

/* --- writing ------------------------------------------------------------- */

static json_t *text(const char *s)
{
	scoped_free char *clean = log_escape(s ? s : "", TEXT_MAX_BYTES);

	return json_string(clean);
}

static void set_text(json_t *o, const char *key, const char *s)
{
	if (s && *s)
		json_object_set_new(o, key, text(s));
}

/* The status every event carries; false flags are left out, as Lima does. */
static json_t *status_new(const struct events *e)
{
	json_t *status = json_object();

	if (e->running)
		json_object_set_new(status, "running", json_true());
	if (e->degraded)
		json_object_set_new(status, "degraded", json_true());
	if (e->exiting)
		json_object_set_new(status, "exiting", json_true());
	if (e->errors.len) {
		json_t *list = json_array();

		for (size_t i = 0; i < e->errors.len; i++)
			json_array_append_new(list, text(e->errors.items[i]));
		json_object_set_new(status, "errors", list);
	}
	if (e->ssh_port)
		json_object_set_new(status, "sshLocalPort", json_integer(e->ssh_port));
	return status;
}

/* Takes @status; the line without its newline, caller frees. */
static char *line_of(json_t *status)
{
	char now[CLOCK_RFC3339_SIZE];
	json_t *root = json_object();
	char *line;

	json_object_set_new(root, "time", json_string(clock_rfc3339_now(now)));
	json_object_set_new(root, "status", status);
	line = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	assert(line);
	return line;
}

/* One write(), so that readers and other writers never see half a line between
 * two others. A pipe nobody empties must not stop the loop: better lose it. Half a
 * line is ended by the next one and stands for itself then: readers skip it, and the
 * next line says the whole status again. Cutting it off would confuse who has read it. */
static void write_line(struct events *e, const char *line)
{
	struct pollfd p = { .fd = e->fd, .events = POLLOUT };
	scoped_free char *out = xasprintf("%s%s\n", e->torn ? "\n" : "", line);
	size_t len = strlen(out);
	ssize_t n;

	if (!e->fd_is_file && (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT)))
		return;
	do
		n = write(e->fd, out, len);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		e->torn = out[n - 1] != '\n';
	if (n != (ssize_t)len)
		log_warn_limited("events: wrote %zd of %zu bytes: %s", n, len,
				 n < 0 ? error_text(-errno) : "no space");
}

static void deliver(struct events *e, const char *line)
{
	size_t kept = 0;

	e->sending++;
	for (size_t i = 0; i < e->n_subs; i++)
		if (e->subs[i].fn)
			e->subs[i].fn(e->subs[i].arg, line);
	if (--e->sending > 0)
		return;
	for (size_t i = 0; i < e->n_subs; i++)
		if (e->subs[i].fn)
			e->subs[kept++] = e->subs[i];
	e->n_subs = kept;
}

/* Takes @status. */
static void emit(struct events *e, json_t *status)
{
	char *line = line_of(status);

	write_line(e, line);
	deliver(e, line);
	free(line);
}

static void add_error(struct events *e, const char *error)
{
	if (error && *error && e->errors.len < ERRORS_MAX && !strv_contains(&e->errors, error))
		strv_add(&e->errors, error);
}

void events_set_ssh_port(struct events *e, uint16_t port)
{
	e->ssh_port = port;
}

void events_booting(struct events *e)
{
	emit(e, status_new(e));
}

void events_running(struct events *e)
{
	e->running = true;
	emit(e, status_new(e));
}

void events_degraded(struct events *e, const char *error)
{
	add_error(e, error);
	e->running = e->degraded = true;
	emit(e, status_new(e));
}

void events_exiting(struct events *e, const char *error)
{
	add_error(e, error);
	e->running = e->degraded = false;	/* exiting excludes running */
	e->exiting = true;
	emit(e, status_new(e));
}

void events_step(struct events *e, const char *name, enum step_state state, uint64_t ms,
		 const char *detail, const char *error)
{
	json_t *status = status_new(e), *step = json_object();

	set_text(step, "name", name);
	json_object_set_new(step, "state", json_string(step_states[state]));
	if (state != STEP_STARTED)
		json_object_set_new(step, "ms", json_integer((json_int_t)ms));
	set_text(step, "detail", detail);
	set_text(step, "error", error);
	json_object_set_new(status, "step", step);
	emit(e, status);
}

void events_notice(struct events *e, const char *notice)
{
	json_t *status = status_new(e);

	set_text(status, "notice", notice);
	emit(e, status);
}

void events_delay(struct events *e, const char *notice, uint64_t ms)
{
	json_t *status = status_new(e);

	set_text(status, "notice", notice);
	json_object_set_new(status, "delayMillis", json_integer((json_int_t)ms));
	emit(e, status);
}

void events_port(struct events *e, const struct forward_event *ev)
{
	json_t *status = status_new(e), *port = json_object();

	json_object_set_new(port, "type", json_string(port_types[ev->type]));
	set_text(port, "protocol", ev->protocol);
	set_text(port, "guestAddr", ev->guest_addr);
	set_text(port, "hostAddr", ev->host_addr);
	set_text(port, "error", ev->error);
	json_object_set_new(status, "portForward", port);
	emit(e, status);
}

void events_vsock(struct events *e, const char *type, const char *host_addr, uint32_t vsock_port,
		  const char *reason)
{
	json_t *status = status_new(e), *vsock = json_object();

	set_text(vsock, "type", type);
	set_text(vsock, "hostAddr", host_addr);
	if (vsock_port)
		json_object_set_new(vsock, "vsockPort", json_integer(vsock_port));
	set_text(vsock, "reason", reason);
	json_object_set_new(status, "vsock", vsock);
	emit(e, status);
}

unsigned events_subscribe(struct events *e, void (*fn)(void *arg, const char *line), void *arg)
{
	char *line = line_of(status_new(e));
	unsigned id = ++e->last_id;

	e->subs = xreallocarray(e->subs, e->n_subs + 1, sizeof(*e->subs));
	e->subs[e->n_subs++] = (struct subscriber){ .id = id, .fn = fn, .arg = arg };
	fn(arg, line);
	free(line);
	return id;
}

void events_unsubscribe(struct events *e, unsigned id)
{
	for (size_t i = 0; i < e->n_subs; i++) {
		if (e->subs[i].id != id)
			continue;
		e->subs[i].fn = NULL;
		if (!e->sending)
			e->subs[i] = e->subs[--e->n_subs];
		return;
	}
}

/* --- reading ------------------------------------------------------------- */

static const char *get_text(const json_t *o, const char *key, const char *otherwise)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : otherwise;
}

static void read_step(const json_t *step, struct event_view *view)
{
	const char *state = get_text(step, "state", "");
	json_int_t ms = json_integer_value(json_object_get(step, "ms"));

	for (size_t i = 0; i < ARRAY_SIZE(step_states); i++) {
		if (!streq(state, step_states[i]))
			continue;
		view->step.name = get_text(step, "name", NULL);
		view->step.state = (enum step_state)i;
		view->step.ms = ms > 0 ? (uint64_t)ms : 0;
		view->step.detail = get_text(step, "detail", "");
		view->step.error = get_text(step, "error", "");
		return;
	}
}

static void read_status(const json_t *status, struct event_view *view)
{
	json_int_t port = json_integer_value(json_object_get(status, "sshLocalPort"));
	json_int_t delay = json_integer_value(json_object_get(status, "delayMillis"));
	const json_t *forward = json_object_get(status, "portForward");

	view->running = json_is_true(json_object_get(status, "running"));
	view->degraded = json_is_true(json_object_get(status, "degraded"));
	view->exiting = json_is_true(json_object_get(status, "exiting"));
	view->ssh_port = port > 0 && port <= UINT16_MAX ? (uint16_t)port : 0;
	view->first_error =
		json_string_value(json_array_get(json_object_get(status, "errors"), 0));
	view->notice = get_text(status, "notice", NULL);
	view->delay_ms = delay > 0 ? MIN((uint64_t)delay, (uint64_t)DELAY_MAX_MS) : 0;
	view->port.type = get_text(forward, "type", NULL);
	view->port.protocol = get_text(forward, "protocol", "");
	view->port.guest_addr = get_text(forward, "guestAddr", "");
	view->port.host_addr = get_text(forward, "hostAddr", "");
	view->port.error = get_text(forward, "error", "");
	read_step(json_object_get(status, "step"), view);
}

int event_parse(const char *line, size_t len, struct event_view *view, json_t **ret_root,
		struct error *err)
{
	struct event_view v = { .step = { .detail = "", .error = "" } };
	json_error_t why;
	json_t *root;

	if (len > LINE_MAX_BYTES)
		return error_set(err, -EMSGSIZE, "event of %zu bytes", len);
	root = json_loadb(line, len, JSON_REJECT_DUPLICATES, &why);
	if (!root)
		return error_set(err, -EBADMSG, "event: column %d: %s", why.column, why.text);
	if (!json_is_object(root) || !json_is_object(json_object_get(root, "status"))) {
		json_decref(root);
		return error_set(err, -EBADMSG, "event: no status in it");
	}
	v.time = get_text(root, "time", "");
	read_status(json_object_get(root, "status"), &v);
	*view = v;
	*ret_root = root;
	return 0;
}
