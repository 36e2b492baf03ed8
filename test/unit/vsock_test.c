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

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/virtio/vsock.h"
#include "test/mock/vsock_guest.h"

enum { DEADLINE_MS = 30000 };

struct fx {
	struct loop loop;
	struct vsock *v;
	struct vsock_guest guest;
	char path[108];
	unsigned ups, downs;
	bool closed;
	uv_timer_t tick;
};

struct client {			/* one connection and the far end of its client's socket */
	struct fx *fx;
	struct vsock_conn *conn;
	int fd, far;
	unsigned opened, ended;
	int code;
	struct vsock_relay relay;
	bool hold;		/* no relay when opened */
	int verdict, judged;
	bool reset;		/* what the far end saw */
	uint64_t to_guest, from_guest;
};

/* --- fixture -------------------------------------------------------------- */

static enum guest_service by_port(uint32_t port)
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

static void on_tick(uv_timer_t *t)
{
}

static bool until_ms(struct fx *fx, bool (*cond)(void *arg), void *arg, uint64_t ms)
{
	uint64_t end = uv_hrtime() / 1000000 + ms;

	while (!cond(arg)) {
		if (uv_hrtime() / 1000000 > end)
			return false;
		uv_run(&fx->loop.uv, UV_RUN_ONCE);
	}
	return true;
}

static bool until(struct fx *fx, bool (*cond)(void *arg), void *arg)
{
	return until_ms(fx, cond, arg, DEADLINE_MS);
}

static bool is_up(void *arg)
{
	return vsock_is_up(((struct fx *)arg)->v);
}

static bool is_closed(void *arg)
{
	return ((struct fx *)arg)->closed;
}

static bool script_done(void *arg)
{
	return ((struct fx *)arg)->guest.done;
}

static bool nothing_left(void *arg)
{
	struct fx *fx = arg;
	struct vsock_stats st;

	vsock_get_stats(fx->v, &st);
	return st.connections == 0 && st.buffered == 0 && fx->guest.sockets == 0;
}

static void fx_open(struct fx *fx, const struct vsock_limits *limits)
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
	uv_timer_start(&fx->tick, on_tick, 1, 1);
	vsock_guest_init(&fx->guest, fx->path);
	fx->guest.service = by_port;
}

static void fx_start(struct fx *fx, const struct vsock_limits *limits)
{
	fx_open(fx, limits);
	vsock_guest_run(&fx->guest, vsock_guest_live, NULL);
	assert_true(until(fx, is_up, fx));
}

static void fx_stop(struct fx *fx)
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

static void reset_on_close(int fd)
{
	struct linger now = { 1, 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

static int on_prologue(void *arg, const uint8_t *bytes)
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

static void client_connect(struct fx *fx, struct client *c, enum guest_service service)
{
	struct vsock_conn_callbacks cb = { on_opened, on_ended, c };
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
		c->relay.prologue = on_prologue;
	}
	assert_int_equal(vsock_connect(fx->v, 1000 + service, &cb, &c->conn, &err), 0);
	assert_int_equal(c->opened + c->ended, 0);	/* no callback before it returned */
}

static bool has_ended(void *arg)
{
	return ((struct client *)arg)->ended;
}

static bool has_opened(void *arg)
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
static void far_end(struct client *c, void (*fn)(struct client *c))
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

static void finish(struct client *c, int code)
{
	assert_true(until(c->fx, has_ended, c));
	assert_int_equal(c->code, code);
	if (c->far >= 0)
		close(c->far);
	assert_true(until(c->fx, nothing_left, c->fx));
}

/* --- connections ---------------------------------------------------------- */

enum { BIG = 8 << 20 };

static void send_and_read_back(struct client *c)
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

static void echo_with(struct fx *fx, enum guest_service service)
{
	struct client c = { 0 };

	client_connect(fx, &c, service);
	far_end(&c, send_and_read_back);
	assert_int_equal(c.to_guest, BIG);
	assert_int_equal(c.from_guest, BIG);
	finish(&c, 0);
}

static struct fx fx;

static void test_vsock_echo_comes_back_after_half_close(void **state)
{
	static const uint64_t off[] = { 0, 1u << 28, 1u << 29, 3u << 28 };

	for (size_t i = 0; i < ARRAY_SIZE(off); i++) {	/* indirect, event_idx: each without */
		fx_open(&fx, NULL);
		fx.guest.features_off = off[i];
		vsock_guest_run(&fx.guest, vsock_guest_live, NULL);
		assert_true(until(&fx, is_up, &fx));
		echo_with(&fx, GUEST_ECHO);
		fx_stop(&fx);
	}
}

static void test_vsock_prologue_is_not_the_clients(void **state)
{
	struct client c = { 0 }, refused = { 0 };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_RELAY);
	far_end(&c, send_and_read_back);
	assert_int_equal(c.judged, 1);
	finish(&c, 0);
	client_connect(&fx, &refused, GUEST_RELAY_REFUSE);	/* and closes right behind */
	finish(&refused, -111);
	assert_int_equal(refused.judged, 1);
	fx_stop(&fx);
}

