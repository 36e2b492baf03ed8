#include "proto/link_guest.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/link.h"

enum {
	BUFFER_SIZE = 64 << 10,
	ROUNDS_PER_TURN = 16,
	REOPEN_MS = 2000,
	REOPEN_MAX_MS = 30000,
	/* QEMU tells of a port at most once a second, and then only what came last (its QMP
	 * reference: VSERPORT_CHANGE is rate-limited): this long it must see it closed. */
	TOLD_MS = 1500,
	STUCK_MS = 10000,	/* gRPC reads nothing for so long: its session is over */
	DRAIN_MS = 500,
	/* The beginning of a frame at the end of what was read is held back until
	 * the rest comes, but only from this length on: a shorter one is most
	 * likely data that just looks so (one in 256 for a byte), and holding it
	 * back would hang whoever waits for it. */
	HOLD_MIN = 4,
};

struct session {	/* our end of a socket pair; freed when its handle is closed */
	uv_poll_t poll;
	int fd;
	int armed;		/* what the handle watches for */
	struct link_guest *link;
};

struct link_guest {	/* owner: the caller of new. handles: everything open in libuv */
	struct loop *loop;
	char *device;		/* NULL: cannot be opened again */
	uint8_t secret[LINK_MAGIC_SIZE];
	link_session_fn on_session;
	void *arg;
	unsigned handles;
	bool closing;		/* passes on the rest */
	bool closed;
	void (*on_closed)(void *arg);
	void *on_closed_arg;

	int fd;			/* the port, -1: not open */
	int epoll_fd;
	uv_poll_t *poll;	/* of epoll_fd */
	uv_timer_t timer;	/* reopen; stuck; drain */
	unsigned reopen_ms, stuck_ms;
	bool turn_posted;
	bool readable;		/* the port's edge came, and it was not read empty since */
	struct session *session;

	/* port → socket: [0, in_len) was read; [in_at, in_end) is to be sent;
	 * from in_tail on a frame may begin, of which the first in_sent bytes are
	 * let through nevertheless. */
	uint8_t in[LINK_FRAME_SIZE + BUFFER_SIZE];
	size_t in_len, in_at, in_end, in_tail, in_sent;
	bool in_moved;		/* since the timer for a stuck session ran */
	/* socket → port: [out_at, out_len) is to be written. */
	uint8_t out[BUFFER_SIZE];
	size_t out_at, out_len;
};

static void pump(struct link_guest *l);
static void pump_ways(struct link_guest *l, bool in, bool out);
static void open_port(struct link_guest *l);

/* --- life ------------------------------------------------------------------ */

static void handle_gone(struct link_guest *l)
{
	void (*closed)(void *arg) = l->on_closed;
	void *arg = l->on_closed_arg;

	if (--l->handles > 0)
		return;
	assert(l->closed && !l->turn_posted);
	free(l->device);
	free(l);
	if (closed)
		closed(arg);
}

static void on_session_closed(uv_handle_t *h)
{
	struct session *s = h->data;
	struct link_guest *l = s->link;

	free(s);
	handle_gone(l);
}

static void on_poll_closed(uv_handle_t *h)
{
	struct link_guest *l = h->data;

	free(h);
	handle_gone(l);
}

static void on_timer_closed(uv_handle_t *h)
{
	handle_gone(h->data);
}

static void drop_session(struct link_guest *l)
{
	struct session *s = steal_ptr(&l->session);

	l->in_at = l->in_end = 0;
	if (!s)
		return;
	if (s->armed & UV_WRITABLE && !l->closing)
		uv_timer_stop(&l->timer);
	uv_close((uv_handle_t *)&s->poll, on_session_closed);
	close(s->fd);
}

static void close_port(struct link_guest *l)
{
	drop_session(l);
	l->in_len = l->in_tail = l->in_sent = 0;
	l->out_at = l->out_len = 0;
	if (l->fd < 0)
		return;
	uv_close((uv_handle_t *)l->poll, on_poll_closed);
	l->poll = NULL;
	close(l->epoll_fd);
	close(l->fd);
	l->fd = l->epoll_fd = -1;
}

