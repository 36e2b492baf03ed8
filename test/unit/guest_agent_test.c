/* The whole guest agent in a process of its own against the host's client:
 * what a host agent sees of a guest, over the UNIX socket and the serial port. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guestagent/agent.h"
#include "lib/base/buf.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "proto/guest_client.h"
#include "proto/link.h"
#include "test/mock/loop_wait.h"
#include "test/mock/netns.h"

enum { DEADLINE_MS = 20000, PORTS_MAX = 64 };

struct host {
	struct loop loop;
	struct rpc *rpc;
	uv_timer_t tick;
	struct guest_client *client;
	bool ready, lost, closed;
	unsigned snapshots, events;
	uint64_t revision;
	char ports[PORTS_MAX][64];	/* "tcp 127.0.0.1 8080" */
	unsigned n_ports;
	char instance_id[64];
	int link_fd;			/* a copy, to break the link with */
};

static char dir[] = "/tmp/lima-agent-XXXXXX";
static char socket_path[64], progress_dir[64], device[64], secret_file[64];
static pid_t agent_pid;

static void on_tick(uv_timer_t *t)
{
}

#define wait_for(h, cond) loop_wait(&(h)->loop, cond)

/* --- the host's side ------------------------------------------------------- */

static void on_ready(void *arg, const Info *info)
{
	struct host *h = arg;

	h->ready = true;
	assert_string_equal(info->agent_version, LIMA_VERSION);
	assert_int_equal(strlen(info->boot_id), 36);
	assert_true(strlen(info->kernel) > 0);
}

static void port_apply(struct host *h, const IPPort *p, bool added)
{
	char text[64];
	unsigned i = 0;

	snprintf(text, sizeof(text), "%s %s %d", p->protocol, p->ip, p->port);
	while (i < h->n_ports && !streq(h->ports[i], text))
		i++;
	if (added) {
		assert_true(i == h->n_ports && i < PORTS_MAX);
		memcpy(h->ports[h->n_ports++], text, sizeof(text));
	} else {
		assert_true(i < h->n_ports);
		memcpy(h->ports[i], h->ports[--h->n_ports], sizeof(text));
	}
}

static void on_event(void *arg, const Event *e)
{
	struct host *h = arg;

	if (e->snapshot) {
		h->snapshots++;
		h->n_ports = 0;
	} else {
		assert_int_equal(e->revision, h->revision + 1);
	}
	h->revision = e->revision;
	h->events++;
	for (size_t i = 0; i < e->n_removed_local_ports; i++)
		port_apply(h, e->removed_local_ports[i], false);
	for (size_t i = 0; i < e->n_added_local_ports; i++)
		port_apply(h, e->added_local_ports[i], true);
	if (e->boot)
		snprintf(h->instance_id, sizeof(h->instance_id), "%s", e->boot->instance_id);
}

static void on_lost(void *arg, const struct error *why)
{
	((struct host *)arg)->lost = true;
}

static void on_closed(void *arg)
{
	((struct host *)arg)->closed = true;
}

static int connect_unix(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	uint64_t until_ms = clock_mono_ms() + DEADLINE_MS;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", socket_path);
	while (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		if (clock_mono_ms() > until_ms)
			fail_msg("agent does not listen: %s", strerror(errno));
		usleep(2000);
	}
	return fd;
}

static void host_connect(struct host *h)
{
	struct guest_client_options opts = { .connect_timeout_ms = DEADLINE_MS };
	struct guest_client_callbacks cb = {
		.ready = on_ready, .event = on_event, .lost = on_lost, .arg = h
	};
	struct error err = ERROR_NONE;
	int fd = connect_unix();

	h->ready = h->closed = h->lost = false;
	h->snapshots = 0;
	h->link_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (guest_client_new(&h->loop, h->rpc, fd, &opts, &cb, &h->client, &err) < 0)
		fail_msg("%s", err.msg);
	wait_for(h, h->ready && h->snapshots == 1);
}

static void host_disconnect(struct host *h)
{
	guest_client_close(steal_ptr(&h->client), on_closed, h);
	wait_for(h, h->closed);
	close(h->link_fd);
}

static void host_start(struct host *h)
{
	struct error err = ERROR_NONE;

	*h = (struct host){ 0 };
	assert_int_equal(loop_init(&h->loop, &err), 0);
	assert_int_equal(rpc_new(&h->loop, &h->rpc, &err), 0);
	uv_timer_init(&h->loop.uv, &h->tick);
	uv_timer_start(&h->tick, on_tick, 5, 5);
	host_connect(h);
}

