#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cmocka.h>

#include "hostagent/events.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"

static int pipe_fds[2];
static struct events *events;
static char line[65536];

static int setup(void **state)
{
	events = pipe(pipe_fds) == 0 ? events_new(pipe_fds[1]) : NULL;
	return events ? 0 : -1;
}

static int teardown(void **state)
{
	events_free(events);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	return 0;
}

/* The next line from the pipe, parsed. */
static json_t *next(struct event_view *view)
{
	struct error err = ERROR_NONE;
	ssize_t n = read(pipe_fds[0], line, sizeof(line) - 1);
	json_t *root = NULL;

	assert_true(n > 0 && line[n - 1] == '\n');
	line[n - 1] = 0;
	assert_null(strchr(line, '\n'));	/* one event, one line */
	assert_int_equal(event_parse(line, (size_t)n - 1, view, &root, &err), 0);
	return root;
}

static void test_events_life(void **state)
{
	struct event_view v;

	events_set_ssh_port(events, 43022);
	events_booting(events);
	json_t *r = next(&v);
	assert_int_equal(v.ssh_port, 43022);
	assert_false(v.running || v.degraded || v.exiting);
	assert_null(v.step.name);
	assert_null(v.port.type);
	json_decref(r);

	events_running(events);
	r = next(&v);
	assert_true(v.running);
	assert_non_null(strstr(line, "\"status\":{\"running\":true,\"sshLocalPort\":43022}"));
	json_decref(r);

	events_degraded(events, "no agent");
	r = next(&v);
	assert_true(v.running && v.degraded);
	assert_string_equal(v.first_error, "no agent");
	json_decref(r);

	events_exiting(events, NULL);
	r = next(&v);
	assert_true(v.exiting && !v.running && !v.degraded);
	json_decref(r);
}

static void test_events_step_and_port_are_not_repeated(void **state)
{
	struct forward_event ev = { .type = FORWARD_FAILED, .protocol = "tcp",
				    .guest_addr = "127.0.0.1:80", .host_addr = "127.0.0.1:80",
				    .error = "permission denied" };
	struct event_view v;
	json_t *r;

	events_step(events, "qemu", STEP_DONE, 812, "tcg, q35, pid 7", "");
	r = next(&v);
	assert_string_equal(v.step.name, "qemu");
	assert_int_equal(v.step.state, STEP_DONE);
	assert_int_equal(v.step.ms, 812);
	assert_string_equal(v.step.detail, "tcg, q35, pid 7");
	assert_string_equal(v.step.error, "");
	json_decref(r);
	events_port(events, &ev);
	r = next(&v);
	assert_null(v.step.name);
	assert_string_equal(v.port.type, "failed");
	assert_string_equal(v.port.guest_addr, "127.0.0.1:80");
	assert_string_equal(v.port.error, "permission denied");
	json_decref(r);
	events_notice(events, "using TCG");
	r = next(&v);
	assert_null(v.port.type);
	assert_string_equal(v.notice, "using TCG");
	assert_int_equal(v.delay_ms, 0);
	json_decref(r);
	events_delay(events, "a snapshot", 1200);
	r = next(&v);
	assert_string_equal(v.notice, "a snapshot");
	assert_int_equal(v.delay_ms, 1200);
	json_decref(r);
	events_booting(events);
	r = next(&v);
	assert_int_equal(v.delay_ms, 0);
	json_decref(r);
}

/* What a guest can put into a text must neither break the line nor reach a
 * terminal as it is. */
static void test_events_hostile_text(void **state)
{
	static char huge[100000];
	struct event_view v;
	json_t *r;

	events_step(events, "provision", STEP_PROGRESS, 1, "a\nb\x1b[31m\xff\"\\", "");
	r = next(&v);
	assert_null(strchr(v.step.detail, '\x1b'));
	assert_null(strchr(v.step.detail, '\n'));
	json_decref(r);
	memset(huge, 'x', sizeof(huge) - 1);
	events_notice(events, huge);
	r = next(&v);
	assert_true(strlen(v.notice) < 4096);
	json_decref(r);
}

static void test_events_full_pipe_does_not_block(void **state)
{
	for (int i = 0; i < 5000; i++)
		events_notice(events, "nobody reads this, and the loop must go on all the same");
}

/* No room for more than @bytes; a write that begins below is cut there, as by a full
 * disk (setrlimit(2)). */
static void set_room(rlim_t bytes)
{
	struct rlimit r;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &r), 0);
	r.rlim_cur = MIN(bytes, r.rlim_max);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &r), 0);
}

