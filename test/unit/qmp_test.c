/* The QMP client against a QEMU played in the same loop, and where a real one is
 * installed the same cases against `qemu-system-x86_64 -machine none`. */
#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "drivers/qemu/process.h"
#include "drivers/qemu/qmp.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "test/mock/qmp.h"

#define SCHEMA TEST_DIR "/mock/qmp-schema.json"

enum { GIVE_UP_MS = 20000, TICK_MS = 20 };

struct seen {			/* what the client told its owner */
	struct loop loop;
	uv_timer_t guard;
	struct mock_qmp *mock;	/* NULL: a real QEMU */
	struct process *process;
	struct qmp *qmp;
	bool ready, exited;
	struct qemu_version version;
	unsigned n_closed;
	struct error why;
	struct strv events;
	unsigned n_replies;
	int code[8];		/* of the replies, in order */
	char text[256];		/* of the last failed one */
	char status[32];
	bool close_in_reply, in_call;
};

static void on_ready(void *arg, const struct qemu_version *version)
{
	struct seen *s = arg;

	assert_false(s->ready);
	s->ready = true;
	s->version = *version;
}

static void on_event(void *arg, const char *name, json_t *data)
{
	strv_add(&((struct seen *)arg)->events, name);
}

static void on_closed(void *arg, const struct error *why)
{
	struct seen *s = arg;

	s->n_closed++;
	s->why = *why;
}

static void on_reply(void *arg, json_t *ret, const struct error *err)
{
	struct seen *s = arg;
	const char *status = json_string_value(json_object_get(ret, "status"));

	assert_false(s->in_call);
	assert_true(s->n_replies < ARRAY_SIZE(s->code));
	s->code[s->n_replies++] = err->code;
	if (err->code)
		snprintf(s->text, sizeof(s->text), "%.255s", err->msg);
	if (status)
		snprintf(s->status, sizeof(s->status), "%s", status);
	if (s->close_in_reply && s->qmp)
		qmp_close(steal_ptr(&s->qmp));
}

/* Ticks, so that a turn of the loop ends also when what it did was a timer's. */
static void on_guard(uv_timer_t *t)
{
	static_assert(GIVE_UP_MS % TICK_MS == 0, "whole ticks");
	t->data = (char *)t->data + TICK_MS;
	if ((uintptr_t)t->data >= GIVE_UP_MS)
		fail_msg("nothing happened for %d ms", GIVE_UP_MS);
}

static void open_client(struct seen *s, int fd, unsigned timeout_ms)
{
	const struct qmp_callbacks cb = { on_ready, on_event, on_closed, s };
	struct error err = ERROR_NONE;

	uv_timer_init(&s->loop.uv, &s->guard);
	s->guard.data = NULL;
	uv_timer_start(&s->guard, on_guard, TICK_MS, TICK_MS);
	uv_unref((uv_handle_t *)&s->guard);
	assert_int_equal(qmp_open(&s->loop, fd, timeout_ms, &cb, &s->qmp, &err), 0);
}

static void begin_mock(struct seen *s, unsigned timeout_ms)
{
	struct error err = ERROR_NONE;
	int fd;

	*s = (struct seen){ 0 };
	assert_int_equal(loop_init(&s->loop, &err), 0);
	s->mock = mock_qmp_new(&s->loop, SCHEMA, &fd);
	open_client(s, fd, timeout_ms);
}

#define run_until(s, cond)                             \
	while (!(cond))                                \
	uv_run(&(s)->loop.uv, UV_RUN_ONCE)

static void finish(struct seen *s)
{
	if (s->qmp)
		qmp_close(steal_ptr(&s->qmp));
	if (s->mock)
		mock_qmp_close(steal_ptr(&s->mock));
	if (s->process)
		process_close(steal_ptr(&s->process));
	uv_close((uv_handle_t *)&s->guard, NULL);
	assert_int_equal(loop_done(&s->loop), 0);
	strv_done(&s->events);
}

