/* What guest_link.h tells a connection of a machine that stands still. The connections
 * themselves are played here; the whole of it with a guest is agent_test's. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/lane.h"
#include "hostagent/guest_link.h"
#include "lib/base/mem.h"
#include "test/mock/loop_wait.h"

struct guest_client {
	struct guest_client_callbacks cb;
	bool paused, closing;
	void (*closed)(void *arg);
	void *closed_arg;
};

static struct fx {
	struct loop loop;
	struct guest_link *link;
	struct guest_client *client;	/* the newest */
	unsigned n_clients, n_lost;
	bool link_closed;
} fx;

/* --- what the rest of the host agent is here --------------------------------- */

int guest_client_new(struct loop *loop, struct rpc *rpc, int fd,
		     const struct guest_client_options *opts,
		     const struct guest_client_callbacks *cb, struct guest_client **ret,
		     struct error *err)
{
	close(fd);
	*ret = fx.client = xnew(struct guest_client);
	fx.client->cb = *cb;
	fx.n_clients++;
	return 0;
}

void guest_client_set_paused(struct guest_client *c, bool paused)
{
	assert_false(c->closing);
	c->paused = paused;
}

static void on_closed(void *arg)
{
	struct guest_client *c = arg;

	loop_unref(&fx.loop);
	c->closed(c->closed_arg);
	free(c);
}

void guest_client_close(struct guest_client *c, void (*closed)(void *arg), void *arg)
{
	c->closing = true;
	c->closed = closed;
	c->closed_arg = arg;
	loop_ref(&fx.loop);
	loop_post(&fx.loop, on_closed, c);
}

unsigned guest_client_features(const struct guest_client *c)
{
	return GUEST_FEATURE_SNAPSHOT;
}

void guest_client_sync_time(struct guest_client *c,
			    void (*done)(void *arg, int64_t drift_ms, bool adjusted,
					 const struct error *err),
			    void *arg)
{
}

struct lane *lane_grpc_new(struct guest_client *client)
{
	return NULL;
}

void lane_grpc_free(struct lane *lane)
{
}

void forward_set_lane(struct forward *f, enum config_lane which, struct lane *lane)
{
}

void forward_set_ports(struct forward *f, const struct guest_port *ports, size_t n)
{
}

void forward_change_ports(struct forward *f, const struct guest_port *added, size_t n_added,
			  const struct guest_port *removed, size_t n_removed)
{
}

static int connect_agent(struct driver *d, int *ret_fd, struct error *err)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	close(pair[1]);
	*ret_fd = pair[0];
	return 0;
}

static void on_change(void *arg)
{
}

static void on_lost(void *arg, const struct error *why)
{
	fx.n_lost++;
}

/* --- life ---------------------------------------------------------------------- */

static const struct driver_ops ops = { .agent_connect = connect_agent };

static void answer(void)
{
	Info info = INFO__INIT;

	fx.client->cb.ready(fx.client->cb.arg, &info);
}

static int set_up(void **state)
{
	static const uint8_t secret[GUEST_LINK_SECRET_SIZE];
	const struct guest_link_options o = { .loop = &fx.loop, .driver_ops = &ops,
					      .secret = secret, .ssh_socket = "",
					      .ready = on_change, .progress = on_change,
					      .lost = on_lost };
	struct error err = ERROR_NONE;

	fx = (struct fx){ 0 };
	assert_int_equal(loop_init(&fx.loop, &err), 0);
	fx.link = guest_link_new(&o);
	guest_link_start(fx.link);
	assert_int_equal(fx.n_clients, 1);
	answer();
	return 0;
}

static void set_true(void *arg)
{
	*(bool *)arg = true;
}

static int tear_down(void **state)
{
	guest_link_close(fx.link, set_true, &fx.link_closed);
	while (!fx.link_closed)
		uv_run(&fx.loop.uv, UV_RUN_ONCE);
	assert_int_equal(loop_done(&fx.loop), 0);
	return 0;
}

/* --- tests ----------------------------------------------------------------------- */

static void test_guest_link_is_told_of_a_pause(void **state)
{
	assert_false(fx.client->paused);
	guest_link_driver_event(fx.link, DRIVER_PAUSED);
	assert_true(fx.client->paused);
	guest_link_driver_event(fx.link, DRIVER_RESUMED);
	assert_false(fx.client->paused);
	assert_int_equal(fx.n_lost, 0);
}

static void test_guest_link_made_during_a_pause(void **state)
{
	guest_link_driver_event(fx.link, DRIVER_PAUSED);
	guest_link_driver_event(fx.link, DRIVER_AGENT_PORT_CLOSED);
	assert_int_equal(fx.n_lost, 1);
	guest_link_driver_event(fx.link, DRIVER_PAUSED);	/* the old one is closing */
	while (fx.n_clients < 2)
		uv_run(&fx.loop.uv, UV_RUN_ONCE);
	assert_true(fx.client->paused);
	guest_link_driver_event(fx.link, DRIVER_RESUMED);
	assert_false(fx.client->paused);
}

/* The agent took the handshake, and its port closed before it said who it is. */
static void test_guest_link_port_closes_before_the_greeting(void **state)
{
	for (unsigned i = 2; i < 5; i++) {
		guest_link_driver_event(fx.link, DRIVER_AGENT_PORT_CLOSED);
		guest_link_driver_event(fx.link, DRIVER_AGENT_PORT_CLOSED);	/* is closing */
		loop_wait(&fx.loop, fx.n_clients == i);
	}
	assert_int_equal(fx.n_lost, 1);		/* only the first had been ready */
	answer();
	assert_true(guest_link_info(fx.link)->up);
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_guest_link_is_told_of_a_pause),
		T(test_guest_link_made_during_a_pause),
		T(test_guest_link_port_closes_before_the_greeting),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
