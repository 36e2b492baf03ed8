#include "hostagent/forward/tcp.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hostagent/forward/lane.h"
#include "hostagent/forward/tcp_conn.h"
#include "lib/base/buf.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	TCP_READ_MIN = 4 * 1024,
	TCP_READ_MAX = 128 * 1024,
	TCP_WRITE_HIGH = 256 * 1024, /* waiting for the client: pause the lane */
	TCP_WRITE_LOW = 64 * 1024,   /* … and go on */
	TCP_KEEPALIVE_S = 60,
};

enum tcp_state {
	TCP_WAITING,  /* no lane: in set->waiting */
	TCP_OPENING,  /* the lane connects: in set->opening; has a lane_conn */
	TCP_RELAYING, /* has a lane_conn */
	TCP_DRAINING, /* the guest's side ended; what is left goes to the client */
	TCP_CLOSED,   /* only the handle's close callback is left */
};

struct tcp_conn { /* owner: the set, until the handle is closed */
	union {
		uv_handle_t handle;
		uv_stream_t stream;
		uv_tcp_t tcp;
		uv_pipe_t pipe;
	} sock;
	uv_shutdown_t shutdown;
	uv_write_t write;
	struct buf in_flight, queued; /* to the client: being written, after that */
	TAILQ_ENTRY(tcp_conn) in_set;
	TAILQ_ENTRY(tcp_conn) in_queue; /* waiting or opening */
	uint64_t deadline_ms;           /* while in a queue */
	struct tcp_set *set;
	struct target *target;
	const struct lane_ops *ops; /* of the lane it was opened on */
	struct lane_conn *lane;     /* NULL: none yet, or ended */
	size_t read_size;           /* next buffer */
	enum tcp_state state;
	bool client_eof;     /* FIN from the client */
	bool shutting, shut; /* FIN to the client wanted, sent */
	bool reset_at_end;   /* draining ends with RST instead of FIN */
	bool lane_full;      /* reading stopped until `writable` */
	bool lane_paused;
};

TAILQ_HEAD(tcp_list, tcp_conn);

struct tcp_queue { /* first in, first to run out of time */
	struct tcp_list list;
	uv_timer_t timer;
	unsigned wait_ms;
	struct tcp_set *set;
};

struct tcp_set { /* freed by the hub's owner, after its last connection */
	struct hub *hub;
	struct tcp_list conns;
	size_t n_conns;
	struct tcp_queue waiting, opening;
	unsigned timers;
};

static void conn_abort(struct tcp_conn *c);

/* --- the two queues with a deadline ---------------------------------------- */

static struct tcp_queue *conn_queue(struct tcp_conn *c)
{
	if (c->state == TCP_WAITING)
		return &c->set->waiting;
	return c->state == TCP_OPENING ? &c->set->opening : NULL;
}

static void on_deadline(uv_timer_t *timer);

static void queue_arm(struct tcp_queue *q, uv_loop_t *loop)
{
	struct tcp_conn *first = TAILQ_FIRST(&q->list);

	if (!first) {
		uv_timer_stop(&q->timer);
	} else if (!uv_is_active((uv_handle_t *)&q->timer)) {
		uint64_t now = uv_now(loop);

		uv_timer_start(&q->timer, on_deadline,
			       first->deadline_ms > now ? first->deadline_ms - now : 1, 0);
	}
}

static void on_deadline(uv_timer_t *timer)
{
	struct tcp_queue *q = timer->data;
	struct tcp_conn *c;

	while ((c = TAILQ_FIRST(&q->list)) && c->deadline_ms <= uv_now(timer->loop)) {
		log_warn_limited("forward: no answer from the guest for `%s` in %u s; client reset",
				 c->target->guest_addr, q->wait_ms / 1000);
		conn_abort(c);
	}
	queue_arm(q, timer->loop);
}

/* Leaves the queue of its state, enters the one of @state. */
static void conn_set_state(struct tcp_conn *c, enum tcp_state state)
{
	uv_loop_t *loop = c->sock.handle.loop;
	struct tcp_queue *q = conn_queue(c);

	if (q) {
		TAILQ_REMOVE(&q->list, c, in_queue);
		if (TAILQ_EMPTY(&q->list))
			queue_arm(q, loop);
	}
	c->state = state;
	q = conn_queue(c);
	if (q) {
		c->deadline_ms = uv_now(loop) + q->wait_ms;
		TAILQ_INSERT_TAIL(&q->list, c, in_queue);
		queue_arm(q, loop);
	}
}

