/* Lanes that end in a socket of the host: ssh, direct. Real sockets all the way. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/lane_direct.h"
#include "hostagent/forward/lane_ssh.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "test/mock/forward.h"

/* --- the guest's server, in a thread ------------------------------------------- */

enum server_mode {
	SERVE_ECHO,    /* until the client's FIN, then its own */
	SERVE_HANG_UP, /* closes at once: what ssh does when the guest refuses */
	SERVE_FIN,     /* FIN at once, then takes what comes */
	SERVE_RESET,   /* RST after the first byte */
	SERVE_BULK,    /* 32 MiB, then FIN */
	SERVE_SILENT,
	SERVE_STUCK,   /* takes nothing */
};

enum { BULK = 32 << 20, HALF_CLOSED_BYTES = 50000 };

struct server {
	enum server_mode mode;
	int fd;
	pthread_t thread;
	unsigned clients;
	size_t got;
};

static void serve(struct server *s, int fd)
{
	struct linger at_once = { .l_onoff = 1 };
	scoped_free char *block = xcalloc(1, 1 << 16);
	struct pollfd reset = { .fd = fd };
	size_t sent = 0;
	ssize_t n;

	if (s->mode == SERVE_STUCK)
		poll(&reset, 1, -1);
	if (s->mode == SERVE_FIN)
		shutdown(fd, SHUT_WR);
	while (s->mode == SERVE_BULK && sent < BULK &&
	       (n = send(fd, block, MIN((size_t)BULK - sent, (size_t)1 << 16), MSG_NOSIGNAL)) > 0)
		sent += (size_t)n;
	if (s->mode == SERVE_BULK)
		shutdown(fd, SHUT_WR);
	while (s->mode != SERVE_HANG_UP && (n = recv(fd, block, 1 << 16, 0)) > 0) {
		__atomic_fetch_add(&s->got, (size_t)n, __ATOMIC_RELAXED);
		if (s->mode == SERVE_RESET) {
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
			break;
		}
		if (s->mode == SERVE_ECHO && send(fd, block, (size_t)n, MSG_NOSIGNAL) != n)
			break;
	}
	close(fd);
}

struct served {
	struct server *s;
	int fd;
};

static void *serve_thread(void *arg)
{
	struct served *c = arg;

	serve(c->s, c->fd);
	free(c);
	return NULL;
}

static void *accept_thread(void *arg)
{
	pthread_t threads[512];
	struct server *s = arg;
	size_t n = 0;
	int fd;

	while (n < ARRAY_SIZE(threads) && (fd = accept(s->fd, NULL, NULL)) >= 0) {
		struct served *c = xnew(struct served);

		*c = (struct served){ s, fd };
		__atomic_fetch_add(&s->clients, 1, __ATOMIC_RELAXED);
		pthread_create(&threads[n++], NULL, serve_thread, c);
	}
	while (n > 0)
		pthread_join(threads[--n], NULL);
	return NULL;
}

/* Takes @fd, which listens and blocks. */
static void server_start(struct server *s, int fd, enum server_mode mode)
{
	static const struct timeval for_ever = { 0 };

	assert_true(fd >= 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &for_ever, sizeof(for_ever));
	*s = (struct server){ .mode = mode, .fd = fd };
	pthread_create(&s->thread, NULL, accept_thread, s);
}

static void server_stop(struct server *s)
{
	shutdown(s->fd, SHUT_RDWR);
	pthread_join(s->thread, NULL);
	close(s->fd);
}

/* --- a forward with one such lane ------------------------------------------------ */

struct sx {
	struct fx fx;
	struct lane *lane;
	struct config_port_forward rule;
	uint16_t port;
	char *dir;
	bool closed, broken;
	unsigned failed;
	struct server server;
};

static void sx_start(struct sx *x, enum config_lane which, const char *guest_ip)
{
	struct forward_limits limits = { .lane_wait_ms = 1000 };

	memset(x, 0, sizeof(*x));
	x->port = fx_free_port();
	x->rule = fx_rule(x->port, x->port);
	x->rule.guest_ip = fx_port(0, guest_ip, 1).ip;
	x->rule.lane = which;
	fx_start(&x->fx, &x->rule, 1, &limits);
	fx_add(&x->fx, IPPROTO_TCP, guest_ip, x->port);
	assert_int_equal(fx_count_events(&x->fx, "forwarding tcp"), 1);
}

