/* Several lanes at once, and the pool of the fast one: real clients, a mock device. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/address.h"
#include "hostagent/forward/lane_vsock.h"
#include "lib/base/mem.h"
#include "test/mock/forward.h"
#include "test/mock/vsock.h"

/* --- which one ---------------------------------------------------------------- */

static bool no_loopback(const struct lane *lane, int proto, const char *guest_addr)
{
	return strncmp(guest_addr, "127.", 4) != 0;
}

static void test_lane_choice(void **state)
{
	static const struct lane_ops plain = { .name = "any" }, picky = { .can = no_loopback };
	static const struct {
		const char *up; /* lanes that there are, by first letter */
		enum config_lane wanted;
		int proto;
		const char *addr;
		unsigned tried;
		int want; /* -1: none */
	} rows[] = {
		{ "vg", CONFIG_LANE_AUTO, IPPROTO_TCP, "127.0.0.1:1", 0, CONFIG_LANE_VSOCK },
		{ "g", CONFIG_LANE_AUTO, IPPROTO_TCP, "127.0.0.1:1", 0, CONFIG_LANE_GRPC },
		{ "vg", CONFIG_LANE_AUTO, IPPROTO_TCP, "127.0.0.1:1", 1 << CONFIG_LANE_VSOCK,
		  CONFIG_LANE_GRPC },
		{ "sd", CONFIG_LANE_AUTO, IPPROTO_TCP, "10.0.2.15:1", 0, -1 },
		{ "vg", CONFIG_LANE_AUTO, IPPROTO_UDP, "127.0.0.1:1", 0, CONFIG_LANE_GRPC },
		{ "v", CONFIG_LANE_AUTO, IPPROTO_UDP, "127.0.0.1:1", 0, -1 },
		{ "vg", CONFIG_LANE_GRPC, IPPROTO_TCP, "127.0.0.1:1", 0, CONFIG_LANE_GRPC },
		{ "v", CONFIG_LANE_GRPC, IPPROTO_TCP, "127.0.0.1:1", 0, -1 },
		{ "gs", CONFIG_LANE_VSOCK, IPPROTO_TCP, "127.0.0.1:1", 0, -1 },
		{ "vg", CONFIG_LANE_VSOCK, IPPROTO_UDP, "127.0.0.1:1", 0, CONFIG_LANE_GRPC },
		{ "vgs", CONFIG_LANE_SSH, IPPROTO_TCP, "127.0.0.1:1", 0, CONFIG_LANE_SSH },
		{ "vg", CONFIG_LANE_SSH, IPPROTO_TCP, "127.0.0.1:1", 0, -1 },
		{ "vgs", CONFIG_LANE_SSH, IPPROTO_UDP, "127.0.0.1:1", 0, -1 },
		{ "vgd", CONFIG_LANE_DIRECT, IPPROTO_TCP, "10.0.2.15:1", 0, CONFIG_LANE_DIRECT },
		{ "vgd", CONFIG_LANE_DIRECT, IPPROTO_TCP, "127.0.0.1:1", 0, CONFIG_LANE_VSOCK },
		{ "gd", CONFIG_LANE_DIRECT, IPPROTO_TCP, "10.0.2.15:1", 1 << CONFIG_LANE_DIRECT,
		  CONFIG_LANE_GRPC },
		{ "gd", CONFIG_LANE_DIRECT, IPPROTO_UDP, "10.0.2.15:1", 0, CONFIG_LANE_GRPC },
	};
	static const char letters[LANE_COUNT] = { [CONFIG_LANE_VSOCK] = 'v',
						  [CONFIG_LANE_GRPC] = 'g',
						  [CONFIG_LANE_SSH] = 's',
						  [CONFIG_LANE_DIRECT] = 'd' };
	struct lane lane = { &plain }, direct = { &picky };

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		enum config_lane got = CONFIG_LANE_AUTO;
		struct lanes lanes = { 0 };

		for (int n = 1; n < LANE_COUNT; n++)
			if (strchr(rows[i].up, letters[n]))
				lanes.of[n] = n == CONFIG_LANE_DIRECT ? &direct : &lane;
		if (!lanes_choose(&lanes, rows[i].wanted, rows[i].proto, rows[i].addr,
				  rows[i].tried, &got))
			got = (enum config_lane)-1;
		if ((int)got != rows[i].want)
			fail_msg("row %zu: %d, not %d", i, (int)got, rows[i].want);
	}
}

