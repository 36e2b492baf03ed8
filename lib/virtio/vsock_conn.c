#include "lib/virtio/vsock_device.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/random.h>

#include "lib/base/heap.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	WINDOW_MIN = 16 << 10,		/* credit for everybody, whatever the number */
	WINDOW_START = 64 << 10,
	PORT_MIN = 1024,
};

/* --- the table ------------------------------------------------------------ */

void conn_table_init(struct vsock *v)
{
	for (v->n_slots = 1; v->n_slots < v->limits.max_connections; v->n_slots *= 2)
		;
	v->slots = xcalloc(v->n_slots, sizeof(*v->slots));
	v->free_slots = xcalloc(v->n_slots, sizeof(*v->free_slots));
	for (unsigned i = 0; i < v->n_slots; i++)
		v->free_slots[i] = i;
	v->n_free = v->n_slots;
	/* another port than the process before us took: a guest may still hold
	 * those connections */
	if (getrandom(&v->generation, sizeof(v->generation), GRND_NONBLOCK) < 0)
		v->generation = (uint32_t)uv_hrtime();
	TAILQ_INIT(&v->light);
	TAILQ_INIT(&v->bulk);
	TAILQ_INIT(&v->control);
	TAILQ_INIT(&v->farewells);
	TAILQ_INIT(&v->notices);
	TAILQ_INIT(&v->connecting);
	TAILQ_INIT(&v->lingering);
	TAILQ_INIT(&v->buffered);
	TAILQ_INIT(&v->graves);
}

void conn_table_done(struct vsock *v)
{
	free(v->slots);
	free(v->free_slots);
}

/* A slot is used again only after all others were, and then with another
 * generation in front, so a port does not come back for a long time. */
static uint32_t take_port(struct vsock *v)
{
	uint32_t slot = v->free_slots[v->free_first], port;

	v->free_first = (v->free_first + 1) & (v->n_slots - 1);
	v->n_free--;
	do
		port = v->generation++ * v->n_slots + slot;
	while (port < PORT_MIN || port == UINT32_MAX);	/* VMADDR_PORT_ANY */
	return port;
}

static struct vsock_conn **slot_of(const struct vsock *v, uint32_t host_port)
{
	return &v->slots[host_port & (v->n_slots - 1)];
}

struct vsock_conn *conn_find(const struct vsock *v, uint32_t host_port, uint32_t guest_port)
{
	struct vsock_conn *c = *slot_of(v, host_port);

	return c && c->host_port == host_port && c->guest_port == guest_port ? c : NULL;
}

/* --- credit given --------------------------------------------------------- */

static void set_window(struct vsock_conn *c, uint32_t window)
{
	c->v->promised = c->v->promised - c->window + window;
	c->window = window;
}

/* Begins small, grows while the client keeps up, and shrinks when all promises
 * together come near to what may be buffered: 10,000 connections do not promise
 * 10 GiB. */
static uint32_t better_window(const struct vsock_conn *c)
{
	const struct vsock *v = c->v;
	uint32_t most = v->limits.buffer_bytes, doubled = MIN(c->window * 2, most);

	if (v->promised > v->limits.buffered_max / 4 * 3)
		return MIN((uint32_t)WINDOW_MIN, most);
	if (c->buf.len == 0 && v->promised + doubled < v->limits.buffered_max / 2)
		return doubled;
	return c->window;
}

void conn_forwarded(struct vsock_conn *c, uint32_t len)
{
	/* Linux sends no more ahead than its own buffer holds, whatever we gave
	 * ("vsock/virtio: cap TX credit to local buffer size", also in 6.1): waiting
	 * for half of a larger window would be for ever. */
	uint32_t usable = MIN(c->window, c->peer_alloc);

	c->fwd += len;
	if (c->fwd - c->told_fwd < usable / 2 || (c->framed ? c->guest_done : c->guest_eof) ||
	    c->state > CONN_REST)
		return;
	set_window(c, better_window(c));
	conn_want(c, WANT_UPDATE);
}

uint32_t conn_credit(const struct vsock_conn *c)
{
	return vsock_credit(c->peer_alloc, c->peer_fwd, c->sent);
}

/* --- lists ---------------------------------------------------------------- */

static struct conn_list *control_of(struct vsock_conn *c)
{
	return c->can_wait ? &c->v->farewells : &c->v->control;
}

static void set_want(struct vsock_conn *c, unsigned want, bool can_wait)
{
	if (c->want)
		TAILQ_REMOVE(control_of(c), c, in_control);
	c->want = (uint8_t)want;
	c->can_wait = can_wait;
	if (c->want)
		TAILQ_INSERT_TAIL(control_of(c), c, in_control);
}