static void host_stop(struct host *h)
{
	if (h->client)
		host_disconnect(h);
	uv_close((uv_handle_t *)&h->tick, NULL);
	loop_run(&h->loop);
	rpc_free(h->rpc);
	assert_int_equal(loop_done(&h->loop), 0);
}

static bool has_port(const struct host *h, const char *text)
{
	for (unsigned i = 0; i < h->n_ports; i++)
		if (streq(h->ports[i], text))
			return true;
	return false;
}

/* --- the guest's side ------------------------------------------------------ */

static void set_paths(void)
{
	snprintf(socket_path, sizeof(socket_path), "%s/ga.sock", dir);
	snprintf(progress_dir, sizeof(progress_dir), "%s/progress", dir);
	snprintf(device, sizeof(device), "%s/port0", dir);
	snprintf(secret_file, sizeof(secret_file), "%s/secret", dir);
}

/* This program again, as `guest_agent_test agent DIR`: gRPC does not survive fork(). */
static int agent_main(const char *in)
{
	struct agent_options opts = { .socket = socket_path,
				      .socket_owner = geteuid(),
				      .virtio_port = device,
				      .secret_file = secret_file,
				      .progress_dir = progress_dir,
				      .runtime_dir = dir };
	struct error err = ERROR_NONE;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(dir, sizeof(dir), "%s", in);
	set_paths();
	if (agent_run(&opts, &err) == 0)
		return 0;
	fprintf(stderr, "agent: %s\n", err.msg);
	return 1;
}

static int agent_start(void **state)
{
	agent_pid = fork();
	if (agent_pid == 0) {
		execl("/proc/self/exe", "guest_agent_test", "agent", dir, NULL);
		_exit(127);
	}
	return agent_pid > 0 ? 0 : -1;
}

/* SIGTERM must always end it, in order. */
static int agent_stop(void **state)
{
	uint64_t until_ms = clock_mono_ms() + DEADLINE_MS;
	int status;

	kill(agent_pid, SIGTERM);
	while (waitpid(agent_pid, &status, WNOHANG) == 0) {
		if (clock_mono_ms() > until_ms) {
			kill(agent_pid, SIGKILL);
			waitpid(agent_pid, &status, 0);
			print_error("agent did not stop\n");
			return -1;
		}
		usleep(5000);
	}
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		print_error("agent ended with status %#x\n", status);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

static int tcp_server(uint16_t *ret_port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				 .sin_port = htons(*ret_port) };
	socklen_t len = sizeof(a);
	int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 16), 0);
	getsockname(fd, (struct sockaddr *)&a, &len);
	*ret_port = ntohs(a.sin_port);
	return fd;
}

/* --- tests ----------------------------------------------------------------- */

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void test_agent_ports_reach_the_host(void **state)
{
	enum { ROUNDS = 100 };
	struct host h;
	uint64_t up[ROUNDS], down[ROUNDS];
	uint16_t port = 8080;
	int fd;

	host_start(&h);
	assert_int_equal(guest_client_features(h.client),
			 GUEST_FEATURE_SNAPSHOT | GUEST_FEATURE_TUNNEL_KINDS |
				 GUEST_FEATURE_BOOT_PROGRESS | GUEST_FEATURE_TIME_RTT |
				 GUEST_FEATURE_VSOCK_RELAY);
	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t start_ns = clock_mono_ns();

		fd = tcp_server(&port);
		wait_for(&h, has_port(&h, "tcp 127.0.0.1 8080"));
		up[i] = clock_mono_ns() - start_ns;
		start_ns = clock_mono_ns();
		close(fd);
		wait_for(&h, !has_port(&h, "tcp 127.0.0.1 8080"));
		down[i] = clock_mono_ns() - start_ns;
		if (i == 9 && up[i] > 50 * 1000 * 1000)
			break;	/* polling: no use in a hundred rounds */
	}
	qsort(up, 10, sizeof(*up), compare_u64);
	qsort(down, 10, sizeof(*down), compare_u64);
	print_message("listen() to the host's event: %llu us, close: %llu us (medians)\n",
		      (unsigned long long)up[5] / 1000, (unsigned long long)down[5] / 1000);
	host_stop(&h);
}

/* The host agent was killed and is back: it gets all there is, not a delta. */
static void test_agent_host_comes_back(void **state)
{
	struct host h;
	uint16_t port = 8081;
	int fd;

	host_start(&h);
	fd = tcp_server(&port);
	wait_for(&h, has_port(&h, "tcp 127.0.0.1 8081"));
	host_disconnect(&h);
	h.n_ports = 0;
	host_connect(&h);
	assert_true(has_port(&h, "tcp 127.0.0.1 8081"));
	close(fd);
	wait_for(&h, h.n_ports == 0);
	host_stop(&h);
}

