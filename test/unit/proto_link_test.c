/* The handshake on a byte channel with a memory: hosts and agents come and go,
 * and a new session never sees a byte of an old one. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "proto/link.h"
#include "proto/link_guest.h"
#include "proto/link_host.h"
#include "test/mock/byte_port.h"
#include "test/mock/loop_wait.h"
#include "test/mock/proto_world.h"

static const uint8_t secret[LINK_MAGIC_SIZE] = "secret-of-one-vm";
static const uint64_t MIB = 1 << 20;

/* --- the search ---------------------------------------------------------------- */

static void test_link_find(void **state)
{
	uint8_t data[200];
	size_t at;

	memset(data, 's', sizeof(data));	/* the magic's first byte */
	assert_false(link_find(secret, data, 0, &at));
	assert_int_equal(at, 0);
	assert_false(link_find(secret, data, 100, &at));
	assert_int_equal(at, 99);
	memcpy(data + 100, secret, LINK_MAGIC_SIZE);
	for (size_t len = 101; len < 100 + LINK_FRAME_SIZE; len++) {
		assert_false(link_find(secret, data, len, &at));
		assert_int_equal(at, 100);	/* the rest may come */
	}
	assert_true(link_find(secret, data, 100 + LINK_FRAME_SIZE, &at));
	assert_int_equal(at, 100);
	data[110] ^= 1;
	assert_false(link_find(secret, data, 150, &at));
	assert_int_equal(at, 149);
}

/* --- the guest's end, byte by byte ------------------------------------------------ */

struct ends {
	struct loop loop;
	uv_timer_t tick;
	struct link_guest *link;
	int port;		/* the test's end of the port */
	int session;		/* the last session's socket, -1: none */
	unsigned sessions;
	bool closed;
};

static void on_tick(uv_timer_t *t)
{
}

static void on_session(void *arg, int fd)
{
	struct ends *e = arg;

	if (e->session >= 0)
		close(e->session);
	e->session = fd;
	e->sessions++;
}

static void set_true(void *arg)
{
	*(bool *)arg = true;
}

static struct ends *ends_new(void)
{
	struct ends *e = xnew(struct ends);
	struct error err = { 0 };

	loop_init(&e->loop, &err);
	uv_timer_init(&e->loop.uv, &e->tick);
	uv_timer_start(&e->tick, on_tick, 5, 5);
	e->session = -1;
	return e;
}

static int ends_up(void **state)
{
	struct ends *e = ends_new();
	struct error err = { 0 };
	int fds[2];

	world_socketpair(fds);
	e->port = fds[0];
	assert_int_equal(link_guest_new(&e->loop, fds[1], secret, on_session, e, &e->link, &err),
			 0);
	*state = e;
	return 0;
}

/* The port is a device with a name, which the guest can close and open again. */
static int device_up(void **state)
{
	struct ends *e = ends_new();
	struct error err = { 0 };
	struct termios raw;
	char name[64];
	int far;

	assert_int_equal(openpty(&e->port, &far, name, NULL, NULL), 0);
	tcgetattr(far, &raw);
	cfmakeraw(&raw);
	tcsetattr(far, TCSANOW, &raw);
	fcntl(e->port, F_SETFL, O_NONBLOCK);
	assert_int_equal(link_guest_open(&e->loop, name, secret, on_session, e, &e->link, &err), 0);
	close(far);
	*state = e;
	return 0;
}

static int ends_down(void **state)
{
	struct ends *e = *state;

	if (e->session >= 0)
		close(e->session);
	link_guest_close(e->link, set_true, &e->closed);
	while (!e->closed)
		uv_run(&e->loop.uv, UV_RUN_ONCE);
	close(e->port);
	uv_close((uv_handle_t *)&e->tick, NULL);
	assert_int_equal(loop_done(&e->loop), 0);
	free(e);
	return 0;
}

static void turns(struct ends *e)
{
	for (int i = 0; i < 6; i++)
		uv_run(&e->loop.uv, UV_RUN_NOWAIT);
}

