/* Snapshots of a running QEMU, against one played in the same loop: the jobs, and
 * that each way they can go wrong ends in words and with a guest that goes on. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "drivers/qemu/snapshot.h"
#include "lib/base/mem.h"
#include "test/mock/qmp.h"

#define SCHEMA TEST_DIR "/mock/qmp-schema.json"
#define JOB(status, more)                                                              \
	"[{\"id\": \"other\", \"type\": \"commit\", \"status\": \"running\"},"         \
	" {\"id\": \"lima-snapshot\", \"type\": \"snapshot-save\", \"status\": \"" status \
	"\"" more "}]"
#define FAILED(text) JOB("concluded", ", \"error\": \"" text "\"")
#define SAVE_ARGS(tag) \
	"{\"devices\":[\"disk\"],\"job-id\":\"lima-snapshot\",\"tag\":\"" tag "\",\"vmstate\":\"disk\"}"

enum { GIVE_UP_MS = 20000, TICK_MS = 20 };

struct world {
	struct loop loop;
	uv_timer_t guard;
	struct mock_qmp *mock;
	struct qmp *qmp;
	struct qemu_snapshot *snapshot;
	bool ready;
	unsigned n_done;
	struct error err;
	char tags[256];		/* what was listed */
};

static void on_guard(uv_timer_t *t)
{
	t->data = (char *)t->data + TICK_MS;
	if ((uintptr_t)t->data >= GIVE_UP_MS)
		fail_msg("nothing happened for %d ms", GIVE_UP_MS);
}

static void on_ready(void *arg, const struct qemu_version *version)
{
	((struct world *)arg)->ready = true;
}

static void on_event(void *arg, const char *name, json_t *data)
{
	struct world *w = arg;

	if (w->snapshot)
		qemu_snapshot_event(w->snapshot, name, data);
}

static void on_closed(void *arg, const struct error *why)
{
	struct world *w = arg;

	if (w->snapshot)
		qemu_snapshot_qmp_lost(w->snapshot);
	qmp_close(steal_ptr(&w->qmp));
}

static void on_done(void *arg, const struct error *err)
{
	struct world *w = arg;

	w->n_done++;
	w->err = *err;
	qemu_snapshot_free(steal_ptr(&w->snapshot));
}

static void on_listed(void *arg, const struct snapshot_list *list, const struct error *err)
{
	struct world *w = arg;

	for (size_t i = 0; i < list->n; i++)
		snprintf(w->tags + strlen(w->tags), sizeof(w->tags) - strlen(w->tags), "%s %ju %ju;",
			 list->items[i].tag, (uintmax_t)list->items[i].vm_clock_ms,
			 (uintmax_t)list->items[i].memory_bytes);
	on_done(w, err);
}

#define run_until(w, cond) \
	while (!(cond))    \
	uv_run(&(w)->loop.uv, UV_RUN_ONCE)

static void begin(struct world *w)
{
	const struct qmp_callbacks cb = { on_ready, on_event, on_closed, w };
	struct error err = ERROR_NONE;
	int fd;

	*w = (struct world){ 0 };
	assert_int_equal(loop_init(&w->loop, &err), 0);
	uv_timer_init(&w->loop.uv, &w->guard);
	w->guard.data = NULL;
	uv_timer_start(&w->guard, on_guard, TICK_MS, TICK_MS);
	uv_unref((uv_handle_t *)&w->guard);
	w->mock = mock_qmp_new(&w->loop, SCHEMA, &fd);
	assert_int_equal(qmp_open(&w->loop, fd, GIVE_UP_MS, &cb, &w->qmp, &err), 0);
	mock_qmp_greet(w->mock);
	mock_qmp_answer(w->mock, "query-jobs", "[]");
	run_until(w, w->ready);
}

static void finish(struct world *w)
{
	qemu_snapshot_free(steal_ptr(&w->snapshot));
	if (w->qmp)
		qmp_close(steal_ptr(&w->qmp));
	if (w->mock)
		mock_qmp_close(steal_ptr(&w->mock));
	uv_close((uv_handle_t *)&w->guard, NULL);
	assert_int_equal(loop_done(&w->loop), 0);
}

static struct qemu_snapshot_options options(struct world *w, unsigned job_ms)
{
	return (struct qemu_snapshot_options){ .loop = &w->loop, .qmp = w->qmp, .job_ms = job_ms,
					       .listed = on_listed, .done = on_done, .arg = w };
}

static void ask(struct world *w, enum snapshot_change change)
{
	const struct qemu_snapshot_options o = options(w, GIVE_UP_MS);

	w->n_done = 0;
	w->snapshot = qemu_snapshot_change(&o, change, "before");
	assert_int_equal(w->n_done, 0);
}

