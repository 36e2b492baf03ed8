/* Datagrams: real client sockets, a mock guest that echoes. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "test/mock/forward.h"

enum { UDP_LARGEST = 65507 }; /* 65535 - 20 (IPv4) - 8 (UDP) */

static uint16_t start(struct fx *fx, const struct forward_limits *limits)
{
	uint16_t port = fx_free_port();

	fx_start(fx, NULL, 0, limits);
	fx_add(fx, IPPROTO_UDP, "0.0.0.0", port);
	assert_int_equal(fx_count_events(fx, "forwarding udp"), 1);
	return port;
}

static void test_udp_datagrams_stay_whole(void **state)
{
	static const size_t sizes[] = { 1, 0, 1472, 1473, 9000, 32768, 32769, UDP_LARGEST, 0, 5 };
	scoped_free uint8_t *data = xmalloc(UDP_LARGEST);
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int fd = fx_connect(SOCK_DGRAM, "127.0.0.1", port);

	for (size_t i = 0; i < UDP_LARGEST; i++)
		data[i] = (uint8_t)(i * 17 + i / 256);
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		fx_assert_echo(&fx, fd, data, sizes[i]);
	assert_int_equal(fx.lane.opens, 1);
	close(fd);
	fx_stop(&fx);
}

static void test_udp_ipv6_localhost(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int fd = fx_connect(SOCK_DGRAM, "::1", port);

	if (fd >= 0) { /* else this host has no IPv6 */
		fx_assert_echo(&fx, fd, "hello", 5);
		close(fd);
	}
	fx_stop(&fx);
}

static void test_udp_three_hundred_clients_get_their_own_answers(void **state)
{
	enum { CLIENTS = 300, ROUNDS = 3 };
	struct rlimit files;
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int fds[CLIENTS];
	char out[32], in[32];

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = MIN(files.rlim_max, (rlim_t)4096);
	setrlimit(RLIMIT_NOFILE, &files);
	for (int i = 0; i < CLIENTS; i++)
		assert_true((fds[i] = fx_connect(SOCK_DGRAM, "127.0.0.1", port)) >= 0);
	for (int r = 0; r < ROUNDS; r++) {
		for (int i = 0; i < CLIENTS; i++) {
			int n = snprintf(out, sizeof(out), "round %d client %d", r, i);

			assert_int_equal(send(fds[i], out, (size_t)n, 0), n);
			if (i % 50 == 49) /* the host socket's buffer is not endless */
				fx_turn(&fx, 1);
		}
		for (int i = 0; i < CLIENTS; i++) {
			int n = snprintf(out, sizeof(out), "round %d client %d", r, i);

			assert_int_equal(fx_receive(&fx, fds[i], in, sizeof(in)), n);
			assert_memory_equal(in, out, (size_t)n);
		}
	}
	assert_int_equal(fx.lane.opens, CLIENTS);
	for (int i = 0; i < CLIENTS; i++)
		close(fds[i]);
	fx_stop(&fx);
}

static bool one_flow_left(void *arg)
{
	return ((struct fx *)arg)->lane.now == 1;
}

static bool no_flow_left(void *arg)
{
	return ((struct fx *)arg)->lane.now == 0;
}

static void test_udp_idle_flows_end_and_come_back(void **state)
{
	struct forward_limits limits = { .udp_idle_ms = 1500 };
	struct fx fx;
	uint16_t port = start(&fx, &limits);
	int a = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	int b = fx_connect(SOCK_DGRAM, "127.0.0.1", port);

	fx_assert_echo(&fx, a, "a", 1);
	fx_turn(&fx, 1000);
	fx_assert_echo(&fx, b, "b", 1);
	assert_true(fx_until(&fx, one_flow_left, &fx)); /* a, the older */
	fx_assert_echo(&fx, b, "b", 1);
	assert_int_equal(fx.lane.opens, 2);
	assert_true(fx_until(&fx, no_flow_left, &fx));
	assert_int_equal(fx.lane.closes, 2);
	fx_assert_echo(&fx, a, "again", 5);
	close(a);
	close(b);
	fx_stop(&fx);
}

