#include "hostagent/forward/forward.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "hostagent/forward/address.h"
#include "hostagent/forward/hub.h"
#include "hostagent/forward/owner.h"
#include "hostagent/forward/tcp.h"
#include "hostagent/forward/udp.h"
#include "hostagent/forward/wish.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/scoped.h"
#include "proto/rpc.h"

static const struct forward_limits defaults = {
	.max_ports = 16384,
	.max_listeners = 4096,
	.max_connections = 16384,
	.max_flows = 4096,
	.max_flows_in_all = RPC_TUNNELS_MAX - 10 * 1024,
	.udp_wait_bytes = 64 << 20,
	.lane_wait_ms = 10000,
	.open_wait_ms = 30000,
	.udp_idle_ms = 90000,
	.retry_min_ms = 100,
	.retry_max_ms = 5000,
};

struct forward {
	struct hub hub;
	struct wishes wishes;
	struct forward_sockets sockets; /* add NULL: none */
	unsigned snapshot;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* --- what listens in the guest ----------------------------------------------- */

static void port_add(struct forward *f, const struct guest_port *key)
{
	struct wish *w;

	if (key->port == 0 || (key->proto != IPPROTO_TCP && key->proto != IPPROTO_UDP))
		return;
	w = wish_find(&f->wishes, key, NULL);
	if (!w && f->wishes.n_listeners >= f->hub.limits.max_ports) {
		log_warn_limited(
			"forward: the guest listens on more than %u ports; more are ignored",
			f->hub.limits.max_ports);
		return;
	}
	if (!w)
		w = wish_new(&f->wishes, key, NULL);
	w->seen = f->snapshot;
}

static void port_remove(struct forward *f, struct wish *w)
{
	wish_withdraw(&f->wishes, w);
	wish_free(&f->wishes, w);
}

void forward_set_ports(struct forward *f, const struct guest_port *ports, size_t n)
{
	struct wish *w, *next;

	f->snapshot++;
	for (size_t i = 0; i < n; i++)
		if ((w = wish_find(&f->wishes, &ports[i], NULL)))
			w->seen = f->snapshot;
	for (w = TAILQ_FIRST(&f->wishes.listeners); w; w = next) {
		next = TAILQ_NEXT(w, in_list);
		if (w->seen != f->snapshot)
			port_remove(f, w);
	}
	for (size_t i = 0; i < n; i++)
		port_add(f, &ports[i]);
	wishes_settle(&f->wishes);
}

void forward_change_ports(struct forward *f, const struct guest_port *added, size_t n_added,
			  const struct guest_port *removed, size_t n_removed)
{
	for (size_t i = 0; i < n_removed; i++) {
		struct wish *w = wish_find(&f->wishes, &removed[i], NULL);

		if (w)
			port_remove(f, w);
	}
	for (size_t i = 0; i < n_added; i++)
		port_add(f, &added[i]);
	wishes_settle(&f->wishes);
}

/* --- rules ------------------------------------------------------------------- */

/* Each port of a static rule, once for each protocol. What plain mode has, ssh,
 * carries no UDP: a rule for both means TCP there, one for UDP alone stays closed
 * and says so. */
static void static_ports_add(struct forward *f, struct rule *rule)
{
	static const int protos[] = { IPPROTO_TCP, IPPROTO_UDP };

	for (size_t i = 0; i < ARRAY_SIZE(protos); i++) {
		struct guest_port key = { .proto = protos[i], .ip = rule->c.guest_ip };

		if (!rule_speaks(&rule->c, key.proto) ||
		    (key.proto == IPPROTO_UDP && f->wishes.config->plain &&
		     rule->c.proto != L4_UDP))
			continue;
		for (unsigned port = rule->c.guest_port[0]; port <= rule->c.guest_port[1]; port++) {
			key.port = (uint16_t)port;
			wish_new(&f->wishes, &key, rule);
		}
	}
}

static void statics_add(struct forward *f, struct rule *rule)
{
	static const struct guest_port none = { .proto = IPPROTO_TCP };

	if (rule->c.ignore || rule->c.reverse)
		return;
	if (rule->c.guest_socket)
		wish_new(&f->wishes, &none, rule);
	else if (rule->c.is_static)
		static_ports_add(f, rule);
}

static void statics_remove(struct forward *f, const struct rule *rule)
{
	struct wish *w, *next;

	for (w = TAILQ_FIRST(&f->wishes.statics); w; w = next) {
		next = TAILQ_NEXT(w, in_list);
		if (w->of_static == rule)
			port_remove(f, w);
	}
}

static bool is_one(const uint16_t range[2], uint16_t port)
{
	return port && range[0] == port && range[1] == port;
}

static int check_host_port(const struct forward *f, uint16_t port, struct error *err)
{
	const char *instance = reserved_by(f->wishes.reserved, port);

	if (port == f->wishes.ssh_local_port)
		return error_set(err, -EPERM, "host port %u is this instance's ssh port", port);
	if (instance)
		return error_set(err, -EPERM, "host port %u is the ssh port of instance `%s`", port,
				 instance);
	return 0;
}

/* What a rule of the file may say without effect, somebody who adds one is told. */
static int check_live(const struct forward *f, const struct config_port_forward *c,
		      struct error *err)
{
	uint16_t ssh = f->wishes.ssh_local_port, host = c->host_port[0];

