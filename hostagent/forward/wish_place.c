#include "hostagent/forward/wish.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "hostagent/forward/address.h"
#include "lib/base/mem.h"

enum {
	CHOOSE_TRIES = 1024,    /* host ports looked at for one wish */
	CHOOSE_ABOVE = 8000,    /* 80 becomes 8080, 443 becomes 8443 */
	CHOOSE_AGAIN_MS = 1000, /* refused: tried again, then at twice that … retry_max_ms */
	CHOOSE_FAILURES = 4,    /* … until so many failed: 20 ms when all is taken */
};

struct decision { /* what a wish is, by the rules of now */
	struct rule *rule;
	enum wish_kind kind;
	struct rule_host host; /* FIXED; CHOSEN: the first to try */
	struct wish *cover;    /* COVERED */
	char error[160];       /* CLOSED, EARLY */
};

/* --- deciding ---------------------------------------------------------------- */

/* Root could bind any port: which ones it should is the rules' to say. Anybody
 * else may ask the kernel. */
static bool is_privileged(const struct wishes *all, const struct rule *rule, uint16_t port)
{
	return port < all->unprivileged_start && geteuid() == 0 && !rule->is_narrow &&
	       !all->config->port_forwarding.privileged_ports;
}

/* May guests have this host port at all? */
static bool may_have(const struct wishes *all, const struct rule *rule,
		     const struct rule_host *host, char *why, size_t size)
{
	const char *instance;

	*why = 0;
	if (host->socket)
		return true;
	if (host->port == all->ssh_local_port) {
		snprintf(why, size, "the host port is this instance's ssh port");
	} else if ((instance = reserved_by(all->reserved, host->port))) {
		snprintf(why, size, "the host port is the ssh port of instance `%s`", instance);
	} else if (is_privileged(all, rule, host->port)) {
		snprintf(why, size,
			 "host ports below %u are privileged: name it in a rule of its own, or set "
			 "portForwarding.privilegedPorts",
			 all->unprivileged_start);
	}
	return !*why;
}

static bool is_chosen(const struct wishes *all, const struct rule *rule)
{
	if (rule->c.host_socket)
		return false;
	return rule->c.host_port_auto || (all->config->port_forwarding.conflict == CONFLICT_REMAP &&
					  !rule->c.is_static);
}

static struct rule_host host_of(const struct wishes *all, const struct rule *rule, uint16_t port)
{
	struct rule_host host = rule_host_address(&rule->c, port);

	if (!host.socket && address_is_v4_loopback(&host.ip) &&
	    !IN6_IS_ADDR_UNSPECIFIED(&all->loopback))
		host.ip = all->loopback;
	return host;
}

static void decide_rule(const struct wishes *all, const struct wish *w, struct decision *d)
{
	const struct rule *ignored = NULL;
	struct rule *rule =
		rule_match(&all->rules, w->key.proto, &w->key.ip, w->key.port, &ignored);

	d->rule = rule;
	if (!w->of_static || rule == w->of_static)
		return;
	d->rule = NULL;
	snprintf(d->error, sizeof(d->error), "%s comes first and %s",
		 rule ? rule->name : ignored && *ignored->name ? ignored->name : "ssh's own rule",
		 rule ? "decides" : "ignores it");
}

/* Its listener stays when ssh goes: clients wait for the next one. */
static void decide_socket(const struct wishes *all, const struct wish *w, struct decision *d)
{
	d->rule = w->of_static;
	d->host = host_of(all, d->rule, d->rule->c.guest_port[0]);
	if (strpbrk(d->rule->c.guest_socket, RULE_NOT_FOR_SSH)) {
		snprintf(d->error, sizeof(d->error), RULE_NOT_FOR_SSH_WHY);
	} else if (!may_have(all, d->rule, &d->host, d->error, sizeof(d->error))) {
		return;
	} else if (w->slot || all->hub->lanes.of[CONFIG_LANE_SSH]) {
		d->kind = WISH_FIXED;
	} else {
		d->kind = WISH_EARLY;
		snprintf(d->error, sizeof(d->error), "no ssh connection to the guest yet");
	}
}

