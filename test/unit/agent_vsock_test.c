/* The vsock's place in the host agent: plugged in anew, who uses it, and how the ssh
 * port moves between it and the VM's own network. The device, the driver and the
 * agent's link are played here. */
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/agent_impl.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "test/mock/driver_answer.h"
#include "test/mock/loop_wait.h"
#include "test/mock/vsock.h"

enum { SSHD = 22 };

static char dir[] = "/tmp/lima-agent-vsock-XXXXXX";

static struct fx {
	struct agent a;
	struct config config;
	struct agent_options o;
	struct vsock vsock;
	struct strv log, notices;	/* what the driver was asked for; events */
	uv_timer_t tick;
	bool up, down;
} fx;

static bool has_device = true, device_fails;
static int unplug_code, forward_code;	/* the driver's answers, also while it starts */
static struct driver_answer *held;		/* its answer when it is to come later */
static bool hold;

/* --- what the rest of the agent is here ---------------------------------- */

static struct guest_link_info link_info;

const struct guest_link_info *guest_link_info(const struct guest_link *l)
{
	return &link_info;
}

static void driver_is_asked(const char *what, driver_done_fn done, void *arg, int code)
{
	struct driver_answer *answer = driver_answer_new(done, arg, code);

	strv_add(&fx.log, what);
	if (hold)
		held = answer;
	else
		driver_answer_give(answer, &fx.a.loop);
}

static void driver_plug(struct driver *d, driver_done_fn done, void *arg)
{
	driver_is_asked("plug", done, arg, 0);
}

static void driver_unplug(struct driver *d, driver_done_fn done, void *arg)
{
	driver_is_asked("unplug", done, arg, unplug_code);
}

static void driver_ssh_forward(struct driver *d, bool on, driver_done_fn done, void *arg)
{
	driver_is_asked(on ? "forward" : "unforward", done, arg, on ? forward_code : 0);
}

static const struct driver_ops driver = {
	.features = DRIVER_VSOCK,
	.vsock_plug = driver_plug,
	.vsock_unplug = driver_unplug,
	.ssh_forward = driver_ssh_forward,
};

/* --- the world ----------------------------------------------------------- */

static void on_tick(uv_timer_t *t)
{
}

#define WAIT_FOR(cond) loop_wait(&fx.a.loop, cond)

static void turn(unsigned ms)
{
	uint64_t until_ms = clock_mono_ms() + ms;

	while (clock_mono_ms() < until_ms)
		uv_run(&fx.a.loop.uv, UV_RUN_ONCE);
}

static bool asked(const char *want)
{
	scoped_free char *log = strv_join(&fx.log, " ");

	return streq(log ? log : "", want);
}

static void assert_asked(const char *want)
{
	scoped_free char *log = strv_join(&fx.log, " ");

	assert_string_equal(log ? log : "", want);
}

static void on_event(void *arg, const char *line)
{
	strv_add(&fx.notices, line);
}

static void on_step(void *ctx, const char *name, enum step_state state, uint64_t ms,
		    const char *detail, const char *error)
{
}

static void on_up(void *ctx)
{
	fx.up = true;
}

static void on_down(void *ctx, const struct error *why)
{
	fx.down = true;
}

static const struct step steps[] = {
	{ .name = "vsock", .quiet = true, .wanted = agent_vsock_wanted, .run = agent_vsock_run,
	  .undo = agent_vsock_undo },
};

/* Waits are short; @waits of 0 take hours. */
static void start(bool over_vsock, bool adopted, const struct agent_waits *waits)
{
	const struct agent_waits hours = { .ssh_boot_ms = 3600000, .ssh_agent_ms = 3600000,
					   .ssh_again_ms = 20, .replug_ms = 3600000 };
	struct steps_options so = { .table = steps, .n = 1, .ctx = &fx.a, .event = on_step,
				    .up = on_up, .down = on_down };
	struct error err = ERROR_NONE;

	fx = (struct fx){ .o = { .name = "vm" } };
	link_info = (struct guest_link_info){ .up = false };
	fx.config.ssh.over_vsock = over_vsock;
	fx.a.o = &fx.o;
	fx.a.dir = dir;
	fx.a.config = &fx.config;
	fx.a.driver_ops = &driver;
	fx.a.driver = (struct driver *)&fx;
	fx.a.driver_info.vsock = has_device;
	fx.a.adopted = adopted;
	fx.a.waits = hours;
	if (waits && waits->ssh_boot_ms)
		fx.a.waits.ssh_boot_ms = waits->ssh_boot_ms;
	if (waits && waits->ssh_agent_ms)
		fx.a.waits.ssh_agent_ms = waits->ssh_agent_ms;
	if (waits && waits->replug_ms)
		fx.a.waits.replug_ms = waits->replug_ms;
	fx.a.events = events_new(-1);
	events_subscribe(fx.a.events, on_event, NULL);
	assert_int_equal(ssh_hold_port(0, false, &fx.a.ssh_port, &fx.a.port_fd, &err), 0);
	assert_int_equal(loop_init(&fx.a.loop, &err), 0);
	uv_timer_init(&fx.a.loop.uv, &fx.tick);
	uv_timer_start(&fx.tick, on_tick, 5, 5);
	mock_vsock_next = device_fails ? NULL : &fx.vsock;
	fx.a.steps = steps_new(&fx.a.loop, &so);
	steps_start(fx.a.steps);
	WAIT_FOR(fx.up);
	fx.vsock.plain_port = SSHD;
	fx.vsock.plain_mode = MOCK_VSOCK_REFUSE;
	if (!adopted)
		agent_vsock_started(&fx.a);
}

