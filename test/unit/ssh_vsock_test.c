/* The ssh port led into the guest: real clients, a mock device, the real lane. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/forward/lane_vsock.h"
#include "hostagent/ssh_vsock.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "test/mock/loop_wait.h"
#include "test/mock/vsock.h"

enum { WAIT_MS = 600, SSHD = 22 };

struct fx {
	struct loop loop;
	uv_timer_t tick; /* so that a waiting loop looks at its deadline */
	struct vsock vsock;
	struct lane *lane;
	struct ssh_vsock *s;
	uint16_t port;
	unsigned reached, closed;
};

static void on_tick(uv_timer_t *t)
{
}

static void on_reached(void *arg)
{
	((struct fx *)arg)->reached++;
}

static void on_lane_changed(void *arg, struct lane *lane, bool usable)
{
	struct fx *fx = arg;

	if (usable && fx->s)
		ssh_vsock_try_again(fx->s);
}

#define WAIT_FOR(fx, cond) loop_wait(&(fx)->loop, cond)

static void turn(struct fx *fx, unsigned ms)
{
	uint64_t until_ms = clock_mono_ms() + ms;

	while (clock_mono_ms() < until_ms)
		uv_run(&fx->loop.uv, UV_RUN_ONCE);
}

static int bound_socket(uint16_t *port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				  .sin_port = htons(*port) };
	socklen_t len = sizeof(sa);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	getsockname(fd, (struct sockaddr *)&sa, &len);
	*port = ntohs(sa.sin_port);
	return fd;
}

/* @sshd: how vsock port 22 behaves. The agent is not there yet. */
static void start(struct fx *fx, bool device_up, enum mock_vsock_mode sshd)
{
	struct error err = ERROR_NONE;

	*fx = (struct fx){ .port = 0 };
	assert_int_equal(loop_init(&fx->loop, &err), 0);
	uv_timer_init(&fx->loop.uv, &fx->tick);
	uv_timer_start(&fx->tick, on_tick, 5, 5);
	mock_vsock_init(&fx->vsock, &fx->loop);
	fx->vsock.up = device_up;
	fx->vsock.plain_port = SSHD;
	fx->vsock.plain_mode = sshd;
	const struct lane_vsock_options lo = { .loop = &fx->loop, .vsock = &fx->vsock,
					       .changed = on_lane_changed, .arg = fx };
	fx->lane = lane_vsock_new(&lo);
	const struct ssh_vsock_options so = { .loop = &fx->loop, .vsock = &fx->vsock,
					      .lane = fx->lane, .wait_ms = WAIT_MS,
					      .reached = on_reached, .arg = fx };
	fx->s = ssh_vsock_new(&so);
	ssh_vsock_set_device(fx->s, device_up);
	assert_int_equal(ssh_vsock_listen(fx->s, bound_socket(&fx->port), &err), 0);
}

static void on_closed(void *arg)
{
	((struct fx *)arg)->closed++;
}

static void stop(struct fx *fx)
{
	ssh_vsock_close(steal_ptr(&fx->s), on_closed, fx);
	WAIT_FOR(fx, fx->closed == 1);
	lane_vsock_close(fx->lane, on_closed, fx);
	WAIT_FOR(fx, fx->closed == 2);
	uv_close((uv_handle_t *)&fx->tick, NULL);
	loop_run(&fx->loop);
	assert_int_equal(fx->vsock.now, 0);
	assert_int_equal(loop_done(&fx->loop), 0);
}

/* --- a client ---------------------------------------------------------------- */

static int client(const struct fx *fx)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				  .sin_port = htons(fx->port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		close(fd);
		return -errno;
	}
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

static ssize_t receive(struct fx *fx, int fd, char *buf, size_t size)
{
	ssize_t n = -EAGAIN;

	WAIT_FOR(fx, (n = recv(fd, buf, size, 0)) >= 0 || errno != EAGAIN);
	return n < 0 ? -errno : n;
}