/* The static wish that stands for a listener; not one that another rule decided about. */
static struct wish *covering(const struct wishes *all, const struct wish *w,
			     const struct rule *rule)
{
	struct guest_port key = w->key;
	struct wish *s;

	if (w->of_static || !rule->c.is_static)
		return NULL;
	key.ip = rule->c.guest_ip;
	s = wish_find(all, &key, rule);
	return s && s->rule == rule ? s : NULL;
}

static void decide(const struct wishes *all, const struct wish *w, struct decision *d)
{
	*d = (struct decision){ .kind = WISH_CLOSED };
	if (wish_is_socket(w)) {
		decide_socket(all, w, d);
		return;
	}
	decide_rule(all, w, d);
	if (!d->rule)
		return;
	if (w->key.proto == IPPROTO_UDP && all->config->plain) {
		snprintf(d->error, sizeof(d->error),
			 "plain mode has ssh only, which carries no udp");
		return;
	}
	if ((d->cover = covering(all, w, d->rule))) {
		d->kind = WISH_COVERED;
		return;
	}
	d->host = host_of(all, d->rule, w->key.port);
	if (is_chosen(all, d->rule))
		d->kind = WISH_CHOSEN;
	else if (may_have(all, d->rule, &d->host, d->error, sizeof(d->error)))
		d->kind = WISH_FIXED;
}

/* Would placing it anew change anything? */
static bool stands(const struct wishes *all, const struct wish *w, const struct decision *d)
{
	char why[160];

	if (w->rule != d->rule || w->kind != d->kind || w->cover != d->cover)
		return false;
	if (w->kind == WISH_CLOSED)
		return streq(w->error ? w->error : "", d->error);
	if (!w->slot)
		return w->kind == WISH_COVERED || w->kind == WISH_EARLY || w->waits_in ||
		       w->over_limit;
	if (w->kind == WISH_CHOSEN)
		return may_have(all, w->rule, endpoint_host(w->slot->ep), why, sizeof(why));
	return endpoint_is(w->slot->ep, w->key.proto, &d->host);
}

/* --- slots ------------------------------------------------------------------- */

static void mark_dirty(struct wishes *all, struct slot *s)
{
	if (s->dirty)
		return;
	s->dirty = true;
	TAILQ_INSERT_TAIL(&all->dirty, s, in_dirty);
}

static uint32_t hash_host(int proto, const struct rule_host *host)
{
	if (host->socket)
		return table_hash(host->socket, strlen(host->socket), 0);
	return table_hash(&host->ip, sizeof(host->ip), (uint32_t)proto << 16 | host->port);
}

static struct slot *slot_find(struct wishes *all, int proto, const struct rule_host *host)
{
	struct table_link *l = table_first(&all->slots, hash_host(proto, host));

	for (; l; l = table_next(l)) {
		struct slot *s = container_of(l, struct slot, link);

		if (endpoint_is(s->ep, proto, host))
			return s;
	}
	return NULL;
}

static struct slot *slot_of_endpoint(struct wishes *all, const struct endpoint *ep)
{
	return slot_find(all, endpoint_proto(ep), endpoint_host(ep));
}

static void on_endpoint_changed(void *arg, struct endpoint *ep)
{
	struct wishes *all = arg;

	if (endpoint_state(ep) == ENDPOINT_OPEN)
		reserved_look(all->reserved);
	wish_announce_users(all, slot_of_endpoint(all, ep));
	wishes_tell(all);
}

/* Each host address of IPv6 is some rule's. */
static bool is_v6_asked_for(void *arg, int proto, const struct in6_addr *ip, uint16_t port)
{
	struct wishes *all = arg;

	for (size_t i = 0; i < all->rules.n; i++) {
		struct rule_host host = { .ip = all->rules.rules[i]->c.host_ip, .port = port };

		if (!address_is_v4(&host.ip) && address_in_the_way(&host.ip, ip) &&
		    slot_find(all, proto, &host))
			return true;
	}
	return false;
}

