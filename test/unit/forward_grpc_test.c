/* The whole way: client socket, forward, gRPC lane, guest server in this process. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/forward.h"
#include "hostagent/forward/lane.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "test/mock/forward.h"
#include "test/mock/proto_world.h"

struct whole {
	struct world w;
	struct config_port_forward rules[5];
	struct config config;
	struct forward *forward;
	struct lane *lane;
	bool forward_gone;
};

struct call {
	uint16_t port;
	int type;
	size_t send_bytes;
	uint64_t got;
	int rc;
	bool corrupt, done;
	uint64_t answer; /* the first 8 bytes */
};

/* The far end's kinds are guest ports 7 … 21; the host sides are free ports. */
static const enum far_end kinds[] = { FAR_ECHO, FAR_SINK, FAR_SOURCE, FAR_REFUSED, FAR_RESET };

static uint16_t host_port(struct whole *h, enum far_end kind)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (kinds[i] == kind)
			return h->rules[i].host_port[0];
	return 0;
}

static void start(struct whole *h, bool lima)
{
	struct forward_options opts = { .ssh_local_port = 60022 };
	struct guest_port ports[2 * ARRAY_SIZE(kinds)];
	struct error err = { 0 };

	signal(SIGPIPE, SIG_IGN);
	memset(h, 0, sizeof(*h));
	world_init(&h->w);
	h->w.lima = lima;
	world_connect(&h->w);
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		uint16_t port = fx_free_port();

		ports[2 * i] = fx_port(IPPROTO_TCP, "127.0.0.1", (uint16_t)kinds[i]);
		ports[2 * i + 1] = fx_port(IPPROTO_UDP, "127.0.0.1", (uint16_t)kinds[i]);
		h->rules[i] = (struct config_port_forward){
			.guest_ip = ports[2 * i].ip,
			.guest_port = { (uint16_t)kinds[i], (uint16_t)kinds[i] },
			.host_ip = ports[2 * i].ip,
			.host_port = { port, port },
		};
	}
	h->config.port_forwards = h->rules;
	h->config.n_port_forwards = ARRAY_SIZE(kinds);
	opts.config = &h->config;
	assert_int_equal(forward_new(&h->w.loop, &opts, &h->forward, &err), 0);
	h->lane = lane_grpc_new(h->w.client);
	forward_set_lane(h->forward, CONFIG_LANE_GRPC, h->lane);
	forward_set_ports(h->forward, ports, ARRAY_SIZE(ports));
}

static void on_closed(void *arg)
{
	*(bool *)arg = true;
}

static void stop(struct whole *h)
{
	forward_close(h->forward, on_closed, &h->forward_gone);
	WORLD_WAIT(&h->w, h->forward_gone);
	lane_grpc_free(h->lane);
	world_done(&h->w);
}

static void *call_thread(void *arg)
{
	struct call *c = arg;
	scoped_free uint8_t *block = NULL;
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", c->port);
	uint8_t in[65536];
	ssize_t n = 0;

	for (size_t sent = 0; sent < c->send_bytes && n >= 0; sent += (size_t)n) {
		free(block);
		block = pattern_make(sent, MIN(c->send_bytes - sent, (size_t)65536));
		n = send(fd, block, MIN(c->send_bytes - sent, (size_t)65536), MSG_NOSIGNAL);
	}
	shutdown(fd, SHUT_WR);
	while (n >= 0 && (n = recv(fd, in, sizeof(in), 0)) > 0) {
		if (c->got == 0 && n >= 8)
			memcpy(&c->answer, in, sizeof(c->answer));
		c->corrupt |= !pattern_matches(c->got, in, (size_t)n);
		c->got += (uint64_t)n;
	}
	c->rc = n < 0 ? -errno : 0;
	close(fd);
	c->done = true;
	return NULL;
}

static void call(struct whole *h, struct call *c)
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, call_thread, c), 0);
	WORLD_WAIT(&h->w, *(volatile bool *)&c->done);
	pthread_join(thread, NULL);
}

static void test_grpc_echo_and_half_close(void **state)
{
	struct whole h;
	struct call c = { .send_bytes = 8 << 20 };

	start(&h, false);
	c.port = host_port(&h, FAR_ECHO);
	call(&h, &c);
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got, c.send_bytes);
	assert_false(c.corrupt);
	WORLD_WAIT(&h.w, h.w.far_open == 0);
	assert_int_equal(h.w.far_resets, 0);
	stop(&h);
}

