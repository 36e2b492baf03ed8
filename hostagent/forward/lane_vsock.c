#include "hostagent/forward/lane_vsock.h"

#include <assert.h>
#include <netinet/in.h>
#include <sys/queue.h>

#include "hostagent/forward/address.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/virtio/vsock.h"
#include "proto/relay.h"

enum {
	POOL_MIN = 8,
	POOL_MAX = 32,
	POOL_OPENING_MAX = 128, /* asked for at once */
	RESTING_MAX = 1024,     /* a server that does not read holds its own for ever … */
	REST_MS = 60000,        /* … after which it may lose them */
	POOL_SHRINK_MS = 10000, /* not short of one for so long */
	BACKOFF_MIN_MS = 20,    /* after the guest refused */
	BACKOFF_MAX_MS = 2000,
	DOWN_AFTER_MS = 250, /* it refused all that time */
	EARLY_MS = 1000,     /* it accepted, and closed so soon: it refused */
};

struct link { /* a connection of the vsock; owner: the lane */
	TAILQ_ENTRY(link) next;
	struct lane_vsock *l;
	struct vsock_conn *v;
	struct lane_conn *client; /* NULL: opening, or in the pool */
	bool open;
	bool served;              /* the guest answered a client */
	bool resting;             /* between two clients */
	uint64_t since_ms;        /* when it opened, or began to rest */
};
TAILQ_HEAD(link_list, link);

struct lane_conn { /* a client; owner: the lane */
	TAILQ_ENTRY(lane_conn) next;
	struct lane_vsock *l;
	struct lane_relay relay;
	struct relay_hello hello;
	struct link *link; /* NULL: waits for one */
	bool connected;    /* the guest said so */
};
TAILQ_HEAD(client_list, lane_conn);

struct lane_vsock { /* refs: two timers */
	struct lane lane;
	struct lane_vsock_options o;
	struct link_list opening, pool, busy, resting;
	struct client_list waiting; /* those in `busy` are not in it */
	unsigned n_opening, n_pool, n_waiting, n_resting;
	unsigned wanted; /* size of the pool, pool_min … pool_max */
	unsigned lowest; /* it was since the shrink timer ran last */
	uv_timer_t backoff, shrink;
	unsigned backoff_ms;       /* the next one */
	uint64_t refused_since_ms; /* 0: it accepts */
	uint64_t refused_last_ms;
	struct relay_ports ports;  /* first 0: no agent that listens */
	uint32_t port_at;          /* which of them is next */
	bool device_up, usable, closing;
	unsigned refs;
	void (*closed)(void *arg);
	void *closed_arg;
};

static void refill(struct lane_vsock *l);
static void client_end(struct lane_conn *c, const struct error *why);

/* --- usable or not ------------------------------------------------------------ */

static void set_usable(struct lane_vsock *l, bool usable)
{
	if (l->usable == usable || l->closing)
		return;
	l->usable = usable;
	log_debug("forward: the vsock lane is %s", usable ? "up" : "down");
	l->o.changed(l->o.arg, &l->lane, usable);
}

/* Clients that wait are given to another lane. */
static void give_up(struct lane_vsock *l, const char *why)
{
	struct error gone = { 0 };
	struct lane_conn *c;

	set_usable(l, false);
	error_set(&gone, -ENOTCONN, "vsock: %s", why);
	while ((c = TAILQ_FIRST(&l->waiting)))
		client_end(c, &gone);
}

static bool is_down(const struct lane_vsock *l)
{
	return l->refused_since_ms &&
	       uv_now(&l->o.loop->uv) - l->refused_since_ms >= DOWN_AFTER_MS;
}

static void on_backoff(uv_timer_t *t)
{
	struct lane_vsock *l = t->data;

	refill(l);
	if (uv_is_active((uv_handle_t *)t) && is_down(l))
		give_up(l, "the device takes no connections");
}

/* The guest takes no connection now. May be inside a client's call: whoever is called
 * back by the device or the timer gives up. */