static void test_udp_most_idle_flow_makes_room(void **state)
{
	struct forward_limits limits = { .max_flows = 2 };
	struct fx fx;
	uint16_t port = start(&fx, &limits);
	int fds[3];

	for (int i = 0; i < 3; i++)
		fds[i] = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	fx_assert_echo(&fx, fds[0], "0", 1);
	fx_assert_echo(&fx, fds[1], "1", 1);
	fx_assert_echo(&fx, fds[0], "0", 1);
	fx_assert_echo(&fx, fds[2], "2", 1); /* instead of 1 */
	assert_int_equal(fx.lane.now, 2);
	fx_assert_echo(&fx, fds[0], "0", 1);
	assert_int_equal(fx.lane.opens, 3);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	fx_stop(&fx);
}

static void test_udp_full_lane_drops_the_most_idle_flow(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int fds[3];
	char c;

	fx.lane.max = 2;
	for (int i = 0; i < 3; i++)
		fds[i] = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	fx_assert_echo(&fx, fds[0], "0", 1);
	fx_assert_echo(&fx, fds[1], "1", 1);
	fx_assert_echo(&fx, fds[0], "0", 1);
	assert_int_equal(send(fds[2], "2", 1, 0), 1);	/* waits: the lane frees one later */
	fx_turn(&fx, 20);
	assert_int_equal(send(fds[2], "2", 1, 0), 1);
	for (int i = 0; i < 2; i++)
		assert_int_equal(fx_receive(&fx, fds[2], &c, 1), 1);
	fx_assert_echo(&fx, fds[0], "0", 1); /* it was not the one that went */
	assert_int_equal(fx.lane.opens, 3);
	assert_int_equal(fx.lane.closes, 1);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	fx_stop(&fx);
}

/* One busy port leaves room for the others' clients. */
static void test_udp_most_idle_flow_of_all_ports_makes_room(void **state)
{
	for (int full_lane = 0; full_lane < 2; full_lane++) {
		struct forward_limits limits = { .max_flows_in_all = full_lane ? 100 : 2 };
		struct fx fx;
		uint16_t busy = start(&fx, &limits), other = fx_free_port();
		int fds[3];
		char c;

		fx.lane.max = 2;
		fx_add(&fx, IPPROTO_UDP, "0.0.0.0", other);
		for (int i = 0; i < 3; i++)
			fds[i] = fx_connect(SOCK_DGRAM, "127.0.0.1", i < 2 ? busy : other);
		fx_assert_echo(&fx, fds[0], "0", 1);
		fx_assert_echo(&fx, fds[1], "1", 1);
		fx_assert_echo(&fx, fds[0], "0", 1);
		assert_int_equal(send(fds[2], "2", 1, 0), 1);	/* instead of 1 */
		fx_turn(&fx, 20);
		if (full_lane)	/* the first one found out */
			assert_int_equal(send(fds[2], "2", 1, 0), 1);
		assert_int_equal(fx_receive(&fx, fds[2], &c, 1), 1);
		assert_int_equal(fx.lane.now, 2);
		fx_assert_echo(&fx, fds[0], "0", 1);
		assert_int_equal(fx.lane.opens, 3);
		for (int i = 0; i < 3; i++)
			close(fds[i]);
		fx_stop(&fx);
	}
}

/* Of all clients together: those who wait longest lose theirs. */
static void test_udp_what_waits_is_bounded(void **state)
{
	enum { CLIENTS = 40, KEPT = 10, SIZE = 1000, MOST = KEPT * (SIZE + 100) };
	struct forward_limits limits = { .udp_wait_bytes = MOST };
	char data[SIZE] = { 0 };
	struct fx fx;
	uint16_t ports[2] = { start(&fx, &limits), fx_free_port() };
	int fds[CLIENTS];

	fx_add(&fx, IPPROTO_UDP, "0.0.0.0", ports[1]);
	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, NULL);
	for (int i = 0; i < CLIENTS; i++) {
		fds[i] = fx_connect(SOCK_DGRAM, "127.0.0.1", ports[i % 2]);
		assert_int_equal(send(fds[i], data, SIZE, 0), SIZE);
		fx_turn(&fx, 1);
	}
	fx_turn(&fx, 20);
	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, &fx.lane.lane);
	assert_int_equal(fx_receive(&fx, fds[CLIENTS - 1], data, SIZE), SIZE);
	assert_int_equal(fx_receive(&fx, fds[CLIENTS - KEPT], data, SIZE), SIZE);
	fx_turn(&fx, 20);
	assert_in_range(fx.lane.bytes_in, KEPT * SIZE, MOST);
	fx_assert_echo(&fx, fds[0], "still served", 12);
	for (int i = 0; i < CLIENTS; i++)
		close(fds[i]);
	fx_stop(&fx);
}

