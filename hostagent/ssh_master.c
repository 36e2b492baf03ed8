#include "hostagent/ssh_master.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "hostagent/forward/unix.h"
#include "lib/base/child.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

enum {
	BACKOFF_FIRST_MS = 200,
	BACKOFF_MAX_MS = 2000,
	CONNECT_MAX_MS = 30000,	/* sshd that accepts and then says nothing */
	EXIT_MAX_MS = 3000,	/* until SIGKILL */
	LOOK_MS = 5000,		/* whether one that is not our child is still there */
};

enum state {
	STATE_REST,	/* ensure, close */
	STATE_CHECKING,	/* child is `-O check`: rest, close */
	STATE_STARTING,	/* child is the master, not connected yet: rest, close */
	STATE_WAITING,	/* timer runs until the next try: rest, close */
	STATE_UP_OURS,	/* child is the master: ensure, close */
	STATE_UP_FOREIGN, /* timer runs until the next look: ensure, close */
	STATE_CLOSING,	/* child is the master or `-O exit` */
};

struct ssh_master {	/* refs: the timer, and until close() the owner */
	struct loop *loop;
	const struct ssh_target *target;
	struct ssh_master_callbacks cb;
	enum state state;
	char *sock;
	uv_timer_t timer;
	struct child *child;
	unsigned backoff_ms;
	struct error last;
	void (*closed)(void *arg);
	void *closed_arg;
};

static void try_now(struct ssh_master *m);
static void finish(struct ssh_master *m);

struct ssh_master *ssh_master_new(struct loop *loop, const struct ssh_target *t,
				  const struct ssh_master_callbacks *cb)
{
	struct ssh_master *m = xnew(struct ssh_master);

	m->loop = loop;
	m->target = t;
	m->cb = *cb;
	m->sock = layout_instance_file(t->dir, FILE_SSH_SOCK);
	m->backoff_ms = BACKOFF_FIRST_MS;
	uv_timer_init(&loop->uv, &m->timer);
	m->timer.data = m;
	return m;
}

bool ssh_master_is_up(const struct ssh_master *m)
{
	return m->state == STATE_UP_OURS || m->state == STATE_UP_FOREIGN;
}

const struct error *ssh_master_last_error(const struct ssh_master *m)
{
	return &m->last;
}

static void drop_child(struct ssh_master *m)
{
	if (m->child)
		child_close(m->child);
	m->child = NULL;
}

static void on_backoff(uv_timer_t *t)
{
	try_now(t->data);
}

static void try_later(struct ssh_master *m)
{
	log_debug("ssh: %s; next try in %u ms", m->last.msg, m->backoff_ms);
	m->state = STATE_WAITING;
	uv_timer_start(&m->timer, on_backoff, m->backoff_ms, 0);
	m->backoff_ms = MIN(m->backoff_ms * 2, (unsigned)BACKOFF_MAX_MS);
}

static void now_up(struct ssh_master *m, enum state state)
{
	m->state = state;
	m->backoff_ms = BACKOFF_FIRST_MS;
	m->last = ERROR_NONE;
	m->cb.up(m->cb.arg);
}

static void is_lost(struct ssh_master *m)
{
	m->state = STATE_REST;
	log_debug("ssh: the master ended: %s", m->last.msg);
	m->cb.lost(m->cb.arg, &m->last);
}

/* --- our own master ------------------------------------------------------ */

static void set_exit_error(struct error *err, const char *what, const struct child_result *r)
{
	const char *text = buf_str(&r->err);
	size_t len = strlen(text);

	while (len && strchr("\r\n", text[len - 1]))
		len--;
	size_t start = len;
	while (start && !strchr("\r\n", text[start - 1]))
		start--;
	error_set(err, -EIO, "%s: %.*s (exit %d)", what, (int)(len - start),
		  len > start ? text + start : "", r->exit_code);
}

static void on_master_exit(void *arg, const struct child_result *r)
{
	struct ssh_master *m = arg;

	if (m->state == STATE_CLOSING) {
		finish(m);
		return;
	}
	drop_child(m);
	set_exit_error(&m->last, "ssh", r);
	if (m->state == STATE_UP_OURS) {
		is_lost(m);
		return;
	}
	uv_timer_stop(&m->timer);
	try_later(m);
}

static void on_master_line(void *arg, const char *line)
{
	struct ssh_master *m = arg;

	if (m->state != STATE_STARTING || !streq(line, "up"))
		return;
	uv_timer_stop(&m->timer);
	now_up(m, STATE_UP_OURS);
}

static void on_connect_timeout(uv_timer_t *t)
{
	struct ssh_master *m = t->data;

	error_set(&m->last, -ETIMEDOUT, "ssh: no login within %d s", CONNECT_MAX_MS / 1000);
	drop_child(m);
	try_later(m);
}

