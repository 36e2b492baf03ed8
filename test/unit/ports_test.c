/* Port detection against real sockets, in a network namespace of its own, by
 * BPF events (where this kernel and user may load them) and by polling. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "guestagent/ports.h"
#include "guestagent/ports_destroy.h"
#include "guestagent/ports_udp.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "test/mock/netns.h"

enum { DEADLINE_MS = 10000 };

struct fixture {
	struct loop loop;
	struct ports *ports;
	uv_timer_t deadline;
	unsigned changes;	/* `changed` calls */
	bool (*until)(struct fixture *f);
	uint16_t wanted;	/* for until functions */
	int wanted_proto;
	bool timed_out;
	struct port_set mirror;	/* built from added and removed alone */
	bool parts_closed;
};

static const struct ports_options by_events = { 0 };
static const struct ports_options by_polling = { .no_bpf = true };
static const struct ports_options by_proc = { .no_bpf = true, .no_diag = true };
/* Kernels that have only a part of what events need: no cgroup v2, no udp_diag. */
static const struct ports_options by_tcp_events = { .no_bpf_udp = true };
static const struct ports_options by_events_and_proc = { .no_diag = true };

/* --- the list, watched ---------------------------------------------------- */

static bool set_has(const struct port_set *s, int proto, uint16_t port)
{
	for (size_t i = 0; i < s->len; i++)
		if (s->items[i].proto == proto && s->items[i].port == port)
			return true;
	return false;
}

/* What a host would hold: the snapshot, then every delta applied. */
static void mirror_apply(struct fixture *f, const struct port_set *added,
			 const struct port_set *removed)
{
	scoped_port_set struct port_set next = { 0 };

	for (size_t i = 0; i < f->mirror.len; i++) {
		bool gone = false;

		for (size_t k = 0; k < removed->len; k++)
			gone |= memcmp(&f->mirror.items[i], &removed->items[k], sizeof(struct port)) == 0;
		if (!gone)
			port_set_add(&next, &f->mirror.items[i]);
	}
	for (size_t i = 0; i < added->len; i++)
		port_set_add(&next, &added->items[i]);
	port_set_done(&f->mirror);
	f->mirror = next;
	next = (struct port_set){ 0 };
	port_set_seal(&f->mirror);
}

static void on_changed(void *arg, const struct port_set *added, const struct port_set *removed)
{
	struct fixture *f = arg;

	f->changes++;
	mirror_apply(f, added, removed);
	assert_int_equal(f->mirror.len, ports_current(f->ports)->len);
	if (f->until && f->until(f))
		loop_stop(&f->loop);
}

static void on_deadline(uv_timer_t *t)
{
	struct fixture *f = t->data;

	f->timed_out = true;
	loop_stop(&f->loop);
}

/* Runs the loop until the list satisfies @until; false when it never did. */
static bool run_until(struct fixture *f, bool (*until)(struct fixture *f), unsigned ms)
{
	f->until = until;
	f->timed_out = false;
	if (until && until(f))
		return true;
	uv_update_time(&f->loop.uv);
	uv_timer_start(&f->deadline, on_deadline, ms, 0);
	loop_run(&f->loop);
	uv_timer_stop(&f->deadline);
	f->until = NULL;
	return !f->timed_out;
}

static bool wanted_there(struct fixture *f)
{
	return set_has(ports_current(f->ports), f->wanted_proto, f->wanted);
}

static bool wanted_gone(struct fixture *f)
{
	return !wanted_there(f);
}

static bool list_empty(struct fixture *f)
{
	return ports_current(f->ports)->len == 0;
}

static void assert_appears(struct fixture *f, int proto, uint16_t port)
{
	f->wanted_proto = proto;
	f->wanted = port;
	if (!run_until(f, wanted_there, DEADLINE_MS))
		fail_msg("%d/%u did not appear", proto, port);
}

static void assert_vanishes(struct fixture *f, int proto, uint16_t port)
{
	f->wanted_proto = proto;
	f->wanted = port;
	if (!run_until(f, wanted_gone, DEADLINE_MS))
		fail_msg("%d/%u did not vanish", proto, port);
}

