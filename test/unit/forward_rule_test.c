/* Each row of the table in reference/port-forwarding.md §3, and the order of §2. */
#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/address.h"
#include "hostagent/forward/rule.h"
#include "hostagent/forward/table.h"
#include "lib/base/mem.h"

enum { SSH_PORT = 60022 };

static struct in6_addr ip_of(const char *text)
{
	struct in6_addr ip = address_v4(0, 0, 0, 0);

	if (inet_pton(AF_INET6, text, &ip) != 1)
		assert_int_equal(inet_pton(AF_INET, text, ip.s6_addr + 12), 1);
	return ip;
}

static struct config_port_forward rule(const char *guest_ip, uint16_t first, uint16_t last,
				       uint16_t host_first)
{
	return (struct config_port_forward){
		.guest_ip = ip_of(guest_ip),
		.guest_port = { first, last },
		.host_ip = ip_of("127.0.0.1"),
		.host_port = { host_first, (uint16_t)(host_first + last - first) },
	};
}

static void set_init(struct rule_set *set, const struct config_port_forward *rules, size_t n)
{
	struct config c = { .port_forwards = (struct config_port_forward *)rules,
			    .n_port_forwards = n };

	rule_set_init(set, &c, SSH_PORT);
}

/* "127.0.0.1:80", a path, or "closed" */
static const char *verdict(const struct config_port_forward *rules, size_t n, int proto,
			   const char *ip, uint16_t port)
{
	static char text[256];
	struct in6_addr addr = ip_of(ip);
	struct rule_set set;
	const struct rule *r;

	set_init(&set, rules, n);
	r = rule_match(&set, proto, &addr, port, NULL);
	strcpy(text, "closed");
	if (r) {
		struct rule_host host = rule_host_address(&r->c, port);

		if (host.socket)
			strcpy(text, host.socket);
		else
			address_text(&host.ip, host.port, text);
	}
	rule_set_done(&set);
	return text;
}

static void test_rule_ip_table(void **state)
{
	static const struct {
		const char *listener, *rule_ip;
		bool must_be_zero, match;
	} rows[] = {
		{ "0.0.0.0", "127.0.0.1", false, true },
		{ "::", "127.0.0.1", false, true },
		{ "0.0.0.0", "192.168.5.15", false, true },
		{ "::", "fd00::1", false, true },
		{ "0.0.0.0", "0.0.0.0", true, true },
		{ "::", "0.0.0.0", true, true },
		{ "127.0.0.1", "127.0.0.1", false, true },
		{ "192.168.5.15", "192.168.5.15", false, true },
		{ "fd00::1", "fd00::1", false, true },
		{ "::1", "127.0.0.1", false, true },
		{ "::1", "::1", false, true },
		{ "127.0.0.1", "::1", false, false },
		{ "192.168.5.15", "0.0.0.0", false, true },
		{ "fd00::1", "0.0.0.0", false, true },
		{ "127.0.0.1", "::", false, true },
		{ "192.168.5.15", "::", false, true },
		{ "127.0.0.1", "0.0.0.0", true, false },
		{ "::1", "0.0.0.0", true, false },
		{ "192.168.5.15", "0.0.0.0", true, false },
		{ "127.0.0.2", "127.0.0.1", false, false },
		{ "192.168.5.15", "127.0.0.1", false, false },
		{ "fd00::1", "127.0.0.1", false, false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct config_port_forward r = rule(rows[i].rule_ip, 8080, 8080, 18080);
		/* behind it: an end, so that the implicit rule does not answer */
		struct config_port_forward list[] = { r, rule("::", 1, 65535, 1) };

		list[0].guest_ip_must_be_zero = rows[i].must_be_zero;
		list[1].ignore = true;
		const char *got = verdict(list, 2, IPPROTO_TCP, rows[i].listener, 8080);

		if (strcmp(got, rows[i].match ? "127.0.0.1:18080" : "closed") != 0)
			fail_msg("row %zu: listener %s, rule %s: got %s", i, rows[i].listener,
				 rows[i].rule_ip, got);
	}
}

static void test_rule_without_user_rules(void **state)
{
	static const struct {
		const char *ip;
		uint16_t port;
		const char *want;
	} rows[] = {
		{ "127.0.0.1", 80, "127.0.0.1:80" }, { "0.0.0.0", 1, "127.0.0.1:1" },
		{ "::", 65535, "127.0.0.1:65535" },  { "::1", 80, "127.0.0.1:80" },
		{ "127.0.0.2", 80, "closed" },       { "10.0.0.1", 80, "closed" },
		{ "0.0.0.0", 22, "closed" },         { "127.0.0.1", 22, "closed" },
		{ "fd00::1", 22, "closed" },         { "0.0.0.0", SSH_PORT, "closed" },
		{ "127.0.0.1", SSH_PORT, "closed" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		assert_string_equal(verdict(NULL, 0, IPPROTO_TCP, rows[i].ip, rows[i].port),
				    rows[i].want);
		assert_string_equal(verdict(NULL, 0, IPPROTO_UDP, rows[i].ip, rows[i].port),
				    rows[i].want);
	}
}

static void test_rule_ssh_is_never_forwarded_whatever_the_user_says(void **state)
{
	struct config_port_forward r = rule("::", 1, 65535, 1);

	assert_string_equal(verdict(&r, 1, IPPROTO_TCP, "0.0.0.0", 22), "closed");
	assert_string_equal(verdict(&r, 1, IPPROTO_TCP, "10.0.0.1", SSH_PORT), "closed");
	assert_string_equal(verdict(&r, 1, IPPROTO_TCP, "10.0.0.1", 23), "127.0.0.1:23");
}

static void test_rule_first_match_wins(void **state)
{
	struct config_port_forward list[] = {
		rule("127.0.0.1", 8000, 8010, 9000),
		rule("127.0.0.1", 8005, 8005, 7000),
		rule("127.0.0.1", 8011, 8011, 7001),
	};

	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 8000), "127.0.0.1:9000");
	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 8005), "127.0.0.1:9005");
	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 8010), "127.0.0.1:9010");
	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 8011), "127.0.0.1:7001");
	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 7999), "127.0.0.1:7999");
}