static void on_closed(void *arg)
{
	((struct sx *)arg)->closed = true;
}

static bool is_closed(void *arg)
{
	return ((struct sx *)arg)->closed;
}

static bool no_client(void *arg)
{
	return fx_row(&((struct sx *)arg)->fx).connections_now == 0;
}

static int sx_client(struct sx *x)
{
	int fd = fx_connect(SOCK_STREAM, "127.0.0.1", x->port);

	assert_true(fd >= 0);
	return fd;
}

static void assert_echo(struct sx *x, int fd)
{
	fx_assert_echo(&x->fx, fd, "hello", 5);
}

/* --- direct ----------------------------------------------------------------------- */

static void set_address(struct sx *x, const char *guest_ip)
{
	struct in6_addr ip = fx_port(0, guest_ip, 1).ip;

	lane_direct_set_address(x->lane, &ip);
}

static void direct_start(struct sx *x, const char *listener_ip, const char *guest_ip)
{
	sx_start(x, CONFIG_LANE_DIRECT, listener_ip);
	x->lane = lane_direct_new(&x->fx.loop);
	set_address(x, guest_ip);
	forward_set_lane(x->fx.forward, CONFIG_LANE_DIRECT, x->lane);
}

static void direct_stop(struct sx *x)
{
	forward_set_lane(x->fx.forward, CONFIG_LANE_DIRECT, NULL);
	lane_direct_close(x->lane, on_closed, x);
	assert_true(fx_until(&x->fx, is_closed, x));
	fx_stop(&x->fx);
}

static void test_direct_streams(void **state)
{
	static char block[1 << 16];
	struct forward_row row;
	struct linger at_once = { .l_onoff = 1 };
	struct sx x;
	char in;
	size_t got = 0;
	ssize_t n;
	int fd;

	direct_start(&x, "0.0.0.0", "127.0.0.2");
	server_start(&x.server, fx_bind(SOCK_STREAM, "127.0.0.2", x.port), SERVE_ECHO);
	fd = sx_client(&x);
	assert_echo(&x, fd);
	assert_echo(&x, fd);
	shutdown(fd, SHUT_WR);
	assert_int_equal(fx_receive(&x.fx, fd, &in, 1), 0);
	close(fd);
	assert_true(fx_until(&x.fx, no_client, &x));
	row = fx_row(&x.fx);
	assert_string_equal(row.lane, "direct");
	assert_int_equal(row.bytes_in, 10);
	assert_int_equal(row.bytes_out, 10);
	assert_int_equal(row.resets, 0);

	x.server.mode = SERVE_BULK; /* and a client that is slower */
	fd = sx_client(&x);
	while ((n = fx_receive(&x.fx, fd, block, sizeof(block))) > 0)
		got += (size_t)n;
	assert_int_equal(n, 0);
	assert_int_equal(got, BULK);
	close(fd);

	x.server.mode = SERVE_RESET;
	fd = sx_client(&x);
	assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), 1);
	assert_int_equal(fx_receive(&x.fx, fd, &in, 1), -ECONNRESET);
	close(fd);

	x.server.mode = SERVE_FIN; /* FIN from there, bytes from here */
	got = x.server.got;
	fd = sx_client(&x);
	assert_int_equal(fx_receive(&x.fx, fd, &in, 1), 0);
	assert_int_equal(send(fd, block, 30000, MSG_NOSIGNAL), 30000);
	close(fd);
	assert_true(fx_until(&x.fx, no_client, &x));
	server_stop(&x.server);
	assert_int_equal(x.server.got - got, 30000);

	server_start(&x.server, fx_bind(SOCK_STREAM, "127.0.0.2", x.port), SERVE_SILENT);
	fd = sx_client(&x);
	fx_turn(&x.fx, 20);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(fd);
	assert_true(fx_until(&x.fx, no_client, &x));
	assert_int_equal(x.fx.lane.opens, 0);
	server_stop(&x.server);
	direct_stop(&x);
}

