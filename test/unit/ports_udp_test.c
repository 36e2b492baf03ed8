/* The rule that tells UDP servers from clients, and sets of ports. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <string.h>

#include "guestagent/ports_proc.h"
#include "guestagent/ports_udp.h"

static const struct udp_range range = { 32768, 60999 };

static void add(struct sock_list *l, const char *ip, uint16_t port, bool connected, uint64_t cookie)
{
	uint8_t addr[16];
	int family = strchr(ip, ':') ? AF_INET6 : AF_INET;

	assert_int_equal(inet_pton(family, ip, addr), 1);
	sock_list_add(l, IPPROTO_UDP, family, addr, port, connected, cookie);
}

/* The test's BPF: even cookies were bound to a port by name, odd ones to 0, large
 * ones were never seen. */
static enum udp_bind by_cookie(void *arg, uint64_t cookie)
{
	if (cookie >= 100)
		return UDP_BIND_UNKNOWN;
	return cookie % 2 ? UDP_BIND_KERNEL : UDP_BIND_CHOSEN;
}

static size_t judge(struct udp_servers *u, struct sock_list *dump, uint64_t now_ms, bool bpf,
		    uint64_t *ret_next_ms)
{
	scoped_port_set struct port_set set = { 0 };

	*ret_next_ms = udp_servers_judge(u, dump, now_ms, range, bpf ? by_cookie : NULL, NULL, &set);
	return set.len;
}

static void test_udp_rule_single_socket(void **state)
{
	static const struct {
		const char *what;
		const char *ip;
		uint16_t port;
		bool connected, bpf;
		uint64_t cookie, age_ms;
		size_t servers;
	} rows[] = {
		{ "server", "0.0.0.0", 5000, false, false, 2, 20, 1 },
		{ "server, v6", "::", 5000, false, false, 2, 20, 1 },
		{ "just bound", "0.0.0.0", 5000, false, false, 2, 2, 0 },
		{ "connected client", "0.0.0.0", 5000, true, false, 2, 9999, 0 },
		{ "DHCP client", "0.0.0.0", 68, false, false, 2, 9999, 0 },
		{ "DHCPv6 client", "::", 546, false, false, 2, 9999, 0 },
		{ "mDNS", "0.0.0.0", 5353, false, false, 2, 9999, 0 },
		{ "range, unsure, young", "0.0.0.0", 51820, false, false, 2, 100, 0 },
		{ "range, unsure, old", "0.0.0.0", 51820, false, false, 2, 5000, 1 },
		{ "range, chosen", "0.0.0.0", 51820, false, true, 2, 20, 1 },
		{ "range, by the kernel", "0.0.0.0", 51820, false, true, 3, 99999, 0 },
		{ "range, sent without bind", "0.0.0.0", 51820, false, true, 100, 99999, 0 },
		{ "above the range", "0.0.0.0", 61000, false, false, 2, 20, 1 },
		{ "multicast group", "239.1.2.3", 5000, false, false, 2, 20, 0 },
		{ "link-local", "fe80::1", 5000, false, false, 2, 20, 0 },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct udp_servers u = { 0 };
		scoped_sock_list struct sock_list none = { 0 }, dump = { 0 };
		uint64_t next_ms;

		print_message("%s\n", rows[i].what);
		judge(&u, &none, 1000, rows[i].bpf, &next_ms);
		add(&dump, rows[i].ip, rows[i].port, rows[i].connected, rows[i].cookie);
		assert_int_equal(judge(&u, &dump, 2000, rows[i].bpf, &next_ms), 0);
		assert_int_equal(judge(&u, &dump, 2000 + rows[i].age_ms, rows[i].bpf, &next_ms),
				 rows[i].servers);
		udp_servers_done(&u);
	}
}

static void test_udp_server_there_before_us(void **state)
{
	struct udp_servers u = { 0 };
	scoped_sock_list struct sock_list dump = { 0 };
	uint64_t next_ms;

	add(&dump, "127.0.0.1", 53, false, 1);
	assert_int_equal(judge(&u, &dump, 1000, false, &next_ms), 1);
	assert_int_equal(next_ms, 0);
	udp_servers_done(&u);
}

/* With BPF, but bound before it was: by range and age. */
static void test_udp_bound_before_bpf(void **state)
{
	struct udp_servers u = { 0 };
	scoped_sock_list struct sock_list dump = { 0 };
	uint64_t next_ms;

	add(&dump, "127.0.0.1", 53, false, 100);
	add(&dump, "127.0.0.1", 51820, false, 101);
	assert_int_equal(judge(&u, &dump, 1000, true, &next_ms), 1);
	assert_int_equal(judge(&u, &dump, 1000 + UDP_UNSURE_AGE_MS, true, &next_ms), 2);
	udp_servers_done(&u);
}

/* `nc -lu`: connected to its first client, its wildcard address filled in; the
 * host must see nothing of that. */
static void test_udp_server_connects_later(void **state)
{
	struct udp_servers u = { 0 };
	scoped_sock_list struct sock_list before = { 0 }, after = { 0 }, gone = { 0 };
	scoped_port_set struct port_set one = { 0 }, two = { 0 };
	uint64_t next_ms;

	add(&before, "0.0.0.0", 5000, false, 7);
	add(&before, "0.0.0.0", 5001, false, 8);
	add(&after, "127.0.0.1", 5000, true, 7);
	add(&after, "0.0.0.0", 5001, false, 8);
	udp_servers_judge(&u, &before, 1000, range, NULL, NULL, &one);
	udp_servers_judge(&u, &after, 2000, range, NULL, NULL, &two);
	assert_int_equal(one.len, 2);
	assert_int_equal(two.len, 2);
	assert_memory_equal(one.items, two.items, 2 * sizeof(struct port));
	assert_int_equal(judge(&u, &gone, 3000, false, &next_ms), 0);
	udp_servers_done(&u);
}

