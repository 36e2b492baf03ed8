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
#include "test/mock/qmp_world.h"

#define JOB(status, more)                                                              \
	"[{\"id\": \"other\", \"type\": \"commit\", \"status\": \"running\"},"         \
	" {\"id\": \"lima-snapshot\", \"type\": \"snapshot-save\", \"status\": \"" status \
	"\"" more "}]"
#define FAILED(text) JOB("concluded", ", \"error\": \"" text "\"")
#define SAVE_ARGS(tag) \
	"{\"devices\":[\"disk\"],\"job-id\":\"lima-snapshot\",\"tag\":\"" tag "\",\"vmstate\":\"disk\"}"

static char tags[256];		/* what was listed */

static void pass_event(void *talk, const char *name, json_t *data)
{
	qemu_snapshot_event(talk, name, data);
}

static void pass_loss(void *talk)
{
	qemu_snapshot_qmp_lost(talk);
}

static void forget(void *talk)
{
	qemu_snapshot_free(talk);
}

static void on_listed(void *arg, const struct snapshot_list *list, const struct error *err)
{
	tags[0] = 0;
	for (size_t i = 0; i < list->n; i++)
		snprintf(tags + strlen(tags), sizeof(tags) - strlen(tags), "%s %ju %ju;",
			 list->items[i].tag, (uintmax_t)list->items[i].vm_clock_ms,
			 (uintmax_t)list->items[i].memory_bytes);
	qmp_world_is_done(arg, err);
}

static void begin(struct qmp_world *w)
{
	static const struct qmp_world_talk talk_is = { pass_event, pass_loss, forget };

	qmp_world_begin(w, &talk_is);
	mock_qmp_answer(w->mock, "query-jobs", "[]");
}

static struct qemu_snapshot_options options(struct qmp_world *w, unsigned job_ms)
{
	return (struct qemu_snapshot_options){ .loop = &w->loop, .qmp = w->qmp, .job_ms = job_ms,
					       .listed = on_listed, .done = qmp_world_is_done,
					       .arg = w };
}

static void ask(struct qmp_world *w, enum snapshot_change change)
{
	const struct qemu_snapshot_options o = options(w, QMP_WORLD_GIVE_UP_MS);

	w->n_done = 0;
	w->talk = qemu_snapshot_change(&o, change, "before");
	assert_int_equal(w->n_done, 0);
}

static void job_becomes(struct qmp_world *w, const char *id, const char *status)
{
	mock_qmp_event(w->mock, "JOB_STATUS_CHANGE", json_pack("{s:s, s:s}", "id", id, "status",
							       status));
}

/* The job that @command began ends, and @jobs is what is told of it. */
static void job_ends(struct qmp_world *w, const char *command, const char *jobs)
{
	qmp_world_until(w, qmp_world_was_asked(w, command));
	mock_qmp_answer(w->mock, "query-jobs", jobs);
	job_becomes(w, "lima-snapshot", "running");
	job_becomes(w, "other", "concluded");
	job_becomes(w, "lima-snapshot", "concluded");
	qmp_world_until(w, w->n_done);
}

static void assert_said(struct qmp_world *w, const char *want)
{
	scoped_free char *got = qmp_world_said(w, false);

	assert_string_equal(got, want);
}

/* --- tests ----------------------------------------------------------------------- */

static void test_qemu_snapshot_create(void **state)
{
	struct qmp_world w;

	begin(&w);
	ask(&w, SNAPSHOT_CREATE);
	job_ends(&w, "snapshot-save", JOB("concluded", ""));
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "query-jobs snapshot-save query-jobs job-dismiss");
	assert_string_equal(w.mock->arguments.items[2], SAVE_ARGS("before"));
	assert_string_equal(w.mock->arguments.items[4], "{\"id\":\"lima-snapshot\"}");
	qmp_world_finish(&w);
}

