/* What one agent leaves to the next about UDP sockets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "guestagent/ports_udp_keep.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

enum { DEADLINE_MS = 10000, FILE_MAX = 128 * 1024 };

static const struct udp_range range = { 32768, 60999 };
static char dir[] = "/tmp/lima-keep-XXXXXX";
static char path[64];

struct agent {
	struct loop loop;
	struct udp_servers servers;
	struct udp_keep *keep;
	bool closed;
};

static void agent_start_by(struct agent *a, bool by_inode)
{
	struct error err = ERROR_NONE;

	*a = (struct agent){ 0 };
	assert_int_equal(loop_init(&a->loop, &err), 0);
	a->keep = udp_keep_new(&a->loop, path, &a->servers);
	udp_keep_load(a->keep, by_inode);
}

static void agent_start(struct agent *a)
{
	agent_start_by(a, false);
}

static void on_closed(void *arg)
{
	((struct agent *)arg)->closed = true;
}

static void agent_stop(struct agent *a)
{
	udp_keep_close(a->keep, on_closed, a);
	loop_run(&a->loop);
	assert_true(a->closed);
	assert_int_equal(loop_done(&a->loop), 0);
	udp_servers_done(&a->servers);
}

/* Until what was noted is in the file. */
static void agent_run(struct agent *a)
{
	uint64_t end_ms = clock_mono_ms() + DEADLINE_MS;

	for (size_t i = 0; i < a->servers.len; i++) {
		while (a->servers.items[i].lasting != a->servers.items[i].kept) {
			assert_true(clock_mono_ms() < end_ms);
			uv_run(&a->loop.uv, UV_RUN_ONCE);
		}
	}
}

/* BPF that saw odd cookies bound to port 0, and even ones below 100 to a port. */
static enum udp_bind by_cookie(void *arg, uint64_t cookie)
{
	return cookie % 2 ? UDP_BIND_KERNEL : cookie < 100 ? UDP_BIND_CHOSEN : UDP_BIND_UNKNOWN;
}

static enum udp_bind unseen(void *arg, uint64_t cookie)
{
	return UDP_BIND_UNKNOWN;
}

static void add(struct sock_list *l, const char *ip, uint16_t port, bool connected, uint64_t cookie)
{
	uint8_t addr[16];
	int family = strchr(ip, ':') ? AF_INET6 : AF_INET;

	assert_int_equal(inet_pton(family, ip, addr), 1);
	sock_list_add(l, IPPROTO_UDP, family, addr, port, connected, cookie);
}

/* What serves, as "IP PORT …", sorted. */
static const char *judge(struct agent *a, const struct sock_list *dump, uint64_t now_ms,
			 enum udp_bind (*how)(void *arg, uint64_t cookie))
{
	static char text[512];
	scoped_port_set struct port_set set = { 0 };
	size_t len = 0;

	udp_servers_judge(&a->servers, dump, now_ms, range, how, NULL, &set);
	udp_keep_note(a->keep);
	port_set_seal(&set);
	*text = 0;
	for (size_t i = 0; i < set.len && len < sizeof(text); i++) {
		char ip[INET6_ADDRSTRLEN];

		len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%s %u", i ? " " : "",
					port_ip(&set.items[i], ip), set.items[i].port);
	}
	return text;
}

/* Leaves a file that knows a server on 5000, cookie 8. */
static void leave_server(void)
{
	scoped_sock_list struct sock_list dump = { 0 };
	struct agent a;

	unlink(path);
	agent_start(&a);
	add(&dump, "0.0.0.0", 5000, false, 8);
	assert_string_equal(judge(&a, &dump, 1000, by_cookie), "0.0.0.0 5000");
	agent_run(&a);
	agent_stop(&a);
}

static void test_keep_next_agent_goes_on(void **state)
{
	scoped_sock_list struct sock_list none = { 0 }, before = { 0 }, after = { 0 };
	struct agent a;

	agent_start(&a);
	judge(&a, &none, 1000, by_cookie);
	add(&before, "0.0.0.0", 5000, false, 8);	/* nc -lu */
	add(&before, "::1", 51820, false, 10);		/* WireGuard */
	add(&before, "0.0.0.0", 41000, false, 11);	/* avahi's other socket */
	judge(&a, &before, 2000, by_cookie);
	assert_string_equal(judge(&a, &before, 2100, by_cookie), "0.0.0.0 5000 ::1 51820");
	judge(&a, &before, 2000 + UDP_UNSURE_AGE_MS, by_cookie);
	agent_run(&a);
	agent_stop(&a);

	add(&after, "127.0.0.1", 5000, true, 8);	/* has its client now */
	add(&after, "::1", 51820, false, 10);
	add(&after, "0.0.0.0", 41000, false, 11);
	add(&after, "127.0.0.1", 5001, true, 102);	/* a client */
	add(&after, "0.0.0.0", 42127, false, 104);	/* unknown to both */
	agent_start(&a);
	assert_string_equal(judge(&a, &after, 9000, unseen), "0.0.0.0 5000 ::1 51820");
	assert_string_equal(judge(&a, &after, 9000 + 2 * UDP_UNSURE_AGE_MS, unseen),
			    "0.0.0.0 5000 0.0.0.0 42127 ::1 51820");
	agent_run(&a);
	agent_stop(&a);

	/* and the one after, which has no BPF */
	agent_start(&a);
	assert_string_equal(judge(&a, &after, 30000, NULL), "0.0.0.0 5000 0.0.0.0 42127 ::1 51820");
	assert_string_equal(judge(&a, &after, 30000 + 2 * UDP_UNSURE_AGE_MS, NULL),
			    "0.0.0.0 5000 0.0.0.0 42127 ::1 51820");
	agent_stop(&a);
}

