#include "hostagent/forward/endpoint.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

#include "hostagent/forward/address.h"
#include "hostagent/forward/owner.h"
#include "hostagent/forward/tcp.h"
#include "hostagent/forward/udp.h"
#include "hostagent/forward/unix.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	ENDPOINT_UDP_BUFFER = 4 << 20, /* asked for; the kernel cuts it to its rmem_max */
	ENDPOINT_ALIGN_MS = 1000,      /* slow retries of many endpoints share a wake-up */
	ENDPOINT_YOUNG_MS = 60 * 1000, /* somebody may be waiting for it: */
	ENDPOINT_YOUNG_RETRY_MS = 1000, /* … tried at least so often */
	ENDPOINT_OWNER_RETRIES = 6,     /* of the slowest: who has it is asked again, 30 s */
};

struct door { /* one descriptor: the address itself, or its companion */
	struct tcp_listener *tcp;
	struct udp_socket *udp;
};

struct endpoint { /* refs: the timer's handle; doors count for themselves */
	struct hub *hub;
	int proto;
	struct rule_host host; /* socket: our copy */
	char *address;
	struct endpoint_users users;
	enum endpoint_state state;
	struct error failed; /* the newest failure, code 0: none */
	char *error;         /* that, and who has it; NULL: none */
	struct door main, companion;
	struct unix_id unix_id;
	uv_timer_t retry; /* of the main door; OPEN: of the companion */
	unsigned retry_ms;
	uint64_t failed_ms; /* when it first did */
	struct owner_request *owner; /* being found out; NULL: not */
	uint64_t asked_ms;           /* when that was last */
	const struct endpoint_ops *ops;
	void *arg;
};

/* --- doors ------------------------------------------------------------------- */

static struct target *pick_target(void *arg)
{
	struct endpoint *ep = arg;
	struct endpoint_user *u, *best = TAILQ_FIRST(&ep->users);

	assert(best);
	TAILQ_FOREACH(u, &ep->users, next)
		if (u->rank < best->rank)
			best = u;
	return best->target;
}

