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
#include "test/mock/qmp_world.h"

#define PORT_ONLY "[{\"name\": \"vsock-port\", \"type\": \"child<pcie-root-port>\"}]"
#define PLUGGED                                                                \
	"[{\"name\": \"vsock\", \"type\": \"child<vhost-user-vsock-pci>\"},"   \
	" {\"name\": \"vsock-port\", \"type\": \"child<pcie-root-port>\"}]"
#define CHARDEVS                                                               \
	"[{\"label\": \"agent\"}, {\"label\": \"vsock0\"}, {\"label\": \"vsock7\"},"    \
	" {\"label\": \"vsock\"}, {\"label\": \"vsockx\"}, {\"label\": \"vsock7x\"}]"

static void pass_event(void *talk, const char *name, json_t *data)
{
	change_event(talk, name, data);
}

static void pass_loss(void *talk)
{
	change_qmp_lost(talk);
}

static void forget(void *talk)
{
	change_free(talk);
}

static void begin(struct qmp_world *w)
{
	static const struct qmp_world_talk talk_is = { pass_event, pass_loss, forget };

	qmp_world_begin(w, &talk_is);
	mock_qmp_answer(w->mock, "query-chardev", CHARDEVS);
}

static void ask(struct qmp_world *w, enum change_kind kind, unsigned guest_ms)
{
	const struct change_options o = { .loop = &w->loop, .qmp = w->qmp, .ssh_port = 43022,
					  .vsock_socket = "vsock.sock", .guest_ms = guest_ms };

	w->n_done = 0;
	w->talk = change_begin(&o, kind, qmp_world_is_done, w);
	assert_int_equal(w->n_done, 0);
}

static void do_it(struct qmp_world *w, enum change_kind kind)
{
	ask(w, kind, 0);
	qmp_world_until(w, w->n_done);
}

static void assert_said(struct qmp_world *w, const char *want)
{
	scoped_free char *got = qmp_world_said(w, true);

	assert_string_equal(got, want);
}

static void send_device_event(struct qmp_world *w, const char *name, const char *device)
{
	mock_qmp_event(w->mock, name, json_pack("{s:s, s:s}", "device", device, "path",
						"/machine/peripheral/vsock"));
}

/* --- tests ----------------------------------------------------------------------- */

static void test_change_vsock_in(void **state)
{
	struct qmp_world w;

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
	qmp_world_finish(&w);
}

static void test_change_vsock_in_where_it_cannot_be(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", "[]");
	do_it(&w, CHANGE_VSOCK_IN);
	assert_int_equal(w.err.code, -ENOTSUP);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	do_it(&w, CHANGE_VSOCK_IN);
	assert_int_equal(w.err.code, -EEXIST);
	qmp_world_finish(&w);
}

/* Nothing of a failed one stays behind. */
static void test_change_vsock_in_refused_by_qemu(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PORT_ONLY);
	mock_qmp_answer(w.mock, "device_add", "\"!vhost_backend_init failed: Protocol error\"");
	do_it(&w, CHANGE_VSOCK_IN);
	assert_int_equal(w.err.code, -EREMOTEIO);
	assert_non_null(strstr(w.err.msg, "vhost_backend_init failed"));
	assert_string_equal(w.mock->commands.items[w.mock->commands.len - 1], "chardev-remove");
	assert_string_equal(w.mock->arguments.items[w.mock->arguments.len - 1],
			    "{\"id\":\"vsock8\"}");
	qmp_world_finish(&w);
}

static void test_change_vsock_out(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	qmp_world_until(&w, qmp_world_was_asked(&w, "device_del"));
	send_device_event(&w, "DEVICE_DELETED", "other");
	send_device_event(&w, "DEVICE_DELETED", "vsock");
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	assert_said(&w, "qom-list {\"path\":\"/machine/peripheral\"}; device_del {\"id\":\"vsock\"}; "
		    "query-chardev ; chardev-remove {\"id\":\"vsock0\"}; "
		    "chardev-remove {\"id\":\"vsock7\"}");
	qmp_world_finish(&w);
}

/* QEMU may tell of the end before it answers the command that asked for it. */
static void test_change_vsock_out_told_before_the_reply(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	qmp_world_until(&w, qmp_world_was_asked(&w, "qom-list"));
	w.mock->silent = true;
	qmp_world_until(&w, qmp_world_was_asked(&w, "device_del"));
	send_device_event(&w, "DEVICE_DELETED", "vsock");
	w.mock->silent = false;
	mock_qmp_reply(w.mock, w.mock->last_id, json_object());
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	assert_string_equal(w.mock->commands.items[w.mock->commands.len - 1], "chardev-remove");
	qmp_world_finish(&w);
}

static void test_change_vsock_out_of_none(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", "[]");
	mock_qmp_answer(w.mock, "query-chardev", "[]");
	do_it(&w, CHANGE_VSOCK_OUT);
	assert_int_equal(w.err.code, 0);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);	/* it went in between */
	mock_qmp_answer(w.mock, "device_del", "\"!Device 'vsock' not found\"");
	do_it(&w, CHANGE_VSOCK_OUT);
	assert_int_equal(w.err.code, 0);
	qmp_world_finish(&w);
}

static void test_change_vsock_out_guest_never_answers(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 30);
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ETIMEDOUT);
	assert_string_equal(w.err.msg, "the guest did not let go of its vsock device in 1 s");
	/* the second one asks again: QEMU remembers the first, and now the guest obeys */
	mock_qmp_answer(w.mock, "device_del",
			"\"!Device vsock is already in the process of unplug\"");
	ask(&w, CHANGE_VSOCK_OUT, 0);
	qmp_world_until(&w, qmp_world_was_asked(&w, "qom-list"));
	qmp_world_until(&w, qmp_world_was_asked(&w, "device_del"));
	send_device_event(&w, "DEVICE_DELETED", "vsock");
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, 0);
	qmp_world_finish(&w);
}

static void test_change_vsock_out_guest_refuses(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	qmp_world_until(&w, qmp_world_was_asked(&w, "device_del"));
	send_device_event(&w, "DEVICE_UNPLUG_GUEST_ERROR", "vsock");
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -EREMOTEIO);
	qmp_world_finish(&w);
}

static void test_change_qmp_goes_away(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	qmp_world_until(&w, qmp_world_was_asked(&w, "device_del"));
	mock_qmp_close(steal_ptr(&w.mock));
	qmp_world_until(&w, w.n_done);
	assert_int_equal(w.err.code, -ECONNRESET);
	do_it(&w, CHANGE_SSH_ON);	/* and where there was none from the start */
	assert_int_equal(w.err.code, -ECONNRESET);
	qmp_world_finish(&w);
}

static void test_change_is_forgotten(void **state)
{
	struct qmp_world w;

	begin(&w);
	mock_qmp_answer(w.mock, "qom-list", PLUGGED);
	ask(&w, CHANGE_VSOCK_OUT, 0);
	qmp_world_until(&w, qmp_world_was_asked(&w, "qom-list"));
	change_free(steal_ptr(&w.talk));	/* a reply is still to come */
	qmp_world_until(&w, w.mock->commands.len >= 2);
	qmp_world_finish(&w);
	assert_int_equal(w.n_done, 0);
}

static void test_change_ssh_forward(void **state)
{
	struct qmp_world w;

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
	qmp_world_finish(&w);
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