void conn_want(struct vsock_conn *c, unsigned want)
{
	if (c->want && !c->can_wait)
		c->want |= (uint8_t)want;
	else
		set_want(c, c->want | want, false);
}

void conn_want_later(struct vsock_conn *c, unsigned want)
{
	if (c->want)
		c->want |= (uint8_t)want;
	else
		set_want(c, want, true);
	vsock_schedule(c->v);	/* a turn's end sees to the timer */
}

void conn_unwant(struct vsock_conn *c, unsigned want)
{
	unsigned left = c->want & ~want;

	if (left)
		c->want = (uint8_t)left;
	else
		set_want(c, 0, false);
}

void conn_notify(struct vsock_conn *c, unsigned notice)
{
	if (!c->attached)
		return;
	if (!c->notices)
		TAILQ_INSERT_TAIL(&c->v->notices, c, in_notices);
	c->notices |= (uint8_t)notice;
	vsock_schedule(c->v);
}

static void clear_notices(struct vsock_conn *c)
{
	if (c->notices)
		TAILQ_REMOVE(&c->v->notices, c, in_notices);
	c->notices = 0;
}

static struct conn_list *queue_of(struct vsock_conn *c)
{
	return c->queue == QUEUE_LIGHT ? &c->v->light : &c->v->bulk;
}

void conn_unready(struct vsock_conn *c)
{
	if (c->queue != QUEUE_NONE)
		TAILQ_REMOVE(queue_of(c), c, in_queue);
	c->queue = QUEUE_NONE;
}

void conn_ready(struct vsock_conn *c)
{
	bool says = c->say_off < c->say_len && !(c->want & WANT_SAY);
	bool has = c->fd >= 0 && c->readable && !c->client_eof;
	uint32_t least = c->framed ? FRAME_HEAD + 1 : 1;

	if (c->queue != QUEUE_NONE || c->state < CONN_OPEN || c->state > CONN_REST ||
	    !(says || has) || conn_credit(c) < least)
		return;
	c->queue = c->burst ? QUEUE_BULK : QUEUE_LIGHT;
	TAILQ_INSERT_TAIL(queue_of(c), c, in_queue);
}

void conn_say(struct vsock_conn *c, const void *bytes, size_t len)
{
	if (c->say_off == c->say_len)
		c->say_off = c->say_len = 0;
	assert(c->say_len + len <= sizeof(c->say));
	memcpy(c->say + c->say_len, bytes, len);
	c->say_len = (uint8_t)(c->say_len + len);
}

static void stop_timing(struct vsock_conn *c)
{
	if (c->deadline)
		TAILQ_REMOVE(c->state == CONN_CONNECTING ? &c->v->connecting : &c->v->lingering, c,
			     in_timed);
	c->deadline = 0;
}

static void start_timing(struct vsock_conn *c)
{
	bool connecting = c->state == CONN_CONNECTING;
	struct vsock *v = c->v;

	c->deadline = uv_now(&v->loop->uv) +
		      (connecting ? v->limits.connect_ms : v->limits.close_ms);
	/* one wait for all of a list: its order is that of the deadlines */
	TAILQ_INSERT_TAIL(connecting ? &v->connecting : &v->lingering, c, in_timed);
	vsock_arm_timer(v);
}

static void drop_buffer(struct vsock_conn *c)
{
	size_t len = c->buf.len - c->buf_off;

	if (c->buf.len) {
		c->v->stats.buffered -= len;
		TAILQ_REMOVE(&c->v->buffered, c, in_buffered);
	}
	buf_done(&c->buf);
	c->buf_off = 0;
}

/* --- the end of one ------------------------------------------------------- */

void conn_drop(struct vsock_conn *c)
{
	if (c->attached || c->state != CONN_GONE || c->notices)
		return;
	TAILQ_INSERT_TAIL(&c->v->graves, c, in_buffered);
	vsock_schedule(c->v);
}

void conn_bury(struct vsock *v)
{
	struct vsock_conn *c;

	if (!TAILQ_EMPTY(&v->graves))
		heap_trim_later(v->loop);
	while ((c = TAILQ_FIRST(&v->graves))) {
		TAILQ_REMOVE(&v->graves, c, in_buffered);
		free(c);
	}
}

void conn_forget(struct vsock_conn *c)
{
	struct vsock *v = c->v;

	if (c->state == CONN_GONE)
		return;
	stop_timing(c);
	conn_unwant(c, c->want);
	*slot_of(v, c->host_port) = NULL;
	v->free_slots[(v->free_first + v->n_free++) & (v->n_slots - 1)] =
		c->host_port & (v->n_slots - 1);
	v->stats.connections--;
	set_window(c, 0);
	c->state = CONN_GONE;
	conn_drop(c);
}