static int bind_inet(int proto, const struct in6_addr *ip, uint16_t port, bool dual_stack,
		     int *ret_fd, struct error *err)
{
	int type = proto == IPPROTO_UDP ? SOCK_DGRAM : SOCK_STREAM;
	int on = 1, v6only = !dual_stack, size = ENDPOINT_UDP_BUFFER;
	struct sockaddr_storage sa;
	socklen_t len = address_to_sockaddr(ip, port, &sa);
	scoped_fd int fd = socket(sa.ss_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return error_sys(err, -errno, "socket");
	if (sa.ss_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof(v6only));
	/* For UDP it would let two programs share a port, and one get nothing (socket(7)). */
	if (type == SOCK_STREAM)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	else
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	if (bind(fd, (struct sockaddr *)&sa, len) < 0 ||
	    (type == SOCK_STREAM && listen(fd, SOMAXCONN) < 0))
		return error_set(err, -errno, "%s", error_text(-errno));
	*ret_fd = steal_fd(&fd);
	return 0;
}

/* Takes @fd. */
static int door_open(struct door *d, struct endpoint *ep, int fd, struct error *err)
{
	if (ep->proto == IPPROTO_UDP)
		return udp_socket_new(ep->hub, fd, pick_target, ep, &d->udp, err);
	return tcp_listener_new(ep->hub, fd, pick_target, ep, &d->tcp, err);
}

static void door_close(struct door *d)
{
	if (d->tcp)
		tcp_listener_close(steal_ptr(&d->tcp));
	if (d->udp)
		udp_socket_close(steal_ptr(&d->udp));
}

/* Where the companion goes; false: there is none. */
static bool companion_address(const struct endpoint *ep, struct in6_addr *ret)
{
	if (ep->host.socket || !address_is_v4(&ep->host.ip))
		return false;
	if (address_is_v4_loopback(&ep->host.ip))
		*ret = in6addr_loopback;
	else if (address_is_wildcard(&ep->host.ip))
		*ret = in6addr_any;
	else
		return false;
	return true;
}

static int open_companion(struct endpoint *ep, struct error *err)
{
	struct in6_addr ip;
	int fd;

	if (ep->companion.tcp || ep->companion.udp || !companion_address(ep, &ip))
		return 0;
	if (ep->ops->is_asked_for(ep->arg, ep->proto, &ip, ep->host.port))
		return error_set(err, -EADDRINUSE, "a rule asks for it");
	if (bind_inet(ep->proto, &ip, ep->host.port, false, &fd, err) < 0)
		return err->code;
	return door_open(&ep->companion, ep, fd, err);
}

static int open_main(struct endpoint *ep, struct error *err)
{
	int fd, rc;

	if (ep->host.socket)
		rc = unix_listen(ep->host.socket, &fd, &ep->unix_id, err);
	else
		rc = bind_inet(ep->proto, &ep->host.ip, ep->host.port,
			       IN6_IS_ADDR_UNSPECIFIED(&ep->host.ip), &fd, err);
	return rc < 0 ? rc : door_open(&ep->main, ep, fd, err);
}

/* --- states ------------------------------------------------------------------ */

static void on_retry(uv_timer_t *timer);

/* Slow ones come down to the whole second. */
static void arm_timer(struct endpoint *ep, uint64_t wait)
{
	if (wait >= ENDPOINT_ALIGN_MS)
		wait -= (uv_now(ep->retry.loop) + wait) % ENDPOINT_ALIGN_MS;
	uv_timer_start(&ep->retry, on_retry, wait, 0);
}

static void arm_retry(struct endpoint *ep)
{
	uint64_t now = uv_now(ep->retry.loop);
	bool young = now - ep->failed_ms < ENDPOINT_YOUNG_MS;
	unsigned max = ep->hub->limits.retry_max_ms;

	if (young)
		max = MIN(max, (unsigned)ENDPOINT_YOUNG_RETRY_MS);
	arm_timer(ep, ep->retry_ms);
	ep->retry_ms = MIN(ep->retry_ms * 2, max);
}

static void forget_owner(struct endpoint *ep)
{
	if (ep->owner)
		owner_cancel(steal_ptr(&ep->owner));
}

/* @owner: "" unknown. True: that is news. */
static bool set_error(struct endpoint *ep, const char *owner)
{
	scoped_free char *before = steal_ptr(&ep->error);

	ep->error = *owner ? xasprintf("%s (%s)", ep->failed.msg, owner) : xstrdup(ep->failed.msg);
	return !before || !streq(before, ep->error);
}

static void on_owner(void *arg, const char *answer)
{
	struct endpoint *ep = arg;
	bool is_news = set_error(ep, answer) || ep->state == ENDPOINT_OPENING;

	ep->owner = NULL;
	ep->state = ENDPOINT_WAITING;
	if (is_news)
		ep->ops->changed(ep->arg, ep);
}

static void ask_owner(struct endpoint *ep)
{
	if (ep->owner)
		return;
	ep->asked_ms = uv_now(ep->retry.loop);
	if (ep->host.socket)
		ep->owner = owner_ask_path(ep->hub->owner, ep->host.socket, on_owner, ep);
	else
		ep->owner = owner_ask(ep->hub->owner, ep->proto, &ep->host.ip, ep->host.port,
				      on_owner, ep);
}

/* A host without IPv6 stays so, as a rule. */
static int complete(struct endpoint *ep, struct error *err)
{
	uv_timer_stop(&ep->retry);
	if (open_companion(ep, err) < 0 && err->code != -EADDRNOTAVAIL &&
	    err->code != -EAFNOSUPPORT)
		arm_timer(ep, ep->hub->limits.retry_max_ms);
	return err->code;
}

static void set_open(struct endpoint *ep)
{
	struct error err = ERROR_NONE;

	forget_owner(ep);
	if (complete(ep, &err) < 0)
		log_debug("forward: `%s` without its IPv6 companion: %s", ep->address, err.msg);
	ep->state = ENDPOINT_OPEN;
	free(steal_ptr(&ep->error));
}

/* The first failure, or another than before. */
static void set_failed(struct endpoint *ep, const struct error *err)
{
	ep->failed = *err;
	forget_owner(ep);
	if (err->code == -EACCES && !ep->host.socket) {
		error_set(&ep->failed, err->code,
			  "%s: a privileged port, see sysctl net.ipv4.ip_unprivileged_port_start",
			  err->msg);
		ep->state = ENDPOINT_DENIED;
	} else if (err->code == -EADDRINUSE) {
		ep->state = ENDPOINT_OPENING;
		ask_owner(ep);
	} else {
		ep->state = ENDPOINT_WAITING;
	}
	set_error(ep, "");
}

static bool is_time_for_owner(const struct endpoint *ep)
{
	uint64_t wait = (uint64_t)ENDPOINT_OWNER_RETRIES * ep->hub->limits.retry_max_ms;

	return ep->failed.code == -EADDRINUSE && uv_now(ep->retry.loop) - ep->asked_ms >= wait;
}

static void set_failed_again(struct endpoint *ep, const struct error *err)
{
	bool is_news = err->code != ep->failed.code;

	if (is_news)
		set_failed(ep, err);
	else if (is_time_for_owner(ep))
		ask_owner(ep);
	if (ep->state != ENDPOINT_DENIED)
		arm_retry(ep);
	if (is_news)
		ep->ops->changed(ep->arg, ep);
}

static void on_retry(uv_timer_t *timer)
{
	struct endpoint *ep = timer->data;
	struct error err = { 0 };

	if (ep->state == ENDPOINT_OPEN) {
		complete(ep, &err);
	} else if (open_main(ep, &err) < 0) {
		set_failed_again(ep, &err);
	} else {
		set_open(ep);
		ep->ops->changed(ep->arg, ep);
	}
}

int endpoint_try(struct endpoint *ep, struct error *err)
{
	assert(ep->state == ENDPOINT_CLOSED);
	if (open_main(ep, err) < 0)
		return err->code;
	set_open(ep);
	return 0;
}

void endpoint_open(struct endpoint *ep)
{
	struct error err = { 0 };

	if (endpoint_try(ep, &err) == 0)
		return;
	set_failed(ep, &err);
	ep->retry_ms = ep->hub->limits.retry_min_ms;
	ep->failed_ms = uv_now(ep->retry.loop);
	if (ep->state != ENDPOINT_DENIED)
		arm_retry(ep);
}

static void on_timer_closed(uv_handle_t *h)
{
	struct endpoint *ep = h->data;

	hub_unref(ep->hub);
	free((char *)ep->host.socket);
	free(ep->address);
	free(ep->error);
	free(ep);
}

void endpoint_close(struct endpoint *ep)
{
	assert(TAILQ_EMPTY(&ep->users));
	if (ep->state == ENDPOINT_CLOSING)
		return;
	if (ep->state == ENDPOINT_OPEN && ep->host.socket)
		unix_remove(ep->host.socket, &ep->unix_id);
	ep->state = ENDPOINT_CLOSING;
	forget_owner(ep);
	door_close(&ep->main);
	door_close(&ep->companion);
	uv_close((uv_handle_t *)&ep->retry, on_timer_closed);
}

static bool is_in_the_way(const struct endpoint *ep, const struct rule_host *host)
{
	struct in6_addr ip;

	if (host->socket || ep->host.port != host->port || !companion_address(ep, &ip))
		return false;
	return address_in_the_way(&ip, &host->ip);
}

void endpoint_yield(struct endpoint *ep, const struct rule_host *host)
{
	if (ep->state != ENDPOINT_OPEN || !is_in_the_way(ep, host))
		return;
	door_close(&ep->companion);
	arm_timer(ep, ep->hub->limits.retry_max_ms);
}

void endpoint_regain(struct endpoint *ep, const struct rule_host *host)
{
	struct error err = ERROR_NONE;

	if (ep->state == ENDPOINT_OPEN && is_in_the_way(ep, host))
		complete(ep, &err);
}

/* --- the rest ---------------------------------------------------------------- */

struct endpoint *endpoint_new(struct hub *hub, int proto, const struct rule_host *host,
			      const struct endpoint_ops *ops, void *arg)
{
	struct endpoint *ep = xnew(struct endpoint);
	char text[ADDRESS_TEXT_SIZE];

	ep->hub = hub;
	ep->proto = proto;
	ep->host = *host;
	if (host->socket)
		ep->host.socket = xstrdup(host->socket);
	ep->address =
		xstrdup(host->socket ? host->socket : address_text(&host->ip, host->port, text));
	TAILQ_INIT(&ep->users);
	ep->ops = ops;
	ep->arg = arg;
	hub_ref(hub);
	uv_timer_init(&hub->loop->uv, &ep->retry);
	ep->retry.data = ep;
	return ep;
}

void endpoint_add_user(struct endpoint *ep, struct endpoint_user *user)
{
	TAILQ_INSERT_TAIL(&ep->users, user, next);
}

void endpoint_remove_user(struct endpoint *ep, struct endpoint_user *user)
{
	TAILQ_REMOVE(&ep->users, user, next);
}

struct endpoint_users *endpoint_users(struct endpoint *ep)
{
	return &ep->users;
}

enum endpoint_state endpoint_state(const struct endpoint *ep)
{
	return ep->state;
}

const char *endpoint_address(const struct endpoint *ep)
{
	return ep->address;
}

const char *endpoint_error(const struct endpoint *ep)
{
	return ep->error ? ep->error : "";
}

int endpoint_proto(const struct endpoint *ep)
{
	return ep->proto;
}

const struct rule_host *endpoint_host(const struct endpoint *ep)
{
	return &ep->host;
}

bool endpoint_is(const struct endpoint *ep, int proto, const struct rule_host *host)
{
	if (!ep->host.socket != !host->socket)
		return false;
	if (host->socket)
		return streq(ep->host.socket, host->socket);
	return ep->proto == proto && ep->host.port == host->port &&
	       address_equal(&ep->host.ip, &host->ip);
}
