/* Rules that do more than match: static ones, live ones, host ports by choice, what
 * happens when a port is taken, and what is never given away. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/address.h"
#include "hostagent/forward/owner.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "test/mock/forward.h"

/* Of the rule that decided. */
static void say_whose(const struct forward_row *row, char *ret, size_t size)
{
	snprintf(ret, size, "%s%s%s%s%s", row->origin, *row->rule ? " " : "", row->rule,
		 row->is_static ? " static" : "", row->reverse ? " reverse" : "");
}

static const struct fx_rows *list(struct fx *fx)
{
	return fx_list(fx, say_whose);
}

/* Number of the host port that the newest event names. */
static uint16_t host_port_of(const char *event)
{
	const char *guest = strchr(strchr(event, ' ') + 1, ' ') + 1;
	const char *host = strchr(guest, ' ') + 1;

	return (uint16_t)atoi(strrchr(host, ':') + 1);
}

/* --- static ------------------------------------------------------------------ */

static void test_policy_static_is_there_from_the_start(void **state)
{
	uint16_t a = fx_free_port(), b = fx_free_port();
	struct config_port_forward rules[] = { fx_rule(8080, a), fx_rule(9000, b) };
	struct fx fx;
	int fd;

	rules[0].is_static = rules[1].is_static = true;
	rules[0].proto = L4_TCP;
	rules[1].proto = L4_UDP;
	fx_start(&fx, rules, 2, NULL);
	assert_int_equal(fx.events.len, 2);
	assert_string_equal(fx.events.items[0],
			    fx_text("forwarding tcp 127.0.0.1:8080 127.0.0.1:%u", a));
	assert_string_equal(fx.events.items[1],
			    fx_text("forwarding udp 127.0.0.1:9000 127.0.0.1:%u", b));
	fd = fx_connect(SOCK_STREAM, "127.0.0.1", a);
	fx_assert_echo(&fx, fd, "abc", 3);
	close(fd);
	fd = fx_connect(SOCK_DGRAM, "127.0.0.1", b);
	fx_assert_echo(&fx, fd, "abc", 3);
	close(fd);
	assert_string_equal(
		list(&fx)->text[0],
		fx_text("tcp 127.0.0.1:8080 127.0.0.1:%u forwarding file portForwards[0] static",
			a));
	forward_set_ports(fx.forward, NULL, 0); /* a guest without listeners changes nothing */
	assert_int_equal(fx.events.len, 2);
	assert_true(fx_reachable("127.0.0.1", a));
	fx_stop(&fx);
}

static void test_policy_static_range_of_both_protocols(void **state)
{
	uint16_t a = fx_free_port();
	struct config_port_forward r = fx_rule(100, a);
	struct fx fx;

	for (int i = 0; i < 9; i++)
		assert_int_equal(fx_free_port(), a + i + 1); /* ten in a row */
	r.is_static = true;
	r.guest_port[1] = 109;
	r.host_port[1] = (uint16_t)(a + 9);
	fx_start(&fx, &r, 1, NULL);
	assert_int_equal(fx_count_events(&fx, "forwarding tcp"), 10);
	assert_int_equal(fx_count_events(&fx, "forwarding udp"), 10);
	for (uint16_t i = 0; i < 10; i++)
		assert_true(fx_reachable("127.0.0.1", (uint16_t)(a + i)));
	fx_stop(&fx);
}

static void test_policy_static_in_plain_mode_is_tcp_over_ssh(void **state)
{
	uint16_t a = fx_free_port();
	struct config_port_forward r = fx_rule(8080, a);
	struct config c = { .port_forwards = &r, .n_port_forwards = 1, .plain = true };
	struct forward_options more = { 0 };
	struct fx fx;
	int fd;

	r.is_static = true;
	fx_start_with(&fx, &c, &more);
	assert_int_equal(fx.events.len, 1);
	forward_set_lane(fx.forward, CONFIG_LANE_GRPC, NULL);
	forward_set_lane(fx.forward, CONFIG_LANE_SSH, &fx.lane.lane);
	fd = fx_connect(SOCK_STREAM, "127.0.0.1", a);
	fx_assert_echo(&fx, fd, "x", 1);
	close(fd);
	fx_stop(&fx);
}