static void fixture_start(struct fixture *f, const struct ports_options *opts)
{
	struct error err = ERROR_NONE;

	*f = (struct fixture){ 0 };
	assert_int_equal(loop_init(&f->loop, &err), 0);
	uv_timer_init(&f->loop.uv, &f->deadline);
	f->deadline.data = f;
	if (ports_new(&f->loop, opts, on_changed, f, &f->ports, &err) < 0)
		fail_msg("%s", err.msg);
	for (size_t i = 0; i < ports_current(f->ports)->len; i++)
		port_set_add(&f->mirror, &ports_current(f->ports)->items[i]);
}

static void on_ports_closed(void *arg)
{
	((struct fixture *)arg)->parts_closed = true;
}

static void fixture_stop(struct fixture *f)
{
	ports_close(f->ports, on_ports_closed, f);
	uv_close((uv_handle_t *)&f->deadline, NULL);
	loop_run(&f->loop);
	assert_true(f->parts_closed);
	assert_int_equal(loop_done(&f->loop), 0);
	port_set_done(&f->mirror);
}

/* --- sockets -------------------------------------------------------------- */

static int open_socket(int proto, const char *ip, uint16_t port, bool reuse)
{
	struct sockaddr_in a4 = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct sockaddr_in6 a6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	bool v6 = strchr(ip, ':');
	int on = 1;
	int fd = socket(v6 ? AF_INET6 : AF_INET,
			(proto == IPPROTO_TCP ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (reuse)
		setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
	inet_pton(v6 ? AF_INET6 : AF_INET, ip, v6 ? (void *)&a6.sin6_addr : &a4.sin_addr);
	if (bind(fd, v6 ? (void *)&a6 : (void *)&a4, v6 ? sizeof(a6) : sizeof(a4)) < 0)
		fail_msg("bind %s:%u: %s", ip, port, strerror(errno));
	return fd;
}

static int listen_on(const char *ip, uint16_t port)
{
	int fd = open_socket(IPPROTO_TCP, ip, port, false);

	assert_int_equal(listen(fd, 16), 0);
	return fd;
}

static uint16_t port_of(int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);

	assert_int_equal(getsockname(fd, (struct sockaddr *)&ss, &len), 0);
	return ntohs(ss.ss_family == AF_INET ? ((struct sockaddr_in *)&ss)->sin_port
					     : ((struct sockaddr_in6 *)&ss)->sin6_port);
}

static void connect_to(int fd, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
}

/* --- cases, each run in every mode ---------------------------------------- */

static void test_listen_and_close(void **state)
{
	struct fixture f;
	int v4, v6, self;

	fixture_start(&f, *state);
	v4 = listen_on("127.0.0.1", 8080);
	assert_appears(&f, IPPROTO_TCP, 8080);
	v6 = listen_on("::1", 8081);
	assert_appears(&f, IPPROTO_TCP, 8081);
	self = socket(AF_INET, SOCK_STREAM, 0);	/* listen() without bind() */
	assert_int_equal(listen(self, 1), 0);
	assert_appears(&f, IPPROTO_TCP, port_of(self));
	close(v4);
	assert_vanishes(&f, IPPROTO_TCP, 8080);
	shutdown(v6, SHUT_RDWR);
	assert_vanishes(&f, IPPROTO_TCP, 8081);
	close(v6);
	close(self);
	assert_true(run_until(&f, list_empty, DEADLINE_MS));
	fixture_stop(&f);
}

static void test_connections_are_no_ports(void **state)
{
	struct fixture f;
	int l, clients[20], children[20];
	unsigned changes;

	fixture_start(&f, *state);
	l = listen_on("127.0.0.1", 8080);
	assert_appears(&f, IPPROTO_TCP, 8080);
	changes = f.changes;
	for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
		clients[i] = socket(AF_INET, SOCK_STREAM, 0);
		connect_to(clients[i], 8080);
		children[i] = accept(l, NULL, NULL);
	}
	for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
		close(children[i]);
		close(clients[i]);
	}
	assert_false(run_until(&f, wanted_gone, 300));	/* the listener stays */
	assert_int_equal(f.changes, changes);
	close(l);
	assert_vanishes(&f, IPPROTO_TCP, 8080);
	fixture_stop(&f);
}

