/* Tunnels against real sockets; the host's side of the stream is a mock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guestagent/dial.h"
#include "guestagent/tunnel.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "test/mock/guest_stream.h"
#include "test/mock/loop_wait.h"

enum { DEADLINE_MS = 10000 };

struct fixture {
	struct loop loop;
	struct tunnels *tunnels;
	uv_timer_t tick;	/* so that a waiting loop looks at its deadline */
	bool closed;
};

static void on_tick(uv_timer_t *t)
{
}

static void fixture_start(struct fixture *f)
{
	struct error err = ERROR_NONE;

	*f = (struct fixture){ 0 };
	assert_int_equal(loop_init(&f->loop, &err), 0);
	f->tunnels = tunnels_new(&f->loop);
	uv_timer_init(&f->loop.uv, &f->tick);
	uv_timer_start(&f->tick, on_tick, 5, 5);
}

static void on_tunnels_closed(void *arg)
{
	((struct fixture *)arg)->closed = true;
}

#define wait_for(f, cond) loop_wait(&(f)->loop, cond)

static void fixture_stop(struct fixture *f)
{
	loop_ref(&f->loop);
	tunnels_close(f->tunnels, on_tunnels_closed, f);
	wait_for(f, f->closed);
	loop_unref(&f->loop);
	uv_close((uv_handle_t *)&f->tick, NULL);
	loop_run(&f->loop);
	assert_int_equal(loop_done(&f->loop), 0);
}

static int server_socket(int type, char addr[64])
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	if (type == SOCK_STREAM)
		assert_int_equal(listen(fd, 16), 0);
	getsockname(fd, (struct sockaddr *)&a, &len);
	snprintf(addr, 64, "127.0.0.1:%u", ntohs(a.sin_port));
	return fd;
}

static bool readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

/* Opens a tunnel to a fresh server; returns the server's end of it. */
static int open_tcp(struct fixture *f, struct guest_stream *s)
{
	char addr[64];
	scoped_fd int l = server_socket(SOCK_STREAM, addr);
	int fd;

	tunnels_open(f->tunnels, s, IPPROTO_TCP, addr);
	assert_true(s->paused);		/* nothing from the host before connect() */
	wait_for(f, s->opened && readable(l));
	assert_false(s->paused);
	fd = accept4(l, NULL, NULL, SOCK_NONBLOCK);
	assert_true(fd >= 0);
	return fd;
}

static void from_host(struct guest_stream *s, const void *data, size_t len)
{
	assert_false(s->paused);
	s->cb.data(s->cb.arg, data, len);
}

/* Reads @len bytes at the server while the loop runs. */
static void server_expect(struct fixture *f, int fd, const uint8_t *want, size_t len)
{
	uint8_t got[65536];
	size_t at = 0;

	while (at < len) {
		ssize_t n;

		wait_for(f, readable(fd));
		n = read(fd, got, MIN(sizeof(got), len - at));
		assert_true(n > 0);
		assert_memory_equal(got, want + at, (size_t)n);
		at += (size_t)n;
	}
}

static uint8_t *pattern(size_t len)
{
	uint8_t *p = xmalloc(len);

	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)(i * 7 + i / 251);
	return p;
}

static void server_send(struct fixture *f, int fd, const uint8_t *data, size_t len)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = write(fd, data + at, len - at);

		if (n > 0)
			at += (size_t)n;
		else
			uv_run(&f->loop.uv, UV_RUN_ONCE);
	}
}

static int read_end(struct fixture *f, int fd)
{
	char c;
	ssize_t n;

	wait_for(f, readable(fd));
	n = read(fd, &c, 1);
	assert_true(n <= 0);
	return n == 0 ? 0 : -errno;
}

/* --- TCP ------------------------------------------------------------------ */

enum { BULK = 3 << 20 };