/* QEMU answers the command when all is done, and what happened meanwhile after it. */
static void test_qemu_snapshot_reply_after_the_end(void **state)
{
	struct qmp_world w;

	begin(&w);
	ask(&w, SNAPSHOT_DELETE);
	qmp_world_until(&w, qmp_world_was_asked(&w, "query-jobs"));
	w.mock->silent = true;
	qmp_world_until(&w, qmp_world_was_asked(&w, "snapshot-delete"));
	job_becomes(&w, "lima-snapshot", "concluded");
	w.mock->silent = false;
	mock_qmp_answer(w.mock, "query-jobs", JOB("concluded", ""));
	mock_qmp_reply(w.mock, w.mock->last_id, json_object());
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "query-jobs snapshot-delete query-jobs job-dismiss");
	assert_string_equal(w.mock->arguments.items[2],
			    "{\"devices\":[\"disk\"],\"job-id\":\"lima-snapshot\",\"tag\":\"before\"}");
	qmp_world_finish(&w);
}

static void test_qemu_snapshot_job_fails(void **state)
{
	struct qmp_world w;

	begin(&w);
	ask(&w, SNAPSHOT_CREATE);
	job_ends(&w, "snapshot-save", FAILED("State blocked by non-migratable device 'x'"));
	assert_int_equal(w.err.code, -EREMOTEIO);
	assert_string_equal(w.err.msg, "QEMU: State blocked by non-migratable device 'x'");
	assert_said(&w, "query-jobs snapshot-save query-jobs job-dismiss");
	qmp_world_finish(&w);
}

/* QEMU leaves the guest stopped; nothing was changed, so it goes on. */
static void test_qemu_snapshot_load_refused(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "query-status", "{\"status\": \"restore-vm\", \"running\": false}");
	ask(&w, SNAPSHOT_APPLY);
	job_ends(&w, "snapshot-load", FAILED("Snapshot 'before' does not exist in one or more devices"));
	assert_int_equal(w.err.code, -EREMOTEIO);
	assert_null(strstr(w.err.msg, "boots"));
	assert_said(&w, "query-jobs snapshot-load query-jobs job-dismiss query-status cont");
	qmp_world_finish(&w);
}

/* @text is why the load failed, @status what the guest does after it; returns what was
 * said after the job. */
static char *load_fails(struct qmp_world *w, const char *status, const char *text)
{
	scoped_free char *runs = xasprintf("{\"status\": \"%s\", \"running\": false}", status);
	scoped_free char *jobs = xasprintf(FAILED("%s"), text);
	scoped_free char *said = NULL;
	const char *job = "query-jobs snapshot-load query-jobs job-dismiss query-status";

	mock_qmp_answer(w->mock, "query-status", runs);
	ask(w, SNAPSHOT_APPLY);
	job_ends(w, "snapshot-load", jobs);
	assert_int_equal(w->err.code, -EREMOTEIO);
	said = qmp_world_said(w, false);
	assert_int_equal(strncmp(said, job, strlen(job)), 0);
	return xstrdup(said + strlen(job));
}

static void test_qemu_snapshot_load_fails_half_way(void **state)
{
	scoped_free char *said = NULL;
	struct qmp_world w;

	begin(&w);
	said = load_fails(&w, "restore-vm", "Error -22 while loading VM state");
	assert_non_null(strstr(w.err.msg, "the guest boots from that disk"));
	assert_string_equal(said, " system_reset cont");
	qmp_world_finish(&w);
}

/* A tag is anything, also what QEMU says when it changed nothing. */
static void test_qemu_snapshot_load_fails_on_the_disk(void **state)
{
	scoped_free char *said = NULL;
	struct qmp_world w;

	begin(&w);
	said = load_fails(&w, "restore-vm", "Could not load snapshot 'not found, does not exist' on "
			  "'disk': Failed to load snapshot: Input/output error");
	assert_null(strstr(w.err.msg, "memory could not"));	/* nobody got that far */
	assert_non_null(strstr(w.err.msg, "the guest boots from the disk"));
	assert_string_equal(said, " system_reset cont");
	qmp_world_finish(&w);
}

/* A guest that stood still before does not go on, least of all with half a memory. */
static void test_qemu_snapshot_load_fails_of_a_paused_guest(void **state)
{
	scoped_free char *said = NULL, *untouched = NULL;
	struct qmp_world w;

	begin(&w);
	said = load_fails(&w, "io-error", "Error -22 while loading VM state");
	assert_string_equal(said, " system_reset");
	qmp_world_finish(&w);
	begin(&w);
	untouched = load_fails(&w, "paused", "Snapshot 'before' does not exist in one or more devices");
	assert_string_equal(untouched, "");
	qmp_world_finish(&w);
}