static void read_reset(struct client *c)
{
	char b[64];
	ssize_t n;

	if (send(c->far, "x", 1, MSG_NOSIGNAL) < 0) {	/* it was there already */
		c->reset = errno == ECONNRESET || errno == EPIPE;
		return;
	}
	while ((n = recv(c->far, b, sizeof(b), 0)) > 0)
		;
	c->reset = n < 0 && errno == ECONNRESET;
}

static void test_vsock_refused_reset_closed_by_the_guest(void **state)
{
	static const struct { enum guest_service service; int code; } rows[] = {
		{ GUEST_REFUSE, -ECONNREFUSED },
		{ GUEST_RESET, -ECONNRESET },
		{ GUEST_CLOSE, -ECONNRESET },
		{ GUEST_GREEDY, -ECONNRESET },
		{ GUEST_LATE, -ECONNRESET },
		{ GUEST_FULL_CREDIT, -ECONNRESET },
	};

	fx_start(&fx, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct client c = { 0 };

		client_connect(&fx, &c, rows[i].service);
		far_end(&c, read_reset);
		/* one that went on after its end was believed that end */
		assert_true(c.reset || rows[i].service == GUEST_LATE);
		finish(&c, rows[i].code);
	}
	echo_with(&fx, GUEST_ECHO);	/* none of it hurt the device */
	fx_stop(&fx);
}

static void test_vsock_a_silent_guest_times_out(void **state)
{
	struct vsock_limits limits = { .connect_ms = 100 };
	struct client c = { 0 };

	fx_start(&fx, &limits);
	client_connect(&fx, &c, GUEST_SILENT);
	finish(&c, -ETIMEDOUT);
	fx_stop(&fx);
}

static bool never(void *arg)
{
	return false;
}

/* One that lingers, for longer, waits on the same timer. */
static void test_vsock_a_silent_guest_times_out_beside_one_that_lingers(void **state)
{
	struct vsock_limits limits = { .connect_ms = 100, .close_ms = 20000 };
	struct client lingers = { 0 }, silent = { 0 };

	fx_start(&fx, &limits);
	client_connect(&fx, &lingers, GUEST_KEEP);
	shutdown(lingers.far, SHUT_WR);
	assert_true(until(&fx, has_ended, &lingers));
	assert_int_equal(lingers.code, 0);
	until_ms(&fx, never, NULL, 3 * limits.connect_ms);	/* the timer is for lingering now */
	client_connect(&fx, &silent, GUEST_SILENT);
	assert_true(until_ms(&fx, has_ended, &silent, limits.close_ms / 2));
	assert_int_equal(silent.code, -ETIMEDOUT);
	close(lingers.far);
	close(silent.far);
	fx_stop(&fx);
}

static bool guest_was_reset(void *arg)
{
	return fx.guest.resets > 0;
}

static void test_vsock_client_reset_reaches_an_idle_guest(void **state)
{
	struct client c = { 0 };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_STUCK);
	assert_true(until(&fx, has_opened, &c));
	reset_on_close(c.far);
	close(c.far);
	c.far = -1;
	finish(&c, -ECONNRESET);
	assert_true(until(&fx, guest_was_reset, NULL));
	fx_stop(&fx);
}

