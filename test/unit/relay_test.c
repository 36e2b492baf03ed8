/* The relay with unix sockets in the vsock's place: all but what a reset from the
 * host looks like, for that is the vsock's own (test/e2e has it). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "test/mock/relay_fx.h"

/* --- one connection --------------------------------------------------------- */

static void echo_and_close(int family)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(family);
	struct relay_hello h;
	uint8_t first[sizeof(h) + 4 + 5] = { [sizeof(h) + 3] = 5 };
	int host, conn;

	if (s.fd < 0) {
		relay_free(r);
		return;
	}
	h = hello_to(&s);
	host = host_connect(r);
	memcpy(first, &h, sizeof(h));
	memcpy(first + sizeof(h) + 4, "hello", 5);
	send_all(host, first, sizeof(first));	/* in one piece, as the host does */
	conn = server_accept(&s);
	expect(conn, "hello");
	send_all(conn, "world", 5);
	expect_reply(host, 0);
	host_expect(host, "world");
	host_end(host);
	expect_end(conn);
	close(conn);
	host_expect_mark(host, RELAY_FRAME_DONE);
	wait_until(relay_get_stats(r).idle == 1);
	close(host);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_echo(void **state)
{
	echo_and_close(AF_INET);
	echo_and_close(AF_INET6);
}

