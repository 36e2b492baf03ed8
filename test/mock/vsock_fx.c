#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "test/mock/vsock_fx.h"

#include "lib/base/log.h"
#include "lib/base/mem.h"

/* --- fixture -------------------------------------------------------------- */

enum guest_service by_port(uint32_t port)
{
	return (enum guest_service)(port - 1000);
}

static void on_up(void *arg)
{
	((struct fx *)arg)->ups++;
}

static void on_down(void *arg, const struct error *why)
{
	assert_true(why->code < 0 && why->msg[0]);
	((struct fx *)arg)->downs++;
}

static void on_closed(void *arg)
{
	((struct fx *)arg)->closed = true;
}

void fx_tick(uv_timer_t *t)
{
}

bool until_ms(struct fx *fx, bool (*cond)(void *arg), void *arg, uint64_t ms)
{
	uint64_t end = uv_hrtime() / 1000000 + ms;

	while (!cond(arg)) {
		if (uv_hrtime() / 1000000 > end)
			return false;
		uv_run(&fx->loop.uv, UV_RUN_ONCE);
	}
	return true;
}

bool until(struct fx *fx, bool (*cond)(void *arg), void *arg)
{
	return until_ms(fx, cond, arg, DEADLINE_MS);
}

bool is_up(void *arg)
{
	return vsock_is_up(((struct fx *)arg)->v);
}

static bool is_closed(void *arg)
{
	return ((struct fx *)arg)->closed;
}

bool script_done(void *arg)
{
	return ((struct fx *)arg)->guest.done;
}

bool nothing_left(void *arg)
{
	struct fx *fx = arg;
	struct vsock_stats st;

	vsock_get_stats(fx->v, &st);
	return st.connections == 0 && st.buffered == 0 && fx->guest.sockets == 0;
}

void fx_open(struct fx *fx, const struct vsock_limits *limits)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct vsock_options opts = { .loop = &fx->loop, .guest_cid = VSOCK_GUEST_CID, .up = on_up,
				      .down = on_down, .arg = fx };
	struct error err = ERROR_NONE;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	signal(SIGPIPE, SIG_IGN);
	log_setup(LOG_ERROR, LOG_FORMAT_TEXT);
	memset(fx, 0, offsetof(struct fx, guest));
	snprintf(fx->path, sizeof(fx->path), "/tmp/vsock-test-%d", getpid());
	fx->ups = fx->downs = 0;
	fx->closed = false;
	unlink(fx->path);
	strcpy(sa.sun_path, fx->path);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(fd, 4), 0);
	assert_int_equal(loop_init(&fx->loop, &err), 0);
	if (limits)
		opts.limits = *limits;
	assert_int_equal(vsock_new(&opts, fd, &fx->v, &err), 0);
	uv_timer_init(&fx->loop.uv, &fx->tick);	/* conditions of the other thread are seen */
	uv_timer_start(&fx->tick, fx_tick, 1, 1);
	vsock_guest_init(&fx->guest, fx->path);
	fx->guest.service = by_port;
}

void fx_start(struct fx *fx, const struct vsock_limits *limits)
{
	fx_open(fx, limits);
	vsock_guest_run(&fx->guest, vsock_guest_live, NULL);
	assert_true(until(fx, is_up, fx));
}

void fx_stop(struct fx *fx)
{
	vsock_guest_stop(&fx->guest);
	assert_true(until(fx, script_done, fx));
	vsock_guest_done(&fx->guest);
	vsock_close(fx->v, on_closed, fx);
	uv_close((uv_handle_t *)&fx->tick, NULL);
	assert_true(until(fx, is_closed, fx));
	assert_int_equal(loop_done(&fx->loop), 0);
	unlink(fx->path);
}

static void tcp_pair(int *near, int *far)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int l = socket(AF_INET, SOCK_STREAM, 0);

	assert_int_equal(bind(l, (struct sockaddr *)&sa, len), 0);
	assert_int_equal(listen(l, 1), 0);
	getsockname(l, (struct sockaddr *)&sa, &len);
	*far = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(connect(*far, (struct sockaddr *)&sa, len), 0);
	*near = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	close(l);
}