static void fill(struct client *c)
{
	static char block[65536];
	struct timeval t = { 0, 300000 };

	setsockopt(c->far, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
	while (send(c->far, block, sizeof(block), MSG_NOSIGNAL) > 0)
		;
}

static void test_vsock_no_credit_holds_one_and_not_others(void **state)
{
	struct client c = { 0 };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_STUCK);
	far_end(&c, fill);
	assert_int_equal(c.to_guest, 256 << 10);	/* what the guest's socket holds */
	/* others go on … */
	struct client d = { 0 };
	client_connect(&fx, &d, GUEST_ECHO);
	far_end(&d, send_and_read_back);
	assert_true(until(&fx, has_ended, &d));
	close(d.far);
	/* … and a reset is noticed while it waits */
	reset_on_close(c.far);
	close(c.far);
	c.far = -1;
	finish(&c, -ECONNRESET);
	fx_stop(&fx);
}

static void ask_for_much(struct client *c)
{
	uint64_t n = 64 << 20;

	assert_int_equal(send(c->far, &n, 8, 0), 8);
}

static bool buffered(void *arg)
{
	struct vsock_stats st;

	vsock_get_stats(fx.v, &st);
	return st.buffered > 0;
}

static void read_slowly(struct client *c)
{
	static char b[1 << 20];
	uint64_t got = 0;
	ssize_t n;

	while ((n = recv(c->far, b, sizeof(b), 0)) > 0)
		got += (uint64_t)n;
	assert_int_equal(n, 0);
	assert_int_equal(got, 64 << 20);
	shutdown(c->far, SHUT_WR);
}

static void test_vsock_slow_client_costs_a_window_and_no_more(void **state)
{
	struct client c = { 0 };
	struct vsock_stats st;

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_SOURCE);
	far_end(&c, ask_for_much);
	assert_true(until(&fx, buffered, NULL));
	{	/* others go on */
		struct client d = { 0 };

		client_connect(&fx, &d, GUEST_ECHO);
		far_end(&d, send_and_read_back);
		assert_true(until(&fx, has_ended, &d));
		close(d.far);
	}
	vsock_get_stats(fx.v, &st);
	assert_true(st.buffered <= 1 << 20);
	far_end(&c, read_slowly);
	finish(&c, 0);
	fx_stop(&fx);
}

/* --- a guest that has closed before the client has it all ------------------- */

static uint32_t sent_before_close;	/* the guest's; read when it is done */

/* Sends as long as it has credit; the credit is in whatever @p the host said last. */
static uint32_t use_credit(struct vsock_guest *g, const struct vsock_packet *p,
			   struct vsock_packet *head)
{
	static const uint8_t block[4096];
	uint32_t alloc = p->buf_alloc, fwd = p->fwd_cnt, sent = 0;
	const uint8_t *data;

	for (;;) {
		if (alloc - (sent - fwd) >= sizeof(block)) {
			vsock_guest_send(g, head, block);
			sent += sizeof(block);
		} else if ((p = vsock_guest_receive(g, &data, 500))) {
			alloc = p->buf_alloc;
			fwd = p->fwd_cnt;
		} else {
			return sent;
		}
	}
}

static void closes_and_resets(struct vsock_guest *g, void *arg)
{
	struct vsock_packet head = { .src_cid = VSOCK_GUEST_CID, .dst_cid = VSOCK_CID_HOST,
				     .len = 4096, .type = VSOCK_STREAM, .op = VSOCK_OP_RW,
				     .buf_alloc = 1 << 18 };
	const struct vsock_packet *p;
	const uint8_t *data;

	vsock_guest_connect(g);
	vsock_guest_boot(g);
	p = vsock_guest_receive(g, &data, DEADLINE_MS);
	assert_true(p && p->op == VSOCK_OP_REQUEST);
	head.src_port = p->dst_port;
	head.dst_port = p->src_port;
	vsock_guest_say(g, VSOCK_OP_RESPONSE, head.src_port, head.dst_port, 0);
	while ((p = vsock_guest_receive(g, &data, DEADLINE_MS)) && p->op != VSOCK_OP_SHUTDOWN)
		;
	assert_non_null(p);
	sent_before_close = use_credit(g, p, &head);
	vsock_guest_say(g, VSOCK_OP_SHUTDOWN, head.src_port, head.dst_port, VSOCK_SHUTDOWN_SEND);
	vsock_guest_say(g, VSOCK_OP_SHUTDOWN, head.src_port, head.dst_port,
			VSOCK_SHUTDOWN_SEND | VSOCK_SHUTDOWN_RCV);
	p = vsock_guest_receive(g, &data, DEADLINE_MS);
	assert_true(p && p->op == VSOCK_OP_RST);
	vsock_guest_say(g, VSOCK_OP_RST, head.src_port, head.dst_port, 0);	/* its 8 s were over */
	vsock_guest_say(g, VSOCK_OP_CREDIT_REQUEST, head.src_port, head.dst_port, 0);
	p = vsock_guest_receive(g, &data, DEADLINE_MS);
	assert_true(p && p->op == VSOCK_OP_RST);
	vsock_guest_hang_up(g);
}

