/* The driver against a QEMU that is played: a process that does nothing, and its control
 * channel in the test's loop. For states a real one is in too briefly, or by accident. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "drivers/qemu/endpoint.h"
#include "lib/store/pid.h"
#include "test/mock/qemu_vm.h"
#include "test/mock/qmp.h"

#define SCHEMA TEST_DIR "/mock/qmp-schema.json"
#define STILL(state) "{\"status\": \"" state "\", \"running\": false}"

struct played {
	struct vm vm;
	struct mock_qmp *mock;
	int listener;
	pid_t pid;
	size_t said;		/* commands that were looked at */
	struct done changed;	/* a snapshot */
};

/* The driver's next connection. */
static void answer_the_call(struct played *p, const char *status)
{
	int fd;

	qemu_vm_run_until(&p->vm, (fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0);
	p->mock = mock_qmp_on(&p->vm.loop, SCHEMA, fd);
	if (status)
		mock_qmp_answer(p->mock, "query-status", status);
	mock_qmp_answer(p->mock, "query-jobs", "[]");
	mock_qmp_greet(p->mock);
}

static bool was_asked(const struct played *p, const char *command)
{
	return strv_contains(&p->mock->commands, command);
}

/* What was asked for since the last time; caller frees. */
static char *said(struct played *p)
{
	struct strv since = { .items = p->mock->commands.items + p->said,
			      .len = p->mock->commands.len - p->said };
	char *text = strv_join(&since, " ");

	p->said = p->mock->commands.len;
	return text;
}

/* @status: what query-status says; NULL: it runs. */
static void begin(struct played *p, const char *status)
{
	static const uint8_t no_code[] = { 0 };
	struct error err = ERROR_NONE;

	*p = (struct played){ .pid = fork() };
	if (p->pid == 0)
		for (;;)
			pause();
	qemu_vm_begin(&p->vm, no_code, sizeof(no_code));
	scoped_free char *pid_path = qemu_vm_file(&p->vm, FILE_QEMU_PID);
	scoped_free char *qmp = qemu_vm_file(&p->vm, FILE_QMP_SOCK);
	assert_int_equal(pid_file_write(pid_path, p->pid, &err), 0);
	assert_int_equal(endpoint_listen(qmp, &p->listener, &err), 0);
	assert_int_equal(fcntl(p->listener, F_SETFL, O_NONBLOCK), 0);
	qemu_driver_ops.adopt(p->vm.driver, qemu_vm_is_done, &p->vm.started);
	answer_the_call(p, status);
	qemu_vm_run_until(&p->vm, p->vm.started.n && was_asked(p, "query-chardev"));
	assert_int_equal(p->vm.started.err.code, 0);
	free(said(p));
}

static void finish(struct played *p)
{
	kill(p->pid, SIGKILL);
	waitpid(p->pid, NULL, 0);
	if (p->vm.stopped.n == 0 && p->vm.n_event[DRIVER_EXITED] == 0)
		qemu_vm_run_until(&p->vm, p->vm.n_event[DRIVER_EXITED]);
	if (p->mock)
		mock_qmp_close(p->mock);
	close(p->listener);
	qemu_vm_finish(&p->vm);
}

/* A change that QEMU is busy with when its deadline passes; on return it is asked how it
 * is, and does not answer. */
static void let_the_deadline_pass(struct played *p, enum snapshot_change change, const char *job,
				  unsigned more_ms)
{
	qemu_driver_set_job_wait(p->vm.driver, 100);
	qemu_driver_ops.snapshot(p->vm.driver, change, "a", qemu_vm_is_done, &p->changed);
	qemu_vm_run_until(&p->vm, was_asked(p, "query-jobs"));
	p->mock->silent = true;
	qemu_driver_set_job_wait(p->vm.driver, more_ms);	/* for its end to be seen */
	qemu_vm_run_until(&p->vm, was_asked(p, job) && p->changed.n);
	assert_int_equal(p->changed.err.code, -ETIMEDOUT);
	qemu_vm_run_until(&p->vm, streq(p->mock->commands.items[p->mock->commands.len - 1],
					"query-status"));
	free(said(p));
}

static void qemu_is_done(struct played *p, const char *status)
{
	json_t *json = json_loads(status, 0, NULL);

	mock_qmp_answer(p->mock, "query-status", status);
	p->mock->silent = false;
	mock_qmp_reply(p->mock, p->mock->last_id, json);
}

/* --- tests ------------------------------------------------------------------------- */

/* Who stands still is let run to hear the button; who must not run is not. */
static void test_driver_stop_in_each_state(void **state)
{
	static const struct {
		const char *status, *says;
	} cases[] = {
		{ NULL, "query-status system_powerdown" },
		{ STILL("paused"), "query-status cont system_powerdown" },
		{ STILL("io-error"), "query-status cont system_powerdown" },
		{ STILL("prelaunch"), "query-status cont system_powerdown" },
		{ STILL("restore-vm"), "query-status quit" },
		{ STILL("inmigrate"), "query-status quit" },
		{ STILL("finish-migrate"), "query-status quit" },
		{ STILL("postmigrate"), "query-status quit" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		bool quits = strstr(cases[i].says, "quit") != NULL;
		struct played p;

		begin(&p, cases[i].status);
		qemu_driver_ops.stop(p.vm.driver, false, qemu_vm_is_done, &p.vm.stopped);
		qemu_vm_run_until(&p.vm, was_asked(&p, quits ? "quit" : "system_powerdown"));
		scoped_free char *got = said(&p);
		/* the button is pressed again after 200 ms, on a slow machine before we look */
		assert_int_equal(strncmp(got, cases[i].says, strlen(cases[i].says)), 0);
		assert_int_equal(qemu_vm_noticed(&p.vm, "must not run; ending QEMU"), quits);
		assert_int_equal(qemu_vm_noticed(&p.vm, "limactl start dev then boots from the disk"),
				 i == 4);
		finish(&p);
	}
}

static void test_driver_room_for_who_must_not_run(void **state)
{
	struct played p;

	begin(&p, STILL("restore-vm"));
	mock_qmp_event(p.mock, "BLOCK_IO_ERROR",
		       json_pack("{s:s, s:s, s:s, s:s, s:b, s:s}", "device", "", "node-name", "disk",
				 "operation", "write", "action", "stop", "nospace", 1, "reason", "full"));
	qemu_vm_run_until(&p.vm, qemu_vm_noticed(&p.vm, "room on the disk again, but the guest stands "
						 "still with half"));
	scoped_free char *got = said(&p);
	assert_string_equal(got, "query-status");
	finish(&p);
}

/* QEMU still saves when nobody waits for the snapshot any more. */
static void test_driver_stop_after_a_snapshots_deadline(void **state)
{
	struct played p;

	begin(&p, NULL);
	let_the_deadline_pass(&p, SNAPSHOT_CREATE, "snapshot-save", 600 * 1000);
	qemu_driver_ops.stop(p.vm.driver, false, qemu_vm_is_done, &p.vm.stopped);
	assert_in_range(p.vm.delay_ms, 1, 600 * 1000);
	for (int ticks = 0; ticks < 50; ticks++)	/* of 20 ms */
		uv_run(&p.vm.loop.uv, UV_RUN_ONCE);
	assert_int_equal(p.mock->commands.len, p.said);
	qemu_is_done(&p, "{\"status\": \"running\", \"running\": true}");
	qemu_vm_run_until(&p.vm, was_asked(&p, "system_powerdown"));
	assert_false(was_asked(&p, "quit"));
	assert_int_equal(kill(p.pid, 0), 0);
	finish(&p);
}

/* A load that fails after its deadline: somebody says so, and nobody lets it run. */
static void test_driver_load_fails_after_the_deadline(void **state)
{
	struct played p;

	begin(&p, NULL);
	let_the_deadline_pass(&p, SNAPSHOT_APPLY, "snapshot-load", 600 * 1000);
	assert_non_null(strstr(p.changed.err.msg, "and for good if it fails"));
	qemu_is_done(&p, STILL("restore-vm"));
	qemu_vm_run_until(&p.vm, qemu_vm_noticed(&p.vm, "a snapshot could not be applied whole"));
	qemu_driver_ops.stop(p.vm.driver, false, qemu_vm_is_done, &p.vm.stopped);
	assert_int_equal(p.vm.delay_ms, 0);
	qemu_vm_run_until(&p.vm, was_asked(&p, "quit"));
	assert_false(was_asked(&p, "cont"));
	finish(&p);
}

static void test_driver_stop_when_the_channel_is_lost_in_a_snapshot(void **state)
{
	struct played p;

	begin(&p, NULL);
	qemu_driver_ops.snapshot(p.vm.driver, SNAPSHOT_CREATE, "a", qemu_vm_is_done, &p.changed);
	qemu_vm_run_until(&p.vm, was_asked(&p, "query-jobs"));
	p.mock->silent = true;
	qemu_vm_run_until(&p.vm, was_asked(&p, "snapshot-save"));
	qemu_driver_ops.stop(p.vm.driver, false, qemu_vm_is_done, &p.vm.stopped);
	mock_qmp_close(steal_ptr(&p.mock));
	answer_the_call(&p, NULL);
	assert_int_equal(p.changed.err.code, -ECONNRESET);
	assert_int_equal(kill(p.pid, 0), 0);	/* it waits */
	assert_int_equal(p.vm.stopped.n, 0);
	qemu_vm_run_until(&p.vm, was_asked(&p, "system_powerdown"));
	finish(&p);
}

/* Not for ever. */
static void test_driver_stop_of_who_never_answers_again(void **state)
{
	struct stop_waits waits = { 300, 300, 100, 300, 300, 10000 };
	struct played p;

	begin(&p, NULL);
	qemu_driver_set_waits(p.vm.driver, &waits);
	let_the_deadline_pass(&p, SNAPSHOT_CREATE, "snapshot-save", 2000);
	qemu_driver_ops.stop(p.vm.driver, false, qemu_vm_is_done, &p.vm.stopped);
	qemu_vm_run_until(&p.vm, p.vm.stopped.n);
	assert_true(qemu_vm_noticed(&p.vm, "did not end by quit"));
	finish(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_driver_stop_in_each_state),
		cmocka_unit_test(test_driver_room_for_who_must_not_run),
		cmocka_unit_test(test_driver_stop_after_a_snapshots_deadline),
		cmocka_unit_test(test_driver_load_fails_after_the_deadline),
		cmocka_unit_test(test_driver_stop_when_the_channel_is_lost_in_a_snapshot),
		cmocka_unit_test(test_driver_stop_of_who_never_answers_again),
	};

	signal(SIGPIPE, SIG_IGN);	/* as the host agent does */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
