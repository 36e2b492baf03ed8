/* Which host listeners exist, and what is told about it. */
#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/address.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "test/mock/forward.h"

static bool has_ipv6(void)
{
	int fd = fx_bind(SOCK_DGRAM, "::1", 0);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static struct config_port_forward rule(const char *guest_ip, uint16_t port, const char *host_ip,
				       uint16_t host_port)
{
	struct config_port_forward r = fx_rule(port, host_port);

	r.guest_ip = fx_port(0, guest_ip, 1).ip;
	r.host_ip = fx_port(0, host_ip, 1).ip;
	return r;
}

static void say_connections(const struct forward_row *row, char *ret, size_t size)
{
	snprintf(ret, size, "%llu/%llu", (unsigned long long)row->connections_now,
		 (unsigned long long)row->connections_total);
}

static const struct fx_rows *list(struct fx *fx)
{
	return fx_list(fx, say_connections);
}

static void test_ports_open_and_close(void **state)
{
	uint16_t port = fx_free_port();
	struct fx fx;

	fx_start(&fx, NULL, 0, NULL);
	assert_false(fx_reachable("127.0.0.1", port));
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", port);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp 0.0.0.0:%u 127.0.0.1:%u", port, port));
	assert_true(fx_reachable("127.0.0.1", port));
	assert_true(!has_ipv6() || fx_reachable("::1", port));
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", port); /* told twice: nothing new */
	assert_int_equal(fx.events.len, 1);
	fx_remove(&fx, IPPROTO_TCP, "0.0.0.0", port);
	assert_string_equal(fx_newest(&fx),
			    fx_text("stopping tcp 0.0.0.0:%u 127.0.0.1:%u", port, port));
	assert_false(fx_reachable("127.0.0.1", port));
	assert_false(fx_reachable("::1", port));
	fx_remove(&fx, IPPROTO_TCP, "0.0.0.0", port);
	assert_int_equal(fx.events.len, 2);
	fx_stop(&fx);
}

static void test_ports_wildcards_of_both_families_share_one_listener(void **state)
{
	uint16_t port = fx_free_port();
	struct fx fx;

	fx_start(&fx, NULL, 0, NULL);
	fx_add(&fx, IPPROTO_TCP, "::", port);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", port);
	assert_int_equal(fx_count_events(&fx, "forwarding"), 2);
	assert_true(fx_reachable("127.0.0.1", port));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, fx_text("0.0.0.0:%u", port)); /* IPv4 first */
	fx_remove(&fx, IPPROTO_TCP, "0.0.0.0", port);
	assert_true(fx_reachable("127.0.0.1", port)); /* the other one is still there */
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, fx_text("[::]:%u", port));
	fx_remove(&fx, IPPROTO_TCP, "::", port);
	assert_false(fx_reachable("127.0.0.1", port));
	assert_int_equal(fx_count_events(&fx, "stopping"), 2);
	assert_int_equal(fx.events.len, 4);
	fx_stop(&fx);
}

static void test_ports_server_moves_from_wildcard_to_loopback(void **state)
{
	uint16_t port = fx_free_port();
	struct guest_port from = fx_port(IPPROTO_TCP, "0.0.0.0", port);
	struct guest_port to = fx_port(IPPROTO_TCP, "127.0.0.1", port);
	struct fx fx;

	fx_start(&fx, NULL, 0, NULL);
	for (int i = 0; i < 200; i++) {
		forward_change_ports(fx.forward, &to, 1, &from, 1);
		assert_true(fx_reachable("127.0.0.1", port));
		forward_change_ports(fx.forward, &from, 1, &to, 1);
		assert_true(fx_reachable("127.0.0.1", port));
		if (i % 16 == 0)
			uv_run(&fx.loop.uv, UV_RUN_NOWAIT);
	}
	assert_int_equal(fx_count_events(&fx, "failed"), 0);
	fx_stop(&fx);
}