static void test_rule_proto(void **state)
{
	struct config_port_forward list[] = { rule("127.0.0.1", 53, 53, 1053),
					      rule("127.0.0.1", 54, 54, 1054) };

	list[0].proto = L4_UDP;
	list[1].proto = L4_TCP;
	assert_string_equal(verdict(list, 2, IPPROTO_UDP, "0.0.0.0", 53), "127.0.0.1:1053");
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "0.0.0.0", 53), "127.0.0.1:53");
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "0.0.0.0", 54), "127.0.0.1:1054");
	assert_string_equal(verdict(list, 2, IPPROTO_UDP, "0.0.0.0", 54), "127.0.0.1:54");
}

static void test_rule_ignore_stops_or_falls_through(void **state)
{
	struct config_port_forward list[] = { rule("127.0.0.1", 80, 80, 80),
					      rule("127.0.0.1", 80, 80, 8080) };

	list[0].ignore = true;
	/* what listens on the address itself stays closed */
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "127.0.0.1", 80), "closed");
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "::1", 80), "closed");
	/* what listens everywhere is looked at by the rules behind */
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "0.0.0.0", 80), "127.0.0.1:8080");
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "::", 80), "127.0.0.1:8080");
	/* a wildcard rule closes everything */
	list[0].guest_ip = ip_of("0.0.0.0");
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "0.0.0.0", 80), "closed");
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "127.0.0.1", 80), "closed");
	/* … one that must be zero only the wildcard listeners */
	list[0].guest_ip_must_be_zero = true;
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "0.0.0.0", 80), "closed");
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "127.0.0.1", 80), "127.0.0.1:8080");
}

static void test_rule_guest_sockets_swallow_nothing(void **state)
{
	struct config_port_forward list[3];

	memset(list, 0, sizeof(list));
	list[0] = rule("127.0.0.1", 1, 65535, 1); /* what an empty guestPort defaults to */
	list[0].guest_socket = (char *)"/run/docker.sock";
	list[0].host_socket = (char *)"/tmp/docker.sock";
	list[0].is_static = true;
	list[1] = list[0];
	list[1].reverse = true;
	list[2] = rule("127.0.0.1", 80, 80, 8080);
	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 80), "127.0.0.1:8080");
	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 81), "127.0.0.1:81");
}

static void test_rule_host_side(void **state)
{
	struct config_port_forward list[] = { rule("127.0.0.1", 80, 80, 80),
					      rule("127.0.0.1", 81, 81, 81),
					      rule("127.0.0.1", 82, 82, 82) };

	list[0].host_ip = ip_of("0.0.0.0");
	list[1].host_ip = ip_of("::1");
	list[2].host_socket = (char *)"/tmp/x.sock";
	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 80), "0.0.0.0:80");
	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 81), "[::1]:81");
	assert_string_equal(verdict(list, 3, IPPROTO_TCP, "127.0.0.1", 82), "/tmp/x.sock");
	/* datagrams cannot go to a stream socket: the rules behind decide */
	assert_string_equal(verdict(list, 3, IPPROTO_UDP, "127.0.0.1", 82), "127.0.0.1:82");
}

static void test_rule_quiet_when_everything_is_ignored_first(void **state)
{
	struct config_port_forward all = rule("0.0.0.0", 1, 65535, 1);
	struct config_port_forward list[3];
	struct rule_set set;

	all.ignore = true;
	list[0] = list[1] = list[2] = all;
	list[0].proto = L4_TCP;
	list[1] = rule("127.0.0.1", 80, 80, 80);
	list[2].proto = L4_UDP; /* behind another rule: does not count */
	set_init(&set, list, 3);
	assert_true(rule_set_is_quiet(&set, IPPROTO_TCP));
	assert_false(rule_set_is_quiet(&set, IPPROTO_UDP));
	rule_set_done(&set);
	set_init(&set, &all, 1);
	assert_true(rule_set_is_quiet(&set, IPPROTO_TCP));
	assert_true(rule_set_is_quiet(&set, IPPROTO_UDP));
	rule_set_done(&set);
	set_init(&set, NULL, 0);
	assert_false(rule_set_is_quiet(&set, IPPROTO_TCP));
	rule_set_done(&set);
}

