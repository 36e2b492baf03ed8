#include "hostagent/forward/udp.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hostagent/forward/lane.h"
#include "hostagent/forward/table.h"
#include "hostagent/forward/udp_local.h"
#include "hostagent/forward/udp_refused.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	UDP_MAX = 65536,     /* > 65,507: nothing is cut unseen */
	UDP_BATCH = 16,      /* datagrams per recvmmsg() */
	UDP_TURN = 8,        /* batches per turn of the loop */
	UDP_QUEUE_MAX = 256, /* datagrams of a flow that wait for the lane */
	UDP_QUEUE_BYTES = 256 * 1024,
	UDP_OVERHEAD = 96, /* of each that waits: struct datagram and malloc's own */
	UDP_TICK_MIN_MS = 1000,
	UDP_REFUSE_MS = 300, /* after the guest's server turned a client down */
	UDP_SERVED_MS = 1000, /* a flow that moved within is being served */
};

struct datagram {
	STAILQ_ENTRY(datagram) next;
	size_t len;
	uint8_t *data;
};

struct flow {                   /* owner: its socket */
	struct table_link link; /* by client address */
	TAILQ_ENTRY(flow) lru, all; /* of its socket, of the set */
	TAILQ_ENTRY(flow) waiting;  /* while its queue is not empty */
	struct udp_socket *socket;
	struct target *target;
	struct sockaddr_storage client;
	socklen_t client_len;
	struct in6_addr local; /* the address the client sent to; :: when not told */
	const struct lane_ops *ops;
	struct lane_conn *lane; /* NULL: waits for one */
	bool open;              /* the lane said opened */
	bool lane_full;         /* until writable */
	uint64_t last_ms, dialed_ns;
	STAILQ_HEAD(, datagram) queue;
	size_t n_queued, queued_bytes;
};

TAILQ_HEAD(flow_list, flow);

struct udp_socket { /* refs: three handles */
	uv_poll_t poll;
	uv_timer_t idle, refusing;
	struct hub *hub;
	int fd; /* -1 once closed */
	target_pick_fn pick;
	void *arg;
	struct table flows;
	struct flow_list lru; /* the one idle longest first */
	TAILQ_ENTRY(udp_socket) in_set;
	unsigned refs;
};

struct udp_set {
	struct hub *hub;
	TAILQ_HEAD(, udp_socket) sockets;
	struct flow_list all;     /* the one idle longest first */
	struct flow_list waiting; /* with datagrams in their queues; likewise */
	size_t n_flows, waiting_bytes;
	uint8_t *scratch; /* UDP_BATCH × UDP_MAX: all sockets read into it; NULL: not yet */
};

/* --- flows ------------------------------------------------------------------ */

static struct udp_set *flow_set(const struct flow *f)
{
	return f->socket->hub->udp;
}

static void flow_drop_oldest(struct flow *f)
{
	struct datagram *d = STAILQ_FIRST(&f->queue);

	STAILQ_REMOVE_HEAD(&f->queue, next);
	f->n_queued--;
	f->queued_bytes -= d->len;
	flow_set(f)->waiting_bytes -= d->len + UDP_OVERHEAD;
	if (STAILQ_EMPTY(&f->queue))
		TAILQ_REMOVE(&flow_set(f)->waiting, f, waiting);
	free(d->data);
	free(d);
}

static void flow_free(struct flow *f)
{
	struct udp_socket *u = f->socket;

	assert(!f->lane);
	while (!STAILQ_EMPTY(&f->queue))
		flow_drop_oldest(f);
	table_remove(&u->flows, &f->link);
	TAILQ_REMOVE(&u->lru, f, lru);
	TAILQ_REMOVE(&flow_set(f)->all, f, all);
	flow_set(f)->n_flows--;
	if (TAILQ_EMPTY(&u->lru))
		uv_timer_stop(&u->idle);
	f->target->connections_now--;
	target_unref(f->target);
	free(f);
}