static void make_syn(uint8_t frame[LINK_FRAME_SIZE], uint8_t nonce)
{
	memcpy(frame, secret, LINK_MAGIC_SIZE);
	memset(frame + LINK_MAGIC_SIZE, nonce, LINK_NONCE_SIZE);
}

static void expect_ack(struct ends *e, uint8_t nonce)
{
	uint8_t got[LINK_FRAME_SIZE], ack[LINK_FRAME_SIZE];

	link_ack_magic(secret, ack);
	memset(ack + LINK_MAGIC_SIZE, nonce, LINK_NONCE_SIZE);
	assert_int_equal(recv(e->port, got, sizeof(got), 0), sizeof(got));
	assert_memory_equal(got, ack, sizeof(ack));
}

static void expect_session_bytes(struct ends *e, const char *text)
{
	char got[256];
	ssize_t n = recv(e->session, got, sizeof(got), 0);

	assert_int_equal(n, strlen(text));
	assert_memory_equal(got, text, strlen(text));
}

static void send_port(struct ends *e, const void *data, size_t len)
{
	assert_int_equal(send(e->port, data, len, MSG_NOSIGNAL), len);
	turns(e);
}

static void test_link_guest_ignores_all_until_syn(void **state)
{
	struct ends *e = *state;
	uint8_t noise[3000];

	memset(noise, 0x5a, sizeof(noise));
	send_port(e, noise, sizeof(noise));
	assert_int_equal(e->sessions, 0);
}

/* SYN in one piece, behind garbage, and cut at every place. */
static void test_link_guest_finds_syn_cut_anywhere(void **state)
{
	struct ends *e = *state;
	uint8_t bytes[5 + LINK_FRAME_SIZE + 5] = "stale";

	make_syn(bytes + 5, 9);
	memcpy(bytes + 5 + LINK_FRAME_SIZE, "fresh", 5);
	for (size_t cut = 1; cut < sizeof(bytes); cut++) {
		send_port(e, bytes, cut);
		send_port(e, bytes + cut, sizeof(bytes) - cut);
		assert_int_equal(e->sessions, cut);
		expect_ack(e, 9);
		expect_session_bytes(e, "fresh");
	}
	for (size_t i = 0; i < sizeof(bytes); i++)
		send_port(e, bytes + i, 1);
	assert_int_equal(e->sessions, sizeof(bytes));
	expect_ack(e, 9);
	expect_session_bytes(e, "fresh");
}

/* Data that looks like the beginning of a SYN must not wait for more. */
static void test_link_guest_does_not_hold_short_lookalikes(void **state)
{
	struct ends *e = *state;
	uint8_t syn[LINK_FRAME_SIZE];

	make_syn(syn, 1);
	send_port(e, syn, sizeof(syn));
	expect_ack(e, 1);
	send_port(e, "end with s", 10);	/* the magic's first letter */
	expect_session_bytes(e, "end with s");
	send_port(e, "ecret-of-one", 12);	/* goes on like it, then not */
	send_port(e, "-no", 3);
	expect_session_bytes(e, "ecret-of-one-no");
	send_port(e, "secr", 4);	/* long enough to be held, ends otherwise */
	send_port(e, "x", 1);
	expect_session_bytes(e, "secrx");
}

static void test_link_guest_new_syn_ends_old_session(void **state)
{
	struct ends *e = *state;
	uint8_t two[2 * LINK_FRAME_SIZE];
	char c;
	int old;

	make_syn(two, 1);
	make_syn(two + LINK_FRAME_SIZE, 2);
	send_port(e, two, LINK_FRAME_SIZE);
	expect_ack(e, 1);
	old = dup(e->session);
	send_port(e, two + LINK_FRAME_SIZE, LINK_FRAME_SIZE);
	expect_ack(e, 2);
	assert_int_equal(recv(old, &c, 1, 0), 0);	/* end of file */
	close(old);
	/* SYNs that piled up: each a session, the last one stays */
	send_port(e, two, sizeof(two));
	assert_int_equal(e->sessions, 4);
	assert_int_equal(send(e->session, "hello", 5, 0), 5);
	turns(e);
	expect_ack(e, 2);
	assert_int_equal(recv(e->port, two, sizeof(two), 0), 5);
	assert_memory_equal(two, "hello", 5);
}