static const struct endpoint_ops endpoint_ops = { on_endpoint_changed, is_v6_asked_for };

static bool is_full(const struct wishes *all)
{
	return all->slots.len >= all->hub->limits.max_listeners;
}

/* Takes @ep. */
static struct slot *slot_new(struct wishes *all, struct endpoint *ep)
{
	struct slot *s = xnew(struct slot);

	s->ep = ep;
	TAILQ_INIT(&s->aside);
	table_add(&all->slots, &s->link, hash_host(endpoint_proto(ep), endpoint_host(ep)));
	return s;
}

static struct slot *slot_get(struct wishes *all, int proto, const struct rule_host *host)
{
	struct slot *s = slot_find(all, proto, host);

	if (s || is_full(all))
		return s;
	return slot_new(all, endpoint_new(all->hub, proto, host, &endpoint_ops, all));
}

/* Of the endpoints whose companion may be where @ep is: a rule's own IPv6 address
 * comes before the companions of 127.0.0.1 and 0.0.0.0. */
static void for_companions(struct wishes *all, const struct endpoint *ep,
			   void (*fn)(struct endpoint *other, const struct rule_host *host))
{
	const struct rule_host *host = endpoint_host(ep);
	struct rule_host other = { .port = host->port };

	if (host->socket || address_is_v4(&host->ip))
		return;
	for (int loopback = 0; loopback < 2; loopback++) {
		other.ip = loopback ? address_v4(127, 0, 0, 1) : address_v4(0, 0, 0, 0);
		struct slot *s = slot_find(all, endpoint_proto(ep), &other);

		if (s)
			fn(s->ep, host);
	}
}

static void unchoose(struct wishes *all, struct slot *s)
{
	if (s->chosen_by)
		table_remove(&all->chosen, &s->chosen_link);
	s->chosen_by = NULL;
}

static void slot_close(struct wishes *all, struct slot *s)
{
	table_remove(&all->slots, &s->link);
	unchoose(all, s);
	endpoint_close(s->ep);
	for_companions(all, s->ep, endpoint_regain);
	free(s);
}

static bool is_unused(const struct slot *s)
{
	return TAILQ_EMPTY(endpoint_users(s->ep)) && TAILQ_EMPTY(&s->aside);
}

static bool is_loopback(const struct in6_addr *ip)
{
	return address_is_v4_loopback(ip) || IN6_IS_ADDR_LOOPBACK(ip);
}

/* May one server listen on both? On localhost of both families, on another address
 * of each; what listens on a wildcard is known by that alone. */
static bool is_one_server(const struct in6_addr *a, const struct in6_addr *b)
{
	if (address_equal(a, b) || address_is_wildcard(a) || address_is_wildcard(b))
		return true;
	return address_is_v4(a) != address_is_v4(b) && is_loopback(a) == is_loopback(b);
}

/* Can @w share @s with all that have it? They are four at most. */
static bool slot_suits(const struct slot *s, const struct wish *w)
{
	const struct endpoint_user *u;

	if (s->guest_port && s->guest_port != w->key.port)
		return false;
	TAILQ_FOREACH(u, endpoint_users(s->ep), next) {
		const struct wish *other = container_of(u, struct wish, user);

		if (wish_is_socket(w) || wish_is_socket(other) ||
		    !is_one_server(&other->key.ip, &w->key.ip))
			return false;
	}
	return true;
}

static void slot_add(struct wishes *all, struct slot *s, struct wish *w)
{
	w->slot = s;
	w->stands_aside = !slot_suits(s, w);
	if (w->stands_aside) {
		TAILQ_INSERT_TAIL(&s->aside, w, aside);
	} else {
		s->guest_port = w->key.port;
		endpoint_add_user(s->ep, &w->user);
	}
	mark_dirty(all, s);
}