/* The client ends first, the server answers only then (`nc -N`, HTTP/1.0 POST). */
static void test_tcp_host_half_closes_first(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	scoped_free uint8_t *data = pattern(BULK);
	scoped_fd int fd = -1;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	from_host(&s, "question", 8);
	s.cb.eof(s.cb.arg);
	server_expect(&f, fd, (const uint8_t *)"question", 8);
	assert_int_equal(read_end(&f, fd), 0);
	server_send(&f, fd, data, BULK);
	shutdown(fd, SHUT_WR);
	wait_for(&f, s.eof);
	assert_int_equal(s.got.len, BULK);
	assert_memory_equal(s.got.data, data, BULK);
	mock_stream_end(&s, 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	buf_done(&s.got);
	fixture_stop(&f);
}

/* The server ends first; what the client sends after still arrives. */
static void test_tcp_guest_half_closes_first(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	scoped_free uint8_t *data = pattern(BULK);
	scoped_fd int fd = -1;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	server_send(&f, fd, (const uint8_t *)"bye", 3);
	shutdown(fd, SHUT_WR);
	wait_for(&f, s.eof);
	assert_int_equal(s.got.len, 3);
	for (size_t at = 0; at < BULK;) {
		size_t n = MIN((size_t)BULK - at, (size_t)100000);

		from_host(&s, data + at, n);
		server_expect(&f, fd, data + at, n);
		wait_for(&f, !s.paused);
		at += n;
	}
	s.cb.eof(s.cb.arg);
	assert_int_equal(read_end(&f, fd), 0);
	mock_stream_end(&s, 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	buf_done(&s.got);
	fixture_stop(&f);
}

/* The stream ends in order while the server has not read all: it still gets it. */
static void test_tcp_rest_is_delivered_after_the_end(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	size_t len = 16 << 20;	/* more than socket buffers take */
	scoped_free uint8_t *data = pattern(len);
	scoped_fd int fd = -1;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	shutdown(fd, SHUT_WR);
	wait_for(&f, s.eof);
	from_host(&s, data, len);
	assert_true(s.paused);
	s.cb.eof(s.cb.arg);
	mock_stream_end(&s, 0);
	server_expect(&f, fd, data, len);
	assert_int_equal(read_end(&f, fd), 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

static void test_tcp_host_reset_and_lost_link(void **state)
{
	static const int codes[] = { -ECONNRESET, -ECANCELED };

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++) {
		struct fixture f;
		struct guest_stream s = { 0 };
		scoped_fd int fd = -1;

		fixture_start(&f);
		fd = open_tcp(&f, &s);
		from_host(&s, "half a tran", 11);
		server_expect(&f, fd, (const uint8_t *)"half a tran", 11);
		mock_stream_end(&s, codes[i]);
		assert_int_equal(read_end(&f, fd), -ECONNRESET);
		wait_for(&f, tunnels_count(f.tunnels) == 0);
		fixture_stop(&f);
	}
}

/* An agent in a process of its own, which opens a tunnel, sends and never returns. */
static void be_killed(const char *addr)
{
	struct fixture f;
	struct guest_stream s = { 0 };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	fixture_start(&f);
	tunnels_open(f.tunnels, &s, IPPROTO_TCP, addr);
	while (!s.opened)
		uv_run(&f.loop.uv, UV_RUN_ONCE);
	s.cb.data(s.cb.arg, (const uint8_t *)"half a tran", 11);
	for (;;)
		uv_run(&f.loop.uv, UV_RUN_ONCE);
}

/* Half an upload must not look whole. */
static void test_tcp_killed_agent_resets_its_servers(void **state)
{
	char addr[64], got[16];
	scoped_fd int l = server_socket(SOCK_STREAM, addr);
	scoped_fd int fd = -1;
	struct pollfd p = { .fd = l, .events = POLLIN };
	pid_t pid = fork();

	if (pid == 0)
		be_killed(addr);
	assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
	fd = accept(l, NULL, NULL);
	assert_int_equal(recv(fd, got, sizeof(got), 0), 11);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(recv(fd, got, sizeof(got), 0), -1);
	assert_int_equal(errno, ECONNRESET);
}

/* All was taken from the host, and the tunnel is gone, while the server has read
 * nothing. */
static void test_tcp_what_the_kernel_holds_at_the_end_arrives(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	size_t sent = 0, got = 0;
	uint8_t block[10000] = { 0 };
	scoped_fd int fd = -1;
	ssize_t n;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	shutdown(fd, SHUT_WR);
	wait_for(&f, s.eof);
	for (; sent < 40 * sizeof(block) && !s.paused; sent += sizeof(block))
		from_host(&s, block, sizeof(block));
	wait_for(&f, !s.paused);
	s.cb.eof(s.cb.arg);
	mock_stream_end(&s, 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	wait_for(&f, ({
		while ((n = recv(fd, block, sizeof(block), 0)) > 0)
			got += (size_t)n;
		n == 0 || errno != EAGAIN;
	}));
	assert_int_equal(n, 0);
	assert_int_equal(got, sent);
	fixture_stop(&f);
}

static void test_tcp_guest_resets(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	struct linger now = { .l_onoff = 1 };
	int fd;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
	wait_for(&f, s.reset);
	assert_int_equal(s.reset, -ECONNRESET);
	assert_false(s.eof);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

/* Turns of the loop in 200 ms in which nothing happens but the tick. */
static unsigned idle_turns(struct fixture *f)
{
	uint64_t until_ms = clock_mono_ms() + 200;
	unsigned n;

	for (n = 0; clock_mono_ms() < until_ms; n++)
		uv_run(&f->loop.uv, UV_RUN_ONCE);
	return n;
}

/* The server ends its side, then goes away: told at once, though nothing is read from
 * it any more and the client writes nothing. */
static void test_tcp_guest_resets_after_its_end(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	struct linger now = { .l_onoff = 1 };
	int fd;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	server_send(&f, fd, (const uint8_t *)"bye", 3);
	shutdown(fd, SHUT_WR);
	wait_for(&f, s.eof);
	assert_in_range(idle_turns(&f), 1, 100);
	assert_int_equal(s.reset, 0);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
	wait_for(&f, s.reset);
	assert_int_equal(s.reset, -ECONNRESET);
	assert_int_equal(s.got.len, 3);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	buf_done(&s.got);
	fixture_stop(&f);
}

/* The host ended its side before: reading goes on and finds out. */
static void test_tcp_guest_resets_after_the_hosts_end(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	struct linger now = { .l_onoff = 1 };
	int fd;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	s.cb.eof(s.cb.arg);
	assert_int_equal(read_end(&f, fd), 0);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
	wait_for(&f, s.reset);
	assert_int_equal(s.reset, -ECONNRESET);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

/* Both ended while the host has not said so: no turn is wasted on it. */
static void test_tcp_both_ends_are_idle(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	scoped_fd int fd = -1;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	shutdown(fd, SHUT_WR);
	wait_for(&f, s.eof);
	s.cb.eof(s.cb.arg);
	assert_int_equal(read_end(&f, fd), 0);
	assert_in_range(idle_turns(&f), 1, 100);
	assert_int_equal(s.reset, 0);
	mock_stream_end(&s, 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

static void test_tcp_refused(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	char addr[64];

	fixture_start(&f);
	close(server_socket(SOCK_STREAM, addr));
	tunnels_open(f.tunnels, &s, IPPROTO_TCP, addr);
	wait_for(&f, s.refused);
	assert_int_equal(s.refused, -ECONNREFUSED);
	assert_false(s.opened);
	mock_stream_end(&s, -ECONNREFUSED);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

/* The host takes little: reading from the server stops, then goes on. */
static void test_tcp_host_is_slow(void **state)
{
	struct fixture f;
	struct guest_stream s = { .accept_max = 256 * 1024 };
	scoped_free uint8_t *data = pattern(BULK * 8);
	scoped_fd int fd = -1;
	ssize_t sent = 0, n;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	for (unsigned still = 0; still < 20; still++) {
		n = write(fd, data + sent, (size_t)(BULK * 8 - sent));
		if (n > 0) {
			sent += n;
			still = 0;
		}
		uv_run(&f.loop.uv, UV_RUN_ONCE);
	}
	assert_true(sent < BULK * 8);			/* the server was held back */
	assert_true(s.got.len < 512 * 1024);		/* by us, not by the mock */
	s.accept_max = 0;
	s.cb.writable(s.cb.arg);
	server_send(&f, fd, data + sent, (size_t)(BULK * 8 - sent));
	shutdown(fd, SHUT_WR);
	wait_for(&f, s.eof);
	assert_int_equal(s.got.len, BULK * 8);
	assert_memory_equal(s.got.data, data, BULK * 8);
	mock_stream_end(&s, -ECONNRESET);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	buf_done(&s.got);
	fixture_stop(&f);
}

/* Little at a time while all streams together hold much. */
static void test_tcp_reads_little_in_a_crowd(void **state)
{
	struct fixture f;
	struct guest_stream s = { .crowded = true };
	scoped_free uint8_t *data = pattern(100000);
	scoped_fd int fd = -1;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	server_send(&f, fd, data, 100000);
	wait_for(&f, s.got.len == 100000);
	assert_memory_equal(s.got.data, data, 100000);
	assert_true(s.messages >= 100000 / 4096);
	mock_stream_end(&s, -ECONNRESET);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	buf_done(&s.got);
	fixture_stop(&f);
}

/* The server takes little: the stream is paused, one message is held. */
static void test_tcp_server_is_slow(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	scoped_free uint8_t *data = pattern(256 * 1024);
	scoped_fd int fd = -1;
	unsigned sent = 0;

	fixture_start(&f);
	fd = open_tcp(&f, &s);
	while (!s.paused && sent < 1000) {
		from_host(&s, data, 256 * 1024);
		sent++;
	}
	assert_true(s.paused);
	for (unsigned i = 0; i < sent; i++)
		server_expect(&f, fd, data, 256 * 1024);
	wait_for(&f, !s.paused);
	mock_stream_end(&s, 0);
	assert_int_equal(read_end(&f, fd), 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

/* The stream goes while connect() is under way, and the agent stops with
 * tunnels in every state. */
static void test_tcp_ends_while_connecting(void **state)
{
	struct fixture f;
	struct guest_stream gone = { 0 }, open = { 0 }, connecting = { 0 };
	char addr[64];
	scoped_fd int l = server_socket(SOCK_STREAM, addr), fd = -1;

	fixture_start(&f);
	tunnels_open(f.tunnels, &gone, IPPROTO_TCP, addr);
	mock_stream_end(&gone, -ECANCELED);
	fd = open_tcp(&f, &open);
	tunnels_open(f.tunnels, &connecting, IPPROTO_TCP, addr);
	mock_stream_end(&open, -ECANCELED);
	mock_stream_end(&connecting, -ECANCELED);
	fixture_stop(&f);
}

/* A wildcard server is dialled by loopback, "::" falls back to 127.0.0.1. */
static void test_tcp_wildcard(void **state)
{
	static const char *const forms[] = { "0.0.0.0:%u", "[::]:%u" };

	for (size_t i = 0; i < ARRAY_SIZE(forms); i++) {
		struct fixture f;
		struct guest_stream s = { 0 };
		char addr[64], ask[80];
		unsigned port;
		scoped_fd int l = server_socket(SOCK_STREAM, addr);

		fixture_start(&f);
		sscanf(addr, "127.0.0.1:%u", &port);
		snprintf(ask, sizeof(ask), i ? forms[1] : forms[0], port);
		tunnels_open(f.tunnels, &s, IPPROTO_TCP, ask);
		wait_for(&f, s.opened);
		mock_stream_end(&s, 0);
		wait_for(&f, tunnels_count(f.tunnels) == 0);
		fixture_stop(&f);
	}
}

/* TCP to a broadcast address is ENETUNREACH before connect() returns, as ::1 fails in
 * a guest without IPv6. */
static void add_unreachable(void *arg, int proto, struct dial *d)
{
	struct dial away;

	assert_int_equal(dial_parse("255.255.255.255:9", &away), 0);
	d->addrs[1] = d->addrs[0];	/* dial_parse() into it would take this away */
	d->addrs[0] = away.addrs[0];
	d->len = 2;
}

static void test_tcp_next_address_when_one_fails_at_once(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	char addr[64];
	scoped_fd int l = server_socket(SOCK_STREAM, addr);

	fixture_start(&f);
	tunnels_set_more(f.tunnels, add_unreachable, NULL);
	tunnels_open(f.tunnels, &s, IPPROTO_TCP, addr);
	wait_for(&f, s.opened);
	mock_stream_end(&s, 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

static union dial_addr silent;

static void add_silent(void *arg, int proto, struct dial *d)
{
	d->addrs[1] = d->addrs[0];
	d->addrs[0] = silent;
	d->len = 2;
}

static void test_tcp_next_address_when_one_is_silent(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	char addr[64], full_addr[64];
	scoped_fd int l = server_socket(SOCK_STREAM, addr);
	scoped_fd int full = server_socket(SOCK_STREAM, full_addr);
	scoped_fd int filler = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct dial to;

	assert_int_equal(dial_parse(full_addr, &to), 0);
	silent = to.addrs[0];
	listen(full, 0);	/* takes one, and drops the SYN of any other */
	assert_int_equal(connect(filler, &silent.sa, sizeof(silent.in)), 0);
	fixture_start(&f);
	tunnels_set_more(f.tunnels, add_silent, NULL);
	tunnels_open(f.tunnels, &s, IPPROTO_TCP, addr);
	wait_for(&f, s.opened || s.refused);
	assert_int_equal(s.refused, 0);
	mock_stream_end(&s, 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

static void test_tcp_silent_address_again_when_the_next_refuses(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	char addr[64], full_addr[64];
	scoped_fd int full = server_socket(SOCK_STREAM, full_addr);
	scoped_fd int filler = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct dial to;
	uint64_t silent_till_ms;

	close(server_socket(SOCK_STREAM, addr));
	assert_int_equal(dial_parse(full_addr, &to), 0);
	silent = to.addrs[0];
	listen(full, 0);
	assert_int_equal(connect(filler, &silent.sa, sizeof(silent.in)), 0);
	fixture_start(&f);
	tunnels_set_more(f.tunnels, add_silent, NULL);
	tunnels_open(f.tunnels, &s, IPPROTO_TCP, addr);
	silent_till_ms = clock_mono_ms() + DIAL_NEXT_MS + 500;
	wait_for(&f, clock_mono_ms() >= silent_till_ms);
	assert_int_equal(s.refused, 0);
	close(accept(full, NULL, NULL));	/* who kept it busy */
	wait_for(&f, s.opened || s.refused);
	assert_int_equal(s.refused, 0);
	mock_stream_end(&s, 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

/* --- UDP ------------------------------------------------------------------ */

static void test_udp_sizes_both_ways(void **state)
{
	static const size_t sizes[] = { 0, 1, 1472, 20000, 65507 };
	struct fixture f;
	struct guest_stream s = { 0 };
	scoped_free uint8_t *data = pattern(65536), *got = xmalloc(65536);
	struct sockaddr_in from;
	socklen_t from_len = sizeof(from);
	char addr[64];
	scoped_fd int fd = server_socket(SOCK_DGRAM, addr);

	fixture_start(&f);
	tunnels_open(f.tunnels, &s, IPPROTO_UDP, addr);
	assert_true(s.opened);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		ssize_t n;

		from_host(&s, data, sizes[i]);
		wait_for(&f, readable(fd));
		n = recvfrom(fd, got, 65536, 0, (struct sockaddr *)&from, &from_len);
		assert_int_equal(n, sizes[i]);
		assert_memory_equal(got, data, sizes[i]);
		buf_reset(&s.got);
		assert_int_equal(sendto(fd, data, sizes[i], 0, (struct sockaddr *)&from, from_len), n);
		wait_for(&f, s.messages == i + 1);
		assert_int_equal(s.last_len, sizes[i]);
		if (sizes[i])
			assert_memory_equal(s.got.data, data, sizes[i]);
	}
	mock_stream_end(&s, 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	buf_done(&s.got);
	fixture_stop(&f);
}

/* Nobody there: ICMP's answer ends the flow, and the host is told why. The server
 * that comes later is reached by the next one. */
static void test_udp_nobody_there(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 }, later = { 0 };
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	unsigned port;
	char addr[64];
	int fd;

	fixture_start(&f);
	close(server_socket(SOCK_DGRAM, addr));
	sscanf(addr, "127.0.0.1:%u", &port);
	tunnels_open(f.tunnels, &s, IPPROTO_UDP, addr);
	from_host(&s, "first", 5);
	if (!s.ended)		/* else the second finds out */
		from_host(&s, "second", 6);
	wait_for(&f, s.reset);
	assert_int_equal(s.reset, -ECONNREFUSED);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	a.sin_port = htons((uint16_t)port);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	tunnels_open(f.tunnels, &later, IPPROTO_UDP, addr);
	from_host(&later, "there", 5);
	wait_for(&f, readable(fd));
	close(fd);
	mock_stream_end(&later, 0);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	fixture_stop(&f);
}

/* A server that was there goes away in the middle of a flow. */
static void test_udp_server_goes_away(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 };
	struct sockaddr_in from;
	socklen_t from_len = sizeof(from);
	char addr[64], got[8];
	int fd = server_socket(SOCK_DGRAM, addr);

	fixture_start(&f);
	tunnels_open(f.tunnels, &s, IPPROTO_UDP, addr);
	from_host(&s, "ask", 3);
	wait_for(&f, readable(fd));
	assert_int_equal(recvfrom(fd, got, sizeof(got), 0, (struct sockaddr *)&from, &from_len), 3);
	sendto(fd, "answer", 6, 0, (struct sockaddr *)&from, from_len);
	wait_for(&f, s.messages == 1);
	close(fd);
	assert_int_equal(s.reset, 0);	/* going away says nothing by itself */
	from_host(&s, "ask", 3);
	wait_for(&f, s.reset);
	assert_int_equal(s.reset, -ECONNREFUSED);
	wait_for(&f, tunnels_count(f.tunnels) == 0);
	buf_done(&s.got);
	fixture_stop(&f);
}

/* --- addresses, bounds ---------------------------------------------------- */

static void test_dial_parse(void **state)
{
	static const struct {
		const char *text;
		unsigned addrs;	/* 0: refused */
	} rows[] = {
		{ "127.0.0.1:80", 1 },	  { "0.0.0.0:1", 1 },	   { "[::1]:65535", 1 },
		{ "[::]:80", 2 },	  { "10.1.2.3:00080", 1 }, { "[::ffff:127.0.0.1]:80", 1 },
		{ "", 0 },		  { ":", 0 },		   { "127.0.0.1", 0 },
		{ "127.0.0.1:", 0 },	  { "127.0.0.1:0", 0 },	   { "127.0.0.1:65536", 0 },
		{ "127.0.0.1:99999999999", 0 }, { "127.0.0.1:-1", 0 }, { "127.0.0.1:8 ", 0 },
		{ "localhost:80", 0 },	  { "::1:80", 0 },	   { "[::1:80", 0 },
		{ "[]:80", 0 },		  { "[127.0.0.1]:80", 0 }, { "[fe80::1%eth0]:80", 0 },
		{ "1.2.3:80", 0 },	  { "/run/x.sock", 0 },	   { "[::1]80", 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct dial d;
		int rc = dial_parse(rows[i].text, &d);

		if (rc != (rows[i].addrs ? 0 : -EINVAL) || (rc == 0 && d.len != rows[i].addrs))
			fail_msg("`%s`: %d", rows[i].text, rc);
	}
}

static void test_bad_requests_are_refused(void **state)
{
	struct fixture f;
	struct guest_stream s = { 0 }, t = { 0 };

	fixture_start(&f);
	tunnels_open(f.tunnels, &s, IPPROTO_TCP, "not an address\x1b[2J");
	assert_int_equal(s.refused, -EINVAL);
	tunnels_open(f.tunnels, &t, 99, "127.0.0.1:1");
	assert_int_equal(t.refused, -EPROTONOSUPPORT);
	s.cb.data(s.cb.arg, (const uint8_t *)"late", 4);	/* nobody minds */
	mock_stream_end(&s, -EINVAL);
	mock_stream_end(&t, -EINVAL);
	assert_int_equal(tunnels_count(f.tunnels), 0);
	fixture_stop(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tcp_host_half_closes_first),
		cmocka_unit_test(test_tcp_guest_half_closes_first),
		cmocka_unit_test(test_tcp_rest_is_delivered_after_the_end),
		cmocka_unit_test(test_tcp_host_reset_and_lost_link),
		cmocka_unit_test(test_tcp_killed_agent_resets_its_servers),
		cmocka_unit_test(test_tcp_what_the_kernel_holds_at_the_end_arrives),
		cmocka_unit_test(test_tcp_guest_resets),
		cmocka_unit_test(test_tcp_guest_resets_after_its_end),
		cmocka_unit_test(test_tcp_guest_resets_after_the_hosts_end),
		cmocka_unit_test(test_tcp_both_ends_are_idle),
		cmocka_unit_test(test_tcp_refused),
		cmocka_unit_test(test_tcp_host_is_slow),
		cmocka_unit_test(test_tcp_reads_little_in_a_crowd),
		cmocka_unit_test(test_tcp_server_is_slow),
		cmocka_unit_test(test_tcp_ends_while_connecting),
		cmocka_unit_test(test_tcp_wildcard),
		cmocka_unit_test(test_tcp_next_address_when_one_fails_at_once),
		cmocka_unit_test(test_tcp_next_address_when_one_is_silent),
		cmocka_unit_test(test_tcp_silent_address_again_when_the_next_refuses),
		cmocka_unit_test(test_udp_sizes_both_ways),
		cmocka_unit_test(test_udp_nobody_there),
		cmocka_unit_test(test_udp_server_goes_away),
		cmocka_unit_test(test_dial_parse),
		cmocka_unit_test(test_bad_requests_are_refused),
	};

	return cmocka_run_group_tests_name("tunnel", tests, NULL, NULL);
}