void reset_on_close(int fd)
{
	struct linger now = { 1, 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

int client_judge(void *arg, const uint8_t *bytes)
{
	struct client *c = arg;

	c->judged++;
	return bytes[7] ? -(int)bytes[7] : c->verdict;
}

static void on_opened(void *arg)
{
	struct client *c = arg;

	c->opened++;
	if (!c->hold)
		vsock_conn_relay(c->conn, &c->relay);
}

static void on_ended(void *arg, const struct error *why)
{
	struct client *c = arg;

	c->ended++;
	c->code = why->code;
	c->conn = NULL;
	if (why->code)
		reset_on_close(c->fd);
	close(c->fd);
	c->fd = -1;
}

void client_connect(struct fx *fx, struct client *c, enum guest_service service)
{
	struct vsock_conn_callbacks cb = { .opened = on_opened, .ended = on_ended, .arg = c };
	struct error err = ERROR_NONE;

	c->fx = fx;
	tcp_pair(&c->fd, &c->far);
	c->relay.fd = c->fd;
	c->relay.to_guest = &c->to_guest;
	c->relay.from_guest = &c->from_guest;
	if (service == GUEST_RELAY || service == GUEST_RELAY_REFUSE) {
		c->relay.hello = "hello, 24 bytes of hello";
		c->relay.hello_len = 24;
		c->relay.prologue_len = 8;
		c->relay.prologue = client_judge;
	}
	assert_int_equal(vsock_connect(fx->v, 1000 + service, &cb, &c->conn, &err), 0);
	assert_int_equal(c->opened + c->ended, 0);	/* no callback before it returned */
}

bool has_ended(void *arg)
{
	return ((struct client *)arg)->ended;
}

bool has_opened(void *arg)
{
	struct client *c = arg;

	return c->opened || c->ended;
}

struct job {
	struct client *c;
	void (*fn)(struct client *c);
	atomic_bool done;
};

static void *job_thread(void *arg)
{
	struct job *j = arg;

	j->fn(j->c);
	j->done = true;
	return NULL;
}

static bool job_done(void *arg)
{
	return ((struct job *)arg)->done;
}

/* @fn, which blocks, at the client's far end while the loop turns. */
void far_end(struct client *c, void (*fn)(struct client *c))
{
	struct job j = { .c = c, .fn = fn };
	struct timeval limit = { DEADLINE_MS / 1000, 0 };
	pthread_t t;

	setsockopt(c->far, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(c->far, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	pthread_create(&t, NULL, job_thread, &j);
	assert_true(until_ms(c->fx, job_done, &j, 2 * DEADLINE_MS));
	pthread_join(t, NULL);
}

void finish(struct client *c, int code)
{
	assert_true(until(c->fx, has_ended, c));
	assert_int_equal(c->code, code);
	if (c->far >= 0)
		close(c->far);
	assert_true(until(c->fx, nothing_left, c->fx));
}

enum { BIG = 8 << 20 };

void send_and_read_back(struct client *c)
{
	scoped_free uint8_t *out = xmalloc(BIG), *in = xmalloc(BIG);
	size_t sent = 0, got = 0;
	ssize_t n;

	for (size_t i = 0; i < BIG; i++)
		out[i] = (uint8_t)(i * 2654435761u >> 13);
	while (got < BIG) {
		if (sent < BIG) {
			n = send(c->far, out + sent, BIG - sent, MSG_DONTWAIT);
			sent += n > 0 ? (size_t)n : 0;
			if (sent == BIG)
				shutdown(c->far, SHUT_WR);	/* the answer comes all the same */
		}
		n = recv(c->far, in + got, BIG - got, sent < BIG ? MSG_DONTWAIT : 0);
		if (n == 0 || (n < 0 && errno != EAGAIN))
			break;
		got += n > 0 ? (size_t)n : 0;
	}
	assert_int_equal(got, BIG);
	assert_memory_equal(in, out, BIG);
	assert_int_equal(recv(c->far, in, 1, 0), 0);	/* FIN, not RST */
}

void echo_with(struct fx *fx, enum guest_service service)
{
	struct client c = { 0 };

	client_connect(fx, &c, service);
	far_end(&c, send_and_read_back);
	assert_int_equal(c.to_guest, BIG);
	assert_int_equal(c.from_guest, BIG);
	finish(&c, 0);
}