static void slot_remove(struct wishes *all, struct wish *w)
{
	struct slot *s = w->slot;

	if (w->stands_aside)
		TAILQ_REMOVE(&s->aside, w, aside);
	else
		endpoint_remove_user(s->ep, &w->user);
	if (TAILQ_EMPTY(endpoint_users(s->ep)))
		s->guest_port = 0;
	w->slot = NULL;
	w->stands_aside = false;
	mark_dirty(all, s);
}

/* Those who stood aside for one that is gone. */
static void slot_promote(struct wishes *all, struct slot *s)
{
	struct wish *w, *next;

	for (w = TAILQ_FIRST(&s->aside); w; w = next) {
		next = TAILQ_NEXT(w, aside);
		if (!slot_suits(s, w))
			continue;
		TAILQ_REMOVE(&s->aside, w, aside);
		slot_add(all, s, w);
	}
}

/* --- host ports we choose ---------------------------------------------------- */

static uint32_t hash_chosen(const struct rule *rule, int proto, uint16_t guest_port)
{
	return table_hash(&rule, sizeof(rule), (uint32_t)proto << 16 | guest_port);
}

/* Another listener of the same rule and port has one already: v4 and v6. */
static struct slot *chosen_find(struct wishes *all, const struct wish *w)
{
	struct table_link *l = table_first(&all->chosen,
					   hash_chosen(w->rule, w->key.proto, w->key.port));

	for (; l; l = table_next(l)) {
		struct slot *s = container_of(l, struct slot, chosen_link);

		if (s->chosen_by == w->rule && endpoint_proto(s->ep) == w->key.proto &&
		    s->guest_port == w->key.port && slot_suits(s, w))
			return s;
	}
	return NULL;
}

/* NULL: not that one, @err says why; code 0: not ours to have. */
static struct slot *try_port(struct wishes *all, const struct wish *w, struct rule_host host,
			     uint16_t port, struct error *err)
{
	struct endpoint *ep;
	struct slot *s;
	char why[160];

	*err = ERROR_NONE;
	host.port = port;
	if (!port || !may_have(all, w->rule, &host, why, sizeof(why)) ||
	    slot_find(all, w->key.proto, &host))
		return NULL;
	ep = endpoint_new(all->hub, w->key.proto, &host, &endpoint_ops, all);
	if (endpoint_try(ep, err) < 0) {
		endpoint_close(ep);
		return NULL;
	}
	s = slot_new(all, ep);
	s->chosen_by = w->rule;
	table_add(&all->chosen, &s->chosen_link,
		  hash_chosen(w->rule, w->key.proto, w->key.port));
	remember_set(all->remember, w->key.proto, &host.ip, w->key.port, port);
	return s;
}

/* What was taken or not allowed; anything else will not get better with the number. */
static bool is_worth_going_on(const struct error *err)
{
	return err->code == 0 || err->code == -EADDRINUSE || err->code == -EACCES;
}

/* The remembered one; its own number; its own above 8000 when privileged; upwards. */
static struct slot *choose(struct wishes *all, const struct wish *w, struct error *err)
{
	struct rule_host host = host_of(all, w->rule, w->key.port);
	uint16_t own = host.port;
	unsigned next = own < all->unprivileged_start ? own + (unsigned)CHOOSE_ABOVE : own + 1u;
	struct slot *s = try_port(all, w, host,
				  remember_get(all->remember, w->key.proto, &host.ip, w->key.port),
				  err);

	if (!s)
		s = try_port(all, w, host, own, err);
	for (int i = 0; !s && i < CHOOSE_TRIES && is_worth_going_on(err); i++, next++) {
		if (next > UINT16_MAX)
			next = MAX(all->unprivileged_start, 1024u);
		s = try_port(all, w, host, (uint16_t)next, err);
	}
	if (!s && is_worth_going_on(err))
		error_set(err, -EADDRINUSE, "no free host port from %u on", own);
	return s;
}