static void flow_close(struct flow *f)
{
	if (f->lane)
		f->ops->close(steal_ptr(&f->lane));
	flow_free(f);
}

static void on_idle(uv_timer_t *timer);

static void arm_idle(struct udp_socket *u)
{
	struct flow *f = TAILQ_FIRST(&u->lru);
	uint64_t now = uv_now(u->poll.loop), due;

	if (!f)
		return;
	due = f->last_ms + u->hub->limits.udp_idle_ms;
	uv_timer_start(&u->idle, on_idle, MAX(due > now ? due - now : 0, (uint64_t)UDP_TICK_MIN_MS),
		       0);
}

static void on_idle(uv_timer_t *timer)
{
	struct udp_socket *u = timer->data;
	struct flow *f;

	while ((f = TAILQ_FIRST(&u->lru)) &&
	       f->last_ms + u->hub->limits.udp_idle_ms <= uv_now(timer->loop))
		flow_close(f);
	arm_idle(u);
}

static void flow_touch(struct flow *f)
{
	struct udp_socket *u = f->socket;

	f->last_ms = uv_now(u->poll.loop);
	TAILQ_REMOVE(&u->lru, f, lru);
	TAILQ_INSERT_TAIL(&u->lru, f, lru);
	TAILQ_REMOVE(&flow_set(f)->all, f, all);
	TAILQ_INSERT_TAIL(&flow_set(f)->all, f, all);
}

static void flow_write(struct flow *f, uint8_t *data, size_t len)
{
	f->target->bytes_in += len;
	if (!f->ops->write(f->lane, data, len))
		f->lane_full = true;
}

static void flow_flush(struct flow *f)
{
	while (f->lane && !f->lane_full && !STAILQ_EMPTY(&f->queue)) {
		struct datagram *d = STAILQ_FIRST(&f->queue);

		flow_write(f, steal_ptr(&d->data), d->len);
		flow_drop_oldest(f);
	}
}

static void on_lane_opened(void *arg)
{
	struct flow *f = arg;

	f->open = true;
	latency_add(&f->target->connect, uv_hrtime() - f->dialed_ns);
	f->target->lane = f->ops->name;
	flow_flush(f);
}

static void on_lane_data(void *arg, const uint8_t *data, size_t len)
{
	struct flow *f = arg;
	struct udp_local_buf control;
	struct iovec iov = { (void *)data, len };
	struct msghdr msg = { .msg_name = &f->client,
			      .msg_namelen = f->client_len,
			      .msg_iov = &iov,
			      .msg_iovlen = 1 };

	flow_touch(f);
	f->target->bytes_out += len;
	udp_local_answer(&msg, &control, &f->local);
	/* Like any datagram it may be lost: a full socket, a client that went away. But
	 * the socket may also have news about another client, told only once. */
	if (sendmsg(f->socket->fd, &msg, 0) < 0 && errno != EAGAIN &&
	    sendmsg(f->socket->fd, &msg, 0) < 0)
		log_debug("forward: reply from guest `%s` lost: %s", f->target->guest_addr,
			  error_text(-errno));
}

static void on_lane_eof(void *arg)
{
	/* datagrams have no end; `closed` follows */
}

static void on_lane_writable(void *arg)
{
	struct flow *f = arg;

	f->lane_full = false;
	flow_flush(f);
}

static void on_refusing_over(uv_timer_t *timer)
{
	struct udp_socket *u = timer->data;
	int rc = u->fd >= 0 ? udp_refused_end(u->fd) : 0;

	if (rc < 0)
		log_warn_limited("forward: cannot take clients of guest `%s` again: %s",
				 u->pick(u->arg)->guest_addr, error_text(rc));
}

/* Not when others are served well: it would concern them, too. Flows that do not move
 * may be of clients that ended long ago. */
static void refuse_for_a_while(struct udp_socket *u)
{
	const struct flow *newest = TAILQ_LAST(&u->lru, flow_list);
	bool serves = newest && uv_now(u->poll.loop) - newest->last_ms < UDP_SERVED_MS;

	if (!serves && !uv_is_active((uv_handle_t *)&u->refusing) &&
	    udp_refused_begin(u->fd) == 0)
		uv_timer_start(&u->refusing, on_refusing_over, UDP_REFUSE_MS, 0);
}

