/* Byte streams: real client sockets, a mock guest. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "test/mock/forward.h"

/* --- what clients do, in threads: no asserts in there ------------------------ */

struct call { /* one client */
	const char *ip;
	uint16_t port;
	size_t send_bytes;
	bool half_close; /* FIN after sending, then read on */
	int rc;          /* 0, or -errno of what failed */
	size_t got_bytes;
	bool matched; /* what came back is what was sent */
	bool got_eof;
	char text[64]; /* its beginning */
};

static uint8_t pattern(size_t i)
{
	return (uint8_t)(i * 31 + (i >> 8) * 7 + (i >> 16));
}

static int send_all(int fd, size_t len)
{
	uint8_t block[65536];
	size_t sent = 0;

	while (sent < len) {
		size_t n = MIN(len - sent, sizeof(block));

		for (size_t i = 0; i < n; i++)
			block[i] = pattern(sent + i);
		ssize_t rc = send(fd, block, n, MSG_NOSIGNAL);

		if (rc < 0)
			return -errno;
		sent += (size_t)rc;
	}
	return 0;
}

/* Until EOF or @want bytes (0: until EOF). */
static int receive(int fd, struct call *c, size_t want)
{
	uint8_t block[65536];

	while (!want || c->got_bytes < want) {
		ssize_t n = recv(fd, block, sizeof(block), 0);

		if (n < 0)
			return -errno;
		if (n == 0) {
			c->got_eof = true;
			return 0;
		}
		for (ssize_t i = 0; i < n; i++) {
			if (c->got_bytes < sizeof(c->text) - 1)
				c->text[c->got_bytes] = (char)block[i];
			c->matched &= block[i] == pattern(c->got_bytes);
			c->got_bytes++;
		}
	}
	return 0;
}

static void call_guest(void *arg)
{
	struct call *c = arg;
	int fd = fx_connect(SOCK_STREAM, c->ip ? c->ip : "127.0.0.1", c->port);

	c->matched = true;
	c->rc = fd < 0 ? fd : 0;
	if (c->rc == 0 && c->send_bytes)
		c->rc = send_all(fd, c->send_bytes);
	if (c->rc == 0 && c->half_close)
		shutdown(fd, SHUT_WR);
	if (c->rc == 0)
		c->rc = receive(fd, c, c->half_close ? 0 : c->send_bytes);
	if (fd >= 0)
		close(fd);
}

static uint16_t start(struct fx *fx, enum mock_mode mode, const struct forward_limits *limits)
{
	uint16_t port = fx_free_port();

	fx_start(fx, NULL, 0, limits);
	fx->lane.mode = mode;
	fx_add(fx, IPPROTO_TCP, "127.0.0.1", port);
	assert_int_equal(fx_count_events(fx, "forwarding tcp"), 1);
	return port;
}

/* --- order ------------------------------------------------------------------- */

static void test_tcp_echo_and_half_close_by_the_client_first(void **state)
{
	struct fx fx;
	struct call c = { .port = start(&fx, MOCK_ECHO, NULL),
			  .send_bytes = 100,
			  .half_close = true };

	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got_bytes, 100);
	assert_true(c.matched && c.got_eof);
	assert_int_equal(fx.lane.resets, 0);
	assert_int_equal(fx.lane.eofs, 1);
	fx_stop(&fx);
}

static void test_tcp_answer_that_comes_after_the_clients_fin(void **state)
{
	struct fx fx;
	struct call c = { .port = start(&fx, MOCK_REPLY_AFTER_EOF, NULL),
			  .send_bytes = 3000000,
			  .half_close = true };

	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, 0);
	assert_string_equal(c.text, "3000000");
	assert_true(c.got_eof);
	fx_stop(&fx);
}

static void send_after_guest_fin(void *arg)
{
	struct call *c = arg;
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", c->port);

	c->rc = fd < 0 ? fd : receive(fd, c, 0);
	if (c->rc == 0)
		c->rc = send_all(fd, 2000000);
	if (fd >= 0)
		close(fd);
}

static bool no_connection(void *arg)
{
	return ((struct fx *)arg)->lane.now == 0;
}