static void call(struct seen *s, const char *command, unsigned timeout_ms)
{
	s->in_call = true;
	qmp_call(s->qmp, command, NULL, timeout_ms, on_reply, s);
	s->in_call = false;
}

/* --- the same on both peers --------------------------------------------------- */

static void check_greeting_and_calls(struct seen *s)
{
	run_until(s, s->ready);
	assert_true(s->version.major >= 4);
	call(s, "query-status", 5000);
	call(s, "query-kvm", 5000);
	call(s, "no-such-command", 5000);
	run_until(s, s->n_replies == 3);
	assert_int_equal(s->code[0], 0);
	assert_string_equal(s->status, "running");
	assert_int_equal(s->code[1], 0);
	assert_int_equal(s->code[2], -EREMOTEIO);
	assert_non_null(strstr(s->text, "no-such-command"));
}

static void test_qmp_greeting_and_calls(void **state)
{
	struct seen s;

	begin_mock(&s, 5000);
	mock_qmp_greet(s.mock);
	check_greeting_and_calls(&s);
	assert_string_equal(s.mock->commands.items[0], "qmp_capabilities");
	finish(&s);
}

static void on_exit_seen(void *arg, const struct process_exit *how)
{
	((struct seen *)arg)->exited = true;
	assert_true(how->known);
	assert_int_equal(how->code, 0);
}

static void on_schema(void *arg, json_t *ret, const struct error *err)
{
	struct seen *s = arg;
	json_t *ours = json_load_file(SCHEMA, 0, NULL), *e;
	size_t i;

	assert_int_equal(err->code, 0);
	s->n_replies++;
	json_array_foreach(ours, i, e) {
		const char *name = json_string_value(json_object_get(e, "name"));
		const char *type = json_string_value(json_object_get(e, "meta-type"));

		if (streq(type, "command") || streq(type, "event")) {
			json_t *none = json_object();
			const char *wrong = mock_qmp_check(ret, type, name, none);

			/* "needs a member" is fine: events have some; unknown is not */
			assert_true(!wrong || !strstr(wrong, "not in the schema"));
			json_decref(none);
		}
	}
	json_decref(ours);
}

