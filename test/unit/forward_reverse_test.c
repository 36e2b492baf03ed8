/* What ssh connects to for a socket of the guest that leads to one of the host. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/reverse.h"
#include "lib/base/mem.h"
#include "test/mock/forward.h"

struct rx {
	struct fx fx;	/* its loop */
	struct reverse_set *set;
	struct reverse *r;
	int server;	/* listens */
	char dir[32], path[64], host[64];
	bool closed;
};

static void rx_start(struct rx *x)
{
	struct error err = ERROR_NONE;

	*x = (struct rx){ .dir = "/tmp/reverse-XXXXXX" };
	assert_non_null(mkdtemp(x->dir));
	snprintf(x->path, sizeof(x->path), "%s/r.sock", x->dir);
	snprintf(x->host, sizeof(x->host), "%s/host.sock", x->dir);
	fx_start(&x->fx, NULL, 0, NULL);
	x->server = fx_bind_unix(x->host);
	assert_true(x->server >= 0);
	x->set = reverse_set_new(&x->fx.loop);
	assert_int_equal(reverse_new(x->set, x->path, x->host, &x->r, &err), 0);
}

static void on_closed(void *arg)
{
	((struct rx *)arg)->closed = true;
}

static bool is_closed(void *arg)
{
	return ((struct rx *)arg)->closed;
}

static void rx_stop(struct rx *x)
{
	reverse_set_close(x->set, on_closed, x);
	assert_true(fx_until(&x->fx, is_closed, x));
	fx_stop(&x->fx);
	assert_int_equal(access(x->path, F_OK), -1);
	close(x->server);
	unlink(x->host);
	assert_int_equal(rmdir(x->dir), 0);
}

static struct forward_row row_of(struct rx *x)
{
	struct forward_row row = { 0 };

	reverse_fill_row(x->r, &row);
	return row;
}

static bool has_client(void *arg)
{
	struct pollfd p = { .fd = ((struct rx *)arg)->server, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

/* The server's end of the next client. */
static int server_accept(struct rx *x)
{
	assert_true(fx_until(&x->fx, has_client, x));
	return accept(x->server, NULL, NULL);
}

static bool nobody_is_connected(void *arg)
{
	return row_of(arg).connections_now == 0;
}

static void assert_receives(struct rx *x, int fd, const char *text)
{
	char got[64];

	for (size_t n = 0; n < strlen(text); n++)
		assert_int_equal(fx_receive(&x->fx, fd, got + n, 1), 1);
	assert_memory_equal(got, text, strlen(text));
}

static void test_reverse_relays_and_counts(void **state)
{
	struct forward_row row;
	struct rx x;
	int client, server;
	char byte;

	rx_start(&x);
	client = fx_connect_unix(x.path);
	server = server_accept(&x);
	assert_int_equal(send(client, "hello", 5, 0), 5);
	shutdown(client, SHUT_WR);
	assert_receives(&x, server, "hello");
	assert_int_equal(fx_receive(&x.fx, server, &byte, 1), 0);
	assert_int_equal(row_of(&x).connections_now, 1);
	assert_int_equal(send(server, "good-bye", 8, 0), 8);	/* the other direction goes on */
	close(server);
	assert_receives(&x, client, "good-bye");
	assert_int_equal(fx_receive(&x.fx, client, &byte, 1), 0);
	assert_true(fx_until(&x.fx, nobody_is_connected, &x));
	row = row_of(&x);
	assert_int_equal(row.connections_total, 1);
	assert_int_equal(row.bytes_out, 5);
	assert_int_equal(row.bytes_in, 8);
	assert_int_equal(row.refused + row.resets + row.timeouts, 0);
	assert_true(row.connect_last_us > 0);
	assert_string_equal(row.lane, "ssh");
	close(client);
	rx_stop(&x);
}

static void test_reverse_without_a_server_ends_the_client(void **state)
{
	struct forward_row row;
	struct rx x;
	int client;
	char byte;

	rx_start(&x);
	close(x.server);
	client = fx_connect_unix(x.path);
	assert_true(fx_receive(&x.fx, client, &byte, 1) <= 0);
	close(client);
	row = row_of(&x);
	assert_int_equal(row.refused, 1);
	assert_int_equal(row.connections_now, 0);
	unlink(x.host);
	x.server = fx_bind_unix(x.host);	/* it is there now */
	client = fx_connect_unix(x.path);
	close(server_accept(&x));
	close(client);
	rx_stop(&x);
}

static void test_reverse_removed_leaves_its_connections(void **state)
{
	struct rx x;
	int client, server;

	rx_start(&x);
	client = fx_connect_unix(x.path);
	server = server_accept(&x);
	reverse_free(x.r);
	assert_true(fx_connect_unix(x.path) < 0);
	assert_int_equal(send(server, "still", 5, 0), 5);
	assert_receives(&x, client, "still");
	close(client);
	close(server);
	rx_stop(&x);
}

/* Of a host agent that was killed. */
static void test_reverse_takes_the_place_of_a_stale_socket(void **state)
{
	struct error err = ERROR_NONE;
	struct reverse *second;
	char path[80];
	struct rx x;
	int client;

	rx_start(&x);
	snprintf(path, sizeof(path), "%s.2", x.path);
	close(fx_bind_unix(path));
	assert_int_equal(reverse_new(x.set, path, x.host, &second, &err), 0);
	client = fx_connect_unix(path);
	close(server_accept(&x));
	close(client);
	assert_int_equal(reverse_new(x.set, path, x.host, &second, &err), -EADDRINUSE);
	rx_stop(&x);
	assert_int_equal(access(path, F_OK), -1);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reverse_relays_and_counts),
		cmocka_unit_test(test_reverse_without_a_server_ends_the_client),
		cmocka_unit_test(test_reverse_removed_leaves_its_connections),
		cmocka_unit_test(test_reverse_takes_the_place_of_a_stale_socket),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