/* Gone only when the last holder of the descriptor is. */
static void test_listener_shared_by_fork(void **state)
{
	struct fixture f;
	int hold[2], l;
	char c;
	pid_t pid;

	fixture_start(&f, *state);
	l = listen_on("0.0.0.0", 8080);
	assert_appears(&f, IPPROTO_TCP, 8080);
	assert_int_equal(pipe2(hold, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		close(hold[1]);
		_exit(read(hold[0], &c, 1) == 0 ? 0 : 1);
	}
	close(hold[0]);
	close(l);
	assert_false(run_until(&f, wanted_gone, 300));
	close(hold[1]);	/* the child ends */
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_vanishes(&f, IPPROTO_TCP, 8080);
	fixture_stop(&f);
}

static void test_port_shared_by_sockets(void **state)
{
	struct fixture f;
	int a, b;

	fixture_start(&f, *state);
	a = open_socket(IPPROTO_TCP, "127.0.0.1", 8080, true);
	b = open_socket(IPPROTO_TCP, "127.0.0.1", 8080, true);
	assert_int_equal(listen(a, 1), 0);
	assert_int_equal(listen(b, 1), 0);
	assert_appears(&f, IPPROTO_TCP, 8080);
	assert_int_equal(ports_current(f.ports)->len, 1);
	close(a);
	assert_false(run_until(&f, wanted_gone, 300));
	close(b);
	assert_vanishes(&f, IPPROTO_TCP, 8080);
	fixture_stop(&f);
}

/* A second server that fails with EADDRINUSE takes nothing away. */
static void test_failed_listen_beside_a_server(void **state)
{
	struct fixture f;
	int a, b;

	fixture_start(&f, *state);
	a = open_socket(IPPROTO_TCP, "127.0.0.1", 8080, false);
	b = open_socket(IPPROTO_TCP, "127.0.0.1", 8080, false);
	assert_int_equal(listen(a, 1), 0);
	assert_appears(&f, IPPROTO_TCP, 8080);
	assert_int_equal(listen(b, 1), -1);
	close(b);
	assert_false(run_until(&f, wanted_gone, 300));
	assert_int_equal(f.changes, 1);
	close(a);
	assert_vanishes(&f, IPPROTO_TCP, 8080);
	fixture_stop(&f);
}

static void test_udp_servers_and_clients(void **state)
{
	struct fixture f;
	int v4, v6, client, fixed_client;

	fixture_start(&f, *state);
	client = socket(AF_INET, SOCK_DGRAM, 0);
	connect_to(client, 53);
	fixed_client = open_socket(IPPROTO_UDP, "127.0.0.1", 4000, false);
	connect_to(fixed_client, 53);
	v4 = open_socket(IPPROTO_UDP, "0.0.0.0", 5000, false);
	assert_appears(&f, IPPROTO_UDP, 5000);
	v6 = open_socket(IPPROTO_UDP, "::", 5001, false);
	assert_appears(&f, IPPROTO_UDP, 5001);
	assert_int_equal(ports_current(f.ports)->len, 2);
	connect_to(v4, 9);	/* to its first client, as `nc -lu` does */
	f.wanted = 5000;
	assert_false(run_until(&f, wanted_gone, 300));
	assert_int_equal(ports_current(f.ports)->len, 2);
	close(v4);
	assert_vanishes(&f, IPPROTO_UDP, 5000);
	close(v6);
	close(client);
	close(fixed_client);
	assert_vanishes(&f, IPPROTO_UDP, 5001);
	fixture_stop(&f);
}

/* Sockets older than the agent: reported at once, and their end is noticed. */
static void test_there_before_us(void **state)
{
	struct fixture f;
	int t = listen_on("127.0.0.1", 8080), u = open_socket(IPPROTO_UDP, "0.0.0.0", 5000, false);

	fixture_start(&f, *state);
	assert_int_equal(ports_current(f.ports)->len, 2);
	close(t);
	close(u);
	assert_true(run_until(&f, list_empty, DEADLINE_MS));
	fixture_stop(&f);
}

static void test_udp_port_chosen_by_kernel(void **state)
{
	struct fixture f;
	int named, any;

	fixture_start(&f, *state);
	if (!streq(ports_mode(f.ports), "events (tcp, udp)")) {
		fixture_stop(&f);	/* the rule by age is ports_udp_test's */
		return;
	}
	any = open_socket(IPPROTO_UDP, "0.0.0.0", 0, false);
	named = open_socket(IPPROTO_UDP, "0.0.0.0", 51820, false);
	assert_appears(&f, IPPROTO_UDP, 51820);
	assert_int_equal(ports_current(f.ports)->len, 1);
	close(any);
	close(named);
	assert_vanishes(&f, IPPROTO_UDP, 51820);
	fixture_stop(&f);
}

/* Clients: sending without bind(), bound to port 0, connected to a server, and one
 * that listens to whoever answers for longer than any rule by age. */
static void test_udp_clients_never_appear(void **state)
{
	struct fixture f;
	struct sockaddr_in to = { .sin_family = AF_INET,
				  .sin_port = htons(53),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int sender = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), any, connected;

	fixture_start(&f, *state);
	if (!streq(ports_mode(f.ports), "events (tcp, udp)")) {
		close(sender);
		fixture_stop(&f);	/* not told apart for sure */
		return;
	}
	assert_int_equal(sendto(sender, "?", 1, 0, (struct sockaddr *)&to, sizeof(to)), 1);
	assert_true(port_of(sender) != 0);
	any = open_socket(IPPROTO_UDP, "0.0.0.0", 0, false);
	connected = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	connect_to(connected, 53);
	f.wanted = port_of(sender);
	f.wanted_proto = IPPROTO_UDP;
	assert_false(run_until(&f, wanted_there, UDP_UNSURE_AGE_MS + 500));
	assert_int_equal(ports_current(f.ports)->len, 0);
	assert_int_equal(f.changes, 0);
	close(sender);
	close(any);
	close(connected);
	fixture_stop(&f);
}

/* A real server that connect()s to its first client. */
static void test_udp_netcat_stays(void **state)
{
	struct fixture f;
	int in[2], client;
	char c = 0;
	pid_t pid;

	fixture_start(&f, *state);
	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		dup2(in[0], 0);
		execlp("nc", "nc", "-lu", "127.0.0.1", "5000", NULL);
		_exit(127);
	}
	close(in[0]);
	assert_appears(&f, IPPROTO_UDP, 5000);
	client = open_socket(IPPROTO_UDP, "127.0.0.1", 0, false);
	connect_to(client, 5000);
	assert_int_equal(write(client, "hello", 5), 5);
	assert_int_equal(write(in[1], "!", 1), 1);
	assert_int_equal(read(client, &c, 1), 1);	/* it answers: it is connected now */
	assert_false(run_until(&f, wanted_gone, 300));
	assert_int_equal(ports_current(f.ports)->len, 1);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_vanishes(&f, IPPROTO_UDP, 5000);
	close(in[1]);
	close(client);
	fixture_stop(&f);
}