static void start_master(struct ssh_master *m)
{
	scoped_strv struct strv argv = { 0 };
	struct child_spec spec = { .own_group = true, .on_stdout_line = on_master_line,
				   .line_arg = m };

	if (ssh_add_program(&argv, &m->last) < 0) {
		try_later(m);
		return;
	}
	ssh_add_options(&argv, m->target, SSH_MUX_MASTER);
	strv_add_all(&argv, "-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo up", "-N", "-T",
		     NULL);
	ssh_add_destination(&argv, m->target);
	spec.argv = (const char *const *)argv.items;
	m->state = STATE_STARTING;
	if (child_start(m->loop, &spec, on_master_exit, m, &m->child, &m->last) < 0) {
		m->child = NULL;
		try_later(m);
		return;
	}
	uv_timer_start(&m->timer, on_connect_timeout, CONNECT_MAX_MS, 0);
}

/* --- one that is not our child --------------------------------------------- */

/* Nobody tells us of its end, but its socket does: connecting costs no process, and
 * OpenSSH says nothing about a client that leaves at once. */
static void on_look(uv_timer_t *t)
{
	struct ssh_master *m = t->data;

	if (unix_is_served(m->sock))
		return;
	uv_timer_stop(t);
	unlink(m->sock);	/* of one that was killed */
	error_set(&m->last, -EPIPE, "a master that was not ours ended");
	is_lost(m);
}

static void look_after(struct ssh_master *m, unsigned ms)
{
	uv_timer_start(&m->timer, on_look, ms, LOOK_MS);
}

/* --- requests to whoever holds the socket -------------------------------- */

static int start_request(struct ssh_master *m, const char *command, child_exit_fn done,
			 struct error *err)
{
	scoped_strv struct strv argv = { 0 };
	struct child_spec spec = { .own_group = true };

	if (ssh_add_program(&argv, err) < 0)
		return err->code;
	ssh_add_control(&argv, m->target, command, NULL);
	spec.argv = (const char *const *)argv.items;
	return child_start(m->loop, &spec, done, m, &m->child, err);
}

static void on_check_exit(void *arg, const struct child_result *r)
{
	struct ssh_master *m = arg;

	drop_child(m);
	uv_timer_stop(&m->timer);
	if (r->exit_code == 0) {
		look_after(m, LOOK_MS);
		now_up(m, STATE_UP_FOREIGN);
		return;
	}
	unlink(m->sock);	/* nobody behind it */
	start_master(m);
}

static void on_check_timeout(uv_timer_t *t)
{
	struct ssh_master *m = t->data;

	drop_child(m);
	unlink(m->sock);
	start_master(m);
}

static void try_now(struct ssh_master *m)
{
	if (!path_exists(m->sock)) {
		start_master(m);
		return;
	}
	m->state = STATE_CHECKING;
	if (start_request(m, "check", on_check_exit, &m->last) < 0) {
		m->child = NULL;
		try_later(m);
		return;
	}
	uv_timer_start(&m->timer, on_check_timeout, EXIT_MAX_MS, 0);
}

void ssh_master_ensure(struct ssh_master *m)
{
	if (m->state == STATE_REST)
		try_now(m);
	else if (m->state == STATE_UP_FOREIGN)
		look_after(m, 0);
}

void ssh_master_drop(struct ssh_master *m)
{
	if (m->state == STATE_UP_OURS) {
		child_signal(m->child, SIGTERM);	/* its exit tells the rest */
	} else if (m->state == STATE_UP_FOREIGN) {
		uv_timer_stop(&m->timer);
		unlink(m->sock);
		error_set(&m->last, -ECONNRESET, "the guest was reset");
		is_lost(m);
	}
}

void ssh_master_rest(struct ssh_master *m)
{
	if (m->state == STATE_CLOSING || ssh_master_is_up(m))
		return;
	uv_timer_stop(&m->timer);
	drop_child(m);
	m->state = STATE_REST;
}

/* --- the end ------------------------------------------------------------- */

static void on_timer_closed(uv_handle_t *h)
{
	struct ssh_master *m = h->data;
	void (*closed)(void *arg) = m->closed;
	void *arg = m->closed_arg;

	free(m->sock);
	free(m);
	if (closed)
		closed(arg);
}

static void finish(struct ssh_master *m)
{
	drop_child(m);
	unlink(m->sock);
	uv_close((uv_handle_t *)&m->timer, on_timer_closed);
}

static void on_exit_exit(void *arg, const struct child_result *r)
{
	finish(arg);
}

static void on_exit_timeout(uv_timer_t *t)
{
	finish(t->data);
}

/* Ours gets SIGTERM, on which it ends its sessions and removes the socket; one
 * that is not our child is asked through the socket. */
void ssh_master_close(struct ssh_master *m, void (*closed)(void *arg), void *arg)
{
	bool ours = m->state == STATE_UP_OURS;

	m->closed = closed;
	m->closed_arg = arg;
	m->state = STATE_CLOSING;
	uv_timer_stop(&m->timer);
	if (ours) {
		child_signal(m->child, SIGTERM);
	} else {
		drop_child(m);
		if (!path_exists(m->sock) ||
		    start_request(m, "exit", on_exit_exit, &m->last) < 0) {
			m->child = NULL;
			finish(m);
			return;
		}
	}
	uv_timer_start(&m->timer, on_exit_timeout, EXIT_MAX_MS, 0);
}