static void end_first(struct client *c)
{
	shutdown(c->far, SHUT_WR);
}

static void read_all_of_it(struct client *c)
{
	static char b[1 << 16];
	uint64_t got = 0;
	ssize_t n;

	while ((n = recv(c->far, b, sizeof(b), 0)) > 0)
		got += (uint64_t)n;
	assert_int_equal(n, 0);
	assert_int_equal(got, sent_before_close);
}

static void test_vsock_a_reset_after_the_guests_close_takes_nothing(void **state)
{
	struct client c = { 0 };

	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, closes_and_resets, NULL);
	assert_true(until(&fx, is_up, &fx));
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &c));
	far_end(&c, end_first);
	assert_true(until_ms(&fx, script_done, &fx, 2 * DEADLINE_MS));
	assert_true(sent_before_close > 0);
	far_end(&c, read_all_of_it);
	finish(&c, 0);
	fx_stop(&fx);
}

static void test_vsock_owner_resets_in_every_state(void **state)
{
	fx_start(&fx, NULL);
	for (int i = 0; i < 3; i++) {
		struct client c = { .hold = i == 1 };

		client_connect(&fx, &c, i == 0 ? GUEST_SILENT : GUEST_ECHO);
		if (i)
			assert_true(until(&fx, has_opened, &c));
		vsock_conn_reset(c.conn);
		close(c.fd);
		close(c.far);
		assert_true(until(&fx, nothing_left, &fx));
		assert_int_equal(c.ended, 0);
	}
	fx_stop(&fx);
}

static void test_vsock_thousands_at_once_and_nothing_stays(void **state)
{
	struct rlimit rl;
	/* the loop stands still while the clients connect */
	struct vsock_limits limits = { .connect_ms = DEADLINE_MS };
	size_t n, opened = 0;
	struct client *all;

	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	n = MIN((rl.rlim_cur - 64) / 2, (rlim_t)10000);
	all = xcalloc(n, sizeof(*all));
	fx_start(&fx, &limits);
	for (size_t i = 0; i < n; i++)
		client_connect(&fx, &all[i], GUEST_ECHO);
	for (size_t i = 0; i < n; i++) {
		assert_true(until(&fx, has_opened, &all[i]));
		opened += all[i].opened;
		assert_int_equal(send(all[i].far, &i, sizeof(i), 0), sizeof(i));
		shutdown(all[i].far, SHUT_WR);
	}
	assert_int_equal(opened, n);
	for (size_t i = 0; i < n; i++) {
		size_t back = 0;

		assert_true(until(&fx, has_ended, &all[i]));
		assert_int_equal(all[i].code, 0);
		assert_int_equal(recv(all[i].far, &back, sizeof(back), MSG_WAITALL), sizeof(back));
		assert_int_equal(back, i);
		close(all[i].far);
	}
	assert_true(until(&fx, nothing_left, &fx));
	assert_true(uv_is_active((uv_handle_t *)&fx.loop.quiet));	/* memory goes back */
	free(all);
	fx_stop(&fx);
}

/* --- the life of the guest ------------------------------------------------ */

static atomic_int stage;

static void pause_and_go_on(struct vsock_guest *g, void *arg)
{
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	while (stage == 0)
		if (!vsock_guest_step(g))
			vsock_guest_wait(g, 5);
	vsock_guest_pause(g);
	stage = 2;
	while (stage == 2)
		usleep(1000);
	vsock_guest_resume(g);
	vsock_guest_serve(g);
	vsock_guest_hang_up(g);
}

static bool stage_reached(void *arg)
{
	return stage == *(int *)arg;
}