/* The client's socket is its owner's alone again. */
static void let_client_go(struct vsock_conn *c)
{
	conn_unready(c);
	drop_buffer(c);
	if (c->fd >= 0)
		epoll_ctl(c->v->clients, EPOLL_CTL_DEL, c->fd, NULL);
	c->fd = -1;
	c->to_guest = c->from_guest = NULL;
}

static void begin_reset(struct vsock_conn *c)
{
	stop_timing(c);
	conn_unwant(c, c->want);
	c->state = CONN_RESETTING;
	vsock_schedule(c->v);
}

void conn_rst(struct vsock_conn *c)
{
	begin_reset(c);
	conn_want(c, WANT_RST);
}

void conn_rst_later(struct vsock_conn *c)
{
	begin_reset(c);
	conn_want_later(c, WANT_RST);
}

void conn_end(struct vsock_conn *c, int code, const char *text, bool tell)
{
	bool unsent = c->want & WANT_REQUEST;

	if (c->state > CONN_REST)
		return;
	let_client_go(c);
	stop_timing(c);
	c->code = code;
	c->text = text;
	if (c->attached) {
		/* what the prologue says comes first and may be the reason */
		unsigned before = c->notices & (NOTICE_PROLOGUE | NOTICE_FINISHED | NOTICE_IDLE);

		clear_notices(c);
		conn_notify(c, NOTICE_ENDED | before);
	}
	if (c->guest_gone) {
		conn_forget(c);
	} else if (code == 0) {
		c->state = CONN_LINGER;
		start_timing(c);
	} else if (tell && !unsent) {
		conn_rst(c);
	} else {
		conn_forget(c);
	}
}

void conn_check_done(struct vsock_conn *c)
{
	if (c->state != CONN_RELAY || !c->client_eof || !c->client_shut)
		return;
	if (!c->framed || c->guest_gone) {
		conn_end(c, 0, "both directions ended", false);
		return;
	}
	let_client_go(c);
	c->state = CONN_REST;
	conn_ready(c);		/* our end may not be on its way yet */
	conn_notify(c, NOTICE_FINISHED);
	if (c->guest_done)
		conn_guest_done(c);
}

void conn_guest_done(struct vsock_conn *c)
{
	if (c->state != CONN_REST)
		return;
	c->state = CONN_OPEN;
	c->moved = false;	/* not in vsock_conn_relay(): it may end before that */
	conn_notify(c, NOTICE_IDLE);
}

/* The guest need not close a connection that has ended as soon as we have seen
 * the end: its program may still be busy with the last bytes. So what is reset
 * after close_ms is only what has read everything, as it told when asked. */
static void expire_lingering(struct vsock_conn *c)
{
	if (c->asked && c->peer_fwd == c->sent) {
		conn_rst(c);
		return;
	}
	c->asked = true;
	conn_want(c, WANT_CREDIT);
	stop_timing(c);
	start_timing(c);
}

void conn_expire(struct vsock *v, uint64_t now)
{
	struct vsock_conn *c;

	while ((c = TAILQ_FIRST(&v->connecting)) && c->deadline <= now)
		conn_end(c, -ETIMEDOUT, "the guest does not answer", true);
	while ((c = TAILQ_FIRST(&v->lingering)) && c->deadline <= now)
		expire_lingering(c);
}

void conn_give_time(struct vsock *v)
{
	struct vsock_conn *c;

	TAILQ_FOREACH(c, &v->connecting, in_timed)
		c->deadline = uv_now(&v->loop->uv) + v->limits.connect_ms;
}

/* --- callbacks ------------------------------------------------------------ */

static void deliver_end(struct vsock_conn *c)
{
	struct error why = ERROR_NONE;
	struct vsock_conn_callbacks cb = c->cb;

	if (c->code)
		error_sys(&why, c->code, "vsock port %u: %s", c->guest_port, c->text);
	c->attached = false;
	conn_drop(c);
	cb.ended(cb.arg, &why);
}

static void deliver_prologue(struct vsock_conn *c)
{
	int rc = c->prologue(c->cb.arg, c->prologue_bytes);

	if (!c->attached)	/* reset from within */
		return;
	rc = rc > 0 ? -rc : rc;
	if (rc < 0) {
		c->code = rc;
		c->text = "refused";
		conn_end(c, rc, "refused", true);
		return;
	}
	c->judged = true;
	if (c->state == CONN_RELAY)
		conn_flush(c);
}

void conn_deliver(struct vsock *v)
{
	struct vsock_conn *c;

	while ((c = TAILQ_FIRST(&v->notices))) {
		uint8_t notice = c->notices & -c->notices;	/* the lowest first */

		c->notices &= (uint8_t)~notice;
		TAILQ_REMOVE(&v->notices, c, in_notices);
		if (c->notices)
			TAILQ_INSERT_TAIL(&v->notices, c, in_notices);
		if (notice == NOTICE_OPENED)
			c->cb.opened(c->cb.arg);
		else if (notice == NOTICE_PROLOGUE)
			deliver_prologue(c);
		else if (notice == NOTICE_FINISHED)
			c->cb.finished(c->cb.arg);
		else if (notice == NOTICE_IDLE)
			c->cb.idle(c->cb.arg);
		else
			deliver_end(c);
	}
}

