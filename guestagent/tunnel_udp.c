#include <errno.h>
#include <stdlib.h>

#include "guestagent/tunnel_impl.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

/* Owner: the tunnels list, until the handle is closed. */
struct udp {
	struct tunnel base;
	struct guest_stream *stream;	/* NULL once it ended */
	uv_udp_t sock;
	bool closing;
};

static void on_handle_closed(uv_handle_t *h)
{
	struct udp *u = h->data;

	tunnel_leave(&u->base);
	free(u);
}

static void udp_close(struct udp *u)
{
	if (u->closing)
		return;
	u->closing = true;
	uv_close((uv_handle_t *)&u->sock, on_handle_closed);
}

static void on_abort(struct tunnel *base)
{
	udp_close(container_of(base, struct udp, base));
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
	struct udp *u = h->data;

	tunnel_read_buffer(u->base.owner, buf);
}

/* Nobody is there: the host tells the client, whose next datagram is a new flow. */
static void udp_reset(struct udp *u, int code)
{
	guest_stream_reset(steal_ptr(&u->stream), code);
	udp_close(u);
}

static void on_datagram(uv_udp_t *sock, ssize_t n, const uv_buf_t *buf,
			const struct sockaddr *from, unsigned flags)
{
	struct udp *u = sock->data;

	if (u->closing || !u->stream || (n == 0 && !from))
		return;
	if (n < 0) {
		if (error_is_unreachable((int)n))
			udp_reset(u, (int)n);
		return;
	}
	if (!guest_stream_write(u->stream, tunnel_take_read(u->base.owner, (size_t)n), (size_t)n))
		uv_udp_recv_stop(sock);
}

static void on_writable(void *arg)
{
	struct udp *u = arg;

	if (!u->closing)
		uv_udp_recv_start(&u->sock, on_alloc, on_datagram);
}

static void on_data(void *arg, const uint8_t *data, size_t len)
{
	struct udp *u = arg;
	uv_buf_t buf = uv_buf_init((char *)(uintptr_t)data, (unsigned)len);
	int rc;

	if (u->closing)
		return;
	rc = uv_udp_try_send(&u->sock, &buf, 1, NULL);
	/* told about an earlier one; this one was not sent, and finds out for itself */
	if (error_is_unreachable(rc))
		rc = uv_udp_try_send(&u->sock, &buf, 1, NULL);
	if (error_is_unreachable(rc))
		udp_reset(u, rc);
	else if (rc < 0 && rc != UV_EAGAIN)
		log_warn_limited("tunnel: datagram of %zu bytes dropped: %s", len, error_text(rc));
}

static void on_eof(void *arg)
{
}

static void on_stream_closed(void *arg, const struct error *why)
{
	struct udp *u = arg;

	u->stream = NULL;
	udp_close(u);
}

/* Connecting a datagram socket sends nothing and answers at once. */
static int connect_first(struct udp *u, const struct dial *to)
{
	int rc = -EINVAL;

	for (unsigned i = 0; i < to->len; i++) {
		const struct sockaddr *sa = &to->addrs[i].sa;
		scoped_fd int fd = socket(sa->sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

		if (fd < 0 || connect(fd, sa, sizeof(to->addrs[i])) < 0) {
			rc = -errno;
			continue;
		}
		rc = uv_udp_open(&u->sock, fd);
		if (rc < 0)
			return rc;
		steal_fd(&fd);
		return uv_udp_recv_start(&u->sock, on_alloc, on_datagram);
	}
	return rc;
}

void tunnel_udp_open(struct tunnels *owner, struct guest_stream *s, const struct dial *to)
{
	struct udp *u = xnew(struct udp);
	struct guest_stream_callbacks cb = { .data = on_data,
					     .eof = on_eof,
					     .writable = on_writable,
					     .closed = on_stream_closed,
					     .arg = u };
	int rc;

	tunnel_join(owner, &u->base, on_abort);
	uv_udp_init(&tunnel_loop(owner)->uv, &u->sock);
	u->sock.data = u;
	rc = connect_first(u, to);
	if (rc < 0) {
		tunnel_refuse(s, rc);
		udp_close(u);
		return;
	}
	u->stream = s;
	guest_stream_set_callbacks(s, &cb);
	guest_stream_opened(s);
}