/* "::" of a server that listens on 127.0.0.1 only. */
static void test_relay_wildcard_tries_both_loopbacks(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int host, conn;

	memset(s.ip, 0, sizeof(s.ip));
	conn = connect_through(r, &s, &host);
	expect_reply(host, 0);
	host_say(host, "x", 1);
	expect(conn, "x");
	shutdown(conn, SHUT_WR);	/* an end is one, whatever the first of them said */
	host_expect_mark(host, 0);
	host_say(host, "y", 1);
	expect(conn, "y");
	close(conn);
	close(host);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_reply_does_not_wait_for_a_silent_server(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int host, conn = connect_through(r, &s, &host);

	expect_reply(host, 0);
	close(host);
	close(conn);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_host_ends_first(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int host, conn = connect_through(r, &s, &host);

	host_say(host, "question", 8);
	host_end(host);
	expect(conn, "question");
	expect_end(conn);
	send_all(conn, "answer", 6);
	expect_reply(host, 0);
	host_expect(host, "answer");
	close(conn);
	host_expect_mark(host, RELAY_FRAME_DONE);
	close(host);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_server_ends_first(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int host, conn = connect_through(r, &s, &host);

	shutdown(conn, SHUT_WR);	/* without a byte: the reply goes before the end */
	expect_reply(host, 0);
	host_expect_mark(host, 0);
	host_say(host, "late", 4);
	expect(conn, "late");
	host_end(host);
	expect_end(conn);
	host_expect_mark(host, RELAY_FRAME_DONE);
	close(conn);
	close(host);
	relay_stop(r);
	close(s.fd);
}

/* What is read by looking at it first comes once and in order, whatever its size. */
/* An agent in a process of its own, which relays a few bytes and never returns. */
static void be_killed(const struct server *s)
{
	struct relay *r = relay_start(0);
	struct relay_hello h = hello_to(s);
	int host = host_connect(r);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	send_all(host, &h, sizeof(h));
	host_say(host, "half a tran", 11);
	for (;;)
		pause();
}

/* Half an upload must not look whole. */
static void test_relay_killed_resets_its_servers(void **state)
{
	struct server s = server_start(AF_INET);
	char byte;
	pid_t pid = fork();
	int conn;

	if (pid == 0)
		be_killed(&s);
	conn = server_accept(&s);
	expect(conn, "half a tran");
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(recv_upto(conn, &byte, 1), -ECONNRESET);
	close(conn);
	close(s.fd);
}

/* Both have ended and the relay serves another, while the server has read nothing. */
static void test_relay_what_the_kernel_holds_at_the_end_arrives(void **state)
{
	enum { SIZE = 400000 };
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct relay_hello h = hello_to(&s);
	uint8_t *data = xcalloc(1, SIZE);
	int host, conn = connect_through(r, &s, &host), next;

	shutdown(conn, SHUT_WR);
	expect_reply(host, 0);
	host_expect_mark(host, 0);
	host_say(host, data, SIZE);
	host_end(host);
	host_expect_mark(host, RELAY_FRAME_DONE);
	send_all(host, &h, sizeof(h));
	next = server_accept(&s);
	expect_reply(host, 0);
	assert_int_equal(recv_upto(conn, data, SIZE), SIZE);
	expect_end(conn);
	close(conn);
	close(next);
	close(host);
	free(data);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_small_and_large_messages(void **state)
{
	static const size_t sizes[] = { 1, 7, 2047, 2048, 2049, 1, 1, 4096, 300000, 5, 2048, 2048,
					2048, 1, 65536, 3, 1500, 1500, 1500, 1500 };
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	scoped_free uint8_t *data = xcalloc(1, 300000), *got = xcalloc(1, 300000);
	int host, conn = connect_through(r, &s, &host);
	uint8_t next = 0;

	expect_reply(host, 0);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (size_t k = 0; k < sizes[i]; k++)
			data[k] = next++;
		host_say(host, data, sizes[i]);
		assert_int_equal(recv_upto(conn, got, sizes[i]), sizes[i]);
		assert_memory_equal(got, data, sizes[i]);
	}
	host_say(host, "the last one", 12);
	host_end(host);
	expect(conn, "the last one");
	expect_end(conn);
	send_all(conn, "bye", 3);
	close(conn);
	host_expect(host, "bye");
	host_expect_mark(host, RELAY_FRAME_DONE);
	close(host);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_server_resets(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct linger at_once = { .l_onoff = 1 };
	int host, conn = connect_through(r, &s, &host);

	send_all(conn, "before", 6);
	expect_reply(host, 0);
	setsockopt(conn, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(conn);
	host_expect(host, "before");
	expect_end(host);	/* without a mark: a reset */
	wait_until(relay_get_stats(r).connections == 0);
	close(host);
	relay_stop(r);
	close(s.fd);
}

/* One that closed, and does not just send no more, resets who goes on sending. */
static void test_relay_server_has_closed(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int host, conn = connect_through(r, &s, &host);
	struct pollfd p = { .fd = host, .events = POLLIN };

	send_all(conn, "that is all", 11);
	close(conn);
	expect_reply(host, 0);
	host_expect(host, "that is all");
	host_expect_mark(host, 0);
	for (unsigned i = 0; i < 1000 && poll(&p, 1, 1) == 0; i++)
		host_say(host, "but", 3);	/* the first one meets the server's reset */
	expect_end(host);
	close(host);
	relay_stop(r);
	close(s.fd);
}

/* Nothing is written to it, nor read any more: the reset comes by itself. */
static void test_relay_server_resets_after_its_end(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct linger at_once = { .l_onoff = 1 };

	for (unsigned i = 0; i < 50; i++) {
		int host, conn = connect_through(r, &s, &host);

		expect_reply(host, 0);
		send_all(conn, "bye", 3);
		shutdown(conn, SHUT_WR);
		if (i % 2 == 0) {	/* else all of it at once */
			host_expect(host, "bye");
			host_expect_mark(host, 0);
		}
		setsockopt(conn, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		close(conn);
		if (i % 2) {
			host_expect(host, "bye");
			host_expect_mark(host, 0);
		}
		expect_end(host);
		close(host);
	}
	relay_stop(r);
	close(s.fd);
}

/* A full host does not lose what the server sent before its reset. */
static void test_relay_reset_behind_pending_bytes(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct linger at_once = { .l_onoff = 1 };
	scoped_free uint8_t *data = xcalloc(1, BULK);
	int host, conn = connect_through(r, &s, &host);
	size_t sent = 0, got = 0;
	ssize_t n;

	expect_reply(host, 0);
	for (unsigned quiet = 0; quiet < 20;) {	/* until everything in between is full */
		n = send(conn, data, BULK, MSG_DONTWAIT | MSG_NOSIGNAL);
		sent += n > 0 ? (size_t)n : 0;
		quiet = n > 0 ? 0 : quiet + 1;
		poll(NULL, 0, 1);
	}
	setsockopt(conn, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(conn);
	while ((n = recv_upto(host, data, 65536)) > 0)
		got += (size_t)n;
	assert_int_equal(n, 0);
	assert_true(got >= 128 * 1024 && got <= sent);	/* TCP drops what is unsent, we nothing */
	close(host);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_host_goes_away_while_the_server_sends(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	scoped_free uint8_t *data = xcalloc(1, BULK);
	int host, conn = connect_through(r, &s, &host), code = 0;

	expect_reply(host, 0);
	close(host);
	while (send(conn, data, BULK, MSG_NOSIGNAL) > 0)
		;
	code = errno;
	assert_true(code == ECONNRESET || code == EPIPE);
	close(conn);
	relay_stop(r);
	close(s.fd);
}

static void put_in_front(void *arg, struct dial *d)
{
	const struct server *silent = arg;

	d->addrs[d->len++] = d->addrs[0];
	d->addrs[0].in.sin_port = silent->port;
}

/* It was busy, not gone: those behind it refuse. */
static void test_relay_silent_address_is_tried_again(void **state)
{
	int keep[2], host, conn;
	struct server silent = server_silent(keep), gone = server_start(AF_INET);
	struct relay_options opts = { .dial_more = put_in_front, .arg = &silent };
	struct relay_hello h = hello_to(&gone);
	struct error err = ERROR_NONE;
	struct relay *r;

	close(gone.fd);
	assert_int_equal(relay_new(&opts, &r, &err), 0);
	host = host_connect(r);
	send_all(host, &h, sizeof(h));
	host_say(host, "hello", 5);
	assert_int_equal(poll(&(struct pollfd){ .fd = host, .events = POLLIN }, 1,
			      DIAL_NEXT_MS + 500), 0);
	close(server_accept(&silent));	/* who kept it busy */
	conn = server_accept(&silent);
	expect(conn, "hello");
	expect_reply(host, 0);
	close(conn);
	close(host);
	relay_stop(r);
	close(keep[0]);
	close(keep[1]);
}

/* What one does not take another may; the client's first bytes go there. */
static void test_relay_silent_address_gives_way(void **state)
{
	int keep[2], host, conn;
	struct server silent = server_silent(keep), s = server_start(AF_INET);
	struct relay_options opts = { .dial_more = put_in_front, .arg = &silent };
	struct relay_hello h = hello_to(&s);
	struct error err = ERROR_NONE;
	struct relay *r;

	assert_int_equal(relay_new(&opts, &r, &err), 0);
	host = host_connect(r);
	send_all(host, &h, sizeof(h));
	host_say(host, "hello", 5);
	conn = server_accept(&s);
	expect(conn, "hello");
	expect_reply(host, 0);
	host_end(host);
	close(conn);
	host_expect_mark(host, RELAY_FRAME_DONE);
	close(host);
	relay_stop(r);
	close(keep[0]);
	close(keep[1]);
	close(s.fd);
}

static void test_relay_refused(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct relay_hello h = hello_to(&s);
	uint8_t first[sizeof(h) + 4] = { 0 };
	int host = host_connect(r);

	close(s.fd);
	memcpy(first, &h, sizeof(h));	/* the rest: a client's bytes, which nobody gets */
	send_all(host, first, sizeof(first));
	expect_reply(host, ECONNREFUSED);
	relay_stop(r);
	close(host);
}

/* --- hellos ------------------------------------------------------------------ */

static void test_relay_hello_malformed(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	const struct relay_hello good = hello_to(&s);
	struct relay_hello bad[5] = { good, good, good, good, good };

	bad[0].magic = 0;
	bad[1].version = 1;
	bad[2].proto = 17;
	bad[3].port = 0;
	bad[4].reserved = 1;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		int host = host_connect(r);
		char byte;

		send_all(host, &bad[i], sizeof(bad[i]));
		assert_int_equal(recv_upto(host, &byte, 1), 0);
		close(host);
	}
	relay_stop(r);
	close(s.fd);
}

static void test_relay_hello_in_pieces(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct relay_hello h = hello_to(&s);
	int host = host_connect(r), conn;

	for (size_t i = 0; i < sizeof(h); i++) {
		send_all(host, (uint8_t *)&h + i, 1);
		poll(NULL, 0, 1);
	}
	conn = server_accept(&s);
	expect_reply(host, 0);
	assert_int_equal(relay_get_stats(r).idle, 0);
	close(conn);
	close(host);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_hello_cut_short(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct relay_hello h = hello_to(&s);
	int host = host_connect(r);

	send_all(host, &h, 7);
	close(host);
	relay_stop(r);
	close(s.fd);
}

/* --- bounds ------------------------------------------------------------------- */

/* They end together, and the host gives the first of them to a client at once. */
static void test_relay_all_idle_ones_serve_again(void **state)
{
	enum { N = 400 };
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct relay_hello h = hello_to(&s);
	int hosts[N], conns[N], conn;

	for (unsigned i = 0; i < N; i++) {
		conns[i] = connect_through(r, &s, &hosts[i]);
		expect_reply(hosts[i], 0);
	}
	for (unsigned i = 0; i < N; i++) {
		host_end(hosts[i]);
		close(conns[i]);
	}
	wait_until(relay_get_stats(r).idle == N);
	host_expect_mark(hosts[0], RELAY_FRAME_DONE);
	send_all(hosts[0], &h, sizeof(h));
	conn = server_accept(&s);
	expect_reply(hosts[0], 0);
	close(conn);
	for (unsigned i = 0; i < N; i++)
		close(hosts[i]);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_too_many(void **state)
{
	struct relay *r = relay_start(2);
	struct server s = server_start(AF_INET);
	int hosts[4], conns[2];

	conns[0] = connect_through(r, &s, &hosts[1]);
	hosts[0] = host_connect(r);
	hosts[2] = host_connect(r);	/* the idle one may have a client already */
	expect_end(hosts[2]);
	close(hosts[2]);
	poll(NULL, 0, RELAY_FRESH_MS + 100);
	conns[1] = connect_through(r, &s, &hosts[2]);	/* now it makes room */
	expect_end(hosts[0]);
	hosts[3] = host_connect(r);
	expect_end(hosts[3]);
	assert_int_equal(relay_get_stats(r).connections, 2);
	for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++)
		close(hosts[i]);
	close(conns[0]);
	close(conns[1]);
	relay_stop(r);
	close(s.fd);
}

/* --- bytes ---------------------------------------------------------------------- */

static uint8_t pattern(size_t at)
{
	return (uint8_t)(at * 31 + (at >> 11));
}

/* @total bytes, as they go over the wire; *ret_len of them. */
static uint8_t *make_stream(size_t total, bool framed, size_t *ret_len)
{
	enum { FRAME = 100000 };
	size_t frames = (total + FRAME - 1) / FRAME, at = 0;
	uint8_t *out = xmalloc(total + 4 * (frames + 1));

	for (size_t i = 0; i < total; i++) {
		if (framed && i % FRAME == 0) {
			uint32_t head = htonl((uint32_t)MIN(total - i, (size_t)FRAME));

			memcpy(out + at, &head, sizeof(head));
			at += sizeof(head);
		}
		out[at++] = pattern(i);
	}
	if (framed) {
		memset(out + at, 0, 4);
		at += 4;
	}
	*ret_len = at;
	return out;
}

/* Writes as it can and reads slowly, so that the relay has to keep and hold. */
static void copy_all(int from, int to, size_t total, bool from_host, uint32_t mark)
{
	size_t sent = 0, got = 0, len;
	scoped_free uint8_t *out = make_stream(total, from_host, &len), *in = xmalloc(total);
	uint32_t seen;

	while (got < total) {
		ssize_t n = sent < len ? send(from, out + sent, len - sent,
					      MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

		if (n > 0) {
			sent += (size_t)n;
			if (sent == len && !from_host)
				shutdown(from, SHUT_WR);
			continue;
		}
		wait_fd(to, POLLIN);
		if (from_host)
			n = recv(to, in + got, MIN(total - got, (size_t)50000), 0);
		else
			n = host_recv(to, in + got, MIN(total - got, (size_t)50000), &seen);
		assert_true(n > 0);
		got += (size_t)n;
	}
	if (from_host)
		expect_end(to);
	else
		host_expect_mark(to, mark);
	for (size_t i = 0; i < total; i++)
		assert_int_equal(in[i], pattern(i));
}

static void test_relay_slow_reader_gets_every_byte(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int host, conn = connect_through(r, &s, &host);

	expect_reply(host, 0);
	copy_all(host, conn, 3 * BULK, true, 0);
	copy_all(conn, host, 3 * BULK, false, RELAY_FRAME_DONE);
	close(host);
	close(conn);
	relay_stop(r);
	close(s.fd);
}

static const uint8_t huge_frame[4] = { 1, 0, 0, 0 };	/* RELAY_FRAME_MAX */

/* Nobody reads on one connection; another is as quick as ever. */
static void test_relay_stuck_reader_holds_nobody(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	scoped_free uint8_t *data = xcalloc(1, BULK);
	int stuck, stuck_conn = connect_through(r, &s, &stuck);
	int host, conn = connect_through(r, &s, &host);

	send_all(stuck, &huge_frame, sizeof(huge_frame));
	for (unsigned quiet = 0; quiet < 20; poll(NULL, 0, 1))
		quiet = send(stuck, data, BULK, MSG_DONTWAIT | MSG_NOSIGNAL) > 0 ? 0 : quiet + 1;
	expect_reply(host, 0);
	for (unsigned i = 0; i < 100; i++) {
		host_say(host, "ping", 4);
		expect(conn, "ping");
		send_all(conn, "pong", 4);
		host_expect(host, "pong");
	}
	close(stuck);
	close(host);
	close(stuck_conn);
	close(conn);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_thousand_connections(void **state)
{
	enum { N = 1000 };
	struct rlimit files;
	struct relay *r;
	struct server s = server_start(AF_INET);
	int *hosts = xcalloc(N, sizeof(*hosts)), *conns = xcalloc(N, sizeof(*conns));

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	assert_true(files.rlim_cur > 5 * N);
	r = relay_start(0);
	for (unsigned i = 0; i < N; i++)
		conns[i] = connect_through(r, &s, &hosts[i]);
	for (unsigned i = 0; i < N; i++)
		host_say(hosts[i], &i, sizeof(i));
	for (unsigned i = 0; i < N; i++) {	/* echo; accepted in the order of connecting */
		unsigned got = N;

		assert_int_equal(recv_upto(conns[i], &got, sizeof(got)), sizeof(got));
		send_all(conns[i], &got, sizeof(got));
	}
	for (unsigned i = 0; i < N; i++) {
		unsigned got = N;
		uint32_t mark;

		expect_reply(hosts[i], 0);
		assert_int_equal(host_recv(hosts[i], &got, sizeof(got), &mark), sizeof(got));
		assert_int_equal(got, i);
	}
	assert_int_equal(relay_get_stats(r).connections, N);
	for (unsigned i = 0; i < N; i++) {
		close(hosts[i]);
		close(conns[i]);
	}
	relay_stop(r);
	close(s.fd);
	free(hosts);
	free(conns);
}

static void test_relay_free_while_busy(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	scoped_free uint8_t *data = xcalloc(1, BULK);
	struct relay_hello h = hello_to(&s);
	int host, conn = connect_through(r, &s, &host), idle = host_connect(r);
	char byte;

	send_all(host, &huge_frame, sizeof(huge_frame));
	for (unsigned i = 0; i < 20; i++)
		send(host, data, BULK, MSG_DONTWAIT | MSG_NOSIGNAL);
	send_all(idle, &h, 10);
	relay_free(r);
	while (recv(conn, data, BULK, 0) > 0)	/* half a transfer does not look whole */
		;
	assert_int_equal(errno, ECONNRESET);
	assert_true(recv_upto(idle, &byte, 1) <= 0);
	close(idle);
	close(host);
	close(conn);
	close(s.fd);
}

static int listen_on(struct sockaddr_un *a, unsigned i)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*a = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(a->sun_path + 1, sizeof(a->sun_path) - 1, "lima-relay-%d-%u", (int)getpid(), i);
	assert_int_equal(bind(fd, (struct sockaddr *)a, sizeof(*a)), 0);
	assert_int_equal(listen(fd, 64), 0);
	return fd;
}

/* Through listeners; of unix ones everybody is let in. */
static void test_relay_listeners(void **state)
{
	struct sockaddr_un a[RELAY_VSOCK_PORTS];
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct relay_hello h = hello_to(&s);
	int hosts[2 * RELAY_VSOCK_PORTS], conns[2 * RELAY_VSOCK_PORTS];

	for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
		relay_listen(r, listen_on(&a[i], i));
	for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++) {
		hosts[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		assert_int_equal(connect(hosts[i], (struct sockaddr *)&a[i % ARRAY_SIZE(a)],
					 sizeof(a[0])), 0);
	}
	wait_until(relay_get_stats(r).idle == ARRAY_SIZE(hosts));
	for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++) {
		send_all(hosts[i], &h, sizeof(h));
		conns[i] = server_accept(&s);
		expect_reply(hosts[i], 0);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++) {
		close(hosts[i]);
		close(conns[i]);
	}
	relay_stop(r);
	close(s.fd);
}

static void test_relay_sleeps_when_idle(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int host, conn = connect_through(r, &s, &host);
	struct rusage before, after;

	expect_reply(host, 0);
	poll(NULL, 0, 20);
	getrusage(RUSAGE_SELF, &before);
	poll(NULL, 0, 200);
	getrusage(RUSAGE_SELF, &after);
	assert_true(after.ru_nvcsw - before.ru_nvcsw <= 2);	/* our own poll() */
	close(host);
	close(conn);
	relay_stop(r);
	close(s.fd);
}

/* Once after the last connection, and then it sleeps for good. */
static void test_relay_gives_memory_back_when_quiet(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int other, other_conn = connect_through(r, &s, &other);
	int host, conn = connect_through(r, &s, &host);
	uint64_t until = clock_mono_ms() + RELAY_QUIET_MS + RELAY_QUIET_MS / 2;
	struct rusage before, after;
	char byte = 0;

	expect_reply(host, 0);
	expect_reply(other, 0);
	close(host);
	close(conn);
	while (clock_mono_ms() < until) {	/* another one moves: no time for it */
		host_say(other, &byte, 1);
		assert_int_equal(recv_upto(other_conn, &byte, 1), 1);
		poll(NULL, 0, 20);
	}
	assert_int_equal(relay_get_stats(r).trims, 0);
	until = clock_mono_ms() + DEADLINE_MS;
	while (relay_get_stats(r).trims == 0 && clock_mono_ms() < until)
		poll(NULL, 0, 10);
	assert_int_equal(relay_get_stats(r).trims, 1);
	getrusage(RUSAGE_SELF, &before);
	poll(NULL, 0, RELAY_QUIET_MS + 500);
	getrusage(RUSAGE_SELF, &after);
	assert_true(after.ru_nvcsw - before.ru_nvcsw <= 2);
	assert_int_equal(relay_get_stats(r).trims, 1);
	host_say(other, &byte, 1);		/* the thread's buffer comes anew */
	assert_int_equal(recv_upto(other_conn, &byte, 1), 1);
	close(other);
	close(other_conn);
	relay_stop(r);
	close(s.fd);
}

/* More than the 1,024 that a user has at first. */
static void raise_files(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		return;
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_relay_echo),
		cmocka_unit_test(test_relay_wildcard_tries_both_loopbacks),
		cmocka_unit_test(test_relay_reply_does_not_wait_for_a_silent_server),
		cmocka_unit_test(test_relay_host_ends_first),
		cmocka_unit_test(test_relay_server_ends_first),
		cmocka_unit_test(test_relay_killed_resets_its_servers),
		cmocka_unit_test(test_relay_what_the_kernel_holds_at_the_end_arrives),
		cmocka_unit_test(test_relay_small_and_large_messages),
		cmocka_unit_test(test_relay_server_resets),
		cmocka_unit_test(test_relay_server_has_closed),
		cmocka_unit_test(test_relay_server_resets_after_its_end),
		cmocka_unit_test(test_relay_reset_behind_pending_bytes),
		cmocka_unit_test(test_relay_host_goes_away_while_the_server_sends),
		cmocka_unit_test(test_relay_silent_address_gives_way),
		cmocka_unit_test(test_relay_silent_address_is_tried_again),
		cmocka_unit_test(test_relay_refused),
		cmocka_unit_test(test_relay_hello_malformed),
		cmocka_unit_test(test_relay_hello_in_pieces),
		cmocka_unit_test(test_relay_hello_cut_short),
		cmocka_unit_test(test_relay_all_idle_ones_serve_again),
		cmocka_unit_test(test_relay_too_many),
		cmocka_unit_test(test_relay_slow_reader_gets_every_byte),
		cmocka_unit_test(test_relay_stuck_reader_holds_nobody),
		cmocka_unit_test(test_relay_thousand_connections),
		cmocka_unit_test(test_relay_free_while_busy),
		cmocka_unit_test(test_relay_listeners),
		cmocka_unit_test(test_relay_sleeps_when_idle),
		cmocka_unit_test(test_relay_gives_memory_back_when_quiet),
	};

	raise_files();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