	if (!c->guest_socket && (is_one(c->guest_port, 22) || is_one(c->guest_port, ssh)))
		return error_set(err, -EPERM, "guest port %u is never forwarded: ssh's",
				 c->guest_port[0]);
	if (!c->host_socket && is_one(c->host_port, host) && !c->host_port_auto && !c->ignore &&
	    check_host_port(f, host, err) < 0)
		return err->code;
	if (c->guest_socket && strpbrk(c->guest_socket, RULE_NOT_FOR_SSH))
		return error_set(err, -EINVAL, RULE_NOT_FOR_SSH_WHY);
	if (c->reverse && !f->sockets.add)
		return error_set(err, -ENOTSUP, "there is no ssh connection to carry a guest socket");
	return 0;
}

int forward_add_rule(struct forward *f, const struct config_port_forward *c, unsigned *ret_id,
		     struct error *err)
{
	struct rule *rule;

	if (check_live(f, c, err) < 0 || rule_set_add(&f->wishes.rules, c, &rule, err) < 0)
		return err->code;
	if (c->reverse) {
		if (!c->ignore && f->sockets.add(f->sockets.arg, rule->id, c, err) < 0) {
			rule_free(rule_set_detach(&f->wishes.rules, rule));
			return err->code;
		}
	} else {
		statics_add(f, rule);
		wishes_refresh(&f->wishes);
		wishes_settle(&f->wishes);
	}
	*ret_id = rule->id;
	return 0;
}

void forward_set_next_rule_id(struct forward *f, unsigned id)
{
	f->wishes.rules.last_id = MAX(f->wishes.rules.last_id, id ? id - 1 : 0);
}

/* Wishes on it must have moved before it is freed. */
static void forget_rule(struct forward *f, struct rule *rule)
{
	struct rule *gone = rule_set_detach(&f->wishes.rules, rule);

	statics_remove(f, rule);
	wishes_refresh(&f->wishes);
	wishes_settle(&f->wishes);
	rule_free(gone);
}

int forward_remove_rule(struct forward *f, unsigned id, struct error *err)
{
	struct rule *rule = rule_find(&f->wishes.rules, id);

	if (!rule)
		return error_set(err, -ENOENT, "there is no rule %u", id);
	if (rule->origin != RULE_LIVE)
		return error_set(err, -EPERM,
				 "%s is in lima.yaml and stays until that is edited and the "
				 "instance restarted", rule->name);
	if (rule->c.reverse && !rule->c.ignore && f->sockets.remove)
		f->sockets.remove(f->sockets.arg, id);
	forget_rule(f, rule);
	return 0;
}

void forward_each_rule(struct forward *f,
		       void (*each)(void *arg, const struct forward_rule_info *info), void *arg)
{
	for (size_t i = 0; i < f->wishes.rules.n; i++) {
		const struct rule *r = f->wishes.rules.rules[i];
		struct forward_rule_info info = { .id = r->id, .origin = rule_origin_name(r),
						  .name = r->name, .rule = &r->c };

		if (r->origin != RULE_BUILTIN)
			each(arg, &info);
	}
}

void forward_set_sockets(struct forward *f, const struct forward_sockets *sockets)
{
	const struct rule_set *set = &f->wishes.rules;
	struct error err = ERROR_NONE;

	f->sockets = sockets ? *sockets : (struct forward_sockets){ 0 };
	for (size_t i = 0; sockets && i < set->n; i++) {
		const struct rule *r = set->rules[i];

		if (r->c.reverse && !r->c.ignore &&
		    f->sockets.add(f->sockets.arg, r->id, &r->c, &err) < 0)
			log_warn("forward: %s: %s, ignoring", r->name, err.msg);
	}
}

/* --- the table --------------------------------------------------------------- */

static struct forward_row make_row(const struct forward *f, const struct wish *w)
{
	const struct target *t = w->user.target;

