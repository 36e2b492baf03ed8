#include "hostagent/socket_forward.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/queue.h>

#include "hostagent/forward/reverse.h"
#include "hostagent/forward/rule.h"
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
	ITEM_IDLE,	/* wants to be set up: next is CLEARING or PREPARING */
	ITEM_CLEARING,	/* the child is `-O cancel` of one that the master may have already */
	ITEM_PREPARING,	/* the child removes what has the path in the guest */
	ITEM_ASKING,	/* the child is `-O forward` */
	ITEM_UP,
	ITEM_FAILED,	/* until retry_at */
	ITEM_CANCELLING,	/* the child is `-O cancel`; freed after */
};

struct item {		/* owner: the list */
	TAILQ_ENTRY(item) next;
	unsigned rule_id;
	bool removed;		/* taken down, then freed */
	bool may_come;		/* asked for, and given up before it was answered */
	bool cleared;		/* CLEARING was tried since it was up, or asked for in vain */
	char *guest, *host;	/* paths */
	char *ours;		/* where ssh goes in the host's place */
	struct reverse *listener;	/* there; NULL: removed */
	enum item_state state;
	char *error;		/* FAILED, IDLE: why last time; NULL: none */
	bool told;		/* an event said `forwarding` or `failed` last */
	bool told_up;
	uint64_t retry_at, since_ms;
	unsigned retry_ms;
};

struct socket_forwards {
	struct socket_forwards_options o;	/* socket_prefix: a copy */
	TAILQ_HEAD(, item) items;
	struct reverse_set *listeners;
	bool master, closing;
	struct child *child;	/* for current */
	struct item *current;
	uv_timer_t timer;	/* the child's deadline, or the next retry */
	unsigned parts;		/* closes still to come */
	void (*closed)(void *arg);
	void *closed_arg;
};

static void work_on(struct socket_forwards *s);

/* --- telling ------------------------------------------------------------- */