/* --- the end ---------------------------------------------------------------- */

static void on_conn_closed(uv_handle_t *h)
{
	struct tcp_conn *c = h->data;

	assert(!c->lane);
	buf_done(&c->in_flight);
	buf_done(&c->queued);
	target_unref(c->target);
	hub_unref(c->set->hub);
	free(c);
}

static void conn_close(struct tcp_conn *c)
{
	if (c->state == TCP_CLOSED)
		return;
	conn_set_state(c, TCP_CLOSED);
	TAILQ_REMOVE(&c->set->conns, c, in_set);
	c->set->n_conns--;
	c->target->connections_now--;
	uv_close(&c->sock.handle, on_conn_closed);
}

/* Both sides get a reset. */
static void conn_abort(struct tcp_conn *c)
{
	/* close() with a zero linger time sends RST (tcp(7), socket(7)) */
	static const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
	struct lane_conn *lane = steal_ptr(&c->lane);
	uv_os_fd_t fd;

	if (lane)
		c->ops->reset(lane);
	if (c->sock.handle.type == UV_TCP && uv_fileno(&c->sock.handle, &fd) == 0)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	conn_close(c);
}

/* --- guest to client -------------------------------------------------------- */

static void on_written(uv_write_t *req, int status);

static void conn_flush(struct tcp_conn *c)
{
	uv_buf_t out;
	int rc;

	c->in_flight = c->queued;
	c->queued = (struct buf){ 0 };
	out = uv_buf_init((char *)c->in_flight.data, (unsigned)c->in_flight.len);
	rc = uv_write(&c->write, &c->sock.stream, &out, 1, on_written);
	assert(rc == 0); /* only says whether the handle is a stream */
}

static void on_shut_down(uv_shutdown_t *req, int status)
{
	struct tcp_conn *c = req->data;

	if (c->state == TCP_CLOSED)
		return;
	c->shut = true;
	if (status < 0)
		conn_abort(c);
	else if (c->state == TCP_DRAINING)
		conn_close(c);
}

/* FIN to the client, after everything that waits. */
static void conn_shut_down(struct tcp_conn *c)
{
	if (c->shutting)
		return;
	c->shutting = true;
	c->shutdown.data = c;
	/* libuv runs it when its write queue is empty, so ours must be in there */
	if (c->in_flight.len == 0 && uv_shutdown(&c->shutdown, &c->sock.stream, on_shut_down) < 0)
		conn_abort(c);
}

static void conn_resume_lane(struct tcp_conn *c)
{
	if (!c->lane_paused || c->in_flight.len + c->queued.len > TCP_WRITE_LOW)
		return;
	c->lane_paused = false;
	if (c->lane)
		c->ops->resume(c->lane);
}

static void on_written(uv_write_t *req, int status)
{
	struct tcp_conn *c = req->data;

	if (c->state == TCP_CLOSED)
		return;
	buf_done(&c->in_flight);
	if (status < 0 || (c->reset_at_end && c->queued.len == 0)) {
		conn_abort(c);
		return;
	}
	if (c->queued.len > 0)
		conn_flush(c);
	else if (c->shutting && uv_shutdown(&c->shutdown, &c->sock.stream, on_shut_down) < 0)
		conn_abort(c);
	else
		conn_resume_lane(c);
}

static void on_lane_data(void *arg, const uint8_t *data, size_t len)
{
	struct tcp_conn *c = arg;
	uv_buf_t out = uv_buf_init((char *)data, (unsigned)len);
	int n = UV_EAGAIN;

	c->target->bytes_out += len;
	if (c->in_flight.len == 0)
		n = uv_try_write(&c->sock.stream, &out, 1);
	if (n == UV_EAGAIN)
		n = 0;
	if (n < 0) {
		conn_abort(c);
		return;
	}
	if ((size_t)n == len)
		return;
	buf_add(&c->queued, data + n, len - (size_t)n);
	if (c->in_flight.len == 0)
		conn_flush(c);
	if (c->in_flight.len + c->queued.len > TCP_WRITE_HIGH && !c->lane_paused && c->lane) {
		c->lane_paused = true;
		c->ops->pause(c->lane);
	}
}