static int udp_socket(uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static void udp_connect(int fd, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				 .sin_port = htons(port) };

	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
}

static bool file_has(const char *path, const char *text)
{
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;

	return path_read_file(path, 65536, &b, &err) == 0 && strstr((char *)b.data, text);
}

/* kill -9 of the agent: the first thing that the next one says is all that serves, a
 * UDP server that is connected to its client by then included, and no client. */
static void test_agent_comes_back(void **state)
{
	struct host h;
	scoped_free char *kept = xasprintf("%s/udp-servers", dir);
	uint16_t port = 8081;
	int tcp, server, client;

	host_start(&h);
	tcp = tcp_server(&port);
	server = udp_socket(5000);
	wait_for(&h, h.n_ports == 2);
	wait_for(&h, file_has(kept, " server 0.0.0.0 5000\n"));
	client = udp_socket(5001);
	udp_connect(client, 9);
	udp_connect(server, 5001);
	kill(agent_pid, SIGKILL);
	assert_int_equal(waitpid(agent_pid, NULL, 0), agent_pid);
	wait_for(&h, h.lost);
	host_disconnect(&h);
	h.n_ports = 0;
	assert_int_equal(agent_start(state), 0);
	host_connect(&h);
	assert_int_equal(h.n_ports, 2);
	assert_true(has_port(&h, "tcp 127.0.0.1 8081"));
	assert_true(has_port(&h, "udp 0.0.0.0 5000"));
	close(tcp);
	close(server);
	close(client);
	wait_for(&h, h.n_ports == 0);
	host_stop(&h);
}

enum { FLIP_PORTS = 8, FLIP_FIRST = 9100 };

/* Opens what is closed and closes what is open, of some of the ports. */
static void flip(int fds[FLIP_PORTS], unsigned which)
{
	for (unsigned i = 0; i < FLIP_PORTS; i++) {
		uint16_t port = (uint16_t)(FLIP_FIRST + i);

		if (!(which & 1u << i))
			continue;
		if (fds[i] >= 0) {
			close(fds[i]);
			fds[i] = -1;
		} else {
			fds[i] = tcp_server(&port);
		}
	}
}

static bool list_is(const struct host *h, const int fds[FLIP_PORTS])
{
	unsigned open = 0;

	for (unsigned i = 0; i < FLIP_PORTS; i++) {
		char text[64];

		snprintf(text, sizeof(text), "tcp 127.0.0.1 %u", FLIP_FIRST + i);
		if (has_port(h, text) != (fds[i] >= 0))
			return false;
		open += fds[i] >= 0;
	}
	return open == h->n_ports;
}

/* The link breaks at any moment, between a change and its event, too, while ports
 * come and go before, during and after: each new link knows the truth, and on one
 * link no revision is missing (on_event() looks). */
static void test_agent_nothing_lost_over_broken_links(void **state)
{
	struct host h;
	int fds[FLIP_PORTS];
	unsigned seed = 1;

	memset(fds, 0xff, sizeof(fds));
	host_start(&h);
	for (unsigned round = 0; round < 60; round++) {
		flip(fds, (unsigned)rand_r(&seed));
		if (round % 3 == 0)	/* else it breaks with the change under way */
			wait_for(&h, list_is(&h, fds));
		flip(fds, (unsigned)rand_r(&seed));
		for (unsigned i = 0; i < round % 4; i++)
			uv_run(&h.loop.uv, UV_RUN_NOWAIT);
		shutdown(h.link_fd, SHUT_RDWR);
		wait_for(&h, h.lost);
		flip(fds, (unsigned)rand_r(&seed));
		host_disconnect(&h);
		h.n_ports = 0;
		host_connect(&h);
		flip(fds, (unsigned)rand_r(&seed));
		wait_for(&h, list_is(&h, fds));
	}
	for (unsigned i = 0; i < FLIP_PORTS; i++)
		scoped_close_fd(&fds[i]);
	wait_for(&h, h.n_ports == 0);
	host_stop(&h);
}

static void test_agent_boot_progress(void **state)
{
	struct host h;
	scoped_free char *path = xasprintf("%s/instance_id", progress_dir);
	struct error err = ERROR_NONE;

	host_start(&h);
	assert_string_equal(h.instance_id, "");
	assert_int_equal(path_mkdir_all(progress_dir, 0755, &err), 0);
	assert_int_equal(path_write_file(path, "seed-1\n", 7, 0644, &err), 0);
	wait_for(&h, streq(h.instance_id, "seed-1"));
	host_stop(&h);
}

