#include "hostagent/forward/lane_socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"

enum {
	SOCKET_BUFFER = 128 * 1024,
	SOCKET_READS_PER_TURN = 8, /* then others have theirs */
	SOCKET_RETRY_MS = 5,       /* a unix listener's queue is full; doubled each time … */
	SOCKET_RETRY_MAX_MS = 160,
};

/* What was read and is written on at once; the loop has one thread. */
static uint8_t scratch[SOCKET_BUFFER];

enum { CLIENT, GUEST, SIDES };

struct side {
	uv_poll_t poll;
	int fd, events;
	struct buf out; /* for this one, from out_at on */
	size_t out_at;
	bool watched; /* the handle is there */
	bool eof;     /* it sent FIN */
	bool shut;    /* FIN was sent to it */
	bool took;    /* bytes were sent to it */
};

struct lane_conn { /* refs: handles; owner: the set until it is done */
	TAILQ_ENTRY(lane_conn) next;
	struct lane_sockets *set;
	struct lane_relay relay;
	struct side side[SIDES];
	uint64_t *count[SIDES]; /* what was read from that side */
	uv_timer_t timer;       /* to connect by */
	struct sockaddr_storage address;
	socklen_t address_len;
	uint64_t deadline_ms;
	int failed_code;
	unsigned retry_ms;
	unsigned refs;
	bool open, finished, silence_is_refusal, heard;
	bool unwatchable; /* the client's idle handle has news all the time */
};

/* --- the end ------------------------------------------------------------------ */

static void set_unref(struct lane_sockets *set)
{
	if (--set->refs == 0 && set->closed)
		set->closed(set->closed_arg);
}

static void conn_unref(struct lane_conn *c)
{
	struct lane_sockets *set = c->set;

	if (--c->refs > 0)
		return;
	free(c);
	set_unref(set);
}

static void on_handle_closed(uv_handle_t *h)
{
	conn_unref(h->data);
}

static void stop_watching(struct side *s)
{
	if (s->watched)
		uv_close((uv_handle_t *)&s->poll, on_handle_closed);
	s->watched = false;
	buf_done(&s->out);
}

