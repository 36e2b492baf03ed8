/* Changes to a running QEMU, against one played in the same loop: which commands
 * in which order, and that each way it can go wrong ends in words. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "drivers/qemu/change.h"
#include "lib/base/mem.h"
#include "test/mock/qmp.h"

#define SCHEMA TEST_DIR "/mock/qmp-schema.json"
#define PORT_ONLY "[{\"name\": \"vsock-port\", \"type\": \"child<pcie-root-port>\"}]"
#define PLUGGED                                                                \
	"[{\"name\": \"vsock\", \"type\": \"child<vhost-user-vsock-pci>\"},"   \
	" {\"name\": \"vsock-port\", \"type\": \"child<pcie-root-port>\"}]"
#define CHARDEVS                                                               \
	"[{\"label\": \"agent\"}, {\"label\": \"vsock0\"}, {\"label\": \"vsock7\"},"    \
	" {\"label\": \"vsock\"}, {\"label\": \"vsockx\"}, {\"label\": \"vsock7x\"}]"

enum { GIVE_UP_MS = 20000, TICK_MS = 20 };

struct world {
	struct loop loop;
	uv_timer_t guard;
	struct mock_qmp *mock;
	struct qmp *qmp;
	struct change *change;
	bool ready;
	unsigned n_done;
	struct error err;
};

/* Ticks, so that a turn of the loop ends also when what it did was a timer's. */
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

	if (w->change)
		change_event(w->change, name, data);
}

static void on_closed(void *arg, const struct error *why)
{
	struct world *w = arg;

	if (w->change)
		change_qmp_lost(w->change);
	qmp_close(steal_ptr(&w->qmp));
}

static void on_done(void *arg, const struct error *err)
{
	struct world *w = arg;

	w->n_done++;
	w->err = *err;
	change_free(steal_ptr(&w->change));
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
	mock_qmp_answer(w->mock, "query-chardev", CHARDEVS);
	run_until(w, w->ready);
}

static void finish(struct world *w)
{
	change_free(steal_ptr(&w->change));
	if (w->qmp)
		qmp_close(steal_ptr(&w->qmp));
	if (w->mock)
		mock_qmp_close(steal_ptr(&w->mock));
	uv_close((uv_handle_t *)&w->guard, NULL);
	assert_int_equal(loop_done(&w->loop), 0);
}

static void ask(struct world *w, enum change_kind kind, unsigned guest_ms)
{
	const struct change_options o = { .loop = &w->loop, .qmp = w->qmp, .ssh_port = 43022,
					  .vsock_socket = "vsock.sock", .guest_ms = guest_ms };

	w->n_done = 0;
	w->change = change_begin(&o, kind, on_done, w);
	assert_int_equal(w->n_done, 0);
}

static void do_it(struct world *w, enum change_kind kind)
{
	ask(w, kind, 0);
	run_until(w, w->n_done);
}

/* The commands since qmp_capabilities, "name args; …". */
static void assert_said(struct world *w, const char *want)
{
	scoped_buf struct buf got = { 0 };

	for (size_t i = 1; i < w->mock->commands.len; i++)
		buf_addf(&got, "%s%s %s", i > 1 ? "; " : "", w->mock->commands.items[i],
			   w->mock->arguments.items[i]);
	assert_string_equal(buf_str(&got), want);
}

static void send_device_event(struct world *w, const char *name, const char *device)
{
	mock_qmp_event(w->mock, name, json_pack("{s:s, s:s}", "device", device, "path",
						"/machine/peripheral/vsock"));
}

static bool was_asked(struct world *w, const char *command)
{
	return streq(w->mock->commands.items[w->mock->commands.len - 1], command);
}

/* --- tests ----------------------------------------------------------------------- */

static void test_change_vsock_in(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PORT_ONLY);
	do_it(&w, CHANGE_VSOCK_IN);
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "qom-list {\"path\":\"/machine/peripheral\"}; query-chardev ; "
		    "chardev-remove {\"id\":\"vsock0\"}; chardev-remove {\"id\":\"vsock7\"}; "
		    "chardev-add {\"backend\":{\"data\":{\"addr\":{\"data\":{\"path\":\"vsock.sock\"},"
		    "\"type\":\"unix\"},\"server\":false},\"type\":\"socket\"},\"id\":\"vsock8\"}; "
		    "device_add {\"bus\":\"vsock-port\",\"chardev\":\"vsock8\",\"driver\":"
		    "\"vhost-user-vsock-pci\",\"id\":\"vsock\"}");
	finish(&w);
}

static void test_change_vsock_in_where_it_cannot_be(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", "[]");
	do_it(&w, CHANGE_VSOCK_IN);
	assert_int_equal(w.err.code, -ENOTSUP);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	do_it(&w, CHANGE_VSOCK_IN);
	assert_int_equal(w.err.code, -EEXIST);
	finish(&w);
}

/* Nothing of a failed one stays behind. */
static void test_change_vsock_in_refused_by_qemu(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PORT_ONLY);
	mock_qmp_answer(w.mock, "device_add", "\"!vhost_backend_init failed: Protocol error\"");
	do_it(&w, CHANGE_VSOCK_IN);
	assert_int_equal(w.err.code, -EREMOTEIO);
	assert_non_null(strstr(w.err.msg, "vhost_backend_init failed"));
	assert_string_equal(w.mock->commands.items[w.mock->commands.len - 1], "chardev-remove");
	assert_string_equal(w.mock->arguments.items[w.mock->arguments.len - 1],
			    "{\"id\":\"vsock8\"}");
	finish(&w);
}