/* @list: NULL, nowhere any more. */
static void wait_in(struct wish *w, struct wish_list *list)
{
	if (w->waits_in)
		TAILQ_REMOVE(w->waits_in, w, in_waits);
	w->waits_in = list;
	if (list)
		TAILQ_INSERT_TAIL(list, w, in_waits);
}

static void set_over_limit(struct wishes *all, struct wish *w, bool over)
{
	if (w->over_limit == over)
		return;
	w->over_limit = over;
	all->n_over_limit = over ? all->n_over_limit + 1 : all->n_over_limit - 1;
}

/* --- placing ----------------------------------------------------------------- */

static void close_off(struct wishes *all, struct wish *w, const char *error)
{
	free(w->error);
	w->error = *error ? xstrdup(error) : NULL;
	wish_announce(all, w);
}

static void no_room(struct wishes *all, struct wish *w)
{
	set_over_limit(all, w, true);
	close_off(all, w, "too many host ports are forwarded already");
}

/* Which address a static rule's port dials: what is known to listen there, else
 * the loopback of the rule's family. */
static void aim_static(struct wish *s)
{
	struct in6_addr ip = s->key.ip;
	struct wish *l, *best = TAILQ_FIRST(&s->covered);

	TAILQ_FOREACH(l, &s->covered, aside)
		if (address_is_v4(&l->key.ip) && !address_is_v4(&best->key.ip))
			best = l;
	if (best)
		ip = best->key.ip;
	else if (IN6_IS_ADDR_UNSPECIFIED(&ip))
		ip = in6addr_loopback;
	else if (address_is_wildcard(&ip))
		ip = address_v4(127, 0, 0, 1);
	address_text(&ip, s->key.port, s->user.target->guest_addr);
}

static void cover_leave(struct wish *w)
{
	if (!w->cover)
		return;
	TAILQ_REMOVE(&w->cover->covered, w, aside);
	aim_static(w->cover);
	w->cover = NULL;
}

/* For a wish that names the host port; clients they have stay connected. */
static void make_chosen_yield(struct wishes *all, struct slot *s)
{
	struct endpoint_user *u;

	while ((u = TAILQ_FIRST(endpoint_users(s->ep)))) {
		struct wish *w = container_of(u, struct wish, user);

		wish_withdraw(all, w);
		wait_in(w, &all->unplaced);
	}
	unchoose(all, s);
}

static void place_fixed(struct wishes *all, struct wish *w, const struct rule_host *host)
{
	struct slot *s = slot_get(all, w->key.proto, host);

	if (!s) {
		no_room(all, w);
		return;
	}
	set_over_limit(all, w, false);
	if (s->chosen_by)
		make_chosen_yield(all, s);
	slot_add(all, s, w);
}

static void on_again(uv_timer_t *timer);

static void arm_again(struct wishes *all, unsigned ms)
{
	all->again_ms = MIN(ms, all->hub->limits.retry_max_ms);
	uv_timer_start(&all->again, on_again, all->again_ms, 0);
}

/* No host port for it now; there may be one later. */
static void refuse(struct wishes *all, struct wish *w, const char *error)
{
	wait_in(w, &all->refused);
	set_over_limit(all, w, false); /* the timer tries it, not each change */
	if (!uv_is_active((uv_handle_t *)&all->again))
		arm_again(all, CHOOSE_AGAIN_MS);
	close_off(all, w, error);
}

static void place_chosen(struct wishes *all, struct wish *w)
{
	struct slot *s = chosen_find(all, w);
	struct error err = ERROR_NONE;

	wait_in(w, NULL);
	if (!s && is_full(all)) {
		no_room(all, w);
		return;
	}
	if (!s)
		s = choose(all, w, &err);
	if (!s) {
		refuse(all, w, err.msg);
		return;
	}
	free(steal_ptr(&w->error));
	set_over_limit(all, w, false);
	slot_add(all, s, w);
}