static void stop(void)
{
	steps_stop(fx.a.steps, NULL);
	WAIT_FOR(fx.down);
	assert_null(fx.a.vsock);
	uv_close((uv_handle_t *)&fx.tick, NULL);
	loop_run(&fx.a.loop);
	assert_int_equal(loop_done(&fx.a.loop), 0);
	steps_free(fx.a.steps);
	events_free(fx.a.events);
	scoped_close_fd(&fx.a.port_fd);
	strv_done(&fx.log);
	strv_done(&fx.notices);
	assert_int_equal(rmdir(dir), 0);	/* vsock.sock is gone */
	assert_int_equal(mkdir(dir, 0700), 0);
}

static const struct relay_ports none;

static void agent_comes(struct relay_ports relay)
{
	fx.a.link = (struct guest_link *)&fx;
	link_info.up = true;
	link_info.relay = relay;
	agent_vsock_link_is_ready(&fx.a);
}

static bool info_says(const char *key)
{
	json_t *info = agent_vsock_info(&fx.a);
	bool is = json_is_true(json_object_get(info, key));

	json_decref(info);
	return is;
}

static bool port_is_open(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(fx.a.ssh_port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	scoped_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	return connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0;
}

static bool was_told(const char *text)
{
	const char *line;

	strv_foreach (line, &fx.notices)
		if (strstr(line, text))
			return true;
	return false;
}

/* --- the lane ------------------------------------------------------------ */

static void test_agent_vsock_lane_needs_device_and_agent(void **state)
{
	start(false, false, NULL);
	assert_null(agent_vsock_missing(&fx.a));
	assert_false(info_says("up"));
	mock_vsock_set_up(&fx.vsock, true);
	assert_true(info_says("up"));
	turn(30);
	assert_false(info_says("lane"));	/* nobody to relay yet */
	agent_comes(mock_vsock_ports);
	WAIT_FOR(info_says("lane"));
	/* the guest resets: the agent that was there is not believed any more */
	agent_vsock_driver_event(&fx.a, DRIVER_RESET);
	assert_int_equal(fx.vsock.guest_resets, 1);
	assert_false(info_says("lane"));
	mock_vsock_set_up(&fx.vsock, false);
	mock_vsock_set_up(&fx.vsock, true);
	agent_comes(mock_vsock_ports);
	WAIT_FOR(info_says("lane"));
	assert_true(was_told("\"vsock\":{\"type\":\"lane-up\",\"vsockPort\":"));
	assert_false(was_told("lane-down"));	/* it was for a moment: not worth an event */
	link_info.relay.first = 0;	/* an agent without a relay came */
	agent_vsock_link_changed(&fx.a);
	assert_false(info_says("lane"));
	assert_asked("");
	stop();
}

static void test_agent_vsock_wanted(void **state)
{
	static const enum config_lane lanes[] = { CONFIG_LANE_AUTO, CONFIG_LANE_VSOCK,
						  CONFIG_LANE_DIRECT, CONFIG_LANE_GRPC,
						  CONFIG_LANE_SSH };
	struct driver_ops without = { .features = 0 };
	struct config_port_forward rule = { .lane = CONFIG_LANE_VSOCK };
	struct config c = { .port_forwards = &rule };
	struct agent a = { .config = &c, .driver_ops = &driver };

	for (size_t i = 0; i < ARRAY_SIZE(lanes); i++) {
		c.port_forwarding.lane = lanes[i];
		assert_int_equal(agent_vsock_wanted(&a), i < 3);
	}
	c.n_port_forwards = 1;		/* one rule is enough */
	assert_true(agent_vsock_wanted(&a));
	c.n_port_forwards = 0;
	c.ssh.over_vsock = true;
	assert_true(agent_vsock_wanted(&a));
	setenv("LIMA_SSH_OVER_VSOCK", "false", 1);	/* stands over the key */
	assert_false(agent_vsock_wanted(&a));
	unsetenv("LIMA_SSH_OVER_VSOCK");
	c.plain = true;
	assert_false(agent_vsock_wanted(&a));
	c.plain = false;
	a.driver_ops = &without;
	assert_false(agent_vsock_wanted(&a));
}

/* --- plugging ------------------------------------------------------------ */

static void test_agent_vsock_adopted_is_plugged_anew(void **state)
{
	start(false, true, NULL);
	WAIT_FOR(asked("unplug plug"));
	mock_vsock_set_up(&fx.vsock, true);
	turn(30);
	assert_asked("unplug plug");
	stop();
}

static void test_agent_vsock_guest_that_does_not_let_go(void **state)
{
	const struct agent_waits waits = { .replug_ms = 30 };

	unplug_code = -ETIMEDOUT;
	start(false, true, &waits);
	WAIT_FOR(asked("unplug unplug unplug"));
	unplug_code = 0;
	WAIT_FOR(asked("unplug unplug unplug plug") ||
		 asked("unplug unplug unplug unplug plug"));	/* one was on its way */
	stop();
}

static void test_agent_vsock_vm_without_it(void **state)
{
	const struct agent_waits waits = { .replug_ms = 10 };

	unplug_code = -ENOTSUP;
	start(false, true, &waits);
	WAIT_FOR(asked("unplug"));
	turn(100);
	assert_asked("unplug");		/* and never again */
	assert_non_null(agent_vsock_missing(&fx.a));
	stop();
	unplug_code = 0;
}

/* It comes back by itself after a reboot; only what stays down is plugged anew. */
static void test_agent_vsock_that_stays_down(void **state)
{
	const struct agent_waits waits = { .replug_ms = 200 };

	start(false, false, &waits);
	mock_vsock_set_up(&fx.vsock, true);
	mock_vsock_set_up(&fx.vsock, false);
	mock_vsock_set_up(&fx.vsock, true);
	turn(400);
	assert_asked("");
	mock_vsock_set_up(&fx.vsock, false);
	WAIT_FOR(asked("unplug plug"));
	stop();
}

/* --- out and in for a snapshot ------------------------------------------- */

static struct error told;
static unsigned n_told;

static void on_told(void *arg, const struct error *err)
{
	told = *err;
	n_told++;
}

static void test_agent_vsock_held_out(void **state)
{
	const struct agent_waits waits = { .replug_ms = 10, .ssh_boot_ms = 10, .ssh_agent_ms = 10 };

	start(true, false, &waits);
	mock_vsock_set_up(&fx.vsock, true);
	agent_comes(mock_vsock_ports);
	WAIT_FOR(info_says("lane"));
	n_told = 0;
	agent_vsock_take_out(&fx.a, on_told, NULL);
	WAIT_FOR(n_told == 1);
	assert_int_equal(told.code, 0);
	agent_vsock_take_out(&fx.a, on_told, NULL);	/* one at a time */
	WAIT_FOR(n_told == 2);
	assert_int_equal(told.code, -EBUSY);
	/* nobody puts it in meanwhile, and ssh stays where it is */
	mock_vsock_set_up(&fx.vsock, false);
	turn(100);
	assert_asked("unplug");
	assert_true(info_says("ssh"));
	agent_vsock_put_in(&fx.a, on_told, NULL);
	WAIT_FOR(n_told == 3);
	assert_int_equal(told.code, 0);
	assert_asked("unplug plug");
	mock_vsock_set_up(&fx.vsock, true);
	WAIT_FOR(info_says("lane"));
	stop();
}

static void test_agent_vsock_cannot_be_held_out(void **state)
{
	start(false, false, NULL);
	mock_vsock_set_up(&fx.vsock, true);
	n_told = 0;
	unplug_code = -ETIMEDOUT;
	agent_vsock_take_out(&fx.a, on_told, NULL);
	WAIT_FOR(n_told == 1);
	assert_int_equal(told.code, -ETIMEDOUT);
	assert_true(info_says("up"));
	unplug_code = 0;
	agent_vsock_take_out(&fx.a, on_told, NULL);	/* a second try is as good as a first */
	WAIT_FOR(n_told == 2);
	assert_int_equal(told.code, 0);
	/* the machine ends while it is out: nothing is asked of the driver any more */
	steps_stop(fx.a.steps, NULL);
	turn(30);
	assert_false(fx.down);
	agent_vsock_put_in(&fx.a, on_told, NULL);
	WAIT_FOR(n_told == 3);
	assert_int_equal(told.code, -ECANCELED);
	assert_asked("unplug unplug");
	stop();
}

/* --- ssh ----------------------------------------------------------------- */

static void test_agent_vsock_ssh_port_is_ours(void **state)
{
	start(true, false, NULL);
	assert_true(info_says("ssh"));
	assert_true(port_is_open());	/* from the start: who comes early waits */
	mock_vsock_set_up(&fx.vsock, true);
	agent_comes(mock_vsock_ports);
	turn(30);
	assert_true(info_says("ssh"));
	assert_asked("");
	stop();
}

static void test_agent_vsock_ssh_goes_to_the_network_and_back(void **state)
{
	const struct agent_waits waits = { .ssh_boot_ms = 100 };

	start(true, false, &waits);
	assert_true(port_is_open());
	WAIT_FOR(asked("unforward forward"));
	WAIT_FOR(was_told("ssh.overVsock: no way to the guest's sshd by its vsock"));
	assert_true(was_told("\"type\":\"skipped\""));
	strv_done(&fx.notices);
	assert_false(info_says("ssh"));
	assert_false(port_is_open());	/* QEMU's by now, were it one */
	/* the guest's driver comes late, with an agent that relays */
	mock_vsock_set_up(&fx.vsock, true);
	agent_comes(mock_vsock_ports);
	WAIT_FOR(asked("unforward forward unforward"));
	WAIT_FOR(info_says("ssh"));
	assert_true(port_is_open());
	assert_true(was_told("\"vsock\":{\"type\":\"started\",\"hostAddr\":\"127.0.0.1:"));
	stop();
}

/* The agent is there and has no relay, and vsock port 22 nobody: no need to wait as
 * long as for a boot. */
static void test_agent_vsock_ssh_patience_shortens_with_the_agent(void **state)
{
	const struct agent_waits waits = { .ssh_agent_ms = 50 };

	start(true, false, &waits);
	turn(100);
	assert_asked("");
	agent_comes(none);
	WAIT_FOR(asked("unforward forward"));
	stop();
}

/* Somebody else has the port just then: tried until it can be had. */
static void test_agent_vsock_ssh_port_is_taken(void **state)
{
	const struct agent_waits waits = { .ssh_boot_ms = 20 };

	start(true, false, &waits);
	forward_code = -EADDRINUSE;
	WAIT_FOR(fx.log.len >= 4);
	forward_code = 0;
	WAIT_FOR(was_told("ssh goes over its network"));
	stop();
}

/* QEMU was built without: it was told to serve the port itself. */
static void test_agent_vsock_ssh_without_a_device(void **state)
{
	const struct agent_waits waits = { .ssh_boot_ms = 10, .ssh_agent_ms = 10 };

	has_device = false;
	start(true, false, &waits);
	has_device = true;
	assert_false(info_says("ssh"));
	agent_comes(none);
	turn(50);
	assert_asked("");
	assert_true(was_told("\"type\":\"skipped\""));
	stop();
}

/* What was asked for is the last that is left of it then. */
static void test_agent_vsock_ends_with_the_last_answer(void **state)
{
	const struct agent_waits waits = { .ssh_boot_ms = 10 };

	start(true, false, &waits);
	WAIT_FOR(was_told("ssh goes over its network"));
	hold = true;
	mock_vsock_set_up(&fx.vsock, true);
	agent_comes(mock_vsock_ports);
	WAIT_FOR(held);
	hold = false;
	steps_stop(fx.a.steps, NULL);
	turn(50);
	assert_false(fx.down);
	driver_answer_give(steal_ptr(&held), &fx.a.loop);
	stop();
}

static void test_agent_vsock_that_cannot_be_made(void **state)
{
	scoped_free char *path = xasprintf("%s/vsock.sock", dir);

	device_fails = true;
	start(true, false, NULL);
	device_fails = false;
	assert_null(fx.a.vsock);
	assert_false(path_exists(path));
	stop();
}

static int make_dir(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_agent_vsock_lane_needs_device_and_agent),
		cmocka_unit_test(test_agent_vsock_wanted),
		cmocka_unit_test(test_agent_vsock_adopted_is_plugged_anew),
		cmocka_unit_test(test_agent_vsock_guest_that_does_not_let_go),
		cmocka_unit_test(test_agent_vsock_vm_without_it),
		cmocka_unit_test(test_agent_vsock_that_stays_down),
		cmocka_unit_test(test_agent_vsock_held_out),
		cmocka_unit_test(test_agent_vsock_cannot_be_held_out),
		cmocka_unit_test(test_agent_vsock_ssh_port_is_ours),
		cmocka_unit_test(test_agent_vsock_ssh_goes_to_the_network_and_back),
		cmocka_unit_test(test_agent_vsock_ssh_patience_shortens_with_the_agent),
		cmocka_unit_test(test_agent_vsock_ssh_port_is_taken),
		cmocka_unit_test(test_agent_vsock_ssh_without_a_device),
		cmocka_unit_test(test_agent_vsock_ends_with_the_last_answer),
		cmocka_unit_test(test_agent_vsock_that_cannot_be_made),
	};

	unsetenv("LIMA_SSH_OVER_VSOCK");
	log_setup(LOG_FATAL, LOG_FORMAT_PLAIN);
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
