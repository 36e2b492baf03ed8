/* Snapshots in the host agent: in which order the device, the driver and the link are
 * asked, and that every way ends with the device in and one answer. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "hostagent/agent_impl.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/snapshot_room.h"
#include "test/mock/driver_answer.h"
#include "test/mock/loop_wait.h"

static struct fx {
	struct agent a;
	struct agent_options o;
	struct config config;
	struct strv log;		/* what was asked, in order */
	bool up, stopping, has_master;
	int out_code, change_code;	/* answers */
	uint64_t free_bytes;		/* on the host's disk */
	driver_done_fn held_done;	/* of the driver, when the test answers */
	void *held_arg;
	bool hold;
	driver_done_fn clock_done;	/* of the script that sets the clock */
	void *clock_arg;
	char *clock_script;
	unsigned n_answers;
	int status;
	char text[ERROR_MSG_SIZE];
	driver_snapshots_fn listed;
	void *listed_arg;
	uv_timer_t tick;		/* keeps the loop turning */
} fx;

/* --- what the rest of the agent is here ---------------------------------- */

bool steps_is_up(const struct steps *s)
{
	return fx.up;
}

bool steps_is_stopping(const struct steps *s)
{
	return fx.stopping;
}

static void answer_soon(const char *what, driver_done_fn done, void *arg, int code)
{
	strv_add(&fx.log, what);
	driver_answer_give(driver_answer_new(done, arg, code), &fx.a.loop);
}

void agent_vsock_take_out(struct agent *a, driver_done_fn done, void *arg)
{
	answer_soon("out", done, arg, fx.out_code);
}

void agent_vsock_put_in(struct agent *a, driver_done_fn done, void *arg)
{
	answer_soon("in", done, arg, 0);
}

bool ssh_master_is_up(const struct ssh_master *m)
{
	return fx.has_master;
}

void ssh_master_ensure(struct ssh_master *m)
{
	strv_add(&fx.log, "ensure");
}

void ssh_master_drop(struct ssh_master *m)
{
	strv_add(&fx.log, "ssh");
}

void guest_link_guest_was_set_back(struct guest_link *l)
{
	strv_add(&fx.log, "link");
}

void control_answer(struct control_reply *reply, int status, json_t *answer,
		    const struct error *err)
{
	scoped_free char *text = answer ? json_dumps(answer, JSON_COMPACT) : NULL;

	fx.n_answers++;
	fx.status = status;
	snprintf(fx.text, sizeof(fx.text), "%s", text ? text : err->msg);
	json_decref(answer);
}

struct ready_probe *ready_probe_start(struct loop *loop, const struct ssh_target *t,
				      const struct ready_script *s, ready_done_fn done, void *arg)
{
	strv_add(&fx.log, "clock");
	fx.clock_script = xstrdup(s->script);
	fx.clock_done = done;
	fx.clock_arg = arg;
	return (struct ready_probe *)&fx;
}

void ready_probe_close(struct ready_probe *p)
{
	free(steal_ptr(&fx.clock_script));
	strv_add(&fx.log, "clock-end");
}

uint64_t snapshot_room_needed(pid_t pid, uint64_t memory_bytes)
{
	return memory_bytes / 2;
}

int snapshot_room_check(const char *dir, uint64_t needed_bytes, struct error *err)
{
	return fx.free_bytes > needed_bytes ? 0 : error_set(err, -ENOSPC, "mock: no room");
}

static void on_list_asked(void *arg)
{
	struct snapshot items[] = { { .tag = (char *)"live", .memory_bytes = 7 },
				    { .tag = (char *)"off" } };
	const struct snapshot_list list = { items, ARRAY_SIZE(items) };

	fx.listed(fx.listed_arg, &list, &ERROR_NONE);
}

static void driver_snapshots(struct driver *d, driver_snapshots_fn listed, void *arg)
{
	strv_add(&fx.log, "list");
	fx.listed = listed;
	fx.listed_arg = arg;
	loop_post(&fx.a.loop, on_list_asked, NULL);
}