static void test_tcp_half_close_by_the_guest_first(void **state)
{
	struct fx fx;
	struct call c = { 0 };

	c.port = start(&fx, MOCK_SOURCE, NULL);
	fx.lane.source_bytes = 500000;
	assert_true(fx_client(&fx, send_after_guest_fin, &c));
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got_bytes, 500000);
	assert_true(fx_until(&fx, no_connection, &fx));
	assert_int_equal(fx.lane.bytes_in, 2000000); /* not one byte after our FIN was lost */
	assert_int_equal(fx.lane.resets, 0);
	fx_stop(&fx);
}

static bool one_came_and_went(void *arg)
{
	return ((struct fx *)arg)->lane.opens == 1 && no_connection(arg);
}

/* All was sent and both ends are closed here, while the client has read nothing. */
static void test_tcp_what_the_kernel_holds_at_the_end_arrives(void **state)
{
	struct fx fx;
	struct call c = { .port = start(&fx, MOCK_SOURCE, NULL), .matched = true };
	int fd;

	fx.lane.source_bytes = 400000;
	fd = fx_connect(SOCK_STREAM, "127.0.0.1", c.port);
	assert_true(fd >= 0);
	shutdown(fd, SHUT_WR);
	assert_true(fx_until(&fx, one_came_and_went, &fx));
	while (fx_row(&fx).connections_now > 0)
		fx_turn(&fx, 1);
	assert_int_equal(receive(fd, &c, 0), 0);
	assert_int_equal(c.got_bytes, 400000);
	close(fd);
	fx_stop(&fx);
}

/* A host agent in a process of its own, which never returns. */
static void be_killed(int tell_fd)
{
	struct fx fx;
	uint16_t port;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	port = start(&fx, MOCK_ECHO, NULL);
	if (write(tell_fd, &port, sizeof(port)) != sizeof(port))
		_exit(1);
	for (;;)
		fx_turn(&fx, 1000);
}

/* Half a download must not look whole. */
static void test_tcp_killed_agent_resets_its_clients(void **state)
{
	struct call c = { .matched = true };
	uint16_t port;
	int tell[2], fd;
	pid_t pid;

	assert_int_equal(pipe(tell), 0);
	pid = fork();
	if (pid == 0)
		be_killed(tell[1]);
	close(tell[1]);
	assert_int_equal(read(tell[0], &port, sizeof(port)), sizeof(port));
	close(tell[0]);
	fd = fx_connect(SOCK_STREAM, "127.0.0.1", port);
	assert_int_equal(send_all(fd, 1000), 0);
	assert_int_equal(receive(fd, &c, 1000), 0);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(receive(fd, &c, 0), -ECONNRESET);
	close(fd);
}

static void test_tcp_bulk_echo_arrives_whole(void **state)
{
	struct fx fx;
	struct call c = { .port = start(&fx, MOCK_SOURCE, NULL), .half_close = true };

	fx.lane.source_bytes = 64 << 20;
	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got_bytes, 64 << 20);
	fx_stop(&fx);
}

/* --- resets ------------------------------------------------------------------ */

static void test_tcp_refused_is_a_reset_and_never_an_empty_answer(void **state)
{
	struct fx fx;
	struct call c;
	uint16_t port = start(&fx, MOCK_REFUSE, NULL);

	for (int i = 0; i < 50; i++) {
		c = (struct call){ .port = port };
		assert_true(fx_client(&fx, call_guest, &c));
		assert_int_equal(c.rc, -ECONNRESET);
	}
	fx_stop(&fx);
}

static void test_tcp_reset_by_the_guest(void **state)
{
	struct fx fx;
	struct call c = { .port = start(&fx, MOCK_RESET, NULL), .send_bytes = 10 };

	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, -ECONNRESET);
	fx_stop(&fx);
}

static void reset_guest(void *arg)
{
	struct linger at_once = { .l_onoff = 1 };
	struct call *c = arg;
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", c->port);

	c->matched = true;
	c->rc = fd < 0 ? fd : send_all(fd, 10);
	if (c->rc == 0)
		c->rc = receive(fd, c, 10); /* the connection is up */
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(fd);
}