/* ssh has no datagrams: a rule that wants it leaves UDP to those behind. */
static void test_rule_of_the_ssh_lane_is_about_tcp(void **state)
{
	struct config_port_forward list[] = { rule("127.0.0.1", 80, 80, 8080),
					      rule("127.0.0.1", 81, 81, 81) };

	list[0].lane = list[1].lane = CONFIG_LANE_SSH;
	list[1].ignore = true;
	assert_string_equal(verdict(list, 2, IPPROTO_TCP, "127.0.0.1", 80), "127.0.0.1:8080");
	assert_string_equal(verdict(list, 2, IPPROTO_UDP, "127.0.0.1", 80), "127.0.0.1:80");
	assert_string_equal(verdict(list, 2, IPPROTO_UDP, "127.0.0.1", 81), "closed");
}

static void test_rule_plain_has_no_last_rule(void **state)
{
	struct config c = { .plain = true };
	struct in6_addr ip = ip_of("127.0.0.1");
	struct rule_set set;

	rule_set_init(&set, &c, SSH_PORT);
	assert_null(rule_match(&set, IPPROTO_TCP, &ip, 80, NULL));
	rule_set_done(&set);
}

static void test_rule_added_ones_come_first_and_newest_first(void **state)
{
	struct config_port_forward file = rule("127.0.0.1", 1, 65535, 1);
	struct config_port_forward a = rule("127.0.0.1", 80, 80, 8080);
	struct config_port_forward b = rule("127.0.0.1", 70, 90, 9070);
	struct config_port_forward ssh = rule("127.0.0.1", 22, 22, 2222);
	struct in6_addr ip = ip_of("127.0.0.1");
	struct rule *ra, *rb, *rs;
	const struct rule *ignored = NULL;
	struct error err = { 0 };
	struct rule_set set;

	set_init(&set, &file, 1);
	assert_int_equal(rule_set_add(&set, &a, &ra, &err), 0);
	assert_int_equal(rule_set_add(&set, &b, &rb, &err), 0);
	assert_int_equal(rule_set_add(&set, &ssh, &rs, &err), 0);
	assert_int_equal(rule_set_add(&set, &a, &ra, &err), -EEXIST);
	assert_string_equal(ra->name, "live rule 2");
	assert_ptr_equal(rule_match(&set, IPPROTO_TCP, &ip, 80, NULL), rb);
	assert_null(rule_match(&set, IPPROTO_TCP, &ip, 22, &ignored)); /* not even live */
	assert_int_equal(ignored->origin, RULE_BUILTIN);
	rule_free(rule_set_detach(&set, rb));
	assert_ptr_equal(rule_match(&set, IPPROTO_TCP, &ip, 80, NULL), ra);
	assert_null(rule_find(&set, 3));
	assert_ptr_equal(rule_find(&set, 2), ra);
	assert_string_equal(rule_find(&set, 1)->name, "portForwards[0]");
	assert_null(rule_find(&set, 0));
	rule_set_done(&set);
}

/* The guest chooses the keys: it must not be able to know which ones collide. */
static void test_table_hash_differs_from_process_to_process(void **state)
{
	uint32_t theirs = 0, ours;
	int fds[2], status;
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		theirs = table_hash("guest", 5, 0);
		_exit(write(fds[1], &theirs, sizeof(theirs)) != sizeof(theirs));
	}
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(read(fds[0], &theirs, sizeof(theirs)), sizeof(theirs));
	ours = table_hash("guest", 5, 0);
	assert_int_equal(ours, table_hash("guest", 5, 0));
	assert_int_not_equal(ours, theirs);
	close(fds[0]);
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rule_ip_table),
		cmocka_unit_test(test_rule_without_user_rules),
		cmocka_unit_test(test_rule_ssh_is_never_forwarded_whatever_the_user_says),
		cmocka_unit_test(test_rule_first_match_wins),
		cmocka_unit_test(test_rule_proto),
		cmocka_unit_test(test_rule_ignore_stops_or_falls_through),
		cmocka_unit_test(test_rule_guest_sockets_swallow_nothing),
		cmocka_unit_test(test_rule_host_side),
		cmocka_unit_test(test_rule_quiet_when_everything_is_ignored_first),
		cmocka_unit_test(test_rule_of_the_ssh_lane_is_about_tcp),
		cmocka_unit_test(test_rule_plain_has_no_last_rule),
		cmocka_unit_test(test_rule_added_ones_come_first_and_newest_first),
		cmocka_unit_test(test_table_hash_differs_from_process_to_process),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