static void on_lane_closed(void *arg, const struct error *why)
{
	struct flow *f = arg;
	struct udp_socket *u = f->socket;
	bool refused = error_is_unreachable(why->code);

	log_debug("forward: flow to guest `%s` ended: %s", f->target->guest_addr, why->msg);
	f->lane = NULL;
	if (!f->open && lane_is_gone(why->code))
		return; /* it waits for the next lane */
	if (refused)
		f->target->refused++;
	else if (why->code != 0)
		*(why->code == -ETIMEDOUT ? &f->target->timeouts : &f->target->resets) += 1;
	flow_free(f);
	if (refused)
		refuse_for_a_while(u);
}

static const struct lane_callbacks callbacks = {
	.opened = on_lane_opened,
	.data = on_lane_data,
	.eof = on_lane_eof,
	.writable = on_lane_writable,
	.closed = on_lane_closed,
};

/* The lane carries no more: the client that was idle longest goes, of whichever port.
 * A tunnel is free once the guest has heard of it; the next datagram tries it. */
static bool make_room(const struct flow *f)
{
	struct flow *longest = TAILQ_FIRST(&flow_set(f)->all);

	if (longest == f || !longest->lane)
		return false;
	flow_close(longest);
	return true;
}

/* @f has no lane: takes one, if there is any. May free @f. */
static void flow_dial(struct flow *f)
{
	struct lane_callbacks cb = callbacks;
	struct error err = { 0 };
	enum config_lane which;
	struct lane *lane = lanes_choose(&f->socket->hub->lanes, f->target->lane_wanted,
					 IPPROTO_UDP, f->target->guest_addr, 0, &which);

	if (!lane)
		return;
	cb.arg = f;
	f->ops = lane->ops;
	f->dialed_ns = uv_hrtime();
	if (lane->ops->open(lane, IPPROTO_UDP, f->target->guest_addr, &cb, &f->lane, &err) == 0 ||
	    lane_is_gone(err.code))
		return;
	if (err.code == -EMFILE && make_room(f)) {
		log_debug("forward: %s, the flow idle longest ends", err.msg);
	} else {
		log_warn_limited("forward: cannot open a flow to guest `%s`: %s",
				 f->target->guest_addr, err.msg);
		flow_free(f);
	}
}

/* --- host socket ------------------------------------------------------------ */

static uint32_t hash_client(const struct sockaddr_storage *sa)
{
	if (sa->ss_family == AF_INET) {
		const struct sockaddr_in *sin = (const struct sockaddr_in *)sa;

		return table_hash(&sin->sin_addr, sizeof(sin->sin_addr), sin->sin_port);
	}
	const struct sockaddr_in6 *sin6 = (const struct sockaddr_in6 *)sa;

	return table_hash(&sin6->sin6_addr, sizeof(sin6->sin6_addr), sin6->sin6_port);
}

static bool same_client(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
	const struct sockaddr_in *a4 = (const void *)a, *b4 = (const void *)b;
	const struct sockaddr_in6 *a6 = (const void *)a, *b6 = (const void *)b;

	if (a->ss_family != b->ss_family)
		return false;
	if (a->ss_family == AF_INET)
		return a4->sin_port == b4->sin_port && a4->sin_addr.s_addr == b4->sin_addr.s_addr;
	return a6->sin6_port == b6->sin6_port && a6->sin6_scope_id == b6->sin6_scope_id &&
	       memcmp(&a6->sin6_addr, &b6->sin6_addr, sizeof(a6->sin6_addr)) == 0;
}

static struct flow *flow_find(struct udp_socket *u, const struct sockaddr_storage *client,
			      uint32_t hash)
{
	for (struct table_link *l = table_first(&u->flows, hash); l; l = table_next(l)) {
		struct flow *f = container_of(l, struct flow, link);

		if (same_client(&f->client, client))
			return f;
	}
	return NULL;
}