static void test_udp_waits_for_a_lane_and_drops_the_oldest(void **state)
{
	enum { SENT = 600, KEPT = 256 };
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int fd = fx_connect(SOCK_DGRAM, "127.0.0.1", port), n = 0, got = 0;

	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, NULL);
	for (int i = 0; i < SENT; i++) {
		assert_int_equal(send(fd, &i, sizeof(i), 0), sizeof(i));
		if (i % 50 == 49)
			fx_turn(&fx, 1);
	}
	fx_turn(&fx, 20);
	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, &fx.lane.lane);
	for (n = 0; n < KEPT; n++) {
		assert_int_equal(fx_receive(&fx, fd, &got, sizeof(got)), sizeof(got));
		assert_int_equal(got, SENT - KEPT + n);
	}
	close(fd);
	fx_stop(&fx);
}

static void test_udp_refusal_ends_the_flow_not_the_forward(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int fd = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	char c;

	fx.lane.mode = MOCK_REFUSE;
	assert_int_equal(send(fd, "x", 1, 0), 1);
	fx_turn(&fx, 20);
	assert_int_equal(fx.lane.opens, 1);
	assert_int_equal(fx.lane.now, 0);
	fx.lane.mode = MOCK_ECHO;
	/* as on a closed port: the datagram after the one that found out is refused */
	errno = 0;
	send(fd, "y", 1, 0);
	assert_int_equal(fx_receive(&fx, fd, &c, 1), -ECONNREFUSED);
	assert_int_equal(fx_row(&fx).refused, 1);
	fx_turn(&fx, 400);
	fx_assert_echo(&fx, fd, "z", 1);
	close(fd);
	fx_stop(&fx);
}

/* The server answered, then it died: an ICMP answer reached its socket in the guest. */
static void test_udp_server_that_died_is_refused_then_dialed_anew(void **state)
{
	static const int codes[] = { -ECONNREFUSED, -EHOSTUNREACH };
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int fd = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	char c;

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++) {
		fx_assert_echo(&fx, fd, "x", 1);
		assert_int_equal(fx.lane.opens, i + 1);
		mock_lane_break(&fx.lane, codes[i]);
		assert_true(fx_until(&fx, no_flow_left, &fx));
		errno = 0;
		send(fd, "y", 1, 0);
		assert_int_equal(fx_receive(&fx, fd, &c, 1), -ECONNREFUSED);
		fx_turn(&fx, 400);
	}
	fx_assert_echo(&fx, fd, "z", 1);
	close(fd);
	fx_stop(&fx);
}

static bool second_came_and_went(void *arg)
{
	const struct fx *fx = arg;

	return fx->lane.opens == 2 && fx->lane.now == 1;
}

/* One guest server for all: a client that it lost must not cost the others theirs. */
static void test_udp_refusal_of_one_spares_the_others(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int served = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	int refused = fx_connect(SOCK_DGRAM, "127.0.0.1", port);

	fx_assert_echo(&fx, served, "a", 1);
	fx.lane.mode = MOCK_REFUSE;
	assert_int_equal(send(refused, "b", 1, 0), 1);
	assert_true(fx_until(&fx, second_came_and_went, &fx));
	fx_assert_echo(&fx, served, "c", 1);
	fx.lane.mode = MOCK_ECHO;
	fx_assert_echo(&fx, refused, "d", 1);
	close(served);
	close(refused);
	fx_stop(&fx);
}

/* A flow that rests, as that of a client that ended does, spares nobody. */
static void test_udp_refusal_beside_a_flow_that_rests(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int rests = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	int refused = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	char c;

	fx_assert_echo(&fx, rests, "a", 1);
	fx_turn(&fx, 1100);
	fx.lane.mode = MOCK_REFUSE;
	assert_int_equal(send(refused, "b", 1, 0), 1);
	assert_true(fx_until(&fx, second_came_and_went, &fx));
	send(refused, "c", 1, 0);
	assert_int_equal(fx_receive(&fx, refused, &c, 1), -ECONNREFUSED);
	close(rests);
	close(refused);
	fx_stop(&fx);
}

