#include "hostagent/forward/lane_ssh.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "hostagent/forward/address.h"
#include "hostagent/forward/lane_socket.h"
#include "hostagent/forward/table.h"
#include "lib/base/child.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	SSH_UNUSED_MS = 60000,
	SSH_CONNECT_MS = 10000,
	SSH_ROUTES_MAX = 4096, /* guest addresses at once */
};

enum route_state {
	ROUTE_ASKED,    /* `-O forward` runs */
	ROUTE_READY,    /* the socket is there */
	ROUTE_LEAVING,  /* `-O cancel` runs */
};

struct ssh_client { /* owner: its route */
	TAILQ_ENTRY(ssh_client) next;
	struct route *route;
	struct lane_relay relay;
	struct lane_conn *inner; /* NULL: waits for the route */
};
TAILQ_HEAD(ssh_client_list, ssh_client);

struct route { /* a guest address; owner: the lane */
	struct table_link link;
	TAILQ_ENTRY(route) next;
	struct lane_ssh *l;
	enum route_state state;
	char *guest_addr, *spec; /* "127.0.0.1:80", "/dir/lane-1-2.sock:127.0.0.1:80" */
	struct sockaddr_un address;
	struct child *child; /* NULL: ROUTE_READY */
	struct ssh_client_list waiting, clients;
	uint64_t unused_since_ms; /* when there are no clients */
};
TAILQ_HEAD(route_list, route);

struct lane_ssh { /* refs: the timer, the sockets */
	struct lane lane;
	struct lane_ssh_options o;
	char *prefix;
	struct lane_sockets sockets;
	struct table by_addr;
	struct route_list routes;
	uv_timer_t sweep; /* while there are routes */
	unsigned serial, refs;
	bool up;
	void (*closed)(void *arg);
	void *closed_arg;
};

static struct lane_ssh *of(const struct lane *lane)
{
	return container_of((struct lane *)lane, struct lane_ssh, lane);
}

static uint32_t hash_addr(const char *addr)
{
	return table_hash(addr, strlen(addr), 0);
}

/* --- clients ------------------------------------------------------------------ */

static void client_free(struct ssh_client *c)
{
	struct route *r = c->route;

	if (r) {
		TAILQ_REMOVE(c->inner ? &r->clients : &r->waiting, c, next);
		if (TAILQ_EMPTY(&r->clients))
			r->unused_since_ms = uv_now(&r->l->sockets.loop->uv);
	}
	free(c);
}

static void client_end(struct ssh_client *c, const struct error *why)
{
	struct lane_relay relay = c->relay;
	struct error copy = *why;

	client_free(c);
	relay.closed(relay.arg, &copy);
}

static void on_opened(void *arg)
{
	struct ssh_client *c = arg;

	c->relay.opened(c->relay.arg);
}

static void on_closed(void *arg, const struct error *why)
{
	struct ssh_client *c = arg;
	struct lane_ssh *l = c->route ? c->route->l : NULL;

	if (l && why->code == -ENOTCONN && l->o.failed) /* nobody behind the socket */
		l->o.failed(l->o.arg);
	client_end(c, why);
}

static int client_connect(struct ssh_client *c, struct error *err)
{
	struct route *r = c->route;
	struct lane_socket_options o = { .address = (struct sockaddr *)&r->address,
					 .address_len = sizeof(r->address),
					 .connect_ms = SSH_CONNECT_MS,
					 .silence_is_refusal = true };
	struct lane_relay ours = c->relay;
	struct lane_conn *inner;

	ours.opened = on_opened;
	ours.closed = on_closed;
	ours.arg = c;
	if (lane_socket_relay(&r->l->sockets, &o, &ours, &inner, err) < 0)
		return err->code;
	TAILQ_REMOVE(&r->waiting, c, next);
	TAILQ_INSERT_TAIL(&r->clients, c, next);
	c->inner = inner;
	return 0;
}

/* --- routes ------------------------------------------------------------------- */

/* Clients on it stay on theirs; those that wait must have been told. */
static void route_free(struct route *r)
{
	struct ssh_client *c;

	while ((c = TAILQ_FIRST(&r->clients))) {
		TAILQ_REMOVE(&r->clients, c, next);
		c->route = NULL;
	}
	if (r->child)
		child_close(r->child);
	unlink(r->address.sun_path);
	table_remove(&r->l->by_addr, &r->link);
	TAILQ_REMOVE(&r->l->routes, r, next);
	free(r->guest_addr);
	free(r->spec);
	free(r);
}