static struct flow *flow_new(struct udp_socket *u, const struct sockaddr_storage *client,
			     socklen_t client_len, uint32_t hash)
{
	struct udp_set *set = u->hub->udp;
	struct flow *f = xnew(struct flow);

	if (u->flows.len >= u->hub->limits.max_flows)
		flow_close(TAILQ_FIRST(&u->lru));
	if (set->n_flows >= u->hub->limits.max_flows_in_all)
		flow_close(TAILQ_FIRST(&set->all));
	f->socket = u;
	f->target = target_ref(u->pick(u->arg));
	f->target->connections_total++;
	f->target->connections_now++;
	f->client = *client;
	f->client_len = client_len;
	f->last_ms = uv_now(u->poll.loop);
	STAILQ_INIT(&f->queue);
	table_add(&u->flows, &f->link, hash);
	TAILQ_INSERT_TAIL(&u->lru, f, lru);
	TAILQ_INSERT_TAIL(&set->all, f, all);
	set->n_flows++;
	if (!uv_is_active((uv_handle_t *)&u->idle))
		arm_idle(u);
	return f;
}

static void flow_queue(struct flow *f, uint8_t *data, size_t len)
{
	struct datagram *d = xnew(struct datagram);
	struct udp_set *set = flow_set(f);

	d->data = data;
	d->len = len;
	if (!STAILQ_EMPTY(&f->queue))
		TAILQ_REMOVE(&set->waiting, f, waiting);
	TAILQ_INSERT_TAIL(&set->waiting, f, waiting);
	STAILQ_INSERT_TAIL(&f->queue, d, next);
	f->n_queued++;
	f->queued_bytes += len;
	set->waiting_bytes += len + UDP_OVERHEAD;
	while (f->n_queued > UDP_QUEUE_MAX || f->queued_bytes > UDP_QUEUE_BYTES)
		flow_drop_oldest(f);
	while (set->waiting_bytes > f->socket->hub->limits.udp_wait_bytes)
		flow_drop_oldest(TAILQ_FIRST(&set->waiting));
}

static void on_datagram(struct udp_socket *u, struct msghdr *msg, size_t len)
{
	const struct sockaddr_storage *client = msg->msg_name;
	uint32_t hash = hash_client(client);
	struct flow *f = flow_find(u, client, hash);
	uint8_t *copy = xmalloc(len ? len : 1);

	memcpy(copy, msg->msg_iov->iov_base, len);
	if (!f)
		f = flow_new(u, client, msg->msg_namelen, hash);
	else
		flow_touch(f);
	f->local = udp_local_of(msg);
	if (f->open && !f->lane_full)
		flow_write(f, copy, len);
	else
		flow_queue(f, copy, len);
	/* also one whose own tunnel was turned away while the lane stayed */
	if (!f->lane)
		flow_dial(f);
}

static uint8_t *set_scratch(struct udp_set *set)
{
	/* 1 MiB of address space; only pages that datagrams reached are memory */
	if (!set->scratch)
		set->scratch = xmalloc((size_t)UDP_BATCH * UDP_MAX);
	return set->scratch;
}

/* One recvmmsg(); false when nothing is left. */
static bool receive(struct udp_socket *u)
{
	uint8_t *scratch = set_scratch(u->hub->udp);
	struct sockaddr_storage from[UDP_BATCH];
	struct mmsghdr msgs[UDP_BATCH];
	struct udp_local_buf control[UDP_BATCH];
	struct iovec iov[UDP_BATCH];
	int n;

	for (int i = 0; i < UDP_BATCH; i++) {
		iov[i] = (struct iovec){ scratch + (size_t)i * UDP_MAX, UDP_MAX };
		msgs[i].msg_hdr = (struct msghdr){ .msg_name = &from[i],
						   .msg_namelen = sizeof(from[i]),
						   .msg_iov = &iov[i],
						   .msg_iovlen = 1 };
		udp_local_prepare(&msgs[i].msg_hdr, &control[i]);
	}
	n = recvmmsg(u->fd, msgs, UDP_BATCH, MSG_DONTWAIT, NULL);
	if (n < 0) /* else an error about an earlier reply, taken off the socket by this */
		return errno != EAGAIN;
	for (int i = 0; i < n; i++)
		on_datagram(u, &msgs[i].msg_hdr, msgs[i].msg_len);
	return n == UDP_BATCH;
}