/* Half a line stays alone, however often there is no room. */
static void test_events_full_disk(void **state)
{
	char path[] = "/tmp/lima-events-XXXXXX";
	int fd = mkostemp(path, O_APPEND);
	struct events *e = events_new(fd);
	scoped_strv struct strv lines = { 0 };
	struct error err = ERROR_NONE;
	struct event_view v;
	struct buf b = { 0 };
	json_t *root;

	signal(SIGXFSZ, SIG_IGN);
	events_notice(e, "first");
	for (unsigned room = 1; room < 30; room++) {
		set_room((rlim_t)lseek(fd, 0, SEEK_END) + room);
		events_notice(e, "torn");
		events_notice(e, "nothing");
		set_room(RLIM_INFINITY);
		if (room % 3)
			continue;	/* torn again */
		events_notice(e, "whole");
	}
	events_free(e);
	assert_int_equal(path_read_file(path, 65536, &b, &err), 0);
	unlink(path);
	close(fd);
	strv_split(&lines, buf_str(&b), "\n");
	buf_done(&b);
	for (size_t i = 0, notices = 0; i < lines.len; i++) {
		if (event_parse(lines.items[i], strlen(lines.items[i]), &v, &root, &err) < 0) {
			assert_true(strlen(lines.items[i]) < 30);
			continue;
		}
		assert_string_equal(v.notice, notices++ ? "whole" : "first");
		assert_true(i + 1 < lines.len || notices == 1 + 29 / 3);
		json_decref(root);
	}
}

static void count(void *arg, const char *text)
{
	unsigned *n = arg;

	assert_null(strchr(text, '\n'));
	(*n)++;
}

static void test_events_subscribers(void **state)
{
	unsigned a = 0, b = 0;
	unsigned ida = events_subscribe(events, count, &a);
	unsigned idb = events_subscribe(events, count, &b);

	assert_int_equal(a, 1);		/* the current status, at once */
	events_running(events);
	events_unsubscribe(events, ida);
	events_notice(events, "x");
	assert_int_equal(a, 2);
	assert_int_equal(b, 3);
	events_unsubscribe(events, idb);
}

/* Lines as Lima's host agent writes them (reference/hostagent.md §6). */
static void test_events_reads_lima(void **state)
{
	static const char lima[] =
		"{\"time\":\"2026-08-21T10:00:00.123456789+09:00\",\"status\":{\"running\":true,"
		"\"degraded\":true,\"errors\":[\"failed to satisfy the final requirement 1 of 1\"],"
		"\"sshLocalPort\":60022,\"cloudInitProgress\":{\"logLine\":\"x\",\"active\":true},"
		"\"portForward\":{\"type\":\"not-forwarding\",\"protocol\":\"tcp\","
		"\"guestAddr\":\"0.0.0.0:22\"},\"vsock\":{\"type\":\"skipped\"}}}";
	struct error err = ERROR_NONE;
	struct event_view v;
	json_t *root;

	assert_int_equal(event_parse(lima, sizeof(lima) - 1, &v, &root, &err), 0);
	assert_true(v.running && v.degraded && !v.exiting);
	assert_int_equal(v.ssh_port, 60022);
	assert_string_equal(v.first_error, "failed to satisfy the final requirement 1 of 1");
	assert_string_equal(v.port.type, "not-forwarding");
	assert_string_equal(v.port.host_addr, "");
	json_decref(root);
}

static void test_events_bad_lines(void **state)
{
	static const char *const bad[] = { "", "{", "[]", "{}", "{\"status\":3}", "null",
					   "{\"status\":{}} x", "{\"status\":{\"running\":" };
	struct error err = ERROR_NONE;
	struct event_view v;
	json_t *root = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_true(event_parse(bad[i], strlen(bad[i]), &v, &root, &err) < 0);
		assert_null(root);
	}
	/* wrong types inside are as good as absent */
	const char odd[] = "{\"time\":7,\"status\":{\"running\":1,\"errors\":\"x\","
			   "\"sshLocalPort\":70000,\"step\":[],\"portForward\":null}}";
	assert_int_equal(event_parse(odd, sizeof(odd) - 1, &v, &root, &err), 0);
	assert_false(v.running);
	assert_int_equal(v.ssh_port, 0);
	assert_null(v.first_error);
	json_decref(root);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_events_life, setup, teardown),
		cmocka_unit_test_setup_teardown(test_events_step_and_port_are_not_repeated, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_events_hostile_text, setup, teardown),
		cmocka_unit_test_setup_teardown(test_events_full_pipe_does_not_block, setup,
						teardown),
		cmocka_unit_test(test_events_full_disk),
		cmocka_unit_test_setup_teardown(test_events_subscribers, setup, teardown),
		cmocka_unit_test(test_events_reads_lima),
		cmocka_unit_test(test_events_bad_lines),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
