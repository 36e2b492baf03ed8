#include "hostagent/forward/tcp.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hostagent/forward/lane.h"
#include "hostagent/forward/tcp_conn.h"
#include "hostagent/forward/tcp_stream.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	TCP_TICK_MS = 1000, /* looks whether clients that wait are still there */
	TCP_TRIES = 3,      /* of one lane, for one client */
	TCP_MORE_WAITS = 3, /* for the guest to connect, while it answers others */
};

enum tcp_state {
	TCP_WAITING,  /* no lane: in set->waiting */
	TCP_DIALING,  /* inside the lane's call: nobody else's to touch, in no queue */
	TCP_OPENING,  /* the lane connects: in set->opening; has a lane_conn */
	TCP_RELAYING, /* has a lane_conn */
};

struct tcp_conn { /* owner: the set */
	TAILQ_ENTRY(tcp_conn) in_set;
	TAILQ_ENTRY(tcp_conn) in_queue; /* waiting or opening */
	uint64_t deadline_ms;           /* while in a queue; by hub_guest_ms() */
	uint64_t dialed_ns;
	struct tcp_set *set;
	struct target *target;
	struct lane_conn *lane; /* NULL: none yet */
	void (*reset)(struct lane_conn *lane);
	const char *lane_name;
	int fd;
	enum tcp_state state;
	enum config_lane which; /* it is on, or was on last */
	unsigned tries;         /* of that one */
	unsigned tried;         /* bit 1 << lane: not again */
	unsigned waits;         /* times its deadline was put off */
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
	uint64_t answered_ms[LANE_COUNT]; /* by hub_guest_ms(): when the guest did last; 0: never */
	unsigned timers;
};

static void conn_abort(struct tcp_conn *c);
static void conn_set_state(struct tcp_conn *c, enum tcp_state state);

/* --- the two queues with a deadline ---------------------------------------- */

static struct tcp_queue *conn_queue(struct tcp_conn *c)
{
	if (c->state == TCP_WAITING)
		return &c->set->waiting;
	return c->state == TCP_OPENING ? &c->set->opening : NULL;
}

static void on_tick(uv_timer_t *timer);

static void queue_arm(struct tcp_queue *q)
{
	struct tcp_conn *first = TAILQ_FIRST(&q->list);

	if (!first) {
		uv_timer_stop(&q->timer);
	} else if (!uv_is_active((uv_handle_t *)&q->timer)) {
		const struct hub *hub = q->set->hub;
		uint64_t now = hub_guest_ms(hub), left = TCP_TICK_MS;

		if (!hub->paused)
			left = first->deadline_ms > now ? first->deadline_ms - now : 1;
		uv_timer_start(&q->timer, on_tick, MIN(left, (uint64_t)TCP_TICK_MS), 0);
	}
}

/* Nobody reads from a client that waits: that it is gone is seen only by looking. */
static void drop_gone(struct tcp_queue *q)
{
	enum { AT_ONCE = 256 };
	struct pollfd fds[AT_ONCE];
	struct tcp_conn *conns[AT_ONCE], *c = TAILQ_FIRST(&q->list);

	while (c) {
		nfds_t n = 0;

		for (; c && n < AT_ONCE; c = TAILQ_NEXT(c, in_queue)) {
			conns[n] = c;
			fds[n++] = (struct pollfd){ .fd = c->fd };
		}
		if (poll(fds, n, 0) <= 0)
			continue;
		for (nfds_t i = 0; i < n; i++)
			if (fds[i].revents & (POLLERR | POLLHUP))
				conn_abort(conns[i]);
	}
}

/* In a crowd one may wait for longer than a guest that is not there would be waited for:
 * while others have an answer, its turn comes. */
static bool has_more_time(const struct tcp_conn *c, uint64_t now)
{
	uint64_t answered = c->set->answered_ms[c->which];

	return c->state == TCP_OPENING && c->waits < TCP_MORE_WAITS && answered &&
	       now - answered < c->set->opening.wait_ms;
}

