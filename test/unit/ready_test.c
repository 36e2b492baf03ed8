#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "hostagent/banner.h"
#include "hostagent/forward/unix.h"
#include "hostagent/ready.h"
#include "hostagent/ssh_master.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

static char dir[] = "/tmp/lima-ready-test-XXXXXX";
static struct loop loop;
static struct ssh_target target;
static bool ended;
static struct error outcome;

static void touch(const char *name, bool there)
{
	scoped_free char *path = xasprintf("%s/%s", dir, name);

	if (there)
		assert_int_equal(path_write_file(path, "", 0, 0600, &outcome), 0);
	else
		unlink(path);
}

static bool exists(const char *name)
{
	scoped_free char *path = xasprintf("%s/%s", dir, name);

	return path_exists(path);
}

static void on_tick(uv_timer_t *t)
{
}

/* Turns the loop until *@flag or 10 s. */
static void run_until(const bool *flag)
{
	uint64_t until = clock_mono_ms() + 10000;
	uv_timer_t tick;	/* so that a turn never waits for ever */

	uv_timer_init(&loop.uv, &tick);
	uv_timer_start(&tick, on_tick, 50, 50);
	while (!*flag && clock_mono_ms() < until)
		uv_run(&loop.uv, UV_RUN_ONCE);
	uv_close((uv_handle_t *)&tick, NULL);
	uv_run(&loop.uv, UV_RUN_NOWAIT);
	assert_true(*flag);
}

static int setup(void **state)
{
	ended = false;
	outcome = ERROR_NONE;
	setenv("SSH", MOCK_SSH, 1);
	setenv("FAKE_SSH_DIR", dir, 1);
	target = (struct ssh_target){ .instance = (char *)"vm", .dir = dir, .user = (char *)"u",
				      .host = (char *)"127.0.0.1", .port = 1 };
	return loop_init(&loop, &outcome);
}

static int teardown(void **state)
{
	loop_run(&loop);
	return loop_done(&loop) == 0 ? 0 : -1;
}

/* --- pure ---------------------------------------------------------------- */

