#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <unistd.h>

#include "guestagent/tunnel_impl.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	KEEPALIVE_S = 60,
	CROWDED_READ = 4096,	/* times TUNNEL_MAX it is 64 MiB once more */
};

/* Owner: the tunnels list. Alive until its handles are closed.
 *
 * connecting --> relaying --> (stream ended in order, bytes for the socket left)
 *      |             |              draining
 *      +-------------+----------------+--> closing
 */
struct tcp {
	struct tunnel base;
	struct guest_stream *stream;	/* NULL once it ended */
	uv_tcp_t sock;
	uv_timer_t timer;		/* for connect() */
	uv_connect_t connect;
	uv_shutdown_t shutdown;
	struct dial to;
	unsigned tried;			/* addresses of `to` */
	unsigned silent;		/* the first that had to give way, from 1; 0: none */
	unsigned handles;		/* not yet closed */
	unsigned writes;		/* uv_write()s in flight */
	bool sock_made;
	bool connected;
	bool shutting;			/* uv_shutdown() in flight */
	bool eof_sent;			/* the guest's server half-closed */
	uv_poll_t watch;		/* from then on: for a reset */
	int watch_fd;			/* the socket's, as libuv has one handle each */
	bool watching;
	bool closing;
};

struct write {
	uv_write_t req;
	struct tcp *t;
	uint8_t data[];
};

static void try_connect(struct tcp *t);

static void on_handle_closed(uv_handle_t *h)
{
	struct tcp *t = h->data;

	if (--t->handles)
		return;
	tunnel_leave(&t->base);
	free(t);
}

static void on_watch_closed(uv_handle_t *h)
{
	struct tcp *t = h->data;

	close(t->watch_fd);
	on_handle_closed(h);
}

/* How close() ends it; of a killed agent, too. By hand: uv_tcp_close_reset() refuses
 * while a shutdown is pending. */
static void set_reset_at_close(struct tcp *t, bool on)
{
	struct linger now = { .l_onoff = on, .l_linger = 0 };
	int fd;

	if (uv_fileno((uv_handle_t *)&t->sock, &fd) == 0)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

/* With a reset, unless that was taken back. */
static void tcp_close(struct tcp *t)
{
	if (t->closing)
		return;
	t->closing = true;
	uv_close((uv_handle_t *)&t->timer, on_handle_closed);
	if (t->sock_made)
		uv_close((uv_handle_t *)&t->sock, on_handle_closed);
	if (t->watching)
		uv_close((uv_handle_t *)&t->watch, on_watch_closed);
}

static void on_abort(struct tunnel *base)
{
	tcp_close(container_of(base, struct tcp, base));
}

/* The guest's socket failed: so does the host's. */
static void tcp_fail(struct tcp *t, int code)
{
	if (t->closing)
		return;
	if (t->stream)
		guest_stream_reset(steal_ptr(&t->stream), code);
	tcp_close(t);
}

static void close_if_drained(struct tcp *t)
{
	if (t->stream || t->writes > 0 || t->shutting || t->closing)
		return;
	set_reset_at_close(t, false);
	tcp_close(t);
}

/* --- a reset behind the server's end --------------------------------------- */

/* An error may be the reset (EPIPE, as the server's FIN came before: Linux
 * tcp_reset()). Without one nobody sends any more, or it is urgent data. */
static void on_watch(uv_poll_t *watch, int status, int events)
{
	struct tcp *t = watch->data;
	socklen_t size = sizeof(int);
	int code = 0;

	uv_poll_stop(watch);
	if (t->closing || status >= 0)
		return;
	getsockopt(t->watch_fd, SOL_SOCKET, SO_ERROR, &code, &size);
	tcp_fail(t, code && code != EPIPE ? -code : -ECONNRESET);
}

/* Nothing is read after the server's end, so only a write would find out that it is
 * gone, and the client may have none for hours. Errors come with whatever is asked
 * for (poll(2)), and urgent data hardly ever does. No descriptor left: as before. */
static void watch_for_reset(struct tcp *t)
{
	uv_os_fd_t fd;

	if (uv_fileno((uv_handle_t *)&t->sock, &fd) < 0)
		return;
	t->watch_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (t->watch_fd < 0)
		return;
	if (uv_poll_init(&tunnel_loop(t->base.owner)->uv, &t->watch, t->watch_fd) < 0) {
		close(t->watch_fd);
		return;
	}
	t->watch.data = t;
	t->watching = true;
	t->handles++;
	uv_poll_start(&t->watch, UV_PRIORITIZED, on_watch);
}

/* --- socket to stream ----------------------------------------------------- */

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
	struct tcp *t = h->data;

	tunnel_read_buffer(t->base.owner, buf);
	if (t->stream && guest_stream_crowded(t->stream))
		buf->len = CROWDED_READ;
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *buf)
{
	struct tcp *t = s->data;

	if (t->closing || !t->stream || n == 0)
		return;
	if (n == UV_EOF) {
		t->eof_sent = true;
		uv_read_stop(s);
		watch_for_reset(t);
		guest_stream_eof(t->stream);
		return;
	}
	if (n < 0) {
		tcp_fail(t, (int)n);
		return;
	}
	if (!guest_stream_write(t->stream, tunnel_take_read(t->base.owner, (size_t)n), (size_t)n))
		uv_read_stop(s);
}