/* One row, one event; but it dials what really listens. */
static void test_policy_static_stands_for_the_listener(void **state)
{
	uint16_t a = fx_free_port();
	struct config_port_forward r = fx_rule(8080, a);
	struct fx fx;

	r.is_static = true;
	r.proto = L4_TCP;
	fx_start(&fx, &r, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "::1", 8080);
	assert_int_equal(fx.events.len, 1);
	assert_int_equal(list(&fx)->n, 1);
	assert_true(fx_reachable("127.0.0.1", a));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, "[::1]:8080");
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", 8080);
	assert_true(fx_reachable("127.0.0.1", a));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, "0.0.0.0:8080");
	fx_remove(&fx, IPPROTO_TCP, "0.0.0.0", 8080);
	fx_remove(&fx, IPPROTO_TCP, "::1", 8080);
	assert_true(fx_reachable("127.0.0.1", a));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, "127.0.0.1:8080");
	assert_int_equal(fx.events.len, 1);
	fx_stop(&fx);
}

static void test_policy_static_behind_an_earlier_rule(void **state)
{
	uint16_t a = fx_free_port(), b = fx_free_port();
	struct config_port_forward rules[] = { fx_rule(8080, a), fx_rule(8081, b), fx_rule(8080, a),
					       fx_rule(8081, a), fx_rule(60022, a) };
	struct fx fx;

	rules[0].ignore = true;
	for (int i = 2; i < 5; i++) {
		rules[i].is_static = true;
		rules[i].proto = L4_TCP;
	}
	fx_start(&fx, rules, 5, NULL);
	assert_int_equal(fx.events.len, 3);
	assert_string_equal(fx.events.items[0], "not-forwarding tcp 127.0.0.1:8080 - "
						"portForwards[0] comes first and ignores it");
	assert_string_equal(fx.events.items[1], "not-forwarding tcp 127.0.0.1:8081 - "
						"portForwards[1] comes first and decides");
	assert_string_equal(fx.events.items[2], "not-forwarding tcp 127.0.0.1:60022 - "
						"ssh's own rule comes first and ignores it");
	assert_false(fx_reachable("127.0.0.1", a));
	fx_stop(&fx);
}