static void driver_snapshot(struct driver *d, enum snapshot_change change, const char *tag,
			    driver_done_fn done, void *arg)
{
	scoped_free char *what = xasprintf("%s:%s", snapshot_change_name(change), tag);

	if (fx.hold) {
		strv_add(&fx.log, what);
		fx.held_done = done;
		fx.held_arg = arg;
	} else {
		answer_soon(what, done, arg, fx.change_code);
	}
}

static const struct driver_ops driver = {
	.name = "mock",
	.features = DRIVER_SNAPSHOTS,
	.snapshots = driver_snapshots,
	.snapshot = driver_snapshot,
};

/* --- the world ----------------------------------------------------------- */

#define WAIT_FOR(cond) loop_wait(&fx.a.loop, cond)

static void on_tick(uv_timer_t *t)
{
}

static int setup(void **state)
{
	struct error err = ERROR_NONE;

	fx = (struct fx){ .o = { .name = "vm" }, .up = true, .free_bytes = 1000 };
	fx.config.memory_bytes = 1000;
	fx.a.config = &fx.config;
	fx.a.o = &fx.o;
	fx.a.driver_ops = &driver;
	fx.a.driver = (struct driver *)&fx;
	fx.a.link = (struct guest_link *)&fx;
	fx.a.master = (struct ssh_master *)&fx;
	if (loop_init(&fx.a.loop, &err) < 0)
		return -1;
	uv_timer_init(&fx.a.loop.uv, &fx.tick);
	uv_timer_start(&fx.tick, on_tick, 2, 2);
	return 0;
}

static int teardown(void **state)
{
	assert_null(fx.a.snapshot);
	uv_close((uv_handle_t *)&fx.tick, NULL);
	loop_run(&fx.a.loop);
	strv_done(&fx.log);
	return (int)loop_done(&fx.a.loop);
}

static void ask(void (*task)(void *arg, const json_t *body, struct control_reply *reply),
		const char *json)
{
	json_t *body = json_loads(json, JSON_DECODE_ANY, NULL);

	fx.n_answers = 0;
	task(&fx.a, body, NULL);
	json_decref(body);
}

static void assert_answer(int status, const char *text)
{
	WAIT_FOR(fx.n_answers);
	assert_int_equal(fx.n_answers, 1);
	if (!strstr(fx.text, text))
		fail_msg("`%s` is not in `%s`", text, fx.text);
	assert_int_equal(fx.status, status);
}

static void assert_log(const char *want)
{
	scoped_free char *log = strv_join(&fx.log, " ");

	assert_string_equal(log ? log : "", want);
}

/* --- tests --------------------------------------------------------------- */

static void test_agent_snapshot_create(void **state)
{
	ask(agent_create_snapshot, "{\"tag\": \"new\"}");
	assert_answer(200, "{\"change\":\"create\",\"tag\":\"new\"");
	assert_log("list out create:new in");
}

/* What led into the guest is made anew; the answer comes when it leads there. */
static void test_agent_snapshot_apply(void **state)
{
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");
	WAIT_FOR(fx.log.len == 6);
	for (int i = 0; i < 5; i++)
		uv_run(&fx.a.loop.uv, UV_RUN_ONCE);
	assert_log("list out apply:live ssh link in");
	assert_int_equal(fx.n_answers, 0);
	agent_snapshot_link_is_ready(&fx.a);
	assert_answer(200, "\"apply\"");
	agent_snapshot_link_is_ready(&fx.a);	/* it comes again some day */
	assert_int_equal(fx.n_answers, 1);
}