static void test_tcp_reset_by_the_client(void **state)
{
	struct fx fx;
	struct call c = { .port = start(&fx, MOCK_ECHO, NULL) };

	assert_true(fx_client(&fx, reset_guest, &c));
	assert_int_equal(c.rc, 0);
	assert_true(fx_until(&fx, no_connection, &fx));
	assert_int_equal(fx.lane.resets, 1);
	assert_int_equal(fx.lane.eofs, 0);
	fx_stop(&fx);
}

static bool was_reset(void *arg)
{
	return ((struct fx *)arg)->lane.resets;
}

/* Nothing is read from it, or nothing more will come: no event but this one. */
static void test_tcp_reset_of_a_client_nobody_listens_to(void **state)
{
	struct linger at_once = { .l_onoff = 1 };
	char block[4096] = { 0 };

	for (int half_closed = 0; half_closed < 2; half_closed++) {
		struct fx fx;
		uint16_t port = start(&fx, MOCK_STUCK, NULL);
		int fd = fx_connect(SOCK_STREAM | SOCK_NONBLOCK, "127.0.0.1", port);

		assert_true(fd >= 0);
		for (int i = 0; i < 50; i++) {
			while (!half_closed && send(fd, block, sizeof(block), MSG_NOSIGNAL) > 0)
				;
			if (half_closed)
				shutdown(fd, SHUT_WR);
			fx_turn(&fx, 2);
		}
		assert_int_equal(fx.lane.now, 1);
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		close(fd);
		assert_true(fx_until(&fx, was_reset, &fx));
		fx_stop(&fx);
	}
}

/* --- slow ones --------------------------------------------------------------- */

static enum mock_mode stuck_on_port_1(const char *guest_addr)
{
	return strcmp(guest_addr, "192.168.5.15:1") == 0 ? MOCK_STUCK : MOCK_ECHO;
}

static void test_tcp_stuck_guest_stalls_nobody_else(void **state)
{
	struct config_port_forward rule = {
		.guest_ip = fx_port(0, "192.168.5.15", 1).ip,
		.guest_port = { 1, 1 },
		.host_ip = fx_port(0, "127.0.0.1", 1).ip,
		.host_port = { fx_free_port(), 0 },
	};
	uint16_t port = fx_free_port();
	char block[4096] = { 0 };
	struct fx fx;
	size_t sent = 0;
	int stuck;

	fx_start(&fx, &rule, 1, NULL);
	fx.lane.choose = stuck_on_port_1;
	fx_add(&fx, IPPROTO_TCP, "192.168.5.15", 1);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", port);
	stuck = fx_connect(SOCK_STREAM | SOCK_NONBLOCK, "127.0.0.1", rule.host_port[0]);
	assert_true(stuck >= 0);
	for (int i = 0; i < 50; i++) {
		while (send(stuck, block, sizeof(block), MSG_NOSIGNAL) > 0)
			sent += sizeof(block);
		fx_turn(&fx, 2);
	}
	/* reading stopped: what was taken is bounded by the lane's word, not by the client */
	assert_true(fx.lane.bytes_in <= 256 * 1024 + 128 * 1024);
	assert_true(sent > fx.lane.bytes_in);

	struct call c = { .port = port, .send_bytes = 1000, .half_close = true };

	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got_bytes, 1000);
	close(stuck);
	fx_stop(&fx);
}

static bool lane_delivered_nothing_new(void *arg)
{
	return ((struct fx *)arg)->lane.now == 1;
}

static void test_tcp_slow_client_pauses_the_guest_and_loses_nothing(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, MOCK_SOURCE, NULL);
	uint64_t out;
	uint8_t block[65536];
	size_t got = 0;
	ssize_t n;
	int fd;

	fx.lane.source_bytes = 100 << 20;
	fd = fx_connect(SOCK_STREAM | SOCK_NONBLOCK, "127.0.0.1", port);
	assert_true(fd >= 0);
	assert_true(fx_until(&fx, lane_delivered_nothing_new, &fx));
	fx_turn(&fx, 200);
	out = fx_row(&fx).bytes_out;
	assert_true(out > 0 && out < 20 << 20); /* the kernel's buffers and 256 KiB of ours */
	while (got < fx.lane.source_bytes) {
		while ((n = recv(fd, block, sizeof(block), 0)) > 0)
			got += (size_t)n;
		assert_true(got == fx.lane.source_bytes || (n < 0 && errno == EAGAIN));
		fx_turn(&fx, 1);
	}
	close(fd);
	fx_stop(&fx);
}