/* Clients that are gone: the guest's server is told by the end of its flow. */
static void drop_gone(struct udp_socket *u)
{
	struct sockaddr_storage client;
	struct flow *f;

	for (int i = 0; i < UDP_TURN * UDP_BATCH && udp_refused_next(u->fd, &client); i++)
		if ((f = flow_find(u, &client, hash_client(&client))))
			flow_close(f);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
	struct udp_socket *u = poll->data;

	if (status < 0) { /* libuv stops a handle whose socket has news of that kind */
		drop_gone(u);
		uv_poll_start(&u->poll, UV_READABLE, on_readable);
	}
	for (int i = 0; i < UDP_TURN && u->fd >= 0; i++)
		if (!receive(u))
			return;
}

int udp_socket_new(struct hub *hub, int fd, target_pick_fn pick, void *arg, struct udp_socket **ret,
		   struct error *err)
{
	scoped_free struct udp_socket *u = xnew(struct udp_socket);
	int rc = uv_poll_init(&hub->loop->uv, &u->poll, fd);

	if (rc < 0) {
		close(fd);
		return error_sys(err, rc, "watch socket");
	}
	udp_local_enable(fd);
	udp_refused_enable(fd);
	u->hub = hub;
	u->fd = fd;
	u->pick = pick;
	u->arg = arg;
	u->refs = 3;
	TAILQ_INIT(&u->lru);
	TAILQ_INSERT_TAIL(&hub->udp->sockets, u, in_set);
	hub_ref(hub);
	uv_timer_init(&hub->loop->uv, &u->idle);
	uv_timer_init(&hub->loop->uv, &u->refusing);
	u->poll.data = u->idle.data = u->refusing.data = u;
	uv_poll_start(&u->poll, UV_READABLE, on_readable);
	*ret = steal_ptr(&u);
	return 0;
}

static void on_handle_closed(uv_handle_t *h)
{
	struct udp_socket *u = h->data;

	if (--u->refs > 0)
		return;
	hub_unref(u->hub);
	free(u);
}

void udp_socket_close(struct udp_socket *u)
{
	struct flow *f;

	if (u->fd < 0)
		return;
	while ((f = TAILQ_FIRST(&u->lru)))
		flow_close(f);
	table_done(&u->flows);
	TAILQ_REMOVE(&u->hub->udp->sockets, u, in_set);
	uv_close((uv_handle_t *)&u->poll, on_handle_closed);
	uv_close((uv_handle_t *)&u->idle, on_handle_closed);
	uv_close((uv_handle_t *)&u->refusing, on_handle_closed);
	close(u->fd);
	u->fd = -1;
}

/* --- the set ---------------------------------------------------------------- */

struct udp_set *udp_set_new(struct hub *hub)
{
	struct udp_set *set = xnew(struct udp_set);

	set->hub = hub;
	TAILQ_INIT(&set->sockets);
	TAILQ_INIT(&set->all);
	TAILQ_INIT(&set->waiting);
	return set;
}

void udp_set_lane_changed(struct udp_set *set)
{
	struct udp_socket *u;

	TAILQ_FOREACH(u, &set->sockets, in_set) {
		struct flow *f, *next;

		for (f = TAILQ_FIRST(&u->lru); f; f = next) {
			next = TAILQ_NEXT(f, lru);
			if (!f->lane)
				flow_dial(f);
		}
	}
}

void udp_set_free(struct udp_set *set)
{
	assert(TAILQ_EMPTY(&set->sockets));
	free(set->scratch);
	free(set);
}
