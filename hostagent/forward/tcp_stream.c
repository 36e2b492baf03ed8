#include "hostagent/forward/tcp_stream.h"

#include <assert.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"

enum {
	STREAM_READ_MIN = 4 * 1024,
	STREAM_READ_MAX = 128 * 1024,
	STREAM_READS_PER_TURN = 8, /* then others have theirs */
	STREAM_WRITE_HIGH = 256 * 1024, /* waiting for the client: pause the lane */
	STREAM_WRITE_LOW = 64 * 1024,   /* … and go on */
};

struct tcp_stream { /* owner: itself, until closed() or reset() and the handle is gone */
	uv_poll_t poll;
	struct hub *hub;
	struct lane_relay relay;
	const struct lane_ops *ops;
	struct lane_conn *lane; /* NULL: ended */
	struct buf out;         /* for the client, from out_at on */
	size_t out_at;
	size_t read_size; /* next buffer */
	int events;       /* what the handle looks for */
	bool open;        /* the lane said so; there is a handle */
	bool client_eof;  /* FIN from the client */
	bool guest_eof;   /* FIN to the client wanted */
	bool shut;        /* … and sent */
	bool lane_full;   /* reading stopped until `writable` */
	bool lane_paused;
	bool unwatchable; /* an idle handle has news all the time */
	bool finished;
	struct error why; /* how the lane ended */
};

static struct tcp_stream *stream(struct lane_conn *c)
{
	return (struct tcp_stream *)c;
}

/* --- the end ---------------------------------------------------------------- */

static void on_handle_closed(uv_handle_t *h)
{
	struct tcp_stream *s = h->data;

	hub_unref(s->hub);
	free(s);
}

/* The descriptor is its owner's again on return. */
static void stream_free(struct tcp_stream *s)
{
	struct lane_conn *lane = steal_ptr(&s->lane);

	s->finished = true;
	buf_done(&s->out);
	if (lane)
		s->ops->reset(lane);
	if (s->open)
		uv_close((uv_handle_t *)&s->poll, on_handle_closed);
	else
		free(s);
}

static void stream_finish(struct tcp_stream *s, const struct error *why)
{
	struct error copy = *why;
	struct lane_relay relay = s->relay;

	stream_free(s);
	relay.closed(relay.arg, &copy);
}

static void client_failed(struct tcp_stream *s, int errnum)
{
	struct error why = { 0 };

	error_set(&why, -errnum, "client: %s", error_text(-errnum));
	stream_finish(s, &why);
}

void tcp_stream_reset(struct lane_conn *c)
{
	stream_free(stream(c));
}

/* --- what to look for -------------------------------------------------------- */

static void on_poll(uv_poll_t *poll, int status, int events);

static size_t waiting(const struct tcp_stream *s)
{
	return s->out.len - s->out_at;
}

static void stream_watch(struct tcp_stream *s)
{
	int events = (s->lane && !s->client_eof && !s->lane_full ? UV_READABLE : 0) |
		     (waiting(s) ? UV_WRITABLE : 0);

	/* Nothing is wanted of the client, but a reset of its must not go unseen: that
	 * comes with whatever is asked for, and urgent data hardly ever does. */
	if (!events && s->lane && !s->unwatchable)
		events = UV_PRIORITIZED;
	if (s->finished || events == s->events)
		return;
	s->events = events;
	if (events)
		uv_poll_start(&s->poll, events, on_poll);
	else
		uv_poll_stop(&s->poll);
}

/* --- guest to client -------------------------------------------------------- */

/* Sends what the client takes at once; false when that was the end of @s. */
static bool send_some(struct tcp_stream *s, const uint8_t *data, size_t len, size_t *ret_sent)
{
	size_t sent = 0;

	while (sent < len) {
		ssize_t n = send(s->relay.fd, data + sent, len - sent, MSG_NOSIGNAL);

		if (n >= 0) {
			sent += (size_t)n;
		} else if (errno == EAGAIN) {
			break;
		} else if (errno != EINTR) {
			client_failed(s, errno);
			return false;
		}
	}
	*ret_sent = sent;
	return true;
}

/* Everything was sent: what was to follow it. May end @s. */
static void stream_drained(struct tcp_stream *s)
{
	if (s->guest_eof && !s->shut) {
		s->shut = true;
		if (shutdown(s->relay.fd, SHUT_WR) < 0) {
			client_failed(s, errno);
			return;
		}
	}
	if (!s->lane)
		stream_finish(s, &s->why);
}

static void on_writable(struct tcp_stream *s)
{
	size_t sent;

	if (!send_some(s, s->out.data + s->out_at, waiting(s), &sent))
		return;
	s->out_at += sent;
	if (waiting(s) <= STREAM_WRITE_LOW && s->lane_paused && s->lane) {
		s->lane_paused = false;
		s->ops->resume(s->lane);
	}
	if (waiting(s) > 0)
		return;
	buf_done(&s->out);
	s->out_at = 0;
	stream_drained(s);
}