static void test_ready_interpreter(void **state)
{
	static const struct {
		const char *script, *want;
	} rows[] = {
		{ "#!/bin/bash\necho", "/bin/bash" },
		{ "#! /usr/bin/env python3 \nx", "/usr/bin/env python3" },
		{ "#!/bin/sh -eu\r\nx", "/bin/sh -eu" },
		{ "#!\n", NULL },
		{ "echo\n", NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *got = ready_interpreter(rows[i].script);

		if (rows[i].want)
			assert_string_equal(got, rows[i].want);
		else
			assert_null(got);
	}
}

static void test_ready_param(void **state)
{
	struct config_kv kv = { .key = (char *)"Greeting", .value = (char *)"it's $HOME" };
	struct config_map param = { .items = &kv, .len = 1 };
	scoped_free char *sh = ready_script_text("#!/bin/bash -e\necho\n", &param);
	scoped_free char *env = ready_script_text("#!/usr/bin/env bash\necho\n", &param);
	scoped_free char *py = ready_script_text("#!/usr/bin/python3\nprint()\n", &param);

	assert_string_equal(sh, "#!/bin/bash -e\nexport PARAM_Greeting='it'\\''s $HOME'\necho\n");
	assert_string_equal(env, "#!/usr/bin/env bash\nexport PARAM_Greeting='it'\\''s $HOME'\necho\n");
	assert_string_equal(py, "#!/usr/bin/python3\nprint()\n");
}

/* --- probes through the mock --------------------------------------------- */

static void on_done(void *arg, const struct error *err)
{
	outcome = *err;
	ended = true;
}

static struct ready_script script(const char *text, unsigned deadline_ms)
{
	return (struct ready_script){ .description = "docker answers", .script = text,
				      .hint = "see docker's log", .mux = SSH_MUX,
				      .deadline_ms = deadline_ms };
}

static void test_ready_probe_retries(void **state)
{
	scoped_free char *text = xasprintf("#!/bin/sh\n[ -e %s/second ] && exit 0\n"
					   "touch %s/second\nexit 1\n", dir, dir);
	struct ready_script rs = script(text, 20000);
	struct ready_probe *p = ready_probe_start(&loop, &target, &rs, on_done, NULL);

	run_until(&ended);
	assert_int_equal(outcome.code, 0);
	ready_probe_close(p);
}

static void test_ready_probe_deadline_tells_why(void **state)
{
	struct ready_script rs = script("#!/bin/sh\necho no docker here >&2\nexit 3\n", 700);
	struct ready_probe *p = ready_probe_start(&loop, &target, &rs, on_done, NULL);

	run_until(&ended);
	assert_int_equal(outcome.code, -ETIMEDOUT);
	assert_non_null(strstr(outcome.msg, "docker answers: not within"));
	assert_non_null(strstr(outcome.msg, "exit 3: no docker here"));
	assert_non_null(strstr(outcome.msg, "(hint: see docker's log)"));
	ready_probe_close(p);
}

static void test_ready_probe_that_hangs(void **state)
{
	struct ready_script rs = script("#!/bin/sh\nsleep 60\n", 300);
	uint64_t began = clock_mono_ms();
	struct ready_probe *p = ready_probe_start(&loop, &target, &rs, on_done, NULL);

	run_until(&ended);
	assert_int_equal(outcome.code, -ETIMEDOUT);
	assert_true(clock_mono_ms() - began < 5000);
	ready_probe_close(p);
}

static void test_ready_probe_close_while_running(void **state)
{
	struct ready_script rs = script("#!/bin/sh\nsleep 60\n", 60000);
	struct ready_probe *p = ready_probe_start(&loop, &target, &rs, on_done, NULL);

	uv_run(&loop.uv, UV_RUN_ONCE);
	ready_probe_close(p);
	assert_false(ended);
}

/* --- the banner ---------------------------------------------------------- */

static uv_tcp_t server, client;
static const char *greeting;
static unsigned accepted;

static void on_client(uv_stream_t *s, int status)
{
	uv_buf_t b = uv_buf_init((char *)greeting, (unsigned)strlen(greeting));

	uv_tcp_init(&loop.uv, &client);
	uv_accept(s, (uv_stream_t *)&client);
	if (b.len)
		uv_try_write((uv_stream_t *)&client, &b, 1);
	uv_close((uv_handle_t *)&client, NULL);
	if (++accepted == 2)
		greeting = "SSH-2.0-x\r\n";
}

static void on_banner(void *arg)
{
	ended = true;
}

static void test_banner_after_false_starts(void **state)
{
	struct sockaddr_in sa;
	struct sockaddr_storage ss;
	int len = sizeof(ss);

	greeting = "";	/* accepts and hangs up, as QEMU does for a guest that refuses */
	accepted = 0;
	uv_ip4_addr("127.0.0.1", 0, &sa);
	uv_tcp_init(&loop.uv, &server);
	uv_tcp_bind(&server, (struct sockaddr *)&sa, 0);
	assert_int_equal(uv_listen((uv_stream_t *)&server, 8, on_client), 0);
	uv_tcp_getsockname(&server, (struct sockaddr *)&ss, &len);
	struct banner *b = banner_start(&loop, "127.0.0.1",
					ntohs(((struct sockaddr_in *)&ss)->sin_port), on_banner, NULL);
	run_until(&ended);
	assert_int_equal(accepted, 3);
	banner_close(b);
	uv_close((uv_handle_t *)&server, NULL);
}

static void test_banner_close_at_once(void **state)
{
	banner_close(banner_start(&loop, "127.0.0.1", 1, on_banner, NULL));
	assert_false(ended);
}

/* --- the master ---------------------------------------------------------- */

static bool up, lost, closed;

static void on_up(void *arg)
{
	up = true;
}

static void on_lost(void *arg, const struct error *why)
{
	lost = true;
	outcome = *why;
}

static void on_closed(void *arg)
{
	closed = true;
}

static struct ssh_master *new_master(void)
{
	struct ssh_master_callbacks cb = { .up = on_up, .lost = on_lost };

	up = lost = closed = false;
	return ssh_master_new(&loop, &target, &cb);
}

static void test_master_up_lost_and_up_again(void **state)
{
	struct ssh_master *m = new_master();

	ssh_master_ensure(m);
	run_until(&up);
	assert_true(ssh_master_is_up(m) && exists("ssh.sock"));
	touch("drop", true);
	run_until(&lost);
	assert_false(ssh_master_is_up(m));
	assert_non_null(strstr(outcome.msg, "closed by remote host"));
	up = false;
	ssh_master_ensure(m);
	run_until(&up);
	ssh_master_close(m, on_closed, NULL);
	run_until(&closed);
	assert_false(exists("ssh.sock"));
}

static void test_master_refused_then_let_in(void **state)
{
	struct ssh_master *m = new_master();

	touch("refuse", true);
	ssh_master_ensure(m);
	while (!ssh_master_last_error(m)->code)
		uv_run(&loop.uv, UV_RUN_ONCE);
	assert_non_null(strstr(ssh_master_last_error(m)->msg, "Permission denied (publickey)"));
	touch("refuse", false);
	run_until(&up);
	ssh_master_close(m, on_closed, NULL);
	run_until(&closed);
}

/* A socket somebody left: alive (the mock says so while the file is there). */
static void test_master_of_somebody_else(void **state)
{
	struct ssh_master *m;

	touch("ssh.sock", true);
	m = new_master();
	ssh_master_ensure(m);
	run_until(&up);
	ssh_master_close(m, on_closed, NULL);
	run_until(&closed);
	assert_false(exists("ssh.sock"));	/* it was asked to end */
}

/* It is told as lost whether somebody asks or not, as one of ours would be. */
static void test_master_of_somebody_else_is_lost(void **state)
{
	scoped_free char *path = xasprintf("%s/ssh.sock", dir);
	struct ssh_master *m;
	struct unix_id id;
	int fd = -1;

	for (int asked = 0; asked < 2; asked++) {
		assert_int_equal(unix_listen(path, &fd, &id, &outcome), 0);
		m = new_master();
		ssh_master_ensure(m);
		run_until(&up);
		up = false;
		ssh_master_ensure(m);
		uv_run(&loop.uv, UV_RUN_NOWAIT);
		assert_true(ssh_master_is_up(m) && !lost);
		close(fd);	/* it was killed: the file stays */
		if (asked)
			ssh_master_ensure(m);
		run_until(&lost);
		assert_false(ssh_master_is_up(m));
		assert_non_null(strstr(outcome.msg, "was not ours ended"));
		assert_false(exists("ssh.sock") || up);
		ssh_master_ensure(m);
		run_until(&up);
		ssh_master_close(m, on_closed, NULL);
		run_until(&closed);
	}
}

/* Nothing is looked for once it was given up. */
static void test_master_of_somebody_else_is_dropped(void **state)
{
	struct ssh_master *m;

	touch("ssh.sock", true);
	m = new_master();
	ssh_master_ensure(m);
	run_until(&up);
	ssh_master_ensure(m);
	ssh_master_drop(m);
	assert_true(lost && !exists("ssh.sock"));
	lost = false;
	for (int i = 0; i < 3; i++)
		uv_run(&loop.uv, UV_RUN_NOWAIT);
	assert_false(lost || ssh_master_is_up(m));
	ssh_master_close(m, on_closed, NULL);
	run_until(&closed);
}

static void test_master_close_while_starting(void **state)
{
	struct ssh_master *m = new_master();

	ssh_master_ensure(m);
	ssh_master_close(m, on_closed, NULL);
	run_until(&closed);
	assert_false(up);
}

static int make_dir(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	return path_remove_tree(dir, &(struct error){ 0 });
}

#define LOOP_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ready_interpreter),
		cmocka_unit_test(test_ready_param),
		LOOP_TEST(test_ready_probe_retries),
		LOOP_TEST(test_ready_probe_deadline_tells_why),
		LOOP_TEST(test_ready_probe_that_hangs),
		LOOP_TEST(test_ready_probe_close_while_running),
		LOOP_TEST(test_banner_after_false_starts),
		LOOP_TEST(test_banner_close_at_once),
		LOOP_TEST(test_master_up_lost_and_up_again),
		LOOP_TEST(test_master_refused_then_let_in),
		LOOP_TEST(test_master_of_somebody_else),
		LOOP_TEST(test_master_of_somebody_else_is_lost),
		LOOP_TEST(test_master_of_somebody_else_is_dropped),
		LOOP_TEST(test_master_close_while_starting),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