static void test_policy_static_host_socket(void **state)
{
	struct config_port_forward r = fx_rule(8080, 0);
	char dir[] = "/tmp/lima-policy-XXXXXX", path[64];
	struct stat st;
	struct fx fx;
	int fd;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/sub/x.sock", dir);
	r.is_static = true;
	r.host_socket = path;
	fx_start(&fx, &r, 1, NULL);
	assert_int_equal(fx.events.len, 1); /* no UDP on a stream socket */
	assert_int_equal(lstat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	fd = fx_connect_unix(path);
	assert_true(fd >= 0);
	fx_assert_echo(&fx, fd, "x", 1);
	close(fd);
	fx_stop(&fx);
	assert_int_equal(lstat(path, &st), -1);
	rmdir(fx_text("%s/sub", dir));
	rmdir(dir);
}

/* --- live rules -------------------------------------------------------------- */

static void test_policy_live_rule_moves_what_it_is_about(void **state)
{
	uint16_t p = fx_free_port(), q = fx_free_port(), a = fx_free_port();
	struct config_port_forward r = fx_rule(p, a);
	struct error err = { 0 };
	struct fx fx;
	unsigned id = 0;

	fx_start(&fx, NULL, 0, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", q);
	assert_int_equal(forward_add_rule(fx.forward, &r, &id, &err), 0);
	assert_int_equal(fx.events.len, 4);
	assert_string_equal(fx.events.items[2],
			    fx_text("stopping tcp 127.0.0.1:%u 127.0.0.1:%u", p, p));
	assert_string_equal(fx.events.items[3],
			    fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u", p, a));
	assert_true(fx_reachable("127.0.0.1", a));
	assert_false(fx_reachable("127.0.0.1", p));
	assert_string_equal(
		list(&fx)->text[0],
		fx_text("tcp 127.0.0.1:%u 127.0.0.1:%u forwarding live live rule %u", p, a, id));
	assert_string_equal(list(&fx)->text[1],
			    fx_text("tcp 127.0.0.1:%u 127.0.0.1:%u forwarding builtin", q, q));
	assert_int_equal(forward_remove_rule(fx.forward, id, &err), 0);
	assert_int_equal(fx.events.len, 6);
	assert_true(fx_reachable("127.0.0.1", p));
	assert_false(fx_reachable("127.0.0.1", a));
	assert_int_equal(forward_remove_rule(fx.forward, id, &err), -ENOENT);
	fx_stop(&fx);
}

static void test_policy_live_ignore_closes(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(p, p);
	struct error err = { 0 };
	struct fx fx;
	unsigned id;

	r.ignore = true;
	fx_start(&fx, NULL, 0, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_int_equal(forward_add_rule(fx.forward, &r, &id, &err), 0);
	assert_false(fx_reachable("127.0.0.1", p));
	assert_string_equal(fx_newest(&fx), fx_text("not-forwarding tcp 127.0.0.1:%u -", p));
	assert_int_equal(forward_remove_rule(fx.forward, id, &err), 0);
	assert_true(fx_reachable("127.0.0.1", p));
	fx_stop(&fx);
}

static void test_policy_live_static_rule(void **state)
{
	uint16_t a = fx_free_port(), p = fx_free_port();
	struct config_port_forward r = fx_rule(p, a);
	struct error err = { 0 };
	struct fx fx;
	unsigned id;

	r.is_static = true;
	fx_start(&fx, NULL, 0, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_int_equal(forward_add_rule(fx.forward, &r, &id, &err), 0);
	assert_true(fx_reachable("127.0.0.1", a));
	assert_int_equal(list(&fx)->n, 2); /* tcp, udp; the listener is covered */
	assert_int_equal(forward_remove_rule(fx.forward, id, &err), 0);
	assert_false(fx_reachable("127.0.0.1", a));
	assert_true(fx_reachable("127.0.0.1", p));
	assert_int_equal(list(&fx)->n, 1);
	fx_stop(&fx);
}

static void count_rule(void *arg, const struct forward_rule_info *info)
{
	++*(unsigned *)arg;
	assert_non_null(info->rule);
	assert_true(*info->name);
}

static void test_policy_live_rules_that_are_refused(void **state)
{
	struct config_port_forward file = fx_rule(8080, 8081), good = fx_rule(80, 8082);
	struct config_port_forward ssh = fx_rule(22, 2222), own = fx_rule(60022, 7000),
				   host = fx_rule(7000, 60022), socket = fx_rule(1, 1);
	struct error err = { 0 };
	unsigned id, n = 0;
	struct fx fx;

	socket.guest_socket = socket.host_socket = (char *)"/run/x.sock";
	socket.reverse = true;
	fx_start(&fx, &file, 1, NULL);
	assert_int_equal(forward_add_rule(fx.forward, &ssh, &id, &err), -EPERM);
	assert_int_equal(forward_add_rule(fx.forward, &own, &id, &err), -EPERM);
	assert_int_equal(forward_add_rule(fx.forward, &host, &id, &err), -EPERM);
	assert_string_equal(err.msg, "host port 60022 is this instance's ssh port");
	assert_int_equal(forward_add_rule(fx.forward, &socket, &id, &err), -ENOTSUP);
	assert_int_equal(forward_add_rule(fx.forward, &good, &id, &err), 0);
	assert_int_equal(forward_add_rule(fx.forward, &good, &id, &err), -EEXIST);
	assert_int_equal(forward_remove_rule(fx.forward, 1, &err), -EPERM);
	assert_non_null(strstr(err.msg, "portForwards[0] is in lima.yaml"));
	for (uint16_t i = 0; i < 255; i++) {
		struct config_port_forward more =
			fx_rule((uint16_t)(i + 100), (uint16_t)(i + 9000));

		assert_int_equal(forward_add_rule(fx.forward, &more, &id, &err), 0);
	}
	good.host_port[0] = good.host_port[1] = 8083;
	assert_int_equal(forward_add_rule(fx.forward, &good, &id, &err), -ENOSPC);
	forward_each_rule(fx.forward, count_rule, &n);
	assert_int_equal(n, 257);
	fx_stop(&fx);
}

/* --- one host port, two guest ports ------------------------------------------ */

static void test_policy_second_guest_port_stands_aside(void **state)
{
	uint16_t p = fx_free_port(), q = fx_free_port();
	struct config_port_forward r = fx_rule(p, q);
	struct fx fx;

	fx_start(&fx, &r, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", p);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", q);
	fx_add(&fx, IPPROTO_TCP, "::1", q);
	assert_int_equal(fx.events.len, 3);
	assert_string_equal(
		fx_newest(&fx),
		fx_text("failed tcp [::1]:%u 127.0.0.1:%u another port of this guest has "
			"it, 0.0.0.0:%u", q, q, p));
	assert_string_equal(list(&fx)->text[1],
			    fx_text("tcp 127.0.0.1:%u 127.0.0.1:%u waiting builtin", q, q));
	assert_true(fx_reachable("127.0.0.1", q));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, fx_text("0.0.0.0:%u", p));
	fx_remove(&fx, IPPROTO_TCP, "0.0.0.0", p);
	assert_int_equal(fx_count_events(&fx, fx_text("forwarding tcp 127.0.0.1:%u", q)), 1);
	assert_int_equal(fx_count_events(&fx, fx_text("forwarding tcp [::1]:%u", q)), 1);
	assert_true(fx_reachable("127.0.0.1", q));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, fx_text("127.0.0.1:%u", q));
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", q);
	fx_remove(&fx, IPPROTO_TCP, "::1", q);
	assert_false(fx_reachable("127.0.0.1", q));
	fx_stop(&fx);
}

/* --- host ports by choice ---------------------------------------------------- */

static void test_policy_auto_takes_its_own_number_or_the_next(void **state)
{
	uint16_t p = fx_free_port(), next;
	struct config_port_forward r = fx_rule(p, p);
	int other;
	struct fx fx;

	while ((next = fx_free_port()) != p + 1) /* two in a row */
		p = next, r = fx_rule(p, p);
	r.host_port_auto = true;
	fx_start(&fx, &r, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u", p, p));
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", p);
	other = fx_bind(SOCK_STREAM, "127.0.0.1", p);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u", p, p + 1));
	assert_int_equal(fx_count_events(&fx, "failed"), 0);
	/* the other family joins, and keeps it when the first one goes */
	fx_add(&fx, IPPROTO_TCP, "::", p);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp [::]:%u 127.0.0.1:%u", p, p + 1));
	close(other);
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_true(fx_reachable("127.0.0.1", (uint16_t)(p + 1)));
	fx_remove(&fx, IPPROTO_TCP, "::", p);
	/* remembered: the same one again, though its own number is free now */
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u", p, p + 1));
	fx_stop(&fx);
}

static bool file_is_there(void *arg)
{
	return access(arg, F_OK) == 0;
}

static void test_policy_auto_is_remembered_over_restarts(void **state)
{
	uint16_t p = fx_free_port(), got;
	struct config_port_forward r = fx_rule(p, p);
	struct config c = { .port_forwards = &r, .n_port_forwards = 1 };
	char dir[] = "/tmp/lima-policy-XXXXXX", file[64];
	struct forward_options more = { .remember_file = file };
	int other;
	struct fx fx;

	assert_non_null(mkdtemp(dir));
	snprintf(file, sizeof(file), "%s/host-ports", dir);
	r.host_port_auto = true;
	other = fx_bind(SOCK_STREAM, "127.0.0.1", p);
	fx_start_with(&fx, &c, &more);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	got = host_port_of(fx_newest(&fx));
	assert_true(got > p);
	assert_true(fx_until(&fx, file_is_there, file));
	fx_stop(&fx);
	close(other);
	fx_start_with(&fx, &c, &more);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_int_equal(host_port_of(fx_newest(&fx)), got);
	fx_stop(&fx);
	/* a file of nonsense is an empty one */
	FILE *f = fopen(file, "we");
	fputs("tcp 127.0.0.1 99999 1\nudp\n\ntcp x 1 2\ntcp 127.0.0.1 0 7\n", f);
	fclose(f);
	fx_start_with(&fx, &c, &more);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_int_equal(host_port_of(fx_newest(&fx)), p);
	fx_stop(&fx);
	unlink(file);
	rmdir(dir);
}

static void test_policy_auto_keeps_off_what_others_have(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward rules[] = { fx_rule(p, p), fx_rule(1000, p) };
	struct fx fx;

	rules[0].host_port_auto = true;
	fx_start(&fx, rules, 2, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 1000); /* has p by number */
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_int_equal(fx_count_events(&fx, "failed"), 0);
	assert_true(host_port_of(fx_newest(&fx)) > p);
	assert_true(fx_reachable("127.0.0.1", host_port_of(fx_newest(&fx))));
	fx_stop(&fx);
	/* in one batch, whatever the order: who has a number comes first */
	struct guest_port both[] = { fx_port(IPPROTO_TCP, "127.0.0.1", p),
				     fx_port(IPPROTO_TCP, "127.0.0.1", 1000) };
	fx_start(&fx, rules, 2, NULL);
	forward_set_ports(fx.forward, both, 2);
	assert_int_equal(
		fx_count_events(&fx, fx_text("forwarding tcp 127.0.0.1:1000 127.0.0.1:%u", p)), 1);
	assert_int_equal(fx_count_events(&fx, "forwarding"), 2);
	fx_stop(&fx);
}

static void test_policy_auto_of_a_closed_and_opened_port(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(p, p);
	struct guest_port v4 = fx_port(IPPROTO_TCP, "127.0.0.1", p),
			  any = fx_port(IPPROTO_TCP, "0.0.0.0", p);
	struct fx fx;

	r.host_port_auto = true;
	fx_start(&fx, &r, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	for (int i = 0; i < 100; i++) {
		forward_change_ports(fx.forward, &any, 1, &v4, 1);
		assert_int_equal(host_port_of(fx_newest(&fx)), p);
		forward_change_ports(fx.forward, &v4, 1, &any, 1);
		assert_int_equal(host_port_of(fx_newest(&fx)), p);
	}
	fx_stop(&fx);
}

static void test_policy_remap_is_auto_for_all_but_static(void **state)
{
	uint16_t p = fx_free_port(), q = fx_free_port();
	struct config_port_forward r = fx_rule(q, q);
	struct config c = { .port_forwards = &r, .n_port_forwards = 1,
			    .port_forwarding.conflict = CONFLICT_REMAP };
	struct forward_options more = { 0 };
	int a = fx_bind(SOCK_STREAM, "127.0.0.1", p), b = fx_bind(SOCK_STREAM, "127.0.0.1", q);
	struct fx fx;

	r.is_static = true;
	r.proto = L4_TCP;
	fx_start_with(&fx, &c, &more);
	assert_true(fx_wait_event(&fx, "failed tcp")); /* the static one waits */
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", p);
	assert_true(host_port_of(fx_newest(&fx)) > p);
	assert_int_equal(fx_count_events(&fx, "forwarding"), 1);
	close(a);
	close(b);
	fx_stop(&fx);
}

/* --- an address of its own --------------------------------------------------- */

static void test_policy_loopback_lets_two_instances_have_one_port(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(1000, p);
	struct config c = { .port_forwards = &r, .n_port_forwards = 1,
			    .port_forwarding.conflict = CONFLICT_LOOPBACK };
	struct forward_options one = { .loopback = address_v4(127, 0, 0, 77) },
			       two = { .loopback = address_v4(127, 0, 0, 78) };
	struct fx a, b;

	fx_start_with(&a, &c, &one);
	fx_start_with(&b, &c, &two);
	fx_add(&a, IPPROTO_TCP, "0.0.0.0", p);
	fx_add(&b, IPPROTO_TCP, "0.0.0.0", p);
	assert_string_equal(fx_newest(&a),
			    fx_text("forwarding tcp 0.0.0.0:%u 127.0.0.77:%u", p, p));
	assert_string_equal(fx_newest(&b),
			    fx_text("forwarding tcp 0.0.0.0:%u 127.0.0.78:%u", p, p));
	assert_true(fx_reachable("127.0.0.77", p) && fx_reachable("127.0.0.78", p));
	assert_false(fx_reachable("127.0.0.1", p));
	assert_false(fx_reachable("::1", p)); /* there is only one of it: nobody's */
	/* a rule's own 127.0.0.1 is the instance's as well */
	fx_add(&a, IPPROTO_TCP, "127.0.0.1", 1000);
	assert_string_equal(fx_newest(&a),
			    fx_text("failed tcp 127.0.0.1:1000 127.0.0.77:%u another port "
				    "of this guest has it, 0.0.0.0:%u", p, p));
	fx_stop(&b);
	fx_stop(&a);
}

static void test_policy_first_waits_for_the_other_instance(void **state)
{
	struct forward_limits limits = { .retry_min_ms = 20 };
	uint16_t p = fx_free_port();
	struct fx a, b;

	fx_start(&a, NULL, 0, NULL);
	fx_start(&b, NULL, 0, &limits);
	fx_add(&a, IPPROTO_TCP, "127.0.0.1", p);
	fx_add(&b, IPPROTO_TCP, "127.0.0.1", p);
	assert_true(
		fx_wait_event(&b, fx_text("failed tcp 127.0.0.1:%u 127.0.0.1:%u address already in "
					  "use (", p, p)));
	fx_remove(&a, IPPROTO_TCP, "127.0.0.1", p);
	assert_true(fx_wait_event(&b, "forwarding tcp"));
	fx_add(&a, IPPROTO_TCP, "127.0.0.1", p); /* and the other way round */
	assert_true(fx_wait_event(&a, "failed tcp"));
	fx_stop(&b);
	assert_true(fx_wait_event(&a, "forwarding tcp"));
	fx_stop(&a);
}

/* This program once more, with a command line of ours, as who has the port. */
static pid_t start_holder(uint16_t port, char *const *argv)
{
	int fds[2];
	char byte;
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		setenv("HOLD_PORT", fx_text("%u", port), 1);
		setenv("HOLD_READY", fx_text("%d", fds[1]), 1);
		execv("/proc/self/exe", argv);
		_exit(127);
	}
	close(fds[1]);
	assert_int_equal(read(fds[0], &byte, 1), 1);
	close(fds[0]);
	return pid;
}

static int hold_port(const char *port, const char *ready)
{
	int fd = fx_bind(SOCK_STREAM, "127.0.0.1", (uint16_t)atoi(port));

	if (fd < 0 || write(atoi(ready), "x", 1) != 1)
		return 1;
	for (;;)
		pause();
}

static void test_policy_owner_is_another_instance(void **state)
{
	static char *const lines[][6] = {
		{ "limactl", "hostagent", "--pidfile", "/x/ha.pid", "db", NULL },
		{ "qemu-system-x86_64", "-m", "1", "-name", "lima-db,process=qemu-lima-db", NULL },
		{ "ssh", "-F", "/dev/null", "-o", "ControlPath=\"/l/db/ssh.sock\"", NULL },
		{ "limactl", "hostagent", NULL },
		{ "ssh", "-o", "ControlPath=/ssh.sock", NULL },
	};
	uint16_t p = fx_free_port();
	struct fx fx;

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		pid_t pid = start_holder(p, lines[i]);
		char wanted[160];
		int status;

		snprintf(wanted, sizeof(wanted), "%s, pid %d)",
			 i < 3 ? "(instance `db`" : "(exe", pid);
		fx_start(&fx, NULL, 0, NULL);
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
		assert_true(fx_wait_event(&fx, "failed"));
		assert_non_null(strstr(fx_newest(&fx), wanted));
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(fx_wait_event(&fx, "forwarding"));
		fx_stop(&fx);
	}
}

struct asker { /* who asks for the next one in the answer to the last */
	struct owner_finder *f;
	unsigned asked, answered;
};

static void on_answer(void *arg, const char *answer)
{
	struct asker *a = arg;
	struct in6_addr ip = address_v4(127, 0, 0, 1);

	a->answered++;
	assert_string_equal(answer, "");
	if (a->asked < 100) {
		owner_ask(a->f, IPPROTO_TCP, &ip, 1, on_answer, a);
		a->asked++;
	}
}

static void test_policy_owner_asked_from_an_answer(void **state)
{
	struct in6_addr ip = address_v4(127, 0, 0, 1);
	struct error err = ERROR_NONE;
	struct hub hub = { 0 };
	struct asker a = { 0 };
	struct loop loop;

	assert_int_equal(loop_init(&loop, &err), 0);
	hub.loop = &loop;
	a.f = owner_finder_new(&hub);
	for (; a.asked < 3; a.asked++)
		owner_ask(a.f, IPPROTO_TCP, &ip, 1, on_answer, &a);
	while (hub.refs)
		uv_run(&loop.uv, UV_RUN_ONCE);
	assert_int_equal(a.answered, a.asked);
	assert_int_equal(a.asked, 100);
	owner_finder_free(a.f);
	assert_int_equal(loop_done(&loop), 0);
}

/* --- what is never given away ------------------------------------------------ */

static void test_policy_root_keeps_privileged_ports(void **state)
{
	uint16_t p = fx_free_port(), q = fx_free_port();
	struct config_port_forward rules[] = { fx_rule(1000, p), fx_rule(2000, 1) };
	struct config c = { .port_forwards = rules, .n_port_forwards = 2 };
	struct forward_options more = { .unprivileged_start = 65535 };
	struct fx fx;

	if (geteuid() != 0)
		skip();
	rules[1].guest_port[1] = 2999; /* a broad one: it does not mean each */
	rules[1].host_port[0] = q;
	rules[1].host_port[1] = (uint16_t)(q + 999);
	fx_start_with(&fx, &c, &more);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_string_equal(fx_newest(&fx),
			    fx_text("not-forwarding tcp 127.0.0.1:%u - host ports below "
				    "65535 are privileged: name it in a rule of its own, "
				    "or set portForwarding.privilegedPorts", p));
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 2000);
	assert_int_equal(fx_count_events(&fx, "not-forwarding"), 2);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 1000);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp 127.0.0.1:1000 127.0.0.1:%u", p));
	fx_stop(&fx);
	c.port_forwarding.privileged_ports = true;
	fx_start_with(&fx, &c, &more);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", q);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u", q, q));
	fx_stop(&fx);
}

