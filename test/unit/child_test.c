#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/child.h"
#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/mem.h"
#include "lib/base/strv.h"

#define SH(script) (const char *const[]){ "sh", "-c", script, NULL }

static void add_line(void *arg, const char *line)
{
	strv_add(arg, line);
}

static void test_child_run_keeps_output_and_code(void **state)
{
	scoped_child_result struct child_result r = { 0 };
	scoped_strv struct strv lines = { 0 };
	struct error err = { 0 };
	struct child_spec spec = {
		.argv = SH("cat; echo oops >&2; echo b; printf c; exit 3"),
		.input = "a\n",
		.input_len = 2,
		.on_stdout_line = add_line,
		.line_arg = &lines,
	};

	assert_int_equal(child_run(&spec, &r, &err), 0);
	assert_int_equal(r.exit_code, 3);
	assert_string_equal(buf_str(&r.out), "a\nb\nc");
	assert_string_equal(buf_str(&r.err), "oops\n");
	assert_int_equal(lines.len, 3);
	assert_string_equal(lines.items[2], "c");
}

static void test_child_run_bounds_output(void **state)
{
	scoped_child_result struct child_result r = { 0 };
	struct error err = { 0 };
	struct child_spec spec = {
		.argv = SH("head -c 5000000 /dev/zero | tr '\\0' x; echo END"),
		.max_output_bytes = 100,
	};

	assert_int_equal(child_run(&spec, &r, &err), 0);
	assert_int_equal(r.out.len, 100);
	assert_string_equal(buf_str(&r.out) + 95, "xEND\n");
}

static void test_child_run_ok_says_why(void **state)
{
	scoped_child_result struct child_result r = { 0 };
	struct error err = { 0 };
	struct child_spec spec = { .argv = SH("echo first >&2; echo no such thing >&2; exit 4") };

	assert_true(child_run_ok(&spec, &r, &err) < 0);
	assert_string_equal(err.msg, "sh: exit 4: no such thing");
	spec.argv = (const char *const[]){ "no-such-program-here", NULL };
	assert_int_equal(child_run_ok(&spec, &r, &err), -ENOENT);
	assert_string_equal(err.msg, "no-such-program-here: not found in $PATH");
}

static void test_child_run_signal_is_128_plus(void **state)
{
	scoped_child_result struct child_result r = { 0 };
	struct error err = { 0 };
	struct child_spec spec = { .argv = SH("kill -9 $$") };

	assert_int_equal(child_run(&spec, &r, &err), 0);
	assert_int_equal(r.exit_code, 137);
	assert_int_equal(r.term_signal, SIGKILL);
}

static bool has_ended(pid_t pid)
{
	char path[64], state = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	scoped_file FILE *f = fopen(path, "re");
	return !f || fscanf(f, "%*d (%*[^)]) %c", &state) != 1 || state == 'Z';
}

static void wait_until_ended(pid_t pid)
{
	uint64_t end = clock_mono_ms() + 10000;

	while (!has_ended(pid)) {
		assert_true(clock_mono_ms() < end);
		poll(NULL, 0, 5);
	}
}

/* Runs @script by child_run() in a process of its own, which after the first
 * line of output sends itself @sig. That line is a pid, which is returned, and
 * the process's exit code in @ret_code: 77 when child_run() was cancelled. */
static int line_pipe[2];
static int signal_to_self;

static void pass_on_and_signal(void *arg, const char *line)
{
	dprintf(line_pipe[1], "%s\n", line);
	kill(getpid(), signal_to_self);
}