/* Only this flow's tunnel was turned away, the lane stays: no other lane comes. */
static void test_udp_flow_turned_away_is_tried_again(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int fd = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	char c = 0;

	fx.lane.mode = MOCK_LANE_GONE;
	assert_int_equal(send(fd, "x", 1, 0), 1);
	fx_turn(&fx, 20);
	assert_int_equal(fx.lane.now, 0);
	fx.lane.mode = MOCK_ECHO;
	assert_int_equal(send(fd, "y", 1, 0), 1);
	assert_int_equal(fx_receive(&fx, fd, &c, 1), 1);
	assert_int_equal(c, 'x');
	assert_int_equal(fx_receive(&fx, fd, &c, 1), 1);
	assert_int_equal(c, 'y');
	close(fd);
	fx_stop(&fx);
}

static void test_udp_stuck_guest_is_bounded(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	uint8_t block[32768] = { 0 };
	int fd = fx_connect(SOCK_DGRAM, "127.0.0.1", port);

	fx.lane.mode = MOCK_STUCK;
	for (int i = 0; i < 200; i++) {
		send(fd, block, sizeof(block), 0);
		fx_turn(&fx, 1);
	}
	assert_true(fx.lane.bytes_in < 512 * 1024); /* of 6.4 MB */
	mock_lane_switch(&fx.lane, MOCK_ECHO);
	assert_int_equal(fx_receive(&fx, fd, block, sizeof(block)), sizeof(block));
	close(fd);
	fx_stop(&fx);
}

static void test_udp_client_gone_before_the_answer(void **state)
{
	struct fx fx;
	uint16_t port = start(&fx, NULL);
	int gone = fx_connect(SOCK_DGRAM, "127.0.0.1", port);
	int stays = fx_connect(SOCK_DGRAM, "127.0.0.1", port);

	for (int i = 0; i < 20; i++)
		assert_int_equal(send(gone, "x", 1, 0), 1);
	close(gone); /* the replies bring ICMP errors to the host socket */
	for (int i = 0; i < 20; i++)
		fx_assert_echo(&fx, stays, "still here", 10);
	close(stays);
	fx_stop(&fx);
}

/* A connected client takes answers only from the address it asked. */
static void test_udp_wildcard_answers_from_the_address_that_was_asked(void **state)
{
	uint16_t port = fx_free_port();
	struct config_port_forward rule = { .guest_ip = fx_port(0, "127.0.0.1", 1).ip,
					    .guest_port = { port, port },
					    .host_ip = fx_port(0, "0.0.0.0", 1).ip,
					    .host_port = { port, port } };
	static const char *const asked[] = { "127.0.0.1", "127.0.0.5", "::1" };
	struct fx fx;

	fx_start(&fx, &rule, 1, NULL);
	fx_add(&fx, IPPROTO_UDP, "127.0.0.1", port);
	for (size_t i = 0; i < ARRAY_SIZE(asked); i++) {
		int fd = fx_connect(SOCK_DGRAM, asked[i], port);

		if (fd < 0)
			continue; /* no IPv6 here */
		fx_assert_echo(&fx, fd, asked[i], strlen(asked[i]));
		close(fd);
	}
	fx_stop(&fx);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_udp_datagrams_stay_whole),
		cmocka_unit_test(test_udp_ipv6_localhost),
		cmocka_unit_test(test_udp_three_hundred_clients_get_their_own_answers),
		cmocka_unit_test(test_udp_idle_flows_end_and_come_back),
		cmocka_unit_test(test_udp_most_idle_flow_makes_room),
		cmocka_unit_test(test_udp_full_lane_drops_the_most_idle_flow),
		cmocka_unit_test(test_udp_most_idle_flow_of_all_ports_makes_room),
		cmocka_unit_test(test_udp_what_waits_is_bounded),
		cmocka_unit_test(test_udp_waits_for_a_lane_and_drops_the_oldest),
		cmocka_unit_test(test_udp_refusal_ends_the_flow_not_the_forward),
		cmocka_unit_test(test_udp_server_that_died_is_refused_then_dialed_anew),
		cmocka_unit_test(test_udp_refusal_of_one_spares_the_others),
		cmocka_unit_test(test_udp_refusal_beside_a_flow_that_rests),
		cmocka_unit_test(test_udp_flow_turned_away_is_tried_again),
		cmocka_unit_test(test_udp_stuck_guest_is_bounded),
		cmocka_unit_test(test_udp_client_gone_before_the_answer),
		cmocka_unit_test(test_udp_wildcard_answers_from_the_address_that_was_asked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