static void note_refusal(struct lane_vsock *l)
{
	uint64_t now = uv_now(&l->o.loop->uv);

	/* the try after the last one went well, though no client was there to prove it */
	if (l->refused_since_ms && now - l->refused_last_ms > l->backoff_ms + EARLY_MS) {
		l->refused_since_ms = 0;
		l->backoff_ms = BACKOFF_MIN_MS;
	}
	if (!l->refused_since_ms)
		l->refused_since_ms = now;
	l->refused_last_ms = now;
	if (!uv_is_active((uv_handle_t *)&l->backoff)) {
		uv_timer_start(&l->backoff, on_backoff, l->backoff_ms, 0);
		l->backoff_ms = MIN(l->backoff_ms * 2, (unsigned)BACKOFF_MAX_MS);
	}
}

/* That it accepts is not enough: it may not keep what it accepts. */
static void note_success(struct lane_vsock *l)
{
	l->refused_since_ms = 0;
	l->backoff_ms = BACKOFF_MIN_MS;
	uv_timer_stop(&l->backoff);
	refill(l);
}

/* --- clients ------------------------------------------------------------------ */

static void link_free(struct link *k)
{
	struct lane_vsock *l = k->l;

	if (k->client) {
		TAILQ_REMOVE(&l->busy, k, next);
	} else if (k->resting) {
		TAILQ_REMOVE(&l->resting, k, next);
		l->n_resting--;
	} else if (k->open) {
		TAILQ_REMOVE(&l->pool, k, next);
		l->n_pool--;
	} else {
		TAILQ_REMOVE(&l->opening, k, next);
		l->n_opening--;
	}
	free(k);
}

/* Its link is gone or it had none. */
static void client_free(struct lane_conn *c)
{
	if (!c->link) {
		TAILQ_REMOVE(&c->l->waiting, c, next);
		c->l->n_waiting--;
	}
	free(c);
}

static void client_end(struct lane_conn *c, const struct error *why)
{
	struct lane_relay relay = c->relay;
	struct error copy = *why;

	client_free(c);
	relay.closed(relay.arg, &copy);
}

/* What the guest's connect() said, as far as it concerns a client. Both sides are
 * Linux; codes that mean something else to a lane's user become a plain refusal. */
static int code_of(const struct relay_reply *reply)
{
	static const int passed[] = { ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, EACCES };
	uint32_t error = ntohl(reply->error);

	if (ntohs(reply->magic) != RELAY_MAGIC)
		return -EPROTO;
	for (size_t i = 0; i < ARRAY_SIZE(passed); i++)
		if (error == (uint32_t)passed[i])
			return -passed[i];
	return error ? -ECONNREFUSED : 0;
}

static int on_reply(void *arg, const uint8_t *bytes)
{
	struct link *k = arg;
	struct lane_vsock *l = k->l;
	struct relay_reply reply;
	int rc;

	memcpy(&reply, bytes, sizeof(reply));
	rc = code_of(&reply);
	k->served = true;
	if (rc == 0) {
		k->client->connected = true;
		k->client->relay.opened(k->client->relay.arg);
	}
	note_success(l);
	return rc;
}

/* From the pool or fresh. */
static void give(struct link *k, struct lane_conn *c)
{
	struct vsock_relay relay = {
		.fd = c->relay.fd,
		.hello = &c->hello,
		.hello_len = sizeof(c->hello),
		.prologue_len = sizeof(struct relay_reply),
		.prologue = on_reply,
		.framed = true,
		.to_guest = c->relay.bytes_in,
		.from_guest = c->relay.bytes_out,
	};

	TAILQ_INSERT_TAIL(&k->l->busy, k, next);
	k->client = c;
	c->link = k;
	vsock_conn_relay(k->v, &relay);
}

/* --- the pool ----------------------------------------------------------------- */

/* It is idle, and in no list. */
static void put_to_use(struct link *k)
{
	struct lane_vsock *l = k->l;
	struct lane_conn *c = TAILQ_FIRST(&l->waiting);

	if (c) {
		TAILQ_REMOVE(&l->waiting, c, next);
		l->n_waiting--;
		give(k, c);
	} else {
		TAILQ_INSERT_TAIL(&l->pool, k, next);
		l->n_pool++;
	}
}