static void test_grpc_answer_after_the_clients_fin(void **state)
{
	struct whole h;
	struct call c = { .send_bytes = 3000001 };

	start(&h, false);
	c.port = host_port(&h, FAR_SINK);
	call(&h, &c);
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got, 8);
	assert_int_equal(c.answer, 3000001);
	stop(&h);
}

static void test_grpc_refused_and_reset_reach_the_client(void **state)
{
	struct whole h;
	struct call c;

	start(&h, false);
	for (int i = 0; i < 20; i++) {
		c = (struct call){ .port = host_port(&h, FAR_REFUSED) };
		call(&h, &c);
		assert_int_equal(c.rc, -ECONNRESET);
	}
	c = (struct call){ .port = host_port(&h, FAR_RESET), .send_bytes = 1 };
	call(&h, &c);
	assert_int_equal(c.rc, -ECONNRESET);
	stop(&h);
}

static void test_grpc_with_limas_guest_agent(void **state)
{
	struct whole h;
	struct call c = { .send_bytes = 0 };

	start(&h, true);
	h.w.source_bytes = 5000000;
	c.port = host_port(&h, FAR_SOURCE);
	call(&h, &c);
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got, 5000000);
	assert_false(c.corrupt);
	c = (struct call){ .port = host_port(&h, FAR_REFUSED) };
	call(&h, &c);
	assert_int_equal(c.rc, -ECONNRESET);
	stop(&h);
}

static void test_grpc_datagrams(void **state)
{
	static const size_t sizes[] = { 1, 0, 1500, 65507, 3 };
	struct whole h;
	scoped_free uint8_t *out = pattern_make(0, 65507), *in = xmalloc(65536);
	ssize_t n;
	int fd;

	start(&h, false);
	fd = fx_connect(SOCK_DGRAM, "127.0.0.1", host_port(&h, FAR_ECHO));
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		assert_int_equal(send(fd, out, sizes[i], 0), sizes[i]);
		n = -1;
		WORLD_WAIT(&h.w, (n = recv(fd, in, 65536, MSG_DONTWAIT)) >= 0);
		assert_int_equal(n, sizes[i]);
		assert_memory_equal(in, out, sizes[i]);
	}
	close(fd);
	stop(&h);
}

/* The guest found out with the first datagram that nobody is there. */
static void test_grpc_datagram_that_meets_nobody(void **state)
{
	struct whole h;
	ssize_t n = 0;
	int fd;

	start(&h, false);
	fd = fx_connect(SOCK_DGRAM, "127.0.0.1", host_port(&h, FAR_RESET));
	assert_int_equal(send(fd, "x", 1, 0), 1);
	WORLD_WAIT(&h.w, h.w.far_total == 1 && h.w.far_open == 0);
	/* sooner or later the news is here, then the host's own port refuses */
	WORLD_WAIT(&h.w, (n = send(fd, "y", 1, 0)) < 0);
	assert_int_equal(errno, ECONNREFUSED);
	close(fd);
	stop(&h);
}

/* The link breaks and comes back: clients that were not connected yet wait. */
static void test_grpc_link_comes_back(void **state)
{
	struct whole h;
	struct call c = { .send_bytes = 1000 };
	pthread_t thread;
	struct lane *old;

	start(&h, false);
	c.port = host_port(&h, FAR_ECHO);
	world_stop_server(&h.w); /* nobody told the forward yet */
	assert_int_equal(pthread_create(&thread, NULL, call_thread, &c), 0);
	for (int i = 0; i < 20; i++)
		world_turn(&h.w, clock_mono_ms() + 5000);
	forward_set_lane(h.forward, CONFIG_LANE_GRPC, NULL);
	world_stop_client(&h.w);
	old = h.lane;
	world_connect(&h.w);
	h.lane = lane_grpc_new(h.w.client);
	forward_set_lane(h.forward, CONFIG_LANE_GRPC, h.lane);
	lane_grpc_free(old);
	WORLD_WAIT(&h.w, *(volatile bool *)&c.done);
	pthread_join(thread, NULL);
	assert_int_equal(c.rc, 0);
	assert_int_equal(c.got, 1000);
	stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_grpc_echo_and_half_close),
		cmocka_unit_test(test_grpc_answer_after_the_clients_fin),
		cmocka_unit_test(test_grpc_refused_and_reset_reach_the_client),
		cmocka_unit_test(test_grpc_with_limas_guest_agent),
		cmocka_unit_test(test_grpc_datagrams),
		cmocka_unit_test(test_grpc_datagram_that_meets_nobody),
		cmocka_unit_test(test_grpc_link_comes_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
