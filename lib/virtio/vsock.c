#include "lib/virtio/vsock_device.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	TURN_BYTES = 1 << 20,	/* each way; then the loop's other work has its turn */
	LATER_MS = 5,
	EVENTS_MAX = 256,
};

bool vsock_running(const struct vsock *v)
{
	return v->driver && v->rx->running && v->tx->running && !v->rx->broken.code &&
	       !v->tx->broken.code;
}

static void deliver(struct vsock *v)
{
	conn_deliver(v);
	if (v->notice_down && !v->closing) {
		struct error why = v->why_down;

		v->notice_down = false;
		v->down(v->arg, &why);
	}
	if (v->notice_up && !v->closing) {
		v->notice_up = false;
		v->up(v->arg);
	}
}

static void check_rings(struct vsock *v)
{
	struct vring *r = v->rx->broken.code ? v->rx : v->tx;
	struct error why = r->broken;

	if (!why.code || !v->driver)
		return;
	v->stats.rejected++;
	error_wrap(&why, "the guest's %s ring", r == v->rx ? "rx" : "tx");
	vsock_drop_all(v, &why);
}

static void on_later(uv_timer_t *timer);

static void arm_later(struct vsock *v)
{
	/* farewells that are due wait for the guest's buffers */
	bool owed = v->tx->call_due || (!TAILQ_EMPTY(&v->farewells) && !v->farewells_due);

	if (owed && !v->closing && vsock_running(v) && !uv_is_active((uv_handle_t *)&v->later))
		uv_timer_start(&v->later, on_later, LATER_MS, 0);
}

static void turn(struct vsock *v);

/* An interrupt for every packet the guest sent would cost it more than the packet,
 * and all it does then is to free the buffer. One that brings it packets does that in
 * passing: the rings share their vector (QEMU gives the device too few). */
static void on_later(uv_timer_t *timer)
{
	struct vsock *v = timer->data;
	uint16_t told = vring_used_idx(v->rx);

	if (v->closing)
		return;
	v->farewells_due = true;
	turn(v);
	if (vring_used_idx(v->rx) == told)
		vring_call_due(v->tx);
	if (v->tx->call_due || !TAILQ_EMPTY(&v->farewells))
		arm_later(v);
	else
		uv_timer_stop(&v->later);
}

static void turn(struct vsock *v)
{
	bool more;

	if (v->closing)
		return;
	uv_idle_stop(&v->more);
	v->in_turn = true;
	more = from_guest(v, TURN_BYTES);
	more |= to_guest(v, TURN_BYTES);
	check_rings(v);
	deliver(v);
	/* what the callbacks asked for */
	more |= to_guest(v, TURN_BYTES);
	v->in_turn = false;
	if (v->closing)
		return;
	conn_bury(v);
	arm_later(v);
	if (more || !TAILQ_EMPTY(&v->notices) || v->notice_up || v->notice_down)
		vsock_schedule(v);
}

static void on_more(uv_idle_t *idle)
{
	turn(idle->data);
}

void vsock_schedule(struct vsock *v)
{
	if (!v->closing && !v->in_turn)
		uv_idle_start(&v->more, on_more);
}

/* --- clients and time ----------------------------------------------------- */

static void on_clients(uv_poll_t *poll, int status, int events)
{
	struct vsock *v = poll->data;
	struct epoll_event ev[EVENTS_MAX];
	int n;

	if (v->closing)
		return;
	n = epoll_wait(v->clients, ev, EVENTS_MAX, 0);
	for (int i = 0; i < n; i++)
		conn_client_event(ev[i].data.ptr, ev[i].events);
	turn(v);
}

static void on_timer(uv_timer_t *timer)
{
	struct vsock *v = timer->data;

	if (v->closing)
		return;
	/* a paused guest answers nothing, and that is not its fault */
	if (!v->driver || vsock_running(v))
		conn_expire(v, uv_now(&v->loop->uv));
	turn(v);
	if (!v->closing)
		vsock_arm_timer(v);
}

void vsock_arm_timer(struct vsock *v)
{
	const struct vsock_conn *a = TAILQ_FIRST(&v->connecting), *b = TAILQ_FIRST(&v->lingering);
	uint64_t now = uv_now(&v->loop->uv), first, wait;

	if (v->closing || (!a && !b))
		return;
	first = !a ? b->deadline : !b ? a->deadline : MIN(a->deadline, b->deadline);
	/* one wake-up for many; while paused, just to look whether that is over */
	wait = MAX(first, now + (v->driver && !vsock_running(v) ? 1000 : 10)) - now;
	if (!uv_is_active((uv_handle_t *)&v->timer) || uv_timer_get_due_in(&v->timer) > wait)
		uv_timer_start(&v->timer, on_timer, wait, 0);
}

/* --- what QEMU and the driver do ------------------------------------------ */

void vsock_drop_all(struct vsock *v, const struct error *why)
{
	for (unsigned i = 0; i < v->n_slots; i++) {
		struct vsock_conn *c = v->slots[i];

		if (!c)
			continue;
		conn_end(c, -ECANCELED, why->code == -ESTALE ? "the guest started anew"
							     : "the vsock device is down", false);
		conn_forget(c);
	}
	v->n_replies = 0;
	if (v->driver) {
		v->driver = false;
		v->notice_up = false;
		v->notice_down = true;
		v->why_down = *why;
	}
	vsock_schedule(v);
}

/* A driver that has just been loaded begins at 0 in both rings; one that went on after
 * a pause (QMP stop, cont) where it was, and so do its connections. (One ring is at 0
 * again after each 65,536 chains; both, with connections, once in 2^32 pauses.) */