/* Neither end takes anything: no more than the buffers is read, all arrives. */
static void test_link_guest_keeps_all_when_ends_stall(void **state)
{
	struct ends *e = *state;
	uint8_t syn[LINK_FRAME_SIZE], chunk[65536];
	uint64_t sent = 0, got = 0, total = 20 * MIB;
	bool corrupt = false;
	unsigned turn = 0;

	make_syn(syn, 1);
	send_port(e, syn, sizeof(syn));
	expect_ack(e, 1);
	while (got < total) {
		size_t want = (size_t)MIN(total - sent, (uint64_t)sizeof(chunk));
		scoped_free uint8_t *data = pattern_make(sent, want);
		ssize_t n = want ? send(e->port, data, want, MSG_DONTWAIT) : 0;

		sent += n > 0 ? (uint64_t)n : 0;
		uv_run(&e->loop.uv, UV_RUN_NOWAIT);
		if (++turn % 7)		/* a slow reader */
			continue;
		n = recv(e->session, chunk, sizeof(chunk), MSG_DONTWAIT);
		if (n > 0) {
			corrupt |= !pattern_matches(got, chunk, (size_t)n);
			got += (uint64_t)n;
		}
		assert_true(sent - got < 2 * MIB);
	}
	assert_false(corrupt);
}

/* Without a turn of the loop, as much as the port takes; the rest as ever. */
static void test_link_guest_flush(void **state)
{
	struct ends *e = *state;
	uint8_t syn[LINK_FRAME_SIZE], chunk[65536];
	uint64_t sent = 0, got = 0;
	bool corrupt = false;

	link_guest_flush(e->link);	/* no session: nothing to do */
	make_syn(syn, 1);
	send_port(e, syn, sizeof(syn));
	expect_ack(e, 1);
	link_guest_flush(e->link);	/* nothing written */
	assert_int_equal(send(e->session, "event", 5, 0), 5);
	link_guest_flush(e->link);
	assert_int_equal(recv(e->port, chunk, sizeof(chunk), MSG_DONTWAIT), 5);
	assert_memory_equal(chunk, "event", 5);
	while (sent < 2 * MIB) {	/* more than sockets and buffers hold */
		scoped_free uint8_t *data = pattern_make(sent, 4096);
		ssize_t n = send(e->session, data, 4096, MSG_DONTWAIT);

		if (n < 0)
			break;
		sent += (uint64_t)n;
		link_guest_flush(e->link);
	}
	while (got < sent) {
		ssize_t n = recv(e->port, chunk, sizeof(chunk), MSG_DONTWAIT);

		uv_run(&e->loop.uv, UV_RUN_ONCE);
		if (n > 0) {
			corrupt |= !pattern_matches(got, chunk, (size_t)n);
			got += (uint64_t)n;
		}
	}
	assert_false(corrupt);
}

/* The host's end goes for good: the session ends, and nothing spins. */
static void test_link_guest_hangup_is_quiet(void **state)
{
	struct ends *e = *state;
	uint8_t syn[LINK_FRAME_SIZE];
	uint64_t before;
	char c;

	make_syn(syn, 1);
	send_port(e, syn, sizeof(syn));
	expect_ack(e, 1);
	shutdown(e->port, SHUT_RDWR);
	turns(e);
	assert_int_equal(recv(e->session, &c, 1, 0), 0);
	before = clock_mono_ms();
	uv_timer_stop(&e->tick);
	uv_timer_start(&e->tick, on_tick, 300, 0);
	for (unsigned n = 0; clock_mono_ms() - before < 250; n++) {
		assert_true(n < 10);
		uv_run(&e->loop.uv, UV_RUN_ONCE);
	}
	uv_timer_start(&e->tick, on_tick, 5, 5);
}

/* --- a session that ends here: the host has to hear of it --------------------------- */

/* What QEMU tells the host of: VSERPORT_CHANGE. */
static bool port_closed(struct ends *e)
{
	struct pollfd p = { .fd = e->port, .events = POLLIN };

	return poll(&p, 1, 0) > 0 && p.revents & POLLHUP;
}