static void test_qemu_snapshot_load_fails_and_so_does_the_reset(void **state)
{
	scoped_free char *said = NULL, *no_cont = NULL;
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "system_reset", "\"!no\"");
	said = load_fails(&w, "restore-vm", "Error -22 while loading VM state");
	assert_string_equal(said, " system_reset");
	assert_non_null(strstr(w.err.msg, "limactl stop"));
	qmp_world_finish(&w);
	begin(&w);
	mock_qmp_answer(w.mock, "cont", "\"!Resetting the Virtual Machine is required\"");
	no_cont = load_fails(&w, "restore-vm", "Error -22 while loading VM state");
	assert_string_equal(no_cont, " system_reset cont");
	assert_non_null(strstr(w.err.msg, "limactl stop"));
	qmp_world_finish(&w);
}

/* QEMU does not tell how the load went; whether the guest goes on does. */
static void test_qemu_snapshot_load_and_nobody_knows(void **state)
{
	static const struct {
		const char *jobs, *status, *said;
		int code;
	} cases[] = {
		{ "[]", "\"running\", \"running\": true", "", 0 },
		{ "\"!busy\"", "\"running\", \"running\": true", "", 0 },
		{ "[]", "\"restore-vm\", \"running\": false", " system_reset cont", -EPROTO },
		{ "\"!busy\"", "\"restore-vm\", \"running\": false", " system_reset cont", -EREMOTEIO },
		{ "[]", "\"paused\", \"running\": false", " system_reset", -EPROTO },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		scoped_free char *status = xasprintf("{\"status\": %s}", cases[i].status);
		scoped_free char *want = xasprintf("query-jobs snapshot-load query-jobs query-status%s",
						   cases[i].said);
		struct qmp_world w;

		begin(&w);
		mock_qmp_answer(w.mock, "query-status", status);
		ask(&w, SNAPSHOT_APPLY);
		job_ends(&w, "snapshot-load", cases[i].jobs);
		assert_int_equal(w.err.code, cases[i].code);
		assert_int_equal(strstr(w.err.msg, "how far it came is not known") != NULL,
				 cases[i].code != 0);
		assert_said(&w, want);
		qmp_world_finish(&w);
	}
}

/* Nor does a save that nobody knows of make anyone look after the guest. */
static void test_qemu_snapshot_save_and_nobody_knows(void **state)
{
	struct qmp_world w;

	begin(&w);
	ask(&w, SNAPSHOT_CREATE);
	job_ends(&w, "snapshot-save", "[]");
	assert_int_equal(w.err.code, -EPROTO);
	assert_said(&w, "query-jobs snapshot-save query-jobs");
	qmp_world_finish(&w);
}

/* An earlier host agent's job: one that is over is dismissed, one that is not is
 * nobody's to disturb. */
static void test_qemu_snapshot_stale_job(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "query-jobs", JOB("running", ""));
	ask(&w, SNAPSHOT_CREATE);
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -EBUSY);
	mock_qmp_answer(w.mock, "query-jobs", JOB("concluded", ""));
	ask(&w, SNAPSHOT_CREATE);
	job_ends(&w, "snapshot-save", JOB("concluded", ""));
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "query-jobs query-jobs job-dismiss snapshot-save query-jobs job-dismiss");
	qmp_world_finish(&w);
}

static void test_qemu_snapshot_of_an_old_qemu(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "query-jobs", "\"!The command query-jobs has not been found\"");
	ask(&w, SNAPSHOT_CREATE);
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ENOTSUP);
	mock_qmp_answer(w.mock, "query-jobs", "[]");
	mock_qmp_answer(w.mock, "snapshot-save", "\"!The command snapshot-save has not been found\"");
	ask(&w, SNAPSHOT_CREATE);
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -EREMOTEIO);
	qmp_world_finish(&w);
}