/* --- no lane ----------------------------------------------------------------- */

struct lane_later {
	struct fx *fx;
	uv_timer_t timer;
};

static void give_lane(uv_timer_t *t)
{
	struct lane_later *l = t->data;

	l->fx->lane.mode = MOCK_ECHO;
	forward_set_lane(l->fx->forward, CONFIG_LANE_GRPC, &l->fx->lane.lane);
	uv_close((uv_handle_t *)t, NULL);
}

static void lane_in_200_ms(struct fx *fx, struct lane_later *l)
{
	l->fx = fx;
	uv_timer_init(&fx->loop.uv, &l->timer);
	l->timer.data = l;
	uv_timer_start(&l->timer, give_lane, 200, 0);
}

static void test_tcp_client_waits_for_the_lane(void **state)
{
	struct fx fx;
	struct lane_later later;
	struct call c = { .port = start(&fx, MOCK_ECHO, NULL),
			  .send_bytes = 100,
			  .half_close = true };

	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, NULL);
	lane_in_200_ms(&fx, &later);
	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got_bytes, 100);
	fx_stop(&fx);
}

static void test_tcp_client_survives_a_lane_that_breaks_before_connecting(void **state)
{
	struct fx fx;
	struct lane_later later;
	struct call c = { .port = start(&fx, MOCK_LANE_GONE, NULL),
			  .send_bytes = 100,
			  .half_close = true };

	lane_in_200_ms(&fx, &later);
	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got_bytes, 100);
	assert_int_equal(fx.lane.opens, 3 + 1); /* tries before it waits, and the one after */
	fx_stop(&fx);
}

static void test_tcp_client_is_reset_when_no_lane_comes(void **state)
{
	struct forward_limits limits = { .lane_wait_ms = 150, .open_wait_ms = 300 };
	struct fx fx;
	struct call c = { .port = start(&fx, MOCK_SILENT, &limits) };
	uint64_t t0 = clock_mono_ms();

	assert_true(fx_client(&fx, call_guest, &c)); /* a guest that never answers */
	assert_int_equal(c.rc, -ECONNRESET);
	assert_true(clock_mono_ms() - t0 >= 300);
	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, NULL);
	t0 = clock_mono_ms();
	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, -ECONNRESET);
	assert_true(clock_mono_ms() - t0 >= 150);
	fx_stop(&fx);
}

static void others_are_answered(struct fx *fx, uint16_t port, uint64_t ms)
{
	uint64_t until_ms = clock_mono_ms() + ms;

	fx->lane.mode = MOCK_ECHO;
	while (clock_mono_ms() < until_ms) {
		int fd = fx_connect(SOCK_STREAM, "127.0.0.1", port);

		fx_assert_echo(fx, fd, "x", 1);
		close(fd);
	}
}

/* In a crowd the guest is slow with some, but it is there. */
static void test_tcp_client_has_more_time_while_others_are_answered(void **state)
{
	const struct forward_limits limits = { .open_wait_ms = 500 };
	struct fx fx;
	uint16_t port = start(&fx, MOCK_SILENT, &limits);
	int slow = fx_connect(SOCK_STREAM, "127.0.0.1", port), never;
	char in;

	fx_turn(&fx, 50);
	others_are_answered(&fx, port, 1000);
	mock_lane_switch(&fx.lane, MOCK_ECHO);
	fx_assert_echo(&fx, slow, "a", 1);
	close(slow);
	fx.lane.mode = MOCK_SILENT;
	never = fx_connect(SOCK_STREAM, "127.0.0.1", port);
	fx_turn(&fx, 50);
	others_are_answered(&fx, port, 2000);	/* four times, then it is enough */
	assert_int_equal(fx_receive(&fx, never, &in, 1), -ECONNRESET);
	assert_int_equal(fx_row(&fx).timeouts, 1);
	close(never);
	fx_stop(&fx);
}