static void test_ports_thousand_times_closed_and_opened(void **state)
{
	enum { CYCLES = 1000 };
	uint16_t port = fx_free_port();
	struct fx fx;

	log_setup(LOG_WARN, LOG_FORMAT_AUTO);
	fx_start(&fx, NULL, 0, NULL);
	for (int i = 0; i < CYCLES; i++) {
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", port);
		fx_add(&fx, IPPROTO_UDP, "127.0.0.1", port);
		assert_true(fx_reachable("127.0.0.1", port));
		if (i % 3) /* with and without the loop having a say in between */
			uv_run(&fx.loop.uv, UV_RUN_NOWAIT);
		fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", port);
		fx_remove(&fx, IPPROTO_UDP, "127.0.0.1", port);
		assert_false(fx_reachable("127.0.0.1", port));
	}
	assert_int_equal(fx_count_events(&fx, "forwarding"), 2 * CYCLES);
	assert_int_equal(fx_count_events(&fx, "stopping"), 2 * CYCLES);
	assert_int_equal(fx.events.len, 4 * CYCLES);
	fx_stop(&fx);
	log_setup(LOG_INFO, LOG_FORMAT_AUTO);
}

static void test_ports_taken_says_by_whom_and_is_taken_over(void **state)
{
	struct forward_limits limits = { .retry_max_ms = 400 };
	static const int types[] = { SOCK_STREAM, SOCK_DGRAM };
	static const char *const names[] = { "tcp", "udp" };

	for (int i = 0; i < 2; i++) {
		uint16_t port = fx_free_port();
		int other = fx_bind(types[i], "127.0.0.1", port);
		struct fx fx;

		assert_true(other >= 0);
		fx_start(&fx, NULL, 0, &limits);
		fx_add(&fx, i ? IPPROTO_UDP : IPPROTO_TCP, "127.0.0.1", port);
		assert_true(fx_wait_event(&fx, "failed"));
		assert_string_equal(
			fx_newest(&fx),
			fx_text("failed %s 127.0.0.1:%u 127.0.0.1:%u address already in "
				"use (forward_ports_t, pid %d)", names[i], port, port, getpid()));
		fx_turn(&fx, 1200); /* a few tries: no further event */
		assert_int_equal(fx.events.len, 1);
		close(other);
		assert_true(fx_wait_event(&fx, fx_text("forwarding %s", names[i])));
		assert_int_equal(fx.events.len, 2);
		fx_remove(&fx, i ? IPPROTO_UDP : IPPROTO_TCP, "127.0.0.1", port);
		assert_int_equal(fx.events.len, 3);
		fx_stop(&fx);
	}
}

static void test_ports_taken_then_gone_before_it_was_free(void **state)
{
	uint16_t port = fx_free_port();
	int other = fx_bind(SOCK_STREAM, "127.0.0.1", port);
	struct fx fx;

	fx_start(&fx, NULL, 0, NULL);
	for (int i = 0; i < 20; i++) { /* also while the owner is being found out */
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", port);
		if (i % 2)
			assert_true(fx_wait_event(&fx, "failed"));
		fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", port);
	}
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", port);
	fx_stop(&fx);
	close(other);
}

static void test_ports_usual_services_of_a_host_are_no_failure(void **state)
{
	int other = fx_bind(SOCK_DGRAM, "127.0.0.1", 5355);
	struct fx fx;

	if (other < 0 && other != -EADDRINUSE)
		skip();
	fx_start(&fx, NULL, 0, NULL);
	fx_add(&fx, IPPROTO_UDP, "0.0.0.0", 5355);
	assert_true(fx_wait_event(&fx, "not-forwarding udp 0.0.0.0:5355 127.0.0.1:5355 address "
				       "already in use"));
	fx_stop(&fx);
	if (other >= 0)
		close(other);
}

static void test_ports_privileged_is_soft(void **state)
{
	struct fx fx;
	int floor_port = 0;
	FILE *f = fopen("/proc/sys/net/ipv4/ip_unprivileged_port_start", "re");

	if (f) {
		if (fscanf(f, "%d", &floor_port) != 1)
			floor_port = 0;
		fclose(f);
	}
	fx_start(&fx, NULL, 0, NULL);
	if (geteuid() == 0)
		assert_int_equal(seteuid(65534), 0);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", 87);
	if (floor_port > 87) {
		assert_int_equal(fx.events.len, 1);
		assert_non_null(strstr(fx_newest(&fx), "not-forwarding tcp 0.0.0.0:87 127.0.0.1:87 "
						       "permission denied: a privileged port"));
		assert_string_equal(list(&fx)->text[0],
				    "tcp 0.0.0.0:87 127.0.0.1:87 not-forwarded 0/0");
	}
	if (getuid() == 0)
		assert_int_equal(seteuid(0), 0);
	fx_stop(&fx);
}