static bool port_says(struct ends *e)
{
	struct pollfd p = { .fd = e->port, .events = POLLIN };

	return poll(&p, 1, 0) > 0 && p.revents & POLLIN;
}

static void begin_on_device(struct ends *e, uint8_t nonce)
{
	unsigned sessions = e->sessions;
	uint8_t syn[LINK_FRAME_SIZE];

	make_syn(syn, nonce);
	assert_int_equal(write(e->port, syn, sizeof(syn)), sizeof(syn));
	loop_wait(&e->loop, e->sessions == sessions + 1 && port_says(e));
	assert_int_equal(read(e->port, syn, sizeof(syn)), sizeof(syn));
}

/* The host is told, and has a session again at once when it connects. */
static void expect_anew(struct ends *e, uint64_t since_ms)
{
	loop_wait(&e->loop, port_closed(e));
	loop_wait(&e->loop, !port_closed(e));
	assert_true(clock_mono_ms() - since_ms > 1000);	/* less is not told (rate limit) */
	begin_on_device(e, 2);
	assert_int_equal(send(e->session, "hello", 5, 0), 5);
	loop_wait(&e->loop, port_says(e));
}

static void test_link_guest_tells_that_grpc_ended_the_session(void **state)
{
	struct ends *e = *state;
	uint64_t start = clock_mono_ms();

	begin_on_device(e, 1);
	close(e->session);
	e->session = -1;
	expect_anew(e, start);
}

/* As many as go in with nobody reading the session. */
static uint64_t fill(struct ends *e)
{
	uint64_t sent = 0;

	for (unsigned quiet = 0; quiet < 20; quiet++) {
		scoped_free uint8_t *data = pattern_make(sent, 4096);
		ssize_t n = write(e->port, data, 4096);

		if (n > 0) {
			sent += (uint64_t)n;
			quiet = 0;
		}
		uv_run(&e->loop.uv, n > 0 ? UV_RUN_NOWAIT : UV_RUN_ONCE);
	}
	return sent;
}

static void test_link_guest_tells_that_grpc_is_stuck(void **state)
{
	struct ends *e = *state;
	uint64_t start = clock_mono_ms();

	link_guest_set_patience(e->link, 300);
	begin_on_device(e, 1);
	fill(e);
	expect_anew(e, start);
}

/* It was the loop that stood still, while gRPC took all there was. */
static void test_link_guest_that_stalls_blames_nobody(void **state)
{
	enum { PATIENCE_MS = 1000 };
	struct ends *e = *state;
	uint8_t syn[LINK_FRAME_SIZE], chunk[65536];
	uint64_t sent, got = 0, until;
	bool corrupt = false;
	ssize_t n;

	link_guest_set_patience(e->link, PATIENCE_MS);
	make_syn(syn, 1);
	send_port(e, syn, sizeof(syn));
	expect_ack(e, 1);
	sent = fill(e);
	until = clock_mono_ms() + PATIENCE_MS + 100;	/* bytes moved in the first one */
	loop_wait(&e->loop, clock_mono_ms() > until);
	usleep(PATIENCE_MS * 1000);
	loop_wait(&e->loop, ({
		n = recv(e->session, chunk, sizeof(chunk), MSG_DONTWAIT);
		assert_int_not_equal(n, 0);
		if (n > 0) {
			corrupt |= !pattern_matches(got, chunk, (size_t)n);
			got += (uint64_t)n;
		}
		got == sent;
	}));
	assert_false(corrupt);
}

/* --- both ends, with gRPC on top ---------------------------------------------------- */

struct channel {
	struct world w;
	struct byte_port *port;
};

static void start_agent(struct channel *c)
{
	struct error err = { 0 };

	world_start_server(&c->w);
	assert_int_equal(guest_server_serve_fd(c->w.server, byte_port_guest(c->port), secret, &err),
			 0);
}

static int channel_up_on(void **state, bool pty)
{
	struct channel *c = xnew(struct channel);

	world_init(&c->w);
	c->port = byte_port_new(pty);
	start_agent(c);
	*state = c;
	return 0;
}

static int channel_up(void **state)
{
	return channel_up_on(state, false);
}

