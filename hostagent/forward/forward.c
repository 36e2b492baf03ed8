#include "hostagent/forward/forward.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/queue.h>

#include "hostagent/forward/address.h"
#include "hostagent/forward/endpoint.h"
#include "hostagent/forward/hub.h"
#include "hostagent/forward/owner.h"
#include "hostagent/forward/rule.h"
#include "hostagent/forward/table.h"
#include "hostagent/forward/tcp.h"
#include "hostagent/forward/udp.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	FORWARD_EVENT_BURST = 32768, /* more than a full snapshot */
	FORWARD_EVENTS_PER_S = 20,   /* in the long run: each is a line on disk */
};

static const struct forward_limits defaults = {
	.max_ports = 16384,
	.max_listeners = 4096,
	.max_connections = 16384,
	.max_flows = 4096,
	.lane_wait_ms = 10000,
	.open_wait_ms = 30000,
	.udp_idle_ms = 90000,
	.retry_min_ms = 100,
	.retry_max_ms = 5000,
};

struct slot { /* a host address and its endpoint */
	struct table_link link;
	TAILQ_ENTRY(slot) in_dirty;
	bool dirty;
	struct endpoint *ep;
};

struct port { /* a listener in the guest */
	struct table_link link;
	TAILQ_ENTRY(port) in_list;
	struct guest_port key;
	struct endpoint_user user;
	struct slot *slot; /* NULL: not forwarded */
	const char *error; /* static: why not */
	bool over_limit;   /* would be, were there not too many already */
	bool announced;
	enum forward_event_type last; /* what was announced */
	unsigned seen;                /* snapshot it was last in */
};

struct forward {
	struct hub hub;
	struct rule_set rules;
	uint16_t ssh_local_port;
	void (*event)(void *arg, const struct forward_event *ev);
	void *event_arg;
	struct table ports_by_key, slots;
	TAILQ_HEAD(port_list, port) ports;
	TAILQ_HEAD(, slot) dirty; /* for settle() */
	unsigned n_over_limit, snapshot;
	double event_tokens;
	uint64_t event_ms;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* --- events ------------------------------------------------------------------ */

static const char *proto_name(int proto)
{
	return proto == IPPROTO_UDP ? "udp" : "tcp";
}

/* A guest may open and close ports all day; its events may not fill the disk. */
static bool may_send_event(struct forward *f)
{
	uint64_t now = uv_now(&f->hub.loop->uv);

	f->event_tokens += (double)(now - f->event_ms) * FORWARD_EVENTS_PER_S / 1000;
	f->event_tokens = MIN(f->event_tokens, (double)FORWARD_EVENT_BURST);
	f->event_ms = now;
	if (f->event_tokens < 1) {
		log_warn_limited("forward: the guest changes ports too fast; events are left out");
		return false;
	}
	f->event_tokens -= 1;
	return true;
}

static void log_event(const struct forward_event *ev)
{
	static struct log_limit limit;

	if (ev->type == FORWARD_FAILED)
		log_warn_limited(
			"forward: %s guest `%s` is not on `%s` yet: %s; will be when it is free",
			ev->protocol, ev->guest_addr, ev->host_addr, ev->error);
	else if (ev->type == FORWARD_NOT_FORWARDING && !*ev->error)
		log_debug("forward: %s guest `%s` stays closed", ev->protocol, ev->guest_addr);
	else if (!log_limit_pass(&limit))
		return;
	else if (ev->type == FORWARD_NOT_FORWARDING)
		log_info("forward: %s guest `%s` stays closed: %s", ev->protocol, ev->guest_addr,
			 ev->error);
	else
		log_info("forward: %s guest `%s` %s host `%s`", ev->protocol, ev->guest_addr,
			 ev->type == FORWARD_STOPPING ? "no longer on" : "on", ev->host_addr);
}

static void send_event(struct forward *f, struct port *p, enum forward_event_type type,
		       const char *host_addr, const char *error)
{
	struct forward_event ev = {
		.type = type,
		.protocol = proto_name(p->key.proto),
		.guest_addr = p->user.target->guest_addr,
		.host_addr = host_addr,
		.error = error,
	};

	p->announced = true;
	p->last = type;
	log_event(&ev);
	if (f->event && may_send_event(f))
		f->event(f->event_arg, &ev);
}

/* Ports that a desktop host usually has a service of its own on: not worth a
 * complaint (reference/port-forwarding.md §5: dns, ntp, mdns, llmnr). */
static bool is_usually_taken(const struct guest_port *key)
{
	static const uint16_t udp[] = { 53, 323, 5353, 5355 };

	if (key->proto == IPPROTO_TCP)
		return key->port == 53;
	for (size_t i = 0; i < ARRAY_SIZE(udp); i++)
		if (key->port == udp[i])
			return true;
	return false;
}

/* The event for where @p stands; false: not known yet. */
static bool current_type(const struct port *p, enum forward_event_type *ret)
{
	switch (endpoint_state(p->slot->ep)) {
	case ENDPOINT_OPEN: *ret = FORWARD_FORWARDING; return true;
	case ENDPOINT_WAITING:
		*ret = is_usually_taken(&p->key) ? FORWARD_NOT_FORWARDING : FORWARD_FAILED;
		return true;
	case ENDPOINT_DENIED: *ret = FORWARD_NOT_FORWARDING; return true;
	default: return false;
	}
}

static void announce(struct forward *f, struct port *p)
{
	enum forward_event_type type;

	if (!current_type(p, &type) || (p->announced && p->last == type))
		return;
	send_event(f, p, type, endpoint_address(p->slot->ep), endpoint_error(p->slot->ep));
}

static void announce_users(struct forward *f, struct endpoint *ep)
{
	struct endpoint_user *u;

	TAILQ_FOREACH(u, endpoint_users(ep), next)
		announce(f, container_of(u, struct port, user));
}

static void announce_closed(struct forward *f, struct port *p, const char *error)
{
	p->error = error;
	if (!p->announced && !rule_set_is_quiet(&f->rules, p->key.proto))
		send_event(f, p, FORWARD_NOT_FORWARDING, "", error);
}

/* --- host addresses ---------------------------------------------------------- */

static void mark_dirty(struct forward *f, struct slot *s)
{
	if (s->dirty)
		return;
	s->dirty = true;
	TAILQ_INSERT_TAIL(&f->dirty, s, in_dirty);
}

static uint32_t hash_host(int proto, const struct rule_host *host)
{
	if (host->socket)
		return table_hash(host->socket, strlen(host->socket), 0);
	return table_hash(&host->ip, sizeof(host->ip), (uint32_t)proto << 16 | host->port);
}

static struct slot *slot_find(struct forward *f, int proto, const struct rule_host *host)
{
	struct table_link *l = table_first(&f->slots, hash_host(proto, host));