/* The client's descriptor is its owner's again; the guest's side is closed. */
static void conn_free(struct lane_conn *c, bool reset)
{
	const struct linger at_once = { .l_onoff = reset, .l_linger = 0 };
	struct side *guest = &c->side[GUEST];

	c->finished = true;
	TAILQ_REMOVE(&c->set->conns, c, next);
	stop_watching(&c->side[CLIENT]);
	stop_watching(guest);
	if (guest->fd >= 0) {
		setsockopt(guest->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		close(guest->fd);
	}
	uv_close((uv_handle_t *)&c->timer, on_handle_closed);
	conn_unref(c);
}

static void conn_end(struct lane_conn *c, int code, const char *what)
{
	struct lane_relay relay = c->relay;
	struct error why = { 0 };

	if (code)
		error_set(&why, code, "%s", what);
	conn_free(c, code != 0);
	relay.closed(relay.arg, &why);
}

void lane_socket_reset(struct lane_conn *c)
{
	conn_free(c, true);
}

/* --- relaying ----------------------------------------------------------------- */

static void on_poll(uv_poll_t *poll, int status, int events);

static size_t waiting(const struct side *s)
{
	return s->out.len - s->out_at;
}

static int watch(struct lane_conn *c, struct side *s)
{
	int rc = uv_poll_init(&c->set->loop->uv, &s->poll, s->fd);

	if (rc < 0)
		return rc;
	s->poll.data = c;
	s->watched = true;
	c->refs++;
	return 0;
}

static void look_for(struct side *s, int events)
{
	if (events == s->events)
		return;
	s->events = events;
	if (events)
		uv_poll_start(&s->poll, events, on_poll);
	else
		uv_poll_stop(&s->poll);
}

static void conn_watch(struct lane_conn *c)
{
	struct side *client = &c->side[CLIENT], *guest = &c->side[GUEST];
	int events;

	if (c->finished)
		return;
	events = (client->eof || waiting(guest) ? 0 : UV_READABLE) |
		 (waiting(client) ? UV_WRITABLE : 0);
	/* its reset must not go unseen; tcp_stream.c does the same */
	look_for(client, events || c->unwatchable ? events : UV_PRIORITIZED);
	look_for(guest, (guest->eof || waiting(client) ? 0 : UV_READABLE) |
				(waiting(guest) ? UV_WRITABLE : 0));
}

/* Sends to @s what it takes at once. Negative: it failed. */
static ssize_t send_some(struct side *s, const uint8_t *data, size_t len)
{
	ssize_t n = send(s->fd, data, len, MSG_NOSIGNAL);

	s->took |= n > 0;
	return n >= 0 ? n : errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

/* The other end sent FIN and all that came before it is through. */
static void pass_fin(struct lane_conn *c, struct side *to)
{
	if (!to->shut && shutdown(to->fd, SHUT_WR) < 0 && errno != ENOTCONN) {
		conn_end(c, -errno, error_text(-errno));
		return;
	}
	to->shut = true;
	if (c->side[CLIENT].shut && c->side[GUEST].shut)
		conn_end(c, 0, "");
}

static void flush(struct lane_conn *c, struct side *s)
{
	struct side *other = s == &c->side[CLIENT] ? &c->side[GUEST] : &c->side[CLIENT];
	ssize_t n = send_some(s, s->out.data + s->out_at, waiting(s));

	if (n < 0) {
		conn_end(c, (int)n, error_text((int)n));
		return;
	}
	s->out_at += (size_t)n;
	if (waiting(s) > 0)
		return;
	buf_done(&s->out);
	s->out_at = 0;
	if (other->eof)
		pass_fin(c, s);
}

static bool hung_up(const struct side *s)
{
	struct pollfd p = { .fd = s->fd };

	return poll(&p, 1, 0) > 0 && p.revents & (POLLHUP | POLLERR);
}

/* ssh reads what it accepted only when the guest's server has, too (OpenSSH channels.c,
 * SSH_CHANNEL_OPENING), and a unix socket that is closed with bytes unread is an
 * ECONNRESET here (Linux af_unix.c, unix_release_sock). So an end after bytes is one by
 * a server that took them. */
static bool is_refusal(const struct lane_conn *c)
{
	const struct side *guest = &c->side[GUEST];

	return c->silence_is_refusal && !c->heard && !guest->took && hung_up(guest);
}

static void on_eof(struct lane_conn *c, struct side *from, struct side *to)
{
	from->eof = true;
	if (from == &c->side[GUEST] && is_refusal(c))
		conn_end(c, -ECONNRESET, "the guest's server refused, or said nothing");
	else if (waiting(to) == 0)
		pass_fin(c, to);
}

/* One piece; false: no more now, or @c ended. */
static bool move_some(struct lane_conn *c, struct side *from, struct side *to)
{
	ssize_t n = recv(from->fd, scratch, sizeof(scratch), 0), sent;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n < 0) {
		conn_end(c, -errno, error_text(-errno));
		return false;
	}
	if (n == 0) {
		on_eof(c, from, to);
		return false;
	}
	c->heard |= from == &c->side[GUEST];
	*c->count[from - c->side] += (uint64_t)n;
	sent = send_some(to, scratch, (size_t)n);
	if (sent < 0) {
		conn_end(c, (int)sent, error_text((int)sent));
		return false;
	}
	if (sent < n)
		buf_add(&to->out, scratch + sent, (size_t)(n - sent));
	return sent == n && (size_t)n == sizeof(scratch);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
	struct lane_conn *c = poll->data;
	struct side *s = container_of(poll, struct side, poll);
	struct side *other = s == &c->side[CLIENT] ? &c->side[GUEST] : &c->side[CLIENT];

	if (c->finished)
		return;
	if (status < 0) { /* the socket has an error: recv() says which */
		if (recv(s->fd, scratch, 1, MSG_DONTWAIT | MSG_PEEK) >= 0 || errno == EAGAIN)
			errno = ECONNRESET;
		conn_end(c, -errno, error_text(-errno));
		return;
	}
	c->unwatchable |= (events & UV_PRIORITIZED) != 0;
	if (events & UV_WRITABLE && waiting(s))
		flush(c, s);
	for (int i = 0; i < SOCKET_READS_PER_TURN; i++)
		if (c->finished || !(events & UV_READABLE) || s->eof || waiting(other) ||
		    !move_some(c, s, other))
			break;
	conn_watch(c);
}

/* --- connecting --------------------------------------------------------------- */

static void start_connect(struct lane_conn *c);

static void connect_failed(struct lane_conn *c, int errnum)
{
	conn_end(c, c->failed_code, error_text(-errnum));
}

static void on_timer(uv_timer_t *t)
{
	struct lane_conn *c = t->data;

	if (uv_now(t->loop) >= c->deadline_ms)
		connect_failed(c, ETIMEDOUT);
	else
		start_connect(c);
}

static void on_connected(uv_poll_t *poll, int status, int events)
{
	struct lane_conn *c = poll->data;
	struct side *guest = &c->side[GUEST];
	socklen_t len = sizeof(int);
	int errnum = 0;

	if (c->finished)
		return;
	if (getsockopt(guest->fd, SOL_SOCKET, SO_ERROR, &errnum, &len) < 0)
		errnum = errno;
	if (errnum == 0 && status < 0)
		errnum = ECONNRESET;
	if (errnum == 0 && watch(c, &c->side[CLIENT]) < 0)
		errnum = EIO;
	if (errnum) {
		connect_failed(c, errnum);
		return;
	}
	uv_timer_stop(&c->timer);
	uv_poll_stop(&guest->poll);
	c->open = true;
	conn_watch(c);
	c->relay.opened(c->relay.arg);
}

/* Its outcome is told by the poll, also one that is there at once. */
static void start_connect(struct lane_conn *c)
{
	struct side *guest = &c->side[GUEST];
	uint64_t now = uv_now(&c->set->loop->uv);
	int rc = connect(guest->fd, (const struct sockaddr *)&c->address, c->address_len);

	if (rc < 0 && errno == EAGAIN) { /* unix(7): the queue of the listener is full */
		c->retry_ms = c->retry_ms ? MIN(c->retry_ms * 2, (unsigned)SOCKET_RETRY_MAX_MS) :
					    SOCKET_RETRY_MS;
		uv_timer_start(&c->timer, on_timer, c->retry_ms, 0);
	} else if (rc < 0 && errno != EINPROGRESS) {
		c->deadline_ms = now; /* not inside the call that wants it */
		uv_timer_start(&c->timer, on_timer, 0, 0);
	} else {
		uv_timer_start(&c->timer, on_timer,
			       c->deadline_ms > now ? c->deadline_ms - now : 0, 0);
		uv_poll_start(&guest->poll, UV_WRITABLE, on_connected);
	}
}

int lane_socket_relay(struct lane_sockets *set, const struct lane_socket_options *opts,
		      const struct lane_relay *relay, struct lane_conn **ret, struct error *err)
{
	int fd = socket(opts->address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	/* who is killed closes with RST, as tcp_listener.c has it */
	static const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
	int on = 1;
	struct lane_conn *c;

	if (fd < 0)
		return error_sys(err, -errno, "socket");
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* fails on a unix socket */
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	c = xnew(struct lane_conn);
	c->set = set;
	c->relay = *relay;
	c->side[CLIENT].fd = relay->fd;
	c->side[GUEST].fd = fd;
	c->count[CLIENT] = relay->bytes_in;
	c->count[GUEST] = relay->bytes_out;
	memcpy(&c->address, opts->address, opts->address_len);
	c->address_len = opts->address_len;
	c->failed_code = opts->failed_code ? opts->failed_code : -ENOTCONN;
	c->silence_is_refusal = opts->silence_is_refusal;
	c->deadline_ms = uv_now(&set->loop->uv) + opts->connect_ms;
	c->refs = 2; /* until conn_free(); the timer */
	uv_timer_init(&set->loop->uv, &c->timer);
	c->timer.data = c;
	set->refs++;
	TAILQ_INSERT_TAIL(&set->conns, c, next);
	if (watch(c, &c->side[GUEST]) < 0) {
		conn_free(c, false);
		return error_set(err, -ENOMEM, "watch a socket");
	}
	start_connect(c);
	*ret = c;
	return 0;
}

/* --- the set ------------------------------------------------------------------ */

void lane_sockets_init(struct lane_sockets *set, struct loop *loop)
{
	*set = (struct lane_sockets){ .loop = loop, .refs = 1 };
	TAILQ_INIT(&set->conns);
}

static void on_close_posted(void *arg)
{
	struct lane_sockets *set = arg;

	loop_unref(set->loop);
	set_unref(set);
}

void lane_sockets_close(struct lane_sockets *set, void (*closed)(void *arg), void *arg)
{
	struct lane_conn *c;

	set->closed = closed;
	set->closed_arg = arg;
	while ((c = TAILQ_FIRST(&set->conns)))
		conn_end(c, c->open ? -ECONNRESET : -ECANCELED, "the lane was closed");
	loop_ref(set->loop);
	loop_post(set->loop, on_close_posted, set);
}