static void assert_echo(struct fx *fx, int fd)
{
	char got[8];

	assert_int_equal(send(fd, "SSH-", 4, MSG_NOSIGNAL), 4);
	assert_int_equal(receive(fx, fd, got, sizeof(got)), 4);
	assert_memory_equal(got, "SSH-", 4);
}

static void assert_reset(struct fx *fx, int fd)
{
	char c;

	assert_int_equal(receive(fx, fd, &c, 1), -ECONNRESET);
	close(fd);
}

/* --- tests ------------------------------------------------------------------- */

static void test_ssh_vsock_sshd_listens_there(void **state)
{
	struct fx fx;
	char c;
	int a, b;

	start(&fx, true, MOCK_VSOCK_ECHO);
	assert_false(ssh_vsock_was_reached(fx.s));
	a = client(&fx);
	assert_echo(&fx, a);
	assert_true(ssh_vsock_was_reached(fx.s));
	b = client(&fx);
	assert_echo(&fx, b);
	assert_int_equal(fx.reached, 1); /* told once */
	assert_int_equal(ssh_vsock_connections(fx.s), 2);
	shutdown(a, SHUT_WR);
	assert_int_equal(receive(&fx, a, &c, 1), 0); /* ended in order */
	WAIT_FOR(&fx, ssh_vsock_connections(fx.s) == 1);
	assert_echo(&fx, b);
	close(a);
	/* the guest boots anew: this one is cut off, the next is news again */
	fx.vsock.up = false;
	mock_vsock_break(&fx.vsock, false, -ECANCELED);
	assert_reset(&fx, b);
	ssh_vsock_set_device(fx.s, false);
	assert_false(ssh_vsock_was_reached(fx.s));
	fx.vsock.up = true;
	ssh_vsock_set_device(fx.s, true);
	a = client(&fx);
	assert_echo(&fx, a);
	assert_int_equal(fx.reached, 2);
	close(a);
	stop(&fx);
}

static void test_ssh_vsock_by_the_agents_relay(void **state)
{
	struct fx fx;
	int fd;

	start(&fx, true, MOCK_VSOCK_REFUSE);
	lane_vsock_set_agent(fx.lane, mock_vsock_ports);
	WAIT_FOR(&fx, fx.vsock.open > 0);
	fd = client(&fx);
	assert_echo(&fx, fd);
	assert_int_equal(fx.reached, 1);
	assert_int_equal(ntohs(fx.vsock.last.port), SSHD);
	assert_int_equal(fx.vsock.last.ip[12], 127);
	close(fd);
	WAIT_FOR(&fx, ssh_vsock_connections(fx.s) == 0);
	/* sshd is not up yet: the agent's word is final, whoever wants it asks again */
	fx.vsock.reply_error = ECONNREFUSED;
	fd = client(&fx);
	assert_reset(&fx, fd);
	stop(&fx);
}

/* Neither way is there: the client waits, for the agent, and not for ever. */
static void test_ssh_vsock_waits_for_the_agent(void **state)
{
	struct fx fx;
	uint64_t began;
	int fd;

	start(&fx, true, MOCK_VSOCK_REFUSE);
	fd = client(&fx);
	WAIT_FOR(&fx, fx.vsock.connects > 0 && fx.vsock.now == 0);
	lane_vsock_set_agent(fx.lane, mock_vsock_ports);
	assert_echo(&fx, fd);
	close(fd);
	WAIT_FOR(&fx, ssh_vsock_connections(fx.s) == 0);
	lane_vsock_set_agent(fx.lane, (struct relay_ports){ 0 });
	began = clock_mono_ms();
	fd = client(&fx);
	assert_reset(&fx, fd);
	assert_true(clock_mono_ms() - began >= WAIT_MS - 50); /* the loop's clock is coarse */
	stop(&fx);
}