static void tell(struct socket_forwards *s, struct item *i, enum forward_event_type type)
{
	struct forward_event ev = { .type = type, .protocol = "unix", .guest_addr = i->guest,
				    .host_addr = i->host,
				    .error = type == FORWARD_FAILED && i->error ? i->error : "" };

	i->told = type != FORWARD_STOPPING;
	i->told_up = type == FORWARD_FORWARDING;
	i->since_ms = uv_now(&s->o.loop->uv);
	if (type == FORWARD_FAILED)
		log_warn("forward: socket `%s` from `%s`: %s; trying again", i->guest, i->host,
			 ev.error);
	else
		log_info("forward: socket `%s` from `%s`%s", i->guest, i->host,
			 type == FORWARD_STOPPING ? " ends" : "");
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

/* --- one request --------------------------------------------------------- */

static void item_free(struct socket_forwards *s, struct item *i)
{
	TAILQ_REMOVE(&s->items, i, next);
	if (i->listener)
		reverse_free(i->listener);
	free(i->guest);
	free(i->host);
	free(i->ours);
	free(i->error);
	free(i);
}

static void failed(struct socket_forwards *s, struct item *i, const struct error *why)
{
	unsigned min = s->o.retry_min_ms ? s->o.retry_min_ms : RETRY_MIN_MS;
	unsigned max = s->o.retry_max_ms ? s->o.retry_max_ms : RETRY_MAX_MS;

	i->state = ITEM_FAILED;
	i->retry_ms = i->retry_ms ? MIN(i->retry_ms * 2, max) : min;
	i->retry_at = uv_now(&s->o.loop->uv) + i->retry_ms;
	free(i->error);
	i->error = xstrdup(why->msg);
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

/* ssh -O COMMAND -R GUEST:OURS */
static int ask_master(struct socket_forwards *s, struct item *i, const char *command,
		      enum item_state state, struct error *err)
{
	scoped_free char *pair = xasprintf("%s:%s", i->guest, i->ours);
	const char *more[] = { "-R", pair, NULL };
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

/* A host agent that was killed leaves its master and what that has; and a master
 * may do what it was asked for after we gave up. What it has already it grants again
 * without making anything (OpenSSH mux.c, process_mux_open_fwd). */
static int clear(struct socket_forwards *s, struct item *i, struct error *err)
{
	i->cleared = true;
	return ask_master(s, i, "cancel", ITEM_CLEARING, err);
}

/* Nothing here shows whether the master has it. */
static void begin(struct socket_forwards *s, struct item *i)
{
	struct error err = ERROR_NONE;
	int rc = i->cleared ? remove_in_guest(s, i, &err) : clear(s, i, &err);

	if (rc < 0)
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
	if (i->removed && i->state == ITEM_ASKING) {
		i->state = ITEM_UP;	/* for all we know; it is cancelled next */
	} else if (i->removed) {
		item_free(s, i);
	} else if (i->state == ITEM_CLEARING) {	/* or it was not the master's */
		i->state = ITEM_IDLE;
		i->may_come = false;
	} else if (r->exit_code != 0) {
		request_error(r, i->state == ITEM_PREPARING ? "remove the old one in the guest" :
							      "ssh refuses the forward", &err);
		failed(s, i, &err);
	} else if (i->state == ITEM_ASKING) {
		is_up(s, i);
	} else if (ask_master(s, i, "forward", ITEM_ASKING, &err) < 0) {
		failed(s, i, &err);
	}
	work_on(s);
}

/* A master that hangs; the next request is tried all the same. */
static void on_deadline(struct socket_forwards *s)
{
	struct child_result r = { .exit_code = 255 };

	if (s->current->state == ITEM_ASKING) {
		s->current->may_come = true;
		s->current->cleared = false;
	}
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

/* For all that is known the master has it. */
static bool is_set_up(const struct item *i)
{
	return i->state == ITEM_UP || i->may_come;
}

/* What was removed while nothing could be asked. */
static void drop_removed(struct socket_forwards *s)
{
	struct item *i, *next;

	for (i = TAILQ_FIRST(&s->items); i; i = next) {
		next = TAILQ_NEXT(i, next);
		if (i->removed && i != s->current && (!s->master || !is_set_up(i)))
			item_free(s, i);
	}
}

static bool needs_work(const struct item *i, uint64_t now)
{
	return i->state == ITEM_IDLE || (is_set_up(i) && i->removed) ||
	       (i->state == ITEM_FAILED && i->retry_at <= now);
}

static void do_item(struct socket_forwards *s, struct item *i)
{
	struct error err = ERROR_NONE;

	if (!i->removed)
		begin(s, i);
	else if (ask_master(s, i, "cancel", ITEM_CANCELLING, &err) < 0)
		item_free(s, i);
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
		i->state = ITEM_IDLE;
		i->cleared = i->may_come = false;
		i->retry_ms = 0;
	}
	work_soon(s);
}

/* --- the list ------------------------------------------------------------ */

static int add(void *arg, unsigned id, const struct config_port_forward *rule, struct error *err)
{
	struct socket_forwards *s = arg;
	scoped_free char *ours = xasprintf("%s-r%u.sock", s->o.socket_prefix, id);
	struct reverse *listener;
	struct item *i;

	if (strpbrk(rule->guest_socket, RULE_NOT_FOR_SSH))
		return error_set(err, -EINVAL, RULE_NOT_FOR_SSH_WHY);
	if (strpbrk(ours, RULE_NOT_FOR_SSH))
		return error_set(err, -EINVAL, "`%s` cannot be said to ssh: choose another LIMA_HOME",
				 ours);
	if (reverse_new(s->listeners, ours, rule->host_socket, &listener, err) < 0)
		return err->code;
	i = xnew(struct item);
	i->listener = listener;
	i->ours = steal_ptr(&ours);
	i->rule_id = id;
	i->guest = xstrdup(rule->guest_socket);
	i->host = xstrdup(rule->host_socket);
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
	reverse_free(steal_ptr(&i->listener));
	work_soon(s);
}

static void list(void *arg, void (*each)(void *arg, const struct forward_row *row), void *each_arg)
{
	struct socket_forwards *s = arg;
	struct item *i;

	TAILQ_FOREACH(i, &s->items, next) {
		struct forward_row row = {
			.protocol = "unix",
			.guest_addr = i->guest,
			.host_addr = i->host,
			.state = i->state == ITEM_UP ? "forwarding" : "waiting",
			.error = i->state == ITEM_UP ? "" : i->error ? i->error :
				 s->master ? "" : "no ssh connection to the guest yet",
			.rule_id = i->rule_id,
			.reverse = true,
			.since_ms = i->since_ms,
		};

		if (i->removed)
			continue;
		reverse_fill_row(i->listener, &row);
		each(each_arg, &row);
	}
}

void socket_forwards_ops(struct socket_forwards *s, struct forward_sockets *ret)
{
	*ret = (struct forward_sockets){ .add = add, .remove = drop, .list = list,
					 .arg = s };
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
	s->o.socket_prefix = xstrdup(opts->socket_prefix);
	s->listeners = reverse_set_new(opts->loop);
	TAILQ_INIT(&s->items);
	uv_timer_init(&s->o.loop->uv, &s->timer);
	s->timer.data = s;
	return s;
}

static void part_closed(void *arg)
{
	struct socket_forwards *s = arg;
	void (*closed)(void *arg) = s->closed;
	void *closed_arg = s->closed_arg;

	if (--s->parts)
		return;
	free((char *)(uintptr_t)s->o.socket_prefix);
	free(s);
	if (closed)
		closed(closed_arg);
}

static void on_timer_closed(uv_handle_t *h)
{
	part_closed(h->data);
}

void socket_forwards_close(struct socket_forwards *s, void (*closed)(void *arg), void *arg)
{
	assert(!s->closing);
	s->closing = true;
	s->parts = 2;
	s->closed = closed;
	s->closed_arg = arg;
	if (s->child)
		child_close(steal_ptr(&s->child));
	while (!TAILQ_EMPTY(&s->items))
		item_free(s, TAILQ_FIRST(&s->items));
	reverse_set_close(s->listeners, part_closed, s);
	uv_close((uv_handle_t *)&s->timer, on_timer_closed);
}