static void test_agent_snapshot_apply_waits_for_ssh(void **state)
{
	fx.has_master = true;
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");
	WAIT_FOR(fx.log.len == 6);
	agent_snapshot_ssh_is_lost(&fx.a);
	agent_snapshot_link_is_ready(&fx.a);
	for (int i = 0; i < 5; i++)
		uv_run(&fx.a.loop.uv, UV_RUN_ONCE);
	assert_int_equal(fx.n_answers, 0);
	agent_snapshot_ssh_is_up(&fx.a);
	assert_answer(200, "\"apply\"");
	assert_log("list out apply:live ssh link in ensure");
	agent_snapshot_ssh_is_lost(&fx.a);	/* nothing of ours any more */
	assert_log("list out apply:live ssh link in ensure");
}

/* The guest has no agent in plain mode. */
static void test_agent_snapshot_apply_in_plain_mode(void **state)
{
	intmax_t at;

	fx.a.link = NULL;
	fx.has_master = true;
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");
	WAIT_FOR(fx.log.len == 5);
	agent_snapshot_ssh_is_up(&fx.a);
	assert_log("list out apply:live ssh in clock");
	assert_int_equal(sscanf(strstr(fx.clock_script, "date -u -s @"), "date -u -s @%jd", &at), 1);
	assert_in_range(at, time(NULL) - 30, time(NULL));
	assert_int_equal(fx.n_answers, 0);
	fx.clock_done(fx.clock_arg, &ERROR_NONE);
	assert_answer(200, "\"apply\"");
	assert_null(strstr(fx.text, "warning"));
	assert_log("list out apply:live ssh in clock clock-end");
}

static void test_agent_snapshot_clock_cannot_be_set(void **state)
{
	struct error refused = ERROR_NONE;

	fx.a.link = NULL;
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");	/* ssh is not up */
	assert_answer(200, "\"warning\":\"the guest's clock is of the snapshot's time (there is no ssh)");
	fx.has_master = true;
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");
	WAIT_FOR(fx.log.len == 10);
	agent_snapshot_ssh_is_up(&fx.a);
	error_set(&refused, -EIO, "sudo: a password is required");
	fx.clock_done(fx.clock_arg, &refused);
	assert_answer(200, "(sudo: a password is required); set it: limactl shell vm sudo date");
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");	/* the machine ends */
	WAIT_FOR(fx.log.len == 17);
	agent_snapshot_ssh_is_up(&fx.a);
	for (int i = 0; i < 5; i++)
		uv_run(&fx.a.loop.uv, UV_RUN_ONCE);
	fx.stopping = true;
	agent_snapshot_ends(&fx.a);
	assert_answer(200, "\"apply\"");
	assert_null(fx.clock_script);
}

static void test_agent_snapshot_delete_needs_no_device(void **state)
{
	ask(agent_delete_snapshot, "{\"tag\": \"off\"}");
	assert_answer(200, "\"delete\"");
	assert_log("list delete:off");
}

static void test_agent_snapshot_list(void **state)
{
	ask(agent_get_snapshots, "null");
	agent_get_snapshots(&fx.a, NULL, NULL);	/* two at once: one look, two answers */
	WAIT_FOR(fx.n_answers == 2);
	assert_int_equal(fx.status, 200);
	assert_non_null(strstr(fx.text, "[{\"tag\":\"live\","));
	assert_log("list");
}

/* Nobody's connections are reset for a request that cannot be. */
static void test_agent_snapshot_that_cannot_be(void **state)
{
	ask(agent_create_snapshot, "{\"tag\": \"live\"}");
	assert_answer(409, "already");
	ask(agent_apply_snapshot, "{\"tag\": \"nope\"}");
	assert_answer(404, "there are: live, off");
	ask(agent_apply_snapshot, "{\"tag\": \"off\"}");
	assert_answer(422, "disk alone");
	assert_log("list list list");
	ask(agent_create_snapshot, "{\"tag\": 7}");
	assert_answer(400, "{\"tag\"");
	ask(agent_create_snapshot, "{\"tag\": \"-x\"}");
	assert_answer(400, "begin with");
	fx.up = false;
	ask(agent_create_snapshot, "{\"tag\": \"new\"}");
	assert_answer(503, "starting");
	assert_log("list list list");
}