static bool was_asked(struct world *w, const char *command)
{
	return streq(w->mock->commands.items[w->mock->commands.len - 1], command);
}

static void job_becomes(struct world *w, const char *id, const char *status)
{
	mock_qmp_event(w->mock, "JOB_STATUS_CHANGE", json_pack("{s:s, s:s}", "id", id, "status",
							       status));
}

/* The job that @command began ends, and @jobs is what is told of it. */
static void job_ends(struct world *w, const char *command, const char *jobs)
{
	run_until(w, was_asked(w, command));
	mock_qmp_answer(w->mock, "query-jobs", jobs);
	job_becomes(w, "lima-snapshot", "running");
	job_becomes(w, "other", "concluded");
	job_becomes(w, "lima-snapshot", "concluded");
	run_until(w, w->n_done);
}

/* The commands since qmp_capabilities, names only. */
static void assert_said(struct world *w, const char *want)
{
	scoped_buf struct buf got = { 0 };

	for (size_t i = 1; i < w->mock->commands.len; i++)
		buf_addf(&got, "%s%s", i > 1 ? " " : "", w->mock->commands.items[i]);
	assert_string_equal(buf_str(&got), want);
}

/* --- tests ----------------------------------------------------------------------- */

static void test_qemu_snapshot_create(void **state)
{
	struct world w;

	begin(&w);
	ask(&w, SNAPSHOT_CREATE);
	job_ends(&w, "snapshot-save", JOB("concluded", ""));
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "query-jobs snapshot-save query-jobs job-dismiss");
	assert_string_equal(w.mock->arguments.items[2], SAVE_ARGS("before"));
	assert_string_equal(w.mock->arguments.items[4], "{\"id\":\"lima-snapshot\"}");
	finish(&w);
}

/* QEMU answers the command when all is done, and what happened meanwhile after it. */
static void test_qemu_snapshot_reply_after_the_end(void **state)
{
	struct world w;

	begin(&w);
	ask(&w, SNAPSHOT_DELETE);
	run_until(&w, was_asked(&w, "query-jobs"));
	w.mock->silent = true;
	run_until(&w, was_asked(&w, "snapshot-delete"));
	job_becomes(&w, "lima-snapshot", "concluded");
	w.mock->silent = false;
	mock_qmp_answer(w.mock, "query-jobs", JOB("concluded", ""));
	mock_qmp_reply(w.mock, w.mock->last_id, json_object());
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "query-jobs snapshot-delete query-jobs job-dismiss");
	assert_string_equal(w.mock->arguments.items[2],
			    "{\"devices\":[\"disk\"],\"job-id\":\"lima-snapshot\",\"tag\":\"before\"}");
	finish(&w);
}

static void test_qemu_snapshot_job_fails(void **state)
{
	struct world w;

	begin(&w);
	ask(&w, SNAPSHOT_CREATE);
	job_ends(&w, "snapshot-save", FAILED("State blocked by non-migratable device 'x'"));
	assert_int_equal(w.err.code, -EREMOTEIO);
	assert_string_equal(w.err.msg, "QEMU: State blocked by non-migratable device 'x'");
	assert_said(&w, "query-jobs snapshot-save query-jobs job-dismiss");
	finish(&w);
}

/* QEMU leaves the guest stopped; nothing was changed, so it goes on. */
static void test_qemu_snapshot_load_refused(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "query-status", "{\"status\": \"restore-vm\", \"running\": false}");
	ask(&w, SNAPSHOT_APPLY);
	job_ends(&w, "snapshot-load", FAILED("Snapshot 'before' does not exist in one or more devices"));
	assert_int_equal(w.err.code, -EREMOTEIO);
	assert_null(strstr(w.err.msg, "boots"));
	assert_said(&w, "query-jobs snapshot-load query-jobs job-dismiss query-status cont");
	finish(&w);
}

static void test_qemu_snapshot_load_fails_half_way(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "query-status", "{\"status\": \"restore-vm\", \"running\": false}");
	ask(&w, SNAPSHOT_APPLY);
	job_ends(&w, "snapshot-load", FAILED("Error -22 while loading VM state"));
	assert_int_equal(w.err.code, -EREMOTEIO);
	assert_non_null(strstr(w.err.msg, "the guest boots from that disk"));
	assert_said(&w, "query-jobs snapshot-load query-jobs job-dismiss query-status system_reset "
		    "cont");
	mock_qmp_answer(w.mock, "query-jobs", "[]");
	mock_qmp_answer(w.mock, "cont", "\"!Resetting the Virtual Machine is required\"");
	ask(&w, SNAPSHOT_APPLY);
	run_until(&w, was_asked(&w, "query-jobs"));
	job_ends(&w, "snapshot-load", FAILED("Error -22 while loading VM state"));
	assert_non_null(strstr(w.err.msg, "limactl stop --force"));
	finish(&w);
}

