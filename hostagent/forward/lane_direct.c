#include "hostagent/forward/lane_direct.h"

#include "hostagent/forward/address.h"
#include "hostagent/forward/lane_socket.h"
#include "hostagent/forward/table.h"
#include "lib/base/mem.h"

enum {
	DIRECT_CONNECT_MS = 1000,
	DIRECT_FAILED_MS = 30000, /* not tried again for so long */
	DIRECT_FAILED_KEPT = 64,  /* more of them push each other out */
};

struct failed { /* a port that could not be reached */
	uint64_t until_ms;
	uint16_t port;
};

struct lane_conn_direct { /* the client's relay, to learn from how it ends */
	struct lane_direct *l;
	struct lane_relay relay;
	struct lane_conn *inner;
	uint16_t port;
};

struct lane_direct {
	struct lane lane;
	struct lane_sockets sockets;
	struct in6_addr ip;
	bool has_ip;
	struct failed failed[DIRECT_FAILED_KEPT];
	void (*closed)(void *arg);
	void *closed_arg;
};

static struct lane_direct *of(const struct lane *lane)
{
	return container_of((struct lane *)lane, struct lane_direct, lane);
}

static struct failed *failed_of(struct lane_direct *l, uint16_t port)
{
	return &l->failed[port % DIRECT_FAILED_KEPT];
}

static bool failed_lately(struct lane_direct *l, uint16_t port)
{
	const struct failed *f = failed_of(l, port);

	return f->port == port && uv_now(&l->sockets.loop->uv) < f->until_ms;
}

/* Where @guest_addr is on the guest's address; 0: not there. */
static uint16_t port_of(struct lane_direct *l, const char *guest_addr)
{
	struct in6_addr ip;
	uint16_t port;

	if (!l->has_ip || !address_parse(guest_addr, &ip, &port))
		return 0;
	return address_is_wildcard(&ip) || address_equal(&ip, &l->ip) ? port : 0;
}

static bool direct_can(const struct lane *lane, int proto, const char *guest_addr)
{
	struct lane_direct *l = of(lane);
	uint16_t port = proto == IPPROTO_TCP ? port_of(l, guest_addr) : 0;

	return port && !failed_lately(l, port);
}

static void on_opened(void *arg)
{
	struct lane_conn_direct *c = arg;

	c->relay.opened(c->relay.arg);
}

static void on_closed(void *arg, const struct error *why)
{
	struct lane_conn_direct *c = arg;
	struct lane_relay relay = c->relay;

	if (why->code == -ENOTCONN)
		*failed_of(c->l, c->port) = (struct failed){
			uv_now(&c->l->sockets.loop->uv) + DIRECT_FAILED_MS, c->port
		};
	free(c);
	relay.closed(relay.arg, why);
}

static int direct_relay(struct lane *lane, const struct lane_relay *relay, struct lane_conn **ret,
			struct error *err)
{
	struct lane_direct *l = of(lane);
	uint16_t port = port_of(l, relay->guest_addr);
	struct lane_relay ours = *relay;
	struct sockaddr_storage sa;
	struct lane_socket_options o = { .address = (struct sockaddr *)&sa,
					 .connect_ms = DIRECT_CONNECT_MS };
	struct lane_conn_direct *c;

	if (!port)
		return error_set(err, -ENOTCONN, "`%s` is not on the guest's address",
				 relay->guest_addr);
	o.address_len = address_to_sockaddr(&l->ip, port, &sa);
	c = xnew(struct lane_conn_direct);
	c->l = l;
	c->relay = *relay;
	c->port = port;
	ours.opened = on_opened;
	ours.closed = on_closed;
	ours.arg = c;
	if (lane_socket_relay(&l->sockets, &o, &ours, &c->inner, err) < 0) {
		free(c);
		return err->code;
	}
	*ret = (struct lane_conn *)c;
	return 0;
}

static void direct_reset(struct lane_conn *conn)
{
	struct lane_conn_direct *c = (struct lane_conn_direct *)conn;

	lane_socket_reset(c->inner);
	free(c);
}

static const struct lane_ops ops = {
	.name = "direct",
	.can = direct_can,
	.relay = direct_relay,
	.reset = direct_reset,
};

struct lane *lane_direct_new(struct loop *loop)
{
	struct lane_direct *l = xnew(struct lane_direct);

	l->lane.ops = &ops;
	lane_sockets_init(&l->sockets, loop);
	return &l->lane;
}

void lane_direct_set_address(struct lane *lane, const struct in6_addr *guest_ip)
{
	struct lane_direct *l = of(lane);

	l->has_ip = guest_ip != NULL;
	if (guest_ip)
		l->ip = *guest_ip;
	memset(l->failed, 0, sizeof(l->failed));
}

static void on_sockets_closed(void *arg)
{
	struct lane_direct *l = arg;
	void (*closed)(void *arg) = l->closed;
	void *closed_arg = l->closed_arg;

	free(l);
	if (closed)
		closed(closed_arg);
}

void lane_direct_close(struct lane *lane, void (*closed)(void *arg), void *arg)
{
	struct lane_direct *l = of(lane);

	l->closed = closed;
	l->closed_arg = arg;
	lane_sockets_close(&l->sockets, on_sockets_closed, l);
}