/* The port of a cookie says that it is that socket. */
static void test_keep_other_socket_of_that_name(void **state)
{
	scoped_sock_list struct sock_list dump = { 0 };
	struct agent a;

	leave_server();
	agent_start(&a);
	add(&dump, "127.0.0.1", 5001, true, 8);
	assert_string_equal(judge(&a, &dump, 1000, NULL), "");
	agent_stop(&a);
}

/* An agent that has only inodes, for a while or for good, leaves what is known by cookie to
 * the next one that has them, and the other way round. */
static void test_keep_both_kinds(void **state)
{
	scoped_sock_list struct sock_list dump = { 0 }, by_cookie_again = { 0 }, by_inode_again = { 0 };
	struct agent a;

	leave_server();
	agent_start_by(&a, true);
	assert_true(udp_keep_found(a.keep));
	add(&dump, "0.0.0.0", 5001, false, 8);
	assert_string_equal(judge(&a, &dump, 1000, NULL), "0.0.0.0 5001");
	agent_run(&a);
	agent_stop(&a);
	agent_start(&a);
	add(&by_cookie_again, "127.0.0.1", 5000, true, 8);
	assert_string_equal(judge(&a, &by_cookie_again, 1000, NULL), "0.0.0.0 5000");
	agent_stop(&a);
	agent_start_by(&a, true);
	add(&by_inode_again, "127.0.0.1", 5001, true, 8);
	assert_string_equal(judge(&a, &by_inode_again, 1000, NULL), "0.0.0.0 5001");
	agent_stop(&a);
}

static char *replaced(const char *text, const char *what, const char *by)
{
	const char *at = strstr(text, what);

	assert_non_null(at);
	return xasprintf("%.*s%s%s", (int)(at - text), text, by, at + strlen(what));
}