/* An agent in a process of its own, killed once it wrote down what it knows. */
static void run_agent_until_kept(const struct ports_options *opts)
{
	uint64_t end_ms = clock_mono_ms() + DEADLINE_MS;
	struct fixture f;
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fixture_start(&f, opts);
		loop_run(&f.loop);
		_exit(1);
	}
	while (!path_exists(opts->udp_keep) && clock_mono_ms() < end_ms)
		usleep(1000);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* kill -9 of the agent while a server has its client (`nc -lu`, OpenVPN), which
 * nobody could tell from a client by looking at it. */
static void test_udp_connected_server_outlives_the_agent(void **state)
{
	struct ports_options opts = *(const struct ports_options *)*state;
	char dir[] = "/tmp/lima-ports-XXXXXX";
	scoped_free char *path = NULL;
	struct port want = { .proto = IPPROTO_UDP, .family = AF_INET, .port = 5000 };
	struct error err = ERROR_NONE;
	struct fixture f;
	int server, client;

	assert_non_null(mkdtemp(dir));
	opts.udp_keep = path = xasprintf("%s/udp-servers", dir);
	server = open_socket(IPPROTO_UDP, "0.0.0.0", 5000, false);
	run_agent_until_kept(&opts);
	connect_to(server, 9);
	client = open_socket(IPPROTO_UDP, "127.0.0.1", 5001, false);
	connect_to(client, 9);
	fixture_start(&f, &opts);
	assert_int_equal(ports_current(f.ports)->len, 1);
	assert_memory_equal(ports_current(f.ports)->items, &want, sizeof(want));
	close(server);
	assert_vanishes(&f, IPPROTO_UDP, 5000);
	close(client);
	fixture_stop(&f);
	assert_int_equal(path_remove_tree(dir, &err), 0);
}

/* --- kicks of one protocol --------------------------------------------------- */

static bool both_there(struct fixture *f)
{
	return set_has(ports_current(f->ports), IPPROTO_TCP, 8080) &&
	       set_has(ports_current(f->ports), IPPROTO_UDP, 5000);
}