struct instances {
	uint16_t port;
	unsigned looks;
};

static size_t list_instances(void *arg, struct forward_reserved *ret, size_t max)
{
	struct instances *in = arg;

	__atomic_add_fetch(&in->looks, 1, __ATOMIC_SEQ_CST);
	if (!in->port)
		return 0;
	ret[0].port = in->port;
	strcpy(ret[0].name, "db");
	return 1;
}

static bool has_looked(void *arg)
{
	return __atomic_load_n(&((struct instances *)arg)->looks, __ATOMIC_SEQ_CST) > 0;
}

static void test_policy_ssh_ports_of_other_instances(void **state)
{
	uint16_t p = fx_free_port(), next = fx_free_port(), q = fx_free_port();
	struct instances in = { .port = p };
	struct config c = { 0 };
	struct forward_options more = { .reserved = { list_instances, &in } };
	struct config_port_forward r = fx_rule(1000, p);
	struct error err = { 0 };
	struct fx fx;
	unsigned id;

	assert_true(next > p); /* where the one of choice will go */
	fx_start_with(&fx, &c, &more);
	assert_true(fx_until(&fx, has_looked, &in));
	fx_turn(&fx, 20);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", p);
	assert_string_equal(fx_newest(&fx),
			    fx_text("not-forwarding tcp 0.0.0.0:%u - the host port is the "
				    "ssh port of instance `db`", p));
	assert_false(fx_reachable("127.0.0.1", p));
	assert_int_equal(forward_add_rule(fx.forward, &r, &id, &err), -EPERM);
	r = fx_rule(1000, p);
	r.host_port_auto = true; /* another one it is, then */
	assert_int_equal(forward_add_rule(fx.forward, &r, &id, &err), 0);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 1000);
	assert_true(host_port_of(fx_newest(&fx)) > p);
	/* the instance took another port meanwhile: seen with the next one that opens */
	in.port = q;
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", q);
	assert_true(fx_reachable("127.0.0.1", q));
	assert_true(fx_wait_event(&fx, fx_text("forwarding tcp 0.0.0.0:%u", p)));
	assert_false(fx_reachable("127.0.0.1", q));
	assert_int_equal(fx_count_events(&fx, fx_text("stopping tcp 0.0.0.0:%u", q)), 1);
	assert_true(fx_reachable("127.0.0.1", p));
	fx_stop(&fx);
}