	for (; l; l = table_next(l)) {
		struct slot *s = container_of(l, struct slot, link);

		if (endpoint_is(s->ep, proto, host))
			return s;
	}
	return NULL;
}

static void on_endpoint_changed(void *arg, struct endpoint *ep)
{
	announce_users(arg, ep);
}

static struct slot *slot_get(struct forward *f, int proto, const struct rule_host *host)
{
	struct slot *s = slot_find(f, proto, host);

	if (s || f->slots.len >= f->hub.limits.max_listeners)
		return s;
	s = xnew(struct slot);
	s->ep = endpoint_new(&f->hub, proto, host, on_endpoint_changed, f);
	table_add(&f->slots, &s->link, hash_host(proto, host));
	return s;
}

/* A rule's own [::1] or [::] comes before the companions of 127.0.0.1 and 0.0.0.0. */
static void make_companions_yield(struct forward *f, const struct endpoint *ep)
{
	const struct rule_host *host = endpoint_host(ep);
	struct rule_host other = { .port = host->port };

	if (host->socket || address_is_v4(&host->ip))
		return;
	for (int loopback = 0; loopback < 2; loopback++) {
		other.ip = loopback ? address_v4(127, 0, 0, 1) : address_v4(0, 0, 0, 0);
		struct slot *s = slot_find(f, endpoint_proto(ep), &other);

		if (s)
			endpoint_yield(s->ep, host);
	}
}

static void slot_open(struct forward *f, struct slot *s)
{
	make_companions_yield(f, s->ep);
	endpoint_open(s->ep);
}

static void slot_close(struct forward *f, struct slot *s)
{
	table_remove(&f->slots, &s->link);
	endpoint_close(s->ep);
	free(s);
}

/* --- guest listeners --------------------------------------------------------- */

static uint32_t hash_port(const struct guest_port *key)
{
	return table_hash(&key->ip, sizeof(key->ip), (uint32_t)key->proto << 16 | key->port);
}

static struct port *port_find(struct forward *f, const struct guest_port *key)
{
	struct table_link *l = table_first(&f->ports_by_key, hash_port(key));