static void test_vsock_a_pause_keeps_connections(void **state)
{
	struct client c = { 0 };
	int paused = 2;

	stage = 0;
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, pause_and_go_on, NULL);
	assert_true(until(&fx, is_up, &fx));
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &c));
	stage = 1;
	assert_true(until(&fx, stage_reached, &paused));
	assert_true(vsock_is_up(fx.v));
	stage = 3;
	far_end(&c, send_and_read_back);
	finish(&c, 0);
	assert_int_equal(fx.downs, 0);
	fx_stop(&fx);
}

static void reboot(struct vsock_guest *g, void *arg)
{
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	while (stage == 0)
		if (!vsock_guest_step(g))
			vsock_guest_wait(g, 5);
	vsock_guest_pause(g);
	vsock_guest_boot(g);
	vsock_guest_serve(g);
	vsock_guest_hang_up(g);
}

static void test_vsock_a_reboot_ends_connections(void **state)
{
	struct client c = { 0 };

	stage = 0;
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, reboot, NULL);
	assert_true(until(&fx, is_up, &fx));
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &c));
	stage = 1;
	finish(&c, -ECANCELED);
	assert_true(until(&fx, is_up, &fx));
	echo_with(&fx, GUEST_ECHO);
	assert_int_equal(fx.downs, 1);
	fx_stop(&fx);
}

static bool is_down(void *arg)
{
	return ((struct fx *)arg)->downs > 0;
}

static void test_vsock_qemu_hangs_up_and_another_comes(void **state)
{
	struct client c = { 0 };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &c));
	vsock_guest_stop(&fx.guest);
	assert_true(until(&fx, is_down, &fx));
	assert_true(until(&fx, has_ended, &c));
	assert_int_equal(c.code, -ECANCELED);
	close(c.far);
	assert_true(until(&fx, script_done, &fx));
	vsock_guest_done(&fx.guest);
	vsock_guest_init(&fx.guest, fx.path);
	fx.guest.service = by_port;
	vsock_guest_run(&fx.guest, vsock_guest_live, NULL);
	assert_true(until(&fx, is_up, &fx));
	echo_with(&fx, GUEST_ECHO);
	fx_stop(&fx);
}

/* --- what must be refused ------------------------------------------------- */

static void bad_messages(struct vsock_guest *g, void *arg)
{
	static const struct { uint32_t words[14]; size_t len; } rows[] = {
		{ { 99, 1, 0 }, 12 },				/* unknown */
		{ { 1, 2, 0 }, 12 },				/* version */
		{ { 2, 1, 4, 0 }, 16 },				/* too short */
		{ { 5, 1, 0xffffffff }, 12 },			/* too long */
		{ { 5, 1, 40, 1, 0, 0, 0, 1 }, 52 },		/* memory without descriptor */
		{ { 5, 1, 40, 9, 0, 0, 0, 1 }, 52 },		/* nine regions in one's room */
		{ { 8, 1, 8, 0, 100 }, 20 },			/* not a power of two */
		{ { 8, 1, 8, 5, 128 }, 20 },			/* no such ring */
		{ { 10, 1, 8, 0, 65536 }, 20 },
		{ { 12, 1, 8, 0, 0 }, 20 },			/* kick without descriptor */
		{ { 12, 1, 8, 0x100, 0 }, 20 },
		{ { 24, 1, 12, 0, 8, 0 }, 24 },			/* answer does not fit */
		{ { 2, 1, 8, 0xffffffff, 0xffffffff }, 20 },	/* features never offered */
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		vsock_guest_connect(g);
		vsock_guest_raw(g, rows[i].words, rows[i].len, NULL, 0);
		assert_true(vsock_guest_hung_up_on(g));
		vsock_guest_hang_up(g);
	}
}

static void test_vsock_bad_messages_end_the_connection(void **state)
{
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, bad_messages, NULL);
	assert_true(until(&fx, script_done, &fx));
	vsock_guest_done(&fx.guest);
	vsock_guest_init(&fx.guest, fx.path);
	fx.guest.service = by_port;
	vsock_guest_run(&fx.guest, vsock_guest_live, NULL);
	assert_true(until(&fx, is_up, &fx));
	echo_with(&fx, GUEST_ECHO);
	fx_stop(&fx);
}

