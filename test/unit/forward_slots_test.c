/* Who gets a host address that several want, and a host port that we choose. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/address.h"
#include "lib/base/mem.h"
#include "test/mock/forward.h"

/* --- a host port of choice --------------------------------------------------- */

/* No descriptors for a while: nothing can be bound. */
static rlim_t leave_no_descriptors(void)
{
	struct rlimit limit;
	rlim_t before;
	int next = dup(0);

	assert_true(next >= 0);
	close(next);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	before = limit.rlim_cur;
	limit.rlim_cur = (rlim_t)next;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	return before;
}

static void allow_descriptors(rlim_t n)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = n;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

static void test_slots_chosen_port_that_failed_is_tried_again(void **state)
{
	struct forward_limits limits = { .retry_max_ms = 50 };
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(p, p);
	struct fx fx;
	rlim_t before;

	r.host_port_auto = true;
	fx_start(&fx, &r, 1, &limits);
	before = leave_no_descriptors();
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_string_equal(fx_newest(&fx),
			    fx_text("failed tcp 127.0.0.1:%u - socket: too many open files", p));
	assert_string_equal(fx_list(&fx, NULL)->text[0],
			    fx_text("tcp 127.0.0.1:%u - waiting socket: too many open files", p));
	fx_turn(&fx, 200); /* tried again and again, told once */
	assert_int_equal(fx.events.len, 1);
	allow_descriptors(before);
	assert_true(fx_wait_event(&fx, fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u", p, p)));
	assert_string_equal(fx_list(&fx, NULL)->text[0],
			    fx_text("tcp 127.0.0.1:%u 127.0.0.1:%u forwarding", p, p));
	assert_true(fx_reachable("127.0.0.1", p));
	fx_stop(&fx);
}

enum { MANY = 30 };

static bool all_are_there(void *arg)
{
	return fx_count_events(arg, "forwarding") >= MANY - 1;
}

/* A few at a time, but all of them; who is gone meanwhile is forgotten. */
static void test_slots_many_chosen_ports_that_failed(void **state)
{
	struct forward_limits limits = { .retry_max_ms = 20 };
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(p, p);
	struct fx fx;
	rlim_t before;

	r.host_port_auto = true;
	r.guest_port[1] = r.host_port[1] = (uint16_t)(p + MANY);
	fx_start(&fx, &r, 1, &limits);
	before = leave_no_descriptors();
	for (uint16_t i = 0; i < MANY; i++)
		fx_add(&fx, IPPROTO_TCP, "127.0.0.1", (uint16_t)(p + i));
	fx_turn(&fx, 60);
	assert_int_equal(fx_count_events(&fx, "failed"), MANY);
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", p);
	allow_descriptors(before);
	assert_true(fx_until(&fx, all_are_there, &fx));
	assert_int_equal(fx.events.len, 2 * MANY - 1);
	fx_stop(&fx);
}

/* … and not each time that something changes: a guest can change things often. */
static void test_slots_chosen_port_over_the_limit_that_failed(void **state)
{
	struct forward_limits limits = { .max_listeners = 1 };
	uint16_t p = fx_free_port(), q = fx_free_port();
	struct config_port_forward r = fx_rule(p, p);
	struct fx fx;
	rlim_t before;
	int low;

	r.host_port_auto = true;
	fx_start(&fx, &r, 1, &limits);
	low = dup(0);
	close(low);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", q);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_string_equal(fx_newest(&fx), fx_text("not-forwarding tcp 127.0.0.1:%u - too many "
						    "host ports are forwarded already", p));
	before = leave_no_descriptors();
	allow_descriptors((rlim_t)low); /* … nor those that will be closed */
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", q);
	assert_string_equal(fx_newest(&fx),
			    fx_text("failed tcp 127.0.0.1:%u - socket: too many open files", p));
	allow_descriptors(before);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", 22);
	assert_int_equal(fx_count_events(&fx, fx_text("forwarding tcp 127.0.0.1:%u", p)), 0);
	assert_true(fx_wait_event(&fx, fx_text("forwarding tcp 127.0.0.1:%u", p)));
	fx_stop(&fx);
}

static void test_slots_closed_while_a_chosen_port_waits(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(p, p);
	struct fx fx;
	rlim_t before;

	r.host_port_auto = true;
	fx_start(&fx, &r, 1, NULL);
	before = leave_no_descriptors();
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	allow_descriptors(before);
	assert_int_equal(fx_count_events(&fx, "failed"), 1);
	fx_stop(&fx);
}

/* --- one host address, several who want it ----------------------------------- */