static void test_keep_file_that_is_not_ours(void **state)
{
	static const struct {
		const char *what, *by;
	} rows[] = {
		{ "udp 1 ", "udp 2 " },
		{ "udp 1 ", "udp 1 x" },		/* another boot */
		{ "net:[", "net:[1" },
		{ " cookie\n", " inode\n" },
		{ "8 server", "zz server" },
		{ "8 server", "8 servers" },
		{ "0.0.0.0", "0.0.0.0.0" },
		{ "0.0.0.0", "fe80::1%eth0" },
		{ " 5000", " 0" },
		{ " 5000", " 65536" },
		{ " 5000", " 5000 more" },
		{ " 5000\n", " 5000" },			/* cut off */
		{ "8 server", "" },
	};
	scoped_buf struct buf good = { 0 };
	struct error err = ERROR_NONE;

	leave_server();
	assert_int_equal(path_read_file(path, FILE_MAX, &good, &err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *bad = replaced((char *)good.data, rows[i].what, rows[i].by);
		scoped_sock_list struct sock_list dump = { 0 };
		struct agent a;

		print_message("%s", bad);
		assert_int_equal(path_write_file(path, bad, strlen(bad), 0600, &err), 0);
		agent_start(&a);
		add(&dump, "127.0.0.1", 5000, true, 8);
		assert_string_equal(judge(&a, &dump, 1000, NULL), "");
		agent_stop(&a);
	}
}

/* More than has room: what is written can be read, and servers come first. */
static void test_keep_is_bounded(void **state)
{
	enum { MANY = 3000 };
	scoped_sock_list struct sock_list none = { 0 }, clients = { 0 }, dump = { 0 };
	struct agent a;
	struct stat st;
	size_t servers = 0;

	unlink(path);
	agent_start(&a);
	judge(&a, &none, 1000, by_cookie);
	for (unsigned i = 0; i < MANY; i++)
		add(&dump, "fd00:1111:2222:3333:4444:5555:6666:7777", (uint16_t)(40000 + i), false,
		    0xfffffffffff00001 + 2 * i);
	for (unsigned i = 0; i < KEEP_SOCKETS_MAX; i++)
		add(&dump, "fd00:1111:2222:3333:4444:5555:6666:7777", (uint16_t)(10000 + i), false,
		    0xfffffffffffe0000 + 2 * i);
	judge(&a, &dump, 2000, unseen);
	for (size_t i = 0; i < a.servers.len; i++)
		a.servers.items[i].lasting = true,
		a.servers.items[i].server = a.servers.items[i].port.port < 20000;
	udp_keep_note(a.keep);
	agent_run(&a);
	agent_stop(&a);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_true(st.st_size < FILE_MAX);
	agent_start(&a);
	assert_int_equal(a.servers.len, KEEP_SOCKETS_MAX);
	for (size_t i = 0; i < a.servers.len; i++)
		servers += a.servers.items[i].server;
	assert_int_equal(servers, KEEP_SOCKETS_MAX);
	agent_stop(&a);
}

/* How often the file is another one than when asked before: 0 or 1. Two in one tick of
 * the kernel's clock have the same time, but not the same inode. */
static unsigned was_written(struct stat *before)
{
	struct stat st = { 0 };
	bool same;

	if (stat(path, &st) < 0)
		fail_msg("no %s", path);
	same = st.st_ino == before->st_ino && st.st_mtim.tv_sec == before->st_mtim.tv_sec &&
	       st.st_mtim.tv_nsec == before->st_mtim.tv_nsec;
	*before = st;
	return !same;
}

/* A server of its own for each @i. */
static void judge_new_server(struct agent *a, unsigned i)
{
	scoped_sock_list struct sock_list dump = { 0 };

	add(&dump, "0.0.0.0", (uint16_t)(10000 + i), false, 100 + i);
	judge(a, &dump, clock_mono_ms() + i, NULL);
	judge(a, &dump, clock_mono_ms() + i + UDP_MIN_AGE_MS, NULL);
}

/* A program that binds another port all the time: written soon, then once a second,
 * and by an agent that ends in order. */
static void test_keep_is_written_rarely(void **state)
{
	struct stat at = { 0 };
	struct agent a;
	uint64_t start_ms = clock_mono_ms();
	unsigned written = 0, i;

	leave_server();
	was_written(&at);
	agent_start(&a);
	for (i = 0; written == 0 || clock_mono_ms() < start_ms + KEEP_EVERY_MS / 2; i++) {
		assert_true(clock_mono_ms() < start_ms + DEADLINE_MS);
		judge_new_server(&a, i);
		usleep(2000);
		uv_run(&a.loop.uv, UV_RUN_NOWAIT);
		written += was_written(&at);
	}
	assert_true(written <= 1 + (clock_mono_ms() - start_ms) / KEEP_EVERY_MS);
	judge_new_server(&a, i);
	agent_stop(&a);
	assert_int_equal(was_written(&at), 1);
}

/* Nothing that stays the same is written again. */
static void test_keep_same_is_not_written(void **state)
{
	scoped_sock_list struct sock_list dump = { 0 }, gone = { 0 };
	struct agent a;

	leave_server();
	agent_start(&a);
	add(&dump, "127.0.0.1", 5000, true, 8);
	assert_string_equal(judge(&a, &dump, 1000, NULL), "0.0.0.0 5000");
	assert_false(uv_loop_alive(&a.loop.uv));
	assert_string_equal(judge(&a, &gone, 2000, NULL), "");
	assert_false(uv_loop_alive(&a.loop.uv));
	agent_stop(&a);
}

static void test_keep_without_a_directory(void **state)
{
	scoped_sock_list struct sock_list dump = { 0 };
	struct agent a;

	snprintf(path, sizeof(path), "%s/none/udp-servers", dir);
	agent_start(&a);
	add(&dump, "0.0.0.0", 5000, false, 8);
	assert_string_equal(judge(&a, &dump, 1000, NULL), "0.0.0.0 5000");
	agent_stop(&a);
	snprintf(path, sizeof(path), "%s/udp-servers", dir);
}

static int make_dir(void **state)
{
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/udp-servers", dir);
	return 0;
}

static int remove_dir(void **state)
{
	struct error err = ERROR_NONE;

	return path_remove_tree(dir, &err);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_keep_next_agent_goes_on),
		cmocka_unit_test(test_keep_other_socket_of_that_name),
		cmocka_unit_test(test_keep_both_kinds),
		cmocka_unit_test(test_keep_file_that_is_not_ours),
		cmocka_unit_test(test_keep_is_bounded),
		cmocka_unit_test(test_keep_is_written_rarely),
		cmocka_unit_test(test_keep_same_is_not_written),
		cmocka_unit_test(test_keep_without_a_directory),
	};

	return cmocka_run_group_tests_name("ports_udp_keep", tests, make_dir, remove_dir);
}