static bool udp_alone(struct fixture *f)
{
	return set_has(ports_current(f->ports), IPPROTO_UDP, 5000) &&
	       ports_current(f->ports)->len == 1;
}

/* Both kicks wait when the loop comes to look. */
static void test_tcp_and_udp_at_once(void **state)
{
	struct fixture f;

	fixture_start(&f, *state);
	for (int i = 0; i < 6; i++) {
		bool tcp_first = i % 2;
		int t = tcp_first ? listen_on("127.0.0.1", 8080) : -1;
		int u = open_socket(IPPROTO_UDP, "127.0.0.1", 5000, false);

		t = tcp_first ? t : listen_on("127.0.0.1", 8080);
		assert_true(run_until(&f, both_there, DEADLINE_MS));
		close(tcp_first ? u : t);
		close(tcp_first ? t : u);
		assert_true(run_until(&f, list_empty, DEADLINE_MS));
	}
	fixture_stop(&f);
}

/* What the other protocol has stays, whichever one kicks. */
static void test_one_protocol_leaves_the_other(void **state)
{
	struct fixture f;
	int t, u;
	unsigned changes;

	fixture_start(&f, *state);
	u = open_socket(IPPROTO_UDP, "127.0.0.1", 5000, false);
	assert_true(run_until(&f, udp_alone, DEADLINE_MS));
	changes = f.changes;
	t = listen_on("127.0.0.1", 8080);
	assert_true(run_until(&f, both_there, DEADLINE_MS));
	assert_int_equal(f.changes, changes + 1);
	close(t);
	assert_true(run_until(&f, udp_alone, DEADLINE_MS));
	t = listen_on("127.0.0.1", 8080);
	assert_true(run_until(&f, both_there, DEADLINE_MS));
	close(u);
	assert_vanishes(&f, IPPROTO_UDP, 5000);
	assert_true(set_has(ports_current(f.ports), IPPROTO_TCP, 8080));
	u = open_socket(IPPROTO_UDP, "127.0.0.1", 5000, false);
	assert_appears(&f, IPPROTO_UDP, 5000);
	assert_true(both_there(&f));
	close(t);
	close(u);
	assert_true(run_until(&f, list_empty, DEADLINE_MS));
	fixture_stop(&f);
}

/* A UDP socket comes of age while TCP kicks all the time. */
static void test_udp_ages_under_tcp_kicks(void **state)
{
	struct fixture f;
	uint64_t end_ms = clock_mono_ms() + DEADLINE_MS;
	int u;

	fixture_start(&f, *state);
	u = open_socket(IPPROTO_UDP, "127.0.0.1", 5000, false);
	while (!set_has(ports_current(f.ports), IPPROTO_UDP, 5000)) {
		assert_true(clock_mono_ms() < end_ms);
		close(listen_on("127.0.0.1", 8080));
		uv_run(&f.loop.uv, UV_RUN_NOWAIT);
		usleep(100);
	}
	close(u);
	assert_true(run_until(&f, list_empty, DEADLINE_MS));
	fixture_stop(&f);
}

/* More TCP kicks than the ring buffer holds, so that UDP's finds no room in it. */
static void test_udp_kick_lost_in_a_full_ring(void **state)
{
	struct fixture f;
	int u;

	fixture_start(&f, *state);
	for (int i = 0; i < 400; i++)
		close(listen_on("127.0.0.1", 8080));
	u = open_socket(IPPROTO_UDP, "127.0.0.1", 5000, false);
	assert_appears(&f, IPPROTO_UDP, 5000);
	for (int i = 0; i < 400; i++)
		close(listen_on("127.0.0.1", 8080));
	close(u);
	assert_vanishes(&f, IPPROTO_UDP, 5000);
	assert_int_equal(ports_current(f.ports)->len, 0);
	fixture_stop(&f);
}

/* --- the kernel's word on closed sockets ----------------------------------- */

struct kicks {
	struct loop loop;
	struct ports_destroy *destroy;
	unsigned n;
};

static void count_kick(void *arg)
{
	struct kicks *k = arg;

	k->n++;
}

static void run_kicks(struct kicks *k, unsigned ms)
{
	for (uint64_t end = clock_mono_ms() + ms; k->n == 0 && clock_mono_ms() < end;) {
		uv_run(&k->loop.uv, UV_RUN_NOWAIT);
		usleep(1000);
	}
}

static void ignore_closed(void *arg)
{
}

