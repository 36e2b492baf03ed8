/* Spawning so that it outlives us, seeing the end as parent and as stranger. The
 * programs are shells: what QEMU would do is not the point here. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "drivers/qemu/process.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

enum { GIVE_UP_MS = 20000, TICK_MS = 20 };

struct seen {
	struct loop loop;
	uv_timer_t guard;
	char dir[64], log[80];
	struct process *process;
	bool exited;
	struct process_exit how;
};

/* Ticks, so that a turn of the loop ends also when what it did was a timer's. */
static void on_guard(uv_timer_t *t)
{
	static_assert(GIVE_UP_MS % TICK_MS == 0, "whole ticks");
	t->data = (char *)t->data + TICK_MS;
	if ((uintptr_t)t->data >= GIVE_UP_MS)
		fail_msg("nothing happened for %d ms", GIVE_UP_MS);
}

static void begin(struct seen *s)
{
	struct error err = ERROR_NONE;

	*s = (struct seen){ .dir = "/tmp/lima-process.XXXXXX" };
	assert_non_null(mkdtemp(s->dir));
	snprintf(s->log, sizeof(s->log), "%s/log", s->dir);
	assert_int_equal(loop_init(&s->loop, &err), 0);
	uv_timer_init(&s->loop.uv, &s->guard);
	s->guard.data = NULL;
	uv_timer_start(&s->guard, on_guard, TICK_MS, TICK_MS);
	uv_unref((uv_handle_t *)&s->guard);
}

static void finish(struct seen *s)
{
	struct error err = ERROR_NONE;

	if (s->process)
		process_close(steal_ptr(&s->process));
	uv_close((uv_handle_t *)&s->guard, NULL);
	assert_int_equal(loop_done(&s->loop), 0);
	assert_int_equal(path_remove_tree(s->dir, &err), 0);
}

static void on_exit_seen(void *arg, const struct process_exit *how)
{
	struct seen *s = arg;

	assert_false(s->exited);
	s->exited = true;
	s->how = *how;
}

static void wait_exit(struct seen *s)
{
	while (!s->exited)
		uv_run(&s->loop.uv, UV_RUN_ONCE);
}

static int spawn(struct seen *s, const char *script, const int *fds, size_t n_fds,
		 struct error *err)
{
	const char *const argv[] = { "sh", "-c", script, NULL };
	const struct process_spec spec = { argv, s->dir, s->log, fds, n_fds };

	return process_spawn(&s->loop, &spec, on_exit_seen, s, &s->process, err);
}

static void test_process_exit_code_and_last_words(void **state)
{
	struct error err = ERROR_NONE;
	struct seen s;

	begin(&s);
	assert_int_equal(spawn(&s, "echo 'qemu-system-x86_64: warning: slow' >&2;"
				   "echo \"qemu-system-x86_64: -m: too \033[1mmuch\" >&2; exit 3",
			       NULL, 0, &err), 0);
	wait_exit(&s);
	assert_true(s.how.known);
	assert_int_equal(s.how.code, 3);
	assert_int_equal(s.how.signal, 0);
	assert_int_equal(process_signal(s.process, SIGTERM), -ESRCH);
	scoped_free char *words = process_last_words(s.log);
	assert_string_equal(words, "-m: too \\x1b[1mmuch");
	finish(&s);
}

static void test_process_cannot_run(void **state)
{
	static const char *const argv[] = { "/nonexistent/qemu", NULL };
	struct error err = ERROR_NONE;
	struct seen s;
	struct process_spec spec = { .argv = argv };

	begin(&s);
	spec.cwd = s.dir;
	spec.log_path = s.log;
	assert_int_equal(process_spawn(&s.loop, &spec, on_exit_seen, &s, &s.process, &err), -ENOENT);
	assert_string_equal(err.msg, "run /nonexistent/qemu: no such file or directory");
	assert_null(s.process);
	finish(&s);
}

static void test_process_killed(void **state)
{
	struct error err = ERROR_NONE;
	struct seen s;

	begin(&s);
	assert_int_equal(spawn(&s, "exec sleep 1000", NULL, 0, &err), 0);
	assert_int_equal(process_signal(s.process, SIGKILL), 0);
	wait_exit(&s);
	assert_int_equal(s.how.signal, SIGKILL);
	finish(&s);
}