static void test_direct_reset_of_a_client_nobody_listens_to(void **state)
{
	static char block[1 << 16];
	struct linger at_once = { .l_onoff = 1 };
	struct sx x;
	int fd;

	direct_start(&x, "0.0.0.0", "127.0.0.2");
	server_start(&x.server, fx_bind(SOCK_STREAM, "127.0.0.2", x.port), SERVE_STUCK);
	fd = sx_client(&x);
	for (int i = 0; i < 50; i++) {
		while (send(fd, block, sizeof(block), MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
			;
		fx_turn(&x.fx, 2);
	}
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close(fd);
	assert_true(fx_until(&x.fx, no_client, &x));
	server_stop(&x.server); /* it was reset, too */
	direct_stop(&x);
}

static void test_direct_falls_back_to_the_tunnel(void **state)
{
	struct sx x;
	int fd;

	direct_start(&x, "0.0.0.0", "127.0.0.2"); /* nobody listens there */
	for (int i = 0; i < 2; i++) {
		fd = sx_client(&x);
		assert_echo(&x, fd);
		close(fd);
	}
	assert_int_equal(x.fx.lane.opens, 2);
	/* it is not tried again soon, but is when the guest's address is new */
	server_start(&x.server, fx_bind(SOCK_STREAM, "127.0.0.2", x.port), SERVE_ECHO);
	fd = sx_client(&x);
	assert_echo(&x, fd);
	close(fd);
	assert_int_equal(x.fx.lane.opens, 3);
	set_address(&x, "127.0.0.2");
	fd = sx_client(&x);
	assert_echo(&x, fd);
	close(fd);
	assert_int_equal(x.fx.lane.opens, 3);
	assert_int_equal(x.server.clients, 1);
	lane_direct_set_address(x.lane, NULL);
	fd = sx_client(&x);
	assert_echo(&x, fd);
	close(fd);
	assert_int_equal(x.fx.lane.opens, 4);
	server_stop(&x.server);
	direct_stop(&x);
}

static void test_direct_leaves_the_guests_loopback_to_the_tunnel(void **state)
{
	struct sx x;
	int fd;

	direct_start(&x, "127.0.0.1", "127.0.0.2");
	server_start(&x.server, fx_bind(SOCK_STREAM, "127.0.0.2", x.port), SERVE_ECHO);
	fd = sx_client(&x);
	assert_echo(&x, fd);
	close(fd);
	assert_int_equal(x.fx.lane.opens, 1);
	server_stop(&x.server);
	assert_int_equal(x.server.clients, 0);
	direct_stop(&x);
}

/* --- ssh -------------------------------------------------------------------------- */

/* "ssh" links the socket it was asked for to that of our server. */
static int control(void *arg, const char *command, const char *const *more, struct strv *argv,
		   struct error *err)
{
	struct sx *x = arg;
	scoped_free char *script = xasprintf(
		"echo %s $1 >>%s/log; p=${1%%%%:*}; test %d = 0 || { echo no master >&2; exit 255; }\n"
		"if test %s = forward; then ln -s %s/guest.sock \"$p\"; else rm -f \"$p\"; fi",
		command, x->dir, x->broken, command, x->dir);

	assert_string_equal(more[0], "-L");
	strv_add_all(argv, "/bin/sh", "-c", script, "ssh", more[1], NULL);
	return 0;
}

static void on_failed(void *arg)
{
	((struct sx *)arg)->failed++;
}

static void ssh_start(struct sx *x, enum server_mode mode, unsigned unused_ms)
{
	char dir[] = "/tmp/lima-lane-XXXXXX";
	struct lane_ssh_options o = { .control = control, .failed = on_failed, .arg = x,
				      .unused_ms = unused_ms };

	sx_start(x, CONFIG_LANE_SSH, "127.0.0.1");
	assert_non_null(mkdtemp(dir));
	x->dir = xstrdup(dir);
	scoped_free char *prefix = xasprintf("%s/lane", dir);
	scoped_free char *sock = xasprintf("%s/guest.sock", dir);

	o.loop = &x->fx.loop;
	o.socket_prefix = prefix;
	x->lane = lane_ssh_new(&o);
	lane_ssh_set_master(x->lane, true);
	forward_set_lane(x->fx.forward, CONFIG_LANE_SSH, x->lane);
	server_start(&x->server, fx_bind_unix(sock), mode);
}

static unsigned ssh_calls(struct sx *x, const char *command)
{
	scoped_free char *path = xasprintf("%s/log", x->dir);
	FILE *f = fopen(path, "re");
	char line[512];
	unsigned n = 0;

	while (f && fgets(line, sizeof(line), f))
		n += strncmp(line, command, strlen(command)) == 0;
	if (f)
		fclose(f);
	return n;
}

static void ssh_stop(struct sx *x)
{
	struct error err = { 0 };

	forward_set_lane(x->fx.forward, CONFIG_LANE_SSH, NULL);
	lane_ssh_close(x->lane, on_closed, x);
	assert_true(fx_until(&x->fx, is_closed, x));
	fx_stop(&x->fx);
	server_stop(&x->server);
	assert_int_equal(x->fx.lane.opens, 0);
	assert_int_equal(path_remove_tree(x->dir, &err), 0);
	free(x->dir);
}

static void test_ssh_one_forward_for_all_clients(void **state)
{
	enum { CROWD = 100 }; /* more than the listener's queue takes */
	int fds[CROWD];
	struct sx x;
	char in;

	ssh_start(&x, SERVE_ECHO, 0);
	for (int i = 0; i < CROWD; i++)
		fds[i] = sx_client(&x);
	for (int i = 0; i < CROWD; i++)
		assert_echo(&x, fds[i]);
	for (int i = 0; i < CROWD; i++) {
		shutdown(fds[i], SHUT_WR);
		assert_int_equal(fx_receive(&x.fx, fds[i], &in, 1), 0);
		close(fds[i]);
	}
	assert_int_equal(ssh_calls(&x, "forward"), 1);
	assert_string_equal(fx_row(&x.fx).lane, "ssh");
	ssh_stop(&x);
}

static void test_ssh_refusal_is_a_reset(void **state)
{
	struct sx x;
	char in;

	ssh_start(&x, SERVE_HANG_UP, 0);
	for (int i = 0; i < 20; i++) {
		int fd = sx_client(&x);

		if (i % 2)
			send(fd, "GET /", 5, MSG_NOSIGNAL);
		assert_int_equal(fx_receive(&x.fx, fd, &in, 1), -ECONNRESET);
		close(fd);
	}
	ssh_stop(&x);
}

/* The server reads in a thread of its own, so it may be later than the forward's end. */
static bool server_gets(struct sx *x, size_t len)
{
	enum { DEADLINE_MS = 20000 };

	for (int i = 0; i < DEADLINE_MS; i++) {
		if (__atomic_load_n(&x->server.got, __ATOMIC_RELAXED) == len)
			return true;
		usleep(1000);
	}
	return false;
}

/* What was sent has been read by the time it ends, so that is no refusal. */
static void test_ssh_upload_to_a_server_that_says_nothing(void **state)
{
	struct sx x;
	char in;
	int fd;

	ssh_start(&x, SERVE_SILENT, 0);
	for (int i = 0; i < 20; i++) {
		fd = sx_client(&x);
		assert_int_equal(send(fd, "hello", 5, MSG_NOSIGNAL), 5);
		shutdown(fd, SHUT_WR);
		assert_int_equal(fx_receive(&x.fx, fd, &in, 1), 0);
		close(fd);
	}
	assert_true(fx_until(&x.fx, no_client, &x));
	assert_int_equal(fx_row(&x.fx).resets, 0);
	assert_true(server_gets(&x, 20 * 5));
	ssh_stop(&x);
}

static void test_ssh_half_closes_are_kept(void **state)
{
	static char block[1 << 16];
	struct sx x;
	size_t got = 0;
	ssize_t n;
	int fd;

	ssh_start(&x, SERVE_FIN, 0); /* a FIN without a byte is no refusal */
	fd = sx_client(&x);
	assert_int_equal(fx_receive(&x.fx, fd, block, 1), 0);
	assert_int_equal(send(fd, block, HALF_CLOSED_BYTES, MSG_NOSIGNAL), HALF_CLOSED_BYTES);
	close(fd);
	assert_true(fx_until(&x.fx, no_client, &x));
	assert_true(server_gets(&x, HALF_CLOSED_BYTES));
	x.server.mode = SERVE_BULK;
	fd = sx_client(&x);
	while ((n = fx_receive(&x.fx, fd, block, sizeof(block))) > 0)
		got += (size_t)n;
	assert_int_equal(n, 0);
	assert_int_equal(got, BULK);
	close(fd);
	ssh_stop(&x);
}

static void test_ssh_forwards_are_made_anew_with_a_new_master(void **state)
{
	struct sx x;
	int fd, late;

	ssh_start(&x, SERVE_ECHO, 0);
	fd = sx_client(&x);
	assert_echo(&x, fd);
	close(fd);
	forward_set_lane(x.fx.forward, CONFIG_LANE_SSH, NULL);
	lane_ssh_set_master(x.lane, false);
	late = sx_client(&x);
	fx_turn(&x.fx, 50);
	lane_ssh_set_master(x.lane, true);
	forward_set_lane(x.fx.forward, CONFIG_LANE_SSH, x.lane);
	assert_echo(&x, late);
	close(late);
	assert_int_equal(ssh_calls(&x, "forward"), 2);
	assert_int_equal(x.failed, 0);
	ssh_stop(&x);
}

static void test_ssh_that_does_not_answer_resets_in_time(void **state)
{
	struct sx x;
	char in;
	int fd;

	ssh_start(&x, SERVE_ECHO, 0);
	x.broken = true;
	fd = sx_client(&x);
	assert_int_equal(fx_receive(&x.fx, fd, &in, 1), -ECONNRESET);
	close(fd);
	assert_in_range(x.failed, 1, 3); /* the owner looks after the master */
	x.broken = false;
	fd = sx_client(&x);
	assert_echo(&x, fd);
	close(fd);
	ssh_stop(&x);
}

static bool was_cancelled(void *arg)
{
	return ssh_calls(arg, "cancel") == 1;
}

static void test_ssh_unused_forward_is_cancelled(void **state)
{
	struct sx x;
	int fd;

	ssh_start(&x, SERVE_ECHO, 100);
	fd = sx_client(&x);
	assert_echo(&x, fd);
	fx_turn(&x.fx, 350);
	assert_int_equal(ssh_calls(&x, "cancel"), 0); /* in use */
	close(fd);
	assert_true(fx_until(&x.fx, was_cancelled, &x));
	fd = sx_client(&x);
	assert_echo(&x, fd);
	close(fd);
	assert_int_equal(ssh_calls(&x, "forward"), 2);
	ssh_stop(&x);
}

/* --- sockets of the guest ------------------------------------------------------------ */

static void find_socket(void *arg, const struct forward_row *row)
{
	if (*row->guest_addr == '/')
		*(struct forward_row *)arg = *row;
}

static struct forward_row socket_row(struct sx *x)
{
	struct forward_row row = { 0 };

	forward_list(x->fx.forward, find_socket, &row);
	return row;
}

static bool socket_has_no_client(void *arg)
{
	return socket_row(arg).connections_now == 0;
}

/* A stale file is replaced, another one left alone and told; the listener outlives the
 * master, and what goes through it is counted. */
static void test_guest_socket(void **state)
{
	struct config_port_forward rule = { .guest_socket = (char *)"/run/deep/app.sock" };
	struct error err = { 0 };
	struct forward_row row;
	struct stat st;
	struct sx x;
	unsigned id;
	char in;
	int fd;

	ssh_start(&x, SERVE_ECHO, 0);
	scoped_free char *host = xasprintf("%s/sub/app.sock", x.dir);
	scoped_free char *plain = xasprintf("%s/plain", x.dir);
	scoped_free char *want = xasprintf("%s/lane-%d-0.sock:/run/deep/app.sock", x.dir, getpid());
	assert_int_equal(path_write_file(plain, "mine", 4, 0600, &err), 0);
	rule.host_socket = plain;
	assert_int_equal(forward_add_rule(x.fx.forward, &rule, &id, &err), 0);
	assert_true(fx_wait_event(&x.fx, "failed unix /run/deep/app.sock"));
	assert_non_null(strstr(fx_newest(&x.fx), "exists and is not a socket"));
	assert_string_equal(socket_row(&x).state, "waiting");
	assert_int_equal(forward_remove_rule(x.fx.forward, id, &err), 0);
	assert_true(path_exists(plain));

	scoped_free char *sub = xasprintf("%s/sub", x.dir);
	assert_int_equal(mkdir(sub, 0700), 0);
	fd = fx_bind_unix(host);
	assert_true(fd >= 0);
	close(fd); /* stale */
	rule.host_socket = host;
	assert_int_equal(forward_add_rule(x.fx.forward, &rule, &id, &err), 0);
	assert_true(fx_wait_event(&x.fx, "forwarding unix /run/deep/app.sock"));
	assert_int_equal(lstat(host, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(ssh_calls(&x, "forward"), 0); /* only for a client */

	fd = fx_connect_unix(host);
	assert_echo(&x, fd);
	shutdown(fd, SHUT_WR);
	assert_int_equal(fx_receive(&x.fx, fd, &in, 1), 0);
	close(fd);
	assert_true(fx_until(&x.fx, socket_has_no_client, &x));
	scoped_free char *call = xasprintf("forward %s", want);
	assert_int_equal(ssh_calls(&x, call), 1);
	row = socket_row(&x);
	assert_string_equal(row.protocol, "unix");
	assert_string_equal(row.state, "forwarding");
	assert_string_equal(row.lane, "ssh");
	assert_int_equal(row.connections_total, 1);
	assert_int_equal(row.bytes_in, 5);
	assert_int_equal(row.bytes_out, 5);
	assert_int_not_equal(row.connect_last_us, 0);

	forward_set_lane(x.fx.forward, CONFIG_LANE_SSH, NULL); /* the guest reboots */
	lane_ssh_set_master(x.lane, false);
	fd = fx_connect_unix(host);
	assert_true(fd >= 0);
	lane_ssh_set_master(x.lane, true);
	forward_set_lane(x.fx.forward, CONFIG_LANE_SSH, x.lane);
	assert_echo(&x, fd);
	close(fd);
	assert_int_equal(fx_count_events(&x.fx, "forwarding unix"), 1);

	assert_int_equal(forward_remove_rule(x.fx.forward, id, &err), 0);
	assert_true(fx_wait_event(&x.fx, "stopping unix /run/deep/app.sock"));
	assert_false(path_exists(host));
	assert_int_equal(forward_add_rule(x.fx.forward, &rule, &id, &err), 0);
	assert_true(path_exists(host));
	ssh_stop(&x);
}

/* Nobody has the path in the guest: ssh hangs up. */
static void test_guest_socket_that_is_not_there_counts(void **state)
{
	struct config_port_forward rule = { .guest_socket = (char *)"/run/app.sock" };
	struct error err = { 0 };
	struct sx x;
	unsigned id;
	char in;
	int fd;

	ssh_start(&x, SERVE_HANG_UP, 0);
	scoped_free char *host = xasprintf("%s/app.sock", x.dir);
	rule.host_socket = host;
	assert_int_equal(forward_add_rule(x.fx.forward, &rule, &id, &err), 0);
	fd = fx_connect_unix(host);
	assert_true(fx_receive(&x.fx, fd, &in, 1) <= 0);
	close(fd);
	assert_true(fx_until(&x.fx, socket_has_no_client, &x));
	assert_int_equal(socket_row(&x).resets, 1);
	assert_int_equal(socket_row(&x).connections_total, 1);
	ssh_stop(&x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_direct_streams),
		cmocka_unit_test(test_direct_reset_of_a_client_nobody_listens_to),
		cmocka_unit_test(test_direct_falls_back_to_the_tunnel),
		cmocka_unit_test(test_direct_leaves_the_guests_loopback_to_the_tunnel),
		cmocka_unit_test(test_ssh_one_forward_for_all_clients),
		cmocka_unit_test(test_ssh_refusal_is_a_reset),
		cmocka_unit_test(test_ssh_upload_to_a_server_that_says_nothing),
		cmocka_unit_test(test_ssh_half_closes_are_kept),
		cmocka_unit_test(test_ssh_forwards_are_made_anew_with_a_new_master),
		cmocka_unit_test(test_ssh_that_does_not_answer_resets_in_time),
		cmocka_unit_test(test_ssh_unused_forward_is_cancelled),
		cmocka_unit_test(test_guest_socket),
		cmocka_unit_test(test_guest_socket_that_is_not_there_counts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