static void on_opened(void *arg)
{
	struct link *k = arg;
	struct lane_vsock *l = k->l;

	TAILQ_REMOVE(&l->opening, k, next);
	l->n_opening--;
	k->open = true;
	k->since_ms = uv_now(&l->o.loop->uv);
	put_to_use(k);
	set_usable(l, true);
	refill(l);
}

/* A client's connection ended. When the guest's agent or the device went before the
 * guest's server had it and before anything was taken from the client, another
 * lane may serve it. */
static void end_busy(struct link *k, const struct error *why)
{
	struct lane_conn *c = k->client;
	struct error end = *why;
	bool untouched = !c->connected && !vsock_conn_has_moved(k->v);

	if (lane_is_gone(end.code) || (!c->connected && (!end.code || end.code == -ECONNRESET)))
		end.code = untouched ? -ENOTCONN : -ECONNRESET;
	link_free(k);
	client_end(c, &end);
}

/* It has no client, and ended: was it the guest that refused? */
static bool was_refused(const struct link *k)
{
	return !k->open || (!k->served && uv_now(&k->l->o.loop->uv) - k->since_ms < EARLY_MS);
}

static void end_idle(struct link *k, const struct error *why)
{
	struct lane_vsock *l = k->l;
	struct error copy = *why;
	bool refused = was_refused(k);

	link_free(k);
	if (!refused) {
		note_success(l);
	} else if (l->device_up) {
		note_refusal(l);
		if (copy.code == -ETIMEDOUT || is_down(l))
			give_up(l, copy.msg);
	}
}

static void on_ended(void *arg, const struct error *why)
{
	struct link *k = arg;
	struct lane_vsock *l = k->l;

	if (why->code == -ECANCELED) {
		l->device_up = false;
		set_usable(l, false); /* before its clients look for another */
	}
	if (k->client)
		end_busy(k, why);
	else
		end_idle(k, why);
	if (!l->device_up)
		give_up(l, "the device went down");
	refill(l);
}

/* Those of servers that are stuck. Others may be many for a moment, when many clients
 * end together: a reset would take from their servers what they said last. */
static void trim_resting(struct lane_vsock *l)
{
	uint64_t now = uv_now(&l->o.loop->uv);
	struct link *k;

	while (l->n_resting > RESTING_MAX && (k = TAILQ_FIRST(&l->resting)) &&
	       now - k->since_ms >= l->o.rest_ms) {
		vsock_conn_reset(k->v);
		link_free(k);
	}
}

/* The client has been served; the guest may still have to pass its last bytes on. */
static void on_finished(void *arg)
{
	struct link *k = arg;
	struct lane_vsock *l = k->l;
	struct lane_conn *c = k->client;
	struct error none = ERROR_NONE;

	TAILQ_REMOVE(&l->busy, k, next);
	k->client = NULL;
	k->resting = true;
	k->since_ms = uv_now(&l->o.loop->uv);
	TAILQ_INSERT_TAIL(&l->resting, k, next);
	l->n_resting++;
	trim_resting(l);
	client_end(c, &none);
}

static void on_idle(void *arg)
{
	struct link *k = arg;
	struct lane_vsock *l = k->l;

	TAILQ_REMOVE(&l->resting, k, next);
	l->n_resting--;
	k->resting = false;
	put_to_use(k);
	if (l->n_pool > l->wanted) {
		k = TAILQ_FIRST(&l->pool);
		vsock_conn_reset(k->v);
		link_free(k);
	}
	if (l->device_up && l->ports.first)	/* its agent lives */
		set_usable(l, true);
	note_success(l);
}

static const struct vsock_conn_callbacks link_callbacks = {
	.opened = on_opened,
	.finished = on_finished,
	.idle = on_idle,
	.ended = on_ended,
};

static int link_open(struct lane_vsock *l, struct error *err)
{
	struct vsock_conn_callbacks cb = link_callbacks;
	struct link *k = xnew(struct link);

	k->l = l;
	cb.arg = k;
	if (vsock_connect(l->o.vsock, l->ports.first + l->port_at, &cb, &k->v, err) < 0) {
		free(k);
		return err->code;
	}
	TAILQ_INSERT_TAIL(&l->opening, k, next);
	l->n_opening++;
	return 0;
}