/* For longer than anybody waits, and longer than they are looked at: neither who waits
 * for the guest's answer nor who came meanwhile is turned away. */
static void test_tcp_pause_of_the_machine_is_not_waited_against(void **state)
{
	const struct forward_limits limits = { .lane_wait_ms = 700, .open_wait_ms = 700 };
	struct fx fx;
	uint16_t port = start(&fx, MOCK_SILENT, &limits);
	int before = fx_connect(SOCK_STREAM, "127.0.0.1", port), during, waiting;
	char in;

	fx_turn(&fx, 50);
	forward_set_paused(fx.forward, true);
	forward_set_paused(fx.forward, true);
	during = fx_connect(SOCK_STREAM, "127.0.0.1", port);
	fx_turn(&fx, 50);
	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, NULL);
	waiting = fx_connect(SOCK_STREAM, "127.0.0.1", port);
	fx_turn(&fx, 2500);
	forward_set_paused(fx.forward, false);
	fx_turn(&fx, 50);
	assert_int_equal(fx_row(&fx).timeouts, 0);
	mock_lane_switch(&fx.lane, MOCK_ECHO);
	fx.lane.mode = MOCK_ECHO;
	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, &fx.lane.lane);
	fx_assert_echo(&fx, before, "a", 1);
	fx_assert_echo(&fx, during, "b", 1);
	fx_assert_echo(&fx, waiting, "c", 1);
	close(before);
	close(during);
	close(waiting);
	fx.lane.mode = MOCK_SILENT; /* the time runs again */
	before = fx_connect(SOCK_STREAM, "127.0.0.1", port);
	assert_int_equal(fx_receive(&fx, before, &in, 1), -ECONNRESET);
	assert_int_equal(fx_row(&fx).timeouts, 1);
	close(before);
	fx_stop(&fx);
}

/* Asked for by name where the machine has no such thing: said, and nobody waits. */
static void test_tcp_lane_that_never_comes(void **state)
{
	const struct forward_limits hours = { .lane_wait_ms = 3600000 };
	struct config c = { .port_forwarding.lane = CONFIG_LANE_VSOCK };
	struct forward_options more = { .limits = hours };
	struct call early = { .port = fx_free_port(), .send_bytes = 10 }, late = early;
	struct fx fx;
	int fd;

	fx_start_with(&fx, &c, &more);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", early.port);
	fd = fx_connect(SOCK_STREAM, "127.0.0.1", early.port);
	fx_turn(&fx, 50);
	assert_string_equal(fx_row(&fx).error, "");
	forward_set_lane_missing(fx.forward, CONFIG_LANE_VSOCK, "no such device");
	assert_int_equal(fx_receive(&fx, fd, early.text, 1), -ECONNRESET);
	assert_true(fx_client(&fx, call_guest, &late));
	assert_int_equal(late.rc, -ECONNRESET);
	assert_string_equal(fx_row(&fx).error, "no such device");
	assert_int_equal(fx.lane.opens, 0);
	close(fd);
	fx_stop(&fx);
}

static void test_tcp_open_connection_is_reset_when_the_lane_breaks(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, MOCK_ECHO, NULL);
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", port);
	char b;

	fx_assert_echo(&fx, fd, "x", 1);
	mock_lane_break(&fx.lane, -ECANCELED);
	assert_true(fx_until(&fx, no_connection, &fx));
	assert_int_equal(recv(fd, &b, 1, 0), -1);
	assert_int_equal(errno, ECONNRESET);
	close(fd);
	fx_stop(&fx);
}

/* --- many -------------------------------------------------------------------- */

enum { CROWD = 1000 };

static bool crowd_is_served(void *arg)
{
	return ((struct fx *)arg)->lane.bytes_in == 5 * CROWD;
}