/* An earlier host agent's job: one that is over is dismissed, one that is not is
 * nobody's to disturb. */
static void test_qemu_snapshot_stale_job(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "query-jobs", JOB("running", ""));
	ask(&w, SNAPSHOT_CREATE);
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -EBUSY);
	mock_qmp_answer(w.mock, "query-jobs", JOB("concluded", ""));
	ask(&w, SNAPSHOT_CREATE);
	job_ends(&w, "snapshot-save", JOB("concluded", ""));
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "query-jobs query-jobs job-dismiss snapshot-save query-jobs job-dismiss");
	finish(&w);
}

static void test_qemu_snapshot_of_an_old_qemu(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "query-jobs", "\"!The command query-jobs has not been found\"");
	ask(&w, SNAPSHOT_CREATE);
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ENOTSUP);
	mock_qmp_answer(w.mock, "query-jobs", "[]");
	mock_qmp_answer(w.mock, "snapshot-save", "\"!The command snapshot-save has not been found\"");
	ask(&w, SNAPSHOT_CREATE);
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -EREMOTEIO);
	finish(&w);
}

static void test_qemu_snapshot_deadline(void **state)
{
	struct qemu_snapshot_options o;
	struct world w;

	begin(&w);
	o = options(&w, 50);
	w.snapshot = qemu_snapshot_change(&o, SNAPSHOT_CREATE, "before");
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ETIMEDOUT);
	assert_true(was_asked(&w, "snapshot-save"));
	finish(&w);
}

static void test_qemu_snapshot_qmp_goes_away(void **state)
{
	struct world w;

	begin(&w);
	ask(&w, SNAPSHOT_CREATE);
	run_until(&w, was_asked(&w, "snapshot-save"));
	mock_qmp_close(steal_ptr(&w.mock));
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ECONNRESET);
	ask(&w, SNAPSHOT_CREATE);	/* and where there was none from the start */
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ECONNRESET);
	finish(&w);
}

static void test_qemu_snapshot_is_forgotten(void **state)
{
	struct world w;

	begin(&w);
	ask(&w, SNAPSHOT_CREATE);
	run_until(&w, was_asked(&w, "snapshot-save"));
	qemu_snapshot_free(steal_ptr(&w.snapshot));	/* a reply is still to come */
	job_becomes(&w, "lima-snapshot", "concluded");
	finish(&w);
	assert_int_equal(w.n_done, 0);
}

static void test_qemu_snapshot_list(void **state)
{
	struct qemu_snapshot_options o;
	struct world w;

	begin(&w);
	o = options(&w, GIVE_UP_MS);
	mock_qmp_answer(w.mock, "query-named-block-nodes",
			"[{\"node-name\": \"cidata\", \"drv\": \"raw\", \"image\": {}},"
			" {\"node-name\": \"disk\", \"drv\": \"qcow2\", \"image\": {\"snapshots\": ["
			"{\"id\": \"1\", \"name\": \"a\", \"date-sec\": 5, \"date-nsec\": 0, "
			"\"vm-clock-sec\": 51, \"vm-clock-nsec\": 200251700, \"vm-state-size\": 7},"
			"{\"id\": \"2\", \"name\": \"b\", \"date-sec\": 6, \"date-nsec\": 0, "
			"\"vm-clock-sec\": 0, \"vm-clock-nsec\": 0, \"vm-state-size\": 0}]}}]");
	w.snapshot = qemu_snapshot_list(&o);
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	assert_string_equal(w.tags, "a 51200 7;b 0 0;");
	mock_qmp_answer(w.mock, "query-named-block-nodes",
			"[{\"node-name\": \"disk\", \"drv\": \"raw\", \"image\": {}}]");
	w.n_done = 0;
	w.snapshot = qemu_snapshot_list(&o);
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ENOTSUP);
	finish(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_qemu_snapshot_create),
		cmocka_unit_test(test_qemu_snapshot_reply_after_the_end),
		cmocka_unit_test(test_qemu_snapshot_job_fails),
		cmocka_unit_test(test_qemu_snapshot_load_refused),
		cmocka_unit_test(test_qemu_snapshot_load_fails_half_way),
		cmocka_unit_test(test_qemu_snapshot_stale_job),
		cmocka_unit_test(test_qemu_snapshot_of_an_old_qemu),
		cmocka_unit_test(test_qemu_snapshot_deadline),
		cmocka_unit_test(test_qemu_snapshot_qmp_goes_away),
		cmocka_unit_test(test_qemu_snapshot_is_forgotten),
		cmocka_unit_test(test_qemu_snapshot_list),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