static void test_qemu_snapshot_deadline(void **state)
{
	struct qemu_snapshot_options o;
	struct qmp_world w;

	begin(&w);
	o = options(&w, 50);
	w.talk = qemu_snapshot_change(&o, SNAPSHOT_CREATE, "before");
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ETIMEDOUT);
	assert_true(qmp_world_was_asked(&w, "snapshot-save"));
	qmp_world_finish(&w);
}

static void test_qemu_snapshot_qmp_goes_away(void **state)
{
	struct qmp_world w;

	begin(&w);
	ask(&w, SNAPSHOT_CREATE);
	qmp_world_until(&w, qmp_world_was_asked(&w, "query-jobs"));
	w.mock->silent = true;		/* as QEMU is while the job runs */
	qmp_world_until(&w, qmp_world_was_asked(&w, "snapshot-save"));
	mock_qmp_close(steal_ptr(&w.mock));
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ECONNRESET);
	assert_non_null(strstr(w.err.msg, "channel to QEMU is lost; `limactl snapshot list` shows"));
	ask(&w, SNAPSHOT_CREATE);	/* and where there was none from the start */
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ECONNRESET);
	qmp_world_finish(&w);
}

static void test_qemu_snapshot_is_forgotten(void **state)
{
	struct qmp_world w;

	begin(&w);
	ask(&w, SNAPSHOT_CREATE);
	qmp_world_until(&w, qmp_world_was_asked(&w, "snapshot-save"));
	qemu_snapshot_free(steal_ptr(&w.talk));	/* a reply is still to come */
	job_becomes(&w, "lima-snapshot", "concluded");
	qmp_world_finish(&w);
	assert_int_equal(w.n_done, 0);
}

static void test_qemu_snapshot_list(void **state)
{
	struct qemu_snapshot_options o;
	struct qmp_world w;

	begin(&w);
	o = options(&w, QMP_WORLD_GIVE_UP_MS);
	mock_qmp_answer(w.mock, "query-named-block-nodes",
			"[{\"node-name\": \"cidata\", \"drv\": \"raw\", \"image\": {}},"
			" {\"node-name\": \"disk\", \"drv\": \"qcow2\", \"image\": {\"snapshots\": ["
			"{\"id\": \"1\", \"name\": \"a\", \"date-sec\": 5, \"date-nsec\": 0, "
			"\"vm-clock-sec\": 51, \"vm-clock-nsec\": 200251700, \"vm-state-size\": 7},"
			"{\"id\": \"2\", \"name\": \"b\", \"date-sec\": 6, \"date-nsec\": 0, "
			"\"vm-clock-sec\": 0, \"vm-clock-nsec\": 0, \"vm-state-size\": 0}]}}]");
	w.talk = qemu_snapshot_list(&o);
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	assert_string_equal(tags, "a 51200 7;b 0 0;");
	mock_qmp_answer(w.mock, "query-named-block-nodes",
			"[{\"node-name\": \"disk\", \"drv\": \"raw\", \"image\": {}}]");
	w.n_done = 0;
	w.talk = qemu_snapshot_list(&o);
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ENOTSUP);
	qmp_world_finish(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_qemu_snapshot_create),
		cmocka_unit_test(test_qemu_snapshot_reply_after_the_end),
		cmocka_unit_test(test_qemu_snapshot_job_fails),
		cmocka_unit_test(test_qemu_snapshot_load_refused),
		cmocka_unit_test(test_qemu_snapshot_load_fails_half_way),
		cmocka_unit_test(test_qemu_snapshot_load_fails_on_the_disk),
		cmocka_unit_test(test_qemu_snapshot_load_fails_of_a_paused_guest),
		cmocka_unit_test(test_qemu_snapshot_load_fails_and_so_does_the_reset),
		cmocka_unit_test(test_qemu_snapshot_load_and_nobody_knows),
		cmocka_unit_test(test_qemu_snapshot_save_and_nobody_knows),
		cmocka_unit_test(test_qemu_snapshot_stale_job),
		cmocka_unit_test(test_qemu_snapshot_of_an_old_qemu),
		cmocka_unit_test(test_qemu_snapshot_deadline),
		cmocka_unit_test(test_qemu_snapshot_qmp_goes_away),
		cmocka_unit_test(test_qemu_snapshot_is_forgotten),
		cmocka_unit_test(test_qemu_snapshot_list),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