/* The route goes first: clients that try again make a new one. */
static void route_fail(struct route *r, const char *why)
{
	struct ssh_client_list waiting = TAILQ_HEAD_INITIALIZER(waiting);
	struct error gone = { 0 };
	struct ssh_client *c;

	error_set(&gone, -ENOTCONN, "ssh: %s", why);
	TAILQ_CONCAT(&waiting, &r->waiting, next);
	TAILQ_FOREACH(c, &waiting, next)
		c->route = NULL;
	route_free(r);
	while ((c = TAILQ_FIRST(&waiting))) {
		TAILQ_REMOVE(&waiting, c, next);
		client_end(c, &gone);
	}
}

static const char *last_line(const struct buf *text)
{
	char *s = (char *)buf_str(text);
	size_t len = strlen(s);

	while (len && strchr("\r\n", s[len - 1]))
		len--;
	if (!len)
		return "";
	s[len] = 0;
	while (len && !strchr("\r\n", s[len - 1]))
		len--;
	return s + len;
}

static void on_forwarded(struct route *r)
{
	struct ssh_client *c, *next;
	struct error err = { 0 };

	r->state = ROUTE_READY;
	r->unused_since_ms = uv_now(&r->l->sockets.loop->uv);
	for (c = TAILQ_FIRST(&r->waiting); c; c = next) {
		next = TAILQ_NEXT(c, next);
		if (client_connect(c, &err) < 0)
			client_end(c, &err);
	}
}

static int route_ask(struct route *r, enum route_state state, struct error *err);

static void on_child(void *arg, const struct child_result *result)
{
	struct route *r = arg;
	struct lane_ssh *l = r->l;
	struct error err = { 0 };

	child_close(steal_ptr(&r->child));
	if (r->state == ROUTE_LEAVING) { /* somebody may have come meanwhile */
		if (TAILQ_EMPTY(&r->waiting))
			route_free(r);
		else if (route_ask(r, ROUTE_ASKED, &err) < 0)
			route_fail(r, err.msg);
		return;
	}
	if (result->exit_code == 0) {
		on_forwarded(r);
		return;
	}
	log_debug("forward: ssh -O forward -L %s: %s", r->spec, last_line(&result->err));
	route_fail(r, "the forward was not made");
	if (l->o.failed)
		l->o.failed(l->o.arg);
}

static int route_ask(struct route *r, enum route_state state, struct error *err)
{
	struct lane_ssh *l = r->l;
	const char *more[] = { "-L", r->spec, NULL };
	const char *command = state == ROUTE_ASKED ? "forward" : "cancel";
	scoped_strv struct strv argv = { 0 };
	struct child_spec spec = { .own_group = true };

	unlink(r->address.sun_path);
	if (l->o.control(l->o.arg, command, more, &argv, err) < 0)
		return err->code;
	spec.argv = (const char *const *)argv.items;
	if (child_start(l->sockets.loop, &spec, on_child, r, &r->child, err) < 0) {
		r->child = NULL;
		return err->code;
	}
	r->state = state;
	return 0;
}

static void on_sweep(uv_timer_t *t)
{
	struct lane_ssh *l = t->data;
	uint64_t now = uv_now(t->loop);
	struct error err = { 0 };
	struct route *r, *next;

	for (r = TAILQ_FIRST(&l->routes); r; r = next) {
		next = TAILQ_NEXT(r, next);
		if (r->state == ROUTE_READY && TAILQ_EMPTY(&r->clients) &&
		    now - r->unused_since_ms >= l->o.unused_ms &&
		    route_ask(r, ROUTE_LEAVING, &err) < 0)
			route_free(r);
	}
	if (TAILQ_EMPTY(&l->routes))
		uv_timer_stop(t);
}

static struct route *route_find(struct lane_ssh *l, const char *guest_addr)
{
	struct table_link *link = table_first(&l->by_addr, hash_addr(guest_addr));

	for (; link; link = table_next(link)) {
		struct route *r = container_of(link, struct route, link);

		if (streq(r->guest_addr, guest_addr))
			return r;
	}
	return NULL;
}

static int route_new(struct lane_ssh *l, const char *guest_addr, struct route **ret,
		     struct error *err)
{
	struct route *r = xnew(struct route);
	int len, rc;