/* A guest's socket on a host port: once ssh is there, and that one keeps off ssh's, too. */
static void test_policy_host_port_of_a_guest_socket(void **state)
{
	uint16_t p = fx_free_port();
	struct instances in = { 0 };
	struct config_port_forward r = fx_rule(0, p);
	struct config c = { .port_forwards = &r, .n_port_forwards = 1 };
	struct forward_options more = { .reserved = { list_instances, &in },
					.loopback = fx_port(0, "127.0.0.7", 1).ip };
	struct fx fx;

	r.guest_socket = (char *)"/run/x.sock";
	fx_start_with(&fx, &c, &more);
	fx_turn(&fx, 20);
	assert_int_equal(fx.events.len, 0);
	assert_string_equal(fx_list(&fx, NULL)->text[0],
			    fx_text("tcp /run/x.sock 127.0.0.7:%u waiting "
				    "no ssh connection to the guest yet", p));
	assert_false(fx_reachable("127.0.0.7", p));
	forward_set_lane(fx.forward, CONFIG_LANE_SSH, &fx.lane.lane);
	assert_true(fx_wait_event(&fx, fx_text("forwarding tcp /run/x.sock 127.0.0.7:%u", p)));
	assert_true(fx_reachable("127.0.0.7", p));
	forward_set_lane(fx.forward, CONFIG_LANE_SSH, NULL); /* the next one may come soon */
	assert_true(fx_reachable("127.0.0.7", p));
	in.port = p; /* an instance was made that has it */
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", fx_free_port());
	assert_true(fx_wait_event(&fx, "not-forwarding tcp /run/x.sock"));
	assert_int_equal(fx_count_events(&fx, "stopping tcp /run/x.sock"), 1);
	assert_non_null(strstr(fx_newest(&fx), "is the ssh port of instance `db`"));
	assert_false(fx_reachable("127.0.0.7", p));
	fx_stop(&fx);
}