static void test_agent_snapshot_fails(void **state)
{
	fx.change_code = -EREMOTEIO;
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");
	assert_answer(422, "mock: ");
	assert_log("list out apply:live in");
	fx.out_code = -ETIMEDOUT;
	ask(agent_create_snapshot, "{\"tag\": \"new\"}");
	assert_answer(500, "stop it first");
	assert_log("list out apply:live in list out");
}

/* What may not fit is not begun; what did not fit all the same is told as that. */
static void test_agent_snapshot_disk_is_full(void **state)
{
	fx.free_bytes = 500;
	ask(agent_create_snapshot, "{\"tag\": \"new\"}");
	assert_answer(507, "no room");
	ask(agent_delete_snapshot, "{\"tag\": \"live\"}");	/* the way out */
	assert_answer(200, "delete");
	assert_log("list list delete:live");
	fx.free_bytes = 501;
	fx.change_code = -EREMOTEIO;
	fx.hold = true;
	ask(agent_create_snapshot, "{\"tag\": \"new\"}");
	WAIT_FOR(fx.held_done);
	fx.free_bytes = 0;
	answer_soon("done", fx.held_done, fx.held_arg, -EREMOTEIO);
	assert_answer(422, "the host's disk is full");
}

static void test_agent_snapshot_one_at_a_time(void **state)
{
	fx.hold = true;
	ask(agent_create_snapshot, "{\"tag\": \"new\"}");
	WAIT_FOR(fx.held_done);
	ask(agent_get_snapshots, "null");
	assert_answer(503, "busy with `snapshot create --tag new`");
	ask(agent_delete_snapshot, "{\"tag\": \"live\"}");
	assert_answer(503, "busy with `snapshot create --tag new`");
	fx.n_answers = 0;
	fx.held_done(fx.held_arg, &ERROR_NONE);
	assert_answer(200, "\"new\"");
	assert_log("list out create:new in");
}

/* The machine ends in between; the driver says so, and then the link goes. */
static void test_agent_snapshot_machine_ends(void **state)
{
	struct error canceled = ERROR_NONE;

	fx.out_code = -ECANCELED;
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");
	assert_answer(503, "`vm` is stopping");
	assert_log("list out");
	strv_done(&fx.log);
	fx.out_code = 0;
	fx.hold = true;
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");
	WAIT_FOR(fx.held_done);
	fx.stopping = true;
	error_set(&canceled, -ECANCELED, "driver closed");
	fx.held_done(fx.held_arg, &canceled);
	assert_answer(503, "`vm` is stopping");
	fx.hold = fx.stopping = false;
	ask(agent_apply_snapshot, "{\"tag\": \"live\"}");
	WAIT_FOR(fx.log.len == 10);
	fx.stopping = true;
	agent_snapshot_ends(&fx.a);
	assert_answer(200, "\"apply\"");
}

int main(void)
{
#define SNAPSHOT_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		SNAPSHOT_TEST(test_agent_snapshot_create),
		SNAPSHOT_TEST(test_agent_snapshot_apply),
		SNAPSHOT_TEST(test_agent_snapshot_apply_waits_for_ssh),
		SNAPSHOT_TEST(test_agent_snapshot_apply_in_plain_mode),
		SNAPSHOT_TEST(test_agent_snapshot_clock_cannot_be_set),
		SNAPSHOT_TEST(test_agent_snapshot_delete_needs_no_device),
		SNAPSHOT_TEST(test_agent_snapshot_list),
		SNAPSHOT_TEST(test_agent_snapshot_that_cannot_be),
		SNAPSHOT_TEST(test_agent_snapshot_fails),
		SNAPSHOT_TEST(test_agent_snapshot_disk_is_full),
		SNAPSHOT_TEST(test_agent_snapshot_one_at_a_time),
		SNAPSHOT_TEST(test_agent_snapshot_machine_ends),
	};

	log_setup(LOG_FATAL, LOG_FORMAT_PLAIN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
