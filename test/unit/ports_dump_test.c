/* Dumps of sockets that fail for a while, as when memory or descriptors are short: by BPF
 * events (where this kernel and user may load them) and by polling. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <linux/netlink.h>
#include <stdlib.h>

#include "guestagent/ports.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "test/mock/loop_wait.h"
#include "test/mock/netns.h"

enum { FAIL_MS = 1500 };	/* longer than the looks that one event is followed by */

struct fixture {
	struct loop loop;
	struct ports *ports;
	uv_timer_t tick;
	unsigned changes;
	bool closed;
	char dir[32];
	char *udp_keep;
	int server;	/* UDP, port 5000 */
};

static bool dumps_fail;

/* --- instead of the C library's (-Wl,--wrap) -------------------------------- */

ssize_t __wrap_send(int fd, const void *data, size_t len, int flags);
ssize_t __real_send(int fd, const void *data, size_t len, int flags);

ssize_t __wrap_send(int fd, const void *data, size_t len, int flags)
{
	int proto = -1;
	socklen_t size = sizeof(proto);

	if (!dumps_fail || getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &proto, &size) < 0 ||
	    proto != NETLINK_SOCK_DIAG)
		return __real_send(fd, data, len, flags);
	errno = ENOBUFS;
	return -1;
}

/* --- the list ------------------------------------------------------------------ */

static bool list_has(struct fixture *f, int proto, uint16_t port)
{
	const struct port_set *s = ports_current(f->ports);

	for (size_t i = 0; i < s->len; i++)
		if (s->items[i].proto == proto && s->items[i].port == port)
			return true;
	return false;
}

static void on_changed(void *arg, const struct port_set *added, const struct port_set *removed)
{
	((struct fixture *)arg)->changes++;
}

static void on_closed(void *arg)
{
	((struct fixture *)arg)->closed = true;
}

static void on_tick(uv_timer_t *t)
{
}

static void agent_start(struct fixture *f, bool no_bpf)
{
	struct ports_options opts = { .no_bpf = no_bpf, .no_nat = true, .udp_keep = f->udp_keep };
	struct error err = ERROR_NONE;

	f->changes = 0;
	f->closed = false;
	if (ports_new(&f->loop, &opts, on_changed, f, &f->ports, &err) < 0)
		fail_msg("%s", err.msg);
}

static void agent_stop(struct fixture *f)
{
	ports_close(f->ports, on_closed, f);
	loop_wait(&f->loop, f->closed);
}

static void run_ms(struct fixture *f, unsigned ms)
{
	uint64_t end_ms = clock_mono_ms() + ms;

	loop_wait(&f->loop, clock_mono_ms() >= end_ms);
}

/* --- sockets ------------------------------------------------------------------- */

static struct sockaddr_in loopback(uint16_t port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET,
				     .sin_port = htons(port),
				     .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

static int open_socket(int type, uint16_t port)
{
	struct sockaddr_in a = loopback(port);
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	if (type == SOCK_STREAM)
		assert_int_equal(listen(fd, 1), 0);
	return fd;
}

/* As `nc -lu` does with its first client. */
static void connect_server(struct fixture *f)
{
	struct sockaddr_in client = loopback(9);

	assert_int_equal(connect(f->server, (struct sockaddr *)&client, sizeof(client)), 0);
}

/* --- cases --------------------------------------------------------------------- */

/* What is known stays known, and what is new is told of soon after. */
static void dumps_fail_later(bool no_bpf, struct fixture *f)
{
	int late;

	agent_start(f, no_bpf);
	connect_server(f);
	dumps_fail = true;
	late = open_socket(SOCK_STREAM, 8080);
	run_ms(f, FAIL_MS);
	assert_int_equal(f->changes, 0);
	dumps_fail = false;
	loop_wait(&f->loop, list_has(f, IPPROTO_TCP, 8080));
	ports_rescan(f->ports);
	run_ms(f, 100);
	assert_true(list_has(f, IPPROTO_UDP, 5000));
	close(late);
	loop_wait(&f->loop, !list_has(f, IPPROTO_TCP, 8080));
	agent_stop(f);
}

/* /proc does for the time being, where sockets have other names; what an agent before
 * this one knew comes back with the names. */
static void dumps_fail_at_the_start(bool no_bpf, struct fixture *f)
{
	int tcp;

	agent_start(f, no_bpf);
	agent_stop(f);		/* the file is there */
	connect_server(f);
	tcp = open_socket(SOCK_STREAM, 8080);
	dumps_fail = true;
	agent_start(f, no_bpf);
	assert_true(list_has(f, IPPROTO_TCP, 8080));
	assert_false(list_has(f, IPPROTO_UDP, 5000));
	run_ms(f, 100);		/* long enough to write what /proc says */
	dumps_fail = false;
	ports_rescan(f->ports);
	loop_wait(&f->loop, list_has(f, IPPROTO_UDP, 5000));
	close(tcp);
	agent_stop(f);
}

static void test_dumps_fail_later(void **state)
{
	dumps_fail_later(false, *state);
}

static void test_dumps_fail_later_polling(void **state)
{
	dumps_fail_later(true, *state);
}

static void test_dumps_fail_at_the_start(void **state)
{
	dumps_fail_at_the_start(false, *state);
}

static void test_dumps_fail_at_the_start_polling(void **state)
{
	dumps_fail_at_the_start(true, *state);
}

static int start(void **state)
{
	struct fixture *f = xnew(struct fixture);
	struct error err = ERROR_NONE;

	*state = f;
	dumps_fail = false;
	strcpy(f->dir, "/tmp/lima-dump-XXXXXX");
	if (!mkdtemp(f->dir) || loop_init(&f->loop, &err) < 0)
		return -1;
	f->udp_keep = xasprintf("%s/udp-servers", f->dir);
	f->server = open_socket(SOCK_DGRAM, 5000);
	uv_timer_init(&f->loop.uv, &f->tick);
	uv_timer_start(&f->tick, on_tick, 10, 10);
	return 0;
}

static int stop(void **state)
{
	scoped_free struct fixture *f = *state;
	struct error err = ERROR_NONE;

	if (f->ports && !f->closed)	/* a case failed */
		agent_stop(f);
	uv_close((uv_handle_t *)&f->tick, NULL);
	loop_run(&f->loop);
	close(f->server);
	free(f->udp_keep);
	return path_remove_tree(f->dir, &err) < 0 || loop_done(&f->loop) != 0 ? -1 : 0;
}

static int enter_netns(void **state)
{
	return netns_enter() ? 0 : -1;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_dumps_fail_later, start, stop),
		cmocka_unit_test_setup_teardown(test_dumps_fail_later_polling, start, stop),
		cmocka_unit_test_setup_teardown(test_dumps_fail_at_the_start, start, stop),
		cmocka_unit_test_setup_teardown(test_dumps_fail_at_the_start_polling, start, stop),
	};

	return cmocka_run_group_tests_name("ports_dump", tests, enter_netns, NULL);
}