	r->l = l;
	r->address.sun_family = AF_UNIX;
	r->guest_addr = xstrdup(guest_addr);
	len = snprintf(r->address.sun_path, sizeof(r->address.sun_path), "%s-%d-%u.sock", l->prefix,
		       (int)getpid(), l->serial++);
	r->spec = xasprintf("%s:%s", r->address.sun_path, guest_addr);
	TAILQ_INIT(&r->waiting);
	TAILQ_INIT(&r->clients);
	table_add(&l->by_addr, &r->link, hash_addr(guest_addr));
	TAILQ_INSERT_TAIL(&l->routes, r, next);
	if (len >= (int)sizeof(r->address.sun_path))
		rc = error_set(err, -ENAMETOOLONG, "`%s…` is longer than a socket's name may be",
			       l->prefix);
	else if (l->by_addr.len > SSH_ROUTES_MAX)
		rc = error_set(err, -ENOSPC, "more than %d guest addresses over ssh",
			       SSH_ROUTES_MAX);
	else
		rc = route_ask(r, ROUTE_ASKED, err);
	if (rc < 0)
		route_free(r);
	else
		*ret = r;
	return rc;
}

/* --- as a lane ---------------------------------------------------------------- */

static bool ssh_can(const struct lane *lane, int proto, const char *guest_addr)
{
	struct in6_addr ip;
	uint16_t port;

	return proto == IPPROTO_TCP && (*guest_addr == '/' || address_parse(guest_addr, &ip, &port));
}

static int ssh_relay(struct lane *lane, const struct lane_relay *relay, struct lane_conn **ret,
		     struct error *err)
{
	struct lane_ssh *l = of(lane);
	struct route *r = route_find(l, relay->guest_addr);
	struct ssh_client *c;

	if (!l->up)
		return error_set(err, -ENOTCONN, "ssh: no connection to the guest");
	if (!r && route_new(l, relay->guest_addr, &r, err) < 0)
		return err->code;
	if (!uv_is_active((uv_handle_t *)&l->sweep))
		uv_timer_start(&l->sweep, on_sweep, l->o.unused_ms, l->o.unused_ms);
	c = xnew(struct ssh_client);
	c->route = r;
	c->relay = *relay;
	TAILQ_INSERT_TAIL(&r->waiting, c, next);
	if (r->state == ROUTE_READY && client_connect(c, err) < 0) {
		client_free(c);
		return err->code;
	}
	*ret = (struct lane_conn *)c;
	return 0;
}

static void ssh_reset(struct lane_conn *conn)
{
	struct ssh_client *c = (struct ssh_client *)conn;

	if (c->inner)
		lane_socket_reset(c->inner);
	client_free(c);
}

static const struct lane_ops ops = {
	.name = "ssh",
	.can = ssh_can,
	.relay = ssh_relay,
	.reset = ssh_reset,
};

/* --- life --------------------------------------------------------------------- */

struct lane *lane_ssh_new(const struct lane_ssh_options *opts)
{
	struct lane_ssh *l = xnew(struct lane_ssh);

	l->lane.ops = &ops;
	l->o = *opts;
	l->prefix = xstrdup(opts->socket_prefix);
	if (!l->o.unused_ms)
		l->o.unused_ms = SSH_UNUSED_MS;
	TAILQ_INIT(&l->routes);
	lane_sockets_init(&l->sockets, opts->loop);
	uv_timer_init(&opts->loop->uv, &l->sweep);
	l->sweep.data = l;
	l->refs = 2;
	return &l->lane;
}

static void drop_routes(struct lane_ssh *l, const char *why)
{
	struct route *r;

	while ((r = TAILQ_FIRST(&l->routes)))
		route_fail(r, why);
	uv_timer_stop(&l->sweep);
}

void lane_ssh_set_master(struct lane *lane, bool up)
{
	struct lane_ssh *l = of(lane);

	l->up = up;
	if (!up)
		drop_routes(l, "the connection to the guest is lost");
}

static void unref(void *arg)
{
	struct lane_ssh *l = arg;
	void (*closed)(void *arg) = l->closed;
	void *closed_arg = l->closed_arg;

	if (--l->refs > 0)
		return;
	table_done(&l->by_addr);
	free(l->prefix);
	free(l);
	if (closed)
		closed(closed_arg);
}

static void on_timer_closed(uv_handle_t *h)
{
	unref(h->data);
}

void lane_ssh_close(struct lane *lane, void (*closed)(void *arg), void *arg)
{
	struct lane_ssh *l = of(lane);

	l->closed = closed;
	l->closed_arg = arg;
	l->up = false;
	drop_routes(l, "closed");
	uv_close((uv_handle_t *)&l->sweep, on_timer_closed);
	lane_sockets_close(&l->sockets, unref, l);
}
