#include "hostagent/socket_forward.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>

#include "hostagent/forward/address.h"
#include "hostagent/forward/owner.h"
#include "hostagent/forward/unix.h"
#include "lib/base/child.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/scoped.h"

enum {
	RETRY_MIN_MS = 200,
	RETRY_MAX_MS = 5000,
	REQUEST_MAX_MS = 15000,	/* a master that does not answer */
};

enum item_state {
	ITEM_IDLE,	/* wants to be set up: next is PREPARING or ASKING */
	ITEM_PREPARING,	/* reverse: the child removes what has the path in the guest */
	ITEM_CLEARING,	/* the child is `-O cancel` of one that the master may have already */
	ITEM_ASKING,	/* the child is `-O forward` */
	ITEM_UP,
	ITEM_FAILED,	/* until retry_at */
	ITEM_CANCELLING,	/* the child is `-O cancel`; freed after */
};

struct item {		/* owner: the list */
	TAILQ_ENTRY(item) next;
	unsigned rule_id;
	bool reverse, removed;	/* removed: taken down, then freed */
	bool cleared;		/* CLEARING was tried since it was up, or asked for in vain */
	char *guest, *host;	/* as rows and events show them; guest is a path */
	char *host_socket;	/* NULL: a TCP port */
	struct in6_addr ip;
	uint16_t port;
	struct unix_id file;	/* what the master made; ino 0: nothing */
	enum item_state state;
	char *error;		/* FAILED, IDLE: why last time; NULL: none */
	bool told;		/* an event said `forwarding` or `failed` last */
	bool told_up;
	uint64_t retry_at, since_ms;
	unsigned retry_ms;
};

struct socket_forwards {	/* refs: the timer, a look for an owner, the owner until close */
	struct socket_forwards_options o;
	TAILQ_HEAD(, item) items;
	bool master, closing;
	struct child *child;	/* for current */
	struct item *current;
	uv_timer_t timer;	/* the child's deadline, or the next retry */
	uv_work_t work;
	struct owner_query query;
	unsigned query_id;	/* rule it is about; 0: none under way */
	unsigned refs;
	void (*closed)(void *arg);
	void *closed_arg;
};

static void work_on(struct socket_forwards *s);

static void unref(struct socket_forwards *s)
{
	void (*closed)(void *arg) = s->closed;
	void *arg = s->closed_arg;

	if (--s->refs)
		return;
	free(s);
	if (closed)
		closed(arg);
}

/* --- telling ------------------------------------------------------------- */

static const char *protocol(const struct item *i)
{
	return i->host_socket ? "unix" : "tcp";
}

static void tell(struct socket_forwards *s, struct item *i, enum forward_event_type type)
{
	struct forward_event ev = { .type = type, .protocol = protocol(i), .guest_addr = i->guest,
				    .host_addr = i->host,
				    .error = type == FORWARD_FAILED && i->error ? i->error : "" };

	i->told = type != FORWARD_STOPPING;
	i->told_up = type == FORWARD_FORWARDING;
	i->since_ms = uv_now(&s->o.loop->uv);
	if (type == FORWARD_FAILED)
		log_warn("forward: socket `%s` %s `%s`: %s; trying again", i->guest,
			 i->reverse ? "from" : "to", i->host, ev.error);
	else
		log_info("forward: socket `%s` %s `%s`%s", i->guest, i->reverse ? "from" : "to",
			 i->host, type == FORWARD_STOPPING ? " ends" : "");
	s->o.event(s->o.arg, &ev);
}

static struct item *find(struct socket_forwards *s, unsigned id)
{
	struct item *i;

	TAILQ_FOREACH(i, &s->items, next)
		if (i->rule_id == id && !i->removed)
			return i;
	return NULL;
}

/* --- who has the port ---------------------------------------------------- */

static void look(uv_work_t *work)	/* in libuv's pool */
{
	struct socket_forwards *s = work->data;
	struct owner_query *q = &s->query;

	owner_scan(&q, 1);
}

static void on_looked(uv_work_t *work, int status)
{
	struct socket_forwards *s = work->data;
	struct item *i = find(s, s->query_id);

	s->query_id = 0;
	if (!s->closing && i && i->state == ITEM_FAILED) {
		if (*s->query.answer) {
			scoped_free char *cause = steal_ptr(&i->error);

			i->error = xasprintf("%s (%s)", cause, s->query.answer);
		}
		if (!i->told || i->told_up)
			tell(s, i, FORWARD_FAILED);
	}
	unref(s);
}