/* In batches, each to one port: the guest's agent wakes once for all that came by then.
 * After a refusal too it is another port. One at a time while it is not known to accept. */
static void refill(struct lane_vsock *l)
{
	unsigned most = l->usable ? POOL_OPENING_MAX : 1;
	unsigned wanted = MIN((l->usable ? l->wanted : 1) + l->n_waiting, most);
	/* those that rest come back, unless a server is stuck; without the lane none count */
	unsigned resting = l->usable ? MIN(l->n_resting, wanted) : 0;
	unsigned pool = l->usable ? l->n_pool : 0;
	struct error err = { 0 };

	if (!l->device_up || !l->ports.first || l->closing || uv_is_active((uv_handle_t *)&l->backoff))
		return;
	if (l->n_waiting <= l->n_opening && pool + l->n_opening + resting > wanted / 2)
		return;
	trim_resting(l);	/* they count among the device's, which has a limit */
	l->port_at = (l->port_at + 1) % l->ports.n;
	while (pool + l->n_opening < wanted && l->n_opening < most)
		if (link_open(l, &err) < 0) {
			log_warn_limited("forward: vsock connection: %s", err.msg);
			note_refusal(l);
			return;
		}
}

static void on_shrink(uv_timer_t *t)
{
	struct lane_vsock *l = t->data;
	struct link *k;

	if (l->lowest > l->wanted / 2)
		l->wanted = MAX(l->wanted / 2, l->o.pool_min);
	while (l->n_pool > l->wanted && (k = TAILQ_FIRST(&l->pool))) {
		vsock_conn_reset(k->v);
		link_free(k);
	}
	l->lowest = l->n_pool;
	if (l->wanted == l->o.pool_min)
		uv_timer_stop(t);
}

/* A client found none: more for those who come like it. */
static void grow(struct lane_vsock *l)
{
	l->wanted = MIN(l->wanted * 2, l->o.pool_max);
	if (l->wanted > l->o.pool_min && !uv_is_active((uv_handle_t *)&l->shrink))
		uv_timer_start(&l->shrink, on_shrink, POOL_SHRINK_MS, POOL_SHRINK_MS);
}

/* --- as a lane ---------------------------------------------------------------- */

static struct lane_vsock *of(const struct lane *lane)
{
	return container_of((struct lane *)lane, struct lane_vsock, lane);
}

static bool lane_can(const struct lane *lane, int proto, const char *guest_addr)
{
	struct in6_addr ip;
	uint16_t port;

	return proto == IPPROTO_TCP && address_parse(guest_addr, &ip, &port);
}

static int lane_relay(struct lane *lane, const struct lane_relay *relay, struct lane_conn **ret,
		      struct error *err)
{
	struct lane_vsock *l = of(lane);
	struct lane_conn *c;
	struct in6_addr ip;
	struct link *k;
	uint16_t port;

	if (!l->usable)
		return error_set(err, -ENOTCONN, "vsock: the guest does not take connections");
	if (!address_parse(relay->guest_addr, &ip, &port))
		return error_set(err, -EINVAL, "`%s` is not an address", relay->guest_addr);
	c = xnew(struct lane_conn);
	c->l = l;
	c->relay = *relay;
	c->hello = (struct relay_hello){ .magic = htons(RELAY_MAGIC),
					 .version = RELAY_VERSION,
					 .proto = RELAY_TCP,
					 .port = htons(port) };
	memcpy(c->hello.ip, &ip, sizeof(c->hello.ip));
	*ret = c;
	k = TAILQ_LAST(&l->pool, link_list);	/* the guest drops its oldest when they are many */
	if (k) {
		TAILQ_REMOVE(&l->pool, k, next);
		l->lowest = MIN(l->lowest, --l->n_pool);
		give(k, c);
	} else {
		TAILQ_INSERT_TAIL(&l->waiting, c, next);
		l->n_waiting++;
		grow(l);
	}
	refill(l);
	return 0;
}