static void test_tcp_thousand_connections_at_once(void **state)
{
	struct rlimit files = { 0 };
	struct fx fx;
	uint16_t port = start(&fx, MOCK_ECHO, NULL);
	int *fds = xcalloc(CROWD, sizeof(*fds));
	char in[8];

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = MIN(files.rlim_max, (rlim_t)8192);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
	for (int i = 0; i < CROWD; i++) {
		fds[i] = fx_connect(SOCK_STREAM, i % 2 ? "127.0.0.1" : "::1", port);
		if (fds[i] == -EADDRNOTAVAIL || fds[i] == -EAFNOSUPPORT) /* no IPv6 here */
			fds[i] = fx_connect(SOCK_STREAM, "127.0.0.1", port);
		assert_true(fds[i] >= 0);
		assert_int_equal(send(fds[i], &(int){ i }, sizeof(int), 0), sizeof(int));
		assert_int_equal(send(fds[i], "!", 1, 0), 1);
		if (i % 50 == 0)
			uv_run(&fx.loop.uv, UV_RUN_NOWAIT);
	}
	assert_true(fx_until(&fx, crowd_is_served, &fx));
	fx_turn(&fx, 20);
	assert_int_equal(fx.lane.now, CROWD);
	for (int i = 0; i < CROWD; i++) {
		assert_int_equal(recv(fds[i], in, sizeof(in), MSG_WAITALL | MSG_DONTWAIT), 5);
		assert_memory_equal(in, &i, sizeof(i)); /* its own bytes, not another's */
		close(fds[i]);
	}
	assert_true(fx_until(&fx, no_connection, &fx));
	assert_int_equal(fx.lane.resets, 0);
	free(fds);
	fx_stop(&fx);
}

static void test_tcp_connections_outlive_the_forward(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, MOCK_ECHO, NULL);
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", port);

	fx_assert_echo(&fx, fd, "x", 1);
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", port);
	assert_int_equal(fx_connect(SOCK_STREAM, "127.0.0.1", port), -ECONNREFUSED);
	fx_assert_echo(&fx, fd, "y", 1);
	close(fd);
	fx_stop(&fx);
}

static void test_tcp_limit_of_connections_resets_the_next(void **state)
{
	struct forward_limits limits = { .max_connections = 2 };
	struct fx fx;
	uint16_t port = start(&fx, MOCK_ECHO, &limits);
	int a = fx_connect(SOCK_STREAM, "127.0.0.1", port);
	int b = fx_connect(SOCK_STREAM, "127.0.0.1", port);
	struct call c = { .port = port };

	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, -ECONNRESET);
	close(a);
	close(b);
	assert_true(fx_until(&fx, no_connection, &fx));
	c = (struct call){ .port = port, .send_bytes = 10, .half_close = true };
	assert_true(fx_client(&fx, call_guest, &c));
	assert_int_equal(c.rc, 0);
	fx_stop(&fx);
}

static void test_tcp_out_of_descriptors_keeps_clients_waiting(void **state)
{
	enum { CLIENTS = 20 };
	struct rlimit files, few;
	struct fx fx;
	uint16_t port = start(&fx, MOCK_ECHO, NULL);
	int fds[CLIENTS], top;

	for (int i = 0; i < CLIENTS; i++) {
		fds[i] = fx_connect(SOCK_STREAM, "127.0.0.1", port); /* into the backlog */
		assert_true(fds[i] >= 0);
		assert_int_equal(send(fds[i], "hello", 5, 0), 5);
	}
	top = dup(0);
	close(top);
	getrlimit(RLIMIT_NOFILE, &files);
	few = files;
	few.rlim_cur = (rlim_t)top + 5;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	fx_turn(&fx, 100);
	assert_in_range(fx.lane.opens, 1, 5); /* these work, */
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
	for (int i = 0; i < CLIENTS; i++) { /* the others were not dropped */
		char in[8];

		assert_int_equal(fx_receive(&fx, fds[i], in, sizeof(in)), 5);
		close(fds[i]);
	}
	fx_stop(&fx);
}

/* --- unix sockets ------------------------------------------------------------ */

static void call_unix(void *arg)
{
	struct call *c = arg;
	int fd = fx_connect_unix(c->ip);

	c->matched = true;
	c->rc = fd < 0 ? fd : send_all(fd, 1000000);
	if (c->rc == 0) {
		shutdown(fd, SHUT_WR);
		c->rc = receive(fd, c, 0);
	}
	if (fd >= 0)
		close(fd);
}