static void finish(struct link_guest *l)
{
	if (l->closed)
		return;
	l->closed = true;
	close_port(l);
	uv_close((uv_handle_t *)&l->timer, on_timer_closed);
}

/* --- the port ---------------------------------------------------------------- */

static void on_reopen(uv_timer_t *timer)
{
	open_port(timer->data);
}

static void try_later(struct link_guest *l)
{
	uv_timer_start(&l->timer, on_reopen, l->reopen_ms, 0);
	l->reopen_ms = MIN(l->reopen_ms * 2, (unsigned)REOPEN_MAX_MS);
}

static void on_port(uv_poll_t *poll, int status, int events)
{
	struct link_guest *l = poll->data;
	struct epoll_event ev;

	if (epoll_wait(l->epoll_fd, &ev, 1, 0) <= 0 || l->closed)
		return;
	if (ev.events & ~(uint32_t)EPOLLOUT)
		l->readable = true;
	pump_ways(l, true, false);
}

static int watch_port(struct link_guest *l, int fd, struct error *err)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLET };
	scoped_fd int owned = fd;
	scoped_fd int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	int rc;

	if (epoll_fd < 0)
		return error_sys(err, -errno, "agent link: epoll");
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0)
		return error_sys(err, -errno, "agent link: watch the port");
	l->poll = xnew(uv_poll_t);
	rc = uv_poll_init(&l->loop->uv, l->poll, epoll_fd);
	if (rc < 0) {
		free(steal_ptr(&l->poll));
		return error_sys(err, rc, "agent link: watch the port");
	}
	l->poll->data = l;
	l->handles++;
	uv_poll_start(l->poll, UV_READABLE, on_port);
	l->fd = steal_fd(&owned);
	l->epoll_fd = steal_fd(&epoll_fd);
	l->readable = true;
	l->reopen_ms = REOPEN_MS;
	return 0;
}

static void open_port(struct link_guest *l)
{
	int fd = open(l->device, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	struct error err = { 0 };

	if (fd < 0)	/* not there yet, or the agent before us still has it */
		log_debug("agent link: open `%s`: %s", l->device, error_text(-errno));
	else if (watch_port(l, fd, &err) < 0)
		log_warn("%s, trying again", err.msg);
	if (l->fd < 0)
		try_later(l);
}

/* The port itself is gone (unplugged), not just the host. */
static void lose_port(struct link_guest *l, int code)
{
	close_port(l);
	if (l->closing) {
		finish(l);
	} else if (l->device) {
		log_warn("agent link: `%s`: %s, opening it again", l->device, error_text(code));
		try_later(l);
	} else {
		log_warn("agent link: %s, no session any more", error_text(code));
	}
}

/* --- sessions ---------------------------------------------------------------- */

static void on_session_poll(uv_poll_t *poll, int status, int events)
{
	struct session *s = poll->data;

	if (s->link->session == s)
		pump(s->link);
}

/* An ACK waits in the output buffer before all that the new session writes. Of
 * the old session's bytes only those QEMU has not got yet are dropped. */
static void begin_session(struct link_guest *l, const uint8_t *nonce)
{
	struct session *s;
	int fds[2];

	drop_session(l);
	link_ack_magic(l->secret, l->out);
	memcpy(l->out + LINK_MAGIC_SIZE, nonce, LINK_NONCE_SIZE);
	l->out_at = 0;
	l->out_len = LINK_FRAME_SIZE;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0) {
		log_warn("agent link: socket pair: %s, the host has to try again",
			 error_text(-errno));
		l->out_len = 0;
		return;
	}
	s = xnew(struct session);
	s->fd = fds[0];
	s->link = l;
	uv_poll_init(&l->loop->uv, &s->poll, s->fd);
	s->poll.data = s;
	l->handles++;
	l->session = s;
	log_debug("agent link: a host began a session");
	l->on_session(l->arg, fds[1]);
}

/* Without a SYN: gRPC gave it up, or hangs. The host does not know, and goes on talking
 * to nobody; that the port closed it is told by QEMU, and connects anew. */
static void end_session(struct link_guest *l)
{
	if (l->closing || !l->device) {
		drop_session(l);
		return;
	}
	close_port(l);
	uv_timer_start(&l->timer, on_reopen, TOLD_MS, 0);
}