static void on_lane_data(void *arg, const uint8_t *data, size_t len)
{
	struct tcp_stream *s = arg;
	size_t sent = 0;

	*s->relay.bytes_out += len;
	if (waiting(s) == 0 && !send_some(s, data, len, &sent))
		return;
	if (sent == len)
		return;
	if (s->out_at > waiting(s)) { /* moves each byte once at most */
		buf_consume(&s->out, s->out_at);
		s->out_at = 0;
	}
	buf_add(&s->out, data + sent, len - sent);
	if (waiting(s) > STREAM_WRITE_HIGH && !s->lane_paused) {
		s->lane_paused = true;
		s->ops->pause(s->lane);
	}
	stream_watch(s);
}

static void on_lane_eof(void *arg)
{
	struct tcp_stream *s = arg;

	s->guest_eof = true;
	if (waiting(s) == 0)
		stream_drained(s);
}

/* --- client to guest -------------------------------------------------------- */

/* Full buffers make the next one larger, nearly empty ones smaller. What is
 * handed over may wait in the lane, so it keeps no slack. */
static uint8_t *fit(struct tcp_stream *s, uint8_t *data, size_t len)
{
	size_t cap = s->read_size;

	if (len == cap)
		s->read_size = MIN(cap * 4, (size_t)STREAM_READ_MAX);
	else if (len < cap / 4)
		s->read_size = MAX(cap / 2, (size_t)STREAM_READ_MIN);
	return len < cap / 4 ? xrealloc(data, len) : data;
}

/* One read; false: no more now, or @s ended. */
static bool read_some(struct tcp_stream *s)
{
	size_t cap = s->read_size;
	uint8_t *data = xmalloc(cap);
	ssize_t n = recv(s->relay.fd, data, cap, 0);
	int errnum = errno;

	if (n > 0) {
		data = fit(s, data, (size_t)n);
		*s->relay.bytes_in += (uint64_t)n;
		s->lane_full = !s->ops->write(s->lane, data, (size_t)n);
		return !s->lane_full && (size_t)n == cap;
	}
	free(data);
	if (n == 0) {
		s->client_eof = true;
		s->ops->eof(s->lane);
	} else if (errnum != EAGAIN && errnum != EINTR) {
		client_failed(s, errnum);
	}
	return false;
}

static void on_readable(struct tcp_stream *s)
{
	for (int i = 0; i < STREAM_READS_PER_TURN; i++)
		if (!read_some(s))
			return;
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
	struct tcp_stream *s = poll->data;

	if (s->finished)
		return;
	if (status < 0) { /* libuv stopped the handle: the socket has an error for us */
		int errnum = 0;
		socklen_t len = sizeof(errnum);

		getsockopt(s->relay.fd, SOL_SOCKET, SO_ERROR, &errnum, &len);
		client_failed(s, errnum ? errnum : ECONNRESET);
		return;
	}
	s->unwatchable |= (events & UV_PRIORITIZED) != 0;
	if (events & UV_WRITABLE && waiting(s))
		on_writable(s);
	if (events & UV_READABLE && !s->finished && s->events & UV_READABLE && s->lane)
		on_readable(s);
	stream_watch(s);
}

static void on_lane_writable(void *arg)
{
	struct tcp_stream *s = arg;

	s->lane_full = false;
	stream_watch(s);
}

/* --- the lane's side -------------------------------------------------------- */

static void on_lane_opened(void *arg)
{
	struct tcp_stream *s = arg;
	struct lane_relay relay = s->relay;
	int rc = uv_poll_init(&s->hub->loop->uv, &s->poll, relay.fd);

	if (rc < 0) {
		client_failed(s, -rc);
		return;
	}
	s->poll.data = s;
	s->open = true;
	hub_ref(s->hub);
	stream_watch(s);
	relay.opened(relay.arg);
}

static void on_lane_closed(void *arg, const struct error *why)
{
	struct tcp_stream *s = arg;

	s->lane = NULL;
	s->why = *why;
	s->guest_eof |= why->code == 0;
	if (!s->open)
		stream_finish(s, why);
	else if (waiting(s) == 0)
		stream_drained(s);
	else
		stream_watch(s);
}

static const struct lane_callbacks callbacks = {
	.opened = on_lane_opened,
	.data = on_lane_data,
	.eof = on_lane_eof,
	.writable = on_lane_writable,
	.closed = on_lane_closed,
};

int tcp_stream_relay(struct hub *hub, struct lane *lane, const struct lane_relay *relay,
		     struct lane_conn **ret, struct error *err)
{
	struct tcp_stream *s = xnew(struct tcp_stream);
	struct lane_callbacks cb = callbacks;

	s->hub = hub;
	s->relay = *relay;
	s->ops = lane->ops;
	s->read_size = STREAM_READ_MIN;
	cb.arg = s;
	if (lane->ops->open(lane, IPPROTO_TCP, relay->guest_addr, &cb, &s->lane, err) < 0) {
		free(s);
		return err->code;
	}
	*ret = (struct lane_conn *)s;
	return 0;
}