/* In turn, each once at most; who is refused again goes to the end. */
static void try_refused(struct wishes *all)
{
	struct wish *w, *last = TAILQ_LAST(&all->refused, wish_list);
	unsigned failures = 0;

	do {
		w = TAILQ_FIRST(&all->refused);
		place_chosen(all, w);
		failures += w->waits_in == &all->refused;
	} while (w != last && failures < CHOOSE_FAILURES);
}

static void on_again(uv_timer_t *timer)
{
	struct wishes *all = timer->data;

	if (TAILQ_EMPTY(&all->refused))
		return;
	arm_again(all, all->again_ms * 2);
	try_refused(all);
	wishes_settle(all);
}

static enum config_lane lane_of(const struct wishes *all, const struct rule *rule)
{
	return all->config->plain || rule->c.guest_socket ? CONFIG_LANE_SSH : rule->c.lane;
}

static void wish_place(struct wishes *all, struct wish *w, const struct decision *d)
{
	w->rule = d->rule;
	w->kind = d->kind;
	free(steal_ptr(&w->error));
	if (w->rule)
		w->user.target->lane_wanted = lane_of(all, w->rule);
	switch (w->kind) {
	case WISH_CLOSED:
	case WISH_EARLY: close_off(all, w, d->error); break;
	case WISH_COVERED:
		w->cover = d->cover;
		TAILQ_INSERT_TAIL(&w->cover->covered, w, aside);
		aim_static(w->cover);
		break;
	case WISH_FIXED: place_fixed(all, w, &d->host); break;
	case WISH_CHOSEN: wait_in(w, &all->unplaced); break;
	}
}

static void unplace(struct wishes *all, struct wish *w)
{
	if (w->slot)
		slot_remove(all, w);
	cover_leave(w);
	wait_in(w, NULL);
	set_over_limit(all, w, false);
}

void wish_withdraw(struct wishes *all, struct wish *w)
{
	wish_announce_stop(all, w);
	unplace(all, w);
	w->announced = false;
}

static void replace(struct wishes *all, struct wish *w)
{
	struct decision d;

	decide(all, w, &d);
	if (stands(all, w, &d))
		return;
	wish_withdraw(all, w);
	wish_place(all, w, &d);
}

/* Statics first: listeners look for what covers them. */
void wishes_refresh(struct wishes *all)
{
	struct wish *w;

	TAILQ_FOREACH(w, &all->statics, in_list)
		replace(all, w);
	TAILQ_FOREACH(w, &all->listeners, in_list)
		replace(all, w);
}

static void place_over_limit(struct wishes *all, struct wish_list *list)
{
	struct decision d;
	struct wish *w;

	TAILQ_FOREACH(w, list, in_list) {
		if (is_full(all))
			return;
		if (!w->over_limit)
			continue;
		decide(all, w, &d);
		wish_place(all, w, &d);
	}
}

static void slot_settle(struct wishes *all, struct slot *s)
{
	slot_promote(all, s);
	if (endpoint_state(s->ep) == ENDPOINT_CLOSED) {
		for_companions(all, s->ep, endpoint_yield);
		endpoint_open(s->ep);
	}
	if (endpoint_state(s->ep) == ENDPOINT_OPEN)
		all->look_at_reserved = true;
	wish_announce_users(all, s);
}

static void settle_dirty(struct wishes *all)
{
	struct slot *s;

	while ((s = TAILQ_FIRST(&all->dirty))) {
		TAILQ_REMOVE(&all->dirty, s, in_dirty);
		s->dirty = false;
		slot_settle(all, s);
	}
}