static pid_t run_and_signal(const char *const *argv, int sig, int *ret_status)
{
	char text[32] = "";
	pid_t runner;

	assert_int_equal(pipe(line_pipe), 0);
	signal_to_self = sig;
	runner = fork();
	if (runner == 0) {
		struct child_spec spec = { .argv = argv, .own_group = true,
					   .on_stdout_line = pass_on_and_signal };
		struct child_result r = { 0 };
		struct error err = { 0 };

		interrupt_install();
		_exit(child_run(&spec, &r, &err) == -ECANCELED ? 77 : 1);
	}
	close(line_pipe[1]);
	assert_true(read(line_pipe[0], text, sizeof(text) - 1) > 0);
	close(line_pipe[0]);
	assert_int_equal(waitpid(runner, ret_status, 0), runner);
	return (pid_t)strtol(text, NULL, 10);
}

static void test_child_run_interrupted_ends_the_whole_group(void **state)
{
	int status;
	pid_t deaf = run_and_signal(SH("(trap '' TERM; exec sleep 1000) & echo $!; wait"), SIGINT, &status);

	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 77);
	wait_until_ended(deaf);
}

static void test_child_run_does_not_outlive_a_killed_caller(void **state)
{
	int status;
	pid_t orphan = run_and_signal(SH("echo $$; exec sleep 1000"), SIGKILL, &status);

	assert_true(WIFSIGNALED(status));
	wait_until_ended(orphan);
}

struct seen {
	unsigned exits;
	int code;
	char out[64];
};

static void on_exit_cb(void *arg, const struct child_result *r)
{
	struct seen *s = arg;

	s->exits++;
	s->code = r->exit_code;
	snprintf(s->out, sizeof(s->out), "%s", buf_str(&r->out));
}

static void test_child_start_tells_exit_once(void **state)
{
	struct child_spec spec = { .argv = SH("cat; exit 5"), .input = "hello", .input_len = 5 };
	struct error err = { 0 };
	struct seen seen = { 0 };
	struct loop loop;
	struct child *c;

	assert_int_equal(loop_init(&loop, &err), 0);
	assert_int_equal(child_start(&loop, &spec, on_exit_cb, &seen, &c, &err), 0);
	loop_run(&loop);
	assert_int_equal(seen.exits, 1);
	assert_int_equal(seen.code, 5);
	assert_string_equal(seen.out, "hello");
	child_close(c);
	loop_run(&loop);
	assert_int_equal(loop_done(&loop), 0);
}

static void test_child_close_kills_and_reaps(void **state)
{
	struct child_spec spec = { .argv = SH("sleep 1000 & wait"), .own_group = true };
	struct error err = { 0 };
	struct seen seen = { 0 };
	struct loop loop;
	struct child *c;
	pid_t pid;

	assert_int_equal(loop_init(&loop, &err), 0);
	assert_int_equal(child_start(&loop, &spec, on_exit_cb, &seen, &c, &err), 0);
	pid = child_pid(c);
	child_close(c);
	loop_run(&loop);
	assert_int_equal(seen.exits, 0);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), -1); /* not even a zombie */
	assert_int_equal(errno, ECHILD);
	assert_int_equal(loop_done(&loop), 0);
}

static void test_child_start_failure_frees(void **state)
{
	struct child_spec spec = { .argv = SH("true"), .cwd = "/no/such/dir" };
	struct error err = { 0 };
	struct loop loop;
	struct child *c;

	assert_int_equal(loop_init(&loop, &err), 0);
	assert_true(child_start(&loop, &spec, on_exit_cb, NULL, &c, &err) < 0);
	loop_run(&loop);
	assert_int_equal(loop_done(&loop), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_child_run_keeps_output_and_code),
		cmocka_unit_test(test_child_run_bounds_output),
		cmocka_unit_test(test_child_run_ok_says_why),
		cmocka_unit_test(test_child_run_signal_is_128_plus),
		cmocka_unit_test(test_child_run_interrupted_ends_the_whole_group),
		cmocka_unit_test(test_child_run_does_not_outlive_a_killed_caller),
		cmocka_unit_test(test_child_start_tells_exit_once),
		cmocka_unit_test(test_child_close_kills_and_reaps),
		cmocka_unit_test(test_child_start_failure_frees),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