static void test_ports_closed_by_rule(void **state)
{
	struct config_port_forward quiet = rule("::", 1, "127.0.0.1", 1);
	struct fx fx;

	fx_start(&fx, NULL, 0, NULL);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", 22);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", 60022);
	fx_add(&fx, IPPROTO_UDP, "192.168.5.15", 68);
	assert_int_equal(fx.events.len, 3);
	assert_string_equal(fx.events.items[0], "not-forwarding tcp 0.0.0.0:22 -");
	assert_string_equal(fx.events.items[1], "not-forwarding tcp 0.0.0.0:60022 -");
	assert_string_equal(fx.events.items[2], "not-forwarding udp 192.168.5.15:68 -");
	fx_remove(&fx, IPPROTO_TCP, "0.0.0.0", 22); /* was never there: nothing stops */
	assert_int_equal(fx.events.len, 3);
	fx_stop(&fx);
	quiet.guest_port[1] = 65535;
	quiet.ignore = true;
	fx_start(&fx, &quiet, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 8080);
	fx_add(&fx, IPPROTO_UDP, "127.0.0.1", 8080);
	assert_int_equal(fx.events.len, 0);
	fx_stop(&fx);
}

static void test_ports_never_on_the_ssh_port_of_the_host(void **state)
{
	struct config_port_forward r = rule("127.0.0.1", 8080, "127.0.0.1", 60022);
	struct fx fx;

	fx_start(&fx, &r, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 8080);
	assert_string_equal(fx_newest(&fx), "not-forwarding tcp 127.0.0.1:8080 - the host port is "
					    "this instance's ssh port");
	assert_false(fx_reachable("127.0.0.1", 60022));
	fx_stop(&fx);
}

static void test_ports_snapshot_after_reconnect_touches_nothing_that_stayed(void **state)
{
	uint16_t a = fx_free_port(), b = fx_free_port(), c = fx_free_port();
	struct guest_port first[] = { fx_port(IPPROTO_TCP, "127.0.0.1", a),
				      fx_port(IPPROTO_TCP, "0.0.0.0", b),
				      fx_port(IPPROTO_UDP, "0.0.0.0", b) };
	struct guest_port second[] = { first[2], fx_port(IPPROTO_TCP, "127.0.0.1", c), first[0],
				       first[0] };
	struct fx fx;
	int fd;

	fx_start(&fx, NULL, 0, NULL);
	forward_set_ports(fx.forward, first, ARRAY_SIZE(first));
	assert_int_equal(fx_count_events(&fx, "forwarding"), 3);
	fd = fx_connect(SOCK_STREAM, "127.0.0.1", a); /* waits in the backlog of the listener */
	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, NULL);
	forward_set_ports(fx.forward, first, ARRAY_SIZE(first));
	assert_int_equal(fx.events.len, 3);
	forward_set_ports(fx.forward, second, ARRAY_SIZE(second));
	assert_int_equal(fx.events.len, 5);
	assert_string_equal(fx.events.items[3],
			    fx_text("stopping tcp 0.0.0.0:%u 127.0.0.1:%u", b, b));
	assert_string_equal(fx.events.items[4],
			    fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u", c, c));
	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, &fx.lane.lane);
	fx_assert_echo(&fx, fd, "x", 1);
	close(fd);
	forward_set_ports(fx.forward, NULL, 0);
	assert_int_equal(fx_count_events(&fx, "stopping"), 4);
	fx_stop(&fx);
}

