/* Frames, and one client after another on a connection of the relay's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "test/mock/relay_fx.h"

static void test_relay_serves_the_next_client(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	struct relay_hello h = hello_to(&s);
	int host, conn = connect_through(r, &s, &host);

	for (unsigned i = 0; i < 5; i++) {
		if (i) {
			send_all(host, &h, sizeof(h));
			conn = server_accept(&s);
		}
		host_say(host, "question", 8);
		expect(conn, "question");
		send_all(conn, "answer", 6);
		expect_reply(host, 0);
		host_expect(host, "answer");
		if (i % 2) {
			close(conn);
			host_expect_mark(host, 0);
			host_end(host);
		} else {
			host_end(host);
			expect_end(conn);
			close(conn);
		}
		host_expect_mark(host, RELAY_FRAME_DONE);
	}
	assert_int_equal(relay_get_stats(r).relayed, 5);
	assert_int_equal(relay_get_stats(r).accepted, 1);
	wait_until(relay_get_stats(r).idle == 1);
	close(host);
	relay_stop(r);
	close(s.fd);
}

/* Nobody is served behind bytes that a server has not taken yet. */
static void test_relay_is_done_when_the_server_has_it_all(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	scoped_free uint8_t *data = xcalloc(1, 1 << 20);
	int host, conn = connect_through(r, &s, &host);
	struct pollfd p = { host, POLLIN, 0 };
	size_t sent = 0, got = 0;
	uint32_t head;
	ssize_t n;

	expect_reply(host, 0);
	shutdown(conn, SHUT_WR);
	host_expect_mark(host, 0);
	for (unsigned quiet = 0; quiet < 20; poll(NULL, 0, 1)) {
		head = htonl(1000);
		memcpy(data, &head, sizeof(head));
		for (quiet++; sent < 16 << 20; quiet = 0, sent += 1000)
			if (send(host, data, 1004, MSG_DONTWAIT | MSG_NOSIGNAL) != 1004)
				break;
	}
	assert_int_equal(poll(&p, 1, 50), 0);
	while (got < sent) {
		n = recv(conn, data, 1 << 20, 0);
		assert_true(n > 0);
		got += (size_t)n;
	}
	host_end(host);
	expect_end(conn);
	host_expect_mark(host, RELAY_FRAME_DONE);
	close(conn);
	close(host);
	relay_stop(r);
	close(s.fd);
}

static void test_relay_frames_in_pieces(void **state)
{
	static const uint8_t wire[] = { 0, 0, 0, 2, 'a', 'b', 0, 0, 0, 1, 'c', 0, 0, 0, 0 };
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int host, conn = connect_through(r, &s, &host);

	for (size_t i = 0; i < sizeof(wire); i++) {
		send_all(host, wire + i, 1);
		poll(NULL, 0, 1);
	}
	expect(conn, "abc");
	expect_end(conn);
	close(conn);
	expect_reply(host, 0);
	host_expect_mark(host, RELAY_FRAME_DONE);
	close(host);
	relay_stop(r);
	close(s.fd);
}

/* The end of the vsock behind a message that was only looked at. */
static void test_relay_host_vanishes_behind_a_small_message(void **state)
{
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	char byte;

	for (unsigned messages = 1; messages < 200; messages += 66) {
		int host, conn = connect_through(r, &s, &host);

		expect_reply(host, 0);
		for (unsigned i = 0; i < messages; i++) {
			host_say(host, "x", 1);
			expect(conn, "x");
		}
		close(host);
		assert_int_equal(recv_upto(conn, &byte, 1), -ECONNRESET);
		close(conn);
	}
	relay_stop(r);
	close(s.fd);
}

static void test_relay_what_no_host_says(void **state)
{
	static const uint8_t too_long[] = { 1, 0, 0, 1 }, after_end[] = { 0, 0, 0, 0, 'L', 'R' };
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	int host, conn = connect_through(r, &s, &host);
	char byte;

	expect_reply(host, 0);
	send_all(host, too_long, sizeof(too_long));
	expect_end(host);
	assert_int_equal(recv_upto(conn, &byte, 1), -ECONNRESET);
	close(conn);
	close(host);
	conn = connect_through(r, &s, &host);
	expect_reply(host, 0);
	send_all(host, after_end, sizeof(after_end));	/* the server is not done */
	expect_end(host);
	close(conn);
	close(host);
	relay_stop(r);
	close(s.fd);
}

/* --- a guest that is short of memory ------------------------------------------------ */

static atomic_int piece_max, pieces_left, shortages;	/* 0: as much as one likes */

ssize_t __real_send(int fd, const void *data, size_t len, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t len, int flags);

/* As a vsock's, whose part unix sockets play here: of the relay's end. */
ssize_t __wrap_send(int fd, const void *data, size_t len, int flags)
{
	int domain = 0;
	socklen_t size = sizeof(domain);

	getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
	if (piece_max && domain == AF_UNIX && flags & MSG_DONTWAIT) {
		if (len > (size_t)piece_max || pieces_left <= 0) {
			atomic_fetch_add(&shortages, 1);
			errno = ENOMEM;
			return -1;
		}
		atomic_fetch_sub(&pieces_left, 1);
	}
	return __real_send(fd, data, len, flags);
}

/* Not a page: what was written stays written, and the rest goes when there is one. */
static void test_relay_waits_for_memory(void **state)
{
	enum { SIZE = 300000 };
	struct relay *r = relay_start(0);
	struct server s = server_start(AF_INET);
	scoped_free uint8_t *data = xcalloc(1, SIZE), *got = xcalloc(1, SIZE);
	int host, conn = connect_through(r, &s, &host);
	uint32_t mark;

	expect_reply(host, 0);
	for (size_t i = 0; i < SIZE; i++)
		data[i] = (uint8_t)(i * 31 + (i >> 11));
	pieces_left = 3;
	piece_max = 4096;
	send_all(conn, data, SIZE);
	wait_until(shortages >= 5);	/* it was tried again, more than once */
	pieces_left = 1;		/* now and then there is one */
	wait_until(pieces_left == 0);
	piece_max = 0;
	assert_int_equal(host_recv(host, got, SIZE, &mark), SIZE);
	assert_memory_equal(got, data, SIZE);
	host_end(host);
	expect_end(conn);
	close(conn);
	host_expect_mark(host, RELAY_FRAME_DONE);
	close(host);
	relay_stop(r);
	close(s.fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_relay_serves_the_next_client),
		cmocka_unit_test(test_relay_is_done_when_the_server_has_it_all),
		cmocka_unit_test(test_relay_frames_in_pieces),
		cmocka_unit_test(test_relay_host_vanishes_behind_a_small_message),
		cmocka_unit_test(test_relay_what_no_host_says),
		cmocka_unit_test(test_relay_waits_for_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