void wishes_settle(struct wishes *all)
{
	struct slot *s, *next;
	struct wish *w;

	for (s = TAILQ_FIRST(&all->dirty); s; s = next) {
		next = TAILQ_NEXT(s, in_dirty);
		if (!is_unused(s))
			continue;
		TAILQ_REMOVE(&all->dirty, s, in_dirty);
		slot_close(all, s);
	}
	if (all->n_over_limit && !is_full(all)) {
		place_over_limit(all, &all->statics);
		place_over_limit(all, &all->listeners);
	}
	settle_dirty(all); /* what is asked for by number comes before what takes any */
	while ((w = TAILQ_FIRST(&all->unplaced)))
		place_chosen(all, w);
	settle_dirty(all);
	wishes_tell(all);
	if (all->look_at_reserved)
		reserved_look(all->reserved);
	all->look_at_reserved = false;
}

const char *wish_host_addr(const struct wishes *all, const struct wish *w)
{
	static char text[ADDRESS_TEXT_SIZE];
	struct rule_host host;

	if (w->slot)
		return endpoint_address(w->slot->ep);
	if (!wish_is_socket(w))
		return "";
	host = host_of(all, w->of_static, w->of_static->c.guest_port[0]);
	return host.socket ? host.socket : address_text(&host.ip, host.port, text);
}

/* --- life -------------------------------------------------------------------- */

void wishes_open(struct wishes *all)
{
	uv_timer_init(&all->hub->loop->uv, &all->again);
	all->again.data = all;
	hub_ref(all->hub);
}

static void on_again_closed(uv_handle_t *h)
{
	struct wishes *all = h->data;

	hub_unref(all->hub);
}

void wishes_close(struct wishes *all)
{
	uv_close((uv_handle_t *)&all->again, on_again_closed);
}

static uint32_t hash_key(const struct guest_port *key, const struct rule *of_static)
{
	return table_hash(&key->ip, sizeof(key->ip), (uint32_t)key->proto << 16 | key->port) +
	       (of_static ? of_static->id : 0);
}

struct wish *wish_find(const struct wishes *all, const struct guest_port *key,
		       const struct rule *of_static)
{
	struct table_link *l = table_first(&all->by_key, hash_key(key, of_static));

	for (; l; l = table_next(l)) {
		struct wish *w = container_of(l, struct wish, link);

		if (w->of_static == of_static && w->key.proto == key->proto &&
		    w->key.port == key->port && address_equal(&w->key.ip, &key->ip))
			return w;
	}
	return NULL;
}

struct wish *wish_new(struct wishes *all, const struct guest_port *key, struct rule *of_static)
{
	char text[ADDRESS_TEXT_SIZE];
	struct wish *w = xnew(struct wish);
	struct decision d;

	w->key = *key;
	w->of_static = of_static;
	w->since_ms = uv_now(&all->hub->loop->uv);
	w->user.target = target_new(wish_is_socket(w) ? of_static->c.guest_socket :
					address_text(&key->ip, key->port, text));
	w->user.rank = address_is_v4(&key->ip) ? ENDPOINT_RANK_V4 : ENDPOINT_RANK_V6;
	TAILQ_INIT(&w->covered);
	table_add(&all->by_key, &w->link, hash_key(key, of_static));
	if (of_static) {
		TAILQ_INSERT_TAIL(&all->statics, w, in_list);
		if (!wish_is_socket(w))
			aim_static(w);
	} else {
		TAILQ_INSERT_TAIL(&all->listeners, w, in_list);
		all->n_listeners++;
	}
	decide(all, w, &d);
	wish_place(all, w, &d);
	return w;
}

void wish_free(struct wishes *all, struct wish *w)
{
	struct wish *covered;

	unplace(all, w);
	while ((covered = TAILQ_FIRST(&w->covered))) { /* refreshed by who removes the rule */
		TAILQ_REMOVE(&w->covered, covered, aside);
		covered->cover = NULL;
		covered->kind = WISH_CLOSED;
	}
	table_remove(&all->by_key, &w->link);
	if (w->of_static) {
		TAILQ_REMOVE(&all->statics, w, in_list);
	} else {
		TAILQ_REMOVE(&all->listeners, w, in_list);
		all->n_listeners--;
	}
	target_unref(w->user.target);
	free(w->error);
	free(w);
}