static void test_ports_too_many_listeners_wait_for_room(void **state)
{
	struct forward_limits limits = { .max_listeners = 2, .max_ports = 4 };
	uint16_t p[5];
	struct fx fx;

	fx_start(&fx, NULL, 0, &limits);
	for (int i = 0; i < 5; i++) {
		p[i] = fx_free_port();
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p[i]);
	}
	assert_int_equal(fx_count_events(&fx, "forwarding"), 2);
	assert_int_equal(fx_count_events(&fx, "not-forwarding"),
			 2); /* the fifth is not even kept */
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", p[0]);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u", p[2], p[2]));
	assert_true(fx_reachable("127.0.0.1", p[2]));
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", p[3]);
	assert_int_equal(fx_count_events(&fx, "stopping"), 1);
	fx_stop(&fx);
}

static void test_ports_host_addresses_of_rules(void **state)
{
	uint16_t a = fx_free_port(), b = fx_free_port(), c = fx_free_port();
	struct config_port_forward rules[] = { rule("127.0.0.1", a, "0.0.0.0", a),
					       rule("127.0.0.1", b, "::1", b),
					       rule("127.0.0.1", c, "127.0.0.2", c) };
	struct fx fx;

	fx_start(&fx, rules, 3, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", a);
	assert_true(fx_reachable("127.0.0.1", a) && fx_reachable("127.0.0.5", a));
	assert_true(!has_ipv6() || fx_reachable("::1", a));
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", c);
	assert_true(fx_reachable("127.0.0.2", c));
	assert_false(fx_reachable("127.0.0.1", c));
	assert_false(fx_reachable("::1", c));
	if (has_ipv6()) {
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", b);
		assert_true(fx_reachable("::1", b));
		assert_false(fx_reachable("127.0.0.1", b));
	}
	fx_stop(&fx);
}

/* A rule asks for [::1]:p, which the companion of 127.0.0.1:p would hold. */
static void test_ports_companion_yields_to_a_rule(void **state)
{
	uint16_t a = fx_free_port(), p = fx_free_port();
	struct config_port_forward r = rule("127.0.0.1", a, "::1", p);
	struct guest_port both[] = { fx_port(IPPROTO_TCP, "127.0.0.1", p),
				     fx_port(IPPROTO_TCP, "127.0.0.1", a) };
	struct fx fx;

	if (!has_ipv6())
		return;
	for (int order = 0; order < 2; order++) {
		fx_start(&fx, &r, 1, NULL);
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", order ? a : p);
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", order ? p : a);
		assert_int_equal(fx_count_events(&fx, "forwarding"), 2);
		forward_set_ports(fx.forward, NULL, 0);
		forward_set_ports(fx.forward, both, 2); /* in one batch */
		assert_int_equal(fx_count_events(&fx, "forwarding"), 4);
		assert_true(fx_reachable("::1", p));
		fx_turn(&fx, 20);
		assert_string_equal(fx.lane.last_addr, fx_text("127.0.0.1:%u", a));
		fx_stop(&fx);
	}
}

static void test_ports_without_the_companion_when_it_is_taken(void **state)
{
	uint16_t port = fx_free_port();
	int other = fx_bind(SOCK_STREAM, "::1", port);
	struct fx fx;

	fx_start(&fx, NULL, 0, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", port);
	assert_int_equal(fx.events.len, 1);
	assert_int_equal(fx_count_events(&fx, "forwarding"), 1);
	assert_true(fx_reachable("127.0.0.1", port));
	fx_stop(&fx);
	if (other >= 0)
		close(other);
}

static bool v6_is_there(void *arg)
{
	return fx_reachable("::1", *(uint16_t *)arg);
}

/* A dev server on the host's [::1] ends some time after the guest's port was opened. */
static void test_ports_companion_comes_when_it_is_free(void **state)
{
	struct forward_limits limits = { .retry_max_ms = 50 };
	static const int types[] = { SOCK_STREAM, SOCK_DGRAM };
	struct fx fx;

	if (!has_ipv6())
		skip();
	for (int i = 0; i < 2; i++) {
		uint16_t port = fx_free_port();
		int other = fx_bind(types[i], "::1", port), fd;

		fx_start(&fx, NULL, 0, &limits);
		fx_add(&fx, i ? IPPROTO_UDP : IPPROTO_TCP, "127.0.0.1", port);
		assert_int_equal(fx_count_events(&fx, "forwarding"), 1);
		fx_turn(&fx, 120);
		close(other);
		if (i)
			fx_turn(&fx, 1000); /* a datagram waits for nobody */
		else
			assert_true(fx_until(&fx, v6_is_there, &port));
		fd = fx_connect(types[i], "::1", port);
		fx_assert_echo(&fx, fd, "x", 1);
		close(fd);
		assert_int_equal(fx.events.len, 1); /* nobody is told about a companion */
		fx_stop(&fx);
	}
}

/* … or a live rule that asked for it is removed. */
static void test_ports_companion_comes_back_after_a_rule(void **state)
{
	uint16_t a = fx_free_port(), p = fx_free_port();
	struct config_port_forward r;
	struct error err = { 0 };
	struct fx fx;
	unsigned id;

	if (!has_ipv6())
		skip();
	for (int i = 0; i < 2; i++) {
		struct config_port_forward all = rule("127.0.0.1", p, i ? "0.0.0.0" : "127.0.0.1", p);

		r = rule("127.0.0.1", a, "::1", p);
		fx_start(&fx, &all, 1, NULL);
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", a);
		assert_int_equal(forward_add_rule(fx.forward, &r, &id, &err), 0);
		assert_string_equal(fx_newest(&fx),
				    fx_text("forwarding tcp 127.0.0.1:%u [::1]:%u", a, p));
		assert_true(fx_reachable("::1", p));
		fx_turn(&fx, 20);
		assert_string_equal(fx.lane.last_addr, fx_text("127.0.0.1:%u", a));
		assert_int_equal(forward_remove_rule(fx.forward, id, &err), 0);
		assert_true(fx_reachable("::1", p)); /* at once */
		fx_turn(&fx, 20);
		assert_string_equal(fx.lane.last_addr, fx_text("127.0.0.1:%u", p));
		fx_stop(&fx);
	}
}

/* Who asked for [::1] by name waits for it, and has it before any companion. */
static void test_ports_companion_is_not_before_a_rule_that_waits(void **state)
{
	struct forward_limits limits = { .retry_min_ms = 60, .retry_max_ms = 20 };
	uint16_t a = fx_free_port(), p = fx_free_port();
	struct config_port_forward r = rule("127.0.0.1", a, "::1", p);
	int other = fx_bind(SOCK_STREAM, "::1", p);
	struct fx fx;

	if (other < 0)
		skip();
	fx_start(&fx, &r, 1, &limits);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", a);
	assert_true(fx_wait_event(&fx, "failed tcp"));
	close(other);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", p); /* shares 127.0.0.1: nothing is opened */
	assert_true(fx_wait_event(&fx, fx_text("forwarding tcp 127.0.0.1:%u [::1]:%u", a, p)));
	fx_stop(&fx);
}

/* … also for an address of the host that comes and goes, as a VPN's: what is on [::] would
 * be in its way. */
static void test_ports_companion_is_not_before_a_rule_for_an_absent_address(void **state)
{
	struct forward_limits limits = { .retry_max_ms = 20 };
	uint16_t a = fx_free_port(), p = fx_free_port();
	struct config_port_forward rules[] = { rule("127.0.0.1", p, "0.0.0.0", p),
					       rule("127.0.0.1", a, "fd00:7673:6f63:6b::5", p) };
	struct fx fx;

	if (!has_ipv6())
		skip();
	fx_start(&fx, rules, 2, &limits);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_true(fx_reachable("::1", p));
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", a);
	assert_true(fx_wait_event(&fx, fx_text("failed tcp 127.0.0.1:%u", a)));
	fx_turn(&fx, 200);
	assert_false(fx_reachable("::1", p));
	assert_true(fx_reachable("127.0.0.1", p));
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", a);
	assert_true(fx_reachable("::1", p));
	fx_stop(&fx);
}

static void test_ports_list_counts(void **state)
{
	uint16_t port = fx_free_port();
	struct fx fx;
	int fd;

	fx_start(&fx, NULL, 0, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", port);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", 22);
	fd = fx_connect(SOCK_STREAM, "127.0.0.1", port);
	fx_assert_echo(&fx, fd, "x", 1);
	assert_int_equal(list(&fx)->n, 2);
	assert_string_equal(list(&fx)->text[0],
			    fx_text("tcp 127.0.0.1:%u 127.0.0.1:%u forwarding 1/1", port, port));
	assert_string_equal(list(&fx)->text[1], "tcp 0.0.0.0:22 - not-forwarded 0/0");
	close(fd);
	fx_turn(&fx, 50);
	assert_string_equal(list(&fx)->text[0],
			    fx_text("tcp 127.0.0.1:%u 127.0.0.1:%u forwarding 0/1", port, port));
	fx_stop(&fx);
}

/* A guest that opens and closes ports without end cannot fill the host's disk. */
static uint16_t opened[2], closed[2];

static void assert_all_is_done(struct fx *fx, const struct forward_event *ev)
{
	for (size_t i = 0; i < 2; i++) {
		assert_true(fx_reachable("127.0.0.1", opened[i]));
		assert_false(fx_reachable("127.0.0.1", closed[i]));
	}
}

/* Events are lines in files; who waits for a port does not wait for them. */
static void test_ports_are_opened_and_closed_before_anything_is_told(void **state)
{
	struct guest_port all[4];
	struct fx fx;

	for (size_t i = 0; i < 2; i++) {
		opened[i] = fx_free_port();
		all[i] = fx_port(IPPROTO_TCP, "127.0.0.1", opened[i]);
		closed[i] = fx_free_port();
		all[2 + i] = fx_port(IPPROTO_TCP, "127.0.0.1", closed[i]);
	}
	fx_start(&fx, NULL, 0, NULL);
	forward_change_ports(fx.forward, all + 2, 2, NULL, 0);
	fx.on_event = assert_all_is_done;
	forward_change_ports(fx.forward, all, 2, all + 2, 2);
	assert_int_equal(fx_count_events(&fx, "stopping"), 2);
	assert_int_equal(fx_count_events(&fx, "forwarding"), 4);
	assert_string_equal(fx_newest(&fx), fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u",
						    opened[1], opened[1]));
	fx.on_event = NULL;
	fx_stop(&fx);
}

static void test_ports_events_are_bounded(void **state)
{
	struct fx fx;

	log_setup(LOG_FATAL, LOG_FORMAT_AUTO);
	fx_start(&fx, NULL, 0, NULL);
	for (int i = 0; i < 40000; i++) {
		fx_add(&fx, IPPROTO_TCP, "10.0.0.1", 80);
		fx_remove(&fx, IPPROTO_TCP, "10.0.0.1", 80);
	}
	assert_in_range(fx.events.len, 16384, 33500);
	fx_stop(&fx);
	log_setup(LOG_INFO, LOG_FORMAT_AUTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ports_open_and_close),
		cmocka_unit_test(test_ports_wildcards_of_both_families_share_one_listener),
		cmocka_unit_test(test_ports_server_moves_from_wildcard_to_loopback),
		cmocka_unit_test(test_ports_thousand_times_closed_and_opened),
		cmocka_unit_test(test_ports_taken_says_by_whom_and_is_taken_over),
		cmocka_unit_test(test_ports_taken_then_gone_before_it_was_free),
		cmocka_unit_test(test_ports_usual_services_of_a_host_are_no_failure),
		cmocka_unit_test(test_ports_privileged_is_soft),
		cmocka_unit_test(test_ports_closed_by_rule),
		cmocka_unit_test(test_ports_never_on_the_ssh_port_of_the_host),
		cmocka_unit_test(test_ports_snapshot_after_reconnect_touches_nothing_that_stayed),
		cmocka_unit_test(test_ports_too_many_listeners_wait_for_room),
		cmocka_unit_test(test_ports_host_addresses_of_rules),
		cmocka_unit_test(test_ports_companion_yields_to_a_rule),
		cmocka_unit_test(test_ports_without_the_companion_when_it_is_taken),
		cmocka_unit_test(test_ports_companion_comes_when_it_is_free),
		cmocka_unit_test(test_ports_companion_comes_back_after_a_rule),
		cmocka_unit_test(test_ports_companion_is_not_before_a_rule_that_waits),
		cmocka_unit_test(test_ports_companion_is_not_before_a_rule_for_an_absent_address),
		cmocka_unit_test(test_ports_list_counts),
		cmocka_unit_test(test_ports_are_opened_and_closed_before_anything_is_told),
		cmocka_unit_test(test_ports_events_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