static void test_unix_socket_on_the_host(void **state)
{
	scoped_free char *dir = xasprintf("/tmp/lima-forward-%d", getpid());
	scoped_free char *path = xasprintf("%s/sock/guest.sock", dir);
	struct config_port_forward rule = fx_rule(8080, 0);
	struct call c = { .ip = path };
	struct error err = { 0 };
	struct stat st;
	struct fx fx;

	rule.host_socket = path;
	fx_start(&fx, &rule, 1, NULL);
	fx.lane.mode = MOCK_REPLY_AFTER_EOF;
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 8080);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(fx_count_events(&fx, "forwarding tcp 127.0.0.1:8080 /tmp/"), 1);
	assert_true(fx_client(&fx, call_unix, &c));
	assert_int_equal(c.rc, 0);
	assert_string_equal(c.text, "1000000");
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", 8080);
	assert_false(path_exists(path));
	fx_stop(&fx);
	assert_int_equal(path_remove_tree(dir, &err), 0);
}

static void test_unix_only_stale_sockets_are_replaced(void **state)
{
	scoped_free char *path = xasprintf("/tmp/lima-forward-%d.sock", getpid());
	struct config_port_forward rule = fx_rule(8080, 0);
	int other, fd;
	struct error err = { 0 };
	struct fx fx;

	rule.host_socket = path;
	unlink(path);
	other = fx_bind_unix(path);
	assert_true(other >= 0);
	fx_start(&fx, &rule, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 8080);
	assert_true(fx_wait_event(&fx, "failed tcp 127.0.0.1:8080")); /* by whom is found out */
	close(other); /* leaves the file: a crashed program's socket */
	assert_true(fx_wait_event(&fx, "forwarding tcp 127.0.0.1:8080"));
	fd = fx_connect_unix(path);
	assert_true(fd >= 0);
	close(fd);
	fx_stop(&fx);
	assert_false(path_exists(path));
	assert_int_equal(path_write_file(path, "precious", 8, 0600, &err), 0);
	fx_start(&fx, &rule, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 8080);
	assert_int_equal(fx_count_events(&fx, "failed tcp 127.0.0.1:8080"), 1);
	fx_stop(&fx);
	assert_true(path_exists(path));
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tcp_echo_and_half_close_by_the_client_first),
		cmocka_unit_test(test_tcp_answer_that_comes_after_the_clients_fin),
		cmocka_unit_test(test_tcp_half_close_by_the_guest_first),
		cmocka_unit_test(test_tcp_what_the_kernel_holds_at_the_end_arrives),
		cmocka_unit_test(test_tcp_killed_agent_resets_its_clients),
		cmocka_unit_test(test_tcp_bulk_echo_arrives_whole),
		cmocka_unit_test(test_tcp_refused_is_a_reset_and_never_an_empty_answer),
		cmocka_unit_test(test_tcp_reset_by_the_guest),
		cmocka_unit_test(test_tcp_reset_by_the_client),
		cmocka_unit_test(test_tcp_reset_of_a_client_nobody_listens_to),
		cmocka_unit_test(test_tcp_stuck_guest_stalls_nobody_else),
		cmocka_unit_test(test_tcp_slow_client_pauses_the_guest_and_loses_nothing),
		cmocka_unit_test(test_tcp_client_waits_for_the_lane),
		cmocka_unit_test(test_tcp_client_survives_a_lane_that_breaks_before_connecting),
		cmocka_unit_test(test_tcp_client_is_reset_when_no_lane_comes),
		cmocka_unit_test(test_tcp_client_has_more_time_while_others_are_answered),
		cmocka_unit_test(test_tcp_pause_of_the_machine_is_not_waited_against),
		cmocka_unit_test(test_tcp_lane_that_never_comes),
		cmocka_unit_test(test_tcp_open_connection_is_reset_when_the_lane_breaks),
		cmocka_unit_test(test_tcp_thousand_connections_at_once),
		cmocka_unit_test(test_tcp_connections_outlive_the_forward),
		cmocka_unit_test(test_tcp_limit_of_connections_resets_the_next),
		cmocka_unit_test(test_tcp_out_of_descriptors_keeps_clients_waiting),
		cmocka_unit_test(test_unix_socket_on_the_host),
		cmocka_unit_test(test_unix_only_stale_sockets_are_replaced),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