/* The answer tells the failure. */
static bool ask_owner(struct socket_forwards *s, struct item *i)
{
	if (s->query_id || (i->told && !i->told_up))
		return false;
	s->query = (struct owner_query){ .proto = IPPROTO_TCP, .ip = i->ip, .port = i->port };
	s->query_id = i->rule_id;
	s->work.data = s;
	s->refs++;
	uv_queue_work(&s->o.loop->uv, &s->work, look, on_looked);
	return true;
}

/* --- one request --------------------------------------------------------- */

static void item_free(struct socket_forwards *s, struct item *i)
{
	TAILQ_REMOVE(&s->items, i, next);
	free(i->guest);
	free(i->host);
	free(i->host_socket);
	free(i->error);
	free(i);
}

static void remove_file(struct item *i)
{
	if (i->host_socket && !i->reverse && i->file.ino)
		unix_remove(i->host_socket, &i->file);
	i->file = (struct unix_id){ 0 };
}

static void failed(struct socket_forwards *s, struct item *i, const struct error *why)
{
	unsigned min = s->o.retry_min_ms ? s->o.retry_min_ms : RETRY_MIN_MS;
	unsigned max = s->o.retry_max_ms ? s->o.retry_max_ms : RETRY_MAX_MS;
	bool same = i->error && strncmp(i->error, why->msg, strlen(why->msg)) == 0;

	i->state = ITEM_FAILED;
	i->retry_ms = i->retry_ms ? MIN(i->retry_ms * 2, max) : min;
	i->retry_at = uv_now(&s->o.loop->uv) + i->retry_ms;
	if (!same) {	/* else it may know the owner by now */
		free(i->error);
		i->error = xstrdup(why->msg);
	}
	if (s->query_id == i->rule_id ||	/* its answer tells */
	    (why->code == -EADDRINUSE && !i->host_socket && ask_owner(s, i)))
		return;
	if (!i->told || i->told_up)
		tell(s, i, FORWARD_FAILED);
}

static void is_up(struct socket_forwards *s, struct item *i)
{
	i->state = ITEM_UP;
	i->cleared = false;
	i->retry_ms = 0;
	free(steal_ptr(&i->error));
	tell(s, i, FORWARD_FORWARDING);
}

/* What ssh says about itself, its last line. */
static void request_error(const struct child_result *r, const char *what, struct error *err)
{
	scoped_free char *text = xstrdup(buf_str(&r->err));
	size_t len = strlen(text);

	while (len && strchr("\r\n", text[len - 1]))
		text[--len] = 0;
	char *line = strrchr(text, '\n');
	scoped_free char *clean = log_escape(line ? line + 1 : text, 200);

	error_set(err, -EIO, "%s: %s", what, *clean ? clean : "ssh said nothing");
}

static void on_done(void *arg, const struct child_result *r);

static int run(struct socket_forwards *s, struct item *i, const struct strv *argv,
	       enum item_state state, struct error *err)
{
	struct child_spec spec = { .own_group = true,
				   .argv = (const char *const *)argv->items };

	if (child_start(s->o.loop, &spec, on_done, s, &s->child, err) < 0) {
		s->child = NULL;
		return err->code;
	}
	s->current = i;
	i->state = state;
	return 0;
}

/* ssh -O COMMAND -L|-R FROM:TO */
static int ask_master(struct socket_forwards *s, struct item *i, const char *command,
		      enum item_state state, struct error *err)
{
	scoped_free char *pair = i->reverse ? xasprintf("%s:%s", i->guest, i->host_socket) :
					      xasprintf("%s:%s", i->host, i->guest);
	const char *more[] = { i->reverse ? "-R" : "-L", pair, NULL };
	scoped_strv struct strv argv = { 0 };

	if (ssh_add_program(&argv, err) < 0)
		return err->code;
	ssh_add_control(&argv, s->o.target, command, more);
	return run(s, i, &argv, state, err);
}