static int channel_up_pty(void **state)
{
	return channel_up_on(state, true);
}

static int channel_down(void **state)
{
	struct channel *c = *state;

	world_done(&c->w);
	byte_port_free(c->port);
	free(c);
	return 0;
}

static void connect_host(struct channel *c)
{
	world_start_client(&c->w, byte_port_connect(c->port), secret, 20000);
	WORLD_WAIT(&c->w, c->w.lost || c->w.snapshots == 1);
	if (c->w.lost)
		fail_msg("lost: %s", c->w.lost_why.msg);
}

static void echo_once(struct channel *c, uint64_t bytes)
{
	struct app a = { .to_send = bytes, .eof_when_sent = true, .check = true };

	app_start(&a, &c->w, IPPROTO_TCP, FAR_ECHO);
	WORLD_WAIT(&c->w, a.closed);
	assert_int_equal(a.why.code, 0);
	assert_int_equal(a.received, bytes);
	assert_false(a.corrupt);
}

static void test_link_echo(void **state)
{
	struct channel *c = *state;

	connect_host(c);
	echo_once(c, 4 * MIB);
}

/* Killed in the middle of transfers in both directions, 50 times, with garbage
 * put into the channel on top. */
static void test_link_resync_50_times(void **state)
{
	struct channel *c = *state;
	struct app down = { 0 }, up = { 0 };
	uint8_t garbage[30000];
	uint32_t x = 5;

	c->w.source_bytes = 1024 * MIB;
	for (int round = 0; round < 50; round++) {
		for (size_t i = 0; i < sizeof(garbage); i++)
			garbage[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
		memcpy(garbage + 100, secret, LINK_MAGIC_SIZE - (size_t)(round % 16));
		byte_port_stale_to_host(c->port, garbage, (size_t)round * 600);
		connect_host(c);
		echo_once(c, 10000);
		down = (struct app){ .check = true };
		up = (struct app){ .to_send = 1024 * MIB };
		app_start(&down, &c->w, IPPROTO_TCP, FAR_SOURCE);
		app_start(&up, &c->w, IPPROTO_TCP, FAR_SINK);
		WORLD_WAIT(&c->w, down.received > 300000 && up.sent > 300000);
		assert_false(down.corrupt);
		world_stop_client(&c->w);
		if (round % 3 == 0)
			byte_port_stale_to_guest(c->port, garbage, sizeof(garbage));
	}
}

/* The agent is not up yet, and what the host writes meanwhile is thrown away:
 * the handshake comes through once it listens. */
static void test_link_syn_is_repeated(void **state)
{
	struct channel *c = *state;
	uint64_t start = clock_mono_ms();

	byte_port_deaf(c->port, true);
	world_start_client(&c->w, byte_port_connect(c->port), secret, 20000);
	WORLD_WAIT(&c->w, clock_mono_ms() - start > 300);
	byte_port_deaf(c->port, false);
	assert_false(c->w.ready);
	WORLD_WAIT(&c->w, c->w.snapshots == 1);
	assert_in_range(clock_mono_ms() - start, 800, 6000);
}

static void test_link_kick_is_at_once(void **state)
{
	struct channel *c = *state;
	uint64_t start = clock_mono_ms();

	byte_port_deaf(c->port, true);
	world_start_client(&c->w, byte_port_connect(c->port), secret, 20000);
	WORLD_WAIT(&c->w, clock_mono_ms() - start > 1300);	/* the next would be at 3 s */
	byte_port_deaf(c->port, false);
	usleep(20000);		/* the thread of the port has seen it */
	guest_client_kick(c->w.client);
	WORLD_WAIT(&c->w, c->w.snapshots == 1);
	assert_true(clock_mono_ms() - start < 2800);
	guest_client_kick(c->w.client);	/* no-op now */
	echo_once(c, 1000);
}

/* The agent restarts, the host's connection stays: the old client learns it, and
 * a new one on the same channel works. */
static void test_link_agent_restarts(void **state)
{
	struct channel *c = *state;

	for (int round = 0; round < 5; round++) {
		connect_host(c);
		echo_once(c, 100000);
		world_stop_server(&c->w);	/* an orderly end says goodbye on the port */
		WORLD_WAIT_MS(&c->w, c->w.lost, 2000);
		world_stop_client(&c->w);
		start_agent(c);
	}
}

/* A fast reconnect: the old host's descriptor goes in the same moment. */
static void test_link_takeover_inside_a_session(void **state)
{
	struct channel *c = *state;
	struct world second;

	connect_host(c);
	world_init(&second);
	world_start_client(&second, byte_port_connect(c->port), secret, 20000);
	WORLD_WAIT(&c->w, ({ uv_run(&second.loop.uv, UV_RUN_NOWAIT); second.snapshots == 1; }));
	WORLD_WAIT(&c->w, c->w.lost);
	assert_false(second.lost);
	world_done(&second);
}

/* Connected and idle: neither side burns time. */
static void test_link_idle_is_idle(void **state)
{
	struct channel *c = *state;
	struct rusage before, after;
	uint64_t start, spent_us;
	unsigned turns_taken = 0;

	connect_host(c);
	echo_once(c, 1000);
	uv_timer_stop(&c->w.tick);
	uv_timer_start(&c->w.tick, on_tick, 2000, 0);
	getrusage(RUSAGE_SELF, &before);
	start = clock_mono_ms();
	while (clock_mono_ms() - start < 1900) {
		uv_run(&c->w.loop.uv, UV_RUN_ONCE);
		turns_taken++;
	}
	getrusage(RUSAGE_SELF, &after);
	spent_us = (uint64_t)(after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1000000 +
		   (uint64_t)(after.ru_utime.tv_usec - before.ru_utime.tv_usec) +
		   (uint64_t)(after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1000000 +
		   (uint64_t)(after.ru_stime.tv_usec - before.ru_stime.tv_usec);
	print_message("idle: %u turns, %llu us, %ld switches\n", turns_taken,
		      (unsigned long long)spent_us, after.ru_nvcsw - before.ru_nvcsw);
	assert_true(turns_taken <= 4);
	assert_true(spent_us < 50000);
	uv_timer_start(&c->w.tick, on_tick, 20, 20);
}

static void test_link_host_times_out(void **state)
{
	struct world w;
	int fds[2];

	world_init(&w);
	world_socketpair(fds);
	world_start_client(&w, fds[1], secret, 200);
	WORLD_WAIT(&w, w.lost);
	assert_int_equal(w.lost_why.code, -ETIMEDOUT);
	world_stop_client(&w);
	close(fds[0]);
	world_done(&w);
}

#define ENDS(f) cmocka_unit_test_setup_teardown(f, ends_up, ends_down)
#define DEVICE(f) cmocka_unit_test_setup_teardown(f, device_up, ends_down)
#define CHANNEL(f) cmocka_unit_test_setup_teardown(f, channel_up, channel_down)
#define PTY(f) { #f "_pty", f, channel_up_pty, channel_down, NULL }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_link_find),
		ENDS(test_link_guest_ignores_all_until_syn),
		ENDS(test_link_guest_finds_syn_cut_anywhere),
		ENDS(test_link_guest_does_not_hold_short_lookalikes),
		ENDS(test_link_guest_new_syn_ends_old_session),
		ENDS(test_link_guest_keeps_all_when_ends_stall),
		ENDS(test_link_guest_flush),
		ENDS(test_link_guest_hangup_is_quiet),
		DEVICE(test_link_guest_tells_that_grpc_ended_the_session),
		DEVICE(test_link_guest_tells_that_grpc_is_stuck),
		ENDS(test_link_guest_that_stalls_blames_nobody),
		CHANNEL(test_link_echo),
		PTY(test_link_echo),
		CHANNEL(test_link_resync_50_times),
		PTY(test_link_resync_50_times),
		CHANNEL(test_link_syn_is_repeated),
		CHANNEL(test_link_kick_is_at_once),
		CHANNEL(test_link_agent_restarts),
		CHANNEL(test_link_takeover_inside_a_session),
		CHANNEL(test_link_idle_is_idle),
		cmocka_unit_test(test_link_host_times_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