static void test_ssh_vsock_waits_for_the_device(void **state)
{
	struct fx fx;
	int fd;

	start(&fx, false, MOCK_VSOCK_ECHO);
	fd = client(&fx);
	WAIT_FOR(&fx, ssh_vsock_connections(fx.s) == 1);
	assert_int_equal(fx.vsock.connects, 0);
	fx.vsock.up = true;
	ssh_vsock_set_device(fx.s, true);
	assert_echo(&fx, fd);
	close(fd);
	/* it goes down just while a client is on its way: that one waits, too */
	fx.vsock.plain_mode = MOCK_VSOCK_SILENT;
	fd = client(&fx);
	WAIT_FOR(&fx, fx.vsock.now == 1 && ssh_vsock_connections(fx.s) == 1);
	fx.vsock.up = false;
	mock_vsock_break(&fx.vsock, false, -ECANCELED);
	WAIT_FOR(&fx, fx.vsock.now == 0);
	ssh_vsock_set_device(fx.s, false);
	fx.vsock.up = true;
	fx.vsock.plain_mode = MOCK_VSOCK_ECHO;
	ssh_vsock_set_device(fx.s, true);
	assert_echo(&fx, fd);
	close(fd);
	stop(&fx);
}

/* QEMU's own forward takes over: the port is free at once, who waits is reset, who
 * talks stays; and back again. */
static void test_ssh_vsock_unlisten(void **state)
{
	struct error err = ERROR_NONE;
	struct fx fx;
	int talks, waits;

	start(&fx, true, MOCK_VSOCK_ECHO);
	talks = client(&fx);
	assert_echo(&fx, talks);
	fx.vsock.plain_mode = MOCK_VSOCK_REFUSE;
	waits = client(&fx);
	WAIT_FOR(&fx, ssh_vsock_connections(fx.s) == 2 && fx.vsock.now == 1);
	ssh_vsock_unlisten(fx.s);
	ssh_vsock_unlisten(fx.s);
	assert_reset(&fx, waits);
	assert_int_equal(client(&fx), -ECONNREFUSED);
	assert_echo(&fx, talks);
	fx.vsock.plain_mode = MOCK_VSOCK_ECHO;
	assert_int_equal(ssh_vsock_listen(fx.s, bound_socket(&fx.port), &err), 0);
	waits = client(&fx);
	assert_echo(&fx, waits);
	close(waits);
	close(talks);
	stop(&fx);
}

static void test_ssh_vsock_close_resets_all(void **state)
{
	struct fx fx;
	int talks, waits, opening;

	start(&fx, true, MOCK_VSOCK_ECHO);
	talks = client(&fx);
	assert_echo(&fx, talks);
	fx.vsock.plain_mode = MOCK_VSOCK_REFUSE;
	waits = client(&fx);
	WAIT_FOR(&fx, ssh_vsock_connections(fx.s) == 2 && fx.vsock.now == 1);
	fx.vsock.plain_mode = MOCK_VSOCK_SILENT;
	opening = client(&fx);
	WAIT_FOR(&fx, fx.vsock.now == 2);
	turn(&fx, 10);
	stop(&fx);
	assert_int_equal(recv(talks, &(char){ 0 }, 1, 0), -1);
	assert_int_equal(errno, ECONNRESET);
	assert_int_equal(recv(waits, &(char){ 0 }, 1, 0), -1);
	assert_int_equal(errno, ECONNRESET);
	assert_int_equal(recv(opening, &(char){ 0 }, 1, 0), -1);
	assert_int_equal(errno, ECONNRESET);
	close(talks);
	close(waits);
	close(opening);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ssh_vsock_sshd_listens_there),
		cmocka_unit_test(test_ssh_vsock_by_the_agents_relay),
		cmocka_unit_test(test_ssh_vsock_waits_for_the_agent),
		cmocka_unit_test(test_ssh_vsock_waits_for_the_device),
		cmocka_unit_test(test_ssh_vsock_unlisten),
		cmocka_unit_test(test_ssh_vsock_close_resets_all),
	};

	log_setup(LOG_ERROR, LOG_FORMAT_PLAIN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