static void test_change_vsock_out(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	run_until(&w, was_asked(&w, "device_del"));
	send_device_event(&w, "DEVICE_DELETED", "other");
	send_device_event(&w, "DEVICE_DELETED", "vsock");
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "qom-list {\"path\":\"/machine/peripheral\"}; device_del {\"id\":\"vsock\"}; "
		    "query-chardev ; chardev-remove {\"id\":\"vsock0\"}; "
		    "chardev-remove {\"id\":\"vsock7\"}");
	finish(&w);
}

/* QEMU may tell of the end before it answers the command that asked for it. */
static void test_change_vsock_out_told_before_the_reply(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	run_until(&w, was_asked(&w, "qom-list"));
	w.mock->silent = true;
	run_until(&w, was_asked(&w, "device_del"));
	send_device_event(&w, "DEVICE_DELETED", "vsock");
	w.mock->silent = false;
	mock_qmp_reply(w.mock, w.mock->last_id, json_object());
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	assert_string_equal(w.mock->commands.items[w.mock->commands.len - 1], "chardev-remove");
	finish(&w);
}

static void test_change_vsock_out_of_none(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", "[]");
	mock_qmp_answer(w.mock, "query-chardev", "[]");
	do_it(&w, CHANGE_VSOCK_OUT);
	assert_int_equal(w.err.code, 0);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);	/* it went in between */
	mock_qmp_answer(w.mock, "device_del", "\"!Device 'vsock' not found\"");
	do_it(&w, CHANGE_VSOCK_OUT);
	assert_int_equal(w.err.code, 0);
	finish(&w);
}

static void test_change_vsock_out_guest_never_answers(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 30);
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ETIMEDOUT);
	assert_string_equal(w.err.msg, "the guest did not let go of its vsock device in 1 s");
	/* the second one asks again: QEMU remembers the first, and now the guest obeys */
	mock_qmp_answer(w.mock, "device_del",
			"\"!Device vsock is already in the process of unplug\"");
	ask(&w, CHANGE_VSOCK_OUT, 0);
	run_until(&w, was_asked(&w, "qom-list"));
	run_until(&w, was_asked(&w, "device_del"));
	send_device_event(&w, "DEVICE_DELETED", "vsock");
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	finish(&w);
}

static void test_change_vsock_out_guest_refuses(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	run_until(&w, was_asked(&w, "device_del"));
	send_device_event(&w, "DEVICE_UNPLUG_GUEST_ERROR", "vsock");
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -EREMOTEIO);
	finish(&w);
}

static void test_change_qmp_goes_away(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	run_until(&w, was_asked(&w, "device_del"));
	mock_qmp_close(steal_ptr(&w.mock));
	run_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ECONNRESET);
	do_it(&w, CHANGE_SSH_ON);	/* and where there was none from the start */
	assert_int_equal(w.err.code, -ECONNRESET);
	finish(&w);
}

static void test_change_is_forgotten(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	run_until(&w, was_asked(&w, "qom-list"));
	change_free(steal_ptr(&w.change));	/* a reply is still to come */
	run_until(&w, w.mock->commands.len >= 2);
	finish(&w);
	assert_int_equal(w.n_done, 0);
}

static void test_change_ssh_forward(void **state)
{
	struct world w;

	begin(&w);
	mock_qmp_answer(w.mock, "human-monitor-command", "\"\"");
	do_it(&w, CHANGE_SSH_ON);
	assert_int_equal(w.err.code, 0);
	mock_qmp_answer(w.mock, "human-monitor-command",
			"\"host forwarding rule for tcp:127.0.0.1:43022 not found\\r\\n\"");
	do_it(&w, CHANGE_SSH_OFF);
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "human-monitor-command {\"command-line\":\"hostfwd_add net0 "
		    "tcp:127.0.0.1:43022-:22\"}; human-monitor-command {\"command-line\":"
		    "\"hostfwd_remove net0 tcp:127.0.0.1:43022\"}");
	mock_qmp_answer(w.mock, "human-monitor-command",
			"\"could not set up host forwarding rule 'tcp:127.0.0.1:43022-:22'\\r\\n\"");
	do_it(&w, CHANGE_SSH_ON);
	assert_int_equal(w.err.code, -EADDRINUSE);
	assert_non_null(strstr(w.err.msg, "could not set up"));
	finish(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_change_vsock_in),
		cmocka_unit_test(test_change_vsock_in_where_it_cannot_be),
		cmocka_unit_test(test_change_vsock_in_refused_by_qemu),
		cmocka_unit_test(test_change_vsock_out),
		cmocka_unit_test(test_change_vsock_out_told_before_the_reply),
		cmocka_unit_test(test_change_vsock_out_of_none),
		cmocka_unit_test(test_change_vsock_out_guest_never_answers),
		cmocka_unit_test(test_change_vsock_out_guest_refuses),
		cmocka_unit_test(test_change_qmp_goes_away),
		cmocka_unit_test(test_change_is_forgotten),
		cmocka_unit_test(test_change_ssh_forward),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