static void test_address_texts_back_and_forth(void **state)
{
	static const char *const good[] = { "127.0.0.1:80", "[::1]:65535", "0.0.0.0:1", "[fe80::1]:22" };
	static const char *const bad[] = { "", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", ":80",
					   "[::1]", "[::1:80", "::1:80", "[127.0.0.1]:80", "1.2.3.4:80x",
					   "[::1]80", "/run/x.sock", "a.b.c.d:1", "[]:1" };
	char out[ADDRESS_TEXT_SIZE];
	struct in6_addr ip;
	uint16_t port;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_true(address_parse(good[i], &ip, &port));
		assert_string_equal(address_text(&ip, port, out), good[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (address_parse(bad[i], &ip, &port))
			fail_msg("`%s` is an address?", bad[i]);
}

/* --- a forward with both lanes ------------------------------------------------- */

struct vx {
	struct fx fx;
	struct vsock vsock;
	struct lane *lane;
	uint16_t port;
	bool usable, closed;
	unsigned changes;
};

static void on_changed(void *arg, struct lane *lane, bool usable)
{
	struct vx *x = arg;

	x->usable = usable;
	x->changes++;
	forward_set_lane(x->fx.forward, CONFIG_LANE_VSOCK, usable ? lane : NULL);
}

static bool is_usable(void *arg)
{
	return ((struct vx *)arg)->usable;
}

static bool is_unusable(void *arg)
{
	return !((struct vx *)arg)->usable;
}

static bool pool_is_full(void *arg)
{
	return ((struct vx *)arg)->vsock.open >= 8;
}

static unsigned rest_ms; /* of the next lane */

static void vx_prepare(struct vx *x, const struct config_port_forward *rules, size_t n,
		       const struct forward_limits *limits)
{
	struct lane_vsock_options o = { .rest_ms = rest_ms, .changed = on_changed, .arg = x };

	*x = (struct vx){ 0 };
	fx_start(&x->fx, rules, n, limits);
	mock_vsock_init(&x->vsock, &x->fx.loop);
	o.loop = &x->fx.loop;
	o.vsock = &x->vsock;
	x->lane = lane_vsock_new(&o);
	x->port = fx_free_port();
	fx_add(&x->fx, IPPROTO_TCP, "127.0.0.1", x->port);
}

static void vx_start(struct vx *x)
{
	vx_prepare(x, NULL, 0, NULL);
	lane_vsock_set_agent(x->lane, mock_vsock_ports);
	assert_true(fx_until(&x->fx, is_usable, x));
	assert_true(fx_until(&x->fx, pool_is_full, x));
}

static void on_lane_closed(void *arg)
{
	((struct vx *)arg)->closed = true;
}

static bool lane_is_closed(void *arg)
{
	return ((struct vx *)arg)->closed;
}

static void vx_stop(struct vx *x)
{
	forward_set_lane(x->fx.forward, CONFIG_LANE_VSOCK, NULL);
	lane_vsock_close(x->lane, on_lane_closed, x);
	assert_int_equal(x->vsock.now, 0); /* no connection of the device was forgotten */
	assert_true(fx_until(&x->fx, lane_is_closed, x));
	fx_stop(&x->fx);
}

static int client(struct vx *x)
{
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", x->port);

	assert_true(fd >= 0);
	assert_int_equal(send(fd, "hello", 5, MSG_NOSIGNAL), 5);
	return fd;
}

static void expect_answer(struct vx *x, int fd)
{
	char in[8];

	assert_int_equal(fx_receive(&x->fx, fd, in, sizeof(in)), 5);
	assert_memory_equal(in, "hello", 5);
}

static void assert_answered(struct vx *x, int fd)
{
	expect_answer(x, fd);
	close(fd);
}

/* --- the pool ------------------------------------------------------------------ */

static void test_vsock_is_asked_for_once_the_agent_said_so(void **state)
{
	struct vx x;

	vx_prepare(&x, NULL, 0, NULL);
	fx_turn(&x.fx, 20);
	assert_int_equal(x.vsock.connects, 0);
	assert_answered(&x, client(&x)); /* by gRPC */
	assert_int_equal(x.fx.lane.opens, 1);
	lane_vsock_set_agent(x.lane, mock_vsock_ports);
	assert_true(fx_until(&x.fx, is_usable, &x));
	assert_true(fx_until(&x.fx, pool_is_full, &x));
	fx_turn(&x.fx, 5);
	assert_int_equal(x.vsock.connects, 8);
	vx_stop(&x);
}

static void test_vsock_clients_take_from_the_pool(void **state)
{
	struct forward_row row;
	struct vx x;

	vx_start(&x);
	for (int i = 0; i < 4; i++)
		assert_answered(&x, client(&x));
	assert_int_equal(x.fx.lane.opens, 0);
	assert_int_equal(x.vsock.relays, 4);
	assert_int_equal(ntohs(x.vsock.last.magic), RELAY_MAGIC);
	assert_int_equal(ntohs(x.vsock.last.port), x.port);
	assert_int_equal(x.vsock.last.ip[10], 0xff);
	assert_int_equal(x.vsock.last.ip[12], 127);
	row = fx_row(&x.fx);
	assert_string_equal(row.lane, "vsock");
	assert_int_equal(row.connections_total, 4);
	assert_int_equal(row.bytes_in, 20);
	assert_int_equal(row.bytes_out, 20);
	assert_true(row.connect_last_us > 0 && row.connect_p50_us <= row.connect_p99_us);
	vx_stop(&x);
}

static bool batch_came(void *arg)
{
	return ((struct vx *)arg)->vsock.connects == 12;
}

/* One list of the guest's kernel holds all connections to one port. */
static void test_vsock_connections_spread_over_the_ports(void **state)
{
	unsigned ports = 0;
	struct vx x;
	int fds[100];

	vx_start(&x);
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = client(&x);
		expect_answer(&x, fds[i]);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(x.vsock.asked); i++)
		ports += x.vsock.asked[i];
	assert_in_range(ports, 10, 64);
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	vx_stop(&x);
}

static void test_vsock_pool_is_filled_in_batches(void **state)
{
	struct vx x;
	int fds[4];

	vx_start(&x);
	for (int i = 0; i < 3; i++) {
		fds[i] = client(&x);
		expect_answer(&x, fds[i]);
	}
	assert_int_equal(x.vsock.connects, 8); /* five are there */
	fds[3] = client(&x);
	assert_true(fx_until(&x.fx, batch_came, &x));
	assert_true(x.vsock.most_in_turn >= 4);
	expect_answer(&x, fds[3]);
	for (int i = 0; i < 4; i++)
		close(fds[i]);
	vx_stop(&x);
}

static bool all_are_idle(void *arg)
{
	struct lane_vsock_counts n = lane_vsock_count(((struct vx *)arg)->lane);

	return n.pool == 8 && n.busy + n.resting + n.opening == 0;
}

/* A connection serves one client after another. */
static void test_vsock_served_connections_serve_again(void **state)
{
	struct vx x;

	vx_start(&x);
	for (int i = 0; i < 20; i++) {
		assert_answered(&x, client(&x));
		assert_true(fx_until(&x.fx, all_are_idle, &x));
	}
	assert_int_equal(x.vsock.relays, 20);
	assert_int_equal(x.vsock.connects, 8);
	assert_int_equal(x.vsock.resets, 0);
	vx_stop(&x);
}

enum { CROWD = 300 };

static void test_vsock_crowd_at_once(void **state)
{
	int fds[CROWD];
	struct vx x;

	vx_start(&x);
	for (int i = 0; i < CROWD; i++)
		fds[i] = client(&x);
	for (int i = 0; i < CROWD; i++)
		assert_answered(&x, fds[i]);
	assert_int_equal(x.fx.lane.opens, 0);
	fx_turn(&x.fx, 20);
	assert_in_range(x.vsock.now, 8, 32 + 16); /* grew, within bounds */
	vx_stop(&x);
}

enum { LATE = 1100 };

static unsigned resting_of_late_ones(unsigned ms)
{
	struct vx x;
	unsigned n;

	rest_ms = ms;
	vx_start(&x);
	x.vsock.no_done = true;
	for (int i = 0; i < LATE; i++)
		assert_answered(&x, client(&x));
	while (lane_vsock_count(x.lane).busy)
		fx_turn(&x.fx, 1);
	n = lane_vsock_count(x.lane).resting;
	vx_stop(&x);
	rest_ms = 0;
	return n;
}

/* Many end at once, and the guest still passes their last bytes on. Only a server
 * that never takes them loses its connection. */
static void test_vsock_last_bytes_have_their_time(void **state)
{
	assert_int_equal(resting_of_late_ones(0), LATE);
	assert_int_equal(resting_of_late_ones(1), 1024);
}

/* --- when something is gone ----------------------------------------------------- */

static void test_vsock_refused_target_resets_the_client(void **state)
{
	struct forward_row row;
	struct vx x;
	char in;
	int fd;

	vx_start(&x);
	x.vsock.reply_error = ECONNREFUSED;
	for (int i = 0; i < 20; i++) {
		fd = client(&x);
		assert_int_equal(fx_receive(&x.fx, fd, &in, 1), -ECONNRESET);
		close(fd);
	}
	assert_true(x.usable); /* that was the target, not the lane */
	assert_int_equal(x.fx.lane.opens, 0);
	row = fx_row(&x.fx);
	assert_int_equal(row.refused, 20);
	assert_int_equal(row.connections_now, 0);
	/* codes that a lane's user would take for its own are plain refusals */
	x.vsock.reply_error = ECANCELED;
	fd = client(&x);
	assert_int_equal(fx_receive(&x.fx, fd, &in, 1), -ECONNRESET);
	close(fd);
	assert_int_equal(x.fx.lane.opens, 0);
	vx_stop(&x);
}

static void test_vsock_stale_connection_is_replaced_unseen(void **state)
{
	struct vx x;
	int fd;

	vx_start(&x);
	x.vsock.no_reply = true; /* as of an agent that was killed a moment ago */
	fd = client(&x);
	while (x.vsock.relays == 0)
		fx_turn(&x.fx, 1);
	x.vsock.no_reply = false;
	mock_vsock_break(&x.vsock, false, -ECONNRESET);
	assert_answered(&x, fd);
	assert_int_equal(x.fx.lane.opens, 0);
	vx_stop(&x);
}

/* … and so it is when others on the same port are busy meanwhile. */
static void test_vsock_stale_connection_on_a_busy_port(void **state)
{
	struct vx x;
	int busy, fd;

	vx_start(&x);
	busy = client(&x);
	expect_answer(&x, busy);
	x.vsock.no_reply = true;
	fd = client(&x);
	while (x.vsock.relays == 1)
		fx_turn(&x.fx, 1);
	assert_int_equal(send(busy, "hello", 5, MSG_NOSIGNAL), 5);
	expect_answer(&x, busy);
	x.vsock.no_reply = false;
	mock_vsock_break(&x.vsock, false, -ECONNRESET);
	assert_answered(&x, fd);
	close(busy);
	vx_stop(&x);
}

static void test_vsock_agent_restart_leaves_clients_to_the_other_lane(void **state)
{
	struct vx x;
	int fd;

	vx_start(&x);
	x.vsock.mode = MOCK_VSOCK_REFUSE;
	mock_vsock_break(&x.vsock, true, -ECONNRESET);
	fx_turn(&x.fx, 5);
	assert_true(x.usable); /* a moment's absence is waited out */
	fd = client(&x);
	assert_true(fx_until(&x.fx, is_unusable, &x));
	assert_answered(&x, fd);
	assert_int_equal(x.fx.lane.opens, 1);
	x.vsock.mode = MOCK_VSOCK_ECHO;
	lane_vsock_set_agent(x.lane, mock_vsock_ports); /* it is back */
	assert_true(fx_until(&x.fx, is_usable, &x));
	assert_answered(&x, client(&x));
	assert_int_equal(x.fx.lane.opens, 1);
	vx_stop(&x);
}

static void test_vsock_refusals_do_not_spin(void **state)
{
	struct vx x;

	vx_prepare(&x, NULL, 0, NULL);
	x.vsock.mode = MOCK_VSOCK_REFUSE;
	lane_vsock_set_agent(x.lane, mock_vsock_ports);
	fx_turn(&x.fx, 1500);
	assert_false(x.usable);
	assert_in_range(x.vsock.connects, 3, 9); /* 20, 40, 80 … ms apart */
	x.vsock.mode = MOCK_VSOCK_ECHO;
	assert_true(fx_until(&x.fx, is_usable, &x)); /* without being told */
	vx_stop(&x);
}

/* A relay that has no room for one more lets it in and closes it. */
static void test_vsock_early_ends_do_not_spin(void **state)
{
	struct vx x;

	vx_prepare(&x, NULL, 0, NULL);
	x.vsock.mode = MOCK_VSOCK_CLOSE;
	lane_vsock_set_agent(x.lane, mock_vsock_ports);
	fx_turn(&x.fx, 1500);
	assert_in_range(x.vsock.connects, 3, 100);
	assert_answered(&x, client(&x)); /* by gRPC */
	assert_int_equal(x.fx.lane.opens, 1);
	x.vsock.mode = MOCK_VSOCK_ECHO;
	assert_true(fx_until(&x.fx, pool_is_full, &x));
	assert_answered(&x, client(&x));
	assert_int_equal(x.fx.lane.opens, 1);
	vx_stop(&x);
}

static void test_vsock_device_down_resets_what_was_open(void **state)
{
	struct vx x;
	char in[8];
	int fd, later;

	vx_start(&x);
	fd = client(&x);
	assert_int_equal(fx_receive(&x.fx, fd, in, sizeof(in)), 5);
	x.vsock.up = false;
	mock_vsock_break(&x.vsock, false, -ECANCELED);
	assert_int_equal(fx_receive(&x.fx, fd, in, 1), -ECONNRESET);
	close(fd);
	lane_vsock_set_device(x.lane, false);
	assert_false(x.usable);
	later = client(&x);
	assert_answered(&x, later);
	assert_int_equal(x.fx.lane.opens, 1);
	x.vsock.up = true;
	lane_vsock_set_device(x.lane, true);
	assert_true(fx_until(&x.fx, is_usable, &x));
	assert_answered(&x, client(&x));
	assert_int_equal(x.fx.lane.opens, 1);
	vx_stop(&x);
}

static bool all_are_relayed(void *arg)
{
	return ((struct vx *)arg)->vsock.relays == 8;
}

/* It was so for longer than is waited for, and was over for a moment. The client that
 * finds it full again is dialed for once, and served by who can. */
static void device_is_full_again(enum config_lane which)
{
	struct config_port_forward rule = fx_rule(1, 1);
	struct vx x;
	int fds[9];

	rule.guest_port[1] = rule.host_port[1] = 65535;
	rule.lane = which;
	vx_prepare(&x, &rule, 1, NULL);
	x.vsock.full = true;
	lane_vsock_set_agent(x.lane, mock_vsock_ports);
	fx_turn(&x.fx, 400);
	assert_false(x.usable);
	x.vsock.full = false;
	assert_true(fx_until(&x.fx, pool_is_full, &x));
	x.vsock.mode = MOCK_VSOCK_SILENT;
	x.vsock.no_reply = true;
	for (int i = 0; i < 8; i++)
		fds[i] = client(&x);
	assert_true(fx_until(&x.fx, all_are_relayed, &x));
	assert_true(x.usable);
	x.vsock.full = true;
	fds[8] = client(&x);
	assert_true(fx_until(&x.fx, is_unusable, &x));
	if (which == CONFIG_LANE_AUTO)
		assert_answered(&x, fds[8]);
	x.vsock.full = x.vsock.no_reply = false;
	x.vsock.mode = MOCK_VSOCK_ECHO;
	forward_set_lane(x.fx.forward, CONFIG_LANE_GRPC, NULL);
	mock_vsock_break(&x.vsock, false, -ECONNRESET);
	for (int i = 0; i < (which == CONFIG_LANE_AUTO ? 8 : 9); i++)
		assert_answered(&x, fds[i]);
	assert_int_equal(x.fx.lane.opens, which == CONFIG_LANE_AUTO);
	vx_stop(&x);
}

static void test_vsock_full_device_dials_a_client_once(void **state)
{
	device_is_full_again(CONFIG_LANE_AUTO);
	device_is_full_again(CONFIG_LANE_VSOCK);
}

static void test_vsock_client_that_goes_resets_the_guest(void **state)
{
	struct linger at_once = { .l_onoff = 1 };
	struct vx x;
	char in[8];
	int fd;

	vx_start(&x);
	fd = client(&x);
	assert_int_equal(fx_receive(&x.fx, fd, in, sizeof(in)), 5);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(fd);
	while (x.vsock.now > 8)
		fx_turn(&x.fx, 1);
	assert_int_equal(x.vsock.now, 8);
	vx_stop(&x);
}

/* --- by rule -------------------------------------------------------------------- */

static void test_lane_of_a_rule_is_waited_for(void **state)
{
	struct forward_limits limits = { .lane_wait_ms = 400 };
	struct config_port_forward rule = fx_rule(1, 1);
	struct vx x;
	int fd, late;
	char in;

	rule.guest_port[1] = rule.host_port[1] = 65535;
	rule.lane = CONFIG_LANE_VSOCK;
	vx_prepare(&x, &rule, 1, &limits);
	fd = client(&x);
	assert_int_equal(fx_receive(&x.fx, fd, &in, 1), -ECONNRESET);
	close(fd);
	assert_int_equal(fx_row(&x.fx).timeouts, 1);
	late = client(&x);
	fx_turn(&x.fx, 50);
	lane_vsock_set_agent(x.lane, mock_vsock_ports);
	assert_answered(&x, late);
	assert_int_equal(x.fx.lane.opens, 0);
	vx_stop(&x);
}

static bool nobody_waits(void *arg)
{
	return fx_row(&((struct vx *)arg)->fx).connections_now == 0;
}

static void test_client_that_goes_while_it_waits_is_noticed(void **state)
{
	struct linger at_once = { .l_onoff = 1 };
	struct vx x;
	int fds[3];

	vx_start(&x);
	forward_set_lane(x.fx.forward, CONFIG_LANE_GRPC, NULL);
	x.vsock.mode = MOCK_VSOCK_SILENT;
	mock_vsock_break(&x.vsock, true, -ECONNRESET);
	fx_turn(&x.fx, 5);
	for (int i = 0; i < 3; i++) {
		fds[i] = client(&x);
		fx_turn(&x.fx, 5);
		setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	}
	assert_false(nobody_waits(&x));
	for (int i = 0; i < 3; i++)
		close(fds[i]);
	assert_true(fx_until(&x.fx, nobody_waits, &x));
	vx_stop(&x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lane_choice),
		cmocka_unit_test(test_address_texts_back_and_forth),
		cmocka_unit_test(test_vsock_is_asked_for_once_the_agent_said_so),
		cmocka_unit_test(test_vsock_clients_take_from_the_pool),
		cmocka_unit_test(test_vsock_connections_spread_over_the_ports),
		cmocka_unit_test(test_vsock_pool_is_filled_in_batches),
		cmocka_unit_test(test_vsock_served_connections_serve_again),
		cmocka_unit_test(test_vsock_crowd_at_once),
		cmocka_unit_test(test_vsock_last_bytes_have_their_time),
		cmocka_unit_test(test_vsock_refused_target_resets_the_client),
		cmocka_unit_test(test_vsock_stale_connection_is_replaced_unseen),
		cmocka_unit_test(test_vsock_stale_connection_on_a_busy_port),
		cmocka_unit_test(test_vsock_agent_restart_leaves_clients_to_the_other_lane),
		cmocka_unit_test(test_vsock_refusals_do_not_spin),
		cmocka_unit_test(test_vsock_early_ends_do_not_spin),
		cmocka_unit_test(test_vsock_device_down_resets_what_was_open),
		cmocka_unit_test(test_vsock_full_device_dials_a_client_once),
		cmocka_unit_test(test_vsock_client_that_goes_resets_the_guest),
		cmocka_unit_test(test_lane_of_a_rule_is_waited_for),
		cmocka_unit_test(test_client_that_goes_while_it_waits_is_noticed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