static void test_qmp_real_qemu(void **state)
{
	static const char *const argv[] = {
		"qemu-system-x86_64", "-nodefaults", "-machine", "none", "-display", "none",
		"-chardev", "socket,id=qmp,fd=3,server=off", "-mon", "chardev=qmp,mode=control", NULL,
	};
	struct seen s = { 0 };
	struct error err = ERROR_NONE;
	int fds[2];
	struct process_spec spec = { .argv = argv, .cwd = "/", .log_path = "/dev/null", .n_fds = 1 };

	scoped_free char *program = path_find_program(argv[0]);
	if (!program)
		skip();
	assert_int_equal(loop_init(&s.loop, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	spec.fds = &fds[1];
	assert_int_equal(process_spawn(&s.loop, &spec, on_exit_seen, &s, &s.process, &err), 0);
	close(fds[1]);
	open_client(&s, fds[0], GIVE_UP_MS);
	check_greeting_and_calls(&s);
	s.n_replies = 0;
	qmp_call(s.qmp, "query-qmp-schema", NULL, 10000, on_schema, &s);
	run_until(&s, s.n_replies == 1);
	call(&s, "stop", 5000);
	call(&s, "cont", 5000);
	run_until(&s, s.n_replies == 3 && s.events.len >= 2);
	assert_true(strv_contains(&s.events, "STOP"));
	assert_true(strv_contains(&s.events, "RESUME"));
	call(&s, "quit", 5000);
	run_until(&s, s.n_closed && s.exited);
	assert_true(strv_contains(&s.events, "SHUTDOWN"));
	assert_int_equal(s.n_closed, 1);
	finish(&s);
}

/* --- what only a mock does ------------------------------------------------------ */

static void test_qmp_reply_after_close(void **state)
{
	struct seen s;

	begin_mock(&s, 5000);
	mock_qmp_greet(s.mock);
	run_until(&s, s.ready);
	s.mock->silent = true;
	call(&s, "query-status", 5000);
	call(&s, "quit", 5000);
	run_until(&s, s.mock->commands.len == 3);
	mock_qmp_reply(s.mock, s.mock->last_id, json_object());
	qmp_close(steal_ptr(&s.qmp));
	assert_int_equal(s.n_replies, 2);
	assert_int_equal(s.code[0], -ECANCELED);
	assert_int_equal(s.code[1], -ECANCELED);
	run_until(&s, s.mock->closed);
	assert_int_equal(s.n_replies, 2);
	assert_int_equal(s.n_closed, 0);
	finish(&s);
}

static void test_qmp_close_in_its_own_callback(void **state)
{
	struct seen s;

	begin_mock(&s, 5000);
	mock_qmp_greet(s.mock);
	run_until(&s, s.ready);
	s.close_in_reply = true;
	call(&s, "query-status", 5000);
	call(&s, "query-kvm", 5000);
	run_until(&s, s.mock->closed);
	assert_int_equal(s.n_replies, 2);
	assert_int_equal(s.code[0], 0);
	assert_int_equal(s.code[1], -ECANCELED);
	finish(&s);
}

static void test_qmp_deadlines_pass_one_by_one(void **state)
{
	struct seen s;

	begin_mock(&s, 5000);
	mock_qmp_greet(s.mock);
	run_until(&s, s.ready);
	s.mock->silent = true;
	call(&s, "query-status", 5000);
	call(&s, "query-kvm", 30);
	run_until(&s, s.n_replies == 1);
	assert_int_equal(s.code[0], -ETIMEDOUT);
	assert_string_equal(s.text, "qmp: no reply to `query-kvm` in 30 ms");
	/* the late reply is nobody's, the connection goes on */
	mock_qmp_reply(s.mock, s.mock->last_id, json_object());
	s.mock->silent = false;
	call(&s, "stop", 5000);
	run_until(&s, s.n_replies == 2);
	assert_int_equal(s.code[1], 0);
	finish(&s);
}

static void test_qmp_error_carries_the_text(void **state)
{
	struct seen s;

	begin_mock(&s, 5000);
	mock_qmp_greet(s.mock);
	run_until(&s, s.ready);
	s.mock->error = "Bus 'pcie.0' does not support hotplugging";
	call(&s, "cont", 5000);
	run_until(&s, s.n_replies == 1);
	assert_int_equal(s.code[0], -EREMOTEIO);
	assert_string_equal(s.text, "qmp `cont`: Bus 'pcie.0' does not support hotplugging");
	finish(&s);
}

static void test_qmp_no_greeting(void **state)
{
	struct seen s;

	begin_mock(&s, 30);
	call(&s, "query-status", 5000);
	run_until(&s, s.n_replies == 1);
	assert_int_equal(s.code[0], -ENOTCONN);
	run_until(&s, s.n_closed);
	assert_int_equal(s.why.code, -ETIMEDOUT);
	assert_false(s.ready);
	finish(&s);
}

static void test_qmp_peer_goes_away(void **state)
{
	struct seen s;

	begin_mock(&s, 5000);
	mock_qmp_greet(s.mock);
	run_until(&s, s.ready);
	s.mock->silent = true;
	call(&s, "query-status", 5000);
	run_until(&s, s.mock->commands.len == 2);
	mock_qmp_close(steal_ptr(&s.mock));
	run_until(&s, s.n_closed);
	assert_int_equal(s.code[0], -ECONNRESET);
	assert_int_equal(s.n_closed, 1);
	call(&s, "quit", 5000);
	run_until(&s, s.n_replies == 2);
	assert_int_equal(s.code[1], -ENOTCONN);
	finish(&s);
}

static void test_qmp_events_in_pieces(void **state)
{
	struct seen s;

	begin_mock(&s, 5000);
	mock_qmp_greet(s.mock);
	run_until(&s, s.ready);
	mock_qmp_event(s.mock, "VSERPORT_CHANGE", json_pack("{s:s, s:b}", "id", "agent-port", "open", 1));
	mock_qmp_send(s.mock, "{\"event\": \"STOP\", \"timest");
	run_until(&s, s.events.len == 1);
	mock_qmp_send(s.mock, "amp\": {}}\n\n{\"event\": \"RESUME\"}\r\n");
	run_until(&s, s.events.len == 3);
	assert_string_equal(s.events.items[1], "STOP");
	assert_string_equal(s.events.items[2], "RESUME");
	finish(&s);
}

static void test_qmp_not_qmp(void **state)
{
	static const char *const lines[] = {
		"HTTP/1.1 400 Bad Request\r\n", "[]\n", "{}\n", "{\"QMP\": {}}\n", "\xff\xfe\n",
		"{\"QMP\": {\"version\": {\"qemu\": {\"major\": -1, \"minor\": 0, \"micro\": 0}}}}\n",
		"{\"event\": \"STOP\"}\n", "{\"a\": \"\\u0000\"}\n",
	};

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		struct seen s;

		begin_mock(&s, 5000);
		mock_qmp_send(s.mock, lines[i]);
		run_until(&s, s.n_closed);
		assert_int_equal(s.why.code, -EPROTO);
		assert_false(s.ready);
		finish(&s);
	}
}

static void test_qmp_endless_line_is_bounded(void **state)
{
	char *chunk = xmalloc(65536);
	struct seen s;

	memset(chunk, 'x', 65535);
	chunk[65535] = 0;
	begin_mock(&s, 5000);
	mock_qmp_greet(s.mock);
	run_until(&s, s.ready);
	for (int i = 0; i < 40; i++)
		mock_qmp_send(s.mock, chunk);
	free(chunk);
	run_until(&s, s.n_closed);
	assert_int_equal(s.why.code, -EMSGSIZE);
	finish(&s);
}

static void test_qmp_too_many_calls(void **state)
{
	struct seen s;

	begin_mock(&s, 5000);
	mock_qmp_greet(s.mock);
	run_until(&s, s.ready);
	s.mock->silent = true;
	for (int i = 0; i < QMP_PENDING_MAX; i++)
		qmp_call(s.qmp, "query-status", NULL, 5000, NULL, NULL);
	call(&s, "query-status", 5000);
	run_until(&s, s.n_replies == 1);
	assert_int_equal(s.code[0], -EBUSY);
	finish(&s);
}

static void test_mock_refuses_what_qemu_would(void **state)
{
	json_t *schema = json_load_file(SCHEMA, 0, NULL);
	json_t *wrong = json_pack("{s:i}", "delay", 1), *none = json_object();

	assert_non_null(mock_qmp_check(schema, "command", "system_powerdwn", none));
	assert_non_null(mock_qmp_check(schema, "command", "quit", wrong));
	assert_non_null(mock_qmp_check(schema, "event", "SHUTDOWN", none));
	assert_null(mock_qmp_check(schema, "command", "quit", none));
	json_decref(wrong);
	json_decref(none);
	json_decref(schema);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_qmp_greeting_and_calls),
		cmocka_unit_test(test_qmp_real_qemu),
		cmocka_unit_test(test_qmp_reply_after_close),
		cmocka_unit_test(test_qmp_close_in_its_own_callback),
		cmocka_unit_test(test_qmp_deadlines_pass_one_by_one),
		cmocka_unit_test(test_qmp_error_carries_the_text),
		cmocka_unit_test(test_qmp_no_greeting),
		cmocka_unit_test(test_qmp_peer_goes_away),
		cmocka_unit_test(test_qmp_events_in_pieces),
		cmocka_unit_test(test_qmp_not_qmp),
		cmocka_unit_test(test_qmp_endless_line_is_bounded),
		cmocka_unit_test(test_qmp_too_many_calls),
		cmocka_unit_test(test_mock_refuses_what_qemu_would),
	};

	signal(SIGPIPE, SIG_IGN);	/* as the host agent does */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