/* A session of its own, exactly the descriptors that were given, private files. */
static void test_process_is_detached_and_clean(void **state)
{
	scoped_fd int leaked = open("/dev/full", O_RDONLY);	/* inheritable on purpose */
	scoped_fd int given = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	scoped_buf struct buf log = { 0 };
	struct error err = ERROR_NONE;
	struct seen s;

	begin(&s);
	assert_true(leaked >= 0);
	assert_int_equal(spawn(&s, "umask; pwd; readlink /proc/$$/fd/3; readlink /proc/$$/fd/0; "
				   "ls -l /proc/$$/fd | grep -c /dev/full;"
				   "sed 's/.*) //' /proc/$$/stat | cut -d' ' -f4", &given, 1, &err), 0);
	wait_exit(&s);
	assert_int_equal(path_read_file(s.log, 65536, &log, &err), 0);
	scoped_free char *want = xasprintf("0077\n%s\n/dev/zero\n/dev/null\n0\n%d\n", s.dir,
					   process_pid(s.process));
	assert_non_null(strstr(buf_str(&log), "\n"));
	assert_string_equal(strstr(buf_str(&log), "\n0077") + 1, want);
	finish(&s);
}

static void test_process_outlives_its_watcher(void **state)
{
	struct error err = ERROR_NONE;
	struct seen s;
	pid_t pid;

	begin(&s);
	assert_int_equal(spawn(&s, "exec sleep 1000", NULL, 0, &err), 0);
	pid = process_pid(s.process);
	process_close(steal_ptr(&s.process));
	uv_run(&s.loop.uv, UV_RUN_DEFAULT);
	assert_int_equal(kill(pid, 0), 0);

	/* and is found again */
	assert_int_equal(process_adopt(&s.loop, pid, on_exit_seen, &s, &s.process, &err), 0);
	assert_int_equal(process_pid(s.process), pid);
	assert_int_equal(process_signal(s.process, SIGKILL), 0);
	wait_exit(&s);
	assert_true(s.how.known);	/* a child after all: reaped, not left a zombie */
	assert_int_equal(s.how.signal, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), -1);
	finish(&s);
}

static void test_process_of_somebody_else(void **state)
{
	FILE *p = popen("sleep 1000 > /dev/null 2>&1 & echo $!", "r");
	struct error err = ERROR_NONE;
	struct seen s;
	int pid = 0;

	begin(&s);
	assert_non_null(p);
	assert_int_equal(fscanf(p, "%d", &pid), 1);
	pclose(p);
	assert_int_equal(process_adopt(&s.loop, pid, on_exit_seen, &s, &s.process, &err), 0);
	assert_int_equal(process_signal(s.process, SIGTERM), 0);
	wait_exit(&s);
	assert_false(s.how.known);
	finish(&s);
}

static void test_process_adopt_gone(void **state)
{
	struct error err = ERROR_NONE;
	struct seen s;
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	begin(&s);
	assert_int_equal(process_adopt(&s.loop, pid, on_exit_seen, &s, &s.process, &err), -ESRCH);
	finish(&s);
}

static void test_process_last_words_table(void **state)
{
	static const struct {
		const char *log, *want;
	} cases[] = {
		{ "", "" },
		{ "# qemu-system-x86_64 -m 1\n", "" },
		{ "#\nqemu-system-x86_64: warning: x\n", "warning: x" },
		{ "#\nqemu-system-x86_64: Could not open 'disk': Permission denied\n"
		  "qemu-system-x86_64: warning: y\n", "Could not open 'disk': Permission denied" },
		{ "#\nqemu-system-x86_64: first\nqemu-system-x86_64: second\n", "second" },
		{ "#\nkvm run failed Bad address\nEAX=00000000\n", "EAX=00000000" },
		{ "#\nqemu: oops\nEAX=00000000\n", "oops" },
	};
	struct error err = ERROR_NONE;
	struct seen s;

	begin(&s);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		assert_int_equal(path_write_file(s.log, cases[i].log, strlen(cases[i].log), 0600,
						 &err), 0);
		scoped_free char *words = process_last_words(s.log);
		assert_string_equal(words, cases[i].want);
	}
	scoped_free char *none = process_last_words("/nonexistent/log");
	assert_string_equal(none, "");
	finish(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_process_exit_code_and_last_words),
		cmocka_unit_test(test_process_cannot_run),
		cmocka_unit_test(test_process_killed),
		cmocka_unit_test(test_process_is_detached_and_clean),
		cmocka_unit_test(test_process_outlives_its_watcher),
		cmocka_unit_test(test_process_of_somebody_else),
		cmocka_unit_test(test_process_adopt_gone),
		cmocka_unit_test(test_process_last_words_table),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