	for (; l; l = table_next(l)) {
		struct port *p = container_of(l, struct port, link);

		if (p->key.proto == key->proto && p->key.port == key->port &&
		    address_equal(&p->key.ip, &key->ip))
			return p;
	}
	return NULL;
}

static void set_over_limit(struct forward *f, struct port *p, bool over)
{
	if (p->over_limit == over)
		return;
	p->over_limit = over;
	f->n_over_limit = over ? f->n_over_limit + 1 : f->n_over_limit - 1;
}

/* Finds @p its host address; opening it and telling is settle()'s. */
static void port_place(struct forward *f, struct port *p)
{
	const struct config_port_forward *rule =
		rule_match(&f->rules, p->key.proto, &p->key.ip, p->key.port);
	struct rule_host host;

	if (!rule) {
		announce_closed(f, p, "");
		return;
	}
	host = rule_host_address(rule, p->key.port);
	if (!host.socket && host.port == f->ssh_local_port) {
		announce_closed(f, p, "the host port is this instance's ssh port");
		return;
	}
	p->slot = slot_get(f, p->key.proto, &host);
	set_over_limit(f, p, !p->slot);
	if (!p->slot) {
		announce_closed(f, p, "too many host ports are forwarded already");
		return;
	}
	p->error = "";
	endpoint_add_user(p->slot->ep, &p->user);
	mark_dirty(f, p->slot);
}

static void port_add(struct forward *f, const struct guest_port *key)
{
	char text[ADDRESS_TEXT_SIZE];

	if (key->port == 0 || (key->proto != IPPROTO_TCP && key->proto != IPPROTO_UDP))
		return;
	struct port *p = port_find(f, key);

	if (p) {
		p->seen = f->snapshot;
		return;
	}
	if (f->ports_by_key.len >= f->hub.limits.max_ports) {
		log_warn_limited(
			"forward: the guest listens on more than %u ports; more are ignored",
			f->hub.limits.max_ports);
		return;
	}
	p = xnew(struct port);
	p->key = *key;
	p->seen = f->snapshot;
	p->user.target = target_new(address_text(&key->ip, key->port, text));
	p->user.v6 = !address_is_v4(&key->ip);
	table_add(&f->ports_by_key, &p->link, hash_port(key));
	TAILQ_INSERT_TAIL(&f->ports, p, in_list);
	port_place(f, p);
}

static void port_free(struct forward *f, struct port *p)
{
	if (p->slot) {
		endpoint_remove_user(p->slot->ep, &p->user);
		mark_dirty(f, p->slot);
	}
	set_over_limit(f, p, false);
	table_remove(&f->ports_by_key, &p->link);
	TAILQ_REMOVE(&f->ports, p, in_list);
	target_unref(p->user.target);
	free(p);
}

static void port_remove(struct forward *f, struct port *p)
{
	if (p->slot && p->announced && p->last != FORWARD_NOT_FORWARDING)
		send_event(f, p, FORWARD_STOPPING, endpoint_address(p->slot->ep), "");
	port_free(f, p);
}

/* Makes the host agree with the list: first close what nobody wants, so that a
 * port that moved is free, then open, then tell. */
static void settle(struct forward *f)
{
	struct slot *s, *next_slot;
	struct port *p;

	for (s = TAILQ_FIRST(&f->dirty); s; s = next_slot) {
		next_slot = TAILQ_NEXT(s, in_dirty);
		if (!TAILQ_EMPTY(endpoint_users(s->ep)))
			continue;
		TAILQ_REMOVE(&f->dirty, s, in_dirty);
		slot_close(f, s);
	}
	if (f->n_over_limit && f->slots.len < f->hub.limits.max_listeners)
		TAILQ_FOREACH(p, &f->ports, in_list)
			if (p->over_limit)
				port_place(f, p);
	while ((s = TAILQ_FIRST(&f->dirty))) {
		TAILQ_REMOVE(&f->dirty, s, in_dirty);
		s->dirty = false;
		if (endpoint_state(s->ep) == ENDPOINT_CLOSED)
			slot_open(f, s);
		announce_users(f, s->ep);
	}
}

void forward_set_ports(struct forward *f, const struct guest_port *ports, size_t n)
{
	struct port *p, *next;

	f->snapshot++;
	for (size_t i = 0; i < n; i++)
		if ((p = port_find(f, &ports[i])))
			p->seen = f->snapshot;
	for (p = TAILQ_FIRST(&f->ports); p; p = next) {
		next = TAILQ_NEXT(p, in_list);
		if (p->seen != f->snapshot)
			port_remove(f, p);
	}
	for (size_t i = 0; i < n; i++)
		port_add(f, &ports[i]);
	settle(f);
}

void forward_change_ports(struct forward *f, const struct guest_port *added, size_t n_added,
			  const struct guest_port *removed, size_t n_removed)
{
	for (size_t i = 0; i < n_removed; i++) {
		struct port *p = port_find(f, &removed[i]);

		if (p)
			port_remove(f, p);
	}
	for (size_t i = 0; i < n_added; i++)
		port_add(f, &added[i]);
	settle(f);
}

static const char *row_state(const struct port *p)
{
	if (!p->slot)
		return "not-forwarded";
	switch (endpoint_state(p->slot->ep)) {
	case ENDPOINT_OPEN: return "forwarding";
	case ENDPOINT_DENIED: return "not-forwarded";
	default: return "waiting";
	}
}

void forward_list(struct forward *f, void (*each)(void *arg, const struct forward_row *row),
		  void *arg)
{
	struct port *p;

	TAILQ_FOREACH(p, &f->ports, in_list) {
		const struct target *t = p->user.target;
		struct forward_row row = {
			.protocol = proto_name(p->key.proto),
			.guest_addr = t->guest_addr,
			.host_addr = p->slot ? endpoint_address(p->slot->ep) : "",
			.state = row_state(p),
			.error = p->slot ? endpoint_error(p->slot->ep) : p->error,
			.connections_total = t->connections_total,
			.connections_now = t->connections_now,
			.bytes_in = t->bytes_in,
			.bytes_out = t->bytes_out,
			.refused = t->refused,
			.resets = t->resets,
			.timeouts = t->timeouts,
			.lane = t->lane,
			.connect_last_us = latency_last_us(&t->connect),
			.connect_p50_us = latency_quantile_us(&t->connect, 50),
			.connect_p99_us = latency_quantile_us(&t->connect, 99),
		};

		each(arg, &row);
	}
}

void forward_set_lane(struct forward *f, struct lane *lane)
{
	f->hub.lane = lane;
	if (!lane)
		return;
	tcp_set_lane_changed(f->hub.tcp);
	udp_set_lane_changed(f->hub.udp);
}

/* --- life -------------------------------------------------------------------- */

static void fill_limits(struct forward_limits *l)
{
	unsigned *mine = (unsigned *)l;
	const unsigned *theirs = (const unsigned *)&defaults;

	static_assert(sizeof(*l) % sizeof(*mine) == 0, "all fields are unsigned");
	for (size_t i = 0; i < sizeof(*l) / sizeof(*mine); i++)
		if (mine[i] == 0)
			mine[i] = theirs[i];
}

static void on_hub_idle(void *arg)
{
	struct forward *f = arg;
	void (*closed)(void *arg) = f->closed;
	void *closed_arg = f->closed_arg;

	tcp_set_free(f->hub.tcp);
	udp_set_free(f->hub.udp);
	owner_finder_free(f->hub.owner);
	rule_set_done(&f->rules);
	table_done(&f->ports_by_key);
	table_done(&f->slots);
	free(f);
	if (closed)
		closed(closed_arg);
}

int forward_new(struct loop *loop, const struct forward_options *opts, struct forward **ret,
		struct error *err)
{
	struct forward *f = xnew(struct forward);

	f->hub.loop = loop;
	f->hub.limits = opts->limits;
	fill_limits(&f->hub.limits);
	f->hub.idle = on_hub_idle;
	f->hub.idle_arg = f;
	f->hub.tcp = tcp_set_new(&f->hub);
	f->hub.udp = udp_set_new(&f->hub);
	f->hub.owner = owner_finder_new(&f->hub);
	rule_set_init(&f->rules, opts->config->port_forwards, opts->config->n_port_forwards,
		      opts->ssh_local_port);
	f->ssh_local_port = opts->ssh_local_port;
	f->event = opts->event;
	f->event_arg = opts->arg;
	f->event_tokens = FORWARD_EVENT_BURST;
	f->event_ms = uv_now(&loop->uv);
	TAILQ_INIT(&f->ports);
	TAILQ_INIT(&f->dirty);
	*ret = f;
	return 0;
}

void forward_close(struct forward *f, void (*closed)(void *arg), void *arg)
{
	struct port *p;

	f->closed = closed;
	f->closed_arg = arg;
	f->hub.lane = NULL;
	while ((p = TAILQ_FIRST(&f->ports)))
		port_free(f, p);
	f->n_over_limit = 0;
	settle(f);
	tcp_set_close(f->hub.tcp);
}