/* --- what the owner calls ------------------------------------------------- */

int vsock_connect(struct vsock *v, uint32_t port, const struct vsock_conn_callbacks *cb,
		  struct vsock_conn **ret, struct error *err)
{
	struct vsock_conn *c;

	if (!v->driver || v->closing)
		return error_set(err, -ENOTCONN, "the guest's vsock driver does not run");
	if (v->stats.connections >= v->limits.max_connections && !TAILQ_EMPTY(&v->lingering))
		conn_forget(TAILQ_FIRST(&v->lingering));
	if (v->stats.connections >= v->limits.max_connections)
		return error_set(err, -EMFILE, "%u vsock connections at once", v->stats.connections);
	c = xnew(struct vsock_conn);
	c->v = v;
	c->cb = *cb;
	c->guest_port = port;
	c->host_port = take_port(v);
	c->attached = true;
	c->fd = -1;
	*slot_of(v, c->host_port) = c;
	v->stats.connections++;
	set_window(c, v->promised < v->limits.buffered_max / 2
		   ? MIN((uint32_t)WINDOW_START, v->limits.buffer_bytes)
		   : MIN((uint32_t)WINDOW_MIN, v->limits.buffer_bytes));
	start_timing(c);
	conn_want(c, WANT_REQUEST);
	if (to_guest(v, 0))
		vsock_schedule(v);
	*ret = c;
	return 0;
}

void conn_opened(struct vsock_conn *c)
{
	stop_timing(c);
	c->state = CONN_OPEN;
	conn_notify(c, NOTICE_OPENED);
}

/* What came before there was a client begins with the prologue, too. */
static void take_early_prologue(struct vsock_conn *c)
{
	size_t n = MIN(c->buf.len - c->buf_off, c->prologue_len);

	if (n == 0)
		return;
	memcpy(c->prologue_bytes, c->buf.data + c->buf_off, n);
	c->prologue_have = (uint8_t)n;
	c->buf_off += n;
	c->v->stats.buffered -= n;
	if (c->buf_off == c->buf.len)
		drop_buffer(c);
	conn_forwarded(c, (uint32_t)n);
	if (c->prologue_have == c->prologue_len)
		conn_notify(c, NOTICE_PROLOGUE);
}

void vsock_conn_relay(struct vsock_conn *c, const struct vsock_relay *r)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
				  .data.ptr = c };

	assert(c->attached && c->fd < 0 && r->hello_len <= VSOCK_PROLOGUE_MAX &&
	       r->prologue_len <= VSOCK_PROLOGUE_MAX && (!r->prologue_len || r->prologue));
	assert(!r->framed || (c->cb.finished && c->cb.idle));
	if (c->state > CONN_REST)	/* `ended` is on its way */
		return;
	assert(c->state == CONN_OPEN);
	c->state = CONN_RELAY;
	c->to_guest = r->to_guest;
	c->from_guest = r->from_guest;
	conn_unwant(c, WANT_SAY);
	if (r->hello_len)
		conn_say(c, r->hello, r->hello_len);
	c->prologue_len = (uint8_t)r->prologue_len;
	c->prologue_have = 0;
	c->prologue = r->prologue;
	c->judged = r->prologue_len == 0;
	if (c->framed)		/* it served another client before */
		c->hung_up = c->client_eof = c->client_shut = c->guest_eof = c->guest_done = false;
	c->framed = r->framed;
	c->frame = (struct frame_reader){ 0 };
	c->burst = 0;
	if (c->framed && c->buf.len) {
		conn_end(c, -ECONNRESET, "bytes before the hello", true);
		return;
	}
	if (epoll_ctl(c->v->clients, EPOLL_CTL_ADD, r->fd, &ev) < 0) {
		conn_end(c, -errno, "watch the client's socket", true);
		return;
	}
	c->fd = r->fd;
	c->readable = c->writable = true;	/* tried at once; no event then */
	take_early_prologue(c);
	conn_flush(c);
	conn_ready(c);
	if (to_guest(c->v, 0))
		vsock_schedule(c->v);
}

bool vsock_conn_has_moved(const struct vsock_conn *c)
{
	return c->moved;
}

void vsock_conn_reset(struct vsock_conn *c)
{
	assert(c->attached);
	c->attached = false;
	clear_notices(c);
	if (c->state <= CONN_REST)
		conn_end(c, -ECANCELED, "reset", true);
	else
		conn_drop(c);
}