static void lane_reset(struct lane_conn *c)
{
	if (c->link) {
		vsock_conn_reset(c->link->v);
		link_free(c->link);
	}
	client_free(c);
}

static const struct lane_ops ops = {
	.name = "vsock",
	.can = lane_can,
	.relay = lane_relay,
	.reset = lane_reset,
};

/* --- life --------------------------------------------------------------------- */

struct lane *lane_vsock_new(const struct lane_vsock_options *opts)
{
	struct lane_vsock *l = xnew(struct lane_vsock);

	l->lane.ops = &ops;
	l->o = *opts;
	l->o.pool_min = opts->pool_min ? opts->pool_min : POOL_MIN;
	l->o.rest_ms = opts->rest_ms ? opts->rest_ms : REST_MS;
	l->o.pool_max = MAX(opts->pool_max ? opts->pool_max : POOL_MAX, l->o.pool_min);
	l->wanted = l->o.pool_min;
	l->backoff_ms = BACKOFF_MIN_MS;
	TAILQ_INIT(&l->opening);
	TAILQ_INIT(&l->pool);
	TAILQ_INIT(&l->busy);
	TAILQ_INIT(&l->resting);
	TAILQ_INIT(&l->waiting);
	uv_timer_init(&opts->loop->uv, &l->backoff);
	uv_timer_init(&opts->loop->uv, &l->shrink);
	l->backoff.data = l->shrink.data = l;
	l->refs = 2;
	l->device_up = vsock_is_up(opts->vsock);
	return &l->lane;
}

static void try_now(struct lane_vsock *l)
{
	l->backoff_ms = BACKOFF_MIN_MS;
	l->refused_since_ms = 0;
	uv_timer_stop(&l->backoff);
	refill(l);
}

void lane_vsock_set_device(struct lane *lane, bool up)
{
	struct lane_vsock *l = of(lane);

	l->device_up = up;
	if (up)
		try_now(l);
	else
		give_up(l, "the device is down");
}

void lane_vsock_set_agent(struct lane *lane, struct relay_ports ports)
{
	struct lane_vsock *l = of(lane);

	assert(!ports.first || (ports.n && ports.n <= RELAY_VSOCK_PORTS_MAX));
	l->ports = ports;
	if (ports.first)
		try_now(l);
	else
		give_up(l, "the guest's agent does not listen");
}

struct lane_vsock_counts lane_vsock_count(const struct lane *lane)
{
	const struct lane_vsock *l = of(lane);
	struct lane_vsock_counts n = { l->n_opening, l->n_pool, 0, l->n_resting };
	struct link *k;

	TAILQ_FOREACH(k, &l->busy, next)
		n.busy++;
	return n;
}

static void on_timer_closed(uv_handle_t *h)
{
	struct lane_vsock *l = h->data;
	void (*closed)(void *arg) = l->closed;
	void *arg = l->closed_arg;

	if (--l->refs > 0)
		return;
	free(l);
	if (closed)
		closed(arg);
}

void lane_vsock_close(struct lane *lane, void (*closed)(void *arg), void *arg)
{
	struct link_list *lists[] = { NULL, NULL, NULL, NULL };
	struct lane_vsock *l = of(lane);
	struct error gone = { 0 };
	struct lane_conn *c;
	struct link *k;

	error_set(&gone, -ECANCELED, "vsock: closed");
	l->closing = true;
	l->usable = false;
	l->closed = closed;
	l->closed_arg = arg;
	while ((c = TAILQ_FIRST(&l->waiting)))
		client_end(c, &gone);
	lists[0] = &l->opening;
	lists[1] = &l->pool;
	lists[2] = &l->busy;
	lists[3] = &l->resting;
	for (size_t i = 0; i < ARRAY_SIZE(lists); i++)
		while ((k = TAILQ_FIRST(lists[i]))) {
			c = k->client;
			vsock_conn_reset(k->v);
			link_free(k);
			if (c)
				client_end(c, &gone);
		}
	uv_close((uv_handle_t *)&l->backoff, on_timer_closed);
	uv_close((uv_handle_t *)&l->shrink, on_timer_closed);
}