static void on_writable(void *arg)
{
	struct tcp *t = arg;

	if (!t->closing && t->connected && !t->eof_sent)
		uv_read_start((uv_stream_t *)&t->sock, on_alloc, on_read);
}

/* --- stream to socket ----------------------------------------------------- */

static void on_written(uv_write_t *req, int status)
{
	struct write *w = container_of(req, struct write, req);
	struct tcp *t = w->t;

	free(w);
	t->writes--;
	if (status < 0 && status != UV_ECANCELED) {
		tcp_fail(t, status);
		return;
	}
	if (t->closing)
		return;
	if (t->writes == 0 && t->stream)
		guest_stream_resume(t->stream);
	close_if_drained(t);
}

/* What the socket did not take at once; nothing more is taken from the host
 * until it did. */
static void write_rest(struct tcp *t, const uint8_t *data, size_t len)
{
	struct write *w = xmalloc(sizeof(*w) + len);
	uv_buf_t buf = uv_buf_init((char *)w->data, (unsigned)len);
	int rc;

	w->t = t;
	memcpy(w->data, data, len);
	rc = uv_write(&w->req, (uv_stream_t *)&t->sock, &buf, 1, on_written);
	if (rc < 0) {
		free(w);
		tcp_fail(t, rc);
		return;
	}
	t->writes++;
	guest_stream_pause(t->stream);
}

static void on_data(void *arg, const uint8_t *data, size_t len)
{
	struct tcp *t = arg;
	uv_buf_t buf = uv_buf_init((char *)(uintptr_t)data, (unsigned)len);
	int n = 0;

	if (t->closing || t->shutting || len == 0)
		return;
	if (t->writes == 0)
		n = uv_try_write((uv_stream_t *)&t->sock, &buf, 1);
	if (n == UV_EAGAIN)
		n = 0;
	if (n < 0)
		tcp_fail(t, n);
	else if ((size_t)n < len)
		write_rest(t, data + n, len - (size_t)n);
}

static void on_shut(uv_shutdown_t *req, int status)
{
	struct tcp *t = req->data;

	t->shutting = false;
	if (!t->closing)
		close_if_drained(t);
}

static void on_eof(void *arg)
{
	struct tcp *t = arg;

	if (t->closing || t->shutting)
		return;
	t->shutdown.data = t;
	/* ENOTCONN: the server is gone already, reading will tell */
	t->shutting = uv_shutdown(&t->shutdown, (uv_stream_t *)&t->sock, on_shut) == 0;
}

/* In order: what the server has not taken yet is still delivered. Otherwise the
 * transfer is cut, and the server must see that. */
