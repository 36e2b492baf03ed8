#include "hostagent/banner.h"

#include <netinet/in.h>
#include <string.h>

#include "lib/base/mem.h"

enum {
	FIRST_MS = 100,
	MAX_MS = 1000,
	/* Connected and silent: the guest has no network yet, or is slow. QEMU
	 * accepts for it at once and then repeats its SYN ever more rarely, so a
	 * fresh connection is soon better than patience. */
	WAIT_FIRST_MS = 1000,
	WAIT_MAX_MS = 8000,
};

struct banner {	/* refs: timer, sock while open, the owner */
	struct loop *loop;
	struct sockaddr_in sa;
	uv_timer_t timer;
	uv_tcp_t sock;
	uv_connect_t connect;
	bool sock_open, retry;	/* retry: try again when sock is closed */
	char got[4];		/* "SSH-" */
	size_t n_got;
	char in[256];
	unsigned backoff_ms, wait_ms;
	unsigned refs;
	bool closing;
	banner_done_fn done;
	void *arg;
};

static void banner_try(struct banner *b);

static void banner_unref(struct banner *b)
{
	if (--b->refs == 0)
		free(b);
}

static void on_banner_backoff(uv_timer_t *t)
{
	banner_try(t->data);
}

static void on_banner_sock_closed(uv_handle_t *h)
{
	struct banner *b = h->data;

	b->sock_open = false;
	if (b->retry && !b->closing) {
		b->retry = false;
		uv_timer_start(&b->timer, on_banner_backoff, b->backoff_ms, 0);
		b->backoff_ms = MIN(b->backoff_ms * 2, (unsigned)MAX_MS);
	}
	banner_unref(b);
}

static void banner_close_sock(struct banner *b)
{
	if (b->sock_open && !uv_is_closing((uv_handle_t *)&b->sock))
		uv_close((uv_handle_t *)&b->sock, on_banner_sock_closed);
}

static void banner_retry(struct banner *b)
{
	uv_timer_stop(&b->timer);
	b->retry = true;
	banner_close_sock(b);
}

static void on_banner_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
	struct banner *b = h->data;

	*buf = uv_buf_init(b->in, sizeof(b->in));
}

static void on_banner_read(uv_stream_t *s, ssize_t n, const uv_buf_t *buf)
{
	struct banner *b = s->data;

	if (b->closing || n == 0)
		return;
	for (ssize_t i = 0; i < n && b->n_got < sizeof(b->got); i++)
		b->got[b->n_got++] = buf->base[i];
	if (n > 0 && b->n_got < sizeof(b->got))
		return;
	if (n < 0 || memcmp(b->got, "SSH-", sizeof(b->got)) != 0) {
		banner_retry(b);
		return;
	}
	uv_timer_stop(&b->timer);
	banner_close_sock(b);
	b->done(b->arg);
}

static void on_banner_connect(uv_connect_t *req, int status)
{
	struct banner *b = req->data;

	if (b->closing || status == UV_ECANCELED)
		return;
	if (status < 0 ||
	    uv_read_start((uv_stream_t *)&b->sock, on_banner_alloc, on_banner_read) < 0)
		banner_retry(b);
}

static void on_banner_silent(uv_timer_t *t)
{
	banner_retry(t->data);
}

static void banner_try(struct banner *b)
{
	uv_tcp_init(&b->loop->uv, &b->sock);
	b->sock.data = b;
	b->connect.data = b;
	b->sock_open = true;
	b->refs++;
	b->n_got = 0;
	if (uv_tcp_connect(&b->connect, &b->sock, (struct sockaddr *)&b->sa,
			   on_banner_connect) < 0) {
		banner_retry(b);
		return;
	}
	uv_timer_start(&b->timer, on_banner_silent, b->wait_ms, 0);
	b->wait_ms = MIN(b->wait_ms * 2, (unsigned)WAIT_MAX_MS);
}

struct banner *banner_start(struct loop *loop, const char *host, uint16_t port,
					banner_done_fn done, void *arg)
{
	struct banner *b = xnew(struct banner);

	b->loop = loop;
	b->done = done;
	b->arg = arg;
	b->backoff_ms = FIRST_MS;
	b->wait_ms = WAIT_FIRST_MS;
	b->refs = 1;
	uv_ip4_addr(host, port, &b->sa);
	uv_timer_init(&loop->uv, &b->timer);
	b->timer.data = b;
	banner_try(b);
	return b;
}

static void on_banner_timer_closed(uv_handle_t *h)
{
	banner_unref(h->data);
}

void banner_close(struct banner *b)
{
	if (b->closing)
		return;
	b->closing = true;
	banner_close_sock(b);
	uv_close((uv_handle_t *)&b->timer, on_banner_timer_closed);
}