static void time_is_up(struct tcp_conn *c)
{
	const char *what = c->state == TCP_OPENING ? "no answer from" : "no way to";

	log_warn_limited("forward: %s `%s` in %u s; client reset", what, c->target->guest_addr,
			 conn_queue(c)->wait_ms / 1000 * (c->waits + 1));
	c->target->timeouts++;
	conn_abort(c);
}

static void on_tick(uv_timer_t *timer)
{
	struct tcp_queue *q = timer->data;
	uint64_t now = hub_guest_ms(q->set->hub);
	struct tcp_conn *c;

	while ((c = TAILQ_FIRST(&q->list)) && c->deadline_ms <= now) {
		if (has_more_time(c, now)) {
			c->waits++;
			conn_set_state(c, TCP_OPENING); /* behind the others */
		} else {
			time_is_up(c);
		}
	}
	drop_gone(q);
	queue_arm(q);
}

static void queue_leave(struct tcp_conn *c)
{
	struct tcp_queue *q = conn_queue(c);

	if (!q)
		return;
	TAILQ_REMOVE(&q->list, c, in_queue);
	if (TAILQ_EMPTY(&q->list))
		queue_arm(q);
}

/* Leaves the queue of its state, enters the one of @state. */
static void conn_set_state(struct tcp_conn *c, enum tcp_state state)
{
	struct tcp_queue *q;

	queue_leave(c);
	c->state = state;
	q = conn_queue(c);
	if (q) {
		c->deadline_ms = hub_guest_ms(q->set->hub) + q->wait_ms;
		TAILQ_INSERT_TAIL(&q->list, c, in_queue);
		queue_arm(q);
	}
}

/* --- the end ---------------------------------------------------------------- */

/* The lane has nothing of it any more. */
static void conn_free(struct tcp_conn *c, bool reset)
{
	/* close() with a zero linger time sends RST (tcp(7), socket(7)). The listener's
	 * clients have it from the start, tcp_listener.c. */
	const struct linger at_once = { .l_onoff = reset, .l_linger = 0 };

	queue_leave(c);
	TAILQ_REMOVE(&c->set->conns, c, in_set);
	c->set->n_conns--;
	c->target->connections_now--;
	target_unref(c->target);
	setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(c->fd);
	free(c);
}

/* Both sides get a reset. */
static void conn_abort(struct tcp_conn *c)
{
	if (c->lane)
		c->reset(steal_ptr(&c->lane));
	conn_free(c, true);
}

/* --- the lane's side -------------------------------------------------------- */

static void conn_dial(struct tcp_conn *c);

static void note_answer(struct tcp_conn *c)
{
	c->set->answered_ms[c->which] = hub_guest_ms(c->set->hub);
}

static void on_opened(void *arg)
{
	struct tcp_conn *c = arg;

	assert(c->state == TCP_OPENING); /* lane.h: not inside the call that asked */
	note_answer(c);
	latency_add(&c->target->connect, uv_hrtime() - c->dialed_ns);
	c->target->lane = c->lane_name;
	conn_set_state(c, TCP_RELAYING);
}

/* Not again on this lane, until it comes back: a direct connection is either
 * possible or not; a connection that was opened ahead may have been a stale one. */
static void conn_count_try(struct tcp_conn *c)
{
	if (c->which == CONFIG_LANE_DIRECT || ++c->tries >= TCP_TRIES) {
		c->tried |= 1u << c->which;
		c->tries = 0;
	}
}

/* Reset, or closed in both directions. */
static bool client_is_gone(const struct tcp_conn *c)
{
	struct pollfd p = { .fd = c->fd };

	return poll(&p, 1, 0) > 0 && p.revents & (POLLERR | POLLHUP);
}