static void on_stream_closed(void *arg, const struct error *why)
{
	struct tcp *t = arg;

	t->stream = NULL;
	if (t->closing)
		return;
	if (why->code != 0 || !t->connected) {
		tcp_close(t);
		return;
	}
	uv_read_stop((uv_stream_t *)&t->sock);
	close_if_drained(t);
}

/* --- connect -------------------------------------------------------------- */

static void refuse(struct tcp *t, int code)
{
	if (t->stream)
		tunnel_refuse(steal_ptr(&t->stream), code);
	tcp_close(t);
}

static void on_retry_closed(uv_handle_t *h)
{
	struct tcp *t = h->data;

	if (t->closing) {
		on_handle_closed(h);
		return;
	}
	t->handles--;
	try_connect(t);
}

static void on_connect_failed(struct tcp *t, int code)
{
	if (t->tried == t->to.len && (!t->silent || code == -ETIMEDOUT)) {
		refuse(t, code);
		return;
	}
	if (t->tried == t->to.len) {	/* the others refuse: it has the rest of the time */
		t->to.len = t->silent;
		t->tried = t->silent - 1;
		t->silent = 0;
	}
	uv_timer_stop(&t->timer);
	t->sock_made = false;	/* tcp_close() leaves it alone from here on */
	uv_close((uv_handle_t *)&t->sock, on_retry_closed);
}

static void on_connected(uv_connect_t *req, int status)
{
	struct tcp *t = req->data;

	if (t->closing || status == UV_ECANCELED)
		return;
	if (status < 0) {
		on_connect_failed(t, status);
		return;
	}
	t->connected = true;
	uv_timer_stop(&t->timer);
	set_reset_at_close(t, true);
	uv_tcp_nodelay(&t->sock, 1);
	uv_tcp_keepalive(&t->sock, 1, KEEPALIVE_S);
	guest_stream_opened(t->stream);
	guest_stream_resume(t->stream);
	if (!t->closing)
		uv_read_start((uv_stream_t *)&t->sock, on_alloc, on_read);
}

static void on_connect_timeout(uv_timer_t *timer)
{
	struct tcp *t = timer->data;

	if (!t->silent && t->tried < t->to.len)
		t->silent = t->tried;
	on_connect_failed(t, -ETIMEDOUT);
}

static void try_connect(struct tcp *t)
{
	const union dial_addr *to = &t->to.addrs[t->tried++];
	int rc = uv_tcp_init_ex(&tunnel_loop(t->base.owner)->uv, &t->sock, to->sa.sa_family);
	uv_os_fd_t fd;

	if (rc < 0) {	/* no descriptor, or no such family */
		if (t->tried < t->to.len)
			try_connect(t);
		else
			refuse(t, rc);
		return;
	}
	t->sock.data = t->connect.data = t;
	t->sock_made = true;
	t->handles++;
	if (uv_fileno((uv_handle_t *)&t->sock, &fd) == 0)
		dial_set_buffers(fd, tunnels_count(t->base.owner));
	uv_timer_start(&t->timer, on_connect_timeout,
		       t->tried < t->to.len ? DIAL_NEXT_MS : DIAL_LAST_MS, 0);
	/* At once: no route, no such address here, as ::1 without IPv6. */
	rc = uv_tcp_connect(&t->connect, &t->sock, &to->sa, on_connected);
	if (rc < 0)
		on_connect_failed(t, rc);
}

void tunnel_tcp_open(struct tunnels *owner, struct guest_stream *s, const struct dial *to)
{
	struct tcp *t = xnew(struct tcp);
	struct guest_stream_callbacks cb = { .data = on_data,
					     .eof = on_eof,
					     .writable = on_writable,
					     .closed = on_stream_closed,
					     .arg = t };

	t->stream = s;
	t->to = *to;
	tunnel_join(owner, &t->base, on_abort);
	uv_timer_init(&tunnel_loop(owner)->uv, &t->timer);
	t->timer.data = t;
	t->handles = 1;
	guest_stream_set_callbacks(s, &cb);
	guest_stream_pause(s);	/* a peer without kinds sends before we are connected */
	try_connect(t);
}