/* Listeners and UDP servers kick when they end, connections do not. */
static void test_destroy_tells_of_servers_only(void **state)
{
	struct kicks k = { 0 };
	struct error err = ERROR_NONE;
	int l = listen_on("127.0.0.1", 8080), l6 = listen_on("::1", 8080), client, child;
	int u = open_socket(IPPROTO_UDP, "127.0.0.1", 5000, false);

	assert_int_equal(loop_init(&k.loop, &err), 0);
	if (ports_destroy_new(&k.loop, true, true, count_kick, &k, &k.destroy, &err) < 0)
		fail_msg("%s", err.msg);
	client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	connect_to(client, 8080);
	child = accept(l, NULL, NULL);
	close(client);
	close(child);
	run_kicks(&k, 300);
	assert_int_equal(k.n, 0);
	for (int *fd = (int[]){ l, l6, u, -1 }; *fd >= 0; fd++) {
		k.n = 0;
		close(*fd);
		run_kicks(&k, DEADLINE_MS);
		assert_true(k.n > 0);
	}
	ports_destroy_close(k.destroy, ignore_closed, NULL);
	loop_run(&k.loop);
	assert_int_equal(loop_done(&k.loop), 0);
}

/* --- many ------------------------------------------------------------------ */

enum { CYCLES = 1000, QUIET_EVERY = 50, FIRST_PORT = 20000 };

struct storm {
	struct fixture *f;
	pthread_t thread;
	bool done;
	int held[QUIET_EVERY];
	unsigned held_n;
};

static void storm_done(void *arg)
{
	struct storm *s = arg;

	s->done = true;
	loop_unref(&s->f->loop);
	loop_stop(&s->f->loop);
}

/* Opens and closes as fast as it can; every seventh is left open. */
static void *storm_run(void *arg)
{
	struct storm *s = arg;

	for (unsigned i = 0; i < QUIET_EVERY; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		struct sockaddr_in a = { .sin_family = AF_INET,
					 .sin_port = htons((uint16_t)(FIRST_PORT + i)),
					 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

		if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 1) < 0)
			abort();
		if (i % 7 == 0)
			s->held[s->held_n++] = fd;
		else
			close(fd);
	}
	loop_post(&s->f->loop, storm_done, s);
	return NULL;
}

static bool list_is_held(struct fixture *f)
{
	const struct port_set *now = ports_current(f->ports);

	if (now->len != (QUIET_EVERY + 6) / 7)
		return false;
	for (size_t i = 0; i < now->len; i++)
		if (now->items[i].port != FIRST_PORT + 7 * i)
			return false;
	return true;
}

static void test_thousand_cycles_nothing_lost(void **state)
{
	struct fixture f;
	uint64_t start_ms = clock_mono_ms();

	fixture_start(&f, *state);
	for (unsigned round = 0; round < CYCLES / QUIET_EVERY; round++) {
		struct storm s = { .f = &f };

		loop_ref(&f.loop);
		assert_int_equal(pthread_create(&s.thread, NULL, storm_run, &s), 0);
		while (!s.done)
			loop_run(&f.loop);
		pthread_join(s.thread, NULL);
		if (!run_until(&f, list_is_held, DEADLINE_MS))
			fail_msg("round %u: list differs from the truth", round);
		for (unsigned i = 0; i < s.held_n; i++)
			close(s.held[i]);
		assert_true(run_until(&f, list_empty, DEADLINE_MS));
	}
	print_message("%s: %d cycles in %d ms, %u events\n", ports_mode(f.ports), CYCLES,
		      (int)(clock_mono_ms() - start_ms), f.changes);
	fixture_stop(&f);
}

/* --- latency ---------------------------------------------------------------- */

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

struct opener {
	struct fixture *f;
	int proto;
	uint16_t port;
	int fd;			/* -1: open it; else close it */
	uint64_t at_ns;
};

/* On another thread, as a server would be: the loop sleeps when it happens. */
static void *opener_run(void *arg)
{
	struct opener *o = arg;

	usleep(1000);
	if (o->fd >= 0) {
		o->at_ns = clock_mono_ns();
		close(o->fd);
		o->fd = -1;
		return NULL;
	}
	o->fd = open_socket(o->proto, "127.0.0.1", o->port, false);
	o->at_ns = clock_mono_ns();
	if (o->proto == IPPROTO_TCP)
		listen(o->fd, 1);
	return NULL;
}