/* {guestPort: 80, hostPort: auto} has 8080; then the guest opens an 8080 of its own. */
static void test_slots_one_by_number_comes_before_one_by_choice(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(1000, p);
	struct fx fx;
	int fd;

	r.host_port_auto = true;
	fx_start(&fx, &r, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "0.0.0.0", 1000);
	fx_add(&fx, IPPROTO_TCP, "::", 1000);
	assert_string_equal(fx_newest(&fx), fx_text("forwarding tcp [::]:1000 127.0.0.1:%u", p));
	fd = fx_connect(SOCK_STREAM, "127.0.0.1", p);
	fx_assert_echo(&fx, fd, "abc", 3);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_int_equal(fx_count_events(&fx, "failed"), 0);
	assert_int_equal(fx_count_events(&fx, "stopping tcp"), 2);
	assert_int_equal(
		fx_count_events(&fx, fx_text("forwarding tcp 127.0.0.1:%u 127.0.0.1:%u", p, p)), 1);
	assert_int_equal(fx_count_events(&fx, "forwarding tcp 0.0.0.0:1000"), 2);
	assert_int_equal(fx_count_events(&fx, "forwarding tcp [::]:1000"), 2);
	assert_string_equal(fx_list(&fx, NULL)->text[0],
			    fx_text("tcp 0.0.0.0:1000 127.0.0.1:%u forwarding", p + 1));
	assert_true(fx_reachable("127.0.0.1", p));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, fx_text("127.0.0.1:%u", p));
	assert_true(fx_reachable("127.0.0.1", (uint16_t)(p + 1)));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, "0.0.0.0:1000");
	fx_assert_echo(&fx, fd, "de", 2); /* who is connected stays so */
	close(fd);
	fx_stop(&fx);
}

static void test_slots_two_servers_on_one_guest_port(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(p, p);
	struct fx fx;

	r.guest_ip = fx_port(0, "0.0.0.0", 1).ip; /* guestIPMustBeZero: false */
	fx_start(&fx, &r, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	fx_add(&fx, IPPROTO_TCP, "192.168.5.15", p);
	assert_string_equal(
		fx_newest(&fx),
		fx_text("failed tcp 192.168.5.15:%u 127.0.0.1:%u another server of this "
			"guest has it, 127.0.0.1:%u", p, p, p));
	fx_add(&fx, IPPROTO_TCP, "::1", p); /* localhost is both */
	assert_string_equal(fx_newest(&fx), fx_text("forwarding tcp [::1]:%u 127.0.0.1:%u", p, p));
	fx_add(&fx, IPPROTO_TCP, "fd00::15", p);
	assert_int_equal(fx_count_events(&fx, "failed"), 2);
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", p); /* [::1] has it still */
	assert_int_equal(fx_count_events(&fx, "forwarding"), 2);
	fx_remove(&fx, IPPROTO_TCP, "::1", p);
	assert_int_equal(fx_count_events(&fx, fx_text("forwarding tcp 192.168.5.15:%u", p)), 1);
	assert_int_equal(fx_count_events(&fx, fx_text("forwarding tcp [fd00::15]:%u", p)), 1);
	assert_true(fx_reachable("127.0.0.1", p));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, fx_text("192.168.5.15:%u", p));
	fx_stop(&fx);
}

/* Who waits is asked at every change, not only when all are gone. */
static void test_slots_second_server_joins_the_wildcard_that_stays(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(p, p);
	struct fx fx;

	r.guest_ip = fx_port(0, "0.0.0.0", 1).ip;
	fx_start(&fx, &r, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "::", p);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	fx_add(&fx, IPPROTO_TCP, "192.168.5.15", p);
	assert_int_equal(fx_count_events(&fx, "failed"), 1);
	fx_remove(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp 192.168.5.15:%u 127.0.0.1:%u", p, p));
	fx_stop(&fx);
}

static void test_slots_two_servers_on_one_guest_port_by_choice(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward r = fx_rule(p, p);
	struct fx fx;

	r.guest_ip = fx_port(0, "0.0.0.0", 1).ip;
	r.host_port_auto = true;
	fx_start(&fx, &r, 1, NULL);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	fx_add(&fx, IPPROTO_TCP, "192.168.5.15", p);
	fx_add(&fx, IPPROTO_TCP, "::1", p);
	assert_int_equal(fx_count_events(&fx, "failed"), 0);
	assert_string_equal(fx_newest(&fx), fx_text("forwarding tcp [::1]:%u 127.0.0.1:%u", p, p));
	assert_string_equal(fx_list(&fx, NULL)->text[1],
			    fx_text("tcp 192.168.5.15:%u 127.0.0.1:%u forwarding", p, p + 1));
	assert_true(fx_reachable("127.0.0.1", (uint16_t)(p + 1)));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, fx_text("192.168.5.15:%u", p));
	fx_stop(&fx);
}

/* --- who has it -------------------------------------------------------------- */

struct wanted {
	struct fx *fx;
	char row[240];
};