static void on_lane_eof(void *arg)
{
	conn_shut_down(arg);
}

/* --- client to guest -------------------------------------------------------- */

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *ret)
{
	struct tcp_conn *c = h->data;

	*ret = uv_buf_init(xmalloc(c->read_size), (unsigned)c->read_size);
}

/* Full buffers make the next one larger, nearly empty ones smaller. What is
 * handed over may wait in the lane, so it keeps no slack. */
static uint8_t *fit(struct tcp_conn *c, uint8_t *data, size_t len)
{
	size_t cap = c->read_size;

	if (len == cap)
		c->read_size = MIN(cap * 4, (size_t)TCP_READ_MAX);
	else if (len < cap / 4)
		c->read_size = MAX(cap / 2, (size_t)TCP_READ_MIN);
	return len < cap / 4 ? xrealloc(data, len) : data;
}

static void conn_client_eof(struct tcp_conn *c)
{
	c->client_eof = true;
	uv_read_stop(&c->sock.stream);
	if (c->lane)
		c->ops->eof(c->lane);
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *buf)
{
	struct tcp_conn *c = s->data;
	uint8_t *data = (uint8_t *)buf->base;

	if (n <= 0 || c->state == TCP_CLOSED || !c->lane)
		free(data);
	if (n == 0 || c->state == TCP_CLOSED)
		return;
	if (n == UV_EOF)
		conn_client_eof(c);
	else if (n < 0)
		conn_abort(c);
	if (n < 0 || !c->lane)
		return; /* draining: nobody takes the client's bytes any more */
	data = fit(c, data, (size_t)n);
	c->target->bytes_in += (uint64_t)n;
	if (!c->ops->write(c->lane, data, (size_t)n)) {
		c->lane_full = true;
		uv_read_stop(s);
	}
}

static void conn_read(struct tcp_conn *c)
{
	if (!c->client_eof && uv_read_start(&c->sock.stream, on_alloc, on_read) < 0)
		conn_abort(c);
}

static void on_lane_writable(void *arg)
{
	struct tcp_conn *c = arg;

	if (!c->lane_full)
		return;
	c->lane_full = false;
	conn_read(c);
}

/* --- the lane's side -------------------------------------------------------- */

static void on_lane_opened(void *arg)
{
	struct tcp_conn *c = arg;

	conn_set_state(c, TCP_RELAYING);
	conn_read(c);
}

static void on_lane_closed(void *arg, const struct error *why)
{
	struct tcp_conn *c = arg;

	c->lane = NULL;
	if (c->state == TCP_OPENING && lane_is_gone(why->code)) {
		conn_set_state(c, TCP_WAITING); /* nothing was taken from the client yet */
		return;
	}
	if (why->code != 0 || c->state == TCP_OPENING) {
		log_debug("forward: connection to guest `%s` ended: %s", c->target->guest_addr,
			  why->msg);
		c->reset_at_end = true;
	}
	conn_set_state(c, TCP_DRAINING);
	if (c->reset_at_end && c->in_flight.len == 0)
		conn_abort(c);
	else if (c->shut)
		conn_close(c);
	else if (!c->reset_at_end)
		conn_shut_down(c);
}

static const struct lane_callbacks callbacks = {
	.opened = on_lane_opened,
	.data = on_lane_data,
	.eof = on_lane_eof,
	.writable = on_lane_writable,
	.closed = on_lane_closed,
};

/* @c waits and there is a lane. */
static void conn_dial(struct tcp_conn *c)
{
	struct lane *lane = c->set->hub->lane;
	struct lane_callbacks cb = callbacks;
	struct error err = { 0 };

	cb.arg = c;
	c->ops = lane->ops;
	if (lane->ops->open(lane, IPPROTO_TCP, c->target->guest_addr, &cb, &c->lane, &err) == 0) {
		conn_set_state(c, TCP_OPENING);
	} else if (!lane_is_gone(err.code)) {
		log_warn_limited("forward: cannot open a connection to guest `%s`: %s",
				 c->target->guest_addr, err.msg);
		conn_abort(c);
	} /* else the client goes on waiting for a lane */
}