static uint64_t time_one(struct opener *o)
{
	pthread_t t;
	bool opening = o->fd < 0;
	uint64_t seen_ns;

	pthread_create(&t, NULL, opener_run, o);
	if (opening)
		assert_appears(o->f, o->proto, o->port);
	else
		assert_vanishes(o->f, o->proto, o->port);
	seen_ns = clock_mono_ns();
	pthread_join(t, NULL);
	return (seen_ns - o->at_ns) / 1000;
}

static void print_latency(const char *what, uint64_t *us, size_t n)
{
	qsort(us, n, sizeof(*us), compare_u64);
	print_message("  %-10s median %6llu us, p90 %6llu us, p99 %6llu us\n", what,
		      (unsigned long long)us[n / 2], (unsigned long long)us[n * 9 / 10],
		      (unsigned long long)us[n * 99 / 100]);
}

static void test_latency(void **state)
{
	enum { EVENTS = 200, POLLS = 20 };
	struct fixture f;
	uint64_t up[EVENTS], down[EVENTS];
	size_t n;

	fixture_start(&f, *state);
	n = strncmp(ports_mode(f.ports), "events (tcp, udp)", 17) == 0 ? EVENTS : POLLS;
	print_message("%s %s\n", ports_mode(f.ports), ports_bpf_problem(f.ports));
	for (int udp = 0; udp < 2; udp++) {
		for (size_t i = 0; i < n; i++) {
			struct opener o = { .f = &f, .proto = udp ? IPPROTO_UDP : IPPROTO_TCP,
					    .port = (uint16_t)(9000 + i), .fd = -1 };

			up[i] = time_one(&o);
			down[i] = time_one(&o);
		}
		print_latency(udp ? "udp open" : "tcp open", up, n);
		print_latency(udp ? "udp close" : "tcp close", down, n);
		/* half of a poll's shortest interval: closes are told, not polled for */
		assert_true(down[n / 2] < 50 * 1000);
	}
	fixture_stop(&f);
}

static int enter_netns(void **state)
{
	return netns_enter() ? 0 : -1;
}

#define IN_MODE(test, mode) { #test " " #mode, test, NULL, NULL, (void *)&(mode) }
#define IN_ALL_MODES(test) IN_MODE(test, by_events), IN_MODE(test, by_polling), IN_MODE(test, by_proc)
#define IN_MIXED_MODES(test) IN_MODE(test, by_tcp_events), IN_MODE(test, by_events_and_proc)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_ALL_MODES(test_listen_and_close),
		IN_MIXED_MODES(test_listen_and_close),
		IN_ALL_MODES(test_connections_are_no_ports),
		IN_ALL_MODES(test_listener_shared_by_fork),
		IN_ALL_MODES(test_port_shared_by_sockets),
		IN_ALL_MODES(test_failed_listen_beside_a_server),
		IN_ALL_MODES(test_udp_servers_and_clients),
		IN_MIXED_MODES(test_udp_servers_and_clients),
		IN_ALL_MODES(test_tcp_and_udp_at_once),
		IN_MIXED_MODES(test_tcp_and_udp_at_once),
		IN_ALL_MODES(test_one_protocol_leaves_the_other),
		IN_MIXED_MODES(test_one_protocol_leaves_the_other),
		IN_ALL_MODES(test_udp_ages_under_tcp_kicks),
		IN_MIXED_MODES(test_udp_ages_under_tcp_kicks),
		IN_MODE(test_udp_kick_lost_in_a_full_ring, by_events),
		IN_ALL_MODES(test_there_before_us),
		IN_MIXED_MODES(test_there_before_us),
		IN_MODE(test_udp_port_chosen_by_kernel, by_events),
		IN_MODE(test_udp_clients_never_appear, by_events),
		IN_ALL_MODES(test_udp_netcat_stays),
		IN_MIXED_MODES(test_udp_netcat_stays),
		IN_ALL_MODES(test_udp_connected_server_outlives_the_agent),
		IN_MIXED_MODES(test_udp_connected_server_outlives_the_agent),
		cmocka_unit_test(test_destroy_tells_of_servers_only),
		IN_ALL_MODES(test_thousand_cycles_nothing_lost),
		IN_MODE(test_latency, by_events),
		IN_MODE(test_latency, by_polling),
	};

	return cmocka_run_group_tests_name("ports", tests, enter_netns, NULL);
}