static void on_stuck(uv_timer_t *timer)
{
	struct link_guest *l = timer->data;

	/* When the loop itself stood still timers come before sockets: there may be room. */
	if (!l->in_moved)
		pump(l);
	if (uv_is_active((uv_handle_t *)timer) || !l->session ||
	    !(l->session->armed & UV_WRITABLE))
		return;
	if (l->in_moved) {
		l->in_moved = false;
		uv_timer_start(timer, on_stuck, l->stuck_ms, 0);
		return;
	}
	log_warn("agent link: a session took nothing for %u ms, ending it", l->stuck_ms);
	end_session(l);
	pump(l);
}

/* --- port → socket ------------------------------------------------------------ */

/* Handles what was read: sessions begin, then [in_at, in_end) is set. */
static void scan_input(struct link_guest *l)
{
	size_t from = l->in_sent, at = 0;

	for (size_t start = 0;; from = start) {
		if (!link_find(l->secret, l->in + start, l->in_len - start, &at)) {
			at += start;
			break;
		}
		start += at + LINK_FRAME_SIZE;
		if (!l->closing)
			begin_session(l, l->in + start - LINK_NONCE_SIZE);
	}
	/* a possible beginning of a frame from @at on: held back or let through */
	l->in_at = from;
	l->in_end = l->in_len - at >= HOLD_MIN ? MAX(at, from) : l->in_len;
	l->in_tail = at;
	l->in_sent = l->in_end > at ? l->in_end - at : 0;
	if (!l->session)
		l->in_at = l->in_end;
}

/* Makes room; what may be the beginning of a frame goes to the front. */
static void keep_tail(struct link_guest *l)
{
	memmove(l->in, l->in + l->in_tail, l->in_len - l->in_tail);
	l->in_len -= l->in_tail;
	l->in_at = l->in_end = l->in_tail = 0;
}