static const struct { uint64_t addr; uint32_t len; uint16_t flags, next; } bad_chains[] = {
	{ 1ull << 40, 44, 0, 0 },		/* outside memory */
	{ UINT64_MAX - 10, 44, 0, 0 },
	{ VSOCK_GUEST_MEMORY - 4, 44, 0, 0 },	/* runs out of it */
	{ 0x100000, 44, 1, 5 },			/* descriptor 5 is its own next */
	{ 0x100000, 44, 1, 500 },
	{ 0x100000, 16, 4 | 1, 0 },		/* indirect and more */
	{ 0x100000, 17, 4, 0 },
	{ 0x100000, 0, 4, 0 },
	{ 0x100001, 16, 4, 0 },
};

static void bad_rings(struct vsock_guest *g, void *arg)
{
	for (size_t i = 0; i < ARRAY_SIZE(bad_chains); i++) {
		vsock_guest_connect(g);
		vsock_guest_boot(g);
		vsock_guest_offer(g, &g->tx, 5, bad_chains[i].addr, bad_chains[i].len,
				  bad_chains[i].flags, bad_chains[i].next);
		while (fx.downs == i)
			usleep(1000);
		vsock_guest_hang_up(g);
	}
}

static void test_vsock_bad_rings_stop_the_device(void **state)
{
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, bad_rings, NULL);
	assert_true(until(&fx, script_done, &fx));
	assert_int_equal(fx.downs, ARRAY_SIZE(bad_chains));
	fx_stop(&fx);
}

static void broken_receive_ring(struct vsock_guest *g, void *arg)
{
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	vsock_guest_offer(g, &g->rx, 5, 0x100000, 4096, 2, 0);	/* one more than it holds */
	stage = 1;
	while (stage == 1)
		usleep(1000);
	vsock_guest_hang_up(g);
}

/* Until the guest starts anew there is nothing to do, and nothing is done. */
static void test_vsock_a_broken_receive_ring_leaves_the_loop_at_rest(void **state)
{
	struct client c = { 0 };
	int broken = 1;

	stage = 0;
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, broken_receive_ring, NULL);
	assert_true(until(&fx, stage_reached, &broken));
	assert_true(until(&fx, is_up, &fx));
	client_connect(&fx, &c, GUEST_ECHO);
	assert_true(until(&fx, is_down, &fx));
	assert_int_equal(c.code, -ECANCELED);
	close(c.far);
	uv_timer_stop(&fx.tick);
	while (uv_run(&fx.loop.uv, UV_RUN_NOWAIT) && uv_backend_timeout(&fx.loop.uv) == 0)
		assert_true(c.opened++ < 100);
	uv_timer_start(&fx.tick, on_tick, 1, 1);
	stage = 2;
	fx_stop(&fx);
}

static void test_vsock_a_guest_deaf_to_the_hello_is_reset(void **state)
{
	struct client deaf = { .hold = true, .relay = { .hello = "hello", .hello_len = 5 } };
	struct client behind = { .hold = true };

	fx_start(&fx, NULL);
	client_connect(&fx, &deaf, GUEST_DEAF);
	assert_true(until(&fx, has_opened, &deaf));
	client_connect(&fx, &behind, GUEST_ECHO);
	assert_true(until(&fx, has_opened, &behind));	/* so the shutdown was heard before */
	vsock_conn_relay(deaf.conn, &deaf.relay);
	assert_true(until(&fx, has_ended, &deaf));
	vsock_conn_reset(behind.conn);
	close(behind.fd);
	close(behind.far);
	finish(&deaf, -EPIPE);
	fx_stop(&fx);
}

static void test_vsock_no_answer_before_the_end_is_a_reset(void **state)
{
	struct client c = { .relay = { .prologue_len = 8, .prologue = on_prologue } };

	fx_start(&fx, NULL);
	client_connect(&fx, &c, GUEST_HALF);
	finish(&c, -ECONNRESET);
	fx_stop(&fx);
}

static void many_strays(struct vsock_guest *g, void *arg)
{
	vsock_guest_connect(g);
	vsock_guest_boot(g);
	for (unsigned i = 0; i < 5000; i++)
		vsock_guest_say(g, VSOCK_OP_SHUTDOWN, 77, 88, 2);
	for (unsigned i = 0; g->n_waiting; i++) {
		assert_true(i < DEADLINE_MS / 5);
		if (!vsock_guest_step(g))
			vsock_guest_wait(g, 5);
	}
	vsock_guest_hang_up(g);
}