/* As one word of the guest's shell. */
static char *quote(const char *s)
{
	struct buf b = { 0 };

	buf_add_u8(&b, '\'');
	for (; *s; s++) {
		if (*s == '\'')
			buf_add_str(&b, "'\\'");
		buf_add_u8(&b, (uint8_t)*s);
	}
	buf_add_u8(&b, '\'');
	return buf_steal_str(&b);
}

static int remove_in_guest(struct socket_forwards *s, struct item *i, struct error *err)
{
	scoped_free char *word = quote(i->guest);
	scoped_strv struct strv argv = { 0 };

	if (ssh_add_program(&argv, err) < 0)
		return err->code;
	ssh_add_options(&argv, s->o.target, SSH_MUX);
	strv_add(&argv, "-T");
	ssh_add_destination(&argv, s->o.target);
	strv_addf(&argv, "rm -f -- %s", word);
	return run(s, i, &argv, ITEM_PREPARING, err);
}

static int check_allowed(const struct socket_forwards *s, const struct item *i, struct error *err)
{
	if (i->host_socket || !s->o.check)
		return 0;
	return s->o.check(s->o.arg, i->port, err);
}

/* ssh only says that it failed; the kernel says why. */
static int check_free(const struct item *i, struct error *err)
{
	struct sockaddr_storage sa;
	socklen_t len = address_to_sockaddr(&i->ip, i->port, &sa);
	scoped_fd int fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int on = 1;

	if (fd < 0)
		return error_sys(err, -errno, "socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&sa, len) < 0 || listen(fd, 1) < 0)
		return error_set(err, -errno, "%s", error_text(-errno));
	return 0;
}

/* May a forward be asked for? Stale files are gone then. */
static int prepare(struct socket_forwards *s, struct item *i, struct error *err)
{
	if (i->host_socket)
		return unix_prepare(i->host_socket, err);
	if (check_allowed(s, i, err) < 0 || check_free(i, err) < 0)
		return err->code;
	return 0;
}

/* A host agent that was killed leaves its master and what that listens on; and a master
 * may do what it was asked for after we gave up. What it has already it grants again
 * without making anything (OpenSSH mux.c, process_mux_open_fwd). */
static int clear(struct socket_forwards *s, struct item *i, struct error *err)
{
	i->cleared = true;
	return ask_master(s, i, "cancel", ITEM_CLEARING, err);
}

static void begin(struct socket_forwards *s, struct item *i)
{
	struct error err = ERROR_NONE;
	int rc;

	if (i->reverse)	/* nothing here shows whether the master has it */
		rc = i->cleared ? remove_in_guest(s, i, &err) : clear(s, i, &err);
	else if ((rc = prepare(s, i, &err)) == 0)
		rc = ask_master(s, i, "forward", ITEM_ASKING, &err);
	else if (rc == -EADDRINUSE && !i->cleared)
		rc = clear(s, i, &err);
	if (rc < 0)
		failed(s, i, &err);
}

/* A socket on the host is seen; a port was free just now. */
static bool is_there(struct item *i)
{
	return i->reverse || !i->host_socket || unix_identify(i->host_socket, &i->file) == 0;
}

static void on_granted(struct socket_forwards *s, struct item *i)
{
	struct error err = ERROR_NONE;

	if (is_there(i) || i->cleared)
		is_up(s, i);
	else if (clear(s, i, &err) < 0)
		failed(s, i, &err);
}

static void on_done(void *arg, const struct child_result *r)
{
	struct socket_forwards *s = arg;
	struct item *i = s->current;
	struct error err = ERROR_NONE;

	child_close(steal_ptr(&s->child));
	s->current = NULL;
	uv_timer_stop(&s->timer);
	if (i->state == ITEM_CANCELLING || (i->removed && r->exit_code != 0)) {
		remove_file(i);
		item_free(s, i);
	} else if (i->removed) {	/* while it was asked for */
		i->state = i->state == ITEM_ASKING ? ITEM_UP : ITEM_FAILED;
	} else if (i->state == ITEM_CLEARING) {	/* or it was not the master's */
		i->state = ITEM_IDLE;
	} else if (r->exit_code != 0) {
		request_error(r, i->state == ITEM_PREPARING ? "remove the old one in the guest" :
							      "ssh refuses the forward", &err);
		failed(s, i, &err);
	} else if (i->state == ITEM_ASKING) {
		on_granted(s, i);
	} else if (ask_master(s, i, "forward", ITEM_ASKING, &err) < 0) {
		failed(s, i, &err);
	}
	work_on(s);
}

/* A master that hangs; the next request is tried all the same. */
static void on_deadline(struct socket_forwards *s)
{
	struct child_result r = { .exit_code = 255 };

	if (s->current->state == ITEM_ASKING)
		s->current->cleared = false;	/* it may come to do it */
	on_done(s, &r);
}

/* --- the supervisor ------------------------------------------------------ */

static void on_timer(uv_timer_t *t)
{
	struct socket_forwards *s = t->data;

	if (s->child)
		on_deadline(s);
	else
		work_on(s);
}

/* What was removed while nothing could be asked. */
static void drop_removed(struct socket_forwards *s)
{
	struct item *i, *next;

	for (i = TAILQ_FIRST(&s->items); i; i = next) {
		next = TAILQ_NEXT(i, next);
		if (i->removed && i != s->current && (!s->master || i->state != ITEM_UP)) {
			remove_file(i);
			item_free(s, i);
		}
	}
}

static bool needs_work(const struct item *i, uint64_t now)
{
	return i->state == ITEM_IDLE || (i->state == ITEM_UP && i->removed) ||
	       (i->state == ITEM_FAILED && i->retry_at <= now);
}

static void do_item(struct socket_forwards *s, struct item *i)
{
	struct error err = ERROR_NONE;

	if (!i->removed) {
		begin(s, i);
	} else if (ask_master(s, i, "cancel", ITEM_CANCELLING, &err) < 0) {
		remove_file(i);
		item_free(s, i);
	}
}

/* Starts what is next, when nothing runs; sleeps until the next retry. */
static void work_on(struct socket_forwards *s)
{
	uint64_t now = uv_now(&s->o.loop->uv), wake = UINT64_MAX;
	struct item *i, *next;

	if (s->closing)
		return;
	drop_removed(s);
	for (i = TAILQ_FIRST(&s->items); i && s->master && !s->child; i = next) {
		next = TAILQ_NEXT(i, next);
		if (needs_work(i, now))
			do_item(s, i);
	}
	if (s->child) {
		uv_timer_start(&s->timer, on_timer,
			       s->o.request_max_ms ? s->o.request_max_ms : REQUEST_MAX_MS, 0);
		return;
	}
	TAILQ_FOREACH(i, &s->items, next)
		if (s->master && i->state == ITEM_FAILED)
			wake = MIN(wake, i->retry_at);
	if (wake == UINT64_MAX)
		uv_timer_stop(&s->timer);
	else
		uv_timer_start(&s->timer, on_timer, wake > now ? wake - now : 1, 0);
}

static void on_soon(uv_timer_t *t)
{
	work_on(t->data);
}

/* Not inside the caller's call. */
static void work_soon(struct socket_forwards *s)
{
	if (!s->child)
		uv_timer_start(&s->timer, on_soon, 0, 0);
}

void socket_forwards_set_master(struct socket_forwards *s, bool up)
{
	struct item *i;

	if (s->master == up)
		return;
	s->master = up;
	if (s->child)
		child_close(steal_ptr(&s->child));
	s->current = NULL;
	TAILQ_FOREACH(i, &s->items, next) {
		if (!up && i->told_up)
			tell(s, i, FORWARD_STOPPING);
		remove_file(i);
		i->state = ITEM_IDLE;
		i->cleared = false;
		i->retry_ms = 0;
	}
	work_soon(s);
}

/* --- the list ------------------------------------------------------------ */

static int add(void *arg, unsigned id, const struct config_port_forward *rule, struct error *err)
{
	struct socket_forwards *s = arg;
	char text[ADDRESS_TEXT_SIZE];
	struct item *i;

	if (strpbrk(rule->guest_socket, "\r\n:") ||
	    (rule->host_socket && strpbrk(rule->host_socket, "\r\n:")))
		return error_set(err, -EINVAL, "ssh cannot forward a socket with a colon or a line "
					       "break in its path");
	i = xnew(struct item);
	i->rule_id = id;
	i->reverse = rule->reverse;
	i->guest = xstrdup(rule->guest_socket);
	i->host_socket = rule->host_socket ? xstrdup(rule->host_socket) : NULL;
	i->ip = rule->host_ip;
	i->port = rule->host_port[0];
	i->host = xstrdup(i->host_socket ? i->host_socket :
					   address_text(&i->ip, i->port, text));
	i->since_ms = uv_now(&s->o.loop->uv);
	TAILQ_INSERT_TAIL(&s->items, i, next);
	work_soon(s);
	return 0;
}

static void drop(void *arg, unsigned id)
{
	struct socket_forwards *s = arg;
	struct item *i = find(s, id);

	if (!i)
		return;
	if (i->told)
		tell(s, i, FORWARD_STOPPING);
	i->removed = true;
	work_soon(s);
}

/* @i goes as if it was removed, and another one like it waits in its place. */
static void renew(struct socket_forwards *s, struct item *i)
{
	struct item *n = xnew(struct item);

	n->rule_id = i->rule_id;
	n->reverse = i->reverse;
	n->guest = xstrdup(i->guest);
	n->host = xstrdup(i->host);
	n->host_socket = i->host_socket ? xstrdup(i->host_socket) : NULL;
	n->ip = i->ip;
	n->port = i->port;
	n->since_ms = uv_now(&s->o.loop->uv);
	if (i->told)
		tell(s, i, FORWARD_STOPPING);
	i->removed = true;
	TAILQ_INSERT_AFTER(&s->items, i, n, next);
	work_soon(s);
}

static void recheck(void *arg)
{
	struct socket_forwards *s = arg;
	struct item *i, *next;

	for (i = TAILQ_FIRST(&s->items); i; i = next) {
		struct error err = ERROR_NONE;

		next = TAILQ_NEXT(i, next);
		if ((i->state == ITEM_UP || i->state == ITEM_ASKING) && !i->removed &&
		    check_allowed(s, i, &err) < 0)
			renew(s, i);
	}
}

static void list(void *arg, void (*each)(void *arg, const struct forward_row *row), void *each_arg)
{
	struct socket_forwards *s = arg;
	struct item *i;

	TAILQ_FOREACH(i, &s->items, next) {
		struct forward_row row = {
			.protocol = protocol(i),
			.guest_addr = i->guest,
			.host_addr = i->host,
			.state = i->state == ITEM_UP ? "forwarding" : "waiting",
			.error = i->state == ITEM_UP ? "" : i->error ? i->error :
				 s->master ? "" : "no ssh connection to the guest yet",
			.rule_id = i->rule_id,
			.reverse = i->reverse,
			.since_ms = i->since_ms,
		};

		if (!i->removed)
			each(each_arg, &row);
	}
}

void socket_forwards_ops(struct socket_forwards *s, struct forward_sockets *ret)
{
	*ret = (struct forward_sockets){ .add = add, .remove = drop, .list = list,
					 .recheck = recheck, .arg = s };
}

bool socket_forwards_any(const struct socket_forwards *s)
{
	return !TAILQ_EMPTY(&s->items);
}

bool socket_forwards_settled(const struct socket_forwards *s)
{
	const struct item *i;

	TAILQ_FOREACH(i, &s->items, next)
		if (i->state != ITEM_UP && i->state != ITEM_FAILED)
			return false;
	return true;
}

/* --- life ---------------------------------------------------------------- */

struct socket_forwards *socket_forwards_new(const struct socket_forwards_options *opts)
{
	struct socket_forwards *s = xnew(struct socket_forwards);

	s->o = *opts;
	s->refs = 1;
	TAILQ_INIT(&s->items);
	uv_timer_init(&s->o.loop->uv, &s->timer);
	s->timer.data = s;
	return s;
}

static void on_timer_closed(uv_handle_t *h)
{
	unref(h->data);
}

void socket_forwards_close(struct socket_forwards *s, void (*closed)(void *arg), void *arg)
{
	assert(!s->closing);
	s->closing = true;
	s->closed = closed;
	s->closed_arg = arg;
	if (s->child)
		child_close(steal_ptr(&s->child));
	while (!TAILQ_EMPTY(&s->items)) {
		remove_file(TAILQ_FIRST(&s->items));
		item_free(s, TAILQ_FIRST(&s->items));
	}
	uv_close((uv_handle_t *)&s->timer, on_timer_closed);
}