static bool is_fresh(const struct vring *r)
{
	return r->avail_next == 0 && vring_used_idx(r) == 0;
}

static void on_started(void *arg, unsigned ring)
{
	struct vsock *v = arg;
	struct error why = ERROR_NONE;

	if (!v->rx->running || !v->tx->running)
		return;
	if (v->driver && is_fresh(v->rx) && is_fresh(v->tx)) {
		error_set(&why, -ESTALE, "the guest's vsock driver started anew");
		vsock_drop_all(v, &why);
	}
	if (!v->driver)
		v->notice_up = true;
	v->driver = true;
	conn_give_time(v);
	vsock_schedule(v);
}

static void on_stopping(void *arg, unsigned ring)
{
}

static void on_kicked(void *arg, unsigned ring)
{
	turn(arg);
}

static void on_gone(void *arg, const struct error *why)
{
	vsock_drop_all(arg, why);
	turn(arg);
}

void vsock_guest_was_reset(struct vsock *v)
{
	struct error why = ERROR_NONE;

	if (v->closing || vsock_running(v))
		return;
	error_set(&why, -ECONNRESET, "the machine was reset");
	vsock_drop_all(v, &why);
}

/* --- life ----------------------------------------------------------------- */

static void set_defaults(struct vsock_limits *l)
{
	static const struct vsock_limits defaults = {
		.max_connections = 16384, .buffer_bytes = 1 << 20, .buffered_max = 256ull << 20,
		.connect_ms = 5000, .close_ms = 10000,
	};

#define DEFAULT(field) l->field = l->field ? l->field : defaults.field
	DEFAULT(max_connections);
	DEFAULT(buffer_bytes);
	DEFAULT(buffered_max);
	DEFAULT(connect_ms);
	DEFAULT(close_ms);
#undef DEFAULT
}

static void unref(struct vsock *v)
{
	if (--v->handles > 0)
		return;
	close(v->clients);
	conn_bury(v);
	conn_table_done(v);
	if (v->closed)
		v->closed(v->closed_arg);
	free(v);
}

static void on_handle_closed(uv_handle_t *h)
{
	unref(h->data);
}

static void on_vhost_closed(void *arg)
{
	unref(arg);
}

static void init_handles(struct vsock *v)
{
	uv_loop_t *uv = &v->loop->uv;

	uv_poll_init(uv, &v->clients_poll, v->clients);
	uv_poll_start(&v->clients_poll, UV_READABLE, on_clients);
	uv_timer_init(uv, &v->timer);
	uv_timer_init(uv, &v->later);
	uv_idle_init(uv, &v->more);
	v->clients_poll.data = v->timer.data = v->later.data = v->more.data = v;
	v->handles += 4;
}

static void close_handles(struct vsock *v)
{
	uv_close((uv_handle_t *)&v->clients_poll, on_handle_closed);
	uv_close((uv_handle_t *)&v->timer, on_handle_closed);
	uv_close((uv_handle_t *)&v->later, on_handle_closed);
	uv_close((uv_handle_t *)&v->more, on_handle_closed);
}

int vsock_new(const struct vsock_options *opts, int listen_fd, struct vsock **ret,
	      struct error *err)
{
	struct vsock *v = xnew(struct vsock);
	struct vhost_user_device dev = {
		.loop = opts->loop, .n_rings = 2, .config = &v->config,
		.config_len = sizeof(v->config), .started = on_started, .stopping = on_stopping,
		.kicked = on_kicked, .gone = on_gone, .arg = v,
	};

	assert(opts->guest_cid >= VSOCK_CID_GUEST_MIN && opts->guest_cid != UINT32_MAX);
	v->loop = opts->loop;
	v->guest_cid = opts->guest_cid;
	v->config = htole64(opts->guest_cid);
	v->limits = opts->limits;
	v->up = opts->up;
	v->down = opts->down;
	v->arg = opts->arg;
	set_defaults(&v->limits);
	v->clients = epoll_create1(EPOLL_CLOEXEC);
	if (v->clients < 0) {
		error_sys(err, -errno, "epoll");
		close(listen_fd);
		free(v);
		return err->code;
	}
	if (vhost_user_new(&dev, listen_fd, &v->vu, err) < 0) {
		close(v->clients);
		free(v);
		return err->code;
	}
	v->handles = 1;
	v->rx = vhost_user_ring(v->vu, RING_RX);
	v->rx->in_min = VSOCK_PACKET_HEADER + VSOCK_PROLOGUE_MAX;
	v->tx = vhost_user_ring(v->vu, RING_TX);
	v->tx->lazy = true;
	conn_table_init(v);
	init_handles(v);
	*ret = v;
	return 0;
}

bool vsock_is_up(const struct vsock *v)
{
	return v->driver && !v->closing;
}

void vsock_get_stats(const struct vsock *v, struct vsock_stats *ret)
{
	*ret = v->stats;
}

void vsock_close(struct vsock *v, void (*closed)(void *arg), void *arg)
{
	assert(!v->closing);
	for (unsigned i = 0; i < v->n_slots; i++) {
		struct vsock_conn *c = v->slots[i];

		if (c && c->attached)
			vsock_conn_reset(c);
	}
	/* as many goodbyes as the guest has room for */
	v->farewells_due = true;
	to_guest(v, UINT32_MAX);
	v->closing = true;
	v->closed = closed;
	v->closed_arg = arg;
	for (unsigned i = 0; i < v->n_slots; i++)
		if (v->slots[i])
			conn_forget(v->slots[i]);
	close_handles(v);
	vhost_user_close(v->vu, on_vhost_closed, v);
}