/* Two things of the guest for one host port: the second waits, and is told for what. */
static void test_policy_guest_socket_shares_with_nobody(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward r[] = { fx_rule(0, p), fx_rule(0, p), fx_rule(p, p) };
	struct error err = { 0 };
	struct fx fx;
	unsigned id, other;

	r[0].guest_socket = (char *)"/run/x.sock";
	r[1].guest_socket = (char *)"/run/y.sock";
	fx_start(&fx, NULL, 0, NULL);
	forward_set_lane(fx.forward, CONFIG_LANE_SSH, &fx.lane.lane);
	assert_int_equal(forward_add_rule(fx.forward, &r[0], &id, &err), 0);
	assert_int_equal(forward_add_rule(fx.forward, &r[1], &other, &err), 0);
	assert_int_equal(fx_count_events(&fx, "forwarding tcp /run/x.sock"), 1);
	assert_true(fx_reachable("::1", p));
	assert_true(fx_wait_event(&fx, "failed tcp /run/y.sock"));
	assert_non_null(strstr(fx.events.items[1],
			       "another socket of this guest has it, /run/x.sock"));
	assert_int_equal(forward_remove_rule(fx.forward, other, &err), 0);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_true(fx_wait_event(&fx, "failed tcp 127.0.0.1"));
	assert_int_equal(forward_remove_rule(fx.forward, id, &err), 0);
	assert_true(fx_wait_event(&fx, "forwarding tcp 127.0.0.1"));
	r[0].guest_socket = (char *)"/run/a:b.sock";
	assert_int_equal(forward_add_rule(fx.forward, &r[0], &id, &err), -EINVAL);
	assert_non_null(strstr(err.msg, "a colon"));
	fx_stop(&fx);
}