/* A guest with much to say does not listen meanwhile (virtio_transport_more_replies). */
static void test_vsock_answers_nobody_takes_do_not_stop_the_device(void **state)
{
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, many_strays, NULL);
	assert_true(until(&fx, script_done, &fx));
	fx_stop(&fx);
}

static void other_interrupts(struct vsock_guest *g, void *arg)
{
	static const uint32_t set_vring_call[] = { 13, 1, 8, 0, 0 };
	struct pollfd p = { eventfd(0, EFD_CLOEXEC), POLLIN, 0 };

	vsock_guest_connect(g);
	vsock_guest_boot(g);
	vsock_guest_raw(g, set_vring_call, sizeof(set_vring_call), &p.fd, 1);
	assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
	close(p.fd);
	vsock_guest_hang_up(g);
}

/* QEMU swaps the descriptor to mask and unmask the interrupt, without waiting for us. */
static void test_vsock_a_new_interrupt_is_raised_once(void **state)
{
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, other_interrupts, NULL);
	assert_true(until(&fx, script_done, &fx));
	fx_stop(&fx);
}

static void stray_packets(struct vsock_guest *g, void *arg)
{
	const struct vsock_packet *p;
	const uint8_t *data;

	vsock_guest_connect(g);
	vsock_guest_boot(g);
	for (unsigned op = 0; op < 12; op++) {
		vsock_guest_say(g, (enum vsock_op)op, 77, 88, 3);
		p = vsock_guest_receive(g, &data, op == VSOCK_OP_RST ? 100 : 10000);
		if (op == VSOCK_OP_RST) {
			assert_null(p);
		} else {
			assert_non_null(p);
			assert_int_equal(p->op, VSOCK_OP_RST);
			assert_int_equal(p->dst_port, 77);
			assert_int_equal(p->src_port, 88);
		}
	}
	vsock_guest_hang_up(g);
}

static void test_vsock_packets_of_no_connection_are_reset(void **state)
{
	fx_open(&fx, NULL);
	vsock_guest_run(&fx.guest, stray_packets, NULL);
	assert_true(until(&fx, script_done, &fx));
	fx_stop(&fx);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vsock_echo_comes_back_after_half_close),
		cmocka_unit_test(test_vsock_prologue_is_not_the_clients),
		cmocka_unit_test(test_vsock_refused_reset_closed_by_the_guest),
		cmocka_unit_test(test_vsock_a_silent_guest_times_out),
		cmocka_unit_test(test_vsock_a_silent_guest_times_out_beside_one_that_lingers),
		cmocka_unit_test(test_vsock_client_reset_reaches_an_idle_guest),
		cmocka_unit_test(test_vsock_no_credit_holds_one_and_not_others),
		cmocka_unit_test(test_vsock_slow_client_costs_a_window_and_no_more),
		cmocka_unit_test(test_vsock_a_reset_after_the_guests_close_takes_nothing),
		cmocka_unit_test(test_vsock_owner_resets_in_every_state),
		cmocka_unit_test(test_vsock_thousands_at_once_and_nothing_stays),
		cmocka_unit_test(test_vsock_a_pause_keeps_connections),
		cmocka_unit_test(test_vsock_a_reboot_ends_connections),
		cmocka_unit_test(test_vsock_qemu_hangs_up_and_another_comes),
		cmocka_unit_test(test_vsock_bad_messages_end_the_connection),
		cmocka_unit_test(test_vsock_bad_rings_stop_the_device),
		cmocka_unit_test(test_vsock_a_broken_receive_ring_leaves_the_loop_at_rest),
		cmocka_unit_test(test_vsock_a_guest_deaf_to_the_hello_is_reset),
		cmocka_unit_test(test_vsock_no_answer_before_the_end_is_a_reset),
		cmocka_unit_test(test_vsock_answers_nobody_takes_do_not_stop_the_device),
		cmocka_unit_test(test_vsock_a_new_interrupt_is_raised_once),
		cmocka_unit_test(test_vsock_packets_of_no_connection_are_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
