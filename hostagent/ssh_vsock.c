#include "hostagent/ssh_vsock.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/virtio/vsock.h"

enum {
	WAIT_MS = 10 * 1000,
	LOOK_MS = 250,		/* has somebody waited long enough */
	ACCEPT_BATCH = 16,
	CLIENTS_MAX = 1024,	/* of local users; one more is reset */
	BACKLOG = 128,
};

#define SSHD_ADDR "127.0.0.1:22"	/* for the agent's relay */

struct listener {		/* freed when its handle is closed */
	uv_poll_t poll;
	int fd;
};

struct client {
	struct ssh_vsock *s;
	struct client *next, **at;	/* in s->clients */
	int fd;
	uint64_t since_ms;		/* it waits since then */
	struct vsock_conn *vsock;	/* one of these two, or it waits */
	struct lane_conn *lane;
	bool opened;
	uint64_t in, out;
};

struct ssh_vsock {		/* refs: the timer, listeners, and until close() the owner */
	struct ssh_vsock_options o;
	struct listener *listener;	/* NULL: none */
	struct client *clients;
	unsigned n_clients;
	uv_timer_t look;
	bool up, reached, closing;
	bool accept_paused;		/* no descriptors: until the timer's next turn */
	unsigned refs;
	void (*closed)(void *arg);
	void *closed_arg;
};

static void unref(struct ssh_vsock *s)
{
	void (*closed)(void *arg) = s->closed;
	void *arg = s->closed_arg;

	if (--s->refs > 0)
		return;
	free(s);
	if (closed)
		closed(arg);
}

/* --- a client's end ---------------------------------------------------------- */

/* @code 0: both directions ended in order; otherwise it gets a reset. */
static void client_free(struct client *c, int code)
{
	static const struct linger at_once = { .l_onoff = 1 };
	struct ssh_vsock *s = c->s;

	if (code < 0)
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(c->fd);
	*c->at = c->next;
	if (c->next)
		c->next->at = c->at;
	s->n_clients--;
	free(c);
}

static bool client_waits(const struct client *c)
{
	return !c->vsock && !c->lane;
}

static void client_reset(struct client *c)
{
	if (c->vsock)
		vsock_conn_reset(c->vsock);
	if (c->lane)
		c->s->o.lane->ops->reset(c->lane);
	client_free(c, -ECONNRESET);
}

/* --- those who wait ----------------------------------------------------------- */

static void on_client(uv_poll_t *poll, int status, int events);

static void on_look(uv_timer_t *t)
{
	struct ssh_vsock *s = t->data;
	unsigned wait_ms = s->o.wait_ms ? s->o.wait_ms : WAIT_MS;
	uint64_t now = uv_now(&s->o.loop->uv);
	struct client *next;
	bool more = false;

	for (struct client *c = s->clients; c; c = next) {
		next = c->next;
		if (!client_waits(c))
			continue;
		if (now - c->since_ms >= wait_ms)
			client_free(c, -ETIMEDOUT);
		else
			more = true;
	}
	if (!more)
		uv_timer_stop(t);
	if (s->accept_paused && s->listener)
		uv_poll_start(&s->listener->poll, UV_READABLE, on_client);
	s->accept_paused = false;
}

static void look_soon(struct ssh_vsock *s)
{
	if (!uv_is_active((uv_handle_t *)&s->look))
		uv_timer_start(&s->look, on_look, LOOK_MS, LOOK_MS);
}

static void client_wait(struct client *c)
{
	look_soon(c->s);
}

/* --- the two ways -------------------------------------------------------------- */

static void is_reached(struct client *c)
{
	struct ssh_vsock *s = c->s;

	c->opened = true;
	if (s->reached)
		return;
	s->reached = true;
	s->o.reached(s->o.arg);
}

static void on_lane_opened(void *arg)
{
	is_reached(arg);
}

static void on_lane_closed(void *arg, const struct error *why)
{
	struct client *c = arg;

	c->lane = NULL;
	if (!c->opened && lane_is_gone(why->code)) {
		client_wait(c);
		return;
	}
	if (!c->opened)
		log_debug("ssh: " SSHD_ADDR " by the agent's relay: %s", why->msg);
	client_free(c, why->code);
}

static void try_lane(struct client *c)
{
	struct lane *lane = c->s->o.lane;
	const struct lane_relay relay = {
		.fd = c->fd,
		.guest_addr = SSHD_ADDR,
		.bytes_in = &c->in,
		.bytes_out = &c->out,
		.opened = on_lane_opened,
		.closed = on_lane_closed,
		.arg = c,
	};
	struct error err = ERROR_NONE;

	if (lane->ops->relay(lane, &relay, &c->lane, &err) == 0)
		return;
	c->lane = NULL;
	log_debug("ssh: the agent's relay: %s", err.msg);
	client_wait(c);
}

static void on_vsock_opened(void *arg)
{
	struct client *c = arg;
	const struct vsock_relay relay = { .fd = c->fd, .to_guest = &c->in,
					   .from_guest = &c->out };

	is_reached(c);
	vsock_conn_relay(c->vsock, &relay);
}