	return (struct forward_row){
		.protocol = wish_protocol(w),
		.guest_addr = t->guest_addr,
		.host_addr = wish_host_addr(&f->wishes, w),
		.state = wish_state(w),
		.error = wish_error(w),
		.rule_id = w->rule ? w->rule->id : 0,
		.origin = rule_origin_name(w->rule),
		.rule = w->rule ? w->rule->name : "",
		.is_static = w->of_static,
		.since_ms = w->since_ms,
		.connections_total = t->connections_total,
		.connections_now = t->connections_now,
		.bytes_in = t->bytes_in,
		.bytes_out = t->bytes_out,
		.refused = t->refused,
		.resets = t->resets,
		.timeouts = t->timeouts,
		.lane = wish_is_socket(w) ? "ssh" : t->lane,
		.connect_last_us = latency_last_us(&t->connect),
		.connect_p50_us = latency_quantile_us(&t->connect, 50),
		.connect_p99_us = latency_quantile_us(&t->connect, 99),
	};
}

static void tell_missing_lane(const struct forward *f, const struct wish *w,
			      struct forward_row *row)
{
	const char *why = f->hub.lanes.missing[w->user.target->lane_wanted];

	if (why && w->key.proto == IPPROTO_TCP && w->slot && !*row->error)
		row->error = why;
}

struct lister {
	struct forward *f;
	void (*each)(void *arg, const struct forward_row *row);
	void *arg;
};

static void list_socket(void *arg, const struct forward_row *bare)
{
	struct lister *l = arg;
	const struct rule *rule = rule_find(&l->f->wishes.rules, bare->rule_id);
	struct forward_row row = *bare;

	row.origin = rule_origin_name(rule);
	row.rule = rule ? rule->name : "";
	row.is_static = true;
	row.lane = "ssh";
	l->each(l->arg, &row);
}

void forward_list(struct forward *f, void (*each)(void *arg, const struct forward_row *row),
		  void *arg)
{
	struct lister lister = { f, each, arg };
	struct forward_row row;
	struct wish *w;

	TAILQ_FOREACH(w, &f->wishes.statics, in_list) {
		row = make_row(f, w);
		tell_missing_lane(f, w, &row);
		each(arg, &row);
	}
	if (f->sockets.list)
		f->sockets.list(f->sockets.arg, list_socket, &lister);
	TAILQ_FOREACH(w, &f->wishes.listeners, in_list) {
		row = make_row(f, w);
		tell_missing_lane(f, w, &row);
		if (w->kind != WISH_COVERED)
			each(arg, &row);
	}
}

void forward_set_lane(struct forward *f, enum config_lane which, struct lane *lane)
{
	f->hub.lanes.of[which] = lane;
	if (which == CONFIG_LANE_SSH && lane) { /* sockets that wait for it */
		wishes_refresh(&f->wishes);
		wishes_settle(&f->wishes);
	}
	tcp_set_lane_changed(f->hub.tcp, which);
	udp_set_lane_changed(f->hub.udp);
}

void forward_set_lane_missing(struct forward *f, enum config_lane which, const char *why)
{
	f->hub.lanes.missing[which] = why;
	tcp_set_lane_changed(f->hub.tcp, which);
}

void forward_set_paused(struct forward *f, bool paused)
{
	hub_set_paused(&f->hub, paused);
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

/* ip(7); 1024 where the kernel does not say. */
static unsigned unprivileged_start(void)
{
	scoped_file FILE *f = fopen("/proc/sys/net/ipv4/ip_unprivileged_port_start", "re");
	unsigned port;

	return f && fscanf(f, "%u", &port) == 1 ? port : 1024;
}

static void on_reserved_changed(void *arg)
{
	struct forward *f = arg;

	wishes_refresh(&f->wishes);
	wishes_settle(&f->wishes);
}

static void wishes_init(struct wishes *all, struct hub *hub, const struct forward_options *o)
{
	all->hub = hub;
	all->config = o->config;
	all->ssh_local_port = o->ssh_local_port;
	all->unprivileged_start = o->unprivileged_start ? o->unprivileged_start :
							  unprivileged_start();
	all->loopback = o->loopback;
	all->event.fn = o->event;
	all->event.arg = o->arg;
	TAILQ_INIT(&all->statics);
	TAILQ_INIT(&all->listeners);
	TAILQ_INIT(&all->unplaced);
	TAILQ_INIT(&all->refused);
	TAILQ_INIT(&all->dirty);
	TAILQ_INIT(&all->notices);
	rule_set_init(&all->rules, o->config, o->ssh_local_port);
	wishes_open(all);
}

int forward_new(struct loop *loop, const struct forward_options *opts, struct forward **ret,
		struct error *err)
{
	struct forward *f = xnew(struct forward);

	f->hub.loop = loop;
	f->hub.limits = opts->limits;
	fill_limits(&f->hub.limits);
	f->hub.tcp = tcp_set_new(&f->hub);
	f->hub.udp = udp_set_new(&f->hub);
	f->hub.owner = owner_finder_new(&f->hub);
	wishes_init(&f->wishes, &f->hub, opts);
	f->wishes.reserved = reserved_new(&f->hub, &opts->reserved, on_reserved_changed, f);
	f->wishes.remember = remember_new(&f->hub, opts->remember_file);
	*ret = f;
	return 0;
}

void forward_start(struct forward *f)
{
	for (size_t i = 0; i < f->wishes.rules.n; i++)
		statics_add(f, f->wishes.rules.rules[i]);
	wishes_settle(&f->wishes);
}

static void on_hub_idle(void *arg)
{
	struct forward *f = arg;
	void (*closed)(void *arg) = f->closed;
	void *closed_arg = f->closed_arg;

	tcp_set_free(f->hub.tcp);
	udp_set_free(f->hub.udp);
	owner_finder_free(f->hub.owner);
	rule_set_done(&f->wishes.rules);
	table_done(&f->wishes.by_key);
	table_done(&f->wishes.slots);
	table_done(&f->wishes.chosen);
	free(f);
	if (closed)
		closed(closed_arg);
}

static void free_all(struct wishes *all, struct wish_list *list)
{
	struct wish *w;

	while ((w = TAILQ_FIRST(list)))
		wish_free(all, w);
}

void forward_close(struct forward *f, void (*closed)(void *arg), void *arg)
{
	f->closed = closed;
	f->closed_arg = arg;
	f->hub.idle = on_hub_idle;
	f->hub.idle_arg = f;
	f->hub.lanes = (struct lanes){ 0 };
	f->sockets = (struct forward_sockets){ 0 };
	free_all(&f->wishes, &f->wishes.listeners);
	free_all(&f->wishes, &f->wishes.statics);
	wishes_settle(&f->wishes);
	wishes_close(&f->wishes);
	reserved_close(f->wishes.reserved);
	remember_close(f->wishes.remember);
	tcp_set_close(f->hub.tcp);
}
