#include "hostagent/forward/wish.h"

#include <stdio.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	EVENT_BURST = 32768, /* more than a full snapshot */
	EVENTS_PER_S = 20,   /* in the long run: each is a line on disk */
};

struct notice {
	TAILQ_ENTRY(notice) next;
	enum forward_event_type type;
	const char *protocol;
	char *guest_addr, *host_addr, *error;
};

const char *wish_protocol(const struct wish *w)
{
	if (wish_is_socket(w) && w->of_static->c.host_socket)
		return "unix";
	return w->key.proto == IPPROTO_UDP ? "udp" : "tcp";
}

/* --- standing ---------------------------------------------------------------- */

/* Host ports that a desktop usually has a service of its own on: not worth a
 * complaint (reference/port-forwarding.md §5: dns, ntp, mdns, llmnr). */
static bool is_usually_taken(const struct endpoint *ep)
{
	static const uint16_t udp[] = { 53, 323, 5353, 5355 };
	const struct rule_host *host = endpoint_host(ep);

	if (host->socket || endpoint_proto(ep) == IPPROTO_TCP)
		return !host->socket && host->port == 53;
	for (size_t i = 0; i < ARRAY_SIZE(udp); i++)
		if (host->port == udp[i])
			return true;
	return false;
}

/* Of one without a slot. */
static bool type_outside(const struct wishes *all, const struct wish *w,
			 enum forward_event_type *ret)
{
	if (w->waits_in == &all->refused)
		*ret = FORWARD_FAILED;
	else if (w->waits_in || w->kind == WISH_FIXED || w->kind == WISH_EARLY ||
		 w->kind == WISH_COVERED)
		return w->over_limit;
	return true;
}

/* The event for where @w stands; false: not known yet, or none. */
static bool current_type(const struct wishes *all, const struct wish *w,
			 enum forward_event_type *ret)
{
	*ret = FORWARD_NOT_FORWARDING;
	if (!w->slot)
		return type_outside(all, w, ret);
	switch (endpoint_state(w->slot->ep)) {
	case ENDPOINT_OPEN:
		*ret = w->stands_aside ? FORWARD_FAILED : FORWARD_FORWARDING;
		return true;
	case ENDPOINT_WAITING:
		if (!is_usually_taken(w->slot->ep))
			*ret = FORWARD_FAILED;
		return true;
	case ENDPOINT_DENIED: return true;
	default: return false;
	}
}

const char *wish_state(const struct wish *w)
{
	if (!w->slot)
		return w->waits_in || w->kind == WISH_EARLY ? "waiting" : "not-forwarded";
	switch (endpoint_state(w->slot->ep)) {
	case ENDPOINT_OPEN: return w->stands_aside ? "waiting" : "forwarding";
	case ENDPOINT_DENIED: return "not-forwarded";
	default: return "waiting";
	}
}

const char *wish_error(const struct wish *w)
{
	static char text[160];
	const struct wish *first;

	if (!w->slot)
		return w->error ? w->error : "";
	if (!w->stands_aside)
		return endpoint_error(w->slot->ep);
	first = container_of(TAILQ_FIRST(endpoint_users(w->slot->ep)), struct wish, user);
	snprintf(text, sizeof(text), "another %s of this guest has it, %s",
		 wish_is_socket(first)		  ? "socket" :
		 first->key.port == w->key.port ? "server" : "port",
		 first->user.target->guest_addr);
	return text;
}

/* --- telling ----------------------------------------------------------------- */

/* A guest may open and close ports all day; its events may not fill the disk. */
static bool may_send_event(struct wishes *all)
{
	uint64_t now = uv_now(&all->hub->loop->uv);

	if (!all->event.ms)
		all->event.tokens = EVENT_BURST;
	else
		all->event.tokens += (double)(now - all->event.ms) * EVENTS_PER_S / 1000;
	all->event.tokens = MIN(all->event.tokens, (double)EVENT_BURST);
	all->event.ms = MAX(now, (uint64_t)1);
	if (all->event.tokens < 1) {
		log_warn_limited("forward: the guest changes ports too fast; events are left out");
		return false;
	}
	all->event.tokens -= 1;
	return true;
}

static void log_event(const struct forward_event *ev)
{
	static struct log_limit limit;

	if (ev->type == FORWARD_FAILED && !*ev->host_addr)
		log_warn_limited("forward: %s guest `%s` has no host port yet: %s; tried again",
				 ev->protocol, ev->guest_addr, ev->error);
	else if (ev->type == FORWARD_FAILED)
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

static void tell(struct wishes *all, const struct notice *n)
{
	struct forward_event ev = {
		.type = n->type,
		.protocol = n->protocol,
		.guest_addr = n->guest_addr,
		.host_addr = n->host_addr,
		.error = n->error,
	};

	log_event(&ev);
	if (all->event.fn && may_send_event(all))
		all->event.fn(all->event.arg, &ev);
}

void wishes_tell(struct wishes *all)
{
	struct notice *n;

	while ((n = TAILQ_FIRST(&all->notices))) {
		TAILQ_REMOVE(&all->notices, n, next);
		tell(all, n);
		free(n->guest_addr);
		free(n->host_addr);
		free(n->error);
		free(n);
	}
}

static void note(struct wishes *all, struct wish *w, enum forward_event_type type)
{
	struct notice *n = xnew(struct notice);

	n->type = type;
	n->protocol = wish_protocol(w);
	n->guest_addr = xstrdup(w->user.target->guest_addr);
	n->host_addr = xstrdup(w->slot ? endpoint_address(w->slot->ep) : "");
	n->error = xstrdup(type == FORWARD_STOPPING ? "" : wish_error(w));
	TAILQ_INSERT_TAIL(&all->notices, n, next);
	w->announced = true;
	w->last = type;
	w->since_ms = uv_now(&all->hub->loop->uv);
}

/* What no rule wants is noise where the user began with "nothing at all". */
static bool is_noise(const struct wishes *all, const struct wish *w)
{
	return !w->slot && !w->of_static && !w->rule && rule_set_is_quiet(&all->rules, w->key.proto);
}

void wish_announce(struct wishes *all, struct wish *w)
{
	enum forward_event_type type;

	if (!current_type(all, w, &type) || (w->announced && w->last == type) || is_noise(all, w))
		return;
	note(all, w, type);
}

void wish_announce_users(struct wishes *all, struct slot *s)
{
	struct endpoint_user *u;
	struct wish *w;

	TAILQ_FOREACH(u, endpoint_users(s->ep), next)
		wish_announce(all, container_of(u, struct wish, user));
	TAILQ_FOREACH(w, &s->aside, aside)
		wish_announce(all, w);
}

void wish_announce_stop(struct wishes *all, struct wish *w)
{
	if (w->slot && w->announced && w->last != FORWARD_NOT_FORWARDING)
		note(all, w, FORWARD_STOPPING);
}