static bool first_row_is(void *arg)
{
	const struct wanted *w = arg;

	return strcmp(fx_list(w->fx, NULL)->text[0], w->row) == 0;
}

static bool becomes(struct fx *fx, const char *row)
{
	struct wanted w = { .fx = fx };

	snprintf(w.row, sizeof(w.row), "%s", row);
	return fx_until(fx, first_row_is, &w);
}

/* A child that has what we have open. */
static pid_t fork_holder(void)
{
	pid_t pid = fork();

	if (pid == 0)
		for (;;)
			pause();
	return pid;
}

static void end_holder(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
}

static const char *taken_row(uint16_t p, pid_t pid)
{
	return fx_text("tcp 127.0.0.1:%u 127.0.0.1:%u waiting address already in use "
		       "(forward_slots_t, pid %d)", p, p, pid);
}

static void test_slots_owner_is_who_has_it_now(void **state)
{
	struct forward_limits limits = { .retry_max_ms = 30 };
	uint16_t p = fx_free_port();
	int other = fx_bind(SOCK_STREAM, "127.0.0.1", p);
	struct fx fx;
	pid_t pid;

	fx_start(&fx, NULL, 0, &limits);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_true(becomes(&fx, taken_row(p, getpid())));
	pid = fork_holder();
	close(other);
	assert_true(becomes(&fx, taken_row(p, pid)));
	assert_int_equal(fx.events.len, 1); /* it failed all the time */
	end_holder(pid);
	assert_true(fx_wait_event(&fx, "forwarding"));
	fx_stop(&fx);
}

static void test_slots_error_is_the_one_of_now(void **state)
{
	struct forward_limits limits = { .retry_max_ms = 30 };
	uint16_t p = fx_free_port();
	int other = fx_bind(SOCK_STREAM, "127.0.0.1", p);
	rlim_t before;
	struct fx fx;

	fx_start(&fx, NULL, 0, &limits);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", p);
	assert_true(becomes(&fx, taken_row(p, getpid())));
	before = leave_no_descriptors();
	assert_true(becomes(&fx, fx_text("tcp 127.0.0.1:%u 127.0.0.1:%u waiting socket: too many "
					 "open files", p, p)));
	allow_descriptors(before);
	assert_true(becomes(&fx, taken_row(p, getpid())));
	assert_int_equal(fx.events.len, 1);
	close(other);
	assert_true(fx_wait_event(&fx, "forwarding"));
	fx_stop(&fx);
}

static void test_slots_owner_of_a_connected_udp_socket(void **state)
{
	uint16_t p = fx_free_port(), q = fx_free_port();
	int other = fx_bind(SOCK_DGRAM, "127.0.0.1", p), peer = fx_bind(SOCK_DGRAM, "127.0.0.1", q);
	struct sockaddr_storage sa;
	struct in6_addr ip = address_v4(127, 0, 0, 1);
	socklen_t len = address_to_sockaddr(&ip, q, &sa);
	struct fx fx;

	assert_int_equal(connect(other, (struct sockaddr *)&sa, len), 0);
	fx_start(&fx, NULL, 0, NULL);
	fx_add(&fx, IPPROTO_UDP, "127.0.0.1", p);
	assert_true(fx_wait_event(&fx, "failed"));
	assert_non_null(
		strstr(fx_newest(&fx), fx_text("in use (forward_slots_t, pid %d)", getpid())));
	fx_stop(&fx);
	close(other);
	close(peer);
}

static void test_slots_owner_of_a_socket_file(void **state)
{
	struct config_port_forward r = fx_rule(8080, 8080);
	struct forward_limits limits = { .retry_max_ms = 30 };
	char dir[] = "/tmp/lima-slots-XXXXXX", path[64];
	struct fx fx;
	int other;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/x.sock", dir);
	r.host_socket = path;
	other = fx_bind_unix(path);
	assert_true(other >= 0);
	fx_start(&fx, &r, 1, &limits);
	fx_add(&fx, IPPROTO_TCP, "127.0.0.1", 8080);
	assert_true(fx_wait_event(&fx, "failed"));
	assert_string_equal(fx_newest(&fx), fx_text("failed tcp 127.0.0.1:8080 %s another program "
						    "listens there (forward_slots_t, pid %d)",
						    path, getpid()));
	close(other);
	assert_true(fx_wait_event(&fx, "forwarding"));
	fx_stop(&fx);
	rmdir(dir);
}

/* --- who stays without one --------------------------------------------------- */