static void test_udp_next_look(void **state)
{
	struct udp_servers u = { 0 };
	scoped_sock_list struct sock_list none = { 0 }, dump = { 0 };
	uint64_t next_ms;

	judge(&u, &none, 1000, false, &next_ms);
	add(&dump, "0.0.0.0", 40000, false, 2);
	judge(&u, &dump, 2000, false, &next_ms);
	assert_int_equal(next_ms, UDP_UNSURE_AGE_MS);
	add(&dump, "0.0.0.0", 5000, false, 4);
	judge(&u, &dump, 2003, false, &next_ms);
	assert_int_equal(next_ms, UDP_MIN_AGE_MS);
	assert_int_equal(judge(&u, &dump, 7000, false, &next_ms), 2);
	assert_int_equal(next_ms, 0);
	udp_servers_done(&u);
}

/* A client that idles must be known for one by the next agent before that would take it
 * for a server, and nothing else may happen until then. */
static void test_udp_next_look_at_an_idle_client(void **state)
{
	struct udp_servers u = { 0 };
	scoped_sock_list struct sock_list none = { 0 }, dump = { 0 };
	uint64_t next_ms;

	judge(&u, &none, 1000, true, &next_ms);
	add(&dump, "0.0.0.0", 40000, false, 3);
	add(&dump, "127.0.0.1", 40001, true, 5);
	judge(&u, &dump, 2000, true, &next_ms);
	assert_int_equal(next_ms, UDP_UNSURE_AGE_MS);
	judge(&u, &dump, 2500, true, &next_ms);
	assert_int_equal(next_ms, UDP_UNSURE_AGE_MS - 500);
	assert_false(u.items[0].lasting);
	assert_int_equal(judge(&u, &dump, 2000 + UDP_UNSURE_AGE_MS, true, &next_ms), 0);
	assert_int_equal(next_ms, 0);
	assert_true(u.items[0].lasting);
	assert_false(u.items[1].lasting);
	udp_servers_done(&u);
}

static void set_add(struct port_set *s, uint16_t port)
{
	port_set_add(s, &(struct port){ .proto = IPPROTO_TCP, .family = AF_INET, .port = port });
}

static void test_port_set_diff(void **state)
{
	scoped_port_set struct port_set a = { 0 }, b = { 0 }, added = { 0 }, removed = { 0 };

	for (uint16_t p = 1; p <= 1000; p++) {
		if (p % 3)
			set_add(&a, p);
		if (p % 2)
			set_add(&b, p);
		if (p % 2)
			set_add(&b, p);	/* SO_REUSEPORT */
	}
	assert_true(port_set_seal(&a));
	assert_true(port_set_seal(&b));
	assert_int_equal(b.len, 500);
	port_set_diff(&a, &b, &added, &removed);
	assert_int_equal(added.len, 167);	/* odd multiples of 3 */
	assert_int_equal(removed.len, 334);	/* even, no multiples of 3 */
}

static void test_port_set_bounded(void **state)
{
	scoped_port_set struct port_set s = { 0 };

	for (unsigned p = 0; p < PORT_SET_MAX + 5; p++)
		port_set_add(&s, &(struct port){ .proto = IPPROTO_TCP, .family = AF_INET,
						 .port = (uint16_t)p, .addr = { (uint8_t)(p >> 16) } });
	assert_false(port_set_seal(&s));
	assert_int_equal(s.len, PORT_SET_MAX);
}

static void test_proc_lines(void **state)
{
	static const struct {
		int proto, family;
		const char *line, *ip;
		uint16_t port;
	} rows[] = {
		{ IPPROTO_TCP, AF_INET,
		  "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0",
		  "127.0.0.1", 8080 },
		{ IPPROTO_TCP, AF_INET6,
		  "   1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0",
		  "::1", 22 },
		{ IPPROTO_TCP, AF_INET6,
		  "   1: 0000000000000000FFFF00000100007F:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0",
		  "127.0.0.1", 22 },
		{ IPPROTO_UDP, AF_INET,
		  " 1411: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 99 2 0 0",
		  "0.0.0.0", 53 },
		{ IPPROTO_TCP, AF_INET,
		  "   0: 0100007F:1F90 0100007F:0010 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0",
		  NULL, 0 },
		{ IPPROTO_TCP, AF_INET, "  sl  local_address rem_address   st tx_queue rx_queue", NULL, 0 },
		{ IPPROTO_TCP, AF_INET6,
		  "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0",
		  NULL, 0 },
		{ IPPROTO_TCP, AF_INET, "", NULL, 0 },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		scoped_sock_list struct sock_list l = { 0 };
		char ip[INET6_ADDRSTRLEN];
		bool took = ports_proc_line(rows[i].line, rows[i].proto, rows[i].family, &l);

		assert_int_equal(took, rows[i].ip != NULL);
		if (!took)
			continue;
		assert_int_equal(l.len, 1);
		assert_string_equal(port_ip(&l.items[0].port, ip), rows[i].ip);
		assert_int_equal(l.items[0].port.port, rows[i].port);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_udp_rule_single_socket),
		cmocka_unit_test(test_udp_server_there_before_us),
		cmocka_unit_test(test_udp_bound_before_bpf),
		cmocka_unit_test(test_udp_server_connects_later),
		cmocka_unit_test(test_udp_next_look),
		cmocka_unit_test(test_udp_next_look_at_an_idle_client),
		cmocka_unit_test(test_port_set_diff),
		cmocka_unit_test(test_port_set_bounded),
		cmocka_unit_test(test_proc_lines),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
