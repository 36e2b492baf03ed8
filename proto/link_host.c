#include "proto/link_host.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "proto/link.h"

enum {
	SYN_AGAIN_MS = 1000,
	SYN_AGAIN_MAX_MS = 8000,
	PEEK_SIZE = 64 << 10,
	READS_PER_TURN = 16,
};

struct link_host {	/* owner: the caller of new. handles: poll and timer */
	uv_poll_t poll;
	uv_timer_t timer;
	unsigned handles;
	int fd;
	struct link_host_callbacks cb;
	void *arg;
	bool over;			/* ready or failed was called, or close */
	bool close_wanted;
	void (*closed)(void *arg);
	void *closed_arg;

	uint8_t secret[LINK_MAGIC_SIZE];
	uint8_t syn[LINK_FRAME_SIZE];	/* the last one sent, or being sent */
	size_t syn_sent;
	uint8_t ack[LINK_FRAME_SIZE];	/* what it is answered by */
	unsigned again_ms;
	/* The end of what was read, which may be the beginning of ACK, and after
	 * it what was peeked at. */
	uint8_t in[LINK_FRAME_SIZE + PEEK_SIZE];
	size_t tail;
};

static void on_poll(uv_poll_t *poll, int status, int events);

static void check_done(struct link_host *l)
{
	void (*closed)(void *arg) = l->closed;
	void *arg = l->closed_arg;

	if (!l->close_wanted || l->handles > 0)
		return;
	if (l->fd >= 0)
		close(l->fd);
	free(l);
	if (closed)
		closed(arg);
}

static void on_handle_closed(uv_handle_t *h)
{
	struct link_host *l = h->data;

	l->handles--;
	check_done(l);
}

static void stop(struct link_host *l)
{
	if (l->over)
		return;
	l->over = true;
	uv_close((uv_handle_t *)&l->poll, on_handle_closed);
	uv_close((uv_handle_t *)&l->timer, on_handle_closed);
}

static void fail(struct link_host *l, int code, const char *what)
{
	struct error err = { 0 };

	if (l->over)
		return;
	stop(l);
	error_sys(&err, code, "agent link: %s", what);
	l->cb.failed(l->arg, &err);
}

static void set_events(struct link_host *l)
{
	bool flushing = l->syn_sent < LINK_FRAME_SIZE;

	uv_poll_start(&l->poll, UV_READABLE | (flushing ? UV_WRITABLE : 0), on_poll);
}

static void send_syn(struct link_host *l)
{
	ssize_t n = send(l->fd, l->syn + l->syn_sent, LINK_FRAME_SIZE - l->syn_sent,
			 MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		fail(l, -errno, "send the handshake");
		return;
	}
	l->syn_sent += n > 0 ? (size_t)n : 0;
	set_events(l);
}

/* A new SYN, unless the last one is still on its way out (QEMU does not read:
 * the guest's port is closed and the socket buffer full). */
static void next_syn(struct link_host *l)
{
	uint8_t *nonce = l->syn + LINK_MAGIC_SIZE;

	if (l->syn_sent < LINK_FRAME_SIZE)
		return;
	if (getrandom(nonce, LINK_NONCE_SIZE, 0) != LINK_NONCE_SIZE) {
		fail(l, -errno, "random numbers");
		return;
	}
	memcpy(l->syn, l->secret, LINK_MAGIC_SIZE);
	link_ack_magic(l->secret, l->ack);
	memcpy(l->ack + LINK_MAGIC_SIZE, nonce, LINK_NONCE_SIZE);
	l->syn_sent = 0;
	send_syn(l);
}

static void on_timer(uv_timer_t *timer)
{
	struct link_host *l = timer->data;

	l->again_ms = MIN(l->again_ms * 2, (unsigned)SYN_AGAIN_MAX_MS);
	uv_timer_start(timer, on_timer, l->again_ms, 0);
	next_syn(l);
}

/* Looks for the ACK in what is kept and the @n new bytes after it. Returns how
 * many of these are not the new session's. */
static size_t scan(struct link_host *l, size_t n, bool *found)
{
	size_t from = 0, at, have = l->tail + n;

	*found = false;
	while (link_find(l->ack, l->in + from, have - from, &at)) {
		from += at;
		if (memcmp(l->in + from, l->ack, LINK_FRAME_SIZE) == 0) {
			*found = true;
			return from + LINK_FRAME_SIZE - l->tail;
		}
		from++;		/* ACK of an earlier SYN, or of an earlier host's */
	}
	at += from;
	memmove(l->in, l->in + at, have - at);
	l->tail = have - at;
	return n;
}

/* Peeks, so that not one byte behind the ACK is taken. True: go on. */
static bool read_some(struct link_host *l)
{
	ssize_t n = recv(l->fd, l->in + l->tail, PEEK_SIZE, MSG_PEEK | MSG_DONTWAIT);
	uint8_t sink[4096];
	size_t used;
	bool found;
	int fd;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		fail(l, n < 0 ? -errno : -ENOTCONN, "the virtual machine's end closed");
		return false;
	}
	used = scan(l, (size_t)n, &found);
	while (used > 0) {
		n = recv(l->fd, sink, MIN(used, sizeof(sink)), MSG_DONTWAIT);
		if (n <= 0) {	/* they were there a moment ago */
			fail(l, n < 0 ? -errno : -EIO, "read");
			return false;
		}
		used -= (size_t)n;
	}
	if (!found)
		return true;
	stop(l);	/* takes the descriptor out of the loop at once */
	fd = l->fd;
	l->fd = -1;
	l->cb.ready(l->arg, fd);
	return false;
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
	struct link_host *l = poll->data;

	if (l->over)
		return;
	if (status < 0) {
		fail(l, status, "poll");
		return;
	}
	if (events & UV_WRITABLE)
		send_syn(l);
	for (int i = 0; i < READS_PER_TURN && !l->over; i++) {
		if (!read_some(l))
			return;
	}
}

int link_host_new(struct loop *loop, int fd, const uint8_t *secret,
		  const struct link_host_callbacks *cb, void *arg, struct link_host **ret,
		  struct error *err)
{
	scoped_free struct link_host *l = xnew(struct link_host);
	scoped_fd int owned = fd;
	int rc;

	l->cb = *cb;
	l->arg = arg;
	memcpy(l->secret, secret, LINK_MAGIC_SIZE);
	l->syn_sent = LINK_FRAME_SIZE;
	l->again_ms = SYN_AGAIN_MS;
	l->fd = fd;
	rc = uv_poll_init(&loop->uv, &l->poll, fd);
	if (rc < 0)
		return error_sys(err, rc, "agent link: watch the socket");
	uv_timer_init(&loop->uv, &l->timer);
	l->poll.data = l->timer.data = l;
	l->handles = 2;
	/* the first SYN too goes from the loop: failure is told by callback only */
	uv_timer_start(&l->timer, on_timer, 0, 0);
	l->again_ms = SYN_AGAIN_MS / 2;
	steal_fd(&owned);
	*ret = steal_ptr(&l);
	return 0;
}

void link_host_kick(struct link_host *l)
{
	if (l->over)
		return;
	l->again_ms = SYN_AGAIN_MS / 2;
	uv_timer_start(&l->timer, on_timer, 0, 0);
}

void link_host_close(struct link_host *l, void (*closed)(void *arg), void *arg)
{
	l->closed = closed;
	l->closed_arg = arg;
	l->close_wanted = true;
	stop(l);
	check_done(l);
}