int main(void)
{
	const char *port = getenv("HOLD_PORT"), *ready = getenv("HOLD_READY");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_policy_static_is_there_from_the_start),
		cmocka_unit_test(test_policy_static_range_of_both_protocols),
		cmocka_unit_test(test_policy_static_in_plain_mode_is_tcp_over_ssh),
		cmocka_unit_test(test_policy_static_stands_for_the_listener),
		cmocka_unit_test(test_policy_static_behind_an_earlier_rule),
		cmocka_unit_test(test_policy_static_host_socket),
		cmocka_unit_test(test_policy_live_rule_moves_what_it_is_about),
		cmocka_unit_test(test_policy_live_ignore_closes),
		cmocka_unit_test(test_policy_live_static_rule),
		cmocka_unit_test(test_policy_live_rules_that_are_refused),
		cmocka_unit_test(test_policy_second_guest_port_stands_aside),
		cmocka_unit_test(test_policy_auto_takes_its_own_number_or_the_next),
		cmocka_unit_test(test_policy_auto_is_remembered_over_restarts),
		cmocka_unit_test(test_policy_auto_keeps_off_what_others_have),
		cmocka_unit_test(test_policy_auto_of_a_closed_and_opened_port),
		cmocka_unit_test(test_policy_remap_is_auto_for_all_but_static),
		cmocka_unit_test(test_policy_loopback_lets_two_instances_have_one_port),
		cmocka_unit_test(test_policy_first_waits_for_the_other_instance),
		cmocka_unit_test(test_policy_owner_is_another_instance),
		cmocka_unit_test(test_policy_owner_asked_from_an_answer),
		cmocka_unit_test(test_policy_root_keeps_privileged_ports),
		cmocka_unit_test(test_policy_ssh_ports_of_other_instances),
		cmocka_unit_test(test_policy_host_port_of_a_guest_socket),
		cmocka_unit_test(test_policy_guest_socket_shares_with_nobody),
	};

	if (port && ready)
		return hold_port(port, ready);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