/* False: nothing more can be done now. */
static bool pump_in(struct link_guest *l)
{
	ssize_t n;

	while (l->in_at < l->in_end) {
		n = send(l->session->fd, l->in + l->in_at, l->in_end - l->in_at,
			 MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			return false;
		if (n < 0) {	/* gRPC gave the session up */
			end_session(l);
			return l->fd >= 0;	/* else all until SYN is void */
		}
		l->in_at += (size_t)n;
		l->in_moved = true;
	}
	if (!l->readable)
		return false;
	keep_tail(l);
	n = read(l->fd, l->in + l->in_len, BUFFER_SIZE);
	if (n > 0) {
		l->in_len += (size_t)n;
		scan_input(l);
		return true;
	}
	if (n < 0 && errno == EINTR)
		return false;
	l->readable = false;
	if (n < 0 && errno == EAGAIN)
		return false;
	if (n == 0 || errno == EIO || errno == ECONNRESET) {
		/* no host is connected; the edge tells when one is */
		drop_session(l);
		l->in_len = l->in_tail = l->in_sent = 0;
		return false;
	}
	lose_port(l, -errno);
	return false;
}

/* --- socket → port ------------------------------------------------------------ */

static bool flush_out(struct link_guest *l)
{
	while (l->out_at < l->out_len) {
		ssize_t n = write(l->fd, l->out + l->out_at, l->out_len - l->out_at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN && errno != EPIPE)
			lose_port(l, -errno);
		if (n < 0 && errno == EPIPE)	/* a socket instead of a port, closed */
			l->out_at = l->out_len = 0;
		if (n <= 0)
			return false;
		l->out_at += (size_t)n;
	}
	l->out_at = l->out_len = 0;
	return true;
}

static bool pump_out(struct link_guest *l)
{
	ssize_t n;

	if (!flush_out(l) || !l->session)
		return false;
	n = recv(l->session->fd, l->out, BUFFER_SIZE, MSG_DONTWAIT);
	if (n > 0) {
		l->out_len = (size_t)n;
		return flush_out(l) && n == BUFFER_SIZE;	/* less: that was all */
	}
	if (n == 0 || (errno != EAGAIN && errno != EINTR))
		end_session(l);
	return false;
}

/* --- both --------------------------------------------------------------------- */

static void on_turn(void *arg)
{
	struct link_guest *l = arg;

	l->turn_posted = false;
	loop_unref(l->loop);
	if (!l->closed)
		pump(l);
	handle_gone(l);
}

/* The edge is used up, but not all was read: goes on after the others' turn. */
static void post_turn(struct link_guest *l)
{
	if (l->turn_posted)
		return;
	l->turn_posted = true;
	l->handles++;
	loop_ref(l->loop);
	loop_post(l->loop, on_turn, l);
}

static void arm_session(struct link_guest *l)
{
	struct session *s = l->session;
	int want = 0;

	if (l->out_at == l->out_len)
		want |= UV_READABLE;
	if (l->in_at < l->in_end)
		want |= UV_WRITABLE;
	if (want == s->armed)
		return;
	if (want)
		uv_poll_start(&s->poll, want, on_session_poll);
	else
		uv_poll_stop(&s->poll);
	if ((want ^ s->armed) & UV_WRITABLE) {
		if (want & UV_WRITABLE && !l->closing)
			uv_timer_start(&l->timer, on_stuck, l->stuck_ms, 0);
		else if (!l->closing)
			uv_timer_stop(&l->timer);
	}
	s->armed = want;
}

/* @in, @out: something may have come. What is to go to the port goes anyway. */
static void pump_ways(struct link_guest *l, bool in, bool out)
{
	for (int i = 0; i < ROUNDS_PER_TURN && (in || out) && l->fd >= 0; i++) {
		in = in && !l->closing && pump_in(l);
		out = l->fd >= 0 && (out || l->out_at < l->out_len) && pump_out(l);
	}
	if (l->fd < 0)
		return;
	if (in || out)
		post_turn(l);
	if (l->session)
		arm_session(l);
	else if (l->closing && l->out_at == l->out_len)
		finish(l);
}

static void pump(struct link_guest *l)
{
	pump_ways(l, true, true);
}

void link_guest_flush(struct link_guest *l)
{
	if (l->session && !l->closing)
		pump_ways(l, false, true);
}

static struct link_guest *make(struct loop *loop, const uint8_t *secret, link_session_fn session,
			       void *arg)
{
	struct link_guest *l = xnew(struct link_guest);

	l->loop = loop;
	l->on_session = session;
	l->arg = arg;
	l->fd = l->epoll_fd = -1;
	l->reopen_ms = REOPEN_MS;
	l->stuck_ms = STUCK_MS;
	memcpy(l->secret, secret, LINK_MAGIC_SIZE);
	uv_timer_init(&loop->uv, &l->timer);
	l->timer.data = l;
	l->handles = 1;
	return l;
}

int link_guest_open(struct loop *loop, const char *device, const uint8_t *secret,
		    link_session_fn session, void *arg, struct link_guest **ret,
		    struct error *err)
{
	struct link_guest *l;

	if (strlen(device) >= 4096)
		return error_set(err, -ENAMETOOLONG, "agent link: name of the port");
	l = make(loop, secret, session, arg);
	l->device = xstrdup(device);
	open_port(l);
	*ret = l;
	return 0;
}

int link_guest_new(struct loop *loop, int fd, const uint8_t *secret, link_session_fn session,
		   void *arg, struct link_guest **ret, struct error *err)
{
	struct link_guest *l = make(loop, secret, session, arg);

	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	if (watch_port(l, fd, err) < 0) {
		link_guest_close(l, NULL, NULL);
		return err->code;
	}
	*ret = l;
	return 0;
}

void link_guest_set_patience(struct link_guest *l, unsigned ms)
{
	l->stuck_ms = ms;
}

static void on_drained(uv_timer_t *timer)
{
	finish(timer->data);
}

void link_guest_close(struct link_guest *l, void (*closed)(void *arg), void *arg)
{
	if (l->closing)
		return;
	l->closing = true;
	l->on_closed = closed;
	l->on_closed_arg = arg;
	if (l->fd < 0) {
		finish(l);
		return;
	}
	uv_timer_start(&l->timer, on_drained, DRAIN_MS, 0);
	pump(l);
}