struct end {
	struct buf got;
	bool opened, eof, closed, writable;
	int code;
};

static void end_opened(void *arg)
{
	((struct end *)arg)->opened = true;
}

static void end_data(void *arg, const uint8_t *data, size_t len)
{
	buf_add(&((struct end *)arg)->got, data, len);
}

static void end_eof(void *arg)
{
	((struct end *)arg)->eof = true;
}

static void end_writable(void *arg)
{
	((struct end *)arg)->writable = true;
}

static void end_closed(void *arg, const struct error *why)
{
	struct end *e = arg;

	e->closed = true;
	e->code = why->code;
}

static struct guest_tunnel *open_tunnel(struct host *h, struct end *e, int proto, uint16_t port)
{
	struct guest_tunnel_callbacks cb = { .opened = end_opened,
					     .data = end_data,
					     .eof = end_eof,
					     .writable = end_writable,
					     .closed = end_closed,
					     .arg = e };
	struct guest_tunnel *t;
	struct error err = ERROR_NONE;
	char addr[64];

	*e = (struct end){ 0 };
	snprintf(addr, sizeof(addr), "127.0.0.1:%u", port);
	if (guest_tunnel_open(h->client, proto, addr, &cb, &t, &err) < 0)
		fail_msg("%s", err.msg);
	return t;
}

static void send_bytes(struct guest_tunnel *t, const char *text)
{
	guest_tunnel_write(t, (uint8_t *)xstrdup(text), strlen(text));
}

enum { BULK = 2 << 20 };

/* Reads all until the end of file, then sends as much and closes. */
static void server_turn_round(struct host *h, int l, size_t expect, size_t answer)
{
	char block[65536];
	size_t got = 0;
	int fd;

	while ((fd = accept4(l, NULL, NULL, SOCK_NONBLOCK)) < 0)
		uv_run(&h->loop.uv, UV_RUN_ONCE);
	for (ssize_t n = -1; n != 0;) {
		n = read(fd, block, sizeof(block));
		if (n > 0)
			got += (size_t)n;
		else if (n < 0)
			uv_run(&h->loop.uv, UV_RUN_ONCE);
	}
	assert_int_equal(got, expect);
	memset(block, 'a', sizeof(block));
	while (answer) {
		ssize_t n = write(fd, block, MIN(sizeof(block), answer));

		if (n > 0)
			answer -= (size_t)n;
		else
			uv_run(&h->loop.uv, UV_RUN_ONCE);
	}
	close(fd);
}

static void test_agent_tunnel_half_close(void **state)
{
	struct host h;
	struct end e;
	struct guest_tunnel *t;
	uint16_t port = 8082;
	scoped_fd int l = -1;

	host_start(&h);
	l = tcp_server(&port);
	t = open_tunnel(&h, &e, IPPROTO_TCP, port);
	wait_for(&h, e.opened);
	send_bytes(t, "question");
	guest_tunnel_eof(t);
	server_turn_round(&h, l, 8, BULK);
	wait_for(&h, e.closed);
	assert_true(e.eof);
	assert_int_equal(e.code, 0);
	assert_int_equal(e.got.len, BULK);
	buf_done(&e.got);
	host_stop(&h);
}

static void test_agent_tunnel_refused_and_reset(void **state)
{
	struct host h;
	struct end e;
	struct linger now = { .l_onoff = 1 };
	uint16_t port = 8083;
	int l, fd;

	host_start(&h);
	open_tunnel(&h, &e, IPPROTO_TCP, port);
	wait_for(&h, e.closed);
	assert_false(e.opened);
	assert_int_equal(e.code, -ECONNREFUSED);
	l = tcp_server(&port);
	open_tunnel(&h, &e, IPPROTO_TCP, port);
	wait_for(&h, e.opened);
	fd = accept(l, NULL, NULL);
	assert_true(fd >= 0);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
	wait_for(&h, e.closed);
	assert_int_equal(e.code, -ECONNRESET);
	close(l);
	host_stop(&h);
}

static void test_agent_udp_tunnel(void **state)
{
	struct host h;
	struct end e;
	struct guest_tunnel *t;
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				 .sin_port = htons(8084) };
	socklen_t len = sizeof(a);
	uint8_t *big = xcalloc(1, 65507), *got = xmalloc(65536);
	scoped_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	ssize_t n = -1;

	host_start(&h);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	wait_for(&h, has_port(&h, "udp 127.0.0.1 8084"));
	t = open_tunnel(&h, &e, IPPROTO_UDP, 8084);
	guest_tunnel_write(t, big, 65507);
	wait_for(&h, (n = recvfrom(fd, got, 65536, 0, (struct sockaddr *)&a, &len)) >= 0);
	assert_int_equal(n, 65507);
	assert_int_equal(sendto(fd, got, 65507, 0, (struct sockaddr *)&a, len), 65507);
	wait_for(&h, e.got.len);
	assert_int_equal(e.got.len, 65507);
	guest_tunnel_close(t);
	buf_done(&e.got);
	free(got);
	host_stop(&h);
}