/* A static rule whose port an earlier rule decides about stands for nobody. */
static void test_slots_static_that_is_closed_covers_no_listener(void **state)
{
	uint16_t p = fx_free_port(), q = fx_free_port();
	struct config_port_forward rules[] = { fx_rule(p, q), fx_rule(p, p) };
	struct fx fx;

	rules[1].guest_ip = fx_port(0, "0.0.0.0", 1).ip; /* guestIPMustBeZero: false */
	rules[1].is_static = true;
	rules[1].proto = L4_TCP;
	fx_start(&fx, rules, 2, NULL);
	assert_string_equal(fx_newest(&fx),
			    fx_text("not-forwarding tcp 127.0.0.1:%u - portForwards[0] "
				    "comes first and decides", p));
	fx_add(&fx, IPPROTO_TCP, "192.168.5.15", p);
	assert_string_equal(fx_newest(&fx),
			    fx_text("forwarding tcp 192.168.5.15:%u 127.0.0.1:%u", p, p));
	assert_int_equal(fx_list(&fx, NULL)->n, 2);
	assert_true(fx_reachable("127.0.0.1", p));
	fx_turn(&fx, 20);
	assert_string_equal(fx.lane.last_addr, fx_text("192.168.5.15:%u", p));
	fx_stop(&fx);
}

static void on_rule(void *arg, const struct forward_row *row)
{
	unsigned *ids = arg;

	ids[ids[0]++ + 1] = row->rule_id;
}

/* The file's rule and a live one: each has a row of its own that says why. */
static void test_slots_static_udp_of_plain_mode_says_why(void **state)
{
	struct config_port_forward r = fx_rule(5000, fx_free_port()),
				   live = fx_rule(5001, fx_free_port());
	struct config c = { .port_forwards = &r, .n_port_forwards = 1, .plain = true };
	struct forward_options more = { 0 };
	struct error err = { 0 };
	unsigned id, ids[4] = { 0 };
	struct fx fx;

	r.is_static = live.is_static = true;
	r.proto = live.proto = L4_UDP;
	fx_start_with(&fx, &c, &more);
	assert_string_equal(fx_newest(&fx),
			    "not-forwarding udp 127.0.0.1:5000 - plain mode has ssh "
			    "only, which carries no udp");
	assert_int_equal(forward_add_rule(fx.forward, &live, &id, &err), 0);
	assert_string_equal(fx_list(&fx, NULL)->text[1],
			    "udp 127.0.0.1:5001 - not-forwarded plain mode has "
			    "ssh only, which carries no udp");
	forward_list(fx.forward, on_rule, ids);
	assert_int_equal(ids[0], 2);
	assert_int_equal(ids[2], id);
	assert_int_equal(forward_remove_rule(fx.forward, id, &err), 0);
	assert_int_equal(fx_list(&fx, NULL)->n, 1);
	fx_stop(&fx);
}

/* What the host has a service on counts, whatever the guest's port is. */
static void test_slots_usual_service_of_the_host_by_its_port(void **state)
{
	uint16_t p = fx_free_port();
	struct config_port_forward rules[] = { fx_rule(5000, 5355), fx_rule(5355, p) };
	int usual = fx_bind(SOCK_DGRAM, "127.0.0.1", 5355), other = fx_bind(SOCK_DGRAM, "127.0.0.1", p);
	struct fx fx;

	fx_start(&fx, rules, 2, NULL);
	fx_add(&fx, IPPROTO_UDP, "127.0.0.1", 5000);
	assert_true(fx_wait_event(&fx, "not-forwarding udp 127.0.0.1:5000 127.0.0.1:5355 address "
				       "already in use"));
	fx_add(&fx, IPPROTO_UDP, "127.0.0.1", 5355);
	assert_true(fx_wait_event(&fx, fx_text("failed udp 127.0.0.1:5355 127.0.0.1:%u", p)));
	fx_stop(&fx);
	close(other);
	if (usual >= 0)
		close(usual);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_slots_chosen_port_that_failed_is_tried_again),
		cmocka_unit_test(test_slots_many_chosen_ports_that_failed),
		cmocka_unit_test(test_slots_chosen_port_over_the_limit_that_failed),
		cmocka_unit_test(test_slots_closed_while_a_chosen_port_waits),
		cmocka_unit_test(test_slots_one_by_number_comes_before_one_by_choice),
		cmocka_unit_test(test_slots_two_servers_on_one_guest_port),
		cmocka_unit_test(test_slots_second_server_joins_the_wildcard_that_stays),
		cmocka_unit_test(test_slots_two_servers_on_one_guest_port_by_choice),
		cmocka_unit_test(test_slots_owner_is_who_has_it_now),
		cmocka_unit_test(test_slots_error_is_the_one_of_now),
		cmocka_unit_test(test_slots_owner_of_a_connected_udp_socket),
		cmocka_unit_test(test_slots_owner_of_a_socket_file),
		cmocka_unit_test(test_slots_static_that_is_closed_covers_no_listener),
		cmocka_unit_test(test_slots_static_udp_of_plain_mode_says_why),
		cmocka_unit_test(test_slots_usual_service_of_the_host_by_its_port),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
