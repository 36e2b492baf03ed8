/* The accepting half of tcp.h.
 *
 * Accepts by hand on a polled descriptor: libuv's own accept loop drops clients
 * when descriptors run out (uv__emfile_trick), we leave them in the backlog
 * and look again a little later.
 */
#include "hostagent/forward/tcp.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hostagent/forward/tcp_conn.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	TCP_ACCEPT_BATCH = 64,     /* clients per turn of the loop */
	TCP_ACCEPT_PAUSE_MS = 250, /* when there are no descriptors */
	TCP_KEEPALIVE_S = 60,      /* a client whose machine vanished is noticed */
	TCP_KEEPALIVE_EVERY_S = 15,
};

struct tcp_listener { /* refs: two handles */
	uv_poll_t poll;
	uv_timer_t pause;
	struct hub *hub;
	int fd; /* -1 once closed */
	target_pick_fn pick;
	void *arg;
	unsigned refs;
};

static void on_client(uv_poll_t *poll, int status, int events);

static void on_pause_over(uv_timer_t *t)
{
	struct tcp_listener *l = t->data;

	if (l->fd >= 0)
		uv_poll_start(&l->poll, UV_READABLE, on_client);
}

static void pause_accepting(struct tcp_listener *l, int errnum)
{
	log_warn_limited("forward: cannot accept clients of %s: %s; trying again in %d ms",
			 l->pick(l->arg)->guest_addr, error_text(-errnum), TCP_ACCEPT_PAUSE_MS);
	uv_poll_stop(&l->poll);
	uv_timer_start(&l->pause, on_pause_over, TCP_ACCEPT_PAUSE_MS, 0);
}

/* That one client went away, or the network did; accept(2) lists these as ones
 * to treat like EAGAIN. */
static bool concerns_one_client(int errnum)
{
	static const int codes[] = { EINTR,       ECONNABORTED, EPROTO,       ENETDOWN,
				     ENOPROTOOPT, EHOSTDOWN,    EHOSTUNREACH, ENETUNREACH };

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
		if (errnum == codes[i])
			return true;
	return false;
}

static void on_client(uv_poll_t *poll, int status, int events)
{
	struct tcp_listener *l = poll->data;

	for (int i = 0; i < TCP_ACCEPT_BATCH && l->fd >= 0; i++) {
		int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			tcp_conn_start(l->hub, fd, l->pick(l->arg));
		} else if (errno == EAGAIN) {
			return;
		} else if (!concerns_one_client(errno)) {
			pause_accepting(l, errno);
			return;
		}
	}
}

/* Accepted sockets inherit these (Linux, sk_clone_lock()): no calls per client.
 * Unix sockets know none of them. */
static void set_options(int fd)
{
	static const struct {
		int level, name, value;
	} options[] = {
		{ SOL_SOCKET, SO_KEEPALIVE, 1 },
		{ IPPROTO_TCP, TCP_KEEPIDLE, TCP_KEEPALIVE_S },
		{ IPPROTO_TCP, TCP_KEEPINTVL, TCP_KEEPALIVE_EVERY_S },
		{ IPPROTO_TCP, TCP_NODELAY, 1 }, /* small answers go out at once */
	};
	/* Who is killed closes with RST: half a download must not look whole. An end in
	 * order takes it away (tcp.c). */
	static const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };

	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

int tcp_listener_new(struct hub *hub, int fd, target_pick_fn pick, void *arg,
		     struct tcp_listener **ret, struct error *err)
{
	scoped_free struct tcp_listener *l = xnew(struct tcp_listener);
	int rc = uv_poll_init(&hub->loop->uv, &l->poll, fd);

	if (rc < 0) {
		close(fd);
		return error_sys(err, rc, "watch listener");
	}
	set_options(fd);
	l->hub = hub;
	l->fd = fd;
	l->pick = pick;
	l->arg = arg;
	l->refs = 2;
	hub_ref(hub);
	uv_timer_init(&hub->loop->uv, &l->pause);
	l->pause.data = l->poll.data = l;
	uv_poll_start(&l->poll, UV_READABLE, on_client);
	*ret = steal_ptr(&l);
	return 0;
}

static void on_handle_closed(uv_handle_t *h)
{
	struct tcp_listener *l = h->data;

	if (--l->refs > 0)
		return;
	hub_unref(l->hub);
	free(l);
}

void tcp_listener_close(struct tcp_listener *l)
{
	if (l->fd < 0)
		return;
	uv_close((uv_handle_t *)&l->poll, on_handle_closed);
	uv_close((uv_handle_t *)&l->pause, on_handle_closed);
	close(l->fd); /* safe after uv_close() of the poll handle (libuv docs, uv_poll_t) */
	l->fd = -1;
}