/* SIGTERM (the teardown) with a tunnel open and bytes under way. */
static void test_agent_stops_with_work_under_way(void **state)
{
	struct host h;
	struct end e;
	struct guest_tunnel *t;
	uint16_t port = 8085;
	scoped_fd int l = -1;

	host_start(&h);
	l = tcp_server(&port);
	t = open_tunnel(&h, &e, IPPROTO_TCP, port);
	wait_for(&h, e.opened);
	send_bytes(t, "x");
	kill(agent_pid, SIGTERM);
	wait_for(&h, h.lost);
	assert_true(e.closed);
	assert_int_not_equal(e.code, 0);
	host_stop(&h);
}

/* The port and its secret come after the agent; then a handshake is answered. */
static void test_agent_serial_port_comes_late(void **state)
{
	static const char hex[] = "000102030405060708090a0b0c0d0e0f\n";
	uint8_t syn[LINK_FRAME_SIZE], ack[LINK_FRAME_SIZE], in[4096];
	struct termios raw;
	struct error err = ERROR_NONE;
	uint64_t until_ms = clock_mono_ms() + DEADLINE_MS;
	char name[128];
	int host_end, port_end;
	size_t len = 0, at = 0;

	close(connect_unix());	/* it is up */
	assert_int_equal(openpty(&host_end, &port_end, name, NULL, NULL), 0);
	tcgetattr(port_end, &raw);
	cfmakeraw(&raw);
	tcsetattr(port_end, TCSANOW, &raw);
	assert_int_equal(symlink(name, device), 0);
	assert_int_equal(path_write_file(secret_file, hex, strlen(hex), 0600, &err), 0);
	for (uint8_t i = 0; i < LINK_FRAME_SIZE; i++)
		syn[i] = i;
	link_ack_magic(syn, ack);
	memcpy(ack + LINK_MAGIC_SIZE, syn + LINK_MAGIC_SIZE, LINK_NONCE_SIZE);
	assert_int_equal(write(host_end, syn, sizeof(syn)), sizeof(syn));
	while (!(len >= sizeof(ack) && link_find(ack, in, len, &at))) {
		struct pollfd p = { .fd = host_end, .events = POLLIN };
		ssize_t n;

		if (clock_mono_ms() > until_ms || len == sizeof(in))
			fail_msg("no answer on the serial port");
		if (poll(&p, 1, 100) == 1 && (n = read(host_end, in + len, sizeof(in) - len)) > 0)
			len += (size_t)n;
	}
	assert_memory_equal(in + at, ack, sizeof(ack));
	close(host_end);
	close(port_end);
}

static int set_up(void **state)
{
	if (!netns_enter() || !mkdtemp(dir))
		return -1;
	set_paths();
	return 0;
}

static int tear_down(void **state)
{
	struct error err = ERROR_NONE;

	return path_remove_tree(dir, &err);
}

static int agent_wait(void **state)
{
	int status;

	return waitpid(agent_pid, &status, 0) == agent_pid && WIFEXITED(status) &&
			       WEXITSTATUS(status) == 0
		       ? 0
		       : -1;
}

#define WITH_AGENT(test) cmocka_unit_test_setup_teardown(test, agent_start, agent_stop)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		WITH_AGENT(test_agent_ports_reach_the_host),
		WITH_AGENT(test_agent_host_comes_back),
		WITH_AGENT(test_agent_comes_back),
		WITH_AGENT(test_agent_nothing_lost_over_broken_links),
		WITH_AGENT(test_agent_boot_progress),
		WITH_AGENT(test_agent_tunnel_half_close),
		WITH_AGENT(test_agent_tunnel_refused_and_reset),
		WITH_AGENT(test_agent_udp_tunnel),
		cmocka_unit_test_setup_teardown(test_agent_stops_with_work_under_way, agent_start,
						agent_wait),
		WITH_AGENT(test_agent_serial_port_comes_late),
	};

	log_setup(getenv("LIMA_TEST_DEBUG") ? LOG_DEBUG : LOG_ERROR, LOG_FORMAT_TEXT);
	if (argc == 3 && streq(argv[1], "agent"))
		return agent_main(argv[2]);
	return cmocka_run_group_tests_name("guest_agent", tests, set_up, tear_down);
}