/* --- clients ---------------------------------------------------------------- */

static int conn_adopt(struct tcp_conn *c, int fd)
{
	uv_loop_t *loop = &c->set->hub->loop->uv;
	int domain = AF_INET, rc;
	socklen_t len = sizeof(domain);

	getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len);
	if (domain == AF_UNIX) {
		uv_pipe_init(loop, &c->sock.pipe, 0);
		rc = uv_pipe_open(&c->sock.pipe, fd);
	} else {
		uv_tcp_init(loop, &c->sock.tcp);
		rc = uv_tcp_open(&c->sock.tcp, fd);
		if (rc == 0) {
			uv_tcp_nodelay(&c->sock.tcp, 1);
			uv_tcp_keepalive(&c->sock.tcp, 1, TCP_KEEPALIVE_S);
		}
	}
	c->sock.handle.data = c->write.data = c;
	return rc;
}

void tcp_conn_start(struct hub *hub, int fd, struct target *target)
{
	static const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
	struct tcp_set *set = hub->tcp;

	if (set->n_conns >= hub->limits.max_connections) {
		log_warn_limited(
			"forward: %zu connections are open, the limit; client of guest `%s` reset",
			set->n_conns, target->guest_addr);
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		close(fd);
		return;
	}
	struct tcp_conn *c = xnew(struct tcp_conn);

	c->set = set;
	c->target = target_ref(target);
	c->read_size = TCP_READ_MIN;
	c->state = TCP_CLOSED; /* in no queue yet */
	hub_ref(hub);
	TAILQ_INSERT_TAIL(&set->conns, c, in_set);
	set->n_conns++;
	target->connections_total++;
	target->connections_now++;
	int rc = conn_adopt(c, fd);

	conn_set_state(c, TCP_WAITING);
	if (rc < 0) {
		close(fd); /* libuv did not take it */
		conn_abort(c);
	} else if (hub->lane) {
		conn_dial(c);
	}
}

/* --- the set ---------------------------------------------------------------- */

static void queue_init(struct tcp_set *set, struct tcp_queue *q, unsigned wait_ms)
{
	TAILQ_INIT(&q->list);
	q->wait_ms = wait_ms;
	q->set = set;
	uv_timer_init(&set->hub->loop->uv, &q->timer);
	q->timer.data = q;
	set->timers++;
}

struct tcp_set *tcp_set_new(struct hub *hub)
{
	struct tcp_set *set = xnew(struct tcp_set);

	set->hub = hub;
	TAILQ_INIT(&set->conns);
	queue_init(set, &set->waiting, hub->limits.lane_wait_ms);
	queue_init(set, &set->opening, hub->limits.open_wait_ms);
	hub_ref(hub);
	return set;
}

void tcp_set_lane_changed(struct tcp_set *set)
{
	struct tcp_conn *c, *next, *last = TAILQ_LAST(&set->waiting.list, tcp_list);

	/* Up to the last one of now: who is put back comes after it. */
	for (c = TAILQ_FIRST(&set->waiting.list); c && set->hub->lane; c = next) {
		next = c == last ? NULL : TAILQ_NEXT(c, in_queue);
		conn_dial(c);
	}
}

size_t tcp_set_count(const struct tcp_set *set)
{
	return set->n_conns;
}

static void on_timer_closed(uv_handle_t *h)
{
	struct tcp_queue *q = h->data;

	if (--q->set->timers == 0)
		hub_unref(q->set->hub);
}

void tcp_set_close(struct tcp_set *set)
{
	struct tcp_conn *c;

	while ((c = TAILQ_FIRST(&set->conns)))
		conn_abort(c);
	uv_close((uv_handle_t *)&set->waiting.timer, on_timer_closed);
	uv_close((uv_handle_t *)&set->opening.timer, on_timer_closed);
}

void tcp_set_free(struct tcp_set *set)
{
	assert(set->n_conns == 0 && set->timers == 0);
	free(set);
}