static void on_vsock_ended(void *arg, const struct error *why)
{
	struct client *c = arg;

	c->vsock = NULL;
	if (c->opened)
		client_free(c, why->code);
	else if (lane_is_gone(why->code))	/* the device went down */
		client_wait(c);
	else
		try_lane(c);
}

static void client_try(struct client *c)
{
	const struct vsock_conn_callbacks cb = { .opened = on_vsock_opened,
						.ended = on_vsock_ended, .arg = c };
	struct error err = ERROR_NONE;

	if (!c->s->up) {
		client_wait(c);
	} else if (vsock_connect(c->s->o.vsock, SSH_VSOCK_PORT, &cb, &c->vsock, &err) < 0) {
		c->vsock = NULL;
		log_debug("ssh: vsock port %d: %s", SSH_VSOCK_PORT, err.msg);
		client_wait(c);
	}
}

void ssh_vsock_try_again(struct ssh_vsock *s)
{
	struct client *next;

	for (struct client *c = s->clients; c; c = next) {
		next = c->next;
		if (client_waits(c))
			client_try(c);
	}
}

void ssh_vsock_set_device(struct ssh_vsock *s, bool up)
{
	if (s->up == up)
		return;
	s->up = up;
	s->reached = false;
	if (up)
		ssh_vsock_try_again(s);
}

/* --- the listener --------------------------------------------------------------- */

static void client_start(struct ssh_vsock *s, int fd)
{
	struct client *c = xnew(struct client);
	static const int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));	/* keystrokes */
	c->s = s;
	c->fd = fd;
	c->since_ms = uv_now(&s->o.loop->uv);
	c->next = s->clients;
	c->at = &s->clients;
	if (c->next)
		c->next->at = &c->next;
	s->clients = c;
	if (++s->n_clients > CLIENTS_MAX) {
		log_warn_limited("ssh: more than %d connections at once, one is reset", CLIENTS_MAX);
		client_free(c, -EMFILE);
		return;
	}
	client_try(c);
}

static void on_client(uv_poll_t *poll, int status, int events)
{
	struct ssh_vsock *s = poll->data;

	for (int i = 0; i < ACCEPT_BATCH && s->listener; i++) {
		int fd = accept4(s->listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			client_start(s, fd);
		} else {
			if (errno == EAGAIN)
				return;
			log_warn_limited("ssh: accept: %s", error_text(-errno));
			uv_poll_stop(poll);	/* it would be readable all the time */
			s->accept_paused = true;
			look_soon(s);
			return;
		}
	}
}

int ssh_vsock_listen(struct ssh_vsock *s, int fd, struct error *err)
{
	scoped_fd int own = fd;
	struct listener *l;
	int rc;

	if (listen(fd, BACKLOG) < 0)
		return error_sys(err, -errno, "listen on the ssh port");
	l = xnew(struct listener);
	rc = uv_poll_init(&s->o.loop->uv, &l->poll, fd);	/* makes it non-blocking */
	if (rc < 0) {
		free(l);
		return error_sys(err, rc, "watch the ssh port");
	}
	l->fd = steal_fd(&own);
	l->poll.data = s;
	s->listener = l;
	s->refs++;
	uv_poll_start(&l->poll, UV_READABLE, on_client);
	return 0;
}

static void on_listener_closed(uv_handle_t *h)
{
	struct ssh_vsock *s = h->data;

	free(container_of(h, struct listener, poll));
	unref(s);
}

void ssh_vsock_unlisten(struct ssh_vsock *s)
{
	struct listener *l = steal_ptr(&s->listener);
	struct client *next;

	if (!l)
		return;
	uv_close((uv_handle_t *)&l->poll, on_listener_closed);
	close(l->fd);
	for (struct client *c = s->clients; c; c = next) {
		next = c->next;
		if (client_waits(c))
			client_free(c, -ECANCELED);
	}
}

/* --- life ------------------------------------------------------------------------ */

bool ssh_vsock_was_reached(const struct ssh_vsock *s)
{
	return s->reached;
}

unsigned ssh_vsock_connections(const struct ssh_vsock *s)
{
	return s->n_clients;
}

struct ssh_vsock *ssh_vsock_new(const struct ssh_vsock_options *opts)
{
	struct ssh_vsock *s = xnew(struct ssh_vsock);

	s->o = *opts;
	s->refs = 2;
	uv_timer_init(&opts->loop->uv, &s->look);
	s->look.data = s;
	return s;
}

static void on_look_closed(uv_handle_t *h)
{
	unref(h->data);
}

void ssh_vsock_close(struct ssh_vsock *s, void (*closed)(void *arg), void *arg)
{
	if (s->closing)
		return;
	s->closing = true;
	s->closed = closed;
	s->closed_arg = arg;
	ssh_vsock_unlisten(s);
	while (s->clients)
		client_reset(s->clients);
	uv_close((uv_handle_t *)&s->look, on_look_closed);
	unref(s);
}