static void on_closed(void *arg, const struct error *why)
{
	struct tcp_conn *c = arg;

	assert(c->state == TCP_OPENING || c->state == TCP_RELAYING);
	c->lane = NULL;
	if (c->state == TCP_OPENING && lane_is_gone(why->code) && !client_is_gone(c)) {
		log_debug("forward: %s lane to `%s`: %s", c->lane_name, c->target->guest_addr,
			  why->msg);
		conn_count_try(c);
		conn_dial(c); /* nothing was taken from the client yet */
		return;
	}
	if (why->code != 0)
		log_debug("forward: connection to `%s` ended: %s", c->target->guest_addr,
			  why->msg);
	if (c->state == TCP_OPENING) {
		if (why->code != -ETIMEDOUT)
			note_answer(c);
		*(why->code == -ETIMEDOUT ? &c->target->timeouts : &c->target->refused) += 1;
	} else if (why->code != 0) {
		c->target->resets++;
	}
	conn_free(c, why->code != 0 || c->state == TCP_OPENING);
}

static int start_relay(struct tcp_conn *c, struct lane *lane, struct error *err)
{
	struct lane_relay relay = {
		.fd = c->fd,
		.guest_addr = c->target->guest_addr,
		.bytes_in = &c->target->bytes_in,
		.bytes_out = &c->target->bytes_out,
		.opened = on_opened,
		.closed = on_closed,
		.arg = c,
	};

	c->lane_name = lane->ops->name;
	c->dialed_ns = uv_hrtime();
	if (lane->ops->relay) {
		c->reset = lane->ops->reset;
		return lane->ops->relay(lane, &relay, &c->lane, err);
	}
	c->reset = tcp_stream_reset;
	return tcp_stream_relay(c->set->hub, lane, &relay, &c->lane, err);
}

/* @c waits or is new: takes the best lane, or waits for one. May free @c. */
static void conn_dial(struct tcp_conn *c)
{
	const struct lanes *lanes = &c->set->hub->lanes;
	enum config_lane which;
	struct error err = { 0 };
	struct lane *lane;

	while ((lane = lanes_choose(lanes, c->target->lane_wanted, IPPROTO_TCP,
				    c->target->guest_addr, c->tried, &which))) {
		if (which != c->which)
			c->tries = 0;
		c->which = which;
		c->waits = 0;
		conn_set_state(c, TCP_DIALING);
		if (start_relay(c, lane, &err) == 0) {
			conn_set_state(c, TCP_OPENING);
			return;
		}
		if (!lane_is_gone(err.code)) {
			log_warn_limited("forward: cannot open a connection to `%s`: %s",
					 c->target->guest_addr, err.msg);
			c->target->refused++;
			conn_abort(c);
			return;
		}
		c->tried |= 1u << which;
	}
	if (lanes->missing[c->target->lane_wanted]) {
		log_warn_limited("forward: no way to `%s`: %s; client reset",
				 c->target->guest_addr, lanes->missing[c->target->lane_wanted]);
		c->target->refused++;
		conn_abort(c);
	} else if (c->state != TCP_WAITING) {
		conn_set_state(c, TCP_WAITING);
	}
}

/* --- clients ---------------------------------------------------------------- */

void tcp_conn_start(struct hub *hub, int fd, struct target *target)
{
	struct tcp_set *set = hub->tcp;
	struct tcp_conn *c = xnew(struct tcp_conn);

	c->fd = fd;
	c->set = set;
	c->target = target_ref(target);
	TAILQ_INSERT_TAIL(&set->conns, c, in_set);
	set->n_conns++;
	target->connections_total++;
	target->connections_now++;
	c->state = TCP_DIALING; /* in no queue yet */
	if (set->n_conns > hub->limits.max_connections) {
		log_warn_limited("forward: more than %u connections; one to `%s` is reset",
				 hub->limits.max_connections, target->guest_addr);
		conn_abort(c);
		return;
	}
	conn_dial(c);
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

void tcp_set_lane_changed(struct tcp_set *set, enum config_lane which)
{
	struct tcp_conn *c, *next, *last = TAILQ_LAST(&set->waiting.list, tcp_list);

	/* Up to the last one of now: who is put back comes after it. */
	for (c = TAILQ_FIRST(&set->waiting.list); c; c = next) {
		next = c == last ? NULL : TAILQ_NEXT(c, in_queue);
		c->tried &= ~(1u << which);
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
